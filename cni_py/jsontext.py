"""JSON encoder for plain values; keys as Go's encoding/json compares them.

``json`` costs a call 5 ms of imports, and pydantic-core's ``to_json`` looks up the types of half
the standard library. The interpreter's own string encoder is free.
"""

from __future__ import annotations

from _json import encode_basestring_ascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Received(dict[str, "Any"]):
    """JSON object as received; ``text`` has what a dict cannot keep, repeated keys and their order."""

    text: bytes


def fold(key: str) -> str:
    """Fold the case of a key as Go's encoding/json does: beyond ASCII only U+017F and U+212A fold to a letter of ASCII."""
    return key.lower().replace("\u017f", "s")


def encode(value: Any) -> bytes:
    """Encode dicts, lists, text, numbers, booleans and None as JSON, in ASCII."""
    return _text(value).encode("ascii")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, dict):
        return "{" + ",".join([f"{encode_basestring_ascii(key)}:{_text(member)}" for key, member in value.items()]) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join([_text(item) for item in value]) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, float) and value == value:
        return repr(value).replace("inf", "1e999")  # JSON has numbers beyond a float's range, but no infinity
    raise TypeError(f"{type(value).__name__} has no form in JSON")
