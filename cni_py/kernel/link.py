"""Links: bridges, veths, bridge ports. Owns nothing: ownership is up to the plugins.

Verbs: ``find_``/``list_`` read, ``create_`` must be new, ``set_`` changes, ``delete_`` counts
absence as success. Each change is one journal line. Source: linux net/core/rtnetlink.c,
net/bridge/br_netlink.c.
"""

from __future__ import annotations

from errno import EEXIST, ENODEV, EOPNOTSUPP
from posix import urandom
from struct import unpack_from

from cni_py.errors import KernelRefused
from cni_py.journal import note, quote, step
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import decode, decode_header, encode, items
from cni_py.netlink.constants import (
    AF_BRIDGE,
    BRIDGE_VLAN_INFO_PVID,
    BRIDGE_VLAN_INFO_UNTAGGED,
    IFF_ALLMULTI,
    IFF_NOARP,
    IFF_PROMISC,
    IFF_UP,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTEXT_FILTER_BRVLAN,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
    RTM_SETLINK,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.attributes import Message
    from cni_py.netlink.socket import Rtnl

ALTERNATIVE_NAME_MAX = 127
_WITHOUT_STATISTICS = {"IFLA_EXT_MASK": RTEXT_FILTER_SKIP_STATS}
_OPERSTATES = {1: "NOTPRESENT", 2: "DOWN", 3: "LOWERLAYERDOWN", 4: "TESTING", 5: "DORMANT", 6: "UP"}


class explained:  # noqa: N801 — reads as a statement: with explained("up", …), step(…):
    """Let a refusal that one must expect be in the words of refusals.py. ``inside``: the namespace that hints lead into."""

    def __init__(self, operation: str, inside: Rtnl | NetNS, **objects: object) -> None:
        self.operation, self.inside, self.objects = operation, inside, objects

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, KernelRefused):
            from cni_py.kernel import refusals

            refusals.explain(self.operation, error, enter=refusals.prefix(self.inside.enter), **self.objects)


