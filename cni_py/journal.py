"""Journal: every change to the kernel or to a file is one line that a person could type.

::

    with step("ip", "link", "set", name, "up"):
        netlink.request(...)

When the block ends, the line is written with its result and duration; if the block fails with an
``OSError``, that becomes the project's error *with the line in it*. Log, ``cni-py explain`` and
error messages therefore agree. Lines go to the file of the attachment,
``/run/cni-py/journal/<container id>:<ifname>:<network>``, and, with ``CNI_PY_EXPLAIN`` set, to
standard error.

Bookkeeping never decides over a call: a journal or a record that cannot be written is said once in the call, on
standard error (:func:`go_on_without`).

Owns: ``/run/cni-py/journal`` (0700). A file holds at most ``MAX_BYTES`` (the older half is dropped);
there are at most ``MAX_FILES``, in an agent fifty more; those of deleted attachments, in ``deleted/``, are dropped first.
"""

from __future__ import annotations

import posix
from _thread import _local
from errno import EACCES, EEXIST, ENOSPC
from time import gmtime, perf_counter, strftime, time

from cni_py.errors import IOFailure, KernelRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

RUN_DIR = "/run/cni-py"
JOURNAL_DIR = f"{RUN_DIR}/journal"
MAX_BYTES = 64 * 1024
MAX_FILES = 1000
MAX_CONFIGURATION = 2048
"""Bytes of a configuration; a longer one is not in the journal."""
_APPEND = posix.O_RDWR | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%!")

_current = _local()
_PRUNE_EVERY = 50
_LONG = 240
"""Characters of a command that an error may begin with."""
_retired = 0


def quote(word: str) -> str:
    """Quote the word for a shell. ``shlex`` would cost 4 ms of imports."""
    return word if word and _PLAIN.issuperset(word) else "'" + word.replace("'", "'\\''") + "'"


def printable(text: str) -> str:
    r"""Escape what could steer a terminal, as ``\x1b``: names come from pods and servers, too."""
    return (
        text if text.isprintable() else "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])
    )


