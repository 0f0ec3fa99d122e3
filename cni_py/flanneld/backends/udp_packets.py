"""Packets of the udp back end: their family, their receiver, one hop less, and the message that no node has the address.

Pure; a packet is its bytes, from the IP header on. Where the families differ::

            hops left    checksum of the header    no node has the address
    IPv4    TTL          yes                       ICMP type 3 code 0, which quotes the header and 8 bytes
    IPv6    hop limit    no                        ICMPv6 type 1 code 0, which quotes what fits into 1280 bytes

Source: RFC 791, 792, 1071, 1122, 1624 (IPv4); RFC 8200, 4443 (IPv6).
"""

from __future__ import annotations

from struct import pack

HEADER, HEADER6 = 20, 40
"""Bytes; of IPv4 without options."""
ICMP, ICMPV6 = 1, 58
NET_UNREACHABLE, NO_ROUTE = (3, 0), (1, 0)
"""Type and code"""
ICMP_TTL = 8
MULTICAST, MULTICAST6 = 0xE0000000, 0xFF
MAX_ERROR6 = 1280
"""Bytes: what every IPv6 link carries."""
FRAGMENT, AUTHENTICATION = 44, 51
EXTENSIONS = (0, 43, FRAGMENT, AUTHENTICATION, 60)
"""Headers between IPv6's and the packet's content; 0: hop-by-hop options, 43: routing, 60: options for the receiver."""


def family_of(packet: bytes | bytearray) -> int:
    """4 or 6, if it has the header of that family, whole; else 0."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return 4 if HEADER <= (packet[0] & 15) * 4 <= len(packet) else 0
    return 6 if version == 6 and len(packet) >= HEADER6 else 0


def receiver_of(packet: bytearray) -> int:
    """The address that it is for, as a number."""
    return int.from_bytes(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40], "big")


def sender_of(packet: bytearray) -> int:
    """The address that it is from, as a number."""
    return int.from_bytes(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24], "big")


def take_hop(packet: bytearray) -> bool:
    """Take a hop as a router does; ``False``: the packet ends here. IPv4's checksum is corrected, not computed (RFC 1624)."""
    at = 8 if packet[0] >> 4 == 4 else 7
    if packet[at] <= 1:
        return False
    packet[at] -= 1
    if at == 8:
        checksum = int.from_bytes(packet[10:12], "big") + 0x100  # the 16-bit word that holds the TTL is less by 0x100
        if checksum >= 0xFFFF:  # one's complement: the carry comes back at the low end, and 0xFFFF is 0
            checksum = checksum + 1 & 0xFFFF
        packet[10:12] = checksum.to_bytes(2, "big")
    return True


def unreachable(packet: bytearray) -> bytes | None:
    """The message to the packet's sender that its receiver is not reached; ``None`` where none is due.

    None about such a message, so that no two can reply to each other forever, none about a fragment but the first, and
    none to or about what is no single host (RFC 1122 section 3.2.2, RFC 4443 section 2.4). It comes from the address that
    no node has. From the device's own, as Go sends it, the kernel takes it for forged ("martian source") and
    drops IPv4's; IPv6's is dropped by firewalls that look where an answer would go, such as firewalld.
    """
    return _unreachable4(packet) if packet[0] >> 4 == 4 else _unreachable6(packet)


def _unreachable4(packet: bytearray) -> bytes | None:
    is_later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    sender, receiver = int.from_bytes(packet[12:16], "big"), int.from_bytes(packet[16:20], "big")
    if packet[9] == ICMP or is_later_fragment or not 0 < sender < MULTICAST or receiver >= MULTICAST:
        return None
    quoted = bytes(packet[: (packet[0] & 15) * 4 + 8])  # its header and 8 bytes: there its sender finds the ports
    message = _message(NET_UNREACHABLE, quoted)
    size = HEADER + len(message)
    header = pack("!BBHHHBBHII", 0x45, 0, size, 0, 0, ICMP_TTL, ICMP, 0, receiver, sender)
    return header[:10] + checksum_of(header) + header[12:] + message


def _unreachable6(packet: bytearray) -> bytes | None:
    sender, receiver = bytes(packet[8:24]), bytes(packet[24:40])
    is_link_local = sender[0] == 0xFE and sender[1] & 0xC0 == 0x80
    if MULTICAST6 in (sender[0], receiver[0]) or not any(sender) or is_link_local or not _may_be_answered6(packet):
        return None
    quoted = bytes(packet[: MAX_ERROR6 - HEADER6 - 8])
    size = len(quoted) + 8
    message = _message(NO_ROUTE, quoted, pseudo_header=sender + receiver + pack("!II", size, ICMPV6))
    return pack("!IHBB", 6 << 28, size, ICMPV6, ICMP_TTL) + receiver + sender + message


def _may_be_answered6(packet: bytearray) -> bool:
    """Return whether behind its extension headers is the beginning of something, and no ICMPv6 error (type below 128)."""
    kind, at = packet[6], HEADER6
    while kind in EXTENSIONS:
        header = packet[at : at + 8]
        if len(header) < 8 or (kind == FRAGMENT and int.from_bytes(header[2:4], "big") >> 3):
            return False
        size = {FRAGMENT: 8, AUTHENTICATION: (header[1] + 2) * 4}.get(kind, (header[1] + 1) * 8)
        kind, at = header[0], at + size
    return kind != ICMPV6 or (at < len(packet) and packet[at] >= 128)


def _message(kind: tuple[int, int], quoted: bytes, pseudo_header: bytes = b"") -> bytes:
    """ICMP and ICMPv6 have the same form; the checksum of the latter covers the addresses too."""
    message = pack("!BBHI", *kind, 0, 0) + quoted
    return message[:2] + checksum_of(pseudo_header + message) + message[4:]


def checksum_of(data: bytes) -> bytes:
    """The internet checksum (RFC 1071): the one's complement of the sum of all 16-bit words."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
