"""Markdown, as the pages of docs/ have it, as a man page: roff with the macros of man(7).

Pure. Read by markdown-it-py, which rich brings along; written here, since what a man page needs of Markdown is little:
headings, paragraphs, lists, code, tables. A table becomes a list of terms, so that it fits whatever width. Only ASCII is
written: a terminal without UTF-8 shows the same.
"""

from __future__ import annotations

import re
from textwrap import wrap
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token

WIDTH = 78
"""Width of a line of the source; that of the page is the terminal's."""
CHARACTERS = {
    "…": "...", "–": "\\(en", "—": "\\(em", "×": "x", "→": "->", "⁵³": "^53", "²⁰": "^20", "·": "-", "’": "'", "“": '"',
    "”": '"', "µ": "u", "≥": ">=", "≤": "<=", "\u00a0": " ",
}  # fmt: skip
"""Forms of characters that are no ASCII, as every device of groff and mandoc has them."""
MANUAL = {"cni-py.md": "cni-py(1)", "flanneld.md": "flanneld(8)", "agent.md": "cni-agent(8)"}
"""Pages of docs/ that are man pages too."""
BREAK = "\0"
"""End of a line within a paragraph."""
SENTENCE = re.compile(r"(?<=[a-z)\]\"'RIe0-9][.?!]) +(?=[A-Z`\"\\])")
_PARSER = MarkdownIt("commonmark").enable("table")


def page(name: str, section: int, date: str, version: str, text: str) -> str:
    """Return the man page of a Markdown text, whose headings of the first level are its sections."""
    title = f'.TH {_quoted(name.upper())} {section} {date} {_quoted(version)} "cni-py manual"'
    head = f'.\\" Man page of cni-py, made by "make generate"; do not edit.\n.nr HY 0\n{title}\n.ad l\n.hy 0'
    return "\n".join([head, *_blocks(_PARSER.parse(text))]) + "\n"


def _blocks(tokens: Sequence[Token]) -> Iterator[str]:
    index, is_after_heading = 0, False
    while index < len(tokens):
        token = tokens[index]
        end = _end(tokens, index)
        inner = tokens[index + 1 : end]
        if token.type == "heading_open":
            yield f".{'SH' if token.tag == 'h1' else 'SS'} {_quoted(_heading(inner[0]))}"
        elif token.type == "paragraph_open":
            yield from _paragraph(inner[0], is_after_heading=is_after_heading)
        elif token.type in ("fence", "code_block"):
            yield from _code(token.content, is_shown=token.info == "console", is_after_heading=is_after_heading)
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            yield from _list(inner, is_ordered=token.type.startswith("ordered"))
        elif token.type == "table_open":
            yield from _table(inner)
        is_after_heading = token.type == "heading_open" or (is_after_heading and token.type == "html_block")
        index = end + 1


def _end(tokens: Sequence[Token], index: int) -> int:
    """Return where the block that begins here ends; a block without content ends where it begins."""
    depth = 0
    for position in range(index, len(tokens)):
        depth += tokens[position].nesting
        if depth == 0:
            return position
    raise ValueError(f"{tokens[index].type} does not end")


def _paragraph(token: Token, *, is_after_heading: bool) -> Iterator[str]:
    term, colon, definition = _rich(token).partition("\n: ")
    if colon:  # a definition, as docs/flanneld.md writes them
        yield from (".TP", *_wrapped(term), *_wrapped(definition))
        return
    first, *others = _rich(token).split(BREAK)
    yield from [*([] if is_after_heading else [".PP"]), *_wrapped(first)]
    for line in others:
        yield from (".br", *_wrapped(line))


def _code(text: str, *, is_shown: bool, is_after_heading: bool) -> Iterator[str]:
    """Yield code unchanged; of what only is shown, long lines are broken."""
    yield from [] if is_after_heading else [".PP"]
    yield ".RS 2\n.EX"
    for line in text.rstrip("\n").split("\n"):
        yield from map(_line, map(_escaped, wrap(line, 70, subsequent_indent="    ") if is_shown else [line]))
    yield ".EE\n.RE"


