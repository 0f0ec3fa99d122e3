"""Create the network of the host's namespaces once more, in new ones.

Links keep their numbers, names, MAC addresses and settings, and lead to each other as the originals do. A link whose kind
cannot be created, as a network card, is a dummy; where the kernel has none, one end of a veth, whose other end is put aside.

How it works. Messages that the kernel listed are sent back with the attributes that a request may have. What needs
something else first, as a route its gateway, is tried again as long as any attempt succeeds.
"""

from __future__ import annotations

import os
import posix
from dataclasses import dataclass, field, replace
from errno import EBUSY, EEXIST
from struct import Struct, pack, pack_into, unpack_from

from cni_py.kernel.netns import CLONE_NEWNET, NetNS
from cni_py.netlink.attributes import attribute, attributes
from cni_py.netlink.constants import (
    AF_BRIDGE,
    AF_INET6,
    IFA_F_DADFAILED,
    IFA_F_NODAD,
    IFA_F_PERMANENT,
    IFA_F_TEMPORARY,
    IFF_ALLMULTI,
    IFF_NOARP,
    IFF_PROMISC,
    IFF_UP,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTM_NEWTFILTER,
    RTM_SETLINK,
    TCA_ACT_KIND,
    TCA_ACT_OPTIONS,
    TCA_MIRRED_PARMS,
    TCA_U32_ACT,
    TCA_U32_SEL,
)
from cni_py.netlink.socket import Netlink, NetlinkError, new_socket
from cni_py.netlink.tables import NESTED
from cni_py.plan import state, system, tables
from cni_py.plan.tables import INFO, Link, Tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.plan.namespaces import Namespace, Sysctls

_NETNS_FD, _PEER = 28, 1  # IFLA_NET_NS_FD, VETH_INFO_PEER
_COPIED = (tables.MTU, tables.TXQLEN, tables.GROUP)
_MAC_BYTES = 6
_SET_FLAGS = IFF_NOARP | IFF_PROMISC | IFF_ALLMULTI
_ADDRESS_ATTRIBUTES = frozenset({1, 2, 3, 4, 9, 11})
_ROUTE_LEFT_OUT = frozenset({12, 30})  # RTA_CACHEINFO, RTA_NH_ID, whose next hops are listed too
_ROUTE_INDEXES, _MULTIPATH = (3, 4), 9
_NEIGHBOUR_ATTRIBUTES = frozenset({1, 2, 5, 6, 7, 8, 9})
_VXLAN_LINK = 3
_VXLAN_ABSENT = (3, 11, 12, 13, 14, 19, 20, 21, 22, 25, 28)
"""Settings of VXLAN that, where they are 0, a request must not have: their presence counts."""
_MIRRED = Struct("=IIiiiiI")
"""``struct tc_mirred``: index, capabilities, action, references, bindings, way, number of the link."""
_FIRST = ("all", "default")


@dataclass(slots=True)
class Copy:
    """A namespace and its copy, open.

    Attributes:
        numbers: of the copied links, by those of the originals.
    """

    of: Namespace
    netns: NetNS
    netlink: Netlink
    numbers: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Copies:
    """The copies of all namespaces, the host's first; ``stand_ins``: links that are of another kind, by the original kind."""

    spaces: list[Copy]
    aside: NetNS
    stand_ins: dict[tuple[str, str], str] = field(default_factory=dict)


