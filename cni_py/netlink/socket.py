"""rtnetlink: one socket, one request at a time, with the kernel's own words when it refuses.

pyroute2's message classes encode the attributes of what is made (:func:`made_of`), each list of them once:
the pods of a node differ in little. What is asked or deleted is a few bytes, and answers are read with
``nlattr.py``: pyroute2 needs ten times as long to decode a link, and a DEL goes without its imports.
The transport is ours, because ``IPRoute`` needs a third more time for a call and starts threads and an event loop
(docs/decisions/0004-rtnetlink.md). Extended acknowledgements are on: the kernel says "Nexthop has
invalid gateway" and not "Network is unreachable". Strict checking is on: dumps are filtered by the
kernel.

Source: linux Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import _socket
import posix
from struct import pack, unpack_from

from cni_py.errors import KernelRefused
from cni_py.lazy import without_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    Attribute = tuple[str, object]

NETLINK_ROUTE = 0
SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 11, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
_BUFFER = 65536
_AT_A_TIME = 128
"""Changes in a datagram: were all refused, a socket's default buffer holds the answers."""
_HEADER = 16

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

_FIXED_PART = {"ifinfmsg": 16, "ifaddrmsg": 8, "rtmsg": 12}
"""Bytes of a message between its header and its attributes."""
_MAX_ENCODED = 4096
_encoded: dict[object, bytes] = {}


def made_of(message: str, *attributes: Attribute, family: int = 0) -> bytes:
    """The attributes of a link, address or route, as pyroute2's class ``message`` encodes them.

    A list of attributes is encoded once, which takes 0.1 ms: what every pod has its own of (names, ifindexes,
    addresses) the callers add with ``nlattr.py``. An attribute is a name and a value; a tuple as value holds attributes.
    """
    key = message, family, attributes
    data = _encoded.get(key)
    if data is None:
        if len(_encoded) >= _MAX_ENCODED:
            _encoded.clear()
        new = _message_class(message)()
        new["family"] = family
        new["attrs"] = [(name, _nested(value)) for name, value in attributes]
        new.encode()
        data = bytes(new.data)[_HEADER + _FIXED_PART[message] :]
        _encoded[key] = data = data + bytes(-len(data) % 4)
    return data


def _nested(value: object) -> object:
    """A tuple of attributes as pyroute2 takes it."""
    return {"attrs": [(name, _nested(inner)) for name, inner in value]} if isinstance(value, tuple) else value


def load_message_classes() -> None:
    """Import what :func:`made_of` needs: some 20 ms, at its first use."""
    for name in _FIXED_PART:
        _message_class(name)


def _message_class(name: str) -> Any:
    with without_init("pyroute2"):
        module = __import__(f"pyroute2.netlink.rtnl.{name}", fromlist=[name])
    return getattr(module, name)


class NetlinkError(OSError):
    """The kernel refused a request: ``errno``, and in ``strerror`` its words, extended if it gave some."""


class question:  # noqa: N801 — reads as a statement: with question("ip", "link", "show", name):
    """Something is asked, nothing changed: an ``OSError`` inside becomes ``KernelRefused`` with the command that asks it."""

    def __init__(self, *words: str) -> None:
        self.line = " ".join(words)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise KernelRefused(
                f'could not read: "{self.line}"', error.strerror or str(error), errno=error.errno or 0
            ) from error


