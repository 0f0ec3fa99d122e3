"""System calls that Python lacks: namespaces, mounts, the end of a child with its parent."""

from __future__ import annotations

import os

from cni_py.c_library import Library, c_char_p, c_int, c_ulong, get_errno

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x20000, 0x8000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    0x1, 0x2, 0x4, 0x8, 0x20, 0x1000, 0x4000, 0x40000,
)  # fmt: skip
_PR_SET_PDEATHSIG = 1

_libc = Library(None)


def _check(result: int, path: str = "") -> None:
    if result != 0:
        number = get_errno()
        raise OSError(number, os.strerror(number), path or None)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own. Raises: OSError."""
    _check(_libc.unshare(c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount. Raises: OSError."""
    texts = [c_char_p(os.fsencode(text)) for text in (source, target, kind)]
    _check(_libc.mount(*texts, c_ulong(flags), c_char_p(os.fsencode(options))), target)


def end_with_parent(signal: int) -> None:
    """Let the kernel send this process a signal when the thread that created it ends. Raises: OSError."""
    zero = c_ulong(0)
    _check(_libc.prctl(c_int(_PR_SET_PDEATHSIG), c_ulong(signal), zero, zero, zero))
