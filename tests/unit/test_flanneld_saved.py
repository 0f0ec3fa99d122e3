"""Leases saved for the next boot: a line a lease, whatever happens in between (flanneld/saved.py)."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from time import time
from typing import Any

import pytest

from cni_py import files
from cni_py.flanneld import saved
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.saved import Saver
from cni_py.node.stop import Stop

CONFIG = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}})


def lease(number: int, mac: str = "02:00:00:00:00:01", expires: float | None = None) -> Lease:
    subnets = Subnets(IPv4Network(f"10.{244 + number // 256}.{number % 256}.0/24"))
    return Lease(subnets, Attributes(IPv4Address("192.0.2.1"), None, "vxlan", {"VNI": 1, "VtepMAC": mac}), expires)


class Saving:
    """A Saver, and what it saves."""

    def __init__(self, path: Path, *leases: Lease) -> None:
        self.path, self.own = path, lease(1, expires=time() + 3600)
        self.leases = {each.subnets: each for each in leases}
        self.saver = Saver(str(path), CONFIG, lambda: self.own, self.leases)

    def put(self, *leases: Lease) -> bool:
        self.leases |= {each.subnets: each for each in leases}
        self.saver.changed(each.subnets for each in leases)
        return self.saver.save()

    def drop(self, *leases: Lease) -> bool:
        for each in leases:
            del self.leases[each.subnets]
        self.saver.changed(each.subnets for each in leases)
        return self.saver.save()

    def check(self) -> None:
        """Leases that are read are those that were saved."""
        found = saved.read(str(self.path))
        assert found is not None
        assert (found.config, found.own) == (CONFIG, self.own)
        assert found.leases() == {**self.leases, self.own.subnets: self.own}


@pytest.fixture
def saving(tmp_path: Path) -> Saving:
    made = Saving(tmp_path / "lib" / "flanneld.json", lease(2), lease(3))
    assert made.saver.save()
    return made


def test_file_is_written_whole_then_line_by_line(saving: Saving) -> None:
    assert stat.S_IMODE(saving.path.stat().st_mode) == 0o600
    saving.check()
    number, lines = saving.path.stat().st_ino, saving.path.read_bytes().count(b"\n")
    assert saving.put(lease(4), lease(2, "02:00:00:00:00:02"))
    assert saving.drop(lease(3))
    assert saving.path.stat().st_ino == number
    assert saving.path.read_bytes().count(b"\n") == lines + 3
    saving.check()


def test_nothing_is_written_where_nothing_changed(saving: Saving) -> None:
    before = saving.path.stat()
    assert saving.saver.save()
    assert saving.path.stat() == before


def test_own_lease_that_was_renewed_is_a_line(saving: Saving) -> None:
    saving.own = lease(1, expires=time() + 7200)
    assert saving.saver.save()
    assert saving.path.read_text().splitlines()[-1].startswith('{"own"')
    saving.check()


def test_both_families_and_ends_are_kept(saving: Saving) -> None:
    subnets = Subnets(IPv4Network("10.244.9.0/24"), IPv6Network("fd00:1::/64"))
    saving.put(Lease(subnets, Attributes(IPv4Address("192.0.2.9"), backend_type="host-gw"), 4e9))
    saving.check()


def test_file_does_not_grow_for_ever(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "FEWEST_LINES", 20)
    sizes = set()
    for number in range(200):
        assert saving.put(lease(2, f"02:00:00:00:00:{number:02x}"))
        sizes.add(saving.path.read_bytes().count(b"\n"))
    saving.check()
    assert max(sizes) == 3 + 20


def test_file_that_another_process_deleted_replaced_or_cut_is_written_again(saving: Saving) -> None:
    saving.path.unlink()
    assert saving.put(lease(4))
    saving.check()
    saving.path.write_bytes(b"x")
    assert saving.put(lease(5))
    saving.check()
    with saving.path.open("ab") as file:
        file.write(b'{"key": "10.244.77.0-24", "value": null}\n')
    assert saving.put(lease(6))
    saving.check()
    saving.path.unlink()
    saving.path.symlink_to("/nowhere")
    assert saving.put(lease(7))
    assert not saving.path.is_symlink()
    saving.check()


@pytest.mark.parametrize("cut", range(1, 150, 7))
def test_line_that_was_cut_by_a_kill_is_as_if_it_had_not_been_written(saving: Saving, cut: int) -> None:
    before = dict(saving.leases)
    saving.put(lease(4))
    content = saving.path.read_bytes()
    assert len(content.splitlines()[-1]) > cut
    saving.path.write_bytes(content[:-cut])
    saving.leases.clear()
    saving.leases.update(before)
    saving.check()
    again = Saving(saving.path, *before.values())  # the next flanneld
    assert again.put(lease(5))
    again.check()


class Disk:
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write_all(self, fd: int, content: bytes) -> None:
        os.write(fd, content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_file_and_is_logged_once(
    saving: Saving, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = saving.path.read_bytes()
    for room in (0, 10, 100):
        monkeypatch.setattr(files, "write_all", Disk(room).write_all)
        assert not saving.put(lease(10 + room))
        assert saving.path.read_bytes() == before
    assert capfd.readouterr().err.count("the leases could not be saved for the next boot") == 1
    monkeypatch.undo()
    assert saving.saver.save()
    saving.check()


def test_full_disk_at_the_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Saving(tmp_path / "flanneld.json", lease(2))
    monkeypatch.setattr(files, "write_all", Disk(100).write_all)
    assert not made.saver.save()
    assert not made.path.exists()
    monkeypatch.undo()
    assert made.saver.save()
    made.check()


def test_what_an_earlier_version_saved_can_be_read(tmp_path: Path) -> None:
    path, own = tmp_path / "flanneld.json", lease(1)
    as_json: Any = saved._as_json
    path.write_text(json.dumps({"config": CONFIG, "own": as_json(own), "leases": [as_json(lease(2)), as_json(own)]}))
    found = saved.read(str(path))
    assert found is not None
    assert found.own == own
    assert found.leases() == {each.subnets: each for each in (own, lease(2))}


def test_damaged_line_makes_the_leases_unusable(saving: Saving, capfd: pytest.CaptureFixture[str]) -> None:
    header, *lines = saving.path.read_text().splitlines()
    saving.path.write_text("\n".join([header, "{", *lines, ""]))
    found = saved.read(str(saving.path))
    assert found is not None
    assert found.leases() is None
    assert "cannot be used" in capfd.readouterr().err


def test_thread_saves_some_time_after_a_change_and_at_the_end(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "SAVE_SECONDS", 0.05)
    stop = Stop()
    thread = threading.Thread(target=saving.saver.run, args=(stop,))
    thread.start()
    size = saving.path.stat().st_size
    saving.leases[lease(4).subnets] = lease(4)
    saving.saver.changed([lease(4).subnets])
    ends = time() + 5
    while saving.path.stat().st_size == size:
        assert time() < ends
    monkeypatch.setattr(saved, "SAVE_SECONDS", 60)
    saving.leases[lease(5).subnets] = lease(5)
    saving.saver.changed([lease(5).subnets])
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    saving.check()
