"""Every option of bridge does what it says: seen in the kernel, and with traffic where that is the point."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from support.namespaces import Host, Reply, Sandbox
from support.pods import (
    FLANNEL,
    MAC,
    NOTHING_SECONDS,
    V4,
    V6,
    add,
    addresses,
    bridge_conf,
    check,
    datagram,
    delete,
    frame,
    layer_2_conf,
    link,
    port_flags,
    port_of,
    routes,
    state,
    sysctl,
    wait_for_dad,
    words,
)


def refused(host: Host, conf: dict[str, Any], pod: Sandbox, **options: Any) -> Reply:
    """ADD, which must fail and leave nothing in the sandbox."""
    reply = host.call("bridge", "ADD", conf, sandbox=pod, container_id=pod.name, **options)
    assert reply.rc == 1, reply
    assert [entry["ifname"] for entry in host.json("ip -j link", pod)] == ["lo"]
    return reply


def ips(result: dict[str, Any]) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def two_pods(host: Host, conf: dict[str, Any]) -> tuple[Sandbox, Sandbox, dict[str, Any], dict[str, Any]]:
    first, second = host.netns("c1"), host.netns("c2")
    return first, second, add(host, conf, first), add(host, conf, second)


# --- gateway ----------------------------------------------------------------------------------------------------------


def test_pods_and_host_reach_one_another(host: Host) -> None:
    conf = bridge_conf(V4, V6, isDefaultGateway=True)
    first, second, one, two = two_pods(host, conf)
    for family in (0, 1):
        a, b, gateway = ips(one)[family], ips(two)[family], one["ips"][family]["gateway"]
        assert datagram(host, first, second, b) == a
        assert datagram(host, second, first, a) == b
        assert datagram(host, first, None, gateway) == a
        assert datagram(host, None, first, a) == gateway
    assert "1 received" in host.run(f"ping -c1 -W2 {ips(two)[0]}", first)
    assert "1 received" in host.run(f"ping -c1 -W2 {ips(two)[1]}", first)


def test_gateway_has_address_and_forwarding(host: Host) -> None:
    add(host, bridge_conf(isGateway=True), pod := host.netns("c1"))
    shown = host.json("ip -j -4 addr show br0")[0]["addr_info"]
    assert [(a["local"], a["prefixlen"], a["broadcast"]) for a in shown] == [("10.1.0.1", 24, "10.1.0.255")]
    assert sysctl(host, "ipv4/ip_forward") == "1"
    assert sysctl(host, "ipv6/conf/all/forwarding") == "0"
    assert routes(host, pod) == {}


def test_without_gateway_the_bridge_has_no_address(host: Host) -> None:
    first, second, one, two = two_pods(host, bridge_conf(V4, V6))
    assert addresses(host, "br0") == []
    assert (sysctl(host, "ipv4/ip_forward"), sysctl(host, "ipv6/conf/all/forwarding")) == ("0", "0")
    assert datagram(host, first, second, ips(two)[0]) == ips(one)[0]


def test_default_gateway_in_both_families(host: Host) -> None:
    result = add(host, bridge_conf(V4, V6, isDefaultGateway=True), pod := host.netns("c1"))
    assert addresses(host, "br0") == ["10.1.0.1/24", "fd00:1::1/64"]
    assert (sysctl(host, "ipv4/ip_forward"), sysctl(host, "ipv6/conf/all/forwarding")) == ("1", "1")
    assert routes(host, pod)["default"]["gateway"] == "10.1.0.1"
    assert routes(host, pod, family=6)["default"]["gateway"] == "fd00:1::1"
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]


def test_default_route_of_ipam_stands(host: Host) -> None:
    conf = bridge_conf(isDefaultGateway=True, ipam={"routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}]})
    result = add(host, conf, pod := host.netns("c1"))
    assert routes(host, pod)["default"]["gateway"] == "10.1.0.9"
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}]


def test_gateway_of_a_range_is_used(host: Host) -> None:
    result = add(
        host, bridge_conf([{"subnet": "10.1.0.0/24", "gateway": "10.1.0.77"}], isDefaultGateway=True), pod := host.netns("c1")
    )
    assert addresses(host, "br0") == ["10.1.0.77/24"]
    assert datagram(host, pod, None, "10.1.0.77") == ips(result)[0]


def test_gateway_keeps_its_mac_when_ports_come_and_go(host: Host) -> None:
    first = host.netns("c1")
    mac = add(host, bridge_conf(isGateway=True), first)["interfaces"][0]["mac"]
    for number in range(2, 8):
        add(host, bridge_conf(isGateway=True), host.netns(f"c{number}"))
    delete(host, bridge_conf(isGateway=True), first)
    assert link(host, "br0")["address"] == mac


def test_force_address_replaces_another_one(host: Host) -> None:
    host.run("ip link add br0 type bridge; ip addr add 10.66.0.1/16 dev br0; ip addr add fd00:66::1/64 dev br0 nodad")
    pod = host.netns("c1")
    reply = refused(host, bridge_conf(V4, V6, isGateway=True), pod)
    assert (reply.code, reply.json["msg"]) == (7, '"br0" already has an IP address different from 10.1.0.1/24')
    assert "10.66.0.1/16" in reply.json["details"]
    assert addresses(host, "br0") == ["10.66.0.1/16", "fd00:66::1/64"]
    add(host, bridge_conf(V4, V6, isGateway=True, forceAddress=True), pod)
    assert sorted(addresses(host, "br0")) == ["10.1.0.1/24", "fd00:1::1/64", "fd00:66::1/64"], "IPv6: only what overlaps goes"


def test_force_address_replaces_an_overlapping_ipv6_one(host: Host) -> None:
    host.run("ip link add br0 type bridge; ip addr add fd00:1::ff/48 dev br0 nodad")
    pod = host.netns("c1")
    assert refused(host, bridge_conf(V6, isGateway=True), pod).code == 7
    add(host, bridge_conf(V6, isGateway=True, forceAddress=True), pod)
    assert addresses(host, "br0") == ["fd00:1::1/64"]


# --- the bridge -------------------------------------------------------------------------------------------------------


def test_adopted_bridge_is_left_as_it_is(host: Host) -> None:
    host.run("ip link add br0 address 06:00:00:00:00:99 type bridge; ip link set br0 mtu 1300")
    host.run("ip link add d0 type veth; ip link set d0 master br0 up")
    result = add(host, bridge_conf(isGateway=True, mtu=1400), host.netns("c1"))
    bridge = link(host, "br0")
    assert (bridge["mtu"], bridge["address"], "UP" in bridge["flags"]) == (1300, "06:00:00:00:00:99", True)
    assert link(host, "d0")["master"] == "br0"
    assert result["interfaces"][0] == {"name": "br0", "mac": "06:00:00:00:00:99", "mtu": 1300}


def test_what_is_no_bridge_is_refused(host: Host) -> None:
    host.run("ip link add br0 type veth")
    reply = refused(host, bridge_conf(), host.netns("c1"))
    assert (reply.code, reply.json["msg"]) == (7, '"br0" already exists but is not a bridge')


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", "all", "sixteen-letters-"])
def test_impossible_name_is_refused(host: Host, name: str) -> None:
    reply = refused(host, bridge_conf(bridge=name), host.netns("c1"))
    assert reply.code == 7
    assert f'"{name}"' in words(reply)


def test_default_name_is_cni0(host: Host) -> None:
    conf = bridge_conf()
    del conf["bridge"]
    assert add(host, conf, host.netns("c1"))["interfaces"][0]["name"] == "cni0"


def test_router_advertisements_are_not_accepted(host: Host) -> None:
    result = add(host, bridge_conf(), host.netns("c1"))
    assert sysctl(host, "ipv6/conf/br0/accept_ra") == "0"
    assert sysctl(host, f"ipv6/conf/{result['interfaces'][1]['name']}/accept_ra") == "0"


def test_mtu(host: Host) -> None:
    result = add(host, bridge_conf(isGateway=True, mtu=1400), pod := host.netns("c1"))
    assert [link(host, "br0")["mtu"], port_of(host, result)["mtu"], link(host, "eth0", pod)["mtu"]] == [1400] * 3
    assert [interface["mtu"] for interface in result["interfaces"]] == [1400] * 3
    assert "1 received" in host.run("ping -c1 -W2 -M do -s 1372 10.1.0.1", pod)
    assert "1 received" not in host.run("ping -c1 -W1 -M do -s 1373 10.1.0.1 2>&1", pod, check=False)


def test_without_mtu_the_kernel_chooses(host: Host) -> None:
    result = add(host, bridge_conf(), host.netns("c1"))
    assert [interface["mtu"] for interface in result["interfaces"]] == [1500] * 3


@pytest.mark.parametrize("mtu", [-1, 65536, "1400", 1])
def test_impossible_mtu_is_refused(host: Host, mtu: object) -> None:
    reply = refused(host, bridge_conf(mtu=mtu), host.netns("c1"))
    assert reply.code in (7, 101)
    assert str(mtu) in words(reply)


def test_promiscuous_bridge(host: Host) -> None:
    add(host, bridge_conf(promiscMode=True), host.netns("c1"))
    assert "PROMISC" in link(host, "br0")["flags"]


def test_bridge_is_not_promiscuous_by_default(host: Host) -> None:
    add(host, bridge_conf(), host.netns("c1"))
    assert "PROMISC" not in link(host, "br0")["flags"]


def test_hairpin_with_promiscuous_mode_is_refused(host: Host) -> None:
    reply = refused(host, bridge_conf(promiscMode=True, hairpinMode=True), host.netns("c1"))
    assert (reply.code, reply.json["msg"]) == (7, "cannot set hairpin mode and promiscuous mode at the same time")


# --- the port ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_hairpin_sends_a_frame_back_to_its_port(host: Host, on: bool) -> None:
    result = add(host, bridge_conf(hairpinMode=on), pod := host.netns("c1"))
    assert port_flags(host, result)["hairpin"] is on
    mac = result["interfaces"][2]["mac"]
    assert frame(host, pod, pod, sender=mac, seconds=2 if on else NOTHING_SECONDS) is on


def test_hairpin_reaches_a_pod_by_the_address_of_its_service(host: Host) -> None:
    """The point of the option: with bridge-nf-call-iptables a service's address is translated inside the bridge."""
    if sysctl(host, "bridge/bridge-nf-call-iptables") != "1":
        host.run("echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables")
    result = add(host, bridge_conf(isDefaultGateway=True, hairpinMode=True), pod := host.netns("c1"))
    host.run(
        "nft 'table ip test { chain pre { type nat hook prerouting priority dstnat;"
        f"   ip daddr 10.96.0.1 dnat to {ips(result)[0]}; }};"
        "  chain post { type nat hook postrouting priority srcnat - 1; ct status dnat masquerade; }; }'"
    )
    assert datagram(host, pod, pod, "10.96.0.1") == "10.1.0.1"


