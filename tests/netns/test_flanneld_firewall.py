"""flanneld's rules in a real kernel: packets, what others do to the rules, and what earlier flannels left."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_network
from typing import Any, TypeVar

import pytest

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.flanneld.firewall import Firewall
from cni_py.flanneld.firewall.watch import LONGEST_PAUSE_SECONDS, SETTLE_SECONDS
from cni_py.flanneld.lease import Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.options import Options
from cni_py.node import log as klog
from cni_py.node.stop import Stop
from cni_py.packetfilter import forward, libnftables
from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter.iptables import Iptables
from support.namespaces import Host, Sandbox
from support.waiting import until

pytestmark = pytest.mark.netns
T = TypeVar("T")

RESYNC_SECONDS, HEARD_SECONDS = 60, 20.0
"""Seconds between full checks; a rule that is restored long before was restored because of a notification."""
LEGACY_SECONDS = 0.3
"""Seconds between checks of legacy iptables, which has no notifications."""
IDLE_SECONDS, IDLE_LOOKS = 0.3, 4
OURS = Subnets(ip_network("10.244.91.0/24"), ip_network("fd00:1:0:5b::/64"))
CONFIG = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/48", "Backend": {"Type": "vxlan"}}
BY_IPTABLES = {**CONFIG, "EnableNFTables": False}
GO_RULES = """
iptables -t nat -N FLANNEL-POSTRTG
iptables -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s POD -d NET -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s NET -d POD -j RETURN
iptables -t nat -A FLANNEL-POSTRTG ! -s NET -d POD -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s NET ! -d MULTICAST -j MASQUERADE --random-fully
iptables -t nat -A FLANNEL-POSTRTG ! -s NET -d NET -j MASQUERADE --random-fully
iptables -N FLANNEL-FWD
iptables -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
iptables -A FLANNEL-FWD -s NET -j ACCEPT
iptables -A FLANNEL-FWD -d NET -j ACCEPT
"""
GO_V4 = GO_RULES.replace("POD", "10.244.91.0/24").replace("NET", "10.244.0.0/16").replace("MULTICAST", "224.0.0.0/4")
GO_V6 = (
    GO_RULES.replace("POD", "fd00:1:0:5b::/64")
    .replace("NET", "fd00:1::/48")
    .replace("MULTICAST", "ff00::/8")
    .replace("iptables", "ip6tables")
)


@pytest.fixture
def host() -> Iterator[Host]:
    """A host without the installed plugins, which these tests do not need."""
    with Host() as made:
        yield made


def firewall(config: dict[str, Any] = CONFIG, subnets: Subnets = OURS, **options: Any) -> Firewall:
    chosen = {"ip_masq": True, "iptables_resync": RESYNC_SECONDS, **options}
    return Firewall(Options(**chosen), NetworkConfig.parse(json.dumps(config)), subnets)


def captured_log() -> list[str]:
    """Return a list, in the host, to which each log line is added, with its level before it."""
    log: list[str] = []
    for name in ("info", "warning", "error"):
        setattr(klog, name, lambda text, level=name: log.append(f"{level[0].upper()} {text}"))
    return log


def ensure(config: dict[str, Any] = CONFIG, subnets: Subnets = OURS, **options: Any) -> list[str]:
    """Do, in the host, all that one start of flanneld does. Returns: the lines of its log."""
    log = captured_log()
    firewall(config, subnets, **options).ensure()
    return log


def sh(script: str) -> str:
    """Run a script in the host, from a function that :meth:`Host.do` runs there."""
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


def state(host: Host) -> str:
    """Return all rules of both kinds but for counters, without the tables that are empty."""
    text = host.run(
        "for t in nat filter; do for i in iptables ip6tables; do for f in nft legacy; do echo $i-$f $t; $i-$f -t $t -S; done; done; done 2>/dev/null; "
        "nft list tables"
    )
    return "\n".join(line for line in text.splitlines() if not line.startswith(("table ip ", "table ip6 ")))


# --- packets ----------------------------------------------------------------------------------------------------------

ADDRESSES = {  # of the sandbox, and of the host on the link to it
    "pod": {4: ("10.244.91.2/24", "10.244.91.1/24"), 6: ("fd00:1:0:5b::2/64", "fd00:1:0:5b::1/64")},
    "pod-b": {4: ("10.244.92.2/24", "10.244.92.1/24"), 6: ("fd00:1:0:5c::2/64", "fd00:1:0:5c::1/64")},
    "pod-c": {4: ("10.244.93.2/24", "10.244.93.1/24"), 6: ("fd00:1:0:5d::2/64", "fd00:1:0:5d::1/64")},
    "outside": {4: ("192.0.2.2/24", "192.0.2.1/24"), 6: ("2001:db8::2/64", "2001:db8::1/64")},
    "beyond": {4: ("198.51.100.2/24", "198.51.100.1/24"), 6: ("2001:db8:1::2/64", "2001:db8:1::1/64")},
}


def ip(name: str, version: int, *, of_host: bool = False) -> str:
    return ADDRESSES[name][version][of_host].partition("/")[0]


def network_of(host: Host) -> dict[str, Sandbox]:
    """The host as a router between a pod of its own, pods of two other nodes, and two hosts of other networks."""
    boxes = {}
    for at, (name, addresses) in enumerate(ADDRESSES.items()):
        boxes[name] = host.netns(name)
        host.run(f"ip link add to{at} type veth peer name eth0 netns {name}; ip link set to{at} up")
        inside = "ip link set lo up; ip link set eth0 up; "
        for theirs, hosts in addresses.values():
            host.run(f"ip addr add {hosts} dev to{at} nodad")
            inside += f"ip addr add {theirs} dev eth0 nodad; ip route add default via {hosts.partition('/')[0]}; "
        host.run(inside, boxes[name])
    host.run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
    return boxes


def send(source: str, destination: str, port: int, mark: int = 0, multicast_link: str = "") -> None:
    """A datagram; to a group out of the link."""
    kind = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        if mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if multicast_link and kind == socket.AF_INET6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(multicast_link))
        elif multicast_link:
            number = socket.if_nametoindex(multicast_link).to_bytes(4, "little")
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + number)
        sender.sendto(b"hello", (destination, port))


class Receiver:
    """A socket in a sandbox that says where a datagram came from."""

    SCRIPT = """
