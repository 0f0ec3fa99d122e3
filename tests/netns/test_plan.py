"""``cni-py plan``: the call in a copy of the host, which leaves the host as it was; and its script, which does what the call does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_py.plan import namespaces, scratch
from support import replay
from support.namespaces import PATH, Host
from support.waiting import until

pytestmark = pytest.mark.netns

NETWORK = {
    "cniVersion": "1.0.0",
    "name": "cbr0",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
PORTS = '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'
# a node with what plugins look at: bridges and their ports, a pod of before, VXLAN, macvlan, policy, rules, a broken name
NODE = r"""
ip link add eth0 address 02:00:00:00:01:01 type veth peer name eth0-outside
ip link set eth0 up; ip link set eth0-outside up; ip link property add dev eth0 altname enp1s0
ip addr add 192.0.2.11/24 broadcast 192.0.2.255 dev eth0; ip addr add 2001:db8::11/64 dev eth0 nodad
ip addr add 192.0.2.12/24 broadcast 192.0.2.255 dev eth0; ip addr add 192.0.2.77/32 dev eth0 scope link
ip route add default via 192.0.2.1 dev eth0 metric 100; ip -6 route add default via 2001:db8::1 dev eth0
ip route add 198.51.100.0/24 nexthop via 192.0.2.2 dev eth0 weight 1 nexthop via 192.0.2.3 dev eth0 weight 3
ip route add blackhole 203.0.113.0/24; ip route add 10.9.0.0/16 via 192.0.2.9 table 77; ip route add 10.8.0.0/16 dev eth0 mtu 1400
ip rule add from 10.9.0.0/16 lookup 77 priority 500; ip -6 rule add to 2001:db8:9::/48 lookup 77 priority 501
ip link add br7 mtu 1400 type bridge ageing_time 1000; ip link set br7 up
ip link add port7 type veth peer name port7-end; ip link set port7 master br7 up; ip link set port7-end up alias "with a space"
if ip link set br7 type bridge vlan_filtering 1; then  # a kernel may lack it
    bridge vlan add dev port7 vid 7 pvid untagged; bridge vlan del dev port7 vid 1
