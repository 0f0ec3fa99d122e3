"""The warm agent: the same results as in one shot, and its other duties. Its faults: test_agent_faults.py."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_py import protocol
from support import agents
from support.agents import Agent, Caller, Gate
from support.namespaces import GONE, PATH, Host, Sandbox, wait_for_end
from support.pods import DUAL_ENV, FLANNEL, OPTIONS, add, bridge_conf, delete, layer_2_conf, state
from support.waiting import until

POOL = {"cniVersion": "1.1.0", "name": "pool", "type": "host-local"}
POOL |= {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/20"}]]}}
MASQUERADED = bridge_conf(isDefaultGateway=True, ipMasq=True)
PORTMAP = {"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "capabilities": {"portMappings": True}}
PORTMAP |= {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}


@pytest.fixture
def host(host: Host) -> Host:
    host.write_subnet_env(DUAL_ENV)
    return host


@pytest.fixture
def agent(host: Host) -> Iterator[Agent]:
    with Agent(host) as started:
        yield started


# --- the same as in one shot -----------------------------------------------------------------------------------------


def without_carrier(entry: dict[str, Any]) -> dict[str, Any]:
    """A link or route of ip(8) without what says that a bridge has a carrier: that follows its ports in its own time."""
    kept = {key: value for key, value in entry.items() if key not in ("operstate", "state")}
    if isinstance(entry.get("flags"), list):
        kept["flags"] = [flag for flag in entry["flags"] if flag not in ("NO-CARRIER", "LOWER_UP", "linkdown")]
    return kept


def tokens(value: Any) -> str:
    """Format as text, with a token for each random name, in order of appearance."""
    text = json.dumps(json.loads(json.dumps(value), object_hook=without_carrier), indent=1)
    text = re.sub(r'"(root|bridge|designated_root|designated_bridge|bridge_id|root_id|id)": ".*?"', "", text)
    for pattern in (r"veth[0-9a-f]{8}", r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"):
        names: dict[str, str] = {}
        text = re.sub(pattern, lambda found: names.setdefault(found[0], f"<{len(names)}>"), text)  # noqa: B023
    return text


def story(host: Host, conf: dict[str, Any]) -> Iterator[Any]:
    """Run every verb and the commonest errors; yields the whole state after each."""
    plugin, pod = str(conf["type"]), host.netns("c1")
    common: dict[str, Any] = {"sandbox": pod}
    added = host.call(plugin, "ADD", conf, **common)
    yield "ADD", list(added), state(host, pod)
    yield "ADD again", list(host.call(plugin, "ADD", conf, **common)), state(host, pod)
    yield "CHECK", list(host.call(plugin, "CHECK", conf, prev=added.json, **common))
    yield "CHECK without prevResult", list(host.call(plugin, "CHECK", conf, **common))
    yield "STATUS", list(host.call(plugin, "STATUS", conf))
    yield "VERSION", list(host.call(plugin, "VERSION", conf))
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    yield "GC that keeps it", list(host.call(plugin, "GC", conf | {"cni.dev/valid-attachments": valid})), state(host, pod)
    yield "DEL", list(host.call(plugin, "DEL", conf, **common)), state(host, pod)
    yield "DEL again", list(host.call(plugin, "DEL", conf, **common))
    yield "ADD in 0.3.1", list(host.call(plugin, "ADD", conf | {"cniVersion": "0.3.1"}, **common))
    yield "GC", list(host.call(plugin, "GC", conf | {"cni.dev/valid-attachments": []})), state(host, pod)
    yield "no JSON", list(host.call(plugin, "ADD", "{", **common))
    yield "version", list(host.call(plugin, "ADD", conf | {"cniVersion": "9.9.9"}, **common))
    yield "no name", list(host.call(plugin, "ADD", conf | {"name": ""}, **common))
    yield "wrong type", list(host.call(plugin, "ADD", conf | {"mtu": "x", "delegate": 7, "ipam": 7}, **common))
    yield "no sandbox", list(host.call(plugin, "ADD", conf, sandbox=GONE)), state(host, pod)
    yield "host as sandbox", list(host.call(plugin, "ADD", conf, sandbox="/proc/1/ns/net"))
    yield "ifname", list(host.call(plugin, "ADD", conf, ifname="a/b", **common))
    yield "DEL of what is unknown", list(host.call(plugin, "DEL", conf, container_id="c9")), state(host, pod)


@pytest.mark.parametrize("name", ["flannel", "all", "ipMasqBackend-iptables", "layer-2"])
def test_each_verb_does_the_same_as_in_one_shot(host: Host, agent: Agent, name: str) -> None:
    with Host(host.bin_dir) as alone:
        alone.write_subnet_env(DUAL_ENV)
        for ours, theirs in zip(story(host, OPTIONS[name]), story(alone, OPTIONS[name]), strict=True):
            assert tokens(ours) == tokens(theirs), ours[0]
    assert agent.calls() >= 15


def test_chain_with_portmap_does_the_same_as_in_one_shot(host: Host, agent: Agent) -> None:
    seen = []
    with Host(host.bin_dir) as alone:
        alone.write_subnet_env(DUAL_ENV)
        for each in (host, alone):
            pod = each.netns("c1")
            before = state(each, pod)
            result = add(each, FLANNEL, pod)
            assert add(each, PORTMAP, pod, prev=result) == result
            each.ok("portmap", "CHECK", PORTMAP, sandbox=pod, prev=result)
            seen.append(tokens([result, state(each, pod)]))
            delete(each, PORTMAP, pod, prev=result)
            delete(each, FLANNEL, pod)
            seen.append(tokens([before["files"], state(each, pod)]))
    assert seen[:2] == seen[2:]
    assert agent.calls("portmap ADD") == agent.calls("portmap DEL") == 1


def test_one_shot_and_agent_can_be_mixed(host: Host) -> None:
    """Made by one, checked by the other, deleted by the first; and an address is given to one only."""
    one, two = host.netns("c1"), host.netns("c2")
    before = state(host, one, two)
    first = add(host, FLANNEL, one)
    with Agent(host) as agent:
        second = add(host, FLANNEL, two)
        host.ok("flannel", "CHECK", FLANNEL, sandbox=one, prev=first)
        delete(host, FLANNEL, one)
        assert agent.calls() == 3
    host.ok("flannel", "CHECK", FLANNEL, sandbox=two, container_id="c2", prev=second)
    delete(host, FLANNEL, two)
    assert first["ips"][0]["address"] != second["ips"][0]["address"]
    after = state(host, one, two)
    assert [after[key] for key in ("files", "records", str(one), str(two))] == [
        before[key] for key in ("files", "records", str(one), str(two))
    ]


def test_explain_goes_to_standard_error_of_the_client(host: Host, agent: Agent) -> None:
    reply = host.call("flannel", "ADD", FLANNEL, sandbox=host.netns("c1"), env={"CNI_PY_EXPLAIN": "1"})
    assert reply.rc == 0
    assert "ip link add cni0" in reply.stderr
    assert "ip link add" not in agent.log()


def test_foreign_plugin_gets_the_environment_and_the_errors_of_the_client(host: Host, agent: Agent) -> None:
    host.write("/run/foreign/mine", '#!/bin/sh\necho "$SECRET_OF_TEST in $CNI_COMMAND" >&2; echo "{}"\n')
    host.path("/run/foreign/mine").chmod(0o755)
    conf = FLANNEL | {"delegate": {"type": "mine"}}
    env = {"SECRET_OF_TEST": "seen"}
    reply = host.call("flannel", "ADD", conf, sandbox=host.netns("c1"), cni_path="/run/foreign", env=env)
    assert "seen in ADD" in reply.stderr
    assert agent.calls("flannel ADD") == 1


def test_foreign_plugin_may_execute_ours(host: Host, agent: Agent) -> None:
    """flannel, a foreign main plugin, our host-local: that one must not wait for flannel's end in the agent."""
    host.write("/run/foreign/mine", f"#!/bin/sh\nexec {host.bin_dir}/host-local\n")
    host.path("/run/foreign/mine").chmod(0o755)
    conf, pod = FLANNEL | {"delegate": {"type": "mine"}}, host.netns("c1")
    before = state(host, pod)
    began = time.monotonic()
    result = add(host, conf, pod, cni_path="/run/foreign")
    assert result["ips"][0]["address"] == "10.244.91.2/24"
    delete(host, conf, pod, cni_path="/run/foreign")
    assert time.monotonic() - began < protocol.BEGIN_SECONDS  # after which a client is no longer waited for
    assert state(host, pod) == before
    assert agent.report()["calls"] == {"flannel ADD": 1, "flannel DEL": 1}


