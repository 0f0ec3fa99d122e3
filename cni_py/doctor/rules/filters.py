"""Fate of packets of pods and of the tunnel in the packet filter: described packets, evaluated in the rules of this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import shown
from cni_py.doctor.rules.peers import names_of
from cni_py.packetfilter import forward_rules
from cni_py.packetfilter.evaluation import described
from cni_py.packetfilter.evaluation.described import TRANSLATE, UNCLEAR, Packet, Verdict
from cni_py.packetfilter.evaluation.statements import ACCEPT, DROP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.doctor.facts import Address, Facts, Wanted

_MOST = 64
"""Peers, and pods, for which packets are evaluated one by one."""
_FORWARDED = ("prerouting", "forward", "postrouting")
_RECEIVED, _SENT = ("ingress", "prerouting", "input"), ("output", "postrouting")
_PROTOCOLS = (("tcp", 80), ("udp", 53), ("icmp", 0))
_OUTSIDE: dict[int, Address] = {4: IPv4Address("1.1.1.1"), 6: IPv6Address("2606:4700:4700::1111")}
_OUR_TABLES = (forward_rules.TABLE, "inet cni_py")


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet, and what it is, in words. ``about``: the names of the peer."""

    packet: Packet
    words: str
    about: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Accepted:
    """Packets that a firewall has to accept, in the words of each."""

    iptables: str
    nft: str
    ufw: str


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


def _replies(facts: Facts, version: int) -> Iterator[Sent]:
    """Yield what a pod replies to this node: to kubelet, which asks whether it is alive."""
    for pod, gateway in _neighbours(facts, version):
        packet = Packet(pod, gateway, "tcp", 40000, facts.bridge_name, state="established")
        yield Sent(packet, f"replies of our pod {pod} to this node, {gateway}: probes of kubelet fail")


def _to_pods(facts: Facts, version: int) -> Iterator[Sent]:
    for pod, gateway in _neighbours(facts, version):
        packet = Packet(gateway, pod, "tcp", 80, "", facts.bridge_name)
        yield Sent(packet, f"tcp from this node, {gateway}, to our pod {pod}")


def _neighbours(facts: Facts, version: int) -> Iterator[tuple[Address, Address]]:
    """Yield a pod of this node and the gateway that it has, if it is on the bridge."""
    bridge = facts.bridge
    own = [subnet for subnet in facts.subnets if subnet.version == version]
    for at in facts.addresses_of(bridge) if bridge is not None else ():
        if any(at.address in subnet for subnet in own):
            yield from ((pod, at.address) for pod in _pods(facts, version)[:1])


def _tunnelled(facts: Facts, peers: Iterable[Wanted], version: int, *, is_incoming: bool) -> Iterator[Sent]:
    """Yield the tunnel's packets from, or to, each of these peers."""
    external = facts.external
    if external is None or not facts.tunnel_port:
        return
    own = external.source(version)
    for peer in peers:
        theirs = peer.lease.attributes.public_ip if version == 4 else peer.lease.attributes.public_ipv6
        if own is None or theirs is None or own.version != version:
            continue
        about, port = names_of(peer.lease), facts.tunnel_port
        if is_incoming:
            yield Sent(Packet(theirs, own, "udp", port, external.name), f"VXLAN from {theirs} to UDP port {port}", about)
        else:
            packet = Packet(own, theirs, "udp", port, "", external.name)
            yield Sent(packet, f"VXLAN to {theirs}, UDP port {port}", about)


def _verdict(facts: Facts, packet: Packet, *hooks: str) -> Verdict:
    return described.verdict(facts.ruleset, packet, *hooks) if facts.ruleset else Verdict(ACCEPT)


