"""Facts about a packet that rules can ask for.

A value that is not known is :data:`UNKNOWN`, and so is every result that depends on it. :data:`ABSENT` is the value of a field
that the packet does not have: a rule that asks for it does not match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Address, IPv6Address


class _Marker:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


UNKNOWN, ABSENT = _Marker("unknown"), _Marker("absent")


@dataclass(frozen=True, slots=True)
class Facts:
    """Fields of a packet that rules can ask for.

    Attributes:
        fields: by "ip saddr", "meta iifname", "ct state" …; a rule may change "meta mark" and "ct mark".
        fib: from result and flags to a value; payload: from base, offset and length, in bits.
        choose: from a count to one of that many numbers, where only the kernel knows which.
        within_limits: True for one packet, which is below any limit; UNKNOWN for all of a kind.
    """

    fields: dict[str, Any]
    fib: Callable[[str, Sequence[str]], Any] = lambda *_: UNKNOWN
    payload: Callable[[str, int, int], Any] = lambda *_: UNKNOWN
    within_limits: Any = True
    choose: Callable[[int], Any] = lambda _: UNKNOWN


def without_connection(fields: dict[str, Any], *, is_tracked: bool) -> dict[str, Any]:
    """Return the fields of a packet that has no connection: not yet, or a rule says that it is not tracked."""
    state = "invalid" if is_tracked else "untracked"
    return fields | {"ct state": frozenset((state,)), **dict.fromkeys(("ct status", "ct mark", "ct direction"), ABSENT)}


def fields_of(
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    protocol: str,
    ports: tuple[Any, Any],
    links: tuple[Any, Any],
    *,
    state: str,
    is_reply: bool = False,
) -> dict[str, Any]:
    """Return the fields of the first packet of a connection, or of the first reply: an echo, a SYN, a datagram.

    Args:
        protocol: icmp (of both versions), tcp, udp, or another one.
        ports: of the source and of the destination; links: in and out, "" where the hook has none.
        state: of connection tracking.
    """  # fmt: skip
    version = source.version
    ip, icmp, number = ("ip", "icmp", "icmp") if version == 4 else ("ip6", "icmpv6", "ipv6-icmp")
    name = number if protocol == "icmp" else protocol
    fields: dict[str, Any] = {
        "meta iifname": links[0],
        "meta oifname": links[1],
        "meta iif": links[0],
        "meta oif": links[1],
        "meta mark": 0,
        "meta l4proto": name,
        "meta nfproto": f"ipv{version}",
        "meta protocol": ip,
        "meta pkttype": "host",
        "ct state": frozenset((state,)),
        "ct status": frozenset(),
        "ct mark": 0,
        "ct direction": "reply" if is_reply else "original",
        f"{ip} saddr": source,
        f"{ip} daddr": destination,
        f"{ip} {'protocol' if version == 4 else 'nexthdr'}": name,
        f"{ip} version": version,
    }
    if protocol == "icmp":
        fields[f"{icmp} type"] = "echo-reply" if is_reply else "echo-request"
    else:
        for header in ("th", protocol):
            fields |= {f"{header} sport": ports[0], f"{header} dport": ports[1]}
    if protocol == "tcp":
        fields["tcp flags"] = frozenset(("syn", "ack") if is_reply else ("syn",))
    return fields
