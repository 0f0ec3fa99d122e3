"""Leases that have vanished count for a moment more. Pure, but for the clock that is handed in.

Why. A node whose lease was revoked makes the same one again, some hundredths of a second later. Its peers hear of both;
who takes away the way to it at once, and then makes it again, loses the packets in between. A lease that has ended for
good has been good for 24 hours, so half a second more does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.flanneld.lease import Lease, Subnets

LINGER_SECONDS = 0.5
MANY = 100_000
"""Pairs of leases that have gone and that are new. Where there are more, the network was planned anew: nothing lingers."""


class Lingering:
    """What to go by, after ``leases``. Times are seconds of one clock that is never set back."""

    def __init__(self, leases: Mapping[Subnets, Lease]) -> None:
        self._leases = leases
        self._gone: dict[Subnets, tuple[float, Lease]] = {}

    def after(self, leases: Mapping[Subnets, Lease], now: float) -> Mapping[Subnets, Lease]:
        """These, and those that were there until a moment ago, unless one of these has a part of their subnets."""
        ended = now + LINGER_SECONDS
        gone = {subnets: (ended, self._leases[subnets]) for subnets in self._leases.keys() - leases.keys()} | self._gone
        if gone:
            new = leases.keys() - self._leases.keys()
            if len(gone) * len(new) > MANY:  # they are compared with each other
                gone = {}
            self._gone = {
                subnets: (until, lease)
                for subnets, (until, lease) in gone.items()
                if until > now and subnets not in leases and not any(subnets.overlap(other) for other in new)
            }
        self._leases = leases
        return {**leases, **{subnets: lease for subnets, (_, lease) in self._gone.items()}} if self._gone else leases

    def next_end(self) -> float | None:
        """When the next one of those that have gone counts no more; None: there is none."""
        return min((until for until, _ in self._gone.values()), default=None)
