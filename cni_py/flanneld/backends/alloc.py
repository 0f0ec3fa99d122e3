"""alloc: the node gets a subnet and nothing else; another program makes the routes (a cloud's route table).

Source: flannel-io/flannel pkg/backend/alloc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.flanneld import backends
from cni_py.flanneld.backends import BackendConfig
from cni_py.flanneld.lease import Attributes

if TYPE_CHECKING:
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.network import NetworkConfig

TYPE = "alloc"


class Config(BackendConfig):
    """No keys of its own."""


class Backend(backends.Backend):
    """See the package."""

    def __init__(self, _: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.network, self.external, self.mtu = network, external, external.mtu

    def attributes(self) -> Attributes:
        """Go-compatible: without a back end's type (pkg/backend/alloc/alloc.go)."""
        return Attributes(
            public_ip=self.external.public_ip if self.network.ipv4 else None,
            public_ipv6=self.external.public_ipv6 if self.network.ipv6 else None,
        )
