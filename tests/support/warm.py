"""Plugins without the start of an interpreter: each call is a fork of one process that has loaded them.

    with WarmHost(bin_dir) as host:
        host.ok("flannel", "ADD", CONF, sandbox=pod)

How it works. The first call of a test process starts support/zygote.py, once for all hosts. A call is a message to it; its
fork enters the host's namespaces, and runs the launcher there, with the call's environment and standard streams: ``client.main()``
and what a launcher with faults has before it. The start of an interpreter, six times as long as most calls, is saved. Any program but our launchers
is executed by the fork.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.namespaces import COMMAND_SECONDS, PATH, Host, Stuck

PROGRAM = Path(__file__).with_name("zygote.py")


class WarmHost(Host):
    """A Host whose plugins are called so."""

    def plugin(self, program: str, env: Mapping[str, str | bytes], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        variables = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in env.items()]
        request = b"\0".join([str(self.pid).encode(), os.fsencode(program), *variables])
        # a network of its own: it enters those of hosts, and uses none itself
        return ask(zygote(Path(self.bin_dir, "cni-plugin"), PROGRAM, (), ("unshare", "--net")), request, stdin, program)


def ask(control: socket.socket, request: bytes, stdin: bytes, name: str) -> tuple[int, bytes, bytes]:
    """Have a zygote fork for a request: exit status, standard output and error."""
    files = [os.memfd_create(file) for file in ("in", "out", "err")]
    status_read, status_write = os.pipe()
    try:
        os.pwrite(files[0], stdin, 0)
        socket.send_fds(control, [request], [*files, status_write])
        os.close(status_write)
        status_write = -1
        if not select.select([status_read], [], [], COMMAND_SECONDS)[0]:
            raise Stuck(f"{name} has not ended after {COMMAND_SECONDS:g} s")
        status = os.read(status_read, 16)
        assert status, f"{name}: no process to call it in; its error is above"
        out, err = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in files[1:])
    finally:
        for fd in (*files, status_read, *([status_write] if status_write >= 0 else [])):
            os.close(fd)
    return int(status), out, err


_zygotes: dict[tuple[int, Path], socket.socket] = {}


def zygote(launcher: Path, program: Path, options: Sequence[str] = (), prefix: Sequence[str] = (), **env: str) -> socket.socket:
    """The socket of this process's zygote that has the modules of a launcher; starts it first."""
    key = os.getpid(), launcher  # a forked child of a test has one of its own
    if key not in _zygotes:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = launcher.read_text().partition("\n")[0].removeprefix("#!").split()
        argv = [*prefix, *python, str(program), str(theirs.fileno()), str(launcher), *options]
        with theirs:
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={"PATH": PATH} | env)
        _zygotes[key] = ours
        atexit.register(_end, ours, process)
    return _zygotes[key]


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait()
