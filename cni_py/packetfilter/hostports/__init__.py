"""Host ports: connections to a port of the host go on to a pod.

Owns: in ``table inet cni_py`` the maps, sets and chains that ``portmap_rules.py`` describes; where nftables
cannot be used, iptables chains as the Go plugin makes them (``portmap_iptables.py``); ``route_localnet``
of links that pods are behind, where 127.0.0.1 may connect. Deletes these, and what the Go plugin made for the
same container, in nftables too: rules of ``ip cni_hostport`` and ``ip6 cni_hostport``.

As in ``masquerade.py``: read, compare, write runs under one lock, for a port may have gone to a new
owner before the DEL of its old one comes; a call is one transaction, so there is no point at which a
kill leaves half of it; reading is by raw netlink, so that a DEL with nothing to delete costs next to nothing.
CHECK is in ``portmap_check.py``.
"""

from __future__ import annotations

from cni_py.errors import InvalidConfig, KernelRefused, NotAvailable
from cni_py.journal import note
from cni_py.kernel import conntrack, sysctl
from cni_py.kernel.route import route_to
from cni_py.netlink.constants import RTN_UNICAST
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.hostports import iptables
from cni_py.packetfilter.hostports import rules as portmap_rules
from cni_py.packetfilter.hostports.rules import HOSTPORTS, LOCALNET, SOURCES, is_quotable
from cni_py.packetfilter.iptables import Iptables
from cni_py.packetfilter.masquerade import lock
from cni_py.packetfilter.ownership import TABLE, Owner, port_key, rule_comments, stale
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
    """``nftables`` or ``iptables``; empty: what works, nftables first. Raises: NotAvailable where neither does."""
    if wanted:
        return wanted
    reason = libnftables.works()
    if not reason:
        return "nftables"
    if Iptables(4).find() or Iptables(6).find():
        return "iptables"
    raise NotAvailable("neither nftables nor iptables can be used", reason, "install libnftables1 or iptables")


def check_backend(wanted: str) -> None:
    """Raises: NotAvailable where the back end cannot be used on this host."""
    backend = choose_backend(wanted)
    reason = libnftables.works() if backend == "nftables" else ""
    if backend == "iptables" and not (Iptables(4).find() or Iptables(6).find()):
        reason = "neither iptables nor ip6tables is installed"
    if reason:
        raise NotAvailable(f'the back end "{backend}" cannot be used', reason)


# ---- ADD --------------------------------------------------------------------------------------


def add(wanted: Wanted, backend: str = "") -> None:
    """Map the ports. May be repeated. Raises: NotAvailable, KernelRefused, InvalidConfig for conditions that nft refuses."""
    backend = choose_backend(backend)
    with lock():
        links = localhost_links(wanted)
        if backend == "iptables":
            iptables.add(wanted)
        else:
            _add_elements(wanted, links)
        for link in links:
            _enable_route_localnet(link)
    forget_connections_to([m for m in wanted.mappings if m.protocol == "udp"])


def _add_elements(wanted: Wanted, links: Sequence[str]) -> None:
    """One transaction: the chains that are not as they should be, the elements, the links that nobody may use for 127.0.0.1."""
    chains = _damaged(portmap_rules.wanted_chains(wanted))
    doomed = [(name, portmap_rules.key_of(mapping)) for mapping in wanted.mappings for name in _replaced(mapping, wanted)]
    new = [pair for mapping in wanted.mappings for pair in wanted_elements(mapping, wanted).items()]
    closed = unprotected(links)
    commands = [portmap_rules.delete_command(name, [key]) for name, key in doomed]
    commands += [command for mapping in wanted.mappings for command in portmap_rules.element_commands(mapping, wanted)]
    commands += [portmap_rules.localnet_command(link) for link in closed]
    if not chains:
        elements = [(name, element) for name, element in new if element]
        elements += [(LOCALNET, nfnetlink.Element(port_key(link), "")) for link in closed]
        libnftables.change(libnftables.by_name(doomed), libnftables.by_name(elements), "; ".join(commands))
        return
    base = portmap_rules.base() if chains.keys() & portmap_rules.BASE_CHAINS.keys() else []
    try:
        with libnftables.borrowed() as handle:
            handle.run("; ".join([*base, *portmap_rules.chain_commands(chains), *commands]))
    except KernelRefused as error:
        conditions = "; ".join([" ".join(words) for _, words in wanted.conditions if words])
        if conditions and any(chain.startswith(f"{TABLE} {portmap_rules.IF}") for chain in chains):
            raise InvalidConfig(f'nftables refuses the conditions "{conditions[:200]}"', error.details) from error
        raise


