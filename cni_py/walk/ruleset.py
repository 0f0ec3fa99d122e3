"""Rules of nftables, evaluated for a packet: pure.

How it works. ``nft -j list ruleset`` is read into base chains, in the order in which the kernel calls them, and sets. Each
rule is evaluated from left to right with what is known of the packet (``expressions.py``). A value that is not known, or an
expression that is not understood, makes the rule *uncertain*: it is reported, the walk goes on as if it did not match, and
the real packet decides. Rules without an effect on the packet's path (counters, logs, comments) have none here.

Source: nft(8); linux net/netfilter/nf_tables_core.c (nft_do_chain).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_py.walk import xtables
from cni_py.walk.expressions import ABSENT, ACCEPT, DROP, QUEUE, REJECT, RETURN, UNKNOWN, Evaluation, Facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]
RuleKey = tuple[str, str, str, int]
"""Family, table, chain, handle."""
_ENDS = frozenset((ACCEPT, DROP, REJECT, QUEUE))
_NATS = frozenset(("dnat", "snat", "masquerade", "redirect"))
_HARMLESS = frozenset(
    ("counter", "log", "comment", "limit", "set", "quota", "last", "ct helper", "ct timeout", "ct count", "flow", "meter")
)
"""Statements without an effect on where a packet goes."""
_EFFECTIVE = _ENDS | _NATS | {"jump", "goto", "vmap", "mangle", "tproxy", "fwd", "dup", RETURN}
_DEPTH = 16
"""Jumps that the kernel allows."""


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
        kind: drop, reject, queue, dnat, snat, masquerade, redirect, mark, ct mark, notrack,
            uncertain.
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
    """The end of one base chain: the events on the way, and the verdict."""

    events: list[Event] = field(default_factory=list)
    verdict: str = ACCEPT


class Ruleset:
    """The rules of one namespace. ``problem``: why they are not known."""

    def __init__(self, objects: Sequence[Json], texts: Mapping[RuleKey, str], problem: str = "") -> None:
        self.problem, self._texts = problem, texts
        self._chains: dict[tuple[str, str, str], Chain] = {}
        self._sets: dict[tuple[str, str, str], list[Any]] = {}
        for kind, of in ((kind, of) for entry in objects for kind, of in entry.items()):
            if kind == "chain":
                self._chains[of["family"], of["table"], of["name"]] = _chain_of(of)
            elif kind in ("set", "map"):
                self._sets[of["family"], of["table"], of["name"]] = of.get("elem", [])
            elif kind == "rule":
                self._chains[of["family"], of["table"], of["chain"]].rules.append((of["handle"], of.get("expr", [])))

    @property
    def is_empty(self) -> bool:
        return not self._chains

    def has_family(self, family: str) -> bool:
        """Return whether the family has a chain at a hook."""
        return any(chain.family == family and chain.hook for chain in self._chains.values())

    def devices(self, hook: str) -> set[str]:
        """The links with a chain at ``ingress`` or ``egress``."""
        return {device for chain in self._chains.values() if chain.hook == hook for device in chain.device}

    def family_of(self, family: str, table: str, chain: str) -> str:
        """Return the family of a chain that a trace names: the kernel reports the packet's, ``ip`` for a chain of ``inet``."""
        return "inet" if (family, table, chain) not in self._chains and ("inet", table, chain) in self._chains else family

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
        if verdict == RETURN:
            verdict = chain.policy
            if verdict == DROP:
                outcome.events.append(Event(DROP, chain, 0, "policy drop"))
        outcome.verdict = DROP if verdict == REJECT else verdict
        return outcome

    def _run(self, chain: Chain, facts: Facts, outcome: Outcome, depth: int) -> str:
        """Evaluate the rules of a chain. Returns: the verdict that ends the base chain, or ``return``."""
        for handle, expressions in chain.rules:
            verdict = self._rule(chain, handle, expressions, facts, outcome)
            if verdict in _ENDS or verdict == RETURN:
                return verdict
            how, _, name = verdict.partition(" ")
            target = self._chains.get((chain.family, chain.table, name))
            if target is None or depth > _DEPTH:
                continue
            inner = self._run(target, facts, outcome, depth + 1)
            if inner in _ENDS or how == "goto":
                return inner
        return RETURN

    def _rule(self, chain: Chain, handle: int, expressions: Sequence[Json], facts: Facts, outcome: Outcome) -> str:
        """Evaluate one rule. Returns: its verdict, "" to go on with the next rule."""
        text = self.text((chain.family, chain.table, chain.name, handle))
        evaluation = Evaluation(facts, lambda name: self._sets.get((chain.family, chain.table, name), []))
        doubt = ""
        for kind, of in (next(iter(expression.items())) for expression in expressions):
            name = of.get("name", "") if kind == "xt" and isinstance(of, dict) else ""
            if _is_over_limit(kind, of):
                return ""
            if kind in _HARMLESS or name in xtables.HARMLESS:
                continue
            if kind in ("match", "vmap") or (name and of.get("type") == "match"):
                found = evaluation.condition(kind, name, of, text)
                if found is False or found is ABSENT:
                    return ""
                doubt = doubt or (f"a match that is not understood{f': {name}' if name else ''}" if found is UNKNOWN else "")
                if kind == "vmap" and not doubt:
                    return _mapped_verdict(found, chain, handle, text, outcome)
            elif not doubt:
                done = evaluation.target(name, text) if name else evaluation.statement(kind, of)
                if done is ABSENT:
                    return ""
                if done is UNKNOWN:
                    doubt = f'"{name or kind}" is not understood'
                    continue
                verdict = _record(
                    Event(done[0], chain, handle, text, done[1]), kind if not name else done[0], of, facts, outcome
                )
                if verdict:
                    return verdict
        if doubt and any(_has_effect(*next(iter(of.items()))) for of in expressions):
            outcome.events.append(Event("uncertain", chain, handle, f"{text or 'rule'} ({doubt})"))
        return ""


