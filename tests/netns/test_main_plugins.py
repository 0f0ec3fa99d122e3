"""Every main plugin but bridge: ADD is all or nothing, DEL and GC leave nothing, at each operation and at each kill.

What a plugin does is in the recorded cases (integration/golden-plugins); here is what all of them share.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from cni_py.config.models import HostDeviceConfig
from cni_py.netlink.socket import open_host
from cni_py.plugins.main import host_device
from support import faults
from support.agents import Agent
from support.mains import IPAM, MAINS, has_kind, missing, parameters, prepare
from support.namespaces import GONE, Host, Sandbox
from support.pods import add, addresses, check, delete, gc, link, repair, routes, state, without_empty_reservations, words

pytestmark = pytest.mark.netns

KILLS = 5
"""Moments of a call at which a test kills it, other ones for each plugin; with `make test-long` ten times as many."""
FEWEST = 3  # a call need not reach as many operations as the one that was counted
STRIDE = 4
"""Every fourth step fails in turn; with `make test-long` each."""
MAX_STEPS = 120
PREFERRED = ("sysctl -w net/ipv", "last_reserved_ip", "/run/cni-py")
"""Steps that ADD can do without: the journal says so."""

every_plugin = pytest.mark.parametrize("plugin", parameters())


@pytest.fixture
def host(host: Host) -> Host:
    faults.install(host)
    return prepare(host)


def two_pods(host: Host) -> tuple[Sandbox, Sandbox]:
    return host.netns("c1"), host.netns("c2")


def test_every_main_plugin_is_tested() -> None:
    assert not missing()


@every_plugin
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_second_pod_leaves_no_trace(host: Host, plugin: str, verb: str) -> None:
    first, second = two_pods(host)
    conf = MAINS[plugin].conf(plugin, "c2")
    add(host, MAINS[plugin].conf(plugin), first)
    before = state(host, first, second)
    add(host, conf, second)
    assert state(host, first, second) != before
    if verb == "DEL":
        delete(host, conf, second)
    else:
        gc(host, conf, ("c1", "eth0"))
    assert state(host, first, second) == before


@every_plugin
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_right_after_add_all_is_well(host: Host, plugin: str, version: str) -> None:
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin, cniVersion=version)
    result = add(host, conf, pod)
    for _ in range(2):
        reply = check(host, conf, pod, result)
        assert (reply.rc, reply.json) == (0, None), reply


@every_plugin
@pytest.mark.parametrize(
    "damage", ["ip link set eth0 down", "ip addr flush dev eth0", "ip route del 10.7.0.0/16", "ip link set eth0 mtu 1280"]
)
def test_check_sees_what_was_changed_in_the_sandbox(host: Host, plugin: str, damage: str) -> None:
    """And the hints of the differences repair it."""
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    result = add(host, conf, pod)
    host.run(damage, pod)
    assert check(host, conf, pod, result).code == 103
    reply = repair(host, conf, pod, result)
    assert reply.rc == 0, reply


@every_plugin
def test_add_takes_everything_back_whichever_step_fails(host: Host, longer: int, plugin: str) -> None:
    first, second = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    conf = MAINS[plugin].conf(plugin, "c2")
    before = state(host, first, second)
    seen = []
    for number in range(1, MAX_STEPS, STRIDE if longer == 1 else 1):
        reply, line = faults.call(host, "ADD", conf, "refuse", number, sandbox=second, container_id="c2")
        if line is None:
            assert reply.rc == 0, reply
            break
        seen.append(line)
        if reply.rc == 0:
            assert any(preferred in line for preferred in PREFERRED), f"ADD succeeded without: {line}"
            delete(host, conf, second)
        else:
            assert reply.code in (5, 101), f"{line}: {reply}"
        assert state(host, first, second) == before, f"after a failure of: {line}"
    else:
        raise AssertionError("no end of steps")
    assert len(seen) >= 2, seen
    assert check(host, conf, second, reply.json).rc == 0
    delete(host, conf, second)
    assert state(host, first, second) == before


@every_plugin
@pytest.mark.parametrize(("kind", "errno"), [("lost", "ENOBUFS"), ("read", "EIO")])
def test_add_takes_everything_back_when_an_answer_is_lost(host: Host, longer: int, plugin: str, kind: str, errno: str) -> None:
    """The kernel made the change without an acknowledgement, or does not answer a question."""
    first, second = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    conf = MAINS[plugin].conf(plugin, "c2")
    before = state(host, first, second)
    for number in range(1, MAX_STEPS, STRIDE if longer == 1 else 1):
        reply, line = faults.call(host, "ADD", conf, kind, number, errno, sandbox=second, container_id="c2")
        if line is None:
            assert reply.rc == 0, reply
            delete(host, conf, second)
            break
        if reply.rc == 0:
            assert kind == "read", line
            delete(host, conf, second)
        else:
            assert reply.code == 101, f"{line}: {reply}"
        assert state(host, first, second) == before, f"{number}: {line}"
    else:
        raise AssertionError("no end of steps")
    assert number >= 3


@every_plugin
def test_del_names_what_is_left_and_the_next_one_does_it(host: Host, longer: int, plugin: str) -> None:
    first, second = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    conf = MAINS[plugin].conf(plugin, "c2")
    before = state(host, first, second)
    for number in range(1, MAX_STEPS, STRIDE if longer == 1 else 1):
        add(host, conf, second)
        reply, line = faults.call(host, "DEL", conf, "refuse", number, sandbox=second, container_id="c2")
        if line is None:
            assert reply.rc == 0, reply
            assert state(host, first, second) == before
            break
        assert reply.rc == 0 or "left behind" in words(reply) or line.split()[-1] in words(reply), f"{line}: {reply}"
        delete(host, conf, second)
        assert state(host, first, second) == before, line
    else:
        raise AssertionError("no end of steps")
    assert number >= 3


@every_plugin
@pytest.mark.parametrize("cleaner", ["DEL", "GC"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_kill_before_each_operation(host: Host, longer: int, plugin: str, verb: str, cleaner: str) -> None:
    """Call as many of these as there is time for, in any order; after one DEL, or one GC, nothing is left."""
    first, second = two_pods(host)
    conf = MAINS[plugin].conf(plugin, "c2")
    of: dict[str, Any] = {"sandbox": second, "container_id": "c2"}
    add(host, MAINS[plugin].conf(plugin), first)
    before = state(host, first, second)

    def clean() -> None:
        if cleaner == "DEL":
            delete(host, conf, second)
        else:
            gc(host, conf, ("c1", "eth0"))

    if verb == "DEL":
        add(host, conf, second)
    total = faults.count(host, verb, conf, "kill", **of)
    clean()
    kills, leaks = 0, []
    for number in random.Random(f"{plugin} {verb} {cleaner}").sample(range(1, total + 1), total):
        if kills >= KILLS * longer:
            break
        if verb == "DEL":
            add(host, conf, second)
        reply, line = faults.call(host, verb, conf, "kill", number, **of)
        kills += line is not None
        assert line is None or faults.killed(reply), (line, reply)
        clean()
        if without_empty_reservations(state(host, first, second)) != before:
            leaks.append(f"{number}: {line}")
            delete(host, conf, second)
    assert leaks == []
    assert kills >= min(FEWEST, total)
    add(host, conf, second)


@pytest.mark.parametrize(
    "plugin", parameters(*[plugin for plugin in MAINS if plugin != "host-device"])
)  # its device is deleted with the sandbox
def test_del_without_a_sandbox_and_with_one_that_is_gone(host: Host, plugin: str) -> None:
    conf = MAINS[plugin].conf(plugin)
    for pod in (None, GONE):
        sandbox = host.netns("c1")
        add(host, conf, sandbox)
        host.delete_netns(sandbox)
        for _ in range(2):
            host.ok(plugin, "DEL", conf, sandbox=pod)
        assert [name for name in host.files() if "last_reserved" not in name] == []


@every_plugin
@pytest.mark.parametrize("ipam", [{"type": "static"}, {"type": "none"}], ids=["no address", "no plugin"])
def test_failure_of_the_ipam_plugin_leaves_nothing(host: Host, plugin: str, ipam: dict[str, str]) -> None:
    """Go's leave the link, or the device in the sandbox."""
    first, pod = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    before = state(host, first, pod)
    conf = MAINS[plugin].conf(plugin, "c2", ipam=ipam)
    assert host.call(plugin, "ADD", conf, sandbox=pod, container_id="c2").rc == 1
    assert state(host, first, pod) == before


