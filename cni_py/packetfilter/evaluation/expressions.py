"""Expressions of nftables as functions of a packet: pure.

Each is compiled once: literals are parsed, and the elements of a set or map are indexed when a packet first asks for one. A
lookup that finds nothing has the value ABSENT, as a field that the packet does not have.

Source: libnftables-json(5); linux net/netfilter/nft_*.c.
"""

from __future__ import annotations

from functools import reduce
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter.evaluation.facts import ABSENT, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cni_py.packetfilter.evaluation.facts import Facts

    Value = Callable[[Facts], Any]
    """A value for a packet: of a condition True, False or UNKNOWN."""
    Member = Callable[[Any, Facts], Any]
    """Test of a value against the right side of a match: True, False or UNKNOWN."""

Json = dict[str, Any]
_ALIASES: dict[object, tuple[object, ...]] = {
    "icmp": (1,), "tcp": (6,), "udp": (17,), "ipv6-icmp": (58, "icmpv6"), "sctp": (132,), "ip": (0x0800,), "ip6": (0x86DD,),
}  # fmt: skip
"""Other forms of a value in literals: nft prints a number where /etc/protocols lacks a name."""
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
_HEADERS = frozenset(
    ("ether", "vlan", "arp", "ip", "ip6", "th", "tcp", "udp", "icmp", "icmpv6", "igmp", "sctp", "dccp", "udplite", "esp", "ah")
)
"""Headers that a packet either has or not; others (of what a tunnel carries) are not known."""
_DRAWN = ("numgen", "jhash", "symhash")
_ADDRESSES = (IPv4Address, IPv6Address)


class Elements:
    """The elements of a set, or of a map with their data, indexed when a packet first asks: a map of pods has hundreds."""

    def __init__(self, compiler: Compiler, elements: Iterable[Any], *, is_map: bool) -> None:
        self._compiler, self._raw, self._is_map = compiler, elements, is_map
        self._data: dict[Any, Any] | None = None
        self._others: list[tuple[Member, Any]] = []
        self._tests: list[tuple[Member, Any]] | None = None
        self._has_parts = False
        self._found: dict[Any, Any] = {}

    def find(self, value: Any, facts: Facts) -> Any:
        """The data of the element that the value is, of a set True; ABSENT, or UNKNOWN."""
        if value not in self._found:
            self._found[value] = self._look_up(value, facts)
        return self._found[value]

    def _look_up(self, value: Any, facts: Facts) -> Any:
        if self._data is None:
            self._data = self._index()
        parts = value if isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) != self._has_parts and (self._data or self._others):
            return UNKNOWN  # of a concatenation as one value, as another version of nft may have it
        if any(part is UNKNOWN or isinstance(part, frozenset) for part in parts):
            return self._search(value, facts, chain(self._all(), self._others))
        for form in _forms(value):
            if form in self._data:
                return self._data[form]
        return self._search(value, facts, self._others)

    def all_data(self) -> list[Any]:
        """The data of all elements."""
        self._data = self._index() if self._data is None else self._data
        return [*self._data.values(), *(data for _, data in self._others)]

    def _search(self, value: Any, facts: Facts, tests: Iterable[tuple[Member, Any]]) -> Any:
        result: Any = ABSENT
        for test, data in tests:
            found = test(value, facts)
            if found is True:
                return data
            result = UNKNOWN if found is UNKNOWN else result
        return result

    def _index(self) -> dict[Any, Any]:
        index: dict[Any, Any] = {}
        self._others.clear()
        for element in self._raw:
            of, data = element if self._is_map else (element, True)
            key = _key(of)
            self._has_parts |= "concat" in str(of) if key is None else isinstance(key, tuple)
            if key is None:
                self._others.append((self._compiler.member(of), data))
            else:
                index.setdefault(key, data)
        return index

    def _all(self) -> list[tuple[Member, Any]]:
        """Tests of the elements that are indexed, for a value of which a part is not known."""
        if self._tests is None:
            pairs = (element if self._is_map else (element, True) for element in self._raw)
            self._tests = [(self._compiler.member(of), data) for of, data in pairs if _key(of) is not None]
        return self._tests


