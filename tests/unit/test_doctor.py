"""The catalogue of the doctor over facts that are made by hand: each rule finds its fault, and a healthy node has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from errno import EACCES, EINVAL
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_py.doctor import examine, table, text
from cni_py.doctor import facts as names
from cni_py.doctor.catalogue import RULES
from cni_py.doctor.config_check import Checked
from cni_py.doctor.facts import (
    Certificate,
    ConfFile,
    Counters,
    Daemon,
    Disk,
    Facts,
    Known,
    KubeNode,
    Kubernetes,
    Passage,
    Pod,
    PodLink,
    Pool,
    Probed,
    Program,
    Reached,
    Taker,
    Wanted,
    Way,
)
from cni_py.doctor.findings import ERROR, WARNING, Finding, Report, Rule
from cni_py.doctor.rules import devices
from cni_py.errors import NotAvailable
from cni_py.flanneld.host_networks import HostNetwork
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.options import Options
from cni_py.kernel.address import HostAddress
from cni_py.kernel.link import Link
from cni_py.kernel.neighbour import Forwarding, Neighbour
from cni_py.kernel.route import Route
from cni_py.kernel.vxlan import Vxlan, VxlanDetails
from cni_py.netlink.constants import IFF_UP, RTN_UNREACHABLE
from cni_py.packetfilter.evaluation.ruleset import Ruleset
from cni_py.runtime.network_config import Network
from cni_py.subnet_env import SubnetEnv
from cni_py.sweep.leftovers import Leftover
from cni_py.sweep.report import WOULD_REMOVE
from cni_py.sweep.report import Finding as Swept
from cni_py.sweep.report import Report as SweepReport
from cni_py.sweep.restore import WOULD_RESTORE, Lost

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
NETWORK, OWN, PEER = IPv4Network("10.244.0.0/16"), IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
NODE, PEER_NODE = IPv4Address("192.168.123.11"), IPv4Address("192.168.123.12")
MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
ENDS = NOW.timestamp() + 20 * 3600


def lease(subnet: IPv4Network, node: IPv4Address, mac: str, **more: Any) -> Lease:
    its = Attributes(node, backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": mac})
    return Lease(Subnets(subnet), its, **({"expires": ENDS} | more))


OWN_LEASE, PEER_LEASE = lease(OWN, NODE, MAC), lease(PEER, PEER_NODE, PEER_MAC)


def link(ifindex: int, name: str, kind: str, mtu: int = 1450, **more: Any) -> Link:
    values = {"mac": MAC, "flags": IFF_UP, "master": 0, "peer": 0, "operstate": "UP", "alias": ""} | more
    return Link(ifindex=ifindex, name=name, kind=kind, mtu=mtu, hairpin=False, isolated=False, vlan_filtering=None, **values)


ETH0, FLANNEL = link(2, "eth0", "", 1500), link(3, "flannel.1", "vxlan")
CNI0, VETH = link(4, "cni0", "bridge"), link(5, "veth00000001", "veth", master=4, altnames=("cni:c1:eth0:cbr0",))
LINKS = (ETH0, FLANNEL, CNI0, VETH)


def at(ifindex: int, address: str) -> HostAddress:
    interface = ip_interface(address)
    return HostAddress(ifindex, interface.ip, 0, interface.network)


ROUTE = Route(PEER, "flannel.1", PEER.network_address, onlink=True)
NEIGHBOUR = Neighbour("flannel.1", PEER.network_address, PEER_MAC)
FORWARDING = Forwarding("flannel.1", PEER_MAC, PEER_NODE)
WANTED = Wanted(PEER_LEASE, PEER, ROUTE, NEIGHBOUR, FORWARDING)
TUNNEL = Vxlan("flannel.1", 1, 8472, NODE, 2, MAC, 1450)
DETAILS = VxlanDetails("flannel.1", 3, MAC, 1450, 0, True, 1, 8472, NODE, None, 2, False, False, False, False)
PLUGINS = ({"type": "flannel", "delegate": {"isDefaultGateway": True}}, {"type": "portmap"})
CONF = ConfFile("/etc/cni/net.d/10-flannel.conflist", Checked("10"), Network("cbr0", "1.0.0", PLUGINS, b""))
DAEMON = Daemon(17, "/opt/bin/flanneld", Options())
SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/eth0/rp_filter": "2",
    "net/ipv4/conf/cni0/forwarding": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
}
REACHED = Reached(PEER_LEASE, PEER, PEER.network_address, tunnel=True, full=True, node=True, checked=True)
MASQUERADE = """*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 10.244.1.0/24 -d 10.244.0.0/16 -j RETURN
-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
"""
HEALTHY = Facts(
    now=NOW,
    daemons=(DAEMON,),
    env=SubnetEnv((NETWORK,), (OWN,), 1450, True),
    known=Known("/var/lib/cni-py/flanneld.json", NetworkConfig.parse(CONFIG), OWN_LEASE, {
        OWN_LEASE.subnets: OWN_LEASE, PEER_LEASE.subnets: PEER_LEASE
    }),
    published={OWN_LEASE.subnets: OWN_LEASE, PEER_LEASE.subnets: PEER_LEASE},
    conf_subnet_file="/run/flannel/subnet.env",
    conf_files=(CONF,),
    programs=(Program("flannel", "/opt/cni/bin/flannel"),),
    cni_path=("/opt/cni/bin",),
    pools=(Pool("cbr0", "10.244.1.1-10.244.1.254", 253, 1),),
    leaks=SweepReport(),
    disks=(Disk("/run", 1 << 30, 1 << 31, 10000, 20000),),
    newest_file=NOW.timestamp() - 60,
    links=LINKS,
    addresses=(at(2, f"{NODE}/24"), at(3, "10.244.1.0/32"), at(4, "10.244.1.1/24")),
    routes=frozenset((ROUTE,)),
    sysctls=SYSCTLS,
    vxlans=(DETAILS,),
    neighbours=frozenset((NEIGHBOUR,)),
    forwarding=frozenset((FORWARDING,)),
    ways={OWN: Way("cni0"), PEER: Way("flannel.1", PEER.network_address)},
    node_ways={PEER_NODE: Way("eth0")},
    counters=Counters(100, 1000, 10, 1024),
    external=ExternalInterface("eth0", 2, 1500, NODE, None, NODE, None),
    wanted=(WANTED,),
    devices=("flannel.1",),
    tunnels=(TUNNEL,),
    pod_mtu=1450,
    tunnel_port=8472,
    ruleset=Ruleset.of({"iptables-nft": MASQUERADE}, []),
    saved_rules={"iptables-nft": MASQUERADE},
    probed=Probed((REACHED,), 0, 1),
    options=Options(ip_masq=True),
)  # fmt: skip


def filters(text_: str, facts: Facts = HEALTHY, name: str = "iptables-nft", objects: Any = ()) -> Facts:
    saved = {"iptables-nft": MASQUERADE} | {name: text_ if name != "iptables-nft" else MASQUERADE + text_}
    return replace(facts, ruleset=Ruleset.of(saved, list(objects)), saved_rules=saved)


def known(**values: Any) -> Facts:
    assert HEALTHY.known is not None
    return replace(HEALTHY, known=replace(HEALTHY.known, **values))


def with_lease(one: Lease) -> Facts:
    """Return a node that follows this lease too."""
    assert HEALTHY.known is not None
    leases = {**HEALTHY.known.leases, one.subnets: one}
    return replace(known(leases=leases), published=leases)


def links(*changed: Link, without: str = "") -> Facts:
    by_name = {one.name: one for one in LINKS} | {one.name: one for one in changed}
    return replace(HEALTHY, links=tuple(one for name, one in by_name.items() if name != without))


def sysctls(**values: str) -> Facts:
    return replace(
        HEALTHY, sysctls={**SYSCTLS, **{name.replace("__", "/").replace("_n_", "-"): of for name, of in values.items()}}
    )


def leftover(what: str) -> Swept:
    one = Leftover(kind="address", what=what, path=f"/n/{what}", container_id="dead", ifname="eth0", network="cbr0")
    return Swept(one, "cbr0", 10.0, "it is on no interface", WOULD_REMOVE)


def certificate(begins: timedelta, ends: timedelta) -> Facts:
    return replace(HEALTHY, certificates=(Certificate("/c.crt", "client certificate for etcd", NOW + begins, NOW + ends),))


DAY = timedelta(days=1)
TWIN = lease(IPv4Network("10.244.3.0/24"), PEER_NODE, "02:00:00:00:00:03")
THIRD = lease(IPv4Network("10.244.3.0/24"), IPv4Address("192.168.123.13"), "02:00:00:00:00:03")
CLONE = lease(IPv4Network("10.244.3.0/24"), IPv4Address("192.168.123.13"), PEER_MAC)
SERVICES = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -d 10.244.9.1/32 -p tcp -m tcp --dport 80 -j RETURN\nCOMMIT\n"
FILTER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {} [0:0]\n:OUTPUT ACCEPT [0:0]\n{}\nCOMMIT\n"
BROKEN = ConfFile("/etc/cni/net.d/05-x.conflist", Checked("05", errors=("it is not a JSON object",)))
OTHER = ConfFile("/etc/cni/net.d/05-x.conflist", Checked("05"), Network("x", "1.0.0", ({"type": "bridge"},), b""))
POD_LINK = PodLink("eth0", True, 1450, MAC, (ip_interface("10.244.1.2/24"),), (ip_address("10.244.1.1"),))
POD = Pod(
    frozenset({"c1"}), "blue", "c1", "eth0", "cbr0", "/run/netns/blue", "live", addresses=("10.244.1.2",), links=(POD_LINK,)
)


def pod(**values: Any) -> Facts:
    return replace(HEALTHY, pods=(replace(POD, **values),))


def kube(*others: KubeNode, **values: Any) -> Facts:
    node = KubeNode("n1", ("10.244.1.0/24",), True)
    return replace(HEALTHY, kubernetes=Kubernetes(replace(node, **values), others))


def probed(**values: Any) -> Facts:
    return replace(HEALTHY, probed=replace(HEALTHY.probed, peers=(replace(REACHED, **values),)))


ARRIVAL = Passage(f"from node {PEER_NODE} to this node", PEER, "eth0", "", errno=EINVAL, source_by="eth1")
DETOUR = Passage(
    f"from our pods to those of peer {PEER}", PEER, "cni0", "flannel.1", "eth0",
    taken_by=Taker("default via 192.168.123.1", IPv4Network("0.0.0.0/0"), "eth0", "100", rule="priority 99 from 10.244.1.0/24 lookup 100"),
)  # fmt: skip
NO_BRIDGE_NETFILTER = {name: value for name, value in SYSCTLS.items() if "bridge-nf" not in name}
CANAL = ConfFile("/etc/cni/net.d/30-x.conflist", Checked("30"), Network("y", "1.0.0", ({"type": "calico"},), b""))
NATTED = ExternalInterface("eth0", 2, 1500, IPv4Address("192.168.123.99"), None, NODE, None)


CASES: list[tuple[str, str, Facts, str]] = [
    ("flanneld-not-running", ERROR, replace(HEALTHY, daemons=()), "flanneld is not running"),
    ("flanneld-twice", ERROR, replace(HEALTHY, daemons=(DAEMON, replace(DAEMON, pid=18))), "2 flannelds"),
    ("flanneld-not-ready", ERROR, replace(HEALTHY, daemons=(replace(DAEMON, is_ready=False),)), "process 17"),
    ("flanneld-not-ready", ERROR, replace(HEALTHY, daemons=(replace(DAEMON, is_stopped=True),)), "is stopped"),
    ("subnet-env-other", ERROR, replace(HEALTHY, conf_subnet_file="/run/x.env"), "different subnet files"),
    ("lease-address", ERROR, replace(HEALTHY, addresses=HEALTHY.addresses[1:], options=None), str(NODE)),
    ("configuration-changed", WARNING, replace(HEALTHY, published_config=NetworkConfig.parse(CONFIG.replace("16", "17"))), "another"),
    ("peer-not-followed", WARNING, replace(HEALTHY, peer_faults=((PEER_LEASE, "no MAC address"),)), str(PEER)),
    ("peer-not-followed", WARNING, replace(HEALTHY, published={**HEALTHY.published, THIRD.subnets: THIRD}), "is not followed"),  # type: ignore[dict-item]
    ("subnet-env-missing", ERROR, replace(HEALTHY, env=None, env_fault="it does not exist"), "does not exist"),
    ("subnet-env-missing", ERROR, replace(HEALTHY, env=None, env_fault="no FLANNEL_MTU"), "cannot be read"),
    ("subnet-env-stale", ERROR, replace(HEALTHY, env=SubnetEnv((NETWORK,), (PEER,), 1450, True)), "is stale"),
    ("subnet-env-stale", ERROR, replace(HEALTHY, env=SubnetEnv((NETWORK,), (OWN,), 1460, True)), "is stale"),
    ("subnet-env-stale", ERROR, replace(HEALTHY, env=SubnetEnv((NETWORK,), (OWN,), 1400, True)), "is stale"),
    ("subnet-env-contradicted", ERROR, replace(HEALTHY, contradictions=(NotAvailable('"cni0" has no address'),)), '"cni0"'),
    ("lease-ended", ERROR, known(own=replace(OWN_LEASE, expires=1.0)), "has ended"),
    ("lease-lost", ERROR, replace(HEALTHY, published={PEER_LEASE.subnets: PEER_LEASE}), "is missing"),
    ("datastore", ERROR, replace(HEALTHY, unread={names.DATASTORE: "no reply"}), "cannot be read"),
    ("datastore", ERROR, replace(HEALTHY, kubernetes=Kubernetes(fault="401")), "Kubernetes API"),
    ("certificate", ERROR, certificate(-90 * DAY, -DAY), "has expired"),
    ("certificate", WARNING, certificate(-360 * DAY, 5 * DAY), "ends soon"),
    ("certificate", ERROR, certificate(DAY, 90 * DAY), "not valid yet"),
    ("clock", WARNING, replace(HEALTHY, newest_file=NOW.timestamp() + 86400), "clock"),
    ("clock", WARNING, known(own=replace(OWN_LEASE, expires=ENDS + 90000)), "clock"),
    ("conf-missing", ERROR, replace(HEALTHY, conf_files=()), "no network configuration"),
    ("conf-broken", ERROR, replace(HEALTHY, conf_files=(BROKEN, CONF)), "is broken"),
    ("conf-broken", WARNING, replace(HEALTHY, conf_files=(CONF, replace(BROKEN, path="/etc/cni/net.d/99.conf"))), "99.conf"),
    ("conf-order", ERROR, replace(HEALTHY, conf_files=(OTHER, CONF)), "05-x.conflist comes before"),
    ("plugin-missing", ERROR, replace(HEALTHY, programs=(Program("flannel", "/f", "it is not executable"),)), '"flannel"'),
    ("external-interface", ERROR, links(ETH0.replace(flags=0)), "eth0"),
    ("external-interface", ERROR, links(ETH0.replace(operstate="LOWERLAYERDOWN")), "no carrier"),
    ("device-missing", ERROR, replace(links(without="flannel.1"), neighbours=frozenset(), forwarding=frozenset()), "flannel.1"),
    ("device-differs", ERROR, replace(HEALTHY, vxlans=(replace(DETAILS, mtu=1500),)), "flannel.1"),
    ("device-differs", ERROR, replace(HEALTHY, vxlans=(replace(DETAILS, port=4789),)), "flannel.1"),
    ("device-differs", ERROR, links(FLANNEL.replace(flags=0)), "flannel.1"),
    ("vtep-mac", ERROR, links(FLANNEL.replace(mac="02:00:00:00:00:99")), "another MAC address"),
    ("bridge", ERROR, links(CNI0.replace(flags=0)), "is down"),
    ("bridge", ERROR, links(CNI0.replace(mtu=1200)), "smaller"),
    ("pod-link", ERROR, links(VETH.replace(flags=0)), "container c1"),
    ("pod-link", ERROR, links(VETH.replace(master=0)), "on no bridge"),
    ("pod-mtu", ERROR, links(VETH.replace(mtu=1500)), "container c1"),
    ("udp-port-taken", ERROR, replace(HEALTHY, port_holders=("nc, process 9",)), "8472"),
    ("other-network-plugin", WARNING, links(link(9, "cali12345", "veth")), "Calico"),
    ("forwarding", ERROR, sysctls(net__ipv4__ip_forward="0"), "does not forward"),
    ("forwarding", ERROR, sysctls(net__ipv4__conf__cni0__forwarding="0"), "from cni0"),
    ("rp-filter", ERROR, replace(sysctls(net__ipv4__conf__eth0__rp_filter="1"), passages=(ARRIVAL,)), "drops packets on eth0"),
    ("policy-rule", ERROR, replace(HEALTHY, passages=(DETOUR,)), "priority 99 from 10.244.1.0/24 lookup 100"),
    ("bridge-netfilter", WARNING, replace(HEALTHY, sysctls={**SYSCTLS, "net/bridge/bridge-nf-call-iptables": "0"}), "pass"),
    ("own-route", ERROR, replace(HEALTHY, ways={**HEALTHY.ways, OWN: Way("eth0", NODE)}), "our own pods"),
    ("peer-route", ERROR, replace(HEALTHY, ways={**HEALTHY.ways, PEER: Way("eth0", NODE)}), "another route"),
    ("peer-arp", ERROR, replace(HEALTHY, neighbours=frozenset()), "ARP"),
    ("peer-fdb", ERROR, replace(HEALTHY, forwarding=frozenset((replace(FORWARDING, remote=NODE),))), "FDB"),
    ("peer-node-route", ERROR, replace(HEALTHY, node_ways={PEER_NODE: Way()}), "no route to its node"),
    ("peer-node-route", ERROR, replace(HEALTHY, node_ways={PEER_NODE: Way("flannel.1")}), "pods' network"),
    (
        "foreign-route",
        WARNING,
        replace(HEALTHY, routes=HEALTHY.routes | {Route(IPv4Network("10.244.77.0/24"), "eth0", NODE, protocol=3)}),
        "10.244.77.0/24",
    ),
    (
        "stale-route",
        WARNING,
        replace(HEALTHY, routes=HEALTHY.routes | {Route(IPv4Network("10.244.77.0/24"), "flannel.1", NODE)}),
        "10.244.77.0/24",
    ),
    ("node-address-twice", ERROR, with_lease(TWIN), str(PEER_NODE)),
    ("node-address-twice", ERROR, replace(HEALTHY, probed=Probed((REACHED,), duplicates=((NODE, PEER_MAC),))), str(NODE)),
    ("vtep-mac-twice", ERROR, with_lease(CLONE), PEER_MAC),
    ("packets-dropped", ERROR, filters(FILTER.format("DROP", "")), "its policy is drop"),
    ("packets-dropped", ERROR, filters(FILTER.format("ACCEPT", "-A FORWARD -d 10.244.2.0/24 -j REJECT")), "-j REJECT"),
    ("tunnel-dropped", ERROR, filters(FILTER.format("ACCEPT", "-A INPUT -p udp -m udp --dport 8472 -j DROP")), "--dport 8472"),
    ("pods-masqueraded", ERROR, filters("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o flannel.1 -j MASQUERADE\n"), "flannel.1"),
    ("not-masqueraded", ERROR, replace(HEALTHY, ruleset=Ruleset.of({}, []), saved_rules={}), "not masqueraded"),
    ("iptables-mixed", WARNING, filters(MASQUERADE, name="iptables-legacy"), "iptables-legacy"),
    (
        "go-rules",
        WARNING,
        filters("*nat\n:FLANNEL-POSTRTG - [0:0]\n:CNI-PY-FLANNEL-MASQ - [0:0]\nCOMMIT\n"),
        "Go's flanneld",
    ),
    ("pool-empty", ERROR, replace(HEALTHY, pools=(Pool("cbr0", "r", 253, 253),)), "no free address"),
    ("pool-empty", WARNING, replace(HEALTHY, pools=(Pool("cbr0", "r", 253, 250),)), "3 free addresses"),
    ("leaks", WARNING, replace(HEALTHY, leaks=SweepReport((leftover("10.244.1.9"),))), "1 resource"),
    ("rules-lost", ERROR, replace(HEALTHY, lost=(Lost("c1", "eth0", "cbr0", "masquerade", WOULD_RESTORE),)), "1 live pod"),
    ("pod", ERROR, pod(links=None, fault="no such file"), "cannot be entered"),
    ("pod", ERROR, pod(links=()), "does not exist"),
    ("pod", ERROR, pod(links=(replace(POD_LINK, is_up=False),)), "is down"),
    ("pod", ERROR, pod(links=(replace(POD_LINK, addresses=(ip_interface("10.9.9.9/24"),)),)), "10.244.1.2"),
    ("pod", ERROR, pod(links=(replace(POD_LINK, gateways=()),)), "no default route"),
    ("pod", ERROR, pod(differences=(("expected 1, found 2", "", "ip link"),)), "expected 1"),
    ("pod", ERROR, pod(error="the pool is empty"), "the last call failed"),
    ("host-network-overlap", ERROR, replace(HEALTHY, host_networks=frozenset((HostNetwork(OWN, "docker0"),))), "docker0"),
    (
        "host-network-overlap",
        WARNING,
        replace(HEALTHY, host_networks=frozenset((HostNetwork(IPv4Network("10.244.128.0/24"), "docker0"),))),
        "docker0",
    ),
    ("service-overlap", ERROR, filters(SERVICES), "Services"),
    ("disk-full", ERROR, replace(HEALTHY, disks=(Disk("/run", 0, 1 << 30, 100, 1000),)), "is full"),
    ("disk-full", WARNING, replace(HEALTHY, disks=(Disk("/run", 8 << 20, 1 << 30, 1000, 20000),)), "nearly full"),
    ("disk-full", ERROR, replace(HEALTHY, disks=(Disk("/run", 1 << 30, 1 << 31, 0, 20000),)), "is full"),
    ("disk-full", ERROR, replace(HEALTHY, disks=(Disk("/etc", 1, 1, 1, 1, is_read_only=True),)), "read-only"),
    ("conntrack-full", ERROR, replace(HEALTHY, counters=Counters(1000, 1000)), "is full"),
    ("conntrack-full", WARNING, replace(HEALTHY, counters=Counters(900, 1000)), "nearly full"),
    ("arp-table-full", ERROR, replace(HEALTHY, counters=Counters(neighbours=1025, max_neighbours=1024)), "ARP table"),
    ("inotify-full", ERROR, replace(HEALTHY, counters=Counters(inotify_fault="Too many open files")), "watch files"),
    ("kubernetes-node", ERROR, kube(pod_cidrs=()), "no podCIDR"),
    ("kubernetes-node", ERROR, kube(fault="public-ip is missing"), "incomplete"),
    ("kubernetes-node", ERROR, kube(managed=False), "no annotations"),
    ("kubernetes-node", ERROR, kube(network_unavailable="NoRouteCreated"), "NetworkUnavailable"),
    ("kubernetes-peers", WARNING, kube(KubeNode("n2", (), True, "missing IPv4")), '"n2"'),
    ("peer-reached", ERROR, probed(tunnel=False, full=False), "UDP port 8472"),
    ("peer-reached", ERROR, probed(tunnel=False, full=False, node=False), "does not answer"),
    ("peer-mtu", ERROR, probed(full=False), "large packets"),
    ("checksum-offload", ERROR, probed(checked=False, unchecked=True), "flannel.1"),
]  # fmt: skip
IPV6 = {"net/ipv6/conf/cni0/disable_ipv6": "1", "net/ipv6/conf/all/forwarding": "1"}
CASES.append(
    (
        "ipv6-disabled",
        ERROR,
        replace(
            HEALTHY, known=None, env=SubnetEnv((NETWORK, ip_network("fd00::/48")), (OWN,), 1450, True), sysctls=SYSCTLS | IPV6
        ),
        "cni0",
    )
)


# ---- variants of the faults above: what is found, what shows it, and the commands, which are typed as they are ----


@dataclass(frozen=True)
class Variant:
    """``rule`` "": nothing is found; ``what``, ``found``: parts of those; ``repair``: every line of it."""

    name: str
    facts: Facts
    rule: str = ""
    what: str = ""
    found: str = ""
    repair: tuple[str, ...] = ()
    severity: str = ERROR

    def __str__(self) -> str:
        return self.name


def without(*routes: Route, way: Way) -> Facts:
    """Return a node whose packets to the peer's pods go elsewhere."""
    return replace(HEALTHY, routes=frozenset(routes), ways={**HEALTHY.ways, PEER: way})


