"""Fixtures and rules for all tests: `host`, `bin_dir`, and the rule about skips."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from support import examples
from support.namespaces import GO_PLUGINS, PATH, Host
from support.warm import WarmHost

ROOT = Path(__file__).resolve().parent
ALLOWED_SKIPS = ROOT / "tests" / "allowed-skips.txt"
INSTALLED = os.environ.get("TEST_BIN_DIR", "")  # `make test` sets it; not CNI_…, which the tests look at

# --- options ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--longer", type=int, default=1, metavar="N", help="kill and fault tests try N times as much (make test-long: 10)"
    )


def pytest_configure(config: pytest.Config) -> None:
    examples.FACTOR = int(config.getoption("--longer"))


@pytest.fixture(scope="session")
def longer(pytestconfig: pytest.Config) -> int:
    """Factor by which a kill or fault test tries more often than in `make test`."""
    return int(pytestconfig.getoption("--longer"))


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the installed plugins: TEST_BIN_DIR, or installed here from the checkout."""
    if INSTALLED:
        return Path(INSTALLED).resolve()
    prefix = tmp_path_factory.mktemp("prefix")
    subprocess.run(
        ["make", "--silent", "install", f"PREFIX={prefix}", "DESTDIR=", "UNITS=0"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return prefix / "cni" / "bin"


@pytest.fixture(scope="session")
def cni_py(bin_dir: Path) -> Path:
    """The installed `cni-py` command."""
    return bin_dir.parent.parent / "bin" / "cni-py"


@pytest.fixture
def host(bin_dir: Path) -> Iterator[Host]:
    """A host in namespaces of its own, without containers or subnet.env; see tests/support/namespaces.py.

    Its plugins are forks of a process that has loaded them (tests/support/warm.py). `executing_host` executes them.
    """
    with WarmHost(bin_dir) as made:
        yield made


@pytest.fixture
def executing_host(bin_dir: Path) -> Iterator[Host]:
    """A host whose plugins are executed, as by a runtime."""
    with Host(bin_dir) as made:
        yield made


@pytest.fixture(scope="session")
def go_plugins() -> str:
    """The directory with Debian's Go plugins."""
    if not os.access(f"{GO_PLUGINS}/bridge", os.X_OK):
        pytest.skip(f"no Go plugins in {GO_PLUGINS} (package containernetworking-plugins)")
    return GO_PLUGINS


@pytest.fixture(scope="session")
def cnitool() -> str:
    """The path of cnitool: built by integration/system-packages where there is a Go, or on PATH."""
    found = shutil.which("cnitool", path=f"{ROOT}/build/bin:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no cnitool (go install …/cnitool@v1.3.0 needs Go 1.21)")
    return found


@pytest.fixture(scope="session")
def podman_program() -> str:
    """podman 4, with crun, which can do without control groups."""
    path = program("podman", "crun")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    if not version.startswith("4."):
        pytest.skip(f"podman {version}: tested is the CNI back end of podman 4")
    return path


@pytest.fixture(scope="session")
def containerd_program() -> str:
    """containerd, with ctr and crun."""
    return program("containerd", "ctr", "crun")


@pytest.fixture(scope="session")
def answer_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive with the image of all containers: busybox, and servers on TCP and UDP."""
    from integration.clients.image import write_image

    return write_image(tmp_path_factory.mktemp("image") / "image.tar", program("busybox"))


def program(*names: str) -> str:
    """The path of the first, if all are here; else the test is skipped."""
    for name in names:
        if shutil.which(name, path=PATH) is None:
            pytest.skip(f"no {name} (package of that name, or busybox-static)")
    return str(shutil.which(names[0], path=PATH))


# --- hypothesis: how long an example takes is not what a test checks; a busy machine makes it ten times as slow --------


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Load our profile before the first module that imports hypothesis, which takes half a second."""
    if "hypothesis" in sys.modules or "hypothesis" not in module_path.read_text():
        return
    from hypothesis import settings

    settings.register_profile("cni-py", parent=settings.default, deadline=None)
    settings.load_profile("cni-py")


# --- what was collected is never garbage: the collector would go through it again and again, here and in each forked child --


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


# --- root, and time ---------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests: a Host requires root, marked or not; longer tests get more time."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if {"host", "executing_host"} & set(fixtures):
            item.add_marker("netns")
        if "longer" in fixtures:
            item.add_marker(pytest.mark.timeout(180 + 60 * item.config.getoption("--longer")))
        if os.geteuid() != 0 and item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.skip(reason="requires root"))


# --- skips: in CI a skip that tests/allowed-skips.txt does not allow is a failure --------------------------------------


def is_allowed(nodeid: str, reason: str) -> bool:
    """A line of the file is "NODEID: REASON", with * for anything."""
    lines = [line.strip() for line in ALLOWED_SKIPS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    patterns = [re.escape(line).replace(r"\*", ".*") for line in lines]
    return any(re.fullmatch(pattern, f"{nodeid}: {reason}", re.DOTALL) for pattern in patterns)


def fail_if_not_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not is_allowed(report.nodeid, reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, which tests/allowed-skips.txt does not allow in CI: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_not_allowed(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_not_allowed(report)
    return report
