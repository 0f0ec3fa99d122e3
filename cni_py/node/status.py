"""The state of a node's daemon as others see it: health server, service manager, log, and the node's datastore.

The daemon makes one :class:`Status` and hands it to whatever runs inside it, which reports here and learns from here that the
process is to end. Safe from any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from cni_py.node import systemd
from cni_py.node.log import info, warning

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.node.health import Health

RETRY_SECONDS = 1.0
SAID_COUNT = 8
USUAL_BEAT_SECONDS = 20.0


class Status:
    """State of the process as it reports it, and whether it is to end.

    Args:
        name: of the program, for the log.
        health: the server of probes and figures.
        publish: notifies the datastore that the node's network works, and reports its own failures.
        wake: ends what waits, when the process is to end.
    """

    def __init__(self, name: str, health: Health, publish: Callable[[], None], wake: Callable[[], None]) -> None:
        self.name, self.health = name, health
        self.stop = threading.Event()
        self.has_failed = False
        self.beat_seconds = (systemd.watchdog_seconds() or USUAL_BEAT_SECONDS) / 2
        self._publish, self._wake = publish, wake
        self._said: deque[str] = deque(maxlen=SAID_COUNT)

    def end(self) -> None:
        """The process is to end."""
        self.stop.set()
        self._wake()

    def fail(self) -> None:
        """The process is to end, and not with exit status 0."""
        self.has_failed = True
        self.end()

    def ready(self, status: str, doubt: str = "") -> None:
        """Report that all of it works. ``doubt``: what is not sure of it, in words."""
        self.health.set_ready(doubt)
        info(f"{self.name} is ready")
        systemd.notify("READY=1", f"STATUS={status}{doubt and f'; {doubt}'}")
        self.notify_datastore()

    def notify_datastore(self) -> None:
        """Report to those who look in the datastore that the node's network works."""
        self._publish()

    def not_ready(self, reason: str) -> None:
        """Report what is waited for."""
        self.health.set_unready(reason)
        systemd.notify(f"STATUS={reason}")

    def beat(self) -> None:
        """Notify systemd's watchdog that the process is not stuck."""
        systemd.notify("WATCHDOG=1")

    def pause(self) -> None:
        """Wait before a retry; not once the process is to end."""
        self.beat()
        self.stop.wait(RETRY_SECONDS)

    def say_once(self, text: str, say: Callable[[str], None] = warning) -> None:
        """Log a text, unless it is one of the last few: etcd cannot be reached in several ways, one after the other."""
        if text not in self._said:
            self._said.append(text)
            say(text)

    def forget_said(self) -> None:
        """Log the same again when it comes back: what was said is over."""
        self._said.clear()
