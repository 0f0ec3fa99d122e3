"""vrf: the error of a kernel without VRFs; and, where it has them (`make test-kernel`), addresses, routes, traffic, CHECK."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from cni_py.kernel.route import Route
from cni_py.netlink.constants import RTPROT_BOOT, RTPROT_KERNEL
from cni_py.plugins.meta import vrf
from support.chained import BRIDGE, Chain, Pods, meta_conf
from support.mains import has_kind
from support.namespaces import Host
from support.pods import words

CONF = meta_conf("vrf", vrfname="blue")
needs_vrf = pytest.mark.skipif(not has_kind("vrf"), reason="this kernel has no links of kind vrf")


@pytest.fixture
def pods(host: Host) -> Pods:
    return Pods(host, Chain(CONF))


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "table"), [((), 1), ((1,), 2), ((2, 3), 1), ((1, 2, 4), 3), (range(1, 253), 256), (range(1, 257), 257)]
)
def test_lowest_free_table_is_none_of_the_kernels(used: tuple[int, ...], table: int) -> None:
    assert vrf.free_table(used) == table


def test_routes_of_main_but_the_kernels_are_moved_and_those_on_the_link_first() -> None:
    gateway = Route(ip_network("0.0.0.0/0"), gateway=ip_address("10.1.0.1"), protocol=RTPROT_BOOT)
    on_link = Route(ip_network("10.1.0.1/32"), protocol=RTPROT_BOOT, scope=253)
    elsewhere = [gateway.replace(table=100), on_link.replace(protocol=RTPROT_KERNEL)]
    assert vrf.moved_routes([gateway, *elsewhere, on_link]) == (on_link, gateway)


# --- any kernel -------------------------------------------------------------------------------------------------------


def test_kernel_without_vrfs_is_named(host: Host, pods: Pods) -> None:
    """CONFIG_NET_VRF: of ADD, with nothing left, and of STATUS."""
    pods.add_main(pod := host.netns("c1"))
    if has_kind("vrf"):
        host.ok("vrf", "STATUS", CONF)
        return
    before = pods.state(pod)
    for verb in ("ADD", "STATUS"):
        reply = pods.call(verb, pod)
        assert reply.code == 50, reply
        assert "CONFIG_NET_VRF" in words(reply)
        assert "modprobe vrf" in words(reply)
    assert pods.state(pod) == before
    pods.delete(pod)


def test_what_cannot_be_is_refused_but_not_by_delete(host: Host) -> None:
    pod = host.netns("c1")
    for name in ("", "a/b", "x" * 16):
        pods = Pods(host, Chain(meta_conf("vrf", vrfname=name)))
        pods.add_main(pod)
        for verb in ("ADD", "CHECK", "STATUS"):
            reply = pods.call(verb, pod)
            assert (reply.code, "configuration is expected to have a valid vrf name" in words(reply)) == (7, True)
        pods.delete(pod)
    pods = Pods(host, Chain(CONF))
    pods.add_main(pod)
    assert "missing prevResult from earlier plugin" in words(pods.call("ADD", pod, {}))
    host.run("ip link add blue type bridge", pod)
    assert "Netlink blue is not a VRF" in words(pods.call("ADD", pod))
    assert "expected a VRF, found a link of kind bridge" in words(pods.call("CHECK", pod))
    pods.delete(pod)
    assert "blue" in host.run("ip link", pod)


def test_sandbox_that_is_gone(host: Host, pods: Pods) -> None:
    for sandbox in (None, "/run/netns/gone"):
        host.ok("vrf", "DEL", CONF, sandbox=sandbox)


def test_versions_before_0_3_1_are_refused(host: Host) -> None:
    assert host.call("vrf", "DEL", CONF | {"cniVersion": "0.3.0"}).code == 1
    assert host.ok("vrf", "VERSION", {"cniVersion": "1.0.0"})["supportedVersions"][0] == "0.3.1"


# --- a kernel with VRFs -----------------------------------------------------------------------------------------------


@needs_vrf
def test_interface_is_in_the_vrf_with_addresses_and_routes(host: Host, pods: Pods) -> None:
    result = pods.add(pod := host.netns("c1"))
    [link] = host.json("ip -j -d addr show eth0", pod)
    assert link["master"] == "blue"
    assert {"10.1.0.2", "fd00:1::2"} <= {address["local"] for address in link["addr_info"]}
    for family in ("-4", "-6"):
        assert "default via" in host.run(f"ip {family} route show vrf blue", pod)
    assert "default" not in host.run("ip route", pod)
    assert "0% packet loss" in host.run("ip vrf exec blue ping -c1 -W5 10.1.0.1 || ping -I blue -c1 -W5 10.1.0.1", pod)
    host.ok("bridge", "CHECK", BRIDGE, sandbox=pod, prev=result)
    pods.ok("CHECK", pod, result)
    pods.ok("DEL", pod)
    assert "blue" not in host.run("ip link", pod)


@needs_vrf
def test_second_interface_shares_the_vrf(host: Host, pods: Pods) -> None:
    pods.add(pod := host.netns("c1"))
    prev = host.ok("bridge", "ADD", BRIDGE, sandbox=pod, ifname="eth1")
    host.ok("vrf", "ADD", CONF, sandbox=pod, ifname="eth1", prev=prev)
    assert host.call("vrf", "ADD", CONF, sandbox=pod, ifname="eth1", prev=prev).code == 7
    pods.ok("DEL", pod)
    assert host.json("ip -j link show eth1", pod)[0]["master"] == "blue"
    host.ok("vrf", "DEL", CONF, sandbox=pod, ifname="eth1")
    assert "blue" not in host.run("ip link", pod)


@needs_vrf
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("ip link set eth0 nomaster", 'master of "eth0"'),
        ("ip link set blue down", 'state of "blue"'),
        ("ip link del blue", 'the VRF "blue" is missing'),
    ],
)
def test_check_sees_what_was_changed(host: Host, pods: Pods, script: str, said: str) -> None:
    result = pods.add(pod := host.netns("c1"))
    host.run(script, pod)
    reply = pods.call("CHECK", pod, result)
    assert (reply.code, said in words(reply)) == (103, True), reply
    if "del" not in script:
        for difference in reply.json["differences"]:
            host.run(difference["hint"])
        pods.ok("CHECK", pod, result)


@needs_vrf
@pytest.mark.parametrize("order", [("go", "ours"), ("ours", "go")])
def test_attachments_of_the_go_plugin_are_ours_and_the_reverse(host: Host, go_plugins: str, order: tuple[str, str]) -> None:
    """ADD by one, CHECK by both, DEL by the other."""
    conf = CONF | {"cniVersion": "1.0.0"}
    pod = host.netns("c1")
    directories = {"ours": host.bin_dir, "go": go_plugins}
    prev = host.ok("bridge", "ADD", BRIDGE | {"cniVersion": "1.0.0"}, sandbox=pod)
    maker, other = (f"{directories[side]}/vrf" for side in order)
    result = host.ok(maker, "ADD", conf, sandbox=pod, prev=prev)
    assert host.json("ip -j link show eth0", pod)[0]["master"] == "blue"
    for side in (maker, other):
        host.ok(side, "CHECK", conf, sandbox=pod, prev=result)
    host.ok(other, "DEL", conf, sandbox=pod, prev=result)
    assert "blue" not in host.run("ip link", pod)


@needs_vrf
def test_delete_after_the_interface_and_without_a_name(host: Host, pods: Pods) -> None:
    """Go's fails; an empty VRF is deleted with its last interface all the same."""
    for damage in ("ip link del eth0", ""):
        pods.add(pod := host.netns("c1"))
        host.run(damage, pod)
        pods.ok("DEL", pod, {})
        assert "blue" not in host.run("ip link", pod)
        host.ok("bridge", "DEL", BRIDGE, sandbox=pod)
        host.delete_netns(pod)
