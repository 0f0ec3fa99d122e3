"""udp: flannel's first back end, in which every packet passes through this program. For learning; IPv4 alone.

How it works. The whole network is routed to ``flannel0``, a TUN device: what the kernel sends over it we read, and
what we write comes in by it. So a packet to a pod of another node goes

    pod → cni0 → route 10.244.0.0/16 dev flannel0 → read → Table: 10.244.85.0/24 is at 192.168.123.12
        → UDP datagram to 192.168.123.12:8285 → there: receive → write → its flannel0 → its cni0 → pod

and the datagram holds the packet as it is, without a header of ours. Nothing is encrypted, and whoever reaches the
port can send packets to the pods, as in Go. Each node counts as a router, twice: TTL is less by one when the packet
goes into the tunnel and by another when it comes out; at 0 it is dropped. Where no node has the address its sender
is told by ICMP.

Each packet is copied to this program and back, so it is slow. The device lives as long as we hold it
open, so unlike with other back ends the way ends with flanneld.

Unlike in Go, where prefixes overlap the longest counts, a datagram larger than our MTU is not cut, and the device
is made anew when somebody deletes it. Source: flannel-io/flannel pkg/backend/udp.
"""

from __future__ import annotations

import os
import select
import socket
from ipaddress import IPv4Interface
from struct import pack
from time import monotonic
from typing import TYPE_CHECKING

from pydantic import Field

from cni_py.errors import CniError, InvalidConfig, KernelRefused, UnsupportedField
from cni_py.flanneld.backends import BackendConfig
from cni_py.flanneld.backends.keeping import LOOK_SECONDS
from cni_py.flanneld.klog import error, info, verbose, warning
from cni_py.flanneld.lease import Attributes
from cni_py.flanneld.wanted import Route, Wanted
from cni_py.kernel.device import ensure_up, open_tun
from cni_py.kernel.link import find_link
from cni_py.kernel.rtnl import open_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address, IPv4Network
    from threading import Event

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.kernel.rtnl import Rtnl

TYPE = "udp"
DEVICE = "flannel0"
OVERHEAD = 28
"""Bytes: the outer IPv4 header 20, UDP 8."""
MIN_MTU = 576
STOP_SECONDS = 0.2
"""At most between "stop" and the end of the proxy"""
BURST = 64
"""Packets of one direction before the other has its turn"""
MAX_PACKET = 65535

IP_HEADER = 20
PROTOCOL_ICMP = 1
UNREACHABLE, NET_UNREACHABLE = 3, 0
ICMP_TTL = 8
MULTICAST = 0xE0000000


class Config(BackendConfig):
    """``Port``: where each node listens; the same on all."""

    port: int = Field(8285, alias="Port", gt=0, lt=1 << 16)


class Table:
    """Which node has an address: the longest prefix that holds it. It never changes; a new one takes its place."""

    def __init__(self, nodes: Mapping[IPv4Network, IPv4Address]) -> None:
        by_length: dict[int, dict[int, str]] = {}
        for subnet, node in nodes.items():
            shift = 32 - subnet.prefixlen
            by_length.setdefault(shift, {})[int(subnet.network_address) >> shift] = str(node)
        self._by_shift = sorted(by_length.items())  # the smallest shift is the longest prefix

    def find(self, address: int) -> str | None:
        """The node's address; ``None`` where no subnet has it."""
        for shift, nodes in self._by_shift:
            node = nodes.get(address >> shift)
            if node is not None:
                return node
        return None


