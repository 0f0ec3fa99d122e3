"""What others change: rtnetlink's notifications, as the kinds of things that changed.

The kernel says which object changed, not what it should be; so who waits here looks again (wanted minus
actual). Bursts are taken together. What does not fit into the socket's buffer is lost, and the kernel says
so: then everything may have changed.

    with Watch(kinds=("link", "addr", "route", "neigh"), devices=("flannel.1", "eth0"), ignoring=rtnl) as watch:
        watch.wait(timeout_seconds) -> set[str]       of "link", "addr", "route", "neigh"; empty after the time

Source: linux include/uapi/linux/rtnetlink.h (RTNLGRP_…).
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from errno import ENOBUFS
from struct import unpack_from
from time import monotonic
from types import TracebackType

from cni_py.netlink.attributes import attributes, text_of
from cni_py.netlink.socket import NETLINK_ROUTE, RTM_NEWLINK, Rtnl, question

LINK, ADDR, ROUTE, NEIGH = "link", "addr", "route", "neigh"
KINDS = (LINK, ADDR, ROUTE, NEIGH)
SETTLE_SECONDS = 0.02
"""Changes come in bursts: after the first, this long is listened for more."""
BUFFER_BYTES = 1 << 20

_GROUPS = {LINK: 0x1, NEIGH: 0x4, ADDR: 0x10 | 0x100, ROUTE: 0x40 | 0x400}  # RTMGRP_…, of IPv4 and IPv6
_KIND_OF = {16: LINK, 17: LINK, 20: ADDR, 21: ADDR, 24: ROUTE, 25: ROUTE, 28: NEIGH, 29: NEIGH}  # RTM_NEW…, RTM_DEL…
_IFLA_IFNAME = 3
_SO_RCVBUFFORCE = 33
RT_TABLE_MAIN = 254
_LARGEST = 65536


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
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
            except OSError:  # not without CAP_NET_ADMIN: it overflows earlier
                pass
            self._socket.bind((0, groups))
        self._ifindexes = {index for index, name in socket.if_nameindex() if name in self._devices}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def wait(self, timeout_seconds: float) -> set[str]:
        """Wait until something changed, and a moment more; the kinds of what did, none after the time. Raises: OSError."""
        until = monotonic() + timeout_seconds
        changed: set[str] = set()
        while True:
            self._socket.settimeout(max(until - monotonic(), 0.0))
            try:
                heard = self._heard(self._socket.recv(_LARGEST))
            except (TimeoutError, BlockingIOError):
                return changed
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                heard = set(self._kinds)
            if heard and not changed:
                until = monotonic() + SETTLE_SECONDS
            changed |= heard
            if monotonic() >= until:  # news may come without end
                return changed

    def _heard(self, data: bytes) -> set[str]:
        """The kinds in one datagram that are asked for."""
        heard = set()
        at = 0
        while at + 16 <= len(data):
            length, number, _, _, port = unpack_from("=IHHII", data, at)
            kind = _KIND_OF.get(number)
            if (
                kind
                and self._concerns(kind, number, data[at + 16 : at + length])
                and kind in self._kinds
                and port != self._own_port
            ):
                heard.add(kind)
            at += max(length + 3 & ~3, 16)
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
