"""A system call that fails, wherever in the chain; state files of every kind that are empty, cut, or rubbish.

Faults of single steps of flannel and bridge are in test_all_or_nothing.py; here it is each system call that changes
something, of flannel and portmap, of ADD, DEL and GC, that returns EIO, ENOMEM or ENOSPC (tests/support/kills.py).
"""

from __future__ import annotations

import errno
import json
import platform
import random
import time
from pathlib import Path
from typing import Any

import pytest

from support import kills
from support.namespaces import Host, Sandbox
from support.pods import add, check, delete, gc

SECONDS = 2.0
FEWEST = 6  # as long as it takes, on a machine that has a lot else to do
ERRORS = (errno.EIO, errno.ENOMEM, errno.ENOSPC)
KNOWN_CODES = {5, 7, 11, 50, 101, 102}

# --- a system call that fails -----------------------------------------------------------------------------------------


def failing_calls(bin_dir: str, position: int, verb: str, seconds: float) -> tuple[int, list[str]]:
    """One plugin of the chain with a fault at each system call, in any order; how many, and what was wrong then."""
    random.seed(20261124)
    node = kills.Node(kills.Chain(bin_dir, kills.OURS))
    plugin, wrong, count = node.chain.plugins[position], [], 0
    total = fault(node, plugin, verb, kills.Killer(calls=10**6), wrong).count
    deadline = time.monotonic() + seconds
    for calls in random.sample(range(1, total + 1), total):
        for number in random.sample(ERRORS, 1):
            fault(node, plugin, verb, kills.Killer(calls=calls, error=number), wrong)
            count += 1
        if time.monotonic() > deadline and count >= FEWEST:
            break
    node.chain.run("ADD", "c2")
    node.chain.run("DEL", "c2")
    if left := kills.difference(node.clean, kills.state()):
        wrong.append(f"in the end: {left}")
    return count, wrong


def fault(node: kills.Node, plugin: dict[str, Any], verb: str, killer: kills.Killer, wrong: list[str]) -> kills.Killer:
    """The plugin with this fault where the rest of the chain goes well; then DEL."""
    chain = node.chain
    main, portmap = chain.plugins
    result = None
    if verb == "ADD" and plugin is portmap:
        result = json.loads(chain.call(main, "ADD", "c2").out)
    elif verb != "ADD":
        chain.run("ADD", "c2")
        result = chain.results.get("c2") if verb == "DEL" else None
        if verb == "DEL" and plugin is main:
            chain.call(portmap, "DEL", "c2", result)
    before = kills.state() if verb == "ADD" else None
    done = chain.call(plugin, verb, "c2", result, killer)
    at = f"{plugin['type']} {verb}, {done.at} fails with {errno.errorcode.get(killer.error)}"
    if (done.at or "").endswith(("exit_group", "/memfd:out (deleted)")):
        pass  # no process reads the reply
    elif b"Traceback" in done.err:
        wrong.append(f"{at}: {done.err.decode()}")
    elif done.status:
        answer = json.loads(done.out)
        if done.status != 1 or answer["code"] not in KNOWN_CODES:
            wrong.append(f"{at}: {done.status} {answer}")
        if before is not None and (left := kills.difference(before, kills.state())):
            wrong.append(f"{at}: a failed ADD left {left}, and said {answer}")
    chain.run("DEL", "c2")
    if left := kills.difference(node.clean, kills.state()):
        wrong.append(f"{at}, then DEL: {left}")
        node.reset()
    return killer


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls are made to fail on x86_64 alone")
@pytest.mark.parametrize("verb", kills.VERBS)
@pytest.mark.parametrize("position", [0, 1], ids=["flannel", "portmap"])
def test_system_call_that_fails(host: Host, longer: int, position: int, verb: str) -> None:
    """A clear error or none, never a bug; a failed ADD leaves nothing; after the next DEL nothing is left."""
    count, wrong = host.do(failing_calls, host.bin_dir, position, verb, SECONDS * longer)
    assert wrong == []
    assert count >= FEWEST


# --- damaged files ----------------------------------------------------------------------------------------------------

