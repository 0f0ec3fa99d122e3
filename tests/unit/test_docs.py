"""README and docs: every path that they name exists, and every relative link and anchor resolves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLANNED = {"cni_py/policy/", "cni_py/plugins/meta/mtu.py"}
"""Paths of what comes next, in docs/architecture.md, and of the sample in docs/contributing.md."""
FROM_ROOT = re.compile(r"(?<![\w/.$~-])(?:cni_py|tests|integration|conf|bin|docs)/[\w./*-]*[\w*]/?")
MODULE = re.compile(r"(?<![\w/.-])(?:[a-z_0-9]+/)*[a-z_0-9]+\.py\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


@cache
def modules() -> frozenset[str]:
    """Return every tail of every Python file's path: ``kernel/link.py``, ``link.py``."""
    found = [
        path.relative_to(ROOT).parts for tree in ("cni_py", "tests", "integration") for path in (ROOT / tree).rglob("*.py")
    ]
    return frozenset("/".join(parts[start:]) for parts in found for start in range(len(parts)))


def wrong_paths(text: str) -> Iterator[str]:
    """Yield the paths and modules in a text that do not exist."""
    for path in FROM_ROOT.findall(text):
        if path not in PLANNED and not any(ROOT.glob(path)):
            yield path
    for module in MODULE.findall(text):
        if module not in PLANNED | modules() and not (ROOT / module).exists():
            yield module


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, in GitHub's form."""
    without_code = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(without_code))
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def wrong_links(page: Path, text: str) -> Iterator[str]:
    """Yield the relative links of a page that lead nowhere."""
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_only_what_exists(page: Path) -> None:
    text = page.read_text()
    assert [*wrong_paths(text), *wrong_links(page, text)] == []


def test_places_for_new_code_in_the_readme_are_those_of_the_architecture() -> None:
    """Compare the two: a contributor finds the right place in the README within a minute."""
    readme = (ROOT / "README.md").read_text().partition("\nTo add\n")[2].partition("\n## ")[0]
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Where new code goes")[2].partition("\n## ")[0]
    kinds = re.findall(r"^- \*\*(.*)\*\*: ", readme, re.MULTILINE)
    assert {"a plugin", "a flannel back end", "a policy engine", "a rule of the doctor", "a lesson"} <= set(kinds)
    for path in FROM_ROOT.findall(re.sub(r"\[[^]]*\]\([^)]*\)", "", readme)):
        assert path in table, path


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    text = (
        "`cni_py/no.py`, cni_py/kernel/, kernel/no.py, `link.py`, /opt/cni/bin/x, bin/cni-py, docs/no, docs/*.md, docs/no*.md"
    )
    assert list(wrong_paths(text)) == ["cni_py/no.py", "docs/no", "docs/no*.md", "cni_py/no.py", "kernel/no.py"]
    page = tmp_path / "a.md"
    page.write_text("# One `two`, three\n```sh\n# four\n```\n[x](#one-two-three) [y](#four) [z](a.md#one-two-three) [n](no.md)")
    assert list(wrong_links(page, page.read_text())) == ["#four", "no.md"]
