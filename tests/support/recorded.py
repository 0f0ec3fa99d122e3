"""Recorded cases and how they are compared: for integration/golden and integration/golden-plugins, which both use the newer runner."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cni_py.explain import calls, steps
from cni_py.explain.shapes import OTHER
from cni_py.explain.steps import Step
from cni_py.plugin_table import PLUGINS
from support import case_zygote, forks, warm
from support.namespaces import PATH
from support.replay import more_directories, reaches_the_agent

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
    """Return golden.py as a module."""
    return case_zygote.load_runner(str(RUNNER))


runner = cache(load_runner)


def ask_zygote(kind: str, given: dict[str, Any], bin_dir: Path) -> Any:
    """Have a fork answer that has loaded runner and agent. Raises: AssertionError with its words, if it could not."""
    launcher = bin_dir.resolve().parents[1] / "bin" / "cni-agent"
    program = Path(case_zygote.__file__)
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
    control = forks.zygote(str(launcher), warm.launched(launcher, program, [str(RUNNER)]), env)
    request = json.dumps({"bin_dir": os.path.abspath(bin_dir), **given}).encode()
    status, out, err = forks.ask(control, kind.encode(), request, given["case"].get("name", kind))
    assert status == 0, (out + err)[-600:].decode(errors="replace")
    return json.loads(out)


NAMED_MAC = re.compile(r"\b(?:02:00:|c2:11:)(?:[0-9a-f]{2}:){3}[0-9a-f]{2}\b")
"""MAC addresses that the runner takes for the case's own. One in 8,000 random ones is like that, and all cases together draw thousands."""


def compare(case: Case, bin_dir: Path, agent: CountingAgent | None = None) -> None:
    """Run a case against the installed plugins, again if a random MAC address looks like one of the case.

    Raises: AssertionError, with the differences.
    """
    skip_without_ptp(case)
    for need in case.get("needs", []):
        if is_missing(need):
            pytest.skip(f"it needs {is_missing(need)}")
    for _ in range(5):
        got = run_case(case, bin_dir, agent)
        if not set(NAMED_MAC.findall(json.dumps(got))) - set(NAMED_MAC.findall(json.dumps(case))):
            break
    differences = runner().differences(case, got)
    assert not differences, "\n".join([case.get("why", ""), *differences])


@cache
def is_missing(need: str) -> str:
    """Return what this machine lacks of it, "" if nothing."""
    return str(runner().missing({"needs": [need]}))


def run_case(case: Case, bin_dir: Path, agent: CountingAgent | None = None) -> list[dict[str, Any]]:
    """Return what the runner's own ``run_case`` returns."""
    if agent is not None:
        agent.forget()
    got: list[dict[str, Any]] = ask_zygote("case", {"case": case, "agent": agent and agent.options()}, bin_dir)
    return got


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


@dataclass(frozen=True)
class CountingAgent:
    """An agent that writes down each call that it handles, its journal, and the state that it leaves (support/case_zygote.py).

    It writes into a directory of the machine's own file system: a case's host ends with the case.
    """

    case: Case
    directory: Path

    @property
    def answered(self) -> Path:
        return self.directory / "answered"

    @property
    def journalled(self) -> Path:
        return self.directory / "journalled"

    def options(self) -> dict[str, Any]:
        """Arguments of its function in the fork."""
        found = {"answered": str(self.answered), "journalled": str(self.journalled)}
        return found | {"directories": more_directories(self.case)}

    def forget(self) -> None:
        self.answered.write_text("")
        self.journalled.unlink(missing_ok=True)

    def events(self) -> list[dict[str, Any]]:
        return events_in(self.journalled)


def compare_with_the_agent(case: Case, bin_dir: Path, tmp_path: Path) -> None:
    """Run a case beside an agent, which every call has to reach; then the scripts that its journals become."""
    agent = CountingAgent(case, tmp_path)
    compare(case, bin_dir, agent)
    assert Counter(agent.answered.read_text().splitlines()) == calls_for_the_agent(case)
    assert unexplained(agent.events()) == []
    compare_scripts(case, agent.events(), bin_dir)


def run_scripts(case: Case, bin_dir: Path, tmp_path: Path) -> None:
    """Run a case that was not recorded, of which every call has to succeed, and the scripts that its journals become."""
    agent = CountingAgent(case, tmp_path)
    got = run_case(case, bin_dir, agent)
    assert [one for one in got if one.get("rc", 0)] == [], got
    assert unexplained(agent.events()) == []
    compare_scripts(case, agent.events(), bin_dir)


def events_in(journalled: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journalled.read_text().splitlines()]


def compare_scripts(case: Case, events: list[dict[str, Any]], bin_dir: Path) -> None:
    """Run the scripts that the case's journals become. Raises: AssertionError if one leaves another state than the call."""
    if runs_other_plugins(case):
        return
    found = ask_zygote("replay", {"case": case, "events": events}, bin_dir)
    assert not found, "\n".join(found)


def unexplained(events: list[dict[str, Any]]) -> list[str]:
    """The changes that an agent wrote down and ``cni-py explain`` could only show as commands."""
    written = [(event["title"], event["line"]) for event in events if "line" in event]
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
    for step in case["steps"]:
        if "plugin" in step and reaches_the_agent(step):
            found[f"{step['plugin']} {step['verb']}"] += 1
    return found


def runs_other_plugins(case: Case) -> bool:
    """Return whether plugins that are not ours make changes in the case, which no journal has."""
    return "/usr/lib/cni" in json.dumps(case["steps"])
