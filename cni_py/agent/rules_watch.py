"""Restore the rules of live pods within seconds after another program has deleted them.

The kernel notifies of every deletion in our tables, with the process that made it. The agent's own deletions, those of DEL, are
left out; after those of another process only the attachments are compared that the deleted elements name, so that a DEL
without the agent costs as much with many pods as with few. Repairs back off as flanneld's do; a process that deletes the rules
again and again wins after ``LIMIT`` repairs: they stay deleted for ``TRUCE_SECONDS``, and the log says how to stop the agent,
and how to restore them.
"""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.agent.log import log
from cni_py.errors import CniError
from cni_py.packetfilter.monitor import NftWatch
from cni_py.plural import counted
from cni_py.sweep import restore

if TYPE_CHECKING:
    from collections.abc import Collection

    from cni_py.agent.metrics import AgentMetrics

TABLES = ("inet cni_py", "bridge cni_py")
SETTLE_SECONDS = 0.05
"""Changes come in bursts: after the first one, wait this long for more."""
LONGEST_PAUSE_SECONDS = 0.8
LIMIT, WITHIN_SECONDS, TRUCE_SECONDS = 8, 120.0, 600.0
"""Maximum number of repairs within a time; beyond it there is none for the last of the three."""
RESYNC_SECONDS = 300.0
"""Interval of comparing everything: no notification reports rules of legacy iptables."""


class RulesWatch:
    """A thread of its own."""

    def __init__(self, metrics: AgentMetrics) -> None:
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)
        self._repairs: list[float] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        try:
            watch = NftWatch(TABLES, only_deletions_but_by=_is_own_thread)
        except CniError as error:
            log(f"rules that another program deletes are not restored: {error}")
            return
        try:
            self._watch(watch)
        except CniError as error:
            log(f"rules that another program deletes are no longer restored: {error}")
        finally:
            watch.close()

    def _watch(self, watch: NftWatch) -> None:
        """Restore now, after each deletion, and at intervals. Raises: CniError."""
        pause, resync_at = SETTLE_SECONDS, monotonic()
        while not self._stop.is_set():
            was_notified = watch.wait(1.0)
            if was_notified:
                self._stop.wait(pause)
                watch.wait(0)  # the rest of the burst
            elif monotonic() < resync_at:
                continue
            resync_at = monotonic() + RESYNC_SECONDS
            comments = watch.take_comments()
            if self._restore(watch.culprit, comments) if was_notified else self._restore():
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            else:
                pause = max(pause / 2, SETTLE_SECONDS)

    def _restore(self, culprit: str = "", comments: Collection[str] | None = None) -> bool:
        """Restore the rules of the attachments with these comments (None: of all). Returns: whether anything was missing."""
        try:
            lost = restore.restore(comments=comments)
        except Exception:  # noqa: BLE001 — a bug must not end the thread
            sys.excepthook(*sys.exc_info())
            return False
        restored = [one for one in lost if one.outcome == restore.RESTORED]
        for one in lost:
            if one.outcome == restore.FAILED:
                log(f"container {one.container_id}, {one.ifname}, network {one.network}: {one.what} not restored: {one.why}")
        if restored:
            self._metrics.count("repairs", len(restored))
            pods = counted(len({(one.container_id, one.ifname, one.network) for one in restored}), "attachment")
            log(f"rules of {pods} restored; they were deleted{f' by {culprit}' if culprit else ''}")
            self._give_in_if_too_often(culprit)
        return bool(restored)

    def _give_in_if_too_often(self, culprit: str) -> None:
        now = monotonic()
        self._repairs = [at for at in self._repairs if now - at < WITHIN_SECONDS] + [now]
        if len(self._repairs) < LIMIT:
            return
        often = f"{LIMIT} times in {now - self._repairs[0]:.0f} s{f', last by {culprit}' if culprit else ''}"
        how = "To stop this permanently: cni-agent --no-repair. To restore them now: cni-py repair"
        log(f"rules were deleted {often}: none are restored for {TRUCE_SECONDS / 60:.0f} min. {how}")
        self._repairs = []
        self._stop.wait(TRUCE_SECONDS)


def _is_own_thread(number: int) -> bool:
    """Return whether this process has the thread; the kernel names the thread that sent the change."""
    return os.path.exists(f"/proc/self/task/{number}")
