"""Hooks of mkdocs: the pages as they are written for GitHub, as a site.

- The home page is README.md.
- The navigation has sections (`SECTIONS`), and in them the pages that are named there; every other page of docs/ is added by
  itself: those of a directory as a section, the rest to "More".
- A link to a file outside of docs/ becomes its path, since the site does not have it.
- Nothing is loaded from another host.
- Lists are written again for Python-Markdown: an empty line before a list, and four spaces for what belongs to an item.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
HOME = "index.md"
ASSETS = ("site.css", "worker.js")
SHIM = "https://unpkg.com/iframe-worker/shim"
"""Script that the theme loads to search in pages that are opened as files; `worker.js` is in its place."""
SECTIONS: dict[str, list[str]] = {
    "Begin": ["install.md", "from-go.md", "kubernetes.md", "bundle.md"],
    "Lessons": ["lessons/*.md"],
    "Use": ["cni-py.md", "lab.md", "doctor.md", "walk.md", "plan.md", "flanneld.md", "agent.md"],
    "Reference": [
        "configuration.md",
        "reference.md",
        "reference/*.md",
        "man/*.md",
        "differences-from-go.md",
        "performance.md",
        "reliability.md",
    ],
    "Plugins": ["plugins/*.md"],
    "Inside": [
        "architecture.md",
        "add-walkthrough.md",
        "contributing.md",
        "tests.md",
        "test-kernel.md",
        "dependencies.md",
        "security.md",
    ],
    "Decisions": ["decisions/*.md"],
}
"""The navigation: patterns of pages, in order. A pattern that no page has is left out."""
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *(```|~~~)")
MARKER = re.compile(r"^ *<!-- .* -->\n(?= *```)", re.MULTILINE)
"""Comments for the test of code blocks."""
ITEM = re.compile(r"^(?P<indent> *)(?P<mark>[-*] |\d+\. )(?=\S)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    pages = sorted(str(path.relative_to(config["docs_dir"])) for path in Path(config["docs_dir"]).rglob("*.md"))
    # at the top, since mkdocs takes no page of a section for the home page
    config["nav"] = [{"Home": HOME}, *navigation(pages)]
    return config


def navigation(pages: list[str]) -> list[dict[str, list[str]]]:
    """Return all pages, each in the first section that has a pattern for it."""
    left = list(pages)
    found: dict[str, list[str]] = {}
    for section, patterns in SECTIONS.items():
        for pattern in patterns:
            these = [page for page in left if _matches(page, pattern)]
            found.setdefault(section, []).extend(these)
            left = [page for page in left if page not in these]
    for page in left:
        directory = posixpath.dirname(page)
        found.setdefault(directory.capitalize() if directory else "More", []).append(page)
    return [{section: these} for section, these in found.items() if these]


def _matches(page: str, pattern: str) -> bool:
    return page == pattern or (pattern.endswith("/*.md") and page.startswith(pattern.removesuffix("*.md")))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    files.append(File.generated(config, HOME, content=from_root((ROOT / "README.md").read_text())))
    for name in ASSETS:
        files.append(File.generated(config, name, content=Path(__file__).with_name(name).read_text()))
    return files


def from_root(text: str) -> str:
    """Return README's text with links as seen from docs/."""
    return LINK.sub(lambda found: f"[{found[1]}]({_from_docs(found[2])})", text)


def _from_docs(link: str) -> str:
    if link.startswith(("https:", "http:", "#")):
        return link
    return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    paths = {file.src_uri for file in files}
    return for_python_markdown(links_of_site(MARKER.sub("", markdown), page.file.src_uri, paths))


def links_of_site(text: str, page: str, paths: set[str]) -> str:
    """Return a page with the links that lead out of the site written as paths."""

    def written(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        if not target or target.startswith(("https:", "http:")):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if path == "../README.md":
            return f"[{found[1]}]({posixpath.relpath(HOME, posixpath.dirname(page) or '.')}{'#' + anchor if anchor else ''})"
        if path in paths:
            return found[0]
        if any(one.startswith(f"{path}/") for one in paths):  # a directory: its first page
            first = min(one for one in paths if one.startswith(f"{path}/"))
            return f"[{found[1]}]({posixpath.relpath(first, posixpath.dirname(page) or '.')})"
        path = path.removeprefix("../")
        return f"`{path}`" if found[1].strip("`") in path else f"{found[1]} (`{path}`)"

    return "".join(LINK.sub(written, part) if is_prose else part for is_prose, part in _parts(text))


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the lines outside of code blocks, with True, and those inside."""
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        yield not fence and not mark, line
        if mark:
            fence = "" if fence == mark[1] else fence or mark[1]


def for_python_markdown(text: str) -> str:
    """Return GitHub's lists as Python-Markdown's."""
    out: list[str] = []
    items: list[int] = []  # for each item that the line is in: the column at which its text begins
    is_list_before = False
    for is_prose, line in _parts(text):
        body = line.rstrip("\n")
        indent = len(body) - len(body.lstrip())
        while items and body.strip() and indent < items[-1]:
            items.pop()
        mark = ITEM.match(body) if is_prose else None
        new = "    " * len(items) + body[items[-1] if items else 0 :] if body.strip() else ""
        if mark:
            starts = not is_list_before and out and out[-1].strip() != ""
            if starts and not items:
                out.append("")
            items.append(len(mark[0]))
        is_list_before = bool(items)
        out.append(new)
    return "\n".join(out) + "\n"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    return output.replace(SHIM, posixpath.relpath("worker.js", posixpath.dirname(page.url) or "."))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    return output_content.replace(SHIM, "worker.js")


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Any) -> dict[str, Any]:
    """Leave out the link to edit a page, which the site has no place for."""
    page.edit_url = None
    return context
