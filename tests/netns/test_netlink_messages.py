"""Requests of plugins and flanneld, and the kernel's replies, as pyroute2 encodes and decodes them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_network
from typing import Any

from cni_py import engine
from cni_py.errors import NotAvailable
from cni_py.kernel.address import add_address, list_host_addresses
from cni_py.kernel.device import ensure_device
from cni_py.kernel.link import find_link, set_up
from cni_py.kernel.neighbour import (
    Forwarding,
    Neighbour,
    delete_forwarding,
    list_forwarding,
    list_neighbours,
    replace_forwarding,
    replace_neighbours,
)
from cni_py.kernel.route import Route, blackhole, default_interfaces, delete_routes, list_routes, replace_routes, route_get
from cni_py.kernel.vxlan import Vxlan, ensure_vxlan, find_vxlan
from cni_py.netlink import attributes
from cni_py.netlink.attributes import Message
from cni_py.netlink.constants import NFT_MSG_GETSETELEM
from cni_py.netlink.socket import open_host
from cni_py.packetfilter import forward, forward_rules, nfnetlink
from cni_py.spec.call import Call
from cni_py.sweep.netns_scan import Reader
from support import pyroute2_messages
from support.namespaces import Host

Seen = set[tuple[str, str, bytes]]
"""A message: encoded or decoded, the table, the bytes."""
BRIDGE = {
    "cniVersion": "1.0.0", "name": "net", "type": "bridge", "isDefaultGateway": True, "ipMasq": True, "macspoofchk": True, "mtu": 1400,
    "hairpinMode": True,
    "ipam": {
        "type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "10.9.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7}, {"dst": "fd09::/64", "table": 1000}],
    },
}  # fmt: skip
PORTMAP = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]
MAC = "c2:11:22:33:44:55"


@contextmanager
def recorded() -> Iterator[Seen]:
    """Record everything that is encoded and decoded meanwhile."""
    seen: Seen = set()
    encode, decode = attributes._Table.encode, attributes._Table.decode

    def name_of(table: attributes._Table) -> str:
        return next(name for name, of in attributes._tables.items() if of is table)

    def recording_encode(self: attributes._Table, message: Message) -> bytes:
        data = encode(self, message)
        seen.add(("encoded", name_of(self), data))
        return data

    def recording_decode(self: attributes._Table, data: bytes) -> Message:
        seen.add(("decoded", name_of(self), data))
        return decode(self, data)

    attributes._Table.encode, attributes._Table.decode = recording_encode, recording_decode  # type: ignore[method-assign,assignment]
    try:
        yield seen
    finally:
        attributes._Table.encode, attributes._Table.decode = encode, decode  # type: ignore[method-assign]


def call(verb: str, conf: dict[str, Any], netns: str, **more: Any) -> Any:
    """Returns: the result; asserts success."""
    of = Call(verb, conf["type"], "c1", netns, "eth0", cni_path=("/nowhere",), **more)
    status, reply = engine.handle(of, json.dumps(conf).encode())
    assert status == 0, reply
    return json.loads(reply) if reply else None


def plugins(netns: str) -> Seen:
    """ADD, CHECK and DEL of a chain, twice, with a UDP connection to a port that is mapped afterwards; GC."""
    with recorded() as seen:
        result = call("ADD", BRIDGE, netns)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"before", ("10.1.2.1", 5353))
        ports = PORTMAP | {"runtimeConfig": {"portMappings": PORTS}, "prevResult": result}
        for verb in ("ADD", "ADD", "CHECK"):
            call(verb, ports, netns)
        for name in ("inet cni_py masq4", "inet cni_py masq6", "inet cni_py hostports4", "inet cni_py sources4"):
            answers = nfnetlink._answers(name, NFT_MSG_GETSETELEM, nfnetlink._set(name), is_dump=True)
            assert any(attributes.decode("nft_set_elem_list_msg", answer)["NFTA_SET_ELEM_LIST_ELEMENTS"] for answer in answers)
        call("DEL", ports, netns)
        call("CHECK", BRIDGE | {"prevResult": result}, netns)
        with Reader() as reader, open(netns, "rb") as file:
            assert reader.host_ends()
            number = reader.number_of(file.fileno())
            assert number is not None
            assert reader.addresses(number)
        call("DEL", BRIDGE, netns)
        call("GC", BRIDGE | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}, "")
    return seen


def flanneld() -> Seen:
    """Devices, addresses, routes, entries and rules of a node, made, read and deleted."""
    with recorded() as seen, open_host() as host:
        eth0 = find_link(host, "eth0")
        assert eth0 is not None
        for name, local in (("flannel.1", "192.0.2.1"), ("flannel-v6.1", "fd00::1")):
            link = ensure_vxlan(host, Vxlan(name, 1, 8472, ip_address(local), eth0.ifindex, MAC, 1450, gbp=False))
            set_up(host, link)
            assert find_vxlan(host, name) is not None
        add_address(host, link, IPv4Interface("10.244.1.0/32"))
        routes = [
            Route(ip_network("10.244.2.0/24"), "flannel.1", IPv4Address("10.244.2.0"), onlink=True),
            Route(ip_network("fd01:2::/64"), "flannel-v6.1", IPv6Address("fd01:2::"), onlink=True),
            blackhole(ip_network("10.244.1.0/24")),
        ]
        neighbours = [
            Neighbour("flannel.1", IPv4Address("10.244.2.0"), MAC),
            Neighbour("flannel-v6.1", IPv6Address("fd01:2::"), MAC),
        ]
        forwarding = [
            Forwarding("flannel.1", MAC, IPv4Address("192.0.2.2")),
            Forwarding("flannel-v6.1", MAC, IPv6Address("fd00::2")),
        ]
        assert replace_routes(host, routes) + replace_neighbours(host, neighbours) + replace_forwarding(host, forwarding) == []
        assert list_routes(host) == set(routes)
        assert list_neighbours(host, link)
        assert list_forwarding(host, link)
        assert delete_routes(host, routes) + delete_forwarding(host, forwarding) == []
        assert default_interfaces(host, 4) == [eth0.ifindex, eth0.ifindex]
        assert route_get(host, ip_address("192.0.2.7").packed) is not None
        assert list_host_addresses(host)
        for kind, data in (("ipip", {"IFLA_IPIP_LOCAL": ip_address("192.0.2.1").packed}), ("bridge", None)):
            try:
                ensure_device(host, f"d-{kind}", kind, 1480, data)
            except NotAvailable:
                continue
        written = forward.write(
            [forward_rules.Pair(ip_network("10.244.0.0/16"), ip_network("10.244.1.0/24"))], random_fully=True
        )
        assert written == nfnetlink.rule_contents("inet cni_py_flanneld")
        assert nfnetlink.base_chains(4)
    return seen


def check(seen: Seen) -> dict[tuple[str, str], int]:
    """Compare what was seen with pyroute2. Returns: how many messages of each table were encoded and decoded."""
    counts: dict[tuple[str, str], int] = {}
    for what, table, data in sorted(seen):
        if table not in pyroute2_messages.MESSAGES:
            continue
        message = pyroute2_messages.without_corrections(table, attributes.decode(table, data))
        if what == "encoded":
            assert attributes.encode(table, message).hex() == pyroute2_messages.encoded(table, message).hex(), message
        else:
            assert message == pyroute2_messages.decoded(table, data)
        counts[what, table] = counts.get((what, table), 0) + 1
    return counts


def test_messages_of_the_plugins(host: Host) -> None:
    host.run("ip link add eth0 type bridge; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up")
    counts = check(host.do(plugins, str(host.netns("c1"))))
    tables = {
        "ifinfmsg",
        "ifaddrmsg",
        "rtmsg",
        "nsidmsg",
        "nft_table_msg",
        "nft_chain_msg",
        "nft_rule_msg",
        "nft_set_elem_list_msg",
        "nfct_msg",
    }
    assert {table for what, table in counts if what == "encoded"} == tables
    assert {table for what, table in counts if what == "decoded"} == tables - {"nft_table_msg"}


def test_messages_of_flanneld(host: Host) -> None:
    host.run(
        "ip link add eth0 type bridge; ip addr add 192.0.2.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad; ip link set eth0 up"
    )
    host.run("ip route add default nexthop via 192.0.2.8 nexthop via 192.0.2.9")
    counts = check(host.do(flanneld))
    tables = {"ifinfmsg", "ifaddrmsg", "rtmsg", "ndmsg", "nft_chain_msg", "nft_rule_msg"}
    assert {table for _, table in counts} >= tables
