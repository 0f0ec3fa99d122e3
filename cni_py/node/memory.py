"""Memory of a process with many threads that rarely allocate, and builds once what stays.

glibc creates a heap for each thread that allocates, up to eight per core, and returns little of it: 3 MB for the dozen threads
of flanneld and grpcio. One heap is enough for them; its lock is hardly ever contended.

Python's collector looks through all objects again and again while thousands are built, and then through all of them whenever a
quarter as many have come: a seventh of the processor time of a start. So it rests meanwhile, and what stays is exempted.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cni_py.c_library import Library

if TYPE_CHECKING:
    from collections.abc import Iterator

_M_ARENA_MAX: Final = -8


def use_one_heap() -> None:
    """Let all threads of the process share a heap. Before threads are started; without effect where libc is not glibc."""
    mallopt = getattr(Library(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@contextmanager
def building() -> Iterator[None]:
    """Build what stays as long as the process does, or until the next call. Returns memory that the building took."""
    if gc.get_freeze_count():  # what the last call built may be garbage by now
        gc.unfreeze()
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        trim = getattr(Library(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
