"""Kubernetes' own conformance suites on three nodes with our manifest and image: make test-kubernetes K8S_BIN=DIR.

Needs e2e.test and agnhost in K8S_BIN, and coredns for the tests that look up names (docs/kubernetes.md says how to build them).
K8S_SUITES names the suites; K8S_IMAGES is a directory with archives of the images, where they are not to be made here. What
passed and what failed is written to build/kubernetes/SUITE.txt.
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.kubernetes import images
from integration.kubernetes.cluster import Cluster, load_all
from integration.kubernetes.conftest import BareNodes
from support.manifest import MANIFEST

SUITE_SECONDS = int(os.environ.get("K8S_SUITE_SECONDS", "10800"))
PROCESSES = 4
LABELS = re.compile(r" \[[^][]*, [^][]*\]$")
"""The labels that ginkgo adds to a name in its report."""
BACKSLASHED = r"\\\1"
pytestmark = [pytest.mark.netns, pytest.mark.timeout(SUITE_SECONDS + 900)]

SUITES = os.environ.get("K8S_SUITES", "sig-network").split()
NAMES = "DNS|ExternalName"
"""Tests that need a name service."""


@pytest.fixture(scope="module")
def three(bare_nodes: BareNodes, binaries: Path) -> Iterator[Cluster]:
    if not all(os.access(binaries / name, os.X_OK) for name in ("e2e.test", "agnhost", "kubectl")):
        pytest.skip("K8S_BIN lacks some of e2e.test, agnhost, kubectl (docs/kubernetes.md)")
    given = os.environ.get("K8S_IMAGES")
    archives = sorted(Path(given).glob("*.tar")) if given else images.write_all(binaries, images.BUILD / "images")
    with bare_nodes(*archives) as made:
        made.apply(load_all(MANIFEST))
        made.wait(lambda: made.all_ready, "all nodes and pods are ready")
        made.route_to_pods()
        if (binaries / "coredns").exists():
            made.apply(load_all(Path(__file__).with_name("dns.yml")))
            made.wait(lambda: made.pods_ready("kube-system", 2), "the name service runs")
        yield made


@pytest.mark.parametrize("suite", SUITES)
def test_conformance(three: Cluster, suite: str) -> None:
    """Tests mostly wait, so several processes have a part of them each; what is [Serial] is run afterwards, alone."""
    names = sorted(listed(three, suite))
    assert names, "the suite has no test"
    parallel = [name for name in names if "[Serial]" not in name]
    serial = [name for name in names if "[Serial]" in name]
    parts = [parallel[number::PROCESSES] for number in range(PROCESSES)]
    results = run(three, suite, [part for part in parts if part]) | run(three, f"{suite}-serial", [serial] if serial else [])
    write(three, suite, results)
    failed = sorted(f"{results.get(name, 'not run')}: {name}" for name in names if results.get(name) != "passed")
    assert failed == [], f"logs: {three.directory}/{suite}*.log"


def listed(three: Cluster, suite: str) -> set[str]:
    """Return the names of a suite's tests."""
    report = three.directory / f"{suite}-list.xml"
    options = ["--ginkgo.dry-run", f"--ginkgo.focus=\\[{suite}\\].*\\[Conformance\\]"]
    if not (three.binaries / "coredns").exists():
        options.append(f"--ginkgo.skip={NAMES}")
    assert start(three, f"{suite}-list", report, *options).wait(600) == 0, three.plane.log(f"{suite}-list")[-3000:]
    return set(results_of(report))


def run(three: Cluster, suite: str, parts: list[list[str]]) -> dict[str, str]:
    """Run each part in a process of its own. Returns: the status of each test, by its name."""
    began = []
    for number, part in enumerate(parts, 1):
        name = f"{suite}-{number}"
        report = three.directory / f"{name}.xml"
        began.append((report, start(three, name, report, *(f"--ginkgo.focus={pattern(each)}" for each in part))))
    results: dict[str, str] = {}
    for report, process in began:
        process.wait(SUITE_SECONDS)
        results |= results_of(report) if report.exists() else {}
    return results


def pattern(name: str) -> str:
    """Return a regular expression of Go that matches this name; ginkgo puts the suite's in front."""
    return re.sub(r"([^a-zA-Z0-9 ])", BACKSLASHED, name)


def start(three: Cluster, name: str, report: Path, *options: str) -> subprocess.Popen[bytes]:
    return three.plane.start(
        name,
        "sh",
        "-c",
        'cd /; exec "$0" "$@"',  # nsenter's working directory has no name there
        str(three.binaries / "e2e.test"),
        f"--kubeconfig={three.plane.kubeconfig_of_admin}",
        f"--kubectl-path={three.binaries}/kubectl",
        f"--ginkgo.junit-report={report}",
        f"--ginkgo.timeout={SUITE_SECONDS}s",
        "--ginkgo.no-color",
        "--ginkgo.silence-skips",
        "--provider=local",
        "--minStartupPods=0",
        *options,
    )


def results_of(report: Path) -> dict[str, str]:
    """Return the status of each test that ran, by its name."""
    found = {}
    for case in ET.parse(report).iter("testcase"):
        name, status = case.get("name", ""), case.get("status", "")
        if name.startswith("[It] ") and status != "skipped":
            found[LABELS.sub("", name.removeprefix("[It] "))] = status
    return found


def write(three: Cluster, suite: str, results: dict[str, str]) -> None:
    """Write what passed and failed, with versions."""
    versions = [
        subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        for program in (three.binaries / "kubelet", three.containerd)
    ]
    passed = sum(status == "passed" for status in results.values())
    lines = [*versions, f"{suite}: {passed} of {len(results)} passed"]
    lines += [f"{status}: {name}" for name, status in sorted(results.items())]
    images.BUILD.mkdir(parents=True, exist_ok=True)
    (images.BUILD / f"{suite}.txt").write_text("".join(f"{line}\n" for line in lines))
