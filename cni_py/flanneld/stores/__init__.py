"""The interface of a datastore of leases: etcd, a file, the Kubernetes API.

``watch`` yields what changed, in order: a :class:`~cni_py.flanneld.lease.Lease` that is new or different, or :class:`Gone`.
It begins with all leases that there are, and :data:`SNAPSHOT_COMPLETE`. After an outage, or where the datastore no longer
knows what changed since, it compares what it has yielded with what exists now, and yields the difference and the marker
again. So a consumer sees no compaction and no reconnection, and one change costs what one lease costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from cni_py.datastore.errors import Refused
from cni_py.flanneld.lease import Lease, Subnets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

    from cni_py.flanneld.lease import Attributes
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.node.stop import Stop


class PoolExhausted(Refused):
    """No subnet is free. Leases expire, so it is tried again all the same."""


class LeaseTaken(Refused):
    """Another node has this subnet now."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Deletion of the lease of these subnets. ``is_final``: its node will not re-create it, as far as can be known."""

    subnets: Subnets
    is_final: bool = False


class Marker(Enum):
    """Events other than changes."""

    SNAPSHOT_COMPLETE = "snapshot complete"


SNAPSHOT_COMPLETE: Final = Marker.SNAPSHOT_COMPLETE
"""Marker: what was yielded so far is complete."""
Event = Lease | Gone | Marker


class Store(ABC):
    """One datastore. Every method but ``watch`` returns or raises StoreError within some seconds."""

    @abstractmethod
    def __str__(self) -> str:
        """Return its name in the log: ``Etcd Local Manager with Previous Subnet: None``."""

    @abstractmethod
    def read_network_config(self) -> str:
        """Return the network's configuration as JSON text. Raises: StoreError, Refused where there is none yet."""

    @abstractmethod
    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        """Lease the node's subnet: that of its public address, else ``previous``, else a free one.

        Without a race: no two nodes get the same. Raises: StoreError.
        """

    @abstractmethod
    def renew(self, lease: Lease) -> Lease:
        """Return the same lease with a new end, made again where it was lost. Raises: StoreError, LeaseTaken."""

    @abstractmethod
    def watch(self, stop: Stop) -> Iterator[list[Event]]:
        """Yield what changed, our own lease included, until ``stop`` is set. See the head of this file."""

    def ready(self) -> None:  # noqa: B027 — not every datastore has a place for it
        """Report that the node's network works (the Kubernetes node condition). Raises: StoreError."""

    def reconnect(self) -> None:  # noqa: B027 — nor a connection
        """Open new connections with the next call: the node's address is another one."""

    def close(self) -> None:  # noqa: B027
        """End calls and watches that are in progress, in whatever thread."""

    def stored_addresses(self) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Return what goes before ``-public-ip`` and ``-public-ipv6``: people write it to a node of Kubernetes. Raises:
        StoreError."""
        return None, None

    def node_addresses(self) -> list[IPv4Address | IPv6Address]:
        """Return the addresses by which the cluster knows the node. Raises: StoreError, Refused where it knows none."""
        raise Refused(f"no addresses of nodes are known to {self}")

    def stored_lease(self, config: NetworkConfig) -> Lease | None:  # noqa: ARG002
        """Return what the node's own entry says since flanneld ran before; None where nodes have none. Raises: StoreError."""
        return None


def read_snapshot(events: Iterator[list[Event]]) -> dict[Subnets, Lease] | None:
    """Return the leases that a watch begins with; None if it ends before they are complete."""
    leases: dict[Subnets, Lease] = {}
    for batch in events:
        for event in batch:
            if isinstance(event, Lease):
                leases[event.subnets] = event
            elif isinstance(event, Gone):
                leases.pop(event.subnets, None)
        if SNAPSHOT_COMPLETE in batch:
            return leases
    return None
