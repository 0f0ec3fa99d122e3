"""The warm agent: the plugins' work in a process that has everything loaded.

``client.py`` sends a call over a Unix socket (``protocol.py`` is the contract); a thread of a bounded
pool handles it with ``engine.handle()``, the function that a one-shot call uses, under the same
file locks. Agent, one-shot calls and Go plugins can be mixed at any time.

Owns: ``/run/cni-py/agent.sock`` (0600 in a directory 0700; the peer must be root). How it works: the
main thread accepts (listener.py), workers (workers.py) read a request (request.py), handle it and reply; calls of one
attachment are handled in order (serializer.py), and an ADD or a DEL not while another process is handling one
(``AttachmentLock``). On SIGTERM running calls are finished and waiting ones are REFUSED, on
which their client does the work itself: an agent can be replaced at any time.
"""

from __future__ import annotations

import os
import resource
import select
from contextlib import suppress
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from cni_py import __version__, config, engine, protocol
from cni_py.agent import request as requests
from cni_py.agent.housekeeping import Housekeeper
from cni_py.agent.log import log
from cni_py.agent.metrics import AgentMetrics
from cni_py.agent.rules_watch import RulesWatch
from cni_py.agent.serializer import Serializer
from cni_py.agent.workers import MAX_WORKERS, WorkerPool
from cni_py.attachment import record
from cni_py.attachment.lock import AttachmentLock
from cni_py.errors import CniError
from cni_py.jsontext import encode
from cni_py.kernel.deletion import wait_for_deletions
from cni_py.plugin_table import PLUGINS
from cni_py.spec.call import parse as parse_call
from cni_py.spec.versions import CURRENT
from cni_py.sweep import restore, sweep

if TYPE_CHECKING:
    import socket

    from cni_py.agent.listener import Listener
    from cni_py.agent.request import Request

DESCRIPTORS_OF_A_CALL = 16


