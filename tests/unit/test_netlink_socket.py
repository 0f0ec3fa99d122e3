"""The transport, over a socket that replies as a test says."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from struct import pack, unpack_from
from typing import Any

import pytest

from cni_py.errors import KernelRefused
from cni_py.netlink import netfilter
from cni_py.netlink.attributes import attribute
from cni_py.netlink.constants import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_GETLINK,
    RTM_NEWLINK,
)
from cni_py.netlink.socket import ATTEMPTS, DumpInterrupted, Listener, NetlinkError, Rtnl, question


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 0, port: int = 0) -> bytes:
    return pack("=IHHII", 16 + len(body), kind, flags, sequence, port) + body + bytes(-len(body) % 4)


def done(sequence: int, number: int = 0, flags: int = 0) -> bytes:
    return message(NLMSG_DONE, sequence, pack("=i", -number), flags)


def refusal(sequence: int, number: int) -> bytes:
    return message(NLMSG_ERROR, sequence, pack("=i", -number) + bytes(16))


class Kernel:
    """A socket: each datagram that is sent is handed to ``answer``, which returns datagrams."""

    def __init__(self, answer: Callable[[int, int], list[bytes]]) -> None:
        self.answer, self.sent, self.coming = answer, list[bytes](), list[bytes]()

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        at = 0
        while at < len(data):
            length, _, flags, sequence = unpack_from("=IHHI", data, at)
            self.coming += self.answer(sequence, flags)
            at += length

    def recv(self, size: int) -> bytes:
        return self.coming.pop(0)


def rtnl(answer: Callable[[int, int], list[bytes]]) -> tuple[Rtnl, Kernel]:
    kernel = Kernel(answer)
    return Rtnl(kernel), kernel  # type: ignore[arg-type]


# ---- dumps ------------------------------------------------------------------------------------


def interrupted(times: int, mark: Callable[[int], list[bytes]]) -> Callable[[int, int], list[bytes]]:
    """Return so many dumps that are marked, then whole ones, each of two datagrams."""

    def answer(sequence: int, flags: int) -> list[bytes]:
        assert flags == NLM_F_REQUEST | NLM_F_DUMP
        if sequence <= times:
            return mark(sequence)
        return [message(RTM_NEWLINK, sequence, b"eth0") + message(RTM_NEWLINK, sequence, b"eth1"), done(sequence)]

    return answer


MARKS: dict[str, Callable[[int], list[bytes]]] = {
    "an object": lambda n: [message(RTM_NEWLINK, n, b"eth0"), message(RTM_NEWLINK, n, b"eth9", NLM_F_DUMP_INTR), done(n)],
    "an object that is not asked for": lambda n: [message(RTM_NEWLINK, n, b"lo", NLM_F_DUMP_INTR), done(n)],
    "the end": lambda n: [message(RTM_NEWLINK, n, b"eth0"), done(n, flags=NLM_F_DUMP_INTR)],
}


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("times", [1, ATTEMPTS - 1])
def test_interrupted_dump_is_read_again(mark: Callable[[int], list[bytes]], times: int) -> None:
    netlink, kernel = rtnl(interrupted(times, mark))
    assert netlink.dump(b"", RTM_GETLINK, containing=b"eth") == [b"eth0", b"eth1"]
    assert len(kernel.sent) == times + 1
    assert kernel.coming == []


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
def test_dump_that_is_interrupted_each_time_is_refused(mark: Callable[[int], list[bytes]]) -> None:
    netlink, kernel = rtnl(interrupted(ATTEMPTS, mark))
    with pytest.raises(KernelRefused) as caught, question("ip", "-d", "link", "show"):
        netlink.dump(b"", RTM_GETLINK)
    assert len(kernel.sent) == ATTEMPTS
    assert caught.value.errno == errno.EAGAIN
    assert caught.value.msg == 'could not read: "ip -d link show"'
    assert f"{ATTEMPTS} times" in caught.value.details
    assert "try again" in caught.value.hint


def test_dump_ends_with_an_error() -> None:
    netlink, _ = rtnl(lambda sequence, _: [message(RTM_NEWLINK, sequence, b"eth0"), done(sequence, errno.ENODEV)])
    with pytest.raises(NetlinkError) as caught:
        netlink.dump(b"", RTM_GETLINK)
    assert caught.value.errno == errno.ENODEV
    assert not isinstance(caught.value, DumpInterrupted)


def test_end_of_a_dump_without_a_number_is_success() -> None:
    netlink, _ = rtnl(lambda sequence, _: [message(NLMSG_DONE, sequence)])
    assert netlink.dump(b"", RTM_GETLINK) == []


def test_words_after_the_end_of_a_dump() -> None:
    """NLMSG_DONE holds no copy of the request."""
    body = pack("=i", -errno.EINVAL) + attribute(1, b"Unsupported flag\0")
    netlink, _ = rtnl(lambda sequence, _: [message(NLMSG_DONE, sequence, body, NLM_F_ACK_TLVS)])
    with pytest.raises(NetlinkError, match=r"Unsupported flag \(Invalid argument\)"):
        netlink.dump(b"", RTM_GETLINK)


# ---- one object, changes ----------------------------------------------------------------------


@pytest.mark.parametrize("is_capped", [False, True])
def test_words_of_a_refusal_stand_after_the_request(is_capped: bool) -> None:
    request = pack("=IHHII", 22, RTM_NEWLINK, 5, 1, 0) + b"abcdef\0\0"
    copied, flags = (request[:16], NLM_F_ACK_TLVS | NLM_F_CAPPED) if is_capped else (request, NLM_F_ACK_TLVS)
    body = pack("=i", -errno.EEXIST) + copied + attribute(2, pack("=I", 7)) + attribute(1, b"Device is there\0")
    netlink, _ = rtnl(lambda sequence, _: [message(NLMSG_ERROR, sequence, body, flags)])
    with pytest.raises(NetlinkError) as caught:
        netlink.change(b"abcdef", RTM_NEWLINK)
    assert (caught.value.errno, caught.value.strerror) == (errno.EEXIST, "Device is there (File exists)")


def test_what_belongs_to_another_request_is_skipped() -> None:
    netlink, kernel = rtnl(lambda sequence, _: [message(RTM_NEWLINK, sequence, b"eth0")])
    kernel.coming = [message(RTM_NEWLINK, 77, b"eth7"), refusal(99, errno.EPERM) + done(0)]
    assert netlink.get(b"", RTM_GETLINK) == b"eth0"


def test_changes_of_one_datagram_are_all_acknowledged_and_the_first_refusal_raised() -> None:
    numbers = {1: 0, 2: errno.EBUSY, 3: errno.EPERM}
    netlink, kernel = rtnl(lambda sequence, flags: [refusal(sequence, numbers[sequence])] if flags & NLM_F_ACK else [])
    with pytest.raises(NetlinkError) as caught:
        netlink.change_all((b"a...", RTM_NEWLINK, 0), (b"b...", RTM_NEWLINK, 0), (b"c...", RTM_NEWLINK, 0))
    assert caught.value.errno == errno.EBUSY
    assert len(kernel.sent) == 1
    assert kernel.coming == []


def test_of_many_changes_the_refused_ones_are_reported_by_index() -> None:
    """The kernel acknowledges what asks for it, and what it refuses."""

    def answer(sequence: int, flags: int) -> list[bytes]:
        number = errno.EINVAL if sequence % 100 == 0 else 0
        return [refusal(sequence, number)] if number or flags & NLM_F_ACK else []

    netlink, kernel = rtnl(answer)
    refused = netlink.change_many([(b"....", RTM_NEWLINK, 0)] * 300)
    assert {index: error.errno for index, error in refused.items()} == dict.fromkeys((99, 199, 299), errno.EINVAL)
    assert len(kernel.sent) == 3
    assert netlink.change_many([]) == {}


# ---- netfilter --------------------------------------------------------------------------------


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    sockets: list[Any] = []
    monkeypatch.setattr(netfilter, "_idle", sockets)
    return sockets


def test_transaction_waits_for_its_last_change_and_keeps_its_socket(idle: list[Any]) -> None:
    netlink, kernel = rtnl(lambda sequence, flags: [refusal(sequence, 0)] if flags & NLM_F_ACK else [])
    idle.append(netlink)
    netfilter.transact(10, [(b"one.", 0xA0C, 0), (b"two.", 0xA0D, 0)])
    assert [unpack_from("=IH", data)[1] for data in kernel.sent] == [16]
    assert kernel.coming == []
    assert idle == [netlink]


def test_late_refusals_of_a_transaction_are_not_those_of_the_next(idle: list[Any]) -> None:
    numbers = iter([0, errno.ENOENT, errno.EEXIST, 0, 0, 0, 0, 0])
    netlink, _ = rtnl(lambda sequence, flags: [refusal(sequence, n)] if (n := next(numbers)) or flags & NLM_F_ACK else [])
    idle.append(netlink)
    changes = [(b"one.", 0xA0C, 0), (b"two.", 0xA0D, 0)]
    with pytest.raises(NetlinkError) as caught:
        netfilter.transact(10, changes)
    assert caught.value.errno == errno.ENOENT
    netfilter.transact(10, changes)


# ---- notifications ----------------------------------------------------------------------------


@pytest.fixture
def listener() -> tuple[Listener, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    made = Listener.__new__(Listener)
    made._socket = ours
    return made, theirs


def test_listener_returns_the_messages_of_a_datagram(listener: tuple[Listener, socket.socket]) -> None:
    listening, kernel = listener
    with kernel, listening:
        kernel.send(message(RTM_NEWLINK, 0, b"abcde", port=7) + message(RTM_NEWLINK, 0, b"") + b"rest")
        assert listening.receive(5.0) == [(RTM_NEWLINK, 7, b"abcde"), (RTM_NEWLINK, 0, b"")]
        assert listening.receive(0.0) == []
        assert listening.receive(0.01) == []


def test_listener_reports_that_notifications_were_lost(listener: tuple[Listener, socket.socket]) -> None:
    class Full:
        def settimeout(self, seconds: float) -> None: ...

        def recv(self, size: int) -> bytes:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    listening, kernel = listener
    with kernel, listening._socket:
        listening._socket = Full()  # type: ignore[assignment]
        assert listening.receive(0.0) is None
