"""Bare nodes on one switch, as a deployment finds them: the test starts etcd and flanneld itself, and stops them.

Machines are those of ``cni_py.lab``, without its order of steps. The cluster's directory is ``/run/lab`` on every one of them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

import pytest

from cni_py.lab import machine, plan, services
from cni_py.lab.machine import Keeper, Machine
from cni_py.lab.ping import Matrix, ping
from cni_py.lab.programs import ETCD_TOOLS, SYSTEM_PATH, TOOLS, Programs, tool
from cni_py.lab.services import Notice, Service
from integration.etcd.servers import ENVIRONMENT, NAMES
from support.flannel import Ping
from support.tools import need
from support.waiting import SECONDS, until

PREFIX = "/coreos.com/network"
SUBNETS = f"{PREFIX}/subnets/"
CONFIG = '{"Network":"10.244.0.0/16","SubnetMax":"10.244.199.0","Backend":{"Type":"vxlan"}}'
GATEWAY = "192.168.123.2"
SUBNET_FILE = "/run/flannel/subnet.env"
NEVER = Event()
_ATTACH = 'ip netns add "$1"; ip -n "$1" link set lo up; exec "$2" add cbr0 "/run/netns/$1"'


class Cluster:
    """``names``: the nodes, from 192.168.123.11 on; ``etcd`` is a machine at .2 with no flanneld. A context manager."""

    def __init__(self, bin_dir: Path, directory: Path, names: Sequence[str], ifname: str = "eth0") -> None:
        need(TOOLS | ETCD_TOOLS)
        for name, package in {"openssl": "openssl", "ping": "iputils-ping"}.items():
            if shutil.which(name, path=SYSTEM_PATH) is None:
                pytest.skip(f"no {name} (package {package})")
        self.programs = Programs.of(str(bin_dir.parent.parent))
        self.directory, self.names, self.ifname = directory, list(names), ifname
        self.addresses = {name: f"192.168.123.{11 + number}" for number, name in enumerate(names)} | {"etcd": GATEWAY}
        self.machines: dict[str, Machine] = {}
        self.pods: dict[str, tuple[str, str]] = {}
        """Node and address."""

    def __enter__(self) -> Cluster:
        for name in ("stage", "log", "shared"):
            (self.directory / name).mkdir()
        self._mount_points = machine.make_mount_points()
        self._keeper = Keeper()
        switch = self._keeper.machine
        names = [*self.names, "etcd"]
        self.machines = dict(zip(names, machine.start(switch, str(self.directory), names, names), strict=True))
        ports = [line for name in names for line in plan.port_commands(name, 1, self.machines[name].pid, self.ifname)]
        switch.configure(["link add segment1 type bridge mcast_snooping 0", "link set segment1 up", *ports])
        for name in names:
            lines = [f"addr add {self.addresses[name]}/24 brd + dev {self.ifname}", f"link set {self.ifname} up"]
            self.machines[name].configure([*lines, *([f"route add default via {GATEWAY}"] if name != "etcd" else [])])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            for name in sorted((self.directory / "log").iterdir()):
                print(f"--- {name.name}\n{name.read_text(errors='replace')[-3000:]}")
        self._keeper.machine.kill()
        self._keeper.close()
        machine.remove_mount_points(self._mount_points)

    def run(self, name: str, script: str) -> str:
        """A shell script on a node, or in a pod."""
        node = self.pods[name][0] if name in self.pods else name
        inside = ["ip", "netns", "exec", name] if name in self.pods else []
        return self.machines[node].run(*inside, "sh", "-ec", script, env=self.programs.environment())

    def json(self, name: str, script: str) -> Any:
        return json.loads(self.run(name, script) or "[]")

    def path(self, name: str, path: str) -> Path:
        """A file of a node."""
        return Path(self.machines[name].path(path))

    def subnet(self, name: str) -> str:
        """The subnet as subnet.env names it, ``10.244.91.0/24``; empty where there is none."""
        try:
            found = re.search(r"FLANNEL_SUBNET=(\S+)", self.path(name, SUBNET_FILE).read_text())
        except FileNotFoundError:
            return ""
        return found[1].replace(".1/", ".0/") if found else ""

    # ---- flanneld -----------------------------------------------------------------------------

    def start_flanneld(
        self, name: str, argv: Sequence[str] = (), env: Mapping[str, str] = {}, *, program: str = ""
    ) -> Flanneld:
        """Start it; ``wait_ready()`` waits."""
        return Flanneld(self, name, [program or self.programs.flanneld, *argv], env)

    # ---- pods ---------------------------------------------------------------------------------

    def attach(self, pod: str, node: str) -> None:
        """A pod by the network that the node has in /etc/cni/net.d."""
        argv = ["sh", "-ec", _ATTACH, "sh", pod, self.programs.cni_py]
        result = json.loads(self.machines[node].run(*argv, env=self.programs.environment()))
        self.pods[pod] = (node, result["ips"][0]["address"].partition("/")[0])

    def ping(self, size: int = 1450) -> Matrix:
        """Every pod every other one, also with packets of this size and DF."""
        commands = {pod: self._enter(pod) for pod in self.pods}
        asked = {
            pod: [(other, address, size) for other, (_, address) in self.pods.items() if other != pod] for pod in self.pods
        }
        return ping(commands, asked, 3.0)

    def _enter(self, pod: str) -> list[str]:
        """Words that run a program in the pod's network alone; a signal to it reaches the program itself."""
        return [tool("nsenter"), f"--net={self.path(self.pods[pod][0], f'/run/netns/{pod}')}", "--"]

    def traffic(self, source: str, target: str) -> Ping:
        """Full-sized packets with DF every 20 ms, there and back, as long as this lasts."""
        return Ping([*self._enter(source), "ping", "-n", "-i", "0.02", "-s", "1422", "-M", "do", self.pods[target][1]])


