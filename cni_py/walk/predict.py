"""A packet's path, predicted hop by hop from the kernel's own tables. Changes nothing, and sends nothing.

How it works. A :class:`Walker` does what the kernel does with a packet, in the same order: a packet of a local process passes routing,
the hook output, routing again if that changed it, and postrouting; one that comes in by a link passes prerouting and routing, and then
input or forward and postrouting. Neighbour, link, bridge and tunnel follow, and lead into the next namespace. Each step appends a
:class:`~cni_py.walk.hops.Hop` with the entry that decided. The kernel is asked for routes, so that policy rules, reverse path filters and
whatever else it considers count; rules of nftables are evaluated by ``ruleset.py``.

What this module does not understand is a hop of the kind UNSURE, and what it cannot follow ends the walk as UNFOLLOWED: neither is
guessed.

Source: linux net/ipv4/ip_output.c, ip_input.c, ip_forward.c, net/bridge/br_forward.c, drivers/net/vxlan/vxlan_core.c, veth.c, macvlan.c.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH, EXDEV
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from cni_py.kernel.route_lookup import Question, discarding_entry, list_policy_rules
from cni_py.walk import hops, segment
from cni_py.walk.hops import IN, OUT, Hop, Walk
from cni_py.walk.packet import HEADER, ICMP, UDP, Packet, Tunnel
from cni_py.walk.place import IFF_LOWER_UP, Place, Places
from cni_py.walk.ruleset import UNKNOWN, Facts
from cni_py.walk.tracking import Connection, Tracking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.kernel.neighbour_state import FdbEntry
    from cni_py.kernel.route_lookup import Choice
    from cni_py.walk.ruleset import Chain, Event

    Tracked = tuple[Connection, bool]
    """A packet's connection, and whether it is a reply."""

_MAX_HOPS = 120
_NO_MAC = "00:00:00:00:00:00"
_ETHERNET, _VXLAN_HEADERS = 14, 16  # UDP's and VXLAN's
_VETH_SLACK = 4
"""Bytes by which a veth's receiver accepts more than its MTU: the kernel leaves room for a VLAN tag."""
_IFF_NOARP, _IFF_LOOPBACK = 0x80, 0x8
_IP_FAMILIES = {4: ("inet", "ip"), 6: ("inet", "ip6")}
_L4 = {4: {"icmp": "icmp"}, 6: {"icmp": "ipv6-icmp"}}
_NAT_PRIORITY = {"prerouting": -100, "output": -100, "forward": 1 << 31, "input": 100, "postrouting": 100}
"""Where the kernel translates, or undoes a translation."""
_NATS = frozenset(("dnat", "snat", "masquerade", "redirect"))


class _End(Exception):
    """The walk has ended: it has its outcome."""


