"""flanneld's back end ipip between two nodes: pods reach one another with packets of every size, and it keeps its device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.flannel import Net, Node, network
from support.waiting import until

pytestmark = pytest.mark.netns

DEVICE = "flannel.ipip"
MTU = 1500 - 20  # the outer IPv4 header


@pytest.fixture(scope="module", autouse=True)
def ipip_is_loaded() -> None:
    """The kernel gives every namespace a tunl0 when it loads ipip, which would look like something that flanneld left."""
    from support.namespaces import Host

    with Host() as host:
        host.run("ip link add probe0 type ipip local 192.0.2.1")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Net]:
    with network(tmp_path, "ipip", nodes=2) as net:
        net.start()
        yield net


def tunnel(node: Node) -> dict[str, Any]:
    """Details of the device."""
    device = node.device(DEVICE)
    return device | dict(device["linkinfo"]["info_data"])


def check_traffic(net: Net) -> None:
    assert net.unreached() == []
    net.transfer(*net.nodes[:2])
    net.transfer(*net.nodes[1::-1])


def test_joins_pods(two: Net) -> None:
    check_traffic(two)
    for node, other in (two.nodes, two.nodes[::-1]):
        assert node.env["FLANNEL_MTU"] == str(MTU)
        found = tunnel(node)
        assert (found["mtu"], found["local"], found["remote"]) == (MTU, node.address, "any")
        assert (found["ttl"], found["pmtudisc"]) == (0, False)
        assert "UP" in found["flags"]
        assert [address["local"] for address in found["addr_info"] if address["scope"] == "global"] == [f"{node.subnet}.0"]
        route = node.routes()[other.subnets[0]]
        assert (route["gateway"], route["dev"], route["flags"]) == (other.address, DEVICE, ["onlink"])


def test_packets_that_may_be_cut_pass_at_any_size(two: Net) -> None:
    first, second = two.nodes
    [address] = second.pods["pod2"]
    for size in (MTU, MTU + 1, 4000, 65000):
        done = first.host.execute(["ping", "-nqc1", "-W5", f"-s{size - 28}", address], sandbox="pod1")
        assert done.returncode == 0, (size, done.stdout)


@pytest.mark.parametrize("change", ["ip link del {}", "ip link set {} down", "ip link set {} mtu 1300"])
def test_what_another_process_changes_is_put_back(two: Net, change: str) -> None:
    first = two.nodes[0]
    first.run(change.format(DEVICE))
    until(lambda: first.device(DEVICE).get("mtu") == MTU and "UP" in first.device(DEVICE)["flags"], "the device is back")
    two.wait_converged()
    assert two.unreached() == []


def test_device_with_another_local_address_is_replaced(two: Net) -> None:
    first = two.nodes[0]
    assert first.flanneld
    first.flanneld.terminate()
    first.run(f"ip link del {DEVICE}; ip link add {DEVICE} type ipip local 192.0.2.1; ip link set {DEVICE} up")
    first.start().wait_ready()
    two.wait_converged()
    assert tunnel(first)["local"] == first.address
    assert two.unreached() == []


def test_restart_keeps_the_device(two: Net) -> None:
    first = two.nodes[0]
    before = first.device(DEVICE)
    assert first.flanneld
    first.flanneld.terminate()
    assert two.nodes[1].reached(first.pods["pod1"][0], pod="pod2", size=MTU)  # forwarding goes on without flanneld
    first.start().wait_ready()
    assert first.device(DEVICE)["ifindex"] == before["ifindex"]
    assert two.unreached() == []


def test_nodes_come_and_go(two: Net) -> None:
    first, second = two.nodes
    [third] = two.add_nodes(1)
    two.start(third)
    assert two.unreached() == []
    gone = third.subnets
    assert third.flanneld
    third.flanneld.kill()
    content = two.read()
    content["leases"] = {key: lease for key, lease in content["leases"].items() if lease["PublicIP"] != third.address}
    two.write(content)
    until(lambda: not set(gone) & first.routes().keys() | set(gone) & second.routes().keys(), "the routes are deleted")
    assert two.unreached() == []


@pytest.mark.parametrize("segments", [1, 2])
def test_direct_routing_tunnels_to_another_segment_alone(tmp_path: Path, segments: int) -> None:
    with network(tmp_path, {"Type": "ipip", "DirectRouting": True}, segments=segments, nodes=2) as net:
        net.start()
        check_traffic(net)
        for node in net.nodes:
            assert {route["dev"] for route in node.routes().values()} == {"eth0" if segments == 1 else DEVICE}


def test_masquerades_what_leaves_the_network(tmp_path: Path) -> None:
    with network(tmp_path, "ipip", nodes=2) as net:
        net.options = ["-ip-masq"]
        net.start()
        assert net.unreached() == []
        assert net.nodes[0].reached("192.168.123.1", pod="pod1")


@pytest.mark.parametrize("options", [[], ["-ip-masq"]], ids=["plain", "masquerade"])
def test_cleanup_leaves_nothing(tmp_path: Path, options: list[str]) -> None:
    with network(tmp_path, "ipip", nodes=2) as net:
        node = net.nodes[0]
        before = node.host.snapshot()
        net.options = options
        net.start(pods=False)
        assert node.flanneld
        node.flanneld.terminate()
        done = node.run_flanneld("-cleanup", "-iface=eth0")
        assert done.returncode == 0, done.stderr
        assert node.host.snapshot() == before


def test_ipv6_is_refused(tmp_path: Path) -> None:
    with network(tmp_path, "ipip", "dual", nodes=1) as net:
        flanneld = net.nodes[0].start()
        flanneld.wait_for_log("the ipip back end carries IPv4 alone")
        assert net.nodes[0].device(DEVICE) == {}
