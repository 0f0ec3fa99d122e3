"""Leases in etcd: a key below ``PREFIX/subnets/`` for each, bound to an etcd lease of 24 hours. Go flannel's keys and values.

How it works. A writer has read all leases before, and writes on condition that what it read still holds; after
a lost race it reads again. A key is made only if none was made since the reading, for subnets may overlap
although their keys differ (``10.244.91.0-24``, ``10.244.91.0-24&fd00:1::-64``). A key is replaced only if
no other process changed it. Renewing prolongs the etcd lease and leaves the key alone: the other nodes see no change.

A key without an etcd lease is a reservation: its node, known by its public address, uses it, and it stays
one. (Go flannel turns it into a lease of 24 hours.)

Source: flannel-io/flannel pkg/subnet/etcd (local_manager.go, registry.go), whose log texts these are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from time import sleep, time
from typing import TYPE_CHECKING

from cni_py.datastore import etcd
from cni_py.datastore.errors import Refused, Unavailable
from cni_py.flanneld import allocate
from cni_py.flanneld.lease import LEASE_SECONDS, Attributes, Lease, Subnets
from cni_py.flanneld.stores import Event, LeaseTaken, Store
from cni_py.flanneld.stores.etcd_leases import Found, Leases
from cni_py.node import log as klog
from cni_py.node.stop import Stop

if TYPE_CHECKING:
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.options import Options

EXAMPLE = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
RACE_TRIES = 20
RACE_SECONDS = (0.01, 1.0)
"""The longest pause after the first lost race, and after many; it doubles."""


class EtcdStore(Store):
    """The store in an etcd cluster. ``previous``: the subnets in subnet.env, named in the log."""

    def __init__(self, client: etcd.Etcd, prefix: str, previous: Subnets | None) -> None:
        self._etcd, self._base, self._previous = client, f"{prefix.rstrip('/')}/" if prefix else "", previous
        self._leases = Leases(client, f"{self._base}subnets/")
        self._written = b""
        """The value that we wrote last: what has it is ours, also when our address is another by now."""

    @classmethod
    def from_options(cls, options: Options, previous: Subnets | None) -> EtcdStore:
        """Raises: InvalidConfig."""
        client = etcd.Etcd(
            options.etcd_endpoints,
            ca_path=options.etcd_cafile,
            cert_path=options.etcd_certfile,
            key_path=options.etcd_keyfile,
            user=options.etcd_username,
            password=options.etcd_password,
        )
        return cls(client, options.etcd_prefix, previous)

    def __str__(self) -> str:
        return f"Etcd Local Manager with Previous Subnet: {self._previous or 'None'}"

    def reconnect(self) -> None:
        self._etcd.reconnect()

    def close(self) -> None:
        self._etcd.close()

    def read_network_config(self) -> str:
        """Raises: Unavailable; Refused."""
        key = f"{self._base}config"
        with translated():
            found = self._etcd.get(key)
        if found is None:
            raise Refused(
                "flannel config not found in etcd store. Did you create your config using etcdv3 API?",
                f"create one: {self._etcd.command('put', key, EXAMPLE)}",
            )
        return found.value.decode(errors="replace")

    def write_network_config(self, text: str) -> None:
        """Write a validated text. Raises: Unavailable; Refused."""
        with translated():
            self._etcd.put(f"{self._base}config", text.encode())

    def watch(self, stop: Stop) -> Iterator[list[Event]]:
        """See :meth:`Leases.follow`."""
        return self._leases.follow(stop)

    # ---- our own lease --------------------------------------------------------------------------

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        """Go on with the lease of our public address, or with ``previous``, or choose. Raises: StoreError."""
        with translated():
            for number in tries("acquire a subnet"):
                # first what may be ours: of thousands of leases, only those that are chosen among have to be kept in memory
                ours, revision = self._leases.read(lambda kv: self._may_be_ours(kv.value, attributes))
                mine, leases = self._of_node(config, attributes, ours, previous), list[Found]()
                if mine is None:
                    leases, revision = self._leases.read()
                    mine = self._of_node(config, attributes, leases, previous)
                if mine is not None:
                    lease = self._refresh(mine, attributes)
                else:
                    subnets = choose(config, leases, previous, is_first=number == 0)
                    lease = self._create(subnets, attributes, revision)
                    if lease is not None:
                        klog.info(f"Allocated lease ({lease.subnets.in_words()}) to current node ({attributes.addresses[0]})")
                if lease is not None:
                    return lease
        raise AssertionError("tries() ends by raising")

    def renew(self, lease: Lease) -> Lease:
        """Prolong it, publish what has changed, re-create it where it was deleted. Raises: Unavailable; LeaseTaken."""
        with translated():
            for _ in tries("renew the lease"):
                leases, revision = self._leases.read(lambda kv: self._leases.touches(kv, lease.subnets))
                found = only_ours(leases, lease.subnets, lambda found: self._is_ours(found, lease.attributes))
                if found is not None:
                    renewed = self._refresh(found, lease.attributes)
                else:
                    klog.warning(f"the lease of {lease.subnets} was deleted from etcd: re-creating it")
                    renewed = self._create(lease.subnets, lease.attributes, revision)
                if renewed is not None:
                    return renewed
        raise AssertionError("tries() ends by raising")

    def _may_be_ours(self, value: bytes, attributes: Attributes) -> bool:
        """Return whether it is worth decoding. An IPv4 address is written in one way, unless JSON escapes it."""
        address = attributes.public_ip
        return value == self._written or address is None or str(address).encode() in value or b"\\u" in value

    def _is_ours(self, found: Found, attributes: Attributes) -> bool:
        if found.attributes is None or found.kv.value == self._written:  # another process damaged it; our address has changed
            return True
        return attributes.is_same_node(found.attributes)

    def _of_node(
        self, config: NetworkConfig, attributes: Attributes, leases: list[Found], previous: Subnets | None
    ) -> Found | None:
        """Return what this node already has, reservations first; a lease that does not fit the network is deleted.

        It is taken out of ``leases`` too: the subnet in it may be the one that our pods have, and is free again.
        Raises: Refused, where a reservation does not fit.
        """
        mine = [
            found
            for found in leases
            if found.attributes and (found.kv.value == self._written or attributes.is_same_node(found.attributes))
        ]
        for found in sorted(mine, key=lambda found: (not found.is_reservation, found.kv.value != self._written)):
            words = f"Found lease ({found.subnets.in_words()}) for current IP ({attributes.addresses[0]})"
            if allocate.compatible(found.subnets, config):
                has_run = bool(found.kv.lease or (found.attributes and found.attributes.backend_type))
                allocate.check_host_networks(found.subnets, config, has_run or found.subnets == previous)
                klog.info(f"{words}, reusing")
                return found
            if found.is_reservation:
                raise Refused(
                    f"{found.subnets} is reserved for {attributes.addresses[0]}, and does not fit the network's configuration",
                    f"change one of the two; to give up the reservation: {self._etcd.command('del', found.kv.key)}",
                )
            klog.info(f"{words} but not compatible with current config, deleting")
            self._etcd.delete(found.kv.key)
            leases.remove(found)
        return None

    def _create(self, subnets: Subnets, attributes: Attributes, revision: int) -> Lease | None:
        """Make the key if no other was made since ``revision``; ``None``: one was."""
        value = attributes.as_json().encode()
        with self._granted() as grant:
            if not self._etcd.create(self._leases.key(subnets), value, grant.lease, none_newer=(self._leases.prefix, revision)):
                return None
            grant.is_used = True
        self._written = value
        return Lease(subnets, attributes, time() + LEASE_SECONDS)

    def _refresh(self, found: Found, attributes: Attributes) -> Lease | None:
        """Restart its time, and publish what has changed; ``None``: another process changed or deleted it meanwhile."""
        kv, value = found.kv, attributes.as_json().encode()
        seconds = 0
        if found.is_reservation:
            if kv.value != value and not self._etcd.replace(kv.key, value, kv.mod_revision):
                return None
        else:
            if kv.value == value:
                seconds = self._etcd.keep_alive_once(kv.lease)
            if seconds < LEASE_SECONDS:  # another value; or a lease by hand, for a shorter time
                seconds = LEASE_SECONDS
                with self._granted() as grant:
                    if not self._etcd.replace(kv.key, value, kv.mod_revision, grant.lease):
                        return None
                    grant.is_used = True
        self._written = value
        return Lease(found.subnets, attributes, time() + seconds if seconds else None)

    # ---- for people ---------------------------------------------------------------------------

    def listed(self) -> list[Lease]:
        """Return every lease and reservation, with the time at which it ends. Raises: StoreError."""
        with translated():
            found, _ = self._leases.read()
            leases = list[Lease]()
            for each in found:
                seconds = self._etcd.seconds_left(each.kv.lease) if each.kv.lease else 0
                if each.attributes is not None and (seconds or not each.kv.lease):
                    leases.append(Lease(each.subnets, each.attributes, time() + seconds if seconds else None))
        return leases

    def reserve(self, subnets: Subnets, public_ip: IPv4Address | IPv6Address) -> None:
        """Keep these for the node with this address, permanently. Raises: Unavailable; LeaseTaken."""
        attributes = Attributes(public_ip) if isinstance(public_ip, IPv4Address) else Attributes(public_ipv6=public_ip)
        newest, value = self._leases.prefix, attributes.as_json().encode()
        with translated():
            for _ in tries("reserve a subnet"):
                leases, revision = self._leases.read(lambda kv: self._leases.touches(kv, subnets))
                found = only_ours(
                    leases, subnets, lambda found: bool(found.attributes and public_ip in found.attributes.addresses)
                )
                if found is None:
                    is_done = self._etcd.create(self._leases.key(subnets), value, none_newer=(newest, revision))
                else:
                    kv = found.kv
                    is_done = found.is_reservation or self._etcd.replace(kv.key, kv.value, kv.mod_revision)
                if is_done:
                    return

    def release(self, subnets: Subnets) -> None:
        """Make a reservation a lease, that expires after 24 hours if no node renews it. Raises: Unavailable; Refused."""
        key = self._leases.key(subnets)
        with translated():
            for _ in tries("release a subnet"):
                kv = self._etcd.get(key)
                if kv is None or kv.lease:
                    raise Refused(
                        f"{subnets} is not reserved", f"see: {self._etcd.command('get', '--prefix', self._leases.prefix)}"
                    )
                with self._granted() as grant:
                    grant.is_used = self._etcd.replace(key, kv.value, kv.mod_revision, grant.lease)
                if grant.is_used:
                    return

    @contextmanager
    def _granted(self) -> Iterator[Grant]:
        """A new etcd lease; revoked where it was not used. A late write with it is then refused by etcd."""
        grant = Grant(self._etcd.grant(LEASE_SECONDS))
        try:
            yield grant
        finally:
            if not grant.is_used:
                self._etcd.revoke(grant.lease)


class Grant:
    """An etcd lease, and whether a key is bound to it."""

    def __init__(self, lease: int) -> None:
        self.lease, self.is_used = lease, False


@contextmanager
def translated() -> Iterator[None]:
    """The client's errors as those of a store."""
    try:
        yield
    # LeaseGone: of a lease that was just granted, so etcd was restored meanwhile; Compacted: between two pages
    except (etcd.Unavailable, etcd.LeaseGone, etcd.Compacted) as error:
        raise Unavailable(": ".join(filter(None, (error.msg, error.details))), error.hint) from error
    except etcd.EtcdError as error:
        raise Refused(": ".join(filter(None, (error.msg, error.details))), error.hint) from error


