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
HARMLESS = frozenset(("comment", "LOG", "NFLOG", "limit"))
_ADDRTYPE = re.compile(r"\bfib (saddr|daddr)(?: \. ([io]if))? type (!= )?(\w+)")
_MULTIPORT = re.compile(r"\b(?:tcp|udp|sctp) (dport|sport) (!= )?(?:\{ ([\d, -]+) \}|(\d+(?:-\d+)?)(?= |$))")
_CT = re.compile(r"\bct (state|status|direction|original (?:[sd]addr|proto-src|proto-dst|protocol)) (!=? )?([\w.,:]+)")
_CT_WORDS = re.compile(r"\bct (?:state|direction|original|reply|status|expiration|protocol)\b")
_NAT = re.compile(r"\b([ds]nat) to (\[[0-9a-f:]+\]|[0-9.]+|[0-9a-f:]*[0-9a-f])?(?::(\d+)(-\d+)?)?(?= |$)")
_RANDOM = re.compile(r"\bmeta random & 2147483647 (!= |>= |< )?(\d+)|\bnumgen inc mod (\d+) (!= )?(\d+)")
_MAC = re.compile(r"\bether saddr (!= )?([0-9a-f:]{17})")
_LENGTH = re.compile(r"\bmeta length (!= )?(\d+)(?:-(\d+))?")
_RANGE = re.compile(r"\b(ip6?) ([sd]addr) (!= )?([0-9a-f.:]+)-([0-9a-f.:]+)")
_PKTTYPE = re.compile(r"\bpkttype (!= )?(\w+)")
_CT_MARK = re.compile(r"\bct mark (?:and (0x[0-9a-f]+) )?(== |!= )?(0x[0-9a-f]+)")
_ICMP = re.compile(r"\b(icmp|icmpv6) (type|code) (!= )?([\w-]+)|\b(?:ip protocol icmp|ip6 nexthdr ipv6-icmp)\b")
_SET_CT_MARK = re.compile(r"\b(ct|meta) mark set (0x[0-9a-f]+|mark|ct mark)(?: and (0x[0-9a-f]+))?(?= |$)")
_REDIRECT = re.compile(r"\bredirect to :(\d+)")
_SET_MARK = re.compile(r"\bmeta mark set (?:mark (and|or|xor) )?(0x[0-9a-f]+)(?: xor (0x[0-9a-f]+))?")


def match_of(name: str, text: str) -> list[Json] | None:
    """The conditions of an extension as nft's JSON has them; None: not understood."""
    parse = _MATCHES.get(name)
    return parse(text) if parse else None


def _addrtype(text: str) -> list[Json] | None:
    found = _ADDRTYPE.findall(text)
    return [
        _condition({"fib": {"result": "type", "flags": [side, *([link] if link else [])]}}, kind, negated)
        for side, link, negated, kind in found
    ] or None


def _condition(left: Json, right: Any, negated: str) -> Json:
    return {"op": "!=" if negated else "==", "left": left, "right": right}


def _statistic(text: str) -> list[Json] | None:
    """A random choice; of a probability only whether it is one is known."""
    found = _RANDOM.search(text)
    if found is None:
        return None
    if found[3]:
        return [_condition({"numgen": {"mode": "inc", "mod": int(found[3])}}, int(found[5]), found[4] or "")]
    least, most = (False, True) if (found[1] or "< ") == "< " else (True, False)
    limit = int(found[2])
    if limit <= 0 or limit > 0x7FFFFFFF:
        is_met = most if limit > 0x7FFFFFFF else least
        return [] if is_met else [{"op": "==", "left": 0, "right": 1}]
    return [_condition({"numgen": {"mode": "random", "mod": 2}}, 0, "")]


def _mac(text: str) -> list[Json] | None:
    left = {"payload": {"protocol": "ether", "field": "saddr"}}
    return [_condition(left, mac, negated) for negated, mac in _MAC.findall(text)] or None


def _length(text: str) -> list[Json] | None:
    found = _LENGTH.search(text)
    if found is None:
        return None
    right = {"range": [int(found[2]), int(found[3])]} if found[3] else int(found[2])
    return [_condition({"meta": {"key": "length"}}, right, found[1] or "")]


def _iprange(text: str) -> list[Json] | None:
    return [
        _condition({"payload": {"protocol": protocol, "field": side}}, {"range": [low, high]}, negated)
        for protocol, side, negated, low, high in _RANGE.findall(text)
    ] or None


def _pkttype(text: str) -> list[Json] | None:
    found = _PKTTYPE.search(text)
    kind = {"unicast": "host"}.get(found[2], found[2]) if found else ""
    return [_condition({"meta": {"key": "pkttype"}}, kind, found[1] or "")] if found else None