class Backend:
    """See the package, and the head of this file."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        if network.ipv6 or network.network is None:
            raise UnsupportedField("the udp back end carries IPv4 alone", '"EnableIPv6" is true', 'use "vxlan" for IPv6')
        if external.addr is None:
            raise InvalidConfig(f"{external.name} has no IPv4 address to listen at")
        if external.mtu - OVERHEAD < MIN_MTU:
            raise InvalidConfig(f"{external.name}'s MTU of {external.mtu} bytes is too small", f"UDP takes {OVERHEAD}")
        self.config, self.network, self.external = config, network.network, external
        self.mtu = external.mtu - OVERHEAD
        self._listen = (str(external.addr), config.port)
        self._tun = -1
        self._socket: socket.socket | None = None
        self._known: dict[IPv4Network, IPv4Address] = {}
        self._table = Table(self._known)
        self._ignored: set[IPv4Network] = set()

    def attributes(self) -> Attributes:
        """Opens device and socket: what cannot work is refused before there is a lease. Raises: KernelRefused.

        Go-compatible: the lease says no back end's type (pkg/backend/udp/udp_amd64.go).
        """
        if self._socket is None:
            self._socket = open_socket(self._listen)
        with open_host() as host:
            self._ensure_device(host)
        return Attributes(public_ip=self.external.public_ip)

    def wanted(self, own: Lease, leases: Iterable[Lease]) -> Wanted:  # noqa: ARG002 — the peers are in the table
        """The device's address, the subnet's first, and the network routed to it."""
        addresses = {(DEVICE, IPv4Interface(own.subnets.ipv4.network_address))} if own.subnets.ipv4 else set()
        return Wanted(addresses=frozenset(addresses), routes=frozenset({Route(self.network, DEVICE)}))

    def apply(self, own: Lease, leases: Iterable[Lease]) -> None:
        """Take the nodes of these leases from now on; for any thread."""
        known, ignored = {}, set()
        for lease in leases:
            subnet, node, kind = lease.subnets.ipv4, lease.attributes.public_ip, lease.attributes.backend_type
            if subnet is None or node is None or lease.subnets == own.subnets:
                continue
            if kind in ("", TYPE):
                known[subnet] = node
            else:
                ignored.add(subnet)
                if subnet not in self._ignored:
                    warning(f"Ignoring non-udp subnet {subnet}: type={kind}")
        for subnet in known.keys() - self._known.keys():
            info(f"Subnet added: {subnet} via {known[subnet]}")
        for subnet in self._known.keys() - known.keys():
            info(f"Subnet removed: {subnet}")
        self._known, self._ignored, self._table = known, ignored, Table(known)

    # ---- the proxy ------------------------------------------------------------------------------

    def run(self, stop: Event) -> None:
        """Carry packets both ways until ``stop``; then device and socket go."""
        trouble = ""
        try:
            with open_host() as host:
                while not stop.is_set():
                    try:
                        self._ensure_device(host)
                        trouble = ""
                        self._carry(stop, monotonic() + LOOK_SECONDS)
                    except (CniError, OSError) as fault:  # somebody deletes or changes the device; we come again
                        if str(fault) != trouble:
                            trouble = str(fault)
                            error(f"no packets are carried: {trouble}")
                        stop.wait(LOOK_SECONDS / 4)
        finally:
            self.close()

    def _carry(self, stop: Event, until: float) -> None:
        """Carry packets for a while. Raises: OSError where the device has gone."""
        assert self._socket is not None, "attributes() has opened it"
        ready = select.poll()
        ready.register(self._tun, select.POLLIN)
        ready.register(self._socket, select.POLLIN)
        while not stop.is_set() and (left := until - monotonic()) > 0:
            if ready.poll(min(left, STOP_SECONDS) * 1000):
                self._outwards(self._socket)
                self._inwards(self._socket)

    def _outwards(self, peers: socket.socket) -> None:
        """From the device to the other nodes."""
        for _ in range(BURST):
            try:
                packet = bytearray(os.read(self._tun, MAX_PACKET))
            except BlockingIOError:
                return
            if not is_ipv4(packet):  # IPv6: the kernel looks for routers on any link
                continue
            node = self._table.find(int.from_bytes(packet[16:20], "big"))
            if node is None:
                answer = unreachable(packet)
                if answer:
                    os.write(self._tun, answer)
            elif decrement_ttl(packet):
                try:
                    peers.sendto(packet, (node, self.config.port))
                except OSError as fault:  # no way to that node: to others there may be one
                    verbose(1, f"UDP send to {node}:{self.config.port} failed: {fault.strerror}")

    def _inwards(self, peers: socket.socket) -> None:
        """From the other nodes to the device."""
        for _ in range(BURST):
            try:
                packet = bytearray(peers.recv(MAX_PACKET))
            except BlockingIOError:
                return
            if is_ipv4(packet) and decrement_ttl(packet):
                os.write(self._tun, packet)

    # ---- device and socket ----------------------------------------------------------------------

    def _ensure_device(self, host: Rtnl) -> None:
        """There, with its MTU, and up; made anew where it was deleted. Raises: KernelRefused."""
        link = find_link(host, DEVICE)
        if link is None or self._tun < 0:
            self._close_device()  # a descriptor whose device was deleted is of no use
            self._tun = open_tun(DEVICE)
            link = find_link(host, DEVICE)
        if link is None:
            raise KernelRefused(f'"{DEVICE}" has gone since it was made')
        ensure_up(host, link, self.mtu)

    def _close_device(self) -> None:
        if self._tun >= 0:
            os.close(self._tun)
        self._tun = -1

    def close(self) -> None:
        """With the descriptor the device goes, and with it address and route. Twice is fine."""
        self._close_device()
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def cleanup(self) -> None:
        """Nothing is left where no flanneld runs."""
        self.close()


def open_socket(address: tuple[str, int]) -> socket.socket:
    """Not blocking. Raises: KernelRefused."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        opened.bind(address)
    except OSError as fault:
        opened.close()
        where = f"{address[0]}:{address[1]}"
        words, hint = fault.strerror or "", f"see who does: ss -lunp 'sport = {address[1]}'"
        raise KernelRefused(f"failed to start listening on UDP socket: {where}", words, hint, fault.errno or 0) from fault
    return opened


