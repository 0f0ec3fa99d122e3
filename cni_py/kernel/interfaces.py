"""The host's own interfaces: their addresses, the default route, and the way to an address.

    list_host_addresses(rtnl) -> list[HostAddress]       HostAddress(ifindex, address, flags)
    default_interface(rtnl, version: 4 | 6) -> int       ifindex; 0: there is no default route
    way_to(rtnl, address) -> Way | None                  Way(ifindex, gateway, source); None: there is none

Source: linux net/ipv4/devinet.c, net/ipv6/addrconf.c, net/ipv4/route.c (inet_rtm_getroute).
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH, ENOENT, EOPNOTSUPP, ESRCH
from ipaddress import IPv4Address, IPv6Address
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

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 7, 9, 15
_NO_WAY = (ENETUNREACH, EHOSTUNREACH, ESRCH, EAFNOSUPPORT)
_NOT_HERE = (ENOENT, EAFNOSUPPORT, EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of a link; ``flags``: IFA_F_…."""

    ifindex: int
    address: Address
    flags: int


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
        family, _, flags, _, ifindex = unpack_from("=BBBBi", answer)
        found = dict(attributes(answer[8:]))
        value = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if value and family in (AF_INET, AF_INET6):
            address = IPv4Address(value) if family == AF_INET else IPv6Address(value)
            out.append(HostAddress(ifindex, address, number(found.get(_IFA_FLAGS)) or flags))
    return out


def default_interface(rtnl: nl.Rtnl, version: int) -> int:
    """The link of the best default route, of several ways the first; 0: there is none. Raises: KernelRefused."""
    family = AF_INET if version == 4 else AF_INET6
    question = pack("=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    with nl.question(*rtnl.enter, "ip", f"-{version}", "route", "show", "default"):
        try:
            answers = rtnl.dump(question, RTM_GETROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _NOT_HERE:
                raise
            return 0
    defaults: list[tuple[int, int, int]] = []
    for answer in answers:
        of_family, prefixlen, _, _, table, _, _, kind = unpack_from("=8B", answer)
        if (of_family, prefixlen, kind) != (family, 0, RTN_UNICAST):
            continue
        found = dict(attributes(answer[12:]))
        ifindex = number(found.get(_RTA_OIF)) or _first_hop(found.get(_RTA_MULTIPATH, b""))
        if ifindex and (number(found.get(_RTA_TABLE)) or table) == RT_TABLE_MAIN:
            defaults.append((number(found.get(_RTA_PRIORITY)), len(defaults), ifindex))
    return min(defaults)[2] if defaults else 0


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


def _first_hop(multipath: bytes) -> int:
    """``struct rtnexthop``: length, flags, hops, ifindex."""
    return int(unpack_from("=i", multipath, 4)[0]) if len(multipath) >= 8 else 0


def _address(value: bytes | None) -> Address | None:
    if not value:
        return None
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)
