"""Host ports with real packets: a pod's server replies with the address that it sees.

The host has a bridge with three pods, a second bridge with one pod, and a neighbour outside::

    outside 192.0.2.2 fd00:2::2 ── 192.0.2.1 fd00:2::1 [host] cni0 10.1.0.1/24 fd00:1::1/64 ── p1 .2, p2 .3, p3 .4
                                   192.0.2.9 fd00:2::9        br1  10.2.0.1/24 fd00:3::1/64 ── far .2

p1 has the mapped ports. Every test runs with and without br_netfilter, for without it what pods of one
bridge say to each other passes the host's rules by.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.namespaces import Host, Sandbox, wait_for_end
from support.pods import NO_DAD

PODS = {"p1": ("cni0", 2), "p2": ("cni0", 3), "p3": ("cni0", 4), "far": ("br1", 2)}
SUBNETS = {"cni0": ("10.1.0", "fd00:1"), "br1": ("10.2.0", "fd00:3")}
BRIDGE_NF = "/proc/sys/net/bridge/bridge-nf-call-iptables"

SERVER = """
import socket, sys, threading
def tcp(family, address, port):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, port)); s.listen(50)
    def serve():
        while True:
            c, peer = s.accept(); c.sendall((sys.argv[1] + ' ' + peer[0]).encode()); c.close()
    threading.Thread(target=serve).start()
def udp(family, address, port):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, port))
    def serve():
        while True:
            _, peer = s.recvfrom(100); s.sendto((sys.argv[1] + ' ' + peer[0]).encode(), peer)
    threading.Thread(target=serve).start()
for kind in (tcp, udp):
    kind(socket.AF_INET, sys.argv[2], int(sys.argv[4])); kind(socket.AF_INET6, sys.argv[3], int(sys.argv[4]))
print('ready', flush=True)
"""


def topology() -> str:
    lines = [NO_DAD + "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"]
    for bridge, (v4, v6) in SUBNETS.items():
        lines += [f"ip link add {bridge} address 02:00:00:00:01:{len(lines):02x} type bridge"]
        lines += [f"ip addr add {v4}.1/24 dev {bridge}; ip addr add {v6}::1/64 dev {bridge} nodad; ip link set {bridge} up"]
    for pod, (bridge, number) in PODS.items():
        v4, v6 = SUBNETS[bridge]
        lines += [
            f"ip netns add {pod}; ip netns exec {pod} {NO_DAD}ip link add v-{pod} type veth peer name eth0 netns {pod}",
            f"ip link set v-{pod} master {bridge} up; ip link set v-{pod} type bridge_slave hairpin on",
            f"ip -n {pod} link set lo up",
            f"ip -n {pod} addr add {v4}.{number}/24 dev eth0; ip -n {pod} addr add {v6}::{number}/64 dev eth0 nodad",
            f"ip -n {pod} link set eth0 up; ip -n {pod} route add default via {v4}.1",
            f"ip -n {pod} -6 route add default via {v6}::1",
        ]
    return (
        "\n".join(lines)
        + f"""
