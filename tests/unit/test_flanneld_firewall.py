"""flanneld's rules as values: they decide as Go flannel's do about every packet, and which rule precedes which in FORWARD."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import product

import pytest

from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter.forward_rules import Pair, Rule

V4 = Pair(ip_network("10.244.0.0/16"), ip_network("10.244.91.0/24"))
V6 = Pair(ip_network("fd00:1::/48"), ip_network("fd00:1:0:5b::/64"))
CHAIN = rules.MASQUERADE_CHAIN

Address = IPv4Address | IPv6Address


def verdict(wanted: tuple[Rule, ...], source: Address, destination: Address, mark: int) -> str:
    """Return what the kernel does with such a packet: the first rule that fits decides."""
    for rule in wanted:
        fits = (
            (not rule.is_marked or mark & 0x4000 == 0x4000)
            and (rule.source is None or (source in rule.source) != rule.not_source)
            and (rule.destination is None or (destination in rule.destination) != rule.not_destination)
        )
        if fits:
            return rule.verdict
    return "return"


def go_verdict(pair: Pair, source: Address, destination: Address, mark: int) -> str:
    """Go flannel's six rules, pkg/trafficmngr/iptables/iptables.go, masqRules."""
    net, pod = pair.network, pair.subnet
    multicast = ip_network("224.0.0.0/4" if pair.version == 4 else "ff00::/8")
    six = (
        (mark & 0x4000 == 0x4000, "return"),
        (source in pod and destination in net, "return"),
        (source in net and destination in pod, "return"),
        (source not in net and destination in pod, "return"),
        (source in net and destination not in multicast, "masquerade"),
        (source not in net and destination in net, "masquerade"),
    )
    return next((verdict for fits, verdict in six if fits), "return")


ADDRESSES = {
    4: ["10.244.91.2", "10.244.91.0", "10.244.85.2", "10.244.0.0", "192.168.123.12", "8.8.8.8", "224.0.0.251", "239.1.1.1"],
    6: ["fd00:1:0:5b::2", "fd00:1:0:5b::", "fd00:1:0:55::2", "fd00:1::", "2001:db8::12", "fe80::1", "ff02::fb", "ff15::1"],
}


@pytest.mark.parametrize("pair", [V4, V6], ids=["v4", "v6"])
def test_every_packet_is_treated_as_by_gos_six_rules(pair: Pair) -> None:
    wanted = rules.masquerade_rules(pair)
    seen = set()
    for source, destination, mark in product(ADDRESSES[pair.version], ADDRESSES[pair.version], (0, 0x4000, 0x8000, 0xC001)):
        packet = ip_address(source), ip_address(destination), mark
        assert verdict(wanted, *packet) == go_verdict(pair, *packet), packet
        seen.add(go_verdict(pair, *packet))
    assert seen == {"return", "masquerade"}


def test_rules_of_both_families_are_sent_in_one_transaction() -> None:
    commands = rules.nft_commands([V4, V6], random_fully=True)
    assert commands[:2] == ["add table inet cni_py_flanneld", "delete table inet cni_py_flanneld"]
    assert commands[3].endswith("{ type nat hook postrouting priority srcnat + 1; policy accept; }")
    assert [command.removeprefix("add rule inet cni_py_flanneld postrouting ").partition(" comment ")[0] for command in commands[4:]] == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip daddr 10.244.91.0/24 return",
        "ip saddr 10.244.91.0/24 ip daddr 10.244.0.0/16 return",
        "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random",
        "ip6 daddr fd00:1:0:5b::/64 return",
        "ip6 saddr fd00:1:0:5b::/64 ip6 daddr fd00:1::/48 return",
        "ip6 saddr fd00:1::/48 ip6 daddr != ff00::/8 masquerade fully-random",
        "ip6 saddr != fd00:1::/48 ip6 daddr fd00:1::/48 masquerade fully-random",
    ]  # fmt: skip


def test_every_rule_has_a_comment_of_its_own_that_nft_takes() -> None:
    longest = Pair(
        ip_network("2001:db8:aaaa:bbbb:cccc:dddd:eee0:0/108"), ip_network("2001:db8:aaaa:bbbb:cccc:dddd:eeef:ff00/120")
    )
    comments = [rules.nft_comment(rule, random_fully=True) for rule in rules.nft_rules([V4, longest])]
    assert len(set(comments)) == len(comments) == 9
    assert all(len(comment) <= 128 and '"' not in comment for comment in comments)


def test_ports_are_kept_where_random_ones_are_disabled() -> None:
    assert not any("random" in command for command in rules.nft_commands([V4], random_fully=False))
    lines = rules.iptables_lines(CHAIN, rules.masquerade_rules(V4), random_fully=False)
    assert not any("random" in line for line in lines)


