"""What others change in nftables: its notifications, for the tables that somebody looks after.

The kernel sends a message per object and, last of each transaction, who made it. iptables-nft changes
nftables too; legacy iptables tells nobody. Every pod's ADD is heard here as well, so a message costs
no more than a look at its table's name. What does not fit into the socket's buffer is lost, and the
kernel says so: then anything may have changed.

Source: linux/netfilter/nf_tables.h; NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from cni_py.errors import KernelRefused
from cni_py.netlink.attributes import Message, decode
from cni_py.netlink.constants import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFNLGRP_NFTABLES,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_NEWGEN,
)
from cni_py.netlink.socket import Listener, Notification

_NEWGEN = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}
_BUFFER_BYTES = 1 << 20


class NftWatch:
    """A netlink socket of the namespace it is opened in. Raises: KernelRefused.

    ``culprit``: who made the last change that :meth:`wait` answered to, in words; empty where that is not known.
    """

    def __init__(self, tables: Iterable[str]) -> None:
        self._tables = frozenset(tables)
        self.culprit = ""
        try:
            self._listener = Listener(NETLINK_NETFILTER, 1 << NFNLGRP_NFTABLES - 1, _BUFFER_BYTES)
        except OSError as error:
            raise _refused(error) from error

    def close(self) -> None:
        self._listener.close()

    def wait(self, seconds: float) -> bool:
        """Whether one of the tables was changed, and all that is to be read was; False when the time has passed."""
        until = monotonic() + seconds
        left = 0.0
        while not self._read(left):
            left = until - monotonic()
            if left <= 0:
                return False
        return True

    def _read(self, timeout_seconds: float) -> bool:
        """Read all that is there, or comes first within this time: whether it concerns one of the tables."""
        concerns = in_this_transaction = False
        while (received := self._receive(timeout_seconds)) != []:
            timeout_seconds = 0.0
            if received is None:
                self.culprit, concerns = "", True
                continue
            for kind, _, body in received:
                if kind == _NEWGEN:
                    if in_this_transaction:
                        self.culprit = _culprit(decode("nft_gen_msg", body))
                    in_this_transaction = False
                elif self._is_of_ours(decode("nft_table_msg", body)):
                    concerns = in_this_transaction = True
        return concerns

    def _receive(self, timeout_seconds: float) -> list[Notification] | None:
        """Raises: KernelRefused."""
        try:
            return self._listener.receive(timeout_seconds)
        except OSError as error:
            raise _refused(error) from error

    def _is_of_ours(self, message: Message) -> bool:
        """The table's name is the first attribute of every message but NEWGEN: all are read as those of tables."""
        return f"{_FAMILIES.get(message['nfgen_family'], '')} {message.get('NFTA_TABLE_NAME', '')}" in self._tables


def _refused(error: OSError) -> KernelRefused:
    return KernelRefused("nft monitor", error.strerror or "", errno=error.errno or 0)


def _culprit(generation: Message) -> str:
    name, pid = generation.get("NFTA_GEN_PROC_NAME", ""), generation.get("NFTA_GEN_PROC_PID", 0)
    return f"{name} (process {pid})" if name else ""
