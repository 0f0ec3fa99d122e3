"""Messages about kernel parameters that cannot be set."""

from __future__ import annotations

from errno import EPERM, EROFS

import pytest

from cni_py.errors import KernelRefused
from cni_py.node import unsettable
from cni_py.node.unsettable import Unsettable

READ_ONLY = KernelRefused('the kernel refused: "sysctl -w …"', "Read-only file system", errno=EROFS)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(unsettable, "info", lambda text: lines.append(f"I {text}"))
    monkeypatch.setattr(unsettable, "warning", lambda text: lines.append(f"W {text}"))
    return lines


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    values: dict[str, str] = {}

    def read(name: str) -> str:
        if name not in values:
            raise KernelRefused("could not read")
        return values[name]

    monkeypatch.setattr(unsettable.sysctl, "read", read)
    return values


def test_read_only_is_said_once_with_the_commands_for_the_host(said: list[str], host: dict[str, str]) -> None:
    refused = Unsettable()
    for name, value in (
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/flannel.1/forwarding", "1"),
        ("net/ipv6/conf/flannel.1/accept_ra", "0"),
    ):
        refused.add(name, value, READ_ONLY)
    host["net/ipv6/conf/flannel.1/forwarding"] = "0"
    for _ in range(3):
        refused.warn()
    commands = "net/ipv4/ip_forward=1 net/ipv4/conf/flannel.1/forwarding=1 net/ipv6/conf/flannel.1/accept_ra=0"
    assert said == [f"W /proc/sys is read-only here, so it is to be set on the host: sysctl -w {commands}"]
    assert "net/ipv4/ip_forward" in refused
    assert "net/ipv4/conf/flannel.9/forwarding" not in refused


def test_what_has_no_effect_is_information(said: list[str], host: dict[str, str]) -> None:
    """The usual DaemonSet: kubelet has switched forwarding on."""
    refused = Unsettable()
    for name in ("flannel.1", "flannel-v6.1"):
        host[f"net/ipv6/conf/{name}/forwarding"] = "1"
        refused.add(f"net/ipv6/conf/{name}/accept_ra", "0", READ_ONLY)
    refused.warn()
    assert len(said) == 1
    assert said[0].startswith("I /proc/sys is read-only here; the host has what pods need")


def test_another_reason_is_said_for_each(said: list[str]) -> None:
    refused = Unsettable()
    refused.add(
        "net/ipv4/ip_forward", "1", KernelRefused('the kernel refused: "sysctl -w net/ipv4/ip_forward=1"', "no", errno=EPERM)
    )
    refused.warn()
    refused.warn()
    assert len(said) == 1
    assert said[0].startswith('W the kernel refused: "sysctl -w net/ipv4/ip_forward=1"')
