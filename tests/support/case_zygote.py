"""A process that has loaded the recorded runner and the agent, and forks for each case: run by support/recorded.py.

    python -IS case_zygote.py SOCKET LAUNCHER RUNNER

LAUNCHER is the installed ``cni-agent``, RUNNER golden.py. A request names what the fork does, in namespaces of its own, with the
JSON on its standard input; it prints the answer as JSON.

    case     Run a case as the runner's own ``run_case`` does, which starts an interpreter for it. If there is "agent", an agent
             is forked where the runner would start one: it writes down what it handles, and each call must reach it.
    replay   Replay the journals of a case as scripts (support/replay.py).

Plugins are executed as the runner does, unless there is an agent: then the client is a fork.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
from support import process_one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from cni_py.spec.call import Call

MAIN = "\nfrom cni_py.agent.main import main\n"
MAIN_ROUTES = "-{} route show table main"
ADD_NETNS = re.compile(r"ip netns add (\w+)")
CALL_SECONDS = 60


def main() -> None:
    control, launcher, runner = socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3]
    with open(launcher) as file:
        exec(file.read().partition(MAIN)[0], {"__file__": launcher})
    from cni_py import client
    from cni_py.agent import main as agent
    from cni_py.agent.warm_up import load_modules
    from support import replay, zygote

    load_modules()
    assert {agent, client, replay}  # the forks have them
    module = load_runner(runner)
    read_at_once(module)
    make_at_once(module)
    zygote.serve(control, lambda _: new_processes(), lambda request, fds: answer(module, request, fds))


def load_runner(path: str) -> ModuleType:
    """Return golden.py as a module: a program, which calls its main() at its end, takes as long to start as a case."""
    source = Path(path).read_text()
    assert source.endswith("\nmain()\n")
    module = ModuleType("golden")
    module.__dict__["__file__"] = path
    exec(compile(source.removesuffix("main()\n"), path, "exec"), module.__dict__)
    return module


def read_at_once(runner: ModuleType) -> None:
    """Let the runner read addresses and routes of a namespace by one program: it reads all of them after each call."""
    read = runner.ip_json
    ahead: dict[tuple[str, int | None], Any] = {}

    def ip_json(args: str, ns: "int | None" = None, program: str = "ip") -> "Any":
        if args == "addr show":
            argv = [program, *(["-n", f"c{ns}"] if ns else []), "-j", "-d", "-batch", "-"]
            lines = "addr show\nroute show table all\n"  # of both families: -6 is for a whole batch
            done = subprocess.run(argv, input=lines, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
            addresses, _, text = done.stdout.partition("\n")
            routes = [route for route in json.loads(text or "[]") if route["table"] == "main"]
            ahead[MAIN_ROUTES.format(4), ns] = [route for route in routes if "pref" not in route]
            ahead[MAIN_ROUTES.format(6), ns] = [route for route in routes if "pref" in route]  # every IPv6 route has one
            return json.loads(addresses) if addresses.strip() else []
        return ahead.pop((args, ns)) if (args, ns) in ahead else read(args, ns, program)

    runner.__dict__["ip_json"] = ip_json


def make_at_once(runner: ModuleType) -> None:
    """Let the runner make directories and mounts of a host, and its containers' namespaces, without programs: eight for a case."""
    run = runner.run
    assert '"mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; ' in Path(runner.__file__ or "").read_text()

    def run_or_make(script: str, ns: "int | None" = None, check: bool = True) -> "Any":
        if script.startswith("mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; "):
            return process_one.make_directories_and_network()
        if ns is None and (named := ADD_NETNS.fullmatch(script)):
            return process_one.add_netns(f"/run/netns/{named[1]}")
        return run(script, ns, check)

    runner.__dict__["run"] = run_or_make


# --- namespaces -------------------------------------------------------------------------------------------------------


def new_processes() -> None:
    """Make a process namespace, which only the next child enters."""
    process_one.unshare(process_one.CLONE_NEWPID)


# --- the fork ---------------------------------------------------------------------------------------------------------


def answer(runner: ModuleType, request: bytes, fds: list[int]) -> None:
    """The child: process 1 of its namespaces, which end with it."""
    from support.zygote import use_as_streams

    use_as_streams(fds)
    status = 1
    try:
        process_one.enter_new_namespaces()
        given = json.load(sys.stdin)
        print(json.dumps({"case": run_case, "replay": run_replay}[request.decode()](runner, given)))
        status = 0
    except SystemExit as error:  # the runner's, if a command of the case fails
        print(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_case(runner: ModuleType, given: "dict[str, Any]") -> "Any":
    """Call the runner's function for one case."""
    bin_dir, agent = given["bin_dir"], given["agent"]
    execute = subprocess.run

    def run(argv: list[str], **options: "Any") -> "Any":
        return fork_client(argv[0], **options) if agent and os.path.dirname(argv[0]) == bin_dir else execute(argv, **options)

    def companion(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=fork_agent(**agent))

    runner.__dict__["subprocess"] = SimpleNamespace(**vars(subprocess) | {"run": run, "Popen": companion})
    return runner.one(given["case"], bin_dir, False, "an agent" if agent else "")


def run_replay(runner: ModuleType, given: "dict[str, Any]") -> list[str]:
    """Replay the case's journals in a host as support/namespaces.py makes one."""
    from support import replay

    process_one.make_directories_and_network()
    return replay.replay(given["case"], given["events"], runner.run, given["bin_dir"])


# --- the agent and its client -----------------------------------------------------------------------------------------


def fork_agent(answered: str, journalled: str, directories: list[str]) -> "BinaryIO":
    """Start the agent. Returns: its standard output."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(write, 1)
            os.closerange(3, 1024)
            be_agent(answered, journalled, directories)
        finally:
            os._exit(1)
    os.close(write)
    return open(read, "rb", buffering=0)


def be_agent(answered: str, journalled: str, directories: list[str]) -> None:
    """An agent that writes down each call that it handles, its journal, and the state that it leaves."""
    from cni_py import engine
    from cni_py.agent.main import main as run_agent
    from support import replay

    replay.record(journalled, directories)
    plain = engine.handle

    def handle(call: "Call", stdin: bytes) -> tuple[int, bytes]:
        with open(answered, "a") as file:
            file.write(f"{call.plugin} {call.verb}\n")
        return plain(call, stdin)

    engine.handle = handle
    sys.argv = ["cni-agent", "--no-repair"]  # a case with deleted rules had none that restores them
    run_agent()


def fork_client(program: str, *, input: str, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:  # noqa: A002 — as subprocess.run
    """Answer as the plugin's executable does. Raises: OSError if there is none."""
    from support.zygote import be_plugin, use_as_streams

    with open(program, "rb") as file:
        text = file.read()
    files = [os.memfd_create(name) for name in ("in", "out", "err")]
    os.pwrite(files[0], input.encode(), 0)
    child = os.fork()
    if child == 0:
        try:
            use_as_streams(files)
            os.chdir("/")
            signal.alarm(CALL_SECONDS)
            be_plugin(program, text, {name.encode(): value.encode() for name, value in env.items()})
        finally:
            os._exit(127)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = (os.pread(fd, os.fstat(fd).st_size, 0).decode() for fd in files[1:])
    for fd in files:
        os.close(fd)
    return subprocess.CompletedProcess([program], status, out, err)


if __name__ == "__main__":
    main()
