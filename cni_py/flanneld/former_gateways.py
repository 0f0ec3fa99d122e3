"""The pods' bridge after the node got another subnet: it keeps the former gateway's address, and each new pod is refused.

    "cni0" already has an IP address different from 10.244.5.1/24

How it works. flanneld knows the former subnets: by what was saved, by subnet.env, and by the addresses of the bridge that are
in the flannel network and not in the node's subnet. Such an address is deleted once no pod behind the bridge has an address of
its subnet, which the kernel says (``kernel/bridge_users.py``); as long as one has, it stays, and the log and the plugin's
error name the pods. What is not the first address of a subnet, or on another link, is not ours.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.own_devices import BRIDGE, own_devices
from cni_py.kernel.address import delete_address, list_addresses, list_host_addresses
from cni_py.kernel.bridge_users import users_of
from cni_py.kernel.link import list_links
from cni_py.netlink.socket import open_host
from cni_py.node.log import info, warning, warning_once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Interface, IPv6Interface, IPv6Network

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.stop import Stop

    Interface = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network

LOOK_SECONDS, LATE_SECONDS = 2.0, 30.0
"""Intervals while such an address is left, and then: an ADD that began with the former subnet may restore it."""
_SHOWN = 5
"""Pods that a message names."""


class FormerGateways:
    """Deletes the addresses of former subnets from the pods' bridge.

    Args:
        networks: of all pods, now.
        own: the node's subnets, now.
        former: those that it had, as far as is known.
    """

    def __init__(self, networks: Iterable[Network], own: Subnets, former: Iterable[Subnets]) -> None:
        self._networks, self._own = list(networks), own.each()
        self._former = {subnet for subnets in former for subnet in subnets.each()} - set(self._own)
        self._seen: set[str] = set()

    def present(self) -> list[Subnets]:
        """Return the former subnets whose gateways are still on the pods' bridge. Raises: CniError."""
        with open_host() as host:
            found = {address.network for _, _, address in self._found(host)}
        return [Subnets(ipv4=each) if isinstance(each, IPv4Network) else Subnets(ipv6=each) for each in sorted(found, key=str)]

    def run(self, stop: Stop) -> None:
        """Look again and again until none is left, or ``stop``."""
        for subnet in sorted(self._former, key=str):
            info(f"this node's subnet was {subnet} and is {', '.join(map(str, self._own))} now")
        while not stop.is_set():
            is_left = True
            try:
                is_left = self.look()
                if not is_left and not self._former:
                    return
            except CniError as fault:
                warning_once(f"addresses of former subnets could not be deleted: {fault}", self._seen)
            stop.wait(LOOK_SECONDS if is_left else LATE_SECONDS)

    def look(self) -> bool:
        """Delete what no pod uses. Returns: whether any address of a former subnet is left. Raises: CniError."""
        is_left = False
        with open_host() as host:
            for link, bridge, address in list(self._found(host)):
                users = users_of(host, bridge, address.network)
                if users:
                    is_left = True
                    names = ", ".join(dict.fromkeys(f"{user.port.name} {user.address}".strip() for user in users[:_SHOWN]))
                    more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
                    warning_once(
                        f"{link.name} keeps {address} of this node's former subnet, which pods use ({names}{more}):"
                        " new pods are refused until these have been deleted, for example by draining the node",
                        self._seen,
                    )
                    continue
                delete_address(host, link, address)
                warning(f"deleted {address} from {link.name}: it was this node's former subnet, and no pod uses it")
        return is_left

    def _found(self, host: Rtnl) -> Iterator[tuple[Link, Link, Interface]]:
        """Yield links of the pods' bridge, the bridge, and an address of a former subnet."""
        links, addresses = list_links(host), list_host_addresses(host)
        gateways = [subnet.network_address + 1 for subnet in (*self._own, *self._former)]
        own = own_devices(links, addresses, gateways)
        names = {link.name: link for link in links}
        for link in links:
            bridge = names.get(link.name.partition(".")[0], link)  # cni0.100 is the gateway of a VLAN of cni0
            if own.get(link.ifindex) == BRIDGE and bridge.kind == "bridge":
                for address in list_addresses(host, link):
                    if self._is_former(address):
                        yield link, bridge, address

    def _is_former(self, address: Interface) -> bool:
        subnet: Network = address.network
        if address.ip != subnet.network_address + 1 or subnet in self._own:
            return False
        return subnet in self._former or any(_is_part(subnet, network) for network in self._networks)


def _is_part(subnet: Network, network: Network) -> bool:
    return (
        subnet.version == network.version
        and subnet.prefixlen > network.prefixlen
        and subnet.network_address in network
        and subnet.num_addresses > 1
    )
