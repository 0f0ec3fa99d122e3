"""portmap's verbs on a real kernel: rules, owners, repair, CHECK, GC, the Go plugin. Packets: test_portmap_traffic.py."""

from __future__ import annotations

import json
import posix
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_py import program
from cni_py.errors import CheckFailed, NotAvailable
from cni_py.packetfilter import libnftables, masquerade, nfnetlink
from cni_py.packetfilter.hostports import check as portmap_check
from cni_py.packetfilter.hostports import forwarding
from cni_py.packetfilter.hostports import rules as portmap_rules
from cni_py.packetfilter.hostports.rules import Mapping, Wanted
from cni_py.packetfilter.ownership import Owner, short_id
from support.namespaces import GO_PLUGINS, Host, Sandbox, wait_for_end
from support.nft import list_elements
from support.pods import hints

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
C1, C2 = Owner("c1", "eth0", "cbr0"), Owner("c2", "eth0", "cbr0")
LONG = "f" * 200


def prev(version: str = "1.1.0", v4: str = "10.1.0.2/24", v6: str = "fd00:1::2/64", **more: Any) -> dict[str, Any]:
    """The result of a main plugin."""
    if version in ("0.1.0", "0.2.0"):
        return {"cniVersion": version, "ip4": {"ip": v4, "gateway": "10.1.0.1"}, "ip6": {"ip": v6}, "dns": {}}
    numbered = version in ("0.3.0", "0.3.1", "0.4.0")
    ips = [{"address": a, "interface": 1} | ({"version": n} if numbered else {}) for n, a in (("4", v4), ("6", v6)) if a]
    interfaces = [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}]
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, "dns": {"nameservers": ["10.96.0.10"]}} | more


def conf(*ports: dict[str, Any], version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    runtime = {"runtimeConfig": {"portMappings": [*ports]}} if ports else {}
    return {"cniVersion": version, "name": "cbr0", "type": "portmap", "capabilities": {"portMappings": True}, **runtime, **more}


def port(host: Any, pod: Any = 80, protocol: str = "tcp", ip: str = "") -> dict[str, Any]:
    return {"hostPort": host, "containerPort": pod, "protocol": protocol} | ({"hostIP": ip} if ip else {})


@pytest.fixture
def node(host: Host) -> Host:
    """A host with the bridge that the pods are behind."""
    host.run("ip link add cni0 type bridge; ip addr add 10.1.0.1/24 dev cni0; ip link set cni0 up")
    for name in ("c1", "c2"):
        host.netns(name)
    return host


def add(node: Host, *ports: dict[str, Any], of: str = "c1", pod: int = 2, **more: Any) -> Any:
    result = prev(more.get("version", "1.1.0"), f"10.1.0.{pod}/24", f"fd00:1::{pod}/64")
    return node.ok("portmap", "ADD", conf(*ports, **more), container_id=of, sandbox=Sandbox("c1"), prev=result)


def check(node: Host, *ports: dict[str, Any], of: str = "c1", pod: int = 2, **more: Any) -> Any:
    result = prev("1.1.0", f"10.1.0.{pod}/24", f"fd00:1::{pod}/64")
    env = {"CNI_PY_DIFFERENCES": "1"}  # as cni-py check
    return node.call("portmap", "CHECK", conf(*ports, **more), container_id=of, sandbox=Sandbox("c1"), prev=result, env=env)


def delete(node: Host, *ports: dict[str, Any], of: str = "c1", **more: Any) -> None:
    node.ok("portmap", "DEL", conf(*ports, **more), container_id=of)


def elements(node: Host) -> dict[str, str]:
    """ "map key" to "owner: target", of every map of host ports."""
    found = list_elements(node, "hostports")
    return {f"{element.set_name} {element.key}": f"{element.container}: {element.value}" for element in found}


def nat(node: Host) -> str:
    return node.run("iptables -t nat -S; ip6tables -t nat -S")


# --- the verbs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(node: Host, version: str) -> None:
    """The previous result is returned unchanged, and its addresses are used."""
    handed_on = add(node, port(8080), port(53, 5353, "UDP"), port(99, 98, "Sctp"), version=version)
    assert handed_on == prev(version)
    assert elements(node) == {
        "hostports4 tcp 8080": "c1: 10.1.0.2 80",
        "hostports4 udp 53": "c1: 10.1.0.2 5353",
        "hostports4 sctp 99": "c1: 10.1.0.2 98",
        "hostports6 tcp 8080": "c1: fd00:1::2 80",
        "hostports6 udp 53": "c1: fd00:1::2 5353",
        "hostports6 sctp 99": "c1: fd00:1::2 98",
    }
    delete(node, version=version)
    delete(node, version=version)
    assert elements(node) == {}


def test_verbs_come_with_their_version(node: Host) -> None:
    assert node.call("portmap", "CHECK", conf(version="0.3.1"), sandbox=Sandbox("c1"), prev=prev("0.3.1")).code == 1
    assert node.call("portmap", "STATUS", conf(version="1.0.0")).code == 1
    assert node.call("portmap", "GC", conf(version="1.0.0")).code == 1


@pytest.mark.parametrize("ports", [{}, {"runtimeConfig": {}}, {"runtimeConfig": {"portMappings": []}}, {"runtimeConfig": None}])
def test_without_ports_nothing_is_done(node: Host, ports: dict[str, Any]) -> None:
    before = node.snapshot()
    result = prev(ips=[{"address": "10.1.0.2/24", "interface": 1}], strange={"kept": [1, None]})
    options = {"sandbox": Sandbox("c1"), "prev": result}
    assert node.ok("portmap", "ADD", conf() | ports, **options) == result
    assert node.ok("portmap", "CHECK", conf() | ports, **options) is None
    assert node.ok("portmap", "DEL", conf() | ports, **options) is None
    assert node.snapshot() == before
    assert "nft " not in node.run("cat /run/cni-py/journal/* /run/cni-py/journal/deleted/* 2>/dev/null", check=False)


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_chained_only(node: Host, verb: str) -> None:
    reply = node.call("portmap", verb, conf(port(8080)), sandbox=Sandbox("c1"))
    assert reply.code == 7
    assert reply.json["msg"] == {"ADD": "must be called as chained plugin", "CHECK": "Required prevResult missing"}[verb]


def test_result_without_an_address_is_handed_on(node: Host) -> None:
    before = node.snapshot()
    result = prev(ips=[])
    assert node.ok("portmap", "ADD", conf(port(8080)), sandbox=Sandbox("c1"), prev=result) == result
    assert node.snapshot() == before


def test_only_the_sandboxes_addresses_count(node: Host) -> None:
    """Addresses of other interfaces are skipped, one without a known interface is used, as in Go."""
    interfaces = [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}, {"name": "eth1", "sandbox": "/run/netns/c1"}]
    ips = [
        {"address": "10.1.0.1/24", "interface": 0},
        {"address": "10.1.0.8/24", "interface": 2},
        {"address": "10.1.0.2/24", "interface": 1},
        {"address": "10.1.0.3/24", "interface": 1},
        {"address": "fd00:1::7/64"},
    ]
    result = prev(interfaces=interfaces, ips=ips)
    node.ok("portmap", "ADD", conf(port(8080)), sandbox=Sandbox("c1"), prev=result)
    assert elements(node) == {"hostports4 tcp 8080": "c1: 10.1.0.2 80", "hostports6 tcp 8080": "c1: fd00:1::7 80"}