def test_iptables_lines() -> None:
    lines = rules.iptables_lines(CHAIN, rules.masquerade_rules(V6), random_fully=True)
    assert (
        lines[0]
        == f'-A {CHAIN} -m mark --mark 0x4000/0x4000 -m comment --comment "marked: kube-proxy masquerades it" -j RETURN'
    )
    assert lines[3].startswith(f"-A {CHAIN} -s fd00:1::/48 ! -d ff00::/8 ")
    assert lines[3].endswith("-j MASQUERADE --random-fully")
    assert len(CHAIN) <= 28
    assert len(rules.FORWARD_CHAIN) <= 28


# --- the place in FORWARD ---------------------------------------------------------------------------------------------

FWD = rules.FORWARD_CHAIN
JUMP = f'-A FORWARD -m comment --comment "cni-py flanneld" -j {FWD}'
WANTED = rules.iptables_lines(FWD, rules.accept_rules(V4))
DOCKER = ["-A FORWARD -j DOCKER-USER", "-A FORWARD -o docker0 -j DOCKER"]
KUBE = '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'
CALICO = '-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD'


def in_forward(around: list[str], inside: list[str] = WANTED) -> list[str]:
    return rules.commands(FWD, "FORWARD", WANTED, inside, around, first=True)


@pytest.mark.parametrize(
    "around", [[JUMP], [JUMP, *DOCKER], [KUBE, JUMP, *DOCKER], [CALICO, KUBE, JUMP], [JUMP, *DOCKER, KUBE]], ids=len
)
def test_nothing_is_done_where_ours_comes_first(around: list[str]) -> None:
    assert in_forward(around) == []


def test_order_of_words_does_not_matter() -> None:
    assert in_forward([JUMP], [line.replace(" -j ACCEPT", "").replace(FWD, f"{FWD} -j ACCEPT") for line in WANTED]) == []


@pytest.mark.parametrize(
    ("around", "place", "deleted"),
    [
        ([], 1, 0),
        (DOCKER, 1, 0),
        ([*DOCKER, JUMP], 1, 1),
        ([JUMP, JUMP], 1, 2),
        ([CALICO, KUBE, *DOCKER], 3, 0),
        ([JUMP, CALICO], 2, 1),
        ([DOCKER[0], CALICO, JUMP], 1, 1),
    ],
)
def test_jump_goes_before_all_but_network_policies(around: list[str], place: int, deleted: int) -> None:
    commands = in_forward(around)
    assert commands[0] == f":{FWD} - [0:0]"
    assert commands[1:3] == WANTED
    assert commands[3:-1] == [JUMP.replace("-A", "-D", 1)] * deleted
    assert commands[-1].startswith(f"-I FORWARD {place} ")


@pytest.mark.parametrize("inside", [[], WANTED[:1], WANTED[::-1], [*WANTED, WANTED[0]]])
def test_chain_is_filled_again(inside: list[str]) -> None:
    assert in_forward([JUMP], inside)[1:3] == WANTED


POLICIES = ["-P INPUT DROP", "-P FORWARD ACCEPT", "-P OUTPUT ACCEPT"]


@pytest.mark.parametrize(
    "listing",
    [
        POLICIES,
        [*POLICIES, "-A INPUT -j DROP"],
        [*POLICIES, "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"],
        [*POLICIES, '-A FORWARD -m comment --comment "do not -j DROP" -j ACCEPT'],
        [*POLICIES, CALICO, "-A cali-FORWARD -j cali-from-wl-dispatch", "-A cali-from-wl-dispatch -j DROP"],
        [*POLICIES, KUBE, "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"],
        [*POLICIES, "-A FORWARD -j A", "-A A -j B", "-A B -j A"],
        [*POLICIES, "-A FORWARD -i eth7"],
    ],
)
def test_who_does_not_drop(listing: list[str]) -> None:
    assert rules.reason_dropped(listing) == ""


@pytest.mark.parametrize(
    "rule, listing",
    [
        ("-A FORWARD -j REJECT --reject-with icmp-host-prohibited", []),
        ("-A STAGE-2 -o docker0 -j DROP", ["-A FORWARD -j STAGE-1", "-A STAGE-1 -i docker0 ! -o docker0 -j STAGE-2"]),
        ("-A X -j DROP", ["-A FORWARD -g X"]),
        ("-A FORWARD -j DROP", [KUBE, CALICO, JUMP]),
    ],
)
def test_rule_that_drops_is_named(rule: str, listing: list[str]) -> None:
    assert rules.reason_dropped([*POLICIES, *listing, rule]) == f"it has the rule {rule}"


def test_policy_that_drops_is_named() -> None:
    assert rules.reason_dropped(["-P FORWARD DROP", JUMP, *WANTED]) == "its policy is DROP"
