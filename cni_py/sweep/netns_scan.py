"""Live network namespaces, from the kernel: host ends that lead into them, addresses in them. Changes nothing.

How it works. One rtnetlink socket of the host reads the addresses of every namespace that has a veth
to it: the kernel numbers such namespaces (``nsid``) and lists their addresses (``IFA_TARGET_NETNSID``, Linux
4.20) in 0.04 ms, while entering one takes a thread and 0.2 ms. Only those without a number are entered.

Messages are read raw: of 60 attributes of a link, five are wanted.

Source: linux net/core/rtnetlink.c, net/core/net_namespace.c.
"""

from __future__ import annotations

import posix
from errno import EINVAL, ENOENT, ESRCH

from cni_py.kernel.address import dump_addresses, local_address
from cni_py.kernel.link import Link, link_of
from cni_py.kernel.netns import CLONE_NEWNET, NS_GET_NSTYPE, NetNS, setns
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import RTEXT_FILTER_SKIP_STATS, RTM_GETLINK, RTM_GETNSID
from cni_py.netlink.socket import Netlink, new_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
FIRST_INODE = 0xF0000000
"""Namespaces other than the first ones have no smaller inodes (PROC_DYNAMIC_FIRST)."""
DYING = -1
"""The number of a namespace that is being taken down."""
_COPIES = 4


class Reader:
    """A socket of the namespace that we run in, for questions alone. Raises: OSError."""

    def __init__(self) -> None:
        self._netlink = Netlink(new_socket())
        self.is_strict = self._netlink.is_strict

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._netlink.close()

    def host_ends(self) -> list[Link]:
        """The veths of this namespace. Raises: OSError."""
        question = encode("ifinfmsg", {"IFLA_EXT_MASK": RTEXT_FILTER_SKIP_STATS})
        links = [link_of(answer) for answer in self._netlink.dump(question, RTM_GETLINK, containing=b"veth")]
        return [link for link in links if link.kind == "veth"]

    def number_of(self, netns_fd: int) -> int | None:
        """The number that this namespace has for another one, None where it has none. Raises: OSError."""
        answer = self._netlink.get(encode("nsidmsg", {"NETNSA_FD": netns_fd}), RTM_GETNSID)
        number: int = decode("nsidmsg", answer)["NETNSA_NSID"]
        return number if number >= 0 else None

    def addresses(self, nsid: int | None = None) -> list[tuple[int, bytes]]:
        """Interface index and packed address of all in the namespace of this number (None: this one).

        Without those that every namespace has: loopback and link-local. Raises: OSError.
        """
        if nsid is not None and not self.is_strict:  # before Linux 4.20 it returns those of this one, whichever is asked for
            raise OSError(EINVAL, "this kernel does not list addresses of other namespaces")
        found = [(of["index"], local_address(of)) for of in dump_addresses(self._netlink, IFA_TARGET_NETNSID=nsid)]
        return [(ifindex, address) for ifindex, address in found if not _is_everywhere(address)]


def addresses_inside(netns: NetNS) -> list[tuple[int, bytes]]:
    """List addresses, as :meth:`Reader.addresses`, by entering the namespace. Raises: OSError."""

    def read() -> list[tuple[int, bytes]]:
        with Reader() as reader:
            return reader.addresses()

    return netns.run(read)


def nsfs_mounts(mountinfo: bytes, seen: dict[bytes, int] | None = None) -> Iterator[tuple[str, int, str]]:
    """Kind ("net", "mnt" …), inode and mount point of the namespaces that a ``mountinfo`` shows. Pure.

    Args:
        seen: counts what was shown already: every mount namespace may have a copy of every mount, and
            of those there may be the square of the pods. A few are enough.
    """
    for line in mountinfo.split(b"\n") if b" - nsfs " in mountinfo else ():
        if b" - nsfs " not in line:
            continue
        words = line.split(b" ", 5)
        if seen is not None:
            times = seen.get(words[3] + words[4], 0)
            if times >= _COPIES:
                continue
            seen[words[3] + words[4]] = times + 1
        kind, _, rest = words[3].partition(b":[")
        if rest:
            yield kind.decode(), int(rest[:-1]), _unescaped(words[4])