@every_plugin
def test_del_after_the_interface_was_deleted(host: Host, plugin: str) -> None:
    """Another process deleted it, or the link below it. Go's ptp leaves masquerade then; others need the link below for DEL."""
    first, pod = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    before = state(host, first, pod)
    conf = MAINS[plugin].conf(plugin, "c2")
    add(host, conf, pod)
    if MAINS[plugin].keys("c2").get("master"):
        host.run("ip link del up0")
        before = None
    elif plugin == "host-device":
        host.run("ip link set eth0 netns 1", pod)
    else:
        host.run("ip link del eth0", pod)
    delete(host, conf, pod)
    after = state(host, first, pod)
    assert before in (None, after)
    assert not any("c2" in text for text in after["files"].values()), "its addresses are released"
    assert not any("c2" in name for name in after["records"])


@every_plugin
def test_interface_of_another_network_is_left(host: Host, plugin: str) -> None:
    """The name is taken by the first network: the second ADD fails, and its DEL leaves the first network's interface."""
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    result = add(host, conf, pod)
    other = MAINS[plugin].conf(plugin, "c2", name="other")
    assert host.call(plugin, "ADD", other, sandbox=pod).rc == 1
    delete(host, other, pod)
    assert check(host, conf, pod, result).rc == 0
    gc(host, other)
    assert check(host, conf, pod, result).rc == 0
    delete(host, conf, pod)
    assert "eth0" not in host.run("ip -br link", pod)


