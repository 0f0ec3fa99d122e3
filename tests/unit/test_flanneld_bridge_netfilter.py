"""Warnings if packets between pods of one node do not pass iptables."""

from __future__ import annotations

import pytest

from cni_py.errors import KernelRefused
from cni_py.node import bridge_netfilter

V4, V6 = "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"
NO_MODULE = "the kernel module br_netfilter is not loaded"


@pytest.mark.parametrize(
    "values, families, expected",
    [
        ({V4: "1", V6: "1"}, (True, True), []),
        ({}, (True, False), [NO_MODULE]),
        ({}, (True, True), [NO_MODULE]),
        ({V4: "0", V6: "1"}, (True, True), ["net.bridge.bridge-nf-call-iptables is 0"]),
        ({V4: "0", V6: "0"}, (False, True), ["net.bridge.bridge-nf-call-ip6tables is 0"]),
        ({V4: "0", V6: "0"}, (True, True), ["net.bridge.bridge-nf-call-iptables is 0", "net.bridge.bridge-nf-call-ip6tables is 0"]),
        ({V4: "1"}, (True, True), []),
    ],
)  # fmt: skip
def test_each_fault_names_the_command(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], families: tuple[bool, bool], expected: list[str]
) -> None:
    def read(name: str) -> str:
        if name not in values:
            raise KernelRefused(f'could not read: "sysctl {name}"')
        return values[name]

    monkeypatch.setattr(bridge_netfilter.sysctl, "read", read)
    lines = bridge_netfilter.faults(*families)
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert line.startswith(words)
        assert "a Service does not answer" in line
        assert ("modprobe br_netfilter" in line) or ("sysctl -w net.bridge." in line and line.endswith("=1"))
