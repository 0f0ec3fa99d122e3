"""The state of a namespace as lines of text, for comparison: one line for each object, with all that a plugin can set.

Left out is what differs between two namespaces with the same history: numbers of links, counters, timers, carrier; link-local
addresses, and the routes and neighbours that the kernel adds and removes itself.
"""

from __future__ import annotations

import json
import posix
from ipaddress import ip_address, ip_network
from struct import unpack_from

from cni_py.netlink.attributes import attributes
from cni_py.netlink.constants import (
    AF_INET6,
    BRIDGE_VLAN_INFO_PVID,
    BRIDGE_VLAN_INFO_UNTAGGED,
    IFF_ALLMULTI,
    IFF_NOARP,
    IFF_PROMISC,
    IFF_UP,
    NUD_PERMANENT,
)
from cni_py.plan import tables
from cni_py.plan.tables import Link, Tables, attribute_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

_FLAGS = {IFF_UP: "up", IFF_NOARP: "noarp", IFF_PROMISC: "promisc", IFF_ALLMULTI: "allmulti"}
_LOCAL_TABLE = 255
_ROUTE_TABLE, _ROUTE_LINKS = 15, {4: "dev", 3: "iif"}
_ROUTE_FLAGS = 0x4 | 0x2  # onlink, pervasive; others are the kernel's state
_CACHE, _MULTIPATH = 12, 9
_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_SHAPING = ("tbf", "htb", "hfsc", "prio", "ingress", "clsact", "netem")
_STATISTICS = frozenset({3, 4, 7})  # TCA_STATS, TCA_XSTATS, TCA_STATS2
_SYSCTLS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
_UNREADABLE = ("stable_secret", "mc_forwarding")


def lines() -> list[str]:
    """Return the state of the namespace that the thread is in, sorted. Raises: OSError."""
    return sorted([*of_tables(tables.read()), *_sysctls(), *_packet_filter()])


def of_tables(found: Tables) -> Iterator[str]:
    """Yield the lines of the tables of rtnetlink. Pure."""
    names = found.names()

    def name_of(index: int) -> str:
        return names.get(index, f"if{index}") if index else ""

    yield from (_link(link, name_of) for link in found.links)
    for vlan in found.vlans:
        yield from _vlans(vlan, name_of)
    yield from filter(None, (_address(body, name_of) for body in found.addresses))
    yield from filter(None, (_route(body, name_of) for body in found.routes))
    yield from map(_rule, found.rules)
    yield from filter(None, (_neighbour(body, name_of) for body in found.neighbours))
    yield from filter(None, (_discipline("qdisc", body, name_of) for body in found.disciplines))
    yield from filter(None, (_discipline("filter", body, name_of) for body in found.filters))


def _link(link: Link, name_of: Callable[[int], str]) -> str:
    flags = [word for flag, word in _FLAGS.items() if link.flags & flag]
    of = link.attributes
    mac = ":".join(f"{byte:02x}" for byte in of.get(tables.ADDRESS, b""))
    words = [f"link {link.name}", f"kind {link.kind}" if link.kind else "", *flags]
    words += [f"mtu {tables.number_in(of.get(tables.MTU, b''))}", f"txqueuelen {tables.number_in(of.get(tables.TXQLEN, b''))}"]
    words += [f"address {mac}" if any(of.get(tables.ADDRESS, b"")) and link.kind != "ifb" else ""]  # an ifb's cannot be set
    words += [f"master {name_of(link.master)}" if link.master else ""]
    if link.lower and link.kind != "veth":
        words.append(f"over {name_of(link.lower) if link.netnsid is None else 'a link of another namespace'}")
    words += [f"alias {attribute_text(of[tables.ALIAS])}" if tables.ALIAS in of else ""]
    words += [f"altname {name}" for name in sorted(link.altnames)]
    left_out = tables.READ_ONLY.get(link.kind, frozenset[int]())
    own = [(number, value) for number, value in attributes(link.data) if number not in left_out]
    words += [f"{link.kind}.{number}={_value(link, number, value, name_of)}" for number, value in sorted(own)]
    if link.port_kind:
        port = [(number, value) for number, value in attributes(link.port) if number in tables.PORT_SETTINGS]
        words += [f"port.{number}={value.hex()}" for number, value in sorted(port) if link.port_kind == "bridge"]
    return " ".join(filter(None, words))


def _value(link: Link, number: int, value: bytes, name_of: Callable[[int], str]) -> str:
    """Return the value of a setting of a link's kind; that of a VXLAN device which is the number of a link as its name."""
    if link.kind == "vxlan" and number == 3:
        return name_of(tables.number_in(value))
    return value.hex()


