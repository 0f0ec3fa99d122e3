"""The evaluator of rules beside the kernel: each construct in iptables' language and in nft's, and a real packet.

    client ── in0 ── router ── out0 ── server         10.1.0.2, fd01::2          10.2.0.2, 10.2.0.3, fd02::2

Conditions are counted: one packet meets all of them, in legacy iptables, iptables-nft and nftables. What rules do is seen in the
packet at the server. Behind each packet follows one of the other family, on the same processor, which no rule is about: when it
has come, the first one has come or never will.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count
from typing import Any

import pytest

from cni_py.lab.programs import TOOLS
from cni_py.packetfilter.evaluation import described
from cni_py.packetfilter.evaluation.facts import UNKNOWN, Facts, fields_of
from cni_py.packetfilter.evaluation.reading import read
from cni_py.packetfilter.evaluation.ruleset import Ruleset
from cni_py.packetfilter.libnftables import read_ruleset
from cni_py.walk.choices import Choices
from cni_py.walk.hops import DELIVERED, UNSURE
from cni_py.walk.packet import Packet
from cni_py.walk.place import Place, Places
from cni_py.walk.predict import Walker
from support.namespaces import Host
from support.tools import need
from support.waiting import until

pytestmark = pytest.mark.netns

# the server has no route back: a reply would be counted too
SETUP = """
ip netns add client; ip netns add server
ip link add in0 address 02:00:00:00:01:01 type veth peer name eth0 netns client address 02:00:00:00:01:02
ip link add out0 address 02:00:00:00:02:01 type veth peer name eth0 netns server address 02:00:00:00:02:02
add() { ip $1 addr add $3 dev $2 $4; ip $1 link set $2 up; }
add "-n client" eth0 10.1.0.2/24; add "-n client" eth0 fd01::2/64 nodad; ip -n client link set lo up
add "-n server" eth0 10.2.0.2/24; add "-n server" eth0 10.2.0.3/24; add "-n server" eth0 fd02::2/64 nodad; ip -n server link set lo up
add "" in0 10.1.0.1/24; add "" in0 fd01::1/64 nodad; add "" out0 10.2.0.1/24; add "" out0 fd02::1/64 nodad
meet() { ip $1 neigh replace $3 lladdr $4 dev $2 nud permanent; }
for a in 10.1.0.1 fd01::1; do meet "-n client" eth0 $a 02:00:00:00:01:01; done
for a in 10.2.0.1 fd02::1; do meet "-n server" eth0 $a 02:00:00:00:02:01; done
for a in 10.1.0.2 fd01::2; do meet "" in0 $a 02:00:00:00:01:02; done
for a in 10.2.0.2 10.2.0.3 fd02::2; do meet "" out0 $a 02:00:00:00:02:02; done
ip -n client route add default via 10.1.0.1; ip -n client -6 route add default via fd01::1
for f in all default eth0; do ip netns exec server sysctl -qw net.ipv4.conf.$f.rp_filter=0; done
echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"""
CLIENT: dict[int, Any] = {4: ip_address("10.1.0.2"), 6: ip_address("fd01::2")}
SOURCES: dict[str, dict[int, Any]] = {"client": CLIENT, "router": {4: ip_address("10.2.0.1"), 6: ip_address("fd02::1")}}
SERVER: dict[int, Any] = {4: ip_address("10.2.0.2"), 6: ip_address("fd02::2")}
LEGACY, OF_NFT, NFT, AS_NFT = "iptables-legacy", "iptables-nft", "nft", "iptables-nft as nft prints it"
_sports = count(20001)


@dataclass(frozen=True)
class Seen:
    """A packet at the server."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    sport: int
    port: int


