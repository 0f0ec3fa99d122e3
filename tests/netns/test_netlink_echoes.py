"""Echoes of a daemon's own changes: the kernel keeps them from its listener, and the rest wake no thread."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cni_py.kernel.link import get_link
from cni_py.kernel.neighbour import Forwarding, Neighbour, replace_forwarding, replace_neighbours
from cni_py.kernel.route import Route, replace_routes
from cni_py.netlink.constants import RTM_NEWNEIGH, RTM_NEWROUTE
from cni_py.netlink.notifications import Notifications
from cni_py.netlink.socket import open_host
from cni_py.node import reconcile
from cni_py.node.health import Health
from cni_py.node.reconcile import Reconciler
from cni_py.node.stop import Stop
from support.namespaces import Host
from support.waiting import until

pytestmark = pytest.mark.netns

MAC = "02:00:00:00:00:07"


def peer(number: int) -> tuple[Any, ...]:
    from ipaddress import ip_address, ip_network

    first, node = ip_address(f"10.244.{number}.0"), ip_address(f"192.168.123.{number}")
    mac = f"02:00:00:00:00:{number:02x}"
    route = Route(ip_network(f"{first}/24"), "flannel.1", first, onlink=True)
    return Neighbour("flannel.1", first, mac), Forwarding("flannel.1", mac, node), route


@pytest.fixture
def node(host: Host) -> Host:
    host.run(
        "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6\n"  # no notifications of what the kernel does for IPv6 of itself
        "ip link add eth0 type veth peer name eth1; ip addr add 192.168.123.1/24 dev eth0; ip link set eth0 up;"
        "ip link set eth1 up; ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning; ip link set flannel.1 up"
    )
    return host


def heard_of_both() -> list[tuple[list[int], bool]]:
    """Return what is heard of changes through the ignored socket, then through another: kinds, whether a port is that one's."""
    found = []
    with open_host() as ours, open_host() as another:
        notifications = Notifications(ours.port)
        for rtnl in (ours, another):
            neighbour, forwarding, route = peer(7 if rtnl is ours else 8)
            assert not replace_neighbours(rtnl, [neighbour])
            assert not replace_forwarding(rtnl, [forwarding])
            assert not replace_routes(rtnl, [route])
            messages = list(notifications.read())
            found.append(([kind for kind, _, _ in messages], any(port == ours.port for _, port, _ in messages)))
        notifications.close()
    return found


def test_own_changes_are_not_heard_but_those_of_an_fdb(node: Host) -> None:
    own, others = node.do(heard_of_both)
    assert own == ([RTM_NEWNEIGH], False)
    assert others == ([RTM_NEWNEIGH, RTM_NEWNEIGH, RTM_NEWROUTE], False)


def turns_for_own_changes() -> tuple[int, int]:
    """Return how often the thread that repairs turned for ten changes of our own, and for one of another process."""
    stop, turns = Stop(), [0]
    reconcile.SYSCTL_SECONDS = 1000.0
    reconciler = Reconciler(Health("", 0), "eth0", [])
    with open_host() as host:
        link = get_link(host, "flannel.1")

    class Device:
        name = "flannel.1"

        def ensure(self, *_: object) -> Any:
            return link

        def matches(self, _: object) -> bool:
            return True

    reconciler.keep(Device())
    reconciler.start()
    reconciler.turn()
    turn = reconciler.turn
    reconciler.turn = lambda: turns.__setitem__(0, turns[0] + 1) or turn()  # type: ignore[method-assign, func-returns-value]
    thread = threading.Thread(target=reconciler.run, args=(stop,))
    thread.start()
    until(lambda: reconciler._listening is not None, "it listens")
    for number in range(10):
        reconciler.want(number, peer(10 + number))
        reconciler.settle()
    own = turns[0]
    with open_host() as another:
        replace_neighbours(another, [Neighbour("flannel.1", peer(10)[0].address, MAC)])
    until(lambda: turns[0] > own, "another process's change is heard")
    stop.set()
    thread.join()
    reconciler.close()
    return own, turns[0] - own


def test_own_changes_wake_no_other_thread(node: Host) -> None:
    own, others = node.do(turns_for_own_changes)
    assert own == 0
    assert 1 <= others <= 2
