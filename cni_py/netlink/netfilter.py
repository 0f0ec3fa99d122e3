"""The netfilter family of netlink: one request at a time, and batches, over sockets that are kept.

Closing a socket of this family waits until the kernel has freed what the last transactions deleted, 10 to 25 ms;
so sockets are kept and reused. One belongs to the namespace of the thread that created it. Never use this over a
``fork``. Source: linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

EAGAIN = 11
_REQUEST = 1
_DUMP, _INTERRUPTED = 0x300, 0x10
_ERROR, _DONE = 2, 3
_TRIES = 5

_idle: list[socket] = []


def request(kind: int, family: int, body: bytes, flags: int = 0) -> list[bytes]:
    """Send one message of NETLINK_NETFILTER, and read the attributes of its answers.

    Args:
        kind: subsystem and message in it.

    Raises: OSError with the kernel's number.
    """
    message = framed(kind, _REQUEST | flags, 1, family, body)
    for _ in range(_TRIES):
        netlink = _socket()
        netlink.send(message)
        number, bodies = _answers(netlink, bool(flags & _DUMP))
        _idle.append(netlink)
        if number > 0:
            raise OSError(number, posix.strerror(number))
        if number == 0:
            return bodies
    raise OSError(EAGAIN, "the rules were changed each time while they were read")


def framed(kind: int, flags: int, sequence: int, family: int, body: bytes, resource: int = 0) -> bytes:
    """A message: ``struct nlmsghdr``, ``struct nfgenmsg``, attributes; ``resource``: the subsystem of a batch."""
    from struct import pack

    return pack("=IHHIIBB", 20 + len(body), kind, flags, sequence, 0, family, 0) + resource.to_bytes(2, "big") + body


def transact(batch: list[bytes]) -> None:
    """Send a batch of framed messages, of which the last but one asks for an acknowledgement. Raises: OSError."""
    netlink = _socket()
    netlink.send(b"".join(batch))
    number, _ = _answers(netlink, dump=False)
    if number:
        netlink.close()  # more refusals may be on their way
        raise OSError(number, posix.strerror(number))
    _idle.append(netlink)


def _socket() -> socket:
    from _socket import SOCK_CLOEXEC, SOCK_RAW, socket

    try:
        return _idle.pop()
    except IndexError:
        made = socket(16, SOCK_RAW | SOCK_CLOEXEC, 12)  # AF_NETLINK, NETLINK_NETFILTER
        made.connect((0, 0))
        return made


def _answers(netlink: socket, dump: bool) -> tuple[int, list[bytes]]:
    """Read to the end: error number (-1: read again), and the attributes of each message."""
    from struct import unpack_from

    bodies: list[bytes] = []
    number = 0
    while True:
        datagram = netlink.recv(1 << 17)
        at = 0
        while at < len(datagram):
            length, kind, flags = unpack_from("=IHH", datagram, at)
            if flags & _INTERRUPTED:
                number = -1
            if kind == _ERROR:
                return -unpack_from("=i", datagram, at + 16)[0], []
            if kind == _DONE:
                return number, bodies
            bodies.append(datagram[at + 20 : at + length])
            at += length + 3 & ~3
        if not dump:
            return number, bodies
