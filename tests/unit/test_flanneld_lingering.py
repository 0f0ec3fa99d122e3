"""Leases that have vanished count for a moment more (flanneld/lingering.py)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.lingering import LINGER_SECONDS, MANY, Lingering


def leases(*subnets: Subnets, kind: str = "") -> dict[Subnets, Lease]:
    return {each: Lease(each, Attributes(backend_type=kind)) for each in subnets}


A, B = (Subnets(IPv4Network(f"10.244.{number}.0/24")) for number in (1, 2))
BOTH = Subnets(A.ipv4, IPv6Network("fd00:1::/64"))


def test_vanished_lease_counts_for_a_moment() -> None:
    lingering = Lingering(leases(A, B))
    assert lingering.next_end() is None
    assert lingering.after(leases(A), 100.0) == leases(A, B)
    assert lingering.next_end() == 100.0 + LINGER_SECONDS
    assert lingering.after(leases(A), 100.0 + LINGER_SECONDS / 2) == leases(A, B)
    assert lingering.after(leases(A), 100.0 + LINGER_SECONDS) == leases(A)
    assert lingering.next_end() is None


def test_each_counts_from_its_own_end() -> None:
    lingering = Lingering(leases(A, B))
    lingering.after(leases(A), 100.0)
    assert lingering.after({}, 100.1) == leases(A, B)
    assert lingering.after({}, 100.0 + LINGER_SECONDS) == leases(A)
    assert lingering.next_end() == 100.1 + LINGER_SECONDS


def test_lease_that_is_back_is_the_new_one() -> None:
    lingering = Lingering(leases(A, B))
    lingering.after(leases(A), 100.0)
    now = leases(A) | leases(B, kind="vxlan")
    assert lingering.after(now, 100.1) == now
    assert lingering.next_end() is None
    assert lingering.after(leases(A), 100.2) == now


def test_network_that_is_planned_anew_is_followed_at_once() -> None:
    """Thousands of leases compared with thousands would take seconds."""
    former, now = ({Subnets(IPv4Network(f"10.{number}.{n}.0/24")) for n in range(256)} for number in (1, 2))
    former |= {Subnets(IPv4Network(f"10.3.{n}.0/24")) for n in range(256)}
    assert len(former) * len(now) > MANY
    lingering = Lingering(leases(*former))
    assert lingering.after(leases(*now), 100.0) == leases(*now)
    assert lingering.next_end() is None


def test_lease_of_the_same_subnet_goes_before_the_one_that_had_it() -> None:
    for later in (False, True):
        lingering = Lingering(leases(A, B))
        if later:
            assert lingering.after(leases(B), 100.0) == leases(A, B)
        assert lingering.after(leases(B, BOTH), 100.1) == leases(B, BOTH)
        assert lingering.next_end() is None
