"""integration/scale works: one flanneld and fifty peers, in etcd and in a file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.namespaces import PATH

SCALE = Path(__file__).resolve().parents[1] / "scale"
LEASES, CHANGES, SECONDS = 50, 2, 50

pytestmark = pytest.mark.netns


def scale(datastore: str, *options: str) -> str:
    if datastore == "etcd" and shutil.which("etcd", path=PATH) is None:
        pytest.skip("no etcd (package etcd-server)")
    command = [sys.executable, str(SCALE), "--datastore", datastore, "--leases", str(LEASES)]
    command += ["--changes", str(CHANGES), "--quiet", "1", *options]
    seconds = SECONDS * (2 if "--beside" in options else 1)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("datastore", ["etcd", "file"])
def test_peers_are_reached_and_none_is_touched_by_a_restart(datastore: str) -> None:
    report = json.loads(scale(datastore, "--json"))
    (run,) = report["runs"]
    assert (report["datastore"], run["leases"], run["burst_changes"]) == (datastore, LEASES, LEASES // 10)
    assert 0 < run["entries"] < SECONDS
    for kind in ("more", "less", "mac"):
        assert len(run[kind]) == len(run[f"{kind}_processor"]) == CHANGES
        assert all(0 < seconds < SECONDS for seconds in run[kind])
    assert 10 < run["resident"] <= run["resident_peak"] < 200
    assert (run["restart_touched"], run["pings_lost"]) == (0, 0)
    assert run["pings"] > 10


def test_table_and_plot_can_be_read(tmp_path: Path) -> None:
    picture = tmp_path / "plot.svg"
    lines = scale("file", "--svg", str(picture)).splitlines()
    assert lines[0].startswith("datastore file; medians of 2; cores ")
    assert lines[1].split() == ["peers", str(LEASES)]
    assert f"{'resident memory, MB':32}" in {line[:32] for line in lines}
    assert sum(line.startswith(f"{LEASES:>7} #") for line in lines) == 4
    panels = ElementTree.parse(picture).getroot().findall("{*}g")
    assert [len(panel.findall("{*}circle")) for panel in panels] == [1, 1, 1, 1]


@pytest.mark.timeout(2 * SECONDS + 10)
def test_another_flanneld_is_measured_beside_it(tmp_path: Path) -> None:
    """The other one is this one again: it has all options that Go's has."""
    other, root = tmp_path / "flanneld", SCALE.parents[1]
    code = "import sys; from cni_py.flanneld.daemon import main; sys.exit(main())"
    other.write_text(f"#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -c '{code}' \"$@\"\n")
    other.chmod(0o755)
    picture = tmp_path / "plot.svg"
    report = json.loads(scale("etcd", "--json", "--svg", str(picture), "--beside", str(other)))
    assert [(run["side"], run["leases"]) for run in report["runs"]] == [("cni-py", LEASES), (str(other), LEASES)]
    assert [(run["restart_touched"], run["pings_lost"], run["stale"]) for run in report["runs"]] == [(0, 0, 0)] * 2
    panels = ElementTree.parse(picture).getroot().findall("{*}g")
    assert [len(panel.findall("{*}circle")) for panel in panels] == [2, 2, 2, 2]
