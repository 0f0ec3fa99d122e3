"""Commands of ``cni-py lesson``: printing and exit status. The work is in lessons/; options are in ``cni_py.cli.arguments``."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from cni_py.cli.lab_commands import alone
from cni_py.cli.output import EXIT_FAILED, as_typed, say, show, show_json
from cni_py.lab.lab import DIRECTORY
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
    show(f"pages: {page_of(LESSONS[0]).rpartition('/')[0]}; progress: {progress.path()}; begin with: cni-py lesson start 1")
    return 0


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
    """Build the lab and print the task; on SIGTERM and Ctrl-C nothing is left."""
    one = lesson(options.number)
    _require_root("start")
    former = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with alone(DIRECTORY):
            session.start(one, _progress)
    finally:
        signal.signal(signal.SIGTERM, former)
    progress.record(one.number, progress.STARTED)
    show(f"\nlesson {one.number}: {one.title}\n  page      {page_of(one)}\n  exercise")
    for line in one.task.splitlines():
        show(f"{INDENT}{line}")
    for label, words in (
        ("a shell", "lab exec node1"),
        ("check", f"lesson check {one.number}"),
        ("end", f"lesson stop {one.number}"),
    ):
        show(as_typed(f"  {label:9} cni-py {words}"))
    return 0


def _progress(line: str) -> None:
    show(f"  {line}")
    sys.stdout.flush()


def check(options: argparse.Namespace) -> int:
    one = lesson(options.number)
    _require_root("check")
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
        show(f"  {finding.line()}")
    missing = sum(finding.state == MISSING for finding in findings)
    if not missing:
        show(as_typed(f"passed. The end: cni-py lesson stop {one.number}"))
    elif hint:
        show(f"hint: {as_typed(hint)}")
    else:
        show(as_typed(f"{missing} missing; a hint: cni-py lesson check {one.number} --hint"))


def stop(options: argparse.Namespace) -> int:
    one = lesson(options.number)
    _require_root("stop")
    running = session.running()
    if running is not None and running.number not in (one.number, 0):
        hint = f"cni-py lesson stop {running.number}"
        raise LabFailed(f"lesson {running.number} is running, not lesson {one.number}", hint=hint)
    with alone(DIRECTORY):
        existed = session.stop()
    show(f"lesson {one.number} removed" if existed else f"lesson {one.number} is not running")
    return 0


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        hint = f"sudo cni-py lesson {verb}"
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
