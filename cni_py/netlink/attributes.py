"""Attributes of a netlink message: length, kind, value, padded to four bytes. Source: netlink(7), struct nlattr."""

from __future__ import annotations

from struct import Struct, pack
from sys import byteorder

from cni_py.lazy import without_init
from cni_py.netlink.constants import NLA_F_NESTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Attribute = tuple[str, object]

_KIND = 0x3FFF
_header = Struct("=HH").unpack_from


def attribute(kind: int, value: str | bytes) -> bytes:
    """One attribute; text ends with a zero."""
    raw = value if isinstance(value, bytes) else value.encode(errors="surrogateescape") + b"\0"
    return pack("=HH", 4 + len(raw), kind) + raw + b"\0" * (-len(raw) % 4)


def nested(kind: int, value: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, value)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each."""
    at, end = 0, len(data) - 3
    while at < end:
        length, kind = _header(data, at)
        yield kind & _KIND, data[at + 4 : at + length]
        at += (length + 3 & ~3) or 4


def text_of(value: bytes) -> str:
    """What a text attribute says."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def number(value: bytes | None) -> int:
    """An unsigned number of any size, in the host's order; 0 where the attribute is missing."""
    return int.from_bytes(value or b"", byteorder)


_FIXED_PART = {"ifinfmsg": 16, "ifaddrmsg": 8, "rtmsg": 12}
"""Bytes of a message between its header and its attributes."""
_MAX_ENCODED = 4096
_encoded: dict[object, bytes] = {}


def made_of(message: str, *attributes: Attribute, family: int = 0) -> bytes:
    """The attributes of a link, address or route, as pyroute2's class ``message`` encodes them.

    A list of attributes is encoded once, which takes 0.1 ms: what every pod has its own of (names, ifindexes,
    addresses) the callers add with ``nlattr.py``. An attribute is a name and a value; a tuple as value holds attributes.
    """
    key = message, family, attributes
    data = _encoded.get(key)
    if data is None:
        if len(_encoded) >= _MAX_ENCODED:
            _encoded.clear()
        new = _message_class(message)()
        new["family"] = family
        new["attrs"] = [(name, _nested(value)) for name, value in attributes]
        new.encode()
        data = bytes(new.data)[16 + _FIXED_PART[message] :]
        _encoded[key] = data = data + bytes(-len(data) % 4)
    return data


def _nested(value: object) -> object:
    """A tuple of attributes as pyroute2 takes it."""
    return {"attrs": [(name, _nested(inner)) for name, inner in value]} if isinstance(value, tuple) else value


def load_message_classes() -> None:
    """Import what :func:`made_of` needs: some 20 ms, at its first use."""
    for name in _FIXED_PART:
        _message_class(name)


def _message_class(name: str) -> Any:
    with without_init("pyroute2"):
        module = __import__(f"pyroute2.netlink.rtnl.{name}", fromlist=[name])
    return getattr(module, name)
