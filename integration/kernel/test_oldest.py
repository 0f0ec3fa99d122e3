"""Linux 5.10, the oldest kernel that Debian still has: the bundle, the guide's chain with packets, what this kernel lacks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from integration.bundle.build import BUILD, name_of
from integration.bundle.debian import host_architecture
from integration.bundle.roots import busybox_root
from integration.bundle.test_bundle import CALLS
from support.namespaces import PATH, Host
from support.pods import HOST4, NO_DAD, PORT, WORLD, datagram, transfer, world

pytestmark = pytest.mark.netns

GUIDE = Path(__file__).resolve().parents[2] / "conf" / "10-flannel.conflist"
HOST_PORT = 8080


def test_kernel_is_the_one_that_is_meant() -> None:
    """Show that the others ran on it."""
    assert os.uname().release.startswith("5.10.")


def test_bundle_starts_adds_and_deletes(tmp_path: Path) -> None:
    """Install it into a root with nothing but a static busybox. `make test-kernel` has built the tree."""
    root = busybox_root(tmp_path / "root")
    install = [BUILD / name_of(host_architecture()) / "install", "--destdir", root.path, "--no-units"]
    subprocess.run(install, stdin=subprocess.DEVNULL, check=True)
    output = root.run(f"/opt/bin/flanneld --version\n{CALLS}")
    assert "supportedVersions" in output
    assert '"address":"10.244.91.2/24"' in output
    assert not (root.path / "var/lib/cni/networks/cbr0/10.244.91.2").exists()


def test_the_guides_chain(host: Host, cni_py: Path) -> None:
    """flannel, bridge, host-local and portmap: ADD, CHECK, packets by the host port and out, DEL without a trace.

    Of all that is used, this kernel lacks tables that belong to a process. `cni-py walk` says so.
    """
    host.run(NO_DAD)
    host.write_subnet_env()
    host.write("/etc/cni/net.d/10-flannel.conflist", GUIDE.read_text())
    ports = [{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol} for protocol in ("tcp", "udp")]
    env = {"PATH": PATH, "CNI_PATH": host.bin_dir, "NETCONFPATH": "/etc/cni/net.d", "CNI_IFNAME": "eth0"}
    outside, pod = world(host, knows_pods=False), host.netns("c1")
    before = host.host_ends()

    def call(verb: str) -> None:
        done = host.execute([str(cni_py), verb, "cbr0", pod.path], env=env | {"CAP_ARGS": json.dumps({"portMappings": ports})})
        assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"

    call("add")
    call("check")
    assert transfer(host, outside, pod, HOST4, 100_000, port=HOST_PORT)[1] == WORLD
    assert datagram(host, outside, pod, HOST4, port=HOST_PORT) == WORLD
    assert datagram(host, pod, outside, WORLD) == HOST4, "masqueraded"
    walked = host.execute([str(cni_py), "walk", pod.name, WORLD])
    assert "rules are not traced: this kernel has no nftables tables with an owner (Linux 5.12)" in " ".join(
        walked.stdout.split()
    )
    call("del")
    assert host.host_ends() == before
    assert not host.path("/var/lib/cni/networks/cbr0/10.244.91.2").exists()
