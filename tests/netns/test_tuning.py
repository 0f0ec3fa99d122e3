"""tuning: precedence of its settings, sysctls and the allow-list, saved values, CHECK, the Go plugin's attachments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.chained import Chain, Pods, meta_conf
from support.namespaces import Host, Sandbox
from support.pods import bridge_conf, link, sysctl, words

MAC = "c2:11:22:33:44:99"
SYSCTLS = {"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/arp_filter": "1"}
ALL = {"sysctl": SYSCTLS, "mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 777}
CONF = meta_conf("tuning", **ALL)
SAVED = "/run/cni/tuning/c1_eth0.json"


@pytest.fixture
def pods(host: Host) -> Pods:
    return Pods(host, Chain(CONF))


def settings(host: Host, pod: Sandbox, name: str = "eth0") -> tuple[Any, ...]:
    of = link(host, name, pod)
    return of["address"], of["mtu"], "PROMISC" in of["flags"], "ALLMULTI" in of["flags"], of["txqlen"]


def test_everything_is_set_and_restored(host: Host, pods: Pods) -> None:
    pod = host.netns("c1")
    pods.add_main(pod)
    before = settings(host, pod)
    result = pods.ok("ADD", pod)
    assert settings(host, pod) == (MAC, 1400, True, True, 777)
    assert (sysctl(host, "core/somaxconn", pod), sysctl(host, "ipv4/conf/eth0/arp_filter", pod)) == ("500", "1")
    assert [(of["mac"], of["mtu"]) for of in result["interfaces"] if of["name"] == "eth0"] == [(MAC, 1400)]
    saved = host.path(SAVED).read_text()
    assert json.loads(saved) == dict(zip(("mac", "mtu", "promisc", "allmulti", "txQLen"), before, strict=True))
    assert saved.startswith('{\n "mac": "')
    host.ok("bridge", "CHECK", pods.chain.main, sandbox=pod, prev=result)
    pods.ok("CHECK", pod, result)
    pods.ok("DEL", pod)
    assert settings(host, pod) == before
    assert not host.path(SAVED).exists()


@pytest.mark.parametrize(
    ("keys", "args", "mac"),
    [
        ({"mac": "02:00:00:00:00:01"}, "", "02:00:00:00:00:01"),
        ({"mac": "02-00-00-00-00-0A"}, "", "02:00:00:00:00:0a"),
        ({"mac": "02:00:00:00:00:01"}, "MAC=02:00:00:00:00:02", "02:00:00:00:00:02"),
        (
            {"runtimeConfig": {"mac": "02:00:00:00:00:03"}},
            "IgnoreUnknown=1;K8S_POD_NAME=p;MAC=02:00:00:00:00:02",
            "02:00:00:00:00:03",
        ),
        (
            {"runtimeConfig": {"mac": "02:00:00:00:00:03"}, "args": {"cni": {"mac": "02:00:00:00:00:04"}}},
            "MAC=02:00:00:00:00:02",
            "02:00:00:00:00:04",
        ),
    ],
)
def test_mac_comes_from_the_nearest_place(host: Host, keys: dict[str, Any], args: str, mac: str) -> None:
    pods = Pods(host, Chain(meta_conf("tuning", **keys)))
    pods.add_main(pod := host.netns("c1"))
    pods.ok("ADD", pod, args=args)
    assert link(host, "eth0", pod)["address"] == mac
    assert pods.call("ADD", pod, args="X=1").code == 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sysctl": {"kernel.hostname": "x"}}, 'invalid net sysctl key: "kernel/hostname"'),
        ({"sysctl": {"net/../kernel/hostname": "x"}}, "invalid net sysctl key"),
        ({"sysctl": {"net.ipv4.conf..x": "x"}}, "invalid net sysctl key"),
        ({"sysctl": {"net": "x"}}, "invalid net sysctl key"),
        ({"sysctl": {"net.core.somaxconn": 500}}, "not a string"),
        ({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}}, "duplicated sysctl keys are not allowed"),
        ({"sysctl": []}, "sysctl"),
        ({"mac": "zz"}, "invalid args zz for MAC addr"),
        ({"mtu": -1}, "mtu"),
        ({"txQLen": "7"}, "txQLen"),
        ({"allmulti": 1}, "allmulti"),
        ({"dataDir": "relative"}, "dataDir"),
    ],
)
def test_settings_that_cannot_be_are_refused(host: Host, keys: dict[str, Any], said: str) -> None:
    pods = Pods(host, Chain(meta_conf("tuning", **keys)))
    pods.add_main(pod := host.netns("c1"))
    before = pods.state(pod)
    reply = pods.call("ADD", pod)
    assert (reply.code, said in words(reply)) == (7, True), reply
    assert host.call("tuning", "STATUS", pods.chain.conf).code == 7
    assert pods.state(pod) == before


def test_key_twice_in_the_text_is_refused(host: Host, pods: Pods) -> None:
    prev = pods.add_main(pod := host.netns("c1"))
    text = json.dumps(meta_conf("tuning", sysctl={"net.core.somaxconn": "1"}, prevResult=prev))
    twice = text.replace('{"net.core.somaxconn": "1"}', '{"net.core.somaxconn": "1", "net.core.somaxconn": "1"}')
    assert "duplicated sysctl keys are not allowed" in words(host.call("tuning", "ADD", twice, sandbox=pod))
    elsewhere = text.replace('"type": "tuning"', '"type": "tuning", "x": {"net.core.somaxconn": 1, "y": "net.core.somaxconn"}')
    host.ok("tuning", "ADD", elsewhere, sandbox=pod)


def test_sysctl_of_an_interface_with_a_dot(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("tuning", sysctl={"net/ipv4/conf/IFNAME/arp_filter": "1"})))
    pod = host.netns("c1")
    prev = host.ok("bridge", "ADD", pods.chain.main, sandbox=pod, ifname="eth0.7")
    result = host.ok("tuning", "ADD", pods.chain.conf, sandbox=pod, ifname="eth0.7", prev=prev)
    assert sysctl(host, "ipv4/conf/eth0.7/arp_filter", pod) == "1"
    host.ok("tuning", "CHECK", pods.chain.conf, sandbox=pod, ifname="eth0.7", prev=result)


def test_allow_list_of_the_node(host: Host) -> None:
    host.write("/etc/cni/tuning/allowlist.conf", "^net\\.ipv4\\.conf\\.IFNAME\\.\n\n  somaxconn$\n")
    pod = host.netns("c1")
    for key, is_allowed in (
        ("net.ipv4.conf.IFNAME.arp_filter", True),
        ("net.core.somaxconn", True),
        ("net.ipv4.conf.all.arp_filter", False),
        ("net/ipv4/conf/IFNAME/arp_filter", False),
    ):
        pods = Pods(host, Chain(meta_conf("tuning", sysctl={key: "1"})))
        pods.add_main(pod)
        reply = pods.call("ADD", pod)
        assert (reply.rc == 0) == is_allowed, (key, reply)
        if not is_allowed:
            assert f"Sysctl {key} is not allowed. Only the following sysctls are allowed: [^net" in words(reply)
        pods.delete(pod)
    host.write("/etc/cni/tuning/allowlist.conf", "(\n")
    assert "allowlist.conf" in words(host.call("tuning", "STATUS", pods.chain.conf))


ALTERED = {
    "sysctl": (
        "echo 400 >/proc/sys/net/core/somaxconn",
        "configured value of /proc/sys/net/core/somaxconn is 500, current value is 400",
    ),
    "sysctl-of-interface": ("echo 0 >/proc/sys/net/ipv4/conf/eth0/arp_filter", "arp_filter is 1, current value is 0"),
    "mac": ("ip link set eth0 address 02:00:00:00:00:01", f"configured mac is {MAC}"),
    "mtu": ("ip link set eth0 mtu 1300", "configured mtu is 1400, current value is 1300"),
    "promisc": ("ip link set eth0 promisc off", "configured promisc is True, current value is False"),
    "allmulti": ("ip link set eth0 allmulticast off", "configured allmulti is True"),
    "txqlen": ("ip link set eth0 txqueuelen 5", "configured txQLen is 777, current value is 5"),
    "gone": ("ip link del eth0", "missing"),
}


@pytest.mark.parametrize("case", ALTERED, ids=ALTERED.keys())
def test_check_sees_what_was_changed(host: Host, pods: Pods, case: str) -> None:
    script, said = ALTERED[case]
    result = pods.add(pod := host.netns("c1"))
    host.run(script, pod)
    reply = pods.call("CHECK", pod, result, env={"CNI_PY_DIFFERENCES": "1"})
    assert reply.code == 103, reply
    assert said in words(reply)
    for one in reply.json["differences"] if case != "gone" else ():
        host.run(one["hint"])
    assert pods.call("CHECK", pod, result).rc == (case == "gone")


def test_check_leaves_out_what_was_not_asked_for(host: Host) -> None:
    """Go's fails while another program has the interface in promiscuous mode."""
    pods = Pods(host, Chain(meta_conf("tuning", mtu=1400)))
    result = pods.add(pod := host.netns("c1"))
    host.run("ip link set eth0 promisc on; ip link set eth0 allmulticast on", pod)
    pods.ok("CHECK", pod, result)


