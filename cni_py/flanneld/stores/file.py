"""Leases in one JSON file: for a lab, for nodes that share a folder, and for a list of nodes written by hand.

What is in the file, ``lease_file.py`` says. How it works. Who changes it holds a lock (``flock`` on
``PATH.lock``), reads it, writes ``PATH.tmp`` to the disk and renames it: a reader sees the old file or
the new one, whenever the writer dies. Readers take no lock; they look five times a second, by ``stat``,
which notices an editor, and also a file on NFS, of which the kernel sends no notifications.

A file that cannot be understood changes nothing: the last good leases stay, and it is not written
over. An entry that cannot be understood stays as it is, and its subnet is given to nobody.

A file that nobody may write (mode 0444, a read-only file system) is left alone: the node's own entry
must be there and say what the others need to know.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from fcntl import LOCK_EX, LOCK_NB, flock
from ipaddress import IPv4Address
from math import inf
from time import monotonic, sleep, time
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.errors import IOFailure
from cni_py.flanneld import allocate
from cni_py.flanneld.lease import LEASE_SECONDS, Attributes, Lease, Subnets
from cni_py.flanneld.stores import LeaseTaken
from cni_py.flanneld.stores.lease_file import Damaged, LeaseFile
from cni_py.journal import step
from cni_py.node import log as klog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from ipaddress import IPv6Address
    from threading import Event

    from cni_py.flanneld.network import NetworkConfig

MAX_BYTES = 16 << 20
"""More than 50,000 leases."""
POLL_SECONDS = 0.2
LOCK_SECONDS = 5.0
SETTLED_SECONDS = 1.0
"""A file changed less than this ago is read again: a second change may carry the same time."""


class FileStore:
    """The Store in the file ``path``, which exists; ``node_name`` goes into our entry. Safe from several threads."""

    def __init__(self, path: str, node_name: str) -> None:
        self.path, self.node_name = os.path.realpath(path), node_name
        self._complaints: dict[str, str] = {}
        self._written: Lease | None = None
        """What we wrote last: it is ours, also when our address is another by now."""

    def __str__(self) -> str:
        return f"File Subnet Manager - {self.path}"

    def read_network_config(self) -> str:
        """The ``config`` object. Raises: StoreError."""
        return json.dumps(self._read().config)

    def write_network_config(self, text: str) -> None:
        """For who has validated it; where there is no file, it is made. Raises: StoreError."""
        with self._locked_for_people():
            content = self._read() if files.exists(self.path) else LeaseFile(b'{"config": {}}')
            content.put_config(json.loads(text))
            self._replace(content)

    def reserve(self, subnets: Subnets, public_ip: IPv4Address | IPv6Address) -> None:
        """Keep these for the node with this address, for ever. Raises: StoreError, LeaseTaken."""
        with self._locked_for_people():
            content = self._read()
            _drop_ended(content)
            there = content.leases().get(subnets)
            for other, lease in content.leases().items():
                is_its_own = other == subnets and public_ip in lease.attributes.addresses
                if other.overlap(subnets) and not is_its_own:
                    raise LeaseTaken(f"{other} is leased to {lease.attributes.addresses[0]}", f"see {self.path}")
            if any(other.overlap(subnets) for other in content.unclear()):
                raise LeaseTaken(f"an entry of {self.path} that cannot be understood has {subnets}", "mend it with an editor")
            attributes = Attributes(public_ip) if isinstance(public_ip, IPv4Address) else Attributes(public_ipv6=public_ip)
            content.put(Lease(subnets, there.attributes if there else attributes))
            self._replace(content)

    def release(self, subnets: Subnets) -> None:
        """Make a reservation a lease, that ends after 24 hours if no node renews it. Raises: StoreError."""
        with self._locked_for_people():
            content = self._read()
            there = content.leases().get(subnets)
            if there is None or there.expires is not None:
                raise Refused(f"{subnets} is not reserved", f"see {self.path}")
            content.put(replace(there, expires=_new_end()))
            self._replace(content)

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        """Ours by public address, else ``previous``, else a free one. Raises: StoreError."""
        if self._is_read_only():
            return self._acquire_without_writing(config, attributes)
        with self._locked():
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
        """The same entry with a new end; a reservation stays one. Raises: StoreError, LeaseTaken."""
        if self._is_read_only():
            return self._renew_without_writing(lease)
        with self._locked():
            content = self._read()
            _drop_ended(content)
            for other in content.leases().values():
                if other.subnets.overlap(lease.subnets) and not self._is_ours(other, lease.attributes):
                    raise LeaseTaken(f"{lease.subnets} belongs to {other.attributes.addresses[0]} now, says {self.path}")
            there = content.leases().get(lease.subnets)
            return self._write(content, replace(lease, expires=None if there and there.expires is None else _new_end()))

    def watch(self, stop: Event) -> Iterator[Mapping[Subnets, Lease]]:
        """All live leases, at once and whenever the file or the time changed them, or we did.

        Also where somebody has at once put back what we wrote over: it looks as if nothing had been.
        """
        leases: dict[Subnets, Lease] = {}
        written = self._written
        text = b""
        seen: tuple[int, ...] | None = None
        last: dict[Subnets, Lease] | None = None
        failures, next_end = 0, 0.0
        while True:
            signature = self._signature()
            if signature is not None and signature == seen and not failures and time() < next_end:
                if stop.wait(POLL_SECONDS):
                    return
                continue
            if signature is None or signature != seen:
                try:
                    now = self._text()
                    if now != text:  # thousands of entries are not understood again for nothing
                        leases, text = self._understood(now).leases(), now
                    if failures > 1:
                        klog.info(f"{self.path} can be read again")
                        last = None
                    seen, failures = signature, 0
                except StoreError as error:
                    failures += 1
                    if failures == 2:  # the first time, an editor may have been half way through
                        klog.error(
                            f"{error}; until then {'the last good leases stay' if last is not None else 'nothing is done'}"
                        )
            live = {subnets: lease for subnets, lease in leases.items() if _is_live(lease)}
            next_end = min((lease.expires for lease in live.values() if lease.expires is not None), default=inf)
            if not failures and (live != last or self._written is not written):
                last, written = live, self._written
                yield dict(live)
            if stop.wait(POLL_SECONDS):
                return

    def ready(self) -> None:
        """Nobody is told."""

    def reconnect(self) -> None:
        """Nothing is held open."""

    def close(self) -> None:
        """Nothing is held open."""

    # ---- a file that is left alone ------------------------------------------------------------

    def _is_read_only(self) -> bool:
        """Root may write everything: it is the mode that tells, and the file system."""
        try:
            return not os.stat(self.path).st_mode & 0o222 or bool(os.statvfs(self.path).f_flag & os.ST_RDONLY)
        except OSError:
            return False

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
            found = "is not there" if there is None else f"is {there.attributes.as_json()}"
            hint = f"it must be {lease.attributes.as_json()}"
            raise Refused(f'{self.path} is read only, and its "{lease.subnets.as_key()}" {found}', hint)
        if not _is_live(there):
            raise Refused(f'{self.path} is read only, and its "{lease.subnets.as_key()}" has ended', 'take its "Expires" out')
        return there

    # ---- the file -----------------------------------------------------------------------------

    def _read(self) -> LeaseFile:
        """Raises: StoreError."""
        return self._understood(self._text())

    def _text(self) -> bytes:
        """Raises: StoreError."""
        try:
            return files.read(self.path, MAX_BYTES)
        except FileNotFoundError as error:
            hint = 'make it: {"config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}, "leases": {}}'
            raise Refused(f"{self.path} is not there", hint) from error
        except IOFailure as error:
            raise Refused(error.msg, error.hint) from error
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read: {error.strerror}", f"see ls -l {self.path}") from error

    def _understood(self, text: bytes) -> LeaseFile:
        """What is wrong with an entry is logged once. Raises: StoreError."""
        try:
            content = LeaseFile(text)
        except Damaged as error:
            raise Refused(f"{self.path} is damaged: {error}", "mend it with an editor") from error
        for key, fault in content.faults.items():
            if self._complaints.get(key) != fault:
                klog.warning(f'{self.path}: ignored "{klog.shortened(key)}": {fault}')
        self._complaints = content.faults
        return content

    def _signature(self) -> tuple[int, ...] | None:
        """Equal as long as the file is the same; None: it must be read to know."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        if time() - found.st_ctime < SETTLED_SECONDS:
            return None
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _write(self, content: LeaseFile, lease: Lease) -> Lease:
        """Put the lease in and replace the file. Raises: StoreError."""
        content.put(lease, self.node_name)
        self._replace(content)
        self._written = lease
        return lease

    def _replace(self, content: LeaseFile) -> None:
        """Raises: StoreError."""
        with _explained(self.path), step("install", "/dev/stdin", self.path, error=IOFailure):
            _replace(self.path, content.as_text())

    # ---- whose it is --------------------------------------------------------------------------

    def _own(self, config: NetworkConfig, attributes: Attributes, content: LeaseFile) -> Lease | None:
        """The node's live entry in this network; a reservation goes before a lease."""
        own = [lease for lease in content.leases().values() if self._is_ours(lease, attributes) and _is_live(lease)]
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
        """As ``_locked``, for ``cni-py config``. Raises: StoreError, also where nobody is to write."""
        if self._is_read_only():
            raise Refused(f"{self.path} is read only", "change it where it comes from, or: chmod u+w")
        with self._locked():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file; the kernel frees it when we die. Raises: StoreError."""
        path, until = f"{self.path}.lock", monotonic() + LOCK_SECONDS
        with _explained(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while not _try_lock(fd, path):
                if monotonic() > until:
                    raise Unavailable(f"another process has held {path} for {LOCK_SECONDS:.0f} s", f"see who: fuser -v {path}")
                sleep(0.005)
            yield
        finally:
            os.close(fd)


def _try_lock(fd: int, path: str) -> bool:
    """Raises: StoreError."""
    try:
        with _explained(path):
            flock(fd, LOCK_EX | LOCK_NB)
    except Unavailable as error:
        if isinstance(error.__cause__, BlockingIOError):
            return False
        raise
    return True


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """What the kernel says to a write, as a StoreError."""
    try:
        yield
    except (IOFailure, OSError) as error:
        msg = f"{path} cannot be written: {os.strerror(error.errno or 0)}"
        if error.errno == errno.EBUSY:
            raise Refused(msg, "the file itself is mounted: mount its folder instead") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP):
            raise Refused(msg, f"see ls -ld {os.path.dirname(path)} {path}") from error
        raise Unavailable(msg, f"see df {os.path.dirname(path)}") from error


def _replace(path: str, content: bytes) -> None:
    """By another name, with the mode and owner of the old file; the lock makes that name ours alone. Raises: OSError."""
    temporary, old = f"{path}.tmp", os.stat(path) if files.exists(path) else None
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # of one who was killed
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        files.write_all(fd, content)
        if old is not None:
            os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, old.st_mode & 0o7777)
        os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


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
        if not _is_live(lease):
            content.remove(lease.subnets)


def _is_live(lease: Lease) -> bool:
    return lease.expires is None or lease.expires > time()


def _new_end() -> float:
    """In whole seconds, as the file says it."""
    return float(int(time()) + LEASE_SECONDS)
