"""State that flanneld keeps in the kernel (kernel/vxlan.py, routes.py, neighbour.py, watch.py, …), against a real one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar

import pytest

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.journal import Journal
from cni_py.kernel import features
from cni_py.kernel.address import add_address, delete_address, list_addresses, list_host_addresses
from cni_py.kernel.link import find_link, set_mac, set_mtu, set_up
from cni_py.kernel.neighbour import (
    Forwarding,
    Neighbour,
    delete_forwarding,
    delete_neighbours,
    list_forwarding,
    list_neighbours,
    replace_forwarding,
    replace_neighbours,
)
from cni_py.kernel.route import (
    PROTOCOL,
    Route,
    blackhole,
    default_interfaces,
    delete_routes,
    list_routes,
    replace_routes,
    route_get,
)
from cni_py.kernel.vxlan import Vxlan, VxlanDetails, ensure_vxlan, find_vxlan
from cni_py.netlink import socket as rtnl
from cni_py.netlink.constants import (
    NETLINK_ROUTE,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_ROUTE,
)
from cni_py.netlink.monitor import KINDS, Watch
from support.namespaces import Host
from support.pods import NO_DAD
from support.waiting import SECONDS, until

T = TypeVar("T")

MAC, OTHER_MAC = "a6:3a:2f:6a:cd:4c", "32:30:10:b7:75:6c"
PEERS = 5000
BOOT = 3  # the protocol number of Go flannel's routes


@pytest.fixture
def node(host: Host) -> Host:
    """A host with an underlay of both families, eth0, and a second one, eth1."""
    host.run(
        f"{NO_DAD} ip link add eth0 type veth peer name far0; ip link add eth1 type veth peer name far1;"
        "ip addr add 192.168.123.11/24 dev eth0; ip addr add fd00::11/64 dev eth0 nodad;"
        "for link in eth0 eth1 far0 far1; do ip link set $link up; done"
    )
    # what the kernel adds of itself after a link is up
    until(lambda: [host.run(f"ip -6 route show table all {to}").count(to) for to in ("fe80::/64", "ff00::/8")] == [4, 4])
    return host


def ask(host: Host, function: Callable[..., T], *args: Any) -> T:
    """Call a function of ``kernel/`` in the host with an rtnetlink socket of it."""

    def inside() -> T:
        with rtnl.open_host() as netlink:
            return function(netlink, *args)

    return host.do(inside)


def words(refusals: list[Any]) -> list[str]:
    return [str(refusal.error) for refusal in refusals]


def index_of(host: Host, name: str) -> int:
    return int(host.json(f"ip -j link show {name}")[0]["ifindex"])


def device(host: Host, **changes: Any) -> Vxlan:
    usual = Vxlan("flannel.1", 1, 8472, IPv4Address("192.168.123.11"), index_of(host, "eth0"), MAC, 1450)
    return replace(usual, **changes)


def ensured(netlink: rtnl.Rtnl, wanted: Vxlan) -> tuple[Any, list[str]]:
    """The link, and what was warned of."""
    warnings: list[str] = []
    return ensure_vxlan(netlink, wanted, warnings.append), warnings


def up(netlink: rtnl.Rtnl, wanted: Vxlan) -> Any:
    link = ensure_vxlan(netlink, wanted)
    set_up(netlink, link)
    return link


# --- VXLAN devices ----------------------------------------------------------------------------------------------------


def test_vxlan_device_is_made_as_go_makes_it(node: Host) -> None:
    ask(node, ensured, device(node))
    link = node.json("ip -j -d link show flannel.1")[0]
    data = link["linkinfo"]["info_data"]
    assert (link["address"], link["mtu"], link.get("txqlen", 0), data["link"]) == (MAC, 1450, 0, "eth0")
    assert (data["id"], data["port"], data["local"], data["learning"]) == (1, 8472, "192.168.123.11", False)
    assert not {"gbp", "l2miss", "l3miss", "proxy", "rsc", "group", "remote"} & {key for key, value in data.items() if value}


def test_vxlan_device_over_ipv6_lives_beside_that_over_ipv4(node: Host) -> None:
    ask(node, ensured, device(node))
    ask(node, ensured, device(node, name="flannel-v6.1", local=IPv6Address("fd00::11"), mtu=1430))
    data = node.json("ip -j -d link show flannel-v6.1")[0]["linkinfo"]["info_data"]
    assert (data["id"], data["local6"], data["port"]) == (1, "fd00::11", 8472)
    details = ask(node, find_vxlan, "flannel-v6.1")
    assert details is not None
    assert details.local == IPv6Address("fd00::11")


def test_vxlan_device_is_read_back_fully(node: Host) -> None:
    node.run(
        "ip link add flannel.7 mtu 1400 txqueuelen 9 address 02:00:00:00:00:07 type vxlan id 7 dev eth1 local 192.168.123.11"
        " dstport 4789 learning l2miss l3miss gbp group 239.1.1.1 && ip link set flannel.7 up"
    )
    assert ask(node, find_vxlan, "flannel.7") == VxlanDetails(
        name="flannel.7",
        ifindex=index_of(node, "flannel.7"),
        mac="02:00:00:00:00:07",
        mtu=1400,
        txqueuelen=9,
        is_up=True,
        vni=7,
        port=4789,
        local=IPv4Address("192.168.123.11"),
        group=IPv4Address("239.1.1.1"),
        underlay=index_of(node, "eth1"),
        learning=True,
        gbp=True,
        l2miss=True,
        l3miss=True,
    )
    assert ask(node, find_vxlan, "eth0") is None
    assert ask(node, find_vxlan, "nothing7") is None


def test_gbp_learning_and_the_kernels_port_can_be_asked_for(node: Host) -> None:
    ask(node, ensured, device(node, gbp=True, learning=True, port=0))
    details = ask(node, find_vxlan, "flannel.1")
    assert details is not None
    assert (details.gbp, details.learning, details.port) == (True, True, 8472)
    assert ask(node, ensured, device(node, gbp=True, learning=True, port=0))[1] == []


def test_device_that_fits_is_adopted_with_its_mac_address(node: Host) -> None:
    first, _ = ask(node, ensured, device(node, mac=""))
    again, warnings = ask(node, ensured, device(node, mac=""))
    assert (again.ifindex, again.mac, warnings) == (first.ifindex, first.mac, [])
    assert int(first.mac[:2], 16) & 3 == 2  # of this host alone, and of one card


def test_mtu_mac_and_learning_are_corrected_in_place(node: Host) -> None:
    first = ask(node, up, device(node))
    link, warnings = ask(node, ensured, device(node, mtu=1300, mac=OTHER_MAC, learning=True))
    details = ask(node, find_vxlan, "flannel.1")
    assert details is not None
    assert (details.mtu, details.mac, details.learning, details.is_up) == (1300, OTHER_MAC, True, True)
    assert (link.ifindex, link.mtu, warnings) == (first.ifindex, 1300, [])


@pytest.mark.parametrize(
    "made, reason",
    [
        ("type vxlan id 2 dev eth0 local 192.168.123.11 dstport 8472", "vni: 1 vs 2"),
        ("type vxlan id 1 dev eth0 local 192.168.123.11 dstport 4789", "port: 8472 vs 4789"),
        ("type vxlan id 1 dev eth0 local 192.168.123.9 dstport 8472", "vtep (external) IP: 192.168.123.11 vs 192.168.123.9"),
        ("type vxlan id 1 dev eth0 dstport 8472", "vtep (external) IP: 192.168.123.11 vs None"),
        ("type vxlan id 1 dev eth0 local fd00::11 dstport 8472", "vtep (external) IP: 192.168.123.11 vs fd00::11"),
        ("type vxlan id 1 dev eth0 local 192.168.123.11 dstport 8472 l2miss", "l2miss: False vs True"),
        ("type vxlan id 1 dev eth0 local 192.168.123.11 dstport 8472 l3miss", "l3miss: False vs True"),
        ("type vxlan id 1 dev eth0 local 192.168.123.11 dstport 8472 gbp", "gbp: False vs True"),
        ("type vxlan id 1 dev eth0 local 192.168.123.11 dstport 8472 group 239.1.1.1", "group address: None vs 239.1.1.1"),
    ],
)
def test_device_that_does_not_fit_is_created_again_and_keeps_its_mac_address(node: Host, made: str, reason: str) -> None:
    node.run(f"ip link add flannel.1 address {OTHER_MAC} {made}; ip link set flannel.1 up")
    link, warnings = ask(node, ensured, device(node, mac=""))
    assert warnings == [f'"flannel.1" already exists with incompatible configuration: {reason}; recreating device']
    assert link.mac == OTHER_MAC
    assert ask(node, ensured, device(node, mac=""))[1] == []


def test_device_over_another_interface_or_of_another_kind_is_created_again(node: Host) -> None:
    node.run("ip link add flannel.1 type vxlan id 1 dev eth1 local 192.168.123.11 dstport 8472")
    eth0, eth1 = index_of(node, "eth0"), index_of(node, "eth1")
    assert f"vtep (external) interface: {eth0} vs {eth1};" in ask(node, ensured, device(node))[1][0]
    node.run("ip link del flannel.1; ip link add flannel.1 type bridge")
    link, warnings = ask(node, ensured, device(node))
    assert "link type: vxlan vs bridge;" in warnings[0]
    assert (link.kind, link.mac) == ("vxlan", MAC)


def test_vni_that_another_device_has_is_refused_with_its_name(node: Host) -> None:
    node.run("ip link add overlay type vxlan id 1 dev eth0 dstport 8472")
    with pytest.raises(KernelRefused) as refused:
        ask(node, ensured, device(node))
    assert "ip link add flannel.1 mtu 1450" in refused.value.msg
    assert '"overlay" has VNI 1 on port 8472' in str(refused.value.__notes__)  # an exception comes here without its hint


def test_link_gets_mtu_and_mac_address(node: Host) -> None:
    def change(netlink: rtnl.Rtnl) -> None:
        link = find_link(netlink, "eth1")
        assert link is not None
        set_mtu(netlink, link, 1280)
        set_mac(netlink, link, OTHER_MAC)

    ask(node, change)
    link = node.json("ip -j link show eth1")[0]
    assert (link["mtu"], link["address"]) == (1280, OTHER_MAC)


def test_addresses_are_added_listed_and_deleted(node: Host) -> None:
    addresses = [IPv4Interface("10.244.91.0/32"), IPv6Interface("fd01::/128")]
    wanted = device(node)

    def change(netlink: rtnl.Rtnl) -> tuple[list[Any], list[Any]]:
        link = up(netlink, wanted)
        for address in (*addresses, *addresses):
            add_address(netlink, link, address)
        there = list_addresses(netlink, link)
        for address in (*addresses, *addresses):
            delete_address(netlink, link, address)
        return there, list_addresses(netlink, link)

    assert ask(node, change) == (addresses, [])


# --- routes -----------------------------------------------------------------------------------------------------------


def route4(number: int, via: str = "", dev: str = "flannel.1", **more: Any) -> Route:
    gateway = IPv4Address(via or f"10.244.{number}.0")
    return Route(IPv4Network(f"10.244.{number}.0/24"), dev, gateway, onlink=not via, **more)


def route6(number: int, via: str = "", dev: str = "flannel.1", **more: Any) -> Route:
    gateway = IPv6Address(via or f"fd01:0:0:{number}::")
    return Route(IPv6Network(f"fd01:0:0:{number}::/64"), dev, gateway, onlink=not via, **more)


def test_routes_are_replaced_listed_and_deleted(node: Host) -> None:
    ask(node, up, device(node))
    routes = {
        route4(85),
        route6(85),
        route4(86, "192.168.123.12", "eth0"),
        route6(86, "fd00::12", "eth0"),
        Route(IPv4Network("10.244.0.0/16"), "flannel.1"),
    }
    for _ in range(2):
        assert ask(node, replace_routes, routes) == []
        assert ask(node, list_routes) == routes
    shown = node.json("ip -j route show 10.244.85.0/24")[0]
    assert (shown["gateway"], shown["dev"], shown["protocol"], shown["flags"]) == (
        "10.244.85.0",
        "flannel.1",
        str(PROTOCOL),
        ["onlink"],
    )
    assert node.json("ip -j route show 10.244.0.0/16")[0]["scope"] == "link"
    assert ask(node, list_routes, PROTOCOL, "eth0") == {route for route in routes if route.device == "eth0"}
    assert ask(node, list_routes, PROTOCOL, "nothing7") == set()
    for _ in range(2):
        assert ask(node, delete_routes, routes) == []
        assert ask(node, list_routes) == set()


def test_routes_of_others_are_listed_only_when_asked_for(node: Host) -> None:
    ask(node, up, device(node))
    node.run("ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink proto boot")
    node.run("ip route add 10.8.0.0/16 dev eth0; ip route add fd08::/64 dev eth0")
    assert ask(node, list_routes) == set()
    assert ask(node, list_routes, 0, "flannel.1") == {route4(9, protocol=BOOT)}
    assert {str(route.dst) for route in ask(node, list_routes, 0)} >= {"10.244.9.0/24", "10.8.0.0/16", "fd08::/64"}


def replaced(netlink: rtnl.Rtnl, route: Route) -> tuple[list[str], list[int]]:
    """Replace the route: what was refused, and the notifications of it."""
    with rtnl.Listener(NETLINK_ROUTE, RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE) as listening:
        refusals = words(replace_routes(netlink, [route]))
        notices: list[int] = []
        while received := listening.receive(0.05):
            notices += [kind for kind, _, message in received if route.dst.network_address.packed in bytes(message)]
    return refusals, notices


@pytest.mark.parametrize(
    "before, wanted",
    [
        ("10.244.85.0/24 via 10.244.85.0 dev flannel.1 onlink proto boot", route4(85)),
        ("10.244.85.0/24 via 192.168.123.9 dev eth0", route4(85)),
        ("10.244.85.0/24 dev eth1 scope link", route4(85)),
        ("blackhole 10.244.85.0/24", route4(85)),
        ("10.244.85.0/24 nexthop via 192.168.123.8 nexthop via 192.168.123.9", route4(85)),
        ("fd01:0:0:85::/64 via fd01:0:0:85:: dev flannel.1 onlink proto boot", route6(85)),
        ("fd01:0:0:85::/64 via fd00::9 dev eth0", route6(85)),
        ("fd01:0:0:85::/64 dev eth1", route6(85)),
        ("blackhole fd01:0:0:85::/64", route6(85)),
        ("fd01:0:0:85::/64 nexthop via fd00::8 nexthop via fd00::9", route6(85)),
    ],
)
def test_route_takes_the_place_of_another_in_one_step(node: Host, before: str, wanted: Route) -> None:
    ask(node, up, device(node))
    node.run(f"ip route add {before}")
    refusals, notices = ask(node, replaced, wanted)
    assert refusals == []
    to_gateway = [RTM_NEWROUTE, RTM_NEWROUTE, RTM_DELROUTE]  # IPv6, from one link to another
    assert notices in ([RTM_NEWROUTE], to_gateway)
    assert [route for route in ask(node, list_routes, 0) if route.dst == wanted.dst] == [wanted]
    shown = node.run(f"ip -o -{wanted.dst.version} route show {wanted.dst}")
    assert len(shown.splitlines()) == 1


def test_route_that_the_kernel_refuses_does_not_keep_the_others_away(node: Host) -> None:
    ask(node, up, device(node))
    wrong = [route4(2, "9.9.9.9", "eth0"), route6(2, "9::9", "eth0"), route4(3, "192.168.123.12", "nothing7")]
    right = [route4(1), route6(1), route4(4), route4(5, "192.168.123.12", "eth0")]
    refusals = ask(node, lambda netlink: [(r.item, str(r.error)) for r in replace_routes(netlink, [*wrong, *right, *wrong])])
    assert sorted(str(item.dst) for item, _ in refusals) == sorted(str(route.dst) for route in wrong * 2)
    said = {str(item.dst): text for item, text in refusals}
    assert 'the kernel refused: "ip route replace 10.244.2.0/24 via 9.9.9.9 dev eth0 proto 122"' in said["10.244.2.0/24"]
    assert "gateway" in said["10.244.2.0/24"]
    assert 'link "nothing7" does not exist' in said["10.244.3.0/24"]
    assert ask(node, list_routes) == set(right)


def test_delete_leaves_foreign_entries_alone(node: Host) -> None:
    ask(node, up, device(node))
    node.run("ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink proto static")
    assert ask(node, lambda netlink: words(delete_routes(netlink, [route4(9), route4(9, "192.168.123.9", "eth0")]))) == []
    assert ask(node, list_routes, 0, "flannel.1") == {route4(9, protocol=4)}
    assert ask(node, delete_routes, [route4(9, protocol=4)]) == []
    assert ask(node, list_routes, 0, "flannel.1") == set()
    assert ask(node, delete_routes, [route4(9, dev="nothing7"), route6(9, dev="nothing7")]) == []


def test_black_hole_leaves_the_bridges_route_alone(node: Host) -> None:
    holes = [blackhole(IPv4Network("10.244.91.0/24")), blackhole(IPv6Network("fd01::/64"))]
    assert ask(node, replace_routes, holes) == []
    node.run("ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.91.1/24 dev cni0")
    node.run("ip addr add fd01::1/64 dev cni0 nodad")
    assert ask(node, replace_routes, holes) == []
    assert ask(node, list_routes) == set(holes)
    for address, subnet in (("10.244.91.7", "10.244.91.0/24"), ("fd01::7", "fd01::/64")):
        assert f"{subnet} dev cni0" in node.run(f"ip -{ip_address(address).version} route show {subnet}")
        assert "dev cni0" in node.run(f"ip route get {address}")
    node.run("ip link del cni0")
    assert "RTNETLINK answers" in node.run("ip route get 10.244.91.7 2>&1", check=False)
    assert ask(node, delete_routes, holes) == []
    assert ask(node, list_routes) == set()


# --- neighbours and forwarding ----------------------------------------------------------------------------------------


def of_link(netlink: rtnl.Rtnl, listed: Callable[..., set[T]], name: str) -> set[T]:
    link = find_link(netlink, name)
    assert link is not None
    return listed(netlink, link)


def test_neighbours_are_replaced_listed_and_deleted(node: Host) -> None:
    ask(node, up, device(node))
    items = [Neighbour("flannel.1", ip_address(address), MAC) for address in ("10.244.85.0", "10.244.86.0", "fd01:0:0:85::")]
    for mac in (MAC, OTHER_MAC):
        items = [replace(item, mac=mac) for item in items]
        assert ask(node, replace_neighbours, items) == []
        assert ask(node, of_link, list_neighbours, "flannel.1") == set(items)
    shown = node.json("ip -j neigh show dev flannel.1")
    assert [(entry["lladdr"], entry["state"]) for entry in shown if entry["dst"] == "10.244.85.0"] == [
        (OTHER_MAC, ["PERMANENT"])
    ]
    for _ in range(2):
        assert ask(node, delete_neighbours, items[1:]) == []
        assert ask(node, of_link, list_neighbours, "flannel.1") == {items[0]}


def test_only_permanent_neighbours_of_the_link_are_listed(node: Host) -> None:
    ask(node, up, device(node))
    node.run(
        f"ip neigh add 10.244.1.0 lladdr {MAC} dev flannel.1 nud reachable; ip neigh add 10.244.2.0 dev flannel.1 nud none"
    )
    node.run(f"ip neigh add 192.168.123.12 lladdr {MAC} dev eth0 nud permanent; ip neigh add proxy 10.244.3.0 dev flannel.1")
    assert ask(node, of_link, list_neighbours, "flannel.1") == set()
    assert ask(node, of_link, list_neighbours, "eth0") == {Neighbour("eth0", IPv4Address("192.168.123.12"), MAC)}


def test_forwarding_is_replaced_listed_and_deleted(node: Host) -> None:
    ask(node, up, device(node))
    ask(node, up, device(node, name="flannel-v6.1", local=IPv6Address("fd00::11")))
    first = [
        Forwarding("flannel.1", MAC, IPv4Address("192.168.123.12")),
        Forwarding("flannel.1", OTHER_MAC, IPv4Address("192.168.123.13")),
        Forwarding("flannel-v6.1", MAC, IPv6Address("fd00::12")),
    ]
    moved = [replace(first[0], remote=IPv4Address("192.168.123.99")), *first[1:]]
    for items in (first, moved):
        assert ask(node, replace_forwarding, items) == []
        assert ask(node, of_link, list_forwarding, "flannel.1") == set(items[:2])
        assert ask(node, of_link, list_forwarding, "flannel-v6.1") == set(items[2:])
    entry = next(entry for entry in node.json("bridge -j fdb show dev flannel.1") if entry["mac"] == MAC)
    assert (entry["dst"], entry["state"], entry["flags"]) == ("192.168.123.99", "permanent", ["self"])
    assert ask(node, delete_forwarding, first) == []  # where it led before: nothing to delete
    assert ask(node, of_link, list_forwarding, "flannel.1") == {moved[0]}
    for _ in range(2):
        assert ask(node, delete_forwarding, moved) == []
        assert ask(node, of_link, list_forwarding, "flannel.1") == set()


def test_forwarding_that_was_learned_is_left_alone(node: Host) -> None:
    ask(node, up, device(node))
    node.run(f"bridge fdb add {OTHER_MAC} dev flannel.1 dst 192.168.123.14 dynamic")
    assert ask(node, of_link, list_forwarding, "flannel.1") == set()
    assert OTHER_MAC in node.run("bridge fdb show dev flannel.1")


def test_entries_of_a_device_that_has_gone(node: Host) -> None:
    neighbour = Neighbour("flannel.1", IPv4Address("10.244.85.0"), MAC)
    entry = Forwarding("flannel.1", MAC, IPv4Address("192.168.123.12"))
    assert ask(node, delete_neighbours, [neighbour]) == []
    assert ask(node, delete_forwarding, [entry]) == []
    assert "does not exist" in ask(node, lambda netlink: words(replace_neighbours(netlink, [neighbour])))[0]
    link = ask(node, up, device(node))
    node.run("ip link del flannel.1")
    assert ask(node, list_neighbours, link) == set()
    assert ask(node, list_forwarding, link) == set()


# --- many -------------------------------------------------------------------------------------------------------------


def peers(link: str) -> tuple[list[Route], list[Neighbour], list[Forwarding]]:
    routes, neighbours, forwarding = [], [], []
    for number, subnet in zip(range(PEERS), ip_network("10.128.0.0/9").subnets(new_prefix=24), strict=False):
        assert isinstance(subnet, IPv4Network)
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        routes.append(Route(subnet, link, subnet.network_address, onlink=True))
        neighbours.append(Neighbour(link, subnet.network_address, mac))
        forwarding.append(Forwarding(link, mac, IPv4Address("172.16.0.0") + number))
    return routes, neighbours, forwarding


def test_5000_peers_take_less_than_a_moment(node: Host) -> None:
    """Measured on two cores: added in 0.35 s, read in 0.07 s of processor time. The limits are for slower machines."""

    def fill(netlink: rtnl.Rtnl) -> tuple[float, float, int]:
        link = up(netlink, wanted)
        routes, neighbours, forwarding = peers("flannel.1")
        began = time.process_time()
        refused = [*replace_routes(netlink, routes), *replace_neighbours(netlink, neighbours)]
        refused += [*replace_forwarding(netlink, forwarding)]
        added = time.process_time()
        same = list_routes(netlink) == set(routes) and list_neighbours(netlink, link) == set(neighbours)
        assert same
        assert list_forwarding(netlink, link) == set(forwarding)
        return added - began, time.process_time() - added, len(refused)

    wanted = device(node)
    added, read, refused = ask(node, fill)
    assert refused == 0
    assert added < 5
    assert read < 3


def test_every_refusal_of_many_is_reported(node: Host) -> None:
    def spoil(netlink: rtnl.Rtnl) -> list[str]:
        up(netlink, wanted)
        routes, _, _ = peers("flannel.1")
        return words(replace_routes(netlink, [route.replace(onlink=False) for route in routes]))

    wanted = device(node)
    refusals = ask(node, spoil)
    assert len(set(refusals)) == PEERS
    assert ask(node, list_routes) == set()


def test_each_of_many_changes_is_a_line_of_the_journal(node: Host) -> None:
    def change(netlink: rtnl.Rtnl) -> None:
        with Journal("flanneld", "flanneld"):
            up(netlink, wanted)
            replace_routes(netlink, [route4(85), route4(2, "9.9.9.9", "eth0")])
            replace_neighbours(netlink, [Neighbour("flannel.1", IPv4Address("10.244.85.0"), MAC)])
            replace_forwarding(netlink, [Forwarding("flannel.1", MAC, IPv4Address("192.168.123.12"))])

    wanted = device(node)
    ask(node, change)
    journal = node.path("/run/cni-py/journal/flanneld").read_text()
    lines = [line[17:].partition("  (")[0] for line in journal.splitlines() if line[:1] != "#"]
    made = f"flannel.1 mtu 1450 txqueuelen 0 address {MAC}"
    assert [line for line in lines if line[:1] != "#" and "# failed" not in line] == [
        f"ip link add {made} type vxlan id 1 dev eth0 local 192.168.123.11 dstport 8472 nolearning",
        "ip link set flannel.1 up",
        "ip route replace 10.244.85.0/24 via 10.244.85.0 dev flannel.1 onlink proto 122",
        f"ip neigh replace 10.244.85.0 lladdr {MAC} dev flannel.1 nud permanent",
        f"bridge fdb replace {MAC} dev flannel.1 dst 192.168.123.12 self permanent",
    ]
    assert next(line for line in lines if "# failed" in line).startswith("ip route replace 10.244.2.0/24")
    before = ask(node, of_link, list_forwarding, "flannel.1"), ask(node, list_routes), ask(node, find_vxlan, "flannel.1")
    node.run("ip link del flannel.1")
    node.run(
        "; ".join(line for line in lines if line[:1] != "#" and "# failed" not in line)
    )  # they are what a person could type
    after = ask(node, of_link, list_forwarding, "flannel.1"), ask(node, list_routes), ask(node, find_vxlan, "flannel.1")
    assert after[:2] == before[:2]
    assert after[2] == replace(before[2], ifindex=after[2].ifindex)


# --- notifications ----------------------------------------------------------------------------------------------------


def watching(
    host: Host, *changes: str, timeout_seconds: float = SECONDS, kinds_until: Sequence[str] = (), **options: Any
) -> list[set[str]]:
    """Return what a Watch reports after each of these commands; with ``kinds_until`` until each has reported its kind."""

    def inside() -> list[set[str]]:
        said = []
        with Watch(**options) as watch:
            for number, change in enumerate(changes):
                subprocess.run(["sh", "-ec", change], check=True)
                reported = more = watch.wait(timeout_seconds)
                while more and kinds_until and kinds_until[number] not in reported:  # the rest of the change before
                    more = watch.wait(timeout_seconds)
                    reported = reported | more
                said.append(reported)
        return said

    return host.do(inside)


def test_watch_reports_what_kind_changed(node: Host) -> None:
    kinds = ["link", "addr", "addr", "route", "route", "neigh", "link", "neigh"]
    said = watching(
        node,
        "ip link set eth1 mtu 1400",
        "ip addr add 10.9.9.9/32 dev eth1",
        "ip addr add fd09::9/128 dev eth1 nodad",
        "ip route add 10.9.0.0/16 dev eth1",
        "ip route add fd08::/64 dev eth1",
        f"ip neigh add 10.9.0.1 lladdr {MAC} dev eth1",
        "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472",
        f"bridge fdb add {MAC} dev flannel.1 dst 192.168.123.12",
        kinds_until=kinds,
    )
    for reported, kind in zip(said, kinds, strict=True):
        assert kind in reported


def test_watch_is_quiet_when_nothing_changes_or_other_kinds_do(node: Host) -> None:
    quiet = watching(node, "true", "ip link set eth1 mtu 1400", kinds=("route",), timeout_seconds=0.1)
    assert quiet == [set(), set()]


def test_watch_of_one_device_follows_it_by_name(node: Host) -> None:
    add = "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472"
    entry = f"bridge fdb add {MAC} dev flannel.1 dst 192.168.123.12"
    said = watching(
        node,
        add,
        entry,
        "ip link del flannel.1",
        f"{add}; {entry}",
        "ip link set flannel.1 name other7",
        devices=["flannel.1"],
        kinds=("link", "neigh"),
    )
    assert said[:3] == [{"link"}, {"neigh"}, {"link"}] or said[2] == {"link", "neigh"}
    assert said[3] == {"link", "neigh"}
    assert "link" in said[4]
    others = "ip link set eth1 mtu 1300; ip addr add 10.9.9.9/32 dev eth1; ip link add other9 type bridge"
    assert watching(node, others, devices=["eth0"], kinds=("link", "addr", "neigh"), timeout_seconds=0.1) == [set()]


def test_watch_hears_routes_of_the_main_table_alone(node: Host) -> None:
    changes = ("ip route add 10.9.0.0/16 dev eth1 table 77", "ip route add 10.9.0.0/16 dev eth1")
    assert watching(node, *changes, kinds=("route",), timeout_seconds=0.3) == [set(), {"route"}]


def test_watch_does_not_hear_our_own_changes(node: Host) -> None:
    def inside() -> list[set[str]]:
        with rtnl.open_host() as ours, rtnl.open_host() as others:
            up(others, wanted)
            with Watch(ignoring=ours) as watch:
                while watch.wait(0.3):  # what the kernel does of itself after a link is up
                    pass
                replace_routes(ours, [route4(85)])
                replace_neighbours(ours, [Neighbour("flannel.1", IPv4Address("10.244.85.0"), MAC)])
                said = [watch.wait(0.1)]
                delete_routes(others, [route4(85)])
                return [*said, watch.wait(SECONDS)]

    wanted = device(node)
    assert node.do(inside) == [set(), {"route"}]


def test_watch_that_lost_notifications_says_that_all_may_have_changed(node: Host) -> None:
    def inside() -> set[str]:
        with rtnl.open_host() as netlink, Watch(kinds=("route", "addr")) as watch:
            routes, _, _ = peers("eth0")
            for _ in range(2):
                replace_routes(netlink, routes)
                delete_routes(netlink, routes)
            return watch.wait(SECONDS)

    assert node.do(inside) == {"route", "addr"}
    assert set(KINDS) == {"link", "addr", "route", "neigh"}


# --- features, interfaces ---------------------------------------------------------------------------------------------


def test_missing_feature_is_named_and_nothing_is_made(node: Host) -> None:
    before = node.run("ls /sys/class/net")
    ask(node, features.require_kind, "vxlan")
    with pytest.raises(NotAvailable, match="no nonsense"):
        ask(node, features.require_kind, "nonsense")
    assert node.run("ls /sys/class/net") == before


def test_default_route_of_the_best_metric_decides(node: Host) -> None:
    eth0, eth1 = index_of(node, "eth0"), index_of(node, "eth1")
    assert [ask(node, default_interfaces, version) for version in (4, 6)] == [[], []]
    node.run("ip route add unreachable default metric 1; ip -6 route add unreachable default metric 1")
    assert [ask(node, default_interfaces, version) for version in (4, 6)] == [[], []]
    node.run("ip route add default dev eth1 metric 20; ip route add default via 192.168.123.1 metric 10")
    node.run("ip -6 route add default dev eth0 metric 20; ip -6 route add default dev eth1 metric 10")
    assert [ask(node, default_interfaces, version) for version in (4, 6)] == [[eth0, eth1], [eth1, eth0]]
    node.run("ip route add default metric 5 nexthop via 192.168.123.1 nexthop via 192.168.123.2")
    assert ask(node, default_interfaces, 4) == [eth0, eth0, eth0, eth1]


def test_route_to_an_address(node: Host) -> None:
    node.run("ip route add 10.7.0.0/16 via 192.168.123.1; ip -6 route add fd07::/64 via fd00::1")
    eth0 = index_of(node, "eth0")
    for address, gateway, source in (
        ("192.168.123.12", None, "192.168.123.11"),
        ("10.7.0.1", "192.168.123.1", "192.168.123.11"),
        ("fd00::12", None, "fd00::11"),
        ("fd07::1", "fd00::1", "fd00::11"),
    ):
        way = ask(node, route_get, ip_address(address).packed)
        assert way is not None
        assert (way.ifindex, way.gateway, str(way.source)) == (eth0, ip_address(gateway) if gateway else None, source)
    assert ask(node, route_get, ip_address("10.8.0.1").packed) is None
    assert ask(node, route_get, ip_address("fd08::1").packed) is None


def test_host_addresses_have_their_flags(node: Host) -> None:
    node.run("ip addr add 192.168.123.50/24 dev eth0 preferred_lft 0 valid_lft 100")
    found = {str(at.address): at for at in ask(node, list_host_addresses)}
    assert found["192.168.123.11"].flags & 0xA0 == 0x80
    assert found["192.168.123.50"].flags & 0xA0 == 0x20
    assert found["fd00::11"].ifindex == index_of(node, "eth0")
