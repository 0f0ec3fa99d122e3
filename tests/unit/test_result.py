"""result.py: the result of ADD in each version's form. Round trips with random results: property/test_result.py."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from cni_py.errors import CniError, DecodingFailure, IncompatibleVersion, InvalidConfig
from cni_py.spec.result import DNS, Interface, IPConfig, Result, Route, from_json

FULL = Result(
    interfaces=(
        Interface("cni0", "c2:11:22:33:44:55", 1450),
        Interface("eth0", "", 0, "/run/netns/c1", "/run/vhost", "0000:00:1f.6"),
    ),
    ips=(
        IPConfig(ip_interface("10.1.2.3/24"), ip_address("10.1.2.1"), 1),
        IPConfig(ip_interface("fd00::3/64"), None, 0),
        IPConfig(ip_interface("10.1.2.4/24")),
    ),
    routes=(
        Route(ip_interface("0.0.0.0/0")),
        Route(ip_interface("10.9.0.0/16"), ip_address("10.1.2.9"), 1400, 1300, 0, 100, 0),
        Route(ip_interface("::/0"), ip_address("fd00::1")),
    ),
    dns=DNS(("10.1.2.1",), "d", ("a", "b"), ("o",)),
)
DNS_JSON = {"nameservers": ["10.1.2.1"], "domain": "d", "search": ["a", "b"], "options": ["o"]}
OLD = {
    "ip4": {
        "ip": "10.1.2.3/24",
        "gateway": "10.1.2.1",
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}],
    },
    "ip6": {"ip": "fd00::3/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": DNS_JSON,
}
PLAIN_INTERFACES = [{"name": "cni0", "mac": "c2:11:22:33:44:55"}, {"name": "eth0", "sandbox": "/run/netns/c1"}]
PLAIN_ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}, {"dst": "::/0", "gw": "fd00::1"}]
IPS = [
    {"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1},
    {"address": "fd00::3/64", "interface": 0},
    {"address": "10.1.2.4/24"},
]
NUMBERED = [{"version": "6" if ":" in ip["address"] else "4"} | ip for ip in IPS]  # type: ignore[operator]
FORMS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("0.1.0", "0.2.0"), OLD),
    **{
        version: {"interfaces": PLAIN_INTERFACES, "ips": NUMBERED, "routes": PLAIN_ROUTES, "dns": DNS_JSON}
        for version in ("0.3.0", "0.3.1", "0.4.0")
    },
    "1.0.0": {"interfaces": PLAIN_INTERFACES, "ips": IPS, "routes": PLAIN_ROUTES, "dns": DNS_JSON},
    "1.1.0": {
        "interfaces": [
            PLAIN_INTERFACES[0] | {"mtu": 1450},
            PLAIN_INTERFACES[1] | {"socketPath": "/run/vhost", "pciID": "0000:00:1f.6"},
        ],
        "ips": IPS,
        "routes": [
            PLAIN_ROUTES[0],
            PLAIN_ROUTES[1] | {"mtu": 1400, "advmss": 1300, "priority": 0, "table": 100, "scope": 0},
            PLAIN_ROUTES[2],
        ],
        "dns": DNS_JSON,
    },
}


@pytest.mark.parametrize("version", FORMS)
def test_form_of_each_version(version: str) -> None:
    assert FULL.as_version(version) == {"cniVersion": version} | FORMS[version]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_empty_result(version: str) -> None:
    """Empty dns is a member only up to 0.4.0, as with Go."""
    assert Result().as_version(version) == {"cniVersion": version} | ({} if version >= "1" else {"dns": {}})
    assert from_json({"cniVersion": version}) == Result()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_version_cannot_say_that_there_is_no_address(version: str) -> None:
    with pytest.raises(InvalidConfig, match=version):
        Result(interfaces=FULL.interfaces).as_version(version)


def test_newest_form_says_everything() -> None:
    assert from_json(FULL.as_version("1.1.0")) == FULL


@pytest.mark.parametrize("version", [None, ""])
def test_result_without_version_is_in_the_newest_form(version: Any) -> None:
    assert from_json({"cniVersion": version, "ips": [{"address": "10.1.2.3/24"}]}).ips == (
        IPConfig(ip_interface("10.1.2.3/24")),
    )


@pytest.mark.parametrize("version", ["9.9.9", "1.0", 7, [], ["1.0.0"], {"a": 1}, True])
def test_result_of_an_unknown_version(version: Any) -> None:
    if not version:
        assert from_json({"cniVersion": version}) == Result()
        return
    with pytest.raises(IncompatibleVersion, match="prevResult"):
        from_json({"cniVersion": version})


@pytest.mark.parametrize(
    "raw",
    [
        {"ips": 7},
        {"ips": [None]},
        {"ips": [{"address": "x"}]},
        {"ips": [{"address": "10.1.2.3/33"}]},
        {"ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1/24"}]},
        {"ips": [{"address": "10.1.2.3/24", "interface": -1}]},
        {"ips": [{"address": "10.1.2.3/24", "interface": 1.5}]},
        {"interfaces": [{}]},
        {"interfaces": [{"name": "x", "mtu": "1500"}]},
        {"routes": [{"gw": "10.1.2.1"}]},
        {"routes": [{"dst": "10.0.0.0/8", "gw": "x"}]},
        {"routes": [{"dst": "10.0.0.0/8", "priority": 1 << 32}]},
        {"dns": {"search": "a"}},
        {"cniVersion": "0.2.0", "ip4": {}},
        {"cniVersion": "0.2.0", "ip4": {"ip": "::x"}},
        {"cniVersion": "0.2.0", "ip6": [7]},
    ],
)
def test_member_of_a_wrong_type_is_code_6(raw: dict[str, Any]) -> None:
    with pytest.raises(DecodingFailure, match="what it is called"):
        from_json({"cniVersion": "1.1.0"} | raw, "what it is called")


def test_all_errors_are_ours() -> None:
    for raw in ({"ips": {}}, {"ips": ["x"]}, {"interfaces": 1.5}, {"dns": [None]}, {"routes": [[[]]]}):
        with pytest.raises(CniError):
            from_json(raw)


def test_host_bits_of_a_route_survive() -> None:
    """Go prints what it read; the network is only taken where the kernel is asked."""
    raw = {"cniVersion": "1.1.0", "routes": [{"dst": "10.1.2.3/8"}]}
    assert from_json(raw).as_version("1.1.0") == raw
