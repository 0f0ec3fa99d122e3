"""The owner of a UDP port that our device needs, which the kernel's "Address already in use" does not name.

    with port_named(rtnl, "flannel.1"): …        KernelRefused names the port, its owner and "Backend.Port"
    owner_of(rtnl, 8472) -> 'the VXLAN device "cilium_vxlan"'

How it works. The socket of a tunnel device belongs to no process, so VXLAN devices are searched first. Then /proc/net/udp
lists the sockets with the port, and /proc/PID/fd their processes, as far as they are visible to this one.

Source: linux drivers/net/vxlan/vxlan_core.c (vxlan_sock_add), Documentation/networking/proc_net_tcp.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EADDRINUSE

from cni_py.errors import KernelRefused
from cni_py.kernel.vxlan import list_vxlans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.netlink.socket import Rtnl

_TABLES = ("/proc/net/udp", "/proc/net/udp6")


@contextmanager
def port_named(rtnl: Rtnl, device: str, port: int = 0, key: str = "Backend.Port") -> Iterator[None]:
    """Explain that a port is taken. ``port`` 0: that of the VXLAN device; ``key``: of the network configuration.

    Raises: KernelRefused.
    """
    try:
        yield
    except KernelRefused as error:
        if error.errno != EADDRINUSE:
            raise
        port = port or next((each.port for each in list_vxlans(rtnl) if each.name == device), 0)
        if not port:
            raise
        hint = f'stop it, or choose another port for all nodes, "{key}" in their configuration; see: ss -ulnp sport = :{port}'
        msg = f'"{device}" cannot receive: UDP port {port} is taken by {owner_of(rtnl, port, device)}'
        raise KernelRefused(msg, f"{error.msg}: {error.details}", hint, errno=EADDRINUSE) from error


def owner_of(rtnl: Rtnl, port: int, but: str = "") -> str:
    """Describe the owner; ``but``: a device to exclude."""
    for device in list_vxlans(rtnl):
        if device.port == port and device.name != but:
            return f'the VXLAN device "{device.name}"'
    inodes = set(_inodes(port))
    for pid in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):
        if inodes and _has_socket(pid, inodes):
            return f"{_name_of(pid)} (process {pid})"
    return "another device, or a program that is not visible from here"


def _inodes(port: int) -> Iterator[str]:
    """Inode numbers of the sockets with this port, in the network namespace of the calling thread."""
    for path in _TABLES:
        try:
            with open(path, encoding="ascii") as table:
                rows = [line.split() for line in table][1:]
        except OSError:  # no IPv6
            continue
        yield from (row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port)


def _has_socket(pid: str, inodes: set[str]) -> bool:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        return any(_target(f"/proc/{pid}/fd/{fd}") in wanted for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _name_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a program"
