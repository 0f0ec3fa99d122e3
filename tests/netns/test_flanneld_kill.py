"""SIGKILL of flanneld before any system call that changes something, and a new start: nothing is lost, half or left.

How it works: tests/support/flanneld_kills.py. In its start, in a change of the leases, in a renewal, in ``--cleanup``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.flannel import Net, Node, network
from support.flanneld_kills import BUSY, FEWEST, NEW, Found, InFile, kill_often, needs_tracer
from support.namespaces import Sandbox, wait_for_end

OPTIONS = ["-ip-masq", "-ip-blackhole-route"]
SECONDS = 2.0
"""Of kills, for each test: with `--longer 150` all points are tried."""
PING_SECONDS = 0.01

pytestmark = [pytest.mark.netns, needs_tracer]


@contextmanager
def traffic(net: Net) -> Iterator[list[str]]:
    """Each pod to the other, by each family, as long as this lasts; then what ping said."""
    first, second = net.nodes
    ways = [(first, "pod1", address) for address in second.pods["pod2"]]
    ways += [(second, "pod2", address) for address in first.pods["pod1"]]
    running = [start_ping(node, pod, address) for node, pod, address in ways]
    said: list[str] = []
    try:
        yield said
    finally:
        for process in running:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            subprocess.run(["kill", "-INT", *children], check=True)
            with process:
                wait_for_end(process)
                assert process.stdout is not None
                said.append(process.stdout.read())


def start_ping(node: Node, pod: str, address: str) -> subprocess.Popen[str]:
    argv = node.host.command("ping", "-nq", "-i", str(PING_SECONDS), "-W2", address, sandbox=Sandbox(pod))
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_no_packet_is_lost_and_nothing_left_wherever_flanneld_is_killed(tmp_path: Path, longer: int, backend: str) -> None:
    with network(tmp_path, backend, "dual", nodes=2) as net:
        net.options = OPTIONS
        net.start()
        node = net.nodes[0]
        assert node.flanneld
        with traffic(net) as said:
            node.flanneld.kill()
            datastore = InFile(str(net.datastore))
            found = node.host.do(kill_often, datastore, node.address, backend, OPTIONS, BUSY, SECONDS * longer)
    report(found, said)
    assert all(" 0% packet loss" in words for words in said)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_nothing_is_left_wherever_a_first_start_or_cleanup_is_killed(tmp_path: Path, longer: int, backend: str) -> None:
    with network(tmp_path, backend, "dual", nodes=1) as net:
        node = net.nodes[0]
        datastore = InFile(str(net.datastore))
        found = node.host.do(kill_often, datastore, node.address, backend, OPTIONS, NEW, SECONDS * longer)
    report(found, [])


def report(found: Found, said: list[str]) -> None:
    print(found.points, *said, sep="\n")
    assert found.faults == []
    assert all(tried >= min(total, FEWEST) for total, tried in found.points.values())