def test_dual_stack_and_host_ip(node: Host) -> None:
    add(
        node,
        port(1, ip="0.0.0.0"),
        port(2, ip="::"),
        port(3, ip="192.0.2.1"),
        port(4, ip="fd00:2::1"),
        port(5, ip="127.0.0.1"),
        port(6, ip="::ffff:192.0.2.1"),
        port(7, ip="fd00:0002::0001"),
    )
    assert elements(node) == {
        "hostports4 tcp 1": "c1: 10.1.0.2 80",
        "hostports6 tcp 2": "c1: fd00:1::2 80",
        "hostports4_at 192.0.2.1 tcp 3": "c1: 10.1.0.2 80",
        "hostports6_at fd00:2::1 tcp 4": "c1: fd00:1::2 80",
        "hostports4_at 127.0.0.1 tcp 5": "c1: 10.1.0.2 80",
        "hostports4_at 192.0.2.1 tcp 6": "c1: 10.1.0.2 80",
        "hostports6_at fd00:2::1 tcp 7": "c1: fd00:1::2 80",
    }


def test_of_two_mappings_of_one_port_the_first_counts(node: Host) -> None:
    add(node, port(8080, 80), port(8080, 81), port(8080, 82, ip="0.0.0.0"), port(8080, 83, "TCP"))
    assert elements(node) == {"hostports4 tcp 8080": "c1: 10.1.0.2 80", "hostports6 tcp 8080": "c1: fd00:1::2 80"}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
    (port(0), {}, 7, "Invalid host port number: 0"),
    (port(-1), {}, 7, "Invalid host port number: -1"),
    (port(65536), {}, 7, "Invalid host port number: 65536"),
    (port(80, 0), {}, 7, "Invalid container port number: 0"),
    (port(80, 70000), {}, 7, "Invalid container port number: 70000"),
    ({"hostPort": 80, "protocol": "tcp"}, {}, 7, "Invalid container port number: 0"),
    (port("80"), {}, 7, "runtimeConfig.portMappings[0].hostPort"),
    (port(80, protocol="icmp"), {}, 7, 'unknown protocol "icmp"'),
    (port(80, protocol=""), {}, 7, 'unknown protocol ""'),
    (port(80, protocol="tcp; flush ruleset"), {}, 7, "unknown protocol"),
    (port(80, ip="localhost"), {}, 7, '"hostIP" of host port 80 is not an address: "localhost"'),
    (port(80, ip="fe80::1%eth0"), {}, 7, "names a link"),
    (port(80, ip="192.0.2.1 }; flush ruleset"), {}, 7, "is not an address"),
    (port(80), {"backend": "ebtables"}, 7, 'unrecognized backend "ebtables"'),
    (port(80), {"markMasqBit": 32}, 7, "MasqMarkBit must be between 0 and 31"),
    (port(80), {"markMasqBit": -1}, 7, "MasqMarkBit must be between 0 and 31"),
    (port(80), {"markMasqBit": 3, "externalSetMarkChain": "X"}, 7, "Cannot specify externalSetMarkChain and markMasqBit"),
    (port(80), {"externalSetMarkChain": "X Y"}, 7, '"externalSetMarkChain"'),
    (port(80), {"externalSetMarkChain": ""}, 7, '"externalSetMarkChain"'),
    (port(80), {"externalSetMarkChain": "X" * 29}, 7, '"externalSetMarkChain"'),
    (port(80), {"backend": "nftables", "externalSetMarkChain": "X"}, 2, "iptables-specific options [externalSetMarkChain]"),
    (port(80), {"backend": "nftables", "conditionsV4": ["-s", "10.0.0.0/8"]}, 2, "iptables-specific options [conditionsV4]"),
    (port(80), {"backend": "iptables", "conditionsV6": ["ip6", "saddr", "::1"]}, 2, "nftables-specific options [conditionsV6]"),
    (port(80), {"conditionsV4": ["!", "-i", "x"], "conditionsV6": ["iifname", "x"]}, 2, "iptables backend was requested"),
    (port(80), {"conditionsV4": ["iifname", "x; flush ruleset"]}, 7, '"conditionsV4" is not a valid condition'),
    (port(80), {"conditionsV4": ["iifname", "x\nflush ruleset"]}, 7, '"conditionsV4" is not a valid condition'),
    (port(80), {"conditionsV6": ["-s", "::1\nCOMMIT"]}, 7, '"conditionsV6" is not a valid condition'),
    (port(80), {"conditionsV4": ["iifname", "}"]}, 7, '"conditionsV4" is not a valid condition'),
    (port(80), {"conditionsV4": ["no", "such", "words"]}, 7, "nftables refuses the conditions"),
    (port(80), {"conditionsV4": ["ip", "saddr", "10.0.0.1", "accept"]}, 7, "nftables refuses the conditions"),
    (port(80), {"conditionsV4": ["--no-such-option"]}, 101, "the kernel refused"),
    (port(80), {"externalSetMarkChain": "NO-SUCH-CHAIN"}, 101, "the kernel refused"),
    (port(80), {"snat": "yes"}, 7, '"snat"'),
]