def test_sysctl_of_several_numbers_is_compared_by_them(host: Host) -> None:
    pods = Pods(host, Chain(meta_conf("tuning", sysctl={"net.ipv4.tcp_rmem": "4096 131072 6291456"})))
    result = pods.add(pod := host.netns("c1"))
    assert sysctl(host, "ipv4/tcp_rmem", pod) == "4096\t131072\t6291456"
    pods.ok("CHECK", pod, result)


def test_two_tunings_of_a_chain_restore_the_first_values(host: Host, pods: Pods) -> None:
    prev = pods.add_main(pod := host.netns("c1"))
    before = settings(host, pod)
    one, two = meta_conf("tuning", mtu=1400, txQLen=5), meta_conf("tuning", mtu=1300, promisc=True)
    prev = host.ok("tuning", "ADD", one, sandbox=pod, prev=prev)
    host.ok("tuning", "ADD", two, sandbox=pod, prev=prev)
    assert json.loads(host.path(SAVED).read_text()) == {"promisc": False, "mtu": 1500, "txQLen": 1000}
    for conf in (two, one):
        host.ok("tuning", "DEL", conf, sandbox=pod)
    assert settings(host, pod) == before


@pytest.mark.parametrize("text", ["", "{", '{"mtu": "x", "mac": 7}', "[]", "\0"])
def test_damaged_file_is_ignored_and_deleted(host: Host, pods: Pods, text: str) -> None:
    pods.add(pod := host.netns("c1"))
    host.write(SAVED, text)
    pods.ok("DEL", pod)
    assert not host.path(SAVED).exists()


