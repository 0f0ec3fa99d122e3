"""Queue of the datastore's events, between the thread that watches and the one that follows.

A single event is followed at once; those that come within ``GATHER_SECONDS`` after it are gathered and followed together.
"""

from __future__ import annotations

from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, read_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.flanneld.stores import Event
    from cni_py.node.stop import Stop

GATHER_SECONDS = 0.05


class LeaseEvents:
    """Events in the order in which the datastore had them. ``put`` and ``wake`` may be called in any thread."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[Event]] = SimpleQueue()
        self._early: list[list[Event]] = []
        """Events of a list of all leases that was not complete in time."""
        self._gave_any = False
        self._followed_at = 0.0

    def put(self, events: list[Event]) -> None:
        self._queue.put(events)

    def wake(self) -> None:
        """End the wait of :meth:`following`, without an event."""
        self._queue.put([])

    def first_leases(self, stop: Stop, seconds: float | None = None) -> Mapping[Subnets, Lease] | None:
        """Wait for all leases that the datastore lists at first; None if they do not come in time, or ``stop`` comes.

        Events until that moment are among those of :meth:`following`.
        """
        ends = inf if seconds is None else monotonic() + seconds
        with stop.calling(self.wake):
            while not stop.is_set() and (left := ends - monotonic()) > 0:
                try:
                    self._early.append(self._queue.get(timeout=None if left == inf else left))
                except Empty:
                    break
                if SNAPSHOT_COMPLETE in self._early[-1]:
                    found, self._early = read_snapshot(iter(self._early)), []
                    return found
        return None

    def following(self, stop: Stop, end: float | None) -> list[Event]:
        """Wait for the next events, until ``end`` (monotonic; None: without end); the caller has followed the former ones."""
        if self._gave_any:
            self._followed_at = monotonic()
        events = self._next(end)
        if events and (pause := self._followed_at + GATHER_SECONDS - monotonic()) > 0:
            stop.wait(pause)
        if not self._early:
            events += self._rest()
        self._gave_any = bool(events)
        return events

    def _next(self, end: float | None) -> list[Event]:
        if self._early:
            return list(self._early.pop(0))
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
