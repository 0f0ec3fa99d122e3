"""Remove resources that belong to no live namespace: ``cni-py sweep``, the first call of a boot, the agent's timer.

:func:`run` in order: read the leftovers of attachments (inventory.py), collect live objects (liveness.py), decide (stale.py),
check again, remove (remove.py). Nothing is removed on the strength of a single check, and nothing while liveness is not
fully known.

Why a live pod loses nothing. A leftover is stale if nothing of its attachment is live: none of its addresses is on an
interface, and no host end, record, cached result, container or running plugin belongs to it. That cannot change
as long as the leftover is *the same one*: to become live again the attachment needs an ADD, and that creates
new files (another inode, another time). So the removal compares, under the plugins' own locks, whether the leftover is
the one that was found stale. Elements of nftables have neither inode nor time: they are kept if their owner has a
record that is newer than the check, since ADD writes that first.

Age. ADD creates record, saved configuration, reservation, addresses, elements, in this order. A leftover is as old as the
youngest file of its attachment. One without a file, such as an element, counts as old if no file of its attachment is left:
its ADD had created the element after the address was assigned, which would be seen. A time in the
future counts as young: machines without a clock battery start in 1970.

A sweep that is killed is completed by the next one, thanks to the order in which it removes. Cached results belong to the
runtime: they are reported, not deleted.
"""

from __future__ import annotations

import posix
from time import thread_time, time

from cni_py import config, files
from cni_py.attachment import record
from cni_py.errors import CniError
from cni_py.journal import RUN_DIR, Journal, note
from cni_py.plugin_table import PLUGINS
from cni_py.spec.call import check_network_name
from cni_py.sweep import file_leftovers, liveness
from cni_py.sweep.file_leftovers import Places
from cni_py.sweep.inventory import Inventory
from cni_py.sweep.leftovers import CACHED, Leftover
from cni_py.sweep.liveness import Liveness
from cni_py.sweep.remove import remove
from cni_py.sweep.report import WOULD_REMOVE, Finding, Report
from cni_py.sweep.stale import age_of, find_stale

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.spec.call import Call

GRACE_SECONDS = 300.0
BOOT_GRACE_SECONDS, BOOT_LIMIT_SECONDS, BOOT_ATTEMPTS = 60.0, 0.08, 10


def run(
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    networks: Collection[str] | None = None,
    *,
    places: Places | None = None,
    with_kernel: bool = True,
    deadline: float | None = None,
    calling: Call | None = None,
) -> Report:
    """Remove stale leftovers that are older than the grace time.

    Args:
        networks: names of those to check; None: all.
        places: directories to read, besides those that saved configurations name; None: the default ones.
        with_kernel: whether to look for elements, chains and veths, which do not survive a boot.
        deadline: on :func:`time.thread_time`'s clock; what is not checked in time is kept.
        calling: an ADD that is about to start: it does not make older leftovers of its own attachment live.
    """
    with Journal(f"sweep, grace {grace_seconds:g} s", "" if dry_run else "sweep"):
        inventory = Inventory(places or Places(), networks, lambda: liveness.check_time(deadline))
        try:
            found = _read(inventory, with_kernel, grace_seconds if calling else None)
        except liveness.OutOfTime:
            return Report(missing=("not enough time to read all leftovers",))
        if with_kernel and not dry_run:
            _delete_unused(inventory.faults)
        if not found:
            return Report(missing=tuple(inventory.faults))
        findings, live = _check(found, inventory.faults, grace_seconds, deadline, calling)
        stale = [finding for finding in findings if finding.outcome == WOULD_REMOVE]
        if stale and not dry_run:
            # Checked twice: a pod that was being created during the first check is seen by the second.
            again, live = _check(found, inventory.faults, grace_seconds, deadline, calling)
            still = {finding.leftover for finding in again if finding.outcome == WOULD_REMOVE}
            removed = {f.leftover: f for f in remove([f for f in stale if f.leftover in still], found)}
            findings = [removed.get(f.leftover, f) for f in findings if f.outcome != WOULD_REMOVE or f.leftover in removed]
        missing = (*live.missing, *inventory.faults)
        return Report(tuple(findings), len(live.namespaces), len(_live(found, findings)), missing, dry_run)


