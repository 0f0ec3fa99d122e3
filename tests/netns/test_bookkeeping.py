"""Bookkeeping decides over no call: /run full, read-only, or something in the way of what is kept in /run/cni-py.

Each fault is there from the first call on, or comes between ADD and DEL. In both cases every verb does what it does
without the fault, says once on standard error that bookkeeping is incomplete, and nothing is left but what the fault itself
keeps from being removed: records and journals, which may be deleted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agents import Agent
from support.namespaces import SUBNET_ENV, Host, Reply, Sandbox
from support.pods import FLANNEL, V4, V6, bridge_conf, gc
from support.waiting import SECONDS, until
from support.warm import WarmHost

RUN_DIR = "/run/cni-py"
BRIDGE = bridge_conf(V4, V6, isDefaultGateway=True, ipMasq=True, macspoofchk=True)
PORTMAP = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}
CHAIN = [BRIDGE, PORTMAP]
NETWORKS: dict[str, list[dict[str, Any]]] = {
    "chain": CHAIN,
    "flannel": [FLANNEL],
    "iptables": [BRIDGE | {"ipMasqBackend": "iptables"}, PORTMAP | {"backend": "iptables"}],
}

FAULTS = {
    "full": "mount -o remount,size=1M /run; dd if=/dev/zero of=/run/filler bs=4k 2>/dev/null || true",
    "no inodes": "mount -o remount,nr_inodes=$(($(find /run -xdev | wc -l) + 1)) /run; touch /run/filler || true",
    "read-only": "mount -o remount,ro /run",
    "read-only, our directory alone": f"mkdir -p {RUN_DIR}; mount --bind {RUN_DIR} {RUN_DIR}; mount -o remount,bind,ro {RUN_DIR}",
    "file": f"rm -rf {RUN_DIR}; touch {RUN_DIR}",
    "dangling link": f"rm -rf {RUN_DIR}; ln -s /nowhere/at/all {RUN_DIR}",
    "link to itself": f"rm -rf {RUN_DIR}; ln -s cni-py {RUN_DIR}",
    "fifo": f"rm -rf {RUN_DIR}; mkfifo {RUN_DIR}",
    "writable by other users": f"mkdir -p {RUN_DIR}; chmod 777 {RUN_DIR}",
    "of another user": f"mkdir -p {RUN_DIR}; chown 65534 {RUN_DIR}",
}
"""Scripts after which nothing at all can be kept."""
PATHS = (
    "attachments", "portmap", "journal", "journal/deleted", "turns.lock", "nft.lock", "sweep.lock", "boot-id", "agent.sock",
    "attachments/c1:eth0:net", "attachments/c1:eth0:cbr0", "portmap/c1:eth0:net", "journal/c1:eth0:net",
)  # fmt: skip
"""Patterns of the files that may be below /run/cni-py."""
IN_THE_WAY = {
    "file": "echo garbage >{}",
    "directory": "mkdir -p {}/something",
    "fifo": "mkfifo {}",
    "link": "ln -s /nowhere {}",
    "socket": "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{}\")'",
}


@pytest.fixture
def host(bin_dir: Path) -> Iterator[Host]:
    with WarmHost(bin_dir) as made:
        made.write_subnet_env(SUBNET_ENV)
        yield made


def of_pod(network: list[dict[str, Any]], pod: Sandbox) -> list[dict[str, Any]]:
    """The configurations with a host port of the pod's own."""
    port = {"hostPort": 8000 + int(pod.name[1:]), "containerPort": 80, "protocol": "tcp"}
    return [c | {"runtimeConfig": {"portMappings": [port]}} if c["type"] == "portmap" else c for c in network]


def add(host: Host, network: list[dict[str, Any]], pod: Sandbox) -> tuple[dict[str, Any], list[Reply]]:
    """ADD of each plugin of a network. Returns: the result, and the replies."""
    result: dict[str, Any] | None = None
    replies = []
    for conf in of_pod(network, pod):
        reply = host.call(conf["type"], "ADD", conf, sandbox=pod, container_id=pod.name, prev=result)
        assert reply.rc == 0, reply
        replies.append(reply)
        result = reply.json
    assert result is not None
    return result, replies