def _connmark(text: str) -> list[Json] | None:
    found = _CT_MARK.search(text)
    if found is None:
        return None
    left: Json = {"ct": {"key": "mark"}}
    left = {"&": [left, int(found[1], 16)]} if found[1] else left
    return [_condition(left, int(found[3], 16), "!" if found[2] == "!= " else "")]


def _transport(text: str) -> list[Json] | None:
    """Ports and flags are expressions of nft; this one is left where a rule has none of them, or has TCP options."""
    return None if "tcp option" in text else []


def _icmp(text: str) -> list[Json] | None:
    found = _ICMP.findall(text)
    conditions = [
        _condition({"payload": {"protocol": protocol, "field": field}}, value, negated)
        for protocol, field, negated, value in found
        if protocol
    ]
    return conditions if found else None


def _multiport(text: str) -> list[Json] | None:
    found = _MULTIPORT.search(text)
    if found is None:
        return None
    ports = [_ports(word) for word in (found[3] or found[4]).replace(" ", "").split(",")]
    left = {"payload": {"protocol": "th", "field": found[1]}}
    return [{"op": "!=" if found[2] else "==", "left": left, "right": {"set": ports}}]


def _ports(word: str) -> Any:
    low, dash, high = word.partition("-")
    return {"range": [int(low), int(high)]} if dash else int(low)


def _conntrack(text: str) -> list[Json] | None:
    found = _CT.findall(text)
    if not found or len(found) != len(_CT_WORDS.findall(text)):
        return None
    return [_of_connection(key, negated, value) for key, negated, value in found]


def _of_connection(key: str, negated: str, value: str) -> Json:
    if key in ("state", "status"):
        return {"op": "!=" if negated else "in", "left": {"ct": {"key": key}}, "right": value.split(",")}
    if key == "direction":
        return _condition({"ct": {"key": "direction"}}, value, negated)
    right = int(value) if value.isdecimal() else value
    return _condition({"ct": {"key": key.removeprefix("original "), "dir": "original"}}, right, negated)


_MATCHES: dict[str, Callable[[str], list[Json] | None]] = {
    "addrtype": _addrtype,
    "multiport": _multiport,
    "conntrack": _conntrack,
    "state": _conntrack,
    "statistic": _statistic,
    "mac": _mac,
    "length": _length,
    "iprange": _iprange,
    "pkttype": _pkttype,
    "connmark": _connmark,
    "tcp": _transport,
    "udp": _transport,
    "icmp": _icmp,
    "icmp6": _icmp,
}


def target_of(name: str, text: str, mark: Any, ct_mark: Any = 0) -> tuple[str, Any] | None:
    """The event of a target and its value, as ``ruleset.py`` has them; None: not understood."""
    if name in ("MASQUERADE", "REJECT", "NOTRACK"):
        return name.lower(), None
    if name in ("DNAT", "SNAT"):
        return _translation(name.lower(), text)
    if name == "REDIRECT":
        port = _REDIRECT.search(text)
        return "redirect", (None, int(port[1]) if port else None)
    if name == "CT":  # its other options are about helpers, zones and events
        return ("notrack", None) if "notrack" in text.split() else ("", None)
    return _marked(name, text, mark, ct_mark)


def _marked(name: str, text: str, mark: Any, ct_mark: Any) -> tuple[str, Any] | None:
    if name == "CONNMARK":
        return _of_two_marks(text, mark, ct_mark)
    return _mark(text, mark) if name == "MARK" and isinstance(mark, int) else None


def _translation(kind: str, text: str) -> tuple[str, Any] | None:
    """Address and port; a source port that is one of several is as little known as the address among several would be."""
    found = _NAT.search(text)
    if found is None or found[1] != kind or not (found[2] or found[3]) or (kind == "dnat" and found[4]):
        return None
    address = ip_address(found[2].strip("[]")) if found[2] else None
    return kind, (address, int(found[3]) if found[3] and not found[4] else None)


def _of_two_marks(text: str, mark: Any, ct_mark: Any) -> tuple[str, Any] | None:
    """The mark of the packet, or of its connection, set to a number or to the other one."""
    found = _SET_CT_MARK.search(text)
    if found is None:
        return None
    value = {"mark": mark, "ct mark": ct_mark}.get(found[2])
    value = int(found[2], 16) if found[2].startswith("0x") else value
    if not isinstance(value, int):
        return None
    return "mark" if found[1] == "meta" else "ct mark", value & int(found[3], 16) if found[3] else value


def _mark(text: str, mark: int) -> tuple[str, Any] | None:
    found = _SET_MARK.search(text)
    if found is None:
        return None
    value = int(found[2], 16)
    value = {"and": mark & value, "or": mark | value, "xor": mark ^ value}.get(found[1] or "", value)
    return "mark", value ^ int(found[3], 16) if found[3] else value
