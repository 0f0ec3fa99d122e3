"""A walk as a picture: places as boxes from top to bottom, hops in them, and the packet's headers between them. Pure.

One file without external fonts, styles or scripts; light or dark as the page's reader has chosen, by a style inside.
"""

from __future__ import annotations

from html import escape
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING

from cni_py.walk import hops
from cni_py.walk.hops import DIFFERENT, MISSING, SEEN
from cni_py.walk.packet import ICMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.walk.hops import Hop, Walk
    from cni_py.walk.packet import Packet
    from cni_py.walk.report import Report

_WIDTH, _MARGIN, _LINE, _HEAD = 760, 16, 18, 26
_COLUMNS = 86
"""Characters of a line of prose at this width, in any usual font."""
_STYLE = """
svg { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; --paper: #ffffff; --ink: #1f2328; --soft: #59636e;
  --line: #d1d9e0; --box: #f6f8fa; --change: #9a6700; --bad: #c62828; --good: #1a7f37; --wire: #0969da; }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --box: #151b23; --change: #d29922; --bad: #ff7b72; --good: #3fb950; --wire: #79c0ff; } }
.paper { fill: var(--paper); } .box { fill: var(--box); stroke: var(--line); } text { fill: var(--ink); }
.title { font-size: 16px; font-weight: 600; } .place { font-weight: 600; } .why { fill: var(--soft); font-size: 12px; }
.change { fill: var(--change); } .bad { fill: var(--bad); font-weight: 600; } .good { fill: var(--good); }
.wire { stroke: var(--wire); stroke-width: 1.5; fill: none; } .arrow { fill: var(--wire); }
.header { fill: var(--paper); stroke: var(--wire); } .packet { font: 12px ui-monospace, Menlo, Consolas, monospace; }
"""
_CHECKS = {SEEN: ("✓", "good"), DIFFERENT: ("!", "bad"), MISSING: ("–", "bad")}


def draw(report: Report) -> str:
    """Return the picture as an SVG document."""
    canvas = _Canvas()
    for line in wrap(report.title, _COLUMNS - 14):
        canvas.text(_MARGIN, line, "title", 22)
    canvas.skip(6)
    _draw_walk(canvas, report.forward)
    if report.reply is not None and report.shows_reply:
        canvas.skip(10)
        canvas.text(_MARGIN, "The reply", "title", 24)
        _draw_walk(canvas, report.reply)
    canvas.skip(10)
    for kind, text in _sentences(report):
        for line in wrap(text, _COLUMNS):
            canvas.text(_MARGIN, line, kind)
    return canvas.document(report.title)


def _sentences(report: Report) -> Iterable[tuple[str, str]]:
    styles = {"bad": "bad", "good": "good", "note": ""}
    yield from ((styles[kind], text) for kind, text in report.findings)
    for what, comparison in (("the packet", report.comparison), ("the reply", report.reply_comparison)):
        if comparison is not None:
            cause = f"; {comparison.cause}" if comparison.cause else ""
            yield "good" if comparison.is_as_predicted else "bad", f"Verified, {what}: {comparison.text}{cause}"


def _draw_walk(canvas: _Canvas, walk: Walk) -> None:
    groups = [(place, list(of)) for place, of in groupby(walk.hops, key=lambda hop: hop.place)]
    for number, (place, of) in enumerate(groups):
        if number:
            _draw_wire(canvas, groups[number - 1][1][-1].packet)
        _draw_place(canvas, place, of)


def _draw_place(canvas: _Canvas, place: str, of: Sequence[Hop]) -> None:
    lines = [line for hop in of for line in _lines(hop)]
    canvas.box(_HEAD + _LINE * len(lines) + 8)
    canvas.text(_MARGIN + 12, place, "place", _HEAD - 4)
    for kind, mark, text in lines:
        if mark:
            canvas.mark(mark)
        canvas.text(_MARGIN + 34, text, kind)
    canvas.skip(12)


