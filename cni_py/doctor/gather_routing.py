"""The kernel's own decisions about packets of pods: the route, policy rule and check of the source they meet. Changes nothing.

    passages(host, facts)      packets that come in: from our pods to those of a peer, from these to ours, and the tunnel's own
    taker(host, address)       what leads packets of this host to an address: the entry, its table and the policy rule

How it works. The kernel is asked as for a packet that has come in by a link (RTM_GETROUTE with RTA_IIF): it applies policy
rules and rp_filter as it would to the packet itself. Of one that it refuses, the way to its source is asked too: that is what
rp_filter compares.

Source: linux net/ipv4/route.c (inet_rtm_getroute), net/ipv4/fib_frontend.c (fib_validate_source).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.doctor.facts import Passage, Taker
from cni_py.kernel.route_lookup import Question, find_discarding, list_policy_rules, look_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_py.doctor.facts import Address, Facts, Wanted
    from cni_py.kernel.link import Link
    from cni_py.kernel.route_lookup import Choice, PolicyRule
    from cni_py.netlink.socket import Rtnl

_MOST = 64
"""Peers for which the kernel is asked, evenly chosen."""
_OF_EVERY_HOST = ("from all lookup local", "from all lookup main", "from all lookup default")


def passages(host: Rtnl, facts: Facts) -> tuple[Passage, ...]:
    """Ask about packets from and to the peers. Raises: OSError."""
    by_name = {link.name: link for link in facts.links}
    by_index = {link.ifindex: link.name for link in facts.links}
    rules = {version: list_policy_rules(host, version) for version in (4, 6)}
    asked = [ask for one in _sample(facts.wanted) for ask in _questions(facts, one, by_name)]
    return tuple(_answered(host, question, passage, rules, by_index) for question, passage in asked)


def _sample(wanted: Sequence[Wanted]) -> list[Wanted]:
    count = min(len(wanted), _MOST)
    return [wanted[number * len(wanted) // count] for number in range(count)]


def _questions(facts: Facts, one: Wanted, by_name: Mapping[str, Link]) -> Iterator[tuple[Question, Passage]]:
    """Yield what is asked about a peer: as far as the links that its packets pass exist and are up."""
    its, version = one.lease.attributes, one.subnet.version
    about = frozenset(map(str, (*one.lease.subnets.each(), *its.addresses)))
    bridge, device = facts.bridge, by_name.get(one.route.device)
    own = next((subnet for subnet in facts.subnets if subnet.version == version), None)
    has_gateway = bridge is not None and any(at.address in (own or ()) for at in facts.addresses_of(bridge))
    if bridge is not None and device is not None and own is not None and has_gateway and bridge.is_up and device.is_up:
        ours, theirs = own.network_address + 2, one.subnet.network_address + 2
        out = f"from our pods to those of peer {one.subnet}"
        yield Question(theirs, ours, bridge.ifindex), Passage(out, one.subnet, bridge.name, device.name, about=about)
        back = f"from pods of peer {one.subnet} to ours"
        yield Question(ours, theirs, device.ifindex), Passage(back, own, device.name, bridge.name, about=about)
    node, external = (its.public_ip if version == 4 else its.public_ipv6), facts.external
    link = by_name.get(external.name) if external is not None else None
    source = external.source(version) if external is not None else None
    if node is not None and link is not None and link.is_up and source is not None and facts.has_address(source):
        words = f"from node {node} to this node"
        yield Question(source, node, link.ifindex), Passage(words, one.subnet, link.name, "", about=about)


def _answered(
    host: Rtnl,
    question: Question,
    passage: Passage,
    rules: Mapping[int, Sequence[PolicyRule]],
    names: Mapping[int, str],
) -> Passage:
    choice = look_up(host, question)
    outgoing = "" if choice.kind in ("local", "") else names.get(choice.ifindex, "")
    found = replace(passage, outgoing=outgoing, errno=choice.errno)
    if not choice.errno and outgoing == passage.wanted:
        return found
    taken_by = _taker(host, question, choice, rules[question.destination.version], passage.incoming, names)
    back = look_up(host, Question(question.source)) if choice.errno and question.source is not None else None
    return replace(found, taken_by=taken_by, source_by=names.get(back.ifindex, "") if back is not None else "")


def taker(host: Rtnl, address: Address, names: Mapping[int, str]) -> Taker:
    """Return what leads packets of this host to an address. Raises: OSError."""
    question = Question(address)
    return _taker(host, question, look_up(host, question), list_policy_rules(host, address.version), "", names)


def _taker(
    host: Rtnl, question: Question, choice: Choice, rules: Sequence[PolicyRule], incoming: str, names: Mapping[int, str]
) -> Taker:
    if not choice.errno:
        selecting = (rule for rule in rules if rule.selects(question, incoming))
        rule = next((rule for rule in selecting if rule.action == "lookup" and rule.table == choice.table), None)
        device = names.get(choice.ifindex, "")
        is_kernels = " proto kernel" in choice.words
        return Taker(choice.words, choice.matched, device, choice.table_name, is_kernels, _words(rule))
    discarding = find_discarding(host, question, incoming)
    if discarding is None:
        return Taker()
    return Taker(discarding.words, discarding.network, "", discarding.table_name, rule=_words(discarding.rule))


def _words(rule: PolicyRule | None) -> str:
    """Return the words for ``ip rule``; "" for a rule that every host has."""
    return f"priority {rule.priority} {rule.text}" if rule is not None and rule.text not in _OF_EVERY_HOST else ""
