"""The health server: whether flanneld runs, whether it is ready and why not, and its figures for Prometheus.

``/healthz`` answers as long as the process lives, ``/readyz`` 200 or 503 with a reason a line, ``/metrics``
the text exposition format, version 0.0.4. Texts of the first two are Go's (flannel main.go).

How it works: a thread accepts, a thread per client answers. A client has ``CLIENT_SECONDS`` for all it
sends and for taking its answer, and ``MAX_CLIENTS`` are served at a time, so that who hangs keeps no
probe from being answered for long.
"""

from __future__ import annotations

import io
import socket
import threading
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from time import monotonic, time

from cni_py import __version__

PREFIX = "cni_py_flanneld_"
TEXT = "text/plain; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
CLIENT_SECONDS = 5.0
MAX_CLIENTS = 64
LOOK_SECONDS = 0.5  # how often whether to stop
MAX_REQUEST = 8192  # bytes


class Health:
    """What the server tells; with port 0 there is no server. Every method may be called from any thread."""

    def __init__(self, ip: str, port: int) -> None:
        self.ip, self.port = ip, port
        self._lock = threading.Lock()
        self._is_ready = False
        self._reasons: tuple[str, ...] = ("starting",)
        self._figures: dict[str, tuple[str, str, float]] = {}
        self._server: _Server | None = None
        self.gauge("start_time_seconds", "When this process began, seconds since 1970.", round(time(), 3))

    def start(self) -> None:
        """Raises: OSError where the address cannot be listened on."""
        if self.port:
            self._server = _Server(self)
            threading.Thread(target=self._server.serve_forever, args=(LOOK_SECONDS,), name="health", daemon=True).start()

    def stop(self) -> None:
        """Free the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def set_ready(self, doubt: str = "") -> None:
        """``doubt``: what is not sure of it, in words."""
        with self._lock:
            self._is_ready, self._reasons = True, (doubt,) if doubt else ()

    def set_unready(self, *reasons: str) -> None:
        """``reasons``: what is waited for, in words."""
        with self._lock:
            self._is_ready, self._reasons = False, tuple(" ".join(reason.split()) for reason in reasons)

    def gauge(self, name: str, help_text: str, value: float) -> None:
        """A figure that goes up and down, such as ``peers``."""
        with self._lock:
            self._figures[name] = "gauge", help_text, value

    def count(self, name: str, help_text: str, n: int = 1) -> None:
        """A figure that only grows, such as ``repairs_total``; 0 shows it before the first time."""
        with self._lock:
            self._figures[name] = "counter", help_text, self._figures.get(name, ("", "", 0))[2] + n

    def answer(self, path: str) -> tuple[int, str, str]:
        """Status, content type and body."""
        if path == "/healthz":
            return 200, TEXT, "flanneld is running"
        if path == "/readyz":
            with self._lock:
                is_ready, reasons = self._is_ready, self._reasons
            status, words = (200, "flanneld is ready") if is_ready else (503, "flanneld is not ready yet")
            return status, TEXT, "\n".join([words, *reasons])
        if path == "/metrics":
            return 200, PROMETHEUS, self._prometheus()
        return 404, TEXT, "404 page not found\n"

    def _prometheus(self) -> str:
        lines = [f"# TYPE {PREFIX}info gauge", f'{PREFIX}info{{version="{__version__}"}} 1']
        with self._lock:
            figures = {"ready": ("gauge", "Whether /readyz says so.", float(self._is_ready)), **self._figures}
        for name, (kind, help_text, value) in sorted(figures.items()):
            said = help_text.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {PREFIX}{name} {said}", f"# TYPE {PREFIX}{name} {kind}", f"{PREFIX}{name} {value:.15g}"]
        return "\n".join(lines) + "\n"


class _Handler(BaseHTTPRequestHandler):
    """One request, one answer."""

    server: _Server
    server_version, sys_version = f"cni-py/{__version__}", ""

    def setup(self) -> None:
        """Read the whole head now, against one clock: a time-out of each read would last as long as bytes drip in."""
        super().setup()
        self.connection.settimeout(CLIENT_SECONDS)
        self.rfile.close()
        self.rfile = io.BufferedReader(io.BytesIO(_read_head(self.connection)))

    def do_GET(self) -> None:
        status, content_type, body = self.server.health.answer(self.path.partition("?")[0])
        content = body.encode(errors="backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — its name in the library
        """Nothing: a probe comes every few seconds."""


def _read_head(connection: socket.socket) -> bytes:
    """The request up to the empty line; nothing where it takes too long or is too large."""
    head, end = b"", monotonic() + CLIENT_SECONDS
    try:
        while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MAX_REQUEST:
            connection.settimeout(max(end - monotonic(), 0.001))
            block = connection.recv(MAX_REQUEST - len(head))
            if not block:
                break
            head += block
        connection.settimeout(CLIENT_SECONDS)
    except OSError:
        return b""
    return head


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, health: Health) -> None:
        self.health = health
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        # Go-compatible: net.Listen takes "any address" to mean both families, whichever it is written in.
        is_any = ip_address(health.ip).is_unspecified
        self.address_family = (
            socket.AF_INET6 if ":" in health.ip or (is_any and socket.has_dualstack_ipv6()) else socket.AF_INET
        )
        self._is_dual = is_any and self.address_family == socket.AF_INET6
        super().__init__(("::" if self._is_dual else health.ip, health.port), _Handler)

    def server_bind(self) -> None:
        if self._is_dual:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            raise

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that left before its answer."""
