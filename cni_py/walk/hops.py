"""Hops: what a walk consists of, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cni_py.walk.packet import Packet

# Kinds of hops.
SEND, ROUTE, NEIGHBOUR, FILTER, NAT, MARK = "send", "route", "neighbour", "filter", "nat", "mark"
ENCAPSULATE, DECAPSULATE, LINK, BRIDGE, DELIVER, LEAVE, END, SIZE, UNSURE, NOTE, TRACKED = (
    "encapsulate", "decapsulate", "link", "bridge", "deliver", "leave", "end", "size", "unsure", "note", "tracked",
)  # fmt: skip
OUT, IN = "out", "in"
# Outcomes of a walk.
DELIVERED, LEAVES, BROKEN, UNFOLLOWED = "delivered", "leaves", "broken", "unfollowed"
# Results of the comparison of a hop with what was captured.
SEEN, DIFFERENT, MISSING = "seen", "different", "missing"


@dataclass(slots=True)
class Hop:
    """One step of a packet.

    Attributes:
        place: the namespace in which it happens.
        text: what happens; ``why``: the entry of the kernel's table, or the rule, that says so.
        changes: changes of address, port or size that the hop makes.
        packet: the packet behind the hop.
        link, direction: of a hop of the kind LINK: a capture there shows the packet.
        is_optional: a capture need not show it.
        is_broken: the packet ends here.
        check: SEEN, DIFFERENT or MISSING when it was compared with the real packet; ``observed``: what was captured instead.
    """

    place: str
    kind: str
    text: str
    packet: Packet
    why: str = ""
    changes: tuple[str, ...] = ()
    link: str = ""
    direction: str = ""
    is_optional: bool = False
    is_broken: bool = False
    check: str = ""
    observed: str = ""

    def as_json(self) -> dict[str, Any]:
        shown = {
            "place": self.place,
            "kind": self.kind,
            "text": self.text,
            "why": self.why,
            "changes": list(self.changes),
            "packet": packet_as_json(self.packet),
            "broken": self.is_broken,
        }
        if self.kind == LINK:
            shown |= {"link": self.link, "direction": self.direction}
        return shown | ({"check": self.check, "observed": self.observed} if self.check else {})


def packet_as_json(packet: Packet) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "source": str(packet.source),
        "destination": str(packet.destination),
        "protocol": packet.protocol,
        "sourcePort": packet.source_port if packet.is_port_known else None,
        "destinationPort": packet.destination_port,
        "size": packet.size,
        "dontFragment": packet.dont_fragment,
        "mark": packet.mark,
    }
    if packet.inner is not None and packet.tunnel is not None:
        shown |= {"tunnel": packet.tunnel.name, "inner": packet_as_json(packet.inner)}
    return shown


@dataclass(slots=True)
class Walk:
    """The path of one packet, in one direction.

    Attributes:
        outcome: DELIVERED, LEAVES (the wire, to a machine that is not visible), BROKEN or UNFOLLOWED; ``end``: it in words.
        end_place: where that is.
        limit: the largest IP packet that passes, and ``limit_at`` the link that sets it.
        is_heard: a socket takes the delivered packet; None: unknown, or a protocol without ports.
    """

    hops: list[Hop] = field(default_factory=list)
    outcome: str = ""
    end: str = ""
    end_place: str = ""
    limit: int = 0
    limit_at: str = ""
    is_heard: bool | None = None

    @property
    def last(self) -> Packet:
        return self.hops[-1].packet

    @property
    def changes(self) -> list[Hop]:
        """The hops that change address, port or size."""
        return [hop for hop in self.hops if hop.changes]

    @property
    def uncertain(self) -> list[Hop]:
        return [hop for hop in self.hops if hop.kind == UNSURE]

    def as_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "end": self.end,
            "endPlace": self.end_place,
            "largestPacket": self.limit,
            "limitedBy": self.limit_at,
            "listening": self.is_heard,
            "hops": [hop.as_json() for hop in self.hops],
        }
