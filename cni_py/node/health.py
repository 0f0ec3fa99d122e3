"""The health of a daemon: whether it runs, whether it is ready and why not, and its metrics, over HTTP.

``/healthz`` returns 200 as long as the process lives, ``/readyz`` 200, or 503 with one reason per line, ``/metrics``
the text format of Prometheus. The texts of the first two are Go's (flannel main.go).
"""

from __future__ import annotations

import sys
import threading
from ipaddress import ip_address
from time import time
from typing import TYPE_CHECKING

from cni_py import __version__
from cni_py.node import log, metrics
from cni_py.node.http_server import TEXT, Server, listen_tcp

if TYPE_CHECKING:
    import socket


class Health:
    """The state of a daemon, and its server. Every method may be called from any thread.

    Args:
        ip, port: where :meth:`start` listens by default; port 0: nowhere.
        program: the daemon's name.
        registry: its metrics.
    """

    def __init__(
        self, ip: str = "", port: int = 0, *, program: str = "flanneld", registry: metrics.Registry | None = None
    ) -> None:
        self.ip, self.port, self.program = ip, port, program
        self.metrics = registry or metrics.Registry(f"cni_py_{program}_")
        self._lock = threading.Lock()
        self._is_ready = False
        self._reasons: tuple[str, ...] = ("starting",)
        self._server: Server | None = None
        self.metrics.gauge("info", "Version of the program.", ("version",)).set(1, __version__)
        self.gauge("start_time_seconds", "When this process began, seconds since 1970.", round(time(), 3))
        self.gauge("ready", "1 if /readyz reports ready, else 0.", 0)

    def start(self, listener: socket.socket | None = None) -> None:
        """Serve on ``listener``, or on the address that was given. Raises: OSError if it cannot listen on it."""
        if listener is None and self.port:
            listener = listen_tcp(self.ip, self.port)
            if ip_address(self.ip).is_unspecified:
                log.warning(
                    f"the health server listens on all addresses of this node, port {self.port}, without authentication;"
                    " -healthz-ip limits it to one"
                )
        if listener is not None:
            self._server = Server(listener, self.answer, "health")
            self._server.start()

    def stop(self) -> None:
        """Free the port."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def set_ready(self, doubt: str = "") -> None:
        """``doubt``: why it may not be, in words."""
        with self._lock:
            self._is_ready, self._reasons = True, (doubt,) if doubt else ()
        self.gauge("ready", "1 if /readyz reports ready, else 0.", 1)

    def set_unready(self, *reasons: str) -> None:
        """``reasons``: what it is waiting for, in words."""
        with self._lock:
            self._is_ready, self._reasons = False, tuple(" ".join(reason.split()) for reason in reasons)
        self.gauge("ready", "1 if /readyz reports ready, else 0.", 0)

    def gauge(self, name: str, help_text: str, value: float) -> None:
        """Set a value that goes up and down, such as ``peers``."""
        self.metrics.gauge(name, help_text).set(value)

    def count(self, name: str, help_text: str, n: int = 1) -> None:
        """Add to a value that only grows, such as ``repairs_total``; 0 shows it before the first time."""
        self.metrics.counter(name, help_text).add(n=n)

    def answer(self, path: str) -> tuple[int, str, str]:
        """Returns: status, content type and body."""
        if path == "/healthz":
            return 200, TEXT, f"{self.program} is running"
        if path == "/readyz":
            with self._lock:
                is_ready, reasons = self._is_ready, self._reasons
            status, words = (200, f"{self.program} is ready") if is_ready else (503, f"{self.program} is not ready yet")
            return status, TEXT, "\n".join([words, *reasons])
        if path == "/metrics":
            return self._exposition()
        return 404, TEXT, "404 page not found\n"

    def _exposition(self) -> tuple[int, str, str]:
        try:
            return 200, metrics.CONTENT_TYPE, self.metrics.exposition()
        except Exception:  # noqa: BLE001 — a bug in one metric must not end the thread that serves the probes
            sys.excepthook(*sys.exc_info())
            return 500, TEXT, "500 internal server error\n"
