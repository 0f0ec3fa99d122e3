"""A host of its own for a test: network, mount, process and System V namespaces, thrown away afterwards.

    def test_second_pod_gets_next_address(host):
        pod = host.netns("c1")
        rc, result = host.call("bridge", "ADD", CONF, sandbox=pod)
        assert host.run("ip -br addr show eth0", pod).split()[2] == "10.1.0.2/24"

How it works. Process 1 of new namespaces is a fork of one process for all hosts (support/process_one.py). It mounts what plugins
write to (/run, /var/lib/cni, /var/lib/cni-py, /etc/cni) as empty tmpfs's, and starts the commands of `host.run`. Other
commands enter its namespaces with nsenter(1), a Python function with setns(2) in a forked child (`host.do`): it stays, so nothing has
to lead back. When its socket closes, by close() or because the test run died, process 1 ends, and the kernel removes everything
that was in there: processes, interfaces, rules, mounts. Nothing is cleaned up by name, and the machine's own network is never touched.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cni_py.kernel.netns import setns
from cni_py.lab.programs import tool
from support import forks
from support.forks import COMMAND_SECONDS
from support.waiting import LOOK_SECONDS, PATIENCE, Stuck

T = TypeVar("T")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GO_PLUGINS = "/usr/lib/cni"  # where Debian's containernetworking-plugins are
CLOSE_SECONDS = 60.0
PROCESS_ONE = Path(__file__).with_name("process_one.py")
SETTLE_SECONDS = 10.0 * PATIENCE
CLONE_NEWPID = 0x20000000
GONE = "/run/netns/gone"  # a sandbox that does not exist
SUBNET_ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
DIRECT = re.compile(r"(ip|bridge|nft|tc|cat) [\w ./:@,+-]*")
"""A script that is one program and plain words: it is executed without a shell."""
OWN_MOUNTS = re.compile(r"(?<!/proc)/sys/|mount")
"""Occurs in a script that needs a sandbox's own /sys, which ip-netns(8) mounts; for others this would take half of their time."""


def what_it_does(pid: int) -> str:
    """Name, state and where in the kernel a process is: for a message about one that does not end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
        state = {"T": "T, it is stopped (SIGSTOP)", "t": "t, it is stopped by its tracer"}.get(state, state)
        where = Path(f"/proc/{pid}/wchan").read_text() or "?"
    except OSError:
        return f"{pid}: gone"
    return f"{pid} {name}: state {state}, in {where}"


def wait_for_end(process: subprocess.Popen[Any], seconds: float = 60.0, words: str = "") -> int:
    """The exit status of a process, which is killed if it takes longer: SIGKILL ends one that is stopped, too. Raises: Stuck."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        doing = what_it_does(process.pid)
        process.kill()
        process.wait(seconds)
        raise Stuck(f"not at its end after {seconds:g} s: {doing}\n{words}") from None


