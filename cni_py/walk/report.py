"""A walk with everything that is said about it: prediction, verification, findings. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_py.walk import hops
from cni_py.walk.hops import BROKEN, DELIVERED, LEAVES, UNFOLLOWED
from cni_py.walk.packet import ICMP

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from cni_py.walk.compare import Comparison
    from cni_py.walk.hops import Hop, Walk
    from cni_py.walk.packet import Packet

    Network = IPv4Network | IPv6Network

_UNNECESSARY = (
    "Both ends are pods, so this masquerade is unnecessary: flanneld with -ip-masq, or masqueradeBeyond: network in"
    " the delegate of flannel, leaves the address as it is."
)
EXIT_ARRIVES, EXIT_BROKEN, EXIT_UNKNOWN = 0, 1, 3


@dataclass(slots=True)
class Report:
    """The result of ``cni-py walk``.

    ``comparison`` None: no packet was sent. ``findings``: sentences, each of the kind good, bad or note.
    """

    title: str
    packet: Packet
    forward: Walk
    reply: Walk | None = None
    comparison: Comparison | None = None
    reply_comparison: Comparison | None = None
    shows_reply: bool = False
    notes: Sequence[str] = ()
    findings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def walks(self) -> list[Walk]:
        return [self.forward, *([self.reply] if self.reply is not None else [])]

    @property
    def is_as_predicted(self) -> bool:
        """Return whether the real packet, and the reply to it, did what was predicted."""
        compared = [one for one in (self.comparison, self.reply_comparison) if one is not None]
        return bool(compared) and all(one.is_as_predicted for one in compared)

    @property
    def exit_status(self) -> int:
        """0: it arrives, or leaves; 1: it does not, or contradicts the prediction; 3: it could not be followed."""
        compared = [one for one in (self.comparison, self.reply_comparison) if one is not None]
        if any(walk.outcome == BROKEN for walk in self.walks) or any(not one.is_as_predicted for one in compared):
            return EXIT_BROKEN
        is_known = self.forward.outcome != UNFOLLOWED and (self.comparison is not None or not self.forward.uncertain)
        return EXIT_ARRIVES if is_known else EXIT_UNKNOWN

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "packet": hops.packet_as_json(self.packet),
            "forward": self.forward.as_json(),
            "reply": self.reply.as_json() if self.reply is not None else None,
            "verified": self.comparison.as_json() if self.comparison is not None else None,
            "replyVerified": self.reply_comparison.as_json() if self.reply_comparison is not None else None,
            "findings": [{"kind": kind, "text": text} for kind, text in self.findings],
            "ok": self.exit_status == EXIT_ARRIVES,
        }


def find(report: Report, pod_networks: Collection[Network]) -> None:
    """Fill in the findings: where the walk ends, where an address is lost, what the largest packet is."""
    forward, found = report.forward, report.findings
    found.append(_end_of(report))
    if forward.outcome in (DELIVERED, LEAVES):
        found += [("note", text) for text in _lost_addresses(report, pod_networks)]
    found += [("bad", f"{hop.text}.") for walk in report.walks for hop in walk.hops if hop.kind == hops.NOTE]
    if report.reply is not None and report.reply.outcome == BROKEN:
        found.append(("bad", f"The reply ends in {report.reply.end_place}: {report.reply.end}."))
    if forward.limit and forward.outcome in (DELIVERED, LEAVES):
        found.append(("note", f"Largest packet that passes whole: {forward.limit} bytes ({forward.limit_at})."))
    if forward.is_heard is False and report.packet.protocol != ICMP:
        found.append(("bad", f"No socket is at {report.packet.protocol.upper()} {forward.last.destination_port}."))
    found += [("note", text) for text in report.notes]


def _end_of(report: Report) -> tuple[str, str]:
    """The sentence about the walk's end. If the real packet did something else, it is only what was predicted."""
    forward = report.forward
    is_verified = report.comparison is None or report.comparison.is_as_predicted
    kind, text = {
        DELIVERED: ("good", f"The packet arrives: {forward.end}."),
        LEAVES: ("good", f"The walk ends at the wire of {forward.end_place}: the packet {forward.end}."),
        UNFOLLOWED: ("note", f"The walk ends in {forward.end_place}: {forward.end}."),
        BROKEN: ("bad", f"The packet ends in {forward.end_place}: {forward.end}."),
    }[forward.outcome]
    return (kind, text) if is_verified else ("note", f"Predicted, and not what happens: {text}")


def _lost_addresses(report: Report, pod_networks: Collection[Network]) -> list[str]:
    """Sentences about the sources that translation hides; of a pod whose packet goes to a pod it is a mistake."""
    found = []
    for hop, before in _source_changes(report.forward):
        after = hop.packet.source
        is_between_pods = _is_pod(before.source, pod_networks) and _is_pod(before.destination, pod_networks)
        if is_between_pods and not _was_translated(report.forward, hop):
            found.append(f"The pod's address {before.source} is lost at {hop.place}: the receiver sees {after}. {_UNNECESSARY}")
        else:
            found.append(f"The receiver sees {after} instead of {before.source}: {hop.text} at {hop.place}.")
    return found


def _source_changes(walk: Walk) -> list[tuple[Hop, Packet]]:
    """The hops that change the source, with the packet before each."""
    pairs = zip(walk.hops[1:], walk.hops, strict=False)
    return [(hop, former.packet) for hop, former in pairs if hop.kind == hops.NAT and hop.packet.source != former.packet.source]


def _was_translated(walk: Walk, hop: Hop) -> bool:
    """Return whether the destination was translated before: a host port, whose hairpin has to be masqueraded."""
    before = walk.hops[: walk.hops.index(hop) + 1]
    return any(of.kind == hops.NAT and any(change.startswith("destination") for change in of.changes) for of in before)


def _is_pod(address: Any, pod_networks: Collection[Network]) -> bool:
    return any(address in network for network in pod_networks if network.version == address.version)