def routed(*routes: Route) -> Facts:
    return replace(HEALTHY, routes=HEALTHY.routes | set(routes))


def with_link(one: Link, *addresses: HostAddress) -> Facts:
    return replace(links(one), addresses=(*HEALTHY.addresses, *addresses))


def pods(*those: Pod, links: tuple[Link, ...] = LINKS, **facts: Any) -> Facts:
    return replace(HEALTHY, pods=those, links=links, **facts)


def nft(*rules: Any, table: str = "fw", hook: str = "input", policy: str = "accept") -> Facts:
    """Return a node with a chain of nftables and these rules."""
    where = {"family": "inet", "table": table, "chain": "c"}
    chain = {"family": "inet", "table": table, "name": "c", "hook": hook, "prio": 0, "policy": policy}
    listed = [{"rule": {**where, "handle": n, "expr": list(of)}} for n, of in enumerate(rules, 2)]
    return filters("", objects=[{"chain": chain}, *listed])


def equal(protocol: str, field: str, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


TO_PEER = "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 122"
VIA_ROUTER = Way("eth0", IPv4Address("192.168.123.1"))
WRONG = Route(PEER, "flannel.1", IPv4Address("10.244.9.0"), onlink=True)
UNREACHABLE = Route(PEER, kind=RTN_UNREACHABLE, protocol=4)
HALF = Route(IPv4Network("10.244.2.128/25"), "eth0", IPv4Address("192.168.123.1"), protocol=3)
ONE_POD = Route(IPv4Network("10.244.1.7/32"), "cali7", protocol=3)
OWN_HALF = Taker("10.244.1.0/25 via 192.168.123.1 proto boot", IPv4Network("10.244.1.0/25"), "eth0")
INPUT, FORWARD = "*filter\n:INPUT {} [0:0]\n{}\nCOMMIT\n", "*filter\n:FORWARD {} [0:0]\n{}\nCOMMIT\n"
DOCKER = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
ESTABLISHED = "-A {} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
UFW = (
    "*filter\n:INPUT DROP [0:0]\n:ufw-before-input - [0:0]\n-A INPUT -j ufw-before-input\n"
    f"{ESTABLISHED.format('ufw-before-input')}\n-A ufw-before-input -j DROP\nCOMMIT\n"
)
STATE = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
HOST_END = VETH.replace(nsid=1)
CLOSED = filters(INPUT.format("DROP", ESTABLISHED.format("INPUT")))
ADD_HEAD = "nsenter --net=/run/netns/blue ip"
OTHER_POD = replace(
    POD, names=frozenset({"c2"}), name="red", container_id="c2", netns="/run/netns/red", addresses=("10.244.1.3",)
)
BRIDGE_WITH = replace(HEALTHY, addresses=(*HEALTHY.addresses[:2], at(4, "10.244.77.1/24")), pods=(POD,))
SILENT = replace(HEALTHY, probed=replace(HEALTHY.probed, peers=(replace(REACHED, tunnel=False, full=False),)))

VARIANTS = [
    # routes
    Variant("wrong gateway", without(WRONG, way=Way("flannel.1", WRONG.gateway)), "peer-route", "its route is wrong", "10.244.9.0",
            ("ip route del 10.244.2.0/24 via 10.244.9.0 dev flannel.1 onlink proto 122", TO_PEER)),
    Variant("unreachable", without(ROUTE, UNREACHABLE, way=Way(is_discarded=True)), "peer-route", "another route", "unreachable",
            ("ip route del unreachable 10.244.2.0/24 proto 4",)),
    Variant("over several links", without(ROUTE, Route(PEER, metric=0, protocol=3), way=VIA_ROUTER), "peer-route", "another route",
            "10.244.2.0/24", ("ip route del 10.244.2.0/24",)),
    Variant("policy rule", without(ROUTE, way=replace(VIA_ROUTER, taken_by=Taker("default", None, "eth0", "100", rule="priority 9 from all lookup 100"))),
            "peer-route", "another route", "its route: default dev eth0 (table 100)", ("ip rule del priority 9 from all lookup 100",)),
    Variant("address of a peer's subnet on the bridge",
            replace(without(ROUTE, way=Way("lo", taken_by=Taker("local 10.244.2.1/32", IPv4Network("10.244.2.1/32"), "lo", "local", protocol_is_kernel=True))),
                    addresses=(*HEALTHY.addresses, at(4, "10.244.2.1/24"))),
            "peer-route", "another route", "cni0 has the address 10.244.2.1/24", ("ip addr del 10.244.2.1/24 dev cni0",)),
    Variant("address of a peer's pod on lo", replace(HEALTHY, addresses=(*HEALTHY.addresses, at(2, "10.244.2.9/32"))),
            "host-network-overlap", "inside the subnet of peer", "end on this node", ("ip addr del 10.244.2.9/32 dev eth0",)),
    Variant("half of a peer's subnet", routed(HALF), "foreign-route", "10.244.2.128/25", "",
            ("ip route del 10.244.2.128/25 via 192.168.123.1 dev eth0",)),
    Variant("half of our own", replace(HEALTHY, ways={**HEALTHY.ways, OWN: replace(VIA_ROUTER, taken_by=OWN_HALF)}), "own-route",
            "another route takes packets to our own pods", "10.244.1.0/25", ("ip route del 10.244.1.0/25 via 192.168.123.1 proto boot dev eth0",)),
    Variant("one of our own pods", routed(ONE_POD.replace(device="eth0", gateway=NODE)), "foreign-route", "10.244.1.7/32"),
    Variant("a pod of another plugin, as Canal has it", replace(routed(ONE_POD), links=(*LINKS, link(9, "cali7", "veth")), conf_files=(CONF, CANAL))),
    Variant("unreachable node", replace(HEALTHY, node_ways={PEER_NODE: Way(is_discarded=True, taken_by=Taker("unreachable 192.168.123.12/32", IPv4Network("192.168.123.12/32")))}),
            "peer-node-route", "no route to its node", "", ("ip route del unreachable 192.168.123.12/32",)),
    Variant("strict rp_filter, symmetric", sysctls(net__ipv4__conf__all__rp_filter="1", net__ipv4__conf__eth0__rp_filter="1")),
    Variant("policy rule that discards", replace(HEALTHY, passages=(replace(DETOUR, errno=EACCES, outgoing=""),)), "policy-rule", "", "they are discarded",
            ("ip rule del priority 99 from 10.244.1.0/24 lookup 100",)),
    Variant("policy rule for packets of the node too, which is one finding",
            replace(HEALTHY, passages=(DETOUR,), ways={**HEALTHY.ways, PEER: replace(VIA_ROUTER, taken_by=DETOUR.taken_by)}), "peer-route"),
    Variant("FDB entry with another port", replace(HEALTHY, odd_forwarding={FORWARDING: "port 4789"}), "peer-fdb", "is wrong", "port 4789",
            (f"bridge fdb replace {PEER_MAC} dev flannel.1 dst {PEER_NODE} self permanent",)),
    # the packet filter: what closes a firewall stays, and the packets are accepted before it
    Variant("INPUT closed", CLOSED, "tunnel-dropped", "its policy is drop", "VXLAN from",
            ("iptables-nft -t filter -I INPUT -p udp --dport 8472 -j ACCEPT",)),
    Variant("INPUT of everything that is UDP", filters(INPUT.format("ACCEPT", "-A INPUT -p udp -j DROP")), "tunnel-dropped", "", "",
            ("iptables-nft -t filter -I INPUT -p udp --dport 8472 -j ACCEPT",)),
    Variant("one peer", filters(INPUT.format("ACCEPT", f"-A INPUT -s {PEER_NODE}/32 -p udp -j DROP")), "tunnel-dropped", "", "",
            (f"iptables-nft -t filter -D INPUT -s {PEER_NODE}/32 -p udp -j DROP",)),
    Variant("ufw", filters(UFW), "tunnel-dropped", "ufw-before-input", "", ("ufw allow 8472/udp",)),
    Variant("firewalld", nft([STATE, {"accept": None}], [{"reject": None}], table="firewalld"), "tunnel-dropped", "chain inet firewalld c", "",
            ("firewall-cmd --permanent --add-port=8472/udp", "firewall-cmd --reload")),
    Variant("every port of UDP but one", nft([equal("udp", "dport", 53, "!="), {"drop": None}]), "tunnel-dropped", "drop", "",
            ("nft insert rule inet fw c udp dport 8472 accept",)),
    Variant("a port in nft", nft([equal("udp", "dport", 8472), {"drop": None}]), "tunnel-dropped", "drop", "", ("nft delete rule inet fw c handle 2",)),
    Variant("FORWARD closed", filters(FORWARD.format("DROP", "")), "packets-dropped", "its policy is drop", "",
            ("iptables-nft -t filter -I FORWARD -s 10.244.0.0/16 -j ACCEPT", "iptables-nft -t filter -I FORWARD -d 10.244.0.0/16 -j ACCEPT")),
    Variant("FORWARD closed by Docker", filters(DOCKER), "packets-dropped", "its policy is drop", "",
            ("iptables-nft -t filter -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT", "iptables-nft -t filter -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT")),
    Variant("forward closed in nft", nft(hook="forward", policy="drop"), "packets-dropped", "its policy is drop", "",
            ("nft insert rule inet fw c ip saddr 10.244.0.0/16 accept", "nft insert rule inet fw c ip daddr 10.244.0.0/16 accept")),
    Variant("what pods reply to kubelet", filters(INPUT.format("ACCEPT", "-A INPUT -i cni0 -j DROP")), "packets-dropped", "between this node and its pods",
            "probes of kubelet fail", ("iptables-nft -t filter -D INPUT -i cni0 -j DROP",)),
    Variant("pods reach no port of the node", filters(INPUT.format("ACCEPT", f"{ESTABLISHED.format('INPUT')}\n-A INPUT -i cni0 -j DROP"))),
    # links
    Variant("port of another bridge", links(VETH.replace(master=9), link(9, "br9", "bridge")), "pod-link", "a port of br9", "",
            ("ip link set veth00000001 master cni0",)),
    Variant("isolated port", links(VETH.replace(isolated=True)), "pod-link", "isolated", "", ("bridge link set dev veth00000001 isolated off",)),
    Variant("veth of the host on the bridge", links(link(7, "d1", "veth", 1500, master=4, peer=8), link(8, "d2", "veth", 1500, peer=7))),
    Variant("host end too large", pods(replace(POD, peer=5), links=(ETH0, FLANNEL, CNI0, HOST_END.replace(mtu=1500))), "pod-mtu", "is 1500", "",
            ("ip link set veth00000001 mtu 1450",)),
    Variant("both ends too large", pods(replace(POD, peer=5, links=(replace(POD_LINK, mtu=1500),)), links=(ETH0, FLANNEL, CNI0, HOST_END.replace(mtu=1500))),
            "pod-mtu", "is 1500", "", (f"{ADD_HEAD} link set eth0 mtu 1450", "ip link set veth00000001 mtu 1450")),
    Variant("host end too small", pods(replace(POD, peer=5), links=(ETH0, FLANNEL, CNI0, HOST_END.replace(mtu=1300))), "pod", "larger than that of its host end",
            "1300", ("ip link set veth00000001 mtu 1450",)),
    Variant("pod's end too large", pods(replace(POD, peer=5, links=(replace(POD_LINK, mtu=1500),))), "pod", "larger than that of its host end", "1500",
            (f"{ADD_HEAD} link set eth0 mtu 1450",)),
    Variant("bridge of another address", BRIDGE_WITH, "bridge", "does not have 10.244.1.1/24", "it has 10.244.77.1/24",
            ("ip addr del 10.244.77.1/24 dev cni0", "ip addr add 10.244.1.1/24 dev cni0")),
    Variant("... which is one finding", replace(BRIDGE_WITH, contradictions=(NotAvailable('"cni0" has 10.244.77.1/24, and the subnet'),)), "bridge"),
    Variant("second address on the bridge", replace(BRIDGE_WITH, addresses=(*HEALTHY.addresses, at(4, "10.244.77.1/24")))),
    # pods
    Variant("wrong gateway of a pod", pod(links=(replace(POD_LINK, gateways=(ip_address("10.244.1.77"),)),)), "pod", "leads to 10.244.1.77", "10.244.1.1",
            (f"{ADD_HEAD} route replace default via 10.244.1.1",)),
    Variant("default route of another interface", pod(links=(replace(POD_LINK, gateways=()), replace(POD_LINK, name="net1")))),
    Variant("address of a pod", pod(links=(replace(POD_LINK, addresses=(), gateways=()),)), "pod", "10.244.1.2 is missing", "no address",
            (f"{ADD_HEAD} addr add 10.244.1.2/24 dev eth0", f"{ADD_HEAD} route replace default via 10.244.1.1")),
    Variant("interface down", pod(links=(replace(POD_LINK, is_up=False, gateways=()),)), "pod", "is down", "",
            (f"{ADD_HEAD} link set eth0 up", f"{ADD_HEAD} route replace default via 10.244.1.1")),
    Variant("two pods with one address",
            pods(POD, replace(OTHER_POD, links=(replace(POD_LINK, addresses=(ip_interface("10.244.1.3/24"), ip_interface("10.244.1.2/24"))),))),
            "pod", "2 pods have the address 10.244.1.2", "red", ("nsenter --net=/run/netns/red ip addr del 10.244.1.2 dev eth0",)),
    Variant("permanent ARP entry of a pod", replace(pod(), neighbours=HEALTHY.neighbours | {Neighbour("cni0", ip_address("10.244.1.2"), PEER_MAC)}),
            "pod", "permanent ARP entry", PEER_MAC, ("ip neigh del 10.244.1.2 dev cni0",)),
    # files
    Variant("subnet.env is a directory", replace(HEALTHY, env=None, env_fault="Is a directory"), "subnet-env-missing", "cannot be read", "",
            ("rmdir /run/flannel/subnet.env", "systemctl restart flanneld")),
    Variant("the plugin would masquerade too", replace(HEALTHY, env=SubnetEnv((NETWORK,), (OWN,), 1450, False)), "subnet-env-stale", "", "FLANNEL_IPMASQ=false"),
    Variant("plugin and a stopped flanneld", replace(HEALTHY, daemons=(), conf_subnet_file="/run/old.env"), "subnet-env-other", "different", "/run/old.env"),
    Variant("broken file of another network", replace(HEALTHY, conf_files=(BROKEN, CONF)), "conf-broken", "is broken", "JSON",
            ("correct it: cni-py config check /etc/cni/net.d/05-x.conflist", "mv /etc/cni/net.d/05-x.conflist /etc/cni/net.d/05-x.conflist.off")),
    Variant("our address changed while flanneld was stopped", replace(HEALTHY, daemons=(), options=None, addresses=HEALTHY.addresses[1:], external=NATTED),
            "lease-address", str(NODE)),
    # Services
    Variant("Services with IPVS", with_link(link(9, "kube-ipvs0", "dummy"), at(9, "10.244.9.1/32")), "service-overlap", "Services", "10.244.9.1"),
    Variant("Services in nftables", replace(HEALTHY, services=(ip_address("10.244.9.1"),)), "service-overlap", "Services", "10.244.9.1"),
    Variant("Services elsewhere", replace(with_link(link(9, "kube-ipvs0", "dummy"), at(9, "10.96.0.1/32")), services=(ip_address("10.96.0.10"),))),
    Variant("kube-proxy without br_netfilter", replace(HEALTHY, services=(ip_address("10.96.0.1"),), sysctls=NO_BRIDGE_NETFILTER), "bridge-netfilter",
            "br_netfilter is not loaded", severity=WARNING),
    Variant("no kube-proxy, no br_netfilter", replace(HEALTHY, sysctls=NO_BRIDGE_NETFILTER)),
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variant_of_a_fault_is_found_with_its_cause_and_the_commands_that_mend_it(variant: Variant) -> None:
    found = [one for one in examined(variant.facts).findings if one.rule != "flanneld-not-running"]
    assert [one.rule for one in found] == ([variant.rule] if variant.rule else []), found
    for one in found:
        assert one.severity == variant.severity
        assert variant.what in one.what
        assert variant.found in " ".join(one.found)
        assert variant.repair in ((), one.repair)


LAYERS = [
    ("here", replace(SILENT, ruleset=CLOSED.ruleset, saved_rules=CLOSED.saved_rules), "at the packet filter of this host", "repair that first"),
    ("FDB", replace(SILENT, odd_forwarding={FORWARDING: "vni 7"}), "at the FDB entry", "repair that first"),
    ("rp_filter", replace(SILENT, passages=(ARRIVAL,)), "at rp_filter", "repair that first"),
    ("VNI", replace(SILENT, vxlans=(replace(DETAILS, vni=7),)), "at flannel.1", "repair that first"),
    ("MAC address", replace(SILENT, links=links(FLANNEL.replace(mac="02:00:00:00:00:99")).links), "at flannel.1", "repair that first"),
    ("route of the node", replace(SILENT, node_ways={PEER_NODE: Way(is_discarded=True)}), "at the route to its node", "repair that first"),
    ("ARP entry of the node", replace(SILENT, node_neighbours={PEER_NODE: f"{PEER_NODE} dev eth0 lladdr {PEER_MAC} PERMANENT"},
                                      probed=Probed((replace(REACHED, tunnel=False, full=False, node=False),), 0, 1)),
     "at the ARP entry of its node", f"ip neigh del {PEER_NODE} dev eth0"),
    ("on the way", SILENT, "UDP port 8472 is blocked on the way", "tcpdump"),
    ("uncertain", replace(SILENT, ruleset=Ruleset.of({"iptables-nft": MASQUERADE + INPUT.format("ACCEPT", "-A INPUT -m set --match-set x src -j DROP")}, [])),
     "UDP port 8472 is blocked on the way", "tcpdump"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "layer", "advice"), [one[1:] for one in LAYERS], ids=[one[0] for one in LAYERS])
def test_packet_that_ends_on_this_host_is_not_looked_for_on_the_way(facts: Facts, layer: str, advice: str) -> None:
    (finding,) = [one for one in examined(facts).findings if one.rule == "peer-reached"]
    assert layer in finding.what
    assert advice in finding.repair[0]


def test_rule_that_may_drop_the_tunnel_is_named() -> None:
    (facts,) = [facts for name, facts, _, _ in LAYERS if name == "uncertain"]
    assert "iptables-nft filter INPUT" in str(examined(facts).findings[0].found)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        (replace(probed(full=False), env=SubnetEnv((NETWORK,), (OWN,), 1500, True)), "repair /run/flannel/subnet.env first"),
        (replace(probed(full=False), links=links(FLANNEL.replace(mtu=1300)).links), "repair the MTU of flannel.1 first"),
        (probed(full=False), "tracepath"),
    ],
)
def test_large_packets_that_this_host_itself_loses(facts: Facts, advice: str) -> None:
    (finding,) = [one for one in examined(facts).findings if one.rule == "peer-mtu"]
    assert advice in finding.repair[0]


