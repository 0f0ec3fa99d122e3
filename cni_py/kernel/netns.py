"""Network namespaces: open one, run something inside one.

A thread that entered a namespace must end there: it is never reused, so none of our threads
can be left inside a sandbox (``setns`` is per thread).
"""

from __future__ import annotations

import posix
from _thread import allocate_lock, start_new_thread
from errno import ENOENT, ENOTDIR, ESRCH

from cni_py import journal
from cni_py.errors import InvalidNetNS, SandboxGone
from cni_py.netlink.socket import Rtnl, new_socket, question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, TypeVar

    T = TypeVar("T")

_libc: Any = None
CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # ioctl: returns the CLONE_NEW… flag of the namespace's kind (linux/nsfs.h)


class NetNS:
    """An open network namespace; as a context manager it is closed at the end."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd

    def __enter__(self) -> NetNS:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        posix.close(self.fd)

    @property
    def enter(self) -> tuple[str, ...]:
        """Command prefix that runs a command inside."""
        return "nsenter", f"--net={self.path}"

    def run(self, function: Callable[[], T]) -> T:
        """Call the function in a short-lived thread inside the namespace; its error is raised here.

        Raises: OSError if the namespace cannot be entered.
        """
        outcome: list[tuple[T | None, BaseException | None]] = []
        done = allocate_lock()
        done.acquire()
        ours = journal.current()

        def inside() -> None:
            try:
                journal.use(ours)
                setns(self.fd, CLONE_NEWNET)
                outcome.append((function(), None))
            except BaseException as error:  # noqa: BLE001 — passed to the caller's thread
                outcome.append((None, error))
            finally:
                done.release()

        start_new_thread(inside, ())
        done.acquire()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def open_sandbox(path: str, may_be_host: bool = False, fd: int = -1) -> NetNS:
    """Open the namespace of CNI_NETNS, or a copy of ``fd`` if the client opened it.

    Raises: SandboxGone if it no longer exists; InvalidNetNS if it is not a network namespace,
    or our own and not ``may_be_host``: a plugin that used the host as sandbox would break it.
    """
    from fcntl import ioctl

    try:
        fd = posix.dup(fd) if fd >= 0 else posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError as error:
        kind = SandboxGone if error.errno in (ENOENT, ENOTDIR, ESRCH) else InvalidNetNS
        raise kind(f'failed to open netns "{path}"', error.strerror or "") from error
    try:
        is_netns = ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        is_netns = False
    status = posix.fstat(fd)
    netns = NetNS(path, fd)
    if not is_netns:
        posix.close(fd)
        if status.st_size == 0:  # left by `ip netns add` after an unmount
            raise SandboxGone(f'failed to open netns "{path}"', "it is an empty file: the namespace was deleted")
        raise InvalidNetNS(f'failed to open netns "{path}"', "it is not a network namespace", f"look at it: ls -l {path}")
    own = posix.stat("/proc/self/ns/net")
    if (status.st_dev, status.st_ino) == (own.st_dev, own.st_ino) and not may_be_host:
        posix.close(fd)
        raise InvalidNetNS(
            "plugin's netns and netns from CNI_NETNS should not be the same", f'"{path}" is the namespace of the host'
        )
    return netns


def open_own() -> NetNS:
    """Open the namespace that the thread is in; its path is what ``ip link set … netns`` takes. Raises: InvalidNetNS."""
    path = "/proc/thread-self/ns/net"
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise InvalidNetNS(f'failed to open netns "{path}"', error.strerror or "") from error
    try:
        is_that_of_init = posix.stat("/proc/1/ns/net").st_ino == posix.fstat(fd).st_ino
    except OSError:
        is_that_of_init = False
    return NetNS("1" if is_that_of_init else str(posix.getpid()), fd)


def setns(fd: int, kind: int) -> None:
    """``setns(2)`` for the calling thread; ``os.setns`` exists from Python 3.12 on. Raises: OSError."""
    if hasattr(posix, "setns"):
        posix.setns(fd, kind)
        return
    global _libc
    from cni_py.c_library import Library, get_errno

    if _libc is None:
        _libc = Library(None)
    if _libc.setns(fd, kind) != 0:
        number = get_errno()
        raise OSError(number, posix.strerror(number))


def open_in(netns: NetNS, and_do: Callable[[], object] = lambda: None) -> Rtnl:
    """Open a socket of another namespace: it is opened inside and used from outside. Raises: KernelRefused.

    ``and_do`` is called by the thread that is inside.
    """
    with question(*netns.enter, "ip", "link"):
        return Rtnl(netns.run(lambda: (new_socket(), and_do())[0]), netns.enter)
