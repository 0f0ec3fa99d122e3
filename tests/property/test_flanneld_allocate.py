"""Allocation of subnets: the arithmetic against a slow model, and daemons that start at once, in every order of their steps.

The daemons are the real EtcdStore over a fake client: keys, revisions and leases in memory, linearizable as etcd is.
`integration/etcd` has the same race against the real one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from itertools import count
from random import Random
from time import process_time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni_py.datastore.etcd import KeyValue
from cni_py.flanneld import allocate
from cni_py.flanneld.lease import Attributes, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import PoolExhausted
from cni_py.flanneld.stores import etcd as etcd_store
from cni_py.flanneld.stores.etcd import EtcdStore
from cni_py.node import log as klog
from support.examples import examples

PREFIX = "/coreos.com/network"


def network(ipv4: str = "", ipv6: str = "", length4: int = 0, length6: int = 0) -> NetworkConfig:
    parts = [f'"EnableIPv4": {str(bool(ipv4)).lower()}, "EnableIPv6": {str(bool(ipv6)).lower()}']
    parts += [f'"Network": "{ipv4}", "SubnetLen": {length4}'] if ipv4 else []
    parts += [f'"IPv6Network": "{ipv6}", "IPv6SubnetLen": {length6}'] if ipv6 else []
    return NetworkConfig.parse(f'{{{", ".join(parts)}, "Backend": {{"Type": "vxlan"}}}}')


@st.composite
def networks(draw: st.DrawFn) -> NetworkConfig:
    """IPv4, IPv6 or both, from three subnets (four, of which the first is not given) to a /8."""
    family = draw(st.sampled_from(["4", "6", "46"]))
    room4, room6 = (draw(st.integers(2, 4) | st.integers(2, 20)) for _ in range(2))
    length4, length6 = draw(st.integers(28, 30)), draw(st.integers(64, 80))
    return network(
        f"10.0.0.0/{length4 - room4}" if "4" in family else "", f"fd00::/{length6 - room6}" if "6" in family else "", length4, length6
    )  # fmt: skip


# ---- arithmetic ------------------------------------------------------------------------------


SPANS = st.tuples(st.integers(0, 80), st.integers(20, 32))


@settings(max_examples=examples(75), deadline=None)
@given(room=st.integers(2, 7), length=st.integers(22, 30), spans=st.lists(SPANS, max_size=30), seed=st.integers())
def test_choice_is_one_of_the_first_hundred_free_ones(room: int, length: int, spans: list[tuple[int, int]], seed: int) -> None:
    """Leases of any size, also outside of the network, against a list of all subnets."""
    config = network(f"10.4.0.0/{length - room}", length4=length)
    size = 1 << 32 - length
    taken = [
        Subnets(IPv4Network((int(IPv4Address("10.4.0.0")) + (number - 10) * size, prefix), strict=False))
        for number, prefix in spans
    ]
    pool = [s for s in config.network.subnets(new_prefix=length) if config.subnet_min <= s.network_address <= config.subnet_max]  # type: ignore[union-attr]
    free = [s for s in pool if not any(Subnets(s).overlap(other) for other in taken)][: allocate.CANDIDATES]
    allocate.random.seed(seed)
    if free:
        chosen = allocate.free(config, taken)
        assert chosen.ipv4 in free
        assert allocate.compatible(chosen, config)
    else:
        with pytest.raises(PoolExhausted, match=f"out of subnets: none of the {len(pool)} of length {length}"):
            allocate.free(config, taken)


@given(networks())
def test_a_pool_can_be_used_up(config: NetworkConfig) -> None:
    taken: list[Subnets] = []
    smallest = min(pool.count for pool in (allocate.pool4(config), allocate.pool6(config)) if pool)
    for _ in range(min(smallest, 16)):
        subnets = allocate.free(config, taken)
        assert not any(subnets.overlap(other) for other in taken)
        taken.append(subnets)
    if smallest <= 16:
        with pytest.raises(PoolExhausted):
            allocate.free(config, taken)


def test_a_large_pool_costs_no_more() -> None:
    config = network("10.0.0.0/8", "fd00::/32", 30, 64)
    pool4, pool6 = allocate.pool4(config), allocate.pool6(config)
    assert pool4 is not None
    assert pool6 is not None
    taken = [Subnets(pool4[number], pool6[number]) for number in range(0, 10_000, 2)]
    begin = process_time()
    chosen = [allocate.free(config, taken) for _ in range(20)]
    assert process_time() - begin < 2  # 3 to 5 ms each
    assert not any(subnets.overlap(other) for subnets in chosen for other in taken)


@pytest.mark.parametrize(
    "key, fits",
    [
        ("10.4.1.0-24&fd00:0:0:1::-64", True),
        ("10.4.255.0-24&fd00:0:0:ffff::-64", True),
        ("10.4.1.0-24", False),
        ("0.0.0.0-0&fd00:0:0:1::-64", False),
        ("10.4.0.0-24&fd00:0:0:1::-64", False),
        ("10.5.1.0-24&fd00:0:0:1::-64", False),
        ("10.4.1.0-25&fd00:0:0:1::-64", False),
        ("10.4.1.0-24&fd00:0:0:1::-65", False),
        ("10.4.1.0-24&fd01:0:0:1::-64", False),
    ],
)
def test_compatible(key: str, fits: bool) -> None:
    assert allocate.compatible(Subnets.from_key(key), network("10.4.0.0/16", "fd00::/48", 24, 64)) is fits


def test_compatible_with_one_family() -> None:
    assert allocate.compatible(Subnets.from_key("10.4.1.0-24"), network("10.4.0.0/16"))
    assert not allocate.compatible(Subnets.from_key("10.4.1.0-24&fd00:0:0:1::-64"), network("10.4.0.0/16"))
    assert allocate.compatible(Subnets.from_key("0.0.0.0-0&fd00:0:0:1::-64"), network(ipv6="fd00::/48"))
    assert not allocate.compatible(Subnets.from_key("10.4.1.0-24&fd00:0:0:1::-64"), network(ipv6="fd00::/48"))


# ---- daemons that start at once -----------------------------------------------------------------


class Turns:
    """Threads that do one step at a time, in an order by chance."""

    def __init__(self, threads: int, random: Random) -> None:
        self._live, self._waiting, self._random = set(range(threads)), set[int](), random
        self._next: int | None = None
        self._change = threading.Condition()

    def wait(self, me: int) -> None:
        with self._change:
            self._waiting.add(me)
            self._choose()
            self._change.wait_for(lambda: self._next == me)
            self._waiting.discard(me)
            self._next = None

    def leave(self, me: int) -> None:
        with self._change:
            self._live.discard(me)
            self._choose()

    def _choose(self) -> None:
        if self._live and self._waiting == self._live:
            self._next = self._random.choice(sorted(self._live))
            self._change.notify_all()


class FakeEtcd:
    """One cluster, as one daemon sees it: the methods of Etcd that EtcdStore uses."""

    def __init__(self, keys: dict[str, KeyValue], revision: Iterator[int], wait: Callable[[], None]) -> None:
        self.keys, self._numbers, self._wait = keys, revision, wait

    def pages(self, prefix: str) -> Iterator[tuple[list[KeyValue], int]]:
        self._wait()
        yield [self.keys[key] for key in sorted(self.keys) if key.startswith(prefix)], next(self._numbers)

    def create(self, key: str, value: bytes, lease: int = 0, *, none_newer: tuple[str, int]) -> bool:
        self._wait()
        prefix, revision = none_newer
        if key in self.keys or any(kv.create_revision > revision for name, kv in self.keys.items() if name.startswith(prefix)):
            return False
        number = next(self._numbers)
        self.keys[key] = KeyValue(key, value, lease, number, number)
        return True

    def replace(self, key: str, value: bytes, mod_revision: int, lease: int = 0) -> bool:
        self._wait()
        if key not in self.keys or self.keys[key].mod_revision != mod_revision:
            return False
        self.keys[key] = KeyValue(key, value, lease, self.keys[key].create_revision, next(self._numbers))
        return True

    def delete(self, key: str) -> None:
        self._wait()
        self.keys.pop(key, None)

    def grant(self, seconds: int) -> int:
        return next(self._numbers)

    def revoke(self, lease: int) -> None:
        for key in [key for key, kv in self.keys.items() if kv.lease == lease]:
            del self.keys[key]

    def keep_alive_once(self, lease: int) -> int:
        return 86400


def start_at_once(configs: list[NetworkConfig], leased: list[Subnets], previous: Subnets | None, seed: int) -> list[Any]:
    """Return each daemon's result: a lease or an exception."""
    random, numbers, keys = Random(seed), count(1), dict[str, KeyValue]()
    for number, subnets in enumerate(leased):
        key = f"{PREFIX}/subnets/{subnets.as_key()}"
        keys[key] = KeyValue(key, Attributes(IPv4Address(number + 1)).as_json().encode(), 7, next(numbers), next(numbers))
    turns, got = Turns(len(configs), random), [None] * len(configs)

    def daemon(me: int) -> None:
        node = Attributes(IPv4Address(f"192.168.0.{me + 1}"), IPv6Network("2001:db8::/64")[me + 1], "host-gw")
        store = EtcdStore(FakeEtcd(keys, numbers, lambda: turns.wait(me)), PREFIX, previous)  # type: ignore[arg-type]
        try:
            got[me] = store.acquire(configs[me], node, previous)  # type: ignore[call-overload]
        except Exception as error:  # noqa: BLE001 — passed to the waiting thread
            got[me] = error  # type: ignore[call-overload]
        finally:
            turns.leave(me)

    threads = [threading.Thread(target=daemon, args=(me,)) for me in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_store, "RACE_SECONDS", (0.0, 0.0))
    for name in ("info", "warning", "error"):
        monkeypatch.setattr(klog, name, lambda text: None)