@every_plugin
def test_mtu_and_addresses_are_those_of_the_result(host: Host, plugin: str) -> None:
    pod = host.netns("c1")
    result = add(host, MAINS[plugin].conf(plugin), pod)
    mine = next(interface for interface in result["interfaces"] if interface.get("sandbox"))
    assert mine["mtu"] == link(host, "eth0", pod)["mtu"]
    assert mine["mac"] == link(host, "eth0", pod)["address"]
    assert sorted(ip["address"] for ip in result["ips"]) == sorted(addresses(host, "eth0", pod))


# --- ptp --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "ip link set {end} down",
        "ip addr del 10.1.0.1/32 dev {end}",
        "ip addr del fd00:1::1/128 dev {end}",
        "ip route del 10.1.0.2",
        "ip -6 route del fd00:1::2",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
        "nft flush map inet cni_py masq4",
        "ip netns exec c1 ip route del 10.1.0.1",
        "ip netns exec c1 ip route del 10.1.0.0/24",
        "ip netns exec c1 ip -6 route del fd00:1::/64",
    ],
)
def test_check_of_ptp_sees_what_was_changed(host: Host, damage: str) -> None:
    pod = host.netns("c1")
    conf = MAINS["ptp"].conf("ptp")
    result = add(host, conf, pod)
    host.run(damage.format(end=result["interfaces"][0]["name"]))
    assert check(host, conf, pod, result).code == 103
    reply = repair(host, conf, pod, result)
    assert reply.rc == 0, reply


def test_two_addresses_of_one_subnet(host: Host) -> None:
    """One route to the gateway, one to the subnet; both addresses can be reached from the host."""
    pod = host.netns("c1")
    listed = [{"address": f"10.1.0.{n}/24", "gateway": "10.1.0.1"} for n in (5, 6)]
    listed += [{"address": f"fd00:1::{n}/64", "gateway": "fd00:1::1"} for n in (5, 6)]
    conf = MAINS["ptp"].conf("ptp", ipam={"type": "static", "addresses": listed})
    result = add(host, conf, pod)
    assert check(host, conf, pod, result).rc == 0
    for address in ("10.1.0.5", "10.1.0.6", "fd00:1::5", "fd00:1::6"):
        host.run(f"ping -qc1 -W2 {address}")


