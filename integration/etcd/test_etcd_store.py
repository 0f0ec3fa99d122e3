"""flanneld's leases in a real etcd: made, kept, lost and followed, while servers die, hang and come back.

Each test is run inside of a Host: its etcd is on that one's 127.0.0.1 and ends with it, as do gRPC's threads.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import pytest

from cni_py.datastore import etcd
from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.datastore.etcd import Etcd
from cni_py.errors import InvalidConfig
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Gone, LeaseTaken, PoolExhausted
from cni_py.flanneld.stores import etcd as etcd_store
from cni_py.flanneld.stores.etcd import EtcdStore
from cni_py.node import log as klog
from integration.etcd import servers
from integration.etcd.servers import Server
from support.namespaces import PATH, Host
from support.waiting import until
from support.watching import Watching

pytestmark = pytest.mark.netns

PING_MS = 1000
"""Seconds between gRPC's keepalive pings, in a test that would wait half a minute otherwise."""
STOPPED_SECONDS, FAILED_SECONDS = 10.0, 10.0
"""A machine may be busy; a wait for etcd, or for all of a timeout a few times, takes longer."""

PREFIX = "/coreos.com/network"
NETWORK_TEXT = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
NETWORK = NetworkConfig.parse(NETWORK_TEXT)
DUAL = NetworkConfig.parse(
    '{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}'
)
IPV6 = NetworkConfig.parse('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}')


def inside(body: Callable[..., None]) -> Callable[..., None]:
    """A test that is run in a Host of its own."""

    @functools.wraps(body)
    def test(**arguments: Any) -> None:
        if not all(shutil.which(name, path=PATH) for name in ("etcd", "etcdctl", "openssl")):
            pytest.skip("no etcd (packages etcd-server, etcd-client, openssl)")
        with Host() as host:
            host.do(functools.partial(body, **arguments))

    return test


def node(number: int, mac: str = "a6:3a:2f:6a:cd:4c") -> Attributes:
    return Attributes(IPv4Address(f"192.168.{number // 250}.{number % 250 + 1}"), None, "vxlan", {"VNI": 1, "VtepMAC": mac})


def other_than(leased: Subnets) -> Subnets:
    """A subnet of the network, where that of a lease was chosen by chance."""
    return next(subnets for subnets in map(Subnets.from_key, ("10.244.77.0-24", "10.244.79.0-24")) if subnets != leased)


def open_store(*members: Server, **options: Any) -> EtcdStore:
    return EtcdStore(Etcd([server.endpoint for server in members], timeout_seconds=3, **options), PREFIX, None)


def read(server: Server, *words: str) -> dict[str, dict[str, Any]]:
    """Leases by key, as etcdctl prints them."""
    from base64 import b64decode

    found = json.loads(server.ctl("get", "--prefix", f"{PREFIX}/subnets/", "-w", "json", *words)).get("kvs", [])
    return {b64decode(kv["key"]).decode().rpartition("/")[2]: {**kv, "value": b64decode(kv["value"]).decode()} for kv in found}


@contextmanager
def logged() -> Iterator[list[str]]:
    """Lines of the log, with their letter."""
    lines: list[str] = []
    before = klog._log
    klog._log = lambda severity, text: lines.append(f"{severity} {text}")
    try:
        yield lines
    finally:
        klog._log = before


# ---- made and found again ---------------------------------------------------------------------


@inside
def test_lease_is_what_go_writes() -> None:
    (server,) = servers.start()
    store = open_store(server)
    store.write_network_config(NETWORK_TEXT)
    assert server.ctl("get", f"{PREFIX}/config", "--print-value-only") == NETWORK_TEXT + "\n"
    assert store.read_network_config() == NETWORK_TEXT
    with logged() as log:
        lease = store.acquire(NETWORK, node(1), None)
    assert lease.subnets.ipv4 in [IPv4Network(f"10.244.{number}.0/24") for number in range(1, 101)]
    key = f"{lease.subnets.ipv4.network_address}-24"
    found = read(server)
    assert list(found) == [key]
    assert found[key]["value"] == (
        '{"PublicIP":"192.168.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"a6:3a:2f:6a:cd:4c"}}'
    )
    ttl = json.loads(server.ctl("lease", "timetolive", f"{found[key]['lease']:x}", "-w", "json"))
    assert (ttl["granted-ttl"], ttl["ttl"]) == (86400, pytest.approx(86400, abs=5))
    assert lease.expires == pytest.approx(time() + 86400, abs=5)
    assert log == [
        "I Picking subnet in range 10.244.1.0 ... 10.244.255.0",
        f"I Allocated lease (ip: {lease.subnets.ipv4} ipv6: ::/0) to current node (192.168.0.2)",
    ]


@inside
def test_no_configuration_yet() -> None:
    (server,) = servers.start()
    with pytest.raises(Refused, match="flannel config not found in etcd store"):
        open_store(server).read_network_config()


