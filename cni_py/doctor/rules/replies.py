"""Replies to probes: peers that do not answer, and at which layer a packet ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.doctor.facts import Way
from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import devices, filters, gathered, shown
from cni_py.doctor.rules.peers import is_to_node_wrong, names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_py.doctor.facts import Address, Facts, Reached, Wanted


def reached(facts: Facts) -> Iterator[Finding]:
    """Peers that do not answer, and at which layer a packet ends."""
    peers = facts.probed.peers
    silent = [each for each in peers if not each.tunnel]
    is_all = len(silent) == len(peers) and len(peers) > 0
    found = []
    for each in silent:
        layer, lines = _layer(facts, each)
        is_their_node = layer == _NODE_SILENT and not each.refused
        found.append(
            Finding(
                f"peer {each.subnet} ({_address(each)}) does not answer: {layer}",
                tuple(lines),
                (_advice(facts, each, layer),),
                about=names_of(each.lease),
                severity=WARNING if is_their_node and not is_all else ERROR,
            )
        )
    if not _are_alike(found):
        yield from found
    else:
        yield from gathered(found, "peer", f"no answer: {_layer(facts, silent[0])[0]}" if silent else "")


_NODE_SILENT = "its node does not answer beside the tunnel either"
_NODE_ENTRY = "at the ARP entry of its node"


def _are_alike(found: Iterable[Finding]) -> bool:
    return len({(one.severity, one.what.rpartition(": ")[2]) for one in found}) <= 1


def _address(each: Reached) -> Address | None:
    its = each.lease.attributes
    return its.public_ip if each.subnet.version == 4 else its.public_ipv6


def _layer(facts: Facts, each: Reached) -> tuple[str, list[str]]:
    """Return where a packet ends, and what shows it."""
    lines = [f"sent to {each.target}, through the tunnel: {each.refused or 'no answer'}"]
    if each.node is not None:
        lines.append(f"sent to {_address(each)}, beside the tunnel: {'answered' if each.node else 'no answer'}")
    wanted = next((one for one in facts.wanted if one.subnet == each.subnet), None)
    if wanted is None:
        return _NODE_SILENT if each.node is False else "at the tunnel, or behind it", lines
    here = _layer_here(facts, each, wanted)
    if here:
        return here, lines
    if each.node is False:
        entry = facts.node_neighbours.get(_address(each) or each.target, "")
        return (_NODE_ENTRY, [*lines, f"no reply made it: {entry}"]) if entry else (_NODE_SILENT, lines)
    lines += [f"perhaps by a rule of this host: {words}" for words in filters.uncertain(facts, wanted)]
    if wanted.forwarding is not None:
        return f"UDP port {facts.tunnel_port} is blocked on the way, or its device is wrong", lines
    return "its node does not forward to its pods", lines


def _layer_here(facts: Facts, each: Reached, wanted: Wanted) -> str:  # noqa: PLR0911 — a line for each layer
    """Return at which layer of this host a packet ends, which another rule reports; "" if at none."""
    way = facts.ways.get(each.subnet, Way())
    if way.is_discarded or (way.device, way.gateway) != (wanted.route.device, wanted.route.gateway):
        return "at the route"
    if wanted.neighbour is not None and wanted.neighbour not in facts.neighbours:
        return "at the ARP entry"
    if wanted.forwarding is not None and (
        wanted.forwarding not in facts.forwarding or facts.odd_forwarding.get(wanted.forwarding)
    ):
        return "at the FDB entry"
    if is_to_node_wrong(facts, wanted):
        return "at the route to its node"
    device = facts.link(wanted.route.device)
    if device is not None and not device.is_up:
        return f"at {device.name}, which is down"
    if device is not None and devices.is_cut_off(facts, device):
        return f"at {device.name}, which is not as its lease says"
    if any(one.fails_strict_check and one.subnet == each.subnet for one in facts.passages):
        return "at rp_filter"
    if filters.drops_peer(facts, wanted):
        return "at the packet filter of this host"
    return ""


def _advice(facts: Facts, each: Reached, layer: str) -> str:
    node = _address(each)
    if layer.startswith("UDP"):
        device = facts.external.name if facts.external else "eth0"
        return (
            f"open UDP port {facts.tunnel_port} between the nodes; on the peer: tcpdump -ni any udp port {facts.tunnel_port}; "
            f"here: tcpdump -ni {device} udp port {facts.tunnel_port}"
        )
    if layer.startswith("its node does not answer"):
        return f"check that node and the network between: ping {node}; ip neigh show {node}"
    if layer == _NODE_ENTRY:
        return f"ip neigh del {node} dev {facts.external.name if facts.external else 'eth0'}"
    if layer.startswith("its node does not forward"):
        return f"run cni-py doctor on {node}"
    if layer.startswith("at the tunnel"):
        return f"see both logs of flanneld: journalctl -u flanneld; run cni-py doctor on {node}"
    return "repair that first"


def full_sized(facts: Facts) -> Iterator[Finding]:
    """Peers that small packets reach, and large ones do not."""
    found = [
        Finding(
            f"peer {each.subnet} ({_address(each)}): large packets are lost",
            (f"a small packet was answered, one as large as a pod may send ({_sent(facts)} bytes) was not",),
            (_about_size(facts, each),),
            about=names_of(each.lease),
        )
        for each in facts.probed.peers
        if each.tunnel and each.full is False
    ]
    yield from gathered(found, "peer", "large packets are lost")


def _about_size(facts: Facts, each: Reached) -> str:
    """Return what to do: where this host itself has a wrong MTU, another rule has the command."""
    sent = _sent(facts)
    small = next((link.name for name in facts.devices if (link := facts.link(name)) is not None and link.mtu < sent), "")
    if facts.pod_mtu and sent > facts.pod_mtu:
        return f"repair {facts.subnet_file} first: {facts.pod_mtu} bytes fit the tunnel"
    if small:
        return f"repair the MTU of {small} first"
    return f'find the smallest MTU on the way: tracepath -n {_address(each)}; set "Backend.MTU" to it'


def _sent(facts: Facts) -> int:
    return facts.env.mtu if facts.env else facts.pod_mtu


def checksums(facts: Facts) -> Iterator[Finding]:
    """Datagrams with a checksum are lost, those without arrive: a device on the way computes wrong ones."""
    found = [each for each in facts.probed.peers if each.unchecked and each.checked is False]
    if found:
        subnet = found[0].subnet
        device = next((one.route.device for one in facts.wanted if one.subnet == subnet), "flannel.1")
        command = ("ethtool", "-K", device, "tx-checksum-ip-generic", "off")
        yield Finding(
            f"checksums of packets through {device} are wrong",
            shown(f"peer {each.subnet}: a datagram without a checksum arrived, one with it did not" for each in found),
            (" ".join(command),),
            (command,),
            frozenset().union(*(names_of(each.lease) for each in found)),
        )


def duplicate_address(facts: Facts) -> Iterator[Finding]:
    """Another machine on the link replies for our own address."""
    for address, mac in facts.probed.duplicates:
        yield Finding(
            f"another machine has the address of this node, {address}",
            (f"{mac} replies to an ARP request for it",),
            (f"find that machine by its MAC address, and give it another address: arping -D -I {_link(facts)} {address}",),
            about=frozenset((str(address),)),
        )


def _link(facts: Facts) -> str:
    return facts.external.name if facts.external else "eth0"
