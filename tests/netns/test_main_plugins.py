"""Every main plugin but bridge: ADD is all or nothing, DEL and GC leave nothing, at each operation and at each kill.

What a plugin does is in the recorded cases (integration/golden-plugins); here is what all of them share.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from support import faults
from support.mains import MAINS, missing, parameters, prepare
from support.namespaces import GONE, Host, Sandbox
from support.pods import add, addresses, check, delete, gc, link, state, words

pytestmark = pytest.mark.netns

SECONDS = 1.5
FEWEST = 6
MAX_STEPS = 120
PREFERRED = ("sysctl -w net/ipv", "last_reserved_ip")
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
    pod = host.netns("c1")
    conf = MAINS[plugin].conf(plugin)
    result = add(host, conf, pod)
    host.run(damage, pod)
    assert check(host, conf, pod, result).code == 103


@every_plugin
def test_add_takes_everything_back_whichever_step_fails(host: Host, plugin: str) -> None:
    first, second = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    conf = MAINS[plugin].conf(plugin, "c2")
    before = state(host, first, second)
    seen = []
    for number in range(1, MAX_STEPS):
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
    assert len(seen) >= 5, seen
    assert check(host, conf, second, reply.json).rc == 0
    delete(host, conf, second)
    assert state(host, first, second) == before


@every_plugin
def test_del_names_what_is_left_and_the_next_one_does_it(host: Host, plugin: str) -> None:
    first, second = two_pods(host)
    add(host, MAINS[plugin].conf(plugin), first)
    conf = MAINS[plugin].conf(plugin, "c2")
    before = state(host, first, second)
    for number in range(1, MAX_STEPS):
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
    """As many of these as there is time for, in any order; after one DEL, or one GC, nothing is left."""
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
    kills, leaks, deadline = 0, [], time.monotonic() + SECONDS * longer
    for number in random.Random(20261130).sample(range(1, total + 1), total):
        if time.monotonic() > deadline and kills >= FEWEST:
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


def without_empty_reservations(found: dict[str, Any]) -> dict[str, Any]:
    """Drop files that were created but not written: without an owner, DEL cannot identify them. Their addresses are free."""
    kept = {name: text for name, text in found["files"].items() if text or not name.startswith("/var/lib/cni/networks/")}
    return found | {"files": kept}


@every_plugin
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


def test_stale_route_to_an_address_is_replaced(host: Host) -> None:
    """A veth of a crashed plugin has the route to the address that the pod gets."""
    host.run(
        "ip link add old0 type veth peer name old1; ip link set old0 up; ip link set old1 up; ip route add 10.1.0.2 dev old0"
    )
    add(host, MAINS["ptp"].conf("ptp"), host.netns("c1"))
    host.run("ping -qc1 -W2 10.1.0.2")
