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


def warnings(host: Host, **options: Any) -> list[str]:
    def inside() -> list[str]:
        lines: list[str] = []
        klog.warning = lines.append  # type: ignore[assignment]
        find(Options(**options), True, False)
        return lines

    return host.do(inside)


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
    """The error where nothing is found."""

    def inside() -> str:
        with pytest.raises(InvalidConfig) as refused:
            find(Options(**options), ipv4, ipv6, quiet=True)
        return str(refused.value)

    return host.do(inside)


def test_interface_on_which_ipv6_is_disabled_is_named_with_the_command(node: Host) -> None:
    node.run("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    words = (
        "failed to find IPv6 address for interface eth0: IPv6 is disabled on it: sysctl -w net/ipv6/conf/eth0/disable_ipv6=0"
    )
    assert words in refusal(node, ipv6=True, iface=("eth0",))
    node.run("sysctl -w net/ipv6/conf/eth0/disable_ipv6=0; ip addr add 2001:db8::9/64 dev eth0 nodad")
    assert found(node, ipv6=True, iface=("eth0",)).addr6 == IPv6Address("2001:db8::9")
    assert "IPv6 is disabled" not in refusal(node, ipv6=True, iface=("eth2",))


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


OWN = {
    "flannel.1": "ip link add flannel.1 type bridge",
    "flannel-v6.1": "ip link add flannel-v6.1 type bridge",
    "flannel-wg": "ip link add flannel-wg type bridge",
    "flannel.ipip": "ip link add flannel.ipip type bridge",
    "flannel0": "ip link add flannel0 type bridge",
    "cni0": "ip link add cni0 type bridge",
    "cni0.100": "ip link add cni0.100 type bridge",
    "vethdeadbeef": "ip link add vethdeadbeef type veth peer name far-veth; ip link set far-veth up",
    "pod1": "ip link add pod1 type veth peer name far-pod1; ip link set far-pod1 up; ip link set pod1 alias cni:c1:eth0:net",
    "kube0": "ip link add kube0 type bridge",
    "pods": "ip link add pods type bridge; ip link add veth0a1b2c3d type veth peer name far; ip link set veth0a1b2c3d master pods",
}
SUBNET_ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


@pytest.fixture(params=OWN)
def own(request: pytest.FixtureRequest, node: Host) -> str:
    """A device that flanneld or a plugin created, with an address and the best default route; eth0 has another one."""
    name = str(request.param)
    node.write("/run/flannel/subnet.env", SUBNET_ENV.format(91 if name == "kube0" else 7))
    node.run(
        f"{OWN[name]}; ip addr add 10.244.91.1/24 dev {name}; ip addr add fd00:244::1/64 dev {name} nodad; ip link set {name} up;"
        f"ip route add default via 10.244.91.254 dev {name} metric 1; ip route add default via 10.0.0.254 dev eth0 metric 100;"
        f"ip -6 route add default via fd00:244::254 dev {name} metric 1; ip -6 route add default via fd00::254 dev eth0 metric 100;"
        f"ip route add 198.51.100.0/24 via 10.244.91.254"
    )
    return name


def test_own_device_is_never_the_external_interface(node: Host, own: str) -> None:
    assert [found(node).name, found(node, ipv4=False, ipv6=True).name, found(node, ipv6=True).name] == ["eth0"] * 3
    assert found(node, iface_regex=(r"^10\.",)).name == "eth0"
    assert found(node, iface_regex=(".",)).name == "eth0"
    for options, words in (
        ({"iface_regex": (r"^10\.244\.",)}, "could not match pattern"),
        ({"iface_regex": (f"^{own}$",)}, "could not match pattern"),
        ({"iface_cidr": ("10.244.0.0/16",)}, "no interface has an address in 10.244.0.0/16"),
        ({"iface_can_reach": "198.51.100.7"}, f"the route to 198.51.100.7 is over {own} is "),
        ({"iface_can_reach": "10.244.91.7"}, f"the route to 10.244.91.7 is over {own} is "),
        ({"public_ip": "10.244.91.1"}, f"error looking up interface 10.244.91.1: {own} is "),
        ({"node_addresses": ("10.244.91.1",)}, f"error looking up interface 10.244.91.1: {own} is "),
        ({"iface": ("10.244.91.1",)}, f"error looking up interface 10.244.91.1: {own} is "),
        ({"iface": ("eth1",), "public_ip": "10.244.91.1"}, f"the public address 10.244.91.1 is that of {own}, which is "),
        ({"iface": ("eth1",), "ipv6": True, "public_ipv6": "fd00:244::1"}, f"the public address fd00:244::1 is that of {own}"),
    ):
        assert words in refusal(node, **options)  # type: ignore[arg-type]
    node.run("ip route del default metric 100; ip -6 route del default metric 100")
    assert f"failed to get default interface: the default route is over {own} is " in refusal(node)
    assert f"the default v6 route is over {own} is " in refusal(node, ipv4=False, ipv6=True)


def test_own_device_that_is_named_is_obeyed_with_a_warning(node: Host, own: str) -> None:
    interface = found(node, iface=(own,))
    assert (interface.name, str(interface.public_ip)) == (own, "10.244.91.1")
    assert [line for line in warnings(node, iface=(own,)) if f"-iface names {own}, which is " in line]


