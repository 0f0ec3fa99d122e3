"""The warm agent in a test's host, and a client that speaks its protocol by hand.

    with Agent(host) as agent:
        host.ok("flannel", "ADD", FLANNEL, sandbox=pod)
        assert agent.calls("flannel ADD") == 1

`Agent(host, code=…)` starts the installed agent with a block of code before `main()`: faults are injected there.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni_py import protocol
from support.namespaces import PATH, Host, Sandbox, wait_for_end
from support.waiting import SECONDS

DIRECTORY = "/run/faults"
LOG = "/run/agent.log"
SOCKET = protocol.SOCKET_PATH

# A call of the container "slow" signals its start, and then waits to be released.
GATE = f"""
import os
from cni_py import engine
plain = engine.handle
def handle(call, stdin):
    if call.container_id == "slow":
        os.close(os.open("{DIRECTORY}/begun", os.O_WRONLY))
        os.close(os.open("{DIRECTORY}/go", os.O_RDONLY))
    return plain(call, stdin)
engine.handle = handle
"""

# Born again after each death, at once: what costs time is done before the fork. It dies where {DIRECTORY}/stage says.
DYING = f"""
import os
from cni_py import engine, journal, protocol
from cni_py.agent import server
from cni_py.agent.warm_up import warm_up
from cni_py.packetfilter import libnftables

def die_at(name):
    try:
        with open("{DIRECTORY}/stage") as file:
            wanted = file.read()
    except FileNotFoundError:
        return
    if wanted == name:
        os.unlink("{DIRECTORY}/stage")
        os.kill(os.getpid(), 9)

steps = 0
enter, handle, send_reply, run = journal.step.__enter__, engine.handle, protocol.pack_reply, server.Agent._run

def step_enter(self):
    global steps
    steps += 1
    die_at(f"step {{steps}}")
    return enter(self)

def counted_handle(call, stdin):
    global steps
    steps = 0
    answer = handle(call, stdin)
    die_at("reply")
    return answer

def dying_run(*args):
    die_at("message")
    run(*args)

journal.step.__enter__, engine.handle, server.Agent._run = step_enter, counted_handle, dying_run
works, libnftables.works = libnftables.works, lambda: ""
warm_up()
libnftables.works = works
while (child := os.fork()):
    os.waitpid(child, 0)