def test_executed_plugin_inherits_no_descriptor(host: Host) -> None:
    """Neither a sandbox nor a connection is inherited. (libnftables' netlink socket is: its number is not known outside.)"""
    gate, pod = Gate(host), host.netns("slow")
    with Agent(host, code=agents.GATE) as agent, Caller(host) as caller:
        before = agent.descriptors(inherited=True)
        assert len(before) <= 4
        caller.call("bridge", "ADD", MASQUERADED, pod, "slow")
        gate.wait_begun()
        assert any(path.endswith(pod.path) for path in agent.descriptors())  # in a chroot its root is before it
        assert agent.descriptors(inherited=True) == before
        gate.open()
        assert caller.outcome()[0] == 0


def test_sandbox_is_the_one_that_the_client_opened(host: Host, agent: Agent) -> None:
    """/proc/self/ns/net is another one here and there."""
    pod = host.netns("c1")
    env = {"PATH": PATH, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "lo", "CNI_NETNS": "../run/netns/c1"}
    argv = ["env", "--chdir=/tmp", f"{host.bin_dir}/loopback"]
    done = host.execute(argv, stdin='{"cniVersion":"1.1.0","name":"lo","type":"loopback"}', env=env)
    assert done.returncode == 0, done.stdout
    assert "UP" in host.run("ip -br link show lo", pod)
    assert agent.calls("loopback ADD") == 1


