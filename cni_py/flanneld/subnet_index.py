"""Subnets of leases by prefix: which of them overlap others. Pure.

What a question costs depends on the number of prefix lengths, not of leases.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from cni_py.flanneld.lease import Subnets


class SubnetIndex:
    """A set of subnets. Two may name one network, by different keys: ``10.244.91.0-24``, ``10.244.91.0-24&fd00:1::-64``."""

    def __init__(self) -> None:
        self._by_prefix: dict[tuple[int, int], dict[int, tuple[Subnets, ...]]] = defaultdict(dict)
        """Subnets by version and prefix length, then by prefix."""

    def add(self, subnets: Subnets) -> None:
        for network in subnets.each():
            by_prefix, prefix = self._place(network)
            there = by_prefix.get(prefix, ())
            if subnets not in there:
                by_prefix[prefix] = (*there, subnets)

    def discard(self, subnets: Subnets) -> None:
        """Remove them; absence is success."""
        for network in subnets.each():
            by_prefix, prefix = self._place(network)
            left = tuple(other for other in by_prefix.get(prefix, ()) if other != subnets)
            if left:
                by_prefix[prefix] = left
            else:
                by_prefix.pop(prefix, None)
                if not by_prefix:
                    del self._by_prefix[network.version, network.prefixlen]

    def overlapping(self, subnets: Subnets) -> list[Subnets]:
        """Return those that overlap these subnets, themselves too."""
        return list(dict.fromkeys(found for network in subnets.each() for found in self._touching(network)))

    def _place(self, network: IPv4Network | IPv6Network) -> tuple[dict[int, tuple[Subnets, ...]], int]:
        return self._by_prefix[network.version, network.prefixlen], _prefix(network, network.prefixlen)

    def _touching(self, network: IPv4Network | IPv6Network) -> Iterator[Subnets]:
        for (version, length), by_prefix in self._by_prefix.items():
            if version != network.version:
                continue
            if length <= network.prefixlen:
                yield from by_prefix.get(_prefix(network, length), ())
            else:  # smaller ones, of a network that was planned otherwise
                shift = length - network.prefixlen
                mine = _prefix(network, network.prefixlen)
                for prefix, found in by_prefix.items():
                    if prefix >> shift == mine:
                        yield from found


def _prefix(network: IPv4Network | IPv6Network, length: int) -> int:
    """The first ``length`` bits."""
    return int(network.network_address) >> network.max_prefixlen - length
