"""Live objects of this host: namespaces, addresses in them, containers, plugin calls. Changes nothing.

:func:`collect` gathers it; an attachment is live if one of these shows it:

namespaces
    that any process or thread is in (``/proc/*/ns/net``, ``/proc/*/task/*/ns/net``), that an open descriptor
    holds (``/proc/*/fd``), or that is mounted (``/proc/*/mountinfo``), in any mount namespace: a runtime
    may have its own. A mount namespace that only a mount or a descriptor holds is entered.
addresses
    in every such namespace and in every namespace behind a veth of this host, found in /proc or not
host ends
    a veth with our mark whose other end is in another namespace, which is alive by definition
sandboxes
    whether a namespace, and which, is at the paths that records and cached results name
containers
    ids in the cgroup paths of processes, for pods that removed the address from their interface
calls
        plugins that are running (``CNI_CONTAINERID`` in their environment), for an ADD that has reserved an address and not yet
        assigned it, and a DEL that would miss what is removed meanwhile; our own process is no such call

Whatever cannot be read leaves liveness unknown, and ``missing`` has the reason: no root, a /proc
that hides processes (``hidepid``, or another PID namespace than the pods': then namespaces behind veths
have no process), a namespace that cannot be opened, not enough time. A namespace is not found if
only a descriptor in flight or a socket holds it and it has no veth to this host.
"""

from __future__ import annotations

import posix
from errno import ENOENT, ENOTDIR, ESRCH
from functools import partial
from time import thread_time

from cni_py.sweep.address_scan import AddressScan
from cni_py.sweep.proc_walk import ProcWalk
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TRIES = 3


class Liveness(Value):
    """Live objects.

    Attributes:
        namespaces: inode to a name for it; with the host's own, ``own``.
        mount_points: path, as it is in some mount namespace, to inodes.
        addresses: packed address to the namespace that it is in.
        marks: of host ends, without "cni:", whose other end is in another namespace.
        containers: words of cgroup paths.
        calls: container id and interface name of plugin calls.
        sandboxes: requested path to inode; 0: no namespace there; None: unknown.
        missing: why liveness is not fully known.
    """

    namespaces: Mapping[int, str]
    own: int = 0
    mount_points: Mapping[str, set[int]] = {}
    addresses: Mapping[bytes, str] = {}
    marks: frozenset[str] = frozenset()
    containers: frozenset[str] = frozenset()
    calls: frozenset[tuple[str, str]] = frozenset()
    sandboxes: Mapping[str, int | None] = {}
    missing: tuple[str, ...] = ()


class OutOfTime(Exception):
    """The deadline has passed."""


def check_time(deadline: float | None) -> None:
    """Check the deadline, which is on :func:`time.thread_time`'s clock. Raises: OutOfTime."""
    if deadline is not None and thread_time() > deadline:
        raise OutOfTime


def collect(paths: Iterable[str] = (), deadline: float | None = None) -> Liveness:
    """Collect everything that may be alive now.

    Args:
        paths: of sandboxes to check.
        deadline: see :func:`check_time`; the result is incomplete then.
    """
    check = partial(check_time, deadline)
    for attempt in range(_TRIES):
        with ProcWalk(check) as walk:
            scan = AddressScan(walk.namespaces, walk.own, check)
            try:
                walk.run()
                scan.run()
            except OutOfTime:
                walk.faults.append("not enough time to check everything")
                break
        if not scan.unseen:
            break
        # A pod that was created between the two is found by another walk; only a namespace that stays unseen is a fault.
        if attempt == _TRIES - 1:
            walk.faults.append(
                f"no process, descriptor or mount in /proc holds {scan.unseen}: /proc may not show the whole host"
            )
    return _liveness(walk, scan, {path: _inode_at(path, walk.device) for path in set(paths) if path})


def _liveness(walk: ProcWalk, scan: AddressScan, sandboxes: Mapping[str, int | None]) -> Liveness:
    return Liveness(
        namespaces=walk.namespaces.names() | {walk.own: "the host"},
        own=walk.own,
        mount_points=walk.mount_points,
        addresses=scan.addresses,
        marks=frozenset(scan.marks),
        containers=frozenset(walk.containers),
        calls=frozenset(walk.calls),
        sandboxes=sandboxes,
        missing=(*walk.faults, *scan.faults),
    )


def plain_run(path: str) -> str:
    """Replace ``/var/run`` by ``/run``: mount points are written without symbolic links. Pure."""
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def _inode_at(path: str, device: int) -> int | None:
    """Return the inode of the namespace at a path; 0: none; None: unknown."""
    try:
        status = posix.stat(path)
    except OSError as error:
        return 0 if error.errno in (ENOENT, ENOTDIR, ESRCH) else None
    except ValueError:  # a NUL in the path
        return 0
    return status.st_ino if status.st_dev == device else 0
