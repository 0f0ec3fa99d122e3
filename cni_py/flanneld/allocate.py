"""Choice of a node's subnet: pure arithmetic. The datastore alone decides which node gets it.

A pool is cut into subnets of one size, numbered from ``SubnetMin`` on. Leases take numbers away, those of
another size all that they touch; one of the first 100 that are left is chosen at random, so that nodes
that start at once seldom choose the same. Numbers are counted in gaps between leases: a pool of
65,000 subnets costs no more than one of 100. What overlaps a network of the host, or holds the address of a
node, is not chosen (``host_networks.py``); a node that runs on such a subnet keeps it.

Source: flannel-io/flannel pkg/subnet/etcd/local_manager.go (allocateSubnet, isSubnetConfigCompat).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain, islice
from typing import TYPE_CHECKING, Generic, TypeVar

from cni_py.datastore.errors import Refused
from cni_py.flanneld.host_networks import OPTION, in_words, overlapping
from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.stores import PoolExhausted

if TYPE_CHECKING:
    from cni_py.flanneld.network import NetworkConfig

CANDIDATES = 100
EXPIRING = "leases of deleted nodes expire within a day; a larger Network or SubnetLen has room for more nodes"
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

    def choose(self, taken: Iterable[Network], why_full: str = "") -> Network:
        """One that overlaps none of these. Raises: PoolExhausted, with ``why_full``."""
        numbers = list(islice(self._free(taken), CANDIDATES))
        if not numbers:
            raise PoolExhausted(
                f"out of subnets: none of the {self.count} of length {self.length} in {self} is free", why_full or EXPIRING
            )
        return self[random.choice(numbers)]  # noqa: S311 — no secret

    def _free(self, taken: Iterable[Network]) -> Iterator[int]:
        """Numbers that are left, ascending."""
        begin, size = self.first, self.size
        lows = ((int(subnet.network_address), 1 << subnet.max_prefixlen - subnet.prefixlen) for subnet in taken)
        spans = ((low, low + addresses - 1) for low, addresses in lows)
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
    """Return whether a node may keep these: a subnet of each family that the network has, of its size, out of its pool."""
    return is_from(pool4(config), subnets.ipv4) and is_from(pool6(config), subnets.ipv6)


def is_from(pool: Pool[Network] | None, subnet: Network | None) -> bool:
    """Return whether it is one of the pool; none where there is no pool."""
    if pool is None or subnet is None:
        return pool is None and subnet is None
    return subnet in pool


def free(
    config: NetworkConfig,
    taken: Iterable[Subnets],
    endless: Collection[Subnets] = (),
    nodes: Iterable[IPv4Address | IPv6Address] = (),
) -> Subnets:
    """Subnets, one of each family that the network has, that overlap none of these. Raises: PoolExhausted.

    Args:
        endless: those of ``taken`` that never expire.
        nodes: addresses of nodes, none of which a subnet may hold.
    """
    taken = list(taken)
    nodes = [node for node in nodes if any(node in network for network in config.networks)]
    why_full = _why_full(config, taken, endless)
    first, second = pool4(config), pool6(config)
    ipv4 = ipv6 = None
    if first:
        spans = [subnets.ipv4 for subnets in taken if subnets.ipv4]
        avoided = [IPv4Network(node) for node in nodes if node.version == 4]
        avoided += [each.network for each in config.host_networks if isinstance(each.network, IPv4Network)]
        ipv4 = _choose(first, spans, avoided, config, why_full)
    if second:
        spans6 = [subnets.ipv6 for subnets in taken if subnets.ipv6]
        avoided6 = [IPv6Network(node) for node in nodes if node.version == 6]
        avoided6 += [each.network for each in config.host_networks if isinstance(each.network, IPv6Network)]
        ipv6 = _choose(second, spans6, avoided6, config, why_full)
    return Subnets(ipv4, ipv6)


def _choose(
    pool: Pool[Network], taken: Sequence[Network], avoided: Sequence[Network], config: NetworkConfig, why_full: str
) -> Network:
    """Avoid what is to be avoided; where it may be overlapped, only as far as there is a choice. Raises: PoolExhausted."""
    try:
        return pool.choose(chain(taken, avoided), why_full)
    except PoolExhausted:
        if not config.may_overlap:
            raise
        return pool.choose(taken, why_full)


def _why_full(config: NetworkConfig, taken: Sequence[Subnets], endless: Collection[Subnets]) -> str:
    """Count what is in the way, and say what ends it."""
    expiring = len(taken) - len(endless)
    lines = [f"leases that expire: {expiring}, those of deleted nodes within a day"] if expiring else []
    if endless:
        lines.append(
            f"leases without an end: {len(endless)} (reservations, or keys copied from etcd v2 or written by hand), "
            "to which cni-py config release SUBNET gives one"
        )
    if found := [each for network in config.networks for each in overlapping(network, config.host_networks)]:
        lines.append(f"what overlaps {in_words(found)}, networks of this host itself, is not chosen")
    return "; ".join([*lines, "a larger Network or SubnetLen has room for more nodes"])


def in_words_without_end(subnets: Subnets) -> str:
    """Return the message about this node's own lease if it never expires."""
    key = ",".join(str(subnet) for subnet in subnets.each())
    return (
        f"our lease of {subnets} has no end: it is a reservation, kept for this node's address also when the node is deleted; "
        f"cni-py config release {key} turns it into a lease of 24 hours"
    )


def check_host_networks(subnets: Subnets, config: NetworkConfig, has_run: bool) -> None:
    """Check subnets that were assigned to this node, not chosen: a reservation, a podCIDR. ``has_run``: its pods may use them.

    Raises: Refused, where they overlap a network of the host.
    """
    if has_run or config.may_overlap:
        return
    for subnet in subnets.each():
        found = [each for each in overlapping(subnet, config.host_networks) if not each.is_single]
        if found:
            raise Refused(
                f"the subnet {subnet} of this node overlaps {in_words(found)}, a network of this host itself",
                f"pods there would take its addresses; assign another subnet, or start flanneld with {OPTION}",
            )
