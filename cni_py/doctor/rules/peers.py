"""Routes, neighbours and FDB entries of each peer, against the leases; and replies to probes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_py.attachment.record import mark_on
from cni_py.doctor.facts import Way
from cni_py.doctor.findings import ERROR, Finding
from cni_py.doctor.rules import gathered, shown
from cni_py.kernel.address import have_overlap
from cni_py.kernel.route import BLACKHOLE_METRIC, PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.doctor.facts import Address, Facts, Network, Passage, Taker, Wanted
    from cni_py.flanneld.lease import Lease
    from cni_py.kernel.route import Route


def names_of(lease: Lease) -> frozenset[str]:
    """Return the names of a node as a person may give them."""
    return frozenset(map(str, (*lease.subnets.each(), *lease.attributes.addresses)))


def _peer(one: Wanted) -> str:
    return f"peer {one.subnet} ({_node(one)})"


def _node(one: Wanted) -> Address | None:
    return one.lease.attributes.public_ip if one.subnet.version == 4 else one.lease.attributes.public_ipv6


def _command(*words: str, version: int = 4) -> tuple[str, ...]:
    return (words[0], *(("-6",) if version == 6 and words[0] == "ip" else ()), *words[1:])


def route(facts: Facts) -> Iterator[Finding]:
    """The kernel's choice for a packet to each peer's pods."""
    found = []
    for one in facts.wanted:
        way, wanted = facts.ways.get(one.subnet, Way()), one.route
        if (way.device, way.gateway) == (wanted.device, wanted.gateway) and not way.is_discarded:
            continue
        others = [each for each in facts.routes if _is_better(each, one.subnet) and not _is_same(each, wanted)]
        is_wrong = any(each.protocol == PROTOCOL and each.dst == wanted.dst for each in others)
        exists = any(_is_same(each, wanted) for each in facts.routes)
        command = _command("ip", "route", "replace", *wanted.words(), version=one.subnet.version)
        lines = [
            f"its pods are reached by: {way}",
            *(f"{'its route' if is_wrong else 'a route of another program'}: {' '.join(each.words())}" for each in others),
        ]
        deletions = [" ".join(_command("ip", "route", "del", *each.words(), version=each.dst.version)) for each in others]
        if not others:
            found_by, deletions = _of_taker(facts, way.taken_by, one.subnet)
            lines += found_by
        repair = [*deletions, *([] if exists else [" ".join(command)])]
        is_taken = exists or (others and not is_wrong)
        state = "another route takes its packets" if is_taken else "its route is wrong" if is_wrong else "the route is missing"
        found.append(
            Finding(
                f"{_peer(one)}: {state}",
                tuple(lines),
                tuple(repair)
                or (f"find the rule that leads elsewhere: ip rule; ip route get {one.subnet.network_address + 1}",),
                () if exists or facts.link(wanted.device) is None else (command,),
                names_of(one.lease),
            )
        )
    yield from gathered(found, "peer", "the route is missing, or another one takes its packets")


def _of_taker(facts: Facts, taker: Taker | None, subnet: Network) -> tuple[list[str], list[str]]:
    """Return what takes packets of a subnet, and the commands that end that."""
    if taker is None:
        return [], []
    if taker.rule:
        lines = [f"a policy rule leads there: {taker.rule}", *([f"its route: {taker}"] if taker.entry else [])]
        return lines, [" ".join(_command("ip", "rule", "del", taker.rule, version=subnet.version))]
    if taker.network is None or not taker.network.subnet_of(subnet):  # type: ignore[arg-type]  # both of one family
        return [], []
    if taker.protocol_is_kernel:
        strange = [at for at in facts.addresses if at.address.version == subnet.version and have_overlap(at.network, subnet)]
        by_index = {link.ifindex: link.name for link in facts.links}
        words = [(f"{at.address}/{at.network.prefixlen}", by_index.get(at.ifindex, taker.device)) for at in strange]
        lines = [f"{device} has the address {address}: the kernel routes its network there" for address, device in words]
        return lines, [" ".join(("ip", "addr", "del", address, "dev", device)) for address, device in words]
    device = ["dev", taker.device] if taker.device else []
    command = _command("ip", "route", "del", *taker.entry.split(), *device, version=subnet.version)
    return [f"a route of another program: {taker}"], [" ".join(command)]


def policy(facts: Facts) -> Iterator[Finding]:
    """Policy rules that lead packets of pods elsewhere, or discard them."""
    by_rule: dict[tuple[int, str], list[Passage]] = {}
    of_node = {
        way.taken_by.rule for way in facts.ways.values() if way.taken_by is not None
    }  # the rule about the peer reports it
    for one in facts.passages:
        if one.taken_by is not None and one.taken_by.rule not in ("", *of_node) and not one.fails_strict_check:
            by_rule.setdefault((one.subnet.version, one.taken_by.rule), []).append(one)
    for (version, rule), those in by_rule.items():
        first = those[0]
        taker = first.taken_by
        leave = f"they leave by {first.outgoing or 'no link'} instead of {first.wanted}"
        yield Finding(
            f"a policy rule takes packets of pods: {rule}",
            (
                *shown((f"packets {one.words}" for one in those), 3),
                "they are discarded" if first.errno else leave if first.wanted else "they are not for this node any more",
                *([f"its route: {taker}"] if taker is not None and taker.entry else []),
            ),
            (" ".join(_command("ip", "rule", "del", rule, version=version)),),
            about=first.about if len({one.about for one in those}) == 1 else frozenset(),
        )


def _is_same(one: Route, other: Route) -> bool:
    """Return whether two routes lead the same way, whichever program made them."""
    return (one.dst, one.device, one.gateway) == (other.dst, other.device, other.gateway)


def _is_better(one: Route, subnet: Network) -> bool:
    """Return whether a route takes packets of a subnet from a route to the whole of it."""
    return one.dst.version == subnet.version and one.dst.prefixlen >= subnet.prefixlen and one.dst.subnet_of(subnet)  # type: ignore[arg-type]


def neighbour(facts: Facts) -> Iterator[Finding]:
    found = []
    actual = {(each.device, each.address): each for each in facts.neighbours}
    for one in facts.wanted:
        wanted = one.neighbour
        if wanted is None or facts.link(wanted.device) is None:
            continue
        there = actual.get((wanted.device, wanted.address))
        if there is None or there.mac != wanted.mac:
            command = ("ip", "neigh", "replace", *wanted.words())
            state = f"it is at {there.mac}" if there else "there is no permanent entry"
            found.append(
                Finding(
                    f"{_peer(one)}: the ARP entry of its device is {'wrong' if there else 'missing'}",
                    (f"{state}, and its lease says {wanted.mac}",),
                    (" ".join(command),),
                    (command,),
                    names_of(one.lease),
                )
            )
    yield from gathered(found, "peer", "the ARP entry is missing or wrong")


def forwarding(facts: Facts) -> Iterator[Finding]:
    found = []
    actual: dict[tuple[str, str], set[Address]] = {}
    for each in facts.forwarding:
        actual.setdefault((each.device, each.mac), set()).add(each.remote)
    for one in facts.wanted:
        wanted = one.forwarding
        if wanted is None or facts.link(wanted.device) is None:
            continue
        there = actual.get((wanted.device, wanted.mac), set())
        odd = facts.odd_forwarding.get(wanted, "")
        if there != {wanted.remote} or odd:
            command = ("bridge", "fdb", "replace", *wanted.words())
            leads = f"it leads to {', '.join(map(str, there))}{f', {odd}' if odd else ''}" if there else "there is no entry"
            found.append(
                Finding(
                    f"{_peer(one)}: the FDB entry of its device is {'wrong' if there else 'missing'}",
                    (f"{leads}, and the lease says {wanted.mac} is on {wanted.remote}",),
                    (" ".join(command),),
                    (command,),
                    names_of(one.lease),
                )
            )
    yield from gathered(found, "peer", "the FDB entry is missing or wrong")


def node_route(facts: Facts) -> Iterator[Finding]:
    """The route to the peer's node, below the tunnel."""
    found = []
    for one in facts.wanted:
        node = _node(one)
        way = facts.node_ways.get(node) if node else None
        if node is None or way is None:
            continue
        if not facts.is_wrong_for_node(way):
            continue
        state = "the route to its node leads into the pods' network" if way.device else "no route to its node"
        lines, repair = _of_taker(facts, way.taken_by, ip_network(node))
        found.append(
            Finding(
                f"{_peer(one)}: {state}",
                (f"ip route get {node}: {way}", *lines),
                tuple(repair) or (f"correct the node's routes; which were expected: ip route get {node}",),
                about=names_of(one.lease),
            )
        )
    yield from gathered(found, "peer", "no route to the node")


