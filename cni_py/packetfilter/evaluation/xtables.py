"""Extensions of iptables in a ruleset of nftables: pure.

``nft -j`` names an extension (``{"xt": {"type": "match", "name": "addrtype"}}``) without its parameters; its text has them,
translated: ``fib daddr type local``. So they are read from the text. What is not known here is not understood, and so
reported.

Source: iptables, extensions/libxt_*.c and libipt_*.c (their ``xlate`` functions).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.packetfilter.evaluation.expressions import Json

HARMLESS = frozenset(("comment", "LOG", "NFLOG", "CT"))
_META_MARK, _CT_MARK = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}
_ADDRTYPE = re.compile(r"\bfib (saddr|daddr) type (!= )?(\w+)")
_MULTIPORT = re.compile(r"\b(?:tcp|udp) (dport|sport) (!= )?\{ ([\d, -]+) \}")
_CONNTRACK = re.compile(r"\bct state (!= )?([a-z,]+)")
_NAT = r"\b{} to (\[[0-9a-f:]+\]|[0-9.]+|[0-9a-f:]+)(?::(\d+))?(?= |$)"
_REDIRECT = re.compile(r"\bredirect to :(\d+)")
_SET_MARK = re.compile(r"\bmeta mark set (?:mark (and|or|xor) )?(0x[0-9a-f]+)(?: xor (0x[0-9a-f]+))?")
_OPERATORS = {"and": "&", "or": "|", "xor": "^"}


def understood(name: str, text: str) -> list[Json] | None:
    """The conditions or statements of an extension as nft's JSON has them; None: not understood."""
    if name in HARMLESS:
        return []
    parse = _EXTENSIONS.get(name)
    return parse(text) if parse else None


def _addrtype(text: str) -> list[Json] | None:
    found = _ADDRTYPE.findall(text)
    return [
        {"match": {"op": "!=" if negated else "==", "left": {"fib": {"result": "type", "flags": [side]}}, "right": kind}}
        for side, negated, kind in found
    ] or None


def _multiport(text: str) -> list[Json] | None:
    found = _MULTIPORT.search(text)
    if found is None:
        return None
    ports = [_ports(word) for word in found[3].replace(" ", "").split(",")]
    left = {"payload": {"protocol": "th", "field": found[1]}}
    return [{"match": {"op": "!=" if found[2] else "==", "left": left, "right": {"set": ports}}}]


def _ports(word: str) -> Any:
    low, dash, high = word.partition("-")
    return {"range": [int(low), int(high)]} if dash else int(low)


def _conntrack(text: str) -> list[Json] | None:
    found = _CONNTRACK.search(text)
    if found is None:
        return None
    return [{"match": {"op": "!=" if found[1] else "in", "left": {"ct": {"key": "state"}}, "right": found[2].split(",")}}]


def _nat(kind: str) -> Callable[[str], list[Json] | None]:
    pattern = re.compile(_NAT.format(kind))

    def parse(text: str) -> list[Json] | None:
        found = pattern.search(text)
        return [{kind: {"addr": found[1].strip("[]"), "port": int(found[2]) if found[2] else None}}] if found else None

    return parse


def _redirect(text: str) -> list[Json] | None:
    port = _REDIRECT.search(text)
    return [{"redirect": {"port": int(port[1]) if port else None}}]


def _mark(text: str) -> list[Json] | None:
    found = _SET_MARK.search(text)
    if found is None:
        return None
    value: Any = int(found[2], 16)
    value = {_OPERATORS[found[1]]: [_META_MARK, value]} if found[1] else value
    value = {"^": [value, int(found[3], 16)]} if found[3] else value
    return [{"mangle": {"key": _META_MARK, "value": value}}]


def _connmark(text: str) -> list[Json] | None:
    if "ct mark set mark" in text:
        return [{"mangle": {"key": _CT_MARK, "value": _META_MARK}}]
    return [{"mangle": {"key": _META_MARK, "value": _CT_MARK}}] if "meta mark set ct mark" in text else None


_EXTENSIONS: dict[str, Callable[[str], list[Json] | None]] = {
    "addrtype": _addrtype,
    "multiport": _multiport,
    "conntrack": _conntrack,
    "state": _conntrack,
    "limit": lambda _: [{"limit": {}}],
    "DNAT": _nat("dnat"),
    "SNAT": _nat("snat"),
    "MASQUERADE": lambda _: [{"masquerade": None}],
    "REDIRECT": _redirect,
    "REJECT": lambda _: [{"reject": None}],
    "NOTRACK": lambda _: [{"notrack": None}],
    "MARK": _mark,
    "CONNMARK": _connmark,
}
