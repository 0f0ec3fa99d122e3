"""What of the traces is dead, and what is to become of it: pure, from traces and evidence to findings.

Whatever speaks for one piece of an attachment speaks for all of it. See sweep.py for why that is enough.
"""

from __future__ import annotations

from cni_py.packetfilter.ownership import network_hash
from cni_py.sweep.leftovers import ADDRESS, CACHED, RECORD, Trace
from cni_py.sweep.liveness import Evidence, plain_run
from cni_py.sweep.report import KEPT, REPORTED, WOULD_FREE, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_py.spec.call import Call

LIVE_END = "live host end"
_NO_FILE = float("inf")


def decide(
    found: Sequence[Trace], seen: Evidence, now: float, grace_seconds: float, calling: Call | None = None
) -> list[Finding]:
    """What of the traces is dead, why, and what is to become of it. Pure."""
    of_container: dict[str, list[Trace]] = {}
    for trace in found:
        of_container.setdefault(trace.short_id, []).append(trace)
    for end in map(live_end, seen.aliases):
        of_container.setdefault(end.short_id, []).append(end)
    claimed = {t.inode for t in found if t.kind == RECORD and t.inode and _leads_to(t, seen) == t.inode}
    names = {trace.hashed: trace.network for trace in found if trace.network}
    findings = []
    for trace in found:
        related = [t for t in of_container[trace.short_id] if t.is_with(trace)] if trace.container_id else [trace]
        if life(related, seen, claimed, calling):
            continue
        age = age_of(related, now)
        fate, because = _fate(trace, related, seen, age, grace_seconds)
        why = "; ".join(_death(trace, related, seen)) + (f"; kept: {because}" if because else "")
        network = trace.network or names.get(trace.hashed, f"({trace.hashed})" if trace.hashed else "")
        findings.append(Finding(trace, network, None if age == _NO_FILE else age, why, fate))
    return sorted(findings, key=lambda f: (f.network, f.trace.short_id, f.trace.ifname, f.trace.kind, f.trace.what))


def age_of(related: Iterable[Trace], now: float) -> float:
    """Seconds since the youngest file was written; negative: its time lies in the future."""
    return min((now - trace.stamp[0] / 1e9 for trace in related if trace.stamp), default=_NO_FILE)


def _fate(trace: Trace, related: Sequence[Trace], seen: Evidence, age: float, grace_seconds: float) -> tuple[str, str]:
    """What becomes of something dead, and why it is kept if it is."""
    if trace.kind == CACHED:
        return REPORTED, ""
    if any(t.is_blind for t in related) and not any(t.address or t.netns for t in related):
        return KEPT, "its IPAM plugin keeps no addresses that are known here, and there is no record of its namespace"
    if seen.missing:
        return KEPT, f"the evidence is incomplete: {seen.missing[0]}"
    if age < 0:
        return KEPT, "its time lies in the future"
    if age < grace_seconds:
        return KEPT, f"too young: {age:.0f} s of {grace_seconds:g}"
    return WOULD_FREE, ""


def life(related: Sequence[Trace], seen: Evidence, claimed: Collection[int] = (), calling: Call | None = None) -> str:
    """What shows that the attachment of these traces lives; empty: nothing does. Pure.

    Args:
        claimed: inodes of namespaces that are where a record says.
        calling: see :func:`run`.
    """
    is_called = calling is not None and any(_is_of(trace, calling) for trace in related)
    for trace in related:
        sign = _sign(trace, related, seen, claimed) or ("" if is_called else _sign_by_name(trace, seen))
        if sign:
            return sign
    return ""


def _sign(trace: Trace, related: Sequence[Trace], seen: Evidence, claimed: Collection[int]) -> str:
    """What only a live attachment has: an address, a host end, its namespace."""
    if trace.address in seen.addresses:
        return f"{address_text(trace.address)} is in {seen.addresses[trace.address]}"
    if trace.kind == LIVE_END or _is_cut_alias(trace, seen):
        return "its host end leads into a live namespace"
    if trace.kind == RECORD and _record_lives(trace, related, seen, claimed):
        return f'its record names "{trace.netns}", which is there'
    return ""


def _sign_by_name(trace: Trace, seen: Evidence) -> str:
    """What has its name, and may be a later attachment of that name."""
    if trace.kind == CACHED and trace.netns and _leads_to(trace, seen) not in (0, seen.own):
        return f'its cached result names "{trace.netns}", which is there'
    if trace.container_id in seen.containers:
        return f"processes of container {trace.container_id} run"
    is_called = any(one == trace.container_id and trace.ifname in ("", ifname) for one, ifname in seen.calls)
    return "a plugin is being called for it" if is_called else ""


def _leads_to(trace: Trace, seen: Evidence) -> int | None:
    """Inode of what is at the path of the sandbox, in whatever mount namespace; 0: nothing; None: it cannot be told."""
    there = seen.sandboxes.get(trace.netns, 0)
    return there or next(iter(seen.mount_points.get(plain_run(trace.netns), ())), there)


def _record_lives(record: Trace, related: Sequence[Trace], seen: Evidence, claimed: Collection[int]) -> bool:
    """The path leads to the namespace of then; or that namespace is there by another name.

    The latter counts only where no address of the attachment is known and no other record claims the
    inode: the kernel gives numbers of namespaces that have gone to new ones.
    """
    there = _leads_to(record, seen)
    if there is None or (record.inode or there) == there != 0:
        return True
    if record.inode in seen.mount_points.get(plain_run(record.netns), ()):
        return True
    is_somewhere = record.inode in seen.namespaces and record.inode not in claimed and record.inode != seen.own
    return is_somewhere and not any(trace.address for trace in related)


def live_end(alias: str) -> Trace:
    """A host end as a trace of the attachment that its alias names; a network whose name was cut is any."""
    container_id, _, rest = alias.partition(":")
    ifname, _, network = rest.partition(":")
    return Trace(LIVE_END, alias, alias, container_id, ifname, network, "" if "~" in network else network_hash(network))


def _is_cut_alias(trace: Trace, seen: Evidence) -> bool:
    """Whether a host end may be of this container, whose id is too long for an alias (attachments.name_of)."""
    cut = [alias for alias in seen.aliases if "~" in alias] if len(trace.short_id) == 72 else []
    return any(alias.startswith(trace.short_id.partition("~")[0]) for alias in cut)


def _is_of(trace: Trace, call: Call) -> bool:
    return (trace.container_id, trace.network) == (call.container_id, call.network) and trace.ifname in ("", call.ifname)


def _death(trace: Trace, related: Sequence[Trace], seen: Evidence) -> list[str]:
    """The evidence in words."""
    everywhere = f"of any of {len(seen.namespaces)} live namespaces"
    addresses = [trace.address] if trace.address else sorted({t.address for t in related if t.address})
    reasons = ["it is damaged, nobody's"] if trace.kind == ADDRESS and not trace.container_id else []
    if addresses:
        reasons.append(f"{', '.join(map(address_text, addresses))} is on no interface {everywhere}")
    for one in related:
        if one.netns and one.kind in (RECORD, CACHED):
            what = "recorded namespace" if one.kind == RECORD else "its cached result's namespace"
            reason = f"{what} {one.netns} {'is another one now' if _leads_to(one, seen) else 'has gone'}"
            reasons += [reason] if reason not in reasons else []
    return reasons or [f"nothing of it is in any of {len(seen.namespaces)} live namespaces"]


def address_text(packed: bytes) -> str:
    from ipaddress import ip_address

    return str(ip_address(packed))
