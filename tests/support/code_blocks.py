"""Code blocks of the docs, with the marker in front of them.

A fenced block of a shell, of Python or of JSON is run, or parsed, in the order of its page. An HTML comment on the line before it
says what else to do: ``not run: REASON``, ``needs: PATH`` (of a program or file), ``needs link: KIND`` (of the
kernel), ``fresh node``, ``fails`` (its last command does).

A block ``output`` right after one of a shell is what that one prints. :func:`normalised` says what of it may differ from one
run to the next; all else is compared. `make docs` prints all output of a page again where some of it differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("sh", "console", "python", "json")
OUTPUT = "output"
DRAWN = ("", "text", "yaml", OUTPUT)
"""Languages of blocks that are not typed: drawings, output, parts of files."""
VOLATILE = (
    (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r" ?\bfe80::[0-9a-f:]+/64", ""),  # made from the MAC address, a moment after the link is up
    (r",(NO-CARRIER|LOWER_UP)\b|\bNO-CARRIER,", ""),  # so is the state of a link
    (r"(?m)^(\S+ +)(UP|DOWN|UNKNOWN|LOWERLAYERDOWN)\b", r"\1STATE"),
    (r"\bstate \w+", "state"),
    (r" linkdown\b", ""),
    (r"\bveth[0-9a-f]{8}\b", "veth"),
    (r"@if\d+", "@if"),
    (r"(?m)^\d+: ", "N: "),  # the number of an interface
    (r"\d{4}-\d\d-\d\d", "DATE"),
    (r"\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
    (r"\b[\d./]+\s*(ms|µs|s|min|h)\b", "TIME"),
    (r"\b(pid|process|id|handle|netnsid|Revision|revision\"?:) ?\d+", r"\1 N"),
    (r"\bpackets \d+ bytes \d+", "packets N bytes N"),
    (r"\s+", " "),  # columns are as wide as the widest entry, and lines are folded
)
"""Parts of output that no two runs have in common, each with what :func:`normalised` writes instead."""
_RANDOM = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b|\bveth[0-9a-f]{8}\b")
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<marker>[^\n]*) -->\n)?^(?P<indent> *)```(?P<lang>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED_COMMAND = re.compile(
    r"^    (?:\$ |# )?(?:sudo |make |cni-py \w+ \S+$|ip |flanneld -|etcdctl |systemctl |nft |echo )", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A block: ``line`` of its first line, ``lang`` and ``marker`` ("" if there is none)."""

    page: str
    line: int
    lang: str
    marker: str
    text: str

    @property
    def is_run(self) -> bool:
        return self.lang in RUN and not self.marker.startswith("not run: ")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path, text: str = "") -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = text or page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(str(page.relative_to(ROOT)), line, match["lang"], match["marker"] or "", body))
    return found


@dataclass(frozen=True)
class Shown:
    """A block with the block of its output, None if the page shows none."""

    block: Block
    output: Block | None


def with_outputs(page: Path, text: str = "") -> list[Shown]:
    """Return the blocks of a page, those of output with the block before them. Raises: ValueError for one without."""
    text = text or page.read_text()
    lines = text.splitlines()
    found: list[Shown] = []
    for block in blocks_of(page, text):
        if block.lang != OUTPUT:
            found.append(Shown(block, None))
            continue
        before = found[-1] if found else None
        if before is None or before.block.lang != "sh" or not before.block.is_run or before.output is not None:
            raise ValueError(f"{block}: there is no block right before it that is run and prints this")
        end = before.block.line + before.block.text.count("\n")  # the line of its closing fence
        if any(line.strip() for line in lines[end : block.line - 2]):
            raise ValueError(f"{block}: text between this output and the commands that print it")
        found[-1] = Shown(before.block, block)
    return found


def as_shown(text: str) -> str:
    """Return output as a page shows it: lines without spaces at their end."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


def normalised(text: str) -> str:
    """Return output without what differs from run to run."""
    for pattern, replacement in VOLATILE:
        text = re.sub(pattern, replacement, text)
    return text


def contradiction(shown: str, printed: str) -> str:
    """Return the first MAC address or name of a veth that a page shows for two of a run, or one of two that it shows for one.

    Within a page a reader compares them: the route leads to the MAC address that the other node's device has. "": none.
    """
    printed_for: dict[str, str] = {}
    shown_for: dict[str, str] = {}
    for ours, theirs in zip(_RANDOM.findall(shown), _RANDOM.findall(printed), strict=False):
        if printed_for.setdefault(ours, theirs) != theirs or shown_for.setdefault(theirs, ours) != ours:
            return ours
    return ""


def with_new_outputs(text: str, outputs: list[tuple[Block, str]]) -> str:
    """Return a page with other output in these blocks: all of one run, or the page as it is if nothing contradicts it."""
    shown, printed = "".join(block.text for block, _ in outputs), "".join(printed for _, printed in outputs)
    if normalised(shown) == normalised(printed) and not contradiction(shown, printed):
        return text
    lines = text.splitlines(keepends=True)
    for block, new in sorted(outputs, key=lambda one: -one[0].line):
        first = block.line - 1
        indent = lines[first - 1].partition("`")[0]
        lines[first : first + block.text.count("\n")] = [indent + line for line in new.splitlines(keepends=True)]
    return "".join(lines)


def indented_commands(text: str) -> list[str]:
    """Return the lines of indented blocks that look like a command: they belong into a fence, where they are run."""
    without_fences = _BLOCK.sub("", text)
    return _INDENTED_COMMAND.findall(without_fences)
