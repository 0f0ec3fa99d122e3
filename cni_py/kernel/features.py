"""Whether this kernel has what a back end needs, and the error that names what it lacks.

How it asks for a kind of link: a request with an impossible number of queues. The kernel looks for the kind first (and
loads its module), then refuses; so nothing is ever made, and no right is needed but CAP_NET_ADMIN.

    require_kind(rtnl, "vxlan" | "ipip" | "wireguard") -> None      Raises: NotAvailable, which names the feature
    missing(kind, details) -> NotAvailable                          for who has found it out otherwise ("tun")

Source: linux net/core/rtnetlink.c (rtnl_newlink, rtnl_create_link).
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from struct import pack

from cni_py.errors import NotAvailable
from cni_py.kernel.link import delete_link, ifinfomsg
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, nested
from cni_py.netlink.constants import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK

_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NUM_TX_QUEUES, _INFO_KIND = 3, 18, 31, 1
_NAME = "cni-py-probe"
_KNOWN = {
    "vxlan": ("VXLAN", "CONFIG_VXLAN"),
    "ipip": ("IP-in-IP tunnels", "CONFIG_NET_IPIP"),
    "wireguard": ("WireGuard", "CONFIG_WIREGUARD"),
    "tun": ("TUN devices", "CONFIG_TUN"),
}


def require_kind(rtnl: nl.Rtnl, kind: str) -> None:
    """Raises: NotAvailable where the kernel has no such links; KernelRefused where it does not let us ask."""
    if not _has_kind(rtnl, kind):
        raise missing(kind, f'it knows no links of the kind "{kind}"')


def _has_kind(rtnl: nl.Rtnl, kind: str) -> bool:
    message = ifinfomsg() + attribute(_IFLA_IFNAME, _NAME)
    message += attribute(_IFLA_NUM_TX_QUEUES, pack("=I", 0xFFFFFFFF)) + nested(_IFLA_LINKINFO, attribute(_INFO_KIND, kind))
    with nl.question(*rtnl.enter, "ip", "link", "add", _NAME, "numtxqueues", "4294967295", "type", kind):
        try:
            rtnl.change(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):
                raise
            return error.errno == EINVAL
    delete_link(rtnl, _NAME)  # a kernel that takes any number
    return True


def missing(kind: str, details: str) -> NotAvailable:
    """The error for a kernel without it, by the name of what it is built with."""
    name, option = _KNOWN.get(kind, (kind, "the option for it"))
    hint = f"try: modprobe {kind}; else choose another back end, or a kernel with {option}"
    return NotAvailable(f"this kernel has no {name} ({option})", details, hint)
