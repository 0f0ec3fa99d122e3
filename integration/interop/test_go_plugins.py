"""Debian's Go plugins (containernetworking-plugins 1.1.1) and ours on one node: over one another, after one another, at once.

Go's bridge masquerades with iptables chains, ours with elements of nftables maps: that shows which of them did what. What Go's
DEL cannot do is take our elements away, which it does not know; `test_element_that_go_leaves…` says what follows.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from support.namespaces import PATH, Host, Sandbox
from support.waiting import until

FLANNEL: dict[str, Any] = {"name": "cbr0", "cniVersion": "1.0.0", "type": "flannel", "delegate": {"isDefaultGateway": True}}
BRIDGE: dict[str, Any] = {
    "name": "cbr0",
    "cniVersion": "1.0.0",
    "type": "bridge",
    "bridge": "cni0",
    "isDefaultGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "mtu": 1450,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.91.0/24"}], [{"subnet": "fd00:91::/64"}]],
        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00::/16"}],
    },
}
SIDES = ["ours", "go"]
CROSSED = [pytest.param("ours", "go", id="ours-then-go"), pytest.param("go", "ours", id="go-then-ours")]


class Node:
    """A host with both sides' plugins."""

    def __init__(self, host: Host, ours: str, go: str) -> None:
        self.host, self.directories = host, {"ours": ours, "go": go}
        host.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")  # routes do not come late

    def path(self, *sides: str) -> str:
        """CNI_PATH with the directories of these sides, in this order."""
        return ":".join(self.directories[side] for side in sides)

    def call(self, side: str, plugin: str, verb: str, conf: dict[str, Any], **options: Any) -> Any:
        """A plugin of one side, which finds plugins of its own side; must succeed."""
        options.setdefault("cni_path", self.path(side))
        return self.host.ok(f"{self.directories[side]}/{plugin}", verb, conf, **options)

    def delete(self, side: str, plugin: str, conf: dict[str, Any], **options: Any) -> None:
        """DEL as a runtime does it: once more if it failed.

        The first DEL by Go 1.1.1 of what we masquerade in nftables does all it has to, and then takes offence at
        the missing iptables chain; its second succeeds.
        """
        options.setdefault("cni_path", self.path(side))
        reply = self.host.call(f"{self.directories[side]}/{plugin}", "DEL", conf, **options)
        if reply.rc:
            assert self.path("go") in options["cni_path"], reply.json
            assert re.search(r"Chain 'CNI-[0-9a-f]{24}' does not exist", reply.json["msg"]), reply.json
            assert "eth0" not in self.host.run("ip -br link", options["sandbox"])
            self.call(side, plugin, "DEL", conf, **options)

    def first_pod(self, conf: dict[str, Any] = BRIDGE, plugin: str = "bridge") -> Sandbox:
        """A pod of either side, which make what is shared, so that a later one can be compared with nothing."""
        pod = self.host.netns("first")
        for side in SIDES:
            self.call(side, plugin, "ADD", conf, sandbox=pod, container_id=side, ifname=f"{side}0")
        return pod

    # which of them did it
    def elements(self) -> set[str]:
        """Addresses that our maps masquerade."""
        return set(
            re.findall(r'([0-9a-f:.]+) comment "[^"]*" : goto', self.host.run("nft list table inet cni_py", check=False))
        )

    def chains(self) -> list[str]:
        """The chains of Go's form."""
        return re.findall(r"^:(CNI-\S+)", self.host.run("iptables-save -t nat; ip6tables-save -t nat"), re.MULTILINE)

    def reservations(self) -> dict[str, str]:
        directory = "/var/lib/cni/networks/cbr0/"
        return {name.removeprefix(directory): text for name, text in self.host.files("/var/lib/cni/networks").items()}

    def addresses(self) -> set[str]:
        return {name for name in self.reservations() if not name.startswith("last_reserved")}


@pytest.fixture
def node(host: Host, bin_dir: Path, go_plugins: str) -> Node:
    return Node(host, str(bin_dir), go_plugins)


@pytest.fixture
def two_nodes(bin_dir: Path, go_plugins: str) -> Iterator[list[Node]]:
    with Host(bin_dir) as one, Host(bin_dir) as other:
        yield [Node(one, str(bin_dir), go_plugins), Node(other, str(bin_dir), go_plugins)]


