"""The rules a node needs: pods' packets leave with its address (``-ip-masq``), and nobody drops what pods forward.

How it works. Which packets, and why the accepting rules go where they go, is in ``kernel/flannel_rules.py``.
Masquerade is in nftables unless the network configuration says ``"EnableNFTables": false`` or nftables
does not work here; then in iptables, and then the accepting rules are in its FORWARD whether it drops or not.
With nftables they go into FORWARD where that drops: of iptables-nft, of legacy iptables, or of both.

:meth:`Firewall.run` keeps them. The kernel tells of changes to nftables, and so to iptables-nft; legacy
iptables is looked at every ``-iptables-resync`` seconds, and so are the others, which costs nothing where
nothing has changed. Our own changes are heard of too: the look that follows finds all as it should be. If somebody
changes a rule back each time, the pause between two repairs grows to ``LONGEST_PAUSE_SECONDS``.

At its start it writes everything anew, in one transaction a table: what an earlier configuration left is gone with it.
After that it deletes what is of the other kind, or Go flannel's, so that there is no moment without rules.
Go-compatible: the rules stay when flanneld ends.
"""

from __future__ import annotations

from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.errors import CniError, KernelRefused, NotAvailable
from cni_py.node import log as klog
from cni_py.packetfilter import forward as tables
from cni_py.packetfilter import forward_rules as rules
from cni_py.packetfilter import libnftables
from cni_py.packetfilter.forward_rules import Pair
from cni_py.packetfilter.monitor import NftWatch
from cni_py.undo import Attempts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_py.flanneld.lease import Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.options import Options
    from cni_py.packetfilter.forward import Place
    from cni_py.packetfilter.iptables import Iptables

SETTLE_SECONDS = 0.05
"""Changes come in bursts: after the first, this long is waited for more."""
LONGEST_PAUSE_SECONDS = 0.8
STOP_SECONDS = 0.25
"""How long it may take until :meth:`Firewall.run` sees that it has to stop."""

NFTABLES, IPTABLES = "nftables", "iptables"


