"""Download and unpack Debian's packages of either processor, by apt with a private state.

Owns: which packages a bundle consists of, and where they come from.

How it works. apt-get gets directories of its own below build/bundle (lists, archives, a sources.list), and the architecture
as an option. So it needs neither root nor `dpkg --add-architecture`, and reads and writes nothing of this machine's package
state; its proxies and keyrings apply. apt checks the signature of Debian's archive and the hash of every package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

SUITE = "bookworm"
PACKAGES = {
    "python3.11-minimal": "the interpreter",
    "libpython3.11-minimal": "the standard library's first part",
    "libpython3.11-stdlib": "the standard library, and its extension modules",
    "libc6": "C library and loader",
    "libgcc-s1": "required by pydantic-core and google-re2",
    "libstdc++6": "required by grpcio, protobuf and google-re2",
    "gcc-12-base": "the license of both",
    "zlib1g": "required by the interpreter",
    "libexpat1": "required by the interpreter",
    "libffi8": "required by ctypes, which calls libnftables",
    "libssl3": "TLS of urllib3; hashlib",
    "libnftables1": "masquerade, host ports, MAC check",
    "libnftnl11": "required by libnftables",
    "libmnl0": "required by libnftables",
    "libxtables12": "required by libnftables",
    "libjansson4": "required by libnftables",
    "libgmp10": "required by libnftables",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SECURITY = os.environ.get("DEBIAN_SECURITY_MIRROR", "http://deb.debian.org/debian-security")
FRESH_SECONDS = 24 * 3600.0


class Package(NamedTuple):
    """A downloaded package."""

    name: str
    version: str
    source: str
    file: Path
    sha256: str


class Apt:
    """apt-get for one architecture and suite, with its state below `directory`."""

    def __init__(self, directory: Path, architecture: str, suite: str = SUITE) -> None:
        self.directory = directory
        self.architecture = architecture
        self.suite = suite

    def packages(self, names: list[str]) -> list[Package]:
        """Download the newest version of each, unless it is here already."""
        self._prepare()
        archives = self.directory / "archives"
        missing = [name for name in names if not list(archives.glob(f"{name}_*.deb"))]  # the directory is emptied by an update
        if missing:
            self._run("download", *missing, cwd=archives)
        return [read(next(archives.glob(f"{name}_*.deb"))) for name in sorted(names)]

    def with_dependencies(self, names: list[str]) -> list[str]:
        """Return these packages and all that they depend on."""
        self._prepare()
        shown = self._run("install", "--simulate", "--no-install-recommends", *names, cwd=self.directory)
        return sorted({line.split()[1] for line in shown.splitlines() if line.startswith("Inst ")})

    def newest(self, name: str) -> str:
        """Return the package that a package without files, such as linux-image-cloud-arm64, depends on."""
        self._prepare()
        shown = self._run("depends", name, cwd=self.directory, program="apt-cache")
        return next(line.split()[1] for line in shown.splitlines() if line.split()[:1] == ["Depends:"])

    def _prepare(self) -> None:
        lists = self.directory / "lists"
        stamp = self.directory / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH_SECONDS:
            return
        for name in ("lists/partial", "archives/partial", "etc"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").write_text("")
        signed = f"[signed-by={KEYRING} arch={self.architecture}]"
        (self.directory / "sources.list").write_text(
            f"deb {signed} {MIRROR} {self.suite} main\ndeb {signed} {SECURITY} {self.suite}-security main\n"
        )
        shutil.rmtree(self.directory / "archives")
        (self.directory / "archives" / "partial").mkdir(parents=True)
        self._run("update", cwd=lists)
        stamp.touch()

    def _run(self, *words: str, cwd: Path, program: str = "apt-get") -> str:
        settings = {
            "Dir::State": self.directory,
            "Dir::State::status": self.directory / "status",
            "Dir::State::lists": self.directory / "lists",
            "Dir::Cache": self.directory,
            "Dir::Etc::sourcelist": self.directory / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "APT::Architecture": self.architecture,
            "APT::Architectures::": self.architecture,
            "APT::Sandbox::User": "root",  # the cache is below this checkout, which user _apt may be unable to enter
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        done = subprocess.run([program, "-q", *options, *words], cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"bundle: {program} {words[0]} of {self.architecture} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout


def read(file: Path) -> Package:
    """Return what a package says of itself."""
    shown = subprocess.run(
        ["dpkg-deb", "-W", "--showformat=${Package}\n${Version}\n${source:Package}", str(file)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return Package(shown[0], shown[1], shown[2] or shown[0], file, hashlib.sha256(file.read_bytes()).hexdigest())


def unpack(packages: list[Package], directory: Path) -> None:
    """Unpack packages over each other into a new directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", str(package.file), str(directory)], check=True)


def host_architecture() -> str:
    """Return Debian's name of this machine's processor."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