# --- many calls ------------------------------------------------------------------------------------------------------


def test_calls_of_one_attachment_are_answered_in_order(host: Host) -> None:
    host.run(f"mkdir -p {agents.DIRECTORY}")
    gate = Gate(host)
    pods = host.netns("slow"), host.netns("other")
    with Agent(host, code=agents.GATE), Caller(host) as adding, Caller(host) as deleting:
        adding.call("bridge", "ADD", MASQUERADED, pods[0], "slow")
        gate.wait_begun()
        adding.reply(protocol.BEGUN)
        deleting.call("bridge", "DEL", MASQUERADED, pods[0], "slow")
        assert agents.call(host, "bridge", "ADD", MASQUERADED, pods[1], "other")["ips"]
        assert not deleting.has_reply(), "DEL began before ADD had ended"
        gate.open()
        assert adding.reply(protocol.DONE)[0] == 0
        gate.wait_begun()
        gate.open()
        assert deleting.outcome() == (0, None)
    assert len(host.host_ends()) == 1


def test_five_hundred_clients_at_once(host: Host, agent: Agent) -> None:
    """Each gets its own address; the agent handles them with a bounded number of threads."""
    null = os.open("/dev/null", os.O_WRONLY)
    callers = [Caller(host) for _ in range(500)]
    try:
        for number, caller in enumerate(callers):
            caller.send(agents.request_bytes(host, "host-local", "ADD", POOL, container_id=f"c{number}"), null)
        assert agent.threads() <= 64 + 10
        outcomes = [caller.outcome() for caller in callers]
    finally:
        os.close(null)
        for caller in callers:
            caller.close()
    assert [status for status, _ in outcomes if status] == []
    assert len({result["ips"][0]["address"] for _, result in outcomes}) == 500
    assert agent.calls("host-local ADD") == 500
    assert len(host.files("/var/lib/cni/networks/pool")) == 501


def test_hundred_processes_at_once(host: Host, agent: Agent) -> None:
    argv = [f"{host.bin_dir}/host-local"]
    script = f"for n in $(seq 100); do CNI_CONTAINERID=c$n {argv[0]} <$0 >/dev/null & done; wait"
    host.write("/run/conf", json.dumps(POOL))
    env = {"PATH": PATH, "CNI_COMMAND": "ADD", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}
    assert host.execute(["sh", "-c", script, "/run/conf"], env=env).returncode == 0
    assert agent.calls("host-local ADD") == 100
    assert len(host.files("/var/lib/cni/networks/pool")) == 101


