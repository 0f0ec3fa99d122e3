"""Assemble a bundle: interpreter, libraries, the modules that are used, our package, bytecode.

Owns: the layout of the archive and of PREFIX/cni-py/lib on a host that it is installed on, which are the same directory:

    install                       a script of the shell: starts lib/integration/install by the bundle's own loader
    lib/python                    the interpreter; `install` writes its loader and where its libraries are (DT_RPATH)
    lib/ld-linux-*, lib/*.so.*    the loader, the C library, what Python and libnftables need
    lib/lib/python3.11/           the standard library, as far as it is used
    lib/python._pth               where the interpreter finds it; `install` writes absolute paths
    lib/cni_py, lib/grpc, …       our package and the locked ones, as far as they are used
    lib/bin, lib/conf, lib/integration, lib/LICENSE, lib/licenses    what the installer copies from
    lib/bundle.json               version, architecture, digest; every file with its size
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from integration.bundle import closure, elf, host, isolation
from integration.bundle.debian import Package
from integration.bundle.wheels import MACHINES, Wheel

ROOT = Path(__file__).resolve().parents[2]
STANDARD_LIBRARY = "usr/lib/python3.11"
ROOTS = {
    "yaml": "a kubeconfig; imported by name (cni_py/datastore/kubernetes/config.py)",
    "compileall": "bytecode, when the bundle is built",
}
"""Modules that no import statement in cni_py or in the installer names."""
INSTALLER = ("integration/install", "integration/bundle/elf.py", "integration/bundle/host.py")
START = """#!/bin/sh
# Install cni-py on this host: ./install --help
here=$(cd "${{0%/*}}" && pwd) || exit 1
exec "$here/lib/{loader}" --library-path "$here/lib" "$here/lib/python" -IS "$here/lib/integration/install" "$@"
"""
"""The interpreter's own field names no loader before the installation."""


def version() -> str:
    text = (ROOT / "cni_py" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)
    assert found
    return found[1]


def roots() -> list[str]:
    """Return every module in cni_py, and what the installer imports."""
    ours = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "cni_py").rglob("*.py")]
    names = [".".join(file.parent.parts if file.name == "__init__" else file.parts) for file in ours]
    installer = closure.Module("install", ROOT / "integration" / "install", ROOT)
    return [*names, *ROOTS, *(name for name in closure.imported(installer) if not name.startswith("integration"))]


