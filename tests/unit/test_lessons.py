"""Lessons: their table, their pages, what a check finds, and the file with the progress. No lab: that is integration/lab."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from cni_py.cli import lesson_commands
from cni_py.cli import main as cli
from cni_py.lab import plan
from cni_py.lab.programs import LabFailed
from cni_py.lab.site import Site
from cni_py.lessons import lesson as lessons
from cni_py.lessons import progress, session
from cni_py.lessons.lesson import LATER, MET, MISSING, Lesson, Requirement
from cni_py.lessons.session import Running
from cni_py.lessons.table import LESSONS, lesson

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "lessons"
FUNCTION = re.compile(r"`(\w+)\(\)`[^|`]* in `(cni_py/[\w/]+\.py)`")
LINES = 400
NO_SITE = cast("Site", None)

each = pytest.mark.parametrize("one", LESSONS, ids=lambda one: one.page)


# --- pages ------------------------------------------------------------------------------------------------------------


def test_every_page_is_a_lesson_and_every_lesson_has_a_page() -> None:
    assert [one.number for one in LESSONS] == list(range(1, 11))
    assert [one.page for one in LESSONS] == sorted(path.name for path in PAGES.glob("*.md"))


@each
def test_page_begins_with_what_it_teaches_and_ends_with_its_exercise(one: Lesson) -> None:
    text = (PAGES / one.page).read_text()
    assert len(text.splitlines()) <= LINES
    begin = (
        f"# {one.title}\n\n*Lesson {one.number} of {len(LESSONS)}, {one.minutes} minutes*\n\n| | |\n|---|---|\n| You learn | "
    )
    assert text.startswith(begin)
    assert re.findall(r"(?m)^\| (You \w+) \|", text) == ["You learn", "You know", "You need"]
    commands = re.findall(r"(?m)^cni-py lesson (.*)$", text)
    assert commands == [f"start {one.number}", f"check {one.number}", f"stop {one.number}"]
    assert text.index("## Exercise") < text.index(f"\ncni-py lesson check {one.number}\n")
    if one is not LESSONS[-1]:
        assert text.rstrip().splitlines()[-1].startswith("Next: ")
        assert f"]({LESSONS[one.number].page})" in text


@cache
def functions(path: str) -> set[str]:
    """Return the functions and methods of a file."""
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


@each
def test_page_points_to_functions_that_exist(one: Lesson) -> None:
    found = FUNCTION.findall((PAGES / one.page).read_text())
    assert found
    assert [f"{name} in {path}" for name, path in found if name not in functions(path)] == []


@each
def test_task_is_printed_and_fits_a_terminal(one: Lesson) -> None:
    text = (PAGES / one.page).read_text()
    for line in one.task.splitlines():
        assert len(line) <= 110
        assert f"    {line}\n" in text
    for requirement in one.requirements:
        assert requirement.hint
        assert not requirement.what.endswith(".")


@each
def test_lab_of_a_lesson_can_be_planned(one: Lesson) -> None:
    arguments: dict[str, Any] = {"backend": "vxlan", "ipv6": False, "datastore": "file", "segments": 1} | dict(one.lab)
    defaults: dict[str, Any] = {
        "ipv4": True,
        "pods": 1,
        "backend_options": {},
        "config": None,
        "flanneld": "",
        "flanneld_options": (),
    }
    settings = plan.make_settings(**defaults | arguments, numbered=True)
    assert "FLANNEL_SUBNET=10.244.1.1/24\n" in plan.former_subnet_file(plan.Node(1, 1), settings)


def test_numbered_subnets_of_both_families() -> None:
    config = {"Network": "10.0.0.0/8", "SubnetLen": 20, "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}
    settings = plan.Settings(2, True, True, "file", 1, 1, config, "", (), numbered=True)
    text = plan.former_subnet_file(plan.Node(2, 1), settings)
    assert "FLANNEL_SUBNET=10.0.32.1/20\n" in text
    assert "FLANNEL_IPV6_SUBNET=fd00:10:244:2::1/64\n" in text


# --- checks -----------------------------------------------------------------------------------------------------------


def found(text: str, *, is_gate: bool = False) -> Requirement:
    return Requirement(f"no {text}", lambda _: text, f"a hint about {text}", is_gate)


def made_of(*requirements: Requirement) -> Lesson:
    return Lesson(1, "page.md", "Title", 1, "task", requirements)


def test_all_that_is_missing_is_found_and_what_builds_on_it_comes_later() -> None:
    asked: list[str] = []
    last = Requirement("last", lambda _: asked.append("last") or "", "", False)
    findings = made_of(found(""), found("a"), found("b", is_gate=True), last).check(NO_SITE)
    assert [finding.state for finding in findings] == [MET, MISSING, MISSING, LATER]
    assert asked == []
    assert findings[1].line() == "missing  no a: a"
    assert lessons.hint_of(findings) == "a hint about a"
    assert not lessons.is_passed(findings)


def test_exercise_is_passed_when_nothing_is_missing() -> None:
    findings = made_of(found("", is_gate=True), found("")).check(NO_SITE)
    assert lessons.is_passed(findings)
    assert lessons.hint_of(findings) == ""


def test_unknown_lesson() -> None:
    assert lesson(10).title
    for number in (0, 11, -1):
        with pytest.raises(LabFailed, match=f"unknown lesson {number}"):
            lesson(number)


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "cni-py" / "lessons.json"


def test_progress_is_kept_below_the_state_directory(state: Path) -> None:
    assert progress.read() == {}
    progress.record(2, progress.STARTED)
    progress.record(2, progress.PASSED)
    before = state.read_text()
    progress.record(2, progress.STARTED)
    assert state.read_text() == before
    assert progress.read()[2].keys() == {progress.STARTED, progress.PASSED}
    assert state.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("/x", "/x/cni-py/lessons.json"),
        ("x", "/home/me/.local/state/cni-py/lessons.json"),
        ("", "/home/me/.local/state/cni-py/lessons.json"),
    ],
)
def test_path_of_progress(monkeypatch: pytest.MonkeyPatch, variable: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_STATE_HOME", variable)
    assert progress.path() == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"one": {}}', '{"1": []}', "7"])
def test_damaged_progress_is_reported_with_its_path(state: Path, text: str) -> None:
    state.parent.mkdir()
    state.write_text(text)
    with pytest.raises(LabFailed, match="is damaged") as failure:
        progress.read()
    assert str(state) in failure.value.hint


def test_list_needs_no_root_and_no_lab(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress.record(3, progress.PASSED)
    assert cli.main(["lesson", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(LESSONS) + 2
    assert re.search(r"^ 3  Addresses on disk .* 20 min  passed \d{4}-\d\d-\d\d$", lines[2])
    assert str(state) in lines[-2]
    assert lines[-1] == "next: cni-py lesson start 1"
    assert cli.main(["lesson", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["lesson"] for row in rows if row["passed"]] == [3]


@pytest.mark.parametrize(
    ("passed", "running", "step"),
    [
        ((), 0, "next: cni-py lesson start 1"),
        ((1, 2), 0, "next: cni-py lesson start 3"),
        ((2,), 0, "next: cni-py lesson start 1"),
        ((1, 2), 5, "lesson 5 is running: cni-py lesson start 5 prints its exercise again"),
        (range(1, 11), 0, "every exercise is passed"),
        (range(1, 11), 3, "lesson 3 is running: cni-py lesson start 3 prints its exercise again"),
    ],
)
def test_list_ends_with_what_to_type_next(
    state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    passed: Iterable[int],
    running: int,
    step: str,
) -> None:
    for number in passed:
        progress.record(number, progress.PASSED)
    monkeypatch.setattr(Running, "has_lab", lambda _: True)
    monkeypatch.setattr(session, "running", lambda: Running(running, None) if running else None)
    assert cli.main(["lesson", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == step


@each
@pytest.mark.parametrize("width", [None, 120, 80, 60, 40])
def test_task_is_folded_to_a_narrow_terminal_and_no_word_is_lost(one: Lesson, width: int | None) -> None:
    lines = lesson_commands.task_lines(one.task, width)
    assert " ".join(lines).split() == one.task.split()
    assert all(line.startswith(lesson_commands.INDENT) for line in lines)
    assert width is None or max(map(len, lines)) <= width


def test_shell_of_the_card_is_where_the_exercise_is_done() -> None:
    """A place that the lesson's lab has; and the node that the task names, where it names one alone."""
    for one in LESSONS:
        assert int(one.place.removeprefix("node")) <= one.lab["nodes"]
        named = set(re.findall(r"node\d", one.task))
        assert len(named) != 1 or named == {one.place}


def test_page_is_named_as_in_the_sources_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lesson_commands.page_of(LESSONS[0]) == str(PAGES / LESSONS[0].page)
    monkeypatch.setattr(lesson_commands, "__file__", "/opt/cni-py/lib/cni_py/cli/lesson_commands.py")
    assert lesson_commands.page_of(LESSONS[0]) == f"docs/lessons/{LESSONS[0].page}"
