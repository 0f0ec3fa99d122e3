"""A container that comes back with its id after its runtime was killed: no DEL was called, and its namespace no longer exists.

It is attached, with the addresses that it had. While the recorded namespace lives, in whatever way, ADD is refused.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agents import Agent
from support.namespaces import Host, Sandbox
from support.pods import (
    DUAL_ENV,
    FLANNEL,
    V4,
    V6,
    add,
    addresses,
    bridge_conf,
    check,
    delete,
    layer_2_conf,
    records,
    state,
    words,
)
from support.waiting import SECONDS, until
from support.warm import WarmHost

BRIDGE = bridge_conf(V4, V6, isDefaultGateway=True, ipMasq=True, macspoofchk=True)
HOST_LOCAL = {"cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": BRIDGE["ipam"]}
NETWORKS: dict[str, dict[str, Any]] = {
    "flannel": FLANNEL,
    "bridge": BRIDGE,
    "iptables": BRIDGE | {"ipMasqBackend": "iptables"},
    "layer-2": layer_2_conf(),
    "host-local": HOST_LOCAL,
}


@pytest.fixture
def host(bin_dir: Path) -> Iterator[Host]:
    with WarmHost(bin_dir) as made:
        made.write_subnet_env(DUAL_ENV)
        yield made


def lose(host: Host, pod: Sandbox) -> None:
    """The runtime is killed, and the container with it: the namespace goes, and nothing else."""
    host.delete_netns(pod)


def ips(result: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in result.get("ips", [])]


@pytest.mark.parametrize("path", ["c1", "c2"], ids=["same-path", "another-path"])
@pytest.mark.parametrize("conf", NETWORKS.values(), ids=NETWORKS.keys())
def test_it_gets_its_addresses_again(host: Host, conf: dict[str, Any], path: str) -> None:
    add(host, conf, host.netns("c8"), container_id="c8")
    before = add(host, conf, pod := host.netns("c1"))
    add(host, conf, host.netns("c9"), container_id="c9")
    for _ in range(3):
        lose(host, pod)
        pod = host.netns(path)
        result = add(host, conf, pod, container_id="c1")
        assert ips(result) == ips(before)
        if conf is not HOST_LOCAL:
            assert addresses(host, "eth0", pod) == ips(before)
            assert check(host, conf, pod, result, container_id="c1").rc == 0
    plain = state(host)
    reply = host.call(conf["type"], "ADD", conf, sandbox=pod)
    assert reply.rc == 1, "the second one of a living sandbox"
    assert state(host) == plain
    delete(host, conf, pod, container_id="c1")
    assert [name for name in host.files("/var/lib/cni/networks") if "c1" in host.path(name).read_text()] == []
    assert "c1:eth0" not in "".join(records(host))


@pytest.mark.parametrize("conf", [FLANNEL, BRIDGE], ids=["flannel", "bridge"])
def test_living_sandbox_without_a_path_is_refused(host: Host, conf: dict[str, Any]) -> None:
    """A process still is in the namespace: the host end of its veth is there."""
    add(host, conf, pod := host.netns("c1"))
    process = subprocess.Popen(host.command("cat", sandbox=pod), stdin=subprocess.PIPE)
    until(lambda: host.run(f"ip netns pids {pod.name}").strip(), "the process is in the namespace")
    host.delete_netns(pod)
    other = host.netns("c2")
    before = state(host, other)
    reply = host.call(conf["type"], "ADD", conf, sandbox=other)
    assert "has been allocated to c1" in words(reply)
    assert state(host, other) == before
    process.communicate(timeout=SECONDS)
    assert ips(add(host, conf, other, container_id="c1"))


def test_host_end_that_the_kernel_deletes_in_a_moment_is_waited_for(host: Host) -> None:
    """A container is restarted under its id: its namespace is deleted, and the veth a moment after that."""
    pod = host.netns("c1")
    host.run("ip link add old0 type veth peer name old1; ip link property add dev old0 altname cni:c1:eth0:net")
    late = subprocess.Popen(
        host.command("sh", "-c", "read line; sleep 0.3; ip link del old0"), stdin=subprocess.PIPE, text=True
    )
    assert late.stdin is not None
    late.stdin.write("\n")
    late.stdin.close()
    assert ips(add(host, bridge_conf(V4), pod)) == ["10.1.0.2/24"]
    assert late.wait(SECONDS) == 0
    assert len(host.host_ends()) == 1


@pytest.mark.parametrize("asked", ["10.1.0.2", "10.1.0.77"])
def test_address_that_is_asked_for_counts(host: Host, asked: str) -> None:
    conf = bridge_conf(V4)
    before = add(host, conf, pod := host.netns("c1"))
    assert ips(before) == ["10.1.0.2/24"]
    lose(host, pod)
    result = add(host, conf, host.netns("c2"), container_id="c1", args=f"IgnoreUnknown=1;IP={asked}")
    assert ips(result) == [f"{asked}/24"]
    assert reserved(host) == [asked]


def test_pod_is_known_by_its_name(host: Host) -> None:
    """The runtime has no cached result: the record has the name, and explain finds the attachment by it."""
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1"
    add(host, BRIDGE, host.netns("c1"), args=args)
    program = f"{Path(host.bin_dir).parent.parent}/bin/cni-py"
    assert "shop/web-1" in host.run(f"{program} explain")
    assert "network net, pod shop/web-1, container c1, eth0 in /run/netns/c1" in host.run(f"{program} explain shop/web-1")


def reserved(host: Host) -> list[str]:
    names = [name.rpartition("/")[2] for name in host.files("/var/lib/cni/networks/net")]
    return sorted(name for name in names if name[0].isdigit() or ":" in name)


def test_address_out_of_the_ranges_is_released(host: Host) -> None:
    add(host, bridge_conf(V4), pod := host.netns("c1"))
    lose(host, pod)
    host.run("ip link del br0")
    result = add(host, bridge_conf([{"subnet": "10.2.0.0/24"}]), host.netns("c2"), container_id="c1")
    assert ips(result) == ["10.2.0.2/24"]
    assert reserved(host) == ["10.2.0.2"]


def test_failed_add_of_one_that_comes_back_can_be_repeated(host: Host) -> None:
    """The kernel refuses a route; the reservation of before is not in the way of the next ADD either."""
    add(host, bridge_conf(V4), pod := host.netns("c1"))
    lose(host, pod)
    other = host.netns("c2")
    before = state(host, other)
    wrong = bridge_conf(V4, ipam={"routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]})
    assert host.call("bridge", "ADD", wrong, sandbox=other).rc == 1
    after = state(host, other)
    assert after["records"] == before["records"]
    assert after[str(other)] == before[str(other)]
    assert ips(add(host, bridge_conf(V4), other, container_id="c1"))


@pytest.mark.parametrize("conf", [FLANNEL, BRIDGE], ids=["flannel", "bridge"])
def test_with_the_agent(bin_dir: Path, conf: dict[str, Any]) -> None:
    with Host(bin_dir) as host, Agent(host) as agent:
        host.write_subnet_env(DUAL_ENV)
        before = add(host, conf, pod := host.netns("c1"))
        lose(host, pod)
        assert ips(add(host, conf, host.netns("c1"))) == ips(before)
        assert agent.calls(f"{conf['type']} ADD") == 2


@pytest.mark.parametrize(
    "fault", ["mount -o remount,ro /run", "mount -o remount,size=1M /run; dd if=/dev/zero of=/run/filler bs=4k || :"]
)
def test_where_no_record_can_be_written(host: Host, fault: str) -> None:
    before = add(host, BRIDGE, pod := host.netns("c1"))
    other = host.netns("c2")
    lose(host, pod)
    host.run(fault)
    assert ips(add(host, BRIDGE, other, container_id="c1")) == ips(before)


def test_behind_the_bridge_of_go(host: Host, go_plugins: str) -> None:
    """Go's bridge executes our host-local, and is executed by our flannel."""
    host.run(f"mkdir /run/bin; ln -s {go_plugins}/bridge {host.bin_dir}/flannel {host.bin_dir}/host-local /run/bin")
    conf = FLANNEL | {"cniVersion": "1.0.0", "delegateMode": "exec", "delegate": {"isDefaultGateway": True}}
    results = []
    for name in ("c1", "c2"):
        pod = host.netns(name)
        results.append(host.ok("flannel", "ADD", conf, sandbox=pod, container_id="c1", cni_path="/run/bin"))
        lose(host, pod)
    assert ips(results[0]) == ips(results[1])
