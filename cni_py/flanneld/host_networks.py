"""The networks of the host's own links, and what of the flannel network would take their packets away.

    HostNetwork(network, device)                       10.0.5.0/24 of eth0
    list_host_networks(gateways=()) -> frozenset       of the namespace of the calling thread
    warnings(networks, found) -> list[str]             the flannel network as a whole
    HostNetworks                                       what the session asks: one lease, one route

How it works. The kernel prefers the longer prefix. A subnet inside the host's LAN takes a part of it (router, etcd, peers)
into the tunnel, or makes cni0 a second router in it; a host network inside a peer's subnet hides pods of that peer. So a
subnet that overlaps a network of the host's links is not leased here, and none of another node is routed. Both can be had
with ``-host-network-overlap=warn``. What ran before goes on, and the log says so: the node's own subnet, routes that were in
the kernel or saved when flanneld started, and routes that overlap the same network as our own subnet.

A network is what an address of a link makes reachable on it. Single addresses (/32, /128) hide only themselves: they are
avoided in choosing, no more. Links that flanneld or the plugins created do not count (``own_devices.py``); docker0 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.flanneld.own_devices import own_devices
from cni_py.kernel.address import have_overlap, list_host_addresses
from cni_py.kernel.link import list_links
from cni_py.kernel.route import list_routes
from cni_py.netlink.socket import open_host
from cni_py.node.log import warning_once

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.flanneld.lease import Subnets
    from cni_py.flanneld.options import Options

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

OPTION = "-host-network-overlap=warn"
MOVE = 'it is kept, for pods may run on it; how to move: docs/flanneld.md, "The host\'s own networks"'
_SHOWN = 10
"""Networks of a host that a message names; one with Docker has hundreds of them."""


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A network that an address of this link makes reachable on it."""

    network: Network
    device: str

    def __str__(self) -> str:
        return f"{self.network} of {self.device}"

    @property
    def is_single(self) -> bool:
        """Return whether it is a single address, not a network."""
        return self.network.prefixlen == self.network.max_prefixlen


def list_host_networks(gateways: Collection[Address] = ()) -> frozenset[HostNetwork]:
    """List the networks of links that are not ours; ``gateways``: addresses of the pods' bridge. Raises: KernelRefused."""
    with open_host() as host:
        links, addresses = list_links(host), list_host_addresses(host)
    own = own_devices(links, addresses, gateways)
    names = {link.ifindex: link.name for link in links if link.ifindex not in own}
    return frozenset(
        HostNetwork(at.network, names[at.ifindex]) for at in addresses if at.ifindex in names and not at.network.is_link_local
    )


def _routed() -> set[Network]:
    """List the destinations of routes that the kernel did not create itself. Raises: KernelRefused."""
    with open_host() as host:
        return {route.dst for route in list_routes(host, protocol=0)}


def overlapping(network: Network, found: Iterable[HostNetwork]) -> list[HostNetwork]:
    """Return those of ``found`` that share an address with the network, in order."""
    shared = [each for each in found if each.network.version == network.version and have_overlap(each.network, network)]
    return sorted(shared, key=lambda each: (int(each.network.network_address), each.network.prefixlen, each.device))


def in_words(found: Collection[HostNetwork]) -> str:
    shown = ", ".join(str(each) for each in list(found)[:_SHOWN])
    return f"{shown} and {len(found) - _SHOWN} more" if len(found) > _SHOWN else shown


def warnings(networks: Iterable[Network], found: Collection[HostNetwork], refuses: bool = True) -> list[str]:
    """Return the warnings about a flannel network on this host, a line for each family and case."""
    then = f"a subnet that overlaps them takes their packets ({OPTION})"
    if refuses:
        then = "a subnet that overlaps them is not leased here, and none of another node is routed"
    lines = []
    for network in networks:
        shared = [each for each in overlapping(network, found) if not each.is_single]
        around = [each for each in shared if each.network.prefixlen <= network.prefixlen]
        inside = [each for each in shared if each not in around]
        own = "networks of this host's own links"
        if around:
            words = f"the flannel network {network} and every subnet of it is inside {in_words(around)}, {own}"
            lines.append(f"{words}: {then}; use another Network{'' if not refuses else f', or {OPTION}'}")
        if inside:
            lines.append(f"the flannel network {network} contains {in_words(inside)}, {own}: {then}")
    return lines


