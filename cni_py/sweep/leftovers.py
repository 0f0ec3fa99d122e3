"""Leftovers of an attachment, piece by piece, as values: the objects that a sweep checks.

Pieces name their owner in different ways: some only the container (flannel's saved configuration, old reservations,
iptables chains), some only a hash of the network (nftables comments). :meth:`Leftover.is_with` finds pieces that belong
together.

file_leftovers.py and kernel_leftovers.py read them, inventory.py reads all of them in order.
"""

from __future__ import annotations

import posix

from cni_py.packetfilter.ownership import short_id
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.packetfilter.iptables import Iptables

ADDRESS, SAVED, RECORD, ELEMENT, CHAIN, ACCEPTED, VETH, IFB, DEVICE, CACHED = (
    "address", "saved configuration", "record", "nftables element", "iptables chain", "accepted address", "veth", "ifb",
    "device", "cached result",
)  # fmt: skip
Stamp = tuple[int, int, int]


class Leftover(Value):
    """Piece of an attachment.

    Attributes:
        container_id: whole, or as nftables comments have it (``ownership.short_id``); empty for a damaged file.
        ifname: empty if the piece does not name it.
        network: empty if the piece does not name it, or only ``hashed``.
        address: the pod's, packed.
        stamp: modification time in ns, inode and size of a file: distinguishes a later file at the same path.
        path: of a file its path; of an element its set; of a chain or a veth its name.
        netns: path of the sandbox; ``inode``: its inode. Only records and cached results have them.
        key: of an element its comment, of a chain the source of its jump, of an accepted address its
            zone in firewalld, of a veth its mark, of an ifb or a device its alias.
        is_blind: its addresses were not allocated by host-local, so none of our files lists them.
    """

    kind: str
    what: str
    path: str
    container_id: str = ""
    ifname: str = ""
    network: str = ""
    hashed: str = ""
    address: bytes = b""
    stamp: Stamp | None = None
    netns: str = ""
    inode: int = 0
    key: str = ""
    tool: Iptables | None = None
    is_blind: bool = False

    @property
    def short_id(self) -> str:
        return self.container_id if "~" in self.container_id else short_id(self.container_id)

    def is_with(self, other: Leftover) -> bool:
        """Return whether both can belong to one attachment: a missing name matches any."""
        return (
            self.short_id == other.short_id
            and (not self.hashed or not other.hashed or self.hashed == other.hashed)
            and (not self.ifname or not other.ifname or self.ifname == other.ifname)
        )


def stamp_of(path: str) -> Stamp | None:
    """Return modification time, inode and size; None unless the path is a regular file."""
    try:
        status = posix.lstat(path)
    except OSError:
        return None
    if status.st_mode & 0o170000 != 0o100000:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
