"""When the kernel is looked at, and parameters that cannot be set (flanneld/reconcile.py). The rest is in tests/netns."""

from __future__ import annotations

import threading
from errno import ENOENT, EROFS
from time import sleep
from typing import Any

import pytest

from cni_py.errors import KernelRefused
from cni_py.kernel import sysctl
from cni_py.node import reconcile
from cni_py.node.desired import Wanted
from cni_py.node.health import Health
from cni_py.node.reconcile import Reconciler


@pytest.mark.parametrize(("number", "tries", "warnings"), [(EROFS, 1, 1), (ENOENT, 3, 0)], ids=["read-only", "gone since"])
def test_parameter_that_is_read_only_is_told_of_once_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, tries: int, warnings: int
) -> None:
    """As in a container: with -v=1 the log would have each try. A device that has gone may come back."""
    tried = []

    def ensure(name: str, value: str) -> None:
        tried.append((name, value))
        raise KernelRefused(f"could not set {name}", errno=number)

    monkeypatch.setattr(sysctl, "read", lambda _: "0")
    monkeypatch.setattr(sysctl, "ensure", ensure)
    reconciler = Reconciler(Health("", 0), "eth0", [])
    reconciler._wanted_sysctls = [("net/ipv4/ip_forward", "1")]
    assert [reconciler._sysctls() for _ in range(3)] == [0, 0, 0]
    assert len(tried) == tries
    reconciler._unsettable.warn()
    assert capfd.readouterr().err.count("sysctl -w net/ipv4/ip_forward=1") == warnings
    reconciler.close()


class News:
    """A watch that has always heard of something."""

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> News:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, _: float) -> set[str]:
        return {"link"}


class Stop(threading.Event):
    """Set by the first pause."""

    seconds = -1.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds = timeout or 0.0
        self.set()
        return True


def test_pause_after_a_look_does_not_grow_while_the_process_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "Watch", News)
    reconciler: Any = reconcile.Reconciler.__new__(reconcile.Reconciler)
    reconciler._wanted, reconciler._wanted_sysctls, reconciler._failures = Wanted(), [], {}
    reconciler.external, reconciler._host = "eth0", None
    reconciler.once = lambda: sleep(0.3) or 0
    stop = Stop()
    reconciler.run(stop)
    assert 0 <= stop.seconds < 0.3