def examined(facts: Facts, about: frozenset[str] = frozenset()) -> Report:
    return examine.evaluate(facts, RULES, about)


def test_healthy_node_has_no_findings() -> None:
    report = examined(HEALTHY)
    assert (list(text.plain(report)), report.status) == (
        [f"nothing wrong was found; {len(RULES)} of {len(RULES)} rules checked"],
        0,
    )


def test_healthy_pod_and_node_of_kubernetes_have_no_findings() -> None:
    assert examined(pod()).findings == examined(kube()).findings == ()


@pytest.mark.parametrize(("rule", "severity", "facts", "words"), CASES, ids=[f"{n}-{one[0]}" for n, one in enumerate(CASES)])
def test_rule_finds_its_fault_and_no_other_rule_does(rule: str, severity: str, facts: Facts, words: str) -> None:
    found = examined(facts).findings
    assert [(one.rule, one.severity) for one in found] == [(rule, severity)]
    assert words in found[0].what
    assert found[0].why
    assert found[0].repair


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in RULES} == {case[0] for case in CASES}


def test_what_fix_runs_is_printed_as_a_repair_and_promised_by_the_table() -> None:
    promised = {rule.name for rule in RULES if rule.fixes}
    for _, _, facts, _ in CASES:
        for finding in examined(replace(facts, has_unit=True)).findings:
            lines = " ".join(finding.repair)
            assert all(" ".join(command) in lines for command in finding.fix), finding
            assert not finding.fix or finding.rule in promised, finding