def changes(before: Any, after: Any, where: str = "") -> list[str]:
    """Return the differences between two snapshots, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [line for key in keys for line in changes(before.get(key), after.get(key), f"{where} {key}")]
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"{where} - {item}" for item in before if item not in after]
        return gone + [f"{where} + {item}" for item in after if item not in before]
    return [] if before == after else [f"{where}: {before} -> {after}"]


# --- flannel over Go's plugins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "mode", "runs"),
    [
        (["go"], "auto", "go"),
        (["go", "ours"], "auto", "go"),
        (["ours", "go"], "auto", "ours"),
        (["ours", "go"], "exec", "ours"),
        (["go", "ours"], "exec", "go"),
        (["go", "ours"], "native", "ours"),
        (["go"], "native", "ours"),
    ],
)
def test_flannel_runs_the_bridge_that_it_finds(node: Node, path: list[str], mode: str, runs: str) -> None:
    host, conf = node.host, {**FLANNEL, "delegateMode": mode}
    host.write_subnet_env()
    options: dict[str, Any] = {"cni_path": node.path(*path)}
    first = host.netns("first")
    host.ok("flannel", "ADD", conf, sandbox=first, container_id="first", **options)
    pod = host.netns("c1")
    before = host.snapshot(first, pod)
    result = host.ok("flannel", "ADD", conf, sandbox=pod, **options)
    assert result["ips"][0]["address"] == "10.244.91.3/24"
    assert result["routes"] == [{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.91.1"}]
    link = host.json("ip -j link show eth0", pod)[0]
    assert link["mtu"] == 1450
    assert (len(node.chains()), len(node.elements())) == ((2, 0) if runs == "go" else (0, 2))
    assert node.addresses() == {"10.244.91.2", "10.244.91.3"}
    host.ok("flannel", "CHECK", conf, sandbox=pod, prev=result, **options)
    host.run("ping -qc1 -W2 10.244.91.1", pod)

    host.run("ip addr del 10.244.91.3/24 dev eth0", pod)
    assert host.call("flannel", "CHECK", conf, sandbox=pod, prev=result, **options).rc != 0
    host.run("ip addr add 10.244.91.3/24 dev eth0", pod)
    host.ok("flannel", "DEL", conf, sandbox=pod, **options)
    assert changes(before, host.snapshot(first, pod)) == []


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_flannel_over_go_bridge_in_every_version(node: Node, version: str) -> None:
    host, conf = node.host, {**FLANNEL, "cniVersion": version}
    host.write_subnet_env()
    pod = host.netns("c1")
    result = host.ok("flannel", "ADD", conf, sandbox=pod, cni_path=node.path("go"))
    assert result["cniVersion"] == version
    assert (result["ip4"]["ip"] if version < "0.3.0" else result["ips"][0]["address"]) == "10.244.91.2/24"
    host.ok("flannel", "DEL", conf, sandbox=pod, cni_path=node.path("go"))
    assert node.addresses() == set()
    assert host.host_ends() == node.chains() == []


def test_foreign_delegate_that_fails_is_reported_and_undone(node: Node) -> None:
    """Its words and its code, and nothing is left."""
    host, conf = node.host, {**FLANNEL, "cniVersion": "1.1.0"}
    host.write_subnet_env()
    pod = host.netns("c1")
    before = host.snapshot(pod)
    reply = host.call("flannel", "ADD", conf, sandbox=pod, cni_path=node.path("go"))
    assert reply.code == 1
    assert "incompatible CNI versions" in reply.json["msg"] + reply.json.get("details", "")
    assert changes(before, host.snapshot(pod)) == []


@pytest.mark.parametrize(("adder", "deleter"), CROSSED)
def test_flannel_when_the_node_is_switched_between_add_and_del(node: Node, adder: str, deleter: str) -> None:
    """The bridge plugin in CNI_PATH is another one by the time of DEL."""
    host = node.host
    host.write_subnet_env()
    first = host.netns("first")
    for side in SIDES:
        host.ok("flannel", "ADD", FLANNEL, sandbox=first, container_id=side, ifname=f"{side}0", cni_path=node.path(side))
    pod = host.netns("c1")
    before = host.snapshot(first, pod)
    result = host.ok("flannel", "ADD", FLANNEL, sandbox=pod, cni_path=node.path(adder))
    host.ok("flannel", "CHECK", FLANNEL, sandbox=pod, prev=result, cni_path=node.path(deleter))
    node.delete("ours", "flannel", FLANNEL, sandbox=pod, cni_path=node.path(deleter))
    if deleter == "go":
        assert "10.244.91.4" in node.elements()
        host.run("nft delete element inet cni_py masq4 '{ 10.244.91.4 }'")
    assert changes(before, host.snapshot(first, pod)) == []


@pytest.mark.parametrize("delegate", [{"type": "ptp"}, {"type": "macvlan", "master": "up0"}])
def test_flannel_with_another_delegate_of_go(node: Node, delegate: dict[str, Any]) -> None:
    host = node.host
    host.write_subnet_env()
    host.run("ip link add up0 type veth peer up1; ip link set up0 up; ip link set up1 up")
    conf, path = {**FLANNEL, "delegate": delegate}, node.path("go")
    first = host.netns("first")
    host.ok("flannel", "ADD", conf, sandbox=first, container_id="first", cni_path=path)
    pod = host.netns("c1")
    before = host.snapshot(first, pod)
    result = host.ok("flannel", "ADD", conf, sandbox=pod, cni_path=path)
    assert result["ips"][0]["address"] == "10.244.91.3/24"
    saved = json.loads(host.files("/var/lib/cni/flannel")["/var/lib/cni/flannel/c1"])
    assert "isGateway" not in saved
    assert (saved["mtu"], saved["ipMasq"]) == (1450, True)
    assert host.json("ip -j link show eth0", pod)[0]["mtu"] == 1450
    assert len(node.chains()) == (2 if delegate["type"] == "ptp" else 0)
    host.ok("flannel", "CHECK", conf, sandbox=pod, prev=result, cni_path=path)
    if delegate["type"] == "ptp":
        host.run("ping -qc1 -W2 10.244.91.1", pod)
    host.ok("flannel", "DEL", conf, sandbox=pod, cni_path=path)
    assert changes(before, host.snapshot(first, pod)) == []


# --- a bridge of one side over the host-local of the other ------------------------------------------------------------


@pytest.mark.parametrize(("bridge", "ipam"), CROSSED)
def test_bridge_over_the_other_sides_host_local(node: Node, bridge: str, ipam: str) -> None:
    host = node.host
    path = node.path(ipam, bridge)
    conf = {**BRIDGE, "ipam": {**BRIDGE["ipam"], "routes": []}}  # Go's CHECK misses its own routes
    first = node.first_pod(conf)
    pod = host.netns("c1")
    before = host.snapshot(first, pod)
    options: dict[str, Any] = {"sandbox": pod, "cni_path": path}
    result = node.call(bridge, "bridge", "ADD", conf, **options)
    assert [ip["address"] for ip in result["ips"]] == ["10.244.91.4/24", "fd00:91::4/64"]
    assert node.reservations()["10.244.91.4"] == "c1\r\neth0"
    node.call(bridge, "bridge", "CHECK", conf, prev=result, **options)
    node.call(bridge, "bridge", "DEL", conf, **options)
    assert changes(before, host.snapshot(first, pod)) == []


def test_bridge_executes_the_host_local_that_it_finds(node: Node) -> None:
    """The journal says so."""
    pod = node.host.netns("c1")
    for path, mode, ran in (["go"], "auto", True), (["ours", "go"], "auto", False), (["go"], "native", False):
        conf = {**BRIDGE, "delegateMode": mode}
        for verb in ("ADD", "DEL"):
            reply = node.host.call("bridge", verb, conf, sandbox=pod, cni_path=node.path(*path), env={"CNI_PY_EXPLAIN": "1"})
            assert reply.rc == 0
            assert (f"/usr/lib/cni/host-local {verb}" in reply.stderr) is ran


def test_bridge_over_an_ipam_plugin_that_only_go_has(node: Node) -> None:
    host = node.host
    confs = [
        BRIDGE
        | {
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": f"10.8.0.{number}/24", "gateway": "10.8.0.1"},
                    {"address": f"fd00:8::{number}/64", "gateway": "fd00:8::1"},
                ],
                "dns": {"nameservers": ["10.8.0.53"]},
            }
        }
        for number in (8, 9)
    ]
    options: dict[str, Any] = {"cni_path": node.path("ours", "go")}
    first = host.netns("first")
    host.ok("bridge", "ADD", confs[0], sandbox=first, container_id="first", **options)
    conf, pod = confs[1], host.netns("c1")
    before = host.snapshot(first, pod)
    result = host.ok("bridge", "ADD", conf, sandbox=pod, **options)
    assert [ip["address"] for ip in result["ips"]] == ["10.8.0.9/24", "fd00:8::9/64"]
    assert result["dns"] == {"nameservers": ["10.8.0.53"]}
    host.run("ping -qc1 -W2 10.8.0.1; ping -qc1 -W2 fd00:8::1", pod)
    host.ok("bridge", "CHECK", conf, sandbox=pod, prev=result, **options)
    host.ok("bridge", "DEL", conf, sandbox=pod, **options)
    assert changes(before, host.snapshot(first, pod)) == []


@pytest.mark.parametrize(("mode", "path"), [("native", ["ours", "go"]), ("auto", ["ours"]), ("exec", ["ours"])])
def test_plugin_that_cannot_be_had_is_named(node: Node, mode: str, path: list[str]) -> None:
    pod = node.host.netns("c1")
    before = node.host.snapshot(pod)
    conf = {**BRIDGE, "delegateMode": mode, "ipam": {"type": "elsewhere"}}
    reply = node.host.call("bridge", "ADD", conf, sandbox=pod, cni_path=node.path(*path))
    assert reply.rc != 0
    assert 'failed to find plugin "elsewhere"' in reply.json["msg"]
    after = node.host.snapshot(pod)
    assert after["files"] == before["files"]
    assert node.host.host_ends() == []


# --- ADD by one side, DEL and CHECK by the other ----------------------------------------------------------------------


CONFIGURATIONS = {
    "dual stack, masquerade": BRIDGE,
    "no masquerade": {**BRIDGE, "ipMasq": False},
    "iptables": {**BRIDGE, "ipMasqBackend": "iptables"},
    "0.3.1": {**BRIDGE, "cniVersion": "0.3.1"},
    "promiscuous": {**BRIDGE, "hairpinMode": False, "promiscMode": True},
    "layer 2": {key: value for key, value in BRIDGE.items() if key not in ("ipam", "ipMasq", "isDefaultGateway")},
}


@pytest.mark.parametrize(("adder", "deleter"), CROSSED)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_one_side_adds_and_the_other_deletes(node: Node, name: str, adder: str, deleter: str) -> None:
    host, conf = node.host, CONFIGURATIONS[name]
    if "ipam" not in conf:
        conf = {**conf, "ipam": {}}
    first = node.first_pod(conf)
    pod = host.netns("c1")
    before = host.snapshot(first, pod)
    node.call(adder, "bridge", "ADD", conf, sandbox=pod)
    assert host.snapshot(first, pod) != before
    node.delete(deleter, "bridge", conf, sandbox=pod)
    after = host.snapshot(first, pod)
    if deleter == "go" and conf.get("ipMasq") and "ipMasqBackend" not in conf:
        assert node.elements() >= {"10.244.91.4", "fd00:91::4"}
        host.run("nft 'delete element inet cni_py masq4 { 10.244.91.4 }; delete element inet cni_py masq6 { fd00:91::4 }'")
        after = host.snapshot(first, pod)
    assert changes(before, after) == []


@pytest.mark.parametrize("is_named", [True, False], ids=["path-of-it", "no-path"])
def test_attachment_of_go_is_deleted_without_its_sandbox(node: Node, is_named: bool) -> None:
    host = node.host
    node.first_pod()
    pod = host.netns("c1")
    before = host.snapshot()
    node.call("go", "bridge", "ADD", BRIDGE, sandbox=pod)
    host.delete_netns(pod)
    node.call("ours", "bridge", "DEL", BRIDGE, sandbox=pod if is_named else None)
    # without its path nothing leads to the veth, which the kernel deletes with the namespace
    until(lambda: changes(before, host.snapshot()) == [], lambda: str(changes(before, host.snapshot())))


def test_element_that_go_leaves_does_no_harm_and_is_removed(node: Node) -> None:
    """Element left by our ADD and Go's DEL: the next owner of the address takes the element over, or GC removes it."""
    host = node.host
    conf = {**BRIDGE, "cniVersion": "1.1.0", "args": {"cni": {"ips": ["10.244.91.9", "fd00:91::9"]}}}
    go = {**conf, "cniVersion": "1.0.0"}
    pod = host.netns("c1")
    node.call("ours", "bridge", "ADD", conf, sandbox=pod)
    node.delete("go", "bridge", go, sandbox=pod)
    assert (node.addresses(), node.elements()) == (set(), {"10.244.91.9", "fd00:91::9"})

    node.call("ours", "bridge", "ADD", conf, sandbox=pod, container_id="c2")
    node.call("ours", "bridge", "DEL", conf, sandbox=pod, container_id="c1")  # a late DEL of the first owner
    assert node.elements() == {"10.244.91.9", "fd00:91::9"}
    node.call("ours", "bridge", "DEL", conf, sandbox=pod, container_id="c2")
    assert node.elements() == set()

    node.call("ours", "bridge", "ADD", conf, sandbox=pod)
    node.delete("go", "bridge", go, sandbox=pod)
    node.call("ours", "bridge", "GC", {**conf, "cni.dev/valid-attachments": []})
    assert node.elements() == set()


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize(("adder", "checker"), CROSSED)
def test_one_side_adds_and_the_other_checks(node: Node, adder: str, checker: str, version: str) -> None:
    host, conf = node.host, {**BRIDGE, "cniVersion": version}
    if checker == "go":  # it looks for routes as they are named in the result, without the gateway that is implied
        conf = {**conf, "ipam": {**BRIDGE["ipam"], "routes": []}}
    pod = host.netns("c1")
    result = node.call(adder, "bridge", "ADD", conf, sandbox=pod)
    node.call(checker, "bridge", "CHECK", conf, sandbox=pod, prev=result)
    node.call(checker, "host-local", "CHECK", conf, sandbox=pod, prev=result)
    host.run("ip route del default", pod)
    reply = host.call(
        f"{node.directories[checker]}/bridge", "CHECK", conf, sandbox=pod, prev=result, cni_path=node.path(checker)
    )
    assert reply.rc != 0


