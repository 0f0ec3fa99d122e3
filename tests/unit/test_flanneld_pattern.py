"""Patterns of -iface-regex against what Go's regexp makes of them (recorded by integration/regex/record.go)."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from cni_py.flanneld.options import UsageError, parse
from cni_py.flanneld.pattern import Pattern

TABLE = json.loads(Path(__file__).with_name("flanneld_patterns.json").read_text())
SUBJECTS: list[str] = TABLE["subjects"]
GO_ALONE = {r"\p{Letter}", r"\p{lu}", r"\p{Lc}", r"\p{LC}", r"\p{Cn}", r"\p{greek}", r"\p{ Greek}"}
"""Names of Unicode classes that Go knows since 1.25 and RE2 does not: refused by name."""


@pytest.mark.parametrize("pattern, expected", TABLE["patterns"])
def test_pattern_is_understood_as_go_understands_it(pattern: str, expected: list[int] | str) -> None:
    if pattern in GO_ALONE or isinstance(expected, str):
        with pytest.raises(ValueError, match="invalid regular expression: ") as refused:
            Pattern(pattern)
        assert pattern not in GO_ALONE or pattern in str(refused.value)
        return
    compiled = Pattern(pattern)
    assert [SUBJECTS[number] for number in expected] == [subject for subject in SUBJECTS if compiled.matches(subject)]


def test_table_is_large_enough_to_distinguish_dialects() -> None:
    assert len(TABLE["patterns"]) > 200
    assert {pattern for pattern, _ in TABLE["patterns"]} >= GO_ALONE
    assert sum(isinstance(expected, str) for _, expected in TABLE["patterns"]) > 50


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("(?!docker)", "(?! … RE2, which is Go's syntax, has no look-ahead and no look-behind"),
        ("(?<=e)th", "RE2, which is Go's syntax, has no look-ahead and no look-behind"),
        (r"(e)\1", r"invalid escape sequence: \1"),
        (r"eth\C", r"invalid escape sequence: \C"),
        ("(", "missing ): ("),
        ("x{1001}", "invalid repetition size: {1001}"),
        ("\udc80", "surrogates not allowed"),
        ("", "it is empty"),
    ],
)
def test_refusal_at_start_names_what_is_not_known(pattern: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse([f"-iface-regex={pattern}"], {})
    assert "-iface-regex" in str(refused.value)
    assert all(part in str(refused.value) for part in words.split(" … "))


@pytest.mark.parametrize("pattern", [r"\Qeth\C\E", r"eth\\C"])
def test_text_that_looks_like_any_byte_is_taken(pattern: str) -> None:
    assert Pattern(pattern).matches("eth\\C")


def test_name_that_is_not_utf8_is_compared() -> None:
    assert Pattern("^eth.$").matches("eth\udcff")


def test_time_grows_with_the_text_alone() -> None:
    began = process_time()
    assert not Pattern("^([0-9a-f:]+:?)*/64$").matches("fd00:1111:2222:3333:4444:5555:6666:7777")
    assert process_time() - began < 1


def test_refusal_where_the_engine_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "re2":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="google-re2, which is not installed: name the interface with -iface"):
        Pattern("eth0")
