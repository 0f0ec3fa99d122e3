"""Chains as nodes have them, each executed by a runtime: packets pass, CHECK succeeds, DEL leaves nothing.

The runtime is `cni-py`, which does what libcni does (integration/clients/test_cnitool.py compares them).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.chained import CLOSED, LIMITS, difference, whole_state
from support.mains import UPLINK, parameters
from support.namespaces import PATH, Host, Sandbox
from support.pods import HOST4, NO_DAD, PORT, WORLD, datagram, link, transfer, world
from support.waiting import until

pytestmark = pytest.mark.netns

HOST_PORT = 8080
FLANNEL = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
PORTS = [{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol} for protocol in ("tcp", "udp")]
OTHER_PORTS = [port | {"hostPort": HOST_PORT + 1} for port in PORTS]
"""Ports of a pod that is attached before, so that the chains that all pods share exist."""
POOL = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}


class Runtime:
    """`cni-py` on a host: networks, and attachments to them."""

    def __init__(self, host: Host, cni_py: Path) -> None:
        self.host, self.program = host, str(cni_py)
        host.run(NO_DAD)

    def configure(self, network: str, *plugins: dict[str, Any], **keys: Any) -> None:
        conflist = {"cniVersion": "1.0.0", "name": network, "plugins": list(plugins)} | keys
        self.host.write(f"/etc/cni/net.d/{network}.conflist", json.dumps(conflist))

    def call(self, verb: str, network: str, pod: Sandbox, ifname: str = "eth0", **capabilities: Any) -> Any:
        """Must succeed; what was printed, as JSON."""
        env = {"PATH": PATH, "CNI_PATH": self.host.bin_dir, "NETCONFPATH": "/etc/cni/net.d", "CNI_IFNAME": ifname}
        argv = [self.program, verb, network, pod.path]
        done = self.host.execute(argv, env=env | {"CAP_ARGS": json.dumps(capabilities)})
        assert done.returncode == 0, f"{verb} {network} {pod.name}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def add(self, network: str, pod: Sandbox, ifname: str = "eth0", **capabilities: Any) -> str:
        """Attach, and check. Returns: the first address."""
        result = self.call("add", network, pod, ifname, **capabilities)
        self.call("check", network, pod, ifname, **capabilities)
        return str(result["ips"][0]["address"]).partition("/")[0]

    def delete(self, network: str, pod: Sandbox, ifname: str = "eth0", **capabilities: Any) -> None:
        self.call("del", network, pod, ifname, **capabilities)

    def state(self, *pods: Sandbox) -> dict[str, Any]:
        """Everything that a chain could have changed, on the host and in these pods."""
        return whole_state(self.host, *pods)


@pytest.fixture
def runtime(host: Host, cni_py: Path) -> Runtime:
    return Runtime(host, cni_py)


def pings(host: Host, pod: Sandbox | None, *words: str) -> bool:
    return "1 received" in host.run(f"ping -nc1 -W5 {' '.join(words)}", pod, check=False)


# --- flannel, bandwidth, tuning, portmap ------------------------------------------------------------------------------


def test_four_plugins_of_a_node(host: Host, runtime: Runtime) -> None:
    """Each of the four can be seen in one flow: the host port, the source, the rate, the MTU."""
    host.write_subnet_env()
    outside, other, pod = world(host, knows_pods=False), host.netns("c1"), host.netns("c2")
    limits = LIMITS | {"ingressRate": 16_000_000}
    tuning = {"type": "tuning", "mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}}
    runtime.configure("cbr0", FLANNEL, {"type": "bandwidth", "capabilities": {"bandwidth": True}}, tuning, PORTMAP)
    runtime.add("cbr0", other, bandwidth=limits, portMappings=OTHER_PORTS)
    before = runtime.state(other, pod)
    address = runtime.add("cbr0", pod, bandwidth=limits, portMappings=PORTS)

    size = (2 * limits["ingressRate"] + limits["ingressBurst"]) // 8
    rate, client = transfer(host, outside, pod, HOST4, size, port=HOST_PORT)
    assert limits["ingressRate"] / 3 < rate < 1.03 * limits["ingressRate"] * (size * 8) / (size * 8 - limits["ingressBurst"])
    assert client == WORLD
    assert datagram(host, outside, pod, HOST4, port=HOST_PORT) == WORLD
    assert datagram(host, other, pod, address) is not None, "a neighbour"
    assert datagram(host, pod, outside, WORLD) == HOST4, "masqueraded"
    assert link(host, "eth0", pod)["mtu"] == 1400
    assert pings(host, pod, "-Mdo", "-s1372", "10.244.91.1")

    runtime.delete("cbr0", pod, bandwidth=limits, portMappings=PORTS)
    assert difference(before, runtime.state(other, pod)) == []
    runtime.call("check", "cbr0", other, bandwidth=limits, portMappings=OTHER_PORTS)


# --- ptp, portmap -----------------------------------------------------------------------------------------------------


def test_ptp_with_host_ports(host: Host, runtime: Runtime) -> None:
    outside, other, pod = world(host, knows_pods=False), host.netns("c1"), host.netns("c2")
    runtime.configure("net", {"type": "ptp", "ipMasq": True, "ipam": POOL}, PORTMAP)
    runtime.add("net", other, portMappings=OTHER_PORTS)
    before = runtime.state(other, pod)
    address = runtime.add("net", pod, portMappings=PORTS)
    assert transfer(host, outside, pod, HOST4, 100_000, port=HOST_PORT)[1] == WORLD
    assert datagram(host, outside, pod, HOST4, port=HOST_PORT) == WORLD
    assert datagram(host, other, pod, HOST4, port=HOST_PORT) is not None, "a neighbour, by the host's port"
    assert datagram(host, pod, pod, HOST4, port=HOST_PORT) is not None, "the pod itself, by the host's port"
    assert datagram(host, other, pod, address) is not None
    assert datagram(host, pod, outside, WORLD) == HOST4
    runtime.delete("net", pod, portMappings=PORTS)
    assert difference(before, runtime.state(other, pod)) == []


# --- bridge, firewall -------------------------------------------------------------------------------------------------


def test_bridge_behind_a_closed_forward_chain(host: Host, runtime: Runtime) -> None:
    host.run(CLOSED)
    outside, other, pod = world(host, knows_pods=False), host.netns("c1"), host.netns("c2")
    bridge = {"type": "bridge", "isGateway": True, "ipMasq": True}
    runtime.configure("net", bridge | {"bridge": "br0", "ipam": POOL}, {"type": "firewall"})
    runtime.configure("closed", bridge | {"bridge": "br1", "ipam": POOL | {"ranges": [[{"subnet": "10.2.0.0/24"}]]}})
    runtime.add("closed", other)
    assert datagram(host, other, outside, WORLD, seconds=0.2) is None
    runtime.delete("closed", other)
    until(lambda: "NO-CARRIER" in host.run("ip link show br1"), "br1 has no port")
    runtime.add("net", other)
    before = runtime.state(other, pod)
    runtime.add("net", pod)
    assert datagram(host, pod, outside, WORLD) == HOST4
    assert transfer(host, pod, outside, WORLD, 100_000)[1] == HOST4
    runtime.delete("net", pod)
    assert difference(before, runtime.state(other, pod)) == []


# --- nerdctl ----------------------------------------------------------------------------------------------------------


def of_nerdctl(bridge: str, subnet: str, policy: str = "same-bridge") -> list[dict[str, Any]]:
    """The plugins of a network that nerdctl 2 creates. Source: nerdctl, pkg/netutil/netutil_unix.go, cni_plugin_unix.go."""
    ranges = [[{"subnet": f"{subnet}.0/24", "gateway": f"{subnet}.1"}]]
    ipam = {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": ranges}
    return [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": policy},
        {"type": "tuning"},
    ]


def test_networks_of_nerdctl(host: Host, runtime: Runtime) -> None:
    """Its default network and one that it created: ports, masquerade, and no way from one to the other."""
    outside = world(host, knows_pods=False)
    lists = {"bridge": ("nerdctl0", "10.4.0"), "blue": ("br-0123456789ab", "10.4.1")}
    for network, (bridge, subnet) in lists.items():
        labels = {"nerdctl/default-network": "true"} if network == "bridge" else {}
        runtime.configure(network, *of_nerdctl(bridge, subnet), nerdctlID=network * 12, nerdctlLabels=labels)
    first, blue, pod = host.netns("first"), host.netns("blue"), host.netns("web")
    runtime.add("bridge", first, portMappings=OTHER_PORTS)
    elsewhere = runtime.add("blue", blue)
    before = runtime.state(first, blue, pod)
    address = runtime.add("bridge", pod, portMappings=PORTS)

    assert transfer(host, outside, pod, HOST4, 100_000, port=HOST_PORT)[1] == WORLD
    assert datagram(host, outside, pod, HOST4, port=HOST_PORT) == WORLD
    assert datagram(host, pod, pod, HOST4, port=HOST_PORT) is not None, "hairpin"
    assert datagram(host, pod, outside, WORLD) == HOST4
    assert datagram(host, first, pod, address) is not None
    assert datagram(host, blue, pod, address, seconds=0.2) is None
    assert datagram(host, pod, blue, elsewhere, seconds=0.2) is None
    runtime.delete("bridge", pod, portMappings=PORTS)
    assert difference(before, runtime.state(first, blue, pod)) == []


# --- macvlan, ipvlan, vlan with static --------------------------------------------------------------------------------


def neighbour(host: Host, vlan: int = 0) -> Sandbox:
    """A machine at the other end of the uplink's wire, 10.1.0.200; ``vlan``: its packets are tagged."""
    host.run(UPLINK)
    host.run("ip netns add lan; ip link set up1 netns lan; ip -n lan link set up1 up")
    device = "up1"
    if vlan:
        device = f"up1.{vlan}"
        host.run(f"ip -n lan link add link up1 {device} type vlan id {vlan}; ip -n lan link set {device} up")
    host.run(f"ip -n lan addr add 10.1.0.200/24 dev {device}")
    return Sandbox("lan")


