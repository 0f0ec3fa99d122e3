"""Faults of the warm agent and of its clients: a pod gets its network or a clean error, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cni_py import protocol
from support import agents
from support.agents import Agent, Caller, Gate
from support.namespaces import PATH, Host, Reply, Sandbox, wait_for_end
from support.pods import DUAL_ENV, FLANNEL, OPTIONS, add, bridge_conf, check, delete, state
from support.waiting import until

BRIDGE = bridge_conf(isDefaultGateway=True, ipMasq=True, macspoofchk=True, hairpinMode=True)
WHOLE = OPTIONS["flannel-macspoofchk"]
POOL = {"cniVersion": "1.1.0", "name": "pool", "type": "host-local"}
POOL |= {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/20"}]]}}
MAX_STEPS = 60


@pytest.fixture
def host(host: Host) -> Host:
    host.write_subnet_env(DUAL_ENV)
    return host


@pytest.fixture
def agent(host: Host) -> Iterator[Agent]:
    with Agent(host) as started:
        yield started


def pod_comes_and_goes(host: Host) -> None:
    """Three calls, of which nothing is left."""
    pod = host.netns("alone")
    before = state(host, pod)
    result = add(host, BRIDGE, pod)
    assert check(host, BRIDGE, pod, result).rc == 0
    delete(host, BRIDGE, pod)
    after = state(host, pod)
    assert (after["files"], after["records"], after[str(pod)]) == (before["files"], before["records"], before[str(pod)])
    host.delete_netns(pod)


# --- the agent dies --------------------------------------------------------------------------------------------------


class Dying:
    """An agent that dies once, at the stage that is asked for, and is born again."""

    def __init__(self, host: Host, agent: Agent) -> None:
        self.host, self.agent = host, agent

    def call(self, stage: str, verb: str, conf: dict[str, Any], pod: Sandbox, **options: Any) -> Reply | None:
        """Execute a plugin meanwhile; None if the call came to its end before that stage."""
        file = self.host.path(f"{agents.DIRECTORY}/stage")
        file.write_text(stage)
        reply = self.host.call(str(conf["type"]), verb, conf, sandbox=pod, container_id=pod.name, **options)
        if file.exists():
            file.unlink()
            return None
        self.agent.wait_ready()
        return reply


@pytest.fixture
def dying(host: Host) -> Iterator[Dying]:
    with Agent(host, code=agents.DYING) as agent:
        yield Dying(host, agent)


def stages(*others: str) -> Iterator[str]:
    yield from others
    yield from (f"step {number}" for number in range(1, MAX_STEPS))


def test_agent_is_killed_in_the_middle_of_add(host: Host, dying: Dying) -> None:
    """The client undoes the partial ADD and reports it; the runtime retries."""
    first, pod = host.netns("c1"), host.netns("c2")
    add(host, WHOLE, first)
    before = state(host, first, pod)
    for stage in stages("reply"):
        reply = dying.call(stage, "ADD", WHOLE, pod)
        if reply is None:
            break
        assert reply.code == 11, (stage, reply)
        assert "the agent disconnected" in reply.json["msg"]
        assert "undone" in reply.json["details"]
        assert state(host, first, pod) == before, stage
    else:
        raise AssertionError("no end of steps")
    assert int(stage.split()[1]) > 12, stage
    delete(host, WHOLE, pod)
    assert state(host, first, pod) == before


def test_agent_is_killed_in_the_middle_of_delete(host: Host, dying: Dying) -> None:
    """The client does it again, by itself."""
    first, pod = host.netns("c1"), host.netns("c2")
    add(host, WHOLE, first)
    before = state(host, first, pod)
    for stage in stages("message", "reply"):
        add(host, WHOLE, pod)
        reply = dying.call(stage, "DEL", WHOLE, pod)
        if reply is None:
            break
        assert reply.rc == 0, (stage, reply)
        assert state(host, first, pod) == before, stage
    else:
        raise AssertionError("no end of steps")
    assert int(stage.split()[1]) > 4, stage
    assert state(host, first, pod) == before


def test_agent_is_killed_in_the_middle_of_other_verbs(host: Host, dying: Dying) -> None:
    pod = host.netns("c1")
    result = add(host, FLANNEL, pod)
    there = state(host, pod)
    for verb in ("CHECK", "STATUS", "GC"):
        conf = FLANNEL | ({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]} if verb == "GC" else {})
        for stage in ("message", "reply"):
            reply = dying.call(stage, verb, conf, pod, prev=result if verb == "CHECK" else None)
            assert reply is not None
            assert reply.rc == 0, (verb, stage, reply)
    assert state(host, pod) == there


def test_agent_is_killed_before_it_begins(host: Host, dying: Dying) -> None:
    """Then the client has done nothing twice: ADD succeeds."""
    pod = host.netns("c1")
    reply = dying.call("message", "ADD", FLANNEL, pod)
    assert reply is not None
    assert reply.rc == 0
    assert check(host, FLANNEL, pod, reply.json).rc == 0


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_agent_is_killed_before_it_accepts(host: Host, agent: Agent, verb: str) -> None:
    pod = host.netns("c1")
    before = state(host, pod)
    if verb == "DEL":
        add(host, BRIDGE, pod)
    agent.signal(signal.SIGSTOP)
    client = start(host, verb, pod)
    until(lambda: waiting(host) == 1, "a connection that waits")
    agent.kill()
    assert wait_for_end(client, agents.SECONDS) == 0
    if verb == "ADD":
        delete(host, BRIDGE, pod)
    after = state(host, pod)
    assert (after["files"], after["records"], after[str(pod)]) == (before["files"], before["records"], before[str(pod)])
    assert host.host_ends() == []


def waiting(host: Host) -> int:
    """Count the connections that the agent has not accepted yet."""
    return next(int(line.split()[2]) for line in host.run("ss -Hxl").splitlines() if "agent.sock" in line)


def start(
    host: Host, verb: str, pod: Sandbox, conf: dict[str, Any] = BRIDGE, cni_path: str | None = None
) -> subprocess.Popen[bytes]:
    """The bridge plugin as a process that is not waited for."""
    host.write(f"/run/conf-{verb}", json.dumps(conf))
    env = {"PATH": PATH, "CNI_PATH": cni_path or host.bin_dir, "CNI_COMMAND": verb, "CNI_CONTAINERID": pod.name}
    env |= {"CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    script = f"exec {host.bin_dir}/bridge </run/conf-{verb} >/run/answer-{verb}"
    return subprocess.Popen(host.command("sh", "-c", script), env=env)


def test_agent_that_was_killed_is_followed_by_another(host: Host) -> None:
    """Its socket still exists, but no process listens."""
    with Agent(host) as agent:
        agent.kill()
    assert host.path(agents.SOCKET).is_socket()
    pod_comes_and_goes(host)
    with Agent(host) as agent:
        pod_comes_and_goes(host)
        assert agent.calls() == 3


# --- it is not what it should be -------------------------------------------------------------------------------------


def listening(host: Host, backlog: int) -> socket.socket:
    """A socket in the agent's place."""
    host.path("/run/cni-py").mkdir(mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(host.path(agents.SOCKET)))
    listener.listen(backlog)
    return listener


