"""The recorded behaviour of the Go plugins (cases/), compared with the installed plugins, a test a case."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_copy_is_up_to_date() -> None:
    """The runner and the cases here are a copy, so that a lone clone can be tested."""
    assert not recorded.outdated(HERE, "golden.py")