ip netns add outside; ip netns exec outside {NO_DAD}
ip link add up0 type veth peer name eth0 netns outside
ip addr add 192.0.2.1/24 dev up0; ip addr add 192.0.2.9/24 dev up0
ip addr add fd00:2::1/64 dev up0 nodad; ip addr add fd00:2::9/64 dev up0 nodad; ip link set up0 up
ip -n outside addr add 192.0.2.2/24 dev eth0; ip -n outside addr add fd00:2::2/64 dev eth0 nodad
ip -n outside link set eth0 up; ip -n outside link set lo up
ip -n outside route add default via 192.0.2.1; ip -n outside -6 route add default via fd00:2::1
"""
    )


class Net:
    """The host with its servers; `ask` is what all tests are about."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.servers: list[subprocess.Popen[str]] = []

    def serve(self, where: str | None, name: str, v4: str = "0.0.0.0", v6: str = "::", port: int = 80) -> None:
        """Start a server on TCP and UDP, v4 and v6, in a sandbox (None: on the host)."""
        argv = self.host.command(sys.executable, "-c", SERVER, name, v4, v6, str(port), sandbox=where)
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

    def ask(self, where: str | None, address: str, protocol: str = "tcp", port: int = 8080, seconds: float = 5) -> str:
        """Return the reply of a port to a client in `where`: "<server> <the address it sees>", or how it failed."""
        return self.host.do(ask, address, protocol, port, seconds, sandbox=where)

    def refused(self, where: str | None, address: str, protocol: str = "tcp", port: int = 8080) -> bool:
        return self.ask(where, address, protocol, port) in ("ConnectionRefusedError", "ConnectionResetError")

    def add(self, *ports: dict[str, Any], pod: str = "p1", families: str = "46", **more: Any) -> None:
        self.host.ok("portmap", "ADD", conf(*ports, **more), container_id=pod, sandbox=Sandbox(pod), prev=result(pod, families))

    def check(self, *ports: dict[str, Any], pod: str = "p1", **more: Any) -> None:
        self.host.ok("portmap", "CHECK", conf(*ports, **more), container_id=pod, sandbox=Sandbox(pod), prev=result(pod))

    def delete(self, pod: str = "p1") -> None:
        self.host.ok("portmap", "DEL", conf(), container_id=pod)


