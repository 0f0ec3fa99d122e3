"""The iptables chains that this flanneld has written, and their state when it last checked them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.node import log as klog

if TYPE_CHECKING:
    from cni_py.packetfilter.forward import ChainSlot


class IptablesChains:
    """``applied``: the slots that were written."""

    def __init__(self) -> None:
        self.applied: set[ChainSlot] = set()
        self._state: dict[ChainSlot, object] = {}
        """Fingerprints of slots that were right."""

    def forget_state(self) -> None:
        """Look at every chain again."""
        self._state.clear()

    def is_unchanged(self, slot: ChainSlot, state: object | None) -> bool:
        """Return True if it was right with this fingerprint; never without one (legacy iptables)."""
        return state is not None and state == self._state.get(slot)

    def remember(self, slot: ChainSlot, state: object | None) -> None:
        self._state[slot] = state

    def ensure(self, slot: ChainSlot, lines: list[str], culprit: str, *, first: bool) -> bool:
        """Write the chain and the jump to it unless they are right. Returns: whether they were wrong. Raises: CniError."""
        if self.is_unchanged(slot, slot.fingerprint()):
            return False
        changed = slot.apply(lines, first=first)
        if changed and slot in self.applied:
            by = f" (changed by {culprit})" if culprit else ""
            klog.info(f"Some iptables rules are missing; deleting and recreating rules{by}")
        self.applied.add(slot)
        # Read after writing: our own change is then no reason to look again.
        self.remember(slot, slot.fingerprint())
        return changed
