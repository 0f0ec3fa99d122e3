"""Replay the journal of recorded calls as scripts in another host, and compare the state that each call leaves.

    record(path, directories)                          in the process that handles the calls
    events = [json.loads(line) for line in file]       what it has written: a state, or a line of a journal
    differences = replay(case, events, run, bin_dir)   in a host of its own, as the case's was before its first call

A case is run once, for all that is compared with it (support/recorded.py): the journal of each call becomes a script (cni_py/plan/script.py), which is run where the case's own set-up was made and none of its calls.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cni_py import engine, journal
from cni_py.explain import calls
from cni_py.kernel.deletion import wait_for_deletions
from cni_py.kernel.netns import NetNS
from cni_py.plan import script, state
from cni_py.spec.call import Call
from cni_py.spec.environment import fault_in

DIRECTORIES = ("/var/lib/cni", "/run/cni-py", "/run/cni-state", "/run/flannel")
NOT_STATE = ("/run/cni-py/journal", "/run/cni-py/boot-id", "/run/cni-py/agent", "/run/cni-py/dhcp")
"""Files that say what was done, or belong to a daemon."""
IDENTITY = re.compile(r'"dev":\d+,"ino":\d+(,"ctime":\d+)?')
NETNS_IN = re.compile(r'"netns":"([^"]*)"')
LINK = re.compile(r"link (\S+) (?:kind (\S+) )?.*?\baddress ((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\b")

State = dict[str, Any]
Named = tuple[str, str]


# --- recording --------------------------------------------------------------------------------------------------------


def record(path: str, more_directories: list[str]) -> None:
    """Write down, from now on, each line of a journal and the state that each call of this process leaves; the first time,
    that in which it begins.
    """
    directories = [*DIRECTORIES, *more_directories]
    plain, write = engine.handle, journal.Journal.write

    def add(event: dict[str, Any]) -> None:
        with open(path, "a") as file:
            file.write(json.dumps(event) + "\n")

    def write_down(self: journal.Journal, line: str, seconds: float | None = None) -> None:
        add({"title": self.title, "line": line})
        write(self, line, seconds)

    def handle(call: Call, stdin: bytes) -> tuple[int, bytes]:
        try:
            return plain(call, stdin)
        finally:
            wait_for_deletions()
            add({"state": read_state(directories)})

    if not os.path.exists(path):
        add({"state": read_state(directories)})
    journal.Journal.write, engine.handle = write_down, handle  # type: ignore[method-assign]


def more_directories(case: dict[str, Any]) -> list[str]:
    """Return the directories that the case's state has, too."""
    return [see.split()[1] for see in case.get("see", []) if see.startswith("files ")]


def read_state(directories: list[str]) -> State:
    """The state of the host that we run in, and of the namespaces in /run/netns."""
    found: State = {"netns": {}, "spaces": {"host": state.lines()}, "files": dict(files(directories))}
    for path in sorted(Path("/run/netns").glob("*")):
        status = path.stat()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with NetNS(str(path), fd) as netns:
            try:
                found["spaces"][str(path)] = netns.run(state.lines)
            except OSError:  # deleted: an empty file is left
                continue
        found["netns"][str(path)] = f'"dev":{status.st_dev},"ino":{status.st_ino},"ctime":{status.st_ctime_ns}'
    return found


def files(directories: list[str]) -> Iterator[tuple[str, str]]:
    """Path, and mode and content, of directories and files."""
    for directory in directories:
        for path in sorted(Path(directory).rglob("*")):
            status = path.lstat()
            if str(path).startswith(NOT_STATE) or path.name == "lock" or path.name.endswith(".lock"):
                continue
            if stat.S_ISDIR(status.st_mode):
                yield f"{path}/", f"{status.st_mode & 0o7777:o}"
            elif stat.S_ISREG(status.st_mode):
                yield str(path), f"{status.st_mode & 0o7777:o} {path.read_bytes().decode('latin-1')}"


# --- replaying --------------------------------------------------------------------------------------------------------


def replay(case: dict[str, Any], events: list[dict[str, Any]], run: Callable[..., str], bin_dir: str) -> list[str]:
    """Make the case's steps in this host, scripts in place of calls. Returns: the differences, as text.

    ``run``: the recorded runner's, for the case's own commands, in which $BIN is ``bin_dir``.
    """
    os.environ["BIN"] = bin_dir
    more = more_directories(case)
    set_up(case, run)
    remaining = events[1:]
    equal_macs(events[0]["state"], {})
    found: list[str] = []
    links = macs_of(read_state([]))
    said = "".join(event["line"] for event in events if "line" in event)
    for number, step in enumerate(case["steps"]):
        if "plugin" not in step:
            if step.get("only", "compare") == "compare":
                run(step["sh"], step.get("in"), check=not step.get("say"))
            continue
        if not reaches_the_agent(step):
            continue
        at = next(index for index, event in enumerate(remaining) if "state" in event)
        lines, wanted, remaining = remaining[:at], remaining[at]["state"], remaining[at + 1 :]
        equal_macs(wanted, links)
        text = script_of(lines, wanted)
        failure = run_script(text)
        got = read_state([*DIRECTORIES, *more])
        links = macs_of(got)
        found = failure or differences(wanted, got, said)
        if found:
            return [f"step {number} ({step['plugin']} {step['verb']})", *found, "the script was", text]
    return found


