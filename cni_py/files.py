"""Files: read with a limit, write whole or not at all, lock.

Every write is a journal step and raises ``IOFailure`` (code 5) with the line that failed. Names
that come from input are checked by ``spec/`` and ``config/`` before they get here.

How a file is written. A new file is created without a name (``O_TMPFILE``) and linked once it is complete. To replace an
existing one, the complete new file is linked as ``.NAME.tmp`` and renamed. A writer that is killed in between leaves
``.NAME.tmp``: at most one per file, however often that happens, removed when the file is next written or removed. It cannot be
mistaken for a real file: container ids do not begin with a dot, and :func:`list_directory` skips it.

Why no lock, and no temporary name per writer. Plugins write concurrently, some in PID namespaces of their own where process
numbers repeat, so a name with a process number is not unique to a writer; and random names that no other process knows leak
when their writer is killed. Here all writers share one name, and a writer that finds it taken removes it: either its writer is
dead, or it is alive, finds nothing to rename, and retries. A file with that name is always complete, so it does no harm if a
writer renames what another has just linked: they wrote at the same time. A symbolic link there is removed, not followed.

On file systems without ``O_TMPFILE`` (NFS, FAT) the temporary has a random name, and a kill leaks it.
"""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, EISDIR, ENOSPC, EOPNOTSUPP, EROFS

from cni_py.errors import InvalidConfig, IOFailure
from cni_py.journal import RUN_DIR, check_own, note, quote, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from cni_py.socket_lock import SocketLock

MAX_BYTES = 1 << 20
SHOWN_BYTES = 1024
"""A longer content is not in the journal."""


