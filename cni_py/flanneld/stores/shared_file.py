"""A file that several nodes read and write: whole or not at all, one writer at a time.

How it works. A writer holds a lock (``flock`` on ``PATH.lock``), writes ``PATH.tmp`` to the disk and renames it: a reader
sees the old file or the new one, whenever the writer dies. Readers take no lock; whether the file has changed they see by
``stat``, which notices an editor, and also a file on NFS, of which the kernel sends no notifications.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from time import monotonic, sleep, time
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.datastore.errors import Refused, Unavailable
from cni_py.errors import IOFailure
from cni_py.journal import step

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 16 << 20
"""More than 50,000 leases."""
LOCK_SECONDS = 5.0
SETTLED_SECONDS = 1.0
"""A file changed less than this ago is read again: a second change may carry the same time."""


class SharedFile:
    """The file ``path``, links resolved. ``create``: the command that creates a missing one, for the hint."""

    def __init__(self, path: str, create: str) -> None:
        self.path, self._create = os.path.realpath(path), create

    def __str__(self) -> str:
        return self.path

    def exists(self) -> bool:
        return files.exists(self.path)

    def read(self) -> bytes:
        """Raises: StoreError."""
        try:
            return files.read(self.path, MAX_BYTES)
        except FileNotFoundError as error:
            raise Refused(f"{self.path} does not exist", f"create it: {self._create}") from error
        except IOFailure as error:
            raise Refused(error.msg, error.hint) from error
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read: {error.strerror}", f"see ls -l {self.path}") from error

    def signature(self) -> tuple[int, ...] | None:
        """Equal as long as the file is the same; None: it must be read to know."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        if time() - found.st_ctime < SETTLED_SECONDS:
            return None
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def is_read_only(self) -> bool:
        """Return whether it may be written: for root that depends on the mode and the file system."""
        try:
            return not os.stat(self.path).st_mode & 0o222 or bool(os.statvfs(self.path).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def replace(self, content: bytes) -> None:
        """Replace the file, with the lock held. Raises: StoreError."""
        with _explained(self.path), step("install", "/dev/stdin", self.path, error=IOFailure):
            _replace(self.path, content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; the kernel frees it when we die. Raises: StoreError."""
        path, until = f"{self.path}.lock", monotonic() + LOCK_SECONDS
        with _explained(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while not _try_lock(fd, path):
                if monotonic() > until:
                    raise Unavailable(
                        f"another process has held {path} for {LOCK_SECONDS:.0f} s", f"see which: fuser -v {path}"
                    )
                sleep(0.005)
            yield
        finally:
            os.close(fd)


def _try_lock(fd: int, path: str) -> bool:
    """Raises: StoreError."""
    try:
        with _explained(path):
            flock(fd, LOCK_EX | LOCK_NB)
    except Unavailable as error:
        if isinstance(error.__cause__, BlockingIOError):
            return False
        raise
    return True


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Translate an error of a write to a StoreError."""
    try:
        yield
    except (IOFailure, OSError) as error:
        msg = f"{path} cannot be written: {os.strerror(error.errno or 0)}"
        if error.errno == errno.EBUSY:
            raise Refused(msg, "the file itself is mounted: mount its directory instead") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP):
            raise Refused(msg, f"see ls -ld {os.path.dirname(path)} {path}") from error
        raise Unavailable(msg, f"see df {os.path.dirname(path)}") from error


def _replace(path: str, content: bytes) -> None:
    """Write it under another name, with the mode and owner of the old file; the lock protects that name. Raises: OSError."""
    temporary, old = f"{path}.tmp", os.stat(path) if files.exists(path) else None
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # of a process that was killed
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        files.write_all(fd, content)
        if old is not None:
            os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, old.st_mode & 0o7777)
        os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
