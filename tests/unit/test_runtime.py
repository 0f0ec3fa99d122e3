"""Chains as libcni runs them, seen from the plugins: scripts that write down what they get.

The expected records and request configurations are those of cnitool v1.3.0.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_py.errors import CniError, DecodingFailure, InvalidConfig, InvalidEnvironment, IOFailure
from cni_py.runtime import chain as runtime
from cni_py.runtime import network_config, result_cache
from cni_py.runtime.chain import Asked, PluginFailed, Runtime
from cni_py.runtime.network_config import Attachment, Network, NoSuchNetwork

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/x", "mtu": 1400}],
    "ips": [{"address": "10.1.0.2/24", "interface": 0}],
}
ID, NETNS = "cnitool-352833ea4e7f1a968163", "/tmp/ns"

SCRIPT = """\
#!/bin/sh
n=$(printf %03d $(ls '{here}/calls' | wc -l))
mkdir '{here}/calls'/$n
env -0 > '{here}/calls'/$n/env
cat > '{here}/calls'/$n/stdin
echo {name} > '{here}/calls'/$n/name
echo "{name} was here" >&2
cat '{here}/{name}'.$CNI_COMMAND 2>/dev/null
exit $(cat '{here}/{name}'.$CNI_COMMAND.status 2>/dev/null || echo 0)
"""


class Fakes:
    """Fake plugins in a directory, and what they were called with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "calls").mkdir()
        self.bin = directory / "bin"
        self.bin.mkdir()

    def make(self, name: str, result: dict[str, Any] | None = None) -> None:
        path = self.bin / name
        path.write_text(SCRIPT.format(here=self.directory, name=name))
        path.chmod(0o755)
        self.answer(name, "ADD", RESULT if result is None else result)

    def answer(self, name: str, verb: str, reply: object, status: int = 0) -> None:
        text = reply if isinstance(reply, str) else json.dumps(reply)
        (self.directory / f"{name}.{verb}").write_text(text)
        (self.directory / f"{name}.{verb}.status").write_text(str(status))

    def calls(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Verb, plugin and configuration of each call, in order."""
        directories = sorted((self.directory / "calls").iterdir())
        return [
            (self._env(f)["CNI_COMMAND"], (f / "name").read_text().strip(), json.loads((f / "stdin").read_text()))
            for f in directories
        ]

    def environments(self) -> list[dict[str, str]]:
        return [self._env(f) for f in sorted((self.directory / "calls").iterdir())]

    def _env(self, directory: Path) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in (directory / "env").read_text().split("\0") if pair)


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    fakes = Fakes(tmp_path)
    fakes.make("one")
    fakes.make("two")
    return fakes


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(fakes: Fakes, tmp_path: Path, said: list[str]) -> Runtime:
    return Runtime([str(fakes.bin)], str(tmp_path / "cache"), say=said.append)


def network(version: str = "1.0.0", *plugins: dict[str, Any], **keys: Any) -> Network:
    raw = {"name": "net", "cniVersion": version, "plugins": list(plugins) or [{"type": "one"}, {"type": "two"}], **keys}
    return network_config.parse_list("/nowhere/net.conflist", json.dumps(raw).encode(), raw)


def attachment(**changes: Any) -> Attachment:
    return Attachment(ID, NETNS, "eth0").replace(**changes)


def verbs(fakes: Fakes) -> list[str]:
    return [f"{verb} {name}" for verb, name, _ in fakes.calls()]


def cache_file(tmp_path: Path, name: str = f"net-{ID}-eth0") -> Path:
    return tmp_path / "cache" / "results" / name


# ---- finding a configuration ------------------------------------------------------------------


def write(directory: Path, files: dict[str, object]) -> str:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(directory)


def listed(name: str = "net", *types: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "cniVersion": "1.0.0", "plugins": [{"type": t} for t in types or ("one",)], **keys}


def types(found: Network) -> list[str]:
    return [plugin["type"] for plugin in found.plugins]


def test_load_takes_the_first_file_in_lexical_order(tmp_path: Path, said: list[str]) -> None:
    directory = write(
        tmp_path, {"20.conflist": listed("net", "b"), "10.conflist": listed("net", "a"), "05.conflist": listed("other")}
    )
    assert types(network_config.load_network(directory, "net", said.append)) == ["a"]
    assert not said


def test_load_takes_lists_before_single_configurations(tmp_path: Path, said: list[str]) -> None:
    directory = write(tmp_path, {"10.conf": {"name": "net", "type": "single"}, "99.conflist": listed("net", "listed")})
    assert types(network_config.load_network(directory, "net", said.append)) == ["listed"]


@pytest.mark.parametrize("ending", ["conf", "json"])
def test_load_wraps_a_single_configuration_as_a_list(tmp_path: Path, said: list[str], ending: str) -> None:
    raw = {"name": "net", "cniVersion": "0.3.1", "type": "single", "k": [1, "<&>"]}
    found = network_config.load_network(write(tmp_path, {f"10.{ending}": raw}), "net", said.append)
    assert found.plugins == (raw,)
    assert found.cni_version == "0.3.1"
    assert json.loads(found.source) == {"name": "net", "cniVersion": "0.3.1", "plugins": [raw]}


def test_load_leaves_other_files_and_directories_alone(tmp_path: Path, said: list[str]) -> None:
    directory = write(tmp_path, {"a.conflist.bak": "x", "b.txt": "x", "c.CONF": "x", "d.conflist": listed()})
    (tmp_path / "0.conf").mkdir()
    network_config.load_network(directory, "net", said.append)
    assert not said


@pytest.mark.parametrize(
    "broken", ["{", "[]", "null", '"x"', "", "\xff", '{"a": NaN}', '{"cniVersion": "1.0.0"}', '{"name": ""}']
)
def test_load_names_a_broken_file_and_goes_on(tmp_path: Path, said: list[str], broken: str) -> None:
    directory = write(tmp_path, {"20.conflist": listed()})
    (tmp_path / "10.conflist").write_bytes(broken.encode("latin-1"))
    assert types(network_config.load_network(directory, "net", said.append)) == ["one"]
    assert len(said) == 1
    assert "10.conflist" in said[0]


def test_load_refuses_a_bad_file_of_the_network_itself(tmp_path: Path, said: list[str]) -> None:
    directory = write(tmp_path, {"10.conflist": {"name": "net", "plugins": [{"no": "type"}]}, "20.conflist": listed()})
    with pytest.raises(InvalidConfig, match=r"10\.conflist"):
        network_config.load_network(directory, "net", said.append)


def test_load_says_which_networks_there_are(tmp_path: Path, said: list[str]) -> None:
    directory = write(tmp_path, {"1.conflist": listed("blue"), "2.conf": {"name": "red", "type": "x"}})
    with pytest.raises(NoSuchNetwork, match=f'no net configuration with name "net" in {directory}') as caught:
        network_config.load_network(directory, "net", said.append)
    assert "blue (1.conflist), red (2.conf)" in caught.value.hint


@pytest.mark.parametrize("directory", ["empty", "missing"])
def test_load_without_any_configuration(tmp_path: Path, said: list[str], directory: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSuchNetwork, match="no net configurations found in"):
        network_config.load_network(str(tmp_path / directory), "net", said.append)


def test_load_of_a_list_named_conf_says_how_to_name_it(tmp_path: Path, said: list[str]) -> None:
    directory = write(tmp_path, {"10.conf": listed()})
    with pytest.raises(InvalidConfig, match="missing 'type'") as caught:
        network_config.load_network(directory, "net", said.append)
    assert "10.conflist" in caught.value.hint


def test_sibling_directory_adds_its_plugins_in_lexical_order(tmp_path: Path, said: list[str]) -> None:
    files = {
        "10.conflist": listed(),
        "net/2.conf": {"type": "c"},
        "net/1.conf": {"type": "b"},
        "net/0.conflist": "x",
        "net/x.json": "x",
    }
    assert types(network_config.load_network(write(tmp_path, files), "net", said.append)) == ["one", "b", "c"]


def test_sibling_directory_alone_is_enough(tmp_path: Path, said: list[str]) -> None:
    files = {"10.conflist": {"name": "net", "cniVersion": "1.1.0"}, "net/1.conf": {"type": "b"}}
    assert types(network_config.load_network(write(tmp_path, files), "net", said.append)) == ["b"]


@pytest.mark.parametrize("flag", [True, "true", "TRUE"])
def test_sibling_directory_is_left_out_where_only_inlined_plugins_count(tmp_path: Path, said: list[str], flag: object) -> None:
    files = {"10.conflist": listed(loadOnlyInlinedPlugins=flag), "net/1.conf": "broken"}
    assert types(network_config.load_network(write(tmp_path, files), "net", said.append)) == ["one"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "net"}, "no plugin configs found"),
        ({"name": "net", "plugins": []}, '"plugins" must be a list of at least one plugin'),
        ({"name": "net", "plugins": {}}, '"plugins" must be a list'),
        ({"name": "net", "plugins": None}, '"plugins" must be a list'),
        ({"name": "net", "plugins": ["one"]}, "plugin 0: a plugin must be an object"),
        ({"name": "net", "plugins": [{"type": ""}]}, "missing 'type'"),
        ({"name": "net", "plugins": [{"type": 1}]}, "missing 'type'"),
        ({"name": "net", "plugins": [{"type": "x", "capabilities": []}]}, '"capabilities" must be an object'),
        ({"name": "net", "plugins": [{"type": "x", "capabilities": {"mac": 1}}]}, '"capabilities.mac" must be true or false'),
        ({"name": "net", "plugins": [{"type": "x", "ipam": "host-local"}]}, '"ipam" must be an object'),
        ({"name": "net", "loadOnlyInlinedPlugins": True}, '"plugins" is missing'),
        (listed(disableCheck="maybe"), '"disableCheck" must be true or false'),
        (listed(disableGC=1), '"disableGC" must be true or false'),
        (listed(cniVersion=1), '"cniVersion" must be a string'),
        (listed(cniVersions="1.0.0"), '"cniVersions" must be a list of strings'),
        (listed(cniVersions=["one"]), '"one" is not a version'),
    ],
)
def test_parse_list_refuses(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        network_config.parse_list("/nowhere/x.conflist", b"", raw)
    assert message in caught.value.msg
    assert caught.value.msg.startswith("/nowhere/x.conflist") or "is not a version" in message


def test_a_null_counts_as_absent() -> None:
    network_config.check_plugin("here", {"type": "x", "capabilities": None, "ipam": None, "name": None, "prevResult": None})


@pytest.mark.parametrize(
    ("keys", "version"),
    [
        ({}, ""),
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersion": "9.9.9"}, "9.9.9"),
        ({"cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.1.0", "1.0.0"]}, "1.1.0"),
        ({"cniVersion": "1.0.0", "cniVersions": ["0.4.0"]}, "1.0.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.2.0", "2.0.0"]}, "0.4.0"),
        ({"cniVersions": ["0.10.0", "0.9.0"]}, "0.10.0"),
        ({"cniVersions": ["3.0.0"]}, ""),
        ({"cniVersion": "2.0.0", "cniVersions": []}, "2.0.0"),
    ],
)
def test_select_version_takes_the_highest_that_is_spoken(keys: dict[str, Any], version: str) -> None:
    assert network_config.select_version("here", keys) == version


@pytest.mark.parametrize("text", ["1.0.0.0", "a", "1.x", "1..0", "-1.0", "1.0.0-rc1", "1.", "١.0"])
def test_version_number_refuses(text: str) -> None:
    with pytest.raises(InvalidConfig):
        network_config.version_number(text)


# ---- what a plugin gets -----------------------------------------------------------------------


def test_request_config_gets_name_version_and_wanted_capabilities() -> None:
    plugin = {
        "type": "one",
        "capabilities": {"mac": True, "bandwidth": False, "ips": True},
        "name": "own",
        "big": 12345678901234567890,
    }
    conf = network_config.request_config(
        network("1.0.0", plugin), plugin, attachment(capability_args={"mac": "aa", "bandwidth": 1, "dns": {}}), None
    )
    assert conf == {
        "type": "one",
        "big": 12345678901234567890,
        "capabilities": {"mac": True, "bandwidth": False, "ips": True},
        "cniVersion": "1.0.0",
        "name": "net",
        "runtimeConfig": {"mac": "aa"},
    }


def test_add_runs_the_chain_with_the_result_of_the_plugin_before(run: Runtime, fakes: Fakes) -> None:
    second = {**RESULT, "routes": [{"dst": "0.0.0.0/0"}]}
    fakes.answer("two", "ADD", second)
    assert run.add(network(), attachment()) == second
    assert fakes.calls() == [
        ("ADD", "one", {"type": "one", "name": "net", "cniVersion": "1.0.0"}),
        ("ADD", "two", {"type": "two", "name": "net", "cniVersion": "1.0.0", "prevResult": RESULT}),
    ]


def test_plugins_get_the_parameters_and_the_rest_of_the_environment(
    run: Runtime, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER", "stays")
    monkeypatch.setenv("CNI_ARGS", "not=this")
    run.add(network(), attachment(args=(("A", "1"), ("B", "2"))))
    environment = fakes.environments()[0]
    assert {key: value for key, value in environment.items() if key.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": ID,
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": str(fakes.bin),
    }
    assert environment["OTHER"] == "stays"


def test_narration_switches_the_journal_on(fakes: Fakes, tmp_path: Path) -> None:
    messages: list[str] = []
    Runtime([str(fakes.bin)], str(tmp_path / "cache"), say=messages.append, narrate=messages.append).add(
        network(), attachment()
    )
    assert fakes.environments()[0]["CNI_PY_EXPLAIN"] == "1"
    assert messages[0] == f"ADD net: one ({fakes.bin}/one)"
    assert messages[1].startswith("ADD net: one done, ")
    assert len(messages) == 4


def test_add_returns_the_result_in_the_version_of_the_network(run: Runtime, fakes: Fakes) -> None:
    fakes.answer("one", "ADD", {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}})
    run.add(network("0.4.0"), attachment())
    assert fakes.calls()[1][2]["prevResult"] == {
        "cniVersion": "0.4.0",
        "ips": [{"version": "4", "address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
        "dns": {},
    }


@pytest.mark.parametrize("reply", [{"ips": []}, {"cniVersion": "", "ips": []}, "null"])
def test_add_takes_a_result_without_version_as_one_of_the_network(run: Runtime, fakes: Fakes, reply: object) -> None:
    fakes.answer("two", "ADD", reply)
    assert run.add(network("0.4.0"), attachment())["cniVersion"] == "0.4.0"


def test_add_keeps_members_of_a_result_that_it_does_not_know(run: Runtime, fakes: Fakes) -> None:
    fakes.answer("two", "ADD", {**RESULT, "new": {"x": 1}})
    assert run.add(network(), attachment())["new"] == {"x": 1}


@pytest.mark.parametrize(
    "reply", ["", "  \n", "{", "[]", {"cniVersion": "7.0.0"}, {"ips": 1}, {"ips": [{"address": "nonsense"}]}]
)
def test_add_refuses_a_result_that_is_none(run: Runtime, fakes: Fakes, tmp_path: Path, reply: object) -> None:
    fakes.answer("one", "ADD", reply)
    with pytest.raises(PluginFailed, match=r'plugin type="one" failed \(add\): '):
        run.add(network(), attachment())
    assert verbs(fakes) == ["ADD one"]
    assert not cache_file(tmp_path).exists()


def test_add_stops_at_the_first_error_and_hands_it_on(run: Runtime, fakes: Fakes, tmp_path: Path) -> None:
    fakes.answer("one", "ADD", {"code": 11, "msg": "no luck", "details": "today"}, status=1)
    with pytest.raises(PluginFailed) as caught:
        run.add(network("1.0.0", {"type": "one", "name": "first"}, {"type": "two"}), attachment())
    assert (caught.value.code, caught.value.msg, caught.value.details) == (
        11,
        'plugin type="one" name="first" failed (add): no luck',
        "today",
    )
    assert verbs(fakes) == ["ADD one"]
    assert not cache_file(tmp_path).exists()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("", "netplugin failed with no error message: exit status 3"),
        ("not json", "is not an error object: not json"),
        ("{}", "netplugin failed without a message: exit status 3"),
        ('{"code": "x", "msg": 5}', "failed (add): 5"),
    ],
)
def test_a_plugin_that_fails_in_its_own_way(run: Runtime, fakes: Fakes, reply: str, words: str) -> None:
    fakes.answer("one", "ADD", reply, status=3)
    with pytest.raises(PluginFailed) as caught:
        run.add(network(), attachment())
    assert words in str(caught.value)
    assert caught.value.code == 100


def test_a_plugin_that_is_killed(run: Runtime, fakes: Fakes) -> None:
    (fakes.bin / "one").write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(PluginFailed, match="killed by signal 9"):
        run.add(network(), attachment())


def test_standard_error_of_plugins_passes_through(run: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    run.add(network(), attachment())
    assert capfd.readouterr().err == "one was here\ntwo was here\n"


def test_a_plugin_that_is_not_executable_is_named(run: Runtime, fakes: Fakes) -> None:
    (fakes.bin / "one").chmod(0o644)
    with pytest.raises(PluginFailed, match=f"{fakes.bin}/one") as caught:
        run.add(network(), attachment())
    assert "ls -lL" in caught.value.hint


def test_a_plugin_that_is_being_written_is_tried_again(run: Runtime, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    writer = os.open(fakes.bin / "one", os.O_WRONLY)

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            os.close(writer)

    monkeypatch.setattr(runtime.time, "sleep", nap)
    run.add(network(), attachment())
    assert naps == [1, 1]


def test_find_plugin_takes_the_first_regular_file(tmp_path: Path) -> None:
    for directory in "abc":
        (tmp_path / directory).mkdir()
    (tmp_path / "a" / "x").mkdir()
    (tmp_path / "b" / "x").symlink_to(tmp_path / "c" / "x")
    (tmp_path / "c" / "x").touch()
    assert runtime.find_plugin("x", [str(tmp_path / directory) for directory in "abc"]) == f"{tmp_path}/b/x"


def test_find_plugin_says_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    monkeypatch.setattr(runtime, "OTHER_DIRECTORIES", (str(tmp_path),))
    with pytest.raises(InvalidEnvironment, match='failed to find plugin "x" in path /nowhere') as caught:
        runtime.find_plugin("x", ["/nowhere"])
    assert f"CNI_PATH=/nowhere:{tmp_path}" in caught.value.hint


def test_find_plugin_names_one_that_is_probably_meant(tmp_path: Path) -> None:
    (tmp_path / "bridge").touch()
    with pytest.raises(InvalidEnvironment) as caught:
        runtime.find_plugin("brigde", ["/nowhere", str(tmp_path)])
    assert 'is "bridge" meant?' in caught.value.hint
    with pytest.raises(InvalidEnvironment) as caught:
        runtime.find_plugin("other", ["/nowhere", str(tmp_path)])
    assert caught.value.hint == ""


@pytest.mark.parametrize(("kind", "directories"), [("../x", ["/bin"]), ("a/b", ["/bin"]), ("x", [])])
def test_find_plugin_refuses(kind: str, directories: list[str]) -> None:
    with pytest.raises(CniError):
        runtime.find_plugin(kind, directories)


@pytest.mark.parametrize(
    "changes",
    [
        {"container_id": "../x"},
        {"container_id": ""},
        {"ifname": "a/b"},
        {"ifname": "a-name-that-is-too-long"},
        {"netns": ""},
        {"netns": "/tmp/\udcff"},
        {"args": (("A", "\udcff"),)},
    ],
)
def test_add_refuses_parameters_before_anything_runs(run: Runtime, fakes: Fakes, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidEnvironment):
        run.add(network(), attachment(**changes))
    assert not fakes.calls()


@pytest.mark.parametrize("verb", ["add", "delete", "check"])
def test_network_names_that_cannot_be_file_names_are_refused(run: Runtime, fakes: Fakes, verb: str) -> None:
    with pytest.raises(InvalidConfig):
        getattr(run, verb)(network().replace(name="../../etc"), attachment())
    assert not fakes.calls()


# ---- the cache --------------------------------------------------------------------------------


def test_cache_file_is_that_of_libcni(run: Runtime, tmp_path: Path) -> None:
    net = network()
    run.add(net, attachment(args=(("A", "1"), ("B", "2")), capability_args={"mac": "aa", "x": 1}))
    path = cache_file(tmp_path)
    assert json.loads(path.read_text()) == {
        "kind": "cniCacheV1",
        "containerId": ID,
        "config": base64.b64encode(net.source).decode(),
        "ifName": "eth0",
        "networkName": "net",
        "netns": NETNS,
        "cniArgs": [["A", "1"], ["B", "2"]],
        "capabilityArgs": {"mac": "aa", "x": 1},
        "result": RESULT,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]


def test_cache_file_leaves_out_what_is_empty(run: Runtime, tmp_path: Path) -> None:
    run.add(network(), attachment())
    assert list(json.loads(cache_file(tmp_path).read_text())) == [
        "kind",
        "containerId",
        "config",
        "ifName",
        "networkName",
        "netns",
        "result",
    ]


def test_add_reports_a_cache_that_cannot_be_written(fakes: Fakes, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(IOFailure, match='failed to set network "net" cached result'):
        Runtime([str(fakes.bin)], str(tmp_path / "cache"), say=said.append).add(network(), attachment())


def test_read_cache_of_a_record_of_cnitool(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text(
        '{"kind":"cniCacheV1","containerId":"cnitool-c2bc32a2eba65dcaeaa4","config":"eyJ9","ifName":"eth0","networkName":"s",'
        '"netns":"/tmp/co/ns","cniArgs":[["A","1"],["B","2"]],"capabilityArgs":{"mac":"aa","x":1},"result":{"cniVersion":"1.0.0"}}'
    )
    found = result_cache.read_cache(str(path))
    assert found.network == "s"
    assert found.result == {"cniVersion": "1.0.0"}
    assert found.attachment == Attachment(
        "cnitool-c2bc32a2eba65dcaeaa4", "/tmp/co/ns", "eth0", (("A", "1"), ("B", "2")), {"mac": "aa", "x": 1}
    )


BROKEN_RECORDS = [
    "",
    "{",
    "[]",
    '{"kind": "other"}',
    '{"kind": "cniCacheV1"}',
    '{"kind": "cniCacheV1", "containerId": 1, "ifName": "eth0", "networkName": "net"}',
    '{"kind": "cniCacheV1", "containerId": "a", "ifName": "eth0", "networkName": "net", "result": 1}',
    '{"kind": "cniCacheV1", "containerId": "a", "ifName": "eth0", "networkName": "net", "cniArgs": {}}',
]


@pytest.mark.parametrize("content", BROKEN_RECORDS)
def test_read_cache_refuses_what_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "record").write_text(content)
    with pytest.raises(DecodingFailure):
        result_cache.read_cache(str(tmp_path / "record"))


def test_cached_attachments_passes_over_what_is_no_record(run: Runtime, tmp_path: Path) -> None:
    for number, content in enumerate(BROKEN_RECORDS):
        cache_file(tmp_path, f"net-{number}").parent.mkdir(parents=True, exist_ok=True)
        cache_file(tmp_path, f"net-{number}").write_text(content)
    cache_file(tmp_path, "a-directory").mkdir()
    run.add(network(), attachment())
    assert [c.attachment.container_id for c in result_cache.cached_attachments(run.cache_dir)] == [ID]
    assert result_cache.cached_attachments(run.cache_dir, "another") == []
    assert result_cache.cached_attachments(str(tmp_path / "nowhere")) == []


def test_cached_result_of_old_libcni_is_the_result_alone(tmp_path: Path) -> None:
    path = cache_file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(RESULT))
    assert result_cache.cached_result(str(tmp_path / "cache"), network(), attachment()) == RESULT


def test_cached_result_is_in_the_version_of_the_network(run: Runtime) -> None:
    run.add(network("1.0.0"), attachment())
    assert result_cache.cached_result(run.cache_dir, network("0.4.0"), attachment()) == {
        "cniVersion": "0.4.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"version": "4", "interface": 0, "address": "10.1.0.2/24"}],
        "dns": {},
    }


def test_result_of_a_version_that_no_result_has_is_an_error() -> None:
    with pytest.raises(CniError, match=r"9\.9\.9"):
        result_cache.in_version(RESULT, "9.9.9", "the result")


def test_recall_brings_back_the_arguments_of_add(run: Runtime) -> None:
    run.add(network(), attachment(args=(("A", "1"),), capability_args={"mac": "aa"}))
    assert run.recall("net", attachment()) == attachment(args=(("A", "1"),), capability_args={"mac": "aa"})
    other = attachment(args=(("B", "2"),), capability_args={"mac": "bb"})
    assert run.recall("net", other) == other
    assert run.recall("unknown", attachment()) == attachment()


# ---- DEL, CHECK, STATUS -----------------------------------------------------------------------


def test_delete_runs_the_chain_backwards_with_the_last_result(run: Runtime, fakes: Fakes, tmp_path: Path) -> None:
    last = {**RESULT, "routes": [{"dst": "0.0.0.0/0"}]}
    fakes.answer("two", "ADD", last)
    run.add(network(), attachment())
    run.delete(network(), attachment())
    assert verbs(fakes)[2:] == ["DEL two", "DEL one"]
    assert [conf["prevResult"] for _, _, conf in fakes.calls()[2:]] == [last, last]
    assert not cache_file(tmp_path).exists()


def test_delete_below_0_4_0_gets_no_result(run: Runtime, fakes: Fakes, tmp_path: Path) -> None:
    run.add(network("0.3.1"), attachment())
    run.delete(network("0.3.1"), attachment())
    assert all("prevResult" not in conf for verb, _, conf in fakes.calls() if verb == "DEL")
    assert not cache_file(tmp_path).exists()


def test_delete_of_what_was_never_added_runs_without_result(run: Runtime, fakes: Fakes, said: list[str]) -> None:
    run.delete(network(), attachment(netns=""))
    assert verbs(fakes) == ["DEL two", "DEL one"]
    assert "prevResult" not in fakes.calls()[0][2]
    assert not said


def test_delete_drops_an_invalid_record(run: Runtime, fakes: Fakes, tmp_path: Path, said: list[str]) -> None:
    cache_file(tmp_path).parent.mkdir(parents=True)
    cache_file(tmp_path).write_text("broken")
    fakes.answer("two", "DEL", {"code": 5, "msg": "no"}, status=1)
    with pytest.raises(PluginFailed):
        run.delete(network(), attachment())
    assert not cache_file(tmp_path).exists()
    assert "ignoring and deleting" in said[0]


def test_delete_stops_at_an_error_and_keeps_the_record(run: Runtime, fakes: Fakes, tmp_path: Path) -> None:
    run.add(network(), attachment())
    fakes.answer("two", "DEL", {"code": 5, "msg": "no"}, status=1)
    with pytest.raises(PluginFailed, match=r'plugin type="two" failed \(delete\): no'):
        run.delete(network(), attachment())
    assert verbs(fakes)[2:] == ["DEL two"]
    assert cache_file(tmp_path).exists()


def test_check_gives_every_plugin_the_last_result(run: Runtime, fakes: Fakes) -> None:
    run.add(network(), attachment())
    run.check(network(), attachment())
    assert verbs(fakes)[2:] == ["CHECK one", "CHECK two"]
    assert [conf["prevResult"] for _, _, conf in fakes.calls()[2:]] == [RESULT, RESULT]


@pytest.mark.parametrize("version", ["", "0.1.0", "0.3.1"])
def test_check_of_an_old_version_is_asked_in_the_first_that_has_it(
    run: Runtime, fakes: Fakes, said: list[str], version: str
) -> None:
    run.add(network(version), attachment())
    assert run.check(network(version), attachment()) == Asked()
    assert verbs(fakes)[2:] == ["CHECK one", "CHECK two"]
    conf = fakes.calls()[2][2]
    assert conf["cniVersion"] == conf["prevResult"]["cniVersion"] == "0.4.0"
    assert conf["prevResult"]["interfaces"], "results before 0.3.0 have none, and CHECK looks for the pod's"
    assert "the runtime never runs CHECK" in said[-1]


def test_check_that_is_disabled_does_nothing(run: Runtime, fakes: Fakes) -> None:
    assert '"disableCheck" is set' in run.check(network(disableCheck=True), attachment()).unasked[0]
    assert not fakes.calls()


def test_check_without_cached_result_is_remarked(run: Runtime, fakes: Fakes, said: list[str]) -> None:
    run.check(network(), attachment())
    assert "prevResult" not in fakes.calls()[0][2]
    assert "no cached result" in said[0]


def test_check_with_a_broken_record_is_an_error(run: Runtime, fakes: Fakes, tmp_path: Path) -> None:
    cache_file(tmp_path).parent.mkdir(parents=True)
    cache_file(tmp_path).write_text("broken")
    with pytest.raises(DecodingFailure):
        run.check(network(), attachment())
    assert not fakes.calls()


def test_check_asks_every_plugin_whatever_the_others_found(run: Runtime, fakes: Fakes) -> None:
    run.add(network(), attachment())
    parts = [{"msg": "it is down", "details": "expected up", "hint": "ip link set x up"}, {"msg": "and slow"}, "x", {}]
    fakes.answer("one", "CHECK", {"code": 103, "msg": "it is down", "differences": parts}, status=1)
    fakes.answer("two", "CHECK", {"code": 7, "msg": "no"}, status=1)
    first, second = run.check(network(), attachment()).failed
    assert (first.code, first.plugin, first.msg) == (103, "one", 'plugin type="one" failed (check): it is down')
    assert [(one.msg, one.details, one.hint) for one in first.differences] == [
        ("it is down", "expected up", "ip link set x up"),
        ("and slow", "", ""),
    ]
    assert (second.code, second.differences) == (7, ())


@pytest.mark.parametrize("verb", ["CHECK", "STATUS"])
@pytest.mark.parametrize("code", [1, 4])
def test_plugin_without_the_verb_is_not_asked(run: Runtime, fakes: Fakes, verb: str, code: int) -> None:
    run.add(network("0.3.1"), attachment())
    fakes.answer("one", verb, {"code": code, "msg": "incompatible"}, status=1)
    asked = run.check(network("0.3.1"), attachment()) if verb == "CHECK" else run.status(network("0.3.1"))
    assert asked == Asked(unasked=('plugin "one" cannot be asked: incompatible',))
    assert verbs(fakes)[2:] == [f"{verb} one", f"{verb} two"]


def test_status_asks_the_plugins_without_an_attachment(run: Runtime, fakes: Fakes) -> None:
    plugin = {"type": "one", "capabilities": {"mac": True}}
    run.status(network("1.1.0", plugin, {"type": "two"}))
    assert fakes.calls() == [
        ("STATUS", "one", {**plugin, "name": "net", "cniVersion": "1.1.0"}),
        ("STATUS", "two", {"type": "two", "name": "net", "cniVersion": "1.1.0"}),
    ]
    environment = fakes.environments()[0]
    assert [environment[f"CNI_{key}"] for key in ("CONTAINERID", "NETNS", "IFNAME", "ARGS")] == ["", "", "", ""]


def test_status_asks_every_plugin(run: Runtime, fakes: Fakes) -> None:
    fakes.answer("one", "STATUS", {"code": 50, "msg": "not yet"}, status=1)
    assert [error.code for error in run.status(network("1.1.0")).failed] == [50]
    assert verbs(fakes) == ["STATUS one", "STATUS two"]


def test_status_of_an_old_version_is_asked_in_the_first_that_has_it(run: Runtime, fakes: Fakes, said: list[str]) -> None:
    run.status(network("1.0.0"))
    assert [conf["cniVersion"] for _, _, conf in fakes.calls()] == ["1.1.0", "1.1.0"]
    assert "the runtime never runs STATUS" in said[0]


# ---- GC ---------------------------------------------------------------------------------------


@pytest.fixture
def three(run: Runtime, fakes: Fakes) -> Callable[[str], Network]:
    """Add three attachments, the last one to another network. Returns the network in a version."""

    def make(version: str) -> Network:
        net = network(version, {"type": "one"})
        run.add(net, attachment(container_id="a", args=(("K", "V"),)))
        run.add(net, attachment(container_id="b", netns="/tmp/b"))
        run.add(net.replace(name="other"), attachment(container_id="a"))
        return net

    return make


def calls_after_add(fakes: Fakes) -> list[tuple[str, str, str]]:
    return [(e["CNI_COMMAND"], e["CNI_CONTAINERID"], e["CNI_ARGS"]) for e in fakes.environments() if e["CNI_COMMAND"] != "ADD"]


def test_gc_deletes_what_is_not_valid_and_hands_the_list_on(
    run: Runtime, fakes: Fakes, three: Callable[[str], Network]
) -> None:
    assert run.gc(three("1.1.0"), [("b", "eth0"), ("c", "eth1")]) == []
    assert calls_after_add(fakes) == [("DEL", "a", "K=V"), ("GC", "", "")]
    expected = [{"containerID": "b", "ifname": "eth0"}, {"containerID": "c", "ifname": "eth1"}]
    assert fakes.calls()[-1][2] == {
        "type": "one",
        "name": "net",
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": expected,
        "cni.dev/attachments": expected,
    }
    assert [(c.network, c.attachment.container_id) for c in result_cache.cached_attachments(run.cache_dir)] == [
        ("net", "b"),
        ("other", "a"),
    ]


def test_gc_without_a_list_deletes_all_of_the_network(run: Runtime, fakes: Fakes, three: Callable[[str], Network]) -> None:
    assert run.gc(three("1.1.0"), None) == []
    assert calls_after_add(fakes) == [("DEL", "a", "K=V"), ("DEL", "b", ""), ("GC", "", "")]
    assert fakes.calls()[-1][2] == {"type": "one", "name": "net", "cniVersion": "1.1.0"}
    assert [c.network for c in result_cache.cached_attachments(run.cache_dir)] == ["other"]


def test_gc_with_an_empty_list_says_so_to_the_plugins(run: Runtime, fakes: Fakes) -> None:
    assert run.gc(network("1.1.0", {"type": "one"}), []) == []
    assert fakes.calls()[0][2]["cni.dev/valid-attachments"] == []


def test_gc_below_1_1_0_deletes_but_does_not_call_gc(run: Runtime, fakes: Fakes, three: Callable[[str], Network]) -> None:
    run.gc(three("1.0.0"), [("b", "eth0")])
    assert calls_after_add(fakes) == [("DEL", "a", "K=V")]


def test_gc_that_is_disabled_does_nothing(run: Runtime, fakes: Fakes, said: list[str]) -> None:
    assert run.gc(network("1.1.0", disableGC=True), None) == []
    assert not fakes.calls()
    assert "disableGC" in said[0]


def test_gc_goes_on_after_errors_and_returns_them_all(run: Runtime, fakes: Fakes, three: Callable[[str], Network]) -> None:
    net = three("1.1.0").replace(plugins=({"type": "one"}, {"type": "gone"}))
    fakes.answer("one", "GC", {"code": 5, "msg": "gc failed"}, status=1)
    missing = f'failed to find plugin "gone" in path {fakes.bin}'
    errors = run.gc(net, [("b", "eth0")])
    assert [error.msg for error in errors] == [
        f'failed to delete attachment a eth0: plugin type="gone" failed (delete): {missing}',
        'plugin type="one" failed (gc): gc failed',
        f'plugin type="gone" failed (gc): {missing}',
    ]
