"""network.py: a network's configuration, with what Go fills in and Go's sentences where it refuses."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from cni_py.errors import InvalidConfig
from cni_py.flanneld.network import NetworkConfig

ROOT = Path(__file__).resolve().parents[2]
VXLAN = {"Backend": {"Type": "vxlan"}}
V6 = {"EnableIPv4": False, "EnableIPv6": True}


def parse(**keys: Any) -> NetworkConfig:
    return NetworkConfig.parse(json.dumps(VXLAN | keys))


def faults(text: str | dict[str, Any]) -> dict[str, str]:
    """Text of the error, by key."""
    with pytest.raises(InvalidConfig) as error:
        NetworkConfig.parse(text if isinstance(text, str) else json.dumps(VXLAN | text))
    assert error.value.msg == "the network configuration is invalid"
    lines = [line.partition(": ") for line in error.value.details.splitlines()]
    return {key.strip('"'): fault for key, _, fault in lines}


def test_guides_configuration() -> None:
    config = NetworkConfig.parse('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}')
    assert (config.ipv4, config.ipv6) == (True, False)
    assert config.network == IPv4Network("10.244.0.0/16")
    assert (config.subnet_len, config.subnet_min, config.subnet_max) == (
        24,
        IPv4Address("10.244.1.0"),
        IPv4Address("10.244.255.0"),
    )
    assert (config.backend_type, config.backend) == ("vxlan", {"Type": "vxlan"})
    assert (config.enable_nftables, config.warnings) == (False, ())
    assert str(config) == "10.244.0.0/16: subnets of /24, 10.244.1.0 to 10.244.255.0; back end vxlan"


@pytest.mark.parametrize(
    ("network", "given", "length", "low", "high"),
    [
        ("10.3.0.0/16", 0, 24, "10.3.1.0", "10.3.255.0"),
        ("10.3.7.9/16", 0, 24, "10.3.1.0", "10.3.255.0"),
        ("10.0.0.0/8", 28, 28, "10.0.0.16", "10.255.255.240"),
        ("10.3.0.0/22", 0, 24, "10.3.1.0", "10.3.3.0"),
        ("10.3.0.0/23", 0, 25, "10.3.0.128", "10.3.1.128"),
        ("10.3.0.0/28", 0, 30, "10.3.0.4", "10.3.0.12"),
        ("10.3.0.0/28", 30, 30, "10.3.0.4", "10.3.0.12"),
    ],
)
def test_what_is_left_out_is_filled_in(network: str, given: int, length: int, low: str, high: str) -> None:
    config = parse(Network=network, SubnetLen=given)
    assert (config.subnet_len, str(config.subnet_min), str(config.subnet_max)) == (length, low, high)


@pytest.mark.parametrize(
    ("network", "given", "length", "low", "high"),
    [
        ("fc00::/48", 0, 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 0, 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 0, 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("fc00::/124", 0, 126, "fc00::4", "fc00::c"),
        ("fc00::/16", 80, 80, "fc00::1:0:0:0", "fc00:ffff:ffff:ffff:ffff::"),
    ],
)
def test_what_is_left_out_is_filled_in_for_ipv6(network: str, given: int, length: int, low: str, high: str) -> None:
    config = parse(**V6, IPv6Network=network, IPv6SubnetLen=given)
    assert config.ipv6_subnet_len == length
    assert (config.ipv6_subnet_min, config.ipv6_subnet_max) == (IPv6Address(low), IPv6Address(high))


def test_ipv6_alone() -> None:
    config = parse(**V6, IPv6Network="2001:cafe:42::1/56")
    assert (config.ipv4, config.ipv6) == (False, True)
    assert (config.network, config.subnet_len, config.subnet_min, config.subnet_max) == (None, 0, None, None)
    assert config.ipv6_network == IPv6Network("2001:cafe:42::/56")


def test_both_families() -> None:
    config = parse(
        EnableIPv6=True,
        Network="10.42.0.0/16",
        SubnetMin="10.42.8.0",
        SubnetMax="10.42.9.0",
        IPv6Network="fd00::/48",
        IPv6SubnetMin="fd00:0:0:8::",
        IPv6SubnetMax="fd00:0:0:9::",
    )
    assert (config.ipv4, config.ipv6) == (True, True)
    assert (str(config.subnet_min), str(config.subnet_max)) == ("10.42.8.0", "10.42.9.0")
    assert (str(config.ipv6_subnet_min), str(config.ipv6_subnet_max)) == ("fd00:0:0:8::", "fd00:0:0:9::")
    assert str(config).startswith("10.42.0.0/16: subnets of /24, 10.42.8.0 to 10.42.9.0; fd00::/48: subnets of /64, ")


def test_keys_come_in_any_case_and_the_last_one_counts() -> None:
    config = NetworkConfig.parse(
        '{"network":"10.0.0.0/8","NETWORK":"10.1.0.0/16","Network":"10.2.0.0/16","network":"10.3.0.0/16","backend":{"tYPE":"VXLAN"}}'
    )
    assert str(config.network) == "10.3.0.0/16"
    assert config.backend_type == "vxlan"


def test_nulls_that_are_nothing() -> None:
    config = parse(
        Network="10.0.0.0/16",
        SubnetLen=None,
        EnableIPv4=None,
        EnableIPv6=None,
        IPv6SubnetMin=None,
        EnableNFTables=None,
        IPv6SubnetLen=None,
    )
    assert (config.ipv4, config.ipv6, config.subnet_len) == (True, False, 24)


def test_back_ends_keys_are_kept_as_they_are_and_not_shown() -> None:
    config = NetworkConfig.parse('{"Network":"10.0.0.0/16","Backend":{"Type":"WireGuard","PSK":"hush","ListenPort":1}}')
    assert config.backend == {"Type": "WireGuard", "PSK": "hush", "ListenPort": 1}
    assert config.backend_type == "wireguard"
    assert "hush" not in repr(config) + str(config)


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(Network="10.0.0.0/16").subnet_len = 3  # type: ignore[misc]


# ---- warnings ---------------------------------------------------------------------------------


def test_without_back_end_it_is_udp_with_a_warning() -> None:
    config = NetworkConfig.parse('{"Network":"10.244.0.0/16"}')
    assert config.backend_type == "udp"
    assert config.warnings == ('no "Backend", so it is udp, as in Go flannel: slow. Mostly {"Type": "vxlan"} is meant',)


def test_unknown_keys_are_accepted_with_a_warning() -> None:
    assert parse(Network="10.0.0.0/16", SubnetLength=24).warnings == (
        '"SubnetLength" is no key of a network configuration and has no effect',
    )


def test_keys_of_a_family_that_is_off_are_reported() -> None:
    config = parse(Network="10.0.0.0/16", IPv6Network="fd00::/48")
    assert config.warnings == ('"IPv6Network" has no effect: EnableIPv6 is false',)
    assert (config.ipv6, config.ipv6_network) == (False, None)
    assert parse(Network="10.0.0.0/16", EnableIPv6=False).warnings == ()


# ---- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key", "fault"),
    [
        ({}, "Network", "please define a correct Network parameter in the flannel config"),
        ({"Network": "0.0.0.0/0"}, "Network", "please define a correct Network parameter in the flannel config"),
        ({"Network": "10.0.0.0"}, "Network", 'invalid CIDR address, not "10.0.0.0"'),
        ({"Network": "10.0.0.0/255.0.0.0"}, "Network", 'invalid CIDR address, not "10.0.0.0/255.0.0.0"'),
        ({"Network": "10.0.0.0/33"}, "Network", 'invalid CIDR address, not "10.0.0.0/33"'),
        ({"Network": ""}, "Network", 'invalid CIDR address, not ""'),
        ({"Network": None}, "Network", "invalid CIDR address, not null"),
        ({"Network": 10}, "Network", "invalid CIDR address, not 10"),
        ({"Network": "fd00::/48"}, "Network", 'invalid IPv4 CIDR format, not "fd00::/48"'),
        ({"Network": "10.0.0.0/16", "SubnetLen": 31}, "SubnetLen", "SubnetLen must be less than /31, not 31"),
        ({"Network": "10.0.0.0/16", "SubnetLen": 17}, "SubnetLen", "network must be able to accommodate at least four subnets: it is 10.0.0.0/16"),
        ({"Network": "10.0.0.0/29"}, "Network", "network is too small. Minimum useful network prefix is /28"),
        ({"Network": "10.0.0.0/16", "SubnetLen": -1}, "SubnetLen", "Input should be greater than or equal to 0, not -1"),
        ({"Network": "10.0.0.0/16", "SubnetLen": "24"}, "SubnetLen", 'Input should be a valid integer, not "24"'),
        ({"Network": "10.0.0.0/16", "SubnetLen": True}, "SubnetLen", "Input should be a valid integer, not true"),
        ({"Network": "10.0.0.0/16", "SubnetLen": 24.0}, "SubnetLen", "Input should be a valid integer, not 24.0"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "10.1.0.0"}, "SubnetMin", "SubnetMin is not in the range of the Network: 10.1.0.0"),
        ({"Network": "10.0.0.0/16", "SubnetMax": "9.0.0.0", "SubnetMin": "10.0.9.0"}, "SubnetMax", "SubnetMax is not in the range of the Network: 9.0.0.0"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "10.0.1.4"}, "SubnetMin", "SubnetMin is not on a SubnetLen boundary: 10.0.1.4"),
        ({"Network": "10.0.0.0/16", "SubnetMax": "10.0.1.4"}, "SubnetMax", "SubnetMax is not on a SubnetLen boundary: 10.0.1.4"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "10.0.9.0", "SubnetMax": "10.0.8.0"}, "SubnetMax", "10.0.8.0 comes before SubnetMin, 10.0.9.0"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "fd00::"}, "SubnetMin", 'invalid IPv4 address format, not "fd00::"'),
        ({"Network": "10.0.0.0/16", "SubnetMin": None}, "SubnetMin", "invalid IPv4 address format, not null"),
        ({"Network": "10.0.0.0/16", "EnableIPv6": True}, "IPv6Network", "please define a correct IPv6Network parameter in the flannel config"),
        ({**V6, "IPv6Network": "::/0"}, "IPv6Network", "please define a correct IPv6Network parameter in the flannel config"),
        ({**V6, "IPv6Network": "10.0.0.0/8"}, "IPv6Network", 'invalid IPv6 CIDR format, not "10.0.0.0/8"'),
        ({**V6, "IPv6Network": "fe80::%1/64"}, "IPv6Network", 'invalid CIDR address, not "fe80::%1/64"'),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}, "IPv6SubnetLen", "SubnetLen must be less than /127, not 127"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 49}, "IPv6SubnetLen", "network must be able to accommodate at least four subnets: it is fd00::/48"),
        ({**V6, "IPv6Network": "fd00::/125"}, "IPv6Network", "IPv6Network is too small. Minimum useful network prefix is /124"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd01::"}, "IPv6SubnetMin", "IPv6SubnetMin is not in the range of the IPv6Network: fd01::"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::1"}, "IPv6SubnetMax", "IPv6SubnetMax is not on a SubnetLen boundary: fd00::1"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::%1"}, "IPv6SubnetMax", 'invalid IPv6 address format, not "fd00::%1"'),
        ({"EnableIPv4": False}, "EnableIPv4", "none defined stack: neither this nor EnableIPv6 is true"),
        ({"Network": "10.0.0.0/16", "EnableIPv4": "yes"}, "EnableIPv4", 'Input should be a valid boolean, not "yes"'),
        ({"Network": "10.0.0.0/16", "EnableNFTables": 1}, "EnableNFTables", "Input should be a valid boolean, not 1"),
        ({"Network": "10.0.0.0/16", "Backend": None}, "Backend", 'it is an object such as {"Type": "vxlan"}, not null'),
        ({"Network": "10.0.0.0/16", "Backend": "vxlan"}, "Backend", 'it is an object such as {"Type": "vxlan"}, not "vxlan"'),
        ({"Network": "10.0.0.0/16", "Backend": {}}, "Backend.Type", "it is missing"),
        ({"Network": "10.0.0.0/16", "Backend": {"Type": ""}}, "Backend.Type", 'it is a name such as vxlan, not ""'),
        ({"Network": "10.0.0.0/16", "Backend": {"Type": 7}}, "Backend.Type", "it is a name such as vxlan, not 7"),
    ],
)  # fmt: skip
def test_fault_names_its_key(keys: dict[str, Any], key: str, fault: str) -> None:
    found = faults(keys)
    assert found[key] == fault
    assert len(found) == 1


def test_all_faults_at_once() -> None:
    found = faults({"Network": 7, "SubnetLen": "x", "EnableIPv6": True, "IPv6Network": "fd00::/127", "Backend": {"Type": 3}})
    assert list(found) == ["Network", "SubnetLen", "IPv6Network", "Backend.Type"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"SubnetLen":' + "9" * 5000 + "}",
        '{"SubnetLen":Infinity}',
        "\ufeff{}",
        "{}x",
    ],
    ids=range(9),
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(InvalidConfig, match="is no JSON"):
        NetworkConfig.parse(text)


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("null", "NoneType"), ("7", "int"), ('"x"', "str")])
def test_what_is_no_object(text: str, kind: str) -> None:
    with pytest.raises(InvalidConfig, match=f"JSON {kind}, not an object"):
        NetworkConfig.parse(text)


def test_what_is_too_large() -> None:
    with pytest.raises(InvalidConfig, match="larger than"):
        NetworkConfig.parse('{"x":"' + "x" * (1 << 20) + '"}')


def test_example_that_is_installed_is_valid() -> None:
    config = NetworkConfig.parse((ROOT / "conf/net-conf.json").read_text())
    assert (str(config.network), config.backend_type, config.warnings) == ("10.244.0.0/16", "vxlan", ())


@pytest.mark.parametrize(
    ("text", "is_set"), [("", False), ('"EnableNFTables":null,', False), ('"ENABLENFTABLES":false,', True)]
)
def test_whether_nftables_was_spoken_of_is_kept(text: str, is_set: bool) -> None:
    """Left out, it is what works (firewall.py)."""
    config = NetworkConfig.parse("{" + text + '"Network":"10.0.0.0/16","Backend":{"Type":"vxlan"}}')
    assert ("enable_nftables" in config.model_fields_set) is is_set