def test_isolated_pods_reach_the_host_but_not_one_another(host: Host) -> None:
    conf = bridge_conf(V4, V6, isGateway=True, portIsolation=True)
    first, second, one, two = two_pods(host, conf)
    assert port_flags(host, one)["isolated"] is port_flags(host, two)["isolated"] is True
    for family in (0, 1):
        assert datagram(host, first, second, ips(two)[family], seconds=NOTHING_SECONDS) is None
        assert datagram(host, first, None, one["ips"][family]["gateway"]) == ips(one)[family]
        assert datagram(host, None, second, ips(two)[family]) == two["ips"][family]["gateway"]
    third = host.netns("c3")
    three = add(host, bridge_conf(V4, V6, isGateway=True), third)
    assert port_flags(host, three)["isolated"] is False
    assert datagram(host, first, third, ips(three)[0]) == ips(one)[0], "a port that is not isolated reaches all"


def create_and_find(path: str) -> list[str]:
    """Create a veth on a kernel without alternative names, which rejects the message; the links with its mark."""
    from cni_py.kernel import link as links
    from cni_py.kernel.netns import open_sandbox
    from cni_py.netlink.socket import open_host

    links.RTM_NEWLINKPROP = 250
    with open_host() as rtnl, open_sandbox(path) as netns:
        links.create_veth(rtnl, netns, "eth0", "cni:c1:eth0:net")
        return [found.alias for found in links.list_links(rtnl, "cni:c1:eth0:net")]


