"""Addresses in every network namespace of the host, and the veths that lead from the host into one."""

from __future__ import annotations

from errno import EINVAL

from cni_py.attachment.record import MARK, mark_on
from cni_py.sweep import netns_scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.sweep.netns_paths import NetnsPaths
    from cni_py.sweep.netns_scan import Reader


class AddressScan:
    """Scan of addresses and host ends in all namespaces.

    Attributes:
        addresses: packed address to the namespace that it is in.
        marks: of host ends, without "cni:", whose other end is in another namespace.
        unseen: a namespace behind a veth that ``namespaces`` lacks, in words; empty if there is none.
        faults: what could not be read.
    """

    def __init__(self, namespaces: NetnsPaths, own: int, check_time: Callable[[], None]) -> None:
        self.addresses: dict[bytes, str] = {}
        self.marks: set[str] = set()
        self.unseen = ""
        self.faults: list[str] = []
        self._namespaces, self._own, self._check_time = namespaces, own, check_time
        self._seen: set[int] = set()  # numbers that the kernel assigns to namespaces (nsid)

    def run(self) -> None:
        try:
            with netns_scan.Reader() as reader:
                self._scan(reader)
        except OSError as error:
            self.faults.append(f"could not list addresses: {error.strerror}")

    def _scan(self, reader: Reader) -> None:
        self._add(reader.addresses(), "the host itself")
        ends = [end for end in reader.host_ends() if end.nsid not in (None, netns_scan.DYING)]
        for inode in self._namespaces:
            if inode != self._own:
                self._check_time()
                self._scan_namespace(reader, inode)
        behind = {end.nsid: f'the namespace behind "{end.name}"' for end in ends if end.nsid is not None}
        if reader.is_strict:
            ends = self._scan_behind(reader, behind, ends)
        self.marks = {mark.removeprefix(MARK) for end in ends if (mark := mark_on(end))}
        unseen = {end.nsid for end in ends} - self._seen
        # Read once more: one that was deleted in the meantime needs no explanation.
        still = {end.nsid for end in reader.host_ends()} if unseen else set()
        self.unseen = next((name for number, name in behind.items() if number in unseen & still), "")

    def _scan_namespace(self, reader: Reader, inode: int) -> None:
        name = self._namespaces.name(inode)
        try:
            with self._namespaces.open(inode) as netns:
                number = reader.number_of(netns.fd)
                self._add(_addresses_in(reader, netns, number), name)
                self._seen |= {number} if number is not None else set()
        except OSError as error:
            if netns_scan.is_gone(error) and not self._namespaces.is_still_mounted(inode):
                self._namespaces.forget(inode)
            else:
                self.faults.append(f'could not enter the network namespace "{name}": {error.strerror}')

    def _scan_behind(self, reader: Reader, behind: dict[int, str], ends: list[Link]) -> list[Link]:
        """Scan namespaces behind veths that /proc does not show. Returns: the ends whose namespace is not being deleted."""
        for number, name in behind.items():
            self._check_time()
            if number not in self._seen and not self._add_behind(reader, number, name):
                ends = [end for end in ends if end.nsid != number]
        return ends

    def _add_behind(self, reader: Reader, number: int, name: str) -> bool:
        """Add the addresses behind a veth. Returns: False if the namespace is being deleted, which may take seconds."""
        try:
            self._add(reader.addresses(number), name)
        except OSError as error:
            # It keeps its number until it is deleted, but the kernel does not return its addresses any more.
            if error.errno == EINVAL:
                return False
            self.faults.append(f"could not list addresses in {name}: {error.strerror}")
        return True

    def _add(self, found: list[tuple[int, bytes]], place: str) -> None:
        for _, address in found:
            self.addresses.setdefault(address, place)


def _addresses_in(reader: Reader, netns: NetNS, number: int | None) -> list[tuple[int, bytes]]:
    """List addresses of a namespace by its number, which is faster, or by entering it. Raises: OSError."""
    if number is not None and reader.is_strict:
        try:
            return reader.addresses(number)
        except OSError:
            pass
    return netns_scan.addresses_inside(netns)
