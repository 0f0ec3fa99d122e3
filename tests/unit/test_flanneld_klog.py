"""klog.py: the layout of a line, and that threads do not mix theirs; systemd.py: notifications to a service manager."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from cni_py.node import log as klog
from cni_py.node import systemd

LINE = re.compile(r"([IWE])(\d{4} \d\d:\d\d:\d\d\.\d{6}) ([ \d]{7}) ([\w.]+):(\d+)\] (.*)")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The log goes to this file."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    monkeypatch.setattr(klog, "STDERR_FD", fd)
    yield path
    os.close(fd)
    klog.set_verbosity(0)


def test_line_has_klogs_layout(log: Path) -> None:
    before = datetime.now()
    klog.info("Found lease (ip: 10.244.91.0/24 ipv6: ::/0) for current IP (192.168.123.11), reusing")
    found = LINE.fullmatch(log.read_text().removesuffix("\n"))
    assert found
    severity, when, pid, module, line, text = found.groups()
    assert (severity, int(pid), module) == ("I", os.getpid(), "test_flanneld_klog.py")
    assert text == "Found lease (ip: 10.244.91.0/24 ipv6: ::/0) for current IP (192.168.123.11), reusing"
    assert "klog.info" in Path(__file__).read_text().splitlines()[int(line) - 1]
    logged = datetime.strptime(f"{before.year} {when}", "%Y %m%d %H:%M:%S.%f")
    assert 0 <= (logged - before).total_seconds() < 5


def test_severities(log: Path) -> None:
    klog.info("a")
    klog.warning("b")
    klog.error("c")
    assert [line[0] for line in log.read_text().splitlines()] == ["I", "W", "E"]


def test_verbose_is_for_who_asked(log: Path) -> None:
    klog.verbose(1, "not asked for")
    klog.set_verbosity(1)
    klog.verbose(1, "asked for")
    klog.verbose(2, "not that much")
    assert [line.partition("] ")[2] for line in log.read_text().splitlines()] == ["asked for"]
    assert log.read_text()[0] == "I"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\n", "two; lines"),
        ("  padded\r\n\r\n  more", "padded; more"),
        ("clear \x1b[2J screen", r"clear \x1b[2J screen"),
        ("网络", "网络"),
        ("bad \udc80 byte", r"bad \udc80 byte"),
        ("", ""),
        ("tab\there", r"tab\there"),
    ],
)
def test_text_stays_on_one_line_and_steers_no_terminal(log: Path, text: str, shown: str) -> None:
    klog.warning(text)
    assert log.read_text().partition("] ")[2] == f"{shown}\n"


def test_threads_do_not_mix_their_lines(log: Path) -> None:
    def write(name: str) -> None:
        for number in range(200):
            klog.info(f"{name * 100} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log.read_text().splitlines()
    assert len(lines) == 800
    assert all(re.fullmatch(r"(.)\1{99} \d+", line.partition("] ")[2]) for line in lines)


def test_log_without_a_reader_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(klog, "STDERR_FD", writer)
    klog.error("no process reads this")
    os.close(writer)
    klog.error("nor this")


# ---- systemd ----------------------------------------------------------------------------------


@contextmanager
def service_manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind("\0" + address[1:] if address[0] == "@" else address)
        yield sock


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_notify(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@cni-py-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with service_manager(address) as sock:
        assert systemd.notify("READY=1", "STATUS=subnet 10.244.91.0/24\nREADY=0")
        assert sock.recv(1000) == b"READY=1\nSTATUS=subnet 10.244.91.0/24 READY=0"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1", "@nobody-listens-here"])
def test_notify_without_a_service_manager_does_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", "own", 30.0),
        ("30000000", "", 30.0),
        ("30000000", "1", 0.0),
        ("", "", 0.0),
        ("0", "", 0.0),
        ("soon", "", 0.0),
    ],
)
def test_watchdog_seconds(microseconds: str, pid: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.watchdog_seconds() == seconds
