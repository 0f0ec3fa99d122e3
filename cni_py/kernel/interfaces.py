"""The host's own interfaces: their addresses, the default route, and the way to an address.

    list_host_addresses(rtnl) -> list[HostAddress]       HostAddress(ifindex, address, flags, network)
    default_interfaces(rtnl, version: 4 | 6) -> list[int]     ifindexes of the default routes, the best first
    way_to(rtnl, address) -> Way | None                  Way(ifindex, gateway, source); None: there is none

Source: linux net/ipv4/devinet.c, net/ipv6/addrconf.c, net/ipv4/route.c (inet_rtm_getroute).
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH, ENOENT, EOPNOTSUPP, ESRCH
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import pack, unpack_from

from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, number
from cni_py.netlink.constants import (
    AF_INET,
    AF_INET6,
    RT_TABLE_MAIN,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTN_UNICAST,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 7, 9, 15
_NO_WAY = (ENETUNREACH, EHOSTUNREACH, ESRCH, EAFNOSUPPORT)
_NOT_HERE = (ENOENT, EAFNOSUPPORT, EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of a link; ``flags``: IFA_F_…; ``network``: what it makes reachable on the link, the peer's if it has one."""

    ifindex: int
    address: Address
    flags: int
    network: Network


@dataclass(frozen=True, slots=True)
class Way:
    """The way of a packet: the link, the gateway (None: the other end is on link), the address it is sent from."""

    ifindex: int
    gateway: Address | None
    source: Address | None


def list_host_addresses(rtnl: nl.Rtnl) -> list[HostAddress]:
    """Every address of the namespace, in the kernel's order. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "ip", "addr", "show"):
        answers = rtnl.dump(pack("=BBBBi", 0, 0, 0, 0, 0), RTM_GETADDR)
    out = []
    for answer in answers:
        family, prefixlen, flags, _, ifindex = unpack_from("=BBBBi", answer)
        found = dict(attributes(answer[8:]))
        peer = found.get(_IFA_ADDRESS)
        address = _address(found.get(_IFA_LOCAL) or peer)
        if address is not None and family in (AF_INET, AF_INET6):
            network = _network(peer or address.packed, prefixlen)
            out.append(HostAddress(ifindex, address, number(found.get(_IFA_FLAGS)) or flags, network))
    return out


def _network(packed: bytes, prefixlen: int) -> Network:
    kind = IPv4Network if len(packed) == 4 else IPv6Network
    return kind((packed, prefixlen), strict=False)


def default_interfaces(rtnl: nl.Rtnl, version: int) -> list[int]:
    """The links of the default routes, the best first, each hop of one with several. Raises: KernelRefused."""
    family = AF_INET if version == 4 else AF_INET6
    question = pack("=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    with nl.question(*rtnl.enter, "ip", f"-{version}", "route", "show", "default"):
        try:
            answers = rtnl.dump(question, RTM_GETROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _NOT_HERE:
                raise
            return []
    defaults: list[tuple[int, list[int]]] = []
    for answer in answers:
        of_family, prefixlen, _, _, table, _, _, kind = unpack_from("=8B", answer)
        if (of_family, prefixlen, kind) != (family, 0, RTN_UNICAST):
            continue
        found = dict(attributes(answer[12:]))
        ifindex = number(found.get(_RTA_OIF))
        if (number(found.get(_RTA_TABLE)) or table) == RT_TABLE_MAIN:
            hops = [ifindex] if ifindex else _hops(found.get(_RTA_MULTIPATH, b""))
            defaults.append((number(found.get(_RTA_PRIORITY)), hops))
    defaults.sort(key=lambda default: default[0])  # of equal metrics the kernel's order decides
    return [ifindex for _, hops in defaults for ifindex in hops]


def way_to(rtnl: nl.Rtnl, address: Address) -> Way | None:
    """The way that a packet of this host takes; None: there is none. Raises: KernelRefused."""
    family, length = (AF_INET, 32) if address.version == 4 else (AF_INET6, 128)
    question = pack("=BBBBBBBBI", family, length, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address.packed)
    with nl.question(*rtnl.enter, "ip", "route", "get", str(address)):
        try:
            answer = rtnl.get(question, RTM_GETROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _NO_WAY:
                raise
            return None
    found = dict(attributes(answer[12:]))
    ifindex = number(found.get(_RTA_OIF))
    return Way(ifindex, _address(found.get(_RTA_GATEWAY)), _address(found.get(_RTA_PREFSRC))) if ifindex else None


def _hops(multipath: bytes) -> list[int]:
    """The ifindex of each ``struct rtnexthop``: length, flags, hops, ifindex, and attributes up to the length."""
    found, at = [], 0
    while at + 8 <= len(multipath):
        length, ifindex = unpack_from("=HxxI", multipath, at)
        found.append(int(ifindex))
        at += max(length + 3 & ~3, 8)
    return found


def _address(value: bytes | None) -> Address | None:
    if not value:
        return None
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)