V4 = "10.244.91"
FLANNEL = {"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "delegate": {"isDefaultGateway": True}}
PORTMAP = {"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "capabilities": {"portMappings": True}}
PLACES = {
    "reservation": f"/var/lib/cni/networks/cbr0/{V4}.3",
    "last reserved": "/var/lib/cni/networks/cbr0/last_reserved_ip.0",
    "lock": "/var/lib/cni/networks/cbr0/lock",
    "saved configuration": "/var/lib/cni/flannel/c2",
    "record": "/run/cni-py/attachments/c2:eth0:cbr0",
    "record of portmap": "/run/cni-py/portmap/c2:eth0:cbr0",
    "boot id": "/run/cni-py/boot-id",
    "lock of the packet filter": "/run/cni-py/nft.lock",
    "lock of the sweep": "/run/cni-py/sweep.lock",
    "journal": "/run/cni-py/journal/c2:eth0:cbr0",
}
"""Every kind of file that is kept, of the second pod."""
CONTENT_MATTERS = ("reservation", "last reserved", "saved configuration", "record", "record of portmap")
DAMAGE: dict[str, Any] = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "rubbish": lambda text: bytes(range(256)) * 8,
    "another type": lambda text: b"[7]",
    "deep": lambda text: b"[" * 5000,
    "large": lambda text: b"7" * (3 << 20),
}
CASES = [(kind, how) for kind in PLACES for how in DAMAGE if kind in CONTENT_MATTERS or how in ("empty", "rubbish")]
SAID = {
    "reservation": "is damaged: ",
    "last reserved": "invalid address",
    "saved configuration": "is damaged and ignored",
    "record": "ignored a damaged record",
}
"""Message in the journal, if the damage matters and is distinguishable from a good file."""


def ports(number: int) -> dict[str, Any]:
    entries = [{"protocol": protocol, "hostPort": 8000 + number, "containerPort": 80} for protocol in ("tcp", "udp")]
    return PORTMAP | {"runtimeConfig": {"portMappings": entries}}


def add_chain(host: Host, number: int) -> Sandbox:
    pod = Sandbox(f"c{number}")
    add(host, ports(number), pod, prev=add(host, FLANNEL, pod))
    return pod


def delete_chain(host: Host, number: int) -> None:
    for conf in (ports(number), FLANNEL):
        delete(host, conf, Sandbox(f"c{number}"))


def everything(host: Host) -> kills.State:
    """Return kills.state(): everything except journals and shared objects."""
    return host.do(kills.state)


@pytest.fixture
def node(host: Host) -> Host:
    """A host with a pod that lives, c1, and what pods share."""
    host.write_subnet_env()
    for name in ("c1", "c2"):
        host.netns(name)
    add_chain(host, 1)
    return host


def damage(host: Host, kind: str, how: str) -> None:
    path = host.path(PLACES[kind])
    path.write_bytes(DAMAGE[how](path.read_bytes()))


def journals(host: Host) -> str:
    return host.run("cat /run/cni-py/journal/* /run/cni-py/journal/deleted/* 2>/dev/null || true")


def without_damaged_reservation(state: kills.State) -> kills.State:
    """The file has no owner: DEL cannot identify it. The address is free, and GC removes the file."""
    return state | {"file": {path: text for path, text in state["file"].items() if path != PLACES["reservation"]}}


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_damaged_file_holds_up_nothing(node: Host, kind: str, how: str) -> None:
    """DEL removes the rest, GC the file too; CHECK of another pod, and the next ADD, work; the journal has a note."""
    before = everything(node)
    for cleaner in ("DEL", "GC"):
        add_chain(node, 2)
        node.run(f"mv {node_address(node, 'c2')} {PLACES['reservation']} 2>/dev/null || true")
        damage(node, kind, how)
        if cleaner == "DEL":
            delete_chain(node, 2)
            assert kills.difference(before, without_damaged_reservation(everything(node))) == {}
        gc(node, FLANNEL, ("c1", "eth0"))
        gc(node, PORTMAP, ("c1", "eth0"))
        assert kills.difference(before, everything(node)) == {}, cleaner
    if kind in SAID and how not in ("empty", "cut"):
        assert SAID[kind] in journals(node)
    add_chain(node, 2)
    delete_chain(node, 2)
    assert kills.difference(before, everything(node)) == {}


def node_address(host: Host, container_id: str) -> str:
    found = [name for name, text in host.files("/var/lib/cni/networks/cbr0").items() if text.startswith(container_id)]
    return found[0]


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_reservation_is_given_again(host: Host, how: str) -> None:
    """A range of two addresses: the gateway's, and the damaged one."""
    host.write_subnet_env(f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={V4}.1/30\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    host.write(f"/var/lib/cni/networks/cbr0/{V4}.2", "")
    host.path(f"/var/lib/cni/networks/cbr0/{V4}.2").write_bytes(DAMAGE[how](b"gone\r\neth0"))
    if how == "cut":  # "gone\r": an old file of that container, not distinguishable from a good one
        gc(host, FLANNEL)
    result = add(host, FLANNEL, host.netns("c1"))
    assert result["ips"][0]["address"] == f"{V4}.2/30"


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_cached_result(node: Host, cni_py: Path, how: str) -> None:
    """Damage libcni's file, which `cni-py del` and `cni-py gc` read: it is deleted, with a message."""
    chain = {"cniVersion": "1.1.0", "name": "cbr0", "plugins": [FLANNEL, PORTMAP]}
    node.write("/etc/cni/net.d/10-cbr0.conflist", json.dumps(chain))
    command = f"{cni_py} %s cbr0 c2 --container-id c2 --cni-path {node.bin_dir} --cap-args"
    mappings = json.dumps({"portMappings": ports(2)["runtimeConfig"]["portMappings"]})
    before = everything(node)
    path = node.path("/var/lib/cni/results/cbr0-c2-eth0")
    node.run(f"{command % 'add'} '{mappings}'")
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    done = node.execute(["sh", "-c", f"{command % 'del'} '{mappings}'"])
    assert done.returncode == 0, done.stderr
    assert "ignoring and deleting an invalid cached result" in done.stderr or how == "large"
    assert "Traceback" not in done.stderr
    assert kills.difference(before, everything(node)) == {}
    path.write_bytes(DAMAGE[how](b'{"kind": "cniCacheV1", "networkName": "cbr0"}'))
    node.run(f"{cni_py} gc cbr0 --valid c1/eth0 --cni-path {node.bin_dir}")
    path.unlink()
    assert kills.difference(before, everything(node)) == {}


def sweep_without_time(bin_dir: str) -> None:
    from cni_py.spec import call
    from cni_py.sweep import sweep

    sweep.BOOT_LIMIT_SECONDS = -1.0
    this = call.Call(verb="ADD", plugin="flannel", container_id="c9", ifname="eth0")
    sweep.before_first_call(this, json.dumps(FLANNEL).encode())


def test_first_call_of_a_boot_that_had_no_time_leaves_the_sweep_to_the_next(node: Host) -> None:
    """A host is busy after its start; what is not checked then must not leak."""
    node.write(f"/var/lib/cni/networks/cbr0/{V4}.77", "gone\r\neth0")
    node.run(f"touch -d '10 minutes ago' /var/lib/cni/networks/cbr0/{V4}.77; rm /run/cni-py/boot-id")
    node.do(sweep_without_time, node.bin_dir)
    assert not node.path("/run/cni-py/boot-id").exists()
    assert node.path(f"/var/lib/cni/networks/cbr0/{V4}.77").exists()
    add_chain(node, 2)
    assert node.path("/run/cni-py/boot-id").exists()
    assert not node.path(f"/var/lib/cni/networks/cbr0/{V4}.77").exists()


def test_sweep_at_the_first_calls_of_a_boot_gives_up_in_the_end(node: Host) -> None:
    """A host that is too large for it pays for some calls, not for all."""
    node.run("rm /run/cni-py/boot-id")
    for _ in range(10):
        assert not node.path("/run/cni-py/boot-id").exists()
        node.do(sweep_without_time, node.bin_dir)
    assert node.path("/run/cni-py/boot-id").exists()


def test_check_does_not_mind_damage_of_another_pods_files(node: Host) -> None:
    result = json.loads(json.dumps(add(node, FLANNEL, Sandbox("c2"))))
    prev = add(node, ports(2), Sandbox("c2"), prev=result)
    for name in (f"/var/lib/cni/networks/cbr0/{V4}.2", "/var/lib/cni/flannel/c1", "/run/cni-py/attachments/c1:eth0:cbr0"):
        node.path(name).write_bytes(b"\0\xff")
    for conf in (FLANNEL, ports(2)):
        assert check(node, conf, Sandbox("c2"), prev).rc == 0
