"""Keeping the kernel as desired (node/reconcile.py, reports.py, writer.py), with a stub of it; tests/netns has the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EIO, ENETUNREACH, ENOENT, EROFS
from ipaddress import IPv4Address, IPv4Network
from struct import pack
from time import monotonic, sleep
from typing import Any

import pytest

from cni_py.errors import KernelRefused
from cni_py.kernel import sysctl
from cni_py.kernel.neighbour import _forwarding, _neighbour
from cni_py.kernel.route import _message
from cni_py.netlink.constants import (
    IFF_UP,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTPROT_KERNEL,
)
from cni_py.netlink.socket import NetlinkError
from cni_py.node import reconcile, writer
from cni_py.node.desired import Entry, Forwarding, Neighbour, Route, Sysctl
from cni_py.node.health import Health
from cni_py.node.reconcile import PAUSE_SECONDS, Reconciler, _Pause
from cni_py.node.stop import Stop
from support.stub_kernel import StubKernel

ETH0, FLANNEL, BRIDGE = 2, 3, 7
MAC = "02:00:00:00:00:{:02x}"


def way(subnet: int, mac: int = 0, node: int = 0, metric: int = 0) -> tuple[Neighbour, Forwarding, Route]:
    """The entries of a VXLAN peer."""
    network = IPv4Network(f"10.244.{subnet}.0/24")
    first, address = network.network_address, MAC.format(mac or subnet)
    return (
        Neighbour("flannel.1", first, address),
        Forwarding("flannel.1", address, IPv4Address(f"192.0.2.{node or subnet}")),
        Route(network, "flannel.1", first, onlink=True, metric=metric),
    )


def message(entry: Entry, ifindex: int = FLANNEL) -> bytes:
    """The kernel's message of an entry."""
    if isinstance(entry, Neighbour):
        return _neighbour(entry, ifindex)
    return _forwarding(entry, ifindex) if isinstance(entry, Forwarding) else _message(entry, ifindex, 0)  # type: ignore[arg-type]


class Device:
    """A device that exists; the reconciler sets it up."""

    name = "flannel.1"

    def __init__(self) -> None:
        self.ensured = 0

    def ensure(self, rtnl: Any, warn: Callable[[str], None]) -> Any:
        self.ensured += 1
        return reconcile.find_link(rtnl, self.name)

    def matches(self, link: Any) -> bool:
        return bool(link.is_up)