def ask(address: str, protocol: str, port: int, seconds: float) -> str:
    """Send a request from here; "TimeoutError" and the like where it fails."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as client:
        client.settimeout(seconds)
        try:
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"hello")
            return client.recv(200).decode()
        except OSError as error:
            return type(error).__name__


def conf(*ports: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "runtimeConfig": {"portMappings": [*ports]}, **more}


def port(host: int, pod: int = 80, protocol: str = "tcp", ip: str = "") -> dict[str, Any]:
    return {"hostPort": host, "containerPort": pod, "protocol": protocol} | ({"hostIP": ip} if ip else {})


def result(pod: str, families: str = "46") -> dict[str, Any]:
    bridge, number = PODS[pod]
    v4, v6 = SUBNETS[bridge]
    addresses = [f"{v4}.{number}/24"] * ("4" in families) + [f"{v6}::{number}/64"] * ("6" in families)
    interfaces = [{"name": bridge}, {"name": "eth0", "sandbox": f"/run/netns/{pod}"}]
    return {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [{"address": a, "interface": 1} for a in addresses]}


BOTH = [port(8080), port(8080, protocol="udp")]


@pytest.fixture
def net(host: Host) -> Iterator[Net]:
    host.run(topology())
    made = Net(host)
    try:
        made.serve("p1", "p1")
        yield made
    finally:
        host.close()  # which ends the servers
        for server in made.servers:
            with server:
                wait_for_end(server)


@pytest.fixture(params=["br_netfilter", "without"])
def with_and_without_br_netfilter(net: Net, request: pytest.FixtureRequest) -> None:
    if net.host.execute(["test", "-e", BRIDGE_NF]).returncode:
        if request.param == "br_netfilter":
            pytest.skip("this kernel has no br_netfilter")
        return
    net.host.run(f"echo {int(request.param == 'br_netfilter')} | tee {BRIDGE_NF} {BRIDGE_NF.replace('iptables', 'ip6tables')}")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.usefixtures("with_and_without_br_netfilter")
def test_every_way_in(net: Net, backend: str) -> None:
    """Connections from outside, from the host by each address, from localhost, from other pods, from the pod itself."""
    net.add(*BOTH, backend=backend)
    net.check(*BOTH, backend=backend)
    for protocol in ("tcp", "udp"):

        def seen(where: str | None, address: str, protocol: str = protocol) -> str:
            return net.ask(where, address, protocol)

        assert seen("outside", "192.0.2.1") == "p1 192.0.2.2", "from outside the source is kept"
        assert seen("outside", "fd00:2::1") == "p1 fd00:2::2"
        assert seen("outside", "10.1.0.1") == "p1 192.0.2.2", "by any address of the host"
        assert seen(None, "192.0.2.1") == "p1 192.0.2.1"
        assert seen(None, "10.1.0.1") == "p1 10.1.0.1"
        assert seen(None, "10.2.0.1") == "p1 10.2.0.1"
        assert seen(None, "fd00:2::1") == "p1 fd00:2::1"
        assert seen(None, "fd00:1::1") == "p1 fd00:1::1"
        assert seen(None, "127.0.0.1") == "p1 10.1.0.1", "from localhost with the address of the bridge"
        assert seen("p2", "192.0.2.1") == "p1 10.1.0.1", "a neighbour goes through the host, both ways"
        assert seen("p2", "10.1.0.1") == "p1 10.1.0.1"
        assert seen("p2", "fd00:1::1") == "p1 fd00:1::1"
        assert seen("p2", "fd00:2::9") == "p1 fd00:1::1"
        assert seen("far", "10.2.0.1") == "p1 10.2.0.2", "a pod of another subnet keeps its address"
        assert seen("far", "fd00:3::1") == "p1 fd00:3::2"
        assert seen("p1", "192.0.2.1") == "p1 10.1.0.1", "hairpin"
        assert seen("p1", "10.1.0.1") == "p1 10.1.0.1"
        assert seen("p1", "fd00:2::1") == "p1 fd00:1::1"
    net.delete()
    assert net.refused("outside", "192.0.2.1")
    assert net.refused("outside", "192.0.2.1", "udp")
    assert net.refused(None, "127.0.0.1")
    assert net.refused("p2", "fd00:2::1")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_only_what_was_mapped(net: Net, backend: str) -> None:
    net.add(port(8080), port(8053, 80, "udp"), backend=backend)
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"
    assert net.refused("outside", "192.0.2.1", "udp")
    assert net.ask("outside", "192.0.2.1", "udp", 8053) == "p1 192.0.2.2"
    assert net.refused("outside", "192.0.2.1", "tcp", 8053)
    assert net.ask("outside", "10.1.0.3", port=8080) == "ConnectionRefusedError", "not an address of the host"


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_host_ip_means_that_address_alone(net: Net, backend: str) -> None:
    ports = [
        port(8080, ip="192.0.2.9"),
        port(8080, ip="fd00:2::9"),
        port(9090, ip="127.0.0.1"),
        port(9191, ip="0.0.0.0"),
        port(9292, ip="::"),
    ]
    net.add(*ports, backend=backend)
    net.check(*ports, backend=backend)
    assert net.ask("outside", "192.0.2.9") == "p1 192.0.2.2"
    assert net.ask(None, "192.0.2.9") == "p1 192.0.2.1"
    assert net.ask("p1", "192.0.2.9") == "p1 10.1.0.1"
    assert net.ask("p2", "fd00:2::9") == "p1 fd00:1::1"
    assert net.refused("outside", "192.0.2.1")
    assert net.refused(None, "127.0.0.1")
    assert net.refused("outside", "fd00:2::1")
    assert net.ask(None, "127.0.0.1", port=9090) == "p1 10.1.0.1"
    assert net.refused("outside", "192.0.2.1", port=9090)
    assert net.ask("outside", "192.0.2.1", port=9191) == "p1 192.0.2.2"
    assert net.refused("outside", "fd00:2::1", port=9191)
    assert net.ask("outside", "fd00:2::1", port=9292) == "p1 fd00:2::2"
    assert net.refused("outside", "192.0.2.1", port=9292)


def test_one_address_goes_before_any(net: Net) -> None:
    net.serve("p2", "p2")
    net.add(port(8080, ip="192.0.2.9"), pod="p2")
    net.add(port(8080))
    assert net.ask("outside", "192.0.2.9") == "p2 192.0.2.2"
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"
    net.delete("p2")
    assert net.ask("outside", "192.0.2.9") == "p1 192.0.2.2"


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_newest_wins_and_the_old_ones_delete_leaves_it(net: Net, backend: str) -> None:
    net.serve("p2", "p2")
    net.add(*BOTH, backend=backend)
    net.add(*BOTH, pod="p2", backend=backend)
    assert net.ask("outside", "192.0.2.1") == "p2 192.0.2.2"
    assert net.ask("outside", "fd00:2::1", "udp") == "p2 fd00:2::2"
    net.delete()
    assert net.ask("outside", "192.0.2.1") == "p2 192.0.2.2"
    assert net.ask(None, "127.0.0.1", "udp") == "p2 10.1.0.1"
    net.check(*BOTH, pod="p2", backend=backend)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_masq_all_hides_every_source(net: Net, backend: str) -> None:
    net.add(*BOTH, masqAll=True, backend=backend)
    net.check(*BOTH, masqAll=True, backend=backend)
    assert net.ask("outside", "192.0.2.1") == "p1 10.1.0.1"
    assert net.ask("outside", "fd00:2::1", "udp") == "p1 fd00:1::1"
    assert net.ask("p1", "192.0.2.1") == "p1 10.1.0.1"
    assert net.ask(None, "127.0.0.1") == "p1 10.1.0.1"
    assert net.ask("outside", "10.1.0.2", port=80) == "p1 192.0.2.2", "what does not come by a host port is as it was"


def test_without_snat_every_source_is_kept(net: Net) -> None:
    net.add(*BOTH, snat=False)
    net.check(*BOTH, snat=False)
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"
    assert net.ask("far", "10.2.0.1", "udp") == "p1 10.2.0.2"
    if net.host.execute(["test", "-e", BRIDGE_NF]).returncode == 0:
        net.host.run(f"echo 1 >{BRIDGE_NF}")
        assert net.ask("p2", "192.0.2.1") == "p1 10.1.0.3"
    assert net.host.run("sysctl -n net.ipv4.conf.cni0.route_localnet") == "0\n"
    assert net.ask("p1", "192.0.2.1", seconds=0.5) == "TimeoutError", "a pod takes no answer from itself"


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_another_bit_marks_what_is_masqueraded(net: Net, backend: str) -> None:
    net.add(*BOTH, markMasqBit=31, backend=backend)
    net.check(*BOTH, markMasqBit=31, backend=backend)
    assert net.ask("p1", "192.0.2.1") == "p1 10.1.0.1"
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"


def test_two_networks_with_marks_of_their_own(net: Net) -> None:
    net.serve("far", "far")
    net.add(port(8080))
    net.add(port(8081), pod="far", markMasqBit=5)
    assert net.ask("p1", "192.0.2.1") == "p1 10.1.0.1"
    assert net.ask("far", "192.0.2.1", port=8081) == "far 10.2.0.1"
    assert net.ask(None, "127.0.0.1", port=8081) == "far 10.2.0.1"
    assert net.ask("p1", "192.0.2.1", port=8081) == "far 10.1.0.2"


def test_external_chain_marks_instead_of_ours(net: Net) -> None:
    net.host.run(
        "for i in iptables ip6tables; do $i -t nat -N KUBE-MARK-MASQ;"
        "$i -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000;"
        "$i -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE; done"
    )
    net.add(*BOTH, externalSetMarkChain="KUBE-MARK-MASQ")
    net.check(*BOTH, externalSetMarkChain="KUBE-MARK-MASQ")
    assert "CNI-HOSTPORT-SETMARK" not in net.host.run("iptables -t nat -S")
    assert net.ask("p1", "192.0.2.1") == "p1 10.1.0.1"
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"


CONDITIONS = {
    "nftables": {
        "conditionsV4": ["iifname", "!=", "far", "ip", "saddr", "{ 192.0.2.2,", "10.1.0.2 }"],
        "conditionsV6": ["ip6", "saddr", "fd00:2::2"],
    },
    "iptables": {"conditionsV4": ["!", "-s", "10.2.0.0/24", "!", "-i", "lo"], "conditionsV6": ["-s", "fd00:2::2"]},
}


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_conditions_are_kept_per_network(net: Net, backend: str) -> None:
    """The words themselves say which back end is meant."""
    net.serve("p2", "p2")
    net.add(*BOTH, **CONDITIONS[backend])
    net.check(*BOTH, **CONDITIONS[backend])
    net.add(port(8081), pod="p2")
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"
    assert net.ask("outside", "fd00:2::1") == "p1 fd00:2::2"
    assert net.ask("p1", "192.0.2.1") == "p1 10.1.0.1", "what meets them is masqueraded as ever"
    assert net.refused("far", "10.2.0.1")
    assert net.refused("far", "fd00:3::1")
    assert net.ask("far", "10.2.0.1", port=8081) == "p2 10.2.0.2", "a network without conditions has none"
    net.delete()
    assert net.refused("outside", "192.0.2.1")


def test_ipv6_localhost_is_left_to_the_host(net: Net) -> None:
    """The kernel takes no answer to ::1 from a bridge: Go translates, and the connection hangs."""
    net.add(*BOTH, port(9090, ip="::1"))
    net.check(*BOTH, port(9090, ip="::1"))
    assert net.refused(None, "::1")
    net.serve(None, "host", "127.0.0.1", "::1", 8080)
    assert net.ask(None, "::1") == "host ::1"
    assert net.ask(None, "127.0.0.1") == "p1 10.1.0.1", "the pod has the port, even if another server listens there"
    assert "::1 is not mapped" in net.host.run("cat /run/cni-py/journal/p1:eth0:cbr0")


def send_to_loopback(source_mac: str) -> None:
    """A TCP connection request to 127.0.0.1:7777 in a frame to the bridge, as a hostile pod would make it."""
    import struct

    def checksum(data: bytes) -> int:
        total = sum(struct.unpack(f"!{len(data) // 2}H", data))
        total = (total >> 16) + (total & 0xFFFF)
        return ~(total + (total >> 16)) & 0xFFFF

    source, target = socket.inet_aton("10.1.0.2"), socket.inet_aton("127.0.0.1")
    udp = struct.pack("!HHHH", 5555, 7777, 12, 0) + b"evil"
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, target)
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(bytes.fromhex(source_mac.replace(":", "")) + raw.getsockname()[4] + b"\x08\x00" + ip + udp)


def received_on_loopback(net: Net) -> str:
    """Return what a UDP server on 127.0.0.1:7777 receives while p1 sends to it."""
    script = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 7777)); s.settimeout(0.5)\n"
        "print('ready', flush=True)\ntry: print(s.recv(99).decode())\nexcept TimeoutError: print('nothing')"
    )
    server = subprocess.Popen(net.host.command(sys.executable, "-c", script), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    mac = net.host.json("ip -j link show cni0")[0]["address"]
    net.host.do(send_to_loopback, mac, sandbox="p1")
    return server.communicate(timeout=20)[0].strip()


def test_pods_cannot_use_route_localnet(net: Net) -> None:
    """The setting that lets 127.0.0.1 reach a pod would let pods reach servers on 127.0.0.1 (as with Go)."""
    net.host.run("sysctl -qw net.ipv4.conf.cni0.route_localnet=1")
    assert received_on_loopback(net) == "evil", "the kernel would let it in"
    net.add(*BOTH)
    assert received_on_loopback(net) == "nothing"
    assert net.ask(None, "127.0.0.1") == "p1 10.1.0.1"
    net.host.run("nft 'flush set inet cni_py localnet'")
    reply = net.host.call("portmap", "CHECK", conf(*BOTH), container_id="p1", sandbox=Sandbox("p1"), prev=result("p1"))
    assert reply.code == 103


def test_route_localnet_only_where_it_is_needed(net: Net) -> None:
    def localnet() -> list[str]:
        return net.host.run("cd /proc/sys/net/ipv4/conf; grep -l 1 */route_localnet", check=False).split()

    net.add(port(8080, ip="192.0.2.9"), port(8081, ip="fd00:2::9"), port(8082, ip="::"))
    net.add(*BOTH, families="6")
    assert localnet() == []
    net.add(port(8083), pod="far")
    assert localnet() == ["br1/route_localnet"]


# --- UDP connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.1", "fd00:2::9"])  # the host's own source addresses
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_udp_conversation_moves_to_the_new_owner_of_the_port(net: Net, address: str, backend: str) -> None:
    """Conntrack would keep sending packets to the server that had the port when the conversation began."""
    net.serve(None, "host", port=5353)
    net.serve("p2", "p2")
    mapping = port(5353, 80, "udp")
    calls = [
        lambda: None,
        lambda: net.add(mapping, backend=backend),
        lambda: net.add(mapping, pod="p2", backend=backend),
        lambda: net.delete("p1"),
        lambda: net.host.ok("portmap", "DEL", conf(mapping), container_id="p2"),
    ]
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)\n"
        "s.connect((sys.argv[1], 5353))\n"
        "for line in sys.stdin:\n"
        "    try: s.send(b'hello'); print(s.recv(99).decode().split()[0], flush=True)\n"
        "    except OSError as error: print(type(error).__name__, flush=True)\n"
    )
    argv = net.host.command(sys.executable, "-c", script, address, sandbox="outside")
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None
    assert client.stdout is not None
    answers = []
    for call in calls:
        call()
        client.stdin.write("\n")
        client.stdin.flush()
        answers.append(client.stdout.readline().strip())
    client.communicate(timeout=20)
    assert answers == ["host", "p1", "p2", "p2", "host"]


def test_udp_connections_to_others_are_left_alone(net: Net) -> None:
    """A pod's DNS query to a resolver elsewhere goes to port 53 too, and is not what a mapped port 53 is about."""
    net.serve("outside", "outside", port=53)
    net.host.run(
        "nft 'add table ip t; add chain ip t c { type filter hook forward priority 0; }; add rule ip t c ct state new'"
    )
    assert net.ask("p2", "192.0.2.2", "udp", 53).startswith("outside")
    before = connections(net)
    assert len(before) == 1
    net.add(port(53, 80, "udp"), families="4")
    assert connections(net) == before
    assert net.ask("outside", "192.0.2.1", "udp", 53) == "p1 192.0.2.2"
    assert len(connections(net)) == 2
    net.delete()
    assert connections(net) == before


