"""Two nodes joined by a cable, a back end in each, no datastore: a pod's address of one node reaches that of the other.

    n1: cni0 10.244.1.1 ── flannel0 ── eth0 192.0.2.1 ── cable ── 192.0.2.2 eth0 ── flannel0 ── cni0 10.244.2.1 :n2

With IPv6 cni0 has fd00:244:0:1::1 too, and eth0 2001:db8::1. A pair is named by its back end and the families in use.
ipip and wireguard go the same way where the kernel has them; where not, they must say so by name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from support.flannel import FAMILIES
from support.namespaces import Host, Sandbox
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
UDP = ["udp", "udp v6", "udp dual"]
OVERHEAD = {"udp": 28, "udp v6": 48, "udp dual": 48, "ipip": 20, "wireguard": 80}
DEVICE = {"udp": "flannel0", "ipip": "flannel.ipip", "wireguard": "flannel-wg"}
FEATURE = {"ipip": "CONFIG_NET_IPIP", "wireguard": "CONFIG_WIREGUARD", "udp": "CONFIG_TUN"}

pytestmark = pytest.mark.netns

# a node: prints what its lease says, then takes a line of leases at a time; ends with its standard input
NODE = """
import json, os, subprocess, sys, threading
from ipaddress import IPv4Address, IPv6Address
from cni_py.errors import CniError
from cni_py.flanneld import backends
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.netlink.socket import open_host
from cni_py.node.desired import DeviceAddress, Route
from cni_py.node.stop import Stop

kind, name, network, key = sys.argv[1:]
os.environ["WIREGUARD_KEY_FILE"] = f"/run/flannel/wgkey-{name}"
config = NetworkConfig.parse(json.dumps(json.loads(network) | {"Backend": {"Type": kind}}))
ends = [IPv4Address(f"192.0.2.{name}") if config.ipv4 else None, IPv6Address(f"2001:db8::{name}") if config.ipv6 else None]
with open("/sys/class/net/eth0/ifindex") as file:
    external = ExternalInterface("eth0", int(file.read()), 1500, *ends, *ends)
backend, host = backends.create(config, external), open_host()
try:
    backend.prepare(host, None)
except CniError as error:
    print(json.dumps({"refused": str(error)}), flush=True)
    sys.exit()
own = Lease(Subnets.from_key(key), backend.attributes())
print(json.dumps({"says": own.attributes.as_json(), "mtu": backend.mtu}), flush=True)
stop, known, threads = Stop(), {}, []

def keep():
    with open_host() as kept:
        while not stop.wait(0.2):
            for device in backend.devices:
                try:
                    device.ensure(kept)
                except CniError:
                    pass

for line in sys.stdin:
    leases = [Lease(Subnets.from_key(key), Attributes.from_json(value)) for key, value in json.loads(line).items()]
    now = {lease.subnets: lease for lease in leases}
    changes = [(known.get(each), now.get(each)) for each in known.keys() | now.keys()]
    known = now
    entries = [*backend.own_entries(own), *(entry for lease in leases for _, group in backend.peer_entries(lease) for entry in group)]
    for entry in entries:
        if isinstance(entry, DeviceAddress):
            nodad = ["nodad"][: entry.address.version == 6]
            subprocess.run(["ip", "address", "replace", str(entry.address), "dev", entry.device, *nodad], check=True)
    for route in entries:
        if isinstance(route, Route):
            by = ["via", str(route.gateway)] if route.gateway else []
            onlink = ["onlink"][: route.onlink]
            subprocess.run(["ip", "route", "replace", str(route.dst), *by, "dev", route.device, *onlink], check=True)
    backend.follow(own, changes)
    if not threads:
        threads = [threading.Thread(target=backend.run, args=(stop,)), threading.Thread(target=keep)]
        for thread in threads:
            thread.start()
    print(json.dumps("done"), flush=True)
stop.set()
for thread in threads:
    thread.join()
backend.close()
"""

SERVER = """
import socket
with socket.create_server(("", 7000), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    size = 0
    while data := connection.recv(65536):
        size += len(data)
    connection.sendall(str(size).encode())
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[2], 7000), 20, (sys.argv[1], 0)) as s:
    s.sendall(bytes(int(sys.argv[3])))
    s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode())