def test_page_has_the_table_of_rules() -> None:
    assert table.render() in (ROOT / "docs/doctor.md").read_text()


@pytest.mark.parametrize("need", sorted({need for rule in RULES for need in rule.needs}))
def test_rule_that_cannot_look_says_so(need: str) -> None:
    """Facts that cannot be read are empty: no finding, no health, but the reason."""
    report = examined(replace(HEALTHY, unread={need: "it requires root"}))
    depending = [rule.name for rule in RULES if need in rule.needs]
    assert [one.rule for one in report.unchecked] == depending
    assert report.status == 3
    assert "it requires root" in " ".join(" ".join(text.plain(report)).split())


def test_node_without_flannel_has_no_findings() -> None:
    assert examined(Facts(now=NOW)).findings == ()


def test_many_peers_with_one_fault_are_one_finding() -> None:
    peers = [
        Wanted(lease(subnet, IPv4Address(f"192.168.124.{n}"), f"02:00:00:00:01:{n:02x}"), subnet, Route(subnet, "flannel.1"))
        for n, subnet in enumerate(list(NETWORK.subnets(new_prefix=24))[10:110])
    ]
    found = examined(replace(HEALTHY, wanted=tuple(peers), ways={OWN: Way("cni0")}, routes=frozenset())).findings
    assert [one.rule for one in found] == ["peer-route"]
    assert "100 peers" in found[0].what
    assert len(found[0].fix) == 100
    assert len(found[0].repair) < 10
    assert len(list(text.plain(Report(found)))) < 25