def is_to_node_wrong(facts: Facts, one: Wanted) -> bool:
    """Return whether the route to a peer's node cannot be right."""
    node = _node(one)
    return node is not None and node in facts.node_ways and facts.is_wrong_for_node(facts.node_ways[node])


def own_route(facts: Facts) -> Iterator[Finding]:
    """The kernel's route from this node to its own pods."""
    link = facts.bridge
    if link is None or not facts.ports(link) or not link.is_up:
        return
    for subnet in facts.subnets:
        gateway = next((at for at in facts.addresses_of(link) if at.address in subnet), None)
        way = facts.ways.get(subnet)
        if gateway is None or way is None or way.device in (link.name, "lo"):
            continue
        if any(each.device == way.device and _is_of_pod(facts, each) for each in facts.routes):
            continue
        found_by, deletions = _of_taker(facts, way.taken_by, subnet)
        if found_by:
            reached = f"they are reached by: {way}"
            yield Finding(f"another route takes packets to our own pods, {subnet}", (reached, *found_by), tuple(deletions))
            continue
        words = (str(subnet), "dev", link.name, "proto", "kernel", "scope", "link")
        command = _command("ip", "route", "replace", *words, "src", str(gateway.address))
        if subnet.version == 6:
            command = _command("ip", "route", "replace", str(subnet), "dev", link.name, version=6)
        yield Finding(
            f"the route to our own pods, {subnet}, is missing",
            (f"they are reached by: {way}",),
            (" ".join(command),),
            (command,),
        )


