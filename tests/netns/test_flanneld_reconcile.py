"""Changes by other processes are reverted: a table of changes, each with the time that it may take.

Two nodes with a pod each. Before each change all is as it should be, which is what has to be there again within
``HEALED_SECONDS``; then pods reach one another, and flanneld is quiet.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.node.reconcile import PAUSE_SECONDS
from support.flannel import Net, Node, network, traffic
from support.namespaces import wait_for_end
from support.waiting import until

pytestmark = pytest.mark.netns

HEALED_SECONDS = 20.0
"""Long before flanneld looks of itself, which is once a minute: it has heard of it."""
KILLS = 4
QUIET_SECONDS, QUIET_CPU_SECONDS = 2.0, 0.2
TABLE = "inet cni_py_flanneld"

OF_NODE_77 = {
    "PublicIP": "192.168.123.77",
    "PublicIPv6": "fd00:123::77",
    "BackendData": {"VNI": 1, "VtepMAC": "02:11:22:33:44:55"},
}
"""Keys of such a node's lease that differ from those of another."""


@pytest.fixture(scope="module")
def vxlan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with network(tmp_path_factory.mktemp("vxlan"), "vxlan", "dual", nodes=2) as net:
        net.options = ["-ip-masq", "-ip-blackhole-route"]
        net.start()
        yield net


@pytest.fixture(scope="module")
def host_gw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with network(tmp_path_factory.mktemp("host-gw"), "host-gw", "dual", nodes=2) as net:
        net.start()
        yield net


@pytest.fixture(scope="module")
def udp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with network(tmp_path_factory.mktemp("udp"), "udp", "dual", nodes=2) as net:
        net.start()
        yield net


def heal(net: Net, script: str) -> float:
    """Run the script on the first node and wait until all is as it was; how long that took, without the script."""
    node = net.nodes[0]
    before = node.state()
    assert node.flanneld
    with node.flanneld.stopped():  # else it may be quicker than the script
        node.run(script.format(**names(net)))
    began = time.monotonic()
    while (now := node.state()) != before:
        different = {part: (before[part], now[part]) for part in before if before[part] != now[part]}
        assert time.monotonic() - began < HEALED_SECONDS, f"not restored: {different}\n{node.flanneld.log[-3000:]}"
        time.sleep(0.02)
    return time.monotonic() - began


def names(net: Net) -> dict[str, str]:
    """Values of the second node, as the first one sees it."""
    node = net.nodes[1]
    devices = {name: node.device(name).get("address", "") for name in ("flannel.1", "flannel-v6.1")}
    return {
        "subnet": f"{node.subnet}.0/24" if "FLANNEL_SUBNET" in node.env else "",
        "gateway": f"{node.subnet}.0" if "FLANNEL_SUBNET" in node.env else "",
        "subnet6": f"{node.subnet6}/64" if "FLANNEL_IPV6_SUBNET" in node.env else "",
        "gateway6": node.subnet6 if "FLANNEL_IPV6_SUBNET" in node.env else "",
        "own": f"{net.nodes[0].subnet}.0" if "FLANNEL_SUBNET" in net.nodes[0].env else "",
        "own6": net.nodes[0].subnet6 if "FLANNEL_IPV6_SUBNET" in net.nodes[0].env else "",
        "address": node.address,
        "address6": node.address6,
        "mac": devices["flannel.1"],
        "mac6": devices["flannel-v6.1"],
    }