class Walker:
    """Follows packets between places. Connections are remembered, so that a reply can be followed after its request."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tracking = Tracking()
        self._walk = Walk()
        self._first = True
        self._limits: list[tuple[int, str]] = []

    def walk(self, place: Place, packet: Packet) -> Walk:
        """Follow a packet that a process in this place sends. Raises: CniError if a table cannot be read."""
        return self._run(lambda: self._send(place, packet), place, packet, f"sends {describe(packet)}")

    def walk_from_wire(self, place: Place, link: Link, packet: Packet) -> Walk:
        """Follow a packet that comes in by a link from a machine that is not visible."""
        return self._run(
            lambda: self._arrive(place, link, link.mac, packet), place, packet, f"receives {describe(packet)} by {link.name}"
        )

    def _run(self, follow: Any, place: Place, packet: Packet, text: str) -> Walk:
        self._walk, self._limits = Walk(), []
        self._hop(place, hops.SEND, text, packet)
        try:
            follow()
        except _End:
            pass
        if self._limits:
            self._walk.limit, self._walk.limit_at = min(self._limits)
        return self._walk

    # ---- hops ---------------------------------------------------------------------------------

    def _hop(self, place: Place, kind: str, text: str, packet: Packet, why: str = "", **more: Any) -> Hop:
        hop = Hop(place.name, kind, text, packet, why, **more)
        self._walk.hops.append(hop)
        if len(self._walk.hops) > _MAX_HOPS:
            self._end(place, hops.BROKEN, "the packet goes in a circle: a routing loop", packet)
        return hop

    def _end(self, place: Place, outcome: str, text: str, packet: Packet, why: str = "", kind: str = hops.END) -> None:
        """End the walk. Raises: _End."""
        is_broken = outcome == hops.BROKEN
        self._walk.hops.append(Hop(place.name, kind, text, packet, why, is_broken=is_broken))
        self._walk.outcome, self._walk.end, self._walk.end_place = outcome, text, place.name
        raise _End

    def _seen_at(
        self, place: Place, link: Link, direction: str, packet: Packet, text: str, *, is_optional: bool = False
    ) -> None:
        """A hop at which a capture shows the packet."""
        self._hop(place, hops.LINK, text, packet, link=link.name, direction=direction, is_optional=is_optional)

    # ---- a packet of a local process ----------------------------------------------------------

    def _send(self, place: Place, packet: Packet) -> None:
        tracked = self._tracking.find(place.name, packet)
        choice = self._route(place, packet, None)
        out = self._out_link(place, choice, packet)
        before = packet
        packet = self._hook(place, "output", packet, *tracked, oif=out)
        if (packet.destination, packet.mark) != (before.destination, before.mark):
            choice = self._route(place, packet, None, again=True)
            out = self._out_link(place, choice, packet)
        self._leave(place, packet, choice, out, tracked, iif=None)

    def _out_link(self, place: Place, choice: Choice, packet: Packet) -> Link:
        """The link of a route."""
        link = place.links.get(choice.ifindex)
        if link is None:
            self._end(place, hops.BROKEN, "the route leads to a link that no longer exists", packet)
        assert link is not None
        return link

    # ---- routing ------------------------------------------------------------------------------

    def _route(self, place: Place, packet: Packet, iif: Link | None, *, again: bool = False) -> Choice:
        """Ask the kernel. Raises: _End if it refuses."""
        question = Question(
            packet.destination, packet.source, iif.ifindex if iif else 0, packet.mark, packet.protocol,
            packet.source_port, packet.destination_port,
        )  # fmt: skip
        choice = place.route(question)
        rule = self._policy_rule(place, question, choice, iif)
        if choice.errno:
            text, why = self._refusal(place, packet, choice, iif)
            self._end(place, hops.BROKEN, text, packet, why, hops.ROUTE)
        device = place.links.get(choice.ifindex)
        name = device.name if device else ""
        via = f" via {choice.gateway}" if choice.gateway else ""
        text = f"is for {place.name} itself" if choice.kind == "local" else f"route{via} by {name}"
        text = f"after that, {text}" if again else text
        entry = f"{choice.words} dev {name}, table {choice.table_name}" if choice.words else ""
        why = "; ".join(filter(None, (entry, rule)))
        self._hop(place, hops.ROUTE, text, packet, why)
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
            text = f"{packet.destination} is in the pod network, and no route to its subnet exists: flanneld creates it"
            self._hop(place, hops.UNSURE, text, packet)

    def _refusal(self, place: Place, packet: Packet, choice: Choice, iif: Link | None) -> tuple[str, str]:
        """The reason why the kernel has no route, in words, and the entry or parameter behind it."""
        version = packet.version
        discarding = discarding_entry(place.rtnl, packet.destination)
        if choice.errno == EXDEV:
            names = [f"net/ipv{version}/conf/{name}/rp_filter" for name in ("all", iif.name if iif else "all")]
            values = ", ".join(f"{name} is {place.sysctl(name)}" for name in dict.fromkeys(names))
            return f"dropped: no route back to {packet.source} by {iif.name if iif else ''} (reverse path filter)", values
        if choice.errno in (EINVAL, EACCES, EHOSTUNREACH, ENETUNREACH) and discarding:
            return f"dropped: a route discards packets to {packet.destination}", discarding
        if choice.errno == EHOSTUNREACH and iif is not None:
            name = f"net/ipv4/conf/{iif.name}/forwarding"
            if place.sysctl(name) == "0":
                return "dropped: the kernel does not forward packets that come in here", f"{name} is 0"
        if choice.errno == EINVAL and iif is not None:
            return f"dropped: the source {packet.source} is impossible here (martian)", choice.reason
        return f"no route to {packet.destination}: the packet is dropped", choice.reason

    # ---- leaving a namespace's IP layer ---------------------------------------------------------

    def _leave(self, place: Place, packet: Packet, choice: Choice, out: Link, tracked: Tracked, *, iif: Link | None) -> None:
        """Postrouting, size, neighbour, and the link."""
        nexthop = choice.gateway or packet.destination
        packet = self._hook(place, "postrouting", packet, *tracked, iif=iif, oif=out, nexthop=nexthop)
        if not out.flags & _IFF_LOOPBACK:
            self._check_size(place, packet, choice.mtu or out.mtu, out, is_forwarded=iif is not None)
        mac = self._neighbour(place, out, nexthop, packet)
        self._transmit(place, out, mac, packet)

    def _check_size(self, place: Place, packet: Packet, mtu: int, out: Link, *, is_forwarded: bool) -> None:
        """Compare with the MTU: a packet that is larger is cut, or refused. Raises: _End."""
        overhead = packet.size - packet.innermost.size
        self._limits.append((mtu - overhead, f"{out.name} of {place.name}"))
        if packet.size <= mtu:
            return
        size = f"{packet.size} bytes do not fit through {out.name}, which takes {mtu}"
        if not packet.dont_fragment and (packet.version == 4 or not is_forwarded):
            self._hop(place, hops.SIZE, f"{size}: cut into fragments", packet, "DF is not set")
            return
        if not is_forwarded:
            self._end(place, hops.BROKEN, f"{size}: the kernel refuses to send it (Message too long)", packet, "", hops.SIZE)
        words = "fragmentation needed" if packet.version == 4 else "packet too big"
        self._end(place, hops.BROKEN, f"{size}: dropped, and the sender is sent ICMP {words}, MTU {mtu}", packet, "", hops.SIZE)

    def _neighbour(self, place: Place, out: Link, nexthop: Address, packet: Packet) -> str:
        """The MAC address of the next hop; "" where the link has none. Raises: _End if nothing replies."""
        if out.flags & (_IFF_LOOPBACK | _IFF_NOARP) or out.kind in ("tun", "ipip", "wireguard"):
            return ""
        kind = "ARP" if packet.version == 4 else "NDP"
        entry = place.neighbours(out).get(nexthop)
        if entry is not None and entry.mac and entry.state not in ("FAILED", "INCOMPLETE"):
            text = f"{nexthop} is at {entry.mac}"
            self._hop(place, hops.NEIGHBOUR, text, packet, f"{kind} entry of {out.name}, {entry.state}")
            return entry.mac
        within = segment.reach(self._places, place, out)
        owners = segment.owners(within, nexthop)
        state = f"{kind} entry of {out.name}: {entry.state if entry else 'none'}"
        if owners:
            mac = owners[0].link.mac
            text = f"asks by {kind}: {owners[0].link.name} of {owners[0].place.name} replies, {nexthop} is at {mac}"
            self._hop(place, hops.NEIGHBOUR, text, packet, state)
            return mac
        if within.has_wire:
            self._hop(place, hops.NEIGHBOUR, f"asks by {kind} who has {nexthop}", packet, state)
            return ""
        text = f"no reply to {kind} for {nexthop} on {out.name}: the packet is dropped"
        if out.kind == "vxlan":
            text = f"no {kind} entry for {nexthop} on {out.name}: the packet is dropped"
            state = f"{state}; flanneld creates one for each node, since VXLAN has nobody to ask".replace("nobody", "no one")
        elif not out.flags & IFF_LOWER_UP:
            text, state = f"{out.name} has no carrier: nothing replies to {kind} for {nexthop}", state
        self._end(place, hops.BROKEN, text, packet, state, hops.NEIGHBOUR)
        return ""

    # ---- links --------------------------------------------------------------------------------

    def _transmit(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """Send a frame by a link."""
        if not link.is_up:
            self._end(place, hops.BROKEN, f"{link.name} is down", packet, "", hops.LINK)
        self._seen_at(place, link, OUT, packet, f"goes out by {link.name}")
        if link.flags & _IFF_LOOPBACK:
            self._seen_at(place, link, IN, packet, f"comes back in by {link.name}")
            self._receive(place, link, packet)
        elif link.kind == segment.BRIDGE:
            self._bridge(place, link, None, mac, packet)
        elif link.kind == "vxlan":
            self._encapsulate(place, link, mac, packet)
        elif link.kind == "tun":
            self._to_daemon(place, link, packet)
        elif link.kind == "ipip":
            self._encapsulate_ip(place, link, packet)
        elif link.kind == "dummy":
            self._end(place, hops.BROKEN, f"{link.name} is a dummy: it discards what is sent by it", packet, "", hops.LINK)
        elif link.kind in (segment.MACVLAN, segment.VLAN):
            self._to_lower(place, link, mac, packet)
        elif link.kind == segment.VETH:
            self._to_peer(place, link, mac, packet)
        elif link.kind in ("", "bond", "team"):
            self._to_wire(place, link, mac, packet)
        else:
            self._end(
                place, hops.UNFOLLOWED, f"{link.name} is of the kind {link.kind}, which cni-py walk does not follow", packet
            )

    def _to_peer(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        peer = self._places.peer(place, link)
        if peer is None:
            self._to_wire(place, link, mac, packet)
            return
        other, end = peer
        if not end.is_up:
            text = f"{link.name} has no carrier: the other end, {end.name} of {other.name}, is down"
            self._end(place, hops.BROKEN, text, packet, "", hops.LINK)
        if packet.size > end.mtu + _VETH_SLACK:
            text = f"{packet.size} bytes do not fit into {end.name} of {other.name}, which takes {end.mtu}: dropped"
            self._end(other, hops.BROKEN, text, packet, "", hops.SIZE)
        self._arrive(other, end, mac, packet)

    def _to_lower(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """A macvlan or VLAN sends by the link below it; siblings of a macvlan are reached at once."""
        below = self._places.peer(place, link)
        if below is None:
            self._to_wire(place, link, mac, packet)
            return
        if link.kind == segment.MACVLAN:
            for other, sibling in self._places.uppers(*below, segment.MACVLAN):
                if sibling.mac == mac and sibling.mac != link.mac:
                    self._seen_at(other, sibling, IN, packet, f"comes in by {sibling.name}, a macvlan of the same link")
                    self._receive(other, sibling, packet)
                    return
            if below[1].mac == mac:
                text = f"a macvlan does not reach the host below it, {below[1].name} of {below[0].name}: the frame leaves by the wire"
                self._end(place, hops.BROKEN, text, packet, "macvlan, mode bridge", hops.LINK)
        self._transmit(*below, mac, packet)

    def _to_wire(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """The visible part ends. Macvlans of the same link are above, not on the wire."""
        for other, upper in self._places.uppers(place, link, segment.MACVLAN):
            if upper.mac == mac:
                text = f"a host does not reach a macvlan of its own link: {upper.name} of {other.name}"
                self._end(place, hops.BROKEN, text, packet, "macvlan", hops.LINK)
        if not link.flags & IFF_LOWER_UP:
            self._end(place, hops.BROKEN, f"{link.name} has no carrier", packet, "", hops.LINK)
        ports = f", UDP {packet.destination_port}" if packet.protocol == UDP and packet.inner is not None else ""
        text = f"leaves by {link.name} to {packet.destination}{ports}; what is behind is not visible from here"
        self._end(place, hops.LEAVES, text, packet, "", hops.LEAVE)

    def _arrive(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """Receive a frame by a link."""
        self._seen_at(place, link, IN, packet, f"comes in by {link.name}")
        self._ingress(place, link, packet)
        bridge = segment.bridge_of(place, link)
        if bridge is not None:
            self._bridge(place, bridge, link, mac, packet)
            return
        if mac and mac != link.mac:
            for other, upper in self._places.uppers(place, link, segment.MACVLAN):
                if upper.mac == mac:
                    self._seen_at(other, upper, IN, packet, f"comes in by {upper.name}, a macvlan of {link.name}")
                    self._receive(other, upper, packet)
                    return
            if not link.is_promiscuous:
                text = f"the frame is for {mac}, and {link.name} has {link.mac}: dropped"
                self._end(place, hops.BROKEN, text, packet, "a stale neighbour entry at the sender", hops.LINK)
        self._receive(place, link, packet)

    def _ingress(self, place: Place, link: Link, packet: Packet) -> None:
        """Chains of the hook ingress, which see frames before anything else."""
        for chain in place.ruleset.base_chains(("netdev", "inet"), "ingress", link.name):
            outcome = place.ruleset.evaluate(chain, self._facts(place, packet, link, None, "new", None))
            self._report(place, outcome.events, packet)
            if outcome.verdict == "drop":
                self._drop(place, outcome.events, packet, "ingress")

    def _bridge(self, place: Place, bridge: Link, ingress: Link | None, mac: str, packet: Packet) -> None:
        """A bridge forwards a frame: to itself, to the port that has the MAC address, or to all."""
        if not bridge.is_up:
            self._end(place, hops.BROKEN, f"the bridge {bridge.name} is down", packet, "", hops.BRIDGE)
        if bridge.vlan_filtering:
            self._hop(place, hops.UNSURE, f"{bridge.name} filters VLANs: those of its ports are not compared", packet)
        tracked = None
        if ingress is not None:
            self._bridge_hook(place, "prerouting", packet, ingress, None)
            if _filters_bridged(place, bridge, packet.version):
                packet, mac, tracked = self._bridged_prerouting(place, bridge, mac, packet)
        entries = [of for of in place.fdb if of.mac == mac and bridge.ifindex in (of.master, of.ifindex)]
        if ingress is not None and _is_own(place, bridge, mac, entries):
            self._bridge_hook(place, "input", packet, ingress, bridge)
            self._seen_at(place, bridge, IN, packet, f"the bridge takes it: {mac} is its own")
            self._receive(place, bridge, packet, tracked)
            return
        port, why = self._port(place, bridge, ingress, mac, entries, packet)
        if ingress is not None:
            self._check_forwarding(place, bridge, ingress, port, packet)
        self._bridge_hook(place, "forward" if ingress is not None else "output", packet, ingress or bridge, port)
        if tracked is not None:
            packet = self._hook(place, "forward", packet, *tracked, iif=bridge, oif=bridge)
            packet = self._hook(place, "postrouting", packet, *tracked, oif=bridge, nexthop=packet.destination)
        if packet.size > port.mtu + _VETH_SLACK and ingress is not None:
            text = f"{packet.size} bytes do not fit through {port.name}, which takes {port.mtu}: the bridge drops them"
            self._end(place, hops.BROKEN, text, packet, "", hops.SIZE)
        self._hop(place, hops.BRIDGE, f"{bridge.name} forwards it to {port.name}", packet, why)
        self._bridge_hook(place, "postrouting", packet, None, port)
        self._transmit(place, port, mac, packet)

    def _bridged_prerouting(self, place: Place, bridge: Link, mac: str, packet: Packet) -> tuple[Packet, str, Tracked]:
        """With br_netfilter a bridged frame passes prerouting of IP at the bridge, and not again in the IP layer.

        A translated one goes to the neighbour that has the new destination if that is on the same bridge, and to the IP layer if not.
        Source: linux net/bridge/br_netfilter_hooks.c (br_nf_pre_routing_finish).
        """
        tracked = self._tracking.find(place.name, packet)
        before = packet.destination
        packet = self._hook(place, "prerouting", packet, *tracked, iif=bridge)
        if packet.destination == before:
            return packet, mac, tracked
        choice = self._route(place, packet, bridge)
        if choice.ifindex != bridge.ifindex or choice.kind != "unicast":
            return packet, bridge.mac, tracked
        mac = self._neighbour(place, bridge, choice.gateway or packet.destination, packet)
        text = f"goes out by {bridge.name}, without the IP layer: br_netfilter translates bridged frames"
        self._seen_at(place, bridge, OUT, packet, text, is_optional=True)
        return packet, mac, tracked

    def _port(
        self, place: Place, bridge: Link, ingress: Link | None, mac: str, entries: Sequence[FdbEntry], packet: Packet
    ) -> tuple[Link, str]:
        """The port for a MAC address, and the reason. Raises: _End if there is none."""
        for of in entries:
            port = place.links.get(of.ifindex)
            if port is not None and port.ifindex != bridge.ifindex and port.mac != mac:
                return port, f"FDB of {bridge.name}: {mac} is behind {port.name}"
        unknown_wire: Link | None = None
        for port in segment.ports_of(place, bridge):
            if ingress is not None and port.ifindex == ingress.ifindex and not port.hairpin:
                continue
            within = segment.reach(self._places, place, port)
            if segment.has_mac(within, mac):
                return port, f"FDB of {bridge.name} does not have {mac} yet: it floods all ports, {port.name} among them"
            unknown_wire = port if within.has_wire and unknown_wire is None else unknown_wire
        if unknown_wire is not None:
            return unknown_wire, f"FDB of {bridge.name} does not have {mac or 'the MAC address'}: it floods all ports"
        text = f"no port of {bridge.name} leads to {mac or packet.destination}: the frame reaches no receiver"
        down = [link.name for link in place.links.values() if link.master == bridge.ifindex and not link.is_up]
        why = f"ports that are down: {', '.join(down)}" if down else "FDB, and the interfaces behind each port"
        self._end(place, hops.BROKEN, text, packet, why, hops.BRIDGE)
        raise _End

    def _check_forwarding(self, place: Place, bridge: Link, ingress: Link, port: Link, packet: Packet) -> None:
        if port.ifindex == ingress.ifindex and not port.hairpin:
            text = f"{bridge.name} does not send a frame back to the port {port.name} that it came from: hairpin mode is off"
            self._end(place, hops.BROKEN, text, packet, "", hops.BRIDGE)
        if port.isolated and ingress.isolated:
            text = f"{bridge.name} does not forward between {ingress.name} and {port.name}: both ports are isolated"
            self._end(place, hops.BROKEN, text, packet, "", hops.BRIDGE)

    def _bridge_hook(self, place: Place, hook: str, packet: Packet, iif: Link | None, oif: Link | None) -> None:
        """Chains of the family bridge."""
        for chain in place.ruleset.base_chains(("bridge",), hook):
            outcome = place.ruleset.evaluate(chain, self._facts(place, packet, iif, oif, "new", None))
            self._report(place, outcome.events, packet)
            if outcome.verdict == "drop":
                self._drop(place, outcome.events, packet, f"bridge {hook}")

    # ---- tunnels ------------------------------------------------------------------------------

    def _encapsulate(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """A VXLAN device wraps a frame and sends it to the node that its FDB names."""
        entries = [of for of in place.fdb if of.ifindex == link.ifindex and of.remote is not None]
        entry = next((of for of in entries if of.mac == mac), None) or next((of for of in entries if of.mac == _NO_MAC), None)
        data = link.data
        remote = entry.remote if entry is not None else None
        if remote is None:
            group = data.get("IFLA_VXLAN_GROUP") or data.get("IFLA_VXLAN_GROUP6")
            remote = ip_address(group) if group and any(group) else None
        if remote is None:
            text = f"no FDB entry of {link.name} for {mac}: VXLAN does not know the node, the packet is dropped"
            self._end(place, hops.BROKEN, text, packet, "flanneld creates one for each node", hops.ENCAPSULATE)
        assert remote is not None
        local = data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6")
        source = ip_address(local) if local and any(local) else place.route(Question(remote)).source
        if source is None or source.version != remote.version:
            self._end(place, hops.BROKEN, f"{link.name} has no address to send to {remote} from", packet, "", hops.ENCAPSULATE)
        assert source is not None
        vni, port = data.get("IFLA_VXLAN_ID", 0), data.get("IFLA_VXLAN_PORT", 0)
        size = packet.size + _ETHERNET + _VXLAN_HEADERS + HEADER[remote.version]
        outer = Packet(
            source, remote, UDP, 0, port, size, dont_fragment=False, inner=packet,
            tunnel=Tunnel(f"VXLAN {vni}", vni, mac), is_port_known=False,
        )  # fmt: skip
        why = f"FDB of {link.name}: {entry.mac if entry else mac} is at {remote}"
        text = f"{link.name} wraps it: VXLAN {vni}, UDP {port} to {remote}"
        self._wrapped(place, text, packet, outer, why)

    def _wrapped(self, place: Place, text: str, packet: Packet, outer: Packet, why: str) -> None:
        changes = (
            f"source {packet.source} is inside {outer.source}",
            f"destination {packet.destination} is inside {outer.destination}",
            f"size {packet.size} becomes {outer.size}",
        )
        self._hop(place, hops.ENCAPSULATE, text, outer, why, changes=changes)
        self._send(place, outer)

    def _to_daemon(self, place: Place, link: Link, packet: Packet) -> None:
        """flannel's back end udp: a process reads the TUN device, and sends the packet as a datagram."""
        if not link.flags & IFF_LOWER_UP:
            self._end(place, hops.BROKEN, f"{link.name} has no carrier: flanneld does not read it", packet, "", hops.LINK)
        found = place.peer_of(packet.destination)
        if found is None:
            text = f"a process reads {link.name}; no lease of flanneld is known that has {packet.destination}"
            self._end(place, hops.UNFOLLOWED, text, packet)
        assert found is not None
        remote, port = found
        source = place.route(Question(remote)).source
        assert source is not None
        size = packet.size + HEADER[remote.version] + 8
        outer = Packet(source, remote, UDP, port, port, size, inner=packet, tunnel=Tunnel("UDP"))
        self._wrapped(
            place, f"flanneld reads {link.name}, and sends it in a datagram to {remote}", packet, outer, "flanneld's leases"
        )

    def _encapsulate_ip(self, place: Place, link: Link, packet: Packet) -> None:
        """An IPIP device without a remote address of its own: the route's gateway is the node."""
        choice = place.route(Question(packet.destination, packet.source, 0, packet.mark))
        data = link.data
        packed = data.get("IFLA_IPIP_REMOTE")
        remote = ip_address(packed) if packed and any(packed) else choice.gateway
        if remote is None:
            self._end(
                place,
                hops.BROKEN,
                f"{link.name} does not know the node: the route has no gateway",
                packet,
                "",
                hops.ENCAPSULATE,
            )
        assert remote is not None
        local = data.get("IFLA_IPIP_LOCAL")
        source = ip_address(local) if local and any(local) else place.route(Question(remote)).source
        assert source is not None
        outer = Packet(source, remote, "ipip", size=packet.size + 20, inner=packet, tunnel=Tunnel("IP in IP"))
        self._wrapped(place, f"{link.name} wraps it: IP in IP to {remote}", packet, outer, f"route via {remote}")

    # ---- a packet that comes in ---------------------------------------------------------------

    def _receive(self, place: Place, link: Link, packet: Packet, tracked: Tracked | None = None) -> None:
        """The IP layer of a namespace receives a packet.

        Args:
            tracked: its connection, if it has passed prerouting on a bridge already.
        """
        if tracked is None:
            tracked = self._tracking.find(place.name, packet)
            packet = self._hook(place, "prerouting", packet, *tracked, iif=link)
        choice = self._route(place, packet, link)
        if choice.kind == "local":
            packet = self._hook(place, "input", packet, *tracked, iif=link)
            self._deliver(place, packet, is_reply=tracked[1])
            return
        if choice.kind != "unicast":
            self._end(place, hops.UNFOLLOWED, f"{packet.destination} is {choice.kind}: cni-py walk follows unicast", packet)
        self._check_forwarding_enabled(place, link, packet)
        out = self._out_link(place, choice, packet)
        self._check_size(place, packet, choice.mtu or out.mtu, out, is_forwarded=True)
        packet = self._hook(place, "forward", packet, *tracked, iif=link, oif=out)
        self._leave(place, packet, choice, out, tracked, iif=link)

    def _check_forwarding_enabled(self, place: Place, link: Link, packet: Packet) -> None:
        """IPv6: the kernel checks this after the lookup."""
        name = "net/ipv6/conf/all/forwarding"
        if packet.version == 6 and place.sysctl(name) == "0":
            text = "dropped: the kernel does not forward packets"
            self._end(place, hops.BROKEN, text, packet, f"{name} is 0, seen at {link.name}", hops.ROUTE)

    def _deliver(self, place: Place, packet: Packet, *, is_reply: bool) -> None:
        """A packet for this place: a tunnel takes it, or a process."""
        if packet.inner is not None and packet.tunnel is not None:
            self._decapsulate(place, packet, packet.inner, packet.tunnel)
            return
        text = f"{place.name} takes it"
        if packet.protocol != ICMP and not is_reply:
            heard = place.listens(packet.protocol, packet.destination, packet.destination_port)
            self._walk.is_heard = heard
            what = f"{packet.protocol.upper()} {packet.destination_port}"
            refusal = "RST" if packet.protocol == "tcp" else "ICMP port unreachable"
            text = {True: f"{place.name} takes it: a socket is at {what}", None: text}.get(
                heard, f"{place.name} takes it, but no socket is at {what}: the kernel replies {refusal}"
            )
        self._end(place, hops.DELIVERED, text, packet, "", hops.DELIVER)

    def _decapsulate(self, place: Place, packet: Packet, inner: Packet, tunnel: Tunnel) -> None:
        kind = {"UDP": "tun", "IP in IP": "ipip"}.get(tunnel.name, "vxlan")
        devices = [link for link in place.links.values() if link.kind == kind and link.is_up]
        if kind == "vxlan":
            devices = [
                link
                for link in devices
                if (link.data.get("IFLA_VXLAN_ID"), link.data.get("IFLA_VXLAN_PORT")) == (tunnel.vni, packet.destination_port)
                and _is_of_family(link, packet.version)
            ]
        if not devices:
            text = f"no device takes {tunnel.name} at port {packet.destination_port}: dropped"
            self._end(place, hops.BROKEN, text, packet, "", hops.DECAPSULATE)
        device = devices[0]
        changes = (f"source {inner.source} again, destination {inner.destination}", f"size {packet.size} becomes {inner.size}")
        by = f"flanneld writes it to {device.name}" if kind == "tun" else f"{device.name} unwraps it"
        self._hop(place, hops.DECAPSULATE, by, inner, f"{tunnel.name} of {packet.source}", changes=changes)
        if tunnel.mac and tunnel.mac != device.mac:
            self._seen_at(place, device, IN, inner, f"comes in by {device.name}")
            text = f"the frame is for {tunnel.mac}, and {device.name} has {device.mac}: dropped"
            self._end(place, hops.BROKEN, text, inner, "the sender's ARP entry is stale", hops.DECAPSULATE)
        self._arrive(place, device, tunnel.mac, inner)

    # ---- hooks of nftables ----------------------------------------------------------------------

    def _hook(
        self,
        place: Place,
        hook: str,
        packet: Packet,
        connection: Connection,
        is_reply: bool,
        *,
        iif: Link | None = None,
        oif: Link | None = None,
        nexthop: Address | None = None,
    ) -> Packet:
        """Pass the chains of a hook. Returns: the packet behind them. Raises: _End if one drops it."""
        rules = place.ruleset
        state = "established" if is_reply else "new"
        is_undone, is_translated = not is_reply, False
        self._say_unreadable(place, hook, packet)
        passed, events = list[str](), 0
        for chain in sorted(rules.base_chains(_IP_FAMILIES[packet.version], hook), key=lambda each: _order(each, hook)):
            if not is_undone and _order(chain, hook) > (_NAT_PRIORITY[hook], 0):
                packet, is_undone = self._untranslate(place, hook, packet, connection), True
            if chain.kind == "nat" and (is_reply or is_translated):
                continue
            outcome = rules.evaluate(chain, self._facts(place, packet, iif, oif, state, connection))
            passed.append(f"{chain.title} ({chain.priority})")
            events += len(outcome.events)
            self._report(place, outcome.events, packet)
            if outcome.verdict == "drop":
                self._drop(place, outcome.events, packet, hook)
            if outcome.verdict == "queue":
                text = f"a rule passes it to a program in user space: {outcome.events[-1].text}"
                self._end(place, hops.UNFOLLOWED, text, packet)
            for event in outcome.events:
                if event.kind == "mark":
                    packet = replace(packet, mark=event.value)
                elif event.kind in _NATS:
                    packet = self._translate(place, event, packet, connection, iif, oif, nexthop)
                    is_translated = True
        if passed and not events:
            self._hop(place, hops.FILTER, f"nftables accepts it unchanged in {hook}", packet, ", ".join(passed))
        return packet if is_undone else self._untranslate(place, hook, packet, connection)

    def _say_unreadable(self, place: Place, hook: str, packet: Packet) -> None:
        """Say once per place what rules exist that are not evaluated."""
        problems = [place.ruleset.problem] if place.ruleset.problem else []
        problems += [f"{name} of legacy iptables is in use: its rules are not evaluated" for name in place.legacy_tables]
        said = {hop.text for hop in self._walk.hops if hop.place == place.name}
        for text in problems:
            if text not in said and hook in ("prerouting", "output"):
                self._hop(place, hops.UNSURE, text, packet)

    def _untranslate(self, place: Place, hook: str, packet: Packet, connection: Connection) -> Packet:
        """Undo the translation of the first packet for a reply."""
        after = packet
        if hook in ("prerouting", "output"):
            after = connection.undo_source(packet)
        elif hook in ("postrouting", "input"):
            after = connection.undo_destination(packet)
        if after != packet:
            text = "connection tracking undoes the translation"
            self._hop(place, hops.NAT, text, after, str(connection.original), changes=_changes(packet, after))
        return after

    def _translate(
        self, place: Place, event: Event, packet: Packet, connection: Connection, iif: Link | None, oif: Link | None,
        nexthop: Address | None,
    ) -> Packet:  # fmt: skip
        """Do what a rule of nat says."""
        address, port = event.value if event.value else (None, None)
        if event.kind in ("dnat", "redirect"):
            if event.kind == "redirect":
                address = self._redirect_address(place, packet, iif)
            after = replace(
                packet,
                destination=address or packet.destination,
                destination_port=port if isinstance(port, int) and packet.destination_port else packet.destination_port,
            )
            after = connection.translate_destination(after)
        else:
            if event.kind == "masquerade":
                address = self._masquerade_address(place, oif, nexthop or packet.destination)
            is_known = packet.is_port_known and (packet.protocol == ICMP or "random" not in event.text)
            after = replace(packet, source=address or packet.source, is_port_known=is_known)
            after = connection.translate_source(after)
        word = {"dnat": "DNAT", "redirect": "redirect", "snat": "SNAT"}.get(event.kind, event.kind)
        self._hop(place, hops.NAT, word, after, f"{event.where}: {event.text}", changes=_changes(packet, after))
        return after

    def _redirect_address(self, place: Place, packet: Packet, iif: Link | None) -> Address | None:
        if iif is None:
            return ip_address("127.0.0.1" if packet.version == 4 else "::1")
        found = place.addresses_of(iif, packet.version)
        return found[0].address if found else None

    def _masquerade_address(self, place: Place, oif: Link | None, nexthop: Address) -> Address | None:
        """The address that the kernel masquerades with: of the link, in the network of the next hop if there is one."""
        if oif is None:
            return None
        own = [of for of in place.addresses_of(oif, nexthop.version) if not of.address.is_link_local]
        inside = [of for of in own if nexthop in of.network]
        others = [of for of in place.addresses if of.address.version == nexthop.version and not of.address.is_loopback]
        found = [*inside, *own, *(of for of in others if not of.address.is_link_local)]
        return found[0].address if found else None

    def _report(self, place: Place, events: Sequence[Event], packet: Packet) -> None:
        """Hops for what rules do besides translation and dropping."""
        for event in events:
            if event.kind == "uncertain":
                self._hop(place, hops.UNSURE, f"a rule is not understood: {event.text}", packet, event.where)
            elif event.kind == "mark":
                text = f"mark {packet.mark:#x} becomes {event.value:#x}"
                self._hop(place, hops.MARK, text, replace(packet, mark=event.value), f"{event.where}: {event.text}")

    def _drop(self, place: Place, events: Sequence[Event], packet: Packet, hook: str) -> None:
        """Raises: _End."""
        event = events[-1]
        text = f"{'rejected' if event.kind == 'reject' else 'dropped'} by nftables in {hook}"
        self._end(place, hops.BROKEN, text, packet, f"{event.where}: {event.text}", hops.FILTER)

    def _facts(
        self, place: Place, packet: Packet, iif: Link | None, oif: Link | None, state: str, connection: Connection | None
    ) -> Facts:
        """What rules can ask of the packet."""
        version = packet.version
        number = _L4[version].get(packet.protocol, packet.protocol)
        status = frozenset(connection.status) if connection is not None else frozenset()
        fields: dict[str, Any] = {
            "meta iifname": iif.name if iif else "",
            "meta oifname": oif.name if oif else "",
            "meta iif": iif.name if iif else "",
            "meta oif": oif.name if oif else "",
            "meta mark": packet.mark,
            "meta l4proto": number,
            "meta nfproto": f"ipv{version}",
            "meta protocol": "ip" if version == 4 else "ip6",
            "meta length": packet.size,
            "meta pkttype": "host",
            "ct state": frozenset((state,)),
            "ct status": status,
            "ct mark": 0,
            "ct direction": "reply" if state == "established" else "original",
            "th dport": packet.destination_port if packet.protocol != ICMP else UNKNOWN,
            "th sport": packet.source_port if packet.protocol != ICMP and packet.is_port_known else UNKNOWN,
        }
        if version == 4:
            fields |= {"ip saddr": packet.source, "ip daddr": packet.destination, "ip protocol": number, "ip version": 4}
        else:
            fields |= {"ip6 saddr": packet.source, "ip6 daddr": packet.destination, "ip6 nexthdr": number, "ip6 version": 6}
        if packet.protocol == ICMP:
            name = "icmp" if version == 4 else "icmpv6"
            fields[f"{name} type"] = "echo-reply" if state == "established" else "echo-request"
        elif packet.protocol in ("tcp", "udp"):
            fields |= {f"{packet.protocol} {end}": fields[f"th {end}"] for end in ("dport", "sport")}
        if packet.protocol == "tcp":
            fields["tcp flags"] = frozenset(("syn", "ack") if state == "established" else ("syn",))
        if iif is not None:
            fields["ether saddr"] = UNKNOWN
        return Facts(fields, lambda result, flags: self._fib(place, packet, result, flags), lambda *of: _raw(packet, *of))

    def _fib(self, place: Place, packet: Packet, result: str, flags: Sequence[str]) -> Any:
        """The expression ``fib``: the type of an address."""
        if result != "type" or list(flags) not in (["daddr"], ["saddr"]):
            return UNKNOWN
        choice = place.route(Question(packet.destination if flags[0] == "daddr" else packet.source))
        return choice.kind or "unreachable"