def _dropped(facts: Facts, packets: Iterable[Sent], *hooks: str) -> dict[str, tuple[Verdict, list[Sent]]]:
    """Return what drops, by its words, and which packets."""
    found: dict[str, tuple[Verdict, list[Sent]]] = {}
    for sent in packets:
        verdict = _verdict(facts, sent.packet, *hooks)
        if verdict.kind == DROP:
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
        accepted = _of_pods(facts, version)
        between = _dropped(facts, [*_between(facts, version), *_inside(facts, version)], *_FORWARDED)
        for words, (verdict, those) in {**between, **_bridged(facts, version)}.items():
            repair = _repair(facts, verdict, those[0], accepted, *_FORWARDED)
            yield _drop_finding("packets of pods are dropped", words, repair, those)
        for words, (verdict, those) in _dropped(facts, _outgoing(facts, version), *_FORWARDED).items():
            if words not in between:
                repair = _repair(facts, verdict, those[0], accepted, *_FORWARDED)
                yield _drop_finding("packets of pods to the outside are dropped", words, repair, those, WARNING)
        for hooks, packets in ((_RECEIVED, _replies(facts, version)), (_SENT, _to_pods(facts, version))):
            for words, (verdict, those) in _dropped(facts, packets, *hooks).items():
                if words not in between:
                    repair = _repair(facts, verdict, those[0], accepted, *hooks)
                    yield _drop_finding("packets between this node and its pods are dropped", words, repair, those)


def _drop_finding(what: str, words: str, repair: tuple[str, ...], those: list[Sent], severity: str = "") -> Finding:
    about = frozenset().union(*(sent.about for sent in those)) if all(sent.about for sent in those) else frozenset()
    return Finding(
        f"{what}: {words}",
        shown((sent.words for sent in those), 3),
        repair,
        about=about if len({sent.about for sent in those}) == 1 else frozenset(),
        severity=severity,
    )


def _of_pods(facts: Facts, version: int) -> tuple[Accepted, ...]:
    """Return what a firewall has to accept for pods."""
    networks = [network for network in facts.networks if network.version == version]
    family = "ip" if version == 4 else "ip6"
    return tuple(
        Accepted(f"{option} {network}", f"{family} {field} {network}", f"route allow {way} {network}")
        for network in networks
        for option, field, way in (("-s", "saddr", "from"), ("-d", "daddr", "to"))
    )


def _of_tunnel(port: int) -> tuple[Accepted, ...]:
    return (Accepted(f"-p udp --dport {port}", f"udp dport {port}", f"allow {port}/udp"),)


def _repair(facts: Facts, verdict: Verdict, sent: Sent, accepted: tuple[Accepted, ...], *hooks: str) -> tuple[str, ...]:
    """Return the commands that let the packets pass: they delete a rule that is about them alone, else accept them before it.

    A policy, or a rule that closes a firewall, drops what strangers send too: deleting it would open the host.
    """
    if verdict.rule and not _drops_strangers(facts, verdict, sent, hooks):
        return (_deletion(verdict),)
    family, table, *rest = verdict.chain.split(" ")
    name = " ".join(rest)
    if table == "firewalld":
        return _by_firewalld(facts, accepted)
    if name.startswith("ufw"):
        return tuple(f"ufw {each.ufw}" for each in accepted)
    if not family.startswith(("iptables", "ip6tables")):
        return tuple(f"nft insert rule {verdict.chain} {each.nft} accept" for each in accepted)
    chains = {chain.name for chain in (facts.ruleset.chains if facts.ruleset else ()) if chain.table == f"{family} {table}"}
    chain = _DOCKER_USER if name == "FORWARD" and _DOCKER_USER in chains else name
    return tuple(f"{family} -t {table} -I {chain} {each.iptables} -j ACCEPT" for each in accepted)


_DOCKER_USER = "DOCKER-USER"
"""The chain that Docker leaves to the administrator: what is in it stays when Docker writes its rules again."""


def _by_firewalld(facts: Facts, accepted: tuple[Accepted, ...]) -> tuple[str, ...]:
    """Return the commands for a table that firewalld writes again with each change."""
    ports = [each.ufw.split()[-1] for each in accepted if each.ufw.endswith("/udp")]
    wanted = [f"--add-port={port}" for port in ports] or [f"--zone=trusted --add-source={net}" for net in facts.networks]
    return (*tuple(f"firewall-cmd --permanent {words}" for words in wanted), "firewall-cmd --reload")


