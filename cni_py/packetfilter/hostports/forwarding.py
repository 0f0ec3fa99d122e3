"""Host ports: forward connections to a port of the host to a pod.

Owns: in ``table inet cni_py`` the maps, sets and chains that ``rules.py`` describes; on hosts without nftables,
iptables chains as the Go plugin creates them (``iptables.py``); ``route_localnet``
of links to pods that 127.0.0.1 may connect to. Deletes these, and what the Go plugin created for the
same container, in nftables too: rules of ``ip cni_hostport`` and ``ip6 cni_hostport``.

As in ``masquerade.py``: read, compare, write runs under one lock, since a port may have been given to a new
owner before the DEL of its old one comes; a call is one transaction; elements are read by raw netlink, so that
a DEL with nothing to delete costs almost nothing. CHECK is in ``check.py``.
"""

from __future__ import annotations

from errno import ENOENT

from cni_py.errors import InvalidConfig, KernelRefused, NotAvailable
from cni_py.journal import note
from cni_py.kernel import sysctl
from cni_py.kernel.route import route_get
from cni_py.netlink.constants import RTN_UNICAST
from cni_py.netlink.socket import open_host
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.hostports import connections
from cni_py.packetfilter.hostports import rules as portmap_rules
from cni_py.packetfilter.hostports.rules import HOSTPORTS, LOCALNET, SOURCES, is_quotable
from cni_py.packetfilter.masquerade import lock
from cni_py.packetfilter.ownership import IF, TABLE, Owner, rule_comments, stale_test
from cni_py.undo import Attempts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cni_py.packetfilter.hostports.rules import Chains, Mapping, Wanted
    from cni_py.packetfilter.nfnetlink import Element

MAPS = (*HOSTPORTS, *SOURCES)
GO_TABLES = ("ip cni_hostport", "ip6 cni_hostport")
GO_CHAINS = ("hostports", "hostip_hostports", "masquerading")


def choose_backend(wanted: str) -> str:
    """``nftables`` or ``iptables``; empty: whichever works, nftables first. Raises: NotAvailable if neither does."""
    if wanted:
        return wanted
    reason = libnftables.works()
    if not reason:
        return "nftables"
    from cni_py.packetfilter.iptables import Iptables

    if Iptables(4).find() or Iptables(6).find():
        return "iptables"
    raise NotAvailable("neither nftables nor iptables is available", reason, "install libnftables1 or iptables")


def check_backend(wanted: str) -> None:
    """Raises: NotAvailable if the back end does not work on this host."""
    from cni_py.packetfilter.iptables import Iptables

    backend = choose_backend(wanted)
    reason = libnftables.works() if backend == "nftables" else ""
    if backend == "iptables" and not (Iptables(4).find() or Iptables(6).find()):
        reason = "neither iptables nor ip6tables is installed"
    if reason:
        raise NotAvailable(f'the back end "{backend}" cannot be used', reason)


# ---- ADD --------------------------------------------------------------------------------------


def add(wanted: Wanted, backend: str = "") -> bool:
    """Map the ports. Idempotent. Raises: NotAvailable, KernelRefused, InvalidConfig for conditions that nft rejects.

    Returns: whether the chains that lead to all mappings were missing: the others' may have lost theirs.
    """
    was_lost = False
    with lock():
        links, chains = localhost_links(wanted), portmap_rules.wanted_chains(wanted)
        if backend != "iptables":
            chains = _damaged(chains)  # none: nftables works, elements suffice, and its library need not be loaded (4 ms)
        if chains and choose_backend(backend) == "iptables":
            from cni_py.packetfilter.hostports import iptables

            iptables.add(wanted)
        else:
            was_lost = not chains.keys().isdisjoint(portmap_rules.BASE_CHAINS)
            _add_or_again(wanted, links, chains)
        for link in links:
            _enable_route_localnet(link)
    connections.delete_to([m for m in wanted.mappings if m.protocol == "udp"])
    return was_lost


