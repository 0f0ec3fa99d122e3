"""udp: flannel's first back end, in which every packet passes through this program. For learning. IPv4, IPv6, both.

How it works. The whole network is routed to ``flannel0``, a TUN device: what the kernel sends over it we read, and
what we write comes in by it. So a packet to a pod of another node goes

    pod → cni0 → route 10.244.0.0/16 dev flannel0 → read → Table: 10.244.85.0/24 is at 192.168.123.12
        → UDP datagram to 192.168.123.12:8285 → there: receive → write → its flannel0 → its cni0 → pod

and the datagram holds the packet as it is, without another header. An IPv6 packet goes the same way by a table of its
own, in a datagram to the node's IPv6 address. Nothing is encrypted; a packet counts only if its sender is in the subnet of the
node that the datagram comes from (Go: whatever reaches the port). Each node counts as a router, twice: TTL or hop limit is
less by one when the packet goes into the tunnel and by another when it comes out; at 0 it is dropped. (So a router's
advertisement, which counts only with a hop limit of 255, means nothing to its receivers behind the tunnel.) Where no node has
the address its sender gets an ICMP message.

Each packet is copied to this program and back, so it is slow. The device lives as long as we hold it
open, so unlike with other back ends the way ends with flanneld.

Unlike Go's it carries IPv6; where prefixes overlap the longest counts, a datagram larger than our MTU is not cut, and
the device is re-created when another process deletes it. What is done to a packet's bytes is in ``udp_packets.py``.
Source: flannel-io/flannel pkg/backend/udp.
"""

from __future__ import annotations

import os
import select
import socket
from errno import EADDRINUSE, ENODEV
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cni_py.errors import CniError, InvalidConfig, KernelRefused
from cni_py.flanneld import backends
from cni_py.flanneld.backends import BackendConfig, families_lacking, of_other_type, pod_mtu
from cni_py.flanneld.backends.udp_packets import family_of, receiver_of, sender_of, take_hop, unreachable
from cni_py.flanneld.lease import Attributes
from cni_py.kernel.tun import Tun
from cni_py.kernel.udp_port import owner_of
from cni_py.node.desired import DeviceAddress, Route, device_sysctls, forwarding
from cni_py.node.log import error, info, is_verbose, verbose, warning
from cni_py.node.stop import Wake

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.flanneld.backends import Change
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.kernel.device import Device
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Address, Entry
    from cni_py.node.desired import Network as Subnet
    from cni_py.node.stop import Stop

TYPE = "udp"
_TYPES = ("", TYPE)
"""Go's flanneld publishes none."""
DEVICE = "flannel0"
OVERHEAD = {4: 28, 6: 48}
"""Bytes that the outer IP header and UDP's take, by the family of the outer packet."""
RETRY_SECONDS = 0.5
"""Pause until a device that could not be used is tried again."""
BURST = 64
"""Packets of one direction before the other has its turn"""
MAX_PACKET = 65535
IPV6_FREEBIND = 78
"""linux include/uapi/linux/in6.h; Python's socket does not name it."""
SocketAddress = tuple[Any, ...]
"""Address and port; of IPv6 also flow label and interface."""


class Config(BackendConfig):
    """``Port``: where each node listens; the same on all."""

    port: int = Field(8285, alias="Port", gt=0, lt=1 << 16, description="UDP port, the same on all nodes.")


class Table:
    """Addresses of nodes by those of their pods: the longest prefix that holds it. Of one family. One thread may read it while
    another
    changes it."""

    def __init__(self) -> None:
        self._by_shift: dict[int, dict[int, SocketAddress]] = {}
        self._shifts: tuple[int, ...] = ()
        """The smallest first, which is the longest prefix."""

    def put(self, subnet: Subnet, node: SocketAddress | None) -> None:
        """Set the node that has the subnet; None: no node."""
        shift = subnet.max_prefixlen - subnet.prefixlen
        prefix = int(subnet.network_address) >> shift
        nodes = self._by_shift.setdefault(shift, {})
        if node is None:
            nodes.pop(prefix, None)
        else:
            nodes[prefix] = node
        self._shifts = tuple(sorted(shift for shift, nodes in self._by_shift.items() if nodes))

    def find(self, address: int) -> SocketAddress | None:
        """``None`` where no subnet has it."""
        for shift in self._shifts:
            node = self._by_shift[shift].get(address >> shift)
            if node is not None:
                return node
        return None


