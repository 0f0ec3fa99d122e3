"""The external interface (flanneld/iface.py), on hosts with several."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from cni_py.errors import InvalidConfig
from cni_py.flanneld.iface import ExternalInterface, find
from cni_py.flanneld.options import Options
from cni_py.node import log as klog
from support.namespaces import Host

LINKS = """
for link in eth0 eth1 eth2; do
  ip link add $link type veth peer name far-$link
  echo 0 >/proc/sys/net/ipv6/conf/$link/addr_gen_mode; echo 1 >/proc/sys/net/ipv6/conf/$link/disable_ipv6
done
echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6
for link in eth0 eth1; do echo 1 >/proc/sys/net/ipv6/conf/$link/addr_gen_mode; done
ip addr add 10.0.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad
ip addr add 192.168.1.2/24 dev eth1; ip addr add 172.16.0.2/24 dev eth1; ip addr add fd01::2/64 dev eth1 nodad
ip link set eth1 mtu 1400
for link in eth0 eth1 eth2; do ip link set $link up; ip link set far-$link up; done
"""


@pytest.fixture
def node(host: Host) -> Host:
    """A host with eth0 and eth1 of both families, and eth2 without an address; it has no default route."""
    host.run(LINKS)
    return host


def found(host: Host, ipv4: bool = True, ipv6: bool = False, **options: Any) -> ExternalInterface:
    return host.do(lambda: find(Options(**options), ipv4, ipv6, quiet=True))


def refusal(host: Host, ipv4: bool = True, ipv6: bool = False, **options: Any) -> str:
    """What is said where nothing is found."""

    def inside() -> str:
        with pytest.raises(InvalidConfig) as refused:
            find(Options(**options), ipv4, ipv6, quiet=True)
        return str(refused.value)

    return host.do(inside)


def log(host: Host, ipv4: bool = True, ipv6: bool = False, **options: Any) -> list[str]:
    def inside() -> list[str]:
        lines: list[str] = []
        klog.info = lines.append  # type: ignore[assignment]
        try:
            find(Options(**options), ipv4, ipv6)
        except InvalidConfig as error:
            lines.append(error.msg)
        return lines

    return host.do(inside)


@pytest.mark.parametrize(
    "options, name, addr",
    [
        ({"iface": ("eth1",)}, "eth1", "192.168.1.2"),
        ({"iface": ("172.16.0.2",)}, "eth1", "172.16.0.2"),
        ({"iface": ("eth9", "eth2", "10.9.9.9", "eth1", "eth0")}, "eth1", "192.168.1.2"),
        ({"iface_regex": (r"^172\.",)}, "eth1", "172.16.0.2"),
        ({"iface_regex": ("eth[1-9]",)}, "eth1", "192.168.1.2"),
        ({"iface_regex": (r"^9\.", r"\.0\.1$")}, "eth0", "10.0.0.1"),
        ({"iface": ("eth9",), "iface_regex": ("eth1",)}, "eth1", "192.168.1.2"),
        ({"iface_can_reach": "172.16.0.9"}, "eth1", "172.16.0.2"),
        ({"iface_regex": ("wlan",), "iface_can_reach": "10.0.0.9"}, "eth0", "10.0.0.1"),
        ({"iface": ("fd01::2",)}, "eth1", "192.168.1.2"),
        ({"public_ip": "172.16.0.2"}, "eth1", "172.16.0.2"),
    ],
)
def test_interface_is_chosen(node: Host, options: dict[str, Any], name: str, addr: str) -> None:
    interface = found(node, **options)
    assert (interface.name, str(interface.addr), interface.addr6) == (name, addr, None)
    assert (str(interface.public_ip), interface.public_ipv6) == (options.get("public_ip", addr), None)
    assert interface.mtu == (1400 if name == "eth1" else 1500)
    assert interface.ifindex == node.json(f"ip -j link show {name}")[0]["ifindex"]


@pytest.mark.parametrize(
    "options, ipv4, addr, addr6",
    [
        ({"iface": ("eth1",)}, False, None, "fd01::2"),
        ({"iface": ("fd01::2",)}, False, None, "fd01::2"),
        ({"iface": ("172.16.0.2",)}, False, None, "fd01::2"),
        ({"iface_regex": ("^fd01:",)}, False, None, "fd01::2"),
        ({"iface_can_reach": "fd01::9"}, False, None, "fd01::2"),
        ({"public_ipv6": "fd01::2"}, False, None, "fd01::2"),
        ({"iface": ("eth1",)}, True, "192.168.1.2", "fd01::2"),
        ({"iface_regex": (r"^172\.|^fd01:",)}, True, "172.16.0.2", "fd01::2"),
        ({"public_ip": "172.16.0.2", "public_ipv6": "fd01::2"}, True, "172.16.0.2", "fd01::2"),
        ({"public_ip": "172.16.0.2"}, True, "172.16.0.2", "fd01::2"),
    ],
)
def test_interface_is_chosen_for_ipv6_and_both(
    node: Host, options: dict[str, Any], ipv4: bool, addr: str | None, addr6: str
) -> None:
    interface = found(node, ipv4, True, **options)
    assert interface.name == "eth1"
    assert interface.addr == (IPv4Address(addr) if addr else None)
    assert interface.addr6 == interface.public_ipv6 == IPv6Address(addr6)
    assert interface.public_ip == interface.addr


def test_default_route_decides_where_nothing_is_said(node: Host) -> None:
    assert "failed to get default interface: unable to find default route" in refusal(node)
    node.run("ip route add default via 10.0.0.9 metric 20; ip route add default via 192.168.1.9 metric 10")
    assert found(node).name == "eth1"
    assert "failed to get default v6 interface: unable to find default v6 route" in refusal(node, ipv6=True)
    node.run("ip -6 route add default via fd00::9")
    assert found(node, ipv4=False, ipv6=True).name == "eth0"
    said = refusal(node, ipv6=True)
    assert "v6 default route interface eth0 must be the same with v4 default route interface eth1" in said
    node.run("ip route del default metric 10")
    assert found(node, ipv6=True).addr6 == IPv6Address("fd00::1")


def test_public_address_may_be_a_routers_where_the_interface_is_named(node: Host) -> None:
    interface = found(node, ipv6=True, iface=("eth1",), public_ip="203.0.113.9", public_ipv6="2001:db8::9")
    assert (str(interface.addr), str(interface.addr6)) == ("192.168.1.2", "fd01::2")
    assert (str(interface.public_ip), str(interface.public_ipv6)) == ("203.0.113.9", "2001:db8::9")


def test_refusal_says_what_was_looked_for_and_what_is_there(node: Host) -> None:
    said = refusal(node, iface=("eth9", "eth2"), iface_regex=("^wlan",), iface_can_reach="8.8.8.8")
    for words in (
        "Failed to find interface to use that matches the interfaces and/or regexes provided",
        "-iface eth9: error looking up interface eth9: no such network interface",
        "-iface eth2: failed to find IPv4 address for interface eth2",
        "-iface-regex ^wlan: could not match pattern ^wlan to any of the available network interfaces",
        "-iface-can-reach 8.8.8.8: failed to get ifcanreach based interface",
        "eth0:[10.0.0.1 fd00::1]",
        "eth1:[192.168.1.2 172.16.0.2 fd01::2]",
        "lo:[]",
    ):
        assert words in said
    said = refusal(node, public_ip="203.0.113.9")
    assert "error looking up interface 203.0.113.9: no interface with given IP found" in said
    assert "with -iface the public address need not be one of this host" in said
    assert "no interface with given IPv6 found" in refusal(node, ipv4=False, ipv6=True, public_ipv6="fd09::9")
    said = refusal(node, ipv6=True, public_ip="10.0.0.1", public_ipv6="fd01::2")
    assert "v6 interface eth1 must be the same with v4 interface eth0" in said


def test_way_to_oneself_leads_to_no_interface(node: Host) -> None:
    """Its source is an address that no other node reaches: the lease would be ignored by all, us included."""
    assert "failed to find IPv4 address for interface lo" in refusal(node, iface_can_reach="127.0.0.1")


def test_log_is_gos(node: Host) -> None:
    assert log(node, ipv6=True, iface=("eth9", "eth0"), public_ipv6="2001:db8::9") == [
        "Could not find valid interface matching eth9: error looking up interface eth9: no such network interface",
        "Using interface with name eth0 and address 10.0.0.1",
        "Using interface with name eth0 and v6 address fd00::1",
        "Defaulting external address to interface address (10.0.0.1)",
        "Using 2001:db8::9 as external address",
    ]
    assert log(node, iface=("10.0.0.1",))[0] == "Searching for interface using 10.0.0.1"
    assert log(node)[0] == "Determining IP address of default interface"
    reach = log(node, iface_can_reach="10.0.0.9")
    assert reach[0] == "Determining interface to use based on given ifcanreach: 10.0.0.9"


def test_better_addresses_come_first(node: Host) -> None:
    node.run(
        "ip addr flush dev eth0; ip addr add 169.254.7.7/16 dev eth0; ip addr add fe80::7/64 dev eth0 nodad;"
        "ip addr add 10.0.0.7/24 dev eth0 valid_lft 1000 preferred_lft 0;"
        "ip addr add 10.1.0.7/24 dev eth0 valid_lft 1000 preferred_lft 1000;"
        "ip addr add fd00::7/64 dev eth0 nodad valid_lft 1000 preferred_lft 1000"
    )
    interface = found(node, ipv6=True, iface=("eth0",))
    assert (str(interface.addr), str(interface.addr6)) == ("10.1.0.7", "fd00::7")
    node.run("ip addr add 10.2.0.7/24 dev eth0; ip addr add fd02::7/64 dev eth0 nodad")
    interface = found(node, ipv6=True, iface=("eth0",))
    assert (str(interface.addr), str(interface.addr6)) == ("10.2.0.7", "fd02::7")
    node.run("for at in 10.0.0.7/24 10.1.0.7/24 10.2.0.7/24 fd00::7/64 fd02::7/64; do ip addr del $at dev eth0; done")
    interface = found(node, ipv6=True, iface=("eth0",))
    assert (str(interface.addr), str(interface.addr6)) == ("169.254.7.7", "fe80::7")


def test_devices_that_flanneld_makes_match_no_pattern(node: Host) -> None:
    node.run("ip link add flannel.1 type bridge; ip addr add 10.244.91.0/32 dev flannel.1; ip link set flannel.1 up")
    assert "could not match pattern" in refusal(node, iface_regex=(r"^10\.244\.",))
    assert found(node, iface=("flannel.1",)).name == "flannel.1"  # who names it means it