def lost(wanted: Wanted, backend: str = "") -> tuple[Mapping, ...]:
    """Return the mappings whose rules are missing, without those whose host port another attachment has now.

    Raises: CniError.
    """
    damaged = _damaged(portmap_rules.wanted_chains(wanted))
    if backend == "iptables" or (damaged and choose_backend(backend) == "iptables"):
        from cni_py.packetfilter.hostports import iptables

        return wanted.mappings if iptables.missing(wanted) else ()
    own = [mapping for mapping in wanted.mappings if _is_free_or_own(mapping, wanted)]
    is_whole = all(nfnetlink.element(*at) == of for mapping in own for at, of in _elements_at(mapping, wanted))
    return () if is_whole and not damaged and not unprotected(localhost_links(wanted)) else tuple(own)


def _is_free_or_own(mapping: Mapping, wanted: Wanted) -> bool:
    there = nfnetlink.element(portmap_rules.hostports_map(mapping), portmap_rules.key_of(mapping))
    return there is None or there.comment == wanted.owner.comment()


def _elements_at(mapping: Mapping, wanted: Wanted) -> list[tuple[tuple[str, bytes], Element | None]]:
    key = portmap_rules.key_of(mapping)
    return [((name, key), element) for name, element in wanted_elements(mapping, wanted).items()]


def _add_or_again(wanted: Wanted, links: Sequence[str], chains: Chains) -> None:
    for tries_left in reversed(range(libnftables.TRIES)):
        try:
            _add_elements(wanted, links, chains)
            return
        except KernelRefused as error:  # another process may have flushed the ruleset, or deleted a chain, since it was read
            if error.errno != ENOENT or not tries_left:
                raise
        chains = _damaged(portmap_rules.wanted_chains(wanted))


def _add_elements(wanted: Wanted, links: Sequence[str], chains: Chains) -> None:
    """One transaction: damaged chains, elements, and the links from which packets to 127.0.0.1 are dropped."""
    replaced = [(name, portmap_rules.key_of(mapping)) for mapping in wanted.mappings for name in _replaced(mapping, wanted)]
    new = [pair for mapping in wanted.mappings for pair in wanted_elements(mapping, wanted).items()]
    closed = unprotected(links)
    commands = [portmap_rules.delete_command(name, [key]) for name, key in replaced]
    commands += [command for mapping in wanted.mappings for command in portmap_rules.element_commands(mapping, wanted)]
    commands += [portmap_rules.localnet_command(link) for link in closed]
    if not chains:
        elements = [(name, element) for name, element in new if element]
        elements += [(LOCALNET, nfnetlink.Element(portmap_rules.link_key(link), "")) for link in closed]
        libnftables.change(libnftables.by_name(replaced), libnftables.by_name(elements), "; ".join(commands))
        return
    base = portmap_rules.base() if chains.keys() & portmap_rules.BASE_CHAINS.keys() else []
    try:
        with libnftables.borrowed() as handle:
            handle.run("; ".join([*base, *portmap_rules.chain_commands(chains), *commands]))
    except KernelRefused as error:
        conditions = "; ".join([" ".join(words) for _, words in wanted.conditions if words])
        if conditions and any(chain.startswith(f"{TABLE} {IF}") for chain in chains):
            raise InvalidConfig(f'nftables refuses the conditions "{conditions[:200]}"', error.details) from error
        raise


def _damaged(chains: Chains) -> Chains:
    """Return the chains that are missing or hold other rules than wanted, as their comments show."""
    return {
        chain: (hook, lines)
        for chain, (hook, lines) in chains.items()
        if nfnetlink.rule_comments(chain) != rule_comments(lines)
    }


def _replaced(mapping: Mapping, wanted: Wanted) -> list[str]:
    """The maps that hold a different element under the mapping's key, which has to be deleted first."""
    names, key = [], portmap_rules.key_of(mapping)
    for name, element in wanted_elements(mapping, wanted).items():
        there = nfnetlink.element(name, key)
        if there is None or there == element:
            continue
        names.append(name)
        if there.comment != wanted.owner.comment() and name in HOSTPORTS:
            port = f"host port {portmap_rules.key_text(key)}"
            note(f'{port} reassigned from "{there.comment}" to "{wanted.owner.comment()}": the newest wins')
    return names


