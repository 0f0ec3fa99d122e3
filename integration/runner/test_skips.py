"""The rule about skips (conftest.py): in CI, a skip that tests/allowed-skips.txt does not allow is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SKIPPING = """
import pytest

@pytest.mark.skip(reason="no tool (known)")
def test_known(): ...

@pytest.fixture
def tool():
    pytest.skip("no other tool")

def test_other(tool): ...

@pytest.mark.xfail(reason="wrong")
def test_wrong():
    assert 0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this one's conftest.py and tests that skip."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    shutil.copytree(ROOT / "tests" / "support", tmp_path / "tests" / "support", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "allowed-skips.txt").write_text("# why\ntests/test_tools.py::*: no tool (known)\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = tests {ROOT}\nmarkers = netns: x\n")
    (tmp_path / "tests" / "test_tools.py").write_text(SKIPPING)
    (tmp_path / "tests" / "test_module.py").write_text("import pytest\npytest.skip('no module', allow_module_level=True)\n")
    return tmp_path


def last_line(project: Path, ci: str, workers: int = 0) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers)]
    env = os.environ | {"CI": ci, "PYTHONWARNINGS": ""}
    done = subprocess.run(command, cwd=project, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1].partition(" in ")[0]


@pytest.mark.parametrize(("workers", "errors"), [(0, "1 error"), (2, "1 skipped, 1 xfailed, 2 errors")])
def test_unknown_skip_fails_in_ci(project: Path, workers: int, errors: str) -> None:
    """One of a fixture, one of a module, which ends a run in one process; what is known or expected is no failure."""
    assert last_line(project, "true", workers) == errors
    (project / "tests" / "test_module.py").unlink()
    assert last_line(project, "true", workers) == "1 skipped, 1 xfailed, 1 error"


def test_skip_is_a_skip_elsewhere(project: Path) -> None:
    assert last_line(project, "") == "3 skipped, 1 xfailed"
