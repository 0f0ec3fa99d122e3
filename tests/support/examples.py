"""The number of examples of a property: few in `make test`, whose processes have other work, many in `make test-long`."""

from __future__ import annotations

FACTOR = 1
"""The value of ``--longer``; conftest.py sets it before test files are imported."""


def examples(number: int) -> int:
    """Return the number of examples for ``settings(max_examples=…)``: ``--longer N`` tries N times as many."""
    return number * FACTOR
