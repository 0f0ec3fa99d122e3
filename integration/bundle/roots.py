"""Root directories of other hosts, for tests: one with nothing but a static busybox, and Debians without Python.

    root = busybox_root(tmp_path / "root")
    root.run("/opt/bin/flanneld --version")          # in mount, network and PID namespaces of its own

Debian's are made by debootstrap, which takes minutes, and kept below build/bundle/roots.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from integration.bundle.build import BUILD
from integration.bundle.debian import KEYRING, MIRROR
from support.namespaces import PATH

ENTER = """
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/dev"
mknod -m 666 "$1/dev/null" c 1 3
mknod -m 444 "$1/dev/urandom" c 1 9
ip link set lo up
script=$2; root=$1; shift 2
exec "$@" chroot "$root" /bin/sh -c "$script"
"""
POD = """
/bin/unshare -n sleep 1000 &
pod=$!
until [ "$(readlink /proc/$pod/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do :; done
export CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/proc/$pod/ns/net CNI_PATH=/opt/cni/bin
"""
"""Start of a script: a process with a network namespace of its own, and the environment of a call for it."""
APPLETS = ("cat", "cp", "ip", "ls", "mkdir", "mv", "readlink", "rm", "sh", "sleep", "tar", "unshare", "xz")


class Root:
    """A root directory, in which scripts run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, script: str, *tracer: str, fails: bool = False) -> str:
        """Run a script. `tracer`: a command that is put before it, outside. Returns: its output."""
        argv = ["unshare", "-mnpf", "/bin/sh", "-ec", ENTER, "sh", str(self.path), script, *tracer]
        done = subprocess.run(argv, env={"PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def busybox_root(path: Path) -> Root:
    """Create a root without any library. Skips the test where there is no static busybox."""
    busybox = shutil.which("busybox", path=PATH)
    if busybox is None:
        pytest.skip("no busybox (package busybox-static)")
    for name in ("bin", "dev", "proc", "run", "tmp", "etc", "var/lib", "usr"):
        (path / name).mkdir(parents=True)
    shutil.copy(busybox, path / "bin" / "busybox")
    for name in APPLETS:
        (path / "bin" / name).symlink_to("busybox")
    return Root(path)


def debian_root(suite: str) -> Root:
    """Return a Debian without Python, made once. Skips the test where debootstrap is missing, or cannot make one."""
    path = BUILD / "roots" / suite
    if not path.exists():
        program = shutil.which("debootstrap", path=PATH)
        if program is None:
            pytest.skip("no debootstrap (package of that name)")
        new = path.with_name(f".{suite}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        words = [program, "--variant=minbase", f"--keyring={KEYRING}", suite, str(new), MIRROR]
        done = subprocess.run(words, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"debootstrap could not make {suite}: {done.stdout.strip().splitlines()[-1]}")
        new.rename(path)
    return Root(path)
