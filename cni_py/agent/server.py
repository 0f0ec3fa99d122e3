"""The warm agent: the plugins' work in a process that has everything loaded.

``client.py`` sends a call over a Unix socket (``protocol.py`` is the contract); a thread of a bounded
pool answers it with ``engine.handle()``, the function that a call in one shot uses, under the same
file locks. Agent, one-shot calls and Go plugins can be mixed at any time.

Owns: ``/run/cni-py/agent.sock`` (0600 in a folder 0700; the peer must be root). How it works: the
main thread accepts, workers read, check and answer; calls of one attachment are answered in the
order in which they came, and an ADD or a DEL not while another process has one at work
(``AttachmentLock``). At SIGTERM what runs is finished and what is waiting gets REFUSED, with
which its client does the work itself: an agent can be replaced at any time.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from time import monotonic, perf_counter, sleep

from cni_py import __version__, config, engine, protocol
from cni_py.agent import metrics
from cni_py.agent.housekeeping import Caretaker
from cni_py.agent.ipam_usage import as_prometheus
from cni_py.agent.statistics import Statistics
from cni_py.agent.warm_up import warm_up
from cni_py.attachment.lock import AttachmentLock
from cni_py.errors import CniError
from cni_py.jsontext import encode
from cni_py.kernel.deletion import wait_for_deletions
from cni_py.plugin_table import PLUGINS
from cni_py.spec import call
from cni_py.spec.versions import CURRENT
from cni_py.sweep import sweep

MAX_WORKERS = 64
BACKLOG = 1024
DESCRIPTORS_OF_A_CALL = 16
LISTEN_FDS_START = 3
Identity = tuple[int, int]
"""Device and inode of a file."""


class Agent:
    """Answers calls that come in on a listening socket until :meth:`stop`.

    ``path`` is the socket's, "" where somebody else made it (socket activation) and will keep it.
    """

    def __init__(self, listener: socket.socket, path: str, sweep_seconds: float = 0.0, check_seconds: float = 0.0) -> None:
        self.listener, self.path = listener, path
        self._socket = identity_of(path)
        self._former_sockets: set[Identity | None] = set()
        self.statistics = Statistics()
        self.caretaker = Caretaker(self.statistics, self.serialized, sweep_seconds, check_seconds)
        self._own_namespaces = own_namespaces()
        self._waiting: SimpleQueue[socket.socket | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = 0
        self._order: dict[str, deque[threading.Event]] = {}
        self._stopping = False
        self._last_call = monotonic()
        self._spare_fd = os.open("/dev/null", os.O_RDONLY)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def stop(self) -> None:
        """Accept nothing new: :meth:`serve` returns. Safe in a signal handler."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._wake_write, b"s")

    def serve(self, idle_exit_seconds: float = 0.0, tick_seconds: float = 2.0) -> None:
        """Accept and hand out until stopped, or idle for ``idle_exit_seconds`` (0: for ever)."""
        self.caretaker.start()
        self.listener.setblocking(False)
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        tick_seconds = min(tick_seconds, idle_exit_seconds or tick_seconds)
        while not self._stopping:
            ready = [fd for fd, _ in poll.poll(tick_seconds * 1000)]
            if self.listener.fileno() in ready:
                self._accept()
            elif idle_exit_seconds and self.busy == 0 and monotonic() - self._last_call > idle_exit_seconds:
                break
            elif not ready:
                self._keep_socket()

    @property
    def busy(self) -> int:
        """Calls that wait or run."""
        with self._lock:
            return self._busy

    def report(self) -> dict[str, object]:
        """What ``cni-py status`` shows."""
        addresses = [pool.as_json() for pool in self.caretaker.networks.pools()]
        head = {"version": __version__, "pid": os.getpid(), **self._gauges(), "addresses": addresses}
        return head | self.statistics.as_json()

    def metrics(self) -> str:
        """The same as Prometheus text."""
        return self.statistics.as_prometheus(self._gauges()) + as_prometheus(self.caretaker.networks.pools())

    def _gauges(self) -> dict[str, int]:
        return {"attachments": self.caretaker.attachments, "calls_in_progress": self.busy, "workers": len(self._workers)}

    # ---- accepting ----------------------------------------------------------------------------

    def _accept(self) -> None:
        """Take every connection that waits."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log(f"could not accept a connection: {error}")
                self.statistics.count("accept failures")
                self._turn_away()
                return
            self._last_call = monotonic()
            with self._lock:
                self._busy += 1
                more = self._busy > len(self._workers) < MAX_WORKERS
            if more:
                self._hire()
            self._waiting.put(connection)

    def _turn_away(self) -> None:
        """All descriptors are in use: with the spare one accept a connection and close it; its client works alone."""
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1
        try:
            self.listener.accept()[0].close()
        except OSError:  # a call was quicker, or it is the whole machine that has none left: the client waits on
            sleep(0.02)
        with suppress(OSError):
            self._spare_fd = os.open("/dev/null", os.O_RDONLY)

    def _hire(self) -> None:
        """One worker more; where no thread can be had, those that are there have to do."""
        worker = threading.Thread(target=self._work, name=f"call-{len(self._workers)}", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:
            log(f"{len(self._workers)} workers: {error}")
        else:
            self._workers.append(worker)

    def _keep_socket(self) -> None:
        """Make the socket anew where somebody removed it or mounted over its folder; another agent's is left alone.

        One that we gave up and that is there again (unmounted) has nobody who listens.
        """
        there = identity_of(self.path)
        if not self.path or there == self._socket or there not in (None, *self._former_sockets):
            return
        log(f"{self.path} has gone: making it again")
        with suppress(OSError):
            fresh = listen(self.path)
            os.dup2(fresh.fileno(), self.listener.fileno(), inheritable=False)
            fresh.close()
            self.listener.setblocking(False)
            self._former_sockets.add(self._socket)
            self._socket = identity_of(self.path)

    def leave(self) -> None:
        """Refuse what waits, finish what runs, wait for what the kernel still frees."""
        self._stopping = True
        if self.path:
            if identity_of(self.path) == self._socket:
                with suppress(OSError):
                    os.unlink(self.path)
            self._accept()
            self.listener.close()  # who comes to it now is told at once
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()
        self.caretaker.stop()
        wait_for_deletions()

    # ---- answering ----------------------------------------------------------------------------

    def _work(self) -> None:
        while (connection := self._waiting.get()) is not None:
            try:
                with connection:
                    self._answer(connection)
            except (OSError, protocol.FrameError) as error:
                self.statistics.count("broken connections")
                log(f"a connection broke: {error}")
            except Exception:  # noqa: BLE001 — a bug: this client's connection ends, the others' do not
                sys.excepthook(*sys.exc_info())
            finally:
                with self._lock:
                    self._busy -= 1

    def _answer(self, connection: socket.socket) -> None:
        """Read a request; refuse it, or do it and reply. Raises: FrameError, OSError."""
        connection.settimeout(protocol.REQUEST_SECONDS)
        if peer_uid(connection) != 0:
            raise protocol.FrameError("the peer is not root")
        descriptors: list[int] = []
        try:
            request = self._read(connection, descriptors)
            if request is None:
                connection.sendall(protocol.pack_reply(protocol.REFUSED))
            elif request[0] == protocol.STATUS_REQUEST:
                connection.sendall(protocol.pack_reply(protocol.DONE, 0, encode(self.report())))
            else:
                self._run(connection, *request, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)

    def _read(self, connection: socket.socket, descriptors: list[int]) -> tuple[str, str, dict[str, str], bytes] | None:
        """Plugin, launcher, environment and standard input; None where the client has to do it itself.

        What was received as descriptors is added to ``descriptors``, whatever happens. Raises: FrameError, OSError.
        """
        data, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_LEN(4 * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += struct.unpack(f"={len(content) // 4}i", content[: len(content) // 4 * 4])
        data = protocol.read_exactly(connection, protocol.REQUEST_HEAD, data)
        try:
            announced, head, stdin, namespaces = protocol.unpack_request_head(data)
        except protocol.FrameError as error:
            log(f"refused: {error}")
            return None
        stdin_at = protocol.REQUEST_HEAD + head
        data = protocol.read_exactly(connection, stdin_at + stdin, data)
        plugin, launcher, environ = protocol.unpack_head(data[protocol.REQUEST_HEAD : stdin_at])
        body = data[stdin_at : stdin_at + stdin]
        if plugin == protocol.STATUS_REQUEST:
            return plugin, launcher, environ, body
        if namespaces != self._own_namespaces or announced != len(descriptors) or not descriptors or self._is_short(connection):
            return None
        return plugin, launcher, environ, body

    def _is_short(self, connection: socket.socket) -> bool:
        """Whether the calls in progress may run out of descriptors; all below the newest one's number are in use."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return connection.fileno() + min(self.busy, MAX_WORKERS) * DESCRIPTORS_OF_A_CALL > limit

    def _run(
        self,
        connection: socket.socket,
        plugin: str,
        launcher: str,
        environ: dict[str, str],
        stdin: bytes,
        descriptors: list[int],
    ) -> None:
        """Parse the call, wait for its turn, do it. Raises: FrameError, OSError."""
        try:
            this = call.parse(plugin, environ, launcher)
        except CniError as error:
            connection.sendall(protocol.pack_reply(protocol.DONE, 1, encode(error.as_json(CURRENT))))
            return
        if plugin not in PLUGINS:
            raise protocol.FrameError(f'"{plugin}" is no plugin')
        this = this.replace(stderr_fd=descriptors[0], sandbox_fd=descriptors[1] if len(descriptors) > 1 else -1)
        with self.serialized(f"{this.container_id}:{this.ifname}" if this.container_id else ""), AttachmentLock(this):
            if self._stopping:  # its client does it, but not before what runs for this attachment has ended
                connection.sendall(protocol.pack_reply(protocol.REFUSED))
                return
            connection.sendall(protocol.pack_reply(protocol.BEGUN))
            began = perf_counter()
            sweep.before_first_call(this, stdin)
            status, stdout = engine.handle(this, stdin)
            code = config.decode(stdout).get("code", 1) if status and stdout else status
            self.statistics.count_call(plugin, this.verb, code, perf_counter() - began)
            self.caretaker.saw(this, stdin, status, stdout)
            connection.sendall(protocol.pack_reply(protocol.DONE, status, stdout))

    @contextmanager
    def serialized(self, attachment: str) -> Iterator[None]:
        """Wait until every earlier call of this attachment has been answered; "" waits for none."""
        mine = threading.Event()
        with self._lock:
            queue = self._order.setdefault(attachment, deque()) if attachment else deque()
            before = queue[-1] if queue else None
            queue.append(mine)
        try:
            if before is not None:
                before.wait()
            yield
        finally:
            mine.set()
            with self._lock:
                queue.remove(mine)
                if attachment and not queue:
                    del self._order[attachment]