@pytest.mark.parametrize("plugin", parameters("macvlan", "ipvlan", "vlan"))
def test_static_addresses_on_the_wire(host: Host, runtime: Runtime, plugin: str) -> None:
    """Addresses of the runtime (capability `ips`), as Multus and nerdctl pass them."""
    lan = neighbour(host, vlan=7 if plugin == "vlan" else 0)
    keys = {"vlanId": 7} if plugin == "vlan" else {}
    runtime.configure(
        "lan", {"type": plugin, "master": "up0", "capabilities": {"ips": True}, "ipam": {"type": "static"}} | keys
    )
    pod, other = host.netns("c1"), host.netns("c2")
    before = runtime.state(pod, other)
    pods = [(pod, "10.1.0.11")] if plugin == "vlan" else [(pod, "10.1.0.11"), (other, "10.1.0.12")]  # one VLAN, one link
    for one, address in pods:
        assert runtime.add("lan", one, ips=[f"{address}/24"]) == address
        assert pings(host, one, "10.1.0.200")
        assert transfer(host, lan, one, address, 100_000)[1] == "10.1.0.200"
    if plugin != "vlan":
        assert pings(host, pod, "10.1.0.12"), "each other"
    for one, address in pods:
        runtime.delete("lan", one, ips=[f"{address}/24"])
    assert difference(before, runtime.state(pod, other)) == []


