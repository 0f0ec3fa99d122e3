"""`cni-py walk`: rules of nftables and iptables for a packet, frames as packets, and the comparison. Pure; no namespaces."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from cni_py.cli import main
from cni_py.cli.walk import Names, parse_end
from cni_py.errors import CniError
from cni_py.kernel.bridge_port import BridgePort
from cni_py.packetfilter.evaluation.facts import UNKNOWN, Facts
from cni_py.packetfilter.evaluation.ruleset import Ruleset
from cni_py.walk import compare, hops, packet, report, segment, svg, text
from cni_py.walk.choices import Choices, following
from cni_py.walk.hops import Hop, Walk
from cni_py.walk.packet import Frame, Packet, Token, Tunnel
from cni_py.walk.probe import Observed, Sighting
from cni_py.walk.tracking import Connection, Tracking

HERE, THERE = ip_address("10.244.1.2"), ip_address("10.244.2.2")
FIELDS: dict[str, Any] = {
    "ip saddr": HERE,
    "ip daddr": THERE,
    "meta iifname": "cni0",
    "meta oifname": "eth0",
    "meta mark": 0x4000,
    "meta l4proto": "tcp",
    "meta nfproto": "ipv4",
    "tcp dport": 80,
    "tcp sport": 4000,
    "tcp flags": frozenset({"syn"}),
    "th dport": 80,
    "th sport": 4000,
    "ct state": frozenset({"new"}),
    "ct status": frozenset(),
    "ct mark": 6,
    "ct direction": "original",
    "ct original daddr": ip_address("10.96.0.10"),
    "ct original proto-dst": 80,
    "meta length": 84,
    "meta pkttype": "host",
    "ether saddr": "02:00:00:00:00:01",
}
ACCEPT, DROP = {"accept": None}, {"drop": None}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def of(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def ct(key: str) -> dict[str, Any]:
    return {"ct": {"key": key}}


PREFIX = {"prefix": {"addr": "10.244.0.0", "len": 16}}
ALL = [
    match(of("ip", "saddr"), PREFIX),
    match(of("ip", "saddr"), "10.244.1.2"),
    match(of("ip", "saddr"), "10.0.0.1", "!="),
    match(of("ip", "saddr"), {"range": ["10.244.1.0", "10.244.1.9"]}),
    match(of("ip", "saddr"), {"set": ["10.1.1.1", PREFIX]}),
    match(of("ip", "saddr"), "@pods"),
    match(of("tcp", "dport"), 80),
    match(of("tcp", "dport"), {"set": [22, {"range": [79, 81]}]}),
    match(of("tcp", "dport"), 81, "<"),
    match(of("th", "dport"), 80),
    match(meta("l4proto"), "tcp"),
    match(meta("l4proto"), 6),
    match(meta("l4proto"), {"set": ["tcp", "udp"]}),
    match(meta("iifname"), "cni0"),
    match(meta("iifname"), "cni*"),
    match(meta("iifname"), "@links"),
    match(meta("nfproto"), "ipv4"),
    match({"&": [meta("mark"), 0x4000]}, 0x4000),
    match(meta("mark"), {"prefix": {"addr": 0x4000, "len": 18}}),
    match(ct("state"), "new", "in"),
    match(ct("state"), ["established", "new"], "in"),
    match(ct("state"), "established", "!="),
    match(ct("status"), "dnat", "!="),
    match({"&": [of("tcp", "flags"), ["syn", "ack"]]}, "syn"),
    match({"fib": {"result": "type", "flags": ["daddr"]}}, "unicast"),
    match({"concat": [of("ip", "saddr"), of("tcp", "dport")]}, {"set": [{"concat": [PREFIX, 80]}]}),
]
NONE = [
    match(of("ip", "saddr"), PREFIX, "!="),
    match(of("ip", "saddr"), {"prefix": {"addr": "10.245.0.0", "len": 16}}),
    match(of("ip", "saddr"), {"range": ["10.244.1.3", "10.244.1.9"]}),
    match(of("ip", "saddr"), "@links"),
    match(of("ip6", "saddr"), "fd00::1"),
    match(of("ip6", "saddr"), "fd00::1", "!="),
    match(of("udp", "dport"), 80),
    match(of("tcp", "dport"), {"range": [81, 90]}),
    match(meta("l4proto"), "udp"),
    match(meta("iifname"), "eth*"),
    match(meta("oifname"), "cni0"),
    match({"&": [meta("mark"), 0x2000]}, 0x2000),
    match(ct("state"), ["established", "related"], "in"),
    match(ct("status"), "dnat", "in"),
    match({"&": [of("tcp", "flags"), ["syn", "ack"]]}, ["syn", "ack"]),
    match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"),
    match({"concat": [of("ip", "saddr"), of("tcp", "dport")]}, {"set": [{"concat": [PREFIX, 81]}]}),
    {"limit": {"rate": 5, "per": "second", "inv": True}},
]
DOUBTFUL = [
    match(of("ip", "ttl"), 64),
    match(meta("skuid"), 0),
    match(meta("cpu"), 1, "<"),
    match({"payload": {"base": "th", "offset": 16, "len": 8}}, 7),
    match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, 0),
    {"xt": {"type": "match", "name": "physdev"}},
    {"osf": {"key": "name"}},
]


def rules(*expressions: list[dict[str, Any]], kind: str = "filter", texts: dict[int, str] | None = None) -> Ruleset:
    """A chain `c` of `ip t` with these rules, beside a chain `other` that drops, sets and maps."""
    at = {"family": "ip", "table": "t"}
    objects: list[dict[str, Any]] = [
        {"chain": at | {"name": "c", "hook": "forward", "prio": 0, "type": kind, "policy": "accept"}},
        {"chain": at | {"name": "other"}},
        {"set": at | {"name": "pods", "elem": ["10.9.9.9", {"elem": {"val": PREFIX, "comment": "x"}}]}},
        {"set": at | {"name": "links", "elem": ["cni0"]}},
        {"map": at | {"name": "verdicts", "elem": [["10.9.9.9", ACCEPT], ["10.244.1.2", {"goto": {"target": "other"}}]]}},
        {"map": at | {"name": "ports", "elem": [[{"concat": ["tcp", 80]}, {"concat": ["10.244.7.7", 8080]}]]}},
        {"rule": at | {"chain": "other", "handle": 99, "expr": [DROP]}},
    ]
    objects += [{"rule": at | {"chain": "c", "handle": n, "expr": list(of)}} for n, of in enumerate(expressions, 1)]
    return Ruleset.of({}, objects, {("ip", "t", "c", number): line for number, line in (texts or {}).items()})


def evaluate(*expressions: list[dict[str, Any]], **more: Any) -> tuple[str, list[str]]:
    """The verdict, and the kinds of events."""
    made = rules(*expressions, **more)
    facts = Facts(dict(FIELDS), lambda result, flags: "unicast" if (result, list(flags)) == ("type", ["daddr"]) else UNKNOWN)
    outcome = made.evaluate(made.base_chains(["ip"], "forward")[0], facts)
    return outcome.verdict, [event.kind for event in outcome.events]


@pytest.mark.parametrize("condition", ALL, ids=str)
def test_condition_is_met(condition: dict[str, Any]) -> None:
    assert evaluate([condition, DROP]) == ("drop", ["drop"])


@pytest.mark.parametrize("condition", NONE, ids=str)
def test_condition_is_not_met(condition: dict[str, Any]) -> None:
    assert evaluate([condition, DROP]) == ("accept", [])


@pytest.mark.parametrize("condition", DOUBTFUL, ids=str)
def test_condition_that_is_not_understood_is_reported_and_not_guessed(condition: dict[str, Any]) -> None:
    assert evaluate([condition, DROP]) == ("accept", ["uncertain"])
    assert evaluate([condition, {"counter": None}]) == ("accept", []), "a rule without effect"
    assert evaluate([match(of("tcp", "dport"), 81), condition, DROP]) == ("accept", []), "it does not match anyway"
    assert evaluate([condition, match(of("tcp", "dport"), 81), DROP]) == ("accept", []), "in any order"


@pytest.mark.parametrize(
    ("expressions", "outcome"),
    [
        ([[ACCEPT], [DROP]], ("accept", [])),
        ([[{"return": None}], [DROP]], ("accept", [])),
        ([[{"jump": {"target": "other"}}]], ("drop", ["drop"])),
        ([[{"goto": {"target": "other"}}]], ("drop", ["drop"])),
        ([[{"jump": {"target": "no such chain"}}], [DROP]], ("drop", ["drop"])),
        ([[{"reject": {"type": "tcp reset"}}]], ("drop", ["reject"])),
        ([[{"vmap": {"key": of("ip", "saddr"), "data": "@verdicts"}}]], ("drop", ["drop"])),
        ([[{"vmap": {"key": of("ip", "daddr"), "data": "@verdicts"}}], [ACCEPT]], ("accept", [])),
        ([[{"vmap": {"key": of("tcp", "dport"), "data": {"set": [[80, DROP]]}}}]], ("drop", ["drop"])),
        ([[{"vmap": {"key": of("ip6", "saddr"), "data": "@verdicts"}}], [ACCEPT]], ("accept", [])),
        ([[{"mangle": {"key": meta("mark"), "value": {"|": [meta("mark"), 1]}}}], [match(meta("mark"), 0x4001), DROP]], ("drop", ["mark", "drop"])),
        ([[{"masquerade": None}], [DROP]], ("accept", ["masquerade"])),
        ([[{"counter": {}}, {"log": {"prefix": "x"}}, {"limit": {"rate": 1, "per": "second"}}, DROP]], ("drop", ["drop"])),
        ([[{"queue": {"num": 0}}]], ("queue", ["queue"])),
        ([[{"tproxy": {"port": 1}}, ACCEPT], [DROP]], ("drop", ["uncertain", "drop"])),
        ([[{"vmap": {"key": of("ip", "daddr"), "data": {"set": [["10.9.9.9", ACCEPT], ["*", DROP]]}}}]], ("drop", ["drop"])),
        ([[{"vmap": {"key": of("ip", "daddr"), "data": {"set": [["10.9.9.9", ACCEPT], [{"elem": {"val": "*"}}, DROP]]}}}]], ("drop", ["drop"])),
        ([[{"mangle": {"key": ct("mark"), "value": 5}}], [match(ct("mark"), 5), DROP]], ("drop", ["connmark", "drop"])),
        ([[{"snat": {"port": {"range": [1000, 2000]}}}]], ("accept", ["snat"])),
    ],
)  # fmt: skip
def test_statements(expressions: list[list[dict[str, Any]]], outcome: tuple[str, list[str]]) -> None:
    assert evaluate(*expressions) == outcome


@pytest.mark.parametrize(
    ("expressions", "counts"),
    [
        (
            [{"vmap": {"key": {"numgen": {"mode": "inc", "mod": 2, "offset": 7}}, "data": {"set": [[7, ACCEPT], [8, DROP]]}}}],
            [2],
        ),
        ([{"vmap": {"key": {"jhash": {"mod": 3, "expr": of("ip", "saddr")}}, "data": {"set": [[0, ACCEPT], [2, DROP]]}}}], [3]),
        ([{"xt": {"type": "match", "name": "statistic"}}, DROP], [2]),
    ],
    ids=["numgen", "jhash", "statistic"],
)
def test_number_that_only_the_kernel_knows_is_asked_for(expressions: list[dict[str, Any]], counts: list[int]) -> None:
    asked: list[int] = []

    def choose(count: int) -> int:
        asked.append(count)
        return 0 if count == 2 and "xt" in expressions[0] else count - 1

    made = rules(expressions, texts={1: "meta random & 2147483647 < 715827883 drop"})
    outcome = made.evaluate(made.base_chains(["ip"], "forward")[0], Facts(dict(FIELDS), choose=choose))
    assert (outcome.verdict, asked) == ("drop", counts)


def test_every_combination_of_random_choices_is_tried_once() -> None:
    """Choices like those of iptables' statistic: each rule that does not match is followed by another choice."""

    def end(choices: Choices) -> str:
        return next((f"endpoint {number}" for number in range(2) if choices.choose(2) == 0), "endpoint 2")

    ends, wanted = list[str](), list[int]()
    while wanted is not None:
        choices = Choices(wanted)
        ends.append(end(choices))
        wanted = following(choices.made)
    assert ends == ["endpoint 0", "endpoint 1", "endpoint 2"]
    assert Choices([5]).choose(1) == 0, "no choice"
    assert following([(1, 2), (2, 3)]) is None


