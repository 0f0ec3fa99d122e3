"""Contract of the plugin and its daemon: one request and one reply, each a JSON object, over a stream socket.

    request   {"verb", "containerID", "network", "ifname", "netns", "args": {…}, "ipam": {…}, "keep": [[id, ifname], …] | null}
    reply     {"result": {…} | null}, or {"error": {"code", "msg", "details"}}

The request ends with the end of the stream. Both ends check the user of the other: a client names a namespace, and the
daemon's reply the addresses and routes of a pod. The Go plugin and its daemon speak another protocol on this socket (net/rpc,
gob): a node changes both at once.
"""

from __future__ import annotations

import _socket
import posix

from cni_py import config
from cni_py.errors import CniError, IOFailure
from cni_py.jsontext import encode
from cni_py.socket_lock import peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "/run/cni/dhcp.sock"
MAX_BYTES = 1 << 20
ANSWER_SECONDS = 300.0
"""More than the daemon tries: its own time-out ends first."""


HINT = "systemctl restart cni-dhcp.socket; or run: dhcp daemon"


class NoDaemon(IOFailure):
    """Failure to reach the daemon: there is none at this socket, or another one."""

    code = 50


class Refused(CniError):
    """Error of the daemon, with its own code."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.code = code


def ask(path: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Send a request, and return the result. Raises: NoDaemon, Refused, IOFailure."""
    sock = connect(path)
    try:
        sock.sendall(encode(request))
        sock.shutdown(_socket.SHUT_WR)
        answer = read_all(sock)
    except OSError as error:
        words = error.strerror or error
        raise IOFailure("error calling DHCP daemon", f"{path}: {words}", "see the log of the daemon") from error
    finally:
        sock.close()
    if answer[:1] != b"{":
        raise NoDaemon(
            f"error dialing DHCP daemon: {path} is the socket of another program, the Go plugins' daemon perhaps",
            f"its reply begins with {answer[:20]!r}",
            f"stop that program, then: {HINT}",
        )
    reply = config.decode(answer, "reply of the DHCP daemon")
    failure = reply.get("error")
    if isinstance(failure, dict):
        code, details = failure.get("code"), str(failure.get("details") or "")
        raise Refused(code if isinstance(code, int) and code > 0 else 100, str(failure.get("msg")), details)
    result = reply.get("result")
    return result if isinstance(result, dict) else None


def connect(path: str) -> _socket.socket:
    """Return a connection to the daemon. Raises: NoDaemon."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    sock.settimeout(ANSWER_SECONDS)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        words = (error.strerror or str(error)).lower()
        hint = "start it: systemctl start cni-dhcp.socket, or run: dhcp daemon"
        raise NoDaemon(f"error dialing DHCP daemon: dial unix {path}: connect: {words}", "", hint) from error
    if not is_trusted(sock):
        user = peer_uid(sock)
        sock.close()
        raise NoDaemon(f"error dialing DHCP daemon: {path} is not used", f"a process of user {user} listens there, not root's")
    return sock


def is_trusted(sock: _socket.socket) -> bool:
    """Return whether the process at the other end is root's, or of our own user."""
    return peer_uid(sock) in (0, posix.geteuid())


def read_all(sock: _socket.socket) -> bytes:
    """Receive until the end of the stream. Raises: OSError, also if it is too much."""
    data = b""
    while block := sock.recv(1 << 16):
        data += block
        if len(data) > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES} bytes")
    return data
