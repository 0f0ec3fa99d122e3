"""Evaluate the catalogue over the facts, and again where flanneld may be restoring what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import monotonic, sleep
from typing import TYPE_CHECKING

from cni_py.doctor.findings import ERROR, Finding, Report, Rule, Unchecked

if TYPE_CHECKING:
    from cni_py.doctor.facts import Facts

LOOK_SECONDS = 0.75
"""Pause between two readings of what flanneld may be restoring."""


def evaluate(facts: Facts, rules: Sequence[Rule], about: frozenset[str] = frozenset()) -> Report:
    """Evaluate the rules once: pure. ``about``: names of a pod or a node; findings about other ones are left out."""
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    for rule in rules:
        reasons = list(dict.fromkeys(facts.unread[need] for need in rule.needs if need in facts.unread))
        if reasons:
            unchecked.append(Unchecked(rule.name, "; ".join(reasons)))
            continue
        findings += _named(rule, rule.find(facts))
    wanted = [finding for finding in findings if not about or not finding.about or finding.about & about]
    ordered = sorted(wanted, key=lambda finding: (not finding.about & about, finding.severity != ERROR))
    return Report(tuple(ordered), tuple(unchecked), len(rules), _notes(facts))


def _notes(facts: Facts) -> tuple[str, ...]:
    """Return what limits the examination."""
    probed = facts.probed
    sample = f"packets were sent to {probed.sample} of {probed.of} peers, evenly chosen; name one to ask it: cni-py doctor NODE"
    return (*facts.notes, *([sample] if probed.sample else []))


def examine(
    gather: Callable[[], Facts],
    rules: Sequence[Rule],
    about: frozenset[str] = frozenset(),
    *,
    look_again: Callable[[Facts], Facts] | None = None,
) -> tuple[Facts, Report]:
    """Gather and evaluate; what others may be restoring counts once it has lasted.

    ``look_again``: read again what a rule with :attr:`Rule.settles` needs; None: all of it.
    """
    began = monotonic()
    facts = gather()
    report = evaluate(facts, rules, about)
    by_name = {rule.name: rule for rule in rules}
    again = look_again or (lambda _: gather())
    while (left := _seconds_left(report, by_name, facts, began)) > 0:
        sleep(min(left, LOOK_SECONDS))
        facts = again(facts)
        now = evaluate(facts, rules, about)
        report = replace(now, findings=_lasting(report.findings, now.findings, by_name, facts))
    return facts, report


def _named(rule: Rule, findings: Iterable[Finding]) -> list[Finding]:
    return [
        replace(finding, rule=rule.name, severity=finding.severity or rule.severity, why=finding.why or rule.why)
        for finding in findings
    ]


def _settle_seconds(rule: Rule, facts: Facts) -> float:
    return rule.settles if facts.runs or rule.always_settles else 0.0


def _seconds_left(report: Report, rules: dict[str, Rule], facts: Facts, began: float) -> float:
    """Return how long the findings still have to last."""
    longest = max((_settle_seconds(rules[finding.rule], facts) for finding in report.findings), default=0.0)
    return began + longest - monotonic() if longest else 0.0


def _lasting(before: Sequence[Finding], now: Sequence[Finding], rules: dict[str, Rule], facts: Facts) -> tuple[Finding, ...]:
    """Return the findings of now but those that settle and were not found before."""
    known = {(finding.rule, finding.what) for finding in before}
    return tuple(
        finding for finding in now if not _settle_seconds(rules[finding.rule], facts) or (finding.rule, finding.what) in known
    )
