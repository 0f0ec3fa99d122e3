"""Split a command of the journal into its words, as a shell does. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

WORD = r"(?:'[^']*'|\\.|[^\s'\\])+"
_TOKEN = re.compile(rf"(\s+)|({WORD})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the journal in its parts, each word as it is written there.

    Attributes:
        enter: the words before it that enter a namespace; ``netns``: its path.
        producer: the command whose output it reads; empty: none.
    """

    words: tuple[str, ...]
    enter: tuple[str, ...] = ()
    producer: tuple[str, ...] = ()
    netns: str = ""


def parse(text: str) -> Command | None:
    """Split a command into words as a shell does; None if it is none, because the line is damaged."""
    words, position = [], 0
    for token in _TOKEN.finditer(text):
        if token.start() != position:
            return None
        position = token.end()
        if token[2]:
            words.append(token[2])
    if position != len(text) or not words:
        return None
    enter: tuple[str, ...] = ()
    if words[0] == "nsenter" and len(words) > 2 and unquoted(words[1]).startswith("--net="):
        enter, words = tuple(words[:2]), words[2:]
    producer: list[str] = []
    if words[0] == "printf":
        for operator in ("|", ">"):
            if operator in words:
                at = words.index(operator)
                producer, words = words[:at], words[at + (operator == "|") :]
                break
    netns = unquoted(enter[1]).removeprefix("--net=") if enter else ""
    return Command(tuple(words), enter, tuple(producer), netns) if words else None


def unquoted(word: str) -> str:
    """Return what a shell makes of a word that ``journal.quote`` wrote."""
    return re.sub(r"'([^']*)'|\\(.)", lambda found: found[1] if found[1] is not None else found[2], word, flags=re.DOTALL)
