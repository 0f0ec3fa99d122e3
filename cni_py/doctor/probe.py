"""Real packets: to the end of the tunnel on each peer, beside the tunnel, and for our own address on the link. Bounded in time.

    through the tunnel   an ICMP echo to the address of the peer's device (VXLAN), or to its pods' gateway
    full-sized           the same, as large as a pod may send, not to be fragmented
    beside the tunnel    an ICMP echo to the address of the peer's node
    checksums            a TCP connection to a closed port; if it is silent, datagrams with a checksum and without (RFC 768)
    our own address      an ARP request for it: another machine that replies has it too (RFC 5227)

How it works. All are sent at once, and waited for until each is answered, a second at most; what is not, is sent once more.
A node that filters ICMP alone replies to the datagrams: any reply counts. An error that the peer sends in place of an answer
shows that the packet got there. So the second time a packet is also sent to an address of the peer's pods, with one hop left: a
peer whose firewall drops everything that is for itself still forwards, and reports that the packet's time was over.

Source: RFC 792, RFC 4443, RFC 826; man pages raw(7), ip(7) (IP_MTU_DISCOVER, IP_RECVERR), packet(7).
"""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from errno import ECONNREFUSED, EINPROGRESS, EMSGSIZE
from ipaddress import ip_address
from time import monotonic, sleep
from typing import TYPE_CHECKING

from cni_py.doctor.facts import Probed, Reached, Wanted
from cni_py.kernel.route import Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cni_py.doctor.facts import Address, Network
    from cni_py.flanneld.lease import Lease
    from cni_py.kernel.link import Link

SECONDS = 1.0
TRIES = 2
SAMPLE = 64
"""Peers that are asked where there are more."""
PORT = 33434
"""Closed on a node, as traceroute expects."""
_TUNNEL, _FULL, _NODE = 1, 2, 3
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE = 23, 3
_SO_NO_CHECK = 11
_HOPS = 64
_HEADERS = {4: 28, 6: 48}
"""Bytes of the IP and ICMP headers."""
_ECHO = {4: (8, 0), 6: (128, 129)}
_UNREACHABLE = {4: (3, 11), 6: (1, 3)}
"""Types of ICMP errors that a receiver sends which could not deliver the packet."""


@dataclass(frozen=True, slots=True)
class Target:
    """A peer of one family. ``end``: where the tunnel ends; ``mtu`` 0: no full-sized packet is sent.

    ``beyond``: an address that the peer forwards to; None: none is asked.
    """

    wanted: Wanted
    end: Address
    node: Address | None
    mtu: int = 0
    has_tunnel: bool = True
    beyond: Address | None = None

    def is_sender(self, address: str) -> bool:
        """Return whether an error from this address is the peer's own, not a router's on another way."""
        sender = ip_address(address.partition("%")[0])
        return sender == self.node or sender in self.wanted.subnet or sender in self.wanted.lease.attributes.addresses


def probe(
    targets: Sequence[Target],
    own: tuple[Address, Link] | None = None,
    only: frozenset[str] = frozenset(),
    macs: frozenset[str] = frozenset(),
) -> Probed:
    """Ask the peers, a sample of many.

    Args:
        own: our address, and the link on which another machine may have it.
        only: names of peers; those alone are asked.
        macs: of this machine's links: each replies for our address where two of them are on one network.
    """
    chosen = _sample(targets, only)
    results = [_first(target) for target in chosen]
    duplicates: tuple[tuple[Address, str], ...] = ()
    if own is not None and own[0].version == 4:
        with suppress(OSError):
            duplicates = tuple((own[0], mac) for mac in ask_arp(own[0], own[1], macs))
    for version in (4, 6):
        of = {number: target for number, target in enumerate(chosen) if target.end.version == version}
        if of:
            _echo(of, results, version)
    _ask_by_datagram(chosen, results)
    if any(target.has_tunnel for target in chosen):
        _check_checksums(results)
    return Probed(tuple(results), len(chosen) if len(chosen) < len(targets) else 0, len(targets), duplicates)


