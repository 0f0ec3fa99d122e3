"""WireGuard devices: their key, port and peers, by generic netlink.

    WireGuardDevice(name, mtu, port, private_key, psk)      a Device; its set_peers(changed, gone) is by peer
    WireGuard()                                             the kernel's side of it

The private key goes to the kernel, which answers with the public one, so no cryptography is needed here.
No key but a public one is ever in the journal.

Source: linux include/uapi/linux/wireguard.h, Documentation/userspace-api/netlink/intro.rst (families).
"""

from __future__ import annotations

import threading
from base64 import b64encode
from dataclasses import dataclass
from errno import ENOENT
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import pack

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.device import ensure_device
from cni_py.kernel.features import missing
from cni_py.netlink.attributes import attribute, attributes, nested
from cni_py.netlink.constants import AF_INET, AF_INET6
from cni_py.netlink.generic import Family
from cni_py.netlink.socket import NetlinkError, question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

KEY_BYTES = 32
_GET_DEVICE, _SET_DEVICE = 0, 1
_IFNAME, _PRIVATE_KEY, _PUBLIC_KEY, _FLAGS, _LISTEN_PORT, _PEERS = 2, 3, 4, 5, 6, 8
_REPLACE_PEERS = 1
_PEER_PUBLIC_KEY, _PEER_PRESHARED_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE, _PEER_ALLOWEDIPS = 1, 2, 3, 4, 5, 9
_PEER_REMOVE, _PEER_REPLACE_ALLOWEDIPS = 1, 2
_ALLOWED_FAMILY, _ALLOWED_IPADDR, _ALLOWED_CIDR_MASK = 1, 2, 3
_CHUNK = 200
"""Peers in one message: an attribute ends at 64 KiB, and a peer takes up to 250 bytes."""
_FAMILY = {4: AF_INET, 6: AF_INET6}


@dataclass(frozen=True, slots=True)
class Peer:
    """A node: its key, where it listens, and the subnets that are sent to it and taken from it."""

    public_key: bytes
    address: IPv4Address | IPv6Address
    port: int
    allowed: tuple[IPv4Network | IPv6Network, ...]
    keepalive_seconds: int = 0


class WireGuard:
    """The kernel's WireGuard, in the namespace of the calling thread. A context manager.

    Raises: NotAvailable where the kernel has no WireGuard.
    """

    def __init__(self) -> None:
        with question("genl", "ctrl", "get", "name", "wireguard"):
            try:
                self._netlink = Family("wireguard")
            except NetlinkError as error:
                if error.errno == ENOENT:
                    raise missing("wireguard", str(error.strerror)) from error
                raise

    def __enter__(self) -> WireGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def set_device(self, name: str, private_key: bytes, port: int) -> bytes:
        """Give the device its key and port; answers its public key. Raises: KernelRefused."""
        with step("wg", "set", name, "listen-port", str(port), "private-key", "/dev/stdin"):
            self._change(name, attribute(_PRIVATE_KEY, private_key) + attribute(_LISTEN_PORT, pack("=H", port)))
        with question("wg", "show", name, "public-key"):
            answers = self._netlink.dump(_GET_DEVICE, attribute(_IFNAME, name))
        for answer in answers:
            public_key = dict(attributes(answer)).get(_PUBLIC_KEY)
            if public_key:
                return public_key
        raise KernelRefused(f'"{name}" has no public key')

    def set_peers(self, name: str, peers: Iterable[Peer], psk: bytes = b"", only: bool = False) -> None:
        """Add these peers, or change those that have their key; ``only``: remove all others. Raises: KernelRefused."""
        remaining = list(peers)
        flags = attribute(_FLAGS, pack("=I", _REPLACE_PEERS)) if only else b""
        while remaining or flags:
            chunk, remaining = remaining[:_CHUNK], remaining[_CHUNK:]
            with step("wg", "set", name, *(word for peer in chunk for word in _words(peer))):
                self._change(name, flags + nested(_PEERS, b"".join(nested(0, peer_data(peer, psk)) for peer in chunk)))
            flags = b""

    def remove_peer(self, name: str, public_key: bytes) -> None:
        """Absence is success. Raises: KernelRefused."""
        data = attribute(_PEER_PUBLIC_KEY, public_key) + attribute(_PEER_FLAGS, pack("=I", _PEER_REMOVE))
        with step("wg", "set", name, "peer", b64encode(public_key).decode(), "remove"):
            self._change(name, nested(_PEERS, nested(0, data)))

    def _change(self, name: str, data: bytes) -> None:
        self._netlink.change(_SET_DEVICE, attribute(_IFNAME, name) + data)


