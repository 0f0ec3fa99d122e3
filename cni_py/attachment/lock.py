"""Serialize ADD and DEL of one attachment, and GC of one network, across every process of this host.

Owns: ``/run/cni-py/turns.lock``. It holds nothing: each attachment and network has a byte in it that is locked, so
nothing stale is left behind, and two that share a byte by chance only wait for each other. Where ``/run`` is full or
read-only the lock is an abstract socket (socket_lock.py).
"""

from __future__ import annotations

import posix

from cni_py import files
from cni_py.errors import IOFailure
from cni_py.journal import RUN_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from cni_py.socket_lock import SocketLock
    from cni_py.spec.call import Call

PATH = f"{RUN_DIR}/turns.lock"
_BYTES = (1 << 61) - 1


class _Lock:
    """The byte of one name.

    Our plugins that a third-party plugin executes within one of our calls do not lock: that call holds the lock.

    Args:
        name: "": there is nothing to lock.
        waits: False: raise BlockingIOError if another one holds the lock, or if there is no file for it.
    """

    def __init__(self, call: Call, name: str, waits: bool) -> None:
        self._waits = waits
        self._name = "" if call.is_nested else name
        self._fd = -1
        self._socket: SocketLock | None = None

    def __enter__(self) -> None:
        if not self._name:
            return
        from fcntl import F_OFD_SETLK, F_OFD_SETLKW, F_WRLCK, fcntl
        from struct import pack

        number = int.from_bytes(self._name.encode(errors="surrogateescape"), "big") % _BYTES
        try:
            files.own_directory(RUN_DIR)
            self._fd = posix.open(PATH, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600)
            # of an open file description: locks of a process would be shared by the agent's threads
            fcntl(self._fd, F_OFD_SETLKW if self._waits else F_OFD_SETLK, pack("hhqqi4x", F_WRLCK, 0, number, 1, 0))
        except (OSError, IOFailure) as error:
            if not self._waits:
                self.__exit__(None, None, None)
                raise BlockingIOError(f"{self._name} is busy") from error
            from cni_py.socket_lock import SocketLock

            self._socket = SocketLock(f"turn/{self._name}")
            self._socket.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1
        if self._socket is not None:
            self._socket.__exit__(kind, error, trace)


class AttachmentLock(_Lock):
    """``with AttachmentLock(call):`` — only one ADD or DEL of this attachment at a time.

    A runtime that loses patience kills its plugin and calls DEL. The agent goes on with the ADD that it began, and the
    DEL may reach its successor, or run in one shot: it has to find everything that the ADD makes.
    """

    def __init__(self, call: Call, waits: bool = True) -> None:
        super().__init__(call, f"{call.container_id}:{call.ifname}" if call.verb in ("ADD", "DEL") else "", waits)


class NetworkLock(_Lock):
    """``with NetworkLock(call):`` — only one GC of the call's network, or repair of one of its attachments, at a time.

    GC deletes an attachment's rules before the record that a repair would restore them from.
    """

    def __init__(self, call: Call, waits: bool = True) -> None:
        super().__init__(call, f":{call.network}", waits)  # never that of an attachment: no container's id is ""
