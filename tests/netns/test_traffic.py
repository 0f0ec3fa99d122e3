"""Real packets through the deployment guide's configuration: connectivity, and the source addresses.

    world ── up0 ── host ── cni0 ── pods          world: 192.0.2.2, has no route to the pods
    peer ── flannel.1 ──┘                         peer: another node, 10.244.92.0/24 behind it (10.244.92.5 is a pod)

A server in each of them replies to every datagram and connection with its source address.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.namespaces import SUBNET_ENV, Host, Sandbox, wait_for_end

GUIDE: dict[str, Any] = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "type": "flannel",
    "delegate": {"hairpinMode": True, "isDefaultGateway": True},
}
BACKENDS = ["nftables", "iptables"]
DUAL_STACK = SUBNET_ENV + "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:91::1/64\n"
MTU = 1450
PORT = 7000

SERVER = f"""
import select, socket
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
for server in udp, tcp:
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", {PORT}))
tcp.listen()
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)  # to answer from the address that was asked
print("ready", flush=True)
while True:
    for server in select.select([udp, tcp], [], [])[0]:
        if server is udp:
            data, [(_, _, reached)], _, peer = udp.recvmsg(65536, 100)
            answer = f"{{peer[0]}} {{len(data)}}".encode()
            udp.sendmsg([answer], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, reached)], 0, peer)
        else:
            connection, peer = tcp.accept()
            with connection:
                size = 0
                while data := connection.recv(65536):
                    size += len(data)
                connection.sendall(f"{{peer[0]}} {{size}}".encode())
"""
CLIENT = f"""
import socket, sys
protocol, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.connect((address, {PORT}))
    s.sendall(bytes(size))
    if protocol == "tcp":
        s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode())
