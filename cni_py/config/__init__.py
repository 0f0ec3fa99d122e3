"""Read and validate configurations (CNI spec section 1) with pydantic's core alone.

The models are in models.py; importing pydantic for them would cost a call 70 ms, its compiled
core with a ready schema costs 2 (docs/decisions/0003-configuration.md). :func:`parse` returns an
object with the model's fields as attributes.

Keys are matched as Go's encoding/json matches them: a key in any case sets its field, and of several the last
in the text wins. A configuration with a key in another case, or with a repeated object, is rare; ``keys.py``, which is
imported only then, brings it into the models' case.
"""

from __future__ import annotations

from cni_py.config._schemas import SCHEMAS
from cni_py.errors import DecodingFailure, InvalidConfig
from cni_py.journal import current
from cni_py.jsontext import Received, fold
from cni_py.lazy import only_c_datetime, without_init
from cni_py.plugin_table import PLUGINS

with without_init("pydantic_core"), only_c_datetime():
    from pydantic_core._pydantic_core import SchemaValidator, ValidationError, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Fields = dict[str, tuple[str, "Schema"]]
    Schema = dict[str, Any]

MAX_BYTES = 4 << 20
"""Maximum size of a configuration in bytes: a GC of 10,000 attachments needs one."""

SPEC_KEYS = (
    "cniVersion", "name", "type", "ipam", "dns", "args", "capabilities", "runtimeConfig", "prevResult",
    "cni.dev/valid-attachments", "cni.dev/attachments",
)  # fmt: skip
"""Keys that any plugin may get; a plugin's model has those that it reads."""
FOLDED_SPEC_KEYS = {fold(key): key for key in SPEC_KEYS}
_OBJECTS = (b'"ipam"', b'"args"', b'"dns"', b'"runtimeConfig"', b'"prevResult"', b'"delegate"', b'"cni"')
_LIMITS = ("greater_than_equal", "less_than_equal", "literal_error")
"""Types of pydantic's errors for a value of the right type."""
_FOREIGN = ("IpamType", *[row.model for row in PLUGINS.values() if row.kind == "ipam"])
"""Models of objects with keys of other plugins: an unknown key in them is probably no mistake."""

_validators: dict[str, SchemaValidator] = {}
_fields: dict[int, Fields] = {}


def decode(data: bytes, what: str = "network config") -> dict[str, Any]:
    """Decode a JSON object. Raises: DecodingFailure (code 6)."""
    if len(data) > MAX_BYTES:
        raise DecodingFailure(f"{what} is larger than {MAX_BYTES} bytes")
    try:
        value = from_json(data, allow_inf_nan=False, cache_strings="keys")  # otherwise an agent keeps names that never recur
    except ValueError as error:
        raise DecodingFailure(f"error unmarshall {what}: {error}", hint=f"{what} must be a JSON object") from error
    if not isinstance(value, dict):
        raise DecodingFailure(f"error unmarshall {what}: it is a JSON {type(value).__name__}, not an object")
    return value


def decode_for(model: str, data: bytes) -> Mapping[str, Any]:
    """Decode the configuration of a plugin, with its top-level keys in the model's case. Raises: DecodingFailure (code 6)."""
    received = Received(decode(data))
    received.text = data
    if any(data.count(key) > 1 for key in _OBJECTS):
        from cni_py.config import keys

        return keys.canonical(received, fields_of(SCHEMAS[model]), FOLDED_SPEC_KEYS)
    return canonical(model, received)


