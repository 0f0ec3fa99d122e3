"""The agent's listening socket and its path: created, accepted from, restored when it was deleted, removed at the end."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from time import sleep

from cni_py.agent.log import log
from cni_py.journal import check_own

BACKLOG = 1024
LISTEN_FDS_START = 3
Identity = tuple[int, int]
"""Device and inode of a file."""


class Listener:
    """A listening socket; ``path`` is "" if a service manager created it and will keep it."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.path = path
        self._socket = sock
        self._socket.setblocking(False)
        self._identity = identity_of(path)
        self._former: set[Identity | None] = set()
        self._reserve_fd = os.open("/dev/null", os.O_RDONLY)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection, None if no client is waiting. Raises: OSError, after it has turned away one client."""
        try:
            return self._socket.accept()[0]
        except BlockingIOError:
            return None
        except OSError:
            self._turn_away()
            raise

    def _turn_away(self) -> None:
        """Accept a connection with the reserved descriptor and close it: no other is free, and the client can work alone."""
        if self._reserve_fd >= 0:
            os.close(self._reserve_fd)
            self._reserve_fd = -1
        try:
            self._socket.accept()[0].close()
        except OSError:  # a call was quicker, or the whole machine has none left: the client goes on waiting
            sleep(0.02)
        with suppress(OSError):
            self._reserve_fd = os.open("/dev/null", os.O_RDONLY)

    def restore(self) -> None:
        """Create the socket again if it was deleted, or its directory was mounted over; another agent's is left alone."""
        found = identity_of(self.path)
        # A former socket of this agent may reappear with an unmount: no process listens on it any more.
        is_lost = found is None or found in self._former
        if not self.path or found == self._identity or not is_lost:
            return
        log(f"{self.path} was deleted: creating it again")
        with suppress(OSError):
            fresh = listen(self.path)
            # The descriptor's number must stay: the main thread polls it.
            os.dup2(fresh.fileno(), self._socket.fileno(), inheritable=False)
            fresh.close()
            self._socket.setblocking(False)
            self._former.add(self._identity)
            self._identity = identity_of(self.path)

    def remove(self) -> None:
        """Delete the path, unless it is another agent's by now. No new client finds us; those that wait can be accepted."""
        if self.path and identity_of(self.path) == self._identity:
            with suppress(OSError):
                os.unlink(self.path)

    def close(self) -> None:
        """Refuse new clients."""
        self._socket.close()


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``: 0600, in a directory 0700. A dead agent's socket is replaced. Raises: OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    check_own(os.path.dirname(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Renamed into place when it is ready: a client that finds the path can connect, and only root can.
    temporary = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    listener.bind(temporary)
    os.chmod(temporary, 0o600)
    listener.listen(BACKLOG)
    os.rename(temporary, path)
    return listener


def inherited() -> socket.socket | None:
    """The listening socket that a service manager passes (LISTEN_FDS, sd_listen_fds(3)), None if there is none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=LISTEN_FDS_START)
    listener.set_inheritable(False)
    return listener


def identity_of(path: str) -> Identity | None:
    """Device and inode of a path, None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
