"""What lives on this host: namespaces, addresses in them, containers, plugin calls. Reads, and changes nothing.

The evidence, gathered by :func:`collect`; whatever one of these shows lives:

namespaces
    what any process or thread is in (``/proc/*/ns/net``, ``/proc/*/task/*/ns/net``), what an open descriptor
    holds (``/proc/*/fd``), what is mounted (``/proc/*/mountinfo``), in whatever mount namespace: a runtime
    may have its own. A mount namespace that only a mount or a descriptor holds is entered.
addresses
    of every such namespace and of every namespace behind a veth of this host, found by process or not
host ends
    a veth with our alias whose other end is in another namespace, which then lives by definition
sandboxes
    paths of records and cached results: is there a namespace, and which
containers
    ids in the cgroup paths of processes, for pods that have taken the address off their interface
calls
    plugins that run now (``CNI_CONTAINERID`` in their environment), for an ADD that has reserved and not yet
    assigned, and a DEL that would miss what is freed before it comes to it; our own process is no such call

What cannot be looked at makes the evidence incomplete, and ``missing`` says so: who is not root, a /proc
that hides processes (``hidepid``, or another process namespace than the pods': then namespaces behind veths
have no process), a namespace that cannot be opened, and no time. What lives beyond these is not found: a namespace that
only a descriptor in flight or a socket holds and that has no veth to this host.
"""

from __future__ import annotations

import posix
from time import CLOCK_BOOTTIME, clock_gettime, thread_time

from cni_py.kernel.netns import NetNS
from cni_py.sweep import netns_scan
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cni_py.sweep.netns_scan import Reader

ALIAS = "cni:"
"""How the alias of our host ends begins (plugins/bridge.py)."""
_GONE = (2, 20, 3)  # ENOENT, ENOTDIR, ESRCH
CALL_SECONDS = 3600.0
"""A plugin does not run for longer; but what it started may, and has its environment."""
_EINVAL = 22
_NO_NAMESPACE = ("/dev/", "/proc/", "/sys/", "/memfd:")
_TRIES, _PATHS = 3, 64


class Evidence(Value):
    """What lives.

    Attributes:
        namespaces: inode to a name for it; with the host's own, ``own``.
        mount_points: path, as it is in some mount namespace, to inodes.
        addresses: packed address to where it is.
        aliases: of host ends, without "cni:", whose other end is in another namespace.
        containers: words of cgroup paths.
        calls: container id and interface name of plugin calls.
        sandboxes: path that was asked for to inode; 0: no namespace; None: it cannot be told.
        missing: why the evidence is incomplete.
    """

    namespaces: Mapping[int, str]
    own: int = 0
    mount_points: Mapping[str, set[int]] = {}
    addresses: Mapping[bytes, str] = {}
    aliases: frozenset[str] = frozenset()
    containers: frozenset[str] = frozenset()
    calls: frozenset[tuple[str, str]] = frozenset()
    sandboxes: Mapping[str, int | None] = {}
    missing: tuple[str, ...] = ()


class OutOfTime(Exception):
    """The deadline has passed."""


def collect(paths: Iterable[str] = (), deadline: float | None = None) -> Evidence:
    """Look at all that may live now.

    Args:
        paths: of sandboxes that are asked for.
        deadline: on :func:`time.thread_time`'s clock; what was found by then is incomplete evidence.
    """
    walk = _Walk(deadline)
    try:
        for _ in range(_TRIES):
            walk = _Walk(deadline)
            walk.processes()
            walk.mounts()
            if not walk.addresses_of_all():  # a pod that came meanwhile is found by looking again
                break
        else:
            walk.faults.append(
                f"{walk.unseen} belongs to no process, descriptor or mount in /proc: this /proc may not show all of the host"
            )
    except OutOfTime:
        walk.faults.append("there was no time to look at everything")
    finally:
        walk.close()
    return walk.evidence({path: _inode_at(path, walk.device) for path in set(paths) if path})