def _sample(targets: Sequence[Target], only: frozenset[str]) -> list[Target]:
    """Return those that were named, else at most ``SAMPLE``, evenly from first to last: the same ones each time."""
    named = [target for target in targets if only & _names(target)]
    if named or len(targets) <= SAMPLE:
        return named or list(targets)
    return [targets[number * len(targets) // SAMPLE] for number in range(SAMPLE)]


def _names(target: Target) -> set[str]:
    return {str(target.wanted.subnet), *(str(address) for address in target.wanted.lease.attributes.addresses)}


def _first(target: Target) -> Reached:
    return Reached(target.wanted.lease, target.wanted.subnet, target.end, tunnel=False)


# ---- echoes -------------------------------------------------------------------------------------


def _echo(targets: dict[int, Target], results: list[Reached], version: int) -> None:
    """Send echoes of all kinds to all targets of a family, and note the replies."""
    family, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    identifier = os.getpid() & 0xFFFF
    hops = (socket.IPPROTO_IP, socket.IP_TTL) if version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol) as sock:
        if version == 4:  # PROBE: never fragmented, and not limited by what was learnt about the path
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        waiting = {(number, kind): None for number, target in targets.items() for kind in _kinds(target)}
        answered: set[tuple[int, int]] = set()
        for attempt in range(TRIES):
            for number, kind in list(waiting):
                # one hop where there is no tunnel: a peer without pods, which has no gateway, reports that it ended there
                is_direct = kind != _NODE and not targets[number].has_tunnel
                sock.setsockopt(*hops, 1 if is_direct else _HOPS)
                refused = _send(sock, targets[number], number, kind, identifier, version)
                if refused:
                    results[number] = replace(results[number], refused=results[number].refused or refused)
                beyond = targets[number].beyond
                if attempt and kind != _NODE and beyond is not None:
                    sock.setsockopt(*hops, 1)
                    _send(sock, replace(targets[number], end=beyond), number, kind, identifier, version)
            _receive(sock, version, identifier, waiting, answered, targets)
            if not waiting:
                break
    for number, target in targets.items():
        kinds = _kinds(target)
        results[number] = replace(
            results[number],
            tunnel=(number, _TUNNEL) in answered,
            full=(number, _FULL) in answered if _FULL in kinds else None,
            node=(number, _NODE) in answered if _NODE in kinds else None,
        )


def _kinds(target: Target) -> tuple[int, ...]:
    kinds = [_TUNNEL]
    kinds += [_FULL] if target.mtu else []
    kinds += [_NODE] if target.node is not None and target.node.version == target.end.version else []
    return tuple(kinds)


def _send(sock: socket.socket, target: Target, number: int, kind: int, identifier: int, version: int) -> str:
    """Send one. Returns: the kernel's refusal in words, "" if there is none."""
    address = target.node if kind == _NODE else target.end
    size = target.mtu - _HEADERS[version] if kind == _FULL else 16
    payload = struct.pack("!IB", number, kind) + bytes(max(size - 5, 0))
    header = struct.pack("!BBHHH", _ECHO[version][0], 0, 0, identifier, number & 0xFFFF)
    packet = header + payload
    if version == 4:
        packet = header[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]
    try:
        sock.sendto(packet, (str(address), 0))
    except OSError as error:
        return "" if kind == _NODE or error.errno == EMSGSIZE else error.strerror or ""
    return ""


def _receive(
    sock: socket.socket,
    version: int,
    identifier: int,
    waiting: dict[tuple[int, int], None],
    answered: set[tuple[int, int]],
    targets: Mapping[int, Target],
) -> None:
    """Receive replies until none is waited for, or the time is over."""
    for left in _until(SECONDS / TRIES):
        if not waiting or not select.select([sock], [], [], left)[0]:
            return
        with suppress(OSError):
            while True:
                packet, sender = sock.recvfrom(65535)
                found = _answer(packet, version, identifier)
                if found in waiting and (not _is_error(packet, version) or targets[found[0]].is_sender(sender[0])):
                    del waiting[found]
                    answered.add(found)


def _until(seconds: float) -> Iterator[float]:
    """Yield the seconds that are left, and 0 at the end: what came while this process did not run is read all the same."""
    deadline = monotonic() + seconds
    while (left := deadline - monotonic()) > 0:
        yield left
    yield 0.0


def _is_error(packet: bytes, version: int) -> bool:
    return (packet[(packet[0] & 15) * 4] if version == 4 else packet[0]) != _ECHO[version][1]


def _answer(packet: bytes, version: int, identifier: int) -> tuple[int, int] | None:
    """Return number and kind of the echo that a packet replies to, also by an error of its receiver; None: of another."""
    icmp = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
    if len(icmp) < 8:
        return None
    if icmp[0] == _ECHO[version][1]:
        inner = icmp
    elif icmp[0] in _UNREACHABLE[version] and not (version == 4 and icmp[1] == 4 and icmp[0] == 3):
        original = icmp[8:]  # the packet that could not be delivered
        if len(original) < 20:
            return None
        if icmp[0] == _UNREACHABLE[version][0] and icmp[1] in _NOT_THERE[version]:
            return None  # a router says that the node is not reached
        inner = original[(original[0] & 15) * 4 :] if version == 4 else original[40:]
    else:
        return None
    if len(inner) < 13 or struct.unpack_from("!H", inner, 4)[0] != identifier:
        return None
    number, kind = struct.unpack_from("!IB", inner, 8)
    return int(number), int(kind)


_NOT_THERE = {4: (0, 1, 5, 6, 7, 9, 10, 11, 12, 13), 6: (0, 1, 2, 3, 5, 6)}
"""Codes of "unreachable" that are no sign of the receiver: no route, no neighbour, prohibited on the way."""


def _checksum(content: bytes) -> int:
    padded = content + b"\0" * (len(content) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


# ---- datagrams ----------------------------------------------------------------------------------

_DATAGRAM_SECONDS = 0.15
_ERROR_SECONDS, _ROUNDS = 1.1, 2
"""A host sends an error of ICMP to another once a second (icmp_ratelimit)."""


def refused_by(addresses: Sequence[Address]) -> set[Address]:
    """Send a datagram to a closed port of each; return those that send "port unreachable": it arrived, and was right.

    Errors are limited to some a second, so what is missing is asked for again.
    """
    found: set[Address] = set()
    for _ in range(TRIES):
        left = [address for address in addresses if address not in found]
        found |= _refused(left) if left else set()
    return found


def _refused(addresses: Sequence[Address], *, has_checksum: bool = True, kind: int = socket.SOCK_DGRAM) -> set[Address]:
    """Send to the closed port of each; return those that refuse it. An open one, of a connection, counts too."""
    found: set[Address] = set()
    with ExitStack() as stack:
        waiting: dict[int, tuple[Address, socket.socket]] = {}
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = stack.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK))
            if not has_checksum:
                sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
            with suppress(OSError):
                number = sock.connect_ex((str(address), PORT))
                if kind == socket.SOCK_DGRAM:
                    sock.send(b"cni-py doctor")
                if number in (0, EINPROGRESS):
                    waiting[sock.fileno()] = (address, sock)
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLERR | (select.POLLIN if kind == socket.SOCK_DGRAM else select.POLLOUT))
        for left in _until(_DATAGRAM_SECONDS):
            if not waiting:
                break
            for fd, _ in poll.poll(left * 1000):
                address, sock = waiting.pop(fd)
                poll.unregister(fd)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number == ECONNREFUSED or (number == 0 and kind == socket.SOCK_STREAM):
                    found.add(address)
    return found