def set_up(case: dict[str, Any], run: Callable[..., str]) -> None:
    """Do as the runner does before the first step."""
    steps = case["steps"]
    spaces = {step.get("ns", 1) for step in steps if isinstance(step.get("ns", 1), int)} | {s["in"] for s in steps if "in" in s}
    for number in sorted(spaces):
        run(f"ip netns add c{number}")
    for path, text in case.get("files", {}).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    if case.get("setup"):
        run(case["setup"])


def equal_macs(wanted: State, before: dict[Named, str]) -> None:
    """Give links that the case's own commands have made since the MAC addresses that they had when the case was run."""
    now, then = macs_of(read_state([])), macs_of(wanted)
    for (netns, name), mac in now.items():
        if before.get((netns, name)) != mac != then.get((netns, name), mac):
            enter = ["nsenter", f"--net={netns}"] if netns else []
            subprocess.run([*enter, "ip", "link", "set", "dev", name, "address", then[netns, name]], check=True)


def macs_of(of: State) -> dict[Named, str]:
    """MAC addresses of links but bridges, which have that of a port unless one was set."""
    return {
        ("" if where == "host" else where, found[1]): found[3]
        for where, lines in of["spaces"].items()
        for line in lines
        if (found := LINK.match(line)) and found[2] != "bridge"
    }


def reaches_the_agent(step: dict[str, Any]) -> bool:
    """Return whether the client passes a call on: VERSION, and errors of the environment, it handles itself."""
    environ = {"CNI_COMMAND": step["verb"], "CNI_PATH": step.get("path", "/bin"), "CNI_ARGS": step.get("args", "")}
    if step["verb"] not in ("STATUS", "GC"):
        netns = "" if step.get("ns", 1) is None else "/run/netns/any"
        environ |= {"CNI_CONTAINERID": step.get("id", "c1"), "CNI_NETNS": netns, "CNI_IFNAME": step.get("ifname", "eth0")}
    environ |= step.get("env") or {}
    environ = {name: value for name, value in environ.items() if value is not None}
    return step["verb"] != "VERSION" and bool(environ.get("CNI_COMMAND")) and not fault_in(environ)


def script_of(lines: list[dict[str, str]], wanted: State) -> str:
    """The script of one call."""
    texts: list[str] = []
    title = None
    for event in lines:
        if event["title"] != title:
            title = event["title"]
            texts.append(f"# 2026-11-24T10:00:00Z {title}")
        texts.append(f"10:00:00.000000  {event['line']}")
    contents = {path: text.partition(" ")[2].encode("latin-1") for path, text in wanted["files"].items() if path[-1] != "/"}
    outcome = script.Outcome(contents, macs_of(wanted))
    return "\n".join(script.render(calls.read(texts), outcome)) + "\n"


def run_script(text: str) -> list[str]:
    """Run it as a person would. Returns: what it said if it failed."""
    done = subprocess.run(["sh", "-x"], input=text, capture_output=True, text=True, check=False, errors="surrogateescape")
    return [f"exit status {done.returncode}", *done.stderr.splitlines()[-5:]] if done.returncode else []


def differences(wanted: State, got: State, said: str) -> list[str]:
    """Differences between two states, as lines that the plugin (-) and the script (+) have made.

    ``said``: the journal; a bridge without a port has a MAC address at random, unless a command gives it one.
    """
    found = []
    for where in sorted(wanted["spaces"].keys() | got["spaces"].keys()):
        one, other = (without_chance(of["spaces"].get(where, []), said) for of in (wanted, got))
        found += [f"{where}: {line}" for line in difflib.unified_diff(one, other, lineterm="", n=0) if line[1:2] not in "-+@"]
    one, other = shown_files(wanted), shown_files(got)
    return found + [line for line in difflib.unified_diff(one, other, lineterm="", n=0) if line[1:2] not in "-+@"]


def without_chance(lines: list[str], said: str) -> list[str]:
    text = said + "".join(lines)
    bridges = [found for found in map(LINK.match, lines) if found and found[2] == "bridge"]
    chosen = {found[3] for found in bridges if text.count(found[3]) == 1}
    return [
        line.replace(f" address {found[3]}", "") if (found := LINK.match(line)) and found[3] in chosen else line
        for line in lines
    ]


def shown_files(of: State) -> list[str]:
    """Files as lines; by which numbers the kernel knows a namespace is replaced by whether these are the right ones."""

    def shown(text: str) -> str:
        netns, identity = NETNS_IN.search(text), IDENTITY.search(text)
        if not netns or not identity:
            return text
        right = identity[0] == of["netns"].get(netns[1])
        return text.replace(identity[0], '"identity":"of the namespace"' if right else '"identity":"of another namespace"')

    return [f"file {path} {shown(text)}" for path, text in sorted(of["files"].items())]