def delete(host: Host, network: list[dict[str, Any]], pod: Sandbox, prev: dict[str, Any] | None) -> list[Reply]:
    replies = []
    for conf in reversed(of_pod(network, pod)):
        reply = host.call(conf["type"], "DEL", conf, sandbox=pod, container_id=pod.name, prev=prev)
        assert reply.rc == 0, reply
        replies.append(reply)
    return replies


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """The result without random names and addresses."""
    return {key: value for key, value in result.items() if key != "interfaces"}


def says_it_once(reply: Reply) -> bool:
    return reply.stderr.count("bookkeeping incomplete") == 1 and reply.stderr.count("\n") == 1


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_can_be_kept(host: Host, fault: str, network: list[dict[str, Any]]) -> None:
    pod, other = host.netns("c1"), host.netns("c2")
    add(host, network, other)
    before = host.snapshot(pod, other)
    expected, quiet = add(host, network, pod)
    delete(host, network, pod, expected)
    assert [reply.stderr for reply in quiet] == [""] * len(network)
    host.run("rm -f /var/lib/cni/networks/*/last_reserved_ip.*")  # so that the same address is given
    host.run(FAULTS[fault])
    result, said = add(host, network, pod)
    assert comparable(result) == comparable(expected)
    assert all(says_it_once(reply) for reply in said), said
    for conf in of_pod(network, pod):
        assert host.call(conf["type"], "CHECK", conf, sandbox=pod, prev=result).rc == 0
    gc(host, network[0], ("c1", "eth0"), ("c2", "eth0"))
    assert host.call(network[0]["type"], "CHECK", network[0], sandbox=pod, prev=result).rc == 0
    delete(host, network, pod, result)
    assert host.snapshot(pod, other) == before
    delete(host, network, pod, result)


@pytest.mark.parametrize("network", [CHAIN, [FLANNEL]], ids=["chain", "flannel"])
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_can_be_kept_any_more(host: Host, fault: str, network: list[dict[str, Any]]) -> None:
    """The fault comes between ADD and DEL: DEL does everything, and reports success to the runtime."""
    pod, other = host.netns("c1"), host.netns("c2")
    add(host, network, other)
    before = host.snapshot(pod, other)
    result, _ = add(host, network, pod)
    host.run(FAULTS[fault])
    delete(host, network, pod, result)
    assert host.snapshot(pod, other) == before


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_something_in_the_way_of_one_path(host: Host, kind: str) -> None:
    pod = host.netns("c1")
    for name in PATHS:
        network = [FLANNEL] if name.endswith("cbr0") else CHAIN
        path = f"{RUN_DIR}/{name}"
        host.run(f"rm -rf {RUN_DIR}; mkdir -p {path.rpartition('/')[0]}; " + IN_THE_WAY[kind].format(path))
        result, said = add(host, network, pod)
        assert all(reply.stderr.count("\n") <= 1 for reply in said), (name, said)
        for conf in of_pod(network, pod):
            assert host.call(conf["type"], "CHECK", conf, sandbox=pod, prev=result).rc == 0, name
        gc(host, network[0], ("c1", "eth0"))
        delete(host, network, pod, result)
        assert host.host_ends() == [], name
        assert not [file for file in host.files("/var/lib/cni") if "/10." in file or file.endswith("/c1")], name


@pytest.mark.parametrize("fault", ["full", "read-only", "file"])
def test_failed_add_is_undone_without_bookkeeping(host: Host, fault: str) -> None:
    """Two range sets, the second of which is exhausted."""
    pod, other = host.netns("c1"), host.netns("c2")
    conf = bridge_conf(V4, [{"subnet": "10.9.0.0/30"}])
    add(host, [conf], other)
    host.run(FAULTS[fault])
    before = host.snapshot(pod, other)
    reply = host.call("bridge", "ADD", conf, sandbox=pod)
    assert reply.code == 102
    assert host.snapshot(pod, other) == before


