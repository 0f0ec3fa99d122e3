"""What others change in nftables: its notifications, for the tables that somebody looks after.

The kernel sends a message per object and, last of each transaction, who made it. iptables-nft changes
nftables too; legacy iptables tells nobody. Every pod's ADD is heard here as well, so a message costs
no more than a look at its table's name. What does not fit into the socket's buffer is lost, and the
kernel says so: then anything may have changed.

Source: linux/netfilter/nf_tables.h; NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterable
from struct import unpack_from
from time import monotonic

from cni_py.errors import KernelRefused
from cni_py.netlink.attributes import attributes, text_of

_NETLINK_NETFILTER, _GROUP = 12, 7
_NEWGEN = 15
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_BUFFER_BYTES = 1 << 20
_LARGEST = 1 << 16


class NftWatch:
    """A netlink socket of the namespace it is opened in. Raises: KernelRefused.

    ``culprit``: who made the last change that :meth:`wait` answered to, in words; empty where that is not known.
    """

    def __init__(self, tables: Iterable[str]) -> None:
        self._tables = frozenset(tables)
        self.culprit = ""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind((0, 1 << (_GROUP - 1)))
        except OSError as error:
            raise KernelRefused("nft monitor", error.strerror or "", errno=error.errno or 0) from error

    def close(self) -> None:
        self._socket.close()

    def wait(self, seconds: float) -> bool:
        """Whether one of the tables was changed, and all that is to be read was; False when the time has passed."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        until = monotonic() + seconds
        while not self._read():
            left = until - monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True

    def _read(self) -> bool:
        """Read all that is there: whether it concerns one of the tables."""
        concerns = in_this_transaction = False
        while True:
            try:
                datagram = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return concerns
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelRefused("nft monitor", error.strerror or "", errno=error.errno or 0) from error
                self.culprit, concerns = "", True
                continue
            at = 0
            while at + 20 <= len(datagram):
                length, kind = unpack_from("=IH", datagram, at)
                body = datagram[at + 20 : at + length]
                if kind & 0xFF == _NEWGEN:
                    if in_this_transaction:
                        self.culprit = _culprit(body)
                    in_this_transaction = False
                elif self._is_of_ours(datagram[at + 16], body):
                    concerns = in_this_transaction = True
                at += max(length + 3 & ~3, 16)

    def _is_of_ours(self, family: int, body: bytes) -> bool:
        """Attribute 1 is the table's name in every message but NEWGEN."""
        name = next((text_of(value) for kind, value in attributes(body) if kind == 1), "")
        return f"{_FAMILIES.get(family, '')} {name}" in self._tables


def _culprit(body: bytes) -> str:
    """NFTA_GEN_PROC_PID 2, NFTA_GEN_PROC_NAME 3."""
    parts = dict(attributes(body))
    name, pid = text_of(parts.get(3, b"")), int.from_bytes(parts.get(2, b""), "big")
    return f"{name} (process {pid})" if name else ""
