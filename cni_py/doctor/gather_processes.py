"""The flannelds of this network namespace, their options, and what their health server says. Changes nothing."""

from __future__ import annotations

import os
import shlex
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.doctor.facts import Daemon
from cni_py.errors import CniError, IOFailure
from cni_py.flanneld.options import UsageError, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cni_py.flanneld.options import Options

HEALTH_SECONDS = 1.0
_NAME = "flanneld"
_UNITS = tuple(
    f"{directory}/flanneld.service"
    for directory in ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
)
_ENDS_BY_ITSELF = ("--cleanup", "-cleanup", "--version", "-version", "--check-config", "-check-config", "--help", "-help")
_VARIABLES = ("FLANNELD_", "KUBERNETES_", "NODE_NAME", "POD_NAME", "POD_NAMESPACE", "WIREGUARD_KEY_FILE")


def daemons() -> list[Daemon]:
    """Return the flannelds that run in this network namespace. Raises: IOFailure if another user's processes are hidden."""
    found = []
    own = os.stat("/proc/thread-self/ns/net").st_ino
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        argv = _argv(name)
        at = _place(argv)
        if at is None or any(word in _ENDS_BY_ITSELF for word in argv[at + 1 :]):
            continue
        try:
            if os.stat(f"/proc/{name}/ns/net").st_ino != own:
                continue
            environ = _environ(files.read(f"/proc/{name}/environ"))
        except PermissionError as error:
            raise IOFailure("the processes of other users cannot be read", "it requires root") from error
        except OSError:  # it has exited
            continue
        options = _options(argv[at + 1 :], environ)
        found.append(_asked(Daemon(int(name), argv[at], options, environ, is_stopped=_is_stopped(name))))
    return sorted(without_forks(found, _parent), key=lambda daemon: daemon.pid)


def without_forks(daemons: Sequence[Daemon], parent: Callable[[int], int]) -> list[Daemon]:
    """Return the daemons but children of one of them: until it executes a program, a child looks like its parent."""
    pids = {daemon.pid for daemon in daemons}
    return [daemon for daemon in daemons if parent(daemon.pid) not in pids]


def _parent(pid: int) -> int:
    """Return the process that created this one; 0 if that is not known, for it has exited."""
    with suppress(OSError, CniError, IndexError, ValueError):
        return int(files.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    return 0


def of_unit() -> tuple[bool, Options | None]:
    """Return whether systemd has a unit for flanneld, and the options in it, as far as they can be read."""
    path = next(filter(os.path.exists, _UNITS), "")
    if not path or not os.path.isdir("/run/systemd/system"):
        return False, None
    environ: dict[str, str] = {}
    argv: list[str] = []
    for key, value in _settings([path, *_drop_ins(path)]):
        if key == "Environment":
            environ |= dict(word.partition("=")[::2] for word in _words(value))
        elif key == "EnvironmentFile":
            environ |= environment_file(value.removeprefix("-"))
        elif key == "ExecStart" and value:
            argv = _words(value.lstrip("-@:+!"))
    options = _options([os.path.expandvars(word) for word in argv[1:]], environ)
    return True, options


def unit_files() -> list[str]:
    """Return the files of flanneld's unit, and the environment files that they name."""
    path = next(filter(os.path.exists, _UNITS), "")
    if not path:
        return []
    paths = [path, *_drop_ins(path)]
    return [*paths, *(value.removeprefix("-") for key, value in _settings(paths) if key == "EnvironmentFile")]


def environment_file(path: str) -> dict[str, str]:
    """Return the variables of a file for systemd; empty if it cannot be read."""
    try:
        text = files.read(path).decode(errors="replace")
    except (OSError, CniError):
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith(("#", ";")))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _drop_ins(path: str) -> list[str]:
    directory = f"{path}.d"
    with suppress(OSError):
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.endswith(".conf")]
    return []


def _settings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        with suppress(OSError, CniError):
            text = files.read(path).decode(errors="replace").replace("\\\n", " ")
            for line in text.splitlines():
                key, equals, value = line.strip().partition("=")
                if equals and not key.startswith(("#", ";")):
                    yield key.strip(), value.strip()


def _words(text: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(text)
    return text.split()


def _argv(pid: str) -> list[str]:
    """Return the arguments of a process; empty if it has exited, and for a thread of the kernel."""
    try:
        return files.read(f"/proc/{pid}/cmdline").decode(errors="surrogateescape").rstrip("\0").split("\0")
    except (OSError, CniError):
        return []


def _is_stopped(pid: str) -> bool:
    with suppress(OSError, CniError, IndexError):
        return files.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] in (b"T", b"t")
    return False


def _place(argv: Sequence[str]) -> int | None:
    """Return the index of the program in its arguments if it is a flanneld: executed by itself, or by Python."""
    if not argv:
        return None
    if os.path.basename(argv[0]) == _NAME:
        return 0
    if not os.path.basename(argv[0]).startswith("python"):
        return None
    script = next((at for at, word in enumerate(argv[1:], 1) if not word.startswith("-")), None)
    return script if script is not None and os.path.basename(argv[script]) == _NAME else None


def _environ(content: bytes) -> dict[str, str]:
    """Return the variables that concern flanneld."""
    pairs = (word.partition("=") for word in content.decode(errors="surrogateescape").split("\0"))
    return {key: value for key, _, value in pairs if key.startswith(_VARIABLES)}


def _options(argv: Sequence[str], environ: Mapping[str, str]) -> Options | None:
    """Return the options, None where they are not flanneld's."""
    try:
        return parse(argv, environ)
    except (UsageError, SystemExit, ValueError):
        return None


def _asked(daemon: Daemon) -> Daemon:
    """Ask the health server, if it has one."""
    options = daemon.options
    if options is None or not options.healthz_port or daemon.is_stopped:
        return daemon
    host = options.healthz_ip
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        status, lines = _get(host, options.healthz_port, "/readyz")
    except OSError as error:
        reason = f"its health server does not answer: {error.strerror or type(error).__name__}"
        return replace(daemon, is_ready=False, reasons=(reason,))
    return replace(daemon, is_ready=status == 200, reasons=tuple(lines[1:]))


def _get(host: str, port: int, path: str) -> tuple[int, list[str]]:
    """Raises: OSError."""
    with socket.create_connection((host, port), HEALTH_SECONDS) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while (block := sock.recv(4096)) and len(answer) < 1 << 16:
            answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return int(status[0]) if status and status[0].isdigit() else 0, body.decode(errors="replace").splitlines()
