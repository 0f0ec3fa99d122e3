"""flanneld killed before each system call that changes state, then restarted: differences afterwards.

How it works. All of it runs inside of a Host (``host.do``). Each flanneld is a fork of this process, which has loaded it: an
interpreter's start changes nothing and would take most of the time. One is killed (tests/support/kills.py), the next one is left
alone until it is ready; then the kernel, the files and the datastore must be as they are without a kill. A *scenario*
is what a flanneld is killed in: it is counted how many points that has, and each is tried, as far as there is time.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import select
import signal
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import pytest

from support import kills
from support.namespaces import PATH, what_it_does
from support.waiting import Stuck

needs_tracer = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the tracer knows the system calls of x86_64 and aarch64"
)
NOTICES = "/run/notices"
SUBNET_ENV = "/run/flannel/subnet.env"
DIRECTORIES = ("/run/flannel", "/var/lib/cni-py")
READY_SECONDS = 60.0
FEWEST = 3
"""Points of a scenario that are tried, however little time there is."""
STILL_SECONDS = 0.4
"""A flanneld that has not changed anything for so long has done what it was to do."""
PEER = "10.244.200.0-24&fd00:244:0:200::-64"
"""The lease of a node that does not exist: it comes, changes, and goes."""
STALE = """
ip route add 10.244.250.0/24 via 192.168.123.77 proto 122; ip -6 route add fd00:244:0:250::/64 via fd00:123::77 proto 122
nft flush table inet cni_py_flanneld
[ ! -e /sys/class/net/flannel.1 ] || {
    ip neigh add 10.244.250.0 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent
    bridge fdb append 02:11:22:33:44:55 dev flannel.1 dst 192.0.2.9
    ip link set flannel.1 mtu 1400
}
"""
"""Commands that create what a start has to correct."""
POWER_OFF = """
for device in flannel.1 flannel-v6.1; do [ ! -e /sys/class/net/$device ] || ip link del $device; done
ip route flush proto 122; ip -6 route flush proto 122; nft flush ruleset; find /run/flannel -type f -delete
"""

Leases = dict[str, dict[str, Any]]
"""Key to value. ``Expires`` in it: that it has an end."""


class Datastore(Protocol):
    """Storage of the leases."""

    @property
    def options(self) -> Sequence[str]: ...

    def leases(self) -> Leases: ...

    def put(self, key: str, value: dict[str, Any] | None) -> None:
        """Write a lease; None deletes it."""
        ...

    def left(self) -> list[str]:
        """Return the remains of a write that was not completed."""
        ...


class InFile:
    """The datastore of ``-datastore=file:``."""

    def __init__(self, path: str) -> None:
        self.path, self.options = Path(path), [f"--datastore=file:{path}"]

    def leases(self) -> Leases:
        found: Leases = json.loads(self.path.read_text())["leases"]
        return found

    def put(self, key: str, value: dict[str, Any] | None) -> None:
        content = json.loads(self.path.read_text())
        content["leases"].pop(key, None)
        if value is not None:
            content["leases"][key] = value
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content))
        new.rename(self.path)

    def left(self) -> list[str]:
        return [str(path) for path in self.path.parent.glob(f"{self.path.name}.*") if path.suffix != ".lock"]


class InEtcd:
    """The one on 127.0.0.1. What a kill may leave there: a lease of etcd's that no key is bound to, which ends by itself."""

    PREFIX = "/coreos.com/network"
    options = ("-etcd-endpoints=http://127.0.0.1:2379",)

    def leases(self) -> Leases:
        answer = json.loads(self._ctl("get", "--prefix", f"{self.PREFIX}/subnets/", "-w", "json"))
        found = {}
        for kv in answer.get("kvs", []):
            key, value = b64decode(kv["key"]).decode(), json.loads(b64decode(kv["value"]))
            found[key.removeprefix(f"{self.PREFIX}/subnets/")] = value | {"Expires": kv.get("lease")}
        return found

    def put(self, key: str, value: dict[str, Any] | None) -> None:
        key = f"{self.PREFIX}/subnets/{key}"
        self._ctl("del", key) if value is None else self._ctl("put", key, json.dumps(value))

    def left(self) -> list[str]:
        return []

    def _ctl(self, *words: str) -> str:
        environment = {"PATH": PATH, "ETCDCTL_API": "3"}
        return subprocess.run(["etcdctl", *words], capture_output=True, text=True, env=environment, check=True).stdout


# --- flanneld ---------------------------------------------------------------------------------------------------------