@pytest.mark.parametrize(("mapping", "more", "code", "words"), REFUSED)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    node: Host, mapping: dict[str, Any], more: dict[str, Any], code: int, words: str
) -> None:
    reply = node.call("portmap", "ADD", conf(mapping, **more), sandbox=Sandbox("c1"), prev=prev())
    assert reply.code == code, reply
    assert words in reply.json["msg"]
    assert elements(node) == {}
    assert "CNI-DN" not in nat(node)
    assert node.run("ls /run/cni-py/portmap", check=False) == ""


@pytest.mark.parametrize("mapping", [port(0), port(70000), port(80, protocol="icmp"), port(80, 0, "udp", "nonsense")])
def test_delete_succeeds_whatever_the_ports_are(node: Host, mapping: dict[str, Any]) -> None:
    """A runtime sends the same configuration to DEL as to the ADD that was refused."""
    add(node, port(8080))
    delete(node, mapping)
    assert elements(node) == {}


def test_previous_result_that_cannot_be_read(node: Host) -> None:
    reply = node.call("portmap", "ADD", conf(port(80)), sandbox=Sandbox("c1"), prev=prev(ips=[{"address": "x"}]))
    assert reply.code == 6


def test_status(node: Host) -> None:
    for backend in ({}, {"backend": "nftables"}, {"backend": "iptables"}):
        node.ok("portmap", "STATUS", conf(**backend))
    assert node.call("portmap", "STATUS", conf(backend="x")).code == 7
    node.do(without_nftables, forwarding.check_backend, "")
    with pytest.raises(NotAvailable, match="neither nftables nor iptables"):
        node.do(without_anything, forwarding.check_backend, "")
    with pytest.raises(NotAvailable, match='"iptables" cannot be used'):
        node.do(without_anything, forwarding.check_backend, "iptables")
    with pytest.raises(NotAvailable, match='"nftables" cannot be used'):
        node.do(without_nftables, forwarding.check_backend, "nftables")


def without_nftables(function: Callable[..., Any], *args: Any) -> Any:
    libnftables.LIBRARY = "libnftables-is-not-here.so"
    return function(*args)


def without_anything(function: Callable[..., Any], *args: Any) -> Any:
    program.SYSTEM_DIRECTORIES = ()
    posix.environ[b"PATH"] = b""
    return without_nftables(function, *args)


# --- owners -----------------------------------------------------------------------------------------------------------


def test_add_twice_changes_nothing(node: Host) -> None:
    add(node, port(8080), port(53, 53, "udp", "192.0.2.1"))
    before = node.run("nft -a list ruleset")
    add(node, port(8080), port(53, 53, "udp", "192.0.2.1"))
    assert node.run("nft -a list ruleset") == before


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_second_pod_leaves_no_trace(node: Host, backend: str) -> None:
    add(node, port(8080), backend=backend)
    before = node.snapshot()
    add(node, port(8081), port(8082, ip="192.0.2.1"), of="c2", pod=3, backend=backend)
    assert node.snapshot() != before
    delete(node, of="c2")
    assert node.snapshot() == before


def test_newest_wins_with_a_word_in_the_journal(node: Host) -> None:
    add(node, port(8080))
    add(node, port(8080), of="c2", pod=3)
    assert elements(node)["hostports4 tcp 8080"] == "c2: 10.1.0.3 80"
    journal = node.run("cat /run/cni-py/journal/c2:eth0:cbr0")
    assert f'host port tcp . 8080 reassigned from "{C1.comment()}" to "{C2.comment()}": the newest wins' in journal
    delete(node, of="c1")
    assert elements(node)["hostports6 tcp 8080"] == "c2: fd00:1::3 80"
    assert check(node, port(8080), of="c2", pod=3).rc == 0
    reply = check(node, port(8080))
    assert reply.code == 103
    assert "c1 eth0" in reply.json["details"]
    assert "c2 eth0" in reply.json["details"]


def test_newest_wins_with_iptables_too(node: Host) -> None:
    add(node, port(8080), backend="iptables")
    add(node, port(8080), of="c2", pod=3, backend="iptables")
    jumps = [line for line in nat(node).splitlines() if "CNI-HOSTPORT-DNAT -p" in line]
    assert [line.partition('id: \\"')[2][:2] for line in jumps] == ["c2", "c1"] * 2
    assert 'host port tcp 8080 reassigned from dnat name: "cbr0" id: "c1"' in node.run("cat /run/cni-py/journal/c2:eth0:cbr0")
    delete(node, of="c1")
    assert check(node, port(8080), of="c2", pod=3, backend="iptables").rc == 0