def _damaged(chains: Chains) -> Chains:
    """Those that are missing or hold other rules than they should, known by their comments."""
    return {
        chain: (hook, lines)
        for chain, (hook, lines) in chains.items()
        if nfnetlink.rule_comments(chain) != rule_comments(lines)
    }


def _replaced(mapping: Mapping, wanted: Wanted) -> list[str]:
    """The maps in which something else is there under the mapping's key: it has to go first."""
    names, key = [], portmap_rules.key_of(mapping)
    for name, element in wanted_elements(mapping, wanted).items():
        there = nfnetlink.element(name, key)
        if there is None or there == element:
            continue
        names.append(name)
        if there.comment != wanted.owner.comment() and name in HOSTPORTS:
            port = f"host port {portmap_rules.key_text(key)}"
            note(f'{port} goes over from "{there.comment}" to "{wanted.owner.comment()}": the newest wins')
    return names


def wanted_elements(mapping: Mapping, wanted: Wanted) -> dict[str, Element | None]:
    """The mapping's element in each map; ``None``: there should be none."""
    key, comment = portmap_rules.key_of(mapping), wanted.owner.comment()
    chain = portmap_rules.source_chain(mapping, wanted)
    return {
        portmap_rules.hostports_map(mapping): nfnetlink.Element(key, comment, "", portmap_rules.target_of(mapping)),
        portmap_rules.sources_map(mapping): nfnetlink.Element(key, comment, chain, jumps=True) if chain else None,
    }


def localhost_links(wanted: Wanted) -> list[str]:
    """The links by which pods are reached that 127.0.0.1 may connect to: there the kernel has to take its packets."""
    from _socket import if_indextoname

    if not wanted.snat:
        return []
    links: dict[str, None] = {}
    for packed in dict.fromkeys([m.pod.ip.packed for m in wanted.mappings if m.is_for_localhost]):
        kind, ifindex = route_to(packed)
        if kind == RTN_UNICAST:
            links[if_indextoname(ifindex)] = None
        else:
            note(f"no link leads to {portmap_rules.address_text(packed)}: its ports cannot be reached from 127.0.0.1")
    return list(links)


def unprotected(links: Sequence[str]) -> list[str]:
    """Those of the links that others than the host may send to 127.0.0.1 by."""
    return [link for link in links if is_quotable(link) and nfnetlink.element(LOCALNET, port_key(link)) is None]


def _enable_route_localnet(link: str) -> None:
    """Let the kernel take answers for 127.0.0.1 from this link. Raises: KernelRefused."""
    try:
        sysctl.ensure(f"net/ipv4/conf/{link}/route_localnet", "1")
    except OSError as error:
        raise KernelRefused(f'unable to enable route_localnet of "{link}"', error.strerror or "") from error


# ---- DEL --------------------------------------------------------------------------------------


def delete(owner: Owner, udp_ports: Collection[int] = ()) -> set[tuple[int, bytes]]:
    """Delete every mapping of this attachment, whoever made it; absence is success.

    Answers what is free now in the maps: length of the target, which tells the IP version, and key.

    Args:
        udp_ports: host ports that it may have had, for rules of iptables and Go, which are not read one by one.

    Raises: Incomplete, after all that can be done was done, with what is left.
    """
    attempts = Attempts()
    gone: list[Element] = []
    others = False
    with lock():
        with attempts.attempt(f'elements of "{TABLE}"'):
            gone = _delete_elements(owner.comment().__eq__, owner.comment())
        with attempts.attempt(f'rules of "{GO_TABLES[0]}"'):
            others |= _delete_go_rules(owner.container_id)
        with attempts.attempt(f"chain {iptables.dnat_chain(owner)}"):
            others |= iptables.delete(owner)
    forget_connections_of(gone)
    if others:
        _forget(4, {port: set() for port in udp_ports})
        _forget(6, {port: set() for port in udp_ports})
    attempts.raise_if_failed("deleting port mappings")
    return {(len(element.data), element.key) for element in gone}


def _delete_elements(doomed: Callable[[str], bool], holding: str = "") -> list[Element]:
    """Delete the elements for whose comment ``doomed`` says so, in one transaction; answers those that led to a pod."""
    for last_try in (False, True):
        found = {name: [e for e in nfnetlink.elements(name, holding) if doomed(e.comment)] for name in MAPS}
        keys = {name: [element.key for element in some] for name, some in found.items() if some}
        if not keys:
            return []
        try:
            libnftables.change(
                keys, {}, "; ".join([portmap_rules.delete_command(name, of_map) for name, of_map in keys.items()])
            )
            break
        except KernelRefused as error:  # somebody may have flushed the ruleset since it was read
            if error.errno != nfnetlink.ENOENT or last_try:
                raise
    return [element for name in HOSTPORTS for element in found[name]]


