"""The tests' own host (tests/support/namespaces.py): apart from the machine, and gone when the test is over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from support.namespaces import Host, wait_for_end, what_it_does
from support.waiting import Stuck, until


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def refuse(words: str) -> None:
    raise ValueError(words)


def test_host_has_a_network_and_state_of_its_own(host: Host) -> None:
    host.run("ip link add br7 type bridge; echo x >/run/cni-test; echo x >/var/lib/cni/cni-test")
    assert "br7" not in interfaces()
    assert not Path("/run/cni-test").exists()
    assert not Path("/var/lib/cni/cni-test").exists()
    assert host.path("/run/cni-test").read_text() == "x\n"
    assert host.files() == {"/var/lib/cni/cni-test": "x\n"}


def test_function_runs_inside_host_and_sandbox(host: Host) -> None:
    pod = host.netns("c1")
    host.run("ip link add br7 type bridge")
    host.run("ip link add br8 type bridge", pod)
    assert "br7" in host.do(interfaces)
    assert "br8" in host.do(interfaces, sandbox=pod)
    assert host.do(os.listdir, "/run/netns") == ["c1"]
    assert "br7" not in interfaces()


def test_exception_of_a_function_arrives(host: Host) -> None:
    with pytest.raises(ValueError, match="no bridge") as caught:
        host.do(refuse, "no bridge")
    assert "in a child process" in "".join(caught.value.__notes__)


def test_process_that_is_stopped_is_reported_and_killed(host: Host) -> None:
    """nsenter stops itself when its child is stopped, and would be waited for without end."""
    with subprocess.Popen(host.command("sh", "-c", "kill -STOP $$; exit 3")) as process:
        until(lambda: "stopped" in what_it_does(process.pid), what="nsenter is stopped")
        with pytest.raises(Stuck, match=r"not at its end after 0\.1 s: \d+ nsenter: state T, it is stopped.*\nits log"):
            wait_for_end(process, 0.1, "its log")
    assert process.returncode == -signal.SIGKILL
    with subprocess.Popen(host.command("sh", "-c", "exit 3")) as process:
        assert wait_for_end(process) == 3


def test_failing_script_says_what_it_printed(host: Host) -> None:
    with pytest.raises(AssertionError, match="does not exist"):
        host.run("ip link show nothing7")
    assert host.run("ip link show nothing7", check=False) == ""


def test_plugin_is_called_as_a_runtime_does(host: Host) -> None:
    pod = host.netns("c1")
    host.write(
        "/run/plugin",
        '#!/bin/sh\nread -r conf\nprintf \'{"conf": %s, "env": "%s"}\' "$conf" "$(env | sort | tr \'\\n\' \' \')"; exit 3\n',
    )
    host.run("chmod +x /run/plugin")
    rc, said = host.call(
        "/run/plugin", "ADD", {"name": "n"}, sandbox=pod, args="IP=10.0.0.9", prev={"ips": []}, env={"CNI_PATH": None}
    )
    assert rc == 3
    assert said["conf"] == {"name": "n", "prevResult": {"ips": []}}
    assert (
        "CNI_ARGS=IP=10.0.0.9 CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/c1 PATH=" in said["env"]
    )


def test_snapshot_shows_each_kind_of_change(host: Host) -> None:
    pod = host.netns("c1")
    first = host.snapshot(pod)
    assert host.snapshot(pod) == first
    changes = [
        ("ip link add br7 type bridge", None),
        ("ip addr add 10.7.0.1/24 dev br7", None),
        ("ip link set lo up", pod),
        ("ip route add 10.8.0.0/24 dev lo", pod),
        ("nft add table inet t7", None),
        ("echo 1 >/proc/sys/net/ipv4/ip_forward", None),
        ("echo x >/var/lib/cni/file", None),
        ("ip rule add from 10.9.0.0/16 table 7", None),
    ]
    for script, sandbox in changes:
        before = host.snapshot(pod)
        host.run(script, sandbox)
        assert host.snapshot(pod) != before, script


def test_everything_ends_with_the_host(bin_dir: Path) -> None:
    with Host(bin_dir) as host:
        pid = host.pid
        host.netns("c1")
        sleeper = host.run("setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!").strip()
        assert host.path(f"/proc/{sleeper}").exists()
    assert not Path(f"/proc/{pid}").exists()
