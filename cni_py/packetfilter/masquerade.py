"""Masquerading: what a pod sends beyond its subnet leaves with the address of the host.

Owns: ``table inet cni_py`` (see ``rules.py`` for its layout), and where nftables cannot be used
iptables chains as the Go plugins make them (``iptables.py``). Deletes both, and what the Go plugins
made for the same attachment, in nftables too: rules of ``inet cni_plugins_masquerade masq_checks``.

Read, compare, write runs under ``/run/cni-py/nft.lock``: an address may have gone to a new owner
before the DEL of its old one comes, which then must not touch it. Each change is one transaction,
so there is no point at which a kill leaves half of it.
"""

from __future__ import annotations

from cni_py.errors import CheckFailed, InvalidConfig
from cni_py.files import Lock, make_folder
from cni_py.journal import RUN_DIR, note
from cni_py.packetfilter import iptables, libnftables, nfnetlink, ownership
from cni_py.packetfilter.ownership import Owner
from cni_py.undo import Attempts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cni_py.packetfilter.ownership import Interface, Network

MAPS = (f"{ownership.TABLE} masq4", f"{ownership.TABLE} masq6")
GO_TABLE, GO_CHAIN = "cni_plugins_masquerade", "masq_checks"


def lock() -> Lock:
    """One at a time reads, compares and writes; shared with macspoof."""
    make_folder(RUN_DIR, 0o700)
    return Lock(f"{RUN_DIR}/nft.lock")


def choose_backend(wanted: str | None) -> str:
    """``nftables`` or ``iptables``, from the key ``ipMasqBackend``. Raises: InvalidConfig for another value.

    Unlike the Go plugins, which prefer iptables: an element costs the same for one pod and for 250.
    """
    if wanted in ("nftables", "iptables"):
        return wanted
    if wanted:
        raise InvalidConfig(f'unknown ipmasq backend "{wanted}"', 'ipMasqBackend is "nftables" or "iptables"')
    return "iptables" if libnftables.works() else "nftables"


def backend_report() -> str:
    """Which backend is used where the configuration names none, and why."""
    reason = libnftables.works()
    return f"iptables ({reason})" if reason else "nftables (the library loads and the kernel answers)"


# ---- ADD --------------------------------------------------------------------------------------


def add(owner: Owner, addresses: Sequence[Interface], backend: str | None = None, spare: Collection[Network] = ()) -> None:
    """Masquerade what ``addresses`` send beyond their own subnets, ``spare`` and multicast. May be repeated.

    Args:
        spare: further networks that see the pod's own address.
    """
    if not addresses:
        return
    if choose_backend(backend) == "iptables":
        with lock():
            iptables.add(owner, addresses, spare)
        return
    with lock():
        chains = ownership.wanted_chains(addresses, spare)
        stands = all(nfnetlink.rule_comments(chain) == ownership.rule_comments(lines) for chain, lines in chains.items())
        replaced = _replaced(owner, addresses, spare)
        commands = ownership.masquerade_elements(owner, addresses, spare, replaced)
        if stands:
            doomed = libnftables.by_name((ownership.map_of(address), address.ip.packed) for address in replaced)
            wanted = libnftables.by_name(
                (ownership.map_of(address), _wanted_element(owner, address, spare)) for address in addresses
            )
            libnftables.change(doomed, wanted, "; ".join(commands))
        else:
            with libnftables.borrowed() as handle:
                handle.run("; ".join(ownership.masquerade_base(chains) + commands))


def _replaced(owner: Owner, addresses: Sequence[Interface], spare: Collection[Network]) -> list[Interface]:
    """The addresses whose element is there and says something else.

    It has to be deleted: ``add element`` succeeds and changes nothing where the key is there.
    """
    found = []
    for address in addresses:
        there = nfnetlink.element(ownership.map_of(address), address.ip.packed)
        if there is None or there == _wanted_element(owner, address, spare):
            continue
        found.append(address)
        if there.comment != owner.comment():
            note(f'masquerade of {address.ip} goes over from "{there.comment}" to "{owner.comment()}"')
    return found


def _wanted_element(owner: Owner, address: Interface, spare: Collection[Network]) -> nfnetlink.Element:
    target = ownership.beyond_chain(ownership.spared_networks(address, spare))
    return nfnetlink.Element(address.ip.packed, owner.comment(), target)


# ---- DEL --------------------------------------------------------------------------------------


def delete(owner: Owner, addresses: Collection[Interface] = ()) -> None:
    """Delete every rule of this attachment, whoever made it; absence is success.

    Args:
        addresses: the attachment's, where they are known. Needed only to spare another interface of
            the same container on the same network, which shares its iptables chain (not its elements).

    Raises: Incomplete, after all that can be done was done, with what is left.
    """
    chain, sources, attempts = owner.go_chain(), [str(address.ip) for address in addresses], Attempts()
    with lock():
        with attempts.attempt(f'elements of "{ownership.TABLE}"'):
            _delete_elements(owner.comment().__eq__, owner.comment())
        with attempts.attempt(f'rules of "inet {GO_TABLE}"'):
            _delete_go_rules(lambda comment: comment.startswith(owner.go_instance()))
        tools: list[iptables.Iptables] = []
        with attempts.attempt(f"chain {chain}"):
            tools = iptables.homes(chain)
        for tool in tools:
            with attempts.attempt(f"chain {chain} of {tool.name}"):
                iptables.delete(tool, chain, sources)
    attempts.raise_if_failed("deleting masquerade rules")


