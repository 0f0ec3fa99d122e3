"""What others change: rtnetlink's notifications, as the kinds of things that changed.

The kernel says which object changed, not what it should be; so who waits here looks again (wanted minus
actual). Bursts are taken together. What does not fit into the socket's buffer is lost, and the kernel says
so: then everything may have changed.

    with Watch(kinds=("link", "addr", "route", "neigh"), devices=("flannel.1", "eth0"), ignoring=rtnl) as watch:
        watch.wait(timeout_seconds) -> set[str]       of "link", "addr", "route", "neigh"; empty after the time

Source: linux include/uapi/linux/rtnetlink.h (RTNLGRP_…).
"""

from __future__ import annotations

from _socket import if_nameindex
from collections.abc import Collection
from struct import unpack_from
from time import monotonic
from types import TracebackType

from cni_py.netlink.attributes import attributes, text_of
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
from cni_py.netlink.socket import Listener, Message, Rtnl, question

LINK, ADDR, ROUTE, NEIGH = "link", "addr", "route", "neigh"
KINDS = (LINK, ADDR, ROUTE, NEIGH)
SETTLE_SECONDS = 0.02
"""Changes come in bursts: after the first, this long is listened for more."""
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
_IFLA_IFNAME = 3


class Watch:
    """A netlink socket that gets the notifications of the namespace it is opened in.

    Args:
        kinds: what to hear of.
        devices: names; of links, addresses and neighbours of others nothing is heard. Empty: of all.
        ignoring: changes that are made through this socket are not heard of, but for those of an FDB:
            the kernel does not say who made them.

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
        """For ``select``."""
        return self._listener.fileno()

    def wait(self, timeout_seconds: float) -> set[str]:
        """Wait until something changed, and a moment more; the kinds of what did, none after the time. Raises: OSError."""
        until = monotonic() + timeout_seconds
        changed: set[str] = set()
        while True:
            messages = self._listener.receive(max(until - monotonic(), 0.0))
            if messages == []:
                return changed
            heard = set(self._kinds) if messages is None else self._heard(messages)
            if heard and not changed:
                until = monotonic() + SETTLE_SECONDS
            changed |= heard
            if monotonic() >= until:  # news may come without end
                return changed

    def _heard(self, messages: list[Message]) -> set[str]:
        """The kinds of these messages that are asked for."""
        heard = set()
        for number, _, _, port, body in messages:
            kind = _KIND_OF.get(number)
            if kind and self._concerns(kind, number, body) and kind in self._kinds and port != self._own_port:
                heard.add(kind)
        return heard

    def _concerns(self, kind: str, number: int, body: bytes) -> bool:
        """Whether it is of the main table, or of one of the devices; which number has which name is learned from links."""
        if kind == ROUTE:
            return body[4] == RT_TABLE_MAIN
        if not self._devices:
            return True
        ifindex: int = unpack_from("=i", body, 4)[0]
        if kind != LINK:
            return ifindex in self._ifindexes
        named = text_of(dict(attributes(body[16:])).get(_IFLA_IFNAME, b"")) in self._devices
        was_named = ifindex in self._ifindexes
        if named and number == RTM_NEWLINK:
            self._ifindexes.add(ifindex)
        else:  # it has gone, or was renamed
            self._ifindexes.discard(ifindex)
        return named or was_named
