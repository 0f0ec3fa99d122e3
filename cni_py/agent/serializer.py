"""The order of calls: those of one attachment are handled one at a time, as they came."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Serializer:
    """Locks by name, first come, first served; a plain lock would let a DEL overtake the ADD before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, deque[threading.Event]] = {}

    @contextmanager
    def serialized(self, name: str) -> Iterator[None]:
        """Wait until every earlier block of this name has ended; "" waits for none."""
        mine = threading.Event()
        with self._lock:
            queue = self._queues.setdefault(name, deque()) if name else deque()
            before = queue[-1] if queue else None
            queue.append(mine)
        try:
            if before is not None:
                before.wait()
            yield
        finally:
            mine.set()
            with self._lock:
                queue.remove(mine)
                if name and not queue:
                    del self._queues[name]
