"""A rule, and what it found: plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cni_py.doctor.facts import Facts

ERROR, WARNING = "error", "warning"

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        what: the object and its state, in a line.
        found: what was read, a line each: the reason to believe it.
        repair: commands that a person types, or what to do.
        fix: commands that ``--fix`` runs, without a shell; empty: a person has to decide.
        about: names of what it concerns, as a person may give them: a container id, an address, a subnet; empty: the node.
        severity: where it differs from that of the rule.
        rule: the name of its rule; the catalogue fills it in.
        why: why it matters, where that differs from the words of the rule.
    """

    what: str
    found: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    fix: tuple[Command, ...] = ()
    about: frozenset[str] = frozenset()
    severity: str = ""
    rule: str = ""
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "severity": self.severity,
            "what": self.what,
            "found": list(self.found),
            "why": self.why,
            "repair": list(self.repair),
            "fix": [list(command) for command in self.fix],
            "about": sorted(self.about),
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the catalogue.

    Attributes:
        checks: what it compares, in a line, for the table in docs/doctor.md.
        needs: names of the facts without which it says nothing (:attr:`Facts.unread`).
        fixes: what ``--fix`` does, "" if it does nothing.
        settles: seconds for which a finding must last while flanneld runs, which restores what it keeps.
        always_settles: also while flanneld does not run: what is found is a state that others pass through.
    """

    name: str
    severity: str
    checks: str
    why: str
    find: Callable[[Facts], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    fixes: str = ""
    settles: float = 0.0
    always_settles: bool = False


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A rule that could not look, and why."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Findings of an examination. ``notes``: what is not wrong, and limits what was checked."""

    findings: tuple[Finding, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()
    rules: int = 0
    notes: tuple[str, ...] = ()
    fixed: tuple[dict[str, Any], ...] = field(default=())

    @property
    def status(self) -> int:
        """The exit status: 2 with an error, 1 with a warning, 3 if something was not checked, 0 if all is well."""
        severities = {finding.severity for finding in self.findings}
        return 2 if ERROR in severities else 1 if WARNING in severities else 3 if self.unchecked else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "rules": self.rules,
            "findings": [finding.as_json() for finding in self.findings],
            "unchecked": [{"rule": one.rule, "reason": one.reason} for one in self.unchecked],
            "notes": list(self.notes),
            "fixed": list(self.fixed),
        }
