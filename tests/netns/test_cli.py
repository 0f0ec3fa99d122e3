"""``cni-py`` with the deployment guide's configuration: check, status, explain and the hints, typed where they appear."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_py.plugin_table import PLUGINS
from support.hints import READS, commands_in, templates
from support.mains import has_kind
from support.namespaces import Host, Sandbox

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "conf" / "10-flannel.conflist").read_text()
Done = subprocess.CompletedProcess[str]
Typed = Callable[..., Done]


@pytest.fixture
def node(host: Host) -> Host:
    """A host with the guide's files and a namespace "blue"."""
    host.write("/etc/cni/net.d/10-flannel.conflist", GUIDE)
    host.write_subnet_env()
    host.netns("blue")
    return host


@pytest.fixture
def typed(node: Host, cni_py: Path) -> Typed:
    """Type a command line on the node, where ``cni-py`` is in PATH."""

    def run(line: str, status: int | None = 0) -> Done:
        done = node.execute(["sh", "-c", f"PATH=$PATH:{cni_py.parent}; {line}"])
        assert status is None or done.returncode == status, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    return run


def in_version(version: str) -> str:
    """Return the shipped configuration for one version alone."""
    conf = json.loads(GUIDE)
    del conf["cniVersions"]
    return json.dumps(conf | {"cniVersion": version})


def hints(done: Done) -> list[str]:
    return [line.partition("hint: ")[2] for line in done.stderr.splitlines() if line.startswith("  hint: ")]


# --- version ----------------------------------------------------------------------------------------------------------


def test_verbose_version_names_the_plugins_that_this_kernel_cannot_do(typed: Typed) -> None:
    """Every plugin of the table has a line; where the kernel lacks its links, that has the option's name."""
    lines = dict(re.findall(r"^plugin (\S+) +(.*)$", typed("cni-py version -v").stdout, re.MULTILINE))
    assert list(lines) == list(PLUGINS)
    for plugin, row in PLUGINS.items():
        assert ("this kernel has no" in lines[plugin] and "CONFIG_" in lines[plugin]) == (not has_kind(row.link)), lines[plugin]
        assert "(ours)" in lines[plugin]


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_check_compares_whatever_the_version_is(node: Host, typed: Typed, version: str) -> None:
    node.write("/etc/cni/net.d/10-flannel.conflist", in_version(version))
    typed("cni-py add cbr0 blue")
    done = typed("cni-py check cbr0 blue")
    assert ("the runtime never runs CHECK" in done.stderr) == (version < "0.4.0")
    node.run("ip link set eth0 mtu 1300; ip addr flush dev eth0", Sandbox("blue"))
    node.run("sysctl -qw net.ipv4.ip_forward=0; nft delete table inet cni_py || true")
    done = typed("cni-py check cbr0 blue", 1)
    assert "10.244.91.2/24 is missing" in done.stderr
    assert "ip_forward is not what ADD left" in done.stderr
    assert ("MTU of" in done.stderr) == (version == "1.1.0"), "older results have no MTU"
    for hint in hints(done):
        if hint.startswith(("nsenter", "ip ", "sysctl")):
            node.run(hint)
    left = typed("cni-py check cbr0 blue", None).stderr
    assert "missing" not in left
    assert "ip_forward" not in left


def test_check_as_json(node: Host, typed: Typed) -> None:
    typed("cni-py add cbr0 blue")
    (answer,) = json.loads(typed("cni-py check cbr0 blue --json").stdout)
    assert (answer["result"], answer["differences"], answer["netns"]) == ("ok", [], "/run/netns/blue")
    node.run("ip link set eth0 down; ip addr flush dev eth0", Sandbox("blue"))
    (answer,) = json.loads(typed("cni-py check cbr0 blue --json", 1).stdout)
    assert answer["result"] == "failed"
    commands = [one["hint"] for one in answer["differences"]]
    assert "nsenter --net=/run/netns/blue ip link set eth0 up" in commands
    assert len(commands) >= 3