def test_twenty_deletes_at_once(host: Host, agent: Agent) -> None:
    """Replies do not wait for pending deletions in the kernel; everything is deleted when they come."""
    host.run("for n in $(seq 21); do ip netns add c$n; done")
    pods = [Sandbox(f"c{n}") for n in range(1, 22)]
    agents.call(host, "bridge", "ADD", MASQUERADED, pods[-1], "c21")
    before = state(host, *pods)
    for pod in pods[:-1]:
        agents.call(host, "bridge", "ADD", MASQUERADED, pod, pod.name)
    callers = [Caller(host) for _ in pods[:-1]]
    began = time.perf_counter()
    for pod, caller in zip(pods, callers, strict=False):
        caller.call("bridge", "DEL", MASQUERADED, pod, pod.name)
    assert [caller.outcome() for caller in callers] == [(0, None)] * 20
    print(f"20 DELs at once: {(time.perf_counter() - began) * 1000:.0f} ms")
    for caller in callers:
        caller.close()
    assert state(host, *pods) == before
    until(lambda: agent.network_namespaces() == {os.readlink(f"/proc/{host.pid}/ns/net")}, "threads left in sandboxes")


def test_name_is_free_when_delete_has_answered(host: Host, agent: Agent) -> None:
    pod = host.netns("c1")
    for _ in range(10):
        agents.call(host, "bridge", "ADD", MASQUERADED, pod)
        agents.call(host, "bridge", "DEL", MASQUERADED, pod)
        assert host.host_ends() == []


# The report has the interpreter's blocks, too.
COUNTING = """
import gc, sys
from cni_py.agent.metrics import AgentMetrics
plain = AgentMetrics.as_json
AgentMetrics.as_json = lambda self: plain(self) | {"garbage": gc.collect(), "blocks": sys.getallocatedblocks()}
"""


@pytest.mark.timeout(900)
def test_neither_descriptors_nor_memory_grow(host: Host) -> None:
    """Run over 2,000 calls; threads that were in the sandbox must have ended."""
    with Agent(host, code=COUNTING) as agent:
        check_growth(host, agent)


def check_growth(host: Host, agent: Agent) -> None:
    pod = host.netns("c1")

    def pairs(number: int) -> float:
        began = time.perf_counter()
        for _ in range(number):
            agents.call(host, "bridge", "ADD", MASQUERADED, pod)
            agents.call(host, "bridge", "DEL", MASQUERADED, pod)
        return (time.perf_counter() - began) / number / 2

    def is_quiet() -> bool:
        return agent.network_namespaces() == {os.readlink(f"/proc/{host.pid}/ns/net")}

    pairs(150)
    until(is_quiet, "threads left in sandboxes")
    until(lambda: pod.path not in agent.descriptors())
    descriptors, resident, threads = len(agent.descriptors()), agent.resident_kb(), agent.threads()
    blocks = agent.report()["blocks"]
    seconds = pairs(850)
    until(is_quiet, "threads left in sandboxes")
    until(lambda: len(agent.descriptors()) <= descriptors, "more descriptors")
    print(f"resident: {resident} kB, {agent.resident_kb() - resident:+d} after 1,700 calls of {seconds * 1000:.2f} ms")
    print(f"blocks: {blocks}, {agent.report()['blocks'] - blocks:+d}")
    assert agent.threads() <= threads + 2
    assert agent.report()["blocks"] - blocks < 400
    assert agent.resident_kb() - resident < 3000
    assert agent.resident_kb() < 70_000


# --- its life --------------------------------------------------------------------------------------------------------


def test_socket_is_for_root_alone(host: Host, agent: Agent) -> None:
    assert oct(host.path(agents.SOCKET).stat().st_mode) == "0o140600"
    assert oct(host.path(agents.SOCKET).parent.stat().st_mode) == "0o40700"


def test_ready_line_names_socket_and_process(host: Host) -> None:
    with Agent(host, "--socket", "/run/else/where.sock") as agent:
        agent.signal(signal.SIGHUP)
        assert host.path("/run/else/where.sock").is_socket()
        assert agent.stop() == 0
    assert not host.path("/run/else/where.sock").exists()


