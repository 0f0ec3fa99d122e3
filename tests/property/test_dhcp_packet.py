"""Messages of DHCP: what is encoded is decoded again; any bytes are a message or a ValueError; routes and masks of any form."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni_py.dhcp import packet as dhcp
from cni_py.dhcp.packet import Message, datagram, decode, payload
from support.examples import examples

ADDRESSES = st.integers(0, 0xFFFFFFFF).map(IPv4Address)
OPTIONS = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code not in (dhcp.MESSAGE_TYPE, dhcp.OVERLOAD)), st.binary(max_size=600), max_size=6
)
MESSAGES = st.builds(
    Message,
    kind=st.integers(1, 8),
    xid=st.integers(0, 0xFFFFFFFF),
    mac=st.binary(min_size=6, max_size=6),
    is_reply=st.booleans(),
    is_broadcast=st.booleans(),
    seconds=st.integers(0, 0xFFFF),
    client=ADDRESSES,
    yours=ADDRESSES,
    options=OPTIONS,
)


@settings(deadline=None)
@given(MESSAGES)
def test_message_is_decoded_as_it_was(message: Message) -> None:
    """Options of more than 255 bytes, too, which are sent in parts."""
    assert decode(message.encode()) == message


@settings(max_examples=examples(125), deadline=None)
@given(st.binary(max_size=700))
@example(b"")
@example(bytes(240))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    try:
        decode(data)
    except ValueError:
        pass


@settings(max_examples=examples(125), deadline=None)
@given(MESSAGES, st.data())
def test_damaged_message_is_another_one_or_none(message: Message, data: st.DataObject) -> None:
    whole = bytearray(message.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except ValueError:
        pass


@settings(deadline=None)
@given(MESSAGES, st.binary(max_size=50), st.binary(max_size=60))
def test_options_go_on_in_other_fields(message: Message, name: bytes, file: bytes) -> None:
    """Option 52: first in the field of the file, then in that of the server's name."""
    data = bytearray(message.encode())
    for at, value in ((108, file), (44, name)):
        field = bytes([dhcp.HOST_NAME, len(value)]) + value + bytes([dhcp.END])
        data[at : at + len(field)] = field
    found = decode(bytes(data[:240]) + bytes([dhcp.OVERLOAD, 1, 3]) + bytes(data[240:]))
    assert found.options[dhcp.HOST_NAME] == message.options.get(dhcp.HOST_NAME, b"") + file + name
    assert decode(bytes(data)) == message, "not without that option"


@settings(deadline=None)
@given(MESSAGES, ADDRESSES, ADDRESSES)
def test_datagram_to_the_servers_port_is_not_the_clients(message: Message, source: IPv4Address, target: IPv4Address) -> None:
    packet = datagram(message.encode(), source, target)
    assert payload(packet) is None
    to_client = packet[:22] + dhcp.CLIENT_PORT.to_bytes(2, "big") + packet[24:]
    assert payload(to_client) == message.encode()
    assert payload(to_client + b"padding of Ethernet") == message.encode()
    assert payload(to_client[:-1]) is None


def test_checksums_are_those_of_the_internet() -> None:
    """RFC 1071: the sum over a packet with its checksum is zero."""
    packet = datagram(b"odd", IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
    assert dhcp._checksum(packet[:20]) == 0
    pseudo = packet[12:20] + b"\0\x11" + (len(packet) - 20).to_bytes(2, "big")
    assert dhcp._checksum(pseudo + packet[20:]) == 0


@settings(max_examples=examples(125), deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_for_the_client_or_not(data: bytes) -> None:
    payload(data)
    payload(b"\x45" + data)


@settings(deadline=None)
@given(st.lists(st.tuples(ADDRESSES, st.integers(0, 32), ADDRESSES), max_size=5))
def test_classless_routes(routes: list[tuple[IPv4Address, int, IPv4Address]]) -> None:
    expected = [(IPv4Network((address, prefix), strict=False), gateway) for address, prefix, gateway in routes]
    value = b"".join(
        bytes([network.prefixlen]) + network.network_address.packed[: (network.prefixlen + 7) // 8] + gateway.packed
        for network, gateway in expected
    )
    assert dhcp.parse_classless_routes(value) == expected
    assert dhcp.parse_classless_routes(value + b"\x20\x01") == expected, "what is not whole is left out"


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_routes_of_any_bytes(value: bytes) -> None:
    dhcp.parse_classless_routes(value)
    dhcp.parse_static_routes(value)
    dhcp.parse_address(value)


def test_static_routes_have_the_masks_of_their_classes() -> None:
    value = bytes([10, 1, 2, 3, 192, 0, 2, 1, 172, 16, 5, 5, 192, 0, 2, 2, 203, 0, 113, 9, 192, 0, 2, 3])
    assert [str(network) for network, _ in dhcp.parse_static_routes(value)] == ["10.0.0.0/8", "172.16.0.0/16", "203.0.113.0/24"]


@settings(deadline=None)
@given(st.binary(min_size=4, max_size=4))
def test_mask_is_one_or_none(value: bytes) -> None:
    prefix = dhcp.parse_mask(value)
    contiguous = bin(int.from_bytes(value, "big")).removeprefix("0b").zfill(32).rstrip("0").find("0") == -1
    assert (prefix is not None) == contiguous
    if prefix is not None:
        assert IPv4Network((0, prefix)).netmask.packed == value