fi
bridge link set dev port7 hairpin on isolated on
ip link add flannel.1 address 02:00:00:00:01:02 type vxlan id 1 local 192.0.2.11 dev eth0 dstport 8472 nolearning; ip link set flannel.1 up
ip addr add 10.244.1.0/32 dev flannel.1; ip neigh add 10.244.2.0 lladdr 02:00:00:00:02:02 dev flannel.1 nud permanent
bridge fdb add 02:00:00:00:02:02 dev flannel.1 dst 192.0.2.22 self permanent; ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
ip link add mac0 link eth0 address 02:00:00:00:01:03 type macvlan mode bridge; ip link set mac0 up
ip link add ifb9 type ifb; ip link set ifb9 up
ip tuntap add dev tap9 mode tap
tc qdisc add dev port7 root handle 1: tbf rate 1mbit burst 10000 limit 20000
tc qdisc add dev port7 handle ffff: ingress
tc filter add dev port7 parent ffff: protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev ifb9
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.eth0.rp_filter=2 net.ipv6.conf.eth0.accept_ra=0 net.ipv4.conf.br7.proxy_arp=1
nft 'add table inet own { comment "of another program"; }; add chain inet own forward { type filter hook forward priority 5; policy drop; }'
nft 'add set inet own known { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.7.1 } }'
nft 'add rule inet own forward iifname "cni0" ip saddr @known counter accept comment "a rule"'
iptables -t nat -N OTHER; iptables -t nat -A POSTROUTING -s 10.8.0.0/16 -m comment --comment "a rule" -j OTHER
iptables -t nat -A OTHER -m addrtype ! --dst-type LOCAL -j MASQUERADE --random-fully; ip6tables -A FORWARD -p tcp --dport 80 -j ACCEPT
"""


@pytest.fixture(scope="module")
def node(bin_dir: Path) -> Iterator[Host]:
    """A node with a network, a pod that is attached, one that is not, and much else. No test changes it."""
    with Host(bin_dir) as host:
        host.run(NODE)
        host.write("/etc/cni/net.d/10-cbr0.conflist", json.dumps(NETWORK))
        for name in ("web", "blue"):
            host.netns(name)
        run(host, "add", "cbr0", "web")
        yield host


def run(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    done = plan_or(host, *words)
    assert done.returncode == 0, done.stderr
    return done


def plan_or(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    return host.execute([f"{Path(host.bin_dir).parents[1]}/bin/cni-py", *words])


def whole_state(host: Host) -> Any:
    """Return what could have changed: networks, rules, parameters, files, and which namespaces and mounts there are."""
    text = host.run(
        "iptables-save | grep -v '^#' || true; ip -d neigh show nud permanent; ls -li /run/netns; findmnt -lno TARGET; find /run /var/lib/cni /etc/cni -printf '%p %m %s %T@\n'"
    )
    return host.do(replay.read_state, [*replay.DIRECTORIES, "/etc/cni"]), text


def test_add_is_explained_and_changes_nothing(node: Host) -> None:
    before = whole_state(node)
    done = run(node, "plan", "cbr0", "blue", "--cap-args", PORTS)
    assert whole_state(node) == before
    for part in (
        "Create a veth, a cable with two ends",
        "Reserve 10.1.0.3.",
        '"ipMasq": true in the configuration',
        "Host ports",
        "tcp . 8080",
    ):
        assert part in done.stdout
    assert done.stdout.endswith("ADD would succeed: eth0 gets 10.1.0.3/24; nothing was changed on this host\n")
    assert "Create the bridge" not in done.stdout  # the node has it
    assert done.stderr == ""


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC"])
def test_every_command_changes_nothing(node: Host, verb: str) -> None:
    before = whole_state(node)
    of = "blue" if verb == "ADD" else "web"
    found = json.loads(run(node, "plan", "cbr0", of, "--command", verb, "--json").stdout)
    assert whole_state(node) == before
    assert found["command"] == verb
    assert found["errors"] == []
    commands = [item["command"] for call in found["calls"] for item in call["items"] if item["kind"] == "step"]
    assert bool(commands) == (verb in ("ADD", "DEL")), commands
    assert not [command for command in commands if command.startswith("install ")]  # each has the content of its file


def test_copy_is_as_the_host_is(node: Host) -> None:
    """Links, addresses, routes, rules, neighbours, shaping, parameters and nftables, of the host and of each pod."""
    wanted, found, names = node.do(state_and_that_of_a_copy)
    assert names == ["blue", "web"]
    assert wanted.keys() == found.keys()
    for where in wanted:
        missing = [line for line in wanted[where] if line not in found[where]]
        more = [line for line in found[where] if line not in wanted[where]]
        assert (missing, more) == ([], []), where


def state_and_that_of_a_copy() -> Any:
    def in_copy(_: scratch.Scratch) -> Any:
        return {where: known(lines) for where, lines in replay.read_state([])["spaces"].items()}, os.listdir("/run/netns")

    wanted = {where: known(lines) for where, lines in replay.read_state([])["spaces"].items()}
    found, names = scratch.run(namespaces.read([]), scratch.read_packet_filter(), in_copy, ["/var/lib/cni"], [])
    return wanted, found, sorted(names)


def known(lines: list[str]) -> list[str]:
    """Leave out what a copy cannot have: an IPv6 address has no search for duplicates, a tap device is of another kind."""
    return [line.replace(" nodad", "") for line in lines if "tap9" not in line]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_killed_in_the_middle_leaves_nothing(node: Host, processes: int) -> None:
    """SIGKILL of the command, once it has begun, is in the copy, or runs a plugin there."""
    before = whole_state(node)

    def pids() -> list[str]:
        return node.run("pgrep -f '[p]lan cbr0 blue' || true").split()

    argv = node.command(f"{Path(node.bin_dir).parents[1]}/bin/cni-py", "plan", "cbr0", "blue")
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, env={"PATH": PATH}) as process:
        until(lambda: len(pids()) >= min(processes, 2) or process.poll() is not None, "a plan that has begun")
        if processes == 3:
            until(lambda: node.run("pgrep -f '[/]bridge' || true") or process.poll() is not None, "a plugin in the copy")
        for pid in pids()[:1]:
            node.run(f"kill -{signal.SIGKILL.value} {pid} || true")
    until(lambda: not pids(), "the end of all that the plan has started")
    assert whole_state(node) == before


def attach_host(bin_dir: Path, conf: dict[str, Any]) -> Host:
    host = Host(bin_dir)
    host.write("/etc/cni/net.d/10-cbr0.conflist", json.dumps(conf))
    host.netns("blue")
    return host


def test_script_does_what_add_does(bin_dir: Path) -> None:
    """The script runs in an empty namespace, with the record and the cached result by which CHECK and DEL then do their work."""
    with attach_host(bin_dir, NETWORK) as scripted, attach_host(bin_dir, NETWORK) as added:
        script = run(scripted, "plan", "cbr0", "blue", "--cap-args", PORTS, "--script").stdout
        assert scripted.host_ends() == []
        scripted.run(script)
        run(added, "add", "cbr0", "blue", "--cap-args", PORTS)
        assert without_chance(scripted) == without_chance(added)
        checked = run(scripted, "check", "cbr0", "blue")
        assert (checked.stdout, checked.stderr) == ("", "")
        run(scripted, "del", "cbr0", "blue")
        assert scripted.host_ends() == []
        assert "10.1.0.2" not in scripted.run("nft list ruleset; ls /var/lib/cni/networks/cbr0")


def without_chance(host: Host) -> Any:
    """The state of a host with names of veths, MAC addresses and the numbers of namespaces in the order in which they come."""
    of = host.do(replay.read_state, [*replay.DIRECTORIES])
    seen: dict[str, str] = {}
    text = json.dumps([of["spaces"], replay.shown_files(of)])
    pattern = r"\b(?:veth[0-9a-f]{8}|(?:[0-9a-f]{2}:){5}[0-9a-f]{2})\b"
    text = re.sub(pattern, lambda found: seen.setdefault(found[0], f"{found[0][:4] if found[0][0] == 'v' else 'mac'}"), text)
    return sorted(json.loads(text)[1]), {where: sorted(lines) for where, lines in json.loads(text)[0].items()}


def test_pod_that_is_known_by_a_process(bin_dir: Path) -> None:
    """The path /proc/PID/ns/net leads to the copy of the pod's namespace, not to the namespace."""
    with (
        attach_host(bin_dir, NETWORK) as host,
        subprocess.Popen(
            host.command("unshare", "--net", "sh", "-c", "echo $$; exec sleep 600"), stdout=subprocess.PIPE, text=True
        ) as pod,
    ):
        assert pod.stdout is not None
        pid = pod.stdout.readline().strip()
        path = f"/proc/{pid}/ns/net"
        before = whole_state(host)
        planned = run(host, "plan", "cbr0", path)
        assert f"nsenter --net={path} ip addr add 10.1.0.2/24" in planned.stdout
        assert host.run(f"nsenter --net={path} ip -br link").split() == ["lo", "DOWN", "00:00:00:00:00:00", "<LOOPBACK>"]
        assert whole_state(host) == before
        pod.kill()