VXLAN = {
    "device deleted": "ip link del flannel.1",
    "IPv6 device deleted": "ip link del flannel-v6.1",
    "both devices deleted": "ip link del flannel.1; ip link del flannel-v6.1",
    "device of another kind in its place": "ip link del flannel.1; ip link add flannel.1 type bridge",
    "device with another VNI in its place": "ip link del flannel.1; ip link add flannel.1 type vxlan id 7 dev eth0 dstport 8472",
    "device down": "ip link set flannel.1 down",
    "IPv6 device down": "ip link set flannel-v6.1 down",
    "device down and up": "ip link set flannel.1 down; ip link set flannel.1 up",
    "device renamed": "ip link set flannel.1 down; ip link set flannel.1 name other0; ip link set other0 up",
    "IPv6 device renamed": "ip link set flannel-v6.1 down; ip link set flannel-v6.1 name other0",
    "MTU": "ip link set flannel.1 mtu 1300",
    "IPv6 MTU": "ip link set flannel-v6.1 mtu 1280",
    "MAC address": "ip link set flannel.1 address 02:11:22:33:44:55",
    "address removed": "ip addr flush dev flannel.1",
    "IPv6 address removed": "ip -6 addr flush dev flannel-v6.1 scope global",
    "third-party address": "ip addr add 198.51.100.7/24 dev flannel.1",
    "address with another length": "ip addr del {own}/32 dev flannel.1; ip addr add {own}/24 dev flannel.1",
    "third-party IPv6 address": "ip addr add 2001:db8::7/64 dev flannel-v6.1",
    "route deleted": "ip route del {subnet}",
    "IPv6 route deleted": "ip -6 route del {subnet6}",
    "all routes deleted": "ip route flush proto 122; ip -6 route flush proto 122",
    "route over another gateway": "ip route replace {subnet} via 192.168.123.1",
    "IPv6 route over another gateway": "ip -6 route del {subnet6}; ip -6 route add {subnet6} via fd00:123::1",
    "route of another protocol": "ip route replace {subnet} via {gateway} dev flannel.1 onlink proto static",
    "route to nowhere": "ip route replace blackhole {subnet} proto 122",
    "our stray route": "ip route add 10.244.250.0/24 via {gateway} dev flannel.1 onlink proto 122",
    "our stray route over another device": "ip route add 10.244.252.0/24 via 192.168.123.1 proto 122",
    "our stray IPv6 route": "ip -6 route add fd00:244:0:99::/64 via fd00:123::1 proto 122",
    "stray route of an older flanneld": "ip route add 10.244.251.0/24 via 10.244.251.0 dev flannel.1 onlink",
    "black hole deleted": "ip route del blackhole {own}/24",
    "ARP entry deleted": "ip neigh del {gateway} dev flannel.1",
    "ARP entry changed": "ip neigh replace {gateway} lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent",
    "ARP entry no longer permanent": "ip neigh replace {gateway} lladdr {mac} dev flannel.1 nud reachable",
    "stray ARP entry": "ip neigh add 10.244.250.0 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent",
    "NDP entry deleted": "ip -6 neigh del {gateway6} dev flannel-v6.1",
    "NDP entry changed": "ip -6 neigh replace {gateway6} lladdr 02:11:22:33:44:55 dev flannel-v6.1 nud permanent",
    "FDB entry deleted": "bridge fdb del {mac} dev flannel.1",
    "IPv6 FDB entry deleted": "bridge fdb del {mac6} dev flannel-v6.1",
    "FDB entry leads elsewhere": "bridge fdb replace {mac} dev flannel.1 dst 192.0.2.9",
    "FDB entry leads elsewhere too": "bridge fdb append {mac} dev flannel.1 dst 192.0.2.9",
    "stray FDB entry": "bridge fdb append 02:11:22:33:44:55 dev flannel.1 dst 192.0.2.9",
    "flood entry": "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.9",
    "all rules flushed": "nft flush ruleset",
    "our table flushed": f"nft flush table {TABLE}",
    "our table deleted": f"nft delete table {TABLE}",
    "accept_ra": "echo 2 >/proc/sys/net/ipv6/conf/flannel.1/accept_ra; echo 1 >/proc/sys/net/ipv6/conf/flannel-v6.1/accept_ra",
    "device without IPv6": "echo 1 >/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6",
    "device does not forward": "echo 0 >/proc/sys/net/ipv4/conf/flannel.1/forwarding",
    "nothing is forwarded": "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
    "device a port of the bridge": "ip link set flannel.1 master cni0; ip link set flannel-v6.1 master cni0",
    "device without ARP": "ip link set flannel.1 arp off; ip link set flannel-v6.1 arp off",
    "all of it": "ip link del flannel.1; ip link del flannel-v6.1; ip route flush proto 122; nft flush ruleset",
}


@pytest.mark.parametrize("change", VXLAN)
def test_vxlan_is_put_back(vxlan: Net, change: str) -> None:
    seconds = heal(vxlan, VXLAN[change])
    print(f"healed in {seconds:.2f} s: {change}")
    first, second = vxlan.nodes
    for address in second.pods["pod2"]:
        assert first.reached(address, pod="pod1")


def test_order_of_rules_is_put_back(vxlan: Net) -> None:
    node = vxlan.nodes[0]
    text = node.run(f"nft -a list table {TABLE}")
    chain = ""
    for line in text.splitlines():
        chain = found.group(1) if (found := re.match(r"\s*chain (\S+)", line)) else chain
        rule = re.match(r"\s*(.+) # handle (\d+)$", line)
        if chain and rule and not line.lstrip().startswith(("type ", "chain ", "policy ")):
            move = f"nft 'delete rule {TABLE} {chain} handle {rule.group(2)}; add rule {TABLE} {chain} {rule.group(1)}'"
            print(f"healed in {heal(vxlan, move.replace('{', '{{').replace('}', '}}')):.2f} s: {move}")
            return
    pytest.fail(f"no rule in\n{text}")