def read(path: str, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file. Raises: OSError; IOFailure if it is larger than ``limit`` bytes."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        content = b""
        while block := posix.read(fd, limit + 1 - len(content)):
            content += block
    finally:
        posix.close(fd)
    if len(content) > limit:
        raise IOFailure(f'"{path}" is larger than {limit} bytes', hint=f"look at it: ls -l {path}")
    return content


def exists(path: str) -> bool:
    """Return whether a file of any type has this name; a symbolic link is not followed."""
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def changed_at(path: str) -> int:
    """Return the time of the last change of the content, in nanoseconds since 1970; 0 if there is no file."""
    try:
        return posix.stat(path).st_mtime_ns
    except OSError:
        return 0


def check_space(path: str) -> None:
    """Check that a file can be created in a directory, or in the one above where it does not exist. Raises: IOFailure."""
    there = path
    while True:
        try:
            found = posix.statvfs(there)
            break
        except FileNotFoundError:
            there = there.rpartition("/")[0] or "/"
        except OSError as error:
            raise IOFailure(f'"{path}" cannot be used as a directory', error.strerror or "", errno=error.errno or 0) from error
    msg = f'no file can be created in "{path}"'
    if found.f_flag & posix.ST_RDONLY:
        raise IOFailure(msg, "Read-only file system", errno=EROFS)
    if (found.f_blocks and not found.f_bfree) or (found.f_files and not found.f_ffree):
        raise IOFailure(msg, "No space left on device", f"df -h {there}; df -i {there}", errno=ENOSPC)


def list_directory(path: str) -> list[str]:
    """List the names in a directory, sorted, without temporaries; empty if it does not exist. Raises: IOFailure."""
    try:
        return sorted([name for name in posix.listdir(path) if not (name[0] == "." and name.endswith(".tmp"))])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IOFailure(f'could not list "{path}"', error.strerror or "", errno=error.errno or 0) from error


def check_directory(key: str, path: str) -> None:
    """Check that a directory named in the configuration is absolute and without "..". Raises: InvalidConfig."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/") or len(path) > 1000:
        raise InvalidConfig(f'"{key}" must be an absolute path without ".."', f'it is "{path[:200]}"')


def make_directory(path: str, mode: int) -> None:
    """Create a directory and its parents, all with this mode. Raises: IOFailure."""
    try:
        posix.stat(path)
        return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IOFailure(f'"{path}" cannot be used as a directory', error.strerror or "", errno=error.errno or 0) from error
    parent = path.rstrip("/").rpartition("/")[0]
    if parent:
        make_directory(parent, mode)
    with step("mkdir", "-p", "-m", f"{mode:o}", path, error=IOFailure):
        try:
            posix.mkdir(path, mode)
        except FileExistsError:
            pass


def own_directory(path: str) -> None:
    """Create a directory that only root may enter; an existing one must be ours. Raises: IOFailure."""
    make_directory(path, 0o700)
    check_own_directory(path)


def check_own_directory(path: str) -> None:
    """Check that an existing directory is one that no other user can change; absence is success. Raises: IOFailure."""
    try:
        check_own(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IOFailure(f'"{path}" is not used', error.strerror or "", errno=error.errno or 0) from error


def write(path: str, content: bytes, mode: int = 0o600, *, is_secret: bool = False) -> None:
    """Write the file atomically: readers see the old content, if any, or the new one. Raises: IOFailure.

    Args:
        is_secret: the journal must not have the content, which may hold a key.
    """
    with _install(path, content, mode, is_shown=not is_secret):
        try:
            is_done = not exists(path) and create(path, content, mode)
        except FileExistsError:  # created by another process in between
            is_done = False
        if not is_done:
            _replace(path, content, mode)


def _install(path: str, content: bytes, mode: int, *, is_shown: bool = True) -> step:
    """Return the step, with the content in its line unless it is long, or a secret, which nothing but a reader may open."""
    change = step("install", "-m", f"{mode:o}", "/dev/stdin", path, error=IOFailure)
    if is_shown and mode & 0o200 and len(content) <= SHOWN_BYTES and content.isascii() and b"\r" not in content:
        *lines, last = content.decode().split("\n")
        if not last and lines:
            change.line = f"printf '%s\\n' {' '.join(map(quote, lines))} | {change.line}"
        else:
            form = quote("\\n".join(["%s"] * (len(lines) + 1)))
            change.line = f"printf {form} {' '.join(map(quote, [*lines, last]))} | {change.line}"
    return change


def create(path: str, content: bytes, mode: int = 0o600) -> bool:
    """Create a file that gets its name once it is complete, so that a kill leaks nothing.

    Returns False if that is impossible: on a file system without ``O_TMPFILE``, or without ``/proc``. Raises: OSError.
    """
    directory, slash, _ = path.rpartition("/")
    try:
        fd = posix.open(directory or slash or ".", posix.O_WRONLY | posix.O_TMPFILE | posix.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (EISDIR, EOPNOTSUPP, EINVAL):
            return False
        raise
    try:
        write_all(fd, content)
        posix.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)  # without a dir_fd Python does not follow
    except FileNotFoundError:
        return False
    finally:
        posix.close(fd)
    return True


def _replace(path: str, content: bytes, mode: int) -> None:
    """Replace an existing file: link a temporary and rename it, see above. Raises: OSError."""
    temporary = _temporary(path)
    while True:
        try:
            has_name = create(temporary, content, mode)
        except FileExistsError:
            _unlink(temporary)
            continue
        if not has_name:
            _replace_by_random_name(path, content, mode)
            return
        try:
            posix.rename(temporary, path)
        except FileNotFoundError:  # another writer removed it
            continue
        except OSError:
            _unlink(temporary)
            raise
        return


def _replace_by_random_name(path: str, content: bytes, mode: int) -> None:
    """Replace a file where ``O_TMPFILE`` is not supported. Raises: OSError."""
    temporary = f"{path}.{posix.urandom(4).hex()}.tmp"
    fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, mode)
    try:
        write_all(fd, content)
        posix.rename(temporary, path)
    except OSError:
        posix.unlink(temporary)
        raise
    finally:
        posix.close(fd)


def _temporary(path: str) -> str:
    """Return the name of a file before it is renamed to ``path``."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}.{name}.tmp"


def _unlink(path: str) -> None:
    """Unlink the file if it exists. Raises: OSError."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def write_all(fd: int, content: bytes) -> None:
    """Write every byte, or raise OSError."""
    view = memoryview(content)
    while view:
        view = view[posix.write(fd, view) :]


def remove(path: str) -> None:
    """Delete the file; absence is success."""
    with step("rm", "-f", path, error=IOFailure):
        # The temporary first: if we are killed in between, the file is still there and is removed again.
        remove_temporary(path)
        _unlink(path)


def remove_temporary(path: str) -> None:
    """Delete the temporary that a killed writer of this file left. Raises: OSError."""
    if exists(_temporary(path)):
        _unlink(_temporary(path))


class Lock:
    """``with Lock(path):`` — an exclusive ``flock``, released by the kernel if we die."""

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.path, self.mode = path, mode

    def __enter__(self) -> None:
        from fcntl import LOCK_EX, flock

        self._fd = -1
        try:
            self._fd = self._open()
            flock(self._fd, LOCK_EX)
        except OSError as error:
            if self._fd >= 0:
                posix.close(self._fd)
            raise IOFailure(f'could not lock "{self.path}"', error.strerror or "", errno=error.errno or 0) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        posix.close(self._fd)

    def _open(self) -> int:
        flags = posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
        try:
            return posix.open(self.path, posix.O_RDWR | posix.O_CREAT | flags, self.mode)
        except OSError as error:
            if error.errno not in (EROFS, EACCES):
                raise
            try:
                return posix.open(self.path, posix.O_RDONLY | flags)  # flock writes nothing
            except FileNotFoundError:  # the reason is that it could not be created
                raise error from None


class HostLock:
    """``with HostLock(name):`` — a :class:`Lock` in ``/run/cni-py``; where that cannot be used, an abstract socket."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held: Lock | SocketLock | None = None

    def __enter__(self) -> None:
        lock: Lock | SocketLock = Lock(f"{RUN_DIR}/{self._name}")
        try:
            own_directory(RUN_DIR)
            lock.__enter__()
        except IOFailure as error:
            from cni_py.socket_lock import SocketLock

            note(f'the lock "{self._name}" is taken without a file: {error}')
            lock = SocketLock(self._name)
            lock.__enter__()
        self._held = lock

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._held is not None:
            self._held.__exit__(kind, error, trace)
