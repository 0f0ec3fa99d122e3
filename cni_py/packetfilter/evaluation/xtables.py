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
_ADDRTYPE = re.compile(r"\bfib (saddr|daddr)(?: \. ([io]if))? type (!= )?(\w+)")
_MULTIPORT = re.compile(r"\b(?:tcp|udp|sctp) (dport|sport) (!= )?(?:\{ ([\d, -]+) \}|(\d+(?:-\d+)?)(?= |$))")
_CONNTRACK = re.compile(r"\bct (state|status|direction|original (?:[sd]addr|proto-src|proto-dst)) (!=? )?([\w.,:]+)")
_CT_KEY = re.compile(r"\bct (\S+)")
_RANDOM = re.compile(r"\bmeta random & 2147483647 (>= )?(?:< )?(\d+)|\bnumgen inc mod (\d+) (!= )?(\d+)")
_MAC = re.compile(r"\bether saddr (!= )?([0-9a-f:]{17})")
_LENGTH = re.compile(r"\bmeta length (!= )?(\d+)(?:-(\d+))?")
_IPRANGE = re.compile(r"\b(ip6?) ([sd]addr) (!= )?([0-9a-f.:]+)-([0-9a-f.:]+)")
_PKTTYPE = re.compile(r"\bpkttype (!= )?(\w+)")
_MARK_OF_CT = re.compile(r"\bct mark (?:and (0x[0-9a-f]+) )?(== |!= )?(0x[0-9a-f]+)")
_ICMP = re.compile(r"\b(icmp|icmpv6) (type|code) (!= )?([\w-]+)|\b(?:ip protocol icmp|ip6 nexthdr ipv6-icmp)\b")
_SET_CT_MARK = re.compile(r"\bct mark set (0x[0-9a-f]+)(?= |$)")
_NAT = r"\b{} to (\[[0-9a-f:]+\]|[0-9.]+|[0-9a-f:]*[0-9a-f])?(?::(\d+)(?:-(\d+))?)?(?= |$)"
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
        _match({"fib": {"result": "type", "flags": [side, *([link] if link else [])]}}, kind, negated)
        for side, link, negated, kind in found
    ] or None


def _match(left: Json, right: Any, negated: str) -> Json:
    return {"match": {"op": "!=" if negated else "==", "left": left, "right": right}}


def _multiport(text: str) -> list[Json] | None:
    found = _MULTIPORT.search(text)
    if found is None:
        return None
    ports = [_ports(word) for word in (found[3] or found[4]).replace(" ", "").split(",")]
    return [_match({"payload": {"protocol": "th", "field": found[1]}}, {"set": ports}, found[2] or "")]


def _ports(word: str) -> Any:
    low, dash, high = word.partition("-")
    return {"range": [int(low), int(high)]} if dash else int(low)


def _conntrack(text: str) -> list[Json] | None:
    found = _CONNTRACK.findall(text)
    if not found or len(found) != len([key for key in _CT_KEY.findall(text) if key != "mark"]):
        return None  # of several options the text may lack one
    if any(key == "status" and {"dnat", "snat"} & set(value.split(",")) for key, _, value in found):
        return None  # of --ctstate NEW,DNAT nft prints DNAT alone
    return [_of_connection(key, negated, value) for key, negated, value in found]


def _of_connection(key: str, negated: str, value: str) -> Json:
    if key in ("state", "status"):
        return {"match": {"op": "!" if negated else "in", "left": {"ct": {"key": key}}, "right": value.split(",")}}
    if key == "direction":
        return _match({"ct": {"key": key}}, value, negated)
    left = {"ct": {"key": key.removeprefix("original "), "dir": "original"}}
    return _match(left, int(value) if value.isdecimal() else value, negated)


def _statistic(text: str) -> list[Json] | None:
    """A random choice; of a probability only whether it is one is known."""
    found = _RANDOM.search(text)
    if found is None:
        return None
    if found[3]:
        return [_match({"numgen": {"mode": "inc", "mod": int(found[3])}}, int(found[5]), found[4] or "")]
    limit, is_above = int(found[2]), bool(found[1])
    if 0 < limit <= 0x7FFFFFFF:
        return [_match({"numgen": {"mode": "random", "mod": 2}}, 0, "")]
    return [_match({"numgen": {"mode": "random", "mod": 1}}, 0, "" if is_above != (limit > 0) else "!")]


def _mac(text: str) -> list[Json] | None:
    left = {"payload": {"protocol": "ether", "field": "saddr"}}
    return [_match(left, mac, negated) for negated, mac in _MAC.findall(text)] or None


def _length(text: str) -> list[Json] | None:
    found = _LENGTH.search(text)
    if found is None:
        return None
    right = {"range": [int(found[2]), int(found[3])]} if found[3] else int(found[2])
    return [_match({"meta": {"key": "length"}}, right, found[1] or "")]


def _iprange(text: str) -> list[Json] | None:
    return [
        _match({"payload": {"protocol": protocol, "field": side}}, {"range": [low, high]}, negated)
        for protocol, side, negated, low, high in _IPRANGE.findall(text)
    ] or None


def _pkttype(text: str) -> list[Json] | None:
    found = _PKTTYPE.search(text)
    kind = {"unicast": "host"}.get(found[2], found[2]) if found else ""
    return [_match({"meta": {"key": "pkttype"}}, kind, found[1] or "")] if found else None


def _mark_of_connection(text: str) -> list[Json] | None:
    found = _MARK_OF_CT.search(text)
    if found is None:
        return None
    left: Json = {"&": [_CT_MARK, int(found[1], 16)]} if found[1] else _CT_MARK
    return [_match(left, int(found[3], 16), "!" if found[2] == "!= " else "")]


def _transport(text: str) -> list[Json] | None:
    """Ports and flags are expressions of nft; this one is left where a rule has none of them, or has TCP options."""
    return None if "tcp option" in text else []


def _icmp(text: str) -> list[Json] | None:
    found = _ICMP.findall(text)
    return [
        _match({"payload": {"protocol": protocol, "field": field}}, value, negated)
        for protocol, field, negated, value in found
        if protocol
    ] if found else None  # fmt: skip


def _nat(kind: str) -> Callable[[str], list[Json] | None]:
    pattern = re.compile(_NAT.format(kind))

    def parse(text: str) -> list[Json] | None:
        found = pattern.search(text)
        if found is None or not (found[1] or found[2]):
            return None
        return [{kind: {"addr": found[1].strip("[]") if found[1] else None, "port": _port(found[2], found[3])}}]

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
    if number := _SET_CT_MARK.search(text):
        return [{"mangle": {"key": _CT_MARK, "value": int(number[1], 16)}}]
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
    "statistic": _statistic,
    "mac": _mac,
    "length": _length,
    "iprange": _iprange,
    "pkttype": _pkttype,
    "connmark": _mark_of_connection,
    "tcp": _transport,
    "udp": _transport,
    "icmp": _icmp,
    "icmp6": _icmp,
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
