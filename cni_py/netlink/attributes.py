"""Attributes of a netlink message: length, kind, value, padded to four bytes. Source: netlink(7), struct nlattr."""

from __future__ import annotations

from struct import Struct, pack
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NLA_F_NESTED = 0x8000
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
