"""TUN devices: packets that the kernel sends over one are read by this process; what it writes is received by the kernel.

A device exists as long as its descriptor is open. If another process deletes it, it is opened again under the *same* descriptor
number (dup2): a thread that polls or reads the number in the meantime never gets the bytes of another file.

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
    """A :class:`~cni_py.kernel.device.Device`. ``fd``: its descriptor, non-blocking; -1 before it is first created."""

    def __init__(self, name: str, mtu: int) -> None:
        self.name, self.mtu, self.fd = name, mtu, -1
        self._lock = threading.Lock()
        self._is_closed = False

    def ensure(self, rtnl: Rtnl, warn: Callable[[str], None] = note) -> Link:  # noqa: ARG002 — nothing is recreated
        """Open the device if it is missing, and set its MTU. Raises: KernelRefused, NotAvailable."""
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
        """Delete the device permanently. Twice is fine."""
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
    """Create a TUN device. Returns: its descriptor, non-blocking: a read is a packet that the kernel sends over
    the device, a write one that it receives. Closing it deletes the device. Raises: KernelRefused, NotAvailable."""
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
