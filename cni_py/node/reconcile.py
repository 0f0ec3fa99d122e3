"""Reconcile the kernel with the desired state, entry by entry, and keep it so.

How it works. :meth:`Reconciler.want` and :meth:`~Reconciler.drop` change the desired state, :meth:`~Reconciler.settle`
makes the kernel follow: what changed, in the order in which packets need it, and nothing else. The kernel reports what
another process changes (``reports.py``). What differs from the desired state is first read again by its key, for the report
may be the late echo of our own change, then repaired, at once. Where another process reverts each repair, repairs back off.

All tables are checked as a whole at the start and when the kernel lost reports; a device's tables when it lost its entries; and
each table once in ``CHECK_SECONDS``, one after the other. Our entries are identified by their place (on one of our devices) or
by the route's protocol number, so a restarted daemon finds what the former one left: entries of dead peers are deleted,
others are not touched. A second daemon on the node has the same number: routes that lead neither over one of our devices
nor into our network belong to it.
"""

from __future__ import annotations

import select
import threading
from collections import defaultdict
from contextlib import contextmanager
from math import inf
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from cni_py.errors import CniError, KernelRefused
from cni_py.kernel.link import find_link, set_up
from cni_py.kernel.route import PROTOCOL, list_routes
from cni_py.kernel.udp_port import port_named
from cni_py.netlink.constants import RTPROT_KERNEL
from cni_py.netlink.notifications import Notifications
from cni_py.netlink.socket import open_host
from cni_py.node.changes import because, finish
from cni_py.node.desired import Desired
from cni_py.node.log import error, info, warning
from cni_py.node.reports import Reports
from cni_py.node.stop import Wake
from cni_py.node.tables import ADDRESSES, FDB, NEIGHBOURS, ROUTES, SYSCTLS
from cni_py.node.writer import RETRY_SECONDS, Writer
from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from cni_py.kernel.device import Device
    from cni_py.kernel.link import Link
    from cni_py.node.desired import Changes, Entry, Network
    from cni_py.node.health import Health
    from cni_py.node.reports import Batch
    from cni_py.node.stop import Stop
    from cni_py.node.tables import OfDevice, Table

CHECK_SECONDS = 300.0
"""Interval in which each table is checked as a whole once."""
SYSCTL_SECONDS = 1.0
SHARE = 5
"""Factor of the pause: after a turn that took t seconds of the processor, the next one begins SHARE × t later.

So following whatever other processes do to the kernel's tables takes a sixth of a core at most."""
PAUSE_SECONDS = (0.02, 0.8)
"""The first and the longest pause where another process reverts repairs; it doubles."""
ORDER: tuple[Table[Any], ...] = (ADDRESSES, NEIGHBOURS, FDB, ROUTES)
"""The order in which packets need entries: what leads to an entry is made after it, and deleted before it."""


