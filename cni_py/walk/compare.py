"""The prediction beside what was captured: where they agree, where they differ, and where the packet ends. Pure.

Only hops at an interface are compared; what happens between two of them shows in the packet at the next one. Ports that
translation chooses, and the source port of a VXLAN packet, are not predicted and not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_py.walk.hops import BROKEN, DELIVERED, DIFFERENT, IN, LINK, MISSING, SEEN, Hop, Walk
from cni_py.walk.packet import ERROR, REPLY, REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.packetfilter.trace import Event
    from cni_py.walk.packet import Packet
    from cni_py.walk.probe import Observed, Sighting

AGREES, DIFFERS, ENDS, ENDS_AS_PREDICTED, UNVERIFIED = "agrees", "differs", "ends", "ends as predicted", "not verified"


@dataclass(slots=True)
class Comparison:
    """The result.

    Attributes:
        result: AGREES, DIFFERS, ENDS (the packet ends where that was not predicted), ENDS_AS_PREDICTED or UNVERIFIED.
        text: it in words; ``cause``: the rule or the error that explains it.
        seen, expected: numbers of compared hops.
        errors: ICMP errors and refusals, in words.
        extra: places that saw the packet and were not predicted.
    """

    result: str
    text: str
    cause: str = ""
    seen: int = 0
    expected: int = 0
    errors: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def is_as_predicted(self) -> bool:
        return self.result in (AGREES, ENDS_AS_PREDICTED)

    def as_json(self) -> dict[str, Any]:
        names = ("result", "text", "cause", "seen", "expected", "errors", "extra")
        return {name: getattr(self, name) for name in names}


def completeness(forward: Walk, reply: Walk | None) -> Callable[[Observed], bool]:
    """Return a test whether everything predicted was seen."""
    wanted = [
        (hop.place, hop.link, hop.direction, kind)
        for walk, kind in ((forward, REQUEST), (reply, REPLY))
        for hop in (walk.hops if walk else ())
        if hop.kind == LINK and hop.link and not hop.is_optional
    ]

    def test(observed: Observed) -> bool:
        seen = {(one.place, one.link, one.direction, one.frame.kind) for one in observed.sightings}
        errors = {(one.place, one.link, one.direction) for one in observed.of_kind(ERROR)}  # a reply too: the port is closed
        return all(of in seen or (of[3] == REPLY and of[:3] in errors) for of in wanted)

    return test


def compare(walk: Walk, observed: Observed, kind: str = REQUEST) -> Comparison:
    """Mark each hop at an interface, and say where prediction and packet part."""
    kinds = (REPLY, ERROR) if kind == REPLY else (kind,)
    sightings = [one for one in observed.sightings if one.frame.kind in kinds]
    expected = [hop for hop in walk.hops if hop.kind == LINK and hop.link]
    matched = _match(expected, sightings)
    expected = [hop for hop in expected if hop.check]
    extra = _extra(sightings, expected)
    comparison = Comparison(AGREES, "", expected=len(expected), seen=sum(hop.check == SEEN for hop in expected), extra=extra)
    comparison.errors = _errors(observed)
    different = next((hop for hop in expected if hop.check == DIFFERENT), None)
    missing = next((hop for hop in expected if hop.check == MISSING), None)
    is_never_sent = walk.outcome == BROKEN and not expected
    if not matched and not sightings and kind == REPLY and not is_never_sent:
        comparison.result, comparison.text = UNVERIFIED, "no reply was seen"
        comparison.cause = _cause(observed, None)
    elif missing is not None and not _is_later_seen(expected, missing):
        at = _last_seen(expected, missing)
        where = f"{missing.link} of {missing.place}"
        comparison.result, comparison.text = ENDS, f"the packet ends before {where}{at}"
        comparison.cause = _cause(observed, missing)
    elif different is not None:
        comparison.result = DIFFERS
        comparison.text = f"at {different.link} of {different.place} it is {different.observed}"
    elif missing is not None:
        comparison.result, comparison.text = DIFFERS, f"it was not seen at {missing.link} of {missing.place}"
    elif walk.outcome == BROKEN and extra:
        comparison.result, comparison.text = DIFFERS, f"it goes on: seen at {', '.join(extra)}"
    elif walk.outcome == BROKEN:
        comparison.result, comparison.text = ENDS_AS_PREDICTED, "the packet ends there, as predicted"
        comparison.cause = _cause(observed, None)
    else:
        comparison.text = f"seen as predicted at {comparison.seen} of {comparison.expected} interfaces"
    return comparison


def _match(expected: Sequence[Hop], sightings: Sequence[Sighting]) -> int:
    """Set the check of each hop. Returns: the number that was seen."""
    used: set[int] = set()
    found = 0
    for hop in expected:
        at = [
            (number, one)
            for number, one in enumerate(sightings)
            if number not in used and (one.place, one.link, one.direction) == (hop.place, hop.link, hop.direction)
        ]
        right = next(((number, one) for number, one in at if is_alike(hop.packet, one.frame.packet)), None)
        if right is not None:
            hop.check, found = SEEN, found + 1
            used.add(right[0])
        elif at:
            hop.check, hop.observed, found = DIFFERENT, str(at[0][1].frame.packet), found + 1
            used.add(at[0][0])
        elif not hop.is_optional:
            hop.check = MISSING
    return found


def is_alike(predicted: Packet, seen: Packet) -> bool:
    """Compare addresses, protocol and ports, also inside a tunnel."""
    if (predicted.source, predicted.destination) != (seen.source, seen.destination):
        return False
    if predicted.inner is not None and seen.inner is not None:
        return is_alike(predicted.inner, seen.inner)
    if predicted.inner is not None or seen.inner is not None:
        return False
    if seen.protocol == "icmp":  # an ICMP error is a reply to TCP and UDP too
        return True
    return predicted.protocol == seen.protocol and _have_alike_ports(predicted, seen)


def _have_alike_ports(predicted: Packet, seen: Packet) -> bool:
    """Compare ports, as far as they are predicted."""
    if not predicted.is_port_known:
        return True
    pairs = ((predicted.source_port, seen.source_port), (predicted.destination_port, seen.destination_port))
    return all(one in (0, other) for one, other in pairs)


def _extra(sightings: Sequence[Sighting], expected: Sequence[Hop]) -> list[str]:
    wanted = {(hop.place, hop.link, hop.direction) for hop in expected}
    found = [
        f"{one.link} of {one.place}"
        for one in sightings
        if (one.place, one.link, one.direction) not in wanted and one.direction == IN
        if one.frame.kind != ERROR and not one.is_for_another
    ]
    return list(dict.fromkeys(found))


def _is_later_seen(expected: Sequence[Hop], missing: Hop) -> bool:
    return any(hop.check in (SEEN, DIFFERENT) for hop in expected[expected.index(missing) :])


def _last_seen(expected: Sequence[Hop], missing: Hop) -> str:
    before = [hop for hop in expected[: expected.index(missing)] if hop.check in (SEEN, DIFFERENT)]
    return f"; it was last seen at {before[-1].link} of {before[-1].place}" if before else "; it was seen nowhere"


def _cause(observed: Observed, missing: Hop | None) -> str:
    """The reason for a packet's end: a rule that dropped it, a refusal, an ICMP error."""
    for place, events in observed.traced.items():
        for event in events:
            if event.verdict == "drop":
                return f"nftables of {place} dropped it: {event.where}, {_which(event)}"
    if observed.refused:
        return f"the kernel refused to send it: {observed.refused}"
    errors = [one for one in observed.of_kind(ERROR) if one.frame.error]
    if errors:
        return f"ICMP from {errors[0].frame.reporter}: {errors[0].frame.error}"
    return "" if missing is None else "no rule of nftables dropped it, and no ICMP error came back"


def _which(event: Event) -> str:
    return "its policy" if event.kind == "policy" else f"rule with handle {event.handle}"


def _errors(observed: Observed) -> list[str]:
    found = [f"ICMP from {one.frame.reporter}: {one.frame.error}" for one in observed.of_kind(ERROR) if one.frame.error]
    refused = [f"the kernel refused to send it: {observed.refused}"] if observed.refused else []
    return list(dict.fromkeys([*refused, *found]))


def drop_rules(observed: Observed) -> list[tuple[str, Event]]:
    """The rules that dropped it, with their place."""
    return [(place, event) for place, events in observed.traced.items() for event in events if event.verdict == "drop"]


def reached(walk: Walk) -> bool:
    return walk.outcome == DELIVERED
