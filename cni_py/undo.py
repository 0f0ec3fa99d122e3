"""Undo steps of ADD (all or nothing), and attempts of DEL and GC (as much as possible)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

from cni_py.errors import CniError, Incomplete
from cni_py.journal import note


class Undo:
    """``with Undo() as undo:`` — if the block raises, the registered functions run, newest first.

    An undo step that fails is noted in the journal and never hides the original error. DEL then needs
    the records to find the rest: steps of :meth:`on_failure_if_clean` do not run.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[..., object], tuple[Any, ...], bool]] = []

    def on_failure(self, what: str, function: Callable[..., object], *args: Any) -> None:
        """Register ``function(*args)``; call it on the line after the one that created the object."""
        self._steps.append((what, function, args, False))

    def on_failure_if_clean(self, what: str, function: Callable[..., object], *args: Any) -> None:
        """Register the removal of a record that DEL relies on: it runs only if all later steps were undone."""
        self._steps.append((what, function, args, True))

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return
        for what, function, args, is_record in reversed(self._steps):
            if is_record and getattr(error, "left_something", False):
                note(f"undo: {what} is kept for DEL")
                continue
            note(f"undo: {what}")
            try:
                function(*args)
            except Exception as failure:  # noqa: BLE001 — even a bug in here must not hide the first error or stop the rest
                error.left_something = True  # type: ignore[attr-defined]  # for the Undo of callers, up the stack
                note(f"undo failed: {what}: {str(failure) or type(failure).__name__}")


class Attempts:
    """Try every step, then raise one error that names what is left.

    ::

        attempts = Attempts()
        with attempts.attempt("link"):
            …
        attempts.raise_if_failed("DEL")
    """

    def __init__(self) -> None:
        self.failed: list[tuple[str, CniError | OSError]] = []
        self._what = ""

    def attempt(self, what: str) -> Attempts:
        """Name the next block; a ``CniError`` or ``OSError`` in it is collected."""
        self._what = what
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, (CniError, OSError)):
            return False
        self.failed.append((self._what, error))
        note(f"incomplete: {self._what}: {error}")
        return True

    def raise_if_failed(self, verb: str) -> None:
        """Raise Incomplete with the first error's code, naming everything that is left, if an attempt failed."""
        if self.failed:
            first = self.failed[0][1]
            left = ", ".join(what for what, _ in self.failed)
            raise Incomplete(
                getattr(first, "code", 5), f"{verb} left behind: {left}", "; ".join(str(error) for _, error in self.failed)
            ) from first