def connections(net: Net) -> list[str]:
    """UDP connections to port 53, without their times."""
    text = net.host.run("cat /proc/net/nf_conntrack", check=False)
    return sorted(line.split(" src=", 1)[1] for line in text.splitlines() if " udp " in line and "dport=53 " in line)


# --- beside others ----------------------------------------------------------------------------------------------------


def test_third_party_rules_may_be_reloaded(net: Net) -> None:
    """`nft -f` with a flush of another table leaves ours."""
    own = """
table inet fw
flush table inet fw
table inet fw { chain forward { type filter hook forward priority 0; policy accept; }; }
"""
    net.host.run("nft -f -", stdin=own)
    net.add(*BOTH)
    net.host.run("nft -f -", stdin=own)
    net.check(*BOTH)
    assert net.ask("outside", "192.0.2.1") == "p1 192.0.2.2"


def test_masquerade_and_host_ports_stand_beside_each_other(net: Net) -> None:
    """A pod that the bridge plugin masquerades reaches its own host port, and the world sees the host."""
    net.serve("outside", "outside")
    before = json.dumps(net.host.snapshot()["host"]["nft"])
    bridge = {
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
    }
    ipam = {"type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50", "routes": [{"dst": "0.0.0.0/0"}]}
    pod = net.host.netns("new")
    made = net.host.ok("bridge", "ADD", bridge | {"ipam": ipam}, container_id="new", sandbox=pod)
    net.host.ok("portmap", "ADD", conf(*BOTH), container_id="new", sandbox=pod, prev=made)
    net.serve("new", "new", port=80)
    assert net.ask("new", "192.0.2.2", port=80) == "outside 192.0.2.1"
    assert net.ask("new", "192.0.2.1") == "new 10.1.0.1"
    assert net.ask("outside", "192.0.2.1", "udp") == "new 192.0.2.2"
    net.host.ok("portmap", "DEL", conf(), container_id="new")
    net.host.ok("bridge", "DEL", bridge | {"ipam": ipam}, container_id="new", sandbox=pod)
    assert "new eth0" not in json.dumps(net.host.snapshot()["host"]["nft"])
    assert "new eth0" not in before
