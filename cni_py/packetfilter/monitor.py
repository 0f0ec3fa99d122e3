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
from cni_py.netlink.attributes import attributes, text_of
from cni_py.netlink.constants import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFNLGRP_NFTABLES,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_NEWGEN,
)
from cni_py.netlink.socket import Listener, Message

_NEWGEN = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}
_BUFFER_BYTES = 1 << 20
_NFGENMSG = 4


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

    def fileno(self) -> int:
        """For ``select``."""
        return self._listener.fileno()

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
        while (messages := self._receive(timeout_seconds)) != []:
            timeout_seconds = 0.0
            if messages is None:
                self.culprit, concerns = "", True
                continue
            for kind, _, _, _, body in messages:
                if kind == _NEWGEN:
                    if in_this_transaction:
                        self.culprit = _culprit(body[_NFGENMSG:])
                    in_this_transaction = False
                elif self._is_of_ours(body[0], body[_NFGENMSG:]):
                    concerns = in_this_transaction = True
        return concerns

    def _receive(self, timeout_seconds: float) -> list[Message] | None:
        """Raises: KernelRefused."""
        try:
            return self._listener.receive(timeout_seconds)
        except OSError as error:
            raise _refused(error) from error

    def _is_of_ours(self, family: int, body: bytes) -> bool:
        """Attribute 1 is the table's name in every message but NEWGEN."""
        name = next((text_of(value) for kind, value in attributes(body) if kind == 1), "")
        return f"{_FAMILIES.get(family, '')} {name}" in self._tables


def _refused(error: OSError) -> KernelRefused:
    return KernelRefused("nft monitor", error.strerror or "", errno=error.errno or 0)


def _culprit(body: bytes) -> str:
    """NFTA_GEN_PROC_PID 2, NFTA_GEN_PROC_NAME 3."""
    parts = dict(attributes(body))
    name, pid = text_of(parts.get(3, b"")), int.from_bytes(parts.get(2, b""), "big")
    return f"{name} (process {pid})" if name else ""