@inside
def test_own_lease_is_found_by_public_address_and_not_written_again() -> None:
    (server,) = servers.start()
    first = open_store(server).acquire(NETWORK, node(1), None)
    before = read(server)
    with logged() as log:
        again = open_store(server).acquire(NETWORK, node(1), Subnets(IPv4Network("10.244.200.0/24")))
    assert again.subnets == first.subnets
    assert read(server) == before
    assert log == [f"I Found lease (ip: {first.subnets} ipv6: ::/0) for current IP (192.168.0.2), reusing"]
    changed = open_store(server).acquire(NETWORK, node(1, "32:30:10:b7:75:6c"), None)
    assert changed.subnets == first.subnets
    assert "32:30:10:b7:75:6c" in read(server)[first.subnets.as_key()]["value"]


@inside
def test_lease_of_go_flannel_is_gone_on_with() -> None:
    """Bound to an etcd lease that ends soon, as one by hand may be."""
    (server,) = servers.start()
    lease = server.ctl("lease", "grant", "100").split()[1]
    server.ctl("put", f"{PREFIX}/subnets/10.244.91.0-24", node(1).as_json(), f"--lease={lease}")
    assert str(open_store(server).acquire(NETWORK, node(1), None).subnets) == "10.244.91.0/24"
    kv = read(server)["10.244.91.0-24"]
    assert f"{kv['lease']:x}" != lease
    server.ctl("lease", "revoke", lease)
    assert read(server)["10.244.91.0-24"] == kv


@inside
def test_previous_subnet() -> None:
    (server,) = servers.start()
    previous = Subnets(IPv4Network("10.244.200.0/24"))
    with logged() as log:
        assert open_store(server).acquire(NETWORK, node(1), previous).subnets == previous
    assert log[0] == "I Found previously leased subnet (10.244.200.0/24), reusing"
    assert open_store(server).acquire(NETWORK, node(2), previous).subnets != previous  # it is node 1's
    with logged() as log:
        open_store(server).acquire(NETWORK, node(3), Subnets(IPv4Network("10.99.0.0/24")))
    assert log[0] == (
        "E Found previously leased subnet (10.99.0.0/24) that is not compatible with the Etcd network config, ignoring"
    )


@inside
def test_lease_that_does_not_fit_the_network_is_replaced() -> None:
    (server,) = servers.start()
    lease = server.ctl("lease", "grant", "100").split()[1]
    server.ctl("put", f"{PREFIX}/subnets/10.99.1.0-24", node(1).as_json(), f"--lease={lease}")
    with logged() as log:
        made = open_store(server).acquire(NETWORK, node(1), None)
    assert "but not compatible with current config, deleting" in log[0]
    assert list(read(server)) == [made.subnets.as_key()]


@inside
@pytest.mark.parametrize(
    ("config", "key", "wrong"),
    [
        (NETWORK, "10.244.7.0-24", "10.244.7.0-24&fd00:10:0:7::-64"),
        (DUAL, "10.244.7.0-24&fd00:10:0:7::-64", "10.244.7.0-24"),
        (NETWORK, "10.244.7.0-24", "10.244.6.0-23"),
    ],
)
def test_node_keeps_its_subnet_where_its_lease_was_replaced_by_one_that_does_not_fit(
    config: NetworkConfig, key: str, wrong: str
) -> None:
    """The lease that is deleted has a part of it, and takes it from no node."""
    (server,) = servers.start()
    lease = server.ctl("lease", "grant", "100").split()[1]
    server.ctl("put", f"{PREFIX}/subnets/{wrong}", node(1).as_json(), f"--lease={lease}")
    previous = Subnets.from_key(key)
    assert open_store(server).acquire(config, node(1), previous).subnets == previous
    assert list(read(server)) == [key]


@inside
def test_pool_is_exhausted_and_then_not() -> None:
    (server,) = servers.start()
    small = NetworkConfig.parse('{"Network":"10.244.0.0/28","SubnetLen":30}')
    leases = [open_store(server).acquire(small, node(number), None) for number in range(3)]
    with pytest.raises(PoolExhausted, match="out of subnets"):
        open_store(server).acquire(small, node(3), None)
    server.ctl("del", f"{PREFIX}/subnets/{leases[1].subnets.as_key()}")
    assert open_store(server).acquire(small, node(3), None).subnets == leases[1].subnets


@inside
def test_ipv6_alone() -> None:
    """Known by their IPv6 addresses: none has another's."""
    (server,) = servers.start()
    nodes = [Attributes(None, IPv6Address(f"2001:db8::{number}"), "host-gw") for number in range(1, 4)]
    leases = [open_store(server).acquire(IPV6, each, None) for each in nodes]
    assert len({lease.subnets for lease in leases}) == 3
    assert all(key.startswith("0.0.0.0-0&fd00:10:0:") for key in read(server))
    assert open_store(server).acquire(IPV6, nodes[1], None).subnets == leases[1].subnets
    assert open_store(server).renew(leases[2]).subnets == leases[2].subnets