class Rtnl:
    """An rtnetlink socket of one network namespace.

    ``enter`` are the words that a person puts before a command to run it in that namespace.
    """

    def __init__(self, sock: _socket.socket, enter: tuple[str, ...] = (), groups: int = 0) -> None:
        self._socket, self.enter = sock, enter
        self._sequence = 0
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        try:
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError:  # before Linux 4.20: dumps come unfiltered and are filtered by the caller
            pass
        sock.bind((0, groups))

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The socket's number among netlink sockets: notifications name the one that made a change."""
        number: int = self._socket.getsockname()[0]
        return number

    def change(self, message: bytes, kind: int, flags: int = 0) -> None:
        """Send a change and wait for its acknowledgement. Raises: NetlinkError."""
        self.change_all((message, kind, flags))

    def change_all(self, *requests: tuple[bytes, int, int]) -> None:
        """Send changes (what follows the header, kind, flags) in one datagram: who kills us finds all of them done or none.

        Raises: NetlinkError, the first refusal; those before and after it are done all the same.
        """
        first = self._sequence + 1
        self._socket.send(
            b"".join([self._framed(message, kind, NLM_F_REQUEST | NLM_F_ACK | flags) for message, kind, flags in requests])
        )
        refusals = []
        for sequence in range(first, first + len(requests)):
            try:
                self._receive(sequence)
            except NetlinkError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def change_many(self, requests: list[tuple[bytes, int, int]]) -> dict[int, NetlinkError]:
        """Send any number of changes (what follows the header, kind, flags); answers the refusals by index.

        A refused one does not keep the others from being done. The kernel acknowledges what it refuses and
        the last of a datagram, so that thousands take no longer than the kernel itself needs. Raises: OSError.
        """
        refusals: dict[int, NetlinkError] = {}
        for start in range(0, len(requests), _AT_A_TIME):
            chunk = requests[start : start + _AT_A_TIME]
            first, last = self._sequence + 1, self._sequence + len(chunk)
            datagram = [self._framed(message, kind, NLM_F_REQUEST | flags) for message, kind, flags in chunk[:-1]]
            message, kind, flags = chunk[-1]
            self._socket.send(b"".join([*datagram, self._framed(message, kind, NLM_F_REQUEST | NLM_F_ACK | flags)]))
            for sequence, error in self._refusals(first, last):
                refusals[start + sequence - first] = error
        return refusals

    def _refusals(self, first: int, last: int) -> list[tuple[int, NetlinkError]]:
        """Read until the last of these requests is answered; the kernel takes them in their order."""
        refusals = []
        while True:
            data = self._socket.recv(_BUFFER)
            length, kind, flags, sequence, _ = unpack_from("=IHHII", data)
            if kind == NLMSG_ERROR and first <= sequence <= last:  # an acknowledgement is a datagram of its own
                try:
                    _raise_if_refused(data[:length], flags)
                except NetlinkError as error:
                    refusals.append((sequence, error))
                if sequence == last:
                    return refusals

    def get(self, question: bytes, kind: int) -> bytes:
        """Ask for one object; question and answer are what follows the header. Raises: NetlinkError."""
        self._socket.send(self._framed(question, kind, NLM_F_REQUEST))
        return self._receive(self._sequence, single=True)[0]

    def dump(self, question: bytes, kind: int, containing: bytes = b"") -> list[bytes]:
        """Ask for all objects; answers those with these bytes in them. Raises: NetlinkError."""
        self._socket.send(self._framed(question, kind, NLM_F_REQUEST | NLM_F_DUMP))
        return self._receive(self._sequence, containing=containing)

    def notices(self, timeout_seconds: float) -> list[tuple[int, int]]:
        """Kind and ifindex of the link messages that a socket with ``groups`` gets, none after the time. Raises: OSError."""
        self._socket.settimeout(timeout_seconds)
        try:
            data = self._socket.recv(_BUFFER)
        except TimeoutError:
            return []
        found, offset = [], 0
        while offset + 24 <= len(data):
            length, kind = unpack_from("=IH", data, offset)
            found.append((kind, unpack_from("=i", data, offset + 20)[0]))
            offset += (length + 3) & ~3
        return found

    def _framed(self, message: bytes, kind: int, flags: int) -> bytes:
        self._sequence += 1
        return pack("=IHHII", _HEADER + len(message), kind, flags, self._sequence, 0) + message

    def _receive(self, expected: int, single: bool = False, containing: bytes = b"") -> list[bytes]:
        """Read datagrams until that request is answered: an acknowledgement, the end of a dump, or one object."""
        answers: list[bytes] = []
        while True:
            data = self._socket.recv(_BUFFER)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _ = unpack_from("=IHHII", data, offset)
                message = data[offset : offset + length]
                if sequence == expected and kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_if_refused(message, flags)
                    return answers
                if sequence == expected and containing in message:
                    answers.append(message[_HEADER:])
                    if single:
                        return answers
                offset += (length + 3) & ~3


def _raise_if_refused(message: bytes, flags: int) -> None:
    """An acknowledgement (``struct nlmsgerr``) holds 0 or a negative errno, then perhaps words."""
    number = -unpack_from("=i", message, 16)[0]
    if number:
        words = _extended_words(message, flags)
        text = posix.strerror(number)
        raise NetlinkError(number, f"{words} ({text})" if words else text)


def _extended_words(message: bytes, flags: int) -> str:
    """The kernel's explanation: attributes after the copy of our request."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    copied = 16 if flags & NLM_F_CAPPED else unpack_from("=I", message, 20)[0]
    offset = 20 + ((copied + 3) & ~3)
    while offset + 4 <= len(message):
        length, kind = unpack_from("=HH", message, offset)
        if kind & 0x3FFF == NLMSGERR_ATTR_MSG:
            return message[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += max((length + 3) & ~3, 4)
    return ""


def new_socket() -> _socket.socket:
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_ROUTE)


def open_host(groups: int = 0) -> Rtnl:
    """A socket of the namespace that the thread is in; ``groups``: RTMGRP_… whose notifications it gets.

    Raises: KernelRefused.
    """
    with question("ip", "link"):
        return Rtnl(new_socket(), groups=groups)
