"""docs/contributing.md, "Write a plugin": its sample is added to a copy of the tree, installed, and called as a runtime calls it."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.agents import Agent
from support.namespaces import GONE, Host, Sandbox
from support.pods import bridge_conf
from support.spec_cases import FIRST_VERSION, VERSIONS, code_of, error_of, has

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = re.compile(r"^```python\n# (cni_py/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANCHORS = {"cni_py/config/models.py": "\nPLUGIN_MODELS", "cni_py/plugin_table.py": "\n}\n"}
"""The place in an existing file before which a part of the sample goes."""

BRIDGE = bridge_conf(isGateway=True, mtu=1500)
MTU = {"cniVersion": "1.1.0", "name": "net", "type": "mtu", "mtu": 1400}


def sample() -> dict[str, str]:
    """File to text, as the page has it."""
    return dict(SAMPLE.findall((ROOT / "docs" / "contributing.md").read_text()))


def add_sample(tree: Path) -> None:
    """Add module, model and row."""
    for name, text in sample().items():
        path, anchor = tree / name, ANCHORS.get(name)
        if anchor is None:
            path.write_text(text)
        else:
            before, found, after = path.read_text().partition(anchor)
            assert found, f"{name} has no {anchor!r}"
            path.write_text(f"{before}\n{text}{anchor}{after}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the sample, and the schemas generated from it."""
    copy = tmp_path_factory.mktemp("contributing") / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("cni_py", "bin", "conf", "docs", "integration", "tests"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("LICENSE", "README.md", "conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    add_sample(copy)
    copy_mypy_cache(copy)
    python(copy, "integration/generate")
    return copy


def copy_mypy_cache(tree: Path) -> None:
    """Copy the results of mypy for this tree: it then reads what the sample changes alone. Another process may be writing them."""
    for file in (ROOT / "build" / "mypy").rglob("*.db"):
        copy = tree / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as before, closing(sqlite3.connect(copy)) as after:
            before.backup(after)


def python(tree: Path, *arguments: str | Path) -> str:
    """Run this interpreter in the copy; returns standard output."""
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sample_bin_dir(tree: Path, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, installed with the libraries of the tree's own installation."""
    prefix, libraries = tmp_path_factory.mktemp("prefix"), tmp_path_factory.mktemp("libraries") / "lib"
    shutil.copytree(bin_dir.parent.parent / "cni-py" / "lib", libraries, ignore=lambda *_: ["cni_py", "python"])
    python(tree, "integration/install", "install", "--prefix", prefix, "--dependencies", libraries, "--no-units")
    return prefix / "cni" / "bin"


@pytest.fixture(params=["one shot", "agent"])
def node(request: pytest.FixtureRequest, sample_bin_dir: Path) -> Iterator[Host]:
    """A host with the copy installed, without and with its agent."""
    with Host(sample_bin_dir) as host:
        if request.param == "one shot":
            yield host
            return
        with Agent(host):
            yield host


@pytest.fixture
def pod(node: Host) -> Sandbox:
    return node.netns("c1")


def mtu(host: Host, pod: Sandbox) -> int:
    return int(host.json("ip -j link show eth0", pod)[0]["mtu"])


def own_records(host: Host) -> list[str]:
    return [name.rpartition("/")[2] for name in host.files("/run/cni-py/mtu")]


def add_bridge(host: Host, pod: Sandbox, version: str = "1.1.0") -> dict[str, Any]:
    result: dict[str, Any] = host.ok("bridge", "ADD", BRIDGE | {"cniVersion": version}, sandbox=pod)
    return result


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_page_has_a_module_a_model_and_a_row() -> None:
    assert set(sample()) == {"cni_py/plugins/meta/mtu.py", "cni_py/config/models.py", "cni_py/plugin_table.py"}


@pytest.mark.timeout(240)
def test_sample_keeps_the_rules(tree: Path) -> None:
    """Format, lint, words; layers, table and schemas; and mypy takes it for a plugin with this model."""
    module = "cni_py/plugins/meta/mtu.py"
    python(tree, "-m", "ruff", "format", "--check", module)
    python(tree, "-m", "ruff", "check", module)
    python(tree, "integration/words", module)
    layers = ("test_layers.py", "test_plugin_table.py", "test_plugin_types.py::test_modules_are_plugins")
    tests = [*(f"tests/layers/{name}" for name in layers), "tests/unit/test_schemas.py"]
    assert " passed" in python(tree, "-m", "pytest", "-q", *tests)


def test_reference_has_its_keys(tree: Path) -> None:
    text = python(tree, "-m", "cni_py.cli.main", "config", "--markdown")
    assert "\n## mtu\n" in text
    assert "| `mtu` | integer, 68 to 65535 | required | `1400` | MTU of the pod's interface, bytes. |" in text


# --- its life ---------------------------------------------------------------------------------------------------------


def test_life_of_an_attachment(node: Host, pod: Sandbox) -> None:
    prev = add_bridge(node, pod)
    before = node.snapshot(pod)
    result = node.ok("mtu", "ADD", MTU, sandbox=pod, prev=prev)
    assert mtu(node, pod) == 1400
    changed = [interface | {"mtu": 1400} if interface.get("sandbox") else interface for interface in prev["interfaces"]]
    assert result == prev | {"interfaces": changed}
    assert own_records(node) == ["c1:eth0:net"]
    for plugin, conf in (("bridge", BRIDGE), ("mtu", MTU)):
        assert node.ok(plugin, "CHECK", conf, sandbox=pod, prev=result) is None

    assert node.ok("mtu", "DEL", MTU, sandbox=pod, prev=result) is None
    assert node.snapshot(pod) == before
    assert own_records(node) == []
    assert node.ok("mtu", "DEL", MTU, sandbox=pod) is None
    assert mtu(node, pod) == 1500


def test_second_add_keeps_what_the_first_found(node: Host, pod: Sandbox) -> None:
    prev = add_bridge(node, pod)
    result = node.ok("mtu", "ADD", MTU, sandbox=pod, prev=prev)
    node.ok("mtu", "ADD", MTU | {"mtu": 1300}, sandbox=pod, prev=result)
    assert mtu(node, pod) == 1300
    node.ok("mtu", "DEL", MTU, sandbox=pod)
    assert mtu(node, pod) == 1500


def test_add_that_fails_changes_nothing(node: Host, pod: Sandbox) -> None:
    """0.2.0 cannot express a result without an address: the engine finds that after the plugin has done its work."""
    prev = add_bridge(node, pod, "1.0.0")
    before = node.snapshot(pod)
    without = {"cniVersion": "1.0.0", "interfaces": prev["interfaces"]}
    assert code_of(node.call("mtu", "ADD", MTU | {"cniVersion": "0.2.0"}, sandbox=pod, prev=without)) == 7
    assert node.snapshot(pod) == before
    assert own_records(node) == []


@pytest.mark.parametrize("gone", ["namespace", "interface", "CNI_NETNS"])
def test_delete_of_what_no_longer_exists_succeeds(node: Host, pod: Sandbox, gone: str) -> None:
    prev = add_bridge(node, pod)
    node.ok("mtu", "ADD", MTU, sandbox=pod, prev=prev)
    if gone == "namespace":
        node.delete_netns(pod)
    if gone == "interface":
        node.run("ip link delete eth0", pod)
    assert node.ok("mtu", "DEL", MTU, sandbox=None if gone == "CNI_NETNS" else pod) is None
    assert own_records(node) == []


def test_check_finds_another_mtu_and_no_interface(node: Host, pod: Sandbox) -> None:
    result = node.ok("mtu", "ADD", MTU, sandbox=pod, prev=add_bridge(node, pod))
    node.run("ip link set eth0 mtu 1450", pod)
    error = error_of(node.call("mtu", "CHECK", MTU, sandbox=pod, prev=result))
    assert error["code"] == 103
    assert "expected 1400, found 1450" in error["details"]
    node.run("ip link delete eth0", pod)
    assert code_of(node.call("mtu", "CHECK", MTU, sandbox=pod, prev=result)) == 103


def test_gc_deletes_stale_records(node: Host, pod: Sandbox) -> None:
    node.ok("mtu", "ADD", MTU, sandbox=pod, prev=add_bridge(node, pod))
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    assert node.ok("mtu", "GC", MTU | valid) is None
    assert own_records(node) == ["c1:eth0:net"]
    assert node.ok("mtu", "GC", MTU | {"cni.dev/valid-attachments": []}) is None
    assert own_records(node) == []
    assert mtu(node, pod) == 1400


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_version_and_status(node: Host) -> None:
    assert node.ok("mtu", "VERSION", {"cniVersion": "1.0.0"}) == {"cniVersion": "1.0.0", "supportedVersions": list(VERSIONS)}
    assert node.ok("mtu", "STATUS", MTU) is None
    assert "CNI mtu plugin v" in node.run(f"env -i {node.bin_dir}/mtu 2>&1")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(node: Host, pod: Sandbox, version: str) -> None:
    conf = MTU | {"cniVersion": version}
    result = node.ok("mtu", "ADD", conf, sandbox=pod, prev=add_bridge(node, pod, version))
    assert result["cniVersion"] == version
    for verb in FIRST_VERSION:
        reply = node.call("mtu", verb, conf, sandbox=pod, prev=result)
        assert (reply.rc, reply.code) == ((0, None) if has(version, verb) else (1, 1))
    assert node.ok("mtu", "DEL", conf, sandbox=pod) is None
    assert mtu(node, pod) == 1500


@pytest.mark.parametrize(
    ("conf", "code"),
    [
        ("{", 6),
        ("[]", 6),
        (MTU | {"cniVersion": "9.9.9"}, 1),
        (MTU | {"name": ""}, 7),
        (MTU | {"name": "../x"}, 7),
        (MTU | {"mtu": "1400"}, 7),
        (MTU | {"mtu": 67}, 7),
        ({name: value for name, value in MTU.items() if name != "mtu"}, 7),
        (MTU, 7),  # it is not chained
        (MTU | {"prevResult": {"cniVersion": "1.1.0", "ips": 7}}, 6),
    ],
)
def test_wrong_configuration(node: Host, pod: Sandbox, conf: Any, code: int) -> None:
    text = conf if isinstance(conf, str) else json.dumps(conf)
    assert code_of(node.call("mtu", "ADD", text, sandbox=pod)) == code
    assert own_records(node) == []


def test_wrong_environment(node: Host, pod: Sandbox) -> None:
    prev = add_bridge(node, pod)
    for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"):
        assert code_of(node.call("mtu", "ADD", MTU, sandbox=pod, prev=prev, env={name: None})) == 4
    assert code_of(node.call("mtu", "FROB", MTU, sandbox=pod)) == 4
    assert code_of(node.call("mtu", "ADD", MTU, sandbox=GONE, prev=prev)) == 8
    assert own_records(node) == []
