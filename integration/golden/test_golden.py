"""The recorded behaviour of the Go plugins (golden.py, cases/), compared with the installed plugins, a test a case."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_py.spec.environment import fault_in

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "golden"


def cases() -> Iterator[Any]:
    for file in sorted((HERE / "cases").glob("*.json")):
        for case in json.loads(file.read_text()):
            yield pytest.param(file, case, id=case["name"])


def skip_without_ptp(text: str) -> None:
    if "/usr/lib/cni" in text and not os.access("/usr/lib/cni/ptp", os.X_OK):
        pytest.skip("no ptp in /usr/lib/cni (package containernetworking-plugins)")


@pytest.mark.netns
@pytest.mark.parametrize(("file", "case"), list(cases()))
def test_as_recorded(file: Path, case: dict[str, Any], bin_dir: Path) -> None:
    skip_without_ptp(json.dumps(case["steps"]))
    only = f"^{re.escape(case['name'])}$"
    command = [sys.executable, HERE / "golden.py", "compare", "--bin-dir", bin_dir, "--cases", file, "--only", only, "-v"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{case.get('why', '')}\n{done.stdout}{done.stderr}"
    assert "1 passed, 0 failed" in done.stdout


# An agent that writes down each call that it answers, in the machine's own file system: a case's host ends with the case.
COUNTING = """
from cni_py import engine
plain = engine.handle
def handle(call, stdin):
    with open({answered!r}, "a") as file:
        file.write(f"{{call.plugin}} {{call.verb}}\\n")
    return plain(call, stdin)
engine.handle = handle
"""


def calls_for_the_agent(file: Path) -> Counter[str]:
    """All of a file's calls but those that the client answers itself: VERSION, and errors of the environment."""
    found: Counter[str] = Counter()
    for step in [step for case in json.loads(file.read_text()) for step in case["steps"] if "plugin" in step]:
        environ = {"CNI_COMMAND": step["verb"], "CNI_PATH": step.get("path", "/bin"), "CNI_ARGS": step.get("args", "")}
        if step["verb"] not in ("STATUS", "GC"):
            netns = "" if step.get("ns", 1) is None else "/run/netns/any"
            environ |= {"CNI_CONTAINERID": step.get("id", "c1"), "CNI_NETNS": netns, "CNI_IFNAME": step.get("ifname", "eth0")}
        environ |= step.get("env") or {}
        environ = {name: value for name, value in environ.items() if value is not None}
        if step["verb"] != "VERSION" and environ.get("CNI_COMMAND") and not fault_in(environ):
            found[f"{step['plugin']} {step['verb']}"] += 1
    return found


@pytest.mark.netns
@pytest.mark.timeout(240)
@pytest.mark.parametrize("file", sorted((HERE / "cases").glob("*.json")), ids=lambda file: file.stem)
def test_as_recorded_with_the_agent(file: Path, bin_dir: Path, tmp_path: Path) -> None:
    """All cases of a file in one run; the agent answered every call."""
    skip_without_ptp(file.read_text())
    launcher = (bin_dir.parent.parent / "bin" / "cni-agent").read_text()
    program, answered = tmp_path / "cni-agent", tmp_path / "answered"
    counting = COUNTING.format(answered=str(answered))
    program.write_text(launcher.replace("\nsys.exit(main())\n", f"\n{counting}\nsys.exit(main())\n"))
    program.chmod(0o755)
    command = [sys.executable, HERE / "golden.py", "compare", "--bin-dir", bin_dir, "--cases", file, "--with", program, "-v"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Counter(answered.read_text().splitlines()) == calls_for_the_agent(file)


def test_copy_is_up_to_date() -> None:
    """The runner and the cases here are a copy, so that a lone clone can be tested."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/golden beside this checkout")
    names = ["golden.py", *(f"cases/{file.name}" for file in sorted((SHARED / "cases").glob("*.json")))]
    outdated = [
        name for name in names if not (HERE / name).exists() or (HERE / name).read_bytes() != (SHARED / name).read_bytes()
    ]
    assert not outdated, f"copy these from {SHARED}: {', '.join(outdated)}"
