"""Kernel parameters that cannot be set (flanneld/reconcile.py). What the kernel makes of the rest is in tests/netns."""

from __future__ import annotations

from errno import ENOENT, EROFS

import pytest

from cni_py.errors import KernelRefused
from cni_py.flanneld.health import Health
from cni_py.flanneld.reconcile import Reconciler
from cni_py.kernel import sysctl


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
    assert capfd.readouterr().err.count("could not set net/ipv4/ip_forward") == warnings
    reconciler.close()
