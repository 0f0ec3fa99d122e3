"""Ping many addresses at once, from the network namespace that it is started in: a program of its own.

Started as ``python3 -IS pinger.py``, with the standard library only: one process per pod, however many it pings.
Standard input: ``{"seconds": 1.0, "targets": [["10.244.85.2", 1450], …]}``; the number is the size of the IP packet,
0 for a small one. Every packet has DF set, and is sent again until there is a reply. Standard output: a list
``[milliseconds or null, "reason"]`` in the order of the targets.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from errno import EMSGSIZE

AGAIN_SECONDS = 0.25
SMALL_PACKET = 64
_MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DO = 2  # set DF, and reject packets that are larger than the path's MTU
_HEADERS = {socket.AF_INET: 20, socket.AF_INET6: 40}
_ECHO = {socket.AF_INET: 8, socket.AF_INET6: 128}
_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
_UNREACHABLE = {socket.AF_INET: 3, socket.AF_INET6: 1}


def main() -> None:
    asked = json.load(sys.stdin)
    targets = [(address, size) for address, size in asked["targets"]]
    json.dump(ping(targets, asked["seconds"]), sys.stdout)


def ping(targets: list[tuple[str, int]], seconds: float) -> list[tuple[float | None, str]]:
    """Returns: milliseconds, or the reason why there was no reply, for each target."""
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address, _ in targets]
    sockets = {family: _open(family) for family in set(families)}
    answers: dict[int, float] = {}
    reasons = dict.fromkeys(range(len(targets)), "no reply")
    too_large_ones: set[int] = set()
    sent_at: dict[int, float] = {}
    ident = os.getpid() & 0xFFFF
    deadline, again = time.monotonic() + seconds, 0.0
    while len(answers) + len(too_large_ones) < len(targets) and (now := time.monotonic()) < deadline:
        if now >= again:
            again = now + AGAIN_SECONDS
            for number in [n for n in reasons if n not in answers and n not in too_large_ones]:
                address, size = targets[number]
                try:
                    sent_at[number] = time.monotonic()
                    sockets[families[number]].sendto(_packet(families[number], ident, number, size), (address, 0))
                except OSError as error:
                    reasons[number] = "too large for the path" if error.errno == EMSGSIZE else (error.strerror or str(error))
                    if error.errno == EMSGSIZE:
                        too_large_ones.add(number)
        for sock in select.select(list(sockets.values()), [], [], max(0.0, min(again, deadline) - time.monotonic()))[0]:
            came = time.monotonic()
            number, why = _read(sock, ident)
            if number not in sent_at or number in answers:
                continue
            if why:
                reasons[number] = why
            else:
                answers[number] = (came - sent_at[number]) * 1000
    return [(answers.get(number), "" if number in answers else reasons[number]) for number in range(len(targets))]


def _open(family: socket.AddressFamily) -> socket.socket:
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setsockopt(*_MTU_DISCOVER[family], _PMTUDISC_DO)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.setblocking(False)
    return sock


def _packet(family: socket.AddressFamily, ident: int, number: int, size: int) -> bytes:
    """An echo request for an IP packet of this size. (The kernel adds the checksum of ICMPv6.)"""
    data = bytes((size or SMALL_PACKET) - _HEADERS[family] - 8)
    head = struct.pack("!BBHHH", _ECHO[family], 0, 0, ident, number)
    if family == socket.AF_INET:
        total = sum(struct.unpack("!4H", head))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        head = struct.pack("!BBHHH", _ECHO[family], 0, ~total & 0xFFFF, ident, number)
    return head + data


def _read(sock: socket.socket, ident: int) -> tuple[int, str]:
    """Returns: the target that a packet belongs to (-1: not our packet), and an error if it reports one."""
    family = socket.AddressFamily(sock.family)
    packet, (sender, *_) = sock.recvfrom(65536)
    if family == socket.AF_INET:
        packet = packet[(packet[0] & 15) * 4 :]
    kind, code, _, found, number = struct.unpack("!BBHHH", packet[:8])
    if kind == _REPLY[family]:
        return (number, "") if found == ident else (-1, "")
    too_large = (kind, code) == (3, 4) if family == socket.AF_INET else kind == 2
    if not too_large and kind != _UNREACHABLE[family]:
        return -1, ""
    inner = packet[8:]  # the beginning of the packet that was not delivered
    inner = inner[(inner[0] & 15) * 4 :] if family == socket.AF_INET else inner[40:]
    if len(inner) < 8:
        return -1, ""
    kind, _, _, found, number = struct.unpack("!BBHHH", inner[:8])
    if kind != _ECHO[family] or found != ident:
        return -1, ""
    return number, "too large for the path" if too_large else f"unreachable, reported by {sender}"


if __name__ == "__main__":
    main()
