"""Leases in one JSON file, and which node gets which (flanneld/stores/file.py, file_watch.py, shared_file.py, lease_file.py)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from cni_py.datastore.errors import Refused, Unavailable
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Gone, LeaseTaken, PoolExhausted, shared_file
from cni_py.flanneld.stores.file import FileStore
from cni_py.flanneld.stores.lease_file import Damaged, LeaseFile
from support.waiting import until
from support.watching import Watching

SOON_SECONDS = 15.0
"""Deadline of events that take less than a second on an idle machine."""
CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}
NETWORK = NetworkConfig.parse(json.dumps(CONFIG))
IN_A_DAY = "2099-01-01T00:00:00Z"
LONG_AGO = "2020-01-01T00:00:00Z"


def node(number: int, backend_data: Any = None) -> Attributes:
    return Attributes(IPv4Address(f"192.168.123.{number}"), backend_type="host-gw", backend_data=backend_data)


def subnet(text: str) -> Subnets:
    return Subnets(IPv4Network(text))


def entry(number: int, expires: str | None = None, **keys: Any) -> dict[str, Any]:
    return {"PublicIP": f"192.168.123.{number}"} | ({"Expires": expires} if expires else {}) | keys


class LeasesFile:
    """The file, and a store on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.put({})
        self.store = FileStore(str(path), "node1")
        self._stores: dict[Any, FileStore] = {}

    def put(self, leases: dict[str, Any], **keys: Any) -> None:
        self.path.write_text(json.dumps({"config": CONFIG, "leases": leases} | keys))

    def leases(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())["leases"]
        return found

    def acquire(self, attributes: Attributes, previous: str = "") -> Lease:
        """Every node has a store of its own, the first one ``store``: an address that changes would be the same node's."""
        other = FileStore(str(self.path), "node") if self._stores else self.store
        store = self._stores.setdefault(attributes.public_ip, other)
        return store.acquire(NETWORK, attributes, subnet(previous) if previous else None)


@pytest.fixture
def file(tmp_path: Path) -> LeasesFile:
    return LeasesFile(tmp_path / "leases.json")


