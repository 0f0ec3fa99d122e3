"""The bundle of the other processor, made here: its programs run in qemu's user mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.bundle.debian import host_architecture
from integration.bundle.tree import Tree

OTHER = {"amd64": "arm64", "arm64": "amd64"}[host_architecture()]
CONF = {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}


@pytest.fixture
def emulator(longer: int) -> str:
    if longer == 1:
        pytest.skip("only in make test-long: the other processor is emulated")
    name = {"arm64": "qemu-aarch64-static", "amd64": "qemu-x86_64-static"}[OTHER]
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (package qemu-user-static)")
    return found


def test_start_version_and_addresses(emulator: str, tree_for: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = tree_for(OTHER)
    install = [sys.executable, "-B", str(tree.lib / "integration" / "install"), "--prefix", str(tmp_path), "--no-units"]
    subprocess.run(install, check=True, capture_output=True)
    python = str(tmp_path / "cni-py" / "lib" / "python")
    conf = CONF | {"ipam": {**CONF["ipam"], "dataDir": str(tmp_path / "data")}}

    def run(program: str, *words: str, **environment: str) -> str:
        command = [emulator, python, "-IS", str(tmp_path / program), *words]
        done = subprocess.run(command, input=json.dumps(conf), env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    machine = subprocess.run(
        [emulator, python, "-ISc", "import os; print(os.uname().machine)"], capture_output=True, text=True, check=True
    ).stdout
    assert machine.strip() != os.uname().machine
    assert run("bin/flanneld", "--version")
    assert "supportedVersions" in run("cni/bin/bridge", CNI_COMMAND="VERSION")
    call = {
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_PATH": str(tmp_path / "cni/bin"),
    }
    result = json.loads(run("cni/bin/host-local", CNI_COMMAND="ADD", **call))
    assert result["ips"] == [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]
    run("cni/bin/host-local", CNI_COMMAND="DEL", **call)
    assert not (tmp_path / "data" / "net" / "10.9.0.2").exists()
