"""The hooks of the packet filter on a path: chains in the kernel's order, address translation, connection tracking.

Changes nothing.

Source: linux include/uapi/linux/netfilter_ipv4.h (priorities), net/netfilter/nf_nat_core.c.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from cni_py.kernel.route_lookup import Question
from cni_py.packetfilter.evaluation.chains import FAMILIES, NAT_PRIORITY
from cni_py.packetfilter.evaluation.facts import UNKNOWN, Facts, fields_of, without_connection
from cni_py.packetfilter.evaluation.statements import CONNMARK, DESTINATION_NATS, MARK, NATS, NOTRACK
from cni_py.plural import counted
from cni_py.walk import hops
from cni_py.walk.packet import ICMP, Packet
from cni_py.walk.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.packetfilter.evaluation.chains import Chain
    from cni_py.packetfilter.evaluation.ruleset import Event, Outcome
    from cni_py.walk.choices import Choices
    from cni_py.walk.path import Path, PathEnd
    from cni_py.walk.place import Place
    from cni_py.walk.tracking import Connection


class Hooks:
    """Passes packets through the chains of a place.

    ``tracking``: the connections of all places; ``is_rerouted``: a chain of the last hook changed what routing reads, and
    has the type that asks it again.
    """

    def __init__(self, path: Path, choices: Choices) -> None:
        self._path, self.tracking, self.choices = path, Tracking(), choices
        self.is_rerouted = False

    def pass_hook(
        self,
        place: Place,
        hook: str,
        packet: Packet,
        connection: Connection,
        is_reply: bool,
        *,
        iif: Link | None = None,
        oif: Link | None = None,
        nexthop: Address | None = None,
    ) -> Packet:
        """Pass the chains of a hook. Returns: the packet behind them. Raises: PathEnd if one drops it."""
        rules = place.ruleset
        is_undone, is_translated, self.is_rerouted = not is_reply, False, False
        self._say_unreadable(place, hook, packet)
        passed, events = dict[str, list[str]](), 0
        for chain in rules.base_chains(FAMILIES[packet.version], hook):
            if not is_undone and chain.order[:2] > (NAT_PRIORITY[hook], 0):
                packet, is_undone = self._untranslate(place, hook, packet, connection), True
            if chain.kind == "nat" and (is_reply or is_translated or not connection.is_tracked):
                continue
            known = len(self.choices.made)
            facts = self._facts(place, packet, iif, oif, connection, is_before=chain.is_before_tracking)
            outcome = rules.evaluate(chain, facts)
            self._say_chosen(place, chain, packet, known)
            passed.setdefault(chain.program, []).append(f"{chain} ({chain.priority})")
            events += len(outcome.events)
            self._report(place, outcome.events, packet)
            self._end_if_taken(place, hook, packet, outcome)
            for event in outcome.events:
                before = packet
                if event.kind in NATS:
                    packet = self._translate(place, event, packet, connection, iif, oif, nexthop)
                    is_translated = True
                else:
                    packet = _marked(event, packet, connection)
                is_marked = chain.kind == "route" and packet.mark != before.mark
                self.is_rerouted = self.is_rerouted or is_marked or packet.destination != before.destination
        if hook in ("prerouting", "output") and not is_reply:
            self._say_tracked(place, connection, packet)
        if passed and not events:
            verb = "accepts" if len(passed) == 1 else "accept"
            text = f"{' and '.join(passed)} {verb} it unchanged in {hook}"
            self._path.hop(place, hops.FILTER, text, packet, ", ".join(name for names in passed.values() for name in names))
        return packet if is_undone else self._untranslate(place, hook, packet, connection)

    def _end_if_taken(self, place: Place, hook: str, packet: Packet, outcome: Outcome) -> None:
        """Raises: PathEnd if a chain drops the packet, or gives it away."""
        if outcome.verdict == "drop":
            raise self.drop(place, outcome.events, packet, hook)
        if outcome.verdict == "queue":
            text = f"a rule passes it to a program in user space: {outcome.events[-1].text}"
            raise self._path.end(place, hops.UNFOLLOWED, text, packet)

    def _say_chosen(self, place: Place, chain: Chain, packet: Packet, known: int) -> None:
        """Say what rules chose at random. ``known``: the number of choices that were made before."""
        for number, count in self.choices.made[known:]:
            text = f"a rule chooses one of {count} at random: number {number + 1}"
            if self.choices.is_seen:
                self._path.hop(place, hops.FILTER, f"{text}, as the real packet shows", packet, str(chain))
            else:
                self._path.hop(
                    place, hops.UNSURE, f"{text} is followed here, another packet may take another", packet, str(chain)
                )

    def _say_tracked(self, place: Place, connection: Connection, packet: Packet) -> None:
        """Say that connections to the port go elsewhere: they began before the rules changed, or chose another pod."""
        first = connection.original
        if first.protocol == ICMP or first.inner is not None:
            return
        others = [
            of
            for of in place.tracked(packet.version)
            if (of.protocol, of.destination, of.port) == (first.protocol, first.destination, first.destination_port)
            and (of.answered_by, of.answered_from) != (packet.destination, packet.destination_port)
        ]
        if others:
            ends = sorted({packet.end(of.answered_by, of.answered_from) for of in others})
            to = first.end(first.destination, first.destination_port)
            verb = "goes" if len(others) == 1 else "go"
            text = f"{counted(len(others), 'tracked connection')} to {to} {verb} to {', '.join(ends[:3])}"
            self._path.hop(place, hops.TRACKED, text, packet, "connection tracking keeps what was decided for a first packet")

    def _say_unreadable(self, place: Place, hook: str, packet: Packet) -> None:
        """Say once per place what rules exist that are not evaluated."""
        said = {hop.text for hop in self._path.walk.hops if hop.place == place.name}
        for text in place.ruleset.problems:
            if text not in said and hook in ("prerouting", "output"):
                self._path.hop(place, hops.UNSURE, text, packet)

    def _untranslate(self, place: Place, hook: str, packet: Packet, connection: Connection) -> Packet:
        """Undo the translation of the first packet for a reply."""
        after = packet
        if hook in ("prerouting", "output"):
            after = connection.undo_source(packet)
        elif hook in ("postrouting", "input"):
            after = connection.undo_destination(packet)
        if after != packet:
            text = "connection tracking undoes the translation"
            self._path.hop(place, hops.NAT, text, after, str(connection.original), changes=_changes(packet, after))
        return after

    def _translate(
        self, place: Place, event: Event, packet: Packet, connection: Connection, iif: Link | None, oif: Link | None,
        nexthop: Address | None,
    ) -> Packet:  # fmt: skip
        """Do what a rule of nat says."""
        address, port = event.value
        if event.kind in DESTINATION_NATS:
            if event.kind == "redirect":
                address = self._redirect_address(place, packet, iif)
            after = replace(
                packet,
                destination=address or packet.destination,
                destination_port=port if isinstance(port, int) and packet.destination_port else packet.destination_port,
            )
            after = connection.translate_destination(after)
        else:
            if event.kind == "masquerade":
                address = self._masquerade_address(place, oif, nexthop or packet.destination, packet)
            is_kept = port is not UNKNOWN and "random" not in event.text
            after = replace(
                packet,
                source=address or packet.source,
                source_port=port if isinstance(port, int) and packet.source_port else packet.source_port,
                is_port_known=packet.is_port_known and (packet.protocol == ICMP or is_kept),
            )
            after = connection.translate_source(after)
        word = {"dnat": "DNAT", "redirect": "redirect", "snat": "SNAT"}.get(event.kind, event.kind)
        self._path.hop(place, hops.NAT, word, after, f"{event.where}: {event.text}", changes=_changes(packet, after))
        return after

    def _redirect_address(self, place: Place, packet: Packet, iif: Link | None) -> Address | None:
        if iif is None:
            return ip_address("127.0.0.1" if packet.version == 4 else "::1")
        found = place.addresses_of(iif, packet.version)
        return found[0].address if found else None

    def _masquerade_address(self, place: Place, oif: Link | None, nexthop: Address, packet: Packet) -> Address | None:
        """The address that the kernel masquerades with: of IPv4 a primary one of the link, in the network of the next hop if
        there is one; of IPv6 the one that it would send from.

        Source: linux net/ipv4/devinet.c (inet_select_addr), net/netfilter/nf_nat_masquerade.c.
        """
        if oif is None:
            return None
        if packet.version == 6:
            chosen = place.route(Question(packet.destination, oif=oif.ifindex)).source
            if chosen is not None:
                return chosen
        own = [of for of in place.addresses_of(oif, packet.version) if of.is_global and not of.is_secondary]
        inside = [of for of in own if nexthop in of.network]
        others = [of for of in place.addresses if of.address.version == packet.version and of.is_global and not of.is_secondary]
        found = [*inside, *own, *others]
        return found[0].address if found else None

    def _report(self, place: Place, events: Sequence[Event], packet: Packet) -> None:
        """Hops for what rules do besides translation and dropping."""
        for event in events:
            if event.kind == "uncertain":
                self._path.hop(place, hops.UNSURE, f"a rule is not understood: {event.text}", packet, event.where)
            elif event.kind == MARK:
                text = f"mark {packet.mark:#x} becomes {event.value:#x}"
                packet = replace(packet, mark=event.value)
                self._path.hop(place, hops.MARK, text, packet, f"{event.where}: {event.text}")
            elif event.kind == CONNMARK:
                text = f"the connection's mark becomes {event.value:#x}"
                self._path.hop(place, hops.MARK, text, packet, f"{event.where}: {event.text}")
            elif event.kind == NOTRACK:
                self._path.hop(place, hops.TRACKED, "its connection is not tracked", packet, f"{event.where}: {event.text}")

    def drop(self, place: Place, events: Sequence[Event], packet: Packet, hook: str) -> PathEnd:
        """End the walk at the rule of the last event. Returns: the exception that the caller raises."""
        event = events[-1]
        text = f"{'rejected' if event.kind == 'reject' else 'dropped'} by {event.chain.program} in {hook}"
        return self._path.end(place, hops.BROKEN, text, packet, f"{event.where}: {event.text}", hops.FILTER)

    def _facts(
        self,
        place: Place,
        packet: Packet,
        iif: Link | None,
        oif: Link | None,
        connection: Connection | None = None,
        *,
        is_before: bool = False,
        mac: str = "",
    ) -> Facts:
        """Collect the facts that rules can ask for. ``is_before``: of a chain before connection tracking."""  # fmt: skip
        ports = (packet.source_port if packet.is_port_known else UNKNOWN, packet.destination_port)
        links = (iif.name if iif else "", oif.name if oif else "")
        state, is_reply = "established" if packet.is_reply else "new", packet.is_reply
        fields = fields_of(packet.source, packet.destination, packet.protocol, ports, links, state=state, is_reply=is_reply)
        fields |= {"meta mark": packet.mark, "meta length": packet.size}
        if connection is not None:
            fields |= {"ct status": frozenset(connection.status), "ct mark": connection.mark, **_original(connection)}
            if is_before or not connection.is_tracked:
                fields = without_connection(fields, is_tracked=connection.is_tracked)
        if iif is not None or mac:
            names = {"ether saddr": packet.source_mac, "ether daddr": mac, "ether type": fields["meta protocol"]}
            fields |= {name: value or UNKNOWN for name, value in names.items()}
        return Facts(
            fields,
            lambda result, flags: self._fib(place, packet, iif, result, flags),
            lambda *of: _raw(packet, *of),
            choose=self.choices.choose,
        )

    def _fib(self, place: Place, packet: Packet, iif: Link | None, result: str, flags: Sequence[str]) -> Any:
        """The expression ``fib``: the type of an address, or the link that a route to it has."""
        side, links = {*flags} & {"saddr", "daddr"}, {*flags} - {"saddr", "daddr", "mark"}
        if len(side) != 1 or links - {"iif"} or (links and iif is None):
            return UNKNOWN
        address = packet.destination if side == {"daddr"} else packet.source
        mark = packet.mark if "mark" in flags else 0
        choice = place.route(Question(address, mark=mark))
        if result == "type":
            is_elsewhere = bool(links) and choice.kind == "local" and iif not in _links_with(place, address)
            return "unicast" if is_elsewhere else choice.kind or "unreachable"
        link = place.links.get(choice.ifindex)
        if links and (link is None or iif is None or link.ifindex != iif.ifindex):
            link = None
        return {"check": link is not None, "oif": link.name if link else False, "oifname": link.name if link else False}.get(
            result, UNKNOWN
        )

    def solicitation(self, address: Address, source_mac: str) -> Solicitation:
        """An ARP request or an NDP solicitation for an address, sent from a MAC address."""
        if address.version == 4:
            return Solicitation(lambda _, iif, oif: _arp_facts(iif, oif, source_mac))
        multicast = ip_address("ff02::1:ff00:0").packed[:13] + address.packed[13:]
        packet = Packet(ip_address("fe80::1"), ip_address(multicast), ICMP, size=72)

        def facts(place: Place, iif: Link | None, oif: Link | None) -> Facts:
            found = self._facts(place, packet, iif, oif)
            found.fields.update({"ct state": frozenset(("untracked",))})
            found.fields.update({"icmpv6 type": "nd-neighbor-solicit", "ip6 saddr": UNKNOWN, "ether saddr": source_mac})
            return found

        return Solicitation(facts)

    def pass_ingress(self, place: Place, link: Link, packet: Packet, mac: str = "") -> None:
        """Chains of the hook ingress, which see frames before anything else."""
        self._pass_frames(place, ("netdev", "inet"), "ingress", packet, mac, iif=link, device=link.name)

    def pass_egress(self, place: Place, link: Link, packet: Packet, mac: str) -> None:
        """Chains of the hook egress, the last ones, in front of a capture."""
        self._pass_frames(place, ("netdev",), "egress", packet, mac, oif=link, device=link.name)

    def pass_bridge_hook(
        self, place: Place, hook: str, packet: Packet, iif: Link | None, oif: Link | None, mac: str = ""
    ) -> None:
        """Chains of the family bridge."""
        self._pass_frames(place, ("bridge",), hook, packet, mac, iif=iif, oif=oif)

    def _pass_frames(
        self,
        place: Place,
        families: Sequence[str],
        hook: str,
        packet: Packet,
        mac: str,
        *,
        iif: Link | None = None,
        oif: Link | None = None,
        device: str = "",
    ) -> None:
        """Chains that see frames. Raises: PathEnd if one drops it."""
        for chain in place.ruleset.base_chains(families, hook, device):
            outcome = place.ruleset.evaluate(chain, self._facts(place, packet, iif, oif, mac=mac))
            self._report(place, outcome.events, packet)
            if outcome.verdict == "drop":
                raise self.drop(place, outcome.events, packet, f"bridge {hook}" if families == ("bridge",) else hook)


class Solicitation:
    """An ARP request or an NDP solicitation, in the chains that see frames. ``dropped``: the rules that drop it."""

    def __init__(self, facts: Callable[[Place, Link | None, Link | None], Facts]) -> None:
        self.dropped: list[str] = []
        self._facts = facts

    def passes(self, place: Place, family: str, hook: str, iif: Link | None = None, oif: Link | None = None) -> bool:
        families = ("netdev", "inet") if (family, hook) == ("netdev", "ingress") else (family,)
        link = iif or oif
        device = link.name if family == "netdev" and link is not None else ""
        return self._passes(place, place.ruleset.base_chains(families, hook, device), self._facts(place, iif, oif))

    def passes_ip(self, place: Place, link: Link, *, is_sent: bool, is_reply: bool) -> bool:
        """Return whether a place sends or receives the solicitation, or the advertisement that replies to it."""
        facts = self._facts(place, None if is_sent else link, link if is_sent else None)
        if is_reply:
            facts.fields.update({"icmpv6 type": "nd-neighbor-advert", "ip6 daddr": UNKNOWN})
        chains = [
            chain
            for hook in (("output", "postrouting") if is_sent else ("prerouting", "input"))
            for chain in place.ruleset.base_chains(("inet", "ip6"), hook)
            if chain.kind != "nat"
        ]
        return self._passes(place, chains, facts)

    def _passes(self, place: Place, chains: Sequence[Chain], facts: Facts) -> bool:
        for chain in chains:
            outcome = place.ruleset.evaluate(chain, facts)
            if outcome.verdict == "drop":
                self.dropped.append(f"{place.name}: {outcome.events[-1].where}: {outcome.events[-1].text}")
                return False
        return True


def _original(connection: Connection) -> dict[str, Any]:
    """Fields of the first packet of a connection, as it came."""
    first = connection.original
    ends = {"saddr": first.source, "daddr": first.destination}
    found: dict[str, Any] = {f"ct original {end}": address for end, address in ends.items()}
    found |= {f"ct original ip{'' if first.version == 4 else '6'} {end}": address for end, address in ends.items()}
    return found | {"ct original proto-src": first.source_port, "ct original proto-dst": first.destination_port}


def _links_with(place: Place, address: Address) -> list[Link]:
    """The links that have an address."""
    return [
        link for link in place.links.values() if any(of.address == address for of in place.addresses_of(link, address.version))
    ]


def _marked(event: Event, packet: Packet, connection: Connection) -> Packet:
    """Do what a rule says that marks the packet or its connection."""
    if event.kind == CONNMARK:
        connection.mark = event.value
    connection.is_tracked &= event.kind != NOTRACK
    return replace(packet, mark=event.value) if event.kind == MARK else packet


def _arp_facts(iif: Link | None, oif: Link | None, source_mac: str) -> Facts:
    """Facts of an ARP request."""
    fields: dict[str, Any] = {"meta protocol": "arp", "ether type": "arp", "arp operation": "request", "meta mark": 0}
    fields |= {f"meta {name}": link.name if link else "" for name, link in (("iifname", iif), ("oifname", oif))}
    fields |= {f"meta {name}": link.name if link else "" for name, link in (("iif", iif), ("oif", oif))}
    return Facts(fields | {"ether saddr": source_mac, "ether daddr": "ff:ff:ff:ff:ff:ff", "meta pkttype": "broadcast"})


def _raw(packet: Packet, base: str, offset: int, length: int) -> Any:
    """The expression ``@th,96,24``: the network identifier of VXLAN."""
    if (base, offset, length) == ("th", 96, 24) and packet.tunnel is not None and packet.tunnel.vni:
        return packet.tunnel.vni
    return UNKNOWN


def _changes(before: Packet, after: Packet) -> tuple[str, ...]:
    """The differences between two packets in words."""
    found = []
    for word, one, other in (
        ("source", before.end(before.source, before.source_port), after.end(after.source, after.source_port)),
        (
            "destination",
            before.end(before.destination, before.destination_port),
            after.end(after.destination, after.destination_port),
        ),
    ):
        if one != other:
            found.append(f"{word} {one} becomes {other}")
    if before.is_port_known and not after.is_port_known:
        found.append("the source port becomes a random one")
    return tuple(found)
