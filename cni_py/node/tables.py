"""The tables of a node that are kept entry by entry: kernel parameters, addresses, neighbours, FDB, routes.

A table says how its entries are distinguished (:meth:`Table.key`) and is the only place that reads, replaces or deletes them.
An entry is replaced in one request, so that no packet finds none in between; a key that the kernel does not have is absent
after :meth:`Table.delete` all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from errno import ENOENT
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cni_py.errors import KernelRefused
from cni_py.kernel import sysctl
from cni_py.kernel.address import add_address, delete_address, list_addresses
from cni_py.kernel.bulk import Refusal
from cni_py.kernel.link import find_link
from cni_py.kernel.lookup import find_forwarding, find_neighbour, find_route
from cni_py.kernel.neighbour import (
    Forwarding,
    Neighbour,
    delete_forwarding,
    delete_neighbours,
    list_forwarding,
    list_neighbours,
    replace_forwarding,
    replace_neighbours,
)
from cni_py.kernel.route import Route, delete_routes, replace_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    from cni_py.kernel.address import Network
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

    AddressWithPrefix = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel parameter, ``net/ipv4/ip_forward``. What is no longer desired keeps its value."""

    name: str
    value: str

    def words(self) -> list[str]:
        return [f"{self.name}={self.value}"]


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """An address of a device that is kept."""

    device: str
    address: AddressWithPrefix

    def words(self) -> list[str]:
        return [str(self.address), "dev", self.device]


Entry = Sysctl | DeviceAddress | Neighbour | Forwarding | Route
E = TypeVar("E", Sysctl, DeviceAddress, Neighbour, Forwarding, Route)


class Table(ABC, Generic[E]):
    """One table. ``noun``: what ``ip monitor`` calls its notifications."""

    noun: str

    @abstractmethod
    def key(self, entry: E) -> Hashable:
        """Return what distinguishes two entries for the kernel."""

    @abstractmethod
    def replace(self, rtnl: Rtnl, entries: Sequence[E]) -> Sequence[Refusal[Any]]:
        """Make the entries, or give those that have their keys these values. Raises: KernelRefused; else see Refusal."""

    @abstractmethod
    def delete(self, rtnl: Rtnl, entries: Sequence[E]) -> Sequence[Refusal[Any]]:
        """Delete exactly these; absence is success. Raises: KernelRefused; else see Refusal."""

    @abstractmethod
    def find(self, rtnl: Rtnl, entry: E, name_of: Callable[[int], str]) -> E | None:
        """Read what the kernel has under the key of ``entry``. None: nothing, or the kernel does not return it. Raises:
        KernelRefused."""


class OfDevice(Table[E]):
    """A table whose entries belong to a device and go with it."""

    @abstractmethod
    def list(self, rtnl: Rtnl, link: Link) -> Iterable[E]:
        """Read all entries of a device. Raises: KernelRefused."""


class Sysctls(Table[Sysctl]):
    """The kernel sends no notifications of these: they are read again and again."""

    noun = "sysctl"

    def key(self, entry: Sysctl) -> str:
        return entry.name

    def replace(self, rtnl: Rtnl, entries: Sequence[Sysctl]) -> Sequence[Refusal[Any]]:  # noqa: ARG002 — by a file
        return _one_by_one(entries, lambda entry: sysctl.ensure(entry.name, entry.value))

    def delete(self, rtnl: Rtnl, entries: Sequence[Sysctl]) -> Sequence[Refusal[Any]]:  # noqa: ARG002
        """Leave them: their value before is not known."""
        return []

    def find(self, rtnl: Rtnl, entry: Sysctl, name_of: Callable[[int], str]) -> Sysctl | None:  # noqa: ARG002
        return self.read(entry)

    def read(self, entry: Sysctl) -> Sysctl | None:
        """Return the parameter as it is; None if this kernel, or this device, has none of the name."""
        try:
            return Sysctl(entry.name, sysctl.read(entry.name))
        except KernelRefused:
            return None


class Addresses(OfDevice[DeviceAddress]):
    """A device that is kept has no other addresses than these."""

    noun = "addr"

    def key(self, entry: DeviceAddress) -> Hashable:
        return (entry.device, entry.address)

    def replace(self, rtnl: Rtnl, entries: Sequence[DeviceAddress]) -> Sequence[Refusal[Any]]:
        return _one_by_one(entries, lambda entry: add_address(rtnl, _link(rtnl, entry.device), entry.address))

    def delete(self, rtnl: Rtnl, entries: Sequence[DeviceAddress]) -> Sequence[Refusal[Any]]:
        return _one_by_one(entries, lambda entry: delete_address(rtnl, _link(rtnl, entry.device), entry.address))

    def find(self, rtnl: Rtnl, entry: DeviceAddress, name_of: Callable[[int], str]) -> DeviceAddress | None:  # noqa: ARG002
        link = find_link(rtnl, entry.device)
        return entry if link is not None and entry.address in list_addresses(rtnl, link) else None

    def list(self, rtnl: Rtnl, link: Link) -> Iterable[DeviceAddress]:
        return [DeviceAddress(link.name, address) for address in list_addresses(rtnl, link)]


