"""bandwidth: rates that hold, CHECK of everything, two interfaces of one container, the Go plugin's attachments, the sweep."""

from __future__ import annotations

from typing import Any

import pytest

from support.chained import LIMITS, MBIT, Chain, Pods, meta_conf
from support.namespaces import Host, Sandbox
from support.pods import bridge_conf, transfer, words
from support.waiting import until

CONF = meta_conf("bandwidth", runtimeConfig={"bandwidth": LIMITS})
CHAIN = Chain(CONF)


@pytest.fixture
def pods(host: Host) -> Pods:
    return Pods(host, CHAIN)


def tc(host: Host, name: str) -> str:
    return host.run(f"tc qdisc show dev {name}; tc filter show dev {name} ingress")


def ifbs(host: Host) -> list[str]:
    return sorted(link["ifname"] for link in host.json("ip -j link show type ifb"))


# --- traffic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_shaped_flow_has_its_rate(host: Host, direction: str) -> None:
    """Two seconds' worth of bytes: never quicker than the rate and a burst allow; a third of it is what a busy machine takes."""
    rate, burst = 16 * MBIT, MBIT
    pods = Pods(host, Chain(meta_conf("bandwidth", **{f"{direction}Rate": rate, f"{direction}Burst": burst})))
    pod = host.netns("c1")
    address = pods.add(pod)["ips"][0]["address"].partition("/")[0]
    ends: dict[str, tuple[Sandbox | None, Sandbox | None, str]] = {
        "ingress": (None, pod, address),
        "egress": (pod, None, "10.1.0.1"),
    }
    size = (2 * rate + burst) // 8
    measured, _ = transfer(host, *ends.pop(direction), size)
    assert rate / 3 < measured < rate * 1.03 * (size * 8) / (size * 8 - burst)
    [other] = ends.values()
    assert transfer(host, *other, size)[0] > 2 * rate, "the other direction is not limited"


# --- limits -----------------------------------------------------------------------------------------------------------


def test_own_limits_hide_those_of_the_runtime(host: Host) -> None:
    pods = Pods(host, Chain(CONF | {"egressRate": MBIT, "egressBurst": MBIT}))
    pods.add(host.netns("c1"))
    assert "tbf" not in tc(host, pods.results["c1"]["interfaces"][1]["name"])
    assert "rate 1Mbit" in tc(host, ifbs(host)[0])


@pytest.mark.parametrize("rate", [8, 1000, 10**9, 34 * 10**9, 10**11])
def test_any_rate_is_as_asked(host: Host, rate: int) -> None:
    """Rates of more than 32 bits, too, and bursts whose time needs more than 32."""
    pods = Pods(host, Chain(meta_conf("bandwidth", ingressRate=rate, ingressBurst=10 * MBIT)))
    pod = host.netns("c1")
    result = pods.add(pod)
    assert pods.call("CHECK", pod, result).rc == 0
    shown = host.json(f"tc -j qdisc show dev {pods.results['c1']['interfaces'][1]['name']}")[0]
    assert shown["options"]["rate"] == rate // 8


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"ingressRate": 1000}, "if rate is set, burst must also be set"),
        ({"egressBurst": 1000}, "if burst is set, rate must also be set"),
        ({"egressRate": 1000, "egressBurst": 1 << 35}, "burst cannot be more than 4GB"),
        ({"ingressRate": 7, "ingressBurst": 1000}, "at least a byte"),
        ({"ingressRate": -1, "ingressBurst": 1000}, "ingressRate"),
        ({"ingressRate": 1 << 64, "ingressBurst": 1000}, "ingressRate"),
    ],
)
def test_limits_that_cannot_work_are_refused_but_not_by_delete(host: Host, limits: dict[str, Any], said: str) -> None:
    pods = Pods(host, Chain(meta_conf("bandwidth", **limits)))
    pod = host.netns("c1")
    pods.add_main(pod)
    for verb in ("ADD", "CHECK"):
        reply = pods.call(verb, pod)
        assert reply.code == 7, reply
        assert said in words(reply)
    assert host.call("bandwidth", "STATUS", pods.chain.conf).code == 7
    if not said.startswith("ingress"):  # of the wrong type
        pods.ok("DEL", pod)


def test_burst_below_a_packet_is_noted(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("bandwidth", ingressRate=MBIT, ingressBurst=8000)))
    pod = host.netns("c1")
    pods.add_main(pod)
    reply = pods.call("ADD", pod, env={"CNI_PY_EXPLAIN": "1"})
    assert "a burst of 1000 bytes is less than a packet" in reply.stderr


# --- the actual state --------------------------------------------------------------------------------------------------

