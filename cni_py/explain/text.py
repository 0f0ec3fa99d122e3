"""Lay out explanations as text: for a pipe as it is, for a terminal within its width. Pure."""

from __future__ import annotations

from textwrap import wrap
from typing import NamedTuple

from cni_py.explain import commands
from cni_py.explain.shapes import GROUPS
from cni_py.explain.steps import Note, Step, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.explain.calls import Call

TITLE, GROUP, WHAT, COMMAND, WHY, DIM, BAD = "title", "group", "what", "command", "why", "dim", "bad"
"""Kinds of parts of a line; a terminal has a style for each."""
_INDENT = 7
_NARROWEST = 20


class Part(NamedTuple):
    kind: str
    text: str


def render(found: Iterable[Call], width: int | None = None, *, verbose: bool = False) -> Iterator[list[Part]]:
    """Yield the lines of calls, each as its parts. ``width``: columns of a terminal; None: lines are not broken."""
    for number, call in enumerate(found):
        if number:
            yield []
        yield from _heading(call, width)
        group = ""
        before = None
        for item in explain(call, verbose=verbose):
            if isinstance(item, Note):
                if item.group and item.group != group:
                    group, before = item.group, None
                    yield []
                    yield [Part(GROUP, f"  {GROUPS[group]}")]
                yield from _prose(WHY, f"# {item.line.text}" if item.line.kind == "note" else item.line.raw, width, _INDENT)
                continue
            if item.group != group:
                group, before = item.group, None
                yield []
                yield [Part(GROUP, f"  {GROUPS[group]}")]
            yield from _step(item, width, is_same_reason=item.why == before)
            before = item.why
        yield from _end(call, width)


def plain(found: Iterable[Call], *, verbose: bool = False) -> Iterator[str]:
    """Yield the lines of calls as text for a pipe."""
    for parts in render(found, verbose=verbose):
        yield "".join(part.text for part in parts)


def _heading(call: Call, width: int | None) -> Iterator[list[Part]]:
    title = call.title or "the end of a call: its beginning was cut off"
    yield from _prose(TITLE, title, width, 0)
    if call.began:
        yield [Part(DIM, call.began)]


def _end(call: Call, width: int | None) -> Iterator[list[Part]]:
    took = "" if call.seconds is None else f" ({call.seconds * 1000:.2f} ms)"
    if not (call.outcome or call.verb):  # a daemon writes an end only where it says what it does
        return
    yield []
    if call.outcome == "failed":
        yield from _prose(BAD, f"failed: {call.error}{took}", width, 2)
    else:
        text = f"done{took}" if call.outcome else "no end in the journal: the call was killed, or still runs"
        yield from _prose(DIM, text, width, 2)


def _step(step: Step, width: int | None, *, is_same_reason: bool) -> Iterator[list[Part]]:
    number = f"{step.number:5}  "
    took = "" if step.line.seconds is None else f", {step.line.seconds * 1000:.2f} ms"
    when = f"[{step.line.time}{took}]"
    what = step.what or "A command that this version does not know."
    lines = _broken(what, width, _INDENT)
    if width is None or _INDENT + len(lines[-1]) + 1 + len(when) <= width:
        lines, last = lines[:-1], [Part(WHAT, lines[-1]), Part(DIM, f" {when}")]
    else:
        last = [Part(DIM, when)]
    heads = [number] + [" " * _INDENT] * len(lines)
    for head, line in zip(heads, lines, strict=False):
        yield [Part(DIM, head), Part(WHAT, line)]
    yield [Part(DIM, heads[len(lines)]), *last]
    shown = list(step.shown)
    for line in commands.wrapped(shown, width, _INDENT) if width else [" " * _INDENT + line for line in shown]:
        yield [Part(COMMAND, line)]
    if step.line.failure:
        yield from _prose(BAD, f"failed: {step.line.failure}", width, _INDENT)
    if not is_same_reason:
        for text in filter(None, (step.why.text, step.why.asked(), step.why.spec())):
            label = "why: " if text == step.why.text else "     "
            yield from _prose(WHY, label + text, width, _INDENT)


def _prose(kind: str, text: str, width: int | None, indent: int) -> Iterator[list[Part]]:
    for line in _broken(text, width, indent):
        yield [Part(kind, " " * indent + line)]


def _broken(text: str, width: int | None, indent: int) -> list[str]:
    """Break prose; a word that is longer than a line is broken too."""
    if width is None or indent + len(text) <= width:
        return [text]
    return wrap(text, max(width - indent, _NARROWEST), break_on_hyphens=False, drop_whitespace=True) or [""]
