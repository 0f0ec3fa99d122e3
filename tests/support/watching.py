"""A thread that takes what a store's watch yields, as the daemon does, and plays it into a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic

from cni_py.flanneld.lease import Lease, Subnets
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Event, Gone, Store
from cni_py.node.stop import Stop


class Waited(Stop):
    """``waits``: how often it has been waited for, which a watch of a file does after each look at it."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        return super().wait(timeout)


class Watching:
    """``batches``: what was yielded; ``sets``: the leases that there are after each."""

    def __init__(self, store: Store) -> None:
        self.stop, self.batches, self.sets = Waited(), list[list[Event]](), list[Mapping[Subnets, Lease]]()
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(store,))

    def _run(self, store: Store) -> None:
        leases: dict[Subnets, Lease] = {}
        for batch in store.watch(self.stop):
            for event in batch:
                if isinstance(event, Lease):
                    leases[event.subnets] = event
                elif isinstance(event, Gone):
                    del leases[event.subnets]
            with self._change:
                self.batches.append(batch)
                self.sets.append(dict(leases))
                self._change.notify_all()

    @property
    def events(self) -> list[Event]:
        """List all events, in order."""
        return [event for batch in list(self.batches) for event in batch]

    @property
    def changes(self) -> list[Event]:
        """List all events without markers."""
        return [event for event in self.events if event is not SNAPSHOT_COMPLETE]

    def until(self, condition: Callable[[Mapping[Subnets, Lease]], bool], seconds: float = 20, after: int = 0) -> float:
        """Wait until this is true of the leases, after more than ``after`` batches; how long it took."""
        begin = monotonic()
        with self._change:
            met = self._change.wait_for(lambda: len(self.sets) > after and condition(self.sets[-1]), seconds)
        assert met, f"not within {seconds} s; {len(self.sets)} sets, the last of {len(self.sets[-1]) if self.sets else 0}"
        return monotonic() - begin

    def wait_for_count(self, count: int) -> None:
        """Wait until there are so many leases."""
        self.until(lambda leases: len(leases) == count)

    def attributes(self) -> list[dict[str, object]]:
        """Return the attributes in the leases after each batch, by subnets in words."""
        return [{str(subnets): lease.attributes for subnets, lease in leases.items()} for leases in self.sets]

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()