def _list(tokens: Sequence[Token], *, is_ordered: bool) -> Iterator[str]:
    index = number = 0
    while index < len(tokens):
        end = _end(tokens, index)
        number += 1
        yield f".IP {f'{number}.' if is_ordered else chr(92) + '(bu'} 4"
        lines = list(_blocks(tokens[index + 1 : end]))
        yield from lines[1:] if lines[:1] == [".PP"] else lines
        index = end + 1


def _table(tokens: Sequence[Token]) -> Iterator[str]:
    """Yield a list: the first cell is the term, the second its meaning; others follow it, with the name of their column."""
    rows = _rows(tokens)
    head, *body = rows
    for row in body:
        term, *cells = row
        yield ".TP"
        yield from _wrapped(term or "\\&", most=10**6)
        yield from _wrapped(_meaning([cell for cell in cells if cell], head[1:], cells) or "\\&")


def _meaning(filled: Sequence[str], head: Sequence[str], cells: Sequence[str]) -> str:
    """Return the text of a row behind its term: the column "meaning", then what the others say."""
    named = list(zip(head, cells, strict=True))
    main = next((cell for name, cell in named if name.lower() in ("meaning", "content", "what for", "description", "")), "")
    if not main and filled:
        main = filled[0]
    rest = [f"{name[:1].upper()}{name[1:]}: {cell}." for name, cell in named if cell not in ("", "off", main) and name]
    sentence = main if not main or main.endswith((".", ":", "?")) else f"{main}."
    is_word = re.match(r"[a-z]+(?=[ .;]|, [a-z]+ )", sentence) is not None  # no key, no name
    return " ".join([sentence[:1].upper() + sentence[1:] if is_word else sentence, *rest]).strip()


def _rows(tokens: Sequence[Token]) -> list[list[str]]:
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_rich(token))
    return rows


# ---- text -------------------------------------------------------------------------------------


def _heading(token: Token) -> str:
    """Return the text of a heading, which is bold already."""
    return "".join(_escaped(one.content) for one in token.children or () if one.type in ("text", "code_inline"))


def _rich(token: Token) -> str:
    """Return the text of a paragraph with its fonts; links lose their target unless it is an address."""
    parts: list[str] = []
    address = ""
    for one in token.children or ():
        if one.type == "text":
            parts.append(_escaped(one.content) if one.content not in MANUAL else f"\\fB{_escaped(MANUAL[one.content])}\\fR")
        elif one.type == "code_inline":
            parts.append(f"\\fB{_breakable(_escaped(one.content))}\\fR")
        elif one.type == "softbreak":
            parts.append("\n")
        elif one.type == "hardbreak":
            parts.append(BREAK)
        elif one.type == "strong_open":
            parts.append("\\fB")
        elif one.type == "em_open":
            parts.append("\\fI")
        elif one.type in ("strong_close", "em_close"):
            parts.append("\\fR")
        elif one.type == "link_open":
            href = str(one.attrs.get("href", ""))
            address = href if href.startswith("http") else ""
        elif one.type == "link_close" and address:
            parts.append(f" <{_breakable(_escaped(address))}>")
    return "".join(parts)


def _escaped(text: str) -> str:
    """Return text for roff, in ASCII. Raises: ValueError for a character that has no form in it."""
    text = (
        text.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace("'", "\\(aq")
        .replace("`", "\\(ga")
        .replace("^", "\\(ha")
        .replace("~", "\\(ti")
    )
    for character, form in CHARACTERS.items():
        text = text.replace(character, form)
    if not text.isascii():
        strange = sorted({character for character in text if not character.isascii()})
        raise ValueError(f"no form in ASCII for {strange}: add it to CHARACTERS")
    return text


def _breakable(text: str) -> str:
    """Return a path, an address or a list that may be broken behind its separators."""
    return re.sub(r"(?<=[\w.*)\]])([/,:=|])(?=[^\s/,:=|])", r"\1\\:", text) if len(text) > 20 else text


def _wrapped(text: str, most: int = WIDTH) -> Iterator[str]:
    """Yield lines of the source, a sentence on lines of its own."""
    for sentence in SENTENCE.split(" ".join(text.split())):
        line = ""
        for word in sentence.split(" "):
            if line and len(line) + len(word) >= most:
                yield _line(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        yield _line(line)


def _line(text: str) -> str:
    """Return a line that is no request."""
    return f"\\&{text}" if text[:1] in (".", "'") else text


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "\\(dq") + '"'
