"""sbr: packets leave by the interface of their source; tables and rules; CHECK, also of the plugin in front; the Go plugin."""

from __future__ import annotations

from typing import Any

import pytest

from support.chained import BRIDGE, Chain, Pods, meta_conf
from support.namespaces import Host, Sandbox
from support.pods import V4, V6, bridge_conf, words

CONF = meta_conf("sbr")


@pytest.fixture
def pods(host: Host) -> Pods:
    return Pods(host, Chain(CONF))


def rules(host: Host, pod: Sandbox) -> dict[str, str]:
    """Source to table."""
    found = host.json("ip -j rule show", pod) + host.json("ip -j -6 rule show", pod)
    return {rule["src"]: rule["table"] for rule in found if rule["src"] != "all"}


def routes(host: Host, pod: Sandbox, table: str = "main") -> list[str]:
    lines = host.run(f"ip route show table {table} 2>&1; ip -6 route show table {table} 2>&1", pod, check=False).splitlines()
    return [line.strip() for line in lines if not line.startswith(("fe80", "ff00", "Error", "Dump"))]


def test_two_interfaces_are_each_left_by_their_own_packets(host: Host, pods: Pods) -> None:
    pod = host.netns("c1")
    pods.add(pod)
    other = bridge_conf([{"subnet": "10.2.0.0/24"}], isDefaultGateway=True, bridge="br1") | {"name": "other"}
    prev = host.ok("bridge", "ADD", other, sandbox=pod, ifname="net1")
    second = CONF | {"name": "other"}
    host.ok("sbr", "ADD", second, sandbox=pod, ifname="net1", prev=prev)
    assert rules(host, pod) == {"10.1.0.2": "100", "fd00:1::2": "101", "10.2.0.2": "102"}
    for source, device in (("10.1.0.2", "eth0"), ("10.2.0.2", "net1")):
        assert f"dev {device}" in host.run(f"ip route get 192.0.2.1 from {source}", pod)
        assert "0% packet loss" in host.run(f"ping -c1 -W5 -I {source} {source[:7]}1", pod)
    host.ok("sbr", "DEL", second, sandbox=pod, ifname="net1")
    assert rules(host, pod) == {"10.1.0.2": "100", "fd00:1::2": "101"}


def test_check_of_the_plugin_in_front_finds_its_routes_where_they_are_now(host: Host, pods: Pods) -> None:
    """CHECK succeeds in every version that has it, and still notices a deleted one."""
    pod = host.netns("c1")
    result = pods.add(pod)
    assert routes(host, pod) == []
    for version in ("0.4.0", "1.0.0", "1.1.0"):
        host.ok("bridge", "CHECK", BRIDGE | {"cniVersion": version}, sandbox=pod, prev=result)
    host.run("ip route del default table 100", pod)
    reply = host.call("bridge", "CHECK", BRIDGE, sandbox=pod, prev=result)
    assert "the route 0.0.0.0/0 via 10.1.0.1" in words(reply)


def test_source_hints_keep_the_subnets(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("sbr", addSourceHints=True)))
    pods.add(pod := host.netns("c1"))
    assert routes(host, pod)[0] == "10.1.0.0/24 dev eth0 scope link src 10.1.0.2"
    assert not [route for route in routes(host, pod) if "via" in route]
    assert routes(host, pod, "100")[0].startswith("default via 10.1.0.1")


def test_own_table_leaves_routes_alone(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("sbr", table=300)))
    pods.add_main(pod := host.netns("c1"))
    before = routes(host, pod)
    pods.ok("ADD", pod)
    assert (routes(host, pod), set(rules(host, pod).values())) == (before, {"300"})
    pods.ok("CHECK", pod)
    pods.ok("DEL", pod)
    assert rules(host, pod) == {}