def _delete_unused(faults: list[str]) -> None:
    """Delete chains and entries that attachments shared; a failure is added to ``faults``."""
    from cni_py.packetfilter import libnftables, masquerade
    from cni_py.packetfilter.hostports import forwarding

    try:
        with masquerade.lock():
            libnftables.delete_unused_chains()
            forwarding.delete_links()
    except (CniError, OSError) as error:
        faults.append(str(error))


def _read(inventory: Inventory, with_kernel: bool, grace_if_calling: float | None) -> list[Leftover]:
    """Read all leftovers; before a call, none unless one of them is old enough."""
    found = [*(inventory.of_kernel() if with_kernel else []), *inventory.of_files()]
    if grace_if_calling is None:
        return found + inventory.of_cache()
    if not any(age_of([leftover], time()) >= grace_if_calling for leftover in found):
        return []
    return found + inventory.of_cache({leftover.container_id for leftover in found if leftover.container_id})


def _check(
    found: Sequence[Leftover], faults: Sequence[str], grace_seconds: float, deadline: float | None, calling: Call | None
) -> tuple[list[Finding], Liveness]:
    live = liveness.collect([leftover.netns for leftover in found], deadline)
    return find_stale(found, live.replace(missing=(*live.missing, *faults)), time(), grace_seconds, calling), live


def _live(found: Iterable[Leftover], findings: Iterable[Finding]) -> set[tuple[str, str, str]]:
    """Return the attachments that are live."""
    stale = {finding.leftover for finding in findings}
    return {
        (one.container_id, one.ifname, one.hashed) for one in found if one not in stale and one.kind != CACHED and one.ifname
    }


# ---- the first call of a boot -----------------------------------------------------------------


def before_first_call(call: Call, stdin: bytes) -> None:
    """Sweep this network before the first ADD or GC of a boot; do nothing before a later one. Never fails, and is fast.

    The caller of the engine calls it, with the attachment's lock held.

    Of two concurrent calls, one sweeps and the other continues. If the time was too short, as on a host with very many
    processes, the next call retries, up to ``BOOT_ATTEMPTS`` times; the lock file has one byte for each attempt.
    """
    if not record.is_first_of_boot(call):
        return
    try:
        conf = config.decode_for(PLUGINS[call.plugin].model, stdin)
        check_network_name(conf.get("name"))
    except CniError:
        return  # the call will fail
    _sweep_once(call.replace(conf=conf))


def _sweep_once(call: Call) -> None:
    from fcntl import LOCK_EX, LOCK_NB, flock

    flags = posix.O_RDWR | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW
    with Journal(f"the first {call.verb} of this boot", "sweep"):
        try:
            boot_id = files.read(record.KERNEL_BOOT_ID)
            files.own_directory(RUN_DIR)
            lock = posix.open(f"{RUN_DIR}/sweep.lock", flags, 0o600)
            try:
                flock(lock, LOCK_EX | LOCK_NB)
                if not record.is_known_boot():
                    posix.write(lock, b".")  # first: where nothing can be written, every call would sweep
                    attempts = posix.fstat(lock).st_size
                    if attempts > BOOT_ATTEMPTS or _sweep_for(call) or attempts == BOOT_ATTEMPTS:
                        files.write(record.BOOT_ID, boot_id)
                        posix.ftruncate(lock, 0)
            finally:
                posix.close(lock)
        except BlockingIOError:
            pass
        except (OSError, CniError) as error:
            note(f"sweep after boot incomplete: {error}")


def _sweep_for(call: Call) -> bool:
    """Sweep the call's network. Returns: whether the time was enough."""
    places = Places() | file_leftovers.places_of([call.conf], call.network)
    # Processor time: a busy host after its start has no more to check than an idle one.
    deadline = thread_time() + BOOT_LIMIT_SECONDS
    try:
        report = run(
            BOOT_GRACE_SECONDS, networks=[call.network], places=places, with_kernel=False, deadline=deadline, calling=call
        )
    except Exception as error:  # noqa: BLE001 — a failed sweep must not cost the pod its network
        note(f"sweep after boot incomplete: {type(error).__name__}: {error}")
        return True
    for line in report.missing:
        note(f"sweep after boot incomplete: {line}")
    return not report.missing or thread_time() <= deadline
