"""State that flanneld saves, so that a node without its datastore can forward after a reboot.

A cluster's etcd may itself run in pods, or on a node that boots at the same time. With a lease of this node
that has not ended, pods get their network at once; what has changed meanwhile follows when the
datastore responds.

How it is written. The first line is a JSON object with the network's configuration and our own lease; each line after it is
a lease, and a later line of the same subnets takes an earlier one's place, ``"value": null`` ends it. So a change is a line
at the end of the file. At the start, and when there are more such lines than leases, the file is written again as a whole,
whole or not at all. A line that is cut, because the process was killed or the disk is full, ends the file for a reader; the
next start writes it again.

Owns: ``/var/lib/cni-py/flanneld.json`` (0600); with another ``-subnet-file`` a file that is named by that, for a second
flanneld on the node serves another network.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_py import files
from cni_py.errors import CniError, IOFailure
from cni_py.flanneld import backends
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.journal import step
from cni_py.node.log import warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cni_py.node.stop import Stop

PATH, SUBNET_FILE = "/var/lib/cni-py/flanneld.json", "/run/flannel/subnet.env"
MAX_BYTES = 64 << 20
SAVE_SECONDS = 5.0
"""Time in which changes are gathered before they are written."""
FEWEST_LINES = 1000
"""The file is not written again as a whole before so many lines have been added."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The network's configuration as text, our own lease; :meth:`leases` are decoded when they are asked for."""

    config: str
    own: Lease
    path: str = ""
    lines: tuple[bytes, ...] = field(default=(), repr=False)
    former: tuple[Subnets, ...] = ()
    """Subnets that this node had before, whose gateways were still on the pods' bridge."""

    def leases(self) -> dict[Subnets, Lease] | None:
        """Return all leases, our own too; None if they cannot be used."""
        try:
            leases: dict[Subnets, Lease] = {}
            for found in map(json.loads, self.lines):
                if found["value"] is None:
                    leases.pop(Subnets.from_key(found["key"]), None)
                else:
                    lease = _lease(found)
                    leases[lease.subnets] = lease
        except (ValueError, KeyError, TypeError, RecursionError, NotALease) as error:
            _complain(self.path, error)
            return None
        return {**leases, self.own.subnets: self.own}


def path_for(subnet_file: str) -> str:
    """Return the path at which a flanneld saves that writes this subnet file."""
    if subnet_file == SUBNET_FILE:
        return PATH
    return f"{PATH.removesuffix('.json')}-{subnet_file.strip('/').replace('/', '-')}.json"


def read(path: str, *, may_have_ended: bool = False) -> Saved | None:
    """Read it. None: there is nothing, it cannot be used, or our own lease has ended (unless ``may_have_ended``)."""
    try:
        first, *lines = files.read(path, limit=MAX_BYTES).split(b"\n")
        found = json.loads(first)
        complete = lines[:-1]  # behind the last line end is nothing, or a line that was cut
        owns = [line for line in complete if line.startswith(_OWN)]
        own = _lease(json.loads(owns[-1])["own"] if owns else found["own"])
        leases = [json.dumps(lease).encode() for lease in found.get("leases", [])]  # as earlier versions wrote them
        leases += [line for line in complete if not line.startswith(_OWN)]
        former = tuple(Subnets.from_key(key) for key in found.get("former", []))
        saved = Saved(str(found["config"]), own, path, tuple(leases), former)
        backends.check(NetworkConfig.parse(saved.config))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CniError, NotALease) as error:
        _complain(path, error)
        return None
    return saved if may_have_ended or own.is_live() else None