def fill_backlog(host: Host, stack: ExitStack) -> None:
    try:
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(str(host.path(agents.SOCKET)))
    except BlockingIOError:
        pass


def test_backlog_is_full(host: Host) -> None:
    with listening(host, 0), ExitStack() as stack:
        fill_backlog(host, stack)
        pod_comes_and_goes(host)


def test_backlog_of_an_agent_that_stands_still_is_full(host: Host) -> None:
    """Clients work alone at once; when it continues, it handles calls again."""
    with Agent(host, code="from cni_py.agent import listener; listener.BACKLOG = 3") as agent:
        agent.signal(signal.SIGSTOP)
        with ExitStack() as stack:
            fill_backlog(host, stack)
            pod_comes_and_goes(host)
        agent.process.send_signal(signal.SIGCONT)  # nsenter stopped itself with its child, and goes on with it
        until(lambda: agent_answers(agent))
        assert agent.calls() == 0
        pod_comes_and_goes(host)
        assert agent.calls() == 3


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"CNI<", b"CNI<\x02\x01" + bytes(10), b"CNI<\x01\x07" + bytes(10),
     b"CNI<\x01\x03\0\0" + b"\xff" * 8],
    ids=["nothing", "HTTP", "half", "other protocol", "unknown kind", "too long"],
)  # fmt: skip
def test_another_process_listens(host: Host, answer: bytes) -> None:
    """Or an agent of another version: it is not taken for an answer."""
    with listening(host, 10) as listener:
        child = os.fork()
        if child == 0:
            for _ in range(3):
                connection = listener.accept()[0]
                connection.recv(1 << 16)
                connection.sendall(answer)
                connection.close()
            os._exit(0)
        pod_comes_and_goes(host)
        assert os.waitpid(child, 0)[1] == 0