def test_mark_is_an_alias_where_the_kernel_has_no_alternative_names(host: Host) -> None:
    pod = host.netns("c1")
    assert host.do(create_and_find, pod.path) == ["cni:c1:eth0:net"]
    delete(host, bridge_conf(), pod)
    assert host.host_ends() == []


def test_host_end_is_named_and_described(host: Host) -> None:
    result = add(host, bridge_conf(), pod := host.netns("c1"))
    port = port_of(host, result)
    assert port["ifname"].removeprefix("veth").isalnum()
    assert len(port["ifname"]) == len("veth12345678")
    assert int(port["ifname"].removeprefix("veth"), 16) >= 0
    assert port["altnames"] == ["cni:c1:eth0:net"]
    assert "ifalias" not in port, "Go sets none"
    assert port["master"] == "br0"
    assert [i.get("sandbox", "") for i in result["interfaces"]] == ["", "", pod.path]
    assert [i["mac"] for i in result["interfaces"]] == [
        link(host, "br0")["address"],
        port["address"],
        link(host, "eth0", pod)["address"],
    ]


def test_frames_with_another_mac_are_dropped(host: Host) -> None:
    first, second, one, two = two_pods(host, bridge_conf(macspoofchk=True))
    mac = one["interfaces"][2]["mac"]
    assert frame(host, first, second, sender=mac)
    assert not frame(host, first, second, sender="02:00:00:00:00:66", seconds=NOTHING_SECONDS)
    assert not frame(host, first, second, sender=two["interfaces"][2]["mac"], seconds=NOTHING_SECONDS)
    assert datagram(host, first, second, ips(two)[0]) == ips(one)[0]
    delete(host, bridge_conf(macspoofchk=True), first)
    assert frame(host, second, second, sender=two["interfaces"][2]["mac"], seconds=NOTHING_SECONDS) is False, "no hairpin"
    third = host.netns("c3")
    add(host, bridge_conf(), third)
    assert frame(host, third, second, sender="02:00:00:00:00:66"), "not asked for, not checked"