def _delete_go_rules(container_id: str) -> bool:
    """Delete the rules of the Go plugin's nftables back end. Go-compatible: its comments name the container alone."""
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


# ---- UDP connections --------------------------------------------------------------------------


def forget_connections_to(mappings: Sequence[Mapping]) -> None:
    """Forget what was sent to these ports before they were mapped."""
    for version in (4, 6):
        ports: dict[int, set[bytes]] = {}
        for mapping in [m for m in mappings if m.version == version]:
            addresses = ports.setdefault(mapping.host_port, set())
            addresses.add(mapping.host_address.packed if mapping.host_address else b"")
        _forget(version, {port: set() if b"" in addresses else addresses for port, addresses in ports.items()})


def _forget(version: int, ports: dict[int, set[bytes]]) -> None:
    """Forget the connections to these ports and addresses; no address: any of this host."""
    is_to_this_host = conntrack.is_to_this_host()

    def is_doomed(connection: conntrack.Connection) -> bool:
        addresses = ports[connection.port]
        return connection.destination in addresses if addresses else is_to_this_host(connection.destination)

    conntrack.forget(version, ports.keys(), is_doomed)


def forget_connections_of(elements: Sequence[Element]) -> None:
    """Forget what the pods of these mappings answered."""
    for length, version in ((4, 4), (16, 6)):
        pods: dict[int, set[bytes]] = {}
        for element in elements:
            protocol, port = portmap_rules.key_protocol_port(element.key)
            if protocol == conntrack.UDP and len(element.data) == length + 4:
                pods.setdefault(port, set()).add(element.data[:length])

        def is_doomed(connection: conntrack.Connection, pods: dict[int, set[bytes]] = pods) -> bool:
            return connection.answered_by in pods[connection.port]

        conntrack.forget(version, pods.keys(), is_doomed)


# ---- GC ---------------------------------------------------------------------------------------


def delete_stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_dead: Callable[[str, str], bool] | None = None
) -> None:
    """Delete the mappings of this network's attachments that are gone, and repair the base chains of those that stay.

    The rules of Go's nftables back end name no network: they go by DEL alone.

    Args:
        valid: the (container id, interface name) of all that live; everything else of the network goes.
        is_dead: asked where there is no such list; iptables rules do not name their interface, and stay.

    Raises: Incomplete, after all that can be done was done, with what is left.
    """
    attempts = Attempts()
    gone: list[Element] = []
    with lock():
        with attempts.attempt(f'elements of "{TABLE}"'):
            gone = _delete_elements(stale(network, valid, is_dead))
        if valid is not None:
            with attempts.attempt("iptables chains"):
                iptables.delete_stale(network, frozenset([container_id for container_id, _ in valid]))
        with attempts.attempt("the chains that all mappings share"):
            _repair_base()
        with attempts.attempt("chains that nothing goes to"):
            _delete_unused_chains()
    forget_connections_of(gone)
    attempts.raise_if_failed("deleting stale port mappings")


def _repair_base() -> None:
    """Put back the chains that lead to the maps, if there is a mapping."""
    damaged = _damaged(portmap_rules.BASE_CHAINS)
    if not damaged or not any(nfnetlink.elements(name) for name in HOSTPORTS) or not libnftables.deletable(TABLE):
        return
    with libnftables.borrowed() as handle:
        handle.run("; ".join([*portmap_rules.base(), *portmap_rules.chain_commands(damaged)]))


def _delete_unused_chains() -> None:
    """Delete the chains of subnets and conditions that no mapping goes to any more."""
    if not nfnetlink.exists(f"{TABLE} hostports4") or not libnftables.deletable(TABLE):
        return
    with libnftables.borrowed() as handle:
        chains = handle.chain_lines(TABLE)
        used = {element.target for name in SOURCES for element in nfnetlink.elements(name)}
        used |= {line.partition(" goto ")[2].partition(" ")[0] for name in used for line in chains.get(name, ())}
        unused = [name for name in chains if name.startswith((portmap_rules.IF, portmap_rules.MARK)) and name not in used]
        marks = {name.partition("-")[0] for name in chains if name.startswith(portmap_rules.MARK) and name not in unused}
        of_marks = f"masquerade-{portmap_rules.MARK}"
        unused += [name for name in chains if name.startswith(of_marks) and name.partition("-")[2] not in marks]
        if unused:  # their rules first: some go to others of them
            handle.run("; ".join([f"{verb} chain {TABLE} {name}" for verb in ("flush", "delete") for name in unused]))