def wanted_elements(mapping: Mapping, wanted: Wanted) -> dict[str, Element | None]:
    """The mapping's element in each map; None: it should have none."""
    key, comment = portmap_rules.key_of(mapping), wanted.owner.comment()
    chain = portmap_rules.source_chain(mapping, wanted)
    return {
        portmap_rules.hostports_map(mapping): nfnetlink.Element(key, comment, "", portmap_rules.target_of(mapping)),
        portmap_rules.sources_map(mapping): nfnetlink.Element(key, comment, chain, jumps=True) if chain else None,
    }


def localhost_links(wanted: Wanted) -> list[str]:
    """The links to pods that 127.0.0.1 may connect to: they need ``route_localnet``."""
    from _socket import if_indextoname

    if not wanted.snat:
        return []
    links: dict[str, None] = {}
    with open_host() as rtnl:
        for packed in dict.fromkeys([m.pod.ip.packed for m in wanted.mappings if m.is_for_localhost]):
            route = route_get(rtnl, packed)
            if route is not None and route.kind == RTN_UNICAST:
                links[if_indextoname(route.ifindex)] = None
            else:
                note(f"no link leads to {portmap_rules.address_text(packed)}: its ports are unreachable from 127.0.0.1")
    return list(links)


def unprotected(links: Sequence[str]) -> list[str]:
    """The links on which packets to 127.0.0.1 are not dropped yet."""
    return [link for link in links if is_quotable(link) and nfnetlink.element(LOCALNET, portmap_rules.link_key(link)) is None]


def _enable_route_localnet(link: str) -> None:
    """Let the kernel accept replies to 127.0.0.1 from this link. Raises: KernelRefused."""
    try:
        sysctl.ensure(f"net/ipv4/conf/{link}/route_localnet", "1")
    except OSError as error:
        raise KernelRefused(f'unable to enable route_localnet of "{link}"', error.strerror or "") from error


# ---- DEL --------------------------------------------------------------------------------------


def delete(owner: Owner, udp_ports: Collection[int] = (), mark: str = "") -> set[tuple[int, bytes]]:
    """Delete every mapping of this attachment, created by us or by Go; absence is success.

    Args:
        udp_ports: host ports that it may have had, for rules of iptables and Go, which are not read one by one.
        mark: of the attachment's host end, see :func:`delete_links`.

    Returns: the deleted elements: length of the target, which gives the IP version, and key.

    Raises: Incomplete, with what is left, after everything else was deleted.
    """
    from cni_py.packetfilter.hostports import iptables

    attempts = Attempts()
    gone: list[Element] = []
    others = False
    with lock():
        with attempts.attempt(f'elements of "{TABLE}"'):
            gone = _delete_elements(owner.comment().__eq__, owner.comment())
            delete_links(mark)
        with attempts.attempt(f'rules of "{GO_TABLES[0]}"'):
            others |= _delete_go_rules(owner.container_id)
        with attempts.attempt(f"chain {iptables.dnat_chain(owner)}"):
            others |= iptables.delete(owner)
    connections.delete_of(gone)
    if others:
        connections.delete_to_ports(4, {port: set() for port in udp_ports})
        connections.delete_to_ports(6, {port: set() for port in udp_ports})
    attempts.raise_if_failed("deleting port mappings")
    return {(len(element.data), element.key) for element in gone}


def _delete_elements(selects: Callable[[str], bool], holding: str = "") -> list[Element]:
    """Delete the elements whose comment ``selects`` returns True for. Returns: those of host ports."""
    deleted = libnftables.delete_elements(MAPS, portmap_rules.key_text, selects, holding)
    return [element for name in HOSTPORTS for element in deleted[name]]


