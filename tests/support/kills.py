"""SIGKILL, or a system call that fails, in the middle of a chain of plugins as libcni runs it, and what is left then.

How it works. `Chain` is libcni in small: ADD in order, each plugin with the result of the one before; DEL backwards with
the result that was kept; GC in order. Every plugin is a process group of its own, and what is killed is the whole group:

* at a moment: so many seconds after the chain began, whichever plugin runs then;
* at a boundary: before the N-th system call of the chain that changes something, in whichever thread or child of
  whichever plugin. A seccomp filter stops these calls alone (as `strace --seccomp-bpf` does it), and a small tracer
  counts them; a group that is killed while it is stopped there does not make the call. strace itself counts every
  system call of every thread apart, and kills only the process that makes it. In the same way a call is made to fail.

`Node` is the host that the pods are on: c1 lives all the time, c2 is the one whose calls are killed. All of it runs
inside a Host (tests/support/namespaces.py), by `host.do`. Nothing but the standard library: integration/reliability uses it, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from support.namespaces import PATH, what_it_does
from support.waiting import Stuck

LIMIT_SECONDS = 50.0
"""Time limit of a program, killed or not: one that is stopped would be waited for without end."""
VERBS = ("ADD", "DEL", "GC")
CLEANERS = ("DEL", "GC", "reboot")
NETWORK = "cbr0"
ENV = (
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n"
    "FLANNEL_IPV6_SUBNET=fd00:244:0:91::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
)
OURS: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "plugins": [{"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}],
}
GO: dict[str, Any] = {  # Debian has no Go flannel: bridge as flannel would call it
    "cniVersion": "1.0.0",
    "plugins": [
        {
            "type": "bridge",
            "isGateway": True,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipMasq": True,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.91.0/24"}], [{"subnet": "fd00:244:0:91::/64"}]],
                "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:244::/48"}],
            },
        }
    ],
}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
FOUR: dict[str, Any] = OURS | {  # what a Kubernetes node runs whose pods have limits
    "plugins": [
        *OURS["plugins"],
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {
            "type": "tuning",
            "capabilities": {"mac": True},
            "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
            "mtu": 1400,
            "promisc": True,
            "allmulti": True,
            "txQLen": 777,
        },
    ]
}
PTP: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "plugins": [{"type": "ptp", "ipMasq": True, "ipam": GO["plugins"][0]["ipam"]}],
}
CHAINS = {"two": OURS, "four": FOUR, "ptp": PTP}
LIMITS = {"ingressRate": 80_000_000, "ingressBurst": 1_000_000, "egressRate": 40_000_000, "egressBurst": 1_000_000}


# --- a call that is killed --------------------------------------------------------------------------------------------


@dataclass
class Done:
    """Outcome of a plugin. `at`: the system call at which it was killed, or that failed; empty: at a random moment; None: neither."""

    status: int
    out: bytes
    err: bytes
    at: str | None = None


class Killer:
    """Kills once: at the `calls`-th changing system call, or `seconds` after it was made, over as many processes as it takes.

    `error`: that call fails with this number instead, and no process is killed.
    """

    def __init__(self, *, calls: int = 0, seconds: float = 0.0, error: int = 0) -> None:
        self.calls, self.count, self.error = calls, 0, error
        self.deadline = time.monotonic() + seconds if seconds else 0.0

    def run(self, argv: list[str], env: dict[str, str], stdin: bytes) -> Done:
        """Execute a program; kill its process group if the time has come before it ends. Raises: Stuck."""
        return self._run(lambda: os.execve(argv[0], argv, env), stdin, first=0)

    def run_function(self, function: Callable[[], int]) -> Done:
        """Run one of our functions, which returns the exit status: a fork has loaded what we have. Raises: Stuck."""
        return self._run(lambda: os._exit(function()), b"", first=1)

    def is_counted(self, tid: int) -> bool:
        """Return whether the system call at which this thread is stopped is one of those that are counted."""
        return True

    def is_quiet(self, pid: int, seconds: float) -> None:
        """Hook, called repeatedly while nothing has happened for so long."""

    def _run(self, become: Callable[[], object], stdin: bytes, first: int) -> Done:
        """``first``: what the first system call counts, which is the program itself where one is executed."""
        files = [os.memfd_create(name) for name in ("in", "out", "err")]
        os.write(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # is waited for
        try:
            pid = os.fork()
            if pid == 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                _become(become, files, traced=bool(self.calls))
            status, at = self._trace(pid, first) if self.calls else self._wait(pid)
            out, err = (os.pread(fd, 1 << 20, 0) for fd in files[1:])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for fd in files:
                os.close(fd)
        return Done(os.waitstatus_to_exitcode(status), out, err, at)

    def _wait(self, pid: int) -> tuple[int, str | None]:
        try:
            os.setpgid(pid, pid)
        except OSError:  # it has done so itself, and gone on
            pass
        at = None
        fd = os.pidfd_open(pid)
        try:
            if self.deadline and not select.select([fd], [], [], max(0.0, self.deadline - time.monotonic()))[0]:
                at = ""
                os.killpg(pid, signal.SIGKILL)
            if not select.select([fd], [], [], LIMIT_SECONDS)[0]:
                raise _stuck(pid)
        finally:
            os.close(fd)
        return os.waitpid(pid, 0)[1], at

    def _trace(self, pid: int, first: int) -> tuple[int, str | None]:
        _wait_until_stopped(pid)
        _ptrace(_SETOPTIONS, pid, _OPTIONS)
        _ptrace(_CONT, pid, 0)
        status, at, counts, last = 0, None, first, time.monotonic()
        ends = last + LIMIT_SECONDS
        while True:
            try:
                tid, state = os.waitpid(-1, _WALL | os.WNOHANG)
            except ChildProcessError:
                return status, at
            if time.monotonic() > ends:
                raise _stuck(pid)
            if tid == 0:
                if not signal.sigtimedwait({signal.SIGCHLD}, _QUIET_SECONDS):
                    self.is_quiet(pid, time.monotonic() - last)
                continue
            last = time.monotonic()
            if not os.WIFSTOPPED(state):
                status = state if tid == pid else status
                continue
            event, number = state >> 16, os.WSTOPSIG(state)
            if event == _EVENT_SECCOMP and at is None and self.is_counted(tid):
                self.count += counts
                counts = 1
                if self.count == self.calls:
                    at = shown_call(tid)
                    if not self.error:
                        os.killpg(pid, signal.SIGKILL)
                        continue
                    if not at.endswith("exit_group"):  # it cannot fail: glibc would end this thread alone, with Python's lock
                        _fail(tid, self.error)
            try:
                _ptrace(_CONT, tid, 0 if event or number in (signal.SIGSTOP, signal.SIGTRAP) else number)
            except ProcessLookupError:  # killed meanwhile
                pass


def _wait_until_stopped(pid: int) -> None:
    """The child stops itself before it becomes the program. Raises: Stuck."""
    ends = time.monotonic() + LIMIT_SECONDS
    while not os.waitpid(pid, _WALL | os.WNOHANG)[0]:
        signal.sigtimedwait({signal.SIGCHLD}, _QUIET_SECONDS)
        if time.monotonic() > ends:
            raise _stuck(pid)


def _stuck(pid: int) -> Stuck:
    """Describe what all of the group do, which is killed: SIGKILL ends a stopped process, too."""
    members = [name for name in os.listdir("/proc") if name.isdigit() and _group(int(name)) == pid]
    words = "; ".join(what_it_does(int(name)) for name in members)
    os.killpg(pid, signal.SIGKILL)
    return Stuck(f"not at its end after {LIMIT_SECONDS:.0f} s: {words}")


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


_CALLS = {  # those that change something outside of the process, or end it: x86_64, aarch64
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "execve": (59, 221), "ftruncate": (77, 46), "rename": (82, 0), "mkdir": (83, 0), "rmdir": (84, 0),
    "creat": (85, 0), "link": (86, 0), "unlink": (87, 0), "symlink": (88, 0), "mkdirat": (258, 34), "unlinkat": (263, 35),
    "renameat": (264, 38), "linkat": (265, 37), "symlinkat": (266, 36), "renameat2": (316, 276), "setns": (308, 268),
    "exit_group": (231, 94),
}  # fmt: skip
_OPENAT = (257, 56)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_IS_ARM = platform.machine() == "aarch64"
_AUDIT_ARCH = 0xC00000B7 if _IS_ARM else 0xC000003E
_TRACEME, _POKEUSER, _CONT, _SETOPTIONS = 0, 6, 7, 0x4200
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # TRACEFORK, TRACEVFORK, TRACECLONE, TRACESECCOMP, EXITKILL
_EVENT_SECCOMP, _WALL = 7, 0x40000000
_QUIET_SECONDS = 0.02
_PATH_ARGUMENT = {"mkdir": 0, "rmdir": 0, "rename": 1, "unlink": 0, "link": 1, "openat": 1, "execve": 0, "unlinkat": 1,
                  "mkdirat": 1, "renameat": 3, "renameat2": 3, "linkat": 3}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


def _ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _fail(tid: int, number: int) -> None:
    """Let the system call that a thread is stopped at return this error. Only for x86_64."""
    for offset, value in ((15 * 8, -1), (10 * 8, -number)):  # orig_rax: no call; rax: its answer
        if _libc.ptrace(_POKEUSER, tid, offset, value) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _become(become: Callable[[], object], files: list[int], *, traced: bool) -> None:
    """The forked child: the program, in a process group of its own."""
    try:
        os.setpgid(0, 0)
        for number, fd in enumerate(files):
            os.dup2(fd, number)
        if traced:
            program = _filter()
            _ptrace(_TRACEME, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            if _libc.prctl(22, 2, ctypes.addressof(program), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
                os._exit(126)
        become()
    finally:
        os._exit(127)


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction))]


def _filter() -> _Program:
    """A seccomp program: the tracer is asked before these calls, and before an openat() that may write."""
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    numbers = [pair[_IS_ARM] for pair in _CALLS.values() if pair[_IS_ARM]]
    lines = [(load, 0, 0, 4), (equal, 0, len(numbers) + 4, _AUDIT_ARCH), (load, 0, 0, 0)]
    for index, number in enumerate(numbers):
        lines.append((equal, len(numbers) - index + 3, 0, number))
    lines += [
        (equal, 0, 1, _OPENAT[_IS_ARM]),
        (load, 0, 0, 16 + 2 * 8),
        (any_bit, 1, 0, _WRITING),
        (answer, 0, 0, allow),
        (answer, 0, 0, trace),
    ]
    # after another number than openat's the accumulator still holds that number: it must not be taken for flags
    lines[-5] = (equal, 0, 2, _OPENAT[_IS_ARM])
    array = (_Instruction * len(lines))(*[_Instruction(*line) for line in lines])
    program = _Program(len(lines), array)
    program.kept = array  # type: ignore[attr-defined]
    return program


def shown_call(tid: int) -> str:
    """The system call that a stopped thread is about to make, with its path where it has one."""
    try:
        words = Path(f"/proc/{tid}/syscall").read_text().split()
        program = Path(f"/proc/{tid}/comm").read_text().strip()
        number, arguments = int(words[0]), [int(word, 16) for word in words[1:7]]
        names = {pair[_IS_ARM]: name for name, pair in (_CALLS | {"openat": _OPENAT}).items()}
        name = names.get(number, str(number))
        if name in _PATH_ARGUMENT:
            with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
                memory.seek(arguments[_PATH_ARGUMENT[name]])
                return f"{program}: {name} {memory.read(256).partition(bytes(1))[0].decode(errors='replace')}"
        if name in ("write", "sendto", "sendmsg", "pwrite64"):
            return f"{program}: {name} {os.readlink(f'/proc/{tid}/fd/{arguments[0]}').partition(':[')[0]}"
        return f"{program}: {name}"
    except (OSError, ValueError, IndexError) as error:
        return f"?: {error}"


def is_question(tid: int) -> bool:
    """Return whether a stopped thread is about to send netlink a query: a message that requests no acknowledgement."""
    try:
        words = Path(f"/proc/{tid}/syscall").read_text().split()
        if int(words[0]) != _CALLS["sendto"][_IS_ARM]:
            return False
        address, size = int(words[2], 16), int(words[3], 16)
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            length, _, flags = struct.unpack("=IHH", memory.read(8))
    except (OSError, ValueError, IndexError, struct.error):
        return False
    return length <= size and not flags & 4  # NLM_F_ACK; of what is not netlink the first bytes are no such length


# --- libcni in small --------------------------------------------------------------------------------------------------


class Failed(AssertionError):
    """Failure of a plugin that was not killed."""


class Chain:
    """The chain of one side: its plugins, the first with masquerade, then portmap with a TCP and a UDP port for each pod."""

    def __init__(self, directory: str, conf: dict[str, Any]) -> None:
        self.directory = directory
        self.version = conf["cniVersion"]
        self.plugins = [*conf["plugins"], PORTMAP]
        self.results: dict[str, dict[str, Any]] = {}  # what libcni keeps of ADD

    def run(self, verb: str, pod: str, killer: Killer | None = None, valid: tuple[str, ...] = ("c1",)) -> Done | None:
        """Execute one verb for a pod (GC: for none). Returns: the outcome of the killed plugin; None: it completed.

        Raises: Failed.
        """
        plugins = self.plugins[::-1] if verb == "DEL" else self.plugins
        result = self.results.get(pod) if verb == "DEL" else None
        for plugin in plugins:
            done = self.call(plugin, verb, pod, result, killer, valid)
            if done.at is not None and done.status:
                return done
            if done.status:
                raise Failed(f"{plugin['type']} {verb} {pod}: {done.status} {done.out!r} {done.err!r}")
            if verb == "ADD":
                result = json.loads(done.out)
        if verb == "ADD" and result is not None:
            self.results[pod] = result
        elif verb == "DEL":
            self.results.pop(pod, None)
        return None

    def call(
        self,
        plugin: dict[str, Any],
        verb: str,
        pod: str,
        result: dict[str, Any] | None = None,
        killer: Killer | None = None,
        valid: tuple[str, ...] = ("c1",),
    ) -> Done:
        """One plugin of the chain."""
        conf = {"cniVersion": self.version, "name": NETWORK, **plugin, **self._runtime(plugin, pod, verb)}
        if verb == "GC":
            conf["cni.dev/valid-attachments"] = [{"containerID": name, "ifname": "eth0"} for name in valid]
        elif result is not None:
            conf["prevResult"] = result
        argv = [f"{self.directory}/{plugin['type']}"]
        return (killer or Killer()).run(argv, self._env(verb, pod), json.dumps(conf).encode())

    def _runtime(self, plugin: dict[str, Any], pod: str, verb: str) -> dict[str, Any]:
        if "capabilities" not in plugin or verb == "GC":
            return {}
        number = int(pod[1:])
        ports = [("tcp", 8000 + number, 80), ("udp", 5300 + number, 53)]
        values: dict[str, Any] = {
            "portMappings": [{"protocol": p, "hostPort": h, "containerPort": c} for p, h, c in ports],
            "bandwidth": LIMITS,
            "mac": f"c2:00:00:00:00:{number:02x}",
        }
        return {"runtimeConfig": {name: values[name] for name in plugin["capabilities"]}}

    def _env(self, verb: str, pod: str) -> dict[str, str]:
        env = {"PATH": PATH, "CNI_COMMAND": verb, "CNI_PATH": self.directory}
        if verb != "GC":
            env |= {"CNI_CONTAINERID": pod, "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0"}
        return env


# --- the host, and what is left on it ---------------------------------------------------------------------------------


def shell(script: str) -> str:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env={"PATH": PATH}, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


State = dict[str, Any]


def state() -> State:
    """Return everything that an attachment could leak: links, rules and elements, shaping, files, sysctls, the sandboxes."""
    ruleset, shaping, second, first = shell(
        "nft -s list ruleset; echo =====; tc qdisc show; echo =====;"
        "ip -n c2 -br link; echo =====; ip -n c1 -o addr show scope global"
    ).split("=====\n")
    return {
        "link": sorted(os.listdir("/sys/class/net")),
        "shaping": sorted(line.strip() for line in shaping.splitlines() if "noqueue" not in line),
        "sysctl of the host": sysctls(),
        "rule": sorted(line.strip() for line in ruleset.splitlines() if line.strip() and not line.startswith("# Warning")),
        "file": files(),
        "link in the sandbox": sorted(line.split()[0] for line in second.splitlines()),
        "of the live pod": sorted(line.split()[3] for line in first.splitlines()),
    }


def sysctls() -> dict[str, str]:
    """Settings of the host's network that belong to no interface of a pod."""
    found = {}
    for directory in ("core", "ipv4", *(f"{family}/conf/{name}" for family in ("ipv4", "ipv6") for name in ("all", "default"))):
        for entry in os.scandir(f"/proc/sys/net/{directory}"):
            if entry.is_file() and entry.stat().st_mode & 0o200:
                try:
                    found[entry.path] = Path(entry.path).read_text()
                except OSError:  # some have no value, ipv4/route/flush
                    pass
    return found


