"""Files of the copy: the host's, read-only, but for those in which plugins keep their state: these are copies in memory."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from errno import EINVAL, ENOENT

from cni_py.plan import system
from cni_py.plan.system import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RUN = "/run"
COPIED = ("/run/cni-py", "/run/flannel", "/run/cni", "/run/cni-state", "/run/flannel-cni", "/run/xtables.lock")
"""Parts of /run that are copied, beside the files that a configuration names. All else is hidden, sockets above all."""
NOT_COPIED = ("/run/cni-py/journal", "/run/cni-py/lab")
_KEPT_OPTIONS = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
_IDENTITY = re.compile(rb'"dev":(\d+),"ino":(\d+)(,"ctime":\d+)?')
_NETNS = re.compile(rb'"netns":"([^"\\]*)"')


def mount_proc() -> None:
    """Show the processes of the copy in /proc. No mount of the copy is seen on the host from here on. Raises: OSError."""
    system.mount("none", "/", "", MS_REC | MS_PRIVATE)
    system.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def isolate(directories: Iterable[str], files: Iterable[str]) -> None:
    """Make every mount read-only, and the state directories copies in memory.

    Args:
        directories: of state, which need not exist.
        files: below /run, that plugins read.

    Raises: OSError.
    """
    _mount_sysfs()
    run = os.open(RUN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    wanted = sorted({os.path.realpath(directory) for directory in directories})
    outside = [path for path in wanted if not _is_below(path, RUN)]
    outermost = [path for path in outside if not any(_is_below(path, other) for other in outside if other != path)]
    _make_read_only()
    for path in outermost:
        _make_writable(path)
    system.mount("tmpfs", RUN, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for path in (*COPIED, *wanted, *map(os.path.realpath, files)):
        if _is_below(path, RUN):
            _copy(f"/proc/self/fd/{run}{path.removeprefix(RUN)}", path)
    for name in ("netns", "lock"):
        os.makedirs(f"{RUN}/{name}", exist_ok=True)
    os.close(run)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _mount_sysfs() -> None:
    """Show the links of the copy in /sys; without it, where a container may not mount it, those of the host are shown."""
    with suppress(OSError):
        system.mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _make_read_only() -> None:
    """Make every mount read-only but /proc, whose kernel parameters are those of the namespace that a process is in.

    Of /proc, what is not the network's is read-only too. Raises: OSError.
    """
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    for line in lines:
        path, options = line.split(" ")[4:6]
        path = re.sub(r"\\(\d{3})", lambda of: chr(int(of[1], 8)), path)
        if _is_below(path, "/proc") or "ro" in options.split(","):
            continue
        kept = sum(flag for word, flag in _KEPT_OPTIONS.items() if word in options.split(","))
        try:
            system.mount("none", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)
        except OSError as error:
            if error.errno not in (EINVAL, ENOENT):  # the path leads to no mount: another one hides it
                raise
    system.mount("/proc/sys", "/proc/sys", "", MS_BIND)
    system.mount("/proc/sys/net", "/proc/sys/net", "", MS_BIND)  # first: it stays writable
    read_only = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    system.mount("none", "/proc/sys", "", read_only)
    with suppress(FileNotFoundError):
        system.mount("/proc/sysrq-trigger", "/proc/sysrq-trigger", "", MS_BIND)
        system.mount("none", "/proc/sysrq-trigger", "", read_only)


def _make_writable(path: str) -> None:
    """Mount a copy in memory on a directory. Raises: OSError."""
    if os.path.isdir(path):
        original = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.stat(path)
        system.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={status.st_mode & 0o7777:o}")
        _copy(f"/proc/self/fd/{original}/.", path)
        os.close(original)
        return
    above = os.path.dirname(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    if above == "/":
        raise FileNotFoundError(2, "no directory above it exists but the root", path)
    _shadow(above)


def _shadow(directory: str) -> None:
    """Put a directory in memory over this one, with each of its entries where it was: others can be created in it then."""
    original = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.stat(directory)
    system.mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={status.st_mode & 0o7777:o}")
    for entry in os.scandir(f"/proc/self/fd/{original}"):
        target = f"{directory}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
            continue
        if entry.is_dir():
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        system.mount(entry.path, target, "", MS_BIND | MS_REC)
    os.close(original)


def _copy(source: str, target: str) -> None:
    """Copy a file, or a directory with regular files and symbolic links; absence is success. Raises: OSError."""
    if target in NOT_COPIED:
        return
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.readlink(source), target)
    elif os.path.isfile(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(source, target)
    elif os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        shutil.copystat(source, target)
        for entry in os.scandir(source):
            _copy(entry.path, f"{target}/{entry.name}")


def adopt_namespaces(identities: Mapping[tuple[int, int], tuple[int, int]]) -> None:
    """Let records name the copies of their namespaces.

    Args:
        identities: device and inode of each namespace, and of its copy.
    """
    for directory, _, names in os.walk("/run/cni-py"):
        for name in names:
            path = f"{directory}/{name}"
            with suppress(OSError):
                _adopt(path, identities)


def _adopt(path: str, identities: Mapping[tuple[int, int], tuple[int, int]]) -> None:
    with open(path, "rb") as file:
        text = file.read()
    found, netns = _IDENTITY.search(text), _NETNS.search(text)
    copied = identities.get((int(found[1]), int(found[2]))) if found else None
    if found is None or netns is None or copied is None:
        return
    dev, inode = copied
    words = b'"dev":%d,"ino":%d' % (dev, inode)
    if found[3]:
        words += b',"ctime":%d' % os.stat(os.fsdecode(netns[1])).st_ctime_ns
    with open(path, "wb") as file:
        file.write(text[: found.start()] + words + text[found.end() :])
