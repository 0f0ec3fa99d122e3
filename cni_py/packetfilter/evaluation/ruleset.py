"""The rules of one host, or of one network namespace, evaluated for a packet: pure.

How it works. A packet passes the base chains of a hook in the order in which the kernel calls them, and each rule from left to
right. A rule with a condition that is not known, or a statement that is not understood, is *in doubt*: the packet goes on as if
it did not match, and what it may have done is remembered: an end of the chain in ``Outcome.possible``, and a mark that it may
have set is not known from there on. A chain that a rule in doubt leads to is passed only for that. So an outcome is certain if
no other end is possible.

Source: nft(8), iptables(8); linux net/netfilter/nf_tables_core.c (nft_do_chain), net/ipv4/netfilter/ip_tables.c (ipt_do_table).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter.evaluation import saved as saved_rules
from cni_py.packetfilter.evaluation.chains import NFTABLES, Chain, of_nftables
from cni_py.packetfilter.evaluation.facts import ABSENT, UNKNOWN
from cni_py.packetfilter.evaluation.statements import (
    ACCEPT,
    CONNMARK,
    DROP,
    ENDS,
    MARK,
    NATS,
    NOTRACK,
    ONE_OF,
    REJECT,
    RETURN,
    UNEXPECTED,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cni_py.packetfilter.evaluation.chains import Rule
    from cni_py.packetfilter.evaluation.expressions import Json
    from cni_py.packetfilter.evaluation.facts import Facts

UNCERTAIN, ANY = "uncertain", "any"
POLICY = "policy drop"
"""Text of the event of a policy."""
_MARKS = {MARK: "meta mark", CONNMARK: "ct mark"}


@dataclass(frozen=True, slots=True)
class Event:
    """A rule, or a policy, that matters for the packet.

    Attributes:
        kind: drop, reject, queue, dnat, snat, masquerade, redirect, mark, connmark, notrack, uncertain.
        value: of a translation the address and the port (either may be None), of a mark the mark.
        text: the rule as nft or iptables-save prints it, and why it is in doubt.
    """

    kind: str
    chain: Chain
    handle: int
    text: str
    value: Any = None

    @property
    def where(self) -> str:
        return str(self.chain)


@dataclass(slots=True)
class Outcome:
    """The end of one base chain.

    Attributes:
        verdict: accept, drop or queue; ``possible``: ends that the packet may have instead: effects of statements, or ANY.
        events: what mattered on the way.
    """

    verdict: str = ACCEPT
    events: list[Event] = field(default_factory=list)
    possible: set[str] = field(default_factory=set)


class Ruleset:
    """Chains. ``problems``: why some of them are not known."""

    def __init__(self, chains: Iterable[Chain], problems: Sequence[str] = ()) -> None:
        self.chains, self.problems = list(chains), tuple(problems)
        self._by_name = {(chain.table, chain.name): chain for chain in self.chains}
        self._bases: dict[tuple[tuple[str, ...], str, str], list[Chain]] = {}

    @classmethod
    def of(
        cls,
        saved: Mapping[str, str],
        objects: Sequence[Json] = (),
        texts: Mapping[tuple[str, str, str, int], str] | None = None,
        problems: Sequence[str] = (),
    ) -> Ruleset:
        """Read rules.

        Args:
            saved: iptables-save's output by the name of the program's flavour, such as "iptables-nft".
            objects, texts: as :func:`~cni_py.packetfilter.libnftables.read_ruleset` returns them; a chain that iptables-save of
                the nft flavour prints is left out.
        """
        chains = [chain for program, text in saved.items() for chain in saved_rules.chains(program, text)]
        of_nft = [chain for chain in chains if not chain.program.endswith("-legacy")]
        printed = {f"{chain.family} {chain.table.partition(' ')[2]} {chain.name}" for chain in of_nft}
        return cls([*chains, *of_nftables(objects, texts or {}, printed)], problems)

    @property
    def has_nftables(self) -> bool:
        return any(chain.program == NFTABLES for chain in self.chains)

    def has_family(self, family: str) -> bool:
        """Return whether the family has a chain at a hook."""
        return any(chain.family == family and chain.hook for chain in self.chains)

    def devices(self, hook: str) -> set[str]:
        """The links with a chain at ``ingress`` or ``egress``."""
        return {device for chain in self.chains if chain.hook == hook for device in chain.devices}

    def family_of(self, family: str, table: str, chain: str) -> str:
        """Return the family of a chain that a trace names: the kernel reports the packet's, ``ip`` for a chain of ``inet``."""
        is_inet = (f"{family} {table}", chain) not in self._by_name and (f"inet {table}", chain) in self._by_name
        return "inet" if is_inet else family

    def text(self, table: str, chain: str, handle: int) -> str:
        """A rule as nft prints it."""
        of = self._by_name.get((table, chain))
        return next((rule.text for rule in of.rules if rule.handle == handle), "") if of else ""

    def base_chains(self, families: Sequence[str], hook: str, device: str = "") -> list[Chain]:
        """The chains of a hook in the order in which the kernel calls them."""
        key = tuple(families), hook, device
        if key not in self._bases:
            found = [chain for chain in self.chains if chain.hook == hook and chain.family in families]
            here = [chain for chain in found if not chain.devices or device in chain.devices]
            self._bases[key] = sorted(here, key=lambda chain: chain.order)
        return self._bases[key]

    def evaluate(self, base: Chain, facts: Facts) -> Outcome:
        """Evaluate one base chain; marks of the facts become what its rules set."""
        passage = _Passage(self._by_name, facts)
        end, may_leave = passage.chain(base, is_sure=True)
        if end == RETURN:
            end = base.policy
            if end == DROP:
                passage.events.append(Event(DROP, base, 0, POLICY))
        elif may_leave:
            passage.possible.add(base.policy)
        passage.possible.discard(end)
        verdict = ACCEPT if end in NATS else DROP if end == REJECT else end
        return Outcome(verdict, passage.events, passage.possible)


