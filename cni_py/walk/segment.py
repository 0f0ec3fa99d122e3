"""Layer 2 as far as it is visible: which interfaces a frame that leaves by a link can reach. Changes nothing.

A segment is a link, its veth peer, the bridge that it is a port of, the other ports, and so on. It finds what ARP would:
the interface that has an address, with which MAC address, and by which port of a bridge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from cni_py.kernel.bridge_port import FORWARDING
from cni_py.walk.place import IFF_LOWER_UP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.walk.place import Place, Places

BROADCAST, MULTICAST, UNICAST = "broadcast", "multicast", "unicast"
MACVLAN_BRIDGE = 4
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


class _Step(NamedTuple):
    """A frame at a link: it has arrived, or is sent."""

    place: Place
    link: Link
    is_arriving: bool
    tag: int


class Passes(Protocol):
    """A test whether the rules of a hook let a frame pass."""

    def __call__(self, place: Place, family: str, hook: str, iif: Link | None = None, oif: Link | None = None) -> bool: ...


class Flood:
    """A frame that everybody on a segment gets: an ARP request, an NDP solicitation, or one to an unknown address.

    Args:
        kind: BROADCAST, MULTICAST or UNICAST, by which a port may be left out.
        passes: None: rules are not considered.
    """

    def __init__(self, places: Places, kind: str, passes: Passes | None = None) -> None:
        self._places, self._kind, self._passes_rules = places, kind, passes

    def reach(self, place: Place, link: Link, *, is_arriving: bool = False, tag: int = 0) -> Segment:
        """Follow a frame that is sent by ``link``, or has arrived by it. ``tag``: its VLAN, 0 for none."""
        ends: list[Owner] = []
        has_wire = False
        seen: set[tuple[int, int, bool, int]] = set()
        waiting = [_Step(place, link, is_arriving, tag)]
        while waiting:
            step = waiting.pop()
            key = (step.place.inode, step.link.ifindex, step.is_arriving, step.tag)
            if key in seen or not step.link.is_up:
                continue
            seen.add(key)
            if step.is_arriving:
                if self._passes(step.place, "netdev", "ingress", step.link):
                    is_end = not step.tag and not bridge_of(step.place, step.link)
                    ends += [Owner(step.place, step.link)] if is_end else []
                    waiting += self._arrived(step)
                continue
            if self._passes(step.place, "netdev", "egress", None, step.link):
                on = list(self._sent(step))
                has_wire = has_wire or (not on and (step.link.kind not in INSIDE or self._is_wire(step)))
                waiting += on
        return Segment(ends, has_wire)

    def _is_wire(self, step: _Step) -> bool:
        return step.link.kind in (VETH, MACVLAN, VLAN) and self._places.peer(step.place, step.link) is None

    def _passes(self, place: Place, family: str, hook: str, iif: Link | None = None, oif: Link | None = None) -> bool:
        return self._passes_rules is None or self._passes_rules(place, family, hook, iif, oif)

    def _is_flooded(self, place: Place, port: Link) -> bool:
        of = place.bridge_port(port)
        return {UNICAST: of.floods, MULTICAST: of.floods_multicast, BROADCAST: of.floods_broadcast}[self._kind]

    def _arrived(self, step: _Step) -> Iterator[_Step]:
        """Yield where a frame is which has arrived by a link."""
        place, link = step.place, step.link
        for other, upper in self._places.uppers(place, link, VLAN):
            if step.tag and upper.data.get("IFLA_VLAN_ID") == step.tag:
                yield _Step(other, upper, is_arriving=True, tag=0)
                return
        bridge = bridge_of(place, link)
        if bridge is not None:
            vlan = admitted(place, bridge, link, step.tag)
            is_open = place.bridge_port(link).state == FORWARDING and vlan is not None
            if is_open and vlan is not None and self._passes(place, "bridge", "prerouting", link):
                yield from self._bridged(place, bridge, link, vlan)
            return
        for other, upper in self._places.uppers(place, link, MACVLAN) if not step.tag else ():
            yield _Step(other, upper, is_arriving=True, tag=0)

    def _bridged(self, place: Place, bridge: Link, ingress: Link, vlan: int) -> Iterator[_Step]:
        """Yield the ports of a bridge, and itself, for a frame that has come in."""
        tag = emitted(place, bridge, bridge, vlan)
        if tag is not None and self._passes(place, "bridge", "input", ingress, bridge):
            yield _Step(place, bridge, is_arriving=True, tag=tag)
        for port in ports_of(place, bridge):
            is_excluded = (port.ifindex == ingress.ifindex and not port.hairpin) or (port.isolated and ingress.isolated)
            if not is_excluded and self._passes(place, "bridge", "forward", ingress, port):
                yield from self._to_port(place, bridge, port, vlan)

    def _to_port(self, place: Place, bridge: Link, port: Link, vlan: int) -> Iterator[_Step]:
        tag = emitted(place, bridge, port, vlan)
        if tag is not None and self._is_flooded(place, port) and self._passes(place, "bridge", "postrouting", None, port):
            yield _Step(place, port, is_arriving=False, tag=tag)

    def _sent(self, step: _Step) -> Iterator[_Step]:
        """Yield where a frame is which is sent by a link."""
        place, link = step.place, step.link
        if link.kind == BRIDGE:
            vlan = admitted(place, link, link, step.tag)
            for port in ports_of(place, link) if vlan is not None else ():
                if vlan is not None and self._passes(place, "bridge", "output", link, port):
                    yield from self._to_port(place, link, port, vlan)
        elif link.kind in (VETH, MACVLAN, VLAN):
            peer = self._places.peer(place, link)
            if peer is not None:
                yield from self._to_peer(step, *peer)
        else:
            for other, upper in self._places.uppers(place, link, MACVLAN):
                yield _Step(other, upper, is_arriving=True, tag=0)

    def _to_peer(self, step: _Step, other: Place, peer: Link) -> Iterator[_Step]:
        """Yield the other end of a veth, the link below a VLAN or a macvlan, and the siblings of that."""
        if step.link.kind == VETH:
            yield _Step(other, peer, is_arriving=True, tag=step.tag)
            return
        tag = step.link.data.get("IFLA_VLAN_ID", 0) if step.link.kind == VLAN else step.tag
        for place, upper in siblings(self._places, step.place, step.link) if step.link.kind == MACVLAN else ():
            yield _Step(place, upper, is_arriving=True, tag=0)
        yield _Step(other, peer, is_arriving=False, tag=tag)


def siblings(places: Places, place: Place, link: Link) -> list[tuple[Place, Link]]:
    """The macvlans on the same link that a macvlan reaches without the wire: in the mode bridge."""
    below = places.peer(place, link)
    if below is None or link.data.get("IFLA_MACVLAN_MODE", MACVLAN_BRIDGE) != MACVLAN_BRIDGE:
        return []
    return [
        (other, upper)
        for other, upper in places.uppers(*below, MACVLAN)
        if (upper.ifindex != link.ifindex or other is not place)
        and upper.data.get("IFLA_MACVLAN_MODE", MACVLAN_BRIDGE) == MACVLAN_BRIDGE
    ]


def bridge_of(place: Place, link: Link) -> Link | None:
    """The bridge that the link is a port of."""
    master = place.links.get(link.master)
    return master if master is not None and master.kind == BRIDGE else None


def ports_of(place: Place, bridge: Link) -> list[Link]:
    """The ports of a bridge that send frames."""
    return [
        link
        for link in place.links.values()
        if link.master == bridge.ifindex
        and link.is_up
        and link.flags & IFF_LOWER_UP
        and place.bridge_port(link).state == FORWARDING
    ]


def admitted(place: Place, bridge: Link, port: Link, tag: int) -> int | None:
    """The VLAN of a frame that comes in by a port, or is sent by the bridge itself; None: it is dropped.

    A bridge that does not filter lets tags pass as they are. Source: linux net/bridge/br_vlan.c (br_allowed_ingress).
    """
    if not bridge.vlan_filtering:
        return tag
    of = place.bridge_port(port)
    vlan = tag or of.native
    return vlan if vlan in of.vlans else None


def emitted(place: Place, bridge: Link, port: Link, vlan: int) -> int | None:
    """The tag, 0 for none, of a frame that leaves by a port, or is taken by the bridge itself; None: it is dropped."""
    if not bridge.vlan_filtering:
        return vlan
    is_untagged = place.bridge_port(port).vlans.get(vlan)
    return None if is_untagged is None else 0 if is_untagged else vlan


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
