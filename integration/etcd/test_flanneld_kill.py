"""SIGKILL of flanneld before any system call that changes something, with its leases in a real etcd.

How it works: tests/support/flanneld_kills.py. What a kill may leave in etcd is a lease of etcd's without a key, which ends by
itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from integration.etcd import servers
from support.flannel import FAMILIES, network
from support.flanneld_kills import BUSY, FEWEST, NEW, InEtcd, kill_often, needs_tracer

SECONDS = 2.0
"""Seconds of kills: with `--longer 150` all points are tried."""


def start_etcd(config: str) -> None:
    (server,) = servers.start()
    server.ctl("put", f"{InEtcd.PREFIX}/config", config)


@pytest.mark.netns
@needs_tracer
def test_nothing_is_left_wherever_flanneld_is_killed(tmp_path: Path, longer: int) -> None:
    for program in ("etcd", "etcdctl"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (package etcd-server or etcd-client)")
    with network(tmp_path, "vxlan", "dual", nodes=1) as net:
        [node] = net.nodes
        # in a process of its own: the tracer waits for the end of all its children
        node.host.do(start_etcd, json.dumps(FAMILIES["dual"] | {"Backend": {"Type": "vxlan"}}))
        found = node.host.do(kill_often, InEtcd(), node.address, "vxlan", ["-ip-masq"], (*BUSY, *NEW), SECONDS * longer)
    print(found.points)
    assert found.faults == []
    assert all(tried >= min(total, FEWEST) for total, tried in found.points.values())
