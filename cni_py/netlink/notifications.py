"""rtnetlink's notifications, message by message: what the kernel's tables lost and got, and which socket asked for it.

A message that does not fit into the socket's buffer is lost, and the kernel says so: :class:`Overflow`. Then anything may have
changed. Subscribe before you read a table: what changes meanwhile is then either in what was read, or heard.

Source: linux include/uapi/linux/rtnetlink.h (RTNLGRP_…), netlink(7).
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from errno import ENOBUFS
from struct import unpack_from

from cni_py.netlink.socket import NETLINK_ROUTE, question

LINK, ADDR, ROUTE, NEIGH = "link", "addr", "route", "neigh"
BUFFER_BYTES = 8 << 20
"""Some ten thousand messages: the kernel counts a message with all that belongs to it."""
_GROUPS = {LINK: 0x1, NEIGH: 0x4, ADDR: 0x10 | 0x100, ROUTE: 0x40 | 0x400}  # RTMGRP_…, of IPv4 and IPv6
_SO_RCVBUFFORCE = 33
_LARGEST = 65536


class Overflow(Exception):
    """Notifications were lost."""


class Notifications:
    """A socket that gets the notifications of the namespace it is opened in. A context manager. Raises: KernelRefused."""

    def __init__(self, kinds: Collection[str] = (LINK, ADDR, ROUTE, NEIGH)) -> None:
        groups = 0
        for kind in kinds:
            groups |= _GROUPS[kind]
        with question("ip", "monitor"):
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
            )
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
            except OSError:  # not without CAP_NET_ADMIN: it overflows earlier
                pass
            self._socket.bind((0, groups))

    def __enter__(self) -> Notifications:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield what has come, without waiting: RTM_…, the port of the socket that asked for it, what follows the header.

        The port is 0 where the kernel did it by itself, and for an FDB, where it does not say. Raises: Overflow; OSError.
        """
        while True:
            try:
                data = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == ENOBUFS:
                    raise Overflow from error
                raise
            at = 0
            while at + 16 <= len(data):
                length, number, _, _, port = unpack_from("=IHHII", data, at)
                yield number, port, data[at + 16 : at + length]
                at += max(length + 3 & ~3, 16)
