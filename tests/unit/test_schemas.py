"""The generated modules are up to date, and the schemas are plain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_py import dispatch
from cni_py.config import models
from cni_py.config._schemas import SCHEMAS, Parsed
from cni_py.plugin_table import PLUGINS

ROOT = Path(__file__).resolve().parents[2]


def test_generated_modules_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, "integration/generate", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr


def test_every_model_has_its_schema() -> None:
    assert list(SCHEMAS) == [model.__name__ for model in models.MODELS]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_has_a_model(plugin: str) -> None:
    module = dispatch.load(plugin)
    assert PLUGINS[plugin].model == module.CONFIG
    assert module.CONFIG in SCHEMAS
    assert all(callable(getattr(module, name)) for name in ("add", "delete", "check", "gc", "status"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_literals_and_parsed(name: str) -> None:
    """Nothing that would have to be imported."""

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, member in value.items():
                assert isinstance(key, str)
                walk(member)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        else:
            assert value in (Parsed, dict, list, None) or type(value) in (str, int, bool), value

    walk(SCHEMAS[name])


def test_schemas_import_nothing() -> None:
    script = "import sys; before = set(sys.modules); exec(sys.stdin.read()); print(*sorted(set(sys.modules) - before))"
    source = (ROOT / "cni_py" / "config" / "_schemas.py").read_text()
    done = subprocess.run([sys.executable, "-c", script], input=source, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"__future__"}
