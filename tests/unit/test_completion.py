"""cli/completion.py and candidates.py: what may come next, for lines as a person types them; no shell."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cni_py.cli import candidates, completion, table
from cni_py.cli.completion import COMMANDS, DIRECTORIES, FILES, answer, complete
from cni_py.cli.table import Command, Option
from cni_py.lessons.table import LESSONS
from cni_py.plugin_table import PLUGINS

ROOT = Path(__file__).resolve().parents[2]
ID = "3f2c5a" * 6
POD = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web-1"}
CACHED = {name: cache(made) for name, made in table.PROGRAMS.items()}
LEAVES = [leaf for name in ("cni-py", "flanneld", "cni-agent") for leaf in CACHED[name]().leaves()]


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's files: two networks, an attachment with a result, one with a record, a named namespace, a lab."""
    for name, directory in (
        ("NETWORKS", "net.d"),
        ("RESULTS", "cni"),
        ("NAMESPACES", "netns"),
        ("RECORDS", "records"),
        ("LAB", "lab"),
    ):
        monkeypatch.setattr(candidates, name, str(tmp_path / directory))
    monkeypatch.setattr(table, "PROGRAMS", CACHED)
    monkeypatch.delenv("NETCONFPATH", raising=False)
    write(tmp_path / "net.d/10-flannel.conflist", {"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]})
    write(tmp_path / "net.d/20-lan.conf", {"name": "lan", "type": "macvlan"})
    write(tmp_path / "net.d/30-broken.conf", "{")
    write(tmp_path / "net.d/40-list.conf", "[1]")
    write(tmp_path / "net.d/50-odd.conf", {"name": "$(reboot)", "type": "macvlan"})
    write(tmp_path / "net.d/60-odd.conf", {"name": 7, "plugins": "none"})
    result = {
        "kind": "cniCacheV1",
        "containerId": ID,
        "ifName": "eth0",
        "networkName": "cbr0",
        "cniArgs": [list(pair) for pair in POD.items()],
        "result": {"ips": [{"address": "10.244.91.2/24"}, {"address": "fd00::2/64"}]},
    }
    write(tmp_path / f"cni/results/cbr0-{ID}-eth0", result)
    record = {"containerID": "c2", "ifname": "net1", "network": "lan", "netns": f"{tmp_path}/netns/blue"}
    write(tmp_path / "records/c2:net1:lan", record)
    write(tmp_path / "netns/blue", "")
    state = {
        "nodes": [{"name": "node1"}, {"name": "node2"}],
        "pods": {"pod1": {"node": "node1"}},
        "machines": {"node1": {}, "router": {}},
    }
    write(tmp_path / "lab/state.json", state)
    return tmp_path


def of(line: str) -> list[str] | str:
    """Candidates behind this line, of which the last word is not complete."""
    found = complete(line.split(" "))
    return found if isinstance(found, str) else sorted(found)


NETWORKS = ["cbr0", "lan"]
ATTACHMENTS = sorted(["default/web-1", "10.244.91.2", "fd00::2", ID, "c2", "blue"])
FAULTS = ["arp", "etcd", "fdb", "flanneld", "link", "route"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cni-py a", ["add"]),
        ("cni-py swe", ["sweep"]),
        ("cni-py x", []),
        ("cni-py add ", NETWORKS),
        ("cni-py add c", ["cbr0"]),
        ("cni-py add cbr0 ", ["blue"]),
        ("cni-py add --explain cbr0 ", ["blue"]),
        ("cni-py add cbr0 blue ", ["--ifname", "--container-id", "--args", "--cap-args", "--explain", "--netconf-path", "--cni-path", "--cache-dir", "--help"]),
        ("cni-py add cbr0 --if", ["--ifname"]),
        ("cni-py add cbr0 -", ["--args", "--cache-dir", "--cap-args", "--cni-path", "--container-id", "--explain", "--help", "--ifname", "--netconf-path", "-h", "-i"]),
        ("cni-py add --explain --exp", []),
        ("cni-py add -i ", ["eth0", "net1"]),
        ("cni-py add --ifname=n", ["--ifname=net1"]),
        ("cni-py add --cap-args ", []),
        ("cni-py add --netconf-path ", DIRECTORIES),
        ("cni-py add --cni-path=/opt/", DIRECTORIES),
        ("cni-py check ", [*NETWORKS, *ATTACHMENTS]),
        ("cni-py check cbr0 ", sorted({*ATTACHMENTS})),
        ("cni-py check cbr0 10.", ["10.244.91.2"]),
        ("cni-py explain ", sorted({*ATTACHMENTS})),
        ("cni-py explain def", ["default/web-1"]),
        ("cni-py explain --network ", NETWORKS),
        ("cni-py explain --network=l", ["--network=lan"]),
        ("cni-py explain --flanneld --no", ["--node"]),
        ("cni-py del --container-id ", sorted([ID, "c2"])),
        ("cni-py gc cbr0 --valid ", [f"{ID}/eth0"]),
        ("cni-py gc lan --valid ", ["c2/net1"]),
        ("cni-py gc cbr0 --valid x/y --va", ["--valid", "--valid-living"]),
        ("cni-py repair --network cbr0 --network ", NETWORKS),
        ("cni-py sweep --grace ", []),
        ("cni-py config ", sorted(["keys", "check", "get", "set", "leases", "reserve", "release", *PLUGINS])),
        ("cni-py config keys br", ["bridge"]),
        ("cni-py config br", ["bridge"]),
        ("cni-py config bridge --m", ["--markdown"]),
        ("cni-py config check ", FILES),
        ("cni-py config check a.json ", FILES),
        ("cni-py config get -- -etcd-c", ["-etcd-cafile", "-etcd-certfile"]),
        ("cni-py config get --json -- --etcd-c", ["--etcd-cafile", "--etcd-certfile"]),
        ("cni-py config get -- -etcd-cafile ", FILES),
        ("cni-py config set net.json -- -host-network-overlap ", ["refuse", "warn"]),
        ("cni-py lab up --datastore ", ["etcd", "file"]),
        ("cni-py lab up --net-conf ", FILES),
        ("cni-py lab exec ", ["node1", "node2", "pod1", "router"]),
        ("cni-py lab exec node1 -- ", COMMANDS),
        ("cni-py lab exec node1 -- ip ro", COMMANDS),
        ("cni-py lab log n", ["node1", "node2"]),
        ("cni-py lab break ", FAULTS),
        ("cni-py lab break link ", ["node1", "node2"]),
        ("cni-py lab heal r", ["route"]),
        ("cni-py lesson ", ["check", "list", "start", "stop"]),
        ("cni-py lesson start ", [str(one.number) for one in LESSONS]),
        ("cni-py lesson check 1", ["1", "10"]),
        ("cni-py lesson stop 3", ["3"]),
        ("cni-py lab up --nodes ", []),
        ("cni-py lab exec --directory ", DIRECTORIES),
        ("cni-py help ", [command.name for command in table.cni_py().commands] + ["help"]),
        ("cni-py help lab b", ["break"]),
        ("cni-py walk ", [*ATTACHMENTS, "node1", "node2", "pod1", "router"]),
        ("cni-py walk pod1 10.", ["10.244.91.2"]),
        ("cni-py walk pod1 node1 --protocol ", ["icmp", "tcp", "udp"]),
        ("cni-py doctor ", [*ATTACHMENTS, "node1", "node2", "pod1", "router"]),
        ("cni-py completion ", ["bash", "fish", "zsh"]),
        ("flanneld -etcd-pr", ["-etcd-prefix"]),
        ("flanneld --etcd-pr", ["--etcd-prefix"]),
        ("flanneld -ip-masq=", ["-ip-masq=ipv4", "-ip-masq=ipv6"]),
        ("flanneld -ip-masq -ip-masq-", ["-ip-masq-fully-random-disable"]),
        ("flanneld -subnet-file ", FILES),
        ("flanneld -iface eth0 -iface-r", ["-iface-regex"]),
        ("flanneld -iface eth0 -ifac", ["-iface", "-iface-can-reach", "-iface-cidr", "-iface-node-ip", "-iface-regex"]),
        ("cni-agent --s", ["--socket", "--sweep-seconds"]),
        ("cni-agent --socket ", FILES),
        ("cni-agent --metrics ", []),
    ],
)  # fmt: skip
def test_what_comes_next(line: str, expected: list[str] | str) -> None:
    assert of(line) == (expected if isinstance(expected, str) else sorted(expected))


def cases() -> list[tuple[Command, Option, str]]:
    return [(leaf, option, name) for leaf in LEAVES for option in leaf.options for name in option.names if len(name) > 2]


@pytest.mark.parametrize(("command", "option", "name"), cases(), ids=str)
def test_every_option_is_completed(command: Command, option: Option, name: str) -> None:
    """Complete every option of every command from its first letters, also of one that is added later."""
    found = complete([*command.path, name[:-1]])
    assert isinstance(found, dict)
    assert found[name] == option.text
    assert name not in complete([*command.path, name[:-1] + "\n"])


@pytest.mark.parametrize("command", list(table.cni_py().leaves()), ids=lambda command: " ".join(command.path))
def test_every_command_is_completed(command: Command) -> None:
    *before, name = command.path
    found = complete([*before, name[:1]])
    assert isinstance(found, dict)
    assert found[name] == command.summary
    for option in command.options:
        if option.choices:
            assert complete([*command.path, option.names[-1], ""]) == dict.fromkeys(option.choices, "")


def test_names_that_are_no_words_of_a_shell_are_left_out(node: Path) -> None:
    for name in ("a b", "a;b", "a\nb", "`x`", "-rf", "'", "\x1b[0m", "é"):
        write(node / "netns" / name, "")
    assert of("cni-py add cbr0 ") == ["-rf", "blue"]


def test_directory_of_the_line_counts(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "other/1.conf", {"name": "other", "type": "bridge"})
    assert of(f"cni-py status --netconf-path {tmp_path}/other ") == ["other"]
    assert of(f"cni-py status --netconf-path={tmp_path}/other ") == ["other"]
    monkeypatch.setenv("NETCONFPATH", f"{tmp_path}/other")
    assert of("cni-py status ") == ["other"]


def test_many_attachments_are_bounded(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST", 3)
    for number in range(5):
        write(node / f"cni/results/cbr0-c{number}-eth0", {"containerId": f"c{number}", "ifName": "eth0", "networkName": "cbr0"})
    assert len(candidates.cached("", "cbr0")) == 3


def test_node_without_files_has_no_names(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NETWORKS", "RESULTS", "NAMESPACES", "RECORDS", "LAB"):
        monkeypatch.setattr(candidates, name, str(node / "none"))
    assert of("cni-py add ") == []
    assert of("cni-py explain ") == []
    assert of("cni-py lab exec ") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cni-py sta", ["status"]),
        ("/opt/bin/cni-py sta", ["status"]),
        ("cni-py explain fd00:", [":2"]),  # bash replaces what is behind the last ":"
        ("cni-py repair --network=", NETWORKS),
        ("cni-py add 'cb", ["cbr0"]),
        ('cni-py add "cbr0" ', ["blue"]),
        ("cni-py add cbr0 bl", ["blue"]),
        ("cni-py ", [command.name for command in table.cni_py().commands] + ["help"]),
        ("other ", []),
        ("cni-py config check ", [FILES]),
    ],
)
def test_bash(line: str, expected: list[str]) -> None:
    assert answer("bash", [line]) == expected


def test_descriptions_have_no_control_characters(node: Path) -> None:
    write(node / "net.d/70.conf", {"name": "odd", "type": "a\tb\nc\x1b[0m"})
    assert answer("fish", ["cni-py", "add", "o"]) == ["odd\ta\\tb\\nc\\x1b[0m"]


def test_zsh_and_fish() -> None:
    assert answer("zsh", ["cni-py", "add", "c"]) == ["cbr0:flannel, portmap"]
    assert answer("zsh", ["cni-py", "explain", "fd"]) == ["fd00\\:\\:2:default/web-1, eth0 of network cbr0"]
    assert answer("fish", ["cni-py", "add", "c"]) == ["cbr0\tflannel, portmap"]
    assert answer("fish", ["cni-py", "config", "check", ""]) == [FILES]


def test_scripts_are_printed_with_the_program_that_prints_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cni_py.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["/usr/local/k8s/bin/cni-py"])
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert f"/usr/local/k8s/bin/cni-py __complete {shell}" in out
        assert "@PREFIX@" not in out
        for path in completion.INSTALLED[shell]:
            assert (ROOT / "conf" / "share" / path).read_text() == completion.SCRIPTS[shell], "make generate"


@pytest.mark.parametrize(
    "line", [["cni-py", "add", ""], ["cni-py", "explain", ""], ["flanneld", "-"], ["cni-agent", "-"]], ids=str
)
def test_completion_loads_nothing_heavy(line: list[str]) -> None:
    """A TAB has 100 ms: what needs longer to load than all of this is named here."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'build/runtime')!r}]\n"
        "from cni_py.cli.main import main\n"
        f"main(['__complete', 'fish', *{line!r}])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "pydantic_core", "rich", "grpc", "etcd3", "urllib3", "yaml", "re2", "subprocess", "asyncio", "logging", "email", "multiprocessing", "cni_py.engine", "cni_py.runtime.chain", "cni_py.agent.server", "cni_py.flanneld.daemon", "cni_py.lab.lab"}  # fmt: skip
    assert heavy.isdisjoint(done.stderr.split())
