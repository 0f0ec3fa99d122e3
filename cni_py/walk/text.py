"""Lay out a walk as text, at most 80 columns wide unless a name is longer. Pure."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from cni_py.walk import hops
from cni_py.walk.compare import AGREES, ENDS_AS_PREDICTED
from cni_py.walk.hops import BROKEN, DIFFERENT, MISSING, SEEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.walk.compare import Comparison
    from cni_py.walk.hops import Hop, Walk
    from cni_py.walk.report import Report

TITLE, PLACE, TEXT, WHY, CHANGE, GOOD, BAD, UNSURE = "title", "place", "text", "why", "change", "good", "bad", "unsure"
"""Kinds of parts of a line; a terminal has a style for each."""
_INDENT = 6
_MARKS = {SEEN: ("+", GOOD), DIFFERENT: ("!", BAD), MISSING: ("-", BAD)}
_NARROWEST = 30
WIDTH = 80


class Part(NamedTuple):
    kind: str
    text: str


def render(report: Report, width: int = WIDTH) -> Iterator[list[Part]]:
    """Yield the lines of a report, each as its parts."""
    yield from _prose(TITLE, report.title, width, 0)
    yield from _walk(report.forward, width)
    if report.reply is not None:
        yield []
        if report.shows_reply:
            yield [Part(TITLE, "The reply")]
            yield from _walk(report.reply, width)
        else:
            yield from _summary_of_reply(report.reply, width)
    yield []
    yield from _findings(report, width)


def _walk(walk: Walk, width: int) -> Iterator[list[Part]]:
    place = ""
    for number, hop in enumerate(walk.hops, 1):
        if hop.place != place:
            place = hop.place
            yield [Part(PLACE, f"  {place}")]
        yield from _hop(number, hop, width)


def _hop(number: int, hop: Hop, width: int) -> Iterator[list[Part]]:
    mark, kind = _MARKS.get(hop.check, (" ", TEXT))
    of_text = BAD if hop.is_broken or hop.kind == hops.NOTE else UNSURE if hop.kind == hops.UNSURE else TEXT
    sign = "?" if hop.kind in (hops.UNSURE, hops.NOTE) else "x" if hop.is_broken else mark
    head = [Part(kind if sign == mark else of_text, f"{sign:>3} "), Part(WHY, f"{number:>2} ")]
    lines = _broken(hop.text, width, _INDENT + 1)
    yield [*head, Part(of_text, lines[0])]
    for line in lines[1:]:
        yield [Part(of_text, " " * (_INDENT + 1) + line)]
    for change in hop.changes:
        yield from _prose(CHANGE, f"* {change}", width, _INDENT + 3)
    if hop.why:
        yield from _prose(WHY, hop.why, width, _INDENT + 3)
    if hop.check == DIFFERENT:
        yield from _prose(BAD, f"observed: {hop.observed}", width, _INDENT + 3)
    elif hop.check == MISSING:
        yield from _prose(BAD, "not observed", width, _INDENT + 3)


def _summary_of_reply(reply: Walk, width: int) -> Iterator[list[Part]]:
    places = list(dict.fromkeys(hop.place for hop in reply.hops))
    kind = BAD if reply.outcome == BROKEN else TEXT
    end = f": {reply.end}" if reply.outcome != hops.DELIVERED else ""
    yield from _prose(kind, f"The reply: {', '.join(places)}{end}", width, 0)
    for hop in reply.changes:
        if hop.kind == hops.NAT:
            yield from _prose(CHANGE, f"* {hop.place}: {'; '.join(hop.changes)}", width, 2)


def _findings(report: Report, width: int) -> Iterator[list[Part]]:
    for kind, text in report.findings:
        yield from _prose(BAD if kind == "bad" else CHANGE if kind == "note" else TEXT, text, width, 0)
    if report.comparison is not None:
        yield from _verification("the packet", report.comparison, width)
    if report.reply_comparison is not None:
        yield from _verification("the reply", report.reply_comparison, width)


def _verification(what: str, comparison: Comparison, width: int) -> Iterator[list[Part]]:
    kind = GOOD if comparison.result in (AGREES, ENDS_AS_PREDICTED) else BAD
    yield from _prose(kind, f"Verified, {what}: {comparison.text}", width, 0)
    if comparison.cause:
        yield from _prose(kind, comparison.cause, width, 2)


def _prose(kind: str, text: str, width: int, indent: int) -> Iterator[list[Part]]:
    for line in _broken(text, width, indent):
        yield [Part(kind, " " * indent + line)]


def _broken(text: str, width: int, indent: int) -> list[str]:
    return wrap(text, max(width - indent, _NARROWEST), break_on_hyphens=False, break_long_words=False) or [""]
