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
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_figures_of_both_sides(bin_dir: Path, go_plugins: str) -> None:
    told = json.loads(bench(bin_dir, "--runs", "2", "--pods", "0", "2", "--only", "bridge, masquerade", "--json"))
    assert [table["pods"] for table in told["tables"]] == [0, 2]
    for table in told["tables"]:
        assert [row["name"] for row in table["rows"]] == ["bridge, masquerade ADD", "bridge, masquerade DEL"]
        for row in table["rows"]:
            assert len(row["wall"]["ours_all_ms"]) == len(row["wall"]["reference_all_ms"]) == 2
            assert row["wall"]["ratio"] > 0


def test_table_can_be_read(bin_dir: Path, go_plugins: str) -> None:
    lines = bench(bin_dir, "--runs", "2", "--pods", "0", "--only", "host-local").splitlines()
    assert lines[0].startswith("0 pods there before; medians of 2 runs; ")
    assert [line.split("  ")[0] for line in lines[3:5]] == ["host-local ADD", "host-local DEL"]


@pytest.mark.parametrize(("plugin", "verb"), [("flannel", "ADD"), ("host-local", "DEL"), ("bridge", "VERSION")])
def test_imports_of_one_call(bin_dir: Path, plugin: str, verb: str) -> None:
    text = bench(bin_dir, "--importtime", plugin, verb, "--runs", "1")
    assert text.startswith(f"{plugin} {verb}: ")
    assert len(re.findall(r"^ +[0-9.]+ +[0-9.]+  \S+$", text, re.MULTILINE)) == 25
    assert ("pyroute2" in text) is (plugin == "flannel")
