"""ipam/ranges.py against a model that has lists of addresses and walks them one by one, as Go does."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.errors import InvalidConfig
from cni_py.ipam.ranges import Range, RangeSet, as_address, parse_address, parse_cidr, parse_range, parse_range_sets

Address = IPv4Address | IPv6Address
NETWORKS = {4: 0x0A010200, 6: 0xFD00 << 112}
"""Network of the small ranges in these tests."""


@st.composite
def ranges(draw: st.DrawFn, version: int | None = None) -> Range:
    """A range within 64 addresses, its gateway in or near it."""
    version = version or draw(st.sampled_from([4, 6]))
    kind = IPv4Address if version == 4 else IPv6Address
    first, last = sorted(draw(st.tuples(*[st.integers(0, 63)] * 2)))
    base = NETWORKS[version]
    network = ip_network((base, (32 if version == 4 else 128) - 6))
    return Range(network, kind(base + first), kind(base + last), kind(base + draw(st.integers(0, 63))))


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """One to four ranges of one family that do not overlap, in any order."""
    version = draw(st.sampled_from([4, 6]))
    kept: list[Range] = []
    for r in draw(st.lists(ranges(version), min_size=1, max_size=4)):
        if not any(r.overlaps(other) for other in kept):
            kept.append(r)
    return RangeSet(tuple(kept))


def members(r: Range) -> list[Address]:
    return [type(r.start)(n) for n in range(int(r.start), int(r.end) + 1)]


def walk_as_go(range_set: RangeSet, last: Address | None) -> list[Address]:
    """Step by step round all ranges, beginning after ``last``, until the first step comes again."""
    ring = [(address, r) for r in range_set.ranges for address in members(r)]
    places = [address for address, _ in ring]
    begin = places.index(last) + 1 if last in places else 0
    return [address for address, r in ring[begin:] + ring[:begin] if address != r.gateway]


@given(range_sets(), st.integers(-1, 70))
def test_order_is_that_of_a_walk(range_set: RangeSet, offset: int) -> None:
    last = type(range_set.ranges[0].start)(NETWORKS[range_set.version] + offset) if offset >= 0 else None
    assert [address for _, address in range_set.candidates(last)] == walk_as_go(range_set, last)


@given(range_sets(), st.data())
def test_order_gives_each_address_once_from_any_start(range_set: RangeSet, data: st.DataObject) -> None:
    last = data.draw(st.sampled_from([address for r in range_set.ranges for address in members(r)]))
    given_ = list(range_set.candidates(last))
    allowed = {address for r in range_set.ranges for address in members(r) if address != r.gateway}
    assert sorted(map(int, (a for _, a in given_))) == sorted(map(int, allowed))
    assert all(address in r and address in range_set for r, address in given_)
    assert len(given_) == range_set.capacity()


@given(ranges(), ranges())
def test_overlap_is_symmetric_and_means_a_common_address(one: Range, other: Range) -> None:
    assert one.overlaps(other) == other.overlaps(one) == bool(set(members(one)) & set(members(other)))


@given(st.data())
def test_range_comes_back_from_its_texts(data: st.DataObject) -> None:
    r = data.draw(ranges())
    assert parse_range(str(r.subnet), str(r.start), str(r.end), str(r.gateway)) == r


@given(st.integers(0, 2**128 - 1), st.integers(0, 126), st.integers(2, 40))
def test_range_of_any_size_costs_what_is_taken_of_it(number: int, bits: int, count: int) -> None:
    network = IPv6Network((number, bits), strict=False)
    range_set = parse_range_sets([[(str(network), "", "", "")]])[0]
    first = [int(address) for _, address in islice(range_set.candidates(), count)]
    assert first == [int(network.network_address) + 2 + n for n in range(min(count, network.num_addresses - 2))]


@given(st.text() | st.from_regex(r"[0-9a-f:./%]{0,40}"))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    address = as_address(text)
    assert address is None or as_address(str(address)) == address
    for parse in (parse_address, parse_cidr, parse_range):
        try:
            parse(text)
        except InvalidConfig as error:
            assert error.msg  # noqa: PT017 — most texts are refused, not all


@given(st.integers(0, 2**32 - 1))
def test_ipv4_in_ipv6_form_is_ipv4(number: int) -> None:
    assert as_address(str(IPv6Address((0xFFFF << 32) + number))) == IPv4Address(number)


@pytest.mark.parametrize("text", ["10.1.2.3", "fd00::1"])
def test_plain_address_stays(text: str) -> None:
    assert parse_address(text) == ip_address(text)
