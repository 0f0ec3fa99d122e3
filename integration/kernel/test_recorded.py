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
from support import recorded
from support.namespaces import Host

pytestmark = pytest.mark.netns

CASES = recorded.INTEGRATION / "golden-plugins" / "cases"
CALL_SECONDS = 60


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
    try:
        client.main()
    finally:
        os._exit(99)


@pytest.mark.parametrize("case", recorded.parameters(CASES, of_a_kind))
def test_as_recorded(case: recorded.Case, host: Host, bin_dir: Path) -> None:
    golden = runner(bin_dir)
    assert not golden.missing(case), f"this kernel has no {golden.missing(case)}"
    host.run("umount /sys")  # the runner mounts its own
    got = host.do(golden.one, case, str(bin_dir), False, "")
    assert not golden.differences(case, got), case.get("why", "")