import socket, sys
group = sys.argv[1]
kind = socket.AF_INET6 if ":" in group else socket.AF_INET
s = socket.socket(kind, socket.SOCK_DGRAM)
s.bind(("::" if ":" in group else "0.0.0.0", 7000))
index = socket.if_nametoindex("eth0").to_bytes(4, "little")
if group.startswith("ff"):
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(kind, group) + index)
elif group.startswith("239"):
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + bytes(4) + index)
print("ready", flush=True)
s.settimeout(5)
try:
    print(s.recvfrom(100)[1][0], flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""

    def __init__(self, host: Host, sandbox: Sandbox, group: str) -> None:
        command = host.command("python3", "-IS", "-c", self.SCRIPT, group, sandbox=sandbox)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def source(self) -> str:
        return self.process.communicate(timeout=20)[0].strip()


def what_leaves(host: Host, boxes: dict[str, Sandbox], version: int) -> dict[str, str]:
    """Return sender, receiver and the source address that arrives, in words."""
    group = "239.1.1.1" if version == 4 else "ff15::1"
    link = f"to{list(ADDRESSES).index('outside')}"
    cases: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # name: sender, receiver, destination, and what is special
        f"{sender} to {receiver}": (sender, receiver, ip(receiver, version), {})
        for sender in ADDRESSES
        for receiver in ADDRESSES
        if sender != receiver
    }
    cases["host as pod's gateway to outside"] = ("host:pod", "outside", ip("outside", version), {})
    cases["host as pod's gateway to outside, marked"] = ("host:pod", "outside", ip("outside", version), {"mark": 0x4000})
    cases["host as pod's gateway to outside, marked too"] = ("host:pod", "outside", ip("outside", version), {"mark": 0xC001})
    cases["host as pod's gateway to outside, other mark"] = ("host:pod", "outside", ip("outside", version), {"mark": 0x8000})
    cases["host as pod's gateway to a group"] = ("host:pod", "outside", group, {"multicast_link": link})
    cases["host's own address to pod"] = ("host:outside", "pod", ip("pod", version), {})
    cases["host's own address to pod-b"] = ("host:beyond", "pod-b", ip("pod-b", version), {})
    found = {}
    for name, (sender, receiver, destination, special) in cases.items():
        of_host, _, on_host = sender.partition(":")
        own = ip(on_host or of_host, version, of_host=bool(on_host))
        waiting = Receiver(host, boxes[receiver], destination)
        arguments = (own, destination, 7000, special.get("mark", 0), special.get("multicast_link", ""))
        host.do(send, *arguments, sandbox=None if on_host else boxes[of_host])
        arrived = waiting.source()
        found[name] = {own: "its own", ip(receiver, version, of_host=True): "masqueraded"}.get(arrived, arrived)
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_the_same_packets_are_masqueraded_as_by_gos_rules(host: Host, version: int) -> None:
    boxes = network_of(host)
    host.run(GO_V4 + GO_V6)
    by_go = what_leaves(host, boxes, version)
    host.do(ensure)
    assert "FLANNEL-POSTRTG" not in host.run("iptables -t nat -S; ip6tables -t nat -S")
    host.run("conntrack -F 2>/dev/null || true")
    by_nftables = what_leaves(host, boxes, version)
    host.do(ensure, BY_IPTABLES)
    assert "flanneld" not in host.run("nft list tables")
    by_iptables = what_leaves(host, boxes, version)
    assert by_nftables == by_go
    assert by_iptables == by_go
    assert by_go["pod to outside"] == by_go["pod-b to outside"] == "masqueraded"
    assert by_go["pod to pod-b"] == by_go["pod-b to pod"] == by_go["outside to pod"] == "its own"
    assert by_go["outside to pod-b"] == by_go["pod-b to pod-c"] == "masqueraded"
    assert by_go["outside to beyond"] == "its own"
    assert by_go["host as pod's gateway to outside"] == by_go["host as pod's gateway to outside, other mark"] == "masqueraded"
    assert by_go["host as pod's gateway to outside, marked"] == "its own"
    assert by_go["host as pod's gateway to outside, marked too"] == "its own"
    assert by_go["host as pod's gateway to a group"] == "its own"
    assert by_go["host's own address to pod"] == "its own"


