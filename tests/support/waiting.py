"""Waiting for an event, never for a time: a condition is checked until it is true, or a deadline has passed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
"""Factor of every deadline: integration/kernel sets it, for its guests are slow."""
SECONDS = 60.0 * PATIENCE
"""The deadline: what comes at all comes long before, even where the machine has a lot else to do."""
LOOK_SECONDS = 0.02


class Stuck(AssertionError):
    """A process has not ended in the time it may take: it hangs, or it is stopped."""


def until(condition: Callable[[], object], what: str | Callable[[], str] = "", seconds: float = SECONDS) -> float:
    """Wait until it is true. Returns: how long that took. Raises: AssertionError, with ``what`` as it is then."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, (
            f"not within {seconds:g} s: {what() if callable(what) else what or condition}"
        )
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - began
