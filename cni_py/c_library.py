"""Functions of C libraries without the package ``ctypes``, whose import takes 2.6 ms in a plugin call: its C part takes 0.6.

Used as ``ctypes.CDLL``: a function is an attribute, returns an ``int`` unless its ``restype`` is set, and leaves the
error number for :func:`get_errno`.

Source: Lib/ctypes/__init__.py of CPython, which builds its classes from the same names.
"""

from __future__ import annotations

from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Library", "c_char_p", "c_int", "c_uint", "c_ulong", "c_void_p", "get_errno"]


class c_int(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801 — the names of ctypes
    _type_ = "i"


class c_uint(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "I"


class c_ulong(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "L"


class c_char_p(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "z"


class c_void_p(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "P"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = c_int


class Library:
    """A shared library; ``name`` None: all that the process has loaded, the C library first. Raises: OSError."""

    def __init__(self, name: str | None) -> None:
        self._handle = dlopen(name, 0)  # type: ignore[arg-type]  # None: dlopen(NULL)

    def __getattr__(self, name: str) -> Any:
        """Return the function. Raises: AttributeError if the library has none of this name."""
        function = _Function((name, self))  # type: ignore[arg-type]  # it reads _handle
        setattr(self, name, function)  # restype, which the caller sets, must be found again
        return function
