"""Remove stale leftovers: place by place, under the plugins' own locks, and only those that are unchanged."""

from __future__ import annotations

import posix

from cni_py import files
from cni_py.errors import CniError, IOFailure
from cni_py.journal import note, retire, step
from cni_py.sweep import file_leftovers
from cni_py.sweep.leftovers import (
    ACCEPTED,
    ADDRESS,
    CHAIN,
    DEVICE,
    ELEMENT,
    IFB,
    RECORD,
    SAVED,
    VETH,
    Leftover,
    Stamp,
    stamp_of,
)
from cni_py.sweep.report import FAILED, KEPT, REMOVED, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Each kind leads to those before it: a sweep that is killed in the middle leaves enough for the next one to continue.
_ORDER = (ELEMENT, CHAIN, ACCEPTED, VETH, IFB, DEVICE, ADDRESS, SAVED, RECORD)


def remove(stale: Sequence[Finding], found: Sequence[Leftover]) -> list[Finding]:
    """Remove stale leftovers, place by place; a failure does not stop the rest.

    Args:
        found: everything that was read, to recognize a newer record.

    Returns: the findings with their outcome.
    """
    out: list[Finding] = []
    for kind in _ORDER:
        places: dict[str, list[Finding]] = {}
        for finding in stale:
            if finding.leftover.kind == kind:
                places.setdefault(_place(finding.leftover), []).append(finding)
        for findings in places.values():
            out += _remove_together(kind, findings, found)
    for finding in out:
        if finding.leftover.kind == RECORD and finding.outcome == REMOVED:
            retire(finding.leftover.path.rpartition("/")[2])
    return out


def _place(leftover: Leftover) -> str:
    """Return the place: leftovers of one place are removed under one lock, and fail together."""
    return leftover.path.rpartition("/")[0] if leftover.kind == ADDRESS else leftover.path


def _remove_together(kind: str, findings: Sequence[Finding], found: Sequence[Leftover]) -> list[Finding]:
    try:
        removed = _REMOVE[kind]([finding.leftover for finding in findings], found)
    except (CniError, OSError) as error:
        note(f"could not remove {findings[0].leftover.what}: {error}")
        return [finding.replace(outcome=FAILED, why=f"{finding.why}; {error}") for finding in findings]
    return [f.replace(outcome=REMOVED) if f.leftover in removed else _was_recreated(f) for f in findings]


def _was_recreated(finding: Finding) -> Finding:
    reason = "kept: re-created or removed by another process in the meantime"
    return finding.replace(outcome=KEPT, why=f"{finding.why}; {reason}")


def _remove_elements(stale: Sequence[Leftover], found: Sequence[Leftover]) -> list[Leftover]:
    """Remove elements of one set. Returns: those that were removed."""
    from cni_py.packetfilter import libnftables, masquerade, nfnetlink
    from cni_py.sweep.kernel_leftovers import sets

    of_set = next(one for one in sets() if stale[0].path in one.names)
    with masquerade.lock():
        staying = _with_newer_record(stale, found)
        comments = {leftover.key for leftover in stale} - {leftover.key for leftover in staying}
        elements = nfnetlink.elements(stale[0].path) if of_set.after else []
        if comments:
            libnftables.delete_elements([stale[0].path], of_set.key_text, comments.__contains__)
    if of_set.after:
        of_set.after([element for element in elements if element.comment in comments])
    return [leftover for leftover in stale if leftover.key in comments]


def _remove_chains(stale: Sequence[Leftover], found: Sequence[Leftover]) -> list[Leftover]:
    """Remove jumps to one chain, and the chain with the last of them. Returns: those that were removed."""
    from cni_py.packetfilter import iptables, masquerade

    with masquerade.lock():
        staying = _with_newer_record(stale, found)
        removed = [leftover for leftover in stale if leftover not in staying]
        for leftover in removed:
            if leftover.tool is not None:
                iptables.delete(leftover.tool, leftover.path, [leftover.key])
    return removed


