"""firewall: traffic through a closed FORWARD, bridges isolated, both flavours of iptables, firewalld, the Go plugin."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from support import firewalld
from support.chained import CLOSED, Chain, Pods, meta_conf
from support.namespaces import Host, Sandbox
from support.pods import V4, V6, WORLD, bridge_conf, datagram, words, world
from support.waiting import SECONDS, until

CONF = meta_conf("firewall")


@pytest.fixture
def pods(host: Host) -> Pods:
    return Pods(host, Chain(CONF, setup=CLOSED))


def address_of(pods: Pods, pod: Sandbox) -> str:
    return str(pods.results[pod.name]["ips"][0]["address"]).partition("/")[0]


def rules(host: Host, chain: str = "CNI-FORWARD", tool: str = "iptables") -> list[str]:
    """The -A lines of a chain, without its name."""
    lines = host.run(f"{tool} -S {chain} 2>&1", check=False).splitlines()
    return [line.removeprefix(f"-A {chain} ") for line in lines if line.startswith("-A ")]


def accepts(host: Host, address: str, tool: str = "iptables") -> int:
    return sum(f" {address}/" in f" {rule}" for rule in rules(host, tool=tool))


# --- traffic ----------------------------------------------------------------------------------------------------------


def test_pod_reaches_the_world_and_is_answered_alone(host: Host, pods: Pods) -> None:
    outside, pod = world(host), host.netns("c1")
    pods.add_main(pod)
    assert datagram(host, pod, outside, WORLD, seconds=0.2) is None
    pods.ok("ADD", pod)
    assert datagram(host, pod, outside, WORLD) == address_of(pods, pod)
    assert "0% packet loss" in host.run(f"ping -c1 -W5 {WORLD}", pod)
    assert datagram(host, outside, pod, address_of(pods, pod), seconds=0.2) is None
    pods.ok("DEL", pod)
    assert datagram(host, pod, outside, WORLD, seconds=0.2) is None


def test_administrators_rules_come_first(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("firewall", iptablesAdminChainName="MINE"), setup=CLOSED))
    outside, pod = world(host), host.netns("c1")
    pods.add(pod)
    assert datagram(host, pod, outside, WORLD)
    host.run(f"iptables -A MINE -d {WORLD} -j DROP")
    assert datagram(host, pod, outside, WORLD, seconds=0.2) is None
    pods.ok("DEL", pod)
    assert rules(host, "MINE") == [f"-d {WORLD}/32 -j DROP"]


def test_bridges_are_isolated_from_each_other(host: Host) -> None:
    """Pods of one bridge reach each other and the world, those of two bridges do not; an open network reaches all."""
    outside = world(host)
    networks = {
        name: Pods(
            host,
            Chain(
                meta_conf("firewall", ingressPolicy=policy) | {"name": name},
                main=bridge_conf([{"subnet": f"10.{number}.0.0/24"}], isDefaultGateway=True, bridge=name) | {"name": name},
            ),
        )
        for number, (name, policy) in enumerate([("one", "same-bridge"), ("two", "isolated"), ("three", "open")], 1)
    }
    boxes = {name: host.netns(name) for name in networks}
    neighbour = host.netns("neighbour")
    for name, pods in networks.items():
        pods.add(boxes[name])
    networks["one"].add(neighbour)

    def reaches(source: str, target: str, seconds: float = SECONDS) -> bool:
        address = address_of(networks[target], boxes[target])
        return datagram(host, boxes[source], boxes[target], address, seconds=seconds) is not None

    assert not reaches("one", "two", 0.3)
    assert not reaches("two", "one", 0.3)
    assert reaches("one", "three")
    assert reaches("three", "one")
    assert datagram(host, boxes["one"], neighbour, address_of(networks["one"], neighbour)) is not None
    for box in boxes.values():
        assert datagram(host, box, outside, WORLD) is not None
    networks["one"].delete(boxes["one"])
    assert [rule for rule in rules(host, "CNI-ISOLATION-STAGE-1") if "-i one ! -o one" in rule], "the rules of a bridge stay"


def test_isolation_comes_before_what_accepts(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("firewall", ingressPolicy="isolated")))
    pod = host.netns("c1")
    pods.add(pod)

    def jumps() -> list[str]:
        return [rule.rpartition(" ")[2] for rule in rules(host, "FORWARD")]

    assert jumps() == ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"]
    for damage in ("-D FORWARD 1", "-D FORWARD 2", "-F FORWARD"):
        host.run(f"iptables {damage}")
        assert pods.call("CHECK", pod).code == 103
        pods.ok("ADD", pod)
        assert jumps() == ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"], damage
    host.run("iptables -I FORWARD -m comment --comment 'CNI firewall plugin rules' -j CNI-FORWARD; iptables -D FORWARD 3")
    assert jumps() == ["CNI-FORWARD", "CNI-ISOLATION-STAGE-1"]
    assert "before that to CNI-FORWARD" in words(pods.call("CHECK", pod))
    pods.ok("ADD", pod)
    assert jumps() == ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"]
    pods.ok("CHECK", pod)


# --- rules ------------------------------------------------------------------------------------------------------------


def test_both_families_are_accepted_once(host: Host, pods: Pods) -> None:
    pod = host.netns("c1")
    pods.add(pod)
    pods.ok("ADD", pod)
    v4, v6 = (
        [ip["address"].partition("/")[0] for ip in pods.results["c1"]["ips"] if (":" in ip["address"]) == is_v6]
        for is_v6 in (0, 1)
    )
    assert (accepts(host, v4[0]), accepts(host, v6[0], "ip6tables")) == (2, 2)
    for tool in ("iptables", "ip6tables"):
        assert [rule.rpartition(" -j ")[2] for rule in rules(host, tool=tool)] == ["CNI-ADMIN", "ACCEPT", "ACCEPT"]


@pytest.mark.parametrize(
    ("keys", "prev", "said"),
    [
        ({"ingressPolicy": "closed"}, None, 'unknown ingress policy: "closed"'),
        ({"ingressPolicy": "isolated"}, {"interfaces": []}, 'interface needs to be set for ingress policy "isolated"'),
        (
            {"ingressPolicy": "isolated"},
            {"interfaces": [{"name": "br+"}]},
            'interface needs to be set for ingress policy "isolated"',
        ),
        ({"iptablesAdminChainName": "a b"}, None, "iptablesAdminChainName"),
    ],
)
def test_what_cannot_be_is_refused_but_not_by_delete(host: Host, keys: dict[str, Any], prev: Any, said: str) -> None:
    pods = Pods(host, Chain(CONF | keys))
    pod = host.netns("c1")
    pods.add_main(pod)
    reply = pods.call("ADD", pod, pods.results["c1"] | (prev or {}))
    assert (reply.code, said in words(reply)) == (7, True), reply
    pods.ok("DEL", pod)


ALTERED = {
    "chain-flushed": ("iptables -F CNI-FORWARD", "expected CNI-FORWARD rule [-m comment --comment CNI firewall plugin admin overrides -j"),
    "rule-gone": ("iptables -D CNI-FORWARD 3", "expected CNI-FORWARD rule [-s 10.1.0.2/32 -j ACCEPT] not found"),
    "rule6-gone": ("ip6tables -D CNI-FORWARD 3", "expected CNI-FORWARD rule [-s fd00:1::2/128 -j ACCEPT] not found"),
    "jump-gone": ("iptables -F FORWARD", "expected FORWARD rule"),
    "isolation-gone": ("iptables -F CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-1"),
    "isolation-of-neighbours-gone": ("iptables -D CNI-ISOLATION-STAGE-1 1", "-i br0 -o br0"),
    "isolation-2-gone": ("iptables -F CNI-ISOLATION-STAGE-2", "CNI-ISOLATION-STAGE-2"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALTERED, ids=ALTERED.keys())
def test_check_sees_what_was_changed(host: Host, case: str) -> None:
    script, said = ALTERED[case]
    pods = Pods(host, Chain(meta_conf("firewall", ingressPolicy="isolated")))
    pods.add(pod := host.netns("c1"))
    pods.ok("CHECK", pod)
    host.run(script)
    before = pods.state(pod)
    reply = pods.call("CHECK", pod, env={"CNI_PY_DIFFERENCES": "1"})
    assert reply.code == 103, reply
    assert said in words(reply)
    assert pods.state(pod) == before, "CHECK creates nothing"
    for one in reply.json["differences"]:
        host.run(one["hint"])
    assert pods.call("CHECK", pod).rc == 0


def test_address_that_another_pod_has_now_stays_accepted(host: Host, pods: Pods) -> None:
    """A DEL that comes late, after the address was given to a new pod."""
    old, new = host.netns("c1"), host.netns("c2")
    prev = pods.add_main(old)
    pods.ok("ADD", old)
    pods.ok("ADD", new, prev)
    address = address_of(pods, old)
    pods.ok("DEL", old, prev)
    assert accepts(host, address) == 2
    pods.ok("DEL", new, prev)
    assert accepts(host, address) == 0


def test_sweep_deletes_the_rules_of_a_pod_that_is_gone(host: Host, pods: Pods, cni_py: Any) -> None:
    alive, dead = host.netns("c1"), host.netns("c2")
    pods.add(alive)
    pods.add(dead)
    host.delete_netns(dead)
    until(lambda: len(host.host_ends()) == 1, "the veth is deleted with its namespace")
    assert "accepted address" in host.run(f"{cni_py} sweep --grace 0")
    assert accepts(host, address_of(pods, dead)) == 0
    pods.ok("CHECK", alive)


# --- flavours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["-nft", "-legacy"])
def test_rules_are_in_the_flavour_that_the_node_uses(host: Host, flavour: str) -> None:
    """Rules go into the flavour that drops, whatever the default is: an accept in one flavour does not help against a drop in the other."""
    if not shutil.which(f"iptables{flavour}"):
        pytest.skip(f"no iptables{flavour}")
    host.run(f"iptables{flavour} -P FORWARD DROP")
    host.run(f"ip6tables{flavour} -P FORWARD DROP")
    pods = Pods(host, Chain(CONF))
    outside, pod = world(host), host.netns("c1")
    result = pods.add(pod)
    other = {"-nft": "-legacy", "-legacy": "-nft"}[flavour]
    has_other = "ip_tables_names" if other == "-legacy" else ""
    assert accepts(host, address_of(pods, pod), f"iptables{flavour}") == 2
    assert not has_other or "filter" not in host.run(f"cat /proc/net/{has_other} 2>&1", check=False)
    assert datagram(host, pod, outside, WORLD) is not None
    pods.ok("CHECK", pod, result)
    pods.ok("DEL", pod)
    assert accepts(host, address_of(pods, pod), f"iptables{flavour}") == 0


# --- firewalld --------------------------------------------------------------------------------------------------------


@pytest.fixture
def zone(host: Host) -> Iterator[None]:
    with firewalld.running(host):
        yield


@pytest.mark.parametrize("backend", ["", "firewalld"])
def test_firewalld_has_the_addresses_in_its_zone(host: Host, zone: None, backend: str) -> None:
    pods = Pods(host, Chain(meta_conf("firewall", backend=backend, firewalldZone="pods")))
    pod, other = host.netns("c1"), host.netns("c2")
    pods.add(other)
    before = pods.state(pod, other)
    result = pods.add(pod)
    assert firewalld.sources(host) == dict.fromkeys(["10.1.0.2/32", "fd00:1::2/128", "10.1.0.3/32", "fd00:1::3/128"], "pods")
    pods.ok("ADD", pod)
    pods.ok("CHECK", pod, result)
    assert rules(host) == []
    pods.delete(pod, prev=False)
    assert pods.state(pod, other) == before
    assert firewalld.sources(host) == dict.fromkeys(["10.1.0.2/32", "fd00:1::2/128"], "pods")
    pods.gc()
    assert firewalld.sources(host) == {}


def test_check_asks_firewalld(host: Host, zone: None) -> None:
    """The Go plugin is content with any answer."""
    pods = Pods(host, Chain(meta_conf("firewall", backend="firewalld")))
    result = pods.add(pod := host.netns("c1"))
    host.write(firewalld.SOURCES, "{}")
    reply = pods.call("CHECK", pod, result)
    assert (reply.code, "failed to find the address 10.1.0.2/32 in trusted zone" in words(reply)) == (103, True), reply


def test_refusal_of_firewalld_is_an_error(host: Host, zone: None) -> None:
    pods = Pods(host, Chain(meta_conf("firewall", backend="firewalld", firewalldZone="broken")))
    pods.add_main(pod := host.netns("c1"))
    reply = pods.call("ADD", pod)
    assert "failed to add the address 10.1.0.2/32 to broken zone" in words(reply)
    assert "INVALID_ZONE" in words(reply)


def test_isolation_with_firewalld_is_in_iptables(host: Host, zone: None) -> None:
    pods = Pods(host, Chain(meta_conf("firewall", ingressPolicy="same-bridge")))
    result = pods.add(pod := host.netns("c1"))
    assert any("-i br0 ! -o br0" in rule for rule in rules(host, "CNI-ISOLATION-STAGE-1"))
    pods.ok("CHECK", pod, result)


def test_bus_without_firewalld_means_iptables(host: Host) -> None:
    with firewalld.running(host, with_firewalld=False):
        pods = Pods(host, Chain(CONF))
        pods.add(pod := host.netns("c1"))
        assert accepts(host, address_of(pods, pod)) == 2
        host.ok("firewall", "STATUS", CONF)
        named = CONF | {"backend": "firewalld"}
        assert host.call("firewall", "STATUS", named).code == 50
        reply = host.call("firewall", "ADD", named, sandbox=pod, prev=pods.results["c1"])
        assert "org.freedesktop.DBus.Error" in words(reply)


def test_no_bus(host: Host) -> None:
    """ADD says so; DEL of what firewalld had ends well: it has ended with it."""
    named = CONF | {"backend": "firewalld"}
    pods = Pods(host, Chain(named))
    pods.add_main(pod := host.netns("c1"))
    reply = pods.call("ADD", pod)
    assert (reply.code, "dial unix /run/dbus/system_bus_socket: No such file" in words(reply)) == (50, True), reply
    with firewalld.running(host):
        pods.ok("ADD", pod)
    pods.ok("DEL", pod)
    assert pods.call("STATUS", pod).code == 50


# --- the Go plugin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["open", "same-bridge"])
@pytest.mark.parametrize("order", [("go", "ours"), ("ours", "go")])
def test_attachments_of_the_go_plugin_are_ours_and_the_reverse(
    host: Host, go_plugins: str, order: tuple[str, str], policy: str
) -> None:
    """ADD by one, CHECK by both, DEL by the other; each finds the shared rules of the other."""
    conf = meta_conf("firewall", ingressPolicy=policy) | {"cniVersion": "1.0.0"}
    pod = host.netns("c1")
    directories = {"ours": host.bin_dir, "go": go_plugins}
    prev = host.ok("bridge", "ADD", bridge_conf(V4, V6, isDefaultGateway=True) | {"cniVersion": "1.0.0"}, sandbox=pod)
    maker, other = (f"{directories[side]}/firewall" for side in order)
    result = host.ok(maker, "ADD", conf, sandbox=pod, prev=prev)
    for side in (maker, other):
        assert host.ok(side, "CHECK", conf, sandbox=pod, prev=result) is None
    shared = len(rules(host, "FORWARD"))
    host.ok(other, "ADD", conf, sandbox=pod, prev=prev)
    assert len(rules(host, "FORWARD")) == shared if order[0] == "go" else True, "ours finds those of Go"
    host.ok(other, "DEL", conf, sandbox=pod, prev=result)
    assert accepts(host, "10.1.0.2") == accepts(host, "fd00:1::2", "ip6tables") == 0
