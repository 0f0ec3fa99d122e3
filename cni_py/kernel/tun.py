"""A TUN device: what the kernel sends over it this process reads, and what this process writes comes in by it.

It lives as long as its descriptor is open. One that another process deletes is opened again under the *same* descriptor number
(dup2): a thread that polls or reads the number meanwhile never gets another file's bytes.

Source: linux Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
import threading
from errno import EBUSY, ENODEV, ENOENT, ENXIO
from struct import pack

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.device import ensure_up, found
from cni_py.kernel.features import missing
from cni_py.kernel.link import find_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

_TUN_FILE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


class Tun:
    """A :class:`~cni_py.kernel.device.Device`. ``fd``: its descriptor, not blocking; -1 before it is first made."""

    def __init__(self, name: str, mtu: int) -> None:
        self.name, self.mtu, self.fd = name, mtu, -1
        self._lock = threading.Lock()
        self._is_closed = False

    def ensure(self, rtnl: Rtnl, warn: Callable[[str], None] = note) -> Link:  # noqa: ARG002 — nothing is recreated
        """Open the device where it is missing, and give it its MTU. Raises: KernelRefused, NotAvailable."""
        with self._lock:
            if self._is_closed:
                raise KernelRefused(f'"{self.name}" was closed', errno=ENODEV)
            link = find_link(rtnl, self.name)
            if link is None or self.fd < 0:
                self._open()
                link = found(rtnl, self.name)
            ensure_up(rtnl, link, self.mtu)
            return found(rtnl, self.name)

    def matches(self, link: Link) -> bool:
        return link.kind == "tun" and link.mtu == self.mtu and link.is_up

    def close(self) -> None:
        """Delete the device, for good. Twice is fine."""
        with self._lock:
            self._is_closed = True
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1

    def _open(self) -> None:
        opened = open_tun(self.name)
        if self.fd < 0:
            self.fd = opened
        else:
            os.dup2(opened, self.fd, inheritable=False)
            os.close(opened)


def open_tun(name: str) -> int:
    """Create a TUN device; return its descriptor, not blocking: a read is a packet that the kernel sends over
    the device, a write one that comes in. With the descriptor the device goes. Raises: KernelRefused, NotAvailable."""
    with step("ip", "tuntap", "add", "dev", name, "mode", "tun"):
        try:
            fd = os.open(_TUN_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (ENOENT, ENXIO, ENODEV):
                raise missing("tun", f"{_TUN_FILE}: {error.strerror}") from error
            raise
        try:
            fcntl.ioctl(fd, _TUNSETIFF, pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            os.close(fd)
            if error.errno == EBUSY:
                raise KernelRefused(
                    f'"{name}" is in use by another process', error.strerror or "", "is another flanneld running?", errno=EBUSY
                ) from error
            raise
    return fd