class Compiler:
    """Compiles the expressions of one table. ``elements``: of its sets and maps, by their names."""

    def __init__(self, elements: Mapping[str, list[Any]] | None = None) -> None:
        self._raw = elements or {}
        self._named: dict[tuple[str, bool], Elements] = {}

    # ---- conditions ---------------------------------------------------------------------------

    def match(self, of: Json) -> Value:
        """A match: True, False or UNKNOWN."""
        left, operator = self.value(of["left"]), of["op"]
        if operator in _COMPARISONS:
            return _comparison(left, _COMPARISONS[operator], self.value(of["right"]))
        if operator in ("in", "!") and (flags := _flags(of["right"])):
            return _of_flags(left, flags, is_some=operator == "in")
        member, is_negated = self.member(of["right"]), operator == "!="

        def test(facts: Facts) -> Any:
            value = left(facts)
            if value is ABSENT or value is UNKNOWN:
                return False if value is ABSENT else UNKNOWN
            found = member(value, facts)
            return found if found is UNKNOWN else found != is_negated

        return test

    def some(self, matches: Sequence[Json], *, is_negated: bool) -> Value:
        """Return whether one of several matches holds."""
        tests = [self.match(of) for of in matches]

        def test(facts: Facts) -> Any:
            found = _some([test(facts) for test in tests])
            return found if found is UNKNOWN else found != is_negated

        return test

    def elements(self, of: Any, *, is_map: bool) -> Elements | None:
        """The elements of a set or map, of a name as ``@pods`` or as they are; None: the name is not known."""
        if not isinstance(of, str):
            inside = of.get("set", []) if isinstance(of, dict) else of
            return Elements(self, inside if isinstance(inside, list) else [inside], is_map=is_map)
        key = of.removeprefix("@"), is_map
        if key not in self._named and key[0] in self._raw:
            self._named[key] = Elements(self, self._raw[key[0]], is_map=is_map)
        return self._named.get(key)

    def lookup(self, of: Json) -> Value:
        """The data in a map for the key that an expression has; ABSENT, or UNKNOWN."""
        key, elements = self.value(of["key"]), self.elements(of["data"], is_map=True)

        def find(facts: Facts) -> Any:
            value = key(facts)
            return ABSENT if value is ABSENT else UNKNOWN if elements is None else elements.find(value, facts)

        return find

    def member(self, right: Any) -> Member:  # noqa: PLR0911 — a line for each form
        """Compile the right side of a match."""
        if right == "*":  # the element of a set or map for everything else, which comes last
            return lambda value, _: UNKNOWN if value is UNKNOWN or (isinstance(value, tuple) and UNKNOWN in value) else True
        if isinstance(right, str) and right.startswith("@"):
            return _among(self.elements(right, is_map=False))
        if isinstance(right, list):
            return _some_of(right, [self.member(item) for item in right])
        if not isinstance(right, dict):
            return _same_as(right)
        kind, of = next(iter(right.items()))
        if kind == "elem":
            return self.member(of["val"])
        if kind == "set":
            return self.member(of) if isinstance(of, str) else _among(self.elements(right, is_map=False))
        if kind == "prefix":
            return _in_prefix(of)
        if kind == "range":
            return _in_range(*map(_literal, of))
        if kind == "concat":
            return _each([self.member(part) for part in of])
        if kind == "|" and all(isinstance(item, str) for item in of):
            return self.member(list(of))
        other = self.value(right)
        return lambda value, facts: _is_same(value, other(facts))

    # ---- values -------------------------------------------------------------------------------

    def value(self, of: Any) -> Value:
        """Compile an expression."""
        if not isinstance(of, dict):
            literal = frozenset(of) if isinstance(of, list) else _literal(of)
            return lambda _: literal
        kind, inside = next(iter(of.items()))
        if kind in _OPERATORS:
            return self._operation(kind, inside)
        if kind in ("meta", "ct"):
            name = " ".join(filter(None, (kind, inside.get("dir"), inside["key"])))
            return lambda facts: facts.fields.get(name, UNKNOWN)
        if kind == "fib":
            flags = inside.get("flags", [])
            return lambda facts: facts.fib(inside["result"], [flags] if isinstance(flags, str) else flags)
        if kind in _DRAWN:
            return _drawn(inside["mod"], inside.get("offset", 0))
        read = self._READERS.get(kind)
        return read(self, inside) if read else lambda _: UNKNOWN

    def _payload(self, of: Json) -> Value:
        if "protocol" not in of:
            return lambda facts: facts.payload(of["base"], of["offset"], of["len"])
        protocol, name = of["protocol"], f"{of['protocol']} {of['field']}"

        def read(facts: Facts) -> Any:
            value = facts.fields.get(name, ABSENT)
            if value is not ABSENT:
                return value
            has_header = any(field.startswith(f"{protocol} ") for field in facts.fields)
            return UNKNOWN if has_header or protocol not in _HEADERS else ABSENT

        return read

    def _concat(self, parts: Sequence[Any]) -> Value:
        values = [self.value(part) for part in parts]

        def read(facts: Facts) -> Any:
            found = tuple(value(facts) for value in values)
            return ABSENT if ABSENT in found else found  # one that is not known may not matter

        return read

    def _mapped(self, of: Json) -> Value:
        find = self.lookup(of)

        def read(facts: Facts) -> Any:
            found = find(facts)
            return found if found is UNKNOWN or found is ABSENT else self.value(found)(facts)

        return read

    def _element(self, of: Json) -> Value:
        return self.value(of["val"])

    _READERS: dict[str, Callable[[Compiler, Any], Value]] = {  # noqa: RUF012 — a table
        "concat": _concat,
        "map": _mapped,
        "elem": _element,
        "payload": _payload,
    }

    def _operation(self, operator: str, parts: Sequence[Any]) -> Value:
        values = [self.value(part) for part in parts]
        if operator == "|" and all(isinstance(part, str) and not part[:1].isdigit() for part in parts):
            flags = frozenset(parts)
            return lambda _: flags

        def compute(facts: Facts) -> Any:
            found = [value(facts) for value in values]
            if operator == "&" and isinstance(found[0], frozenset):
                return found[0] & _flags(found[1])
            if ABSENT in found:
                return ABSENT
            if isinstance(found[0], _ADDRESSES) and all(isinstance(each, (*_ADDRESSES, int)) for each in found):
                return type(found[0])(reduce(_OPERATORS[operator], map(int, found)))
            is_known = all(isinstance(each, int) for each in found)
            return reduce(_OPERATORS[operator], found) if is_known else UNKNOWN

        return compute


