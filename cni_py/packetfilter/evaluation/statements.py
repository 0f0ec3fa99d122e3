"""Rules of nftables as steps, conditions and statements, for a packet: pure.

A statement has an *effect*: a word and a value. Words are ``accept``, ``drop``, ``reject``, ``queue``, ``return``, ``jump`` and
``goto`` with the chain, ``dnat``, ``snat``, ``redirect`` and ``masquerade`` with an address and a port (either may be None),
``mark`` and ``connmark`` with the new value, ``notrack``, "" for none, and :data:`ONE_OF` with effects of which one applies.

Source: libnftables-json(5); linux net/netfilter/nft_*.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter.evaluation import xtables
from cni_py.packetfilter.evaluation.facts import ABSENT, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.packetfilter.evaluation.expressions import Compiler, Json, Value
    from cni_py.packetfilter.evaluation.facts import Facts

ACCEPT, DROP, REJECT, RETURN, QUEUE = "accept", "drop", "reject", "return", "queue"
MARK, CONNMARK, NOTRACK, ONE_OF = "mark", "connmark", "notrack", "one of"
DESTINATION_NATS, SOURCE_NATS = frozenset(("dnat", "redirect")), frozenset(("snat", "masquerade"))
NATS = DESTINATION_NATS | SOURCE_NATS
ENDS = frozenset((ACCEPT, DROP, REJECT, QUEUE)) | NATS
"""Effects that end a base chain."""
_PLAIN = frozenset((ACCEPT, DROP, REJECT, QUEUE, RETURN, NOTRACK))
_HARMLESS = frozenset(("counter", "log", "comment", "last", "ct helper", "ct timeout", "ct expectation", "flow", "dup"))
"""Statements without an effect on where a packet goes."""
_LIMITS = frozenset(("limit", "quota", "ct count"))
_UNKNOWN_EFFECTS = frozenset(("tproxy", "fwd", "synproxy"))
_WITHOUT_PATH = frozenset(("nftrace", "priority", "pkttype"))
"""Fields of ``meta`` that a rule may set without an effect on where a packet goes."""
_PATH_FIELDS = frozenset(("saddr", "daddr", "sport", "dport"))
_NOTHING: tuple[str, Any] = ("", None)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a rule.

    Attributes:
        run: of a condition True, False or UNKNOWN; of a statement its effect, ABSENT if the rule does not match, or UNKNOWN.
        doubt: a result that is UNKNOWN, in words.
        matters: of a statement: whether it can change where a packet goes, or how.
    """

    run: Value
    doubt: str
    is_condition: bool = False
    matters: bool = True


UNEXPECTED = (ValueError, TypeError, KeyError, IndexError, AttributeError, StopIteration, RuntimeError)
"""Exceptions for a form of a rule that is not expected, of another version of nft or iptables: the rule is in doubt.

RuntimeError is what StopIteration becomes in a generator."""


def _unknown(_: Facts) -> Any:
    return UNKNOWN


UNREADABLE = Step(_unknown, "a form that is not understood")


def steps_of(expressions: Iterable[Json], text: str, compiler: Compiler) -> tuple[Step, ...]:
    """Compile a rule. ``text``: the rule as nft prints it, for extensions of iptables."""
    return tuple(step for expression in expressions for step in _steps(expression, text, compiler))


def _steps(expression: Json, text: str, compiler: Compiler) -> Iterator[Step]:
    kind, of = next(iter(expression.items()))
    if kind == "xt":
        yield from _extension(of if isinstance(of, dict) else {}, text, compiler)
    elif kind == "match":
        yield _condition(compiler.match(of))
    elif kind == "some":
        yield _condition(compiler.some(of["of"], is_negated=of["inv"]))
    elif kind in _LIMITS:
        yield _condition(_limit(is_over=isinstance(of, dict) and bool(of.get("inv"))))
    elif kind in ("set", "meter"):  # adds the packet's address to a set, below or over a limit
        inner = of.get("stmt", []) if isinstance(of, dict) else []
        for each in inner if isinstance(inner, list) else [inner]:
            yield from _steps(each, text, compiler)
    elif kind not in _HARMLESS:
        run = _statement(kind, of, compiler)
        yield Step(run or _unknown, f'"{kind}" is not understood', matters=run is not None or kind in _UNKNOWN_EFFECTS)


