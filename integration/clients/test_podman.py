"""podman with its CNI back end: real containers on our bridge, host-local, portmap, firewall and tuning.

Each test has a host of its own, and podman there its files: images, containers, locks, networks. Our plugins come first in
podman's search path, the Go plugins behind them, so that one chain has plugins of both.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from integration.clients import image
from integration.clients.containers import (
    HOST4,
    HOST6,
    OUTSIDE,
    OUTSIDE4,
    OUTSIDE6,
    ask,
    done_by_us,
    prepare,
    refused,
    reservations,
    server_outside,
    state,
)
from support.agents import Agent
from support.namespaces import PATH, Host, Sandbox
from support.waiting import until

MAC = "c2:11:22:33:44:55"
GATEWAY = "10.88.0.1"  # of podman's own network, cni-podman0
AT_ONCE = 8

CONTAINERS_CONF = """
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = [{plugins}]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""
STORAGE_CONF = (
    '[storage]\ndriver = "{driver}"\ngraphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"\n'
)
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class Podman:
    """podman in a host: `podman("rm", "-f", "c1")`."""

    def __init__(self, program: str, host: Host, ours: Path, go: str, archive: Path) -> None:
        self.program, self.host, self.ours, self.go = program, host, str(ours), go
        prepare(host, "/var/lib/containers", "/etc/containers")
        host.write("/etc/containers/policy.json", POLICY)
        self.configure(self.ours, go)
        self.take_storage("overlay", archive)

    def configure(self, *plugin_directories: str) -> None:
        """Set the directories where podman looks for plugins, in order."""
        plugins = ", ".join(f'"{directory}"' for directory in plugin_directories)
        self.host.write("/etc/containers/containers.conf", CONTAINERS_CONF.format(plugins=plugins))

    def take_storage(self, driver: str, archive: Path) -> None:
        """Load the image; without overlayfs in the kernel every container copies it."""
        self.host.write("/etc/containers/storage.conf", STORAGE_CONF.format(driver=driver))
        done = self.execute("load", "-qi", str(archive))
        if done.returncode and driver == "overlay":
            self.host.run("rm -rf /var/lib/containers/* /run/containers")
            self.take_storage("vfs", archive)
        elif "cni support is not enabled" in done.stderr:
            pytest.skip("this podman is built without its CNI back end")
        else:
            assert done.returncode == 0, done.stderr

    def execute(self, *argv: str) -> Any:
        env = {"PATH": PATH, "HOME": "/run", "TMPDIR": "/run", "LC_ALL": "C.UTF-8"}
        return self.host.execute([self.program, *argv], env=env)

    def __call__(self, *argv: str) -> str:
        """Must succeed; what it printed."""
        done = self.execute(*argv)
        assert done.returncode == 0, f"podman {' '.join(argv)}: {done.stdout}{done.stderr}"
        return str(done.stdout).strip()

    def refused(self, *argv: str) -> str:
        """Must fail; its words."""
        done = self.execute(*argv)
        assert done.returncode != 0, f"podman {' '.join(argv)} succeeded: {done.stdout}"
        return str(done.stdout + done.stderr)

    def run(self, name: str, *options: str) -> str:
        """Start a container with a server. Returns: its id."""
        return self("run", "-d", "--name", name, "--hostname", name, *options, image.NAME)

    def network_of(self, name: str, network: str = "podman") -> dict[str, Any]:
        """Return what podman took from the plugins' result."""
        found: dict[str, Any] = json.loads(self("inspect", name))[0]["NetworkSettings"]["Networks"][network]
        return found

    def address(self, name: str, network: str = "podman") -> str:
        return str(self.network_of(name, network)["IPAddress"])

    def sandbox(self, name: str) -> Sandbox:
        return Sandbox(Path(self("inspect", name, "--format", "{{.NetworkSettings.SandboxKey}}")).name)

    def configuration(self, network: str) -> dict[str, Any]:
        """The file of a network that podman made."""
        found: dict[str, Any] = json.loads(self.host.path(f"/etc/cni/net.d/{network}.conflist").read_text())
        return found


@pytest.fixture
def podman(host: Host, bin_dir: Path, podman_program: str, go_plugins: str, answer_image: Path) -> Podman:
    return Podman(podman_program, host, bin_dir, go_plugins, answer_image)


