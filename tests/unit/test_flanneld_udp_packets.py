"""Changes of the udp back end to a packet's bytes. Checksums are held against an arithmetic of their own."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from struct import pack

import pytest

from cni_py.flanneld.backends import udp_packets as packets

UDP, TCP, ICMP, ICMPV6 = 17, 6, 1, 58
CONTENT = b"\x1b\x58\x00\x35eightbytes"[:12]


def adds_up(data: bytes | bytearray) -> bool:
    """Return whether a checksum in it is right: as one number in base 65536, all of it is a multiple of 65535."""
    return int.from_bytes(bytes(data) + b"\0" * (len(data) % 2), "big") % 0xFFFF == 0


def packet(ttl: int = 64, protocol: int = UDP, fragment: int = 0, options: bytes = b"", **ends: str) -> bytearray:
    """An IPv4 packet with a right checksum and ports in it."""
    source, target = (
        IPv4Address(ends.get(name, usual)).packed for name, usual in (("src", "10.244.1.5"), ("dst", "10.244.9.9"))
    )
    size = 20 + len(options)
    head = bytes([0x40 | size // 4, 0, 0, size + 12, 0x12, 0x34, fragment >> 8, fragment & 255, ttl, protocol, 0, 0])
    head += source + target + options
    return bytearray(head[:10] + packets.checksum_of(head) + head[12:] + CONTENT)


def packet6(kind: int = UDP, content: bytes = CONTENT, hops: int = 64, **ends: str) -> bytearray:
    """An IPv6 packet; ``kind``: of the header behind the first."""
    source, target = (
        IPv6Address(ends.get(name, usual)).packed for name, usual in (("src", "fd00:244:0:1::5"), ("dst", "fd00:244:0:9::9"))
    )
    return bytearray(pack("!IHBB", 6 << 28 | 0x12345, len(content), kind, hops) + source + target + content)


def options6(then: int, content: bytes, words: int = 0) -> bytes:
    """An extension header of 8 bytes, and of 8 more for each word."""
    return bytes([then, words]) + bytes(6 + 8 * words) + content


def fragment6(then: int, content: bytes, offset: int = 0) -> bytes:
    """``offset``: in units of 8 bytes; more fragments follow."""
    return pack("!BBHI", then, 0, offset << 3 | 1, 77) + content


# ---- what it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "family"),
    [
        (bytes(packet()), 4),
        (bytes(packet(options=bytes(40))), 4),
        (bytes(packet()[:20]), 4),
        (b"", 0),
        (bytes(packet()[:19]), 0),
        (b"\x44" + bytes(60), 0),
        (b"\x4f" + bytes(30), 0),
        (bytes(packet6()), 6),
        (bytes(packet6()[:40]), 6),
        (bytes(packet6()[:39]), 0),
        (b"\x60", 0),
        (b"\x50" + bytes(60), 0),
        (b"\x70" + bytes(60), 0),
    ],
    ids=[
        *("plain", "options", "header alone", "empty", "short", "header too small", "header cut"),
        *("IPv6", "IPv6 header alone", "IPv6 header cut", "IPv6 begins", "version 5", "version 7"),
    ],
)
def test_family_of_a_whole_header(data: bytes, family: int) -> None:
    assert packets.family_of(data) == family
    assert packets.family_of(bytearray(data)) == family


def test_receiver() -> None:
    assert packets.receiver_of(packet(dst="10.244.7.1")) == int(IPv4Address("10.244.7.1"))
    assert packets.receiver_of(packet6(dst="fd00:244:0:7::1")) == int(IPv6Address("fd00:244:0:7::1"))


# ---- one hop less -----------------------------------------------------------------------------


def test_ttl_is_less_by_one_and_the_checksum_right_for_every_value() -> None:
    for identification in range(0, 0x10000, 0x11):
        for ttl in (2, 64, 255):
            data = packet(ttl)
            data[4:6] = identification.to_bytes(2, "big")
            data[10:12] = b"\0\0"
            data[10:12] = packets.checksum_of(bytes(data[:20]))
            assert packets.take_hop(data)
            assert data[8] == ttl - 1
            assert adds_up(data[:20])
            assert data[10:12] != b"\xff\xff"  # of two zeros of one's complement the one that is computed


@pytest.mark.parametrize("hops", [2, 64, 255])
def test_hop_limit_is_less_by_one_and_nothing_else_changes(hops: int) -> None:
    data = packet6(hops=hops)
    assert packets.take_hop(data)
    assert data == packet6(hops=hops - 1)


@pytest.mark.parametrize("data", [packet(0), packet(1), packet6(hops=0), packet6(hops=1)])
def test_packet_at_its_end_is_not_carried(data: bytearray) -> None:
    before = bytes(data)
    assert not packets.take_hop(data)
    assert data == before


# ---- no receiver ------------------------------------------------------------------------------


def test_unreachable_quotes_header_and_eight_bytes() -> None:
    data = packet(options=b"\x01" * 8)
    answer = packets.unreachable(data)
    assert answer is not None
    assert adds_up(answer[:20])
    assert (answer[0], answer[8], answer[9]) == (0x45, 8, ICMP)
    assert answer[12:20] == data[16:20] + data[12:16]
    assert answer[20:22] == b"\3\0"
    assert adds_up(answer[20:])
    assert answer[28:] == data[:36]
    assert int.from_bytes(answer[2:4], "big") == len(answer)


@pytest.mark.parametrize(
    "data",
    [
        packet(protocol=ICMP),
        packet(fragment=1),
        packet(fragment=0x2001),
        packet(dst="224.0.0.22"),
        packet(dst="255.255.255.255"),
        packet(src="0.0.0.0"),
        packet(src="224.0.0.1"),
    ],
    ids=["ICMP", "later fragment", "middle fragment", "multicast", "broadcast", "no sender", "sender is a group"],
)
def test_unreachable_is_not_sent_about(data: bytearray) -> None:
    assert packets.unreachable(data) is None


def test_unreachable_is_sent_about_a_first_fragment_and_a_packet_cut_short() -> None:
    assert packets.unreachable(packet(fragment=0x2000)) is not None
    short = packets.unreachable(packet()[:21])
    assert short is not None
    assert len(short) == 20 + 8 + 21


@pytest.mark.parametrize("size", [0, 1, 12, 1191, 1192, 1193, 1412])
def test_unreachable_of_ipv6_quotes_what_fits(size: int) -> None:
    """And its checksum covers addresses, length and protocol."""
    data = packet6(content=bytes(number & 255 for number in range(size)))
    answer = packets.unreachable(data)
    assert answer is not None
    assert len(answer) == min(40 + 8 + 40 + size, 1280)
    assert answer[:8] == pack("!IHBB", 0x60000000, len(answer) - 40, ICMPV6, 8)
    assert answer[8:40] == data[24:40] + data[8:24]
    assert answer[40:42] == b"\1\0"
    assert answer[44:48] == bytes(4)
    assert answer[48:] == data[: 1280 - 48]
    assert adds_up(answer[8:40] + pack("!II", len(answer) - 40, ICMPV6) + answer[40:])


ECHO, ERROR = b"\x80\0\0\0\0\0\0\0", b"\1\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        packet6(ICMPV6, ERROR),
        packet6(ICMPV6, b"\x7f" + bytes(7)),
        packet6(ICMPV6, b""),
        packet6(0, options6(ICMPV6, ERROR)),
        packet6(60, options6(43, options6(ICMPV6, ERROR, words=2))),
        packet6(51, bytes([ICMPV6, 4]) + bytes(22) + ERROR),
        packet6(44, fragment6(ICMPV6, ERROR)),
        packet6(44, fragment6(UDP, CONTENT, offset=1)),
        packet6(44, fragment6(UDP, CONTENT, offset=0x1FFF)),
        packet6(0, options6(44, fragment6(ICMPV6, ECHO, offset=3))),
        packet6(0, b""),
        packet6(60, options6(60, b"\0" * 7)),
        packet6(0, options6(ICMPV6, b"", words=255)),
        packet6(dst="ff02::16"),
        packet6(src="ff05::2"),
        packet6(src="::"),
        packet6(src="fe80::5"),
        packet6(src="febf::5"),
    ],
    ids=[
        *("ICMPv6 error", "last type of an error", "ICMPv6 without a type", "error behind options", "error behind a chain"),
        *("error behind authentication", "error in a first fragment", "later fragment", "last fragment of all"),
        *("later fragment behind options", "extension header missing", "extension header cut", "extension header too long"),
        *("multicast", "sender is a group", "no sender", "link-local sender", "last link-local sender"),
    ],
)
def test_unreachable_of_ipv6_is_not_sent_about(data: bytearray) -> None:
    assert packets.unreachable(data) is None


@pytest.mark.parametrize(
    "data",
    [
        packet6(TCP),
        packet6(ICMPV6, ECHO),
        packet6(0, options6(ICMPV6, ECHO, words=1)),
        packet6(60, options6(43, options6(ICMPV6, ECHO, words=2))),
        packet6(51, bytes([ICMPV6, 4]) + bytes(22) + ECHO),
        packet6(44, fragment6(UDP, CONTENT)),
        packet6(59, b""),
        packet6(src="fec0::5"),
    ],
    ids=[
        *("TCP", "ping", "ping with options", "ping with a chain", "ping with authentication"),
        *("first fragment", "nothing behind", "site-local sender"),
    ],
)
def test_unreachable_of_ipv6_is_sent_about(data: bytearray) -> None:
    answer = packets.unreachable(data)
    assert answer is not None
    assert answer[48:] == data


@pytest.mark.parametrize("data", [b"", b"\xff", b"\1\2\3", b"\xff\xff\0\1", bytes(40), bytes(range(256)) * 5, b"\xff" * 65535])
def test_checksum(data: bytes) -> None:
    """RFC 1071's checksum: with it behind the data, padded to whole words, all of it adds up."""
    assert adds_up(data + b"\0" * (len(data) % 2) + packets.checksum_of(data))


def test_checksum_of_the_known_example() -> None:
    assert packets.checksum_of(bytes.fromhex("0001f203f4f5f6f7")) == (0xFFFF - 0xDDF2).to_bytes(2, "big")  # RFC 1071, 3.


def test_checksum_of_what_linux_sends_for_no_route() -> None:
    quoted = bytes(packet6(dst="fd00:9999::9", hops=63))
    addresses = IPv6Address("fd00:244:0:9::").packed + IPv6Address("fd00:244:0:1::5").packed
    message = b"\1\0\0\0" + bytes(4) + quoted
    assert packets.checksum_of(addresses + pack("!II", len(message), ICMPV6) + message) == b"\xff\x3a"
