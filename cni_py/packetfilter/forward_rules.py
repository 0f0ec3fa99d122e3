"""flanneld's rules as values, as nft's text and as iptables' lines: pure, nothing here touches the kernel.

Which packets are masqueraded. With N the network, P this node's subnet of it, M multicast, Go flannel
has six rules, of which the first match decides::

    1  marked 0x4000/0x4000   return          kube-proxy's mark: it masquerades those itself
    2  from P to N            return
    3  from N to P            return
    4  from elsewhere to P    return
    5  from N, not to M       masquerade
    6  from elsewhere to N    masquerade

3 and 4 together mean "to P", so ours are five, with the same decision about every packet::

    1  marked                 return
    2  to P                   return
    3  from P to N            return
    4  from N, not to M       masquerade
    5  from elsewhere to N    masquerade      mostly packets of the host itself to pods of other nodes

(Go's nftables rules differ from its iptables rules in two of them, apparently by mistake; ours follow the latter.)

Accepted packets: those from N and those to N. A chain in our own table would not help: an accept
ends only the chain that it is in, so it has to come before the rule that would drop. That rule
is in iptables' FORWARD (Docker sets its policy to DROP), where the accepting rules are inserted, by iptables, first.
Only chains that filter pods on purpose stay before ours (``DECIDE``): network policies, kube-proxy.

Source: flannel-io/flannel pkg/trafficmngr/iptables/iptables.go.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from cni_py.packetfilter.masquerade_ruleset import MULTICAST

Network = IPv4Network | IPv6Network

TABLE = "inet cni_py_flanneld"
CHAIN = f"{TABLE} postrouting"
MASQUERADE_CHAIN, FORWARD_CHAIN = "CNI-PY-FLANNEL-MASQ", "CNI-PY-FLANNEL-FWD"
GO_TABLES = ("ip flannel-ipv4", "ip6 flannel-ipv6")
GO_MASQUERADE_CHAIN, GO_FORWARD_CHAIN = "FLANNEL-POSTRTG", "FLANNEL-FWD"
MARK = "0x4000"
DECIDE = ("cali-", "KUBE-", "CILIUM_", "WEAVE-NPC", "ANTREA-")
"""Name prefixes of chains that stay before ours: they drop packets of pods on purpose."""
PRIORITY = 101
"""One after srcnat: as with a rule at the end of iptables' POSTROUTING, translations by other software come first."""

_COMMENT = "-m comment --comment"
_FIELDS = {4: "ip", 6: "ip6"}
_DROP = ("DROP", "REJECT")


@dataclass(frozen=True, slots=True)
class Pair:
    """The network of one family, and this node's subnet of it."""

    network: Network
    subnet: Network

    @property
    def version(self) -> int:
        return self.network.version


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: ``verdict`` for packets that match all given fields. ``why`` becomes its comment, unique to the rule."""

    verdict: str
    """return, masquerade or accept"""
    why: str
    source: Network | None = None
    destination: Network | None = None
    is_marked: bool = False
    not_source: bool = False
    not_destination: bool = False


def masquerade_rules(pair: Pair) -> tuple[Rule, ...]:
    """The five rules of one family."""
    network, subnet, multicast = pair.network, pair.subnet, ip_network(MULTICAST[pair.version])
    return (
        Rule("return", "marked: kube-proxy masquerades it", is_marked=True),
        Rule("return", f"to a pod of this node, {subnet}", destination=subnet),
        Rule("return", f"from a pod of this node to {network}", source=subnet, destination=network),
        Rule("masquerade", f"from {network} to elsewhere", source=network, destination=multicast, not_destination=True),
        Rule("masquerade", f"from elsewhere to {network}", source=network, not_source=True, destination=network),
    )


def accept_rules(pair: Pair) -> tuple[Rule, ...]:
    return (
        Rule("accept", f"from {pair.network}", source=pair.network),
        Rule("accept", f"to {pair.network}", destination=pair.network),
    )


# ---- nftables ---------------------------------------------------------------------------------


def nft_rules(pairs: Iterable[Pair]) -> list[Rule]:
    """The rules of our chain in order; both families share the rule of the mark."""
    return list(dict.fromkeys(rule for pair in pairs for rule in masquerade_rules(pair)))


def nft_comment(rule: Rule, *, random_fully: bool) -> str:
    return f"{rule.why}, random ports" if rule.verdict == "masquerade" and random_fully else rule.why


def nft_line(rule: Rule, *, random_fully: bool) -> str:
    """The rule in nft's syntax."""
    words = [f"meta mark & {MARK} == {MARK}"] if rule.is_marked else []
    for network, negated, side in (
        (rule.source, rule.not_source, "saddr"),
        (rule.destination, rule.not_destination, "daddr"),
    ):
        if network is not None:
            words.append(f"{_FIELDS[network.version]} {side} {'!= ' if negated else ''}{network}")
    verdict = "masquerade fully-random" if rule.verdict == "masquerade" and random_fully else rule.verdict
    return " ".join([*words, verdict, f'comment "{nft_comment(rule, random_fully=random_fully)}"'])


