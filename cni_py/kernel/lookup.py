"""One entry of the kernel's tables: read by its key, or decoded from a message. The cost does not depend on the table's length.

    find_route(rtnl, route) -> Route | None                    the one to the same network with the same metric
    find_neighbour(rtnl, link, address) -> Neighbour | None    permanent ones
    find_forwarding(rtnl, link, mac) -> Forwarding | None      permanent ones that lead to a node
    decode_route(body, name_of) -> RouteMessage                decode_neighbour(body, device) -> NeighbourMessage

Source: linux net/ipv4/route.c (RTM_F_FIB_MATCH), net/core/neighbour.c (neigh_get), drivers/net/vxlan/vxlan_core.c
(vxlan_fdb_get).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from cni_py.kernel.address import Address, Network
from cni_py.kernel.link import Link
from cni_py.kernel.neighbour import Forwarding, Neighbour
from cni_py.kernel.route import Route, route_of, table_of
from cni_py.netlink.attributes import Message, decode, encode
from cni_py.netlink.constants import (
    AF_BRIDGE,
    FAMILY,
    NTF_SELF,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTN_BLACKHOLE,
    RTN_UNICAST,
)
from cni_py.netlink.socket import NetlinkError, Rtnl

_RTM_F_FIB_MATCH = 0x2000
_FAMILIES = frozenset(FAMILY.values())


@dataclass(frozen=True, slots=True)
class RouteMessage:
    """A reported route of the main table. ``route`` None: its kind, or several links, cannot be described by a Route."""

    dst: Network
    metric: int
    protocol: int
    ifindex: int
    route: Route | None


@dataclass(frozen=True, slots=True)
class NeighbourMessage:
    """A reported neighbour or FDB entry. ``entry`` None: it is not permanent, or has no MAC address."""

    family: int
    address: bytes
    mac: str
    entry: Neighbour | Forwarding | None


def find_route(rtnl: Rtnl, route: Route, name_of: Callable[[int], str]) -> Route | None:
    """Return the route to the same network with the same metric, as far as a lookup finds it; None: replace it to be sure.

    A lookup finds the best route for the network's first address, and is refused for a black hole.
    """
    dst = route.dst
    key = {"family": FAMILY[dst.version], "dst_len": dst.max_prefixlen, "RTA_DST": dst.network_address.packed}
    try:
        answer = rtnl.get(encode("rtmsg", key | {"flags": _RTM_F_FIB_MATCH}), RTM_GETROUTE)
    except NetlinkError:
        return None
    found = decode_route(answer, name_of)
    return found.route if found and (found.dst, found.metric) == (dst, route.metric) else None


def find_neighbour(rtnl: Rtnl, link: Link, address: Address) -> Neighbour | None:
    """Return the entry of the link for the address. Raises: OSError if the kernel cannot be asked."""
    key = {"family": FAMILY[address.version], "ifindex": link.ifindex, "NDA_DST": address.packed}
    entry = _get_neighbour(rtnl, key, link.name)
    return entry if isinstance(entry, Neighbour) else None


def find_forwarding(rtnl: Rtnl, link: Link, mac: str) -> Forwarding | None:
    """Return the FDB entry of the link for the MAC address. Raises: OSError if the kernel cannot be asked."""
    key = {"family": AF_BRIDGE, "ifindex": link.ifindex, "flags": NTF_SELF, "NDA_LLADDR": mac}
    entry = _get_neighbour(rtnl, key, link.name)
    return entry if isinstance(entry, Forwarding) else None


def _get_neighbour(rtnl: Rtnl, key: Message, device: str) -> Neighbour | Forwarding | None:
    try:
        return decode_neighbour(rtnl.get(encode("ndmsg", key), RTM_GETNEIGH), device).entry
    except NetlinkError:  # it does not exist
        return None


def decode_route(body: bytes, name_of: Callable[[int], str]) -> RouteMessage | None:
    """Decode the body of RTM_NEWROUTE, RTM_DELROUTE; None: of another table or family.

    ``name_of``: the name of a link by its number, "" if it does not exist.
    """
    found = decode("rtmsg", body)
    if table_of(found) != RT_TABLE_MAIN or found["family"] not in _FAMILIES:
        return None
    kind, ifindex = found["type"], found.get("RTA_OIF", 0)
    device = name_of(ifindex) if kind == RTN_UNICAST and ifindex else ""
    is_plain = bool(device) if kind == RTN_UNICAST else kind == RTN_BLACKHOLE
    route = route_of(found, device)
    return RouteMessage(route.dst, route.metric, route.protocol, ifindex, route if is_plain else None)


def decode_neighbour(body: bytes, device: str) -> NeighbourMessage:
    """Decode the body of RTM_NEWNEIGH, RTM_DELNEIGH, of the link of this name."""
    found = decode("ndmsg", body)
    mac, address = found.get("NDA_LLADDR", ""), found.get("NDA_DST", b"")
    entry: Neighbour | Forwarding | None = None
    if found["state"] & NUD_PERMANENT and mac and address:
        of = ip_address(address)
        entry = Forwarding(device, mac, of) if found["family"] == AF_BRIDGE else Neighbour(device, of, mac)
    return NeighbourMessage(found["family"], address, mac, entry)