# ---- packets (RFC 791, 792) ---------------------------------------------------------------------


def is_ipv4(packet: bytes | bytearray) -> bool:
    """Whether it has an IPv4 header, whole."""
    return len(packet) >= IP_HEADER and packet[0] >> 4 == 4 and len(packet) >= (packet[0] & 15) * 4 >= IP_HEADER


def decrement_ttl(packet: bytearray) -> bool:
    """As a router does; ``False``: the packet ends here. The checksum is corrected, not computed anew (RFC 1624)."""
    ttl = packet[8]
    if ttl <= 1:
        return False
    packet[8] = ttl - 1
    checksum = int.from_bytes(packet[10:12], "big") + 0x100  # the 16-bit word that holds the TTL is less by 0x100
    if checksum >= 0xFFFF:  # one's complement: the carry comes back at the low end, and 0xFFFF is 0
        checksum = checksum + 1 & 0xFFFF
    packet[10:12] = checksum.to_bytes(2, "big")
    return True


def unreachable(packet: bytearray) -> bytes | None:
    """The ICMP message "net unreachable" to the packet's sender; ``None`` where none is due.

    None about ICMP, so that no two can answer each other for ever, none about a fragment but the first, and none
    to or about what is no single host (RFC 1122 section 3.2.2). It comes from the address that nobody has: from the
    device's own, as Go sends it, the kernel takes it for forged ("martian source") and drops it.
    """
    is_later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    sender, receiver = int.from_bytes(packet[12:16], "big"), int.from_bytes(packet[16:20], "big")
    if packet[9] == PROTOCOL_ICMP or is_later_fragment or not 0 < sender < MULTICAST or receiver >= MULTICAST:
        return None
    quoted = bytes(packet[: (packet[0] & 15) * 4 + 8])  # its header and 8 bytes: there its sender finds the ports
    message = pack("!BBHI", UNREACHABLE, NET_UNREACHABLE, 0, 0) + quoted
    message = message[:2] + checksum_of(message) + message[4:]
    size = IP_HEADER + len(message)
    header = pack("!BBHHHBBHII", 0x45, 0, size, 0, 0, ICMP_TTL, PROTOCOL_ICMP, 0, receiver, sender)
    return header[:10] + checksum_of(header) + header[12:] + message


def checksum_of(data: bytes) -> bytes:
    """The internet checksum (RFC 1071): the one's complement of the sum of all 16-bit words."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
