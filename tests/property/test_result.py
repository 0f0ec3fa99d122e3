"""Results through all versions and back: what a version can say survives, and nothing but our errors comes of rubbish."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py.config import decode
from cni_py.errors import CniError, DecodingFailure, IncompatibleVersion, InvalidConfig
from cni_py.jsontext import encode
from cni_py.spec.result import DNS, Interface, IPConfig, Result, Route, from_json
from support.examples import examples

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
OLD, MIDDLE = VERSIONS[:2], VERSIONS[2:5]

TEXT = st.text(max_size=8)
ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)
V4 = st.builds(lambda ip, prefix: IPv4Interface((ip, prefix)), st.ip_addresses(v=4), st.integers(0, 32))
V6 = st.builds(lambda ip, prefix: IPv6Interface((ip, prefix)), st.ip_addresses(v=6), st.integers(0, 128))
UNSIGNED = st.none() | st.integers(0, 0xFFFFFFFF)


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


RESULTS = st.builds(
    Result,
    interfaces=several(st.builds(Interface, TEXT, TEXT, st.integers(0, 65536), TEXT, TEXT, TEXT)),
    ips=several(st.builds(IPConfig, V4 | V6, st.none() | ADDRESSES, st.none() | st.integers(0, 9))),
    routes=several(
        st.builds(
            Route, V4 | V6, st.none() | ADDRESSES, UNSIGNED, UNSIGNED, UNSIGNED, UNSIGNED, st.none() | st.integers(0, 255)
        )
    ),
    dns=st.builds(DNS, several(TEXT), TEXT, several(TEXT), several(TEXT)),
)


def as_far_as_it_can_be_said(result: Result, version: str) -> Result:
    """Model of what remains of a result in a version; the code is compared with it."""
    if version == "1.1.0":
        return result
    plain_routes = tuple(Route(route.dst, route.gw) for route in result.routes)
    if version not in OLD:
        interfaces = tuple(Interface(i.name, i.mac, 0, i.sandbox) for i in result.interfaces)
        return Result(interfaces, result.ips, plain_routes, result.dns)
    ips, routes = [], []
    for family in (4, 6):
        of_family = [ip for ip in result.ips if ip.address.version == family]
        if of_family:
            ips.append(IPConfig(of_family[0].address, of_family[0].gateway))
            routes += [route for route in plain_routes if route.dst.version == family]
    return Result((), tuple(ips), tuple(routes), result.dns)


def said(result: Result, version: str) -> dict[str, Any] | None:
    """The form in this version; None if an old one cannot express a result without addresses."""
    if version in OLD and not result.ips:
        with pytest.raises(InvalidConfig):
            result.as_version(version)
        return None
    return result.as_version(version)


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=examples(37), deadline=None)
@given(result=RESULTS)
def test_what_a_version_can_say_survives(version: str, result: Result) -> None:
    form = said(result, version)
    if form is None:
        return
    assert form["cniVersion"] == version
    back = from_json(form)
    assert back == as_far_as_it_can_be_said(result, version)
    assert back.as_version(version) == form
    assert decode(encode(form)) == form


@settings(max_examples=examples(75), deadline=None)
@given(RESULTS, st.lists(st.sampled_from(VERSIONS), min_size=1, max_size=6))
def test_way_through_any_versions_loses_what_the_poorest_cannot_say_and_no_more(result: Result, way: list[str]) -> None:
    """A chain whose plugins speak different versions; order does not matter for what is lost."""
    if any(version in OLD for version in way) and not result.ips:
        return
    there = result
    for version in way:
        there = from_json(there.as_version(version))
    expected = result
    for version in sorted(way, key=VERSIONS.index, reverse=True):
        expected = as_far_as_it_can_be_said(expected, version)
    assert there == expected


@settings(max_examples=examples(37), deadline=None)
@given(RESULTS)
def test_form_has_no_member_that_its_version_does_not_know(result: Result) -> None:
    for version in VERSIONS:
        form = said(result, version)
        if form is None:
            continue
        if version in OLD:
            assert set(form) <= {"cniVersion", "ip4", "ip6", "dns"}
            continue
        assert set(form) <= {"cniVersion", "interfaces", "ips", "routes", "dns"}
        newest = version == "1.1.0"
        for interface in form.get("interfaces", []):
            assert set(interface) <= {"name", "mac", "sandbox"} | ({"mtu", "socketPath", "pciID"} if newest else set())
        for ip in form.get("ips", []):
            assert ("version" in ip) == (version in MIDDLE)
            assert ip.get("version") in (None, str(ip_interface(ip["address"]).version))
        for route in form.get("routes", []):
            assert set(route) <= {"dst", "gw"} | ({"mtu", "advmss", "priority", "table", "scope"} if newest else set())


# --- rubbish ----------------------------------------------------------------------------------------------------------

KEYS = [
    "cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6", "ip", "name", "mac", "mtu", "sandbox", "socketPath",
    "pciID", "address", "gateway", "interface", "version", "dst", "gw", "advmss", "priority", "table", "scope", "nameservers",
    "domain", "search", "options",
]  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 255, 256, 65536, 1 << 32, 1 << 64, -(1 << 70)])
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(
        ["10.1.2.3/24", "10.1.2.3", "fd00::1/64", "::", "0.0.0.0/0", "10.1.2.3/33", "fe80::1%eth0/64", "/", "%", *VERSIONS]
    )
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), max_leaves=15
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6)


def spoil(form: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """Return the same object with one member, at any depth, replaced by garbage or removed."""
    parent: Any = form
    while True:
        places = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not places:
            return form
        place = data.draw(st.sampled_from(places))
        if isinstance(parent[place], dict | list) and parent[place] and data.draw(st.booleans()):
            parent = parent[place]
            continue
        if data.draw(st.booleans()):
            parent[place] = data.draw(JSON)
        else:
            del parent[place]
        return form


def check_reading(raw: dict[str, Any]) -> None:
    """Result that can be rendered again, or our error, which names what it is about."""
    try:
        result = from_json(raw, "what it is called")
    except (DecodingFailure, IncompatibleVersion) as error:
        assert "what it is called" in error.msg  # noqa: PT017 — either outcome is right
        assert len(str(error)) < 10_000  # noqa: PT017
        return
    for version in VERSIONS:
        try:
            form = result.as_version(version)
        except CniError:
            assert version in OLD
            continue
        assert from_json(form).as_version(version) == form
        encode(form)


@settings(max_examples=examples(125), deadline=None)
@given(OBJECTS)
def test_random_object_gives_a_result_or_our_error(raw: dict[str, Any]) -> None:
    check_reading(raw)


@settings(max_examples=examples(125), deadline=None)
@given(RESULTS, st.sampled_from(VERSIONS), st.data())
def test_spoilt_result_gives_a_result_or_our_error(result: Result, version: str, data: st.DataObject) -> None:
    form = said(result, version)
    if form is not None:
        check_reading(spoil(form, data))
