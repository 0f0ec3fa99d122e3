"""Fixtures of the bundle's tests: the tree of this machine's processor, built once a day and for each change."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.bundle import archive, build
from integration.bundle.build import BUILD
from integration.bundle.debian import KEYRING, host_architecture
from integration.bundle.tree import Tree
from support.namespaces import PATH


def built(architecture: str) -> Tree:
    """Build the tree of an architecture, in one process at a time. Skips the test where there is no apt."""
    if shutil.which("apt-get", path=PATH) is None or not KEYRING.exists():
        pytest.skip("no apt-get, or no debian-archive-keyring")
    with one_at_a_time():
        return build.current(architecture)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for the other processes that build."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copy_tree(directory: Path, to: Path) -> Path:
    """Copy a tree by links to its files, where that is possible: 75 MB for each test would take most of its time."""

    def link(file: str, new: str) -> None:
        try:
            os.link(file, new)
        except OSError:  # another file system
            shutil.copy2(file, new)

    shutil.copytree(directory, to, symlinks=True, copy_function=link)
    return to


def other_version(unpacked: Path, to: Path, number: str) -> Path:
    """Return a bundle of another version, with the same content otherwise."""
    copy_tree(unpacked, to)
    about = json.loads((to / "lib" / "bundle.json").read_text())
    code = to / "lib" / "cni_py" / "__init__.py"
    text = code.read_text().replace(f'"{about["version"]}"', f'"{number}"')
    code.unlink()  # the file may be another tree's too
    code.write_text(text)
    shutil.rmtree(to / "lib" / "cni_py" / "__pycache__")
    about["files"] = {name: size for name, size in about["files"].items() if "cni_py/__pycache__/" not in name}
    about["files"]["cni_py/__init__.py"] = code.stat().st_size
    about |= {"version": number, "digest": "f" * 64}
    (to / "lib" / "bundle.json").unlink()
    (to / "lib" / "bundle.json").write_text(json.dumps(about))
    return to


@pytest.fixture(scope="session")
def tree() -> Tree:
    """The bundle of this machine's processor, as a directory."""
    return built(host_architecture())


@pytest.fixture
def tree_for() -> Callable[[str], Tree]:
    """Return the bundle of a processor."""
    return built


@pytest.fixture
def unpacked(tree: Tree, tmp_path: Path) -> Path:
    """The directory of the archive, unpacked at another place than where it was built."""
    to = tmp_path / "unpacked" / tree.top.name
    return copy_tree(tree.top, to)


@pytest.fixture(scope="session", autouse=True)
def _date() -> None:
    """Fail early where the time of an archive is unknown."""
    archive.source_date()
