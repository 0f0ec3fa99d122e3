"""Masquerading: packets that a pod sends beyond its subnet leave with the address of the host.

Owns: in ``table inet cni_py`` the maps and chains of masquerade_ruleset.py, and on hosts without nftables
iptables chains as the Go plugins create them (``iptables.py``). Deletes both, and what the Go plugins
created for the same attachment, in nftables too: rules of ``inet cni_plugins_masquerade masq_checks``.

Each change is one transaction: a process that is killed leaves all of it or nothing.
"""

from __future__ import annotations

from errno import ENOENT

from cni_py.errors import CheckFailed, InvalidConfig, KernelRefused
from cni_py.files import HostLock
from cni_py.journal import note
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter import masquerade_ruleset as ruleset
from cni_py.packetfilter.ownership import REPAIR, TABLE, Owner, digest, rule_comments, stale_test
from cni_py.undo import Attempts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cni_py.packetfilter.iptables import Iptables
    from cni_py.packetfilter.masquerade_ruleset import Interface, Network

MAPS = (f"{TABLE} masq4", f"{TABLE} masq6")
GO_TABLE, GO_CHAIN = "cni_plugins_masquerade", "masq_checks"


def lock() -> HostLock:
    """Serializes read, compare, write; shared with macspoof and hostports."""
    # An address may have been given to a new owner before the DEL of its old one comes, which then must not touch it.
    return HostLock("nft.lock")


def choose_backend(wanted: str | None) -> str:
    """``nftables`` or ``iptables``, from the key ``ipMasqBackend``. Raises: InvalidConfig for another value.

    The default is nftables, unlike in the Go plugins: an element costs the same for one pod and for 250.
    """
    if wanted in ("nftables", "iptables"):
        return wanted
    if wanted:
        raise InvalidConfig(f'unknown ipmasq backend "{wanted}"', 'ipMasqBackend is "nftables" or "iptables"')
    return "iptables" if libnftables.works() else "nftables"


def backend_report() -> str:
    """The backend that is used if the configuration names none, and why."""
    reason = libnftables.works()
    return f"iptables ({reason})" if reason else "nftables (the library loads and the kernel supports it)"


# ---- ADD --------------------------------------------------------------------------------------


def add(owner: Owner, addresses: Sequence[Interface], backend: str | None = None, exclude: Collection[Network] = ()) -> bool:
    """Masquerade packets from ``addresses``, except to their own subnets, to ``exclude`` and to multicast. Idempotent.

    Args:
        exclude: further destinations that are not masqueraded.

    Returns: whether the chain that leads to all addresses was missing: the others' may have lost theirs.
    """
    if not addresses:
        return False
    wanted = ruleset.wanted_chains(addresses, exclude)
    with lock():
        for tries_left in reversed(range(libnftables.TRIES)):
            # chains that are current show that nftables works: elements suffice, and its library need not be loaded (4 ms)
            chains = _damaged(wanted) if backend in (None, "", "nftables") else wanted
            if chains and choose_backend(backend) == "iptables":
                from cni_py.packetfilter import iptables

                iptables.add(owner, addresses, exclude)
                return False
            try:
                _add_elements(owner, addresses, exclude, chains)
                return f"{TABLE} postrouting" in chains
            except KernelRefused as error:  # another process may have flushed the ruleset since it was read
                if error.errno != ENOENT or not tries_left:
                    raise
    return False


def lost(
    owner: Owner, addresses: Sequence[Interface], backend: str | None = None, exclude: Collection[Network] = ()
) -> list[Interface]:
    """Return the addresses whose rules are missing, without those that belong to another attachment now. Raises: CniError."""
    chains = ruleset.wanted_chains(addresses, exclude)
    if backend == "iptables" or (_damaged(chains) and choose_backend(backend) == "iptables"):
        from cni_py.packetfilter import iptables

        return list(addresses) if iptables.missing(owner, addresses, exclude) else []
    there = {address: nfnetlink.element(ruleset.map_of(address), address.ip.packed) for address in addresses}
    own = [address for address, element in there.items() if element is None or element.comment == owner.comment()]
    is_whole = all(there[address] == _wanted_element(owner, address, exclude) for address in own)
    return [] if is_whole and not _damaged(ruleset.wanted_chains(own, exclude)) else own


