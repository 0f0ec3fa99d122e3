"""Kernel parameters under /proc/sys/net. Names have slashes, for an interface name may hold dots."""

from __future__ import annotations

import posix

from cni_py.errors import KernelRefused
from cni_py.journal import note, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def read(name: str) -> str:
    """The value of ``net/…``. Raises: KernelRefused, where there is none too."""
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

    The namespace is that of the calling thread; ``enter`` says in the journal how to get there.
    """
    if read(name) != value:
        with step(*enter, "sysctl", "-w", f"{name}={value}"):
            fd = posix.open(f"/proc/sys/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
            try:
                posix.write(fd, value.encode())
            finally:
                posix.close(fd)


def prefer(name: str, value: str, enter: Sequence[str] = ()) -> None:
    """As :func:`ensure`, where it is only better so: a kernel without IPv6 or a read-only /proc/sys is noted."""
    try:
        ensure(name, value, enter)
    except KernelRefused as error:
        note(f"left {name} as it is: {error}")
