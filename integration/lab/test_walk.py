"""`cni-py walk`: prediction and real packet agree in every lab, and the hop that breaks a path is named.

Labs are created once for each module run and shared: a walk changes nothing. Tests that break something repair it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_py.cli import main
from cni_py.lab import Lab, faults
from cni_py.lab.programs import TOOLS
from support.tools import need
from support.waiting import until

pytestmark = pytest.mark.netns
ROOT = Path(__file__).resolve().parents[2]

LABS: dict[str, dict[str, Any]] = {
    "vxlan": {"nodes": 2, "pods": 2, "ipv6": True},
    "host-gw": {"nodes": 2, "pods": 2, "ipv6": True, "backend": "host-gw"},
    "udp": {"nodes": 2, "pods": 2, "ipv6": True, "backend": "udp"},
    "direct": {"nodes": 3, "segments": 2, "ipv6": True, "backend_options": {"DirectRouting": True}},
    "guide": {"nodes": 2, "pods": 2, "flanneld_options": ["-ip-masq=false"]},
    "no-ipv4": {"nodes": 2, "ipv4": False, "ipv6": True},
}
"""``guide``: flanneld as the deployment guide starts it, without -ip-masq, so that the bridge masquerades."""
PORTS = (
    '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},'
    ' {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]}'
)
ATTACH = f"""
ip netns add web
ip -n web link set lo up
cni-py add cbr0 web --cap-args '{PORTS}'
"""


@pytest.fixture(scope="module")
def labs(bin_dir: Path) -> Iterator[Callable[[str], Lab]]:
    """A function that returns a lab by its name, created when it is first asked for; node1 has a pod `web` with host ports."""
    need(TOOLS)
    with contextlib.ExitStack() as stack:
        made: dict[str, Lab] = {}

        def get(name: str) -> Lab:
            if name not in made:
                lab = made[name] = stack.enter_context(Lab(prefix=str(bin_dir.parent.parent), **LABS[name]))
                assert lab.wait_connected(outside=True).is_complete
                lab.run("node1", ATTACH)
            return made[name]

        yield get


def walk(lab: Lab, *words: str, seconds: float = 20) -> dict[str, Any]:
    """The report. A packet that arrives ends the walk at once; only where one is lost the time counts."""
    status, output = run(lab, *words, "--json", "--seconds", str(seconds))
    report: dict[str, Any] = json.loads(output)
    assert (status == 0) == report["ok"]
    return report


def run(lab: Lab, *words: str) -> tuple[int, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main.main(["walk", *words, "--directory", lab.directory])
    return status, output.getvalue()


def pod_on(lab: Lab, node: str, number: int = 0) -> str:
    return [pod.name for pod in lab.pods.values() if pod.node == node][number]


def assert_verified(report: dict[str, Any], *, replies: bool = True) -> None:
    """Every predicted interface has seen the packet as predicted, and the reply too."""
    assert report["forward"]["outcome"] == "delivered", report["forward"]["end"]
    assert report["verified"]["result"] == "agrees", report["verified"]
    assert report["verified"]["seen"] == report["verified"]["expected"] > 0
    assert report["verified"]["extra"] == []
    if replies:
        assert report["reply"]["outcome"] == "delivered", report["reply"]["end"]
        assert report["replyVerified"]["result"] == "agrees", report["replyVerified"]
    assert [hop["text"] for hop in report["forward"]["hops"] if hop["kind"] == "unsure"] == []


def kinds(report: dict[str, Any], kind: str, way: str = "forward") -> list[dict[str, Any]]:
    return [hop for hop in report[way]["hops"] if hop["kind"] == kind]


def changes(report: dict[str, Any], way: str = "forward") -> list[str]:
    return [f"{hop['place']}: {change}" for hop in report[way]["hops"] for change in hop["changes"] if hop["kind"] == "nat"]


# --- the matrix -------------------------------------------------------------------------------------------------------

TARGETS = ("pod of the same node", "pod of another node", "outside", "gateway", "other node", "node to pod", "closed port")


CASES = [
    pytest.param(name, target, family, id=f"{name}-{target}-IPv{family}".replace(" ", "-"))
    for name, options in LABS.items()
    for family in (4, 6)
    for target in TARGETS
    if options.get("ipv4", True) or family == 6
    if options.get("ipv6") or family == 4
    if options.get("pods") == 2 or target != "pod of the same node"
]


@pytest.mark.parametrize(("name", "target", "family"), CASES)
def test_prediction_and_packet_agree(labs: Callable[[str], Lab], name: str, target: str, family: int) -> None:
    lab = labs(name)
    last = list(lab.pods.values())[-1]
    gateway = next(address for address in last.addresses if (":" in address) == (family == 6)).rpartition(
        "." if family == 4 else ":"
    )
    source, destination = {
        "pod of the same node": (pod_on(lab, "node1"), lambda: pod_on(lab, "node1", 1)),
        "pod of another node": (pod_on(lab, "node1"), lambda: last.name),
        "outside": (pod_on(lab, "node1"), lambda: "outside"),
        "gateway": (last.name, lambda: f"{gateway[0]}{gateway[1]}1"),
        "other node": (pod_on(lab, "node1"), lambda: last.node),
        "node to pod": ("node1", lambda: last.name),
        "closed port": (pod_on(lab, "node1"), lambda: f"{last.name}:81"),
    }[target]
    report = walk(lab, source, destination(), *(["-6"] if family == 6 else []))
    assert_verified(report)
    assert (":" in report["packet"]["source"]) == (family == 6)
    if target == "closed port":
        assert report["forward"]["listening"] is False
    if target == "pod of another node":
        tunnel = {"vxlan": "VXLAN 1", "guide": "VXLAN 1", "no-ipv4": "VXLAN 1", "udp": "UDP"}.get(name)
        assert [hop["packet"]["tunnel"] for hop in kinds(report, "encapsulate")] == ([tunnel] if tunnel else [])


@pytest.mark.parametrize("target", ["pod1", "127.0.0.1", "::1", "pod1:81"])
def test_to_itself(labs: Callable[[str], Lab], target: str) -> None:
    report = walk(labs("vxlan"), "pod1", target)
    assert_verified(report)
    assert {hop["place"] for hop in report["forward"]["hops"]} == {"pod1"}
    assert [hop["link"] for hop in kinds(report, "link")] == ["lo", "lo"]


@pytest.mark.parametrize("target", ["224.0.0.1", "255.255.255.255", "10.244.255.255"])
def test_no_host_is_there(labs: Callable[[str], Lab], target: str) -> None:
    """Multicast and broadcast are not followed, which is said; an address without a host ends at a hop."""
    report = walk(labs("vxlan"), "pod1", target, "--no-probe")
    assert not report["ok"]
    assert report["forward"]["outcome"] == ("broken" if target.startswith("10.") else "unfollowed")


def test_direct_routing_tunnels_only_to_nodes_behind_the_router(labs: Callable[[str], Lab]) -> None:
    lab = labs("direct")
    tunnelled = {
        node: bool(kinds(walk(lab, pod_on(lab, "node1"), pod_on(lab, node)), "encapsulate")) for node in ("node2", "node3")
    }
    assert tunnelled == {"node2": True, "node3": False}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    "source", ["outside", "another pod", "the pod itself", "a pod of another node", "the node", "another node"]
)
def test_host_port(labs: Callable[[str], Lab], source: str, protocol: str) -> None:
    lab = labs("vxlan")
    start = {
        "outside": "outside",
        "another pod": pod_on(lab, "node1"),
        "the pod itself": "web",
        "a pod of another node": pod_on(lab, "node2"),
        "the node": "node1",
        "another node": "node2",
    }[source]
    port, inner = ("8080", 80) if protocol == "tcp" else ("5353", 53)
    report = walk(lab, start, f"node1:{port}", "--protocol", protocol)
    assert_verified(report)
    assert report["forward"]["endPlace"] == "web"
    translated = [hop for hop in kinds(report, "nat") if hop["text"] == "DNAT"]
    assert [(hop["place"], hop["packet"]["destinationPort"]) for hop in translated] == [("node1", inner)]
    masqueraded = [hop["place"] for hop in kinds(report, "nat") if hop["text"] == "masquerade"]
    # its own pods would reply to one another directly; a pod of another node leaves that masqueraded
    assert masqueraded == {"another pod": ["node1"], "the pod itself": ["node1"], "a pod of another node": ["node2"]}.get(
        source, []
    )


def test_tracked_connections_that_go_elsewhere_are_shown(labs: Callable[[str], Lab]) -> None:
    """A UDP client that sends since before the port was mapped still reaches the node itself (conntrack)."""
    lab = labs("vxlan")
    entry = "-s 192.0.2.2 -d 192.168.123.11 -p udp --sport 4000 --dport 5353 -t 600 -u ASSURED"
    lab.run("node1", f"conntrack -I {entry} -r 192.168.123.11 -q 192.0.2.2 --reply-port-src 5353 --reply-port-dst 4000")
    try:
        report = walk(lab, "outside", "node1:5353", "--protocol", "udp")
    finally:
        lab.run("node1", "conntrack -D -p udp --dport 5353")
    assert_verified(report)
    shown = [hop["text"] for hop in kinds(report, "tracked")]
    assert shown == ["1 tracked connection to 192.168.123.11:5353 goes to 192.168.123.11:5353"]
    assert kinds(walk(lab, "outside", "node1:5353", "--protocol", "udp"), "tracked") == []


def test_host_port_at_a_loopback_address(labs: Callable[[str], Lab]) -> None:
    report = walk(labs("vxlan"), "node1", "127.0.0.1:8080")
    assert_verified(report)
    assert "127.0.0.1" in " ".join(changes(report))


def test_open_port_is_heard(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    server_code = "import socket; s = socket.create_server(('', 80)); print(flush=True); input()"
    enter = lab.command("node1", "ip", "netns", "exec", "web", sys.executable, "-IS", "-c", server_code)
    with subprocess.Popen(enter, env=lab.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        report = walk(lab, "outside", "node1:8080")
        server.kill()
    assert_verified(report)
    assert report["forward"]["listening"] is True


def test_guide_loses_the_address_of_a_pod_between_nodes(labs: Callable[[str], Lab]) -> None:
    """The bridge masquerades without -ip-masq: a pod of another node sees the address of flannel.1 (differences-from-go.md)."""
    lab = labs("guide")
    source, target = pod_on(lab, "node1"), pod_on(lab, "node2")
    report = walk(lab, source, target)
    assert_verified(report)
    address = lab.pods[source].addresses[0]
    device = lab.run("node1", "ip -4 -o addr show dev flannel.1").split()[3].partition("/")[0]
    assert changes(report) == [f"node1: source {address} becomes {device}"]
    lost = [finding["text"] for finding in report["findings"] if "is lost" in finding["text"]]
    assert len(lost) == 1
    assert lost[0].startswith(f"The pod's address {address} is lost at node1: the receiver sees {device}.")
    assert changes(walk(labs("vxlan"), pod_on(labs("vxlan"), "node1"), pod_on(labs("vxlan"), "node2"))) == []


def test_guide_keeps_the_address_on_the_same_node(labs: Callable[[str], Lab]) -> None:
    lab = labs("guide")
    report = walk(lab, pod_on(lab, "node1"), pod_on(lab, "node1", 1))
    assert_verified(report)
    assert changes(report) == []


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_largest_packet_passes_and_one_byte_more_does_not(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    source, target = pod_on(lab, "node1"), pod_on(lab, "node2")
    largest = walk(lab, source, target)["forward"]["largestPacket"]
    assert f"FLANNEL_MTU={largest}\n" in lab.run("node1", "cat /run/flannel/subnet.env")
    assert_verified(walk(lab, source, target, "--size", str(largest)))
    report = walk(lab, source, target, "--size", str(largest + 1))
    assert (report["forward"]["outcome"], report["forward"]["endPlace"]) == ("broken", source)
    assert report["verified"]["cause"] == "the kernel refused to send it: Message too long"


@pytest.fixture(scope="module")
def narrow(bin_dir: Path) -> Iterator[Lab]:
    """A lab with a cable at node1 that takes 1400 bytes, which flanneld does not know."""
    need(TOOLS)
    with Lab(nodes=2, ipv6=True, prefix=str(bin_dir.parent.parent)) as lab:
        assert lab.wait_connected().is_complete
        faults.break_(lab, "flanneld", "node1")
        lab.run("node1", "ip link set eth0 mtu 1400")
        yield lab


@pytest.mark.parametrize("family", [4, 6])
def test_encapsulated_packet_that_does_not_fit(narrow: Lab, family: int) -> None:
    """VXLAN over IPv4 is cut into fragments, over IPv6 it is dropped; what the kernel learned for itself does not count."""
    family_option = ["-6"] if family == 6 else []
    report = walk(narrow, "pod1", "pod2", "--size", "1400", *family_option, seconds=0.5)
    sizes = [hop["text"] for hop in kinds(report, "size")]
    assert len(sizes) == 1
    if family == 4:
        assert sizes[0] == "1450 bytes do not fit through eth0, which takes 1400: cut into fragments"
        assert (report["forward"]["outcome"], report["verified"]["result"]) == ("delivered", "agrees")
    else:
        assert sizes[0].startswith("1470 bytes do not fit through eth0, which takes 1400: dropped")
        assert report["forward"]["endPlace"] == "node1"
        assert report["verified"]["result"] == "ends as predicted"


@pytest.mark.parametrize("family", [4, 6])
def test_forwarded_packet_that_does_not_fit(narrow: Lab, family: int) -> None:
    family_option = ["-6"] if family == 6 else []
    report = walk(narrow, "pod1", "outside", "--size", "1410", *family_option, seconds=0.5)
    assert (report["forward"]["outcome"], report["forward"]["endPlace"]) == ("broken", "node1")
    assert report["verified"]["result"] == "ends as predicted"
    words = "fragmentation needed, MTU 1400" if family == 4 else "packet too big, MTU 1400"
    assert words in report["forward"]["end"]
    assert words in report["verified"]["cause"]


# --- faults -----------------------------------------------------------------------------------------------------------


RULES = {
    "nft, verdict map": """
