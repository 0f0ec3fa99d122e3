"""A machine of the lab: network, mount, PID, IPC and UTS namespaces, held by a small process 1.

The machine has empty directories where plugins and flanneld write: ``/run`` (with the lab's directory as ``/run/lab``),
``/var/lib/cni``, ``/var/lib/cni-py`` and ``/etc/cni``. Everything else is the real machine's. Process ids are those
outside of the lab, together with their start time, so that a reused id is not mistaken for ours.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_py.lab.programs import ENVIRONMENT, LabFailed, run, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

END_SECONDS = 10
MOUNT_POINTS = ("/var/lib/cni", "/var/lib/cni-py", "/etc/cni")

# The keeper: process 1 of the lab, in the switch. It lives as long as its helper, which exits when the pipe from the
# lab's creator closes, unless it has read "stay". (The shell waits and does not read itself: a `read` returns with
# every orphaned child.) /proc is still the one outside, so the id in it is the one that other processes see.
_KEEPER = """
exec 3<&0
read -r pid rest </proc/self/stat
ip link set lo up
sh -c 'read -r word && exec sleep infinity' <&3 >/dev/null 2>&1 &
echo "$pid"
exec >/dev/null 2>&1
wait $!
"""

# A machine: name, lab's directory, whether it forwards, the keeper's id. Process 1 reaps orphans and never exits by itself.
# /run/switch is the namespace behind eth0: no process in here has it, and `cni-py sweep` removes nothing where a link leads
# into a namespace that it cannot inspect.
_MACHINE = """
name=$1 directory=$2 forwarding=$3 keeper=$4
read -r pid rest </proc/self/stat
mount -t tmpfs -o mode=755 tmpfs "$directory/stage"
mkdir "$directory/stage/lab" "$directory/stage/netns" "$directory/stage/lock" "$directory/stage/flannel"
mount --bind "$directory" "$directory/stage/lab"
: >"$directory/stage/switch"
mount --bind "/proc/$keeper/ns/net" "$directory/stage/switch"
mount -n --move "$directory/stage" /run
mount --make-rshared /run
mount -t tmpfs -o mode=755 tmpfs /var/lib/cni
mount -t tmpfs -o mode=755 tmpfs /var/lib/cni-py
mount -t tmpfs -o mode=755 tmpfs /etc/cni
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir /etc/cni/net.d
ip link set lo up
cd /proc/sys
echo "$name" >kernel/hostname
echo "$forwarding" >net/ipv4/ip_forward
if [ -d net/ipv6 ]; then
    echo "$forwarding" >net/ipv6/conf/all/forwarding
    for which in all default; do echo 0 >net/ipv6/conf/$which/accept_dad; done
fi
cd /
echo "$pid"
exec >/dev/null 2>&1
while :; do sleep 86400 & wait $!; done
"""
_IN_BACKGROUND = 'unshare --net --mount --pid --ipc --uts --fork sh -ec "$0" sh "$@" </dev/null &'


@dataclass(frozen=True, slots=True)
class Machine:
    """``pid`` of its process 1; ``started``: its start time, in the kernel's ticks."""

    name: str
    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started

    def command(self, *argv: str) -> list[str]:
        """``argv`` as run on this machine."""
        spaces = ["--net", "--mount", "--pid", "--ipc", "--uts", "--root", "--wd"]
        return [tool("nsenter"), f"--target={self.pid}", *spaces, "--", *argv]

    @property
    def enter_network(self) -> list[str]:
        """Words that run a program in its network namespace, with the files of the real machine."""
        return [tool("nsenter"), f"--target={self.pid}", "--net", "--"]

    def run(self, *argv: str, stdin: str = "", env: dict[str, str] | None = None) -> str:
        """Run a program on it. Returns: its output. Raises: LabFailed, with its error messages."""
        return run(self.command(*argv), stdin, env, what=f"on {self.name}: {' '.join(argv)}")

    def configure(self, lines: Sequence[str]) -> None:
        """Run commands of ``ip`` in its network namespace. Raises: LabFailed."""
        argv = [*self.enter_network, "ip", "-batch", "-"]
        run(argv, "".join(f"{line}\n" for line in lines), what=f"ip on {self.name}")

    def path(self, path: str) -> str:
        """A file of the machine as seen from outside."""
        return f"/proc/{self.pid}/root{path}"

    def kill(self) -> None:
        """Kill it with everything in it, and wait until it has exited. Absence is success. Raises: LabFailed."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)
        if not self.exits_within(END_SECONDS):
            raise LabFailed(f"{self.name} does not exit: process {self.pid}", hint=f"see: cat /proc/{self.pid}/stack")

    def exits_within(self, seconds: float) -> bool:
        """Wait for its exit. Returns: whether it has exited."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            return not self.is_alive or bool(select.select([fd], [], [], seconds)[0])
        finally:
            os.close(fd)


