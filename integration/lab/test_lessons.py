"""`cni-py lesson`: each exercise fails before its solution, names what is wrong with a wrong one, passes after the right one.

Every lesson is started in a host of its own, with the default directories, as a learner does. The labs are the lessons' own.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cni_py.lab.programs import ETCD_TOOLS, TOOLS
from cni_py.lessons import session
from cni_py.lessons.lesson import MISSING
from cni_py.lessons.table import LESSONS, lesson
from support.namespaces import Host
from support.tools import need
from support.waiting import until

pytestmark = pytest.mark.netns
NODE1_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Learner:
    """A person at the terminal of a machine."""

    def __init__(self, host: Host, cni_py: Path) -> None:
        self.host, self.cni_py = host, str(cni_py)
        host.run("mount -t tmpfs tmpfs /root")

    def type(self, *words: str, script: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": NODE1_PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
        return self.host.execute([self.cni_py, *words], env=environment, stdin=script)

    def lesson(self, *words: str) -> str:
        """Run a command that succeeds. Returns: its output."""
        done = self.type("lesson", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def missing(self, number: int, place: str = "", script: str = "") -> dict[str, str]:
        """Run a script in the lab. Returns: the requirements that are missing then, and what was found instead."""
        return self.host.do(_missing, number, place, script)

    def leaks(self) -> str:
        """Return what is left on the machine of a lesson that was stopped; progress is no leak."""
        return self.host.run(
            "ls -A /run/cni-py /run/netns /var/lib/cni /var/lib/cni-py /etc/cni 2>/dev/null | grep -v ':$' || true"
        ).strip()


def _missing(number: int, place: str, script: str) -> dict[str, str]:
    lab = session.open_lab(number)
    if script:
        lab.run(place, script)
    return {one.requirement.what: one.found for one in lesson(number).check(lab) if one.state == MISSING}


@pytest.fixture
def learner(host: Host, cni_py: Path) -> Iterator[Learner]:
    need(TOOLS)
    one = Learner(host, cni_py)
    yield one
    one.type("lesson", "stop", "1")


@dataclass(frozen=True)
class Solution:
    """``wrong``: attempts, each with what the check says of it; the ``right`` one comes after the last of them."""

    right: str
    wrong: tuple[tuple[str, str], ...]
    place: str = "node1"
    wrong_place: str = ""


CALL = 'CNI_CONTAINERID=by-hand CNI_NETNS=/run/netns/green CNI_IFNAME=eth0 "$CNI_PATH/flannel"'
WHOLE_FILE = "/etc/cni/net.d/10-flannel.conflist"
BY_HAND = f"""
python3 - <<'END' >/run/conf.json
import json
chain = json.load(open("{WHOLE_FILE}"))
print(json.dumps({{"cniVersion": chain["cniVersion"], "name": chain["name"]}} | chain["plugins"][0]))
END
CNI_COMMAND=ADD {CALL} </run/conf.json
"""
PLUGIN = """
mkdir -p /run/plugins
cat >/run/plugins/noted <<'END'
#!/usr/bin/python3
import json, os, sys
conf, verb = json.load(sys.stdin), os.environ["CNI_COMMAND"]
def note(): return "/run/noted/" + os.environ["CNI_CONTAINERID"]
if verb == "VERSION":
    print(json.dumps({"cniVersion": conf["cniVersion"], "supportedVersions": ["1.0.0", "1.1.0"]}))
elif verb == "ADD" and "prevResult" not in conf:
    print(json.dumps({"cniVersion": conf["cniVersion"], "code": 7, "msg": "no prevResult"}))
    sys.exit(1)
elif verb == "ADD":
    os.makedirs("/run/noted", exist_ok=True)
    with open(note(), "w") as file:
        file.write(conf["prevResult"]["ips"][0]["address"] + "\\n")
    print(json.dumps(conf["prevResult"]))
elif verb == "DEL" and os.path.exists(note()):
    os.unlink(note())