def _extension(of: Json, text: str, compiler: Compiler) -> Iterator[Step]:
    """An extension of iptables that nft prints."""
    name, is_match = of.get("name", ""), of.get("type") != "target"
    inside = xtables.understood(name, text)
    if inside is not None:
        yield from steps_of(inside, "", compiler)
    elif is_match:
        yield _condition(_unknown, f": {name}" if name else "")
    else:
        yield Step(_unknown, f'"{name}" is not understood')


def _condition(test: Value, name: str = "") -> Step:
    return Step(test, f"a match that is not understood{name}", is_condition=True)


def _limit(*, is_over: bool) -> Value:
    def test(facts: Facts) -> Any:
        within = facts.within_limits
        return within if within is UNKNOWN else within != is_over

    return test


# ---- statements -------------------------------------------------------------------------------


def _statement(kind: str, of: Any, compiler: Compiler) -> Value | None:
    """Compile a statement; None: it is not understood."""
    if kind == "continue":
        return lambda _: _NOTHING
    if kind in _PLAIN:
        return lambda _: (kind, None)
    if kind in ("jump", "goto"):
        return lambda _: (kind, of["target"])
    if kind == "vmap":
        return _verdict_map(of, compiler)
    if kind in NATS:
        return _translation(kind, of if isinstance(of, dict) else {}, compiler)
    return _mangle(of, compiler) if kind == "mangle" else None


def _verdict_map(of: Json, compiler: Compiler) -> Value:
    find, elements = compiler.lookup(of), compiler.elements(of["data"], is_map=True)

    def run(facts: Facts) -> Any:
        found = find(facts)
        if found is ABSENT or (found is UNKNOWN and elements is None):
            return found
        if found is UNKNOWN and elements is not None:
            return ONE_OF, [_effect_of(each) for each in elements.all_data()]
        return _effect_of(found)

    return run


def _effect_of(verdict: Json) -> tuple[str, Any]:
    kind, of = next(iter(verdict.items()))
    return _NOTHING if kind == "continue" else (kind, of["target"] if isinstance(of, dict) else None)


def _translation(kind: str, of: Json, compiler: Compiler) -> Value:
    address_of, port_of = compiler.value(of.get("addr")), compiler.value(of.get("port"))
    is_of_source = kind in SOURCE_NATS

    def run(facts: Facts) -> Any:
        address, port = address_of(facts), port_of(facts)
        if isinstance(address, tuple) and len(address) == 2:  # "addr . port" from a map
            address, port = address
        if address is ABSENT or port is ABSENT:
            return ABSENT
        is_known = address is not UNKNOWN and not isinstance(address, tuple) and (is_of_source or port is not UNKNOWN)
        return (kind, (address, port)) if is_known else UNKNOWN

    return run


def _mangle(of: Json, compiler: Compiler) -> Value | None:
    key = of.get("key", {})
    name = {"meta": MARK, "ct": CONNMARK}.get(next(iter(key), ""), "")
    if name and next(iter(key.values())).get("key") == "mark":
        value = compiler.value(of.get("value"))
        return lambda facts: (name, number if isinstance(number := value(facts), int) else UNKNOWN)
    is_harmless = (
        "ct" in key
        or "tcp option" in key
        or key.get("meta", {}).get("key") in _WITHOUT_PATH
        or key.get("payload", {}).get("field", "saddr") not in _PATH_FIELDS
    )
    return (lambda _: _NOTHING) if is_harmless else None