"""


@dataclass
class Net:
    """The picture above."""

    host: Host
    world: Sandbox
    peer: Sandbox
    servers: list[subprocess.Popen[str]] = field(default_factory=list)

    def add(self, name: str, conf: dict[str, Any] = GUIDE, **options: Any) -> tuple[Sandbox, str]:
        """A pod with a server in it, and its IPv4 address."""
        pod = self.host.netns(name)
        result = self.host.ok("flannel", "ADD", conf, sandbox=pod, container_id=name, **options)
        self.serve(pod)
        return pod, result["ips"][0]["address"].partition("/")[0]

    def serve(self, sandbox: Sandbox | None) -> None:
        """Start a server, which is killed with the host."""
        server = subprocess.Popen(
            self.host.command(sys.executable, "-c", SERVER, sandbox=sandbox), stdout=subprocess.PIPE, text=True
        )
        self.servers.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

    def seen(self, client: Sandbox | None, address: str, protocol: str = "udp", size: int = 100) -> str:
        """The address under which the server at `address` sees the client, which sends this many bytes."""
        done = self.host.execute([sys.executable, "-c", CLIENT, protocol, address, str(size)], sandbox=client)
        assert done.returncode == 0, f"{client} to {address} by {protocol}: {done.stderr.splitlines()[-1:]}"
        seen, received = done.stdout.split()
        assert int(received) == size
        return seen.removeprefix("::ffff:")

    def is_reached(self, client: Sandbox | None, address: str, *options: str) -> bool:
        """One ping, which has to be answered: the first packet too. Of several options ``-W`` the last counts."""
        return self.host.execute(["ping", "-nqc1", "-W15", *options, address], sandbox=client).returncode == 0


@pytest.fixture
def net(host: Host) -> Any:
    world, peer = host.netns("world"), host.netns("peer")
    host.write_subnet_env()
    host.run(
        f"""
        sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
        ip link add up0 type veth peer eth0 netns world
        ip link set up0 up
        ip addr add 192.0.2.1/24 dev up0
        ip addr add 2001:db8::1/64 dev up0
        ip link add flannel.1 mtu {MTU} type veth peer flannel.1 mtu {MTU} netns peer
        ip link set flannel.1 up
        ip addr add 10.244.91.0/32 dev flannel.1
        ip route add 10.244.92.0/24 via 10.244.92.0 dev flannel.1 onlink
        """
    )
    host.run(
        """
        sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0
        ip link set lo up
        ip link set eth0 up
        ip addr add 192.0.2.2/24 dev eth0
        ip addr add 2001:db8::2/64 dev eth0
        """,
        world,
    )
    host.run(
        """
        ip link set lo up
        ip link set flannel.1 up
        ip addr add 10.244.92.0/32 dev flannel.1
        ip addr add 10.244.92.5/32 dev lo
        ip route add 10.244.91.0/24 via 10.244.91.0 dev flannel.1 onlink src 10.244.92.5
        """,
        peer,
    )
    made = Net(host, world, peer)
    for sandbox in (world, peer, None):
        made.serve(sandbox)
    yield made
    host.close()
    for server in made.servers:
        with server:
            wait_for_end(server)


# --- on one node ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_pods_and_host_see_one_another_as_they_are(net: Net, protocol: str) -> None:
    one, one_address = net.add("c1")
    two, two_address = net.add("c2")
    assert net.seen(one, two_address, protocol) == one_address
    assert net.seen(two, one_address, protocol) == two_address
    for host_address in ("10.244.91.1", "192.0.2.1"):
        assert net.seen(one, host_address, protocol) == one_address
    assert net.seen(None, one_address, protocol) == "10.244.91.1"


def test_first_packet_after_add_arrives(net: Net) -> None:
    one, one_address = net.add("c1")
    two, _ = net.add("c2")
    assert net.is_reached(two, one_address)
    assert net.is_reached(one, "192.0.2.2")


def test_pod_without_masquerade_gets_no_answer_from_outside(net: Net) -> None:
    """Precondition of the tests of masquerading: the world has no route to a pod."""
    pod, _ = net.add("c1", {**GUIDE, "delegate": {**GUIDE["delegate"], "ipMasq": False}})
    assert not net.is_reached(pod, "192.0.2.2", "-W1")
    net.host.run("ip route add 10.244.91.0/24 via 192.0.2.1", net.world)
    assert net.seen(pod, "192.0.2.2") == "10.244.91.2"


# --- to the outside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_outside_sees_the_host(net: Net, backend: str) -> None:
    conf = {**GUIDE, "delegate": {**GUIDE["delegate"], "ipMasqBackend": backend}}
    one, one_address = net.add("c1", conf)
    two, two_address = net.add("c2", conf)
    for pod in (one, two):
        for protocol in ("udp", "tcp"):
            assert net.seen(pod, "192.0.2.2", protocol) == "192.0.2.1"
    assert net.seen(one, two_address) == one_address

    net.host.run("ip route add 10.244.91.0/24 via 192.0.2.1", net.world)
    assert net.seen(net.world, two_address) == "192.0.2.2"
    net.host.ok("flannel", "DEL", conf, sandbox=one, container_id="c1")
    assert net.seen(two, "192.0.2.2") == "192.0.2.1"
    assert not net.is_reached(None, one_address, "-W1")


@pytest.mark.parametrize("backend", BACKENDS)
def test_next_owner_of_an_address_is_masqueraded(net: Net, backend: str) -> None:
    """The elements of one pod go over to another."""
    conf = {**GUIDE, "delegate": {**GUIDE["delegate"], "ipMasqBackend": backend}}
    for name in ("c1", "c2"):
        pod, address = net.add(name, conf, args="IgnoreUnknown=1;IP=10.244.91.9")
        assert address == "10.244.91.9"
        assert net.seen(pod, "192.0.2.2", "tcp") == "192.0.2.1"
        net.host.ok("flannel", "DEL", conf, sandbox=pod, container_id=name)


# --- to other nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("beyond", "seen"),
    [
        pytest.param(None, "10.244.91.0", id="as-go"),  # the address of flannel.1
        pytest.param("subnet", "10.244.91.0", id="subnet"),
        pytest.param("network", "10.244.91.2", id="network"),
    ],
)
def test_what_a_pod_of_another_node_sees(net: Net, beyond: str | None, seen: str, backend: str) -> None:
    """FLANNEL_IPMASQ=false makes the bridge masquerade, and its rule excludes only the node's own subnet."""
    conf = {**GUIDE, "delegate": {**GUIDE["delegate"], "ipMasqBackend": backend}}
    if beyond is not None:
        conf["masqueradeBeyond"] = beyond
    pod, address = net.add("c1", conf)
    for protocol in ("udp", "tcp"):
        assert net.seen(pod, "10.244.92.5", protocol) == seen
        assert net.seen(pod, "192.0.2.2", protocol) == "192.0.2.1"
        assert net.seen(net.peer, address, protocol) == "10.244.92.5"


def test_networks_in_a_comma_list_are_excluded_too(net: Net) -> None:
    net.host.write_subnet_env(SUBNET_ENV.replace("10.244.0.0/16", "10.244.0.0/16,192.0.2.0/24"))
    pod, address = net.add("c1", {**GUIDE, "masqueradeBeyond": "network"})
    net.host.run("ip route add 10.244.91.0/24 via 192.0.2.1", net.world)
    assert net.seen(pod, "192.0.2.2") == net.seen(pod, "10.244.92.5") == address


