"""Extensions of iptables in a ruleset of nftables: pure.

``nft -j`` names an extension (``{"xt": {"type": "match", "name": "addrtype"}}``) without its parameters; its text has them,
translated: ``fib daddr type local``. So they are read from the text. What is not known here is not understood, and so
reported.

Source: iptables, extensions/libxt_*.c and libipt_*.c (their ``xlate`` functions).
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]
HARMLESS = frozenset(("comment", "LOG", "NFLOG", "limit", "CT"))
_ADDRTYPE = re.compile(r"\bfib (saddr|daddr) type (!= )?(\w+)")
_MULTIPORT = re.compile(r"\b(?:tcp|udp) (dport|sport) (!= )?\{ ([\d, -]+) \}")
_CONNTRACK = re.compile(r"\bct state (!= )?([a-z,]+)")
_NAT = re.compile(r"\b([ds]nat) to (\[[0-9a-f:]+\]|[0-9.]+|[0-9a-f:]+)(?::(\d+))?(?= |$)")
_REDIRECT = re.compile(r"\bredirect to :(\d+)")
_SET_MARK = re.compile(r"\bmeta mark set (?:mark (and|or|xor) )?(0x[0-9a-f]+)(?: xor (0x[0-9a-f]+))?")


def match_of(name: str, text: str) -> list[Json] | None:
    """The conditions of an extension as nft's JSON has them; None: not understood."""
    parse = _MATCHES.get(name)
    return parse(text) if parse else None


def _addrtype(text: str) -> list[Json] | None:
    found = _ADDRTYPE.findall(text)
    return [
        {"op": "!=" if negated else "==", "left": {"fib": {"result": "type", "flags": [side]}}, "right": kind}
        for side, negated, kind in found
    ] or None


def _multiport(text: str) -> list[Json] | None:
    found = _MULTIPORT.search(text)
    if found is None:
        return None
    ports = [_ports(word) for word in found[3].replace(" ", "").split(",")]
    left = {"payload": {"protocol": "th", "field": found[1]}}
    return [{"op": "!=" if found[2] else "==", "left": left, "right": {"set": ports}}]


def _ports(word: str) -> Any:
    low, dash, high = word.partition("-")
    return {"range": [int(low), int(high)]} if dash else int(low)


def _conntrack(text: str) -> list[Json] | None:
    found = _CONNTRACK.search(text)
    if found is None:
        return None
    return [{"op": "!=" if found[1] else "in", "left": {"ct": {"key": "state"}}, "right": found[2].split(",")}]


_MATCHES: dict[str, Callable[[str], list[Json] | None]] = {
    "addrtype": _addrtype,
    "multiport": _multiport,
    "conntrack": _conntrack,
    "state": _conntrack,
}


def target_of(name: str, text: str, mark: Any) -> tuple[str, Any] | None:
    """The event of a target and its value, as ``ruleset.py`` has them; None: not understood."""
    if name in ("MASQUERADE", "REJECT", "NOTRACK"):
        return name.lower(), None
    if name in ("DNAT", "SNAT"):
        found = _NAT.search(text)
        if found is None or found[1] != name.lower():
            return None
        return found[1], (ip_address(found[2].strip("[]")), int(found[3]) if found[3] else None)
    if name == "REDIRECT":
        port = _REDIRECT.search(text)
        return "redirect", (None, int(port[1]) if port else None)
    if name == "MARK" and isinstance(mark, int):
        return _mark(text, mark)
    return None


def _mark(text: str, mark: int) -> tuple[str, Any] | None:
    found = _SET_MARK.search(text)
    if found is None:
        return None
    value = int(found[2], 16)
    value = {"and": mark & value, "or": mark | value, "xor": mark ^ value}.get(found[1] or "", value)
    return "mark", value ^ int(found[3], 16) if found[3] else value
