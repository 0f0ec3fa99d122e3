"""c_library.py: calls of C functions, as ctypes makes them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from errno import EBADF
from pathlib import Path

import pytest

from cni_py import c_library
from cni_py.c_library import Library

ROOT = Path(__file__).resolve().parents[2]
LIBC = Library(None)


def test_integers() -> None:
    assert LIBC.abs(-7) == 7


def test_strings_and_pointers() -> None:
    LIBC.strchr.restype = c_library.c_char_p
    assert LIBC.strchr(b"a.b", ord(".")) == b".b"
    LIBC.malloc.restype = c_library.c_void_p
    address = LIBC.malloc(c_library.c_uint(64 << 20))  # so large that glibc maps it, far above the heap
    assert address > 0xFFFFFFFF, "an address of 64 bits is cut"
    LIBC.free(c_library.c_void_p(address))


def test_error_number() -> None:
    assert LIBC.close(-1) == -1
    assert c_library.get_errno() == EBADF


def test_absent_library_and_function() -> None:
    with pytest.raises(OSError, match=r"libcni-py-absent\.so"):
        Library("libcni-py-absent.so")
    with pytest.raises(AttributeError, match="cni_py_absent"):
        _ = LIBC.cni_py_absent


@pytest.mark.parametrize("name", ["c_int", "c_uint", "c_char_p", "c_void_p"])
def test_types_are_those_of_ctypes(name: str) -> None:
    ours, theirs = getattr(c_library, name), getattr(ctypes, name)
    assert ours._type_ == theirs._type_
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)


def test_ctypes_is_not_imported() -> None:
    code = "import sys; import cni_py.c_library; cni_py.c_library.Library(None).abs(-1); assert 'ctypes' not in sys.modules"
    subprocess.run([sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"], check=True)
