"""A kernel for tests that need none: it has links, takes every change, and reports it as the real one does.

It keeps routes, neighbours and FDB entries by their keys, so that one entry can be read and what another process does be played.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import ENODEV, ENOENT
from typing import Any

from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import IFF_UP
from cni_py.netlink.notifications import Overflow
from cni_py.netlink.socket import NetlinkError

GETLINK, NEWROUTE, DELROUTE, GETROUTE, NEWNEIGH, DELNEIGH, GETNEIGH = 18, 24, 25, 26, 28, 29, 30
NEWLINK, DELLINK, NEWADDR, DELADDR = 16, 17, 20, 21
PORT = 4711
AF_BRIDGE = 7
Request = tuple[bytes, int, int]


class StubKernel:
    """A stub of ``netlink.socket.Rtnl`` and ``netlink.notifications.Notifications`` in one. ``links``: names by number."""

    enter: tuple[str, ...] = ()
    ifindexes: dict[str, int] | None = None
    port = PORT

    def __init__(self, links: dict[int, tuple[str, str]]) -> None:
        """``links``: name and kind by number."""
        self.links, self.flags = dict(links), dict.fromkeys(links, IFF_UP)
        self.entries: dict[tuple[Any, ...], bytes] = {}
        self.requests: list[Request] = []
        self.reports: list[tuple[int, int, bytes]] = []
        self.is_overflowing = False
        self.refuses: Callable[[int, bytes], int] = lambda kind, body: 0
        """An error number for a change; 0: it is made."""
        self._ready = os.eventfd(0, os.EFD_NONBLOCK)

    def close(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
        self._ready = -1

    def remember_links(self, is_wanted: bool) -> None:
        self.ifindexes = {} if is_wanted else None

    # ---- a socket -------------------------------------------------------------------------------

    def change_many(self, requests: list[Request]) -> dict[int, NetlinkError]:
        refused = {}
        for index, (body, kind, _) in enumerate(requests):
            if number := self.refuses(kind, body):
                refused[index] = NetlinkError(number, os.strerror(number))
            else:
                self.do(kind, body, by=PORT)
        self.requests += requests
        return refused

    def change(self, body: bytes, kind: int, flags: int = 0) -> None:
        self.requests.append((body, kind, flags))

    def get(self, question: bytes, kind: int) -> bytes:
        if kind == GETLINK:
            return self._link(question)
        found = self.entries.get(key_of(kind, question))
        if found is None:
            raise NetlinkError(ENOENT, os.strerror(ENOENT))
        return found

    def dump(self, question: bytes, kind: int, containing: bytes = b"") -> list[bytes]:
        if kind == GETLINK:
            return [self._message(ifindex) for ifindex in self.links]
        if kind not in (GETROUTE, GETNEIGH):
            return []
        family = question[0]
        return [body for body in self.entries.values() if (len(body) > 0 and body[0] == family and _is_of(kind, body))]

    def _link(self, question: bytes) -> bytes:
        asked = decode("ifinfmsg", question)
        ifindex, name = asked["index"], asked.get("IFLA_IFNAME", "")
        for number, (called, _) in self.links.items():
            if number == ifindex or called == name:
                return self._message(number)
        raise NetlinkError(ENODEV, os.strerror(ENODEV))

    def _message(self, ifindex: int) -> bytes:
        name, kind = self.links[ifindex]
        return encode(
            "ifinfmsg",
            {
                "index": ifindex,
                "flags": self.flags[ifindex],
                "IFLA_IFNAME": name,
                "IFLA_MTU": 1450,
                "IFLA_ADDRESS": f"02:00:00:00:00:{ifindex:02x}",
                "IFLA_LINKINFO": {"IFLA_INFO_KIND": kind} if kind else None,
            },
        )

    # ---- what happens ---------------------------------------------------------------------------

    def do(self, kind: int, body: bytes, by: int = 0) -> None:
        """Change an entry and report it; ``by``: the socket of the process that does it."""
        key = key_of(kind, body)
        if kind in (NEWROUTE, NEWNEIGH):
            self.entries[key] = body
        else:
            body = self.entries.pop(key, body)
        self.report(kind, body, 0 if kind in (NEWNEIGH, DELNEIGH) and body[0] == AF_BRIDGE else by)

    def forget(self, key: tuple[Any, ...]) -> None:
        """Lose an entry without a report."""
        del self.entries[key]

    def report(self, kind: int, body: bytes, by: int = 0) -> None:
        self.reports.append((kind, by, body))

    def set_link(self, ifindex: int, flags: int) -> None:
        self.flags[ifindex] = flags
        self.report(NEWLINK, self._message(ifindex))

    # ---- notifications --------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._ready

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        reports, self.reports = self.reports, []
        yield from reports
        if self.is_overflowing:
            self.is_overflowing = False
            raise Overflow


def key_of(kind: int, body: bytes) -> tuple[Any, ...]:
    """Return the key of what a message is about: a route's network, a neighbour's link and address, an FDB entry's link and MAC address."""
    if kind in (NEWROUTE, DELROUTE, GETROUTE):
        route = decode("rtmsg", body)
        return ("route", route.get("RTA_DST"), route["dst_len"] if kind != GETROUTE else 24)
    entry = decode("ndmsg", body)
    name, key = ("fdb", "NDA_LLADDR") if entry["family"] == AF_BRIDGE else ("neigh", "NDA_DST")
    return (name, entry["ifindex"], entry.get(key))


def _is_of(kind: int, body: bytes) -> bool:
    return (kind == GETROUTE) == (len(body) > 4 and body[4] == 254)


class StubWireGuardDevice:
    """A stub of ``kernel.wireguard.WireGuardDevice``, which keeps its peers."""

    def __init__(self) -> None:
        self.peers: dict[bytes, Any] = {}

    def set_peers(self, changed: Any, gone: Any = ()) -> None:
        for public_key in gone:
            del self.peers[public_key]
        self.peers |= {peer.public_key: peer for peer in changed}
