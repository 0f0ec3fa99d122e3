"""Forget UDP connections that were made before a port was mapped, or to a pod that has gone.

NAT is decided by a connection's first packet. UDP has no end of a connection, so a sender that goes on
would be answered by whoever had the port before, for as long as it sends. Owns nothing: entries of
the kernel's connection table are deleted; the next packet makes a new one.

Unlike the Go plugin, which forgets every connection *to that port number* anywhere, DNS queries to
other hosts among them, only what was sent to this host's port is forgotten: by destination when a port
is mapped, by the pod that answers when it is unmapped.

Source of the numbers: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

from errno import ENOENT

from cni_py.errors import KernelRefused
from cni_py.journal import note, step
from cni_py.kernel.route import route_to
from cni_py.netlink import netfilter
from cni_py.netlink.attributes import attribute, attributes, nested
from cni_py.netlink.constants import (
    AF_INET,
    AF_INET6,
    CTA_FILTER_F_CTA_PROTO_DST_PORT,
    CTA_FILTER_F_CTA_PROTO_NUM,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    NFNL_SUBSYS_CTNETLINK,
    RTN_LOCAL,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

UDP = 17
_FAMILY = {4: AF_INET, 6: AF_INET6}
_GET, _DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25  # CTA_…


class Connection(Value):
    """A UDP connection: where it was sent to, who answers, and the attributes that name it to the kernel."""

    destination: bytes
    port: int
    answered_by: bytes
    name: bytes


def forget(version: int, ports: Collection[int], doomed: Callable[[Connection], bool]) -> None:
    """Delete the UDP connections to these ports for which ``doomed`` says so. What the kernel refuses is noted, no more.

    The kernel walks its whole table for it, 5 to 10 ms: so once, and not at all without a port.
    """
    try:
        for connection in _connections(version, ports) if ports else ():
            if doomed(connection):
                _delete(version, connection)
    except (KernelRefused, OSError) as error:
        note(f"UDP connections to port {', '.join(map(str, ports))} may go on as before: {error}")


def is_to_this_host() -> Callable[[bytes], bool]:
    """A test whether an address is one of this host's; what was found is remembered."""
    known: dict[bytes, bool] = {}

    def test(address: bytes) -> bool:
        if address not in known:
            known[address] = route_to(address)[0] == RTN_LOCAL
        return known[address]

    return test


def _connections(version: int, ports: Collection[int]) -> Iterator[Connection]:
    """The UDP connections to these ports. Linux 5.8 and newer look for one port, older ones answer with all."""
    wanted = {port.to_bytes(2, "big") for port in ports}
    # CTA_TUPLE_PROTO > CTA_PROTO_NUM, CTA_PROTO_DST_PORT; CTA_FILTER > CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS
    protocol = attribute(1, bytes([UDP])) + attribute(3, min(wanted))
    flags = CTA_FILTER_F_CTA_PROTO_NUM | (CTA_FILTER_F_CTA_PROTO_DST_PORT if len(wanted) == 1 else 0)
    filter_ = attribute(1, _native(flags)) + attribute(2, _native(0))
    body = nested(_TUPLE_ORIG, nested(2, protocol)) + nested(_FILTER, filter_)
    for answer in netfilter.dump(_GET, _FAMILY[version], body):
        parts = dict(attributes(answer))
        original, reply = _tuple(parts.get(_TUPLE_ORIG, b"")), _tuple(parts.get(_TUPLE_REPLY, b""))
        if original["protocol"] == bytes([UDP]) and original["port"] in wanted:
            name = nested(_TUPLE_ORIG, parts[_TUPLE_ORIG])
            name += b"".join([attribute(kind, parts[kind]) for kind in (_ID, _ZONE) if kind in parts])
            yield Connection(original["destination"], int.from_bytes(original["port"], "big"), reply["source"], name)


def _native(number: int) -> bytes:
    from struct import pack

    return pack("=I", number)


def _tuple(data: bytes) -> dict[str, bytes]:
    """CTA_TUPLE_IP 1 > addresses, CTA_TUPLE_PROTO 2 > protocol 1, destination port 3."""
    parts = dict(attributes(data))
    addresses, protocol = dict(attributes(parts.get(1, b""))), dict(attributes(parts.get(2, b"")))
    return {
        "source": addresses.get(1) or addresses.get(3, b""),  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
        "destination": addresses.get(2) or addresses.get(4, b""),
        "protocol": protocol.get(1, b""),
        "port": protocol.get(3, b""),
    }


def _delete(version: int, connection: Connection) -> None:
    """Absence is success: it may have ended since it was seen. Raises: KernelRefused."""
    from ipaddress import ip_address

    to = ("--orig-dst", str(ip_address(connection.destination)), "--orig-port-dst", str(connection.port))
    with step("conntrack", "-D", "-f", f"ipv{version}", "-p", "udp", *to):
        try:
            netfilter.change(_DELETE, _FAMILY[version], connection.name)
        except OSError as error:
            if error.errno != ENOENT:
                raise