def test_process_of_another_user_listens(host: Host) -> None:
    """Its user is the one that called listen(). It receives nothing: neither configurations nor namespaces."""
    with listening(host, 10) as listener:
        os.seteuid(65534)
        try:
            listener.listen(10)
        finally:
            os.seteuid(0)
        pod_comes_and_goes(host)
        for _ in range(3):
            with listener.accept()[0] as connection:
                assert connection.recv(1) == b""


def test_agent_of_another_protocol_refuses(host: Host) -> None:
    with Agent(host, code="from cni_py import protocol; protocol.PROTOCOL = 2") as agent:
        pod_comes_and_goes(host)
        until(lambda: agent.log().splitlines() == ["refused: protocol 1, this is 2"] * 3, agent.log)


@pytest.mark.parametrize("kind", ["net", "mount"])
def test_client_lives_in_other_namespaces(host: Host, agent: Agent, kind: str) -> None:
    """A runtime in a container of its own: what it means by a path or by cni0 is not what the agent means."""
    host.run("ip netns add elsewhere")
    enter = ["nsenter", "--net=/run/netns/elsewhere"] if kind == "net" else ["unshare", "--mount"]
    env = {"PATH": PATH, "CNI_PATH": host.bin_dir, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    env["CNI_NETNS"] = str(host.netns("c1"))
    done = host.execute([*enter, f"{host.bin_dir}/bridge"], stdin=json.dumps(BRIDGE), env=env)
    assert done.returncode == 0, done.stdout
    assert agent.calls() == 0
    assert bool(host.host_ends()) == (kind == "mount")


def test_peer_is_not_root(host: Host, agent: Agent) -> None:
    """The directory's mode keeps the client out; if that is opened, the agent rejects it."""
    with pytest.raises(PermissionError):
        host.do(connect_as_another_user, b"")
    host.run(f"chmod 755 /run/cni-py; chmod 666 {agents.SOCKET}")
    request = agents.request_bytes(host, "host-local", "ADD", POOL)
    assert host.do(connect_as_another_user, request) == b""
    until(lambda: "the peer is not root" in agent.log(), agent.log)
    assert agent.calls() == 0
    assert agent.events("broken connections") == 1
    assert host.files("/var/lib/cni") == {}


def connect_as_another_user(request: bytes) -> bytes:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(agents.SOCKET)
        try:
            sock.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, (2).to_bytes(4, "little"))])
            return sock.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            return b""


# --- the clients are not what they should be --------------------------------------------------------------------------

IMPATIENT = "from cni_py import protocol; protocol.REQUEST_SECONDS = 0.4"


def garbage(host: Host) -> list[bytes]:
    request = agents.request_bytes(host, "host-local", "ADD", POOL)
    long = (0xFFFFFFF0).to_bytes(4, "big")
    return [
        b"x",
        b"GET / HTTP/1.1\r\nHost: agent\r\nUser-Agent: something long enough\r\n\r\n",
        os.urandom(500),
        b"CNI>" + bytes((9, 1)) + request[6:],
        request[:8] + long + request[12:],
        request[:12] + long + request[16:],
        request[:8] + (3).to_bytes(4, "big") + request[12:],
        request.replace(b"host-local\0", b"no-plugin\0\0"),
        request.replace(b"CNI_COMMAND=ADD", b"CNI_COMMAND=BAD"),
        request.replace(b"CNI_CONTAINERID=c1", b"CNI_CONTAINERID=//"),
        request[:5] + bytes((7,)) + request[6:],
        request.replace(b'"cniVersion"', b'\xff\xfe\x00"Version"'[:12]),
    ]


def test_clients_send_garbage(host: Host) -> None:
    with Agent(host, code=IMPATIENT) as agent:
        agent.report()
        until(lambda: agent.report()["calls_in_progress"] == 1)
        before = len(agent.descriptors())
        for request in garbage(host):
            with Caller(host) as caller:
                try:
                    caller.send(request, 2, 2)
                    caller.reply(protocol.REFUSED, protocol.DONE, protocol.BEGUN)
                except (protocol.FrameError, OSError):
                    pass
        assert "Traceback" not in agent.log()
        assert host.files("/var/lib/cni") == {}
        pod_comes_and_goes(host)
        assert agent.calls("bridge ADD") == 1
        until(lambda: len(agent.descriptors()) <= before + 4, "descriptors of clients that sent garbage")