class Link(Value):
    """A link as the kernel describes it.

    ``master`` and ``peer`` are ifindexes, 0 for none (``peer``: the other end of a veth,
    in any namespace); ``operstate`` is "UP", "DOWN" …; ``hairpin`` and ``isolated`` are of a
    bridge port; ``vlan_filtering`` of a bridge, None if the kernel was built without it. ``nsid``
    numbers the namespace of the peer, None: it is in this one. ``data``: attributes of the kind.
    ``altnames``: alternative names (``ip link property add``).
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
    nsid: int | None = None
    txqueuelen: int = 0
    data: Mapping[str, Any] = {}
    altnames: tuple[str, ...] = ()

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def is_promiscuous(self) -> bool:
        return bool(self.flags & IFF_PROMISC)

    @property
    def is_allmulticast(self) -> bool:
        return bool(self.flags & IFF_ALLMULTI)


def find_link(rtnl: Rtnl, key: str | int) -> Link | None:
    """Return the link of this name or ifindex, or None. Raises: KernelRefused."""
    answer = _ask(rtnl, key)
    return link_of(answer) if answer is not None else None


def find_ifindex(rtnl: Rtnl, name: str) -> int:
    """Return the ifindex of the link of this name, 0 if there is none; nothing else is decoded. Raises: KernelRefused."""
    answer = _ask(rtnl, name)
    return int(decode_header("ifinfmsg", answer)["index"]) if answer is not None else 0


def _ask(rtnl: Rtnl, key: str | int) -> bytes | None:
    which: Message = {"IFLA_IFNAME": key} if isinstance(key, str) else {"index": key}
    message = encode("ifinfmsg", which | _WITHOUT_STATISTICS)
    with nl.question(*rtnl.enter, "ip", "-d", "link", "show", str(key)):
        try:
            return rtnl.get(message, RTM_GETLINK)
        except nl.NetlinkError as error:
            if error.errno != ENODEV:
                raise
    return None


def get_link(rtnl: Rtnl, name: str) -> Link:
    """Return the link of this name. Raises: KernelRefused, also if it does not exist."""
    link = find_link(rtnl, name)
    if link is None:
        raise KernelRefused(f'the link "{name}" does not exist', "another process deleted it", f"ip link show {name}")
    return link


def list_links(rtnl: Rtnl, mark: str = "") -> list[Link]:
    """Every link of the namespace, or those with this alternative name or alias. Raises: KernelRefused.

    Only those that hold the text are decoded.
    """
    with nl.question(*rtnl.enter, "ip", "-d", "link", "show"):
        answers = rtnl.dump(
            encode("ifinfmsg", _WITHOUT_STATISTICS), RTM_GETLINK, containing=mark.encode(errors="surrogateescape")
        )
    links = [link_of(answer) for answer in answers]
    return [link for link in links if not mark or mark in (link.alias, *link.altnames)]


def random_mac() -> str:
    """A locally administered unicast address."""
    first, *rest = urandom(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 0x02, *rest))


def create_bridge(rtnl: Rtnl, name: str, mtu: int, mac: str, vlan_filtering: bool) -> None:
    """Create a bridge; an existing one is success. Raises: KernelRefused.

    ``mtu`` 0 and ``mac`` "": the kernel's choice; a given MAC address is kept when ports are added.
    """
    data = {"IFLA_BR_VLAN_FILTERING": 1} if vlan_filtering else None
    words = ["ip", "link", "add", name]
    words += ["mtu", str(mtu)] if mtu else []
    words += ["address", mac] if mac else []
    words += ["type", "bridge", *(["vlan_filtering", "1"] if vlan_filtering else [])]
    message: Message = {"IFLA_IFNAME": name, "IFLA_LINKINFO": _linkinfo("bridge", data)}
    message |= {"IFLA_MTU": mtu or None, "IFLA_ADDRESS": mac or None}
    with explained("bridge", rtnl, name=name, mtu=mtu), step(*words) as change:
        try:
            rtnl.change(encode("ifinfmsg", message), RTM_NEWLINK, _NEW)
        except nl.NetlinkError as error:
            if error.errno != EEXIST:
                raise
            change.unchanged = True


class AlternativeNameTaken(KernelRefused):
    """Refusal of an alternative name that another link has."""


def create_veth(
    rtnl: Rtnl, sandbox: NetNS, ifname: str, mark: str, *, mtu: int = 0, mac: str = "", master: Link | None = None
) -> str:
    """Create a veth with one end on the host and the other, ``ifname``, in the sandbox.

    The host end has its alternative name from the start: GC finds it whenever an ADD is killed. Both ends are down: the
    kernel refuses a peer that is created up (ENOTCONN).

    Args:
        mark: alternative name of the host end, at most ``ALTERNATIVE_NAME_MAX`` bytes.
        mtu: of both ends; 0: the kernel's choice.
        mac: of the sandbox's end; "": the kernel's choice.
        master: the bridge that the host end is a port of.

    Returns: the name of the host end, "veth" and eight hex digits.

    Raises: AlternativeNameTaken if another link has ``mark``; KernelRefused, EEXIST if ``ifname`` is taken.
    """
    peer = {"IFLA_IFNAME": ifname, "IFLA_NET_NS_FD": sandbox.fd, "IFLA_ADDRESS": mac or None, "IFLA_MTU": mtu or None}
    info = _linkinfo("veth", {"VETH_INFO_PEER": peer})
    veth = {"IFLA_MASTER": master.ifindex if master else None, "IFLA_LINKINFO": info, "IFLA_MTU": mtu or None}
    size, address = ["mtu", str(mtu)] if mtu else [], ["address", mac] if mac else []
    for last in (False, False, True):
        name = f"veth{urandom(4).hex()}"
        words = ["ip", "link", "add", name, *size, *(["master", master.name] if master else []), "type", "veth"]
        words += ["peer", "name", ifname, *size, *address, "netns", sandbox.path]
        try:
            made = step(*words)
            made.line += f" && ip link property add dev {name} altname {quote(mark)}"
            with made:
                _create_marked(rtnl, name, veth, mark)
            return name
        except KernelRefused as error:
            cause = error.__cause__
            if error.errno != EEXIST:
                _delete_if_made(rtnl, name)
            elif isinstance(cause, nl.NetlinkError) and cause.index:  # the link was created; its alternative name is taken
                delete_link(rtnl, name)
                raise AlternativeNameTaken(error.msg, error.details, errno=EEXIST) from error
            elif not last and find_link(rtnl, name) is not None:
                continue
            with explained("veth", sandbox, name=ifname, peer=name, mtu=mtu, mac=mac):
                raise
    raise AssertionError("the loop returns or raises")


def _create_marked(rtnl: Rtnl, name: str, link: Message, mark: str) -> None:
    """Create the link and give it an alternative name in one datagram; before Linux 5.5, which has none, an alias."""
    names = {"IFLA_IFNAME": name, "IFLA_PROP_LIST": {"IFLA_ALT_IFNAME": mark}}
    try:
        rtnl.change_all(
            (encode("ifinfmsg", {"IFLA_IFNAME": name, **link}), RTM_NEWLINK, _NEW),
            (encode("ifinfmsg", names), RTM_NEWLINKPROP, _NEW | NLM_F_APPEND),
        )
    except nl.NetlinkError as error:
        if error.errno != EOPNOTSUPP or find_link(rtnl, name) is None:
            raise
        rtnl.change(encode("ifinfmsg", {"IFLA_IFNAME": name, "IFLA_IFALIAS": mark}), RTM_NEWLINK)


def _delete_if_made(rtnl: Rtnl, name: str) -> None:
    """Clean up after an error: perhaps only the acknowledgement was lost."""
    try:
        if find_link(rtnl, name) is not None:
            delete_link(rtnl, name)
    except KernelRefused as error:
        note(f"{name} may have leaked: {error}")


def create_vlan_gateway(rtnl: Rtnl, bridge: Link, name: str, mtu: int) -> str:
    """Create a veth on the host, one end a port of the bridge. Returns: that end's name. Raises: KernelRefused."""
    port = f"veth{urandom(4).hex()}"
    info = _linkinfo("veth", {"VETH_INFO_PEER": {"IFLA_IFNAME": name, "IFLA_MTU": mtu}})
    message = {"IFLA_IFNAME": port, "IFLA_MTU": mtu, "IFLA_MASTER": bridge.ifindex, "IFLA_LINKINFO": info}
    size = ["mtu", str(mtu)]
    with step("ip", "link", "add", port, *size, "master", bridge.name, "type", "veth", "peer", "name", name, *size):
        rtnl.change(encode("ifinfmsg", message), RTM_NEWLINK, _NEW)
    return port


