"""Commands of ``cni-py lesson``: printing and exit status. The work is in lessons/; options are in ``cni_py.cli.arguments``."""

from __future__ import annotations

import os
import signal
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from cni_py.cli.lab_commands import LABEL_WIDTH, alone
from cni_py.cli.output import EXIT_FAILED, as_root, as_typed, folded, say, show, show_folded, show_json
from cni_py.lab.lab import DIRECTORY
from cni_py.lab.machine import hint_inside
from cni_py.lab.programs import LabFailed
from cni_py.lessons import progress, session
from cni_py.lessons.lesson import MISSING, hint_of, is_passed
from cni_py.lessons.table import LESSONS, lesson

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cni_py.lessons.lesson import Finding, Lesson

PAGES = "docs/lessons"
INDENT = "    "
STATE_WIDTH = 9
"""Columns of the state in front of a requirement."""


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises: LabFailed."""
    return _COMMANDS[options.lesson_command](options)


def list_(options: argparse.Namespace) -> int:
    rows = [_row(one) for one in LESSONS]
    if options.json:
        show_json(rows)
        return 0
    width = max(len(row["title"]) for row in rows)
    for row in rows:
        show(f"{row['lesson']:>2}  {row['title']:{width}}  {row['minutes']} min  {row['state']}".rstrip())
    show_folded(f"pages: {page_of(LESSONS[0]).rpartition('/')[0]}; progress: {progress.path()}")
    show(as_typed(_next_step(rows)))
    return 0


def _next_step(rows: list[dict[str, Any]]) -> str:
    """Return what a learner types next, by the rows of the list."""
    running = next((row["lesson"] for row in rows if row["running"]), None)
    if running is not None:
        return f"lesson {running} is running: cni-py lesson start {running} prints its exercise again"
    left = next((row["lesson"] for row in rows if not row["passed"]), None)
    return "every exercise is passed" if left is None else f"next: cni-py lesson start {left}"


def _row(one: Lesson) -> dict[str, Any]:
    dates, running = progress.read().get(one.number, {}), session.running()
    passed, started = dates.get(progress.PASSED), dates.get(progress.STARTED)
    is_running = running is not None and running.number == one.number and running.has_lab()
    states = [f"passed {passed}" if passed else f"started {started}" if started else "", "running" if is_running else ""]
    return {
        "lesson": one.number,
        "title": one.title,
        "minutes": one.minutes,
        "page": page_of(one),
        "started": started,
        "passed": passed,
        "running": is_running,
        "state": ", ".join(filter(None, states)),
    }


def page_of(one: Lesson) -> str:
    """Return the path of a lesson's page: in the checkout that this code belongs to, or as it is named in the sources."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = f"{checkout}/{PAGES}/{one.page}"
    return path if os.path.exists(path) else f"{PAGES}/{one.page}"


def start(options: argparse.Namespace) -> int:
    """Build the lab and print the task; on SIGTERM and Ctrl-C nothing is left. The lab of a lesson that runs stays as it is."""
    one = lesson(options.number)
    _require_root(options)
    former = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with alone(DIRECTORY):
            is_new = session.start(one, _progress)
    finally:
        signal.signal(signal.SIGTERM, former)
    progress.record(one.number, progress.STARTED)
    show("" if is_new else f"lesson {one.number} is running already, and its lab is unchanged\n")
    _show_exercise(one)
    return 0


def _progress(line: str) -> None:
    show_folded(f"  {line}", LABEL_WIDTH)
    sys.stdout.flush()


def _show_exercise(one: Lesson) -> None:
    show(f"lesson {one.number}: {one.title}\n  page      {page_of(one)}\n  exercise")
    for line in task_lines(one.task, get_terminal_size().columns if sys.stdout.isatty() else None):
        show(line)
    for label, words in (
        ("a shell", f"lab exec {one.place}"),
        ("check", f"lesson check {one.number}"),
        ("end", f"lesson stop {one.number}"),
    ):
        show(as_typed(f"  {label:9} cni-py {words}"))


def task_lines(task: str, width: int | None) -> list[str]:
    """Return the lines of a task: as they are written if they fit, else folded to the width."""
    lines = [f"{INDENT}{line}" for line in task.splitlines()]
    if width is None or max(map(len, lines)) <= width:
        return lines
    return folded(INDENT + " ".join(task.split()), width)


def check(options: argparse.Namespace) -> int:
    _require_root(options)
    one = lesson(_number(options))
    findings = one.check(session.open_lab(one.number))
    passed = is_passed(findings)
    if passed:
        progress.record(one.number, progress.PASSED)
    hint = hint_of(findings) if options.hint else ""
    if options.json:
        rows = [finding.as_json() for finding in findings]
        show_json({"lesson": one.number, "passed": passed, "requirements": rows} | ({"hint": hint} if hint else {}))
    else:
        _show_findings(one, findings, hint)
    return 0 if passed else EXIT_FAILED


def _show_findings(one: Lesson, findings: list[Finding], hint: str) -> None:
    show(f"lesson {one.number}: {one.title}")
    for finding in findings:
        show_folded(f"  {finding.line()}", STATE_WIDTH)
    missing = sum(finding.state == MISSING for finding in findings)
    if not missing:
        show(as_typed(f"passed; the end: cni-py lesson stop {one.number}"))
    elif hint:
        show_folded(f"hint: {as_typed(hint)}", 4)
    else:
        show(as_typed(f"{missing} missing; a hint: cni-py lesson check {one.number} --hint"))


def _number(options: argparse.Namespace) -> int:
    """Return the number that was given, else that of the lesson that runs. Raises: LabFailed."""
    if options.number is not None:
        return int(options.number)
    found = session.running()
    if found is None or not found.number:
        raise session.not_running(None)
    return found.number


def stop(options: argparse.Namespace) -> int:
    _require_root(options)
    wanted = None if options.number is None else lesson(options.number).number
    running = session.running()
    if running is None and hint_inside():
        raise session.not_running(wanted)
    if running is not None and wanted is not None and running.number not in (wanted, 0):
        hint = f"cni-py lesson stop {running.number}"
        raise LabFailed(f"lesson {running.number} is running, not lesson {wanted}", hint=hint)
    with alone(DIRECTORY):
        existed = session.stop()
    stopped = wanted or (running.number if running is not None else 0)
    if existed:
        show(f"lesson {stopped} removed" if stopped else "the lesson is removed")
    else:
        show(f"lesson {stopped} is not running" if stopped else "no lesson is running")
    return 0


def _require_root(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        hint = as_root(options.typed)
        raise LabFailed("cni-py lesson must be run as root: it creates network, mount and PID namespaces", hint=hint)


def _interrupt(*_: object) -> None:
    say("terminated")
    sys.exit(128 + signal.SIGTERM)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": list_,
    "start": start,
    "check": check,
    "stop": stop,
}
