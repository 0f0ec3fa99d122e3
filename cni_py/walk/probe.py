"""A real packet, sent and watched: one ICMP echo, TCP SYN or UDP datagram, and everything that is seen of it.

How it works. Sockets of the family AF_PACKET in each namespace receive what passes its interfaces, in both directions; a
filter in the kernel passes only frames with the probe's token, at every offset at which it can be: plain, in VXLAN, in a
tunnel, quoted by an ICMP error. Tracers (``packetfilter/trace.py``) report the rules that it meets. The packet is sent from
the namespace of the source by an ordinary raw or datagram socket, at most ``TRIES`` times; a TCP SYN has a sequence number
that marks it, so that the reply's acknowledgement shows it too, and the kernel closes the half-open connection by its own
RST.

Nothing remains: sockets and tables end with this process, connections that the probe began are deleted.

Source: packet(7); linux net/core/filter.c (classic BPF).
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.kernel.conntrack import delete_original
from cni_py.netlink.constants import ETH_P_ALL, SO_ATTACH_FILTER, SO_RCVBUFFORCE
from cni_py.packetfilter.trace import Tracer
from cni_py.walk.hops import IN, OUT
from cni_py.walk.packet import (
    HEADER,
    REQUEST,
    TCP,
    UDP,
    Frame,
    Packet,
    Token,
    offsets,
    parse,
    transport_offsets,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_py.packetfilter.trace import Event
    from cni_py.walk.place import Place

TRIES = 3
SECONDS = 2.0
"""Time to wait for the packet's end."""
QUIET_SECONDS = 0.15
"""Time without a new frame after which a probe that has had its reply is over."""
LATE_SECONDS = 5.0
"""Time after the packet's end, at most, in which what comes is still read."""
_AT_ONCE = 1000
"""Frames that are read before the time is checked."""
_SO_TIMESTAMPNS = 35
_LINK_HEADERS = (14, 0)
_PACKET_OTHERHOST, _PACKET_OUTGOING = 3, 4
_BUFFER_BYTES = 4 << 20
_SNAP = 65536
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DO = 2
_SOCKETS = {4: socket.AF_INET, 6: socket.AF_INET6}
_SYN, _WINDOW, _TCP_HEADER = 0x02, 64240, 20
_BPF, _PROGRAM = struct.Struct("=HBBI"), struct.Struct("@HP")
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06


@dataclass(frozen=True, slots=True)
class Sighting:
    """A frame of the probe at an interface.

    ``when``: the kernel's time, in nanoseconds; ``is_for_another``: it has another MAC address, as where a bridge floods it.
    """

    place: str
    link: str
    direction: str
    frame: Frame
    when: int
    is_for_another: bool = False


@dataclass(slots=True)
class Observed:
    """Everything that was seen.

    ``refused``: the kernel's words when it refused to send; ``notes``: what could not be watched.
    """

    sightings: list[Sighting] = field(default_factory=list)
    traced: dict[str, list[Event]] = field(default_factory=dict)
    refused: str = ""
    sent: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def events(self) -> int:
        return len(self.sightings) + sum(map(len, self.traced.values()))

    def of_kind(self, kind: str) -> list[Sighting]:
        return [one for one in self.sightings if one.frame.kind == kind]


class Capture:
    """A socket that sees the probe at every interface of one place. Raises: OSError."""

    def __init__(self, place: Place, token: Token) -> None:
        self.place, self._token = place, token
        self._socket = place.netns.run(lambda: _packet_socket(token))

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for ``poll``."""
        return self._socket.fileno()

    def read(self) -> list[Sighting]:
        """The frames that have come until now."""
        found: list[Sighting] = []
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _, (ifname, _, kind, hardware, _) = self._socket.recvmsg(_SNAP, 64)
            except (BlockingIOError, InterruptedError):
                return found
            frame = parse(data, hardware, self._token)
            if frame is not None:
                direction = OUT if kind == _PACKET_OUTGOING else IN
                is_for_another = kind == _PACKET_OTHERHOST
                found.append(Sighting(self.place.name, ifname, direction, frame, _time_of(ancillary), is_for_another))
        return found


def _time_of(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(data) >= 16:
            seconds, nanoseconds = struct.unpack("@qq", data[:16])
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()


def _packet_socket(token: Token) -> socket.socket:
    """A socket that receives frames with the token on every interface of the thread's namespace.

    A frame that comes before the filter is set is in its queue too: :func:`parse` checks each.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    try:
        sock.setblocking(False)
        _filter(sock, token)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
    except BaseException:
        sock.close()
        raise
    return sock


