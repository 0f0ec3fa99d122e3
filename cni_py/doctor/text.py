"""Lay out a report as text: findings, what was not checked, and what that amounts to. Pure."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from cni_py.doctor.findings import ERROR, WARNING
from cni_py.explain.text import BAD, COMMAND, DIM, TITLE, WHAT, WHY, Part
from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cni_py.doctor.findings import Finding, Report, Unchecked

COLUMNS = 80
_HEAD, _INDENT = 9, 9
_NARROWEST = 30


def render(report: Report, width: int | None = None) -> Iterator[list[Part]]:
    """Yield the lines of a report, each as its parts; broken at 80 columns, or at the terminal's width if that is less."""
    columns = max(min(width or COLUMNS, COLUMNS), _NARROWEST)
    for finding in report.findings:
        yield from _finding(finding, columns)
        yield []
    yield from _unchecked(report.unchecked, columns)
    for note in report.notes:
        yield from _prose(DIM, "note: ", note, columns, 6)
    yield [Part(TITLE, _total(report))]


def plain(report: Report) -> Iterator[str]:
    """Yield the lines as text for a pipe or a file."""
    for parts in render(report):
        yield "".join(part.text for part in parts)


def _finding(finding: Finding, columns: int) -> Iterator[list[Part]]:
    severity = BAD if finding.severity == ERROR else TITLE
    first, *rest = _broken(finding.what, columns - _HEAD)
    yield [Part(severity, finding.severity.ljust(_HEAD)), Part(TITLE, first)]
    yield from ([Part(TITLE, " " * _HEAD + line)] for line in rest)
    yield from _labelled(WHAT, "found:", finding.found, columns)
    yield from _labelled(WHY, "why:", (finding.why,), columns)
    yield from _labelled(COMMAND, "repair:", finding.repair, columns, is_command=True)
    fixes = "; --fix runs a command for it" if finding.fix else ""
    yield [Part(DIM, f"{'':{_INDENT}}rule:   {finding.rule}{fixes}")]


def _labelled(kind: str, label: str, lines: Sequence[str], columns: int, *, is_command: bool = False) -> Iterator[list[Part]]:
    head = label.ljust(8)
    for line in filter(None, lines):
        indent = _INDENT + 8
        # a command is not broken: it stays one that can be copied
        pieces = [line] if is_command else _broken(line, columns - indent)
        for piece in pieces:
            yield [Part(DIM, " " * _INDENT + head), Part(kind, piece)]
            head = " " * 8


def _unchecked(unchecked: Iterable[Unchecked], columns: int) -> Iterator[list[Part]]:
    """Yield what was not checked, by its reason."""
    by_reason: dict[str, list[str]] = {}
    for one in unchecked:
        by_reason.setdefault(one.reason, []).append(one.rule)
    for reason, rules in by_reason.items():
        yield from _prose(WHAT, "not checked: ", f"{', '.join(rules)}: {reason}", columns, 13)
    if by_reason:
        yield []


def _total(report: Report) -> str:
    severities = [finding.severity for finding in report.findings]
    errors, warnings = severities.count(ERROR), severities.count(WARNING)
    words = [counted(errors, "error")] if errors else []
    words += [counted(warnings, "warning")] if warnings else []
    checked = report.rules - len(report.unchecked)
    found = " and ".join(words) or "nothing wrong was found"
    return f"{found}; {checked} of {counted(report.rules, 'rule')} checked"


def _prose(kind: str, label: str, text: str, columns: int, indent: int) -> Iterator[list[Part]]:
    head = label
    for line in _broken(text, columns - indent):
        yield [Part(kind, head + line)]
        head = " " * indent


def _broken(text: str, columns: int) -> list[str]:
    """Break prose between words; a name is never broken."""
    lines = [piece for line in text.split("\n") for piece in (_wrapped(line, columns) or [""])]
    return lines or [""]


def _wrapped(line: str, columns: int) -> list[str]:
    return wrap(line, max(columns, _NARROWEST), break_long_words=False, break_on_hyphens=False)