def set_port(rtnl: Rtnl, link: Link, hairpin: bool, isolated: bool) -> None:
    """Configure a bridge port, and set it up. Raises: KernelRefused."""
    data = {"IFLA_BRPORT_MODE": int(hairpin), "IFLA_BRPORT_ISOLATED": int(isolated)}
    info = {"IFLA_INFO_SLAVE_KIND": "bridge", "IFLA_INFO_SLAVE_DATA": data}
    onoff = {True: "on", False: "off"}
    words = ["ip", "link", "set", link.name, "up", "type", "bridge_slave"]
    with step(*words, "hairpin", onoff[hairpin], "isolated", onoff[isolated]):
        _set(rtnl, link, flags=IFF_UP, change=IFF_UP, IFLA_LINKINFO=info)


def set_up(rtnl: Rtnl, link: Link) -> None:
    """Set it up. Raises: KernelRefused."""
    with explained("up", rtnl, name=link.name), step(*rtnl.enter, "ip", "link", "set", link.name, "up"):
        _set(rtnl, link, flags=IFF_UP, change=IFF_UP)


def set_down(rtnl: Rtnl, link: Link) -> None:
    """Set it down. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "down"):
        _set(rtnl, link, flags=0, change=IFF_UP)


def rename(rtnl: Rtnl, link: Link, name: str) -> None:
    """Rename it; it is set down first, as the kernel requires. Raises: KernelRefused."""
    set_down(rtnl, link)
    with explained("rename", rtnl, name=link.name, new=name), step(*rtnl.enter, "ip", "link", "set", link.name, "name", name):
        _set(rtnl, link, IFLA_IFNAME=name)


def set_master(rtnl: Rtnl, link: Link, master: Link) -> None:
    """Make it a port of a bridge (bond, …). Raises: KernelRefused."""
    with (
        explained("master", rtnl, name=link.name, master=master.name),
        step(*rtnl.enter, "ip", "link", "set", link.name, "master", master.name),
    ):
        _set(rtnl, link, IFLA_MASTER=master.ifindex)


def table_of_vrf(vrf: Link) -> int:
    """The table of a VRF."""
    return int(vrf.data.get("IFLA_VRF_TABLE", 0))


def release(rtnl: Rtnl, link: Link) -> None:
    """Remove it from its bridge (bond, …). Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "nomaster"):
        _set(rtnl, link, IFLA_MASTER=0)


