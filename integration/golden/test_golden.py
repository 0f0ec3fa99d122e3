"""The recorded behaviour of the Go plugins (golden.py, cases/), compared with the installed plugins, a test a case."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "golden"


def cases() -> Iterator[Any]:
    for file in sorted((HERE / "cases").glob("*.json")):
        for case in json.loads(file.read_text()):
            yield pytest.param(file, case, id=case["name"])


@pytest.mark.netns
@pytest.mark.parametrize(("file", "case"), list(cases()))
def test_as_recorded(file: Path, case: dict[str, Any], bin_dir: Path) -> None:
    text = json.dumps(case["steps"])
    if "/usr/lib/cni" in text and not os.access("/usr/lib/cni/ptp", os.X_OK):
        pytest.skip("no ptp in /usr/lib/cni (package containernetworking-plugins)")
    only = f"^{re.escape(case['name'])}$"
    command = [sys.executable, HERE / "golden.py", "compare", "--bin-dir", bin_dir, "--cases", file, "--only", only, "-v"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{case.get('why', '')}\n{done.stdout}{done.stderr}"
    assert "1 passed, 0 failed" in done.stdout


def test_copy_is_up_to_date() -> None:
    """The runner and the cases here are a copy, so that a lone clone can be tested."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/golden beside this checkout")
    names = ["golden.py", *(f"cases/{file.name}" for file in sorted((SHARED / "cases").glob("*.json")))]
    outdated = [
        name for name in names if not (HERE / name).exists() or (HERE / name).read_bytes() != (SHARED / name).read_bytes()
    ]
    assert not outdated, f"copy these from {SHARED}: {', '.join(outdated)}"
