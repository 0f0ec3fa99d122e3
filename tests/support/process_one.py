"""A process that makes hosts: each is a fork that is process 1 of new namespaces, and runs programs in there. Run by support/namespaces.py.

    python -IS process_one.py SOCKET

A request on SOCKET is a message with two descriptors: the socket of a host, and a pipe that is closed when the host has ended. The fork
says ``ready PID`` on the host's socket, or why there is no host. It ends when the other side closes that, and the kernel removes all that
is in its namespaces.

A request on a host's socket has the descriptors of standard input, output and error and of a pipe for the exit status. Its first line is
a network namespace of /run/netns, or empty; what follows, NUL between its parts, is

    run       variables of the environment (their number comes first), program, arguments
    netns     nothing: the namespace is made, as ``ip netns add`` makes it
    look      nothing: ``no tables`` or ``tables`` of nftables, and the sysctls that plugins set, are printed

The standard library alone: the start of unshare, sh, mkdir, mount, ip and cat took six times as long as namespaces take.
"""

import ctypes
import errno
import fcntl
import gc
import os
import posix
import select
import signal
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x8000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 2, 4, 8, 0x1000, 0x4000, 0x40000, 0x100000
NETLINK_NETFILTER, NFT_MSG_GETTABLE, NLM_F_DUMP_REQUEST, NLMSG_DONE = 12, 0xA01, 0x301, 3
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
OWN_DIRECTORIES = ("/run", "/var/lib/cni", "/var/lib/cni-py", "/etc/cni")
IGNORED = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that are ignored here, and that programs get as they were."""

libc = ctypes.CDLL(None, use_errno=True)


def checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unshare(flags: int) -> None:
    checked(libc.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    checked(libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None))


def enter(path: str, flags: int) -> None:
    """Enter the namespace of this file: setns(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        checked(libc.setns(fd, flags))
    finally:
        os.close(fd)


# --- making hosts -----------------------------------------------------------------------------------------------------


def main() -> None:
    for number in IGNORED:  # Ctrl-C at the terminal is for the tests, which end the hosts
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    ended: dict[int, tuple[int, int]] = {}  # by descriptor of the process: its number, and the pipe
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in ended:
                poll.unregister(fd)
                pid, pipe = ended.pop(fd)
                os.waitpid(pid, 0)
                os.close(pipe)
                os.close(fd)
                continue
            _, fds, _, _ = socket.recv_fds(control, 16, 2, socket.MSG_CMSG_CLOEXEC)
            if not fds:
                return
            unshare(CLONE_NEWPID)  # only children enter it
            pid = os.fork()
            if pid == 0:
                try:
                    os.dup2(fds[0], 3, inheritable=False)
                    os.closerange(4, 1 << 16)  # of other hosts, too, which would not be seen to end
                    be_process_one(socket.socket(fileno=3))
                finally:
                    posix._exit(1)
            checked(libc.setns(own, CLONE_NEWPID))
            os.close(fds[0])
            pidfd = os.pidfd_open(pid)
            ended[pidfd] = pid, fds[1]
            poll.register(pidfd, select.POLLIN)


def be_process_one(control: socket.socket) -> None:
    """The fork: make the host, and serve it to its end."""
    try:
        pid = os.readlink("/proc/self")  # as seen from outside
        checked(libc.prctl(PR_SET_NAME, b"init"))
        enter_new_namespaces()
        make_directories_and_network()
        os.chdir("/")
    except OSError as error:
        control.send(str(error).encode())
        return
    control.send(b"ready " + pid.encode())
    serve(control)


def enter_new_namespaces() -> None:
    """Leave the machine's network, mounts and System V objects, as unshare(1) does; end with the parent."""
    checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV)


def make_directories_and_network() -> None:
    """Mount empty directories where plugins write to, set ``lo`` up, and forward nothing."""
    for directory in OWN_DIRECTORIES:
        os.makedirs(directory, exist_ok=True)
    mount("host", "/sys", "sysfs")
    for directory in OWN_DIRECTORIES:
        mount("host", directory, "tmpfs")
    mount("none", "/run", "", MS_REC | MS_SHARED)
    for name in ("netns", "lock", "flannel"):
        os.mkdir(f"/run/{name}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        name, flags = struct.unpack("16sh", fcntl.ioctl(query, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))[:18])
        fcntl.ioctl(query, SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | IFF_UP))
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with open(f"/proc/sys/net/{key}", "w") as file:
            file.write("0")


