"""Follow the other nodes' leases: the entries of a lease are desired as long as it exists.

How it works. Events of the datastore come in order. Each is checked: a lease that would divert packets of other
nodes is ignored, of two that overlap the younger one, and of a lease with two families one that cannot be followed. What
it changes is handed to lease_entries.py: the entries of that lease, and no others. A node that is not reached is logged as
a warning, once.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.flanneld.lease import Lease
from cni_py.flanneld.lease_entries import LeaseEntries
from cni_py.flanneld.lease_events import LeaseEvents
from cni_py.flanneld.stores import Gone
from cni_py.flanneld.subnet_index import SubnetIndex
from cni_py.flanneld.vanished import Vanished
from cni_py.node.changes import because, finish
from cni_py.node.log import error, info, warning, warning_once
from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from cni_py.flanneld.backends import Backend
    from cni_py.flanneld.lease import Attributes, Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.stores import Event
    from cni_py.node.health import Health
    from cni_py.node.reconcile import Reconciler
    from cni_py.node.stop import Stop

    Address = IPv4Address | IPv6Address

_NAMED = 3
"""Events that the journal names of those that are followed together."""


class Following:
    """The leases of the other nodes, as they are followed.

    Args:
        own: the node's own lease, as it is now.
        leases: where those are kept that are followed.
        changed: called with the subnets whose leases are others now.
        why_not_here: why the subnets of a lease cannot be followed on this host; empty: they can.
    """

    def __init__(
        self,
        config: NetworkConfig,
        own: Callable[[], Lease],
        backend: Backend,
        reconciler: Reconciler,
        health: Health,
        leases: dict[Subnets, Lease],
        changed: Callable[[Iterable[Subnets]], None],
        why_not_here: Callable[[Subnets], str],
    ) -> None:
        self._config, self._own, self._entries = config, own, LeaseEntries(backend, reconciler)
        self._health, self.leases, self._changed, self._why_not_here = health, leases, changed, why_not_here
        self.events = LeaseEvents()
        self._must_recheck = threading.Event()
        self._ignored: dict[Subnets, Lease] = {}
        """Leases that are not followed, or by one family alone, as they were published; one that changes is checked again."""
        self._followed = SubnetIndex()
        self._younger: dict[Subnets, dict[Subnets, None]] = {}
        """Leases that are ignored because they overlap this one."""
        self._older: dict[Subnets, Subnets] = {}
        """Leases that they overlap, by them."""
        self._again: list[Lease] = []
        """Leases to check again, because one that they overlap was dropped."""
        self._nodes: dict[Address, tuple[Subnets, ...]] = {}
        """Leases by the addresses of their nodes."""
        self._vanished = Vanished()
        self._unconfirmed: set[Subnets] | None = None
        """Saved leases that the datastore has not listed yet; None once it has listed all."""
        self._said: set[str] = set()

    def start(self, leases: Mapping[Subnets, Lease], *, is_confirmed: bool) -> None:
        """Desire what these leases ask for; the kernel follows by ``Reconciler.start()``. Raises: CniError.

        ``is_confirmed``: the datastore listed all leases, so these are complete; otherwise they were saved.
        """
        oldest_first = sorted(leases.values(), key=lambda lease: lease.since)
        self._follow(oldest_first, monotonic())
        self._unconfirmed = None if is_confirmed else {*self.leases, *self._ignored}

    def recheck(self) -> None:
        """Have every lease checked again, because ``why_not_here`` depends on something that changed."""
        self._must_recheck.set()
        self.events.wake()

    def run(self, stop: Stop) -> None:
        """Follow the events, until ``stop``."""
        with stop.calling(self.events.wake):
            while not stop.is_set():
                events = self.events.following(stop, self._vanished.next_end())
                try:
                    self.take(events, monotonic())
                except CniError as fault:  # a look at the kernel tries again
                    error(f"the leases could not be followed: {fault}")

    def take(self, events: Iterable[Event], now: float) -> None:
        """Follow these, and what has vanished long enough ago. Raises: CniError."""
        events = list(events)
        because(lambda: _title_of(events))
        try:
            self._follow(events, now)
        finally:
            self._entries.settle()
            finish()

    # ---- one event after the other --------------------------------------------------------------

    def _follow(self, events: Iterable[Event], now: float) -> None:
        """Raises: CniError."""
        before: dict[Subnets, Lease | None] = {}
        if self._must_recheck.is_set():
            self._must_recheck.clear()
            self._recheck(before)
        for event in events:
            if isinstance(event, Lease):
                if self._unconfirmed is not None:
                    self._unconfirmed.discard(event.subnets)
                self._put(event, before)
            elif isinstance(event, Gone):
                self._take_away(event, before, now)
            elif self._unconfirmed is not None:  # SNAPSHOT_COMPLETE
                for subnets in self._unconfirmed:
                    self._take_away(Gone(subnets), before, now)
                self._unconfirmed = None
        for subnets in self._vanished.ended(now):
            self._drop(subnets, before)
        while self._again:
            self._put(self._again.pop(), before)
        self._health.gauge("leases", "Leases in the datastore, our own too.", len(self.leases) + 1)
        self._changed(before)
        changes = [
            (former, lease) for subnets, former in before.items() if _says(former) != _says(lease := self.leases.get(subnets))
        ]
        left_out = {subnets: published.versions - self.leases[subnets].versions for subnets, published in self._partly(before)}
        self._entries.follow(self._own(), changes, left_out)

    def _partly(self, changed: Iterable[Subnets]) -> Iterator[tuple[Subnets, Lease]]:
        """Yield those of the leases that are followed by one family alone, as they were published."""
        for subnets in changed:
            if subnets in self._ignored and subnets in self.leases:
                yield subnets, self._ignored[subnets]

    def _put(self, lease: Lease, before: dict[Subnets, Lease | None]) -> None:
        subnets, former = lease.subnets, self.leases.get(lease.subnets)
        if subnets == self._own().subnets:
            return
        published = self._ignored.get(subnets, former)
        if former is not None and published is not None and published.attributes == lease.attributes:
            self._vanished.discard(subnets)
            before.setdefault(subnets, former)
            self.leases[subnets] = replace(lease, attributes=former.attributes)
            return
        part = self._part_to_follow(lease, before)
        if part is None:
            return
        self._vanished.discard(subnets)
        if former is None:
            for vanished in self._vanished.overlapping(subnets):  # its subnet has a new node
                self._drop(vanished, before)
        if self._is_younger(part, before):
            return
        if part == lease:
            self._ignored.pop(subnets, None)
        before.setdefault(subnets, former)
        self._forget_node(subnets)
        self.leases[subnets] = part
        self._followed.add(subnets)
        self._note_node(part)

    def _part_to_follow(self, lease: Lease, before: dict[Subnets, Lease | None]) -> Lease | None:
        """Return the lease with the families that can be followed; None if there is none, and it is ignored."""
        why_not = self._why_not(lease)
        left_out = {} if why_not else self._left_out(lease)
        if left_out and (len(left_out) == len(lease.subnets.each()) or not lease.without(*left_out).versions):
            why_not = next(iter(left_out.values()))
        if why_not:
            self._ignore(lease, why_not, before)
            return None
        if not left_out:
            return lease
        if self._ignored.get(lease.subnets) != lease:
            for version, reason in left_out.items():
                warning(f"the lease of {lease.subnets}: {reason}; not reached by IPv{version}")
        self._ignored[lease.subnets] = lease
        return lease.without(*left_out)

    def _ignore(self, lease: Lease, why_not: str, before: dict[Subnets, Lease | None]) -> None:
        is_new = self._ignored.get(lease.subnets) != lease
        if is_new and lease.is_unused_reservation and why_not.endswith("is our own address"):
            info(f"{lease.subnets} is reserved for this node: flanneld uses it when it starts again")
        elif is_new:
            warning(f"ignoring the lease of {lease.subnets}: {why_not}; not reached")
        self._ignored[lease.subnets] = lease
        self._drop(lease.subnets, before)

    def _is_younger(self, lease: Lease, before: dict[Subnets, Lease | None]) -> bool:
        """Ignore the younger one of leases of different nodes that overlap; return whether it is this one."""
        others = [self.leases[subnets] for subnets in self._followed.overlapping(lease.subnets) if subnets != lease.subnets]
        rivals = [other for other in others if not lease.attributes.is_same_node(other.attributes)]
        for rival in rivals:
            if not lease.since or rival.since <= lease.since:
                self._ignore_younger(lease, rival, before)
                return True
        for rival in rivals:
            self._ignore_younger(rival, lease, before)
        return False

    def _ignore_younger(self, younger: Lease, older: Lease, before: dict[Subnets, Lease | None]) -> None:
        self._ignore(younger, f"it overlaps {older.subnets} of {older.attributes.addresses[0]}, whose lease is older", before)
        self._forget_older(younger.subnets)
        self._older[younger.subnets] = older.subnets
        self._younger.setdefault(older.subnets, {})[younger.subnets] = None

    def _forget_older(self, subnets: Subnets) -> None:
        older = self._older.pop(subnets, None)
        if older is not None:
            self._younger.get(older, {}).pop(subnets, None)

    def _recheck(self, before: dict[Subnets, Lease | None]) -> None:
        for subnets, lease in list(self.leases.items()):
            if subnets in self._vanished:
                continue
            published = self._ignored.get(subnets, lease)
            part = self._part_to_follow(published, before)
            if part == published:
                self._ignored.pop(subnets, None)
            if part is not None and part != lease:
                before.setdefault(subnets, lease)
                self.leases[subnets] = part
        for lease in list(self._ignored.values()):
            if lease.subnets not in self.leases:
                self._put(lease, before)

    def _take_away(self, gone: Gone, before: dict[Subnets, Lease | None], now: float) -> None:
        self._ignored.pop(gone.subnets, None)
        self._forget_older(gone.subnets)
        if gone.is_final:
            self._drop(gone.subnets, before)
        elif gone.subnets in self.leases:
            self._vanished.add(gone.subnets, now)

    def _drop(self, subnets: Subnets, before: dict[Subnets, Lease | None]) -> None:
        self._vanished.discard(subnets)
        if subnets not in self.leases:
            return
        self._forget_node(subnets)
        before.setdefault(subnets, self.leases.pop(subnets))
        self._followed.discard(subnets)
        self._again += [self._ignored[younger] for younger in self._younger.pop(subnets, ()) if younger in self._ignored]

    # ---- what a lease lacks ---------------------------------------------------------------------

    def _why_not(self, lease: Lease) -> str:
        """Return why a lease is not followed; empty: it is."""
        subnets, its = lease.subnets, lease.attributes
        own, ours = self._own().subnets, self._own().attributes
        for address in its.addresses:
            if address in ours.addresses:
                return f"{address} is our own address"
        if its.public_ip is None and _is_link_local(its) and not _is_link_local(ours):
            return f"{its.public_ipv6} is link-local, and our address is not"
        return f"it overlaps our own, {own}" if subnets.overlap(own) else ""

    def _left_out(self, lease: Lease) -> dict[int, str]:
        """Return the families in which a lease is not followed, and why."""
        found: dict[int, str] = {}
        if self._config.holds(lease.subnets) and not self._why_not_here(lease.subnets):
            return found
        for subnet in lease.subnets.each():
            alone = lease.subnets.only(subnet.version)
            if not self._config.holds(alone):
                found[subnet.version] = "it is not in the network; if the configuration is another now, start flanneld again"
            elif why_not := self._why_not_here(alone):
                found[subnet.version] = why_not
        return found

    def _note_node(self, lease: Lease) -> None:
        """Keep which leases have an address, and log where two nodes have one."""
        for address in lease.attributes.addresses:
            those = self._nodes.get(address, ())
            other = next((other for other in those if other not in self._vanished), None)
            if other is not None:
                warning_once(
                    f"the leases of {other} and {lease.subnets} have one public address, {address}: if these are two nodes,"
                    " one of them is not reached, and needs another -public-ip",
                    self._said,
                )
            self._nodes[address] = (*those, lease.subnets)

    def _forget_node(self, subnets: Subnets) -> None:
        former = self.leases.get(subnets)
        for address in former.attributes.addresses if former is not None else ():
            those = tuple(other for other in self._nodes.get(address, ()) if other != subnets)
            if those:
                self._nodes[address] = those
            else:
                self._nodes.pop(address, None)


def _says(lease: Lease | None) -> Attributes | None:
    """Return what the node publishes; the end of the lease does not count."""
    return lease.attributes if lease is not None else None


def _is_link_local(its: Attributes) -> bool:
    return its.public_ipv6 is not None and its.public_ipv6.is_link_local


def _title_of(events: Sequence[Event]) -> str:
    """Say what happened to which leases: the first few, and how many more."""
    words = [_words_of(event) for event in events[:_NAMED]] or [
        "a lease that has vanished counts no more, or leases are checked again"
    ]
    more = len(events) - _NAMED
    return "; ".join(words) + (f"; and {counted(more, 'event')} more" if more > 0 else "")


def _words_of(event: Event) -> str:
    if isinstance(event, Lease):
        return f"the lease of {event.subnets} is that of {', '.join(map(str, event.attributes.addresses))}"
    return f"the lease of {event.subnets} was deleted" if isinstance(event, Gone) else "the datastore has listed all leases"
