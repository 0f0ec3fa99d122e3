"""vxlan: a device per family whose entries are all made from the leases; nothing is flooded and nothing learnt.

How it works. A packet to a pod of another node meets one entry of each of three tables:

    route    10.244.85.0/24 via 10.244.85.0 dev flannel.1 onlink     the subnet's first address is the peer's end
    ARP      10.244.85.0 is at 32:30:10:b7:75:6c, permanent          its MAC address is in the peer's lease
    FDB      32:30:10:b7:75:6c dst 192.168.123.12, permanent         and so is its node's address

So a node costs three entries, and no broadcast ever leaves. With DirectRouting a peer on our own network gets
a plain route instead.

Owns: ``flannel.<VNI>`` and, for IPv6, ``flannel-v6.<VNI>``. An existing device that matches is reused with its MAC
address, so that a restart changes nothing for the peers. Source: flannel-io/flannel pkg/backend/vxlan.
"""

from __future__ import annotations

import re
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cni_py.errors import InvalidConfig
from cni_py.flanneld import backends
from cni_py.flanneld.backends import BackendConfig, families_lacking, of_other_type, pod_mtu
from cni_py.flanneld.lease import Attributes
from cni_py.flanneld.vtep_mac import stable_mac
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link
from cni_py.kernel.vxlan import Vxlan, find_vxlan
from cni_py.node.desired import DeviceAddress, Forwarding, Neighbour, Route, device_sysctls, forwarding
from cni_py.node.log import info

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.kernel.device import Device
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Address, Entry
    from cni_py.node.desired import Network as Subnet

TYPE = "vxlan"
OVERHEAD = {4: 50, 6: 70}
"""Bytes that the outer Ethernet, IP, UDP and VXLAN headers take, by the family of the outer packet."""
DEFAULT_PORT = 8472
NAME_LENGTH = 15
"""Bytes of a device's name, at most."""
NO_MAC = "00:00:00:00:00:00"
"""Entry of an FDB for whatever no other entry is for: a peer with it would receive what is for unknown nodes."""
_MAC = re.compile(r"[\da-f]{2}(:[\da-f]{2}){5}", re.ASCII | re.IGNORECASE)


class Config(BackendConfig):
    """``MTU``: of the outer packet; 0: the external interface's. ``Port`` 0: the kernel's, 8472."""

    vni: int = Field(
        1,
        alias="VNI",
        ge=1,
        lt=1 << 24,
        description="Number of the VXLAN, by which the device is named; so 9999999 at most, with IPv6 9999.",
    )
    port: int = Field(0, alias="Port", ge=0, lt=1 << 16, description="UDP port; 0: the kernel's, 8472.")
    mtu: int = Field(
        0, alias="MTU", ge=0, lt=1 << 16, description="MTU of the outer packet, bytes; 0: that of the external interface."
    )
    gbp: bool = Field(False, alias="GBP", description="Carry a group policy mark in each packet (VXLAN-GBP).")
    learning: bool = Field(False, alias="Learning", description="Let the kernel learn FDB entries from packets.")
    direct_routing: bool = Field(
        False, alias="DirectRouting", description="Use a plain route to nodes in the same layer 2 network."
    )

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


