"""Tunnels on a path: VXLAN, IP in IP, and flannel's back end udp, whose tunnel is a process. Changes nothing.

Source: linux drivers/net/vxlan/vxlan_core.c, net/ipv4/ip_tunnel.c; cni_py/flanneld/backends/udp.py.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_py.kernel.route_lookup import Question
from cni_py.walk import hops
from cni_py.walk.hops import IN
from cni_py.walk.packet import HEADER, UDP, Packet, Tunnel
from cni_py.walk.place import IFF_LOWER_UP, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.walk.path import Ip, Path

_NO_MAC = "00:00:00:00:00:00"
_ETHERNET, _VXLAN_HEADERS = 14, 16  # UDP's and VXLAN's


class Tunnels:
    """``arrive``: receives a frame by a link."""

    def __init__(self, path: Path, ip: Ip, arrive: Callable[[Place, Link, str, Packet], None]) -> None:
        self._path, self._ip, self._arrive_by = path, ip, arrive

    def encapsulate(self, place: Place, link: Link, mac: str, packet: Packet) -> None:
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
            raise self._path.end(place, hops.BROKEN, text, packet, "flanneld creates one for each node", hops.ENCAPSULATE)
        local = data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6")
        source = self._source(place, link, local, remote, packet)
        vni, port = data.get("IFLA_VXLAN_ID", 0), data.get("IFLA_VXLAN_PORT", 0)
        size = packet.size + _ETHERNET + _VXLAN_HEADERS + HEADER[remote.version]
        outer = Packet(
            source, remote, UDP, 0, port, size, dont_fragment=False, mark=packet.mark, inner=packet,
            tunnel=Tunnel(f"VXLAN {vni}", vni, mac), is_port_known=False,
        )  # fmt: skip
        why = f"FDB of {link.name}: {entry.mac if entry else mac} is at {remote}"
        if place.route(Question(remote, mark=packet.mark)).kind == "local":
            self._bypass(place, link, mac, packet, remote, why)
            return
        text = f"{link.name} wraps it: VXLAN {vni}, UDP {port} to {remote}"
        self._wrapped(place, text, packet, outer, why)

    def _bypass(self, place: Place, link: Link, mac: str, packet: Packet, remote: Address, why: str) -> None:
        """An entry for this host itself: the kernel passes the frame to the device that has the identifier, without a packet.

        Source: linux drivers/net/vxlan/vxlan_core.c (encap_bypass_if_local).
        """
        vni, port = link.data.get("IFLA_VXLAN_ID", 0), link.data.get("IFLA_VXLAN_PORT", 0)
        devices = _vxlan_devices(place, vni, port, remote.version)
        text = f"{link.name} does not wrap it: its FDB names this host"
        if not devices:
            text = f"{text}, and no device here has VXLAN {vni} at port {port}: dropped"
            raise self._path.end(place, hops.BROKEN, text, packet, why, hops.ENCAPSULATE)
        self._path.hop(place, hops.ENCAPSULATE, text, packet, why)
        self._arrive_by(place, devices[0], mac, packet)

    def _source(self, place: Place, link: Link, local: bytes | None, remote: Address, packet: Packet) -> Address:
        """The source of outer packets: the device's own address, or the one that routing chooses. Raises: PathEnd."""
        source = ip_address(local) if local and any(local) else place.route(Question(remote, mark=packet.mark)).source
        if source is None or source.version != remote.version:
            text = f"{link.name} has no address to send to {remote} from"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.ENCAPSULATE)
        return source

    def _wrapped(self, place: Place, text: str, packet: Packet, outer: Packet, why: str) -> None:
        changes = (
            f"source {packet.source} is inside {outer.source}",
            f"destination {packet.destination} is inside {outer.destination}",
            f"size {packet.size} becomes {outer.size}",
        )
        self._path.hop(place, hops.ENCAPSULATE, text, outer, why, changes=changes)
        self._ip.send(place, outer)

    def to_daemon(self, place: Place, link: Link, packet: Packet) -> None:
        """flannel's back end udp: a process reads the TUN device, and sends the packet as a datagram."""
        if not link.flags & IFF_LOWER_UP:
            text = f"{link.name} has no carrier: flanneld does not read it"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.LINK)
        found = place.peer_of(packet.destination)
        if found is None:
            text = f"a process reads {link.name}; no lease of flanneld is known that has {packet.destination}"
            raise self._path.end(place, hops.UNFOLLOWED, text, packet)
        remote, port = found
        source = self._source(place, link, None, remote, replace(packet, mark=0))  # the datagram of a process has no mark
        size = packet.size + HEADER[remote.version] + 8
        outer = Packet(source, remote, UDP, port, port, size, inner=packet, tunnel=Tunnel("UDP"))
        text = f"flanneld reads {link.name}, and sends it in a datagram to {remote}"
        self._wrapped(place, text, packet, outer, "flanneld's leases")

    def encapsulate_ip(self, place: Place, link: Link, packet: Packet) -> None:
        """An IPIP device without a remote address of its own: the route's gateway is the node."""
        choice = place.route(Question(packet.destination, packet.source, 0, packet.mark))
        data = link.data
        packed = data.get("IFLA_IPIP_REMOTE")
        remote = ip_address(packed) if packed and any(packed) else choice.gateway
        if remote is None:
            text = f"{link.name} does not know the node: the route has no gateway"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.ENCAPSULATE)
        source = self._source(place, link, data.get("IFLA_IPIP_LOCAL"), remote, packet)
        outer = Packet(source, remote, "ipip", size=packet.size + 20, inner=packet, tunnel=Tunnel("IP in IP"))
        self._wrapped(place, f"{link.name} wraps it: IP in IP to {remote}", packet, outer, f"route via {remote}")

    def decapsulate(self, place: Place, packet: Packet, inner: Packet, tunnel: Tunnel) -> None:
        kind = {"UDP": "tun", "IP in IP": "ipip"}.get(tunnel.name, "vxlan")
        if kind == "vxlan":
            devices = _vxlan_devices(place, tunnel.vni, packet.destination_port, packet.version)
        else:
            devices = [link for link in place.links.values() if link.kind == kind and link.is_up]
        if not devices:
            text = f"no device takes {tunnel.name} at port {packet.destination_port}: dropped"
            raise self._path.end(place, hops.BROKEN, text, packet, "", hops.DECAPSULATE)
        device, inner = devices[0], replace(inner, mark=packet.mark)
        changes = (f"source {inner.source} again, destination {inner.destination}", f"size {packet.size} becomes {inner.size}")
        by = f"flanneld writes it to {device.name}" if kind == "tun" else f"{device.name} unwraps it"
        self._path.hop(place, hops.DECAPSULATE, by, inner, f"{tunnel.name} of {packet.source}", changes=changes)
        if tunnel.mac and tunnel.mac != device.mac:
            self._path.seen_at(place, device, IN, inner, f"comes in by {device.name}")
            text = f"the frame is for {tunnel.mac}, and {device.name} has {device.mac}: dropped"
            raise self._path.end(place, hops.BROKEN, text, inner, "the sender's ARP entry is stale", hops.DECAPSULATE)
        self._arrive_by(place, device, tunnel.mac, inner)


def _vxlan_devices(place: Place, vni: int, port: int, version: int) -> list[Link]:
    """The devices that take this network identifier at this port."""
    return [
        link
        for link in place.links.values()
        if link.kind == "vxlan" and link.is_up and _is_of_family(link, version)
        if (link.data.get("IFLA_VXLAN_ID"), link.data.get("IFLA_VXLAN_PORT")) == (vni, port)
    ]


def _is_of_family(link: Link, version: int) -> bool:
    """Return whether a VXLAN device receives outer packets of this IP version."""
    local, local6 = link.data.get("IFLA_VXLAN_LOCAL"), link.data.get("IFLA_VXLAN_LOCAL6")
    return not (version == 4 and local6 and any(local6)) and not (version == 6 and local and any(local))