def test_sighup_loses_nothing(host: Host) -> None:
    gate = Gate(host)
    pod = host.netns("slow")
    with Agent(host, code=agents.GATE) as agent, Caller(host) as caller:
        caller.call("bridge", "ADD", MASQUERADED, pod, "slow")
        gate.wait_begun()
        agent.signal(signal.SIGHUP)
        gate.open()
        assert caller.outcome()[0] == 0
        until(lambda: "nothing to reload" in agent.log(), agent.log)
        assert agent.calls() == 1
        assert agent.stop() == 0


def test_sigterm_finishes_what_runs_and_leaves_the_rest_to_the_clients(host: Host) -> None:
    gate = Gate(host)
    pod = host.netns("slow")
    before = state(host, pod)
    with Agent(host, code=agents.GATE) as agent, Caller(host) as running, Caller(host) as silent:
        running.call("bridge", "ADD", MASQUERADED, pod, "slow")
        gate.wait_begun()
        waiting = start(host, "bridge", "DEL", MASQUERADED, pod, "slow")
        until(lambda: agent.report()["calls_in_progress"] == 4, "its own question, one that runs, waits, is silent")
        agent.signal(signal.SIGTERM)
        until(lambda: not host.path(agents.SOCKET).exists())
        added = host.call("bridge", "ADD", MASQUERADED, sandbox=host.netns("c2"), container_id="c2")
        assert added.rc == 0, "a client that finds no agent works alone"
        gate.open()
        assert running.outcome()[0] == 0
        silent.close()
        assert wait_for_end(agent.process, agents.SECONDS) == 0
    assert wait_for_end(waiting, agents.SECONDS) == 0
    delete(host, MASQUERADED, Sandbox("c2"))
    after = state(host, pod)
    assert (after["files"], after["records"], after[str(pod)]) == (before["files"], before["records"], before[str(pod)])
    assert host.host_ends() == []


def start(host: Host, plugin: str, verb: str, conf: Any, pod: Sandbox, container_id: str) -> subprocess.Popen[str]:
    """A client as a process that is not waited for."""
    env = {"PATH": PATH, "CNI_COMMAND": verb, "CNI_CONTAINERID": container_id, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    host.write(f"/run/conf-{container_id}", json.dumps(conf))
    argv = ["sh", "-c", f"exec {host.bin_dir}/{plugin} </run/conf-{container_id} >/run/answer-{container_id}"]
    return subprocess.Popen(host.command(*argv), env=env | {"CNI_PATH": host.bin_dir}, text=True)


def test_idle_exit(host: Host) -> None:
    with Agent(host, "--idle-exit", "0.5") as agent:
        began = time.monotonic()
        host.ok("host-local", "ADD", POOL, sandbox="/run/netns/x")
        assert wait_for_end(agent.process, agents.SECONDS) == 0
        assert time.monotonic() - began > 0.5
    assert not host.path(agents.SOCKET).exists()


def test_socket_activation(host: Host) -> None:
    """The socket is owned by the service manager: a call waits in it for the agent, and it remains when the agent exits."""
    starter = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.makedirs('/run/cni-py', 0o700);"
        f"s.bind('{agents.SOCKET}'); s.listen(10); os.dup2(s.fileno(), 3); os.set_inheritable(3, True);"
        "print('ready for calls', flush=True); sys.stdin.readline();"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])"
    )
    agent_program = f"{host.bin_dir}/../../bin/cni-agent"
    argv = host.command("python3", "-c", starter, agent_program, "--idle-exit", "0.5")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PATH": PATH}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready for calls\n"
        with Caller(host) as early:
            early.call("host-local", "ADD", POOL)
            process.communicate("go\n")
            assert process.returncode == 0
            assert early.outcome()[0] == 0
    assert host.path(agents.SOCKET).exists()
    host.ok("host-local", "DEL", POOL)


def test_service_manager_is_notified(host: Host) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(host.path("/run/notify")))
        manager.settimeout(agents.SECONDS)
        with Agent(host, env={"NOTIFY_SOCKET": "/run/notify"}) as agent:
            assert manager.recv(100) == b"READY=1"
            assert agent.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("gap", [False, True], ids=["successor first", "gap"])
