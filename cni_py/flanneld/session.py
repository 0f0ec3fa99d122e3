"""One node, one interface, one subnet: set it up, and keep it so until one of them is another.

How it works. Seven threads: one watches the leases, one follows them, one renews ours, one reconciles the kernel,
one keeps the firewall's rules, one looks at the interface, one saves what is known. All they do is idempotent, so
a session can begin over a running one's data path without a packet lost.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections import deque
from dataclasses import replace
from time import CLOCK_BOOTTIME, clock_gettime, monotonic, time
from typing import TYPE_CHECKING, Any

from cni_py import files, subnet_env
from cni_py.datastore.errors import StoreError
from cni_py.errors import CniError
from cni_py.flanneld import backends, iface, saved
from cni_py.flanneld.allocate import in_words_without_end
from cni_py.flanneld.firewall import Firewall
from cni_py.flanneld.lease import Lease, Subnets
from cni_py.flanneld.lingering import Lingering
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import LeaseTaken
from cni_py.netlink.monitor import Watch
from cni_py.node.change_log import log_changes
from cni_py.node.desired import blackhole
from cni_py.node.gotime import clock, duration
from cni_py.node.log import error, info, warning
from cni_py.node.reconcile import Reconciler
from cni_py.node.status import RETRY_SECONDS
from cni_py.subnet_env import SubnetEnv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni_py.flanneld.host_networks import HostNetworks
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Attributes
    from cni_py.flanneld.options import Options
    from cni_py.flanneld.stores import Store
    from cni_py.node.status import Status

RENEW_RETRY_SECONDS, LOST_RETRY_SECONDS = 60.0, 3.0
PUT_BACK_COUNT, PUT_BACK_SECONDS = 10, 60.0
"""So often in this time our lease is put back at once; then somebody else does the same, and we take our time."""
LOOK_SECONDS = 10.0
"""How often the external interface is looked at, even if nothing was heard of it."""
DAY_SECONDS = 86400.0
SAVE_SECONDS = 5.0
"""How often what is known is saved, if it has changed: all leases are written, however little changed."""


class Session:
    """One node, one interface, one subnet; ``ended`` is set when it has to begin anew."""

    def __init__(
        self,
        options: Options,
        store: Store,
        status: Status,
        config_text: str,
        external: ExternalInterface,
        former: Attributes | None,
        host_networks: HostNetworks,
    ) -> None:
        """``former``: what our last lease said."""
        self.options, self.store, self.status = options, store, status
        self.host_networks = host_networks
        self.config_text = config_text
        self.config = NetworkConfig.parse(config_text).on_host(host_networks)
        self.external = external
        self.backend = backends.create(self.config, external)
        restore = getattr(self.backend, "restore", None)
        if restore is not None and former is not None:
            restore(former)
        self.reconciler = Reconciler(status.health, external.name, self.config.networks)
        self.ended = threading.Event()
        self.lease_lost = threading.Event()
        self._attributes = self.backend.attributes()
        self.lease = Lease(Subnets(), self._attributes)
        """As the datastore has it: where people overrule our address there (Kubernetes), with theirs."""
        self._put_back = deque([-PUT_BACK_SECONDS] * PUT_BACK_COUNT, maxlen=PUT_BACK_COUNT)
        """When our lease was put back, the last few times."""
        self._sets = self.store.watch(self.ended)
        self._news: queue.SimpleQueue[Mapping[Subnets, Lease]] = queue.SimpleQueue()
        self._known = self._saved = saved.Saved(config_text, self.lease, {})
        self._not_saved = ""
        """Why, when that was tried last."""
        self._ignored: dict[Subnets, Lease] = {}
        """Of the leases that there are those that are not followed; one that says something else now is judged anew."""
        self._told: Mapping[Subnets, Lease] = {}
        """What the datastore told last."""
        self._is_host_new = threading.Event()
        """Set where the host's networks are others: each lease is checked again."""
        self._threads: list[threading.Thread] = []

    def close(self) -> None:
        """What a next session opens again."""
        self.ended.set()
        self.reconciler.close()
        close = getattr(self.backend, "close", None)
        if close is not None:
            close()

    def first_leases(self) -> Mapping[Subnets, Lease] | None:
        """All leases as they are now: a restart must not take away, even for a moment, what leads to live peers.

        None where we are to stop before the datastore has told them.
        """
        return next(iter(self._sets), None)

    def acquire(self) -> bool:
        """Lease our subnet, however long it takes; False where we are to stop."""
        previous = read_subnets(self.options.subnet_file)
        while not self.status.stop.is_set():
            if self.host_networks.look():
                self.config = self.config.on_host(self.host_networks)
            try:
                self.lease = self.store.acquire(self.config, self._attributes, previous)
            except StoreError as fault:
                self.status.say_once(f"Error registering network: failed to acquire lease: {fault}", error)
                self.status.not_ready(f"no subnet is leased: {fault}")
                self.status.pause()
            else:
                if self.lease.expires is None and not self.options.kube_subnet_mgr:
                    info(in_words_without_end(self.lease.subnets))
                return True
        return False

    def set_up(self, leases: Mapping[Subnets, Lease]) -> None:
        """Rules, data path, subnet.env, in this order: a pod that starts finds all of it. Raises: CniError, OSError."""
        own = self.lease.subnets
        self.host_networks.start_on(own)
        self.firewall = Firewall(self.options, self.config, own)
        self.firewall.ensure()
        self._told = leases
        self.follow(leases)
        self._save()
        write_subnet_file(self.options.subnet_file, self.config, own, self.backend.mtu, self.options.ip_masq)
        info(f"Wrote subnet file to {self.options.subnet_file}")

    def follow(self, leases: Mapping[Subnets, Lease]) -> None:
        """Want what these leases ask for, but for those that would turn away packets which are not theirs."""
        known = {**self._known.leases, **self._ignored}
        self._ignored = {subnets: lease for subnets, lease in self._ignored.items() if leases.get(subnets) == lease}
        if self._is_host_new.is_set():
            self._is_host_new.clear()
            known, self._ignored = {}, {}
        for subnets, lease in leases.items():  # of thousands few are new
            if (before := known.get(subnets)) is not lease and before != lease and (why_not := self._why_not(lease)):
                self._ignored[subnets] = lease
                warning(f"ignoring the lease of {subnets}: {why_not}")
        all_leases = {**leases, self.lease.subnets: self.lease}
        for subnets in self._ignored:
            del all_leases[subnets]
        wanted = self.backend.wanted(self.lease, all_leases.values())
        if self.options.ip_blackhole_route:
            holes = frozenset(blackhole(subnet) for subnet in self.lease.subnets.each())
            wanted = replace(wanted, routes=wanted.routes | holes)
        self.status.health.gauge("leases", "Leases in the datastore, our own too.", len(all_leases))
        self._known = replace(self._known, leases=all_leases)
        apply = getattr(self.backend, "apply", None)
        if apply is not None:  # before: what the kernel refuses is tried again later, and this is not called again for it
            apply(self.lease, all_leases.values())
        self.reconciler.want(wanted)

    def _why_not(self, lease: Lease) -> str:
        """Why a lease is not followed; empty: it is."""
        subnets, its = lease.subnets, lease.attributes
        own, ours = self.lease.subnets, self.lease.attributes
        if subnets == own:
            return ""
        if same := set(its.addresses).intersection(ours.addresses):
            return f"{same.pop()} is our own address"
        if its.public_ip is None and _is_link_local(its) and not _is_link_local(ours):
            return f"{its.public_ipv6} is link-local, and our address is not"
        if not self.config.holds(subnets):
            return "it is not in the network; if the configuration is another now, start flanneld again"
        return f"it overlaps our own, {own}" if subnets.overlap(own) else self.host_networks.why_not(subnets)

    def keep(self, is_confirmed: bool) -> None:
        """Start the threads that keep it so, and wait until it has to begin anew, or we are to stop."""
        info("Running backend.")
        tasks: dict[str, Callable[[], None]] = {
            "watch": self._watch_leases,
            "leases": self._follow_leases,
            "renewal": lambda: self._renew(is_confirmed),
            "kernel": lambda: self.reconciler.run(self.ended),
            "firewall": lambda: self.firewall.run(self.ended),
            "interface": self._watch_interface,
            "saving": self._keep_saved,
        }
        run = getattr(self.backend, "run", None)
        if run is not None:
            tasks["back end"] = lambda: run(self.ended)
        for name, task in tasks.items():
            thread = threading.Thread(target=self._guarded, args=(name, task), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._tell_ready(is_confirmed)
        while not self.ended.wait(self.status.beat_seconds):
            self.status.beat()
        for thread in self._threads:
            thread.join()

    def _tell_ready(self, is_confirmed: bool) -> None:
        doubt = "" if is_confirmed else "by what was saved, for the datastore does not answer"
        self.status.ready(f"subnet {self.lease.subnets} leased, {self.config.backend_type} over {self.external.name}", doubt)

    def _guarded(self, name: str, task: Callable[[], None]) -> None:
        """A thread that dies of a bug ends the process: systemd starts it again, and the data path stays meanwhile."""
        log_changes()
        try:
            task()
        except Exception as fault:  # noqa: BLE001 — whatever it is
            sys.excepthook(*sys.exc_info())
            error(f"the thread that keeps the {name} failed: {fault!r}")
            self.status.fail()

    def _watch_leases(self) -> None:
        info("watching for new subnet leases")
        for leases in self._sets:
            own = leases.get(self.lease.subnets)
            if own is None or own.attributes != self.lease.attributes:
                if own is not None:
                    warning(f"our lease of {own.subnets} was changed by somebody: publishing it again")
                self.lease_lost.set()
            self._told = leases
            self._news.put(leases)

    def _follow_leases(self) -> None:
        """What the watch says, in its newest form; of what has vanished, a moment later."""
        lingering, leases = Lingering(self._known.leases), self._known.leases
        while not self.ended.is_set():
            next_end = lingering.next_end()
            try:
                leases = self._news.get(timeout=0.5 if next_end is None else max(next_end - monotonic(), 0.0))
                while not self._news.empty():
                    leases = self._news.get()
            except queue.Empty:
                if next_end is None:
                    continue
            try:
                self.follow(lingering.after(leases, monotonic()))
            except CniError as fault:  # the next look at the kernel tries again
                error(f"the leases could not be followed: {fault}")

    def _renew(self, is_confirmed: bool) -> None:
        """Renew before the lease ends, and at once when it was lost."""
        while not is_confirmed:
            is_confirmed = self._confirm()
            if not is_confirmed and self.ended.wait(RETRY_SECONDS):
                return
        wait_seconds = self._until_renewal()
        is_lost = False
        while not self.ended.is_set():
            info(f"Waiting for {duration(wait_seconds)} to renew lease")
            self._wait_for_loss(wait_seconds)
            if self.lease_lost.is_set():
                is_lost = True
                self._pause_before_putting_back()
            if self.ended.is_set():
                return
            self.lease_lost.clear()  # before it is put back: who takes it again meanwhile is heard
            try:
                self.lease = self.store.renew(replace(self.lease, attributes=self._attributes))
                is_lost = False
                info(f"Lease renewed, new expiration: {clock(self.lease.expires)}")
                self.status.tell_datastore()  # what was lost may have been the node, with all that was said of it
                wait_seconds = self._until_renewal()
            except LeaseTaken as fault:
                error(f"Lease has been revoked. {fault}: leasing another subnet")
                self.ended.set()
            except StoreError as fault:
                wait_seconds = LOST_RETRY_SECONDS if is_lost else RENEW_RETRY_SECONDS
                error(
                    f"Error renewing lease (trying again in {f'{LOST_RETRY_SECONDS:.0f} s' if is_lost else '1 min'}): {fault}"
                )

    def _pause_before_putting_back(self) -> None:
        """No time at all, unless that has been done again and again: two that do so would never come to rest."""
        if monotonic() - self._put_back[0] < PUT_BACK_SECONDS:
            ours = self._attributes.addresses[0]
            error(f"somebody takes or changes our lease again and again: has another flanneld the public address {ours} too?")
            self.ended.wait(LOST_RETRY_SECONDS)
        self._put_back.append(monotonic())

    def _wait_for_loss(self, seconds: float) -> None:
        """Until the time has come, the lease is lost, or the session ends.

        By a clock that nobody sets and that goes on while the machine sleeps: so does etcd's.
        """
        deadline = clock_gettime(CLOCK_BOOTTIME) + seconds
        while not self.ended.is_set() and (left := deadline - clock_gettime(CLOCK_BOOTTIME)) > 0:
            if self.lease_lost.wait(min(left, 0.5)):
                return

    def _until_renewal(self) -> float:
        """Seconds; a reservation never ends, and is looked at once a day all the same."""
        if self.lease.expires is None:
            return DAY_SECONDS
        return self.lease.expires - time() - self.options.subnet_lease_renew_margin * 60

    def _confirm(self) -> bool:
        """After a start from what was saved: ask the datastore whether all of it is still so."""
        try:
            text = self.store.read_network_config()
            if text != self.config_text:
                info("the network configuration is another than the saved one: starting anew")
                self.ended.set()
                return False
            lease = self.store.acquire(self.config, self._attributes, self.lease.subnets)
        except StoreError as fault:
            self.status.say_once(f"still without the datastore, forwarding by what was saved: {fault}")
            return False
        if lease.subnets != self.lease.subnets:
            error(f"our saved subnet {self.lease.subnets} has been leased to another node: ours is {lease.subnets} now")
            self.ended.set()
            return False
        self.lease = lease
        info(f"the datastore answers again, and our lease of {lease.subnets} stands")
        self._tell_ready(is_confirmed=True)
        return True

    def _keep_saved(self) -> None:
        while not self.ended.wait(SAVE_SECONDS):
            self._save()
        self._save()

    def _save(self) -> None:
        """For the next boot, unless that is what was written last; our own lease may have been renewed.

        Where that fails it is tried again at the next turn, and told of once.
        """
        known = replace(self._known, own=replace(self.lease, attributes=self._attributes))
        if known.leases is self._saved.leases and known.own == self._saved.own:
            return
        try:
            saved.write(known, saved.path_for(self.options.subnet_file))
        except (CniError, OSError) as fault:
            if str(fault) != self._not_saved:
                self._not_saved = str(fault)
                warning(f"the leases could not be saved for the next boot: {fault}")
        else:
            self._saved, self._not_saved = known, ""

    def _watch_interface(self) -> None:
        """Begin anew where the external interface, its addresses or MTU are others now."""
        with Watch(("link", "addr")) as watch:
            next_look = monotonic()  # it may have changed since this session's beginning
            while not self.ended.is_set():
                changed = watch.wait(0.5)
                if not changed and monotonic() < next_look:
                    continue
                next_look = monotonic() + LOOK_SECONDS
                if "link" not in changed or "addr" in changed:
                    self._look_at_host()
                try:
                    now = iface.find(self.options, self.config.ipv4, self.config.ipv6, quiet=True)
                except CniError:  # down for a moment: what was set up comes back with it
                    continue
                if now != self.external:
                    info(f"the external interface is another now: {now}, it was {self.external}")
                    self.ended.set()
                    self.store.reconnect()  # a connection from an address that has gone would be waited for

    def _look_at_host(self) -> None:
        """Follow the leases by other rules where the host has another network now."""
        if self.host_networks.look(self.lease.subnets):
            self.host_networks.warn(self.config.networks)
            self.host_networks.warn_of_own(self.lease.subnets)
            self._is_host_new.set()
            self._news.put(self._told)


def _is_link_local(its: Attributes) -> bool:
    return its.public_ipv6 is not None and its.public_ipv6.is_link_local


def read_subnets(path: str) -> Subnets | None:
    """The subnets that subnet.env names, None where there is none that can be used."""
    try:
        env = subnet_env.read(path)
    except CniError:
        return None
    by_version: dict[int, Any] = {subnet.version: subnet for subnet in env.subnets}
    return Subnets(by_version.get(4), by_version.get(6))


def write_subnet_file(path: str, config: NetworkConfig, own: Subnets, mtu: int, ip_masq: bool) -> None:
    """A file that cannot be written now, and is right as it is, stops nobody. Raises: CniError, OSError."""
    content = subnet_env.render(SubnetEnv(tuple(config.networks), tuple(own.each()), mtu, ip_masq)).encode()
    try:
        files.make_folder(os.path.dirname(path) or ".", 0o755)
        files.write(path, content, 0o644)
    except (CniError, OSError) as fault:
        if not _holds(path, content):
            raise
        warning(f"{fault}; it is right as it is")


def _holds(path: str, content: bytes) -> bool:
    try:
        return files.read(path) == content
    except OSError:
        return False
