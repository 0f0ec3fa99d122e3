"""Decision which leftovers are stale, and what to do with each: pure, from leftovers and liveness to findings.

If one piece of an attachment is live, all of its pieces are. sweep.py explains why that is enough.
"""

from __future__ import annotations

from cni_py.journal import quote
from cni_py.packetfilter.ownership import network_hash
from cni_py.plural import counted
from cni_py.sweep.leftovers import ADDRESS, CACHED, RECORD, Leftover
from cni_py.sweep.liveness import Liveness, plain_run
from cni_py.sweep.report import KEPT, REPORTED, WOULD_REMOVE, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.spec.call import Call

LIVE_END = "live host end"
_NO_FILE = float("inf")


def find_stale(
    found: Sequence[Leftover], live: Liveness, now: float, grace_seconds: float, calling: Call | None = None
) -> list[Finding]:
    """Return stale leftovers, each with the reason and the outcome. Pure."""
    of_container: dict[str, list[Leftover]] = {}
    for leftover in found:
        of_container.setdefault(leftover.short_id, []).append(leftover)
    for end in map(live_end, live.marks):
        of_container.setdefault(end.short_id, []).append(end)
    claimed = {one.inode for one in found if one.kind == RECORD and one.inode and _inode_at(one, live) == one.inode}
    names = {leftover.hashed: leftover.network for leftover in found if leftover.network}
    findings = []
    for leftover in found:
        # A damaged reservation names no container: it is related to no other piece.
        of_same = of_container[leftover.short_id] if leftover.container_id else []
        related = [one for one in of_same if one.is_with(leftover)] or [leftover]
        if reason_alive(related, live, claimed, calling):
            continue
        age = age_of(related, now)
        outcome, kept_because = _decide(leftover, related, live, age, grace_seconds)
        why = "; ".join(reasons_stale(leftover, related, live)) + (f"; kept: {kept_because}" if kept_because else "")
        if outcome == REPORTED and leftover.network:
            why += f"; deleted by: cni-py gc {quote(leftover.network)} --valid-living"
        network = leftover.network or names.get(leftover.hashed, f"({leftover.hashed})" if leftover.hashed else "")
        findings.append(Finding(leftover, network, None if age == _NO_FILE else age, why, outcome))
    return sorted(findings, key=_sort_key)


def _sort_key(finding: Finding) -> tuple[str, ...]:
    leftover = finding.leftover
    return finding.network, leftover.short_id, leftover.ifname, leftover.kind, leftover.what


def age_of(related: Iterable[Leftover], now: float) -> float:
    """Return the seconds since the youngest file was written; negative if its time is in the future."""
    return min((now - leftover.stamp[0] / 1e9 for leftover in related if leftover.stamp), default=_NO_FILE)


def _decide(
    leftover: Leftover, related: Sequence[Leftover], live: Liveness, age: float, grace_seconds: float
) -> tuple[str, str]:
    """Return the outcome for a stale leftover, and why it is kept if it is."""
    if leftover.kind == CACHED:
        return REPORTED, ""
    if any(one.is_blind for one in related) and not any(one.address or one.netns for one in related):
        return KEPT, "its IPAM plugin is not host-local, and no record names its namespace: it may be in use"
    if live.missing:
        return KEPT, f"liveness unknown: {live.missing[0]}"
    if age < 0:
        return KEPT, "its modification time is in the future"
    if age < grace_seconds:
        return KEPT, f"too young: {age:.0f} s of {grace_seconds:g} (option --grace)"
    return WOULD_REMOVE, ""


def reason_alive(
    related: Sequence[Leftover], live: Liveness, claimed: Collection[int] = (), calling: Call | None = None
) -> str:
    """Return why the attachment of these leftovers is alive; empty if it is not. Pure.

    Args:
        claimed: inodes of recorded namespaces that are still at the recorded path.
        calling: see :func:`sweep.run`.
    """
    is_called = calling is not None and any(_is_of(leftover, calling) for leftover in related)
    for leftover in related:
        reason = _alive_by_state(leftover, related, live, claimed) or ("" if is_called else _alive_by_name(leftover, live))
        if reason:
            return reason
    return ""


