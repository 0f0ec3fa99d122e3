"""The entries of the leases that are followed: what a lease asks of the back end is desired as long as it is followed.

The entries of one lease change together, by family, and those of no other. A node that its lease does not let us reach is
logged as a warning, once, unless the reason changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.node.log import error, warning, warning_once

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.flanneld.backends import Backend
    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.node.reconcile import Reconciler

    Change = tuple[Lease | None, Lease | None]
    """A lease before and after; None: it is not followed."""


class LeaseEntries:
    """Entries by lease, handed to the back end and the reconciler."""

    def __init__(self, backend: Backend, reconciler: Reconciler) -> None:
        self._backend, self._reconciler = backend, reconciler
        self._unreached: dict[Subnets, list[str]] = {}
        """Faults of leases that were logged."""
        self._said: set[str] = set()

    def follow(self, own: Lease, changes: Iterable[Change], left_out: dict[Subnets, set[int]]) -> None:
        """Replace the entries of these leases.

        Args:
            left_out: the families in which a lease is not followed, which was logged already.
        """
        self._backend.follow(own, [change for change in changes if self._replace(*change, left_out)])

    def settle(self) -> None:
        """Let the reconciler make the kernel's entries those that are desired. Raises: CniError."""
        self._reconciler.settle()

    def _replace(self, former: Lease | None, lease: Lease | None, left_out: dict[Subnets, set[int]]) -> bool:
        """Replace the entries of one lease, by family; return whether the back end is to follow it too."""
        peer = lease or former
        assert peer is not None, "one of the two"
        try:
            there = dict(self._backend.peer_entries(former)) if former else {}
            wanted = dict(self._backend.peer_entries(lease)) if lease else {}
            self._warn_of_faults(peer.subnets, lease, left_out.get(peer.subnets, set()))
        except Exception as fault:  # noqa: BLE001 — what one node publishes never costs another one
            error(f"the lease of {peer.subnets} could not be followed: {fault!r:.200}; not reached")
            return False
        for version in there.keys() | wanted.keys():
            owner = (peer.subnets, version)
            taken = self._reconciler.replace(owner, there.get(version, ()), wanted.get(version, ()))
            if taken is not None:
                words = f"{' '.join(taken.words())}, which another lease asks for"
                warning_once(f"{peer.subnets} is not reached: what its lease asks for contradicts {words}", self._said)
        return True

    def _warn_of_faults(self, subnets: Subnets, lease: Lease | None, left_out: set[int]) -> None:
        """Log why a node is not reached, or not by one family; once, unless it changes."""
        faults = [] if lease is None else [text for version, text in self._backend.faults(lease) if version not in left_out]
        logged = self._unreached.pop(subnets, [])
        for text in faults:
            if text not in logged:
                warning(text)
        if faults:
            self._unreached[subnets] = faults
