"""Addresses of former subnets: which go from the pods' bridge, and which stay (flanneld/former_gateways.py)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from cni_py.flanneld.former_gateways import FormerGateways
from cni_py.flanneld.lease import Subnets
from support.flannel import SAVED, network
from support.namespaces import Host

pytestmark = pytest.mark.netns

NETWORKS = [IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48")]
OLD = Subnets(IPv4Network("10.244.91.0/24"), IPv6Network("fd00:244:0:91::/64"))
OWN = Subnets(IPv4Network("10.244.5.0/24"), IPv6Network("fd00:244:0:5::/64"))
ELSEWHERE = Subnets(IPv4Network("10.9.7.0/24"))
"""A subnet of a network that was configured before."""
GATEWAYS = {4: "10.244.91.1/24", 6: "fd00:244:0:91::1/64"}
BRIDGE = """
ip link add cni0 type bridge
ip link set cni0 up
for address in 10.244.91.1/24 fd00:244:0:91::1/64 10.244.5.1/24 fd00:244:0:5::1/64; do ip addr add $address dev cni0; done
"""
POD = """
ip netns add {pod}
ip link add {port} type veth peer eth0 netns {pod}
ip link set {port} master cni0 up
for address in {addresses}; do ip -n {pod} addr add $address dev eth0 nodad; done
"""


def look(former: list[Subnets]) -> bool:
    return FormerGateways(NETWORKS, OWN, former).look()


def addresses(host: Host, name: str = "cni0") -> set[str]:
    [link] = host.json(f"ip -j addr show dev {name}")
    return {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] == "global"}


def add_pod(host: Host, number: int, *of: str) -> None:
    host.run(POD.format(pod=f"pod{number}", port=f"veth0000000{number}", addresses=" ".join(of)))


@pytest.mark.parametrize("former", [[OLD], []], ids=["known", "found on the bridge"])
@pytest.mark.parametrize("used", [(), (4,), (6,), (4, 6)], ids=str)
def test_address_stays_as_long_as_a_pod_has_one_of_its_subnet(host: Host, former: list[Subnets], used: tuple[int, ...]) -> None:
    """Check each family; pods of the new subnet do not count, nor what has no address."""
    host.run(BRIDGE)
    add_pod(host, 1, "10.244.5.9/24", "fd00:244:0:5::9/64")
    add_pod(host, 2)
    theirs = {4: "10.244.91.9/24", 6: "fd00:244:0:91::9/64"}
    if used:
        add_pod(host, 3, *(theirs[version] for version in used))
    new = {"10.244.5.1/24", "fd00:244:0:5::1/64"}
    assert host.do(look, former) == bool(used)
    assert addresses(host) == new | {GATEWAYS[version] for version in used}
    if used:
        host.run("ip netns del pod3; while ip link show veth00000003 >/dev/null 2>&1; do :; done")
        assert host.do(look, former) is False
        assert addresses(host) == new


def test_what_is_no_gateway_of_a_former_subnet_is_left_alone(host: Host) -> None:
    host.run(BRIDGE)
    host.run(
        "ip addr add 10.244.91.77/32 dev cni0; ip addr add 169.254.20.10/32 dev cni0; ip addr add 10.88.0.1/16 dev cni0;"
        "ip link add br9 type bridge; ip link add up0 type veth peer up1; ip link set up0 master br9; ip addr add 10.244.33.1/24 dev br9;"
        "ip addr add 10.244.34.1/24 dev up1; ip addr add 10.9.7.1/24 dev cni0"
    )
    before = addresses(host)
    assert host.do(look, [OLD]) is False
    assert before - addresses(host) == {"10.244.91.1/24", "fd00:244:0:91::1/64"}
    assert addresses(host, "br9") == {"10.244.33.1/24"}
    assert addresses(host, "up1") == {"10.244.34.1/24"}
    assert host.do(look, [ELSEWHERE]) is False
    assert "10.9.7.1/24" not in addresses(host), "of the network that was configured before"


def test_gateway_in_a_vlan_is_treated_as_that_of_the_bridge(host: Host) -> None:
    host.run("ip link add cni0 type bridge; ip link set cni0 up")
    host.run(
        "ip link add cni0.100 type veth peer port100; ip link set port100 master cni0 up; ip addr add 10.244.91.1/24 dev cni0.100"
    )
    add_pod(host, 1, "10.244.91.9/24")
    assert host.do(look, [OLD]) is True
    host.run("ip netns del pod1; while ip link show veth00000001 >/dev/null 2>&1; do :; done")
    assert host.do(look, [OLD]) is False
    assert addresses(host, "cni0.100") == set()


def test_former_subnet_of_another_network_is_known_after_a_restart(tmp_path: Path) -> None:
    """Check that it is saved as long as its gateway is on the bridge: its address alone does not show what it was."""
    with network(tmp_path, "vxlan", nodes=1) as net:
        [node] = net.nodes
        node.start().wait_ready()
        node.add_pod()
        old = node.env["FLANNEL_SUBNET"]
        assert node.flanneld
        node.flanneld.terminate()
        net.write({"config": {"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan"}}, "leases": {}})
        for _ in range(2):
            flanneld = node.start().wait_ready()
            flanneld.wait_for_log(f"cni0 keeps {old} of this node's former subnet, which pods use")
            flanneld.terminate()
        assert '"former": ["10.244.' in node.host.path(SAVED).read_text()
        flanneld = node.start().wait_ready()
        node.run("ip netns del pod1")
        flanneld.wait_for_log(f"deleted {old} from cni0")
        flanneld.terminate()
        node.start().wait_ready().terminate()
        assert "former" not in node.host.path(SAVED).read_text()