def test_interfaces_and_networks_of_one_container_are_apart(node: Host) -> None:
    add(node, port(8080))
    node.ok(
        "portmap",
        "ADD",
        conf(port(8081)),
        ifname="eth1",
        sandbox=Sandbox("c1"),
        prev=prev(interfaces=[], ips=[{"address": "10.1.0.9/24"}]),
    )
    node.ok("portmap", "ADD", conf(port(8082)) | {"name": "other"}, sandbox=Sandbox("c1"), prev=prev())
    delete(node)
    assert sorted(elements(node)) == ["hostports4 tcp 8081", "hostports4 tcp 8082", "hostports6 tcp 8082"]
    node.ok("portmap", "DEL", conf(), ifname="eth1")
    assert sorted(elements(node)) == ["hostports4 tcp 8082", "hostports6 tcp 8082"]


@pytest.mark.parametrize("container_id", ["c1", LONG])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_long_ids(node: Host, container_id: str, backend: str) -> None:
    add(node, port(8080), of=container_id, backend=backend)
    assert check(node, port(8080), of=container_id, backend=backend).rc == 0
    delete(node, of=container_id)
    assert elements(node) == {}
    assert "CNI-DN" not in nat(node)


def test_names_with_a_meaning_to_nft(node: Host) -> None:
    owner = Owner("c1", 'e"th;{}\\', 'n"et')
    node.do(forwarding.add, wanted(owner))
    node.do(portmap_check.check, wanted(owner))
    node.do(forwarding.delete, owner)
    assert elements(node) == {}


def wanted(owner: Owner = C1, pod: str = "10.1.0.2/24", host_port: int = 8080, **more: Any) -> Wanted:
    mapping = Mapping("tcp", host_port, ip_interface(pod), 80)
    return Wanted(owner, (mapping,), (("tcp", host_port),), **more)


# --- one transaction, typed by hand, repaired -------------------------------------------------------------------------


def test_one_transaction_a_call(node: Host) -> None:
    ports = [port(n, protocol=p) for n in range(8000, 8010) for p in ("tcp", "udp")]
    add(node, *ports)
    add(node, *[port(n + 100) for n in range(8000, 8010)], of="c2", pod=3)
    delete(node)
    first, second = (node.run(f"cat /run/cni-py/journal/{name}") for name in ("deleted/c1:eth0:cbr0", "c2:eth0:cbr0"))
    added, deleted = first.split("DEL portmap")
    assert [text.count("  nft ") for text in (added, second, deleted)] == [1, 1, 1]
    assert "add chain" not in second, "existing chains are not sent again"


def test_journal_lines_can_be_typed(node: Host) -> None:
    add(node, port(8080), port(53, 53, "udp", "192.0.2.1"))
    made = node.run("nft list ruleset")
    lines = [line[17:].rpartition("  (")[0] for line in node.run("cat /run/cni-py/journal/c1:eth0:cbr0").splitlines()]
    node.run("nft flush ruleset")
    for line in lines:
        if line.startswith("nft "):
            node.run(line)
    assert node.run("nft list ruleset") == made


AT = "inet cni_py hostports4_at '{ 192.0.2.1 . udp . 53 }'"
OTHER_TARGET = "inet cni_py hostports4_at '{ 192.0.2.1 . udp . 53 comment \"c1 eth0 cb6e746f\" : 10.1.0.2 . 54 }'"
BREAK = [
    "nft flush ruleset",
    "nft delete table inet cni_py",
    "nft flush chain inet cni_py prerouting",
    "nft flush chain inet cni_py output; nft delete chain inet cni_py output",
    "nft flush chain inet cni_py hostports4",
    "nft insert rule inet cni_py hostports6 return",
    "nft flush chain inet cni_py masquerade-mark13",
    "nft flush chain inet cni_py mark13-from-10.1.0.0_24",
    "nft add rule inet cni_py mark13-from-fd00-1--_64 drop",
    "nft flush map inet cni_py hostports4",
    "nft delete element inet cni_py sources6 '{ tcp . 8080 }'",
    f"nft delete element {AT}; nft add element {OTHER_TARGET}",
    "nft flush chain inet cni_py localnet",
    "nft flush set inet cni_py localnet",
    "sysctl -qw net.ipv4.conf.cni0.route_localnet=0",
]


@pytest.mark.parametrize("damage", BREAK)
def test_check_finds_damage_and_add_repairs_it(node: Host, damage: str) -> None:
    ports = [port(8080), port(53, 53, "udp", "192.0.2.1")]
    add(node, *ports)
    whole = node.snapshot()["host"]["nft"]
    assert check(node, *ports).rc == 0
    node.run(damage)
    reply = check(node, *ports)
    assert reply.code == 103
    assert "expected" in reply.json["details"]
    assert "found" in reply.json["details"]
    add(node, *ports)
    assert check(node, *ports).rc == 0
    assert sorted(map(json.dumps, node.snapshot()["host"]["nft"])) == sorted(map(json.dumps, whole))


def typed(node: Host, hint: str) -> None:
    """Type the command of a hint."""
    node.run(f"PATH=$PATH:{Path(node.bin_dir).parent.parent}/bin; {hint}")


@pytest.mark.parametrize("damage", BREAK)
def test_hint_of_check_repairs_the_damage(node: Host, damage: str) -> None:
    ports = [port(8080), port(53, 53, "udp", "192.0.2.1")]
    add(node, *ports)
    whole = node.snapshot()["host"]["nft"]
    node.run(damage)
    for _ in range(3):
        reply = check(node, *ports)
        if reply.rc:
            typed(node, hints(reply)[0])
    assert check(node, *ports).rc == 0
    assert sorted(map(json.dumps, node.snapshot()["host"]["nft"])) == sorted(map(json.dumps, whole))


@pytest.mark.parametrize("more", [{"markMasqBit": 31}, {"markMasqBit": 0}, {"masqAll": True}, {"snat": False}])
def test_check_after_add_with_options(node: Host, more: dict[str, Any]) -> None:
    add(node, port(8080), **more)
    assert check(node, port(8080), **more).rc == 0
    assert (check(node, port(8080)).code == 103) == (node.run("nft list ruleset").count("mark13-from-10.1.0.0_24") == 0)


