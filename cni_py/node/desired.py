"""The desired entries of a node's kernel: plain values with an owner each. ``reconcile.py`` applies them.

How it works. An owner, a peer's subnet say, wants a group of entries or drops it; what that costs does not depend on how
many others there are. Two owners may want the same entry: it stays until both have dropped it. Where two want different
entries under one key, the first one has it, and the other's whole group waits until the key is free: half of a route to a peer
would lead its packets to another one.
"""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any

from cni_py.kernel.neighbour import Forwarding, Neighbour
from cni_py.kernel.route import Route, blackhole
from cni_py.node.tables import TABLES, DeviceAddress, E, Entry, Sysctl, Table, table_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

__all__ = [
    "Address", "AddressWithPrefix", "Changes", "Desired", "DeviceAddress", "Entry", "Forwarding", "Neighbour", "Network",
    "Route", "Sysctl", "blackhole", "device_sysctls", "forwarding",
]  # fmt: skip

Address = IPv4Address | IPv6Address
AddressWithPrefix = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def forwarding(version: int) -> Sysctl:
    """Return the parameter by which packets of this family are forwarded."""
    return Sysctl(FORWARDING[version], "1")


def device_sysctls(name: str, has_ipv6: bool) -> list[Sysctl]:
    """Return the parameters of our device: packets are forwarded from it, router advertisements are ignored on it.

    One with an IPv6 address has IPv6 also where the host has it on few interfaces (``net.ipv6.conf.default.disable_ipv6``).
    """
    wanted = [Sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "0")] if has_ipv6 else []
    return [*wanted, Sysctl(f"net/ipv4/conf/{name}/forwarding", "1"), Sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")]


Place = tuple[Table[Any], "Hashable"]


class Changes:
    """Changes of the desired state since they were last taken, by table. A key is in one of the two only."""

    def __init__(self) -> None:
        self.wanted: dict[Table[Any], list[Entry]] = defaultdict(list)
        self.dropped: dict[Table[Any], list[Entry]] = defaultdict(list)

    def __bool__(self) -> bool:
        return bool(self.wanted or self.dropped)


class Desired:
    """The desired entries. Not safe from several threads at a time."""

    def __init__(self) -> None:
        self._entries: dict[Table[Any], dict[Hashable, Entry]] = {table: {} for table in TABLES}
        self._shares: dict[Place, int] = {}
        """Number of owners of each entry that has more than one."""
        self._before: dict[Place, Entry | None] = {}
        """State before the changes since the last :meth:`take_changes`."""
        self._waiting: dict[Hashable, Sequence[Entry]] = {}
        self._waits_for: dict[Place, list[Hashable]] = {}

    def entries(self, table: Table[E]) -> Mapping[Hashable, E]:
        """Return the desired entries of a table, by key."""
        entries: Any = self._entries[table]
        return entries  # type: ignore[no-any-return]  # table_of() put them there

    def want(self, owner: Hashable, group: Sequence[Entry]) -> Entry | None:
        """Desire these entries too; return the one of another owner that has one of their keys, for which they wait."""
        return self.replace(owner, (), group)

    def drop(self, owner: Hashable, group: Sequence[Entry]) -> None:
        """Undo a call of :meth:`want`, with the same owner and equal entries."""
        self.replace(owner, group, ())

    def replace(self, owner: Hashable, former: Sequence[Entry], group: Sequence[Entry]) -> Entry | None:
        """Drop and want; an entry that is in both is not touched, and the owner keeps its keys before those that wait."""
        was_waiting = self._waiting.pop(owner, None) is not None
        free = [] if was_waiting else [place for entry in former if (place := self._remove(entry)) is not None]
        taken = self._admit(owner, group)
        for place in free:
            for waiting in self._waits_for.pop(place, ()):
                if (entries := self._waiting.pop(waiting, None)) is not None:
                    self._admit(waiting, entries)
        return taken

    def take_changes(self) -> Changes:
        """Return what has changed since the last time."""
        changes = Changes()
        for (table, key), before in self._before.items():
            now = self._entries[table].get(key)
            if now == before:
                continue
            if now is not None:
                changes.wanted[table].append(now)
            elif before is not None:
                changes.dropped[table].append(before)
        self._before = {}
        return changes

    def _admit(self, owner: Hashable, group: Sequence[Entry]) -> Entry | None:
        """Return the entry that the group has to wait for."""
        taken = self._first_taken(group)
        if taken is not None:
            self._waiting[owner] = group
            self._waits_for.setdefault(_place(taken), []).append(owner)
            return taken
        for entry in group:
            self._add(entry)
        return None

    def _first_taken(self, group: Iterable[Entry]) -> Entry | None:
        for entry in group:
            table, key = _place(entry)
            there = self._entries[table].get(key)
            if there is not None and there != entry:
                return there
        return None

    def _add(self, entry: Entry) -> None:
        place = table, key = _place(entry)
        entries = self._entries[table]
        if key in entries:
            self._shares[place] = self._shares.get(place, 1) + 1
        else:
            self._before.setdefault(place, None)
            entries[key] = entry

    def _remove(self, entry: Entry) -> Place | None:
        """Return the place if it is free now."""
        place = table, key = _place(entry)
        owners = self._shares.get(place, 1)
        if owners > 2:
            self._shares[place] = owners - 1
        elif owners == 2:
            del self._shares[place]
        else:
            self._before.setdefault(place, self._entries[table].pop(key))
            return place
        return None


def _place(entry: Entry) -> Place:
    table = table_of(entry)
    return table, table.key(entry)
