"""Connectivity between pods: pings from each to each, with small and with full-sized packets, as a table."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_py.lab.programs import LabFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTSIDE_NAME = "outside"
PINGER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pinger.py")


@dataclass(frozen=True, slots=True)
class Pair:
    """One direction. ``size``: of the full-sized IP packet; ``ms`` and ``full_ms``: None without a reply."""

    source: str
    target: str
    address: str
    size: int
    ms: float | None
    full_ms: float | None
    why: str = ""

    @property
    def is_ok(self) -> bool:
        return self.ms is not None and self.full_ms is not None


@dataclass(frozen=True, slots=True)
class Matrix:
    pairs: tuple[Pair, ...]

    @property
    def is_complete(self) -> bool:
        """True if all pods reach each other, with full-sized packets too."""
        return all(pair.is_ok for pair in self.pairs)

    @property
    def failed(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.is_ok]

    def lines(self) -> list[str]:
        """A table per family: milliseconds of the small packet and of the full-sized one."""
        lines: list[str] = []
        for family, colon in (("IPv4", False), ("IPv6", True)):
            pairs = [pair for pair in self.pairs if (":" in pair.address) == colon]
            if pairs:
                lines += ["", *_table(family, pairs)] if lines else _table(family, pairs)
        return lines

    def summary(self) -> str:
        """Totals, counted by address of a pod, or of the host outside."""
        counted = []
        for words, is_outside in (("from pod to pod", False), ("from pod to outside", True)):
            pairs = [pair for pair in self.pairs if (pair.target == OUTSIDE_NAME) == is_outside]
            if pairs:
                counted.append(f"{sum(pair.is_ok for pair in pairs)} of {len(pairs)} {words}")
        sizes = sorted({pair.size for pair in self.pairs})
        with_df = f", packets of {'/'.join(map(str, sizes))} bytes with DF too" if sizes else ""
        return (" and ".join(counted) or "no other pod") + with_df


def _table(family: str, pairs: Sequence[Pair]) -> list[str]:
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    targets = list(dict.fromkeys([*sources, *(pair.target for pair in pairs)]))
    cells = {(pair.source, pair.target): _cell(pair) for pair in pairs}
    rows = [[family, *targets]]
    rows += [[source, *(cells.get((source, target), "-") for target in targets)] for source in sources]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + [f"  {pair.source} to {pair.target} ({pair.address}): {pair.why}" for pair in pairs if not pair.is_ok]


def _cell(pair: Pair) -> str:
    if pair.ms is None:
        return "NO"
    return f"{pair.ms:.2f}/{pair.full_ms:.2f} ms" if pair.full_ms is not None else "small only"


def ping(commands: Mapping[str, list[str]], asked: Mapping[str, Sequence[tuple[str, str, int]]], seconds: float) -> Matrix:
    """Ping from several places at once.

    Args:
        commands: by source, the words that start a program in its network namespace.
        asked: by source, its targets: name, address, size of a full packet.
    """
    running = {
        source: subprocess.Popen(
            [*command, sys.executable, "-IS", PINGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for source, command in commands.items()
        if asked[source]
    }
    for source, process in running.items():
        targets = [[address, each] for _, address, size in asked[source] for each in (0, size)]
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # its error message is read below
            process.stdin.write(json.dumps({"seconds": seconds, "targets": targets}).encode())
        process.stdin = None  # closed, so that all ping at the same time; communicate() must not use it
    pairs: list[Pair] = []
    errors: list[str] = []
    for source, process in running.items():
        output, words = process.communicate()
        if process.returncode != 0:
            errors.append(f"{source}: {words.decode(errors='replace').strip()[-300:]}")
            continue
        answers = iter(json.loads(output))
        for target, address, size in asked[source]:
            (ms, why), (full_ms, full_why) = next(answers), next(answers)
            pairs.append(Pair(source, target, address, size, ms, full_ms, why or (full_why and f"{size} bytes: {full_why}")))
    if errors:
        raise LabFailed("could not ping", "\n".join(errors), "cni-py lab status")
    return Matrix(tuple(pairs))
