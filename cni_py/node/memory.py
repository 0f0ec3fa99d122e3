"""Memory of a process with many threads that rarely allocate.

glibc creates a heap for each thread that allocates, up to eight per core, and returns little of it: 3 MB for the dozen threads
of flanneld and grpcio. One heap is enough for them; its lock is hardly ever contended.

Source: mallopt(3).
"""

from __future__ import annotations

from typing import Final

from cni_py.c_library import Library

_M_ARENA_MAX: Final = -8


def use_one_heap() -> None:
    """Let all threads of the process share a heap. Before threads are started; without effect where libc is not glibc."""
    mallopt = getattr(Library(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