@pytest.fixture
def before(host: Host, podman: Podman) -> dict[str, Any]:
    """The state with one container, "first", that has made what all share."""
    podman.run("first", "-p", "9999:80", "-p", "[::1]:9998:80")
    return state(host)


def blue_and_red(podman: Podman) -> None:
    """Two networks, 10.7.0.0/24 and 10.8.0.0/24."""
    podman("network", "create", "--subnet", "10.7.0.0/24", "blue")
    podman("network", "create", "--subnet", "10.8.0.0/24", "red")


# --- one container ----------------------------------------------------------------------------------------------------


def test_run_with_ports_then_rm(host: Host, podman: Podman, before: dict[str, Any], agent: Agent | None) -> None:
    container = podman.run("web", "-p", "8080:80/tcp", "-p", "5353:80/udp")
    address = podman.address("web")
    assert done_by_us(host, container) == {"ADD bridge", "ADD portmap", "ADD firewall", "ADD tuning"}
    assert address in host.run("iptables -S CNI-FORWARD")
    assert podman("exec", "web", "ip", "-o", "-4", "addr", "show", "eth0").split()[3] == f"{address}/16"

    for port, protocol in ((8080, "tcp"), (5353, "udp")):
        assert ask(host, address, 80, protocol) == f"{GATEWAY} web"
        assert ask(host, HOST4, port, protocol, OUTSIDE) == f"{OUTSIDE4} web"
        assert ask(host, HOST4, port, protocol) == f"{HOST4} web"
        assert ask(host, "127.0.0.1", port, protocol) == f"{GATEWAY} web"
        for asking in ("first", "web"):  # a neighbour, and the container itself by the host's port
            assert ask(host, HOST4, port, protocol, podman.sandbox(asking)) == f"{GATEWAY} web"
        assert ask(host, address, 80, protocol, podman.sandbox("first")) == f"{podman.address('first')} web"
    assert refused(host, HOST4, 8080, "udp", OUTSIDE)
    assert refused(host, HOST4, 5353, "tcp", OUTSIDE)

    podman("rm", "-ft0", "web")
    assert done_by_us(host, container) >= {"DEL bridge", "DEL portmap"}
    assert refused(host, HOST4, 8080, source=OUTSIDE)
    assert state(host) == before


def test_traffic_to_the_world_is_masqueraded(host: Host, podman: Podman) -> None:
    podman.run("c1")
    with server_outside(host):
        assert ask(host, OUTSIDE4, source=podman.sandbox("c1")).split()[0] == HOST4


def test_port_of_one_host_address(host: Host, podman: Podman, before: dict[str, Any]) -> None:
    podman.run("web", "-p", f"{HOST4}:8080:80", "-p", "127.0.0.1:8081:80", "-p", "8082-8083:80-81")
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    assert refused(host, "127.0.0.1", 8080)
    assert ask(host, "127.0.0.1", 8081) == f"{GATEWAY} web"
    assert refused(host, HOST4, 8081, source=OUTSIDE)
    assert ask(host, HOST4, 8082, source=OUTSIDE) == f"{OUTSIDE4} web"
    podman("rm", "-ft0", "web")
    assert state(host) == before


def test_address_and_mac_that_are_asked_for(host: Host, podman: Podman, before: dict[str, Any]) -> None:
    podman.run("c1", "--ip", "10.88.7.7", "--mac-address", MAC)
    network = podman.network_of("c1")
    assert (network["IPAddress"], network["MacAddress"], network["Gateway"]) == ("10.88.7.7", MAC, GATEWAY)
    shown = podman("exec", "c1", "ip", "addr", "show", "eth0")
    assert MAC in shown
    assert "10.88.7.7/16" in shown
    assert ask(host, "10.88.7.7", source=podman.sandbox("first")) == f"{podman.address('first')} c1"

    occupied = state(host)
    assert "10.88.7.7" in podman.refused("run", "-d", "--name", "c2", "--ip", "10.88.7.7", image.NAME)
    podman("rm", "-f", "c2")
    assert state(host) == occupied
    podman("rm", "-ft0", "c1")
    assert state(host) == before
    podman.run("c2", "--ip", "10.88.7.7")