def test_chain_behind_a_rule_in_doubt_counts_if_it_may_do_something() -> None:
    jump = {"jump": {"target": "other"}}
    assert evaluate([DOUBTFUL[0], jump]) == ("accept", ["uncertain"])
    assert evaluate([DOUBTFUL[0], {"jump": {"target": "no such chain"}}]) == ("accept", [])
    drawn = {"numgen": {"mode": "random", "mod": 2, "offset": 0}}
    assert evaluate([{"vmap": {"key": drawn, "data": {"set": [[0, jump], [1, {"return": None}]]}}}]) == (
        "accept",
        ["uncertain"],
    )
    assert evaluate([{"vmap": {"key": drawn | {"numgen": {"mod": 1}}, "data": {"set": [[0, jump]]}}}]) == ("drop", ["drop"])


def test_translation_by_a_map_of_addresses_and_ports() -> None:
    key = {"concat": [meta("l4proto"), of("th", "dport")]}
    made = rules([{"dnat": {"family": "ip", "addr": {"map": {"key": key, "data": "@ports"}}}}], kind="nat")
    outcome = made.evaluate(made.base_chains(["ip"], "forward")[0], Facts(dict(FIELDS)))
    assert [(event.kind, event.value) for event in outcome.events] == [("dnat", (ip_address("10.244.7.7"), 8080))]


