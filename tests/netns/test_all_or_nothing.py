"""ADD is all or nothing, DEL does all it can: a fault at every step, full and read-only file systems."""

from __future__ import annotations

from typing import Any

import pytest

from support import faults
from support.namespaces import Host, Reply
from support.nft import list_elements
from support.pods import DUAL_ENV, FLANNEL, V4, V6, add, bridge_conf, check, delete, layer_2_conf, state, words

BRIDGE = bridge_conf(
    V4, V6, isDefaultGateway=True, ipMasq=True, mtu=1400, hairpinMode=True, macspoofchk=True, promiscMode=False,
    ipam={"routes": [{"dst": "10.7.0.0/16"}]},
)  # fmt: skip
CONFS = {
    "flannel": FLANNEL,
    "bridge": BRIDGE,
    "layer-2": layer_2_conf(macspoofchk=True),
    "iptables": BRIDGE | {"ipMasqBackend": "iptables"},
}
MAX_STEPS = 120
PREFERRED = ("sysctl -w net/ipv", "last_reserved_ip", "/run/cni-py")
"""Steps that a call can do without: it says so in the journal, of records on standard error (test_bookkeeping.py)."""


@pytest.fixture
def host(host: Host) -> Host:
    host.write_subnet_env(DUAL_ENV)
    faults.install(host)
    return host


def is_preferred(line: str) -> bool:
    return any(part in line for part in PREFERRED)


def names_the_line(reply: Reply, line: str) -> bool:
    """Return whether the error contains the journal line; of a program that could not be started, its path."""
    program = line.rpartition(" | ")[2].split()[0] if " | " in line else line
    return line in words(reply) or program in words(reply)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_add_whose_result_cannot_be_said_in_its_version_leaves_nothing(host: Host, version: str) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    add(host, layer_2_conf(), first)
    before = state(host, first, second)
    reply = host.call("bridge", "ADD", layer_2_conf(cniVersion=version), sandbox=second, container_id="c2")
    assert reply.code == 7
    assert "use cniVersion 0.3.1 or newer" in words(reply)
    assert state(host, first, second) == before


@pytest.mark.parametrize("conf", CONFS.values(), ids=CONFS.keys())
def test_add_takes_everything_back_whichever_step_fails(host: Host, conf: dict[str, Any]) -> None:
    """Another pod exists, and with it all shared objects."""
    first, second = host.netns("c1"), host.netns("c2")
    add(host, conf, first)
    before = state(host, first, second)
    seen = []
    for number in range(1, MAX_STEPS):
        errno = ("EIO", "ENOSPC", "EPERM")[number % 3]
        reply, line = faults.call(host, "ADD", conf, "refuse", number, errno, sandbox=second, container_id="c2")
        if line is None:
            assert reply.rc == 0, reply
            break
        seen.append(line)
        if reply.rc == 0:
            assert is_preferred(line), f"ADD succeeded without: {line}"
            assert check(host, conf, second, reply.json).rc == 0
            delete(host, conf, second)
        else:
            assert reply.code in (5, 101), f"{line}: {reply}"
            assert names_the_line(reply, line), f"{line}: {reply}"
        assert state(host, first, second) == before, f"after a failure of: {line}"
    else:
        raise AssertionError("no end of steps")
    assert len(seen) >= 5, seen
    assert check(host, conf, second, reply.json).rc == 0
    delete(host, conf, second)
    assert state(host, first, second) == before


@pytest.mark.parametrize("conf", CONFS.values(), ids=CONFS.keys())
def test_first_add_takes_everything_back_but_what_is_shared(host: Host, conf: dict[str, Any]) -> None:
    pod = host.netns("c1")
    before = state(host, pod)
    for number in range(1, MAX_STEPS):
        reply, line = faults.call(host, "ADD", conf, "refuse", number, sandbox=pod)
        if reply.rc == 0:
            delete(host, conf, pod)
        after = state(host, pod)
        assert after[str(pod)] == before[str(pod)], line
        assert (after["files"], after["records"]) == (before["files"], before["records"]), line
        assert host.host_ends() == [], line
        assert list_elements(host) == [], line
        host.run(
            "ip link del br0 2>&1; ip link del cni0 2>&1; nft flush ruleset; echo 0 >/proc/sys/net/ipv4/ip_forward", check=False
        )
        if line is None:
            break
        assert reply.rc == 0 or reply.code in (5, 101), f"{line}: {reply}"
        assert reply.rc == 0 or names_the_line(reply, line), f"{line}: {reply}"
    else:
        raise AssertionError("no end of steps")