def test_agent_is_replaced_while_fifty_pods_come_and_go(host: Host, gap: bool) -> None:
    """Another one starts before the old one exits, or, with a service manager, after that."""
    host.run("for n in $(seq 51); do ip netns add c$n; done")
    pods = [Sandbox(f"c{n}") for n in range(1, 51)]
    add(host, FLANNEL, Sandbox("c51"))
    before = state(host, *pods)

    def comes_and_goes(pod: Sandbox) -> None:
        result = add(host, FLANNEL, pod)
        host.ok("flannel", "CHECK", FLANNEL, sandbox=pod, container_id=pod.name, prev=result)
        delete(host, FLANNEL, pod)

    with Agent(host) as old, ThreadPoolExecutor(6) as pool:
        done = [pool.submit(comes_and_goes, pod) for pod in pods]
        until(lambda: old.calls() >= 20)
        assert not gap or old.stop() == 0
        with Agent(host) as new:
            assert gap or old.stop() == 0
            for each in done:
                each.result()
            assert new.calls() >= 20
            assert new.report()["failures"] == {}
            assert state(host, *pods) == before


def test_agent_leaves_when_the_kernel_has_freed_everything(host: Host) -> None:
    """Deletions that go on in the background are waited for."""
    pod = host.netns("c1")
    with Agent(host) as agent:
        for _ in range(5):
            agents.call(host, "bridge", "ADD", MASQUERADED, pod)
            agents.call(host, "bridge", "DEL", MASQUERADED, pod)
        assert agent.stop() == 0
    assert agent.log() == ""


# --- work between calls, and reports -----------------------------------------------------------------------------------


def test_attachments_are_checked_on_a_timer(host: Host) -> None:
    with Agent(host, "--check-seconds", "0.2") as agent:
        pod, other = host.netns("c1"), host.netns("c2")
        add(host, FLANNEL, pod)
        add(host, FLANNEL, other)
        checks = agent.events("checks")
        until(lambda: agent.events("checks") > checks + 1)
        assert agent.events("attachments that differ") == 0, agent.log()
        host.run("ip route flush table main", pod)
        until(lambda: agent.events("attachments that differ") > 0)
        until(lambda: "container c1, eth0, network cbr0: " in agent.log(), agent.log)
        assert "container c2" not in agent.log()
        assert host.call("flannel", "STATUS", FLANNEL).rc == 0
        delete(host, FLANNEL, pod)
        differing, checks = agent.events("attachments that differ"), agent.events("checks")
        until(lambda: agent.events("checks") > checks + 1)
        assert agent.events("attachments that differ") == differing
        assert agent.report()["attachments"] == 1


def test_attachment_that_ended_without_the_agent_is_forgotten(host: Host) -> None:
    """Deletion in one shot, or of its sandbox, is not reported as a difference."""
    with Agent(host, "--check-seconds", "0.2") as agent:
        one, two = host.netns("c1"), host.netns("c2")
        add(host, FLANNEL, one)
        add(host, FLANNEL, two)
        assert agent.report()["attachments"] == 2
        host.run(f"mv {agents.SOCKET} /run/aside")
        delete(host, FLANNEL, one)
        host.run(f"mv /run/aside {agents.SOCKET}")
        host.delete_netns(two)
        until(lambda: agent.report()["attachments"] == 0)
        assert agent.events("attachments that differ") == 0, agent.log()


def test_report(host: Host, agent: Agent) -> None:
    pod = host.netns("c1")
    add(host, FLANNEL, pod)
    assert host.call("flannel", "ADD", FLANNEL | {"subnetFile": "/run/none"}, sandbox=pod, container_id="c2").rc == 1
    report = agent.report()
    assert report["calls"] == {"flannel ADD": 2}
    assert report["failures"] == {"flannel ADD code 11": 1} or len(report["failures"]) == 1
    assert report["attachments"] == 1
    assert report["latencies"]["ADD"].keys() == {"p50_ms", "p95_ms", "p99_ms"}
    assert 0 < report["latencies"]["ADD"]["p50_ms"] <= report["latencies"]["ADD"]["p99_ms"] < 5000


