"""Free what belongs to no live namespace: ``cni-py sweep``, the first call of a boot, later the agent's timer.

The story, :func:`run`: read what attachments left (traces.py), look at what lives (evidence.py), decide
(judgement.py), look again, free (freeing.py). Nothing is freed on one look alone, and nothing while the
evidence is incomplete.

Why a live pod loses nothing. A piece is dead when nothing of its attachment lives: none of its addresses is on an
interface, no host end, record, cached result, container or running plugin speaks for it. That cannot change
under our hands as long as the piece is *the same one*: to live again the attachment needs an ADD, and that makes
new files (another inode, another time). So what is compared under the plugins' own locks is whether the piece is
the one that was judged. Elements of nftables have neither inode nor time: they are left alone if their owner has a
record that is newer than the judgement, for ADD writes that first.

Age. ADD makes record, saved configuration, reservation, addresses, elements, in this order. A piece is as old as the
youngest file of its attachment. What has no file, as an element, is old if no file of its attachment is left: its ADD
had got to the element already, at which time the address was assigned and would be seen. A time that lies in
the future counts as young: machines without a clock battery live in 1970 for a while.

A sweep that is killed is ended by the next one, by the order in which it frees. Cached results are their
runtime's: told, not deleted.
"""

from __future__ import annotations

import posix
from time import thread_time, time

from cni_py import files
from cni_py.errors import CniError, IOFailure
from cni_py.journal import RUN_DIR, Journal, note
from cni_py.sweep import leftovers, liveness
from cni_py.sweep.leftovers import CACHED, Places, Reading, Trace
from cni_py.sweep.liveness import Evidence
from cni_py.sweep.remove import free
from cni_py.sweep.report import WOULD_FREE, Finding, Report
from cni_py.sweep.stale import age_of, decide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.spec.call import Call

GRACE_SECONDS = 300.0
BOOT_GRACE_SECONDS, BOOT_LIMIT_SECONDS, BOOT_ATTEMPTS = 60.0, 0.08, 10
BOOT_ID, KERNEL_BOOT_ID = f"{RUN_DIR}/boot-id", "/proc/sys/kernel/random/boot_id"


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
    """Free what is dead and older than the grace time; answer what was found.

    Args:
        networks: names of those to look at; None: all.
        places: folders to look into, besides those that saved configurations name; None: the default ones.
        with_kernel: whether to look for elements, chains and veths; a boot leaves none.
        deadline: on :func:`time.thread_time`'s clock; what is not judged by then stays.
        calling: an ADD that is about to begin: it is no evidence for what is left of its own attachment.
    """
    with Journal(f"sweep, grace {grace_seconds:g} s", "" if dry_run else "sweep"):
        reading = Reading(places or Places(), networks, lambda: _check_time(deadline))
        try:
            found = _read(reading, with_kernel, grace_seconds if calling else None)
        except liveness.OutOfTime:
            return Report(missing=("there was no time to read all that is kept",))
        if not found:
            return Report(missing=tuple(reading.faults))
        findings, seen = _judge(found, reading.faults, grace_seconds, deadline, calling)
        doomed = [f for f in findings if f.fate == WOULD_FREE]
        if doomed and not dry_run:
            again, seen = _judge(found, reading.faults, grace_seconds, deadline, calling)
            still = {f.trace for f in again if f.fate == WOULD_FREE}
            doomed = [f for f in doomed if f.trace in still]
            freed = {f.trace: f for f in free(doomed, found)}
            findings = [freed.get(f.trace, f) for f in findings if f.fate != WOULD_FREE or f.trace in freed]
        missing = (*seen.missing, *reading.faults)
        return Report(tuple(findings), len(seen.namespaces), len(_live(found, findings)), missing, dry_run)


def _read(reading: Reading, with_kernel: bool, grace_if_calling: float | None) -> list[Trace]:
    """What is kept; before a call nothing, where nothing of it can be old enough."""
    found = [*(reading.of_kernel() if with_kernel else []), *reading.of_files()]
    if grace_if_calling is None:
        return found + reading.of_cache()
    if not any(age_of([trace], time()) >= grace_if_calling for trace in found):
        return []
    return found + reading.of_cache({trace.container_id for trace in found if trace.container_id})


def _judge(
    found: Sequence[Trace], faults: Sequence[str], grace_seconds: float, deadline: float | None, calling: Call | None
) -> tuple[list[Finding], Evidence]:
    seen = liveness.collect([trace.netns for trace in found], deadline)
    return decide(found, seen.replace(missing=(*seen.missing, *faults)), time(), grace_seconds, calling), seen


def _live(found: Iterable[Trace], findings: Iterable[Finding]) -> set[tuple[str, str, str]]:
    dead = {finding.trace for finding in findings}
    owners = ((t.container_id, t.ifname, t.hashed) for t in found if t not in dead and t.kind != CACHED and t.ifname)
    return set(owners)


# ---- the first call of a boot -----------------------------------------------------------------


def at_first_call(call: Call) -> None:
    """Before the first ADD or GC of a boot: free what an older boot left of this network. Never fails, nor takes long.

    Two calls at once: one sweeps, the other goes on. Where the time was too short, as on a host with very many
    processes, the next call tries again, ``BOOT_ATTEMPTS`` times in all; the lock has a byte for each. It is the time of the
    processor that counts: on a host that has much to do after its start there is no more to look at.
    """
    from fcntl import LOCK_EX, LOCK_NB, flock

    flags = posix.O_RDWR | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW
    with Journal(f"the first {call.verb} of this boot", "sweep"):
        try:
            boot_id = files.read(KERNEL_BOOT_ID)
            files.make_folder(RUN_DIR, 0o700)
            lock = posix.open(f"{RUN_DIR}/sweep.lock", flags, 0o600)
            try:
                flock(lock, LOCK_EX | LOCK_NB)
                if not is_known_boot():
                    if _sweep_for(call) or posix.fstat(lock).st_size + 1 >= BOOT_ATTEMPTS:
                        files.write(BOOT_ID, boot_id)
                    else:
                        posix.write(lock, b".")
            finally:
                posix.close(lock)
        except BlockingIOError:
            pass
        except (OSError, CniError) as error:
            note(f"what an older boot left may still be there: {error}")


def is_known_boot() -> bool:
    """Whether a call of this boot has been here."""
    try:
        return files.read(BOOT_ID) == files.read(KERNEL_BOOT_ID)
    except (OSError, IOFailure):
        return False


def _sweep_for(call: Call) -> bool:
    """Whether there was time enough."""
    places = Places() | leftovers.places_of([call.conf], call.network)
    deadline = thread_time() + BOOT_LIMIT_SECONDS
    try:
        report = run(
            BOOT_GRACE_SECONDS, networks=[call.network], places=places, with_kernel=False, deadline=deadline, calling=call
        )
    except Exception as error:  # noqa: BLE001 — whatever it is, the pod gets its network
        note(f"what an older boot left may still be there: {type(error).__name__}: {error}")
        return True
    for line in report.missing:
        note(f"what an older boot left may still be there: {line}")
    return not report.missing or thread_time() <= deadline


def _check_time(deadline: float | None) -> None:
    if deadline is not None and thread_time() > deadline:
        raise liveness.OutOfTime
