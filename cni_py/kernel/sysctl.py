"""Kernel parameters under /proc/sys/net. Names have slashes, because an interface name may contain dots."""

from __future__ import annotations

import posix

from cni_py.errors import KernelRefused
from cni_py.journal import note, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def read(name: str) -> str:
    """Return the value of ``net/…``. Raises: KernelRefused, also if it does not exist."""
    try:
        fd = posix.open(f"/proc/sys/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return posix.read(fd, 256).decode().strip()
        finally:
            posix.close(fd)
    except OSError as error:
        raise KernelRefused(f'could not read: "sysctl {name}"', error.strerror or "", errno=error.errno or 0) from error


def ensure(name: str, value: str, enter: Sequence[str] = ()) -> None:
    """Set ``net/…`` unless it has the value. Raises: KernelRefused.

    The namespace is that of the calling thread; ``enter`` is its command prefix in the journal.
    """
    if read(name) != value:
        with step(*enter, "sysctl", "-w", f"{name}={value}"):
            fd = posix.open(f"/proc/sys/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
            try:
                posix.write(fd, value.encode())
            finally:
                posix.close(fd)


def prefer(name: str, value: str, enter: Sequence[str] = ()) -> None:
    """Set it like :func:`ensure`, but only note a failure: a kernel without IPv6 or a read-only /proc/sys."""
    try:
        ensure(name, value, enter)
    except KernelRefused as error:
        note(f"{name} not changed: {error}")
