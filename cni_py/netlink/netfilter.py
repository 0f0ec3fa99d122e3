"""The netfilter family of netlink: one request at a time, and batches, over sockets that are kept.

Closing a socket of this family waits until the kernel has freed what the last transactions deleted, 10 to 25 ms;
so sockets are kept and reused. One belongs to the namespace of the thread that created it; a child process creates its
own. A message is a header (``struct nfgenmsg``) and attributes; a kind is a subsystem and a message of it.

Source: linux/netfilter/nfnetlink.h, net/netfilter/nfnetlink.c.
"""

from __future__ import annotations

import posix

from cni_py.netlink.constants import (
    NETLINK_NETFILTER,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from cni_py.netlink.socket import Netlink, NetlinkError, new_socket, raise_if_refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

Change = tuple[bytes, int, int]
"""Message, kind, flags."""

_idle: list[Netlink] = []
posix.register_at_fork(after_in_child=_idle.clear)  # two processes would read each other's replies


def get(kind: int, question: bytes) -> bytes:
    """Return one object. Raises: NetlinkError."""
    with _borrowed() as netlink:
        return netlink.get(question, kind)


def dump(kind: int, question: bytes) -> list[bytes]:
    """Return all objects; reads again if they changed in between. Raises: NetlinkError."""
    with _borrowed() as netlink:
        return netlink.dump(question, kind)


def change(kind: int, message: bytes) -> None:
    """Send one change and wait for its acknowledgement. Raises: NetlinkError."""
    with _borrowed() as netlink:
        netlink.change(message, kind)


def transact(subsystem: int, changes: Sequence[Change]) -> None:
    """Make all of these changes or none. Raises: NetlinkError, the first refusal."""
    *others, (message, kind, flags) = changes
    edge = bytes((0, 0)) + subsystem.to_bytes(2, "big")  # struct nfgenmsg; res_id: the subsystem
    with _borrowed() as netlink:
        first = netlink.send(
            (edge, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST),
            *[(message, kind, flags | NLM_F_REQUEST) for message, kind, flags in others],
            (message, kind, flags | NLM_F_REQUEST | NLM_F_ACK),
            (edge, NFNL_MSG_BATCH_END, NLM_F_REQUEST),
        )
        last = first + len(changes)
        for answer, answer_flags, sequence, body in netlink.answers(first, last + 1):
            if answer == NLMSG_ERROR:
                raise_if_refused(answer, answer_flags, body)  # more may follow; no later request takes them for its own
                if sequence == last:
                    return


class _borrowed:  # noqa: N801 — reads as a statement: with _borrowed() as netlink: …
    """A socket of those that are kept, created where none is idle."""

    def __enter__(self) -> Netlink:
        try:
            self.netlink = _idle.pop()
        except IndexError:
            self.netlink = Netlink(new_socket(NETLINK_NETFILTER))
        return self.netlink

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, NetlinkError):
            _idle.append(self.netlink)
        else:
            self.netlink.close()