class Firewall:
    """The rules of one subnet of this node. One object per subnet: another one writes all anew."""

    def __init__(self, options: Options, config: NetworkConfig, subnets: Subnets) -> None:
        families = ((config.network, subnets.ipv4), (config.ipv6_network, subnets.ipv6))
        self.pairs = [Pair(network, subnet) for network, subnet in families if network and subnet]
        self.masquerades, self.accepts = options.ip_masq, options.iptables_forward_rules
        self.random_fully = not options.ip_masq_fully_random_disable
        self.resync_seconds = max(options.iptables_resync, 1)
        self.asked_for_nftables = config.enable_nftables if "enable_nftables" in config.model_fields_set else None
        self.kind = ""
        """nftables or iptables, chosen by the first :meth:`ensure`."""
        self._written: tables.Written = []
        self._seen: dict[Place, object] = {}
        """Fingerprints of what was found to be right."""
        self._placed: set[Place] = set()
        self._complaints: set[str] = set()
        self._droppers: list[str] = []
        self._lock = Lock()

    # ---- make it so ---------------------------------------------------------------------------

    def ensure(self) -> None:
        """Write the rules, and delete those of the other kind and of Go flannel; may be repeated.

        Raises: CniError where it cannot masquerade. Whatever else fails is logged.
        """
        with self._lock:
            if not self.kind:
                self._choose()
            self._seen.clear()
            if self.masquerades:
                self._start_masquerade()
            accepted: bool | None = False
            if self.accepts:
                for pair in self.pairs:  # as Go says it: what we do about it stands in the lines that follow, if anything
                    klog.info(f"{'IPv6: ' if pair.version == 6 else ''}Changing default FORWARD chain policy to ACCEPT")
                accepted = self._attempt("Failed to setup IPTables", self._accept)
                self._attempt("who drops what is forwarded is not known", self._tell_droppers)
            self._attempt("rules of an earlier flannel are left", self._delete_others, accepted is None)

    def _choose(self) -> None:
        reason = '"EnableNFTables" is false' if self.asked_for_nftables is False else libnftables.works()
        if reason and self.asked_for_nftables:
            raise NotAvailable('"EnableNFTables" is true, and nftables does not work here', reason)
        self.kind = IPTABLES if reason else NFTABLES
        klog.info(f"Starting flannel in {self.kind} mode...")
        if reason and self.asked_for_nftables is None:
            klog.warning(f"iptables is used, for nftables does not work here: {reason}")

    def _start_masquerade(self) -> None:
        if self.kind == NFTABLES:
            for pair in self.pairs:
                klog.info(f"nftables: setting up masking rules (ipv{pair.version})")
            try:
                self._written = tables.write(self.pairs, random_fully=self.random_fully)
                return
            except KernelRefused as refused:
                if self.asked_for_nftables:
                    raise
                klog.warning(f"iptables is used, for nftables cannot masquerade here: {refused}")
                self.kind = IPTABLES
        for pair in self.pairs:
            klog.info("Setting up masking rules" + (" for IPv6" if pair.version == 6 else ""))
        if self._masquerade_by_iptables():
            klog.info("bootstrap done")

    # ---- keep it so ---------------------------------------------------------------------------

    def run(self, stop: Event) -> None:
        """Put back what others remove, until ``stop``."""
        watch = self._open_watch()
        pause = SETTLE_SECONDS
        try:
            self.look()
            while (was_heard := self._wait(watch, stop)) is not None:
                if watch is None or not was_heard:
                    self.look()
                    continue
                stop.wait(pause)
                watch.wait(0)  # the rest of the burst
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS) if self.look(watch.culprit) else max(pause / 2, SETTLE_SECONDS)
        finally:
            if watch is not None:
                watch.close()

    def _open_watch(self) -> NftWatch | None:
        names = [rules.TABLE] if self.masquerades else []
        for family in ("ip", "ip6"):
            names += [f"{family} filter"] * self.accepts + [f"{family} nat"] * (self.masquerades and self.kind == IPTABLES)
        try:
            return NftWatch(names)
        except KernelRefused as refused:
            klog.warning(f"rules are looked at every {self.resync_seconds} s only: {refused}")
            return None

    def _wait(self, watch: NftWatch | None, stop: Event) -> bool | None:
        """Until a change is heard of (True), or it is time to look (False); ``None``: we are to stop."""
        until = monotonic() + self.resync_seconds
        while not stop.is_set():
            left = until - monotonic()
            if left <= 0:
                return False
            if watch is None:
                stop.wait(left)
            elif watch.wait(min(left, STOP_SECONDS)):
                return True
        return None

    def look(self, culprit: str = "") -> bool:
        """Put back what is missing; whether anything was. What fails is logged, once, and tried again next time."""
        with self._lock:
            repaired = False
            if self.masquerades:
                again = self._rewrite_table if self.kind == NFTABLES else self._masquerade_by_iptables
                repaired = bool(self._attempt("Failed to setup masq rules", again, culprit))
            if self.accepts:
                repaired |= bool(self._attempt("Failed to ensure iptables rules", self._accept, culprit))
                self._attempt("who drops what is forwarded is not known", self._tell_droppers)
            return repaired

    def _attempt(self, failure: str, do: Callable[..., bool | None], *args: object) -> bool | None:
        """Do it and log what fails, the same failure once; ``None``: it failed."""
        try:
            done = bool(do(*args))
        except CniError as fault:
            text = f"{failure}: {fault}"
            if text not in self._complaints:
                self._complaints.add(text)
                klog.error(text)
            return None
        self._complaints = {text for text in self._complaints if not text.startswith(failure)}
        return done

    # ---- masquerade ---------------------------------------------------------------------------

    def _rewrite_table(self, culprit: str = "") -> bool:
        """Whether our table was not as it should be."""
        if tables.stands(self.pairs, self._written, random_fully=self.random_fully):
            return False
        by = f" by {culprit}" if culprit else ""
        klog.warning(f"nftables: table {rules.TABLE} was changed{by}: it is put back")
        self._written = tables.write(self.pairs, random_fully=self.random_fully)
        return True

    def _masquerade_by_iptables(self, culprit: str = "") -> bool:
        repaired = False
        for pair in self.pairs:
            place = tables.masquerade_place(tables.default_tool(pair.version))
            lines = rules.iptables_lines(place.chain, rules.masquerade_rules(pair), random_fully=self.random_fully)
            repaired |= self._put(place, lines, culprit, first=False)
        return repaired

    def _put(self, place: Place, lines: list[str], culprit: str, *, first: bool) -> bool:
        """Make it so; whether it was not."""
        there = place.fingerprint()
        if there is not None and there == self._seen.get(place):
            return False
        changed = place.put(lines, first=first)
        if changed and place in self._placed:
            by = f" (changed by {culprit})" if culprit else ""
            klog.info(f"Some iptables rules are missing; deleting and recreating rules{by}")
        self._placed.add(place)
        self._seen[place] = place.fingerprint()
        return changed

    # ---- accept -------------------------------------------------------------------------------

    def _accept(self, culprit: str = "") -> bool:
        """Accept where FORWARD drops; whether something had to be done."""
        done, attempts = False, Attempts()
        for pair in self.pairs:
            for tool in self._tools_with_forward(pair.version):
                with attempts.attempt(f"{tool.name} -t filter"):
                    done |= self._accept_by(tool, pair, culprit)
        attempts.raise_if_failed("accepting what is forwarded")
        return done

    def _tools_with_forward(self, version: int) -> Iterator[Iptables]:
        found = tables.tools_with_forward(version)
        yield from found
        if self.kind == IPTABLES:
            default = tables.default_tool(version)
            if default not in found:
                yield default

    def _accept_by(self, tool: Iptables, pair: Pair, culprit: str) -> bool:
        place = tables.accept_place(tool)
        lines = rules.iptables_lines(place.chain, rules.accept_rules(pair))
        if place in self._placed:
            return self._put(place, lines, culprit, first=True)
        there = place.fingerprint(whole=True)
        if there is not None and there == self._seen.get(place):
            return False
        reason = rules.why_dropped(tool.listing("filter"))
        if not reason and not (self.kind == IPTABLES and tool == tables.default_tool(pair.version)):
            self._seen[place] = there
            return False
        if reason:
            klog.info(
                f"{tool.name}: FORWARD drops, {reason}; what comes from or goes to {pair.network} "
                f"is accepted before that, in the chain {place.chain}"
            )
        if self._put(place, lines, culprit, first=True):
            klog.info("bootstrap done")
        return True

    def _tell_droppers(self) -> None:
        """Warn of chains in nftables that drop what is forwarded: no rule of ours can overrule them."""
        droppers = tables.dropping_forwarders()
        if droppers and droppers != self._droppers:
            networks = " and ".join(str(pair.network) for pair in self.pairs)
            klog.warning(
                f"somebody else's nftables chain drops what is forwarded: {', '.join(droppers)}. No rule outside of it can "
                f"overrule that: unless it has a rule that accepts {networks}, pods do not reach one another"
            )
        self._droppers = droppers

    # ---- take away ----------------------------------------------------------------------------

    def _delete_others(self, are_accepts_unknown: bool) -> None:
        """Delete what an earlier start left and this one does not want, and what Go flannel left.

        Args:
            are_accepts_unknown: it is not known where they are wanted: they stay.
        """
        there = tables.present(rules.MASQUERADE_CHAIN, rules.FORWARD_CHAIN)
        spared = {place for place in there if are_accepts_unknown and place.chain == rules.FORWARD_CHAIN} | self._placed
        unwanted = [place for place in there if place not in spared]
        gos = tables.present(rules.GO_MASQUERADE_CHAIN, rules.GO_FORWARD_CHAIN)
        if unwanted or gos:
            klog.info("Cleaning-up iptables rules...")
        attempts = Attempts()
        for place in [*unwanted, *gos]:
            with attempts.attempt(f"{place.tool.name} -t {place.table}, chain {place.chain}"):
                place.delete()
        is_ours_wanted = self.masquerades and self.kind == NFTABLES
        for name in (*rules.GO_TABLES, *([] if is_ours_wanted else [rules.TABLE])):
            with attempts.attempt(f"table {name}"):
                if tables.delete_table(name):
                    klog.info(f"Cleaning-up nftables rules... (table {name})")
        attempts.raise_if_failed("deleting rules")

    @staticmethod
    def cleanup() -> None:
        """Delete every rule of ours, of whatever configuration; nobody may be in :meth:`run`. Raises: CniError."""
        attempts = Attempts()
        for place in tables.present(rules.MASQUERADE_CHAIN, rules.FORWARD_CHAIN):
            with attempts.attempt(f"{place.tool.name} -t {place.table}, chain {place.chain}"):
                place.delete()
        with attempts.attempt(f"table {rules.TABLE}"):
            tables.delete_table(rules.TABLE)
        attempts.raise_if_failed("deleting rules")
