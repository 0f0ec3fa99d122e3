"""What a datastore of leases can do: etcd, a file, the Kubernetes API.

``watch`` yields the whole set of leases each time it changed. A consumer sees no events, no
compaction and no re-connection, for what it does with a set is always the same: wanted minus actual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cni_py.datastore.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from threading import Event

    from cni_py.flanneld.lease import Attributes, Lease, Subnets
    from cni_py.flanneld.network import NetworkConfig


class PoolExhausted(Refused):
    """No subnet is free. Leases expire, so it is tried again all the same."""


class LeaseTaken(Refused):
    """Another node has this subnet now."""


class Store(Protocol):
    """One datastore. Every method but ``watch`` answers or raises StoreError within some seconds."""

    def __str__(self) -> str:
        """For the log: ``Etcd Local Manager with Previous Subnet: None``."""
        ...

    def read_network_config(self) -> str:
        """The network's configuration as JSON text. Raises: StoreError, Refused where there is none yet."""
        ...

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        """Lease the node's subnet: that of its public address, else ``previous``, else a free one.

        Without a race: no two nodes get the same. Raises: StoreError.
        """
        ...

    def renew(self, lease: Lease) -> Lease:
        """The same lease with a new end, made again where it was lost. Raises: StoreError, LeaseTaken."""
        ...

    def watch(self, stop: Event) -> Iterator[Mapping[Subnets, Lease]]:
        """All live leases, our own too: at once, after each change and after each outage, until ``stop`` is set."""
        ...

    def ready(self) -> None:
        """The node's network works: tell whom it concerns (the Kubernetes node condition). Raises: StoreError."""
        ...

    def reconnect(self) -> None:
        """Open connections anew with the next call: the node's address is another one."""
        ...

    def close(self) -> None: ...

    # A store whose nodes have entries of their own (Kubernetes) also has ``stored_addresses() -> (IPv4, IPv6)``, which go
    # before the options, and ``stored_lease(config)``: what the node said when flanneld ran before.