def test_route_of_the_ipam_plugin_to_the_subnet_itself(host: Host) -> None:
    """A flannel network of one subnet has it: Go fails ("file exists")."""
    pod = host.netns("c1")
    ipam = IPAM | {"routes": [{"dst": "10.1.0.0/24"}, {"dst": "fd00:1::/64"}, {"dst": "0.0.0.0/0"}]}
    conf = MAINS["ptp"].conf("ptp", ipam=ipam)
    result = add(host, conf, pod)
    assert check(host, conf, pod, result).rc == 0
    for family, subnet in ((4, "10.1.0.0/24"), (6, "fd00:1::/64")):
        [route] = host.json(f"ip -j -{family} route show {subnet}", pod)
        assert route["gateway"]
        assert route["prefsrc"]


def test_stale_route_to_an_address_is_replaced(host: Host) -> None:
    """A veth of a crashed plugin has the route to the address that the pod gets."""
    host.run(
        "ip link add old0 type veth peer name old1; ip link set old0 up; ip link set old1 up; ip route add 10.1.0.2 dev old0"
    )
    add(host, MAINS["ptp"].conf("ptp"), host.netns("c1"))
    host.run("ping -qc1 -W2 10.1.0.2")


# --- macvlan, ipvlan, vlan --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", parameters("macvlan", "ipvlan", "vlan"))
def test_name_of_the_sandbox_may_be_taken_on_the_host(host: Host, plugin: str) -> None:
    host.run("ip link add eth0 type veth peer name far")
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    result = add(host, conf, pod)
    assert check(host, conf, pod, result).rc == 0
    delete(host, conf, pod)
    assert "eth0" in host.run("ip -br link")


@pytest.mark.parametrize("plugin", ["macvlan", "ipvlan", "vlan", "dummy"])
def test_kernel_without_links_of_the_kind_is_named(host: Host, plugin: str) -> None:
    """CONFIG_…: of ADD with nothing left, and of STATUS."""
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    if has_kind(plugin):
        host.ok(plugin, "STATUS", conf)
        return
    before = state(host, pod)
    for verb in ("ADD", "STATUS"):
        reply = host.call(plugin, verb, conf, sandbox=pod)
        assert reply.code == 50
        assert "CONFIG_" in reply.json["msg"]
        assert "modprobe" in reply.json["details"]
    assert state(host, pod) == before


@pytest.mark.parametrize("damage", ["ip link set eth0 type macvlan mode vepa", "ip link set eth0 address c2:11:22:33:44:99"])
def test_check_of_macvlan_sees_what_was_changed(host: Host, damage: str) -> None:
    pod = host.netns("c1")
    conf = MAINS["macvlan"].conf("macvlan")
    result = add(host, conf, pod)
    host.run(damage, pod)
    assert check(host, conf, pod, result).code == 103


def test_master_of_the_default_route_is_chosen_at_add_alone(host: Host) -> None:
    """CHECK and DEL succeed when the default route leads elsewhere, or nowhere."""
    host.run("ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.254")
    pod = host.netns("c1")
    conf = MAINS["macvlan"].conf("macvlan", master="")
    result = add(host, conf, pod)
    host.run("ip route del default")
    assert check(host, conf, pod, result).rc == 0
    delete(host, conf, pod)


# --- tap --------------------------------------------------------------------------------------------------------------


def test_check_of_tap_sees_another_owner(host: Host) -> None:
    pod = host.netns("c1")
    conf = MAINS["tap"].conf("tap")
    result = add(host, conf, pod)
    reply = check(host, conf | {"owner": 1001}, pod, result)
    assert reply.code == 103
    assert "user 1001" in reply.json["details"]


def create_labelled(path: str, attribute: str) -> str:
    """Create a tap device with a label, on a machine that seems to have SELinux. Returns: the error, if there is one."""
    from cni_py.errors import KernelRefused
    from cni_py.kernel import tap
    from cni_py.kernel.netns import open_sandbox

    tap._SELINUX, tap._LABEL_OF_NEXT_PROGRAM = "/run", attribute
    with open_sandbox(path) as netns:
        try:
            tap.create(netns, "eth0", tap.Tap(True, False, False, 1000, None), "system_u:system_r:container_t:s0")
        except KernelRefused as error:
            return str(error)
    return ""


