"""host-gw: a plain route per node, by its address on the network that both are on. The quickest way, without a tunnel.

Source: flannel-io/flannel pkg/backend/hostgw, route_network.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.errors import InvalidConfig
from cni_py.flanneld import backends
from cni_py.flanneld.backends import BackendConfig, families_lacking, of_other_type
from cni_py.flanneld.lease import Attributes
from cni_py.node.desired import Route, forwarding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.node.desired import Address, Entry

TYPE = "host-gw"


class Config(BackendConfig):
    """No keys of its own."""


class Backend(backends.Backend):
    """See the package."""

    def __init__(self, _: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.network, self.external, self.mtu = network, external, external.mtu
        ends: list[tuple[bool, Address | None, Address | None]] = [
            (network.ipv4, external.addr, external.public_ip),
            (network.ipv6, external.addr6, external.public_ipv6),
        ]
        for is_used, address, public in ends:
            if is_used and address != public:
                raise InvalidConfig(
                    "your PublicIP differs from interface IP, meaning that probably you're on a NAT,"
                    " which is not supported by host-gw backend",
                    f"{external.name} has {address}, the public address is {public}",
                    "use vxlan, or an interface that has the public address (-iface)",
                )

    def attributes(self) -> Attributes:
        return Attributes(
            public_ip=self.external.public_ip if self.network.ipv4 else None,
            public_ipv6=self.external.public_ipv6 if self.network.ipv6 else None,
            backend_type=TYPE,
        )

    def peer_entries(self, lease: Lease) -> Iterable[tuple[int, Sequence[Entry]]]:
        """A route to each of its subnets."""
        peer, subnets = lease.attributes, lease.subnets
        if peer.backend_type != TYPE:
            return
        if subnets.ipv4 and peer.public_ip and self.network.ipv4:
            yield 4, (forwarding(4), Route(subnets.ipv4, self.external.name, peer.public_ip))
        if subnets.ipv6 and peer.public_ipv6 and self.network.ipv6:
            yield 6, (forwarding(6), Route(subnets.ipv6, self.external.name, peer.public_ipv6))

    def faults(self, lease: Lease) -> Iterable[tuple[int, str]]:
        """A lease of another back end, or of one family."""
        versions = [network.version for network in self.network.networks]
        if lease.attributes.backend_type != TYPE:
            return of_other_type(lease, TYPE, versions)
        return families_lacking(lease, versions)