class World:
    """The picture above. Sockets are in its namespaces; everything else is done from outside."""

    def __init__(self, stack: ExitStack) -> None:
        self.host = stack.enter_context(Host())
        self.host.run(SETUP)
        self.has_ipv6_rules = False
        self.paths = {name: str(self.host.path(f"/run/netns/{name}")) for name in ("client", "server")}
        self.paths["router"] = f"/proc/{self.host.pid}/ns/net"
        self.client, self.server = (Place(name, self.paths[name]) for name in ("client", "server"))
        stack.callback(self.client.close)
        stack.callback(self.server.close)
        self._capture: socket.socket = self.server.netns.run(capture)
        stack.callback(self._capture.close)

    def in_router(self, function: Callable[[], Any]) -> Any:
        router = Place("router", self.paths["router"])
        try:
            return router.netns.run(function)
        finally:
            router.close()

    def flush(self) -> None:
        """Delete the rules of all languages."""
        empty = "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "nat"))
        policies = "".join(f":{chain} ACCEPT [0:0]\n" for chain in ("INPUT", "FORWARD", "OUTPUT"))
        empty += f"*filter\n{policies}COMMIT\n"
        of_ipv6 = "ip6tables-legacy -F; " if self.has_ipv6_rules else ""
        self.host.run(f"nft flush ruleset; {of_ipv6}iptables-legacy-restore", stdin=empty)
        self.has_ipv6_rules = False

    def send(self, protocol: str, version: int = 4, port: int = 53, *, place: str = "client") -> tuple[int, list[Seen]]:
        """Send a packet from a place. Returns: its source port (or the identifier of an echo), and what arrived."""
        sport, last = next(_sports), next(_sports)

        def both() -> list[socket.socket]:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread: the packets are handled in order
            return [send(protocol, version, sport, port, place), send("udp", 10 - version, last, 9, place)]

        sockets = self.client.netns.run(both) if place == "client" else self.in_router(both)
        found: list[Seen] = []

        def has_come() -> bool:
            found.extend(received(self._capture))
            return any(of.sport == last for of in found)

        until(has_come, "the packet of the other family has come")
        for sock in sockets:
            sock.close()
        return sport, [of for of in found if of.sport == sport]

    def walk(self, version: int, sport: int, place: str) -> tuple[str, list[Seen], list[str]]:
        """Predict the path of a datagram. Returns: the outcome in words, what arrives, and what is in doubt."""
        router = Place("router", self.paths["router"])
        try:
            walker, source = Walker(Places([self.client, router, self.server]), Choices()), SOURCES[place][version]
            walked = walker.walk({"client": self.client}.get(place, router), Packet(source, SERVER[version], "udp", sport, 53))
        finally:
            router.close()
        last = walked.last
        arrived = [Seen(last.source, last.destination, last.source_port, last.destination_port)]
        doubts = [hop.text for hop in walked.hops if hop.kind == UNSURE]
        is_there = walked.outcome == DELIVERED and walked.end_place == "server"
        return walked.end, arrived if is_there else [], doubts


def capture() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    sock.setblocking(False)
    return sock


def received(sock: socket.socket) -> Iterator[Seen]:
    """Packets that have come in."""
    while True:
        try:
            data, (_, _, kind, *_) = sock.recvfrom(65536)
        except BlockingIOError:
            return
        if kind != 0 or len(data) < 20:  # PACKET_HOST
            continue
        version, (start, number, at) = data[0] >> 4, ((20, data[9], 12) if data[0] >> 4 == 4 else (40, data[6], 8))
        size = 4 if version == 4 else 16
        ends = ip_address(data[at : at + size]), ip_address(data[at + size : at + 2 * size])
        if number in (6, 17):
            yield Seen(*ends, *struct.unpack_from("!HH", data, start))
        elif number in (1, 58) and data[start] in (8, 128):
            yield Seen(*ends, struct.unpack_from("!H", data, start + 4)[0], 0)


