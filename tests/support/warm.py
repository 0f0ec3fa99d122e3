"""Plugins without their start: in this host each call is a fork of one process that has loaded them.

    with WarmHost(bin_dir) as host:
        host.ok("flannel", "ADD", CONF, sandbox=pod)

How it works. :func:`serve` is run in the host's namespaces by the Python that runs the tests. A call goes to it
through a pipe; its fork gets the call's environment, standard streams and name, and is then ``client.main()``, as an executed
plugin is. What an interpreter's start takes, six times as long as most calls, is saved.
"""

from __future__ import annotations

import os
import pickle
import posix
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.namespaces import PATH, Host

ROOT = Path(__file__).resolve().parents[2]
SERVER = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; from support.warm import serve; serve()"


class WarmHost(Host):
    """A Host whose own plugins are called so; any other program is executed, as in every Host."""

    def __init__(self, bin_dir: str | Path) -> None:
        super().__init__(bin_dir)
        self._server: subprocess.Popen[bytes] = subprocess.Popen(
            self.command(sys.executable, "-I", "-c", SERVER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
        )

    def close(self) -> None:
        self._server.communicate()
        super().close()

    def plugin(self, program: str, env: Mapping[str, str | bytes], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        if program.rpartition("/")[0] != self.bin_dir:
            return super().plugin(program, env, stdin)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        pickle.dump(
            (program, {os.fsencode(name): os.fsencode(value) for name, value in env.items()}, stdin), self._server.stdin
        )
        self._server.stdin.flush()
        answer: tuple[int, bytes, bytes] = pickle.load(self._server.stdout)
        return answer


def serve() -> None:
    """Answer calls from standard input until it ends."""
    from cni_py.agent.warm_up import warm_up

    warm_up()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(_answer(*request), replies)
        replies.flush()


def _answer(program: str, env: dict[bytes, bytes], stdin: bytes) -> tuple[int, bytes, bytes]:
    files = [os.memfd_create(name) for name in ("in", "out", "err")]
    try:
        os.write(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _become(program, env, files)
        _, status = os.waitpid(pid, 0)
        out, err = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in files[1:])
    finally:
        for fd in files:
            os.close(fd)
    return os.waitstatus_to_exitcode(status), out, err


def _become(program: str, env: dict[bytes, bytes], files: list[int]) -> Any:
    """The forked child: the plugin of this name."""
    from cni_py import client

    try:
        for number, fd in enumerate(files):
            os.dup2(fd, number)
        posix.environ.clear()
        posix.environ.update(env)
        sys.argv = [program]
        client.main()
    finally:
        posix._exit(127)
