"""Expressions and statements of nftables, evaluated for a packet: pure.

A value that is not known is :data:`UNKNOWN`, and so is every result that depends on it. :data:`ABSENT` is the value of a
field that the packet does not have, and of a lookup that finds nothing: its rule does not match.

Source: libnftables-json(5); linux net/netfilter/nft_*.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from cni_py.walk import xtables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Json = dict[str, Any]
ACCEPT, DROP, REJECT, RETURN, QUEUE = "accept", "drop", "reject", "return", "queue"
_NAMES: dict[object, str] = {
    1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp", "icmpv6": "ipv6-icmp", 0x0800: "ip", 0x86DD: "ip6",
}  # fmt: skip
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "&": lambda one, other: one & other,
    "|": lambda one, other: one | other,
    "^": lambda one, other: one ^ other,
    "<<": lambda one, other: one << other,
    ">>": lambda one, other: one >> other,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda one, other: one < other,
    ">": lambda one, other: one > other,
    "<=": lambda one, other: one <= other,
    ">=": lambda one, other: one >= other,
}
_NO_EFFECT = ("", None)
_WITHOUT_EVENT = frozenset((ACCEPT, RETURN, "continue", "jump", "goto"))
_WITHOUT_PATH = frozenset(("nftrace", "priority", "pkttype"))
"""Fields of ``meta`` that a rule may set without an effect on where a packet goes."""


class _Marker:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


UNKNOWN, ABSENT = _Marker("unknown"), _Marker("absent")


class _Masked(frozenset[str]):
    """Flags behind a mask: they are compared as a whole."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Fields of a packet that rules can ask for.

    Attributes:
        fields: by "ip saddr", "meta iifname", "ct state" …; a rule may change "meta mark".
        fib: from result and flags to a value; payload: from base, offset and length, in bits; choose: from a count to one of
            that many numbers, where only the kernel knows it.
    """

    fields: dict[str, Any]
    fib: Callable[[str, Sequence[str]], Any] = lambda *_: UNKNOWN
    payload: Callable[[str, int, int], Any] = lambda *_: UNKNOWN
    choose: Callable[[int], Any] = lambda _: UNKNOWN


class Evaluation:
    """The evaluation of one rule. ``elements``: of a set or map, by its name."""

    def __init__(self, facts: Facts, elements: Callable[[str], list[Any]]) -> None:
        self.facts, self._elements = facts, elements

    # ---- statements ---------------------------------------------------------------------------

    def statement(self, kind: str, of: Any) -> Any:
        """An event and its value; the event "" has no meaning for people. ABSENT: the rule does not match."""
        if kind in _WITHOUT_EVENT:
            return _NO_EFFECT
        if kind in (DROP, REJECT, QUEUE, "notrack", "masquerade"):
            return kind, None
        if kind in ("dnat", "snat"):
            return self._translation(kind, of)
        if kind == "redirect":
            port = self.value((of or {}).get("port"))
            return UNKNOWN if port is UNKNOWN else (kind, (None, port))
        return self._mangle(of) if kind == "mangle" else UNKNOWN

    def target(self, name: str, text: str) -> Any:
        """An event and its value, of a target of iptables."""
        marks = self.facts.fields.get("meta mark"), self.facts.fields.get("ct mark", 0)
        found = xtables.target_of(name, text, *marks)
        return UNKNOWN if found is None else found

    def _translation(self, kind: str, of: Json) -> Any:
        port = of.get("port")
        is_one_of_several = kind == "snat" and isinstance(port, dict) and "range" in port
        address, port = self.value(of.get("addr")), None if is_one_of_several else self.value(port)
        if isinstance(address, tuple) and len(address) == 2:  # "addr . port" from a map
            address, port = map(self.value, address)
        if ABSENT in (address, port):
            return ABSENT
        is_known = UNKNOWN not in (address, port) and not isinstance(address, (dict, tuple))
        return (kind, (address, port)) if is_known else UNKNOWN

    def _mangle(self, of: Json) -> Any:
        key = of.get("key", {})
        field = key.get("meta", {}).get("key", "")
        if field == "mark":
            value = self.value(of.get("value"))
            return ("mark", value) if isinstance(value, int) else UNKNOWN
        if key.get("ct", {}).get("key") == "mark":
            value = self.value(of.get("value"))
            return ("ct mark", value) if isinstance(value, int) else UNKNOWN
        return _NO_EFFECT if "ct" in key or field in _WITHOUT_PATH else UNKNOWN

    # ---- conditions ---------------------------------------------------------------------------

    def condition(self, kind: str, name: str, of: Any, text: str) -> Any:
        """True, False, UNKNOWN; of a map of verdicts the verdict, or ABSENT."""
        if not name:
            return self.match(of) if kind == "match" else self.lookup(of)
        conditions = xtables.match_of(name, text)
        return UNKNOWN if conditions is None else _every(self.match(condition) for condition in conditions)

    def match(self, of: Json) -> Any:
        """True, False, UNKNOWN."""
        left, right, operator = self.value(of["left"]), of["right"], of["op"]
        if left is ABSENT:
            return False
        if left is UNKNOWN:
            return UNKNOWN
        if operator in _COMPARISONS:
            other = self.value(right)
            return _COMPARISONS[operator](left, other) if type(left) is type(other) else UNKNOWN
        found = self.contains(left, right)
        return found if found is UNKNOWN else found != (operator == "!=")

    def lookup(self, of: Json) -> Any:
        """The value in a map, with the key that an expression has."""
        key, data = self.value(of["key"]), of["data"]
        if key is UNKNOWN or key is ABSENT:
            return key
        result: Any = ABSENT
        for pair in self._elements(data[1:]) if isinstance(data, str) else data.get("set", []):
            found = _is_any(pair[0]) or self.contains(key, pair[0])
            if found is True:
                return pair[1]
            result = UNKNOWN if found is UNKNOWN else result
        return result

    def contains(self, value: Any, right: Any) -> Any:
        """Return whether a value is what the right side of a match says, or among it: True, False, UNKNOWN."""
        if value is UNKNOWN:
            return UNKNOWN
        if isinstance(value, _Masked):
            return value == _flags(right)
        if isinstance(right, str) and right.startswith("@"):
            right = self._elements(right[1:])
        if isinstance(right, list):
            return _some([self.contains(value, item) for item in right])
        if isinstance(right, dict):
            return self._contains_kind(value, *next(iter(right.items())))
        return right in value if isinstance(value, frozenset) else _is_same(value, right)

    def _contains_kind(self, value: Any, kind: str, of: Any) -> Any:
        """Compare as :meth:`contains`, with a right side that is an object."""
        if kind == "elem":
            return self.contains(value, of["val"])
        if kind == "set":
            return self.contains(value, of if isinstance(of, list) else [of])
        if kind == "prefix":
            return _in_prefix(value, of)
        if kind == "range":
            return _in_range(value, of)
        if kind == "concat":
            is_alike = isinstance(value, tuple) and len(value) == len(of)
            return _every([self.contains(one, part) for one, part in zip(value, of, strict=True)]) if is_alike else UNKNOWN
        other = self.value({kind: of})
        return UNKNOWN if other is UNKNOWN else _is_same(value, other)

    # ---- values -------------------------------------------------------------------------------

    def value(self, of: Any) -> Any:
        """The value of an expression for this packet."""
        if not isinstance(of, dict):
            return _plain(of)
        kind, inside = next(iter(of.items()))
        if kind in _OPERATORS:
            return self._computed(kind, inside)
        read = self._READERS.get(kind)
        return read(self, kind, inside) if read else UNKNOWN

    def _concat(self, _: str, parts: Sequence[Any]) -> Any:
        values = tuple(self.value(part) for part in parts)
        return ABSENT if ABSENT in values else values  # one that is not known may not matter

    def _mapped(self, _: str, of: Json) -> Any:
        found = self.lookup(of)
        return found if found is UNKNOWN or found is ABSENT else self.value(found)

    def _element(self, _: str, of: Json) -> Any:
        return self.value(of["val"])

    def _fib(self, _: str, of: Json) -> Any:
        flags = of.get("flags", [])
        return self.facts.fib(of["result"], [flags] if isinstance(flags, str) else flags)

    def _field(self, kind: str, of: Json) -> Any:
        direction = f"{of['dir']} " if "dir" in of else ""
        return self.facts.fields.get(f"{kind} {direction}{of['key']}", UNKNOWN)

    def _chosen(self, _: str, of: Json) -> Any:
        """A number that the kernel counts, draws or computes: ``numgen``, ``jhash``, ``symhash``."""
        number = self.facts.choose(of["mod"])
        return number if number is UNKNOWN else number + of.get("offset", 0)

    def _payload(self, _: str, of: Json) -> Any:
        if "protocol" not in of:
            return self.facts.payload(of["base"], of["offset"], of["len"])
        protocol = of["protocol"]
        has_header = any(name.startswith(f"{protocol} ") for name in self.facts.fields)
        return self.facts.fields.get(f"{protocol} {of['field']}", UNKNOWN if has_header else ABSENT)

    _READERS: dict[str, Callable[[Evaluation, str, Any], Any]] = {  # noqa: RUF012 — a table
        "concat": _concat,
        "map": _mapped,
        "elem": _element,
        "fib": _fib,
        "meta": _field,
        "ct": _field,
        "payload": _payload,
        "numgen": _chosen,
        "jhash": _chosen,
        "symhash": _chosen,
    }

    def _computed(self, operator: str, parts: Sequence[Any]) -> Any:
        values = [self.value(part) if not isinstance(part, list) else part for part in parts]
        if operator == "&" and isinstance(values[0], frozenset):
            return _Masked(values[0] & _flags(values[1]))
        if not all(isinstance(value, int) for value in values):
            return ABSENT if ABSENT in values else UNKNOWN
        return reduce(_OPERATORS[operator], values)  # type: ignore[arg-type]


def _is_any(key: Any) -> bool:
    """Return whether this key of a map is for everything else: ``*``, which comes last."""
    return key == "*" or (isinstance(key, dict) and key.get("elem", {}).get("val") == "*")


def _some(results: Sequence[Any]) -> Any:
    return True if True in results else UNKNOWN if UNKNOWN in results else False


def _every(results: Any) -> Any:
    of = list(results)
    return False if False in of else UNKNOWN if UNKNOWN in of else True


def _flags(of: Any) -> frozenset[str]:
    return frozenset(of if isinstance(of, list) else [of] if isinstance(of, str) else ())


def _plain(of: Any) -> Any:
    """A literal: an address, a number or a name."""
    if isinstance(of, str):
        try:
            return ip_address(of)
        except ValueError:
            return int(of, 0) if of[:2] == "0x" else of
    return of


def _is_same(value: Any, other: Any) -> bool:
    other = _plain(other)
    if isinstance(value, str) and isinstance(other, str) and other.endswith("*"):
        return value.startswith(other[:-1])
    if isinstance(value, str) and isinstance(other, (int, str)):
        return value in (other, _NAMES.get(other))
    return bool(value == other)


def _in_prefix(value: Any, of: Json) -> Any:
    if isinstance(value, int) and isinstance(of["addr"], int):  # of a mark: its first bits
        return value >> (32 - of["len"]) == of["addr"] >> (32 - of["len"])
    if not isinstance(value, (IPv4Address, IPv6Address)):
        return UNKNOWN
    network = ip_network(f"{of['addr']}/{of['len']}", strict=False)
    return value.version == network.version and value in network


def _in_range(value: Any, of: Sequence[Any]) -> Any:
    low, high = map(_plain, of)
    return low <= value <= high if type(low) is type(value) else False