DUAL, SMALL = network("10.0.0.0/28", "fd00::/62", 30, 64), network("10.0.0.0/28", "", 30)


@settings(max_examples=examples(250), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=networks(), other=networks(), alike=st.booleans(), leases=st.integers(0, 3), keeps=st.booleans(), seed=st.integers()
)
@example(config=DUAL, other=SMALL, alike=False, leases=1, keeps=False, seed=1)
def test_two_daemons_at_once_never_get_the_same(
    config: NetworkConfig, other: NetworkConfig, alike: bool, leases: int, keeps: bool, seed: int
) -> None:
    """Two daemons differ even if one has an older configuration: other size, other family; or both have the same subnet.env."""
    leased: list[Subnets] = []
    is_small = any(pool and pool.count < 8 for kind in (config, other) for pool in (allocate.pool4(kind), allocate.pool6(kind)))
    for _ in range(0 if is_small else leases):
        leased.append(allocate.free(config, leased))
    previous = allocate.free(config, leased) if keeps else None
    got = start_at_once([config, config if alike else other], leased, previous, seed)
    subnets = [each.subnets for each in got if not isinstance(each, Exception)]
    assert all(isinstance(each, PoolExhausted) for each in got if isinstance(each, Exception)), got
    assert subnets
    for number, each in enumerate(subnets):
        assert not any(each.overlap(taken) for taken in [*leased, *subnets[:number]])


def test_five_daemons_and_a_pool_for_three() -> None:
    for seed in range(30):
        got = start_at_once([SMALL] * 5, [], None, seed)
        assert sorted(type(each).__name__ for each in got) == ["Lease"] * 3 + ["PoolExhausted"] * 2
        assert len({each.subnets for each in got if not isinstance(each, Exception)}) == 3