class Backend(backends.Backend):
    """See the package."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.network, self.external = config, network, external
        info(
            f"VXLAN config: VNI={config.vni} Port={config.port} GBP={_go(config.gbp)}"
            f" Learning={_go(config.learning)} DirectRouting={_go(config.direct_routing)}"
        )
        outer = config.mtu or external.mtu
        self._mtus = {
            version: pod_mtu(outer, OVERHEAD[version], version, f"the MTU of {external.name}")
            for version, is_used in ((4, network.ipv4), (6, network.ipv6))
            if is_used and external.source(version) is not None
        }
        self.mtu = min(self._mtus.values())
        self._vxlans: dict[int, Vxlan] = {}
        self._on_link: list[Any] = []
        self._hardware = ""

    @property
    def devices(self) -> Sequence[Device]:
        return tuple(self._vxlans.values())

    def prepare(self, rtnl: Rtnl, former: Attributes | None) -> None:
        """Choose the MAC addresses: an existing device keeps its own. One that has to be made gets that of the last lease.

        The peers send to it before they receive our lease. Not on a copy of the node, which has another address.
        """
        external = self.external
        link = find_link(rtnl, external.name)
        self._hardware = link.mac if link is not None else ""
        if self.config.direct_routing and link is not None:
            self._on_link = [address.network for address in list_addresses(rtnl, link)]
        if former and (former.public_ip, former.public_ipv6) != (external.public_ip, external.public_ipv6):
            former = None
        for version in self._mtus:
            name = device_name(self.config.vni, version)
            there = find_link(rtnl, name) if find_vxlan(rtnl, name) is not None else None
            mac = there.mac if there is not None else _former_mac(former, version) if former else ""
            self._vxlans[version] = self._device(version, name, mac)

    def _device(self, version: int, name: str, mac: str) -> Vxlan:
        local = self.external.source(version)
        public = self.external.public_ip if version == 4 else self.external.public_ipv6
        assert local is not None and public is not None, "else there is no device of this family"  # noqa: PT018
        return Vxlan(
            name=name,
            vni=self.config.vni,
            port=self.config.port or DEFAULT_PORT,
            local=local,
            underlay=self.external.ifindex,
            mac=mac or stable_mac(name, public, self._hardware),
            mtu=self._mtus[version],
            gbp=self.config.gbp,
            learning=self.config.learning,
        )

    def attributes(self) -> Attributes:
        data = {version: {"VNI": device.vni, "VtepMAC": device.mac} for version, device in self._vxlans.items()}
        return Attributes(
            public_ip=self.external.public_ip if 4 in data else None,
            public_ipv6=self.external.public_ipv6 if 6 in data else None,
            backend_type=TYPE,
            backend_data=data.get(4),
            backend_v6_data=data.get(6),
        )

    def own_entries(self, own: Lease) -> Sequence[Entry]:
        """Each device has its subnet's first address: what a packet of the node itself comes from."""
        entries: list[Entry] = [forwarding(version) for version in self._vxlans]
        for version, subnet in ((4, own.subnets.ipv4), (6, own.subnets.ipv6)):
            if version in self._vxlans and subnet is not None:
                name = self._vxlans[version].name
                entries += device_sysctls(name, has_ipv6=version == 6)
                entries.append(DeviceAddress(name, ip_interface(subnet.network_address)))
        return entries

    def peer_entries(self, lease: Lease) -> Iterable[tuple[int, Sequence[Entry]]]:
        """Three entries, or one where it is reached directly."""
        for device, subnet, remote, mac in self._ends(lease):
            if any(remote in network for network in self._on_link):
                yield subnet.version, (Route(subnet, self.external.name, remote),)
                continue
            first = subnet.network_address
            route = Route(subnet, device.name, first, onlink=True)
            yield subnet.version, (Neighbour(device.name, first, mac), Forwarding(device.name, mac, remote), route)

    def _ends(self, lease: Lease) -> Iterable[tuple[Vxlan, Subnet, Address, str]]:
        """Yield by family our device, the peer's subnet, its node's address, its device's MAC address."""
        peer = lease.attributes
        if peer.backend_type != TYPE:
            return
        for version, subnet, remote, data in (
            (4, lease.subnets.ipv4, peer.public_ip, peer.backend_data),
            (6, lease.subnets.ipv6, peer.public_ipv6, peer.backend_v6_data),
        ):
            mac = _mac_in(data)
            if version in self._vxlans and subnet is not None and remote is not None and mac:
                yield self._vxlans[version], subnet, remote, mac

    def faults(self, lease: Lease) -> Iterable[tuple[int, str]]:
        """A lease of another back end, of one family, or without the MAC address of a unicast receiver."""
        its, subnets = lease.attributes, lease.subnets
        if its.backend_type != TYPE:
            return of_other_type(lease, TYPE, self._vxlans, "ignoring")
        faults = families_lacking(lease, self._vxlans)
        lacking = {version for version, _ in faults}
        for version, subnet, data in ((4, subnets.ipv4, its.backend_data), (6, subnets.ipv6, its.backend_v6_data)):
            if version in self._vxlans and version not in lacking and not _mac_in(data):
                words = f"the lease of {subnet} has no MAC address of its VXLAN device: {data!r:.100}"
                faults.append((version, f"{words}; not reached by IPv{version}"))
        return faults


def device_name(vni: int, version: int) -> str:
    return f"flannel.{vni}" if version == 4 else f"flannel-v6.{vni}"


def _former_mac(former: Attributes, version: int) -> str:
    """Return that of the device in an earlier lease; "" where it says none."""
    return _mac_in(former.backend_data if version == 4 else former.backend_v6_data) if former.backend_type == TYPE else ""


def _mac_in(data: Any) -> str:
    """Return the MAC address in what a node publishes, in lower case; "" where it has none that one device can have."""
    mac = data.get("VtepMAC") if isinstance(data, dict) else None
    if not isinstance(mac, str) or _MAC.fullmatch(mac) is None:
        return ""
    is_group = int(mac[1], 16) & 1
    in_lower_case = mac.lower()
    if is_group or in_lower_case == NO_MAC:
        return ""
    return mac if mac == in_lower_case else in_lower_case  # one text, not two


def _go(value: bool) -> str:
    return "true" if value else "false"
