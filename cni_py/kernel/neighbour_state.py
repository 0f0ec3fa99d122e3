"""Neighbours and FDB entries in every state, as the kernel has them now; neighbour.py has the permanent ones, and changes them.

    list_neighbour_states(rtnl, link) -> dict[Address, NeighbourState]
    list_fdb(rtnl) -> list[FdbEntry]          of bridges and their ports, and of VXLAN devices
    list_odd_forwarding(rtnl, link)           entries of a VXLAN device with a UDP port, VNI or link of their own

Source: linux net/core/neighbour.c, net/bridge/br_fdb.c, drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EOPNOTSUPP
from ipaddress import ip_address

from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import AF_BRIDGE, FAMILY, NUD_PERMANENT, RTM_GETNEIGH
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

_STATES = {
    0x01: "INCOMPLETE",
    0x02: "REACHABLE",
    0x04: "STALE",
    0x08: "DELAY",
    0x10: "PROBE",
    0x20: "FAILED",
    0x40: "NOARP",
    NUD_PERMANENT: "PERMANENT",
}


class NeighbourState(Value):
    """An entry; ``mac`` "" while the kernel has no reply."""

    mac: str
    state: str


class FdbEntry(Value):
    """A MAC address, and where frames to it go: the port ``ifindex`` of the bridge ``master``, or a VXLAN device's
    ``remote``."""

    ifindex: int
    mac: str
    master: int = 0
    remote: Address | None = None
    is_permanent: bool = False


def list_neighbour_states(rtnl: Rtnl, link: Link) -> dict[Address, NeighbourState]:
    """Return the ARP and NDP entries of a link by address. Raises: KernelRefused."""
    found: dict[Address, NeighbourState] = {}
    for family in FAMILY.values():
        with nl.question(*rtnl.enter, "ip", "neigh", "show", "dev", link.name):
            try:
                answers = rtnl.dump(encode("ndmsg", {"family": family, "NDA_IFINDEX": link.ifindex}), RTM_GETNEIGH)
            except nl.NetlinkError as error:
                if error.errno not in (EAFNOSUPPORT, EOPNOTSUPP):
                    raise
                continue
        for of in (decode("ndmsg", answer) for answer in answers):
            if of["ifindex"] == link.ifindex and of["family"] == family and of.get("NDA_DST"):
                state = _STATES.get(of["state"], "NONE")
                found[ip_address(of["NDA_DST"])] = NeighbourState(of.get("NDA_LLADDR", ""), state)
    return found


def list_odd_forwarding(rtnl: Rtnl, link: Link) -> dict[tuple[str, Address], str]:
    """Return the entries of a VXLAN device that override what the device has, by MAC address and remote, as ``bridge fdb``
    shows that. Raises: KernelRefused."""
    found: dict[tuple[str, Address], str] = {}
    with nl.question(*rtnl.enter, "bridge", "fdb", "show", "dev", link.name):
        answers = rtnl.dump(encode("ndmsg", {"family": AF_BRIDGE, "ifindex": link.ifindex}), RTM_GETNEIGH)
    for of in (decode("ndmsg", answer) for answer in answers):
        if of["ifindex"] != link.ifindex or not of.get("NDA_DST"):
            continue
        words = [f"{name} {of[key]}" for name, key in _OVERRIDES if of.get(key)]
        if words:
            found[of["NDA_LLADDR"], ip_address(of["NDA_DST"])] = " ".join(words)
    return found


_OVERRIDES = (("port", "NDA_PORT"), ("vni", "NDA_VNI"), ("via", "NDA_IFINDEX"))


def list_fdb(rtnl: Rtnl) -> list[FdbEntry]:
    """Return every entry of the namespace's forwarding tables. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "bridge", "fdb", "show"):
        try:
            answers = rtnl.dump(encode("ndmsg", {"family": AF_BRIDGE}), RTM_GETNEIGH)
        except nl.NetlinkError as error:
            if error.errno not in (EAFNOSUPPORT, EOPNOTSUPP):
                raise
            answers = []
    decoded = [decode("ndmsg", answer) for answer in answers]
    return [
        FdbEntry(
            of["ifindex"],
            of["NDA_LLADDR"],
            of.get("NDA_MASTER", 0),
            ip_address(of["NDA_DST"]) if of.get("NDA_DST") else None,
            bool(of["state"] & NUD_PERMANENT),
        )
        for of in decoded
        if of.get("NDA_LLADDR")
    ]
