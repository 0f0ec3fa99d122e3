"""node/changes.py: a daemon's changes with what they were for; what that costs does not grow with the network."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cni_py import journal
from cni_py.explain import calls, steps
from cni_py.explain.steps import Step
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.saved import Saver
from cni_py.flanneld.subnet_file import journal_path
from cni_py.journal import note, step
from cni_py.kernel.bulk import change_many
from cni_py.node import changes
from cni_py.node.changes import MAX_LINES, because, begin_journal, finish, keep_journal
from cni_py.node.log import set_verbosity


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The journal of this process, kept by this thread."""
    monkeypatch.setattr(changes, "_file", None)
    path = tmp_path / "journal"
    begin_journal(str(path))
    keep_journal("flanneld starts")
    yield path
    journal.use(None)


def change(*words: str) -> None:
    with step(*(words or ("ip", "link", "set", "flannel.1", "up"))):
        pass


def titles(path: Path) -> list[tuple[str, int, str]]:
    """Title, number of changes and outcome of each call."""
    found = calls.read(path.read_text().split("\n")[:-1])
    return [(call.title, sum(isinstance(item, Step) for item in steps.explain(call)), call.outcome) for call in found]


def test_changes_have_what_they_were_for(file: Path) -> None:
    change()
    because("the lease of 10.1.0.0/24 is new")
    change()
    change()
    finish()
    because(lambda: "never put into words: nothing is changed" + 1 / 0)  # type: ignore[operator]
    finish()
    assert titles(file) == [("flanneld starts", 1, "done"), ("the lease of 10.1.0.0/24 is new", 2, "done")]
    assert file.stat().st_mode & 0o777 == 0o600


def test_title_comes_again_behind_those_of_another_thread(file: Path) -> None:
    def other() -> None:
        keep_journal("another\nthread")
        change()

    because("this thread")
    change()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    change()
    finish()
    assert titles(file) == [("this thread", 1, ""), ("another thread", 1, ""), ("this thread", 1, "done")]


def test_of_many_changes_the_first_are_written_and_the_others_counted(file: Path) -> None:
    because("flanneld has read all leases")
    for _ in range(MAX_LINES + 36):
        change()
    finish()
    assert titles(file) == [("flanneld has read all leases", MAX_LINES, "done")]
    assert "# and 36 changes more, which are not listed" in file.read_text()


class Kernel:
    """Takes every request."""

    enter = ()

    def change_many(self, requests: list[object]) -> dict[int, OSError]:
        return {}


def test_bulk_changes_beyond_the_first_are_not_even_put_into_words(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worded = []

    class Item:
        device = ""

        def words(self) -> list[str]:
            worded.append(self)
            return ["10.1.0.0/24"]

    because("flanneld has read all leases")
    assert change_many(Kernel(), ("ip", "route", "replace"), [Item() for _ in range(5000)], lambda *_: (b"", 0, 0)) == []  # type: ignore[arg-type]
    finish()
    assert len(worded) == MAX_LINES
    assert f"# and {5000 - MAX_LINES} changes more" in file.read_text()


def test_log_has_all_of_them_with_v1(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    set_verbosity(1)
    try:
        for _ in range(MAX_LINES + 3):
            change()
    finally:
        set_verbosity(0)
    assert capfd.readouterr().err.count("ip link set flannel.1 up  (") == MAX_LINES + 3


def test_file_is_bounded(file: Path) -> None:
    for number in range(3000):
        because(f"reason {number} {'x' * 60}")
        change()
    finish()
    assert file.stat().st_size <= journal.MAX_BYTES + 1024
    assert titles(file)[-1] == (f"reason 2999 {'x' * 60}", 1, "done")
    assert titles(file)[0][0] == ""


@pytest.mark.parametrize("obstacle", ["no directory", "directory", "fifo", "link", "full"])
def test_fault_is_said_once_and_nothing_else_happens(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    if obstacle == "no directory":
        path = tmp_path / "none" / "journal"
    elif obstacle == "directory":
        path.mkdir()
    elif obstacle == "fifo":
        os.mkfifo(path)
    elif obstacle == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.symlink_to("/dev/full")
        monkeypatch.setattr(changes, "_OPEN", changes._OPEN & ~os.O_NOFOLLOW)
        monkeypatch.setattr(changes, "S_ISREG", lambda mode: True)
    monkeypatch.setattr(changes, "_file", None)
    begin_journal(str(path))
    keep_journal("flanneld starts")
    try:
        for _ in range(3):
            change()
            note("x")
            finish()
    finally:
        journal.use(None)
    assert len(re.findall("no journal of changes in", capfd.readouterr().err)) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_key_in_the_saved_configuration_is_not_in_the_journal(file: Path, tmp_path: Path) -> None:
    key = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MDE="
    own = Lease(Subnets.from_key("10.1.0.0-24"), Attributes(IPv4Address("192.0.2.1")))
    config = json.dumps({"Network": "10.0.0.0/8", "Backend": {"Type": "wireguard", "PSK": key}})
    saver = Saver(str(tmp_path / "lib" / "flanneld.json"), config, lambda: own, {})
    assert saver.save()
    finish()
    assert key in (tmp_path / "lib" / "flanneld.json").read_text()
    assert "flanneld.json" in file.read_text()
    assert key not in file.read_text()


def test_without_a_journal_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_file", None)
    keep_journal("x")
    because("x")
    change()
    finish()
    assert journal.current() is None


@pytest.mark.parametrize(
    ("subnet_file", "path"),
    [
        ("/run/flannel/subnet.env", "/run/flannel/journal"),
        ("/run/other/node7.env", "/run/other/node7.env.journal"),
        ("subnet.env", "journal"),
    ],
)
def test_it_is_beside_the_subnet_file(subnet_file: str, path: str) -> None:
    assert journal_path(subnet_file) == path
