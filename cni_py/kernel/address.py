"""Addresses of links. Source: linux net/ipv4/devinet.c, net/ipv6/addrconf.c."""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EEXIST, ENODEV
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from cni_py.errors import KernelRefused
from cni_py.journal import step
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import (
    FAMILY,
    IFA_F_NODAD,
    IFA_F_SECONDARY,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.netlink.attributes import Message
    from cni_py.netlink.socket import Netlink, Rtnl

Address = IPv4Address | IPv6Address
AddressWithPrefix = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


class HostAddress(Value):
    """An address of a link; ``flags``: IFA_F_…; ``network``: reachable through it on the link, the peer's if it has one;
    ``scope``: RT_SCOPE_…, 0 global."""

    ifindex: int
    address: Address
    flags: int
    network: Network
    scope: int = 0

    @property
    def is_secondary(self) -> bool:
        """Return whether it is an IPv4 address that the kernel does not choose as a source: its network has another one."""
        return self.address.version == 4 and bool(self.flags & IFA_F_SECONDARY)

    @property
    def is_global(self) -> bool:
        return self.scope == 0


# Not `overlaps` and `subnet_of`: these keep two more objects with each network that was compared.


def have_overlap(one: Network, other: Network) -> bool:
    """Return whether two networks of one family share an address."""
    shift = one.max_prefixlen - min(one.prefixlen, other.prefixlen)
    return (int(one.network_address) ^ int(other.network_address)) >> shift == 0


def is_within(part: Network, whole: Network) -> bool:
    """Return whether a network is the other one of its family, or inside it."""
    return part.prefixlen >= whole.prefixlen and have_overlap(part, whole)


def list_addresses(rtnl: Rtnl, link: Link) -> list[AddressWithPrefix]:
    """The link's addresses without IPv6 link-local ones. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "ip", "addr", "show", "dev", link.name):
        found = dump_addresses(rtnl, index=link.ifindex)
    addresses = [ip_interface((local_address(of), of["prefixlen"])) for of in found if of["index"] == link.ifindex]
    return [a for a in addresses if a.version == 4 or not a.is_link_local]


def list_host_addresses(rtnl: Rtnl) -> list[HostAddress]:
    """Every address of the namespace, in the kernel's order. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "ip", "addr", "show"):
        found = dump_addresses(rtnl)
    return [_host_address(of) for of in found if of["family"] in FAMILY.values() and local_address(of)]


def _host_address(found: Message) -> HostAddress:
    local = local_address(found)
    network = ip_network((found.get("IFA_ADDRESS", local), found["prefixlen"]), strict=False)
    return HostAddress(found["index"], ip_address(local), found.get("IFA_FLAGS") or found["flags"], network, found["scope"])


def dump_addresses(netlink: Netlink, **question: Any) -> list[Message]:
    """Return addresses; ``question``: fields and attributes to match. Raises: OSError."""
    return [decode("ifaddrmsg", answer) for answer in netlink.dump(encode("ifaddrmsg", question), RTM_GETADDR)]


def local_address(found: Message) -> bytes:
    """Our own address: of a point-to-point link IFA_ADDRESS is the other end's."""
    local: bytes = found.get("IFA_LOCAL") or found.get("IFA_ADDRESS", b"")
    return local


def add_address(rtnl: Rtnl, link: Link, address: AddressWithPrefix, detect_duplicates: bool = False) -> None:
    """Add an address, an IPv4 one with its broadcast address; an existing one is success.

    An IPv6 address can be used at once, unless ``detect_duplicates``. Raises: KernelRefused.
    """
    more: Message = {}
    words = ["ip", "addr", "add", str(address)]
    if address.version == 4 and address.network.prefixlen < 31:
        broadcast = address.network.broadcast_address
        more["IFA_BROADCAST"] = broadcast.packed
        words += ["broadcast", str(broadcast)]
    if address.version == 6 and not detect_duplicates:
        more["IFA_FLAGS"] = IFA_F_NODAD
        words.append("nodad")
    try:
        with step(*rtnl.enter, *words, "dev", link.name) as change:
            try:
                rtnl.change(_message(link, address, more), RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL)
            except nl.NetlinkError as error:
                if error.errno != EEXIST:
                    raise
                change.unchanged = True
    except KernelRefused as refused:
        from cni_py.kernel import refusals

        refusals.explain("address", refused, link=link.name, address=address, enter=refusals.prefix(rtnl.enter))
        raise


def delete_address(rtnl: Rtnl, link: Link, address: AddressWithPrefix) -> None:
    """Delete an address; absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "addr", "del", str(address), "dev", link.name) as change:
        try:
            rtnl.change(_message(link, address, {}), RTM_DELADDR)
        except nl.NetlinkError as error:
            if error.errno not in (EADDRNOTAVAIL, ENODEV):
                raise
            change.unchanged = True


def _message(link: Link, address: AddressWithPrefix, more: Message) -> bytes:
    header = {"family": FAMILY[address.version], "prefixlen": address.network.prefixlen, "index": link.ifindex}
    return encode("ifaddrmsg", header | {"IFA_LOCAL": address.ip.packed, "IFA_ADDRESS": address.ip.packed} | more)
