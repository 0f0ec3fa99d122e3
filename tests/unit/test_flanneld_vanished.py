"""Leases that have vanished count for a moment more (flanneld/vanished.py)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.vanished import LINGER_SECONDS, Vanished

A, B = (Subnets(IPv4Network(f"10.244.{number}.0/24")) for number in (1, 2))
BOTH = Subnets(A.ipv4, IPv6Network("fd00:1::/64"))
SECOND = Subnets(None, IPv6Network("fd00:1::/64"))


def test_each_counts_from_its_own_end() -> None:
    vanished = Vanished()
    assert (vanished.next_end(), vanished.ended(0.0)) == (None, [])
    vanished.add(A, 100.0)
    vanished.add(B, 100.1)
    assert vanished.next_end() == 100.0 + LINGER_SECONDS
    assert vanished.ended(100.0 + LINGER_SECONDS / 2) == []
    assert vanished.ended(100.0 + LINGER_SECONDS) == [A]
    assert vanished.next_end() == 100.1 + LINGER_SECONDS
    assert vanished.ended(200.0) == [B]
    assert vanished.next_end() is None


def test_one_that_is_back_counts_no_more_and_one_that_vanishes_again_counts_from_then() -> None:
    vanished = Vanished()
    vanished.add(A, 100.0)
    vanished.discard(A)
    assert vanished.next_end() is None
    vanished.add(A, 100.0)
    vanished.add(B, 100.2)
    vanished.add(A, 100.4)
    assert vanished.ended(100.2 + LINGER_SECONDS) == [B]
    assert vanished.ended(100.4 + LINGER_SECONDS) == [A]


@pytest.mark.parametrize("gone", [A, BOTH])
@pytest.mark.parametrize(
    "new",
    [
        A,
        B,
        BOTH,
        SECOND,
        Subnets(IPv4Network("10.244.0.0/16")),
        Subnets(IPv4Network("10.244.1.128/25")),
        Subnets(IPv4Network("10.245.0.0/16")),
        Subnets(IPv4Network("10.244.2.0/23"), IPv6Network("fd00:1::/48")),
        Subnets(IPv4Network("10.244.2.0/23"), IPv6Network("fd00:2::/48")),
    ],
)
def test_those_that_have_a_part_of_a_new_lease_are_found(gone: Subnets, new: Subnets) -> None:
    vanished = Vanished()
    for each in (B, gone):
        vanished.add(each, 100.0)
    assert set(vanished.overlapping(new)) == {each for each in (B, gone) if each.overlap(new)}
    vanished.discard(gone)
    assert set(vanished.overlapping(new)) == {each for each in (B,) if each.overlap(new)}
