"""A bounded pool of threads that handle connections, started as they are needed."""

from __future__ import annotations

import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from cni_py.agent.log import log
from cni_py.plural import counted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

MAX_WORKERS = 64


class WorkerPool:
    """Calls ``handle`` with each connection, in a thread."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._waiting: SimpleQueue[socket.socket | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = 0

    def __len__(self) -> int:
        """Number of threads."""
        return len(self._workers)

    @property
    def busy(self) -> int:
        """Number of connections that wait or are being handled."""
        with self._lock:
            return self._busy

    def submit(self, connection: socket.socket) -> None:
        with self._lock:
            self._busy += 1
            is_short = self._busy > len(self._workers) < MAX_WORKERS
        if is_short:
            self._add_worker()
        self._waiting.put(connection)

    def _add_worker(self) -> None:
        worker = threading.Thread(target=self._work, name=f"call-{len(self._workers)}", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:  # no more threads: the existing ones take over
            log(f"only {counted(len(self._workers), 'worker')}: {error}")
        else:
            self._workers.append(worker)

    def _work(self) -> None:
        while (connection := self._waiting.get()) is not None:
            try:
                with connection:
                    self._handle(connection)
            except Exception:  # noqa: BLE001 — a bug ends the connection of one client, not those of the others
                sys.excepthook(*sys.exc_info())
            finally:
                with self._lock:
                    self._busy -= 1

    def finish(self) -> None:
        """Handle what was submitted, and end the threads."""
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()
