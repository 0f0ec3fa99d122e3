"""Recorded cases and how they are compared: for integration/golden and integration/golden-plugins, which both use the newer runner."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cni_py.explain import calls, steps
from cni_py.explain.shapes import OTHER
from cni_py.explain.steps import Step
from cni_py.plugin_table import PLUGINS
from cni_py.spec.environment import fault_in

INTEGRATION = Path(__file__).resolve().parents[2] / "integration"
RUNNER = INTEGRATION / "golden-plugins" / "golden.py"
SHARED = INTEGRATION.parents[1] / "shared"

Case = dict[str, Any]


# --- which cases the tree can run -------------------------------------------------------------------------------------


@cache
def load(directory: Path) -> dict[Path, list[Case]]:
    """The cases of each file."""
    return {file: json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))}


@cache
def called_plugins(directory: Path) -> frozenset[str]:
    """Every plugin that a case of the directory calls.

    Not among them: `nonesuch` and `none`, which some configurations name as IPAM, and a plugin that is called as delegate alone,
    out of /usr/lib/cni.
    """
    every = [case for cases in load(directory).values() for case in cases]
    return frozenset(step["plugin"] for case in every for step in case["steps"] if "plugin" in step)


def types(value: Any) -> Iterator[str]:
    """Every `type` in a configuration: of the plugin, its IPAM, its delegate."""
    if isinstance(value, list):
        for member in value:
            yield from types(member)
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        yield from types(list(value.values()))


def missing_plugins(file: Path, case: Case) -> set[str]:
    """The plugins that a case of the file needs and this tree lacks."""
    named = {step["plugin"] for step in case["steps"] if "plugin" in step} | set(types(case["steps"]))
    return named & called_plugins(file.parent) - PLUGINS.keys()


def parameters(directory: Path, chosen: Callable[[Case], bool] = bool) -> list[Any]:
    """Return the chosen cases as parameters of a test; one whose plugins this tree lacks is skipped."""
    return [
        pytest.param(case, id=case["name"], marks=skip_without_plugins(file, case))
        for file, cases in load(directory).items()
        for case in cases
        if chosen(case)
    ]


BEYOND_US = {"dhcp/renew": "busybox udhcpd logs no DHCPRELEASE, not that of its own client either: its step 4 cannot pass"}
"""Recorded cases that no plugin can pass, and why. The other steps of dhcp/renew are those of tests/netns/test_dhcp.py."""


def skip_without_plugins(file: Path, case: Case) -> list[pytest.MarkDecorator]:
    if case["name"] in BEYOND_US:
        return [pytest.mark.xfail(reason=BEYOND_US[case["name"]], strict=True)]
    missing = missing_plugins(file, case)
    return [pytest.mark.skip(reason=f"this tree has no {', '.join(sorted(missing))}")] if missing else []


# --- comparing --------------------------------------------------------------------------------------------------------


def load_runner() -> ModuleType:
    """Return golden.py as a module: a program, which calls its main() at its end, takes as long to start as a case."""
    source = RUNNER.read_text()
    assert source.endswith("\nmain()\n")
    module = ModuleType("golden")
    module.__dict__["__file__"] = str(RUNNER)
    exec(compile(source.removesuffix("main()\n"), RUNNER, "exec"), module.__dict__)
    return module


runner = cache(load_runner)


def compare(case: Case, bin_dir: Path, companion: Path | None = None) -> None:
    """Run a case against the installed plugins. Raises: AssertionError, with the differences."""
    skip_without_ptp(case)
    if missing := runner().missing(case):
        pytest.skip(f"it needs {missing}")
    got = runner().run_case(case, os.path.abspath(bin_dir), False, str(companion or ""))
    differences = runner().differences(case, got)
    assert not differences, "\n".join([case.get("why", ""), *differences])


def skip_without_ptp(case: Case) -> None:
    if "/usr/lib/cni" in json.dumps(case["steps"]) and not os.access("/usr/lib/cni/ptp", os.X_OK):
        pytest.skip("no ptp in /usr/lib/cni (package containernetworking-plugins)")


def outdated(directory: Path, *names: str) -> list[str]:
    """Files of ../shared that the directory of the same name lacks or has otherwise; skips where there is no ../shared."""
    origin = SHARED / directory.name
    if not origin.is_dir():
        pytest.skip(f"no ../shared/{directory.name} beside this checkout")
    names = (*names, *(f"cases/{file.name}" for file in sorted((origin / "cases").glob("*.json"))))
    copies = {name: directory / name for name in names}
    return [name for name, copy in copies.items() if not copy.exists() or copy.read_bytes() != (origin / name).read_bytes()]


# --- with the agent ---------------------------------------------------------------------------------------------------

# An agent that writes down each call that it handles, and its journal, in the machine's own file system: a case's host ends with
# the case.
COUNTING = """
import json
from cni_py import engine, journal
plain, write = engine.handle, journal.Journal.write
def write_down(self, line, seconds=None):
    with open({journalled!r}, "a") as file:
        file.write(json.dumps([self.title, line]) + chr(10))
    write(self, line, seconds)
