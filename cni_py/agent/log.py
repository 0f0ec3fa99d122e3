"""The agent's log: lines on standard error, which a service manager keeps."""

from __future__ import annotations

import sys

from cni_py.journal import printable


def log(line: str) -> None:
    """Write a line: what pods named cannot steer the terminal that shows it."""
    print(printable(line), file=sys.stderr, flush=True)
