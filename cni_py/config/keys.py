"""Keys of a configuration as Go's encoding/json takes them, for the calls in which that makes a difference.

Imported only for a key in another case, for a repeated object, and for a key that is unknown. Into a structure Go decodes a
repeated object member by member, over what the first one has set; into a map, as flannel's ``delegate``, whole members replace
those of the same key. A null undoes what an earlier key has set in a list, a map or a pointer, and nothing else.
Source: encoding/json decode.go.
"""

from __future__ import annotations

from cni_py.journal import note
from cni_py.jsontext import Received, fold
from cni_py.spelling import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Schema = dict[str, Any]
    Fields = dict[str, tuple[str, Schema]]


class Members(list[tuple[str, "Any"]]):
    """Members of an object in the order of the text, with repetitions."""


def canonical(conf: Mapping[str, Any], fields: Fields, others: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration with its top-level keys in their fields' case, and its objects without repetitions. Pure.

    Args:
        others: further known keys, by themselves folded.
    """
    gathered: dict[str, Any] = {}
    for key, member in _in_text_order(conf):
        name, schema = _field(key, fields, others)
        before = gathered.pop(name, None)
        gathered[name] = _after(before, member, schema)
    return {
        name: _plain(member, is_map=_field(name, fields, others)[1].get("type") == "dict") for name, member in gathered.items()
    }


def _field(key: str, fields: Fields, others: Mapping[str, str]) -> tuple[str, Schema]:
    return fields.get(key) or fields.get(fold(key)) or (others.get(fold(key), key), {})


def _after(before: Any, member: Any, schema: Schema) -> Any:
    """Return what a field holds after one more member has set it."""
    if member is None:
        return None if schema.get("type") in ("list", "dict") or schema.get("nullable") else before
    pairs, earlier = _pairs(member), _pairs(before)
    return member if pairs is None or earlier is None else Members([*earlier, *pairs])


def _pairs(value: Any) -> Iterable[tuple[str, Any]] | None:
    return value.items() if isinstance(value, dict) else value if isinstance(value, Members) else None


def _in_text_order(conf: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if not isinstance(conf, Received):
        return conf.items()
    import json  # 5 ms

    members: Members = json.loads(conf.text, object_pairs_hook=Members)
    return members


def _plain(value: Any, *, is_map: bool) -> Any:
    """Return dicts and lists, the last of equal keys at its place."""
    if isinstance(value, Members):
        out: dict[str, Any] = {}
        for key, member in value:
            before = out.pop(key, None)
            out[key] = member if is_map else _after(before, member, {})
        return {key: _plain(member, is_map=is_map) for key, member in out.items()}
    if isinstance(value, list):
        return [_plain(item, is_map=is_map) for item in value]
    return value


def members(
    raw: Mapping[str, Any], schema: Schema, fields_of: Callable[[Schema], Fields], others: Mapping[str, str]
) -> dict[str, Any]:
    """Return the members that the model has, in its case and without nulls. Pure."""
    return _set({}, canonical(raw, fields_of(schema), others), schema, fields_of)


def _set(out: dict[str, Any], raw: Mapping[str, Any], schema: Schema, fields_of: Callable[[Schema], Fields]) -> dict[str, Any]:
    """Set the fields of a model from an object, over those that are set."""
    fields = fields_of(schema)
    for key, member in raw.items():
        name, inner = fields.get(key) or fields.get(fold(key)) or ("", {})
        if not name:
            continue
        out[name] = _value(out.get(name), member, inner, fields_of)
        if out[name] is None:
            del out[name]
    return out


def _value(before: Any, member: Any, schema: Schema, fields_of: Callable[[Schema], Fields]) -> Any:
    kind = schema["type"]
    if member is None:
        return _after(before, None, schema)
    if kind == "dataclass" and isinstance(member, dict):
        return _set(dict(before) if isinstance(before, dict) else {}, member, schema, fields_of)
    if kind == "list" and isinstance(member, list):
        items = schema["items_schema"]
        return [_value(None, item, items, fields_of) for item in member]
    if kind == "dict" and isinstance(member, dict) and isinstance(before, dict):
        return before | member
    return member


# ---- keys that are probably mistyped ------------------------------------------------------------


def warn(unknown: Iterable[tuple[str, str, Fields]], others: Iterable[str]) -> None:
    """Note in the journal each unknown key that is one letter from a known one."""
    for where, key, fields in unknown:
        meant = nearest(key, [*(name for name, _ in fields.values()), *(others if not where else ())])
        if meant:
            note(f'warning: unknown key "{where}{key}" has no effect: is "{where}{meant}" meant?')


def meant(key: str, known: Iterable[str]) -> str:
    """Return the known key that is ``key`` in another case, or one letter from it; "" if none is. Pure."""
    return next((name for name in known if fold(name) == fold(key)), "") or nearest(key, known)
