"""Inventory of a host's leftovers, one kind after the other.

The order is the reverse of the order in which ADD creates them (record, saved configuration, reservation, address,
element): whenever a piece is seen, the pieces that were created before it are seen too.
"""

from __future__ import annotations

from functools import partial

from cni_py.errors import CniError
from cni_py.packetfilter.ownership import network_hash
from cni_py.sweep import file_leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from cni_py.sweep.file_leftovers import Places
    from cni_py.sweep.leftovers import Leftover


class Inventory:
    """Reader of leftovers; whatever cannot be read is reported in ``faults``.

    Args:
        networks: read only leftovers of these; None: of all networks.
        check_time: called for every leftover; may raise.
    """

    def __init__(self, places: Places, networks: Collection[str] | None, check_time: Callable[[], None]) -> None:
        self.places, self.networks, self.check_time = places, networks, check_time
        self.hashes = None if networks is None else {network_hash(name) for name in networks}
        self.faults: list[str] = []

    def of_kernel(self) -> list[Leftover]:
        """Return elements, chains, accepted addresses, links."""
        from cni_py.sweep import kernel_leftovers as of  # not needed by the sweep of a boot, which a plugin call waits for

        readers = (of.elements, of.chains, of.accepted, of.veths, of.ifbs, of.devices)
        return [leftover for read in readers for leftover in self._each(read)]

    def of_files(self) -> list[Leftover]:
        """Return reservations, saved configurations, records."""
        # Saved configurations are read first only because they name directories of reservations.
        saved, elsewhere = [], set(self.places.data)
        for directory in sorted(self.places.flannel):
            for leftover, data_dir in self._each(partial(file_leftovers.saved, directory)):
                saved.append(leftover)
                if data_dir and leftover.network:
                    elsewhere.add((data_dir, leftover.network))
        reserved = []
        found = {path for place in elsewhere for path in file_leftovers.network_directories(*place, self.networks)}
        for directory in sorted(found):
            reserved += self._each(partial(file_leftovers.reservations, directory))
        return [*reserved, *saved, *self._each(file_leftovers.records)]

    def of_cache(self, containers: Collection[str] | None = None) -> list[Leftover]:
        """Return cached results; ``containers``: ids of which one must be in the file's name, None: all."""
        return self._each(partial(file_leftovers.cached, containers))

    def _each(self, read: Callable[[], Iterable[Any]]) -> list[Any]:
        found = []
        try:
            for item in read():
                self.check_time()
                leftover = item[0] if isinstance(item, tuple) else item
                if self.hashes is None or not leftover.hashed or leftover.hashed in self.hashes:
                    found.append(item)
        except (CniError, OSError) as error:
            self.faults.append(str(error))
        return found
