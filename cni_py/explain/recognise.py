"""Recognise a command: which shape of the table it has. Pure."""

from __future__ import annotations

import re
from functools import cache

from cni_py.explain import filters
from cni_py.explain.shapes import OF_DAEMON, ON_HOST, SHAPES, Recognised
from cni_py.explain.words import WORD, Command, unquoted

_COMPONENT = r"[^\s/']+"
_COMPARED = 2000
"""Characters of a command that are compared: some, as those of WireGuard's peers, are of any length."""


def recognise(command: Command, verb: str = "ADD") -> Recognised | None:
    """Return what a command is for; None if it has no row.

    Args:
        verb: of the plugin's call; "": a daemon does it.
    """
    if filters.program_of(command) in filters.PROGRAMS:
        return filters.recognise(command)
    first = () if command.netns else ON_HOST if verb else OF_DAEMON
    core = " ".join(command.words)[:_COMPARED]
    for shape in (*first, *SHAPES):
        found = _pattern_of(shape.pattern).fullmatch(core)
        if found:
            words = {name: unquoted(text).strip() for name, text in found.groupdict().items()}
            return Recognised(shape, shape.what.format_map(words), words, command.netns)
    return None


@cache
def _pattern_of(text: str) -> re.Pattern[str]:
    """Return the regular expression of a shape."""
    parts = re.split(r"(\{[*/]?\w+(?::[^}]*)?\})", text)
    return re.compile("".join(_group(part) if part.startswith("{") else re.escape(part) for part in parts), re.DOTALL)


def _group(part: str) -> str:
    name, _, choices = part.strip("{}").partition(":")
    if name.startswith("*"):
        return f"(?P<{name[1:]}>.*?)"
    if name.startswith("/"):
        return f"(?P<{name[1:]}>{choices or _COMPONENT})"
    return f"(?P<{name}>{choices or WORD})"