def test_file_is_deleted_with_the_namespace(host: Host, pods: Pods) -> None:
    for sandbox in (None, "/run/netns/gone", "same"):
        pods.add(pod := host.netns("c1"))
        host.delete_netns(pod)
        host.ok("tuning", "DEL", CONF, sandbox=pod if sandbox == "same" else sandbox)
        assert not host.path(SAVED).exists()
        host.ok("bridge", "DEL", pods.chain.main)


@pytest.mark.parametrize("order", [("go", "ours"), ("ours", "go")])
def test_attachments_of_the_go_plugin_are_ours_and_the_reverse(host: Host, go_plugins: str, order: tuple[str, str]) -> None:
    """ADD by one, CHECK by both, DEL by the other."""
    conf = meta_conf("tuning", mac=MAC, mtu=1400, promisc=True, sysctl={"net.core.somaxconn": "500"}) | {"cniVersion": "1.0.0"}
    pod = host.netns("c1")
    directories = {"ours": host.bin_dir, "go": go_plugins}
    prev = host.ok("bridge", "ADD", bridge_conf() | {"cniVersion": "1.0.0"}, sandbox=pod)
    before = settings(host, pod)
    maker, other = (f"{directories[side]}/tuning" for side in order)
    result = host.ok(maker, "ADD", conf, sandbox=pod, prev=prev)
    for side in (maker, other):
        assert host.ok(side, "CHECK", conf, sandbox=pod, prev=result) is None
    host.ok(other, "DEL", conf, sandbox=pod, prev=result)
    assert settings(host, pod) == before
    assert not host.path(SAVED).exists()
