"""udp: flannel's first back end, in which every packet passes through this program. For learning. IPv4, IPv6, both.

How it works. The whole network is routed to ``flannel0``, a TUN device: what the kernel sends over it we read, and
what we write comes in by it. So a packet to a pod of another node goes

    pod → cni0 → route 10.244.0.0/16 dev flannel0 → read → Table: 10.244.85.0/24 is at 192.168.123.12
        → UDP datagram to 192.168.123.12:8285 → there: receive → write → its flannel0 → its cni0 → pod

and the datagram holds the packet as it is, without a header of ours. An IPv6 packet goes the same way by a table of its
own, in a datagram to the node's IPv6 address. Nothing is encrypted, and whoever reaches the port can send packets to
the pods, as in Go. Each node counts as a router, twice: TTL or hop limit is less by one when the packet goes into the
tunnel and by another when it comes out; at 0 it is dropped. (So a router's advertisement, which counts only with a hop
limit of 255, says nothing to who gets it through the tunnel.) Where no node has the address its sender is told by ICMP.

Each packet is copied to this program and back, so it is slow. The device lives as long as we hold it
open, so unlike with other back ends the way ends with flanneld.

Unlike Go's it carries IPv6; where prefixes overlap the longest counts, a datagram larger than our MTU is not cut, and
the device is made anew when somebody deletes it. What is done to a packet's bytes is in ``udp_packets.py``.
Source: flannel-io/flannel pkg/backend/udp.
"""

from __future__ import annotations

import os
import select
import socket
from ipaddress import ip_interface
from time import monotonic
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cni_py.errors import CniError, InvalidConfig, KernelRefused
from cni_py.flanneld.backends import BackendConfig, pod_mtu
from cni_py.flanneld.backends.keeping import LOOK_SECONDS
from cni_py.flanneld.backends.udp_packets import family_of, receiver_of, take_hop, unreachable
from cni_py.flanneld.lease import Attributes
from cni_py.kernel.device import ensure_up, open_tun
from cni_py.kernel.link import find_link
from cni_py.netlink.socket import open_host
from cni_py.node.desired import Route, Wanted
from cni_py.node.log import error, info, verbose, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from threading import Event

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Address
    from cni_py.node.desired import Network as Subnet

TYPE = "udp"
DEVICE = "flannel0"
OVERHEAD = {4: 28, 6: 48}
"""Bytes that the outer IP header and UDP's take, by the family of the outer packet."""
STOP_SECONDS = 0.2
"""At most between "stop" and the end of the proxy"""
BURST = 64
"""Packets of one direction before the other has its turn"""
MAX_PACKET = 65535
IPV6_FREEBIND = 78
"""linux include/uapi/linux/in6.h; Python's socket does not name it."""
SocketAddress = tuple[Any, ...]
"""Address and port; of IPv6 also flow label and interface."""


class Config(BackendConfig):
    """``Port``: where each node listens; the same on all."""

    port: int = Field(8285, alias="Port", gt=0, lt=1 << 16)


class Table:
    """Where the node is that has an address: the longest prefix that holds it. Of one family. It never changes;
    a new one takes its place."""

    def __init__(self, nodes: Mapping[Subnet, SocketAddress]) -> None:
        by_shift: dict[int, dict[int, SocketAddress]] = {}
        for subnet, node in nodes.items():
            shift = subnet.max_prefixlen - subnet.prefixlen
            by_shift.setdefault(shift, {})[int(subnet.network_address) >> shift] = node
        self._by_shift = sorted(by_shift.items())  # the smallest shift is the longest prefix

    def find(self, address: int) -> SocketAddress | None:
        """``None`` where no subnet has it."""
        for shift, nodes in self._by_shift:
            node = nodes.get(address >> shift)
            if node is not None:
                return node
        return None