@dataclass(frozen=True)
class Sandbox:
    """A container's network namespace on a Host; `str()` is its path."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Reply:
    """Reply of a plugin: `rc, value = host.call(…)`."""

    rc: int
    json: Any  # its standard output; None if that was empty
    stderr: str = field(default="", repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.rc, self.json))

    @property
    def code(self) -> int | None:
        """The CNI error code, if this is an error."""
        return self.json.get("code") if self.rc and isinstance(self.json, dict) else None


class Host:
    """Namespaces of its own, as a machine that runs containers. A context manager; `close()` ends everything in it.

    `bin_dir`: where `call` finds plugins that are named without a path, and the default of CNI_PATH.
    """

    def __init__(self, bin_dir: str | Path = "") -> None:
        self.bin_dir = str(bin_dir)
        maker = forks.zygote("hosts", [sys.executable, "-IS", str(PROCESS_ONE), "{}"], {"PATH": PATH, "LC_ALL": "C.UTF-8"})
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended, ended = os.pipe()
        with theirs:
            socket.send_fds(maker, [b"host"], [theirs.fileno(), ended])
        os.close(ended)
        word, _, rest = self._control.recv(4096).decode().partition(" ")
        if word != "ready":
            self.close()
            raise RuntimeError(f"no namespaces can be made here: {word} {rest}")
        self.pid = int(rest)
        """Process 1 of the host, as seen from outside: /proc/PID/ns/… are its namespaces."""

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything in the host. Twice is fine."""
        if self._ended < 0:
            return
        self._control.shutdown(socket.SHUT_RDWR)  # a child of a test that was given up may hold it open
        self._control.close()
        if not select.select([self._ended], [], [], CLOSE_SECONDS)[0]:
            os.kill(self.pid, signal.SIGKILL)
            select.select([self._ended], [], [])
        os.close(self._ended)
        self._ended = -1

    # --- commands -----------------------------------------------------------------------------------------------------

    def command(self, *argv: str, sandbox: Sandbox | str | None = None) -> list[str]:
        """`argv` as run in this host, or in one of its sandboxes: for subprocess.Popen and the like."""
        inside = ["ip", "netns", "exec", Path(str(sandbox)).name] if sandbox is not None else []
        return [*self._enter("--net"), *inside, *argv]

    def _enter(self, net: str) -> list[str]:
        return [tool("nsenter"), f"--target={self.pid}", net, "--mount", "--pid", "--ipc", "--root", "--wd=/"]

    def run(self, script: str, sandbox: Sandbox | str | None = None, *, check: bool = True, stdin: str | None = None) -> str:
        """Run a shell script (`sh -e`) and return what it printed.

        Raises: AssertionError, with its words, if it fails; `check=False`: never.
        """
        argv = script.split() if DIRECT.fullmatch(script) else ["sh", "-ec", script]
        if sandbox is not None and OWN_MOUNTS.search(script):
            done = _execute(self.command(*argv, sandbox=sandbox), stdin=stdin)
            status, out, err = done.returncode, done.stdout, done.stderr
        else:
            name = "" if sandbox is None else Path(str(sandbox)).name
            words = [name + "\nrun", "2", f"PATH={PATH}", "LC_ALL=C.UTF-8", *argv]
            status, out, err = self._ask(words, "" if stdin is None else stdin, script)
        assert not check or status == 0, f"{script!r} failed with {status}:\n{out}{err}"
        return out

    def _ask(self, words: list[str], stdin: str, name: str) -> tuple[int, str, str]:
        """Have process 1 do something: exit status, standard output and error."""
        request = b"\0".join(os.fsencode(word) for word in words)
        status, out, err = forks.ask(self._control, request, stdin.encode(), name)
        return status, out.decode(), err.decode(errors="replace")

    def execute(
        self,
        argv: list[str],
        *,
        sandbox: Sandbox | str | None = None,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with exactly this environment (default: PATH alone) and return what it did."""
        return _execute(self.command(*argv, sandbox=sandbox), stdin, env)

    def json(self, command: str, sandbox: Sandbox | str | None = None) -> Any:
        """Return the decoded output of an `ip -j …`, `bridge -j …` or `nft -j …` command."""
        text = self.run(command, sandbox)
        return decode_json(text) if text.strip() else []

    def do(self, function: Callable[..., T], *args: Any, sandbox: Sandbox | str | None = None) -> T:
        """Call a Python function in this host (or in a sandbox of it), in a forked child; returns its value.

        Arguments may be anything; the value and an exception must be picklable, or their text is what
        arrives. What the function changes in memory stays in the child.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        read_fd, write_fd = os.pipe()
        child = self._fork_into_process_namespace()
        if child == 0:
            os.close(read_fd)
            self._answer(write_fd, function, args, sandbox)
        os.close(write_fd)
        with open(read_fd, "rb") as answer:
            data = answer.read()
        _, status = os.waitpid(child, 0)
        assert data, f"{function} in a child: no answer, exit status {os.waitstatus_to_exitcode(status)}"
        ok, value, words = pickle.loads(data)
        if ok:
            return value
        if isinstance(value, BaseException):
            value.add_note(words)
            raise value
        raise AssertionError(words)

    def _fork_into_process_namespace(self) -> int:
        """Fork a child into this host's process namespace, which only children enter; ours stay where we are.

        One fork, not one to enter and another for the child: it copies the page tables of a process that has collected
        thousands of tests.
        """
        own, inner = (os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC) for pid in ("self", self.pid))
        child = -1
        setns(inner, CLONE_NEWPID)
        try:
            child = os.fork()
        finally:
            if child != 0:  # the child is in the inner one, which ours is not in
                setns(own, CLONE_NEWPID)
            os.close(own)
            os.close(inner)
        return child

    def _answer(
        self, write_fd: int, function: Callable[..., Any], args: tuple[Any, ...], sandbox: Sandbox | str | None
    ) -> None:
        """The forked child: enter the other namespaces, call, answer, end."""
        status = 1
        try:
            root = os.open(f"/proc/{self.pid}/root", os.O_PATH)
            paths = [f"/proc/{self.pid}/ns/{kind}" for kind in ("net", "ipc", "mnt")]
            if sandbox is not None:
                paths[0] = f"/proc/{self.pid}/root/run/netns/{Path(str(sandbox)).name}"
            # all are opened before the first is entered: afterwards /proc is the host's, which has other process numbers
            for space in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]:
                setns(space, 0)
                os.close(space)
            os.fchdir(root)  # entering a mount namespace leads to its own root, out of a chroot that the tests may run in
            os.chroot(".")
            os.chdir("/")
            with open(write_fd, "wb") as pipe:
                pipe.write(_outcome(function, args))
            status = 0
        finally:
            os._exit(status)

    # --- containers and plugins ---------------------------------------------------------------------------------------

    def netns(self, name: str) -> Sandbox:
        """Make a container's network namespace, /run/netns/NAME."""
        status, _, err = self._ask([f"{name}\nnetns"], "", f"ip netns add {name}")
        assert status == 0, f"network namespace {name}: {err}"
        return Sandbox(name)

    def delete_netns(self, sandbox: Sandbox) -> None:
        """Remove a container's namespace, as a runtime does after the container has exited."""
        self.run(f"ip netns delete {sandbox.name}")

    def path(self, path: str) -> Path:
        """A file of this host as seen from outside: `host.path("/run/flannel/subnet.env").write_text(…)`.

        Directories under /run, /var/lib/cni, /var/lib/cni-py and /etc/cni are the host's; all others are the machine's.
        """
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str) -> None:
        """Write a file of this host, with the directories above it."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def write_subnet_env(self, text: str = SUBNET_ENV) -> None:
        """Write /run/flannel/subnet.env; default: that of the deployment guide."""
        self.write("/run/flannel/subnet.env", text)

    def call(
        self,
        plugin: str,
        verb: str,
        conf: dict[str, Any] | str,
        *,
        sandbox: Sandbox | str | None = None,
        container_id: str = "c1",
        ifname: str = "eth0",
        args: str = "",
        cni_path: str | None = None,
        prev: dict[str, Any] | None = None,
        env: dict[str, str | None] | None = None,
    ) -> Reply:
        """Execute a plugin as a runtime does.

        `plugin`: a name in `bin_dir`, or a path. `conf`: the configuration, or text for standard input as it is.
        `sandbox`: CNI_NETNS; None: empty for ADD, CHECK and DEL. `prev`: becomes prevResult. `env` sets a variable, or with
        None removes it. STATUS, GC and VERSION get no container, sandbox and interface name.
        """
        if isinstance(conf, dict):
            conf = json.dumps(conf | ({"prevResult": prev} if prev is not None else {}))
        program = plugin if "/" in plugin else f"{self.bin_dir}/{plugin}"
        environment = {"PATH": PATH, "CNI_COMMAND": verb, "CNI_PATH": self.bin_dir if cni_path is None else cni_path}
        if verb not in ("STATUS", "GC", "VERSION"):
            netns = "" if sandbox is None else str(sandbox)
            environment |= {"CNI_CONTAINERID": container_id, "CNI_NETNS": netns, "CNI_IFNAME": ifname}
        if args:
            environment["CNI_ARGS"] = args
        for name, value in (env or {}).items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        status, out, err = self.plugin(program, environment, conf.encode())
        stdout, stderr = out.decode(), err.decode(errors="replace")
        try:
            value = json.loads(stdout) if stdout.strip() else None
        except ValueError:
            raise AssertionError(f"{plugin} {verb} printed no JSON:\n{stdout}\n{stderr}") from None
        return Reply(status, value, stderr)

    def plugin(self, program: str, env: Mapping[str, str | bytes], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Execute a program with exactly this environment: exit status, standard output and error."""
        done = subprocess.run(
            self.command(program), input=stdin, env=dict(env), capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def ok(self, plugin: str, verb: str, conf: dict[str, Any] | str, **options: Any) -> Any:
        """`call`, which must succeed; returns what the plugin printed, as JSON."""
        reply = self.call(plugin, verb, conf, **options)
        assert reply.rc == 0, f"{plugin} {verb}: {reply.json}\n{reply.stderr}"
        return reply.json

    # --- state --------------------------------------------------------------------------------------------------------

    def host_ends(self) -> list[str]:
        """Names of the veths on the host."""
        return sorted(link["ifname"] for link in self.json("ip -j link show type veth"))

    def files(self, *directories: str) -> dict[str, str]:
        """Path to content of all files in these directories (default: what plugins write, but for locks)."""
        found = {}
        for directory in directories or ("/var/lib/cni", "/run/cni-state", "/etc/cni"):
            for file in sorted(self.path(directory).rglob("*")):
                if file.is_file() and file.name != "lock":
                    found[directory + "/" + str(file.relative_to(self.path(directory)))] = file.read_bytes().decode(
                        errors="replace"
                    )
        return found

    def snapshot(self, *sandboxes: Sandbox | str) -> dict[str, Any]:
        """Everything a plugin could have changed, as comparable values: `assert before == host.snapshot()`.

        Left out: counters, times, handles; what all attachments of a host share (last_reserved_ip, lock files); the journal
        under /run/cni-py, which outlives an attachment; link-local addresses and their routes, which the kernel adds
        of itself when duplicate address detection is over; the rule for VRFs, which it adds with a namespace's first one.
        """
        files = {name: text for name, text in self.files().items() if "last_reserved_ip" not in name}
        state: dict[str, Any] = {"host": self._network(None), "files": files}
        for sandbox in sandboxes:
            state[str(sandbox)] = self._network(sandbox)
        return state

    def _network(self, sandbox: Sandbox | str | None) -> dict[str, Any]:
        """Links, addresses, routes, rules, packet filter and the sysctls that plugins set, in one namespace.

        The kernel reports a veth's carrier, adds the local route of an IPv6 address, and deletes the interfaces of a
        deleted namespace a moment after the change that causes them; a busy machine makes the moment longer. So all are waited for.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            links, routes6, shown = self._read_network(sandbox)
            settled = _is_settled(links, routes6) and _interfaces(shown["sysctls"]) <= {link["ifname"] for link in links}
            if settled or time.monotonic() > deadline:
                return shown
            time.sleep(LOOK_SECONDS)

    def _read_network(self, sandbox: Sandbox | str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
        """Read all of it. Returns: links and IPv6 routes as the kernel has them, and the comparable values."""
        name = "" if sandbox is None else Path(str(sandbox)).name
        status, seen, err = self._ask([f"{name}\nlook"], "", "look")
        assert status == 0, err
        tables, *sysctls = seen.splitlines()
        script = READ_NETWORK + ("nft -j list ruleset" if tables != "no tables" else """echo '{"nftables": []}'""")
        lines = [line for line in self.run(script, sandbox).splitlines() if line]
        names = ["addresses", "routes", "rules4", "rules6", "ports", "vlans", "nft"]
        values = {name: decode_json(line) for name, line in zip(names, lines, strict=True)}
        values["nft"] = [item for item in values["nft"]["nftables"] if "metainfo" not in item]
        for link in values["addresses"]:
            link["addr_info"] = [item for item in link["addr_info"] if not _is_link_local(item.get("local", ""))]
        for rules in ("rules4", "rules6"):
            values[rules] = [rule for rule in values[rules] if "l3mdev" not in rule]
        values["routes4"] = [route for route in values["routes"] if "pref" not in route]
        routes6 = [route for route in values.pop("routes") if "pref" in route]  # every IPv6 route has one
        values["routes6"] = [route for route in routes6 if not _is_link_local(route["dst"])]
        shown = {name: _without_noise(value) for name, value in values.items()}
        shown["sysctls"] = sysctls
        return values["addresses"], values["routes6"], shown


def _execute(
    command: list[str], stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env={"PATH": PATH, "LC_ALL": "C.UTF-8"} if env is None else env,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def decode_json(text: str) -> Any:
    """Decode ``ip -j``: Ubuntu's writes "fan-map" into the details of a VXLAN device, which is not JSON."""
    return json.loads(text.replace("fan-map ", ""))


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Call the function; pickled: whether it returned, its value or exception, words for a person."""
    try:
        return pickle.dumps((True, function(*args), ""))
    except BaseException as error:  # noqa: BLE001 — carried over to the parent
        words = "in a child process:\n" + traceback.format_exc()
        try:
            data = pickle.dumps((False, error, words))
            pickle.loads(data)
        except Exception:  # noqa: BLE001 — an exception that cannot be pickled
            data = pickle.dumps((False, None, words))
        return data


# several objects are read by one program, since the start of each takes longer than what it does; "all" tables are those of both families
READ_NETWORK = r"""
seen=$(
    ip -j -d -batch - <<END
addr show
route show table all
rule
END
)
echo "$seen"
ip -j -6 rule
case $seen in
*_kind\":\"bridge\"*)
    bridge -j -batch - <<END
link
vlan
END
    ;;
*) printf '[]\n[]\n' ;;
esac
"""
NOISE = {
    "ifindex", "link_index", "handle", "packets", "bytes", "valid_life_time", "preferred_life_time", "tentative", "gc_timer",
    "hello_timer", "tcn_timer", "topology_change_timer", "hold_timer", "message_age_timer", "forward_delay_timer", "stats64",
    "expires", "used", "age", "cache", "operstate", "config_pending", "topology_change_ack",
    "fdb_n_learned",
}  # fmt: skip


def _is_settled(links: list[dict[str, Any]], routes6: list[dict[str, Any]]) -> bool:
    """Return whether each veth that is up is said to have the carrier that it has, and each IPv6 address there has its local route.

    LOWER_UP follows the peer at once, NO-CARRIER up to a second later.
    """
    local = {route["dst"] for route in routes6 if route.get("type") == "local"}
    for link in links:
        if "UP" not in link["flags"] or link.get("linkinfo", {}).get("info_kind") not in ("veth", "bridge"):
            continue
        if link["linkinfo"]["info_kind"] == "veth" and ("NO-CARRIER" in link["flags"]) == ("LOWER_UP" in link["flags"]):
            return False
        if "NO-CARRIER" in link["flags"]:
            continue
        addresses = [item for item in link["addr_info"] if item["family"] == "inet6" and not item.get("tentative")]
        if any(item["local"] not in local for item in addresses):
            return False
    return True


def _interfaces(sysctls: list[str]) -> set[str]:
    """The interfaces that have these sysctls. One that the kernel is deleting has them for a moment after it is no longer listed."""
    return {line.split("/")[6] for line in sysctls if "/conf/" in line} - {"all", "default"}


def _is_link_local(address: str) -> bool:
    return address.startswith(("fe80:", "ff00:"))


def _without_noise(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_noise(member) for key, member in value.items() if key not in NOISE}
    if isinstance(value, list):
        return [_without_noise(item) for item in value]
    return value