END
chmod +x /run/plugins/noted
"""
PLUG_IN = "ip link add green0 type veth peer name eth0 netns green"
VTEP = """
mac=$(python3 -c '
import json
print(json.load(open("/run/lab/shared/flannel.json"))["leases"]["10.244.1.0-24"]["BackendData"]["VtepMAC"])')
"""

KEY = "/coreos.com/network/subnets/10.244.77.0-24"


def value(public_ip: str) -> str:
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}
    return json.dumps({"PublicIP": public_ip, "BackendType": "vxlan", "BackendData": data})


SOLUTIONS = {
    1: Solution(
        BY_HAND,
        (
            (
                "ip -n green link add eth0 type veth peer name x; ip -n green addr add 10.244.1.9/24 dev eth0",
                "has 10.244.1.2 of cnitool-",
            ),
            (
                "ip -n green link del eth0; cni-py add cbr0 green --container-id by-hand >/dev/null",
                "cbr0-by-hand-eth0 exists: a runtime",
            ),
            ("cni-py del cbr0 green --container-id by-hand", "has 10.244.1.2 of cnitool-"),
            (f"CNI_COMMAND=ADD {CALL} <{WHOLE_FILE}", "green has no default route"),
            (f"CNI_COMMAND=DEL {CALL} <{WHOLE_FILE}", "has 10.244.1.2 of cnitool-"),
        ),
    ),
    2: Solution(
        """ip -n green addr flush dev eth0; ip -n green addr add 10.99.0.3/24 dev eth0
        ip -n green route replace default via 10.99.0.1""",
        (
            (
                "ip link add br0 type bridge; ip addr add 10.99.0.1/24 dev br0; ip link set br0 up",
                "green has no interface eth0",
            ),
            (
                "ip -n green link add eth0 type veth peer name other; ip -n green link set eth0 up",
                "eth0 of green is not a veth whose other end is on node1",
            ),
            (f"ip -n green link del eth0; {PLUG_IN}", "eth0 of green is down"),
            (
                "ip -n green link set eth0 up; ip link set green0 up",
                "green0, the other end of eth0 of green, is not a port of any bridge",
            ),
            ("ip link set green0 master br0", "eth0 of green has no IPv4 address"),
            ("ip -n green addr add 10.99.0.3 dev eth0", "eth0 of green has 10.99.0.3/32"),
            (
                """ip -n green addr flush dev eth0; ip -n green addr add 10.99.0.4/24 dev eth0
                ip -n green route add default via 10.99.0.9""",
                "eth0 of green has 10.99.0.4/24",
            ),
        ),
    ),
    3: Solution(
        "cni-py sweep --grace 0 >/dev/null; cni-py add tiny green >/dev/null",
        (
            (
                "cp -a /var/lib/cni/networks/tiny /run/kept; rm /var/lib/cni/networks/tiny/10.98.0.*",
                "the reservation of 10.98.0.2, which keep uses, was deleted",
            ),
            ("cp -a /run/kept/. /var/lib/cni/networks/tiny/", "green has no interface eth0"),
            (
                f"""{PLUG_IN}; ip -n green addr add 10.98.0.5/29 dev eth0; ip -n green link set eth0 up
                ip link set green0 master br-tiny up""",
                "10.98.0.5 is on eth0 of green, and /var/lib/cni/networks/tiny has no file for it",
            ),
            ("ip link del green0", "green has no interface eth0"),
        ),
    ),
    4: Solution(
        """cni-py del cbr0 web
        cni-py add cbr0 web >/dev/null --cap-args '
            {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'""",
        (
            ("cni-py add cbr0 web >/dev/null", "failed Connection refused; host ports of node1: none"),
            (
                """cni-py del cbr0 web
                cni-py add cbr0 web >/dev/null --cap-args '
                    {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]}'""",
                "host ports of node1: tcp 80 to 10.244.1.",
            ),
            ("nft flush map inet cni_py masq4", "no reply to a ping from web to 192.0.2.2"),
        ),
    ),
    5: Solution(
        VTEP
        + "ip neigh replace 10.244.1.0 lladdr $mac dev flannel.1; bridge fdb replace $mac dev flannel.1 dst 192.168.123.11",
        (
            ("ip route add 10.244.1.0/24 via 192.168.123.11", "the route to 10.244.1.0/24 leads to eth0"),
            ("ip route replace 10.244.1.0/24 via 10.244.1.1 dev flannel.1 onlink", "by way of 10.244.1.1, not of 10.244.1.0"),
            (
                """ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink
                ip neigh replace 10.244.1.0 lladdr 02:00:00:00:00:01 dev flannel.1""",
                "10.244.1.0 is 02:00:00:00:00:01, and flannel.1 of node1 has",
            ),
            (
                VTEP + "bridge fdb append $mac dev flannel.1 dst 192.168.123.12 self",
                "is behind 192.168.123.12, and node1 has 192.168.123.11",
            ),
        ),
        place="node3",
    ),
    6: Solution(
        "cni-py config reserve 10.244.77.0/24 192.168.123.12 -- -etcd-endpoints=http://192.168.123.2:2379 >/dev/null 2>&1",
        (
            (f"etcdctl put {KEY} '{value('192.168.123.11')}'", "10.244.77.0/24 is that of 192.168.123.11"),
            (
                f"""lease=$(etcdctl lease grant 1000 | cut -d' ' -f2)
                etcdctl put --lease=$lease {KEY} '{value("192.168.123.12")}'""",
                "the key has a lease of etcd, with which it expires",
            ),
            (f"etcdctl del {KEY}", "only the subnets 10.244.1.0/24, 10.244.2.0/24"),
        ),
        wrong_place="etcd",
    ),
    7: Solution(
        """cat >/etc/cni/net.d/30-direct.conflist <<'END'
        {"cniVersion": "1.1.0", "name": "direct", "plugins": [{"type": "ptp", "ipMasq": true,
         "ipam": {"type": "host-local", "subnet": "10.97.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
        cni-py del direct green; cni-py add direct green >/dev/null""",
        (
            ("cni-py add cbr0 green >/dev/null", "green is attached to cbr0"),
            (
                """cni-py del cbr0 green; cat >/etc/cni/net.d/30-direct.conflist <<'END'
                {"cniVersion": "1.1.0", "name": "direct", "plugins": [{"type": "bridge", "bridge": "br97", "isGateway": true,
                 "ipam": {"type": "host-local", "subnet": "10.97.0.0/24"}}]}
END
                cni-py add direct green >/dev/null""",
                "is a port of br97",
            ),
        ),
    ),
    8: Solution(
        """ip -n alpha link set eth0 mtu 1450; ip -n alpha route add default via 10.244.2.1
        cni-py gc cbr0 --valid-living 2>/dev/null""",
        (
            ("cni-py sweep --grace 0 >/dev/null", "cni-py explain lists beta as gone"),
            ("cni-py del cbr0 alpha", "alpha is deleted"),
            (
                "cni-py add cbr0 alpha >/dev/null; ip -n alpha link set eth0 mtu 1400; ip -n alpha route del default",
                "cni-py check reports 2 differences",
            ),
        ),
        place="node2",
    ),
    9: Solution(
        PLUGIN,
        (
            ("mkdir -p /run/plugins; echo '#!/bin/sh' >/run/plugins/noted", "/run/plugins/noted is not executable"),
            (
                "echo '#!/no/such' >/run/plugins/noted; chmod +x /run/plugins/noted",
                'exit status 127, and it printed ""; standard error ends with "timeout: ',
            ),
            (
                "echo 'x = ' | tee /run/plugins/noted; sed -i '1i#!/usr/bin/python3' /run/plugins/noted",
                "SyntaxError: invalid syntax",
            ),
            ("echo '#!/bin/sh' >/run/plugins/noted", "as ADD has to write it, still exists after the first DEL"),
            ("echo cat >>/run/plugins/noted", "supportedVersions is null, without 1.1.0"),
            ("echo 'printf \"\\377\\376\"; sleep 60 &' >>/run/plugins/noted", "exit status 0, and it printed"),
            (
                PLUGIN + 'sed -i \'s,/24,,; s/\\["address"\\]/["gateway"]/\' /run/plugins/noted',
                'noted/lesson-check has "10.1.2.1", not 10.1.2.3/24',
            ),
            (PLUGIN + 'sed -i \'s/"code": 7/"code": 999/\' /run/plugins/noted', "code is 999"),
            (PLUGIN + "sed -i 's/ and os.path.exists(note())//' /run/plugins/noted", "the second DEL: exit status 1"),
            (
                PLUGIN + "sed -i 's/print(json.dumps(conf\\[.prevResult.\\]))/print(\"done\")/' /run/plugins/noted",
                'it printed "done"',
            ),
        ),
    ),
    10: Solution(
        """sed -i 's/"type": "flannel",/"type": "flannel", "masqueradeBeyond": "network",/' /etc/cni/net.d/10-flannel.conflist
        cni-py del cbr0 pod1; cni-py add cbr0 pod1 >/dev/null""",
        (
            ("nft flush map inet cni_py masq4", "no reply to a ping from pod1 to 192.0.2.2"),
            ("cni-py repair >/dev/null", "pod2 sees 10.244.1.0, and pod1 has 10.244.1.2"),
        ),
    ),
}