FILTER = "tc filter add dev PORT parent ffff: protocol all prio 1 u32 match u32 {} action mirred egress redirect dev {}"
ALTERED = {
    "bucket-gone": ("tc qdisc del dev PORT root", "PORT"),
    "bucket-other-rate": ("tc qdisc change dev PORT root handle 1: tbf rate 9mbit burst 125000 latency 25ms", "expected tbf rate 10000000bps"),
    "bucket-of-another-kind": ("tc qdisc replace dev PORT root handle 2: pfifo", "PORT"),
    "ifb-gone": ("ip link del IFB", "Link not found"),
    "ifb-down": ("ip link set IFB down", "expected up"),
    "ifb-mtu": ("ip link set IFB mtu 1400", "expected 1500"),
    "ifb-bucket-gone": ("tc qdisc del dev IFB root", "IFB"),
    "ingress-gone": ("tc qdisc del dev PORT ingress", "not redirected"),
    "filter-gone": ("tc filter del dev PORT ingress", "not redirected"),
    "filter-elsewhere": (
        "tc filter del dev PORT ingress; " + FILTER.format("0 0", "br0"), "not redirected",
    ),
    "filter-matches-less": (
        "tc filter del dev PORT ingress; " + FILTER.format("1 1", "IFB"), "not redirected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALTERED, ids=ALTERED.keys())
def test_check_sees_what_was_changed(host: Host, pods: Pods, case: str) -> None:
    script, said = ALTERED[case]
    pod = host.netns("c1")
    result = pods.add(pod)
    names = {"PORT": result["interfaces"][1]["name"], "IFB": result["interfaces"][3]["name"]}
    for word, name in names.items():
        script, said = script.replace(word, name), said.replace(word, name)
    host.run(script)
    reply = pods.call("CHECK", pod, result, env={"CNI_PY_DIFFERENCES": "1"})
    assert reply.code == 103, reply
    assert said in words(reply)
    assert "found" in words(reply)
    commands = [one["hint"] for one in reply.json["differences"] if not one["hint"].startswith("delete the pod")]
    for command in commands:
        host.run(command)
    if commands:
        assert pods.call("CHECK", pod, result).rc == 0, commands


def test_interface_without_a_host_end_is_refused(host: Host, pods: Pods) -> None:
    pod = host.netns("c1")
    prev = pods.add_main(pod)
    reply = pods.call("ADD", pod, prev | {"interfaces": prev["interfaces"][2:]})
    assert "no veth peer of container interface found in host ns" in words(reply)
    host.run("ip link del eth0; ip link add eth0 type bridge", pod)
    assert "container interface eth0 has no veth peer" in words(pods.call("ADD", pod))


def test_two_interfaces_of_a_container_have_an_ifb_each(host: Host, pods: Pods) -> None:
    """The Go plugin's name has no interface in it: its second ADD fails."""
    pod = host.netns("c1")
    first = pods.add(pod)
    main = host.ok("bridge", "ADD", pods.chain.main, sandbox=pod, ifname="eth1")
    second = host.ok("bandwidth", "ADD", CONF, sandbox=pod, ifname="eth1", prev=main)
    assert len(ifbs(host)) == 2
    for ifname, result in (("eth0", first), ("eth1", second)):
        host.ok("bandwidth", "CHECK", CONF, sandbox=pod, ifname=ifname, prev=result)
    host.ok("bandwidth", "DEL", CONF, sandbox=pod, ifname="eth0")
    assert ifbs(host) == [second["interfaces"][3]["name"]]
    host.ok("bandwidth", "CHECK", CONF, sandbox=pod, ifname="eth1", prev=second)
    host.ok("bandwidth", "DEL", CONF, sandbox=pod, ifname="eth1")
    assert ifbs(host) == []


def test_ifb_of_another_program_is_left(host: Host, pods: Pods) -> None:
    pod = host.netns("c1")
    name = pods.add(pod)["interfaces"][3]["name"]
    pods.ok("DEL", pod)
    host.run(f"ip link add {name} type ifb; ip link set {name} alias other")
    reply = pods.call("ADD", pod)
    assert "File exists" in words(reply)
    pods.ok("DEL", pod)
    pods.gc()
    assert ifbs(host) == [name]


def test_second_add_after_delete_replaces_what_stayed(host: Host, pods: Pods) -> None:
    """The bucket and the filter stay on the host end: the plugin may be called again before the veth is deleted."""
    pod = host.netns("c1")
    pods.add(pod)
    pods.ok("DEL", pod)
    result = pods.ok("ADD", pod)
    pods.ok("CHECK", pod, result)
    assert tc(host, result["interfaces"][1]["name"]).count("Redirect to device") == 1


def test_gc_without_a_list_deletes_what_is_certainly_dead(host: Host, pods: Pods) -> None:
    alive, dead = host.netns("c1"), host.netns("c2")
    living = pods.add(alive)
    pods.add(dead)
    host.delete_netns(dead)
    host.ok("bandwidth", "GC", CONF)
    assert ifbs(host) == [living["interfaces"][3]["name"]]


def test_sweep_deletes_the_ifb_of_a_pod_that_is_gone(host: Host, pods: Pods, cni_py: Any) -> None:
    alive, dead = host.netns("c1"), host.netns("c2")
    living = pods.add(alive)
    pods.add(dead)
    host.delete_netns(dead)
    until(lambda: len(host.host_ends()) == 1, "the veth is deleted with its namespace")
    said = host.run(f"{cni_py} sweep --grace 0")
    assert "ifb" in said
    assert ifbs(host) == [living["interfaces"][3]["name"]]
    pods.ok("CHECK", alive, living)


# --- the Go plugin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("go", "ours"), ("ours", "go")])
def test_attachments_of_the_go_plugin_are_ours_and_the_reverse(host: Host, go_plugins: str, order: tuple[str, str]) -> None:
    """ADD by one, CHECK by both, DEL by the other."""
    conf = CONF | {"cniVersion": "1.0.0"}
    pod = host.netns("c1")
    directories = {"ours": host.bin_dir, "go": go_plugins}
    prev = host.ok("bridge", "ADD", bridge_conf() | {"cniVersion": "1.0.0"}, sandbox=pod)
    before = host.snapshot(pod)
    maker, other = (f"{directories[side]}/bandwidth" for side in order)
    result = host.ok(maker, "ADD", conf, sandbox=pod, prev=prev)
    for side in (maker, other):
        assert host.ok(side, "CHECK", conf, sandbox=pod, prev=result) is None
    host.ok(other, "DEL", conf, sandbox=pod, prev=result)
    assert ifbs(host) == []
    assert [link["ifname"] for link in host.snapshot(pod)["host"]["addresses"]] == [
        link["ifname"] for link in before["host"]["addresses"]
    ]
