"""``--fix``: run the commands of findings that may be run, one after the other, and keep what became of each.

A command is run without a shell, as it is printed: by the system's program of that name, or by this cni-py. What a finding
offers for it (:attr:`Finding.fix`) restores what flanneld or a plugin has made, sets a kernel parameter, or calls a command of
cni-py that is safe by itself; it never deletes a rule, a file or a route that another program made, and never ends a process.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_py import program
from cni_py.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.doctor.findings import Command, Finding

DONE = "done"


@dataclass(frozen=True, slots=True)
class Fixed:
    """``outcome``: done, or why it failed."""

    command: Command
    rules: tuple[str, ...]
    outcome: str

    def as_json(self) -> dict[str, Any]:
        return {"command": list(self.command), "rules": list(self.rules), "outcome": self.outcome}


def commands(findings: Iterable[Finding]) -> dict[Command, list[str]]:
    """Return what would be run, in order and each once, with the rules that ask for it."""
    found: dict[Command, list[str]] = {}
    for finding in findings:
        for command in finding.fix:
            found.setdefault(command, []).append(finding.rule)
    return found


def in_words(command: Command) -> str:
    return shlex.join(command)


def run(findings: Iterable[Finding], note: Callable[[str], None]) -> list[Fixed]:
    """Run them; ``note`` is called with each before it is run, as a person would type it."""
    fixed = []
    for command, rules in commands(findings).items():
        note(in_words(command))
        fixed.append(Fixed(command, tuple(dict.fromkeys(rules)), _run(command)))
    return fixed


def _run(command: Command) -> str:
    """Returns: :data:`DONE`, or why it failed."""
    name, *arguments = command
    path = sys.argv[0] if name == "cni-py" and "/" in sys.argv[0] else program.find_system(name)
    if path is None:
        return f'"{name}" is not installed'
    try:
        status, _, words = program.run_captured([path, *arguments])
    except CniError as error:
        return str(error)
    return DONE if status == 0 else words.splitlines()[-1] if words else program.describe(status)
