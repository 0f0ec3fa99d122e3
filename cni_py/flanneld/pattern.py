"""Patterns of ``-iface-regex`` in RE2's syntax, which is that of Go's ``regexp``: the same pattern chooses the same interface.

    Pattern(text).matches(name) -> bool        Raises: ValueError, with what RE2 does not know

The engine is RE2 itself (docs/decisions/0015-interface-patterns.md); it is imported with the first pattern. Source: the package
``regexp/syntax`` of Go, github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

import re
from typing import Any

_LOOK_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])")
_ESCAPE = re.compile(r"\\Q.*?(?:\\E|$)|\\.", re.DOTALL)
_ANY_BYTE = "\\C"
"""RE2 knows it, Go does not."""


class Pattern:
    """A pattern that is looked for anywhere in a text, as Go's ``MatchString`` does. Takes time in proportion to the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._compiled = _compile(text)

    def matches(self, text: str) -> bool:
        """Return whether it is found. A name that is not UTF-8 has a question mark for each such byte."""
        return self._compiled.search(text.encode(errors="replace")) is not None


def _compile(text: str) -> Any:
    """Raises: ValueError."""
    try:
        import re2
    except ImportError as error:
        hint = "name the interface with -iface or -iface-cidr"
        raise ValueError(f"patterns need the package google-re2, which is not installed: {hint}") from error
    if _ANY_BYTE in _ESCAPE.findall(text):
        raise ValueError(f"invalid regular expression: invalid escape sequence: {_ANY_BYTE}")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        words = error.args[0].decode(errors="replace")
        hint = "; RE2, which is Go's syntax, has no look-ahead and no look-behind" if _LOOK_AROUND.search(text) else ""
        raise ValueError(f"invalid regular expression: {words}{hint}") from error
