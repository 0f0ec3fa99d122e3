"""The path that is being followed: its hops, how it ends, and what the layers of it need of one another. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from cni_py.walk import hops
from cni_py.walk.hops import Hop, Walk
from cni_py.walk.tracking import Connection

if TYPE_CHECKING:
    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.kernel.route_lookup import Choice
    from cni_py.walk.packet import Packet
    from cni_py.walk.place import Place

Tracked = tuple[Connection, bool]
"""A packet's connection, and whether it is a reply."""
_MAX_HOPS = 120


class PathEnd(Exception):
    """The end of a walk."""


class Ip(Protocol):
    """The IP layer, as the layers below it use it."""

    def send(self, place: Place, packet: Packet) -> None: ...
    def receive(self, place: Place, link: Link, packet: Packet, tracked: Tracked | None = None, mac: str = "") -> None: ...
    def route(self, place: Place, packet: Packet, iif: Link | None) -> Choice: ...
    def neighbour(self, place: Place, out: Link, nexthop: Address, packet: Packet) -> str: ...


class Path:
    """The walk so far. ``limits``: the MTU of each link for the innermost packet, with the link's name."""

    def __init__(self) -> None:
        self.walk = Walk()
        self.limits: list[tuple[int, str]] = []

    def begin(self) -> None:
        self.walk, self.limits = Walk(), []

    def hop(self, place: Place, kind: str, text: str, packet: Packet, why: str = "", **more: Any) -> None:
        """Append a hop. Raises: PathEnd if there are so many that the packet goes in a circle."""
        self.walk.hops.append(Hop(place.name, kind, text, packet, why, **more))
        if len(self.walk.hops) > _MAX_HOPS:
            raise self.end(place, hops.BROKEN, "the packet goes in a circle: a routing loop", packet)

    def end(self, place: Place, outcome: str, text: str, packet: Packet, why: str = "", kind: str = hops.END) -> PathEnd:
        """End the walk. Returns: the exception that the caller raises."""
        self.walk.hops.append(Hop(place.name, kind, text, packet, why, is_broken=outcome == hops.BROKEN))
        self.walk.outcome, self.walk.end, self.walk.end_place = outcome, text, place.name
        return PathEnd()

    def seen_at(
        self, place: Place, link: Link, direction: str, packet: Packet, text: str, *, is_optional: bool = False
    ) -> None:
        """Append a hop at which a capture shows the packet."""
        self.hop(place, hops.LINK, text, packet, link=link.name, direction=direction, is_optional=is_optional)