def files() -> dict[str, str]:
    """Path to content, but for journals and what all attachments share."""
    found = {}
    for directory in ("/var/lib/cni", "/run/cni-py", "/run/cni"):
        for root, _, names in os.walk(directory):
            for name in names:
                path = f"{root}/{name}"
                if "/journal/" in path or name in ("lock", "boot-id") or name.endswith(".lock") or "last_reserved_ip" in name:
                    continue
                found[path] = Path(path).read_bytes().decode(errors="replace")
    return found


def difference(before: State, after: State) -> dict[str, list[str]]:
    """Kind to what is too much (+) or too little (-)."""
    found: dict[str, list[str]] = {}
    for kind, was in before.items():
        old, new = (sorted(map(str, value.items())) if isinstance(value, dict) else list(value) for value in (was, after[kind]))
        for item in list(old):
            if item in new:
                old.remove(item)
                new.remove(item)
        if old or new:
            found[kind] = [f"-{item}" for item in old] + [f"+{item}" for item in new]
    return found


@dataclass
class Tally:
    """Counts of the kills of one verb, in one way, with one cleanup by the runtime."""

    kills: int = 0
    too_late: int = 0
    leaks: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # what the runtime did then, or the next ADD, failed

    def add(self, other: Tally) -> None:
        self.kills += other.kills
        self.too_late += other.too_late
        self.leaks += other.leaks
        self.failures += other.failures
        for kind, number in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + number