@pytest.mark.parametrize("backend", [None, "iptables"])
def test_our_check_finds_what_is_missing_of_gos_masquerade(node: Node, backend: str | None) -> None:
    host = node.host
    conf = BRIDGE if backend is None else {**BRIDGE, "ipMasqBackend": backend}
    pod = host.netns("c1")
    result = node.call("go", "bridge", "ADD", conf, sandbox=pod)
    node.call("ours", "bridge", "CHECK", conf, sandbox=pod, prev=result)
    host.run(f"iptables -t nat -D {node.chains()[0]} 1")
    reply = host.call("bridge", "CHECK", conf, sandbox=pod, prev=result)
    assert reply.code == 103
    assert "masquerading" in reply.json["msg"]


# --- what is made is the same -----------------------------------------------------------------------------------------


def rules(host: Host) -> dict[str, list[str]]:
    """iptables-save of both families, without comments and counters."""
    return {
        tool: [
            re.sub(r"\[\d+:\d+\]", "[0:0]", line)
            for line in host.run(f"{tool} -t nat").splitlines()
            if not line.startswith("#")
        ]
        for tool in ("iptables-save", "ip6tables-save")
    }


def test_iptables_backend_makes_gos_rules(two_nodes: list[Node]) -> None:
    made = []
    for node, side in zip(two_nodes, SIDES, strict=True):
        conf = {**BRIDGE, "ipMasqBackend": "iptables"}
        steps = []
        pods = {name: node.host.netns(name) for name in ("c1", "c2")}
        for name, pod in pods.items():
            node.call(side, "bridge", "ADD", conf, sandbox=pod, container_id=name)
            steps.append(rules(node.host))
        assert node.elements() == set()
        node.call(side, "bridge", "DEL", conf, sandbox=pods["c1"], container_id="c1")
        steps.append(rules(node.host))
        made.append(steps)
    for ours, gos in zip(*made, strict=True):
        for tool in ours:
            assert ours[tool] == gos[tool]
    assert any("MASQUERADE" in line for line in made[0][0]["iptables-save"])