class _Passage:
    """One packet in one base chain."""

    def __init__(self, chains: Mapping[tuple[str, str], Chain], facts: Facts) -> None:
        self._chains, self._facts = chains, facts
        self._inside: list[Chain] = []
        self.events: list[Event] = []
        self.possible: set[str] = set()
        self._doubts = self._may_have_left = 0

    def chain(self, chain: Chain, *, is_sure: bool) -> tuple[str, bool]:
        """Pass the rules of a chain. Returns: its end, and whether a rule in doubt may leave the chain before that."""
        settled, may_leave = "", False
        self._inside.append(chain)
        depth = self._may_have_left
        for rule in chain.rules:
            end, leaves, goes_on = self._rule(chain, rule, is_sure=is_sure and not settled)
            self._may_have_left += leaves and not may_leave
            may_leave |= leaves
            if settled and end:
                if end == RETURN:
                    may_leave = True
                else:
                    self.possible.add(end)
            if end and goes_on:  # the chain that it led to may be left: what follows is possible too
                settled = settled or end
            elif end:
                break
        else:
            end, may_leave = RETURN, may_leave or bool(settled)
        self._inside.pop()
        self._may_have_left = depth
        return settled or end, may_leave

    def _rule(self, chain: Chain, rule: Rule, *, is_sure: bool) -> tuple[str, bool, bool]:
        """Evaluate a rule. Returns: its end, "" if none; whether it may leave the chain; whether the end may not be reached."""
        doubt, may_leave, doubts = "", False, self._doubts
        for step in rule.steps(chain.compiler):
            try:
                found = step.run(self._facts)
            except UNEXPECTED:  # elements are read when a packet first asks for one
                found = UNKNOWN
            if found is False or found is ABSENT:
                break
            if found is UNKNOWN:
                doubt = doubt or step.doubt
                if not step.is_condition and step.matters:
                    self._doubt(ANY)
                continue
            if step.is_condition:
                continue
            kind, value = found
            if kind == ONE_OF or value is UNKNOWN:
                doubt = doubt or step.doubt
            if doubt:
                for effect in value if kind == ONE_OF else (found,):
                    may_leave |= self._in_doubt(chain, *effect)
                continue
            end, leaves, goes_on = self._effect(chain, rule, kind, value, is_sure=is_sure)
            may_leave |= leaves
            if end:
                return end, may_leave, goes_on
        if doubt and is_sure and self._doubts != doubts:
            self.events.append(Event(UNCERTAIN, chain, rule.handle, f"{rule.text or 'rule'} ({doubt})"))
        return "", may_leave, False

    def _effect(self, chain: Chain, rule: Rule, kind: str, value: Any, *, is_sure: bool) -> tuple[str, bool, bool]:
        """Do what a rule says that matches. Returns: as :meth:`_rule`."""
        if kind in ("jump", "goto"):
            target = self._chains.get((chain.table, value))
            if target is None or target in self._inside:
                return "", False, False
            end, leaves = self.chain(target, is_sure=is_sure)
            if kind == "goto":
                return end, leaves, False
            return ("", False, False) if end == RETURN else (end, False, leaves)
        if kind in _MARKS:
            self._mark(kind, value if is_sure and not self._may_have_left else UNKNOWN)
        if is_sure and kind not in ("", ACCEPT, RETURN):
            self.events.append(Event(kind, chain, rule.handle, rule.text, value))
        return (kind if kind in ENDS or kind == RETURN else ""), False, False

    def _in_doubt(self, chain: Chain, kind: str, value: Any) -> bool:
        """Remember what a rule in doubt may do. Returns: whether it may leave the chain."""
        if kind in ("jump", "goto"):
            target = self._chains.get((chain.table, value))
            if target is None or target in self._inside:
                return False
            end, leaves = self.chain(target, is_sure=False)
            if end in ENDS:
                self._doubt(end)
            leaves = kind == "goto" and (leaves or end == RETURN)
            self._doubts += leaves
            return leaves
        if kind in _MARKS:
            self._mark(kind, UNKNOWN)
        if kind in ENDS:
            self._doubt(kind)
        self._doubts += kind in (RETURN, NOTRACK)
        return kind == RETURN

    def _doubt(self, end: str) -> None:
        self.possible.add(end)
        self._doubts += 1

    def _mark(self, kind: str, value: Any) -> None:
        self._doubts += value is UNKNOWN
        self._facts.fields[_MARKS[kind]] = value
