"""JSON of other nodes and of people: leases, annotations, network configurations. Bounded where it is parsed. Pure.

    decode(text, max_bytes) -> value         no larger, no deeper, valid UTF-8
    published(data) -> value                 what a back end may read of ``BackendData``
    shown(value) -> text                     for a message

Why. A value that can be read is also written, compared and logged: one that is nested 985 deep is read and ends the thread that
saves it, half a surrogate pair ends the one that encodes it. So nothing of that kind gets beyond this module, and of
what a node publishes only the fields that some back end knows are kept: there are thousands of leases.

Source: encoding/json of Go: keys in any case, the last one counts.
"""

from __future__ import annotations

import json
import re
from sys import intern
from typing import TYPE_CHECKING, Any

from cni_py.node.log import shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_DEPTH = 32
"""Levels of arrays and objects."""
TEXT_CHARACTERS = 64 * 1024
"""Length of a text that a node publishes: the output of ``extension``'s PreStartupCommand."""
WORD_CHARACTERS = 256
"""Length of a text in one of the fields below."""
FIELDS = {name.lower(): intern(name) for name in ("VNI", "VtepMAC", "PublicKey", "Port")}
"""Fields of ``BackendData`` that a back end knows, by their names in lower case."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def decode(
    text: bytes | str,
    max_bytes: int,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant_hook: Callable[[str], Any] | None = None,
) -> Any:
    """Decode a JSON text. Raises: ValueError."""
    if len(text) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    words = text.decode() if isinstance(text, bytes) else text
    try:
        found = json.loads(words, object_pairs_hook=pairs_hook, parse_constant=constant_hook)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error
    if words.count("[") + words.count("{") > MAX_DEPTH and is_deeper(found, MAX_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if not words.isascii():
        words.encode()  # raises UnicodeEncodeError, a ValueError
    if "\\u" in words and _SURROGATE.search(words):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def is_deeper(value: Any, depth: int) -> bool:
    """Return whether arrays and objects are nested more than ``depth`` deep. Iterative: a recursion is what it prevents."""
    level = [value]
    for _ in range(depth):
        level = [member for each in level for member in _members(each)]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def members(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the known members by the names in ``names``, whose keys are in lower case."""
    return {name: value for key, value in found.items() if (name := names.get(key) or names.get(key.lower()))}


def published(data: Any) -> Any:
    """Return what counts of ``BackendData``: a text, or the known fields of an object whose values are plain.

    None where there is none; an empty object for what no back end publishes.
    """
    if data is None or (isinstance(data, str) and len(data) <= TEXT_CHARACTERS and is_utf8(data)):
        return data
    if not isinstance(data, dict):
        return {}
    return {name: value for name, value in members(data, FIELDS).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return (isinstance(value, str) and len(value) <= WORD_CHARACTERS and is_utf8(value)) or type(value) is int or value is None


def is_utf8(text: str) -> bool:
    """Return whether it can be encoded; JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """Return a value as a message has it: short, whatever it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return shortened(json.dumps(value))
