"""Nodes with a flanneld each, on a switch of their own: what the tests of the daemon are made of.

              switch: segment1 192.168.123.1/24 ── routes ── segment2 192.168.124.1/24
             ________|________                                    |
            |                 |                                   |
    node 1  .11       node 3  .13                          node 2  .12          eth0, and fd00:123::11/64 …
            |                 |                                   |
          cni0 ── pod       cni0 ── pod                         cni0 ── pod

With one segment all nodes are on the first. A node is a Host, so /run, /var/lib/cni and /var/lib/cni-py are its own; the datastore is a
file that all of them see. Pods are made by hand: nothing is tested here but flanneld.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni_py.lab.programs import tool
from support.namespaces import PATH, Host, Sandbox, decode_json, wait_for_end
from support.pods import transfer_between
from support.waiting import SECONDS, until

ROOT = Path(__file__).resolve().parents[2]
NETWORK: dict[str, Any] = {"Network": "10.244.0.0/16"}
NETWORK6: dict[str, Any] = {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
FAMILIES: dict[str, dict[str, Any]] = {"v4": NETWORK, "v6": {"EnableIPv4": False, **NETWORK6}, "dual": {**NETWORK, **NETWORK6}}
PROTOCOL = 122  # of flanneld's routes
SAVED = "/var/lib/cni-py/flanneld.json"
SUBNET_ENV = "/run/flannel/subnet.env"
READY_SECONDS = SECONDS
PING_SECONDS, FEWEST_ANSWERS = "0.01", 10
FORWARDING = """
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
for conf in /proc/sys/net/ipv6/conf/*; do echo 0 >$conf/accept_dad; done  # one waits a second or two for it
"""
POD = """
ip netns exec {pod} sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad'
ip link add {pod} mtu {mtu} type veth peer eth0 mtu {mtu} address {mac} netns {pod}
ip link set {pod} master cni0 up
ip -n {pod} link set lo up
ip -n {pod} link set eth0 up
"""


def flanneld_command(*options: str, code: str = "") -> list[str]:
    """flanneld of this checkout, as bin/flanneld starts it, by the Python that runs the tests. ``code``: comes first."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'flanneld'\n"
        f"{code}\nfrom cni_py.flanneld.daemon import main; sys.exit(main())"
    )
    return [sys.executable, "-I", "-c", script, *options]


class Flanneld:
    """Running flanneld. ``notices``: all its messages to the service manager, a datagram each."""

    def __init__(self, node: Node, command: list[str], env: dict[str, str]) -> None:
        self.log_path, self.notices = node.directory / f"flanneld-{time.monotonic_ns()}.log", list[str]()
        address = str(self.log_path.with_suffix(".sock"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        environment = {"PATH": PATH, "NOTIFY_SOCKET": address} | env
        # nsenter goes into a process namespace by a child, which is the program
        with self.log_path.open("wb") as log:
            argv = node.host.command(*command)
            self._nsenter = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        children = Path(f"/proc/{self._nsenter.pid}/task/{self._nsenter.pid}/children")
        until(lambda: self._nsenter.poll() is not None or children.read_text(), "nsenter has a child")
        self.pid = int((children.read_text().split() or ["0"])[0]) if self._nsenter.poll() is None else 0

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._nsenter.poll()

    def has_said(self, *texts: str) -> bool:
        return all(text in self.log for text in texts)

    def wait_for_log(self, text: str, count: int = 1) -> float:
        return until(lambda: self.log.count(text) >= count or self._fail_if_ended(), lambda: f"{text!r} in\n{self.log}")

    def wait_for_notice(self, text: str, seconds: float = READY_SECONDS) -> str:
        """The next datagram with this in it."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._socket], [], [], min(left, 0.2))[0]:
                self.notices.append(self._socket.recv(65536).decode())
                if text in self.notices[-1]:
                    return self.notices[-1]
            else:
                self._fail_if_ended()
        raise AssertionError(f"{text!r} was not reported within {seconds} s but {self.notices}:\n{self.log}")

    def wait_ready(self) -> Flanneld:
        self.wait_for_notice("READY=1")
        return self

    def _fail_if_ended(self) -> bool:
        assert self.status is None, f"flanneld ended with {self.status}:\n{self.log}"
        return False

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit status, when it has ended."""
        status = wait_for_end(self._nsenter, seconds, self.log)
        self._socket.close()
        return status

    def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP for a while. nsenter stops itself when its child does, and continues it when it is continued."""
        stat = Path(f"/proc/{self._nsenter.pid}/stat")
        self.signal(signal.SIGSTOP)
        try:
            until(lambda: ") T " in stat.read_text(), "nsenter stops too")
            yield
        finally:
            self._nsenter.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def cpu_seconds(self) -> float:
        """Return its processor time: /proc counts whole ticks, of which it uses none at a time."""
        return time.clock_gettime(~self.pid << 3 | 2)  # CLOCK_PROCESS_CPUTIME_ID of that process, clock_getcpuclockid(3)


@dataclass
class Node:
    """A machine of the network."""

    net: Net
    number: int
    host: Host
    segment: int = 1
    flanneld: Flanneld | None = None
    pods: dict[str, list[str]] = field(default_factory=dict)
    """The addresses of each pod on it."""

    @property
    def directory(self) -> Path:
        return self.net.directory

    @property
    def address(self) -> str:
        return f"192.168.{122 + self.segment}.{10 + self.number}"

    @property
    def address6(self) -> str:
        return f"fd00:{122 + self.segment}::{10 + self.number}"

    def run(self, script: str, **options: Any) -> str:
        return str(self.host.run(script, **options))

    def command(self, *options: str) -> list[str]:
        """flanneld's, with the options of this network."""
        own = (f"--datastore=file:{self.net.datastore}", "-iface=eth0", *self.net.options)
        return flanneld_command(*own, *options, code=self.net.code)

    def start(self, *options: str, env: dict[str, str] | None = None, within: Iterable[str] = ()) -> Flanneld:
        """Start flanneld; ``within``: a command that it is run by."""
        self.flanneld = Flanneld(self, [*within, *self.command(*options)], env or {})
        self.net.started.append(self.flanneld)
        return self.flanneld

    def run_flanneld(self, *options: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return self.host.execute(flanneld_command(*options), stdin=stdin)

    @property
    def env(self) -> dict[str, str]:
        """Return the values in subnet.env."""
        file = self.host.path(SUBNET_ENV)
        lines = file.read_text().splitlines() if file.exists() else []
        return dict(line.split("=", 1) for line in lines)

    @property
    def subnet(self) -> str:
        """Subnet without the last part of the address: ``10.244.91``; of IPv6 ``fd00:244:0:91::``."""
        return self.env["FLANNEL_SUBNET"].rpartition(".")[0]

    @property
    def subnet6(self) -> str:
        return self.env["FLANNEL_IPV6_SUBNET"].rpartition("1/")[0]

    @property
    def subnets(self) -> list[str]:
        """Subnets of each family, as routes have them: ``10.244.91.0/24``, ``fd00:244:0:91::/64``."""
        subnets = [f"{self.subnet}.0/24"] if "FLANNEL_SUBNET" in self.env else []
        return subnets + ([f"{self.subnet6}/64"] if "FLANNEL_IPV6_SUBNET" in self.env else [])

    def routes(self) -> dict[str, dict[str, Any]]:
        """flanneld's, by what they lead to."""
        found = self.host.json(f"ip -j -4 route show proto {PROTOCOL}") + self.host.json(
            f"ip -j -6 route show proto {PROTOCOL}"
        )
        return {route["dst"]: route for route in found}

    def peers_subnets(self) -> list[str]:
        """Return the subnets of WireGuard's peers: the whole network is one route there."""
        return self.run("wg show all allowed-ips").split()

    def device(self, name: str = "flannel.1") -> dict[str, Any]:
        """Empty where there is none."""
        done = self.host.execute(["ip", "-j", "-d", "addr", "show", "dev", name])
        return dict(decode_json(done.stdout)[0]) if done.returncode == 0 else {}

    def state(self) -> dict[str, Any]:
        """Return all that flanneld keeps in the kernel, as comparable values."""
        devices = [link for link in self.host.json("ip -j addr show") if link["ifname"].startswith("flannel")]
        devices.sort(key=lambda link: str(link["ifname"]))
        tables = (
            "set +e; for d in {}; do ip -4 neigh show dev $d nud permanent; ip -6 neigh show dev $d nud permanent; "
            "bridge fdb show dev $d | sort; cd /proc/sys/net; cat ipv6/conf/$d/accept_ra ipv4/conf/$d/forwarding || echo none; done"
            " 2>/dev/null;"
        ).format(" ".join(link["ifname"] for link in devices))
        rules = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding; "
        rules += "nft list table inet cni_py_flanneld 2>/dev/null || true"
        kept = ("ifname", "mtu", "address")
        return {
            "devices": [
                {key: link.get(key) for key in kept}
                | {"up": "UP" in link["flags"], "arp": "NOARP" not in link["flags"], "master": link.get("master")}
                | {"addresses": sorted(a["local"] for a in link["addr_info"] if a["scope"] == "global")}
                for link in devices
            ],
            "entries": self.run((tables if devices else "") + rules).splitlines(),
            "routes": sorted(self.run(f"ip -4 route show proto {PROTOCOL}; ip -6 route show proto {PROTOCOL}").splitlines()),
        }

    def add_pod(self, name: str = "") -> Sandbox:
        """A pod on the bridge with an address of each family, which is what FLANNEL_MTU is for."""
        name = name or f"pod{self.number}"
        env, number = self.env, len(self.pods) + 2
        mac = f"02:00:00:00:{self.number:02x}:{number:02x}"
        bridge = [] if self.pods else ["ip link add cni0 type bridge mcast_snooping 0", "ip link set cni0 up"]
        bridge += [f"ip link set cni0 mtu {env['FLANNEL_MTU']}"]
        inside, addresses = [], []
        for key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"):
            if key not in env:
                continue
            gateway, _, length = env[key].partition("/")
            address = f"{gateway[:-1]}{number}"
            nodad = " nodad" if ":" in gateway else ""
            bridge += [] if self.pods else [f"ip addr add {env[key]} dev cni0{nodad}"]
            inside += [
                f"ip -n {name} addr add {address}/{length} dev eth0{nodad}",
                f"ip -n {name} route add default via {gateway}",
            ]
            addresses.append(address)
        script = [f"ip netns add {name}", *bridge, POD.format(pod=name, mtu=env["FLANNEL_MTU"], mac=mac), *inside]
        self.run("\n".join(script))
        self.pods[name] = addresses
        return Sandbox(name)

    def reached(self, address: str, *, size: int = 0, pod: str | None = None) -> bool:
        """One ping, with a packet of this size that must not be cut."""
        argv = ["ping", "-nqc1", "-W15"] + (_whole(address, size) if size else []) + [address]
        return self.host.execute(argv, sandbox=None if pod is None else Sandbox(pod)).returncode == 0


def _whole(address: str, size: int) -> list[str]:
    return ["-Mdo", f"-s{size - (48 if ':' in address else 28)}"]


class Net:
    """The picture above. ``config``: the network configuration's keys without the back end's; ``families``: of the underlay."""

    def __init__(self, directory: Path, backend: dict[str, Any], families: str = "v4", segments: int = 1) -> None:
        self.directory, self.families, self.segments = directory, families, segments
        self.datastore = directory / "flannel.json"
        self.options: list[str] = []
        self.code = ""
        """Code that every flanneld runs first: tests set shorter times in it."""
        self.nodes: list[Node] = []
        self.started: list[Flanneld] = []
        self.write({"config": FAMILIES[families] | {"Backend": backend}, "leases": {}})
        self.switch = Host()
        self.switch.run(FORWARDING)
        for number in range(1, segments + 1):
            script = f"ip link add segment{number} type bridge mcast_snooping 0; ip link set segment{number} up"
            script += f"; ip addr add 192.168.{122 + number}.1/24 dev segment{number}"
            self.switch.run(f"{script}; ip addr add fd00:{122 + number}::1/64 dev segment{number} nodad")

    def close(self) -> None:
        for node in self.nodes:
            node.host.close()
        self.switch.close()
        for flanneld in self.started:  # they ended with their hosts
            flanneld.wait()

    # ---- the datastore --------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.datastore.read_text())
        return found

    def write(self, content: dict[str, Any]) -> None:
        """Write by a rename, as flanneld does, because it may be reading."""
        temporary = self.datastore.with_suffix(".new")
        temporary.write_text(json.dumps(content))
        temporary.rename(self.datastore)

    def leases(self) -> dict[str, Any]:
        leases: dict[str, Any] = self.read()["leases"]
        return leases

    # ---- nodes ----------------------------------------------------------------------------------

    def add_nodes(self, count: int) -> list[Node]:
        """New nodes, without flanneld."""
        first = len(self.nodes) + 1
        numbers = range(first, first + count)
        with ThreadPoolExecutor(count) as pool:
            hosts = list(pool.map(lambda _: Host(), numbers))
            made = [
                Node(self, number, host, 2 if self.segments == 2 and number % 2 == 0 else 1)
                for number, host in zip(numbers, hosts, strict=True)
            ]
            self.nodes += made
            list(pool.map(self.plug_in, made))
        return made

    def reboot(self, node: Node) -> None:
        """The node without flanneld: nothing is as before but its disk and its cable."""
        disk = [node.host.path(directory) for directory in ("/var/lib/cni", "/var/lib/cni-py")]
        root = disk[0].parent
        kept = {str(path.relative_to(root)): path.read_text() for top in disk for path in top.rglob("*") if path.is_file()}
        node.host.close()
        # the kernel takes the cable away in its own time
        argv = [tool("nsenter"), f"--target={self.switch.pid}", "--net", "ip", "link", "del", f"node{node.number}"]
        subprocess.run(argv, check=False, stderr=subprocess.DEVNULL)
        node.host, node.flanneld, node.pods = Host(), None, {}
        for name, text in kept.items():
            node.host.write(f"/var/lib/{name}", text)
        self.plug_in(node)

    def plug_in(self, node: Node) -> None:
        """The cable, and the node's addresses and routes."""
        port = f"node{node.number}"
        # in the switch's network, and with our own process numbers
        argv = [tool("nsenter"), f"--target={self.switch.pid}", "--net", "ip"]
        veth = ["link", "add", port, "type", "veth", "peer", "eth0", "address", f"02:00:00:00:00:{node.number:02x}"]
        subprocess.run([*argv, *veth, "netns", str(node.host.pid)], check=True)
        subprocess.run([*argv, "link", "set", port, "master", f"segment{node.segment}", "up"], check=True)
        script = [FORWARDING]
        if self.families != "v6":
            script.append(f"ip addr add {node.address}/24 dev eth0")
        if self.families != "v4":
            script.append(f"ip addr add {node.address6}/64 dev eth0 nodad")
            # as those who keep an interface's addresses do; otherwise the kernel drops them with the link
            script.append("echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down")
        script.append("ip link set eth0 up")
        if self.families != "v6":
            script.append(f"ip route add default via 192.168.{122 + node.segment}.1")
        if self.families != "v4":
            script.append(f"ip -6 route add default via fd00:{122 + node.segment}::1")
        node.run("\n".join(script))

    def start(self, *nodes: Node, pods: bool = True) -> None:
        """flanneld on all of these at once (default: on all), and a pod on each; until each knows the way to every other."""
        for node in nodes or self.nodes:
            node.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: self._complete(node, pods), nodes or self.nodes))
        self.wait_converged()

    def _complete(self, node: Node, pods: bool) -> None:
        assert node.flanneld is not None
        node.flanneld.wait_ready()
        if pods:
            node.add_pod()

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.flanneld is not None and node.flanneld.status is None]

    def wait_converged(self) -> None:
        """Wait until every node has a route to every other node's subnets, or with wireguard a peer; with udp, until it reports so."""
        for node in self.running():
            others = [other for other in self.running() if other is not node]
            wanted = {subnet for other in others for subnet in other.subnets}
            if self.read()["config"]["Backend"]["Type"] == "udp":
                for subnet in wanted:
                    node.flanneld.wait_for_log(f"Subnet added: {subnet}")  # type: ignore[union-attr]  # it runs
                continue
            reached = Node.peers_subnets if self.read()["config"]["Backend"]["Type"] == "wireguard" else Node.routes
            until(
                lambda node=node, wanted=wanted, reached=reached: wanted <= set(reached(node)), f"routes of node {node.number}"
            )  # type: ignore[misc]

    # ---- traffic --------------------------------------------------------------------------------

    def unreached(self, answer_seconds: int = 15) -> list[str]:
        """Return failed connections: of every pod to every other one, small packets and full ones that must not be fragmented."""
        pods = [(node, name) for node in self.running() for name in node.pods]
        with ThreadPoolExecutor(len(pods)) as pool:
            found = pool.map(lambda pod: self._unreached_from(pod[0], pod[1], answer_seconds), pods)
        return [line for lines in found for line in lines]

    def _unreached_from(self, node: Node, name: str, answer_seconds: int) -> list[str]:
        script = "set +e\n"
        for other in self.running():
            size = min(int(node.env["FLANNEL_MTU"]), int(other.env["FLANNEL_MTU"]))
            for address in [
                address for pod, addresses in other.pods.items() if (other, pod) != (node, name) for address in addresses
            ]:
                for options in ([], _whole(address, size)):
                    words = " ".join(
                        ["ping", "-nqc2", "-i0.2", f"-W{answer_seconds}", *options, address]
                    )  # that none is lost, others look
                    script += f"{words} >/dev/null 2>&1 || echo '{name}: {words}'\n"
        return node.run(script, sandbox=Sandbox(name)).splitlines()

    def transfer(self, source: Node, target: Node, size: int = 4_000_000) -> None:
        """Transfer data by TCP, from the first pod of one node to that of another, by each family; all of it must arrive."""
        paths = [str(node.host.path(f"/run/netns/{next(iter(node.pods))}")) for node in (source, target)]
        for address in next(iter(target.pods.values())):
            transfer_between(*paths, address, size)


@contextmanager
def network(
    directory: Path, backend: dict[str, Any] | str, families: str = "v4", segments: int = 1, nodes: int = 3
) -> Iterator[Net]:
    """A Net with this many nodes, taken away at the end."""
    net = Net(directory, {"Type": backend} if isinstance(backend, str) else backend, families, segments)
    try:
        net.add_nodes(nodes)
        yield net
    finally:
        net.close()


# ---- traffic that lasts ---------------------------------------------------------------------------


@contextmanager
def traffic(net: Net) -> Iterator[list[Ping]]:
    """Ping between the pods of the first two nodes, in both directions, by each family, within this block."""
    first, second = net.nodes[:2]
    ways = [(first, "pod1", address) for address in second.pods["pod2"]]
    ways += [(second, "pod2", address) for address in first.pods["pod1"]]
    with ExitStack() as stack:
        options = ("-W2", "-i", PING_SECONDS)
        yield [
            stack.enter_context(Ping(node.host.command("ping", "-n", *options, address, sandbox=Sandbox(pod))))
            for node, pod, address in ways
        ]


class Ping:
    """A ping(8) that runs meanwhile: a context manager, that waits for the first answer and for one more in the end."""

    def __init__(self, command: list[str]) -> None:
        self._output, self._words = os.memfd_create("ping"), ""
        self._process = subprocess.Popen(command, stdout=self._output, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Ping:
        self._wait_for_answers(1)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait_for_answers(len(self.replies) + FEWEST_ANSWERS)
        finally:
            pid = self._process.pid  # nsenter's own, if it has entered a PID namespace
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            subprocess.run(["kill", "-INT", *(children or [str(pid)])], check=True)
            wait_for_end(self._process)
            self._words = self.words
            os.close(self._output)

    def _wait_for_answers(self, count: int) -> None:
        until(lambda: len(self.replies) >= count, lambda: f"{count} replies: {self.words[-500:]}")

    @property
    def words(self) -> str:
        """Its whole output."""
        return self._words or os.pread(self._output, os.fstat(self._output).st_size, 0).decode()

    @property
    def replies(self) -> set[int]:
        """Numbers of the packets that were answered."""
        return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", self.words)}

    @property
    def lost(self) -> int:
        """Packets that were followed by an answered one, and not answered themselves: the last may be under way."""
        answered = self.replies
        return max(answered) - len(answered)