def test_report_has_the_free_addresses(host: Host, cni_py: Path) -> None:
    """The report has flannel's subnet, a bridge's ranges and of host-local's; also of a network that has none left."""
    tiny = POOL | {"name": "tiny", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.8.0.0/30"}]]}}
    pods = [host.netns(f"c{number}") for number in range(3)]
    add(host, MASQUERADED, pods[2])  # before the agent was there: it is counted all the same
    with Agent(host, "--metrics", "unix:/run/metrics.sock") as agent:
        assert agent.report()["addresses"] == []
        for pod in pods[:2]:
            add(host, FLANNEL, pod)
        assert host.call("bridge", "STATUS", MASQUERADED).rc == 0
        add(host, tiny, pods[0])
        assert host.call("host-local", "ADD", tiny, sandbox=pods[1], container_id="c9").code == 102
        add(host, layer_2_conf(name="without"), host.netns("c7"))
        shown = json.loads(host.run(f"{cni_py} status"))["addresses"]
        assert [tuple(pool.values()) for pool in shown] == [
            ("cbr0", "10.244.91.1-10.244.91.254", 253, 2, 251),
            ("cbr0", "fd00:244:0:91::1-fd00:244:0:91:ffff:ffff:ffff:ffff", 2**64 - 2, 2, 2**64 - 4),
            ("net", "10.1.0.1-10.1.0.254", 253, 1, 252),
            ("tiny", "10.8.0.1-10.8.0.2", 1, 1, 0),
        ]
        delete(host, FLANNEL, pods[0])
        text = host.do(http_get, "unix:/run/metrics.sock", "/metrics")
        assert '\ncni_py_addresses_free{network="cbr0",range_set="10.244.91.1-10.244.91.254"} 252\n' in text
        assert '\ncni_py_addresses_free{network="tiny",range_set="10.8.0.1-10.8.0.2"} 0\n' in text
        host.run("rm /run/flannel/subnet.env")
        assert [pool["network"] for pool in agent.report()["addresses"]] == ["net", "tiny"]


@pytest.mark.parametrize("address", ["unix:/run/metrics.sock", "127.0.0.1:9109"])
def test_metrics(host: Host, address: str) -> None:
    with Agent(host, "--metrics", address):
        host.ok("host-local", "ADD", POOL, sandbox="/run/netns/x")
        head, text = host.do(http_get, address, "/metrics").split("\r\n\r\n")
        assert "200 OK" in head
        assert "text/plain; version=0.0.4" in head
        assert 'cni_py_calls_total{plugin="host-local",verb="ADD"} 1\n' in text
        assert 'cni_py_call_seconds_count{verb="ADD"} 1\n' in text
        assert "# TYPE cni_py_call_seconds histogram\n" in text
        assert "cni_py_attachments 1\n" in text
        assert "404" in host.do(http_get, address, "/")
        assert host.do(http_get, address, "/readyz").endswith("cni-agent is ready")
        with Agent(host, "--metrics", address):  # while it is replaced
            assert "200 OK" in host.do(http_get, address, "/metrics")


def test_metrics_unix_socket_is_for_root_alone(host: Host) -> None:
    with Agent(host, "--metrics", "unix:/run/metrics.sock"):
        assert oct(host.path("/run/metrics.sock").stat().st_mode) == "0o140600"


@pytest.mark.parametrize("address", ["0.0.0.0:9109", "10.1.2.3:1", "9109", "[::1]:9109", "unix:x", "127.0.0.1:x"])
def test_metrics_are_refused_beyond_loopback(host: Host, address: str) -> None:
    done = host.execute([f"{host.bin_dir}/../../bin/cni-agent", "--metrics", address])
    assert done.returncode == 2
    assert address in done.stderr


def http_get(address: str, path: str) -> str:
    family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
    with socket.socket(family) as sock:
        sock.connect(address.removeprefix("unix:") if family == socket.AF_UNIX else ("127.0.0.1", int(address.split(":")[1])))
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        text = b""
        while block := sock.recv(65536):
            text += block
        return text.decode()
