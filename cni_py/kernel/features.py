"""Kernel features that back ends and plugins need, and the error that names a missing one.

How a kind of link is tested: by a request with an impossible number of queues. The kernel looks up the kind first (and
loads its module), then rejects it; so nothing is ever created, and CAP_NET_ADMIN is sufficient.

    require_kind(rtnl, "vxlan" | "macvlan" | …) -> None             Raises: NotAvailable, which names the feature
    missing(kind, details) -> NotAvailable                          if it was detected in another way ("tun")

Source: linux net/core/rtnetlink.c (rtnl_newlink, rtnl_create_link).
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP

from cni_py.errors import NotAvailable
from cni_py.kernel.link import delete_link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import encode
from cni_py.netlink.constants import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK

_NAME = "cni-py-probe"
_KNOWN = {
    "vxlan": ("VXLAN", "CONFIG_VXLAN"),
    "ipip": ("IP-in-IP tunnels", "CONFIG_NET_IPIP"),
    "wireguard": ("WireGuard", "CONFIG_WIREGUARD"),
    "tun": ("TUN and TAP devices", "CONFIG_TUN"),
    "macvlan": ("macvlan links", "CONFIG_MACVLAN"),
    "ipvlan": ("ipvlan links", "CONFIG_IPVLAN"),
    "vlan": ("VLAN links", "CONFIG_VLAN_8021Q"),
    "dummy": ("dummy links", "CONFIG_DUMMY"),
    "rule": ("policy rules", "CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES"),
    "vrf": ("VRFs", "CONFIG_NET_VRF"),
    "ifb": ("intermediate functional blocks", "CONFIG_IFB"),
    "tbf": ("token bucket filter", "CONFIG_NET_SCH_TBF"),
    "ingress": ("ingress queueing discipline", "CONFIG_NET_SCH_INGRESS"),
    "u32": ("u32 classifier with mirred actions", "CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED"),
}
_MODULES = {"tbf": "sch_tbf", "ingress": "sch_ingress", "u32": "-a cls_u32 act_mirred", "vlan": "8021q"}
"""Names of modules that are not those of the kind."""


def require_kind(rtnl: nl.Rtnl, kind: str) -> None:
    """Check a kind of link. Raises: NotAvailable if the kernel does not have it; KernelRefused if the test is not permitted."""
    if not has_kind(rtnl, kind):
        raise missing(kind, f'it has no links of kind "{kind}"')


def has_kind(rtnl: nl.Rtnl, kind: str) -> bool:
    info = {"IFLA_INFO_KIND": kind}
    message = encode("ifinfmsg", {"IFLA_IFNAME": _NAME, "IFLA_NUM_TX_QUEUES": 0xFFFFFFFF, "IFLA_LINKINFO": info})
    with nl.question(*rtnl.enter, "ip", "link", "add", _NAME, "numtxqueues", "4294967295", "type", kind):
        try:
            rtnl.change(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):
                raise
            return error.errno == EINVAL
    delete_link(rtnl, _NAME)  # a kernel that accepts any number
    return True


def missing(kind: str, details: str) -> NotAvailable:
    """Return the error for a kernel without it, which names its configuration option."""
    name, option = _KNOWN.get(kind, (kind, "the option for it"))
    hint = f"try: modprobe {_MODULES.get(kind, kind)}; else use a kernel with {option}"
    return NotAvailable(f"this kernel has no {name} ({option})", details, hint)