def test_macspoofchk_without_ipam(host: Host) -> None:
    first, second, one, _ = two_pods(host, layer_2_conf(macspoofchk=True))
    assert frame(host, first, second, sender=one["interfaces"][2]["mac"])
    assert not frame(host, first, second, sender="02:00:00:00:00:66", seconds=NOTHING_SECONDS)


# --- the sandbox's end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "args", "wanted"),
    [
        ({"runtimeConfig": {"mac": MAC}}, "", MAC),
        ({"args": {"cni": {"mac": MAC}}}, "", MAC),
        ({}, f"IgnoreUnknown=1;MAC={MAC};K8S_POD_NAME=x", MAC),
        ({"runtimeConfig": {"mac": MAC.upper()}}, "", MAC),
        ({"args": {"cni": {"mac": MAC.upper().replace(":", "-")}}}, "", MAC),
        (
            {"runtimeConfig": {"mac": MAC}, "args": {"cni": {"mac": "02:00:00:00:00:01"}}},
            "MAC=02:00:00:00:00:02;IgnoreUnknown=1",
            MAC,
        ),
        ({"args": {"cni": {"mac": MAC}}}, "MAC=02:00:00:00:00:02;IgnoreUnknown=1", MAC),
    ],
    ids=["capability", "args", "CNI_ARGS", "upper-case", "hyphens", "capability-first", "args-before-CNI_ARGS"],
)
def test_mac(host: Host, keys: dict[str, Any], args: str, wanted: str) -> None:
    result = add(host, bridge_conf(**keys), pod := host.netns("c1"), args=args)
    assert result["interfaces"][2]["mac"] == link(host, "eth0", pod)["address"] == wanted


def test_mac_of_args_without_ipam(host: Host) -> None:
    """IPAM would require IgnoreUnknown: host-local gets the same CNI_ARGS, as with Go."""
    add(host, layer_2_conf(), pod := host.netns("c1"), args=f"MAC={MAC}")
    assert link(host, "eth0", pod)["address"] == MAC


@pytest.mark.parametrize("mac", ["c2:11:22:33:44", "c2:11:22:33:44:5g", "c2:11:22:33:44:5", "x"])
def test_impossible_mac_is_refused(host: Host, mac: str) -> None:
    reply = refused(host, bridge_conf(runtimeConfig={"mac": mac}), host.netns("c1"))
    assert reply.code == 7
    assert mac in words(reply)


def test_multicast_mac_is_refused_by_the_kernel(host: Host) -> None:
    reply = refused(host, bridge_conf(runtimeConfig={"mac": "01:00:00:00:00:01"}), host.netns("c1"))
    assert reply.code == 101
    assert "ip link add" in words(reply)
    assert "01:00:00:00:00:01" in words(reply)