class WireGuardDevice:
    """A :class:`~cni_py.kernel.device.Device` and its peers. ``public_key``: known once it has been made.

    What an earlier process gave a device that is reused stays until the first :meth:`set_peers`, which replaces all of it.
    """

    def __init__(self, name: str, mtu: int, port: int, private_key: bytes, psk: bytes = b"") -> None:
        self.name, self.mtu, self.port, self.public_key = name, mtu, port, b""
        self._private_key, self._psk = private_key, psk
        self._ifindex = 0
        self._lock = threading.Lock()
        self._peers: dict[bytes, Peer] = {}
        self._unsent: set[bytes] = set()
        self._has_peers, self._sends_all = False, True

    def ensure(self, rtnl: Rtnl, warn: Callable[[str], None] = note) -> Link:  # noqa: ARG002 — recreating it is silent
        """Create or reuse it; a link that is new to us gets key, port and all peers. Raises: KernelRefused, NotAvailable."""
        with self._lock, WireGuard() as kernel:
            link = ensure_device(rtnl, self.name, "wireguard", self.mtu)
            if link.ifindex != self._ifindex:
                self.public_key = kernel.set_device(self.name, self._private_key, self.port)
                self._ifindex, self._sends_all = link.ifindex, True
            if self._has_peers:
                self._send(kernel)
        return link

    def matches(self, link: Link) -> bool:
        return link.kind == "wireguard" and link.mtu == self.mtu and link.is_up

    def set_peers(self, changed: Iterable[Peer], gone: Iterable[bytes] = ()) -> None:
        """Add or change these peers, remove those with the keys ``gone``. Raises: KernelRefused.

        What could not be sent is sent with the next call, or by :meth:`ensure`.
        """
        with self._lock:
            for key in gone:
                self._peers.pop(key, None)
                self._unsent.add(key)
            for peer in changed:
                self._peers[peer.public_key] = peer
                self._unsent.add(peer.public_key)
            if self._has_peers and not self._unsent:
                return
            self._has_peers = True
            with WireGuard() as kernel:
                self._send(kernel)

    def _send(self, kernel: WireGuard) -> None:
        """Raises: KernelRefused."""
        if self._sends_all:
            kernel.set_peers(self.name, self._peers.values(), self._psk, only=True)
        elif self._unsent:
            kernel.set_peers(self.name, [self._peers[key] for key in self._unsent if key in self._peers], self._psk)
            for key in self._unsent - self._peers.keys():
                kernel.remove_peer(self.name, key)
        self._sends_all = False
        self._unsent.clear()


def peer_data(peer: Peer, psk: bytes) -> bytes:
    """The attributes of one peer; its allowed addresses take the place of those that it had."""
    allowed = b"".join(
        nested(
            0,
            attribute(_ALLOWED_FAMILY, pack("=H", _FAMILY[network.version]))
            + attribute(_ALLOWED_IPADDR, network.network_address.packed)
            + attribute(_ALLOWED_CIDR_MASK, pack("=B", network.prefixlen)),
        )
        for network in peer.allowed
    )
    return (
        attribute(_PEER_PUBLIC_KEY, peer.public_key)
        + (attribute(_PEER_PRESHARED_KEY, psk) if psk else b"")
        + attribute(_PEER_FLAGS, pack("=I", _PEER_REPLACE_ALLOWEDIPS))
        + attribute(_PEER_ENDPOINT, _socket_address(peer.address, peer.port))
        + attribute(_PEER_KEEPALIVE, pack("=H", peer.keepalive_seconds))
        + nested(_PEER_ALLOWEDIPS, allowed)
    )


def _socket_address(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6``."""
    family = pack("=H", _FAMILY[address.version]) + pack("!H", port)
    return family + address.packed + bytes(8) if address.version == 4 else family + bytes(4) + address.packed + bytes(4)


def _words(peer: Peer) -> list[str]:
    """As ``wg set`` takes it."""
    where = f"[{peer.address}]" if peer.address.version == 6 else str(peer.address)
    words = ["peer", b64encode(peer.public_key).decode(), "endpoint", f"{where}:{peer.port}"]
    words += ["persistent-keepalive", str(peer.keepalive_seconds)] if peer.keepalive_seconds else []
    return [*words, "allowed-ips", ",".join(str(network) for network in peer.allowed)]
