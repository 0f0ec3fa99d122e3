"""A small HTTP server for probes and metrics, which no client can block or exhaust.

How it works. One thread, no blocking call: a client that is silent, slow or never reads costs an entry in a table. The table
is bounded, in all (``MAX_CONNECTIONS``) and for each source (``MAX_OF_SOURCE``); when it is full, the oldest connection
without a complete request makes room for the new one, so a probe, which sends its request at once, is always answered.
A connection lives ``REQUEST_SECONDS`` until its request is complete, and as long again until the answer was taken.

Only GET and HEAD, one request per connection.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from time import monotonic, sleep
from typing import TYPE_CHECKING

from cni_py import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Answer = Callable[[str], tuple[int, str, str]]
    """Path to status, content type and body."""

TEXT = "text/plain; charset=utf-8"
REQUEST_SECONDS = 5.0
MAX_CONNECTIONS, MAX_OF_SOURCE = 64, 16
MAX_REQUEST_BYTES = 8192
BACKLOG = 128
ACCEPTS_AT_ONCE = 16
_NO_DESCRIPTORS_SECONDS = 0.05


def listen_tcp(ip: str, port: int, *, share_port: bool = False) -> socket.socket:
    """A listening socket. Raises: OSError.

    Args:
        share_port: other processes with the same user may listen on it too.
    """
    # Go-compatible: net.Listen takes "any address" to mean both families, in whichever it is written.
    is_any = ip_address(ip).is_unspecified
    is_dual = is_any and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in ip or is_dual else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_dual:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if is_dual else ip, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def listen_unix(path: str) -> socket.socket:
    """A listening socket for root; one that another process left at the path is replaced. Raises: OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # not chmod after bind: another user could connect in between
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


class Server:
    """Handles requests in a thread of its own, from :meth:`start` to :meth:`stop`."""

    def __init__(self, listener: socket.socket, answer: Answer, name: str) -> None:
        self._listener, self._answer = listener, answer
        self._connections: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Close the listening socket and all connections."""
        os.write(self._wake_write, b"s")
        self._thread.join()
        os.close(self._wake_write)

    # ---- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            ready = {key.fd for key, _ in self._selector.select(self._seconds_to_deadline())}
            if self._wake_read in ready:
                break
            for fd in ready & self._connections.keys():
                self._go_on(self._connections[fd])
            self._close(connection for connection in self._connections.values() if monotonic() >= connection.deadline)
            if self._listener.fileno() in ready:
                self._accept()
        self._close(self._connections.values())
        self._listener.close()
        self._selector.close()
        os.close(self._wake_read)

    def _seconds_to_deadline(self) -> float | None:
        deadlines = [connection.deadline for connection in self._connections.values()]
        return max(min(deadlines) - monotonic(), 0.0) if deadlines else None

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):  # then those that are connected get their turn
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor left, most likely: the listener stays readable, and must not spin
                self._close(list(self._connections.values())[:1])
                sleep(_NO_DESCRIPTORS_SECONDS)
                return
            connection = _Connection(sock, _source(address))
            self._make_room(connection.source)
            self._connections[sock.fileno()] = connection
            self._selector.register(sock, selectors.EVENT_READ)
            self._go_on(connection)  # a probe's request has arrived with it, mostly

    def _make_room(self, source: str) -> None:
        of_source = [one for one in self._connections.values() if one.source == source]
        if len(of_source) >= MAX_OF_SOURCE:
            self._close([_victim(of_source)])
        elif len(self._connections) >= MAX_CONNECTIONS:
            self._close([_victim(list(self._connections.values()))])

    def _go_on(self, connection: _Connection) -> None:
        """Read or write what is possible now."""
        try:
            is_done = connection.go_on(self._answer)
        except OSError:  # the client has left
            is_done = True
        if is_done:
            self._close([connection])
        elif connection.wants_write:
            self._selector.modify(connection.sock, selectors.EVENT_WRITE)
        else:
            self._selector.modify(connection.sock, selectors.EVENT_READ)

    def _close(self, connections: Iterable[_Connection]) -> None:
        for connection in list(connections):
            del self._connections[connection.sock.fileno()]
            self._selector.unregister(connection.sock)
            connection.sock.close()


class _Connection:
    """A client: its request is read, then its answer is written, then its end is awaited."""

    def __init__(self, sock: socket.socket, source: str) -> None:
        sock.setblocking(False)
        self.sock, self.source = sock, source
        self.deadline = monotonic() + REQUEST_SECONDS
        self.has_request = False
        self._head = b""
        self._out = memoryview(b"")

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    def go_on(self, answer: Answer) -> bool:
        """Returns: whether it is over. Raises: OSError."""
        try:
            if not self.has_request and not self._read(answer):
                return False
            if self._out:
                self._out = self._out[self.sock.send(self._out) :]
                if not self._out:
                    self.sock.shutdown(socket.SHUT_WR)
            # Closed only after the client has: closing with unread bytes resets the connection, and the client may lose
            # the answer. Reading on an ended connection returns b"".
            return not self._out and self.sock.recv(MAX_REQUEST_BYTES) == b""
        except BlockingIOError:
            return False

    def _read(self, answer: Answer) -> bool:
        """Returns: whether the request is complete, so that there is an answer. Raises: OSError."""
        while not (is_complete := _is_complete(self._head)) and len(self._head) < MAX_REQUEST_BYTES:
            block = self.sock.recv(MAX_REQUEST_BYTES - len(self._head))
            if not block:
                raise ConnectionResetError("the client closed the connection before its request was complete")
            self._head += block
        self.has_request = True
        self.deadline = monotonic() + REQUEST_SECONDS
        self._out = memoryview(_response(self._head if is_complete else b"", answer))
        return True


def _is_complete(head: bytes) -> bool:
    return b"\r\n\r\n" in head or b"\n\n" in head


def _victim(connections: list[_Connection]) -> _Connection:
    """The oldest without a complete request, else the oldest."""
    return next((one for one in connections if not one.has_request), connections[0])


def _source(address: object) -> str:
    """The key for the bound of a source: an IPv4 address, or an IPv6 /64."""
    if not isinstance(address, tuple):
        return "unix"
    ip = ip_address(str(address[0]).partition("%")[0])
    if ip.version == 4:
        return str(ip)
    # By /64: a single host can use as many addresses of that as it likes.
    return str(ip.ipv4_mapped) if ip.ipv4_mapped else ip.packed[:8].hex()


def _response(head: bytes, answer: Answer) -> bytes:
    """The answer to a request; to an empty one, that it is bad."""
    words = head.partition(b"\n")[0].decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        status, content_type, body = 400, TEXT, "400 bad request\n"
    elif words[0] not in ("GET", "HEAD"):
        status, content_type, body = 501, TEXT, "501 method not implemented\n"
    else:
        status, content_type, body = answer(words[1].partition("?")[0])
    content = body.encode(errors="backslashreplace")
    lines = [
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}",
        f"Server: cni-py/{__version__}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    is_head = words[:1] == ["HEAD"]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if is_head else content)