def send(protocol: str, version: int, sport: int, port: int, place: str) -> socket.socket:
    """Send an echo, a SYN or a datagram. Returns: the socket; a SYN is sent again by one that is open."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    to = str(SERVER[version])
    if protocol == "icmp":
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6)
        head = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, sport, 1)
        words = struct.unpack("!4H", head)
        total = sum(words)
        sock.sendto(head[:2] + struct.pack("!H", ~(total % 0xFFFF) & 0xFFFF) + head[4:], (to, 0))
        return sock
    sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((str(SOURCES[place][version]), sport))
    if protocol == "tcp":
        sock.connect_ex((to, port))
    else:
        with suppress(PermissionError):  # a rule of the sender drops it
            sock.sendto(b"x", (to, port))
    return sock


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    need(TOOLS)
    with ExitStack() as stack:
        made = World(stack)
        for protocol, version in (("udp", 4), ("udp", 6)):  # entries that the first packets make
            made.send(protocol, version)
        yield made


# ---- conditions -------------------------------------------------------------------------------

IPTABLES = """
-s 10.1.0.0/16 | ! -s 10.1.0.0/16 | -s 10.1.0.2/32 | -d 10.2.0.0/24 | ! -d 10.2.0.2/32 | -s 10.9.0.2/255.0.255.255
-i in0 | ! -i in0 | -i in+ | -o out+ | -o in+ | ! -o out0
-p udp | ! -p udp | -p tcp | -p icmp | -p 17 | -p sctp | ! -p 6
-f | ! -f
-p udp --dport 53 | -p udp ! --dport 53 | -p udp --dport 50:60 | -p udp --dport 54: | -p udp --sport 20000: | -p udp --sport :1024
-p tcp --dport 53 | -p tcp --syn | -p tcp ! --syn | -p tcp --tcp-flags ALL SYN | -p tcp --tcp-flags SYN,ACK SYN,ACK
-p tcp --tcp-flags ACK NONE | -p tcp ! --tcp-flags FIN,RST NONE
-p icmp --icmp-type 8 | -p icmp ! --icmp-type 8 | -p icmp --icmp-type echo-reply | -p icmp --icmp-type any
-p udp -m multiport --dports 52,53,60:70 | -p udp -m multiport ! --dports 53 | -p udp -m multiport --ports 20001:65535
-p tcp -m multiport --sports 1:10 | -p tcp -m multiport --dports 22,53 | -p tcp -m multiport ! --ports 1:10
-m conntrack --ctstate NEW | -m conntrack --ctstate RELATED,ESTABLISHED | -m conntrack ! --ctstate NEW
-m conntrack --ctstate NEW,DNAT | -m conntrack --ctstate DNAT | -m conntrack ! --ctstate SNAT,DNAT
-m conntrack --ctstate ESTABLISHED,DNAT | -m conntrack --ctstate INVALID | -m conntrack --ctstate UNTRACKED
-m state --state NEW | -m state ! --state NEW,INVALID | -m conntrack --ctdir ORIGINAL | -m conntrack --ctdir REPLY
-m mark --mark 0x4001 | -m mark --mark 0x4000/0x4000 | -m mark ! --mark 0x4000/0x4000 | -m mark --mark 2/2 | -m mark --mark 0
-m connmark --mark 7 | -m connmark ! --mark 1/1 | -m connmark --mark 0x4001
-m addrtype --dst-type LOCAL | -m addrtype ! --dst-type LOCAL | -m addrtype --src-type UNICAST | -m addrtype --dst-type LOCAL,UNICAST
-m pkttype --pkt-type unicast | -m pkttype --pkt-type broadcast
-m iprange --dst-range 10.2.0.1-10.2.0.9 | -m iprange ! --src-range 10.1.0.1-10.1.0.9 | -m iprange --src-range 10.1.0.3-10.1.0.9
-m limit --limit 100/s | -m comment --comment "a -j DROP \\"b\\"" | -m mark --mark 0x4001 -p udp -s 10.1.0.2 ! -d 10.9.0.0/16
-m ttl --ttl-gt 5 | -m statistic --mode random --probability 0.5 | -m string --string x --algo bm
"""
NFTABLES = """
ip saddr 10.1.0.0/16 | ip saddr != 10.1.0.0/16 | ip daddr 10.2.0.1-10.2.0.9 | ip saddr { 10.1.0.2, 10.9.0.0/16 } | ip daddr @s
ip saddr & 255.0.255.255 == 10.0.0.2 | ip saddr . meta l4proto @c | ip daddr . th dport { 10.2.0.2 . 53, 10.3.0.0/16 . 1-9 }
ip6 saddr fd01::/64 | ip6 daddr != fd02::2 | ip version 4 | meta nfproto ipv6 | meta protocol ip
iifname "in0" | iifname != "in0" | iifname "in*" | oifname { "out0", "x*" } | iif "in0" | oif != "in0" | iifname @l
meta l4proto udp | meta l4proto { tcp, udp } | meta l4proto 17 | meta l4proto != icmp | ip protocol tcp
udp dport 53 | udp dport != 53 | udp dport 50-60 | th dport { 22, 50-60 } | udp dport < 54 | udp sport >= 20000 | tcp dport 53
tcp flags syn | tcp flags & (fin|syn|rst|ack) == syn | tcp flags & (syn|ack) == syn|ack | tcp flags & ack == 0 | tcp flags != syn
icmp type echo-request | icmp type { echo-reply, echo-request } | icmpv6 type echo-request | icmp type != echo-request
ct state new | ct state established,related | ct state != new | ct state { new, established } | ct status dnat | ct direction original
meta mark 0x4001 | meta mark & 0x4000 == 0x4000 | meta mark != 0x4001 | meta mark and 0x2 == 0x2 | meta mark { 1, 0x4001 }
ct mark 7 | ct mark != 7 | ct mark & 0x6 == 0x6 | meta mark 0x4000-0x5000 | meta mark > 0x4001
fib daddr type unicast | fib daddr type local | fib saddr type { local, unicast } | meta pkttype host
ip ttl > 5 | ether saddr 02:00:00:00:01:02 | meta skuid 0 | vlan id 4 | numgen random mod 1 0 | limit rate 100/second
"""
NFT_TABLE = """
add table inet t
add chain inet t p { type filter hook prerouting priority -140; }
add rule inet t p ct mark set 7
add rule inet t p meta mark set 0x4001
add chain inet t f { type filter hook forward priority 5; }
add set inet t s { type ipv4_addr; flags interval; elements = { 10.2.0.0/24, 10.7.0.1 }; }
add set inet t l { type ifname; elements = { "in0" }; }
add set inet t c { type ipv4_addr . inet_proto; elements = { 10.1.0.2 . udp, 10.1.0.2 . icmp }; }
add rule inet t f th dport 9 accept
"""
IP6TABLES = """
-s fd01::/16 | ! -s fd01::2 | -d fd02::2 | -d fd03::/16 | -s 00:1::2/0:f::ffff | -p udp | ! -p ipv6-icmp | -p tcp --dport 53
-p ipv6-icmp --icmpv6-type 128 | -p ipv6-icmp ! --icmpv6-type echo-reply | -i in0 -m conntrack --ctstate NEW
-m addrtype --dst-type UNICAST | -m mark --mark 0x4001 | -p udp -m multiport --dports 50:60 | -m iprange --src-range fd01::1-fd01::9
"""
NOT_UNDERSTOOD = ("ttl", "statistic", "string", "skuid", "ether")
"""Conditions with these are not understood."""


def conditions(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split(" | ")]


OF_IPTABLES = {4: conditions(IPTABLES), 6: conditions(IP6TABLES)}


def tools(version: int) -> list[str]:
    name = "iptables" if version == 4 else "ip6tables"
    return [f"{name}-legacy", f"{name}-nft"]


@dataclass
class Counted:
    """Rules that count what meets them: the Nth rule of a chain is the Nth condition."""

    world: World
    saved: dict[str, str]
    objects: list[Any]
    texts: Any

    def counters(self, version: int) -> dict[str, list[int]]:
        """Read the counters, by language."""
        found = {
            tool: [
                int(n)
                for n in re.findall(
                    r"^\[(\d+):\d+\] -A FORWARD", self.world.host.run(f"{tool}-save -c -t filter"), re.MULTILINE
                )
            ]
            for tool in tools(version)
        }
        listed = json.loads(self.world.host.run("nft -j list chain inet t f"))["nftables"]
        rules = [of["rule"]["expr"] for of in listed if "rule" in of]
        return found | {NFT: [of["counter"]["packets"] for expr in rules for of in expr if "counter" in of]}

    def predicted(self, version: int, facts: Callable[[], Facts]) -> dict[str, list[Any]]:
        """Return whether each rule matches, True, False or UNKNOWN; of iptables-nft as the program and as nft prints it."""
        lines = {tool: [of for of in self.saved[tool].splitlines() if of.startswith("-A FORWARD")] for tool in tools(version)}
        head = "*filter\n:FORWARD ACCEPT [0:0]\n"
        found = {
            tool: [matches(Ruleset.of({tool: f"{head}{line} -j DROP\n"}), facts()) for line in lines[tool]]
            for tool in tools(version)
        }
        family = "ip" if version == 4 else "ip6"
        return found | {NFT: self._nft("inet", "t", "f", facts), AS_NFT: self._nft(family, "filter", "FORWARD", facts)}

    def _nft(self, family: str, table: str, chain: str, facts: Callable[[], Facts]) -> list[Any]:
        others = [of for of in self.objects if "rule" not in of]
        rules = [of["rule"] for of in self.objects if "rule" in of and "accept" not in of["rule"]["expr"][-1]]
        made = [rule | {"expr": [*rule["expr"], {"drop": None}]} for rule in rules]
        return [
            matches(Ruleset.of({}, [*others, {"rule": rule}], self.texts), facts())
            for rule in made
            if (rule["family"], rule["table"], rule["chain"]) == (family, table, chain)
        ]


def matches(ruleset: Ruleset, facts: Facts) -> Any:
    """Evaluate the one rule of a ruleset."""
    chain = next(chain for chain in ruleset.chains if chain.rules and chain.hook == "forward")
    outcome = ruleset.evaluate(chain, facts)
    return UNKNOWN if outcome.possible else outcome.verdict == "drop"


@pytest.fixture(scope="module")
def counted(world: World) -> Iterator[Counted]:
    world.flush()
    world.has_ipv6_rules = True
    saved = {}
    for version, asked in OF_IPTABLES.items():
        lines = "".join(f"-A FORWARD {of}\n" for of in asked)
        for tool in tools(version):
            world.host.run(f"{tool}-restore", stdin=f"*filter\n{lines}COMMIT\n")
            saved[tool] = world.host.run(f"{tool}-save -t filter")
    rules = "".join(f"add rule inet t f {of} counter\n" for of in conditions(NFTABLES))
    world.host.run("nft -f -", stdin=NFT_TABLE + rules)
    yield Counted(world, saved, *world.in_router(read_ruleset))
    world.flush()


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
@pytest.mark.parametrize("version", [4, 6])
def test_condition(counted: Counted, protocol: str, version: int) -> None:
    """Each is met, or not, as it was predicted; what is not understood is UNKNOWN, and never wrong."""
    before = counted.counters(version)
    sport, arrived = counted.world.send(protocol, version)
    assert len(arrived) == 1
    after = counted.counters(version)

    def facts() -> Facts:
        fields = fields_of(CLIENT[version], SERVER[version], protocol, (sport, 53), ("in0", "out0"), state="new")
        fields |= {"meta mark": 0x4001, "ct mark": 7, "ether saddr": UNKNOWN}
        return Facts(fields, lambda result, flags: "unicast" if result == "type" and len(flags) == 1 else UNKNOWN)

    wrong = []
    for language, found in counted.predicted(version, facts).items():
        asked = conditions(NFTABLES) if language == NFT else OF_IPTABLES[version]
        counts = after[tools(version)[1] if language == AS_NFT else language]
        begin = before[tools(version)[1] if language == AS_NFT else language]
        for condition, expected, one, other in zip(asked, found, begin, counts, strict=True):
            if expected is not UNKNOWN and expected is not (other > one):
                wrong.append(f"{language}: {condition}: predicted {expected}")
            elif expected is UNKNOWN and language != AS_NFT and not any(word in condition for word in NOT_UNDERSTOOD):
                wrong.append(f"{language}: {condition}: not understood")
    assert wrong == []


# ---- what rules do ----------------------------------------------------------------------------

AS_SENT, OTHER_END = ("10.1.0.2", "10.2.0.2", 53), ("10.1.0.2", "10.2.0.3", 5353)
ACTIONS: dict[str, tuple[str, str, tuple[str, str, int] | None]] = {
    "drop": ("filter: -A FORWARD -p udp -j DROP", "forward: meta l4proto udp drop", None),
    "reject": ("filter: -A FORWARD -p udp -j REJECT", "forward: meta l4proto udp reject", None),
    "policy": ("filter: -P FORWARD DROP; -A FORWARD -p tcp -j ACCEPT", "forward policy drop: meta l4proto tcp accept", None),
    "accept before drop": (
        "filter: -A FORWARD -s 10.1.0.2 -j ACCEPT; -A FORWARD -j DROP", "forward: ip saddr 10.1.0.2 accept; drop", AS_SENT,
    ),
    "user chain that returns": (
        "filter: -N A; -A FORWARD -j A; -A A -p udp -j RETURN; -A A -j ACCEPT; -A FORWARD -j DROP",
        "A: meta l4proto udp return; accept | forward: jump A; drop", None,
    ),
    "goto returns to the caller's caller": (
        "filter: -N A; -N B; -A FORWARD -j A; -A FORWARD -d 10.2.0.2 -j ACCEPT; -A FORWARD -j DROP; -A A -g B; -A A -j DROP",
        "B: | A: goto B; drop | forward: jump A; ip daddr 10.2.0.2 accept; drop", AS_SENT,
    ),
    "goto from the base chain ends in its policy": (
        "filter: -N A; -P FORWARD DROP; -A FORWARD -g A; -A FORWARD -j ACCEPT", "A: | forward policy drop: goto A; accept", None,
    ),
    "verdict map": (
        "filter: -A FORWARD -p udp --dport 53 -j DROP",
        "A: drop | forward: th dport vmap { 22 : accept, 50-60 : goto A }; accept", None,
    ),
    "mark of another table": (
        "mangle: -A PREROUTING -p udp -j MARK --set-mark 0x40/0x40 | filter: -A FORWARD -m mark --mark 0x40/0x40 -j DROP",
        "prerouting: meta l4proto udp meta mark set meta mark or 0x40 | forward: meta mark & 0x40 == 0x40 drop", None,
    ),
    "mark that is cleared": (
        "mangle: -A PREROUTING -j MARK --set-mark 0x41; -A PREROUTING -j MARK --and-mark 0xffffffbf; -A PREROUTING -j MARK --xor-mark 3"
        " | filter: -A FORWARD ! -m mark --mark 0x2 -j DROP".replace("! -m mark --mark", "-m mark ! --mark"),
        ("prerouting: meta mark set 0x41; meta mark set meta mark & 0xffffffbf; meta mark set meta mark xor 3"
        " | forward: meta mark != 0x2 drop"), AS_SENT,
    ),
    "mark of the connection": (
        ("mangle: -A PREROUTING -j MARK --set-mark 0x12; -A PREROUTING -j CONNMARK --save-mark; -A PREROUTING -j MARK --set-mark 0;"
        " -A FORWARD -j CONNMARK --restore-mark | filter: -A FORWARD -m mark --mark 0x12 -j DROP"),
        "prerouting: meta mark set 0x12; ct mark set meta mark; meta mark set 0 | forward: ct mark 0x12 drop", None,
    ),
    "mark of the connection, by its bits": (
        ("mangle: -A PREROUTING -j CONNMARK --set-xmark 0x31/0xff; -A PREROUTING -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf"
        " | filter: -A FORWARD -m mark --mark 0x1 -j DROP"),
        "prerouting: ct mark set 0x31; meta mark set ct mark & 0xf | forward: meta mark 1 drop", None,
    ),
    "destination translated": (
        "nat: -A PREROUTING -p udp --dport 53 -j DNAT --to-destination 10.2.0.3:5353",
        "nat prerouting: udp dport 53 dnat to 10.2.0.3:5353", OTHER_END,
    ),
    "destination translated by a map": (
        "nat: -A PREROUTING -d 10.2.0.2 -p udp -j DNAT --to-destination 10.2.0.3:5353",
        "nat prerouting: dnat ip addr . port to meta l4proto . th dport map { udp . 53 : 10.2.0.3 . 5353 }", OTHER_END,
    ),
    "first translation counts": (
        "nat: -A PREROUTING -p udp -j DNAT --to-destination 10.2.0.3:5353; -A PREROUTING -j DNAT --to-destination 10.2.0.9",
        "nat prerouting: meta l4proto udp dnat to 10.2.0.3:5353; dnat to 10.2.0.9", OTHER_END,
    ),
    "rules see the translated destination, and its state": (
        ("nat: -A PREROUTING -p udp -j DNAT --to-destination 10.2.0.3 | filter: -P FORWARD DROP;"
        " -A FORWARD -d 10.2.0.3 -m conntrack --ctstate DNAT -j ACCEPT"),
        "nat prerouting: meta l4proto udp dnat to 10.2.0.3 | forward policy drop: ip daddr 10.2.0.3 ct status dnat accept",
        ("10.1.0.2", "10.2.0.3", 53),
    ),
    "network mapped": (
        "nat: -A PREROUTING -d 10.9.0.0/16 -j NETMAP --to 10.8.0.0/16; -A POSTROUTING -s 10.1.0.0/24 -j NETMAP --to 10.77.5.0/24",
        "nat postrouting: ip saddr 10.1.0.0/24 snat to 10.77.5.2", ("10.77.5.2", "10.2.0.2", 53),
    ),
    "source translated": (
        "nat: -A POSTROUTING -s 10.1.0.0/24 ! -d 10.1.0.0/24 -j SNAT --to-source 10.2.0.7",
        "nat postrouting: ip saddr 10.1.0.0/24 ip daddr != 10.1.0.0/24 snat to 10.2.0.7", ("10.2.0.7", "10.2.0.2", 53),
    ),
    "masqueraded": (
        "nat: -A POSTROUTING -o out0 -j MASQUERADE", 'nat postrouting: oifname "out0" masquerade', ("10.2.0.1", "10.2.0.2", 53),
    ),
    "masquerade for what is marked, as kube-proxy does": (
        ("nat: -N KUBE-MARK-MASQ; -N KUBE-POSTROUTING; -A PREROUTING -p udp -j KUBE-MARK-MASQ; -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000;"
        " -A POSTROUTING -j KUBE-POSTROUTING; -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN;"
        " -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000; -A KUBE-POSTROUTING -j MASQUERADE"),
        ("nat prerouting: meta l4proto udp meta mark set meta mark or 0x4000 | nat postrouting: meta mark & 0x4000 != 0x4000 return;"
        " meta mark set meta mark xor 0x4000; masquerade"), ("10.2.0.1", "10.2.0.2", 53),
    ),
    "not tracked, not translated": (
        ("raw: -A PREROUTING -p udp -j CT --notrack | nat: -A POSTROUTING -j MASQUERADE"
        " | filter: -A FORWARD -m conntrack ! --ctstate UNTRACKED -j DROP"),
        "raw prerouting: meta l4proto udp notrack | nat postrouting: masquerade | forward: ct state != untracked drop", AS_SENT,
    ),
    "no connection before it is tracked": (
        "raw: -A PREROUTING -m conntrack --ctstate NEW -j DROP", "raw prerouting: ct state new drop", AS_SENT,
    ),
}  # fmt: skip
NOT_AS_NFT = ("NETMAP", "--ctstate DNAT", "--set-xmark")
"""Extensions that nft prints without what matters: the walk says that it does not understand them."""
HOOKS = {
    "raw prerouting": "-300", "prerouting": "-150", "forward": "0", "nat prerouting": "-100", "nat postrouting": "100",
    "output": "0", "nat output": "-100",
}  # fmt: skip


def restore(text: str) -> str:
    """The input of iptables-restore: ``table: commands; … | table: …``."""
    found = []
    for part in text.split(" | "):
        table, _, commands = part.partition(": ")
        of = commands.split("; ")
        chains = [f":{line[3:]} - [0:0]" for line in of if line.startswith("-N ")]
        policies = [f":{line[3:]} [0:0]" for line in of if line.startswith("-P ")]
        rules = [line for line in of if line.startswith("-A ")]
        found += [f"*{table}", *chains, *policies, *rules, "COMMIT"]
    return "\n".join(found) + "\n"


def nft_commands(text: str) -> str:
    """Return commands of nft: ``[nat|raw] hook [policy drop]: rules; … | chain: …``."""
    found = ["add table ip t"]
    for part in text.split(" | "):
        head, _, rules = part.partition(":")
        hook = head.removesuffix(" policy drop")
        name, policy = hook.replace(" ", "_"), "drop" if head != hook else "accept"
        kind = "nat" if hook.startswith("nat ") else "filter"
        base = f" {{ type {kind} hook {hook.split()[-1]} priority {HOOKS[hook]}; policy {policy}; }}" if hook in HOOKS else ""
        found.append(f"add chain ip t {name}{base}")
        found += [f"add rule ip t {name} {rule.strip()}" for rule in rules.split("; ") if rule.strip()]
    return "\n".join(found) + "\n"


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("language", [LEGACY, OF_NFT, NFT])
def test_rule_does_what_was_predicted(world: World, language: str, name: str) -> None:
    """The walk's packet and the real one; the doctor's verdict, which may be unknown, and is never wrong."""
    iptables, nft, expected = ACTIONS[name]
    world.flush()
    command, text = ("nft -f -", nft_commands(nft)) if language == NFT else (f"{language}-restore", restore(iptables))
    world.host.run(command, stdin=text)
    verdict = world.in_router(
        lambda: described.verdict(
            read()[0], described.Packet(CLIENT[4], SERVER[4], "udp", 53, "in0", "out0"), "prerouting", "forward", "postrouting"
        )
    )
    sport, arrived = world.send("udp")
    end, predicted, doubts = world.walk(4, sport, "client")
    assert [(str(of.source), str(of.destination), of.port) for of in arrived] == ([expected] if expected else [])
    if not (doubts and language == OF_NFT and any(word in iptables for word in NOT_AS_NFT)):
        assert (predicted, doubts) == (arrived, []), end
    is_translated = expected is not None and expected[0] != AS_SENT[0]
    assert verdict.kind == (described.TRANSLATE if is_translated else "accept" if expected else "drop"), verdict


SENT: dict[str, tuple[str, str, tuple[str, str, int] | None]] = {
    "dropped": ("filter: -A OUTPUT -p udp ! -o in+ -j DROP", 'output: oifname != "in*" meta l4proto udp drop', None),
    "translated": (
        "nat: -A OUTPUT -d 10.2.0.2 -p udp -j DNAT --to-destination 10.2.0.3:5353 | filter: -A OUTPUT -d 10.2.0.2 -j DROP",
        "nat output: ip daddr 10.2.0.2 meta l4proto udp dnat to 10.2.0.3:5353 | output: ip daddr 10.2.0.2 drop",
        ("10.2.0.1", "10.2.0.3", 5353),
    ),
    "source translated": (
        "nat: -A POSTROUTING -s 10.2.0.1 -j SNAT --to-source 10.2.0.7",
        "nat postrouting: ip saddr 10.2.0.1 snat to 10.2.0.7",
        ("10.2.0.7", "10.2.0.2", 53),
    ),
}


@pytest.mark.parametrize("name", SENT)
@pytest.mark.parametrize("language", [LEGACY, OF_NFT, NFT])
def test_rule_for_what_the_host_sends(world: World, language: str, name: str) -> None:
    iptables, nft, expected = SENT[name]
    world.flush()
    command, text = ("nft -f -", nft_commands(nft)) if language == NFT else (f"{language}-restore", restore(iptables))
    world.host.run(command, stdin=text)
    sport, arrived = world.send("udp", place="router")
    assert [(str(of.source), str(of.destination), of.port) for of in arrived] == ([expected] if expected else [])
    end, predicted, doubts = world.walk(4, sport, "router")
    assert (predicted, doubts) == (arrived, []), end
    packet = described.Packet(SOURCES["router"][4], SERVER[4], "udp", 53, "", "out0")
    kind = world.in_router(lambda: described.verdict(read()[0], packet, "output", "postrouting")).kind
    assert kind == ("drop" if expected is None else described.TRANSLATE if expected[0] != "10.2.0.1" else "accept")


@pytest.mark.parametrize("flavour", ["legacy", "nft"])
def test_rules_of_ipv6(world: World, flavour: str) -> None:
    world.flush()
    world.has_ipv6_rules = True
    tool = f"ip6tables-{flavour}"
    world.host.run(f"{tool} -N A; {tool} -A FORWARD ! -s fd09::/16 -j A; {tool} -A A -p udp --dport 53 -j REJECT")
    for port, expected in ((53, []), (54, [54])):
        _, arrived = world.send("udp", 6, port)
        assert [of.port for of in arrived] == expected
        packet = described.Packet(CLIENT[6], SERVER[6], "udp", port, "in0", "out0")
        verdict = world.in_router(lambda packet=packet: described.verdict(read()[0], packet, "prerouting", "forward"))
        assert verdict.kind == ("accept" if expected else "drop")
    end, predicted, doubts = world.walk(6, 4000, "client")
    assert (predicted, doubts) == ([], [])
    assert end == f"rejected by {'nftables' if flavour == 'nft' else tool} in forward"
