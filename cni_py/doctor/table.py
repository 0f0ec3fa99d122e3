"""The table of rules in docs/doctor.md, from the catalogue; a test compares the page with it."""

from __future__ import annotations

from cni_py.doctor.catalogue import RULES


def render() -> str:
    """Return the rows of the table."""
    return "".join(f"| `{one.name}` | {one.severity} | {one.checks} | {one.why} | {one.fixes} |\n" for one in RULES)
