"""Comments on the keys of a plugin's configuration, for ``cni-py config check``: unknown ones, and those in another case.

A runtime passes any key on and a plugin ignores what it does not know, so a mistyped key has no effect and no error.
"""

from __future__ import annotations

from cni_py.config import FOLDED_SPEC_KEYS, SPEC_KEYS, fields_of, member_of
from cni_py.config._schemas import SCHEMAS
from cni_py.jsontext import fold
from cni_py.plugin_table import PLUGINS
from cni_py.spelling import meant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from cni_py.config import Schema


def remarks(plugin: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Yield a warning for each key that has no effect, or is written in another case than documented. Pure."""
    kind = str(member_of(plugin, "type") or "")
    row = PLUGINS.get(kind)
    if row is None:
        yield from _mistyped(kind, where, "")
        return
    yield from _walk(plugin, SCHEMAS[row.model], where, is_plugin=True)
    ipam, delegate = plugin.get("ipam"), plugin.get("delegate")
    if isinstance(ipam, dict):
        yield from _of_ipam(ipam, f"{where}ipam.", "host-local" if kind == "flannel" else "")
    if kind == "flannel" and isinstance(delegate, dict):
        yield from remarks({"type": "bridge"} | delegate, f"{where}delegate.")


def _mistyped(kind: str, where: str, of_kind: str) -> Iterator[str]:
    """Yield a warning for the type of a third-party plugin that is one letter from a name in the table."""
    if words := meant(kind, [name for name, row in PLUGINS.items() if of_kind in ("", row.kind)]):
        yield f'"{where}type" is "{kind}", which is not a plugin of cni-py{words}'


def _of_ipam(ipam: Mapping[str, Any], where: str, default: str) -> Iterator[str]:
    kind = str(ipam.get("type") or default)
    row = PLUGINS.get(kind)
    if row is None:
        yield from _mistyped(kind, where, "ipam")
    if row is not None and row.kind == "ipam":
        field = fields_of(SCHEMAS[row.model])["ipam"]
        yield from _walk(ipam, field[1], where, is_plugin=False)


def _walk(value: Mapping[str, Any], schema: Schema, where: str, *, is_plugin: bool) -> Iterator[str]:
    fields = fields_of(schema)
    names = [*(name for name, _ in fields.values()), *(SPEC_KEYS if is_plugin else ("type",))]
    for key, member in value.items():
        name, inner = fields.get(key) or fields.get(fold(key)) or (FOLDED_SPEC_KEYS.get(fold(key), "") if is_plugin else "", {})
        if not name and key != "type":
            yield f'"{where}{key}" is no key of this plugin and has no effect{meant(key, names)}'
        elif name and name != key:
            yield f'"{where}{key}" is taken for "{name}": write it so'
        if name in ("ipam", "delegate", "args", "runtimeConfig", "prevResult"):  # of other plugins, or of the runtime
            continue
        for item in member if isinstance(member, list) else [member]:
            for one in item if isinstance(item, list) else [item]:
                if isinstance(one, dict) and (of := _object(inner)):
                    yield from _walk(one, of, f"{where}{name}.", is_plugin=False)


def _object(schema: Schema) -> Schema | None:
    """Return the schema of the objects in a field; None if it holds none, or any."""
    while schema.get("type") in ("list", "default", "nullable"):
        schema = schema.get("items_schema") or schema.get("schema") or {}
    return schema if schema.get("type") == "dataclass" else None