def _chain_of(of: Json) -> Chain:
    device = of.get("dev", ())
    return Chain(
        of["family"],
        of["table"],
        of["name"],
        of.get("hook", ""),
        of.get("prio", 0),
        of.get("type", ""),
        of.get("policy", ACCEPT),
        (device,) if isinstance(device, str) else tuple(device),
    )


def _has_effect(kind: str, of: Any) -> bool:
    """Return whether a statement can change where a packet goes, or how."""
    return kind in _EFFECTIVE or (kind == "xt" and isinstance(of, dict) and of.get("type") == "target")


def _is_over_limit(kind: str, of: Any) -> bool:
    """Return whether a rule is for what is over a limit: one packet is below any."""
    return kind in ("limit", "quota", "ct count") and isinstance(of, dict) and bool(of.get("inv"))


def _record(event: Event, kind: str, of: Any, facts: Facts, outcome: Outcome) -> str:
    """Record what a statement does. Returns: its verdict."""
    if event.kind:
        outcome.events.append(event)
    if event.kind in ("mark", "ct mark"):
        facts.fields["meta mark" if event.kind == "mark" else "ct mark"] = event.value
    return _verdict_of(kind, of)


def _mapped_verdict(found: Any, chain: Chain, handle: int, text: str, outcome: Outcome) -> str:
    """The verdict that a map has."""
    kind, of = next(iter(found.items()))
    if kind == DROP:
        outcome.events.append(Event(DROP, chain, handle, text))
    return _verdict_of(kind, of)


def _verdict_of(kind: str, of: Any) -> str:
    if kind in ("jump", "goto"):
        return f"{kind} {of['target']}"
    if kind in _NATS:
        return ACCEPT
    return kind if kind in _ENDS or kind == RETURN else ""
