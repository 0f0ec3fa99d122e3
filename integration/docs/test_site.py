"""The site of docs/ (`make docs`): it builds without a warning, has every page, and loads nothing from another host."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from integration.docs import site_hooks

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
"""Elements that a browser loads something for, and the attribute that says from where."""


class Page(HTMLParser):
    """Anchors, links and what is loaded, of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and values.get("rel") != "canonical":
            self.loaded.append(values.get(LOADED[tag], ""))


@cache
def read(path: Path) -> Page:
    return Page(path.read_text())


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    for command in (
        [ROOT / "integration/prepare", "docs"],
        [ROOT / "integration/docs/build-site", directory := tmp_path_factory.mktemp("site")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    yield directory
    read.cache_clear()


def test_site(site: Path) -> None:
    """One test, since each of several processes would build the site for its share of five."""
    check_that_it_has_every_page(site)
    check_that_its_links_exist(site)
    check_that_it_loads_nothing_of_others(site)
    check_that_it_finds_the_lessons(site)
    check_that_it_has_both_schemes(site)


def check_that_it_has_every_page(site: Path) -> None:
    """Compare the pages, and what the navigation of the home page leads to."""
    expected = {page.replace(".md", ".html") for page in PAGES} | {"index.html", "404.html"}
    assert {str(path.relative_to(site)) for path in site.rglob("*.html")} == expected
    assert {link.partition("#")[0] for link in read(site / "index.html").links} >= expected - {"index.html", "404.html"}


def check_that_its_links_exist(site: Path) -> None:
    wrong = []
    for path in site.rglob("*.html"):
        if path.name == "404.html":  # it is sent for any address: its links are absolute
            continue
        for link in read(path).links:
            target, _, anchor = link.partition("#")
            if target.startswith(("http:", "https:")):
                continue
            file = (path.parent / target).resolve() if target else path
            if not file.is_file() or (anchor and unquote(anchor) not in read(file).anchors):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def check_that_it_loads_nothing_of_others(site: Path) -> None:
    """Fonts, scripts, styles and pictures are the site's own; only what a reader clicks leads elsewhere."""
    loaded = {address for path in site.rglob("*.html") for address in read(path).loaded}
    assert {address for address in loaded if "//" in address} == set()
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", path.read_text()) == [], path


def check_that_it_finds_the_lessons(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"] if "masquerade" in entry["text"].lower()}
    assert "lessons/04-masquerade-and-ports.html" in found
    assert (site / "search" / "search_index.js").exists()  # for pages that are opened as files


def check_that_it_has_both_schemes(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert set(re.findall(r'data-md-color-media="([^"]*)"', text)) >= {
        "(prefers-color-scheme: light)",
        "(prefers-color-scheme: dark)",
    }


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once() -> None:
    named = [page for section in site_hooks.navigation(PAGES) for pages in section.values() for page in pages]
    assert sorted(named) == PAGES


def test_page_that_no_section_names_is_added() -> None:
    sections = site_hooks.navigation(["lab.md", "new.md", "topic/one.md"])
    assert sections[-2:] == [{"More": ["new.md"]}, {"Topic": ["topic/one.md"]}]


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("lab.md", "[a](cni-py.md#x)", "[a](cni-py.md#x)"),
        ("lab.md", "[home](../README.md#try-it)", "[home](index.md#try-it)"),
        ("lessons/a.md", "[home](../../README.md)", "[home](../index.md)"),
        ("security.md", "[files.py](../cni_py/files.py)", "`cni_py/files.py`"),
        ("lab.md", "[decisions](decisions/)", "[decisions](decisions/0001.md)"),
        ("lab.md", "```sh\n[a](../x)\n```", "```sh\n[a](../x)\n```"),
        ("lab.md", "[web](https://example.org/)", "[web](https://example.org/)"),
        ("lab.md", "the [licence](../LICENSE)", "the licence (`LICENSE`)"),
    ],
)
def test_links_stay_in_the_site(page: str, text: str, expected: str) -> None:
    assert site_hooks.links_of_site(text, page, {"lab.md", "cni-py.md", "decisions/0001.md"}) == expected


def test_readme_links_as_from_docs() -> None:
    assert site_hooks.from_root("[a](docs/a.md#b) [c](LICENSE) [d](#e)") == "[a](a.md#b) [c](../LICENSE) [d](#e)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text\n- one\n- two\n", "text\n\n- one\n- two\n"),
        (
            "1. one\n\n   ```sh\n   ls\n     -l\n   ```\n\n2. two\n",
            "1. one\n\n    ```sh\n    ls\n      -l\n    ```\n\n2. two\n",
        ),
        ("- one\n  more\n  - inner\n    deep\n- two\n\nend\n", "- one\n    more\n    - inner\n        deep\n- two\n\nend\n"),
        ("```sh\ntext\n- a\n  b\n```\n", "```sh\ntext\n- a\n  b\n```\n"),
        ("    code\n\ntext\n", "    code\n\ntext\n"),
    ],
)
def test_lists_are_those_of_python_markdown(text: str, expected: str) -> None:
    assert site_hooks.for_python_markdown(text) == expected
