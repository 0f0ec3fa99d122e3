"""Connection tracking and address translation of a walk: pure.

Each place has its own connections, as each namespace has. The first packet of one goes through the chains of nat; the others,
and the replies, are translated by what was remembered of it.

Source: linux net/netfilter/nf_conntrack_core.c, nf_nat_core.c (nf_nat_packet).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_py.walk.packet import Packet

Ends = tuple[object, int, object, int, str]
"""Source and destination, each with its port, and protocol."""


def ends_of(packet: Packet) -> Ends:
    return packet.source, packet.source_port, packet.destination, packet.destination_port, packet.protocol


@dataclass(slots=True)
class Connection:
    """A connection: its first packet as it came, and as the reply to it will be addressed.

    ``original`` and ``reply``: packets; equal ends, reversed, unless an address is translated. ``mark``: of the connection;
    ``is_tracked``: no rule (``notrack``) exempts it: nothing translates one that is not.
    """

    original: Packet
    reply: Packet
    status: set[str] = field(default_factory=set)
    mark: int = 0
    is_tracked: bool = True

    @classmethod
    def begin(cls, packet: Packet) -> Connection:
        return cls(packet, packet.reversed())

    def translate_destination(self, packet: Packet) -> Packet:
        """Change where the first packet goes; the reply comes from there."""
        self.status.add("dnat")
        self.reply = replace(self.reply, source=packet.destination, source_port=packet.destination_port)
        return packet

    def translate_source(self, packet: Packet) -> Packet:
        """Change where the first packet comes from; the reply goes there."""
        self.status.add("snat")
        self.reply = replace(
            self.reply,
            destination=packet.source,
            destination_port=packet.source_port,
            is_port_known=packet.is_port_known,
        )
        return packet

    def undo_source(self, packet: Packet) -> Packet:
        """Restore the destination of a reply that comes in: the first packet's source."""
        if "snat" not in self.status:
            return packet
        return replace(
            packet,
            destination=self.original.source,
            destination_port=self.original.source_port,
            is_port_known=self.original.is_port_known,
        )

    def undo_destination(self, packet: Packet) -> Packet:
        """Restore the source of a reply that goes out: the first packet's destination."""
        if "dnat" not in self.status:
            return packet
        return replace(packet, source=self.original.destination, source_port=self.original.destination_port)


class Tracking:
    """The connections of every place, by its name."""

    def __init__(self) -> None:
        self._by_place: dict[str, list[Connection]] = {}

    def find(self, place: str, packet: Packet) -> tuple[Connection, bool]:
        """Return the packet's connection and whether it is a reply; a new one begins one."""
        for connection in self._by_place.get(place, ()):
            if ends_of(connection.reply) == ends_of(packet):
                return connection, True
            if ends_of(connection.original) == ends_of(packet):
                return connection, False
        connection = Connection.begin(packet)
        self._by_place.setdefault(place, []).append(connection)
        return connection, False
