"""vxlan: a device per family whose entries are all made from the leases; nothing is flooded and nothing learnt.

How it works. A packet to a pod of another node meets one entry of each of three tables:

    route    10.244.85.0/24 via 10.244.85.0 dev flannel.1 onlink     the subnet's first address is the peer's end
    ARP      10.244.85.0 is at 32:30:10:b7:75:6c, permanent          its MAC address is in the peer's lease
    FDB      32:30:10:b7:75:6c dst 192.168.123.12, permanent         and so is its node's address

So a node costs three entries, and no broadcast ever leaves. With DirectRouting a peer on our own network gets
a plain route instead.

Owns: ``flannel.<VNI>`` and, for IPv6, ``flannel-v6.<VNI>``. A device that is there and fits is adopted with its MAC
address, so that a restart changes nothing for the peers. Source: flannel-io/flannel pkg/backend/vxlan.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cni_py.errors import InvalidConfig
from cni_py.flanneld.backends import BackendConfig, pod_mtu
from cni_py.flanneld.lease import Attributes
from cni_py.flanneld.vtep_mac import stable_mac
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import delete_link, find_link
from cni_py.kernel.vxlan import find_vxlan
from cni_py.netlink.socket import open_host
from cni_py.node.desired import Forwarding, Neighbour, Route, Vxlan, Wanted
from cni_py.node.log import info, warning_once

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.node.desired import Address
    from cni_py.node.desired import Network as Subnet

TYPE = "vxlan"
OVERHEAD = {4: 50, 6: 70}
"""Bytes that the outer Ethernet, IP, UDP and VXLAN headers take, by the family of the outer packet."""
DEFAULT_PORT = 8472
NAME_LENGTH = 15
"""Bytes of a device's name, at most."""
_MAC = re.compile(r"[\da-f]{2}(:[\da-f]{2}){5}", re.ASCII | re.IGNORECASE)


class Config(BackendConfig):
    """``MTU``: of the outer packet; 0: the external interface's. ``Port`` 0: the kernel's, 8472."""

    vni: int = Field(1, alias="VNI", ge=1, lt=1 << 24)
    port: int = Field(0, alias="Port", ge=0, lt=1 << 16)
    mtu: int = Field(0, alias="MTU", ge=0, lt=1 << 16)
    gbp: bool = Field(False, alias="GBP")
    learning: bool = Field(False, alias="Learning")
    direct_routing: bool = Field(False, alias="DirectRouting")

    def check_network(self, network: NetworkConfig) -> None:
        for version in (version for version, is_on in ((4, network.ipv4), (6, network.ipv6)) if is_on):
            if self.mtu:
                pod_mtu(self.mtu, OVERHEAD[version], version, '"Backend.MTU"')
            name = device_name(self.vni, version)
            if len(name) > NAME_LENGTH:
                raise InvalidConfig(
                    f'"Backend.VNI": {self.vni} is too large for IPv{version}',
                    f'the device would be "{name}", and a name has {NAME_LENGTH} characters at most',
                )


