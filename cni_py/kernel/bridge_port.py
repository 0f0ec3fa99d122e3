"""Ports of bridges as far as frames depend on them: state, flooding, VLANs. Reads only; link.py configures them.

    list_bridge_ports(rtnl) -> dict[int, BridgePort]     by ifindex; the bridges themselves are among them

Source: linux net/bridge/br_netlink.c (br_fill_ifinfo), include/uapi/linux/if_link.h, if_bridge.h.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EOPNOTSUPP
from struct import unpack_from

from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attributes, decode_header, encode
from cni_py.netlink.constants import (
    AF_BRIDGE,
    BRIDGE_VLAN_INFO_PVID,
    BRIDGE_VLAN_INFO_UNTAGGED,
    RTEXT_FILTER_BRVLAN,
    RTM_GETLINK,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.netlink.socket import Rtnl

FORWARDING = 3
STATES = {0: "disabled", 1: "listening", 2: "learning", FORWARDING: "forwarding", 4: "blocking"}
_IFINFOMSG_BYTES = 16
_IFLA_PROTINFO, _IFLA_AF_SPEC, _IFLA_BRIDGE_VLAN_INFO = 12, 26, 2
_STATE, _UNICAST_FLOOD, _MULTICAST_FLOOD, _BROADCAST_FLOOD, _LOCKED = 1, 9, 27, 30, 39


class BridgePort(Value):
    """A port, or the bridge itself.

    ``floods``, ``floods_multicast``, ``floods_broadcast``: it gets frames to addresses that the bridge does not know;
    ``is_locked``: only frames from known addresses come in; ``native``: the VLAN of frames that come in without a tag, 0 for
    none; ``vlans``: each VLAN that passes, and whether frames leave without its tag.
    """

    state: int = FORWARDING
    floods: bool = True
    floods_multicast: bool = True
    floods_broadcast: bool = True
    is_locked: bool = False
    native: int = 0
    vlans: Mapping[int, bool] = {}


def list_bridge_ports(rtnl: Rtnl) -> dict[int, BridgePort]:
    """Return every port of every bridge of the namespace by ifindex, and the bridges. Raises: KernelRefused."""
    question = encode("ifinfmsg", {"family": AF_BRIDGE, "IFLA_EXT_MASK": RTEXT_FILTER_BRVLAN})
    with nl.question(*rtnl.enter, "bridge", "-d", "vlan", "show"):
        try:
            answers = rtnl.dump(question, RTM_GETLINK)
        except nl.NetlinkError as error:
            if error.errno not in (EAFNOSUPPORT, EOPNOTSUPP):
                raise
            answers = []
    return {decode_header("ifinfmsg", answer)["index"]: _port_of(answer) for answer in answers}


def _port_of(answer: bytes) -> BridgePort:
    of = dict(attributes(answer, _IFINFOMSG_BYTES))
    port = {number: value[0] for number, value in attributes(of.get(_IFLA_PROTINFO, b"")) if value}
    listed = attributes(of.get(_IFLA_AF_SPEC, b""))
    infos = [unpack_from("=HH", item) for number, item in listed if number == _IFLA_BRIDGE_VLAN_INFO]
    return BridgePort(
        state=port.get(_STATE, FORWARDING),
        floods=bool(port.get(_UNICAST_FLOOD, 1)),
        floods_multicast=bool(port.get(_MULTICAST_FLOOD, 1)),
        floods_broadcast=bool(port.get(_BROADCAST_FLOOD, 1)),
        is_locked=bool(port.get(_LOCKED, 0)),
        native=next((vlan for flags, vlan in infos if flags & BRIDGE_VLAN_INFO_PVID), 0),
        vlans={vlan: bool(flags & BRIDGE_VLAN_INFO_UNTAGGED) for flags, vlan in infos},
    )
