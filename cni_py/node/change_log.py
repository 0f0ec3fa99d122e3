"""With ``-v=1`` the log has each change to the kernel and to files, as the command that would do the same.

The plugins write the same lines to the journal of an attachment (kernel/journal.py); flanneld's changes belong to none.
"""

from __future__ import annotations

from cni_py import journal
from cni_py.node import log as klog


class ChangeLog(journal.Journal):
    """A journal whose lines are the log's."""

    def write(self, line: str, seconds: float | None = None) -> None:
        klog.verbose(1, line if seconds is None else f"{line}  ({seconds * 1000:.2f} ms)")


def log_changes() -> None:
    """Those of the calling thread from now on, if somebody asked for them."""
    if klog.is_verbose(1):
        journal.use(ChangeLog("flanneld"))
