"""Packets as values, and the bytes on a wire as packets: pure.

A :class:`Packet` has what routing, filters and address translation look at. :func:`parse` reads a captured frame, also
through VXLAN, an IP tunnel and the quotation in an ICMP error, so that the probe is recognized wherever it is.

Source: RFC 791, 8200, 792, 4443, 7348.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_py.kernel.address import Address

ICMP, TCP, UDP = "icmp", "tcp", "udp"
PROTOCOLS = (ICMP, TCP, UDP)
HEADER = {4: 20, 6: 40}
NUMBERS = {1: ICMP, 6: TCP, 17: UDP, 58: ICMP, 4: "ipip", 41: "ipv6", 132: "sctp"}
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
_ECHO = frozenset((8, 0, 128, 129))
_REPLIES = frozenset((0, 129))
_ERRORS = {4: frozenset((3, 11, 12)), 6: frozenset((1, 2, 3, 4))}
_DEPTH = 3
TCP_RESET = 0x04


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The encapsulation of a packet: its name, and the VXLAN network identifier and inner MAC address if it has them."""

    name: str
    vni: int = 0
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet.

    Attributes:
        destination_port: of TCP and UDP; 0 for ICMP.
        size: bytes of the whole IP packet.
        inner: the packet that this one carries, with its ``tunnel``.
        is_port_known: False after a translation that chooses a source port.
        identifier: of an ICMP echo.
        source_mac: of its frame; "" where it is not known.
        vlan: the tag of its frame, 0 for none.
    """

    source: Address
    destination: Address
    protocol: str
    source_port: int = 0
    destination_port: int = 0
    size: int = 84
    dont_fragment: bool = True
    mark: int = 0
    inner: Packet | None = None
    tunnel: Tunnel | None = None
    is_port_known: bool = True
    identifier: int = 0
    is_reply: bool = field(default=False, compare=False)
    source_mac: str = field(default="", compare=False)
    vlan: int = field(default=0, compare=False)

    @property
    def version(self) -> int:
        return self.source.version

    @property
    def innermost(self) -> Packet:
        return self.inner.innermost if self.inner is not None else self

    def reversed(self) -> Packet:
        """The reply to it."""
        return replace(
            self,
            source=self.destination,
            destination=self.source,
            source_port=self.destination_port,
            destination_port=self.source_port,
            mark=0,
            is_reply=True,
            source_mac="",
            vlan=0,
        )

    def __str__(self) -> str:
        text = f"{self.end(self.source, self.source_port)} to {self.end(self.destination, self.destination_port)}"
        return f"{text}, {self.tunnel.name} ({self.inner})" if self.inner is not None and self.tunnel is not None else text

    def end(self, address: Address, port: int) -> str:
        """An address, with its port if the protocol has ports and it is known."""
        if self.protocol not in (TCP, UDP) or not port:
            return str(address)
        return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


# ---- captured frames --------------------------------------------------------------------------

REQUEST, REPLY, ERROR = "request", "reply", "error"


@dataclass(frozen=True, slots=True)
class Frame:
    """A captured packet that belongs to the probe.

    Attributes:
        kind: the probe itself, the reply to it, or an ICMP error about it.
        packet: as it was on the wire, with its encapsulation.
        error: the ICMP error in words; ``reporter``: the address that sent it.
        is_reset: the reply of a TCP port where nothing listens.
    """

    kind: str
    packet: Packet
    error: str = ""
    reporter: str = ""
    is_reset: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """Mark of the probe: a TCP sequence number, or the first bytes of the payload of ICMP and UDP."""

    protocol: str
    number: int
    destination_ports: frozenset[int] = frozenset()
    data_bytes: int = 0

    @property
    def text(self) -> bytes:
        return self.number.to_bytes(4, "big")

    @property
    def acknowledgements(self) -> tuple[bytes, ...]:
        """The acknowledgements of a SYN with this number: a closed port acknowledges its data too, an open one may not."""
        numbers = dict.fromkeys((self.number + 1, self.number + 1 + self.data_bytes))
        return tuple((number & 0xFFFFFFFF).to_bytes(4, "big") for number in numbers)

    @property
    def all(self) -> tuple[bytes, ...]:
        return (self.text, *(self.acknowledgements if self.protocol == TCP else ()))


def parse(data: bytes, hardware: int, token: Token) -> Frame | None:
    """Return the packet in a captured frame if it belongs to the probe."""
    if not any(text in data for text in token.all):
        return None
    if hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
        if len(data) < 14 or data[12:14] not in (b"\x08\x00", b"\x86\xdd"):
            return None
        data = data[14:]
    try:
        return _parse_ip(data, token, 0)
    except (IndexError, ValueError, ArithmeticError):
        return None
    except Exception as error:
        if type(error).__name__ != "error":  # struct.error: the capture, or the quotation, is cut off
            raise
        return None


def _parse_ip(data: bytes, token: Token, depth: int) -> Frame | None:
    version = data[0] >> 4
    if version not in HEADER or depth > _DEPTH:
        return None
    if version == 4:
        start, size, number = (data[0] & 15) * 4, unpack_from("!H", data, 2)[0], data[9]
        source, destination = ip_address(data[12:16]), ip_address(data[16:20])
        dont_fragment = bool(data[6] & 0x40)
    else:
        start, size, number = 40, 40 + unpack_from("!H", data, 4)[0], data[6]
        source, destination = ip_address(data[8:24]), ip_address(data[24:40])
        dont_fragment = True
    body = data[start:]
    packet = Packet(source, destination, NUMBERS.get(number, str(number)), size=size, dont_fragment=dont_fragment)
    if packet.protocol == ICMP:
        return _parse_icmp(body, packet, token, depth)
    if packet.protocol == TCP and token.protocol == TCP:
        return _parse_tcp(body, packet, token)
    if packet.protocol == UDP:
        return _parse_udp(body, packet, token, depth)
    if packet.protocol in ("ipip", "ipv6"):
        return _carried(_parse_ip(body, token, depth + 1), packet, Tunnel("IP in IP"))
    return None


def _parse_icmp(body: bytes, packet: Packet, token: Token, depth: int) -> Frame | None:
    kind, code = body[0], body[1]
    if kind in _ECHO and not (packet.version == 6 and kind < 128):
        if token.protocol != ICMP or body[8:12] != token.text:
            return None
        packet = replace(packet, identifier=unpack_from("!H", body, 4)[0])
        return Frame(REPLY if kind in _REPLIES else REQUEST, packet)
    if kind not in _ERRORS[packet.version]:
        return None
    quoted = _parse_ip(body[8:], token, depth + 1)
    if quoted is None:
        return None
    words = _words_of(packet.version, kind, code, unpack_from("!I", body, 4)[0])
    return Frame(ERROR, packet, words, str(packet.source))


def _words_of(version: int, kind: int, code: int, rest: int) -> str:
    """An ICMP error in words; ``rest``: the four bytes after its checksum, which have an MTU."""
    if (version, kind, code) == (4, 3, 4):
        return f"fragmentation needed, MTU {rest & 0xFFFF}"
    if (version, kind) == (6, 2):
        return f"packet too big, MTU {rest}"
    names = {
        (4, 3): {0: "network unreachable", 1: "host unreachable", 3: "port unreachable", 13: "prohibited by a filter"},
        (6, 1): {0: "no route", 1: "prohibited by a filter", 3: "address unreachable", 4: "port unreachable"},
        (4, 11): {0: "TTL exceeded"},
        (6, 3): {0: "hop limit exceeded"},
    }
    return names.get((version, kind), {}).get(code, f"ICMP type {kind} code {code}")


def _parse_tcp(body: bytes, packet: Packet, token: Token) -> Frame | None:
    ports = unpack_from("!HH", body)
    of = replace(packet, source_port=ports[0], destination_port=ports[1])
    if body[4:8] == token.text:
        return Frame(REQUEST, of)
    if body[8:12] in token.acknowledgements:
        return Frame(REPLY, of, is_reset=bool(body[13] & TCP_RESET))
    return None


def _parse_udp(body: bytes, packet: Packet, token: Token, depth: int) -> Frame | None:
    source_port, destination_port = unpack_from("!HH", body)
    of = replace(packet, source_port=source_port, destination_port=destination_port)
    payload = body[8:]
    if token.protocol == UDP and payload[:4] == token.text:
        return Frame(REQUEST if destination_port in token.destination_ports else REPLY, of)
    if payload[:1] == b"\x08" and len(payload) > 22:  # VXLAN with its network identifier; a frame follows
        tunnel = Tunnel(
            f"VXLAN {int.from_bytes(payload[4:7], 'big')}", int.from_bytes(payload[4:7], "big"), payload[8:14].hex(":")
        )
        if payload[20:22] in (b"\x08\x00", b"\x86\xdd"):
            return _carried(_parse_ip(payload[22:], token, depth + 1), of, tunnel)
    if payload and payload[0] >> 4 in HEADER:
        return _carried(_parse_ip(payload, token, depth + 1), of, Tunnel("UDP"))
    return None


def _carried(inner: Frame | None, outer: Packet, tunnel: Tunnel) -> Frame | None:
    return None if inner is None else replace(inner, packet=replace(outer, inner=inner.packet, tunnel=tunnel))


def offsets(token: Token, link_header: int, network_versions: tuple[int, ...] = (4, 6)) -> list[tuple[int, bytes]]:
    """Offsets from the frame's begin at which the token may be, each with the bytes there; also encapsulated and quoted."""
    found: set[tuple[int, bytes]] = set()
    for start in _starts(network_versions):
        for at, value in transport_offsets(token):
            found.add((link_header + start + at, value))
    return sorted(found)


def _starts(versions: tuple[int, ...]) -> set[int]:
    """Offsets of a transport header behind the link's header."""
    plain = {HEADER[version] for version in versions}
    carried = {outer + shell + inner for outer in plain for shell in (8 + 8 + 14, 8, 0) for inner in plain}
    quoted = {outer + 8 + inner for outer in plain for inner in plain}
    return plain | carried | quoted | {start + 8 + inner for start in carried for inner in plain}


def transport_offsets(token: Token) -> list[tuple[int, bytes]]:
    """Offsets from the transport header's begin, with the bytes there: the probe, and the reply to it."""
    if token.protocol == TCP:
        return [(4, token.text), *((8, text) for text in token.acknowledgements)]
    return [(8, token.text)]