def test_stop_start_and_restart(host: Host, podman: Podman, before: dict[str, Any], agent: Agent | None) -> None:
    podman.run("web", "--mac-address", MAC, "-p", "8080:80")
    started = state(host)
    podman("stop", "-t0", "web")
    assert state(host) == before
    podman("start", "web")
    podman("restart", "-t0", "web")
    assert podman.network_of("web")["MacAddress"] == MAC
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    assert (len(state(host)["files"]), len(host.host_ends())) == (len(started["files"]), 3)
    podman("rm", "-ft0", "web")
    assert state(host) == before


def test_container_that_ends_by_itself(host: Host, podman: Podman, before: dict[str, Any], agent: Agent | None) -> None:
    """Podman's monitor calls DEL, without any of our commands."""
    podman.run("c1", "-p", "8080:80")
    host.run(f"kill -KILL {podman('inspect', 'c1', '--format', '{{.State.Pid}}')}")
    until(lambda: state(host) == before, "the monitor's cleanup")
    podman("rm", "c1")
    podman("run", "--rm", "--name", "c2", image.NAME, "true")
    until(lambda: state(host) == before, "the clean-up of a container that was run with --rm")


@pytest.mark.parametrize("flush", ["nft flush ruleset", "nft delete table inet cni_py"])
def test_network_reload_after_the_rules_were_flushed(host: Host, podman: Podman, flush: str) -> None:
    podman.run("web", "-p", "8080:80", "-p", "5353:80/udp")
    as_made = state(host)
    address = podman.address("web")
    host.run(flush)
    assert refused(host, HOST4, 8080, source=OUTSIDE)
    podman("network", "reload", "web")
    assert podman.address("web") == address
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    assert ask(host, HOST4, 5353, "udp", OUTSIDE) == f"{OUTSIDE4} web"
    with server_outside(host):
        assert ask(host, OUTSIDE4, source=podman.sandbox("web")).split()[0] == HOST4
    assert list(as_made["files"]) == list(state(host)["files"])
    podman("rm", "-ft0", "web")
    assert reservations(host, "podman") == []
    assert host.host_ends() == ["up0"]


def test_network_reload_of_several(host: Host, podman: Podman) -> None:
    for number in range(3):
        podman.run(f"c{number}", "-p", f"808{number}:80")
    podman("network", "reload", "--all")
    for number in range(3):
        assert ask(host, HOST4, 8080 + number, source=OUTSIDE) == f"{OUTSIDE4} c{number}"
    assert len(host.host_ends()) == 3 + 1


# --- networks that podman makes ---------------------------------------------------------------------------------------


def test_network_that_podman_makes(host: Host, podman: Podman, agent: Agent | None) -> None:
    podman("network", "create", "--subnet", "10.7.0.0/24", "--ip-range", "10.7.0.64/26", "--opt", "mtu=1400", "blue")
    plugins = [plugin["type"] for plugin in podman.configuration("blue")["plugins"]]
    assert plugins[:4] == ["bridge", "portmap", "firewall", "tuning"]
    untouched = host.snapshot()
    container = podman.run("c1", "--network", "blue", "-p", "8080:80")
    assert done_by_us(host, container) == {"ADD bridge", "ADD portmap", "ADD firewall", "ADD tuning"}
    assert podman.address("c1", "blue") == "10.7.0.65"
    assert host.json("ip -j link show eth0", podman.sandbox("c1"))[0]["mtu"] == 1400
    podman.run("other")  # in the default network
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} c1"
    assert (
        ask(host, HOST4, 8080, source=podman.sandbox("other")) == "10.7.0.1 c1"
    )  # masqueraded, as all that leaves its network

    podman("rm", "-ft0", "c1", "other")
    assert reservations(host, "blue") == reservations(host, "podman") == []
    assert host.host_ends() == ["up0"]
    podman("network", "rm", "blue")
    left = host.snapshot()
    assert [link["ifname"] for link in left["host"]["addresses"]] == [
        *(link["ifname"] for link in untouched["host"]["addresses"]),
        "cni-podman0",
    ]
    assert not [name for name in left["files"] if "blue" in name]


def test_internal_network(host: Host, podman: Podman) -> None:
    """No way out, and no addresses of the host in it."""
    podman("network", "create", "--internal", "--subnet", "10.7.0.0/24", "blue")
    for name in ("c1", "c2"):
        podman.run(name, "--network", "blue")
    c1 = podman.sandbox("c1")
    assert ask(host, podman.address("c2", "blue"), source=c1) == f"{podman.address('c1', 'blue')} c2"
    assert host.json("ip -j route show default", c1) == []
    podman("rm", "-ft0", "c1", "c2")
    assert (reservations(host, "blue"), host.host_ends()) == ([], ["up0"])


