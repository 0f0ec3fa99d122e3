"""Links of the host that flanneld and the plugins created: none of them leads to another node.

    own_devices(links, addresses, gateways) -> {ifindex: "the bridge of the pods", …}        pure

How it works. A link is ours by its name, by the mark that the plugins give a pod's host end, or by what it does: a bridge with
the address that subnet.env says, or whose only ports are pods' host ends. Never by its kind alone: in kind, k3d and our lab a
node's eth0 is a veth, and a bridge with a port to the network is often the node's own interface.

Source: containernetworking/plugins pkg/ip/link_linux.go (RandomVethName), plugins/main/bridge/bridge.go.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from ipaddress import IPv4Address, IPv6Address

    from cni_py.kernel.address import HostAddress
    from cni_py.kernel.link import Link

FLANNELD, BRIDGE, HOST_END = "a device of flanneld", "the bridge of the pods", "the host end of a pod's interface"
_FLANNELD = re.compile(r"flannel([.-]|\d)")
_BRIDGE = re.compile(r"cni0(\.\d+)?")
"""The flannel plugin's bridge, and its gateways in VLANs."""
_HOST_END = re.compile(r"veth[\da-f]{8}")
_MARK = "cni:"


def own_devices(
    links: Iterable[Link], addresses: Iterable[HostAddress], gateways: Collection[IPv4Address | IPv6Address]
) -> dict[int, str]:
    """Return what each of our links is, by ifindex. ``gateways``: the addresses in subnet.env."""
    links = list(links)
    bridges = {link.ifindex for link in links if link.kind == "bridge"}
    with_gateway = bridges & {at.ifindex for at in addresses if at.address in gateways}
    ports: defaultdict[int, list[Link]] = defaultdict(list)
    for link in links:
        ports[link.master].append(link)
    found = {link.ifindex: _by_itself(link) or (BRIDGE if link.ifindex in with_gateway else "") for link in links}
    for link in links:
        if (
            not found[link.ifindex]
            and link.kind == "bridge"
            and all(found[port.ifindex] for port in ports[link.ifindex] or [link])
        ):
            found[link.ifindex] = BRIDGE
    for link in links:
        if not found[link.ifindex] and found.get(link.master) == BRIDGE and link.kind == "veth":
            found[link.ifindex] = HOST_END
    return {ifindex: what for ifindex, what in found.items() if what}


def _by_itself(link: Link) -> str:
    if _FLANNELD.match(link.name):
        return FLANNELD
    if _BRIDGE.fullmatch(link.name):
        return BRIDGE
    is_host_end = any(name.startswith(_MARK) for name in (*link.altnames, link.alias)) or (
        link.kind == "veth" and _HOST_END.fullmatch(link.name)
    )
    return HOST_END if is_host_end else ""