@pytest.mark.parametrize(
    ("name", "line", "kinds"),
    [
        ("addrtype", "fib daddr type unicast drop", ["drop"]),
        ("addrtype", "fib daddr type != unicast drop", []),
        ("addrtype", "fib daddr type local drop", []),
        ("addrtype", "fib daddr . iif type local drop", ["uncertain"]),
        ("multiport", "meta l4proto tcp  tcp dport 80 counter packets 0 bytes 0 drop", ["drop"]),
        ("multiport", "meta l4proto tcp  tcp dport 79-81 drop", ["drop"]),
        ("multiport", "meta l4proto tcp  tcp dport != 80 drop", []),
        ("multiport", "tcp sport . tcp dport { 0-65535 . 80, 80 . 0-65535 } drop", ["uncertain"]),
        ("multiport", "meta l4proto tcp tcp dport { 22, 79-81 } drop", ["drop"]),
        ("multiport", "meta l4proto tcp tcp dport != { 22, 79-81 } drop", []),
        ("conntrack", "ct state related,new drop", ["drop"]),
        ("conntrack", "ct state != new drop", []),
        ("conntrack", "ct state ! invalid drop", ["drop"]),
        ("conntrack", "ct direction original ct state new drop", ["drop"]),
        ("conntrack", "ct direction reply ct state new drop", []),
        ("conntrack", "ct original daddr 10.96.0.10 ct original proto-dst 80 drop", ["drop"]),
        ("conntrack", "ct original daddr 10.96.0.11 drop", []),
        ("conntrack", "ct status dnat drop", ["uncertain"]),  # of --ctstate NEW,DNAT nft prints no more,
        ("conntrack", "ct expiration 5 ct state new drop", ["uncertain"]),
        ("statistic", "meta random & 2147483647 < 2147483648 drop", ["drop"]),
        ("statistic", "meta random & 2147483647 < 0 drop", []),
        ("statistic", "meta random & 2147483647 < 715827883 drop", ["uncertain"]),
        ("statistic", "numgen inc mod 3 2 drop", ["uncertain"]),
        ("mac", "ether saddr 02:00:00:00:00:01 drop", ["drop"]),
        ("mac", "ether saddr != 02:00:00:00:00:01 drop", []),
        ("length", "meta length 1-1000 drop", ["drop"]),
        ("length", "meta length != 84 drop", []),
        ("iprange", "ip saddr 10.244.1.1-10.244.1.9 ip daddr 10.0.0.0-10.255.255.255 drop", ["drop"]),
        ("iprange", "ip saddr != 10.244.1.1-10.244.1.9 drop", []),
        ("pkttype", "pkttype unicast drop", ["drop"]),
        ("pkttype", "pkttype != unicast drop", []),
        ("connmark", "ct mark and 0x4 == 0x4 drop", ["drop"]),
        ("connmark", "ct mark != 0x6 drop", []),
        ("tcp", "meta l4proto tcp   counter packets 0 bytes 0 drop", ["drop"]),
        ("tcp", "tcp option 5 exists drop", ["uncertain"]),
        ("icmp", "meta l4proto icmp icmp type echo-request drop", []),
        ("comment", "drop", ["drop"]),
        ("set", "xt match set drop", ["uncertain"]),
    ],
)
def test_extensions_of_iptables(name: str, line: str, kinds: list[str]) -> None:
    assert evaluate([{"xt": {"type": "match", "name": name}}, DROP], texts={1: line})[1] == kinds