def move(rtnl: Rtnl, link: Link, target: NetNS, name: str, alias: str) -> None:
    """Move it to another namespace under this name, with this alias, in one request; it is down then. Raises: KernelRefused."""
    words = ["ip", "link", "set", link.name, "netns", target.path, "name", name, "alias", alias]
    with explained("move", target, name=name, netns=target.path), step(*rtnl.enter, *words):
        _set(rtnl, link, IFLA_NET_NS_FD=target.fd, IFLA_IFNAME=name, IFLA_IFALIAS=alias)


def set_alias(rtnl: Rtnl, link: Link, alias: str) -> None:
    """Set its alias, "" for none. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "alias", alias):
        _set(rtnl, link, IFLA_IFALIAS=alias)


def restore_name(rtnl: Rtnl, link: Link) -> None:
    """Rename it to its alias, and clear that; it is down then. Raises: KernelRefused."""
    name = link.alias
    rename(rtnl, link, name)
    set_alias(rtnl, link.replace(name=name), "")


def set_arp_on(rtnl: Rtnl, link: Link) -> None:
    """Enable ARP. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "arp", "on"):
        _set(rtnl, link, flags=0, change=IFF_NOARP)


def set_promiscuous(rtnl: Rtnl, link: Link, is_on: bool = True) -> None:
    """Set it promiscuous, or no longer. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "promisc", "on" if is_on else "off"):
        _set(rtnl, link, flags=IFF_PROMISC if is_on else 0, change=IFF_PROMISC)


def set_allmulticast(rtnl: Rtnl, link: Link, is_on: bool) -> None:
    """Let it receive every multicast packet, or no longer. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "allmulticast", "on" if is_on else "off"):
        _set(rtnl, link, flags=IFF_ALLMULTI if is_on else 0, change=IFF_ALLMULTI)


def set_txqueuelen(rtnl: Rtnl, link: Link, packets: int) -> None:
    """Set the length of its transmit queue. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "set", link.name, "txqueuelen", str(packets)):
        _set(rtnl, link, IFLA_TXQLEN=packets)


def set_mac(rtnl: Rtnl, link: Link, mac: str) -> None:
    """Set its MAC address. Raises: KernelRefused."""
    with explained("mac", rtnl, name=link.name, mac=mac), step(*rtnl.enter, "ip", "link", "set", link.name, "address", mac):
        _set(rtnl, link, IFLA_ADDRESS=mac)


def set_mtu(rtnl: Rtnl, link: Link, mtu: int) -> None:
    """Set its MTU. Raises: KernelRefused."""
    with explained("mtu", rtnl, name=link.name, mtu=mtu), step(*rtnl.enter, "ip", "link", "set", link.name, "mtu", str(mtu)):
        _set(rtnl, link, IFLA_MTU=mtu)


def delete_link(rtnl: Rtnl, name: str) -> None:
    """Delete a link; with one end of a veth the other goes too. Absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "ip", "link", "del", name) as change:
        try:
            rtnl.change(encode("ifinfmsg", {"IFLA_IFNAME": name}), RTM_DELLINK)
        except nl.NetlinkError as error:
            if error.errno != ENODEV:
                raise
            change.unchanged = True


def delete_request(ifindex: int) -> bytes:
    """The message of RTM_DELLINK for :mod:`cni_py.kernel.deletion`."""
    return encode("ifinfmsg", {"index": ifindex})


def add_vlan(rtnl: Rtnl, link: Link, vlan: int, native: bool) -> None:
    """Let a VLAN pass a bridge port; ``native``: its untagged frames. Raises: KernelRefused."""
    flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED if native else 0
    with step("bridge", "vlan", "add", "dev", link.name, "vid", str(vlan), *(("pvid", "untagged") if native else ())):
        rtnl.change(_vlan_message(link, vlan, flags), RTM_SETLINK)