def _remove_accepted(stale: Sequence[Leftover], found: Sequence[Leftover]) -> list[Leftover]:
    """Remove the rules, or the sources in firewalld, of addresses. Returns: those that were removed."""
    from ipaddress import ip_address

    from cni_py.packetfilter import firewalld, forward_accept

    staying = _with_newer_record(stale, found)
    removed = [leftover for leftover in stale if leftover not in staying]
    forward_accept.delete([ip_address(leftover.address) for leftover in removed])
    for leftover in removed:
        if leftover.key and firewalld.is_running():
            firewalld.delete(leftover.key, [ip_address(leftover.address)])
    return removed


def _with_newer_record(stale: Sequence[Leftover], found: Sequence[Leftover]) -> list[Leftover]:
    """Return those whose attachment has had an ADD since they were found stale. Raises: IOFailure."""
    # Elements and chains have neither inode nor time to distinguish a new one from the stale one. ADD writes its
    # record before them, so a new record indicates a new element.
    known = {(leftover.path, leftover.stamp) for leftover in found if leftover.kind == RECORD}
    newer = [record for record in file_leftovers.records() if (record.path, record.stamp) not in known]
    return [leftover for leftover in stale if any(leftover.is_with(record) for record in newer)]


def _remove_links(stale: Sequence[Leftover], _: Sequence[Leftover]) -> list[Leftover]:
    from cni_py.kernel.link import delete_link, list_links
    from cni_py.netlink.socket import open_host

    removed = []
    with open_host() as host:
        for leftover in stale:
            if any(link.name == leftover.path for link in list_links(host, leftover.key)):
                delete_link(host, leftover.path)
                removed.append(leftover)
    return removed


def _rename_devices(stale: Sequence[Leftover], _: Sequence[Leftover]) -> list[Leftover]:
    """Give devices of the host their names back. Returns: those that were renamed."""
    from cni_py.kernel.link import list_links, restore_name
    from cni_py.netlink.socket import open_host

    renamed = []
    with open_host() as host:
        for leftover in stale:
            for link in list_links(host, leftover.key):
                if (link.name, link.alias) == (leftover.path, leftover.key):
                    restore_name(host, link)
                    renamed.append(leftover)
    return renamed


def _remove_reservations(stale: Sequence[Leftover], _: Sequence[Leftover]) -> list[Leftover]:
    """Remove reservations of one network. Returns: those that were removed."""
    from ipaddress import ip_address

    from cni_py.ipam.store import Store

    data_dir, network = stale[0].path.rsplit("/", 2)[:2]
    with Store(data_dir, network) as store:
        # Compared again, now under the lock of the store: the address may have been allocated to another pod since.
        same = [leftover for leftover in stale if stamp_of(leftover.path) == leftover.stamp]
        store.release([ip_address(leftover.address) for leftover in same])
    return same


def _remove_files(stale: Sequence[Leftover], _: Sequence[Leftover]) -> list[Leftover]:
    """Remove saved configurations or records, which ADD writes without a lock. Returns: those that were removed."""
    return [leftover for leftover in stale if leftover.stamp and remove_if_same(leftover.path, leftover.stamp)]


def remove_if_same(path: str, stamp: Stamp) -> bool:
    """Delete the stale file, but not one that replaced it since. Raises: IOFailure."""
    if stamp_of(path) != stamp:
        return False
    # Renamed first and compared then: between a comparison and an unlink, ADD could put a new file at the path.
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
                posix.link(aside, path)  # link, not rename: it must not replace an even newer file
            except FileExistsError:
                pass
        posix.unlink(aside)
    return is_same


_REMOVE: dict[str, Callable[[Sequence[Leftover], Sequence[Leftover]], list[Leftover]]] = {
    ELEMENT: _remove_elements,
    CHAIN: _remove_chains,
    ACCEPTED: _remove_accepted,
    VETH: _remove_links,
    IFB: _remove_links,
    DEVICE: _rename_devices,
    ADDRESS: _remove_reservations,
    SAVED: _remove_files,
    RECORD: _remove_files,
}
