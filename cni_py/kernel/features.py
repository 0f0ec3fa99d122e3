"""Whether this kernel has what a back end needs, asked before anything is made.

For a kind of link: a request with an impossible number of queues. The kernel looks for the kind first (and
loads its module), then refuses; so nothing is ever made, and no right is needed but CAP_NET_ADMIN.

    require_kind(rtnl, "vxlan" | "ipip" | "wireguard" | "tun") -> None      Raises: NotAvailable, which names the feature

Source: linux net/core/rtnetlink.c (rtnl_newlink, rtnl_create_link), drivers/net/tun.c.
"""

from __future__ import annotations

import os
from errno import EINVAL, EOPNOTSUPP
from fcntl import ioctl
from struct import pack

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.kernel import rtnl as nl
from cni_py.kernel.link import delete_link
from cni_py.kernel.nlattr import attribute, nested

TUN_PATH = "/dev/net/tun"
TUNGETFEATURES = 0x800454CF
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
    if kind == "tun":
        _require_tun()
    elif not _has_kind(rtnl, kind):
        raise _missing(kind, f'it knows no links of the kind "{kind}"')


def _has_kind(rtnl: nl.Rtnl, kind: str) -> bool:
    message = pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, _NAME)
    message += attribute(_IFLA_NUM_TX_QUEUES, pack("=I", 0xFFFFFFFF)) + nested(_IFLA_LINKINFO, attribute(_INFO_KIND, kind))
    with nl.question(*rtnl.enter, "ip", "link", "add", _NAME, "numtxqueues", "4294967295", "type", kind):
        try:
            rtnl.change(message, nl.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):
                raise
            return error.errno == EINVAL
    delete_link(rtnl, _NAME)  # a kernel that takes any number
    return True


def _require_tun() -> None:
    """rtnetlink makes no TUN devices, so its own file is asked. Opening it loads the module."""
    try:
        fd = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(fd, TUNGETFEATURES, bytes(4))
        finally:
            os.close(fd)
    except PermissionError as error:
        raise KernelRefused(f'could not open "{TUN_PATH}"', error.strerror or "", errno=error.errno or 0) from error
    except OSError as error:
        raise _missing("tun", f"{TUN_PATH}: {error.strerror}") from error


def _missing(kind: str, details: str) -> NotAvailable:
    name, option = _KNOWN.get(kind, (kind, "the option for it"))
    hint = f"try: modprobe {kind}; else choose another back end, or a kernel with {option}"
    return NotAvailable(f"this kernel has no {name} ({option})", details, hint)