@pytest.mark.parametrize("number", [one.number for one in LESSONS])
def test_exercise_fails_before_and_passes_after_its_solution(learner: Learner, number: int) -> None:
    if number == 6:
        need(ETCD_TOOLS)
    solution, words = SOLUTIONS[number], str(number)
    task = learner.lesson("start", words)
    assert f"lesson {number}: " in task
    assert lesson(number).task.splitlines()[0] in task
    before = learner.type("lesson", "check", words, "--hint")
    assert before.returncode == 1
    assert "\n  missing  " in before.stdout
    assert before.stdout.splitlines()[-1].startswith("hint: ")
    for script, found in solution.wrong:
        texts = learner.missing(number, solution.wrong_place or solution.place, script)
        assert any(found in text for text in texts.values()), (script, texts)
    left = learner.missing(number, solution.place, solution.right)
    if number == 6:
        assert any("flanneld reads its lease when it starts" in text for text in left.values())
        for verb in ("break", "heal"):
            assert learner.type("lab", verb, "flanneld", "node2").returncode == 0
    else:
        assert left == {}
    assert json.loads(learner.lesson("check", words, "--json"))["passed"]
    assert re.search(rf"(?m)^ *{number}  .*passed \d+-\d+-\d+, running$", learner.lesson("list"))
    assert learner.lesson("stop", words) == f"lesson {number} removed\n"
    assert learner.leaks() == ""


