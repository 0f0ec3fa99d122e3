"""Leases that have vanished and count for a moment more. Pure, but for the clock that is handed in.

Why. A node whose lease was deleted or revoked makes the same one again, some hundredths of a second later. Its peers see
both; one that deletes the way to it at once, and then makes it again, loses the packets in between. A lease that has
ended was valid for 24 hours, so half a second more does no harm.

Where it does not apply. A lease that no node will re-create is dropped at once: one that ended by its time (in a file, where
the time is known), a Node that was deleted (its kubelet makes it once, when it starts), one whose subnet another lease has
now. etcd reports an expired key as it reports a deleted one, so there the half second always applies.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from cni_py.flanneld.lease import Subnets

LINGER_SECONDS = 0.5


class Vanished:
    """Subnets whose leases have vanished, and when they cease to count. Times are seconds of one clock that is never set
    back."""

    def __init__(self) -> None:
        self._ends: dict[Subnets, float] = {}
        """The one that ends first comes first."""
        self._by_prefix: dict[tuple[int, int], dict[int, Subnets]] = defaultdict(dict)
        """Subnets by version and prefix length, then by prefix."""

    def __contains__(self, subnets: Subnets) -> bool:
        return subnets in self._ends

    def add(self, subnets: Subnets, now: float) -> None:
        self.discard(subnets)
        self._ends[subnets] = now + LINGER_SECONDS
        for network in subnets.each():
            self._by_prefix[network.version, network.prefixlen][_prefix(network, network.prefixlen)] = subnets

    def discard(self, subnets: Subnets) -> None:
        """Forget a lease that was re-created, or dropped."""
        if self._ends.pop(subnets, None) is None:
            return
        for network in subnets.each():
            place = network.version, network.prefixlen
            nodes = self._by_prefix[place]
            if nodes.get(_prefix(network, network.prefixlen)) == subnets:
                del nodes[_prefix(network, network.prefixlen)]
            if not nodes:
                del self._by_prefix[place]

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
        return list(dict.fromkeys(found for network in subnets.each() for found in self._touching(network)))

    def _touching(self, network: IPv4Network | IPv6Network) -> Iterator[Subnets]:
        for (version, length), by_prefix in self._by_prefix.items():
            if version != network.version:
                continue
            if length <= network.prefixlen:
                found = by_prefix.get(_prefix(network, length))
                if found is not None:
                    yield found
            else:  # smaller ones, of a network that was planned otherwise
                shift = length - network.prefixlen
                mine = _prefix(network, network.prefixlen)
                yield from (found for prefix, found in by_prefix.items() if prefix >> shift == mine)


def _prefix(network: IPv4Network | IPv6Network, length: int) -> int:
    """The first ``length`` bits."""
    return int(network.network_address) >> network.max_prefixlen - length