def _alive_by_state(leftover: Leftover, related: Sequence[Leftover], live: Liveness, claimed: Collection[int]) -> str:
    """Check state that only a live attachment has: an address, a host end, its namespace."""
    if leftover.address in live.addresses:
        return f"{address_text(leftover.address)} is in {live.addresses[leftover.address]}"
    if leftover.kind == LIVE_END or _may_be_cut_mark(leftover, live):
        return "its host end leads into a live namespace"
    if leftover.kind == RECORD and _is_recorded_namespace_alive(leftover, related, live, claimed):
        return f'its record names "{leftover.netns}", which exists'
    return ""


def _alive_by_name(leftover: Leftover, live: Liveness) -> str:
    """Check state that a later attachment of the same name could have too."""
    if leftover.kind == CACHED and leftover.netns and _inode_at(leftover, live) not in (0, live.own):
        return f'its cached result names "{leftover.netns}", which exists'
    if leftover.container_id in live.containers:
        return f"processes of container {leftover.container_id} are running"
    is_called = any(one == leftover.container_id and leftover.ifname in ("", ifname) for one, ifname in live.calls)
    return "a plugin is being called for it" if is_called else ""


def _inode_at(leftover: Leftover, live: Liveness) -> int | None:
    """Return the inode at the sandbox's path, in any mount namespace; 0: none; None: unknown."""
    inode = live.sandboxes.get(leftover.netns, 0)
    return inode or next(iter(live.mount_points.get(plain_run(leftover.netns), ())), inode)


def _is_recorded_namespace_alive(
    record: Leftover, related: Sequence[Leftover], live: Liveness, claimed: Collection[int]
) -> bool:
    """Return whether the path still leads to the recorded namespace, or that namespace exists under another name."""
    inode = _inode_at(record, live)
    if inode is None or (record.inode or inode) == inode != 0:
        return True
    if record.inode in live.mount_points.get(plain_run(record.netns), ()):
        return True
    # The kernel reuses inodes of deleted namespaces: the number alone counts only if no address of the attachment
    # is known, which would be seen in a live namespace, and where no other record has a better claim to it.
    is_somewhere = record.inode in live.namespaces and record.inode not in claimed and record.inode != live.own
    return is_somewhere and not any(leftover.address for leftover in related)


def live_end(mark: str) -> Leftover:
    """Return a host end as a leftover of the attachment in its mark; a truncated network name matches any."""
    container_id, _, rest = mark.partition(":")
    ifname, _, network = rest.partition(":")
    return Leftover(LIVE_END, mark, mark, container_id, ifname, network, "" if "~" in network else network_hash(network))


def _may_be_cut_mark(leftover: Leftover, live: Liveness) -> bool:
    """Return whether a host end may belong to this container, whose id is too long for a mark (``record.mark_of``)."""
    cut = [mark for mark in live.marks if "~" in mark] if len(leftover.short_id) == 72 else []
    return any(mark.startswith(leftover.short_id.partition("~")[0]) for mark in cut)


def _is_of(leftover: Leftover, call: Call) -> bool:
    is_same = (leftover.container_id, leftover.network) == (call.container_id, call.network)
    return is_same and leftover.ifname in ("", call.ifname)


def reasons_stale(leftover: Leftover, related: Sequence[Leftover], live: Liveness) -> list[str]:
    """Return why a leftover is stale, for people."""
    everywhere = f"any of {counted(len(live.namespaces), 'live namespace')}"
    addresses = [leftover.address] if leftover.address else sorted({one.address for one in related if one.address})
    is_damaged = leftover.kind == ADDRESS and not leftover.container_id
    reasons = ["the file is damaged and names no owner"] if is_damaged else []
    if addresses:
        reasons.append(f"{', '.join(map(address_text, addresses))} is on no interface of {everywhere}")
    for one in related:
        if one.netns and one.kind in (RECORD, CACHED):
            what = "recorded namespace" if one.kind == RECORD else "its cached result's namespace"
            reason = f"{what} {one.netns} {'is a different one now' if _inode_at(one, live) else 'no longer exists'}"
            reasons += [reason] if reason not in reasons else []
    return reasons or [f"nothing of it exists in {everywhere}"]


def address_text(packed: bytes) -> str:
    from ipaddress import ip_address

    return str(ip_address(packed))
