"""Links: bridges, veths, bridge ports. Owns nothing: the plugins say what is whose.

Verbs: ``find_``/``list_`` read, ``create_`` must be new, ``set_`` changes, ``delete_`` counts
absence as success. Each change is one journal line. Source: linux net/core/rtnetlink.c,
net/bridge/br_netlink.c.
"""

from __future__ import annotations

from errno import EEXIST, ENODEV
from posix import urandom
from struct import pack, unpack_from

from cni_py.errors import KernelRefused
from cni_py.journal import note, quote, step
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, made_of, nested, number, text_of
from cni_py.netlink.constants import (
    AF_BRIDGE,
    BRIDGE_VLAN_INFO_PVID,
    BRIDGE_VLAN_INFO_UNTAGGED,
    IFF_NOARP,
    IFF_PROMISC,
    IFF_UP,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.attributes import Attribute
    from cni_py.netlink.socket import Rtnl

IFALIAS_MAX = 255
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_EXT_MASK = 16, 18, 20, 26, 29
_IFLA_BRIDGE_VLAN_INFO = 2
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_BR_VLAN_FILTERING, _BR_VLAN_PROTOCOL = 7, 8
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33
_OPERSTATES = {1: "NOTPRESENT", 2: "DOWN", 3: "LOWERLAYERDOWN", 4: "TESTING", 5: "DORMANT", 6: "UP"}


class Link(Value):
    """A link as the kernel describes it.

    ``master`` and ``peer`` are ifindexes, 0 where there is none (``peer``: the other end of a veth,
    in whatever namespace); ``operstate`` is "UP", "DOWN" …; ``hairpin`` and ``isolated`` are of a
    bridge port; ``vlan_filtering`` of a bridge, None where the kernel was built without it.
    """

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    flags: int
    master: int
    peer: int
    operstate: str
    alias: str
    hairpin: bool
    isolated: bool
    vlan_filtering: bool | None

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def is_promiscuous(self) -> bool:
        return bool(self.flags & IFF_PROMISC)


def find_link(rtnl: Rtnl, key: str | int) -> Link | None:
    """The link of this name or ifindex, None where there is none. Raises: KernelRefused."""
    message = _named(key) if isinstance(key, str) else ifinfomsg(key)
    with nl.question(*rtnl.enter, "ip", "-d", "link", "show", str(key)):
        try:
            return _link(rtnl.get(message, RTM_GETLINK))
        except nl.NetlinkError as error:
            if error.errno != ENODEV:
                raise
    return None


def get_link(rtnl: Rtnl, name: str) -> Link:
    """Raises: KernelRefused, also if there is no such link."""
    link = find_link(rtnl, name)
    if link is None:
        raise KernelRefused(f'the link "{name}" does not exist', "another process deleted it", f"ip link show {name}")
    return link


def list_links(rtnl: Rtnl, alias: str = "") -> list[Link]:
    """Every link of the namespace, or those of this alias. Raises: KernelRefused.

    Only those that hold the text are decoded.
    """
    with nl.question(*rtnl.enter, "ip", "-d", "link", "show"):
        links = [_link(message) for message in rtnl.dump(ifinfomsg(), RTM_GETLINK, containing=alias.encode())]
    return [link for link in links if not alias or link.alias == alias]


def random_mac() -> str:
    """A locally administered unicast address."""
    first, *rest = urandom(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 0x02, *rest))


