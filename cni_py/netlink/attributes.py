"""Messages of netlink to bytes and back: dictionaries of header fields and attributes, by pyroute2's names.

    encode("ifinfmsg", {"index": 7, "IFLA_MTU": 1450, "IFLA_LINKINFO": {"IFLA_INFO_KIND": "veth"}}) -> bytes
    decode("ifinfmsg", data) -> dict        header fields, and the attributes that ``tables.py`` has

How it works. ``tables.py`` lists for each message, and for each attribute that holds attributes, the fields of its header
and number and type of each attribute. What pyroute2 chooses or encodes by a function is here, by hand. A field that is
missing is 0; an attribute that is None is left out. MAC addresses are text, IP addresses packed bytes, as ``ipaddress``
takes and returns them; attributes in attributes are dictionaries, and the types that begin with "*" lists of them.

Source: netlink(7), struct nlattr.
"""

from __future__ import annotations

from functools import partial
from struct import Struct
from sys import byteorder

from cni_py.netlink.constants import AF_BRIDGE
from cni_py.netlink.tables import NESTED, TABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Literal

Message = dict[str, "Any"]
_HEADER = Struct("=HH")
_PADDING = (b"", bytes(3), bytes(2), bytes(1))
"""Padding after so many bytes beyond a multiple of four."""


def encode(table: str, message: Mapping[str, Any]) -> bytes:
    """Encode header and attributes. Raises: KeyError for a name that is not in the table."""
    return _table(table).encode(message)


def decode(table: str, data: bytes) -> Message:
    """Decode the header and the attributes that the table has; of one that occurs twice the last counts."""
    return _table(table).decode(data)


def decode_header(table: str, data: bytes) -> Message:
    """Decode the header alone, to choose messages by it."""
    of = _table(table)
    return dict(zip(of.fields, of.struct.unpack_from(data), strict=True))


def items(table: str, data: bytes, name: str) -> list[bytes]:
    """Return the encoded items of a list, to choose some by their content."""
    number = TABLES[table][1][name][0] & ~NESTED
    lists = [value for of, value in attributes(data, _table(table).struct.size) if of == number]
    return [item for of in lists for _, item in attributes(of)]


def attribute(number: int, value: bytes) -> bytes:
    """One attribute: length, number, value, padded to four bytes."""
    return _HEADER.pack(4 + len(value), number) + value + _PADDING[len(value) & 3]


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Number and value of each attribute."""
    end = len(data) - 3
    while at < end:
        length, number = _HEADER.unpack_from(data, at)
        yield number & ~NESTED, data[at + 4 : at + length]
        at += (length + 3 & ~3) or 4


# ---- tables -----------------------------------------------------------------------------------


class _Table:
    """A table of ``tables.py``, ready for use."""

    def __init__(self, name: str) -> None:
        fields, rows = TABLES[name]
        rows = rows | _CORRECTIONS.get(name, {})
        self.fields = tuple([field for field, form in fields if "x" not in form])
        self.zeros = (0,) * len(self.fields)
        order = ">" if any(form[0] == ">" for _, form in fields) else "="  # the other fields are single bytes then
        self.struct = Struct(order + "".join([form.lstrip(">") for _, form in fields]))
        self.chosen = {row: kind for row, (_, kind) in rows.items() if kind in _CHOSEN}
        self.numbers = {row: number for row, (number, _) in rows.items()}
        self.encoders: dict[str, Callable[[Any], bytes] | None] = dict.fromkeys(self.fields)
        self.encoders |= {row: _encoder(number, kind) for row, (number, kind) in rows.items()}
        self.decoders = {
            number & ~NESTED: (row, None if kind in _CHOSEN else _decoder(kind)) for row, (number, kind) in rows.items()
        }

    def encode(self, message: Mapping[str, Any]) -> bytes:
        out, encoders, chosen = self.struct.pack(*map(message.get, self.fields, self.zeros)), self.encoders, self.chosen
        for name, value in message.items():
            encoder = encoders[name]
            if encoder is None or value is None:
                continue
            if name in chosen:
                encoder = _encoder(self.numbers[name], _chosen(chosen[name], message))
            out += encoder(value)
        return out

    def decode(self, data: bytes) -> Message:
        message: Message = dict(zip(self.fields, self.struct.unpack_from(data), strict=True))
        decoders, unpack, at, end = self.decoders, _HEADER.unpack_from, self.struct.size, len(data) - 3
        while at < end:  # as attributes(), without a generator: dumps of large tables spend their time here
            length, number = unpack(data, at)
            row = decoders.get(number & ~NESTED)
            if row is not None:
                name, decoder = row
                value = data[at + 4 : at + length]
                message[name] = decoder(value) if decoder else self._decode_chosen(name, value, message)
            at += (length + 3 & ~3) or 4
        return message

    def _decode_chosen(self, name: str, data: bytes, message: Message) -> Any:
        return _decoder(_chosen(self.chosen[name], message))(data)


_tables: dict[str, _Table] = {}


def _table(name: str) -> _Table:
    table = _tables.get(name)
    if table is None:
        table = _tables[name] = _Table(name)
    return table


def _encoder(number: int, kind: str) -> Callable[[Any], bytes]:
    if kind in _TYPES:
        return _TYPES[kind][0](number)
    if kind in _CHOSEN:
        return partial(attribute, number)  # replaced when the message is known
    if kind[0] == "*":
        return lambda value: attribute(number, _list_to_bytes(number & NESTED, kind[1:], value))
    return lambda value: attribute(number, _table(kind).encode(value))


def _list_to_bytes(flags: int, kind: str, values: list[Message]) -> bytes:
    return b"".join([attribute(index | flags, _table(kind).encode(value)) for index, value in enumerate(values, 1)])


def _decoder(kind: str) -> Callable[[bytes], Any]:
    if kind in _TYPES:
        return _TYPES[kind][1]
    if kind[0] == "*":
        return lambda data: [_table(kind[1:]).decode(item) for _, item in attributes(data)]
    return lambda data: _table(kind).decode(data)


def _chosen(kind: str, message: Mapping[str, Any]) -> str:
    member, kinds = _CHOSEN[kind]
    return kinds.get(message.get(member), "cdata")


# ---- by hand ----------------------------------------------------------------------------------


_Type = tuple["Callable[[int], Callable[[Any], bytes]]", "Callable[[bytes], Any]"]
"""Two functions: the first returns, for an attribute's number, the one that encodes it; the other decodes the value."""


