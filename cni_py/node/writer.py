"""Change the kernel's tables, and remember what the kernel refused.

A refusal is logged once, and again when the kernel's words change. What was refused is retried by the caller:
:attr:`Writer.refused` has the keys, :attr:`Writer.retry_at` the time.
"""

from __future__ import annotations

from errno import ENOENT
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from cni_py.node.desired import FORWARDING
from cni_py.node.log import error, warning
from cni_py.node.tables import SYSCTLS, Sysctl
from cni_py.node.unsettable import Unsettable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from cni_py.errors import KernelRefused
    from cni_py.kernel.bulk import Refusal
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Place
    from cni_py.node.health import Health
    from cni_py.node.tables import Table

RETRY_SECONDS = 2.0
"""The time until a retry, unless a link or an address appears before."""
CHUNK = 2048
"""Entries that are changed before ``drain`` is called."""
REFUSED = "What the kernel refuses at present."
CHANGES = "Changes that were made to links, addresses, routes, entries and kernel parameters."


class Writer:
    """Writes to the kernel.

    Args:
        external: the interface whose router advertisements count for the node.
        drain: reads the kernel's reports, so that those of thousands of changes fit into their socket's buffer.
    """

    def __init__(self, health: Health, host: Rtnl, external: str, drain: Callable[[], None]) -> None:
        self.health, self._host, self._external, self._drain = health, host, external, drain
        self.refused: dict[Place, str] = {}
        """Entries that the kernel refuses at present, and its words."""
        self.retry_at = inf
        self._before: dict[Place, str] = {}
        """Refusals at the beginning of the check of all tables that is in progress."""
        self._unsettable = Unsettable()

    def put(self, table: Table[Any], entries: Sequence[Any]) -> int:
        """Make the entries; return how many were made. Raises: CniError if the kernel cannot be asked."""
        refusals: list[Refusal[Any]] = []
        for start in range(0, len(entries), CHUNK):
            refusals += table.replace(self._host, entries[start : start + CHUNK])
            if len(entries) > CHUNK:
                self._drain()
        return self._remember(table, entries, refusals)

    def delete(self, table: Table[Any], entries: Sequence[Any]) -> int:
        """Delete the entries; return how many were deleted. Raises: CniError if the kernel cannot be asked."""
        return self._remember(table, entries, table.delete(self._host, entries)) if entries else 0

    def put_sysctls(self, sysctls: Iterable[Sysctl]) -> int:
        """Set those that differ; return how many were set. The kernel sends no report of these, so they are read every time."""
        changes = 0
        for entry in sysctls:
            found = None if entry.name in self._unsettable else SYSCTLS.read(entry)
            if found is None or found == entry:
                continue
            refused = SYSCTLS.replace(self._host, [entry])
            if not refused:
                changes += 1
                self._warn_of_advertisements(entry)
            elif refused[0].error.errno != ENOENT:  # ENOENT: of a device that was just deleted; else /proc/sys is read-only
                self._unsettable.add(entry.name, entry.value, refused[0].error)
        self.count(changes)
        return changes

    def warn_of_unsettable(self) -> None:
        """Log which kernel parameters could not be set, each once."""
        self._unsettable.warn()

    def count(self, changes: int) -> None:
        """Add to the figure for Prometheus."""
        if changes:
            self.health.count("changes_total", CHANGES, changes)

    # ---- refusals -------------------------------------------------------------------------------

    def begin_check(self) -> None:
        """Begin a check of all tables, which finds out what is refused."""
        self._before, self.refused, self.retry_at = self.refused, {}, inf

    def end_check(self) -> None:
        self._before = {}
        self._show()

    def refuse(self, table: Table[Any], key: Hashable, fault: KernelRefused) -> None:
        """Remember that an entry was not made."""
        place, words = (table, key), str(fault)
        if self.refused.get(place, self._before.get(place)) != words:
            error(words)
        self.refused[place] = words
        self.retry_at = min(self.retry_at, monotonic() + RETRY_SECONDS)
        self._show()

    def _remember(self, table: Table[Any], entries: Sequence[Any], refusals: Sequence[Refusal[Any]]) -> int:
        refused = {table.key(refusal.item): refusal.error for refusal in refusals}
        if self.refused:
            for key in map(table.key, entries):
                if key not in refused:
                    self.refused.pop((table, key), None)
            self._show()
        for key, fault in refused.items():
            self.refuse(table, key, fault)
        self.count(len(entries) - len(refused))
        return len(entries) - len(refused)

    def _show(self) -> None:
        self.health.gauge("refused", REFUSED, len(self.refused))

    def _warn_of_advertisements(self, changed: Sysctl) -> None:
        """Warn once IPv6 forwarding is on: the kernel then ignores routers, unless ``accept_ra`` is 2."""
        if changed.name != FORWARDING[6]:
            return
        name = f"net/ipv6/conf/{self._external}/accept_ra"
        if SYSCTLS.read(Sysctl(name, "")) == Sysctl(name, "1"):
            hint = f"if it needs that: sysctl -w net.ipv6.conf.{self._external}.accept_ra=2"
            warning(f"the node forwards IPv6 now, so {self._external} takes no default route from a router any more; {hint}")
