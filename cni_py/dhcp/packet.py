"""Messages of DHCP (IPv4) to bytes and back, with the headers of UDP and IP around them. Pure.

    Message(kind, xid, mac, …, options).encode() -> bytes          decode(data) -> Message, ValueError if it is none
    datagram(message, source, target) -> bytes                      payload(data) -> bytes | None
    parse_mask, parse_address, parse_static_routes, parse_classless_routes

Source: RFC 2131, RFC 2132, RFC 3396 (long options), RFC 3442 (classless routes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from struct import Struct, pack, unpack_from

SUBNET_MASK, ROUTER, HOST_NAME, STATIC_ROUTES = 1, 3, 12, 33
REQUESTED_ADDRESS, LEASE_TIME, OVERLOAD, MESSAGE_TYPE, SERVER, REQUESTED_OPTIONS, ERROR_TEXT, MAX_SIZE = (
    50,
    51,
    52,
    53,
    54,
    55,
    56,
    57,
)
RENEWAL_TIME, REBINDING_TIME, VENDOR_CLASS, CLIENT_ID, USER_CLASS, CLASSLESS_ROUTES = 58, 59, 60, 61, 77, 121
PAD, END = 0, 255
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = 1, 2, 3, 4, 5, 6, 7
CLIENT_PORT, SERVER_PORT = 68, 67
ANY, BROADCAST = IPv4Address(0), IPv4Address(0xFFFFFFFF)
_HEADER = Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_BROADCAST_FLAG = 0x8000
_SMALLEST = 300
"""Bytes of the smallest message: relays of BOOTP drop shorter ones."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message. ``options`` without the message's type, in the order of sending."""

    kind: int
    xid: int
    mac: bytes
    is_reply: bool = False
    is_broadcast: bool = False
    seconds: int = 0
    client: IPv4Address = ANY
    yours: IPv4Address = ANY
    options: dict[int, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        flags = _BROADCAST_FLAG if self.is_broadcast else 0
        head = _HEADER.pack(
            2 if self.is_reply else 1, 1, len(self.mac), 0, self.xid, min(self.seconds, 0xFFFF), flags,
            self.client.packed, self.yours.packed, bytes(4), bytes(4), self.mac, b"", b"", _COOKIE,
        )  # fmt: skip
        body = b"".join([_option(code, value) for code, value in {MESSAGE_TYPE: bytes([self.kind]), **self.options}.items()])
        return (head + body + bytes([END])).ljust(_SMALLEST, b"\0")

    def address(self, code: int) -> IPv4Address | None:
        """The first address of an option."""
        return parse_address(self.options.get(code, b""))

    def seconds_of(self, code: int) -> int | None:
        """An option that is a number of seconds."""
        value = self.options.get(code, b"")
        return int.from_bytes(value, "big") if len(value) == 4 else None


def _option(code: int, value: bytes) -> bytes:
    parts = [value[at : at + 255] for at in range(0, len(value), 255)] or [b""]  # a long one is several
    return b"".join([bytes([code, len(part)]) + part for part in parts])


def decode(data: bytes) -> Message:
    """Decode a message. Raises: ValueError."""
    if len(data) < _HEADER.size:
        raise ValueError("no DHCP message: it is too short")
    op, _, size, _, xid, seconds, flags, client, yours, _, _, mac, name, file, cookie = _HEADER.unpack_from(data)
    if cookie != _COOKIE or size > 16:
        raise ValueError("no DHCP message: another cookie")
    options = _options(data[_HEADER.size :])
    overload = options.pop(OVERLOAD, b"\0")[:1]
    for bit, more in ((1, file), (2, name)):  # in this order: RFC 2131, 4.1
        if overload and overload[0] & bit:
            for code, value in _options(more).items():
                options[code] = options.get(code, b"") + value
    kind = options.pop(MESSAGE_TYPE, b"")
    if len(kind) != 1:
        raise ValueError("no DHCP message: it has no type")
    is_broadcast = bool(flags & _BROADCAST_FLAG)
    return Message(kind[0], xid, mac[:size], op == 2, is_broadcast, seconds, IPv4Address(client), IPv4Address(yours), options)


def _options(data: bytes) -> dict[int, bytes]:
    """Options by code; parts of one are joined; a truncated one is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 256
        value = data[at + 2 : at + 2 + size]
        if len(value) == size:
            found[data[at]] = found.get(data[at], b"") + value
        at += 2 + size
    return found


# ---- values of options ------------------------------------------------------------------------


def parse_address(value: bytes) -> IPv4Address | None:
    """The first address in a value."""
    return IPv4Address(value[:4]) if len(value) >= 4 else None


def is_of_a_host(address: IPv4Address) -> bool:
    """Return whether a host can have the address; any machine of a network can answer as its server."""
    return not (address.packed[0] in (0, 127) or address.packed[0] >= 224)


def parse_mask(value: bytes) -> int | None:
    """The length of the prefix of a subnet mask; None if it is none."""
    number = int.from_bytes(value, "big")
    inverted = number ^ 0xFFFFFFFF
    return 32 - inverted.bit_length() if len(value) == 4 and inverted & (inverted + 1) == 0 else None


def parse_static_routes(value: bytes) -> list[tuple[IPv4Network, IPv4Address]]:
    """Destinations, by their classes, and routers of option 33."""
    found = []
    for at in range(0, len(value) - 7, 8):
        first = value[at]
        prefix = 8 if first < 128 else 16 if first < 192 else 24
        network = IPv4Network((value[at : at + 4], prefix), strict=False)
        found.append((network, IPv4Address(value[at + 4 : at + 8])))
    return found


def parse_classless_routes(value: bytes) -> list[tuple[IPv4Network, IPv4Address]]:
    """Destinations and routers of option 121, as far as they are whole."""
    found, at = [], 0
    while at < len(value) and value[at] <= 32:
        size = (value[at] + 7) // 8
        end = at + 1 + size + 4
        if end > len(value):
            break
        network = IPv4Network((value[at + 1 : at + 1 + size].ljust(4, b"\0"), value[at]), strict=False)
        found.append((network, IPv4Address(value[end - 4 : end])))
        at = end
    return found


# ---- UDP and IP -------------------------------------------------------------------------------


def datagram(message: bytes, source: IPv4Address, target: IPv4Address) -> bytes:
    """The message in UDP in IPv4, with checksums."""
    udp = pack("!HHHH", CLIENT_PORT, SERVER_PORT, 8 + len(message), 0) + message
    pseudo = source.packed + target.packed + pack("!BBH", 0, 17, len(udp))
    checksum = _checksum(pseudo + udp) or 0xFFFF
    udp = udp[:6] + pack("!H", checksum) + udp[8:]
    head = pack("!BBHHHBBH4s4s", 0x45, 0x10, 20 + len(udp), 0, 0, 64, 17, 0, source.packed, target.packed)
    return head[:10] + pack("!H", _checksum(head)) + head[12:] + udp


def payload(packet: bytes) -> bytes | None:
    """Return the data of a UDP packet to the client's port; None: it is another packet, or a fragment.

    The checksum of UDP is not compared: a veth leaves it to hardware that there is not.
    """
    if len(packet) < 28 or packet[0] >> 4 != 4 or packet[9] != 17:
        return None
    start = (packet[0] & 15) * 4
    length, fragment = unpack_from("!H", packet, 2)[0], unpack_from("!H", packet, 6)[0] & 0x3FFF
    if start < 20 or fragment or length > len(packet) or length < start + 8:
        return None
    _, port, size = unpack_from("!HHH", packet, start)
    return packet[start + 8 : start + size] if port == CLIENT_PORT and 8 <= size <= length - start else None


def _checksum(data: bytes) -> int:
    total: int = sum(unpack_from(f"!{len(data) // 2}H", data)) + (data[-1] << 8 if len(data) % 2 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
