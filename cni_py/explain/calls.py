"""Read a journal: the calls in it, and what each line of a call is. Pure.

journal.py writes it; what an older version wrote, a line that was cut off and a damaged file are read too: a line that is
none of the known ones is kept as it is. Every line is in exactly one call, in its order.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

HEAD, CONFIGURATION, STEP, NOTE, END, OTHER = "head", "configuration", "step", "note", "end", "other"
"""Kinds of lines: the title of a call, its configuration, a change, a comment, how the call ended, and none of these."""

_HEAD = re.compile(r"# (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (.*)")
_LINE = re.compile(r"(\d\d:\d\d:\d\d\.\d{6})  (.*?)(?:  \((\d+\.\d\d) ms\))?")
_FAILED = re.compile(r"(.*?)  # failed: (.*)")
_TITLE = re.compile(
    r"(?P<verb>ADD|DEL|GC|CHECK|STATUS) (?P<plugin>\S+), network (?P<network>.*?), "
    r"(?:pod (?P<pod>\S+), )?container (?P<container_id>\S+), (?P<ifname>\S+) in (?P<netns>.*)"
)
_CONFIGURATION = "# configuration: "


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a journal.

    Attributes:
        text: without time, duration and failure: the command, or the comment without its "# ".
        failure: why the change failed; "": it did not.
    """

    kind: str
    raw: str
    text: str = ""
    time: str = ""
    seconds: float | None = None
    failure: str = ""


@dataclass(slots=True)
class Call:
    """A call in a journal: of a plugin, or of what a daemon does at one event.

    Attributes:
        title: as the journal has it; "" if the journal begins in the middle of a call.
        verb: ADD, DEL, GC; "" if it is no plugin's call.
        configuration: that the plugin received, without ``prevResult``; empty if the journal does not have it.
        outcome: "done", "failed", or "" if the call was cut off, or still runs.
    """

    title: str = ""
    began: str = ""
    verb: str = ""
    plugin: str = ""
    network: str = ""
    pod: str = ""
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    configuration: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""
    error: str = ""
    seconds: float | None = None
    lines: list[Line] = field(default_factory=list)


def read(lines: list[str]) -> list[Call]:
    """Return the calls of a journal. What comes before the first title is a call without one."""
    found: list[Call] = []
    for raw in lines:
        if head := _HEAD.fullmatch(raw):
            found.append(_begin(head[1], head[2]))
            found[-1].lines.append(Line(HEAD, raw, head[2], head[1]))
            continue
        if not found:
            found.append(Call())
        line = _line(raw)
        found[-1].lines.append(line)
        _learn(found[-1], line)
    return found


def _begin(began: str, title: str) -> Call:
    call = Call(title=title, began=began)
    if known := _TITLE.fullmatch(title):
        for name, text in known.groupdict().items():
            setattr(call, name, "" if text in (None, "-") else text)
    return call


def _line(raw: str) -> Line:
    timed = _LINE.fullmatch(raw)
    if timed is None:
        return Line(OTHER, raw, raw)
    time, text, took = timed[1], timed[2], timed[3]
    seconds = float(took) / 1000 if took else None
    if text.startswith(_CONFIGURATION):
        return Line(CONFIGURATION, raw, text.removeprefix(_CONFIGURATION), time)
    if (text == "# done" or text.startswith("# failed: ")) and seconds is not None:
        return Line(END, raw, text.removeprefix("# "), time, seconds, text[10:] if text != "# done" else "")
    if text.startswith("# "):
        return Line(NOTE, raw, text.removeprefix("# "), time, seconds)
    failed = _FAILED.fullmatch(text)
    if failed:
        return Line(STEP, raw, failed[1], time, seconds, failed[2])
    return Line(STEP, raw, text, time, seconds)


def _learn(call: Call, line: Line) -> None:
    if line.kind == CONFIGURATION:
        try:
            decoded = json.loads(line.text)
        except (ValueError, RecursionError):
            return
        call.configuration = decoded if isinstance(decoded, dict) else {}
    elif line.kind == END:
        call.outcome, call.error, call.seconds = ("failed" if line.failure else "done"), line.failure, line.seconds