@pytest.mark.parametrize(
    ("name", "line", "event", "value"),
    [
        ("MASQUERADE", "masquerade", "masquerade", (None, None)),
        ("DNAT", "tcp dport 80 dnat to 10.1.2.3:8080", "dnat", (ip_address("10.1.2.3"), 8080)),
        ("DNAT", "dnat to [fd00::2]:53", "dnat", (ip_address("fd00::2"), 53)),
        ("SNAT", "counter packets 0 bytes 0 snat to 192.0.2.9", "snat", (ip_address("192.0.2.9"), None)),
        ("REDIRECT", "redirect to :8080", "redirect", (None, 8080)),
        ("REJECT", "reject", "reject", None),
        ("MARK", "meta mark set mark or 0x2000", "mark", 0x6000),
        ("MARK", "meta mark set mark and 0xffffbfff xor 0x1", "mark", 1),
        ("MARK", "meta mark set 0x7", "mark", 7),
        ("TPROXY", "xt target TPROXY", "uncertain", None),
        ("DNAT", "dnat to 10.1.2.3-10.1.2.9", "uncertain", None),
        ("DNAT", "dnat to 10.1.2.3:80-90", "uncertain", None),
        ("DNAT", "tcp dport 8081 counter packets 1 bytes 60 ", "uncertain", None),
        ("SNAT", "snat to 192.0.2.9:5000-6000", "snat", (ip_address("192.0.2.9"), UNKNOWN)),
        ("SNAT", "snat to :5000-6000", "snat", (None, UNKNOWN)),
        ("SNAT", "snat to 192.0.2.9:5000", "snat", (ip_address("192.0.2.9"), 5000)),
        ("CT", "notrack", "notrack", None),
        ("CONNMARK", "ct mark set 0x5", "connmark", 5),
        ("CONNMARK", "ct mark set mark", "connmark", 0x4000),
        ("CONNMARK", "ct mark set mark and 0xf000", "connmark", 0x4006),
        ("CONNMARK", "meta mark set ct mark", "mark", 6),
    ],
)
def test_targets_of_iptables(name: str, line: str, event: str, value: Any) -> None:
    made = rules([{"xt": {"type": "target", "name": name}}], texts={1: line})
    outcome = made.evaluate(made.base_chains(["ip"], "forward")[0], Facts(dict(FIELDS)))
    assert [(of.kind, of.value) for of in outcome.events] == [(event, value)]