def test_route_of_a_lease_that_a_killed_flanneld_had_not_saved_is_not_stale() -> None:
    """A lease is saved some seconds after it is followed; the entries of the peer's device show that it did."""
    gateway, subnet = IPv4Address("10.244.77.0"), IPv4Network("10.244.77.0/24")
    route = Route(subnet, "flannel.1", gateway, onlink=True)
    facts = replace(HEALTHY, daemons=(), routes=HEALTHY.routes | {route})
    assert "stale-route" in {one.rule for one in examined(facts).findings}
    followed = replace(facts, neighbours=HEALTHY.neighbours | {Neighbour("flannel.1", gateway, MAC)})
    assert "stale-route" not in {one.rule for one in examined(followed).findings}


def test_sample_of_peers_is_said() -> None:
    report = examined(replace(HEALTHY, probed=Probed((REACHED,), 64, 1000)))
    assert "64 of 1000 peers" in " ".join(" ".join(text.plain(report)).split())
    assert report.status == 0


def test_what_was_asked_about_comes_first_without_others() -> None:
    facts = replace(
        links(VETH.replace(master=0), link(6, "veth00000002", "veth", flags=0, altnames=("cni:c2:eth0:cbr0",))),
        sysctls={**SYSCTLS, "net/ipv4/ip_forward": "0"},
    )
    assert [one.rule for one in examined(facts).findings] == ["pod-link", "pod-link", "forwarding"]
    found = examined(facts, frozenset({"c2"})).findings
    assert [(one.rule, "c2" in one.what) for one in found] == [("pod-link", True), ("forwarding", False)]


