"""node/file_watch.py: each change of a file ends the wait, and nothing else does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from cni_py.node import file_watch
from cni_py.node.file_watch import FileWatch
from cni_py.node.stop import Stop

SECONDS = 30.0
"""Longer than a test waits, shorter than a fault blocks the suite."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "subnet.env"
    path.write_text("a")
    return path


class Watching:
    """A thread that waits for changes; ``heard`` has an entry for each."""

    def __init__(self, path: Path) -> None:
        self.stop, self.heard = Stop(), Queue[bool]()
        self._thread = threading.Thread(target=self._run, args=(path,), daemon=True)
        self._thread.start()

    def _run(self, path: Path) -> None:
        with FileWatch(str(path)) as watch:
            while watch.wait(self.stop, is_right=True):
                self.heard.put(True)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def watching(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    monkeypatch.setattr(file_watch, "CHECK_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(file_watch, "SETTLE_SECONDS", 0.01)
    watching = Watching(path)
    assert watching.heard.get(timeout=SECONDS)  # it may have changed before it was watched
    yield watching
    watching.end()


def _replace(path: Path) -> None:
    (path.parent / "new").write_text("b")
    (path.parent / "new").rename(path)


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        _replace,
        lambda path: path.write_text("b"),
        lambda path: path.rename(path.parent / "elsewhere"),
        lambda path: path.chmod(0o600),
        os.utime,
        lambda path: os.truncate(path, 0),
    ],
    ids=["deleted", "replaced", "written", "renamed", "mode", "times", "truncated"],
)
def test_change_ends_the_wait(path: Path, watching: Watching, change: Callable[[Path], object]) -> None:
    change(path)
    assert watching.heard.get(timeout=SECONDS)


def test_file_that_is_there_again_is_watched(path: Path, watching: Watching) -> None:
    for _ in range(3):
        _replace(path)
        assert watching.heard.get(timeout=SECONDS)
        while not watching.heard.empty():
            watching.heard.get()
        path.write_text("c")
        assert watching.heard.get(timeout=SECONDS)


def test_other_files_of_the_directory_do_not(path: Path, watching: Watching) -> None:
    with (path.parent / "journal").open("a") as journal:
        journal.write("a line\n")
    (path.parent / "journal").unlink()
    path.read_text()
    assert watching.heard.empty()
    path.write_text("b")
    assert watching.heard.get(timeout=SECONDS)


@pytest.mark.parametrize("reason", ["no file", "no inotify", "not right"])
def test_what_cannot_be_watched_is_polled(path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(file_watch, "CHECK_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(file_watch, "POLL_SECONDS", 0.01)
    if reason == "no file":
        path.unlink()
    with FileWatch(str(path)) as watch:
        if reason == "no inotify":
            os.close(watch._fd)
            watch._fd = -1
        for _ in range(3):
            assert watch.wait(Stop(), is_right=reason != "not right")


def test_stop_ends_the_wait_of_each_kind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "CHECK_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(file_watch, "POLL_SECONDS", 10 * SECONDS)
    stop = Stop()
    stop.set()
    with FileWatch(str(path)) as watch:
        for is_right in (True, False, True):
            assert not watch.wait(stop, is_right=is_right)
