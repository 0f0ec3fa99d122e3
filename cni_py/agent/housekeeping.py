"""What the agent does between calls: free what belongs to no live namespace, check what it made.

A sweep (``sweep.py``) runs on a timer and, when the kernel tells that a network namespace has gone,
after its grace time. Attachments that were made through this agent are CHECKed on a timer; what
differs is logged and counted, never changed: the runtime owns the pod.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any

from cni_py import config, dispatch, files
from cni_py.agent.ipam_usage import Networks
from cni_py.agent.statistics import Statistics
from cni_py.attachment import record
from cni_py.errors import CniError
from cni_py.netlink.constants import NETLINK_ROUTE, RTNLGRP_NSID
from cni_py.netlink.socket import Listener
from cni_py.spec.call import Call
from cni_py.spec.result import from_json
from cni_py.sweep import report as sweep_report
from cni_py.sweep import sweep

GRACE_SECONDS = 300.0
AGAIN_SECONDS = 1.0
MAX_ATTACHMENTS = 4096
CHECK_VERSION = "1.0.0"
_WITHOUT_CHECK = (1, 4)  # a delegate that knows no CHECK in the network's version


class Attachment:
    """The calls that made an attachment, a plugin each, and the result of the last of them."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.result: dict[str, Any] = {}
        self.has_record = False

    def check(self) -> None:
        """CHECK by each plugin. Raises: CniError."""
        previous = from_json(self.result).as_version(CHECK_VERSION)
        for call in self.calls.values():
            dispatch.run(call.replace(conf={**call.conf, "cniVersion": CHECK_VERSION, "prevResult": previous}))

    def has_ended(self) -> bool:
        """Whether it was deleted by somebody else, or its sandbox has gone."""
        call = next(iter(self.calls.values()))
        has_record = record.is_remembered(call.container_id, call.ifname, call.network)
        return not files.exists(call.netns) or (self.has_record and not has_record)


class Caretaker:
    """A thread of its own; ``*_seconds`` 0 switches a duty off.

    ``serialized``: the agent's, so that our CHECK waits for the earlier calls of the attachment.
    """

    def __init__(
        self,
        statistics: Statistics,
        serialized: Callable[[str], AbstractContextManager[None]],
        sweep_seconds: float,
        check_seconds: float,
    ) -> None:
        self.statistics, self.sweep_seconds, self.check_seconds = statistics, sweep_seconds, check_seconds
        self.networks = Networks()
        self._serialized = serialized
        self._attachments: dict[tuple[str, str, str], Attachment] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def attachments(self) -> int:
        """How many attachments are known."""
        with self._lock:
            return len(self._attachments)

    def saw(self, call: Call, stdin: bytes, status: int, stdout: bytes) -> None:
        """Take note of a call that was answered."""
        if call.verb not in ("ADD", "DEL", "STATUS"):
            return
        try:
            conf = config.decode(stdin)
        except CniError:
            return
        self.networks.saw(call.replace(conf=conf))
        if status or call.verb == "STATUS":
            return
        key = (call.container_id, call.ifname, str(conf.get("name")))
        with self._lock:
            if call.verb == "DEL":
                self._attachments.pop(key, None)
            elif key in self._attachments or len(self._attachments) < MAX_ATTACHMENTS:
                attachment = self._attachments.setdefault(key, Attachment())
                conf.pop("prevResult", None)
                attachment.calls[call.plugin] = call.replace(verb="CHECK", conf=conf, sandbox_fd=-1, stderr_fd=2)
                attachment.result = config.decode(stdout)
                attachment.has_record = record.is_remembered(*key)

    def check_all(self) -> int:
        """CHECK every known attachment; answers how many differ from what was made."""
        with self._lock:
            known = list(self._attachments.items())
        differing = 0
        for key, attachment in known:
            error = None if self._stop.is_set() else self._difference(key, attachment)
            if error is not None and not self._stop.wait(AGAIN_SECONDS):  # a DEL without the agent may be at work
                error = self._difference(key, attachment)
            if error is not None:
                differing += 1
                self.statistics.count("attachments that differ")
                print(f"container {key[0]}, {key[1]}, network {key[2]}: {error}", file=sys.stderr, flush=True)
        return differing

    def _difference(self, key: tuple[str, str, str], attachment: Attachment) -> CniError | None:
        """What CHECK says of an attachment that has not ended; one that has is forgotten."""
        with self._serialized(f"{key[0]}:{key[1]}"):
            with self._lock:
                if self._attachments.get(key) is not attachment:
                    return None
            try:
                attachment.check()
            except CniError as error:
                if not attachment.has_ended():
                    return None if error.code in _WITHOUT_CHECK else error
                with self._lock:
                    self._attachments.pop(key, None)
        return None

    def _run(self) -> None:
        sweep_at = monotonic() + self.sweep_seconds
        check_at = monotonic() + self.check_seconds
        with Listener(NETLINK_ROUTE, 1 << RTNLGRP_NSID - 1) as notices:  # network namespaces that go: RTM_DELNSID
            while not self._stop.wait(min(1.0, self.check_seconds or 1.0)):
                now = monotonic()
                if _drain(notices):
                    sweep_at = min(sweep_at, now + GRACE_SECONDS)
                if self.sweep_seconds and now >= sweep_at:
                    self._attempt(self._sweep)
                    sweep_at = monotonic() + self.sweep_seconds
                if self.check_seconds and now >= check_at:
                    self.statistics.count("checks")
                    self._attempt(self.check_all)
                    check_at = monotonic() + self.check_seconds

    def _attempt(self, duty: Callable[[], object]) -> None:
        """A bug in one duty ends neither the thread nor the other duty."""
        try:
            duty()
        except Exception:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())

    def _sweep(self) -> None:
        self.statistics.count("sweeps")
        try:
            report = sweep.run(GRACE_SECONDS, dry_run=False)
        except (CniError, OSError) as error:
            print(f"sweep: {error}", file=sys.stderr, flush=True)
            return
        freed = sum(finding.outcome == sweep_report.REMOVED for finding in report.findings)
        if freed:
            self.statistics.count("repairs", freed)


def _drain(notices: Listener) -> bool:
    """Whether there were notifications; they are read away."""
    heard = False
    while notices.receive(0.0) != []:
        heard = True
    return heard
