"""MAC addresses of VXLAN devices: stable for a node and a device, and no other's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from cni_py.flanneld.vtep_mac import stable_mac


def test_mac_is_always_the_same() -> None:
    """Values that are in the leases of running clusters: changing the function changes every node's address."""
    assert stable_mac("flannel.1", IPv4Address("192.168.123.11")) == "f2:79:8f:07:88:e2"
    assert stable_mac("flannel-v6.1", IPv6Address("fd00:123::11")) == "96:fc:8a:77:a9:b0"


def test_mac_is_local_and_unicast_and_one_nodes_alone() -> None:
    nodes = [IPv4Address("10.0.0.0") + number for number in range(5000)]
    macs = {stable_mac(device, node) for node in nodes for device in ("flannel.1", "flannel-v6.1", "flannel.2")}
    macs |= {stable_mac("flannel.1", nodes[0], f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}") for number in range(1000)}
    assert len(macs) == 16_000
    assert all(int(mac[:2], 16) & 0x03 == 0x02 for mac in macs)
