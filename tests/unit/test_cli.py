"""``cni-py``: options and environment, what is printed where, exit statuses, journals and references."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_py import __version__, journal
from cni_py.cli import attachments, host_report, verbs
from cni_py.cli import journals as journal_files
from cni_py.cli import main as cli
from cni_py.config import models, reference
from cni_py.errors import CniError
from cni_py.journal import printable
from cni_py.netlink import netfilter
from cni_py.packetfilter import libnftables
from cni_py.plugin_table import PLUGINS

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]

PLUGIN = """\
#!/bin/sh
here=${{0%/*}}
{{ env | sort; cat; }} > "$here/../seen.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.1.0.2/24"}}]}}'
[ -e "$here/../fail" ] || exit 0
cat "$here/../fail"
exit 1
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a directory with a network "blue", its plugin, and a file in place of a namespace."""
    (tmp_path / "net.d").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fake").write_text(PLUGIN.format())
    (tmp_path / "bin" / "fake").chmod(0o755)
    (tmp_path / "ns").touch()
    conf = {"name": "blue", "cniVersion": "1.1.0", "plugins": [{"type": "fake", "capabilities": {"mac": True}}]}
    (tmp_path / "net.d" / "10-blue.conflist").write_text(json.dumps(conf))
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    monkeypatch.setenv("CNI_PATH", str(tmp_path / "bin"))
    for variable in ("CNI_IFNAME", "CNI_ARGS", "CAP_ARGS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def run(node: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``cni-py`` with a cache of its own: exit status, standard output, standard error."""

    def cni_py(*argv: str) -> tuple[int, str, str]:
        cache = ["--cache-dir", str(node / "cache")] if argv[0] in ("add", "check", "del", "gc", "status") else []
        try:
            status = cli.main([*argv, *cache])
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return cni_py


def seen(node: Path, verb: str) -> dict[str, str]:
    lines = (node / f"seen.{verb}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("{"))


def conf_seen(node: Path, verb: str) -> dict[str, object]:
    conf: dict[str, object] = json.loads((node / f"seen.{verb}").read_text().splitlines()[-1])
    return conf


def records(node: Path) -> list[str]:
    return sorted(os.listdir(node / "cache" / "results")) if (node / "cache").exists() else []


# ---- parameters -------------------------------------------------------------------------------


def test_container_id_is_that_of_cnitool() -> None:
    assert verbs.container_id_of("/tmp/ns") == "cnitool-352833ea4e7f1a968163"  # recorded with cnitool v1.3.0
    assert verbs.container_id_of("/tmp/co/ns") == "cnitool-c2bc32a2eba65dcaeaa4"


def test_add_prints_the_result_and_keeps_it(run: Run, node: Path) -> None:
    status, out, err = run("add", "blue", str(node / "ns"))
    assert (status, err) == (0, "")
    assert (
        out
        == '{\n    "cniVersion": "1.1.0",\n    "ips": [\n        {\n            "address": "10.1.0.2/24"\n        }\n    ]\n}\n'
    )
    assert records(node) == [f"blue-{verbs.container_id_of(str(node / 'ns'))}-eth0"]
    assert seen(node, "ADD")["CNI_NETNS"] == str(node / "ns")
    assert seen(node, "ADD")["CNI_ARGS"] == ""


def test_path_of_a_namespace_is_made_absolute_as_cnitool_does(run: Run, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(node)
    for path in ("./ns", f"/{node}/bin/../ns", f"{node}//ns"):
        assert run("add", "blue", path)[0] == 0
        assert seen(node, "ADD")["CNI_NETNS"] == str(node / "ns")


def test_environment_gives_what_options_do_not(run: Run, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_IFNAME", "net1")
    monkeypatch.setenv("CNI_ARGS", "A=1;B=2")
    monkeypatch.setenv("CAP_ARGS", '{"mac": "aa", "other": 1}')
    assert run("add", "blue", str(node / "ns"))[0] == 0
    assert (seen(node, "ADD")["CNI_IFNAME"], seen(node, "ADD")["CNI_ARGS"]) == ("net1", "A=1;B=2")
    assert conf_seen(node, "ADD")["runtimeConfig"] == {"mac": "aa"}

    options = ["--ifname", "net2", "--args", "C=3", "--cap-args", '{"mac": "bb"}', "--container-id", "mine"]
    assert run("add", "blue", str(node / "ns"), *options)[0] == 0
    assert (seen(node, "ADD")["CNI_IFNAME"], seen(node, "ADD")["CNI_ARGS"]) == ("net2", "C=3")
    assert conf_seen(node, "ADD")["runtimeConfig"] == {"mac": "bb"}
    assert "blue-mine-net2" in records(node)


def test_options_name_other_directories(run: Run, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETCONFPATH", "/nowhere")
    monkeypatch.setenv("CNI_PATH", "/nowhere")
    directories = ["--netconf-path", str(node / "net.d"), "--cni-path", f"/nowhere:{node}/bin"]
    assert run("add", "blue", str(node / "ns"), *directories)[0] == 0
    assert seen(node, "ADD")["CNI_PATH"] == f"/nowhere:{node}/bin"


def test_relative_directories_of_plugins_are_made_absolute(run: Run, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(node)
    monkeypatch.setenv("CNI_PATH", "bin::./bin/")
    assert run("add", "blue", str(node / "ns"))[0] == 0
    assert seen(node, "ADD")["CNI_PATH"] == f"{node}/bin:{node}/bin"


def test_plugins_of_this_installation_come_first(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNI_PATH")
    (node / "cni" / "bin").mkdir(parents=True)
    (node / "cni" / "bin" / "cni-plugin").touch()
    monkeypatch.setattr(sys, "argv", [str(node / "bin" / "cni-py")])
    options = cli.arguments.parse(["version", "-v"])
    assert verbs.cni_path(options) == [f"{node}/cni/bin", "/opt/cni/bin"]
    (node / "cni" / "bin" / "cni-plugin").unlink()
    assert verbs.cni_path(options) == ["/opt/cni/bin"]


@pytest.fixture
def netns_directories(node: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    (node / "run").mkdir()
    (node / "var").symlink_to(node / "run")
    directories = f"{node}/run", f"{node}/var"
    monkeypatch.setattr(verbs, "NETNS_DIRECTORIES", directories)
    return directories


def test_name_of_a_namespace_is_one_of_ip_netns(run: Run, node: Path, netns_directories: tuple[str, str]) -> None:
    (node / "run" / "green").touch()
    assert run("add", "blue", "green")[0] == 0
    assert seen(node, "ADD")["CNI_NETNS"] == f"{node}/run/green"


def test_name_of_a_namespace_finds_what_was_added_by_the_other_path(
    run: Run, node: Path, netns_directories: tuple[str, str]
) -> None:
    (node / "run" / "green").touch()
    assert run("add", "blue", f"{node}/var/green")[0] == 0
    assert run("del", "blue", "green")[0] == 0
    assert seen(node, "DEL")["CNI_NETNS"] == f"{node}/var/green"
    assert records(node) == []


@pytest.mark.parametrize("verb", ["add", "check"])
def test_missing_namespace(run: Run, node: Path, netns_directories: tuple[str, str], verb: str) -> None:
    status, _, err = run(verb, "blue", "green")
    assert status == 1
    assert f'network namespace "{node}/run/green" does not exist' in err
    assert ("ip netns add green" in err) == (verb == "add"), "a new namespace is no help for a deleted pod"


def test_delete_needs_no_namespace(run: Run, node: Path, netns_directories: tuple[str, str]) -> None:
    assert run("del", "blue", "green") == (0, "", "")
    assert run("del", "blue", "/proc/0/ns/net") == (0, "", "")


def test_delete_and_check_use_the_arguments_of_add(run: Run, node: Path) -> None:
    run("add", "blue", str(node / "ns"), "--args", "A=1", "--cap-args", '{"mac": "aa"}')
    assert run("check", "blue", str(node / "ns")) == (0, "", "")
    assert seen(node, "CHECK")["CNI_ARGS"] == "A=1"
    assert conf_seen(node, "CHECK")["runtimeConfig"] == {"mac": "aa"}
    assert run("del", "blue", str(node / "ns")) == (0, "", "")
    assert seen(node, "DEL")["CNI_ARGS"] == "A=1"
    assert conf_seen(node, "DEL")["prevResult"] == {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]}
    assert records(node) == []


def test_gc_without_a_list_deletes_nothing_and_lists_what_it_would(run: Run, node: Path) -> None:
    run("add", "blue", str(node / "ns"))
    run("add", "blue", str(node / "ns"), "--container-id", "dead")
    kept = records(node)
    status, out, err = run("gc", "blue")
    assert (status, out) == (2, "")
    assert f"would be deleted: {verbs.container_id_of(str(node / 'ns'))}/eth0, whose namespace {node}/ns exists" in err
    assert "--valid-living" in err
    assert "--all" in err
    assert records(node) == kept
    assert not (node / "seen.GC").exists()


def test_gc_of_all_deletes_all(run: Run, node: Path) -> None:
    run("add", "blue", str(node / "ns"))
    status, out, err = run("gc", "blue", "--all")
    assert (status, out) == (0, "")
    assert err == f"cni-py: deleting attachment {verbs.container_id_of(str(node / 'ns'))} eth0\n"
    assert "cni.dev/valid-attachments" not in conf_seen(node, "GC")


def test_gc_of_a_network_without_attachments_needs_no_option(run: Run, node: Path) -> None:
    assert run("gc", "blue") == (0, "", "")
    assert (node / "seen.GC").exists()


def test_gc_keeps_what_is_named_and_what_lives(run: Run, node: Path) -> None:
    (node / "gone").touch()
    for container_id, netns in (("named", "gone"), ("living", "ns"), ("dead", "gone")):
        run("add", "blue", str(node / netns), "--container-id", container_id)
    (node / "gone").unlink()
    assert run("gc", "blue", "unused", "--valid", "named/eth0", "--valid-living")[0] == 0
    assert records(node) == ["blue-living-eth0", "blue-named-eth0"]
    entries = [{"containerID": "named", "ifname": "eth0"}, {"containerID": "living", "ifname": "eth0"}]
    assert conf_seen(node, "GC")["cni.dev/valid-attachments"] == entries


def test_gc_prints_every_error(run: Run, node: Path) -> None:
    run("add", "blue", str(node / "ns"))
    (node / "fail").write_text('{"code": 5, "msg": "no way"}')
    status, _, err = run("gc", "blue", "--all")
    assert status == 1
    assert err.count("no way") == 2


def test_status_is_silent_where_all_is_well(run: Run, node: Path) -> None:
    assert run("status", "blue") == (0, "", "")
    assert run("status", "blue", "unused") == (0, "", "")
    assert seen(node, "STATUS")["CNI_CONTAINERID"] == ""


def test_explain_option_heads_each_plugin(run: Run, node: Path) -> None:
    status, out, err = run("add", "blue", str(node / "ns"), "--explain")
    assert status == 0
    json.loads(out)
    lines = err.splitlines()
    assert lines[0] == f"== ADD blue: fake ({node}/bin/fake)"
    assert lines[1].startswith("== ADD blue: fake done, ")
    assert seen(node, "ADD")["CNI_PY_EXPLAIN"] == "1"


# ---- errors -----------------------------------------------------------------------------------


def test_error_of_a_plugin_is_printed_in_parts(run: Run, node: Path) -> None:
    (node / "fail").write_text(json.dumps({"code": 103, "msg": "it is down", "details": "up: expected true\nfound false"}))
    (node / "seen.ADD").touch()
    status, out, err = run("check", "blue", str(node / "ns"))
    assert (status, out) == (1, "")
    assert err.splitlines()[-4:] == [
        'cni-py: plugin type="fake" failed (check): it is down',
        "  details: up: expected true",
        "    found false",
        "  code: 103",
    ]


def failing(node: Path, name: str = "fake") -> None:
    (node / "bin" / name).write_text('#!/bin/sh\necho \'{"code": 11, "msg": "later"}\'; exit 1\n')
    (node / "bin" / name).chmod(0o755)


def two_plugins(node: Path, second: str) -> None:
    conf = {"name": "blue", "cniVersion": "1.1.0", "plugins": [{"type": "fake"}, {"type": second}]}
    (node / "net.d" / "10-blue.conflist").write_text(json.dumps(conf))


def test_failed_add_hints_at_del_where_a_plugin_in_front_succeeded(run: Run, node: Path) -> None:
    failing(node, "second")
    two_plugins(node, "second")
    status, out, err = run("add", "blue", str(node / "ns"), "--ifname", "net1")
    assert (status, out) == (1, "")
    assert f"hint: to undo the changes of fake, which succeeded: cni-py del blue {node}/ns --ifname net1\n" in err


@pytest.mark.parametrize("case", ["first plugin fails", "no such plugin", "bad name"])
def test_failed_add_that_left_nothing_hints_at_no_del(run: Run, node: Path, case: str) -> None:
    failing(node)
    two_plugins(node, "second")
    if case == "no such plugin":
        (node / "bin" / "fake").unlink()
    options = ["--ifname", "a/b"] if case == "bad name" else []
    assert "cni-py del" not in run("add", "blue", str(node / "ns"), *options)[2]


@pytest.mark.parametrize("same_id", [True, False])
def test_failed_add_beside_a_live_attachment_never_hints_at_del(run: Run, node: Path, same_id: bool) -> None:
    run("add", "blue", str(node / "ns"))
    failing(node, "second")
    two_plugins(node, "second")
    options = [] if same_id else ["--container-id", "another"]
    _, _, err = run("add", "blue", str(node / "ns"), *options)
    assert "cni-py del" not in err
    assert f'"eth0" of {node}/ns is attached already, since ' in err
    assert "with 10.1.0.2" in err
    assert f"hint: see its journal: cni-py explain {verbs.container_id_of(str(node / 'ns'))}" in err


def test_control_characters_are_escaped(run: Run, node: Path) -> None:
    (node / "fail").write_text(json.dumps({"code": 5, "msg": "red \x1b[31m \u202e\x9b"}))
    err = run("status", "blue")[2]
    assert r"red \x1b[31m \u202e\x9b" in err
    assert printable("a\udcffb\tc\nd\x7f\u202e") == "a\\udcffb\\tc\\nd\\x7f\\u202e"


def test_unknown_network_lists_existing_ones(run: Run, node: Path) -> None:
    status, _, err = run("add", "green", str(node / "ns"))
    assert status == 1
    assert f'no net configuration with name "green" in {node}/net.d' in err
    assert "blue (10-blue.conflist)" in err


def test_broken_file_is_a_warning(run: Run, node: Path) -> None:
    (node / "net.d" / "00.conflist").write_text("{")
    status, _, err = run("status", "blue")
    assert status == 0
    assert err.startswith(f"cni-py: warning: skipped {node}/net.d/00.conflist: ")


def test_missing_plugin_is_named(run: Run, node: Path) -> None:
    (node / "bin" / "fake").unlink()
    status, _, err = run("add", "blue", str(node / "ns"))
    assert status == 1
    assert f'failed to find plugin "fake" in path {node}/bin' in err


@pytest.mark.parametrize(("user", "hinted"), [(1000, True), (0, False)])
def test_other_users_get_a_hint_to_run_it_as_root(
    run: Run, node: Path, monkeypatch: pytest.MonkeyPatch, user: int, hinted: bool
) -> None:
    (node / "fail").write_text(json.dumps({"code": 101, "msg": "the kernel refused", "details": "Operation not permitted"}))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ("sudo -E cni-py" in run("status", "blue")[2]) is hinted


@pytest.mark.parametrize(
    "argv",
    [
        ["add", "blue", "NS", "--args", "A=\udcff"],
        ["add", "blue", "NS", "--ifname", "a/b"],
        ["add", "blue", "NS", "--container-id", "../../x"],
        ["del", "blue", "NS", "--container-id", "x\ny"],
        ["add", "blue", "/tmp/\udcff"],
        ["del", "blue", "/tmp/\udcff"],
        ["add", "../blue", "NS"],
        ["add", "", "NS"],
        ["add", "blue", ""],
        ["del", "blue", ".."],
        ["add", "blue", "NS", "--netconf-path", "/dev/null"],
        ["add", "blue", "NS", "--netconf-path", "/proc/self/mem"],
        ["gc", "\udcff"],
        ["add", "blue", "NS", "--cni-path", "/dev/null"],
        ["explain", "no-such-container"],
        ["config", "no-such-plugin"],
    ],
)
def test_bad_input_is_an_error_and_never_a_traceback(run: Run, node: Path, argv: list[str]) -> None:
    status, out, err = run(*[str(node / "ns") if word == "NS" else word for word in argv])
    assert (status, out) == (1, "")
    assert err.startswith("cni-py: ")
    assert records(node) == []


def test_status_without_network_asks_the_agent(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cni_py.protocol.SOCKET_PATH", str(tmp_path / "none.sock"))
    status, out, err = run("status")
    assert (status, out) == (1, "")
    assert "could not query the agent" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["add"],
        ["add", "blue"],
        ["add", "blue", "ns", "more"],
        ["add", "blue", "ns", "--nonsense"],
        ["add", "blue", "ns", "--ifn", "x"],
        ["gc", "blue", "--valid", "x"],
        ["gc", "blue", "--valid", "/eth0"],
        ["add", "blue", "ns", "--args", "A"],
        ["add", "blue", "ns", "--args", "A=1;"],
        ["add", "blue", "ns", "--args", "A="],
        ["add", "blue", "ns", "--args", "A=1=2"],
        ["add", "blue", "ns", "--cap-args", "{"],
        ["add", "blue", "ns", "--cap-args", "[1]"],
        ["add", "blue", "ns", "--cap-args", "\udcff"],
    ],
)
def test_wrong_usage_is_exit_status_2(run: Run, argv: list[str]) -> None:
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert "usage: cni-py" in err
    assert "CAP_ARGS" not in err.partition("error: ")[2], "the option is named, not the variable"


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        ([], ["--help"]),
        (["help"], ["--help"]),
        (["help", "add"], ["add", "--help"]),
        (["help", "config", "set"], ["config", "set", "--help"]),
        (["help", "lab", "up"], ["lab", "up", "--help"]),
    ],
)
def test_help_and_no_command_print_help(capsys: pytest.CaptureFixture[str], argv: list[str], same: list[str]) -> None:
    printed = []
    for words in (argv, same):
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    assert printed[0].out.startswith("usage: cni-py ")


def commands() -> list[list[str]]:
    groups = {
        "lab": "up exec ping status log break heal down",
        "config": "keys get set reserve release",
        "lesson": "list start check stop",
    }
    alone = [[], *([name] for name in cli._COMMANDS)]
    return alone + [[group, name] for group, names in groups.items() for name in names.split()]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_is_80_columns_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["ad", "blue", "ns"], 'cni-py: error: unknown command "ad": did you mean "add"?'),
        (["help", "explian"], 'cni-py: error: unknown command "explian": did you mean "explain"?'),
        (["lab", "statsu"], 'cni-py lab: error: unknown command "statsu": did you mean "status"?'),
        (["qqq"], 'cni-py: error: unknown command "qqq"'),
        (
            ["config", "set", "FILE", "-datastore=file:/x"],
            'unrecognized arguments: -datastore=file:/x (flanneld\'s options must follow "--")',
        ),
    ],
)
def test_near_miss_is_suggested(run: Run, argv: list[str], error: str) -> None:
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.endswith(f"{error}\n")


@pytest.mark.parametrize("command", ["add", "check", "del", "gc", "status", "explain", "version", "config", "lesson"])
def test_every_command_has_help(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: cni-py {command}")
    assert out.isascii()
    assert f"    {command} " in run("--help")[1]


def test_ctrl_c_is_exit_status_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "status", interrupted)
    assert run("status", "blue") == (130, "", "cni-py: interrupted\n")


@pytest.mark.parametrize("argv", [["--help"], ["config"], ["version"]])
def test_closed_pipe_is_no_traceback(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cni_py.cli.main", *argv]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode in ((0, 1) if "--help" in argv else (1,))  # argparse passes over it, in newer Pythons


# ---- explain ----------------------------------------------------------------------------------


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "journal"
    (directory / "deleted").mkdir(parents=True)
    monkeypatch.setattr(journal, "JOURNAL_DIR", str(directory))
    monkeypatch.setattr(attachments.record, "DIRECTORY", str(tmp_path / "records"))
    monkeypatch.setattr(attachments, "RESERVATIONS", str(tmp_path / "networks"))
    monkeypatch.setattr(attachments.known, "__defaults__", (str(tmp_path / "cache"),))
    return directory


def call(verb: str, container_id: str, netns: object, *, error: str = "", plugin: str = "bridge", network: str = "cbr0") -> str:
    """Return a call as journal.py writes it."""
    title = f"# 2026-11-24T10:00:00Z {verb} {plugin}, network {network}, container {container_id}, eth0 in {netns}\n"
    step = f"10:00:00.000001  ip link {'add' if verb == 'ADD' else 'del'} veth1{f'  # failed: {error}' if error else ''}  (1.00 ms)\n"
    return title + step + f"10:00:00.000002  # {f'failed: {error}' if error else 'done'}  (2.50 ms)\n"


def write_journal(journals: Path, container_id: str, text: str, *, deleted: bool = False, network: str = "cbr0") -> None:
    path = journals / ("deleted" if deleted else "") / f"{container_id}:eth0:{network}"
    path.write_text(text)
    moment = 1_700_000_000 + len(list(journals.rglob("*:*")))
    os.utime(path, (moment, moment))


@pytest.fixture
def four(journals: Path, node: Path) -> Path:
    """Write the journals of a live, a gone, a failed and a deleted attachment."""
    gone = node / "gone"
    write_journal(journals, "live1", call("ADD", "live1", node / "ns"))
    write_journal(journals, "gone1", call("ADD", "gone1", gone))
    write_journal(journals, "fail1", call("ADD", "fail1", node / "ns", error='the kernel refused: "ip link add": File exists'))
    write_journal(journals, "del1", call("ADD", "del1", gone, error="no address") + call("DEL", "del1", gone), deleted=True)
    return journals


def test_explain_lists_attachments_with_their_state_and_last_error(run: Run, four: Path, node: Path) -> None:
    status, out, _ = run("explain")
    assert status == 0
    words = [line.split() for line in out.splitlines()]
    assert [line[0] for line in words if line[0] in ("live", "gone", "failed", "deleted")] == [
        "live",
        "gone",
        "failed",
        "deleted",
    ]
    assert 'error: the kernel refused: "ip link add": File exists' in " ".join(out.split())
    assert "error: no address" in out, "the error of ADD, although DEL has cleaned up since"
    assert words[-1] == ["4", "attachments:", "1", "live,", "1", "gone,", "1", "failed,", "1", "deleted"]
    states = {one["containerID"]: one["state"] for one in json.loads(run("explain", "--json")[1])}
    assert states == {"live1": "live", "gone1": "gone", "fail1": "failed", "del1": "deleted"}


def test_explain_is_80_columns_wide(run: Run, journals: Path) -> None:
    write_journal(journals, "f" * 64, call("ADD", "f" * 64, "/run/netns/cni-1", error="it was refused " * 40), network="net")
    assert max(map(len, run("explain")[1].splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (call("ADD", "c", "NS") + call("ADD", "c", "NS", error="x", plugin="portmap"), "failed"),
        (call("ADD", "c", "NS", error="x") + call("ADD", "c", "NS"), "live"),
        (call("ADD", "c", "NS") + call("ADD", "c", "NS", error="x"), "live"),
        (call("ADD", "c", "NS") + call("ADD", "c", "NS", plugin="portmap") + call("ADD", "c", "NS", error="x"), "live"),
        (call("ADD", "c", "NS") + call("DEL", "c", "NS") + call("ADD", "c", "NS", error="x"), "failed"),
        (call("ADD", "c", "NS") + call("DEL", "c", "NS", error="x"), "failed"),
        (call("ADD", "c", "NS") + call("DEL", "c", "-", error="x"), "failed"),
        (call("ADD", "c", "/nowhere") + call("DEL", "c", "-", error="x"), "failed"),
        ("# older lines were cut\n", "unknown"),
    ],
)
def test_state_is_that_of_the_last_call(run: Run, journals: Path, node: Path, text: str, state: str) -> None:
    write_journal(journals, "c", text.replace("NS", str(node / "ns")))
    (one,) = json.loads(run("explain", "--json")[1])
    assert one["state"] == state


def test_second_add_that_was_refused_leaves_the_first_live(run: Run, journals: Path, node: Path, tmp_path: Path) -> None:
    assert run("add", "blue", str(node / "ns"), "--container-id", "c", "--cache-dir", str(tmp_path / "cache"))[0] == 0
    refused = call("ADD", "c", node / "ns", network="blue") + call("ADD", "c", node / "ns", error="File exists", network="blue")
    write_journal(journals, "c", refused, network="blue")
    (one,) = json.loads(run("explain", "--json")[1])
    assert (one["state"], one["error"]) == ("live", "File exists")


def test_explain_shows_every_journal_of_a_container(run: Run, four: Path, node: Path) -> None:
    write_journal(four, "live1", call("ADD", "live1", node / "ns", network="other"), network="other")
    status, out, _ = run("explain", "live")
    assert status == 0
    assert out.count("== live1 eth0, network ") == 2
    assert out.count("ip link add veth1") == 2
    assert run("explain", "live1", "--network", "other")[1].count("ip link add veth1") == 1
    assert run("explain", "live1", "--ifname", "net1")[0] == 1


@pytest.mark.parametrize("word", ["web-1", "default/web-1", "10.1.0.2", "10.1.0.2/24", "NS", "cni-7"])
def test_attachment_is_found_by_what_an_engineer_has(
    run: Run, journals: Path, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1"
    cache = ["--cache-dir", str(tmp_path / "cache")]
    run("add", "blue", str(node / "ns"), "--container-id", "3f2c", "--args", args, *cache)
    record = {"containerID": "3f2c", "ifname": "eth0", "network": "blue", "netns": "/run/netns/cni-7"}
    (tmp_path / "records").mkdir()
    if word == "cni-7":
        (tmp_path / "records" / "3f2c:eth0:blue").write_text(json.dumps(record))
        (tmp_path / "cache" / "results" / "blue-3f2c-eth0").unlink()
    status, out, err = run("explain", word.replace("NS", str(node / "ns")))
    assert status == 0, err
    assert out.startswith("== 3f2c eth0, network blue")
    if word != "cni-7":
        assert run("check", word.replace("NS", str(node / "ns")), *cache) == (0, "", "")
        assert run("check", "blue", word.replace("NS", str(node / "ns")), *cache) == (0, "", "")
        assert seen(node, "CHECK")["CNI_CONTAINERID"] == "3f2c"


def test_name_of_a_pod_means_its_live_container(run: Run, journals: Path, node: Path, tmp_path: Path) -> None:
    """A pod that was created again has several containers, one after the other."""
    (node / "old").touch()
    for container_id, netns in (("old1", "old"), ("new1", "ns")):
        run("add", "blue", str(node / netns), "--container-id", container_id, "--args", "K8S_POD_NAME=web", "--cache-dir",
            str(tmp_path / "cache"))  # fmt: skip
    assert run("explain", "web")[1].count("== ") == 4, "both live: both are shown"
    (node / "old").unlink()
    assert "old1" not in run("explain", "web")[1]


def test_check_of_an_unknown_word_lists_what_there_is(run: Run, four: Path) -> None:
    status, _, err = run("check", "web-9")
    assert status == 1
    assert 'no attachment "web-9"' in err
    assert "hint: list them: cni-py explain" in err


@pytest.mark.parametrize("command", ["sweep", "repair"])
def test_network_that_no_file_configures_is_a_warning(run: Run, node: Path, command: str) -> None:
    assert 'configures a network "nonet"' in run(command, "--dry-run", "--network", "nonet")[2]
    assert 'configures a network "blue"' not in run(command, "--dry-run", "--network", "blue")[2]


def test_explain_of_an_ambiguous_id_names_the_candidates(run: Run, four: Path) -> None:
    write_journal(four, "live2", "x\n")
    status, out, err = run("explain", "live")
    assert (status, out) == (1, "")
    assert "one of live1, live2" in err


def test_explain_prefers_the_whole_id(run: Run, four: Path) -> None:
    write_journal(four, "live12", "longer\n")
    assert "longer" not in run("explain", "live1")[1]


def test_explain_escapes_control_characters(run: Run, journals: Path) -> None:
    write_journal(journals, "c", "red \x1b[31m\n")
    assert "red \\x1b[31m" in run("explain", "c")[1]


def test_explain_without_any_attachment(run: Run, journals: Path) -> None:
    assert run("explain")[:2] == (0, "no attachments\n")
    status, _, err = run("explain", "x")
    assert status == 1
    assert "since the last boot" in err


def test_explain_finds_ids_that_were_cut_in_the_name_of_the_file() -> None:
    known = attachments.Known("a" * 120, "eth0", "net~0123abcd")
    assert attachments.select([known], "a" * 200) == [known]
    with pytest.raises(CniError):
        attachments.select([known], "b" * 200)


def test_explain_of_a_journal_that_was_deleted_meanwhile(four: Path) -> None:
    entry = journal_files.entries()[0]
    Path(entry.path).unlink()
    assert journal_files.lines_of(entry) == []


# ---- version and config -----------------------------------------------------------------------


def test_version(run: Run) -> None:
    assert run("version") == (0, f"cni-py {__version__}\n", "")
    assert run("--version") == (0, f"cni-py {__version__}\n", "")


@pytest.fixture
def asks_the_kernel() -> Iterator[None]:
    """Close handles that are kept for reuse: they belong to this namespace, and later tests fork into others."""
    yield
    while netfilter._idle:
        netfilter._idle.pop().close()
    while libnftables._idle:
        libnftables._idle.pop().close()


@pytest.mark.usefixtures("asks_the_kernel")
def test_verbose_version_reports_on_the_host(run: Run, node: Path) -> None:
    (node / "bin" / "flannel").write_text("#!/usr/bin/python3\nfrom cni_py.client import main\n")
    (node / "bin" / "bridge").write_bytes(b"\x7fELF\xff")
    status, out, err = run("version", "-v")
    assert (status, err) == (0, "")
    found = {line[:18].strip(): line[18:].strip() for line in out.splitlines()}
    assert found["cni-py"].startswith(__version__)
    assert found["python"].startswith(sys.version.split()[0])
    assert found["kernel"].startswith(os.uname().release)
    assert found["plugin flannel"] == f"{node}/bin/flannel (ours)"
    assert found["plugin bridge"] == f"{node}/bin/bridge (third-party)"
    assert found["plugin loopback"].startswith("not in CNI_PATH")
    assert {
        "pydantic-core",
        "libnftables",
        "masquerade",
        "br_netfilter",
        "VLAN filtering",
        "CNI_PATH",
    } <= found.keys()


def test_report_shows_failures_instead_of_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("it broke")

    monkeypatch.setattr(host_report, "_libnftables", broken)
    monkeypatch.setattr(host_report, "_masquerade", broken)
    found = dict(host_report.report([]))
    assert found["libnftables"] == found["masquerade"] == "unknown: it broke"
    assert found["CNI_PATH"] == "empty"
    assert host_report._package("no-such-package-anywhere") == "not installed"


def test_report_queries_the_kernel_as_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = dict(host_report.report([]))
    assert found["libnftables"] == found["masquerade"] == "unknown: requires root"


def test_configuration_reference_is_up_to_date() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == reference.render_reference(), "run: python -m cni_py.cli.main config --markdown > docs/configuration.md"


def test_configuration_reference_names_every_plugin_and_key() -> None:
    text = reference.render_reference()
    for plugin, model in models.PLUGIN_MODELS.items():
        assert f"\n## {plugin}\n" in text
        for field in model.model_fields.values():
            assert f"`{field.alias}`" in text


def test_config_command_prints_the_reference(run: Run) -> None:
    assert run("config", "--markdown") == (0, reference.render_reference(), "")
    status, out, _ = run("config", "host-local")
    assert status == 0
    assert "  ipam.ranges[][].subnet  (string, default none)" in out
    assert "isGateway" not in out
    assert "isGateway" in run("config")[1]
    for argv in (["--markdown"], ["host-local"], []):
        assert run("config", "keys", *argv) == run("config", *argv)


def test_unknown_plugin_of_config_is_an_error_with_a_suggestion(run: Run) -> None:
    assert run("config", "brigde")[::2] == (
        1,
        f"""cni-py: unknown plugin "brigde": did you mean "bridge"?
  hint: one of {", ".join(PLUGINS)}
""",
    )
    assert 'did you mean "get"?' in run("config", "gett")[2]
