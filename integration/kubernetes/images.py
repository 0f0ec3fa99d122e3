"""Images that Kubernetes' suites ask for, made of Debian's packages and of Go programs in K8S_BIN; no registry is asked.

    python -m integration.kubernetes.images --bin K8S_BIN --to DIRECTORY      (make test-kubernetes does that)

Owns: which image is made of what. Their names and versions are those of `e2e.test --list-images`.

How it works. One layer has what the tests execute in a container: busybox, and from Debian curl, dig, getent, nc, ss, bash.
`agnhost`, the suites' own server and client, is a second layer; its source is test/images/agnhost of Kubernetes' module.
An image that is asked for and has no recipe here is left out: a test that needs it fails, with the image's name.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.bundle import archive, debian
from integration.clients import image

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kubernetes"
PACKAGES = ["bash", "bind9-dnsutils", "busybox-static", "curl", "iproute2", "libc-bin", "netcat-openbsd"]
LINKS = {"usr/bin/nc": "nc.openbsd", "usr/bin/sh": "bash"}
"""Links over busybox's: its shell would run its own nc, whatever PATH says."""
NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl*", "usr/lib/*/perl*", "usr/bin/perl*")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAME_OF_COREDNS = "localhost/coredns:1"
USERS = "root:x:0:0:root:/:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
GROUPS = "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Recipe:
    """``program``: of K8S_BIN, for a layer of its own, and its path there. ``tools``: with the layer of Debian's programs."""

    process: dict[str, Any]
    program: str = ""
    path: str = ""
    mode: int = 0o755
    tools: bool = True
    links: dict[str, str] = field(default_factory=dict)


AGNHOST = Recipe({"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}, "agnhost", links={"agnhost-2": "agnhost"})
SHELL = Recipe({"Cmd": ["sh"]})
SERVER = Recipe({"Cmd": ["busybox", "httpd", "-f", "-p", "80", "-h", "/var/www"]})
RECIPES = {
    "agnhost": AGNHOST,
    "busybox": Recipe({"Cmd": ["sh"]}, links={"usr/bin/sh": "busybox"}),  # a test compares its shell's messages
    "jessie-dnsutils": SHELL,
    "httpd": SERVER,
    "nginx": SERVER,
    "nonewprivs": Recipe({"Cmd": ["nnp"]}, "nnp", "usr/local/bin/nnp", 0o6755),
    "nonroot": Recipe({"Cmd": ["id"], "User": "1234"}),
    "pause": Recipe({"Entrypoint": ["/bin/sleep"], "Cmd": ["2147483647"]}),
}
"""Recipes by the last part of the image's name."""


def wanted(binaries: Path) -> list[str]:
    """Return the names that e2e.test asks for and that have a recipe."""
    shown = subprocess.run([binaries / "e2e.test", "--list-images"], capture_output=True, text=True, check=True).stdout
    public = [name for name in shown.split() if not name.startswith(("invalid.", "gcr.io/"))]
    return sorted(name for name in public if kind_of(name) in RECIPES and has_program(binaries, RECIPES[kind_of(name)]))


def has_program(binaries: Path, recipe: Recipe) -> bool:
    return not recipe.program or os.access(binaries / recipe.program, os.X_OK)


def kind_of(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[0]


def write_all(binaries: Path, to: Path) -> list[Path]:
    """Write every image into one archive each; those that exist already, and are newer than the programs, stay."""
    to.mkdir(parents=True, exist_ok=True)
    names = wanted(binaries)
    missing = [name for name in names if is_outdated(path_of(to, name), binaries, RECIPES[kind_of(name)])]
    if missing:
        tools = tools_layer(BUILD / "tools", PACKAGES, LINKS)
        for name in missing:
            recipe = RECIPES[kind_of(name)]
            layers = [tools] + ([program_layer(binaries, recipe)] if recipe.program or recipe.links else [])
            image.write(path_of(to, name), layers, {"Env": [f"PATH={PATH}"]} | recipe.process, name)
            print(f"images: {name}", file=sys.stderr, flush=True)
    if (binaries / "coredns").exists():
        recipe = Recipe({"Entrypoint": ["/coredns"]}, "coredns", tools=False)
        if is_outdated(path := to / "coredns.tar", binaries, recipe):
            image.write(path, [program_layer(binaries, recipe)], recipe.process, NAME_OF_COREDNS)
    return sorted(to.glob("*.tar"))


def path_of(to: Path, name: str) -> Path:
    return to / f"{name.rpartition('/')[2].replace(':', '-')}.tar"


def is_outdated(path: Path, binaries: Path, recipe: Recipe) -> bool:
    made_of = [Path(__file__), *([binaries / recipe.program] if recipe.program else [])]
    return not path.exists() or path.stat().st_mtime < max(each.stat().st_mtime for each in made_of)


def tools_layer(directory: Path, packages: list[str], links: dict[str, str] | None = None) -> bytes:
    """Return a layer of Debian's programs and busybox. ``links``: what packages create when they are configured."""
    apt = debian.Apt(directory.with_name("apt"), debian.host_architecture())
    root = directory / "root"
    unpack(apt.packages(apt.with_dependencies(packages)), root)
    for pattern in NOT_NEEDED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, target in (links or {}).items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    busybox = root / "usr/bin/busybox"
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        link = root / "usr/bin" / name
        if not any(os.path.lexists(root / "usr" / each / name) for each in ("bin", "sbin")):
            link.symlink_to("busybox")
    for name, text in {"etc/passwd": USERS, "etc/group": GROUPS, "var/www/index.html": "it works\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("dev", "etc", "home", "proc", "run", "sys", "tmp", "uploads"):
        (root / name).mkdir(exist_ok=True)
    return packed(root)


def unpack(packages: list[debian.Package], root: Path) -> None:
    """Unpack packages into a root in which bin, sbin and lib are links into usr, as in a Debian of today."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package.file], capture_output=True, check=True).stdout
        # tar writes through the links; `dpkg-deb -x` replaces them by the package's own directories
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", root], input=content, check=True)


def packed(root: Path) -> bytes:
    memory = io.BytesIO()
    archive.tar(memory, [(root, "")], 0)
    return memory.getvalue()


def program_layer(binaries: Path, recipe: Recipe) -> bytes:
    """Return a layer with a program of K8S_BIN, and links."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as made:
        for info, data in members(binaries, recipe):
            made.addfile(info, io.BytesIO(data))
    return memory.getvalue()


def members(binaries: Path, recipe: Recipe) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    path = recipe.path or recipe.program
    files = {path: (binaries / recipe.program).read_bytes()} if recipe.program else {}
    for name, data in (files | (certificate() if recipe is AGNHOST else {})).items():
        info = archive.entry(name, recipe.mode, 0)
        info.size = len(data)
        yield info, data
    for name, target in recipe.links.items():
        link = archive.entry(name, 0o777, 0)
        link.type, link.linkname = tarfile.SYMTYPE, target
        yield link, b""


def certificate() -> dict[str, bytes]:
    """Return the files that `agnhost porter` serves TLS with; the suites' clients do not verify it."""
    with tempfile.TemporaryDirectory() as directory:
        key, made = Path(directory) / "localhost.key", Path(directory) / "localhost.crt"
        asked = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=localhost"]
        subprocess.run(["openssl", "req", *asked, "-keyout", key, "-out", made], check=True, capture_output=True)
        return {each.name: each.read_bytes() for each in (key, made)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="images", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bin", type=Path, required=True, help="directory with e2e.test, agnhost and, for DNS, coredns")
    parser.add_argument("--to", type=Path, default=BUILD / "images", help="(%(default)s)")
    asked = parser.parse_args()
    for path in write_all(asked.bin, asked.to):
        print(path)


if __name__ == "__main__":
    main()
