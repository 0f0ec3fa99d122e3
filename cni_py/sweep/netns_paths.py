"""Network namespaces of the host, each with the paths that open it."""

from __future__ import annotations

import posix

from cni_py.kernel.netns import NetNS
from cni_py.sweep import netns_scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_PATHS = 64


class NetnsPaths:
    """Network namespaces by inode."""

    def __init__(self) -> None:
        self._paths: dict[int, list[str]] = {}
        self._mount_points: dict[int, str] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._paths))

    def add(self, inode: int, path: str = "") -> None:
        """Add a path that opens the namespace; without one, only its existence."""
        paths = self._paths.setdefault(inode, [])
        # Several: before it is opened, a process may end, or another mount may hide this one.
        if path and len(paths) < _MAX_PATHS:
            paths.append(path)

    def add_mount_point(self, inode: int, mount_point: str) -> None:
        """Add a mount point, which is its name for people."""
        self._mount_points.setdefault(inode, mount_point)

    def forget(self, inode: int) -> None:
        """Remove a namespace whose last process has ended."""
        del self._paths[inode]

    def name(self, inode: int) -> str:
        """Return a name for messages."""
        return self._mount_points.get(inode) or next(iter(self._paths[inode]), f"net:[{inode}]")

    def names(self) -> dict[int, str]:
        return {inode: self.name(inode) for inode in self._paths}

    def open(self, inode: int) -> NetNS:
        """Open the namespace. Raises: OSError; FileNotFoundError if no path leads to it any more."""
        failure: OSError = FileNotFoundError(2, posix.strerror(2))
        for path in self._paths[inode]:
            try:
                fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
            except OSError as error:
                failure = failure if netns_scan.is_gone(error) else error
                continue
            if netns_scan.inode_of(fd) == inode:  # otherwise the path leads to another one now
                return NetNS(path, fd)
            posix.close(fd)
        raise failure

    def is_still_mounted(self, inode: int) -> bool:
        """Return whether it is mounted although no path leads to it: another mount hides it."""
        for directory in {path.partition("/root/")[0] for path in self._paths[inode] if "/root/" in path}:
            try:
                text = netns_scan.read_all(posix.open(f"{directory}/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC))
            except OSError:
                continue
            if any(number == inode for _, number, _ in netns_scan.nsfs_mounts(text)):
                return True
        return not self._paths[inode]  # seen in a mount namespace without a process, and could not be opened there
