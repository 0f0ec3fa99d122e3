"""Who has which MAC address: permanent ARP and NDP entries, and the FDB of a VXLAN device.

A flannel node knows its peers from their leases, so nobody asks on the wire: an ARP entry answers for
a peer's gateway address, an FDB entry says to which node a frame to that MAC address is sent. Entries
that the kernel learned by itself are not permanent; they are neither listed nor deleted. A MAC address leads to
one node alone: of two entries for one, the later replaces the earlier.

    list_neighbours(rtnl, link) -> set[Neighbour]       list_forwarding(rtnl, link) -> set[Forwarding]
    replace_neighbours(rtnl, items) -> list[Refusal[Neighbour]]     delete_neighbours(…)    same
    replace_forwarding(rtnl, items) -> list[Refusal[Forwarding]]    delete_forwarding(…)    same

Source: linux net/core/neighbour.c, net/core/rtnetlink.c (rtnl_fdb_…), drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from errno import EAFNOSUPPORT, ENODEV, ENOENT, EOPNOTSUPP
from ipaddress import IPv4Address, IPv6Address
from struct import pack, unpack_from

from cni_py.kernel.bulk import Refusal, change_many
from cni_py.kernel.link import Link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes
from cni_py.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NTF_SELF,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    RTN_UNICAST,
)

Address = IPv4Address | IPv6Address

_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_ABSENT = frozenset((ENOENT, ENODEV))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent ARP or NDP entry: who asks for ``address`` on ``device`` is answered by the kernel with ``mac``."""

    device: str
    address: Address
    mac: str

    def words(self) -> list[str]:
        return [str(self.address), "lladdr", self.mac, "dev", self.device, "nud", "permanent"]


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A permanent FDB entry: a frame to ``mac`` goes by VXLAN to the node ``remote``."""

    device: str
    mac: str
    remote: Address

    def words(self) -> list[str]:
        return [self.mac, "dev", self.device, "dst", str(self.remote), "self", "permanent"]


def list_neighbours(rtnl: nl.Rtnl, link: Link) -> set[Neighbour]:
    """The permanent entries of the link, of both families. Raises: KernelRefused."""
    found = set()
    for family, kind in ((AF_INET, IPv4Address), (AF_INET6, IPv6Address)):
        question = _ndmsg(family) + attribute(_NDA_IFINDEX, pack("=i", link.ifindex))
        for values in _dump(rtnl, ("ip", "neigh", "show", "dev", link.name), question, family, link.ifindex):
            mac = values.get(_NDA_LLADDR)
            if mac:
                found.add(Neighbour(link.name, kind(values[_NDA_DST]), mac.hex(":")))
    return found


def list_forwarding(rtnl: nl.Rtnl, link: Link) -> set[Forwarding]:
    """The permanent FDB entries of a VXLAN device that lead to a node. Raises: KernelRefused."""
    found = set()
    question = _ndmsg(AF_BRIDGE, link.ifindex)
    for values in _dump(rtnl, ("bridge", "fdb", "show", "dev", link.name), question, AF_BRIDGE, link.ifindex):
        remote = values.get(_NDA_DST)
        if remote:
            node = IPv4Address(remote) if len(remote) == 4 else IPv6Address(remote)
            found.add(Forwarding(link.name, values[_NDA_LLADDR].hex(":"), node))
    return found


def replace_neighbours(rtnl: nl.Rtnl, items: Iterable[Neighbour]) -> list[Refusal[Neighbour]]:
    """Make the entries, or give those that are there this MAC address."""
    return change_many(rtnl, ("ip", "neigh", "replace"), items, lambda item, index: (_neighbour(item, index), *_REPLACE))


def delete_neighbours(rtnl: nl.Rtnl, items: Iterable[Neighbour]) -> list[Refusal[Neighbour]]:
    """Absence is success."""
    return change_many(rtnl, ("ip", "neigh", "del"), items, lambda item, index: (_neighbour(item, index), *_DELETE), _ABSENT)


def replace_forwarding(rtnl: nl.Rtnl, items: Iterable[Forwarding]) -> list[Refusal[Forwarding]]:
    """Make the entries; where the MAC address leads elsewhere, it leads here from now on."""
    return change_many(rtnl, ("bridge", "fdb", "replace"), items, lambda item, index: (_forwarding(item, index), *_REPLACE))


def delete_forwarding(rtnl: nl.Rtnl, items: Iterable[Forwarding]) -> list[Refusal[Forwarding]]:
    """Absence is success; an entry that leads to another node stays."""
    return change_many(rtnl, ("bridge", "fdb", "del"), items, lambda item, index: (_forwarding(item, index), *_DELETE), _ABSENT)


_REPLACE = (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
_DELETE = (RTM_DELNEIGH, 0)


def _ndmsg(family: int, ifindex: int = 0, state: int = 0, flags: int = 0, kind: int = 0) -> bytes:
    """``struct ndmsg``."""
    return pack("=BxHiHBB", family, 0, ifindex, state, flags, kind)


def _neighbour(item: Neighbour, ifindex: int) -> bytes:
    family = AF_INET if item.address.version == 4 else AF_INET6
    header = _ndmsg(family, ifindex, NUD_PERMANENT, 0, RTN_UNICAST)
    return header + attribute(_NDA_DST, item.address.packed) + attribute(_NDA_LLADDR, _octets(item.mac))


def _forwarding(item: Forwarding, ifindex: int) -> bytes:
    header = _ndmsg(AF_BRIDGE, ifindex, NUD_PERMANENT, NTF_SELF)
    return header + attribute(_NDA_DST, item.remote.packed) + attribute(_NDA_LLADDR, _octets(item.mac))


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _dump(rtnl: nl.Rtnl, words: tuple[str, ...], question: bytes, family: int, ifindex: int) -> list[dict[int, bytes]]:
    """The attributes of each permanent entry; a kernel without IPv6 has none of it."""
    with nl.question(*rtnl.enter, *words):
        try:
            answers = rtnl.dump(question, RTM_GETNEIGH)
        except nl.NetlinkError as error:
            if error.errno not in (EAFNOSUPPORT, EOPNOTSUPP, ENODEV):
                raise
            return []
    found = []
    for answer in answers:
        of_family, of_link, state = unpack_from("=BxxxiH", answer)
        if of_family == family and of_link == ifindex and state & NUD_PERMANENT:
            found.append(dict(attributes(answer[12:])))
    return found