def test_unknown_args_are_refused_unless_ignored(host: Host) -> None:
    pod = host.netns("c1")
    reply = refused(host, bridge_conf(), pod, args="K8S_POD_NAME=x")
    assert reply.code == 4
    assert "K8S_POD_NAME=x" in words(reply)
    add(host, bridge_conf(), pod, args="IgnoreUnknown=true;K8S_POD_NAME=x")


def test_dual_stack_does_not_wait_for_duplicate_detection(host: Host) -> None:
    conf = bridge_conf(V4, V6, isDefaultGateway=True)
    first = host.netns("c1")
    one = add(host, conf, first)
    seconds = []
    for number in (2, 3, 4):
        pod = host.netns(f"c{number}")
        began = time.monotonic()
        two = add(host, conf, pod)
        seconds.append(time.monotonic() - began)
        shown = host.json("ip -j -6 addr show eth0", pod)[0]["addr_info"]
        assert [bool(a.get("tentative")) for a in shown if a["scope"] == "global"] == [False]
        assert datagram(host, pod, first, ips(one)[1]) == ips(two)[1]
    assert min(seconds) < 1.0, seconds  # duplicate detection waits for one at least
    assert sysctl(host, "ipv6/conf/eth0/accept_dad", first) == "0"


def test_duplicates_are_detected_if_asked_for(host: Host) -> None:
    conf = bridge_conf(V4, V6, enabledad=True)
    first, second = host.netns("c1"), host.netns("c2")
    one = add(host, conf, first)
    assert (sysctl(host, "ipv6/conf/eth0/accept_dad", first), sysctl(host, "ipv6/conf/eth0/enhanced_dad", first)) == ("1", "1")
    assert not wait_for_dad(host, first).get("dadfailed")
    host.path(f"/var/lib/cni/networks/net/{ips(one)[1]}").unlink()
    two = add(host, conf | {"runtimeConfig": {"ips": [ips(one)[1]]}}, second)
    assert ips(two)[1] == ips(one)[1]
    assert wait_for_dad(host, second).get("dadfailed")


def test_container_interface_can_be_left_down(host: Host) -> None:
    conf = layer_2_conf(disableContainerInterface=True)
    result = add(host, conf, pod := host.netns("c1"))
    assert "UP" not in link(host, "eth0", pod)["flags"]
    assert "UP" in port_of(host, result)["flags"]
    assert check(host, conf, pod, result).rc == 0


def test_interface_that_is_left_down_takes_no_addresses(host: Host) -> None:
    reply = refused(host, bridge_conf(disableContainerInterface=True), host.netns("c1"))
    assert (reply.code, reply.json["msg"]) == (7, "cannot use IPAM when DisableContainerInterface flag is set")


@pytest.mark.parametrize("keys", [{}, {"ipam": {}}, {"isGateway": True, "isDefaultGateway": True, "ipMasq": True}])
def test_layer_2_without_ipam(host: Host, keys: dict[str, Any]) -> None:
    first, second, one, _ = two_pods(host, layer_2_conf(**keys))
    assert "ips" not in one
    assert [i["name"] for i in one["interfaces"]] == ["br0", one["interfaces"][1]["name"], "eth0"]
    assert "UP" in link(host, "eth0", first)["flags"]
    assert addresses(host, "eth0", first) == addresses(host, "br0") == []
    assert frame(host, first, second, sender=one["interfaces"][2]["mac"])
    assert check(host, layer_2_conf(**keys), first, one).rc == 0


def test_addresses_are_there_with_broadcast(host: Host) -> None:
    add(host, bridge_conf(V4, V6), pod := host.netns("c1"))
    shown = host.json("ip -j addr show eth0", pod)[0]["addr_info"]
    assert [a["broadcast"] for a in shown if a["family"] == "inet"] == ["10.1.0.255"]
    assert addresses(host, "eth0", pod) == ["10.1.0.2/24", "fd00:1::2/64"]
    assert sysctl(host, "ipv4/conf/eth0/arp_notify", pod) == "1"


