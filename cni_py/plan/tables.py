"""The network of a namespace as the kernel lists it: undecoded messages, so that nothing is lost between reading and creating.

Numbers are those of the headers of linux/if_link.h, if_bridge.h, rtnetlink.h; those that the rest of cni_py uses have names in
cni_py/netlink/constants.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL, ENOENT, EOPNOTSUPP
from struct import Struct, unpack_from

from cni_py.netlink.attributes import attributes, encode
from cni_py.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    RTEXT_FILTER_BRVLAN,
    RTEXT_FILTER_SKIP_STATS,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETQDISC,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_GETTFILTER,
)
from cni_py.netlink.socket import Netlink, NetlinkError, new_socket

INFO = Struct("=BxHiII")
"""``struct ifinfomsg``: family, type, index, flags, change."""
ADDRESS, NAME, MTU, LINK, MASTER, TXQLEN, LINKINFO, ALIAS, GROUP, NETNSID, PROPERTIES, ALTNAME = (
    1, 3, 4, 5, 10, 13, 18, 20, 27, 37, 52, 53,
)  # fmt: skip
"""Attributes of a link (IFLA_…)."""
KIND, DATA, PORT_KIND, PORT_DATA = 1, 2, 4, 5
"""Attributes of LINKINFO (IFLA_INFO_…)."""
READ_ONLY = {"bridge": frozenset({10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 40, 47, 48}), "macvlan": frozenset({4, 5, 6, 8})}
"""Attributes of a kind that are state, no settings (IFLA_BR_…, IFLA_MACVLAN_…): ids, timers, counts."""
PORT_SETTINGS = frozenset({4, 5, 6, 7, 8, 9, 10, 12, 27, 28, 29, 30, 31, 32, 33})
"""Attributes of a bridge's port that are settings (IFLA_BRPORT_…)."""
INGRESS_PARENT = 0xFFFF0000
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ABSENT = (EINVAL, ENOENT, EOPNOTSUPP)
_INDEX = Struct("=i")


@dataclass(frozen=True, slots=True)
class Link:
    """A link, with its attributes undecoded.

    Attributes:
        netnsid: of the namespace that ``lower`` is in; None: this one.
        lower: number of the link below it, or of the other end; 0: none.
        data, port: settings of its kind, and as a port of its master.
    """

    index: int
    flags: int
    name: str
    attributes: dict[int, bytes]
    kind: str = ""
    data: bytes = b""
    port_kind: str = ""
    port: bytes = b""
    lower: int = 0
    netnsid: int | None = None
    master: int = 0
    altnames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a namespace; all but ``links`` are messages without the netlink header."""

    links: tuple[Link, ...]
    vlans: tuple[bytes, ...]
    addresses: tuple[bytes, ...]
    routes: tuple[bytes, ...]
    rules: tuple[bytes, ...]
    neighbours: tuple[bytes, ...]
    disciplines: tuple[bytes, ...]
    filters: tuple[bytes, ...]

    def names(self) -> dict[int, str]:
        """Return the names of the links by their numbers."""
        return {link.index: link.name for link in self.links}


def read() -> Tables:
    """Read the tables of the namespace that the thread is in. Raises: OSError."""
    netlink = Netlink(new_socket())
    try:
        links = tuple(map(link_of, netlink.dump(encode("ifinfmsg", {"IFLA_EXT_MASK": RTEXT_FILTER_SKIP_STATS}), RTM_GETLINK)))
        bridging = encode("ifinfmsg", {"family": AF_BRIDGE, "IFLA_EXT_MASK": RTEXT_FILTER_BRVLAN})
        disciplines = _dump(netlink, encode("tcmsg", {}), RTM_GETQDISC)
        return Tables(
            links,
            _dump(netlink, bridging, RTM_GETLINK),
            _dump(netlink, encode("ifaddrmsg", {}), RTM_GETADDR),
            _of_families(netlink, "rtmsg", RTM_GETROUTE),
            _of_families(netlink, "fibmsg", RTM_GETRULE),
            (*_dump(netlink, encode("ndmsg", {}), RTM_GETNEIGH), *_dump(netlink, _fdb_question(), RTM_GETNEIGH)),
            disciplines,
            tuple(one for of in disciplines if _is_ingress(of) for one in _filters(netlink, of)),
        )
    finally:
        netlink.close()


def mac_addresses() -> Iterator[tuple[str, str]]:
    """Yield the links of the namespace that the thread is in, each with its MAC address. Raises: OSError."""
    for link in read().links:
        mac = link.attributes.get(ADDRESS, b"")
        if len(mac) == 6 and any(mac):
            yield link.name, ":".join(f"{byte:02x}" for byte in mac)


def _dump(netlink: Netlink, question: bytes, kind: int) -> tuple[bytes, ...]:
    """Return all; none if this kernel lacks them."""
    try:
        return tuple(netlink.dump(question, kind))
    except NetlinkError as error:
        if error.errno not in _ABSENT:
            raise
        return ()


def _of_families(netlink: Netlink, table: str, kind: int) -> tuple[bytes, ...]:
    return tuple(one for family in (AF_INET, AF_INET6) for one in _dump(netlink, encode(table, {"family": family}), kind))


def _fdb_question() -> bytes:
    return encode("ndmsg", {"family": AF_BRIDGE})


def _is_ingress(discipline: bytes) -> bool:
    return attribute_text(dict(attributes(discipline, 20)).get(1, b"")) in ("ingress", "clsact")


def _filters(netlink: Netlink, discipline: bytes) -> tuple[bytes, ...]:
    index = _INDEX.unpack_from(discipline, 4)[0]
    return _dump(netlink, encode("tcmsg", {"index": index, "parent": INGRESS_PARENT}), RTM_GETTFILTER)


def link_of(body: bytes) -> Link:
    """Return a link from the body of RTM_NEWLINK. Pure."""
    _, _, index, flags, _ = INFO.unpack_from(body)
    found = dict(attributes(body, INFO.size))
    info = dict(attributes(found.get(LINKINFO, b"")))
    names = [attribute_text(value) for number, value in attributes(found.get(PROPERTIES, b"")) if number == ALTNAME]
    return Link(
        index=index,
        flags=flags,
        name=attribute_text(found.get(NAME, b"")),
        attributes=found,
        kind=attribute_text(info.get(KIND, b"")),
        data=info.get(DATA, b""),
        port_kind=attribute_text(info.get(PORT_KIND, b"")),
        port=info.get(PORT_DATA, b""),
        lower=number_in(found.get(LINK, b"")),
        netnsid=number_in(found[NETNSID]) if NETNSID in found else None,
        master=number_in(found.get(MASTER, b"")),
        altnames=tuple(names),
    )


def attribute_text(value: bytes) -> str:
    """Return the text of an attribute, which ends with a zero byte."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def number_in(value: bytes) -> int:
    """Return the number of an attribute of four bytes; 0 if it is missing."""
    return int(unpack_from("=i", value)[0]) if len(value) >= 4 else 0
