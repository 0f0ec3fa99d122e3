"""Plugins without the start of an interpreter: each call is a fork of one process that has loaded them.

    with WarmHost(bin_dir) as host:
        host.ok("flannel", "ADD", CONF, sandbox=pod)

How it works. The first call of a test process starts support/zygote.py, once for all hosts. A call is a message to it; its
fork enters the host's namespaces, and runs the launcher there, with the call's environment and standard streams: ``client.main()``
and what a launcher with faults has before it. The start of an interpreter, six times as long as most calls, is saved. Any program but our launchers
is executed by the fork.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from support import forks
from support.namespaces import PATH, Host

PROGRAM = Path(__file__).with_name("zygote.py")


class WarmHost(Host):
    """A Host whose plugins are called so."""

    _calls: socket.socket | None = None

    def plugin(self, program: str, env: Mapping[str, str | bytes], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        variables = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in env.items()]
        request = b"\0".join([str(self.pid).encode(), os.fsencode(program), *variables])
        return forks.ask(self._zygote(), request, stdin, program)

    def _zygote(self) -> socket.socket:
        if self._calls is None:
            launcher = Path(self.bin_dir, "cni-plugin")
            # a network of its own: it enters those of hosts, and uses none itself
            self._calls = forks.zygote(str(launcher), launched(launcher, PROGRAM, prefix=["unshare", "--net"]), {"PATH": PATH})
        return self._calls


def launched(launcher: Path, program: Path, options: Sequence[str] = (), prefix: Sequence[str] = ()) -> list[str]:
    """The command for a zygote that has the modules of a launcher, started by the launcher's own Python."""
    python = launcher.read_text().partition("\n")[0].removeprefix("#!").split()
    return [*prefix, *python, str(program), "{}", str(launcher), *options]