def _filter(sock: socket.socket, token: Token) -> None:
    """Classic BPF: accept a frame with the token at one of the offsets, with a header of Ethernet or without one (TUN).

    A load behind the frame's end rejects it, so the offsets ascend: behind the end there is nothing left to find.
    """
    code = []
    for at, value in sorted({each for header in _LINK_HEADERS for each in offsets(token, header)}):
        code += [(_LOAD_WORD, 0, 0, at), (_JUMP_EQUAL, 0, 1, int.from_bytes(value, "big")), (_RETURN, 0, 0, _SNAP)]
    code.append((_RETURN, 0, 0, 0))
    instructions = array("B", b"".join(_BPF.pack(*each) for each in code))
    address, _ = instructions.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(len(code), address))


def new_token(packet: Packet, destination_ports: frozenset[int]) -> Token:
    number = int.from_bytes(secrets.token_bytes(4), "big") | 0x01000000
    data = max(0, packet.size - HEADER[packet.version] - _TCP_HEADER) if packet.protocol == TCP else 0
    return Token(packet.protocol, number, destination_ports, data)


def probe(
    source: Place,
    packet: Packet,
    watched: Sequence[Place],
    token: Token,
    is_complete: Callable[[Observed], bool],
    seconds: float = SECONDS,
) -> Observed:
    """Send the packet from a place, and watch it in these places.

    Args:
        is_complete: returns whether everything that is expected has been seen; the probe then ends soon.

    Raises: KernelRefused, OSError.
    """
    observed = Observed()
    with ExitStack() as stack:
        captures = []
        for place in watched:
            capture = Capture(place, token)
            stack.callback(capture.close)
            captures.append(capture)
        tracers = _tracers(watched, token, observed, stack)
        sender = _Sender(source, packet, token)
        stack.callback(sender.close)
        stack.callback(_forget, watched, observed)
        _watch(sender, captures, tracers, observed, is_complete, seconds)
    observed.sightings.sort(key=lambda one: one.when)
    return observed


def _tracers(watched: Sequence[Place], token: Token, observed: Observed, stack: ExitStack) -> dict[str, Tracer]:
    """A tracer in each place that has rules."""
    found: dict[str, Tracer] = {}
    marks = [(8 * at, value) for at, value in _marks(token)]
    for place in watched:
        if not place.ruleset.has_nftables:
            continue
        try:
            devices = {hook: found_at for hook in ("ingress", "egress") if (found_at := place.ruleset.devices(hook))}
            is_bridged = place.ruleset.has_family("bridge")
            tracer = found[place.name] = place.netns.run(partial(Tracer, marks, is_bridged=is_bridged, devices=devices))
        except (CniError, OSError) as error:
            observed.notes.append(f"{place.name}: rules are not traced: {error}")
            continue
        stack.callback(tracer.close)
    return found


def _marks(token: Token) -> list[tuple[int, bytes]]:
    """Offsets from a transport header: of the probe, and of one that is carried in VXLAN or in a datagram."""
    shells = [shell + HEADER[version] for shell in (8 + 8 + 14, 8) for version in HEADER]
    return sorted({(start + at, value) for start in (0, *shells) for at, value in transport_offsets(token)})


def _watch(
    sender: _Sender,
    captures: Sequence[Capture],
    tracers: dict[str, Tracer],
    observed: Observed,
    is_complete: Callable[[Observed], bool],
    seconds: float,
) -> None:
    """Send, and read until all has been seen and nothing more comes, or the time is over."""
    poll = select.poll()
    for fileno in (*(one.fileno() for one in captures), *(one.fileno() for one in tracers.values())):
        poll.register(fileno, select.POLLIN)
    began = last = again = time.monotonic()
    is_over = False
    while True:
        now = time.monotonic()
        if not is_over and observed.sent < TRIES and now >= again:
            observed.refused = sender.send()
            observed.sent += 1
            again = now + seconds / TRIES
            is_over = bool(observed.refused) or is_complete(observed)
        finish = last + QUIET_SECONDS if is_over else began + seconds
        wait = finish if is_over or observed.sent == TRIES else min(finish, again)
        if poll.poll(max(0.0, wait - now) * 1000) and _read(captures, tracers, observed):
            last = time.monotonic()
            is_over = is_over or is_complete(observed)
        elif now >= finish:  # nothing of the probe is waiting to be read, however late this process was woken
            return
        if now >= began + seconds + LATE_SECONDS:  # a frame that goes in a circle forever, such as in a loop of bridges
            observed.notes.append("The packet is still seen again and again: it goes in a circle.")
            return


