"""One walk through /proc: namespaces of processes, descriptors and mounts, containers, and plugin calls.

Changes nothing.
"""

from __future__ import annotations

import posix
from time import CLOCK_BOOTTIME, clock_gettime

from cni_py.plural import counted
from cni_py.sweep import netns_scan
from cni_py.sweep.netns_paths import NetnsPaths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

CALL_SECONDS = 3600.0
"""Plugins do not run for longer; but a process that one started may, and inherits its environment."""
_NAMED = 5
"""Unreadable processes that are named one by one."""
_NO_NAMESPACE = ("/dev/", "/proc/", "/sys/", "/memfd:")


class ProcWalk:
    """Context manager: descriptors of namespaces that nothing else leads to are open until it ends.

    Args:
        check_time: called regularly; may raise.
    """

    def __init__(self, check_time: Callable[[], None]) -> None:
        self.check_time = check_time
        self.faults: list[str] = (
            [] if posix.geteuid() == 0 else ["not running as root: namespaces of other processes are unreadable"]
        )
        self.namespaces = NetnsPaths()
        self.mount_points: dict[str, set[int]] = {}
        self.containers: set[str] = set()
        self.calls: set[tuple[str, str]] = set()
        self._mount_namespaces: dict[tuple[int, str], list[str]] = {}  # inode and root: /proc directories
        self._held_mount_namespaces: dict[int, str] = {}  # by a descriptor or a mount: a path that opens it
        self._kept_open: list[int] = []
        self._copies: dict[bytes, int] = {}
        self._cgroups: set[bytes] = set()
        self._unreadable: list[str] = []
        try:
            status = posix.stat("/proc/self/ns/net")
            self.own, self.device = status.st_ino, status.st_dev
        except OSError as error:
            self.own, self.device = 0, -1
            self.faults.append(f"/proc is unreadable: {error.strerror}")

    def __enter__(self) -> ProcWalk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for fd in self._kept_open:
            posix.close(fd)

    def run(self) -> None:
        # Mounts after processes: a runtime mounts a namespace that one of its threads has created, never the other
        # way round, so that a namespace is seen in at least one of the two places.
        self._processes()
        self._mounts()

    # ---- processes ------------------------------------------------------------------------------

    def _processes(self) -> None:
        """Collect namespaces that processes are in or hold open, their containers, running plugins."""
        try:
            pids = [name for name in posix.listdir("/proc") if name.isdigit()]
        except OSError:
            return
        for pid in pids:
            self.check_time()
            try:
                self._process(f"/proc/{pid}", is_other=int(pid) != posix.getpid())
            except OSError as error:
                if not netns_scan.is_gone(error, f"/proc/{pid}"):
                    self._unreadable.append(_named(pid, error))
        if "1" not in pids:
            self.faults.append("/proc hides processes (hidepid)")
        elif self._unreadable and posix.geteuid() == 0:  # another user can read none of them, which is said already
            self.faults += self._unreadable[:_NAMED]
            if len(self._unreadable) > _NAMED:
                self.faults.append(f"{counted(len(self._unreadable) - _NAMED, 'more unreadable process', 'es')}")
            self.faults.append("a process of another user namespace or container is read with CAP_SYS_PTRACE on the host")

    def _process(self, directory: str, is_other: bool) -> None:
        """Read one process. Raises: OSError."""
        self._is_in(f"{directory}/ns/net")
        mount_namespace, _ = _inode_in(posix.readlink(f"{directory}/ns/mnt"), "mnt")
        self._mount_namespaces.setdefault((mount_namespace, posix.readlink(f"{directory}/root")), []).append(directory)
        cgroup = netns_scan.read_all(posix.open(f"{directory}/cgroup", posix.O_RDONLY | posix.O_CLOEXEC))
        if cgroup not in self._cgroups:
            self._cgroups.add(cgroup)
            self.containers |= container_words(cgroup.decode(errors="replace"))
        if is_other:
            environ = netns_scan.read_all(posix.open(f"{directory}/environ", posix.O_RDONLY | posix.O_CLOEXEC))
            if b"CNI_CONTAINERID=" in environ and _runs_for(directory) < CALL_SECONDS:
                self._call(environ)
        threads = posix.listdir(f"{directory}/task")
        for thread in threads if len(threads) > 1 else ():
            _unless_gone(self._is_in, f"{directory}/task/{thread}/ns/net")
        for number in posix.listdir(f"{directory}/fd"):
            _unless_gone(self._holds, f"{directory}/fd/{number}")

    def _is_in(self, path: str) -> None:
        inode, is_network = _inode_in(posix.readlink(path), "net")
        if is_network:
            self.namespaces.add(inode, path)

    def _holds(self, path: str) -> None:
        # A namespace opened through /proc is shown as "net:[inode]", one that was opened at its mount point as that path.
        target = posix.readlink(path)
        if target.startswith("/") and not target.startswith(_NO_NAMESPACE):
            inode, kind = netns_scan.namespace_at(path, self.device)
        else:
            kind, _, rest = target.partition(":[")
            inode = int(rest[:-1]) if kind in ("net", "mnt") else 0
        if inode and kind == "net":
            self.namespaces.add(inode, path)
        elif inode and kind == "mnt":
            self._held_mount_namespaces.setdefault(inode, path)

    def _call(self, environ: bytes) -> None:
        variables = dict(pair.partition(b"=")[::2] for pair in environ.split(b"\0"))
        texts = [variables.get(name, b"").decode(errors="surrogateescape") for name in (b"CNI_CONTAINERID", b"CNI_IFNAME")]
        if variables.get(b"CNI_COMMAND") in (b"ADD", b"DEL"):
            self.calls.add((texts[0], texts[1]))

    # ---- mounts ---------------------------------------------------------------------------------

    def _mounts(self) -> None:
        """Collect mounted namespaces, in every mount namespace."""
        for directories in self._mount_namespaces.values():
            self.check_time()
            for directory in directories:
                try:
                    text = netns_scan.read_all(posix.open(f"{directory}/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC))
                except OSError:  # this process has ended; another one in the same mount namespace shows the same
                    continue
                self._mounted(text, f"{directory}/root")
                break
        known = {inode for inode, _ in self._mount_namespaces}
        for inode, path in list(self._held_mount_namespaces.items()):
            if inode not in known:
                self.check_time()
                self._enter(inode, path)

    def _mounted(self, mountinfo: bytes, root: str) -> None:
        for kind, inode, mount_point in netns_scan.nsfs_mounts(mountinfo, self._copies):
            if kind == "net":
                self._add_mount(inode, mount_point, root + mount_point)
            elif kind == "mnt":
                self._held_mount_namespaces.setdefault(inode, root + mount_point)

    def _add_mount(self, inode: int, mount_point: str, path: str) -> None:
        self.namespaces.add(inode, path)
        self.namespaces.add_mount_point(inode, mount_point)
        self.mount_points.setdefault(mount_point, set()).add(inode)

    def _enter(self, inode: int, path: str) -> None:
        """Read a mount namespace without a process: its mounts can only be read from inside."""
        try:
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
            try:
                if netns_scan.inode_of(fd) != inode:
                    return
                mountinfo, opened = netns_scan.mountinfo_inside(fd)
            finally:
                posix.close(fd)
        except OSError as error:
            if not netns_scan.is_gone(error):
                self.faults.append(f'could not enter the mount namespace "{path}": {error.strerror}')
            return
        self._kept_open += opened.values()
        for kind, number, mount_point in netns_scan.nsfs_mounts(mountinfo):
            if kind == "net":
                path_out = f"/proc/self/fd/{opened[mount_point]}" if mount_point in opened else ""
                self._add_mount(number, mount_point, path_out)


def container_words(cgroup: str) -> set[str]:
    """Return possible container ids in a ``/proc/…/cgroup``: parts of its paths, with and without the runtime's prefix. Pure.

    ``…/cri-containerd-3f2c.scope``, ``/libpod-3f2c``, ``/docker/3f2c``.
    """
    found: set[str] = set()
    for part in cgroup.replace(":", "/").replace("\n", "/").split("/"):
        word = part.removesuffix(".scope").removesuffix(".service")
        while word:
            found.add(word)
            word = word.partition("-")[2]
    return found


def _named(pid: str, error: OSError) -> str:
    """Return the fault of a process that cannot be inspected: its number, its name, the file and the reason."""
    try:
        name = netns_scan.read_all(posix.open(f"/proc/{pid}/comm", posix.O_RDONLY | posix.O_CLOEXEC)).decode(errors="replace")
    except OSError:
        name = "?"
    path = error.filename if isinstance(error.filename, str) else f"/proc/{pid}"
    return f"process {pid} ({name.strip()}) cannot be inspected: {path}: {error.strerror}"


def _inode_in(link: str, kind: str) -> tuple[int, bool]:
    """Return the number in ``net:[4026531840]``, and whether it is of this kind."""
    if link.startswith(f"{kind}:[") and link.endswith("]"):
        return int(link[len(kind) + 2 : -1]), True
    return 0, False


def _runs_for(directory: str) -> float:
    """Return the seconds since a process was started. Raises: OSError."""
    stat = netns_scan.read_all(posix.open(f"{directory}/stat", posix.O_RDONLY | posix.O_CLOEXEC))
    ticks = int(stat.rpartition(b")")[2].split()[19])  # from the right: the program's name may hold blanks and brackets
    return clock_gettime(CLOCK_BOOTTIME) - ticks / posix.sysconf("SC_CLK_TCK")


def _unless_gone(look: Callable[[str], None], path: str) -> None:
    """Read a path that may disappear: a thread may end and a descriptor may be closed while the process continues."""
    try:
        look(path)
    except OSError as error:
        if not netns_scan.is_gone(error, path):
            raise