def _lines(hop: Hop) -> list[tuple[str, str, str]]:
    """Lines of a hop: style, mark, text."""
    mark = "x" if hop.is_broken else "?" if hop.kind in (hops.UNSURE, hops.NOTE) else _CHECKS.get(hop.check, ("", ""))[0]
    style = "bad" if hop.is_broken or hop.check in (DIFFERENT, MISSING) else "change" if hop.kind == hops.UNSURE else ""
    first, *rest = wrap(hop.text, _COLUMNS) or [""]
    found = [(style, mark, first), *((style, "", line) for line in rest)]
    found += [("change", "", line) for change in hop.changes for line in wrap(change, _COLUMNS)]
    found += [("why", "", line) for line in wrap(hop.why, _COLUMNS + 6)]
    if hop.observed:
        found += [("bad", "", line) for line in wrap(f"observed: {hop.observed}", _COLUMNS)]
    return found


def _draw_wire(canvas: _Canvas, packet: Packet) -> None:
    """The packet between two places: its headers from outside to inside."""
    headers: list[str] = []
    of: Packet | None = packet
    while of is not None:
        headers.append(f"{of.source} → {of.destination}")
        headers += [_transport(of)] if of.protocol != "ipip" else []
        headers += [of.tunnel.name] if of.tunnel is not None and of.tunnel.name not in ("UDP", "IP in IP") else []
        of = of.inner
    canvas.wire(headers)


def _transport(packet: Packet) -> str:
    if packet.protocol == ICMP:
        return "ICMP"
    return f"{packet.protocol.upper()} {packet.destination_port}"


class _Canvas:
    """Elements from top to bottom."""

    def __init__(self) -> None:
        self._y, self._elements = _MARGIN, list[str]()

    def skip(self, pixels: int) -> None:
        self._y += pixels

    def text(self, x: int, text: str, kind: str = "", height: int = _LINE) -> None:
        self._y += height
        style = f' class="{kind}"' if kind else ""
        self._elements.append(f'<text x="{x}" y="{self._y - 4}"{style}>{escape(text)}</text>')

    def mark(self, mark: str) -> None:
        """A mark in front of the next line."""
        kind = "good" if mark == "✓" else "bad" if mark in "x!–" else "change"
        self._elements.append(f'<text x="{_MARGIN + 14}" y="{self._y + _LINE - 4}" class="{kind}">{escape(mark)}</text>')

    def box(self, height: int) -> None:
        self._elements.append(
            f'<rect class="box" x="{_MARGIN}" y="{self._y}" width="{_WIDTH - 2 * _MARGIN}" height="{height}" rx="8"/>'
        )

    def wire(self, headers: Sequence[str]) -> None:
        """An arrow down, with the headers beside it, in as many rows as they need."""
        rows = _rows(headers)
        height, x = 12 + 24 * len(rows), 44
        self._elements.append(f'<path class="wire" d="M{x} {self._y - 6} V{self._y + height - 6}"/>')
        tip = self._y + height
        self._elements.append(f'<path class="arrow" d="M{x - 5} {tip - 9} L{x + 5} {tip - 9} L{x} {tip - 1} Z"/>')
        for number, row in enumerate(rows):
            left, top = x + 18, self._y + 1 + 24 * number
            for header in row:
                width = _width(header)
                self._elements.append(f'<rect class="header" x="{left}" y="{top}" width="{width}" height="20" rx="3"/>')
                self._elements.append(f'<text class="packet" x="{left + 8}" y="{top + 14}">{escape(header)}</text>')
                left += width
        self._y += height + 2

    def document(self, title: str) -> str:
        height = self._y + _MARGIN
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="100%" role="img">'
        paper = f'<rect class="paper" width="{_WIDTH}" height="{height}"/>'
        body = "\n".join(self._elements)
        return f"{head}\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{paper}\n{body}\n</svg>\n"


def _width(header: str) -> int:
    return 16 + round(7.4 * len(header))


def _rows(headers: Sequence[str]) -> list[list[str]]:
    """Headers in rows that fit."""
    rows: list[list[str]] = [[]]
    for header in headers:
        if rows[-1] and sum(map(_width, [*rows[-1], header])) > _WIDTH - 2 * _MARGIN - 46:
            rows.append([])
        rows[-1].append(header)
    return rows
