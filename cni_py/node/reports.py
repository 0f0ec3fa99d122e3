"""The kernel's reports, sorted: which of them differ from the desired state. Nothing is read or changed here.

A report of an entry that equals the desired one is dropped at once: it is the echo of our own change, or another process
made the same. The others are suspects. Reports of changes through our own socket are dropped, except for those of an FDB,
in which the kernel does not name the author.

The kernel does not report IPv4 routes that it deletes because their link went down or lost its last address. So such a
report of a link or an address means that the entries of that link may be gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import unpack_from
from typing import TYPE_CHECKING, Any

from cni_py.kernel.address import have_overlap
from cni_py.kernel.lookup import decode_neighbour, decode_route
from cni_py.kernel.route import PROTOCOL
from cni_py.netlink.attributes import decode
from cni_py.netlink.constants import (
    AF_BRIDGE,
    IFF_UP,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTPROT_KERNEL,
)
from cni_py.netlink.notifications import Overflow
from cni_py.node.tables import FDB, NEIGHBOURS, ROUTES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from cni_py.kernel.address import Network
    from cni_py.kernel.route import Route
    from cni_py.netlink.notifications import Notifications
    from cni_py.node.desired import Desired, Place
    from cni_py.node.tables import Entry, Table

LINK, ADDR = "link", "addr"
_TABLE_AT, _PROTOCOL_AT = 4, 5
"""Offsets in ``struct rtmsg``."""
MOST = 16
"""Reports of one key that are kept apart."""


@dataclass(slots=True)
class Batch:
    """The consequences of some reports."""

    is_lost: bool = False
    """Reports were lost: anything may differ."""
    nouns: set[str] = field(default_factory=set)
    """Types of the reported objects, in the words of ``ip monitor``."""
    devices: set[str] = field(default_factory=set)
    """Our devices that may differ."""
    emptied: set[str] = field(default_factory=set)
    """Our devices whose entries may be gone."""
    has_lost_routes: bool = False
    """The external interface was down, or lost an address."""
    may_retry: bool = False
    """A link or an address appeared: what the kernel refused may work now."""
    suspects: dict[Place, list[Entry]] = field(default_factory=dict)
    """Keys that may differ, and the entries that were reported under them."""


class Reports:
    """Reports that were received and not yet taken. ``name_of``: reads the name of a link by its number."""

    def __init__(
        self, desired: Desired, own_port: int, external: str, networks: set[Network], name_of: Callable[[int], str]
    ) -> None:
        self._desired, self._own_port, self._external, self._networks = desired, own_port, external, networks
        self._name_of = name_of
        self.devices: set[str] = set()
        """The names of our devices."""
        self.names: dict[int, str] = {}
        """Names of our devices that exist, and of the external interface, by number."""
        self.connected: dict[Hashable, int] = {}
        """Numbers of the links of the kernel's own routes into our networks (a bridge to its pods), by the key of the route."""
        self._batch = Batch()

    def take(self) -> Batch:
        """Return what was received since the last time."""
        batch, self._batch = self._batch, Batch()
        return batch

    def receive(self, notifications: Notifications) -> None:
        """Read and sort what is in the socket. Raises: OSError."""
        try:
            for number, port, body in notifications.read():
                if port == self._own_port:
                    continue
                if number in (RTM_NEWNEIGH, RTM_DELNEIGH):
                    self._neighbour(number == RTM_NEWNEIGH, body)
                elif number in (RTM_NEWROUTE, RTM_DELROUTE):
                    self._route(number == RTM_NEWROUTE, body)
                elif number in (RTM_NEWADDR, RTM_DELADDR):
                    self._address(number == RTM_NEWADDR, body)
                elif number in (RTM_NEWLINK, RTM_DELLINK):
                    self._link(number == RTM_NEWLINK, body)
        except Overflow:
            self._batch.is_lost = True

    def is_ours(self, route: Route) -> bool:
        """Return whether a route is ours to keep or delete: by its protocol, or because it is on link over one of our devices.

        Go's flanneld and people leave the latter, of another protocol.
        """
        if route.protocol == RTPROT_KERNEL:
            return False
        is_over_ours = route.device in self.devices
        if route.protocol == PROTOCOL:
            return is_over_ours or self._is_in_networks(route.dst)
        return is_over_ours and route.onlink

    def connect(self, dst: Network, ifindex: int) -> None:
        """Note a route that the kernel made for an address of a link."""
        if self.names.get(ifindex) not in self.devices and self._is_in_networks(dst):
            self.connected[ROUTES.key_of(dst)] = ifindex

    def _is_in_networks(self, dst: Network) -> bool:
        return any(dst.version == network.version and have_overlap(dst, network) for network in self._networks)

    # ---- each kind of report --------------------------------------------------------------------

    def _neighbour(self, is_new: bool, body: bytes) -> None:
        name = self.names.get(unpack_from("=i", body, 4)[0])
        if name not in self.devices:
            return
        assert name is not None
        reported = decode_neighbour(body, name)
        if body[0] != AF_BRIDGE:
            self._entry(NEIGHBOURS, (name, reported.address), reported.entry, is_new)
        elif reported.address:  # without one it is an entry of the bridge that the device is a port of
            self._entry(FDB, (name, reported.mac), reported.entry, is_new)

    def _route(self, is_new: bool, body: bytes) -> None:
        if body[_TABLE_AT] != RT_TABLE_MAIN:
            return
        reported = decode_route(body, self._name_of if body[_PROTOCOL_AT] == PROTOCOL else self._known_name_of)
        if reported is None:
            return
        key, route = ROUTES.key_of(reported.dst, reported.metric), reported.route
        if reported.protocol == RTPROT_KERNEL:
            if is_new:
                self.connect(reported.dst, reported.ifindex)
            elif self.connected.get(key) == reported.ifindex:
                del self.connected[key]
            self._suspect_if_desired(key)
        elif key in self._desired.entries(ROUTES) or (route is not None and self.is_ours(route)):
            self._entry(ROUTES, key, route, is_new)

    def _known_name_of(self, ifindex: int) -> str:
        """Return a name without asking the kernel, which costs too much where another process makes thousands of routes."""
        return self.names.get(ifindex, "?")

    def _entry(self, table: Table[Any], key: Hashable, reported: Entry | None, is_new: bool) -> None:
        desired = self._desired.entries(table).get(key)
        if desired is None and (reported is None or not is_new):
            return
        if desired is None or not is_new or reported != desired:
            self._suspect(table, key, reported if is_new else None)

    def _suspect(self, table: Table[Any], key: Hashable, reported: Entry | None) -> None:
        entries = self._batch.suspects.setdefault((table, key), [])
        if reported is not None and reported not in entries[-MOST:]:
            entries.append(reported)
        self._batch.nouns.add(table.noun)

    def _suspect_if_desired(self, key: Hashable) -> None:
        if key in self._desired.entries(ROUTES):
            self._suspect(ROUTES, key, None)

    def _address(self, is_new: bool, body: bytes) -> None:
        name = self.names.get(unpack_from("=i", body, 4)[0])
        if name is None:
            return
        batch = self._batch
        batch.nouns.add(ADDR)
        batch.may_retry |= is_new
        if name == self._external:
            batch.has_lost_routes |= not is_new
            return
        batch.devices.add(name)
        if not is_new:
            batch.emptied.add(name)

    def _link(self, is_new: bool, body: bytes) -> None:
        link = decode("ifinfmsg", body)
        ifindex, flags, name = link["index"], link["flags"], link.get("IFLA_IFNAME", "")
        before = self.names.get(ifindex)
        is_down = body[0] != AF_BRIDGE and (not is_new or not flags & IFF_UP)
        if is_down and ifindex in self.connected.values():
            self._disconnect(ifindex)
        for concerned in {before, name} & {self._external, *self.devices}:
            self._concerned(str(concerned), is_down or before != name)

    def _concerned(self, name: str, is_emptied: bool) -> None:
        batch = self._batch
        batch.nouns.add(LINK)
        batch.may_retry = True
        if name == self._external:
            batch.has_lost_routes |= is_emptied
            return
        batch.devices.add(name)
        if is_emptied:
            batch.emptied.add(name)

    def _disconnect(self, ifindex: int) -> None:
        """Forget the kernel's routes over a link that went down: the kernel deletes them without a report."""
        for key in [key for key, of in self.connected.items() if of == ifindex]:
            del self.connected[key]
            self._suspect_if_desired(key)
