"""Hosts that execute plugins; and a line at the end of a run: how many of the recorded cases of the other plugins ran."""

from __future__ import annotations

import pytest

from support.namespaces import Host

CASES = "integration/golden-plugins/test_golden_plugins.py::test_as_recorded["


@pytest.fixture
def host(executing_host: Host) -> Host:
    """Plugins here are executed: what others call is the executable."""
    return executing_host


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    def count(*outcomes: str) -> int:
        reports = [report for outcome in outcomes for report in terminalreporter.getreports(outcome)]
        return sum(report.nodeid.startswith(CASES) for report in reports)

    ran = count("passed", "failed")
    if chosen := ran + count("skipped"):
        terminalreporter.write_line(f"golden-plugins: {ran} of {chosen} recorded cases ran")
