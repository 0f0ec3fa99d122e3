"""flanneld's back end wireguard between two nodes: each mode and family, what `wg` shows, and that it keeps its devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.flannel import Net, Node, network
from support.waiting import until

pytestmark = pytest.mark.netns

DEVICE, DEVICE_V6 = "flannel-wg", "flannel-wg-v6"
MTU = 1500 - 80  # IPv6 header, UDP, WireGuard
PSK = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
KEY = "/run/flannel/wgkey"


class Peer(NamedTuple):
    """A line of `wg show DEVICE dump`."""

    key: str
    psk: str
    endpoint: str
    allowed: frozenset[str]
    sent: int
    received: int
    keepalive: str


def peers(node: Node, device: str = DEVICE) -> list[Peer]:
    lines = [line.split("\t") for line in node.run(f"wg show {device} dump").splitlines()[1:]]
    return [
        Peer(key, psk, endpoint, frozenset(allowed.split(",")), int(sent), int(received), keepalive)
        for key, psk, endpoint, allowed, _, received, sent, keepalive in lines
    ]


def check_traffic(net: Net) -> None:
    assert net.unreached() == []
    net.transfer(*net.nodes[:2], size=400_000)
    net.transfer(*net.nodes[1::-1], size=400_000)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Net]:
    with network(tmp_path, "wireguard", nodes=2) as net:
        net.start()
        yield net


@pytest.mark.parametrize("families", ["v6", "dual"])
def test_joins_pods(tmp_path: Path, families: str) -> None:
    backend: dict[str, Any] = {"Type": "wireguard", "PSK": PSK, "PersistentKeepaliveInterval": 25}
    with network(tmp_path, backend, families, nodes=2) as net:
        net.start()
        check_traffic(net)
        devices = {"v6": [DEVICE_V6], "dual": [DEVICE, DEVICE_V6]}[families]
        for node, other in (net.nodes, net.nodes[::-1]):
            assert node.env["FLANNEL_MTU"] == str(MTU)
            assert [name for name in (DEVICE, DEVICE_V6) if node.device(name)] == devices
            for name in devices:
                [peer] = peers(node, name)
                endpoint = f"{other.address}:51820" if name == DEVICE else f"[{other.address6}]:51821"
                assert (peer.psk, peer.endpoint, peer.keepalive) == (PSK, endpoint, "25")
                assert peer.allowed <= set(other.subnets)
                assert peer.key == other.run(f"wg show {name} public-key").strip()
                assert min(peer.sent, peer.received) > 400_000
                assert node.device(name)["mtu"] == MTU
            assert node.run(f"stat -c %a {KEY}").strip() == "400"


@pytest.mark.parametrize("mode", ["auto", "ipv6"])
def test_one_device_carries_both_families(tmp_path: Path, mode: str) -> None:
    with network(tmp_path, {"Type": "wireguard", "Mode": mode}, "dual", nodes=2) as net:
        net.start()
        check_traffic(net)
        first, second = net.nodes
        assert first.device(DEVICE_V6) == {}
        [peer] = peers(first)
        assert peer.allowed == set(second.subnets)
        assert peer.endpoint == (f"[{second.address6}]:51820" if mode == "ipv6" else f"{second.address}:51820")


def test_device_that_another_process_deletes_is_put_back(two: Net) -> None:
    first = two.nodes[0]
    before = peers(first)[0]
    for change in (f"ip link del {DEVICE}", f"ip link set {DEVICE} down"):
        first.run(change)
        until(lambda: "UP" in first.device(DEVICE).get("flags", []) and peers(first), "the device is back, with its peer")
        two.wait_converged()
        assert peers(first)[0][:4] == before[:4]
        # the other node sends with the keys of the former device until its kernel has had no answer for 15 s
        until(lambda: two.unreached() == [], "a new handshake")


def test_restart_keeps_device_key_and_peers(two: Net) -> None:
    first, second = two.nodes
    device, key, peer = first.device(DEVICE), first.run(f"cat {KEY}"), peers(first)[0]
    assert first.flanneld
    first.flanneld.terminate()
    assert second.reached(first.pods["pod1"][0], pod="pod2", size=MTU)  # forwarding goes on without flanneld
    first.start().wait_ready()
    assert (first.device(DEVICE)["ifindex"], first.run(f"cat {KEY}")) == (device["ifindex"], key)
    after = peers(first)[0]
    assert after[:4] == peer[:4]
    assert after.sent >= peer.sent, "the peer is another one, and its session lost"
    assert after.received >= peer.received
    assert two.unreached() == []


def test_node_with_a_new_key_is_reached_and_one_that_leaves_is_forgotten(two: Net) -> None:
    first, second = two.nodes
    old = peers(first)[0].key
    assert second.flanneld
    second.flanneld.terminate()
    second.run(f"rm {KEY}; ip link del {DEVICE}")
    second.start().wait_ready()
    until(lambda: [peer.key for peer in peers(first)] != [old], "the new key is known")
    assert len(peers(first)) == 1
    two.wait_converged()
    assert two.unreached() == []
    second.flanneld.kill()
    content = two.read()
    content["leases"] = {key: lease for key, lease in content["leases"].items() if lease["PublicIP"] != second.address}
    two.write(content)
    until(lambda: peers(first) == [], "the peer is removed")


def test_cleanup_leaves_nothing(tmp_path: Path) -> None:
    with network(tmp_path, "wireguard", "dual", nodes=2) as net:
        node = net.nodes[0]
        node.run("echo 0 >/proc/sys/net/ipv4/conf/all/send_redirects")  # as the kernel does when it sets a WireGuard up
        before = node.host.snapshot()
        net.options = ["-ip-masq"]
        net.start(pods=False)
        assert node.flanneld
        node.flanneld.terminate()
        done = node.run_flanneld("-cleanup", "-iface=eth0")
        assert done.returncode == 0, done.stderr
        assert node.host.snapshot() == before
        assert not node.host.path(KEY).exists()
