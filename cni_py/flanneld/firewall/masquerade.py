"""Masquerading for ``-ip-masq``: a table of nftables, or chains of iptables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.node import log as klog
from cni_py.packetfilter import forward as tables
from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter import libnftables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.flanneld.firewall.chains import IptablesChains
    from cni_py.packetfilter.forward_rules import Pair

NFTABLES, IPTABLES = "nftables", "iptables"


def choose_kind(asked_for_nftables: bool | None) -> str:
    """Nftables unless it does not work or the configuration excludes it (``"EnableNFTables"``; None: not set).

    Raises: NotAvailable if the configuration demands nftables and it does not work.
    """
    reason = '"EnableNFTables" is false' if asked_for_nftables is False else libnftables.works()
    if reason and asked_for_nftables:
        raise NotAvailable('"EnableNFTables" is true, but nftables does not work on this host', reason)
    kind = IPTABLES if reason else NFTABLES
    klog.info(f"Starting flannel in {kind} mode...")
    if reason and asked_for_nftables is None:
        klog.warning(f"falling back to iptables, nftables does not work: {reason}")
    return kind


class Masquerade:
    """The rules of one subnet of this node."""

    def __init__(self, pairs: Sequence[Pair], chains: IptablesChains, *, random_fully: bool) -> None:
        self._pairs, self._chains, self._random_fully = pairs, chains, random_fully
        self._written: tables.Written = []

    def start(self, kind: str, *, must_be_nftables: bool) -> str:
        """Write all rules. Returns: the kind that was written, iptables if nftables cannot masquerade. Raises: CniError."""
        if kind == NFTABLES:
            for pair in self._pairs:
                klog.info(f"nftables: setting up masking rules (ipv{pair.version})")
            try:
                self._written = tables.write(self._pairs, random_fully=self._random_fully)
                return NFTABLES
            except KernelRefused as refused:  # a kernel may have nftables and lack its masquerade
                if must_be_nftables:
                    raise
                klog.warning(f"falling back to iptables, nftables cannot masquerade: {refused}")
        for pair in self._pairs:
            klog.info("Setting up masking rules" + (" for IPv6" if pair.version == 6 else ""))
        if self._ensure_iptables():
            klog.info("bootstrap done")
        return IPTABLES

    def repair(self, kind: str, culprit: str = "") -> bool:
        """Returns: whether a rule was missing. Raises: CniError."""
        return self._rewrite_table(culprit) if kind == NFTABLES else self._ensure_iptables(culprit)

    def _rewrite_table(self, culprit: str) -> bool:
        if tables.is_current(self._pairs, self._written, random_fully=self._random_fully):
            return False
        by = f" by {culprit}" if culprit else ""
        klog.warning(f"nftables: table {rules.TABLE} was changed{by}: restoring it")
        self._written = tables.write(self._pairs, random_fully=self._random_fully)
        return True

    def _ensure_iptables(self, culprit: str = "") -> bool:
        repaired = False
        for pair in self._pairs:
            slot = tables.masquerade_slot(tables.default_tool(pair.version))
            lines = rules.iptables_lines(slot.chain, rules.masquerade_rules(pair), random_fully=self._random_fully)
            repaired |= self._chains.ensure(slot, lines, culprit, first=False)
        return repaired
