"""jsontext.py: values to JSON, as json.dumps would."""

from __future__ import annotations

import json
import math
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py.config import decode
from cni_py.jsontext import encode
from support.examples import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=examples(50), deadline=None)
@given(JSON)
def test_same_as_json_dumps(value: Any) -> None:
    assert encode(value) == json.dumps(value, separators=(",", ":")).encode()


@settings(max_examples=examples(50), deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_our_own_reader_reads_it(value: Any) -> None:
    assert decode(encode(value)) == value


def test_tuple_is_a_list() -> None:
    assert encode({"a": (1, ("b",))}) == b'{"a":[1,["b"]]}'


@pytest.mark.parametrize("text", ['{"a":1e999}', '{"a":-1e999}', '{"a":[1e400,{"b":-1e400}]}'])
def test_number_that_no_float_can_hold_stays_json(text: str) -> None:
    """1e999 is read as infinity, which JSON cannot express."""
    value = decode(text.encode())
    assert decode(encode(value)) == value
    assert b"inf" not in encode(value).lower()


def test_text_of_the_environment_that_is_no_utf8() -> None:
    """Invalid bytes become lone surrogates, and must not fail the error that names them."""
    assert json.loads(encode({"msg": "a\udcff"})) == {"msg": "a\udcff"}


@pytest.mark.parametrize("value", [b"x", {1, 2}, object(), ip_address("10.1.2.3"), math.nan, {"a": 1j}])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="no form in JSON"):
        encode(value)


def test_deep_nesting_as_deep_as_our_reader_takes_it() -> None:
    text = b'{"a":' * 150 + b"1" + b"}" * 150
    assert encode(decode(text)) == text