def delete_vlan(rtnl: Rtnl, link: Link, vlan: int) -> None:
    """Remove a VLAN from a bridge port. Raises: KernelRefused."""
    with step("bridge", "vlan", "del", "dev", link.name, "vid", str(vlan)):
        rtnl.change(_vlan_message(link, vlan, 0), RTM_DELLINK)


def list_vlans(rtnl: Rtnl, link: Link) -> dict[int, bool]:
    """List the VLANs of a bridge port, each with whether it is the native one: untagged in both directions.

    Raises: KernelRefused.
    """
    native = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED
    question = encode("ifinfmsg", {"family": AF_BRIDGE, "IFLA_EXT_MASK": RTEXT_FILTER_BRVLAN})
    with nl.question("bridge", "vlan", "show", "dev", link.name):
        answers = rtnl.dump(question, RTM_GETLINK)
    ports = [answer for answer in answers if decode_header("ifinfmsg", answer)["index"] == link.ifindex]
    # one attribute per VLAN, of which decode() would keep the last
    infos = [unpack_from("=HH", item) for port in ports for item in items("ifinfmsg", port, "IFLA_AF_SPEC")]
    return {vlan: flags & native == native for flags, vlan in infos}


def _vlan_message(link: Link, vlan: int, flags: int) -> bytes:
    info = {"IFLA_BRIDGE_VLAN_INFO": {"flags": flags, "vid": vlan}}
    return encode("ifinfmsg", {"family": AF_BRIDGE, "index": link.ifindex, "IFLA_AF_SPEC": info})


_NEW = NLM_F_CREATE | NLM_F_EXCL


def _set(rtnl: Rtnl, link: Link, **message: Any) -> None:
    """Change header fields and attributes of a link."""
    rtnl.change(encode("ifinfmsg", {"index": link.ifindex, **message}), RTM_NEWLINK)


def _linkinfo(kind: str, data: Message | None) -> Message:
    return {"IFLA_INFO_KIND": kind, "IFLA_INFO_DATA": data}


def link_of(answer: bytes) -> Link:
    """Decode a message RTM_NEWLINK without its header."""
    found = decode("ifinfmsg", answer)
    info = found.get("IFLA_LINKINFO", {})
    kind, data = info.get("IFLA_INFO_KIND", ""), info.get("IFLA_INFO_DATA", {})
    of_bridge = data if kind == "bridge" else {}
    of_port = info.get("IFLA_INFO_SLAVE_DATA", {}) if info.get("IFLA_INFO_SLAVE_KIND") == "bridge" else {}
    # a kernel without VLAN filtering reports it as off too, but has no VLAN protocol
    knows_vlans = "IFLA_BR_VLAN_PROTOCOL" in of_bridge
    return Link(
        ifindex=found["index"],
        name=found["IFLA_IFNAME"],
        kind=kind,
        mac=found.get("IFLA_ADDRESS", ""),
        mtu=found.get("IFLA_MTU", 0),
        flags=found["flags"],
        master=found.get("IFLA_MASTER", 0),
        peer=found.get("IFLA_LINK", 0),
        operstate=_OPERSTATES.get(found.get("IFLA_OPERSTATE", 0), "UNKNOWN"),
        alias=found.get("IFLA_IFALIAS", ""),
        hairpin=bool(of_port.get("IFLA_BRPORT_MODE")),
        isolated=bool(of_port.get("IFLA_BRPORT_ISOLATED")),
        vlan_filtering=bool(of_bridge.get("IFLA_BR_VLAN_FILTERING")) if knows_vlans else None,
        nsid=found.get("IFLA_LINK_NETNSID"),
        txqueuelen=found.get("IFLA_TXQLEN", 0),
        data=data,
        altnames=_altnames(answer) if "IFLA_PROP_LIST" in found else (),
    )


def _altnames(answer: bytes) -> tuple[str, ...]:
    """Return the alternative names: one attribute for each, of which decode() would keep the last."""
    listed = items("ifinfmsg", answer, "IFLA_PROP_LIST")
    return tuple([name.rstrip(b"\0").decode(errors="surrogateescape") for name in listed])
