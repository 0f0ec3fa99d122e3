"""Findings of a sweep, as values, as a table and as JSON."""

from __future__ import annotations

from cni_py.plural import counted
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni_py.sweep.leftovers import Leftover

REMOVED, WOULD_REMOVE, KEPT, FAILED, REPORTED = "removed", "would be removed", "kept", "failed", "reported"
_HEAD = ("OUTCOME", "WHAT", "", "CONTAINER ID", "INTERFACE", "NETWORK", "AGE", "WHY")


class Finding(Value):
    """Stale leftover: why it is stale, and what was done with it.

    Attributes:
        age_seconds: of the youngest file of its attachment; None: no file is left.
        outcome: REMOVED, WOULD_REMOVE, KEPT, FAILED or REPORTED.
    """

    leftover: Leftover
    network: str
    age_seconds: float | None
    why: str
    outcome: str


class Report(Value):
    """Stale leftovers of a host; ``missing``: why liveness is not fully known, if it is not."""

    findings: tuple[Finding, ...] = ()
    namespaces: int = 0
    live_attachments: int = 0
    missing: tuple[str, ...] = ()
    is_dry_run: bool = False

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.outcome == FAILED]

    @property
    def is_complete(self) -> bool:
        """True if everything could be checked, and everything stale was removed."""
        return not self.failed and not self.missing

    def lines(self) -> Iterator[str]:
        """Yield a table, and a line of totals."""
        rows = [_HEAD, *(_row(finding) for finding in self.findings)] if self.findings else []
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))] if rows else []
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        outcomes = [finding.outcome for finding in self.findings]
        counts = [f"{outcomes.count(one)} {one}" for one in (REMOVED, WOULD_REMOVE, KEPT, FAILED, REPORTED) if one in outcomes]
        attachments, namespaces = counted(self.live_attachments, "live attachment"), counted(self.namespaces, "namespace")
        live = f"; {attachments} in {namespaces}, including the host's"
        yield f"{', '.join(counts) or 'no leaked resources found'}{live if self.namespaces else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs; ``ageSeconds`` is null if no file is left."""
        return {
            "dryRun": self.is_dry_run,
            "namespaces": self.namespaces,
            "liveAttachments": self.live_attachments,
            "missing": list(self.missing),
            "findings": [
                {
                    "outcome": finding.outcome,
                    "kind": finding.leftover.kind,
                    "what": finding.leftover.what,
                    "path": finding.leftover.path,
                    "containerID": finding.leftover.container_id,
                    "ifname": finding.leftover.ifname,
                    "network": finding.network,
                    "ageSeconds": None if finding.age_seconds is None else round(finding.age_seconds, 1),
                    "why": finding.why,
                }
                for finding in self.findings
            ],
        }


def _row(finding: Finding) -> tuple[str, ...]:
    leftover = finding.leftover
    return (
        finding.outcome,
        leftover.kind,
        leftover.what,
        leftover.container_id or "-",
        leftover.ifname or "-",
        finding.network or "-",
        age_text(finding.age_seconds),
        finding.why,
    )


def age_text(seconds: float | None) -> str:
    """Format an age: ``47 s``, ``5 min``, ``3 h``, ``12 d``."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return "future"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
