"""Free what was judged dead: one place after the other, under the plugins' own locks, and only if it still is the same.

Elements, chains, veths, reservations, saved configurations, records, in this order: each piece tells where those
before it are.
"""

from __future__ import annotations

import posix

from cni_py import files
from cni_py.errors import CniError, IOFailure
from cni_py.journal import note, retire, step
from cni_py.sweep import leftovers
from cni_py.sweep.leftovers import ADDRESS, CHAIN, ELEMENT, RECORD, SAVED, VETH, Trace, stamp_of
from cni_py.sweep.report import FAILED, FREED, KEPT, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ORDER = (ELEMENT, CHAIN, VETH, ADDRESS, SAVED, RECORD)


def free(doomed: Sequence[Finding], found: Sequence[Trace]) -> list[Finding]:
    """Free what was judged dead, one place after the other; what cannot be freed does not stop the rest.

    Args:
        found: all that was read, to know a record that is newer.
    """
    out: list[Finding] = []
    for kind in _ORDER:
        places: dict[str, list[Finding]] = {}
        for finding in doomed:
            if finding.trace.kind == kind:
                places.setdefault(_place(finding.trace), []).append(finding)
        for some in places.values():
            try:
                gone = _FREE[kind]([finding.trace for finding in some], found)
            except (CniError, OSError) as error:
                note(f"could not free {some[0].trace.what}: {error}")
                out += [finding.replace(fate=FAILED, why=f"{finding.why}; {error}") for finding in some]
            else:
                out += [f.replace(fate=FREED) if f.trace in gone else _came_back(f) for f in some]
    for finding in out:
        if finding.trace.kind == RECORD and finding.fate == FREED:
            retire(finding.trace.path.rpartition("/")[2])
    return out


def _place(trace: Trace) -> str:
    """What is freed together, under one lock; a failure is of all of it."""
    return trace.path.rpartition("/")[0] if trace.kind == ADDRESS else trace.path


def _came_back(finding: Finding) -> Finding:
    return finding.replace(fate=KEPT, why=f"{finding.why}; kept: it was made anew, or freed by another, meanwhile")


def _free_elements(some: Sequence[Trace], found: Sequence[Trace]) -> list[Trace]:
    """Elements of one set."""
    from cni_py.packetfilter import libnftables, masquerade, nfnetlink

    of_set = next(one for one in leftovers.sets() if some[0].path in one.names)
    with masquerade.lock():
        staying = _with_newer_record(some, found)
        comments = {trace.key for trace in some} - {trace.key for trace in staying}
        there = nfnetlink.elements(some[0].path) if of_set.after else []
        if comments:
            libnftables.delete_elements(some[0].path, of_set.key_text, comments.__contains__)
    if of_set.after:
        of_set.after([element for element in there if element.comment in comments])
    return [trace for trace in some if trace.key in comments]


def _free_chains(some: Sequence[Trace], found: Sequence[Trace]) -> list[Trace]:
    """Jumps to one chain, and the chain with the last of them."""
    from cni_py.packetfilter import iptables, masquerade

    with masquerade.lock():
        staying = _with_newer_record(some, found)
        gone = [trace for trace in some if trace not in staying]
        for trace in gone:
            if trace.tool is not None:
                iptables.delete(trace.tool, trace.path, [trace.key])
    return gone


def _with_newer_record(some: Sequence[Trace], found: Sequence[Trace]) -> list[Trace]:
    """Those whose attachment has had an ADD since it was judged. Raises: IOFailure."""
    known = {(trace.path, trace.stamp) for trace in found if trace.kind == RECORD}
    newer = [record for record in leftovers.records() if (record.path, record.stamp) not in known]
    return [trace for trace in some if any(trace.is_with(record) for record in newer)]


def _free_veths(some: Sequence[Trace], _: Sequence[Trace]) -> list[Trace]:
    from cni_py.kernel.link import delete_link, list_links
    from cni_py.netlink.socket import open_host

    gone = []
    with open_host() as host:
        for trace in some:
            if any(link.name == trace.path for link in list_links(host, alias=trace.key)):
                delete_link(host, trace.path)
                gone.append(trace)
    return gone


def _free_addresses(some: Sequence[Trace], _: Sequence[Trace]) -> list[Trace]:
    """Reservations of one network."""
    from ipaddress import ip_address

    from cni_py.ipam.store import Store

    data_dir, network = some[0].path.rsplit("/", 2)[:2]
    with Store(data_dir, network) as store:
        same = [trace for trace in some if stamp_of(trace.path) == trace.stamp]
        store.release([ip_address(trace.address) for trace in same])
    return same


def _free_file(some: Sequence[Trace], _: Sequence[Trace]) -> list[Trace]:
    """A saved configuration or a record: ADD writes them without a lock."""
    return [trace for trace in some if trace.stamp and remove_if_same(trace.path, trace.stamp)]


def remove_if_same(path: str, stamp: leftovers.Stamp) -> bool:
    """Delete the file that was judged, not one that was put in its place since. Raises: IOFailure.

    It is taken aside first, for between a look and an ``unlink`` another could be put there.
    """
    if stamp_of(path) != stamp:
        return False
    aside = f"{path}.sweep"
    with step("rm", "-f", path, error=IOFailure):
        files.remove_temporary(path)
        try:
            posix.rename(path, aside)
        except FileNotFoundError:
            return False
        is_same = stamp_of(aside) == stamp
        if not is_same:
            try:
                posix.link(aside, path)
            except FileExistsError:  # one that is newer still
                pass
        posix.unlink(aside)
    return is_same


_FREE: dict[str, Callable[[Sequence[Trace], Sequence[Trace]], list[Trace]]] = {
    ELEMENT: _free_elements,
    CHAIN: _free_chains,
    VETH: _free_veths,
    ADDRESS: _free_addresses,
    SAVED: _free_file,
    RECORD: _free_file,
}
