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
from cni_py.flanneld import backends
from cni_py.flanneld.backends import BackendConfig, families_lacking, of_other_type
from cni_py.flanneld.lease import Attributes
from cni_py.kernel.address import list_addresses
from cni_py.kernel.ipip import Ipip
from cni_py.kernel.link import find_link
from cni_py.node.desired import DeviceAddress, Route, device_sysctls, forwarding
from cni_py.node.log import info, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.kernel.device import Device
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Entry

TYPE = "ipip"
DEVICE = "flannel.ipip"
OVERHEAD = 20


class Config(BackendConfig):
    direct_routing: bool = Field(
        False, alias="DirectRouting", description="Use a plain route to nodes in the same layer 2 network."
    )

    def check_network(self, network: NetworkConfig) -> None:
        if network.ipv6:
            raise UnsupportedField("the ipip back end carries IPv4 alone", '"EnableIPv6" is true', 'use "vxlan" for IPv6')


class Backend(backends.Backend):
    """See the package."""

    def __init__(self, config: Config, _: NetworkConfig, external: ExternalInterface) -> None:
        if external.addr is None:
            raise InvalidConfig(f"{external.name} has no IPv4 address to send from")
        if external.mtu - OVERHEAD < 576:
            raise InvalidConfig(f"MTU {external.mtu} of iface {external.name} is too small for ipip mode to work")
        info(f"IPIP config: DirectRouting={'true' if config.direct_routing else 'false'}")
        self.config, self.external, self.mtu = config, external, external.mtu - OVERHEAD
        self._device = Ipip(DEVICE, external.addr, self.mtu)
        self._on_link: list[Any] = []

    @property
    def devices(self) -> Sequence[Device]:
        return (self._device,)

    def prepare(self, rtnl: Rtnl, former: Attributes | None) -> None:  # noqa: ARG002
        self._device.ensure(rtnl, warning)
        link = find_link(rtnl, self.external.name) if self.config.direct_routing else None
        self._on_link = [address.network for address in list_addresses(rtnl, link)] if link else []

    def attributes(self) -> Attributes:
        return Attributes(public_ip=self.external.public_ip, backend_type=TYPE)

    def own_entries(self, own: Lease) -> Sequence[Entry]:
        """The device's address."""
        if own.subnets.ipv4 is None:
            return ()
        address = DeviceAddress(DEVICE, IPv4Interface(own.subnets.ipv4.network_address))
        return (forwarding(4), *device_sysctls(DEVICE, has_ipv6=False), address)

    def peer_entries(self, lease: Lease) -> Iterable[tuple[int, Sequence[Entry]]]:
        """A route."""
        subnet, remote = lease.subnets.ipv4, lease.attributes.public_ip
        if subnet is None or remote is None or lease.attributes.backend_type != TYPE:
            return
        if any(remote in network for network in self._on_link):
            yield 4, (Route(subnet, self.external.name, remote),)
        else:
            yield 4, (Route(subnet, DEVICE, remote, onlink=True),)

    def faults(self, lease: Lease) -> Iterable[tuple[int, str]]:
        """A lease of another back end, or of the other family."""
        return families_lacking(lease, (4,)) if lease.attributes.backend_type == TYPE else of_other_type(lease, TYPE, (4,))
