"""VXLAN devices: one for IPv4 peers, one for IPv6 peers.

A device that fits is adopted: it goes on carrying traffic while flanneld is restarted, and its MAC address,
which the peers know, stays. One that somebody has renamed gets its name back. What the kernel can change in
place is changed (MTU, MAC address, learning, ARP, a bridge that it is a port of); where anything else differs, the
device is made anew, with its old MAC address unless another is wanted.

    Vxlan(name, vni, port, local, underlay, mac, mtu, gbp=False, learning=False)     mac "": any; port 0: the kernel's
    ensure_vxlan(rtnl, wanted, warn=note) -> Link         the device is not set up: link.set_up() once it has its address
    find_vxlan(rtnl, name) -> VxlanDetails | None

Source: linux drivers/net/vxlan/vxlan_core.c; flannel-io/flannel pkg/backend/vxlan/device.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from errno import EEXIST, ENODEV, EOPNOTSUPP
from ipaddress import IPv4Address, IPv6Address
from struct import pack, unpack_from

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.features import require_kind
from cni_py.kernel.link import (
    Link,
    delete_link,
    find_link,
    ifinfomsg,
    list_links,
    random_mac,
    release,
    rename,
    set_arp_on,
    set_mac,
    set_mtu,
)
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, nested, number, text_of
from cni_py.netlink.constants import IFF_NOARP, IFF_UP, NLM_F_CREATE, NLM_F_EXCL, RTM_GETLINK, RTM_NEWLINK

Address = IPv4Address | IPv6Address

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_LINKINFO = 1, 3, 4, 13, 18
_INFO_KIND, _INFO_DATA = 1, 2
_ID, _GROUP, _LINK, _LOCAL, _LEARNING, _L2MISS, _L3MISS, _PORT, _GROUP6, _LOCAL6 = 1, 2, 3, 4, 7, 13, 14, 15, 16, 17
_TTL, _TOS, _PROXY, _RSC, _ZERO_CSUM6_TX, _ZERO_CSUM6_RX, _GBP = 5, 6, 11, 12, 19, 20, 23


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A device as it is to be. ``local``: the address it sends from; ``mtu``: of an inner packet.

    ``mac`` "": that of the device that is there, else a random one. ``port`` 0: the kernel's (8472).
    ``learning``: from packets, not from leases.
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
        """As :func:`ensure_vxlan`, by which this is a :class:`~cni_py.kernel.device.Device`."""
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
    """A device as the kernel describes it. ``group``: where frames to unknown MAC addresses go; None: nowhere."""

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
    """Make the device, or adopt the one that is there. Raises: KernelRefused, NotAvailable.

    A device that cannot be made to fit is deleted and made anew; ``warn`` hears why.
    """
    link = find_link(rtnl, wanted.name) or _take_back(rtnl, wanted, warn)
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
        raise KernelRefused(f'the link "{wanted.name}" has gone', "it was deleted while it was made", errno=ENODEV)
    return made


def find_vxlan(rtnl: nl.Rtnl, name: str) -> VxlanDetails | None:
    """The device of this name; None: there is none, or it is no VXLAN device. Raises: KernelRefused."""
    with nl.question(*rtnl.enter, "ip", "-d", "link", "show", name):
        try:
            return _details(rtnl.get(ifinfomsg() + attribute(_IFLA_IFNAME, name), RTM_GETLINK))
        except nl.NetlinkError as error:
            if error.errno != ENODEV:
                raise
    return None


def _difference(wanted: Vxlan, found: VxlanDetails) -> str:
    """Why the device cannot be adopted; "": it can."""
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
    """Change in place what may be changed so."""
    if found.learning != wanted.learning:
        with step("ip", "link", "set", wanted.name, "type", "vxlan", _onoff("learning", wanted.learning)):
            data = attribute(_LEARNING, bytes([wanted.learning]))
            rtnl.change(ifinfomsg(link.ifindex) + _linkinfo(data), RTM_NEWLINK)
    if found.mtu != wanted.mtu:
        set_mtu(rtnl, link, wanted.mtu)
    if wanted.mac and found.mac != wanted.mac:
        set_mac(rtnl, link, wanted.mac)
    if link.master:  # a port's packets are the bridge's
        release(rtnl, link)
    if link.flags & IFF_NOARP:  # no neighbour is asked for then, none of our entries is used
        set_arp_on(rtnl, link)


def _create(rtnl: nl.Rtnl, wanted: Vxlan) -> None:
    """Without a queue, as every device that hands its packets on to another."""
    is_ipv4 = wanted.local.version == 4
    data = b"".join(
        [
            attribute(_ID, pack("=I", wanted.vni)),
            attribute(_LINK, pack("=I", wanted.underlay)),
            attribute(_LOCAL if is_ipv4 else _LOCAL6, wanted.local.packed),
            attribute(_LEARNING, bytes([wanted.learning])),
            *(attribute(kind, b"\0") for kind in (_TTL, _TOS, _PROXY, _RSC, _L2MISS, _L3MISS, _ZERO_CSUM6_TX, _ZERO_CSUM6_RX)),
            attribute(_PORT, pack("!H", wanted.port)) if wanted.port else b"",
            attribute(_GBP, b"") if wanted.gbp else b"",
        ]
    )
    message = ifinfomsg() + attribute(_IFLA_IFNAME, wanted.name) + attribute(_IFLA_MTU, pack("=I", wanted.mtu))
    message += attribute(_IFLA_TXQLEN, pack("=I", 0)) + attribute(_IFLA_ADDRESS, bytes.fromhex(wanted.mac.replace(":", "")))
    try:
        with step(*_words(rtnl, wanted)):
            rtnl.change(message + _linkinfo(data), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    except KernelRefused as error:
        if error.errno == EEXIST:
            error.hint = _who_has(rtnl, wanted)
        if error.errno == EOPNOTSUPP:
            require_kind(rtnl, "vxlan")
        raise


def _words(rtnl: nl.Rtnl, wanted: Vxlan) -> list[str]:
    """The command of the journal."""
    underlay = find_link(rtnl, wanted.underlay)
    words = ["ip", "link", "add", wanted.name, "mtu", str(wanted.mtu), "txqueuelen", "0", "address", wanted.mac]
    words += ["type", "vxlan", "id", str(wanted.vni), "dev", underlay.name if underlay else f"if{wanted.underlay}"]
    words += ["local", str(wanted.local), *(["dstport", str(wanted.port)] if wanted.port else [])]
    return [*words, _onoff("learning", wanted.learning), *(["gbp"] if wanted.gbp else [])]


def _take_back(rtnl: nl.Rtnl, wanted: Vxlan, warn: Callable[[str], None]) -> Link | None:
    """The device under its own name again, where somebody has given it another; its MAC address tells it."""
    for link, found in _vxlans(rtnl):
        if found.mac == wanted.mac and not _difference(wanted, found):
            warn(f'"{link.name}" is "{wanted.name}" under another name; renaming it')
            rename(rtnl, link, wanted.name)
            return find_link(rtnl, wanted.name)
    return None


def _who_has(rtnl: nl.Rtnl, wanted: Vxlan) -> str:
    """Two devices cannot share a VNI and a port: say which one is in the way."""
    for link, other in _vxlans(rtnl):
        if other.vni == wanted.vni and link.name != wanted.name:
            return f'"{link.name}" has VNI {other.vni} on port {other.port}: ip link del {link.name}, or another VNI'
    return ""


def _vxlans(rtnl: nl.Rtnl) -> Iterator[tuple[Link, VxlanDetails]]:
    """All that there are."""
    for link in list_links(rtnl):
        details = find_vxlan(rtnl, link.name) if link.kind == "vxlan" else None
        if details:
            yield link, details


def list_vxlans(rtnl: nl.Rtnl) -> list[VxlanDetails]:
    """Every VXLAN device of the namespace. Raises: KernelRefused."""
    return [details for _, details in _vxlans(rtnl)]


def _onoff(name: str, is_on: bool) -> str:
    return name if is_on else f"no{name}"


def _linkinfo(data: bytes) -> bytes:
    return nested(_IFLA_LINKINFO, attribute(_INFO_KIND, "vxlan") + nested(_INFO_DATA, data))


def _details(message: bytes) -> VxlanDetails | None:
    """Read a message RTM_NEWLINK."""
    ifindex, flags = unpack_from("=iI", message, 4)
    found = dict(attributes(message[16:]))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    if text_of(info.get(_INFO_KIND, b"")) != "vxlan":
        return None
    data = dict(attributes(info.get(_INFO_DATA, b"")))
    return VxlanDetails(
        name=text_of(found[_IFLA_IFNAME]),
        ifindex=ifindex,
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found.get(_IFLA_MTU)),
        txqueuelen=number(found.get(_IFLA_TXQLEN)),
        is_up=bool(flags & IFF_UP),
        vni=number(data.get(_ID)),
        port=int.from_bytes(data.get(_PORT, b""), "big"),
        local=_address(data.get(_LOCAL) or data.get(_LOCAL6)),
        group=_address(data.get(_GROUP) or data.get(_GROUP6)),
        underlay=number(data.get(_LINK)),
        learning=bool(number(data.get(_LEARNING))),
        gbp=_GBP in data,
        l2miss=bool(number(data.get(_L2MISS))),
        l3miss=bool(number(data.get(_L3MISS))),
    )


def _address(value: bytes | None) -> Address | None:
    if not value or not any(value):
        return None
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)
