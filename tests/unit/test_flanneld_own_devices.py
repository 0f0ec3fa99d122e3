"""Links of flanneld and of the plugins: by name, alias and what they do, never by kind."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from cni_py.flanneld.own_devices import BRIDGE, FLANNELD, HOST_END, own_devices
from cni_py.kernel.address import HostAddress
from cni_py.kernel.link import Link

KINDS = ("", "veth", "bridge", "vxlan", "tun", "wireguard", "ipip", "bond", "vlan", "dummy", "macvlan", "ipvlan")


def link(name: str, kind: str = "", ifindex: int = 1, master: int = 0, alias: str = "") -> Link:
    return Link(ifindex, name, kind, "", 1500, 1, master, 0, "UP", alias, False, False, None)


def what(*links: Link, addresses: tuple[str, ...] = (), gateways: tuple[str, ...] = ()) -> dict[str, str]:
    """Return them by name; the addresses are the first link's."""
    interfaces = [ip_interface(text) for text in addresses]
    hosts = [HostAddress(links[0].ifindex, interface.ip, 0, interface.network) for interface in interfaces]
    found = own_devices(links, hosts, {ip_interface(text).ip for text in gateways})
    return {each.name: found[each.ifindex] for each in links if each.ifindex in found}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["eth0", "br0", "wg0", "docker0", "cni1", "cni", "flannel", "flannels1", "myflannel.1", "veth1a2b3c4", "vethDEADBEEF", "veth1a2b3c4d5"]
)  # fmt: skip
def test_kind_alone_makes_nothing_ours(name: str, kind: str) -> None:
    assert what(link(name, kind), addresses=("10.244.7.1/24", "192.168.0.1/24"), gateways=("10.244.8.1",)) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name, expected",
    [("flannel.1", FLANNELD), ("flannel-v6.4096", FLANNELD), ("flannel-wg-v6", FLANNELD), ("flannel0", FLANNELD), ("cni0", BRIDGE), ("cni0.7", BRIDGE)],
)  # fmt: skip
def test_name_makes_it_ours_whatever_its_kind(name: str, expected: str, kind: str) -> None:
    assert what(link(name, kind)) == {name: expected}


def test_host_ends() -> None:
    assert what(link("vethdeadbeef", "veth")) == {"vethdeadbeef": HOST_END}
    assert what(link("vethdeadbeef", "bridge")) == {}
    assert what(link("pod", alias="cni:c1:eth0:net")) == {"pod": HOST_END}
    assert what(link("pod", alias="my cni:")) == {}


def test_gateway_of_subnet_env_makes_a_bridge_ours_and_nothing_else() -> None:
    assert what(link("kube0", "bridge"), addresses=("10.244.7.1/24",), gateways=("10.244.7.1",)) == {"kube0": BRIDGE}
    assert what(link("eth0", "veth"), addresses=("10.244.7.1/24",), gateways=("10.244.7.1",)) == {}


def test_bridge_is_the_pods_where_all_its_ports_are() -> None:
    port, uplink = link("veth0a1b2c3d", "veth", 2, master=1), link("eth0", "veth", 3, master=1)
    assert what(link("br0", "bridge")) == {}
    assert what(link("br0", "bridge"), port) == {"br0": BRIDGE, "veth0a1b2c3d": HOST_END}
    assert what(link("br0", "bridge"), port, uplink) == {"veth0a1b2c3d": HOST_END}


def test_ports_of_the_pods_bridge_are_host_ends() -> None:
    assert what(link("cni0", "bridge"), link("veth1", "veth", 2, master=1), link("eth1", "", 3, master=1)) == {
        "cni0": BRIDGE,
        "veth1": HOST_END,
    }
