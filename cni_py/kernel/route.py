"""Routes: those of a pod, those to the peers of flanneld, and the kernel's choice for an address.

How it works. A route to a peer has the protocol number 122, which ``/etc/iproute2/rt_protos``, FRR, BIRD,
systemd and the other network plugins leave alone: so our own can be found again after any restart.
It is replaced in one request: packets always find a route, and an older flanneld's route to
the same subnet (protocol "boot") becomes ours. A black hole has a worse metric than the route of the
bridge that holds the pods: it never replaces that one.

    route_get(rtnl, address) -> ResolvedRoute | None           packed address; None: no route
    default_interfaces(rtnl, version: 4 | 6) -> list[int]      ifindexes of the default routes, the best first
    add_route(rtnl, link, route), put_route(rtnl, link, route), delete_connected_route(rtnl, link, network)
    list_routes_over(rtnl, link) -> list[Route]                remove_route(rtnl, link, route)
    list_routes(rtnl, protocol=PROTOCOL, device="") -> set[Route]      protocol 0: of all but the kernel
    replace_routes(rtnl, routes) -> list[Refusal[Route]]       delete_routes(rtnl, routes) -> list[Refusal[Route]]

Source: linux net/ipv4/fib_frontend.c, net/ipv4/route.c, net/ipv6/route.c.
"""

from __future__ import annotations

