"""The rules, a module for each subject. Each is a pure function of the facts that yields findings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.doctor.findings import Finding

MOST = 4
"""Findings of one kind that are listed one by one: of a hundred peers with the same fault one finding says so."""
SHOWN = 5


def gathered(findings: Iterable[Finding], noun: str, state: str) -> Iterator[Finding]:
    """Yield the findings, or one for all of them if they are many. ``noun``: what each is about; ``state``: in words."""
    every = list(findings)
    if len(every) <= MOST:
        yield from every
        return
    lines = [one.what for one in every[:SHOWN]]
    lines += [f"and {len(every) - SHOWN} more"]
    yield replace(
        every[0],
        what=f"{counted(len(every), noun)}: {state}",
        found=tuple(lines),
        repair=shown(dict.fromkeys(line for one in every for line in one.repair)),
        fix=tuple(dict.fromkeys(command for one in every for command in one.fix)),
        about=frozenset().union(*(one.about for one in every)),
    )


def shown(items: Iterable[object], most: int = SHOWN) -> tuple[str, ...]:
    """Return the first of them as lines, and how many more there are."""
    every = [str(item) for item in items]
    return tuple(every if len(every) <= most else [*every[:most], f"and {len(every) - most} more"])