class Node:
    """A Reconciler over a stub of a kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel: Any = StubKernel({ETH0: ("eth0", ""), FLANNEL: ("flannel.1", "vxlan"), BRIDGE: ("br7", "bridge")})
        monkeypatch.setattr(reconcile, "open_host", lambda: self.kernel)
        monkeypatch.setattr(reconcile, "Notifications", lambda _: self.kernel)
        monkeypatch.setattr(reconcile, "set_up", lambda _, link: self.kernel.set_link(link.ifindex, IFF_UP))
        self.health, self.device = Health("", 0), Device()
        self.reconciler = Reconciler(self.health, "eth0", [IPv4Network("10.244.0.0/16")])
        self.reconciler.keep(self.device)

    def start(self, *groups: tuple[Entry, ...]) -> None:
        for group in groups:
            assert self.reconciler.want(group[0], group) is None
        self.reconciler.start()
        self.reconciler.turn()
        self.kernel.requests.clear()

    def turn(self) -> tuple[int, list[int]]:
        """Count the reverted changes, and the requests to the kernel."""
        self.kernel.requests.clear()
        return self.reconciler.turn(), [kind for _, kind, _ in self.kernel.requests]

    def holds(self, *groups: tuple[Entry, ...]) -> bool:
        wanted = {entry for group in groups for entry in group}
        return {self._key(entry): message(entry) for entry in wanted} == self.kernel.entries

    @staticmethod
    def _key(entry: Entry) -> Any:
        from support.stub_kernel import key_of

        return key_of(RTM_NEWROUTE if isinstance(entry, Route) else RTM_NEWNEIGH, message(entry))

    def another_process(self, kind: int, entry: Entry, ifindex: int = FLANNEL) -> None:
        self.kernel.do(kind, message(entry, ifindex), by=99)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(monkeypatch)
    yield made
    made.reconciler.close()


ONE, TWO, THREE = way(1), way(2), way(3)


def test_start_makes_what_is_missing_deletes_what_is_stray_and_touches_nothing_else(node: Node) -> None:
    for entry in (*ONE, *THREE):
        node.kernel.do(RTM_NEWROUTE if isinstance(entry, Route) else RTM_NEWNEIGH, message(entry))
    node.kernel.reports.clear()
    node.reconciler.want("one", ONE)
    node.reconciler.want("two", TWO)
    node.reconciler.start()
    assert node.holds(ONE, TWO)
    assert [kind for _, kind, _ in node.kernel.requests] == [
        *(RTM_NEWNEIGH, RTM_DELNEIGH, RTM_NEWNEIGH, RTM_DELNEIGH, RTM_NEWROUTE, RTM_DELROUTE)
    ]
    assert node.turn() == (0, [])
    assert "cni_py_flanneld_changes_total 6\n" in node.health.answer("/metrics")[2]


def test_change_is_made_in_the_order_in_which_packets_need_it(node: Node) -> None:
    node.start(ONE)
    node.reconciler.want("two", TWO)
    node.reconciler.settle()
    assert [request[0] for request in node.kernel.requests] == [message(entry) for entry in TWO]
    node.kernel.requests.clear()
    node.reconciler.drop("two", TWO)
    node.reconciler.settle()
    kinds = [kind for _, kind, _ in node.kernel.requests]
    assert kinds == [RTM_DELROUTE, RTM_DELNEIGH, RTM_DELNEIGH]
    assert node.holds(ONE)
    assert node.turn() == (0, []), "the echoes ask for nothing"


def test_group_that_replaces_another_is_never_missing(node: Node) -> None:
    node.start(ONE)
    after = way(1, mac=9)
    node.reconciler.replace("one", ONE, after)
    node.reconciler.settle()
    assert [kind for _, kind, _ in node.kernel.requests] == [RTM_NEWNEIGH, RTM_NEWNEIGH, RTM_DELNEIGH]
    assert node.holds(after)
    assert node.turn() == (0, [])


@pytest.mark.parametrize("place", [0, 1, 2], ids=["neighbour", "FDB", "route"])
def test_entry_that_another_process_deletes_or_changes_is_restored_at_once(node: Node, place: int) -> None:
    node.start(ONE, TWO)
    new, delete = (RTM_NEWROUTE, RTM_DELROUTE) if place == 2 else (RTM_NEWNEIGH, RTM_DELNEIGH)
    node.another_process(delete, ONE[place])
    assert node.turn() == (1, [new])
    assert node.holds(ONE, TWO)
    changed = [
        Neighbour("flannel.1", ONE[0].address, MAC.format(9)),
        Forwarding("flannel.1", ONE[1].mac, IPv4Address("192.0.2.9")),
    ]
    changed.append(Route(ONE[2].dst, "eth0", IPv4Address("192.0.2.9"), protocol=4))  # type: ignore[arg-type]
    node.another_process(new, changed[place], ETH0 if place == 2 else FLANNEL)
    assert node.turn() == (1, [new])
    assert node.holds(ONE, TWO)
    assert node.turn() == (0, [])


@pytest.mark.parametrize("place", [0, 1, 2], ids=["neighbour", "FDB", "route"])
def test_stray_entry_is_deleted_at_once(node: Node, place: int) -> None:
    node.start(ONE)
    new, delete = (RTM_NEWROUTE, RTM_DELROUTE) if place == 2 else (RTM_NEWNEIGH, RTM_DELNEIGH)
    node.another_process(new, TWO[place])
    assert node.turn() == (1, [delete])
    assert node.holds(ONE)


@pytest.mark.parametrize(
    ("route", "is_ours"),
    [
        (Route(IPv4Network("10.244.9.0/24"), "eth0", IPv4Address("192.0.2.9")), True),
        (Route(IPv4Network("10.9.9.0/24"), "eth0", IPv4Address("192.0.2.9")), False),
        (Route(IPv4Network("10.9.9.0/24"), "flannel.1", IPv4Address("10.9.9.0"), onlink=True, protocol=3), True),
        (Route(IPv4Network("10.244.9.0/24"), "flannel.1", IPv4Address("10.244.9.0"), protocol=3), False),
        (Route(IPv4Network("10.244.9.0/24"), "eth0", IPv4Address("192.0.2.9"), protocol=3), False),
    ],
    ids=["into our network", "of a second daemon", "of Go's flanneld", "of a person", "of BGP"],
)
def test_routes_of_others_are_left_alone(node: Node, route: Route, is_ours: bool) -> None:
    node.start(ONE)
    node.another_process(RTM_NEWROUTE, route, ETH0 if route.device == "eth0" else FLANNEL)
    assert node.turn()[0] == int(is_ours)


def test_late_echo_of_an_earlier_change_of_ours_is_no_reason_to_change_anything(node: Node) -> None:
    """The FDB's reports do not name their author, and may come when the desired state is another already."""
    node.start(ONE)
    echo = message(TWO[1])
    node.kernel.report(RTM_NEWNEIGH, echo)  # of an entry that was deleted since
    assert node.turn() == (0, [])
    node.kernel.report(RTM_NEWNEIGH, message(way(1, node=9)[1]))  # of a node's address before this one
    assert node.turn() == (0, [])
    node.kernel.report(RTM_DELNEIGH, message(ONE[1]))
    assert node.turn() == (0, [])


