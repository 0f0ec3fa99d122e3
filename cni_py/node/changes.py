"""A daemon's journal: each change that it makes, and what it made it for, as ``cni-py explain --flanneld`` shows them.

::

    keep_journal("the thread that keeps the leases")     # in each thread
    because(lambda: f"the lease of {subnets} is new")     # from now on, in this thread
    …                                                     # changes: with step(…)
    finish()

The lines are those of journal.py, in calls as it has them: a title with what happened, the changes, how long they took. With
``-v=1`` each line is in the log, too.

What it costs. A title is put into words with its first change only. Of thousands of changes at once, as at the start in a
large network, the first :data:`MAX_LINES` are written and the others counted. That a file cannot be written, without the
capability or on a full file system, is logged once, and it is not tried again: the data path never depends on it.

The file has at most ``journal.MAX_BYTES``; the older half is dropped. The daemon chooses where it is.
"""

from __future__ import annotations

import os
import threading
from errno import EEXIST
from stat import S_ISREG
from time import gmtime, perf_counter, strftime, time
from typing import TYPE_CHECKING

from cni_py import journal
from cni_py.node.log import is_verbose, verbose, warning
from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    Title = str | Callable[[], str]

MAX_LINES = 64
"""Changes for one reason that are written; the others are counted."""
_OPEN = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class JournalFile:
    """The file, which the threads share; whenever another thread writes, its title comes first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        self._last: ThreadJournal | None = None

    def write(self, by: ThreadJournal, line: str, seconds: float | None) -> None:
        """Append a line; a fault is logged once, and ends it."""
        took = "" if seconds is None else f"  ({seconds * 1000:.2f} ms)"
        now = time()
        text = f"{strftime('%H:%M:%S', gmtime(now))}.{int(now % 1 * 1e6):06d}  {line}{took}\n"
        with self._lock:
            if not self.path:  # only the log has them, or the file cannot be written
                return
            if self._last is not by or by.is_new:
                text = f"# {strftime('%Y-%m-%dT%H:%M:%SZ', gmtime(now))} {by.words()}\n{text}"
                self._last, by.is_new = by, False
            try:
                if self._fd < 0:
                    self._fd, self._size = _opened(self.path)
                self._size += os.write(self._fd, text.encode(errors="backslashreplace"))
                if self._size > journal.MAX_BYTES:
                    self._size = journal.cut(self._fd, self._size)
            except OSError as fault:
                warning(f"no journal of changes in {self.path}: {fault.strerror}; all else goes on")
                self.path = ""


class ThreadJournal(journal.Journal):
    """The journal of a thread: its lines go into the file, with what the thread is doing now."""

    def __init__(self, title: Title, file: JournalFile) -> None:
        super().__init__("")
        self._file = file
        self.begin(title)

    def begin(self, title: Title) -> None:
        """Begin with what is done next."""
        self._title, self.is_new, self._lines, self._left_out = title, True, 0, 0
        self._began = perf_counter()

    def words(self) -> str:
        """Return the title in one line."""
        words = self._title if isinstance(self._title, str) else self._title()
        return " ".join(words.split("\n"))

    def finish(self) -> None:
        """End what was begun; nothing is written if nothing was changed."""
        if self._left_out:
            self._file.write(self, f"# and {counted(self._left_out, 'change')} more, which are not listed", None)
        if self._lines:
            self._file.write(self, "# done", perf_counter() - self._began)
        self.begin(self._title)

    def has_room(self) -> bool:
        """Return whether a line of one of many changes is to be written, and count it if not."""
        if self._lines < MAX_LINES or is_verbose(1):
            return True
        self._left_out += 1
        return False

    def write(self, line: str, seconds: float | None = None) -> None:
        """Write a line to the file, and with ``-v=1`` to the log."""
        verbose(1, line if seconds is None else f"{line}  ({seconds * 1000:.2f} ms)")
        if self._lines >= MAX_LINES:
            self._left_out += 1
            return
        self._lines += 1
        self._file.write(self, line, seconds)


_file: JournalFile | None = None


def begin_journal(path: str) -> None:
    """Have the process keep a journal in this file, "" only in the log; before any thread does."""
    global _file
    _file = JournalFile(path)


def keep_journal(title: str) -> None:
    """Write the changes of the calling thread to the journal from now on, under this title until another is given."""
    if _file is not None:
        journal.use(ThreadJournal(title, _file))


def because(title: Title) -> None:
    """Say what the changes of the calling thread are for that come now; a function is called with the first of them."""
    ours = journal.current()
    if isinstance(ours, ThreadJournal):
        ours.finish()
        ours.begin(title)


def finish() -> None:
    """End what :func:`because` has begun."""
    ours = journal.current()
    if isinstance(ours, ThreadJournal):
        ours.finish()


def _opened(path: str) -> tuple[int, int]:
    """Open the file. Returns: file descriptor and size. Raises: OSError."""
    fd = os.open(path, _OPEN, 0o600)
    status = os.fstat(fd)
    if not S_ISREG(status.st_mode):
        os.close(fd)
        raise FileExistsError(EEXIST, "not a regular file")
    return fd, status.st_size
