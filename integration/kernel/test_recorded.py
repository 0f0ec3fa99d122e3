"""Recorded cases that need a kind of link which a kernel may lack: `vlan`, `ipvlan`, `vrf`, `dummy`.

A guest takes a second or two to start Python, so that all cases share one: the runner's functions are called, not its
program, and a plugin that it executes is a fork of this process that does what the executable does (cni_py.client.main).
"""

from __future__ import annotations

import os
import posix
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest

from cni_py import client, dispatch, engine
from cni_py.plugin_table import PLUGINS
from support import recorded, replay
from support.namespaces import Host

pytestmark = pytest.mark.netns

CASES = recorded.INTEGRATION / "golden-plugins" / "cases"
CALL_SECONDS = 60
EVENTS = "/run/events-of-calls"
"""File of a host with what its calls have done: the state before and after, and their journals."""


more_directories: list[str] = []
"""Directories that belong to the state of the case that runs, which the forks read."""


def of_a_kind(case: recorded.Case) -> bool:
    return any(need.startswith("kind ") for need in case.get("needs", []))


@cache
def runner(bin_dir: Path) -> ModuleType:
    """golden.py as a module, which executes the plugins of ``bin_dir`` in this process."""
    module = recorded.load_runner()
    for plugin in PLUGINS:  # the forks have them
        dispatch.load(plugin)
    assert engine

    def run(argv: list[str], **options: Any) -> Any:
        return execute(argv[0], **options) if Path(argv[0]).parent == bin_dir else subprocess.run(argv, **options)

    module.__dict__["subprocess"] = SimpleNamespace(**vars(subprocess) | {"run": run})
    return module


def execute(program: str, *, input: str, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:  # noqa: A002 — as subprocess.run
    """Answer as the plugin's executable does."""
    with TemporaryFile("w+") as stdin, TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        stdin.write(input)
        stdin.seek(0)
        child = os.fork()
        if child == 0:
            for number, file in enumerate((stdin, stdout, stderr)):
                os.dup2(file.fileno(), number)
            become(program, env)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess([program], status, stdout.read(), stderr.read())


def become(program: str, env: dict[str, str]) -> NoReturn:
    """Do what the executable does, and end."""
    signal.alarm(CALL_SECONDS)
    os.chdir("/")
    os.environ.clear()
    os.environ.update(env)
    posix.environ.clear()
    posix.environ.update({name.encode(): value.encode() for name, value in env.items()})
    sys.argv = [program]
    replay.record(EVENTS, more_directories)
    try:
        client.main()
    finally:
        os._exit(99)


@pytest.mark.parametrize("case", recorded.parameters(CASES, of_a_kind))
def test_as_recorded(case: recorded.Case, host: Host, bin_dir: Path) -> None:
    golden = runner(bin_dir)
    more_directories[:] = replay.more_directories(case)
    assert not golden.missing(case), f"this kernel has no {golden.missing(case)}"
    host.run("umount /sys")  # the runner mounts its own
    got = host.do(golden.one, case, str(bin_dir), False, "")
    assert not golden.differences(case, got), case.get("why", "")
    recorded.compare_scripts(case, recorded.events_in(host.path(EVENTS)), bin_dir)


POOL = {"type": "host-local", "subnet": "10.10.1.0/24"}
IN_VLANS = {
    "vlan": {"type": "bridge", "bridge": "br9", "isGateway": True, "ipMasq": True, "vlan": 7, "ipam": POOL},
    "vlan-preserved": {"type": "bridge", "bridge": "br9", "vlan": 7, "preserveDefaultVlan": True, "ipam": POOL},
    "trunk": {"type": "bridge", "bridge": "br9", "vlanTrunk": [{"id": 5}, {"minID": 10, "maxID": 12}], "ipam": {}},
    "in-container": {"type": "ipvlan", "master": "inner", "linkInContainer": True, "ipam": POOL},
}
SET_UP = "ip -n c1 link add inner type veth peer name inner-end; ip -n c1 link set inner up"


@pytest.mark.parametrize("name", IN_VLANS)
def test_script_leaves_what_the_plugin_leaves(name: str, host: Host, bin_dir: Path) -> None:
    """Keys for which tests/netns/test_scripts.py has no kernel."""
    conf = {"name": "net1", "cniVersion": "1.0.0", **IN_VLANS[name]}
    calls = [{"plugin": conf["type"], "verb": verb, "conf": conf, "prev": verb != "ADD"} for verb in ("ADD", "CHECK", "DEL")]
    case = {"steps": calls, "setup": SET_UP if name == "in-container" else ""}
    more_directories.clear()
    host.run("umount /sys")
    got = host.do(runner(bin_dir).one, case, str(bin_dir), False, "")
    assert [one["rc"] for one in got] == [0, 0, 0], got
    recorded.compare_scripts(case, recorded.events_in(host.path(EVENTS)), bin_dir)