def _vlans(body: bytes, name_of: Callable[[int], str]) -> Iterator[str]:
    index = tables.INFO.unpack_from(body)[2]
    for number, value in attributes(dict(attributes(body, tables.INFO.size)).get(26, b"")):  # IFLA_AF_SPEC
        if number == 2:  # IFLA_BRIDGE_VLAN_INFO
            flags, vid = unpack_from("=HH", value)
            words = ["pvid"] * bool(flags & BRIDGE_VLAN_INFO_PVID) + ["untagged"] * bool(flags & BRIDGE_VLAN_INFO_UNTAGGED)
            yield " ".join([f"vlan {vid} dev {name_of(index)}", *words])


def _is_link_local(address: bytes) -> bool:
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _address(body: bytes, name_of: Callable[[int], str]) -> str:
    family, prefixlen, flags, scope, index = unpack_from("=BBBBI", body)
    of = dict(attributes(body, 8))
    local = of.get(2) or of.get(1, b"")
    if _is_link_local(local) or not local:
        return ""
    words = [f"address {ip_address(local)}/{prefixlen} dev {name_of(index)} scope {scope}"]
    words += [f"peer {ip_address(of[1])}"] if of.get(1, local) != local else []
    words += [f"broadcast {ip_address(of[4])}"] if 4 in of else []
    flags = tables.number_in(of[8]) if 8 in of else flags
    words += ["nodad"] * bool(family == AF_INET6 and flags & 0x2) + ["noprefixroute"] * bool(flags & 0x200)
    return " ".join(words)


def _route(body: bytes, name_of: Callable[[int], str]) -> str:
    family, dst_len, src_len, tos, table, protocol, scope, kind, flags = unpack_from("=BBBBBBBBI", body)
    of = dict(attributes(body, 12))
    table = tables.number_in(of[_ROUTE_TABLE]) if _ROUTE_TABLE in of else table
    to = of.get(1, bytes(16 if family == AF_INET6 else 4))
    if table == _LOCAL_TABLE or _is_link_local(to) or to[0] == 0xFF or flags & 0x200:  # RTM_F_CLONED
        return ""
    if _is_link_local(of.get(5, b"")) and protocol == 9:  # learnt from an advertisement
        return ""
    words = [f"route {_TYPES.get(kind, kind)} {ip_network((to, dst_len))} table {table} proto {protocol} scope {scope}"]
    words += [f"flags {flags & _ROUTE_FLAGS:x}"] if flags & _ROUTE_FLAGS else []
    words += [f"src_len {src_len} tos {tos}"] if src_len or tos else []
    for number, value in sorted(of.items()):
        if number in _ROUTE_LINKS:
            words.append(f"{_ROUTE_LINKS[number]} {name_of(tables.number_in(value))}")
        elif number in (5, 7):
            words.append(f"{'via' if number == 5 else 'src'} {ip_address(value)}")
        elif number == 6:
            words.append(f"metric {tables.number_in(value)}")
        elif number == _MULTIPATH:
            words += _nexthops(value, name_of)
        elif number not in (1, _ROUTE_TABLE, _CACHE):
            words.append(f"{number}={value.hex()}")
    return " ".join(words)


def _nexthops(value: bytes, name_of: Callable[[int], str]) -> Iterator[str]:
    at = 0
    while at + 8 <= len(value):
        length, flags, hops, index = unpack_from("=HBBi", value, at)
        gateway = dict(attributes(value[at + 8 : at + length])).get(5, b"")
        via = f" via {ip_address(gateway)}" if gateway else ""
        yield f"nexthop{via} dev {name_of(index)} weight {hops + 1} flags {flags & _ROUTE_FLAGS:x}"
        at += max(length + 3 & ~3, 8)


def _rule(body: bytes) -> str:
    family, dst_len, src_len, tos, table, _, _, action, flags = unpack_from("=BBBBBBBBI", body)
    of = dict(attributes(body, 12))
    more = " ".join(f"{number}={value.hex()}" for number, value in sorted(of.items()) if number != _ROUTE_TABLE)
    table = tables.number_in(of[_ROUTE_TABLE]) if _ROUTE_TABLE in of else table
    return f"rule {family} action {action} to/{dst_len} from/{src_len} tos {tos} table {table} flags {flags & 0x2:x} {more}"


def _neighbour(body: bytes, name_of: Callable[[int], str]) -> str:
    family, index, state, flags, kind = unpack_from("=BxxxiHBB", body)
    of = dict(attributes(body, 12))
    if not state & NUD_PERMANENT or (family == 7 and 1 not in of):  # of the FDB, those that lead to a node
        return ""
    words = [f"neighbour {family} dev {name_of(index)} flags {flags:x} type {kind}"]
    words += [f"{number}={value.hex()}" for number, value in sorted(of.items()) if number in (1, 2, 5, 6, 7)]
    return " ".join(words)


