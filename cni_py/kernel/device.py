"""Devices that a node's daemon keeps, of any kind; and what the kinds without a module of their own share.

:class:`Device` is all that ``node/reconcile.py`` knows of a VXLAN, IPIP, WireGuard or TUN device. ``ensure_device`` is for
those that a name, a kind, an MTU and some attributes describe. It keeps a device that matches: a restart does not interrupt
its traffic. For a kind that the kernel does not support, the error names the missing feature.

Source: linux net/core/rtnetlink.c.
"""

from __future__ import annotations

from errno import ENODEV, EOPNOTSUPP
from typing import Protocol

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.features import missing
from cni_py.kernel.link import delete_link, find_link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import Message, encode
from cni_py.netlink.constants import IFF_UP, NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl


class Device(Protocol):
    """A desired link. With two methods, so that a new kind of device changes nothing in what keeps it."""

    @property
    def name(self) -> str:
        """The link's name, which no other device of the daemon has."""
        ...

    def ensure(self, rtnl: Rtnl, warn: Callable[[str], None] = note) -> Link:
        """Create the link, or correct the one that has the name. ``warn`` gets the reason if it must be re-created.

        Raises: KernelRefused, NotAvailable.
        """
        ...

    def matches(self, link: Link) -> bool:
        """Return whether nothing would be corrected, as far as ``link`` shows."""
        ...


def ensure_device(rtnl: Rtnl, name: str, kind: str, mtu: int, data: Message | None = None, words: Sequence[str] = ()) -> Link:
    """Ensure a device of this kind, MTU and data (IFLA_INFO_DATA), up; re-created if its data differ.

    ``words``: ``data`` as arguments of ``ip link add``. Raises: KernelRefused; NotAvailable if the kernel has no such kind.
    """
    link = find_link(rtnl, name)
    if link is not None and link.kind != kind:
        raise KernelRefused(
            f'"{name}" isn\'t a device of kind {kind}',
            f"it is of kind {link.kind or 'none'}",
            f"see what created it: ip -d link show {name}",
        )
    if link is not None and not _holds(link, data):
        delete_link(rtnl, name)
        link = None
    if link is None:
        with step(*rtnl.enter, "ip", "link", "add", name, "mtu", str(mtu), "type", kind, *words):
            _create(rtnl, name, kind, mtu, data)
        link = found(rtnl, name)
    ensure_up(rtnl, link, mtu)
    return found(rtnl, name)


def found(rtnl: Rtnl, name: str) -> Link:
    """Return a link that existed a moment ago. Raises: KernelRefused."""
    link = find_link(rtnl, name)
    if link is None:
        raise KernelRefused(f'"{name}" was deleted after its creation', errno=ENODEV)
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