class Saver:
    """Keeps the file up to date. Safe from several threads.

    Args:
        own: our own lease as it is to be saved.
        leases: those of the other nodes, as they are followed.
    """

    def __init__(self, path: str, config: str, own: Callable[[], Lease], leases: Mapping[Subnets, Lease]) -> None:
        self.path, self._config, self._own, self._leases = path, config, own, leases
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._has_changed = threading.Event()
        self._changed: set[Subnets] = set()
        self._saved_own: Lease | None = None
        self._written: tuple[int, int] | None = None
        """Number and size of the file as we wrote it; None: it has to be written as a whole."""
        self._lines = 0
        """Number of lines that were added since."""
        self._not_saved = ""
        """Reason of the last failure."""
        self.former: Sequence[Subnets] = ()
        """See :class:`Saved`; written with the next whole file."""

    def changed(self, subnets: Iterable[Subnets] = ()) -> None:
        """Note that these leases changed, or our own did."""
        with self._lock:
            self._changed.update(subnets)
        self._has_changed.set()

    def run(self, stop: Stop) -> None:
        """Save what changes, some seconds later, until ``stop``; then what is left."""
        with stop.calling(self._has_changed.set):
            while not stop.is_set():
                self._has_changed.wait()
                stop.wait(SAVE_SECONDS)
                self._has_changed.clear()
                if not self.save():
                    self._has_changed.set()
        self.save()

    def save(self) -> bool:
        """Write what changed since the last time. Returns: whether it is written. A failure is logged once, and retried."""
        with self._writing:
            with self._lock:
                changed, self._changed = self._changed, set()
            own = self._own()
            if not changed and own == self._saved_own:
                return True
            try:
                if not self._append(changed, own):
                    self._write(own)
            except (CniError, OSError) as fault:
                with self._lock:
                    self._changed |= changed
                if str(fault) != self._not_saved:
                    self._not_saved = str(fault)
                    warning(f"the leases could not be saved for the next boot: {fault}")
                return False
            self._saved_own, self._not_saved = own, ""
            return True

    def _write(self, own: Lease) -> None:
        """Write everything. Raises: CniError, OSError."""
        former = {"former": [subnets.as_key() for subnets in self.former]} if self.former else {}
        lines = [json.dumps({"config": self._config, "own": _as_json(own), **former})]
        lines += [json.dumps(_as_json(lease)) for lease in list(self._leases.values())]  # a copy: another thread changes it
        content = "".join(f"{line}\n" for line in lines).encode()
        self._written = None
        files.make_directory(self.path.rpartition("/")[0], 0o755)
        files.write(self.path, content, 0o600, is_secret=True)  # the configuration may have WireGuard's "PSK"
        self._written, self._lines = (os.stat(self.path).st_ino, len(content)), 0

    def _append(self, changed: set[Subnets], own: Lease) -> bool:
        """Add lines; False where the file has to be written as a whole. Raises: CniError, OSError."""
        written = self._written
        if written is None or self._lines + len(changed) > max(FEWEST_LINES, len(self._leases)):
            return False
        lines = [json.dumps({"own": _as_json(own)})] if own != self._saved_own else []
        for subnets in changed:
            lease = self._leases.get(subnets)
            lines.append(json.dumps(_as_json(lease) if lease else {"key": subnets.as_key(), "value": None}))
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it was deleted, which is allowed
            return False
        try:
            there = os.fstat(fd)
            if (there.st_ino, there.st_size) != written:
                return False
            with step("tee", "-a", self.path, error=IOFailure):
                try:
                    files.write_all(fd, content)
                except OSError:
                    os.ftruncate(fd, written[1])  # else the next line would begin in the middle of one
                    raise
        finally:
            os.close(fd)
        self._written, self._lines = (written[0], written[1] + len(content)), self._lines + len(lines)
        return True


_OWN = b'{"own"'


def _complain(path: str, error: Exception) -> None:
    warning(f"what was saved in {path} cannot be used: {error}")


def _as_json(lease: Lease) -> dict[str, Any]:
    return {"key": lease.subnets.as_key(), "value": lease.attributes.as_json(), "expires": lease.expires}


def _lease(raw: dict[str, Any]) -> Lease:
    expires = raw["expires"]
    return Lease(Subnets.from_key(raw["key"]), Attributes.from_json(raw["value"]), None if expires is None else float(expires))
