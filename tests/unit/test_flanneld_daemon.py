"""What the process says of itself (flanneld/daemon.py)."""

from __future__ import annotations

from typing import Any

from cni_py.flanneld.daemon import SAID_COUNT, Daemon
from cni_py.flanneld.options import parse


def test_what_changes_by_turns_is_said_once_each() -> None:
    store: Any = None
    daemon, said = Daemon(parse([], {}), store), list[str]()
    for text in ["No route to host", "handshaker shutdown"] * 3:
        daemon.say_once(text, said.append)
    assert said == ["No route to host", "handshaker shutdown"]
    for number in range(SAID_COUNT):
        daemon.say_once(str(number), said.append)
    daemon.say_once("No route to host", said.append)  # others came between
    assert said[-1] == "No route to host"