def _add_elements(
    owner: Owner, addresses: Sequence[Interface], exclude: Collection[Network], chains: Mapping[str, Sequence[str]]
) -> None:
    """One transaction: damaged chains and the elements."""
    replaced = _replaced(owner, addresses, exclude)
    commands = ruleset.element_commands(owner, addresses, exclude, replaced)
    if chains:
        with libnftables.borrowed() as handle:
            handle.run("; ".join(ruleset.base(chains) + commands))
        return
    replaced_keys = libnftables.by_name((ruleset.map_of(address), address.ip.packed) for address in replaced)
    wanted = libnftables.by_name((ruleset.map_of(address), _wanted_element(owner, address, exclude)) for address in addresses)
    libnftables.change(replaced_keys, wanted, "; ".join(commands))


def _damaged(chains: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the chains that are missing or hold other rules than wanted, as their comments show."""
    return {chain: lines for chain, lines in chains.items() if nfnetlink.rule_comments(chain) != rule_comments(lines)}


def _replaced(owner: Owner, addresses: Sequence[Interface], exclude: Collection[Network]) -> list[Interface]:
    """The addresses that have a different element already."""
    # It has to be deleted first: "add element" succeeds and changes nothing if the key exists.
    found = []
    for address in addresses:
        there = nfnetlink.element(ruleset.map_of(address), address.ip.packed)
        if there is None or there == _wanted_element(owner, address, exclude):
            continue
        found.append(address)
        if there.comment != owner.comment():
            note(f'masquerade of {address.ip} reassigned from "{there.comment}" to "{owner.comment()}"')
    return found


def _wanted_element(owner: Owner, address: Interface, exclude: Collection[Network]) -> nfnetlink.Element:
    target = ruleset.beyond_chain(ruleset.excluded_networks(address, exclude))
    return nfnetlink.Element(address.ip.packed, owner.comment(), target)


# ---- DEL --------------------------------------------------------------------------------------


def delete(owner: Owner, addresses: Collection[Interface] = ()) -> None:
    """Delete every rule of this attachment, created by us or by Go; absence is success.

    Args:
        addresses: the attachment's, if they are known. Needed only to keep the rules of another interface of
            the same container on the same network, which shares its iptables chain (not its elements).

    Raises: Incomplete, with what is left, after everything else was deleted.
    """
    from cni_py.packetfilter import iptables

    chain, sources, attempts = owner.go_chain(), [str(address.ip) for address in addresses], Attempts()
    with lock():
        with attempts.attempt(f'elements of "{TABLE}"'):
            _delete_elements(owner.comment().__eq__, owner.comment())
        with attempts.attempt(f'rules of "inet {GO_TABLE}"'):
            _delete_go_rules(lambda comment: comment.startswith(owner.go_instance()))
        tools: list[Iptables] = []
        with attempts.attempt(f"chain {chain}"):
            tools = iptables.tools_with(chain)
        for tool in tools:
            with attempts.attempt(f"chain {chain} of {tool.name}"):
                iptables.delete(tool, chain, sources)
    attempts.raise_if_failed("deleting masquerade rules")


def _delete_elements(selects: Callable[[str], bool], holding: str = "") -> None:
    """Delete the elements of both maps whose comment ``selects`` returns True for."""
    libnftables.delete_elements(MAPS, key_text, selects, holding)


def key_text(key: bytes) -> str:
    """An element's key in nft's syntax."""
    from ipaddress import ip_address

    return str(ip_address(key))


def _delete_go_rules(selects: Callable[[str], bool]) -> None:
    """Delete the Go plugins' nftables rules whose comment ``selects`` returns True for."""
    if not libnftables.deletable(f"inet {GO_TABLE}"):
        return
    chain = f"inet {GO_TABLE} {GO_CHAIN}"

    def delete_selected() -> None:
        with libnftables.borrowed() as handle:
            handles = [rule["handle"] for rule in handle.rules(chain) if selects(rule.get("comment", ""))]
            if handles:
                handle.run("; ".join([f"delete rule {chain} handle {number}" for number in handles]))

    libnftables.retry(delete_selected)


def exists(owner: Owner) -> bool:
    """Return whether the attachment has rules or elements, created by us or by Go."""
    from cni_py.packetfilter import iptables

    if any(nfnetlink.elements(name, owner.comment()) for name in MAPS) or _made_by_iptables(owner):
        return True
    if any(tool.rules(owner.go_chain()) is not None for tool in iptables.legacy_tools()):
        return True
    if not libnftables.deletable(f"inet {GO_TABLE}"):
        return False
    with libnftables.borrowed() as handle:
        return _go_rules(handle, owner) > 0


# ---- CHECK ------------------------------------------------------------------------------------


def check(owner: Owner, addresses: Sequence[Interface], backend: str | None = None, exclude: Collection[Network] = ()) -> None:
    """Raises: CheckFailed if packets from one of ``addresses`` would not be masqueraded as ADD configured it."""
    ours = any(nfnetlink.elements(name, owner.comment()) for name in MAPS)
    if choose_backend(backend) == "iptables" or (backend is None and not ours and _made_by_iptables(owner)):
        from cni_py.packetfilter import iptables

        missing = iptables.missing(owner, addresses, exclude)
        if missing:
            words = f'expected "{missing[0]}", found no such rule'
            raise CheckFailed(f'masquerading of "{owner}" is incomplete', words, REPAIR)
        return
    with libnftables.borrowed() as handle:
        if backend is None and not ours and _go_rules(handle, owner) >= max(len(addresses), 1):
            return
        for address in addresses:
            _check_element(owner, address, exclude)
        for chain, lines in ruleset.wanted_chains(addresses, exclude).items():
            check_chain(handle, chain, lines)


def _made_by_iptables(owner: Owner) -> bool:
    """Return whether this attachment's rules are in iptables: from the Go plugins, or from us on a host without nftables."""
    return any(nfnetlink.exists(f"{family} nat {owner.go_chain()}") for family in ("ip", "ip6"))


def _go_rules(handle: libnftables.Nft, owner: Owner) -> int:
    """Returns: the number of rules that the Go plugins' nftables backend has for this attachment."""
    if not nfnetlink.exists(f"inet {GO_TABLE}"):
        return 0
    there = handle.rules(f"inet {GO_TABLE} {GO_CHAIN}")
    return sum(1 for rule in there if rule.get("comment", "").startswith(owner.go_instance()))


def _check_element(owner: Owner, address: Interface, exclude: Collection[Network]) -> None:
    wanted = _wanted_element(owner, address, exclude)
    found = nfnetlink.element(ruleset.map_of(address), address.ip.packed)
    if found != wanted:
        raise CheckFailed(
            f'masquerading of "{address.ip}" is not what ADD left',
            f'in map "{ruleset.map_of(address)}" expected {_in_words(wanted)}, found {_in_words(found)}',
            REPAIR if found is None or found.comment == owner.comment() else f"cni-py explain {address.ip}",
        )


def _in_words(element: nfnetlink.Element | None) -> str:
    return f'"goto {element.target}" of owner "{element.comment}"' if element else "none"


def check_chain(handle: libnftables.Nft, chain: str, wanted: Sequence[str]) -> None:
    """Raises: CheckFailed if the chain holds other rules."""
    found = handle.rule_lines(chain)
    if found != list(wanted):
        raise CheckFailed(
            f'the nftables chain "{chain}" is not what ADD left',
            f'expected "{"; ".join(wanted)}", found {"no such chain" if found is None else repr("; ".join(found))}',
            # a repair compares comments, and would leave other rules with the same ones
            f"nft flush chain {chain}; {REPAIR}" if found and rule_comments(found) == rule_comments(wanted) else REPAIR,
        )


# ---- GC ---------------------------------------------------------------------------------------


def delete_stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_stale: Callable[[str, str], bool] | None = None
) -> None:
    """Delete the rules of this network's stale attachments; other networks are not touched.

    Args:
        valid: (container id, interface name) of the attachments to keep; all others of the network are deleted.
        is_stale: called if there is no such list, and only for elements of nftables that hold the whole
            container id: an iptables rule does not name its interface.

    Raises: Incomplete, with what is left, after everything else was deleted.
    """
    attempts = Attempts()
    with lock():
        with attempts.attempt(f'elements of "{TABLE}"'):
            _delete_elements(stale_test(network, valid, is_stale))
        if valid is not None:
            owners = [Owner(container_id, ifname, network).go_instance() for container_id, ifname in valid]
            ours = digest(network)[:16] + "-"
            with attempts.attempt(f'rules of "inet {GO_TABLE}"'):
                _delete_go_rules(lambda comment: comment.startswith(ours) and comment[:33] not in owners)
            from cni_py.packetfilter import iptables

            with attempts.attempt("iptables chains"):
                iptables.delete_stale(network, {container_id for container_id, _ in valid})
        with attempts.attempt("unused chains"):
            libnftables.delete_unused_chains()
    attempts.raise_if_failed("deleting stale masquerade rules")