class Neighbours(OfDevice[Neighbour]):
    """Permanent ARP and NDP entries."""

    noun = "neigh"

    def key(self, entry: Neighbour) -> Hashable:
        return (entry.device, entry.address.packed)

    def replace(self, rtnl: Rtnl, entries: Sequence[Neighbour]) -> Sequence[Refusal[Any]]:
        return replace_neighbours(rtnl, entries)

    def delete(self, rtnl: Rtnl, entries: Sequence[Neighbour]) -> Sequence[Refusal[Any]]:
        return delete_neighbours(rtnl, entries)

    def find(self, rtnl: Rtnl, entry: Neighbour, name_of: Callable[[int], str]) -> Neighbour | None:  # noqa: ARG002
        link = find_link(rtnl, entry.device)
        return find_neighbour(rtnl, link, entry.address) if link is not None else None

    def list(self, rtnl: Rtnl, link: Link) -> Iterable[Neighbour]:
        return list_neighbours(rtnl, link)


class Fdb(OfDevice[Forwarding]):
    """Permanent FDB entries of VXLAN devices. A MAC address leads to one node."""

    noun = "neigh"

    def key(self, entry: Forwarding) -> Hashable:
        return (entry.device, entry.mac)

    def replace(self, rtnl: Rtnl, entries: Sequence[Forwarding]) -> Sequence[Refusal[Any]]:
        return replace_forwarding(rtnl, entries)

    def delete(self, rtnl: Rtnl, entries: Sequence[Forwarding]) -> Sequence[Refusal[Any]]:
        return delete_forwarding(rtnl, entries)

    def find(self, rtnl: Rtnl, entry: Forwarding, name_of: Callable[[int], str]) -> Forwarding | None:  # noqa: ARG002
        link = find_link(rtnl, entry.device)
        return find_forwarding(rtnl, link, entry.mac) if link is not None else None

    def list(self, rtnl: Rtnl, link: Link) -> Iterable[Forwarding]:
        return list_forwarding(rtnl, link)


class Routes(Table[Route]):
    """Routes of the main table."""

    noun = "route"

    def key(self, entry: Route) -> Hashable:
        return self.key_of(entry.dst, entry.metric)

    @staticmethod
    def key_of(dst: Network, metric: int = 0) -> Hashable:
        return (dst.network_address.packed, dst.prefixlen, metric)

    def replace(self, rtnl: Rtnl, entries: Sequence[Route]) -> Sequence[Refusal[Any]]:
        return replace_routes(rtnl, entries)

    def delete(self, rtnl: Rtnl, entries: Sequence[Route]) -> Sequence[Refusal[Any]]:
        return delete_routes(rtnl, entries)

    def find(self, rtnl: Rtnl, entry: Route, name_of: Callable[[int], str]) -> Route | None:
        return find_route(rtnl, entry, name_of)


SYSCTLS, ADDRESSES, NEIGHBOURS, FDB, ROUTES = Sysctls(), Addresses(), Neighbours(), Fdb(), Routes()
TABLES: tuple[Table[Any], ...] = (SYSCTLS, ADDRESSES, NEIGHBOURS, FDB, ROUTES)
"""Order in which packets need them: what leads to an entry is created after it and deleted before it.

Kernel parameters come first: the kernel refuses an IPv6 address where IPv6 is off.
"""
OF_DEVICE: tuple[OfDevice[Any], ...] = (ADDRESSES, NEIGHBOURS, FDB)
_TABLE_OF: dict[type, Table[Any]] = {
    Sysctl: SYSCTLS,
    DeviceAddress: ADDRESSES,
    Neighbour: NEIGHBOURS,
    Forwarding: FDB,
    Route: ROUTES,
}


def table_of(entry: Entry) -> Table[Any]:
    """Return the table that has entries of this type."""
    return _TABLE_OF[type(entry)]


def _one_by_one(entries: Iterable[E], change: Callable[[E], None]) -> list[Refusal[Any]]:
    refusals: list[Refusal[Any]] = []
    for entry in entries:
        try:
            change(entry)
        except KernelRefused as error:
            refusals.append(Refusal(entry, error))
    return refusals


def _link(rtnl: Rtnl, name: str) -> Link:
    """Raises: KernelRefused."""
    link = find_link(rtnl, name)
    if link is None:
        raise KernelRefused(f'there is no link "{name}"', errno=ENOENT)
    return link