"""
ASK = """
import socket, sys
address = sys.argv[1]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(1)
    # IP_RECVERR, IPV6_RECVERR: an unreachable network is no reason to give up, for a socket that does not ask
    s.setsockopt(*((socket.IPPROTO_IPV6, 25) if ":" in address else (socket.IPPROTO_IP, 11)), 1)
    s.connect((address, 7))
    for _ in range(20):
        try:
            s.send(b"hello?")
            s.recv(1)
        except TimeoutError:
            continue
        except OSError as error:
            print(type(error).__name__, error.errno)
            break
"""
ASKED_TIMES = 5
"""Seconds where one of two packets has a reply: ping(8) waits for the other no longer than twice as long as for that."""
SEND = """
import socket, sys
address = sys.argv[1]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
    for line in sys.stdin:
        s.sendto(bytes.fromhex(line), (address, 8285))
"""


class Node:
    """A process with a Backend object in a namespace."""

    def __init__(self, host: Host, kind: str, number: int, families: str = "v4") -> None:
        self.sandbox = Sandbox(f"n{number}")
        self.key = "0.0.0.0-0" if families == "v6" else f"10.244.{number}.0-24"
        self.key += "" if families == "v4" else f"&fd00:244:0:{number}::-64"
        argv = [kind, str(number), json.dumps(FAMILIES[families]), self.key]
        command = host.command(sys.executable, "-c", NODE, *argv, sandbox=self.sandbox)
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=env, **pipes)
        self.log = ""
        self.said = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=20)[1]
        return json.loads(line)

    def follow(self, leases: dict[str, str]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(leases) + "\n")
        self.process.stdin.flush()
        assert self.answer() == "done"

    def close(self) -> str:
        """End it; returns its log. Can be repeated."""
        if not self.log:
            self.log = self.process.communicate(timeout=20)[1]
        return self.log


class Pair:
    """The picture above."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name
        self.kind, _, families = name.partition(" ")
        self.families = families or "v4"
        for number in (1, 2):
            host.netns(f"n{number}")
        host.run("ip link add eth0 netns n1 type veth peer name eth0 netns n2")
        for number in (1, 2):
            host.run(
                "echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down;"
                f"ip link set lo up; ip address add 192.0.2.{number}/24 dev eth0; ip link set eth0 up;"
                f"ip address add 2001:db8::{number}/64 dev eth0 nodad; ip link add cni0 type bridge; ip link set cni0 up;"
                f"ip address add 10.244.{number}.1/24 dev cni0; ip address add fd00:244:0:{number}::1/64 dev cni0 nodad",
                Sandbox(f"n{number}"),
            )
        self.nodes = [Node(host, self.kind, number, self.families) for number in (1, 2)]
        ends = {4: ("10.244.1.1", "10.244.2.1"), 6: ("fd00:244:0:1::1", "fd00:244:0:2::1")}
        self.ends = [ends[family] for family in {"v4": [4], "v6": [6], "dual": [4, 6]}[self.families]]
        """The addresses of n1 and n2, by each family in use."""

    def connect(self) -> bool:
        """Give each the other's lease; False where the kernel has no such device, which it says by name."""
        one, two = self.nodes
        if "refused" in one.said:
            assert FEATURE[self.kind] in one.said["refused"]
            return False
        one.follow({two.key: two.said["says"]})
        two.follow({one.key: one.said["says"]})
        return True

    def ping(self, source: str, target: str, size: int = 84, hops: int = 64) -> str:
        """Two packets of this size that must not be cut."""
        options = f"-n -c 2 -i 0.2 -W 1 -M do -t {hops} -s {size - (48 if ':' in target else 28)}"
        return self.host.run(f"ping {options} -I {source} {target} 2>&1", Sandbox("n1"), check=False)

    def lost(self, size: int = 84, hops: int = 64) -> str:
        """Return the loss of packets of each family; in words where it differs. Late replies are asked for again."""
        for _ in range(ASKED_TIMES):
            answers = [self.ping(*ends, size, hops) for ends in self.ends]
            found = " and ".join(sorted({answer.partition("% packet loss")[0].split()[-1] + "%" for answer in answers}))
            if "50%" not in found:
                break
        return found

    def send(self, packets: list[bytes], to: str) -> None:
        """Send these from n2, each in a datagram to the port of n1."""
        lines = "\n".join(packet.hex() for packet in packets)
        done = self.host.execute([sys.executable, "-c", SEND, to], sandbox="n2", stdin=lines)
        assert done.returncode == 0, done.stderr

    def came_in(self) -> int:
        """Packets that n1's device has got."""
        stats = self.host.json("ip -j -s link show flannel0", Sandbox("n1"))[0]["stats64"]["rx"]
        assert isinstance(stats["packets"], int)
        return stats["packets"]

    def close(self) -> list[str]:
        return [node.close() for node in self.nodes]


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Host() as host:
        made = Pair(host, getattr(request, "param", "udp"))
        yield made
        made.close()