def tries(purpose: str) -> Iterator[int]:
    """0, 1, 2 …: once more after each lost race, after a pause by chance. Raises: Unavailable."""
    longest = RACE_SECONDS[0]
    for number in range(RACE_TRIES):
        yield number
        sleep(random.uniform(0, longest))  # noqa: S311 — no secret
        longest = min(2 * longest, RACE_SECONDS[1])
    raise Unavailable(f"max retries reached trying to {purpose}: other nodes changed the leases each time")


def choose(config: NetworkConfig, leases: Collection[Found], previous: Subnets | None, *, is_first: bool) -> Subnets:
    """``previous`` if it fits and no node has it, else something free; logged the first time only. Raises: PoolExhausted."""
    taken = [found.subnets for found in leases]
    if previous is not None and not any(previous.overlap(subnets) for subnets in taken):
        if allocate.compatible(previous, config):
            if is_first:
                klog.info(f"Found previously leased subnet ({previous}), reusing")
            return previous
        if is_first:
            words = "that is not compatible with the Etcd network config, ignoring"
            klog.error(f"Found previously leased subnet ({previous}) {words}")
    if is_first and config.ipv4:
        klog.info(f"Picking subnet in range {config.subnet_min} ... {config.subnet_max}")
    if is_first and config.ipv6:
        klog.info(f"Picking ipv6 subnet in range {config.ipv6_subnet_min} ... {config.ipv6_subnet_max}")
    endless = [found.subnets for found in leases if found.kv.lease == 0]
    nodes = [address for found in leases if found.attributes for address in found.attributes.addresses]
    return allocate.free(config, taken, endless, nodes)


def only_ours(leases: Iterable[Found], subnets: Subnets, is_ours: Callable[[Found], bool]) -> Found | None:
    """The key of exactly these subnets; ``None``: no node has any part of them. Raises: LeaseTaken."""
    touching = [found for found in leases if found.subnets.overlap(subnets)]
    for found in touching:
        if found.subnets != subnets or not is_ours(found):
            owners = found.attributes.addresses if found.attributes else []
            owner = ", ".join(map(str, owners)) or "no node that its value names"
            raise LeaseTaken(f"{found.subnets} is leased to {owner}", "see: cni-py config leases")
    return touching[0] if touching else None
