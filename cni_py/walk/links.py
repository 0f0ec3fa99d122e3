"""Links on a path: veths, bridges, macvlans, VLANs, and where the visible part ends. Changes nothing.

Source: linux net/bridge/br_input.c, br_forward.c, br_netfilter_hooks.c, drivers/net/veth.c, macvlan.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.walk import hops, segment
from cni_py.walk.hops import IN, OUT
from cni_py.walk.packet import UDP, Packet
from cni_py.walk.place import IFF_LOWER_UP, Place, Places
from cni_py.walk.tunnels import Tunnels

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        self.arrive(other, end, mac, packet)

    def _to_lower(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
        """A macvlan or VLAN sends by the link below it; siblings of a macvlan are reached at once."""
        below = self._places.peer(place, link)
        if below is None:
            self._to_wire(place, link, mac, packet)
            return
        if link.kind == segment.MACVLAN:
            for _, sibling in self._places.uppers(*below, segment.MACVLAN):
                if sibling.mac == mac and sibling.mac != link.mac:
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
        if bridge is not None:
            self._hooks.pass_ingress(place, link, packet)
            self._bridge(place, bridge, link, mac, packet)
            return
        if mac and mac != link.mac:
            for other, upper in self._places.uppers(place, link, segment.MACVLAN):
                if upper.mac == mac:
                    self._path.seen_at(other, upper, IN, packet, f"comes in by {upper.name}, a macvlan of {link.name}")
                    self._ip.receive(other, upper, packet)
                    return
            if not link.is_promiscuous:
                text = f"the frame is for {mac}, and {link.name} has {link.mac}: dropped"
                raise self._path.end(place, hops.BROKEN, text, packet, "a stale neighbour entry at the sender", hops.LINK)
        self._ip.receive(place, link, packet)

    def _bridge(self, place: Place, bridge: Link, ingress: Link | None, mac: str, packet: Packet) -> None:
        """A bridge forwards a frame: to itself, to the port that has the MAC address, or to all."""
        if not bridge.is_up:
            raise self._path.end(place, hops.BROKEN, f"the bridge {bridge.name} is down", packet, "", hops.BRIDGE)
        if bridge.vlan_filtering:
            self._path.hop(place, hops.UNSURE, f"{bridge.name} filters VLANs: those of its ports are not compared", packet)
        tracked = None
        if ingress is not None:
            self._hooks.pass_bridge_hook(place, "prerouting", packet, ingress, None)
            if _filters_bridged(place, bridge, packet.version):
                packet, mac, tracked = self._bridged_prerouting(place, bridge, mac, packet)
        entries = [of for of in place.fdb if of.mac == mac and bridge.ifindex in (of.master, of.ifindex)]
        if ingress is not None and _is_own(place, bridge, mac, entries):
            self._hooks.pass_bridge_hook(place, "input", packet, ingress, bridge)
            self._path.seen_at(place, bridge, IN, packet, f"the bridge takes it: {mac} is its own")
            self._ip.receive(place, bridge, packet, tracked)
            return
        port, why = self._port(place, bridge, ingress, mac, entries, packet)
        if ingress is not None:
            self._check_forwarding(place, bridge, ingress, port, packet)
        self._hooks.pass_bridge_hook(place, "forward" if ingress is not None else "output", packet, ingress or bridge, port)
        if tracked is not None:
            packet = self._hooks.pass_hook(place, "forward", packet, *tracked, iif=bridge, oif=bridge)
            packet = self._hooks.pass_hook(place, "postrouting", packet, *tracked, oif=bridge, nexthop=packet.destination)
        if packet.size > port.mtu + _VETH_SLACK and ingress is not None:
            text = f"{packet.size} bytes do not fit through {port.name}, which takes {port.mtu}: the bridge drops them"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.SIZE)
        self._path.hop(place, hops.BRIDGE, f"{bridge.name} forwards it to {port.name}", packet, why)
        self._hooks.pass_bridge_hook(place, "postrouting", packet, None, port)
        self.transmit(place, port, mac, packet)

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
        self, place: Place, bridge: Link, ingress: Link | None, mac: str, entries: Sequence[FdbEntry], packet: Packet
    ) -> tuple[Link, str]:
        """The port for a MAC address, and the reason. Raises: PathEnd if there is none."""
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
        raise self._path.end(place, hops.BROKEN, text, packet, why, hops.BRIDGE)

    def _check_forwarding(self, place: Place, bridge: Link, ingress: Link, port: Link, packet: Packet) -> None:
        if port.ifindex == ingress.ifindex and not port.hairpin:
            text = f"{bridge.name} does not send a frame back to the port {port.name} that it came from: hairpin mode is off"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.BRIDGE)
        if port.isolated and ingress.isolated:
            text = f"{bridge.name} does not forward between {ingress.name} and {port.name}: both ports are isolated"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.BRIDGE)


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