class Log:
    """Standard error until now."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd, self._text = capfd, ""

    @property
    def text(self) -> str:
        self._text += self._capfd.readouterr().err
        return self._text


# A node's subnet


def test_new_node_gets_a_free_subnet_and_the_file_says_it_as_etcd_would(file: LeasesFile) -> None:
    lease = file.acquire(node(11, {"VNI": 1}))
    assert lease.subnets.ipv4 is not None
    assert lease.subnets.ipv4.subnet_of(IPv4Network("10.244.0.0/16"))
    (key, value), *rest = file.leases().items()
    assert not rest
    assert key == lease.subnets.as_key()
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(lease.expires))
    assert list(value.items()) == [
        ("PublicIP", "192.168.123.11"),
        ("PublicIPv6", None),
        ("BackendType", "host-gw"),
        ("BackendData", {"VNI": 1}),
        ("Node", "node1"),
        ("Expires", end),
    ]
    assert lease.expires == pytest.approx(time.time() + 86400, abs=5)


def test_node_keeps_its_subnet_and_what_it_publishes_is_renewed(file: LeasesFile, capfd: pytest.CaptureFixture[str]) -> None:
    file.put({"10.244.91.0-24": entry(11, IN_A_DAY, BackendData="old", Comment="rack 3")})
    lease = file.acquire(node(11), previous="10.244.5.0/24")
    assert lease.subnets == subnet("10.244.91.0/24")
    assert "Found lease (ip: 10.244.91.0/24 ipv6: ::/0) for current IP (192.168.123.11), reusing" in capfd.readouterr().err
    value = file.leases()["10.244.91.0-24"]
    assert "BackendData" not in value
    assert value["Comment"] == "rack 3"
    assert value["Expires"] != IN_A_DAY


@pytest.mark.parametrize("expires", [None, IN_A_DAY])
def test_reservation_stays_one_and_a_lease_does_not(file: LeasesFile, expires: str | None) -> None:
    file.put({"10.244.91.0-24": entry(11, expires)})
    lease = file.acquire(node(11))
    assert (lease.expires is None) == (expires is None)
    renewed = file.store.renew(lease)
    assert (renewed.expires is None) == (expires is None)
    assert (file.leases()["10.244.91.0-24"]["Expires"] is None) == (expires is None)


def test_reservation_goes_before_the_lease_which_is_given_back(file: LeasesFile) -> None:
    file.put({"10.244.5.0-24": entry(11, IN_A_DAY), "10.244.91.0-24": entry(11)})
    assert file.acquire(node(11)).subnets == subnet("10.244.91.0/24")
    assert list(file.leases()) == ["10.244.91.0-24"]


def test_previous_subnet_is_taken_where_no_node_has_it(file: LeasesFile) -> None:
    file.put({"10.244.5.0-24": entry(12, LONG_AGO)})
    assert file.acquire(node(11), previous="10.244.5.0/24").subnets == subnet("10.244.5.0/24")
    assert file.acquire(node(12), previous="10.244.5.0/24").subnets != subnet("10.244.5.0/24")
    assert file.acquire(node(13), previous="10.9.9.0/24").subnets != subnet("10.9.9.0/24")


def test_lease_that_no_longer_fits_the_network_is_given_back_and_a_reservation_is_left(file: LeasesFile) -> None:
    file.put({"10.9.1.0-24": entry(11, IN_A_DAY), "10.9.2.0-24": entry(11)})
    lease = file.acquire(node(11))
    assert sorted(file.leases()) == sorted([lease.subnets.as_key(), "10.9.2.0-24"])


def test_ended_lease_is_free_and_goes(file: LeasesFile) -> None:
    file.put({f"10.244.{number}.0-24": entry(99, LONG_AGO) for number in range(1, 256)})
    lease = file.acquire(node(11))
    assert list(file.leases()) == [lease.subnets.as_key()]


def test_full_pool_is_said(file: LeasesFile) -> None:
    file.put({f"10.244.{number}.0-24": entry(99) for number in range(1, 256)})
    with pytest.raises(PoolExhausted, match="out of subnets"):
        file.acquire(node(11))


def test_dual_stack_and_ipv6_alone(tmp_path: Path) -> None:
    both = LeasesFile(tmp_path / "both.json")
    v6 = {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
    config = NetworkConfig.parse(json.dumps(CONFIG | v6))
    attributes = replace(node(11), public_ipv6=IPv6Address("fd00::11"))
    lease = both.store.acquire(config, attributes, None)
    assert lease.subnets.ipv4
    assert lease.subnets.ipv6
    assert both.store.acquire(config, attributes, None).subnets == lease.subnets
    alone = NetworkConfig.parse(json.dumps({"EnableIPv4": False, "Backend": {"Type": "host-gw"}} | v6))
    one, two = (Attributes(public_ipv6=IPv6Address(f"fd00::{number}"), backend_type="host-gw") for number in (1, 2))
    first = both.store.acquire(alone, one, None)
    second = FileStore(str(both.path), "node2").acquire(alone, two, None)
    assert not first.subnets.overlap(second.subnets)
    assert both.store.acquire(alone, one, None).subnets == first.subnets
    assert first.subnets.as_key() in both.leases()


# Renewing


def test_lost_lease_is_made_again(file: LeasesFile) -> None:
    lease = file.acquire(node(11))
    file.put({})
    assert file.store.renew(lease).subnets == lease.subnets
    assert list(file.leases()) == [lease.subnets.as_key()]


@pytest.mark.parametrize("key", ["10.244.91.0-24", "10.244.88.0-22"])
def test_lease_in_other_hands_is_taken(file: LeasesFile, key: str) -> None:
    file.put({key: entry(12, IN_A_DAY)})
    with pytest.raises(LeaseTaken, match=r"10\.244\.91\.0/24 belongs to 192\.168\.123\.12"):
        file.store.renew(Lease(subnet("10.244.91.0/24"), node(11), 1.0))


# Many at a time


class Child:
    """A process that waits for the word, runs a function, and writes what it returns."""

    def __init__(self, function: Callable[[], object]) -> None:
        (wait, self._go), (self._answer, answer) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.read(wait, 1)
            os.write(answer, f"{function()}\n".encode())
            os._exit(0)
        os.close(wait)
        os.close(answer)

    def go(self) -> None:
        os.close(self._go)

    def answer(self) -> str:
        """ "" where it failed."""
        os.waitpid(self.pid, 0)
        try:
            return os.read(self._answer, 100).decode().strip()
        finally:
            os.close(self._answer)


def subnets_of(file: LeasesFile, number: int) -> Subnets:
    return file.acquire(node(number)).subnets


def test_twenty_processes_at_once_never_get_the_same_subnet(file: LeasesFile) -> None:
    children = [Child(partial(subnets_of, file, number)) for number in range(1, 21)]
    for child in reversed(children):  # a child has copies of the pipes of those before it
        child.go()
    answers = [child.answer() for child in children]
    assert all(answers)
    assert len(set(answers)) == 20
    assert sorted(key.replace("-", "/") for key in file.leases()) == sorted(answers)


def test_two_hundred_nodes_in_threads_never_get_the_same_subnet(file: LeasesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(shared_file, "LOCK_SECONDS", 60.0)
    found: list[Subnets] = []

    def acquire(first: int) -> None:
        stores = [FileStore(str(file.path), "node") for _ in range(50)]
        found.extend(store.acquire(NETWORK, node(number), None).subnets for number, store in enumerate(stores, first))

    threads = [threading.Thread(target=acquire, args=(first,)) for first in (0, 50, 100, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == len(file.leases()) == 200


def test_killed_while_writing_leaves_a_whole_file(file: LeasesFile) -> None:
    file.put({f"10.244.{number}.0-24": entry(200 - number, IN_A_DAY) for number in range(1, 150)})

    def renew_for_ever() -> None:
        lease = file.acquire(node(201))
        while True:
            file.store.renew(lease)

    for milliseconds in range(5, 45, 2):  # any moment will do
        child = Child(renew_for_ever)
        child.go()
        time.sleep(milliseconds / 1000)
        os.kill(child.pid, signal.SIGKILL)
        assert child.answer() == ""
        assert len(file.leases()) in (149, 150)
    file.acquire(node(250))
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["leases.json", "leases.json.lock"]


def test_lock_that_another_process_keeps_is_reported(file: LeasesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "LOCK_SECONDS", 0.1)
    with Path(f"{file.path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process has held"):
            file.acquire(node(11))
    file.acquire(node(11))


# Files that are not as they should be

BAD = [
    (b"", "it is empty"),
    (b"\n", "it is empty"),
    (b"{", "Expecting property name"),
    (b'{"config": {}, "leases": {', "Expecting property name"),
    (b"\xff\xfe\xfd", "can't decode"),
    (b"[1]", "must hold a JSON object"),
    (b"{}", '"config" is missing'),
    (b'{"config": 1}', '"config" must be an object'),
    (b'{"config": {}, "leases": []}', '"leases" must be an object'),
    (b'{"config": {}, "leases": {"10.1.1.0-24": {}, "10.1.1.0-24": {}}}', '"10.1.1.0-24" is there twice'),
    (
        b'{"config": {}, "leases": {"0.0.0.0-0&fd00::-64": {"PublicIPv6": "fd00::1"}, "0.0.0.0-0&fd00:0::-64": {"PublicIPv6": "fd00::2"}}}',
        "is there twice",
    ),
    (b"[" * 100_000, "recursion"),
    (b'{"config": ' * 100_000, "recursion"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_damaged_file_is_refused_and_left_as_it_is(file: LeasesFile, text: bytes, words: str) -> None:
    file.path.write_bytes(text)
    for call in (
        file.store.read_network_config,
        lambda: file.acquire(node(11)),
        lambda: file.store.renew(Lease(subnet("10.244.1.0/24"), node(11))),
    ):
        with pytest.raises(Refused, match=f"leases.json is damaged: .*{words}"):
            call()
    assert file.path.read_bytes() == text


def test_huge_file_is_refused(file: LeasesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "MAX_BYTES", 10_000)
    file.path.write_bytes(b" " * 10_001)
    with pytest.raises(Refused, match="larger than"):
        file.acquire(node(11))


def test_missing_file_is_said_with_what_to_make(file: LeasesFile) -> None:
    file.path.unlink()
    with pytest.raises(Refused, match=r"does not exist; create it: echo .* \| cni-py config set - -- -datastore=file:/"):
        file.store.read_network_config()
    with pytest.raises(Refused, match="does not exist"):
        file.acquire(node(11))
    file.path.mkdir()
    with pytest.raises(Unavailable, match="Is a directory"):
        file.acquire(node(11))


def test_entry_that_is_no_lease_is_kept_logged_once_and_given_to_no_node(
    file: LeasesFile, capfd: pytest.CaptureFixture[str]
) -> None:
    odd: dict[str, Any] = {
        "nonsense": 1,
        "10.244.300.0-24": entry(12),
        "10.244.1.7-24": entry(12),
        "10.244.1.0-24": {"PublicIP": "nowhere"},
        "10.244.2.0-24": [],
        "10.244.3.0-24": entry(13, "tomorrow"),
        "10.244.4.0-24": entry(13, "2099-01-01T00:00:00"),
        "10.244.5.0-24": {},
    }
    whole = {f"10.244.{number}.0-24": entry(99) for number in range(6, 255)}
    file.put(odd | whole)
    lease = file.acquire(node(11))
    assert lease.subnets == subnet("10.244.255.0/24")
    file.store.renew(lease)
    after = file.leases()
    assert all(after[key] == value for key, value in odd.items())
    log = capfd.readouterr().err
    assert all(log.count(f'ignored "{key}"') == 1 for key in odd)
    with pytest.raises(PoolExhausted):
        file.acquire(node(14), previous="10.244.1.0/24")


def test_other_keys_of_the_file_and_its_mode_are_kept(file: LeasesFile) -> None:
    file.put({}, comment="这台机器 \ud83d")
    file.path.chmod(0o640)
    file.acquire(node(11))
    assert json.loads(file.path.read_text())["comment"] == "这台机器 \ud83d"
    assert "这台机器" in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640


def test_symbolic_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    real = LeasesFile(tmp_path / "shared" / "leases.json")
    link = tmp_path / "link.json"
    link.symlink_to(real.path)
    lease = FileStore(str(link), "node1").acquire(NETWORK, node(11), None)
    assert link.is_symlink()
    assert list(real.leases()) == [lease.subnets.as_key()]


@pytest.mark.parametrize(("number", "error"), [(16, Refused), (30, Refused), (28, Unavailable), (5, Unavailable)])
def test_write_that_fails_is_explained_and_changes_nothing(
    file: LeasesFile,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: int,
    error: type[Exception],
) -> None:
    before = file.path.read_bytes()

    def fail(old: str, new: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(error, match=os.strerror(number)):
        file.acquire(node(11))
    assert file.path.read_bytes() == before
    assert not Path(f"{file.path}.tmp").exists()
    assert "Allocated lease" not in capfd.readouterr().err
    monkeypatch.undo()
    lease = file.acquire(node(11))
    assert f"Allocated lease ({lease.subnets.in_words()}) to current node (192.168.123.11)" in capfd.readouterr().err


# A file that cannot be written


def test_read_only_list_written_by_hand(file: LeasesFile) -> None:
    file.put({"10.244.1.0-24": entry(11), "10.244.2.0-24": entry(12)})
    file.path.chmod(0o444)
    before = file.path.stat()
    lease = file.acquire(node(11))
    assert lease == Lease(subnet("10.244.1.0/24"), node(11), None)
    assert file.store.renew(lease) == lease
    assert file.path.stat() == before
    assert [path.name for path in file.path.parent.iterdir()] == ["leases.json"]


def test_read_only_list_that_does_not_do_is_refused_with_what_to_write(file: LeasesFile) -> None:
    file.put({"10.244.1.0-24": entry(11), "10.244.2.0-24": entry(12, LONG_AGO)})
    file.path.chmod(0o444)
    with pytest.raises(Refused, match=r"has no subnet of this network for 192\.168\.123\.13; add"):
        file.acquire(node(13))
    with pytest.raises(Refused, match=r'"10\.244\.1\.0-24" is .*; it must be .*"BackendData":\{"VNI":1\}'):
        file.acquire(node(11, {"VNI": 1}))
    with pytest.raises(Refused, match='"Expires"'):
        file.store.renew(Lease(subnet("10.244.2.0/24"), node(12)))
    with pytest.raises(LeaseTaken, match=r"belongs to 192\.168\.123\.12"):
        file.store.renew(Lease(subnet("10.244.2.0/24"), node(11)))
    with pytest.raises(Refused, match="is missing"):
        file.store.renew(Lease(subnet("10.244.3.0/24"), node(11)))


@pytest.mark.parametrize(
    ("backend", "kind"), [({"Type": "VXLAN"}, "vxlan"), ({"type": "udp"}, ""), ({"Type": "alloc"}, ""), (None, "")]
)
def test_entry_without_a_back_end_has_that_of_the_network(backend: Any, kind: str) -> None:
    text = json.dumps({"config": {"Network": "10.244.0.0/16", "backend": backend}, "leases": {"10.244.1.0-24": entry(1)}})
    (lease,) = LeaseFile(text.encode()).leases().values()
    assert lease.attributes.backend_type == kind


# Watching


@pytest.fixture
def watcher(file: LeasesFile) -> Iterator[Watching]:
    with Watching(file.store) as watcher:
        watcher.until(lambda _: True)
        yield watcher


def test_watch_begins_with_all_leases_and_sees_changes_soon(file: LeasesFile, watcher: Watching) -> None:
    assert watcher.events == [SNAPSHOT_COMPLETE]
    for number in range(2, 6):
        began = time.monotonic()
        lease = file.acquire(node(number))
        watcher.until(lambda leases, lease=lease: lease.subnets in leases)
        assert time.monotonic() - began < SOON_SECONDS
    assert watcher.events.count(SNAPSHOT_COMPLETE) == 1


def test_watch_reports_only_what_changed(file: LeasesFile, watcher: Watching) -> None:
    first = {"10.244.1.0-24": entry(11), "10.244.2.0-24": entry(12), "10.244.3.0-24": entry(13)}
    file.put(first)
    watcher.until(lambda leases: len(leases) == 3)
    file.put({key: first[key] for key in ("10.244.1.0-24", "10.244.3.0-24")} | {"10.244.4.0-24": entry(14)})
    watcher.until(lambda leases: subnet("10.244.4.0/24") in leases)
    assert watcher.batches[-1] == [Lease(subnet("10.244.4.0/24"), node(14)), Gone(subnet("10.244.2.0/24"))]


def test_watch_reports_again_what_was_restored_at_once(file: LeasesFile, watcher: Watching) -> None:
    """Another process may write over our lease before the file is read: it looks as if nothing had been."""
    other = {"10.244.91.0-24": entry(12)}
    file.put(other)
    watcher.until(lambda leases: len(leases) == 1)
    before = len(watcher.events)
    file.store._written = Lease(subnet("10.244.91.0/24"), node(11))
    watcher.until(lambda _: len(watcher.events) > before)
    assert watcher.events[before:] == [Lease(subnet("10.244.91.0/24"), node(12))]


def test_watch_sees_two_changes_of_one_size_in_one_moment(file: LeasesFile, watcher: Watching) -> None:
    file.put({"10.244.1.0-24": entry(11)})
    watcher.until(lambda leases: len(leases) == 1)
    there = file.path.stat()
    file.put({"10.244.1.0-24": entry(12)})
    os.utime(file.path, ns=(there.st_atime_ns, there.st_mtime_ns))
    watcher.until(lambda leases: leases[subnet("10.244.1.0/24")].attributes == node(12))


def test_file_that_has_just_changed_is_not_taken_for_settled(file: LeasesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(file.path, (1.0, 1.0))
    assert file.store._file.signature() is None
    monkeypatch.setattr(shared_file, "SETTLED_SECONDS", 0.0)
    assert file.store._file.signature() == file.store._file.signature() is not None


def test_watch_says_nothing_when_nothing_changed(file: LeasesFile, watcher: Watching) -> None:
    file.path.write_text(json.dumps({"config": CONFIG, "leases": {}}, indent=4))
    file.put({"10.244.1.0-24": entry(11)})
    watcher.until(lambda leases: len(leases) == 1)
    assert len(watcher.batches) == 2


def test_watch_keeps_the_last_good_leases_of_a_damaged_file(
    file: LeasesFile, watcher: Watching, capfd: pytest.CaptureFixture[str]
) -> None:
    good = file.path.read_bytes()
    file.path.write_bytes(good[:-5])
    log = Log(capfd)
    until(lambda: "damaged" in log.text)
    file.path.write_bytes(b"")
    file.path.unlink()
    looks = watcher.stop.waits
    until(lambda: watcher.stop.waits > looks + 2, "it is looked for")
    assert watcher.events == [SNAPSHOT_COMPLETE]
    file.path.write_bytes(good)
    watcher.until(lambda _: True, after=1)
    assert watcher.events == [SNAPSHOT_COMPLETE, SNAPSHOT_COMPLETE]
    assert log.text.count("last good leases stay") == 1
    assert log.text.count("can be read again") == 1


def test_watch_of_a_file_that_comes_later(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "leases.json"
    with Watching(FileStore(str(path), "node1")) as watcher:
        log = Log(capfd)
        until(lambda: "until then nothing is done" in log.text)
        assert not watcher.sets
        LeasesFile(path)
        watcher.until(lambda leases: leases == {})
        assert watcher.events == [SNAPSHOT_COMPLETE]


def test_watch_drops_a_lease_for_good_when_it_ends(file: LeasesFile, watcher: Watching) -> None:
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    file.put({"10.244.1.0-24": entry(11, end), "10.244.2.0-24": entry(12)})
    watcher.until(lambda leases: len(leases) == 2)
    watcher.until(lambda leases: list(leases) == [subnet("10.244.2.0/24")])
    assert watcher.events[-1] == Gone(subnet("10.244.1.0/24"), is_final=True)


# The text


def test_file_has_what_was_written() -> None:
    content = LeaseFile(json.dumps({"config": CONFIG}).encode())
    lease = Lease(
        Subnets(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:1::/64")), node(1, {"VtepMAC": "12:34:56:78:9a:bc"}), 1e9
    )
    content.put(lease, "node1")
    again = LeaseFile(content.as_text())
    assert again.leases() == {lease.subnets: lease}
    assert again.config == CONFIG
    again.remove(lease.subnets)
    assert LeaseFile(again.as_text()).leases() == {}


def test_five_thousand_leases_are_read_in_time() -> None:
    leases = {
        f"10.{64 + n // 256}.{n % 256}.0-24": {"PublicIP": f"172.16.{n // 256}.{n % 256}", "Expires": IN_A_DAY}
        for n in range(5000)
    }
    text = json.dumps({"config": CONFIG, "leases": leases}).encode()
    began = time.process_time()
    assert len(LeaseFile(text).leases()) == 5000
    assert time.process_time() - began < 1.0
    assert len(text) < shared_file.MAX_BYTES / 10


def test_kinds_of_damage_are_distinguished() -> None:
    with pytest.raises(Damaged, match="empty"):
        LeaseFile(b"")
