"""A machine of the lab: network, mount, process, IPC and host name namespaces, kept by a small process 1.

The machine has empty folders where plugins and flanneld write: ``/run`` (with the lab's folder as ``/run/lab``),
``/var/lib/cni``, ``/var/lib/cni-py`` and ``/etc/cni``. Everything else is the real machine's. Process ids are those of
outside, together with the time of their start: a number that was given to another process since is not taken for ours.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_py.lab.programs import LabFailed, run

if TYPE_CHECKING:
    from collections.abc import Sequence

END_SECONDS = 10
MOUNT_POINTS = ("/var/lib/cni", "/var/lib/cni-py", "/etc/cni")

# The keeper: process 1 of the lab, in the switch. It stays while its helper does, and that ends with the pipe from
# whoever makes the lab, or stays when it reads "stay". (The shell waits and does not read itself: a `read` ends with
# every child that is left to it.) /proc is still that of outside here, so the number in it is the one that others see.
_KEEPER = """
exec 3<&0
read -r pid rest </proc/self/stat
ip link set lo up
sh -c 'read -r word && exec sleep infinity' <&3 >/dev/null 2>&1 &
echo "$pid"
exec >/dev/null 2>&1
wait $!
"""

# A machine: name, lab's folder, whether it forwards. Process 1 reaps what is left to it, and never ends by itself.
_MACHINE = """
name=$1 folder=$2 forwarding=$3
read -r pid rest </proc/self/stat
mount -t tmpfs -o mode=755 tmpfs "$folder/stage"
mkdir "$folder/stage/lab" "$folder/stage/netns" "$folder/stage/lock" "$folder/stage/flannel"
mount --bind "$folder" "$folder/stage/lab"
mount -n --move "$folder/stage" /run
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
    """``pid``: of its process 1; ``started``: when that started, in the kernel's ticks."""

    name: str
    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started

    def command(self, *argv: str) -> list[str]:
        """``argv`` as run on this machine."""
        spaces = ["--net", "--mount", "--pid", "--ipc", "--uts", "--root", "--wd"]
        return ["nsenter", f"--target={self.pid}", *spaces, "--", *argv]

    def run(self, *argv: str, stdin: str = "", env: dict[str, str] | None = None) -> str:
        """Run a program there; answer what it printed. Raises: LabFailed, with its words."""
        return run(self.command(*argv), stdin, env, what=f"on {self.name}: {' '.join(argv)}")

    def configure(self, lines: Sequence[str]) -> None:
        """Run these commands of ``ip`` in its network namespace. Raises: LabFailed."""
        argv = ["nsenter", f"--target={self.pid}", "--net", "ip", "-batch", "-"]
        run(argv, "".join(f"{line}\n" for line in lines), what=f"ip on {self.name}")

    def path(self, path: str) -> str:
        """A file of the machine as seen from outside."""
        return f"/proc/{self.pid}/root{path}"

    def kill(self) -> None:
        """End it with everything in it, and wait until that is done. Absence is success. Raises: LabFailed."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.is_alive:
                return
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not select.select([fd], [], [], END_SECONDS)[0]:
                raise LabFailed(f"{self.name} does not end: process {self.pid}", hint=f"see why: cat /proc/{self.pid}/stack")
        except ProcessLookupError:
            return
        finally:
            os.close(fd)


def start_time(pid: int) -> int:
    """When a process started; 0 where there is none, or only what its parent has not asked for yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


class Keeper:
    """The lab's first process, as its parent sees it. ``close()`` or our end ends it, unless it was told to stay."""

    def __init__(self) -> None:
        argv = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"]
        self._process = subprocess.Popen(
            [*argv, "sh", "-ec", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: the lab is taken down in order
        )
        try:
            self.machine = _first_words(self._process, "switch")
        except BaseException:
            self.close()
            raise

    def stay(self) -> None:
        """The lab outlives us."""
        assert self._process.stdin is not None
        self._process.stdin.write("stay\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Let go of it; where it was not told to stay, that ends it. Twice is fine."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(END_SECONDS)
        _close_outputs(self._process)


def start(keeper: Machine, folder: str, names: Sequence[str], forwarding: Sequence[str]) -> list[Machine]:
    """Machines inside the lab, all at once; those named in ``forwarding`` route packets. Raises: LabFailed."""
    enter = ["nsenter", f"--target={keeper.pid}", "--mount", "--pid", "--root", "--wd", "--"]
    starting = [
        subprocess.Popen(
            [*enter, "sh", "-c", _IN_BACKGROUND, _MACHINE, name, folder, str(int(name in forwarding))],
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
        for process in starting:  # no end of file is waited for: unshare, in the lab, has these pipes for good
            process.wait()
            _close_outputs(process)


def _first_words(process: subprocess.Popen[str], name: str) -> Machine:
    """The machine whose process 1 says its number. Raises: LabFailed."""
    assert process.stdout is not None
    assert process.stderr is not None
    word = process.stdout.readline().strip()
    started = start_time(int(word)) if word.isdecimal() else 0
    if not started:
        words = process.stderr.read().strip()
        hint = "a container needs CAP_SYS_ADMIN for this (docker run --privileged)" if "not permitted" in words else ""
        raise LabFailed(f"no namespaces can be made for {name}", words, hint)
    return Machine(name, int(word), started)


def _close_outputs(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def make_mount_points() -> list[str]:
    """The folders of the real machine that the lab's are mounted on; answers those that were not there."""
    made: list[str] = []
    for path in MOUNT_POINTS:
        parts = path.strip("/").split("/")
        for folder in ["/" + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]:
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o755)
                made.append(folder)
    return made


def remove_mount_points(made: Sequence[str]) -> None:
    """Remove those that were made for the lab, unless something is in them by now."""
    for folder in reversed(made):
        try:
            os.rmdir(folder)
        except OSError:
            continue