journal.Journal.write = write_down
def handle(call, stdin):
    with open({answered!r}, "a") as file:
        file.write(f"{{call.plugin}} {{call.verb}}\\n")
    return plain(call, stdin)
engine.handle = handle
"""


def compare_with_the_agent(case: Case, bin_dir: Path, tmp_path: Path) -> None:
    """Run a case beside an agent, which every call has to reach."""
    launcher = (bin_dir.parent.parent / "bin" / "cni-agent").read_text()
    program, answered, journalled = tmp_path / "cni-agent", tmp_path / "answered", tmp_path / "journalled"
    counting = COUNTING.format(answered=str(answered), journalled=str(journalled))
    program.write_text(launcher.replace("\nsys.exit(main())\n", f"\n{counting}\nsys.exit(main())\n"))
    program.chmod(0o755)
    answered.touch()
    compare(case, bin_dir, program)
    assert Counter(answered.read_text().splitlines()) == calls_for_the_agent(case)
    assert unexplained(journalled) == []


def unexplained(journalled: Path) -> list[str]:
    """The changes that an agent wrote down and ``cni-py explain`` could only show as commands."""
    written = [json.loads(line) for line in journalled.read_text().splitlines()] if journalled.exists() else []
    return unexplained_in(
        [text for title, line in written for text in (f"# 2026-11-24T10:00:00Z {title}", f"10:00:00.000000  {line}")]
    )


def unexplained_in(journal: list[str]) -> list[str]:
    """The changes in a journal that ``cni-py explain`` could only show as commands."""
    items = [item for call in calls.read(journal) for item in steps.explain(call)]
    return [item.line.text for item in items if isinstance(item, Step) and item.group == OTHER]


def calls_for_the_agent(case: Case) -> Counter[str]:
    """Count the calls but those that the client handles itself: VERSION, and errors of the environment."""
    found: Counter[str] = Counter()
    for step in [step for step in case["steps"] if "plugin" in step]:
        environ = {"CNI_COMMAND": step["verb"], "CNI_PATH": step.get("path", "/bin"), "CNI_ARGS": step.get("args", "")}
        if step["verb"] not in ("STATUS", "GC"):
            netns = "" if step.get("ns", 1) is None else "/run/netns/any"
            environ |= {"CNI_CONTAINERID": step.get("id", "c1"), "CNI_NETNS": netns, "CNI_IFNAME": step.get("ifname", "eth0")}
        environ |= step.get("env") or {}
        environ = {name: value for name, value in environ.items() if value is not None}
        if step["verb"] != "VERSION" and environ.get("CNI_COMMAND") and not fault_in(environ):
            found[f"{step['plugin']} {step['verb']}"] += 1
    return found
