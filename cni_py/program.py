"""Run one external program: input and output as a whole, no shell, no pipe.

Standard input and output are memory files, so neither side can block on the other. The program
runs in the network namespace of the calling thread. Used for iptables and for third-party plugins.

Why not ``subprocess``: importing it costs 8 ms, a fifth of a one-shot call.
"""

from __future__ import annotations

import posix

from cni_py.errors import CouldNotRun, IOFailure
from cni_py.files import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_OUTPUT_BYTES = 1 << 20
SYSTEM_DIRECTORIES: tuple[str, ...] = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE, SIGXFSZ: Python ignores them, and a child would inherit that
_REGULAR, _TYPE_BITS = 0o100000, 0o170000


def run(
    argv: list[str],
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    limit_bytes: int = MAX_OUTPUT_BYTES,
    *,
    stderr_fd: int = 2,
) -> tuple[int, bytes]:
    """Run ``argv[0]``, a path, to completion.

    Args:
        env: the whole environment; ``None`` for ours.
        stderr_fd: file descriptor for standard error; see :func:`run_captured` to get its text.

    Returns:
        Exit status (negative: the signal that killed it; see :func:`describe`) and standard output.

    Raises: CouldNotRun if it cannot be started; IOFailure if it wrote more than ``limit_bytes``.
    """
    stdin_fd = posix.memfd_create("stdin")
    stdout_fd = posix.memfd_create("stdout")
    try:
        write_all(stdin_fd, stdin)
        posix.lseek(stdin_fd, 0, 0)
        status = _spawn_and_wait(argv, env, (stdin_fd, stdout_fd, stderr_fd))
        return status, _content(stdout_fd, argv[0], limit_bytes)
    finally:
        posix.close(stdin_fd)
        posix.close(stdout_fd)


def run_quietly(argv: list[str], limit_bytes: int = MAX_OUTPUT_BYTES) -> tuple[int, bytes]:
    """Run like :func:`run`, without what it writes to standard error: warnings, a line for each of thousands of rules."""
    stderr_fd = posix.open("/dev/null", posix.O_WRONLY)
    try:
        return run(argv, limit_bytes=limit_bytes, stderr_fd=stderr_fd)
    finally:
        posix.close(stderr_fd)


def run_captured(argv: list[str], stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Run like :func:`run`. Returns: exit status, standard output, and standard error, stripped."""
    stderr_fd = posix.memfd_create("stderr")
    try:
        status, stdout = run(argv, stdin, stderr_fd=stderr_fd)
        return status, stdout, _content(stderr_fd, argv[0], MAX_OUTPUT_BYTES).decode(errors="replace").strip()
    finally:
        posix.close(stderr_fd)


def _spawn_and_wait(argv: list[str], env: Mapping[str, str] | None, descriptors: tuple[int, int, int]) -> int:
    actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(descriptors)]
    try:
        pid = posix.posix_spawn(
            argv[0],
            argv,
            posix.environ if env is None else env,
            file_actions=actions,
            setsigdef=_IGNORED_BY_PYTHON,
            setsigmask=(),
        )
    except OSError as error:
        raise CouldNotRun(f'could not run "{argv[0]}"', error.strerror or str(error), errno=error.errno or 0) from error
    return posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])


def _content(fd: int, program: str, limit_bytes: int) -> bytes:
    size = posix.fstat(fd).st_size
    if size > limit_bytes:
        raise IOFailure(f'"{program}" wrote {size} bytes', f"the limit is {limit_bytes}")
    return posix.pread(fd, size, 0)


def describe(status: int) -> str:
    """Describe the status in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def find(program: str, directories: Iterable[str]) -> str | None:
    """Return the path of the first executable regular file of this name, or None."""
    if not program or "/" in program:
        return None
    for directory in directories:
        path = f"{directory}/{program}"
        try:
            regular = posix.stat(path).st_mode & _TYPE_BITS == _REGULAR
        except (OSError, ValueError):
            continue
        if directory and regular and posix.access(path, posix.X_OK):
            return path
    return None


def find_system(program: str) -> str | None:
    """Find a program of the system; runtimes often leave PATH empty, so the usual directories are searched first."""
    return find(program, (*SYSTEM_DIRECTORIES, *posix.environ.get(b"PATH", b"").decode(errors="surrogateescape").split(":")))
