"""A roll-out of dual stack: of a peer that has one family that one is reached, and what is left out is a warning. A table.

Each back end with a network of both families, and leases that lack something of one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from cni_py.flanneld import backends
from cni_py.flanneld.backends import vxlan
from cni_py.flanneld.following import Following
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.node.desired import Desired
from cni_py.node.health import Health
from support.stub_kernel import StubWireGuardDevice

HERE, HERE6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
SUBNET, SUBNET6 = IPv4Network("10.244.2.0/24"), IPv6Network("fd00:244:0:2::/64")
NETWORK = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
KEY = "RVh1ZFpqaDhBZkd6d1hLVUw4ckpQZ0tFYmJzQkp3cWk="
DATA: dict[str, Any] = {"vxlan": {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"}, "wireguard": {"PublicKey": KEY, "Port": 51820}}
TYPES = {"udp": ""}
BACKENDS = ["vxlan", "host-gw", "udp", "wireguard"]
OWN = Lease(Subnets(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:244:0:1::/64")), Attributes(HERE, HERE6))


class Kernel:
    def __init__(self) -> None:
        self.desired = Desired()

    def replace(self, owner: Any, former: Any, group: Any) -> Any:
        return self.desired.replace(owner, former, group)

    def settle(self) -> None:
        self.desired.take_changes()


class Node:
    def __init__(self, kind: str) -> None:
        config = NetworkConfig.parse(json.dumps({**NETWORK, "Backend": {"Type": kind}}))
        self.kind, self.kernel = kind, Kernel()
        self.backend: Any = backends.create(config, ExternalInterface("eth0", 2, 1500, HERE, HERE6, HERE, HERE6))
        if kind == "vxlan":
            devices = {version: self.backend._device(version, vxlan.device_name(1, version), "") for version in (4, 6)}
            self.backend._vxlans = devices
        if kind == "wireguard":
            self.backend._devices = {name: StubWireGuardDevice() for name in self.backend.names.values()}
        kernel: Any = self.kernel
        self.host_reasons: dict[Subnets, str] = {}
        self.following = Following(
            config,
            lambda: OWN,
            self.backend,
            kernel,
            Health("", 0),
            {},
            lambda _: None,
            lambda subnets: next((reason for of, reason in self.host_reasons.items() if of.overlap(subnets)), ""),
        )
        self.following.start({}, is_confirmed=True)

    def reached(self) -> set[int]:
        """Return the families by which the peer is reached."""
        if self.kind == "wireguard":
            return {
                net.version
                for device in self.backend._devices.values()
                for peer in device.peers.values()
                for net in peer.allowed
            }
        if self.kind == "udp":
            tables = self.backend._tables.items()
            return {family for family, table in tables if table.find(int((SUBNET if family == 4 else SUBNET6)[7]))}
        entries = [entry for table in self.kernel.desired._entries.values() for entry in table.values()]
        return {entry.dst.version for entry in entries if hasattr(entry, "dst")}


def lease(kind: str, **its: Any) -> Lease:
    data = DATA.get(kind)
    attributes = Attributes(IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2"), TYPES.get(kind, kind), data, data)
    return Lease(Subnets(SUBNET, SUBNET6), replace(attributes, **its))


def with_wrong_ipv6(kind: str) -> Lease:
    """Return what a value says whose IPv6 address no node can have."""
    its = json.loads(lease(kind).attributes.as_json()) | {"PublicIPv6": "::1"}
    return replace(lease(kind), attributes=Attributes.from_value(its))


LACKS: list[tuple[str, Any, set[int], str]] = [
    ("nothing", lease, {4, 6}, ""),
    ("IPv6 address", lambda kind: lease(kind, public_ipv6=None), {4}, "has no public IPv6 address; not reached by IPv6"),
    ("valid IPv6 address", with_wrong_ipv6, {4}, "has no public IPv6 address; not reached by IPv6"),
    ("IPv4 address", lambda kind: lease(kind, public_ip=None), {6}, "has no public IPv4 address; not reached by IPv4"),
    ("IPv6 subnet", lambda kind: replace(lease(kind), subnets=Subnets(SUBNET)), {4}, "has no IPv6 subnet; not reached by IPv6"),
    (
        "IPv4 subnet",
        lambda kind: replace(lease(kind), subnets=Subnets(None, SUBNET6)),
        {6},
        "has no IPv4 subnet; not reached by IPv4",
    ),
    (
        "IPv6 network",
        lambda kind: replace(lease(kind), subnets=Subnets(SUBNET, IPv6Network("fd00:9::/64"))),
        {4},
        "it is not in the network",
    ),
]


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(("make", "reached", "words"), [it[1:] for it in LACKS], ids=[it[0] for it in LACKS])
def test_peer_that_lacks_a_family_is_reached_by_the_other(
    kind: str, make: Any, reached: set[int], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    node = Node(kind)
    for _ in range(2):
        node.following.take([make(kind)], 100.0)
    assert node.reached() == reached
    said = [line for line in capfd.readouterr().err.splitlines() if "not reached" in line]
    assert len(said) == bool(words)
    assert all(line.startswith("W") and words in line for line in said)
    node.following.take([lease(kind)], 100.0)
    node.following.take([make(kind)], 100.0)
    assert node.reached() >= reached


@pytest.mark.parametrize("kind", ["vxlan", "wireguard"])
def test_peer_without_the_data_of_a_family_is_reached_by_the_other(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    node = Node(kind)
    node.following.take([lease(kind, backend_v6_data=None)], 100.0)
    assert node.reached() == {4}
    [line] = [line for line in capfd.readouterr().err.splitlines() if "not reached" in line]
    assert line.startswith("W")
    assert "not reached by IPv6" in line


@pytest.mark.parametrize("kind", BACKENDS)
def test_family_that_overlaps_a_network_of_the_host_is_left_out_and_comes_back(kind: str) -> None:
    node = Node(kind)
    node.host_reasons = {Subnets(None, SUBNET6): "it overlaps eth1"}
    node.following.take([lease(kind)], 100.0)
    assert node.reached() == {4}
    node.host_reasons = {Subnets(SUBNET): "it overlaps eth2"}
    node.following.recheck()
    node.following.take([], 100.0)
    assert node.reached() == {6}
    node.host_reasons = {}
    node.following.recheck()
    node.following.take([], 100.0)
    assert node.reached() == {4, 6}


@pytest.mark.parametrize(
    "mac", ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "x", "", None, 5]
)
def test_mac_address_of_a_group_or_of_none_is_refused(mac: Any, capfd: pytest.CaptureFixture[str]) -> None:
    node = Node("vxlan")
    node.following.take([lease("vxlan", backend_data={"VtepMAC": mac})], 100.0)
    assert node.reached() == {6}
    assert "the lease of 10.244.2.0/24 has no MAC address of its VXLAN device" in capfd.readouterr().err