def test_label_is_that_of_the_program_that_creates_the_device(host: Host) -> None:
    pod = host.netns("c1")
    host.write("/run/label", "")
    assert host.do(create_labelled, pod.path, "/run/label") == ""
    assert host.path("/run/label").read_text() == "system_u:system_r:container_t:s0"
    data = link(host, "eth0", pod)["linkinfo"]["info_data"]
    assert (data["type"], data["multi_queue"], data["persist"]) == ("tap", True, True)
    assert "busy" in host.do(create_labelled, pod.path, "/run/label")


def test_label_that_the_kernel_refuses(host: Host) -> None:
    pod = host.netns("c1")
    assert "ip tuntap add dev eth0" in host.do(create_labelled, pod.path, "/run/none/label")
    assert "eth0" not in host.run("ip -br link", pod)


# --- host-device ------------------------------------------------------------------------------------------------------

DEVICE = MAINS["host-device"].conf("host-device")


def where(host: Host, pod: Sandbox) -> list[str]:
    """Names and aliases of the device, by the address of its wire's other end: MAC addresses stay."""
    found = [("host", one) for one in host.json("ip -j link")] + [("pod", one) for one in host.json("ip -j link", pod)]
    mac = host.path("/run/mac").read_text().strip()
    return [f"{place} {one['ifname']} {one.get('ifalias', '')}".strip() for place, one in found if one.get("address") == mac]


