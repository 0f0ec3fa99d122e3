"""One node, one interface, one subnet: set it up, and keep it so until one of them is another.

How it works. A session makes the parts and the threads that they work in: one watches the leases, one follows them, one
renews ours, one reconciles the kernel, one keeps the firewall's rules, one watches the interface, one saves what is known,
one is the back end's. All they do is idempotent, so a session can begin over a running one's data path without a packet
lost.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.flanneld import backends, saved
from cni_py.flanneld.firewall import Firewall
from cni_py.flanneld.following import Following
from cni_py.flanneld.former_gateways import FormerGateways
from cni_py.flanneld.iface_watch import watch_interface
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.own_lease import OwnLease
from cni_py.flanneld.saved import Saver
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE
from cni_py.flanneld.subnet_file import SubnetFile, content_for, read_subnets
from cni_py.kernel.vxlan import Vxlan
from cni_py.netlink.socket import open_host
from cni_py.node.changes import keep_journal
from cni_py.node.desired import blackhole
from cni_py.node.log import error, info, warning
from cni_py.node.memory import building
from cni_py.node.reconcile import Reconciler
from cni_py.node.stop import Stop
from cni_py.packetfilter import vxlan_guard
from cni_py.packetfilter.vxlan_guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cni_py.flanneld.host_networks import HostNetworks
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Attributes, Lease, Subnets
    from cni_py.flanneld.options import Options
    from cni_py.flanneld.stores import Event, Store
    from cni_py.node.desired import Network
    from cni_py.node.status import Status


LIST_SECONDS = 10.0
"""Time in which the datastore has to list the leases before those that were saved are used."""


class Session:
    """``ended`` is set when it has to begin again.

    Args:
        former: what our last lease said.
        networks: of an earlier configuration: routes that it left there are ours too.
        former_subnets: that this node had, and its pods may have.
    """

    def __init__(
        self,
        options: Options,
        store: Store,
        status: Status,
        config_text: str,
        external: ExternalInterface,
        former: Attributes | None,
        host_networks: HostNetworks,
        networks: Iterable[Network] = (),
        former_subnets: Iterable[Subnets] = (),
    ) -> None:
        """Raises: CniError."""
        self.options, self.store, self.status, self.host_networks = options, store, status, host_networks
        self.config, self.external = NetworkConfig.parse(config_text), external
        self.ended = Stop()
        self.backend = backends.create(self.config, external)
        try:
            with open_host() as host:
                self.backend.prepare(host, former)
            self.reconciler = Reconciler(status.health, external.name, [*self.config.networks, *networks])
        except BaseException:
            self.backend.close()  # no other code has it
            raise
        leases: dict[Subnets, Lease] = {}
        attributes = self.backend.attributes()
        self.own = OwnLease(options, store, status, config_text, attributes, self.ended, self._own_changed, host_networks)
        self._saver = Saver(saved.path_for(options.subnet_file), config_text, self.own.as_saved, leases)
        self._following = Following(
            self.config,
            lambda: self.own.lease,
            self.backend,
            self.reconciler,
            status.health,
            leases,
            self._saver.changed,
            host_networks.why_not,
        )
        self._former = list(former_subnets)
        self._watched = store.watch(self.ended)
        self._watching = threading.Thread(target=self._guarded, args=("watch", self._watch_leases), name="watch", daemon=True)
        self._has_own, self._has_leases = False, False
        """True once the datastore confirmed our lease, and once it listed those of the others."""
        self._reporting, self._doubt = threading.Lock(), ""

    def _own_changed(self) -> None:
        self._saver.changed()

    def close(self) -> None:
        """Close what a next session opens again."""
        self.ended.set()
        self.reconciler.close()
        self.backend.close()

    # ---- begin ----------------------------------------------------------------------------------

    def begin(self, known: saved.Saved | None, is_answered: bool) -> None:
        """Set up by what the datastore says, or by what was saved if it does not answer. Raises: CniError, OSError.

        Args:
            known: what was saved and may be used; without it the datastore is waited for.
            is_answered: the datastore has given the network configuration; it may still fail to do the rest.
        """
        self._open_guard()
        saved_leases = known.leases() if known is not None and not is_answered else None
        if is_answered:
            self._has_own = self.own.acquire(read_subnets(self.options.subnet_file), may_give_up=known is not None)
            leases = self._first_leases(LIST_SECONDS if known is not None else None) if self._has_own else None
            if leases is not None:
                self._has_leases = True
                self.set_up(leases, is_confirmed=True)
                return
            saved_leases = known.leases() if known is not None and not self.status.stop.is_set() else None
        if saved_leases is not None and known is not None:
            if not self._has_own:
                self.own.lease = replace(known.own, attributes=self.own.attributes)
            warning(f"the datastore does not answer: forwarding by what was saved, subnet {self.own.lease.subnets}")
            self.set_up(saved_leases, is_confirmed=False)
        elif known is not None and not self.status.stop.is_set():  # what was saved cannot be used
            self.begin(None, is_answered)

    def _first_leases(self, seconds: float | None) -> Mapping[Subnets, Lease] | None:
        """Return all current leases: a restart must not delete the entries of live peers, not even for a moment."""
        if not self._watching.is_alive():
            self._watching.start()
        return self._following.events.first_leases(self.ended, seconds)

    @building()
    def set_up(self, leases: Mapping[Subnets, Lease], *, is_confirmed: bool) -> None:
        """Rules, data path, subnet.env, in this order: a pod that starts finds all of it. Raises: CniError, OSError."""
        own = self.own.lease.subnets
        self.host_networks.start_on(own)
        self.firewall = Firewall(self.options, self.config, own, self._guards())
        self.firewall.ensure()
        for device in self.backend.devices:
            self.reconciler.keep(device)
        self.reconciler.want(own, self.backend.own_entries(self.own.lease))
        if self.options.ip_blackhole_route:
            self.reconciler.want("black holes", [blackhole(subnet) for subnet in own.each()])
        self._following.start(leases, is_confirmed=is_confirmed)
        self.reconciler.start()
        former = read_subnets(self.options.subnet_file)
        self._former_gateways = FormerGateways(self.config.networks, own, [*self._former, *([former] if former else [])])
        self._saver.former = self._former_gateways.present()
        self._saver.save()
        content = content_for(self.config, own, self.backend.mtu, bool(self.options.ip_masq))
        self._subnet_file = SubnetFile(self.options.subnet_file, content, self._subnet_file_is_right)
        if self._subnet_file.write():
            info(f"Wrote subnet file to {self.options.subnet_file}")

    def _guards(self) -> list[Guard]:
        """Return on which addresses VXLAN is received: those of the devices, and those that the lease says."""
        if not self.options.vxlan_one_address:
            return []
        devices = [device for device in self.backend.devices if isinstance(device, Vxlan)]
        if not devices:
            warning(f"-vxlan-one-address has no effect with the back end {self.config.backend_type}")
        addresses = [*(device.local for device in devices), *self.own.lease.attributes.addresses]
        return [
            Guard(device.port, device.vni, tuple(dict.fromkeys(a for a in addresses if a.version == device.local.version)))
            for device in devices
        ]

    def _open_guard(self) -> None:
        """Receive on every address until the rules are those of this session: another address may be published first."""
        new = {device.local for device in self.backend.devices if isinstance(device, Vxlan)}
        if self.options.vxlan_one_address and not all(vxlan_guard.names(address) for address in new):
            vxlan_guard.delete()

    # ---- keep -----------------------------------------------------------------------------------

    def keep(self) -> None:
        """Start the threads that keep it so, and wait until it has to begin again, or the process is to end."""
        info("Running backend.")
        info("watching for new subnet leases")  # here, as in Go's log, though that began with the first list
        tasks: dict[str, Callable[[], None]] = {
            "leases": lambda: self._following.run(self.ended),
            "renewal": lambda: self.own.keep(self._has_own, confirmed=self._own_confirmed),
            "kernel": lambda: self.reconciler.run(self.ended),
            "firewall": lambda: self.firewall.run(self.ended),
            "interface": self._watch_interface,
            "former gateways": lambda: self._former_gateways.run(self.ended),
            "subnet file": lambda: self._subnet_file.run(self.ended),
            "saving": lambda: self._saver.run(self.ended),
            "back end": lambda: self.backend.run(self.ended),
        }
        threads = [threading.Thread(target=self._guarded, args=task, name=task[0], daemon=True) for task in tasks.items()]
        threads += [] if self._watching.is_alive() else [self._watching]
        with self._reporting:
            self._report_ready()
        for thread in threads:
            thread.start()
        while not self.ended.wait(self.status.beat_seconds):
            self.status.beat()
        for thread in (*threads, self._watching):
            thread.join()

    def _subnet_file_is_right(self, trouble: str) -> None:
        if trouble:
            self.status.not_ready(trouble)
        else:
            with self._reporting:
                self._report_ready()

    def _own_confirmed(self) -> None:
        self._has_own = True
        self._report_if_confirmed()

    def _report_if_confirmed(self) -> None:
        with self._reporting:
            if self._doubt and self._has_own and self._has_leases:
                self._report_ready()

    def _report_ready(self) -> None:
        self._doubt = "" if self._has_own and self._has_leases else "by what was saved, for the datastore does not answer"
        subnets = self.own.lease.subnets
        self.status.ready(f"subnet {subnets} leased, {self.config.backend_type} over {self.external.name}", self._doubt)

    def _guarded(self, name: str, task: Callable[[], None]) -> None:
        """A thread that dies of a bug ends the process: systemd starts it again, and the data path stays meanwhile."""
        keep_journal(f"what is kept: the {name}")
        try:
            task()
        except Exception as fault:  # noqa: BLE001 — whatever it is
            sys.excepthook(*sys.exc_info())
            error(f"the thread that keeps the {name} failed: {fault!r}")
            self.status.fail()

    def _heard(self) -> Iterator[list[Event]]:
        """The events of the datastore; our own lease is looked after before they are followed."""
        for events in self._watched:
            self.own.hear(events)
            yield events

    def _watch_leases(self) -> None:
        for events in self._heard():
            self._following.events.put(events)
            if SNAPSHOT_COMPLETE in events and not self._has_leases:
                self._has_leases = True
                self._report_if_confirmed()

    def _watch_interface(self) -> None:
        watch_interface(self.options, self.config, self.external, self.ended, self._begin_again, self._look_at_host)

    def _look_at_host(self) -> None:
        """Check the leases again if the host's networks changed. Raises: CniError."""
        own = self.own.lease.subnets
        if self.host_networks.look(own):
            self.host_networks.warn(self.config.networks)
            self.host_networks.warn_of_own(own)
            self._following.recheck()

    def _begin_again(self) -> None:
        self.ended.set()
        self.store.reconnect()  # a connection from an address that was deleted would only time out
