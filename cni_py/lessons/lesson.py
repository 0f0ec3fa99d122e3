"""A lesson, its requirements, and what a check of them finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni_py.lab.site import Site

MET, MISSING, LATER = "ok", "missing", "later"
"""``LATER``: not checked, because it builds on a requirement that is missing."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One sentence that the exercise asks for.

    Attributes:
        find_missing: returns what was found instead, "" if the requirement is met.
        is_gate: those after it build on it, and are not checked without it.
    """

    what: str
    find_missing: Callable[[Site], str]
    hint: str
    is_gate: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """``state``: MET, MISSING or LATER; ``found``: instead of what is required."""

    requirement: Requirement
    state: str
    found: str = ""

    def line(self) -> str:
        return f"{self.state:8} {self.requirement.what}" + (f": {self.found}" if self.found else "")

    def as_json(self) -> dict[str, str]:
        return {"requirement": self.requirement.what, "state": self.state, "found": self.found}


@dataclass(frozen=True, slots=True)
class Lesson:
    """A page of docs/lessons with its exercise.

    Attributes:
        page: its file, without directory.
        minutes: to read it and do the exercise.
        task: what the exercise asks for, as printed.
        lab: arguments of :class:`cni_py.lab.Lab`.
        place: where the exercise is done.
        prepare: adds to the lab what the exercise begins with.
    """

    number: int
    page: str
    title: str
    minutes: int
    task: str
    requirements: tuple[Requirement, ...]
    prepare: Callable[[Site], None] = lambda _: None
    lab: Mapping[str, Any] = field(default_factory=lambda: {"nodes": 1})
    place: str = "node1"

    def check(self, site: Site) -> list[Finding]:
        """Ask for each requirement, in order, whether the lab meets it."""
        findings: list[Finding] = []
        is_blocked = False
        for requirement in self.requirements:
            if is_blocked:
                findings.append(Finding(requirement, LATER))
                continue
            found = requirement.find_missing(site)
            findings.append(Finding(requirement, MISSING if found else MET, found))
            is_blocked = bool(found) and requirement.is_gate
        return findings


def is_passed(findings: list[Finding]) -> bool:
    return all(finding.state == MET for finding in findings)


def hint_of(findings: list[Finding]) -> str:
    """Return the hint of the first requirement that is missing, "" if none is."""
    return next((finding.requirement.hint for finding in findings if finding.state == MISSING), "")
