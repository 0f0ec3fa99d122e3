"""The routes that flanneld keeps, all in the main table: a peer's subnet over a gateway, and black holes.

How it works. A route of ours has the protocol number 122, which ``/etc/iproute2/rt_protos``, FRR, BIRD,
systemd and the other network plugins leave alone: so what is ours can be found again, whoever was restarted.
It is replaced in one request: no packet finds no route in between, and an older flanneld's route to
the same subnet (protocol "boot") becomes ours. A black hole has a worse metric than the route of the
bridge that holds the pods: it never takes that one's place.

    Route(dst, device, gateway=None, onlink=False, kind=RTN_UNICAST, metric=0, protocol=PROTOCOL)
    blackhole(subnet) -> Route
    list_routes(rtnl, protocol=PROTOCOL, device="") -> set[Route]      protocol 0: of all but the kernel
    replace_routes(rtnl, routes) -> list[Refusal[Route]]    delete_routes(rtnl, routes) -> list[Refusal[Route]]

Source: linux net/ipv4/fib_frontend.c, net/ipv6/route.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from errno import EAFNOSUPPORT, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import pack, unpack_from

from cni_py.kernel.bulk import Refusal, Request, change_many
from cni_py.kernel.link import Link, find_link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, number
from cni_py.netlink.constants import (
    AF_INET,
    AF_INET6,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    RTPROT_KERNEL,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PROTOCOL = 122
"""Who made the route: flanneld of this project."""
BLACKHOLE_METRIC = 4096
_IPV6_METRIC = 1024
"""What the kernel gives an IPv6 route that names none."""
_PROTOCOL_AT = 5
"""Where it is in ``struct rtmsg``."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_KEPT = 16384
"""Networks and addresses of the last looks: making them takes longer than all else that a look does."""
_KINDS = {RTN_UNICAST: (), RTN_BLACKHOLE: ("blackhole",)}


@dataclass(frozen=True, slots=True)
class Route:
    """``gateway`` is taken to be on link where ``onlink``; ``device`` is "" for a black hole. ``metric`` 0: the default."""

    dst: Network
    device: str
    gateway: Address | None = None
    onlink: bool = False
    kind: int = RTN_UNICAST
    metric: int = 0
    protocol: int = PROTOCOL

    def words(self) -> list[str]:
        out = [*_KINDS[self.kind], str(self.dst)]
        out += ["via", str(self.gateway)] if self.gateway else []
        out += ["dev", self.device] if self.device else []
        out += ["onlink"] if self.onlink else []
        out += ["metric", str(self.metric)] if self.metric else []
        return [*out, "proto", str(self.protocol)]


def blackhole(subnet: Network) -> Route:
    """What no pod of this subnet takes is dropped, and not sent to the default gateway."""
    return Route(subnet, "", kind=RTN_BLACKHOLE, metric=BLACKHOLE_METRIC)


def list_routes(rtnl: nl.Rtnl, protocol: int = PROTOCOL, device: str = "", but: int = RTPROT_KERNEL) -> set[Route]:
    """The routes of the main table, of both families; those over several links are left out. Raises: KernelRefused.

    ``protocol`` 0: of all but the kernel itself, or ``but`` another one; ``device``: those over this link alone.
    """
    link = find_link(rtnl, device) if device else None
    if device and link is None:
        return set()
    names = {link.ifindex: link.name} if link else {}
    found = set()
    for family in (AF_INET, AF_INET6):
        for answer in _dump(rtnl, family, protocol, link):
            if not _is_of(answer[_PROTOCOL_AT], protocol, but):
                continue
            route = _route(answer, rtnl, names)
            if route and device in ("", route.device):
                found.add(route)
    return found


def _is_of(found: int, protocol: int, but: int) -> bool:
    return found == protocol or (protocol == 0 and found not in (RTPROT_KERNEL, but))


def replace_routes(rtnl: nl.Rtnl, routes: Iterable[Route]) -> list[Refusal[Route]]:
    """Add the routes; each takes the place of the one that leads to its subnet with the same metric, if there is one.

    The kernel refuses an IPv6 gateway on one link while a route leads to it over another, even the one
    that is to be replaced. Such a gateway gets a route of its own for the moment.
    """
    refusals = _replace(rtnl, routes)
    stuck = [refusal.item for refusal in refusals if _is_behind_another_link(refusal)]
    if not stuck:
        return refusals
    to_gateways = [Route(IPv6Network(route.gateway), route.device) for route in stuck if isinstance(route.gateway, IPv6Address)]
    _replace(rtnl, to_gateways)
    others = [refusal for refusal in refusals if not _is_behind_another_link(refusal)]
    refusals = others + _replace(rtnl, stuck)
    return refusals + delete_routes(rtnl, to_gateways)


