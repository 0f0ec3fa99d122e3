"""Compares ``subnet.env`` with itself, with the bridge and with flannel's devices, for ``cni-py status``. Changes nothing.

A plugin's STATUS says whether the next ADD can succeed. That pods then reach no other node, or lose large packets, no
plugin can see: the files and devices are right one by one, and contradict each other.
"""

from __future__ import annotations

from cni_py import subnet_env
from cni_py.errors import CniError, NotAvailable
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link, list_links
from cni_py.netlink.socket import open_host
from cni_py.plural import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.runtime.network_config import Network
    from cni_py.subnet_env import SubnetEnv

SUBNET_FILE = "/run/flannel/subnet.env"
_LOG = "see what flanneld leased, and wrote: journalctl -u flanneld"


def contradictions(network: Network) -> list[NotAvailable]:
    """Return what contradicts subnet.env; empty for a network without flannel, or whose subnet.env cannot be read."""
    found: list[NotAvailable] = []
    for plugin in network.plugins:
        if plugin["type"] == "flannel":
            path = str(plugin.get("subnetFile") or SUBNET_FILE)
            try:
                env = subnet_env.read(path)
            except CniError:  # STATUS of the plugin has reported it
                continue
            found += _in_file(path, env)
            with open_host() as host:
                found += [*_in_bridge(host, path, env, plugin), *_in_devices(host, path, env)]
    return found


def _in_file(path: str, env: SubnetEnv) -> Iterator[NotAvailable]:
    for subnet in env.subnets:
        networks = [network for network in env.networks if network.version == subnet.version]
        if not any(subnet.subnet_of(network) for network in networks):  # type: ignore[arg-type]  # both of one family
            whole = ", ".join(map(str, networks)) or "none"
            yield NotAvailable(
                f"{path} contradicts itself: the subnet {subnet} is outside the network",
                f"the network is {whole}: other nodes do not route to this subnet",
                _LOG,
            )


def _in_bridge(host: Rtnl, path: str, env: SubnetEnv, plugin: Mapping[str, Any]) -> Iterator[NotAvailable]:
    delegate = plugin.get("delegate") or {}
    name = str(delegate.get("bridge") or "cni0")
    bridge = find_link(host, name) if delegate.get("type", "bridge") == "bridge" else None
    if bridge is None:
        return
    here = [address for address in list_addresses(host, bridge) if not address.is_link_local]
    pods = len([link for link in list_links(host) if link.master == bridge.ifindex])
    is_gateway = delegate.get("isGateway", True) or delegate.get("isDefaultGateway", False)
    for subnet in env.subnets:
        if pods and is_gateway and not any(address.version == subnet.version for address in here):
            gateway = f"{next(subnet.hosts())}/{subnet.prefixlen}"
            yield NotAvailable(
                f'"{name}" has no address of the subnet of {path}, {subnet}',
                f"it is the gateway of {counted(pods, 'pod')}, which reach nothing beyond the node",
                f"ip addr add {gateway} dev {name}",
            )
        others = [str(address) for address in here if address.version == subnet.version and address.network != subnet]
        if others and len(others) == len([address for address in here if address.version == subnet.version]):
            delete = "; ".join(f"ip addr del {address} dev {name}" for address in others)
            yield NotAvailable(
                f'"{name}" has {", ".join(others)}, and the subnet of {path} is {subnet}',
                f"the node's subnet has changed, and no new pod can be attached; {counted(pods, 'pod')} of the former one",
                "list those pods: cni-py explain; delete them and create them again" if pods else delete,
            )


def _in_devices(host: Rtnl, path: str, env: SubnetEnv) -> Iterator[NotAvailable]:
    for link in list_links(host):
        if not link.name.startswith("flannel") or not _is_of_network(host, link, env):
            continue
        if env.mtu > link.mtu:
            yield NotAvailable(
                f'FLANNEL_MTU={env.mtu} in {path} is larger than the MTU of "{link.name}", {link.mtu}',
                "packets of pods that are larger than the device takes are lost between nodes",
                _LOG,
            )
        strange = [
            address
            for address in list_addresses(host, link)
            if not address.is_link_local and not any(address.ip in subnet for subnet in env.subnets)
        ]
        for address in strange:
            yield NotAvailable(
                f'"{link.name}" has {address}, which is in no subnet of {path}',
                f"the subnets are {', '.join(map(str, env.subnets))}: flanneld has leased another one",
                _LOG,
            )


def _is_of_network(host: Rtnl, link: Link, env: SubnetEnv) -> bool:
    """Return whether the device is this network's: a node may have another flannel network."""
    return any(address.ip in network for address in list_addresses(host, link) for network in env.networks)
