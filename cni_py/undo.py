"""All or nothing, for ADD; as much as can be done, for DEL and GC."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

from cni_py.errors import CniError, Incomplete
from cni_py.journal import note


class Undo:
    """``with Undo() as undo:`` — if the block raises, what was registered runs, newest first.

    An undo step that fails is noted in the journal and never hides the error that came first. What
    DEL needs to find the rest is kept then: steps of :meth:`once_clean` do not run.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[..., object], tuple[Any, ...], bool]] = []

    def on_failure(self, what: str, function: Callable[..., object], *args: Any) -> None:
        """Register ``function(*args)``; write it on the line after the thing was made."""
        self._steps.append((what, function, args, False))

    def once_clean(self, what: str, function: Callable[..., object], *args: Any) -> None:
        """The same for a trace that DEL goes by: it is taken back only if all that came later was."""
        self._steps.append((what, function, args, True))

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return
        for what, function, args, is_trace in reversed(self._steps):
            if is_trace and getattr(error, "left_something", False):
                note(f"undo: {what} is kept for DEL")
                continue
            note(f"undo: {what}")
            try:
                function(*args)
            except Exception as failure:  # noqa: BLE001 — even a bug in here must not hide the first error or stop the rest
                error.left_something = True  # type: ignore[attr-defined]  # for the callers' Undo, up the stack
                note(f"undo failed: {what}: {str(failure) or type(failure).__name__}")


class Attempts:
    """Do all that can be done, then raise one error that names what is left.

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
        """Name the next block; a ``CniError`` or ``OSError`` in it is kept for later."""
        self._what = what
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, (CniError, OSError)):
            return False
        self.failed.append((self._what, error))
        note(f"could not do all: {self._what}: {error}")
        return True

    def raise_if_failed(self, verb: str) -> None:
        """Raises: Incomplete with the first error's code, naming everything that is left."""
        if self.failed:
            first = self.failed[0][1]
            left = ", ".join(what for what, _ in self.failed)
            raise Incomplete(
                getattr(first, "code", 5), f"{verb} left behind: {left}", "; ".join(str(error) for _, error in self.failed)
            ) from first