def _is_of_pod(facts: Facts, route: Route) -> bool:
    """Return whether a route is that to one pod of this node, which ptp attached, or another plugin, as Calico's in Canal."""
    link = facts.link(route.device)
    return link is not None and link.kind == "veth" and not route.gateway and route.dst.prefixlen == route.dst.max_prefixlen


def foreign_route(facts: Facts) -> Iterator[Finding]:
    """Routes of other programs inside the pods' network: an error where they take packets of a subnet that is leased."""
    own = {link.name for link in facts.links if link.name.startswith("flannel") or mark_on(link)} | {facts.bridge_name}
    wanted = [one.route for one in facts.wanted]
    known = list(facts.ways)
    reported = {way.taken_by.network for way in facts.ways.values() if way.taken_by is not None}
    for each in sorted(facts.routes, key=str):
        if each.protocol == PROTOCOL or (each.device and each.device in own) or any(_is_same(each, one) for one in wanted):
            continue
        if not any(each.dst.version == net.version and each.dst.prefixlen > net.prefixlen and each.dst.subnet_of(net)  # type: ignore[arg-type]
                   for net in facts.networks):  # fmt: skip
            continue
        if any(each.dst.version == subnet.version and each.dst.subnet_of(subnet) for subnet in known) and any(  # type: ignore[arg-type]
            one.subnet == each.dst or each.dst.subnet_of(one.subnet)  # type: ignore[arg-type]
            for one in facts.wanted
            if one.subnet.version == each.dst.version and facts.ways.get(one.subnet, Way()).device != one.route.device
        ):
            continue  # the rule about the peer reports it
        leased = [subnet for subnet in known if subnet.version == each.dst.version and each.dst.subnet_of(subnet)]  # type: ignore[arg-type]
        if _is_of_pod(facts, each) and any(subnet in facts.subnets for subnet in leased):
            continue
        if leased and each.dst in reported:
            continue  # the rule about our own subnet reports it
        command = _command("ip", "route", "del", *each.words(), version=each.dst.version)
        yield Finding(
            f"a route of another program takes packets of the pods' network: {each.dst}",
            (" ".join(each.words()),),
            (" ".join(command),),
            about=frozenset(map(str, leased)),
            severity=ERROR if leased else "",
        )


def stale_route(facts: Facts) -> Iterator[Finding]:
    """Routes that flanneld made for leases that no longer exist."""
    if facts.known is None:
        return
    leased = {subnet for subnets in facts.known.leases for subnet in subnets.each()} | set(facts.subnets)
    found = []
    for each in sorted(facts.routes, key=str):
        if each.protocol != PROTOCOL or each.dst in leased or each.metric == BLACKHOLE_METRIC:
            continue
        if each.dst in facts.networks:  # of the back end udp: one route for all peers
            continue
        if not facts.runs and (not each.onlink or any(one.address == each.gateway for one in facts.neighbours)):
            continue  # of a lease that flanneld followed, and was killed before it saved it
        command = _command("ip", "route", "del", *each.words(), version=each.dst.version)
        found.append(
            Finding(
                f"the route to {each.dst} is stale: no node has a lease of it",
                (" ".join(each.words()),),
                (" ".join(command),),
                (command,),
            )
        )
    yield from gathered(found, "route", "stale: no node has a lease of it")
