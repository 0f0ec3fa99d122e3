"""`cni-py lab`: what it makes, that it is torn down whatever was killed, and its faults. Real kernel, real plugins."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_py.cli import lab_commands
from cni_py.lab import Lab, LabFailed, faults, plan
from cni_py.lab.machine import start_time
from cni_py.lab.ping import Matrix, Pair
from cni_py.lab.programs import ETCD_TOOLS, TOOLS, Programs, check, find_tool
from cni_py.lab.state import State
from cni_py.program import SYSTEM_DIRECTORIES
from support.tools import need
from support.waiting import SECONDS, until

SOON_SECONDS = 20.0

needs_root = pytest.mark.netns
ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


# --- connectivity -----------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    "lab",
    [
        {},
        {"backend": "host-gw"},
        {"backend": "host-gw", "ipv6": True, "pods": 2},
        {"ipv6": True},
        {"ipv4": False, "ipv6": True},
        {"nodes": 4, "segments": 2},
        {"nodes": 2, "segments": 2, "ipv6": True},
        {"backend": "udp"},
        {"backend": "udp", "ipv6": True, "segments": 2},
        {"backend": "udp", "ipv4": False, "ipv6": True},
        {"nodes": 4, "segments": 2, "backend_options": {"DirectRouting": True}},
        {"nodes": 2, "datastore": "etcd"},
        {"nodes": 2, "datastore": "etcd", "ipv4": False, "ipv6": True},
    ],
    indirect=True,
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_all_pods_reach_one_another_and_the_outside(lab: Lab) -> None:
    matrix = lab.wait_connected(outside=True)
    assert matrix.is_complete, "\n".join(matrix.lines())
    settings, pods = lab.settings, len(lab.pods)
    assert pods == settings.nodes * settings.pods
    assert len(matrix.pairs) == (pods * (pods - 1) + pods) * (settings.ipv4 + settings.ipv6)


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 2}], indirect=True)
def test_nodes_are_machines_of_their_own(lab: Lab) -> None:
    names = ["node1", "node2", "router", "outside", "switch"]
    for kind in ("net", "mnt", "pid", "ipc", "uts"):
        inside = {os.readlink(f"/proc/{lab.machine(name).pid}/ns/{kind}") for name in names}
        assert len(inside) == len(names)
        assert os.readlink(f"/proc/self/ns/{kind}") not in inside
    assert lab.run("node1", "hostname").strip() == "node1"
    assert lab.run("node1", "echo $$; ls /proc | grep -c '^[0-9]'").split()[1] in map(str, range(3, 9))
    assert lab.run("node1", "ls /etc/cni/net.d /var/lib/cni/networks").split()[1] == "10-flannel.conflist"
    assert lab.run("node1", "cat /proc/sys/net/ipv4/ip_forward") == "1\n"
    assert lab.run("outside", "cat /proc/sys/net/ipv4/ip_forward") == "0\n"
    lab.run("node1", "touch /run/mine /var/lib/cni/mine /etc/cni/net.d/mine")
    for path in ("/run/mine", "/var/lib/cni/mine", "/etc/cni/net.d/mine"):
        assert not Path(path).exists()
        assert not Path(lab.machine("node2").path(path)).exists()
    assert "10.244." not in lab.run("outside", "ip route")


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 1}], indirect=True)
def test_commands_run_where_requested(lab: Lab) -> None:
    assert f"{lab.pods['pod1'].addresses[0]}/24" in lab.run("pod1", "ip -4 -br addr show eth0")
    assert lab.run("pod1", "cat", stdin="to the pod") == "to the pod"
    assert lab.run("node1", "cni-py explain").count("cbr0") == 1
    assert lab.run("node1", "pwd", check=False).strip() == os.getcwd()
    assert lab.run("node1", "exit 3", check=False) == ""
    with pytest.raises(LabFailed, match="failed with 3"):
        lab.run("node1", "exit 3")
    with pytest.raises(LabFailed, match='unknown place "pod9"') as failure:
        lab.run("pod9", "true")
    assert "pod1" in failure.value.hint


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 2, "ipv6": True, "pods": 0, "numbered": True}], indirect=True)
def test_numbered_nodes_have_the_subnets_of_their_numbers(lab: Lab) -> None:
    assert lab.subnets("node1") == "10.244.1.0/24 and fd00:10:244:1::/64"
    assert lab.subnets("node2") == "10.244.2.0/24 and fd00:10:244:2::/64"
    assert lab.run("node1", "cni-py sweep") == "no leaked resources found\n"  # by /run/switch it can inspect all


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 2}], indirect=True)
def test_packets_that_are_too_large_are_reported(lab: Lab) -> None:
    assert lab.wait_connected().is_complete
    faults.break_(lab, "flanneld", "node1")  # which would restore it
    lab.run("node1", "ip link set flannel.1 mtu 1400")
    matrix = lab.ping(seconds=0.5)
    assert [pair.why for pair in matrix.failed if pair.source == "pod1"] == ["1450 bytes: too large for the path"]
    assert "small only" in "\n".join(matrix.lines())


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 2}], indirect=True)
def test_nodes_come_and_go(lab: Lab) -> None:
    assert lab.add_node() == "node3"
    assert lab.wait_connected().is_complete
    assert set(lab.pods) == {"pod1", "pod2", "pod3"}
    lab.remove_node("node1")
    assert lab.nodes == ["node2", "node3"]
    assert set(lab.pods) == {"pod2", "pod3"}
    assert lab.add_node() == "node4"
    assert lab.wait_connected().is_complete
    assert set(lab.pods) == {"pod2", "pod3", "pod4"}


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 3}], indirect=True)
def test_three_nodes_are_up_soon(lab: Lab) -> None:
    """Two seconds are enough, on an idle machine."""
    assert lab.wait_connected().is_complete
    assert time.time() - lab.state.since < SOON_SECONDS


# --- faults -----------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("what", ["route", "arp", "fdb"])
@pytest.mark.parametrize("lab", [{"nodes": 3, "ipv6": True}], indirect=True)
def test_entry_is_put_back_by_flanneld_and_else_by_heal(lab: Lab, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "HEALED_SECONDS", SOON_SECONDS)
    assert lab.wait_connected().is_complete
    fault = faults.break_(lab, what, "node1")
    assert fault.removed == 4
    assert fault.healed_seconds is not None
    assert not lab.state.broken

    faults.break_(lab, "flanneld", "node1")
    assert faults.break_(lab, what, "node1").healed_seconds is None
    assert lab.state.broken.keys() == {"flanneld node1", f"{what} node1"}
    assert not lab.ping(seconds=0.5).is_complete
    faults.heal(lab, what, "node1")
    assert lab.wait_connected().is_complete
    faults.heal(lab, "flanneld", "node1")
    assert not lab.state.broken
    assert lab.flanneld("node1").is_alive


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 2}], indirect=True)
def test_cable(lab: Lab) -> None:
    assert lab.wait_connected().is_complete
    faults.break_(lab, "link", "node1")
    assert len(lab.ping(seconds=0.3).failed) == 2
    with pytest.raises(LabFailed, match="is already broken"):
        faults.break_(lab, "link", "node1")
    faults.heal(lab, "link", "node1")
    faults.heal(lab, "link", "node1")
    assert lab.wait_connected().is_complete


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 2, "datastore": "etcd"}], indirect=True)
def test_etcd_keeps_its_data(lab: Lab) -> None:
    get = "etcdctl get --prefix --print-value-only /coreos.com/network"
    assert lab.wait_connected().is_complete
    before = lab.run("node2", get)
    assert json.loads(before.splitlines()[0]) == lab.settings.config
    faults.break_(lab, "etcd")
    assert not lab.service("etcd").is_alive
    assert lab.run("etcd", "etcdctl --command-timeout=300ms get x", check=False) == ""
    assert lab.wait_connected().is_complete
    faults.heal(lab, "etcd")
    assert lab.run("etcd", get) == before


@needs_root
@pytest.mark.parametrize("lab", [{"nodes": 1, "backend": "host-gw"}], indirect=True)
def test_what_cannot_be_broken_is_said(lab: Lab) -> None:
    for arguments, words in (
        (("etcd",), "runs without etcd"),
        (("moon", "node1"), 'unknown fault "moon"'),
        (("link", "node7"), 'unknown node "node7"'),
        (("fdb", "node1"), "no fdb entry"),
    ):
        with pytest.raises(LabFailed, match=words):
            faults.break_(lab, *arguments)
    assert not lab.state.broken


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(bin_dir: Path, tmp_path: Path) -> Iterator[Command]:
    """`cni-py lab …` as installed, in a directory of its own: `command("up", "--nodes", "2")`."""
    program = str(bin_dir.parent.parent / "bin" / "cni-py")

    def run(verb: str, *argv: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program, "lab", verb, "--folder", str(tmp_path / "lab"), *argv],
            capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    yield run
    run("down")


def processes_of(directory: Path) -> list[int]:
    """Everything that has a lab's directory in its command line or its mounts."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            mounts = (entry / "mountinfo").read_text(errors="replace")
            if str(directory) in mounts or str(directory) in (entry / "cmdline").read_text(errors="replace"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until_gone(directory: Path, words: str = "") -> None:
    until(lambda: not processes_of(directory), lambda: f"{processes_of(directory)} have ended: {words}")


@needs_root
def test_command_line_from_up_to_down(command: Command, tmp_path: Path) -> None:
    up = command("up", "--nodes", "2", "--backend-option", "Port=8472")
    assert "2 of 2 from pod to pod and 2 of 2 from pod to outside, packets of 1450 bytes with DF too" in up.stdout
    assert "up in " in up.stdout
    assert processes_of(tmp_path)
    assert "a lab is running already" in command("up", status=1).stderr
    ping = command("ping", "--outside").stdout.splitlines()
    assert ping[0].split() == ["IPv4", "pod1", "pod2", "outside"]
    assert command("ping").stdout.splitlines()[-1] == "2 of 2 from pod to pod, packets of 1450 bytes with DF too"
    status = json.loads(command("status", "--json").stdout)
    assert [node["name"] for node in status["nodes"]] == ["node1", "node2"]
    assert status["config"]["Backend"] == {"Type": "vxlan", "Port": 8472}
    assert command("exec", "pod1", "--", "sh", "-c", "exit 7", status=7).stdout == ""
    assert "192.168.123.11/24" in command("exec", "node1", "ip", "-br", "addr", "show", "eth0").stdout
    assert "restored them after" in command("break", "route", "node1").stdout
    command("break", "flanneld", "node2")
    assert "broken: flanneld node2" in command("status", status=1).stdout
    assert command("heal").stdout == "flanneld node2: healed\n"
    command("status")
    assert "Wrote subnet file to /run/flannel/subnet.env" in command("log", "node1").stdout
    assert "pod1 has no log" in command("log", "pod1", status=1).stderr
    assert command("down").stdout == "lab removed\n"
    assert command("down").stdout == "no lab is running\n"
    assert list(tmp_path.iterdir()) == []
    wait_until_gone(tmp_path)
    assert "no lab is running" in command("ping", status=1).stderr


@needs_root
def test_fault_without_its_node_is_wrong_usage(command: Command) -> None:
    command("up", "--nodes", "2", "--pods", "0", "--datastore", "etcd")
    for verb in ("break", "heal"):
        missing = command(verb, "route", status=2)
        assert missing.stderr.startswith('cni-py: "route" requires a node\n')
        assert missing.stderr.endswith(" route node1; nodes: node1, node2\n")
        too_much = command(verb, "etcd", "node1", status=2)
        assert 'etcd does not run on "node1" but on its own machine' in too_much.stderr
    command("status")


@needs_root
def test_hints_of_the_lab_are_typed(command: Command, tmp_path: Path) -> None:
    """Each in the state that produced it; each names this lab's directory, and the program as it was typed."""

    def hint(verb: str, *argv: str, status: int = 1) -> list[str]:
        text = command(verb, *argv, status=status).stderr.partition("hint: ")[2]
        commands = re.findall(r"(\S*cni-py lab [^;,\n]*?)(?= removes| creates|[;,\n]|$)", text)
        assert commands, text
        assert all(f"--directory {tmp_path / 'lab'}" in line for line in commands)
        return commands

    def typed(line: str, status: int = 0) -> None:
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, f"{line}: {done.stdout}{done.stderr}"

    (up,) = hint("status")
    typed(f"{up} --nodes 2 --pods 0")
    show, down = hint("up")
    typed(show)
    (with_etcd,) = hint("break", "etcd")
    typed(down)
    typed(f"{with_etcd} --nodes 2 --pods 0")
    (route,) = hint("break", "route", status=2)
    typed(route)
    (etcd,) = hint("break", "etcd", "node1", status=2)
    typed(etcd)
    (heal,) = hint("break", "etcd")
    typed(heal)
    keeper = json.loads((tmp_path / "lab" / "state.json").read_text())["keeper"]["pid"]
    os.kill(keeper, signal.SIGKILL)
    down, up = hint("status")
    typed(down)
    typed(f"{up} --nodes 1 --pods 0")
    (tmp_path / "lab" / "state.json").write_text("{")
    (down,) = hint("status")
    typed(down)


@needs_root
def test_status_is_about_what_is_broken_now(command: Command) -> None:
    """A flanneld that is back heals what was deleted without it, and so may a person."""
    command("up", "--nodes", "2")
    restore = command("exec", "node1", "sh", "-c", "ip route show proto 122 | sed 's/^/ip route add proto 122 /'").stdout
    command("break", "flanneld", "node1")
    command("break", "route", "node1")
    command("break", "arp", "node1")
    assert json.loads(command("status", "--json", status=1).stdout)["broken"] == ["arp node1", "flanneld node1", "route node1"]
    command("exec", "node1", "sh", "-ec", restore)
    assert json.loads(command("status", "--json", status=1).stdout)["broken"] == ["arp node1", "flanneld node1"]
    command("heal", "flanneld", "node1")
    assert "broken" not in command("status").stdout
    assert command("heal").stdout == ""


@needs_root
def test_up_says_which_pods_do_not_reach_one_another(command: Command) -> None:
    up = command("up", "--nodes", "2", "--segments", "2", "--backend", "host-gw", status=1)
    assert "0 of 2 from pod to pod and 2 of 2 from pod to outside" in up.stdout
    assert "not reached: pod1 to pod2 (10.244." in command("status", status=1).stdout
    assert "not all pods reach one another: pod1 to pod2 (10.244." in up.stderr
    assert "The lab is kept" in up.stderr


@needs_root
def test_back_end_that_makes_no_way_is_up_all_the_same(command: Command) -> None:
    up = command("up", "--nodes", "2", "--backend", "alloc")
    assert "alloc creates no routes to other nodes' pods" in up.stdout
    assert "ping " not in up.stdout


def test_directory_that_the_lab_was_in_goes_with_it_where_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "cni-py"
    monkeypatch.setattr(lab_commands, "DIRECTORY", str(ours / "lab"))
    down = argparse.Namespace(directory=str(ours / "lab"))
    assert lab_commands.down(down) == 0
    assert not ours.exists()
    (ours / "journal").mkdir(parents=True)
    assert lab_commands.down(down) == 0
    assert [path.name for path in ours.iterdir()] == ["journal"]
    assert lab_commands.down(argparse.Namespace(directory=str(tmp_path / "mine" / "lab"))) == 0
    assert (tmp_path / "mine").is_dir(), "a directory that we did not create"


def test_directory_behind_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(LabFailed, match="could not create the directory") as caught:
        lab_commands.down(argparse.Namespace(directory=str(tmp_path / "link" / "lab")))
    assert "dangling symbolic link" in caught.value.hint


@needs_root
@pytest.mark.parametrize("victim", ["keeper", "its parent", "node1", "flanneld", "state"])
def test_down_is_complete_after_a_kill(command: Command, tmp_path: Path, victim: str) -> None:
    command("up", "--nodes", "2")
    directory = tmp_path / "lab"
    state = State.read(str(directory))
    assert state is not None
    assert state.keeper is not None
    parent = int(Path(f"/proc/{state.keeper.pid}/stat").read_text().rpartition(")")[2].split()[1])
    if victim == "state":
        (directory / "state.json").write_text("{")
        assert "damaged" in command("status", status=1).stderr
    elif victim == "flanneld":
        Lab.open(str(directory)).flanneld("node1").kill()
    else:
        pids = {"keeper": state.keeper.pid, "its parent": parent, "node1": state.machines["node1"].pid}
        os.kill(pids[victim], signal.SIGKILL)
    if victim in ("keeper", "its parent"):
        wait_until_gone(directory)
        assert "has ended" in command("status", status=1).stderr
        command("up", "--nodes", "1")
    elif victim == "node1":
        assert "EXITED" in command("status", status=1).stdout
    command("down")
    wait_until_gone(directory)
    assert not directory.exists()


@needs_root
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.15, 0.35, 0.6])
def test_killed_up_leaves_no_process(command: Command, bin_dir: Path, tmp_path: Path, kind: int, seconds: float) -> None:
    directory, never_ready = tmp_path / "lab", tmp_path / "flanneld"
    never_ready.write_text("#!/bin/sh\nexec sleep 60\n")
    never_ready.chmod(0o755)
    program = str(bin_dir.parent.parent / "bin" / "cni-py")
    heard = ["env", "--default-signal=INT"]  # a background job of a shell ignores it
    argv = [*heard, program, "lab", "up", "--folder", str(directory), "--flanneld", str(never_ready)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as up:
        time.sleep(seconds)
        up.send_signal(kind)
        words = up.communicate(timeout=SECONDS)[1]
    wait_until_gone(directory, words)
    if kind == signal.SIGINT and "interrupted" in words:
        assert not directory.exists()
    command("down")
    assert not directory.exists()


@needs_root
def test_lab_ends_with_who_made_it(bin_dir: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from cni_py.lab import Lab
lab = Lab(1, prefix={str(bin_dir.parent.parent)!r}, directory={str(tmp_path / "lab")!r})
lab.up()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_gone(tmp_path)


@needs_root
def test_flanneld_that_fails_is_reported_with_its_output(bin_dir: Path, tmp_path: Path) -> None:
    program = tmp_path / "flanneld"
    program.write_text("#!/bin/sh\necho 'no backend for you' >&2\nexit 1\n")
    program.chmod(0o755)
    lab = Lab(1, flanneld=str(program), prefix=str(bin_dir.parent.parent), directory=str(tmp_path / "lab"))
    with pytest.raises(LabFailed, match="flanneld on node1 has exited") as failure:
        lab.up()
    assert failure.value.details == "no backend for you"
    assert not (tmp_path / "lab").exists()
    wait_until_gone(tmp_path / "lab")


@needs_root
def test_machines_own_network_is_not_touched(bin_dir: Path) -> None:
    def look() -> list[str]:
        commands = (
            "ip -j link",
            "ip -j addr",
            "ip route show table all",
            "ip -6 route show table all",
            "nft list ruleset",
            "mount",
        )
        return [subprocess.run(command.split(), capture_output=True, text=True).stdout for command in commands]

    before = [*look(), sorted(os.listdir("/run")), sorted(os.listdir("/etc"))]
    with Lab(2, prefix=str(bin_dir.parent.parent)) as lab:
        assert [*look(), sorted(os.listdir("/run")), sorted(os.listdir("/etc"))] == before
    assert not Path(lab.directory).exists()
    lab.down()


@needs_root
def test_directory_with_other_files_is_left_alone(command: Command, tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    (directory / "log").mkdir(parents=True)
    (directory / "thesis.tex").write_text("years of work")
    assert "is not a lab's directory" in command("up", status=1).stderr
    assert command("down").stdout == "no lab is running\n"
    assert sorted(path.name for path in directory.iterdir()) == ["log", "thesis.tex"]


# --- without root: values and errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "1 to 200"),
        ({"segments": 3}, "1 or 2"),
        ({"datastore": "zookeeper"}, 'unknown datastore "zookeeper"'),
        ({"ipv4": False}, "without IPv4 and without IPv6"),
        ({"pods": -1}, "0 to 200"),
    ],
)
def test_impossible_labs_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LabFailed, match=words):
        Lab(**options)


