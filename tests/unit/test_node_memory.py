"""One heap for all threads of a daemon (node/memory.py)."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import sys, threading
from ctypes import CDLL, c_void_p
from cni_py.node.memory import use_one_heap

if sys.argv[1] == "one":
    use_one_heap()
libc = CDLL(None)
threads = [threading.Thread(target=libc.malloc, args=(100_000,)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = c_void_p
file = c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""


def heaps(word: str) -> int:
    """Return the number of heaps of a process whose threads allocate, as malloc_info(3) reports them."""
    argv = [sys.executable, "-c", ALLOCATE, word]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.count("<heap nr")


@pytest.mark.skipif("glibc" not in " ".join(platform.libc_ver()), reason="it concerns glibc alone")
def test_threads_share_a_heap() -> None:
    assert heaps("many") > 1
    assert heaps("one") == 1
