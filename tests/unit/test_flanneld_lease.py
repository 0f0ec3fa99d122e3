"""flanneld/lease.py: keys and values byte for byte as Go flannel writes them, and what it takes for none.

The texts are what flannel's source makes (pkg/lease/lease.go, pkg/subnet/subnet.go, pkg/backend/*): the order of
the keys, both addresses always there, no blanks, HTML escapes.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from cni_py.datastore.etcd import Etcd, KeyValue
from cni_py.errors import InvalidConfig
from cni_py.flanneld import backends
from cni_py.flanneld.lease import Attributes, NotALease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores.etcd_leases import Leases
from cni_py.flanneld.stores.lease_file import LeaseFile

IP, IP6, MAC = IPv4Address("192.168.123.11"), IPv6Address("2001:db8::1"), "a6:3a:2f:6a:cd:4c"
VXLAN = {"VNI": 1, "VtepMAC": MAC}
KEY = "RVh1ZFpqaDhBZkd6d1hLVUw4ckpQZ0tFYmJzQkp3cWk="

VALUES = [
    pytest.param(
        Attributes(IP, None, "vxlan", VXLAN),
        '{"PublicIP":"192.168.123.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"a6:3a:2f:6a:cd:4c"}}',
        id="vxlan",
    ),
    pytest.param(
        Attributes(None, IP6, "vxlan", None, VXLAN),
        '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"a6:3a:2f:6a:cd:4c"}}',
        id="vxlan, IPv6 alone",
    ),
    pytest.param(
        Attributes(IP, IP6, "vxlan", VXLAN, VXLAN),
        '{"PublicIP":"192.168.123.11","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"a6:3a:2f:6a:cd:4c"},"BackendV6Data":{"VNI":1,"VtepMAC":"a6:3a:2f:6a:cd:4c"}}',
        id="vxlan, dual stack",
    ),
    pytest.param(
        Attributes(IP, None, "host-gw"), '{"PublicIP":"192.168.123.11","PublicIPv6":null,"BackendType":"host-gw"}', id="host-gw"
    ),
    pytest.param(Attributes(IP), '{"PublicIP":"192.168.123.11","PublicIPv6":null}', id="alloc and udp"),
    pytest.param(
        Attributes(IP, None, "wireguard", {"PublicKey": KEY, "Port": 51820}),
        f'{{"PublicIP":"192.168.123.11","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{KEY}","Port":51820}}}}',
        id="wireguard",
    ),
    pytest.param(
        Attributes(IP, None, "extension", "<a> & \u2028 é"),
        '{"PublicIP":"192.168.123.11","PublicIPv6":null,"BackendType":"extension","BackendData":"\\u003ca\\u003e \\u0026 \\u2028 é"}',
        id="extension",
    ),
]

KEYS = [
    (Subnets(IPv4Network("10.244.91.0/24")), "10.244.91.0-24"),
    (Subnets(IPv4Network("10.244.91.0/24"), IPv6Network("fd00:12:13::/64")), "10.244.91.0-24&fd00:12:13::-64"),
    (Subnets(None, IPv6Network("fd00:12:13:0:0:0:0:0/64")), "0.0.0.0-0&fd00:12:13::-64"),
    (Subnets(IPv4Network("10.4.0.0/30")), "10.4.0.0-30"),
]


@pytest.mark.parametrize("attributes, text", VALUES)
def test_value_is_written_as_by_go(attributes: Attributes, text: str) -> None:
    assert attributes.as_json() == text


@pytest.mark.parametrize("attributes, text", VALUES)
def test_value_of_go_is_read(attributes: Attributes, text: str) -> None:
    assert Attributes.from_json(text.encode()) == attributes
    assert Attributes.from_json(text).as_json() == text


def test_unknown_keys_and_blanks_are_accepted() -> None:
    text = '{ "BackendType": "host-gw",\n"PublicIP": "192.168.123.11", "Later": [1] }'
    assert Attributes.from_json(text) == Attributes(IP, None, "host-gw")


@pytest.mark.parametrize(
    "text",
    [b"", b"x", b"[]", b"null", b"1", b'"x"', b'{"PublicIP":"x"}', b'{"PublicIP":["1.2.3.4"]}', b'{"PublicIPv6":"1.2.3.4"}', b"\xff",
     b"[" * 100_000],
)  # fmt: skip
def test_value_that_is_none(text: bytes) -> None:
    with pytest.raises(NotALease, match="the value is no lease"):
        Attributes.from_json(text)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"PublicIP": "224.0.0.5"}, "224.0.0.5 is no address of a node: it is multicast"),
        ({"PublicIP": "255.255.255.255"}, "it is broadcast"),
        ({"PublicIP": "127.0.0.1"}, "it is loopback"),
        ({"PublicIP": "0.0.0.1"}, "it is no host's"),
        ({"PublicIP": "0.0.0.0"}, 'it has no "PublicIP"'),
        ({"PublicIP": None}, 'it has no "PublicIP"'),
        ({}, 'it has no "PublicIP"'),
        ({"PublicIP": True}, "true is no IPv4 address"),
        ({"PublicIP": 3232267058}, "3232267058 is no IPv4 address"),
        ({"PublicIPv6": 1}, "1 is no IPv6 address"),
        ({"PublicIPv6": "fe80::1%eth0"}, "it is link-local, with a zone"),
        ({"PublicIPv6": "::1"}, "it is loopback"),
        ({"PublicIPv6": "ff02::1"}, "it is multicast"),
        ({"PublicIPv6": "::"}, "it is no host's"),
        ({"PublicIP": "192.0.2.1", "BackendType": 1}, "1 is no type of a back end"),
        ({"PublicIP": "1" * 1_000_000}, f'"{"1" * 63}… (1000002 characters) is no IPv4 address'),
        ({"PublicIP": "192.0.2.1", "BackendType": "x" * 1_000_000}, "… (1000002 characters) is no type of a back end"),
    ],
)
def test_value_that_leads_nowhere_is_none(value: dict[str, Any], words: str) -> None:
    with pytest.raises(NotALease, match=re.escape(words)) as caught:
        Attributes.from_json(json.dumps(value))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("wrong", [1, True, ["2001:db8::1"], "", "x", "fe80::1%eth0", "::1", "ff02::1", "::", "192.0.2.1"])
def test_wrong_ipv6_address_costs_a_node_ipv6_alone(wrong: object) -> None:
    value = {"PublicIP": "192.0.2.1", "PublicIPv6": wrong, "BackendType": "host-gw"}
    assert Attributes.from_json(json.dumps(value)) == Attributes(IPv4Address("192.0.2.1"), None, "host-gw")


@pytest.mark.parametrize("wrong", [1, "x", "127.0.0.1", "224.0.0.5", "2001:db8::1"])
def test_wrong_ipv4_address_costs_a_node_its_lease(wrong: object) -> None:
    """The address makes the lease the node's: one that was damaged is its own all the same, and published again."""
    with pytest.raises(NotALease):
        Attributes.from_json(json.dumps({"PublicIP": wrong, "PublicIPv6": "2001:db8::1"}))