class Backend(backends.Backend):
    """See the package, and the head of this file."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.external = config, external
        self.networks: dict[int, Subnet] = {net.version: net for net in network.networks}
        """Networks by family, those in use."""
        outer = max(self.networks)  # one device, one MTU: what the larger header leaves
        self.mtu = pod_mtu(external.mtu, OVERHEAD[outer], outer, f"the MTU of {external.name}")
        self._listen: dict[int, SocketAddress] = {}
        for family in self.networks:
            address = external.addr if family == 4 else external.addr6
            if address is None:
                raise InvalidConfig(f"{external.name} has no IPv{family} address to listen at")
            self._listen[family] = self._at(address)
        self._device = Tun(DEVICE, self.mtu)
        self._sockets: dict[int, socket.socket] = {}
        self._tables = {family: Table() for family in self.networks}
        self._addresses: dict[str, frozenset[str]] = {}
        """Addresses of a node that has several, by each."""

    @property
    def devices(self) -> Sequence[Device]:
        return (self._device,)

    def prepare(self, rtnl: Rtnl, former: Attributes | None) -> None:  # noqa: ARG002
        """Opens device and sockets: what cannot work is refused before there is a lease. Raises: KernelRefused."""
        for family, address in self._listen.items():
            try:
                self._sockets[family] = open_socket(address)
            except KernelRefused as error:
                if error.errno == EADDRINUSE:
                    error.details += f": taken by {owner_of(rtnl, self.config.port)}"
                raise
        self._device.ensure(rtnl, warning)

    def attributes(self) -> Attributes:
        """Go-compatible: without a back end's type (pkg/backend/udp/udp_amd64.go)."""
        return Attributes(
            public_ip=self.external.public_ip if 4 in self.networks else None,
            public_ipv6=self.external.public_ipv6 if 6 in self.networks else None,
        )

    def own_entries(self, own: Lease) -> Sequence[Entry]:
        """The device's addresses, each its subnet's first, and the networks routed to it: the peers are in the tables."""
        entries: list[Entry] = []
        for subnet in own.subnets.each():
            if subnet.version in self.networks:
                entries += [forwarding(subnet.version), *device_sysctls(DEVICE, has_ipv6=subnet.version == 6)]
                entries.append(DeviceAddress(DEVICE, ip_interface(subnet.network_address)))
        return [*entries, *(Route(network, DEVICE) for network in self.networks.values())]

    def follow(self, own: Lease, changes: Sequence[Change]) -> None:  # noqa: ARG002
        """Take the nodes of these leases from now on."""
        for former, lease in changes:
            before, now = self._nodes(former), self._nodes(lease)
            for subnet in before.keys() - now.keys():
                self._tables[subnet.version].put(subnet, None)
                info(f"Subnet removed: {subnet}")
            if former is not None:
                for address in former.attributes.addresses:
                    self._addresses.pop(str(address), None)
            if lease is not None and len(addresses := frozenset(map(str, lease.attributes.addresses))) > 1:
                self._addresses |= dict.fromkeys(addresses, addresses)
            for subnet, node in now.items():
                self._tables[subnet.version].put(subnet, self._at(node))
                if subnet not in before:
                    info(f"Subnet added: {subnet} via {node}")

    def _nodes(self, lease: Lease | None) -> dict[Subnet, Address]:
        """Pure: the subnets of a lease that are reached, and the addresses of its node."""
        found: dict[Subnet, Address] = {}
        if lease is None:
            return found
        its = lease.attributes
        for subnet, node in ((lease.subnets.ipv4, its.public_ip), (lease.subnets.ipv6, its.public_ipv6)):
            if subnet is None or node is None or subnet.version not in self.networks:
                continue
            if its.backend_type in _TYPES:
                found[subnet] = node
        return found

    def faults(self, lease: Lease) -> Iterable[tuple[int, str]]:
        """A lease of another back end, or of one family."""
        if lease.attributes.backend_type not in _TYPES:
            return of_other_type(lease, TYPE, self.networks)
        return families_lacking(lease, self.networks)

    def _at(self, address: Address) -> SocketAddress:
        """Our port there. An IPv6 address of one link alone (fe80::…) is one of the external interface's."""
        port = self.config.port
        return (str(address), port) if address.version == 4 else (str(address), port, 0, self.external.ifindex)

    # ---- the proxy ------------------------------------------------------------------------------

    def run(self, stop: Stop) -> None:
        """Carry packets both ways until ``stop``. The device is restored by the reconciler, under the same descriptor."""
        trouble = ""
        with Wake() as wake, stop.calling(wake.set):
            while not stop.is_set():
                try:
                    self._carry(stop, wake)
                    trouble = ""
                except (CniError, OSError) as fault:  # another process deletes or changes the device
                    if str(fault) != trouble:
                        trouble = str(fault)
                        error(f"no packets are carried: {trouble}")
                    stop.wait(RETRY_SECONDS)

    def _carry(self, stop: Stop, wake: Wake) -> None:
        """Carry packets until ``stop``. Raises: OSError where the device was deleted."""
        ready = select.poll()
        for fd in (self._device.fd, wake.fileno(), *(peers.fileno() for peers in self._sockets.values())):
            ready.register(fd, select.POLLIN)
        while not stop.is_set():
            # not forever: another process may delete the device while a poll of its former file goes on
            events = ready.poll(RETRY_SECONDS * 1000)
            if any(event & (select.POLLERR | select.POLLNVAL) for _, event in events):
                raise OSError(ENODEV, f'"{DEVICE}" was deleted')
            if events:
                self._outwards()
                for peers in self._sockets.values():
                    self._inwards(peers)

    def _outwards(self) -> None:
        """Carry packets from the device to the other nodes."""
        for _ in range(BURST):
            try:
                packet = bytearray(os.read(self._device.fd, MAX_PACKET))
            except BlockingIOError:
                return
            family = family_of(packet)
            if family not in self.networks:  # where IPv6 is not in use: the kernel looks for routers on any link
                continue
            node = self._tables[family].find(receiver_of(packet))
            if node is None:
                answer = unreachable(packet)
                if answer:
                    os.write(self._device.fd, answer)
            elif take_hop(packet):
                try:
                    self._sockets[family].sendto(packet, node)
                except OSError as fault:  # no way to that node: to others there may be one
                    verbose(1, f"UDP send to {in_words(node)} failed: {fault.strerror}")

    def _inwards(self, peers: socket.socket) -> None:
        """Carry packets from the other nodes to the device."""
        for _ in range(BURST):
            try:
                received, sender = peers.recvfrom(MAX_PACKET)
            except BlockingIOError:
                return
            packet = bytearray(received)
            family = family_of(packet)
            if family in self.networks and self._is_from(sender, family, packet) and take_hop(packet):
                os.write(self._device.fd, packet)

    def _is_from(self, sender: SocketAddress, family: int, packet: bytearray) -> bool:
        """Return whether the packet is from the subnet of the node that sent it: any host could forge one."""
        node, address = self._tables[family].find(sender_of(packet)), sender[0].partition("%")[0]
        if node is not None and (address == node[0] or address in self._addresses.get(node[0], ())):
            return True
        if is_verbose(1):
            verbose(1, f"dropped a packet from {in_words(sender)}: its sender is not in the subnet of that node")
        return False

    def close(self) -> None:
        """Close the descriptor, with which the kernel deletes the device, its addresses and routes."""
        self._device.close()
        for opened in self._sockets.values():
            opened.close()
        self._sockets = {}


def open_socket(address: SocketAddress) -> socket.socket:
    """Open it, not blocking. Raises: KernelRefused."""
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
            f"see its process: ss -lunp 'sport = {address[1]}'; or choose another \"Backend.Port\" for all nodes",
        )
        msg = f"failed to start listening on UDP socket: {in_words(address)}"
        raise KernelRefused(msg, words, hint, fault.errno or 0) from fault
    return opened


def in_words(address: SocketAddress) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