def _ask_by_datagram(targets: Sequence[Target], results: list[Reached]) -> None:
    """Ask those by datagrams that did not reply to an echo: a node may ignore these."""
    ends = [result.target for result in results if not result.tunnel]
    nodes = [target.node for target, result in zip(targets, results, strict=True) if result.node is False and target.node]
    refused = refused_by([*ends, *nodes]) if ends or nodes else set()
    for number, (target, result) in enumerate(zip(targets, results, strict=True)):
        by_node = target.node in refused if result.node is False else result.node
        results[number] = replace(result, tunnel=result.tunnel or result.target in refused, node=by_node)


def _check_checksums(results: list[Reached]) -> None:
    """Find peers for which a device on the way computes wrong checksums: what has none arrives, and nothing else does.

    A peer that refuses a TCP connection has received a segment whose checksum is right, and nothing more is asked. Of one that
    is silent, which a firewall may be too, datagrams are asked: the first with a checksum, since the peer limits its errors.
    """
    asked: list[Address] = [result.target for result in results if result.tunnel and result.target.version == 4]
    silent = [address for address in asked if address not in _refused(asked, kind=socket.SOCK_STREAM)]
    checked: set[Address] = set()
    unchecked = dict.fromkeys(silent, 0)
    for round_ in range(_ROUNDS):
        left = [address for address in silent if address not in checked and unchecked[address] == round_]
        if not left:
            break
        sleep(_ERROR_SECONDS if round_ else 0)
        checked |= _refused(left)
        for address in _refused([address for address in left if address not in checked], has_checksum=False):
            unchecked[address] += 1
    for number, result in enumerate(results):
        if result.target in asked:
            is_checked = result.target not in silent or result.target in checked
            results[number] = replace(result, checked=is_checked, unchecked=unchecked.get(result.target) == _ROUNDS)