def test_link_local_address_is_one_for_the_nodes_of_a_link() -> None:
    assert Attributes.from_json('{"PublicIPv6":"fe80::1"}').public_ipv6 == IPv6Address("fe80::1")


@pytest.mark.parametrize("subnets, key", KEYS)
def test_key_is_as_go_writes_it_and_read_again(subnets: Subnets, key: str) -> None:
    assert subnets.as_key() == key
    assert Subnets.from_key(key) == subnets


@pytest.mark.parametrize(
    "key",
    ["", "config", "10.244.91.0", "10.244.91.0/24", "10.244.91.5-24", "10.244.910.0-24", "10.244.91.0-33", "10.244.91.0-24&",
     "10.244.91.0-24&fd00::1-64", "10.244.91.0-24&fd00::-129", "10.244.91.0-24&fd00:::-64", "0.0.0.0-0", "x10.244.91.0-24",
     "10.244.91.0-24x", "10.244.91.0-24&::1.2.3.4-128"],
)  # fmt: skip
def test_key_that_is_none(key: str) -> None:
    with pytest.raises(NotALease):
        Subnets.from_key(key)


def test_long_key_is_named_in_short() -> None:
    with pytest.raises(NotALease, match=r"x… \(1000000 characters\)") as caught:
        Subnets.from_key("x" * 1_000_000)
    assert len(str(caught.value)) < 200