def test_kernel_is_checked_as_a_whole_where_reports_were_lost(node: Node) -> None:
    node.start(ONE, TWO)
    for entry in (*ONE, TWO[0]):
        node.kernel.forget(node._key(entry))
    assert node.turn() == (0, [])
    node.kernel.is_overflowing = True
    assert node.turn()[0] == 4
    assert node.holds(ONE, TWO)


def test_each_table_is_checked_in_turn(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start(ONE, TWO)
    for entry in (*ONE, *TWO):
        node.kernel.forget(node._key(entry))
    monkeypatch.setattr(reconcile, "CHECK_SECONDS", 0.0)
    node.reconciler._check_next_at = 0.0
    restored = []
    for _ in range(4):
        node.turn()
        restored.append(len(node.kernel.entries))
    assert restored[-1] == 6
    assert len(set(restored)) == 4 or restored == sorted(restored), "one table at a time"


def test_device_that_was_down_gets_its_entries_again(node: Node) -> None:
    """The kernel deletes the routes over it, without a report."""
    node.start(ONE, TWO)
    for entry in (*ONE, *TWO):
        node.kernel.forget(node._key(entry))
    node.kernel.set_link(FLANNEL, 0)
    node.kernel.set_link(FLANNEL, IFF_UP)
    assert node.turn()[0] == 6
    assert node.holds(ONE, TWO)


def test_device_that_is_down_is_set_up(node: Node) -> None:
    node.start(ONE)
    node.kernel.set_link(FLANNEL, 0)
    assert node.turn()[0] == 1
    assert node.kernel.flags[FLANNEL] == IFF_UP


def test_routes_over_the_external_interface_are_checked_when_it_lost_an_address(node: Node) -> None:
    direct = Route(IPv4Network("10.244.5.0/24"), "eth0", IPv4Address("192.0.2.5"))
    node.start((direct,))
    node.kernel.forget(node._key(direct))
    node.kernel.report(RTM_DELADDR, pack("=4Bi", 2, 24, 0, 0, ETH0))
    assert node.turn() == (1, [RTM_NEWROUTE])


def test_route_of_a_bridge_here_is_not_replaced(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    """A lease with the subnet of this node's own pods: an old one, or a wrong one."""
    node.start(ONE)
    own = Route(TWO[2].dst, "br7", protocol=RTPROT_KERNEL)
    node.another_process(RTM_NEWROUTE, own, BRIDGE)
    node.reconciler.want("two", TWO)
    for _ in range(2):
        node.reconciler.settle()
        node.turn()
    assert node.kernel.entries[node._key(own)] == message(own, BRIDGE)
    assert capfd.readouterr().err.count("10.244.2.0/24 is the subnet of br7 here") == 1
    assert "cni_py_flanneld_refused 1\n" in node.health.answer("/metrics")[2]
    node.another_process(RTM_DELROUTE, own, BRIDGE)
    node.turn()
    assert node.holds(ONE, TWO)
    assert "cni_py_flanneld_refused 0\n" in node.health.answer("/metrics")[2]


def test_bridge_that_gets_the_subnet_of_a_peer_takes_it(node: Node) -> None:
    node.start(ONE, TWO)
    own = Route(TWO[2].dst, "br7", protocol=RTPROT_KERNEL)
    node.kernel.report(RTM_NEWROUTE, message(own, BRIDGE))
    assert node.turn() == (1, [RTM_DELROUTE])


def test_refusal_is_logged_once_and_retried(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    node.start(ONE)
    node.kernel.refuses = lambda kind, body: ENETUNREACH if kind == RTM_NEWROUTE else 0
    node.reconciler.want("two", TWO)
    node.reconciler.settle()
    node.reconciler._writer.retry_at = 0.0
    assert node.turn() == (0, [RTM_NEWROUTE])
    log = capfd.readouterr().err
    assert log.count('the kernel refused: "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 122"') == 1
    assert "cni_py_flanneld_refused 1\n" in node.health.answer("/metrics")[2]
    node.kernel.refuses = lambda kind, body: 0
    node.kernel.set_link(ETH0, IFF_UP)  # a link or an address is a reason to retry at once
    node.turn()
    assert node.holds(ONE, TWO)
    assert "cni_py_flanneld_refused 0\n" in node.health.answer("/metrics")[2]


def test_entry_that_is_dropped_while_it_is_refused_is_forgotten(node: Node) -> None:
    node.start(ONE)
    node.kernel.refuses = lambda kind, body: ENETUNREACH if kind == RTM_NEWROUTE else 0
    node.reconciler.want("two", TWO)
    node.reconciler.settle()
    node.reconciler.drop("two", TWO)
    node.reconciler.settle()
    assert not node.reconciler._writer.refused


def test_kernel_that_cannot_be_asked_is_checked_as_a_whole_later(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start(ONE)

    def fail(_: object) -> dict[int, NetlinkError]:
        raise OSError(EIO, "Input/output error")

    node.reconciler.want("two", TWO)
    with monkeypatch.context() as patch:
        patch.setattr(node.kernel, "change_many", fail)
        with pytest.raises(KernelRefused):
            node.reconciler.settle()
        assert node.turn()[0] == 0
    node.reconciler._check_all_at = monotonic()
    node.turn()
    assert node.holds(ONE, TWO)


@pytest.mark.parametrize(("number", "tries", "warnings"), [(EROFS, 1, 1), (ENOENT, 3, 0)], ids=["read-only", "gone since"])
def test_parameter_that_is_read_only_is_logged_once_and_left_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, tries: int, warnings: int
) -> None:
    """A container has such a kernel: with -v=1 the log would have each try. A device that was deleted may come back."""
    tried = []

    def ensure(name: str, value: str) -> None:
        tried.append((name, value))
        raise KernelRefused(f"could not set {name}", errno=number)

    monkeypatch.setattr(sysctl, "read", lambda _: "0")
    monkeypatch.setattr(sysctl, "ensure", ensure)
    parameter = Sysctl("net/ipv4/ip_forward", "1")
    for _ in range(3):
        assert node.reconciler._writer.put_sysctls([parameter]) == 0
        node.reconciler._writer.warn_of_unsettable()
    assert len(tried) == tries
    assert capfd.readouterr().err.count("sysctl -w net/ipv4/ip_forward=1") == warnings


def test_thousands_of_changes_are_drained_in_between(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or their reports would not fit into the socket's buffer."""
    monkeypatch.setattr(writer, "CHUNK", 10)
    most = 0

    def replace(table: Any, rtnl: Any, entries: Any) -> list[Any]:
        nonlocal most
        for entry in entries:
            node.kernel.do(RTM_NEWNEIGH, message(entry), by=0)
        most = max(most, len(node.kernel.reports))
        return []

    node.start(ONE)
    monkeypatch.setattr(type(reconcile.FDB), "replace", replace)
    node.reconciler.want("many", [Forwarding("flannel.1", MAC.format(n), IPv4Address("192.0.2.1")) for n in range(50, 150)])
    node.reconciler.settle()
    assert most <= 10 + 3


def test_pauses_grow_while_repairs_are_reverted_and_start_again_after_a_while() -> None:
    pause, now = _Pause(), 100.0
    assert pause.after(0, now) == 0.0
    seconds = []
    for _ in range(8):
        seconds.append(pause.after(1, now))
        now += seconds[-1]
    assert seconds == [min(PAUSE_SECONDS[0] * 2**number, PAUSE_SECONDS[1]) for number in range(8)]
    assert pause.after(1, now + 2 * PAUSE_SECONDS[1]) == PAUSE_SECONDS[0]


class FirstPause(Stop):
    """Set by the first pause."""

    seconds = -1.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds = timeout or 0.0
        self.set()
        return True


def test_pause_after_a_turn_does_not_grow_while_the_process_is_stopped(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start(ONE)
    monkeypatch.setattr(node.reconciler, "turn", lambda: sleep(0.3) or 0)
    stop = FirstPause()
    node.reconciler.run(stop)
    assert 0 <= stop.seconds < 0.3
