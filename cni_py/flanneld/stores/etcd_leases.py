"""What is below ``PREFIX/subnets/`` in etcd: read once, or followed by watching. Nothing is written here.

How following works. A copy of all leases is kept up to date from etcd's events. A watch that breaks is begun
again after the last change that was seen; only where etcd's history no longer reaches back so far is all
read anew. Whatever happens, who follows gets whole sets, and none for what changes nothing, such as
a renewal by Go flannel, which writes the same value again.

Source: flannel-io/flannel pkg/subnet/etcd/registry.go, whose log texts these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Event
from time import monotonic

from cni_py.datastore.etcd import Compacted, Etcd, EtcdError, KeyValue, Watch
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.node import log as klog

OUTAGE_SECONDS = (0.1, 5.0)
"""The pause after the first failure, and the longest; it doubles."""
RESTART_SECONDS = 1.0
"""An outage that is over by then is told of once."""
LOOK_SECONDS = 0.25
"""How often a watch looks whether it shall stop."""
KEY_LENGTH = 256
"""Of a key, in the log: a prefix and a name."""
BURST_SECONDS = 0.05
"""Changes that come within this time are told together."""


@dataclass(frozen=True, slots=True)
class Found:
    """A key that names subnets. ``attributes`` None: its value says nothing, and the subnets are taken all the same."""

    kv: KeyValue
    subnets: Subnets
    attributes: Attributes | None

    @property
    def is_reservation(self) -> bool:
        """A value that says nothing reserves nothing for anybody."""
        return self.kv.lease == 0 and self.attributes is not None


class Leases:
    """``folder``: the part that all keys begin with, ``/coreos.com/network/subnets/``."""

    def __init__(self, client: Etcd, folder: str) -> None:
        self.etcd, self.folder = client, folder
        self._complained: set[str] = set()

    def key(self, subnets: Subnets) -> str:
        return self.folder + subnets.as_key()

    def read(self) -> tuple[list[Found], int]:
        """All of them in the order of keys, and the revision that they are of. Raises: EtcdError."""
        kvs, revision = self.etcd.get_prefix(self.folder)
        return [found for kv in kvs if (found := self.parse(kv)) is not None], revision

    def parse(self, kv: KeyValue) -> Found | None:
        """``None`` where the key names no subnets. What is not understood is logged once for each key."""
        try:
            subnets = Subnets.from_key(kv.key.removeprefix(self.folder))
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
            self._complained.add(key)
            klog.warning(f'Ignoring bad subnet node "{klog.shortened(key, KEY_LENGTH)}": {error}')

    def follow(self, stop: Event) -> Iterator[Mapping[Subnets, Lease]]:
        """All leases whenever they changed, at once, and after each outage; ends by ``stop`` alone.

        ``expires`` is None in all: what has expired is not among them, and etcd would have to be asked about each.
        """
        copy, outage = Copy(self), Outage()
        name = self.folder.rstrip("/")
        while not stop.is_set():
            try:
                if not copy.is_whole:
                    copy.read()
                    yield copy.leases()
                klog.verbose(2, f"registry: watching subnets starting from rev {copy.revision + 1}")
                with self.etcd.watch(self.folder, copy.revision + 1) as watch:
                    yield from until_it_breaks(watch, copy, outage, stop)
            except Compacted as error:
                copy.is_whole = False
                horizon = f"compaction horizon (compact rev {error.revision})"
                klog.warning(f"etcd watch for {name} fell behind {horizon}, re-listing and resuming")
            except EtcdError as error:
                if not stop.is_set():
                    outage.tell(name, copy.revision + 1, str(error))
                stop.wait(outage.pause_seconds())


def until_it_breaks(watch: Watch, copy: Copy, outage: Outage, stop: Event) -> Iterator[Mapping[Subnets, Lease]]:
    """The leases each time this watch has changed them, at most once in ``BURST_SECONDS``. Raises: EtcdError."""
    while not stop.is_set():
        batch = watch.changes(LOOK_SECONDS)
        if batch is None:
            continue
        is_news = outage.ends()
        burst_ends = monotonic() + BURST_SECONDS
        while batch is not None:
            is_news |= copy.apply(batch)
            left = burst_ends - monotonic()
            batch = watch.changes(left) if left > 0 else None
        if is_news:
            yield copy.leases()


class Copy:
    """The leases by key. ``revision``: that of the last change in it."""

    def __init__(self, source: Leases) -> None:
        self._source = source
        self._leases: dict[str, Lease] = {}
        self.revision, self.is_whole = 0, False

    def read(self) -> None:
        """Begin anew. Raises: EtcdError."""
        found, self.revision = self._source.read()
        self._leases = {each.kv.key: Lease(each.subnets, each.attributes) for each in found if each.attributes}
        self.is_whole = True

    def apply(self, changes: list[KeyValue]) -> bool:
        """Whether they changed anything."""
        is_changed = False
        for kv in changes:
            self.revision = kv.mod_revision
            before = self._leases.pop(kv.key, None)
            found = None if kv.is_deleted else self._source.parse(kv)
            if found is not None and found.attributes:
                self._leases[kv.key] = Lease(found.subnets, found.attributes)
            is_changed |= before != self._leases.get(kv.key)
        return is_changed

    def leases(self) -> dict[Subnets, Lease]:
        return {lease.subnets: lease for lease in self._leases.values()}


class Outage:
    """Since when etcd does not answer, and how long to wait before it is asked again."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._pause = OUTAGE_SECONDS[0]
        self._told: set[str] = set()

    def tell(self, name: str, revision: int, reason: str) -> None:
        """Once; and again where it lasts and has another reason: a certificate, a password."""
        if self._since is None:
            self._since = monotonic()
            klog.warning(f"etcd watch channel for {name} closed ({reason}), reconnecting from rev {revision}...")
        elif reason in self._told or monotonic() - self._since < RESTART_SECONDS:
            return
        else:
            klog.warning(f"still no etcd watch for {name}: {reason}")
        self._told.add(reason)

    def ends(self) -> bool:
        """Whether there was one until now."""
        if self._since is None:
            return False
        klog.info(f"etcd answers again, after {monotonic() - self._since:.1f} s")
        self._since, self._pause = None, OUTAGE_SECONDS[0]
        self._told.clear()
        return True

    def pause_seconds(self) -> float:
        pause = self._pause
        self._pause = min(2 * pause, OUTAGE_SECONDS[1])
        return pause
