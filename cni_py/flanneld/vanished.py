"""Leases that have vanished and count for a moment more. Pure, but for the clock that is handed in.

Why. A node whose lease was deleted or revoked makes the same one again, some hundredths of a second later. Its peers see
both; one that deletes the way to it at once, and then makes it again, loses the packets in between. A lease that has
ended was valid for 24 hours, so half a second more does no harm.

Where it does not apply. A lease that no node will re-create is dropped at once: one that ended by its time (in a file, where
the time is known), a Node that was deleted (its kubelet makes it once, when it starts), one whose subnet another lease has
now. etcd reports an expired key as it reports a deleted one, so there the half second always applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.flanneld.subnet_index import SubnetIndex

if TYPE_CHECKING:
    from cni_py.flanneld.lease import Subnets

LINGER_SECONDS = 0.5


class Vanished:
    """Subnets whose leases have vanished, and when they cease to count. Times are seconds of one clock that is never set
    back."""

    def __init__(self) -> None:
        self._ends: dict[Subnets, float] = {}
        """The one that ends first comes first."""
        self._index = SubnetIndex()

    def __contains__(self, subnets: Subnets) -> bool:
        return subnets in self._ends

    def add(self, subnets: Subnets, now: float) -> None:
        self.discard(subnets)
        self._ends[subnets] = now + LINGER_SECONDS
        self._index.add(subnets)

    def discard(self, subnets: Subnets) -> None:
        """Forget a lease that was re-created, or dropped."""
        if self._ends.pop(subnets, None) is not None:
            self._index.discard(subnets)

    def ended(self, now: float) -> list[Subnets]:
        """Remove and return those that count no more."""
        ended = []
        while self._ends and next(iter(self._ends.values())) <= now:
            subnets = next(iter(self._ends))
            self.discard(subnets)
            ended.append(subnets)
        return ended

    def next_end(self) -> float | None:
        """Return when the next one ceases to count; None: there is none."""
        return next(iter(self._ends.values()), None)

    def overlapping(self, subnets: Subnets) -> list[Subnets]:
        """Return those that overlap these subnets."""
        return self._index.overlapping(subnets)