def reaches(host: Host, box: Sandbox, destination: str) -> bool:
    return host.execute(["ping", "-c1", "-W1", destination], sandbox=box).returncode == 0


DOCKER = """
iptables-X -P FORWARD DROP
iptables-X -N DOCKER-USER; iptables-X -A DOCKER-USER -j RETURN; iptables-X -I FORWARD -j DOCKER-USER
iptables-X -N STAGE-2; iptables-X -A STAGE-2 -o docker0 -j DROP; iptables-X -A FORWARD -i docker0 ! -o docker0 -j STAGE-2
"""
REJECTS = "iptables-X -A FORWARD -j REJECT --reject-with icmp-host-prohibited"


@pytest.mark.parametrize("config", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
@pytest.mark.parametrize("flavour", ["nft", "legacy"])
@pytest.mark.parametrize("rules_of_others", [DOCKER, REJECTS], ids=["policy", "rule"])
def test_who_drops_in_forward_is_overruled_there(
    host: Host, rules_of_others: str, flavour: str, config: dict[str, Any]
) -> None:
    boxes = network_of(host)
    host.run(rules_of_others.replace("tables-X ", f"tables-{flavour} "))
    assert not reaches(host, boxes["pod"], ip("outside", 4))
    log = host.do(ensure, config)
    assert reaches(host, boxes["pod"], ip("outside", 4))
    assert reaches(host, boxes["pod-b"], ip("pod-c", 4))
    assert not reaches(host, boxes["outside"], ip("beyond", 4))
    lines = [line for line in host.run(f"iptables-{flavour} -S FORWARD").splitlines() if line.startswith("-A")]
    assert lines[0].endswith("-j CNI-PY-FLANNEL-FWD")
    assert "I Changing default FORWARD chain policy to ACCEPT" in log
    assert any(f"iptables-{flavour}: FORWARD drops packets: it" in line for line in log)
    assert host.do(partial(ensure, config, ip_masq=False))
    assert [line for line in host.run(f"iptables-{flavour} -S FORWARD").splitlines() if line.startswith("-A")] == lines


def test_ipv6_forward_is_its_own(host: Host) -> None:
    boxes = network_of(host)
    host.run("ip6tables-nft -P FORWARD DROP")
    assert not reaches(host, boxes["pod"], ip("outside", 6))
    log = host.do(ensure)
    assert reaches(host, boxes["pod"], ip("outside", 6))
    assert any(line.startswith("I ip6tables-nft: FORWARD drops packets: ") for line in log)
    assert not any(line.startswith("I iptables-nft: FORWARD drops packets: ") for line in log)
    assert "FLANNEL" not in host.run("iptables-nft -S")


def test_nothing_goes_to_forward_where_it_does_not_drop(host: Host) -> None:
    host.run("iptables-nft -A FORWARD -j ACCEPT; iptables-legacy -A FORWARD -j ACCEPT")
    log = host.do(ensure)
    assert not any("FORWARD drops" in line for line in log)
    assert "FLANNEL" not in host.run("iptables-nft -S; iptables-legacy -S")


def test_a_host_without_iptables_tables_gets_none(host: Host) -> None:
    host.do(ensure)
    assert host.run("nft list tables").split("\n") == ["table inet cni_py_flanneld", ""]
    assert host.run("cat /proc/thread-self/net/ip_tables_names") == ""


def test_network_policies_stay_in_front(host: Host) -> None:
    host.run(
        "iptables-nft -N cali-FORWARD; iptables-nft -A cali-FORWARD -s 10.244.91.66 -j DROP; iptables-nft -A FORWARD -j cali-FORWARD;"
        "iptables-nft -P FORWARD DROP"
    )
    host.do(ensure)
    targets = [rules.target(line) for line in host.run("iptables-nft -S FORWARD").splitlines() if line.startswith("-A")]
    assert targets == ["cali-FORWARD", "CNI-PY-FLANNEL-FWD"]


def test_chain_of_others_that_cannot_be_overruled_is_named(host: Host) -> None:
    host.run(
        "nft 'table inet fw { chain forward { type filter hook forward priority 10; policy drop; }; }';"
        "nft 'table ip fw2 { chain last { type filter hook forward priority 10; ct state invalid drop; counter reject; }; }';"
        "nft 'table ip fine { chain f { type filter hook forward priority 10; ct state invalid drop; }; }'"
    )
    said = [line for line in host.do(ensure) if line.startswith("W")]
    assert len(said) == 1
    assert '"inet fw forward" (its policy is drop), "ip fw2 last" (its last rule is reject)' in said[0]
    assert "10.244.0.0/16 and fd00:1::/48" in said[0]
    assert not any(line.startswith("W") for line in host.do(partial(ensure, iptables_forward_rules=False)))


# --- keeping ----------------------------------------------------------------------------------------------------------


class Looks(list[bool]):
    """The result of each check of a keeper; none is made while ``paused`` is held."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = threading.Lock()


@contextmanager
def kept(keeper: Firewall) -> Iterator[Looks]:
    """Run the keeper in the host until its first check. Yields: the result of each check."""
    looks = Looks()
    look, stop = keeper.repair, Stop()

    def noted(culprit: str = "") -> bool:
        with looks.paused:
            looks.append(look(culprit))
        return looks[-1]

    keeper.repair = noted  # type: ignore[method-assign]
    thread = threading.Thread(target=keeper.run, args=(stop,))
    thread.start()
    try:
        until(lambda: looks, "the first look")
        yield looks
    finally:
        stop.set()
        thread.join()


def seconds_until_back(
    config: dict[str, Any], prepare: str, mutations: list[str], seen: str, resync_seconds: float = RESYNC_SECONDS
) -> tuple[list[float], list[str]]:
    """Return the time, in the host, after each of the mutations until ``seen`` prints what it printed before; and the log."""
    log = captured_log()
    sh(prepare)
    keeper = firewall(config)
    keeper.resync_seconds = resync_seconds  # type: ignore[assignment]
    keeper.ensure()
    times = []
    with kept(keeper) as looks:
        wanted = sh(seen)
        for mutation in mutations:
            with looks.paused:  # else it may be quicker than the next command
                begun = len(looks)
                sh(mutation)
            times.append(until(lambda: sh(seen) == wanted, f"restored: {mutation}"))
            until(lambda begun=begun: len(looks) > begun and not looks[-1], "the look after the repair")  # type: ignore[misc]
    return times, log


TABLE, CHAIN = rules.TABLE, rules.CHAIN
SHOWN = f"nft list table {TABLE} 2>&1 || true"
NFT_MUTATIONS = [
    f"nft delete table {TABLE}",
    "nft flush ruleset",
    f"nft flush chain {CHAIN}",
    f"nft delete rule {CHAIN} handle 4",
    f"nft insert rule {CHAIN} accept",
    f"nft add rule {CHAIN} ip saddr 10.244.0.0/16 masquerade",
    f"nft replace rule {CHAIN} handle 3 accept",
    f"nft 'delete rule {CHAIN} handle 2; add rule {CHAIN} meta mark & 0x4000 == 0x4000 return'",
    f"""nft 'replace rule {CHAIN} handle 2 ip daddr 1.2.3.4 return comment "marked: kube-proxy masquerades it"'""",
    f"nft 'chain {CHAIN} {{ policy drop; }}'",
    f"nft 'table {TABLE} {{ flags dormant; }}'",
    f"nft add set {TABLE} s '{{ type ipv4_addr; }}'",
    f"nft 'delete table {TABLE}; add table {TABLE}'",
]


def not_in_time(times: list[float], mutations: list[str], limit_seconds: float = HEARD_SECONDS) -> dict[str, float]:
    """The mutations that were not undone in time."""
    assert len(times) == len(mutations)
    return {mutation: seconds for mutation, seconds in zip(mutations, times, strict=True) if seconds >= limit_seconds}


def test_nftables_rules_are_put_back_at_once(host: Host) -> None:
    times, log = host.do(seconds_until_back, CONFIG, "true", NFT_MUTATIONS, SHOWN)
    assert not not_in_time(times, NFT_MUTATIONS)
    said = [line for line in log if f"nftables: table {TABLE} was changed by nft (process " in line]
    assert len(said) == len(NFT_MUTATIONS)


FWD = rules.FORWARD_CHAIN
FORWARD_MUTATIONS = [
    "iptables-X -F FORWARD",
    f"iptables-X -F {FWD}",
    f"iptables-X -D {FWD} 1",
    f"iptables-X -D {FWD} 1; iptables-X -A {FWD} -s 10.244.0.0/16 -j ACCEPT",
    "iptables-X -I FORWARD -i lo -j DROP; iptables-X -D FORWARD 1",
    f"iptables-X -D FORWARD 1; iptables-X -A FORWARD -j REJECT; iptables-X -A FORWARD -m comment --comment 'cni-py flanneld' -j {FWD}",
    f"iptables-X -F; iptables-X -X {FWD}",
    f"iptables-X -R {FWD} 1 -s 10.244.0.0/16 -j DROP",
]
DROPPING = "iptables-X -P FORWARD DROP; iptables-X -A FORWARD -j REJECT"


def shown_by(flavour: str) -> str:
    return f"iptables-{flavour} -S FORWARD | grep -c {FWD} || true; iptables-{flavour} -S {FWD} 2>&1 || true; iptables-{flavour} -S FORWARD | sed -n 2p"


@pytest.mark.parametrize("config", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
def test_accepts_are_put_back_at_once(host: Host, config: dict[str, Any]) -> None:
    mutations = [mutation.replace("tables-X ", "tables-nft ") for mutation in FORWARD_MUTATIONS]
    times, log = host.do(seconds_until_back, config, DROPPING.replace("tables-X ", "tables-nft "), mutations, shown_by("nft"))
    assert not not_in_time(times, mutations)
    said = [
        line for line in log if "Some iptables rules are missing; deleting and recreating rules (changed by iptables" in line
    ]
    assert len(said) == len(mutations) - 1  # a third-party rule that came and went is no reason


def test_accepts_in_legacy_iptables_are_put_back(host: Host) -> None:
    mutations = [mutation.replace("tables-X ", "tables-legacy -w ") for mutation in FORWARD_MUTATIONS]
    prepare = DROPPING.replace("tables-X ", "tables-legacy ")
    times, _ = host.do(seconds_until_back, CONFIG, prepare, mutations, shown_by("legacy"), LEGACY_SECONDS)
    assert not not_in_time(times, mutations)


def test_a_rule_in_front_of_ours_goes_behind(host: Host) -> None:
    mutation = "iptables-nft -I FORWARD -s 10.244.0.0/16 -j DROP"
    times, _ = host.do(seconds_until_back, CONFIG, DROPPING.replace("tables-X ", "tables-nft "), [mutation], shown_by("nft"))
    assert not not_in_time(times, [mutation])


def test_forward_that_begins_to_drop_is_heard_of(host: Host) -> None:
    """Docker starts after flanneld."""
    prepare = "iptables-nft -P FORWARD ACCEPT; iptables-nft -N T; iptables-nft -A T -j RETURN; iptables-nft -A FORWARD -j T"

    def later(mutation: str) -> tuple[float, list[str]]:
        sh(prepare)
        log = captured_log()
        keeper = firewall()
        keeper.ensure()
        with kept(keeper):
            assert FWD not in sh("iptables-nft -S")
            sh(mutation)
            return until(lambda: FWD in sh("iptables-nft -S FORWARD"), "it is accepted"), log

    for mutation in ("iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT; iptables-nft -A T -s 10.0.0.0/8 -j DROP"):
        seconds, log = host.do(later, mutation)
        assert seconds < HEARD_SECONDS
        assert any("iptables-nft: FORWARD drops packets: " in line for line in log)
        host.run("iptables-nft -F; iptables-nft -X; iptables-nft -P FORWARD ACCEPT")


MASQ = rules.MASQUERADE_CHAIN
MASQ_MUTATIONS = [
    "iptables-X -t nat -F",
    f"iptables-X -t nat -D {MASQ} 1",
    f"iptables-X -t nat -D {MASQ} 2; iptables-X -t nat -A {MASQ} -d 10.244.91.0/24 -j RETURN",
    "iptables-X -t nat -F POSTROUTING",
    f"iptables-X -t nat -F; iptables-X -t nat -X {MASQ}",
    "ip6tables-X -t nat -F",
    f"iptables-X -t nat -R {MASQ} 5 -s 10.244.0.0/16 -j ACCEPT",
]


@pytest.mark.parametrize(("flavour", "resync_seconds"), [("nft", RESYNC_SECONDS), ("legacy", LEGACY_SECONDS)])
def test_iptables_masquerade_is_put_back(host: Host, flavour: str, resync_seconds: float) -> None:
    """Check iptables-nft at once, on its notification; legacy iptables, which has none, at its next check."""
    mutations = [mutation.replace("tables-X ", f"tables-{flavour} -w ") for mutation in MASQ_MUTATIONS]
    shown = f"iptables-{flavour} -w -t nat -S; ip6tables-{flavour} -w -t nat -S"
    times, _ = host.do(of_flavour, flavour, seconds_until_back, BY_IPTABLES, "true", mutations, shown, resync_seconds)
    assert not not_in_time(times, mutations)


def of_flavour(flavour: str, do: Callable[..., T], *arguments: Any) -> T:
    """Do that in the host, where iptables is of this flavour."""
    forward.default_tool = lambda version: Iptables(version, f"-{flavour}")  # type: ignore[assignment]
    return do(*arguments)


def generation() -> str:
    """A number that every change to nftables makes greater."""
    from cni_py.netlink import netfilter
    from cni_py.netlink.attributes import encode
    from cni_py.netlink.constants import NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN

    return netfilter.get(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, encode("nft_gen_msg", {})).hex()


def idle_after_repair(config: dict[str, Any]) -> tuple[bool, float, list[str]]:
    """Return, after a repair in the host, whether the next checks changed nothing, how long they took, and the log of that time."""
    sh("iptables-nft -P FORWARD DROP")
    log = captured_log()
    keeper = firewall(config)
    keeper.resync_seconds = IDLE_SECONDS  # type: ignore[assignment]
    keeper.ensure()
    with kept(keeper) as looks:
        sh("nft flush ruleset; iptables-nft -P FORWARD DROP")
        until(lambda: any(looks), "the repair")
        seen = len(looks)
        until(lambda: len(looks) >= seen + 3, "our own changes are heard of")
        before, lines, seen = generation(), len(log), len(looks)
        seconds = until(lambda: len(looks) >= seen + IDLE_LOOKS, "looks when it is time")
        return before == generation(), seconds, log[lines:]


@pytest.mark.parametrize("config", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
def test_own_changes_make_no_loop(host: Host, config: dict[str, Any]) -> None:
    unchanged, seconds, lines = host.do(idle_after_repair, config)
    assert unchanged
    assert lines == []
    assert seconds > (IDLE_LOOKS - 1) * IDLE_SECONDS, "it looks when it is time, not because of itself"


def war(repairs: int) -> float:
    """Return how long so many repairs take, in a host where another process deletes the rules whenever they exist."""
    log = captured_log()
    keeper = firewall()
    keeper.ensure()

    def remove() -> bool:
        with libnftables.borrowed() as handle:
            if handle.read(f"list table {TABLE}") is not None:
                handle.run(f"delete table {TABLE}")
        return len(log) >= repairs

    with kept(keeper):
        log.clear()
        return until(remove, f"{repairs} repairs")


def test_process_that_deletes_them_each_time_causes_no_busy_loop(host: Host) -> None:
    """The pause before a repair doubles each time."""
    pauses = [min(SETTLE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS) for number in range(6)]
    assert host.do(war, len(pauses)) > sum(pauses)


def test_pods_that_come_and_go_cost_nothing(host: Host) -> None:
    def looks() -> int:
        sh("nft 'table inet cni_py { set s { type ipv4_addr; }; }'")
        keeper = firewall()
        keeper.ensure()
        with kept(keeper) as looks:
            for number in range(1, 200):
                with libnftables.borrowed() as handle:
                    handle.run(f"add element inet cni_py s {{ 10.0.0.{number} }}")
            sh(f"nft delete table {TABLE}")
            until(lambda: any(looks), "what came after them is heard of")
            return looks.index(True)

    assert host.do(looks) == 1, "the first look alone"


# --- the rules of before -----------------------------------------------------------------------------------------------

GO_NFT = """
nft add table ip flannel-ipv4 '{ comment "rules for flannel-ipv4" ; }'
nft add table ip6 flannel-ipv6 '{ comment "rules for flannel-ipv6" ; }'
nft add chain ip flannel-ipv4 postrtg '{ type nat hook postrouting priority 100 ; }'
nft add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
"""


@pytest.mark.parametrize("config", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
def test_what_go_flannel_left_is_deleted(host: Host, config: dict[str, Any]) -> None:
    host.do(ensure, config)
    alone = state(host)
    host.do(Firewall.cleanup)
    legacy = (GO_V4 + GO_V6).replace("tables", "tables-legacy")
    host.run(GO_V4 + GO_V6 + legacy + GO_NFT)
    log = host.do(ensure, config)
    assert "I Cleaning-up iptables rules..." in log
    assert not host.run(
        "nft list ruleset; iptables-save; iptables-legacy-save; ip6tables-legacy-save | grep FLANNEL- || true"
    ).count("-POSTRTG")
    assert "flannel-ipv" not in host.run("nft list tables")
    assert "FLANNEL-FWD" not in host.run("iptables-legacy -S; ip6tables-legacy -S; iptables -S").replace(FWD, "")
    if config is CONFIG:
        assert state(host) == alone
    assert "I Cleaning-up iptables rules..." not in host.do(ensure, config)


@pytest.mark.parametrize("earlier", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
@pytest.mark.parametrize("later", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
def test_rules_of_an_earlier_configuration_are_gone(host: Host, earlier: dict[str, Any], later: dict[str, Any]) -> None:
    host.do(ensure, later)
    wanted = state(host), host.run(f"nft list table {TABLE} || true")
    host.do(Firewall.cleanup)
    host.do(ensure, earlier | {"Network": "10.9.0.0/16"}, Subnets(ip_network("10.9.3.0/24"), OURS.ipv6))
    host.do(ensure, later)
    assert (state(host), host.run(f"nft list table {TABLE} || true")) == wanted


def test_without_ip_masq_nothing_is_masqueraded(host: Host) -> None:
    host.do(ensure, BY_IPTABLES)
    host.do(ensure, CONFIG)
    host.do(partial(ensure, CONFIG, ip_masq=False))
    assert TABLE not in host.run("nft list tables")
    assert MASQ not in host.run("iptables -t nat -S; ip6tables -t nat -S")


@pytest.mark.parametrize("config", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
@pytest.mark.parametrize(("value", "ipv4", "ipv6"), [("ipv4", True, False), ("ipv6", False, True), (True, True, True)])
def test_masquerade_of_one_family(host: Host, config: dict[str, Any], value: bool | str, ipv4: bool, ipv6: bool) -> None:
    """Nor where both were masqueraded before; forwarding is accepted for both."""
    host.run("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    host.do(ensure, config)
    host.do(partial(ensure, config, ip_masq=value))
    by_nft = host.run(f"nft list table {TABLE} 2>/dev/null || true")
    by_iptables = [MASQ in host.run(f"{tool} -t nat -S") for tool in ("iptables", "ip6tables")]
    if config is CONFIG:
        assert [str(OURS.ipv4) in by_nft, str(OURS.ipv6) in by_nft, *by_iptables] == [ipv4, ipv6, False, False]
    else:
        assert [by_nft, *by_iptables] == ["", ipv4, ipv6]
    assert all(FWD in host.run(f"{tool} -S FORWARD") for tool in ("iptables", "ip6tables"))


def test_one_family_alone(host: Host) -> None:
    host.do(ensure, BY_IPTABLES)
    only4 = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
    host.do(ensure, only4, Subnets(OURS.ipv4))
    assert "ip6" not in host.run(f"nft list table {TABLE}")
    assert MASQ not in host.run("iptables -t nat -S; ip6tables -t nat -S")
    only6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:1::/48", "Backend": {"Type": "vxlan"}}
    host.do(ensure, only6, Subnets(None, OURS.ipv6))
    assert "ip saddr" not in host.run(f"nft list table {TABLE}")


@pytest.mark.parametrize("config", [CONFIG, BY_IPTABLES], ids=["nftables", "iptables"])
def test_cleanup_leaves_nothing(host: Host, config: dict[str, Any]) -> None:
    host.run("iptables-legacy -P FORWARD DROP; ip6tables-nft -P FORWARD DROP; iptables-nft -t nat -A POSTROUTING -j ACCEPT")
    host.run("iptables-nft -S FORWARD; ip6tables-nft -t nat -S; iptables-legacy -t nat -S; nft add table inet other")
    before = state(host)
    host.do(ensure, config)
    assert state(host) != before
    host.do(Firewall.cleanup)
    assert state(host) == before
    host.do(Firewall.cleanup)


def test_ensure_twice_is_ensure_once(host: Host) -> None:
    host.run("iptables-nft -P FORWARD DROP")
    host.do(ensure)
    before = host.run("nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//'")
    log = host.do(ensure)
    assert host.run("nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//'") == before
    assert "I bootstrap done" not in log


# --- which kind -------------------------------------------------------------------------------------------------------


def test_log_of_both_kinds_has_gos_lines(host: Host) -> None:
    assert host.do(ensure) == [
        "I Starting flannel in nftables mode...",
        "I nftables: setting up masking rules (ipv4)",
        "I nftables: setting up masking rules (ipv6)",
        "I Changing default FORWARD chain policy to ACCEPT",
        "I IPv6: Changing default FORWARD chain policy to ACCEPT",
    ]
    assert host.do(ensure, BY_IPTABLES) == [
        "I Starting flannel in iptables mode...",
        "I Setting up masking rules",
        "I Setting up masking rules for IPv6",
        "I bootstrap done",
        "I Changing default FORWARD chain policy to ACCEPT",
        "I IPv6: Changing default FORWARD chain policy to ACCEPT",
        "I bootstrap done",
        "I bootstrap done",
        "I Cleaning-up nftables rules... (table inet cni_py_flanneld)",
    ]


def without_nftables(config: dict[str, Any]) -> list[str]:
    libnftables.works = lambda: "this kernel has no nftables"  # type: ignore[assignment]
    return ensure(config)


def test_iptables_where_nftables_does_not_work(host: Host) -> None:
    log = host.do(without_nftables, CONFIG)
    assert log[:2] == [
        "I Starting flannel in iptables mode...",
        "W falling back to iptables, nftables does not work: this kernel has no nftables",
    ]
    assert MASQ in host.run("iptables -t nat -S")


def test_nftables_that_is_asked_for_and_does_not_work_is_an_error(host: Host) -> None:
    with pytest.raises(NotAvailable, match="EnableNFTables"):
        host.do(without_nftables, {**CONFIG, "EnableNFTables": True})


def test_iptables_where_nftables_cannot_masquerade(host: Host) -> None:
    def refusing(config: dict[str, Any]) -> list[str]:
        def refuse(*_: object, **__: object) -> None:
            raise KernelRefused("no masquerade here", errno=2)

        forward.write = refuse  # type: ignore[assignment]
        return ensure(config)

    log = host.do(refusing, CONFIG)
    assert any(line.startswith("W falling back to iptables, nftables cannot masquerade") for line in log)
    assert MASQ in host.run("iptables -t nat -S")


def test_random_ports_unless_disabled(host: Host) -> None:
    for config, shown in ((CONFIG, f"nft list table {TABLE}"), (BY_IPTABLES, "iptables -t nat -S; ip6tables -t nat -S")):
        host.do(ensure, config)
        assert host.run(shown).count("random") >= 4
        host.do(partial(ensure, config, ip_masq_fully_random_disable=True))
        assert "random" not in host.run(shown)


def test_a_failure_of_the_rest_is_logged_and_tried_again(host: Host) -> None:
    """iptables was deleted, say by an update of its package: logged once, and masquerade in nftables is not concerned."""

    def broken() -> list[str]:
        log = captured_log()
        sh("iptables-nft -P FORWARD DROP")
        keeper, whole = firewall(), Iptables.listing

        def refuse(*_: object) -> list[str]:
            raise NotAvailable("iptables is broken")

        Iptables.listing = refuse  # type: ignore[method-assign]
        keeper.ensure()
        keeper.repair()
        keeper.repair()
        assert FWD not in sh("iptables-nft -S")
        Iptables.listing = whole  # type: ignore[method-assign]
        keeper.repair()
        assert FWD in sh("iptables-nft -S")
        return log

    log = host.do(broken)
    assert len([line for line in log if line.startswith("E Failed to ensure iptables rules")]) == 1
    assert len([line for line in log if line.startswith("E Failed to setup IPTables")]) == 1
    assert "I Changing default FORWARD chain policy to ACCEPT" in log