def test_routes_come_back_when_add_fails(host: Host) -> None:
    """A gateway that is not reachable: two routes of one destination, metrics, IPv6, all as before."""
    main = bridge_conf(V4, V6, isDefaultGateway=True, ipam={"routes": [{"dst": "10.9.0.0/16", "priority": 7, "mtu": 1300}]})
    pods = Pods(host, Chain(meta_conf("sbr", gateways=["192.0.2.9"]), main=main))
    pods.add_main(pod := host.netns("c1"))
    before = routes(host, pod)
    reply = pods.call("ADD", pod)
    assert (reply.code, "192.0.2.9" in words(reply)) == (101, True)
    assert (routes(host, pod), rules(host, pod)) == (before, {})


@pytest.mark.parametrize(
    ("gateways", "said"),
    [
        (["x"], "invalid static gateway IP address: x"),
        (["10.0.0.1", "10.0.0.2"], "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2"),
        (["fd00::1", "fd00::2"], "gateways list contains multiple IPv6 addresses: fd00::1 and fd00::2"),
        (["10.0.0.1", "fd00::1", "10.0.0.2"], "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)"),
    ],
)
def test_gateways_that_cannot_be_are_refused_but_not_by_delete(host: Host, gateways: list[str], said: str) -> None:
    pods = Pods(host, Chain(meta_conf("sbr", gateways=gateways)))
    pods.add_main(pod := host.netns("c1"))
    reply = pods.call("ADD", pod)
    assert (reply.code, said in words(reply)) == (7, True), reply
    pods.ok("DEL", pod)


def test_chained_plugin_with_addresses_is_needed(host: Host, pods: Pods) -> None:
    pods.add_main(pod := host.netns("c1"))
    assert "This plugin must be called as chained plugin" in words(pods.call("ADD", pod, {}))
    assert "No IP addresses supplied on interface: eth0" in words(pods.call("ADD", pod, {"cniVersion": "1.1.0", "ips": []}))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("ip rule del from 10.1.0.2", "the rule from 10.1.0.2 lookup a table of its own is missing"),
        ("ip -6 rule del from fd00:1::2", "the rule from fd00:1::2"),
        ("ip route del default table 100", "the route to 0.0.0.0/0 is missing in table 100"),
        ("ip route flush table 100", "the route to 10.1.0.0/24 is missing in table 100"),
        ("ip link del eth0", "missing"),
    ],
)
def test_check_sees_what_was_changed(host: Host, pods: Pods, script: str, said: str) -> None:
    result = pods.add(pod := host.netns("c1"))
    pods.ok("CHECK", pod, result)
    host.run(script, pod)
    reply = pods.call("CHECK", pod, result)
    assert (reply.code, said in words(reply)) == (103, True), reply


def test_rules_go_after_the_interface(host: Host, pods: Pods) -> None:
    """The Go plugin checks the interface's addresses alone."""
    pods.add(pod := host.netns("c1"))
    host.run("ip link del eth0", pod)
    pods.ok("DEL", pod, {})
    assert rules(host, pod) == {}


def test_sandbox_that_is_gone(host: Host, pods: Pods) -> None:
    """Success, and no empty file at its path as the Go plugin leaves one."""
    pods.add(pod := host.netns("c1"))
    host.delete_netns(pod)
    pods.delete(pod)
    assert not host.path(pod.path).exists()


@pytest.mark.parametrize("order", [("go", "ours"), ("ours", "go")])
def test_attachments_of_the_go_plugin_are_ours_and_the_reverse(host: Host, go_plugins: str, order: tuple[str, str]) -> None:
    conf: dict[str, Any] = CONF | {"cniVersion": "1.0.0"}
    pod = host.netns("c1")
    directories = {"ours": host.bin_dir, "go": go_plugins}
    prev = host.ok("bridge", "ADD", BRIDGE | {"cniVersion": "1.0.0"}, sandbox=pod)
    maker, other = (f"{directories[side]}/sbr" for side in order)
    result = host.ok(maker, "ADD", conf, sandbox=pod, prev=prev)
    for side in (maker, other):
        host.ok(side, "CHECK", conf, sandbox=pod, prev=result)
    host.ok(other, "DEL", conf, sandbox=pod, prev=result)
    assert rules(host, pod) == {}
