"""Tracing of packets that carry a token: a table that marks them, and the kernel's report of each rule that they
meet.

Owns: a table of its own, ``inet cni_py_walk_<process id>``, with the flag *owner*: it belongs to the socket that created it,
and the kernel deletes it with that socket, also when the process is killed. Its chains come first at prerouting and output,
and do nothing but ``meta nftrace set 1``.

Source: linux net/netfilter/nf_tables_trace.c, include/uapi/linux/netfilter/nf_tables.h (NFT_TABLE_F_OWNER, Linux 5.12).
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from posix import getpid
from struct import unpack

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.netlink.attributes import attributes
from cni_py.netlink.constants import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFNLGRP_NFTRACE,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_TRACE,
)
from cni_py.netlink.socket import Listener
from cni_py.packetfilter.libnftables import Nft
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "cni_py_walk_"
PRIORITY = -500
"""Priority before the chains of any other table, and before defragmentation."""
_BUFFER_BYTES = 1 << 20
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_BRIDGE: "bridge", NFPROTO_IPV6: "ip6", 5: "netdev", 3: "arp"}
_POLICY, _RETURN, _RULE = 1, 2, 3
_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _NFPROTO, _POLICY_OF = 1, 2, 3, 4, 5, 6, 15, 16


class Event(Value):
    """A rule that a packet met, or the policy at the end of a base chain. ``packet``: the kernel's number of the packet."""

    packet: int
    family: str
    table: str
    chain: str
    handle: int
    kind: str
    verdict: str

    @property
    def where(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


class Tracer:
    """Marks packets in the namespace of the thread that creates it. Raises: KernelRefused, NotAvailable, OSError.

    Args:
        offsets: bits from the transport header, each with the four bytes there that mark a packet.
    """

    def __init__(self, offsets: Sequence[tuple[int, bytes]]) -> None:
        self._listener = Listener(NETLINK_NETFILTER, 1 << (NFNLGRP_NFTRACE - 1), _BUFFER_BYTES)
        self.table = f"inet {PREFIX}{getpid()}"
        try:
            self._nft = Nft()
        except BaseException:
            self._listener.close()
            raise
        try:
            self._add_table()
            self._nft.run("; ".join(_commands(self.table, offsets)))
        except BaseException:
            self.close()
            raise

    def _add_table(self) -> None:
        """Create the table by itself, so that its flag is what an old kernel refuses."""
        try:
            self._nft.run(f"add table {self.table} {{ flags owner; }}")
        except KernelRefused as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):
                raise
            raise NotAvailable("this kernel has no nftables tables with an owner (Linux 5.12)") from error

    def close(self) -> None:
        """Close the sockets; the table goes with them."""
        self._nft.close()
        self._listener.close()

    def fileno(self) -> int:
        return self._listener.fileno()

    def receive(self) -> list[Event]:
        """The events that have come until now, without those of our own table. Raises: OSError."""
        found = []
        while received := self._listener.receive(0):
            for kind, _, body in received:
                if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE:
                    event = _event_of(body)
                    if not event.table.startswith(PREFIX):
                        found.append(event)
        return found


def _commands(table: str, offsets: Sequence[tuple[int, bytes]]) -> list[str]:
    rules = [f"@th,{at},32 0x{value.hex()} meta nftrace set 1" for at, value in offsets]
    commands = []
    for hook in ("prerouting", "output"):
        commands.append(f"add chain {table} {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; }}")
        commands += [f"add rule {table} {hook} {rule}" for rule in rules]
    return commands


def _event_of(body: bytes) -> Event:
    of = dict(attributes(body, 4))
    verdict = dict(attributes(of.get(_VERDICT, b"")))
    kind = int.from_bytes(of.get(_TYPE, b"\0"), "big")
    code = unpack("!i", verdict[1])[0] if 1 in verdict else 0
    if kind == _POLICY:
        code = int.from_bytes(of.get(_POLICY_OF, b"\0"), "big")
    return Event(
        int.from_bytes(of.get(_ID, b"\0"), "big"),
        _FAMILIES.get(int.from_bytes(of.get(_NFPROTO, b"\0"), "big"), "?"),
        _text(of.get(_TABLE, b"")),
        _text(of.get(_CHAIN, b"")),
        int.from_bytes(of.get(_HANDLE, b"\0"), "big"),
        {_POLICY: "policy", _RETURN: "return", _RULE: "rule"}.get(kind, "?"),
        _VERDICTS.get(code, str(code)),
    )


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode(errors="replace")
