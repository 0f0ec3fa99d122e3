"""Build bundles and images: `make bundle` and `make image` call this.

    python -m integration.bundle bundle|image|tree [--arch amd64]

Everything is created below build/bundle; archives go to dist/.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from pathlib import Path

from integration.bundle import archive, image
from integration.bundle.build import ARCHITECTURES, BUILD, build, current
from integration.bundle.tree import Tree, version

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"


def say(text: str) -> None:
    print(f"bundle: {text}", file=sys.stderr, flush=True)


def write_bundle(tree: Tree, to: Path) -> Path:
    path = to / f"{tree.top.name}.tar.xz"
    archive.write_xz(path, tree.top, tree.top.name, archive.source_date())
    return path


def write_image(tree: Tree, to: Path) -> Path:
    path = to / f"cni-py-{version()}-{tree.architecture}.oci.tar"
    rootfs = BUILD / f"rootfs-{tree.architecture}"
    image.write(path, tree, rootfs, archive.source_date())
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="bundle", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bundle", "image", "tree"], help="tree: the directory below build/bundle alone")
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="default: both")
    parser.add_argument("--to", type=Path, default=DIST, help="where the archive goes")
    options = parser.parse_args()
    os.umask(0o022)
    for directory in (BUILD, options.to):
        directory.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for architecture in options.arch or ARCHITECTURES:
            start = time.monotonic()
            tree = current(architecture) if options.what == "tree" else build(architecture)
            path = {"bundle": write_bundle, "image": write_image, "tree": lambda tree, _: tree.top}[options.what](
                tree, options.to
            )
            size = f", {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else ""
            say(f"{path}{size}, in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
