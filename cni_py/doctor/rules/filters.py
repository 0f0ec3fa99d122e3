"""Fate of packets of pods and of the tunnel in the packet filter: described packets, evaluated in the rules of this host."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import shown
from cni_py.doctor.rules.peers import names_of
from cni_py.packetfilter import forward_rules
from cni_py.packetfilter.evaluation import described
from cni_py.packetfilter.evaluation.described import TRANSLATE, Packet
from cni_py.packetfilter.evaluation.statements import ACCEPT, DROP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.doctor.facts import Address, Facts, Wanted
    from cni_py.packetfilter.evaluation.described import Verdict

_MOST = 64
"""Peers, and pods, for which packets are evaluated one by one."""
_FORWARDED = ("prerouting", "forward", "postrouting")
_PROTOCOLS = (("tcp", 80), ("udp", 53), ("icmp", 0))
_OUTSIDE: dict[int, Address] = {4: IPv4Address("1.1.1.1"), 6: IPv6Address("2606:4700:4700::1111")}
_OUR_TABLES = (forward_rules.TABLE, "inet cni_py")


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet, and what it is, in words. ``about``: the names of the peer."""

    packet: Packet
    words: str
    about: frozenset[str] = frozenset()


def _pods(facts: Facts, version: int) -> list[Address]:
    """Return addresses of pods of this node: the first ones that exist, and one that may."""
    own = [subnet for subnet in facts.subnets if subnet.version == version]
    return [*(a for a in facts.pod_addresses if a.version == version)][:_MOST] or [subnet.network_address + 2 for subnet in own]


def _peers(facts: Facts, version: int) -> list[Wanted]:
    return [one for one in facts.wanted if one.subnet.version == version][:_MOST]


def _between(facts: Facts, version: int) -> Iterator[Sent]:
    """Yield packets from our pods to those of the peers, and back."""
    bridge, pods = facts.bridge_name, _pods(facts, version)
    peers = _peers(facts, version)
    pairs = [(pods[0], peer) for peer in peers] if pods else []
    pairs += [(pod, peers[0]) for pod in pods[1:]] if peers else []
    for protocol, port in _PROTOCOLS:
        named = "ipv6-icmp" if version == 6 and protocol == "icmp" else protocol
        for pod, peer in pairs:
            theirs, device, about = peer.subnet.network_address + 2, peer.route.device, names_of(peer.lease)
            out = Packet(pod, theirs, named, port, bridge, device)
            back = Packet(theirs, pod, named, port, device, bridge)
            yield Sent(out, f"{protocol} from our pod {pod} to {theirs}, of peer {peer.subnet}", about)
            yield Sent(back, f"{protocol} from {theirs}, of peer {peer.subnet}, to our pod {pod}", about)


def _inside(facts: Facts, version: int) -> Iterator[Sent]:
    """Yield packets between two pods of this node, where the bridge passes them to iptables."""
    name = "net/bridge/bridge-nf-call-iptables" if version == 4 else "net/bridge/bridge-nf-call-ip6tables"
    pods = _pods(facts, version)
    if facts.sysctls.get(name) != "1" or not pods or not facts.bridge_name:
        return
    other = pods[1] if len(pods) > 1 else pods[0] + 1
    for protocol, port in _PROTOCOLS[:2]:
        packet = Packet(pods[0], other, protocol, port, facts.bridge_name, facts.bridge_name)
        yield Sent(packet, f"{protocol} between our pods {pods[0]} and {other}")


def _outgoing(facts: Facts, version: int) -> Iterator[Sent]:
    """Yield a packet to the outside."""
    if facts.external is None:
        return
    for pod in _pods(facts, version)[:1]:
        packet = Packet(pod, _OUTSIDE[version], "tcp", 443, facts.bridge_name, facts.external.name)
        yield Sent(packet, f"tcp from our pod {pod} to the outside")


