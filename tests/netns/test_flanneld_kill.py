"""SIGKILL of flanneld before any system call that changes something, and a new start: nothing is lost, half or left.

How it works: tests/support/flanneld_kills.py. In its start, in a change of the leases, in a renewal, in ``--cleanup``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.flannel import network, traffic
from support.flanneld_kills import BUSY, FEWEST, NEW, Found, InFile, kill_often, needs_tracer

OPTIONS = ["-ip-masq", "-ip-blackhole-route"]
SECONDS = 2.0
"""Seconds of kills, for each test: with `--longer 150` all points are tried."""

pytestmark = [pytest.mark.netns, needs_tracer]


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_no_packet_is_lost_and_nothing_left_wherever_flanneld_is_killed(tmp_path: Path, longer: int, backend: str) -> None:
    with network(tmp_path, backend, "dual", nodes=2) as net:
        net.options = OPTIONS
        net.start()
        node = net.nodes[0]
        assert node.flanneld
        with traffic(net) as pings:
            node.flanneld.kill()
            datastore = InFile(str(net.datastore))
            found = node.host.do(kill_often, datastore, node.address, backend, OPTIONS, BUSY, SECONDS * longer)
    report(found)
    assert [ping.lost for ping in pings] == [0] * len(pings)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_nothing_is_left_wherever_a_first_start_or_cleanup_is_killed(tmp_path: Path, longer: int, backend: str) -> None:
    with network(tmp_path, backend, "dual", nodes=1) as net:
        node = net.nodes[0]
        datastore = InFile(str(net.datastore))
        found = node.host.do(kill_often, datastore, node.address, backend, OPTIONS, NEW, SECONDS * longer)
    report(found)


def report(found: Found) -> None:
    print(found.points)
    assert found.faults == []
    assert all(tried >= min(total, FEWEST) for total, tried in found.points.values())