BREAK_IPTABLES = [
    "iptables -t nat -F CNI-HOSTPORT-DNAT",
    "iptables -t nat -D PREROUTING 1",
    "ip6tables -t nat -D OUTPUT 1",
    "iptables -t nat -F CNI-HOSTPORT-MASQ",
    "iptables -t nat -D POSTROUTING 1",
    "chain=$(ip6tables -t nat -S | grep -m1 -o 'CNI-DN[^ ]*'); ip6tables -t nat -F $chain",
    "nft flush ruleset",
]


@pytest.mark.parametrize("damage", BREAK_IPTABLES)
def test_check_finds_damage_and_add_repairs_it_with_iptables(node: Host, damage: str) -> None:
    add(node, port(8080), backend="iptables", conditionsV4=["!", "-s", "192.0.2.7", "-i", "eth+"])
    whole = nat(node)
    more = {"backend": "iptables", "conditionsV4": ["!", "-s", "192.0.2.7", "-i", "eth+"]}
    assert check(node, port(8080), **more).rc == 0
    node.run(damage)
    assert check(node, port(8080), **more).code == 103
    add(node, port(8080), **more)
    assert check(node, port(8080), **more).rc == 0
    assert nat(node) == whole


@pytest.mark.parametrize("damage", BREAK_IPTABLES)
def test_hint_of_check_repairs_the_damage_with_iptables(node: Host, damage: str) -> None:
    more = {"backend": "iptables", "conditionsV4": ["!", "-s", "192.0.2.7", "-i", "eth+"]}
    add(node, port(8080), **more)
    whole = nat(node)
    node.run(damage)
    typed(node, hints(check(node, port(8080), **more))[0])
    assert check(node, port(8080), **more).rc == 0
    assert nat(node) == whole


FOREIGN = """
table inet filter { chain forward { type filter hook forward priority 0; policy accept; counter; }; }
table ip cni_hostport { chain hostports { tcp dport 8080 dnat to 10.9.0.2:80 comment "other"; }; }
table inet portmaps { map hostports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }; }
"""


def test_rules_of_others_are_not_touched(node: Host) -> None:
    node.run("nft -f -", stdin=FOREIGN)
    node.run("iptables -t nat -N CNI-DN-0123456789abcdef01234; iptables -t nat -N CNI-HOSTPORT-DNAT")
    node.run("iptables -t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j CNI-DN-0123456789abcdef01234")
    node.do(masquerade.add, C1, [ip_interface("10.1.0.2/24")])

    def foreign() -> list[Any]:
        everything = node.snapshot()["host"]["nft"]
        return [o for o in everything if '"cni_py"' not in json.dumps(o) or "masq4" in json.dumps(o)]

    before = foreign()
    add(node, port(8080))
    assert check(node, port(8080)).rc == 0
    node.ok("portmap", "GC", conf() | {"cni.dev/valid-attachments": []})
    delete(node)
    assert foreign() == before
    node.do(masquerade.check, C1, [ip_interface("10.1.0.2/24")])


def test_masquerade_and_host_ports_repair_their_own(node: Host) -> None:
    """Both build the same table, in either order."""
    addresses = [ip_interface("10.1.0.2/24")]
    add(node, port(8080))
    node.do(masquerade.add, C1, addresses)
    assert check(node, port(8080)).rc == 0
    node.do(masquerade.check, C1, addresses)
    node.do(masquerade.delete, C1)
    node.do(masquerade.delete_stale, "cbr0", [])
    assert check(node, port(8080)).rc == 0


# --- gc ---------------------------------------------------------------------------------------------------------------


def gc(node: Host, *valid: tuple[str, str], **more: Any) -> None:
    entries = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
    node.ok("portmap", "GC", conf(**more) | {"cni.dev/valid-attachments": entries})


def test_gc_keeps_the_list_and_other_networks(node: Host) -> None:
    for number, name in enumerate(("c1", "c2", LONG), 2):
        add(node, port(8000 + number), of=name, pod=number)
    node.ok("portmap", "ADD", conf(port(9000)) | {"name": "other"}, container_id="c9", sandbox=Sandbox("c1"), prev=prev(v6=""))
    gc(node, ("c1", "eth0"), (LONG, "eth0"), ("c2", "eth1"))
    owners = {owner.split(":")[0] for owner in elements(node).values()}
    assert owners == {"c1", short_id(LONG), "c9"}
    assert node.run("ls /run/cni-py/portmap").split() == [
        "c1:eth0:cbr0",
        "c9:eth0:other",
        node.run("ls /run/cni-py/portmap | grep ffff").strip(),
    ]
    gc(node)
    assert {owner.split(":")[0] for owner in elements(node).values()} == {"c9"}


def test_gc_without_list_frees_what_lost_its_sandbox(node: Host) -> None:
    add(node, port(8080))
    second = node.netns("c3")
    node.ok("portmap", "ADD", conf(port(8081)), container_id="c3", sandbox=second, prev=prev(v4="10.1.0.3/24", v6=""))
    node.ok("portmap", "GC", conf())
    assert len(elements(node)) == 3
    node.delete_netns(second)
    node.ok("portmap", "GC", conf())
    assert sorted(elements(node)) == ["hostports4 tcp 8080", "hostports6 tcp 8080"]
    assert node.run("ls /run/cni-py/portmap").split() == ["c1:eth0:cbr0"]