def test_trace_names_the_family_of_the_packet_and_not_of_the_table() -> None:
    made = Ruleset.of({}, [{"chain": {"family": "inet", "table": "t", "name": "c"}}])
    assert (made.family_of("ip", "t", "c"), made.family_of("ip", "t", "other")) == ("inet", "ip")


# ---- frames -----------------------------------------------------------------------------------

TOKEN = Token("udp", 0x01020304, frozenset({53}))


def udp(source_port: int, port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload


def ip(source: str, destination: str, number: int, body: bytes) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, len(body), number, 64) + ends + body
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, number, 0) + ends + body


def ethernet(kind: int, body: bytes) -> bytes:
    return bytes(12) + struct.pack("!H", kind) + body


INNER = ip("10.244.1.2", "10.244.2.2", 17, udp(4000, 53, TOKEN.text))


@pytest.mark.parametrize(
    ("data", "hardware", "kind", "words"),
    [
        (ethernet(0x800, INNER), 1, "request", "10.244.1.2:4000 to 10.244.2.2:53"),
        (INNER, 65534, "request", "10.244.1.2:4000 to 10.244.2.2:53"),
        (ethernet(0x800, ip("10.244.2.2", "10.244.1.2", 17, udp(53, 4000, TOKEN.text))), 1, "reply", "10.244.2.2:53 to 10.244.1.2:4000"),
        (ethernet(0x86DD, ip("fd00::1", "fd00::2", 17, udp(9, 53, TOKEN.text))), 1, "request", "[fd00::1]:9 to [fd00::2]:53"),
        (
            ethernet(0x800, ip("192.0.2.1", "192.0.2.2", 17, udp(1, 8472, b"\x08\0\0\0\0\0\x01\0" + ethernet(0x800, INNER)))),
            1,
            "request",
            "192.0.2.1:1 to 192.0.2.2:8472, VXLAN 1 (10.244.1.2:4000 to 10.244.2.2:53)",
        ),
        (
            ethernet(0x800, ip("192.0.2.1", "192.0.2.2", 17, udp(8285, 8285, INNER))),
            1,
            "request",
            "192.0.2.1:8285 to 192.0.2.2:8285, UDP (10.244.1.2:4000 to 10.244.2.2:53)",
        ),
        (ethernet(0x800, ip("192.0.2.1", "192.0.2.2", 4, INNER)), 1, "request", "192.0.2.1 to 192.0.2.2, IP in IP (10.244.1.2:4000 to 10.244.2.2:53)"),
        (ethernet(0x800, ip("10.244.1.1", "10.244.1.2", 1, b"\x03\x04\0\0\0\0\x05\x78" + INNER)), 1, "error", "10.244.1.1 to 10.244.1.2"),
    ],
)  # fmt: skip
def test_frame(data: bytes, hardware: int, kind: str, words: str) -> None:
    found = packet.parse(data, hardware, TOKEN)
    assert found is not None
    assert (found.kind, str(found.packet)) == (kind, words)
    assert kind != "error" or found.error == "fragmentation needed, MTU 1400"
    assert any(data[at : at + 4] == value for at, value in packet.offsets(TOKEN, 14 if hardware == 1 else 0))