def test_log_has_names_of_others_in_short(capfd: pytest.CaptureFixture[str]) -> None:
    """A key of etcd's has a prefix of any length before it; a configuration its own keys and types."""
    leases = Leases(Etcd(["127.0.0.1:1"]), "/subnets/")
    for _ in range(2):
        assert leases.parse(KeyValue("/subnets/" + "x" * 1_000_000, b"{}", 0, 1, 1)) is None
    said = capfd.readouterr().err
    assert said.count("Ignoring bad subnet node") == 1
    assert len(said) < 600
    text = {"Network": "10.244.0.0/16", "Backend": {"Type": "x" * 500_000}, "y" * 500_000: 1}
    config = NetworkConfig.parse(json.dumps(text))
    assert [len(warning) < 200 for warning in config.warnings] == [True]
    with pytest.raises(InvalidConfig, match=r"unknown backend type: x{64}… \(500000 characters\)"):
        backends.check(config)


@pytest.mark.parametrize(
    "one, other, do",
    [
        ("10.244.91.0-24", "10.244.91.0-24", True),
        ("10.244.91.0-24", "10.244.91.128-25", True),
        ("10.244.91.0-24", "10.244.92.0-24", False),
        ("10.244.91.0-24&fd00:1::-64", "10.244.92.0-24&fd00:1::-64", True),
        ("10.244.91.0-24&fd00:1::-64", "10.244.91.0-24", True),
        ("10.244.91.0-24", "0.0.0.0-0&fd00:1::-64", False),
    ],
)
def test_overlap(one: str, other: str, do: bool) -> None:
    first, second = Subnets.from_key(one), Subnets.from_key(other)
    assert first.overlap(second) is do
    assert second.overlap(first) is do


@pytest.mark.parametrize("key", ["Network", "Backend", "later"])
@pytest.mark.parametrize("depth", [40, 985, 5000])
def test_configuration_that_is_nested_deep_is_refused(key: str, depth: int) -> None:
    with pytest.raises(InvalidConfig, match="nested more than 32 deep"):
        NetworkConfig.parse(f'{{"Network": "10.244.0.0/16", "{key}": {"[" * depth}{"]" * depth}}}')


def test_entry_of_a_file_keeps_what_a_person_added_as_long_as_it_says_the_same() -> None:
    subnets = Subnets(IPv4Network("10.244.91.0/24"))
    entry = {"publicip": str(IP), "BackendType": "vxlan", "BackendData": {**VXLAN, "rack": 7}, "note": "mine"}
    content = LeaseFile(json.dumps({"config": {}, "leases": {subnets.as_key(): entry}}).encode())
    [lease] = content.leases().values()
    content.put(lease)
    assert json.loads(content.as_text())["leases"][subnets.as_key()] == {
        "PublicIP": str(IP),
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {**VXLAN, "rack": 7},
        "note": "mine",
        "Expires": None,
    }
    content.put(replace(lease, attributes=replace(lease.attributes, backend_data={**VXLAN, "VNI": 2})))
    assert content.leases()[subnets].attributes.backend_data == {**VXLAN, "VNI": 2}
    assert LeaseFile(content.as_text()).leases() == content.leases()