def test_flanneld_that_masquerades_leaves_the_bridge_nothing_to_do(net: Net) -> None:
    net.host.write_subnet_env(SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=true"))
    pod, address = net.add("c1")
    assert net.seen(pod, "10.244.92.5") == address
    assert not net.is_reached(pod, "192.0.2.2", "-W1")
    assert "masquerade" not in net.host.run("nft list ruleset")


# --- hairpin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hairpin", [True, False])
def test_bridge_sends_a_frame_back_where_it_came_from(net: Net, hairpin: bool) -> None:
    """Two stations behind one port, which are kept from talking past the bridge (macvlan, mode vepa)."""
    pod, _ = net.add("c1", {**GUIDE, "delegate": {**GUIDE["delegate"], "hairpinMode": hairpin}})
    other = net.host.netns("other")
    for number, sandbox in (100, pod), (101, other):
        net.host.run(
            f"ip link add link eth0 name v{number} type macvlan mode vepa; ip link set v{number} netns {sandbox.name}", pod
        )
        net.host.run(f"ip addr add 10.244.91.{number}/24 dev v{number}; ip link set v{number} up", sandbox)
    assert net.is_reached(pod, "10.244.91.101", "-I", "v100", *([] if hairpin else ["-W1"])) is hairpin


def test_pod_reaches_itself_through_a_service(net: Net) -> None:
    """The host sends the pod's packets back to it, as kube-proxy arranges it, with the bridge's address."""
    pod, address = net.add("c1")
    net.host.run(
        "nft -f -",
        stdin=f"""table ip service {{
            chain in {{ type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 dnat to {address}; }}
            chain out {{ type nat hook postrouting priority srcnat - 1; ip saddr {address} ip daddr {address} masquerade; }}
        }}""",
    )
    for protocol in ("udp", "tcp"):
        assert net.seen(pod, "10.96.0.1", protocol) == "10.244.91.1"


# --- size -------------------------------------------------------------------------------------------------------------


def test_packets_of_full_mtu_pass(net: Net) -> None:
    one, one_address = net.add("c1")
    two, two_address = net.add("c2")
    whole, too_much = (("-M", "do", "-s", str(MTU - 28 + more)) for more in (0, 1))
    ways = [(one, two_address), (one, "10.244.91.1"), (None, one_address), (one, "192.0.2.2"), (one, "10.244.92.5")]
    for client, address in ways:
        assert net.is_reached(client, address, *whole), f"{client} {address}"
        assert net.seen(client, address, "udp", MTU - 28)
    assert not net.is_reached(one, two_address, "-W1", *too_much)
    assert net.seen(two, one_address, "tcp", 1 << 20)
    assert net.seen(two, "192.0.2.2", "tcp", 1 << 20)


def test_fragments_pass(net: Net) -> None:
    one, _ = net.add("c1")
    _, two_address = net.add("c2")
    for address in (two_address, "192.0.2.2", "10.244.92.5"):
        assert net.seen(one, address, "udp", 9000)


# --- IPv6 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_dual_stack(net: Net, backend: str) -> None:
    net.host.write_subnet_env(DUAL_STACK)
    conf = {**GUIDE, "delegate": {**GUIDE["delegate"], "ipMasqBackend": backend}}
    one, one_address = net.add("c1", conf)
    two, two_address = net.add("c2", conf)
    assert net.is_reached(two, "fd00:244:0:91::2")
    assert net.is_reached(two, "2001:db8::2")
    assert net.is_reached(one, "fd00:244:0:91::3", "-M", "do", "-s", str(MTU - 48))
    assert not net.is_reached(one, "fd00:244:0:91::3", "-W1", "-M", "do", "-s", str(MTU - 47))
    for protocol in ("udp", "tcp"):
        assert net.seen(one, "fd00:244:0:91::3", protocol) == "fd00:244:0:91::2"
        assert net.seen(one, "fd00:244:0:91::1", protocol) == "fd00:244:0:91::2"
        assert net.seen(None, "fd00:244:0:91::2", protocol) == "fd00:244:0:91::1"
        assert net.seen(one, "2001:db8::2", protocol) == "2001:db8::1"
        assert net.seen(one, "192.0.2.2", protocol) == "192.0.2.1"
        assert net.seen(one, two_address, protocol) == one_address


def test_ipv6_alone(net: Net) -> None:
    net.host.write_subnet_env(
        "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:91::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    one, _ = net.add("c1")
    net.add("c2")
    assert net.seen(one, "fd00:244:0:91::3") == "fd00:244:0:91::2"
    assert net.seen(one, "2001:db8::2") == "2001:db8::1"


def test_ipv6_network_is_excluded(net: Net) -> None:
    net.host.write_subnet_env(DUAL_STACK.replace("fd00:244::/48", "fd00:244::/48,2001:db8::/64"))
    pod, address = net.add("c1", {**GUIDE, "masqueradeBeyond": "network"})
    net.host.run("ip route add fd00:244:0:91::/64 via 2001:db8::1", net.world)
    assert net.seen(pod, "2001:db8::2") == "fd00:244:0:91::2"
    assert net.seen(pod, "10.244.92.5") == address
