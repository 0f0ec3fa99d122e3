"""VXLAN devices: one for IPv4 peers, one for IPv6 peers.

An existing compatible device is reused: it keeps carrying traffic while flanneld is restarted, and keeps its MAC address,
which the peers know. A renamed one gets its name back. Properties that the kernel can change in
place are changed (MTU, MAC address, learning, ARP, a bridge that it is a port of); if any other differs, the
device is re-created, with its old MAC address unless another one is configured.

    Vxlan(name, vni, port, local, underlay, mac, mtu, gbp=False, learning=False)     mac "": any; port 0: the kernel's
    ensure_vxlan(rtnl, wanted, warn=note) -> Link         the device is down: link.set_up() after adding its address
    find_vxlan(rtnl, name) -> VxlanDetails | None

Source: linux drivers/net/vxlan/vxlan_core.c; flannel-io/flannel pkg/backend/vxlan/device.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from errno import EEXIST, ENODEV, EOPNOTSUPP
from ipaddress import ip_address

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.address import Address
from cni_py.kernel.features import require_kind
from cni_py.kernel.link import (
    Link,
    delete_link,
    find_link,
    list_links,
    random_mac,
    release,
    rename,
    set_arp_on,
    set_mac,
    set_mtu,
)
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import Message, encode
from cni_py.netlink.constants import IFF_NOARP, NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK

_OFF = (
    "IFLA_VXLAN_TTL",
    "IFLA_VXLAN_TOS",
    "IFLA_VXLAN_PROXY",
    "IFLA_VXLAN_RSC",
    "IFLA_VXLAN_L2MISS",
    "IFLA_VXLAN_L3MISS",
    "IFLA_VXLAN_UDP_ZERO_CSUM6_TX",
    "IFLA_VXLAN_UDP_ZERO_CSUM6_RX",
)


@dataclass(frozen=True, slots=True)
class Vxlan:
    """Desired device. ``local``: its source address; ``mtu``: of an inner packet.

    ``mac`` "": that of the existing device, otherwise a random one. ``port`` 0: the kernel's (8472).
    ``learning``: from packets instead of leases.
    """

    name: str
    vni: int
    port: int
    local: Address
    underlay: int
    """ifindex of the external interface"""
    mac: str
    mtu: int
    gbp: bool = False
    learning: bool = False

    def ensure(self, rtnl: nl.Rtnl, warn: Callable[[str], None] = note) -> Link:
        """Call :func:`ensure_vxlan`, as a :class:`~cni_py.kernel.device.Device`."""
        return ensure_vxlan(rtnl, self, warn)

    def matches(self, link: Link) -> bool:
        return (
            link.kind == "vxlan"
            and link.mtu == self.mtu
            and (not self.mac or link.mac == self.mac)
            and not link.master
            and not link.flags & IFF_NOARP
            and link.is_up
        )


@dataclass(frozen=True, slots=True)
class VxlanDetails:
    """Actual device. ``group``: destination of frames to unknown MAC addresses; None: they are dropped."""

    name: str
    ifindex: int
    mac: str
    mtu: int
    txqueuelen: int
    is_up: bool
    vni: int
    port: int
    local: Address | None
    group: Address | None
    underlay: int
    learning: bool
    gbp: bool
    l2miss: bool
    l3miss: bool


def ensure_vxlan(rtnl: nl.Rtnl, wanted: Vxlan, warn: Callable[[str], None] = note) -> Link:
    """Create the device, or reuse an existing one. Raises: KernelRefused, NotAvailable.

    An incompatible device is deleted and re-created; ``warn`` is called with the reason.
    """
    link = find_link(rtnl, wanted.name) or _restore_name(rtnl, wanted, warn)
    found = find_vxlan(rtnl, wanted.name) if link else None
    if link:
        reason = _difference(wanted, found) if found else f"link type: vxlan vs {link.kind or 'none'}"
        if reason:
            # flannel-compatible: the sentence of pkg/backend/vxlan/device.go, wanted first
            warn(f'"{wanted.name}" already exists with incompatible configuration: {reason}; recreating device')
            delete_link(rtnl, wanted.name)
            wanted = replace(wanted, mac=wanted.mac or (found.mac if found else ""))
            link = found = None
    if link and found:
        _correct(rtnl, link, found, wanted)
    else:
        _create(rtnl, replace(wanted, mac=wanted.mac or random_mac()))
    made = find_link(rtnl, wanted.name)
    if made is None:
        raise KernelRefused(f'the link "{wanted.name}" does not exist', "it was deleted during its creation", errno=ENODEV)
    return made


def find_vxlan(rtnl: nl.Rtnl, name: str) -> VxlanDetails | None:
    """Return the VXLAN device of this name, or None. Raises: KernelRefused."""
    link = find_link(rtnl, name)
    return _details(link) if link is not None and link.kind == "vxlan" else None


def _difference(wanted: Vxlan, found: VxlanDetails) -> str:
    """Return the reason why the device cannot be reused; "": it can."""
    pairs: list[tuple[str, object, object]] = [
        ("vni", wanted.vni, found.vni),
        ("vtep (external) interface", wanted.underlay, found.underlay),
        ("vtep (external) IP", wanted.local, found.local),
        ("group address", None, found.group),
        ("l2miss", False, found.l2miss),
        ("l3miss", False, found.l3miss),
        ("port", wanted.port or found.port, found.port),
        ("gbp", wanted.gbp, found.gbp),
    ]
    return next((f"{what}: {ours} vs {theirs}" for what, ours, theirs in pairs if ours != theirs), "")


def _correct(rtnl: nl.Rtnl, link: Link, found: VxlanDetails, wanted: Vxlan) -> None:
    """Change the properties that can be changed in place."""
    if found.learning != wanted.learning:
        with step("ip", "link", "set", wanted.name, "type", "vxlan", _onoff("learning", wanted.learning)):
            message = {"index": link.ifindex, "IFLA_LINKINFO": _linkinfo({"IFLA_VXLAN_LEARNING": wanted.learning})}
            rtnl.change(encode("ifinfmsg", message), RTM_NEWLINK)
    if found.mtu != wanted.mtu:
        set_mtu(rtnl, link, wanted.mtu)
    if wanted.mac and found.mac != wanted.mac:
        set_mac(rtnl, link, wanted.mac)
    if link.master:  # the packets of a port go to the bridge
        release(rtnl, link)
    if link.flags & IFF_NOARP:  # without ARP none of our entries is used
        set_arp_on(rtnl, link)


def _create(rtnl: nl.Rtnl, wanted: Vxlan) -> None:
    """Create it without a queue, like every device that passes its packets to another."""
    local = "IFLA_VXLAN_LOCAL" if wanted.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    data = {
        "IFLA_VXLAN_ID": wanted.vni,
        "IFLA_VXLAN_LINK": wanted.underlay,
        local: wanted.local.packed,
        "IFLA_VXLAN_LEARNING": wanted.learning,
        **dict.fromkeys(_OFF, 0),
        "IFLA_VXLAN_PORT": wanted.port or None,
        "IFLA_VXLAN_GBP": wanted.gbp or None,
    }
    message = {
        "IFLA_IFNAME": wanted.name,
        "IFLA_MTU": wanted.mtu,
        "IFLA_TXQLEN": 0,
        "IFLA_ADDRESS": wanted.mac,
        "IFLA_LINKINFO": _linkinfo(data),
    }
    try:
        with step(*_words(rtnl, wanted)):
            rtnl.change(encode("ifinfmsg", message), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    except KernelRefused as error:
        if error.errno == EEXIST:
            error.hint = _conflicting_device(rtnl, wanted)
        if error.errno == EOPNOTSUPP:
            require_kind(rtnl, "vxlan")
        raise


def _words(rtnl: nl.Rtnl, wanted: Vxlan) -> list[str]:
    """Return the command for the journal."""
    underlay = find_link(rtnl, wanted.underlay)
    words = ["ip", "link", "add", wanted.name, "mtu", str(wanted.mtu), "txqueuelen", "0", "address", wanted.mac]
    words += ["type", "vxlan", "id", str(wanted.vni), "dev", underlay.name if underlay else f"if{wanted.underlay}"]
    words += ["local", str(wanted.local), *(["dstport", str(wanted.port)] if wanted.port else [])]
    return [*words, _onoff("learning", wanted.learning), *(["gbp"] if wanted.gbp else [])]


def _restore_name(rtnl: nl.Rtnl, wanted: Vxlan, warn: Callable[[str], None]) -> Link | None:
    """Restore the name of a renamed device, which is identified by its MAC address."""
    for link, found in _vxlans(rtnl):
        if found.mac == wanted.mac and not _difference(wanted, found):
            warn(f'"{link.name}" is "{wanted.name}" under another name; renaming it')
            rename(rtnl, link, wanted.name)
            return find_link(rtnl, wanted.name)
    return None


def _conflicting_device(rtnl: nl.Rtnl, wanted: Vxlan) -> str:
    """Name the device with the same VNI and port, which two devices cannot share."""
    for link, other in _vxlans(rtnl):
        if other.vni == wanted.vni and link.name != wanted.name:
            return (
                f'"{link.name}" has VNI {other.vni} on port {other.port}: choose another VNI for all nodes, "VNI" in their '
                f"configuration, or see what created it: ip -d link show {link.name}"
            )
    return ""


def _vxlans(rtnl: nl.Rtnl) -> Iterator[tuple[Link, VxlanDetails]]:
    """Yield all VXLAN devices."""
    for link in list_links(rtnl):
        if link.kind == "vxlan":
            yield link, _details(link)


def list_vxlans(rtnl: nl.Rtnl) -> list[VxlanDetails]:
    """Every VXLAN device of the namespace. Raises: KernelRefused."""
    return [details for _, details in _vxlans(rtnl)]


def _onoff(name: str, is_on: bool) -> str:
    return name if is_on else f"no{name}"


def _linkinfo(data: Message) -> Message:
    return {"IFLA_INFO_KIND": "vxlan", "IFLA_INFO_DATA": data}


def _details(link: Link) -> VxlanDetails:
    data = link.data
    return VxlanDetails(
        name=link.name,
        ifindex=link.ifindex,
        mac=link.mac,
        mtu=link.mtu,
        txqueuelen=link.txqueuelen,
        is_up=link.is_up,
        vni=data.get("IFLA_VXLAN_ID", 0),
        port=data.get("IFLA_VXLAN_PORT", 0),
        local=_address(data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6")),
        group=_address(data.get("IFLA_VXLAN_GROUP") or data.get("IFLA_VXLAN_GROUP6")),
        underlay=data.get("IFLA_VXLAN_LINK", 0),
        learning=bool(data.get("IFLA_VXLAN_LEARNING")),
        gbp="IFLA_VXLAN_GBP" in data,
        l2miss=bool(data.get("IFLA_VXLAN_L2MISS")),
        l3miss=bool(data.get("IFLA_VXLAN_L3MISS")),
    )


def _address(value: bytes | None) -> Address | None:
    return ip_address(value) if value and any(value) else None
