"""The table of plugins: every row fits its module and its model, and no other module has a list of plugins."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.config import models
from cni_py.plugin_table import PLUGINS

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "cni_py" / "plugin_table.py"
OTHER_LISTS = [
    "config/_schemas.py",  # of configuration keys, "bridge" among them
    "kernel/features.py",  # of kinds of links, after which plugins are called
    "netlink/attributes.py",
    "netlink/tables.py",
]
SOURCES = [
    source
    for source in sorted((ROOT / "cni_py").rglob("*.py"))
    if source != TABLE and str(source.relative_to(ROOT / "cni_py")) not in OTHER_LISTS
]


AMBIGUOUS = {"bridge", "macvlan", "ipvlan", "vlan", "dummy", "tap", "vrf", "firewall"}
"""Names that are words of the kernel or of other parts, too: a list of these alone is none of plugins."""


def plugin_lists(source: str) -> Iterator[tuple[int, set[str]]]:
    """Line and names of each literal that holds the names of two plugins or more."""
    for node in ast.walk(ast.parse(source)):
        members = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        names = {member.value for member in members if isinstance(member, ast.Constant) and member.value in PLUGINS}
        if len(names) > 1 and names - AMBIGUOUS:
            yield node.lineno, names


@pytest.mark.parametrize("plugin", PLUGINS)
def test_row_names_a_module_of_its_kind_and_a_model(plugin: str) -> None:
    row = PLUGINS[plugin]
    directory = ROOT / "cni_py" / "plugins" / row.kind
    name = row.module.removeprefix(f"cni_py.plugins.{row.kind}.")
    assert (directory / f"{name}.py").exists() or (directory / name / "__init__.py").exists()
    assert issubclass(getattr(models, row.model), models.NetworkConfig)
    assert row.record in ("shared", "own", "")
    assert row.files in ("reservations", "delegate configurations", "")


def test_every_module_of_a_plugin_has_a_row() -> None:
    plugins = ROOT / "cni_py" / "plugins"
    kinds = {row.kind for row in PLUGINS.values()}
    entries = [entry for kind in kinds for entry in (plugins / kind).iterdir() if not entry.name.startswith("_")]
    modules = {f"cni_py.plugins.{entry.parent.name}.{entry.stem}" for entry in entries}
    assert modules == {row.module for row in PLUGINS.values()}


def test_no_other_module_lists_plugins() -> None:
    found = [f"{s.relative_to(ROOT)}:{line} {names}" for s in SOURCES for line, names in plugin_lists(s.read_text())]
    assert found == []


@pytest.mark.parametrize("source", ['("flannel", "x", "bridge")', '{"portmap": 1, "loopback": 2}', '["bridge", "host-local"]'])
def test_a_list_of_plugins_is_found(source: str) -> None:
    assert list(plugin_lists(source))


def test_table_imports_nothing() -> None:
    script = "import sys; before = set(sys.modules); exec(sys.stdin.read()); print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], input=TABLE.read_text(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_links_in_bin_are_plugins_of_the_table() -> None:
    """The launchers of a checkout; the installer makes its own, by the table."""
    links = [link for link in (ROOT / "bin").iterdir() if link.is_symlink()]
    assert {link.name for link in links} <= PLUGINS.keys()
    assert {os.readlink(link) for link in links} == {"cni-plugin"}
