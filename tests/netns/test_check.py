"""CHECK sees everything that ADD set: each deleted or changed object is code 103, with expected and found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.namespaces import Host, Sandbox
from support.pods import (
    DUAL_ENV,
    FLANNEL,
    MAC,
    OPTIONS,
    ROUTES,
    V4,
    V6,
    add,
    bridge_conf,
    check,
    layer_2_conf,
    repair,
    words,
)

CONF = bridge_conf(
    V4, V6, isDefaultGateway=True, ipMasq=True, mtu=1400, macspoofchk=True, masqueradeExcept=["10.0.0.0/8"],
    ipam={"routes": ROUTES},
)  # fmt: skip
VERSIONS = ["0.4.0", "1.0.0", "1.1.0"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("conf", OPTIONS.values(), ids=OPTIONS.keys())
def test_right_after_add_all_is_well(host: Host, conf: dict[str, Any], version: str) -> None:
    host.write_subnet_env(DUAL_ENV)
    conf = conf | {"cniVersion": version}
    result = add(host, conf, pod := host.netns("c1"))
    reply = check(host, conf, pod, result)
    assert (reply.rc, reply.json) == (0, None), reply
    assert check(host, conf, pod, result).rc == 0, "CHECK changes nothing"


def test_second_pod_does_not_disturb_the_first(host: Host) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    one, two = add(host, CONF, first), add(host, CONF, second)
    assert check(host, CONF, first, one).rc == check(host, CONF, second, two).rc == 0


# --- one change at a time ---------------------------------------------------------------------------------------------

Alter = Callable[[Host, Sandbox, dict[str, Any]], Any]


def on_host(script: str) -> Alter:
    """Return a change by a script on the host; PORT is replaced by the host end."""
    return lambda host, pod, result: host.run(script.replace("PORT", result["interfaces"][1]["name"]))


def in_pod(script: str) -> Alter:
    return lambda host, pod, result: host.run(script, pod)


def sets(key: str, value: str, *, sandbox: bool = False) -> Alter:
    return (in_pod if sandbox else on_host)(f"echo {value} >/proc/sys/net/{key}")


CASES: dict[str, tuple[Alter, dict[str, Any], list[str]]] = {
    # what is done, keys of the configuration, what the error must say
    "bridge-gone": (on_host("ip link del br0"), {}, ['"br0"', "missing"]),
    "bridge-down": (on_host("ip link set br0 down"), {}, ['"br0"', "expected up", "found down"]),
    "bridge-not-promiscuous": (on_host("ip link set br0 promisc off"), {"promiscMode": True}, ['"br0"', "promisc"]),
    "bridge-is-none": (on_host("ip link del br0; ip link add br0 type veth"), {}, ['"br0"', "expected bridge", "found veth"]),
    "bridge-mtu": (on_host("ip link set br0 mtu 1300"), {}, ['"br0"', "MTU", "expected 1400", "found 1300"]),
    "bridge-mac": (on_host("ip link set br0 address 02:00:00:00:00:07"), {}, ['"br0"', "MAC", "found 02:00:00:00:00:07"]),
    "bridge-of-another-name": (
        on_host("ip link set br0 down; ip link set br0 name br7; ip link set br7 up"), {}, ['"br0"', "missing"],
    ),
    "port-renamed": (
        on_host("ip link set PORT down; ip link set PORT name pod-c1; ip link set pod-c1 up"), {}, ["expected PORT", "found pod-c1"],
    ),
    "gateway4-gone": (on_host("ip addr del 10.1.0.1/24 dev br0"), {}, ["10.1.0.1/24", '"br0"']),
    "gateway6-gone": (on_host("ip addr del fd00:1::1/64 dev br0"), {}, ["fd00:1::1/64", '"br0"']),
    "gateway-other-prefix": (
        on_host("ip addr add 10.1.0.1/25 dev br0; ip addr del 10.1.0.1/24 dev br0"), {}, ["10.1.0.1/24", "found 10.1.0.1/25"],
    ),
    "forwarding4-off": (sets("ipv4/ip_forward", "0"), {}, ["ip_forward", "expected 1", "found 0"]),
    "forwarding6-off": (sets("ipv6/conf/all/forwarding", "0"), {}, ["forwarding", "expected 1", "found 0"]),
    "port-gone": (on_host("ip link del PORT"), {}, ['"eth0"', "missing"]),
    "port-down": (on_host("ip link set PORT down"), {}, ["PORT", "expected up", "found down"]),
    "port-out-of-bridge": (on_host("ip link set PORT nomaster"), {}, ["PORT", "bridge of"]),
    "port-in-other-bridge": (on_host("ip link add br9 type bridge; ip link set PORT master br9"), {}, ["PORT", "bridge of"]),
    "port-hairpin": (on_host("bridge link set dev PORT hairpin on"), {}, ["PORT", "hairpin", "expected off", "found on"]),
    "port-no-hairpin": (
        on_host("bridge link set dev PORT hairpin off"), {"hairpinMode": True}, ["PORT", "hairpin", "expected on"],
    ),
    "port-isolated": (on_host("bridge link set dev PORT isolated on"), {}, ["PORT", "isolation", "expected off"]),
    "port-not-isolated": (
        on_host("bridge link set dev PORT isolated off"), {"portIsolation": True}, ["PORT", "isolation", "expected on"],
    ),
    "port-mac": (on_host("ip link set PORT address 02:00:00:00:00:07"), {}, ["PORT", "MAC", "found 02:00:00:00:00:07"]),
    "port-mtu": (on_host("ip link set PORT mtu 1300"), {}, ["PORT", "MTU", "expected 1400", "found 1300"]),
    "end-gone": (in_pod("ip link del eth0"), {}, ['"eth0"', "missing"]),
    "end-renamed": (in_pod("ip link set eth0 down; ip link set eth0 name eth7"), {}, ['"eth0"', "missing"]),
    "end-down": (in_pod("ip link set eth0 down"), {}, ['"eth0"', "expected up", "found down"]),
    "end-mac": (in_pod("ip link set eth0 address 02:00:00:00:00:07"), {}, ['"eth0"', "MAC", "found 02:00:00:00:00:07"]),
    "end-mac-capability": (
        in_pod("ip link set eth0 address 02:00:00:00:00:07"), {"runtimeConfig": {"mac": MAC.upper()}},
        [f"expected {MAC}", '"eth0"'],
    ),
    "end-mtu": (in_pod("ip link set eth0 mtu 1300"), {}, ['"eth0"', "MTU", "expected 1400", "found 1300"]),
    "end-is-another": (
        in_pod("ip link del eth0; ip link add eth0 type veth; ip link set eth0 up"), {}, ["eth0"],
    ),
    "address4-gone": (in_pod("ip addr del 10.1.0.2/24 dev eth0"), {}, ["10.1.0.2/24", "eth0"]),
    "address6-gone": (in_pod("ip addr del fd00:1::2/64 dev eth0"), {}, ["fd00:1::2/64", "eth0"]),
    "address-other": (
        in_pod("ip addr add 10.1.0.77/25 dev eth0; ip addr del 10.1.0.2/24 dev eth0"), {},
        ["10.1.0.2/24", "found 10.1.0.77/25"],
    ),
    "default4-gone": (in_pod("ip route del default"), {}, ["0.0.0.0/0 via 10.1.0.1"]),
    "default6-gone": (in_pod("ip -6 route del default"), {}, ["::/0 via fd00:1::1"]),
    "default-elsewhere": (in_pod("ip route replace default via 10.1.0.9"), {}, ["0.0.0.0/0 via 10.1.0.1", "via 10.1.0.9"]),
    "route-gone": (in_pod("ip route del 10.7.0.0/16"), {}, ["10.7.0.0/16"]),
    "route-other-gw": (in_pod("ip route replace 10.7.0.0/16 via 10.1.0.3"), {}, ["10.7.0.0/16", "via 10.1.0.3"]),
    "route-other-mtu": (
        in_pod("ip route replace 10.8.0.0/16 via 10.1.0.9 dev eth0 proto boot metric 7 mtu 1299 advmss 1200"), {},
        ["10.8.0.0/16", "mtu 1300", "mtu 1299"],
    ),
    "route-other-advmss": (
        in_pod("ip route replace 10.8.0.0/16 via 10.1.0.9 dev eth0 proto boot metric 7 mtu 1300 advmss 1199"), {},
        ["10.8.0.0/16", "advmss 1200", "advmss 1199"],
    ),
    "route-other-priority": (
        in_pod("ip route del 10.8.0.0/16; ip route add 10.8.0.0/16 via 10.1.0.9 dev eth0 metric 8 mtu 1300 advmss 1200"), {},
        ["10.8.0.0/16", "priority 7", "priority 8"],
    ),
    "route-other-table": (
        in_pod("ip route del 10.9.0.0/16 table 100; ip route add 10.9.0.0/16 via 10.1.0.1 table 101"), {},
        ["10.9.0.0/16", "table 100"],
    ),
    "route-other-scope": (
        in_pod("ip route del 10.10.0.0/16; ip route add 10.10.0.0/16 via 10.1.0.1 dev eth0 scope global"), {},
        ["10.10.0.0/16", "scope 200"],
    ),
    "route6-gone": (in_pod("ip -6 route del fd00:9::/64 table 100"), {}, ["fd00:9::/64", "table 100"]),
    "masquerade4-gone": (on_host("nft delete element inet cni_py masq4 { 10.1.0.2 }"), {}, ["10.1.0.2"]),
    "masquerade6-gone": (on_host("nft delete element inet cni_py masq6 { fd00:1::2 }"), {}, ["fd00:1::2"]),
    "masquerade-table-gone": (on_host("nft delete table inet cni_py"), {}, ["cni_py"]),
    "masquerade-chain-flushed": (on_host("nft flush chain inet cni_py postrouting"), {}, ["postrouting"]),
    "masquerade-other-rule": (
        on_host("nft flush chain inet cni_py beyond-10.0.0.0_8"),
        {}, ["beyond-10.0.0.0_8"],
    ),
    "masquerade-rule-changed": (
        on_host(
            "rule='inet cni_py beyond-10.0.0.0_8'; comment=$(nft -a list chain $rule | sed -n 's/.*comment \\(\".*\"\\).*/\\1/p' | head -1);"
            "handle=$(nft -a list chain $rule | sed -n 's/.*comment.*handle //p' | head -1);"
            "nft \"replace rule $rule handle $handle ip daddr 10.66.0.0/16 masquerade comment $comment\""
        ), {}, ["beyond-10.0.0.0_8", "10.66.0.0/16"],
    ),
    "masquerade-of-another": (
        on_host(
            "target=$(nft list map inet cni_py masq4 | sed -n 's/.*goto \\([^ ]*\\).*/\\1/p');"
            "nft delete element inet cni_py masq4 { 10.1.0.2 };"
            "nft \"add element inet cni_py masq4 { 10.1.0.2 comment \\\"c9 eth0 00000000\\\" : goto $target }\""
        ), {}, ["10.1.0.2", "c9 eth0"],
    ),
    "iptables-gone": (on_host("iptables -t nat -F POSTROUTING"), {"ipMasqBackend": "iptables"}, ["POSTROUTING"]),
    "macspoofchk-gone": (on_host("nft flush set bridge cni_py checked"), {}, ["PORT", "checked"]),
    "macspoofchk-address-gone": (on_host("nft flush set bridge cni_py allowed"), {}, ["PORT", "allowed"]),
    "macspoofchk-rule-gone": (on_host("nft flush chain bridge cni_py prerouting"), {}, ["prerouting"]),
    "reservation-gone": (on_host("rm /var/lib/cni/networks/net/10.1.0.2 /var/lib/cni/networks/net/fd00*"), {}, ["c1"]),
    "one-reservation-gone": (on_host("rm /var/lib/cni/networks/net/10.1.0.2"), {}, ["10.1.0.2"]),
    "reservation-of-another": (
        on_host("printf 'c9\\r\\neth0' >/var/lib/cni/networks/net/10.1.0.2"), {}, ["10.1.0.2", "c9 eth0"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=CASES.keys())
def test_what_was_changed_is_seen(host: Host, case: str) -> None:
    alter, keys, said = CASES[case]
    conf = CONF | keys
    result = add(host, conf, pod := host.netns("c1"))
    assert check(host, conf, pod, result).rc == 0
    alter(host, pod, result)
    reply = check(host, conf, pod, result)
    assert (reply.rc, reply.code) == (1, 103), reply
    for text in said:
        assert text.replace("PORT", result["interfaces"][1]["name"]) in words(reply), reply
    assert "expected" in reply.json["details"], reply
    assert "found" in reply.json["details"], reply


NO_REPAIR = {
    "bridge-gone", "bridge-mac", "bridge-of-another-name", "bridge-is-none", "port-gone", "end-gone", "end-renamed", "end-is-another",
    "masquerade-of-another", "reservation-of-another",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=CASES.keys())
def test_hints_repair_what_was_changed(host: Host, case: str) -> None:
    alter, keys, _ = CASES[case]
    conf = CONF | keys
    result = add(host, conf, pod := host.netns("c1"))
    alter(host, pod, result)
    reply = repair(host, conf, pod, result)
    assert reply.rc == (case in NO_REPAIR), reply


def test_all_differences_are_reported_at_once(host: Host) -> None:
    cases = ["forwarding4-off", "gateway4-gone", "port-hairpin", "port-mtu", "end-mac", "end-mtu", "address4-gone"]
    cases += ["masquerade4-gone", "macspoofchk-gone", "one-reservation-gone"]
    result = add(host, CONF, pod := host.netns("c1"))
    for case in cases:
        CASES[case][0](host, pod, result)
    reply = check(host, CONF, pod, result)
    said = [f"{one['msg']}: {one['details']}" for one in reply.json["differences"]]
    for case in cases:
        wanted = [text.replace("PORT", result["interfaces"][1]["name"]) for text in CASES[case][2]]
        assert any(all(text in line for text in wanted) for line in said), (case, said)
        assert all(text in words(reply) for text in wanted)
    assert repair(host, CONF, pod, result).rc == 0


def test_namespace_that_has_gone(host: Host) -> None:
    result = add(host, CONF, pod := host.netns("c1"))
    host.delete_netns(pod)
    reply = check(host, CONF, pod, result)
    assert reply.rc == 1
    assert pod.path in words(reply)


@pytest.mark.parametrize("case", ["macspoofchk-gone", "port-no-hairpin", "end-down", "port-gone"])
def test_layer_2_is_compared_too(host: Host, case: str) -> None:
    alter, _, said = CASES[case]
    conf = layer_2_conf(macspoofchk=True, hairpinMode=True)
    result = add(host, conf, pod := host.netns("c1"))
    alter(host, pod, result)
    reply = check(host, conf, pod, result)
    assert (reply.rc, reply.code) == (1, 103), reply
    for text in said:
        assert text.replace("PORT", result["interfaces"][1]["name"]) in words(reply), reply


# --- flannel and loopback ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rm", "truncate -s 0", "truncate -s 40"])
def test_flannel_misses_its_saved_configuration(host: Host, how: str) -> None:
    host.write_subnet_env()
    result = add(host, FLANNEL, pod := host.netns("c1"))
    host.run(f"{how} /var/lib/cni/flannel/c1")
    reply = check(host, FLANNEL, pod, result)
    assert (reply.rc, reply.code) == (1, 103)
    assert "/var/lib/cni/flannel/c1" in words(reply)
    assert "expected" in reply.json["details"]
    assert "found" in reply.json["details"]


@pytest.mark.parametrize("case", ["end-mtu", "end-down", "forwarding4-off"])
def test_flannel_hands_check_down(host: Host, case: str) -> None:
    alter, _, said = CASES[case]
    host.write_subnet_env(DUAL_ENV.replace("1450", "1400"))
    result = add(host, FLANNEL, pod := host.netns("c1"))
    alter(host, pod, result)
    reply = check(host, FLANNEL, pod, result)
    assert (reply.rc, reply.code) == (1, 103)
    for text in said:
        assert text in words(reply), reply


def test_flannel_needs_no_subnet_env_for_it(host: Host) -> None:
    host.write_subnet_env()
    result = add(host, FLANNEL, pod := host.netns("c1"))
    host.run("rm /run/flannel/subnet.env")
    assert check(host, FLANNEL, pod, result).rc == 0


def test_loopback(host: Host) -> None:
    conf = {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}
    result = add(host, conf, pod := host.netns("c1"))
    assert check(host, conf, pod, result).rc == 0
    host.run("ip link set lo down", pod)
    reply = check(host, conf, pod, result)
    assert (reply.rc, reply.code) == (1, 103)
    assert '"lo"' in words(reply)
    assert "expected up, found down" in reply.json["details"]


# --- prevResult -------------------------------------------------------------------------------------------------------


def test_without_prev_result(host: Host) -> None:
    add(host, CONF, pod := host.netns("c1"))
    reply = host.call("bridge", "CHECK", CONF, sandbox=pod)
    assert reply.rc == 1
    assert "prevResult" in words(reply)


def test_later_plugin_may_change_mac_and_mtu(host: Host) -> None:
    """Plugin tuning does this: kernel and prevResult agree, the configuration differs."""
    conf = bridge_conf(V4, isDefaultGateway=True, mtu=1400, runtimeConfig={"mac": MAC})
    result = add(host, conf, pod := host.netns("c1"))
    host.run("ip link set eth0 address 02:00:00:00:00:99 mtu 1280", pod)
    assert check(host, conf, pod, result).code == 103
    result["interfaces"][2] |= {"mac": "02:00:00:00:00:99", "mtu": 1280}
    assert check(host, conf, pod, result).rc == 0


def test_later_plugin_may_change_routes(host: Host) -> None:
    """Plugin sbr does this: the default route moves to a table of its own."""
    conf = bridge_conf(V4, isDefaultGateway=True)
    result = add(host, conf, pod := host.netns("c1"))
    host.run(
        "ip route del default; ip route add default via 10.1.0.1 dev eth0 table 100; ip route add 10.5.0.0/16 via 10.1.0.7", pod
    )
    assert check(host, conf, pod, result).code == 103
    result["routes"] = [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "table": 100}, {"dst": "10.5.0.0/16", "gw": "10.1.0.7"}]
    assert check(host, conf, pod, result).rc == 0
    host.run("ip route del 10.5.0.0/16", pod)
    assert check(host, conf, pod, result).code == 103


def test_later_plugin_may_add_interfaces_and_addresses(host: Host) -> None:
    conf = bridge_conf(V4)
    result = add(host, conf, pod := host.netns("c1"))
    host.run("ip link add eth1 type veth; ip addr add 10.77.0.1/24 dev eth1; ip link set eth1 up", pod)
    result["interfaces"].append({"name": "eth1", "sandbox": pod.path})
    result["ips"].append({"address": "10.77.0.1/24", "interface": 3})
    assert check(host, conf, pod, result).rc == 0


def test_bridge_may_have_got_a_smaller_mtu_from_another_pod(host: Host) -> None:
    """Its MTU is not the attachment's: the kernel lets it follow its ports."""
    first, second = host.netns("c1"), host.netns("c2")
    one = add(host, bridge_conf(mtu=1400), first)
    add(host, bridge_conf(mtu=1300), second)
    assert check(host, bridge_conf(mtu=1400), first, one).rc == 0