def test_clients_send_nothing_or_a_half_or_die(host: Host) -> None:
    """Other clients do not wait for them, they are dropped after a time, and their descriptors are closed."""
    with Agent(host, code=IMPATIENT) as agent, ExitStack() as stack:
        pod_comes_and_goes(host)
        before = len(agent.descriptors())
        request = agents.request_bytes(host, "host-local", "STATUS", POOL)
        for length in (0, 1, 20, protocol.REQUEST_HEAD, len(request) - 1) * 5:
            caller = stack.enter_context(Caller(host))
            if length:
                caller.send(request[:length], 2)
        for length in (0, 20, len(request) - 1):  # and these disconnect at once
            with Caller(host) as caller:
                if length:
                    caller.send(request[:length], 2)
        pod_comes_and_goes(host)
        assert agent.calls("bridge ADD") == 2
        until(lambda: agent.report()["calls_in_progress"] == 1, "clients that are given up")
        until(lambda: agent.events("broken connections") == 28)
        until(lambda: len(agent.descriptors()) <= before, "their descriptors")
        assert "Traceback" not in agent.log()


def test_clients_send_more_descriptors_than_are_asked_for(host: Host, agent: Agent) -> None:
    pod_comes_and_goes(host)
    before = len(agent.descriptors())
    request = agents.request_bytes(host, "host-local", "STATUS", POOL)
    for count in (0, 2, 4, 5, 50, 250):
        with Caller(host) as caller:
            caller.send(request, *[2] * count)
            caller.reply(protocol.REFUSED)
    until(lambda: len(agent.descriptors()) <= before)


def test_client_dies_in_the_middle_of_add(host: Host) -> None:
    """The agent ends what it began, and the runtime's DEL waits for that."""
    gate = Gate(host)
    pod = host.netns("slow")
    before = state(host, pod)
    with Agent(host, code=agents.GATE) as agent:
        with Caller(host) as caller:
            caller.call("bridge", "ADD", BRIDGE, pod, "slow")
            gate.wait_begun()
        client = start(host, "DEL", pod)
        until(lambda: agent.report()["calls_in_progress"] == 3, "its own question, ADD, DEL")
        gate.open()
        gate.wait_begun()
        gate.open()
        assert wait_for_end(client, agents.SECONDS) == 0
        assert agent.calls() == 2
    after = state(host, pod)
    assert (after["files"], after["records"], after[str(pod)]) == (before["files"], before["records"], before[str(pod)])
    assert host.host_ends() == []


# --- one process adds, another deletes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("deleted_by", ["successor", "client alone"])
def test_delete_waits_for_the_add_that_another_agent_has_begun(host: Host, deleted_by: str) -> None:
    """The runtime lost patience, killed the plugin and calls DEL, while the agent was being replaced."""
    gate = Gate(host)
    first, pod = host.netns("c1"), host.netns("slow")
    add(host, BRIDGE, first)
    before = state(host, first, pod)
    with Agent(host, code=agents.GATE) as old, ExitStack() as stack:
        with Caller(host) as caller:
            caller.call("bridge", "ADD", BRIDGE, pod, "slow")
            gate.wait_begun()
        if deleted_by == "successor":
            new = stack.enter_context(Agent(host))
            client = start(host, "DEL", pod)
            until(lambda: new.report()["calls_in_progress"] == 2, "its own question, DEL")
        else:
            host.run(f"rm {agents.SOCKET}")
            client = start(host, "DEL", pod)
        old.signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(0.3)
        gate.open()
        assert wait_for_end(client, agents.SECONDS) == 0
        assert wait_for_end(old.process, agents.SECONDS) == 0
        if deleted_by == "successor":
            assert new.report()["calls"] == {"bridge DEL": 1}
    assert state(host, first, pod) == before


def test_delete_by_the_agent_waits_for_an_add_in_one_shot(host: Host) -> None:
    """A third-party plugin, executed by the ADD, has executed one of our plugins in turn, without deadlock."""
    gate = Gate(host)
    hold = f"[ $CNI_COMMAND$CNI_CONTAINERID != ADDslow ] || {{ : >{agents.DIRECTORY}/begun; cat {agents.DIRECTORY}/go; }}"
    host.write("/run/foreign/mine", f"#!/bin/sh\n{hold}\nexec {host.bin_dir}/host-local\n")
    host.path("/run/foreign/mine").chmod(0o755)
    conf = BRIDGE | {"ipam": {**BRIDGE["ipam"], "type": "mine"}}
    first, pod = host.netns("c1"), host.netns("slow")
    add(host, conf, first, cni_path="/run/foreign")
    before = state(host, first, pod)
    adding = start(host, "ADD", pod, conf, "/run/foreign")
    gate.wait_begun()
    with Agent(host) as agent:
        deleting = start(host, "DEL", pod, conf, "/run/foreign")
        until(lambda: agent.report()["calls_in_progress"] == 2, "its own question, DEL")
        with pytest.raises(subprocess.TimeoutExpired):
            deleting.wait(0.3)
        gate.open()
        assert wait_for_end(adding, agents.SECONDS) == 0
        assert wait_for_end(deleting, agents.SECONDS) == 0
        assert agent.report()["calls"] == {"bridge DEL": 1}
    assert state(host, first, pod) == before


