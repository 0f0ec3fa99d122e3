"""Tracing of packets that carry a token: a table that marks them, and the kernel's report of each rule that they
meet.

Owns: a table of its own, ``inet cni_py_walk_<process id>``, with the flag *owner*: it belongs to the socket that created it,
and the kernel deletes it with that socket, also when the process is killed. Its chains come first at prerouting and output,
and do nothing but ``meta nftrace set 1``. Where rules of the families bridge and netdev exist, which see a frame earlier, there
is such a table in these families too. Packets that other rules trace are reported to every listener: only those that one of
these tables has marked, or whose header has the token, are events here. (The kernel's number of a packet changes on its way
through a bridge.)

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
    from collections.abc import Collection, Mapping, Sequence

PREFIX = "cni_py_walk_"
PRIORITY = -500
"""Priority before the chains of any other table, and before defragmentation."""
_BUFFER_BYTES = 1 << 20
_AT_ONCE = 1000
"""Datagrams that are read before the caller checks the time."""
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_BRIDGE: "bridge", NFPROTO_IPV6: "ip6", 5: "netdev", 3: "arp"}
_POLICY, _RETURN, _RULE = 1, 2, 3
_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _TRANSPORT_HEADER, _NFPROTO, _POLICY_OF = 1, 2, 3, 4, 5, 6, 9, 15, 16


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
        is_bridged: also in the family bridge.
        devices: links by the hook of netdev, ingress or egress, at which packets are marked too.
    """

    def __init__(
        self, offsets: Sequence[tuple[int, bytes]], *, is_bridged: bool = False, devices: Mapping[str, Collection[str]] = {}
    ) -> None:
        self._marked: set[int] = set()
        self._offsets = [(bits // 8, value) for bits, value in offsets]
        self._name = f"{PREFIX}{getpid()}"
        self._listener = Listener(NETLINK_NETFILTER, 1 << (NFNLGRP_NFTRACE - 1), _BUFFER_BYTES)
        try:
            self._nft = Nft()
        except BaseException:
            self._listener.close()
            raise
        try:
            chains = _chains(is_bridged, devices)
            self._add_tables([family for family, _, _ in chains])
            self._nft.run("; ".join(_commands(self._name, offsets, chains)))
        except BaseException:
            self.close()
            raise

    def _add_tables(self, families: Sequence[str]) -> None:
        """Create the tables by themselves, so that their flag is what an old kernel refuses."""
        try:
            self._nft.run(
                "; ".join(f"add table {family} {self._name} {{ flags owner; }}" for family in dict.fromkeys(families))
            )
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
        """The events of marked packets that have come until now, without those of our own tables. Raises: OSError."""
        found = []
        for _ in range(_AT_ONCE):
            received = self._listener.receive(0)
            if not received:  # none is waiting, or some were lost
                break
            for kind, _, body in received:
                if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE:
                    event, header = _event_of(body)
                    is_own = event.table == self._name
                    if (is_own and event.kind == "rule") or any(header[at : at + 4] == value for at, value in self._offsets):
                        self._marked.add(event.packet)
                    if not event.table.startswith(PREFIX) and event.packet in self._marked:
                        found.append(event)
        return found


def _chains(is_bridged: bool, devices: Mapping[str, Collection[str]]) -> list[tuple[str, str, str]]:
    """Return family, hook and devices of each chain."""
    chains = [
        (family, hook, "") for family in ("inet", *(("bridge",) if is_bridged else ())) for hook in ("prerouting", "output")
    ]
    for hook, links in devices.items():
        names = ", ".join(f'"{link}"' for link in sorted(links))
        chains.append(("netdev", hook, f" devices = {{ {names} }}"))
    return chains


def _commands(name: str, offsets: Sequence[tuple[int, bytes]], chains: Sequence[tuple[str, str, str]]) -> list[str]:
    rules = [f"@th,{at},32 0x{value.hex()} meta nftrace set 1" for at, value in offsets]
    commands = []
    for family, hook, where in chains:
        chain = f"{family} {name} {hook}"
        commands.append(f"add chain {chain} {{ type filter hook {hook}{where} priority {PRIORITY}; policy accept; }}")
        commands += [f"add rule {chain} {rule}" for rule in rules]
    return commands


def _event_of(body: bytes) -> tuple[Event, bytes]:
    """An event, and the begin of the transport header: the first event at a hook has it."""
    of = dict(attributes(body, 4))
    verdict = dict(attributes(of.get(_VERDICT, b"")))
    kind = int.from_bytes(of.get(_TYPE, b"\0"), "big")
    code = unpack("!i", verdict[1])[0] if 1 in verdict else 0
    if kind == _POLICY:
        code = int.from_bytes(of.get(_POLICY_OF, b"\0"), "big")
    event = Event(
        int.from_bytes(of.get(_ID, b"\0"), "big"),
        _FAMILIES.get(int.from_bytes(of.get(_NFPROTO, b"\0"), "big"), "?"),
        _text(of.get(_TABLE, b"")),
        _text(of.get(_CHAIN, b"")),
        int.from_bytes(of.get(_HANDLE, b"\0"), "big"),
        {_POLICY: "policy", _RETURN: "return", _RULE: "rule"}.get(kind, "?"),
        _VERDICTS.get(code, str(code)),
    )
    return event, of.get(_TRANSPORT_HEADER, b"")


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode(errors="replace")
