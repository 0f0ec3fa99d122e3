"""Programs of the system that a test needs: skipped where one is missing."""

from __future__ import annotations

import pytest

from cni_py.lab.programs import Tool, find_tool


def need(tools: dict[str, Tool]) -> None:
    """Skip the test where one of these is missing, or is another program of the same name."""
    for name, tool in tools.items():
        if find_tool(name) is None:
            pytest.skip(f"no {name} (package {tool.package})")