"""


class Agent:
    """The agent, started in a host and ready. A context manager; `stop()` ends it by SIGTERM."""

    def __init__(self, host: Host, *options: str, code: str = "", env: dict[str, str] | None = None) -> None:
        self.host = host
        program = str(Path(host.bin_dir).parent.parent / "bin" / "cni-agent")
        if code:
            launcher = Path(program).read_text()
            assert launcher.count("\nsys.exit(main())\n") == 1, launcher
            program = f"{DIRECTORY}/agent"
            host.write(program, launcher.replace("\nsys.exit(main())\n", f"\n{code}\nsys.exit(main())\n"))
            host.path(program).chmod(0o755)
        self.program = program
        with host.path(LOG).open("ab") as log:
            self.process = subprocess.Popen(
                host.command(program, *options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={"PATH": PATH, "LC_ALL": "C.UTF-8"} | (env or {}),
            )
        self.wait_ready()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_ready(self) -> str:
        """Its line on standard output, the next one if it is born again."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline().decode() if readable else ""
        assert line.startswith("ready "), f"{line!r}\n{self.log()}"
        return line

    @property
    def pid(self) -> int:
        """Process id as seen from outside: nsenter waits for its child, which is the agent."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.send_signal(signal.SIGCONT)  # nsenter stops itself with its child
        wait_for_end(self.process, SECONDS)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.signal(signal.SIGTERM)
        return wait_for_end(self.process, SECONDS, self.log())

    def log(self) -> str:
        """Standard error of this agent, and of those before it in this host."""
        return self.host.path(LOG).read_text()

    # --- what it says of itself ---------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        with Caller(self.host) as caller:
            caller.socket.sendall(protocol.pack_request("status", "", [], b"", (0, 0, 0, 0), 0))
            found: dict[str, Any] = json.loads(caller.reply(protocol.DONE)[1])
            return found

    def calls(self, what: str = "") -> int:
        """Count the calls that it has handled: "flannel ADD", or all."""
        calls = self.report()["calls"]
        return int(calls.get(what, 0) if what else sum(calls.values()))

    def events(self, what: str) -> int:
        return int(self.report()["events"].get(what, 0))

    # --- what the kernel says of it -----------------------------------------------------------------------------------

    def descriptors(self, inherited: bool = False) -> list[str]:
        """List its descriptors; or only those that an executed program inherits."""
        found, directory = [], Path(f"/proc/{self.pid}")
        for fd in os.listdir(directory / "fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                flags = (directory / "fdinfo" / fd).read_text().partition("flags:")[2].split()[0]
                if not inherited or not int(flags, 8) & os.O_CLOEXEC:
                    found.append(os.readlink(directory / "fd" / fd))
        return sorted(found)

    def resident_kb(self) -> int:
        return self._status("VmRSS")

    def threads(self) -> int:
        return self._status("Threads")

    def _status(self, key: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))

    def network_namespaces(self) -> set[str]:
        """Namespaces of its threads."""
        return {os.readlink(file) for file in Path(f"/proc/{self.pid}/task").glob("*/ns/net")}


class Caller:
    """A connection to the agent of a host; what is sent over it is up to the test."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        try:
            self.socket.connect(str(host.path(SOCKET)))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, request: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sent = self.socket.sendmsg([request], rights)
        if sent < len(request):
            self.socket.sendall(request[sent:])

    def call(self, plugin: str, verb: str, conf: Any, sandbox: Sandbox | None = None, container_id: str = "c1") -> None:
        """Send a whole request, as the client does."""
        null = os.open("/dev/null", os.O_WRONLY)
        descriptors = [null]
        if sandbox is not None:
            descriptors.append(os.open(self.host.path(sandbox.path), os.O_RDONLY))
        try:
            request = request_bytes(self.host, plugin, verb, conf, sandbox, container_id, len(descriptors))
            self.send(request, *descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)

    def reply(self, *kinds: int) -> tuple[int, bytes]:
        """Read one reply, which must be of these kinds: its exit status and standard output."""
        kind, status, stdout = protocol.read_reply(self.socket)
        assert kind in kinds, (kind, status, stdout)
        return status, stdout

    def outcome(self) -> tuple[int, Any]:
        """BEGUN, then DONE: exit status and result."""
        self.reply(protocol.BEGUN)
        status, stdout = self.reply(protocol.DONE)
        return status, json.loads(stdout) if stdout else None

    def has_reply(self, seconds: float = 0.1) -> bool:
        return bool(select.select([self.socket], [], [], seconds)[0])

    def is_closed(self) -> bool:
        """Return whether the agent has closed the connection without a reply."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def request_bytes(
    host: Host,
    plugin: str,
    verb: str,
    conf: Any,
    sandbox: Sandbox | None = None,
    container_id: str = "c1",
    descriptors: int = 1,
) -> bytes:
    environ = {"CNI_COMMAND": verb, "CNI_PATH": host.bin_dir, "CNI_CONTAINERID": container_id, "CNI_IFNAME": "eth0"}
    environ["CNI_NETNS"] = sandbox.path if sandbox else "/run/netns/none"
    pairs = [(key.encode(), value.encode()) for key, value in environ.items()]
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return protocol.pack_request(plugin, f"{host.bin_dir}/{plugin}", pairs, stdin, namespaces_of(host), descriptors)


def namespaces_of(host: Host) -> tuple[int, int, int, int]:
    net, mount = os.stat(f"/proc/{host.pid}/ns/net"), os.stat(f"/proc/{host.pid}/ns/mnt")
    return net.st_dev, net.st_ino, mount.st_dev, mount.st_ino


def call(host: Host, plugin: str, verb: str, conf: Any, sandbox: Sandbox | None = None, container_id: str = "c1") -> Any:
    """A call without a process: what it costs is the agent's. Its result."""
    with Caller(host) as caller:
        caller.call(plugin, verb, conf, sandbox, container_id)
        status, result = caller.outcome()
        assert status == 0, result
        return result


class Gate:
    """Gate for an agent with the code `GATE`: holds calls of the container "slow"."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.run(f"mkdir -p {DIRECTORY}; mkfifo {DIRECTORY}/begun {DIRECTORY}/go")

    def wait_begun(self) -> None:
        self.host.path(f"{DIRECTORY}/begun").read_bytes()

    def open(self) -> None:
        self.host.path(f"{DIRECTORY}/go").write_bytes(b"")
