"""One flanneld per node and subnet file: a second one would fight with the first about devices, routes and the file.

    with only_one(options.subnet_file): …

How it works. A record lock (``fcntl``) on a file beside the subnet file: the kernel releases it when we die, and names the
process that holds it. Where that directory cannot be written the lock is beside the saved leases; where neither can, there is
none, which is a warning. A file that another process deletes, with ``/run/flannel`` for example, is created and locked again
within a second, since a second flanneld would create another one. Another network on the node has a subnet file of its own, and
so a lock of its own. A process in another PID namespace is refused too, without its number.

Owns: ``/run/flannel/.subnet.env.lock``, deleted by ``flanneld --cleanup``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager, suppress
from struct import calcsize, pack, unpack
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.errors import CniError, NotAvailable
from cni_py.flanneld import saved
from cni_py.node.file_watch import FileWatch
from cni_py.node.log import error, info, warning
from cni_py.node.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLOCK = "hhqqi4x"
"""struct flock of fcntl(2): type, whence, start, length, process."""


@contextmanager
def only_one(subnet_file: str, *, removes: bool = False) -> Iterator[None]:
    """Hold the lock within this block. Raises: NotAvailable if another process holds it.

    ``removes``: delete its file at the end; it is not restored until then.
    """
    lock, ended = Lock(subnet_file), Stop()
    keeping = threading.Thread(target=lock.run, args=(ended,), name="lock", daemon=True)
    try:
        if lock.path and not removes:
            keeping.start()
        yield
        if removes and lock.path:
            with suppress(FileNotFoundError):
                os.unlink(lock.path)
    finally:
        ended.set()
        if keeping.is_alive():
            keeping.join()
        lock.close()


class Lock:
    """The lock and its file; ``path`` "" where none can be used. Raises: NotAvailable."""

    def __init__(self, subnet_file: str) -> None:
        self._subnet_file, self._trouble = subnet_file, ""
        self._fd, self.path = _open_any(subnet_file)

    def run(self, ended: Stop) -> None:
        """Keep the file until ``ended``."""
        with FileWatch(self.path) as watch:
            while watch.wait(ended, is_right=not self._trouble):
                self.look()

    def look(self) -> None:
        """Create and lock the file again if it was deleted or replaced."""
        try:
            if _is_at(self._fd, self.path):
                return
            files.make_directory(os.path.dirname(self.path), 0o755)
            fd = _locked(self.path, self._subnet_file)
        except (CniError, OSError) as fault:
            if str(fault) != self._trouble:
                self._trouble = str(fault)
                error(f"{self.path} was deleted by another process and cannot be locked again: {fault}")
            return
        os.close(self._fd)
        self._fd, self._trouble = fd, ""
        info(f"restored {self.path}, which another process had deleted")

    def close(self) -> None:
        """Release it."""
        if self._fd >= 0:
            os.close(self._fd)


def paths_for(subnet_file: str) -> list[str]:
    """Return the paths of the lock, the first possible one is used."""
    path = os.path.realpath(subnet_file)
    directory, name = os.path.split(path)
    return [f"{directory}/.{name}.lock", f"{saved.path_for(path)}.lock"]


def _open_any(subnet_file: str) -> tuple[int, str]:
    """Return the descriptor and the path; -1 if no file can be used. Raises: NotAvailable."""
    faults = []
    for path in paths_for(subnet_file):
        try:
            files.make_directory(os.path.dirname(path), 0o755)
            return _locked(path, subnet_file), path
        except NotAvailable:
            raise
        except (CniError, OSError) as fault:
            faults.append(str(fault))
    warning(f"a second flanneld with {subnet_file} would not be noticed: {'; '.join(faults)}")
    return -1, ""


def _locked(path: str, subnet_file: str) -> int:
    """Raises: NotAvailable, OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(fd)
            os.close(fd)
            raise NotAvailable(
                f"flanneld already runs with the subnet file {subnet_file}: {holder}",
                hint="stop that one, systemctl stop flanneld; a second network on this node needs another -subnet-file",
            ) from error
        except OSError:
            os.close(fd)
            raise
        if _is_at(fd, path):
            return fd
        os.close(fd)  # deleted by a cleanup in between: that of another process would be another file


def _is_at(fd: int, path: str) -> bool:
    """Return whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _holder(fd: int) -> str:
    """Return the process that has the lock, in words; 0 is one of another PID namespace."""
    asked = fcntl.fcntl(fd, fcntl.F_GETLK, pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    *_, pid = unpack(_FLOCK, asked[: calcsize(_FLOCK)])
    return f"process {pid}" if pid > 0 else "a process of another PID namespace"
