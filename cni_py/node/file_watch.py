"""Wait for changes of one file by inotify, instead of checking it every second: a wake-up costs more than the check.

How it works. The inode is watched, not its directory: other files there, such as flanneld's journal, cause no wake-up. A change
of its content, its attributes (the number of links among them: it was deleted, or another file was renamed over it) or its
name ends :meth:`FileWatch.wait`, a moment later: an editor, or ``rm -r``, goes on with others. What inotify does not report,
such as a mount over the directory, is found by the caller's check every ``CHECK_SECONDS``. A file that is not right and
cannot be made so is polled, and so is every one where the kernel refuses inotify, whose limits are a user's.

Source: inotify(7).
"""

from __future__ import annotations

import os
import select

from cni_py.c_library import Library, c_char_p, c_int, c_uint
from cni_py.node.stop import Stop, Wake

CHECK_SECONDS, POLL_SECONDS, SETTLE_SECONDS = 10.0, 0.5, 0.5
IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF = 0x2, 0x4, 0x400, 0x800
_MASK = IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF


class FileWatch:
    """The watch of the file that ``path`` names; symbolic links are followed. A context manager."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._library = Library(None)
        self._fd = self._library.inotify_init1(c_int(os.O_CLOEXEC | os.O_NONBLOCK))
        """-1: the kernel refuses one."""
        self._watched = -1

    def __enter__(self) -> FileWatch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def wait(self, stop: Stop, *, is_right: bool) -> bool:
        """Wait for a change, or for the time to check anyway. Returns: False if it was ``stop`` that came."""
        if self._is_new():
            return not stop.is_set()  # it may have changed before it was watched
        if self._watched < 0 or not is_right:
            return not stop.wait(POLL_SECONDS)
        with Wake() as wake, stop.calling(wake.set):
            if self._fd in select.select([self._fd, wake.fileno()], [], [], CHECK_SECONDS)[0]:
                stop.wait(SETTLE_SECONDS)
        try:
            os.read(self._fd, 65536)  # all that were reported until now are one change
        except BlockingIOError:
            pass
        return not stop.is_set()

    def _is_new(self) -> bool:
        """Watch the file. Returns: whether it is another one than before."""
        if self._fd < 0:
            return False
        before = self._watched
        self._watched = self._library.inotify_add_watch(c_int(self._fd), c_char_p(os.fsencode(self._path)), c_uint(_MASK))
        if before not in (-1, self._watched):
            # of a file that was renamed; the watch of a deleted one has ended
            self._library.inotify_rm_watch(c_int(self._fd), c_int(before))
        return self._watched not in (-1, before)