def test_records_of_the_chain_are_not_forgotten_too_early(node: Host) -> None:
    """DEL and GC of the chain come to portmap and to bridge in turn; each needs its record until its own turn."""
    bridge = {
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "bridge",
        "bridge": "cni0",
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"},
    }
    pod = node.netns("pod")
    result = node.ok("bridge", "ADD", bridge, container_id="pod", sandbox=pod)
    node.ok("portmap", "ADD", conf(port(8080)), container_id="pod", sandbox=pod, prev=result)
    node.delete_netns(pod)
    node.ok("bridge", "GC", bridge)
    assert elements(node), "bridge takes away what is bridge's"
    node.ok("portmap", "GC", conf())
    assert elements(node) == {}
    pod = node.netns("pod")
    result = node.ok("bridge", "ADD", bridge, container_id="pod", sandbox=pod)
    node.ok("portmap", "ADD", conf(port(8080)), container_id="pod", sandbox=pod, prev=result)
    node.delete_netns(pod)
    node.ok("portmap", "DEL", conf(), container_id="pod")
    node.ok("bridge", "GC", bridge)
    assert not [name for name in node.files() if "/10.1.0." in name], "the address is free"


def test_gc_takes_chains_out_of_use_and_repairs_the_base(node: Host) -> None:
    conditions = {"conditionsV4": ["ip", "saddr", "192.0.2.2"]}
    add(node, port(8080), markMasqBit=5)
    add(node, port(8081), of="c2", pod=3, **conditions)
    node.run("nft flush chain inet cni_py prerouting; nft flush chain inet cni_py hostports4")
    gc(node, ("c2", "eth0"))
    text = node.run("nft list ruleset")
    assert "mark5" not in text
    assert "mark13-from-10.1.0.0_24" in text, "the chain of the conditions goes there"
    assert check(node, port(8081), of="c2", pod=3, **conditions).rc == 0
    gc(node)
    text = node.run("nft list ruleset")
    assert "mark13" not in text
    assert "if-" not in text
    add(node, port(8081), of="c2", pod=3, **conditions)
    assert check(node, port(8081), of="c2", pod=3, **conditions).rc == 0


def test_gc_takes_iptables_chains(node: Host) -> None:
    add(node, port(8080), backend="iptables")
    add(node, port(8081), of="c2", pod=3, backend="iptables")
    gc(node, ("c1", "eth0"))
    assert check(node, port(8080), backend="iptables").rc == 0
    assert nat(node).count('id: \\"c2\\"') == 0
    gc(node)
    assert "CNI-DN" not in nat(node)


def test_gc_on_a_host_without_anything(node: Host) -> None:
    gc(node)
    assert node.run("nft list ruleset") == ""


# --- where a back end is missing --------------------------------------------------------------------------------------


def test_iptables_is_chosen_where_nftables_cannot_be_used(node: Host) -> None:
    node.do(without_nftables, forwarding.add, wanted())
    assert "10.1.0.2:80" in nat(node)
    node.do(without_nftables, portmap_check.check, wanted())
    node.do(portmap_check.check, wanted())
    node.do(without_nftables, forwarding.delete, C1)
    assert "CNI-DN" not in nat(node)
    with pytest.raises(NotAvailable):
        node.do(without_nftables, forwarding.add, wanted(), "nftables")
    with pytest.raises(NotAvailable):
        node.do(without_anything, forwarding.add, wanted())


def test_delete_succeeds_where_nothing_can_be_used(node: Host) -> None:
    node.do(forwarding.add, wanted(C2))
    before = elements(node)
    assert before
    node.do(without_anything, forwarding.delete, C1)
    assert elements(node) == before
    node.do(without_anything, forwarding.delete_stale, "cbr0", [])
    assert elements(node) == {}


def test_delete_loads_no_library(node: Host) -> None:
    """Neither of c1, which has nothing, nor of c2."""
    add(node, port(8080), of="c2", pod=3)
    assert node.do(modules_after_delete) == (False, False)
    assert elements(node) == {}


def modules_after_delete() -> tuple[bool, bool]:
    """Return whether c_library.py, which loads libnftables, was needed."""
    sys.modules.pop("cni_py.c_library", None)
    forwarding.delete(C1)
    without_mappings = "cni_py.c_library" in sys.modules
    forwarding.delete(C2)
    return without_mappings, "cni_py.c_library" in sys.modules


def imported(node: Host, verb: str, request: dict[str, Any]) -> set[str]:
    """Return the modules that a call imports, in a process of its own as a runtime starts it."""
    launcher = Path(f"{node.bin_dir}/portmap")
    interpreter = launcher.read_text().splitlines()[0].removeprefix("#!").split()[0]
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
    done = node.execute([interpreter, "-IS", "-X", "importtime", str(launcher)], stdin=json.dumps(request), env=env)
    assert done.returncode == 0, done.stdout
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
def test_without_ports_next_to_nothing_is_imported(node: Host, verb: str) -> None:
    names = imported(node, verb, conf() | {"prevResult": prev()})
    assert "cni_py.plugins.meta.portmap" in names
    assert not [name for name in names if name.startswith(("pyroute2", "ctypes", "_ctypes", "json", "subprocess", "logging"))]
    assert ("cni_py.packetfilter.hostports.forwarding" in names) == (verb == "DEL"), "DEL checks for our elements"


def test_a_mapping_needs_no_pyroute2(node: Host) -> None:
    for verb in ("ADD", "CHECK", "DEL"):
        names = imported(node, verb, conf(port(8080), port(53, 53, "udp")) | {"prevResult": prev()})
        assert ("cni_py.c_library" in names) is (verb != "DEL"), "libnftables"
        assert not [name for name in names if name.startswith(("pyroute2", "ctypes", "json", "subprocess", "logging"))]


# --- what the Go plugin made ------------------------------------------------------------------------------------------


def go_conf(*ports: dict[str, Any], **more: Any) -> dict[str, Any]:
    return conf(*ports, version="1.0.0", **more)