def contents(host: Host) -> dict[str, str | None]:
    """Path to bytes of all that is under /var/lib/cni, locks too; a directory's are None.

    Modes are left out: 0600, as with newer Go plugins; 1.1.1 makes 0644.
    """
    root = host.path("/var/lib/cni")
    paths = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes().decode() for path in paths}


def test_files_are_byte_equal(two_nodes: list[Node]) -> None:
    """host-local's directory after each step of one story."""
    steps_of_both = []
    for node, side in zip(two_nodes, SIDES, strict=True):
        conf = {**BRIDGE, "ipam": {**BRIDGE["ipam"], "ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00:91::/64"}]]}}
        asking = {**conf, "args": {"cni": {"ips": ["10.1.0.5"]}}}
        steps = []
        for verb, container_id, ifname, this in [
            ("ADD", "c1", "eth0", conf),
            ("ADD", "c2", "eth0", conf),
            ("ADD", "c1", "net1", conf),
            ("DEL", "c1", "eth0", conf),
            ("ADD", "c3", "eth0", asking),
            ("ADD", "c4", "eth0", conf),
            ("ADD", "c5", "eth0", conf),
            ("ADD", "c6", "eth0", conf),  # no address left
            ("DEL", "c2", "eth0", conf),
            ("DEL", "c9", "eth0", conf),
            ("ADD", "c7", "eth0", conf),
        ]:
            reply = node.host.call(
                f"{node.directories[side]}/host-local", verb, this, container_id=container_id, ifname=ifname, sandbox="/x"
            )
            result = {key: value for key, value in (reply.json or {}).items() if value}  # libcni before 1.1 says "dns": {}
            steps.append((verb, container_id, reply.rc, reply.rc or result, contents(node.host)))
        steps_of_both.append(steps)
    for ours, gos in zip(*steps_of_both, strict=True):
        assert ours == gos


