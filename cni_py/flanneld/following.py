"""Follow the other nodes' leases: the entries of a lease are desired as long as it exists.

How it works. Events of the datastore come in order. Each is checked (a lease that would divert packets of other
nodes is ignored), and what it changes is handed to the back end and the reconciler: the entries of that lease, and no
others. A single change is followed at once; those that come within ``GATHER_SECONDS`` after it are gathered and followed
together.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.flanneld.lease import Lease
from cni_py.flanneld.stores import Gone
from cni_py.flanneld.vanished import Vanished
from cni_py.node.log import error, warning, warning_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cni_py.flanneld.backends import Backend
    from cni_py.flanneld.lease import Attributes, Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.stores import Event
    from cni_py.node.health import Health
    from cni_py.node.reconcile import Reconciler
    from cni_py.node.stop import Stop

GATHER_SECONDS = 0.05


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
        self._config, self._own, self._backend, self._reconciler = config, own, backend, reconciler
        self._health, self.leases, self._changed, self._why_not_here = health, leases, changed, why_not_here
        self._queue: SimpleQueue[list[Event]] = SimpleQueue()
        self._must_recheck = threading.Event()
        self._ignored: dict[Subnets, Lease] = {}
        """Leases that are not followed; one that changes is checked again."""
        self._vanished = Vanished()
        self._unconfirmed: set[Subnets] | None = None
        """Saved leases that the datastore has not listed yet; None once it has listed all."""
        self._said: set[str] = set()

    def start(self, leases: Mapping[Subnets, Lease], *, is_confirmed: bool) -> None:
        """Desire what these leases ask for; the kernel follows by ``Reconciler.start()``. Raises: CniError.

        ``is_confirmed``: the datastore listed all leases, so these are complete; otherwise they were saved.
        """
        self._follow(leases.values(), monotonic())
        self._unconfirmed = None if is_confirmed else {*self.leases, *self._ignored}

    def put(self, events: list[Event]) -> None:
        """Have them followed by :meth:`run`, in whatever thread."""
        self._queue.put(events)

    def recheck(self) -> None:
        """Have every lease checked again, because ``why_not_here`` depends on something that changed."""
        self._must_recheck.set()
        self._queue.put([])

    def run(self, stop: Stop) -> None:
        """Follow what is put, until ``stop``."""
        last = 0.0
        with stop.calling(lambda: self._queue.put([])):
            while not stop.is_set():
                batch = self._next()
                if batch and (pause := last + GATHER_SECONDS - monotonic()) > 0:
                    stop.wait(pause)
                batch += self._rest()
                try:
                    self.take(batch, monotonic())
                except CniError as fault:  # a look at the kernel tries again
                    error(f"the leases could not be followed: {fault}")
                last = monotonic() if batch else last

    def take(self, events: Iterable[Event], now: float) -> None:
        """Follow these, and what has vanished long enough ago. Raises: CniError."""
        try:
            self._follow(events, now)
        finally:
            self._reconciler.settle()

    def _next(self) -> list[Event]:
        """The next events, or none where a vanished lease ceases to count before."""
        end = self._vanished.next_end()
        try:
            return list(self._queue.get(timeout=None if end is None else max(end - monotonic(), 0.0)))
        except Empty:
            return []

    def _rest(self) -> list[Event]:
        """Return what is in the queue, without waiting."""
        rest: list[Event] = []
        while True:
            try:
                rest += self._queue.get_nowait()
            except Empty:
                return rest

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
        self._health.gauge("leases", "Leases in the datastore, our own too.", len(self.leases) + 1)
        self._changed(before)
        changes = [
            (former, lease) for subnets, former in before.items() if _says(former) != _says(lease := self.leases.get(subnets))
        ]
        for former, lease in changes:
            self._desire(former, lease)
        self._backend.follow(self._own(), changes)

    def _put(self, lease: Lease, before: dict[Subnets, Lease | None]) -> None:
        subnets, former = lease.subnets, self.leases.get(lease.subnets)
        if subnets == self._own().subnets:
            return
        if (former is None or former.attributes != lease.attributes) and (why_not := self._why_not(lease)):
            self._ignore(lease, why_not, before)
            return
        self._ignored.pop(subnets, None)
        self._vanished.discard(subnets)
        if former is None:
            for vanished in self._vanished.overlapping(subnets):  # its subnet has a new node
                self._drop(vanished, before)
        before.setdefault(subnets, former)
        self.leases[subnets] = lease

    def _ignore(self, lease: Lease, why_not: str, before: dict[Subnets, Lease | None]) -> None:
        if self._ignored.get(lease.subnets) != lease:
            warning(f"ignoring the lease of {lease.subnets}: {why_not}")
        self._ignored[lease.subnets] = lease
        self._drop(lease.subnets, before)

    def _recheck(self, before: dict[Subnets, Lease | None]) -> None:
        for subnets, lease in list(self.leases.items()):
            if subnets not in self._vanished and (why_not := self._why_not(lease)):
                self._ignore(lease, why_not, before)
        for lease in list(self._ignored.values()):
            self._put(lease, before)

    def _take_away(self, gone: Gone, before: dict[Subnets, Lease | None], now: float) -> None:
        self._ignored.pop(gone.subnets, None)
        if gone.is_final:
            self._drop(gone.subnets, before)
        elif gone.subnets in self.leases:
            self._vanished.add(gone.subnets, now)

    def _drop(self, subnets: Subnets, before: dict[Subnets, Lease | None]) -> None:
        self._vanished.discard(subnets)
        former = self.leases.pop(subnets, None)
        if former is not None:
            before.setdefault(subnets, former)

    def _desire(self, former: Lease | None, lease: Lease | None) -> None:
        """Replace the entries of one lease, by family."""
        there = dict(self._backend.peer_entries(former)) if former else {}
        wanted = dict(self._backend.peer_entries(lease)) if lease else {}
        peer = lease or former
        assert peer is not None, "one of the two"
        for version in there.keys() | wanted.keys():
            owner = (peer.subnets, version)
            taken = self._reconciler.replace(owner, there.get(version, ()), wanted.get(version, ()))
            if taken is not None:
                words = f"{' '.join(taken.words())}, which another lease asks for"
                warning_once(f"{peer.subnets} is not reached: what its lease asks for contradicts {words}", self._said)

    def _why_not(self, lease: Lease) -> str:
        """Return why a lease is not followed; empty: it is."""
        subnets, its = lease.subnets, lease.attributes
        own, ours = self._own().subnets, self._own().attributes
        if same := set(its.addresses).intersection(ours.addresses):
            return f"{same.pop()} is our own address"
        if its.public_ip is None and _is_link_local(its) and not _is_link_local(ours):
            return f"{its.public_ipv6} is link-local, and our address is not"
        if not self._config.holds(subnets):
            return "it is not in the network; if the configuration is another now, start flanneld again"
        return f"it overlaps our own, {own}" if subnets.overlap(own) else self._why_not_here(subnets)


def _says(lease: Lease | None) -> Attributes | None:
    """Return what the node publishes; the end of the lease does not count."""
    return lease.attributes if lease is not None else None


def _is_link_local(its: Attributes) -> bool:
    return its.public_ipv6 is not None and its.public_ipv6.is_link_local
