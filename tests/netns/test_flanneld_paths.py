"""Packets from pod to pod over three nodes, by every back end that needs nothing but a usual kernel, and both families.

Each case: flanneld starts on all nodes at once, with an empty datastore; every pod reaches every other one with small
packets and with full ones that must not be cut (FLANNEL_MTU bytes, both ways), and TCP transfers are complete both ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.flannel import Net, Node, network
from support.waiting import until

pytestmark = pytest.mark.netns

DIRECT = {"Type": "vxlan", "DirectRouting": True}
FAMILIES = ("v4", "v6", "dual")
VXLAN_OVERHEAD = {"v4": 50, "v6": 70, "dual": 70}  # outer Ethernet, IP, UDP, VXLAN
UDP_OVERHEAD = {"v4": 28, "v6": 48, "dual": 48}  # outer IP, UDP


def check(net: Net) -> None:
    assert net.unreached() == []
    net.transfer(net.nodes[0], net.nodes[-1])
    net.transfer(net.nodes[-1], net.nodes[0])


def ways(net: Net) -> set[tuple[int, int, str]]:
    """Node, other node, and the device by which the one's packets to the other's pods leave."""
    found = set()
    for node in net.running():
        routes = node.routes()
        for other in net.running():
            found |= {(node.number, other.number, routes[subnet]["dev"]) for subnet in other.subnets if other is not node}
    return found


@pytest.mark.parametrize("families", FAMILIES)
def test_vxlan_joins_pods(tmp_path: Path, families: str) -> None:
    with network(tmp_path, "vxlan", families) as net:
        net.start()
        check(net)
        assert net.nodes[0].env["FLANNEL_MTU"] == str(1500 - VXLAN_OVERHEAD[families])
        names = {"v4": {"flannel.1"}, "v6": {"flannel-v6.1"}, "dual": {"flannel.1", "flannel-v6.1"}}[families]
        assert {device for _, _, device in ways(net)} == names


def test_vxlan_joins_pods_where_a_router_translates_a_public_address(tmp_path: Path) -> None:
    """No packet leaves with an address that the host does not have: with Go's flanneld the node is cut off."""
    nat = "add table ip nat; add chain ip nat pre {{ type nat hook prerouting priority dstnat; }}; "
    nat += "add rule ip nat pre ip daddr 198.51.100.11 dnat to {}"
    with network(tmp_path, "vxlan", nodes=2) as net:
        first, second = net.nodes
        net.switch.run(f"nft '{nat.format(first.address)}'")
        first.start("-public-ip=198.51.100.11").wait_ready()
        second.start().wait_ready()
        first.add_pod()
        second.add_pod()
        net.wait_converged()
        check(net)
        assert net.leases()[f"{first.subnet}.0-24"]["PublicIP"] == "198.51.100.11"
        assert first.device()["linkinfo"]["info_data"]["local"] == first.address


@pytest.mark.parametrize("families", FAMILIES)
def test_vxlan_with_direct_routing_uses_no_tunnel_on_one_segment(tmp_path: Path, families: str) -> None:
    with network(tmp_path, DIRECT, families) as net:
        net.start()
        check(net)
        assert {device for _, _, device in ways(net)} == {"eth0"}


@pytest.mark.parametrize("families", FAMILIES)
def test_vxlan_with_direct_routing_tunnels_to_another_segment_alone(tmp_path: Path, families: str) -> None:
    with network(tmp_path, DIRECT, families, segments=2) as net:
        net.start()
        check(net)
        direct = {(one, other) for one, other, device in ways(net) if device == "eth0"}
        tunnelled = {(one, other) for one, other, device in ways(net) if device != "eth0"}
        assert direct == {(1, 3), (3, 1)}
        assert tunnelled == {(1, 2), (2, 1), (2, 3), (3, 2)}


@pytest.mark.parametrize("families", FAMILIES)
def test_host_gw_joins_pods(tmp_path: Path, families: str) -> None:
    with network(tmp_path, "host-gw", families) as net:
        net.start()
        check(net)
        assert net.nodes[0].env["FLANNEL_MTU"] == "1500"
        assert {device for _, _, device in ways(net)} == {"eth0"}


@pytest.mark.parametrize("families", FAMILIES)
def test_udp_joins_pods(tmp_path: Path, families: str) -> None:
    with network(tmp_path, "udp", families) as net:
        net.start()
        check(net)
        assert net.nodes[0].env["FLANNEL_MTU"] == str(1500 - UDP_OVERHEAD[families])


@pytest.mark.parametrize("families", FAMILIES)
@pytest.mark.parametrize("backend", ["vxlan", DIRECT, "host-gw", "udp"], ids=["vxlan", "vxlan direct", "host-gw", "udp"])
def test_nodes_come_go_and_get_another_name(tmp_path: Path, backend: Any, families: str) -> None:
    with network(tmp_path, backend, families, nodes=2) as net:
        net.start()
        first, second = net.nodes
        subnets = [first.subnets, second.subnets]

        [third] = net.add_nodes(1)
        net.start(third)
        assert net.unreached() == []
        with_three = first.state()

        # a node gets another name: it keeps its subnet, and no other node notices
        assert second.flanneld
        assert second.flanneld.terminate() == 0
        second.start(
            within=["unshare", "--uts", "sh", "-c", 'echo other >/proc/sys/kernel/hostname; exec "$0" "$@"']
        ).wait_ready()
        assert second.subnets == subnets[1]
        assert net.leases()[key_of(second)]["Node"] == "other"
        assert first.state() == with_three
        assert net.unreached() == []

        # a node goes: nothing that led to it is left, and the others go on
        gone, gone_key = third.subnets, key_of(third)
        assert third.flanneld
        third.flanneld.kill()
        content = net.read()
        del content["leases"][gone_key]
        net.write(content)
        assert first.flanneld
        if backend == "udp":
            for subnet in gone:
                first.flanneld.wait_for_log(f"Subnet removed: {subnet}")
        else:
            words = [subnet.partition("/")[0] for subnet in gone] + [third.address, third.address6]
            until(lambda: not any(word in str(first.state()) for word in words), "the third is forgotten")
        assert net.unreached() == []
        assert [first.subnets, second.subnets] == subnets


def key_of(node: Node) -> str:
    """The subnet of its lease."""
    return next(
        key
        for key, lease in node.net.leases().items()
        if node.address == lease["PublicIP"] or node.address6 == lease["PublicIPv6"]
    )