def _discipline(noun: str, body: bytes, name_of: Callable[[int], str]) -> str:
    index, handle, parent, info = unpack_from("=iIII", body, 4)
    of = dict(attributes(body, 20))
    kind = attribute_text(of.get(1, b""))
    if noun == "qdisc" and kind not in _SHAPING:
        return ""
    words = [
        f"{noun} {kind} dev {name_of(index)} parent {parent:x}",
        f"handle {handle:x}" if noun == "qdisc" else f"info {info:x}",
    ]
    if noun == "qdisc":
        words += [f"{number}={value.hex()}" for number, value in sorted(attributes(of.get(2, b"")))]
    else:
        words += _u32(of.get(2, b""), name_of)
    return " ".join(words)


def _u32(options: bytes, name_of: Callable[[int], str]) -> Iterator[str]:
    """Yield the match of a filter, and where its packets are redirected to."""
    of = dict(attributes(options))
    if 5 in of:  # TCA_U32_SEL
        yield f"match {of[5].hex()}"
    for _, action in attributes(of.get(7, b"")):  # TCA_U32_ACT
        parts = dict(attributes(action))
        parameters = dict(attributes(parts.get(2, b""))).get(2, b"")
        if attribute_text(parts.get(1, b"")) == "mirred" and len(parameters) >= 28:
            _, _, result, _, _, way, index = unpack_from("=IIiiiiI", parameters)
            yield f"mirred {way} result {result} to {name_of(index)}"


def route_line(body: bytes, names: Mapping[int, str]) -> str:
    """Return the line of a route; "" for one that the kernel keeps itself. Pure."""
    return _route(body, lambda index: names.get(index, ""))


def address_line(body: bytes, names: Mapping[int, str]) -> str:
    """Return the line of an address; "" for one that the kernel makes itself. Pure."""
    return _address(body, lambda index: names.get(index, ""))


def rule_line(body: bytes) -> str:
    """Return the line of a policy rule. Pure."""
    return _rule(body)


def neighbour_line(body: bytes, names: Mapping[int, str]) -> str:
    """Return the line of a neighbour or of an entry of the FDB; "" for one that is not permanent. Pure."""
    return _neighbour(body, lambda index: names.get(index, ""))


def discipline_line(noun: str, body: bytes, names: Mapping[int, str]) -> str:
    """Return the line of a queueing discipline or a filter; "" for the kernel's default. Pure."""
    return _discipline(noun, body, lambda index: names.get(index, ""))


# ---- kernel parameters, packet filter ----------------------------------------------------------


def _sysctls() -> Iterator[str]:
    for name in _SYSCTLS:
        yield from _sysctl(name)
    for family in ("ipv4", "ipv6"):
        directory = f"net/{family}/conf"
        for link in _listed(f"/proc/sys/{directory}"):
            for name in _listed(f"/proc/sys/{directory}/{link}"):
                if name not in _UNREADABLE:
                    yield from _sysctl(f"{directory}/{link}/{name}")


def _listed(directory: str) -> list[str]:
    try:
        return posix.listdir(directory)
    except OSError:
        return []


def _sysctl(name: str) -> Iterable[str]:
    try:
        fd = posix.open(f"/proc/sys/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [f"sysctl {name} = {posix.read(fd, 256).decode(errors='replace').strip()}"]
    except OSError:
        return []
    finally:
        posix.close(fd)


def _packet_filter() -> Iterator[str]:
    """Yield the objects of nftables; rules with their place in the chain, elements one by one."""
    from cni_py.errors import CniError
    from cni_py.packetfilter.libnftables import Nft

    try:
        nft = Nft()
    except CniError:
        return
    try:
        output = nft.read("list ruleset", _JSON)
    except CniError:
        return
    finally:
        nft.close()
    places: dict[str, int] = {}
    for entry in json.loads(output or b'{"nftables": []}')["nftables"]:
        ((noun, of),) = entry.items()
        if noun != "metainfo":
            yield from _nft_object(noun, of, places)


_JSON = 16  # NFT_CTX_OUTPUT_JSON


def _nft_object(noun: str, of: dict[str, Any], places: dict[str, int]) -> Iterator[str]:
    name = " ".join(str(of[key]) for key in ("family", "table", "chain", "name") if key in of)
    left = {key: value for key, value in of.items() if key not in ("family", "table", "chain", "name", "handle", "elem")}
    if noun == "rule":
        places[name] = places.get(name, 0) + 1
        name += f" {places[name]:04}"
    yield f"nft {noun} {name} {json.dumps(_without_counts(left), sort_keys=True)}"
    for element in of.get("elem", ()):
        yield f"nft element {name} {json.dumps(_without_counts(element), sort_keys=True)}"


def _without_counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_counts(of) for key, of in value.items() if key not in ("packets", "bytes", "expires")}
    return [_without_counts(one) for one in value] if isinstance(value, list) else value
