"""integration/bench works: figures for both sides, imports of one call."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"

pytestmark = pytest.mark.netns


def bench(bin_dir: Path, *options: str) -> str:
    command = [sys.executable, str(BENCH), "--bin-dir", str(bin_dir), *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_figures_of_both_sides(bin_dir: Path, go_plugins: str) -> None:
    report = json.loads(bench(bin_dir, "--runs", "2", "--pods", "0", "2", "--only", "bridge, masquerade", "--json"))
    assert [table["pods"] for table in report["tables"]] == [0, 2]
    for table in report["tables"]:
        assert [row["name"] for row in table["rows"]] == ["bridge, masquerade ADD", "bridge, masquerade DEL"]
        for row in table["rows"]:
            for kind in ("wall_ms", "processor_ms"):
                assert [len(row[kind][side]) for side in ("go", "ours", "agent")] == [2, 2, 2]
                assert min(min(times) for times in row[kind].values()) > 0


def test_table_can_be_read(bin_dir: Path, go_plugins: str) -> None:
    lines = bench(bin_dir, "--runs", "2", "--pods", "0", "--only", "host-local").splitlines()
    assert lines[0].startswith("0 pods there before; medians of 2 runs; ")
    assert [line.split("  ")[0] for line in lines[3:5]] == ["host-local ADD", "host-local DEL"]


def test_chains_have_their_aims_beside_them(bin_dir: Path, go_plugins: str) -> None:
    lines = bench(bin_dir, "--runs", "1", "--pods", "0", "--only", "chain").splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == ["chain ADD", "chain DEL", "chain both"]
    assert [line.rpartition("   ")[2] for line in lines[3:6]] == ["0.90, 0.35", "0.80, 0.10", "0.55, 0.16"]


def test_four_plugins_and_a_meta_plugin_alone(bin_dir: Path, go_plugins: str) -> None:
    for only, names, aims in (
        ("four plugins", ["four plugins ADD", "four plugins DEL", "four plugins both"], ["-, 0.50", "-, 0.25"]),
        ("tuning", ["tuning ADD", "tuning DEL"], []),
    ):
        lines = bench(bin_dir, "--runs", "1", "--pods", "0", "--only", only).splitlines()
        assert [line.split("  ")[0] for line in lines[3:-1]] == names
        assert [line.rpartition("   ")[2] for line in lines[3:-1] if line[-1:].isdigit() and "-, " in line] == aims


def test_memory_of_the_agent(bin_dir: Path) -> None:
    lines = bench(bin_dir, "--calls", "80").splitlines()
    assert [line.split(":")[0].split() for line in lines] == [[str(number), "calls"] for number in range(8, 88, 8)]
    assert all(0 < float(line.split()[2]) < 70 for line in lines), lines


@pytest.mark.parametrize(("plugin", "verb"), [("flannel", "ADD"), ("host-local", "DEL"), ("bridge", "VERSION")])
def test_imports_of_one_call(bin_dir: Path, plugin: str, verb: str) -> None:
    text = bench(bin_dir, "--importtime", plugin, verb, "--runs", "1")
    assert text.startswith(f"{plugin} {verb}: ")
    assert len(re.findall(r"^ +[0-9.]+ +[0-9.]+  \S+$", text, re.MULTILINE)) > 15
    assert "pyroute2" not in text
