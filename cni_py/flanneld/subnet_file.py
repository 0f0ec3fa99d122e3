"""The subnet file, ``subnet.env``: written when the node is ready for pods, and kept as it is.

How it works. The file is compared with what it has to say when its inode, size or times are others than before, which is
checked when the kernel reports a change of it (node/file_watch.py). A file that was deleted or altered is written again. While
it cannot be, the node is not ready: ``/readyz`` says so. Where another process writes it again and again we back off.

Beside it is the journal of flanneld's changes (node/changes.py).

Source: flannel-io/flannel pkg/subnet/subnet.go (WriteSubnetFile).
"""

from __future__ import annotations

import os
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from cni_py import files, subnet_env
from cni_py.errors import CniError
from cni_py.flanneld.lease import Subnets
from cni_py.node.changes import because, finish
from cni_py.node.file_watch import FileWatch
from cni_py.node.log import error, info, warning
from cni_py.subnet_env import SubnetEnv

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.flanneld.network import NetworkConfig
    from cni_py.node.stop import Stop

RESTORED_COUNT, RESTORED_SECONDS = 10, 60.0
"""Times in this interval that the file is restored at once; then another process does the same, and we back off."""
BACK_OFF_SECONDS = 10.0
Stamp = tuple[int, ...]


def journal_path(subnet_file: str) -> str:
    """Return the journal of the flanneld that writes this file: of subnet.env ``journal``, of another FILE ``FILE.journal``."""
    directory, slash, name = subnet_file.rpartition("/")
    return f"{directory}{slash}{'journal' if name == 'subnet.env' else f'{name}.journal'}"


class SubnetFile:
    """Keeps the file at ``path``.

    Args:
        is_right: called with "" when the file is right again, and with the reason when it cannot be made so.
    """

    def __init__(self, path: str, content: bytes, is_right: Callable[[str], None]) -> None:
        self.path, self._content, self._is_right = path, content, is_right
        self._stamp: Stamp | None = None
        """Stamp of the file when it was right."""
        self._trouble = ""
        self._restored = deque([-RESTORED_SECONDS] * RESTORED_COUNT, maxlen=RESTORED_COUNT)

    def write(self) -> bool:
        """Write it. Returns: False for one that cannot be written, and is right as it is. Raises: CniError, OSError."""
        was_written = True
        try:
            files.make_directory(os.path.dirname(self.path) or ".", 0o755)
            files.write(self.path, self._content, 0o644)
        except (CniError, OSError) as fault:
            if not self._holds():
                raise
            warning(f"{self.path} is right as it is, but could not be written: {fault}")
            was_written = False
        self._stamp = stamp_of(self.path)
        return was_written

    def run(self, stop: Stop) -> None:
        """Restore it when another process deletes or changes it, until ``stop``."""
        with FileWatch(self.path) as watch:
            while watch.wait(stop, is_right=not self._trouble):
                if not self.look():
                    stop.wait(BACK_OFF_SECONDS)

    def look(self) -> bool:
        """Restore it if necessary. Returns: False if it was restored too often."""
        stamp = stamp_of(self.path)
        if stamp is not None and stamp == self._stamp and not self._trouble:
            return True
        if stamp is not None and self._holds():
            self._stamp = stamp
            self._set_trouble("")
            return True
        what = "deleted" if stamp is None else "changed"
        because(f"another process has {what} {self.path}")
        try:
            self.write()
            finish()
        except (CniError, OSError) as fault:
            self._set_trouble(f"{self.path} was {what} by another process and cannot be restored: {fault}")
            return True
        info(f"restored {self.path}, which another process had {what}")
        self._set_trouble("")
        is_often = monotonic() - self._restored[0] < RESTORED_SECONDS
        self._restored.append(monotonic())
        if is_often:
            error(f"another process changes {self.path} again and again: does another flanneld, or Go's, run on this node?")
        return not is_often

    def _set_trouble(self, reason: str) -> None:
        if reason != self._trouble:
            self._trouble = reason
            if reason:
                error(reason)
            self._is_right(reason)

    def _holds(self) -> bool:
        try:
            return files.read(self.path) == self._content
        except (CniError, OSError):
            return False


def stamp_of(path: str) -> Stamp | None:
    """Return what is another after each change of a file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def content_for(config: NetworkConfig, own: Subnets, mtu: int, ip_masq: bool) -> bytes:
    """Return what the file has to say."""
    return subnet_env.render(SubnetEnv(tuple(config.networks), tuple(own.each()), mtu, ip_masq)).encode()


def read_subnets(path: str) -> Subnets | None:
    """Return the subnets in a subnet file; None if there is no valid one."""
    try:
        env = subnet_env.read(path)
    except CniError:
        return None
    by_version: dict[int, Any] = {subnet.version: subnet for subnet in env.subnets}
    return Subnets(by_version.get(4), by_version.get(6))
