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

HARMLESS = frozenset(("comment", "LOG", "NFLOG"))
_META_MARK, _CT_MARK = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}
_ADDRTYPE = re.compile(r"\bfib (saddr|daddr) type (!= )?(\w+)")
_MULTIPORT = re.compile(r"\b(?:tcp|udp) (dport|sport) (!= )?\{ ([\d, -]+) \}")
_CONNTRACK = re.compile(r"\bct state (!=? )?([a-z,]+)")
_CT_KEY = re.compile(r"\bct (\S+)")
_NAT = r"\b{} to (\[[0-9a-f:]+\]|[0-9.]+|[0-9a-f:]+)(?::(\d+)(?:-(\d+))?)?(?= |$)"
_PORT = re.compile(r"\b(?:redirect|masquerade) to :(\d+)(?:-(\d+))?")
_CONNMARK = re.compile(r"\b(ct mark set mark|meta mark set ct mark)(?: and (0x[0-9a-f]+))?(?= |$)")
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
    if found is None or set(_CT_KEY.findall(text)) - {"state", "mark"}:  # of several options the text may lack one
        return None
    return [{"match": {"op": "!" if found[1] else "in", "left": {"ct": {"key": "state"}}, "right": found[2].split(",")}}]


def _nat(kind: str) -> Callable[[str], list[Json] | None]:
    pattern = re.compile(_NAT.format(kind))

    def parse(text: str) -> list[Json] | None:
        found = pattern.search(text)
        return [{kind: {"addr": found[1].strip("[]"), "port": _port(found[2], found[3])}}] if found else None

    return parse


def _port(low: str | None, high: str | None) -> Any:
    return {"range": [int(low), int(high)]} if low and high else int(low) if low else None


def _here(kind: str) -> Callable[[str], list[Json] | None]:
    """Translate to an address of the host itself."""

    def parse(text: str) -> list[Json] | None:
        found = _PORT.search(text)
        return [{kind: {"port": _port(found[1], found[2]) if found else None}}]

    return parse


def _mark(text: str) -> list[Json] | None:
    found = _SET_MARK.search(text)
    if found is None:
        return None
    value: Any = int(found[2], 16)
    value = {_OPERATORS[found[1]]: [_META_MARK, value]} if found[1] else value
    value = {"^": [value, int(found[3], 16)]} if found[3] else value
    return [{"mangle": {"key": _META_MARK, "value": value}}]


def _connmark(text: str) -> list[Json] | None:
    found = _CONNMARK.search(text)
    if found is None:
        return None
    target, source = (_CT_MARK, _META_MARK) if found[1].startswith("ct") else (_META_MARK, _CT_MARK)
    mask = int(found[2] or "0xffffffff", 16)
    value = {"|": [{"&": [target, ~mask & 0xFFFFFFFF]}, {"&": [source, mask]}]}
    return [{"mangle": {"key": target, "value": value}}]


_EXTENSIONS: dict[str, Callable[[str], list[Json] | None]] = {
    "addrtype": _addrtype,
    "multiport": _multiport,
    "conntrack": _conntrack,
    "state": _conntrack,
    "limit": lambda _: [{"limit": {}}],
    "DNAT": _nat("dnat"),
    "SNAT": _nat("snat"),
    "MASQUERADE": _here("masquerade"),
    "REDIRECT": _here("redirect"),
    "REJECT": lambda _: [{"reject": None}],
    "NOTRACK": lambda _: [{"notrack": None}],
    "CT": lambda text: [{"notrack": None}] if text.endswith("notrack") else [],
    "MARK": _mark,
    "CONNMARK": _connmark,
}