def link_local(mac: str) -> str:
    """The address that the kernel gives to a link with this MAC address."""
    number = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([number[0] ^ 2, *number[1:3], 0xFF, 0xFE, *number[3:]])
    return str(ip_address(b"\xfe\x80" + bytes(6) + identifier))


def test_links_addresses_and_routes_are_the_same(two_nodes: list[Node]) -> None:
    """Compare all that `ip` and `bridge` show, and the sysctls, except random names and MAC addresses."""
    conf = {**BRIDGE, "ipMasqBackend": "iptables", "capabilities": {"mac": True}, "runtimeConfig": {"mac": "c2:11:22:33:44:55"}}
    seen = []
    for node, side in zip(two_nodes, SIDES, strict=True):
        pod = node.host.netns("c1")
        result = node.call(side, "bridge", "ADD", conf, sandbox=pod)
        state = node.host.snapshot(pod)
        text = json.dumps({"result": result, "state": {part: state[part] for part in ("host", str(pod))}}, sort_keys=True)
        for mac in {link["mac"] for link in result["interfaces"][:2]}:
            text = text.replace(mac, "MAC").replace(link_local(mac), "LINK-LOCAL")
        seen.append(json.loads(re.sub(r"veth[0-9a-f]{8}", "VETH", text)))
    ours, gos = (_known_differences(one) for one in seen)
    assert changes(gos, ours) == []