def test_go_plugin_is_shown_by_what_it_changes(bin_dir: Path, go_plugins: str) -> None:
    conf = {
        "cniVersion": "1.0.0",
        "name": "net",
        "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.3.0.0/24"}}],
    }
    with attach_host(bin_dir, conf) as host:
        before = whole_state(host)
        words = ("plan", "net", "blue", "--cni-path", go_plugins)
        done = run(host, *words)
        assert f"ptp ({go_plugins}/ptp) is not one of cni-py and has no journal: before (-) and after (+)" in done.stdout
        assert re.search(r"^  \+/run/netns/blue: address 10.3.0.2/24 dev eth0", done.stdout, re.MULTILINE)
        assert re.search(r"^  \+host: link veth[0-9a-f]+ kind veth up", done.stdout, re.MULTILINE)
        (other,) = json.loads(run(host, *words, "--json").stdout)["otherPlugins"]
        assert other["path"] == f"{go_plugins}/ptp"
        script = plan_or(host, *words, "--script")
        assert (script.returncode, script.stdout) == (1, "")
        assert "not every plugin has a journal" in script.stderr
        assert whole_state(host) == before


def test_gc_is_planned_for_pods_without_a_namespace_alone(bin_dir: Path) -> None:
    """A record names a namespace by numbers that its copy does not have; the pod lives all the same."""
    with attach_host(bin_dir, NETWORK | {"cniVersion": "1.1.0"}) as host:
        host.netns("gone")
        for name in ("blue", "gone"):
            run(host, "add", "cbr0", name)
        host.run("ip netns delete gone")
        until(lambda: len(host.host_ends()) == 1, "the end of the deleted pod's veth")
        before = whole_state(host)
        planned = run(host, "plan", "cbr0", "blue", "--command", "GC").stdout
        assert "rm -f /var/lib/cni/networks/cbr0/10.1.0.3" in planned
        assert "10.1.0.2" not in planned
        assert whole_state(host) == before