def warnings_here(networks: Iterable[Network]) -> list[str]:
    """Return the same for the host of this process; empty if the kernel cannot be asked."""
    try:
        return warnings(networks, list_host_networks())
    except CniError:
        return []


class HostNetworks:
    """The host's networks as a session needs them. ``refuses``: a new overlap is refused, else it is a warning."""

    def __init__(self, options: Options) -> None:
        self.refuses = options.host_network_overlap == "refuse"
        self._gateways: frozenset[Address] = frozenset()
        self._has_begun = False
        self._said: set[str] = set()
        self._former: frozenset[tuple[Network, HostNetwork]] = frozenset()
        self._lived_with: frozenset[HostNetwork] = frozenset()
        self.found: frozenset[HostNetwork] = frozenset()
        """The host's networks at the last look."""

    def look(self, own: Subnets | None = None) -> bool:
        """Read the host's networks; whether they are others than before. ``own``: the node's subnets. Raises: KernelRefused."""
        if own is not None:
            self._gateways = frozenset(subnet.network_address + 1 for subnet in own.each())
        found = list_host_networks(self._gateways)
        is_new, self.found = found != self.found, found
        return is_new

    def warn(self, networks: Iterable[Network]) -> None:
        """Log once what the flannel network as a whole means on this host."""
        for line in warnings(networks, self.found, self.refuses):
            warning_once(line, self._said)

    def begin(self, networks: Sequence[Network], own: Subnets | None, former: Iterable[Subnets]) -> None:
        """Look, and warn; with the first call, keep what overlaps now and was routed before. Raises: KernelRefused.

        Args:
            networks: the flannel network.
            own: this node's subnets, as far as they are known.
            former: subnets that were saved; those to which the kernel has a route are added.
        """
        self.look(own)
        self.warn(networks)
        if not self._has_begun and any(overlapping(network, self.found) for network in networks):
            saved = {subnet for subnets in former for subnet in subnets.each()}
            self.keep(saved | _routed())
        self._has_begun = True

    def keep(self, former: Iterable[Network]) -> None:
        """Go on routing these where they overlap what the host has now."""
        self._former = frozenset((subnet, each) for subnet in former for each in self._overlapping(subnet))

    def why_not(self, subnets: Subnets) -> str:
        """Return why another node's subnets are not routed; empty: they are, with a warning if they overlap all the same."""
        for subnet in subnets.each():
            for each in self._overlapping(subnet):
                if self.refuses and (subnet, each) not in self._former and each not in self._lived_with:
                    return f"it overlaps {each}, a network of this host itself; {OPTION} routes it all the same"
                reason = "so does our own subnet" if each in self._lived_with else "it was routed before"
                reason = reason if self.refuses else OPTION
                warning_once(
                    f"routing {subnet} although it overlaps {each}, a network of this host itself: {reason}", self._said
                )
        return ""

    def start_on(self, subnets: Subnets) -> None:
        """Begin with these as the node's own. One that overlaps a host network says that the cluster lives with that."""
        self.look(subnets)
        self._lived_with = frozenset(each for subnet in subnets.each() for each in self._overlapping(subnet))
        self.warn_of_own(subnets)

    def warn_of_own(self, subnets: Subnets) -> None:
        """Log once that the node's own subnet overlaps: it is kept, for its pods run on it."""
        for subnet in subnets.each():
            for each in self._overlapping(subnet):
                words = f"our own subnet {subnet} overlaps {each}, a network of this host itself"
                warning_once(f"{words}: its pods and that network take each other's packets; {MOVE}", self._said)

    def _overlapping(self, subnet: Network) -> list[HostNetwork]:
        return [each for each in overlapping(subnet, self.found) if not each.is_single]