BRIDGE_IDS = {"bridge_id", "root_id", "designated_bridge", "designated_root", "bridge_designated_root", "root_address"}


def _known_differences(seen: dict[str, Any]) -> dict[str, Any]:
    """Taken out: what newer Go plugins do as well and 1.1.1 does not, and what only we do."""
    result, state = seen["result"], seen["state"]
    result.pop("dns", None)  # empty
    for part in state.values():
        for link in part["addresses"]:
            link.pop("txqlen", None)  # 1.1.1: 0 for a veth
            link.pop("altnames", None)  # our host ends say whose they are
            for kind in ("info_data", "info_slave_data"):  # made of MAC addresses
                data = link.get("linkinfo", {}).get(kind, {})
                link.get("linkinfo", {})[kind] = {key: value for key, value in data.items() if key not in BRIDGE_IDS}
            for address in link["addr_info"]:
                address.pop("nodad", None)  # Go waits for duplicate address detection instead
        part["sysctls"] = [line for line in part["sysctls"] if "keep_addr_on_down" not in line]
        part["nft"] = []  # compared by iptables-save above
        part["routes6"] = sorted(json.dumps(route, sort_keys=True) for route in part["routes6"])
    return {"result": result, **state}


# --- both at once on one pool -----------------------------------------------------------------------------------------