# --- what is left -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["datastore", "flanneld", "pods"])
def test_stop_removes_what_a_kill_has_left(learner: Learner, moment: str) -> None:
    process, pid = start_until(learner, moment)
    learner.host.run(f"kill -9 {pid}")
    process.communicate()
    learner.lesson("stop", "3")
    assert learner.leaks() == ""
    assert learner.lesson("stop", "3") == "lesson 3 is not running\n"


def test_stop_waits_for_the_lab_of_a_start_that_was_killed(learner: Learner) -> None:
    process, pid = start_until(learner, "flanneld")
    keeper = learner.host.run("cut -d' ' -f1 /run/cni-py/lab/keeper").strip()
    learner.host.run(f"kill -STOP {keeper}; kill -9 {pid}")
    process.communicate()
    stopping = subprocess.Popen(learner.host.command(learner.cni_py, "lesson", "stop", "3"), stdout=subprocess.PIPE, text=True)
    learner.host.run(f"sleep 0.5; kill -CONT {keeper}")
    assert stopping.communicate()[0] == "lesson 3 removed\n"
    assert learner.leaks() == ""


CONFIG = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
FIRST_LINE = f"  datastore     /run/cni-py/lab/shared/flannel.json, its config is {CONFIG}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_interrupted_start_leaves_nothing(learner: Learner, number: signal.Signals) -> None:
    """The pipe that it prints to has room for its first line and no more, so it waits with half a lab for the signal."""
    read_fd, write_fd = os.pipe()
    filled = fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096) - len(FIRST_LINE) - 5
    os.write(write_fd, b"x" * filled)
    # a test run that was started in the background ignores SIGINT, and so would its children
    shell = ["env", "--default-signal=INT", "sh", "-c", 'echo $$ >&2; exec "$@" 2>/dev/null', "sh"]
    argv = learner.host.command(*shell, learner.cni_py, "lesson", "start", "3")
    process = subprocess.Popen(
        argv, env={"PATH": NODE1_PATH, "HOME": "/root"}, stdout=write_fd, stderr=subprocess.PIPE, text=True
    )
    os.close(write_fd)
    assert process.stderr is not None
    pid = int(process.stderr.readline())
    until(lambda: _unread(read_fd) > filled, "the first line")
    learner.host.run(f"kill -{number:d} {pid}")
    with open(read_fd) as printed:
        assert printed.read()[filled:].startswith(FIRST_LINE)
    process.communicate()
    assert process.returncode == 128 + number
    assert learner.leaks() == ""