def _order(chain: Chain, hook: str) -> tuple[int, int]:
    """The place of a chain among those of a hook: all of the type nat run where translation does, whatever their priority."""
    return (_NAT_PRIORITY[hook], 0) if chain.kind == "nat" else (chain.priority, 1)


def _filters_bridged(place: Place, bridge: Link, version: int) -> bool:
    """Return whether br_netfilter passes bridged frames of this IP version to chains of IP."""
    name, option = {
        4: ("net/bridge/bridge-nf-call-iptables", "IFLA_BR_NF_CALL_IPTABLES"),
        6: ("net/bridge/bridge-nf-call-ip6tables", "IFLA_BR_NF_CALL_IP6TABLES"),
    }[version]
    return place.sysctl(name) == "1" or bool(bridge.data.get(option))


def _is_own(place: Place, bridge: Link, mac: str, entries: Sequence[FdbEntry]) -> bool:
    """Return whether a MAC address is the bridge's, or of one of its ports."""
    return mac == bridge.mac or any(of.is_permanent and (place.links.get(of.ifindex) or bridge).mac == mac for of in entries)


def _is_of_family(link: Link, version: int) -> bool:
    """Return whether a VXLAN device receives outer packets of this IP version."""
    local, local6 = link.data.get("IFLA_VXLAN_LOCAL"), link.data.get("IFLA_VXLAN_LOCAL6")
    return not (version == 4 and local6 and any(local6)) and not (version == 6 and local and any(local))


def _raw(packet: Packet, base: str, offset: int, length: int) -> Any:
    """The expression ``@th,96,24``: the network identifier of VXLAN."""
    if (base, offset, length) == ("th", 96, 24) and packet.tunnel is not None and packet.tunnel.vni:
        return packet.tunnel.vni
    return UNKNOWN


def _changes(before: Packet, after: Packet) -> tuple[str, ...]:
    """The differences between two packets in words."""
    found = []
    for word, one, other in (
        ("source", before.end(before.source, before.source_port), after.end(after.source, after.source_port)),
        (
            "destination",
            before.end(before.destination, before.destination_port),
            after.end(after.destination, after.destination_port),
        ),
    ):
        if one != other:
            found.append(f"{word} {one} becomes {other}")
    if before.is_port_known and not after.is_port_known:
        found.append("the source port becomes a random one")
    return tuple(found)


def describe(packet: Packet) -> str:
    """A packet in words."""
    name = {"icmp": "ICMP echo"}.get(packet.protocol, packet.protocol.upper())
    return f"{name} {packet}, {packet.size} bytes"
