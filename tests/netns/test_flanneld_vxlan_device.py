"""flanneld's VXLAN devices on a host that has its own ideas: lost state, a port that is taken, IPv6 switched off, read-only sysctls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.flannel import SAVED, SUBNET_ENV, Node, network

pytestmark = pytest.mark.netns

HOLD = "import socket, sys; s = socket.socket({family}, socket.SOCK_DGRAM); s.bind(('', 8472)); print('bound', flush=True); sys.stdin.read()"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with network(tmp_path, "vxlan", "dual", nodes=1) as net:
        yield net.nodes[0]


def macs(node: Node) -> list[str]:
    return [node.device(name)["address"] for name in ("flannel.1", "flannel-v6.1")]


def test_mac_addresses_are_the_same_after_all_state_was_lost(node: Node) -> None:
    node.start().wait_ready().terminate()
    before = macs(node)
    assert len(set(before)) == 2
    node.run(f"rm {SAVED} {SUBNET_ENV}; ip link del flannel.1; ip link del flannel-v6.1")
    node.net.write({**node.net.read(), "leases": {}})
    node.start().wait_ready()
    assert macs(node) == before


def test_existing_mac_addresses_are_kept(node: Node) -> None:
    """Those of Go's flanneld, or of an earlier version: they are in the leases."""
    node.run(
        "ip link add flannel.1 address 02:00:00:00:00:aa type vxlan id 1 dev eth0 local 192.168.123.11 dstport 8472 nolearning"
    )
    node.start().wait_ready()
    assert node.device()["address"] == "02:00:00:00:00:aa"


@pytest.mark.parametrize(
    "script, owner",
    [
        ("ip link add cilium_vxlan type vxlan external dstport 8472; ip link set cilium_vxlan up", 'the VXLAN device "cilium_vxlan"'),
        ("ip link add other type vxlan id 7 dstport 8472 gbp; ip link set other up", 'the VXLAN device "other"'),
    ],
    ids=["external", "other flags"],
)  # fmt: skip
def test_port_of_another_device_is_named(node: Node, script: str, owner: str) -> None:
    node.run(script)
    flanneld = node.start()
    assert flanneld.wait() == 1
    words = f'"flannel.1" cannot receive: UDP port 8472 is taken by {owner}'
    assert words in flanneld.log
    assert '"Backend.Port"' in flanneld.log


@pytest.mark.parametrize("family", ["socket.AF_INET", "socket.AF_INET6"])
def test_port_of_a_process_is_named(node: Node, family: str) -> None:
    argv = node.host.command(sys.executable, "-c", HOLD.format(family=family))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        flanneld = node.start()
        assert flanneld.wait() == 1
        process.communicate("")
    assert "cannot receive: UDP port 8472 is taken by python" in flanneld.log