def test_bridge_may_have_a_larger_mtu(host: Host) -> None:
    result = add(host, bridge_conf(mtu=1400), pod := host.netns("c1"))
    host.run("ip link set br0 mtu 1500")
    assert check(host, bridge_conf(mtu=1400), pod, result).rc == 0


def test_switch_may_have_the_mac_of_another_pod(host: Host) -> None:
    """One that is no gateway has the lowest MAC address of its ports."""
    conf = bridge_conf(V4)
    one = add(host, conf, first := host.netns("c1"))
    two = add(host, conf, second := host.netns("c2"))
    host.run(f"ip link set {two['interfaces'][1]['name']} address 02:00:00:00:00:01")
    assert host.run("cat /sys/class/net/br0/address").strip() == "02:00:00:00:00:01"
    assert check(host, conf, first, one).rc == 0
    assert check(host, conf, second, two).code == 103


def test_result_of_0_4_0_has_no_mtu_and_its_names_count(host: Host) -> None:
    conf = bridge_conf(V4, isDefaultGateway=True, mtu=1400) | {"cniVersion": "0.4.0"}
    result = add(host, conf, pod := host.netns("c1"))
    host.run("ip link set br0 mtu 1300")
    assert check(host, conf, pod, result).rc == 0
    result["interfaces"][0]["name"] = "br9"
    assert "br9" in words(check(host, conf, pod, result))


