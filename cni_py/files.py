"""Files: read with a limit, write whole or not at all, lock.

Every write is a journal step and raises ``IOFailure`` (code 5) with the line that failed. Names
that come from input are checked by ``call.py`` and ``config.py`` before they get here.
"""

from __future__ import annotations

import posix
from _thread import get_native_id
from errno import EINVAL, EISDIR, EOPNOTSUPP

from cni_py.errors import InvalidConfig, IOFailure
from cni_py.kernel.journal import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

MAX_BYTES = 1 << 20


def read(path: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file. Raises: OSError; IOFailure where it is larger than ``limit`` bytes."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        content = b""
        while block := posix.read(fd, limit + 1 - len(content)):
            content += block
    finally:
        posix.close(fd)
    if len(content) > limit:
        raise IOFailure(f'"{path}" is larger than {limit} bytes', hint=f"see what it is: ls -l {path}")
    return content


def exists(path: str) -> bool:
    """Whether there is something of this name."""
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def changed_at(path: str) -> int:
    """When the content was last changed, in nanoseconds since 1970; 0 where there is nothing."""
    try:
        return posix.stat(path).st_mtime_ns
    except OSError:
        return 0


def list_folder(path: str) -> list[str]:
    """The names in a folder, sorted; none where it is not there. Raises: IOFailure."""
    try:
        return sorted(posix.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IOFailure(f'could not list "{path}"', error.strerror or "", errno=error.errno or 0) from error


def check_folder(key: str, path: str) -> None:
    """A folder that the configuration names must be absolute and without "..". Raises: InvalidConfig."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/") or len(path) > 1000:
        raise InvalidConfig(f'"{key}" must be an absolute path without ".."', f'it is "{path[:200]}"')


def make_folder(path: str, mode: int) -> None:
    """``mkdir -p`` with this mode for every folder that is made. Raises: IOFailure."""
    try:
        posix.stat(path)
        return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IOFailure(f'"{path}" cannot be used as a folder', error.strerror or "", errno=error.errno or 0) from error
    parent = path.rstrip("/").rpartition("/")[0]
    if parent:
        make_folder(parent, mode)
    with step("mkdir", "-p", "-m", f"{mode:o}", path, error=IOFailure):
        try:
            posix.mkdir(path, mode)
        except FileExistsError:
            pass


def write(path: str, content: bytes, mode: int = 0o600) -> None:
    """Put the file there in one step: whole or not at all; where there is one, its old content or the new one."""
    with step("install", "-m", f"{mode:o}", "/dev/stdin", path, error=IOFailure):
        try:
            is_done = not exists(path) and create(path, content, mode)
        except FileExistsError:  # by now
            is_done = False
        if not is_done:
            _replace(path, content, mode)


def create(path: str, content: bytes, mode: int = 0o600) -> bool:
    """A new file that gets its name when it is complete, so that a kill leaves nothing; ``False`` where there cannot be one.

    That is on a file system without files that have no name, and without ``/proc``. Raises: OSError.
    """
    try:
        fd = posix.open(path.rpartition("/")[0] or "/", posix.O_WRONLY | posix.O_TMPFILE | posix.O_CLOEXEC, mode)
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
    """By another name and a rename. Raises: OSError."""
    temporary = f"{path}.{get_native_id()}.tmp"
    fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC | posix.O_NOFOLLOW, mode)
    try:
        write_all(fd, content)
    except OSError:
        posix.unlink(temporary)
        raise
    finally:
        posix.close(fd)
    posix.rename(temporary, path)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte, or raise OSError."""
    view = memoryview(content)
    while view:
        view = view[posix.write(fd, view) :]


def remove(path: str) -> None:
    """Delete the file; absence is success."""
    with step("rm", "-f", path, error=IOFailure):
        try:
            posix.unlink(path)
        except FileNotFoundError:
            pass


class Lock:
    """``with Lock(path):`` — an exclusive ``flock``, freed by the kernel if we die."""

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.path, self.mode = path, mode

    def __enter__(self) -> None:
        from fcntl import LOCK_EX, flock

        self._fd = -1
        try:
            self._fd = posix.open(self.path, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, self.mode)
            flock(self._fd, LOCK_EX)
        except OSError as error:
            if self._fd >= 0:
                posix.close(self._fd)
            raise IOFailure(f'could not lock "{self.path}"', error.strerror or "", errno=error.errno or 0) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        posix.close(self._fd)