@pytest.mark.parametrize("cleaner", ["DEL", "GC"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_killed_host_device_is_somewhere_under_its_name(host: Host, verb: str, cleaner: str) -> None:
    """Find it, at each kill point, on the host under its own name, or in the sandbox with that name as alias; DEL or GC bring it back."""
    pod = host.netns("c1")
    host.run('ip -j link show nic1 | sed \'s/.*"address":"\\([^"]*\\).*/\\1/\' >/run/mac')
    of: dict[str, Any] = {"sandbox": pod}
    if verb == "DEL":
        add(host, DEVICE, pod)
    total = faults.count(host, verb, DEVICE, "kill", **of)
    delete(host, DEVICE, pod)
    seen = set()
    for number in range(1, total + 1):
        if verb == "DEL":
            add(host, DEVICE, pod)
        faults.call(host, verb, DEVICE, "kill", number, **of)
        [found] = where(host, pod)
        assert found in ("host nic1", "pod eth0 nic1")
        seen.add(found)
        if cleaner == "DEL":
            delete(host, DEVICE, pod)
        else:
            gc(host, DEVICE)
        assert where(host, pod) == ["host nic1"], f"{verb} killed before operation {number}"
    assert len(seen) == 2


@pytest.mark.parametrize("named", [{}, {"device": "", "hwaddr": "02:00:00:00:00:01"}], ids=["device", "hwaddr"])
@pytest.mark.parametrize("records", ["with", "without"])
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_physical_device_of_a_deleted_sandbox_gets_its_name_back(
    host: Host, verb: str, records: str, named: dict[str, str]
) -> None:
    """The kernel gives a physical device back to the host under the sandbox's name and with its alias, as is done here by hand."""
    host.run(
        "ip link set nic1 address 02:00:00:00:00:01; ip link add other type veth peer name far; ip link set other alias nic9"
    )
    pod, conf = host.netns("c1"), DEVICE | named
    add(host, conf, pod)
    host.run("ip -n c1 link set eth0 netns 1")
    host.delete_netns(pod)
    assert link(host, "eth0")["ifalias"] == "nic1"
    if records == "without":
        host.run("rm -r /run/cni-py/attachments")
    if verb == "DEL":
        host.ok("host-device", "DEL", conf)
    elif records == "with":
        gc(host, conf)
    else:
        host.ok("host-device", "DEL", conf, sandbox=GONE)
    assert "ifalias" not in link(host, "nic1")
    assert link(host, "other")["ifalias"] == "nic9"
    assert [name for name in host.files() if "last_reserved" not in name] == []


def given_back_by_a_deleted_sandbox(host: Host) -> None:
    """Do by hand to nic1 what the kernel does to a physical device."""
    pod = host.netns("c1")
    add(host, DEVICE, pod)
    host.run("ip -n c1 link set eth0 netns 1")
    host.delete_netns(pod)
    assert link(host, "eth0")["ifalias"] == "nic1"


def test_next_pod_gets_a_device_that_no_del_brought_back(host: Host) -> None:
    given_back_by_a_deleted_sandbox(host)
    pod = host.netns("c1")
    result = add(host, DEVICE, pod)
    assert check(host, DEVICE, pod, result).rc == 0
    delete(host, DEVICE, pod)
    assert "ifalias" not in link(host, "nic1")


def test_device_in_its_place_is_found_without_listing_links(host: Host) -> None:
    """A node has a link per pod: ADD of one device must not read them all."""
    host.do(find_lost_without_listing, "nic1")


def find_lost_without_listing(name: str) -> None:
    """Raises: AssertionError if links are listed."""
    with pytest.MonkeyPatch.context() as patch, open_host() as rtnl:
        patch.setattr(rtnl, "dump", lambda *_, **__: pytest.fail("links are listed"))
        assert host_device.find_lost(rtnl, name, HostDeviceConfig(device=name)) is None


def test_sweep_gives_a_device_its_name(host: Host, cni_py: Path) -> None:
    given_back_by_a_deleted_sandbox(host)
    host.run("ip link add other type veth peer name far; ip link set other alias nic9")
    done = host.execute([str(cni_py), "sweep", "--grace", "0", "--json"])
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {finding["kind"]: finding["outcome"] for finding in json.loads(done.stdout)["findings"]}
    assert kinds["device"] == kinds["record"] == "removed"
    assert "ifalias" not in link(host, "nic1")
    assert link(host, "other")["ifalias"] == "nic9"


def test_failed_add_leaves_the_device_with_addresses_and_routes(host: Host) -> None:
    host.run("ip link set nic1 up; ip addr add 192.0.2.9/24 brd + dev nic1; ip -6 addr add fd00:9::9/64 dev nic1 nodad")
    host.run("ip link set nic1 alias uplink; ip route add 198.51.100.0/24 via 192.0.2.1")
    pod = host.netns("c1")
    before = state(host, pod)
    reply = host.call("host-device", "ADD", DEVICE | {"ipam": {"type": "static"}}, sandbox=pod)
    assert reply.rc == 1
    assert state(host, pod) == before


def test_interface_with_another_alias_is_left_in_the_sandbox(host: Host) -> None:
    pod = host.netns("c1")
    host.run("ip link add eth0 type veth peer name far; ip link set eth0 alias uplink", pod)
    delete(host, DEVICE, pod)
    assert "eth0" in host.run("ip -br link", pod)


# --- as flannel's delegate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", parameters("ptp", "macvlan", "ipvlan"))
def test_delegate_of_flannel(host: Host, plugin: str) -> None:
    host.write_subnet_env()
    pod = host.netns("c1")
    before = state(host, pod)
    delegate = {"type": plugin} | ({} if plugin == "ptp" else {"master": "up0"})
    conf = {"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "delegate": delegate, "masqueradeBeyond": "network"}
    result = add(host, conf, pod)
    assert addresses(host, "eth0", pod) == ["10.244.91.2/24"]
    assert link(host, "eth0", pod)["mtu"] == 1450
    assert check(host, conf, pod, result).rc == 0
    if plugin == "ptp":
        assert "beyond-10.244.0.0_16" in host.run("nft list table inet cni_py")
    delete(host, conf, pod)
    after = state(host, pod)
    assert (after["files"], after["records"], after[str(pod)]) == (before["files"], before["records"], before[str(pod)])
    assert host.host_ends() == ["nic1", "nic2", "up0", "up1", "wire1", "wire2"]


# --- the journal ------------------------------------------------------------------------------------------------------


def typed(host: Host, explained: str) -> None:
    """Type the journal's commands, but for those that write files and the packet filter."""
    lines = [re.sub(r"  \([\d.]+ ms\)$", "", line) for line in explained.splitlines()]
    commands = [line for line in lines if line.startswith(("ip ", "nsenter ", "sysctl "))]
    host.run("\n".join(commands))


@every_plugin
def test_commands_of_the_journal_can_be_typed(host: Host, bin_dir: Path, plugin: str) -> None:
    """Commands of ADD create the same on another host, those of DEL delete it there."""
    pod, conf = host.netns("c1"), MAINS[plugin].conf(plugin)
    explain: dict[str, str | None] = {"CNI_PY_EXPLAIN": "1"}
    with Host(bin_dir) as other:
        prepare(other)
        other_pod = other.netns("c1")
        before = shown(other, other_pod)
        added = host.call(plugin, "ADD", conf, sandbox=pod, env=explain)
        assert added.rc == 0, added
        typed(other, added.stderr)
        assert shown(other, other_pod) == shown(host, pod)
        deleted = host.call(plugin, "DEL", conf, sandbox=pod, env=explain)
        assert deleted.rc == 0, deleted
        typed(other, deleted.stderr)
        assert shown(other, other_pod) == before
        if plugin == "host-device":
            assert "nic1" in other.run("ip -br link")


def shown(host: Host, pod: Sandbox) -> list[Any]:
    """The pod's links, addresses and routes, without MAC addresses and numbers."""
    links = [
        (
            one["ifname"],
            one["mtu"],
            one["flags"],
            one.get("linkinfo", {}).get("info_kind"),
            one.get("ifalias", ""),
            sorted(map(str, addresses(host, one["ifname"], pod))),
        )
        for one in host.json("ip -j -d link show", pod)
    ]
    every = [routes(host, pod, table="all", family=family) for family in (4, 6)]
    return [
        links,
        [
            sorted(
                (dst, str(route.get("gateway")), route.get("table"))
                for dst, route in of.items()
                if "fe80" not in dst and "ff00" not in dst
            )
            for of in every
        ],
    ]


# --- several networks in one pod --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_every_plugin_in_one_pod(host: Host, backwards: bool) -> None:
    """Multus attaches them so: each its interface and its network; each can be checked beside the others, and deleted first."""
    pod = host.netns("c1")
    before = state(host, pod)
    plugins = [plugin for plugin, main in MAINS.items() if has_kind(main.kind)]
    confs = {}
    for number, plugin in enumerate(plugins):
        subnet = {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.{number}.0.0/24"}]],
            "routes": [{"dst": f"172.16.{number}.0/24"}],
        }
        confs[plugin] = MAINS[plugin].conf(plugin, name=f"net{number}", ipam=subnet, mtu=0)
    results = {plugin: add(host, confs[plugin], pod, ifname=f"net{number}") for number, plugin in enumerate(plugins)}
    for number, plugin in reversed(list(enumerate(plugins))) if backwards else enumerate(plugins):
        options = {"ifname": f"net{number}"}
        assert check(host, confs[plugin], pod, results[plugin], **options).rc == 0, plugin
        gc(host, confs[plugin], ("c1", options["ifname"]))
        assert check(host, confs[plugin], pod, results[plugin], **options).rc == 0, plugin
        delete(host, confs[plugin], pod, **options)
    after = state(host, pod)
    assert (after["files"], after["records"]) == (before["files"], before["records"])
    assert after[str(pod)]["addresses"] == before[str(pod)]["addresses"]


@pytest.mark.parametrize("plugin", parameters("ptp", "macvlan", "ipvlan", "vlan", "host-device"))
def test_check_finds_routes_that_sbr_moved(host: Host, plugin: str) -> None:
    """CHECK finds it in the table of the pod's address, and misses one that is in no table."""
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    sbr = {"cniVersion": "1.1.0", "name": "net", "type": "sbr"}
    result = add(host, conf, pod)
    last = host.ok("sbr", "ADD", sbr, sandbox=pod, prev=result)
    reply = check(host, conf, pod, last)
    assert reply.rc == 0, reply
    host.run("ip route flush table 100", pod)
    assert check(host, conf, pod, last).code == 103
    host.ok("sbr", "DEL", sbr, sandbox=pod, prev=last)
    delete(host, conf, pod)
    assert len(host.json("ip -j rule show", pod)) == 3, "local, main, default"


# --- with the agent ---------------------------------------------------------------------------------------------------


@every_plugin
def test_agent_does_the_same(host: Host, plugin: str) -> None:
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    with Agent(host):
        before = state(host, pod)
        result = add(host, conf, pod)
        assert check(host, conf, pod, result).rc == 0
        host.ok(plugin, "STATUS", MAINS[plugin].conf(plugin, "c2"))
        delete(host, conf, pod)
        after = state(host, pod)
    assert after["files"] == before["files"]
    assert after[str(pod)] == before[str(pod)]
