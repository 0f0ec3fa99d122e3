"""Links on a path: veths, bridges, macvlans, VLANs, and where the visible part ends. Changes nothing.

Source: linux net/bridge/br_input.c, br_forward.c, br_netfilter_hooks.c, drivers/net/veth.c, macvlan.c.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.kernel.bridge_port import FORWARDING, STATES
from cni_py.walk import hops, segment
from cni_py.walk.hops import IN, OUT
from cni_py.walk.packet import UDP, Packet
from cni_py.walk.place import IFF_LOWER_UP, Place, Places
from cni_py.walk.tunnels import Tunnels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.kernel.bridge_port import BridgePort
    from cni_py.kernel.link import Link
    from cni_py.kernel.neighbour_state import FdbEntry
    from cni_py.walk.hooks import Hooks
    from cni_py.walk.path import Ip, Path, Tracked

_VETH_SLACK = 4
"""Bytes by which a veth's receiver accepts more than its MTU: the kernel leaves room for a VLAN tag."""
_IFF_LOOPBACK = 0x8


class Links:
    """Sends and receives frames. ``tunnels``: the links that wrap packets."""

    def __init__(self, path: Path, places: Places, hooks: Hooks, ip: Ip) -> None:
        self._path, self._places, self._hooks, self._ip = path, places, hooks, ip
        self.tunnels = Tunnels(path, ip, self.arrive)

    def transmit(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """Send a frame by a link."""
        if not link.is_up:
            raise self._path.end(place, hops.BROKEN, f"{link.name} is down", packet, "", hops.LINK)
        self._hooks.pass_egress(place, link, packet, mac)
        self._path.seen_at(place, link, OUT, packet, f"goes out by {link.name}")
        if link.flags & _IFF_LOOPBACK:
            self._path.seen_at(place, link, IN, packet, f"comes back in by {link.name}")
            self._ip.receive(place, link, packet)
        elif link.kind == segment.BRIDGE:
            self._bridge(place, link, None, mac, packet)
        elif link.kind == "vxlan":
            self.tunnels.encapsulate(place, link, mac, packet)
        elif link.kind == "tun":
            self.tunnels.to_daemon(place, link, packet)
        elif link.kind == "ipip":
            self.tunnels.encapsulate_ip(place, link, packet)
        elif link.kind == "dummy":
            raise self._path.end(
                place, hops.BROKEN, f"{link.name} is a dummy: it discards what is sent by it", packet, "", hops.LINK
            )
        elif link.kind in (segment.MACVLAN, segment.VLAN):
            self._to_lower(place, link, mac, packet)
        elif link.kind == segment.VETH:
            self._to_peer(place, link, mac, packet)
        elif link.kind in ("", "bond", "team"):
            self._to_wire(place, link, mac, packet)
        else:
            raise self._path.end(
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
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.LINK)
        if packet.size > end.mtu + _VETH_SLACK:
            text = f"{packet.size} bytes do not fit into {end.name} of {other.name}, which takes {end.mtu}: dropped"
            raise self._path.end(other, hops.BROKEN, text, packet, "", hops.SIZE)
        self.arrive(other, end, mac, packet if other is place else replace(packet, mark=0))

    def _to_lower(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """A macvlan or VLAN sends by the link below it; siblings of a macvlan are reached at once."""
        if link.kind == segment.VLAN:
            if packet.vlan:
                raise self._path.end(place, hops.UNFOLLOWED, f"{link.name} adds a second VLAN tag", packet)
            packet = replace(packet, vlan=link.data.get("IFLA_VLAN_ID", 0))
        below = self._places.peer(place, link)
        if below is None:
            self._to_wire(place, link, mac, packet)
            return
        if link.kind == segment.MACVLAN:
            for _, sibling in segment.siblings(self._places, place, link):
                if sibling.mac == mac:
                    self.arrive(*below, mac, packet)  # the link below sees the frame first
                    return
            if below[1].mac == mac:
                text = f"a macvlan does not reach the host below it, {below[1].name} of {below[0].name}"
                raise self._path.end(place, hops.BROKEN, text, packet, "macvlan, mode bridge", hops.LINK)
        self.transmit(*below, mac, packet)

    def _to_wire(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """The visible part ends. Macvlans of the same link are above, not on the wire."""
        for other, upper in self._places.uppers(place, link, segment.MACVLAN):
            if upper.mac == mac:
                text = f"a host does not reach a macvlan of its own link: {upper.name} of {other.name}"
                raise self._path.end(place, hops.BROKEN, text, packet, "macvlan", hops.LINK)
        if not link.flags & IFF_LOWER_UP:
            raise self._path.end(place, hops.BROKEN, f"{link.name} has no carrier", packet, "", hops.LINK)
        ports = f", UDP {packet.destination_port}" if packet.protocol == UDP and packet.inner is not None else ""
        text = f"leaves by {link.name} to {packet.destination}{ports}; what is behind is not visible from here"
        raise self._path.end(place, hops.LEAVES, text, packet, "", hops.LEAVE)

    def arrive(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """Receive a frame by a link."""
        self._path.seen_at(place, link, IN, packet, f"comes in by {link.name}")
        bridge = segment.bridge_of(place, link)
        if packet.vlan:
            for other, upper in self._places.uppers(place, link, segment.VLAN):
                if upper.data.get("IFLA_VLAN_ID") == packet.vlan:
                    self._hooks.pass_ingress(place, link, packet, mac)
                    self.arrive(other, upper, mac, replace(packet, vlan=0))
                    return
            if bridge is None:
                text = f"no VLAN {packet.vlan} is on {link.name}: dropped"
                raise self._path.end(place, hops.BROKEN, text, packet, "", hops.LINK)
        if bridge is not None:
            self._hooks.pass_ingress(place, link, packet, mac)
            self._bridge(place, bridge, link, mac, packet)
            return
        if mac and mac != link.mac:
            for other, upper in self._places.uppers(place, link, segment.MACVLAN):
                if upper.mac == mac:
                    self._hooks.pass_ingress(place, link, packet, mac)
                    self._path.seen_at(other, upper, IN, packet, f"comes in by {upper.name}, a macvlan of {link.name}")
                    self._ip.receive(other, upper, packet)
                    return
            if not link.is_promiscuous:
                self._hooks.pass_ingress(place, link, packet, mac)
                text = f"the frame is for {mac}, and {link.name} has {link.mac}: dropped"
                why = "a stale neighbour entry at the sender, or a stale FDB entry of a bridge"
                raise self._path.end(place, hops.BROKEN, text, packet, why, hops.LINK)
        self._ip.receive(place, link, packet, mac=mac)

    def _bridge(self, place: Place, bridge: Link, ingress: Link | None, mac: str, packet: Packet) -> None:
        """A bridge forwards a frame: to itself, to the port that has the MAC address, or to all."""
        if not bridge.is_up:
            raise self._path.end(place, hops.BROKEN, f"the bridge {bridge.name} is down", packet, "", hops.BRIDGE)
        vlan = self._admitted(place, bridge, ingress, packet)
        tracked = None
        if ingress is not None:
            self._hooks.pass_bridge_hook(place, "prerouting", packet, ingress, None, mac)
            if _filters_bridged(place, bridge, packet.version):
                packet, mac, tracked = self._bridged_prerouting(place, bridge, mac, packet)
        entries = [of for of in place.fdb if of.mac == mac and bridge.ifindex in (of.master, of.ifindex)]
        if ingress is not None and _is_own(place, bridge, mac, entries):
            self._hooks.pass_bridge_hook(place, "input", packet, ingress, bridge, mac)
            packet = self._emitted(place, bridge, bridge, vlan, packet)
            self._path.seen_at(place, bridge, IN, packet, f"the bridge takes it: {mac} is its own")
            self._take(place, bridge, mac, packet, tracked)
            return
        port, why = self._port(place, bridge, ingress, mac, entries, packet, vlan)
        self._check_forwarding(place, bridge, ingress, port, packet)
        tagged = self._emitted(place, bridge, port, vlan, packet)
        at = "forward" if ingress is not None else "output"
        self._hooks.pass_bridge_hook(place, at, packet, ingress or bridge, port, mac)
        if tracked is not None:
            packet = self._hooks.pass_hook(place, "forward", packet, *tracked, iif=bridge, oif=bridge)
            packet = self._hooks.pass_hook(place, "postrouting", packet, *tracked, oif=bridge, nexthop=packet.destination)
        self._path.hop(place, hops.BRIDGE, f"{bridge.name} forwards it to {port.name}", packet, why)
        self._hooks.pass_bridge_hook(place, "postrouting", packet, None, port, mac)
        if packet.size > port.mtu + _VETH_SLACK:
            text = f"{packet.size} bytes do not fit through {port.name}, which takes {port.mtu}: the bridge drops them"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.SIZE)
        self.transmit(place, port, mac, replace(packet, vlan=tagged.vlan))

    def _take(self, place: Place, bridge: Link, mac: str, packet: Packet, tracked: Tracked | None) -> None:
        """The bridge itself receives a frame, or the VLAN on it that has its tag."""
        if not packet.vlan:
            self._ip.receive(place, bridge, packet, tracked, mac)
            return
        for other, upper in self._places.uppers(place, bridge, segment.VLAN):
            if upper.data.get("IFLA_VLAN_ID") == packet.vlan:
                self.arrive(other, upper, mac, replace(packet, vlan=0))
                return
        text = f"no VLAN {packet.vlan} is on {bridge.name}: dropped"
        raise self._path.end(place, hops.BROKEN, text, packet, "", hops.LINK)

    def _admitted(self, place: Place, bridge: Link, ingress: Link | None, packet: Packet) -> int:
        """The VLAN in which a bridge takes a frame. Raises: PathEnd if it does not."""
        port = ingress or bridge
        of = place.bridge_port(port)
        if ingress is not None and of.state != FORWARDING:
            text = f"the port {port.name} of {bridge.name} is {STATES.get(of.state, of.state)}: it forwards no frames"
            raise self._path.end(place, hops.BROKEN, text, packet, f"bridge link show dev {port.name}", hops.BRIDGE)
        if of.is_locked and not any(e.mac == packet.source_mac and e.ifindex == port.ifindex for e in place.fdb):
            text = f"the port {port.name} of {bridge.name} is locked, and {packet.source_mac} is not in the FDB: dropped"
            raise self._path.end(place, hops.BROKEN, text, packet, f"FDB of {bridge.name}", hops.BRIDGE)
        vlan = segment.admitted(place, bridge, port, packet.vlan)
        if vlan is None:
            what = f"VLAN {packet.vlan}" if packet.vlan else "frames without a VLAN tag"
            text = f"{port.name} does not let {what} into {bridge.name}: dropped"
            raise self._path.end(place, hops.BROKEN, text, packet, f"VLANs of {port.name}: {_listed(of)}", hops.BRIDGE)
        return vlan

    def _emitted(self, place: Place, bridge: Link, port: Link, vlan: int, packet: Packet) -> Packet:
        """The packet with the tag that it has behind a port. Raises: PathEnd if the port is not in the VLAN."""
        tag = segment.emitted(place, bridge, port, vlan)
        if tag is None:
            text = f"{port.name} is not in VLAN {vlan} of {bridge.name}: dropped"
            why = f"VLANs of {port.name}: {_listed(place.bridge_port(port))}"
            raise self._path.end(place, hops.BROKEN, text, packet, why, hops.BRIDGE)
        return replace(packet, vlan=tag)

    def _bridged_prerouting(self, place: Place, bridge: Link, mac: str, packet: Packet) -> tuple[Packet, str, Tracked]:
        """Pass prerouting at the bridge: with br_netfilter a bridged frame does, and not again in the IP layer.

        A translated one goes to the neighbour that has the new destination if that is on the same bridge, and to the IP layer
        if not. Source: linux net/bridge/br_netfilter_hooks.c (br_nf_pre_routing_finish).
        """
        tracked = self._hooks.tracking.find(place.name, packet)
        before = packet.destination
        packet = self._hooks.pass_hook(place, "prerouting", packet, *tracked, iif=bridge)
        if packet.destination == before:
            return packet, mac, tracked
        choice = self._ip.route(place, packet, bridge)
        if choice.ifindex != bridge.ifindex or choice.kind != "unicast":
            return packet, bridge.mac, tracked
        mac = self._ip.neighbour(place, bridge, choice.gateway or packet.destination, packet)
        text = f"goes out by {bridge.name}, without the IP layer: br_netfilter translates bridged frames"
        self._path.seen_at(place, bridge, OUT, packet, text, is_optional=True)
        return packet, mac, tracked

    def _port(
        self, place: Place, bridge: Link, ingress: Link | None, mac: str, entries: Sequence[FdbEntry], packet: Packet, vlan: int
    ) -> tuple[Link, str]:
        """The port for a MAC address, and the reason. Raises: PathEnd if there is none."""
        for of in entries:
            port = place.links.get(of.ifindex)
            if port is not None and port.ifindex != bridge.ifindex and port.mac != mac:
                return port, f"FDB of {bridge.name}: {mac} is behind {port.name}"
        unknown_wire: Link | None = None
        silent: list[str] = []
        flood = segment.Flood(self._places, segment.UNICAST)
        for port in segment.ports_of(place, bridge):
            tag = segment.emitted(place, bridge, port, vlan)
            if tag is None or (ingress is not None and port.ifindex == ingress.ifindex and not port.hairpin):
                continue
            within = flood.reach(place, port, tag=tag)
            is_behind = bool(segment.has_mac(within, mac))
            if not place.bridge_port(port).floods:
                silent += [port.name] if is_behind else []
            elif is_behind:
                return port, f"FDB of {bridge.name} does not have {mac} yet: it floods all ports, {port.name} among them"
            elif unknown_wire is None and within.has_wire:
                unknown_wire = port
        if unknown_wire is not None:
            return unknown_wire, f"FDB of {bridge.name} does not have {mac or 'the MAC address'}: it floods all ports"
        text = f"no port of {bridge.name} leads to {mac or packet.destination}: the frame reaches no receiver"
        if silent:
            text = f"FDB of {bridge.name} does not have {mac}, and {silent[0]} gets no frames to unknown addresses (flood off)"
        down = [link.name for link in place.links.values() if link.master == bridge.ifindex and not link.is_up]
        why = f"ports that are down: {', '.join(down)}" if down else "FDB, and the interfaces behind each port"
        raise self._path.end(place, hops.BROKEN, text, packet, why, hops.BRIDGE)

    def _check_forwarding(self, place: Place, bridge: Link, ingress: Link | None, port: Link, packet: Packet) -> None:
        """Compare the ports. Raises: PathEnd if the bridge does not forward from the one to the other."""
        state = place.bridge_port(port).state
        if not port.is_up or not port.flags & IFF_LOWER_UP:
            problem = "is down" if not port.is_up else "has no carrier"
            text = f"the port {port.name} of {bridge.name} {problem}: dropped"
        elif state != FORWARDING:
            text = f"the port {port.name} of {bridge.name} is {STATES.get(state, state)}: it forwards no frames"
        elif ingress is not None and port.ifindex == ingress.ifindex and not port.hairpin:
            text = f"{bridge.name} does not send a frame back to the port {port.name} that it came from: hairpin mode is off"
        elif ingress is not None and port.isolated and ingress.isolated:
            text = f"{bridge.name} does not forward between {ingress.name} and {port.name}: both ports are isolated"
        else:
            return
        raise self._path.end(place, hops.BROKEN, text, packet, "", hops.BRIDGE)


def _listed(of: BridgePort) -> str:
    """The VLANs of a port, as a person would name them."""
    return ", ".join(f"{vlan}{' (native)' if vlan == of.native else ''}" for vlan in sorted(of.vlans)) or "none"


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
