"""The leases below ``PREFIX/subnets/`` in etcd: read once, or followed by watching. Nothing is written here.

How following works. etcd's events are passed on in order. A watch that breaks is begun again after the last change that
was seen; only where etcd's history no longer reaches back so far is all read again and compared with what was yielded.

Source: flannel-io/flannel pkg/subnet/etcd/registry.go, whose log texts these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import NamedTuple

from cni_py.datastore.etcd import Compacted, Etcd, EtcdError, KeyValue, TooLarge
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.stores import Event
from cni_py.flanneld.stores.mirror import Mirror
from cni_py.node import log as klog
from cni_py.node.stop import Stop

OUTAGE_SECONDS = (0.1, 5.0)
"""The pause after the first failure, and the longest; it doubles."""
RESTART_SECONDS = 1.0
"""An outage that is shorter is logged once."""
COMPLAINED = 10_000
"""Keys that are remembered, so that each is logged once."""
KEY_LENGTH = 256
"""Length of a key in the log: a prefix and a name."""


class Found(NamedTuple):
    """A key that names subnets. ``attributes`` None: its value says nothing, and the subnets are taken all the same."""

    kv: KeyValue
    subnets: Subnets
    attributes: Attributes | None

    @property
    def is_reservation(self) -> bool:
        """Return whether it reserves the subnet; a value without an address does not."""
        return self.kv.lease == 0 and self.attributes is not None


class Leases:
    """``prefix``: that of all keys, ``/coreos.com/network/subnets/``."""

    def __init__(self, client: Etcd, prefix: str) -> None:
        self.etcd, self.prefix = client, prefix
        self._complained: set[str] = set()
        self._parsed: dict[str, Found] = {}
        """Leases of :meth:`read`, until they are read again to be followed."""

    def key(self, subnets: Subnets) -> str:
        return self.prefix + subnets.as_key()

    def read(self, is_wanted: Callable[[KeyValue], bool] | None = None) -> tuple[list[Found], int]:
        """Return the leases that are wanted, all by default, in the order of keys, and their revision. Raises: EtcdError."""
        found, revision = list[Found](), 0
        for kvs, revision in self.etcd.pages(self.prefix):  # noqa: B007 — the same for all pages
            found += [each for kv in kvs if (is_wanted is None or is_wanted(kv)) and (each := self.parse(kv)) is not None]
        if is_wanted is None:
            self._parsed = {each.kv.key: each for each in found}
        return found, revision

    def touches(self, kv: KeyValue, subnets: Subnets) -> bool:
        """Return whether the key names a part of these."""
        try:
            return Subnets.from_key(kv.key.removeprefix(self.prefix)).overlap(subnets)
        except NotALease:
            return False

    def parse(self, kv: KeyValue) -> Found | None:
        """``None`` where the key names no subnets. What is not understood is logged once for each key."""
        try:
            subnets = Subnets.from_key(kv.key.removeprefix(self.prefix))
        except NotALease as error:
            self._complain(kv.key, error)
            return None
        try:
            return Found(kv, subnets, Attributes.from_json(kv.value))
        except NotALease as error:
            self._complain(kv.key, error)
            return Found(kv, subnets, None)

    def _complain(self, key: str, error: NotALease) -> None:
        if key not in self._complained:
            if len(self._complained) >= COMPLAINED:  # a node may write new ones without end
                self._complained.clear()
            self._complained.add(key)
            klog.warning(f'Ignoring bad subnet node "{klog.shortened(key, KEY_LENGTH)}": {error}; not reached')

    def lease_of(self, kv: KeyValue) -> Lease | None:
        """Return what a key and its value say now. ``expires`` is None: what has expired is deleted, and etcd would have to be
        asked."""
        parsed = self._parsed.get(kv.key)
        if kv.is_deleted:
            return None
        found = parsed if parsed is not None and parsed.kv.value == kv.value else self.parse(kv)
        if found is None or found.attributes is None:
            return None
        return Lease(found.subnets, found.attributes, since=kv.create_revision)

    def follow(self, stop: Stop) -> Iterator[list[Event]]:
        """Implement :meth:`Store.watch <cni_py.flanneld.stores.Store.watch>`; it ends by ``stop`` alone."""
        mirror, outage, revision = Mirror(), Outage(), 0
        name = self.prefix.rstrip("/")
        while not stop.is_set():
            try:
                if not revision:
                    entries, revision = self._read_leases()
                    yield list(mirror.replace(entries))
                klog.verbose(2, f"registry: watching subnets starting from rev {revision + 1}")
                with self.etcd.watch(self.prefix, revision + 1) as watch, stop.calling(watch.cancel):
                    for batch in watch:
                        outage.ends()
                        events = []
                        for kv in batch:
                            revision = kv.mod_revision
                            events += mirror.put(kv.key, self.lease_of(kv))
                        if events:
                            yield events
            except Compacted as error:
                revision = 0
                horizon = f"compaction horizon (compact rev {error.revision})"
                klog.warning(f"etcd watch for {name} fell behind {horizon}, re-listing and resuming")
            except TooLarge as error:  # many changes in one message, after an outage
                klog.warning(f"etcd watch for {name}: {error}, re-listing and resuming")
                revision = 0
                stop.wait(outage.pause_seconds())
            except EtcdError as error:
                if not stop.is_set():
                    outage.log(name, revision + 1, str(error))
                stop.wait(outage.pause_seconds())

    def _read_leases(self) -> tuple[list[tuple[str, Lease | None]], int]:
        """Return all keys with what they say, and their revision. Raises: EtcdError."""
        entries, revision = list[tuple[str, Lease | None]](), 0
        for kvs, revision in self.etcd.pages(self.prefix):  # noqa: B007 — the same for all pages
            entries += [(kv.key, self.lease_of(kv)) for kv in kvs]
        self._parsed.clear()
        return entries, revision


class Outage:
    """An outage of etcd: its begin, and the pause before the next try."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._pause = OUTAGE_SECONDS[0]
        self._logged: set[str] = set()

    def log(self, name: str, revision: int, reason: str) -> None:
        """Log it once; and again if it lasts and has another reason: a certificate, a password."""
        if self._since is None:
            self._since = monotonic()
            klog.warning(f"etcd watch channel for {name} closed ({reason}), reconnecting from rev {revision}...")
        elif reason in self._logged or monotonic() - self._since < RESTART_SECONDS:
            return
        else:
            klog.warning(f"still no etcd watch for {name}: {reason}")
        self._logged.add(reason)

    def ends(self) -> None:
        """etcd has answered."""
        if self._since is None:
            return
        klog.info(f"etcd responds again, after {monotonic() - self._since:.1f} s")
        self._since, self._pause = None, OUTAGE_SECONDS[0]
        self._logged.clear()

    def pause_seconds(self) -> float:
        pause = self._pause
        self._pause = min(2 * pause, OUTAGE_SECONDS[1])
        return pause
