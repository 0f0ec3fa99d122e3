"""Progress of a learner: which exercises were started and passed, and when.

Owns: ``lessons.json`` below the user's state directory, ``$XDG_STATE_HOME/cni-py`` or ``~/.local/state/cni-py``. It
outlives labs and reboots; deleting it is harmless.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from cni_py import files
from cni_py.lab.programs import LabFailed

STARTED, PASSED = "started", "passed"


def path() -> str:
    # a relative path in the variable is to be ignored, says the XDG Base Directory specification
    state = os.environ.get("XDG_STATE_HOME", "")
    return f"{state if state.startswith('/') else os.path.expanduser('~/.local/state')}/cni-py/lessons.json"


def read() -> dict[int, dict[str, str]]:
    """Return the dates of each lesson, by STARTED and PASSED. Raises: LabFailed if the file is damaged."""
    try:
        with open(path()) as file:
            raw: Any = json.load(file)
        return {int(number): {str(which): str(date) for which, date in dates.items()} for number, dates in raw.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise LabFailed(
            f'"{path()}" is damaged', str(error), f"rm {path()}: the exercises then count as not started"
        ) from error


def record(number: int, which: str) -> None:
    """Note today's date, unless it is known already. Raises: LabFailed, IOFailure."""
    known = read()
    dates = known.setdefault(number, {})
    if which in dates:
        return
    dates[which] = time.strftime("%Y-%m-%d")
    files.make_directory(os.path.dirname(path()), 0o700)
    files.write(path(), json.dumps(known, indent=1).encode() + b"\n")