HOST_GW = {
    "nothing is forwarded": "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
    "route deleted": "ip route del {subnet}",
    "IPv6 route deleted": "ip -6 route del {subnet6}",
    "route over another gateway": "ip route replace {subnet} via 192.168.123.1",
    "IPv6 route over another gateway": "ip -6 route del {subnet6}; ip -6 route add {subnet6} via fd00:123::1",
    "route of another protocol": "ip route replace {subnet} via {address} proto static",
    "our stray route": "ip route add 10.244.250.0/24 via {address} proto 122",
    "interface down and up": "ip link set eth0 down; ip link set eth0 up",
    "interface down for a while": "ip link set eth0 down; sleep 0.5; ip link set eth0 up",
    "interface without addresses for a moment": "ip -4 addr flush dev eth0; sleep 0.3; ip addr add 192.168.123.11/24 dev eth0",
}


@pytest.mark.parametrize("change", HOST_GW)
def test_host_gw_is_put_back(host_gw: Net, change: str) -> None:
    seconds = heal(host_gw, HOST_GW[change])
    print(f"healed in {seconds:.2f} s: {change}")
    first, second = host_gw.nodes
    for address in second.pods["pod2"]:
        assert first.reached(address, pod="pod1")


UDP = {
    "device deleted": "ip link del flannel0",
    "device down": "ip link set flannel0 down",
    "MTU": "ip link set flannel0 mtu 1200",
    "address removed": "ip addr flush dev flannel0",
    "route deleted": "ip route del 10.244.0.0/16",
    "device without IPv6": "echo 1 >/proc/sys/net/ipv6/conf/flannel0/disable_ipv6",
    "device does not forward": "echo 0 >/proc/sys/net/ipv4/conf/flannel0/forwarding",
    "IPv6 address removed": "ip -6 addr del {own6}/128 dev flannel0",
    "IPv6 route deleted": "ip -6 route del fd00:244::/48",
}


@pytest.mark.parametrize("change", UDP)
def test_udp_is_put_back(udp: Net, change: str) -> None:
    seconds = heal(udp, UDP[change])
    print(f"healed in {seconds:.2f} s: {change}")
    for address in udp.nodes[1].pods["pod2"]:
        assert udp.nodes[0].reached(address, pod="pod1")


@pytest.mark.parametrize("backend", ["vxlan", "host_gw", "udp"])
def test_flanneld_is_quiet_when_all_is_put_back(request: pytest.FixtureRequest, backend: str) -> None:
    net: Net = request.getfixturevalue(backend)
    flanneld = net.nodes[0].flanneld
    assert flanneld
    heal(net, "ip link del flannel.1; nft flush ruleset" if backend == "vxlan" else "ip route flush proto 122")
    time.sleep(1)  # a repair is checked once more
    log, used = flanneld.log, flanneld.cpu_seconds()
    time.sleep(QUIET_SECONDS)
    used = flanneld.cpu_seconds() - used
    print(f"{backend}: {used:.4f} s of CPU time in {QUIET_SECONDS} s")
    assert used < QUIET_CPU_SECONDS
    assert flanneld.log == log


def test_who_undoes_each_repair_is_answered_more_and_more_rarely(vxlan: Net) -> None:
    """Another daemon, which takes our routes for its own: neither of the two may take the machine, nor fill the log."""
    node, repairs = vxlan.nodes[0], 8
    assert node.flanneld
    words = "changes of another process (route)"
    state, before = node.state(), node.flanneld.log.count(words)
    time.sleep(2 * PAUSE_SECONDS[1])  # earlier tests' repairs count no more
    began = time.monotonic()
    node.run("(while sleep 0.005; do ip route flush proto 122; done) >/dev/null 2>&1 & echo $! >/run/other")
    try:
        node.flanneld.wait_for_log(words, count=before + repairs)
        took = time.monotonic() - began
        print(f"{repairs} repairs in {took:.2f} s")
        assert took > sum(min(PAUSE_SECONDS[0] * 2**number, PAUSE_SECONDS[1]) for number in range(repairs - 1))
    finally:
        node.run("kill $(cat /run/other)")
    until(lambda: node.state() == state, lambda: f"restored: {state}, not {node.state()}")


def test_routes_of_others_are_let_alone(vxlan: Net) -> None:
    node = vxlan.nodes[0]
    others = "ip route add 198.51.100.0/24 via 192.168.123.1; ip route add 203.0.113.0/24 dev eth0 proto bird"
    node.run(others)
    heal(vxlan, "ip route flush proto 122")
    routes = node.run("ip route show")
    assert "198.51.100.0/24" in routes
    assert "203.0.113.0/24" in routes