class _Walk:
    """One look at the host."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.faults: list[str] = [] if posix.geteuid() == 0 else ["only root can look into the namespaces"]
        self.opens: dict[int, list[str]] = {}  # inode of a network namespace: paths that open it
        self.names: dict[int, str] = {}
        self.mount_points: dict[str, set[int]] = {}
        self.kept_open: list[int] = []
        self.address_places: dict[bytes, str] = {}
        self.aliases: set[str] = set()
        self.containers: set[str] = set()
        self.calls: set[tuple[str, str]] = set()
        self.unseen = ""
        self._mount_namespaces: dict[tuple[int, str], list[str]] = {}  # inode and root: processes
        self._held_mount_namespaces: dict[int, str] = {}  # by a descriptor or a mount: a path that opens it
        self._copies: dict[bytes, int] = {}
        self._hidden = 0
        self._cgroups: set[bytes] = set()
        try:
            status = posix.stat("/proc/self/ns/net")
            self.own, self.device = status.st_ino, status.st_dev
        except OSError as error:
            self.own, self.device = 0, -1
            self.faults.append(f"/proc cannot be read ({error.strerror})")

    def evidence(self, sandboxes: Mapping[str, int | None]) -> Evidence:
        names = {inode: self.names.get(inode, paths[0]) for inode, paths in self.opens.items()}
        return Evidence(
            namespaces=names | {self.own: "the host"},
            own=self.own,
            mount_points=self.mount_points,
            addresses=self.address_places,
            aliases=frozenset(self.aliases),
            containers=frozenset(self.containers),
            calls=frozenset(self.calls),
            sandboxes=sandboxes,
            missing=tuple(self.faults),
        )

    def close(self) -> None:
        for fd in self.kept_open:
            posix.close(fd)
        self.kept_open.clear()

    # ---- /proc ----------------------------------------------------------------------------------

    def processes(self) -> None:
        """What processes are in, what they hold open, whose containers they are, which plugins run."""
        try:
            pids = [name for name in posix.listdir("/proc") if name.isdigit()]
        except OSError:
            return
        for pid in pids:
            self._check_time()
            try:
                self._process(f"/proc/{pid}", is_other=int(pid) != posix.getpid())
            except OSError as error:
                self._hidden += not netns_scan.is_gone(error, f"/proc/{pid}")
        if "1" not in pids:
            self.faults.append("/proc hides processes (hidepid)")
        elif self._hidden:
            self.faults.append(f"{self._hidden} processes cannot be looked at")

    def _process(self, folder: str, is_other: bool) -> None:
        """Raises: OSError."""
        self._is_in(f"{folder}/ns/net")
        mount_namespace, _ = _inode_in(posix.readlink(f"{folder}/ns/mnt"), "mnt")
        self._mount_namespaces.setdefault((mount_namespace, posix.readlink(f"{folder}/root")), []).append(folder)
        cgroup = netns_scan.read_all(posix.open(f"{folder}/cgroup", posix.O_RDONLY | posix.O_CLOEXEC))
        if cgroup not in self._cgroups:
            self._cgroups.add(cgroup)
            self.containers |= container_words(cgroup.decode(errors="replace"))
        if is_other:
            environ = netns_scan.read_all(posix.open(f"{folder}/environ", posix.O_RDONLY | posix.O_CLOEXEC))
            if b"CNI_CONTAINERID=" in environ and _runs_for(folder) < CALL_SECONDS:
                self._call(environ)
        threads = posix.listdir(f"{folder}/task")
        for thread in threads if len(threads) > 1 else ():
            _unless_gone(self._is_in, f"{folder}/task/{thread}/ns/net")
        for number in posix.listdir(f"{folder}/fd"):
            _unless_gone(self._holds, f"{folder}/fd/{number}")

    def _is_in(self, path: str) -> None:
        inode, is_it = _inode_in(posix.readlink(path), "net")
        if is_it:
            self._found(inode, path)

    def _holds(self, path: str) -> None:
        """What was opened in /proc is shown by its number, what was opened where it is mounted by that path."""
        target = posix.readlink(path)
        if target.startswith("/") and not target.startswith(_NO_NAMESPACE):
            inode, kind = netns_scan.namespace_at(path, self.device)
        else:
            kind, _, rest = target.partition(":[")
            inode = int(rest[:-1]) if kind in ("net", "mnt") else 0
        if inode and kind == "net":
            self._found(inode, path)
        elif inode and kind == "mnt":
            self._held_mount_namespaces.setdefault(inode, path)

    def _found(self, inode: int, path: str) -> None:
        paths = self.opens.setdefault(inode, [])
        if len(paths) < _PATHS:  # a process may end, and a mount be hidden by another, before it is asked
            paths.append(path)

    def _call(self, environ: bytes) -> None:
        variables = dict(pair.partition(b"=")[::2] for pair in environ.split(b"\0"))
        texts = [variables.get(name, b"").decode(errors="surrogateescape") for name in (b"CNI_CONTAINERID", b"CNI_IFNAME")]
        if variables.get(b"CNI_COMMAND") in (b"ADD", b"DEL"):
            self.calls.add((texts[0], texts[1]))

    # ---- mounts ---------------------------------------------------------------------------------

    def mounts(self) -> None:
        """What is mounted: after the processes, for a runtime mounts what a thread of it made, and not the other way round."""
        for folders in self._mount_namespaces.values():
            self._check_time()
            for folder in folders:
                try:
                    text = netns_scan.read_all(posix.open(f"{folder}/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC))
                except OSError:  # this process has gone, or the next one cannot be read either
                    continue
                self._mounted(text, f"{folder}/root")
                break
        known = {inode for inode, _ in self._mount_namespaces}
        for inode, path in list(self._held_mount_namespaces.items()):
            if inode not in known:
                self._check_time()
                self._enter(inode, path)

    def _mounted(self, mountinfo: bytes, root: str) -> None:
        for kind, inode, mount_point in netns_scan.nsfs_mounts(mountinfo, self._copies):
            if kind == "net":
                self._found(inode, root + mount_point)
                self.mount_points.setdefault(mount_point, set()).add(inode)
                self.names.setdefault(inode, mount_point)
            elif kind == "mnt":
                self._held_mount_namespaces.setdefault(inode, root + mount_point)

    def _enter(self, inode: int, path: str) -> None:
        """A mount namespace without a process."""
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
                self.faults.append(f'the mount namespace "{path}" cannot be entered ({error.strerror})')
            return
        self.kept_open += opened.values()
        for kind, number, mount_point in netns_scan.nsfs_mounts(mountinfo):
            if kind != "net":
                continue
            if mount_point in opened:
                self._found(number, f"/proc/self/fd/{opened[mount_point]}")
            else:
                self.opens.setdefault(number, [])
            self.mount_points.setdefault(mount_point, set()).add(number)
            self.names.setdefault(number, mount_point)

    # ---- addresses ------------------------------------------------------------------------------

    def addresses_of_all(self) -> str:
        """Addresses of every namespace, and the host ends. Answers, in words, a namespace that nobody was seen to hold."""
        try:
            with netns_scan.Reader() as reader:
                self._addresses(reader)
        except OSError as error:
            self.faults.append(f"the kernel does not say which addresses there are ({error.strerror})")
        return self.unseen

    def _addresses(self, reader: Reader) -> None:
        self._add_addresses(reader.addresses(), "the host itself")
        ends = [end for end in reader.host_ends() if end.nsid not in (None, netns_scan.DYING)]
        seen: set[int] = set()
        for inode in list(self.opens):
            if inode != self.own:
                self._check_time()
                self._addresses_of(reader, inode, seen)
        behind = {end.nsid: f'the namespace behind "{end.name}"' for end in ends if end.nsid is not None}
        for number, name in behind.items() if reader.is_strict else ():
            self._check_time()
            if number not in seen and not self._add_addresses_behind(reader, number, name):
                ends = [end for end in ends if end.nsid != number]
        self.aliases = {end.alias.removeprefix(ALIAS) for end in ends if end.alias.startswith(ALIAS)}
        unseen = {end.nsid for end in ends} - seen
        still = {end.nsid for end in reader.host_ends()} if unseen else set()
        self.unseen = next((name for number, name in behind.items() if number in unseen & still), "")

    def _add_addresses_behind(self, reader: Reader, number: int, name: str) -> bool:
        """Addresses of a namespace that nothing in /proc shows; ``False``: it is being taken down, which may take seconds.

        It keeps its number until then, but the kernel does not answer for it any more.
        """
        try:
            self._add_addresses(reader.addresses(number), name)
        except OSError as error:
            if error.errno == _EINVAL:
                return False
            self.faults.append(f"the kernel does not say which addresses are in {name} ({error.strerror})")
        return True

    def _addresses_of(self, reader: Reader, inode: int, seen: set[int]) -> None:
        """Those of one namespace, whose number goes to ``seen``."""
        name = self.names.get(inode) or next(iter(self.opens[inode]), f"net:[{inode}]")
        try:
            with self._open(inode) as netns:
                number = reader.number_of(netns.fd)
                self._add_addresses(_addresses_in(reader, netns, number), name)
                seen |= {number} if number is not None else set()
        except OSError as error:
            if netns_scan.is_gone(error) and not self._is_still_mounted(inode):
                del self.opens[inode]  # its last process has ended
            else:
                self.faults.append(f'the network namespace "{name}" cannot be entered ({error.strerror})')

    def _open(self, inode: int) -> NetNS:
        """Raises: OSError; FileNotFoundError where no path leads to it any more."""
        failure: OSError = FileNotFoundError(2, posix.strerror(2))
        for path in self.opens[inode]:
            try:
                fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
            except OSError as error:
                failure = failure if netns_scan.is_gone(error) else error
                continue
            if netns_scan.inode_of(fd) == inode:
                return NetNS(path, fd)
            posix.close(fd)
        raise failure

    def _is_still_mounted(self, inode: int) -> bool:
        """Whether it is mounted where nothing leads to it: another mount hides it."""
        for folder in {path.partition("/root/")[0] for path in self.opens[inode] if "/root/" in path}:
            try:
                text = netns_scan.read_all(posix.open(f"{folder}/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC))
            except OSError:
                continue
            if any(number == inode for _, number, _ in netns_scan.nsfs_mounts(text)):
                return True
        return not self.opens[inode]  # seen in a mount namespace without a process, and could not be opened there

    def _add_addresses(self, found: list[tuple[int, bytes]], place: str) -> None:
        for _, address in found:
            self.address_places.setdefault(address, place)

    def _check_time(self) -> None:
        if self.deadline is not None and thread_time() > self.deadline:
            raise OutOfTime


def _addresses_in(reader: Reader, netns: NetNS, number: int | None) -> list[tuple[int, bytes]]:
    """By its number, which is quicker, or by entering it. Raises: OSError."""
    if number is not None and reader.is_strict:
        try:
            return reader.addresses(number)
        except OSError:
            pass
    return netns_scan.addresses_inside(netns)


def container_words(cgroup: str) -> set[str]:
    """What may be a container's id in a ``/proc/…/cgroup``: parts of its paths, with and without what runtimes put before.

    ``…/cri-containerd-3f2c.scope``, ``/libpod-3f2c``, ``/docker/3f2c``. Pure.
    """
    found: set[str] = set()
    for part in cgroup.replace(":", "/").replace("\n", "/").split("/"):
        word = part.removesuffix(".scope").removesuffix(".service")
        while word:
            found.add(word)
            word = word.partition("-")[2]
    return found


def plain_run(path: str) -> str:
    """``/var/run`` is a link to ``/run``, and mount points are written without links. Pure."""
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def _inode_in(link: str, kind: str) -> tuple[int, bool]:
    """The number in ``net:[4026531840]``; whether it is of this kind."""
    if link.startswith(f"{kind}:[") and link.endswith("]"):
        return int(link[len(kind) + 2 : -1]), True
    return 0, False


def _inode_at(path: str, device: int) -> int | None:
    """Inode of the namespace at a path; 0: there is none; None: that cannot be told."""
    try:
        status = posix.stat(path)
    except OSError as error:
        return 0 if error.errno in _GONE else None
    except ValueError:  # a NUL in it
        return 0
    return status.st_ino if status.st_dev == device else 0


def _runs_for(folder: str) -> float:
    """Seconds since a process was started. Raises: OSError."""
    stat = netns_scan.read_all(posix.open(f"{folder}/stat", posix.O_RDONLY | posix.O_CLOEXEC))
    ticks = int(stat.rpartition(b")")[2].split()[19])  # the name before it may hold anything
    return clock_gettime(CLOCK_BOOTTIME) - ticks / posix.sysconf("SC_CLK_TCK")


def _unless_gone(look: Callable[[str], None], path: str) -> None:
    """A thread ends and a descriptor is closed while its process goes on."""
    try:
        look(path)
    except OSError as error:
        if not netns_scan.is_gone(error, path):
            raise