class Agent:
    """Handles calls until :meth:`stop`."""

    def __init__(
        self, listener: Listener, sweep_seconds: float = 0.0, check_seconds: float = 0.0, repairs: bool = False
    ) -> None:
        self.metrics = AgentMetrics()
        self.metrics.registry.before_exposition(self._update_metrics)
        self._listener = listener
        self._serializer = Serializer()
        self._workers = WorkerPool(self._handle)
        self._housekeeper = Housekeeper(self.metrics, self._serializer, sweep_seconds, check_seconds)
        self._rules_watch = RulesWatch(self.metrics) if repairs else None
        self._own_namespaces = requests.own_namespaces()
        self._stopping = False
        self._last_call = monotonic()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def stop(self) -> None:
        """Accept no new calls: :meth:`serve` returns. Safe in a signal handler."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._wake_write, b"s")

    def serve(self, idle_exit_seconds: float = 0.0, tick_seconds: float = 2.0) -> None:
        """Accept calls until stopped, or idle for ``idle_exit_seconds`` (0: without that limit)."""
        self._housekeeper.start()
        if self._rules_watch:
            self._rules_watch.start()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        tick_seconds = min(tick_seconds, idle_exit_seconds or tick_seconds)
        while not self._stopping:
            ready = [fd for fd, _ in poll.poll(tick_seconds * 1000)]
            if self._listener.fileno() in ready:
                self._accept()
            elif idle_exit_seconds and self._workers.busy == 0 and monotonic() - self._last_call > idle_exit_seconds:
                break
            elif not ready:
                self._listener.restore()

    def leave(self) -> None:
        """Refuse waiting calls, finish running ones, wait for pending deletions in the kernel."""
        self._stopping = True
        if self._listener.path:
            self._listener.remove()
            self._accept()  # the clients in its queue: closing it would break their connections
            self._listener.close()
        self._workers.finish()
        self._housekeeper.stop()
        if self._rules_watch:
            self._rules_watch.stop()
        wait_for_deletions()

    def report(self) -> dict[str, object]:
        """The report of ``cni-py status``."""
        addresses = [usage.as_json() for usage in self._housekeeper.usage.range_sets()]
        head = {"version": __version__, "pid": os.getpid(), **self._gauges(), "addresses": addresses}
        return head | self.metrics.as_json()

    def _update_metrics(self) -> None:
        self.metrics.set_gauges(self._gauges())
        self.metrics.set_usage(self._housekeeper.usage.range_sets())

    def _gauges(self) -> dict[str, int]:
        return {
            "attachments": self._housekeeper.attachments,
            "calls_in_progress": self._workers.busy,
            "workers": len(self._workers),
        }

    # ---- calls --------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept every client that is waiting."""
        try:
            while (connection := self._listener.accept()) is not None:
                self._last_call = monotonic()
                self._workers.submit(connection)
        except OSError as error:
            log(f"could not accept a connection: {error}")
            self.metrics.count("accept failures")

    def _handle(self, connection: socket.socket) -> None:
        """Reply to one client."""
        descriptors: list[int] = []
        try:
            self._answer(connection, descriptors)
        except (OSError, protocol.FrameError) as error:
            self.metrics.count("broken connections")
            log(f"a connection broke: {error}")
        finally:
            for fd in descriptors:
                os.close(fd)

    def _answer(self, connection: socket.socket, descriptors: list[int]) -> None:
        """Raises: FrameError, OSError."""
        connection.settimeout(protocol.REQUEST_SECONDS)
        if protocol.peer_uid(connection) != 0:
            raise protocol.FrameError("the peer is not root")
        request = requests.read(connection, descriptors, self._own_namespaces)
        if request is not None and request.is_status:
            connection.sendall(protocol.pack_reply(protocol.DONE, 0, encode(self.report())))
        elif request is None or not request.is_acceptable or self._is_short_of_descriptors(connection):
            connection.sendall(protocol.pack_reply(protocol.REFUSED))
        else:
            self._run(connection, request, descriptors)

    def _is_short_of_descriptors(self, connection: socket.socket) -> bool:
        """Return True if the calls in progress may run out of descriptors."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # The kernel gives the lowest free number, so that all below the newest connection's are in use.
        return connection.fileno() + min(self._workers.busy, MAX_WORKERS) * DESCRIPTORS_OF_A_CALL > limit

    def _run(self, connection: socket.socket, request: Request, descriptors: list[int]) -> None:
        """Parse the call, wait for earlier ones of the attachment, do it. Raises: FrameError, OSError."""
        try:
            call = parse_call(request.plugin, request.environ, request.launcher)
        except CniError as error:
            connection.sendall(protocol.pack_reply(protocol.DONE, 1, encode(error.as_json(CURRENT))))
            return
        if call.plugin not in PLUGINS:
            raise protocol.FrameError(f'unknown plugin "{call.plugin}"')
        attachment = f"{call.container_id}:{call.ifname}" if call.container_id else ""
        call = call.replace(stderr_fd=descriptors[0], sandbox_fd=descriptors[1] if len(descriptors) > 1 else -1)
        with self._serializer.serialized(attachment), AttachmentLock(call):
            # Checked only here: the client then works alone, but not before the running call of this attachment has ended.
            if self._stopping:
                connection.sendall(protocol.pack_reply(protocol.REFUSED))
                return
            connection.sendall(protocol.pack_reply(protocol.BEGUN))
            began = perf_counter()
            sweep.before_first_call(call, request.stdin)
            status, stdout = engine.handle(call, request.stdin)
            if status == 0 and record.may_have_lost_rules(call):
                restore.of_others()
            code = config.decode(stdout).get("code", 1) if status and stdout else status
            self.metrics.count_call(call.plugin, call.verb, code, perf_counter() - began)
            self._housekeeper.record_call(call, request.stdin, status, stdout)
            connection.sendall(protocol.pack_reply(protocol.DONE, status, stdout))
