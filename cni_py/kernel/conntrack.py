"""Delete conntrack entries of UDP from before a port was mapped, or to a deleted pod.

NAT is decided by a connection's first packet. UDP connections do not end, so a client that keeps sending
would reach the previous owner of the port, for as long as it sends. Owns nothing: entries of
the kernel's connection table are deleted; the next packet makes a new one.

Unlike the Go plugin, which deletes every connection *to that port number* anywhere, including DNS queries to
other hosts, this deletes only connections to this host's port: by destination when a port
is mapped, by the pod that replies when it is unmapped.

Source of the numbers: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

from errno import ENOENT

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.route import route_get
from cni_py.netlink import netfilter
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import (
    CTA_FILTER_F_CTA_PROTO_DST_PORT,
    CTA_FILTER_F_CTA_PROTO_NUM,
    FAMILY,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    NETLINK_NETFILTER,
    NFNL_SUBSYS_CTNETLINK,
    RTN_LOCAL,
)
from cni_py.netlink.socket import Netlink, new_socket, open_host
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from cni_py.kernel.address import Address
    from cni_py.netlink.attributes import Message

TCP, UDP = 6, 17
_NAMES = {TCP: "tcp", UDP: "udp"}
_ECHO = {
    4: ("CTA_PROTO_ICMP_ID", "CTA_PROTO_ICMP_TYPE", "CTA_PROTO_ICMP_CODE"),
    6: ("CTA_PROTO_ICMPV6_ID", "CTA_PROTO_ICMPV6_TYPE", "CTA_PROTO_ICMPV6_CODE"),
}
_GET, _DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE


class Connection(Value):
    """A UDP connection: its destination, the address that replies, and the attributes that identify it to the kernel."""

    destination: bytes
    port: int
    answered_by: bytes
    name: Message


def forget(version: int, ports: Collection[int], selects: Callable[[Connection], bool]) -> None:
    """Delete the UDP connections to these ports that ``selects`` returns True for. A rejection by the kernel is only noted.

    The kernel walks its whole table for it, 5 to 10 ms: so once, and not at all without a port.
    """
    try:
        for connection in _connections(version, ports) if ports else ():
            if selects(connection):
                _delete(version, connection)
    except (KernelRefused, OSError) as error:
        note(f"UDP connections to port {', '.join(map(str, ports))} may keep their old destination: {error}")


def is_to_this_host() -> Callable[[bytes], bool]:
    """Return a test whether an address is one of this host's; results are cached."""
    known: dict[bytes, bool] = {}

    def test(address: bytes) -> bool:
        if address not in known:
            with open_host() as rtnl:
                route = route_get(rtnl, address)
            known[address] = route is not None and route.kind == RTN_LOCAL
        return known[address]

    return test


def _connections(version: int, ports: Collection[int]) -> Iterator[Connection]:
    """Yield the UDP connections to these ports. Linux 5.8 and newer filter by port, older ones return all."""
    flags = CTA_FILTER_F_CTA_PROTO_NUM | (CTA_FILTER_F_CTA_PROTO_DST_PORT if len(ports) == 1 else 0)
    question = {
        "nfgen_family": FAMILY[version],
        "CTA_TUPLE_ORIG": {"CTA_TUPLE_PROTO": {"CTA_PROTO_NUM": UDP, "CTA_PROTO_DST_PORT": min(ports)}},
        "CTA_FILTER": {"CTA_FILTER_ORIG_FLAGS": flags, "CTA_FILTER_REPLY_FLAGS": 0},
    }
    for answer in netfilter.dump(_GET, encode("nfct_msg", question)):
        found = decode("nfct_msg", answer)
        original, reply = found.get("CTA_TUPLE_ORIG", {}), found.get("CTA_TUPLE_REPLY", {})
        protocol = original.get("CTA_TUPLE_PROTO", {})
        is_whole = "CTA_PROTO_SRC_PORT" in protocol  # by the whole tuple the kernel finds it again
        if protocol.get("CTA_PROTO_NUM") == UDP and is_whole and protocol.get("CTA_PROTO_DST_PORT") in ports:
            name = {member: found.get(member) for member in ("CTA_TUPLE_ORIG", "CTA_ID", "CTA_ZONE")}
            destination = _address(original, "CTA_IP_V4_DST", "CTA_IP_V6_DST")
            source = _address(reply, "CTA_IP_V4_SRC", "CTA_IP_V6_SRC")
            yield Connection(destination, protocol["CTA_PROTO_DST_PORT"], source, name)