def mountinfo_inside(mount_namespace_fd: int) -> tuple[bytes, dict[str, int]]:
    """Enter a mount namespace that no process is in: its ``mountinfo``, and open descriptors of what is mounted there.

    Returns:
        The text; mount point to descriptor, which the caller closes.

    Raises: OSError.
    """

    def read() -> tuple[bytes, dict[str, int]]:
        _leave_shared_root()
        own = posix.open("/proc/thread-self", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            setns(mount_namespace_fd, CLONE_NEWNS)
            fd = posix.open("mountinfo", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=own)
        finally:
            posix.close(own)
        text = read_all(fd)
        opened = {}
        for mount_point in {mount_point for kind, _, mount_point in nsfs_mounts(text) if kind == "net"}:
            try:
                opened[mount_point] = posix.open(mount_point, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
            except OSError:
                continue
        return text, opened

    # a thread of its own, as for a network namespace: it ends where it went
    own_network = posix.open("/proc/self/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)
    with NetNS("/proc/self/ns/net", own_network) as here:
        return here.run(read)


def namespace_at(path: str, device: int) -> tuple[int, str]:
    """Inode and kind ("net", "mnt", "" for others) of the namespace that ``/proc/…/fd/…`` holds open; 0: it is none.

    Other files are recognized by their inode: ``stat`` would ask their file system, which may be a dead server.

    Raises: OSError.
    """
    from fcntl import ioctl

    info = path.replace("/fd/", "/fdinfo/")
    text = read_all(posix.open(info, posix.O_RDONLY | posix.O_CLOEXEC))
    number = text.partition(b"ino:\t")[2].partition(b"\n")[0]
    if number and int(number) < FIRST_INODE:  # before Linux 5.14 it is missing, and stat the only way
        return 0, ""
    status = posix.stat(path)
    if status.st_dev != device:
        return 0, ""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        kind = ioctl(fd, NS_GET_NSTYPE)
    finally:
        posix.close(fd)
    return status.st_ino, {CLONE_NEWNET: "net", CLONE_NEWNS: "mnt"}.get(kind, "")


def read_all(fd: int) -> bytes:
    """Read all of an open file, and close it. Raises: OSError."""
    try:
        text = b""
        while block := posix.read(fd, 1 << 16):
            text += block
    finally:
        posix.close(fd)
    return text


def is_gone(error: OSError, path: str = "") -> bool:
    """Return True if a process exited, or a file was deleted, while it was being read."""
    # EACCES is ambiguous: the kernel returns it for a process that exited between two steps, and for one that really
    # is unreadable, whose path still exists.
    if error.errno in (ENOENT, ESRCH):
        return True
    try:
        return bool(path) and not posix.lstat(path)
    except OSError as now:
        return now.errno in (ENOENT, ESRCH)


def inode_of(fd: int) -> int:
    return posix.fstat(fd).st_ino


def _leave_shared_root() -> None:
    """``unshare(CLONE_FS)``: a thread that shares its root with others cannot enter a mount namespace."""
    if hasattr(posix, "unshare"):
        posix.unshare(CLONE_FS)
        return
    from cni_py.c_library import Library, get_errno

    if Library(None).unshare(CLONE_FS) != 0:
        number = get_errno()
        raise OSError(number, posix.strerror(number))


def _is_everywhere(address: bytes) -> bool:
    if len(address) == 4:
        return address[0] == 127
    return address in (b"", bytes(15) + b"\1") or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def _unescaped(path: bytes) -> str:
    r"""A path of ``mountinfo``, where a space is ``\040``."""
    head, *rest = path.split(b"\\")
    return (head + b"".join([bytes([int(part[:3], 8)]) + part[3:] for part in rest])).decode(errors="surrogateescape")
