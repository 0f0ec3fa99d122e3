"""Addresses of links and the routes over them. Source: linux net/ipv4/devinet.c, net/ipv6/addrconf.c, fib_frontend.c."""

from __future__ import annotations

from errno import EACCES, EADDRNOTAVAIL, EEXIST
from ipaddress import ip_address, ip_interface
from struct import pack, unpack_from

from cni_py.errors import KernelRefused
from cni_py.journal import step
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, made_of, number
from cni_py.netlink.constants import (
    AF_INET,
    AF_INET6,
    IFA_F_NODAD,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTPROT_BOOT,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

    from cni_py.kernel.link import Link
    from cni_py.netlink.attributes import Attribute
    from cni_py.netlink.socket import Rtnl

    Address = IPv4Address | IPv6Address
    AddressWithPrefix = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network

_FAMILY = {4: AF_INET, 6: AF_INET6}
_LENGTH = {AF_INET: 4, AF_INET6: 16}
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8


class KernelRoute(Value):
    """A unicast route; ``gw`` None: on link. Metrics are 0 where they are not set."""

    dst: AddressWithPrefix
    gw: Address | None = None
    table: int = RT_TABLE_MAIN
    scope: int = RT_SCOPE_UNIVERSE
    priority: int = 0
    mtu: int = 0
    advmss: int = 0

    def words(self) -> list[str]:
        """As ``ip route`` takes it, without the device."""
        out = [str(self.dst.network)]
        out += ["via", str(self.gw)] if self.gw else []
        out += ["table", str(self.table)] if self.table != RT_TABLE_MAIN else []
        out += ["scope", str(self.scope)] if self.scope else []
        for name in ("priority", "mtu", "advmss"):
            out += [name, str(getattr(self, name))] if getattr(self, name) else []
        return out


def list_addresses(rtnl: Rtnl, link: Link) -> list[AddressWithPrefix]:
    """The link's addresses without IPv6 link-local ones. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "ip", "addr", "show", "dev", link.name):
        answers = rtnl.dump(pack("=BBBBi", 0, 0, 0, 0, link.ifindex), RTM_GETADDR)
    addresses = [_address(answer) for answer in answers if unpack_from("=i", answer, 4)[0] == link.ifindex]
    return [a for a in addresses if a.version == 4 or not a.is_link_local]


def add_address(rtnl: Rtnl, link: Link, address: AddressWithPrefix, detect_duplicates: bool = False) -> None:
    """Add an address, an IPv4 one with its broadcast address; one that is there already is success.

    An IPv6 address can be used at once, unless ``detect_duplicates``. Raises: KernelRefused.
    """
    more: list[Attribute] = []
    words = ["ip", "addr", "add", str(address)]
    if address.version == 4 and address.network.prefixlen < 31:
        broadcast = str(address.network.broadcast_address)
        more.append(("IFA_BROADCAST", broadcast))
        words += ["broadcast", broadcast]
    if address.version == 6 and not detect_duplicates:
        more.append(("IFA_FLAGS", IFA_F_NODAD))
        words.append("nodad")
    try:
        with step(*rtnl.enter, *words, "dev", link.name):
            try:
                rtnl.change(_address_message(link, address, *more), RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL)
            except nl.NetlinkError as error:
                if error.errno != EEXIST:
                    raise
    except KernelRefused as refused:
        if refused.errno == EACCES and address.version == 6:  # "Permission denied", whatever rights the caller has
            command = [*rtnl.enter, "sysctl", "-w", f"net/ipv6/conf/{link.name}/disable_ipv6=0"]
            refused.hint = f'IPv6 is switched off on "{link.name}": {" ".join(command)}'
        raise


def delete_address(rtnl: Rtnl, link: Link, address: AddressWithPrefix) -> None:
    """Absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "addr", "del", str(address), "dev", link.name):
        try:
            rtnl.change(_address_message(link, address), RTM_DELADDR)
        except nl.NetlinkError as error:
            if error.errno != EADDRNOTAVAIL:
                raise


def add_route(rtnl: Rtnl, link: Link, route: KernelRoute) -> None:
    """Add a route over the link. Raises: KernelRefused."""
    metrics = tuple(
        [(f"RTAX_{name.upper()}", value) for name, value in (("mtu", route.mtu), ("advmss", route.advmss)) if value]
    )
    attributes: list[Attribute] = [("RTA_DST", str(route.dst.network.network_address)), ("RTA_TABLE", route.table)]
    attributes += [("RTA_GATEWAY", str(route.gw))] if route.gw else []
    attributes += [("RTA_PRIORITY", route.priority)] if route.priority else []
    attributes += [("RTA_METRICS", metrics)] if metrics else []
    family, table = _FAMILY[route.dst.version], route.table if route.table < 256 else 0
    rtmsg = pack("=8BI", family, route.dst.network.prefixlen, 0, 0, table, RTPROT_BOOT, route.scope, RTN_UNICAST, 0)
    message = rtmsg + made_of("rtmsg", *attributes, family=family) + attribute(_RTA_OIF, pack("=i", link.ifindex))
    with step(*rtnl.enter, "ip", "route", "add", *route.words(), "dev", link.name):
        rtnl.change(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND)


def list_routes(rtnl: Rtnl, link: Link) -> list[KernelRoute]:
    """The unicast routes over the link, of every table. Raises: KernelRefused."""
    answers = []
    for family in _FAMILY.values():
        with nl.question(*rtnl.enter, "ip", "route", "show", "table", "all", "dev", link.name):
            answers += rtnl.dump(pack("=B11x", family), RTM_GETROUTE)
    routes = [_route(answer) for answer in answers if answer[7] == RTN_UNICAST]
    return [route for ifindex, route in routes if ifindex == link.ifindex]


def _address(answer: bytes) -> AddressWithPrefix:
    """Behind ``struct ifaddrmsg``. Of a point-to-point link the address is the other end's, the local one ours."""
    found = dict(attributes(answer[8:]))
    return ip_interface((found.get(_IFA_LOCAL) or found[_IFA_ADDRESS], answer[1]))


def _route(answer: bytes) -> tuple[int, KernelRoute]:
    """Behind ``struct rtmsg``: the link's ifindex, 0 where there are several ways, and the route."""
    family, prefixlen, _, _, table, _, scope = answer[:7]
    found = dict(attributes(answer[12:]))
    metrics = dict(attributes(found.get(_RTA_METRICS, b"")))
    gateway = found.get(_RTA_GATEWAY)
    route = KernelRoute(
        dst=ip_interface((found.get(_RTA_DST, bytes(_LENGTH[family])), prefixlen)),
        gw=ip_address(gateway) if gateway else None,
        table=number(found.get(_RTA_TABLE)) or table,
        scope=scope,
        priority=number(found.get(_RTA_PRIORITY)),
        mtu=number(metrics.get(_RTAX_MTU)),
        advmss=number(metrics.get(_RTAX_ADVMSS)),
    )
    return number(found.get(_RTA_OIF)), route


def _address_message(link: Link, address: AddressWithPrefix, *more: Attribute) -> bytes:
    """``struct ifaddrmsg`` and its attributes."""
    family, ip = _FAMILY[address.version], address.ip.packed
    ifaddrmsg = pack("=4Bi", family, address.network.prefixlen, 0, 0, link.ifindex)
    return ifaddrmsg + attribute(_IFA_LOCAL, ip) + attribute(_IFA_ADDRESS, ip) + made_of("ifaddrmsg", *more, family=family)
