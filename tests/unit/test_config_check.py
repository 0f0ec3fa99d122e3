"""``cni-py config check``: every kind of file, unknown keys and those that are probably mistyped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_py.cli import main as cli
from cni_py.config import models

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
FLANNEL = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
HOST_LOCAL = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}


def conflist(*plugins: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"name": "net", "cniVersion": "0.3.1", "plugins": list(plugins or [FLANNEL])} | keys


CASES: dict[str, tuple[str, Any, list[str]]] = {
    # case: name of the file, content, words of the findings; none: it is valid
    "flannel network": ("net-conf.json", NETWORK, []),
    "Backend": ("x.json", {"Network": "10.244.0.0/16", "Bakend": {"Type": "vxlan"}}, ['is "Backend" meant?', "it is udp"]),
    "key of the back end": (
        "x.json", {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DirectRoutng": True}}, ['is "DirectRouting" meant?'],
    ),
    "value of the back end": ("x.json", {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}, ["error: ", "VNI"]),
    "value beside a key": (
        "x.json", {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x", "Prt": 1}}, ["VNI", 'is "Port" meant?'],
    ),
    "no network": ("x.json", {"Backend": {"Type": "vxlan"}}, ["error: "]),
    "list": ("x.conflist", conflist(), []),
    "key of the list": ("x.conflist", conflist(plugin=[]), ['"plugin"', 'is "plugins" meant?']),
    "case of the list": ("x.conflist", conflist(disablecheck=True), ['is "disableCheck" meant?']),
    "list in a .conf": ("x.conf", conflist(), ["*.conflist"]),
    "no plugins": ("x.conflist", {"name": "net", "cniVersion": "0.3.1"}, ["error: "]),
    "empty list": ("x.conflist", {}, ['error: "name" is missing']),
    "no type": ("x.conflist", conflist({"bridge": "b"}), ["error: ", "type"]),
    "version": ("x.conflist", conflist(cniVersion="9.9.9"), ["error: ", "9.9.9"]),
    "case in the delegate": (
        "x.conflist", conflist({"type": "flannel", "delegate": {"hairpinmode": True}}),
        ['"plugins[0].delegate.hairpinmode" is taken for "hairpinMode"'],
    ),
    "key in the delegate": (
        "x.conflist", conflist({"type": "flannel", "delegate": {"isDefaultGatway": True}}), ['is "isDefaultGateway" meant?'],
    ),
    "value in the delegate": ("x.conflist", conflist({"type": "flannel", "delegate": {"mtu": "x"}}), ["error: ", '"mtu"']),
    "type": ("x.conflist", conflist({"type": "flanel"}), ['"plugins[0].type" is "flanel"', 'is "flannel" meant?']),
    "type of the delegate": ("x.conflist", conflist({"type": "flannel", "delegate": {"type": "brigde"}}), ['is "bridge" meant?']),
    "type of IPAM": ("x.conflist", conflist({"type": "bridge", "ipam": HOST_LOCAL | {"type": "hostlocal"}}), ['"host-local" meant?']),
    "name": ("x.conflist", conflist(name="c/b"), ["error: invalid characters found in network name: c/b"]),
    "key of a later plugin": ("x.conflist", conflist(FLANNEL, {"type": "portmap", "snatt": True}), ['plugins[1].snatt', '"snat"']),
    "key of IPAM": (
        "x.conflist", conflist({"type": "bridge", "ipam": HOST_LOCAL | {"dataDirr": "/x"}}), ['ipam.dataDirr', '"dataDir"'],
    ),
    "key of a range": (
        "x.conflist",
        conflist({"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "rangeStrt": "x"}]]}}),
        ['"rangeStart" meant?'],
    ),
    "single plugin": ("x.conf", {"name": "net", "cniVersion": "0.4.0", "type": "bridge", "ipam": HOST_LOCAL}, []),
    "key of a single plugin": ("x.conf", {"name": "net", "cniVersion": "0.4.0", "type": "bridge", "brdge": "b"}, ['"bridge" meant?']),
    "unlike any key": ("x.conf", {"name": "net", "cniVersion": "0.4.0", "type": "bridge", "wholly": 1}, ['"wholly" is no key']),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_findings_of_a_file(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content, words = CASES[case]
    path = tmp_path / name
    path.write_text(json.dumps(content))
    status = cli.main(["config", "check", str(path)])
    out = capsys.readouterr().out
    assert all(word in out for word in words), out
    assert out.startswith(f"{path}: {'valid' if not words else ''}")
    assert status == ("error: " in out)
    assert cli.main(["config", "check", "--strict", str(path)]) == bool(words)
    (answer,) = json.loads(_json(capsys, path))
    assert bool(answer["errors"]) == bool(status)
    assert bool(answer["errors"] or answer["warnings"]) == bool(words)


def _json(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    capsys.readouterr()
    cli.main(["config", "check", "--json", str(path)])
    return capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"a": 1,}', "name: net"])
@pytest.mark.parametrize("name", ["x.conflist", "x.conf", "x.json"])
def test_text_that_is_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert cli.main(["config", "check", str(tmp_path / name)]) == 1
    assert "not a JSON object" in capsys.readouterr().out


def test_each_file_is_checked_whatever_the_others_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.conf").write_text("{")
    (tmp_path / "b.conflist").write_text(json.dumps(conflist({"type": "third", "x": 1})))
    assert cli.main(["config", "check", "--strict", str(tmp_path / "no"), *map(str, sorted(tmp_path.iterdir()))]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "No such file" in out[0]
    assert "a.conf: error" in out[1]
    assert 'the keys of the third-party plugin "third" are not checked' in out[2]


@pytest.mark.parametrize("path", ["conf/net-conf.json", "conf/10-flannel.conflist"])
def test_files_that_we_ship_are_valid(path: str) -> None:
    assert cli.main(["config", "check", "--strict", str(ROOT / path)]) == 0


@pytest.mark.parametrize(("plugin", "model"), models.PLUGIN_MODELS.items())
def test_every_key_of_every_plugin_is_known_and_its_near_miss_is_found(
    plugin: str, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mistyped key lacks a letter; keys that are as near to another one are left out."""
    for field in model.model_fields.values():
        key = field.alias
        if key in ("name", "type", "cniVersion", "ipam", "args", "prevResult", "runtimeConfig", "dns", "capabilities"):
            continue
        mistyped = key[:2] + key[3:]
        path = tmp_path / "x.conf"
        path.write_text(json.dumps({"name": "n", "cniVersion": "1.0.0", "type": plugin, mistyped: None}))
        cli.main(["config", "check", str(path)])
        assert f'is "{key}" meant?' in capsys.readouterr().out
        path.write_text(json.dumps({"name": "n", "cniVersion": "1.0.0", "type": plugin, key: None}))
        cli.main(["config", "check", str(path)])
        assert "is no key" not in capsys.readouterr().out