@pytest.mark.parametrize("conf", [FLANNEL, BRIDGE], ids=["flannel", "bridge"])
def test_add_takes_back_what_was_done_though_the_answer_was_lost(host: Host, conf: dict[str, Any]) -> None:
    """The kernel made the change, but its acknowledgement did not come through (ENOBUFS)."""
    first, second = host.netns("c1"), host.netns("c2")
    add(host, conf, first)
    before = state(host, first, second)
    for number in range(1, MAX_STEPS):
        reply, line = faults.call(host, "ADD", conf, "lost", number, "ENOBUFS", sandbox=second, container_id="c2")
        if line is None:
            break
        assert reply.rc == 1, line
        assert reply.code == 101, f"{line}: {reply}"
        assert names_the_line(reply, line), f"{line}: {reply}"
        assert state(host, first, second) == before, line
    else:
        raise AssertionError("no end of steps")
    delete(host, conf, second)
    assert state(host, first, second) == before


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("conf", [FLANNEL, BRIDGE], ids=["flannel", "bridge"])
def test_kernel_that_does_not_answer_a_question(host: Host, conf: dict[str, Any], verb: str) -> None:
    """Reading fails: an error of the kernel, not an internal error, and nothing is left incomplete."""
    first, second = host.netns("c1"), host.netns("c2")
    add(host, conf, first)
    before = state(host, first, second)
    for number in range(1, MAX_STEPS):
        if verb == "DEL":
            add(host, conf, second)
        reply, line = faults.call(host, verb, conf, "read", number, sandbox=second, container_id="c2")
        if verb == "DEL" or reply.rc == 0:
            delete(host, conf, second)
        assert state(host, first, second) == before, number
        if line is None:
            assert reply.rc == 0, reply
            break
        assert reply.rc == 0 or reply.code == 101, reply
    else:
        raise AssertionError("no end of questions")


@pytest.mark.parametrize("conf", CONFS.values(), ids=CONFS.keys())
def test_del_names_what_is_left_and_the_next_one_does_it(host: Host, conf: dict[str, Any]) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    add(host, conf, first)
    before = state(host, first, second)
    failed = 0
    for number in range(1, MAX_STEPS):
        add(host, conf, second)
        reply, line = faults.call(host, "DEL", conf, "refuse", number, sandbox=second, container_id="c2")
        if line is None:
            assert reply.rc == 0, reply
            assert state(host, first, second) == before
            break
        if reply.rc:
            failed += 1
            assert reply.code in (5, 101), f"{line}: {reply}"
            assert names_the_line(reply, line), f"{line}: {reply}"
            assert "left behind" in words(reply) or line.split()[-1] in words(reply), f"{line}: {reply}"
        else:
            assert is_preferred(line), f"DEL succeeded without: {line}"
        delete(host, conf, second)
        assert state(host, first, second) == before, line
    else:
        raise AssertionError("no end of steps")
    assert failed >= (2 if conf is CONFS["layer-2"] else 3)


def test_del_does_the_rest_when_one_thing_fails(host: Host) -> None:
    """The veth cannot be deleted: all else is deleted, and the saved configuration is kept for the retry."""
    pod = host.netns("c1")
    for number in range(1, MAX_STEPS):
        result = add(host, FLANNEL, pod)
        reply, line = faults.call(host, "DEL", FLANNEL, "refuse", number, sandbox=pod)
        assert line is not None
        if "ip link del" in line:
            break
        delete(host, FLANNEL, pod)
    assert reply.json["msg"].startswith("DEL left behind: the veth"), reply
    assert host.host_ends() == [result["interfaces"][1]["name"]]
    assert list_elements(host) == []
    assert [name for name in host.files("/var/lib/cni") if "last_reserved" not in name] == ["/var/lib/cni/flannel/c1"]
    delete(host, FLANNEL, pod)
    assert host.host_ends() == []


def test_failures_cost_no_addresses(host: Host) -> None:
    """A range of one address: it is free again after each failure."""
    pod = host.netns("c1")
    conf = bridge_conf([{"subnet": "10.1.0.0/30"}])
    for number in range(1, MAX_STEPS):
        reply, line = faults.call(host, "ADD", conf, "refuse", number, sandbox=pod)
        if reply.rc == 0:
            delete(host, conf, pod)
        if line is None:
            break
    assert number > 5, "steps that can fail"
    add(host, conf, pod)