def delete_links(mark: str = "") -> None:
    """Delete the entries of ``localnet`` whose link no longer exists, or has this mark and so belongs to one attachment alone.

    That of any other link stays: it closes what ``route_localnet`` opens, which is not switched off. Raises: KernelRefused.
    """
    names = {
        element.key: element.key.rstrip(b"\0").decode(errors="surrogateescape") for element in nfnetlink.elements(LOCALNET)
    }
    own = _links_of(mark) if mark and any(name.startswith("veth") for name in names.values()) else ()
    gone = [key for key, name in names.items() if not _exists(name)]
    for key, name in names.items():
        if name in own:
            _disable_route_localnet(name)
            gone.append(key)
    if gone:
        text = f"delete element {LOCALNET} {{ {', '.join(map(portmap_rules.link_text, gone))} }}"
        libnftables.change({LOCALNET: gone}, {}, text)


def _exists(link: str) -> bool:
    from _socket import if_nametoindex

    try:
        return bool(if_nametoindex(link))
    except OSError:
        return False


def _links_of(mark: str) -> list[str]:
    """Return the names of the host ends with this mark. Raises: KernelRefused."""
    from cni_py.kernel.link import list_links

    with open_host() as rtnl:
        return [link.name for link in list_links(rtnl, mark)]


def _disable_route_localnet(link: str) -> None:
    """Raises: KernelRefused, but not for a link that was deleted meanwhile."""
    try:
        sysctl.ensure(f"net/ipv4/conf/{link}/route_localnet", "0")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise KernelRefused(f'unable to disable route_localnet of "{link}"', error.strerror or "") from error


def _delete_go_rules(container_id: str) -> bool:
    """Delete the rules of the Go plugin's nftables back end. Go-compatible: its comments name only the container."""
    return libnftables.retry(lambda: _delete_go_rules_once(container_id))


def _delete_go_rules_once(container_id: str) -> bool:
    commands = []
    for table in [table for table in GO_TABLES if nfnetlink.exists(table)]:
        for chain in GO_CHAINS:
            rules = nfnetlink.rule_handles(f"{table} {chain}")
            commands += [f"delete rule {table} {chain} handle {number}" for number, of in rules if of == container_id]
    if not commands or not libnftables.deletable(commands[0].split(" handle ")[0].removeprefix("delete rule ")):
        return False
    with libnftables.borrowed() as handle:
        handle.run("; ".join(commands))
    return True


# ---- GC ---------------------------------------------------------------------------------------


def delete_stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_stale: Callable[[str, str], bool] | None = None
) -> None:
    """Delete the mappings of this network's stale attachments, and repair the base chains of the others.

    The rules of Go's nftables back end name no network: only DEL deletes them.

    Args:
        valid: (container id, interface name) of the attachments to keep; all others of the network are deleted.
        is_stale: called if there is no such list; iptables rules do not name their interface, and stay.

    Raises: Incomplete, with what is left, after everything else was deleted.
    """
    from cni_py.packetfilter.hostports import iptables

    attempts = Attempts()
    gone: list[Element] = []
    with lock():
        with attempts.attempt(f'elements of "{TABLE}"'):
            gone = _delete_elements(stale_test(network, valid, is_stale))
        if valid is not None:
            from cni_py.packetfilter.hostports import iptables

            with attempts.attempt("iptables chains"):
                iptables.delete_stale(network, frozenset([container_id for container_id, _ in valid]))
        with attempts.attempt("shared chains"):
            _repair_base()
        with attempts.attempt("unused chains and entries"):
            libnftables.delete_unused_chains()
            delete_links()
    connections.delete_of(gone)
    attempts.raise_if_failed("deleting stale port mappings")


def _repair_base() -> None:
    """Restore the chains that lead to the maps, if there is a mapping."""
    damaged = _damaged(portmap_rules.BASE_CHAINS)
    if not damaged or not any(nfnetlink.elements(name) for name in HOSTPORTS) or not libnftables.deletable(TABLE):
        return
    with libnftables.borrowed() as handle:
        handle.run("; ".join([*portmap_rules.base(), *portmap_rules.chain_commands(damaged)]))
