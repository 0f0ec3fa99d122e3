"""Counted nouns in messages."""


def counted(number: int, noun: str, ending: str = "s") -> str:
    """Return ``1 lease``, ``2 leases``; ``ending`` is that of the plural."""
    return f"{number} {noun}{'' if number == 1 else ending}"