def _replace(rtnl: nl.Rtnl, routes: Iterable[Route]) -> list[Refusal[Route]]:
    def request(route: Route, ifindex: int) -> Request:
        return _message(route, ifindex, _scope(route)), RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE

    return change_many(rtnl, ("ip", "route", "replace"), routes, request)


def _is_behind_another_link(refusal: Refusal[Route]) -> bool:
    return refusal.item.dst.version == 6 and refusal.item.onlink and refusal.error.errno == EINVAL


def delete_routes(rtnl: nl.Rtnl, routes: Iterable[Route]) -> list[Refusal[Route]]:
    """Delete exactly these. Absence is success."""

    def request(route: Route, ifindex: int) -> Request:
        return _message(route, ifindex, RT_SCOPE_NOWHERE), RTM_DELROUTE, 0  # of whatever scope

    return change_many(rtnl, ("ip", "route", "del"), routes, request, _ABSENT)


_ABSENT = frozenset((ESRCH, ENODEV))
_NOT_HERE = (ENOENT, EAFNOSUPPORT, EOPNOTSUPP)


def _scope(route: Route) -> int:
    """The kernel wants to be told that no gateway is between; of IPv6 it takes no notice."""
    return RT_SCOPE_UNIVERSE if route.gateway or route.kind != RTN_UNICAST else RT_SCOPE_LINK


def _rtmsg(family: int, prefixlen: int = 0, protocol: int = 0, scope: int = 0, kind: int = 0, flags: int = 0) -> bytes:
    """``struct rtmsg`` of the main table."""
    return pack("=BBBBBBBBI", family, prefixlen, 0, 0, RT_TABLE_MAIN, protocol, scope, kind, flags)


def _message(route: Route, ifindex: int, scope: int) -> bytes:
    family = AF_INET if route.dst.version == 4 else AF_INET6
    flags = RTNH_F_ONLINK if route.onlink else 0
    out = _rtmsg(family, route.dst.prefixlen, route.protocol, scope, route.kind, flags)
    out += attribute(_RTA_DST, route.dst.network_address.packed)
    out += attribute(_RTA_OIF, pack("=I", ifindex)) if ifindex else b""
    out += attribute(_RTA_GATEWAY, route.gateway.packed) if route.gateway else b""
    out += attribute(_RTA_PRIORITY, pack("=I", route.metric)) if route.metric else b""
    return out


def _dump(rtnl: nl.Rtnl, family: int, protocol: int, link: Link | None) -> list[bytes]:
    """The kernel filters where it can (Linux 4.20), and so does the caller. A fresh namespace has no main table yet."""
    question = _rtmsg(family, protocol=protocol)
    words = ["ip", "route", "show"]
    if link:
        question += attribute(_RTA_OIF, pack("=I", link.ifindex))
        words += ["dev", link.name]
    with nl.question(*rtnl.enter, *words, *(["proto", str(protocol)] if protocol else [])):
        try:
            answers = rtnl.dump(question, RTM_GETROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _NOT_HERE:
                raise
            return []
    return [answer for answer in answers if answer[0] == family]


def _route(answer: bytes, rtnl: nl.Rtnl, names: dict[int, str]) -> Route | None:
    """Behind ``struct rtmsg``. None: of another table or kind, over several links, or over one that has gone."""
    family, prefixlen, _, _, table, protocol, _, kind, flags = unpack_from("=BBBBBBBBI", answer)
    found = dict(attributes(answer[12:]))
    if (number(found.get(_RTA_TABLE)) or table) != RT_TABLE_MAIN or kind not in _KINDS:
        return None
    device = ""
    if kind == RTN_UNICAST:  # the kernel leads an IPv6 black hole over "lo"
        ifindex = number(found.get(_RTA_OIF))
        if ifindex not in names:
            link = find_link(rtnl, ifindex) if ifindex else None
            names[ifindex] = link.name if link else ""
        device = names[ifindex]
        if not device:
            return None
    metric = number(found.get(_RTA_PRIORITY))
    gateway = found.get(_RTA_GATEWAY)
    if family == AF_INET:
        dst: Network = _network(found.get(_RTA_DST, bytes(4)), prefixlen)
        via: Address | None = _address(gateway) if gateway else None
    else:
        dst = _network(found.get(_RTA_DST, bytes(16)), prefixlen)
        via = _address(gateway) if gateway else None
        metric = 0 if metric == _IPV6_METRIC else metric
    return Route(dst, device, via, bool(flags & RTNH_F_ONLINK), kind, metric, protocol)


@lru_cache(_KEPT)
def _network(packed: bytes, prefixlen: int) -> Network:
    return IPv4Network((packed, prefixlen)) if len(packed) == 4 else IPv6Network((packed, prefixlen))


@lru_cache(_KEPT)
def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