def _drawn(count: int, offset: int) -> Value:
    """A number that the kernel counts, draws or computes."""

    def draw(facts: Facts) -> Any:
        number = 0 if count == 1 else facts.choose(count)
        return number if number is UNKNOWN else number + offset

    return draw


# ---- comparing --------------------------------------------------------------------------------


def _forms(value: Any) -> Iterable[Any]:
    """A value as literals may have it."""
    if isinstance(value, str):
        return value, *_ALIASES.get(value, ()), *((int(value),) if value.isdigit() else ())
    if isinstance(value, tuple):
        aliases = tuple(_ALIASES.get(part, (part,))[0] if isinstance(part, str) else part for part in value)
        return (value,) if aliases == value else (value, aliases)
    return (value,)


def _key(of: Any) -> Any:
    """A literal that one value is equal to; None: the element is a network, a range, or a pattern."""
    if isinstance(of, dict):
        kind, inside = next(iter(of.items()))
        if kind == "elem":
            return _key(inside["val"])
        parts = tuple(map(_key, inside)) if kind == "concat" else (None,)
        return None if None in parts else parts
    literal = _literal(of)
    is_pattern = isinstance(literal, str) and literal.endswith("*")
    return None if is_pattern or not isinstance(literal, (str, int, *_ADDRESSES)) else literal