def _tunnelled(facts: Facts, version: int, *, is_incoming: bool) -> Iterator[Sent]:
    """Yield the tunnel's packets from, or to, each peer."""
    external = facts.external
    if external is None or not facts.tunnel_port:
        return
    own = external.source(version)
    for peer in _peers(facts, version):
        theirs = peer.lease.attributes.public_ip if version == 4 else peer.lease.attributes.public_ipv6
        if own is None or theirs is None or own.version != version:
            continue
        about, port = names_of(peer.lease), facts.tunnel_port
        if is_incoming:
            yield Sent(Packet(theirs, own, "udp", port, external.name), f"VXLAN from {theirs} to UDP port {port}", about)
        else:
            packet = Packet(own, theirs, "udp", port, "", external.name)
            yield Sent(packet, f"VXLAN to {theirs}, UDP port {port}", about)


def _dropped(facts: Facts, packets: Iterable[Sent], *hooks: str) -> dict[str, tuple[Verdict, list[Sent]]]:
    """Return what drops, by its words, and which packets."""
    found: dict[str, tuple[Verdict, list[Sent]]] = {}
    for sent in packets:
        verdict = described.verdict(facts.ruleset, sent.packet, *hooks) if facts.ruleset else None
        if verdict is not None and verdict.kind == DROP:
            found.setdefault(verdict.words, (verdict, []))[1].append(sent)
    return found


def _bridged(facts: Facts, version: int) -> dict[str, tuple[Verdict, list[Sent]]]:
    """Return what drops packets between two pods of this node in the bridge itself."""
    pods = _pods(facts, version)
    found: dict[str, tuple[Verdict, list[Sent]]] = {}
    for protocol, port in _PROTOCOLS if pods and facts.bridge is not None and facts.ruleset else ():
        packet = Packet(pods[0], pods[0] + 1, protocol, port)
        verdict = described.bridged(facts.ruleset, packet) if facts.ruleset else None
        if verdict is not None and verdict.kind == DROP:
            sent = Sent(packet, f"{protocol} between two pods of this node")
            found.setdefault(verdict.words, (verdict, []))[1].append(sent)
    return found


def _versions(facts: Facts) -> list[int]:
    return sorted({subnet.version for subnet in facts.subnets})


def forward(facts: Facts) -> Iterator[Finding]:
    """A rule, or a policy, that drops what pods send to each other, before our rule accepts it."""
    for version in _versions(facts):
        between = _dropped(facts, [*_between(facts, version), *_inside(facts, version)], *_FORWARDED)
        for words, (verdict, those) in {**between, **_bridged(facts, version)}.items():
            yield _drop_finding("packets of pods are dropped", words, verdict, those)
        for words, (verdict, those) in _dropped(facts, _outgoing(facts, version), *_FORWARDED).items():
            if words not in between:
                yield _drop_finding("packets of pods to the outside are dropped", words, verdict, those, WARNING)


def _drop_finding(what: str, words: str, verdict: Verdict, those: list[Sent], severity: str = "") -> Finding:
    about = frozenset().union(*(sent.about for sent in those)) if all(sent.about for sent in those) else frozenset()
    return Finding(
        f"{what}: {words}",
        shown((sent.words for sent in those), 3),
        (_removal(verdict),),
        about=about if len({sent.about for sent in those}) == 1 else frozenset(),
        severity=severity,
    )


def _removal(verdict: Verdict) -> str:
    """Return the command that deletes a rule, or that accepts in its chain where it is the policy."""
    chain, rule = verdict.chain, verdict.rule
    family, table, *name = chain.split(" ")
    is_iptables = family.startswith(("iptables", "ip6tables"))
    if is_iptables and rule:
        return f"{family} -t {table} -D {rule.removeprefix('-A ')}"
    if is_iptables:
        return f"{family} -t {table} -P {' '.join(name)} ACCEPT; or accept the pods' network there"
    if rule:
        return f"nft delete rule {chain} handle {verdict.handle}"
    return f"accept the pods' network in that chain: nft insert rule {chain} ..."