def test_lines_are_not_wider_than_80_columns_but_for_commands() -> None:
    for _, _, facts, _ in CASES:
        report = examined(facts)
        commands = {line for one in report.findings for line in one.repair}
        for line in text.plain(report):
            assert len(line) <= 80 or any(command in line for command in commands), line


# ---- what settles -------------------------------------------------------------------------------

SETTLING = Rule("r", ERROR, "", "", lambda facts: [Finding(facts.env_fault)] if facts.env_fault else [], settles=0.02)


def looks(*faults: str) -> Callable[[], Facts]:
    remaining = list(faults)
    return lambda: replace(HEALTHY, env_fault=remaining.pop(0) if len(remaining) > 1 else remaining[0])


@pytest.mark.parametrize(
    ("faults", "found"),
    [(("a", ""), []), (("a", "a"), ["a"]), (("a", "b", "b"), []), (("", "a"), [])],
    ids=["restored", "lasting", "another one", "later"],
)
def test_finding_that_flanneld_restores_is_not_reported(
    faults: tuple[str, ...], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "sleep", lambda _: None)
    _, report = examine.examine(looks(*faults), [SETTLING])
    assert [one.what for one in report.findings] == found


def test_without_flanneld_a_finding_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "sleep", lambda _: pytest.fail("it waited"))
    stopped = replace(HEALTHY, env_fault="a", daemons=())
    _, report = examine.examine(lambda: stopped, [SETTLING])
    assert [one.what for one in report.findings] == ["a"]


@pytest.mark.parametrize(("key", "option"), [("hairpinMode", "hairpin"), ("portIsolation", "isolated"), ("isGateway", "")])
def test_port_that_goes_back_to_its_bridge_gets_what_it_had_there(key: str, option: str) -> None:
    """The kernel forgets the settings of a port that leaves a bridge."""
    network = Network("cbr0", "1.0.0", ({"type": "flannel", "delegate": {key: True}},), b"")
    facts = replace(links(VETH.replace(master=0)), conf_files=(replace(CONF, network=network),))
    [finding] = [found for found in devices.ports(facts) if "on no bridge" in found.what]
    settings = [f"bridge link set dev {VETH.name} {option} on"] if option else []
    assert list(finding.repair) == [f"ip link set {VETH.name} master cni0", *settings]