def start_time(pid: int) -> int:
    """The start time of a process; 0 if it does not exist, or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


class Keeper:
    """The lab's first process, as its parent sees it: it exits on ``close()`` or with us, unless :meth:`stay` was called."""

    def __init__(self) -> None:
        argv = [tool("unshare"), "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"]
        self._process = subprocess.Popen(
            [*argv, "sh", "-ec", _KEEPER],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C must not reach it: we take the lab down in order
        )
        try:
            self.machine = _first_words(self._process, "switch")
        except BaseException:
            self.close()
            raise

    def stay(self) -> None:
        """Keep it when this process ends."""
        assert self._process.stdin is not None
        self._process.stdin.write("stay\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Close the pipe; unless it stays, it exits. Can be repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(END_SECONDS)
        _close_outputs(self._process)


def start(keeper: Machine, directory: str, names: Sequence[str], forwarding: Sequence[str]) -> list[Machine]:
    """Start machines inside the lab, in parallel; those in ``forwarding`` route packets. Raises: LabFailed."""
    enter = [tool("nsenter"), f"--target={keeper.pid}", "--mount", "--pid", "--root", "--wd", "--"]
    starting = [
        subprocess.Popen(
            [*enter, "sh", "-c", _IN_BACKGROUND, _MACHINE, name, directory, str(int(name in forwarding)), str(keeper.pid)],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for name in names
    ]
    try:
        return [_first_words(process, name) for process, name in zip(starting, names, strict=True)]
    finally:
        for process in starting:  # not communicate(): unshare, in the lab, holds these pipes open
            process.wait()
            _close_outputs(process)


def _first_words(process: subprocess.Popen[str], name: str) -> Machine:
    """The machine whose process 1 prints its id. Raises: LabFailed."""
    assert process.stdout is not None
    assert process.stderr is not None
    word = process.stdout.readline().strip()
    started = start_time(int(word)) if word.isdecimal() else 0
    if not started:
        words = process.stderr.read().strip()
        hint = "a container needs CAP_SYS_ADMIN for this (docker run --privileged)" if "not permitted" in words else ""
        raise LabFailed(f"could not create namespaces for {name}", words, hint)
    return Machine(name, int(word), started)


def _close_outputs(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def hint_inside() -> str:
    """Return what to do about a command that works only outside of a lab; "" if this process is outside."""
    if not os.path.exists("/run/lab/state.json"):
        return ""
    return f"this shell is on {os.uname().nodename} of a lab: leave it with exit, and type the command again"


def make_mount_points() -> list[str]:
    """Create the directories of the real machine that the lab's are mounted on. Returns: those that did not exist."""
    made: list[str] = []
    for path in MOUNT_POINTS:
        parts = path.strip("/").split("/")
        for directory in ["/" + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]:
            if not os.path.isdir(directory):
                os.mkdir(directory, 0o755)
                made.append(directory)
    return made


def remove_mount_points(made: Sequence[str]) -> None:
    """Remove directories that were created for the lab, unless other software uses them."""
    for directory in reversed(made):
        try:
            os.rmdir(directory)
        except OSError:  # not empty
            continue