class Backend:
    """See the package, and the head of this file."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.external = config, external
        self.networks: dict[int, Subnet] = {net.version: net for net in network.networks}
        """By family: those in use."""
        outer = max(self.networks)  # one device, one MTU: what the larger header leaves
        self.mtu = pod_mtu(external.mtu, OVERHEAD[outer], outer, f"the MTU of {external.name}")
        self._listen: dict[int, SocketAddress] = {}
        for family in self.networks:
            address = external.addr if family == 4 else external.addr6
            if address is None:
                raise InvalidConfig(f"{external.name} has no IPv{family} address to listen at")
            self._listen[family] = self._at(address)
        self._tun = -1
        self._sockets: dict[int, socket.socket] = {}
        self._known: dict[Subnet, Address] = {}
        self._tables: dict[int, Table] = dict.fromkeys(self.networks, Table({}))
        self._ignored: set[Subnet] = set()

    def attributes(self) -> Attributes:
        """Opens device and sockets: what cannot work is refused before there is a lease. Raises: KernelRefused.

        Go-compatible: the lease says no back end's type (pkg/backend/udp/udp_amd64.go).
        """
        try:
            for family, address in self._listen.items():
                if family not in self._sockets:
                    self._sockets[family] = open_socket(address)
            with open_host() as host:
                self._ensure_device(host)
        except CniError:
            self.close()  # nobody else will: without a lease there is no session
            raise
        return Attributes(
            public_ip=self.external.public_ip if 4 in self.networks else None,
            public_ipv6=self.external.public_ipv6 if 6 in self.networks else None,
        )

    def wanted(self, own: Lease, leases: Iterable[Lease]) -> Wanted:  # noqa: ARG002 — the peers are in the table
        """The device's addresses, each its subnet's first, and the networks routed to it."""
        subnets = [subnet for subnet in own.subnets.each() if subnet.version in self.networks]
        return Wanted(
            addresses=frozenset((DEVICE, ip_interface(subnet.network_address)) for subnet in subnets),
            routes=frozenset(Route(network, DEVICE) for network in self.networks.values()),
        )

    def apply(self, own: Lease, leases: Iterable[Lease]) -> None:
        """Take the nodes of these leases from now on; for any thread."""
        known, ignored = {}, set()
        for lease in leases:
            its = lease.attributes
            if lease.subnets == own.subnets:
                continue
            for subnet, node in ((lease.subnets.ipv4, its.public_ip), (lease.subnets.ipv6, its.public_ipv6)):
                if subnet is None or node is None or subnet.version not in self.networks:
                    continue
                if its.backend_type in ("", TYPE):
                    known[subnet] = node
                else:
                    ignored.add(subnet)
                    if subnet not in self._ignored:
                        warning(f"Ignoring non-udp subnet {subnet}: type={its.backend_type}")
        for subnet in known.keys() - self._known.keys():
            info(f"Subnet added: {subnet} via {known[subnet]}")
        for subnet in self._known.keys() - known.keys():
            info(f"Subnet removed: {subnet}")
        self._known, self._ignored = known, ignored
        self._tables = {
            family: Table({subnet: self._at(node) for subnet, node in known.items() if subnet.version == family})
            for family in self.networks
        }

    def _at(self, address: Address) -> SocketAddress:
        """Our port there. An IPv6 address of one link alone (fe80::…) is one of the external interface's."""
        port = self.config.port
        return (str(address), port) if address.version == 4 else (str(address), port, 0, self.external.ifindex)

    # ---- the proxy ------------------------------------------------------------------------------

    def run(self, stop: Event) -> None:
        """Carry packets both ways until ``stop``; then device and sockets go."""
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
        ready = select.poll()
        ready.register(self._tun, select.POLLIN)
        for peers in self._sockets.values():
            ready.register(peers, select.POLLIN)
        while not stop.is_set() and (left := until - monotonic()) > 0:
            if ready.poll(min(left, STOP_SECONDS) * 1000):
                self._outwards()
                for peers in self._sockets.values():
                    self._inwards(peers)

    def _outwards(self) -> None:
        """From the device to the other nodes."""
        for _ in range(BURST):
            try:
                packet = bytearray(os.read(self._tun, MAX_PACKET))
            except BlockingIOError:
                return
            family = family_of(packet)
            if family not in self.networks:  # where IPv6 is not in use: the kernel looks for routers on any link
                continue
            node = self._tables[family].find(receiver_of(packet))
            if node is None:
                answer = unreachable(packet)
                if answer:
                    os.write(self._tun, answer)
            elif take_hop(packet):
                try:
                    self._sockets[family].sendto(packet, node)
                except OSError as fault:  # no way to that node: to others there may be one
                    verbose(1, f"UDP send to {in_words(node)} failed: {fault.strerror}")

    def _inwards(self, peers: socket.socket) -> None:
        """From the other nodes to the device."""
        for _ in range(BURST):
            try:
                packet = bytearray(peers.recv(MAX_PACKET))
            except BlockingIOError:
                return
            if family_of(packet) in self.networks and take_hop(packet):
                os.write(self._tun, packet)

    # ---- device and sockets ---------------------------------------------------------------------

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
        """With the descriptor the device goes, and with it addresses and routes. Twice is fine."""
        self._close_device()
        for opened in self._sockets.values():
            opened.close()
        self._sockets = {}

    def cleanup(self) -> None:
        """Nothing is left where no flanneld runs."""
        self.close()


def open_socket(address: SocketAddress) -> socket.socket:
    """Not blocking. Raises: KernelRefused."""
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:  # also while the kernel still asks whether another host has the address, as at boot
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        opened.bind(address)
    except OSError as fault:
        opened.close()
        words, hint = (
            fault.strerror or "",
            f"see who does: ss -lunp 'sport = {address[1]}'; or choose another \"Backend.Port\" for all nodes",
        )
        msg = f"failed to start listening on UDP socket: {in_words(address)}"
        raise KernelRefused(msg, words, hint, fault.errno or 0) from fault
    return opened


def in_words(address: SocketAddress) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