OTHERS = {
    "br0": "ip link add br0 type bridge; ip link add up0 type veth peer name up1; ip link set up0 master br0",
    "mixed": "ip link add mixed type bridge; ip link set eth2 master mixed;"
    "ip link add veth0a1b2c3d type veth peer name far; ip link set veth0a1b2c3d master mixed",
    "empty": "ip link add empty type bridge",
    "wg0": "ip link add wg0 type bridge",
    "tailscale0": "ip link add tailscale0 type bridge",
    "docker0": "ip link add docker0 type bridge; ip link add veth1a2b3c4 type veth peer name far; ip link set veth1a2b3c4 master docker0",
    "eth7": "ip link add eth7 type veth peer name far-eth7; ip link set far-eth7 up; ip link set eth7 alias uplink",
    "flannelette": "ip link add flannelette type bridge",
}


@pytest.mark.parametrize("name", OTHERS)
def test_devices_of_others_are_chosen(node: Host, name: str) -> None:
    """Interfaces of any kind: in kind, k3d and our lab a node's eth0 is a veth."""
    node.run(
        f"{OTHERS[name]}; ip addr add 10.9.0.1/24 dev {name}; ip link set {name} up; ip route add default via 10.9.0.254 metric 1"
    )
    for options in (
        {},
        {"iface": (name,)},
        {"iface_regex": (r"^10\.9\.",)},
        {"iface_can_reach": "198.51.100.7"},
        {"public_ip": "10.9.0.1"},
    ):
        assert found(node, **options).name == name  # type: ignore[arg-type]
    assert not warnings(node, iface=(name,))


def test_interface_is_chosen_by_network(node: Host) -> None:
    for networks, name, addr, addr6 in (
        (("172.16.0.0/12",), "eth1", "172.16.0.2", "fd01::2"),
        (("fd00::/16",), "eth0", "10.0.0.1", "fd00::1"),
        (("203.0.113.0/24", "192.168.0.0/16"), "eth1", "192.168.1.2", "fd01::2"),
        (("10.0.0.1/32",), "eth0", "10.0.0.1", "fd00::1"),
    ):
        interface = found(node, ipv6=True, iface_cidr=networks)
        assert (interface.name, str(interface.addr), str(interface.addr6)) == (name, addr, addr6)
    assert found(node, iface=("eth9",), iface_cidr=("10.0.0.0/8",), iface_can_reach="172.16.0.9").name == "eth0"
    said = refusal(node, iface_cidr=("203.0.113.0/24",))
    assert "-iface-cidr 203.0.113.0/24: no interface has an address in 203.0.113.0/24 (" in said
    assert "failed to find IPv4 address" in refusal(node, iface=("eth2",))


def test_interface_is_chosen_by_the_nodes_address(node: Host) -> None:
    interface = found(node, ipv6=True, node_addresses=("172.16.0.2",))
    assert (interface.name, str(interface.addr), str(interface.addr6)) == ("eth1", "172.16.0.2", "fd01::2")
    said = refusal(node, node_addresses=("203.0.113.9",))
    assert "-iface-node-ip 203.0.113.9: error looking up interface 203.0.113.9: no interface with given IP found" in said


@pytest.mark.parametrize("text", ["eth0,enp0s3", "eth0, enp0s3", "10.0.0.1,10.0.0.2", "eth1.5,bond0"])
def test_list_of_interfaces_is_refused_with_the_form_it_needs(node: Host, text: str) -> None:
    first, second = text.replace(" ", "").split(",")
    for options in ({"iface": (text,)}, {"iface_regex": (f"^{text}$".strip("^$"),)}):
        assert f"for several the option is repeated: -iface={first} -iface={second}" in refusal(node, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["eth9", "eth{8,9}", "wlan[,]"])
def test_what_is_no_list_gets_no_such_hint(node: Host, text: str) -> None:
    assert "repeated" not in refusal(node, iface_regex=(text,))


def test_name_with_a_comma_is_found(node: Host) -> None:
    node.run("ip link add a,b type bridge; ip addr add 10.9.0.1/24 dev a,b; ip link set a,b up")
    assert found(node, iface=("a,b",)).name == "a,b"


@pytest.mark.parametrize(
    "public_ip, source", [("203.0.113.9", "10.0.0.1"), ("172.16.0.2", "172.16.0.2"), ("10.0.0.1", "10.0.0.1"), ("", "10.0.0.1")]
)
def test_tunnels_are_sent_from_an_address_that_this_host_has(node: Host, public_ip: str, source: str) -> None:
    assert str(found(node, iface=("eth0",), public_ip=public_ip).source(4)) == source


def test_every_hop_of_a_default_route_counts(node: Host) -> None:
    node.run(
        "ip link add flannel.1 type bridge; ip addr add 10.244.91.1/24 dev flannel.1; ip link set flannel.1 up;"
        "ip route add default nexthop via 10.244.91.254 dev flannel.1 nexthop via 192.168.1.9 dev eth1; ip route add default via 10.0.0.9 metric 7"
    )
    assert found(node).name == "eth1"
    node.run("ip route del default; ip route add unreachable default metric 1")
    assert found(node).name == "eth0"
