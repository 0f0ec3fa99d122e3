"""Packets that are described, in rules of iptables and nftables: what the kernel would do, or unknown."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import product
from typing import Any

import pytest

from cni_py.packetfilter.evaluation.described import TRANSLATE, UNCLEAR, Packet, bridged, verdict
from cni_py.packetfilter.evaluation.ruleset import Ruleset
from cni_py.packetfilter.evaluation.saved import destinations
from cni_py.packetfilter.evaluation.statements import ACCEPT, DROP

POD, OTHER = ip_address("10.244.1.2"), ip_address("10.244.2.2")
PACKET = Packet(POD, OTHER, "tcp", 80, "cni0", "flannel.1")
SIX = Packet(ip_address("fd00::2"), ip_address("fd00:1::2"), "tcp", 80, "cni0", "flannel-v6.1")


def iptables(*lines: str, policy: str = "ACCEPT", name: str = "iptables-nft") -> Ruleset:
    chains = "".join(f":{chain} - [0:0]\n" for chain in ("A", "B"))
    return Ruleset.of({name: f"*filter\n:FORWARD {policy} [0:0]\n{chains}" + "".join(f"{line}\n" for line in lines)}, [])


IPTABLES = [
    ([], ACCEPT),
    (["-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -j REJECT --reject-with icmp-port-unreachable"], DROP),
    (["-A FORWARD -s 10.244.0.0/16 -j ACCEPT", "-A FORWARD -j DROP"], ACCEPT),
    (["-A FORWARD -s 10.245.0.0/16 -j ACCEPT", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD ! -s 10.244.0.0/16 -j DROP"], ACCEPT),
    (["-A FORWARD ! -s 10.245.0.0/16 -j DROP"], DROP),
    (["-A FORWARD -i cni0 ! -o cni0 -j DROP"], DROP),
    (["-A FORWARD -i cni+ -j DROP"], DROP),
    (["-A FORWARD -i eth0 -j DROP"], ACCEPT),
    (["-A FORWARD -p tcp -m tcp --dport 80 -j DROP"], DROP),
    (["-A FORWARD -p tcp -m tcp --dport 81:90 -j DROP"], ACCEPT),
    (["-A FORWARD -p tcp -m multiport --dports 22,70:90 -j DROP"], DROP),
    (["-A FORWARD -p udp -m udp --dport 80 -j DROP"], ACCEPT),
    (["-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -m conntrack --ctstate INVALID -j DROP"], ACCEPT),
    (["-A FORWARD -m state --state NEW -j DROP"], DROP),
    (["-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT", "-A FORWARD -j DROP"], DROP),
    (['-A FORWARD -m comment --comment "a -j DROP b" -j ACCEPT', "-A FORWARD -j DROP"], ACCEPT),
    (["-A FORWARD -j A", "-A A -j RETURN", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -j A", "-A A -d 10.244.2.0/24 -j ACCEPT", "-A FORWARD -j DROP"], ACCEPT),
    (["-A FORWARD -g A", "-A FORWARD -j DROP"], ACCEPT),
    (["-A FORWARD -j A", "-A A -j B", "-A B -j DROP"], DROP),
    (["-A FORWARD -j A", "-A A -j A", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -j LOG --log-prefix x", "-A FORWARD -j MARK --set-xmark 0x1/0x1", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -m set --match-set pods src -j ACCEPT", "-A FORWARD -j DROP"], UNCLEAR),
    (["-A FORWARD -m set --match-set pods src -j DROP"], UNCLEAR),
    (["-A FORWARD -m set --match-set pods src -d 10.9.0.0/16 -j DROP"], ACCEPT),
    (["-A FORWARD -m limit --limit 1/s -j ACCEPT", "-A FORWARD -j DROP"], UNCLEAR),
    (["-A FORWARD -m set --match-set pods src -j A", "-A A -j ACCEPT", "-A FORWARD -j DROP"], UNCLEAR),
    (["-A FORWARD -m addrtype --dst-type LOCAL -j RETURN", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -j TARPIT", "-A FORWARD -j DROP"], UNCLEAR),  # no chain of the table: an extension that is not known
]  # fmt: skip


DOUBTFUL = "-m set --match-set pods src"
IN_DOUBT = [
    ([f"-A A {DOUBTFUL} -j RETURN", "-A A -j DROP", "-A FORWARD -j A", "-A FORWARD -j ACCEPT"], UNCLEAR),
    ([f"-A A {DOUBTFUL} -j RETURN", "-A A -j DROP", "-A FORWARD -j A"], UNCLEAR),
    (
        [
            f"-A A {DOUBTFUL} -j RETURN",
            "-A A -j DROP",
            "-A FORWARD -j A",
            "-A FORWARD -i eth0 -j ACCEPT",
            "-A FORWARD -j REJECT",
        ],
        DROP,
    ),
    ([f"-A A {DOUBTFUL} -j RETURN", "-A A -j DROP", "-A FORWARD -g A", "-A FORWARD -j DROP"], UNCLEAR),
    ([f"-A A {DOUBTFUL} -g B", "-A A -j DROP", "-A FORWARD -j A", "-A FORWARD -j ACCEPT"], UNCLEAR),
    ([f"-A A {DOUBTFUL} -g B", "-A A -j DROP", "-A B -j DROP", "-A FORWARD -j A", "-A FORWARD -j ACCEPT"], DROP),
    ([f"-A A {DOUBTFUL} -j B", "-A A -j DROP", "-A B -j RETURN", "-A FORWARD -j A", "-A FORWARD -j ACCEPT"], DROP),
    ([f"-A FORWARD {DOUBTFUL} -j RETURN", "-A FORWARD -j DROP"], UNCLEAR),
    ([f"-A FORWARD {DOUBTFUL} -j A", "-A A -i eth0 -j DROP"], ACCEPT),
    ([f"-A FORWARD {DOUBTFUL} -j A", "-A A -j B", f"-A B {DOUBTFUL} -j DROP"], UNCLEAR),
    ([f"-A FORWARD {DOUBTFUL} -j MARK --set-xmark 0x1/0x1", "-A FORWARD -m mark --mark 0x1/0x1 -j DROP"], UNCLEAR),
    ([f"-A FORWARD {DOUBTFUL} -j MARK --set-xmark 0x1/0x1", "-A FORWARD -m mark --mark 0x1/0x1", "-A FORWARD -j DROP"], DROP),
    ([f"-A A {DOUBTFUL} -j RETURN", "-A A -j MARK --set-xmark 0x1/0x1", "-A FORWARD -j A", "-A FORWARD -m mark --mark 0x1/0x1 -j DROP"], UNCLEAR),
    (["-A FORWARD -j MARK --set-xmark 0x1/0x1", "-A FORWARD -m mark --mark 0x1/0x1 -j DROP"], DROP),
    (['-A FORWARD -m comment --comment "of two', 'lines" -j ACCEPT', "-A FORWARD -j DROP"], UNCLEAR),
    (["-A FORWARD -j NFQUEUE --queue-num 1"], UNCLEAR),
    (["-A FORWARD -j TARPIT"], UNCLEAR),
    ([f"-A FORWARD {DOUBTFUL} -j LOG", "-A FORWARD -j DROP"], DROP),
    (["-A FORWARD -m socket -j ACCEPT", "-A FORWARD -j DROP"], UNCLEAR),
    (["-A FORWARD -m socket --transparent -i eth0 -j ACCEPT", "-A FORWARD -j DROP"], DROP),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), IN_DOUBT, ids=[str(number) for number in range(len(IN_DOUBT))])
def test_rule_in_doubt_decides_nothing(lines: list[str], expected: str) -> None:
    """A drop is one whatever the rule does; where it depends on the rule, nothing is known."""
    assert verdict(iptables(*lines), PACKET, "forward").kind == expected


FIRST = ["-j A", "-g A", f"{DOUBTFUL} -j A"]
INSIDE = [
    f"{DOUBTFUL} -j RETURN",
    f"{DOUBTFUL} -g B",
    f"{DOUBTFUL} -j B",
    f"{DOUBTFUL} -j ACCEPT",
    "-j MARK --set-xmark 0x1/0x1",
    "-j DROP",
    "-j B",
]
OF_B = ["-j DROP", f"{DOUBTFUL} -j RETURN\n-A B -j DROP", "-m mark --mark 0x1/0x1 -j DROP"]
LAST = ["-j ACCEPT", "-j DROP", "-m mark --mark 0x1/0x1 -j DROP", f"{DOUBTFUL} -j LOG"]


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_what_is_certain_is_so_whichever_rules_in_doubt_match(policy: str) -> None:
    """Compare with all worlds, in each of which each of those rules matches every packet, or none."""
    certain = 0
    for first, one, other, of_b, last in product(FIRST, INSIDE, INSIDE, OF_B, LAST):
        parts = f"-A FORWARD {first}\n-A A {one}\n-A A {other}\n-A B {of_b}\n-A FORWARD {last}".split(DOUBTFUL)
        worlds = set()
        for choice in product(("", "-i eth0"), repeat=len(parts) - 1):
            lines = "".join(text for pair in zip(parts, (*choice, ""), strict=True) for text in pair)
            worlds.add(verdict(iptables(lines, policy=policy), PACKET, "forward").kind)
        found = verdict(iptables(DOUBTFUL.join(parts), policy=policy), PACKET, "forward").kind
        assert UNCLEAR not in worlds
        assert found == UNCLEAR or {found} == worlds, (parts, found)
        certain += found != UNCLEAR
    assert certain > 100


def test_masquerade_in_doubt_is_neither_done_nor_missing() -> None:
    lines = [f"-A POSTROUTING {DOUBTFUL} -j MASQUERADE", f"-A POSTROUTING {DOUBTFUL} -j RETURN\n-A POSTROUTING -j MASQUERADE"]
    for of in lines:
        ruleset = Ruleset.of({"iptables-nft": f"*nat\n:POSTROUTING ACCEPT [0:0]\n{of}\nCOMMIT\n"})
        assert verdict(ruleset, PACKET, "postrouting").kind == UNCLEAR


@pytest.mark.parametrize(("lines", "expected"), IPTABLES, ids=[str(number) for number in range(len(IPTABLES))])
def test_iptables(lines: list[str], expected: str) -> None:
    assert verdict(iptables(*lines), PACKET, "forward").kind == expected


def test_policy_decides_last() -> None:
    assert verdict(iptables(policy="DROP"), PACKET, "forward").words == "chain iptables-nft filter FORWARD: its policy is drop"
    assert verdict(iptables("-A FORWARD -i cni0 -j ACCEPT", policy="DROP"), PACKET, "forward").kind == ACCEPT


def test_rule_is_named_as_it_is_written() -> None:
    line = '-A FORWARD -i cni0 -m comment --comment "no pods" -j DROP'
    assert verdict(iptables(line), PACKET, "forward").rule == line


def test_families_are_apart() -> None:
    assert verdict(iptables("-A FORWARD -j DROP"), SIX, "forward").kind == ACCEPT
    assert verdict(iptables("-A FORWARD -j DROP", name="ip6tables-nft"), SIX, "forward").kind == DROP
    assert verdict(iptables("-A FORWARD -j DROP", name="ip6tables-nft"), PACKET, "forward").kind == ACCEPT


def chain(name: str, family: str = "inet", hook: str = "forward", table: str = "t", **more: Any) -> dict[str, Any]:
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": "accept"} if hook else {}
    return {"chain": {"family": family, "table": table, "name": name, **base, **more}}


def rule(of: str, *expressions: dict[str, Any], family: str = "inet", table: str = "t") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": of, "handle": 7, "expr": list(expressions)}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


SADDR, DROPS, ACCEPTS = payload("ip", "saddr"), {"drop": None}, {"accept": None}
NETWORK = {"prefix": {"addr": "10.244.0.0", "len": 16}}
NFT = [
    ([DROPS], DROP),
    ([{"counter": {"packets": 0, "bytes": 0}}, {"reject": {"type": "icmp"}}], DROP),
    ([match(SADDR, NETWORK), DROPS], DROP),
    ([match(SADDR, NETWORK, "!="), DROPS], ACCEPT),
    ([match(SADDR, "10.244.1.2"), DROPS], DROP),
    ([match(SADDR, {"set": ["10.9.9.9", "10.244.1.2"]}), DROPS], DROP),
    ([match(SADDR, {"range": ["10.244.1.1", "10.244.1.9"]}), DROPS], DROP),
    ([match(payload("ip6", "saddr"), "fd00::2"), DROPS], ACCEPT),
    ([match(meta("iifname"), "cni*"), DROPS], DROP),
    ([match(meta("oifname"), "eth0"), DROPS], ACCEPT),
    ([match(meta("l4proto"), "tcp"), DROPS], DROP),
    ([match(meta("l4proto"), {"set": ["udp", 6]}), DROPS], DROP),
    ([match(meta("nfproto"), "ipv6"), DROPS], ACCEPT),
    ([match(payload("tcp", "dport"), 80), DROPS], DROP),
    ([match(payload("th", "dport"), {"set": [{"range": [70, 90]}]}), DROPS], DROP),
    ([match(payload("udp", "dport"), 80), DROPS], ACCEPT),
    ([match({"ct": {"key": "state"}}, ["established", "related"], "in"), DROPS], ACCEPT),
    ([match({"&": [meta("mark"), 0x4000]}, 0x4000), DROPS], ACCEPT),
    ([match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROPS], ACCEPT),  # it is forwarded
    ([match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, 0), DROPS], UNCLEAR),
    ([match({"payload": {"base": "th", "offset": 96, "len": 24}}, 1), DROPS], UNCLEAR),
    ([{"limit": {"rate": 1, "per": "second"}}, DROPS], UNCLEAR),
    ([match(SADDR, "@pods"), DROPS], DROP),
    ([match(SADDR, "@unknown"), DROPS], UNCLEAR),
    ([{"vmap": {"key": SADDR, "data": "@verdicts"}}], DROP),
    ([{"vmap": {"key": payload("ip", "daddr"), "data": "@verdicts"}}], ACCEPT),
    ([{"vmap": {"key": {"concat": [SADDR]}, "data": "@verdicts"}}], UNCLEAR),
    ([{"vmap": {"key": meta("iifname"), "data": {"set": [["cni0", DROPS], ["eth0", ACCEPTS]]}}}], DROP),
    ([{"jump": {"target": "other"}}], DROP),
    ([{"goto": {"target": "other"}}], DROP),
]  # fmt: skip
OBJECTS = [
    {"metainfo": {}},
    {"set": {"family": "inet", "table": "t", "name": "pods", "elem": [NETWORK]}},
    {"map": {"family": "inet", "table": "t", "name": "verdicts", "elem": [
        [{"elem": {"val": "10.244.1.2", "comment": "c1"}}, {"goto": {"target": "other"}}]
    ]}},
    chain("forward"), chain("other", hook=""), rule("other", DROPS),
]  # fmt: skip


@pytest.mark.parametrize(("expressions", "expected"), NFT, ids=[str(number) for number in range(len(NFT))])
def test_nftables(expressions: list[dict[str, Any]], expected: str) -> None:
    assert verdict(Ruleset.of({}, [*OBJECTS, rule("forward", *expressions)]), PACKET, "forward").kind == expected


def test_every_base_chain_must_accept() -> None:
    objects = [chain("a", prio=-10), chain("b", prio=10, policy="drop"), rule("a", ACCEPTS)]
    assert verdict(Ruleset.of({}, objects), PACKET, "forward").words == "chain inet t b: its policy is drop"


def test_chains_of_iptables_are_read_by_it() -> None:
    """nft prints matches of iptables without their content: as a rule that matches everything."""
    objects = [chain("FORWARD", family="ip", table="filter"), rule("FORWARD", {"xt": None}, DROPS, family="ip", table="filter")]
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth0 -j DROP\nCOMMIT\n"
    assert verdict(Ruleset.of({"iptables-nft": text}, objects), PACKET, "forward").kind == ACCEPT
    assert verdict(Ruleset.of({"iptables-legacy": text}, objects), PACKET, "forward").kind == UNCLEAR, "of the other flavour"
    assert verdict(Ruleset.of({}, objects), PACKET, "forward").kind == UNCLEAR
    own = [chain("forward", family="ip", table="filter", policy="drop")]
    assert verdict(Ruleset.of({}, own), PACKET, "forward").kind == DROP


def test_translation() -> None:
    text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE\nCOMMIT\n"
    ruleset = Ruleset.of({"iptables-legacy": text}, [])
    assert verdict(ruleset, PACKET, "postrouting").kind == ACCEPT
    outside = Packet(POD, ip_address("1.1.1.1"), "tcp", 80, "cni0", "eth0")
    assert verdict(ruleset, outside, "postrouting").kind == TRANSLATE


def test_destination_that_is_translated_goes_elsewhere() -> None:
    """Rules about its first destination no longer count; by which link it leaves is not known."""
    text = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.244.2.2/32 -j DNAT --to-destination 10.244.3.3:81\nCOMMIT\n"
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.244.2.2/32 -j DROP\n{}\nCOMMIT\n"
    )
    for line, expected in [
        ("", ACCEPT),
        ("-A FORWARD -d 10.244.3.3/32 -p tcp -m tcp --dport 81 -j DROP", DROP),
        ("-A FORWARD -o flannel.1 -j DROP", UNCLEAR),
    ]:
        ruleset = Ruleset.of({"iptables-legacy": text.format(line)})
        assert verdict(ruleset, PACKET, "prerouting", "forward").kind == expected


@pytest.mark.parametrize("how", [f"{DOUBTFUL} -j DNAT --to-destination 10.0.0.1", "-j DNAT --to-destination 10.0.0.1-10.0.0.9"])
def test_destination_that_may_be_translated_is_not_known(how: str) -> None:
    text = f"*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {how}\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {{}} -j DROP\nCOMMIT\n"
    for condition, expected in [("-d 10.244.2.2/32", UNCLEAR), ("-d 10.0.0.1", UNCLEAR), ("-s 10.244.1.2/32", DROP)]:
        ruleset = Ruleset.of({"iptables-legacy": text.format(condition)})
        assert verdict(ruleset, PACKET, "prerouting", "forward").kind == expected


def test_ports_of_a_bridge_are_not_known() -> None:
    objects = [chain("c", family="bridge"), rule("c", match(meta("iifname"), "veth1"), DROPS, family="bridge")]
    assert bridged(Ruleset.of({}, objects), PACKET).kind == UNCLEAR
    assert bridged(Ruleset.of({}, [*objects, rule("c", DROPS, family="bridge")]), PACKET).kind == DROP


def test_rule_of_nft_has_its_text_and_its_handle() -> None:
    found = verdict(Ruleset.of({}, [chain("c"), rule("c", DROPS)], {("inet", "t", "c", 7): "counter drop"}), PACKET, "forward")
    assert (found.words, found.handle) == ("chain inet t c: counter drop (handle 7)", 7)


def test_ingress_chain_is_of_its_device() -> None:
    objects = [chain("in", family="netdev", hook="ingress", dev="eth0"), rule("in", DROPS, family="netdev")]
    ruleset = Ruleset.of({}, objects)
    assert verdict(ruleset, PACKET, "ingress").kind == ACCEPT
    assert verdict(ruleset, Packet(POD, OTHER, "udp", 8472, "eth0"), "ingress").kind == DROP


def test_destinations() -> None:
    saved = {"iptables-nft": "*nat\n-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j X\n-A KUBE-SERVICES -j KUBE-NODEPORTS\n"}
    assert destinations(saved, "KUBE-SERVICES") == ["10.96.0.1/32"]


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -j",
        "-A FORWARD -p",
        "-A FORWARD -m",
        "-A FORWARD -s",
        "-A FORWARD -p tcp -m tcp --dport http -j DROP",
        "-A FORWARD -m mark --mark x -j DROP",
        "-A FORWARD -p tcp -m tcp --tcp-flags SYN -j DROP",
        "-A FORWARD -m iprange --src-range 10.0.0.1 -j DROP",
        "-A FORWARD -s 10.0.0.300/8 -j DROP",
        "-A FORWARD -j MARK --set-xmark",
    ],
)
def test_rule_of_an_unexpected_form_of_iptables_is_in_doubt(rule: str) -> None:
    saved = f"*filter\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n"
    assert verdict(Ruleset.of({"iptables-nft": saved}), PACKET, "forward").kind in (ACCEPT, UNCLEAR)


@pytest.mark.parametrize(
    "expression",
    [
        {"match": {}},
        {"match": {"op": "==", "left": {"meta": {}}, "right": 1}},
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "x", "len": 8}}}},
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"range": ["10.0.0.1"]}}},
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"set": [{"prefix": {}}]}}},
        {"match": {"op": "==", "left": {"<<": [{"payload": {"protocol": "ip", "field": "saddr"}}, 40]}, "right": 1}},
        {"match": {"op": "==", "left": {"numgen": {}}, "right": 1}},
        {"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[0]]}}},
        {"jump": {}},
        {"xt": None},
        {},
    ],
)  # fmt: skip
def test_rule_of_an_unexpected_form_of_nft_is_in_doubt(expression: dict[str, Any]) -> None:
    """Its drop is not reported: another version of nft may mean something else by it."""
    chain = {"family": "ip", "table": "t", "name": "c", "hook": "forward", "type": "filter", "prio": 0, "policy": "accept"}
    rule = {"family": "ip", "table": "t", "chain": "c", "handle": 1, "expr": [expression, {"drop": None}]}
    assert verdict(Ruleset.of({}, [{"chain": chain}, {"rule": rule}]), PACKET, "forward").kind == UNCLEAR
