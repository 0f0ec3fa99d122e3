"""Recognise a command: which shape of the table it has. Pure."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from cni_py.explain import filters
from cni_py.explain.shapes import OF_DAEMON, ON_HOST, SHAPES, Recognised
from cni_py.explain.words import WORD, Command, unquoted
from cni_py.journal import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    core = " ".join(_with_parts_quoted(command.words) if command.words[0] == "sysctl" else command.words)[:_COMPARED]
    for shape in (*first, *SHAPES):
        found = _pattern_of(shape.pattern).fullmatch(core)
        if found:
            words = {name: unquoted(text).strip() for name, text in found.groupdict().items()}
            return Recognised(shape, shape.what.format_map(words), words, command.netns)
    return None


def _with_parts_quoted(words: Iterable[str]) -> list[str]:
    """Quote the parts of a path one by one: a link's name that needs it quotes the whole of ``net/ipv4/conf/NAME/key``."""
    return ["/".join(map(quote, unquoted(word).split("/"))) if word.startswith("'") else word for word in words]


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
