"""Links of a sandbox that the kernel makes on another link, or on none: macvlan, ipvlan, vlan, dummy. Owns nothing.

How it works. The request goes to the namespace of the link below, and names the sandbox: the kernel makes the new link
there, under its final name. A link of that name on the host is not in the way, and nothing has to be renamed.

Source: linux net/core/rtnetlink.c (rtnl_newlink), include/uapi/linux/if_link.h.
"""

from __future__ import annotations

from errno import EOPNOTSUPP

from cni_py.journal import step
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import encode
from cni_py.netlink.constants import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Rtnl

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}


class NewLink(Value):
    """A desired link: its kind, the attributes of the kind, and the same as arguments of ``ip link add``.

    ``mtu`` 0, ``mac`` "": the kernel's choice.
    """

    kind: str
    data: Mapping[str, Any]
    words: tuple[str, ...]
    mtu: int = 0
    mac: str = ""


def macvlan(mode: str, queue_length: int = 0, mtu: int = 0, mac: str = "") -> NewLink:
    """``queue_length``: of broadcast packets, 0: the kernel's choice. Pure."""
    data = {"IFLA_MACVLAN_MODE": MACVLAN_MODES[mode], "IFLA_MACVLAN_BC_QUEUE_LEN": queue_length or None}
    words = ("mode", mode, *(("bcqueuelen", str(queue_length)) if queue_length else ()))
    return NewLink("macvlan", data, words, mtu, mac)


def ipvlan(mode: str, mtu: int = 0) -> NewLink:
    """Pure."""
    return NewLink("ipvlan", {"IFLA_IPVLAN_MODE": IPVLAN_MODES[mode]}, ("mode", mode), mtu)


def vlan(number: int, mtu: int = 0) -> NewLink:
    """Pure."""
    return NewLink("vlan", {"IFLA_VLAN_ID": number}, ("id", str(number)), mtu)


def dummy() -> NewLink:
    """Pure."""
    return NewLink("dummy", {}, ())


def create(rtnl: Rtnl, sandbox: NetNS, ifname: str, new: NewLink, master: Link | None = None) -> None:
    """Create the link in the sandbox, down.

    Args:
        rtnl: a socket of the namespace that ``master`` is in.

    Raises: NotAvailable if the kernel has no such kind; KernelRefused, EEXIST if ``ifname`` is taken.
    """
    message: dict[str, Any] = {"IFLA_IFNAME": ifname, "IFLA_NET_NS_FD": sandbox.fd}
    message |= {"IFLA_LINK": master.ifindex if master else None, "IFLA_MTU": new.mtu or None, "IFLA_ADDRESS": new.mac or None}
    message |= {"IFLA_LINKINFO": {"IFLA_INFO_KIND": new.kind, "IFLA_INFO_DATA": new.data or None}}
    words = [*rtnl.enter, "ip", "link", "add", ifname, *(["link", master.name] if master else []), "netns", sandbox.path]
    words += ["mtu", str(new.mtu)] if new.mtu else []
    words += ["address", new.mac] if new.mac else []
    with step(*words, "type", new.kind, *new.words):
        try:
            rtnl.change(encode("ifinfmsg", message), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno == EOPNOTSUPP:
                from cni_py.kernel.features import missing

                raise missing(new.kind, str(error.strerror)) from error
            raise
