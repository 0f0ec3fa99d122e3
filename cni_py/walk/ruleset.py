"""Rules of nftables, evaluated for a packet: pure.

How it works. ``nft -j list ruleset`` is read into base chains, in the order in which the kernel calls them, and sets. Each rule is
evaluated from left to right with what is known of the packet (:class:`Facts`); a value that is not known, or an expression that this
module does not understand, makes the rule *uncertain*: it is reported, the walk goes on as if it did not match, and the real packet
decides. Rules without an effect on the packet's path (counters, logs, comments) have none here.

NAT chains are evaluated for the first packet of a connection alone, and end with the first translation, as in the kernel.

Source: nft(8); linux net/netfilter/nf_tables_core.c (nft_do_chain), nf_nat_core.c (nf_nat_inet_fn).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from cni_py.walk import xtables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Json = dict[str, Any]
RuleKey = tuple[str, str, str, int]
"""Family, table, chain, handle."""
ACCEPT, DROP, REJECT, RETURN = "accept", "drop", "reject", "return"
_ENDS = frozenset((ACCEPT, DROP, REJECT, "queue"))
_HARMLESS = frozenset((
    "counter", "log", "comment", "limit", "set", "quota", "last", "ct helper", "ct timeout", "ct count", "flow", "meter",
))  # fmt: skip
"""Statements without an effect on where a packet goes."""
_L4_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp", "icmpv6": "ipv6-icmp"}
_PROTOCOL_NAMES = {"ip": "ip", "ip6": "ip6", 2048: "ip", 0x86DD: "ip6", "0x0800": "ip", "0x86dd": "ip6"}
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


class _Unknown:
    """The value of what is not known."""

    def __repr__(self) -> str:
        return "unknown"


class _Masked(frozenset[str]):
    """Flags behind a mask: they are compared as a whole."""


UNKNOWN = _Unknown()
_ABSENT = object()
"""The value of a lookup that finds nothing, and of a field that the packet does not have: the rule does not match."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules ask of a packet. ``fields``: by "ip saddr", "meta iifname", "ct state" …; ``fib``: result and flags to a value."""

    fields: Mapping[str, Any]
    fib: Callable[[str, Sequence[str]], Any] = lambda *_: UNKNOWN
    payload: Callable[[str, int, int], Any] = lambda *_: UNKNOWN


