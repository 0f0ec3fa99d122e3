"""Import one module of a large package without running the package's ``__init__``.

``import pyroute2`` takes 75 ms and ``import pydantic_core`` 19; the modules that one plugin call
needs take 20 and 2 (docs/decisions/0002-imports.md).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class without_init:  # noqa: N801 — reads as a statement: with without_init("pyroute2"): …
    """Make ``name`` an empty package within the block: its submodules can be imported, its ``__init__`` does not run.

    If the package has been imported already, nothing changes. After the block, ``import name``
    runs the real package, which finds the submodules loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.stand_in = None
        if self.name not in sys.modules:
            self.stand_in = type(sys)(self.name)
            self.stand_in.__path__ = [f"{directory}/{self.name}" for directory in sys.path if directory]
            sys.modules[self.name] = self.stand_in

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.stand_in is not None:
            del sys.modules[self.name]


class only_c_datetime:  # noqa: N801 — reads as a statement: with only_c_datetime(): …
    """Let the C part of ``datetime`` stand for the module within the block, for C code that asks it for its types only.

    Python 3.11 reads the whole module in Python first: 1.1 ms.
    """

    def __enter__(self) -> None:
        self.is_standing_in = "datetime" not in sys.modules
        if self.is_standing_in:
            import _datetime  # type: ignore[import-not-found]

            sys.modules["datetime"] = _datetime

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_standing_in:
            del sys.modules["datetime"]


def keep_without_init(*names: str) -> None:
    """Leave these packages without their ``__init__`` permanently, for a process with threads."""
    # Blocks of two threads would overlap: the end of one would remove the stand-in that the other still needs.
    for name in names:
        without_init(name).__enter__()
