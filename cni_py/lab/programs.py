"""Programs that a lab runs: of this installation, and of the system with their Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_py.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Sequence

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
}
ETCD_PACKAGES = {"etcd": "etcd-server", "etcdctl": "etcd-client"}
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
        return {
            # Ours last: the bin/ of a checkout has plugins, one of which has the name of iproute2's bridge.
            "PATH": f"{SYSTEM_PATH}:{os.path.dirname(self.cni_py)}",
            "CNI_PATH": self.cni_path,
            "NETCONFPATH": "/etc/cni/net.d",
            "LC_ALL": "C.UTF-8",
        }


def check(programs: Programs, *, flanneld: str, with_etcd: bool) -> None:
    """Check that everything a lab needs exists. Raises: LabFailed, with everything that is missing."""
    if os.geteuid() != 0:
        raise LabFailed(
            "a lab must be created as root: it consists of network, mount and PID namespaces", hint="sudo cni-py lab up"
        )
    wanted = PACKAGES | (ETCD_PACKAGES if with_etcd else {})
    missing = [name for name in wanted if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        packages = " ".join(dict.fromkeys(wanted[name] for name in missing))
        hint = f"install them (names as in Debian): apt-get install {packages}"
        if set(missing) <= set(ETCD_PACKAGES):
            hint += '; or use "--datastore file"'
        raise LabFailed(f"programs are missing: {', '.join(missing)}", hint=hint)
    for path, what in ((programs.cni_py, "cni-py"), (programs.conflist, "network configuration"), (flanneld, "flanneld")):
        if not os.path.isfile(path):
            raise LabFailed(f'{what} is missing: "{path}"', hint="make install installs it")
        if path.startswith(HIDDEN):
            raise LabFailed(f'"{path}" is invisible in a lab: nodes have a /{path.split("/")[1]} of their own', hint="move it")


def run(argv: Sequence[str], stdin: str = "", env: dict[str, str] | None = None, *, what: str = "") -> str:
    """Run a program until it exits. Returns: its output. Raises: LabFailed, with its error messages."""
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise LabFailed(f"failed with status {done.returncode}: {what or ' '.join(argv)}", words[-2000:])
    return done.stdout
