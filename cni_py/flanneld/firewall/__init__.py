"""The packet filter rules of a node: masquerading (``-ip-masq``), and accepting what pods forward.

How it works. Which packets, and why the accepting rules go where they go, is in packetfilter/forward_rules.py.
masquerade.py, accept.py and chains.py hold the rules of one kind each; :class:`Firewall` decides between nftables and
iptables, writes everything at its start, repairs it (watch.py), and deletes rules of the other kind and of Go flannel.

Masquerade is in nftables unless the network configuration has ``"EnableNFTables": false`` or nftables
does not work on this host; then it is in iptables, and the accepting rules are in its FORWARD whether that drops or not.
With nftables they go into FORWARD where that drops: of iptables-nft, of legacy iptables, or of both.

Go-compatible: the rules stay when flanneld exits.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.flanneld.firewall import watch
from cni_py.flanneld.firewall.accept import Accept
from cni_py.flanneld.firewall.chains import IptablesChains
from cni_py.flanneld.firewall.masquerade import IPTABLES, NFTABLES, Masquerade, choose_kind
from cni_py.node import log as klog
from cni_py.node.changes import because, finish
from cni_py.packetfilter import forward as tables
from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter import vxlan_guard
from cni_py.packetfilter.forward_rules import Pair
from cni_py.undo import Attempts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.flanneld.lease import Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.options import Options
    from cni_py.node.stop import Stop


class Firewall:
    """The rules of one subnet of this node. A new subnet needs a new object, which writes everything again."""

    def __init__(
        self, options: Options, config: NetworkConfig, subnets: Subnets, guards: Sequence[vxlan_guard.Guard] = ()
    ) -> None:
        """``guards``: the addresses on which VXLAN is received; without them, all."""
        families = ((config.network, subnets.ipv4), (config.ipv6_network, subnets.ipv6))
        pairs = [Pair(network, subnet) for network, subnet in families if network and subnet]
        self.pairs, self._guards = pairs, list(guards)
        masqueraded = [pair for pair in pairs if options.masquerades(pair.version)]
        self.masquerades, self.accepts = bool(masqueraded), options.iptables_forward_rules
        self.resync_seconds = max(options.iptables_resync, 1)
        self.kind = ""
        """nftables or iptables, chosen by the first :meth:`ensure`."""
        self._asked_for_nftables = config.enable_nftables if "enable_nftables" in config.model_fields_set else None
        self._chains = IptablesChains()
        self._masquerade = Masquerade(masqueraded, self._chains, random_fully=not options.ip_masq_fully_random_disable)
        self._accept = Accept(pairs, self._chains)
        self._logged: set[str] = set()
        self._lock = Lock()

    def ensure(self) -> None:
        """Write the rules, and delete those of the other kind and of Go flannel. Idempotent.

        Raises: CniError if it cannot masquerade. Other failures are logged.
        """
        with self._lock:
            self.kind = self.kind or choose_kind(self._asked_for_nftables)
            self._chains.forget_state()
            if self.masquerades:
                self.kind = self._masquerade.start(self.kind, must_be_nftables=bool(self._asked_for_nftables))
            accepted: bool | None = False
            if self.accepts:
                for pair in self.pairs:  # Go's sentence, though only chains that drop are changed: the next lines name them
                    klog.info(f"{'IPv6: ' if pair.version == 6 else ''}Changing default FORWARD chain policy to ACCEPT")
                accepted = self._attempt("Failed to setup IPTables", self._ensure_accept)
                self._attempt("could not look for chains that drop forwarded packets", self._accept.warn_droppers)
            if self._guards:
                self._attempt("VXLAN is received on every address", vxlan_guard.ensure, self._guards)
            else:
                self._attempt("could not delete the rules for VXLAN on one address", vxlan_guard.delete)
            # After writing, not before: at no moment is the node without rules.
            self._attempt("could not delete rules of an earlier flannel", self._delete_others, accepted is None)

    def run(self, stop: Stop) -> None:
        """Repair the rules whenever another process changes them, until ``stop``."""
        watched = [rules.TABLE] if self.masquerades else []
        watched += [vxlan_guard.TABLE] if self._guards else []
        for family in ("ip", "ip6"):
            watched += [f"{family} filter"] * self.accepts
            watched += [f"{family} nat"] * (self.masquerades and self.kind == IPTABLES)
        watch.run(self.repair, watched, self.resync_seconds, stop)

    def repair(self, culprit: str = "") -> bool:
        """Restore missing rules. Returns: whether any was missing. A failure is logged once, and retried by the next call."""
        with self._lock:
            because(f"{culprit or 'another process'} has changed rules of the packet filter")
            repaired = False
            if self.masquerades:
                repaired = bool(self._attempt("Failed to setup masq rules", self._masquerade.repair, self.kind, culprit))
            if self._guards:
                repaired |= bool(self._attempt("VXLAN is received on every address", vxlan_guard.ensure, self._guards))
            if self.accepts:
                repaired |= bool(self._attempt("Failed to ensure iptables rules", self._ensure_accept, culprit))
                self._attempt("could not look for chains that drop forwarded packets", self._accept.warn_droppers)
            finish()
            return repaired

    def _ensure_accept(self, culprit: str = "") -> bool:
        return self._accept.ensure(culprit, always=self.kind == IPTABLES)

    def _attempt(self, failure: str, do: Callable[..., bool | None], *args: object) -> bool | None:
        """Log a failure, the same one once. Returns: the result of ``do``; None if it failed."""
        try:
            done = bool(do(*args))
        except CniError as error:
            text = f"{failure}: {error}"
            if text not in self._logged:
                self._logged.add(text)
                klog.error(text)
            return None
        self._logged = {text for text in self._logged if not text.startswith(failure)}
        return done

    # ---- deleting -----------------------------------------------------------------------------

    def _delete_others(self, is_accept_unknown: bool) -> None:
        """Delete rules that an earlier start left and this one does not want, and those of Go flannel.

        Args:
            is_accept_unknown: accepting failed: which of its rules are wanted is unknown, and all stay.
        """
        present = tables.present(rules.MASQUERADE_CHAIN, rules.FORWARD_CHAIN)
        wanted = {slot for slot in present if is_accept_unknown and slot.chain == rules.FORWARD_CHAIN} | self._chains.applied
        unwanted = [slot for slot in present if slot not in wanted]
        gos = tables.present(rules.GO_MASQUERADE_CHAIN, rules.GO_FORWARD_CHAIN)
        if unwanted or gos:
            klog.info("Cleaning-up iptables rules...")
        attempts = Attempts()
        for slot in [*unwanted, *gos]:
            with attempts.attempt(str(slot)):
                slot.delete()
        is_ours_wanted = self.masquerades and self.kind == NFTABLES
        for name in (*rules.GO_TABLES, *([] if is_ours_wanted else [rules.TABLE])):
            with attempts.attempt(f"table {name}"):
                if tables.delete_table(name):
                    klog.info(f"Cleaning-up nftables rules... (table {name})")
        attempts.raise_if_failed("deleting rules")

    @staticmethod
    def cleanup() -> None:
        """Delete all our rules, of any configuration; no :meth:`run` may be active. Raises: CniError."""
        attempts = Attempts()
        for slot in tables.present(rules.MASQUERADE_CHAIN, rules.FORWARD_CHAIN):
            with attempts.attempt(str(slot)):
                slot.delete()
        for name in (rules.TABLE, vxlan_guard.TABLE):
            with attempts.attempt(f"table {name}"):
                tables.delete_table(name)
        attempts.raise_if_failed("deleting rules")
