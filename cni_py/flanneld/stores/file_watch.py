"""Changes in a file of leases. It is checked five times a second, and read as a whole when it has changed.

A file that cannot be read or understood changes nothing: what was yielded last stays. A lease that ends by its time ends
permanently: its node has not renewed it for a day.
"""

from __future__ import annotations

from heapq import heapify, heappop
from time import time
from typing import TYPE_CHECKING

from cni_py.datastore.errors import StoreError
from cni_py.flanneld.stores.mirror import Mirror
from cni_py.node import log as klog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.stores import Event
    from cni_py.flanneld.stores.lease_file import LeaseFile
    from cni_py.flanneld.stores.shared_file import SharedFile
    from cni_py.node.stop import Stop

POLL_SECONDS = 0.2


class FileWatch:
    """One watch. ``understood``: the content of a text, or StoreError; ``written``: the lease that this process wrote last."""

    def __init__(self, file: SharedFile, understood: Callable[[bytes], LeaseFile], written: Callable[[], Lease | None]) -> None:
        self._file, self._understood, self._written = file, understood, written
        self._mirror = Mirror()
        self._signature: tuple[int, ...] | None = None
        self._text: int | None = None
        """Hash of the text that was understood last; None: there was none."""
        self._yielded = written()
        self._failures = 0
        self._ends: list[tuple[float, str]] = []
        """Ends of leases, and their keys: a heap."""

    def events(self, stop: Stop) -> Iterator[list[Event]]:
        """Implement :meth:`Store.watch <cni_py.flanneld.stores.Store.watch>`."""
        while True:
            if events := self._look():
                yield events
            if stop.wait(POLL_SECONDS):
                return

    def _look(self) -> list[Event]:
        written = self._written()  # before the file is read: so what is read is not older
        events = self._read()
        now = time()
        while self._ends and self._ends[0][0] <= now:
            events += self._mirror.put(heappop(self._ends)[1], None, is_final=True)
        if written is not None and written is not self._yielded and not self._failures:
            # yielded again: another process may have reverted our change at once, so that nothing seems to have changed
            self._yielded = written
            events.append(self._mirror.again(written))
        return events

    def _read(self) -> list[Event]:
        """Return what is new in the file, if it has changed."""
        signature = self._file.signature()
        if signature is not None and signature == self._signature and not self._failures:
            return []
        events: list[Event] = []
        try:
            text = self._file.read()
            if hash(text) != self._text or self._failures > 1:
                events = self._compare(self._understood(text))
        except StoreError as error:
            self._failures += 1
            if self._failures == 2:  # the first time, an editor may have been half way through
                until_then = "nothing is done" if self._text is None else "the last good leases stay"
                klog.error(f"{error}; until then {until_then}")
            return []
        if self._failures > 1:
            klog.info(f"{self._file} can be read again")
        self._signature, self._text, self._failures = signature, hash(text), 0
        return events

    def _compare(self, content: LeaseFile) -> list[Event]:
        live = {subnets.as_key(): lease for subnets, lease in content.leases().items() if lease.is_live()}
        self._ends = [(lease.expires, key) for key, lease in live.items() if lease.expires is not None]
        heapify(self._ends)
        events = list(self._mirror.replace(live.items()))
        is_snapshot = self._text is None or self._failures > 1
        return events if is_snapshot else events[:-1]  # a consumer has no use for the marker after each change