@dataclass(frozen=True, slots=True)
class Chain:
    family: str
    table: str
    name: str
    hook: str = ""
    priority: int = 0
    kind: str = ""
    policy: str = ACCEPT
    device: tuple[str, ...] = ()
    rules: list[tuple[int, list[Json]]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class Event:
    """A rule, or a policy, that matters for the packet.

    Attributes:
        kind: accept, drop, reject, dnat, snat, masquerade, redirect, mark, notrack, queue, uncertain.
        value: of a translation the address and the port (either may be None), of a mark the mark.
        text: the rule as nft prints it, or why it is not understood.
    """

    kind: str
    chain: Chain
    handle: int
    text: str
    value: Any = None

    @property
    def where(self) -> str:
        return self.chain.title


@dataclass(slots=True)
class Outcome:
    """The end of one hook: the events on the way, and the verdict."""

    events: list[Event] = field(default_factory=list)
    verdict: str = ACCEPT
    chains: list[str] = field(default_factory=list)


class Ruleset:
    """The rules of one namespace. ``problem``: why they are not known."""

    def __init__(self, objects: Sequence[Json], texts: Mapping[RuleKey, str], problem: str = "") -> None:
        self.problem, self._texts = problem, texts
        self._chains: dict[tuple[str, str, str], Chain] = {}
        self._sets: dict[tuple[str, str, str], list[Any]] = {}
        for entry in objects:
            for kind, of in entry.items():
                if kind == "chain":
                    self._add_chain(of)
                elif kind in ("set", "map"):
                    self._sets[of["family"], of["table"], of["name"]] = of.get("elem", [])
                elif kind == "rule":
                    chain = self._chains[of["family"], of["table"], of["chain"]]
                    chain.rules.append((of["handle"], of.get("expr", [])))

    def _add_chain(self, of: Json) -> None:
        device = of.get("dev", ())
        self._chains[of["family"], of["table"], of["name"]] = Chain(
            of["family"], of["table"], of["name"], of.get("hook", ""), of.get("prio", 0), of.get("type", ""),
            of.get("policy", ACCEPT), (device,) if isinstance(device, str) else tuple(device),
        )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        return not self._chains

    def has_family(self, family: str) -> bool:
        return any(chain.family == family and chain.hook for chain in self._chains.values())

    def text(self, key: RuleKey) -> str:
        """A rule as nft prints it."""
        return self._texts.get(key, "")

    def base_chains(self, families: Sequence[str], hook: str, device: str = "") -> list[Chain]:
        """The chains of a hook in the order in which the kernel calls them."""
        found = [c for c in self._chains.values() if c.hook == hook and c.family in families]
        return sorted([c for c in found if not c.device or device in c.device], key=lambda chain: chain.priority)

    def evaluate(self, chain: Chain, facts: Facts) -> Outcome:
        """Evaluate one base chain."""
        outcome = Outcome()
        verdict = self._run(chain, facts, outcome, 0)
        if verdict not in _ENDS:
            verdict = chain.policy
            if verdict == DROP:
                outcome.events.append(Event(DROP, chain, 0, "policy drop"))
        outcome.verdict = DROP if verdict == REJECT else verdict
        return outcome

    def _run(self, chain: Chain, facts: Facts, outcome: Outcome, depth: int) -> str:
        """Evaluate the rules of a chain. Returns: the verdict that ends the base chain, or ``return``."""
        outcome.chains.append(chain.title)
        for handle, expressions in chain.rules:
            verdict = self._rule(chain, handle, expressions, facts, outcome)
            if verdict == RETURN:
                return RETURN
            if verdict in _ENDS:
                return verdict
            if verdict.startswith(("jump ", "goto ")):
                how, _, name = verdict.partition(" ")
                target = self._chains.get((chain.family, chain.table, name))
                if target is None or depth > 16:
                    continue
                inner = self._run(target, facts, outcome, depth + 1)
                if inner in _ENDS:
                    return inner
                if how == "goto":
                    return RETURN
        return RETURN

    def _rule(self, chain: Chain, handle: int, expressions: Sequence[Json], facts: Facts, outcome: Outcome) -> str:
        """Evaluate one rule. Returns: its verdict, "" to go on with the next rule."""
        text = self.text((chain.family, chain.table, chain.name, handle))
        doubt = ""
        evaluation = _Evaluation(self, chain, facts)
        for expression in expressions:
            kind, of = next(iter(expression.items()))
            if kind in ("limit", "quota", "ct count") and isinstance(of, dict) and of.get("inv"):
                return ""  # it is for what is over a limit, and one packet is below any
            name = of.get("name", "") if kind == "xt" and isinstance(of, dict) else ""
            if kind in _HARMLESS or name in xtables.HARMLESS:
                continue
            if kind in ("match", "vmap") or (name and of.get("type") == "match"):
                found = evaluation.condition(kind, name, of, text)
                if found is False or found is _ABSENT:
                    return ""
                if found is UNKNOWN:
                    doubt = doubt or f"a match that is not understood{f': {name}' if name else ''}"
                elif kind == "vmap":
                    return self._verdict(found, chain, handle, text, outcome, doubt)
                continue
            if doubt:
                break
            done = evaluation.target(name, text) if name else evaluation.statement(kind, of)
            if done is _ABSENT:
                return ""
            if done is UNKNOWN:
                doubt = f'"{name or kind}" is not understood'
                continue
            event, value = done
            if event:
                outcome.events.append(Event(event, chain, handle, text, value))
            if event == "mark" and isinstance(value, int):
                evaluation.set_mark(value)
            verdict = _verdict_of(event if name else kind, of)
            if verdict:
                return verdict
        if doubt and _matters(expressions):
            outcome.events.append(Event("uncertain", chain, handle, f"{text or expressions} ({doubt})"))
        return ""

    def _verdict(self, found: Any, chain: Chain, handle: int, text: str, outcome: Outcome, doubt: str) -> str:
        """The verdict of a map."""
        kind, of = next(iter(found.items())) if isinstance(found, dict) else (found, None)
        if doubt:
            outcome.events.append(Event("uncertain", chain, handle, f"{text} ({doubt})"))
            return ""
        if kind in (DROP, REJECT):
            outcome.events.append(Event(DROP, chain, handle, text))
        return _verdict_of(kind, of)

    def elements(self, chain: Chain, name: str) -> list[Any]:
        return self._sets.get((chain.family, chain.table, name), [])


def _verdict_of(kind: str, of: Any) -> str:
    if kind in ("jump", "goto"):
        return f"{kind} {of['target']}"
    if kind in ("dnat", "snat", "masquerade", "redirect"):
        return ACCEPT
    return kind if kind in _ENDS or kind == RETURN else ""


def _matters(expressions: Sequence[Json]) -> bool:
    """Return whether a rule can change where a packet goes, or how."""
    kinds = {next(iter(of)) for of in expressions}
    return bool(kinds & {"drop", "reject", "accept", "jump", "goto", "vmap", "dnat", "snat", "masquerade", "redirect", "mangle",
                         "queue", "tproxy", "fwd", "dup", "xt", "return"})  # fmt: skip


class _Evaluation:
    """The evaluation of one rule."""

    def __init__(self, rules: Ruleset, chain: Chain, facts: Facts) -> None:
        self.rules, self.chain, self.facts = rules, chain, facts

    def set_mark(self, value: int) -> None:
        if isinstance(self.facts.fields, dict):
            self.facts.fields["meta mark"] = value

    def condition(self, kind: str, name: str, of: Any, text: str) -> Any:
        """True, False, UNKNOWN; of a map of verdicts the verdict."""
        if not name:
            return self.match(of) if kind == "match" else self.lookup(of)
        conditions = xtables.match_of(name, text)
        if conditions is None:
            return UNKNOWN
        results = [self.match(condition) for condition in conditions]
        return False if False in results else UNKNOWN if UNKNOWN in results else True

    def target(self, name: str, text: str) -> Any:
        """An event and its value, of a target of iptables. UNKNOWN: not understood."""
        found = xtables.target_of(name, text, self.facts.fields.get("meta mark"))
        return UNKNOWN if found is None else found

    def statement(self, kind: str, of: Any) -> Any:
        """An event and its value; the event "" has no meaning for people. UNKNOWN: not understood."""
        if kind in (ACCEPT, RETURN, "continue"):
            return "", None
        if kind in ("jump", "goto"):
            return "", None
        if kind in (DROP, REJECT, "queue"):
            return kind, None
        if kind == "notrack":
            return "notrack", None
        if kind in ("dnat", "snat"):
            return self._translation(kind, of)
        if kind == "masquerade":
            return "masquerade", None
        if kind == "redirect":
            port = self.value((of or {}).get("port")) if isinstance(of, dict) and "port" in of else None
            return ("redirect", (None, port)) if port is not UNKNOWN else UNKNOWN
        if kind == "mangle":
            return self._mangle(of)
        return UNKNOWN

    def _translation(self, kind: str, of: Json) -> Any:
        address, port = self.value(of.get("addr")), self.value(of.get("port"))
        if _ABSENT in (address, port):
            return _ABSENT
        if isinstance(address, tuple) and len(address) == 2:  # "addr . port" from a map
            address, port = map(self.value, address)
        if UNKNOWN in (address, port) or isinstance(address, (dict, tuple)):
            return UNKNOWN
        return kind, (address, port)

    def _mangle(self, of: Json) -> Any:
        key = of.get("key", {})
        if key.get("meta", {}).get("key") == "mark":
            value = self.value(of.get("value"))
            return ("mark", value) if isinstance(value, int) else UNKNOWN
        if "ct" in key or key.get("meta", {}).get("key") in ("nftrace", "priority", "pkttype"):
            return "", None
        return UNKNOWN

    # ---- matches ------------------------------------------------------------------------------

    def match(self, of: Json) -> Any:
        """True, False, UNKNOWN."""
        left, right, operator = self.value(of["left"]), of["right"], of["op"]
        if left is _ABSENT:
            return False
        if left is UNKNOWN:
            return UNKNOWN
        if operator in _COMPARISONS:
            other = self.value(right)
            return UNKNOWN if other is UNKNOWN else _COMPARISONS[operator](left, other)
        found = self.contains(left, right)
        return found if found is UNKNOWN else found != (operator == "!=")

    def lookup(self, of: Json) -> Any:
        """The value in a map, with the key that an expression has."""
        key = self.value(of["key"])
        if key is UNKNOWN or key is _ABSENT:
            return key
        data = of["data"]
        pairs = (
            self._named(data)
            if isinstance(data, str) and data.startswith("@")
            else data.get("set", [])
            if isinstance(data, dict)
            else []
        )
        doubt: Any = _ABSENT
        for pair in pairs:
            of_key, value = pair[0], pair[1]
            found = self.contains(key, of_key)
            if found is True:
                return value
            if found is UNKNOWN:
                doubt = UNKNOWN
        return doubt

    def _named(self, name: str) -> list[Any]:
        return self.rules.elements(self.chain, name.removeprefix("@"))

    def contains(self, value: Any, right: Any) -> Any:
        """Return whether a value is what the right side of a match says, or among it: True, False, UNKNOWN."""
        if value is UNKNOWN:
            return UNKNOWN
        if isinstance(value, _Masked):
            return value == _flags(right)
        if isinstance(right, str) and right.startswith("@"):
            return self._any(value, self._named(right))
        if isinstance(right, list):
            return self._any(value, right)
        if isinstance(right, dict):
            kind, of = next(iter(right.items()))
            if kind == "elem":
                return self.contains(value, of["val"])
            if kind == "set":
                return self._any(value, of if isinstance(of, list) else [of])
            if kind == "prefix":
                return _in_prefix(value, of)
            if kind == "range":
                return _in_range(value, of)
            if kind == "concat":
                return self._all(value, of)
            other = self.value(right)
            return UNKNOWN if other is UNKNOWN else _is_same(value, other)
        if isinstance(value, frozenset):
            return right in value
        return _is_same(value, right)

    def _any(self, value: Any, items: Sequence[Any]) -> Any:
        results = [self.contains(value, item) for item in items]
        return True if True in results else UNKNOWN if UNKNOWN in results else False

    def _all(self, value: Any, parts: Sequence[Any]) -> Any:
        if not isinstance(value, tuple) or len(value) != len(parts):
            return UNKNOWN
        results = [self.contains(one, part) for one, part in zip(value, parts, strict=True)]
        return False if False in results else UNKNOWN if UNKNOWN in results else True

    # ---- values -------------------------------------------------------------------------------

    def value(self, of: Any) -> Any:
        """The value of an expression for this packet."""
        if of is None:
            return None
        if not isinstance(of, dict):
            return _plain(of)
        kind, inside = next(iter(of.items()))
        if kind in _OPERATORS:
            return self._computed(kind, inside)
        if kind == "concat":
            return self._tuple(inside)
        if kind == "map":
            found = self.lookup(inside)
            return found if found in (UNKNOWN, _ABSENT) else self.value(found)
        if kind == "elem":
            return self.value(inside["val"])
        if kind == "fib":
            flags = inside.get("flags", [])
            return self.facts.fib(inside["result"], [flags] if isinstance(flags, str) else flags)
        if kind == "payload":
            return self._payload(inside)
        if kind in ("meta", "ct"):
            return self.facts.fields.get(f"{kind} {inside['key']}", UNKNOWN)
        return UNKNOWN

    def _payload(self, of: Json) -> Any:
        if "protocol" in of:
            return self.facts.fields.get(f"{of['protocol']} {of['field']}", self._absent(of["protocol"]))
        return self.facts.payload(of["base"], of["offset"], of["len"])

    def _absent(self, protocol: str) -> Any:
        """A field of a header that the packet does not have never matches; of one that it has it is not known."""
        names = {name.partition(" ")[0] for name in self.facts.fields}
        return UNKNOWN if protocol in names else _ABSENT

    def _computed(self, operator: str, parts: Sequence[Any]) -> Any:
        values = [self.value(part) for part in parts]
        if operator == "&" and isinstance(values[0], frozenset):
            return _Masked(values[0] & _flags(values[1]))
        if not all(isinstance(value, int) for value in values):
            return _ABSENT if _ABSENT in values else UNKNOWN
        result = values[0]
        for value in values[1:]:
            result = _OPERATORS[operator](result, value)
        return result

    def _tuple(self, parts: Sequence[Any]) -> Any:
        values = tuple(self.value(part) for part in parts)
        return _ABSENT if _ABSENT in values else values  # one that is not known may not matter


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
    if isinstance(value, bool) or isinstance(other, bool):
        return value == other
    names = (
        (_L4_NAMES.get(other, other), _PROTOCOL_NAMES.get(other, other)) if not isinstance(other, (list, dict)) else (other,)
    )
    if isinstance(value, str) and isinstance(other, str) and other.endswith("*"):
        return value.startswith(other[:-1])
    return value == other or value in names


def _in_prefix(value: Any, of: Json) -> Any:
    if isinstance(value, int) and isinstance(of["addr"], int):  # of a mark: its first bits
        return value >> (32 - of["len"]) == of["addr"] >> (32 - of["len"])
    if not isinstance(value, (IPv4Address, IPv6Address)):
        return UNKNOWN
    network: IPv4Network | IPv6Network = ip_network(f"{of['addr']}/{of['len']}", strict=False)
    return value.version == network.version and value in network


def _in_range(value: Any, of: Sequence[Any]) -> Any:
    low, high = map(_plain, of)
    try:
        return bool(low <= value <= high)
    except TypeError:
        return False if type(low) is not type(value) and isinstance(value, (IPv4Address, IPv6Address)) else UNKNOWN
