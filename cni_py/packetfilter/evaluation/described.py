"""Verdicts for packets that are described, at the hooks that they pass: pure.

    verdict(ruleset, Packet(pod, peer, "tcp", 80, "cni0", "flannel.1"), "prerouting", "forward", "postrouting")

The packet is any of its kind: a rule with a limit may match. What a rule in doubt may have accepted is not reported as
dropped, and a ruleset that is too complicated is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter.evaluation.chains import FAMILIES
from cni_py.packetfilter.evaluation.facts import UNKNOWN, Facts, fields_of, without_connection
from cni_py.packetfilter.evaluation.ruleset import ANY, POLICY
from cni_py.packetfilter.evaluation.statements import (
    ACCEPT,
    DESTINATION_NATS,
    DROP,
    ENDS,
    NATS,
    NOTRACK,
    QUEUE,
    REJECT,
    SOURCE_NATS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from cni_py.packetfilter.evaluation.chains import Chain
    from cni_py.packetfilter.evaluation.ruleset import Event, Outcome, Ruleset

    Address = IPv4Address | IPv6Address

TRANSLATE, UNCLEAR = "translate", "unknown"
_UNTRACKED = frozenset(("untracked",))
_KINDS = {REJECT: DROP, QUEUE: UNCLEAR, ANY: UNCLEAR, **dict.fromkeys(SOURCE_NATS, TRANSLATE)} | dict.fromkeys(
    DESTINATION_NATS, ACCEPT
)


@dataclass(frozen=True, slots=True)
class Packet:
    """``incoming``, ``outgoing``: names of links, "" if there is none; ``state``: as conntrack has it."""

    source: Address
    destination: Address
    protocol: str = "tcp"
    port: int = 80
    incoming: str = ""
    outgoing: str = ""
    state: str = "new"

    @property
    def version(self) -> int:
        return self.source.version


@dataclass(frozen=True, slots=True)
class Verdict:
    """``chain`` and ``rule``: what decided; ``rule`` "" where it was the chain's policy; ``handle``: of a rule of nftables."""

    kind: str
    chain: str = ""
    rule: str = ""
    handle: int = 0

    @property
    def words(self) -> str:
        if not self.rule:
            return f"chain {self.chain}: its policy is drop"
        return f"chain {self.chain}: {self.rule}" + (f" (handle {self.handle})" if self.handle else "")


def verdict(ruleset: Ruleset, packet: Packet, *hooks: str) -> Verdict:
    """Return what happens at these hooks: the first drop, else a translation of the source, else accept or unknown."""
    facts = _facts(packet)
    found: list[Verdict] = []
    for hook in hooks:
        families = ("netdev", "inet") if hook == "ingress" else FAMILIES[packet.version]
        _set_links(facts, packet, hook)
        found += _at(ruleset, ruleset.base_chains(families, hook, packet.incoming), facts)
    return _worst(found)


def bridged(ruleset: Ruleset, packet: Packet) -> Verdict:
    """Return what happens to a packet between two ports of a bridge in the tables of the family bridge."""
    facts = _facts(packet)
    facts.fields.update({f"meta {key}": UNKNOWN for key in ("iifname", "oifname", "iif", "oif")})
    chains = [chain for hook in ("prerouting", "forward") for chain in ruleset.base_chains(("bridge",), hook)]
    return _worst(_at(ruleset, chains, facts))


def _worst(found: Sequence[Verdict]) -> Verdict:
    for kind in (DROP, TRANSLATE, UNCLEAR):
        for each in found:
            if each.kind == kind:
                return each
    return Verdict(ACCEPT)


def _at(ruleset: Ruleset, chains: Sequence[Chain], facts: Facts) -> list[Verdict]:
    """Pass the chains of a hook."""
    found, is_translated = [], False
    for chain in chains:
        is_tracked = facts.fields["ct state"] != _UNTRACKED
        if chain.kind == "nat" and (is_translated or not is_tracked):  # the kernel asks no other chain
            continue
        seen = facts
        if chain.is_before_tracking or not is_tracked:
            seen = replace(facts, fields=without_connection(facts.fields, is_tracked=is_tracked))
        outcome = ruleset.evaluate(chain, seen)
        facts.fields["meta mark"] = seen.fields["meta mark"]
        found.append(_verdict_of(chain, outcome))
        for event in outcome.events:
            is_translated |= event.kind in NATS
            if event.kind == NOTRACK:
                facts.fields["ct state"] = _UNTRACKED
            elif event.kind in DESTINATION_NATS:
                _redirect(facts, *event.value)
        if outcome.possible & (DESTINATION_NATS | {ANY}):
            _redirect(facts, UNKNOWN, UNKNOWN)
    return found


def _verdict_of(chain: Chain, outcome: Outcome) -> Verdict:
    event = _decisive(outcome)
    kind = _KINDS.get(event.kind, event.kind) if event else ACCEPT
    if any(_KINDS.get(end, end) != kind for end in outcome.possible):
        kind = UNCLEAR
    if event is None:
        return Verdict(kind, str(chain))
    return Verdict(kind, event.where, "" if event.text == POLICY else event.text or "rule", event.handle)


def _decisive(outcome: Outcome) -> Event | None:
    """The event that ended the chain; None: nothing but accept."""
    last = outcome.events[-1] if outcome.events else None
    return last if last is not None and last.kind in ENDS else None


def _facts(packet: Packet) -> Facts:
    """The links say whether an address is of this host: it sends what has no link in, and takes what has no link out."""
    protocol = "icmp" if packet.protocol == "ipv6-icmp" else packet.protocol
    ports, links = (UNKNOWN, packet.port), (packet.incoming, packet.outgoing)
    fields = fields_of(packet.source, packet.destination, protocol, ports, links, state=packet.state) | {
        "ether saddr": UNKNOWN,
        "fib saddr type": "unicast" if packet.incoming else "local",
        "fib daddr type": "unicast" if packet.outgoing else "local",
    }
    return Facts(fields, lambda result, flags: fields.get(f"fib {' '.join(flags)} {result}", UNKNOWN), within_limits=UNKNOWN)


def _set_links(facts: Facts, packet: Packet, hook: str) -> None:
    """Set the links that a hook has."""
    is_redirected = facts.fields["fib daddr type"] is UNKNOWN
    incoming = "" if hook == "output" else packet.incoming
    outgoing: Any = "" if hook in ("ingress", "prerouting", "input") else UNKNOWN if is_redirected else packet.outgoing
    facts.fields.update({"meta iifname": incoming, "meta iif": incoming, "meta oifname": outgoing, "meta oif": outgoing})


def _redirect(facts: Facts, address: Any, port: Any) -> None:
    """Send the packet elsewhere: its way out is not known then."""
    fields = facts.fields
    ip = "ip" if "ip daddr" in fields else "ip6"
    fields[f"{ip} daddr"] = UNKNOWN if address is None else address
    fields |= {"fib daddr type": UNKNOWN, "ct status": frozenset(("dnat",))}
    for name in ("th dport", "tcp dport", "udp dport"):
        if name in fields and port is not None:
            fields[name] = port
