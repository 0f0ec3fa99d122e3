"""The addresses of the pods behind a bridge's ports: which of them use a subnet of it.

    users_of(rtnl, bridge, network) -> [BridgeUser(port, "10.244.91.5")]

The kernel lists the addresses of a namespace that a veth leads to (``IFA_TARGET_NETNSID``, Linux 4.20), so nothing is entered
and no file is believed. Where it does not, each port counts as a user, with the address unknown.

Source: linux net/core/net_namespace.c, net/ipv4/devinet.c (inet_dump_ifaddr).
"""

from __future__ import annotations

from ipaddress import ip_address

from cni_py.errors import KernelRefused
from cni_py.kernel.address import dump_addresses, local_address
from cni_py.kernel.link import list_links
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

DYING = -1
"""The number of a namespace that is being deleted."""


class BridgeUser(Value):
    """A port of the bridge, and an address behind it; "": unknown."""

    port: Link
    address: str


def users_of(rtnl: Rtnl, bridge: Link, network: Network) -> list[BridgeUser]:
    """List what is behind the bridge's ports and has an address in the network. Raises: KernelRefused."""
    ports = [link for link in list_links(rtnl) if link.master == bridge.ifindex and link.kind == "veth"]
    return [user for port in ports if port.nsid not in (None, DYING) for user in _users(rtnl, port, network)]


def _users(rtnl: Rtnl, port: Link, network: Network) -> Iterator[BridgeUser]:
    if not rtnl.is_strict:
        yield BridgeUser(port, "")
        return
    try:
        found = dump_addresses(rtnl, IFA_TARGET_NETNSID=port.nsid)
    except (OSError, KernelRefused):
        yield BridgeUser(port, "")
        return
    for of in found:
        address = ip_address(local_address(of)) if local_address(of) else None
        if address is not None and address.version == network.version and address in network:
            yield BridgeUser(port, str(address))
