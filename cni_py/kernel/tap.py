"""Persistent TAP devices of a sandbox: a file of /dev/net/tun makes one, and it stays when the file is closed.

Source: linux Documentation/networking/tuntap.rst, drivers/net/tun.c.
"""

from __future__ import annotations

import posix
from errno import EBUSY, EEXIST, ENODEV, ENOENT, ENXIO

from cni_py.errors import CouldNotRun, KernelRefused
from cni_py.journal import step
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS

KIND = "tun"
_FILE = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_TAP, _MULTI_QUEUE, _NO_PI, _VNET_HDR, _EXCL = 0x0002, 0x0100, 0x1000, 0x4000, 0x8000
_SELINUX, _LABEL_OF_NEXT_PROGRAM = "/sys/fs/selinux/enforce", "/proc/thread-self/attr/exec"


class Tap(Value):
    """Properties of a TAP device.

    ``pi``: packets begin with flags and protocol; ``vnet_hdr``: with virtio's header; ``owner``, ``group``: ids of those who
    may open it, None: root alone.
    """

    multi_queue: bool
    pi: bool
    vnet_hdr: bool
    owner: int | None
    group: int | None

    @property
    def words(self) -> list[str]:
        """Return the words for ``ip tuntap add``."""
        out = ["mode", "tap", *(["pi"] if self.pi else [])]
        out += ["vnet_hdr"] if self.vnet_hdr else []
        out += ["multi_queue"] if self.multi_queue else []
        out += ["user", str(self.owner)] if self.owner is not None else []
        return out + (["group", str(self.group)] if self.group is not None else [])


def tap_of(link: Link) -> Tap | None:
    """The properties of a link; None if it is no TAP device."""
    data = link.data
    if link.kind != KIND or data.get("IFLA_TUN_TYPE") != _TAP:
        return None
    return Tap(
        bool(data.get("IFLA_TUN_MULTI_QUEUE")),
        bool(data.get("IFLA_TUN_PI")),
        bool(data.get("IFLA_TUN_VNET_HDR")),
        data.get("IFLA_TUN_OWNER"),
        data.get("IFLA_TUN_GROUP"),
    )


def require() -> None:
    """Check that the kernel has TAP devices. Raises: NotAvailable, KernelRefused."""
    try:
        posix.close(_open())
    except OSError as error:
        raise KernelRefused(f'could not open "{_FILE}"', error.strerror or "", errno=error.errno or 0) from error


def _open() -> int:
    """Raises: NotAvailable, OSError."""
    try:
        return posix.open(_FILE, posix.O_RDWR | posix.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (ENOENT, ENXIO, ENODEV):
            raise
        from cni_py.kernel.features import missing

        raise missing("tun", f"{_FILE}: {error.strerror}") from error


def create(sandbox: NetNS, name: str, tap: Tap, label: str = "") -> None:
    """Create a persistent TAP device in the sandbox, down.

    Args:
        label: SELinux label of the process that makes it; without SELinux it means nothing.

    Raises: NotAvailable if the kernel has none; KernelRefused, EEXIST if the name is taken.
    """
    words = ["ip", "tuntap", "add", "dev", name, *tap.words]
    is_labelled = bool(label) and posix.access(_SELINUX, posix.F_OK)
    with step(*sandbox.enter, *words):
        sandbox.run(lambda: _create_labelled(words, label) if is_labelled else _create(name, tap))


def _create(name: str, tap: Tap) -> None:
    """Create it in the namespace of the calling thread. Raises: OSError, NotAvailable."""
    from fcntl import ioctl
    from struct import pack

    flags = _TAP | _EXCL | (0 if tap.pi else _NO_PI)
    flags |= (_MULTI_QUEUE if tap.multi_queue else 0) | (_VNET_HDR if tap.vnet_hdr else 0)
    fd = _open()
    try:
        # nothing is left of a device that is not persistent yet, should this be killed
        ioctl(fd, _TUNSETIFF, pack("16sH22x", name.encode(errors="surrogateescape"), flags))
        for request, number in ((_TUNSETOWNER, tap.owner), (_TUNSETGROUP, tap.group), (_TUNSETPERSIST, 1)):
            if number is not None:
                ioctl(fd, request, number)
    except OSError as error:
        if error.errno == EBUSY:
            raise OSError(EEXIST, posix.strerror(EEXIST)) from error
        raise
    finally:
        posix.close(fd)


def _create_labelled(words: list[str], label: str) -> None:
    """Let ``ip`` create it: the label is for the next program that this thread executes. Raises: OSError, KernelRefused."""
    from cni_py import program

    fd = posix.open(_LABEL_OF_NEXT_PROGRAM, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, label.encode())
    finally:
        posix.close(fd)
    ip = program.find_system(words[0])
    if ip is None:
        raise CouldNotRun("failed to find ip", "it creates the tap device with a SELinux label", "install iproute2")
    status, _, said = program.run_captured([ip, *words[1:]])
    if status:
        errno = EEXIST if "busy" in said else 0
        raise KernelRefused(f"failed to run command {' '.join(words)}: {program.describe(status)}", said, errno=errno)