@inside
@pytest.mark.parametrize("config", [NETWORK, DUAL], ids=["IPv4", "dual stack"])
def test_twenty_nodes_at_once(config: NetworkConfig) -> None:
    """Each a process, as nodes are: a child of this one, before it has a channel."""
    (server,) = servers.start()
    ready, go = os.pipe(), os.pipe()
    children = []
    for number in range(20):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store = open_store(server)
                os.write(ready[1], b".")
                os.read(go[0], 1)
                store.acquire(config, replace(node(number), public_ipv6=IPv6Address(f"2001:db8::{number + 1}")), None)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for _ in children:
        os.read(ready[0], 1)
    begin = monotonic()
    os.write(go[1], b"." * 20)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 20
    print(f"20 nodes: {monotonic() - begin:.2f} s")
    leased = [Subnets.from_key(key) for key in read(server)]
    assert len(leased) == 20
    assert not any(one.overlap(other) for one in leased for other in leased if one is not other)


@inside
def test_twenty_threads_at_once_and_a_pool_for_fifteen() -> None:
    (server,) = servers.start()
    small = NetworkConfig.parse('{"Network":"10.244.0.0/26","SubnetLen":30}')
    outcomes: list[Any] = [None] * 20
    barrier = threading.Barrier(20)

    def start(number: int) -> None:
        store = open_store(server)
        barrier.wait()
        try:
            outcomes[number] = store.acquire(small, node(number), None).subnets
        except StoreError as error:
            outcomes[number] = type(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(PoolExhausted) == 5
    assert len(set(outcomes)) == 16
    used = {kv["lease"] for kv in read(server).values()}
    assert len(json.loads(server.ctl("lease", "list", "-w", "json")).get("leases", [])) == len(used) == 15


# ---- reservations -----------------------------------------------------------------------------


@inside
def test_reservation() -> None:
    (server,) = servers.start()
    reserved = Subnets(IPv4Network("10.244.5.0/24"))
    store = open_store(server)
    former = Subnets(IPv4Network("10.244.4.0/24"))  # it has a lease, and goes over to the reservation
    assert store.acquire(NETWORK, node(1), former).subnets == former
    store.reserve(reserved, node(1).public_ip)  # type: ignore[arg-type]
    assert read(server)["10.244.5.0-24"]["value"] == '{"PublicIP":"192.168.0.2","PublicIPv6":null}'
    lease = open_store(server).acquire(NETWORK, node(1), former)
    assert (lease.subnets, lease.expires) == (reserved, None)
    kv = read(server)["10.244.5.0-24"]
    assert (kv["value"], kv.get("lease", 0)) == (node(1).as_json(), 0)
    assert open_store(server).renew(replace(lease, attributes=node(1, "32:30:10:b7:75:6c"))).expires is None
    assert "32:30:10:b7:75:6c" in read(server)["10.244.5.0-24"]["value"]
    assert read(server)["10.244.5.0-24"].get("lease", 0) == 0
    others = [open_store(server).acquire(NETWORK, node(number), reserved).subnets for number in (2, 3)]
    assert reserved not in others


@inside
def test_reserving_what_is_leased_and_releasing_it() -> None:
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    key = lease.subnets.as_key()
    with pytest.raises(LeaseTaken, match=r"is leased to 192\.168\.0\.2"):
        store.reserve(lease.subnets, IPv4Address("192.168.0.9"))
    with pytest.raises(Refused, match="is not reserved"):
        store.release(lease.subnets)
    with pytest.raises(LeaseTaken):
        store.reserve(Subnets(lease.subnets.ipv4.supernet()), IPv4Address("192.168.0.2"))  # type: ignore[union-attr]
    for _ in range(2):
        store.reserve(lease.subnets, IPv4Address("192.168.0.2"))
        assert (read(server)[key]["value"], read(server)[key].get("lease", 0)) == (node(1).as_json(), 0)
    store.release(lease.subnets)
    assert (read(server)[key]["value"], read(server)[key]["lease"] != 0) == (node(1).as_json(), True)
    with pytest.raises(Refused, match="is not reserved"):
        store.release(Subnets(IPv4Network("10.244.200.0/24")))


@inside
def test_lease_is_listed_with_its_end_and_a_reservation_without_one() -> None:
    (server,) = servers.start()
    store = open_store(server)
    leased = store.acquire(NETWORK, node(1), None).subnets
    reserved = other_than(leased)
    store.reserve(reserved, IPv4Address("192.168.0.9"))
    now = time()
    ends = {lease.subnets: lease.expires for lease in store.listed()}
    assert ends.keys() == {leased, reserved}
    assert ends[reserved] is None
    assert now + 86_300 < (ends[leased] or 0) < now + 86_500
    server.ctl("del", "/coreos.com/network/config")
    assert {lease.subnets for lease in store.listed()} == {leased, reserved}, "leases exist without a configuration, too"


@inside
def test_reservation_that_does_not_fit_the_network() -> None:
    (server,) = servers.start()
    store = open_store(server)
    store.reserve(Subnets(IPv4Network("10.99.1.0/24")), IPv4Address("192.168.0.2"))
    with pytest.raises(Refused, match=r"10\.99\.1\.0/24 is reserved for 192\.168\.0\.2, and does not fit"):
        store.acquire(NETWORK, node(1), None)
    assert list(read(server)) == ["10.99.1.0-24"]


# ---- lost -------------------------------------------------------------------------------------


@inside
@pytest.mark.parametrize("how", ["revoked", "deleted", "damaged"])
def test_lost_lease_is_made_again(how: str) -> None:
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    key = f"{PREFIX}/subnets/{lease.subnets.as_key()}"
    with Watching(store) as follower:
        follower.until(lambda leases: lease.subnets in leases)
        if how == "revoked":
            server.ctl("lease", "revoke", f"{read(server)[lease.subnets.as_key()]['lease']:x}")
        elif how == "deleted":
            server.ctl("del", key)
        else:
            server.ctl("put", key, "{")
        follower.until(lambda leases: lease.subnets not in leases)
        again = store.renew(lease)
        assert (again.subnets, again.attributes) == (lease.subnets, lease.attributes)
        assert again.expires == pytest.approx(time() + 86400, abs=5)
        follower.until(lambda leases: lease.subnets in leases)
    assert read(server)[lease.subnets.as_key()]["value"] == node(1).as_json()


@inside
def test_lease_expires_and_renewing_prevents_it() -> None:
    (server,) = servers.start()
    etcd_store.LEASE_SECONDS = 3
    kept, lost = open_store(server), open_store(server)
    renewed, left = kept.acquire(NETWORK, node(1), None), lost.acquire(NETWORK, node(2), None)
    with Watching(lost) as follower:
        follower.until(lambda leases: len(leases) == 2)

        def only_one_is_left() -> bool:
            nonlocal renewed
            before = read(server)[renewed.subnets.as_key()]
            renewed = kept.renew(renewed)
            assert read(server)[renewed.subnets.as_key()] == before  # no node gets an event of it
            return list(follower.sets[-1]) == [renewed.subnets]

        until(only_one_is_left, "the lease that is not renewed, which is the later one, ends")
        assert follower.batches[1:] == [[Gone(left.subnets)]]
        assert lost.renew(left).subnets == left.subnets
        follower.until(lambda leases: len(leases) == 2)


@inside
def test_lease_that_another_has_taken() -> None:
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    server.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    open_store(server).acquire(NETWORK, node(2), lease.subnets)
    with pytest.raises(LeaseTaken, match=r"is leased to 192\.168\.0\.3"):
        store.renew(lease)
    assert read(server)[lease.subnets.as_key()]["value"] == node(2).as_json()


@inside
def test_renewing_publishes_another_address_and_mac() -> None:
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    moved = store.renew(replace(lease, attributes=node(7, "32:30:10:b7:75:6c")))
    assert moved.subnets == lease.subnets
    assert {key: kv["value"] for key, kv in read(server).items()} == {
        lease.subnets.as_key(): node(7, "32:30:10:b7:75:6c").as_json()
    }


@inside
def test_node_that_moves_to_another_address_keeps_its_subnet() -> None:
    """The external interface has another address: the same process starts again."""
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    open_store(server).acquire(NETWORK, node(2), None)
    assert store.acquire(NETWORK, node(7), lease.subnets).subnets == lease.subnets
    assert read(server)[lease.subnets.as_key()]["value"] == node(7).as_json()
    assert len(read(server)) == 2


# ---- followed ---------------------------------------------------------------------------------


@inside
def test_watch_reports_what_changed_and_nothing_else() -> None:
    (server,) = servers.start()
    leases = [open_store(server).acquire(NETWORK, node(number), None) for number in range(3)]
    with logged() as log, Watching(open_store(server)) as follower:
        follower.until(lambda found: len(found) == 3)
        server.ctl("put", f"{PREFIX}/subnets/{leases[0].subnets.as_key()}", node(0).as_json())  # as Go renews
        server.ctl("put", f"{PREFIX}/subnets/nothing", "")
        wait_for_line(log, "/nothing")
        assert len(follower.sets) == 1
        open_store(server).acquire(NETWORK, node(3), None)
        follower.until(lambda found: len(found) == 4)
        server.ctl("put", f"{PREFIX}/subnets/{leases[0].subnets.as_key()}", node(0, "32:30:10:b7:75:6c").as_json())
        follower.until(lambda found: found[leases[0].subnets].attributes == node(0, "32:30:10:b7:75:6c"))
        server.ctl("del", f"{PREFIX}/subnets/{leases[1].subnets.as_key()}")
        follower.until(lambda found: leases[1].subnets not in found and len(found) == 3)
    assert [len(batch) for batch in follower.batches] == [4, 1, 1, 1]
    assert follower.events[3] is SNAPSHOT_COMPLETE
    assert follower.events[-1] == Gone(leases[1].subnets)


@inside
def test_bad_keys_are_ignored_and_drop_no_node() -> None:
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    taken = other_than(lease.subnets)
    with logged() as log:
        with Watching(store) as follower:
            follower.until(lambda found: len(found) == 1)
            for key, value in (
                (taken.as_key(), b"{"),
                ("x", b"{}"),
                ("10.244.78.0-99", b"{}"),
                ("", b""),
                ("\udcff\0", b"\xff"),
            ):
                for _ in range(2):
                    store._etcd.put(f"{PREFIX}/subnets/{key}", value)
            server.ctl("put", f"{PREFIX}/subnetsx", "{}")
            open_store(server).acquire(NETWORK, node(2), None)
            follower.until(lambda found: len(found) == 2)
        assert all(lease.subnets in found for found in follower.sets)
        assert store.acquire(NETWORK, node(1), None).subnets == lease.subnets
    warnings = [line for line in log if line.startswith("W")]
    assert len([line for line in warnings if f'"{PREFIX}/subnets/{taken.as_key()}"' in line]) == 2  # of two stores
    assert not [line for line in warnings if "Ignoring bad subnet node" not in line]
    assert store.acquire(NETWORK, node(3), taken).subnets != taken


@inside
def test_compaction_between_reading_and_watching() -> None:
    (server,) = servers.start()
    store = open_store(server)
    store.acquire(NETWORK, node(1), None)
    client = store._etcd
    pages = client.pages

    def and_compact(prefix: str) -> Any:
        client.pages = pages  # type: ignore[method-assign]
        found = list(pages(prefix))
        for number in (2, 3, 4):
            open_store(server).acquire(NETWORK, node(number), None)
        server.ctl("compact", str(server.status()["header"]["revision"]))
        return found

    client.pages = and_compact  # type: ignore[method-assign]
    with logged() as log, Watching(store) as follower:
        follower.until(lambda found: len(found) == 4)
        open_store(server).acquire(NETWORK, node(5), None)
        follower.until(lambda found: len(found) == 5)
    assert [len(batch) for batch in follower.batches] == [2, 4, 1]
    assert [batch[-1] is SNAPSHOT_COMPLETE for batch in follower.batches] == [True, True, False]
    assert [line for line in log if line.startswith("W")] == [
        line for line in log if "etcd watch for /coreos.com/network/subnets fell behind compaction horizon" in line
    ]


@inside
def test_compaction_while_pages_are_read() -> None:
    """The next page would be of a revision that is no longer known: all is read again."""
    (server,) = servers.start()
    for number in range(3):
        open_store(server).acquire(NETWORK, node(number), None)
    store = open_store(server)
    etcd.PAGE = 2
    client, pages = store._etcd, store._etcd.pages

    def and_compact(prefix: str) -> Any:
        client.pages = pages  # type: ignore[method-assign]
        reading = pages(prefix)
        yield next(reading)
        open_store(server).acquire(NETWORK, node(3), None)
        server.ctl("compact", str(server.status()["header"]["revision"]))
        yield from reading

    client.pages = and_compact  # type: ignore[method-assign]
    with logged() as log, Watching(store) as follower:
        follower.until(lambda found: len(found) == 4)
    assert [len(batch) for batch in follower.batches] == [5]
    assert [line for line in log if line.startswith("W")] == [line for line in log if "re-listing and resuming" in line]


@inside
def test_burst_of_5000_leases() -> None:
    """Watch while etcd is filled as fast as it goes, and then with all of them at once."""
    (server,) = servers.start()
    store = open_store(server)
    subnets = [Subnets(IPv4Network((0x0A000000 + (number << 8), 24))) for number in range(1, 5001)]
    with Watching(store) as follower:
        follower.until(lambda found: True)
        begin = monotonic()

        def fill(part: int) -> None:
            for number in range(part, 5000, 8):
                store._etcd.put(f"{PREFIX}/subnets/{subnets[number].as_key()}", node(number).as_json().encode())

        threads = [threading.Thread(target=fill, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrote = monotonic() - begin
        late = follower.until(lambda found: len(found) == 5000)
        batches = len(follower.batches)
        print(f"5,000 puts: {wrote:.1f} s; the last arrived {late * 1000:.0f} ms later; {batches} batches")
        assert len(follower.changes) == 5000, "each once"
        server.ctl("del", "--prefix", f"{PREFIX}/subnets/")
        took = follower.until(lambda found: not found)
        print(f"5,000 deleted: {took:.2f} s; {len(follower.batches) - batches} batches")
        assert len(follower.changes) == 10000


@inside
def test_5000_leases_are_read() -> None:
    (server,) = servers.start()
    store = open_store(server)
    for number in range(5000):
        key = Subnets(IPv4Network((0x0A000000 + (number << 8), 24))).as_key()
        store._etcd.put(f"{PREFIX}/subnets/{key}", node(number).as_json().encode())
    begin = monotonic()
    with Watching(open_store(server)) as follower:
        follower.until(lambda found: len(found) == 5000)
        print(f"first set of 5,000: {monotonic() - begin:.2f} s; VmRSS {memory_mib():.0f} MiB")
        big = NetworkConfig.parse('{"Network":"10.0.0.0/8"}')
        begin = monotonic()
        open_store(server).acquire(big, replace(node(6000)), None)
        print(f"acquire beside 5,000: {monotonic() - begin:.2f} s")
        follower.until(lambda found: len(found) == 5001)


def memory_mib() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


# ---- servers that die and hang -----------------------------------------------------------------


@inside
def test_values_of_any_size_are_read_in_parts_and_cost_no_other_lease() -> None:
    """A page, and the changes of an outage, may be larger than a message; one value may be. The limits are lowered here."""
    with limits(message=64 << 10, total=8 << 20):
        [server] = servers.start(options=["--max-request-bytes", "1000000"])
        store, client = open_store(server), Etcd([server.endpoint])
        put = PREFIX + "/subnets/10.244.{}.0-24"
        value = json.dumps({"PublicIP": "192.168.9.9", "BackendType": "vxlan", "x": "y" * 30_000}).encode()
        for number in range(20):
            client.put(put.format(number), value.replace(b"9.9", b"9.%d" % (number + 1)))
        client.put(put.format(7), value.replace(b"y", b"yyyy"))
        leases, _ = store._leases.read()
        assert {found.kv.key for found in leases} == {put.format(number) for number in range(20) if number != 7}
        with pytest.raises(etcd.TooLarge), client.watch(PREFIX, 1) as watch:
            for _ in watch:
                pass
        read_leases, begins = store._leases._read_leases, [([], 1)]
        store._leases._read_leases = lambda: begins.pop() if begins else read_leases()  # type: ignore[method-assign]
        with logged() as log, Watching(store) as watching:
            until(lambda: watching.sets and len(watching.sets[-1]) == 19, "all that can be read, though the watch cannot be")
            client.put(put.format(71), value)
            until(lambda: len(watching.sets[-1]) == 20, "it goes on")
        assert any("re-listing" in line for line in log)
        for number in range(100, 200):
            client.put(put.format(number), value.replace(b"y", b"yyyy"))
    with limits(message=1 << 20, total=1 << 20), pytest.raises(etcd.TooLarge, match="more than 1 MiB") as raised:
        list(Etcd([server.endpoint]).pages(PREFIX))
    command = raised.value.hint.partition("see: ")[2]
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=True, timeout=60)
    assert put.format(100) in done.stdout.split()


@contextmanager
def limits(message: int, total: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        options = dict(etcd.OPTIONS) | {"grpc.max_receive_message_length": message}
        patch.setattr(etcd, "OPTIONS", tuple(options.items()))
        patch.setattr(etcd, "MAX_TOTAL", total)
        yield


@inside
def test_server_killed_and_restarted() -> None:
    (server,) = servers.start()
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    with logged() as log:
        with Watching(store) as follower:
            follower.until(lambda found: len(found) == 1)
            server.kill()
            for call in (lambda: store.renew(lease), lambda: store.acquire(NETWORK, node(2), None), store.read_network_config):
                begin = monotonic()
                with pytest.raises(Unavailable, match="etcd cannot be used"):
                    call()
                assert monotonic() - begin < FAILED_SECONDS
            wait_for_line(log, "etcd watch channel for /coreos.com/network/subnets closed")
            server.start()
            server.wait()
            wait_for_line(log, "etcd responds again, after ")
            assert len(follower.batches) == 1, "nothing changed"
            open_store(server).acquire(NETWORK, node(2), None)
            follower.until(lambda found: len(found) == 2)
        assert store.renew(lease).subnets == lease.subnets
    assert len([line for line in log if "etcd watch channel for /coreos.com/network/subnets closed" in line]) == 1
    assert len([line for line in log if line.startswith("I etcd responds again, after ")]) == 1


@inside
def test_server_is_silent_when_following_begins() -> None:
    (server,) = servers.start()
    open_store(server).acquire(NETWORK, node(1), None)
    server.kill()
    store, asked = open_store(server), []
    pages = store._etcd.pages
    store._etcd.pages = lambda prefix: asked.append(prefix) or pages(prefix)  # type: ignore[func-returns-value, method-assign]
    with Watching(store) as follower:
        until(lambda: len(asked) > 1, "it is tried again")
        assert not follower.sets
        server.start()
        follower.until(lambda found: len(found) == 1)
    server.kill()
    asked.clear()
    with Watching(store):
        until(lambda: asked, "it is tried")
        begin = monotonic()
    assert monotonic() - begin < STOPPED_SECONDS, "stopping does not wait for etcd"


@inside
def test_server_hangs_after_a_silence_and_wakes() -> None:
    """The silence is longer than two pings, after which gRPC sends no more by default (etcd.OPTIONS)."""
    shorter = {
        "grpc.keepalive_time_ms": PING_MS,
        "grpc.keepalive_timeout_ms": PING_MS // 2,
        "grpc.http2.ping_timeout_ms": PING_MS // 2,
    }
    etcd.OPTIONS = tuple((name, shorter.get(name, value)) for name, value in etcd.OPTIONS)  # type: ignore[assignment]
    (server,) = servers.start(options=["--grpc-keepalive-min-time", f"{PING_MS // 2}ms"])
    store = open_store(server)
    lease = store.acquire(NETWORK, node(1), None)
    with logged() as log, Watching(store) as follower:
        follower.until(lambda found: len(found) == 1)
        sleep(2.5 * PING_MS / 1000)  # the silence
        server.halt()
        with pytest.raises(Unavailable):
            store.renew(lease)
        wait_for_line(log, "closed")
        server.go_on()
        wait_for_line(log, "etcd responds again, after ")
        assert store.renew(lease).subnets == lease.subnets


@inside
def test_member_lost_and_leader_changed() -> None:
    members = servers.start(3)
    used = next(member for member in members if not member.is_leader())
    others = [member for member in members if member is not used]
    store = open_store(used, *others)
    lease = store.acquire(NETWORK, node(1), None)
    with Watching(store) as follower:
        follower.until(lambda found: len(found) == 1)
        used.kill()
        assert store.renew(lease).subnets == lease.subnets
        open_store(*others).acquire(NETWORK, node(2), None)
        follower.until(lambda found: len(found) == 2)
        used.start()
        used.wait()
        leader = next(member for member in others if member.is_leader())
        leader.kill()
        begin = monotonic()
        rest = [member for member in members if member is not leader]
        again(lambda: open_store(*rest).acquire(NETWORK, node(3), None))
        assert again(lambda: store.renew(lease)).subnets == lease.subnets
        print(f"after the leader's death: {monotonic() - begin:.1f} s")
        follower.until(lambda found: len(found) == 3)
        leader.start()
        leader.wait()
        again(lambda: open_store(leader).acquire(NETWORK, node(4), None))  # gRPC may still be in a pause
        follower.until(lambda found: len(found) == 4)


def again(call: Callable[[], Lease]) -> Lease:
    """Retry, as the daemon does, while etcd is unavailable."""
    made = []

    def is_made() -> bool:
        try:
            made.append(call())
        except Unavailable:
            return False
        return True

    until(is_made, "etcd can be used again")
    return made[0]


# ---- permissions-------------------------------------------------------------------------------


@inside
def test_password() -> None:
    (server,) = servers.start(options=["--bcrypt-cost", "4"])
    server.ctl("put", f"{PREFIX}/config", NETWORK_TEXT)
    server.ctl("user", "add", "root:secret")
    server.ctl("user", "grant-role", "root", "root")
    server.ctl("role", "add", "flannel")
    server.ctl("role", "grant-permission", "flannel", "--prefix=true", "readwrite", PREFIX)
    server.ctl("user", "add", "flannel:word")
    server.ctl("user", "grant-role", "flannel", "flannel")
    server.ctl("auth", "enable")
    store = open_store(server, user="flannel", password="word")
    assert store.read_network_config() == NETWORK_TEXT
    lease = store.acquire(NETWORK, node(1), None)
    with Watching(store) as follower:
        follower.until(lambda found: len(found) == 1)
        server.kill()  # which forgets all tokens
        server.start()
        server.wait()
        assert again(lambda: store.renew(lease)).subnets == lease.subnets  # its channel may still back off
        open_store(server, user="flannel", password="word").acquire(NETWORK, node(2), None)
        follower.until(lambda found: len(found) == 2)
    with pytest.raises(Refused, match="authentication failed, invalid user ID or password") as wrong:
        open_store(server, user="flannel", password="wrong").read_network_config()
    assert "wrong" not in str(wrong.value)
    with pytest.raises(Refused, match="user name is empty"):
        open_store(server).acquire(NETWORK, node(3), None)
    other = EtcdStore(Etcd([server.endpoint], user="flannel", password="word"), "/elsewhere", None)
    with pytest.raises(Refused, match="permission denied"):
        other.acquire(NETWORK, node(3), None)
    refused = []
    pages = other._etcd.pages
    other._etcd.pages = lambda prefix: refused.append(prefix) or pages(prefix)  # type: ignore[func-returns-value, method-assign]
    with logged() as log, Watching(other) as follower:
        until(lambda: len(refused) > 3, "it is tried again and again")
        assert not follower.sets
        assert len([line for line in log if "permission denied" in line]) == 1


@inside
def test_tls() -> None:
    Path("/run/certs").mkdir()
    certs = servers.make_certificates(Path("/run/certs"))
    (server,) = servers.start(tls=certs)
    client = {"ca_path": f"{certs}/ca.pem", "cert_path": f"{certs}/client.pem", "key_path": f"{certs}/client.key"}
    store = open_store(server, **client)
    lease = store.acquire(NETWORK, node(1), None)
    with Watching(store) as follower:
        follower.until(lambda found: lease.subnets in found)
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        open_store(server, **(client | {"ca_path": f"{certs}/other.pem"})).read_network_config()
    with pytest.raises(Unavailable):
        open_store(server, ca_path=client["ca_path"]).read_network_config()
    with pytest.raises(InvalidConfig, match="TLS files cannot be used"):
        open_store(server, **(client | {"key_path": f"{certs}/server.key"}))
    with pytest.raises(InvalidConfig, match="TLS files cannot be used"):
        open_store(server, ca_path="/run/certs/none.pem")


@inside
def test_tls_certificate_has_expired() -> None:
    Path("/run/certs").mkdir()
    certs = servers.make_certificates(Path("/run/certs"), days=0)
    (server,) = servers.start(tls=certs)
    store = open_store(server, ca_path=f"{certs}/ca.pem", cert_path=f"{certs}/client.pem", key_path=f"{certs}/client.key")
    with pytest.raises(Unavailable, match="certificate has expired"):
        store.read_network_config()


@inside
def test_tls_client_certificate_expires_and_is_replaced() -> None:
    """The watch of an expired one goes on; when it breaks, the log says why it does not come back; the lease is kept."""
    Path("/run/certs").mkdir()
    directory = Path(servers.make_certificates(Path("/run/certs")))
    (server,) = servers.start(tls=str(directory))
    ends = datetime.now(UTC) + timedelta(seconds=4)
    servers.sign_until(directory, "client", ends)
    client = {"ca_path": f"{directory}/ca.pem", "cert_path": f"{directory}/client.pem", "key_path": f"{directory}/client.key"}
    store = open_store(server, **client)
    lease = store.acquire(NETWORK, node(1), None)
    with logged() as log, Watching(store) as follower:
        follower.until(lambda found: lease.subnets in found)
        sleep((ends - datetime.now(UTC)).total_seconds() + 1.5)
        assert store.renew(lease).subnets == lease.subnets
        server.kill()
        server.start()
        server.wait()
        words = (
            f'our client certificate "{directory}/client.pem" has expired, on {ends:%Y-%m-%d %H:%M:%S} UTC; put a new one there'
        )
        wait_for_line(log, words)
        with pytest.raises(Unavailable, match=re.escape(words)):
            store.renew(lease)
        servers.sign(directory, "client", days=2)
        wait_for_line(log, "etcd responds again, after ")
        assert again(lambda: store.renew(lease)).subnets == lease.subnets
    assert len([line for line in log if "has expired" in line]) <= 3, "once for each message of gRPC"
    assert any("etcd responds again" in line for line in log)


@inside
def test_tls_files_are_replaced_one_after_the_other() -> None:
    """A new CA and key: until all of them are there the log says what does not fit."""
    Path("/run/certs").mkdir()
    directory = Path(servers.make_certificates(Path("/run/certs")))
    (server,) = servers.start(tls=str(directory))
    client = {"ca_path": f"{directory}/ca.pem", "cert_path": f"{directory}/client.pem", "key_path": f"{directory}/client.key"}
    store = open_store(server, **client)
    lease = store.acquire(NETWORK, node(1), None)
    with logged() as log, Watching(store) as follower:
        follower.until(lambda found: lease.subnets in found)
        server.kill()
        Path("/run/new").mkdir()
        new = Path(servers.make_certificates(Path("/run/new")))
        for file in new.iterdir():  # elsewhere first: a moment with all of them would be one in which they fit
            if file.name != "client.key":
                (directory / file.name).write_bytes(file.read_bytes())
        server.start()
        wait_for_line(log, "etcd's TLS files cannot be used")
        (directory / "client.key").write_bytes((new / "client.key").read_bytes())
        wait_for_line(log, "etcd responds again, after ")
        assert again(lambda: store.renew(lease)).subnets == lease.subnets
    assert any("the TLS files for etcd were replaced" in line for line in log)


def wait_for_line(log: list[str], words: str) -> None:
    until(lambda: any(words in line for line in log), lambda: f"{words!r} in {log}")
