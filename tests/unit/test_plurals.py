"""Messages count in English: "1 lease", never "1 leases"; ``plural.counted`` knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "cni_py").rglob("*.py"))
NEVER_ONE = {"node/log.py: characters", "dhcp/packet.py: bytes"}
"""Counts that are larger than one whenever the message is written."""


def counted_by_hand(source: str) -> list[str]:
    """Return the nouns of the plural that follow a ``len(…)`` or a ``count`` in a formatted text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant)):
                continue
            number = ast.unparse(value.value)
            noun = re.match(r" ([a-z]+s)\b", str(text.value))
            if noun and (number.startswith("len(") or re.fullmatch(r"(number|count|changes|total|n)", number)):
                found.append(noun[1])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "cni_py")))
def test_no_message_counts_by_hand(path: Path) -> None:
    name = str(path.relative_to(ROOT / "cni_py"))
    assert [noun for noun in counted_by_hand(path.read_text()) if f"{name}: {noun}" not in NEVER_ONE] == []


def test_plural_is_found() -> None:
    assert counted_by_hand('f"{len(x)} routes and {count} leases, {len(y)} of them"') == ["routes", "leases"]
