"""Two nodes joined by a cable, a back end in each, no datastore: a pod's address of one node reaches that of the other.

    n1: cni0 10.244.1.1 ── flannel0 ── eth0 192.0.2.1 ── cable ── 192.0.2.2 eth0 ── flannel0 ── cni0 10.244.2.1 :n2

ipip and wireguard go the same way where the kernel has them; where not, they must say so by name.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from namespaces import Host, Sandbox

ROOT = Path(__file__).resolve().parents[2]
TYPES = ["udp", "ipip", "wireguard"]
OVERHEAD = {"udp": 28, "ipip": 20, "wireguard": 80}
DEVICE = {"udp": "flannel0", "ipip": "flannel.ipip", "wireguard": "flannel-wg"}
FEATURE = {"ipip": "CONFIG_NET_IPIP", "wireguard": "CONFIG_WIREGUARD", "udp": "CONFIG_TUN"}

pytestmark = pytest.mark.netns

# a node: prints what its lease says, then takes a line of leases at a time; ends with its standard input
NODE = """
import json, os, subprocess, sys, threading
from ipaddress import IPv4Address, IPv4Network
from cni_py.errors import CniError
from cni_py.flanneld import backends
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig

kind, name = sys.argv[1], sys.argv[2]
os.environ["WIREGUARD_KEY_FILE"] = f"/run/flannel/wgkey-{name}"
address = IPv4Address(f"192.0.2.{name}")
config = NetworkConfig.parse(json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": kind}}))
with open("/sys/class/net/eth0/ifindex") as file:
    external = ExternalInterface("eth0", int(file.read()), 1500, address, None, address, None)
backend = backends.create(config, external)
try:
    own = Lease(Subnets(IPv4Network(f"10.244.{name}.0/24")), backend.attributes())
except CniError as error:
    print(json.dumps({"refused": str(error)}), flush=True)
    sys.exit()
print(json.dumps({"says": own.attributes.as_json(), "mtu": backend.mtu}), flush=True)
stop, thread = threading.Event(), None
for line in sys.stdin:
    leases = [Lease(Subnets.from_key(key), Attributes.from_json(value)) for key, value in json.loads(line).items()]
    wanted = backend.wanted(own, [own, *leases])
    for device, its in wanted.addresses:
        subprocess.run(["ip", "address", "replace", str(its), "dev", device], check=True)
    for route in wanted.routes:
        by = ["via", str(route.gateway)] if route.gateway else []
        subprocess.run(["ip", "route", "replace", str(route.dst), *by, "dev", route.device, *["onlink"][: route.onlink]], check=True)
    if hasattr(backend, "apply"):
        backend.apply(own, [own, *leases])
    if thread is None:
        thread = threading.Thread(target=backend.run, args=(stop,))
        thread.start()
    print(json.dumps("done"), flush=True)
stop.set()
if thread:
    thread.join()
"""

SERVER = """
import socket
with socket.create_server(("10.244.2.1", 7000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    size = 0
    while data := connection.recv(65536):
        size += len(data)
    connection.sendall(str(size).encode())
"""
CLIENT = """
import socket, sys
with socket.create_connection(("10.244.2.1", 7000), 20, ("10.244.1.1", 0)) as s:
    s.sendall(bytes(int(sys.argv[1])))
    s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode())
"""
ASK = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: "net unreachable" is no reason to give up, for who does not ask
    s.connect(("10.244.77.1", 7))
    s.send(b"is anybody there?")
    try:
        s.recv(1)
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


JUNK = """
import os, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for data in b"", b"E", bytes(20), bytes(1400), b"\\x45" * 60000, b"\\x60" + bytes(60), *(os.urandom(60) for _ in range(200)):
        s.sendto(data, ("192.0.2.1", 8285))
"""


class Node:
    """A process with a Backend object in a namespace."""

    def __init__(self, host: Host, kind: str, number: int) -> None:
        self.sandbox, self.key = Sandbox(f"n{number}"), f"10.244.{number}.0-24"
        command = host.command(sys.executable, "-c", NODE, kind, str(number), sandbox=self.sandbox)
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=env, **pipes)
        self.log = ""
        self.said = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)

    def tell(self, leases: dict[str, str]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(leases) + "\n")
        self.process.stdin.flush()
        assert self.answer() == "done"

    def close(self) -> str:
        """End it; answers its log. Twice is fine."""
        if not self.log:
            self.log = self.process.communicate(timeout=20)[1]
        return self.log


class Pair:
    """The picture above."""

    def __init__(self, host: Host, kind: str) -> None:
        self.host, self.kind = host, kind
        for number in (1, 2):
            host.netns(f"n{number}")
        host.run("ip link add eth0 netns n1 type veth peer name eth0 netns n2")
        for number in (1, 2):
            host.run(
                f"ip link set lo up; ip address add 192.0.2.{number}/24 dev eth0; ip link set eth0 up;"
                f"ip link add cni0 type bridge; ip address add 10.244.{number}.1/24 dev cni0; ip link set cni0 up",
                Sandbox(f"n{number}"),
            )
        self.nodes = [Node(host, kind, 1), Node(host, kind, 2)]

    def connect(self) -> bool:
        """Tell each of the other; False where the kernel has no such device, which it says by name."""
        one, two = self.nodes
        if "refused" in one.said:
            assert FEATURE[self.kind] in one.said["refused"]
            return False
        one.tell({two.key: two.said["says"]})
        two.tell({one.key: one.said["says"]})
        return True

    def ping(self, size: int = 56, to: str = "10.244.2.1") -> str:
        return self.host.run(f"ping -n -c 2 -i 0.2 -W 1 -M do -s {size} -I 10.244.1.1 {to} 2>&1", Sandbox("n1"), check=False)

    def close(self) -> list[str]:
        return [node.close() for node in self.nodes]


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Host() as host:
        made = Pair(host, getattr(request, "param", "udp"))
        yield made
        made.close()


def until(condition: Callable[[], Any], seconds: float = 3.0) -> Any:
    """The first value that is true, looked for again and again."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


@pytest.mark.parametrize("pair", TYPES, indirect=True)
def test_packets_reach_the_other_node_at_full_size(pair: Pair) -> None:
    if not pair.connect():
        return
    mtu = 1500 - OVERHEAD[pair.kind]
    assert pair.nodes[0].said["mtu"] == mtu
    assert pair.host.json(f"ip -j link show {DEVICE[pair.kind]}", Sandbox("n1"))[0]["mtu"] == mtu
    assert " 0% packet loss" in pair.ping()
    assert " 0% packet loss" in pair.ping(mtu - 28)
    assert " 0% packet loss" not in pair.ping(mtu - 27)


def test_udp_each_end_of_the_tunnel_takes_one_from_ttl(pair: Pair) -> None:
    pair.connect()
    assert "ttl=62" in pair.ping()


def test_udp_carries_a_stream_whole(pair: Pair) -> None:
    pair.connect()
    server = subprocess.Popen(
        pair.host.command(sys.executable, "-c", SERVER, sandbox="n2"),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    size = 8_000_000
    assert pair.host.execute([sys.executable, "-c", CLIENT, str(size)], sandbox="n1").stdout == f"{size}\n"
    server.communicate(timeout=10)


def test_udp_says_that_no_node_has_the_address(pair: Pair) -> None:
    pair.connect()
    answer = pair.host.execute([sys.executable, "-c", ASK], sandbox="n1")
    assert answer.stdout == "OSError 101\n", answer.stderr  # ENETUNREACH, from an ICMP message


def test_udp_peer_that_left_is_not_reached(pair: Pair) -> None:
    pair.connect()
    assert " 0% packet loss" in pair.ping()
    pair.nodes[0].tell({})
    assert " 100% packet loss" in pair.ping()
    log = pair.nodes[0].close()
    assert "Subnet added: 10.244.2.0/24 via 192.0.2.2" in log
    assert "Subnet removed: 10.244.2.0/24" in log


@pytest.mark.parametrize("damage", ["ip link del flannel0", "ip link set flannel0 down", "ip link set flannel0 mtu 1400"])
def test_udp_device_comes_back(pair: Pair, damage: str) -> None:
    pair.connect()
    pair.host.run(damage, Sandbox("n1"))
    whole = "ip link show up flannel0 2>/dev/null | grep 'mtu 1472' || true"
    assert until(lambda: pair.host.run(whole, Sandbox("n1")))
    pair.nodes[0].tell({pair.nodes[1].key: pair.nodes[1].said["says"]})  # address and route, as the reconciler would
    assert " 0% packet loss" in pair.ping()


def test_udp_lives_on_without_a_way_to_the_peer(pair: Pair) -> None:
    pair.connect()
    pair.host.run("ip link set eth0 down", Sandbox("n1"))
    assert " 100% packet loss" in pair.ping()
    pair.host.run("ip link set eth0 up", Sandbox("n1"))
    assert until(lambda: " 0% packet loss" in pair.ping(), 10)


def test_udp_survives_what_is_no_packet(pair: Pair) -> None:
    pair.connect()
    assert pair.host.execute([sys.executable, "-c", JUNK], sandbox="n2").returncode == 0
    assert " 0% packet loss" in pair.ping()
    assert "no packets are carried" not in pair.nodes[0].close()


def test_udp_leaves_nothing(pair: Pair) -> None:
    pair.connect()
    pair.close()
    assert pair.host.run("ip link show flannel0 2>/dev/null || true; ip route show 10.244.0.0/16", Sandbox("n1")) == ""


def test_udp_refuses_a_second_one(pair: Pair) -> None:
    second = Node(pair.host, "udp", 1)
    assert "failed to start listening on UDP socket: 192.0.2.1:8285" in second.said["refused"]
    second.close()
