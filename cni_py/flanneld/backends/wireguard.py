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
import threading
from base64 import b64decode, b64encode
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cni_py import files
from cni_py.errors import InvalidConfig, IOFailure
from cni_py.flanneld.backends import BackendConfig, pod_mtu
from cni_py.flanneld.backends.keeping import keep
from cni_py.flanneld.lease import Attributes
from cni_py.kernel.device import ensure_device
from cni_py.kernel.link import delete_link
from cni_py.kernel.wireguard import KEY_BYTES, Peer, WireGuard
from cni_py.netlink.socket import open_host
from cni_py.node.desired import Route, Wanted
from cni_py.node.log import error, info, warning_once

if TYPE_CHECKING:
    from collections.abc import Iterable
    from threading import Event

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.node.desired import Address, AddressWithPrefix
    from cni_py.node.desired import Network as Subnet

TYPE = "wireguard"
DEVICE, DEVICE_V6 = "flannel-wg", "flannel-wg-v6"
KEY_PATH = "/run/flannel/wgkey"
OVERHEAD = 80
"""Bytes: IPv6 header 40, UDP 8, WireGuard 32."""
Peers = dict[bytes, Peer]


class Config(BackendConfig):
    """``MTU``: of the outer packet; 0: the external interface's. ``PSK``: a key in base64 that all nodes share."""

    listen_port: int = Field(51820, alias="ListenPort", gt=0, lt=1 << 16)
    listen_port_v6: int = Field(51821, alias="ListenPortV6", gt=0, lt=1 << 16)
    mtu: int = Field(0, alias="MTU", ge=0, lt=1 << 16)
    psk: str = Field("", alias="PSK", repr=False)
    persistent_keepalive_interval: int = Field(0, alias="PersistentKeepaliveInterval", ge=0, lt=1 << 16)
    mode: Literal["separate", "auto", "ipv4", "ipv6"] = Field("separate", alias="Mode")

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


