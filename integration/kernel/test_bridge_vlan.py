"""Bridge VLANs: `vlan`, `vlanTrunk` and `preserveDefaultVlan`, on one node and on two that a trunk joins."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.namespaces import Host, Sandbox
from support.pods import V6, add, addresses, bridge_conf, check, delete, gc, link, state, words

pytestmark = pytest.mark.netns

NATIVE = ["PVID", "Egress Untagged"]


def in_vlan(vlan: int, first: int = 2, **keys: Any) -> dict[str, Any]:
    """A network in a VLAN. All have one subnet, so that the VLAN alone keeps pods apart; addresses begin at ``first``."""
    ranges = [{"subnet": "10.1.0.0/24", "rangeStart": f"10.1.0.{first}", "rangeEnd": f"10.1.0.{first + 9}"}]
    return bridge_conf(ranges, name=f"net{vlan}", vlan=vlan, **keys)


def trunk(*vlans: dict[str, int], **keys: Any) -> dict[str, Any]:
    """A network whose pods get these VLANs tagged, and no address."""
    return bridge_conf(name="trunk", vlanTrunk=list(vlans), **keys) | {"ipam": {}}


def ip_of(result: dict[str, Any], family: int = 0) -> str:
    return str(result["ips"][family]["address"].partition("/")[0])


def port_of(result: dict[str, Any]) -> str:
    return str(result["interfaces"][1]["name"])


def vlans(host: Host, name: str) -> dict[int, list[str]]:
    """VLANs of a port with their flags."""
    [shown] = host.json(f"bridge -j vlan show dev {name}")
    found = {}
    for entry in shown["vlans"]:
        found |= dict.fromkeys(range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1), entry.get("flags", []))
    return found


def reaches(host: Host, pod: Sandbox | None, address: str, size: int = 0, seconds: int = 5) -> bool:
    """A ping is answered; ``size``: by a packet of so many bytes that must not be cut."""
    whole = f"-Mdo -s{size - (48 if ':' in address else 28)}" if size else ""
    return "1 received" in host.run(f"ping -nc1 -W{seconds} {whole} {address}", pod, check=False)


def is_cut_off(host: Host, pod: Sandbox | None, address: str) -> bool:
    return not reaches(host, pod, address, seconds=1)


# --- a VLAN of its own ------------------------------------------------------------------------------------------------


def test_pods_of_a_vlan_reach_one_another_and_no_other(host: Host) -> None:
    pods = [host.netns(name) for name in ("c1", "c2", "c3", "c4")]
    without_vlan = bridge_conf([{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.90"}])
    confs = [in_vlan(100), in_vlan(100), in_vlan(200, first=50), without_vlan]
    one, two, other, without = (add(host, conf, pod) for conf, pod in zip(confs, pods, strict=True))
    assert reaches(host, pods[0], ip_of(two))
    assert reaches(host, pods[1], ip_of(one), size=1500)
    assert is_cut_off(host, pods[0], ip_of(other))
    assert is_cut_off(host, pods[2], ip_of(one))
    assert is_cut_off(host, pods[0], ip_of(without))


@pytest.mark.parametrize("preserve", [False, True], ids=["alone", "preserveDefaultVlan"])
def test_port_has_the_vlan_untagged(host: Host, preserve: bool) -> None:
    result = add(host, in_vlan(100, isGateway=True, preserveDefaultVlan=preserve), host.netns("c1"))
    expected = {100: NATIVE} | ({1: ["Egress Untagged"]} if preserve else {})
    assert vlans(host, port_of(result)) == expected
    assert vlans(host, link(host, "br0.100")["link"]) == expected
    assert vlans(host, "br0") == {1: NATIVE}


def test_gateway_is_in_the_vlan(host: Host) -> None:
    pod, other = host.netns("c1"), host.netns("c2")
    result = add(host, in_vlan(100, isDefaultGateway=True), pod)
    add(host, in_vlan(200, first=50), other)
    assert addresses(host, "br0.100") == ["10.1.0.1/24"]
    assert addresses(host, "br0") == []
    assert [interface["name"] for interface in result["interfaces"]] == ["br0", port_of(result), "eth0", "br0.100"]
    assert reaches(host, pod, "10.1.0.1", size=1500)
    assert reaches(host, None, ip_of(result), size=1500)
    assert is_cut_off(host, other, "10.1.0.1")


def test_ipv6_gateway_answers_at_once(host: Host) -> None:
    """Duplicate address detection on the gateway loses no packet of the first pod."""
    pod = host.netns("c1")
    result = add(host, bridge_conf(V6, vlan=100, isDefaultGateway=True), pod)
    assert reaches(host, pod, "fd00:1::1", size=1500, seconds=1)
    assert reaches(host, None, ip_of(result), size=1500, seconds=1)


def test_mtu_holds_for_the_gateway(host: Host) -> None:
    pod = host.netns("c1")
    result = add(host, in_vlan(100, isGateway=True, mtu=1400), pod)
    assert {name: link(host, name)["mtu"] for name in ("br0", "br0.100", port_of(result))} == {
        "br0": 1400,
        "br0.100": 1400,
        port_of(result): 1400,
    }
    assert reaches(host, pod, "10.1.0.1", size=1400)
    assert not reaches(host, pod, "10.1.0.1", size=1401)


def test_two_vlans_have_a_gateway_each_and_are_routed(host: Host) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    seven, eight = (
        bridge_conf([{"subnet": f"10.{vlan}.0.0/24"}], name=f"net{vlan}", vlan=vlan, isDefaultGateway=True) for vlan in (7, 8)
    )
    one, two = add(host, seven, first), add(host, eight, second)
    assert (addresses(host, "br0.7"), addresses(host, "br0.8")) == (["10.7.0.1/24"], ["10.8.0.1/24"])
    assert reaches(host, first, ip_of(two), size=1500)
    assert reaches(host, second, ip_of(one), size=1500)


def test_masquerade_in_a_vlan(host: Host) -> None:
    """Masquerade with net.bridge.bridge-nf-call-iptables off.

    With it on, a frame from the pod's port to the gateway's passes POSTROUTING before it is routed, which decides the NAT of
    its connection there.
    """
    host.run("for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do [ ! -e $f ] || echo 0 >$f; done")
    outside, pod = host.netns("outside"), host.netns("c1")
    host.run("ip link add up0 type veth peer name eth0 netns outside; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up")
    host.run("ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up", outside)
    conf = in_vlan(100, isDefaultGateway=True, ipMasq=True)  # without ipMasqBackend: whatever this kernel can do
    result = add(host, conf, pod)
    assert reaches(host, pod, "192.0.2.2", size=1500)
    assert check(host, conf, pod, result).rc == 0


# --- a trunk ----------------------------------------------------------------------------------------------------------


def test_trunk_carries_its_vlans_and_no_other(host: Host) -> None:
    conf = trunk({"id": 7}, {"minID": 10, "maxID": 12})
    router = host.netns("c1")
    result = add(host, conf, router)
    host.run("ip link set eth0 up", router)
    assert vlans(host, port_of(result)) == {1: NATIVE, 7: [], 10: [], 11: [], 12: []}
    for number, vlan in enumerate((7, 12, 13), 2):
        pod = add(host, in_vlan(vlan, first=number * 10), host.netns(f"c{number}"))
        host.run(
            f"ip link add link eth0 name eth0.{vlan} type vlan id {vlan}; ip addr add 10.1.0.{200 + vlan}/32 dev eth0.{vlan};"
            f"ip link set eth0.{vlan} up; ip route add {ip_of(pod)} dev eth0.{vlan} src 10.1.0.{200 + vlan}",
            router,
        )
        assert reaches(host, router, ip_of(pod), size=1500, seconds=1) is (vlan != 13), vlan
    reply = check(host, conf, router, result)
    assert reply.rc == 0, reply.json


@pytest.mark.parametrize("preserve", [False, True], ids=["alone", "preserveDefaultVlan"])
def test_trunk_with_a_vlan_of_its_own(host: Host, preserve: bool) -> None:
    result = add(host, in_vlan(100, vlanTrunk=[{"id": 7}], preserveDefaultVlan=preserve), host.netns("c1"))
    assert vlans(host, port_of(result)) == {100: NATIVE, 7: []} | ({1: ["Egress Untagged"]} if preserve else {})


# --- two nodes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("families", ["v4", "v6"])
def test_two_nodes_share_vlans_by_a_trunk(host: Host, bin_dir: Path, families: str) -> None:
    pods = {}
    with Host(bin_dir) as other:
        cable = f"nsenter --target={host.pid} --net ip link add eth0 type veth peer eth0 netns {other.pid}"
        subprocess.run(cable.split(), check=True)
        for number, node in enumerate((host, other), 1):
            node.run("ip link add br0 type bridge vlan_filtering 1; ip link set eth0 master br0; ip link set eth0 up")
            node.run("bridge vlan add dev eth0 vid 100; bridge vlan add dev eth0 vid 200")
            for vlan in (100, 200):
                subnet, first = {
                    "v4": ("10.1.0.0/24", f"10.1.0.{vlan // 2 + number * 10}"),
                    "v6": ("fd00:1::/64", f"fd00:1::{vlan}:{number}"),
                }[families]
                pod = node.netns(f"pod{vlan}")
                conf = bridge_conf([{"subnet": subnet, "rangeStart": first}], name=f"net{vlan}", vlan=vlan)
                pods[number, vlan] = pod, ip_of(add(node, conf, pod))
        for node, number, peer in ((host, 1, 2), (other, 2, 1)):
            for vlan in (100, 200):
                pod, _ = pods[number, vlan]
                assert reaches(node, pod, pods[peer, vlan][1], size=1500), (number, vlan)
                assert is_cut_off(node, pod, pods[peer, 300 - vlan][1]), (number, vlan)


# --- CHECK, DEL, GC ---------------------------------------------------------------------------------------------------

CHANGES = {
    "vlan gone": "bridge vlan del dev {port} vid 100",
    "vlan tagged": "bridge vlan add dev {port} vid 100",
    "other native vlan": "bridge vlan add dev {port} vid 9 pvid untagged",
    "trunk vlan gone": "bridge vlan del dev {port} vid 7",
    "no filtering": "ip link set br0 type bridge vlan_filtering 0",
    "gateway's vlan gone": "bridge vlan del dev {gateway} vid 100",
    "gateway gone": "ip link del br0.100",
}


def test_check_sees_every_change_of_vlans(host: Host) -> None:
    """Each change alone: CHECK passes before, and again when it is undone."""
    conf = in_vlan(100, vlanTrunk=[{"id": 7}], isGateway=True)
    pod = host.netns("c1")
    unseen = []
    for name, script in CHANGES.items():
        result = add(host, conf, pod)
        before = check(host, conf, pod, result)
        assert before.rc == 0, before.json
        host.run(script.format(port=port_of(result), gateway=link(host, "br0.100")["link"]))
        after = check(host, conf, pod, result)
        if after.rc == 0:
            unseen.append(name)
        else:
            assert "is not what ADD left" in words(after) or "missing" in words(after), after.json
        delete(host, conf, pod, prev=result)
        host.run("ip link del br0; ip link del br0.100 2>/dev/null || true")
    assert not unseen


CONFS = {
    "vlan": in_vlan(100, isDefaultGateway=True, ipMasq=True, ipMasqBackend="iptables"),
    "trunk": trunk({"id": 7}, {"minID": 10, "maxID": 12}),
    "both": in_vlan(100, vlanTrunk=[{"id": 7}], preserveDefaultVlan=True, isGateway=True),
}


@pytest.mark.parametrize("conf", CONFS.values(), ids=CONFS)
def test_delete_leaves_nothing(host: Host, conf: dict[str, Any]) -> None:
    """But what all attachments share: the bridge, and the VLAN's gateway."""
    shared, pod = host.netns("c0"), host.netns("c1")
    add(host, conf, shared)
    before = state(host, pod)
    for ways in ({}, {"sandbox": None}):
        result = add(host, conf, pod)
        reply = check(host, conf, pod, result)
        assert reply.rc == 0, reply.json
        host.ok("bridge", "DEL", conf, **({"sandbox": pod, "container_id": pod.name, "prev": result} | ways))
        assert state(host, pod) == before, ways
    add(host, conf, pod)
    gc(host, conf, ("c0", "eth0"))
    assert state(host, pod) == before


