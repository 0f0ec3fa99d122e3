"""Network namespaces of the host, with what is in each, read from outside. Changes nothing.

A namespace is kept with the paths that lead to it: mount points, and processes, since a path such as /proc/4711/ns/net has to
lead to its copy, too.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from cni_py.kernel.netns import NetNS
from cni_py.plan import tables
from cni_py.plan.tables import Tables
from cni_py.sweep.netns_scan import nsfs_mounts, read_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OF_PROCESS = re.compile(r"/proc/(\d+)/(?:task/\1/)?ns/net")
_SYSCTL_DIRECTORIES = ("net/ipv4", "net/ipv6", "net/bridge", "net/core", "net/netfilter")
_MAX_VALUE = 4096
_SECRET = ("stable_secret",)

Sysctls = dict[str, str]


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace as it is.

    Attributes:
        paths: its mount points.
        pids: processes that are to lead to it.
        is_sandbox: the path of an attachment leads by one of these processes.
        identity: its device and inode, as records have them.
    """

    paths: tuple[str, ...]
    pids: tuple[int, ...]
    is_sandbox: bool
    identity: tuple[int, int]
    tables: Tables
    sysctls: Sysctls


def read(sandboxes: Iterable[str]) -> list[Namespace]:
    """Read the namespace of the caller, which is first, and every other one.

    Args:
        sandboxes: paths that attachments have; those in /proc keep their process numbers.

    Raises: OSError.
    """
    own = os.stat("/proc/self/ns/net").st_ino
    mounts: dict[int, dict[str, None]] = {}
    for kind, inode, path in nsfs_mounts(read_all(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))):
        if kind == "net":
            mounts.setdefault(inode, {})[path] = None
    named = {int(found[1]) for path in sandboxes if (found := _OF_PROCESS.fullmatch(path))}
    processes: dict[int, list[int]] = {}
    for pid, inode in sorted(_processes()):
        processes.setdefault(inode, []).append(pid)
    namespaces = [_read_first(["/proc/self/ns/net"], own, (), (), is_sandbox=False)]
    for inode in dict.fromkeys([*mounts, *processes]):
        if inode != own:
            pids, paths = processes.get(inode, []), tuple(mounts.get(inode, ()))
            of_sandboxes = [pid for pid in pids if pid in named]
            kept = of_sandboxes or pids[: 0 if paths else 1]
            ways = [*paths, *(f"/proc/{pid}/ns/net" for pid in pids)]
            namespaces.append(_read_first(ways, inode, paths, tuple(kept), is_sandbox=bool(of_sandboxes)))
    return [one for one in namespaces if one is not None]


def _processes() -> Iterator[tuple[int, int]]:
    """Yield processes and the inodes of their namespaces."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield int(name), os.stat(f"/proc/{name}/ns/net").st_ino
            except OSError:  # it has ended
                continue


def _read_first(
    ways: Iterable[str], inode: int, paths: tuple[str, ...], pids: tuple[int, ...], *, is_sandbox: bool
) -> Namespace | None:
    """Return a namespace by the first of the paths that leads to it; None if it was deleted meanwhile."""
    for path in ways:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        with NetNS(path, fd) as netns:
            status = os.fstat(fd)
            if status.st_ino == inode:  # otherwise another mount hides it
                known, values = netns.run(lambda: (tables.read(), dict(sysctls())))
                return Namespace(paths, pids, is_sandbox, (status.st_dev, status.st_ino), known, values)
    return None


def sysctls() -> Iterator[tuple[str, str]]:
    """Yield the kernel parameters of the namespace that the thread is in, and their values."""
    for directory in _SYSCTL_DIRECTORIES:
        yield from _values(f"/proc/sys/{directory}")


def _values(directory: str) -> Iterator[tuple[str, str]]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _values(entry.path)
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            value = os.read(fd, _MAX_VALUE).decode(errors="replace").rstrip("\n")
        except OSError:
            continue
        finally:
            os.close(fd)
        if entry.name not in _SECRET:
            yield entry.path.removeprefix("/proc/sys/"), value