def open_new(path: str) -> NetNS:
    """Create a network namespace; the thread that does so ends. Raises: OSError."""

    def inside() -> NetNS:
        system.unshare(CLONE_NEWNET)
        return NetNS(path, os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    with NetNS("/proc/self/ns/net", os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as here:
        return here.run(inside)


def copy(originals: Iterable[Namespace]) -> Copies:
    """Create the namespaces again; the host's copy is the namespace that the thread is in. Raises: OSError."""
    spaces = []
    for number, of in enumerate(originals):
        path = (*of.paths, *(f"/proc/{pid}/ns/net" for pid in of.pids), "")[0]
        netns = open_new(path) if number else NetNS("", os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        spaces.append(Copy(of, netns, netns.run(lambda: Netlink(new_socket()))))
    copies = Copies(spaces, open_new(""))
    _create_links(copies)
    for one in spaces:
        _configure_links(one)
        one.netns.run(lambda of=one.of: _set_sysctls(of.sysctls))  # type: ignore[misc]
    _set_up_aside(copies)
    for one in spaces:
        _set_up(one)
    for one in spaces:
        _fill(one)
        one.netns.run(lambda of=one.of: _set_sysctls(of.sysctls))  # type: ignore[misc]
    return copies


# ---- links -------------------------------------------------------------------------------------


def _create_links(copies: Copies) -> None:
    waiting = [(one, link) for one in copies.spaces for link in one.of.tables.links if link.name != "lo"]
    for one in copies.spaces:
        one.numbers[1] = 1
    while waiting:
        left = [(one, link) for one, link in waiting if link.index not in one.numbers and not _create(copies, one, link)]
        if len(left) == len(waiting):
            for one, link in left:
                if link.index not in one.numbers:
                    _create_stand_in(copies, one, link)
            return
        waiting = left


def _create(copies: Copies, one: Copy, link: Link) -> bool:
    """Create a link as it is. Returns: False if it cannot be created, or not yet."""
    if link.kind in ("", "tun"):
        return False
    over = _owner_of_lower(copies, one, link)
    if link.kind != "veth" and link.lower and (over is None or link.lower not in over.numbers):
        return False
    try:
        if link.kind == "veth":
            _create_veth(copies, one, link)
        elif over is not None and link.lower:
            _make(over, one, link, _kind(link, over.numbers), over.numbers[link.lower])
        else:
            _make(one, one, link, _kind(link, one.numbers))
    except NetlinkError:
        return False
    return True


def _make(via: Copy, one: Copy, link: Link, info: bytes, lower: int = 0) -> None:
    """Create a link in ``one`` by a request in ``via``, with its number unless another link of the copy has that.

    A new namespace has links of its own, as tunl0: one of the same name is taken. Raises: NetlinkError.
    """
    body = _properties(link) + (attribute(tables.LINK, pack("=i", lower)) if lower else b"") + attribute(tables.LINKINFO, info)
    body += attribute(_NETNS_FD, pack("=I", one.netns.fd)) if via is not one else b""
    for number in (link.index, 0):
        try:
            via.netlink.change(INFO.pack(0, 0, number, 0, 0) + body, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno == EBUSY and number:
                continue
            if error.errno != EEXIST:
                raise
        break
    _learn(one, link)


def _learn(one: Copy, link: Link) -> None:
    """Remember the number of a link that was created. Raises: NetlinkError."""
    name = attribute(tables.NAME, link.name.encode(errors="surrogateescape") + b"\0")
    one.numbers[link.index] = INFO.unpack_from(one.netlink.get(INFO.pack(0, 0, 0, 0, 0) + name, RTM_GETLINK))[2]


def _owner_of_lower(copies: Copies, one: Copy, link: Link) -> Copy | None:
    """Return the namespace that the link below is in: this one, or the host's."""
    if link.netnsid is None:
        return one
    host = copies.spaces[0]
    return host if any(of.index == link.lower for of in host.of.tables.links) else None


def _properties(link: Link) -> bytes:
    """Return the attributes that a link of any kind can have from the beginning."""
    of = link.attributes
    kept = b"".join(attribute(number, of[number]) for number in _COPIED if number in of)
    mac = of.get(tables.ADDRESS, b"")
    kept += attribute(tables.ADDRESS, mac) if len(mac) == _MAC_BYTES and any(mac) else b""
    return attribute(tables.NAME, link.name.encode(errors="surrogateescape") + b"\0") + kept


def _kind(link: Link, numbers: dict[int, int]) -> bytes:
    """Return the kind of a link, with its settings; those of a bridge come later."""
    data = b""
    for number, value in _settings(link) if link.kind != "bridge" else ():
        is_link = (link.kind, number) == ("vxlan", _VXLAN_LINK)
        data += attribute(number, pack("=i", numbers.get(tables.number_in(value), 0)) if is_link else value)
    return attribute(tables.KIND, link.kind.encode() + b"\0") + (attribute(tables.DATA, data) if data else b"")


def _settings(link: Link) -> Iterable[tuple[int, bytes]]:
    left_out = tables.READ_ONLY.get(link.kind, frozenset[int]())
    for number, value in attributes(link.data):
        is_absent = link.kind == "vxlan" and number in _VXLAN_ABSENT and not any(value)
        if number not in left_out and not is_absent:
            yield number, value


def _create_veth(copies: Copies, one: Copy, link: Link) -> None:
    """Create a veth with both ends; the other one is put aside if its namespace is not known. Raises: NetlinkError."""
    target, end = _peer_of(copies, one, link) or (None, None)
    for number in (end.index if end else 0, 0):
        peer = INFO.pack(0, 0, number, 0, 0) + (_properties(end) if end is not None else b"")
        if target is not one:
            peer += attribute(_NETNS_FD, pack("=I", target.netns.fd if target else copies.aside.fd))
        info = attribute(tables.KIND, b"veth\0") + attribute(tables.DATA, attribute(_PEER, peer))
        try:
            _make(one, one, link, info)
        except NetlinkError as error:
            if error.errno != EBUSY or not number:
                raise
            continue
        break
    if target is not None and end is not None:
        _learn(target, end)


def _peer_of(copies: Copies, one: Copy, link: Link) -> tuple[Copy, Link] | None:
    """Return the other end of a veth; None if it is in a namespace that could not be found."""
    spaces = [one] if link.netnsid is None else [other for other in copies.spaces if other is not one]
    for space in spaces:
        for end in space.of.tables.links:
            if (end.index, end.kind, end.lower) == (link.lower, "veth", link.index) and end.index not in space.numbers:
                return space, end
    return None


def _create_stand_in(copies: Copies, one: Copy, link: Link) -> None:
    """Create a link of another kind in the place of one that cannot be created; one that no kind fits is missing."""
    for kind in ("dummy", "veth"):
        plain = replace(link, kind=kind, lower=0, netnsid=0)
        try:
            if kind == "veth":
                _create_veth(copies, one, plain)
            else:
                _make(one, one, plain, attribute(tables.KIND, b"dummy\0"))
        except NetlinkError:
            continue
        break
    copies.stand_ins[one.netns.path, link.name] = link.kind or "network card"


def _configure_links(one: Copy) -> None:
    """Give links their masters, and what they cannot have from the beginning."""
    for link in one.of.tables.links:
        number = one.numbers.get(link.index)
        if number is None:
            continue
        _try(one.netlink, INFO.pack(0, 0, number, link.flags & _SET_FLAGS, _SET_FLAGS), RTM_NEWLINK)
        if alias := link.attributes.get(tables.ALIAS):
            _try(one.netlink, INFO.pack(0, 0, number, 0, 0) + attribute(tables.ALIAS, alias), RTM_NEWLINK)
        names = b"".join(attribute(tables.ALTNAME, name.encode(errors="surrogateescape") + b"\0") for name in link.altnames)
        if names:
            flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND
            properties = attribute(NESTED | tables.PROPERTIES, names)
            _try(one.netlink, INFO.pack(0, 0, number, 0, 0) + properties, RTM_NEWLINKPROP, flags)
        if link.master and link.master in one.numbers:
            master = attribute(tables.MASTER, pack("=i", one.numbers[link.master]))
            _try(one.netlink, INFO.pack(0, 0, number, 0, 0) + master, RTM_NEWLINK)
    for link in one.of.tables.links:
        if link.kind == "bridge" and link.index in one.numbers:
            _set_bridge(one, link)
        if link.port_kind == "bridge" and link.index in one.numbers:
            _set_port(one, link)
    for body in one.of.tables.vlans:
        _set_vlans(one, body)


def _set_bridge(one: Copy, link: Link) -> None:
    """Set what a bridge has, each alone: a kernel lists some that it cannot set."""
    for number, value in _settings(link):
        info = attribute(tables.KIND, b"bridge\0") + attribute(tables.DATA, attribute(number, value))
        _try(one.netlink, INFO.pack(0, 0, one.numbers[link.index], 0, 0) + attribute(tables.LINKINFO, info), RTM_NEWLINK)


def _set_port(one: Copy, link: Link) -> None:
    settings = b"".join(attribute(n, value) for n, value in attributes(link.port) if n in tables.PORT_SETTINGS)
    info = attribute(tables.PORT_KIND, b"bridge\0") + attribute(tables.PORT_DATA, settings)
    _try(one.netlink, INFO.pack(0, 0, one.numbers[link.index], 0, 0) + attribute(tables.LINKINFO, info), RTM_NEWLINK)


def _set_vlans(one: Copy, body: bytes) -> None:
    """Give a port, or the bridge itself, its VLANs, in place of those that a new one has."""
    index = INFO.unpack_from(body)[2]
    number = one.numbers.get(index)
    vlans = [value for n, value in attributes(dict(attributes(body, INFO.size)).get(26, b"")) if n == 2]
    link = next((of for of in one.of.tables.links if of.index == index), None)
    if number is None or link is None or not vlans:
        return
    to_itself = attribute(0, pack("=H", 2)) if link.kind == "bridge" else b""  # IFLA_BRIDGE_FLAGS: BRIDGE_FLAGS_SELF
    if all(unpack_from("=HH", value)[1] != 1 for value in vlans):
        first = to_itself + attribute(2, pack("=HH", 0, 1))
        _try(one.netlink, INFO.pack(AF_BRIDGE, 0, number, 0, 0) + attribute(26, first), RTM_DELLINK)
    wanted = to_itself + b"".join(attribute(2, value) for value in vlans)
    _try(one.netlink, INFO.pack(AF_BRIDGE, 0, number, 0, 0) + attribute(26, wanted), RTM_SETLINK)


def _set_up(one: Copy) -> None:
    for link in one.of.tables.links:
        if link.flags & IFF_UP and link.index in one.numbers:
            _try(one.netlink, INFO.pack(0, 0, one.numbers[link.index], IFF_UP, IFF_UP), RTM_NEWLINK)


def _set_up_aside(copies: Copies) -> None:
    """Set the other ends of stand-ins up, so that these have a carrier."""

    def inside() -> None:
        netlink = Netlink(new_socket())
        for link in tables.read().links:
            _try(netlink, INFO.pack(0, 0, link.index, IFF_UP, IFF_UP), RTM_NEWLINK)
        netlink.close()

    copies.aside.run(inside)


# ---- addresses, routes, rules, neighbours ------------------------------------------------------


def _fill(one: Copy) -> None:
    of, names = one.of.tables, one.of.tables.names()
    now = one.netns.run(tables.read)
    there = {state.address_line(body, now.names()) for body in now.addresses}
    for body in of.addresses:
        if (message := _address(body, one.numbers)) and state.address_line(body, names) not in there - {""}:
            _try(one.netlink, message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
    now = one.netns.run(tables.read)
    wanted = {line: body for body in of.routes if (line := state.route_line(body, names))}
    made = {line: body for body in now.routes if (line := state.route_line(body, now.names()))}
    for line in made.keys() - wanted.keys():
        _try(one.netlink, made[line], RTM_DELROUTE)
    flags = NLM_F_CREATE | NLM_F_APPEND
    _until_none_succeeds(
        one.netlink, [_route(body, one.numbers) for line, body in wanted.items() if line not in made], RTM_NEWROUTE, flags
    )
    _replace_rules(one, of, now)
    for body in of.neighbours:
        if state.neighbour_line(body, names):
            _try(one.netlink, _neighbour(body, one.numbers), RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
    for bodies, noun, kind in ((of.disciplines, "qdisc", RTM_NEWQDISC), (of.filters, "filter", RTM_NEWTFILTER)):
        for body in bodies:
            if state.discipline_line(noun, body, names):
                _try(one.netlink, _shaping(body, one.numbers), kind, NLM_F_CREATE | NLM_F_REPLACE)


def _replace_rules(one: Copy, of: Tables, now: Tables) -> None:
    wanted, there = ({state.rule_line(body): body for body in some.rules} for some in (of, now))
    for line, body in wanted.items():
        if line not in there:
            _try(one.netlink, body, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
    for line, body in there.items():
        if line not in wanted:
            _try(one.netlink, body, RTM_DELRULE)


def _try(netlink: Netlink, body: bytes, kind: int, flags: int = 0) -> bool:
    """Send a change. Returns: whether the kernel accepted it; one that it refuses is missing in the copy."""
    try:
        netlink.change(body, kind, flags)
    except NetlinkError:
        return False
    return True


def _until_none_succeeds(netlink: Netlink, bodies: list[bytes], kind: int, flags: int) -> None:
    while bodies:
        left = [body for body in bodies if not _try(netlink, body, kind, flags)]
        if len(left) == len(bodies):
            return
        bodies = left


def _address(body: bytes, numbers: dict[int, int]) -> bytes:
    family, prefixlen, flags, scope, index = unpack_from("=BBBBI", body)
    of = dict(attributes(body, 8))
    flags = unpack_from("=I", of[8])[0] if 8 in of else flags
    flags = flags & ~(IFA_F_TEMPORARY | IFA_F_DADFAILED | 0x40) | IFA_F_PERMANENT  # 0x40: tentative
    flags |= IFA_F_NODAD if family == AF_INET6 else 0
    if index not in numbers:
        return b""
    kept = b"".join(attribute(number, value) for number, value in of.items() if number in _ADDRESS_ATTRIBUTES)
    return pack("=BBBBI", family, prefixlen, flags & 0xFF, scope, numbers[index]) + kept + attribute(8, pack("=I", flags))


def _route(body: bytes, numbers: dict[int, int]) -> bytes:
    *head, flags = unpack_from("=BBBBBBBBI", body)
    message = pack("=BBBBBBBBI", *head, flags & 0x6)  # onlink, pervasive; the others are the kernel's state
    for number, value in attributes(body, 12):
        if number in _ROUTE_INDEXES:
            message += attribute(number, pack("=i", numbers.get(tables.number_in(value), 0)))
        elif number == _MULTIPATH:
            message += attribute(number, _nexthops(value, numbers))
        elif number not in _ROUTE_LEFT_OUT:
            message += attribute(number, value)
    return message


def _nexthops(value: bytes, numbers: dict[int, int]) -> bytes:
    out, at = bytearray(value), 0
    while at + 8 <= len(out):
        length, flags, hops, index = unpack_from("=HBBi", out, at)
        pack_into("=HBBi", out, at, length, flags & 0x6, hops, numbers.get(index, 0))
        at += max(length + 3 & ~3, 8)
    return bytes(out)


def _neighbour(body: bytes, numbers: dict[int, int]) -> bytes:
    family, index, state_of, flags, kind = unpack_from("=BxxxiHBB", body)
    head = pack("=BxxxiHBB", family, numbers.get(index, 0), state_of, flags, kind)
    return head + b"".join(attribute(n, value) for n, value in attributes(body, 12) if n in _NEIGHBOUR_ATTRIBUTES)


def _shaping(body: bytes, numbers: dict[int, int]) -> bytes:
    head = bytearray(body[:20])
    pack_into("=i", head, 4, numbers.get(unpack_from("=i", body, 4)[0], 0))
    of = dict(attributes(body, 20))
    options = of.get(2, b"")
    if tables.attribute_text(of.get(1, b"")) == "u32":
        pack_into("=I", head, 8, 0)  # the kernel numbers its table
        options = b"".join(
            attribute(n, value if n == TCA_U32_SEL else _actions(value, numbers))
            for n, value in attributes(options)
            if n in (TCA_U32_SEL, TCA_U32_ACT)
        )
    return bytes(head) + attribute(1, of.get(1, b"")) + attribute(2, options)


def _actions(value: bytes, numbers: dict[int, int]) -> bytes:
    """Return the actions of a filter without the numbers that the kernel gives them, and their statistics."""
    message = b""
    for number, action in attributes(value):
        of = dict(attributes(action))
        parameters = bytearray(dict(attributes(of.get(TCA_ACT_OPTIONS, b""))).get(TCA_MIRRED_PARMS, b""))
        if len(parameters) >= _MIRRED.size:
            *_, way, index = _MIRRED.unpack_from(parameters)
            _MIRRED.pack_into(parameters, 0, 0, 0, parameters[8], 0, 0, way, numbers.get(index, 0))
        options = attribute(TCA_MIRRED_PARMS, bytes(parameters))
        message += attribute(number, attribute(TCA_ACT_KIND, of.get(TCA_ACT_KIND, b"")) + attribute(TCA_ACT_OPTIONS, options))
    return message


# ---- kernel parameters -------------------------------------------------------------------------


def _set_sysctls(wanted: Sysctls) -> None:
    """Set what differs; a parameter of all links before those of each, which it changes."""
    for name in sorted(wanted, key=lambda name: (name.count("/"), not any(f"/{word}/" in name for word in _FIRST), name)):
        path = f"/proc/sys/{name}"
        try:
            fd = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC)
        except OSError:  # it can only be read, or the copy of its link has none
            continue
        try:
            if posix.read(fd, len(wanted[name]) + 64).decode(errors="replace").rstrip("\n") != wanted[name]:
                posix.pwrite(fd, wanted[name].encode(), 0)
        except OSError:
            pass
        finally:
            posix.close(fd)
