"""Recognise a command: which shape of the table it has. Pure."""

from __future__ import annotations

import re

from cni_py.explain import filters
from cni_py.explain.shapes import ON_HOST, SHAPES, Recognised, Shape
from cni_py.explain.words import WORD, Command, unquoted

_COMPONENT = r"[^\s/']+"
_COMPARED = 2000
"""Length of a command that is compared, in characters: some, as those of WireGuard's peers, are of any length."""


def recognise(command: Command) -> Recognised | None:
    """Return what a command is for; None if it has no row."""
    if filters.program_of(command) in filters.PROGRAMS:
        return filters.recognise(command)
    core = " ".join(command.words)[:_COMPARED]
    for shape, pattern in _compiled():
        found = pattern.fullmatch(core) if not command.netns or shape not in ON_HOST else None
        if found:
            words = {name: unquoted(text).strip() for name, text in found.groupdict().items()}
            return Recognised(shape, shape.what.format_map(words), words, command.netns)
    return None


_patterns: list[tuple[Shape, re.Pattern[str]]] = []


def _compiled() -> list[tuple[Shape, re.Pattern[str]]]:
    if not _patterns:
        _patterns.extend((shape, re.compile(_pattern_of(shape.pattern), re.DOTALL)) for shape in (*ON_HOST, *SHAPES))
    return _patterns


def _pattern_of(text: str) -> str:
    """Return the regular expression of a shape."""
    parts = re.split(r"(\{[*/]?\w+(?::[^}]*)?\})", text)
    return "".join(_group(part) if part.startswith("{") else re.escape(part) for part in parts)


def _group(part: str) -> str:
    name, _, choices = part.strip("{}").partition(":")
    if name.startswith("*"):
        return f"(?P<{name[1:]}>.*?)"
    if name.startswith("/"):
        return f"(?P<{name[1:]}>{choices or _COMPONENT})"
    return f"(?P<{name}>{choices or WORD})"
