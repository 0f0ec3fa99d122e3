"""wireguard: what goes to another node is encrypted, by the kernel. IPv4, IPv6 and both.

How it works. The whole network is routed to the device, which knows each node as a peer: its public key (in its
lease), its address, and its subnets. These choose the peer of a packet that goes out, and a packet that comes in is
taken only from the peer that has its source.

Modes: ``separate``, a device for each family; or one device, whose outer packets are IPv4 (``ipv4``), IPv6
(``ipv6``), or what seems to get through (``auto``).

Owns: ``flannel-wg``, ``flannel-wg-v6``; the key in ``/run/flannel/wgkey`` or ``$WIREGUARD_KEY_FILE``, made where
there is none. Unlike in Go the devices are kept from one start to the next, and when flanneld ends; and with one
device its port is published for IPv6 too (Go: ListenPortV6, where nothing listens).
Source: flannel-io/flannel pkg/backend/wireguard.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from dataclasses import replace
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cni_py import files
from cni_py.errors import InvalidConfig, IOFailure
from cni_py.flanneld import backends
from cni_py.flanneld.backends import BackendConfig, families_lacking, lacks, of_other_type, pod_mtu
from cni_py.flanneld.lease import Attributes
from cni_py.kernel.wireguard import KEY_BYTES, Peer, WireGuardDevice
from cni_py.node.desired import DeviceAddress, Route, device_sysctls, forwarding
from cni_py.node.log import info, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.flanneld.backends import Change
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.kernel.device import Device
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Address, Entry
    from cni_py.node.desired import Network as Subnet

TYPE = "wireguard"
DEVICE, DEVICE_V6 = "flannel-wg", "flannel-wg-v6"
KEY_PATH = "/run/flannel/wgkey"
OVERHEAD = 80
"""Bytes: IPv6 header 40, UDP 8, WireGuard 32."""


class Config(BackendConfig):
    """``MTU``: of the outer packet; 0: the external interface's. ``PSK``: a key in base64 that all nodes share."""

    listen_port: int = Field(51820, alias="ListenPort", gt=0, lt=1 << 16, description="UDP port.")
    listen_port_v6: int = Field(
        51821, alias="ListenPortV6", gt=0, lt=1 << 16, description="UDP port of the device for IPv6, with `Mode` `separate`."
    )
    mtu: int = Field(
        0, alias="MTU", ge=0, lt=1 << 16, description="MTU of the outer packet, bytes; 0: that of the external interface."
    )
    psk: str = Field(
        "", alias="PSK", repr=False, description="A key in base64 that all nodes share, besides those of each node."
    )
    persistent_keepalive_interval: int = Field(
        0,
        alias="PersistentKeepaliveInterval",
        ge=0,
        lt=1 << 16,
        description="Send an empty packet to each peer this often, in seconds, for a NAT between nodes; 0: never.",
    )
    mode: Literal["separate", "auto", "ipv4", "ipv6"] = Field(
        "separate",
        alias="Mode",
        description="`separate`: a device for each family; else one device for both, whose outer packets are IPv4 (`ipv4`), "
        "IPv6 (`ipv6`), or IPv4 unless two nodes have only IPv6 in common (`auto`).",
    )

    def check_network(self, network: NetworkConfig) -> None:
        if self.mtu:
            pod_mtu(self.mtu, OVERHEAD, 6 if network.ipv6 else 4, '"Backend.MTU"')
        self.psk_bytes()
        both = network.ipv4 and network.ipv6 and self.mode == "separate"
        if both and self.listen_port == self.listen_port_v6:
            raise InvalidConfig(
                f'"Backend.ListenPort" and "Backend.ListenPortV6" are both {self.listen_port}',
                'in mode "separate" each family has a device, and each device a port',
            )

    def psk_bytes(self) -> bytes:
        """Nothing where there is none. Raises: InvalidConfig."""
        return parse_key(self.psk, '"Backend.PSK"') if self.psk else b""


