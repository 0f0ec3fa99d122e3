"""The desired state, entry by entry, with an owner each (node/desired.py)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from cni_py.node.desired import Desired, Entry, Forwarding, Neighbour, Route, forwarding
from cni_py.node.tables import FDB, NEIGHBOURS, ROUTES, SYSCTLS

MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def way(subnet: int, mac: str, node: int) -> tuple[Entry, ...]:
    """Entries for a VXLAN peer."""
    network = IPv4Network(f"10.244.{subnet}.0/24")
    first = network.network_address
    return (
        Neighbour("flannel.1", first, mac),
        Forwarding("flannel.1", mac, IPv4Address(f"192.0.2.{node}")),
        Route(network, "flannel.1", first, onlink=True),
    )


def changed(desired: Desired) -> tuple[list[Entry], list[Entry]]:
    changes = desired.take_changes()
    tables = (SYSCTLS, NEIGHBOURS, FDB, ROUTES)
    wanted = [entry for table in tables for entry in changes.wanted[table]]
    return wanted, [entry for table in tables for entry in changes.dropped[table]]


def test_what_is_wanted_and_dropped_is_a_change_once() -> None:
    desired = Desired()
    group = way(1, MAC, 1)
    assert desired.want("one", group) is None
    assert changed(desired) == (list(group), [])
    assert changed(desired) == ([], [])
    desired.drop("one", group)
    assert changed(desired) == ([], list(group))
    assert not desired.entries(ROUTES)


def test_want_and_drop_in_between_is_no_change() -> None:
    desired = Desired()
    group = way(1, MAC, 1)
    desired.want("one", group)
    desired.drop("one", group)
    assert changed(desired) == ([], [])
    desired.want("one", group)
    changed(desired)
    desired.drop("one", group)
    desired.want("one", group)
    assert changed(desired) == ([], [])


def test_only_what_differs_is_replaced() -> None:
    desired = Desired()
    before, after = way(1, MAC, 1), way(1, OTHER_MAC, 1)
    desired.want("one", before)
    changed(desired)
    desired.replace("one", before, after)
    wanted, dropped = changed(desired)
    assert wanted == [after[0], after[1]]
    assert dropped == [before[1]], "the neighbour and the route have the same key"


def test_entry_of_two_owners_stays_until_both_have_dropped_it() -> None:
    """A node that moves to another subnet has two leases for a while, and one MAC address."""
    desired = Desired()
    first, second = way(1, MAC, 1), way(2, MAC, 1)
    third = (*way(3, MAC, 1), forwarding(4))
    for owner, group in (("one", first), ("two", second), ("three", third)):
        assert desired.want(owner, group) is None
    changed(desired)
    desired.drop("one", first)
    desired.drop("three", third)
    assert changed(desired)[1] == [forwarding(4), first[0], third[0], first[2], third[2]]
    desired.drop("two", second)
    assert changed(desired)[1] == list(second)


def test_group_that_contradicts_another_waits_as_a_whole_until_the_key_is_free() -> None:
    desired = Desired()
    first, second = way(1, MAC, 1), way(2, MAC, 2)
    desired.want("one", first)
    assert desired.want("two", second) == first[1]
    assert changed(desired)[0] == list(first)
    desired.drop("one", first)
    assert changed(desired) == ([second[0], second[1], second[2]], [first[0], first[2]])


def test_group_that_waits_can_be_dropped_or_changed() -> None:
    desired = Desired()
    first, second, third = way(1, MAC, 1), way(2, MAC, 2), way(2, OTHER_MAC, 2)
    desired.want("one", first)
    desired.want("two", second)
    desired.drop("two", second)
    desired.drop("one", first)
    assert changed(desired) == ([], [])
    desired.want("one", first)
    desired.want("two", second)
    assert desired.replace("two", second, third) is None
    assert set(changed(desired)[0]) == {*first, *third}


def test_owner_that_changes_an_entry_keeps_its_key_before_those_that_wait() -> None:
    desired = Desired()
    first, moved, second = way(1, MAC, 1), way(1, MAC, 3), way(2, MAC, 2)
    desired.want("one", first)
    desired.want("two", second)
    changed(desired)
    desired.replace("one", first, moved)
    assert changed(desired) == ([moved[1]], [])
    desired.drop("one", moved)
    assert set(changed(desired)[0]) == set(second)


def test_two_that_swap_their_keys() -> None:
    desired = Desired()
    former = {1: way(1, MAC, 1), 2: way(2, OTHER_MAC, 2)}
    now = {1: way(1, OTHER_MAC, 1), 2: way(2, MAC, 2)}
    for owner, group in former.items():
        desired.want(owner, group)
    changed(desired)
    for owner, group in now.items():
        desired.replace(owner, former[owner], group)
    wanted, dropped = changed(desired)
    assert (set(wanted), dropped) == ({now[1][0], now[2][0], now[1][1], now[2][1]}, [])