@pytest.mark.parametrize("fault", ["full", "read-only, our directory alone", "file"])
def test_agent_goes_on_without_bookkeeping(bin_dir: Path, fault: str) -> None:
    with Host(bin_dir) as host, Agent(host) as agent:
        pod = host.netns("c1")
        before = host.snapshot(pod)
        if fault == "file":
            host.run(f"cd {RUN_DIR}; rm -rf attachments portmap journal; touch attachments portmap journal")
        else:
            host.run(FAULTS[fault])
        result, said = add(host, CHAIN, pod)
        delete(host, CHAIN, pod, result)
        assert agent.calls("bridge ADD") == 1
        assert agent.calls("portmap DEL") == 1
        assert all(says_it_once(reply) for reply in said), said
        after = host.snapshot(pod)
    assert [link["ifname"] for link in after["host"]["addresses"]] == [
        *[link["ifname"] for link in before["host"]["addresses"]], "br0",
    ]  # fmt: skip


def test_boot_sweep_does_not_run_for_every_call(host: Host) -> None:
    """The mark of the boot cannot be written: the attempts are counted, and come to an end."""
    host.run(f"mkdir -p {RUN_DIR}/boot-id")
    pods = [host.netns(f"c{number}") for number in range(1, 15)]
    for pod in pods:
        add(host, [bridge_conf()], pod)
    sweeps = host.path(f"{RUN_DIR}/journal/sweep").read_text()
    assert 1 <= sweeps.count("the first ADD of this boot") <= 14
    assert host.path(f"{RUN_DIR}/sweep.lock").stat().st_size == len(pods)


# --- locks ------------------------------------------------------------------------------------------------------------

HOLD = """
import os, sys
sys.path.insert(0, {root!r})
from cni_py.socket_lock import SocketLock
with SocketLock({name!r}):
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).resolve().parents[2]


def hold(host: Host, name: str, *run: str) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a lock until its standard input is closed, and its number in the host; ``run``: run it by this."""
    python = [*run, sys.executable, "-I", "-c", HOLD.format(root=str(ROOT), name=name)]
    process = subprocess.Popen(host.command(*python), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = process.stdout.readline()
    assert number.strip().isdigit()
    return process, number.strip()


def is_waited_for(host: Host, name: str) -> bool:
    """Return whether a process waits for the lock: its connection is in the queue of the holder's socket."""
    lines = [line.split() for line in host.run("ss -xlnH").splitlines()]
    return any(line[2] != "0" for line in lines if f"@cni-py/{name}" in line)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_call_waits_for_the_lock_without_a_file(host: Host, verb: str) -> None:
    """Calls of one attachment wait for each other where /run is read-only, too for each other; a killed holder holds nothing."""
    pod = host.netns("c1")
    add(host, [BRIDGE], pod)
    host.run(FAULTS["read-only"])
    holder, number = hold(host, "turn/c1:eth0")
    environ = f"CNI_COMMAND={verb} CNI_CONTAINERID=c1 CNI_NETNS={pod} CNI_IFNAME=eth0 CNI_PATH={host.bin_dir}"
    call = subprocess.Popen(
        host.command("sh", "-c", f"{environ} exec {host.bin_dir}/bridge"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert call.stdin is not None
    call.stdin.write(json.dumps(BRIDGE).encode())
    call.stdin.close()
    until(lambda: is_waited_for(host, "turn/c1:eth0"), "the call waits")
    assert len(host.host_ends()) == 1
    host.run(f"kill -KILL {number}")
    holder.communicate(timeout=SECONDS)
    assert call.stdout is not None
    call.stdout.read()
    call.stdout.close()
    call.wait(SECONDS)
    assert len(host.host_ends()) == (1 if verb == "ADD" else 0)


def test_lock_of_another_user_is_ignored(host: Host) -> None:
    """Any user can take the name: that stops no pod."""
    stranger, _ = hold(host, "turn/c1:eth0", "setpriv", "--reuid=65534", "--clear-groups")
    pod = host.netns("c1")
    host.run(FAULTS["read-only"])
    result, _ = add(host, [BRIDGE], pod)
    delete(host, [BRIDGE], pod, result)
    stranger.communicate("")
