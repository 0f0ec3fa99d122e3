"""What a sweep found, as values, as a table and as JSON."""

from __future__ import annotations

from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni_py.sweep.leftovers import Trace

FREED, WOULD_FREE, KEPT, FAILED, REPORTED = "freed", "would be freed", "kept", "failed", "reported"
_HEAD = ("FATE", "WHAT", "", "CONTAINER ID", "INTERFACE", "NETWORK", "AGE", "WHY")


class Finding(Value):
    """Something dead: what it is, why, and what became of it.

    ``age_seconds`` is that of the youngest file of its attachment; None: none is left.
    """

    trace: Trace
    network: str
    age_seconds: float | None
    why: str
    fate: str


class Report(Value):
    """All that was found dead; ``missing`` says why the evidence is incomplete, if it is."""

    findings: tuple[Finding, ...] = ()
    namespaces: int = 0
    live_attachments: int = 0
    missing: tuple[str, ...] = ()
    is_dry_run: bool = False

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fate == FAILED]

    @property
    def is_complete(self) -> bool:
        """Whether everything could be judged and freed."""
        return not self.failed and not self.missing

    def lines(self) -> Iterator[str]:
        """A table, and a line that counts."""
        rows = [_HEAD, *(_row(finding) for finding in self.findings)] if self.findings else []
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))] if rows else []
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        fates = [finding.fate for finding in self.findings]
        counts = [f"{fates.count(fate)} {fate}" for fate in (FREED, WOULD_FREE, KEPT, FAILED, REPORTED) if fate in fates]
        lives = f"; {self.live_attachments} attachments live, in {self.namespaces} namespaces with the host's"
        yield f"{', '.join(counts) or 'nothing is left behind'}{lives if self.namespaces else ''}"

    def as_json(self) -> dict[str, Any]:
        """The same for programs; ``ageSeconds`` null: no file tells it."""
        return {
            "dryRun": self.is_dry_run,
            "namespaces": self.namespaces,
            "liveAttachments": self.live_attachments,
            "missing": list(self.missing),
            "findings": [
                {
                    "fate": finding.fate,
                    "kind": finding.trace.kind,
                    "what": finding.trace.what,
                    "path": finding.trace.path,
                    "containerID": finding.trace.container_id,
                    "ifname": finding.trace.ifname,
                    "network": finding.network,
                    "ageSeconds": None if finding.age_seconds is None else round(finding.age_seconds, 1),
                    "why": finding.why,
                }
                for finding in self.findings
            ],
        }


def _row(finding: Finding) -> tuple[str, ...]:
    trace = finding.trace
    return (
        finding.fate,
        trace.kind,
        trace.what,
        trace.container_id or "-",
        trace.ifname or "-",
        finding.network or "-",
        age_text(finding.age_seconds),
        finding.why,
    )


def age_text(seconds: float | None) -> str:
    """``47 s``, ``5 min``, ``3 h``, ``12 d``."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return "future"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
