"""Every module of the plugin table has the functions of `dispatch.Plugin`, and takes the model that its row names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_py.plugin_table import PLUGINS

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import cni_py.config.models\nimport cni_py.dispatch\n"
ASSIGNED = "import {module}\n{name}: cni_py.dispatch.Plugin[cni_py.config.models.{model}] = {module}\n"

pytestmark = pytest.mark.timeout(300)
"""mypy reads all of cni_py where `make check` has not been here before."""


@pytest.fixture
def mypy(tmp_path: Path) -> Callable[[str], str]:
    """Return mypy's output for these lines, empty without errors."""

    def run(lines: str) -> str:
        program = tmp_path / "program.py"
        program.write_text(IMPORTS + lines)
        env = os.environ | {"MYPYPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-m", "mypy", program], cwd=ROOT, env=env, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return run


def test_modules_are_plugins(mypy: Callable[[str], str]) -> None:
    rows = enumerate(PLUGINS.values())
    assert mypy("".join(ASSIGNED.format(name=f"plugin{n}", module=row.module, model=row.model) for n, row in rows)) == ""


@pytest.mark.parametrize(
    ("module", "model"), [("cni_py.plugins.main.bridge.plan", "BridgeConfig"), ("cni_py.plugins.main.bridge", "FlannelConfig")]
)
def test_another_module_or_model_is_refused(mypy: Callable[[str], str], module: str, model: str) -> None:
    assert "Incompatible types in assignment" in mypy(ASSIGNED.format(name="plugin", module=module, model=model))