def canonical(model: str, conf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with its top-level keys in the model's case: itself if they are. Pure."""
    fields = fields_of(SCHEMAS[model])
    for key in conf:
        field = fields.get(key)
        if (field is not None and field[0] == key) or key in SPEC_KEYS:
            continue
        if field is not None or fold(key) in fields or fold(key) in FOLDED_SPEC_KEYS:
            from cni_py.config import keys

            return keys.canonical(conf, fields, FOLDED_SPEC_KEYS)
    return conf


def parse(model: str, raw: Mapping[str, Any], what: str = "network config", *, deleting: bool = False) -> Any:
    """Validate ``raw`` against a model of models.py; a null member counts as absent, as in Go.

    A key that is unknown, and one letter from a known one, is a warning in the journal.

    Args:
        deleting: of DEL and GC: a value outside its limits counts as absent, since Go, which may have created the attachment,
            has wider ones.

    Raises: InvalidConfig (code 7), which names each wrong key and its value.
    """
    schema = SCHEMAS[model]
    if model not in _validators:
        _validators[model] = SchemaValidator(schema)
    unknown: list[tuple[str, str, Fields]] = []
    try:
        members = _members(raw, schema, "", unknown)
    except _SeveralOfOneField:
        from cni_py.config import keys

        members = keys.members(raw, schema, fields_of, FOLDED_SPEC_KEYS)
    if unknown and model.endswith("Config") and current() is not None:
        from cni_py.config import keys

        keys.warn(unknown, SPEC_KEYS)
    try:
        return _validators[model].validate_python(members)
    except ValidationError as error:
        if deleting and all(fault["type"] in _LIMITS for fault in error.errors(include_url=False)):
            return _validators[model].validate_python(_without_faults(members, [e["loc"] for e in error.errors()]))
        faults = [f'"{_path(e["loc"])}": {e["msg"]}, not {e["input"]!r:.80}' for e in error.errors(include_url=False)]
        raise InvalidConfig(f"{what} is invalid: {faults[0]}", "; ".join(faults[1:6])) from error


def _without_faults(members: dict[str, Any], paths: list[tuple[str | int, ...]]) -> dict[str, Any]:
    for *parents, last in paths:
        holder: Any = members
        for key in parents:
            holder = holder[key]
        del holder[last]
    return members


class _SeveralOfOneField(Exception):
    """Two keys of an object set the same field."""


def member_of(raw: Mapping[str, Any], key: str) -> Any:
    """Return a member by its key in any case; of several, that which Go's libcni writes last. None: there is none."""
    found = [name for name in raw if name == key or fold(name) == fold(key)]
    return raw[max(found)] if found else None


def in_order(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Sort the keys, as Go writes a map: of several that set one field in different case, a plugin takes the last. Pure."""
    return {key: _in_order(member) for key, member in sorted(conf.items())}


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return in_order(value)
    return [_in_order(item) for item in value] if isinstance(value, list) else value


def fields_of(schema: Schema) -> Fields:
    """Return the fields of a model by key and by folded key: the key, and the schema of an object or a list in it."""
    found = _fields.get(id(schema))
    if found is None:
        listed = [(field["validation_alias"], _inner(field["schema"])) for field in schema["schema"]["fields"]]
        found = _fields[id(schema)] = {fold(field[0]): field for field in listed} | {field[0]: field for field in listed}
    return found


def _inner(schema: Schema) -> Schema:
    """Return the schema without default, and as ``{"nullable": True, …}`` if the field may be null: in Go it is a pointer."""
    while schema["type"] == "default":
        schema = schema["schema"]
    return schema["schema"] | {"nullable": True} if schema["type"] == "nullable" else schema


def _members(value: Mapping[str, Any], schema: Schema, where: str, unknown: list[tuple[str, str, Fields]]) -> dict[str, Any]:
    """Return the members that the model has, in its case and without nulls; ``unknown`` gets the keys of all others.

    Raises: _SeveralOfOneField.
    """
    fields, out = fields_of(schema), {}
    for key, member in value.items():
        field = fields.get(key) or fields.get(fold(key))
        if field is None:
            if key not in SPEC_KEYS and schema["schema"]["dataclass_name"] not in _FOREIGN:
                unknown.append((where, key, fields))
            continue
        name, inner = field
        if name != key and (name in value or name in out or member is None):
            raise _SeveralOfOneField
        if member is not None:
            out[name] = _member(member, inner, f"{where}{name}", unknown)
    return out


def _member(value: Any, schema: Schema, where: str, unknown: list[tuple[str, str, Fields]]) -> Any:
    kind = schema["type"]
    if kind == "dataclass" and isinstance(value, dict):
        return _members(value, schema, f"{where}.", unknown)
    if kind == "list" and isinstance(value, list):
        items = _inner(schema["items_schema"])
        return [_member(item, items, where, unknown) for item in value]
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _path(location: tuple[str | int, ...]) -> str:
    """Format ``("ipam", "ranges", 0)`` as ``ipam.ranges[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
