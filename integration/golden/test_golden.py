"""The recorded behaviour of the Go plugins (cases/), compared with the installed plugins, a test a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import recorded

HERE = Path(__file__).resolve().parent


@pytest.mark.netns
@pytest.mark.parametrize(("file", "case"), recorded.parameters(HERE / "cases"))
def test_as_recorded(file: Path, case: recorded.Case, bin_dir: Path) -> None:
    recorded.compare(file, [case], bin_dir)


@pytest.mark.netns
@pytest.mark.timeout(240)
@pytest.mark.parametrize("file", recorded.load(HERE / "cases"), ids=lambda file: file.stem)
def test_as_recorded_with_the_agent(file: Path, bin_dir: Path, tmp_path: Path) -> None:
    recorded.compare_with_the_agent(file, bin_dir, tmp_path)


def test_copy_is_up_to_date() -> None:
    """The runner and the cases here are a copy, so that a lone clone can be tested."""
    assert not recorded.outdated(HERE, "golden.py")