def load() -> None:
    """Import what a flanneld needs, for the forks."""
    for name in (
        "flanneld.daemon",
        "flanneld.stores.file",
        "flanneld.backends.host_gw",
        "flanneld.backends.vxlan",
        "packetfilter.libnftables",
    ):
        import_module(f"cni_py.{name}")


def flanneld(options: Sequence[str], renewal_seconds: float = 0.0, save_seconds: float = 5.0) -> int:
    """Become flanneld. Returns: its exit status. ``renewal_seconds``: when it renews its lease, for the first time."""
    from cni_py.flanneld import daemon, own_lease, saved
    from cni_py.flanneld.stores import file_watch

    saved.SAVE_SECONDS, file_watch.POLL_SECONDS = save_seconds, 0.02
    gc.get_freeze_count = lambda: 0  # else it takes the objects of all collected tests for its own, and looks through them
    if renewal_seconds:
        seconds = iter([renewal_seconds])
        own_lease.OwnLease._until_renewal = lambda self: next(seconds, 3600.0)  # type: ignore[method-assign]
    os.environ.clear()
    os.environ.update({"PATH": PATH, "NOTIFY_SOCKET": NOTICES})
    sys.argv, sys.stderr = ["flanneld", *options], os.fdopen(2, "w", closefd=False)
    return daemon.main()


class Notices:
    """Receiver of flanneld's messages to the service manager."""

    def __init__(self) -> None:
        Path(NOTICES).unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(NOTICES)

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Return whether it reports that within this time."""
        ends = time.monotonic() + seconds
        while select.select([self._socket], [], [], max(0.0, ends - time.monotonic()))[0]:
            if b"READY=1" in self._socket.recv(4096):
                return True
        return False

    def forget(self) -> None:
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(4096)


class Killer(kills.Killer):
    """Kills a flanneld at the ``calls``-th call: from its start on, or with ``then`` from when that was done, once it was ready.

    Where it has done all of that first, it is ended by SIGTERM, in which it can be killed, too.
    """

    def __init__(self, notices: Notices, calls: int, then: Callable[[], None] | None = None) -> None:
        super().__init__(calls=calls)
        self.notices, self.then = notices, then
        self.is_armed, self.is_ready, self.is_ending = then is None, False, False

    def is_counted(self, tid: int) -> bool:
        """Return False for its log, wake-ups between threads, and queries to the kernel."""
        if not self.is_armed or kills.is_question(tid):
            return False
        words = kills.shown_call(tid).partition(": ")[2]
        return not words.startswith(("write pipe", "write anon_inode", "write /memfd"))

    def is_quiet(self, pid: int, seconds: float) -> None:
        self.is_ready = self.is_ready or self.notices.is_ready()
        if self.is_ready and not self.is_armed and self.then is not None:
            self.is_armed = True
            self.then()
        elif self.is_ready and seconds > STILL_SECONDS and not self.is_ending:
            self.is_ending = True
            os.kill(pid, signal.SIGTERM)


class Restarted:
    """Flanneld that runs undisturbed until it is ready; a context manager, that kills it."""

    def __init__(self, notices: Notices, options: Sequence[str]) -> None:
        notices.forget()
        self._log = os.memfd_create("log")
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.dup2(self._log, 2)
                os._exit(flanneld(options))
            finally:
                os._exit(127)
        if not notices.is_ready(READY_SECONDS):
            doing = what_it_does(self._pid)
            self.__exit__()
            raise Stuck(f"not ready within {READY_SECONDS:.0f} s: {doing}\n{self.log()}")

    def __enter__(self) -> Restarted:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def log(self) -> str:
        return os.pread(self._log, 1 << 20, 0).decode(errors="replace")


# --- state ------------------------------------------------------------------------------------------------------------

STATE = """
ip -j addr show | tr -d '\\n'; echo
for device in $(ls /sys/class/net); do case $device in flannel*)
    ip -4 neigh show dev $device nud permanent; ip -6 neigh show dev $device nud permanent; bridge fdb show dev $device
    cat /proc/sys/net/ipv6/conf/$device/accept_ra