class Flanneld:
    """A daemon on a node, with a log that goes on when it is started again."""

    def __init__(self, cluster: Cluster, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.cluster, self.name, self.argv, self.env = cluster, name, argv, env
        self.machine = cluster.machines[name]
        self._log = cluster.directory / "log" / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Start it again; ``log`` begins here."""
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        self.notice = Notice(str(self.cluster.directory), self.machine)
        env = self.cluster.programs.environment() | self.notice.environment | dict(self.env)
        self.service: Service = services.start(self.machine, self.argv, str(self._log), env)

    def wait_ready(self, seconds: float = SECONDS) -> Flanneld:
        try:
            self.notice.wait_ready(self.service, NEVER, seconds)
        finally:
            self.notice.close()
        return self

    @property
    def log(self) -> str:
        """The log since it was started last."""
        return self._log.read_bytes()[self._log_begins :].decode()

    def until_logged(self, text: str, times: int = 1) -> None:
        until(lambda: self.log.count(text) >= times, f"{text!r} in the log of {self.name}")

    def signal(self, name: str) -> None:
        """TERM, STOP, CONT; after TERM its end is waited for."""
        self.machine.run("kill", f"-{name}", str(self.service.pid))
        if name == "TERM":
            until(lambda: not self.service.is_alive, "flanneld has ended")


# ---- etcd ---------------------------------------------------------------------------------------


class Etcd:
    """One member. ``pki``: the directory with ca, server and client (.crt and .key) as the machine sees it; empty: no TLS."""

    def __init__(
        self,
        cluster: Cluster,
        node: str = "etcd",
        number: int = 0,
        members: int = 1,
        pki: str = "",
        options: Sequence[str] = (),
    ) -> None:
        self.cluster, self.machine, self.pki = cluster, cluster.machines[node], pki
        address, scheme = cluster.addresses[node], "https" if pki else "http"
        self.endpoint = f"{scheme}://{address}:{2379 + 10 * number}"
        peers = [f"{scheme}://{address}:{2380 + 10 * member}" for member in range(members)]
        name = NAMES[number] if node == "etcd" else node
        names = NAMES if node == "etcd" else [node]
        self._name = name
        self._command = [
            "etcd", "--name", name, "--data-dir", f"/run/etcd-{name}",
            "--heartbeat-interval", "50", "--election-timeout", "500",
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", peers[number], "--initial-advertise-peer-urls", peers[number],
            "--initial-cluster", ",".join(f"{names[member]}={peer}" for member, peer in enumerate(peers)), *options,
        ]  # fmt: skip
        for kind in ("", "peer-") if pki else ():
            self._command += [f"--{kind}cert-file={pki}/server.crt", f"--{kind}key-file={pki}/server.key"]
            self._command += [f"--{kind}trusted-ca-file={pki}/ca.crt", f"--{kind}client-cert-auth"]
        self.login: list[str] = []
        self.start()

    def start(self) -> None:
        log = str(self.cluster.directory / "log" / f"etcd-{self._name}.log")
        self._service = services.start(self.machine, self._command, log, ENVIRONMENT)

    def kill(self) -> None:
        self._service.kill()

    def wait(self) -> Etcd:
        """Wait until it replies, or asks for a name and a password."""

        def replies() -> bool:
            assert self._service.is_alive, self._service.last_words()
            words = self._ctl("get", "nothing", seconds=1)
            return words.returncode == 0 or "user name is empty" in words.stderr

        until(replies, f"etcd at {self.endpoint} replies")
        return self

    def ctl(self, *words: str, stdin: str = "") -> str:
        """Output of etcdctl."""
        done = self._ctl(*words, stdin=stdin)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def _ctl(self, *words: str, seconds: int = 5, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = ["etcdctl", f"--endpoints={self.endpoint}", f"--command-timeout={seconds}s", f"--dial-timeout={seconds}s"]
        if self.pki:
            command += [f"--cacert={self.pki}/ca.crt", f"--cert={self.pki}/server.crt", f"--key={self.pki}/server.key"]
        argv = self.machine.command(*command, *self.login, *words)
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)

    def revision(self) -> int:
        return int(self._status()["header"]["revision"])

    def is_leader(self) -> bool:
        status = self._status()
        return bool(status["leader"] == status["header"]["member_id"])

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ctl("endpoint", "status", "-w", "json"))[0]["Status"]
        return found

    def leases(self) -> dict[str, dict[str, Any]]:
        """Leases by key, ``10.244.91.0-24``: the published value, and ``lease``, the id of the etcd lease in hexadecimal."""
        found = json.loads(self.ctl("get", "--prefix", SUBNETS, "-w", "json")).get("kvs", [])
        return {
            b64decode(kv["key"]).decode().removeprefix(SUBNETS): {
                **json.loads(b64decode(kv["value"])),
                "lease": f"{kv.get('lease', 0):x}",
            }
            for kv in found
        }

    def key_of(self, address: str) -> str:
        """The key of the node with this public address; empty: it has none."""
        return next((key for key, lease in self.leases().items() if lease["PublicIP"] == address), "")


def peer(number: int) -> tuple[str, str]:
    """Key and value of a node that does not exist: 10.244.{number}.0/24 by 192.168.123.{number}."""
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"}
    value = {"PublicIP": f"192.168.123.{number}", "PublicIPv6": None, "BackendType": "vxlan", "BackendData": data}
    return f"{SUBNETS}10.244.{number}.0-24", json.dumps(value, separators=(",", ":"))