@pytest.mark.parametrize("length", range(len(INNER) + 14))
def test_frame_that_is_cut_off_is_no_error(length: int) -> None:
    assert packet.parse((ethernet(0x800, INNER))[:length] + TOKEN.text, 1, TOKEN) is None or length >= 42


def test_acknowledgement_of_a_syn_is_its_reply() -> None:
    token = Token("tcp", 0xFFFFFFFF, data_bytes=100)
    for acknowledged in (0, 100):
        body = struct.pack("!HHIIBBHHH", 80, 4000, 7, acknowledged, 5 << 4, 0x14, 0, 0, 0)
        found = packet.parse(ethernet(0x800, ip("10.0.0.2", "10.0.0.1", 6, body)), 1, token)
        assert found is not None
        assert (found.kind, found.is_reset) == ("reply", True)


# ---- comparison, tracking, layout -------------------------------------------------------------


def link(place: str, name: str, direction: str, of: Packet) -> Hop:
    return Hop(place, hops.LINK, "", of, link=name, direction=direction)


def seen(place: str, name: str, direction: str, of: Packet) -> Sighting:
    return Sighting(place, name, direction, Frame("request", of), 0)


SENT = Packet(HERE, THERE, "tcp", 4000, 80)
MASQUERADED = Packet(ip_address("192.0.2.1"), THERE, "tcp", 4000, 80)
PATH = [link("pod", "eth0", "out", SENT), link("node", "veth1", "in", SENT), link("node", "eth0", "out", MASQUERADED)]


