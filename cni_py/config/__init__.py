"""Read and validate configurations (CNI spec section 1) with pydantic's core alone.

The models are in models.py; importing pydantic for them would cost a call 70 ms, its compiled
core with a ready schema costs 2 (docs/decisions/0003-configuration.md). :func:`parse` returns an
object with the model's fields as attributes.
"""

from __future__ import annotations

from cni_py.config._schemas import SCHEMAS
from cni_py.errors import DecodingFailure, InvalidConfig
from cni_py.lazy import without_init

with without_init("pydantic_core"):
    from pydantic_core._pydantic_core import SchemaValidator, ValidationError, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_BYTES = 4 << 20
"""Maximum size of a configuration in bytes: a GC of 10,000 attachments needs one."""

_validators: dict[str, SchemaValidator] = {}


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


def parse(model: str, raw: Mapping[str, Any], what: str = "network config") -> Any:
    """Validate ``raw`` against a model of models.py; a null member counts as absent, as in Go.

    Raises: InvalidConfig (code 7), which names each wrong key and its value.
    """
    if model not in _validators:
        _validators[model] = SchemaValidator(SCHEMAS[model])
    try:
        return _validators[model].validate_python(_without_nulls(raw))
    except ValidationError as error:
        faults = [f'"{_path(e["loc"])}": {e["msg"]}, not {e["input"]!r:.80}' for e in error.errors(include_url=False)]
        raise InvalidConfig(f"{what} is invalid: {faults[0]}", "; ".join(faults[1:6])) from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _path(location: tuple[str | int, ...]) -> str:
    """Format ``("ipam", "ranges", 0)`` as ``ipam.ranges[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
