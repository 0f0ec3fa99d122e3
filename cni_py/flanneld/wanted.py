"""What a back end wants the kernel to hold: plain values, computed from the leases. ``reconcile.py`` makes it so."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from cni_py.kernel.neighbour import Forwarding, Neighbour
from cni_py.kernel.routes import Route, blackhole
from cni_py.kernel.vxlan import Vxlan

__all__ = ["Address", "AddressWithPrefix", "Forwarding", "Neighbour", "Network", "Route", "Vxlan", "Wanted", "blackhole"]

Address = IPv4Address | IPv6Address
AddressWithPrefix = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Wanted:
    """All of it. ``addresses``: with the device's name. A device of these has no other addresses and entries than these."""

    devices: tuple[Vxlan, ...] = ()
    addresses: frozenset[tuple[str, AddressWithPrefix]] = frozenset()
    routes: frozenset[Route] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    forwarding: frozenset[Forwarding] = frozenset()