def nft_commands(pairs: Iterable[Pair], *, random_fully: bool) -> list[str]:
    """Commands that replace the content of our table, in one transaction: no packet finds it empty."""
    return [
        f"add table {TABLE}",
        f"delete table {TABLE}",
        f'add table {TABLE} {{ comment "cni-py flanneld: masquerade of the flannel network"; }}',
        f"add chain {CHAIN} {{ type nat hook postrouting priority srcnat + 1; policy accept; }}",
        *(f"add rule {CHAIN} {nft_line(rule, random_fully=random_fully)}" for rule in nft_rules(pairs)),
    ]


# ---- iptables ---------------------------------------------------------------------------------


def iptables_lines(chain: str, rules: Iterable[Rule], *, random_fully: bool = False) -> list[str]:
    """The rules as ``-A`` lines; iptables prints them with another order of words, see :func:`_words`."""
    return [f"-A {chain} {_iptables_line(rule, random_fully)}" for rule in rules]


def _iptables_line(rule: Rule, random_fully: bool) -> str:
    words = [f"-m mark --mark {MARK}/{MARK}"] if rule.is_marked else []
    for network, negated, side in ((rule.source, rule.not_source, "-s"), (rule.destination, rule.not_destination, "-d")):
        if network is not None:
            words.append(f"{'! ' if negated else ''}{side} {network}")
    target = "MASQUERADE --random-fully" if rule.verdict == "masquerade" and random_fully else rule.verdict.upper()
    return " ".join([*words, f'{_COMMENT} "{rule.why}"', f"-j {target}"])


def commands(
    chain: str, parent: str, wanted: Sequence[str], inside: Sequence[str], around: Sequence[str], *, first: bool
) -> list[str]:
    """Commands that leave exactly ``wanted`` in the chain and one jump to it in its parent; none if that is so already.

    Args:
        wanted: ``-A`` lines.
        inside, around: the lines of the chain and of its parent as ``iptables -S`` prints them.
        first: the jump must come before all others except those of ``DECIDE``; else its position does not matter.
    """
    jumps = [line for line in around if target(line) == chain]
    place = first_place(line for line in around if line not in jumps)
    is_right = [_words(line) for line in inside] == [_words(line) for line in wanted]
    if is_right and len(jumps) == 1 and (not first or around[place] == jumps[0]):
        return []
    jump = f'{_COMMENT} "cni-py flanneld" -j {chain}'
    return [
        f":{chain} - [0:0]",
        *wanted,
        *("-D" + line.removeprefix("-A") for line in jumps),
        f"-I {parent} {place + 1} {jump}" if first else f"-A {parent} {jump}",
    ]


def first_place(lines: Iterable[str]) -> int:
    """The number of jumps to chains of ``DECIDE`` at the beginning of the chain."""
    count = 0
    for line in lines:
        if not target(line).startswith(DECIDE):
            break
        count += 1
    return count


def _words(line: str) -> list[str]:
    return sorted(shlex.split(line))


def target(line: str) -> str:
    """The target of a rule, as ``iptables -S`` prints it; empty if it has none."""
    words = shlex.split(line)
    return next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")


# ---- dropping ---------------------------------------------------------------------------------


def reason_dropped(listing: Iterable[str]) -> str:
    """Reason why FORWARD may drop packets of pods, from the ``iptables -S`` of the table filter; empty if it does not.

    Our own rules and those of ``DECIDE`` are not considered.
    """
    chains: dict[str, list[str]] = {}
    for line in listing:
        if line.startswith("-P FORWARD ") and line.split()[2] == "DROP":
            return "its policy is DROP"
        if line.startswith("-A "):
            chains.setdefault(line.split(" ", 2)[1], []).append(line)
    dropping = next(_dropping(chains, "FORWARD", set()), "")
    return f"it has the rule {dropping}" if dropping else ""


def _dropping(chains: Mapping[str, Sequence[str]], chain: str, seen: set[str]) -> Iterator[str]:
    """The rules with DROP or REJECT that a packet in this chain can reach."""
    seen.add(chain)
    for line in chains.get(chain, ()):
        goes_to = target(line)
        if goes_to in _DROP:
            yield line
        elif goes_to in chains and goes_to not in seen and not goes_to.startswith((*DECIDE, FORWARD_CHAIN)):
            yield from _dropping(chains, goes_to, seen)
