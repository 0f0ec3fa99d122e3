"""A device that a node's daemon keeps, of whatever kind; and what kinds without a module of their own parts share.

:class:`Device` is all that ``node/reconcile.py`` knows of a VXLAN, IPIP, WireGuard or TUN device. ``ensure_device`` is for
those that a name, a kind, an MTU and some attributes describe: a device that has these is reused, so a restart does not
interrupt its traffic. A kind that the kernel does not know is refused by the name of what the kernel lacks.

Source: linux net/core/rtnetlink.c.
"""

from __future__ import annotations

from errno import ENODEV, EOPNOTSUPP
from struct import pack
from typing import Protocol

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.features import missing
from cni_py.kernel.link import delete_link, find_link, ifinfomsg
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, nested
from cni_py.netlink.constants import IFF_UP, NLM_F_CREATE, NLM_F_EXCL, RTM_GETLINK, RTM_NEWLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 3, 4, 18
_INFO_KIND, _INFO_DATA = 1, 2


class Device(Protocol):
    """A link as it is to be. Two methods, so that a new kind of device changes nothing in what keeps it."""

    @property
    def name(self) -> str:
        """What the link is called; no other device of the daemon has this name."""
        ...

    def ensure(self, rtnl: Rtnl, warn: Callable[[str], None] = note) -> Link:
        """Create the link, or correct the one that has the name. ``warn`` gets the reason where it must be recreated.

        Raises: KernelRefused, NotAvailable.
        """
        ...

    def matches(self, link: Link) -> bool:
        """Return whether nothing would be corrected, as far as ``link`` tells."""
        ...


def ensure_device(rtnl: Rtnl, name: str, kind: str, mtu: int, data: bytes = b"", words: Sequence[str] = ()) -> Link:
    """A device of this kind, MTU and data (attributes of IFLA_INFO_DATA), up; made anew where its data differ.

    ``words``: ``data`` as ``ip link add`` takes it. Raises: KernelRefused; NotAvailable where the kernel has no such kind.
    """
    link = find_link(rtnl, name)
    if link is not None and link.kind != kind:
        raise KernelRefused(
            f'"{name}" isn\'t a device of kind {kind}', f"it is of kind {link.kind or 'none'}", f"remove it: ip link del {name}"
        )
    if link is not None and not _holds(rtnl, name, data):
        delete_link(rtnl, name)
        link = None
    if link is None:
        with step(*rtnl.enter, "ip", "link", "add", name, "mtu", str(mtu), "type", kind, *words):
            _create(rtnl, name, kind, mtu, data)
        link = found(rtnl, name)
    ensure_up(rtnl, link, mtu)
    return found(rtnl, name)


def found(rtnl: Rtnl, name: str) -> Link:
    """Return the link that was there a moment ago. Raises: KernelRefused."""
    link = find_link(rtnl, name)
    if link is None:
        raise KernelRefused(f'"{name}" has gone since it was made', errno=ENODEV)
    return link


def _create(rtnl: Rtnl, name: str, kind: str, mtu: int, data: bytes) -> None:
    info = attribute(_INFO_KIND, kind) + (nested(_INFO_DATA, data) if data else b"")
    message = ifinfomsg() + attribute(_IFLA_IFNAME, name) + attribute(_IFLA_MTU, pack("=I", mtu)) + nested(_IFLA_LINKINFO, info)
    try:
        rtnl.change(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    except nl.NetlinkError as error:
        if error.errno == EOPNOTSUPP:
            raise missing(kind, str(error.strerror)) from error
        raise


def _holds(rtnl: Rtnl, name: str, data: bytes) -> bool:
    """Whether the device has each of these attributes."""
    with nl.question(*rtnl.enter, "ip", "-d", "link", "show", name):
        answer = rtnl.get(ifinfomsg() + attribute(_IFLA_IFNAME, name), RTM_GETLINK)
    info = dict(attributes(dict(attributes(answer[16:])).get(_IFLA_LINKINFO, b"")))
    there = dict(attributes(info.get(_INFO_DATA, b"")))
    return all(there.get(kind) == value for kind, value in attributes(data))


def ensure_up(rtnl: Rtnl, link: Link, mtu: int) -> None:
    """Give it this MTU and set it up, unless it is so. Raises: KernelRefused."""
    if link.is_up and link.mtu == mtu:
        return
    with step(*rtnl.enter, "ip", "link", "set", link.name, "mtu", str(mtu), "up"):
        rtnl.change(ifinfomsg(link.ifindex, IFF_UP, IFF_UP) + attribute(_IFLA_MTU, pack("=I", mtu)), RTM_NEWLINK)