def go(node: Host, verb: str, *ports: dict[str, Any], of: str = "c1", v6: str = "fd00:1::2/64", **more: Any) -> None:
    node.ok(
        f"{GO_PLUGINS}/portmap",
        verb,
        go_conf(*ports, **more),
        container_id=of,
        sandbox=Sandbox("c1"),
        cni_path=GO_PLUGINS,
        prev=prev("1.0.0", v6=v6),
    )


PORTS = [port(8080), port(53, 53, "udp", "192.0.2.1"), port(443, 443, "tcp", "fd00:2::1"), port(8443)]


@pytest.mark.parametrize("ports", [(), tuple(PORTS)], ids=["without ports", "with ports"])
def test_delete_takes_what_the_go_plugin_made(node: Host, go_plugins: str, ports: tuple[dict[str, Any], ...]) -> None:
    go(node, "ADD", *PORTS)
    go(node, "ADD", port(9090), of="c2")
    assert check(node, *PORTS).rc == 0, "CHECK knows the Go plugin's rules"
    delete(node, *ports)
    left = nat(node)
    assert 'id: \\"c1\\"' not in left
    assert left.count("CNI-HOSTPORT-DNAT -p tcp") == 2, "c2 keeps its own"
    assert left.count("-N CNI-DN") == 2
    assert check(node, port(9090), of="c2").rc == 0
    assert check(node, *PORTS).code == 103


def test_delete_takes_what_the_go_plugin_made_without_nftables(node: Host, go_plugins: str) -> None:
    go(node, "ADD", *PORTS)
    node.do(without_nftables, forwarding.delete, C1)
    assert "CNI-DN" not in nat(node)


@pytest.mark.parametrize(
    "more", [{}, {"snat": False}, {"markMasqBit": 4}, {"conditionsV4": ["-s", "192.0.2.2", "!", "-i", "lo"]}]
)
def test_iptables_rules_are_the_go_plugins(node: Host, go_plugins: str, more: dict[str, Any]) -> None:
    """The back end iptables makes what Go makes, and Go takes it away: a node can be switched with pods on it."""
    many = [*PORTS, *(port(number) for number in range(9000, 9020))]
    go(node, "ADD", *many, **more)
    by_go = sorted(nat(node).splitlines())
    assert check(node, *many, backend="iptables", **more).rc == 0
    node.run("nft flush ruleset")
    add(node, *many, backend="iptables", **more)
    assert sorted(nat(node).splitlines()) == by_go
    go(node, "DEL", *many, **more)
    assert "CNI-DN" not in nat(node)


def make_go_nftables_rules(node: Host, *containers: str) -> None:
    """Create rules like plugins 1.9 with backend nftables (plugins/meta/portmap/portmap_nftables.go)."""
    lines = []
    for family, pod in (("ip", "10.1.0.2"), ("ip6", "fd00:1::2")):
        table = f"{family} cni_hostport"
        lines += [f'add table {table} {{ comment "CNI portmap plugin"; }}']
        lines += [f"add chain {table} {chain}" for chain in ("hostports", "hostip_hostports", "hostports_all")]
        lines += [f"add chain {table} masquerading {{ type nat hook postrouting priority 100; }}"]
        for name in containers:
            to = f"[{pod}]:80" if family == "ip6" else f"{pod}:80"
            lines += [f'add rule {table} hostports tcp dport 8080 dnat to {to} comment "{name}"']
            lines += [f'add rule {table} masquerading {family} saddr {pod} {family} daddr {pod} masquerade comment "{name}"']
            lines += [f'add rule {table} hostip_hostports tcp dport 8081 dnat to {to} comment "{name}"']
    node.run("nft -f -", stdin="\n".join(lines) + "\n")


def test_delete_takes_nftables_rules_of_the_go_plugin(node: Host) -> None:
    make_go_nftables_rules(node, "c1", "c2", "c10")
    node.run("sysctl -qw net.ipv4.conf.cni0.route_localnet=1")
    assert check(node, port(8080)).rc == 0
    assert check(node, port(8080), port(8081), of="c3").code == 103
    delete(node)
    text = node.run("nft list ruleset")
    assert '"c1"' not in text
    assert text.count('"c2"') == text.count('"c10"') == 6
    assert check(node, port(8080)).code == 103


def test_swap_from_go_to_ours_and_a_new_pod(node: Host, go_plugins: str) -> None:
    """A node is switched while pods run: the Go plugin's mapping goes with its pod, the new pod's is ours."""
    go(node, "ADD", port(8080))
    add(node, port(8081), of="c2", pod=3)
    delete(node, port(8080))
    assert "CNI-DN" not in nat(node)
    assert check(node, port(8081), of="c2", pod=3).rc == 0


def test_delete_does_what_it_can_and_names_what_is_left(node: Host) -> None:
    add(node, port(8080))
    add(node, port(8080), backend="iptables")
    chain = node.run("iptables -t nat -S | grep -m1 -o 'CNI-DN[^ ]*'").strip()
    node.run(f"iptables -t nat -N OTHER; iptables -t nat -A OTHER -j {chain}")
    reply = node.call("portmap", "DEL", conf())
    assert reply.rc == 1
    assert f"left behind: chain {chain}" in reply.json["msg"]
    assert elements(node) == {}
    node.run("iptables -t nat -F OTHER")
    delete(node)
    assert chain not in nat(node)


# --- many, and at once ------------------------------------------------------------------------------------------------


def map_and_unmap_many() -> tuple[int, int]:
    """Mappings when all are there, and descriptors that stay open beyond those of the first."""
    forwarding.add(wanted())
    open_before = len(posix.listdir("/proc/self/fd"))
    for number in range(240):
        forwarding.add(wanted(Owner(f"c{number}", "eth0", "n"), host_port=10000 + number))
    count = len(nfnetlink.elements("inet cni_py hostports4"))
    for number in range(240):
        forwarding.delete(Owner(f"c{number}", "eth0", "n"))
    forwarding.delete(C1)
    return count, len(posix.listdir("/proc/self/fd")) - open_before


