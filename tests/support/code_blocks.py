"""Code blocks of the docs, with the marker in front of them.

A fenced block of a shell, of Python or of JSON is run, or parsed, in the order of its page. An HTML comment on the line before it
says what else to do: ``not run: REASON``, ``needs: PATH`` (of a program or file), ``fresh node``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("sh", "console", "python", "json")
DRAWN = ("", "text", "yaml")
"""Languages of blocks that are not typed: drawings, output, parts of files."""
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


def indented_commands(text: str) -> list[str]:
    """Return the lines of indented blocks that look like a command: they belong into a fence, where they are run."""
    without_fences = _BLOCK.sub("", text)
    return _INDENTED_COMMAND.findall(without_fences)