def _delete_elements(doomed: Callable[[str], bool], holding: str = "") -> None:
    """Delete the elements of both maps for whose comment ``doomed`` says so."""
    for name in MAPS:
        libnftables.delete_elements(name, key_text, doomed, holding)


def key_text(key: bytes) -> str:
    """An element's key in nft's syntax."""
    from ipaddress import ip_address

    return str(ip_address(key))


def _delete_go_rules(doomed: Callable[[str], bool]) -> None:
    """Delete the Go plugins' nftables rules for whose comment ``doomed`` says so."""
    if not libnftables.deletable(f"inet {GO_TABLE}"):
        return
    with libnftables.borrowed() as handle:
        chain = f"inet {GO_TABLE} {GO_CHAIN}"
        handles = [rule["handle"] for rule in handle.rules(chain) if doomed(rule.get("comment", ""))]
        if handles:
            handle.run("; ".join([f"delete rule {chain} handle {number}" for number in handles]))


# ---- CHECK ------------------------------------------------------------------------------------


def check(owner: Owner, addresses: Sequence[Interface], backend: str | None = None, spare: Collection[Network] = ()) -> None:
    """Raises: CheckFailed where a packet of one of ``addresses`` would not be treated as ADD arranged it."""
    ours = any(nfnetlink.elements(name, owner.comment()) for name in MAPS)
    if choose_backend(backend) == "iptables" or (backend is None and not ours and _made_by_iptables(owner)):
        missing = iptables.missing(owner, addresses, spare)
        if missing:
            raise CheckFailed(
                f'masquerading of "{owner}" is incomplete', f'expected "{missing[0]}", found no such rule', "iptables -t nat -S"
            )
        return
    with libnftables.borrowed() as handle:
        if backend is None and not ours and _go_rules(handle, owner) >= max(len(addresses), 1):
            return
        for address in addresses:
            _check_element(owner, address, spare)
        for chain, lines in ownership.wanted_chains(addresses, spare).items():
            check_chain(handle, chain, lines)


def _made_by_iptables(owner: Owner) -> bool:
    """Whether the Go plugins, or we on a host without nftables, made this attachment's rules."""
    return any(nfnetlink.exists(f"{family} nat {owner.go_chain()}") for family in ("ip", "ip6"))


def _go_rules(handle: libnftables.Nft, owner: Owner) -> int:
    """How many rules the Go plugins' nftables backend has for this attachment."""
    if not nfnetlink.exists(f"inet {GO_TABLE}"):
        return 0
    there = handle.rules(f"inet {GO_TABLE} {GO_CHAIN}")
    return sum(1 for rule in there if rule.get("comment", "").startswith(owner.go_instance()))


def _check_element(owner: Owner, address: Interface, spare: Collection[Network]) -> None:
    wanted = _wanted_element(owner, address, spare)
    found = nfnetlink.element(ownership.map_of(address), address.ip.packed)
    if found != wanted:
        raise CheckFailed(
            f'masquerading of "{address.ip}" is not what ADD left',
            f'in map "{ownership.map_of(address)}" expected {_in_words(wanted)}, found {_in_words(found)}',
            f"nft list table {ownership.TABLE}",
        )


def _in_words(element: nfnetlink.Element | None) -> str:
    return f'"goto {element.target}" of owner "{element.comment}"' if element else "none"


def check_chain(handle: libnftables.Nft, chain: str, wanted: Sequence[str]) -> None:
    """Raises: CheckFailed where the chain holds other rules."""
    found = handle.rule_lines(chain)
    if found != list(wanted):
        raise CheckFailed(
            f'the nftables chain "{chain}" is not what ADD left',
            f'expected "{"; ".join(wanted)}", found {"no such chain" if found is None else repr("; ".join(found))}',
            f"nft list chain {chain}",
        )


# ---- GC ---------------------------------------------------------------------------------------


def delete_stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_dead: Callable[[str, str], bool] | None = None
) -> None:
    """Delete the rules of this network's attachments that are gone; those of other networks are not touched.

    Args:
        valid: the (container id, interface name) of all that live; everything else of the network goes.
        is_dead: asked where there is no such list, and only about elements of nftables that hold the whole
            container id: an iptables rule does not name its interface.

    Raises: Incomplete, after all that can be done was done, with what is left.
    """
    attempts = Attempts()
    with lock():
        with attempts.attempt(f'elements of "{ownership.TABLE}"'):
            _delete_elements(ownership.stale(network, valid, is_dead))
        if valid is not None:
            owners = [Owner(container_id, ifname, network).go_instance() for container_id, ifname in valid]
            ours = ownership.digest(network)[:16] + "-"
            with attempts.attempt(f'rules of "inet {GO_TABLE}"'):
                _delete_go_rules(lambda comment: comment.startswith(ours) and comment[:33] not in owners)
            with attempts.attempt("iptables chains"):
                iptables.delete_stale(network, {container_id for container_id, _ in valid})
        with attempts.attempt("chains that nothing goes to"):
            _delete_unused_chains()
    attempts.raise_if_failed("deleting stale masquerade rules")


def _delete_unused_chains() -> None:
    """Delete the chains of subnets that no address goes to any more."""
    if not libnftables.deletable(ownership.TABLE):
        return
    with libnftables.borrowed() as handle:
        used = {element.target for name in MAPS for element in nfnetlink.elements(name)}
        names = [entry["chain"]["name"] for entry in handle.list_json(f"list table {ownership.TABLE}") if "chain" in entry]
        unused = [name for name in names if name.startswith(ownership.BEYOND) and name not in used]
        if unused:
            handle.run("; ".join([f"delete chain {ownership.TABLE} {name}" for name in unused]))
