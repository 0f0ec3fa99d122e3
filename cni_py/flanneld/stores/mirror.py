"""Leases of a datastore as a watch has yielded them, by the names of their entries. Pure.

From what the datastore says now it makes the events of a watch: nothing where nothing changed, such as a renewal by Go's
flanneld, which writes the same value again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Gone
from cni_py.node.log import shortened, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.flanneld.stores import Event


class Mirror:
    """Leases by name. Two entries may name the same subnets, by mistake: the older one counts, or that which changed last."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._names: dict[Subnets, str] = {}
        """Name of the entry that counts."""

    def put(self, name: str, lease: Lease | None, is_final: bool = False) -> list[Event]:
        """Set the lease of the entry ``name``; None: no lease, or it was deleted, permanently if ``is_final``."""
        before = self._leases.get(name)
        if before == lease:
            return []
        events: list[Event] = []
        if before is not None and (lease is None or lease.subnets != before.subnets):
            events += self._remove(name, is_final)
        if lease is not None:
            self._leases[name] = lease
            holder = self._names.get(lease.subnets, name)
            if holder != name and 0 < self._leases[holder].since < lease.since:
                words = (
                    f'"{shortened(name)}" has the subnet {lease.subnets} of "{shortened(holder)}", which is older; not reached'
                )
                warning(words)
                return events
            self._names[lease.subnets] = name
            events.append(lease)
        return events

    def replace(self, entries: Iterable[tuple[str, Lease | None]]) -> Iterator[Event]:
        """Compare with all entries that there are, and end with the marker."""
        gone = set(self._leases)
        for name, lease in entries:
            gone.discard(name)
            yield from self.put(name, lease)
        for name in gone:
            yield from self.put(name, None)
        yield SNAPSHOT_COMPLETE

    def again(self, lease: Lease) -> Event:
        """Return the lease that counts for these subnets, whether it was yielded or not."""
        name = self._names.get(lease.subnets)
        return Gone(lease.subnets) if name is None else self._leases[name]

    def _remove(self, name: str, is_final: bool) -> list[Event]:
        subnets = self._leases.pop(name).subnets
        if self._names[subnets] != name:
            return []
        del self._names[subnets]
        if len(self._leases) > len(self._names):  # some entries name the same subnets: are these among them?
            other = next((of for of, lease in self._leases.items() if lease.subnets == subnets), None)
            if other is not None:
                self._names[subnets] = other
                return [self._leases[other]]
        return [Gone(subnets, is_final)]