def _literal(of: Any) -> Any:
    """An address, a number or a name."""
    if isinstance(of, str) and of:
        if of[0] in "0123456789abcdefABCDEF:" and (":" in of or "." in of):
            try:
                return ip_address(of)
            except ValueError:
                return of
        return int(of, 16) if of[:2] == "0x" else of
    return of


def _flags(of: Any) -> frozenset[str]:
    of = of.get("|", ()) if isinstance(of, dict) else of
    return frozenset(of if isinstance(of, (list, frozenset)) else [of] if isinstance(of, str) else ())


def _some(results: Sequence[Any]) -> Any:
    return True if True in results else UNKNOWN if UNKNOWN in results else False


def _comparison(left: Value, compare: Callable[[Any, Any], bool], right: Value) -> Value:
    def test(facts: Facts) -> Any:
        value, other = left(facts), right(facts)
        if value is ABSENT:
            return False
        return compare(value, other) if type(value) is type(other) and value is not UNKNOWN else UNKNOWN

    return test


def _of_flags(left: Value, flags: frozenset[str], *, is_some: bool) -> Value:
    """Test that some of the flags are set, or that none is."""

    def test(facts: Facts) -> Any:
        value = left(facts)
        if value is ABSENT:
            return False
        return bool(value & flags) == is_some if isinstance(value, frozenset) else UNKNOWN

    return test


def _among(elements: Elements | None) -> Member:
    def test(value: Any, facts: Facts) -> Any:
        found = UNKNOWN if elements is None else elements.find(value, facts)
        return found if found is UNKNOWN else found is not ABSENT

    return test


def _some_of(flags: list[Any], members: Sequence[Member]) -> Member:
    def test(value: Any, facts: Facts) -> Any:
        if isinstance(value, frozenset):  # as a whole
            return value == frozenset(flags)
        return _some([member(value, facts) for member in members])

    return test


def _each(members: Sequence[Member]) -> Member:
    """Test each part of a concatenation."""

    def test(value: Any, facts: Facts) -> Any:
        if not isinstance(value, tuple) or len(value) != len(members):
            return UNKNOWN
        found = [member(part, facts) for member, part in zip(members, value, strict=True)]
        return False if False in found else UNKNOWN if UNKNOWN in found else True

    return test


def _same_as(right: Any) -> Member:
    literal = _literal(right)
    return lambda value, _: _is_same(value, literal)


def _is_same(value: Any, other: Any) -> Any:
    if value is UNKNOWN or other is UNKNOWN:
        return UNKNOWN
    if isinstance(value, frozenset):  # as a whole
        return value == _flags(other)
    if isinstance(value, str) and isinstance(other, str) and other.endswith("*"):
        return value.startswith(other[:-1])
    return value == other or (isinstance(value, str) and other in _forms(value))


def _in_prefix(of: Json) -> Member:
    """Test the first bits, of an address or of a mark."""
    literal = _literal(of["addr"])
    kind, shift = type(literal), (32 if isinstance(literal, int) else literal.max_prefixlen) - of["len"]
    first = int(literal) >> shift

    def test(value: Any, _: Facts) -> Any:
        if type(value) is kind:
            return int(value) >> shift == first
        return False if isinstance(value, _ADDRESSES) and kind is not int else UNKNOWN

    return test


def _in_range(low: Any, high: Any) -> Member:
    def test(value: Any, _: Facts) -> Any:
        return UNKNOWN if value is UNKNOWN else low <= value <= high if type(low) is type(value) else False

    return test
