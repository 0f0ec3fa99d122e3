"""A session when two events happen at a time (flanneld/session.py). Its back end and datastore are made of nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.flanneld import daemon, iface, saved
from cni_py.flanneld import session as session_module
from cni_py.flanneld.daemon import Daemon
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.options import Options
from cni_py.flanneld.session import Session
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Event, Gone, LeaseTaken, PoolExhausted, Store
from cni_py.flanneld.subnet_file import SubnetFile, content_for, read_subnets
from cni_py.node import status
from cni_py.node.stop import Stop

HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
EXTERNAL = ExternalInterface("eth0", 2, 1500, HERE, None, HERE, None)
OURS, THEIRS = (Subnets(IPv4Network(f"10.244.{number}.0/24")) for number in (1, 2))


def config(kind: str) -> str:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": kind}})


class LonelyStore(Store):
    """A datastore that has our lease and never lists any. ``meanwhile``: what happens during each renewal."""

    def __init__(self) -> None:
        self.is_watched = threading.Event()
        self.meanwhile: list[Callable[[], None]] = []

    def __str__(self) -> str:
        return "nowhere"

    def read_network_config(self) -> str:
        return config("alloc")

    def acquire(self, _: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        return Lease(OURS, attributes)

    def renew(self, lease: Lease) -> Lease:
        self.meanwhile.pop(0)()
        return lease

    def watch(self, stop: Stop) -> Iterator[list[Event]]:
        self.is_watched.set()
        stop.wait()
        yield from ()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(daemon.backends, "ENDING", threading.Event())
    monkeypatch.setattr(saved, "read", lambda _: None)
    monkeypatch.setattr(iface, "find", lambda *_, **__: EXTERNAL)
    return Daemon(Options(), LonelyStore())


def test_peers_are_left_alone_where_it_is_to_stop_before_the_datastore_has_listed_them(
    running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lease was listed, which does not mean that there is none."""
    set_up: list[object] = []
    monkeypatch.setattr(Session, "set_up", lambda _, leases, **__: set_up.append(leases))
    store: Any = running.store

    def end() -> None:
        store.is_watched.wait()
        running.status.end()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    running._run_session()
    thread.join()
    assert set_up == []


KNOWN = saved.Saved(config("alloc"), Lease(OURS, Attributes(HERE)), "saved", ())


@pytest.mark.parametrize(
    ("fault", "known", "is_used"),
    [
        (Unavailable("away"), KNOWN, True),
        (Refused("forbidden"), KNOWN, True),
        (LeaseTaken("another node has it"), KNOWN, False),
        (PoolExhausted("all are taken"), KNOWN, False),
        (Unavailable("away"), None, False),
        (Unavailable("away"), replace(KNOWN, config=config("host-gw")), False),
        (Unavailable("away"), replace(KNOWN, lines=(b"{}",)), False),
        (None, KNOWN, True),
        (None, None, False),
    ],
    ids=[
        "away",
        "refused",
        "taken",
        "full",
        "nothing saved",
        "another network",
        "damaged",
        "no list",
        "no list, nothing saved",
    ],
)
def test_saved_leases_are_used_where_a_datastore_has_the_configuration_and_no_more(
    running: Daemon, monkeypatch: pytest.MonkeyPatch, fault: StoreError | None, known: saved.Saved | None, is_used: bool
) -> None:
    """Stop it with any datastore. Without a fault the lease is acquired, and the list of the others never comes."""
    set_up, store = list[tuple[Subnets, bool]](), running.store
    calls = threading.Semaphore(0)

    def acquire(_: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        calls.release()
        if fault is not None:
            raise fault
        return Lease(OURS, attributes)

    def record(_: Session, leases: Any, is_confirmed: bool) -> None:
        set_up.extend((subnets, is_confirmed) for subnets in leases)
        running.status.end()

    monkeypatch.setattr(saved, "read", lambda _: known)
    monkeypatch.setattr(store, "acquire", acquire)
    monkeypatch.setattr(Session, "set_up", record)
    monkeypatch.setattr(session_module, "LIST_SECONDS", 0.1)
    monkeypatch.setattr(status, "RETRY_SECONDS", 0.01)
    thread = threading.Thread(target=running._run_session, daemon=True)
    thread.start()
    if not is_used:
        for _ in range(1 if fault is None else 3):
            assert calls.acquire(timeout=10)
        running.status.end()
    thread.join(10)
    assert not thread.is_alive()
    assert set_up == ([(OURS, False)] if is_used else [])


def test_lease_that_is_lost_again_while_it_is_put_back_is_put_back_again(running: Daemon) -> None:
    store: Any = running.store
    session = Session(running.options, store, running.status, config("alloc"), EXTERNAL, None, running.host_networks)
    store.meanwhile = [session.own.lose, session.ended.set]
    session.own.lose()
    thread = threading.Thread(target=session.own.keep, args=(True, lambda: None), daemon=True)
    thread.start()
    thread.join(10)
    assert store.meanwhile == []
    session.close()


@pytest.mark.parametrize(
    ("events", "is_lost"),
    [
        ([Lease(OURS, Attributes(HERE)), SNAPSHOT_COMPLETE], False),
        ([Lease(THEIRS, Attributes(THERE)), SNAPSHOT_COMPLETE], True),
        ([Lease(OURS, Attributes(HERE)), SNAPSHOT_COMPLETE, Gone(OURS)], True),
        ([Lease(OURS, Attributes(HERE)), SNAPSHOT_COMPLETE, Lease(OURS, Attributes(THERE))], True),
        ([Lease(OURS, Attributes(HERE)), SNAPSHOT_COMPLETE, Gone(THEIRS), SNAPSHOT_COMPLETE], False),
    ],
    ids=["there", "missing", "gone", "changed", "still there"],
)
def test_own_lease_is_watched_in_the_events_of_the_datastore(running: Daemon, events: list[Event], is_lost: bool) -> None:
    session = Session(running.options, running.store, running.status, config("alloc"), EXTERNAL, None, running.host_networks)
    session.own.lease = Lease(OURS, Attributes(HERE))
    for event in events:
        session.own.hear([event])
    assert session.own.is_lost == is_lost
    session.close()


def test_subnet_file_may_be_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = content_for(NetworkConfig.parse(config("alloc")), OURS, 1450, ip_masq=True)
    SubnetFile("subnet.env", content, lambda _: None).write()
    assert read_subnets("subnet.env") == OURS
