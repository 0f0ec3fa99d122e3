"""Reports of a daemon (node/status.py)."""

from __future__ import annotations

import pytest

from cni_py.node.health import Health
from cni_py.node.status import SAID_COUNT, Status


def test_what_changes_by_turns_is_said_once_each() -> None:
    status, said = Status("flannel", Health("", 0), lambda: None, lambda: None), list[str]()
    for text in ["No route to host", "handshaker shutdown"] * 3:
        status.say_once(text, said.append)
    assert said == ["No route to host", "handshaker shutdown"]
    for number in range(SAID_COUNT):
        status.say_once(str(number), said.append)
    status.say_once("No route to host", said.append)  # others came between
    assert said[-1] == "No route to host"


def test_watchdog_hears_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert Status("flannel", Health("", 0), lambda: None, lambda: None).beat_seconds == 0.3