# --- two attachments, sbr ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_sbr", [True, False], ids=["sbr", "without"])
def test_second_attachment_is_left_by_its_own_packets(host: Host, runtime: Runtime, with_sbr: bool) -> None:
    """Two networks, as Multus attaches them: a machine beyond the second one's router is answered over it, which needs sbr."""
    host.write_subnet_env()
    lan = neighbour(host)
    host.run("ip addr add 198.51.100.1/32 dev lo; ip link set lo up", lan)
    runtime.configure("cbr0", FLANNEL)
    addresses = [{"address": "10.1.0.11/24", "gateway": "10.1.0.200"}]
    macvlan = {"type": "macvlan", "master": "up0", "ipam": {"type": "static", "addresses": addresses}}
    runtime.configure("lan", macvlan, *[{"type": "sbr"}] * with_sbr)
    pod = host.netns("c1")
    empty = runtime.state(pod)["/run/netns/c1 more"]
    runtime.add("cbr0", pod)
    one = runtime.state(pod)
    runtime.add("lan", pod, "net1")
    assert pings(host, lan, "-I", "198.51.100.1", "10.1.0.11") is with_sbr
    assert pings(host, pod, "10.244.91.1")
    runtime.call("check", "cbr0", pod)
    runtime.delete("lan", pod, "net1")
    assert difference(one, runtime.state(pod)) == []
    runtime.delete("cbr0", pod)
    assert runtime.state(pod)["/run/netns/c1 more"] == empty


# --- flannel with another delegate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", parameters("ptp", "macvlan", "ipvlan"))
def test_pods_of_another_delegate_reach_each_other(host: Host, runtime: Runtime, plugin: str) -> None:
    host.write_subnet_env()
    lan = neighbour(host)
    host.run("ip addr add 10.244.91.200/24 dev up1", lan)
    delegate: dict[str, Any] = {"type": plugin} | ({} if plugin == "ptp" else {"master": "up0"})
    runtime.configure("cbr0", {"type": "flannel", "delegate": delegate}, PORTMAP)
    outside, pod, other = world(host, knows_pods=False), host.netns("c1"), host.netns("c2")
    ports, other_ports = (PORTS, OTHER_PORTS) if plugin == "ptp" else ([], [])  # the host reaches pods of the others by no way
    runtime.add("cbr0", other, portMappings=other_ports)
    before = runtime.state(other, pod)
    address = runtime.add("cbr0", pod, portMappings=ports)
    assert address == "10.244.91.3"
    assert pings(host, pod, "10.244.91.2")
    assert transfer(host, other, pod, address, 100_000)[1] == "10.244.91.2"
    if plugin == "ptp":
        assert pings(host, None, address)
        assert datagram(host, outside, pod, HOST4, port=HOST_PORT) == WORLD
    else:
        assert pings(host, pod, "10.244.91.200"), "on the wire of the host's interface"
    runtime.delete("cbr0", pod, portMappings=ports)
    assert difference(before, runtime.state(other, pod)) == []