class Backend:
    """See the package."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.network, self.external = config, network, external
        info(
            f"VXLAN config: VNI={config.vni} Port={config.port} GBP={_go(config.gbp)}"
            f" Learning={_go(config.learning)} DirectRouting={_go(config.direct_routing)}"
        )
        self.devices: dict[int, Vxlan] = {}
        self._new: set[int] = set()
        self._said: set[str] = set()
        self._on_link: list[Any] = []
        with open_host() as host:
            link = find_link(host, external.name)
            if config.direct_routing and link is not None:
                self._on_link = [address.network for address in list_addresses(host, link)]
            for version, public in ((4, external.public_ip), (6, external.public_ipv6)):
                local = external.source(version)
                if local is not None and public is not None and (network.ipv4 if version == 4 else network.ipv6):
                    self.devices[version] = self._device(host, version, local, public)
        self.mtu = min(device.mtu for device in self.devices.values())

    def _device(self, host: Any, version: int, local: Address, public: Address) -> Vxlan:
        name = device_name(self.config.vni, version)
        outer = self.config.mtu or self.external.mtu
        mtu = pod_mtu(outer, OVERHEAD[version], version, f"the MTU of {self.external.name}")
        there = find_link(host, name) if find_vxlan(host, name) is not None else None
        if there is None:
            self._new.add(version)
        return Vxlan(
            name=name,
            vni=self.config.vni,
            port=self.config.port or DEFAULT_PORT,
            local=local,
            underlay=self.external.ifindex,
            mac=there.mac if there is not None else stable_mac(name, public),
            mtu=mtu,
            gbp=self.config.gbp,
            learning=self.config.learning,
        )

    def restore(self, former: Attributes) -> None:
        """A device that has to be made gets the MAC address of the last one: the peers send to it before they hear of us.

        Not on a copy of the node, which another address tells.
        """
        if (former.public_ip, former.public_ipv6) != (self.external.public_ip, self.external.public_ipv6):
            return
        for version, data in ((4, former.backend_data), (6, former.backend_v6_data)):
            mac = data.get("VtepMAC") if isinstance(data, dict) and former.backend_type == TYPE else None
            if version in self._new and mac is not None and _is_mac(mac):
                self.devices[version] = replace(self.devices[version], mac=mac.lower())

    def attributes(self) -> Attributes:
        data = {version: {"VNI": device.vni, "VtepMAC": device.mac} for version, device in self.devices.items()}
        return Attributes(
            public_ip=self.external.public_ip if 4 in data else None,
            public_ipv6=self.external.public_ipv6 if 6 in data else None,
            backend_type=TYPE,
            backend_data=data.get(4),
            backend_v6_data=data.get(6),
        )

    def wanted(self, own: Lease, leases: Iterable[Lease]) -> Wanted:
        """The devices with their address, and three entries a peer (one where it is reached directly)."""
        routes, neighbours, forwarding = set(), set(), set()
        remotes: dict[tuple[str, str], Address] = {}
        for lease in leases:
            if lease.subnets == own.subnets:
                continue
            for device, subnet, remote, mac in self._ends(lease):
                if any(remote in network for network in self._on_link):
                    routes.add(Route(subnet, self.external.name, remote))
                    continue
                if remotes.setdefault((device.name, mac), remote) != remote:  # the FDB has one node for a MAC address
                    other = remotes[device.name, mac]
                    warning_once(f"{subnet} of {remote} has the MAC address {mac} of {other}: not reached", self._said)
                    continue
                first = subnet.network_address
                routes.add(Route(subnet, device.name, first, onlink=True))
                neighbours.add(Neighbour(device.name, first, mac))
                forwarding.add(Forwarding(device.name, mac, remote))
        return Wanted(
            devices=tuple(self.devices.values()),
            addresses=frozenset(self._addresses(own)),
            routes=frozenset(routes),
            neighbours=frozenset(neighbours),
            forwarding=frozenset(forwarding),
        )

    def _addresses(self, own: Lease) -> Iterable[tuple[str, IPv4Interface | IPv6Interface]]:
        """Each device has its subnet's first address: what a packet of the node itself comes from."""
        if 4 in self.devices and own.subnets.ipv4:
            yield self.devices[4].name, IPv4Interface(f"{own.subnets.ipv4.network_address}/32")
        if 6 in self.devices and own.subnets.ipv6:
            yield self.devices[6].name, IPv6Interface(f"{own.subnets.ipv6.network_address}/128")

    def _ends(self, lease: Lease) -> Iterable[tuple[Vxlan, Subnet, Address, str]]:
        """By family: our device, the peer's subnet, its node's address, its device's MAC address."""
        peer = lease.attributes
        if peer.backend_type != TYPE:
            warning_once(f"ignoring non-vxlan subnet {lease.subnets}: type={peer.backend_type}", self._said)
            return
        for version, subnet, remote, data in (
            (4, lease.subnets.ipv4, peer.public_ip, peer.backend_data),
            (6, lease.subnets.ipv6, peer.public_ipv6, peer.backend_v6_data),
        ):
            if version not in self.devices or subnet is None or remote is None:
                continue
            mac = data.get("VtepMAC") if isinstance(data, dict) else None
            if mac is None or not _is_mac(mac):
                warning_once(
                    f"the lease of {subnet} has no MAC address of its VXLAN device: {data!r:.100}; not reached", self._said
                )
                continue
            yield self.devices[version], subnet, remote, mac.lower()

    def cleanup(self) -> None:
        with open_host() as host:
            for device in self.devices.values():
                delete_link(host, device.name)


def device_name(vni: int, version: int) -> str:
    return f"flannel.{vni}" if version == 4 else f"flannel-v6.{vni}"


def _is_mac(text: object) -> bool:
    return isinstance(text, str) and _MAC.fullmatch(text) is not None


def _go(value: bool) -> str:
    return "true" if value else "false"