# ---- our own address ----------------------------------------------------------------------------

_ARP = 0x0806
_ARP_SECONDS = 0.3
_BROADCAST = b"\xff" * 6


def ask_arp(address: Address, link: Link, macs: frozenset[str]) -> list[str]:
    """Return the MAC addresses of other machines on a link that have this address too. Raises: OSError."""
    own = bytes.fromhex(link.mac.replace(":", ""))
    if len(own) != 6 or link.kind in ("wireguard", "tun", "ipip"):
        return []
    # sender 0.0.0.0, as a host asks that does not have the address yet: no cache on the link learns from it
    request = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, own, bytes(4), bytes(6), address.packed)
    frame = _BROADCAST + own + struct.pack("!H", _ARP) + request
    found: list[str] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as sock:
        sock.bind((link.name, _ARP))
        sock.send(frame)
        for left in _until(_ARP_SECONDS):
            if not select.select([sock], [], [], left)[0]:
                break
            reply = sock.recv(64)
            if len(reply) < 42:
                continue
            operation, sender, sender_address = struct.unpack_from("!H6s4s", reply, 20)
            mac = sender.hex(":")
            if operation == 2 and sender_address == address.packed and mac not in (*found, *macs):
                found.append(mac)
                break
    return found


def targets_of(wanted: Iterable[Wanted], mtu: int, mtus: dict[int, int] | None = None) -> list[Target]:
    """Return what is asked of each peer: pure. ``mtus``: of a pod's packet, by family."""
    found = []
    for one in wanted:
        its, version = one.lease.attributes, one.subnet.version
        node = its.public_ip if version == 4 else its.public_ipv6
        has_tunnel = one.neighbour is not None
        end: Address = one.subnet.network_address if has_tunnel else _gateway(one.subnet)
        beyond = one.subnet.network_address + 2 if has_tunnel else None
        found.append(Target(one, end, node, (mtus or {}).get(version, mtu), has_tunnel, beyond))
    return found


def ends_of(peers: Iterable[Lease], device: str, versions: Iterable[int], mtu: int) -> list[Target]:
    """Return what is asked where a back end keeps no entries for a peer: the first address of its subnet, its device's."""
    found = []
    for lease in peers:
        for subnet in lease.subnets.each():
            its = lease.attributes
            node = its.public_ip if subnet.version == 4 else its.public_ipv6
            if subnet.version in versions and node is not None:
                found.append(Target(Wanted(lease, subnet, Route(subnet, device)), subnet.network_address, node, mtu))
    return found


def _gateway(subnet: Network) -> Address:
    return subnet.network_address + 1
