"""The agent's log: lines on standard error, which a service manager keeps."""

from __future__ import annotations

import sys


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
