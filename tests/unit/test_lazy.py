"""lazy.py: a module of a large package without the package."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.lazy import without_init

NAME = "cni_py_test_large"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose __init__ says that it ran, with a module and a package below."""
    directory = tmp_path / NAME
    (directory / "sub").mkdir(parents=True)
    (directory / "__init__.py").write_text("ran = True\nfrom cni_py_test_large.small import value\n")
    (directory / "small.py").write_text("value = 7\n")
    (directory / "sub" / "__init__.py").write_text("")
    (directory / "sub" / "deep.py").write_text("from cni_py_test_large.small import value\n")
    (directory / "broken.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield directory
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_module_is_there_and_the_package_did_not_run() -> None:
    with without_init(NAME):
        deep = importlib.import_module(f"{NAME}.sub.deep")
        assert not hasattr(sys.modules[NAME], "ran")
    assert deep.value == 7
    assert NAME not in sys.modules
    assert f"{NAME}.small" in sys.modules


@pytest.mark.usefixtures("package")
def test_package_can_be_imported_later_and_finds_its_modules_loaded() -> None:
    with without_init(NAME):
        small = importlib.import_module(f"{NAME}.small")
    real = importlib.import_module(NAME)
    assert real.ran
    assert sys.modules[f"{NAME}.small"] is small


@pytest.mark.usefixtures("package")
def test_package_that_is_there_stays() -> None:
    real = importlib.import_module(NAME)
    with without_init(NAME):
        assert sys.modules[NAME] is real
        importlib.import_module(f"{NAME}.sub.deep")
    assert sys.modules[NAME] is real


@pytest.mark.usefixtures("package")
def test_second_block_finds_the_modules_of_the_first() -> None:
    for _ in range(2):
        with without_init(NAME):
            assert importlib.import_module(f"{NAME}.small").value == 7
        assert NAME not in sys.modules


@pytest.mark.usefixtures("package")
def test_stand_in_goes_after_a_failure_too() -> None:
    with pytest.raises(RuntimeError, match="broken"), without_init(NAME):
        importlib.import_module(f"{NAME}.broken")
    assert NAME not in sys.modules
    assert importlib.import_module(NAME).ran


def test_package_that_is_not_installed() -> None:
    with pytest.raises(ImportError), without_init("cni_py_test_missing"):
        importlib.import_module("cni_py_test_missing.x")
    assert "cni_py_test_missing" not in sys.modules


DATETIME = """
import contextlib, sys
sys.path.insert(0, {root!r})
from cni_py.lazy import only_c_datetime
import _datetime
with contextlib.suppress(KeyError), only_c_datetime():
    assert sys.modules["datetime"] is _datetime
    {within}
assert "datetime" not in sys.modules
import datetime
assert datetime.datetime is _datetime.datetime and datetime.__file__
with only_c_datetime():
    assert sys.modules["datetime"] is datetime
assert sys.modules["datetime"] is datetime
"""


@pytest.mark.parametrize("within", ["pass", "raise KeyError"])
def test_c_part_of_datetime_stands_in(within: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-IS", "-c", DATETIME.format(root=root, within=within)], check=True)
