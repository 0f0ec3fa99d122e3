"""VRFs: a routing table that is a link, for the links whose master it is. Owns nothing. Source: linux drivers/net/vrf.c."""

from __future__ import annotations

from errno import EOPNOTSUPP

from cni_py.journal import step
from cni_py.kernel.features import missing
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import encode
from cni_py.netlink.constants import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.netlink.socket import Rtnl


def create_vrf(rtnl: Rtnl, name: str, table: int) -> None:
    """Create a VRF. Raises: KernelRefused, EEXIST if the name is taken; NotAvailable."""
    info = {"IFLA_INFO_KIND": "vrf", "IFLA_INFO_DATA": {"IFLA_VRF_TABLE": table}}
    with step(*rtnl.enter, "ip", "link", "add", name, "type", "vrf", "table", str(table)):
        try:
            message = encode("ifinfmsg", {"IFLA_IFNAME": name, "IFLA_LINKINFO": info})
            rtnl.change(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno == EOPNOTSUPP:
                raise missing("vrf", str(error.strerror)) from error
            raise
