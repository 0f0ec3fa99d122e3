"""Watch nftables for changes by other processes: notifications for the tables that the caller maintains.

The kernel sends a message per object and, at the end of each transaction, the process that made it. iptables-nft changes
nftables too; legacy iptables sends no notifications. Every pod's ADD is received here as well, so only the table's name
of a message is read. What does not fit into the socket's buffer is lost, and the
kernel reports that: then anything may have changed.

Source: linux/netfilter/nf_tables.h; NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

from cni_py.errors import KernelRefused
from cni_py.netlink.attributes import Message, decode
from cni_py.netlink.constants import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFNLGRP_NFTABLES,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWGEN,
)
from cni_py.netlink.socket import Listener, Notification
from cni_py.packetfilter.nfnetlink import comments_in

_NEWGEN = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6", NFPROTO_BRIDGE: "bridge"}
_DELETIONS = frozenset((NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSETELEM))
_BUFFER_BYTES = 1 << 20


class NftWatch:
    """Netlink socket of the namespace in which it is opened. Raises: KernelRefused.

    ``culprit``: process that made the last change for which :meth:`wait` returned; empty if unknown.

    Args:
        only_deletions_but_by: notify of deletions alone, and not if this returns True for the thread that made them.
    """

    def __init__(self, tables: Iterable[str], only_deletions_but_by: Callable[[int], bool] | None = None) -> None:
        self._tables = frozenset(tables)
        self._is_excluded = only_deletions_but_by
        self._deleted: list[str] = []
        """Comments of what the transaction that is being read has deleted; "" for all but elements with a comment."""
        self._comments: set[str] = set()
        self.culprit = ""
        try:
            self._listener = Listener(NETLINK_NETFILTER, 1 << NFNLGRP_NFTABLES - 1, _BUFFER_BYTES)
        except OSError as error:
            raise _refused(error) from error

    def close(self) -> None:
        self._listener.close()

    def fileno(self) -> int:
        """Return the descriptor, for ``select``."""
        return self._listener.fileno()

    def wait(self, seconds: float) -> bool:
        """Wait for a change of one of the tables, and read all pending messages. Returns: False after the timeout."""
        until = monotonic() + seconds
        left = 0.0
        while not self._read(left):
            left = until - monotonic()
            if left <= 0:
                return False
        return True

    def take_comments(self) -> set[str] | None:
        """Return the comments of the elements deleted since the last call; None if more than elements may have been deleted."""
        comments, self._comments = self._comments, set()
        return None if "" in comments else comments

    def _read(self, timeout_seconds: float) -> bool:
        """Read pending messages, or the first within this time. Returns: whether they concern one of the tables."""
        concerns = in_this_transaction = False
        while (received := self._receive(timeout_seconds)) != []:
            timeout_seconds = 0.0
            if received is None:
                self.culprit, concerns = "", True
                self._comments.add("")
                continue
            for kind, _, body in received:
                if self._is_excluded is not None:
                    concerns |= self._is_deletion(kind, body, self._is_excluded)
                elif kind == _NEWGEN:
                    if in_this_transaction:
                        self.culprit = _culprit(decode("nft_gen_msg", body))
                    in_this_transaction = False
                elif self._is_of_ours(decode("nft_table_msg", body)):
                    concerns = in_this_transaction = True
        return concerns

    def _is_deletion(self, kind: int, body: bytes, is_excluded: Callable[[int], bool]) -> bool:
        """Return whether the message ends a transaction of another process that deleted something of the tables."""
        if kind != _NEWGEN:
            if kind & 0xFF in _DELETIONS and self._is_of_ours(decode("nft_table_msg", body)):
                self._deleted += comments_in(body) if kind & 0xFF == NFT_MSG_DELSETELEM else [""]
            return False
        deleted, self._deleted = self._deleted, []
        generation = decode("nft_gen_msg", body)
        if not deleted or is_excluded(generation.get("NFTA_GEN_PROC_PID", 0)):
            return False
        self.culprit = _culprit(generation)
        self._comments.update(deleted)
        return True

    def _receive(self, timeout_seconds: float) -> list[Notification] | None:
        """Read one datagram. Raises: KernelRefused."""
        try:
            return self._listener.receive(timeout_seconds)
        except OSError as error:
            raise _refused(error) from error

    def _is_of_ours(self, message: Message) -> bool:
        """Return whether the message is of one of the tables: the table's name is the first attribute of all except NEWGEN."""
        return f"{_FAMILIES.get(message['nfgen_family'], '')} {message.get('NFTA_TABLE_NAME', '')}" in self._tables


def _refused(error: OSError) -> KernelRefused:
    return KernelRefused("nft monitor", error.strerror or "", errno=error.errno or 0)


def _culprit(generation: Message) -> str:
    name, pid = generation.get("NFTA_GEN_PROC_NAME", ""), generation.get("NFTA_GEN_PROC_PID", 0)
    return f"{name} (process {pid})" if name else ""