# --- file systems -----------------------------------------------------------------------------------------------------


def mount_small(host: Host, directory: str, *, files: bool = False) -> None:
    """A file system at `directory` that is full: of data, or of files."""
    host.run(f"mkdir -p {directory}; mount -t tmpfs -o size=64k,nr_inodes=20 tmpfs {directory}")
    fill(host, directory, files=files)


def fill(host: Host, directory: str, *, files: bool) -> None:
    many = f"cd {directory}; i=0; while : >$i; do i=$((i+1)); done"
    host.run(many if files else f"cat /dev/zero >{directory}/0", check=False)


def free(host: Host, directory: str) -> None:
    host.run(f"rm -f {directory}/[0-9] {directory}/[0-9][0-9]")


@pytest.mark.parametrize("files", [False, True], ids=["data", "inodes"])
@pytest.mark.parametrize("directory", ["/var/lib/cni", "/var/lib/cni/networks"])
def test_add_on_a_full_disk(host: Host, directory: str, files: bool) -> None:
    pod = host.netns("c1")
    mount_small(host, directory, files=files)
    reply = host.call("flannel", "ADD", FLANNEL, sandbox=pod)
    assert (reply.rc, reply.code) == (1, 5), reply
    assert "No space left on device" in words(reply)
    assert directory in words(reply)
    free(host, directory)
    assert [name for name in host.files("/var/lib/cni", "/run/cni-py/attachments") if "last_reserved" not in name] == []
    assert host.host_ends() == []
    assert [entry["ifname"] for entry in host.json("ip -j link", pod)] == ["lo"]
    add(host, FLANNEL, pod)
    delete(host, FLANNEL, pod)


@pytest.mark.parametrize("files", [False, True], ids=["data", "inodes"])
@pytest.mark.parametrize("directory", ["/var/lib/cni", "/run/cni-py"])
def test_del_and_gc_need_no_space(host: Host, directory: str, files: bool) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    mount_small(host, directory)
    free(host, directory)
    add(host, FLANNEL, first)
    add(host, FLANNEL, second)
    fill(host, directory, files=files)
    delete(host, FLANNEL, first)
    host.ok("flannel", "GC", FLANNEL | {"cni.dev/valid-attachments": []})
    assert host.host_ends() == []
    left = host.files("/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0", "/run/cni-py/attachments")
    assert [name for name in left if "last_reserved" not in name] == []


def test_read_only_disk(host: Host) -> None:
    first, second = host.netns("c1"), host.netns("c2")
    add(host, FLANNEL, first)
    before = state(host, first, second)
    host.run("mount -o remount,ro /var/lib/cni")
    reply = host.call("flannel", "ADD", FLANNEL, sandbox=second, container_id="c2")
    assert reply.code == 5
    assert "Read-only file system" in words(reply)
    assert "/var/lib/cni/flannel/c2" in words(reply)
    assert state(host, first, second) == before
    reply = host.call("flannel", "DEL", FLANNEL, sandbox=first)
    assert reply.code == 5
    assert reply.json["msg"].startswith("DEL left behind: addresses of host-local")
    assert "/var/lib/cni/networks/cbr0/" in words(reply)
    assert "Read-only file system" in words(reply)
    assert host.host_ends() == []
    host.run("mount -o remount,rw /var/lib/cni")
    delete(host, FLANNEL, first)
    assert [name for name in host.files() if "last_reserved" not in name] == []


@pytest.mark.parametrize("forwarding", [True, False])
def test_read_only_sysctls(host: Host, forwarding: bool) -> None:
    """Forwarding that is on already need not be written: nothing required fails."""
    pod = host.netns("c1")
    if forwarding:
        host.run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
    before = state(host, pod)
    host.run("mount -o bind,ro /proc/sys /proc/sys")
    reply = host.call("flannel", "ADD", FLANNEL, sandbox=pod)
    if forwarding:
        assert reply.rc == 0, reply
        assert check(host, FLANNEL, pod, reply.json).rc == 0
        delete(host, FLANNEL, pod)
    else:
        assert reply.code == 101
        assert "sysctl -w net/ipv" in words(reply)
        assert "Read-only file system" in words(reply)
    after = state(host, pod)
    assert (after["files"], after["records"], after[str(pod)]) == (before["files"], before["records"], before[str(pod)])
    assert host.host_ends() == []
