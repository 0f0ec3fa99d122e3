"""IPIP devices: the packet as it is, behind a second IPv4 header. The route names the other end, so one device serves all.

Source: linux net/ipv4/ipip.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from cni_py.journal import note
from cni_py.kernel.device import ensure_device
from cni_py.netlink.attributes import attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

_LOCAL, _REMOTE, _TTL, _PMTUDISC = 2, 3, 4, 10  # IFLA_IPTUN_…


@dataclass(frozen=True, slots=True)
class Ipip:
    """A :class:`~cni_py.kernel.device.Device`. ``local``: the address that the outer packet is sent from.

    With a local address it is not ``tunl0``, which the kernel creates itself and which gets what no other device takes.
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


def device_data(local: IPv4Address) -> bytes:
    """Attributes: any remote end, for the route names it; TTL of the inner packet; may be fragmented on its way."""
    return attribute(_LOCAL, local.packed) + attribute(_REMOTE, bytes(4)) + attribute(_TTL, b"\0") + attribute(_PMTUDISC, b"\0")
