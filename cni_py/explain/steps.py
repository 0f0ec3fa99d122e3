"""Explain a call: its changes, numbered, each with what it is for and why it was made. Pure.

Nothing is left out and nothing is sorted: the items of a call are its lines, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cni_py.explain import calls, commands
from cni_py.explain.calls import Call, Line
from cni_py.explain.reasons import Known, Why, reason
from cni_py.explain.recognise import recognise
from cni_py.explain.shapes import GROUPS, OTHER
from cni_py.explain.words import parse

_UNDO = "undo: "
_OF_DHCP = ("the DHCP daemon ", "no lease is released", "no leases are released")


@dataclass(frozen=True, slots=True)
class Step:
    """A change.

    Attributes:
        what: in words; "" if the command is none that is known.
        shown: the command in lines that can be typed.
    """

    line: Line
    number: int
    group: str
    what: str
    why: Why
    netns: str
    shown: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "step",
            "number": self.number,
            "group": self.group,
            "title": GROUPS[self.group],
            "what": self.what,
            "command": self.line.text,
            "shown": "\n".join(self.shown),
            "netns": self.netns,
            "time": self.line.time,
            "seconds": self.line.seconds,
            "failure": self.line.failure,
            "why": {
                "text": self.why.text,
                "key": self.why.key,
                "source": self.why.source,
                "value": self.why.value,
                "line": self.why.line,
                "section": self.why.section,
            },
        }


@dataclass(frozen=True, slots=True)
class Note:
    """A comment of the journal, or a line that is none of its own."""

    line: Line

    @property
    def group(self) -> str:
        """Return the group of what another process did for the call; "" for other notes."""
        return "lease" if self.line.kind == calls.NOTE and self.line.text.startswith(_OF_DHCP) else ""

    def as_json(self) -> dict[str, Any]:
        kind = "note" if self.line.kind == calls.NOTE else "other"
        return {"kind": kind, "group": self.group, "text": self.line.text, "time": self.line.time}


def explain(call: Call, *, verbose: bool = False) -> list[Step | Note]:
    """Return the steps and the notes of a call."""
    known = Known(call.configuration, {})
    items: list[Step | Note] = []
    number = 0
    for line in call.lines:
        if line.kind == calls.STEP:
            number += 1
            items.append(_step(call, known, line, number, verbose=verbose))
        elif line.kind in (calls.NOTE, calls.OTHER):
            known.is_undoing = known.is_undoing or (call.verb == "ADD" and line.text.startswith(_UNDO))
            items.append(Note(line))
    return items


def _step(call: Call, known: Known, line: Line, number: int, *, verbose: bool) -> Step:
    command = parse(line.text)
    found = recognise(command, call.verb) if command else None
    shown = tuple(commands.shown(line.text, command, verbose=verbose))
    if command is None or found is None:
        return Step(line, number, OTHER, "", Why(""), command.netns if command else "", shown)
    known.learn(call, command, found)
    group = known.group_of(found)
    return Step(line, number, group, found.what, reason(call, known, found), found.netns, shown)


def as_json(call: Call, *, verbose: bool = False) -> dict[str, Any]:
    """Return a call for programs."""
    return {
        "title": call.title,
        "verb": call.verb,
        "plugin": call.plugin,
        "network": call.network,
        "began": call.began,
        "outcome": call.outcome,
        "error": call.error,
        "seconds": call.seconds,
        "configuration": call.configuration,
        "items": [item.as_json() for item in explain(call, verbose=verbose)],
    }
