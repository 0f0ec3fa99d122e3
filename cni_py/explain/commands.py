"""Show a command of the journal as a person could type it: complete, and never waiting for the keyboard. Pure.

A transaction of nftables becomes a script with a command a line. On a narrow terminal lines are broken where a shell, and nft,
join them again: what is copied from the screen is the command that was shown.
"""

from __future__ import annotations

import re
from textwrap import wrap

from cni_py.explain import filters
from cni_py.explain.words import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NO_CONTENT = "# its content is not in the journal: it is long, or a secret"
_BASE_NOUNS = ("table", "chain", "map", "set", "rule")


def shown(text: str, command: Command | None, *, verbose: bool = False) -> list[str]:
    """Return the lines of a command as it can be typed; an nft script has one for each of its commands.

    Args:
        text: the command in the journal.
        verbose: show what all pods share, too.
    """
    if command is None:
        return [text]
    if command.words[0] == "nft":
        commands = filters.commands_of(command)
        if len(commands) > 1:
            return _script(command, commands, verbose=verbose)
    if not command.producer and _waits(command.words):
        words = ["CONTENT" if word == "/dev/stdin" else word for word in command.words]
        if words[0] == "tee":
            words += ["<", "CONTENT"]
        return [NO_CONTENT, " ".join([*command.enter, *words])]
    return [text]


def _waits(words: tuple[str, ...]) -> bool:
    """Return whether a command would read what is typed after it."""
    return "/dev/stdin" in words or words[0] == "tee" or words[0].endswith("-restore")


def _script(command: Command, commands: list[str], *, verbose: bool) -> list[str]:
    own = [one for one in commands if not filters.is_base(one)]
    lines = commands
    if own and not verbose and len(commands) - len(own) > 1:
        lines = [_folded(commands), *own]
    inside = [f"    {line}".replace("'", "'\\''") for line in lines]
    return [" ".join([*command.enter, "nft '"]), *inside, "'"]


def _folded(commands: list[str]) -> str:
    """Return one line for what all pods share, a comment of nft."""
    counts: dict[str, int] = {}
    for noun in (one.split()[1] for one in commands if filters.is_base(one) and not one.startswith("flush")):
        counts[noun] = counts.get(noun, 0) + 1
    parts = [f"{counts[noun]} {noun}{'s' if counts[noun] > 1 else ''}" for noun in _BASE_NOUNS if noun in counts]
    return f"# {', '.join(parts)} that pods share: -v shows them"


def wrapped(lines: list[str], width: int, indent: int) -> Iterator[str]:
    """Yield the lines, broken so that each has at most ``width`` columns where that is possible.

    A shell joins them again, and so does nft the lines of its script. A word that is too long is broken too; what follows then
    begins in the first column, since a space would end the word.
    """
    margin = " " * indent
    is_script = len(lines) > 1 and lines[0].endswith("nft '")
    for number, line in enumerate(lines):
        inner = is_script and 0 < number < len(lines) - 1
        if len(margin) + len(line) <= width:
            yield margin + line
        elif line.lstrip().startswith("#"):
            head = margin + line[: line.index("#")] + "# "
            yield from wrap(line.strip("# "), max(width, len(head) + 1), initial_indent=head, subsequent_indent=head)
        else:
            yield from _broken(line, width, margin, inner=inner)


def _broken(line: str, width: int, margin: str, *, inner: bool) -> Iterator[str]:
    """``inner``: the line is in the quotes of an nft script."""
    own = len(line) - len(line.lstrip())
    words = _script_words(line.strip()) if inner else _shell_words(line.strip())
    current, more = margin + " " * own, margin + " " * (own + 4)
    is_empty = True
    for number, word in enumerate(words):
        room = width - (2 if number < len(words) - 1 else 0)
        if not is_empty and len(current) + 1 + len(word) > room:
            yield current + " \\"
            current, is_empty = more, True
        if len(current) + len(word) > room and len(more) + len(word) > room:
            *whole, current = _pieces(current + ("" if is_empty else " "), word, room - 2, inner=inner)
            yield from whole
        else:
            current += word if is_empty else f" {word}"
        is_empty = False
    yield current


def _shell_words(line: str) -> list[str]:
    return re.findall(r"(?:'[^']*'|\\.|[^\s'\\])+", line, re.DOTALL) or [line]


def _script_words(line: str) -> list[str]:
    """Return the words of a line of nft, a text in double quotes being one."""
    return re.findall(r'(?:"[^"]*"|[^\s"]|")+', line)


def _pieces(head: str, word: str, room: int, *, inner: bool) -> Iterator[str]:
    """Break a word: the first piece is behind ``head``, the others begin in the first column."""
    current = head
    for letter, quoted in _letters(word, inner=inner):
        if len(current) + len(letter) + quoted > max(room, 8):
            yield current + ("'\\" if quoted else "\\")
            current = "'" if quoted else ""
        current += letter
    yield current


def _letters(word: str, *, inner: bool) -> Iterator[tuple[str, bool]]:
    """Yield what must not be broken, and whether it comes within quotes.

    That is a character, an escaped one, and in an nft script a quote as the shell has it.
    """
    at, quoted = 0, inner
    while at < len(word):
        whole = "'\\''" if inner else "" if quoted else "\\"
        size = max(len(whole), 2) if whole and word.startswith(whole, at) else 1
        letter = word[at : at + size]
        yield letter, quoted
        if letter == "'":
            quoted = not quoted
        at += size