def _drops_strangers(facts: Facts, verdict: Verdict, sent: Sent, hooks: tuple[str, ...]) -> bool:
    """Return whether a rule also drops a packet that has nothing to do with pods or the tunnel."""
    packet, device = sent.packet, facts.external.name if facts.external else ""
    theirs, ours = _STRANGERS[packet.version]
    links = {"incoming": device if packet.incoming else "", "outgoing": device if packet.outgoing else ""}
    stranger = replace(packet, source=theirs, destination=ours, port=_STRANGE_PORT, **links)
    found = _verdict(facts, stranger, *hooks)
    return found.words == verdict.words


_STRANGERS: dict[int, tuple[Address, Address]] = {
    4: (IPv4Address("203.0.113.7"), IPv4Address("198.51.100.7")),
    6: (IPv6Address("2001:db8::7"), IPv6Address("2001:db8:1::7")),
}
_STRANGE_PORT = 9


def _deletion(verdict: Verdict) -> str:
    chain, rule = verdict.chain, verdict.rule
    family, table, *_ = chain.split(" ")
    if family.startswith(("iptables", "ip6tables")):
        return f"{family} -t {table} -D {rule.removeprefix('-A ')}"
    return f"nft delete rule {chain} handle {verdict.handle}"


def tunnel(facts: Facts) -> Iterator[Finding]:
    """A rule of this host that drops the tunnel's packets."""
    for version in _versions(facts):
        for is_incoming, hooks in ((True, _RECEIVED), (False, _SENT)):
            packets = _tunnelled(facts, _peers(facts, version), version, is_incoming=is_incoming)
            for words, (verdict, those) in _dropped(facts, packets, *hooks).items():
                way = "from" if is_incoming else "to"
                repair = _repair(facts, verdict, those[0], _of_tunnel(facts.tunnel_port), *hooks)
                yield _drop_finding(f"VXLAN packets {way} other nodes are dropped", words, repair, those)


def drops_peer(facts: Facts, peer: Wanted) -> bool:
    """Return whether a rule of this host drops the packets of a probe to this peer: the tunnel's, or what is in them."""
    return any(verdict.kind == DROP for verdict in _of_probe(facts, peer))


def uncertain(facts: Facts, peer: Wanted) -> list[str]:
    """Return rules of this host that may drop them, where that depends on what is not modelled."""
    found = [verdict for verdict in _of_probe(facts, peer) if verdict.kind == UNCLEAR]
    return list(dict.fromkeys(verdict.words if verdict.rule else f"one of chain {verdict.chain}" for verdict in found))


def _of_probe(facts: Facts, peer: Wanted) -> Iterator[Verdict]:
    version = peer.subnet.version
    for is_incoming, hooks in ((True, _RECEIVED), (False, _SENT)):
        for sent in _tunnelled(facts, [peer], version, is_incoming=is_incoming):
            yield _verdict(facts, sent.packet, *hooks)
    own = next((subnet for subnet in facts.subnets if subnet.version == version), None)
    if own is not None and peer.neighbour is not None:
        ours, theirs, device = own.network_address, peer.subnet.network_address, peer.route.device
        protocol = "icmp" if version == 4 else "ipv6-icmp"
        yield _verdict(facts, Packet(theirs, ours, protocol, 0, device, state="established"), *_RECEIVED)
        yield _verdict(facts, Packet(ours, theirs, protocol, 0, "", device), *_SENT)


def translated(facts: Facts) -> Iterator[Finding]:
    """Packets from our pods to those of other nodes that leave with another source address."""
    if facts.ruleset is None:
        return
    for version in _versions(facts):
        found: dict[str, tuple[Verdict, list[Sent]]] = {}
        for sent in _between(facts, version):
            if sent.packet.incoming == facts.bridge_name:
                verdict = _verdict(facts, sent.packet, "postrouting")
                if verdict.kind == TRANSLATE:
                    found.setdefault(verdict.words, (verdict, []))[1].append(sent)
        for words, (verdict, those) in found.items():
            is_ours = verdict.chain.startswith(_OUR_TABLES)
            repair = _deletion(verdict)
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
            if _verdict(facts, sent.packet, "postrouting").kind == ACCEPT and _masquerades(facts, version):
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