def test_missing_programs_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("cni_py.lab.programs.find_tool", lambda name: None if name in ("ip", "etcd", "etcdctl") else name)
    programs = Programs.of()
    with pytest.raises(LabFailed, match="ip, etcd, etcdctl") as failure:
        check(programs, flanneld=programs.flanneld, with_etcd=True)
    assert "apt-get install iproute2 etcd-server etcd-client" in failure.value.hint
    monkeypatch.setattr("cni_py.lab.programs.find_tool", lambda name: None if name == "etcd" else name)
    with pytest.raises(LabFailed) as failure:
        check(programs, flanneld=programs.flanneld, with_etcd=True)
    assert "--datastore file" in failure.value.hint


NOT_OURS = """#!/bin/sh
echo "$0" "$@" >>"{log}"
exit 1
"""


@needs_root
def test_programs_of_the_users_path_are_not_executed(bin_dir: Path, tmp_path: Path) -> None:
    """An active virtual environment may have PyPI's nsenter, and a PATH with /opt/cni/bin the plugin bridge."""
    log, first = tmp_path / "executed", tmp_path / "bin"
    first.mkdir()
    for name in (*TOOLS, *ETCD_TOOLS, "sh", "sleep", "kill", "mkdir", "cat"):
        (first / name).write_text(NOT_OURS.format(log=log))
        (first / name).chmod(0o755)
    program, directory = str(bin_dir.parent.parent / "bin" / "cni-py"), str(tmp_path / "lab")
    need(TOOLS | ETCD_TOOLS)

    def lab(verb: str, *argv: str) -> None:
        done = subprocess.run(
            [program, "lab", verb, "--directory", directory, *argv],
            env={"PATH": f"{first}:{os.environ['PATH']}"}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert not log.exists(), f"{verb} executed {log.read_text()}"

    try:
        lab("up", "--nodes", "2", "--datastore", "etcd")
        for what in ("route", "fdb", "arp", "link", "flanneld"):
            lab("break", what, "node1")
            lab("heal", what, "node1")
        for command in (["ping"], ["exec", "pod1", "--", "ip", "route"], ["heal"], ["status"]):
            lab(*command)
    finally:
        lab("down")


@pytest.mark.parametrize("name", [name for name, tool in TOOLS.items() if tool.version])
def test_program_of_another_package_is_passed_over(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need({name: TOOLS[name]})
    (tmp_path / name).write_text("#!/bin/sh\necho usage >&2\nexit 2\n")
    (tmp_path / name).chmod(0o755)
    right = find_tool(name)
    monkeypatch.setattr("cni_py.program.SYSTEM_DIRECTORIES", (str(tmp_path), *SYSTEM_DIRECTORIES))
    assert find_tool(name) == right
    monkeypatch.setattr("cni_py.program.SYSTEM_DIRECTORIES", (str(tmp_path),))
    assert find_tool(name) is None


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabFailed, match="must be created as root"):
        Lab(1).up()


def test_nodes_of_two_segments_take_turns() -> None:
    nodes = [plan.Node(number, 2) for number in (1, 2, 3)]
    assert [node.address for node in nodes] == ["192.168.123.11", "192.168.124.12", "192.168.123.13"]
    assert [node.address6 for node in nodes] == ["fd00:123::11", "fd00:124::12", "fd00:123::13"]
    assert plan.Node(2, 1).address == "192.168.123.12"


def test_network_configuration() -> None:
    assert plan.network_config("vxlan", True, False, {"DirectRouting": True}) == {
        "Network": "10.244.0.0/16",
        "Backend": {"Type": "vxlan", "DirectRouting": True},
    }
    dual = Lab(2, "host-gw", True).settings
    assert (dual.ipv4, dual.ipv6, dual.backend) == (True, True, "host-gw")
    given = Lab(2, config={"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00::/48"}).settings
    assert (given.ipv4, given.ipv6, given.backend) == (False, True, "udp")


def test_command_line_of_flanneld() -> None:
    node = plan.Node(1, 1)
    assert plan.flanneld_command("flanneld", node, Lab(1, ipv6=True, flanneld_options=["-v=4"]).settings) == [
        "flanneld", "--datastore", "file:/run/lab/shared/flannel.json", "-iface", "eth0", "-ip-masq",
        "-public-ip", "192.168.123.11", "-public-ipv6", "fd00:123::11", "-v=4",
    ]  # fmt: skip
    six = Lab(1, ipv4=False, ipv6=True, datastore="etcd").settings
    assert plan.flanneld_command("flanneld", node, six)[1:] == [
        "-etcd-endpoints=http://[fd00:123::2]:2379", "-iface", "eth0", "-ip-masq", "-public-ipv6", "fd00:123::11",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("10.244.85.0/24 via 10.244.85.0 dev flannel.1 onlink", True),
        ("10.244.85.0/24 via 192.168.123.12 dev eth0 proto 122", True),
        ("10.244.91.0/24 dev cni0 proto kernel scope link src 10.244.91.1", False),
        ("10.244.91.0 dev flannel-v6.1 proto kernel metric 256 pref medium", False),
        ("10.244.0.0/16 dev flannel0 proto 122", True),
        ("default via 192.168.123.1 dev eth0", False),
        ("192.168.123.0/24 dev eth0 proto kernel scope link src 192.168.123.11", False),
        ("fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 metric 1024 onlink pref medium", True),
    ],
)
def test_routes_to_peers(line: str, is_one: bool) -> None:
    networks = [ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")]
    assert faults.is_to_peer(line.split(), networks) is is_one


def test_table_shows_what_failed() -> None:
    pairs = (
        Pair("pod1", "pod2", "10.244.2.2", 1450, 0.25, 0.5),
        Pair("pod2", "pod1", "10.244.1.2", 1450, 0.25, None, "1450 bytes: no reply"),
        Pair("pod2", "outside", "192.0.2.2", 1450, None, None, "no reply"),
    )
    matrix = Matrix(pairs)
    assert matrix.lines() == [
        "IPv4  pod1        pod2          outside",
        "pod1  -           0.25/0.50 ms  -",
        "pod2  small only  -             NO",
        "  pod2 to pod1 (10.244.1.2): 1450 bytes: no reply",
        "  pod2 to outside (192.0.2.2): no reply",
    ]
    assert matrix.summary() == "1 of 2 from pod to pod and 0 of 1 from pod to outside, packets of 1450 bytes with DF too"
    assert Matrix(()).summary() == "no other pod"


def test_number_of_another_process_is_not_taken_for_ours() -> None:
    assert start_time(os.getpid()) > 0
    with subprocess.Popen(["true"]) as child:
        child.wait()
        assert start_time(child.pid) == 0
