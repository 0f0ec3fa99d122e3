"""Random choices of rules, such as among the endpoints of a Service: which one a walk follows. Pure.

``numgen``, ``jhash`` and iptables' ``statistic`` choose by a number that only the kernel knows. A walk takes the first
alternative, and notes how many there were; a real packet then shows which walk is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence

Made = tuple[int, int]
"""Number of the alternative, and of all of them."""


class Choices:
    """The choices of one walk.

    Args:
        wanted: the alternative to take at each choice, in their order; at those behind its end the first.
        is_seen: the real packet has taken these.
    """

    def __init__(self, wanted: Sequence[int] = (), *, is_seen: bool = False) -> None:
        self.made: list[Made] = []
        self.is_seen, self._wanted = is_seen, wanted

    def choose(self, count: int) -> int:
        """Return the number of the alternative to follow, from 0."""
        if count < 2:
            return 0
        at = len(self.made)
        number = self._wanted[at] if at < len(self._wanted) else 0
        self.made.append((number, count))
        return number


def following(made: Sequence[Made]) -> list[int] | None:
    """Return what to choose in the next walk after one that made these choices; None: every combination has had its turn."""
    left = list(made)
    while left and left[-1][0] + 1 >= left[-1][1]:
        left.pop()
    return [*(number for number, _ in left[:-1]), left[-1][0] + 1] if left else None
