"""rtnetlink's notifications, message by message: each entry that was added or deleted, and the socket that requested it.

Subscribe before reading a table: a change is then either in what was read, or reported. What does not fit into the socket's
buffer is lost, and the kernel reports that: :class:`Overflow`. Then anything may have changed.

Source: linux include/uapi/linux/rtnetlink.h (RTNLGRP_…).
"""

from __future__ import annotations

from collections.abc import Iterator

from cni_py.netlink.constants import (
    NETLINK_ROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)
from cni_py.netlink.socket import Listener, question

BUFFER_BYTES = 8 << 20
"""Some ten thousand messages: the kernel counts a message with all that belongs to it."""
_ADDRESSES, _ROUTES = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR, RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE


class Overflow(Exception):
    """Notifications were lost."""


class Notifications:
    """Notifications of links, addresses, routes, neighbours and FDBs, in the namespace of the calling thread.

    ``ignoring``: the port of the socket by which the caller makes changes; of an FDB they are reported all the same.
    Raises: KernelRefused.
    """

    def __init__(self, ignoring: int) -> None:
        groups = RTMGRP_LINK | _ADDRESSES | _ROUTES | RTMGRP_NEIGH
        with question("ip", "monitor"):
            self._listener = Listener(NETLINK_ROUTE, groups, BUFFER_BYTES, ignoring)

    def close(self) -> None:
        self._listener.close()

    def fileno(self) -> int:
        """Return the descriptor, for ``select``."""
        return self._listener.fileno()

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield what was received, without waiting: RTM_…, the port of the socket that requested it, the body.

        The port is 0 if the kernel did it by itself, and for an FDB, of which it is unknown. Raises: Overflow; OSError.
        """
        while (messages := self._listener.receive(0.0)) != []:
            if messages is None:
                raise Overflow
            yield from messages