class Backend(backends.Backend):
    """See the package."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.network, self.external = config, network, external
        inner = 6 if network.ipv6 else 4
        self.mtu = pod_mtu(config.mtu or external.mtu, OVERHEAD, inner, f"the MTU of {external.name}")
        self._psk = config.psk_bytes()
        self.names: dict[int, str] = {}
        """Name of the device of each family."""
        for version, is_on in ((4, network.ipv4), (6, network.ipv6)):
            if is_on:
                self.names[version] = DEVICE_V6 if version == 6 and config.mode == "separate" else DEVICE
        self._devices: dict[str, WireGuardDevice] = {}
        self._claims: dict[tuple[str, bytes], dict[Subnets, Peer]] = {}
        """Claims by device and key: what each lease of that node says, the newest last."""

    @property
    def devices(self) -> Sequence[Device]:
        return tuple(self._devices.values())

    def _port(self, name: str) -> int:
        return self.config.listen_port_v6 if name == DEVICE_V6 else self.config.listen_port

    def prepare(self, rtnl: Rtnl, former: Attributes | None) -> None:  # noqa: ARG002 — the key is in a file
        """Create the devices: the kernel alone knows their public key. Raises: CniError."""
        private_key = read_or_make_key(os.environ.get("WIREGUARD_KEY_FILE") or KEY_PATH)
        for name in sorted(set(self.names.values())):
            device = self._devices[name] = WireGuardDevice(name, self.mtu, self._port(name), private_key, self._psk)
            device.ensure(rtnl, warning)

    def attributes(self) -> Attributes:
        data = {
            version: {"PublicKey": b64encode(self._devices[name].public_key).decode(), "Port": self._port(name)}
            for version, name in self.names.items()
        }
        return Attributes(
            public_ip=self.external.public_ip,
            public_ipv6=self.external.public_ipv6,
            backend_type=TYPE,
            backend_data=data.get(4),
            backend_v6_data=data.get(6),
        )

    def own_entries(self, own: Lease) -> Sequence[Entry]:
        """The devices' addresses, and the network routed to them: which peer a packet goes to, WireGuard knows."""
        entries: list[Entry] = [forwarding(version) for version in self.names]
        for version, subnet, network in (
            (4, own.subnets.ipv4, self.network.network),
            (6, own.subnets.ipv6, self.network.ipv6_network),
        ):
            if version in self.names and subnet and network:
                name = self.names[version]
                entries += device_sysctls(name, has_ipv6=version == 6)
                entries += [DeviceAddress(name, ip_interface(subnet.network_address)), Route(network, name)]
        return entries

    def follow(self, own: Lease, changes: Sequence[Change]) -> None:  # noqa: ARG002
        """Pass on to the devices which peers came, changed and left. Raises: CniError.

        Of a node that moves to another subnet there are two leases for a moment: it is reached where the newer one says, and
        packets of both subnets are its own.
        """
        changed: dict[tuple[str, bytes], Peer | None] = {}
        for former, lease in changes:
            before = dict(self._peers_of(former)) if former else {}
            now = dict(self._peers_of(lease)) if lease else {}
            for place in before.keys() | now.keys():
                if former and before.get(place) != now.get(place):
                    changed.setdefault(place, self._peer(place))
                    self._claims.get(place, {}).pop(former.subnets, None)
                if lease and place in now:
                    changed.setdefault(place, self._peer(place))
                    self._claims.setdefault(place, {})[lease.subnets] = now[place]
        for name, device in self._devices.items():
            places = {place: before for place, before in changed.items() if place[0] == name}
            self._pass_on(device, places)

    def _pass_on(self, device: WireGuardDevice, before: dict[tuple[str, bytes], Peer | None]) -> None:
        """Raises: CniError."""
        changed, gone = [], []
        for place, former in before.items():
            peer = self._peer(place)
            if peer is None:
                self._claims.pop(place, None)
                gone.append(place[1])
                if former is not None:
                    info(f"Subnet removed: {_list(former.allowed)}")
            elif peer != former:
                changed.append(peer)
                info(f"Subnet added: {_list(peer.allowed)} via {peer.address}:{peer.port}")
        device.set_peers(changed, gone)

    def _peer(self, place: tuple[str, bytes]) -> Peer | None:
        """Return what all leases with this key say together."""
        claims = list(self._claims.get(place, {}).values())
        if not claims:
            return None
        return replace(claims[-1], allowed=tuple(network for peer in reversed(claims) for network in peer.allowed))

    def _peers_of(self, lease: Lease) -> Iterable[tuple[tuple[str, bytes], Peer]]:
        """Pure: the lease as a peer of each of our devices, by device and key."""
        if lease.attributes.backend_type != TYPE:
            return
        for device, _, peer in self._ends(lease):
            if isinstance(peer, Peer):
                yield (device, peer.public_key), peer

    def faults(self, lease: Lease) -> Iterable[tuple[int, str]]:
        """A lease of another back end, of one family, or without a key, an address or a port of one."""
        if lease.attributes.backend_type != TYPE:
            return of_other_type(lease, TYPE, self.names)
        if self.config.mode == "separate":
            faults = families_lacking(lease, self.names)
        else:  # an address of one family is enough
            there = {subnet.version for subnet in lease.subnets.each()}
            faults = [(version, lacks(lease, version)) for version in self.names if version not in there]
        lacking = {version for version, _ in faults}
        for _, subnets, peer in self._ends(lease):
            if isinstance(peer, InvalidConfig):
                words = f"the lease of {lease.subnets} makes no peer: {peer}; not reached"
                versions = {subnet.version for subnet in subnets} - lacking
                faults += [(version, f"{words} by IPv{version}") for version in versions]
        return faults

    def _ends(self, lease: Lease) -> Iterable[tuple[str, tuple[Subnet, ...], Peer | InvalidConfig]]:
        """The lease as a peer of each of our devices, or why it is none."""
        its = lease.attributes
        addresses: dict[int, Address | None] = {4: its.public_ip, 6: its.public_ipv6}
        data = {4: its.backend_data, 6: its.backend_v6_data}
        subnets = tuple(subnet for subnet in lease.subnets.each() if subnet.version in self.names)
        ends: list[tuple[str, int, tuple[Subnet, ...]]]
        if self.config.mode == "separate":
            ends = [(self.names[subnet.version], subnet.version, (subnet,)) for subnet in subnets]
        else:
            ends = [(DEVICE, self._outer_version(its), subnets)] if subnets else []
            data = dict.fromkeys(data, data[4] if data[4] is not None else data[6])  # a device has one key and one port
        for device, outer, allowed in ends:
            try:
                key, port = _published(data[outer])
                address = addresses[outer]
                if address is None:
                    raise InvalidConfig(f"it says no IPv{outer} address of its node")
                port = port or self._port(device)
                yield device, allowed, Peer(key, address, port, allowed, self.config.persistent_keepalive_interval)
            except InvalidConfig as fault:
                yield device, allowed, fault

    def _outer_version(self, its: Attributes) -> int:
        """Return the family of the outer packet to this node. In mode auto IPv4, unless only IPv6 is public on both sides."""
        if self.config.mode != "auto":
            return 6 if self.config.mode == "ipv6" else 4
        ours, theirs = self.external.public_ipv6, its.public_ipv6
        if theirs is None or (self.external.public_ip and its.public_ip and not _is_private(its.public_ip)):
            return 4
        return 6 if ours is not None and not _is_private(ours) and not _is_private(theirs) else 4

    def cleanup(self) -> None:
        files.remove(KEY_PATH)


