"""Netlink sockets, and the one loop that reads them: of route, netfilter and generic netlink, and of notifications.

How it works. A :class:`Netlink` sends one request at a time and reads until its reply is complete; a :class:`Listener`
receives notifications of changes by other processes. Messages are passed without their header (``struct nlmsghdr``): the
family's own struct and attributes (``attributes.py``). Extended acknowledgements are on: the kernel returns "Nexthop has
invalid gateway" instead of "Network is unreachable". Strict checking is on: dumps are filtered by the kernel.

A dump of more than one datagram during which something was created or deleted may miss objects, long-lived ones
too. The kernel marks it (NLM_F_DUMP_INTR), and it is read again.

Nothing else creates or reads such a socket; tests/layers/test_netlink.py checks that.

Source: linux Documentation/userspace-api/netlink/intro.rst, net/netlink/af_netlink.c.
"""

from __future__ import annotations

import _socket
import posix
from errno import EAGAIN, ENOBUFS
from struct import Struct, unpack_from
from sys import byteorder

from cni_py.errors import KernelRefused
from cni_py.netlink.attributes import attributes
from cni_py.netlink.constants import (
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGERR_ATTR_MSG,
    SO_ATTACH_FILTER,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

Request = tuple[bytes, int, int]
"""Message without its header, kind, flags."""
Notification = tuple[int, int, bytes]
"""Kind, port of the socket that requested the change, and message without its header."""
ATTEMPTS = 5
"""Attempts to read a dump that is interrupted each time."""
_BUFFER = 65536
_AT_A_TIME = 128
"""Changes per datagram: if all are rejected, a socket's default buffer holds the replies."""
_HEADER = Struct("=IHHII")
_PORT_AT = 12
"""Offset of the port in the header."""
_BPF, _PROGRAM = Struct("=HBBI"), Struct("@HP")
"""``struct sock_filter``, ``struct sock_fprog``."""
_BPF_LOAD_WORD, _BPF_JUMP_EQUAL, _BPF_RETURN = 0x20, 0x15, 0x06


class NetlinkError(OSError):
    """Rejection of a request by the kernel: ``errno``, and in ``strerror`` its message, extended if there is one.

    ``index`` is the position of the rejected request among those of :meth:`Rtnl.change_all`.
    """

    hint = ""
    index = 0


class DumpInterrupted(NetlinkError):
    """Failure to read a list that changes during each attempt."""

    hint = "another process keeps creating and deleting these: try again; find it with: ip monitor all, nft monitor"


class question:  # noqa: N801 — reads as a statement: with question("ip", "link", "show", name):
    """Query without a change: an ``OSError`` inside becomes ``KernelRefused`` with the equivalent command."""

    def __init__(self, *words: str) -> None:
        self.line = " ".join(words)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise unreadable(f'could not read: "{self.line}"', error) from error


def unreadable(message: str, error: OSError) -> KernelRefused:
    """Return the error of a query to the kernel, with its message and a hint."""
    hint = error.hint if isinstance(error, NetlinkError) else ""
    return KernelRefused(message, error.strerror or str(error), hint, errno=error.errno or 0)


class Netlink:
    """A socket of one family of netlink and one network namespace: that of the thread that called :func:`new_socket`."""

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    @property
    def is_strict(self) -> bool:
        """True if the kernel filters dumps, and supports queries for another namespace (Linux 4.20)."""
        try:
            return bool(self._socket.getsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK))
        except OSError:
            return False

    @property
    def port(self) -> int:
        """The socket's number among netlink sockets: notifications name the one that made a change."""
        number: int = self._socket.getsockname()[0]
        return number

    def get(self, question: bytes, kind: int) -> bytes:
        """Return one object; question and reply are messages without their header. Raises: NetlinkError."""
        sequence = self.send((question, kind, NLM_F_REQUEST))
        for answer, flags, _, body in self.answers(sequence, sequence):
            if answer == NLMSG_ERROR:
                raise_if_refused(answer, flags, body)
            return body
        raise AssertionError("the reply has no end")

    def dump(self, question: bytes, kind: int, containing: bytes = b"") -> list[bytes]:
        """Return all objects that contain these bytes.

        Raises: NetlinkError; DumpInterrupted after ``ATTEMPTS``.
        """
        for _ in range(ATTEMPTS):
            found = self._dump_once(question, kind, containing)
            if found is not None:
                return found
        raise DumpInterrupted(EAGAIN, f"it changed while it was read, {ATTEMPTS} times")

    def _dump_once(self, question: bytes, kind: int, containing: bytes) -> list[bytes] | None:
        """Return all objects; None if they changed while they were read."""
        sequence = self.send((question, kind, NLM_F_REQUEST | NLM_F_DUMP))
        found: list[bytes] = []
        interrupted = 0
        for answer, flags, _, body in self.answers(sequence, sequence):
            interrupted |= flags & NLM_F_DUMP_INTR
            if answer in (NLMSG_DONE, NLMSG_ERROR):
                raise_if_refused(answer, flags, body)
                break
            if containing in body:
                found.append(body)
        return None if interrupted else found

    def change(self, message: bytes, kind: int, flags: int = 0) -> None:
        """Send a change and wait for its acknowledgement. Raises: NetlinkError."""
        self.change_all((message, kind, flags))

    def change_all(self, *requests: Request) -> None:
        """Send changes in one datagram: a process that is killed has made all of them or none.

        Raises: NetlinkError, the first rejection; changes before and after it are still made.
        """
        for index, error in self._refusals([(message, kind, flags | NLM_F_ACK) for message, kind, flags in requests]):
            error.index = index
            raise error

    def change_many(self, requests: Sequence[Request]) -> dict[int, NetlinkError]:
        """Send any number of changes. Returns: the rejections by index.

        A rejected one does not prevent the others. The kernel acknowledges what it rejects and
        the last of a datagram, so that thousands take no longer than the kernel itself needs. Raises: OSError.
        """
        refused: dict[int, NetlinkError] = {}
        for start in range(0, len(requests), _AT_A_TIME):
            *chunk, (message, kind, flags) = requests[start : start + _AT_A_TIME]
            for index, error in self._refusals([*chunk, (message, kind, flags | NLM_F_ACK)]):
                refused[start + index] = error
        return refused

    def _refusals(self, requests: Sequence[Request]) -> list[tuple[int, NetlinkError]]:
        """Send changes, of which the last requests an acknowledgement; the kernel handles them in order."""
        first = self.send(*[(message, kind, flags | NLM_F_REQUEST) for message, kind, flags in requests])
        last = first + len(requests) - 1
        refused = []
        for answer, flags, sequence, body in self.answers(first, last):
            try:
                raise_if_refused(answer, flags, body)
            except NetlinkError as error:
                refused.append((sequence - first, error))
            if sequence == last:
                break
        return refused

    def send(self, *requests: Request) -> int:
        """Send messages in one datagram. Returns: the first one's sequence number. Raises: OSError."""
        first = self._sequence + 1
        self._sequence += len(requests)
        frames = []
        for sequence, (message, kind, flags) in enumerate(requests, first):
            frames.append(_HEADER.pack(_HEADER.size + len(message), kind, flags, sequence, 0))
            frames.append(message)
        self._socket.send(b"".join(frames))
        return first

    def answers(self, first: int, last: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield kind, flags, sequence and body of the replies to requests of these numbers; the caller recognizes the end."""
        while True:
            for kind, flags, sequence, _, body in _messages(self._socket.recv(_BUFFER)):
                if first <= sequence <= last:  # otherwise it belongs to an abandoned request
                    yield kind, flags, sequence, body


class Rtnl(Netlink):
    """Rtnetlink socket; ``enter`` is the command prefix that runs a command in its namespace.

    ``ifindexes``: of links that were asked for by name, as long as they are remembered; None: they are not.
    """

    ifindexes: dict[str, int] | None = None

    def __init__(self, sock: _socket.socket, enter: tuple[str, ...] = ()) -> None:
        super().__init__(sock)
        self.enter = enter

    def remember_links(self, is_wanted: bool) -> None:
        """Ask for each link once from now on, or each time again: while it lasts one may be re-created."""
        self.ifindexes = {} if is_wanted else None

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Listener:
    """Socket that receives the notifications of ``groups``, a mask, in the namespace of the calling thread. Raises: OSError.

    ``ignoring``: the port of a socket whose changes are not reported to this one, where the kernel names their author.
    """

    def __init__(self, protocol: int, groups: int, buffer_bytes: int = 0, ignoring: int = 0) -> None:
        self._socket = new_socket(protocol, groups)
        if buffer_bytes:
            try:
                self._socket.setsockopt(_socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
            except OSError:  # not without CAP_NET_ADMIN: it overflows earlier
                pass
        if ignoring:
            _ignore(self._socket, ignoring)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for ``select``."""
        return self._socket.fileno()

    def receive(self, timeout_seconds: float) -> list[Notification] | None:
        """Return those of one datagram: none after the timeout, None if some were lost and anything may have changed.

        Raises: OSError.
        """
        self._socket.settimeout(timeout_seconds)
        try:
            return [(kind, port, body) for kind, _, _, port, body in _messages(self._socket.recv(_BUFFER))]
        except (TimeoutError, BlockingIOError):
            return []
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            return None


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Kind, flags, sequence, port and rest of each message."""
    at, end = 0, len(datagram) - _HEADER.size
    while at <= end:
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, at)
        yield kind, flags, sequence, port, datagram[at + 16 : at + length]
        at += max(length + 3 & ~3, 16)


def raise_if_refused(kind: int, flags: int, body: bytes) -> None:
    """Check the end of a reply, NLMSG_ERROR or NLMSG_DONE: 0 or a negative errno, then perhaps text. Raises: NetlinkError."""
    number = -unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if number > 0:
        words = _extended_words(kind, flags, body)
        text = posix.strerror(number)
        raise NetlinkError(number, f"{words} ({text})" if words else text)


def _extended_words(kind: int, flags: int, body: bytes) -> str:
    """The kernel's explanation: attributes; in an acknowledgement (``struct nlmsgerr``) after a copy of our request."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    start = 4
    if kind == NLMSG_ERROR:
        copied = _HEADER.size if flags & NLM_F_CAPPED else unpack_from("=I", body, 4)[0]
        start += (copied + 3) & ~3
    words = dict(attributes(body[start:])).get(NLMSGERR_ATTR_MSG, b"")
    return words.rstrip(b"\0").decode(errors="replace")


def _ignore(sock: _socket.socket, port: int) -> None:
    """Let the kernel drop messages with this port: not even a thread wakes for them.

    Classic BPF: load the header's port, in network order; compare; accept nothing, or everything.
    """
    from array import array

    swapped = int.from_bytes(port.to_bytes(4, byteorder), "big")
    code = (
        (_BPF_LOAD_WORD, 0, 0, _PORT_AT),
        (_BPF_JUMP_EQUAL, 0, 1, swapped),
        (_BPF_RETURN, 0, 0, 0),
        (_BPF_RETURN, 0, 0, 1 << 31),
    )
    instructions = array("B", b"".join([_BPF.pack(*each) for each in code]))
    address, _ = instructions.buffer_info()
    sock.setsockopt(_socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(len(code), address))


def new_socket(protocol: int = NETLINK_ROUTE, groups: int = 0) -> _socket.socket:
    """A socket of the namespace that the thread is in, with an address of its own. Raises: OSError."""
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    try:
        sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    except OSError:  # before Linux 4.20: dumps come unfiltered and are filtered by the caller
        pass
    sock.bind((0, groups))
    return sock


def open_host() -> Rtnl:
    """An rtnetlink socket of the namespace that the thread is in. Raises: KernelRefused."""
    with question("ip", "link"):
        return Rtnl(new_socket())
