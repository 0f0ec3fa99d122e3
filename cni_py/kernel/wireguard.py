"""WireGuard devices: their key, port and peers, by generic netlink.

    WireGuardDevice(name, mtu, port, private_key, psk)      a Device; its set_peers(changed, gone) is by peer
    WireGuard()                                             the kernel's side of it

The private key is sent to the kernel, which returns the public one, so no cryptography is needed here.
Only public keys are ever in the journal.

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
from cni_py.kernel.udp_port import port_named
from cni_py.netlink.attributes import Message, decode, encode
from cni_py.netlink.constants import (
    FAMILY,
    WG_CMD_GET_DEVICE,
    WG_CMD_SET_DEVICE,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
)
from cni_py.netlink.generic import Family
from cni_py.netlink.socket import NetlinkError, question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

KEY_BYTES = 32
_ALLOWED = "WGPEER_A_ALLOWEDIPS"
_CHUNK = 200
"""Peers in one message: an attribute has at most 64 KiB, and a peer up to 250 bytes."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A node: its key, its endpoint, and the subnets that are sent to it and accepted from it."""

    public_key: bytes
    address: IPv4Address | IPv6Address
    port: int
    allowed: tuple[IPv4Network | IPv6Network, ...]
    keepalive_seconds: int = 0


class WireGuard:
    """The kernel's WireGuard, in the namespace of the calling thread. A context manager.

    Raises: NotAvailable if the kernel has no WireGuard.
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
        """Set the device's key and port. Returns: its public key. Raises: KernelRefused."""
        with step("wg", "set", name, "listen-port", str(port), "private-key", "/dev/stdin"):
            self._change(name, {"WGDEVICE_A_PRIVATE_KEY": private_key, "WGDEVICE_A_LISTEN_PORT": port})
        with question("wg", "show", name, "public-key"):
            answers = self._netlink.dump(encode("wgmsg", _message(WG_CMD_GET_DEVICE, name)))
        for answer in answers:
            public_key: bytes | None = decode("wgmsg", answer).get("WGDEVICE_A_PUBLIC_KEY")
            if public_key:
                return public_key
        raise KernelRefused(f'"{name}" has no public key')

    def list_peers(self, name: str) -> dict[bytes, Message]:
        """Return the device's peers by their keys, each as :func:`peer_data` has it. Raises: KernelRefused."""
        found: dict[bytes, Message] = {}
        with question("wg", "show", name, "dump"):
            answers = self._netlink.dump(encode("wgmsg", _message(WG_CMD_GET_DEVICE, name)))
        for peer in (peer for answer in answers for peer in decode("wgmsg", answer).get("WGDEVICE_A_PEERS", ())):
            # one whose addresses do not fit into a message is continued in the next one, with its key and more addresses
            known = found.setdefault(peer["WGPEER_A_PUBLIC_KEY"], peer)
            if known is not peer:
                known.setdefault(_ALLOWED, []).extend(peer.get(_ALLOWED, ()))
        return found

    def set_peers(self, name: str, peers: Iterable[Peer], psk: bytes = b"") -> None:
        """Add these peers, or change those with the same keys, whose sessions go on. Raises: KernelRefused."""
        remaining = list(peers)
        while remaining:
            chunk, remaining = remaining[:_CHUNK], remaining[_CHUNK:]
            with step("wg", "set", name, *(word for peer in chunk for word in _words(peer))):
                self._change(name, {"WGDEVICE_A_PEERS": [peer_data(peer, psk) for peer in chunk]})

    def remove_peer(self, name: str, public_key: bytes) -> None:
        """Remove a peer; absence is success. Raises: KernelRefused."""
        peer = {"WGPEER_A_PUBLIC_KEY": public_key, "WGPEER_A_FLAGS": WGPEER_F_REMOVE_ME}
        with step("wg", "set", name, "peer", b64encode(public_key).decode(), "remove"):
            self._change(name, {"WGDEVICE_A_PEERS": [peer]})

    def _change(self, name: str, message: Message) -> None:
        self._netlink.change(encode("wgmsg", _message(WG_CMD_SET_DEVICE, name) | message))


class WireGuardDevice:
    """A :class:`~cni_py.kernel.device.Device` and its peers. ``public_key``: known once it has been made.

    What an earlier process gave a device that is reused stays until the first :meth:`set_peers`, which changes what differs and
    removes the other peers. Not all at once by WGDEVICE_F_REPLACE_PEERS: that ends every session, and what a peer sends
    with the keys of one is lost until it has had no answer for 15 seconds.
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
                key = "Backend.ListenPortV6" if self.name.endswith("-v6") else "Backend.ListenPort"
                with port_named(rtnl, self.name, self.port, key):
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
            present = kernel.list_peers(self.name)
            changed = [peer for key, peer in self._peers.items() if not _is_as(present.get(key), peer, self._psk)]
            gone = present.keys() - self._peers.keys()
        else:
            changed = [self._peers[key] for key in self._unsent if key in self._peers]
            gone = self._unsent - self._peers.keys()
        if changed:
            kernel.set_peers(self.name, changed, self._psk)
        for key in gone:
            kernel.remove_peer(self.name, key)
        self._sends_all = False
        self._unsent.clear()


def _message(command: int, name: str) -> Message:
    return {"cmd": command, "version": 1, "WGDEVICE_A_IFNAME": name}


def _is_as(present: Message | None, peer: Peer, psk: bytes) -> bool:
    """Return whether the kernel has the peer as it is desired; the endpoint too, which follows where packets come from."""
    wanted = peer_data(peer, psk)
    return present is not None and all(
        _comparable(present.get(name)) == _comparable(value) for name, value in wanted.items() if name != "WGPEER_A_FLAGS"
    )


def _comparable(value: Any) -> Any:
    """Allowed addresses in any order."""
    return sorted(tuple(sorted(each.items())) for each in value) if isinstance(value, list) else value


def peer_data(peer: Peer, psk: bytes) -> Message:
    """Encode a peer; its allowed addresses replace the previous ones."""
    allowed = [
        {
            "WGALLOWEDIP_A_FAMILY": FAMILY[network.version],
            "WGALLOWEDIP_A_IPADDR": network.network_address.packed,
            "WGALLOWEDIP_A_CIDR_MASK": network.prefixlen,
        }
        for network in peer.allowed
    ]
    return {
        "WGPEER_A_PUBLIC_KEY": peer.public_key,
        "WGPEER_A_PRESHARED_KEY": psk or bytes(KEY_BYTES),  # zeros: none, also where one was before
        "WGPEER_A_FLAGS": WGPEER_F_REPLACE_ALLOWEDIPS,
        "WGPEER_A_ENDPOINT": _socket_address(peer.address, peer.port),
        "WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL": peer.keepalive_seconds,
        _ALLOWED: allowed,
    }


def _socket_address(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6``."""
    family = pack("=H", FAMILY[address.version]) + pack("!H", port)
    return family + address.packed + bytes(8) if address.version == 4 else family + bytes(4) + address.packed + bytes(4)


def _words(peer: Peer) -> list[str]:
    """Return the arguments of ``wg set``."""
    where = f"[{peer.address}]" if peer.address.version == 6 else str(peer.address)
    words = ["peer", b64encode(peer.public_key).decode(), "endpoint", f"{where}:{peer.port}"]
    words += ["persistent-keepalive", str(peer.keepalive_seconds)] if peer.keepalive_seconds else []
    return [*words, "allowed-ips", ",".join(str(network) for network in peer.allowed)]