class Journal:
    """Journal of one call; as a context manager, that of the current thread.

    Args:
        title: the call in words, the first line of its part of the file.
        name: file name, unique to an attachment; empty: no file.
        stderr_fd: file descriptor to print each line to as it happens; -1: none.
        warn_fd: file descriptor to say on, once, that bookkeeping is incomplete; -1: none.
        configuration: returns that of the call, called for the first line of the file: by it ``cni-py explain`` says
            what asked for a change.
    """

    def __init__(
        self,
        title: str,
        name: str = "",
        stderr_fd: int = -1,
        warn_fd: int = -1,
        configuration: Callable[[], bytes] | None = None,
    ) -> None:
        self.title, self.name, self.stderr_fd, self.warn_fd = title, name, stderr_fd, warn_fd
        self._configuration = configuration
        self._fd, self._size = -1, 0
        self._began = perf_counter()

    def __enter__(self) -> Journal:
        self._outer = current()
        use(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        use(self._outer)
        if self._fd >= 0 or self.stderr_fd >= 0:
            self.write(f"# {'failed: ' + _in_one_line(error) if error else 'done'}", perf_counter() - self._began)
        if self._fd >= 0:
            posix.close(self._fd)

    def has_room(self) -> bool:
        """Return whether a line of one of many changes is to be written. A daemon's journal counts those that are not."""
        return True

    def write(self, line: str, seconds: float | None = None) -> None:
        """Append a line; the first one opens the file and writes the title."""
        line = printable(line)
        took = "" if seconds is None else f"  ({seconds * 1000:.2f} ms)"
        if self.stderr_fd >= 0:
            try:
                posix.write(self.stderr_fd, f"{line}{took}\n".encode(errors="backslashreplace"))
            except OSError:  # its reader has exited, or it was closed when we were started
                self.stderr_fd = -1
        if not self.name:
            return
        now = time()
        clock = f"{strftime('%H:%M:%S', gmtime(now))}.{int(now % 1 * 1e6):06d}"
        text = f"{clock}  {line}{took}\n"
        try:
            if self._fd < 0:
                self._fd, self._size = _open(self.name)
                if self._configuration and len(shown := self._configuration()) <= MAX_CONFIGURATION:
                    text = f"{clock}  # configuration: {printable(shown.decode(errors='replace'))}\n{text}"
                text = f"# {strftime('%Y-%m-%dT%H:%M:%SZ', gmtime(now))} {printable(self.title)}\n{text}"
            self._size += posix.write(self._fd, text.encode(errors="backslashreplace"))
            if self._size > MAX_BYTES:
                self._size = cut(self._fd, self._size)
        except OSError as error:
            self.name = ""
            self.warn(f"no journal in {JOURNAL_DIR}: {error.strerror}")

    def warn(self, reason: str) -> None:
        """Say the first time that bookkeeping is incomplete."""
        if self.warn_fd < 0:
            return
        reason = printable(reason)
        text = f"cni-py: bookkeeping incomplete, the call goes on: {reason} (see: ls -ld {RUN_DIR}; df -h -i {RUN_DIR})\n"
        try:
            posix.write(self.warn_fd, text.encode(errors="backslashreplace"))
        except OSError:
            pass
        self.warn_fd = -1


def _open(name: str) -> tuple[int, int]:
    """Open the journal file. Returns: file descriptor and size."""
    for directory in (RUN_DIR, JOURNAL_DIR):
        try:
            posix.mkdir(directory, 0o700)
        except FileExistsError:
            check_own(directory)
    path = f"{JOURNAL_DIR}/{name}"
    _bring_back(name)
    fd = posix.open(path, _APPEND, 0o600)
    status = posix.fstat(fd)
    if status.st_mode & 0o170000 != 0o100000:
        posix.close(fd)
        raise FileExistsError(EEXIST, f"{path} is not a regular file")
    return fd, status.st_size


def check_own(directory: str) -> None:
    """Check that no other user can change what one of our directories holds. Raises: OSError, PermissionError if one can."""
    status = posix.lstat(directory)
    if status.st_mode & 0o170022 != 0o040000 or status.st_uid not in (0, posix.geteuid()):
        raise PermissionError(EACCES, f"not a directory that root alone can change, see: ls -ld {directory}")


def _bring_back(name: str) -> None:
    """Restore the journal of a deleted attachment, to append to it: the next plugin of its chain, or a restart."""
    try:
        posix.link(f"{JOURNAL_DIR}/deleted/{name}", f"{JOURNAL_DIR}/{name}")
        posix.unlink(f"{JOURNAL_DIR}/deleted/{name}")
    except OSError:  # no deleted one, or the attachment has a journal already
        pass


def cut(fd: int, size: int) -> int:
    """Drop all but the newest ``MAX_BYTES // 2``. Returns: the new size."""
    kept = posix.pread(fd, MAX_BYTES // 2, max(0, size - MAX_BYTES // 2))
    kept = b"# older lines were cut\n" + kept[kept.find(b"\n") + 1 :]
    posix.ftruncate(fd, 0)
    return posix.write(fd, kept)


def _in_one_line(text: object) -> str:
    """Join the lines of text from another program, so that none of them looks like one of our commands."""
    return " ".join(str(text).split("\n"))


def retire(name: str) -> None:
    """Move the journal of a deleted attachment to those that are dropped first."""
    try:
        posix.mkdir(f"{JOURNAL_DIR}/deleted", 0o700)
    except OSError:
        pass
    try:
        posix.rename(f"{JOURNAL_DIR}/{name}", f"{JOURNAL_DIR}/deleted/{name}")
        _prune_at_times()
    except OSError:
        pass


def _prune_at_times() -> None:
    """Prune after a process's first attachment and then after every 50th: listing a thousand names takes time."""
    global _retired
    if _retired % _PRUNE_EVERY == 0:
        _prune()
    _retired += 1


def _prune() -> None:
    """Drop the oldest files beyond ``MAX_FILES``, those of deleted attachments first."""
    live = [n for n in posix.listdir(JOURNAL_DIR) if n != "deleted"]
    deleted = [f"deleted/{n}" for n in posix.listdir(f"{JOURNAL_DIR}/deleted")]
    excess = len(live) + len(deleted) - MAX_FILES
    if excess <= 0:
        return

    def age(name: str) -> float:
        return posix.stat(f"{JOURNAL_DIR}/{name}").st_mtime

    for name in [*sorted(deleted, key=age), *sorted(live, key=age)][:excess]:
        posix.unlink(f"{JOURNAL_DIR}/{name}")


def current() -> Journal | None:
    """Return the journal of the calling thread."""
    journal: Journal | None = getattr(_current, "journal", None)
    return journal


def use(journal: Journal | None) -> None:
    """Make the calling thread write to another thread's journal."""
    _current.journal = journal


def note(line: str) -> None:
    """Write a comment: something was noticed or decided, nothing was changed."""
    journal = current()
    if journal is not None:
        journal.write(f"# {_in_one_line(line)}")


def go_on_without(error: IOFailure) -> None:
    """Note that bookkeeping could not be read or written; the first time in a call it is said on standard error, too."""
    journal = current()
    if journal is not None:
        journal.write(f"# bookkeeping incomplete: {_in_one_line(error)}")
        journal.warn(_in_one_line(error))


class step:  # noqa: N801 — reads as a statement: with step("ip", "link", …):
    """One change, given as the command that would make it.

    ``unchanged``: set inside where the kernel has it that way already, and the command, typed, would fail: the journal then
    has a comment.

    Args:
        words: the command; each is quoted if a shell needs it.
        error: the type that an ``OSError`` inside becomes: ``KernelRefused`` or ``IOFailure``.
    """

    def __init__(self, *words: str, error: type[KernelRefused] | type[IOFailure] = KernelRefused) -> None:
        self.line = " ".join([quote(word) for word in words])
        self.error = error
        self.unchanged = False

    def __enter__(self) -> step:
        self.began = perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        journal = current()
        if journal is not None:
            line = f"# nothing to do: {self.line}" if self.unchanged else self.line
            journal.write(f"{self.line}  # failed: {_in_one_line(error)}" if error else line, perf_counter() - self.began)
        if isinstance(error, OSError):
            problem = "the kernel refused" if self.error is KernelRefused else "could not write"
            words = error.strerror or str(error)
            hint = "df -h; df -i" if error.errno == ENOSPC and self.error is not KernelRefused else ""
            if len(self.line) > _LONG:  # the reason first: it would stand behind all of it
                raise self.error(f"{problem}: {words}", f'{words}: "{self.line}"', hint, errno=error.errno or 0) from error
            raise self.error(f'{problem}: "{self.line}"', words, hint, errno=error.errno or 0) from error
