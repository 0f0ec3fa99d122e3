"""Watch rtnetlink for changes by other processes; reports which object types changed.

The kernel reports which object changed, not what it should be; so the caller reads it again and compares it (desired minus
actual). Bursts are combined. What does not fit into the socket's buffer is lost, and the kernel reports
that: then everything may have changed.

    with Watch(kinds=("link", "addr", "route", "neigh"), devices=("flannel.1", "eth0"), ignoring=rtnl) as watch:
        watch.wait(timeout_seconds) -> set[str]       of "link", "addr", "route", "neigh"; empty after the time

Source: linux include/uapi/linux/rtnetlink.h (RTNLGRP_…).
"""

from __future__ import annotations

from _socket import if_nameindex
from collections.abc import Collection
from time import monotonic
from types import TracebackType

from cni_py.netlink.attributes import decode, decode_header
from cni_py.netlink.constants import (
    NETLINK_ROUTE,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)
from cni_py.netlink.socket import Listener, Notification, Rtnl, question

LINK, ADDR, ROUTE, NEIGH = "link", "addr", "route", "neigh"
KINDS = (LINK, ADDR, ROUTE, NEIGH)
SETTLE_SECONDS = 0.02
"""Time to wait for more changes after the first: they come in bursts."""
BUFFER_BYTES = 1 << 20

_GROUPS = {
    LINK: RTMGRP_LINK,
    ADDR: RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR,
    ROUTE: RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE,
    NEIGH: RTMGRP_NEIGH,
}
_KIND_OF = {
    RTM_NEWLINK: LINK,
    RTM_DELLINK: LINK,
    RTM_NEWADDR: ADDR,
    RTM_DELADDR: ADDR,
    RTM_NEWROUTE: ROUTE,
    RTM_DELROUTE: ROUTE,
    RTM_NEWNEIGH: NEIGH,
    RTM_DELNEIGH: NEIGH,
}


class Watch:
    """Netlink socket that receives the notifications of the namespace in which it is opened.

    Args:
        kinds: object types to report.
        devices: names; links, addresses and neighbours of other devices are ignored. Empty: all devices.
        ignoring: changes made through this socket are ignored, except those of an FDB:
            the kernel does not report which socket made them.

    Raises: KernelRefused.
    """

    def __init__(self, kinds: Collection[str] = KINDS, devices: Collection[str] = (), ignoring: Rtnl | None = None) -> None:
        self._kinds, self._devices = frozenset(kinds), frozenset(devices)
        self._own_port = ignoring.port if ignoring else -1
        groups = 0
        for kind in self._kinds | ({LINK} if devices else set()):
            groups |= _GROUPS[kind]
        with question("ip", "monitor"):
            self._listener = Listener(NETLINK_ROUTE, groups, BUFFER_BYTES)
        self._ifindexes = {index for index, name in if_nameindex() if name in self._devices}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()

    def fileno(self) -> int:
        """Return the descriptor, for ``select``."""
        return self._listener.fileno()

    def wait(self, timeout_seconds: float) -> set[str]:
        """Wait for a change and a moment more. Returns: types of changed objects, none after the timeout. Raises: OSError."""
        until = monotonic() + timeout_seconds
        changed: set[str] = set()
        while True:
            received = self._listener.receive(max(until - monotonic(), 0.0))
            if received == []:
                return changed
            kinds = set(self._kinds) if received is None else self._types(received)
            if kinds and not changed:
                until = monotonic() + SETTLE_SECONDS
            changed |= kinds
            if monotonic() >= until:  # notifications may come without end
                return changed

    def _types(self, received: list[Notification]) -> set[str]:
        """Return the requested types among these."""
        kinds = set()
        for number, port, body in received:
            kind = _KIND_OF.get(number)
            if kind and self._concerns(kind, number, body) and kind in self._kinds and port != self._own_port:
                kinds.add(kind)
        return kinds

    def _concerns(self, kind: str, number: int, body: bytes) -> bool:
        """Return whether it is of the main table, or of one of the devices; names of devices are learned from links."""
        if kind == ROUTE:
            return bool(decode_header("rtmsg", body)["table"] == RT_TABLE_MAIN)
        if not self._devices:
            return True
        if kind == ADDR:
            return decode_header("ifaddrmsg", body)["index"] in self._ifindexes
        if kind == NEIGH:
            return decode_header("ndmsg", body)["ifindex"] in self._ifindexes
        link = decode("ifinfmsg", body)
        ifindex, named = link["index"], link.get("IFLA_IFNAME") in self._devices
        was_named = ifindex in self._ifindexes
        if named and number == RTM_NEWLINK:
            self._ifindexes.add(ifindex)
        else:  # it was deleted or renamed
            self._ifindexes.discard(ifindex)
        return named or was_named
