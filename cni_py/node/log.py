"""The log: lines on standard error in the layout of Kubernetes' klog, which readers and tools of Go flannel's log know.

::

    I0225 20:43:46.982617    9903 lease.py:148] Found lease (ip: 10.244.91.0/24 ipv6: ::/0) for current IP …

The letter is I, W or E; then month and day, local time with microseconds, the process, and the module and
line that logged. A line is one write(2), so threads do not mix theirs. A text that has several lines is
put on one, and what could steer a terminal is shown in its escaped form: texts come from datastores too. Times in it are as
Go prints them.

With ``-v=1`` the log has each change to the kernel and to files, as the command that would do the same (changes.py).

Source: k8s.io/klog v2, formatHeader.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from time import localtime, strftime, time_ns
from typing import TYPE_CHECKING

from cni_py.journal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

STDERR_FD = 2
SHOWN = 64
"""Characters of a name in the log."""
LINE = 32 * 1024
"""Characters of a line: each change is shown whole, and a text of another node, which may have 2 MiB, is not."""
_verbosity = 0
_is_silent = False


def info(text: str) -> None:
    _log("I", text)


def warning(text: str) -> None:
    _log("W", text)


def warning_once(text: str, seen: set[str]) -> None:
    """Log a warning unless it is in ``seen``, to which it is added: for state that is checked again and again."""
    if text not in seen:
        seen.add(text)
        _log("W", text)


def error(text: str) -> None:
    _log("E", text)


def verbose(level: int, text: str) -> None:
    """Log it with ``-v=level`` or more."""
    if level <= _verbosity:
        _log("I", text)


def is_verbose(level: int) -> bool:
    """Return whether :func:`verbose` writes: for texts that are expensive to build."""
    return level <= _verbosity


def set_verbosity(level: int) -> None:
    global _verbosity
    _verbosity = level


@contextmanager
def silence() -> Iterator[None]:
    """Log nothing within the block: a command for people calls a daemon's functions, and reports what they raise itself."""
    global _is_silent
    before, _is_silent = _is_silent, True
    try:
        yield
    finally:
        _is_silent = before


def _log(severity: str, text: str) -> None:
    """Write the line of our caller's caller. A log that cannot be written stops nothing."""
    if _is_silent:
        return
    caller = sys._getframe(2)
    where = f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}"
    line = f"{severity}{_now()} {os.getpid():7d} {where}] {in_one_line(text)}\n".encode(errors="backslashreplace")
    try:
        while line:
            line = line[os.write(STDERR_FD, line) :]
    except OSError:  # its reader has exited, or is too slow for a non-blocking pipe
        pass


def _now() -> str:
    seconds, nanoseconds = divmod(time_ns(), 1_000_000_000)
    return f"{strftime('%m%d %H:%M:%S', localtime(seconds))}.{nanoseconds // 1000:06d}"


def shortened(text: str, length: int = SHOWN) -> str:
    """Shorten a name that another program chose and that may be of any length."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def in_one_line(text: str) -> str:
    """Lines joined by ``; ``, control characters escaped."""
    text = text if text.isprintable() else "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return shortened(printable(text), LINE)


def duration(seconds: float) -> str:
    """Return a time span in Go's form: ``22h59m58.999784463s``."""
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
