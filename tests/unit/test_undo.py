"""undo.py: all or nothing, and as much as can be done."""

# ruff: noqa: PT012 — how a block ends is what is tested here

from __future__ import annotations

import pytest

from cni_py import journal
from cni_py.errors import CniError, Incomplete, InvalidConfig, IOFailure, KernelRefused
from cni_py.undo import Attempts, Undo


def notes(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition("  (")[0] for line in capfd.readouterr().err.splitlines()]


# --- Undo -------------------------------------------------------------------------------------------------------------


def test_nothing_is_undone_after_success() -> None:
    done: list[str] = []
    with Undo() as undo:
        undo.on_failure("x", done.append, "x")
    assert done == []


def test_newest_is_undone_first() -> None:
    done: list[str] = []
    with pytest.raises(InvalidConfig, match="first"), Undo() as undo:
        for what in ("a", "b", "c"):
            undo.on_failure(what, done.append, what)
        raise InvalidConfig("first")
    assert done == ["c", "b", "a"]


def test_only_what_was_made_is_undone() -> None:
    done: list[str] = []
    with pytest.raises(ValueError, match="x"), Undo() as undo:
        undo.on_failure("a", done.append, "a")
        raise ValueError("x")
        undo.on_failure("b", done.append, "b")  # type: ignore[unreachable]
    assert done == ["a"]


@pytest.mark.parametrize(
    "error", [InvalidConfig("first"), OSError(5, "first"), ValueError("first"), KeyboardInterrupt(), SystemExit(1)]
)
def test_whatever_ends_the_block_is_undone_and_raised(error: BaseException) -> None:
    done: list[str] = []
    with pytest.raises(type(error)) as raised, Undo() as undo:
        undo.on_failure("a", done.append, "a")
        raise error
    assert raised.value is error
    assert done == ["a"]


@pytest.mark.parametrize(
    "failure", [KernelRefused("second"), OSError(5, "second"), ValueError("second"), RecursionError(), AssertionError()]
)
def test_undo_that_fails_hides_nothing_and_stops_nothing(failure: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def fail() -> None:
        raise failure

    with journal.Journal("ADD", stderr_fd=2), pytest.raises(InvalidConfig, match="first"), Undo() as undo:
        undo.on_failure("a", done.append, "a")
        undo.on_failure("b", fail)
        undo.on_failure("c", done.append, "c")
        raise InvalidConfig("first")
    assert done == ["c", "a"]
    said = notes(capfd)
    assert said[:2] == ["# undo: c", "# undo: b"]
    assert said[2].startswith("# undo failed: b: ")
    assert said[2] != "# undo failed: b: "


def test_undo_within_undo() -> None:
    done: list[str] = []
    with pytest.raises(InvalidConfig), Undo() as outer:
        outer.on_failure("outer", done.append, "outer")
        with Undo() as inner:
            inner.on_failure("inner", done.append, "inner")
            raise InvalidConfig("x")
    assert done == ["inner", "outer"]


# --- Attempts ---------------------------------------------------------------------------------------------------------


def test_attempts_that_all_succeed() -> None:
    attempts = Attempts()
    with attempts.attempt("a"):
        pass
    attempts.raise_if_failed("DEL")


def test_one_error_names_all_that_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    attempts, done = Attempts(), []
    with journal.Journal("DEL", stderr_fd=2):
        with attempts.attempt("the veth"):
            raise KernelRefused("no", "words")
        with attempts.attempt("masquerade"):
            done.append("masquerade")
        with attempts.attempt("addresses"):
            raise IOFailure("full")
    with pytest.raises(Incomplete) as error:
        attempts.raise_if_failed("DEL")
    assert done == ["masquerade"]
    assert error.value.code == KernelRefused.code
    assert error.value.msg == "DEL left behind: the veth, addresses"
    assert error.value.details == "no: words; full"
    assert isinstance(error.value.__cause__, KernelRefused)
    assert notes(capfd)[:2] == ["# incomplete: the veth: no: words", "# incomplete: addresses: full"]


def test_error_of_the_system_is_code_5() -> None:
    attempts = Attempts()
    with attempts.attempt("file"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(CniError) as error:
        attempts.raise_if_failed("GC")
    assert error.value.code == 5
    assert "Permission denied" in error.value.details


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_bug_is_not_kept_for_later(error: BaseException) -> None:
    attempts = Attempts()
    with pytest.raises(type(error)), attempts.attempt("x"):
        raise error
    attempts.raise_if_failed("DEL")
