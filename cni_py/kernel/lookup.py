"""One entry of the kernel's tables: read by its key, or decoded from a message. Nothing here costs more where tables are long.

    find_route(rtnl, route) -> Route | None                    what leads to the same network with the same metric
    find_neighbour(rtnl, link, address) -> Neighbour | None    permanent ones
    find_forwarding(rtnl, link, mac) -> Forwarding | None      permanent ones that lead to a node
    decode_route(body, name_of) -> RouteMessage                decode_neighbour(body, device) -> NeighbourMessage

Source: linux net/ipv4/route.c (RTM_F_FIB_MATCH), net/core/neighbour.c (neigh_get), drivers/net/vxlan/vxlan_core.c
(vxlan_fdb_get).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import pack, unpack_from

from cni_py.kernel.link import Link
from cni_py.kernel.neighbour import Forwarding, Neighbour
from cni_py.kernel.routes import Address, Network, Route
from cni_py.netlink.attributes import attribute, attributes, number
from cni_py.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NTF_SELF,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
)
from cni_py.netlink.socket import NetlinkError, Rtnl

_RTM_F_FIB_MATCH = 0x2000
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_NDA_DST, _NDA_LLADDR = 1, 2
_IPV6_METRIC = 1024


@dataclass(frozen=True, slots=True)
class RouteMessage:
    """A route of the main table as a message tells of it. ``route`` None: of a kind, or over links, that no Route describes."""

    dst: Network
    metric: int
    protocol: int
    ifindex: int
    route: Route | None


@dataclass(frozen=True, slots=True)
class NeighbourMessage:
    """A neighbour or FDB entry as a message tells of it. ``entry`` None: it is not permanent, or has no MAC address."""

    family: int
    address: bytes
    mac: str
    entry: Neighbour | Forwarding | None


def find_route(rtnl: Rtnl, route: Route, name_of: Callable[[int], str]) -> Route | None:
    """Return the route to the same network with the same metric, as far as a lookup finds it; None: replace it to be sure.

    A lookup finds the best route for the network's first address, and refuses to tell of a black hole.
    """
    dst = route.dst
    family, bits = (AF_INET, 32) if dst.version == 4 else (AF_INET6, 128)
    question = pack("=BBBBBBBBI", family, bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    try:
        answer = rtnl.get(question + attribute(_RTA_DST, dst.network_address.packed), RTM_GETROUTE)
    except NetlinkError:
        return None
    found = decode_route(answer, name_of)
    return found.route if found and (found.dst, found.metric) == (dst, route.metric) else None


def find_neighbour(rtnl: Rtnl, link: Link, address: Address) -> Neighbour | None:
    """Raises: OSError where the kernel cannot be asked."""
    family = AF_INET if address.version == 4 else AF_INET6
    question = pack("=BxHiHBB", family, 0, link.ifindex, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    entry = _get_neighbour(rtnl, question, link.name)
    return entry if isinstance(entry, Neighbour) else None


def find_forwarding(rtnl: Rtnl, link: Link, mac: str) -> Forwarding | None:
    """Raises: OSError where the kernel cannot be asked."""
    question = pack("=BxHiHBB", AF_BRIDGE, 0, link.ifindex, 0, NTF_SELF, 0)
    entry = _get_neighbour(rtnl, question + attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))), link.name)
    return entry if isinstance(entry, Forwarding) else None


def _get_neighbour(rtnl: Rtnl, question: bytes, device: str) -> Neighbour | Forwarding | None:
    try:
        return decode_neighbour(rtnl.get(question, RTM_GETNEIGH), device).entry
    except NetlinkError:  # there is none
        return None


def decode_route(body: bytes, name_of: Callable[[int], str]) -> RouteMessage | None:
    """Decode what follows the header of RTM_NEWROUTE, RTM_DELROUTE; None: of another table or family.

    ``name_of``: the name of a link by its number, "" where there is none.
    """
    family, prefixlen, _, _, table, protocol, _, kind, flags = unpack_from("=BBBBBBBBI", body)
    found = dict(attributes(body[12:]))
    if (number(found.get(_RTA_TABLE)) or table) != RT_TABLE_MAIN or family not in (AF_INET, AF_INET6):
        return None
    metric, ifindex, gateway = number(found.get(_RTA_PRIORITY)), number(found.get(_RTA_OIF)), found.get(_RTA_GATEWAY)
    via: Address | None = None
    if family == AF_INET:
        dst: Network = IPv4Network((found.get(_RTA_DST, bytes(4)), prefixlen))
        via = IPv4Address(gateway) if gateway else None
    else:
        dst = IPv6Network((found.get(_RTA_DST, bytes(16)), prefixlen))
        via = IPv6Address(gateway) if gateway else None
        metric = 0 if metric == _IPV6_METRIC else metric
    device = name_of(ifindex) if kind == RTN_UNICAST and ifindex else ""
    is_plain = bool(device) if kind == RTN_UNICAST else kind == RTN_BLACKHOLE
    route = Route(dst, device, via, bool(flags & RTNH_F_ONLINK), kind, metric, protocol) if is_plain else None
    return RouteMessage(dst, metric, protocol, ifindex, route)


def decode_neighbour(body: bytes, device: str) -> NeighbourMessage:
    """Decode what follows the header of RTM_NEWNEIGH, RTM_DELNEIGH, of a link of this name."""
    family, state = unpack_from("=BxxxxxxxH", body)
    found = dict(attributes(body[12:]))
    mac, address = found.get(_NDA_LLADDR, b"").hex(":"), found.get(_NDA_DST, b"")
    entry: Neighbour | Forwarding | None = None
    if state & NUD_PERMANENT and mac and address:
        of = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
        entry = Forwarding(device, mac, of) if family == AF_BRIDGE else Neighbour(device, of, mac)
    return NeighbourMessage(family, address, mac, entry)