class Crowd:
    """Many plugins of both sides at a time, without a thread or a shell between."""

    def __init__(self, node: Node, plugin: str, conf: dict[str, Any]) -> None:
        self.node, self.plugin, self.text = node, plugin, json.dumps(conf).encode()

    def start(self, side: str, verb: str, container_id: str, sandbox: str) -> subprocess.Popen[bytes]:
        path = self.node.path(side)
        environ = {"PATH": PATH, "CNI_COMMAND": verb, "CNI_CONTAINERID": container_id, "CNI_NETNS": sandbox}
        started = subprocess.Popen(
            self.node.host.command(f"{path}/{self.plugin}"),
            env=environ | {"CNI_IFNAME": "eth0", "CNI_PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert started.stdin is not None
        started.stdin.write(self.text)
        started.stdin.close()
        started.stdin = None
        return started

    def finish(self, started: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
        """Return the output of each; all must have succeeded."""
        answers, failed = {}, []
        for container_id, process in started.items():
            stdout, stderr = process.communicate(timeout=50)
            answers[container_id] = json.loads(stdout) if stdout.strip() else None
            if process.returncode:
                failed.append(f"{process.args[-1]} {container_id}: {stdout.decode()}{stderr.decode()}")
        assert not failed, f"{len(failed)} of {len(started)} failed: " + "\n".join(failed[:5])
        return answers


def addresses_of(answers: dict[str, Any]) -> list[str]:
    return [ip["address"].partition("/")[0] for result in answers.values() for ip in result["ips"]]


def test_fifty_at_once_on_one_pool(node: Node) -> None:
    """Rounds of 50 ADDs, Go's and ours as it comes, while the 50 of the round before are deleted by the other side.

    The pool has 125 addresses, so it wraps round again and again.
    """
    conf = {"name": "cbr0", "cniVersion": "1.0.0", "type": "bridge"}
    crowd = Crowd(node, "host-local", {**conf, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/25"}]]}})
    chance = random.Random(7)
    before: dict[str, str] = {}
    held: dict[str, str] = {}
    for number in range(6):
        sides = {f"r{number}-{pod}": chance.choice(SIDES) for pod in range(50)} if number < 5 else {}
        deletes = {pod: crowd.start("go" if side == "ours" else "ours", "DEL", pod, "") for pod, side in before.items()}
        adds = {pod: crowd.start(side, "ADD", pod, "/x") for pod, side in sides.items()}
        answers = crowd.finish(adds)
        assert set(crowd.finish(deletes).values()) <= {None}
        given = addresses_of(answers)
        assert len(set(given)) == len(sides)
        held = {address: f"{pod}\r\neth0" for pod, address in zip(answers, given, strict=True)}
        there = {name: text for name, text in node.reservations().items() if not name.startswith("last_reserved")}
        assert there == held
        before = sides
    assert node.addresses() == set()


def test_twenty_bridges_at_once(node: Node) -> None:
    """The whole attachment by either side at once: 20 pods on one bridge, then all of them deleted by the other side."""
    host = node.host
    first = node.first_pod()
    pods = {f"c{number}": host.netns(f"c{number}") for number in range(20)}
    before = host.snapshot(first, *pods.values())
    crowd = Crowd(node, "bridge", {**BRIDGE, "ipMasqBackend": "iptables"})
    for turn in range(2):
        sides = {pod: SIDES[(number + turn) % 2] for number, pod in enumerate(pods)}
        answers = crowd.finish({pod: crowd.start(side, "ADD", pod, pods[pod].path) for pod, side in sides.items()})
        assert len(set(addresses_of(answers))) == 40
        for pod in ("c0", "c1", "c18", "c19"):
            host.run("ping -qc1 -W2 10.244.91.1", pods[pod])
        crowd.finish(
            {pod: crowd.start("go" if s == "ours" else "ours", "DEL", pod, pods[pod].path) for pod, s in sides.items()}
        )
        assert changes(before, host.snapshot(first, *pods.values())) == []