def _unread(pipe: int) -> int:
    """Return the bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def start_until(learner: Learner, moment: str) -> tuple[subprocess.Popen[str], int]:
    """Start lesson 3. Returns: the process, once it has printed a line that begins with this word, and its id in the host."""
    argv = learner.host.command("sh", "-c", 'echo $$; exec "$@"', "sh", learner.cni_py, "lesson", "start", "3")
    environment = {"PATH": NODE1_PATH, "HOME": "/root"}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert any(line.strip().startswith(moment) for line in process.stdout)
    return process, pid


def refused(learner: Learner, *words: str) -> tuple[str, list[str]]:
    """Run a command that fails. Returns: its error, and the commands of its hint."""
    done = learner.type(*words)
    assert done.returncode == 1, done.stdout
    hints = re.findall(r"hint: (.*)", done.stderr)
    return done.stderr, re.findall(r"cni-py ((?:lesson|lab) \w+(?: \d+)?)", hints[0])


def test_one_lesson_at_a_time_and_its_hints_are_typed(learner: Learner) -> None:
    def follow(commands: list[str], *statuses: int) -> None:
        assert [learner.type(*command.split()).returncode for command in commands] == list(statuses)

    error, commands = refused(learner, "lesson", "start", "11")
    assert "unknown lesson 11" in error
    follow(commands, 0)
    error, commands = refused(learner, "lesson", "check", "1")
    assert "lesson 1 is not running" in error
    follow(commands, 0)  # starts it
    error, commands = refused(learner, "lesson", "check", "2")
    assert "lesson 1 is running, not lesson 2" in error
    follow(commands, 1)  # checks lesson 1, whose exercise is not solved
    assert learner.type("lab", "down").returncode == 0
    error, commands = refused(learner, "lesson", "check", "1")
    assert "the lab of lesson 1 has ended" in error
    follow(commands, 0, 0)  # starts it again
    error, commands = refused(learner, "lesson", "stop", "2")
    assert "lesson 1 is running, not lesson 2" in error
    assert commands == ["lesson stop 1"]
    error, commands = refused(learner, "lesson", "start", "2")
    assert "lesson 1 is running" in error
    follow(commands, 1, 0)
    error, commands = refused(learner, "lesson", "check")
    assert "no lesson is running" in error
    follow(commands, 0)
    assert learner.lesson("stop") == "no lesson is running\n"
    assert learner.leaks() == ""


def test_lesson_that_runs_needs_no_number_and_prints_its_exercise_again(learner: Learner) -> None:
    card = learner.lesson("start", "2")
    learner.missing(2, "node1", "ip link add br0 type bridge; ip addr add 10.99.0.1/24 dev br0; ip link set br0 up")
    again = learner.lesson("start", "2")
    assert again.startswith("lesson 2 is running already, and its lab is unchanged\n")
    assert card.endswith(again.partition("\n\n")[2])
    done = learner.type("lesson", "check")
    assert (done.returncode, "ok       br0 is a bridge" in done.stdout) == (1, True)
    inside = [
        ["lesson", *words] for words in (["check"], ["check", "2"], ["start", "2"], ["start", "1"], ["stop"], ["stop", "2"])
    ]
    inside += [["lab", *words] for words in (["exec", "node1"], ["status"], ["ping"], ["break", "route", "node1"])]
    for words in inside:
        error = refused(learner, "lab", "exec", "node1", "--", learner.cni_py, *words)[0]
        assert "this shell is on node1 of a lab: leave it with exit" in error
    assert learner.lesson("stop") == "lesson 2 removed\n"
    assert learner.leaks() == ""


def test_no_other_lab_is_removed(learner: Learner) -> None:
    learner.lesson("start", "1")
    for words in (["down"], ["up", "--nodes", "1"]):
        assert learner.type("lab", *words).returncode == 0
    assert "the lab of lesson 1 has ended" in refused(learner, "lesson", "check", "1")[0]
    assert learner.lesson("stop", "1") == "lesson 1 removed\n"
    assert learner.type("lab", "status").returncode == 0
    error, commands = refused(learner, "lesson", "start", "1")
    assert "a lab is running that is not a lesson's" in error
    assert [learner.type(*command.split()).returncode for command in commands] == [0]
    assert learner.leaks() == ""


def test_progress_outlives_a_lesson(learner: Learner) -> None:
    learner.lesson("start", "2")
    learner.lesson("stop", "2")
    rows = json.loads(learner.lesson("list", "--json"))
    assert [row["lesson"] for row in rows if row["started"]] == [2]
    path = "/root/.local/state/cni-py/lessons.json"
    assert json.loads(learner.host.path(path).read_text()).keys() == {"2"}
    learner.host.run(f"echo '{{' >{path}")
    done = learner.type("lesson", "list")
    assert done.returncode == 1
    command = re.findall(r"hint: (rm \S+):", done.stderr)[0]
    learner.host.run(command)
    assert "started" not in learner.lesson("list")