class Reconciler:
    """Keeps the kernel as desired. Safe from several threads.

    Args:
        external: the name of the interface that routes lead over.
        networks: ours, and those of an earlier configuration.
    """

    def __init__(self, health: Health, external: str, networks: Iterable[Network]) -> None:
        self.health, self.external = health, external
        self._lock = threading.Lock()
        self._host = open_host()
        self._notifications: Notifications | None = None
        self._listening: select.epoll | None = None
        """Waits for notifications, in :meth:`run`."""
        self._desired = Desired()
        self._reports = Reports(self._desired, self._host.port, external, set(networks), self._name_of)
        self._writer = Writer(health, self._host, external, self._receive)
        self._devices: dict[str, Device] = {}
        self._links: dict[str, Link] = {}
        """Our devices as they were when they were last checked."""
        self._check_all_at = self._check_next_at = self._sysctls_at = inf
        """The time when all tables are due, the next one in the round, kernel parameters."""
        self._round: list[Callable[[], int]] = []
        """Checks that are left in this round."""
        self._problem = ""
        """The last error, which is logged once."""

    def close(self) -> None:
        """Close the sockets; the kernel stays as it is."""
        if self._notifications is not None:
            self._notifications.close()
        self._host.close()

    # ---- the desired state ----------------------------------------------------------------------

    def keep(self, device: Device) -> None:
        """Desire this device, with the addresses and entries that are desired of it and no others. Before :meth:`start`."""
        self._devices[device.name] = device
        self._reports.devices.add(device.name)

    def want(self, owner: Hashable, group: Sequence[Entry]) -> Entry | None:
        """Desire these entries too, from the next :meth:`settle` on. Returns: see :meth:`Desired.want`."""
        return self.replace(owner, (), group)

    def drop(self, owner: Hashable, group: Sequence[Entry]) -> None:
        """Desire these entries no more, from the next :meth:`settle` on."""
        self.replace(owner, group, ())

    def replace(self, owner: Hashable, former: Sequence[Entry], group: Sequence[Entry]) -> Entry | None:
        """Drop and want; an entry in both is not touched."""
        with self._lock:
            return self._desired.replace(owner, former, group)

    def settle(self) -> None:
        """Make the kernel follow; refusals are logged and retried. Raises: CniError if the kernel cannot be asked."""
        with self._lock:
            changes = self._desired.take_changes()
            if not changes:
                return
            try:
                with self._undisturbed():
                    self._make(changes)
            except CniError:
                self._check_all_at = 0.0  # which finds what is left undone
                raise

    def _make(self, changes: Changes) -> None:
        """Raises: CniError."""
        if changes.wanted[SYSCTLS]:
            self._put_sysctls()
            self._writer.warn_of_unsettable()
        for table in ORDER:
            self._put(table, changes.wanted[table])
        for table in reversed(ORDER):
            self._writer.delete(table, changes.dropped[table])
        self._receive()  # the echoes

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Ask for links once, and let the echoes of changes wake no other thread: that costs as much as the changes."""
        listening = self._listening
        fd = -1 if listening is None or self._notifications is None else self._notifications.fileno()
        self._host.remember_links(True)
        if listening is not None:
            listening.modify(fd, 0)
        try:
            yield
        finally:
            self._host.remember_links(False)
            if listening is not None:
                listening.modify(fd, select.EPOLLIN)

    # ---- the thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribe to the kernel's reports, then make everything as desired.

        Raises: CniError, also where the kernel refuses an address of a device; other refusals are logged and retried.
        """
        with self._lock:
            self._notifications = Notifications(self._host.port)
            self._check_all()
            for (table, _), words in self._writer.refused.items():
                if table is ADDRESSES:
                    raise KernelRefused(words)
            self._sysctls_at = monotonic()

    def run(self, stop: Stop) -> None:
        """Restore what other processes change, until ``stop``."""
        assert self._notifications is not None, "start() was called"
        pause, not_before = _Pause(), 0.0
        with Wake() as wake, select.epoll() as listening, stop.calling(wake.set):
            listening.register(self._notifications.fileno(), select.EPOLLIN)
            listening.register(wake.fileno(), select.EPOLLIN)
            self._set_listening(listening)
            while not stop.is_set():
                listening.poll(self._seconds_until_due())
                if (left := not_before - monotonic()) > 0:  # waited for only if there is something so soon: waking costs, too
                    stop.wait(left)
                if stop.is_set():  # the reports may be of a back end that deletes its device
                    break
                began = thread_time()  # a clock that does not count while the process, or the machine, is stopped
                changes = self.turn()
                now = monotonic()
                not_before = now + max(SHARE * (thread_time() - began), pause.after(changes, now))
            self._set_listening(None)

    def _set_listening(self, listening: select.epoll | None) -> None:
        with self._lock:
            self._listening = listening

    def turn(self) -> int:
        """Handle reports and what is due; return how many changes of other processes were reverted."""
        with self._lock:
            try:
                changes = self._turn()
                finish()
            except CniError as fault:
                if str(fault) != self._problem:
                    self._problem = str(fault)
                    error(f"the data path could not be repaired, retrying: {fault}")
                self._check_all_at = monotonic() + RETRY_SECONDS
                return 0
        return changes

    def _seconds_until_due(self) -> float:
        with self._lock:
            due = min(self._check_all_at, self._check_next_at, self._writer.retry_at, self._sysctls_at)
            return max(due - monotonic(), 0.0)

    def _turn(self) -> int:
        """Raises: CniError."""
        self._receive()
        batch, now = self._reports.take(), monotonic()
        if now >= self._sysctls_at:
            self._sysctls_at = now + SYSCTL_SECONDS
            because("another process has changed kernel parameters")
            restored = self._put_sysctls()
            self._writer.warn_of_unsettable()
            if restored:
                info(f"restored {restored} kernel parameters that another process had changed")
        if batch.is_lost or now >= self._check_all_at or (self._problem and (batch.devices or batch.may_retry)):
            because("a check of all tables")
            changes = self._check_all()
        else:
            because(lambda: f"another process has changed what is desired: {', '.join(sorted(batch.nouns))}")
            changes = self._repair(batch)
            if now >= self._check_next_at:
                because("the check of a table, which is done every few minutes")
                self._check_next()
            if now >= self._writer.retry_at or batch.may_retry:
                because("what the kernel has refused is tried again")
                self._retry()
        if changes and batch.nouns:
            info(f"reverted {counted(changes, 'change')} of another process ({', '.join(sorted(batch.nouns))})")
        return changes

    def _receive(self) -> None:
        if self._notifications is not None:
            self._reports.receive(self._notifications)

    # ---- repairing what was reported ------------------------------------------------------------

    def _repair(self, batch: Batch) -> int:
        """Raises: CniError."""
        emptied, changes = set(batch.emptied), 0
        for name in sorted(batch.devices | {name for name in _devices_of(batch) if not self._is_same_device(name)}):
            repaired, is_emptied = self._check_device(self._devices[name])
            changes += repaired
            emptied |= {name} if is_emptied else set()
        changes += sum(self._check_table(table, name) for name in sorted(emptied) for table in (NEIGHBOURS, FDB))
        if batch.has_lost_routes:
            self._learn_names()
        checks_routes = bool(emptied or batch.has_lost_routes)
        changes += self._check_routes() if checks_routes else 0
        missing: dict[Table[Any], list[Entry]] = defaultdict(list)
        stray: dict[Table[Any], list[Entry]] = defaultdict(list)
        for (table, key), reported in batch.suspects.items():
            if not (checks_routes if table is ROUTES else _device_in(key) in emptied):
                self._sort_suspect(table, key, reported, missing, stray)
        changes += sum(self._put(table, missing[table]) for table in ORDER)
        return changes + sum(self._writer.delete(table, stray[table]) for table in reversed(ORDER))

    def _sort_suspect(
        self,
        table: Table[Any],
        key: Hashable,
        reported: Sequence[Entry],
        missing: Mapping[Table[Any], list[Entry]],
        stray: Mapping[Table[Any], list[Entry]],
    ) -> None:
        """Read a suspect by its key. Raises: KernelRefused."""
        desired, was_refused = self._desired.entries(table).get(key), (table, key) in self._writer.refused
        if desired is None:
            # A lookup may miss a route behind another one: of routes exactly what was reported is deleted, if it still exists.
            exists = reported and (table is ROUTES or table.find(self._host, reported[0], self._name_of) is not None)
            stray[table] += reported if exists else []
        elif table is ROUTES and self._is_hidden(desired):
            stray[table] += [] if was_refused else [desired]
        elif table.find(self._host, desired, self._name_of) != desired:
            missing[table].append(desired)

    def _is_same_device(self, name: str) -> bool:
        """Return whether a device is the known one, and up: else its entries were deleted with it. Raises: KernelRefused."""
        known, link = self._links.get(name), find_link(self._host, name)
        return known is not None and link is not None and link.ifindex == known.ifindex and link.is_up

    # ---- checking whole tables ------------------------------------------------------------------

    def _check_all(self) -> int:
        """Raises: CniError."""
        began = monotonic()
        self._desired.take_changes()  # the check covers them
        self._writer.begin_check()
        self._check_all_at = inf
        self._learn_names()
        changes = sum(self._check_device(device)[0] for device in self._devices.values())
        self._drop_reports()
        changes += sum(self._check_table(table, name) for name in self._devices for table in (NEIGHBOURS, FDB))
        self._read_connected()
        changes += self._put_sysctls() + self._check_routes()
        self._writer.end_check()
        self._problem = ""
        self._writer.warn_of_unsettable()
        self._round, self._check_next_at = [], monotonic() + CHECK_SECONDS / len(self._checks())
        self.health.gauge("reconcile_seconds", "How long the last check of all tables took.", monotonic() - began)
        return changes

    def _drop_reports(self) -> None:
        """Drop what was reported up to now: the tables are read after it. That a device was created is such a report.

        Raises: CniError.
        """
        self._receive()
        self._reports.take()
        for name, device in self._devices.items():
            if not self._is_same_device(name):  # deleted since it was checked: its report may have been among those
                self._check_device(device)

    def _check_next(self) -> None:
        """Check the next table in the round, which finds what no report named. Raises: CniError."""
        self._round = self._round or self._checks()
        changes = self._round.pop()()
        self._check_next_at = monotonic() + CHECK_SECONDS / len(self._checks())
        if changes:
            info(f"reverted {counted(changes, 'change')} that the kernel had not reported")

    def _checks(self) -> list[Callable[[], int]]:
        """Return the checks of a round."""
        checks: list[Callable[[], int]] = [self._check_routes]
        for name, device in self._devices.items():
            checks.append(lambda device=device: self._check_device(device)[0])  # type: ignore[misc]
            checks += [lambda table=table, name=name: self._check_table(table, name) for table in (NEIGHBOURS, FDB)]  # type: ignore[misc]
        return checks

    def _check_device(self, device: Device) -> tuple[int, bool]:
        """Make a device and its addresses as desired.

        Returns: how many changes that took, and whether its entries may be gone. Raises: CniError.
        """
        before, known = find_link(self._host, device.name), self._links.get(device.name)
        link = device.ensure(self._host, warning)
        self._links[device.name] = link
        self._learn_names()
        changes = self._put_sysctls()  # before its addresses: the kernel refuses an IPv6 address where IPv6 is off
        changes += self._check_table(ADDRESSES, device.name)
        if not link.is_up:
            with port_named(self._host, link.name):
                set_up(self._host, link)
            self._links[device.name] = find_link(self._host, device.name) or link
        is_emptied = before is None or not before.is_up or known is None or known.ifindex != link.ifindex
        if before is None or before.ifindex != link.ifindex or not device.matches(before):
            self._writer.count(1)
            changes += 1
        return changes, is_emptied

    def _check_table(self, table: OfDevice[Any], name: str) -> int:
        """Check a table of a device. Raises: CniError."""
        link = self._links.get(name)
        if link is None:
            return 0
        desired: dict[Hashable, Any] = {key: of for key, of in self._desired.entries(table).items() if of.device == name}
        return self._make_equal(table, desired, table.list(self._host, link))

    def _check_routes(self) -> int:
        """Raises: CniError."""
        actual = list_routes(self._host)
        for name in self._devices:  # routes of another protocol
            actual |= list_routes(self._host, protocol=0, device=name, but=PROTOCOL)
        desired = {key: route for key, route in self._desired.entries(ROUTES).items() if not self._is_hidden(route)}
        return self._make_equal(ROUTES, desired, [route for route in actual if self._reports.is_ours(route)])

    def _make_equal(self, table: Table[Any], desired: Mapping[Hashable, Entry], actual: Iterable[Entry]) -> int:
        """Make what is missing, then delete what is stray: a changed entry is never missing in between."""
        right, stray = set(), []
        for entry in actual:
            key = table.key(entry)
            if desired.get(key) == entry:
                right.add(key)
            else:
                stray.append((key, entry))
        missing = {key: entry for key, entry in desired.items() if key not in right}
        changes = self._put(table, list(missing.values()))
        return changes + self._writer.delete(table, [entry for key, entry in stray if key not in missing])

    # ---- changing the kernel --------------------------------------------------------------------

    def _put(self, table: Table[Any], entries: Sequence[Any]) -> int:
        """Raises: CniError if the kernel cannot be asked."""
        if not entries:
            return 0
        if table is ROUTES:
            self._receive()  # now: the route that would be replaced may be that of a bridge which has just got its address
            entries = [entry for entry in entries if not self._is_hidden(entry)]
        return self._writer.put(table, entries)

    def _put_sysctls(self) -> int:
        return self._writer.put_sysctls(self._desired.entries(SYSCTLS).values())

    def _retry(self) -> None:
        """Retry what was refused. Raises: CniError."""
        self._writer.retry_at = inf
        again: dict[Table[Any], list[Entry]] = defaultdict(list)
        for table, key in list(self._writer.refused):
            desired = self._desired.entries(table).get(key)
            if desired is not None:
                again[table].append(desired)
            else:  # it could not be deleted: a check finds it
                del self._writer.refused[table, key]
                self._check_all_at = min(self._check_all_at, monotonic() + RETRY_SECONDS)
        for table in ORDER:
            self._put(table, again[table])

    def _is_hidden(self, route: Any) -> bool:
        """Return whether a route would replace the one to a bridge of this node, and cut its pods off: a lease names its
        subnet."""
        key = ROUTES.key(route)
        ifindex = self._reports.connected.get(key)
        if ifindex is None:
            return False
        words = f"{route.dst} is the subnet of {self._name_of(ifindex)} here: no route to another node's"
        self._writer.refuse(ROUTES, key, KernelRefused(words, f"not done: ip route replace {' '.join(route.words())}"))
        return True

    # ---- links ----------------------------------------------------------------------------------

    def _learn_names(self) -> None:
        """Raises: KernelRefused."""
        external = find_link(self._host, self.external)
        names = {link.ifindex: name for name, link in self._links.items()}
        self._reports.names = names | ({external.ifindex: self.external} if external else {})

    def _name_of(self, ifindex: int) -> str:
        """Return the link's name; "" if there is none. Raises: KernelRefused."""
        known = self._reports.names.get(ifindex)
        if known is not None:
            return known
        link = find_link(self._host, ifindex)
        return link.name if link else ""

    def _read_connected(self) -> None:
        """Read the routes that the kernel made for the addresses of links. Raises: KernelRefused."""
        self._reports.connected.clear()
        numbers: dict[str, int] = {}
        for route in list_routes(self._host, RTPROT_KERNEL):
            if route.device not in numbers:
                link = find_link(self._host, route.device)
                numbers[route.device] = link.ifindex if link else 0
            self._reports.connect(route.dst, numbers[route.device])


class _Pause:
    """The time between two repairs, which grows while another process reverts them."""

    def __init__(self) -> None:
        self._seconds, self._last_repair = 0.0, -inf

    def after(self, changes: int, now: float) -> float:
        """Return the seconds to wait after a turn with so many repairs, at this time; after a quiet while, the shortest."""
        if not changes:
            return 0.0
        shortest, longest = PAUSE_SECONDS
        is_again = now - self._last_repair < 2 * longest
        self._seconds, self._last_repair = min(2 * self._seconds, longest) if is_again else shortest, now
        return self._seconds


def _devices_of(batch: Batch) -> set[str]:
    """Return the devices of the suspects."""
    return {name for table, key in batch.suspects if table is not ROUTES and (name := _device_in(key))}


def _device_in(key: Hashable) -> str:
    """Return the device in the key of an entry that belongs to one; "" for others."""
    return key[0] if isinstance(key, tuple) and isinstance(key[0], str) else ""