def test_many_mappings_leave_neither_elements_nor_descriptors(node: Host) -> None:
    count, more_descriptors = node.do(map_and_unmap_many)
    assert count == 241
    assert elements(node) == {}
    assert more_descriptors <= 1, "the probe's socket"


def test_threads_do_not_get_in_each_others_way(node: Host) -> None:
    assert node.do(map_in_threads) == [40, 20]


def map_in_threads() -> list[int]:
    from concurrent.futures import ThreadPoolExecutor

    pods = [wanted(Owner(f"c{number}", "eth0", "n"), host_port=10000 + number) for number in range(40)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(forwarding.add, pods))
        counts = [len(nfnetlink.elements("inet cni_py hostports4"))]
        list(threads.map(lambda pod: forwarding.delete(pod.owner), pods[::2]))
        counts.append(len(nfnetlink.elements("inet cni_py hostports4")))
        list(threads.map(portmap_check.check, pods[1::2]))
    return counts


def test_parallel_calls(node: Host) -> None:
    """Ten containers concurrently on ports of their own, and all on one port: one of them has it, completely."""
    argv = node.command("env", "-i", f"{node.bin_dir}/portmap")
    started = []
    for number in range(10):
        request = conf(port(8000 + number), port(9999)) | {"prevResult": prev(v4=f"10.1.0.{number + 2}/24", v6="")}
        env = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": f"p{number}",
            "CNI_NETNS": "/run/netns/c1",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/x",
        }
        argv = node.command("env", "-i", *[f"{key}={value}" for key, value in env.items()], f"{node.bin_dir}/portmap")
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        started.append(process)
    assert [wait_for_end(process) for process in started] == [0] * 10
    found = elements(node)
    assert len(found) == 11
    holder = found["hostports4 tcp 9999"].split(":")[0]
    text = node.run("nft list map inet cni_py sources4")
    assert f'tcp . 9999 comment "{holder} eth0' in " ".join(text.split())


# --- sctp: the kernel here may have no sockets of it, but it tracks its connections -----------------------------------


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_port_seen(sender: str, receiver: str, address: str, number: int) -> int:
    """Send an INIT from one namespace to a port; the port that it arrives at in another (0: none)."""
    import ctypes

    made: dict[str, socket.socket] = {}

    def make(name: str) -> None:
        with open(f"/run/netns/{name}") as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
        made[name] = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)

    for name in (sender, receiver):
        thread = threading.Thread(target=make, args=(name,))
        thread.start()
        thread.join()
    made[receiver].settimeout(10)
    chunk = b"\x01\x00\x00\x14" + b"\x11\x22\x33\x44" + b"\x00\x01\x00\x00" + b"\x00\x01\x00\x01" + b"\x00\x00\x00\x01"
    head = (5000).to_bytes(2, "big") + number.to_bytes(2, "big") + bytes(4)
    packet = head + bytes(4) + chunk
    made[sender].sendto(head + crc32c(packet).to_bytes(4, "little") + chunk, (address, 0))
    try:
        got = made[receiver].recv(1000)
    except TimeoutError:
        return 0
    finally:
        for one in made.values():
            one.close()
    return int.from_bytes(got[22:24], "big")


def test_sctp(node: Host) -> None:
    if "y" not in node.run("zcat /proc/config.gz 2>/dev/null | grep CONFIG_NF_CT_PROTO_SCTP= || echo unknown y"):
        pytest.skip("this kernel does not track SCTP")
    node.run(
        "sysctl -qw net.ipv4.ip_forward=1; ip link add v1 type veth peer name eth0 netns c1; ip link set v1 master cni0 up;"
        "ip -n c1 addr add 10.1.0.2/24 dev eth0; ip -n c1 link set eth0 up; ip -n c1 route add default via 10.1.0.1;"
        "ip link add up0 type veth peer name eth0 netns c2; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up;"
        "ip -n c2 addr add 192.0.2.2/24 dev eth0; ip -n c2 link set eth0 up"
    )
    add(node, port(9899, 36412, "SCTP"))
    assert node.do(sctp_port_seen, "c2", "c1", "192.0.2.1", 9899) == 36412


# --- kernel module's own edges ----------------------------------------------------------------------------------------


def test_check_names_what_is_expected_and_found(node: Host) -> None:
    node.do(forwarding.add, wanted())
    with pytest.raises(CheckFailed) as caught:
        node.do(portmap_check.check, wanted(pod="10.1.0.7/24"))
    assert '"10.1.0.7 . 80" of owner "c1 eth0' in caught.value.details
    assert 'found "10.1.0.2 . 80" of owner "c1 eth0' in caught.value.details


def test_old_element_of_the_other_kind_goes(node: Host) -> None:
    """Sources are not marked without snat, whatever the port's previous owner had."""
    node.do(forwarding.add, wanted())
    node.do(forwarding.add, wanted(C2, snat=False))
    node.do(portmap_check.check, wanted(C2, snat=False))
    assert "sources4" in node.run("nft list table inet cni_py")
    assert nfnetlink_elements(node, "inet cni_py sources4") == 0


def nfnetlink_elements(node: Host, name: str) -> int:
    return len(node.do(nfnetlink.elements, name))


def test_keys_are_the_kernels(node: Host) -> None:
    mapping = Mapping("sctp", 99, ip_interface("fd00:1::2/64"), 98, ip_address("fd00:2::1"))
    node.do(forwarding.add, Wanted(C1, (mapping,)))
    (found,) = node.do(nfnetlink.elements, "inet cni_py hostports6_at")
    assert (found.key, found.data) == (portmap_rules.key_of(mapping), portmap_rules.target_of(mapping))
    assert portmap_rules.key_text(found.key) == "fd00:2::1 . sctp . 99"
