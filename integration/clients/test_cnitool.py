"""cnitool, the reference runtime (libcni v1.3.0), and `cni-py` over the installed executables.

Every test that takes `tool` runs with both: what cnitool does, `cni-py` does as well. The last part mixes them on
one attachment.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from support.agents import Agent
from support.namespaces import GO_PLUGINS, PATH, Host, Sandbox

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
WITH_CHECK = VERSIONS[4:]
FLANNEL: dict[str, Any] = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
BRIDGE: dict[str, Any] = {
    "type": "bridge",
    "bridge": "br7",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
}
MAC = "c2:11:22:33:44:55"


@dataclass(frozen=True)
class Tool:
    """A runtime that is called as cnitool: VERB NETWORK NETNS, all else in the environment."""

    program: str
    host: Host
    cni_path: str

    def call(self, verb: str, sandbox: Sandbox, network: str = "cbr0", **environ: str) -> subprocess.CompletedProcess[str]:
        argv = [self.program, verb, network]
        is_ours = self.program.endswith("cni-py")
        if not (is_ours and verb in ("gc", "status")):  # cnitool wants a namespace there too
            argv.append(sandbox.path)
        if is_ours and verb == "gc":
            argv.append("--all")
        env = {"PATH": PATH, "CNI_PATH": self.cni_path, "NETCONFPATH": "/etc/cni/net.d", "HOME": "/root"}
        return self.host.execute(argv, env=env | environ)

    def ok(self, verb: str, sandbox: Sandbox, network: str = "cbr0", **environ: str) -> Any:
        """Must succeed; what was printed, as JSON."""
        done = self.call(verb, sandbox, network, **environ)
        assert done.returncode == 0, f"{self.program} {verb}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def refused(self, verb: str, sandbox: Sandbox, network: str = "cbr0", **environ: str) -> str:
        """Must fail; its words."""
        done = self.call(verb, sandbox, network, **environ)
        assert done.returncode != 0, f"{self.program} {verb} succeeded: {done.stdout}"
        return done.stdout + done.stderr


@pytest.fixture
def tools(host: Host, bin_dir: Path, cnitool: str, cni_py: Path) -> dict[str, Tool]:
    path = f"{bin_dir}:{GO_PLUGINS}"
    host.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")  # its routes would come late
    return {"cnitool": Tool(cnitool, host, path), "cni-py": Tool(str(cni_py), host, path)}


@pytest.fixture(params=["cnitool", "cni-py"])
def tool(request: pytest.FixtureRequest, tools: dict[str, Tool]) -> Tool:
    return tools[request.param]


def configure(host: Host, *plugins: dict[str, Any], version: str | None = "1.1.0", name: str = "cbr0", **keys: Any) -> None:
    """A chain: NAME.conflist."""
    stated = {} if version is None else {"cniVersion": version}
    host.write(f"/etc/cni/net.d/{name}.conflist", json.dumps({"name": name, **stated, "plugins": list(plugins), **keys}))


def configure_single(
    host: Host, plugin: dict[str, Any], version: str = "1.1.0", name: str = "cbr0", ending: str = "conf"
) -> None:
    """A configuration of one plugin: NAME.conf."""
    host.write(f"/etc/cni/net.d/{name}.{ending}", json.dumps({"name": name, "cniVersion": version, **plugin}))


SHIPPED = Path(__file__).resolve().parents[2] / "conf" / "10-flannel.conflist"


def first_pod(host: Host, tool: Tool, network: str = "cbr0") -> Sandbox:
    """The pod that makes what all share, so that a second one can be compared with nothing."""
    pod = host.netns("first")
    tool.ok("add", pod, network)
    return pod


def address_of(result: dict[str, Any]) -> str:
    """The first address of a result of any version."""
    text: str = result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"]
    return text


def reservations(host: Host, network: str = "cbr0") -> dict[str, str]:
    """Address to what its file says."""
    directory = f"/var/lib/cni/networks/{network}/"
    return {
        name.removeprefix(directory): text
        for name, text in host.files("/var/lib/cni").items()
        if name.startswith(directory) and "last_reserved_ip" not in name
    }


def results(host: Host) -> list[str]:
    return [name for name in host.files("/var/lib/cni") if "/results/" in name]


# --- single configurations and chains, in every version ---------------------------------------------------------------


LIVES = [(version, form, "alone") for version in VERSIONS for form in ("conf", "conflist")]
LIVES += [("0.3.1", "conf", "agent"), ("1.0.0", "conflist", "agent"), ("1.1.0", "conflist", "agent")]


@pytest.mark.parametrize(("version", "form", "agent"), LIVES, indirect=["agent"])
def test_life_of_an_attachment(host: Host, tool: Tool, version: str, form: str, agent: Agent | None) -> None:
    host.write_subnet_env()
    if form == "conf":
        configure_single(host, FLANNEL, version)
    else:
        configure(host, FLANNEL, {"type": "loopback"}, version=version)
    first = first_pod(host, tool)
    pod = host.netns("p1")
    host.run("ip link set lo up; ip link set lo down", pod)  # it keeps traces of having been up
    before = host.snapshot(first, pod)

    result = tool.ok("add", pod)
    assert result["cniVersion"] == version
    assert address_of(result) == "10.244.91.3/24"
    if version >= "1.1.0":
        assert [link["mtu"] for link in result["interfaces"]] == [1450] * 3
    host.run("ping -qc1 -W2 10.244.91.1", pod)

    if version in WITH_CHECK or tool.program.endswith("cni-py"):  # cni-py checks for people, whatever the version is
        tool.ok("check", pod)
    else:
        assert "does not support the CHECK command" in tool.refused("check", pod)
    tool.ok("status", pod)
    tool.ok("del", pod)
    tool.ok("del", pod)
    assert host.snapshot(first, pod) == before


def test_configuration_without_version_is_of_0_1_0(host: Host, tool: Tool) -> None:
    host.write_subnet_env()
    configure(host, FLANNEL, version=None)
    pod = host.netns("p1")
    assert tool.ok("add", pod)["ip4"]["ip"] == "10.244.91.2/24"
    tool.ok("del", pod)
    assert reservations(host) == {}


def test_newest_of_several_versions_is_used(host: Host, tool: Tool) -> None:
    host.write_subnet_env()
    configure(host, FLANNEL, version="0.3.1", cniVersions=["0.4.0", "1.1.0", "1.0.0"])
    pod = host.netns("p1")
    assert tool.ok("add", pod)["cniVersion"] == "1.1.0"
    tool.ok("check", pod)
    tool.ok("del", pod)


@pytest.mark.parametrize("ending", ["conf", "json"])
def test_single_bridge(host: Host, tool: Tool, ending: str, agent: Agent | None) -> None:
    configure_single(host, BRIDGE, name="blue", ending=ending)
    first = first_pod(host, tool, "blue")
    pod = host.netns("p1")
    before = host.snapshot(first, pod)
    assert address_of(tool.ok("add", pod, "blue")) == "10.7.0.3/24"
    tool.ok("check", pod, "blue")
    host.run("ip route del default", pod)
    assert "0.0.0.0/0" in tool.refused("check", pod, "blue") or "default" in tool.refused("check", pod, "blue")
    tool.ok("del", pod, "blue")
    assert host.snapshot(first, pod) == before


def test_single_loopback(host: Host, tool: Tool) -> None:
    configure_single(host, {"type": "loopback"}, name="lo")
    pod = host.netns("p1")
    result = tool.ok("add", pod, "lo", CNI_IFNAME="lo")
    assert [ip["address"] for ip in result["ips"]] == ["127.0.0.1/8", "::1/128"]
    tool.ok("check", pod, "lo", CNI_IFNAME="lo")
    tool.ok("status", pod, "lo")
    tool.ok("gc", pod, "lo")
    tool.ok("del", pod, "lo", CNI_IFNAME="lo")


# --- chains -----------------------------------------------------------------------------------------------------------


def test_loopback_in_a_chain_passes_the_result_on(host: Host, tool: Tool) -> None:
    host.write_subnet_env()
    configure(host, FLANNEL, {"type": "loopback"})
    pod = host.netns("p1")
    result = tool.ok("add", pod)
    assert [link["name"] for link in result["interfaces"]][::2] == ["cni0", "eth0"]
    assert "UP" in host.json("ip -j link show lo", pod)[0]["flags"]
    tool.ok("check", pod)
    host.run("ip link set lo down", pod)
    assert "lo" in tool.refused("check", pod)
    tool.ok("del", pod)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_chain_with_debians_tuning_and_portmap(
    host: Host, tool: Tool, go_plugins: str, version: str, agent: Agent | None
) -> None:
    """The guide's chain with foreign members, which change MAC address and MTU after us and hold rules of their own."""
    host.write_subnet_env()
    host.run(f"mkdir /run/foreign; ln -s {go_plugins}/tuning {go_plugins}/portmap /run/foreign")
    tool = replace(tool, cni_path=f"/run/foreign:{tool.cni_path}")
    tuning = {"type": "tuning", "mac": MAC, "mtu": 1400, "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}}
    configure(host, FLANNEL, tuning, {"type": "portmap", "capabilities": {"portMappings": True}}, version=version)
    ports = {"CAP_ARGS": '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'}
    first = host.netns("first")
    tool.ok("add", first, CAP_ARGS=ports["CAP_ARGS"].replace("8080", "8081"))
    pod = host.netns("p1")
    host.run("nft add table ip6 nat")  # portmap's DEL makes it, and leaves it
    before = host.snapshot(first, pod)

    result = tool.ok("add", pod, **ports)
    assert result["interfaces"][2]["mac"] == MAC
    link = host.json("ip -j link show eth0", pod)[0]
    assert (link["address"], link["mtu"]) == (MAC, 1400)
    assert "--dport 8080" in host.run("iptables-save -t nat")
    host.run("ping -qc1 -W2 10.244.91.1", pod)
    if version in WITH_CHECK:
        no_ports = {"CAP_ARGS": '{"portMappings": []}'}  # CHECK of portmap 1.1.1 wants IPv6 chains of an IPv4 pod
        tool.ok("check", pod, **no_ports)
        host.run("ip link set eth0 address c2:11:22:33:44:66", pod)
        assert MAC in tool.refused("check", pod, **no_ports)
    status = tool.call("status", pod).returncode
    assert status == (3 if tool.program.endswith("cni-py") else 0)  # Debian's plugins have no STATUS: they cannot be asked
    tool.ok("del", pod, **ports)
    assert host.snapshot(first, pod) == before


def test_chain_that_fails_half_way_is_taken_back_by_del(host: Host, tool: Tool) -> None:
    host.write_subnet_env()
    host.write(
        "/run/plugins/failing", '#!/bin/sh\n[ $CNI_COMMAND != ADD ] || { echo \'{"code": 110, "msg": "no luck"}\'; exit 1; }\n'
    )
    host.run("chmod +x /run/plugins/failing")
    configure(host, FLANNEL)
    first = first_pod(host, tool)
    pod = host.netns("p1")
    before = host.snapshot(first, pod)
    configure(host, FLANNEL, {"type": "failing"})
    with_failing = Tool(tool.program, host, f"{tool.cni_path}:/run/plugins")
    assert "no luck" in with_failing.refused("add", pod)
    assert len(reservations(host)) == 2
    with_failing.ok("del", pod)
    configure(host, FLANNEL)
    assert host.snapshot(first, pod) == before


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["flannel", "bridge"])
def test_capabilities_ips_and_mac(host: Host, tool: Tool, plugin: str) -> None:
    host.write_subnet_env("FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET=10.7.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    configure(host, {**(FLANNEL if plugin == "flannel" else BRIDGE), "capabilities": {"ips": True, "mac": True}})
    pod = host.netns("p1")
    capabilities = {"CAP_ARGS": json.dumps({"ips": ["10.7.0.77/24"], "mac": MAC, "portMappings": []})}
    result = tool.ok("add", pod, **capabilities)
    assert (result["ips"][0]["address"], result["interfaces"][2]["mac"]) == ("10.7.0.77/24", MAC)
    assert list(reservations(host)) == ["10.7.0.77"]
    tool.ok("check", pod, **capabilities)
    tool.ok("del", pod, **capabilities)
    assert reservations(host) == {}


def test_capability_that_a_plugin_does_not_ask_for_is_not_sent(host: Host, tool: Tool) -> None:
    host.write_subnet_env()
    configure(host, {**FLANNEL, "capabilities": {"mac": True, "ips": False}})
    pod = host.netns("p1")
    result = tool.ok("add", pod, CAP_ARGS=json.dumps({"ips": ["10.244.91.77"], "mac": MAC}))
    assert (result["ips"][0]["address"], result["interfaces"][2]["mac"]) == ("10.244.91.2/24", MAC)
    tool.ok("del", pod)


def test_capability_ip_ranges(host: Host, tool: Tool) -> None:
    configure(host, {**BRIDGE, "ipam": {"type": "host-local"}, "capabilities": {"ipRanges": True}})
    pod = host.netns("p1")
    tool.ok("status", pod)
    ranges = {"CAP_ARGS": json.dumps({"ipRanges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]]})}
    result = tool.ok("add", pod, **ranges)
    assert [ip["address"] for ip in result["ips"]] == ["10.8.0.2/24", "fd00:8::2/64"]
    tool.ok("check", pod, **ranges)
    tool.ok("del", pod)
    assert reservations(host) == {}


def test_cni_args(host: Host, tool: Tool) -> None:
    host.write_subnet_env()
    configure(host, FLANNEL)
    pod = host.netns("p1")
    args = f"IgnoreUnknown=1;K8S_POD_NAME=web-0;IP=10.244.91.50;MAC={MAC}"
    result = tool.ok("add", pod, CNI_ARGS=args)
    assert (result["ips"][0]["address"], result["interfaces"][2]["mac"]) == ("10.244.91.50/24", MAC)
    tool.ok("check", pod, CNI_ARGS=args)
    tool.ok("del", pod, CNI_ARGS=args)
    assert "unknown args" in tool.refused("add", pod, CNI_ARGS="K8S_POD_NAME=web-0")
    assert reservations(host) == {}
    assert "invalid CNI_ARGS pair" in tool.refused("add", pod, CNI_ARGS="IP")


@pytest.mark.parametrize("order", [("eth0", "net1"), ("net1", "eth0")])
def test_two_interfaces_of_one_container(host: Host, tool: Tool, order: tuple[str, str], agent: Agent | None) -> None:
    host.write_subnet_env()
    configure(host, {"type": "flannel"})
    first = first_pod(host, tool)
    pod = host.netns("p1")
    before = host.snapshot(first, pod)
    for ifname in ("eth0", "net1"):
        assert tool.ok("add", pod, CNI_IFNAME=ifname)["interfaces"][2]["name"] == ifname
    for ifname in ("eth0", "net1"):
        tool.ok("check", pod, CNI_IFNAME=ifname)
    tool.ok("del", pod, CNI_IFNAME=order[0])
    tool.ok("check", pod, CNI_IFNAME=order[1])
    tool.ok("del", pod, CNI_IFNAME=order[1])
    assert host.snapshot(first, pod) == before


# --- status, gc -------------------------------------------------------------------------------------------------------


def test_status_says_why_it_is_not_ready(host: Host, tool: Tool) -> None:
    configure(host, FLANNEL)
    pod = host.netns("p1")
    assert "subnet.env" in tool.refused("status", pod)
    assert "failed to load flannel 'subnet.env' file" in tool.refused("add", pod)
    assert results(host) == []
    assert reservations(host) == {}
    host.write_subnet_env(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/30\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    tool.ok("status", pod)
    tool.ok("add", pod)
    assert "no IP addresses available in range set" in tool.refused("status", pod)
    tool.ok("del", pod)
    tool.ok("status", pod)


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_gc_without_a_list(host: Host, tool: Tool, version: str, agent: Agent | None) -> None:
    """Everything in the cache is deleted; of the rest (1.1.0) only what has no namespace any more."""
    host.write_subnet_env()
    configure(host, FLANNEL, version=version)
    configure(host, BRIDGE, version=version, name="blue")
    cached, dead, alive = (host.netns(name) for name in ("cached", "dead", "alive"))
    for pod in (cached, dead, alive):
        tool.ok("add", pod)
    tool.ok("add", cached, "blue", CNI_IFNAME="net1")
    for file in results(host):  # as if a runtime with a cache of its own had added these two
        if json.loads(host.path(file).read_text())["netns"] in (dead.path, alive.path):
            host.path(file).unlink()
    host.delete_netns(dead)

    tool.ok("gc", alive)
    left = ["10.244.91.4"] if version == "1.1.0" else ["10.244.91.3", "10.244.91.4"]
    assert sorted(reservations(host)) == left
    assert list(reservations(host, "blue")) == ["10.7.0.2"]
    assert host.json("ip -j link show eth0 type veth", alive)
    assert not host.run("ip -br link show type veth", cached).startswith("eth0")
    tool.ok("check", cached, "blue", CNI_IFNAME="net1")
    rules = host.run("nft list ruleset")
    assert ("10.244.91.2" in rules, "10.244.91.4" in rules, "10.7.0.2" in rules) == (False, True, True)
    assert len([file for file in host.files("/var/lib/cni") if "/flannel/" in file]) == len(left)


# --- one attachment, two runtimes -------------------------------------------------------------------------------------


MIXED = [
    pytest.param("cnitool", "cni-py", id="cnitool-then-cni-py"),
    pytest.param("cni-py", "cnitool", id="cni-py-then-cnitool"),
]
CHAINS: dict[str, Callable[[Host], None]] = {
    "conf": lambda host: configure_single(host, FLANNEL, "0.4.0"),
    "1.1.0": lambda host: configure(host, FLANNEL, {"type": "loopback"}),
    "foreign": lambda host: configure(host, FLANNEL, {"type": "tuning", "mtu": 1400}, version="1.0.0"),
}


@pytest.mark.parametrize(("adder", "other"), MIXED)
@pytest.mark.parametrize("chain", CHAINS)
def test_one_adds_and_the_other_deletes(host: Host, tools: dict[str, Tool], adder: str, other: str, chain: str) -> None:
    host.write_subnet_env()
    CHAINS[chain](host)
    first = first_pod(host, tools[adder])
    pod = host.netns("p1")
    host.run("ip link set lo up", pod)
    before = host.snapshot(first, pod)
    capabilities = {"CAP_ARGS": '{"ips": ["10.244.91.9"]}', "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web"}
    tools[adder].ok("add", pod, **capabilities)
    tools[other].ok("check", pod, **capabilities)
    tools[adder].ok("check", pod, **capabilities)
    tools[other].ok("del", pod, **capabilities)
    tools[adder].ok("del", pod, **capabilities)
    host.run("ip link set lo up", pod)
    assert host.snapshot(first, pod) == before


@pytest.mark.parametrize(("adder", "other"), MIXED)
def test_one_adds_and_the_other_collects(host: Host, tools: dict[str, Tool], adder: str, other: str) -> None:
    host.write_subnet_env()
    configure(host, FLANNEL)
    pod = host.netns("p1")
    tools[adder].ok("add", pod)
    tools[other].ok("gc", pod)
    assert reservations(host) == {}
    assert results(host) == host.host_ends() == []


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("single", [True, False], ids=["conf", "conflist"])
def test_both_keep_the_same_results(host: Host, tools: dict[str, Tool], version: str, single: bool) -> None:
    host.write_subnet_env()
    plugin = {**FLANNEL, "capabilities": {"ips": True, "mac": True}}
    configure_single(host, plugin, version) if single else configure(host, plugin, version=version)
    pod = host.netns("p1")
    environ = {"CNI_ARGS": "IgnoreUnknown=1;A=b", "CAP_ARGS": json.dumps({"ips": ["10.244.91.9"], "mac": MAC})}
    kept = []
    for tool in tools.values():
        tool.ok("add", pod, **environ)
        (file,) = results(host)
        record = json.loads(re.sub(r"veth[0-9a-f]{8}", "veth", host.path(file).read_text()))
        record["config"] = json.loads(base64.b64decode(record["config"]))
        for link in record["result"]["interfaces"][:2]:
            del link["mac"]
        kept.append((file, oct(host.path(file).stat().st_mode), record))
        tool.ok("del", pod, **environ)
    assert kept[0] == kept[1]


def test_both_print_the_same_result(host: Host, tools: dict[str, Tool]) -> None:
    configure(host, {**BRIDGE, "capabilities": {"ips": True, "mac": True}}, {"type": "loopback"})
    pod = host.netns("p1")
    printed = []
    for tool in tools.values():
        result = tool.ok("add", pod, CAP_ARGS=json.dumps({"ips": ["10.7.0.9"], "mac": MAC}))
        result["interfaces"][1] |= {"name": "veth", "mac": "-"}
        printed.append(result)
        tool.ok("del", pod)
    assert printed[0] == printed[1]


# --- the shipped configuration ----------------------------------------------------------------------------------------


def test_shipped_file_is_used_in_its_highest_version(host: Host, tool: Tool) -> None:
    """libcni 1.2 and newer choose it from "cniVersions", and so have CHECK, STATUS and GC."""
    host.write("/etc/cni/net.d/10-flannel.conflist", SHIPPED.read_text())
    host.write_subnet_env()
    pod = host.netns("pod")
    assert tool.ok("add", pod)["cniVersion"] == "1.1.0"
    tool.ok("check", pod)
    tool.ok("status", pod)
    host.run("rm /run/flannel/subnet.env")
    assert "subnet.env" in tool.refused("status", pod)
    host.write_subnet_env()
    tool.ok("gc", pod)
