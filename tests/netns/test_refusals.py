"""Refusals that one must expect: each names its object and the next step, in the words that people search for."""

from __future__ import annotations

import json
from errno import errorcode
from string import Formatter
from typing import Any

import pytest

from cni_py.errors import KernelRefused
from cni_py.kernel import refusals
from support.namespaces import Host
from support.pods import V4, V6, bridge_conf, sysctl

OBJECTS = {
    "veth": {"name", "peer", "mtu", "mac", "enter"},
    "link": {"name", "netns", "kind", "master", "enter"},
    "move": {"name", "netns", "enter"},
    "bridge": {"name", "mtu", "enter"},
    "address": {"link", "address", "enter"},
    "route": {"link", "dst", "gateway", "enter"},
    "up": {"name", "enter"},
    "rename": {"name", "new", "enter"},
    "master": {"name", "master", "enter"},
    "mtu": {"name", "mtu", "enter"},
    "mac": {"name", "mac", "enter"},
}
"""Arguments that each operation passes to the table."""


@pytest.mark.parametrize("row", refusals.TABLE, ids=lambda row: f"{row[0]}-{errorcode[row[1]]}")
def test_row_names_its_object_and_the_next_step(row: tuple[str, int]) -> None:
    operation, number = row
    sentence, hint = refusals.TABLE[row]
    named = {field for text in (sentence, hint) for _, field, _, _ in Formatter().parse(text) if field}
    assert named <= OBJECTS[operation]
    assert hint
    values = {name: f"<{name}>" for name in OBJECTS[operation]}
    with pytest.raises(KernelRefused) as error:
        refusals.explain(operation, KernelRefused('the kernel refused: "ip x"', "File exists", errno=number), **values)
    assert error.value.errno == number
    assert error.value.details == 'File exists: the kernel refused: "ip x"'
    assert "{" not in error.value.msg + error.value.hint


def test_refusal_that_is_not_in_the_table_stays_as_it_is() -> None:
    refusals.explain("route", KernelRefused("a", "b", errno=12345), link="x")


def route(dst: str, **more: Any) -> dict[str, Any]:
    return {"ipam": {"routes": [{"dst": dst} | more]}}


CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    # configuration, what is done before, words of the error
    "interface-exists": (bridge_conf(V4), "ip -n c1 link add eth0 type bridge", [
        'container veth name ("eth0") peer provided ("veth', '") already exists', "nsenter --net=/run/netns/c1 ip -d link show eth0",
    ]),
    "interface-exists-ptp": (bridge_conf(V4, type="ptp"), "ip -n c1 link add eth0 type bridge", ['container veth name ("eth0") peer']),
    "interface-exists-macvlan": (
        bridge_conf(V4, type="macvlan", master="br0"), "ip link add br0 type bridge; ip -n c1 link add eth0 type bridge",
        ['"eth0" already exists in "/run/netns/c1"', "ip -d link show eth0"],
    ),
    "gateway-elsewhere": (bridge_conf(V4, **route("10.7.0.0/16", gw="10.99.0.1")), "", [
        'gateway "10.99.0.1"', '"10.7.0.0/16"', "cannot be reached", "ip route show", "Nexthop has invalid gateway",
    ]),
    "gateway-elsewhere-ipv6": (bridge_conf(V6, **route("fd07::/16", gw="fd99::1")), "", [
        'gateway "fd99::1"', '"fd07::/16"', "cannot be reached", "No route to host",
    ]),
    "gateway-elsewhere-ptp": (bridge_conf(V4, type="ptp", **route("10.7.0.0/16", gw="10.99.0.1")), "", ["cannot be reached"]),
    "route-twice": (bridge_conf(V4, ipam={"routes": [{"dst": "10.7.0.0/16"}, {"dst": "10.7.0.0/16"}]}), "", [
        '"10.7.0.0/16"', "named twice", "File exists",
    ]),
    "route-twice-default": (bridge_conf(V4, isDefaultGateway=True, **route("0.0.0.0/0")), "", [
        '"0.0.0.0/0"', "named twice", '"isDefaultGateway"',
    ]),
    "mac-of-a-group": (bridge_conf(V4, runtimeConfig={"mac": "01:00:5e:00:00:01"}), "", ["01:00:5e:00:00:01", "multicast", '"eth0"']),
    "mtu-too-small": (bridge_conf(V4, mtu=60), "", ["MTU of 60", "68 to 65535"]),
    "address-of-a-group": (bridge_conf([{"subnet": "ff05:1::/64"}]), "", ['"ff05:1::2/64"', '"eth0"', "no group"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refusal_is_said_in_words(host: Host, case: str) -> None:
    conf, before, words = CASES[case]
    pod = host.netns("c1")
    host.run(before)
    reply = host.call(conf["type"], "ADD", conf, sandbox=pod)
    assert reply.rc == 1
    text = f"{reply.json['msg']} {reply.json['details']}"
    assert [word for word in words if word not in text] == [], text
    assert "the kernel refused" not in reply.json["msg"]
    assert host.call(conf["type"], "DEL", conf, sandbox=pod).rc == 0


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
@pytest.mark.parametrize("where", ["default", "all default"])
def test_ipv6_is_switched_on_for_devices_of_ours(host: Host, plugin: str, where: str) -> None:
    host.run(f"for kind in {where}; do echo 1 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6; done")
    conf = bridge_conf(V4, V6, type=plugin, isGateway=True)
    result = host.ok(plugin, "ADD", conf, sandbox=host.netns("c1"))
    ours = result["interfaces"][0]["name"]
    assert sysctl(host, f"ipv6/conf/{ours}/disable_ipv6") == "0"
    assert "fd00:1::1" in host.run(f"ip -6 addr show {ours}")


def test_ipv6_that_cannot_be_switched_on_names_the_setting(host: Host) -> None:
    host.run("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
    host.run("ip link add br0 type bridge; mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys")
    reply = host.call("bridge", "ADD", bridge_conf(V6, isGateway=True), sandbox=host.netns("c1"))
    assert reply.code == 101
    assert '"br0" cannot have the address "fd00:1::1/64"' in reply.json["msg"]
    assert "sysctl -w net/ipv6/conf/br0/disable_ipv6=0" in reply.json["details"]


@pytest.mark.parametrize("backend", [{}, {"backend": "iptables"}])
def test_reason_comes_first_where_the_chain_of_kube_proxy_is_missing(host: Host, backend: dict[str, Any]) -> None:
    pod = host.netns("c1")
    result = host.ok("bridge", "ADD", bridge_conf(V4, isGateway=True), sandbox=pod)
    ports = [{"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"} for number in range(40)]
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "externalSetMarkChain": "KUBE-MARK-MASQ",
        "runtimeConfig": {"portMappings": ports},
    }
    reply = host.call("portmap", "ADD", conf | backend, sandbox=pod, prev=result)
    assert reply.code == 101
    assert 'has no chain "KUBE-MARK-MASQ", which "externalSetMarkChain" names' in reply.json["msg"][:120]
    assert "kube-proxy" in json.dumps(reply.json)
