"""Repairs of rules: after each change by another process, and at intervals.

The kernel notifies of changes to nftables, and so to iptables-nft; legacy iptables has to be polled
(``-iptables-resync``), and so are the others, which costs nothing as long as nothing has changed.
"""

from __future__ import annotations

import select
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.errors import KernelRefused
from cni_py.node import log as klog
from cni_py.node.stop import Wake
from cni_py.packetfilter.monitor import NftWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.node.stop import Stop

SETTLE_SECONDS = 0.05
"""Changes come in bursts: after the first one, wait this long for more."""
LONGEST_PAUSE_SECONDS = 0.8


def run(repair: Callable[[str], bool], tables: Sequence[str], resync_seconds: float, stop: Stop) -> None:
    """Call ``repair`` now, after each change to one of the nftables tables, and every ``resync_seconds``.

    Args:
        repair: takes the program that made the change, if known; returns whether there was something to repair.
    """
    watch = _open(tables, resync_seconds)
    pause = SETTLE_SECONDS
    try:
        repair("")
        while (was_notified := _wait(watch, resync_seconds, stop)) is not None:
            if watch is None or not was_notified:
                repair("")
                continue
            stop.wait(pause)
            watch.wait(0)  # the rest of the burst
            # Back off while another process reverts each repair, or the two would take the machine and fill the log.
            # Our own changes are notified too: then nothing is left to repair, and the pause shrinks again.
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS) if repair(watch.culprit) else max(pause / 2, SETTLE_SECONDS)
    finally:
        if watch is not None:
            watch.close()


def _open(tables: Sequence[str], resync_seconds: float) -> NftWatch | None:
    try:
        return NftWatch(tables)
    except KernelRefused as refused:
        klog.warning(f"rules are checked only every {resync_seconds} s: {refused}")
        return None


def _wait(watch: NftWatch | None, resync_seconds: float, stop: Stop) -> bool | None:
    """Wait for a change (returns True), for the time to look anyway (False), or for ``stop`` (None)."""
    until = monotonic() + resync_seconds
    while not stop.is_set():
        left = until - monotonic()
        if left <= 0:
            return False
        if watch is None:
            stop.wait(left)
        elif _is_notified(watch, left, stop):
            return True
    return None


def _is_notified(watch: NftWatch, seconds: float, stop: Stop) -> bool:
    """Wait for a notification or ``stop``; whether one of the tables has changed."""
    with Wake() as wake, stop.calling(wake.set):
        select.select([watch.fileno(), wake.fileno()], [], [], seconds)
    return watch.wait(0)
