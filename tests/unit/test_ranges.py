"""ipam/ranges.py: what ranges are accepted, and in which order addresses are given."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import islice

import pytest

from cni_py.errors import InvalidConfig
from cni_py.ipam.ranges import RangeSet, as_address, parse_address, parse_cidr, parse_range, parse_range_sets


def one_set(*ranges: tuple[str, str, str, str]) -> RangeSet:
    return parse_range_sets([ranges])[0]


def order(range_set: RangeSet, last: str = "", count: int = 1000) -> list[str]:
    return [str(address) for _, address in islice(range_set.candidates(ip_address(last) if last else None), count)]


def span(subnet: str, start: str = "", end: str = "", gateway: str = "") -> tuple[str, str, str, str]:
    return subnet, start, end, gateway


@pytest.mark.parametrize(
    "texts, start, end, gateway",
    [
        (("10.1.2.0/24",), "10.1.2.1", "10.1.2.254", "10.1.2.1"),
        (("10.1.2.0/30",), "10.1.2.1", "10.1.2.2", "10.1.2.1"),
        (("fd00::/64",), "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1"),
        (("fd00::/126",), "fd00::1", "fd00::3", "fd00::1"),
        (("10.1.2.0/24", "10.1.2.0", "10.1.2.255"), "10.1.2.0", "10.1.2.255", "10.1.2.1"),
        (("10.1.2.0/24", "10.1.2.20", "", "10.1.2.99"), "10.1.2.20", "10.1.2.254", "10.1.2.99"),
        (("10.1.2.0/24", "::ffff:10.1.2.9", "::ffff:10.1.2.11", "::ffff:10.1.2.8"), "10.1.2.9", "10.1.2.11", "10.1.2.8"),
        (("0.0.0.0/0",), "0.0.0.1", "255.255.255.254", "0.0.0.1"),
        (("10.1.2.0/24", "", "", "192.168.0.1"), "10.1.2.1", "10.1.2.254", "192.168.0.1"),
    ],
)
def test_range_fills_in_what_is_left_out(texts: tuple[str, ...], start: str, end: str, gateway: str) -> None:
    r = parse_range(*texts)
    assert (str(r.start), str(r.end), str(r.gateway)) == (start, end, gateway)


@pytest.mark.parametrize(
    "texts, words",
    [
        (("10.1.2.0/31",), "Network 10.1.2.0/31 too small to allocate from"),
        (("fd00::/127",), "Network fd00::/127 too small to allocate from"),
        (("10.1.2.3/24",), "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.2.0"),
        (("::ffff:10.1.2.0/120",), "IPNet IP and Mask version mismatch"),
        (("10.1.2.0/24", "10.1.3.1"), "RangeStart 10.1.3.1 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "", "10.1.3.1"), "RangeEnd 10.1.3.1 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "", "10.1.2.0"), "RangeEnd 10.1.2.0 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "10.1.2.9", "10.1.2.8"), "RangeStart 10.1.2.9 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "10.1.2.255"), "RangeStart 10.1.2.255 is after 10.1.2.254"),
        (("10.1.2.0/24", "fd00::1"), "RangeStart fd00::1 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "x"), "invalid IP address x"),
        (("10.1.2.0/24", "", "", "10.1.2"), "invalid IP address 10.1.2"),
        (("10.1.2.0",), "invalid CIDR address: 10.1.2.0"),
        (("10.1.2.0/255.255.255.0",), "invalid CIDR address: 10.1.2.0/255.255.255.0"),
        (("10.1.2.0/33",), "invalid CIDR address: 10.1.2.0/33"),
        (("10.1.2.0/" + "9" * 5000,), "invalid CIDR address: 10.1.2.0/999"),
        (("fe80::%eth0/64",), "invalid CIDR address: fe80::%eth0/64"),
        (("",), 'missing "subnet" of a range'),
    ],
)
def test_range_that_cannot_be_says_why(texts: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse_range(*texts)
    assert error.value.msg.startswith(words)
    assert error.value.code == 7


@pytest.mark.parametrize(
    "sets, words",
    [
        ([[]], "invalid range set 0: empty range set"),
        ([[span("10.1.2.0/24"), span("fd00::/64")]], "invalid range set 0: mixed address families"),
        (
            [[span("fd00::/64")], [span("10.1.2.0/24"), span("10.1.2.128/25")]],
            "invalid range set 1: subnets 10.1.2.1-10.1.2.254 and 10.1.2.129-10.1.2.254 overlap",
        ),
        ([[span("10.1.2.0/24")], [span("fd00::/64")], [span("10.1.2.128/25")]], "range set 0 overlaps with 2"),
    ],
)
def test_range_sets_that_cannot_be_say_why(sets: list[list[tuple[str, str, str, str]]], words: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse_range_sets(sets)
    assert error.value.msg == words


def test_order_begins_at_the_start_and_skips_the_gateway() -> None:
    assert order(one_set(span("10.1.2.0/29"))) == [f"10.1.2.{n}" for n in (2, 3, 4, 5, 6)]


def test_order_goes_on_after_the_last_address_and_ends_with_it() -> None:
    assert order(one_set(span("10.1.2.0/29")), "10.1.2.4") == [f"10.1.2.{n}" for n in (5, 6, 2, 3, 4)]


def test_order_after_the_end_goes_round() -> None:
    assert order(one_set(span("10.1.2.0/29")), "10.1.2.6") == [f"10.1.2.{n}" for n in (2, 3, 4, 5, 6)]


def test_order_goes_through_all_ranges_of_the_set() -> None:
    both = one_set(span("10.1.2.0/30"), span("10.5.0.0/24", "10.5.0.1", "10.5.0.3", "10.5.0.2"))
    assert order(both) == ["10.1.2.2", "10.5.0.1", "10.5.0.3"]
    assert order(both, "10.5.0.1") == ["10.5.0.3", "10.1.2.2", "10.5.0.1"]


@pytest.mark.parametrize("last", ["10.9.9.9", "fd00::1"])
def test_order_with_a_last_address_of_no_range_begins_at_the_start(last: str) -> None:
    assert order(one_set(span("10.1.2.0/29")), last)[0] == "10.1.2.2"


def test_order_is_lazy_for_ranges_of_any_size() -> None:
    assert order(one_set(span("fd00::/48")), "fd00::ff", 2) == ["fd00::100", "fd00::101"]
    assert order(one_set(span("::/0")), "", 1) == ["::2"]


@pytest.mark.parametrize(
    "texts, count",
    [
        (("10.1.2.0/24",), 253),
        (("10.1.2.0/24", "10.1.2.9", "10.1.2.9"), 1),
        (("10.1.2.0/24", "10.1.2.9", "10.1.2.9", "10.1.2.9"), 0),
        (("fd00::/64",), 2**64 - 2),
    ],
)
def test_capacity_is_what_can_be_given(texts: tuple[str, ...], count: int) -> None:
    assert parse_range(*texts).capacity() == count


def test_text_of_a_set_names_each_range() -> None:
    assert str(one_set(span("10.1.2.0/30"), span("10.5.0.0/30"))) == "10.1.2.1-10.1.2.2,10.5.0.1-10.5.0.2"


def test_membership_knows_families() -> None:
    low = one_set(span("::/96", "::1", "::ff", "::1"))
    assert ip_address("::5") in low
    assert ip_address("0.0.0.5") not in low


@pytest.mark.parametrize("text", ["", "x", "10.1.2", "10.01.2.3", "10.1.2.3/24", "fe80::1%eth0", "１.2.3.4", " 10.1.2.3"])
def test_address_that_is_none(text: str) -> None:
    assert as_address(text) is None
    with pytest.raises(InvalidConfig):
        parse_address(text)


def test_address_in_ipv6_form_is_the_ipv4_address() -> None:
    assert str(as_address("::ffff:10.1.2.3")) == "10.1.2.3"


def test_cidr_keeps_host_bits() -> None:
    assert str(parse_cidr("10.1.2.3/24")) == "10.1.2.3/24"
