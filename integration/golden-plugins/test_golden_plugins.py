"""The recorded behaviour of the Go plugins beside flannel's five (cases/), compared with the installed plugins, a test a case.

A case runs as soon as the tree has every plugin that it calls or delegates to; integration/conftest.py says how many did.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_py.plugin_table import PLUGINS
from support import recorded

HERE = Path(__file__).resolve().parent


@pytest.mark.netns
@pytest.mark.parametrize("case", recorded.parameters(HERE / "cases"))
def test_as_recorded(case: recorded.Case, bin_dir: Path) -> None:
    recorded.compare(case, bin_dir)


@pytest.mark.netns
@pytest.mark.parametrize("case", recorded.parameters(HERE / "cases"))
def test_as_recorded_with_the_agent(case: recorded.Case, bin_dir: Path, tmp_path: Path) -> None:
    recorded.compare_with_the_agent(case, bin_dir, tmp_path)


def test_a_case_is_skipped_for_missing_plugins_alone() -> None:
    """Every plugin of the plugin table has its cases run: those that call nothing else, whatever their number."""
    assert recorded.called_plugins(HERE / "cases") >= {"ptp", "macvlan", "dhcp", "sbr"}
    for parameter in recorded.parameters(HERE / "cases"):
        (case,) = parameter.values
        called = {step["plugin"] for step in case["steps"] if "plugin" in step}
        reasons = " ".join(mark.kwargs["reason"] for mark in parameter.marks)
        assert all(plugin in reasons for plugin in called - PLUGINS.keys()), case["name"]
        assert not any(f" {plugin}," in f"{reasons}," for plugin in PLUGINS), case["name"]


def test_copy_is_up_to_date() -> None:
    """The runner and the cases here are a copy, so that a lone clone can be tested."""
    assert not recorded.outdated(HERE, "golden.py", "uml.sh")
