"""The log: lines on standard error in the layout of Kubernetes' klog, which readers and tools of Go flannel's log know.

::

    I0225 20:43:46.982617    9903 lease.py:148] Found lease (ip: 10.244.91.0/24 ipv6: ::/0) for current IP …

The letter is I, W or E; then month and day, local time with microseconds, the process, and the module and
line that logged. A line is one write(2), so threads do not mix theirs. A text that has several lines is
put on one, and what could steer a terminal is shown in its escaped form: texts come from datastores too.

Source: k8s.io/klog v2, formatHeader.
"""

from __future__ import annotations

import os
import sys
from time import localtime, strftime, time_ns

STDERR_FD = 2
SHOWN = 64
"""Characters of a name in the log."""
_verbosity = 0


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
    """For who asked for it with ``-v=level`` or more."""
    if level <= _verbosity:
        _log("I", text)


def is_verbose(level: int) -> bool:
    """Whether :func:`verbose` writes: for texts that take long to make."""
    return level <= _verbosity


def set_verbosity(level: int) -> None:
    global _verbosity
    _verbosity = level


def _log(severity: str, text: str) -> None:
    """Write the line of who called our caller. A log that nobody can read stops nothing."""
    caller = sys._getframe(2)
    where = f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}"
    line = f"{severity}{_now()} {os.getpid():7d} {where}] {in_one_line(text)}\n".encode(errors="backslashreplace")
    try:
        while line:
            line = line[os.write(STDERR_FD, line) :]
    except OSError:  # its reader has gone, or is too slow for a pipe that does not block
        pass


def _now() -> str:
    seconds, nanoseconds = divmod(time_ns(), 1_000_000_000)
    return f"{strftime('%m%d %H:%M:%S', localtime(seconds))}.{nanoseconds // 1000:06d}"


def shortened(text: str, length: int = SHOWN) -> str:
    """For names that come from others and may be of any length."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def in_one_line(text: str) -> str:
    """Lines joined by ``; ``, control characters escaped."""
    text = text if text.isprintable() else "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
