"""Layer 2 as far as it is visible: which interfaces a frame that leaves by a link can reach. Changes nothing.

A segment is a link, its veth peer, the bridge that it is a port of, the other ports, and so on. It finds what ARP would:
the interface that has an address, with which MAC address, and by which port of a bridge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cni_py.walk.place import IFF_LOWER_UP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.walk.place import Place, Places

BRIDGE, VETH, MACVLAN, VLAN, VXLAN = "bridge", "veth", "macvlan", "vlan", "vxlan"
INSIDE = frozenset((BRIDGE, VETH, MACVLAN, VLAN, VXLAN, "dummy", "tun"))


class Owner(NamedTuple):
    """The interface that would reply for an address."""

    place: Place
    link: Link


class Segment(NamedTuple):
    """``ends``: interfaces that are no ports; ``has_wire``: it goes on where nothing is visible."""

    ends: list[Owner]
    has_wire: bool


def reach(places: Places, place: Place, link: Link, *, is_arriving: bool = False) -> Segment:
    """Follow a frame that is sent to everybody by ``link``, or has arrived by it."""
    ends: list[Owner] = []
    has_wire = False
    seen: set[tuple[int, int, bool]] = set()
    waiting: list[tuple[Place, Link, bool]] = [(place, link, is_arriving)]
    while waiting:
        at, of, arriving = waiting.pop()
        if (at.inode, of.ifindex, arriving) in seen or not of.is_up:
            continue
        seen.add((at.inode, of.ifindex, arriving))
        if arriving:
            ends += [Owner(at, of)] if not bridge_of(at, of) else []
            waiting += _arrived(places, at, of)
            continue
        on = list(_sent(places, at, of))
        has_wire = has_wire or (not on and of.kind not in INSIDE) or (of.kind in (VETH, MACVLAN) and not on)
        waiting += on
    return Segment(ends, has_wire)


def bridge_of(place: Place, link: Link) -> Link | None:
    """The bridge that the link is a port of."""
    master = place.links.get(link.master)
    return master if master is not None and master.kind == BRIDGE else None


def ports_of(place: Place, bridge: Link) -> list[Link]:
    return [link for link in place.links.values() if link.master == bridge.ifindex and link.is_up and link.flags & IFF_LOWER_UP]


def _arrived(places: Places, place: Place, link: Link) -> Iterator[tuple[Place, Link, bool]]:
    """Yield the links that a broadcast reaches which has arrived by a link."""
    bridge = bridge_of(place, link)
    if bridge is not None:
        yield place, bridge, True
        for port in ports_of(place, bridge):
            if port.ifindex != link.ifindex and not (port.isolated and link.isolated):
                yield place, port, False
    for other, upper in places.uppers(place, link, MACVLAN):
        yield other, upper, True


def _sent(places: Places, place: Place, link: Link) -> Iterator[tuple[Place, Link, bool]]:
    """Yield the links that a broadcast reaches which is sent by a link."""
    if link.kind == BRIDGE:
        for port in ports_of(place, link):
            yield place, port, False
        return
    if link.kind in (VETH, MACVLAN, VLAN):
        peer = places.peer(place, link)
        if peer is None:
            return
        if link.kind == VETH:
            yield *peer, True
            return
        for other, upper in places.uppers(*peer, MACVLAN):  # siblings, in the mode bridge
            if upper.ifindex != link.ifindex or other is not place:
                yield other, upper, True
        yield *peer, False
        return
    for other, upper in places.uppers(place, link, MACVLAN):
        yield other, upper, True


def owners(segment: Segment, address: Address) -> list[Owner]:
    """The interfaces that reply for an address: ARP for any address of the namespace, NDP for one of the link."""
    return [
        owner
        for owner in segment.ends
        if any(
            of.address == address and (address.version == 4 or of.ifindex == owner.link.ifindex) for of in owner.place.addresses
        )
    ]


def has_mac(segment: Segment, mac: str) -> list[Owner]:
    return [owner for owner in segment.ends if owner.link.mac == mac]
