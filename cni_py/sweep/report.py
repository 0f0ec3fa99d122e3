"""Findings of a sweep, as values, as text and as JSON."""

from __future__ import annotations

from cni_py.plural import counted
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni_py.sweep.leftovers import Leftover

REMOVED, WOULD_REMOVE, KEPT, FAILED, REPORTED = "removed", "would be removed", "kept", "failed", "reported"
COLUMNS = 80


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
        """Yield a block for each attachment, and a line of totals."""
        blocks: dict[tuple[str, ...], list[Leftover]] = {}
        for one in self.findings:
            of = one.leftover
            age = age_text(one.age_seconds)
            key = (one.outcome, one.network, of.container_id, of.ifname if of.container_id else of.what, age, one.why)
            blocks.setdefault(key, []).append(of)
        for (outcome, network, container_id, ifname, age, why), leftovers in blocks.items():
            of_container = f"container {container_id}, {ifname or '-'}" if container_id else "no owner"
            yield from _folded(f"{outcome}: {of_container}, network {network or '-'}, age {age}", "")
            for leftover in leftovers:
                yield from _folded(f"{leftover.kind.ljust(8)} {leftover.what}", "    ", 9)
            yield from _folded(f"why: {why}", "    ", 5)
        outcomes = [finding.outcome for finding in self.findings]
        counts = [f"{outcomes.count(one)} {one}" for one in (REMOVED, WOULD_REMOVE, KEPT, FAILED, REPORTED) if one in outcomes]
        nothing = "unknown whether resources are leaked" if self.missing else "no leaked resources found"
        yield from _folded(f"{', '.join(counts) or nothing}{self._live}", "")

    @property
    def _live(self) -> str:
        attachments, namespaces = counted(self.live_attachments, "live attachment"), counted(self.namespaces, "namespace")
        return f"; {attachments} in {namespaces}, including the host's" if self.namespaces else ""

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs; ``ageSeconds`` is null if no file is left."""
        return {
            "dryRun": self.is_dry_run,
            "namespaces": self.namespaces,
            "liveAttachments": self.live_attachments,
            "isComplete": self.is_complete,
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


def _folded(text: str, indent: str, hanging: int = 4) -> list[str]:
    """Fold the text to 80 columns; names are never broken."""
    from textwrap import wrap

    below = indent + " " * hanging
    return wrap(
        text, COLUMNS, initial_indent=indent, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


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
