"""Words that are probably mistyped: one letter from a known one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the known key that is one letter from ``key``: one more, one less, another, two exchanged; "" if none is. Pure."""
    return next((name for name in known if is_one_letter_off(key.lower(), name.lower())), "")


def is_one_letter_off(one: str, other: str) -> bool:
    """Return whether one letter makes the difference. Pure."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    one, other = one[start:], other[start:]
    if len(one) != len(other):
        return one[1:] == other or one == other[1:]
    return one[1:] == other[1:] or (one[:2] == other[1::-1] and one[2:] == other[2:])


def meant(key: str, known: Iterable[str]) -> str:
    """Return ``: is "X" meant?`` for a word that is probably mistyped, else "". Pure."""
    found = nearest(key, known)
    return f': is "{found}" meant?' if found else ""
