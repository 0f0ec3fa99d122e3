"""Leases in one JSON file: for a lab, for nodes that share a directory, and for a list of nodes written by hand.

What is in the file, ``lease_file.py`` says; how it is read and written, ``shared_file.py``. It is one text, so it is read
as a whole whenever it has changed, and compared with what was yielded of it; what follows costs what changed.

A file that cannot be understood changes nothing: the last good leases stay, and it is not written
over. An entry that cannot be understood stays as it is, and its subnet is not leased.

A file without write permission (mode 0444, a read-only file system) is left alone: the node's own entry
must be there and say what the others need to know.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from time import time
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.datastore.errors import Refused
from cni_py.errors import IOFailure
from cni_py.flanneld import allocate
from cni_py.flanneld.lease import LEASE_SECONDS, Attributes, Lease, Subnets
from cni_py.flanneld.stores import LeaseTaken, Store
from cni_py.flanneld.stores.file_watch import FileWatch
from cni_py.flanneld.stores.lease_file import Damaged, LeaseFile
from cni_py.flanneld.stores.shared_file import SharedFile
from cni_py.journal import quote
from cni_py.node import log as klog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv6Address

    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.stores import Event
    from cni_py.node.stop import Stop

EXAMPLE = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'


class FileStore(Store):
    """The store in the file ``path``, which exists; ``node_name`` goes into our entry. Safe from several threads."""

    def __init__(self, path: str, node_name: str) -> None:
        create = f"echo {quote(EXAMPLE)} | cni-py config set - -- {quote(f'-datastore=file:{path}')}"
        self._file, self.node_name = SharedFile(path, create), node_name
        self.path = self._file.path
        self._complaints: dict[str, str] = {}
        self._written: Lease | None = None
        """The lease that we wrote last: it is ours, also when our address is another by now."""

    def __str__(self) -> str:
        return f"File Subnet Manager - {self.path}"

    def read_network_config(self) -> str:
        """The ``config`` object. Raises: StoreError."""
        return json.dumps(self._read().config)

    def write_network_config(self, text: str) -> None:
        """Write a validated configuration; a missing file is created, with its directory. Raises: StoreError."""
        if not self._file.exists():
            try:
                files.make_directory(os.path.dirname(self.path), 0o755)
            except IOFailure as error:
                raise Refused(f"{os.path.dirname(self.path)} cannot be created: {error}", "name a file elsewhere") from error
        with self._locked_for_people():
            content = self._read() if self._file.exists() else LeaseFile(b'{"config": {}}')
            content.put_config(json.loads(text))
            self._file.replace(content.as_text())

    def listed(self) -> list[Lease]:
        """Return every lease and reservation that has not ended. Raises: StoreError."""
        return [lease for lease in self._read().leases().values() if lease.is_live()]

    def reserve(self, subnets: Subnets, public_ip: IPv4Address | IPv6Address) -> None:
        """Keep these for the node with this address, permanently. Raises: StoreError, LeaseTaken."""
        with self._locked_for_people():
            content = self._read()
            _drop_ended(content)
            there = content.leases().get(subnets)
            for other, lease in content.leases().items():
                is_its_own = other == subnets and public_ip in lease.attributes.addresses
                if other.overlap(subnets) and not is_its_own:
                    raise LeaseTaken(f"{other} is leased to {lease.attributes.addresses[0]}", f"see {self.path}")
            if any(other.overlap(subnets) for other in content.unclear()):
                raise LeaseTaken(f"an entry of {self.path} that cannot be understood has {subnets}", "repair it with an editor")
            attributes = Attributes(public_ip) if isinstance(public_ip, IPv4Address) else Attributes(public_ipv6=public_ip)
            content.put(Lease(subnets, there.attributes if there else attributes))
            self._file.replace(content.as_text())

    def release(self, subnets: Subnets) -> None:
        """Make a reservation a lease, that ends after 24 hours if no node renews it. Raises: StoreError."""
        with self._locked_for_people():
            content = self._read()
            there = content.leases().get(subnets)
            if there is None or there.expires is not None:
                raise Refused(f"{subnets} is not reserved", f"see {self.path}")
            content.put(replace(there, expires=_new_end()))
            self._file.replace(content.as_text())

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        """Ours by public address, else ``previous``, else a free one. Raises: StoreError."""
        if self._file.is_read_only():
            return self._acquire_without_writing(config, attributes)
        with self._file.locked():
            content = self._read()
            _drop_ended(content)
            own = self._own(config, attributes, content)
            if own is not None:
                has_run = own.expires is not None or content.was_used(own.subnets)
                allocate.check_host_networks(own.subnets, config, has_run or own.subnets == previous)
            for other in content.leases().values():  # a node has one lease
                if (
                    self._is_ours(other, attributes)
                    and other.expires is not None
                    and (own is None or other.subnets != own.subnets)
                ):
                    content.remove(other.subnets)
            subnets = own.subnets if own else _choose(config, previous, content)
            lease = self._write(content, Lease(subnets, attributes, None if own and own.expires is None else _new_end()))
        if own is None:
            klog.info(f"Allocated lease ({subnets.in_words()}) to current node ({attributes.addresses[0]})")
        else:
            klog.info(f"{_found(own, attributes)}, reusing")
        return lease

    def renew(self, lease: Lease) -> Lease:
        """Renew the entry with a new end; a reservation stays one. Raises: StoreError, LeaseTaken."""
        if self._file.is_read_only():
            return self._renew_without_writing(lease)
        with self._file.locked():
            content = self._read()
            _drop_ended(content)
            for other in content.leases().values():
                if other.subnets.overlap(lease.subnets) and not self._is_ours(other, lease.attributes):
                    raise LeaseTaken(f"{lease.subnets} belongs to {other.attributes.addresses[0]} now, says {self.path}")
            there = content.leases().get(lease.subnets)
            return self._write(content, replace(lease, expires=None if there and there.expires is None else _new_end()))

    def watch(self, stop: Stop) -> Iterator[list[Event]]:
        return FileWatch(self._file, self._understood, lambda: self._written).events(stop)

    # ---- a file that is left alone ------------------------------------------------------------

    def _acquire_without_writing(self, config: NetworkConfig, attributes: Attributes) -> Lease:
        """Raises: StoreError."""
        own = self._own(config, attributes, self._read())
        if own is None:
            raise Refused(
                f"{self.path} is read only and has no subnet of this network for {attributes.addresses[0]}",
                f'add to its "leases", for example, "10.244.1.0-24": {attributes.as_json()}',
            )
        lease = self._renew_without_writing(replace(own, attributes=attributes))
        klog.info(f"{_found(own, attributes)}, reusing")
        return lease

    def _renew_without_writing(self, lease: Lease) -> Lease:
        """The entry, if it says what the others must know about us. Raises: StoreError, LeaseTaken."""
        there = self._read().leases().get(lease.subnets)
        if there is not None and not lease.attributes.is_same_node(there.attributes):
            raise LeaseTaken(f"{lease.subnets} belongs to {there.attributes.addresses[0]} now, says {self.path}")
        if there is None or there.attributes != lease.attributes:
            found = "is missing" if there is None else f"is {there.attributes.as_json()}"
            hint = f"it must be {lease.attributes.as_json()}"
            raise Refused(f'{self.path} is read only, and its "{lease.subnets.as_key()}" {found}', hint)
        if not there.is_live():
            raise Refused(f'{self.path} is read only, and its "{lease.subnets.as_key()}" has ended', 'take its "Expires" out')
        return there

    # ---- the file -----------------------------------------------------------------------------

    def _read(self) -> LeaseFile:
        """Raises: StoreError."""
        return self._understood(self._file.read())

    def _understood(self, text: bytes) -> LeaseFile:
        """Decode it; what is wrong with an entry is logged once. Raises: StoreError."""
        try:
            content = LeaseFile(text)
        except Damaged as error:
            raise Refused(f"{self.path} is damaged: {error}", "repair it with an editor") from error
        for key, fault in content.faults.items():
            if self._complaints.get(key) != fault:
                klog.warning(f'{self.path}: ignored "{klog.shortened(key)}": {fault}; not reached')
        self._complaints = content.faults
        return content

    def _write(self, content: LeaseFile, lease: Lease) -> Lease:
        """Put the lease in and replace the file. Raises: StoreError."""
        content.put(lease, self.node_name)
        self._file.replace(content.as_text())
        self._written = lease
        return lease

    # ---- whose it is --------------------------------------------------------------------------

    def _own(self, config: NetworkConfig, attributes: Attributes, content: LeaseFile) -> Lease | None:
        """The node's live entry in this network; a reservation goes before a lease."""
        own = [lease for lease in content.leases().values() if self._is_ours(lease, attributes) and lease.is_live()]
        for lease in sorted(own, key=lambda lease: (lease.expires is not None, not self._is_written(lease))):
            if allocate.compatible(lease.subnets, config):
                return lease
            what = "ignoring" if lease.expires is None else "deleting"
            klog.info(f"{_found(lease, attributes)} but not compatible with current config, {what}")
        return None

    def _is_ours(self, lease: Lease, attributes: Attributes) -> bool:
        return attributes.is_same_node(lease.attributes) or self._is_written(lease)

    def _is_written(self, lease: Lease) -> bool:
        ours = self._written
        return ours is not None and (lease.subnets, lease.attributes) == (ours.subnets, ours.attributes)

    @contextmanager
    def _locked_for_people(self) -> Iterator[None]:
        """Hold the lock of the file for ``cni-py config``. Raises: StoreError, also without write permission."""
        if self._file.is_read_only():
            raise Refused(f"{self.path} is read only", "change it where it comes from, or: chmod u+w")
        with self._file.locked():
            yield


def _choose(config: NetworkConfig, previous: Subnets | None, content: LeaseFile) -> Subnets:
    """A subnet for a node that has none. Raises: PoolExhausted."""
    taken = [*content.leases(), *content.unclear()]
    if previous is not None and not any(previous.overlap(other) for other in taken):
        if allocate.compatible(previous, config):
            klog.info(f"Found previously leased subnet ({previous}), reusing")
            return previous
        klog.error(f"Found previously leased subnet ({previous}) that is not compatible with the network config, ignoring")
    endless = [subnets for subnets, lease in content.leases().items() if lease.expires is None]
    nodes = [address for lease in content.leases().values() for address in lease.attributes.addresses]
    return allocate.free(config, taken, endless, nodes)


def _found(lease: Lease, attributes: Attributes) -> str:
    return f"Found lease ({lease.subnets.in_words()}) for current IP ({attributes.addresses[0]})"


def _drop_ended(content: LeaseFile) -> None:
    for lease in content.leases().values():
        if not lease.is_live():
            content.remove(lease.subnets)


def _new_end() -> float:
    """Return it in whole seconds, as the file says it."""
    return float(int(time()) + LEASE_SECONDS)
