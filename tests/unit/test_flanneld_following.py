"""Entries for the other nodes' leases (flanneld/following.py). The back end is host-gw's, the kernel a list of calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from time import monotonic
from typing import Any

import pytest

from cni_py.errors import KernelRefused
from cni_py.flanneld import backends, lease_events
from cni_py.flanneld.following import Following
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Event, Gone
from cni_py.flanneld.vanished import LINGER_SECONDS
from cni_py.node.desired import Desired, Entry, Route
from cni_py.node.health import Health
from cni_py.node.stop import Stop
from cni_py.node.tables import ROUTES
from support.waiting import SECONDS

HERE = IPv4Address("192.0.2.1")


def config(kind: str = "host-gw") -> NetworkConfig:
    return NetworkConfig.parse(json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": kind}}))


def lease(number: int, node: int = 0, kind: str = "host-gw", expires: float | None = None) -> Lease:
    address = IPv4Address(f"192.0.2.{node or number}")
    return Lease(Subnets(IPv4Network(f"10.244.{number}.0/24")), Attributes(address, backend_type=kind), expires)


def gone(number: int, *, is_final: bool = False) -> Gone:
    return Gone(lease(number).subnets, is_final)


OWN = lease(1)


class Kernel:
    """A stub of a reconciler: keeps what is desired, and each settle() as a list of changes."""

    def __init__(self) -> None:
        self._desired = Desired()
        self.settled: list[tuple[set[str], set[str]]] = []

    def replace(self, owner: Any, former: Any, group: Any) -> Entry | None:
        return self._desired.replace(owner, former, group)

    def settle(self) -> None:
        changes = self._desired.take_changes()
        self.settled.append((_words(changes.wanted[ROUTES]), _words(changes.dropped[ROUTES])))

    @property
    def routes(self) -> set[str]:
        return _words(self._desired.entries(ROUTES).values())


def _words(routes: Iterable[Any]) -> set[str]:
    assert all(isinstance(route, Route) for route in routes)
    return {f"{route.dst.network_address.packed[2]} via {route.gateway}" for route in routes}


class Peers:
    """A Following, and all around it."""

    def __init__(self, *leases: Lease, is_confirmed: bool = True, kind: str = "host-gw") -> None:
        self.kernel, self.changed = Kernel(), list[set[Subnets]]()
        self.host_reasons: dict[Subnets, str] = {}
        """Reasons why subnets cannot be followed on this host."""
        backend = backends.create(config(kind), ExternalInterface("eth0", 2, 1500, HERE, None, HERE, None))
        kernel: Any = self.kernel
        self.health = Health("", 0)
        self.following = Following(
            config(kind),
            lambda: OWN,
            backend,
            kernel,
            self.health,
            {},
            lambda of: self.changed.append(set(of)),
            lambda subnets: self.host_reasons.get(subnets, ""),
        )
        self.following.start({each.subnets: each for each in leases}, is_confirmed=is_confirmed)
        self.kernel.settle()
        self.backend: Any = backend

    def take(self, *events: Event, now: float = 100.0) -> tuple[set[str], set[str]]:
        """Entries that it wants and drops."""
        self.following.take(events, now)
        return self.kernel.settled[-1]


def test_lease_is_followed_from_its_begin_to_its_end() -> None:
    peers = Peers(OWN, lease(2), lease(3))
    assert peers.kernel.routes == {"2 via 192.0.2.2", "3 via 192.0.2.3"}
    assert peers.take(lease(4)) == ({"4 via 192.0.2.4"}, set())
    assert peers.take(lease(4, 9)) == ({"4 via 192.0.2.9"}, set())
    assert peers.take(gone(4, is_final=True)) == (set(), {"4 via 192.0.2.9"})
    assert set(peers.following.leases) == {lease(2).subnets, lease(3).subnets}


def test_what_says_the_same_is_no_change() -> None:
    peers = Peers(lease(2))
    assert peers.take(lease(2), OWN, SNAPSHOT_COMPLETE) == (set(), set())
    assert peers.take(lease(2, expires=1e10)) == (set(), set())
    assert peers.following.leases[lease(2).subnets].expires == 1e10, "it is saved with its end"


def test_several_events_of_one_lease_are_one_change() -> None:
    peers = Peers(lease(2))
    assert peers.take(lease(2, 7), lease(2, 8)) == ({"2 via 192.0.2.8"}, set())
    assert peers.take(lease(3), gone(3, is_final=True)) == (set(), set())
    assert peers.take(gone(2, is_final=True), lease(2, 8)) == (set(), set())


def test_lease_that_vanishes_counts_for_a_moment() -> None:
    peers = Peers(lease(2), lease(3))
    assert peers.take(gone(2), now=100.0) == (set(), set())
    assert peers.take(now=100.0 + LINGER_SECONDS / 2) == (set(), set())
    assert peers.take(now=100.0 + LINGER_SECONDS) == (set(), {"2 via 192.0.2.2"})


def test_lease_that_is_back_in_time_has_never_been_away() -> None:
    peers = Peers(lease(2))
    peers.take(gone(2), now=100.0)
    assert peers.take(lease(2), now=100.1) == (set(), set())
    assert peers.take(now=200.0) == (set(), set())
    assert peers.kernel.routes == {"2 via 192.0.2.2"}


def test_lease_that_vanished_goes_at_once_where_another_has_its_subnet() -> None:
    peers = Peers(lease(2))
    peers.take(gone(2), now=100.0)
    half = Lease(Subnets(IPv4Network("10.244.2.128/25")), Attributes(IPv4Address("192.0.2.9"), backend_type="host-gw"))
    assert peers.take(half, now=100.1) == ({"2 via 192.0.2.9"}, {"2 via 192.0.2.2"})


def test_saved_leases_count_until_the_datastore_has_listed_all() -> None:
    peers = Peers(lease(2), lease(3), is_confirmed=False)
    assert peers.take(lease(2), lease(4)) == ({"4 via 192.0.2.4"}, set())
    assert peers.take(SNAPSHOT_COMPLETE, now=100.0) == (set(), set())
    assert peers.take(now=100.0 + LINGER_SECONDS) == (set(), {"3 via 192.0.2.3"})
    assert peers.take(SNAPSHOT_COMPLETE, now=200.0) == (set(), set())


ELSEWHERE = Lease(Subnets(IPv4Network("10.9.0.0/24")), Attributes(IPv4Address("192.0.2.9"), backend_type="host-gw"))
PART = Lease(Subnets(IPv4Network("10.244.1.128/25")), Attributes(IPv4Address("192.0.2.9"), backend_type="host-gw"))
LINK_LOCAL = Lease(
    Subnets(IPv4Network("10.244.9.0/24")), Attributes(public_ipv6=IPv6Address("fe80::9"), backend_type="host-gw")
)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lease(5, 1), "192.0.2.1 is our own address"),
        (ELSEWHERE, "it is not in the network"),
        (PART, "it overlaps our own, 10.244.1.0/24"),
        (LINK_LOCAL, "fe80::9 is link-local, and our address is not"),
    ],
)
def test_lease_that_would_misroute_packets_is_ignored_and_logged_once(
    bad: Lease, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    peers = Peers(lease(2))
    assert [peers.take(bad), peers.take(bad, SNAPSHOT_COMPLETE)] == [(set(), set())] * 2
    assert bad.subnets not in peers.following.leases
    assert capfd.readouterr().err.count(f"ignoring the lease of {bad.subnets}: {words}") == 1
    peers.take(Gone(bad.subnets))
    peers.take(bad)
    assert capfd.readouterr().err.count(words) == 1, "it has been away"


def test_lease_that_becomes_bad_is_left_and_one_that_becomes_good_is_followed() -> None:
    peers = Peers(lease(2))
    assert peers.take(lease(2, 1)) == (set(), {"2 via 192.0.2.2"})
    assert peers.take(lease(2)) == ({"2 via 192.0.2.2"}, set())


def test_leases_are_judged_again_where_the_host_has_other_networks(capfd: pytest.CaptureFixture[str]) -> None:
    """But one that has vanished does not count again by that."""
    peers = Peers(lease(2), lease(3), lease(4))
    peers.host_reasons = {lease(2).subnets: "it overlaps eth1"}
    peers.take(gone(4), now=100.0)
    assert peers.take(lease(2), now=100.1) == (set(), set()), "nothing is new"
    peers.following.recheck()
    assert peers.take(now=100.1) == (set(), {"2 via 192.0.2.2"})
    peers.following.recheck()
    assert peers.take(now=100.1) == (set(), set())
    assert capfd.readouterr().err.count("ignoring the lease of 10.244.2.0/24: it overlaps eth1") == 1
    peers.host_reasons = {lease(3).subnets: "it overlaps eth2"}
    peers.following.recheck()
    assert peers.take(now=100.2) == ({"2 via 192.0.2.2"}, {"3 via 192.0.2.3"})
    assert peers.take(now=100.0 + LINGER_SECONDS) == (set(), {"4 via 192.0.2.4"})


def test_the_same_subnet_in_two_keys_is_the_older_node_s(capfd: pytest.CaptureFixture[str]) -> None:
    peers = Peers(lease(2))
    both = Lease(Subnets(lease(2).subnets.ipv4, None), Attributes(IPv4Address("192.0.2.9"), backend_type="host-gw"))
    other = Lease(Subnets(IPv4Network("10.244.2.0/24"), _any_ipv6()), both.attributes)
    assert peers.take(other) == (set(), set())
    assert peers.take(other) == (set(), set())
    words = f"ignoring the lease of {other.subnets}: it overlaps 10.244.2.0/24 of 192.0.2.2, whose lease is older; not reached"
    assert capfd.readouterr().err.count(words) == 1
    assert peers.take(gone(2, is_final=True)) == ({"2 via 192.0.2.9"}, set())


def aged(subnet: str, node: int, since: int) -> Lease:
    address = IPv4Address(f"192.0.2.{node}")
    return Lease(Subnets(IPv4Network(subnet)), Attributes(address, backend_type="host-gw"), since=since)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_of_leases_that_overlap_the_oldest_is_followed_whatever_comes_first(
    order: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    three = [aged("10.244.2.0/24", 2, since=5), aged("10.244.2.128/25", 3, since=6), aged("10.244.2.192/26", 4, since=7)]
    peers = Peers(lease(9))
    for number in order:
        peers.take(three[number])
    assert peers.kernel.routes == {"9 via 192.0.2.9", "2 via 192.0.2.2"}
    log = capfd.readouterr().err
    assert "ignoring the lease of 10.244.2.128/25: it overlaps 10.244.2.0/24 of 192.0.2.2, whose lease is older" in log
    assert peers.take(Gone(three[0].subnets, is_final=True)) == ({"2 via 192.0.2.3"}, {"2 via 192.0.2.2"})
    assert peers.take(Gone(three[1].subnets, is_final=True)) == ({"2 via 192.0.2.4"}, {"2 via 192.0.2.3"})
    assert peers.take(Gone(three[2].subnets, is_final=True)) == (set(), {"2 via 192.0.2.4"})
    peers.take(Gone(lease(9).subnets, is_final=True))
    of = peers.following
    kept = [of._ignored, of._younger, of._older, of._nodes, of._entries._unreached, of._followed._by_prefix]
    assert not any(kept), "it keeps nothing of deleted leases"


def test_node_that_has_a_larger_subnet_now_is_no_rival_of_itself() -> None:
    peers = Peers(aged("10.244.2.0/25", 2, since=5))
    assert peers.take(aged("10.244.2.0/24", 2, since=9)) == ({"2 via 192.0.2.2"}, set())


def test_two_nodes_with_one_public_address_are_logged(capfd: pytest.CaptureFixture[str]) -> None:
    peers = Peers(lease(2), lease(3))
    words = "the leases of 10.244.2.0/24 and 10.244.7.0/24 have one public address, 192.0.2.2"
    for _ in range(2):
        peers.take(lease(7, 2))
    assert capfd.readouterr().err.count(words) == 1
    peers.take(gone(3))
    peers.take(lease(8, 3))
    assert "have one public address" not in capfd.readouterr().err, "the node has another subnet now"


def test_odd_lease_ends_neither_the_thread_nor_another_lease(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    peers = Peers(lease(2))
    entries = peers.backend.peer_entries

    def fail_for_three(of: Lease) -> Any:
        if of.subnets == lease(3).subnets:
            raise RecursionError
        return entries(of)

    monkeypatch.setattr(peers.backend, "peer_entries", fail_for_three)
    assert peers.take(lease(3), lease(4)) == ({"4 via 192.0.2.4"}, set())
    assert "the lease of 10.244.3.0/24 could not be followed: RecursionError(); not reached" in capfd.readouterr().err


def _any_ipv6() -> Any:
    from ipaddress import IPv6Network

    return IPv6Network("fd00:1::/64")


def test_gauge_and_what_is_to_be_saved_follow() -> None:
    peers = Peers(OWN, lease(2), lease(3))
    assert "cni_py_flanneld_leases 3\n" in peers.health.answer("/metrics")[2]
    del peers.changed[:]
    peers.take(lease(4), gone(3, is_final=True))
    assert peers.changed == [{lease(3).subnets, lease(4).subnets}]


def test_back_end_is_called_and_the_kernel_settled_where_the_back_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers(lease(2))

    def refuse(*_: object) -> None:
        raise KernelRefused("no such device")

    monkeypatch.setattr(peers.backend, "follow", refuse)
    with pytest.raises(KernelRefused):
        peers.take(lease(3))
    assert peers.kernel.settled[-1] == ({"3 via 192.0.2.3"}, set())


@pytest.fixture
def running() -> Iterator[Peers]:
    """A Following whose thread runs."""
    peers, stop = Peers(lease(2)), Stop()
    thread = threading.Thread(target=peers.following.run, args=(stop,))
    thread.start()
    yield peers
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def _until(peers: Peers, count: int) -> None:
    ends = monotonic() + SECONDS
    while len(peers.kernel.settled) < count:
        assert monotonic() < ends, peers.kernel.settled


def test_single_change_is_followed_at_once_and_those_after_it_are_gathered(
    running: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_events, "GATHER_SECONDS", 3.0)
    began = monotonic()
    running.following.events.put([lease(10)])
    _until(running, 2)
    assert monotonic() - began < 2.5
    for number in range(11, 20):
        running.following.events.put([lease(number)])
    _until(running, 3)
    assert monotonic() - began > 2.5
    assert [len(wanted) for wanted, _ in running.kernel.settled] == [1, 1, 9]


def test_vanished_lease_is_dropped_when_its_time_has_come(running: Peers) -> None:
    running.following.events.put([gone(2)])
    _until(running, 3)
    assert running.kernel.settled[1:] == [(set(), set()), (set(), {"2 via 192.0.2.2"})]


def test_reservation_that_its_node_has_not_used_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    """``cni-py config reserve`` made every node warn, and the node itself."""
    peers = Peers(lease(2, kind=""), lease(5, 1, kind=""))
    assert peers.kernel.routes == set()
    log = capfd.readouterr().err
    assert "gnoring" not in log
    assert log.count("10.244.5.0/24 is reserved for this node: flanneld uses it when it starts again") == 1
