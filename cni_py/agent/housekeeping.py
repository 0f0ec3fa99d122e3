"""The agent's work between calls: remove leaked resources, check the attachments that it created.

A sweep (sweep/sweep.py) runs on a timer and, after its grace time, when the kernel notifies that a network
namespace was deleted. Attachments that were created through this agent are CHECKed on a timer; a
difference is logged and counted, never repaired: the runtime owns the pod.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from cni_py import config, dispatch, files
from cni_py.agent.ipam_usage import IpamUsage
from cni_py.agent.log import log
from cni_py.attachment import record
from cni_py.errors import CniError
from cni_py.netlink.constants import NETLINK_ROUTE, RTNLGRP_NSID
from cni_py.netlink.socket import Listener
from cni_py.plugin_table import PLUGINS
from cni_py.spec.call import Call
from cni_py.spec.result import from_json
from cni_py.sweep import report as sweep_report
from cni_py.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.agent.metrics import AgentMetrics
    from cni_py.agent.serializer import Serializer

GRACE_SECONDS = 300.0
AGAIN_SECONDS = 1.0
MAX_ATTACHMENTS = 4096
CHECK_VERSION = "1.0.0"
_WITHOUT_CHECK = (1, 4)
"""Codes of a delegate that has no CHECK in the network's version."""
Key = tuple[str, str, str]
"""Container id, interface name, network."""


class Attachment:
    """The ADD of each plugin in an attachment's chain, and the result of the last one."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.result: dict[str, Any] = {}
        self.has_record = False

    @property
    def pod(self) -> str:
        """The pod's name, as the beginning of a line of the log; "" if it has none."""
        name = next((pod for call in self.calls.values() if (pod := record.pod_of(call))), "")
        return f"pod {name}, " if name else ""

    def check(self) -> None:
        """CHECK by each plugin. Raises: CniError."""
        previous = from_json(self.result).as_version(CHECK_VERSION)
        for call in self.calls.values():
            dispatch.run(call.replace(conf={**call.conf, "cniVersion": CHECK_VERSION, "prevResult": previous}))

    def was_deleted(self) -> bool:
        """Return True if another process has deleted it or its sandbox."""
        call = next(iter(self.calls.values()))
        has_record = record.is_remembered(call.container_id, call.ifname, call.network)
        return not files.exists(call.netns) or (self.has_record and not has_record)


class Housekeeper:
    """A thread of its own.

    Args:
        serializer: the agent's, so that a CHECK waits for earlier calls of the attachment.
        sweep_seconds, check_seconds: intervals; 0: never.
    """

    def __init__(self, metrics: AgentMetrics, serializer: Serializer, sweep_seconds: float, check_seconds: float) -> None:
        self.metrics, self.sweep_seconds, self.check_seconds = metrics, sweep_seconds, check_seconds
        self.usage = IpamUsage()
        self._serializer = serializer
        self._attachments: dict[Key, Attachment] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def attachments(self) -> int:
        """The number of attachments that were created through this agent."""
        with self._lock:
            return len(self._attachments)

    def record_call(self, call: Call, stdin: bytes, status: int, stdout: bytes) -> None:
        """Remember a call that was handled."""
        if call.verb not in ("ADD", "DEL", "STATUS"):
            return
        try:
            conf = dict(config.decode_for(PLUGINS[call.plugin].model, stdin))
        except CniError:
            return
        self.usage.record_call(call.replace(conf=conf))
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
        """CHECK every known attachment. Returns: the number of those that differ from what ADD configured."""
        with self._lock:
            known = list(self._attachments.items())
        differing = 0
        for key, attachment in known:
            error = None if self._stop.is_set() else self._difference(key, attachment)
            # Twice: a DEL that does not go through the agent may be deleting it at this moment.
            if error is not None and not self._stop.wait(AGAIN_SECONDS):
                error = self._difference(key, attachment)
            if error is not None:
                differing += 1
                self.metrics.count("attachments that differ")
                log(f"{attachment.pod}container {key[0]}, {key[1]}, network {key[2]}: {error}")
        return differing

    def _difference(self, key: Key, attachment: Attachment) -> CniError | None:
        """The error that CHECK returns. An attachment that was deleted is forgotten."""
        with self._serializer.serialized(f"{key[0]}:{key[1]}"):
            with self._lock:
                if self._attachments.get(key) is not attachment:
                    return None
            try:
                attachment.check()
            except CniError as error:
                if not attachment.was_deleted():
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
                    self.metrics.count("checks")
                    self._attempt(self.check_all)
                    check_at = monotonic() + self.check_seconds

    def _attempt(self, duty: Callable[[], object]) -> None:
        try:
            duty()
        except Exception:  # noqa: BLE001 — a bug in one duty must end neither the thread nor the other duty
            sys.excepthook(*sys.exc_info())

    def _sweep(self) -> None:
        self.metrics.count("sweeps")
        try:
            report = sweep.run(GRACE_SECONDS, dry_run=False)
        except (CniError, OSError) as error:
            log(f"sweep: {error}")
            return
        freed = sum(finding.outcome == sweep_report.REMOVED for finding in report.findings)
        if freed:
            self.metrics.count("repairs", freed)


def _drain(notices: Listener) -> bool:
    """Read all notifications. Returns: whether there were any."""
    found = False
    while notices.receive(0.0) != []:  # None: there were too many to queue
        found = True
    return found
