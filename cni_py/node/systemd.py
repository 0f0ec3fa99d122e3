"""Messages to a service manager, and the interval that it requires. Source: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket

SEND_SECONDS = 1.0


def notify(*lines: str) -> bool:
    """Send assignments, ``READY=1``, ``STATUS=in words``, ``WATCHDOG=1``; return whether they were received.

    Without a service manager nothing happens; one that does not listen stops nothing.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    text = "\n".join(" ".join(line.splitlines()) for line in lines)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(SEND_SECONDS)
            sock.connect("\0" + address[1:] if address[0] == "@" else address)  # only so is a full queue waited for, not polled
            sock.send(text.encode(errors="backslashreplace"))
    except OSError:
        return False
    return True


def watchdog_seconds() -> float:
    """Return the time within which it requires ``WATCHDOG=1``, so send it twice as often; 0: it does not."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (microseconds.isascii() and microseconds.isdigit()) or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6
