"""`cni-py doctor` in a lab: faults that a person would make by hand, each found as what it is, repaired, and silent again.

Two nodes of one lab: flanneld runs on node1, and was killed on node2, where nothing is restored. A case breaks one node, the
doctor finds exactly the expected rules, and after the repair (that of the case, or the printed commands, typed) it finds what
it found before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cni_py.lab import Lab
from cni_py.lab.programs import ETCD_TOOLS, TOOLS
from support.tools import need
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.netns
STOPPED = "flanneld-not-running"

# One process on a node runs every command: most of what a command costs is its start.
SERVER = """
import contextlib, io, json, sys
from cni_py.cli import main
sys.argv[0] = {program!r}
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(json.loads(line))
    sys.__stdout__.write(json.dumps([status, out.getvalue(), err.getvalue()]) + "\\n")
    sys.__stdout__.flush()
"""


class Doctor:
    """`cni-py doctor` on one node of a lab."""

    def __init__(self, lab: Lab, node: str) -> None:
        self.lab, self.node = lab, node
        code = SERVER.format(program=lab.programs.cni_py)
        self._process = subprocess.Popen(
            lab.command(node, sys.executable, "-c", code),
            env=lab.environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(["doctor", *words]) + "\n")
        self._process.stdin.flush()
        status, out, err = json.loads(self._process.stdout.readline())
        return status, out, err

    def report(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json", *words)[1])
        return found

    def rules(self, *words: str) -> set[str]:
        return {finding["rule"] for finding in self.report(*words)["findings"]}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass(frozen=True)
class Fault:
    """``rules``: expected; ``also``: what may be found as well; ``repair`` "": the printed commands; ``asked``: arguments."""

    name: str
    rules: set[str]
    script: str
    repair: str = ""
    also: set[str] = field(default_factory=set)
    asked: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


@pytest.fixture(scope="module")
def lab(bin_dir: Path) -> Iterator[Lab]:
    need(TOOLS)
    with Lab(nodes=2, pods=1, prefix=str(bin_dir.parent.parent)) as made:
        yield made


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Doctor]:
    doctor = Doctor(lab, "node1")
    yield doctor
    doctor.close()


@pytest.fixture(scope="module")
def stopped(lab: Lab, running: Doctor) -> Iterator[Doctor]:
    """The doctor on node2, whose flanneld was killed once it had saved the lease of node1, as it does within seconds."""
    peer, path = lab.subnets("node1").partition("/")[0], Path(lab.machine("node2").path("/var/lib/cni-py/flanneld.json"))
    until(lambda: f'"{peer}-24"' in path.read_text(), "node2 has saved the lease of node1")
    lab.flanneld("node2").kill()
    doctor = Doctor(lab, "node2")
    yield doctor
    doctor.close()


COMMANDS = ("ip ", "bridge ", "sysctl ", "iptables", "nft ", "mv ", "chmod ", "rmdir ", "cni-py ", "nsenter ")
"""Beginnings of printed repairs that are commands; others say what to do."""


def check(doctor: Doctor, fault: Fault, before: set[str]) -> None:
    lab, node = doctor.lab, doctor.node
    lab.run(node, fault.script)
    report: dict[str, Any] = {}

    def is_found() -> bool:
        report.update(doctor.report(*fault.asked))
        found = {finding["rule"] for finding in report["findings"]} - before
        return fault.rules <= found <= fault.rules | fault.also

    try:
        # a flanneld that runs may still be busy with the fault before
        until(is_found, lambda: f"{fault.rules} and no other: {json.dumps(report['findings'], indent=1)}")
        assert all(finding["why"] and finding["repair"] for finding in report["findings"])
    finally:
        if fault.repair:
            lab.run(node, fault.repair)
    if not fault.repair:
        lines = [line for finding in report["findings"] if finding["rule"] in fault.rules for line in finding["repair"]]
        lab.run(node, "\n".join(line for line in lines if line.startswith(COMMANDS)))
    until(
        lambda: doctor.rules(*fault.asked) == before,
        lambda: f"{fault} is repaired: {json.dumps(doctor.report(*fault.asked)['findings'], indent=1)}",
    )


OWN = "$(. /run/flannel/subnet.env; echo $FLANNEL_SUBNET)"
VETH = "$(ls /sys/class/net | grep ^veth | head -1)"
ON_BRIDGE = f"ip link set {VETH} master cni0; bridge link set dev {VETH} hairpin on"
CONF = "/etc/cni/net.d/05-x.conflist"
BRIDGE = '{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "bridge"}]}'
NFT = 'nft add table inet x; nft "add chain inet x c {{ type filter hook {} priority 0; }}"; nft add rule inet x c {}'
NO_NFT = "nft delete table inet x"
BRIDGED = 'nft add table bridge x; nft "add chain bridge x c { type filter hook forward priority 0; policy drop; }"'
OTHER_FILE = 's|"type": "flannel"|& , "subnetFile": "/run/flannel/other.env"|'
LEASES = """
import fcntl, json, os
lock = open('/run/lab/shared/flannel.json.lock', 'a')
fcntl.flock(lock, fcntl.LOCK_EX)
path = '/run/lab/shared/flannel.json'
found = json.load(open(path))
leases = found['leases']
{change}
json.dump(found, open(path + '.new', 'w'), indent=2)
os.rename(path + '.new', path)
"""
_ADD = """
sample = next(of for of in leases.values() if of['PublicIP'] == '192.168.123.12')
theirs = sample['BackendData']['VtepMAC']
data = {{'VNI': 1, 'VtepMAC': {mac}}} if {mac} else None
leases['10.244.253.0-24'] = sample | {{'PublicIP': '{address}', 'BackendType': '{kind}', 'BackendData': data, 'Node': 'other'}}
"""
ADD_LEASE = 'python3 -c "' + LEASES.replace("{change}", _ADD) + '"'
LOSE_LEASE = 'python3 -c "' + LEASES.format(change="leases.pop('10.244.253.0-24', None)") + '"'
BOTH = "iptables-legacy -A FORWARD -s 10.9.0.0/16 -j ACCEPT; iptables-nft -A FORWARD -s 10.9.0.0/16 -j ACCEPT"
UDP = {"tunnel-dropped", "peer-reached"}
FIX = "cni-py doctor --no-probes --fix >/dev/null || true"
TAKER = "import socket, time; s = socket.socket(type=2); s.bind(('', 8472)); print(1, flush=True); time.sleep(9999)"

SUBNET = "$(ip -4 route show dev cni0 | cut -d' ' -f1)"
PAIR = "ip link add xx type veth peer name yy; ip link set yy up; ip link set xx up"
# waited for: flanneld withdraws the route while an address of the host overlaps it, and comes back to it a moment later
_ROUTE = "until ip route show dev flannel.1 | grep -q .; do sleep 0.02; done; ip route show dev flannel.1 | head -1"
PEER = f"$({_ROUTE} | cut -d' ' -f1)"
PEER_ADDRESS = f"$({_ROUTE} | cut -d. -f1-3)."
POD = "$(ip -n pod1 -4 -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4 | cut -d/ -f1)"

NO_RULES = "for table in filter nat; do printf '*%s\\n-F\\n-X\\nCOMMIT\\n' $table | iptables-restore -w -n; done"
"""One transaction a table: flanneld restores its rules between two commands."""

HEALTHY = {
    "strict rp_filter, as RHEL has it": (
        "for name in all default eth0 cni0 flannel/1; do sysctl -qw net.ipv4.conf.$name.rp_filter=1; done",
        "for name in all default eth0 cni0 flannel/1; do sysctl -qw net.ipv4.conf.$name.rp_filter=0; done",
    ),
    "Docker": (
        (
            "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER\n"
            "iptables -A DOCKER-USER -s 10.244.0.0/16 -j ACCEPT; iptables -A DOCKER-USER -d 10.244.0.0/16 -j ACCEPT\n"
            "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
        ),
        f"iptables -P FORWARD ACCEPT; {NO_RULES}",
    ),
    "kube-proxy in iptables": (
        (
            "iptables -t nat -N KUBE-SERVICES; iptables -t nat -A PREROUTING -j KUBE-SERVICES\n"
            "iptables -t nat -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 192.168.123.11:6443\n"
            "iptables -N KUBE-FIREWALL; iptables -A INPUT -j KUBE-FIREWALL\n"
            "iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
            "iptables -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP"
        ),
        NO_RULES,
    ),
    "firewalld": (
        (
            "nft -f - <<END\n"
            "table inet firewalld {\n"
            "chain in {\ntype filter hook input priority 10\nct state established,related accept\nct state invalid drop\n"
            'iifname { "cni0", "flannel.1", "lo" } accept\nudp dport 8472 accept\nmeta l4proto icmp accept\nreject\n}\n'
            "chain forwarded {\ntype filter hook forward priority 10\nct state established,related accept\n"
            'iifname { "cni0", "flannel.1" } accept\nreject\n}\n}\nEND'
        ),
        "nft delete table inet firewalld",
    ),
    "a VPN of the node": (
        (
            "ip route add default via 192.168.123.1 table 518; ip rule add priority 999 not fwmark 0xca6c table 518\n"
            "ip rule add priority 998 table main suppress_prefixlength 0"
        ),
        "ip rule del priority 998; ip rule del priority 999; ip route flush table 518",
    ),
}
"""Changes that other programs make to a node, and that its pods live with: a script, and one that ends it."""

RUNNING = [
    Fault("own route", {"own-route"}, "ip route del $(ip route show dev cni0 | cut -d' ' -f1) dev cni0"),
    Fault("UDP dropped here", UDP, NFT.format("input", "udp dport 8472 drop"), NO_NFT),
    Fault("UDP dropped on the way out", UDP, NFT.format("output", "udp dport 8472 drop"), NO_NFT),
    Fault("REJECT", {"packets-dropped"}, NFT.format("forward", "ip daddr 10.244.0.0/16 reject"), NO_NFT),
    Fault(
        "policy drop",
        {"packets-dropped"},
        'nft add table inet x; nft "add chain inet x c { type filter hook forward priority 0; policy drop; }"',
        NO_NFT,
    ),
    Fault("large packets dropped", {"peer-mtu"}, NFT.format("output", "udp dport 8472 meta length gt 1400 drop"), NO_NFT),
    Fault("masquerade", {"pods-masqueraded"}, "iptables -t nat -I POSTROUTING 1 -s 10.244.0.0/16 -j MASQUERADE"),
    Fault("broken JSON", {"conf-broken"}, f"echo '{{ broken' >{CONF}"),
    Fault("another network in front", {"conf-order"}, f"echo '{BRIDGE}' >{CONF}", f"rm {CONF}"),
    Fault("typed repair of the order", {"conf-order"}, f"echo '{BRIDGE}' >{CONF}"),
    Fault(
        "no configuration",
        {"conf-missing"},
        "mv /etc/cni/net.d/10-flannel.conflist /etc/cni/",
        "mv /etc/cni/10-flannel.conflist /etc/cni/net.d/",
    ),
    Fault(
        "plugin that does not exist",
        {"plugin-missing"},
        "sed -i.off 's/\"portmap\"/\"nosuch\"/' /etc/cni/net.d/10-flannel.conflist",
        "mv /etc/cni/net.d/10-flannel.conflist.off /etc/cni/net.d/10-flannel.conflist",
    ),
    Fault("Calico", {"other-network-plugin"}, "ip link add cali1 type veth peer name xx", "ip link del cali1"),
    Fault(
        "strict rp_filter, and the peer is reached by another link",
        {"rp-filter"},
        f"{PAIR}; sysctl -qw net.ipv4.conf.all.rp_filter=1; ip route add 192.168.123.12 dev xx",
        "ip link del xx; sysctl -qw net.ipv4.conf.all.rp_filter=0",
        also={"peer-reached"},
    ),
    Fault("policy rule", {"policy-rule"}, f"ip route add default via 192.168.123.1 table 7; ip rule add from {SUBNET} table 7"),
    Fault("policy rule for what comes in", {"policy-rule"}, f"ip rule add to {SUBNET} iif flannel.1 prohibit"),
    Fault("half of our own subnet", {"own-route"}, f"net={SUBNET}; ip route add ${{net%/*}}/25 via 192.168.123.1"),
    Fault("unreachable pod of a peer", {"foreign-route"}, f"ip route add unreachable {PEER_ADDRESS}9"),
    Fault(
        "an address of the peer's subnet", {"peer-route"}, f"ip addr add {PEER_ADDRESS}1/24 dev cni0", also={"peer-reached"}
    ),
    Fault("an address of a peer's pod", {"host-network-overlap"}, f"ip addr add {PEER_ADDRESS}9/32 dev lo"),
    Fault("ARP entry of a pod", {"pod"}, f"ip neigh replace {POD} dev cni0 lladdr 02:11:22:33:44:55 nud permanent"),
    Fault("no reply of a pod to the node", {"packets-dropped"}, "iptables -I INPUT 1 -i cni0 -j DROP"),
    Fault("INPUT drops UDP", UDP, "iptables -A INPUT -p udp -j DROP", "iptables -F INPUT"),
    Fault(
        "leaked address",
        {"leaks"},
        "cd /var/lib/cni/networks/cbr0; printf 'dead\\r\\neth0' >$(ls | grep '^10' | head -1 | sed 's/[0-9]*$/77/')",
        "rm /var/lib/cni/networks/cbr0/*.77",
    ),
    Fault(
        "pool full",
        {"pool-empty"},
        "cd /var/lib/cni/networks/cbr0; own=$(ls | grep '^10' | head -1)\n"
        "for n in $(seq 2 254); do [ -e ${own%.*}.$n ] || cp $own ${own%.*}.$n; done; echo $own >/run/own",
        "cd /var/lib/cni/networks/cbr0; ls | grep '^10' | grep -vx $(cat /run/own) | xargs rm",
    ),
    Fault("pod on no bridge", {"pod-link"}, f"ip link set {VETH} nomaster"),
    Fault("pod's end down", {"pod-link"}, f"ip link set {VETH} down"),
    Fault("pod isolated", {"pod-link"}, f"bridge link set dev {VETH} isolated on"),
    Fault("pod's MTU", {"pod-mtu"}, f"ip link set {VETH} mtu 1500; ip -n pod1 link set eth0 mtu 1500"),
    Fault("pod's own MTU", {"pod"}, "ip -n pod1 link set eth0 mtu 1500"),
    Fault("pod's address", {"pod"}, "ip -n pod1 addr flush dev eth0"),
    Fault("pod's gateway", {"pod"}, f"ip -n pod1 route replace default via {POD}7"),
    Fault(
        "pod on another bridge",
        {"pod-link"},
        f"ip link add br9 type bridge; ip link set br9 up; ip link set {VETH} master br9",
        f"{ON_BRIDGE}; ip link del br9",
    ),
    Fault("bridge down", {"bridge"}, "ip link set cni0 down"),
    Fault("bridge's MTU", {"bridge"}, "ip link set cni0 mtu 1300"),
    Fault("bridge without its address", {"subnet-env-contradicted"}, "ip addr flush dev cni0"),
    Fault(
        "bridge of another address",
        {"bridge"},
        f"gateway={OWN}; ip addr flush dev cni0; ip addr add ${{gateway%.*}}.254/24 dev cni0",
    ),
    Fault(
        "docker0 in the pods' network",
        {"host-network-overlap"},
        "ip link add docker0 type bridge; ip addr add 10.244.128.1/24 dev docker0; ip link set docker0 up",
        "ip link del docker0",
    ),
    Fault(
        "Services in the pods' network",
        {"service-overlap"},
        "iptables -t nat -N KUBE-SERVICES; iptables -t nat -A KUBE-SERVICES -d 10.244.200.1/32 -j RETURN",
        "iptables -t nat -F KUBE-SERVICES; iptables -t nat -X KUBE-SERVICES",
        also={"bridge-netfilter"},
    ),
    Fault("rules of Go's flanneld", {"go-rules"}, "iptables -t nat -N FLANNEL-POSTRTG", "iptables -t nat -X FLANNEL-POSTRTG"),
    Fault("full disk", {"disk-full"}, "mount -o remount,size=64k /var/lib/cni-py", "mount -o remount,size=50% /var/lib/cni-py"),
    Fault("read-only disk", {"disk-full"}, "mount -o remount,ro /etc/cni", "mount -o remount,rw /etc/cni"),
    Fault("clock", {"clock"}, "touch -d '+2 days' /run/flannel/subnet.env", "touch /run/flannel/subnet.env"),
    Fault(
        "datastore away",
        {"datastore"},
        "mv /run/lab/shared/flannel.json /run/lab/shared/away",
        "mv /run/lab/shared/away /run/lab/shared/flannel.json",
    ),
    Fault(
        "foreign route",
        {"foreign-route"},
        "ip route add 10.244.250.0/24 via 192.168.123.1",
        "ip route del 10.244.250.0/24 via 192.168.123.1",
    ),
    Fault(
        "longer route",
        {"peer-route", "peer-reached"},
        "peer=$(ip route show dev flannel.1 | head -1 | cut -d/ -f1); ip route add $peer/25 via 192.168.123.1",
    ),
    Fault("pod's default route", {"pod"}, "ip -n pod1 route del default"),
    Fault("pod's default route, asked about", {"pod"}, "ip -n pod1 route del default", asked=("pod1",)),
    Fault(
        "flanneld stopped",
        {"flanneld-not-ready"},
        "kill -STOP $(pgrep -x flanneld || pgrep -f bin/flannel[d])",
        "kill -CONT $(pgrep -x flanneld || pgrep -f bin/flannel[d])",
    ),
    Fault(
        "another subnet file",
        {"subnet-env-other"},
        f"sed -i.off '{OTHER_FILE}' /etc/cni/net.d/10-flannel.conflist",
        "mv /etc/cni/net.d/10-flannel.conflist.off /etc/cni/net.d/10-flannel.conflist",
    ),
    Fault(
        "configuration changed",
        {"configuration-changed"},
        "sed -i s,10.244.0.0/16,10.244.0.0/15, /run/lab/shared/flannel.json",
        "sed -i s,10.244.0.0/15,10.244.0.0/16, /run/lab/shared/flannel.json",
    ),
    Fault(
        "cloned machine",
        {"vtep-mac-twice"},
        ADD_LEASE.format(address="192.168.123.99", kind="vxlan", mac="theirs"),
        LOSE_LEASE,
        also={"peer-reached", "peer-not-followed", "peer-fdb", "peer-arp", "peer-route"},
    ),
    Fault(
        "two leases of one address",
        {"node-address-twice"},
        ADD_LEASE.format(address="192.168.123.12", kind="vxlan", mac="'02:00:00:00:00:77'"),
        LOSE_LEASE,
        also={"peer-reached"},
    ),
    Fault(
        "peer of another back end",
        {"peer-not-followed"},
        ADD_LEASE.format(address="192.168.123.99", kind="host-gw", mac="None"),
        LOSE_LEASE,
    ),
    Fault("both flavours of iptables", {"iptables-mixed"}, BOTH, "iptables-legacy -F FORWARD; iptables -t filter -F FORWARD"),
    *(
        [Fault("br_netfilter off", {"bridge-netfilter"}, "sysctl -qw net.bridge.bridge-nf-call-iptables=0")]
        if os.path.isdir("/proc/sys/net/bridge")
        else []
    ),
    Fault("bridge drops", {"packets-dropped"}, BRIDGED, "nft delete table bridge x"),
    Fault(
        "pod's interface down",
        {"pod"},
        "ip -n pod1 route show >/run/routes; ip -n pod1 link set eth0 down",
        "ip -n pod1 link set eth0 up; sort -r /run/routes | while read -r words; do ip -n pod1 route replace $words; done",
        asked=("pod1",),
    ),
]  # fmt: skip
KILLED = [
    Fault("route deleted", {"peer-route", "peer-reached"}, f"ip route del {PEER} dev flannel.1"),
    Fault(
        "ARP entry deleted",
        {"peer-arp", "peer-reached"},
        "ip neigh flush dev flannel.1 nud permanent",
    ),
    Fault(
        "FDB entry deleted",
        {"peer-fdb", "peer-reached"},
        "bridge fdb del $(bridge fdb show dev flannel.1 | head -1 | cut -d' ' -f1) dev flannel.1",
    ),
    Fault(
        "FDB entry of another node",
        {"peer-fdb", "peer-reached"},
        "bridge fdb replace $(bridge fdb show dev flannel.1 | head -1 | cut -d' ' -f1) dev flannel.1 dst 192.168.123.99",
    ),
    Fault(
        "MTU of the device",
        {"device-differs", "peer-mtu"},
        "ip link set flannel.1 mtu 1300",
        also={"subnet-env-contradicted"},
    ),
    Fault("MAC of the device", {"vtep-mac", "peer-arp", "peer-reached"}, "ip link set flannel.1 address 02:11:22:33:44:55"),
    Fault("device down", {"device-differs", "peer-route", "peer-arp", "peer-reached"}, "ip link set flannel.1 down"),
    Fault("no forwarding", {"forwarding"}, "sysctl -qw net.ipv4.ip_forward=0"),
    Fault("no forwarding of a device", {"forwarding"}, "sysctl -qw net.ipv4.conf.cni0.forwarding=0"),
    Fault("FORWARD drops", {"packets-dropped"}, "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT"),
    Fault(
        "REJECT in FORWARD",
        {"packets-dropped"},
        "iptables -I FORWARD 1 -s 10.244.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
    ),
    Fault("stale route", {"stale-route"}, "ip route add 10.244.251.0/24 via 10.244.251.0 dev flannel.1 onlink proto 122"),
    Fault(
        "FDB entry with another port",
        {"peer-fdb", "peer-reached"},
        "mac=$(bridge fdb show dev flannel.1 | head -1 | cut -d' ' -f1)\n"
        "bridge fdb replace $mac dev flannel.1 dst 192.168.123.11 port 4789",
    ),
    Fault(
        "policy rule of the node",
        {"peer-route", "peer-reached"},
        f"ip route add default via 192.168.123.1 table 7; ip rule add to {PEER} table 7",
    ),
    Fault(
        "ARP entry of the node",
        {"peer-reached"},
        "ip neigh replace 192.168.123.11 dev eth0 lladdr 02:11:22:33:44:55 nud permanent",
    ),
    Fault("no route to the node", {"peer-node-route", "peer-reached"}, "ip route add unreachable 192.168.123.11"),
    Fault(
        "subnet.env is a directory",
        {"subnet-env-missing"},
        "mv /run/flannel/subnet.env /run/flannel/away; mkdir /run/flannel/subnet.env",
        "rmdir /run/flannel/subnet.env; mv /run/flannel/away /run/flannel/subnet.env",
    ),
    Fault(
        "subnet.env deleted",
        {"subnet-env-missing"},
        "mv /run/flannel/subnet.env /run/flannel/away",
        "mv /run/flannel/away /run/flannel/subnet.env",
    ),
    Fault(
        "subnet.env of another lease",
        {"subnet-env-stale"},
        "cd /run/flannel; cp subnet.env away; sed -i 's/^FLANNEL_SUBNET=.*/FLANNEL_SUBNET=10.244.250.1\\/24/' subnet.env",
        "mv /run/flannel/away /run/flannel/subnet.env",
        also={"subnet-env-contradicted"},
    ),
    Fault(
        "lease that has ended",
        {"lease-ended"},
        "cd /var/lib/cni-py; cp flanneld.json /run/away; sed -i 's/\"expires\": [0-9.]*/\"expires\": 1000.0/' flanneld.json",
        "cp /run/away /var/lib/cni-py/flanneld.json",
        also={"stale-route"},
    ),
    Fault(
        "not masqueraded",
        {"not-masqueraded"},
        "nft list table inet cni_py_flanneld >/run/table; nft delete table inet cni_py_flanneld",
        "nft -f /run/table",
    ),
    Fault(
        "port taken",
        {"udp-port-taken", "device-differs"},
        "ip link set flannel.1 down\n"
        f'python3 -c "{TAKER}" >/run/taken 2>&1 & echo $! >/run/taker; while ! grep -q 1 /run/taken; do sleep 0.02; done',
        "kill $(cat /run/taker); while [ -e /proc/$(cat /run/taker) ]; do sleep 0.02; done; ip link set flannel.1 up\n" + FIX,
        also={"peer-route", "peer-arp", "peer-reached"},
    ),
    Fault(
        "cable",
        {"external-interface"},
        "ip route show >/run/routes; ip link set eth0 down",
        "ip link set eth0 up\n"
        "grep eth0 /run/routes | sort -r | while read -r words; do ip route replace $words || true; done\n" + FIX,
        also={"peer-node-route", "peer-reached", "peer-route"},
    ),
    Fault(
        "device deleted",
        {"device-missing", "peer-route", "peer-reached"},
        "ip link del flannel.1",
        "ip link add flannel.1 mtu 1450 type vxlan id 1 dev eth0 local 192.168.123.12 dstport 8472 nolearning\n"
        + FIX + "; " + FIX,
    ),
]  # fmt: skip


def test_healthy_node_is_silent(running: Doctor) -> None:
    status, out, err = running.run()
    assert (status, err) == (0, ""), out
    assert out.startswith("nothing wrong was found; ")


@pytest.mark.parametrize("fault", RUNNING, ids=str)
def test_fault_is_found_beside_a_running_flanneld(running: Doctor, fault: Fault) -> None:
    check(running, fault, set())


def test_what_flanneld_restores_is_not_found(running: Doctor) -> None:
    running.lab.run("node1", f"ip route del {PEER} dev flannel.1; ip neigh flush dev flannel.1 nud permanent")
    assert running.rules() == set()


def test_two_flannelds(running: Doctor) -> None:
    lab = running.lab
    argv = [lab.flanneld_program, "-iface=eth0", "-ip-masq", "-datastore=file:/run/lab/shared/flannel.json"]
    second = subprocess.Popen(
        lab.command("node1", *argv, "-subnet-file=/run/flannel/second.env"), env=lab.environment, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: os.path.exists(lab.machine("node1").path("/run/flannel/second.env")), "the second one runs")
        found = {finding["rule"]: finding for finding in running.report()["findings"]}
        assert "flanneld-twice" in found
        assert "second.env" in json.dumps(found["flanneld-twice"])
    finally:
        lab.run("node1", "kill $(pgrep -f subnet-file=/run/flannel/secon[d].env)")
        second.wait()
    until(lambda: running.rules() == set(), "silent again")


def test_another_machine_has_our_address(running: Doctor) -> None:
    lab = running.lab
    device = lab.run("router", "ip -o -4 addr show to 192.168.123.1 | cut -d' ' -f2").strip()
    lab.run("router", f"ip addr add 192.168.123.11/32 dev {device}")
    try:
        assert "node-address-twice" in running.rules()
    finally:
        lab.run("router", f"ip addr del 192.168.123.11/32 dev {device}; ip neigh flush all")
        lab.run("node2", "ip neigh flush dev eth0")
    until(lambda: running.rules() == set(), "silent again")


def test_peer_that_drops_the_tunnel(running: Doctor) -> None:
    lab = running.lab
    lab.run("node2", NFT.format("input", "udp dport 8472 drop"))
    try:
        (finding,) = running.report()["findings"]
        assert finding["rule"] == "peer-reached"
        assert "UDP port 8472 is blocked on the way" in finding["what"]
        assert "tcpdump" in finding["repair"][0]
    finally:
        lab.run("node2", NO_NFT)
    assert running.rules() == set()


def test_wrong_checksums(running: Doctor) -> None:
    """A device that computes wrong checksums, as the peer sees it: what has one is dropped, what has none arrives."""
    lab = running.lab
    lab.run("node2", NFT.format("input", 'iifname "flannel.1" tcp dport 33434 drop'))
    lab.run("node2", 'nft add rule inet x c iifname "flannel.1" udp dport 33434 udp checksum != 0 drop')
    try:
        assert running.rules() == {"checksum-offload"}
    finally:
        lab.run("node2", NO_NFT)
    assert running.rules() == set()


def test_firewall_that_drops_every_port_is_no_wrong_checksum(running: Doctor) -> None:
    lab = running.lab
    lab.run("node2", NFT.format("input", 'iifname "flannel.1" meta l4proto { tcp, udp } drop'))
    try:
        assert running.rules() == set()
    finally:
        lab.run("node2", NO_NFT)


def test_node_as_argument(running: Doctor) -> None:
    assert running.rules("192.168.123.12") == set()
    lab = running.lab
    lab.run("node1", f"ip link set {VETH} nomaster")
    try:
        assert running.rules() == {"pod-link"}
        assert running.rules("192.168.123.12") == set()
        assert running.rules("pod1") >= {"pod-link"}
    finally:
        lab.run("node1", ON_BRIDGE)
    for word, words in (
        ("10.99.99.99", "unknown pod or node"),
        (lab.run("node1", f"echo {POD}7").strip(), "no pod of this node"),
    ):
        status, out, err = running.run(word)
        assert (status, out) == (3, "")
        assert words in err
    status, out, err = running.run(lab.run("node1", f"echo {PEER_ADDRESS}7").strip())
    assert "is on node 192.168.123.12" in " ".join(out.split())
    assert (status, err) == (0, "")


@pytest.mark.parametrize(("script", "end"), HEALTHY.values(), ids=HEALTHY)
def test_what_other_programs_do_to_a_healthy_node_is_no_fault(running: Doctor, script: str, end: str) -> None:
    running.lab.run("node1", script)
    try:
        assert running.report()["findings"] == []
    finally:
        running.lab.run("node1", end)


def test_closed_firewall_is_opened_for_the_tunnel_alone(running: Doctor) -> None:
    lab = running.lab
    lab.run("node1", "iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -P INPUT DROP")
    try:
        tunnel, reached = running.report()["findings"]
        assert (tunnel["rule"], reached["rule"]) == ("tunnel-dropped", "peer-reached")
        assert "at the packet filter of this host" in reached["what"]
        lab.run("node1", "\n".join(tunnel["repair"]))
        assert running.rules() == set()
        assert "-P INPUT DROP" in lab.run("node1", "iptables -S INPUT")
    finally:
        lab.run("node1", "iptables -P INPUT ACCEPT; iptables -F INPUT")


def test_peer_whose_firewall_drops_all_that_is_for_itself_is_reached(running: Doctor) -> None:
    """The peer forwards to its pods, large packets too, and that is what counts."""
    lab = running.lab
    lab.run("node2", "iptables -A INPUT -p udp --dport 8472 -j ACCEPT; iptables -P INPUT DROP")
    try:
        assert running.rules() == set()
    finally:
        lab.run("node2", "iptables -P INPUT ACCEPT; iptables -F INPUT")


def test_fix_runs_what_is_safe_and_nothing_else(running: Doctor) -> None:
    lab = running.lab
    lab.run("node1", f"ip link set {VETH} down; ip link set cni0 mtu 1300; echo '{BRIDGE}' >{CONF}")
    try:
        status, out, _ = running.run("--fix", "--dry-run")
        assert status == 2
        assert "would run: ip link set cni0 mtu 1450  (bridge)" in out.splitlines()
        assert running.rules() == {"pod-link", "bridge", "conf-order"}
        report = running.report("--fix")
        assert {finding["rule"] for finding in report["findings"]} == {"conf-order"}
        assert [one["outcome"] for one in report["fixed"]] == ["done", "done"]
    finally:
        lab.run("node1", f"rm -f {CONF}; ip link set {VETH} up; ip link set cni0 mtu 1450")
    assert running.rules() == set()


def test_bundle_has_no_secret(running: Doctor) -> None:
    """Secrets in every place from which the bundle reads."""
    lab, secret, key = running.lab, "hunter2-S3cr3t", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
    lab.run(
        "node1",
        f"""mkdir -p /run/flannel /etc/cni/net.d
        echo {key} >/run/flannel/wgkey
        echo '{{"cniVersion": "1.0.0", "name": "z", "plugins": [{{"type": "bridge", "password": "{secret}"}}]}}' \\
            >/etc/cni/net.d/99-z.conflist
        echo '# [12:00:00] etcdctl --endpoints https://root:{secret}@192.168.123.2:2379 get x, key {key}' >/run/cni-py/journal/x
        nft add table inet x '{{ comment "login root, then {secret}"; }}'
        """,
    )
    try:
        status, _, err = running.run("--bundle", "/run/lab/bundle.tar.gz")
        assert status in (0, 1)
        assert "bundle.tar.gz" in err
        path = lab.machine("node1").path("/run/lab/bundle.tar.gz")
        assert os.stat(path).st_mode & 0o777 == 0o600
        with tarfile.open(path) as archive:
            members = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
        assert not [name for name, text in members.items() if secret in text or key in text]
        names = {name.removeprefix("cni-py-doctor/") for name in members}
        assert {"report.txt", "report.json", "facts.json", "versions.txt", "files/run/flannel/subnet.env"} <= names
        assert {"journals/journal/x", "files/etc/cni/net.d/99-z.conflist", "commands/ip-addr.txt"} <= names
        assert "10.244.0.0/16" in members["cni-py-doctor/files/run/flannel/subnet.env"]
        assert running.run("--bundle", "/run/lab/bundle.tar.gz")[0] != 0, "an existing file is not overwritten"
    finally:
        lab.run(
            "node1",
            "rm -f /run/flannel/wgkey /etc/cni/net.d/99-z.conflist /run/cni-py/journal/x /run/lab/bundle.tar.gz; " + NO_NFT,
        )


def test_machine_without_flannel_says_so(lab: Lab) -> None:
    out = " ".join(lab.run("router", "cni-py doctor").split())
    assert "no flannel network was found on this node" in out
    assert "nothing wrong was found" in out


def test_another_user_than_root_sees_what_was_not_checked(running: Doctor) -> None:
    lab = running.lab
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*user, "test", "-r", lab.programs.cni_py], check=False).returncode:
        pytest.skip("another user cannot read this installation")  # pytest's own directory, without TEST_BIN_DIR
    argv = [*user, lab.programs.cni_py, "doctor", "--json"]
    done = subprocess.run(lab.command("node1", *argv), env=lab.environment, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    unchecked = {one["rule"] for one in report["unchecked"]}
    assert {"flanneld-not-running", "packets-dropped", "peer-reached", "leaks", "rules-lost", "peer-route"} <= unchecked
    assert report["findings"] == []
    assert done.returncode == 3


@pytest.mark.parametrize("fault", KILLED, ids=str)
def test_fault_is_found_without_flanneld(stopped: Doctor, fault: Fault) -> None:
    check(stopped, fault, {STOPPED})


def test_fix_restores_all_of_a_peer_without_flanneld(stopped: Doctor) -> None:
    lab = stopped.lab
    lab.run("node2", f"ip route del {PEER} dev flannel.1; ip neigh flush dev flannel.1 nud permanent")
    report = stopped.report("--fix")
    assert {finding["rule"] for finding in report["findings"]} == {STOPPED}
    assert {tuple(one["rules"]) for one in report["fixed"]} == {("peer-route",), ("peer-arp",)}


def test_rules_of_a_live_pod_that_were_deleted(stopped: Doctor) -> None:
    lab = stopped.lab
    ports = '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'
    lab.run("node2", f"ip netns add web; CAP_ARGS='{ports}' cni-py add cbr0 web >/dev/null; nft delete table inet cni_py")
    try:
        assert stopped.rules() == {STOPPED, "rules-lost"}
        assert stopped.rules("--fix") == {STOPPED}
    finally:
        lab.run("node2", f"CAP_ARGS='{ports}' cni-py del cbr0 web; ip netns del web")


@dataclass(frozen=True)
class Kind:
    """A kind of lab, and a fault in it: a shell script on a node, and which rule finds it on node1."""

    options: dict[str, Any]
    place: str
    script: str
    rule: str

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.options.items() if key != "flanneld_options")


KILL = "kill -9 $(pgrep -f bin/flannel[d]); "
HEALTH = ["-healthz-port=8081", "-healthz-ip=127.0.0.1"]
KINDS = [
    Kind({"backend": "host-gw", "ipv6": True, "flanneld_options": HEALTH}, "node2", "ip link set eth0 down", "peer-reached"),
    Kind({"ipv6": True, "datastore": "etcd", "pods": 2}, "etcd", "kill -9 $(pgrep -x etcd)", "datastore"),
    Kind({"backend": "udp"}, "node2", KILL, "peer-reached"),
    Kind(
        {"nodes": 3, "segments": 2, "backend_options": {"DirectRouting": True}},
        "node2",
        "ip link set eth0 down",
        "peer-reached",
    ),
    Kind({"ipv4": False, "ipv6": True}, "node1", KILL + "sysctl -qw net.ipv6.conf.cni0.disable_ipv6=1", "ipv6-disabled"),
    Kind({"backend": "host-gw", "pods": 0}, "node1", KILL + "ip route flush proto 122", "peer-route"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_healthy_lab_of_every_kind_is_silent_and_a_fault_in_it_is_found(kind: Kind, bin_dir: Path) -> None:
    need(TOOLS | (ETCD_TOOLS if kind.options.get("datastore") == "etcd" else {}))
    with Lab(**{"nodes": 2, "prefix": str(bin_dir.parent.parent)} | kind.options) as made:
        made.wait_connected()
        doctor = Doctor(made, "node1")
        try:
            status, out, err = doctor.run()
            assert (status, err) == (0, ""), out
            made.run(kind.place, kind.script)
            until(lambda: kind.rule in doctor.rules(), f"{kind.rule} is found")
        finally:
            doctor.close()
