"""The kinds of conf/kubernetes against the schemas of the Kubernetes API (schema.json, by make_schema.py)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema


@cache
def _schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text())
    return found


def faults(item: dict[str, Any]) -> list[str]:
    """Return where an object does not fit its kind's schema."""
    name = _schema()["kinds"].get(f"{item.get('apiVersion')} {item.get('kind')}")
    if name is None:
        return [f"no such kind: {item.get('apiVersion')} {item.get('kind')}"]
    whole = {"$ref": f"#/definitions/{name}", "definitions": _schema()["definitions"]}
    errors = jsonschema.Draft7Validator(whole).iter_errors(item)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