def test_macvlan_network_of_podman(host: Host, podman: Podman) -> None:
    podman(
        "network",
        "create",
        "-d",
        "macvlan",
        "-o",
        "parent=up0",
        "--subnet",
        "192.0.2.0/24",
        "--ip-range",
        "192.0.2.64/26",
        "lan",
    )
    container = podman.run("c1", "--network", "lan")
    assert done_by_us(host, container) == {"ADD macvlan"}
    assert ask(host, podman.address("c1", "lan"), source=OUTSIDE) == f"{OUTSIDE4} c1"
    podman("rm", "-ft0", "c1")
    assert reservations(host, "lan") == []


def test_connect_and_disconnect(host: Host, podman: Podman) -> None:
    blue_and_red(podman)
    for network in ("blue", "red"):
        podman.run(f"in-{network}", "--network", network)
    podman.run("web", "--network", "blue")
    before = state(host)
    sandbox = podman.sandbox("web")

    podman("network", "connect", "--ip", "10.8.0.99", "--mac-address", MAC, "red", "web")
    eth1 = host.json("ip -j addr show eth1", sandbox)[0]
    assert (eth1["address"], eth1["addr_info"][0]["local"]) == (MAC, "10.8.0.99")
    assert ask(host, "10.8.0.99", source=podman.sandbox("in-red")) == f"{podman.address('in-red', 'red')} web"
    assert ask(host, podman.address("in-red", "red"), source=sandbox) == "10.8.0.99 in-red"

    podman("network", "disconnect", "red", "web")
    assert refused(host, "10.8.0.99")
    assert state(host) == before
    podman("network", "connect", "red", "web")
    podman("network", "disconnect", "blue", "web")  # the first one: what the other has must stay
    address = podman.address("web", "red")
    assert ask(host, address, source=podman.sandbox("in-red")) == f"{podman.address('in-red', 'red')} web"
    assert reservations(host, "red") == sorted([podman.address("in-red", "red"), address])
    podman("rm", "-ft0", "web", "in-blue", "in-red")
    assert (reservations(host, "blue"), reservations(host, "red"), host.host_ends()) == ([], [], ["up0"])


@pytest.mark.parametrize("left", ["blue", "red"])
def test_port_of_a_container_that_leaves_one_of_two_networks(host: Host, podman: Podman, left: str) -> None:
    """podman maps the ports in each network; the port leads to the container as long as it is in one of them."""
    blue_and_red(podman)
    podman.run("web", "--network", "blue", "-p", "8080:80")
    podman("network", "connect", "red", "web")
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    podman("network", "disconnect", left, "web")
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    podman("rm", "-ft0", "web")
    assert refused(host, HOST4, 8080, source=OUTSIDE)


def test_two_networks_at_once(host: Host, podman: Podman, before: dict[str, Any]) -> None:
    blue_and_red(podman)
    podman.run("c1", "--network", "blue,red", "-p", "8080:80")
    assert [podman.address("c1", network) for network in ("blue", "red")] == ["10.7.0.2", "10.8.0.2"]
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} c1"
    podman("rm", "-ft0", "c1")
    podman("network", "rm", "blue", "red")
    assert state(host)["files"] == before["files"]
    assert state(host)["records"] == before["records"]
    assert "10.7.0" not in host.run("nft list map inet cni_py masq4; nft list map inet cni_py hostports4")


def test_dual_stack(host: Host, podman: Podman) -> None:
    podman("network", "create", "--ipv6", "--subnet", "10.7.0.0/24", "--subnet", "fd00:7::/64", "both")
    podman.run("first", "--network", "both", "-p", "9999:80", "-p", "[::]:9998:80")
    before = state(host)
    podman.run(
        "web", "--network", "both", "-p", "8080:80", "-p", "[::]:8080:80", "-p", f"[{HOST6}]:5353:80/udp", "--ip6", "fd00:7::77"
    )
    network = podman.network_of("web", "both")
    assert (network["IPAddress"], network["GlobalIPv6Address"], network["IPv6Gateway"]) == (
        "10.7.0.3",
        "fd00:7::77",
        "fd00:7::1",
    )
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} web"
    assert ask(host, HOST6, 8080, source=OUTSIDE) == f"{OUTSIDE6} web"
    assert ask(host, HOST6, 5353, "udp", OUTSIDE) == f"{OUTSIDE6} web"
    assert ask(host, HOST6, 8080, source=podman.sandbox("first")) == "fd00:7::1 web"
    assert ask(host, "fd00:7::77") == "fd00:7::1 web"
    with server_outside(host):
        assert ask(host, OUTSIDE6, source=podman.sandbox("web")).split()[0] == HOST6
    podman("network", "reload", "web")
    assert ask(host, HOST6, 8080, source=OUTSIDE) == f"{OUTSIDE6} web"
    podman("rm", "-ft0", "web")
    assert state(host) == before