class Node:
    """Two pods on a host: c1 lives, c2 comes and goes."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.seconds = dict.fromkeys(VERBS, 0.05)
        Path("/run/flannel/subnet.env").write_text(ENV)
        shell("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        self.reset()

    def reset(self) -> None:
        """A host as new, but for c1, and what all pods share."""
        self.power_off()
        shell("rm -rf /var/lib/cni/* /run/cni-py /run/cni")
        self.chain.results.clear()
        self.begin()

    def power_off(self) -> None:
        """Simulate a reboot: only files outside /run remain."""
        shell(
            "for name in c1 c2; do [ ! -e /run/netns/$name ] || ip netns del $name; done; rm -rf /run/cni-py /run/cni;"
            "nft flush ruleset; cd /sys/class/net; for link in bwp* cni0; do [ ! -e $link ] || ip link del $link; done"
        )
        deadline = time.monotonic() + 10  # the kernel takes namespaces down in its own time
        while any(name.startswith("veth") for name in os.listdir("/sys/class/net")):
            assert time.monotonic() < deadline, "a veth outlived its namespace"
            time.sleep(0.002)
        shell("ip netns add c1; ip netns add c2")

    def begin(self) -> None:
        self.chain.run("ADD", "c1")
        self.chain.run("ADD", "c2")
        self.chain.run("DEL", "c2")
        self.clean = state()

    def measure_times(self) -> None:
        """Measure how long each verb takes, for random moments."""
        verbs = VERBS if self.chain.version == "1.1.0" else VERBS[:2]
        for verb in verbs * 3:
            if verb == "GC":
                self.chain.run("ADD", "c2")
            began = time.monotonic()
            self.chain.run(verb, "c2")
            self.seconds[verb] = min(1.0, time.monotonic() - began)

    def kill(self, verb: str, cleaner: str, *, calls: int = 0) -> tuple[Tally, bool]:
        """Kill once and clean up. Returns: the counts, and whether it was killed before its end."""
        tally = Tally()
        try:
            if verb != "ADD":
                self.chain.run("ADD", "c2")
        except Failed as error:
            tally.failures.append(f"the next ADD: {error}")
            self.reset()
            return tally, True
        killer = Killer(calls=calls) if calls else Killer(seconds=random.uniform(0, self.seconds[verb]) or 1e-4)
        done = self.chain.run(verb, "c2", killer)
        if verb == "GC":
            self.chain.results.pop("c2", None)
        if done is None:
            tally.too_late += 1
        else:
            tally.kills += 1
        what = f"{verb} killed {'at ' + done.at if done and done.at else 'at a moment'}, then {cleaner}"
        try:
            left = self.after(cleaner)
        except Failed as error:
            tally.failures.append(f"{what}: {error}")
            try:
                left = self.after(cleaner, again=True)  # runtimes try again
            except Failed:
                self.reset()
                return tally, done is not None
        if left:
            tally.leaks.append(f"{what}: {left}")
            for kind in left:
                tally.kinds[kind] = tally.kinds.get(kind, 0) + 1
            self.reset()
        return tally, done is not None

    def after(self, cleaner: str, *, again: bool = False) -> dict[str, list[str]]:
        """Clean up as a runtime does after a crash. Returns: what is left then. Raises: Failed."""
        if cleaner == "reboot":
            return self.reboot(again=again)
        if cleaner == "DEL":
            self.chain.run("DEL", "c2")
        else:
            self.chain.run("GC", "", valid=("c1",))
        return difference(self.clean, state())

    def reboot(self, *, again: bool = False) -> dict[str, list[str]]:
        """The machine starts again, a minute later, and c1 under its old name (`again`: it has been started)."""
        if not again:
            self.power_off()
            self.chain.results.clear()
            then = time.time() - 61
            for root, _, names in os.walk("/var/lib/cni"):
                for name in names:
                    os.utime(f"{root}/{name}", (then, then))
        self.chain.run("ADD", "c1")
        self.chain.run("ADD", "c2")
        self.chain.run("DEL", "c2")
        self.clean = state()
        left = {path: text for path, text in self.clean["file"].items() if "c1" not in path + text}
        held = [path for path, text in self.clean["file"].items() if "/networks/" in path and text.startswith("c1")]
        if len(held) > 2:
            left |= dict.fromkeys(held, "more than one address of each family")
        return {"file": [f"+{item}" for item in left.items()]} if left else {}

    def what_is_left(self) -> list[str]:
        """Return what is left, of any owner: host ends, elements, files, interfaces of c2."""
        now = state()
        left = [name for name in now["link"] if name.startswith(("veth", "bwp"))]
        left += [line for line in now["rule"] if 'comment "c1 ' in line or 'comment "c2 ' in line]
        return left + list(now["file"]) + [name for name in now["link in the sandbox"] if name.startswith("eth")]

    def boundaries(self, verb: str) -> int:
        """Count the changing system calls that the chain makes for a verb, in the present state."""
        if verb != "ADD":
            self.chain.run("ADD", "c2")
        killer = Killer(calls=sys.maxsize)
        assert self.chain.run(verb, "c2", killer) is None
        self.chain.results.pop("c2", None)
        self.chain.run("DEL", "c2")
        return killer.count

    # --- many ---------------------------------------------------------------------------------------------------------

    def at_moments(self, verbs: Sequence[str], cleaners: Sequence[str]) -> Iterator[tuple[str, str, Tally]]:
        """Yield kills of these verbs in turn at random moments, without end."""
        for number in count():
            for verb in verbs:
                cleaner = cleaners[number % len(cleaners)]
                yield verb, cleaner, self.kill(verb, cleaner)[0]

    def at_boundaries(self, verb: str, cleaner: str, first: int = 1, step: int = 1) -> Iterator[Tally]:
        """Kills before the first, second… changing system call of the verb until it has no more."""
        calls = first
        while True:
            tally, killed = self.kill(verb, cleaner, calls=calls)
            yield tally
            if not killed:
                return
            calls += step
