"""Neighbours: permanent ARP and NDP entries, and the FDB of a VXLAN device.

A flannel node knows its peers from their leases, so nothing is resolved on the wire: an ARP entry resolves
a peer's gateway address, an FDB entry maps that MAC address to the peer's node. Entries
that the kernel learned by itself are not permanent; they are neither listed nor deleted. A MAC address leads to
a single node: of two entries for one, the later replaces the earlier.

    list_neighbours(rtnl, link) -> set[Neighbour]       list_forwarding(rtnl, link) -> set[Forwarding]
    replace_neighbours(rtnl, items) -> list[Refusal[Neighbour]]     delete_neighbours(…)    same
    replace_forwarding(rtnl, items) -> list[Refusal[Forwarding]]    delete_forwarding(…)    same

Source: linux net/core/neighbour.c, net/core/rtnetlink.c (rtnl_fdb_…), drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EAFNOSUPPORT, ENODEV, ENOENT, EOPNOTSUPP
from ipaddress import ip_address

from cni_py.kernel.address import Address
from cni_py.kernel.bulk import Refusal, change_many
from cni_py.kernel.link import Link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import Message, decode, encode
from cni_py.netlink.constants import (
    AF_BRIDGE,
    FAMILY,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NTF_SELF,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    RTN_UNICAST,
)

_ABSENT = frozenset((ENOENT, ENODEV))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent ARP or NDP entry: the kernel resolves ``address`` on ``device`` to ``mac``."""

    device: str
    address: Address
    mac: str

    def words(self) -> list[str]:
        return [str(self.address), "lladdr", self.mac, "dev", self.device, "nud", "permanent"]


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A permanent FDB entry: a frame to ``mac`` is sent by VXLAN to the node ``remote``."""

    device: str
    mac: str
    remote: Address

    def words(self) -> list[str]:
        return [self.mac, "dev", self.device, "dst", str(self.remote), "self", "permanent"]


def list_neighbours(rtnl: nl.Rtnl, link: Link) -> set[Neighbour]:
    """The permanent entries of the link, of both families. Raises: KernelRefused."""
    words, found = ("ip", "neigh", "show", "dev", link.name), set[Neighbour]()
    for family in FAMILY.values():
        entries = _dump(rtnl, words, link, {"family": family, "NDA_IFINDEX": link.ifindex})
        found |= {Neighbour(link.name, ip_address(of["NDA_DST"]), of["NDA_LLADDR"]) for of in entries if of.get("NDA_LLADDR")}
    return found


def list_forwarding(rtnl: nl.Rtnl, link: Link) -> set[Forwarding]:
    """The permanent FDB entries of a VXLAN device that lead to a node. Raises: KernelRefused."""
    entries = _dump(rtnl, ("bridge", "fdb", "show", "dev", link.name), link, {"family": AF_BRIDGE, "ifindex": link.ifindex})
    return {Forwarding(link.name, of["NDA_LLADDR"], ip_address(of["NDA_DST"])) for of in entries if of.get("NDA_DST")}


def replace_neighbours(rtnl: nl.Rtnl, items: Iterable[Neighbour]) -> list[Refusal[Neighbour]]:
    """Create the entries, or set the MAC address of existing ones."""
    return change_many(rtnl, ("ip", "neigh", "replace"), items, lambda item, index: (_neighbour(item, index), *_REPLACE))


def delete_neighbours(rtnl: nl.Rtnl, items: Iterable[Neighbour]) -> list[Refusal[Neighbour]]:
    """Delete the entries; absence is success."""
    return change_many(rtnl, ("ip", "neigh", "del"), items, lambda item, index: (_neighbour(item, index), *_DELETE), _ABSENT)


def replace_forwarding(rtnl: nl.Rtnl, items: Iterable[Forwarding]) -> list[Refusal[Forwarding]]:
    """Create the entries; an existing one for the MAC address is replaced."""
    return change_many(rtnl, ("bridge", "fdb", "replace"), items, lambda item, index: (_forwarding(item, index), *_REPLACE))


def delete_forwarding(rtnl: nl.Rtnl, items: Iterable[Forwarding]) -> list[Refusal[Forwarding]]:
    """Delete the entries; absence is success; an entry for another node is kept."""
    return change_many(rtnl, ("bridge", "fdb", "del"), items, lambda item, index: (_forwarding(item, index), *_DELETE), _ABSENT)


_REPLACE = (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
_DELETE = (RTM_DELNEIGH, 0)


def _neighbour(item: Neighbour, ifindex: int) -> bytes:
    header = {"family": FAMILY[item.address.version], "ifindex": ifindex, "state": NUD_PERMANENT, "ndm_type": RTN_UNICAST}
    return encode("ndmsg", header | {"NDA_DST": item.address.packed, "NDA_LLADDR": item.mac})


def _forwarding(item: Forwarding, ifindex: int) -> bytes:
    header = {"family": AF_BRIDGE, "ifindex": ifindex, "state": NUD_PERMANENT, "flags": NTF_SELF}
    return encode("ndmsg", header | {"NDA_DST": item.remote.packed, "NDA_LLADDR": item.mac})


def _dump(rtnl: nl.Rtnl, words: tuple[str, ...], link: Link, question: Message) -> Iterator[Message]:
    """Return the permanent entries of a link, one after the other; none of IPv6 with a kernel without it."""
    with nl.question(*rtnl.enter, *words):
        try:
            answers = rtnl.dump(encode("ndmsg", question), RTM_GETNEIGH)
        except nl.NetlinkError as error:
            if error.errno not in (EAFNOSUPPORT, EOPNOTSUPP, ENODEV):
                raise
            answers = []
    return (of for answer in answers if _is_of(of := decode("ndmsg", answer), link, question["family"]))


def _is_of(entry: Message, link: Link, family: int) -> bool:
    return entry["family"] == family and entry["ifindex"] == link.ifindex and bool(entry["state"] & NUD_PERMANENT)