def test_failed_add_leaves_nothing(host: Host) -> None:
    conf = in_vlan(100, vlanTrunk=[{"id": 7}], isGateway=True)
    conf["ipam"]["ranges"] = [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.2"}]]
    add(host, conf, host.netns("c0"))
    pod = host.netns("c1")
    before = state(host, pod)
    assert host.call("bridge", "ADD", conf, sandbox=pod, container_id="c1").rc == 1
    assert state(host, pod) == before


def test_one_pod_in_two_vlans(host: Host) -> None:
    first, second = in_vlan(100), in_vlan(200, first=50)
    pod, other = host.netns("c1"), host.netns("c2")
    add(host, first, pod)
    before = state(host, pod)
    inside = add(host, second, pod, ifname="net1")
    result = add(host, second, other)
    assert vlans(host, port_of(inside)) == {200: NATIVE}
    host.run(f"ip route add {ip_of(result)} dev net1", pod)
    assert reaches(host, pod, ip_of(result), size=1500)
    delete(host, second, other)
    delete(host, second, pod, ifname="net1")
    assert state(host, pod) == before


def test_bridge_that_filters_no_vlans_is_refused_as_it_is(host: Host) -> None:
    host.run("ip link add br0 type bridge")
    pod = host.netns("c1")
    before = state(host, pod)
    reply = host.call("bridge", "ADD", in_vlan(100), sandbox=pod, container_id="c1")
    assert reply.rc == 1
    assert "ip link set br0 type bridge vlan_filtering 1" in words(reply)
    assert state(host, pod) == before