def test_calls_of_other_attachments_do_not_wait(host: Host) -> None:
    gate = Gate(host)
    pod, other = host.netns("slow"), host.netns("other")
    with Agent(host, code=agents.GATE), Caller(host) as caller:
        caller.call("bridge", "ADD", BRIDGE, pod, "slow")
        gate.wait_begun()
        host.run(f"rm {agents.SOCKET}")
        add(host, BRIDGE, other)
        delete(host, BRIDGE, other)
        gate.open()
        assert caller.outcome()[0] == 0


# --- much at once, and large ------------------------------------------------------------------------------------------


def test_reply_is_larger_than_a_socket_takes_at_once(host: Host, agent: Agent) -> None:
    """And the request: the longest configuration that is allowed, and one byte more."""
    conf = POOL | {"filler": ""}
    length = (4 << 20) - len(json.dumps(conf))
    assert host.call("host-local", "STATUS", conf | {"filler": "x" * length}).rc == 0
    assert agent.calls() == 1
    assert host.call("host-local", "STATUS", conf | {"filler": "x" * (length + 1)}).code == 6
    routes = [{"dst": f"10.{number >> 8}.{number & 255}.0/24"} for number in range(20_000)]
    result = add(host, {**POOL, "ipam": {**POOL["ipam"], "routes": routes}}, host.netns("c1"))  # type: ignore[dict-item]
    assert len(result["routes"]) == 20_000


# --- the machine is short of something -------------------------------------------------------------------------------


def test_agent_has_no_descriptors_left(host: Host, agent: Agent) -> None:
    """An agent without descriptors begins no call that it could not finish: the clients work alone, at once."""
    first, pod = host.netns("c1"), host.netns("c2")
    add(host, BRIDGE, first)
    delete(host, BRIDGE, first)
    add(host, BRIDGE, first)
    before = state(host, first, pod)
    until(lambda: pod.path not in agent.descriptors())
    used = max(int(fd) for fd in os.listdir(f"/proc/{agent.pid}/fd"))
    for spare in range(0, 20, 2):
        subprocess.run(["prlimit", f"--pid={agent.pid}", f"--nofile={used + 1 + spare}:"], check=True)
        reply = host.call("bridge", "ADD", BRIDGE, sandbox=pod, container_id="c2")
        deleted = host.call("bridge", "DEL", BRIDGE, sandbox=pod, container_id="c2")
        subprocess.run(["prlimit", f"--pid={agent.pid}", "--nofile=1024:"], check=True)
        assert (reply.rc, deleted.rc) == (0, 0), (spare, reply, deleted)
        assert state(host, first, pod) == before, spare
        until(lambda: agent.report()["calls_in_progress"] == 1)
    assert "Traceback" not in agent.log(), agent.log()
    add(host, BRIDGE, pod)
    assert agent.calls("bridge ADD") >= 3


def test_run_is_mounted_over(host: Host, agent: Agent) -> None:
    """The agent re-creates its socket; and again, when the old one reappears on which no process listens."""
    pod_comes_and_goes(host)
    assert agent.calls() == 3
    host.run("mount -t tmpfs tmpfs /run; mkdir -p /run/netns")
    pod_comes_and_goes(host)
    until(lambda: host.path(agents.SOCKET).exists())
    assert oct(host.path(agents.SOCKET).stat().st_mode) == "0o140600"
    calls = agent.calls()
    pod_comes_and_goes(host)
    assert agent.calls() == calls + 3
    host.run("umount -l /run")
    pod_comes_and_goes(host)
    until(lambda: agent_answers(agent))
    calls = agent.calls()
    pod_comes_and_goes(host)
    assert agent.calls() == calls + 3


def agent_answers(agent: Agent) -> bool:
    try:
        agent.report()
    except OSError:
        return False
    return True


def test_socket_is_removed(host: Host, agent: Agent) -> None:
    host.run("rm -r /run/cni-py")
    pod_comes_and_goes(host)
    until(lambda: host.path(agents.SOCKET).exists())
    calls = agent.calls()
    pod_comes_and_goes(host)
    assert agent.calls() == calls + 3
    assert agent.stop() == 0
    assert not host.path(agents.SOCKET).exists()


def test_agent_leaves_the_socket_of_its_successor(host: Host) -> None:
    with Agent(host) as old, Agent(host) as new:
        assert old.stop() == 0
        pod_comes_and_goes(host)
        assert new.calls() == 3
