"""integration/words: the list is readable, each rule finds something, and code is not prose."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("integration_words", str(ROOT / "integration" / "words"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


words = load()
LIST = """\
# a comment
[prose]
folders? -> directory
put back -> restore
[docstring]
whether -> Return whether
[name]
doomed -> stale
[keep]
docs/ | a folder of Go's | kept from Go
[skipped]
docs/old
[checked]
docs
"""


def findings(path: str, text: str) -> list[str]:
    return [str(finding) for finding in words.check(path, text, words.read_list(LIST))]


def test_prose_is_checked_in_comments_strings_and_docstrings() -> None:
    source = (
        '"""Lists a folder."""\nx = 1  # this Folder\ny = f"{folder.name} was put\\\n back"\nz = \'\'\'one\n\nfolders\'\'\'\n'
    )
    assert findings("a.py", source) == [
        "a.py:1: folder -> directory",
        "a.py:2: Folder -> directory",
        "a.py:7: folders -> directory",
    ]
    assert findings("a.py", '"""A file was put\nback."""\n') == ["a.py:1: put back -> restore"]


def test_first_word_of_each_docstring_is_checked() -> None:
    source = 'def f():\n    """Whether it is."""\nX = 1\n"""Whether X is."""\nclass Y:\n    """Return whether."""\n'
    assert findings("a.py", source) == [
        "a.py:2: docstring begins with 'Whether' -> Return whether",
        "a.py:4: docstring begins with 'Whether' -> Return whether",
    ]


def test_parts_of_names_are_checked() -> None:
    assert findings("a.py", "isDoomed = the_doomed = undoomed\n") == [
        "a.py:1: isDoomed -> stale",
        "a.py:1: the_doomed -> stale",
    ]


def test_other_files_are_checked_as_a_whole_but_for_what_is_kept() -> None:
    assert findings("docs/a.md", "a\nb folder\nput\nback; a folder of Go's\n") == [
        "docs/a.md:2: folder -> directory",
        "docs/a.md:3: put back -> restore",
    ]
    assert findings("README.md", "a folder of Go's") == ["README.md:1: folder -> directory"]


def test_scripts_without_a_suffix_are_python() -> None:
    assert findings("bin/x", "#!/usr/bin/env python3\nfolder = 1\n") == []
    assert findings("bin/x", "#!/bin/sh\nfolder=1\n") == ["bin/x:2: folder -> directory"]


def test_skipped_paths_and_links_are_not_read(tmp_path: Path) -> None:
    for name in ("docs/a.md", "docs/older.md", "docs/old/b.md", "docs/picture.svg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "docs" / "link.md").symlink_to("a.md")
    assert list(words.sources(tmp_path, ["docs"], ["docs/old"])) == ["docs/a.md", "docs/older.md"]


@pytest.mark.parametrize("text", ["folder -> directory\n", LIST.replace(" | kept from Go", "")])
def test_list_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"is in no section|not PATH"):
        words.read_list(text)


def test_every_path_of_the_list_exists() -> None:
    ours = words.read_list((ROOT / "integration" / "words.txt").read_text())
    paths = [*ours.checked, *(path for path, _ in ours.keep if path != "*")]
    assert [path for path in paths if not (ROOT / path).exists()] == []