def test_ipv6_works_where_it_was_switched_off(host: Host) -> None:
    """Container runtimes make namespaces with IPv6 off, for networks without it."""
    first, second = host.netns("c1"), host.netns("c2")
    for pod in (first, second):
        host.run("for kind in all default lo; do echo 1 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6; done", pod)
    one, two = add(host, bridge_conf(V4, V6), first), add(host, bridge_conf(V4, V6), second)
    assert datagram(host, first, second, ips(two)[1]) == ips(one)[1]


# --- routes and dns ---------------------------------------------------------------------------------------------------


def one_route(host: Host, route: dict[str, Any], *, table: str = "main", family: int = 4) -> dict[str, Any]:
    """The kernel's entry for a route of IPAM, in a pod made for it; CHECK must know it, and the result name it."""
    conf = bridge_conf(V4, V6, ipam={"routes": [route]})
    result = add(host, conf, pod := host.netns("c1"))
    assert result["routes"] == [route]
    reply = check(host, conf, pod, result)
    assert reply.rc == 0, reply
    found = routes(host, pod, table=table, family=family)
    assert list(found) == [route["dst"]]
    return found[route["dst"]]


def test_route_without_gw_goes_over_the_gateway(host: Host) -> None:
    assert one_route(host, {"dst": "10.7.0.0/16"})["gateway"] == "10.1.0.1"


def test_ipv6_route_without_gw_goes_over_its_gateway(host: Host) -> None:
    assert one_route(host, {"dst": "fd00:7::/64"}, family=6)["gateway"] == "fd00:1::1"


def test_route_with_gw(host: Host) -> None:
    assert one_route(host, {"dst": "10.7.0.0/16", "gw": "10.1.0.9"})["gateway"] == "10.1.0.9"


