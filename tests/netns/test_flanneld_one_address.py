"""VXLAN on one address (-vxlan-one-address): which packets get to the device, and how long the rule lasts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.flannel import Net, Node, network
from support.waiting import until

pytestmark = pytest.mark.netns

TABLE = "inet cni_py_flanneld_vxlan"
OTHER = {4: "192.168.123.99", 6: "fd00:123::99"}
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
SEND = """
import socket, sys
to, mac = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", ""))
with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.sendto(bytes.fromhex("0800000000000100") + mac + bytes.fromhex("02000000009988b5") + bytes(50), (to, 8472))
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Net]:
    with network(tmp_path, "vxlan", "dual", nodes=2) as net:
        net.nodes[0].run(f"ip addr add {OTHER[4]}/24 dev eth0; ip addr add {OTHER[6]}/64 dev eth0 nodad")
        net.start()
        yield net


def received(node: Node, version: int) -> int:
    count = node.host.json(f"ip -j -s link show {DEVICES[version]}")[0]["stats64"]["rx"]["packets"]
    assert isinstance(count, int)
    return count


def gets_in(net: Net, version: int, address: str) -> bool:
    """Send a packet to this address, and one to the published one, which does get in: then both have been handled."""
    first, second = net.nodes
    before, published = received(first, version), first.address if version == 4 else first.address6
    mac = first.device(DEVICES[version])["address"]
    for to in (address, published):
        done = second.host.execute(["python3", "-c", SEND, to, mac])
        assert done.returncode == 0, done.stderr
    until(lambda: received(first, version) > before, "that to the published address")
    return received(first, version) == before + 2


def restart(node: Node, *options: str) -> None:
    assert node.flanneld
    node.flanneld.terminate()
    node.start(*options).wait_ready()


def test_packets_for_another_address_are_dropped_while_the_option_is_there(pair: Net) -> None:
    first, _ = pair.nodes
    for version, other in OTHER.items():
        assert gets_in(pair, version, other), "as with the kernel's VXLAN"
    restart(first, "-vxlan-one-address")
    for version, other in OTHER.items():
        assert not gets_in(pair, version, other)
    assert pair.unreached() == []
    first.run("nft flush ruleset")
    until(lambda: TABLE in first.run("nft list tables"), "the rules are restored")
    assert not gets_in(pair, 4, OTHER[4])
    first.run(
        f"ip addr add {OTHER[4]}/32 dev lo; ip addr del {first.address}/24 dev eth0; ip addr replace {OTHER[4]}/24 dev eth0"
    )
    until(lambda: OTHER[4] in first.run(f"nft list table {TABLE} || true"), "the rule has the new address")
    until(lambda: pair.unreached() == [], "all pods are reached")
    restart(first)
    assert TABLE not in first.run("nft list tables")
    restart(first, "-vxlan-one-address")
    assert first.flanneld
    first.flanneld.terminate()
    assert TABLE in first.run("nft list tables"), "it stays, as all rules do"
    assert first.run_flanneld("-cleanup", "-iface=eth0").returncode == 0
    assert TABLE not in first.run("nft list tables")


def test_other_back_ends_say_that_it_has_no_effect(tmp_path: Path) -> None:
    with network(tmp_path, "host-gw", nodes=1) as net:
        [node] = net.nodes
        flanneld = node.start("-vxlan-one-address").wait_ready()
        assert flanneld.has_said("-vxlan-one-address has no effect with the back end host-gw")
        assert TABLE not in node.run("nft list tables")
