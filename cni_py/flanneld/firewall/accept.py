"""Accepting what pods forward, in each FORWARD chain of iptables that would drop it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.node import log as klog
from cni_py.packetfilter import forward as tables
from cni_py.packetfilter import forward_rules as rules
from cni_py.undo import Attempts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.flanneld.firewall.chains import IptablesChains
    from cni_py.packetfilter.forward_rules import Pair
    from cni_py.packetfilter.iptables import Iptables


class Accept:
    """The accepting rules of one subnet of this node."""

    def __init__(self, pairs: Sequence[Pair], chains: IptablesChains) -> None:
        self._pairs, self._chains = pairs, chains
        self._droppers: list[str] = []

    def ensure(self, culprit: str = "", *, always: bool) -> bool:
        """Accept where FORWARD drops. Returns: whether anything had to be changed. Raises: CniError.

        Args:
            always: accept in the host's default iptables even if it does not drop.
        """
        done, attempts = False, Attempts()
        for pair in self._pairs:
            for tool in self._tools(pair.version, always):
                is_wanted = always and tool == tables.default_tool(pair.version)
                with attempts.attempt(f"{tool.name} -t filter"):
                    done |= self._ensure_by(tool, pair, culprit, is_wanted)
        attempts.raise_if_failed("accepting forwarded packets")
        return done

    def _tools(self, version: int, always: bool) -> list[Iptables]:
        found = tables.tools_with_forward(version)
        default = [tables.default_tool(version)] if always else []
        return [*found, *(tool for tool in default if tool not in found)]

    def _ensure_by(self, tool: Iptables, pair: Pair, culprit: str, is_wanted: bool) -> bool:
        slot = tables.accept_slot(tool)
        lines = rules.iptables_lines(slot.chain, rules.accept_rules(pair))
        if slot in self._chains.applied:
            return self._chains.ensure(slot, lines, culprit, first=True)
        # The whole table: any chain that FORWARD jumps to may begin to drop.
        state = slot.fingerprint(whole=True)
        if self._chains.is_unchanged(slot, state):
            return False
        reason = rules.reason_dropped(tool.listing("filter"))
        if not reason and not is_wanted:
            self._chains.remember(slot, state)
            return False
        if reason:
            klog.info(
                f"{tool.name}: FORWARD drops packets: {reason}; accepting packets from and to {pair.network} "
                f"before that, in the chain {slot.chain}"
            )
        if self._chains.ensure(slot, lines, culprit, first=True):
            klog.info("bootstrap done")
        return True

    def warn_droppers(self) -> None:
        """Warn of nftables chains that drop forwarded packets: our rules cannot overrule them. Raises: CniError."""
        droppers = tables.dropping_forwarders()
        if droppers and droppers != self._droppers:
            networks = " and ".join(str(pair.network) for pair in self._pairs)
            klog.warning(
                f"nftables chains of other software drop forwarded packets: {', '.join(droppers)}. No rule outside of them "
                f"can overrule that: unless they accept {networks}, pods cannot reach each other"
            )
        self._droppers = droppers