def test_plugins_that_cannot_be_asked_leave_it_unknown(node: Host, typed: Typed, go_plugins: str) -> None:
    conf: dict[str, Any] = {"name": "go", "cniVersion": "0.3.1"}
    conf["plugins"] = [{"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}]
    node.write("/etc/cni/net.d/20-go.conflist", json.dumps(conf))
    path = f"CNI_PATH={go_plugins}"
    typed(f"{path} cni-py add go blue")
    typed(f"{path} cni-py check go blue")  # Go's bridge knows 0.4.0
    done = typed(f"{path} cni-py status go", 3)  # and not 1.1.0
    assert 'plugin "bridge" cannot be asked' in done.stderr


# --- status -----------------------------------------------------------------------------------------------------------

WRONG = {
    "other network": ("sed -i s/10.244.91.1/10.245.91.1/ /run/flannel/subnet.env", "outside the network"),
    "other subnet": ("sed -i s/10.244.91.1/10.244.92.1/ /run/flannel/subnet.env", '"cni0" has 10.244.91.1/24'),
    "too large": ("sed -i s/1450/9000/ /run/flannel/subnet.env", 'FLANNEL_MTU=9000 in /run/flannel/subnet.env is larger'),
    "foreign device": ("ip addr add 10.244.7.0/32 dev flannel.1", '"flannel.1" has 10.244.7.0/32'),
    "no gateway": ("ip addr flush dev cni0 scope global", '"cni0" has no address of the subnet of /run/flannel/subnet.env'),
    "no file": ("rm /run/flannel/subnet.env", "subnet.env"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_status_sees_what_contradicts_subnet_env(node: Host, typed: Typed, case: str) -> None:
    node.run("ip link add flannel.1 mtu 1450 type bridge; ip addr add 10.244.91.0/32 dev flannel.1; ip link set flannel.1 up")
    typed("cni-py add cbr0 blue")
    assert typed("cni-py status cbr0").stdout == ""
    script, said = WRONG[case]
    node.run(script)
    assert said in typed("cni-py status cbr0", 1).stderr
    assert json.loads(typed("cni-py status cbr0 --json", 1).stdout)["result"] == "failed"


def test_hint_about_a_bridge_without_address_gives_it_back(node: Host, typed: Typed) -> None:
    assert typed("cni-py status cbr0").stderr.count("has no address") == 0, "there is no bridge yet"
    typed("cni-py add cbr0 blue")
    node.run("ip addr flush dev cni0 scope global")
    typed(typed("cni-py status cbr0", 1).stderr.partition("hint: ")[2].strip())
    typed("cni-py status cbr0")
    typed("cni-py check cbr0 blue")


FULL = {
    "full": ("-o size=4k,nr_inodes=100", "dd if=/dev/zero of={}/x bs=4k count=1", "No space left on device", "df -h {0}; df -i {0}"),
    "no inodes": ("-o nr_inodes=1", "true", "No space left on device", "df -h {0}; df -i {0}"),
    "read-only": ("-o ro", "true", "Read-only file system", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", FULL)
@pytest.mark.parametrize("where", ["/var/lib/cni/networks", "/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0"])
def test_status_sees_that_nothing_can_be_reserved_or_saved(node: Host, typed: Typed, where: str, case: str) -> None:
    options, fill, said, hint = FULL[case]
    typed("cni-py status cbr0")
    node.run(f"mkdir -p {where}; mount -t tmpfs {options} tmpfs {where}; {fill.format(where)}")
    err = typed("cni-py status cbr0", 1).stderr
    assert said in err
    added = typed("cni-py add cbr0 blue", 1).stderr
    assert said in added
    if hint:
        typed(hint.format(where))
        assert hint.format(where) in err
        typed(added.partition("hint: ")[2].strip())
    node.run(f"umount {where}")
    typed("cni-py add cbr0 blue")


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_distinguishes_live_failed_gone_and_deleted(node: Host, typed: Typed) -> None:
    for name in ("live", "gone", "deleted"):
        node.netns(name)
        typed(f"cni-py add cbr0 {name}")
    typed("cni-py add cbr0 live --container-id failed", 1)
    node.delete_netns(Sandbox("gone"))
    typed("cni-py del cbr0 deleted")
    found = json.loads(typed("cni-py explain --json").stdout)
    states = {one["containerID"] if one["containerID"] == "failed" else one["netns"][11:]: one for one in found}
    assert {name: one["state"] for name, one in states.items()} == {
        name: name for name in ("live", "gone", "deleted", "failed")
    }
    assert "File exists" in states["failed"]["error"] or "already exists" in states["failed"]["error"]
    assert states["live"]["addresses"] == ["10.244.91.2"]
    assert "ip link add" in typed("cni-py explain 10.244.91.2").stdout


def test_pod_of_a_runtime_is_found_by_its_name(node: Host, typed: Typed) -> None:
    """A runtime that keeps its results elsewhere: our record names the pod."""
    conf = {"cniVersion": "0.3.1", "name": "cbr0", **json.loads(GUIDE)["plugins"][0]}
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"
    node.ok("flannel", "ADD", conf, sandbox=Sandbox("blue"), container_id="3f2c5a", args=args)
    for word in ("web-1", "shop/web-1", "10.244.91.2", "/run/netns/blue", "3f2c"):
        assert "== 3f2c5a eth0, network cbr0 (live, " in typed(f"cni-py explain {word}").stdout
    assert typed("cni-py explain").stdout.startswith("live     shop/web-1 10.244.91.2\n")


# --- advice -----------------------------------------------------------------------------------------------------------


def test_failed_second_add_costs_the_live_pod_nothing(node: Host, typed: Typed) -> None:
    """The hint was ``cni-py del``, which deletes the working pod's interface."""
    typed("cni-py add cbr0 blue")
    for options in ("", "--container-id other"):
        done = typed(f"cni-py add cbr0 blue {options}", 1)
        assert '"eth0" of /run/netns/blue is attached already' in done.stderr
        for hint in hints(done):
            typed(hint.partition(": ")[2])
    typed("cni-py check cbr0 blue")


@pytest.mark.parametrize("case", ["no subnet.env", "no plugin", "no such network"])
def test_add_that_left_nothing_has_no_hint_to_delete(node: Host, typed: Typed, case: str) -> None:
    node.run({"no subnet.env": "rm /run/flannel/subnet.env"}.get(case, "true"))
    line = {"no plugin": "CNI_PATH=/nowhere cni-py add cbr0 blue", "no such network": "cni-py add no blue"}
    assert "cni-py del" not in typed(line.get(case, "cni-py add cbr0 blue"), 1).stderr


def test_hint_after_a_later_plugin_failed_cleans_up(node: Host, typed: Typed) -> None:
    conf = json.loads(GUIDE)
    conf["plugins"].append({"type": "portmap", "backend": "nonsense"})
    node.write("/etc/cni/net.d/10-flannel.conflist", json.dumps(conf))
    done = typed("cni-py add cbr0 blue", 1)
    (hint,) = hints(done)
    assert hint.startswith("to undo the changes of flannel, portmap, which succeeded: cni-py del cbr0 blue")
    conf["plugins"].pop()
    node.write("/etc/cni/net.d/10-flannel.conflist", json.dumps(conf))
    typed(hint.partition(": ")[2])
    assert node.run("ip link show eth0 || echo none", Sandbox("blue")).strip().endswith("none")


def test_gc_keeps_live_pods_unless_all_is_said(node: Host, typed: Typed) -> None:
    typed("cni-py add cbr0 blue")
    done = typed("cni-py gc cbr0", 2)
    hint = hints(done)[0].partition(": ")[2].partition(";")[0]
    typed(hint)
    typed("cni-py check cbr0 blue")
    typed("cni-py gc cbr0 --all")
    assert "gone" not in node.run("ip link show eth0 || echo none", Sandbox("blue"))


def test_former_subnet_on_the_bridge_is_kept_while_pods_use_it(node: Host, typed: Typed) -> None:
    typed("cni-py add cbr0 blue")
    node.netns("red")
    node.run("sed -i s/10.244.91.1/10.244.92.1/ /run/flannel/subnet.env")
    done = typed("cni-py add cbr0 red", 1)
    assert "ip addr del" not in done.stderr, "it is the gateway of a live pod"
    assert "10.244.91.1/24" in done.stderr
    assert "1 pod" in done.stderr
    typed("cni-py del cbr0 blue")
    done = typed("cni-py add cbr0 red", None)
    if done.returncode:  # flanneld, which would have deleted the address, does not run here
        assert "ip addr del 10.244.91.1/24 dev cni0" in done.stderr
        node.run("ip addr del 10.244.91.1/24 dev cni0")
        typed("cni-py add cbr0 red")


def test_hint_creates_the_namespace_that_is_missing(node: Host, typed: Typed) -> None:
    done = typed("cni-py add cbr0 green", 1)
    (hint,) = hints(done)
    node.run(hint.partition(', "')[2].partition('"')[0])
    typed("cni-py add cbr0 green")
    assert "ip netns add" not in typed("cni-py add cbr0 /proc/99999/ns/net", 1).stderr


def test_hint_of_a_full_range_frees_the_addresses_of_deleted_pods_alone(node: Host, typed: Typed) -> None:
    node.run("sed -i s,10.244.91.1/24,10.244.91.1/29, /run/flannel/subnet.env")
    for name in ("live", "dead1", "dead2", "dead3", "dead4"):
        node.netns(name)
        typed(f"cni-py add cbr0 {name}")
        if name != "live":
            node.delete_netns(Sandbox(name))
    done = typed("cni-py add cbr0 blue", 1)
    commands = re.search(r"(grep -r \. \S+); remove those of deleted pods: (cni-py sweep)", done.stderr)
    assert commands, done.stderr
    assert "eth0" in node.run(commands[1])
    node.run("find /var/lib/cni /run/cni-py -type f -exec touch -d '1 hour ago' {} +")
    typed(commands[2])
    typed("cni-py add cbr0 blue")
    typed("cni-py check cbr0 live")
    typed("ip netns exec live ping -c 1 -W 2 10.244.91.1")


def test_hints_about_a_live_attachment_change_nothing(node: Host, typed: Typed) -> None:
    """host-local refuses a second ADD, and so does the interface that exists; the hint was "call DEL first"."""
    typed("cni-py add cbr0 blue --container-id c1")
    node.netns("red")
    done = typed("cni-py add cbr0 red --container-id c1", 1)
    assert "DEL" not in done.stderr
    command = re.search(r"cni-py explain c1", done.stderr)
    assert command, done.stderr
    typed(command[0])
    typed("cni-py check cbr0 blue")


ELSEWHERE = ("cni-py lab", "cni-py config", "etcdctl", "systemctl", "ip monitor", "nft monitor")
"""Commands that need a lab or a datastore, or do not end: integration/lab and integration/etcd type the first ones."""
FILLED = {
    "ip -d link show": "cni0", "ip link show": "cni0", "ls": "/etc/hostname", "grep -r .": "/var/lib/cni/networks/cbr0",
    "namei": "/etc/hostname", "fuser -v": "/var/lib/cni", "ss": "80", "cat": "self", "cni-py explain": "10.244.91.2",
    "nft list set": "inet cni_py localnet", "nft list map": "inet cni_py masq4", "nft list chain": "inet cni_py postrouting",
    "nft list table": "inet cni_py", "df -h": "/var/lib/cni", "df -i": "/var/lib/cni",
}  # fmt: skip
PORT = '{"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}'


def test_commands_of_hints_that_only_read_can_be_typed(node: Host, typed: Typed) -> None:
    """Every one of them, on a node with a pod: the program accepts the words, and nothing has changed."""
    typed(f"cni-py add cbr0 blue --cap-args '{PORT}'")
    before = node.snapshot(Sandbox("blue"))
    missing = set()
    for command in sorted({of for hint in templates() for of in commands_in(hint) if READS.match(of)}):
        program = command.split(maxsplit=1)[0]
        if command.startswith(ELSEWHERE):
            continue
        if shutil.which(program) is None and program != "cni-py":
            missing.add(program)
        else:
            fitting = [value for head, value in FILLED.items() if command.startswith(f"{head} ")]
            done = typed(re.sub(r"\{\w*\}", fitting[0], command) if "{" in command else command, None)
            assert done.returncode == 0 or program in ("fuser", "cat"), f"{command}: {done.stderr}"
            assert "Usage" not in done.stderr, command
            assert node.snapshot(Sandbox("blue")) == before, command
    if missing:
        pytest.skip(f"no {', '.join(sorted(missing))}")