@pytest.mark.parametrize(
    ("sightings", "outcome", "result", "words"),
    [
        ([("eth0", "out", SENT), ("veth1", "in", SENT), ("eth0", "out", MASQUERADED)], "leaves", "agrees", "3 of 3"),
        ([("eth0", "out", SENT), ("veth1", "in", SENT), ("eth0", "out", SENT)], "leaves", "differs", "at eth0 of node it is 10.244.1.2:4000"),
        ([("eth0", "out", SENT), ("veth1", "in", SENT)], "leaves", "ends", "before eth0 of node; it was last seen at veth1 of node"),
        ([], "leaves", "ends", "seen nowhere"),
        ([("eth0", "out", SENT), ("veth1", "in", SENT), ("eth0", "out", MASQUERADED)], "broken", "ends as predicted", "ends there"),
        ([("eth0", "out", SENT), ("eth0", "out", MASQUERADED)], "leaves", "differs", "not seen at veth1"),
        (
            [("eth0", "out", SENT), ("veth1", "in", SENT), ("eth0", "out", MASQUERADED), ("eth9", "in", MASQUERADED)],
            "broken",
            "differs",
            "it goes on: seen at eth9 of node",
        ),
    ],
)  # fmt: skip
def test_comparison(sightings: list[tuple[str, str, Packet]], outcome: str, result: str, words: str) -> None:
    walk = Walk(
        [Hop(hop.place, hop.kind, "", hop.packet, link=hop.link, direction=hop.direction) for hop in PATH], outcome, "x"
    )
    places = {("eth0", SENT): "pod"} if len(sightings) else {}
    made, is_first = [], True
    for name, direction, of in sightings:
        place = places.get((name, of), "node") if is_first else "node"
        made.append(seen(place, name, direction, of))
        is_first = False
    found = compare.compare(walk, Observed(made))
    assert found.result == result
    assert words in found.text


def test_reply_that_is_never_sent_is_as_predicted() -> None:
    walk = Walk([Hop("pod", hops.SEND, "", SENT), Hop("pod", hops.ROUTE, "no route", SENT, is_broken=True)], "broken", "x")
    assert compare.compare(walk, Observed(), "reply").result == "ends as predicted"
    assert compare.compare(Walk(PATH, "delivered", "x"), Observed(), "reply").result == "not verified"


def test_port_that_translation_chose_is_not_compared() -> None:
    chosen = Packet(HERE, THERE, "tcp", 4000, 80, is_port_known=False)
    assert compare.is_alike(chosen, Packet(HERE, THERE, "tcp", 61000, 80))
    assert not compare.is_alike(SENT, Packet(HERE, THERE, "tcp", 61000, 80))
    assert not compare.is_alike(SENT, Packet(HERE, THERE, "tcp", 4000, 81))
    assert not compare.is_alike(SENT, Packet(HERE, THERE, "udp", 4000, 80))
    wrapped = Packet(HERE, THERE, "udp", 0, 8472, inner=SENT, tunnel=Tunnel("VXLAN 1", 1), is_port_known=False)
    assert not compare.is_alike(SENT, wrapped)
    assert compare.is_alike(wrapped, wrapped)


def test_reply_is_translated_back() -> None:
    tracking = Tracking()
    connection, is_reply = tracking.find("node", SENT)
    assert not is_reply
    pod = ip_address("10.244.9.9")
    after = connection.translate_source(connection.translate_destination(Packet(HERE, pod, "tcp", 4000, 8080)))
    assert connection.reply == Packet(pod, HERE, "tcp", 8080, 4000)
    found, is_reply = tracking.find("node", after.reversed())
    assert (found, is_reply) == (connection, True)
    assert tracking.find("elsewhere", after.reversed())[1] is False
    back = connection.undo_destination(connection.undo_source(after.reversed()))
    assert (back.source, back.source_port, back.destination) == (THERE, 80, HERE)
    assert Connection.begin(SENT).undo_source(SENT) == SENT


