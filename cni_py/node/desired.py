"""What a back end wants the kernel to hold: plain values, computed from the leases. ``reconcile.py`` makes it so."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from cni_py.kernel.neighbour import Forwarding, Neighbour
from cni_py.kernel.route import Route, blackhole
from cni_py.kernel.vxlan import Vxlan

__all__ = ["Address", "AddressWithPrefix", "Forwarding", "Neighbour", "Network", "Route", "Vxlan", "Wanted", "blackhole"]

Address = IPv4Address | IPv6Address
AddressWithPrefix = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """All of it. ``addresses``: with the device's name. A device of these has no other addresses and entries than these."""

    devices: tuple[Vxlan, ...] = ()
    addresses: frozenset[tuple[str, AddressWithPrefix]] = frozenset()
    routes: frozenset[Route] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    forwarding: frozenset[Forwarding] = frozenset()

    def sysctls(self) -> list[tuple[str, str]]:
        """Packets are forwarded in each family that has a way, and no router's word counts on a device of ours.

        One with an IPv6 address has IPv6 also where the host has it on few interfaces (``net.ipv6.conf.default.disable_ipv6``).
        """
        families = {route.dst.version for route in self.routes} | {address.version for _, address in self.addresses}
        wanted = [(name, "1") for version, name in FORWARDING.items() if version in families]
        with_ipv6 = sorted({name for name, address in self.addresses if address.version == 6})
        wanted += [(f"net/ipv6/conf/{name}/disable_ipv6", "0") for name in with_ipv6]
        for name in sorted({device.name for device in self.devices} | {name for name, _ in self.addresses}):
            wanted += [(f"net/ipv4/conf/{name}/forwarding", "1"), (f"net/ipv6/conf/{name}/accept_ra", "0")]
        return wanted