esac; done
ip -4 route show proto 122; ip -6 route show proto 122; nft list ruleset 2>/dev/null
"""


def shell(script: str) -> str:
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={"PATH": PATH}, stdin=subprocess.DEVNULL)
    return done.stdout


@dataclass
class Seen:
    """State of a node. In ``env`` and ``kernel`` the node's subnets and MAC addresses are OWN…, for they may be others."""

    env: str
    kernel: list[str]
    files: list[str]
    others: Leases
    own: Leases = field(compare=False)
    macs: dict[str, str] = field(compare=False)

    def difference(self, other: Seen) -> str:
        """Return the differences; empty if there are none."""
        lines = [f"-{line}" for line in self.kernel if line not in other.kernel]
        lines += [f"+{line}" for line in other.kernel if line not in self.kernel]
        pairs = ((self.env, other.env), (self.files, other.files), (self.others, other.others))
        return "; ".join(lines + [f"{was!r} is now {now!r}" for was, now in pairs if was != now])


def look(datastore: Datastore, address: str) -> Seen:
    links, *lines = shell(STATE).splitlines()
    devices = [link for link in json.loads(links) if link["ifname"].startswith("flannel")]
    macs = {link["ifname"]: link["address"] for link in devices}
    for link in devices:
        addresses = sorted(info["local"] for info in link["addr_info"] if info["scope"] == "global")
        lines.append(f"{link['ifname']} {link['mtu']} {link['address']} {'UP' in link['flags']} {addresses}")
    leases = datastore.leases()
    own = {key: value for key, value in leases.items() if value["PublicIP"] == address}
    others = {key: value for key, value in leases.items() if key not in own}
    names = {mac: f"OWN-MAC-{name}" for name, mac in macs.items()}
    for key in own:
        ipv4, _, ipv6 = key.partition("&")
        names |= {ipv4.rpartition(".")[0] + ".": "OWN4.", ipv6.partition("-")[0]: "OWN6::"}

    def named(text: str) -> str:
        for own_text, name in names.items():
            text = text.replace(own_text, name)
        return text

    files = [str(path) for directory in DIRECTORIES for path in sorted(Path(directory).rglob("*"))]
    return Seen(named(subnet_env()), sorted(map(named, lines)), files + datastore.left(), others, own, macs)


def subnet_env() -> str:
    return Path(SUBNET_ENV).read_text() if Path(SUBNET_ENV).exists() else ""


# --- killed -----------------------------------------------------------------------------------------------------------


@dataclass
class Scenario:
    """Situation in which a flanneld is killed: its start, or, with ``then``, what follows when it is ready.

    ``before``: what is done before each time. ``is_cleanup``: what is killed is ``flanneld --cleanup``.
    """

    name: str
    before: Callable[[], object] = lambda: None
    then: Callable[[], None] | None = None
    renewal_seconds: float = 0.0
    is_cleanup: bool = False


@dataclass
class Found:
    """``faults``: what was wrong; ``points``: how many there are and how many were tried, by scenario."""

    faults: list[str] = field(default_factory=list)
    points: dict[str, tuple[int, int]] = field(default_factory=dict)


