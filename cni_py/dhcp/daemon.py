"""``dhcp daemon``: keeps the leases of pods while they live: renews, rebinds, releases.

Its options: daemon_options.py.

How it works. A thread for each request, and one for each lease, which sleeps until the lease has to be extended. Leases are in
memory, and on disk for the daemon after a restart (``saved.py``). No socket in a sandbox stays open, so none keeps a deleted
sandbox alive; its lease is forgotten when it has to be extended.

Source: containernetworking/plugins plugins/ipam/dhcp/daemon.go, lease.go.
"""

from __future__ import annotations

import os
import posix
import signal
import socket
import stat
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from ipaddress import IPv4Network

from cni_py import config, files
from cni_py.dhcp import daemon_options, options, wire
from cni_py.dhcp import packet as dhcp
from cni_py.dhcp.lease import Client, Lease, NotAnswered, Timing, acquire, extend, release
from cni_py.dhcp.port import set_down
from cni_py.dhcp.saved import Saved, Store
from cni_py.errors import CheckFailed, CniError, InvalidConfig, InvalidNetNS, NotAvailable, TryAgainLater, reason_of
from cni_py.journal import printable
from cni_py.jsontext import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

FIRST_PASSED_FD = 3
SHORTAGES = (EMFILE, ENFILE, ENOBUFS, ENOMEM)
SMALLEST_PAUSE_SECONDS = 1.0
CALL_SECONDS = 60.0
"""Time that a client has to send its request."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of the command."""

    socket_path: str = wire.SOCKET
    pid_file: str = ""
    host_prefix: str = ""
    timing: Timing = field(default_factory=Timing)


def say(text: str) -> None:
    """Write a line of the log: what a server or a pod named cannot steer the terminal that shows it."""
    print(printable(text), file=sys.stderr, flush=True)


# ---- leases -----------------------------------------------------------------------------------