@pytest.mark.parametrize("pair", [*UDP, "ipip", "wireguard"], indirect=True)
def test_packets_reach_the_other_node_at_full_size(pair: Pair) -> None:
    if not pair.connect():
        return
    mtu = 1500 - OVERHEAD[pair.name]
    assert pair.nodes[0].said["mtu"] == mtu
    assert pair.host.json(f"ip -j link show {DEVICE[pair.kind]}", Sandbox("n1"))[0]["mtu"] == mtu
    assert pair.lost() == "0%"
    assert pair.lost(mtu) == "0%"
    assert pair.lost(mtu + 1) == "100%"


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_each_end_of_the_tunnel_takes_one_hop(pair: Pair) -> None:
    pair.connect()
    for ends in pair.ends:
        assert "ttl=62" in pair.ping(*ends)
    assert pair.lost(hops=1) == "100%"
    assert pair.lost(hops=2) == "100%"
    assert pair.lost(hops=3) == "0%"


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_carries_a_stream_whole(pair: Pair) -> None:
    pair.connect()
    for source, target in pair.ends:
        with subprocess.Popen(
            pair.host.command(sys.executable, "-c", SERVER, sandbox="n2"),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            argv = [sys.executable, "-c", CLIENT, source, target, "8000000"]
            assert pair.host.execute(argv, sandbox="n1").stdout == "8000000\n"


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_datagrams_go_in_pieces_where_the_way_is_narrower_than_was_known(pair: Pair) -> None:
    pair.connect()
    for node in pair.nodes:
        pair.host.run("ip link set eth0 mtu 1400", node.sandbox)
    assert pair.lost(1452) == "0%"


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
@pytest.mark.parametrize("address", ["10.244.77.1", "fd00:244:0:77::1"])
@pytest.mark.parametrize("has_firewall", [False, True])
def test_udp_says_that_no_node_has_the_address(pair: Pair, address: str, has_firewall: bool) -> None:
    """Senders behind a firewall get it, too, one that drops what comes from where no answer would go to, as firewalld's does."""
    pair.connect()
    if has_firewall:
        chain = "add table inet t; add chain inet t c { type filter hook prerouting priority raw; }"
        pair.host.run(f"nft '{chain}; add rule inet t c fib saddr . mark . iif oif missing drop'", Sandbox("n1"))
    answer = pair.host.execute([sys.executable, "-c", ASK, address], sandbox="n1")
    assert answer.stdout == "OSError 101\n", answer.stderr  # ENETUNREACH, from an ICMP message


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_peer_that_left_is_not_reached(pair: Pair) -> None:
    pair.connect()
    assert pair.lost() == "0%"
    pair.nodes[0].follow({})
    assert pair.lost() == "100%"
    log = pair.nodes[0].close()
    assert "Subnet added: 10.244.2.0/24 via 192.0.2.2" in log
    assert "Subnet added: fd00:244:0:2::/64 via 2001:db8::2" in log
    assert "Subnet removed: 10.244.2.0/24" in log
    assert "Subnet removed: fd00:244:0:2::/64" in log


@pytest.mark.parametrize("pair", ["udp", "udp dual"], indirect=True)
@pytest.mark.parametrize(
    "damage",
    ["ip link del flannel0", "ip link set flannel0 down", "ip link set flannel0 mtu 1400", "ip link set flannel0 mtu 1200"],
)
def test_udp_device_comes_back(pair: Pair, damage: str) -> None:
    pair.connect()
    pair.host.run(damage, Sandbox("n1"))
    whole = f"ip link show up flannel0 2>/dev/null | grep 'mtu {1500 - OVERHEAD[pair.name]}' || true"
    until(lambda: pair.host.run(whole, Sandbox("n1")), "the device is as it was")
    pair.nodes[0].follow({pair.nodes[1].key: pair.nodes[1].said["says"]})  # address and route, as the reconciler would
    assert pair.lost() == "0%"


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_lives_on_without_a_way_to_the_peer(pair: Pair) -> None:
    pair.connect()
    pair.host.run("ip link set eth0 down", Sandbox("n1"))
    assert pair.lost() == "100%"
    pair.host.run("ip link set eth0 up", Sandbox("n1"))
    until(lambda: pair.lost() == "0%", "packets arrive again")


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_survives_what_is_no_packet(pair: Pair) -> None:
    pair.connect()
    rubbish = [b"", b"E", b"\x60", bytes(20), bytes(1400), b"\x45" * 60000, b"\x65" * 60000, b"\x60" + bytes(60)]
    rubbish += [bytes([first]) + os.urandom(59) for first in (0x45, 0x4F, 0x60, 0x6F) for _ in range(50)]
    for address in ("192.0.2.1", "2001:db8::1"):
        pair.send(rubbish + [os.urandom(60) for _ in range(200)], address)
    assert pair.lost() == "0%"
    assert "no packets are carried" not in pair.nodes[0].close()


@pytest.mark.parametrize(("pair", "count"), [("udp", 1), ("udp v6", 1), ("udp dual", 4)], indirect=["pair"])
def test_udp_takes_packets_of_the_families_in_use(pair: Pair, count: int) -> None:
    """No datagram of any kind leads there; and none that has no hop left is passed on."""
    pair.connect()
    source, target = (ip_address(f"10.244.{number}.9").packed for number in (2, 1))
    source6, target6 = (ip_address(f"fd00:244:0:{number}::9").packed for number in (2, 1))
    for hops in (1, 64):
        packets = [pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, hops, 253, 0) + source + target]
        packets.append(pack("!IHBB", 6 << 28, 0, 59, hops) + source6 + target6)
        for address in (["192.0.2.1"] if pair.families != "v6" else []) + (["2001:db8::1"] if pair.families != "v4" else []):
            pair.send(packets, address)
    assert pair.lost() == "0%"  # when these have come, the others have been processed
    assert pair.came_in() == count + 2 * len(pair.ends)


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_takes_packets_only_from_the_subnet_of_the_node_that_sent_them(pair: Pair) -> None:
    """Ignore it from the subnet of another node, of none, of our own, or from an address that is no node's."""
    pair.connect()
    pair.host.run("ip address add 192.0.2.9/24 dev eth0; ip route add 192.0.2.1 dev eth0 src 192.0.2.9", Sandbox("n2"))
    target, target6 = ip_address("10.244.1.9").packed, ip_address("fd00:244:0:1::9").packed

    def packets(source: str, source6: str) -> list[bytes]:
        v4 = pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 253, 0) + ip_address(source).packed + target
        return [v4, pack("!IHBB", 6 << 28, 0, 59, 64) + ip_address(source6).packed + target6]

    theirs = packets("10.244.2.9", "fd00:244:0:2::9")
    others = [packets("10.244.3.9", "fd00:244:0:3::9"), packets("10.244.1.8", "fd00:244:0:1::8"), packets("8.8.8.8", "fe80::1")]
    pair.send(theirs, "192.0.2.1")  # from 192.0.2.9
    pair.host.run("ip route del 192.0.2.1 dev eth0", Sandbox("n2"))
    for address in ("192.0.2.1", "2001:db8::1"):
        pair.send([packet for each in others for packet in each], address)
        pair.send(theirs, address)
    assert pair.lost() == "0%"  # when these have come, the others have been processed
    assert pair.came_in() == 2 * len(theirs) + 2 * len(pair.ends)


@pytest.mark.parametrize("pair", ["udp dual"], indirect=True)
def test_udp_leaves_nothing(pair: Pair) -> None:
    pair.connect()
    pair.close()
    left = "ip link show flannel0 2>/dev/null || true; ip route show 10.244.0.0/16; ip -6 route show fd00:244::/48"
    assert pair.host.run(left, Sandbox("n1")) == ""


@pytest.mark.parametrize(("pair", "where"), [("udp", "192.0.2.1"), ("udp v6", r"[2001:db8::1]")], indirect=["pair"])
def test_udp_refuses_a_second_one(pair: Pair, where: str) -> None:
    second = Node(pair.host, "udp", 1, pair.families)
    assert f"failed to start listening on UDP socket: {where}:8285" in second.said["refused"]
    assert re.search(r"Address already in use: taken by python\S* \(process \d+\)", second.said["refused"])
    assert '"Backend.Port"' in second.said["refused"]
    second.close()