def create_bridge(rtnl: Rtnl, name: str, mtu: int, mac: str, vlan_filtering: bool) -> None:
    """Make a bridge; one that is there already is success. Raises: KernelRefused.

    ``mtu`` 0 and ``mac`` "": the kernel's choice; a MAC address that is given stays when ports come.
    """
    attributes = [
        ("IFLA_IFNAME", name),
        _linkinfo("bridge", (("IFLA_BR_VLAN_FILTERING", 1),) if vlan_filtering else ()),
    ]
    words = ["ip", "link", "add", name]
    if mtu:
        attributes.append(("IFLA_MTU", mtu))
        words += ["mtu", str(mtu)]
    if mac:
        attributes.append(("IFLA_ADDRESS", mac))
        words += ["address", mac]
    words += ["type", "bridge", *(["vlan_filtering", "1"] if vlan_filtering else [])]
    with step(*words):
        try:
            rtnl.change(ifinfomsg() + _made_of(*attributes), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno != EEXIST:
                raise


def create_veth(
    rtnl: Rtnl, sandbox: NetNS, ifname: str, alias: str, *, mtu: int = 0, mac: str = "", master: Link | None = None
) -> str:
    """Create a veth with one end on the host and the other, ``ifname``, in the sandbox.

    The host end has its alias from the start: GC finds it whenever an ADD is killed. Both ends are down: the kernel
    refuses a peer that is created up (ENOTCONN).

    Args:
        mtu: of both ends; 0: the kernel's choice.
        mac: of the sandbox's end; "": the kernel's choice.
        master: the bridge that the host end is a port of.

    Returns: the name of the host end, "veth" and eight hex digits. Raises: KernelRefused, EEXIST if ``ifname`` is taken.
    """
    peer: list[Attribute] = [("IFLA_IFNAME", ifname), ("IFLA_NET_NS_FD", sandbox.fd)]
    peer += [("IFLA_ADDRESS", mac)] if mac else []
    peer += [("IFLA_MTU", mtu)] if mtu else []
    attributes: list[Attribute] = [("IFLA_MASTER", master.ifindex)] if master else []
    attributes.append(_linkinfo("veth", (("VETH_INFO_PEER", tuple(peer)),)))
    attributes += [("IFLA_MTU", mtu)] if mtu else []
    for last in (False, False, True):
        name = f"veth{urandom(4).hex()}"
        size = ("mtu", str(mtu)) if mtu else ()
        address = ("address", mac) if mac else ()
        try:
            words = (
                "ip",
                "link",
                "add",
                name,
                *size,
                *(("master", master.name) if master else ()),
                "type",
                "veth",
                "peer",
                "name",
                ifname,
                *size,
                *address,
            )
            made = step(*words, "netns", sandbox.path)
            made.line += f" && ip link set {name} alias {quote(alias)}"
            with made:
                rtnl.change_all(
                    (_named(name) + _made_of(*attributes), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL),
                    (_named(name) + attribute(_IFLA_IFALIAS, alias[:IFALIAS_MAX]), RTM_NEWLINK, 0),
                )
            return name
        except KernelRefused as error:
            if error.errno != EEXIST:
                _delete_if_made(rtnl, name)
                raise
            if last or find_link(rtnl, name) is None:
                raise
    raise AssertionError("the loop returns or raises")


def _delete_if_made(rtnl: Rtnl, name: str) -> None:
    """After an error: what was lost may have been no more than the acknowledgement."""
    try:
        if find_link(rtnl, name) is not None:
            delete_link(rtnl, name)
    except KernelRefused as error:
        note(f"{name} may be left: {error}")


def create_vlan_gateway(rtnl: Rtnl, bridge: Link, name: str, mtu: int) -> str:
    """Make a veth on the host, one end a port of the bridge; answers that end's name. Raises: KernelRefused."""
    port = f"veth{urandom(4).hex()}"
    peer = ("IFLA_IFNAME", name), ("IFLA_MTU", mtu)
    with step(
        "ip", "link", "add", port, "mtu", str(mtu), "master", bridge.name, "type", "veth", "peer", "name", name, "mtu", str(mtu)
    ):
        attributes = ("IFLA_MTU", mtu), ("IFLA_MASTER", bridge.ifindex), _linkinfo("veth", (("VETH_INFO_PEER", peer),))
        rtnl.change(_named(port) + _made_of(*attributes), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    return port


def set_port(rtnl: Rtnl, link: Link, hairpin: bool, isolated: bool, alias: str) -> None:
    """Configure a bridge port, say in its alias whose it is, and set it up. Raises: KernelRefused."""
    data = ("IFLA_BRPORT_MODE", int(hairpin)), ("IFLA_BRPORT_ISOLATED", int(isolated))
    info = ("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", data)
    onoff = {True: "on", False: "off"}
    with step(
        "ip",
        "link",
        "set",
        link.name,
        "up",
        "alias",
        alias,
        "type",
        "bridge_slave",
        "hairpin",
        onoff[hairpin],
        "isolated",
        onoff[isolated],
    ):
        message = ifinfomsg(link.ifindex, flags=IFF_UP, change=IFF_UP) + attribute(_IFLA_IFALIAS, alias[:IFALIAS_MAX])
        rtnl.change(message + _made_of(("IFLA_LINKINFO", info)), RTM_NEWLINK)


def set_up(rtnl: Rtnl, link: Link) -> None:
    """Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "up"):
        rtnl.change(ifinfomsg(link.ifindex, flags=IFF_UP, change=IFF_UP), RTM_NEWLINK)


def set_down(rtnl: Rtnl, link: Link) -> None:
    """Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "down"):
        rtnl.change(ifinfomsg(link.ifindex, flags=0, change=IFF_UP), RTM_NEWLINK)


def rename(rtnl: Rtnl, link: Link, name: str) -> None:
    """Down, as the kernel asks for. Raises: KernelRefused."""
    set_down(rtnl, link)
    with step(*rtnl.enter, "ip", "link", "set", link.name, "name", name):
        rtnl.change(ifinfomsg(link.ifindex) + attribute(_IFLA_IFNAME, name), RTM_NEWLINK)


def release(rtnl: Rtnl, link: Link) -> None:
    """Take it out of the bridge (bond, …) that it is a port of. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "nomaster"):
        rtnl.change(ifinfomsg(link.ifindex) + attribute(_IFLA_MASTER, pack("=I", 0)), RTM_NEWLINK)


def set_arp_on(rtnl: Rtnl, link: Link) -> None:
    """Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "arp", "on"):
        rtnl.change(ifinfomsg(link.ifindex, flags=0, change=IFF_NOARP), RTM_NEWLINK)