class Tree:
    """The directory of one architecture: `top` is what the archive contains, `lib` its library."""

    def __init__(self, top: Path, architecture: str, debian: Path, wheels: Path, patchelf: str) -> None:
        self.top = top
        self.lib = top / "lib"
        self.architecture = architecture
        self.debian = debian
        self.wheels = wheels
        self.patchelf = patchelf
        self.standard = self.lib / "lib" / "python3.11"
        self.packages: list[Package] = []
        self.used_wheels: list[Wheel] = []

    def assemble(self, packages: list[Package], wheels: list[Wheel]) -> None:
        """Create everything but the bytecode."""
        self.packages = packages
        shutil.rmtree(self.top, ignore_errors=True)
        self.standard.mkdir(parents=True)
        self._copy_modules()
        self._copy_package_data(wheels)
        self._copy_programs()
        self._copy_libraries()
        isolation.isolate(self.lib, self.architecture)
        self._copy_installer()
        self._copy_licenses(packages)
        (self.lib / host.PATH_FILE).write_text("lib/python3.11\n.\nlib/python3.11/lib-dynload\n")
        self._set_modes()

    def compile(self, interpreter: list[str]) -> None:
        """Compile all modules by an interpreter of this version; bytecode is the same for every processor."""
        words = ["-ISB", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(self.lib), str(self.lib)]
        subprocess.run([*interpreter, *words], check=True, env={"PATH": os.environ["PATH"]})

    def finish(self) -> None:
        """Write the list of files."""
        self._set_modes()
        files = sorted(path for path in self.lib.rglob("*") if is_listed(path))
        whole = hashlib.sha256()
        sizes = {}
        for file in files:
            name = str(file.relative_to(self.lib))
            data = file.read_bytes()
            sizes[name] = len(data)
            whole.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        about = {
            "version": version(),
            "architecture": self.architecture,
            "machine": MACHINES[self.architecture],
            "loader": self.loader,
            "python": self.python_version,
            "digest": whole.hexdigest(),
            "files": sizes,
        }
        (self.lib / "bundle.json").write_text(json.dumps(about, indent=0) + "\n")

    @property
    def python_version(self) -> str:
        return next(package.version for package in self.packages if package.name == "python3.11-minimal")

    @property
    def loader(self) -> str:
        return next(file.name for file in self.lib.iterdir() if file.name.startswith("ld-linux"))

    @property
    def interpreter(self) -> list[str]:
        """The command that starts the bundle's interpreter at the place where it was built."""
        return [str(self.lib / self.loader), "--library-path", str(self.lib), str(self.lib / "python")]

    def _set_modes(self) -> None:
        for path in [self.top, *self.top.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or is_program(path) else 0o644)

    def _copy_modules(self) -> None:
        """Copy what the import statements lead to; a module's directory decides where it goes."""
        standard = self.debian / STANDARD_LIBRARY
        dynload = standard / "lib-dynload"
        to = {standard: self.standard, dynload: self.standard / "lib-dynload", self.wheels: self.lib}
        for module in closure.modules(roots(), [standard, dynload, ROOT, self.wheels]).values():
            if module.directory in to:
                copy(module.file, to[module.directory] / module.file.relative_to(module.directory))
        shutil.copytree(ROOT / "cni_py", self.lib / "cni_py", ignore=shutil.ignore_patterns("__pycache__"))

    def _copy_package_data(self, wheels: list[Wheel]) -> None:
        """Copy the certificates of grpc, and metadata and licenses of every package that is used."""
        copy(*(root / "grpc" / "_cython" / "_credentials" / "roots.pem" for root in (self.wheels, self.lib)))
        by_name = {normalized(wheel.name): wheel for wheel in wheels}
        for information in sorted(self.wheels.glob("*.dist-info")):
            record = (information / "RECORD").read_text().splitlines()
            if any((self.lib / line.split(",")[0]).is_file() for line in record if line.split(",")[0].endswith((".py", ".so"))):
                self.used_wheels.append(by_name[normalized(information.name.split("-")[0])])
                for file in information.rglob("*"):
                    if file.is_file() and file.name not in ("INSTALLER", "REQUESTED", "RECORD"):
                        copy(file, self.lib / file.relative_to(self.wheels))

    def _copy_programs(self) -> None:
        python = self.lib / "python"
        copy(self.debian / "usr/bin/python3.11", python)
        words = ["--set-interpreter", elf.PLACEHOLDER, "--force-rpath", "--set-rpath", elf.PLACEHOLDER]
        subprocess.run([self.patchelf, *words, str(python)], check=True)
        loader = next((self.debian / "lib" / isolation.TRIPLETS[self.architecture]).glob("ld-linux*"))
        copy(loader, self.lib / loader.name)
        (self.top / "install").write_text(START.format(loader=loader.name))

    def _copy_libraries(self) -> None:
        """Copy every library that a program or a library names, from Debian's directories."""
        waiting = [self.lib / "python", *self.lib.rglob("*.so"), self._find("libnftables.so.1")]
        seen: set[str] = set()
        while waiting:
            for name in self._needed(waiting.pop()):
                if name not in seen and not name.startswith("ld-linux"):
                    seen.add(name)
                    waiting.append(self._find(name))
        for name in sorted({*seen, "libnftables.so.1"}):
            copy(self._find(name), self.lib / name)

    def _needed(self, file: Path) -> list[str]:
        path = self._ask("--print-rpath", file)
        if path and file != self.lib / "python":
            raise SystemExit(f"bundle: {file} searches libraries in {path}: that would hide the interpreter's DT_RPATH")
        return self._ask("--print-needed", file).split()

    def _ask(self, question: str, file: Path) -> str:
        return subprocess.run([self.patchelf, question, str(file)], capture_output=True, text=True, check=True).stdout.strip()

    def _find(self, name: str) -> Path:
        triplet = isolation.TRIPLETS[self.architecture]
        for directory in (f"lib/{triplet}", f"usr/lib/{triplet}"):
            if (self.debian / directory / name).exists():
                return self.debian / directory / name
        raise SystemExit(f"bundle: no Debian package has {name}: add it to integration/bundle/debian.py")

    def _copy_installer(self) -> None:
        shutil.copytree(ROOT / "bin", self.lib / "bin", symlinks=True)
        shutil.copytree(ROOT / "conf", self.lib / "conf")
        for name in (*INSTALLER, "LICENSE"):
            copy(ROOT / name, self.lib / name)

    def _copy_licenses(self, packages: list[Package]) -> None:
        """Copy the license of each package; packages of one source share one, by a link that leads to another package."""
        for package in packages:
            license_ = self.debian / "usr/share/doc" / package.name / "copyright"
            if license_.is_file():
                copy(license_, self.lib / "licenses" / package.name)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def copy(file: Path, to: Path) -> None:
    """Copy a file's content; a link is followed."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def is_program(path: Path) -> bool:
    return path.name in ("install", "python") or path.name.startswith("ld-linux") or path.parent.name == "bin"


def is_listed(path: Path) -> bool:
    """Return whether an installed copy has this file unchanged in size."""
    return path.is_file() and not path.is_symlink() and path.name not in (host.PATH_FILE, "bundle.json")