# --- process 1 of a host ----------------------------------------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Do what is asked for until the socket is closed, and reap what ends."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                reap(running)
                continue
            request, fds, _, _ = socket.recv_fds(control, 1 << 20, 4, socket.MSG_CMSG_CLOEXEC)
            if not fds:
                return
            answer(request, fds, running)


def reap(running: dict[int, int]) -> None:
    """Take the exit status of what has ended, and write it on the pipe of the request."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in running:
            finish(running.pop(pid), os.waitstatus_to_exitcode(status))


def finish(pipe: int, status: int) -> None:
    try:
        os.write(pipe, str(status).encode())
    except BrokenPipeError:  # the test was given up
        pass
    os.close(pipe)


def answer(request: bytes, fds: list[int], running: dict[int, int]) -> None:
    netns, _, rest = request.partition(b"\n")
    kind, *words = rest.split(b"\0")
    try:
        if kind == b"netns":
            add_netns(f"/run/netns/{os.fsdecode(netns)}")
            finish(fds[3], 0)
        elif kind == b"look":
            os.write(fds[1], inside(os.fsdecode(netns), look).encode())
            finish(fds[3], 0)
        else:
            running[spawn(os.fsdecode(netns), words, fds)] = fds[3]
    except OSError as error:
        os.write(fds[2], f"{error}\n".encode())
        finish(fds[3], 127)
    finally:
        for fd in fds[:3]:
            os.close(fd)


def spawn(netns: str, words: list[bytes], fds: list[int]) -> int:
    """Start a program in a network namespace. Returns: its process number."""
    count = int(words[0])
    environ = dict(variable.split(b"=", 1) for variable in words[1 : count + 1])
    argv = words[count + 1 :]
    streams = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds[:3])]
    return inside(netns, lambda: os.posix_spawnp(argv[0], argv, environ, file_actions=streams, setsigdef=IGNORED))


def inside(netns: str, function: "Callable[[], T]") -> "T":
    """Call the function in a network namespace; "": the host's."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if netns:
            enter(f"/run/netns/{netns}", CLONE_NEWNET)
        return function()
    finally:
        checked(libc.setns(own, CLONE_NEWNET))
        os.close(own)


def add_netns(path: str) -> None:
    """Make a network namespace that has a name: ip-netns(8)."""
    directory = os.path.dirname(path)
    try:
        mount("", directory, "none", MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(directory, directory, "none", MS_BIND | MS_REC)
        mount("", directory, "none", MS_SHARED | MS_REC)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))

    def make() -> None:
        unshare(CLONE_NEWNET)
        mount("/proc/self/ns/net", path, "none", MS_BIND)

    inside("", make)


def look() -> str:
    """Return what a program would take longer to read of this network namespace."""
    found = ["tables" if has_tables() else "no tables", *sysctl("/proc/sys/net/ipv4", "ip_forward")]
    for directory in ("/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"):
        for name in sorted(os.listdir(directory)):
            try:
                keys = sorted(os.listdir(f"{directory}/{name}"))
            except FileNotFoundError:  # another process has deleted the interface
                continue
            for key in keys:
                found += sysctl(f"{directory}/{name}", key)
    return "\n".join(found)


def sysctl(directory: str, key: str) -> list[str]:
    """The line of one; of those that cannot be read, or that the kernel chooses at random, there is none."""
    if key == "stable_secret":
        return []
    try:
        fd = os.open(f"{directory}/{key}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [f"{directory}/{key} = {os.read(fd, 99).decode().strip()}"]
    except OSError:
        return []
    finally:
        os.close(fd)


def has_tables() -> bool:
    """Return whether nftables has a table, or says neither: then nft will say why."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.send(struct.pack("=IHHIIBBH", 20, NFT_MSG_GETTABLE, NLM_F_DUMP_REQUEST, 1, 0, 0, 0, 0))
        (kind,) = struct.unpack_from("=H", kernel.recv(1 << 16), 4)
    return bool(kind != NLMSG_DONE)


if __name__ == "__main__":
    main()