class Kept:
    """A lease that is kept, by a thread of its own until it is given back or has ended."""

    def __init__(self, saved: Saved, timing: Timing, store: Store) -> None:
        self.client, self.lease, self.sandbox, self._timing, self._store = (
            saved.client,
            saved.lease,
            saved.sandbox,
            timing,
            store,
        )
        self._wake, self._is_over, self._lock = threading.Event(), False, threading.Lock()
        self._save(saved.lease)
        threading.Thread(target=self._keep, name=self.client.identity, daemon=True).start()

    def stop(self, *, is_kept: bool = False) -> None:
        """End the thread; the lease stays the caller's. ``is_kept``: on disk, for the next daemon."""
        with self._lock:  # the thread must not save it afterwards
            self._is_over = True
            if not is_kept:
                self._store.remove(self.client.identity)
        self._wake.set()

    def _save(self, lease: Lease) -> None:
        with self._lock:
            if not self._is_over:
                self.lease = lease
                self._store.save(Saved(self.client, lease, self.sandbox))

    def look(self) -> None:
        """Let the thread look at its lease now."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        return not self._is_over and time.monotonic() < self.lease.expiry

    def _keep(self) -> None:
        while not self._is_over:
            pause = self._next() - time.monotonic()
            if pause > 0 and self._wake.wait(pause):
                self._wake.clear()
                continue
            try:
                self._extend()
            except Exception as error:  # noqa: BLE001 — a bug must not end the thread: the lease would silently end
                say(f"{self.client.identity}: {type(error).__name__}: {error}")
                self._wake.wait(SMALLEST_PAUSE_SECONDS)

    def _next(self) -> float:
        """The time of the next attempt to extend the lease."""
        now, lease = time.monotonic(), self.lease
        if now < lease.renewal:
            return lease.renewal
        until = lease.rebinding if now < lease.rebinding else lease.expiry
        return min(until, self._tried + max((until - self._tried) / 2, SMALLEST_PAUSE_SECONDS))

    _tried = 0.0

    def _extend(self) -> None:
        now = time.monotonic()
        self._tried = now
        if _identity(self.client.netns) != self.sandbox:
            say(f"{self.client.identity}: its sandbox no longer exists: forgotten")
            self.stop()
            return
        if now >= self.lease.expiry:
            self._end()
            return
        rebind = now >= self.lease.rebinding
        left = self.lease.expiry - now
        timing = replace(self._timing, timeout=min(self._timing.timeout, max(left / 4, 0.5)))
        try:
            lease = extend(self.client, self.lease, timing, rebind=rebind)
        except InvalidNetNS as error:
            say(f"{self.client.identity}: {error}: forgotten")
            self.stop()
        except NotAnswered as error:
            say(f"{self.client.identity}: {'rebinding' if rebind else 'renewal'} failed, retrying: {error}")
        except CniError as error:
            say(f"{self.client.identity}: {error}")
            if isinstance(error, NotAvailable):  # the interface was deleted
                self.stop()
        else:
            if lease.address != self.lease.address:
                say(f"{self.client.identity}: the server gave another address: {lease.address}, not {self.lease.address}")
            say(f"{self.client.identity}: lease of {lease.address} extended")
            self._save(lease)

    def _end(self) -> None:
        say(f"{self.client.identity}: the lease of {self.lease.address} has ended: interface {self.client.ifname} is set down")
        self.stop()
        try:
            set_down(self.client.netns, self.client.ifname)
        except CniError as error:
            say(f"{self.client.identity}: {error}")


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


# ---- requests ---------------------------------------------------------------------------------


class Daemon:
    """Leases by client identity, and what requests do with them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store = Store(settings.socket_path, say, settings.host_prefix)
        self._leases: dict[str, Kept] = {}
        self._pending: dict[str, set[threading.Event]] = {}
        self._lock = threading.Lock()

    def resume(self) -> None:
        """Keep the leases that the daemon before this one had, of sandboxes that exist."""
        for saved in self._store.load():
            if _identity(saved.client.netns) == saved.sandbox:
                say(f"{saved.client.identity}: lease of {saved.lease.address} found")
                self._leases[saved.client.identity] = Kept(saved, self.settings.timing, self._store)
            else:
                self._store.remove(saved.client.identity)

    def handle(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Returns: the result. Raises: CniError."""
        verbs = {"ADD": self.add, "DEL": self.delete, "CHECK": self.check, "GC": self.gc, "STATUS": self.status}
        verb = verbs.get(str(request.get("verb")))
        if verb is None:
            raise InvalidConfig(f"unknown verb {request.get('verb')!r}")
        return verb(request)

    def add(self, request: dict[str, Any]) -> dict[str, Any]:
        """Acquire a lease; one that the same attachment still has is replaced. Raises: TryAgainLater if DEL comes meanwhile."""
        client = self._client(request)
        before, is_cancelled = self._take(client.identity), threading.Event()
        if before is not None:
            before.stop()
        with self._lock:
            self._pending.setdefault(client.identity, set()).add(is_cancelled)
        try:
            lease = acquire(client, self.settings.timing, lambda seconds: _sleep(is_cancelled, seconds))
        finally:
            with self._lock:
                self._pending[client.identity].discard(is_cancelled)
        with self._lock:
            if not is_cancelled.is_set():
                saved = Saved(client, lease, _identity(client.netns))
                self._leases[client.identity] = Kept(saved, self.settings.timing, self._store)
        if is_cancelled.is_set():  # the plugin that asked was killed, and the runtime has called DEL
            release(client, lease)
            raise TryAgainLater(f'the attachment "{client.identity}" was deleted while its lease was acquired')
        say(f"{client.identity}: lease of {lease.address} acquired")
        return described(lease)

    def delete(self, request: dict[str, Any]) -> None:
        """Release the lease, or give up acquiring it; success if there is none."""
        with self._lock:
            for is_cancelled in self._pending.get(identity_of(request), ()):
                is_cancelled.set()
        self._release(identity_of(request))

    def check(self, request: dict[str, Any]) -> None:
        """Look for the lease. Raises: CheckFailed."""
        kept = self._leases.get(identity_of(request))
        if kept is None or not kept.is_alive:
            raise CheckFailed(
                f'no lease of "{identity_of(request)}"', "expected a lease, found none", "delete the pod and create it again"
            )
        addresses = request.get("addresses")
        if isinstance(addresses, list) and addresses and str(kept.lease.address) not in addresses:
            raise CheckFailed(
                f'the lease of "{identity_of(request)}" is of another address',
                f"expected {', '.join(map(str, addresses))}, found {kept.lease.address}",
                "delete the pod and create it again",
            )
        kept.look()

    def status(self, request: dict[str, Any]) -> None:
        """Do nothing: the reply shows which daemon this is."""

    def gc(self, request: dict[str, Any]) -> None:
        """Release the leases of a network's attachments that are not listed; without a list, of those without a sandbox."""
        network, keep = request.get("network"), request.get("keep")
        with self._lock:
            leases = dict(self._leases)
        for identity, kept in leases.items():
            parts = identity.split("/")
            if len(parts) != 3 or parts[1] != network:
                continue
            is_gone = _identity(kept.client.netns) != kept.sandbox
            if is_gone if keep is None else [parts[0], parts[2]] not in keep:
                self._release(identity)

    def stop_all(self) -> None:
        """Stop keeping every lease; none is given back: the pods go on with them, and the next daemon keeps them."""
        with self._lock:
            for kept in self._leases.values():
                kept.stop(is_kept=True)

    def _take(self, identity: str) -> Kept | None:
        with self._lock:
            return self._leases.pop(identity, None)

    def _release(self, identity: str) -> None:
        kept = self._take(identity)
        if kept is None:
            return
        kept.stop()
        if (not kept.is_alive and time.monotonic() >= kept.lease.expiry) or _identity(kept.client.netns) != kept.sandbox:
            return
        try:
            release(kept.client, kept.lease)
            say(f"{identity}: lease of {kept.lease.address} released")
        except CniError as error:  # it ends by itself
            say(f"{identity}: could not be released: {error}")

    def _client(self, request: dict[str, Any]) -> Client:
        ipam, args = request.get("ipam"), request.get("args")
        requested, provided = options.parse(ipam if isinstance(ipam, dict) else {}, args if isinstance(args, dict) else {})
        netns = self.settings.host_prefix + str(request.get("netns") or "")
        return Client(identity_of(request), netns, str(request.get("ifname")), requested, provided)


def _sleep(is_cancelled: threading.Event, seconds: float) -> None:
    """Wait between two tries. Raises: TryAgainLater if DEL comes meanwhile."""
    if is_cancelled.wait(seconds):
        raise TryAgainLater("the attachment was deleted while its lease was acquired")


def identity_of(request: dict[str, Any]) -> str:
    """Go-compatible: plugins/ipam/dhcp/daemon.go; servers have leases by it."""
    return f"{request.get('containerID')}/{request.get('network')}/{request.get('ifname')}"


def described(lease: Lease) -> dict[str, Any]:
    """Return the values of a lease that the plugin needs: address with prefix, gateway, routes. Pure."""
    found = lease.ack.options
    router = lease.ack.address(dhcp.ROUTER)
    prefix = dhcp.parse_mask(found.get(dhcp.SUBNET_MASK, b""))
    classless = dhcp.parse_classless_routes(found.get(dhcp.CLASSLESS_ROUTES, b""))
    routes = classless or dhcp.parse_static_routes(found.get(dhcp.STATIC_ROUTES, b""))
    if not classless and router is not None:
        routes.append((IPv4Network("0.0.0.0/0"), router))
    return {
        "address": f"{lease.address}/{prefix}",
        "gateway": str(router or ""),
        "routes": [[str(network), str(gateway)] for network, gateway in routes],
    }


# ---- the socket -------------------------------------------------------------------------------


def serve(daemon: Daemon, listening: socket.socket) -> None:
    """Handle requests, each in a thread, without end."""
    while True:
        try:
            accepted, _ = listening.accept()
        except ConnectionAbortedError:
            continue
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            say(f"could not accept a connection: {error}")  # it would end every lease to exit for that
            time.sleep(SMALLEST_PAUSE_SECONDS)
            continue
        threading.Thread(target=answer, args=(daemon, accepted), daemon=True).start()


def answer(daemon: Daemon, accepted: socket.socket) -> None:
    """Read a request, handle it, reply."""
    with accepted:
        accepted.settimeout(CALL_SECONDS)
        if not wire.is_trusted(accepted):
            say("refused a request: the client is not root")
            return
        try:
            reply: dict[str, Any] = {"result": daemon.handle(config.decode(wire.read_all(accepted), "request"))}
        except CniError as error:
            reply = {"error": error.as_json("1.1.0")}
        except Exception as error:  # noqa: BLE001 — a bug: the client receives it, and the daemon goes on
            say(f"internal error: {type(error).__name__}: {error}")
            reply = {"error": {"code": 100, "msg": f"internal error of the DHCP daemon: {type(error).__name__}: {error}"}}
        try:
            accepted.sendall(encode(reply))
        except OSError as error:
            say(f"the client has disconnected: {error}")


def listen(path: str) -> socket.socket:
    """Return the socket that systemd passes on, or a new one. Raises: InvalidConfig, OSError."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        number = os.environ.get("LISTEN_FDS", "0")
        if number != "1":
            raise InvalidConfig(f"too many file descriptors received from systemd: {number}", "one socket is expected")
        return socket.socket(fileno=FIRST_PASSED_FD)
    files.make_directory(os.path.dirname(path) or "/", 0o700)
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    former = os.umask(0o022)  # as Go's under a service: connecting takes the right to write
    try:
        made.bind(path)
    finally:
        os.umask(former)
    made.listen(128)
    return made


def _remove_stale(path: str) -> None:
    """Remove the socket of a daemon that no longer runs. Raises: NotAvailable, InvalidConfig, OSError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise InvalidConfig(f"{path} exists and is not a socket", "", "choose another -socketpath")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    raise NotAvailable(f"a DHCP daemon already listens at {path}", "", "stop that one, or choose another -socketpath")


class Stopped(Exception):
    """Signal to end."""


def _stop(*_: object) -> None:
    raise Stopped


def main(arguments: Sequence[str]) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns: the exit status."""
    if any(word in ("-h", "-help", "--help") for word in arguments):
        print(daemon_options.help_text())
        return 0
    try:
        settings = parse_arguments(arguments)
    except InvalidConfig as error:
        say(f"dhcp daemon: {error}")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    path, daemon = settings.host_prefix + settings.socket_path, Daemon(settings)
    is_passed = os.environ.get("LISTEN_PID") == str(os.getpid())
    made = []
    try:
        listening = listen(path)
        made += [] if is_passed else [path]
        if settings.pid_file:
            made.append(settings.pid_file)
            files.write(settings.pid_file, str(posix.getpid()).encode(), 0o644)
        daemon.resume()
        serve(daemon, listening)
    except Stopped:
        pass
    except (OSError, CniError) as error:
        say(f"dhcp daemon: {path}: {reason_of(error)}" if isinstance(error, OSError) else f"dhcp daemon: {error}")
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        daemon.stop_all()
        for name in made:
            files.remove(name)
    return 0


# ---- the command line -------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Parse options in Go's form: one dash or two, the value after a space or "=". Raises: InvalidConfig."""
    values: dict[str, str] = {}
    known = daemon_options.OPTIONS
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in known:
            raise InvalidConfig(f"flag provided but not defined: {word}", f"options: -{', -'.join(known)}")
        if not has_value:
            if name != "broadcast" and not rest:
                raise InvalidConfig(f"flag needs an argument: {word}")
            value = "true" if name == "broadcast" else rest.pop(0)
        values[name] = value
    given = {name: parse_duration(name, values[name]) for name in ("timeout", "resendmax", "resendtimeout") if name in values}
    timing = Timing(
        given.get("timeout", 10.0),
        given.get("resendmax", 62.0),
        given.get("resendtimeout", 208.0),
        values.get("broadcast", "").lower() in ("true", "1", "t"),
    )
    return Settings(values.get("socketpath", wire.SOCKET), values.get("pidfile", ""), values.get("hostprefix", ""), timing)


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}


def parse_duration(name: str, text: str) -> float:
    """Parse Go's form, "1m30s". Raises: InvalidConfig."""
    total, rest = 0.0, text
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        letters = len(rest[digits:]) - len(rest[digits:].lstrip("hmsu"))
        unit = _UNITS.get(rest[digits : digits + letters])
        try:
            total += float(rest[:digits]) * (unit or float("nan"))
        except ValueError:
            unit = None
        if unit is None:
            raise InvalidConfig(f'invalid value "{text}" for flag -{name}', "a duration is like 10s or 1m30s")
        rest = rest[digits + letters :]
    if not 0 < total < 1e6:
        raise InvalidConfig(f'invalid value "{text}" for flag -{name}', "it must be above 0")
    return total
