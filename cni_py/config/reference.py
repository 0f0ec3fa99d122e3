"""Configuration reference, generated from models.py: a table per plugin, for the terminal and for docs/configuration.md."""

from __future__ import annotations

import json

from cni_py.config.models import PLUGIN_MODELS, NetworkConfig
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_HEAD = ("Key", "Type", "Default", "Example", "Meaning")


class Row(Value):
    """Key of a configuration. ``key`` is its path: ``ipam.ranges[][].subnet``."""

    key: str
    type: str
    default: str
    example: str
    description: str


def rows(model: type[NetworkConfig], without: frozenset[str] = frozenset()) -> list[Row]:
    """Return the keys of a model and of its nested objects, in order."""
    schema = model.model_json_schema(by_alias=True)
    return list(_walk(schema, schema.get("$defs", {}), "", without))


def plugin_rows(plugin: str) -> list[Row]:
    """Return the keys of a plugin without those that all plugins share."""
    shared = frozenset(row.key for row in rows(NetworkConfig))
    return rows(PLUGIN_MODELS[plugin], shared)


def render_reference() -> str:
    """Return the text of docs/configuration.md."""
    sections = [_INTRODUCTION, "## Keys of every plugin\n", _markdown(rows(NetworkConfig))]
    for plugin in PLUGIN_MODELS:
        own = plugin_rows(plugin)
        sections += [f"\n## {plugin}\n", _markdown(own) if own else "It has no other keys.\n"]
    return "\n".join(sections)


def render_text(plugin: str = "") -> Iterator[str]:
    """Render the tables for a terminal: all plugins, or one with the shared keys."""
    yield from _text("every plugin", rows(NetworkConfig))
    for name in [plugin] if plugin else PLUGIN_MODELS:
        yield ""
        yield from _text(name, plugin_rows(name))


def _walk(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str, without: frozenset[str]) -> Iterator[Row]:
    for name, field in schema.get("properties", {}).items():
        if prefix + name in without:
            continue
        needed = name in schema.get("required", ())
        yield _row(prefix + name, field, definitions, needed=needed)
        inner, depth = _inner(field, definitions)
        if inner is not None:
            yield from _walk(inner, definitions, f"{prefix}{name}{'[]' * depth}.", without)


def _row(key: str, field: Mapping[str, Any], definitions: Mapping[str, Any], *, needed: bool) -> Row:
    kind = _type(field, definitions)
    example = field["examples"][0] if field.get("examples") else True if kind == "boolean" else None
    return Row(
        key,
        kind,
        "required" if needed else _default(field.get("default"), _inner(field, definitions)[0] is not None),
        "" if example is None else json.dumps(example, ensure_ascii=False),
        " ".join(field.get("description", "").split()),
    )


def _default(value: object, is_model: bool) -> str:
    """Format the default; an object whose keys have rows of their own defaults to {}."""
    return "none" if value in (None, "") else "{}" if is_model and isinstance(value, dict) else json.dumps(value)


def _inner(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, int]:
    """Return the nested object with keys of its own, and the number of lists around it."""
    depth = 0
    field = _not_null(field)
    while field.get("type") == "array":
        field, depth = _not_null(field["items"]), depth + 1
    reference = field.get("$ref", "")
    return (definitions[reference.rpartition("/")[2]] if reference else None), depth


def _not_null(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a nullable field without the null."""
    choices = [choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"]
    return choices[0] if choices else field


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    field = _not_null(field)
    if "$ref" in field:
        return "object"
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    kind: str = field.get("type", "any")
    if kind == "array":
        return f"list of {_plural(_type(field['items'], definitions))}"
    low, high = field.get("minimum"), field.get("maximum")
    return kind + (f", {low} to {high}" if high is not None else f", {low} or more" if low is not None else "")


def _plural(kind: str) -> str:
    first, of, rest = kind.partition(" of ")
    return f"{first}s{of}{rest}"


def _markdown(table: list[Row]) -> str:
    lines = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    for row in table:
        cells = (f"`{row.key}`", row.type, _code(row.default), _code(row.example), row.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return text if text in ("", "none", "required") else f"`{text}`"


def _text(title: str, table: list[Row]) -> Iterator[str]:
    yield f"{title}:" + ("" if table else " no other keys")
    for row in table:
        facts = [row.type, row.default if row.default == "required" else f"default {row.default}"]
        yield f"  {row.key}  ({', '.join(facts)})"
        if row.description:
            yield f"      {row.description}"
        if row.example:
            yield f"      example: {row.example}"


_INTRODUCTION = """\
# Configuration reference

<!-- Generated from cni_py/config/models.py by `cni-py config --markdown`; do not edit. A test fails when it is out of date. -->

Every key that the plugins read, with its type, default and an example. A plugin's keys belong in its object
of a network's `plugins` list (for the keys around that list see [cni-py](cni-py.md#configuration-files)); those of
an IPAM plugin belong in `ipam`. Keys are taken in any case, as by the Go plugins: of several that differ in case alone, and of
a repeated one, the last in the text counts. (In the object around `plugins` they are exact.) Unknown keys are accepted and
ignored; one that is a letter from a known key is a warning in the journal, and in `cni-py add … --explain`. A value of the
wrong type is rejected (error code 7), and the message names the key. A `null` counts as absent.

In the column *Key*, `a.b` is the key `b` of the object `a`, and `a[].b` the key `b` of each object in the
list `a`. `cni-py config` prints the same tables.

A typical network for flannel, in `/etc/cni/net.d/10-flannel.conflist`:

```json
{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
```
"""