def set_promiscuous(rtnl: Rtnl, link: Link) -> None:
    """Raises: KernelRefused."""
    with step("ip", "link", "set", link.name, "promisc", "on"):
        rtnl.change(ifinfomsg(link.ifindex, flags=IFF_PROMISC, change=IFF_PROMISC), RTM_NEWLINK)


def set_mac(rtnl: Rtnl, link: Link, mac: str) -> None:
    """Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "address", mac):
        rtnl.change(ifinfomsg(link.ifindex) + attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))), RTM_NEWLINK)


def set_mtu(rtnl: Rtnl, link: Link, mtu: int) -> None:
    """Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "mtu", str(mtu)):
        rtnl.change(ifinfomsg(link.ifindex) + attribute(_IFLA_MTU, pack("=I", mtu)), RTM_NEWLINK)


def delete_link(rtnl: Rtnl, name: str) -> None:
    """Delete a link; with one end of a veth the other goes too. Absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "del", name):
        try:
            rtnl.change(_named(name), RTM_DELLINK)
        except nl.NetlinkError as error:
            if error.errno != ENODEV:
                raise


def delete_request(ifindex: int) -> bytes:
    """The message of RTM_DELLINK for :mod:`cni_py.kernel.deletion`."""
    return ifinfomsg(ifindex)


def add_vlan(rtnl: Rtnl, link: Link, vlan: int, native: bool) -> None:
    """Let a VLAN pass a bridge port; ``native``: its untagged frames. Raises: KernelRefused."""
    flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED if native else 0
    with step("bridge", "vlan", "add", "dev", link.name, "vid", str(vlan), *(("pvid", "untagged") if native else ())):
        rtnl.change(_vlan_message(link, vlan, flags), RTM_SETLINK)


def delete_vlan(rtnl: Rtnl, link: Link, vlan: int) -> None:
    """Raises: KernelRefused."""
    with step("bridge", "vlan", "del", "dev", link.name, "vid", str(vlan)):
        rtnl.change(_vlan_message(link, vlan, 0), RTM_DELLINK)


def _vlan_message(link: Link, vlan: int, flags: int) -> bytes:
    info = attribute(_IFLA_BRIDGE_VLAN_INFO, pack("=HH", flags, vlan))
    return ifinfomsg(link.ifindex, family=AF_BRIDGE) + nested(_IFLA_AF_SPEC, info)


def _made_of(*attributes: Attribute) -> bytes:
    return made_of("ifinfmsg", *attributes)


def _linkinfo(kind: str, data: tuple[Attribute, ...]) -> Attribute:
    return "IFLA_LINKINFO", (("IFLA_INFO_KIND", kind), *((("IFLA_INFO_DATA", data),) if data else ()))


def ifinfomsg(ifindex: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """``struct ifinfomsg`` that means the link of this number, 0: any; ``change``: the flags that are set."""
    return pack("=BxHiII", family, 0, ifindex, flags, change)


def _named(name: str) -> bytes:
    """The same for a link of this name, without its counters in the answer."""
    return ifinfomsg() + attribute(_IFLA_IFNAME, name) + attribute(_IFLA_EXT_MASK, pack("=I", RTEXT_FILTER_SKIP_STATS))


def _link(message: bytes) -> Link:
    """Read a message RTM_NEWLINK."""
    ifindex, flags = unpack_from("=iI", message, 4)
    found = dict(attributes(message[16:]))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    kind = text_of(info.get(_INFO_KIND, b""))
    of_bridge = dict(attributes(info.get(_INFO_DATA, b""))) if kind == "bridge" else {}
    is_port = text_of(info.get(_INFO_SLAVE_KIND, b"")) == "bridge"
    of_port = dict(attributes(info.get(_INFO_SLAVE_DATA, b""))) if is_port else {}
    # a kernel without VLAN filtering says that it is off all the same, but knows no VLAN protocol
    knows_vlans = _BR_VLAN_PROTOCOL in of_bridge
    return Link(
        ifindex=ifindex,
        name=text_of(found[_IFLA_IFNAME]),
        kind=kind,
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found.get(_IFLA_MTU)),
        flags=flags,
        master=number(found.get(_IFLA_MASTER)),
        peer=number(found.get(_IFLA_LINK)),
        operstate=_OPERSTATES.get(number(found.get(_IFLA_OPERSTATE)), "UNKNOWN"),
        alias=text_of(found.get(_IFLA_IFALIAS, b"")),
        hairpin=bool(number(of_port.get(_BRPORT_MODE))),
        isolated=bool(number(of_port.get(_BRPORT_ISOLATED))),
        vlan_filtering=bool(number(of_bridge.get(_BR_VLAN_FILTERING))) if knows_vlans else None,
    )