def _published(data: Any) -> tuple[bytes, int]:
    """Key and port (0: none) in a lease. Raises: InvalidConfig."""
    found = data if isinstance(data, dict) else {}
    port = found.get("Port", 0)
    if type(port) is not int or not 0 <= port < 1 << 16:
        raise InvalidConfig(f"its port is {port!r:.20}")
    return parse_key(found.get("PublicKey"), "its PublicKey"), port


def _is_private(address: Address) -> bool:
    """RFC 1918, fc00::/7; nothing else that ``ipaddress`` calls private."""
    first = address.packed
    if address.version == 6:
        return first[0] & 0xFE == 0xFC
    return first[0] == 10 or (first[0] == 172 and first[1] & 0xF0 == 16) or first[:2] == b"\xc0\xa8"


def _list(networks: Iterable[object]) -> str:
    return ", ".join(str(network) for network in networks)


def parse_key(text: object, what: str) -> bytes:
    """The bytes of a key. Raises: InvalidConfig, which does not show it."""
    try:
        key = b64decode(str(text).strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidConfig(f"{what} is no WireGuard key", f"it must be {KEY_BYTES} bytes in base64", "make one: wg genkey")
    return key


def read_or_make_key(path: str) -> bytes:
    """The node's private key. Raises: InvalidConfig, IOFailure."""
    try:
        return parse_key(files.read(path).decode(errors="replace"), f'what is in "{path}"')
    except FileNotFoundError:
        pass
    except OSError as fault:
        raise IOFailure(f'could not read "{path}"', fault.strerror or "", errno=fault.errno or 0) from fault
    key = bytearray(os.urandom(KEY_BYTES))
    key[0], key[31] = key[0] & 0xF8, key[31] & 0x7F | 0x40  # as `wg genkey`: the form of a Curve25519 key
    files.make_directory(os.path.dirname(path) or ".", 0o755)
    files.write(path, b64encode(key) + b"\n", 0o400)
    return bytes(key)
