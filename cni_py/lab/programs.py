"""Programs that a lab runs: of this installation, and of the system with their Debian packages."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cni_py import program
from cni_py.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of the system, with its Debian package. ``version``: part of the output of ``-V``; "": the name is enough."""

    package: str
    version: str = ""


TOOLS = {
    "ip": Tool("iproute2", "ip utility"),
    "bridge": Tool("iproute2", "bridge utility"),  # so is a CNI plugin called
    "nsenter": Tool("util-linux", "util-linux"),  # PyPI has one, too, which a virtual environment puts first in PATH
    "unshare": Tool("util-linux", "util-linux"),  # busybox's lacks --kill-child
    "setsid": Tool("util-linux"),
    "mount": Tool("mount"),
}
"""The programs that a lab executes. They are searched for in :data:`SYSTEM_PATH` alone, never in the user's PATH."""
ETCD_TOOLS = {"etcd": Tool("etcd-server"), "etcdctl": Tool("etcd-client")}
SYSTEM_PATH = ":".join(program.SYSTEM_DIRECTORIES)
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
"""The environment of what creates a lab and changes it."""
HIDDEN = ("/run/", "/var/run/", "/var/lib/cni/", "/var/lib/cni-py/", "/etc/cni/")
"""Directories that machines have of their own: they could not see an installation in these."""


class LabFailed(CniError):
    """A lab could not be created or used."""


class WrongUsage(LabFailed):
    """A command has too few or too many arguments; ``status``: its exit status."""

    status = 2


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of an installation. ``cni_path``: the directory of plugins; ``conflist``: the network's configuration."""

    cni_py: str
    flanneld: str
    cni_path: str
    conflist: str

    @classmethod
    def of(cls, prefix: str = "") -> Programs:
        """The installation that this code belongs to: a checkout's ``bin/``, or a prefix. ``prefix``: another one."""
        library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        if not prefix and os.path.exists(f"{library}/bin/cni-plugin"):
            home = library
            return cls(f"{home}/bin/cni-py", f"{home}/bin/flanneld", f"{home}/bin", f"{home}/conf/10-flannel.conflist")
        root = os.path.abspath(prefix or f"{library}/../..")
        conflist = f"{root}/cni-py/conf/10-flannel.conflist"
        return cls(f"{root}/bin/cni-py", f"{root}/bin/flanneld", f"{root}/cni/bin", conflist)

    def environment(self) -> dict[str, str]:
        """The environment of every command in the lab."""
        return ENVIRONMENT | {
            # Ours last: the bin/ of a checkout has plugins, one of which has the name of iproute2's bridge.
            "PATH": f"{SYSTEM_PATH}:{os.path.dirname(self.cni_py)}",
            "CNI_PATH": self.cni_path,
            "NETCONFPATH": "/etc/cni/net.d",
        }


@cache
def tool(name: str) -> str:
    """The path of a program of :data:`TOOLS` or :data:`ETCD_TOOLS`. Raises: LabFailed."""
    path = find_tool(name)
    if path is None:
        hint = f"install them (names as in Debian): apt-get install {_packages([name])}"
        raise LabFailed(f"program is missing: {name}", hint=hint)
    return path


def find_tool(name: str) -> str | None:
    """Return the first program of this name in :data:`SYSTEM_PATH` that is the one of its package, or None."""
    for directory in program.SYSTEM_DIRECTORIES:
        path = program.find(name, [directory])
        if path is not None and _is_of_package(path, name):
            return path
    return None


def _is_of_package(path: str, name: str) -> bool:
    version = (TOOLS | ETCD_TOOLS)[name].version
    if not version:
        return True
    done = subprocess.run([path, "-V"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    return version in done.stdout


def _packages(names: Sequence[str]) -> str:
    return " ".join(dict.fromkeys((TOOLS | ETCD_TOOLS)[name].package for name in names))


def check(programs: Programs, *, flanneld: str, with_etcd: bool) -> None:
    """Check that everything a lab needs exists. Raises: LabFailed, with everything that is missing."""
    if os.geteuid() != 0:
        raise LabFailed(
            "a lab must be created as root: it consists of network, mount and PID namespaces", hint="sudo cni-py lab up"
        )
    missing = [name for name in TOOLS | (ETCD_TOOLS if with_etcd else {}) if find_tool(name) is None]
    if missing:
        hint = f"install them (names as in Debian): apt-get install {_packages(missing)}"
        if set(missing) <= set(ETCD_TOOLS):
            hint += '; or use "--datastore file"'
        raise LabFailed(f"programs are missing: {', '.join(missing)}", hint=hint)
    for path, what in ((programs.cni_py, "cni-py"), (programs.conflist, "network configuration"), (flanneld, "flanneld")):
        if not os.path.isfile(path):
            raise LabFailed(f'{what} is missing: "{path}"', hint="make install installs it")
        if path.startswith(HIDDEN):
            raise LabFailed(f'"{path}" is invisible in a lab: nodes have a /{path.split("/")[1]} of their own', hint="move it")


def run(argv: Sequence[str], stdin: str = "", env: dict[str, str] | None = None, *, what: str = "") -> str:
    """Run a program until it exits; ``env``: by default :data:`ENVIRONMENT`. Returns: its output.

    Raises: LabFailed, with its error messages.
    """
    env = ENVIRONMENT if env is None else env
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise LabFailed(f"failed with status {done.returncode}: {what or ' '.join(argv)}", words[-2000:])
    return done.stdout