@pytest.mark.parametrize("family", [4, 6])
def test_route_with_mtu_and_advmss(host: Host, family: int) -> None:
    dst = "10.7.0.0/16" if family == 4 else "fd00:7::/64"
    assert one_route(host, {"dst": dst, "mtu": 1300, "advmss": 1200}, family=family)["metrics"] == [
        {"mtu": 1300, "advmss": 1200}
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_route_with_priority(host: Host, family: int) -> None:
    dst = "10.7.0.0/16" if family == 4 else "fd00:7::/64"
    assert one_route(host, {"dst": dst, "priority": 77}, family=family)["metric"] == 77


@pytest.mark.parametrize("table", [100, 4711])
@pytest.mark.parametrize("family", [4, 6])
def test_route_in_a_table(host: Host, family: int, table: int) -> None:
    dst = "10.7.0.0/16" if family == 4 else "fd00:7::/64"
    one_route(host, {"dst": dst, "table": table}, table=str(table), family=family)


def test_route_with_scope(host: Host) -> None:
    assert one_route(host, {"dst": "10.7.0.0/16", "scope": 200})["scope"] == "site"


def test_route_of_scope_link_has_no_gateway(host: Host) -> None:
    """The kernel takes no gateway in it, so none is filled in."""
    route = one_route(host, {"dst": "10.7.0.0/16", "scope": 253})
    assert (route["scope"], route.get("gateway")) == ("link", None)


def test_route_that_cannot_be_is_refused_with_the_kernels_words(host: Host) -> None:
    reply = refused(host, bridge_conf(ipam={"routes": [{"dst": "10.7.0.0/16", "gw": "192.0.2.1"}]}), host.netns("c1"))
    assert reply.code == 101
    assert "ip route add 10.7.0.0/16 via 192.0.2.1 dev eth0" in reply.json["details"]
    assert "Nexthop has invalid gateway" in reply.json["details"]
    assert host.files("/var/lib/cni/networks/net").keys() <= {"/var/lib/cni/networks/net/last_reserved_ip.0"}


DNS = {"nameservers": ["10.1.0.1"], "domain": "pods.test", "search": ["a.test"], "options": ["ndots:5"]}


def test_dns_of_the_configuration_is_handed_back(host: Host) -> None:
    host.write("/run/resolv.conf", "nameserver 192.0.2.53\n")
    conf = bridge_conf(dns=DNS, ipam={"resolvConf": "/run/resolv.conf"})
    assert add(host, conf, host.netns("c1"))["dns"] == DNS


def test_dns_of_ipam_is_handed_back_otherwise(host: Host) -> None:
    host.write("/run/resolv.conf", "nameserver 192.0.2.53\n")
    conf = bridge_conf(ipam={"resolvConf": "/run/resolv.conf"})
    assert add(host, conf, host.netns("c1"))["dns"] == {"nameservers": ["192.0.2.53"]}


# --- VLANs ------------------------------------------------------------------------------------------------------------


def has_vlan_filtering(host: Host) -> bool:
    done = host.run("ip link add probe type bridge vlan_filtering 1 && ip link del probe && echo yes", check=False)
    return done == "yes\n"


VLANS: list[dict[str, Any]] = [
    {"vlan": 100},
    {"vlan": 100, "preserveDefaultVlan": True},
    {"vlanTrunk": [{"id": 7}, {"minID": 10, "maxID": 12}]},
    {"vlanTrunk": [{"id": 7}], "preserveDefaultVlan": True},
]


@pytest.mark.parametrize("adopted", [False, True], ids=["new", "adopted"])
@pytest.mark.parametrize("keys", VLANS, ids=["vlan", "vlan-preserve", "trunk", "trunk-preserve"])
def test_vlan(host: Host, keys: dict[str, Any], adopted: bool) -> None:
    """A kernel without VLAN filtering: a clear error and no bridge; otherwise the port's VLANs."""
    pod = host.netns("c1")
    can = has_vlan_filtering(host)
    if adopted:
        host.run(f"ip link add br0 type bridge {'vlan_filtering 1' if can else ''}")
    if not can:
        reply = refused(host, bridge_conf(**keys), pod)
        assert reply.code == 2, reply
        assert "VLAN filtering" in words(reply)
        for key, value in keys.items():
            if key == "vlan":
                assert f'"vlan": {value}' in words(reply)
            if key == "vlanTrunk":
                assert '"vlanTrunk": ' in words(reply)
                assert "7" in words(reply)
        assert ("br0" in [entry["ifname"] for entry in host.json("ip -j link")]) is adopted
        return
    result = add(host, bridge_conf(isGateway=True, **keys), pod)
    port = result["interfaces"][1]["name"]
    shown = {entry["vlan"]: entry.get("flags", []) for entry in host.json(f"bridge -j vlan show dev {port}")[0]["vlans"]}
    if "vlan" in keys:
        assert shown[100] == ["PVID", "Egress Untagged"]
        assert addresses(host, "br0.100") == ["10.1.0.1/24"]
        assert datagram(host, pod, None, "10.1.0.1") == ips(result)[0]
    else:
        assert {7, 10, 11, 12} & set(shown) == ({7, 10, 11, 12} if len(keys["vlanTrunk"]) > 1 else {7})


def test_preserve_default_vlan_alone_changes_nothing(host: Host) -> None:
    """Two pods on an existing bridge: the second one's state is the same as without the key."""
    add(host, bridge_conf(), host.netns("c1"))
    made = []
    for keys in ({}, {"preserveDefaultVlan": True}):
        pod = host.netns("c2")
        add(host, bridge_conf(**keys), pod)
        made.append(without_names(state(host, pod)))
        delete(host, bridge_conf(), pod)
        host.delete_netns(pod)
    assert made[0] == made[1]


def without_names(found: dict[str, Any]) -> dict[str, Any]:
    """A snapshot without what is another one for each pod: names and addresses of veths, the next IP address, namespace numbers."""
    text = json.dumps(found, sort_keys=True)
    text = re.sub(r"veth[0-9a-f]{8}|(?:[0-9a-f]{1,2}:){5}[0-9a-f]{1,2}|10\.1\.0\.[0-9]+", "any", text)
    text = re.sub(r'"link_netnsid": \d+', '"link_netnsid": 0', text)  # the kernel frees a number some time after its namespace
    return dict(json.loads(text, object_pairs_hook=_sorted))


def _sorted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose lists are in an order that does not depend on the names in them."""
    return {key: sorted(value, key=json.dumps) if isinstance(value, list) else value for key, value in pairs}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"vlan": 4095}, '"vlan"'),
        ({"vlan": -1}, '"vlan"'),
        ({"vlanTrunk": [{"id": 0}]}, "vlanTrunk"),
        ({"vlanTrunk": [{"minID": 7}]}, "vlanTrunk"),
        ({"vlanTrunk": [{"minID": 7, "maxID": 6}]}, "vlanTrunk"),
    ],
)
def test_impossible_vlan_is_refused(host: Host, keys: dict[str, Any], named: str) -> None:
    reply = refused(host, bridge_conf(**keys), host.netns("c1"))
    assert reply.code == 7
    assert named in words(reply)


# --- masquerade -------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(host: Host) -> Sandbox:
    """A machine beyond the host, with routes back to the pods: it sees the sender's address. Its MAC address need not be resolved."""
    machine = host.netns("outside")
    host.run(
        "ip link add out0 type veth peer name eth0 address 02:00:00:00:00:02 netns outside; ip link set out0 up;"
        "ip addr add 192.0.2.1/24 dev out0; ip addr add fd00:2::1/64 dev out0 nodad;"
        "ip -6 neigh add fd00:2::2 lladdr 02:00:00:00:00:02 dev out0 nud permanent"
    )
    host.run(
        "ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; ip addr add fd00:2::2/64 dev eth0 nodad;"
        "ip route add default via 192.0.2.1; ip -6 route add default via fd00:2::1",
        machine,
    )
    return machine


@pytest.mark.parametrize("backend", [None, "nftables", "iptables"])
def test_masquerade(host: Host, outside: Sandbox, backend: str | None) -> None:
    conf = bridge_conf(V4, V6, isDefaultGateway=True, ipMasq=True, **({"ipMasqBackend": backend} if backend else {}))
    first, second, one, two = two_pods(host, conf)
    assert datagram(host, first, outside, "192.0.2.2") == "192.0.2.1"
    assert datagram(host, first, outside, "fd00:2::2") == "fd00:2::1"
    assert datagram(host, first, second, ips(two)[0]) == ips(one)[0], "inside the subnet the pod's own address"
    assert datagram(host, first, None, "10.1.0.1") == ips(one)[0]
    assert ("table ip nat" in host.run("nft list ruleset")) is (backend == "iptables")


def test_without_masquerade_the_pods_address_is_seen(host: Host, outside: Sandbox) -> None:
    result = add(host, bridge_conf(V4, V6, isDefaultGateway=True), pod := host.netns("c1"))
    assert [datagram(host, pod, outside, address) for address in ("192.0.2.2", "fd00:2::2")] == ips(result)
    assert host.run("nft list ruleset") == ""


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_masquerade_excludes_networks(host: Host, outside: Sandbox, backend: str) -> None:
    host.run("ip addr add 198.51.100.2/24 dev eth0", outside)
    host.run("ip addr add 198.51.100.1/24 dev out0")
    conf = bridge_conf(
        V4, V6, isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend, masqueradeExcept=["198.51.100.0/24", "fd00:2::/64"]
    )
    result = add(host, conf, pod := host.netns("c1"))
    assert datagram(host, pod, outside, "198.51.100.2") == ips(result)[0]
    assert datagram(host, pod, outside, "fd00:2::2") == ips(result)[1]
    assert datagram(host, pod, outside, "192.0.2.2") == "192.0.2.1", "other networks are masqueraded"


@pytest.mark.parametrize(("beyond", "own"), [("network", True), ("subnet", False)])
def test_masquerade_beyond(host: Host, outside: Sandbox, beyond: str, own: bool) -> None:
    """A peer node of the flannel network sees the pod's own address only if asked for."""
    host.write_subnet_env("FLANNEL_NETWORK=192.0.0.0/8\nFLANNEL_SUBNET=192.1.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    host.run("ip addr add 198.51.100.2/24 dev eth0", outside)
    host.run("ip addr add 198.51.100.1/24 dev out0")
    conf = FLANNEL | {"masqueradeBeyond": beyond}
    result = add(host, conf, pod := host.netns("c1"))
    assert datagram(host, pod, outside, "192.0.2.2") == (ips(result)[0] if own else "192.0.2.1")
    assert datagram(host, pod, outside, "198.51.100.2") == "198.51.100.1"


@pytest.mark.parametrize(("key", "value"), [("masqueradeExcept", ["10.0.0.0/99"]), ("ipMasqBackend", "ebtables")])
def test_impossible_masquerade_is_refused(host: Host, key: str, value: object) -> None:
    reply = refused(host, bridge_conf(ipMasq=True, **{key: value}), host.netns("c1"))
    assert reply.code == 7
    assert key in words(reply)