def test_a_lease_of_our_own_bridge_does_not_cut_its_pods_off(vxlan: Net) -> None:
    """An old lease of this node, or a wrong one: its route would take the place of the bridge's."""
    node = vxlan.nodes[0]
    assert node.flanneld
    node.run("ip link add br7 type bridge; ip addr add 10.244.200.1/24 dev br7; ip link set br7 up")
    content = vxlan.read()
    wrong = next(lease for key, lease in content["leases"].items() if key.startswith(vxlan.nodes[1].subnet))
    wrong = wrong | OF_NODE_77
    content["leases"]["10.244.200.0-24"] = wrong
    vxlan.write(content)
    try:
        reasons = "it overlaps 10.244.200.0/24 of br7", "10.244.200.0/24 is the subnet of br7 here"
        until(lambda: any(node.flanneld.has_said(words) for words in reasons), "it is refused, by either")
        assert "dev br7" in node.run("ip route show 10.244.200.0/24")
        until(lambda: "10.244.200.0/24" in vxlan.nodes[1].routes(), "the other node has it")
    finally:
        content["leases"]["10.244.201.0-24"] = content["leases"].pop("10.244.200.0-24")
        vxlan.write(content)
        for each in vxlan.nodes:  # when it has the one, it has received the deletion of the other
            until(lambda each=each: "10.244.201.0/24" in each.routes(), "the next lease is there")
        node.run("ip link del br7")
        del content["leases"]["10.244.201.0-24"]
        vxlan.write(content)
    for each in vxlan.nodes:
        until(lambda each=each: not {"10.244.200.0/24", "10.244.201.0/24"} & set(each.routes()), "both were deleted")


# ---- killed and started again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vxlan", "host_gw"])
def test_no_packet_is_lost_while_flanneld_is_killed_and_started(
    request: pytest.FixtureRequest, longer: int, backend: str
) -> None:
    """SIGKILL at a random moment after the start, again and again; the last one is left to become ready."""
    net: Net = request.getfixturevalue(backend)
    first = net.nodes[0]
    before, seed = first.state(), random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    assert first.flanneld
    with traffic(net) as pings:
        first.flanneld.kill()
        for _ in range(KILLS * longer):
            killed = first.start()
            time.sleep(moments.uniform(0, 1.0))  # the moment is what is tried
            killed.kill()
        first.start().wait_ready()
    assert [ping.lost for ping in pings] == [0] * len(pings)
    assert first.state() == before


@pytest.mark.parametrize("backend", ["vxlan", "host_gw"])
def test_no_packet_is_lost_while_other_nodes_come_and_go(request: pytest.FixtureRequest, backend: str) -> None:
    net: Net = request.getfixturevalue(backend)
    content = net.read()
    third = next(lease for key, lease in content["leases"].items() if key.startswith(net.nodes[1].subnet))
    third = third | OF_NODE_77
    without = {key: lease for key, lease in content["leases"].items() if key != "10.244.200.0-24"}
    with traffic(net) as pings:
        for number in range(6):
            comes = number % 2 == 0
            net.write(content | {"leases": without | ({"10.244.200.0-24": third} if comes else {})})
            for node in net.nodes:
                until(lambda node=node, comes=comes: ("10.244.200.0/24" in node.routes()) is comes, "the third is followed")  # type: ignore[misc]
    assert [ping.lost for ping in pings] == [0] * len(pings)


def mark(node: Node, heard: Path, number: int) -> bool:
    """Make a change that flanneld has nothing to do with; whether it has been heard of."""
    address = f"192.0.2.{number}"
    node.run(f"ip addr add {address}/32 dev lo; ip addr del {address}/32 dev lo")
    return address in heard.read_text()


def test_start_removes_what_leads_to_dead_peers_and_touches_nothing_else(vxlan: Net, tmp_path: Path) -> None:
    first = vxlan.nodes[0]
    before = first.state()
    assert first.flanneld
    assert first.flanneld.terminate() == 0
    assert first.state() == before
    first.run(
        """
        ip route add 10.244.250.0/24 via 10.244.250.0 dev flannel.1 onlink proto 122
        ip neigh add 10.244.250.0 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent
        bridge fdb append 02:11:22:33:44:55 dev flannel.1 dst 192.0.2.9
        ip link set flannel.1 mtu 1400
        """
    )
    heard = tmp_path / "heard"
    with heard.open("wb") as file:
        monitor = subprocess.Popen(first.host.command("ip", "-4", "monitor", "route", "neigh", "address"), stdout=file)
        try:
            until(lambda: mark(first, heard, 97), "ip(8) listens")
            first.start().wait_ready()
            until(lambda: mark(first, heard, 98), "ip(8) has printed what came before")
        finally:
            children = Path(f"/proc/{monitor.pid}/task/{monitor.pid}/children").read_text().split()
            os.kill(int(children[0]), 15)
            wait_for_end(monitor)
    assert first.state() == before
    about = [line for line in heard.read_text().splitlines() if "flannel.1" in line]
    assert about
    assert [line for line in about if "10.244.250.0" not in line] == []
