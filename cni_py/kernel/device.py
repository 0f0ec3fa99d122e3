"""Devices of kinds that a kernel may lack (ipip, wireguard), TUN devices, and what all of flanneld's devices need: MTU, up.

``ensure_device`` keeps a device that matches: a restart does not interrupt its traffic. For a kind
that the kernel does not support, the error names the missing feature.

Source: linux net/core/rtnetlink.c, net/ipv4/ipip.c, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
from errno import EBUSY, ENODEV, ENOENT, ENXIO, EOPNOTSUPP
from struct import pack

from cni_py.errors import KernelRefused
from cni_py.journal import step
from cni_py.kernel.features import missing
from cni_py.kernel.link import delete_link, find_link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import Message, encode
from cni_py.netlink.constants import IFF_UP, NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

_TUN_FILE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def ensure_device(rtnl: Rtnl, name: str, kind: str, mtu: int, data: Message | None = None, words: Sequence[str] = ()) -> Link:
    """Ensure a device of this kind, MTU and data (IFLA_INFO_DATA), up; re-created if its data differ.

    ``words``: ``data`` as arguments of ``ip link add``. Raises: KernelRefused; NotAvailable if the kernel has no such kind.
    """
    link = find_link(rtnl, name)
    if link is not None and link.kind != kind:
        raise KernelRefused(
            f'"{name}" isn\'t a device of kind {kind}', f"it is of kind {link.kind or 'none'}", f"remove it: ip link del {name}"
        )
    if link is not None and not _holds(link, data):
        delete_link(rtnl, name)
        link = None
    if link is None:
        with step(*rtnl.enter, "ip", "link", "add", name, "mtu", str(mtu), "type", kind, *words):
            _create(rtnl, name, kind, mtu, data)
        link = find_link(rtnl, name)
        if link is None:
            raise KernelRefused(f'"{name}" was deleted after its creation', errno=ENODEV)
    ensure_up(rtnl, link, mtu)
    return link


def _create(rtnl: Rtnl, name: str, kind: str, mtu: int, data: Message | None) -> None:
    info = {"IFLA_INFO_KIND": kind, "IFLA_INFO_DATA": data}
    message = encode("ifinfmsg", {"IFLA_IFNAME": name, "IFLA_MTU": mtu, "IFLA_LINKINFO": info})
    try:
        rtnl.change(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    except nl.NetlinkError as error:
        if error.errno == EOPNOTSUPP:
            raise missing(kind, str(error.strerror)) from error
        raise


def _holds(link: Link, data: Message | None) -> bool:
    """Return whether the device has each of these attributes."""
    return all(link.data.get(name) == value for name, value in (data or {}).items())


def ensure_up(rtnl: Rtnl, link: Link, mtu: int) -> None:
    """Set its MTU and set it up, if necessary. Raises: KernelRefused."""
    if link.is_up and link.mtu == mtu:
        return
    with step(*rtnl.enter, "ip", "link", "set", link.name, "mtu", str(mtu), "up"):
        rtnl.change(
            encode("ifinfmsg", {"index": link.ifindex, "flags": IFF_UP, "change": IFF_UP, "IFLA_MTU": mtu}), RTM_NEWLINK
        )


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