table ip x {
  map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.10 . tcp . 80 : goto service } }
  chain service { numgen random mod 2 vmap { 0 : goto first, 1 : goto second }; }
  chain first { ip saddr FIRST meta mark set meta mark | 0x4000; meta l4proto tcp dnat to FIRST:80; }
  chain second { ip saddr SECOND meta mark set meta mark | 0x4000; meta l4proto tcp dnat to SECOND:80; }
  chain prerouting { type nat hook prerouting priority -100; ip daddr . meta l4proto . th dport vmap @services; }
  chain output { type nat hook output priority -100; ip daddr . meta l4proto . th dport vmap @services; }
  chain postrouting { type nat hook postrouting priority 100; meta mark & 0x4000 == 0x4000 masquerade fully-random; }
}
""",
    "nft, map": """
table ip x {
  chain prerouting { type nat hook prerouting priority -100; ip daddr 10.96.0.10 tcp dport 80 jump service; }
  chain output { type nat hook output priority -100; ip daddr 10.96.0.10 tcp dport 80 jump service; }
  chain service { dnat to jhash ip saddr . tcp sport mod 2 map { 0 : FIRST . 80, 1 : SECOND . 80 }; }
}
""",
    "iptables": """
*nat
:SERVICES -
:ONE-OF-TWO -
:OTHER-OF-TWO -
-A PREROUTING -m comment --comment "service portals" -j SERVICES
-A OUTPUT -m comment --comment "service portals" -j SERVICES
-A SERVICES ! -d 10.96.0.10/32 -j RETURN
-A SERVICES -p tcp -m tcp --dport 80 -m comment --comment "a" -m statistic --mode random --probability 0.5 -j ONE-OF-TWO
-A SERVICES -p tcp -m tcp --dport 80 -j OTHER-OF-TWO
-A ONE-OF-TWO -p tcp -m comment --comment "a" -m tcp -j DNAT --to-destination FIRST:80
-A OTHER-OF-TWO -p tcp -m comment --comment "a" -m tcp -j DNAT --to-destination SECOND:80
COMMIT
""",
}
CHANGES = (
    "'-D PREROUTING 1' '-D OUTPUT 1' '-F SERVICES' '-X SERVICES'"
    " '-F ONE-OF-TWO' '-X ONE-OF-TWO' '-F OTHER-OF-TWO' '-X OTHER-OF-TWO'"
)
SERVICES = {
    "nft, verdict map": ("nft -f -", "nft delete table ip x"),
    "nft, map": ("nft -f -", "nft delete table ip x"),
    "iptables": ("iptables-restore --noflush", f"for of in {CHANGES}; do iptables -t nat $of; done"),
}
"""Rules by their form: what creates them, from standard input, and what deletes them."""


def chain(hook: str, rule: str = "", *, family: str = "inet", device: str = "", policy: str = "accept") -> tuple[str, str]:
    """Commands that create a chain with a rule in a table of its own, and delete it."""
    where = f" device {device}" if device else ""
    commands = [
        f"add table {family} x",
        f"add chain {family} x c {{ type filter hook {hook}{where} priority 0; policy {policy}; }}",
    ]
    commands += [f"add rule {family} x c {rule}"] if rule else []
    return f"nft '{'; '.join(commands)}'", f"nft delete table {family} x"


SET = (
    "nft 'add table ip x; add set ip x s { type ipv4_addr; flags interval; }; add element ip x s { 10.244.0.0/16 };"
    " add chain ip x f { type filter hook forward priority 5; }; add chain ip x g; add rule ip x f jump g;"
    " add rule ip x g ip saddr @s drop'"
)
REJECT = "iptables -I FORWARD -m comment --comment no -p icmp -m conntrack --ctstate NEW -j REJECT"
LEGACY = "iptables-legacy -N A; iptables-legacy -A A ! -p udp -j REJECT; iptables-legacy -A FORWARD -d 10.244.0.0/16 -j A"
SYSCTL = "/proc/sys/net/ipv4/ip_forward"
BLACKHOLE = "ip route add blackhole default table 9; ip rule add to 10.244.0.0/16 table 9 priority 9"
MARKED = (
    "nft 'add table ip x; add chain ip x c { type filter hook prerouting priority mangle; };"
    " add rule ip x c ip daddr 10.244.0.0/16 meta mark set 9';"
    " ip route add blackhole default table 9; ip rule add fwmark 9 table 9"
)
UNMARKED = "nft delete table ip x; ip rule del fwmark 9; ip route flush table 9"
UNTRACKED = (
    "iptables -t raw -I PREROUTING -d 10.244.0.0/16 -j CT --notrack;"
    " iptables -I FORWARD -m conntrack --ctstate UNTRACKED -j DROP"
)
MATCHES = "-p icmp -m icmp --icmp-type echo-request -m statistic --mode random --probability 1"
ASYMMETRIC = (
    "ip route add $(ip -n pod1 -4 -o addr show eth0 | cut -d/ -f1 | rev | cut -d' ' -f1 | rev) dev flannel.1;"
    " echo 1 >/proc/sys/net/ipv4/conf/cni0/rp_filter"
)
SYMMETRIC = "echo 0 >/proc/sys/net/ipv4/conf/cni0/rp_filter; ip route flush proto boot dev flannel.1"
PORT = "$(ip -o link show master cni0 | cut -d' ' -f2 | cut -d@ -f1 | head -1)"
DEVICE = "$(bridge fdb show dev flannel.1 | head -1 | cut -d' ' -f1) dev flannel.1 self permanent dst 192.168.123."
UNLEARN = "ip netns exec pod1 ip route flush cache"  # its path MTU
FLUSH = "ip netns exec pod1 ip neigh flush dev eth0"
NO_ARP = (f"{chain('prerouting', family='bridge', policy='drop')[0]}; {FLUSH}", "nft delete table bridge x")
SCRIPTS: dict[str, tuple[str, str, str, str]] = {
    "rule": (*chain("forward", "ip daddr 10.244.0.0/16 drop"), "node1", "dropped by nftables in forward"),
    "policy": (*chain("forward", policy="drop"), "node1", "dropped by nftables in forward"),
    "set": (SET, "nft delete table ip x", "node1", "dropped by nftables in forward"),
    "iptables": (REJECT, "iptables -F FORWARD", "node1", "rejected by nftables in forward"),
    "iptables policy": ("iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT", "node1", "dropped by nftables in forward"),
    "legacy": (LEGACY, "iptables-legacy -F; iptables-legacy -X A", "node1", "rejected by iptables-legacy in forward"),
    "output": (*chain("output", "udp dport 8472 drop"), "node1", "dropped by nftables in output"),
    "ingress": (*chain("ingress", family="netdev", device="cni0", policy="drop"), "node1", "dropped by nftables in ingress"),
    "forwarding": (f"echo 0 >{SYSCTL}", f"echo 1 >{SYSCTL}", "node1", "does not forward"),
    "blackhole": (BLACKHOLE, "ip rule del priority 9; ip route flush table 9", "node1", "a route discards packets"),
    "unreachable": (
        "ip rule add from 10.244.0.0/16 unreachable priority 9",
        "ip rule del priority 9",
        "node1",
        "a policy rule discards",
    ),
    "mtu": (
        "ip link set flannel.1 mtu 1000",
        f"ip link set flannel.1 mtu 1450; {UNLEARN}",
        "node1",
        "do not fit through flannel.1",
    ),
    "bridge": (f"ip link set cni0 down; {FLUSH}", "ip link set cni0 up", "pod1", "no reply to ARP"),
    "egress": (*chain("egress", "udp dport 8472 drop", family="netdev", device="eth0"), "node1", "by nftables in egress"),
    "family bridge": (*chain("input", "ip daddr 10.244.0.0/16 drop", family="bridge"), "node1", "by nftables in bridge input"),
    "ARP": (*NO_ARP, "pod1", "a rule drops the question"),
    "extensions": (f"iptables -I FORWARD {MATCHES} -j DROP", "iptables -F FORWARD", "node1", "dropped by nftables in forward"),
    "untracked": (UNTRACKED, "iptables -F FORWARD; iptables -t raw -F", "node1", "dropped by nftables in forward"),
    "mark": (MARKED, UNMARKED, "node1", "a route discards packets"),
    "forwarding and another table": (
        f"echo 0 >{SYSCTL}; ip route add blackhole 10.0.0.0/8 table 9",
        f"echo 1 >{SYSCTL}; ip route flush table 9",
        "node1",
        "does not forward",
    ),
    "reverse path": (ASYMMETRIC, SYMMETRIC, "node1", "reverse path filter"),
    "port": (f"bridge link set dev {PORT} state 0", f"bridge link set dev {PORT} state 3", "node1", "is disabled"),
    "own node": (f"bridge fdb replace {DEVICE}11", f"bridge fdb replace {DEVICE}12", "node1", "the frame is for"),
    "reply": (*chain("forward", "ct state established drop"), "node1", ""),
}
"""Scripts by name: what breaks the path of pod1, what repairs it, where the packet ends, and in which words."""


@pytest.fixture(scope="module")
def broken(bin_dir: Path) -> Iterator[Lab]:
    """A lab whose flanneld on node1 does not repair what tests break."""
    need(TOOLS)
    with Lab(nodes=2, prefix=str(bin_dir.parent.parent)) as lab:
        assert lab.wait_connected(outside=True).is_complete
        faults.break_(lab, "flanneld", "node1")
        yield lab


@pytest.mark.parametrize("name", SCRIPTS)
def test_broken_path_names_the_hop(broken: Lab, name: str) -> None:
    do, undo, place, words = SCRIPTS[name]
    assert_verified(walk(broken, "pod1", "pod2"))
    broken.run("node1", do)
    try:
        report = walk(broken, "pod1", "pod2", "--size", "1200", seconds=0.5)
    finally:
        broken.run("node1", undo)
    way, verified = ("reply", "replyVerified") if name == "reply" else ("forward", "verified")
    assert (report[way]["outcome"], report[way]["endPlace"]) == ("broken", place)
    assert words in report[way]["end"]
    assert report[verified]["result"] == "ends as predicted", report[verified]
    assert [hop["kind"] for hop in report[way]["hops"] if hop["broken"]] != []
    if "nftables" in words:
        assert report[verified]["cause"].startswith("nftables of node1 dropped it")


def test_legacy_iptables_translates_and_the_reply_is_translated_back(broken: Lab) -> None:
    target = broken.pods["pod2"].addresses[0]
    rules = (
        f"PREROUTING -d 192.0.2.77 -p tcp --dport 80 -j DNAT --to-destination {target}:81",
        f"POSTROUTING -d {target} -p tcp -j MASQUERADE",
    )
    broken.run("node1", "; ".join(f"iptables-legacy -t nat -A {rule}" for rule in rules))
    try:
        report = walk(broken, "pod1", "192.0.2.77:80")
    finally:
        broken.run("node1", "iptables-legacy -t nat -F")
    assert_verified(report)
    assert report["forward"]["endPlace"] == "pod2"
    assert [hop["text"] for hop in kinds(report, "nat")] == ["DNAT", "masquerade"]
    assert kinds(report, "nat")[0]["why"].startswith("iptables-legacy nat PREROUTING: -A PREROUTING")


@pytest.mark.parametrize(
    ("what", "node", "place", "words"),
    [
        ("route", "node1", "router", "no route to"),
        ("arp", "node1", "node1", "no ARP entry for"),
        ("fdb", "node1", "node1", "no FDB entry of flannel.1"),
        ("link", "node1", "node1", "eth0 has no carrier"),
        ("link", "node2", "node1", "no reply to ARP for"),
    ],
)
def test_fault_of_the_lab_names_the_hop(broken: Lab, what: str, node: str, place: str, words: str) -> None:
    faults.break_(broken, what, node)
    broken.run("node1", "ip neigh flush dev eth0")
    try:
        report = walk(broken, "pod1", "pod2", seconds=0.5)
    finally:
        faults.heal(broken, what, node)
        until(lambda: walk(broken, "pod1", "pod2")["ok"], "the path is whole again")
    assert (report["forward"]["outcome"], report["forward"]["endPlace"]) == ("broken", place)
    assert words in report["forward"]["end"]
    assert report["verified"]["result"] == "ends as predicted"
    if what == "route":  # the default route takes the packet: the walk says where flannel's is missing
        assert any("node1 has no route to its subnet" in finding["text"] for finding in report["findings"])


def test_udp_without_flanneld_ends_at_its_device(labs: Callable[[str], Lab]) -> None:
    lab = labs("udp")
    faults.break_(lab, "flanneld", "node1")
    try:
        report = walk(lab, pod_on(lab, "node1"), pod_on(lab, "node2"), seconds=0.5)
    finally:
        faults.heal(lab, "flanneld", "node1")
        assert lab.wait_connected().is_complete
    assert report["forward"]["outcome"] == "broken"
    assert not report["ok"]


def test_rule_that_is_not_understood_is_said_and_the_packet_decides(broken: Lab) -> None:
    """A prediction is not guessed: the rule is reported as not understood, and the trace names it."""
    do, undo = chain("forward", "ip ttl < 64 drop")
    broken.run("node1", do)
    try:
        predicted = walk(broken, "pod1", "pod2", "--no-probe")
        report = walk(broken, "pod1", "pod2", seconds=0.5)
    finally:
        broken.run("node1", undo)
    assert [hop["place"] for hop in kinds(predicted, "unsure")] == ["node1"]
    assert "ip ttl < 64 drop" in kinds(predicted, "unsure")[0]["text"]
    assert (predicted["ok"], predicted["verified"]) == (False, None)
    assert report["verified"]["result"] == "ends"
    assert report["verified"]["cause"].startswith("nftables of node1 dropped it: inet x c")
    assert any("ip ttl < 64 drop" in finding["text"] for finding in report["findings"])


@pytest.mark.parametrize("form", SERVICES)
def test_service_that_chooses_an_endpoint_at_random(labs: Callable[[str], Lab], form: str) -> None:
    """Rules as kube-proxy has them. The real packet shows which endpoint was chosen; the walk is the one to that."""
    lab = labs("vxlan")
    first, second = (lab.pods[pod_on(lab, node, 1)].addresses[0] for node in ("node1", "node2"))
    source = pod_on(lab, "node1")
    do, undo = SERVICES[form]
    lab.run("node1", do, stdin=RULES.get(form, "").replace("FIRST", first).replace("SECOND", second))
    try:
        reports = [walk(lab, source, "10.96.0.10:80"), walk(lab, "node1", "10.96.0.10:80")]
        predicted = walk(lab, source, "10.96.0.10:80", "--no-probe")
    finally:
        lab.run("node1", undo)
    for report in reports:
        assert_verified(report)
        translated = [hop["packet"] for hop in kinds(report, "nat") if hop["text"] == "DNAT"]
        assert [(of["destination"] in (first, second), of["destinationPort"]) for of in translated] == [(True, 80)]
    assert not predicted["ok"]
    assert "chooses one of 2 at random" in kinds(predicted, "unsure")[0]["text"]


def test_host_port_of_iptables_in_both_families(labs: Callable[[str], Lab]) -> None:
    """One process prints DNAT of one family alone: nft says "XT target DNAT not found" for the other."""
    lab = labs("vxlan")
    ranges = '"ranges": [[{"subnet": "10.97.0.0/24"}], [{"subnet": "fd00:97::/64"}]]'
    routes = '"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]'
    bridge = f'{{"type": "bridge", "bridge": "br7", "isGateway": true, "ipam": {{"type": "host-local", {ranges}, {routes}}}}}'
    portmap = '{"type": "portmap", "capabilities": {"portMappings": true}, "backend": "iptables"}'
    conflist = f'{{"cniVersion": "1.0.0", "name": "both", "plugins": [{bridge}, {portmap}]}}'
    ports = PORTS.replace("8080", "8087").replace("5353", "5357")
    lab.run("node1", "cat >/etc/cni/net.d/both.conflist", stdin=conflist)
    lab.run("node1", f"ip netns add both; ip -n both link set lo up; cni-py add both both --cap-args '{ports}'")
    try:
        for source, family in [("outside", 4), ("outside", 6), (pod_on(lab, "node1"), 4)]:
            report = walk(lab, source, "node1:8087", *(["-6"] if family == 6 else []))
            assert_verified(report)
            assert report["forward"]["endPlace"] == "both"
    finally:
        lab.run("node1", f"cni-py del both both --cap-args '{ports}'; ip netns del both; rm /etc/cni/net.d/both.conflist")


def test_one_name_on_two_nodes(labs: Callable[[str], Lab], capsys: pytest.CaptureFixture[str]) -> None:
    lab = labs("vxlan")
    try:
        for node in lab.nodes:
            lab.run(node, "ip netns add twin; ip -n twin link set lo up; cni-py add cbr0 twin")
        report = walk(lab, "node1/twin", "node2/twin")
        assert_verified(report)
        assert report["forward"]["hops"][-1]["place"] == "node2/twin"
        assert main.main(["walk", "pod1", "twin", "--directory", lab.directory]) == 1
        assert "name one of node2/twin, node1/twin" in capsys.readouterr().err
    finally:
        for node in lab.nodes:
            lab.run(node, "cni-py del cbr0 twin; ip netns del twin")


def test_packets_that_other_rules_trace_are_not_the_probe(broken: Lab) -> None:
    """A stream of them neither keeps the walk from its end nor explains what became of its packet."""
    trace = "nft 'add table inet y; add chain inet y o { type filter hook output priority -1000; };"
    rule = "add rule inet y o ip daddr 192.0.2.99 meta nftrace set 1; add rule inet y o ip daddr 192.0.2.99 counter drop'"
    broken.run("node1", f"{trace} {rule}")
    command = broken.command("node1", "ping", "-i", "0.02", "192.0.2.99")
    try:
        with subprocess.Popen(command, env=broken.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as ping:
            until(lambda: "packets 0 " not in broken.run("node1", "nft list table inet y"), "packets are traced and dropped")
            report = walk(broken, "pod1", "10.244.255.254", seconds=0.5)
            ping.kill()
    finally:
        broken.run("node1", "nft delete table inet y")
    assert not report["ok"]
    assert "nftables" not in report["verified"]["cause"]


@pytest.mark.parametrize("hook", ["input", "output"])
def test_ndp_that_a_rule_drops(labs: Callable[[str], Lab], hook: str) -> None:
    """A pod whose policy is to drop drops NDP as well: the packet ends at the neighbour, which gets no reply."""
    lab = labs("vxlan")
    source, target = pod_on(lab, "node1"), pod_on(lab, "node2")
    do, undo = chain(hook, policy="drop")
    lab.run(target, do)
    lab.run("node2", "ip -6 neigh flush dev cni0")
    try:
        report = walk(lab, source, target, "-6", seconds=0.5)
    finally:
        lab.run(target, undo)
    assert (report["forward"]["outcome"], report["forward"]["endPlace"]) == ("broken", "node2")
    assert f"{target}: inet x c: policy drop" in report["forward"]["hops"][-1]["why"]
    assert report["verified"]["result"] == "ends as predicted"


# --- other plugins ----------------------------------------------------------------------------------------------------

ROUTES = '"routes": [{"dst": "0.0.0.0/0"}]'
POOL = '"type": "host-local", "subnet": "%s"'
RANGE = '"rangeStart": "192.168.123.200", "gateway": "192.168.123.1"'
PLUGINS = {
    "bridge": f'"bridge": "br9", "isGateway": true, "ipMasq": true, "ipam": {{{POOL % "10.99.0.0/24"}, {ROUTES}}}',
    "ptp": f'"ipMasq": true, "ipam": {{{POOL % "10.98.0.0/24"}, {ROUTES}}}',
    "macvlan": f'"master": "eth0", "ipam": {{{POOL % "192.168.123.0/24"}, {RANGE}, {ROUTES}}}',
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_pods_of_other_plugins(labs: Callable[[str], Lab], plugin: str) -> None:
    lab = labs("vxlan")
    conflist = f'{{"cniVersion": "1.0.0", "name": "{plugin}9", "plugins": [{{"type": "{plugin}", {PLUGINS[plugin]}}}]}}'
    names = [f"{plugin}-a", f"{plugin}-b"]
    lab.run("node1", f"cat >/etc/cni/net.d/{plugin}.conflist", stdin=conflist)
    for name in names:
        lab.run("node1", f"ip netns add {name}; ip -n {name} link set lo up; cni-py add {plugin}9 {name}")
    for source, target in [(names[0], names[1]), (names[0], "outside"), (names[0], "node2")]:
        assert_verified(walk(lab, source, target))
    to_node = walk(lab, names[0], "node1", seconds=0.5)
    if plugin == "macvlan":
        assert "a macvlan does not reach the host below it" in to_node["forward"]["end"]
        assert to_node["verified"]["result"] == "ends as predicted"
    else:
        assert_verified(to_node)
        assert [hop["place"] for hop in kinds(walk(lab, names[0], "outside"), "nat")] == ["node1"]


# --- from one node ----------------------------------------------------------------------------------------------------


def on_node(lab: Lab, node: str, *words: str) -> dict[str, Any]:
    """Walk by the installed command on a node, which sees itself and its pods alone."""
    report: dict[str, Any] = json.loads(lab.run(node, f"cni-py walk {' '.join(words)} --json --seconds 20", check=False))
    return report


def test_from_one_node_the_walk_ends_at_the_wire(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    address = lab.pods[pod_on(lab, "node2")].addresses[0]
    report = on_node(lab, "node1", pod_on(lab, "node1"), address)
    assert report["forward"]["outcome"] == "leaves"
    assert report["forward"]["end"] == "leaves by eth0 to 192.168.123.12, UDP 8472; what is behind is not visible from here"
    assert report["verified"]["result"] == "agrees"
    assert {hop["place"] for hop in report["forward"]["hops"]} == {pod_on(lab, "node1"), "node1"}


def test_from_one_node_between_its_pods_and_to_its_host_port(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    assert_verified(on_node(lab, "node1", pod_on(lab, "node1"), pod_on(lab, "node1", 1)))
    assert_verified(on_node(lab, "node1", lab.pods[pod_on(lab, "node1")].addresses[0], "node:8080"))
    assert_verified(on_node(lab, "node1", "node", "web:80"))


def test_from_an_address_that_is_not_visible(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    report = on_node(lab, "node1", "192.0.2.2", "192.168.123.11:8080")
    assert (report["forward"]["outcome"], report["forward"]["endPlace"], report["verified"]) == ("delivered", "web", None)
    assert report["reply"]["outcome"] == "leaves"
    assert any("No packet was sent" in finding["text"] for finding in report["findings"])


# --- nothing is left --------------------------------------------------------------------------------------------------

STATE = (
    "nft -s list ruleset; ip link; ip addr; ip route show table all; ip rule; ls /proc/sys/net/netfilter; cat /proc/net/packet;"
    " for ns in $(ls /run/netns); do ip netns exec $ns sh -c 'nft -s list ruleset; ip addr; cat /proc/net/packet'; done"
)
"""The state of a node and its pods, without counters and ages."""


def test_nothing_is_left(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    before = {node: lab.run(node, STATE) for node in lab.nodes}
    assert_verified(walk(lab, pod_on(lab, "node1"), "node2"))
    assert_verified(walk(lab, "outside", "node1:8080"))
    assert {node: lab.run(node, STATE) for node in lab.nodes} == before
    assert "8080" not in lab.run("node1", "cat /proc/net/nf_conntrack 2>/dev/null || conntrack -L 2>/dev/null", check=False)


def test_nothing_is_left_by_a_walk_that_is_killed(labs: Callable[[str], Lab]) -> None:
    """Killed while its table exists: the kernel deletes it with the socket that owns it."""
    lab = labs("vxlan")
    bridged, filtered = chain("forward", family="bridge"), chain("ingress", family="netdev", device="cni0")
    lab.run("node1", f"{bridged[0]}; {filtered[0]}")  # in these families the walk has a table too
    before = lab.run("node1", STATE)
    words = ["walk", pod_on(lab, "node1"), "10.244.255.254", "--directory", lab.directory, "--seconds", "600"]
    command = [sys.executable, "-c", f"from cni_py.cli.main import main; main({words!r})"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) as process:
        until(lambda: lab.run("node1", "nft list tables").count("cni_py_walk_") == 3, "the walk has created its tables")
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: lab.run("node1", STATE) == before, "nothing of the killed walk exists")
    lab.run("node1", f"{bridged[1]}; {filtered[1]}")


def test_no_probe_sends_nothing(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    count = "cat /sys/class/net/eth0/statistics/tx_packets"
    before = lab.run(pod_on(lab, "node1"), count)
    report = walk(lab, pod_on(lab, "node1"), "node2", "--no-probe")
    assert (report["forward"]["outcome"], report["verified"]) == ("delivered", None)
    assert lab.run(pod_on(lab, "node1"), count) == before


# --- output -----------------------------------------------------------------------------------------------------------


def test_text_and_picture(labs: Callable[[str], Lab], tmp_path: Path) -> None:
    lab = labs("vxlan")
    picture = tmp_path / "path.svg"
    status, text = run(lab, pod_on(lab, "node1"), pod_on(lab, "node2"), "--reply", "--svg", str(picture))
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "VXLAN 1, UDP 8472 to 192.168.123.12" in text
    assert text.count("seen as predicted") == 2
    drawn = picture.read_text()
    root = ET.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in drawn
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
    shown = " ".join(root.itertext())
    assert all(name in shown for name in ("node1", "node2", "VXLAN 1", "The reply"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pod1", "pod99"], 'unknown place "pod99"'),
        (["pod99", "pod1"], 'unknown place "pod99"'),
        (["pod1", "pod2:0"], 'invalid port in "pod2:0"'),
        (["pod1", "pod2:http"], 'invalid port in "pod2:http"'),
        (["pod1", "[10.0.0.1]:80"], 'invalid address in "[10.0.0.1]:80"'),
        (["pod1", "pod2", "--protocol", "tcp"], "TCP requires a port"),
        (["pod1", "pod2:80", "--protocol", "icmp"], "ICMP has no ports"),
        (["pod1", "pod2", "--size", "10"], "invalid size 10"),
        (["10.0.0.1", "fd00::1"], "unknown place"),
    ],
)
def test_wrong_words(labs: Callable[[str], Lab], capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main.main(["walk", *words, "--directory", labs("vxlan").directory]) == 1
    assert message in capsys.readouterr().err