def tunnel(facts: Facts) -> Iterator[Finding]:
    """A rule of this host that drops the tunnel's packets."""
    for version in _versions(facts):
        for is_incoming, hooks in ((True, ("ingress", "prerouting", "input")), (False, ("output", "postrouting"))):
            packets = _tunnelled(facts, version, is_incoming=is_incoming)
            for words, (verdict, those) in _dropped(facts, packets, *hooks).items():
                way = "from" if is_incoming else "to"
                yield _drop_finding(f"VXLAN packets {way} other nodes are dropped", words, verdict, those)


def translated(facts: Facts) -> Iterator[Finding]:
    """Packets from our pods to those of other nodes that leave with another source address."""
    if facts.ruleset is None:
        return
    for version in _versions(facts):
        found: dict[str, tuple[Verdict, list[Sent]]] = {}
        for sent in _between(facts, version):
            if sent.packet.incoming == facts.bridge_name:
                verdict = described.verdict(facts.ruleset, sent.packet, "postrouting")
                if verdict.kind == TRANSLATE:
                    found.setdefault(verdict.words, (verdict, []))[1].append(sent)
        for words, (verdict, those) in found.items():
            is_ours = verdict.chain.startswith(_OUR_TABLES)
            repair = _removal(verdict)
            if is_ours:
                repair = "let flanneld masquerade, which excludes the whole network: -ip-masq, then create the pods again"
            yield Finding(
                f"packets of pods to other nodes are masqueraded: {words}",
                shown((sent.words for sent in those), 3),
                (repair,),
                severity=WARNING if is_ours else ERROR,
            )


def not_translated(facts: Facts) -> Iterator[Finding]:
    """Packets of pods to the outside that keep an address which the outside cannot answer."""
    if facts.ruleset is None or facts.env is None or not facts.env.ip_masq:
        return
    for version in _versions(facts):
        for sent in _outgoing(facts, version):
            if described.verdict(facts.ruleset, sent.packet, "postrouting").kind == ACCEPT and _masquerades(facts, version):
                yield Finding(
                    f"packets of pods to the outside are not masqueraded (IPv{version})",
                    ("FLANNEL_IPMASQ=true, and no rule does it",),
                    ("flanneld restores its rules: systemctl restart flanneld",),
                )


def _masquerades(facts: Facts, version: int) -> bool:
    """Return whether flanneld was asked to, for this family."""
    return facts.options is None or facts.options.masquerades(version)


def flavours(facts: Facts) -> Iterator[Finding]:
    """Rules of one table in both flavours of iptables: which program shows them depends on the flavour that runs."""
    found: dict[str, set[str]] = {}
    for chain in facts.ruleset.chains if facts.ruleset else ():
        program, _, table = chain.table.partition(" ")
        if chain.program == program and chain.rules:
            family, _, flavour = program.partition("-")
            found.setdefault(f"{family} -t {table}", set()).add(flavour)
    both = [table for table, those in sorted(found.items()) if len(those) > 1]
    if both:
        yield Finding(
            "rules are in iptables-nft and in iptables-legacy",
            tuple(f"{name}: both have rules" for name in both),
            ("see which program adds them: iptables-legacy-save; iptables-nft-save; delete those of the unused flavour",),
        )


def of_go(facts: Facts) -> Iterator[Finding]:
    """Rules of Go's flanneld beside ours: a packet meets both."""
    ours = [chain for chain in (facts.ruleset.chains if facts.ruleset else ()) if chain.table == forward_rules.TABLE]
    ours_iptables = any(forward_rules.MASQUERADE_CHAIN in text for text in facts.saved_rules.values())
    if not ours and not ours_iptables:
        return
    names = (forward_rules.GO_MASQUERADE_CHAIN, forward_rules.GO_FORWARD_CHAIN)
    found = [f"{chain}" for chain in (facts.ruleset.chains if facts.ruleset else ()) if chain.name in names]
    found += [str(chain) for chain in (facts.ruleset.chains if facts.ruleset else ()) if chain.table in forward_rules.GO_TABLES]
    if found:
        yield Finding(
            "rules of Go's flanneld exist beside ours",
            shown(found),
            ("flanneld deletes them when it starts: systemctl restart flanneld",),
        )