class Campaign:
    """The kills of one node. ``address``: by which the datastore knows it; ``backend``: which its peers have."""

    def __init__(self, datastore: Datastore, address: str, backend: str, options: list[str]) -> None:
        load()
        self.datastore, self.address, self.backend = datastore, address, backend
        self.options = [*datastore.options, "-iface=eth0", *options]
        self.notices, self.found = Notices(), Found()
        self._peers = cycle([None, self._peer(77, 0x55), self._peer(78, 0x56)])
        self._good: list[tuple[Any, Seen]] = []
        """State without a kill, for each state of the peer."""
        for _ in range(3):
            self.next_peer()
            with Restarted(self.notices, self.options):
                seen = self.look()
            self._good.append((seen.others.get(PEER), seen))

    def _peer(self, number: int, mac: int) -> dict[str, Any]:
        value = {"PublicIP": f"192.168.123.{number}", "PublicIPv6": f"fd00:123::{number}", "BackendType": self.backend}
        if self.backend == "vxlan":
            data = [{"VNI": 1, "VtepMAC": f"02:11:22:33:{family:02x}:{mac:02x}"} for family in (4, 6)]
            value |= {"BackendData": data[0], "BackendV6Data": data[1]}  # type: ignore[dict-item]
        return value

    def look(self) -> Seen:
        return look(self.datastore, self.address)

    # ---- what happens -----------------------------------------------------------------------------

    def next_peer(self) -> None:
        """The node that does not exist comes, is another one, goes."""
        self.datastore.put(PEER, next(self._peers))

    def lose_lease(self) -> None:
        for key in self.look().own:
            self.datastore.put(key, None)

    def clean_up(self) -> None:
        """Clean up as if flanneld had never been here."""
        done = kills.Killer().run_function(lambda: flanneld([*self.options, "-cleanup"]))
        assert done.status == 0, done.err
        self.lose_lease()

    def scenarios(self) -> Sequence[Scenario]:
        return (
            Scenario("start", before=lambda: shell(STALE)),
            Scenario("change", then=self.next_peer),
            Scenario("renewal", then=lambda: None, renewal_seconds=0.2),
            Scenario("first start", before=self.clean_up),
            Scenario("start after a boot", before=lambda: shell(POWER_OFF)),
            Scenario("loss of the lease", then=self.lose_lease),
            Scenario("cleanup", is_cleanup=True),
        )

    # ---- killed in it -----------------------------------------------------------------------------

    def kill_in(self, scenario: Scenario, seconds: float) -> None:
        """Kill it at all points, in any order, as long as there is time."""
        scenario.before()
        total, tried = self._killed(scenario, sys.maxsize)[0].count, 0
        ends = time.monotonic() + seconds
        for calls in random.Random(total).sample(range(1, total + 1), total):
            if time.monotonic() > ends and tried >= FEWEST:
                break
            self.found.faults += self.kill(scenario, calls)
            tried += 1
        self.found.points[scenario.name] = (total, tried)

    def _killed(self, scenario: Scenario, calls: int) -> tuple[Killer, str]:
        """Killed at that point; the words say where."""
        self.notices.forget()
        killer = Killer(self.notices, calls, scenario.then)
        options = [*self.options, *(["-cleanup"] if scenario.is_cleanup else [])]
        done = killer.run_function(lambda: flanneld(options, scenario.renewal_seconds, save_seconds=0.1))
        assert done.at is not None or done.status == 0, f"{scenario.name}: {done.status} {done.err.decode()[-2000:]}"
        return killer, f"{scenario.name}, killed at {calls} ({done.at})"

    def kill(self, scenario: Scenario, calls: int) -> list[str]:
        """One kill: what was wrong after it, and after the next start."""
        scenario.before()
        env = subnet_env()
        what = self._killed(scenario, calls)[1]
        faults, dead, env_now = [], self.look(), subnet_env()
        may_be = env_now == "" if scenario.is_cleanup else env_now.endswith("FLANNEL_IPMASQ=true\n")
        if env_now != env and not may_be:
            faults.append(f"{SUBNET_ENV} is {env_now!r}, it was {env!r}")
        if scenario.is_cleanup and calls % 2:
            faults += self._left_by_cleanup()
        with Restarted(self.notices, self.options) as restarted:
            now, log = self.look(), restarted.log()
        faults += self._wrong(dead, now)
        faults += [line for line in log.splitlines() if line[0] in "EF" or "cannot be used" in line]
        return [f"{what}: {fault}" for fault in faults]

    def _left_by_cleanup(self) -> list[str]:
        """Return what remains after a complete ``--cleanup``."""
        done = kills.Killer().run_function(lambda: flanneld([*self.options, "-cleanup"]))
        now = self.look()
        left = [*now.kernel, *now.files, *([now.env] if now.env else [])]
        return [f"cleanup then: {done.status}, {left}"] if done.status or left else []

    def _wrong(self, dead: Seen, now: Seen) -> list[str]:
        """Return what differs from the state without a kill, and from what a dead flanneld has published."""
        good = next(seen for peer, seen in self._good if peer == now.others.get(PEER))
        faults = [good.difference(now)] if good != now else []
        if len(now.own) != 1 or (dead.own and set(dead.own) != set(now.own)):
            faults.append(f"the lease was {sorted(dead.own)}, now {sorted(now.own)}")
        for lease in now.own.values():
            published = [data["VtepMAC"] for data in (lease.get("BackendData"), lease.get("BackendV6Data")) if data]
            if lease["BackendType"] != self.backend or sorted(published) != sorted(now.macs.values()) or not lease["Expires"]:
                faults.append(f"the lease says {lease}, and the devices have {now.macs}")
        return faults


# --- what tests call --------------------------------------------------------------------------------------------------

BUSY = ("start", "change", "renewal")
"""Scenarios of a node that has pods, whose traffic is watched."""
NEW = ("first start", "start after a boot", "loss of the lease", "cleanup")
"""Scenarios of a node without pods, because they cut them off."""


def kill_often(
    datastore: Datastore, address: str, backend: str, options: list[str], names: Collection[str], seconds: float
) -> Found:
    """Kill it in the scenarios of these names, for so long in all."""
    campaign = Campaign(datastore, address, backend, options)
    for scenario in campaign.scenarios():
        if scenario.name in names:
            campaign.kill_in(scenario, seconds / len(names))
    return campaign.found