def _read(captures: Sequence[Capture], tracers: dict[str, Tracer], observed: Observed) -> bool:
    """Return whether anything of the probe has come; packets that other rules trace are reported here too."""
    before = observed.events
    rulesets = {capture.place.name: capture.place.ruleset for capture in captures}
    for capture in captures:
        observed.sightings += capture.read()
    for name, tracer in tracers.items():
        rules = rulesets[name]
        events = [one.replace(family=rules.family_of(one.family, one.table, one.chain)) for one in tracer.receive()]
        observed.traced.setdefault(name, []).extend(events)
    return observed.events > before


def _forget(watched: Sequence[Place], observed: Observed) -> None:
    """Delete the connections that the probe began."""
    for place in watched:
        seen = {one.frame.packet.innermost for one in observed.of_kind(REQUEST) if one.place == place.name}
        if seen:
            place.netns.run(partial(_forget_all, seen))


def _forget_all(packets: Iterable[Packet]) -> None:
    for of in packets:
        delete_original(of.protocol, of.source, of.destination, of.source_port, of.destination_port, of.identifier)


class _Sender:
    """A socket in the namespace of the source. Raises: OSError."""

    def __init__(self, place: Place, packet: Packet, token: Token) -> None:
        self._packet, self._token = packet, token
        self._socket = place.netns.run(lambda: _sending_socket(packet))

    def close(self) -> None:
        self._socket.close()

    def send(self) -> str:
        """Send the packet. Returns: "", or the kernel's reason for refusing it."""
        packet = self._packet
        port = packet.destination_port if packet.protocol == UDP else 0
        try:
            self._socket.sendto(_payload(packet, self._token), (str(packet.destination), port))
        except OSError as error:
            return error.strerror or str(error)
        return ""


def _sending_socket(packet: Packet) -> socket.socket:
    family = _SOCKETS[packet.version]
    if packet.protocol == UDP:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    elif packet.protocol == TCP:
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    else:
        protocol = socket.IPPROTO_ICMP if packet.version == 4 else socket.IPPROTO_ICMPV6
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
    try:
        sock.setblocking(False)
        if packet.dont_fragment:
            sock.setsockopt(*_MTU_DISCOVER[packet.version], _PMTUDISC_DO)
        sock.bind((str(packet.source), packet.source_port if packet.protocol == UDP else 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _payload(packet: Packet, token: Token) -> bytes:
    """Return what the socket takes: the transport header where the socket is raw, and data up to the packet's size."""
    start = HEADER[packet.version]
    if packet.protocol == UDP:
        return token.text.ljust(max(4, packet.size - start - 8), b"\0")
    if packet.protocol == TCP:
        data = bytes(token.data_bytes)
        ports = packet.source_port, packet.destination_port
        head = struct.pack("!HHIIBBHHH", *ports, token.number, 0, 5 << 4, _SYN, _WINDOW, 0, 0)
        sum_ = _checksum(_pseudo_header(packet, 6, len(head) + len(data)) + head + data)
        return head[:16] + struct.pack("!H", sum_) + head[18:] + data
    data = token.text.ljust(max(4, packet.size - start - 8), b"\0")
    kind = 8 if packet.version == 4 else 128
    head = struct.pack("!BBHHH", kind, 0, 0, token.number & 0xFFFF, 1)
    if packet.version == 4:  # the kernel adds that of ICMPv6
        head = struct.pack("!BBHHH", kind, 0, _checksum(head + data), token.number & 0xFFFF, 1)
    return head + data


def _pseudo_header(packet: Packet, number: int, length: int) -> bytes:
    addresses = packet.source.packed + packet.destination.packed
    return addresses + (struct.pack("!BBH", 0, number, length) if packet.version == 4 else struct.pack("!II", length, number))


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
