"""The agent's figures as Prometheus text, on a Unix socket or a loopback port; off unless asked for."""

from __future__ import annotations

import os
import socketserver
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def parse_address(text: str) -> str:
    """``unix:/PATH`` or ``127.0.0.1:PORT``, as it came. Raises: ValueError."""
    if not text.startswith("unix:/"):
        host, _, port = text.rpartition(":")
        if not ip_address(host).is_loopback or ip_address(host).version == 6 or not 0 < int(port) < 65536:
            raise ValueError(f'"{text}" is neither unix:/PATH nor a port of 127.0.0.1: the figures are for this node')
    return text


def serve(address: str, text: Callable[[], str]) -> None:
    """Answer GET /metrics at the address with what ``text`` returns, from a thread. Raises: OSError."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — its name in the library
            """Nothing: the agent's log is for the pods."""

        def address_string(self) -> str:
            return "client"

    server = _server(address, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _TCPServer(socketserver.ThreadingTCPServer):
    """While an agent is replaced, both have the port."""

    allow_reuse_address = allow_reuse_port = True


def _server(
    address: str, handler: type[BaseHTTPRequestHandler]
) -> socketserver.ThreadingUnixStreamServer | socketserver.ThreadingTCPServer:
    if address.startswith("unix:/"):
        path = address.removeprefix("unix:")
        with suppress(FileNotFoundError):
            os.unlink(path)
        old = os.umask(0o177)
        try:
            return socketserver.ThreadingUnixStreamServer(path, handler)
        finally:
            os.umask(old)
    host, _, port = address.rpartition(":")
    return _TCPServer((host, int(port)), handler)