from errno import EACCES, EAFNOSUPPORT, EEXIST, EHOSTUNREACH, EINVAL, ENETUNREACH, ENODEV, ENOENT, EOPNOTSUPP, ESRCH
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from cni_py.errors import KernelRefused
from cni_py.journal import step
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import (
    AF_INET,
    AF_INET6,
    FAMILY,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_BLACKHOLE,
    RTN_PROHIBIT,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
    RTPROT_BOOT,
    RTPROT_KERNEL,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.kernel.address import Address, Network
    from cni_py.kernel.bulk import Refusal
    from cni_py.kernel.link import Link
    from cni_py.netlink.attributes import Message
    from cni_py.netlink.socket import Request, Rtnl

PROTOCOL = 122
"""Protocol number of the routes that a daemon of this project creates."""
BLACKHOLE_METRIC = 4096
_IPV6_METRIC = 1024
"""The kernel's default metric of an IPv6 route."""
_ZERO = {AF_INET: bytes(4), AF_INET6: bytes(16)}
_KEPT = 256
"""Cached networks and addresses: those of a host's links occur again and again, those of thousands of peers once in a read."""
_KINDS = {
    RTN_UNICAST: (),
    RTN_BLACKHOLE: ("blackhole",),
    RTN_UNREACHABLE: ("unreachable",),
    RTN_PROHIBIT: ("prohibit",),
}
_OURS = (RTN_UNICAST, RTN_BLACKHOLE)
"""Kinds of routes that a daemon of this project creates."""
_NO_ROUTE = (ENETUNREACH, EHOSTUNREACH, ESRCH, EAFNOSUPPORT, EOPNOTSUPP, EINVAL, EACCES)
"""Errors for no route, or one that discards (EINVAL: black hole; EACCES: prohibit)."""
_NO_TABLE = (ENOENT, EAFNOSUPPORT, EOPNOTSUPP)
"""Errors that mean no routes: a new namespace has no main table yet, a kernel perhaps no IPv6."""
_ABSENT = frozenset((ESRCH, ENODEV))


class Route(Value):
    """A route over one link. ``gateway`` None: ``dst`` is on the link.

    ``onlink``: the gateway is on the link, whatever the other routes. ``device``: the link's name; "" for a black
    hole, and if the link is given separately. ``metric``, ``mtu``, ``advmss`` 0: the kernel's choice; ``scope`` None:
    as the gateway requires; ``source``: the address that packets of this host are sent from.
    """

    dst: Network
    device: str = ""
    gateway: Address | None = None
    onlink: bool = False
    kind: int = RTN_UNICAST
    metric: int = 0
    protocol: int = PROTOCOL
    table: int = RT_TABLE_MAIN
    scope: int | None = None
    mtu: int = 0
    advmss: int = 0
    source: Address | None = None

    def words(self, metric: str = "metric") -> list[str]:
        """Return the words for ``ip route``, which also accepts "priority", CNI's name for ``metric``."""
        out = [*_KINDS[self.kind], str(self.dst)]
        out += ["via", str(self.gateway)] if self.gateway else []
        out += ["dev", self.device] if self.device else []
        out += ["onlink"] if self.onlink else []
        out += ["src", str(self.source)] if self.source else []
        out += ["table", str(self.table)] if self.table != RT_TABLE_MAIN else []
        out += ["scope", str(self.scope)] if self.scope else []
        for name, value in ((metric, self.metric), ("mtu", self.mtu), ("advmss", self.advmss)):
            out += [name, str(value)] if value else []
        return [*out, *(["proto", str(self.protocol)] if self.protocol != RTPROT_BOOT else [])]


class ResolvedRoute(Value):
    """The kernel's choice for a packet of this host.

    The kind of the route (``RTN_…``), its link, the gateway (None: the destination is on the link), and the address that
    the packet is sent from.
    """

    kind: int
    ifindex: int
    gateway: Address | None
    source: Address | None


def blackhole(subnet: Network) -> Route:
    """Return a route that drops packets to unused addresses of the subnet instead of sending them to the default gateway."""
    return Route(subnet, kind=RTN_BLACKHOLE, metric=BLACKHOLE_METRIC)


# ---- questions --------------------------------------------------------------------------------


def route_get(rtnl: Rtnl, address: bytes) -> ResolvedRoute | None:
    """Return the route for a packet of this host, or None. Raises: KernelRefused."""
    family = AF_INET if len(address) == 4 else AF_INET6
    question = encode("rtmsg", {"family": family, "dst_len": 8 * len(address), "RTA_DST": address})
    with nl.question(*rtnl.enter, "ip", "route", "get", str(_address(address))):
        try:
            found = decode("rtmsg", rtnl.get(question, RTM_GETROUTE))
        except nl.NetlinkError as error:
            if error.errno not in _NO_ROUTE:
                raise
            return None
    gateway, source = found.get("RTA_GATEWAY"), found.get("RTA_PREFSRC")
    of = [_address(packed) if packed else None for packed in (gateway, source)]
    return ResolvedRoute(found["type"], found["RTA_OIF"], *of) if "RTA_OIF" in found else None


def default_interfaces(rtnl: Rtnl, version: int) -> list[int]:
    """The links of the default routes, the best first, each hop of one with several. Raises: KernelRefused."""
    found = _dump(rtnl, ("default",), family=FAMILY[version], table=RT_TABLE_MAIN)
    defaults = [of for of in found if (of["dst_len"], of["type"]) == (0, RTN_UNICAST) and table_of(of) == RT_TABLE_MAIN]
    defaults.sort(key=lambda of: of.get("RTA_PRIORITY", 0))  # of equal metrics the kernel's order decides
    hops = [[of["RTA_OIF"]] if "RTA_OIF" in of else [hop["oif"] for hop in of.get("RTA_MULTIPATH", ())] for of in defaults]
    return [ifindex for of in hops for ifindex in of]


def list_routes_over(rtnl: Rtnl, link: Link) -> list[Route]:
    """The unicast routes over the link, of every table. Raises: KernelRefused."""
    found = [of for family in FAMILY.values() for of in _dump(rtnl, ("table", "all", "dev", link.name), family=family)]
    return [
        route_of(of, "").replace(
            metric=of.get("RTA_PRIORITY", 0),
            table=table_of(of),
            scope=of["scope"],
            mtu=of.get("RTA_METRICS", {}).get("RTAX_MTU", 0),
            advmss=of.get("RTA_METRICS", {}).get("RTAX_ADVMSS", 0),
            source=_address(of["RTA_PREFSRC"]) if "RTA_PREFSRC" in of else None,
        )
        for of in found
        if of["type"] == RTN_UNICAST and of.get("RTA_OIF") == link.ifindex
    ]


def used_tables(rtnl: Rtnl) -> set[int]:
    """The numbers of all tables that have a route, of any kind. Raises: KernelRefused."""
    return {table_of(of) for family in FAMILY.values() for of in _dump(rtnl, ("table", "all"), family=family)}


def list_routes(rtnl: Rtnl, protocol: int = PROTOCOL, device: str = "", but: int = RTPROT_KERNEL) -> set[Route]:
    """The routes of the main table, of both families, without scope and metrics; those over several links are left out.

    ``protocol`` 0: all except the kernel's, or except ``but``; ``device``: only those over this link.
    Raises: KernelRefused.
    """
    from cni_py.kernel.link import find_link

    link = find_link(rtnl, device) if device else None
    if device and link is None:
        return set()
    names = {link.ifindex: link.name} if link else {}
    words = [*(("dev", device) if device else ()), *(("proto", str(protocol)) if protocol else ())]
    question = {"table": RT_TABLE_MAIN, "proto": protocol, **({"RTA_OIF": link.ifindex} if link else {})}
    routes = set()
    for family in FAMILY.values():
        for found in _dump(rtnl, words, family=family, **question):
            of = _device(rtnl, found, names) if _is_of(found, protocol, but) else None
            if of is not None and device in ("", of):
                routes.add(route_of(found, of))
    return routes


def list_foreign_routes(rtnl: Rtnl) -> set[Route]:
    """The routes of the main table that the kernel did not create, of every kind that takes packets. Raises: KernelRefused.

    One over several links has no device: ``ip route del`` deletes it by its destination.
    """
    names: dict[int, str] = {}
    routes = set()
    for family in FAMILY.values():
        for found in _dump(rtnl, (), family=family, table=RT_TABLE_MAIN):
            if found["type"] in _KINDS and found["proto"] != RTPROT_KERNEL and table_of(found) == RT_TABLE_MAIN:
                routes.add(route_of(found, _device(rtnl, found, names) or ""))
    return routes


def _is_of(found: Message, protocol: int, but: int) -> bool:
    """Return whether a route was requested: the kernel filters dumps since Linux 4.20."""
    is_ours = found["proto"] == protocol or (protocol == 0 and found["proto"] not in (RTPROT_KERNEL, but))
    return is_ours and found["type"] in _OURS and table_of(found) == RT_TABLE_MAIN


def _device(rtnl: Rtnl, found: Message, names: dict[int, str]) -> str | None:
    """The name of the route's link, "" for a black hole; None: there are several links, or it was deleted."""
    if found["type"] != RTN_UNICAST:  # the kernel leads an IPv6 black hole over "lo"
        return ""
    ifindex = found.get("RTA_OIF", 0)
    if ifindex not in names:
        from cni_py.kernel.link import find_link

        link = find_link(rtnl, ifindex) if ifindex else None
        names[ifindex] = link.name if link else ""
    return names[ifindex] or None


def _dump(rtnl: Rtnl, words: Iterable[str], **question: int) -> Iterator[Message]:
    with nl.question(*rtnl.enter, "ip", "route", "show", *words):
        try:
            answers = rtnl.dump(encode("rtmsg", question), RTM_GETROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _NO_TABLE:
                raise
            answers = []
    return (decode("rtmsg", answer) for answer in answers if answer[0] == question["family"])


def table_of(found: Message) -> int:
    """Return the number of a decoded route's table."""
    table: int = found.get("RTA_TABLE") or found["table"]
    return table


def route_of(found: Message, device: str) -> Route:
    """Return a decoded route over the device of this name."""
    family, metric, gateway = found["family"], found.get("RTA_PRIORITY", 0), found.get("RTA_GATEWAY")
    return Route(
        _network(found.get("RTA_DST", _ZERO[family]), found["dst_len"]),
        device,
        _address(gateway) if gateway else None,
        bool(found["flags"] & RTNH_F_ONLINK),
        found["type"],
        0 if metric == _IPV6_METRIC and family == AF_INET6 else metric,
        found["proto"],
    )


@lru_cache(_KEPT)
def _network(packed: bytes, prefixlen: int) -> Network:
    return ip_network((packed, prefixlen))


@lru_cache(_KEPT)
def _address(packed: bytes) -> Address:
    return ip_address(packed)


# ---- changes ----------------------------------------------------------------------------------


def add_route(rtnl: Rtnl, link: Link, route: Route) -> None:
    """Add a route over the link, beside others to its destination. Raises: KernelRefused."""
    message = _message(route, link.ifindex, _scope(route))
    try:
        with step(*rtnl.enter, "ip", "route", "add", *route.words("priority"), "dev", link.name) as change:
            try:
                rtnl.change(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)
            except nl.NetlinkError as error:
                if error.errno != EEXIST:
                    raise
                change.unchanged = True
        if change.unchanged:
            with step(*rtnl.enter, "ip", "route", "append", *route.words("priority"), "dev", link.name):
                rtnl.change(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND)
    except KernelRefused as refused:
        _explain(refused, rtnl, link, route)
        raise


def _explain(refused: KernelRefused, rtnl: Rtnl, link: Link, route: Route) -> None:
    """Raises: KernelRefused, if there are better words."""
    from cni_py.kernel import refusals

    gateway = route.gateway or "none"
    refusals.explain("route", refused, link=link.name, dst=route.dst, gateway=gateway, enter=refusals.prefix(rtnl.enter))


def put_route(rtnl: Rtnl, link: Link, route: Route) -> None:
    """Add a route over the link in place of any other to its destination with its metric. Raises: KernelRefused."""
    message = _message(route, link.ifindex, _scope(route))
    try:
        with step(*rtnl.enter, "ip", "route", "replace", *route.words("priority"), "dev", link.name):
            rtnl.change(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
    except KernelRefused as refused:
        _explain(refused, rtnl, link, route)
        raise


def delete_connected_route(rtnl: Rtnl, link: Link, network: Network) -> None:
    """Delete the kernel's own route to the network of an address; absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "route", "del", str(network), "dev", link.name, "proto", "kernel") as change:
        try:
            rtnl.change(_message(Route(network, protocol=RTPROT_KERNEL), link.ifindex, RT_SCOPE_NOWHERE), RTM_DELROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _ABSENT:
                raise
            change.unchanged = True


def remove_route(rtnl: Rtnl, link: Link, route: Route) -> None:
    """Delete this very route over the link; absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "route", "del", *route.words("priority"), "dev", link.name) as change:
        try:
            rtnl.change(_message(route, link.ifindex, RT_SCOPE_NOWHERE), RTM_DELROUTE)
        except nl.NetlinkError as error:
            if error.errno not in _ABSENT:
                raise
            change.unchanged = True


def replace_routes(rtnl: Rtnl, routes: Iterable[Route]) -> list[Refusal[Route]]:
    """Add the routes; each replaces an existing one to its subnet with the same metric.

    The kernel rejects an IPv6 gateway on one link while a route leads to it over another, even the one
    that is being replaced. Such a gateway gets a temporary route of its own.
    """
    refusals = _replace(rtnl, routes)
    stuck = [refusal.item for refusal in refusals if _is_behind_another_link(refusal)]
    if not stuck:
        return refusals
    to_gateways = [Route(ip_network(of.gateway), of.device) for of in stuck if isinstance(of.gateway, IPv6Address)]
    _replace(rtnl, to_gateways)
    others = [refusal for refusal in refusals if not _is_behind_another_link(refusal)]
    refusals = others + _replace(rtnl, stuck)
    return refusals + delete_routes(rtnl, to_gateways)


def _replace(rtnl: Rtnl, routes: Iterable[Route]) -> list[Refusal[Route]]:
    from cni_py.kernel.bulk import change_many

    def request(route: Route, ifindex: int) -> Request:
        return _message(route, ifindex, _scope(route)), RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE

    return change_many(rtnl, ("ip", "route", "replace"), routes, request)


def _is_behind_another_link(refusal: Refusal[Route]) -> bool:
    return refusal.item.dst.version == 6 and refusal.item.onlink and refusal.error.errno == EINVAL


def delete_routes(rtnl: Rtnl, routes: Iterable[Route]) -> list[Refusal[Route]]:
    """Delete exactly these; absence is success."""
    from cni_py.kernel.bulk import change_many

    def request(route: Route, ifindex: int) -> Request:
        return _message(route, ifindex, RT_SCOPE_NOWHERE), RTM_DELROUTE, 0  # any scope

    return change_many(rtnl, ("ip", "route", "del"), routes, request, _ABSENT)


def _scope(route: Route) -> int:
    """Return the scope, which must be "link" without a gateway; for IPv6 the kernel ignores it."""
    if route.scope is not None:
        return route.scope
    return RT_SCOPE_UNIVERSE if route.gateway or route.kind != RTN_UNICAST else RT_SCOPE_LINK


def _message(route: Route, ifindex: int, scope: int) -> bytes:
    metrics = {"RTAX_MTU": route.mtu or None, "RTAX_ADVMSS": route.advmss or None}
    message = {
        "family": FAMILY[route.dst.version],
        "dst_len": route.dst.prefixlen,
        "table": route.table if route.table < 256 else 0,
        "proto": route.protocol,
        "scope": scope,
        "type": route.kind,
        "flags": RTNH_F_ONLINK if route.onlink else 0,
        "RTA_DST": route.dst.network_address.packed,
        "RTA_TABLE": route.table if route.table >= 256 else None,
        "RTA_OIF": ifindex or None,
        "RTA_GATEWAY": route.gateway.packed if route.gateway else None,
        "RTA_PREFSRC": route.source.packed if route.source else None,
        "RTA_PRIORITY": route.metric or None,
        "RTA_METRICS": metrics if route.mtu or route.advmss else None,
    }
    return encode("rtmsg", message)
