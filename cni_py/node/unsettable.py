"""Kernel parameters that this process may not set: an unprivileged container has /proc/sys read-only, at every start.

    refused = Unsettable()
    refused.add(name, value, error)     from now on ``name in refused``: it is not tried again
    refused.warn()                      once for all of them, with the commands for the host; what has no effect is left out

How it works. A container that may not write /proc/sys is one fact, not one for each parameter. Which of them matter depends
on what the host has set: a new device gets ``forwarding`` from the host's, and a device that forwards takes no router's word
whatever ``accept_ra`` says. So in a usual DaemonSet nothing is missing, and one line of information says so.
"""

from __future__ import annotations

import re
from errno import EROFS

from cni_py.errors import KernelRefused
from cni_py.kernel import sysctl
from cni_py.node.log import info, warning

_ACCEPT_RA = re.compile(r"net/ipv6/conf/(.+)/accept_ra")
"""A parameter without effect if the device forwards (value 1)."""


class Unsettable:
    """Parameters that could not be set, each once."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._is_read_only = False
        self._warned: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def add(self, name: str, value: str, error: KernelRefused) -> None:
        self._values[name] = value
        self._reasons[name] = str(error)
        self._is_read_only |= error.errno == EROFS

    def warn(self) -> None:
        """Log what was added since the last call."""
        new = [name for name in self._values if name not in self._warned]
        self._warned.update(new)
        if not new:
            return
        if not self._is_read_only:
            for name in new:
                warning(self._reasons[name])
            return
        needed = [name for name in new if _matters(name)]
        if needed:
            commands = " ".join(f"{name}={self._values[name]}" for name in needed)
            warning(f"/proc/sys is read-only here, so it is to be set on the host: sysctl -w {commands}")
        else:
            info(f"/proc/sys is read-only here; the host has what pods need. Left as they are, without effect: {len(new)}")


def _matters(name: str) -> bool:
    found = _ACCEPT_RA.fullmatch(name)
    if found is None:
        return True
    try:
        return sysctl.read(f"net/ipv6/conf/{found[1]}/forwarding") != "1"
    except KernelRefused:
        return False