def own_namespaces() -> tuple[int, int, int, int]:
    """Device and inode of the network and the mount namespace that this process is in."""
    net, mount = os.stat("/proc/self/ns/net"), os.stat("/proc/self/ns/mnt")
    return net.st_dev, net.st_ino, mount.st_dev, mount.st_ino


def peer_uid(connection: socket.socket) -> int:
    """The user of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``: 0600, in a folder 0700. A dead agent's socket is replaced. Raises: OSError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    listener.bind(temporary)
    os.chmod(temporary, 0o600)
    listener.listen(BACKLOG)
    os.rename(temporary, path)
    return listener


def identity_of(path: str) -> Identity | None:
    """None where there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def log(line: str) -> None:
    """To standard error, which a service manager keeps."""
    print(line, file=sys.stderr, flush=True)


# ---- the command ------------------------------------------------------------------------------


def main() -> int:
    """``cni-agent``: see ``cni-agent --help`` and docs/agent.md. Answers its exit status."""
    options = parse_options()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        inherited = inherited_listener()
        listener, path = (inherited, "") if inherited else (listen(options.socket), options.socket)
    except OSError as error:
        log(f"cni-agent: cannot listen on {options.socket}: {error.strerror}; it needs root and a folder that can be written")
        return 1
    warm_up()
    agent = Agent(listener, path, options.sweep_seconds, options.check_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    signal.signal(signal.SIGHUP, lambda *_: log("nothing to reload: configurations come with each call"))
    if options.metrics:
        try:
            metrics.serve(options.metrics, agent.metrics)
        except OSError as error:  # pods matter more
            log(f"no metrics on {options.metrics}: {error.strerror}")
    print(f"ready {path or 'on the socket that was handed over'}, pid {os.getpid()}", flush=True)
    notify("READY=1")
    agent.serve(options.idle_exit)
    notify("STOPPING=1")
    agent.leave()
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cni-agent",
        description="Answers the calls of cni-py's plugins in a process that has everything loaded."
        " Optional: without it the plugins work alone.",
        epilog="Prints one line, 'ready …', when it accepts calls. SIGTERM: finish what runs, refuse what waits, exit.",
    )
    parser.add_argument("--socket", default=protocol.SOCKET_PATH, metavar="PATH", help="where to listen (%(default)s)")
    parser.add_argument(
        "--idle-exit", type=float, default=0.0, metavar="SECONDS", help="exit after this time without a call (never)"
    )
    parser.add_argument(
        "--sweep-seconds",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how often to free what belongs to no live namespace; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--check-seconds",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how often to CHECK the attachments that it made; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--metrics",
        type=metrics.parse_address,
        metavar="ADDRESS",
        help="Prometheus text on unix:/PATH or on a loopback 127.0.0.1:PORT (off)",
    )
    parser.add_argument("--version", action="version", version=f"cni-agent {__version__}")
    return parser.parse_args()


def inherited_listener() -> socket.socket | None:
    """The listening socket that a service manager hands over (LISTEN_FDS), None where there is none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=LISTEN_FDS_START)
    listener.set_inheritable(False)
    return listener


def notify(state: str) -> None:
    """Tell a service manager (sd_notify(3)); without one nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
