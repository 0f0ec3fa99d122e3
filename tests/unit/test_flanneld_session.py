"""What a session does when two things happen at a time (flanneld/session.py). Its back end and datastore are made of nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cni_py.errors import KernelRefused
from cni_py.flanneld import daemon, iface, saved
from cni_py.flanneld.backends import udp
from cni_py.flanneld.daemon import Daemon
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.options import Options
from cni_py.flanneld.session import Session, read_subnets, write_subnet_file

HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
EXTERNAL = ExternalInterface("eth0", 2, 1500, HERE, None, HERE, None)
OURS, THEIRS = (Subnets(IPv4Network(f"10.244.{number}.0/24")) for number in (1, 2))


def config(kind: str) -> str:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": kind}})


class Store:
    """A datastore that has our lease and never tells of any. ``meanwhile``: what happens during each renewal."""

    def __init__(self) -> None:
        self.is_watched = threading.Event()
        self.meanwhile: list[Callable[[], None]] = []

    def read_network_config(self) -> str:
        return config("alloc")

    def acquire(self, _: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        return Lease(OURS, attributes)

    def renew(self, lease: Lease) -> Lease:
        self.meanwhile.pop(0)()
        return lease

    def watch(self, stop: threading.Event) -> Iterator[Mapping[Subnets, Lease]]:
        self.is_watched.set()
        stop.wait()
        yield from ()

    def ready(self) -> None: ...

    def reconnect(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(daemon.backends, "ENDING", threading.Event())
    monkeypatch.setattr(saved, "read", lambda _: None)
    monkeypatch.setattr(iface, "find", lambda *_, **__: EXTERNAL)
    return Daemon(Options(), Store())


def test_peers_are_left_alone_where_it_is_to_stop_before_the_datastore_has_told_of_them(
    running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was told, which does not mean that there is nobody."""
    set_up: list[object] = []
    monkeypatch.setattr(Session, "set_up", lambda _, leases: set_up.append(leases))
    store: Any = running.store

    def end() -> None:
        store.is_watched.wait()
        running.status.end()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    running._run_session()
    thread.join()
    assert set_up == []


def test_lease_that_is_lost_again_while_it_is_put_back_is_put_back_again(running: Daemon) -> None:
    store: Any = running.store
    session = Session(running.options, store, running.status, config("alloc"), EXTERNAL, None, running.host_networks)
    store.meanwhile = [session.lease_lost.set, session.ended.set]
    session.lease_lost.set()
    thread = threading.Thread(target=session._renew, args=(True,), daemon=True)
    thread.start()
    thread.join(10)
    assert store.meanwhile == []
    session.close()


def test_peer_is_known_to_the_back_end_where_the_kernel_refuses_something(
    running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say, the device is away for a moment. What the kernel holds is looked at again; the back end hears of a peer once."""
    monkeypatch.setattr(udp.Backend, "attributes", lambda _: Attributes(HERE))
    session = Session(running.options, running.store, running.status, config("udp"), EXTERNAL, None, running.host_networks)
    session.lease = Lease(OURS, Attributes(HERE))

    def refuse(_: object) -> None:
        raise KernelRefused("no such device")

    monkeypatch.setattr(session, "reconciler", SimpleNamespace(want=refuse, close=session.reconciler.close))
    with pytest.raises(KernelRefused):
        session.follow({THEIRS: Lease(THEIRS, Attributes(THERE))})
    backend: Any = session.backend
    assert backend._tables[4].find(int(IPv4Address("10.244.2.9"))) == ("192.0.2.2", 8285)
    session.close()


def test_subnet_file_may_be_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_subnet_file("subnet.env", NetworkConfig.parse(config("alloc")), OURS, 1450, ip_masq=True)
    assert read_subnets("subnet.env") == OURS