def _number(size: int, order: Literal["little", "big"], signed: bool = False) -> _Type:
    def encoder(number: int) -> Callable[[Any], bytes]:
        start, padding = _HEADER.pack(4 + size, number), _PADDING[size & 3]
        return lambda value: start + value.to_bytes(size, order, signed=signed) + padding

    return encoder, lambda data: int.from_bytes(data, order, signed=signed)


def _coded(to_bytes: Callable[[Any], bytes], of_bytes: Callable[[bytes], Any]) -> _Type:
    return lambda number: lambda value: attribute(number, to_bytes(value)), of_bytes


def _text_to_bytes(value: str) -> bytes:
    return value.encode(errors="surrogateescape") + b"\0"


def _text_of(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="surrogateescape")


def _mac_to_bytes(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


def _mac_of(data: bytes) -> str:
    return data.hex(":")


def _hops_to_bytes(hops: list[Message]) -> bytes:
    """``struct rtnexthop``: length, flags, hops, ifindex, attributes."""
    bodies = [encode("nh", hop) for hop in hops]
    return b"".join([(2 + len(body)).to_bytes(2, byteorder) + body for body in bodies])


def _hops_of(data: bytes) -> list[Message]:
    hops = []
    while len(data) >= 8:
        length = int.from_bytes(data[:2], byteorder)
        hops.append(decode("nh", data[2:length]))
        data = data[max(length + 3 & ~3, 8) :]
    return hops


_RAW: _Type = (lambda number: partial(attribute, number), bytes)
_MAC = _coded(_mac_to_bytes, _mac_of)
_TYPES: dict[str, _Type] = {
    "asciiz": _coded(_text_to_bytes, _text_of),
    "be16": _number(2, "big"),
    "be32": _number(4, "big"),
    "be64": _number(8, "big"),
    "binary": _RAW,
    "cdata": _RAW,
    "comment": _RAW,
    "flag": _coded(lambda _: b"", lambda _: True),
    "*get_nh": _coded(_hops_to_bytes, _hops_of),
    "hex": _RAW,
    "int32": _number(4, byteorder, signed=True),
    "ip4addr": _RAW,
    "ip6addr": _RAW,
    "ipaddr": _RAW,
    "l2addr": _MAC,
    "lladdr": _MAC,
    "parse_endpoint": _RAW,
    "parse_peer_key": _RAW,
    "parse_wg_key": _RAW,
    "sbe32": _number(4, "big", signed=True),
    "set_elem_udata": _RAW,
    "target": _RAW,
    "uint16": _number(2, byteorder),
    "uint32": _number(4, byteorder),
    "uint8": _number(1, byteorder),
}

_CHOSEN: dict[str, tuple[str, dict[Any, str]]] = {
    "af_spec": ("family", {AF_BRIDGE: "af_spec_bridge"}),
    "info_data": (
        "IFLA_INFO_KIND",
        {
            "bridge": "bridge_data",
            "ipip": "ipip_data",
            "ipvlan": "ipvlan",
            "macvlan": "macvx_data",
            "tun": "tun",
            "veth": "veth_data",
            "vlan": "vlan",
            "vrf": "vrf",
            "vxlan": "vxlan",
        },
    ),
    "info_peer": ("", {None: "ifinfmsg"}),
    "info_slave_data": ("IFLA_INFO_SLAVE_KIND", {"bridge": "bridge_slave_data"}),
}
"""Types that depend on another member of the message: its name, and the type for each of its values; default: bytes."""

_CORRECTIONS: dict[str, dict[str, tuple[int, str]]] = {
    "cta_tuple": {"CTA_TUPLE_ZONE": (3, "be16")},
    "macvx_data": {"IFLA_MACVLAN_BC_QUEUE_LEN": (7, "uint32")},
    "fibmsg": {"FRA_SPORT_RANGE": (23, "binary"), "FRA_DPORT_RANGE": (24, "binary")},
    "ifaddrmsg": {"IFA_TARGET_NETNSID": (10, "int32")},
    "nsidmsg": {"NETNSA_NSID": (1, "int32")},
    "rtmsg": {"RTA_IP_PROTO": (27, "uint8"), "RTA_SPORT": (28, "be16"), "RTA_DPORT": (29, "be16")},
    "tcmsg": {"TCA_OPTIONS": (2, "binary")},  # of each kind its own: kernel/tc.py
}
"""Types that pyroute2 lacks, or has as text, as unsigned, or in a form that it cannot encode."""
