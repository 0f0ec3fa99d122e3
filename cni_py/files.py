"""Files: read with a limit, write whole or not at all, lock.

Every write is a journal step and raises ``IOFailure`` (code 5) with the line that failed. Names
that come from input are checked by ``call.py`` and ``config.py`` before they get here.

How a file is written. A new one is written without a name (``O_TMPFILE``) and gets its name when it is complete. One that is
there is replaced: the new file gets the name ``.NAME.tmp`` when it is complete, and is renamed. Who is killed between the two
leaves ``.NAME.tmp``: one for each file, however often that happens, and it goes when the file is written again or removed.
Nobody takes it for a file of its own: no container id begins with a dot, and :func:`list_folder` passes it over.

Why no lock and no name of each writer's own. Plugins write at the same time, some in process namespaces of their own, where
process numbers repeat, so a name with such a number is not a writer's alone; and names that nobody else knows stay when
their writer is killed. Here the writers share one name, and who finds it taken removes it: either it is of a dead
one, or a living one finds nothing to rename then, and begins again. What bears that name is always complete, so it does no harm
if a writer renames what another has just put there: they wrote at the same time. A link that is planted there is
removed, not followed.

Where the file system does not know files without a name (NFS, FAT), the temporary has a random name, and a kill leaves it.
"""

from __future__ import annotations

import posix
from errno import EINVAL, EISDIR, EOPNOTSUPP

from cni_py.errors import InvalidConfig, IOFailure
from cni_py.journal import step

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
    """The names in a folder, sorted, without temporaries; none where it is not there. Raises: IOFailure."""
    try:
        return sorted([name for name in posix.listdir(path) if not (name[0] == "." and name.endswith(".tmp"))])
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
    folder, slash, _ = path.rpartition("/")
    try:
        fd = posix.open(folder or slash or ".", posix.O_WRONLY | posix.O_TMPFILE | posix.O_CLOEXEC, mode)
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
    """By another name and a rename, see above. Raises: OSError."""
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
        except FileNotFoundError:  # another writer was quicker
            continue
        except OSError:
            _unlink(temporary)
            raise
        return


def _replace_by_random_name(path: str, content: bytes, mode: int) -> None:
    """Where a file needs a name from the first moment on. Raises: OSError."""
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
    """What a file is called before it takes the place of ``path``."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}.tmp"


def _unlink(path: str) -> None:
    """Raises: OSError; not where there is nothing."""
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
        remove_temporary(path)  # first: who is killed here leaves what is removed again
        _unlink(path)


def remove_temporary(path: str) -> None:
    """Delete what a killed writer of this file left. Raises: OSError."""
    if exists(_temporary(path)):
        _unlink(_temporary(path))


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
