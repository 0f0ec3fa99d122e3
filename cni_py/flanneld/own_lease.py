"""The node's own lease: acquired, renewed before it ends, restored if it was lost or changed."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from time import CLOCK_BOOTTIME, clock_gettime, monotonic, time
from typing import TYPE_CHECKING

from cni_py.datastore.errors import StoreError
from cni_py.flanneld.allocate import in_words_without_end
from cni_py.flanneld.lease import Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Gone, LeaseTaken, PoolExhausted
from cni_py.node.log import clock, duration, error, info, warning
from cni_py.node.status import RETRY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.flanneld.host_networks import HostNetworks
    from cni_py.flanneld.lease import Attributes
    from cni_py.flanneld.options import Options
    from cni_py.flanneld.stores import Event, Store
    from cni_py.node.status import Status
    from cni_py.node.stop import Stop

RENEW_RETRY_SECONDS, LOST_RETRY_SECONDS = 60.0, 3.0
PUT_BACK_COUNT, PUT_BACK_SECONDS = 10, 60.0
"""Number of times in this interval that our lease is restored at once; then another process does the same, and we back off."""
DAY_SECONDS = 86400.0
LOOK_SECONDS = 30.0
"""Interval of checks of the clock that counts while the machine sleeps."""


class OwnLease:
    """Keeps the node's lease.

    Args:
        config_text: the network's configuration, by which the session goes.
        attributes: what the lease is to say.
        ended: set where the session has to begin again: the subnet is another node's, the configuration another.
        changed: called when :attr:`lease` is another.
    """

    def __init__(
        self,
        options: Options,
        store: Store,
        status: Status,
        config_text: str,
        attributes: Attributes,
        ended: Stop,
        changed: Callable[[], None],
        host_networks: HostNetworks,
    ) -> None:
        self._options, self._store, self._status = options, store, status
        self._config_text, self._config = config_text, NetworkConfig.parse(config_text)
        self._ended, self._changed, self._host_networks = ended, changed, host_networks
        self.attributes = attributes
        self.lease = Lease(Subnets(), attributes)
        """Lease as the datastore has it: with an overwritten address where a user did that (Kubernetes)."""
        self.is_lost = False
        self._wake = threading.Event()
        self._is_listed = False
        """True if the datastore has listed it since the watch began."""
        self._put_back = deque([-PUT_BACK_SECONDS] * PUT_BACK_COUNT, maxlen=PUT_BACK_COUNT)
        """Times when our lease was restored, the last few."""

    def as_saved(self) -> Lease:
        """Return it with what this node publishes, without a user's overwrites."""
        return replace(self.lease, attributes=self.attributes)

    def acquire(self, previous: Subnets | None, may_give_up: bool = False) -> bool:
        """Lease a subnet, however long it takes; False where the process is to end.

        ``may_give_up``: also False where the datastore fails, unless it says that the subnet is another node's.
        """
        while not self._status.stop.is_set():
            self._host_networks.look()
            try:
                self.lease = self._store.acquire(self._here(), self.attributes, previous)
            except StoreError as fault:
                self._status.say_once(f"Error registering network: failed to acquire lease: {fault}", error)
                if may_give_up and not isinstance(fault, PoolExhausted | LeaseTaken):
                    return False
                self._status.not_ready(f"no subnet is leased: {fault}")
                self._status.pause()
            else:
                if self.lease.expires is None and not self._options.kube_subnet_mgr:
                    info(in_words_without_end(self.lease.subnets))
                return True
        return False

    def _here(self) -> NetworkConfig:
        """The configuration, with the host's own networks, in which no subnet is chosen."""
        return self._config.on_host(self._host_networks)

    # ---- events of it ---------------------------------------------------------------------------

    def hear(self, events: Iterable[Event]) -> None:
        """Check events for a loss or change of our own lease, in the thread that watches the leases."""
        for event in events:
            if event is SNAPSHOT_COMPLETE:
                if not self._is_listed:
                    self.lose()
                continue
            assert isinstance(event, Lease | Gone), "there is one marker"
            if event.subnets != self.lease.subnets:
                continue
            self._is_listed = isinstance(event, Lease)
            if isinstance(event, Gone):
                self.lose()
            elif event.attributes != self.lease.attributes:
                warning(f"our lease of {event.subnets} was changed by another process: publishing it again")
                self.lose()

    def lose(self) -> None:
        """Have it restored."""
        self.is_lost = True
        self._wake.set()

    # ---- the thread that renews it --------------------------------------------------------------

    def keep(self, is_confirmed: bool, confirmed: Callable[[], None]) -> None:
        """Renew before it ends, and at once when it was lost.

        After a start from saved leases, the datastore is asked first until it responds; then ``confirmed`` is called.
        """
        while not is_confirmed:
            is_confirmed = self._confirm()
            if is_confirmed:
                confirmed()
            elif self._ended.wait(RETRY_SECONDS):
                return
        with self._ended.calling(self._wake.set):
            self._renew_again_and_again()

    def _renew_again_and_again(self) -> None:
        wait_seconds, was_lost = self._until_renewal(), False
        while not self._ended.is_set():
            info(f"Waiting for {duration(wait_seconds)} to renew lease")
            self._wait(wait_seconds)
            if self.is_lost:
                was_lost = True
                self._pause_before_putting_back()
            if self._ended.is_set():
                return
            self.is_lost = False  # before it is restored: another loss in the meantime counts
            self._wake.clear()
            try:
                self.lease = self._store.renew(self.as_saved())
                was_lost = False
                info(f"Lease renewed, new expiration: {clock(self.lease.expires)}")
                self._changed()
                self._status.notify_datastore()  # what was lost may have been the node, with all that was said of it
                wait_seconds = self._until_renewal()
            except LeaseTaken as fault:
                error(f"Lease has been revoked. {fault}: leasing another subnet")
                self._ended.set()
            except StoreError as fault:
                wait_seconds = LOST_RETRY_SECONDS if was_lost else RENEW_RETRY_SECONDS
                again = f"{LOST_RETRY_SECONDS:.0f} s" if was_lost else "1 min"
                error(f"Error renewing lease (trying again in {again}): {fault}")

    def _pause_before_putting_back(self) -> None:
        """Wait if it was restored again and again: two processes that do so would never stop."""
        if monotonic() - self._put_back[0] < PUT_BACK_SECONDS:
            ours = self.attributes.addresses[0]
            words = "another process takes or changes our lease again and again"
            error(f"{words}: has another flanneld the public address {ours} too?")
            self._ended.wait(LOST_RETRY_SECONDS)
        self._put_back.append(monotonic())

    def _wait(self, seconds: float) -> None:
        """Wait for the time, for a loss of the lease, or for the end of the session.

        By a clock that cannot be set and that counts while the machine sleeps: so does etcd's.
        """
        deadline = clock_gettime(CLOCK_BOOTTIME) + seconds
        while (left := deadline - clock_gettime(CLOCK_BOOTTIME)) > 0:
            if self._wake.wait(min(left, LOOK_SECONDS)):
                return

    def _until_renewal(self) -> float:
        """Return the seconds; a reservation never ends, and is still checked once a day."""
        if self.lease.expires is None:
            return DAY_SECONDS
        return self.lease.expires - time() - self._options.subnet_lease_renew_margin * 60

    def _confirm(self) -> bool:
        """Ask the datastore whether what was saved is still valid."""
        try:
            if self._store.read_network_config() != self._config_text:
                info("the network configuration is another than the saved one: beginning again")
                self._ended.set()
                return False
            lease = self._store.acquire(self._here(), self.attributes, self.lease.subnets)
        except StoreError as fault:
            self._status.say_once(f"still without the datastore, forwarding by what was saved: {fault}")
            return False
        if lease.subnets != self.lease.subnets:
            error(f"our saved subnet {self.lease.subnets} has been leased to another node: ours is {lease.subnets} now")
            self._ended.set()
            return False
        self.lease = lease
        self._changed()
        info(f"the datastore responds again, and our lease of {lease.subnets} is valid")
        return True
