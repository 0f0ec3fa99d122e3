"""Which subnet a node may have: pure arithmetic. The datastore alone decides who gets it.

A pool is cut into subnets of one size, numbered from ``SubnetMin`` on. Leases take numbers away, those of
another size all that they touch; one of the first 100 that are left is chosen at random, so that nodes
that start at once seldom choose the same. Numbers are counted in gaps between leases: a pool of
65,000 subnets costs no more than one of 100.

Source: flannel-io/flannel pkg/subnet/etcd/local_manager.go (allocateSubnet, isSubnetConfigCompat).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.stores import PoolExhausted

if TYPE_CHECKING:
    from cni_py.flanneld.network import NetworkConfig

CANDIDATES = 100
Network = TypeVar("Network", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class Pool(Generic[Network]):
    """The subnets of one family, from that which begins at ``first`` to that which begins at ``last``."""

    kind: type[Network]
    first: int
    last: int
    length: int

    @property
    def size(self) -> int:
        """Addresses of one subnet."""
        return 1 << (self.kind(0).max_prefixlen - self.length)

    @property
    def count(self) -> int:
        return (self.last - self.first) // self.size + 1

    def __getitem__(self, number: int) -> Network:
        return self.kind((self.first + number * self.size, self.length))

    def __contains__(self, subnet: Network) -> bool:
        return subnet.prefixlen == self.length and self.first <= int(subnet.network_address) <= self.last

    def __str__(self) -> str:
        return f"{self[0].network_address} ... {self[self.count - 1].network_address}"

    def choose(self, taken: Iterable[Network]) -> Network:
        """One that overlaps none of these. Raises: PoolExhausted."""
        numbers = list(islice(self._free(taken), CANDIDATES))
        if not numbers:
            raise PoolExhausted(
                f"out of subnets: none of the {self.count} of length {self.length} in {self} is free",
                "leases of nodes that are gone expire within a day; a larger Network or SubnetLen has room for more nodes",
            )
        return self[random.choice(numbers)]  # noqa: S311 — no secret

    def _free(self, taken: Iterable[Network]) -> Iterator[int]:
        """Numbers that are left, ascending."""
        begin, size = self.first, self.size
        spans = ((int(subnet.network_address), int(subnet.broadcast_address)) for subnet in taken)
        number = 0
        for first, last in sorted(((low - begin) // size, (high - begin) // size) for low, high in spans):
            yield from range(number, min(first, self.count))
            number = max(number, last + 1)
        yield from range(number, self.count)


def pool4(config: NetworkConfig) -> Pool[IPv4Network] | None:
    if config.subnet_min is None or config.subnet_max is None:
        return None
    return Pool(IPv4Network, int(config.subnet_min), int(config.subnet_max), config.subnet_len)


def pool6(config: NetworkConfig) -> Pool[IPv6Network] | None:
    if config.ipv6_subnet_min is None or config.ipv6_subnet_max is None:
        return None
    return Pool(IPv6Network, int(config.ipv6_subnet_min), int(config.ipv6_subnet_max), config.ipv6_subnet_len)


def compatible(subnets: Subnets, config: NetworkConfig) -> bool:
    """Whether a node may keep these: a subnet of each family that the network has, of its size, out of its pool."""
    return is_from(pool4(config), subnets.ipv4) and is_from(pool6(config), subnets.ipv6)


def is_from(pool: Pool[Network] | None, subnet: Network | None) -> bool:
    """Whether it is one of the pool; none where there is no pool."""
    if pool is None or subnet is None:
        return pool is None and subnet is None
    return subnet in pool


def free(config: NetworkConfig, taken: Iterable[Subnets]) -> Subnets:
    """Subnets, one of each family that the network has, that overlap none of these. Raises: PoolExhausted."""
    first, second, taken = pool4(config), pool6(config), list(taken)
    return Subnets(
        ipv4=first.choose(subnets.ipv4 for subnets in taken if subnets.ipv4) if first else None,
        ipv6=second.choose(subnets.ipv6 for subnets in taken if subnets.ipv6) if second else None,
    )
