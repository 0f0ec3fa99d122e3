"""IPIP devices: a packet behind a second IPv4 header. The route names the other end, so there is one device for all peers.

Source: linux net/ipv4/ipip.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from cni_py.journal import note
from cni_py.kernel.device import ensure_device
from cni_py.netlink.attributes import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl


@dataclass(frozen=True, slots=True)
class Ipip:
    """A :class:`~cni_py.kernel.device.Device`. ``local``: the address that the outer packet is sent from.

    With a local address it is not ``tunl0``, which the kernel creates itself and which receives what no other device does.
    """

    name: str
    local: IPv4Address
    mtu: int

    def ensure(self, rtnl: Rtnl, warn: Callable[[str], None] = note) -> Link:  # noqa: ARG002 — recreating it is silent
        """Raises: KernelRefused, NotAvailable."""
        words = ("local", str(self.local), "remote", "any", "ttl", "inherit", "nopmtudisc")
        return ensure_device(rtnl, self.name, "ipip", self.mtu, device_data(self.local), words)

    def matches(self, link: Link) -> bool:
        return link.kind == "ipip" and link.mtu == self.mtu and link.is_up


def device_data(local: IPv4Address) -> Message:
    """Return the attributes: any remote end, for the route names it; TTL of the inner packet; fragments are allowed."""
    return {"IFLA_IPIP_LOCAL": local.packed, "IFLA_IPIP_REMOTE": bytes(4), "IFLA_IPIP_TTL": 0, "IFLA_IPIP_PMTUDISC": 0}
