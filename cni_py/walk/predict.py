"""A packet's path, predicted hop by hop from the kernel's own tables. Changes nothing, and sends nothing.

How it works. A :class:`Walker` does what the kernel does with a packet, in the same order: a packet of a local process passes
routing, the hook output, routing again if that changed it, and postrouting; one that comes in by a link passes prerouting and
routing, and then input or forward and postrouting. Neighbour, link, bridge and tunnel follow, and lead into the next
namespace. Each step appends a :class:`~cni_py.walk.hops.Hop` with the entry that decided. The kernel is asked for routes, so
that policy rules, reverse path filters and whatever else it considers count; rules of nftables are evaluated by
``ruleset.py``.

What this module does not understand is a hop of the kind UNSURE, and what it cannot follow ends the walk as UNFOLLOWED:
neither is guessed.

Source: linux net/ipv4/ip_output.c, ip_input.c, ip_forward.c, net/bridge/br_forward.c, drivers/net/vxlan/vxlan_core.c, veth.c,
macvlan.c.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EHOSTUNREACH, EINVAL, EXDEV
from typing import TYPE_CHECKING

from cni_py.kernel.route_lookup import Question, find_discarding, list_policy_rules
from cni_py.netlink.constants import IFF_NOARP
from cni_py.walk import hops, segment
from cni_py.walk.hooks import Hooks
from cni_py.walk.hops import Walk
from cni_py.walk.links import Links
from cni_py.walk.packet import ICMP, Packet
from cni_py.walk.path import Path, PathEnd
from cni_py.walk.place import IFF_LOWER_UP, Place, Places

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.kernel.route_lookup import Choice
    from cni_py.walk.choices import Choices
    from cni_py.walk.path import Tracked

_IFF_LOOPBACK = 0x8


class Walker:
    """Follows packets between places. Connections are remembered, so that a reply can be followed after its request.

    ``choices``: what rules choose at random.
    """

    def __init__(self, places: Places, choices: Choices) -> None:
        self._places, self._path = places, Path()
        self._hooks = Hooks(self._path, choices)
        self._links = Links(self._path, places, self._hooks, self)

    def walk(self, place: Place, packet: Packet) -> Walk:
        """Follow a packet that a process in this place sends. Raises: CniError if a table cannot be read."""
        return self._run(lambda: self.send(place, packet), place, packet, f"sends {describe(packet)}")

    def walk_from_wire(self, place: Place, link: Link, packet: Packet) -> Walk:
        """Follow a packet that comes in by a link from a machine that is not visible."""
        text = f"receives {describe(packet)} by {link.name}"
        return self._run(lambda: self._links.arrive(place, link, link.mac, packet), place, packet, text)

    def _run(self, follow: Callable[[], None], place: Place, packet: Packet, text: str) -> Walk:
        self._path.begin()
        walk = self._path.walk
        try:
            self._path.hop(place, hops.SEND, text, packet)
            follow()
        except PathEnd:
            pass
        if self._path.limits:
            walk.limit, walk.limit_at = min(self._path.limits)
        return walk

    def send(self, place: Place, packet: Packet) -> None:
        tracked = self._hooks.tracking.find(place.name, packet)
        choice = self.route(place, packet, None)
        out = self._out_link(place, choice, packet)
        packet = self._hooks.pass_hook(place, "output", packet, *tracked, oif=out)
        if self._hooks.is_rerouted:
            choice = self.route(place, packet, None, again=True)
            out = self._out_link(place, choice, packet)
        self._leave(place, packet, choice, out, tracked, iif=None)

    def _out_link(self, place: Place, choice: Choice, packet: Packet) -> Link:
        """The link of a route."""
        link = place.links.get(choice.ifindex)
        if link is None:
            raise self._path.end(place, hops.BROKEN, "the route leads to a link that no longer exists", packet)
        return link

    def route(self, place: Place, packet: Packet, iif: Link | None, *, again: bool = False) -> Choice:
        """Ask the kernel. Raises: PathEnd if it refuses."""
        question = Question(
            packet.destination, packet.source, iif.ifindex if iif else 0, packet.mark, packet.protocol,
            packet.source_port, packet.destination_port,
        )  # fmt: skip
        choice = place.route(question)
        rule = self._policy_rule(place, question, choice, iif)
        if choice.errno:
            text, why = self._refusal(place, packet, question, choice, iif)
            raise self._path.end(place, hops.BROKEN, text, packet, why, hops.ROUTE)
        device = place.links.get(choice.ifindex)
        name = device.name if device else ""
        via = f" via {choice.gateway}" if choice.gateway else ""
        text = f"is for {place.name} itself" if choice.kind == "local" else f"route{via} by {name}"
        text = f"after that, {text}" if again else text
        entry = f"{choice.words} dev {name}, table {choice.table_name}" if choice.words else ""
        why = "; ".join(filter(None, (entry, rule)))
        self._path.hop(place, hops.ROUTE, text, packet, why)
        if choice.kind not in ("unicast", "local"):
            text = f"{packet.destination} is {choice.kind}: cni-py walk follows unicast"
            raise self._path.end(place, hops.UNFOLLOWED, text, packet)
        self._warn_of_default(place, packet, choice)
        return choice

    def _policy_rule(self, place: Place, question: Question, choice: Choice, iif: Link | None) -> str:
        """The policy rule that led to the table, unless it is one that every host has."""
        rules = list_policy_rules(place.rtnl, question.destination.version)
        source = question.source or choice.source
        asked = question.replace(source=source)
        for rule in rules:
            if rule.action == "lookup" and rule.table == choice.table and rule.selects(asked, iif.name if iif else ""):
                usual = rule.priority in (0, 32766, 32767) and rule.text.startswith("from all lookup")
                return "" if usual else f"rule {rule.priority}: {rule.text}"
        return ""

    def _warn_of_default(self, place: Place, packet: Packet, choice: Choice) -> None:
        """Say that a packet to a pod follows a default route: flannel's route to its subnet is missing."""
        inside = any(packet.destination in network for network in place.pod_networks if network.version == packet.version)
        if inside and choice.matched is not None and choice.matched.prefixlen == 0:
            text = (
                f"{packet.destination} is in the pod network, and {place.name} has no route to its subnet: flanneld creates it"
            )
            self._path.hop(place, hops.NOTE, text, packet)

    def _refusal(self, place: Place, packet: Packet, question: Question, choice: Choice, iif: Link | None) -> tuple[str, str]:
        """The reason why the kernel has no route, in words, and the entry or parameter behind it."""
        version = packet.version
        if choice.errno in (EXDEV, EINVAL) and iif is not None and version == 4:
            names = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", iif.name)]
            values = ", ".join(f"{name} is {place.sysctl(name)}" for name in names)
            if choice.errno == EXDEV or self._fails_reverse_path(place, packet, iif, max(map(place.sysctl, names))):
                return f"dropped: no route back to {packet.source} by {iif.name} (reverse path filter)", values
        if choice.errno == EHOSTUNREACH and iif is not None and version == 4:
            name = f"net/ipv4/conf/{iif.name}/forwarding"
            if place.sysctl(name) == "0":
                return "dropped: the kernel does not forward packets that come in here", f"{name} is 0"
        discarding = find_discarding(place.rtnl, question, iif.name if iif else "")
        if discarding is not None:
            what = "route" if discarding.words else "policy rule"
            return f"dropped: a {what} discards packets to {packet.destination}", str(discarding)
        if choice.errno == EINVAL and iif is not None:
            return f"dropped: the source {packet.source} is impossible here (martian)", choice.reason
        return f"no route to {packet.destination}: the packet is dropped", choice.reason

    def _fails_reverse_path(self, place: Place, packet: Packet, iif: Link, strictness: str) -> bool:
        """Return whether the reverse path filter drops a packet. Since Linux 6.14 the kernel's reply does not say so.

        Source: linux net/ipv4/fib_frontend.c (__fib_validate_source).
        """
        if strictness not in ("1", "2") or place.has_address(packet.source):
            return False
        back = place.route(Question(packet.source))
        return bool(back.errno) or back.kind != "unicast" or (strictness == "1" and back.ifindex != iif.ifindex)

    def _leave(self, place: Place, packet: Packet, choice: Choice, out: Link, tracked: Tracked, *, iif: Link | None) -> None:
        """Postrouting, size, neighbour, and the link."""
        nexthop = choice.gateway or packet.destination
        packet = self._hooks.pass_hook(place, "postrouting", packet, *tracked, iif=iif, oif=out, nexthop=nexthop)
        if not out.flags & _IFF_LOOPBACK and iif is None:
            self._check_size(place, packet, choice.mtu or out.mtu, out, is_forwarded=False)
        mac = self.neighbour(place, out, nexthop, packet)
        self._links.transmit(place, out, mac, replace(packet, source_mac=out.mac, vlan=0))

    def _check_size(self, place: Place, packet: Packet, mtu: int, out: Link, *, is_forwarded: bool) -> None:
        """Compare with the MTU: a packet that is larger is cut, or refused. Raises: PathEnd."""
        overhead = packet.size - packet.innermost.size
        self._path.limits.append((mtu - overhead, f"{out.name} of {place.name}"))
        if packet.size <= mtu:
            return
        which = f"{out.name}, which takes {mtu}" if mtu == out.mtu else f"the route by {out.name}, whose path MTU is {mtu}"
        size = f"{packet.size} bytes do not fit through {which}"
        if packet.version == 6 and packet.inner is not None and not is_forwarded:
            text = f"{size}: dropped, IPv6 packets of a tunnel are not cut into fragments"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.SIZE)
        if not packet.dont_fragment and (packet.version == 4 or not is_forwarded):
            self._path.hop(place, hops.SIZE, f"{size}: cut into fragments", packet, "DF is not set")
            return
        if not is_forwarded:
            text = f"{size}: the kernel refuses to send it (Message too long)"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.SIZE)
        words = "fragmentation needed" if packet.version == 4 else "packet too big"
        text = f"{size}: dropped, and the sender is sent ICMP {words}, MTU {mtu}"
        raise self._path.end(place, hops.BROKEN, text, packet, "", hops.SIZE)

    def neighbour(self, place: Place, out: Link, nexthop: Address, packet: Packet) -> str:
        """The MAC address of the next hop; "" where the link has none. Raises: PathEnd if nothing replies."""
        if out.flags & (_IFF_LOOPBACK | IFF_NOARP) or out.kind in ("tun", "ipip", "wireguard"):
            return ""
        kind = "ARP" if packet.version == 4 else "NDP"
        entry = place.neighbours(out).get(nexthop)
        if entry is not None and entry.mac and entry.state not in ("FAILED", "INCOMPLETE"):
            text = f"{nexthop} is at {entry.mac}"
            self._path.hop(place, hops.NEIGHBOUR, text, packet, f"{kind} entry of {out.name}, {entry.state}")
            return entry.mac
        within, blocking = self._asked(place, out, nexthop)
        owners = segment.owners(within, nexthop)
        state = f"{kind} entry of {out.name}: {entry.state if entry else 'none'}"
        if owners:
            mac = owners[0].link.mac
            text = f"asks by {kind}: {owners[0].link.name} of {owners[0].place.name} replies, {nexthop} is at {mac}"
            self._path.hop(place, hops.NEIGHBOUR, text, packet, state)
            return mac
        if blocking:
            text = f"no reply to {kind} for {nexthop} on {out.name}: a rule drops the question or the reply, and so the packet"
            raise self._path.end(place, hops.BROKEN, text, packet, f"{state}; {blocking}", hops.NEIGHBOUR)
        if within.has_wire:
            self._path.hop(place, hops.NEIGHBOUR, f"asks by {kind} for {nexthop}", packet, state)
            return ""
        text = f"no reply to {kind} for {nexthop} on {out.name}: the packet is dropped"
        if out.kind == "vxlan":
            text = f"no {kind} entry for {nexthop} on {out.name}: the packet is dropped"
            state = f"{state}; flanneld creates one for each node"
        elif out.kind == segment.MACVLAN and (below := self._places.peer(place, out)) and below[0].has_address(nexthop):
            text = f"a macvlan does not reach the host below it, {below[1].name} of {below[0].name}: no reply to {kind}"
        elif not out.flags & IFF_LOWER_UP:
            text = f"{out.name} has no carrier: nothing replies to {kind} for {nexthop}"
        raise self._path.end(place, hops.BROKEN, text, packet, state, hops.NEIGHBOUR)

    def _asked(self, place: Place, out: Link, nexthop: Address) -> tuple[segment.Segment, str]:
        """The segment that gets an ARP request or NDP solicitation, and the rule that keeps it from the interface that would
        reply, "" if none does."""
        kind = segment.BROADCAST if nexthop.version == 4 else segment.MULTICAST
        question = self._hooks.solicitation(nexthop, out.mac)
        within = segment.Flood(self._places, kind, question.passes).reach(place, out)
        owners = segment.owners(within, nexthop)
        if owners and nexthop.version == 6:
            ways = [(place, out, True, False), (*owners[0], False, False), (*owners[0], True, True), (place, out, False, True)]
            if not all(question.passes_ip(at, link, is_sent=sent, is_reply=reply) for at, link, sent, reply in ways):
                return segment.Segment([], has_wire=False), question.dropped[-1]
        if not question.dropped or owners:
            return within, ""
        everywhere = segment.Flood(self._places, kind).reach(place, out)
        return within, question.dropped[0] if segment.owners(everywhere, nexthop) else ""

    def receive(self, place: Place, link: Link, packet: Packet, tracked: Tracked | None = None, mac: str = "") -> None:
        """The IP layer of a namespace receives a packet.

        Args:
            tracked: its connection, if it has passed prerouting on a bridge already.
            mac: the address that its frame is for.
        """
        self._hooks.pass_ingress(place, link, packet, mac)
        if (
            packet.version == 6
            and not link.flags & _IFF_LOOPBACK
            and (packet.source.is_loopback or packet.destination.is_loopback)
        ):
            text = "dropped: a packet with the address ::1 never comes in from outside"
            raise self._path.end(place, hops.BROKEN, text, packet, "RFC 4291, 2.5.3", hops.ROUTE)
        if tracked is None:
            tracked = self._hooks.tracking.find(place.name, packet)
            packet = self._hooks.pass_hook(place, "prerouting", packet, *tracked, iif=link)
        # what comes back in by lo was routed when it was sent, and is not routed again
        choice = self.route(place, packet, link) if not link.flags & _IFF_LOOPBACK else None
        if choice is None or choice.kind == "local":
            packet = self._hooks.pass_hook(place, "input", packet, *tracked, iif=link)
            self._deliver(place, packet, is_reply=tracked[1])
            return
        self._check_forwarding_enabled(place, link, packet)
        out = self._out_link(place, choice, packet)
        self._check_size(place, packet, _forwarding_mtu(place, choice, packet.version) or out.mtu, out, is_forwarded=True)
        packet = self._hooks.pass_hook(place, "forward", packet, *tracked, iif=link, oif=out)
        self._leave(place, packet, choice, out, tracked, iif=link)

    def _check_forwarding_enabled(self, place: Place, link: Link, packet: Packet) -> None:
        """IPv6: the kernel checks this after the lookup."""
        name = "net/ipv6/conf/all/forwarding"
        if packet.version == 6 and place.sysctl(name) == "0":
            text = "dropped: the kernel does not forward packets"
            raise self._path.end(place, hops.BROKEN, text, packet, f"{name} is 0, seen at {link.name}", hops.ROUTE)

    def _deliver(self, place: Place, packet: Packet, *, is_reply: bool) -> None:
        """A packet for this place: a tunnel takes it, or a process."""
        if packet.inner is not None and packet.tunnel is not None:
            self._links.tunnels.decapsulate(place, packet, packet.inner, packet.tunnel)
            return
        text = f"{place.name} takes it"
        if packet.protocol != ICMP and not is_reply:
            heard = place.listens(packet.protocol, packet.destination, packet.destination_port)
            self._path.walk.is_heard = heard
            what = f"{packet.protocol.upper()} {packet.destination_port}"
            refusal = "RST" if packet.protocol == "tcp" else "ICMP port unreachable"
            text = {True: f"{place.name} takes it: a socket is at {what}", None: text}.get(
                heard, f"{place.name} takes it, but no socket is at {what}: the kernel replies {refusal}"
            )
        raise self._path.end(place, hops.DELIVERED, text, packet, "", hops.DELIVER)


def _forwarding_mtu(place: Place, choice: Choice, version: int) -> int:
    """The MTU of a route for packets that are forwarded, 0 for none: of IPv4 without what was learned for packets of this host.

    Source: linux include/net/ip.h (ip_dst_mtu_maybe_forward).
    """
    is_learned_used = version == 6 or place.sysctl("net/ipv4/ip_forward_use_pmtu") == "1"
    return choice.mtu if is_learned_used else choice.configured_mtu


def describe(packet: Packet) -> str:
    """A packet in words."""
    name = {"icmp": "ICMP echo"}.get(packet.protocol, packet.protocol.upper())
    return f"{name} {packet}, {packet.size} bytes"
