"""An event that also ends what cannot wait for an event: a read of a socket, a select, a queue.

With it a daemon's threads need not wake several times a second to see whether they have to end.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Stop(threading.Event):
    """An event with functions that :meth:`set` calls, in whatever thread. They must neither raise nor wait."""

    def __init__(self) -> None:
        super().__init__()
        self._functions: list[Callable[[], object]] = []
        self._registering = threading.Lock()

    def set(self) -> None:
        super().set()
        with self._registering:  # held while they run: what a function uses is not closed before it has returned
            for function in self._functions:
                function()

    @contextmanager
    def calling(self, function: Callable[[], object]) -> Iterator[None]:
        """Have ``function`` called by :meth:`set` during the block, at once if the event is set already."""
        with self._registering:
            self._functions.append(function)
        try:
            if self.is_set():  # after it was registered: a set() in between calls it too, and twice must be fine
                function()
            yield
        finally:
            with self._registering:
                self._functions.remove(function)


class Wake:
    """A descriptor that becomes readable when another thread calls :meth:`set`, for a select. A context manager."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __enter__(self) -> Wake:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def set(self) -> None:
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Make it wait again; what was set before counts no more."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass
