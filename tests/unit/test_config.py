"""config.py: JSON in, validated objects out. Against pydantic's own models: property/test_config.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_py import config
from cni_py.config import decode, parse
from cni_py.errors import DecodingFailure, InvalidConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "7", "{}x", '{"a":NaN}', '{"a":Infinity}', '{"a":01}', '{"a":"\n"}', "\ufeff{}"]
)
def test_what_is_no_json_object_is_code_6(text: str) -> None:
    with pytest.raises(DecodingFailure) as error:
        decode(text.encode(), "network config")
    assert "network config" in error.value.msg


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":"\xff"}', b'{"a":' + b"9" * 10_000 + b"}", b"\0" * 1000]
)
def test_hostile_input_is_code_6(data: bytes) -> None:
    with pytest.raises(DecodingFailure):
        decode(data)


def test_input_may_be_so_large_and_no_larger() -> None:
    fits = b'{"a":"' + b"x" * (config.MAX_BYTES - 8) + b'"}'
    assert len(fits) == config.MAX_BYTES
    assert len(decode(fits)["a"]) == config.MAX_BYTES - 8
    with pytest.raises(DecodingFailure, match="larger than"):
        decode(fits + b" ")


def test_last_of_equal_keys_counts() -> None:
    """Go's decoder does the same."""
    assert decode(b'{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"ipam": 7}, '"ipam"'),
        ({"ipam": {"ranges": 7}}, '"ipam.ranges"'),
        ({"ipam": {"ranges": [[{}, {"subnet": 7}]]}}, '"ipam.ranges[0][1].subnet"'),
        ({"ipam": {"routes": [{"dst": "x", "mtu": -1}]}}, '"ipam.routes[0].mtu"'),
        ({"ipam": {"routes": [{}]}}, '"ipam.routes[0].dst"'),
        ({"runtimeConfig": {"ipRanges": {}}}, '"runtimeConfig.ipRanges"'),
    ],
)
def test_error_names_the_key_and_what_was_there(raw: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse("HostLocalConfig", raw)
    assert error.value.msg.startswith(f"network config is invalid: {path}: ")


def test_all_faults_are_reported_up_to_a_limit() -> None:
    with pytest.raises(InvalidConfig) as error:
        parse("HostLocalConfig", {"ipam": {"routes": [7] * 1000, "dataDir": "x" * 10_000}})
    assert error.value.details.count(";") == 4
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("what", ["network config", 'result of "x"'])
def test_what_is_named(what: str) -> None:
    with pytest.raises(InvalidConfig, match=what):
        parse("BridgeConfig", {"mtu": "x"}, what)


def test_null_counts_as_absent_at_every_depth() -> None:
    """Go does the same."""
    raw = {
        "bridge": None,
        "mtu": None,
        "ipam": {"type": None},
        "dns": None,
        "vlanTrunk": [{"id": None, "minID": 1, "maxID": 2}],
    }
    parsed = parse("BridgeConfig", raw)
    assert (parsed.bridge, parsed.mtu, parsed.ipam.type, parsed.dns.search) == ("cni0", 0, "", [])
    assert (parsed.vlan_trunk[0].id, parsed.vlan_trunk[0].min_id) == (None, 1)


def test_null_in_a_list_is_a_wrong_value() -> None:
    with pytest.raises(InvalidConfig, match=r'"masqueradeExcept\[0\]"'):
        parse("BridgeConfig", {"masqueradeExcept": [None]})


def test_parsed_objects_do_not_share_their_defaults() -> None:
    first, second = parse("BridgeConfig", {}), parse("BridgeConfig", {})
    first.vlan_trunk.append(7)
    first.dns.search.append("x")
    assert second.vlan_trunk == []
    assert second.dns.search == []
    assert parse("BridgeConfig", {}).vlan_trunk == []


def test_input_is_left_alone() -> None:
    raw = {"bridge": None, "ipam": {"type": None}, "delegate": {"a": None}}
    text = json.dumps(raw)
    parse("FlannelConfig", raw)
    assert json.dumps(raw) == text


@pytest.mark.parametrize(
    ("model", "raw", "attribute", "value"),
    [
        ("BridgeConfig", {"mtu": 70000, "vlan": -1, "vlanTrunk": [{"id": 5000}]}, "mtu", 0),
        ("BridgeConfig", {"delegateMode": "x"}, "delegate_mode", "auto"),
        ("HostLocalConfig", {"ipam": {"routes": [{"dst": "::/0", "priority": 1 << 32}]}}, "type", ""),
    ],
)
def test_value_outside_its_limits_does_not_prevent_a_deletion(
    model: str, raw: dict[str, Any], attribute: str, value: object
) -> None:
    with pytest.raises(InvalidConfig):
        parse(model, raw)
    assert getattr(parse(model, raw, deleting=True), attribute) == value
    with pytest.raises(InvalidConfig):
        parse(model, raw | {"name": 7}, deleting=True)