def test_text_fits_and_picture_is_escaped() -> None:
    rule = 'inet t c: ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "<from> & to"' * 2
    nat = Hop("node", hops.NAT, "masquerade", MASQUERADED, rule, ("source 10.244.1.2 becomes 192.0.2.1",))
    walk = Walk([Hop("pod", hops.SEND, "sends", SENT), nat], "delivered", "node takes it", "node", 1450, "eth0 of node")
    made = report.Report("pod to node", SENT, walk)
    report.find(made, [])
    lines = ["".join(part.text for part in parts) for parts in text.render(made)]
    assert max(map(len, lines)) <= text.WIDTH
    assert "         * source 10.244.1.2 becomes 192.0.2.1" in lines
    drawn = svg.draw(made)
    assert "&lt;from&gt; &amp; to" in drawn
    assert "<from>" not in drawn
    assert made.exit_status == 0


PORT = BridgePort(native=1, vlans={1: True, 10: False, 20: True})


@pytest.mark.parametrize(
    ("tag", "vlan", "tag_behind"), [(0, 1, 0), (1, 1, 0), (10, 10, 10), (20, 20, 0), (30, None, None)], ids=str
)
def test_vlan_of_a_port(tag: int, vlan: int | None, tag_behind: int | None) -> None:
    """linux br_vlan.c: the native VLAN is that of frames without a tag; a VLAN that a port does not have is dropped."""
    place = SimpleNamespace(bridge_port=lambda _: PORT)
    bridge, transparent = SimpleNamespace(vlan_filtering=True), SimpleNamespace(vlan_filtering=None)
    assert segment.admitted(place, bridge, None, tag) == vlan  # type: ignore[arg-type]
    assert vlan is None or segment.emitted(place, bridge, None, vlan) == tag_behind  # type: ignore[arg-type]
    assert segment.emitted(place, bridge, None, 30) is None  # type: ignore[arg-type]
    assert segment.admitted(place, transparent, None, tag) == tag  # type: ignore[arg-type]


def test_name_that_two_places_have_is_ambiguous() -> None:
    names = Names()
    names.add("web", [HERE], "node1/web", "/run/netns/web", "0123456789ab")
    names.add("node2/web", [THERE], "web", "/run/netns/web")
    assert (names.place("node1/web"), names.place("node2/web"), names.place("0123456789ab")) == ("web", "node2/web", "web")
    assert names.place("other") is None
    for word in ("web", "/run/netns/web"):
        with pytest.raises(CniError, match=f'ambiguous name "{word}"') as raised:
            names.place(word)
        assert raised.value.hint == "name one of node2/web, node1/web"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["web:80", "10.244.1.2"], '"web:80" has a port'), (["web", "0.0.0.0"], "0.0.0.0 is not"), (["::", "web"], ":: is not")],
)
def test_end_that_is_impossible(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main.main(["walk", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("pod1", ("pod1", None, 0)),
        ("default/web-1:80", ("default/web-1", None, 80)),
        ("10.244.1.2", ("10.244.1.2", "10.244.1.2", 0)),
        ("10.244.1.2:65535", ("10.244.1.2", "10.244.1.2", 65535)),
        ("fd00::2", ("fd00::2", "fd00::2", 0)),
        ("[fd00::2]:53", ("fd00::2", "fd00::2", 53)),
        ("[fd00::2]", ("fd00::2", "fd00::2", 0)),
        ("/run/netns/blue", ("/run/netns/blue", None, 0)),
    ],
)
def test_end(word: str, end: tuple[str, str | None, int]) -> None:
    found = parse_end(word)
    assert (found.name, str(found.address) if found.address else None, found.port) == end


def test_must_be_run_as_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main.main(["walk", "pod1", "pod2"]) == 1
    errors = capsys.readouterr().err
    assert "cni-py walk must be run as root" in errors
    assert "sudo cni-py walk pod1 pod2" in errors


@pytest.mark.parametrize("word", ["web:", "web:0", "web:65536", "web:http", "[10.0.0.1]:80", "[web]:80", "10.0.0.1:"])
def test_wrong_end(word: str) -> None:
    with pytest.raises(CniError, match="invalid"):
        parse_end(word)