class Tracked(Value):
    """A connection of any protocol, without those of ICMP: where its first packet went, and where its replies come from."""

    protocol: str
    source: Address
    destination: Address
    port: int
    answered_by: Address
    answered_from: int


def list_tracked(version: int) -> list[Tracked]:
    """List the connections of TCP and UDP in the thread's namespace. Raises: OSError."""
    netlink = Netlink(new_socket(NETLINK_NETFILTER))  # those that are kept belong to another namespace
    try:
        answers = netlink.dump(encode("nfct_msg", {"nfgen_family": FAMILY[version]}), _GET)
    finally:
        netlink.close()
    decoded = [decode("nfct_msg", answer) for answer in answers if answer[0] == FAMILY[version]]
    return [of for of in map(_tracked_of, decoded) if of is not None]


def _tracked_of(found: Message) -> Tracked | None:
    from ipaddress import ip_address

    original, reply = found.get("CTA_TUPLE_ORIG", {}), found.get("CTA_TUPLE_REPLY", {})
    proto, of_reply = original.get("CTA_TUPLE_PROTO", {}), reply.get("CTA_TUPLE_PROTO", {})
    name = _NAMES.get(proto.get("CTA_PROTO_NUM"))
    if name is None:
        return None
    return Tracked(
        name,
        ip_address(_address(original, "CTA_IP_V4_SRC", "CTA_IP_V6_SRC")),
        ip_address(_address(original, "CTA_IP_V4_DST", "CTA_IP_V6_DST")),
        proto.get("CTA_PROTO_DST_PORT", 0),
        ip_address(_address(reply, "CTA_IP_V4_SRC", "CTA_IP_V6_SRC")),
        of_reply.get("CTA_PROTO_SRC_PORT", 0),
    )


def delete_original(protocol: str, source: Address, destination: Address, source_port: int, port: int, identifier: int) -> None:
    """Delete the connection whose first packet had these ends, in the thread's namespace. A rejection is ignored: it expires.

    Args:
        protocol: icmp, tcp or udp.
        identifier: of an ICMP echo, which has no ports.
    """
    version = source.version
    addresses = {f"CTA_IP_V{version}_SRC": source.packed, f"CTA_IP_V{version}_DST": destination.packed}
    proto: Message = {"CTA_PROTO_NUM": {"icmp": {4: 1, 6: 58}[version], "tcp": TCP, "udp": UDP}[protocol]}
    if protocol == "icmp":
        names = _ECHO[version]
        proto |= dict(zip(names, (identifier, 8 if version == 4 else 128, 0), strict=True))
    else:
        proto |= {"CTA_PROTO_SRC_PORT": source_port, "CTA_PROTO_DST_PORT": port}
    message = {"nfgen_family": FAMILY[version], "CTA_TUPLE_ORIG": {"CTA_TUPLE_IP": addresses, "CTA_TUPLE_PROTO": proto}}
    ends = ("-s", str(source), "-d", str(destination))
    try:
        netlink = Netlink(new_socket(NETLINK_NETFILTER))  # those that are kept belong to another namespace
        try:
            with step("conntrack", "-D", "-f", f"ipv{version}", "-p", protocol, *ends):
                netlink.change(encode("nfct_msg", message), _DELETE)
        finally:
            netlink.close()
    except (KernelRefused, OSError):
        pass


def _address(of: Message, *names: str) -> bytes:
    """The first of these that a tuple has: it has those of one IP version."""
    addresses = of.get("CTA_TUPLE_IP", {})
    return next((addresses[name] for name in names if name in addresses), b"")


def _delete(version: int, connection: Connection) -> None:
    """Delete a connection; absence is success: it may have expired. Raises: KernelRefused."""
    from ipaddress import ip_address

    to = ("--orig-dst", str(ip_address(connection.destination)), "--orig-port-dst", str(connection.port))
    with step("conntrack", "-D", "-f", f"ipv{version}", "-p", "udp", *to) as change:
        try:
            netfilter.change(_DELETE, encode("nfct_msg", {"nfgen_family": FAMILY[version], **connection.name}))
        except OSError as error:
            if error.errno != ENOENT:
                raise
            change.unchanged = True