def test_ipv6_alone(host: Host, podman: Podman) -> None:
    podman("network", "create", "--ipv6", "--subnet", "fd00:7::/64", "six")
    podman.run("web", "--network", "six", "-p", "8080:80")
    assert podman.network_of("web", "six")["GlobalIPv6Address"] == "fd00:7::2"
    assert ask(host, "fd00:7::2") == "fd00:7::1 web"
    podman("rm", "-ft0", "web")
    assert (reservations(host, "six"), host.host_ends()) == ([], ["up0"])


def test_full_range(host: Host, podman: Podman) -> None:
    podman("network", "create", "--subnet", "10.7.0.0/30", "tiny")
    podman.run("c1", "--network", "tiny", "-p", "8080:80")
    full = state(host)
    words = podman.refused("run", "-d", "--name", "c2", "--network", "tiny", "-p", "8081:80", image.NAME)
    assert "no IP addresses available in range set: 10.7.0.1-10.7.0.2" in words
    podman("rm", "-f", "c2")
    assert state(host) == full
    podman("rm", "-ft0", "c1")
    podman.run("c3", "--network", "tiny", "-p", "8081:80")
    assert ask(host, HOST4, 8081, source=OUTSIDE) == f"{OUTSIDE4} c3"


# --- several at once --------------------------------------------------------------------------------------------------


def test_parallel(host: Host, podman: Podman, before: dict[str, Any], agent: Agent | None) -> None:
    names = [f"c{number}" for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: podman.run(name, "-p", f"808{name[1:]}:80", "-p", f"808{name[1:]}:80/udp"), names))
    shown = json.loads(podman("inspect", *names))
    addresses = {one["NetworkSettings"]["Networks"]["podman"]["IPAddress"] for one in shown}
    assert len(addresses) == AT_ONCE
    for name in names:
        for protocol in ("tcp", "udp"):
            assert ask(host, HOST4, 8080 + int(name[1:]), protocol, OUTSIDE) == f"{OUTSIDE4} {name}"
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: podman("rm", "-ft0", name), names))
    assert state(host) == before


def test_pod_of_two_containers(host: Host, podman: Podman, before: dict[str, Any]) -> None:
    """Both share the first one's namespace, and its ports."""
    podman("pod", "create", "--name", "pod", "--hostname", "pod", "-p", "8080:80", "--infra-image", image.NAME)
    podman("pod", "start", "pod")
    podman("run", "-d", "--pod", "pod", "--name", "member", image.NAME, "sleep", "1000")
    assert ask(host, HOST4, 8080, source=OUTSIDE) == f"{OUTSIDE4} pod"
    assert "inet 10.88.0.3/16" in podman("exec", "member", "ip", "addr", "show", "eth0")
    podman("pod", "rm", "-ft0", "pod")
    assert state(host) == before


# --- with the Go plugins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started_by", ["go", "ours"])
def test_plugins_are_exchanged_while_a_container_runs(host: Host, podman: Podman, started_by: str) -> None:
    first, second = [(podman.go,), (podman.ours, podman.go)][:: 1 if started_by == "go" else -1]
    podman.configure(*first)
    podman.run("web", "-p", "8080:80")
    podman.configure(*second)
    podman.run("other", "-p", "8081:80")
    for name, port in (("web", 8080), ("other", 8081)):
        assert ask(host, HOST4, port, source=OUTSIDE) == f"{OUTSIDE4} {name}"
    podman("rm", "-ft0", "web", "other")
    assert (reservations(host, "podman"), host.host_ends()) == ([], ["up0"])
    if started_by == "go":
        rules = host.run("iptables-save -t nat; nft list map inet cni_py masq4; nft list map inet cni_py hostports4")
        assert "10.88.0." not in rules
