"""ipip: the packet of a pod goes as it is, behind a second IPv4 header of 20 bytes. IPv4 alone.

A route per node, by a device that all share: ``10.244.85.0/24 via 192.168.123.12 dev flannel.ipip onlink``. The
gateway is the address that the second header gets. With DirectRouting a peer on our own network gets a plain route.

Owns: ``flannel.ipip``. It has a local address, unlike ``tunl0``, which the kernel makes of itself and which gets what
no other device takes. Source: flannel-io/flannel pkg/backend/ipip.
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cni_py.errors import InvalidConfig, UnsupportedField
from cni_py.flanneld.backends import BackendConfig
from cni_py.flanneld.backends.keeping import keep
from cni_py.flanneld.lease import Attributes
from cni_py.kernel.address import list_addresses
from cni_py.kernel.device import ensure_device
from cni_py.kernel.link import delete_link, find_link
from cni_py.netlink.attributes import Message
from cni_py.netlink.socket import open_host
from cni_py.node.desired import Route, Wanted
from cni_py.node.log import info, warning_once

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address
    from threading import Event

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig

TYPE = "ipip"
DEVICE = "flannel.ipip"
OVERHEAD = 20


class Config(BackendConfig):
    direct_routing: bool = Field(False, alias="DirectRouting")

    def check_network(self, network: NetworkConfig) -> None:
        if network.ipv6:
            raise UnsupportedField("the ipip back end carries IPv4 alone", '"EnableIPv6" is true', 'use "vxlan" for IPv6')


class Backend:
    """See the package."""

    def __init__(self, config: Config, _: NetworkConfig, external: ExternalInterface) -> None:
        if external.addr is None:
            raise InvalidConfig(f"{external.name} has no IPv4 address to send from")
        if external.mtu - OVERHEAD < 576:
            raise InvalidConfig(f"MTU {external.mtu} of iface {external.name} is too small for ipip mode to work")
        info(f"IPIP config: DirectRouting={'true' if config.direct_routing else 'false'}")
        self.external, self.local, self.mtu = external, external.addr, external.mtu - OVERHEAD
        self._on_link: list[Any] = []
        self._said: set[str] = set()
        if config.direct_routing:
            with open_host() as host:
                link = find_link(host, external.name)
                self._on_link = [address.network for address in list_addresses(host, link)] if link else []

    def attributes(self) -> Attributes:
        """The device is made here: a kernel without it is refused before there is a lease. Raises: KernelRefused."""
        self._ensure_device()
        return Attributes(public_ip=self.external.public_ip, backend_type=TYPE)

    def _ensure_device(self) -> None:
        data = device_data(self.local)
        words = ("local", str(self.local), "remote", "any", "ttl", "inherit", "nopmtudisc")
        with open_host() as host:
            ensure_device(host, DEVICE, "ipip", self.mtu, data, words)

    def wanted(self, own: Lease, leases: Iterable[Lease]) -> Wanted:
        """The device's address and a route to each peer."""
        routes = set()
        for lease in leases:
            subnet, remote = lease.subnets.ipv4, lease.attributes.public_ip
            if lease.subnets == own.subnets or subnet is None or remote is None:
                continue
            if lease.attributes.backend_type != TYPE:
                warning_once(f"Ignoring non-ipip subnet {subnet}: type={lease.attributes.backend_type}", self._said)
            elif any(remote in network for network in self._on_link):
                routes.add(Route(subnet, self.external.name, remote))
            else:
                routes.add(Route(subnet, DEVICE, remote, onlink=True))
        addresses = {(DEVICE, IPv4Interface(own.subnets.ipv4.network_address))} if own.subnets.ipv4 else set()
        return Wanted(addresses=frozenset(addresses), routes=frozenset(routes))

    def run(self, stop: Event) -> None:
        """Put the device back where somebody deletes or changes it; its address and routes are the reconciler's."""
        keep(stop, self._ensure_device)

    def cleanup(self) -> None:
        with open_host() as host:
            delete_link(host, DEVICE)


def device_data(local: IPv4Address) -> Message:
    """Any remote end, for the route names it; TTL of the inner packet; may be fragmented on its way."""
    return {"IFLA_IPIP_LOCAL": local.packed, "IFLA_IPIP_REMOTE": bytes(4), "IFLA_IPIP_TTL": 0, "IFLA_IPIP_PMTUDISC": 0}
