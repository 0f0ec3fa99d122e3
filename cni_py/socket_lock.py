"""Lock of this host without a file: an abstract Unix socket, for when ``/run/cni-py`` cannot be used.

Owns: sockets ``@cni-py/NAME`` of the network namespace, which the kernel closes when their process ends. How it works.
The holder of the lock listens on the name; a process that waits for it connects, is never accepted, and is disconnected
when the holder ends. Any user can take a name, so a holder that is not root is ignored.

It is imported only where a lock file cannot be had: a call without that fault does not load it.
"""

from __future__ import annotations

from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket
from errno import EADDRINUSE
from sys import byteorder
from time import sleep
from zlib import crc32

from cni_py.journal import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

MAX_NAME = 80
_BACKLOG = 128
_TRIES = 1000
_PAUSE_SECONDS = 0.001


class SocketLock:
    """``with SocketLock(name):`` — one holder at a time; a lock that cannot be had is noted, and costs no pod its network."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket: socket | None = None

    def __enter__(self) -> None:
        address = address_of(self.name)
        try:
            for _ in range(_TRIES):
                self._socket = _take(address)
                if self._socket or not _wait(address):
                    return
            note(f'no lock "{self.name}": its holder does not listen')
        except OSError as error:
            note(f'no lock "{self.name}": {error.strerror}')

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def address_of(name: str) -> bytes:
    """The socket's address; a long name is cut, with a hash of all of it: an address has 107 bytes at most."""
    encoded = name.encode(errors="surrogateescape")
    cut = encoded if len(encoded) <= MAX_NAME else encoded[:MAX_NAME] + b"~%08x" % crc32(encoded)
    return b"\0cni-py/" + cut


def peer_uid(sock: socket) -> int:
    """Return the user of the process at the other end: of a client the one that connects, of a server the one that listens."""
    return int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], byteorder)  # struct ucred: pid, uid, gid


def _take(address: bytes) -> socket | None:
    """Listen on the address; None if it is taken. Raises: OSError."""
    mine = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        mine.bind(address)
        mine.listen(_BACKLOG)
    except OSError as error:
        mine.close()
        if error.errno != EADDRINUSE:
            raise
        return None
    return mine


def _wait(address: bytes) -> bool:
    """Wait until the holder ends. Returns: False if it is another user's process. Raises: OSError if there is no socket."""
    waiting = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        waiting.connect(address)
        user = peer_uid(waiting)
        if user != 0:
            note(f"the lock {address[1:].decode(errors='replace')} is ignored: user {user} has it")
            return False
        waiting.recv(1)
    except OSError:  # it has ended, or does not listen yet
        sleep(_PAUSE_SECONDS)
    finally:
        waiting.close()
    return True
