"""Times as Go writes them: people look for these lines in logs."""

from __future__ import annotations

from datetime import UTC, datetime


def duration(seconds: float) -> str:
    """As Go prints a time span: ``22h59m58.999784463s``."""
    sign, nanoseconds = ("-" if seconds < 0 else ""), round(abs(seconds) * 1e9)
    if nanoseconds < 1_000_000_000:
        unit, size = next(((u, s) for u, s in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)) if nanoseconds >= s), ("s", 1))
        return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_decimal(rest, 1_000_000_000)}s"


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = len(str(size)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".") if rest else str(whole)


def clock(seconds: float | None) -> str:
    """A time of day as the log shows it."""
    return "never" if seconds is None else str(datetime.fromtimestamp(seconds, UTC).astimezone())