class Backend:
    """See the package."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.network, self.external = config, network, external
        inner = 6 if network.ipv6 else 4
        self.mtu = pod_mtu(config.mtu or external.mtu, OVERHEAD, inner, f"the MTU of {external.name}")
        self._psk = config.psk_bytes()
        self.devices: dict[int, str] = {}
        self._said: set[str] = set()
        for version, is_on in ((4, network.ipv4), (6, network.ipv6)):
            if is_on:
                self.devices[version] = DEVICE_V6 if version == 6 and config.mode == "separate" else DEVICE
        self.ports = {device: config.listen_port_v6 if device == DEVICE_V6 else config.listen_port for device in self._names()}
        self._public_key = b""
        self._lock = threading.Lock()
        self._wanted: dict[str, Peers] = {}
        self._peers: dict[int, tuple[str, Peers | None]] = {}
        """By ifindex, so that a device that was made anew gets its peers: its name and what it was
        given; None: it may know peers of an earlier flanneld, which it keeps until we know better"""

    def _names(self) -> list[str]:
        return sorted(set(self.devices.values()))

    def attributes(self) -> Attributes:
        """The devices are made here: a kernel without them is refused before there is a lease. Raises: CniError."""
        with self._lock, WireGuard() as wireguard:
            self._ensure_devices(wireguard)
        key = b64encode(self._public_key).decode()
        data = {version: {"PublicKey": key, "Port": self.ports[device]} for version, device in self.devices.items()}
        return Attributes(
            public_ip=self.external.public_ip,
            public_ipv6=self.external.public_ipv6,
            backend_type=TYPE,
            backend_data=data.get(4),
            backend_v6_data=data.get(6),
        )

    def _ensure_devices(self, wireguard: WireGuard) -> None:
        """One that is new to us gets key and port. Raises: CniError."""
        found = {}
        with open_host() as host:
            links = {name: ensure_device(host, name, "wireguard", self.mtu) for name in self._names()}
        for name, link in links.items():
            if link.ifindex not in self._peers:
                private_key = read_or_make_key(os.environ.get("WIREGUARD_KEY_FILE") or KEY_PATH)
                self._public_key = wireguard.set_device(name, private_key, self.ports[name])
            found[link.ifindex] = self._peers.get(link.ifindex, (name, None))
        self._peers = found

    def wanted(self, own: Lease, leases: Iterable[Lease]) -> Wanted:  # noqa: ARG002 — peers are no routes
        """The devices' addresses, and the network routed to them."""
        addresses: set[tuple[str, AddressWithPrefix]] = set()
        routes = set()
        if 4 in self.devices and own.subnets.ipv4 and self.network.network:
            addresses.add((self.devices[4], IPv4Interface(own.subnets.ipv4.network_address)))
            routes.add(Route(self.network.network, self.devices[4]))
        if 6 in self.devices and own.subnets.ipv6 and self.network.ipv6_network:
            addresses.add((self.devices[6], IPv6Interface(own.subnets.ipv6.network_address)))
            routes.add(Route(self.network.ipv6_network, self.devices[6]))
        return Wanted(addresses=frozenset(addresses), routes=frozenset(routes))

    def wanted_peers(self, own: Lease, leases: Iterable[Lease]) -> dict[str, Peers]:
        """Pure: the peers of each device, by public key.

        Of a node that moves to another subnet there are two leases for a moment, the newer one first: it is reached where that
        says, and packets of both subnets are its own.
        """
        peers: dict[str, Peers] = {name: {} for name in self._names()}
        for lease in leases:
            if lease.subnets == own.subnets:
                continue
            if lease.attributes.backend_type != TYPE:
                text = f"Ignoring non-wireguard subnet {lease.subnets}: type={lease.attributes.backend_type}"
                warning_once(text, self._said)
                continue
            for device, peer in self._ends(lease):
                first = peers[device].get(peer.public_key)
                peers[device][peer.public_key] = replace(first, allowed=first.allowed + peer.allowed) if first else peer
        return peers

    def _ends(self, lease: Lease) -> Iterable[tuple[str, Peer]]:
        """The lease as a peer of each of our devices."""
        its = lease.attributes
        addresses: dict[int, Address | None] = {4: its.public_ip, 6: its.public_ipv6}
        data = {4: its.backend_data, 6: its.backend_v6_data}
        subnets = tuple(subnet for subnet in lease.subnets.each() if subnet.version in self.devices)
        ends: list[tuple[str, int, tuple[Subnet, ...]]]
        if self.config.mode == "separate":
            ends = [(self.devices[subnet.version], subnet.version, (subnet,)) for subnet in subnets]
        else:
            ends = [(DEVICE, self._outer_version(its), subnets)] if subnets else []
            data = dict.fromkeys(data, data[4] if data[4] is not None else data[6])  # a device has one key and one port
        for device, outer, allowed in ends:
            try:
                key, port = _published(data[outer])
                address = addresses[outer]
                if address is None:
                    raise InvalidConfig(f"it says no IPv{outer} address of its node")
                port = port or self.ports[device]
                yield device, Peer(key, address, port, allowed, self.config.persistent_keepalive_interval)
            except InvalidConfig as fault:
                error(f"the lease of {lease.subnets} makes no peer: {fault}")

    def _outer_version(self, its: Attributes) -> int:
        """Of the outer packet to this node. In mode auto IPv4, unless only IPv6 is public on both sides."""
        if self.config.mode != "auto":
            return 6 if self.config.mode == "ipv6" else 4
        ours, theirs = self.external.public_ipv6, its.public_ipv6
        if theirs is None or (self.external.public_ip and its.public_ip and not _is_private(its.public_ip)):
            return 4
        return 6 if ours is not None and not _is_private(ours) and not _is_private(theirs) else 4

    def apply(self, own: Lease, leases: Iterable[Lease]) -> None:
        """Tell the devices which peers came, changed and left. Raises: CniError."""
        self._wanted = self.wanted_peers(own, leases)
        self._settle()

    def run(self, stop: Event) -> None:
        """Put a device back, with its peers, where somebody deletes it; addresses and routes are the reconciler's."""
        keep(stop, self._settle)

    def _settle(self) -> None:
        """Make devices and peers as they should be. Raises: CniError."""
        with self._lock, WireGuard() as wireguard:
            self._ensure_devices(wireguard)
            for ifindex, (name, given) in self._peers.items():
                wanted, known = self._wanted[name], given or {}
                changed = [peer for key, peer in wanted.items() if known.get(key) != peer]
                for peer in changed:
                    info(f"Subnet added: {_list(peer.allowed)} via {peer.address}:{peer.port}")
                if changed or given is None:
                    wireguard.set_peers(name, changed, self._psk, only=given is None)
                    self._peers[ifindex] = (name, known)
                    known.update({peer.public_key: peer for peer in changed})
                for key in known.keys() - wanted.keys():
                    info(f"Subnet removed: {_list(known[key].allowed)}")
                    wireguard.remove_peer(name, key)
                    del known[key]

    def cleanup(self) -> None:
        with open_host() as host:
            for name in self._names():
                delete_link(host, name)
        files.remove(KEY_PATH)


def _published(data: Any) -> tuple[bytes, int]:
    """Key and port (0: not said) in a lease. Raises: InvalidConfig."""
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
    files.make_folder(os.path.dirname(path) or ".", 0o755)
    files.write(path, b64encode(key) + b"\n", 0o400)
    return bytes(key)
