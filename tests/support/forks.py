"""Processes that have loaded what forks of them need: their start, and a request to one.

control = zygote("cni-plugin", [*python, "zygote.py"], env)      the socket of this process's one; starts it first
status, out, err = ask(control, request, stdin, "bridge ADD")     have it fork, or run a program, for a request
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence

from support.waiting import PATIENCE, Stuck

COMMAND_SECONDS = 120.0 * PATIENCE

_zygotes: dict[tuple[int, str], socket.socket] = {}
_starting = threading.Lock()


def zygote(key: str, argv: Sequence[str], env: Mapping[str, str]) -> socket.socket:
    """The socket of this process's zygote of that name; ``argv``, and the number of its own socket, start it.

    An argument ``{}`` is replaced by that number.
    """
    mine = os.getpid(), key  # a forked child of a test has one of its own
    with _starting:
        if mine not in _zygotes:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [str(theirs.fileno()) if word == "{}" else word for word in argv]
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(env)
                )
            _zygotes[mine] = ours
            atexit.register(_end, ours, process)
        return _zygotes[mine]


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait()


def ask(control: socket.socket, request: bytes, stdin: bytes, name: str) -> tuple[int, bytes, bytes]:
    """Have a process answer a request: exit status, standard output and error. Raises: Stuck."""
    files = [os.memfd_create(file) for file in ("in", "out", "err")]
    status_read, status_write = os.pipe()
    try:
        if stdin:
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