def test_what_a_later_plugin_names_on_the_host_is_its_own(host: Host) -> None:
    """Plugin bandwidth adds an ifb."""
    conf = bridge_conf(V4)
    result = add(host, conf, pod := host.netns("c1"))
    result["interfaces"].append({"name": "bwp0123456789ab", "mac": "02:00:00:00:00:09"})
    assert check(host, conf, pod, result).rc == 0
    result["interfaces"] = [interface for interface in result["interfaces"] if interface.get("sandbox")]
    result["ips"][0]["interface"] = 0
    assert check(host, conf, pod, result).rc == 0


def test_host_end_may_have_another_name(host: Host) -> None:
    result = add(host, CONF, pod := host.netns("c1"))
    name = result["interfaces"][1]["name"]
    conf = bridge_conf(V4)
    del result["interfaces"][1]["name"]
    host.run(f"ip link set {name} down; ip link set {name} name pod-c1; ip link set pod-c1 up")
    result["interfaces"][1]["name"] = "pod-c1"
    reply = check(host, conf, pod, result)
    assert reply.rc == 0, reply


def test_old_prev_result_is_read(host: Host) -> None:
    """A runtime that was upgraded may hand in a result of an older version."""
    conf = bridge_conf(V4, isDefaultGateway=True)
    old = add(host, conf | {"cniVersion": "0.4.0"}, pod := host.netns("c1"))
    assert check(host, conf, pod, old).rc == 0
