"""flanneld's VXLAN devices on a host that has its own ideas: lost state, a port that is taken, IPv6 switched off, read-only sysctls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.flannel import SAVED, SUBNET_ENV, Node, network

pytestmark = pytest.mark.netns

HOLD = """
import socket, sys
taken = socket.socket({family}, {kind})
taken.bind(("", {port}))
if {kind} == socket.SOCK_STREAM:
    taken.listen()
print("bound", flush=True)
sys.stdin.read()
"""


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
    """Adopt those of Go's flanneld, or of an earlier version: they are in the leases."""
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


@contextmanager
def taken(node: Node, port: int, family: str = "socket.AF_INET", kind: str = "socket.SOCK_DGRAM") -> Iterator[None]:
    """A process on the node that has the port."""
    argv = node.host.command(sys.executable, "-c", HOLD.format(family=family, kind=kind, port=port))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        yield
        process.communicate("")


@pytest.mark.parametrize("family", ["socket.AF_INET", "socket.AF_INET6"])
def test_port_of_a_process_is_named(node: Node, family: str) -> None:
    with taken(node, 8472, family):
        flanneld = node.start()
        assert flanneld.wait() == 1
    assert "cannot receive: UDP port 8472 is taken by python" in flanneld.log


def test_port_of_the_udp_back_end_that_is_taken_is_named_with_its_key(node: Node) -> None:
    node.net.write({"config": {"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}, "leases": {}})
    with taken(node, 8285):
        flanneld = node.start()
        assert flanneld.wait() == 1
    assert "failed to start listening on UDP socket: 192.168.123.11:8285: Address already in use" in flanneld.log
    assert '"Backend.Port"' in flanneld.log


def test_port_of_the_health_server_that_is_taken_is_named(node: Node) -> None:
    with taken(node, 9090, kind="socket.SOCK_STREAM"):
        flanneld = node.start("-healthz-port=9090")
        assert flanneld.wait() == 1
    assert "the health server cannot listen on 0.0.0.0, TCP port 9090: Address already in use" in flanneld.log
    assert "choose another -healthz-port" in flanneld.log


READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
"""Mounts as in a container without privileges."""


def test_read_only_parameters_are_one_line_and_count_nothing(node: Node) -> None:
    node.run(f"echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; {READ_ONLY}")
    flanneld = node.start("-healthz-port=9090", "-healthz-ip=127.0.0.1").wait_ready()
    warnings = [line for line in flanneld.log.splitlines() if "read-only" in line.lower()]
    assert len(warnings) == 1
    assert warnings[0].startswith("W")
    assert "sysctl -w net/ipv4/ip_forward=1 net/ipv6/conf/all/forwarding=1" in warnings[0]
    metrics = node.run("curl -s http://127.0.0.1:9090/metrics")
    assert "\ncni_py_flanneld_refused 0\n" in metrics
    changes = next(line for line in metrics.splitlines() if line.startswith("cni_py_flanneld_changes_total "))
    node.run("ip link add late type bridge; ip link del late")  # it looks again
    assert changes in node.run("sleep 1; curl -s http://127.0.0.1:9090/metrics")


def test_read_only_parameters_that_have_no_effect_are_information(node: Node) -> None:
    """The usual DaemonSet: the host forwards already."""
    node.run(READ_ONLY)
    flanneld = node.start().wait_ready()
    assert [line[0] for line in flanneld.log.splitlines() if "read-only" in line.lower()] == ["I"]


def test_ipv6_that_cannot_be_switched_on_is_named_with_the_command(node: Node) -> None:
    node.run(f"echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; {READ_ONLY}")
    flanneld = node.start()
    assert flanneld.wait() == 1
    assert 'IPv6 is disabled on "flannel-v6.1": sysctl -w net/ipv6/conf/flannel-v6.1/disable_ipv6=0' in flanneld.log


def test_ipv6_that_is_off_by_default_is_switched_on_for_our_devices(node: Node) -> None:
    node.run("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
    node.start().wait_ready()
    assert node.run("cat /proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6").strip() == "0"