DHCP = {"type": "macvlan", "master": "eth0", "ipam": {"type": "dhcp"}}


@pytest.mark.parametrize(
    ("plugin", "word"),
    [(DHCP, "dhcp"), ({"type": "host-device", "pciBusID": "0000:00:1f.6"}, "pciBusID")],
    ids=["dhcp", "pci"],
)
def test_what_has_no_copy_has_no_plan(bin_dir: Path, plugin: dict[str, Any], word: str) -> None:
    with attach_host(bin_dir, {"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}) as host:
        done = plan_or(host, "plan", "net", "blue")
        assert (done.returncode, done.stdout) == (3, "")
        assert "no plan of ADD can be made" in done.stderr
        assert f'"{word}"' in done.stderr


def test_directory_that_does_not_exist_is_not_made(bin_dir: Path) -> None:
    """Reservations in a directory that ADD would make, below one that no plugin owns."""
    conf = {
        **NETWORK,
        "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "dataDir": "/var/lib/of a test/pool"}}
        ],
    }
    with attach_host(bin_dir, conf) as host:
        listed = os.listdir("/var/lib")
        assert "> '/var/lib" not in run(host, "plan", "cbr0", "blue").stdout
        assert "mkdir -p -m 755 '/var/lib/of a test/pool'" in run(host, "plan", "cbr0", "blue", "--script").stdout
        assert os.listdir("/var/lib") == listed


def test_failure_is_that_of_add(bin_dir: Path) -> None:
    """Same error, same exit status; and again with a plan before it."""
    with Host(bin_dir) as host:
        host.run("ip link add br0 type bridge; ip link add cni0 type veth peer name x")
        host.write("/etc/cni/net.d/10-cbr0.conflist", json.dumps(NETWORK))
        host.netns("blue")
        planned = plan_or(host, "plan", "cbr0", "blue")
        added = plan_or(host, "add", "cbr0", "blue")
        assert (planned.returncode, planned.stderr) == (added.returncode, added.stderr)
        assert added.returncode == 1
        assert "exists but is not a bridge" in added.stderr
        assert planned.stdout.endswith("ADD would fail; nothing was changed on this host\n")
        assert plan_or(host, "plan", "cbr0", "green").stderr == plan_or(host, "add", "cbr0", "green").stderr
        script = plan_or(host, "plan", "cbr0", "blue", "--script")
        assert (script.returncode, script.stdout, script.stderr) == (1, "", added.stderr)
