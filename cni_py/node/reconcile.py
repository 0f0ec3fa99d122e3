"""Desired minus actual, entry by entry: the kernel is made to hold what is desired, and kept so.

How it works. :meth:`Reconciler.want` and :meth:`~Reconciler.drop` change the desired state, :meth:`~Reconciler.settle`
makes the kernel follow: what changed, in the order in which packets need it, and nothing else. What another process changes
the kernel reports (``news.py``). What differs from the desired state is first read again by its key, for the report may be
the late echo of a change of ours, then repaired, at once. Where another process reverts each repair, repairs become rarer
and rarer.

The tables are read as a whole at the start, when the kernel lost reports, where a device lost its entries, and every
``LOOK_SECONDS``, one table at a time. What is ours is told by where it is (on a device of ours) or by the route's protocol
number, so a restarted daemon finds what a former one left: entries of dead peers go, live ones are not touched. A second
daemon on the node has the same number: routes that lead neither over a device of ours nor into our network are its.
"""

from __future__ import annotations

import select
import threading
from collections import defaultdict
from errno import ENOENT
from math import inf
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from cni_py.errors import CniError, KernelRefused
from cni_py.kernel.link import find_link, set_up
from cni_py.kernel.routes import PROTOCOL, list_routes
from cni_py.netlink.constants import RTPROT_KERNEL
from cni_py.netlink.notifications import Notifications
from cni_py.netlink.socket import open_host
from cni_py.node.desired import FORWARDING, Desired
from cni_py.node.log import error, info, warning
from cni_py.node.news import News
from cni_py.node.stop import Wake
from cni_py.node.tables import ADDRESSES, FDB, NEIGHBOURS, ROUTES, SYSCTLS, Sysctl

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from cni_py.kernel.bulk import Refusal
    from cni_py.kernel.device import Device
    from cni_py.kernel.link import Link
    from cni_py.node.desired import Entry, Network
    from cni_py.node.health import Health
    from cni_py.node.news import Batch
    from cni_py.node.stop import Stop
    from cni_py.node.tables import OfDevice, Table

LOOK_SECONDS = 300.0
"""In this time each table is read as a whole once, one after the other."""
RETRY_SECONDS = 2.0
"""When what was refused is tried again, unless there is news before."""
SYSCTL_SECONDS = 1.0
SHARE = 5
"""After a turn that took t seconds of the processor, the next one begins SHARE × t later at the soonest: whatever others do to
the kernel's tables, looking after them takes a sixth of a core at most."""
PAUSE_SECONDS = (0.02, 0.8)
"""Where another process reverts what was put back: the pause after the first time, and the longest; it doubles."""
CHUNK = 2048
"""Entries that are changed before the reports of them are taken out of the socket's buffer."""
REFUSED = "What the kernel refuses at present."
CHANGES = "Changes that were made to links, addresses, routes, entries and kernel parameters."
ORDER: tuple[Table[Any], ...] = (ADDRESSES, NEIGHBOURS, FDB, ROUTES)
"""In which packets need them: what leads to an entry is made after it, and deleted before it."""


class Reconciler:
    """Keeps the kernel as desired. Safe from several threads.

    Args:
        external: the name of the interface that routes lead over.
        networks: ours, and those of an earlier configuration.
    """

    def __init__(self, health: Health, external: str, networks: Iterable[Network]) -> None:
        self.health, self.external = health, external
        self._desired = Desired()
        self._devices: dict[str, Device] = {}
        self._links: dict[str, Link] = {}
        """Our devices as they were when they were checked last."""
        self._refused: dict[tuple[Table[Any], Hashable], str] = {}
        """What the kernel refuses at present, and its words."""
        self._told: dict[tuple[Table[Any], Hashable], str] = {}
        """The same before the look that is going on."""
        self._unsettable: set[str] = set()
        """Kernel parameters that could not be set: told of once, and not tried again."""
        self._lock = threading.Lock()
        self._host = open_host()
        self._notifications: Notifications | None = None
        self._news = News(self._desired, self._host.port, external, set(networks), self._name_of)
        self._look_at = self._look_at_next_at = self._retry_at = self._sysctls_at = inf
        """When all tables are looked at, the next one of them; when what was refused is tried again; kernel parameters."""
        self._turns: list[Callable[[], int]] = []
        """What is still to be looked at in this round."""
        self._trouble = ""

    def close(self) -> None:
        if self._notifications is not None:
            self._notifications.close()
        self._host.close()

    # ---- what is desired ------------------------------------------------------------------------

    def keep(self, device: Device) -> None:
        """Desire this device, with the addresses and entries that are desired of it and no others. Before :meth:`start`."""
        self._devices[device.name] = device
        self._news.devices.add(device.name)

    def want(self, owner: Hashable, group: Sequence[Entry]) -> Entry | None:
        """As :meth:`Desired.want`; done by the next :meth:`settle`."""
        return self.replace(owner, (), group)

    def drop(self, owner: Hashable, group: Sequence[Entry]) -> None:
        """As :meth:`Desired.drop`; done by the next :meth:`settle`."""
        self.replace(owner, group, ())

    def replace(self, owner: Hashable, former: Sequence[Entry], group: Sequence[Entry]) -> Entry | None:
        """As :meth:`Desired.replace`; done by the next :meth:`settle`."""
        with self._lock:
            return self._desired.replace(owner, former, group)

    def settle(self) -> None:
        """Make the kernel follow; what it refuses is logged and tried again. Raises: CniError where it cannot be asked."""
        with self._lock:
            changes = self._desired.take_changes()
            try:
                if changes.wanted[SYSCTLS]:
                    self._put_sysctls_right()
                for table in ORDER:
                    self._put(table, changes.wanted[table])
                for table in reversed(ORDER):
                    self._delete(table, changes.dropped[table])
            except CniError:
                self._look_at = 0.0  # what is left undone is found by a look at everything
                raise

    # ---- the thread that keeps it so ------------------------------------------------------------

    def start(self) -> None:
        """Subscribe to the kernel's reports, then make everything as desired. Raises: CniError."""
        with self._lock:
            self._notifications = Notifications()
            self._look_at_all()
            self._sysctls_at = monotonic()

    def run(self, stop: Stop) -> None:
        """Put back what others change, until ``stop``."""
        assert self._notifications is not None, "start() was called"
        pause = _Pause()
        with Wake() as wake, stop.calling(wake.set):
            while not stop.is_set():
                select.select([self._notifications.fileno(), wake.fileno()], [], [], self._seconds_until_due())
                if stop.is_set():  # the news may be of a back end that takes its device with it
                    return
                began = thread_time()  # of a clock that stands still while the process, or the machine, is stopped
                changes = self.turn()
                stop.wait(max(SHARE * (thread_time() - began), pause.after(changes, monotonic())))

    def turn(self) -> int:
        """Do what reports ask for and what is due; return how many changes of others were put back."""
        with self._lock:
            try:
                changes = self._turn()
                self._trouble = ""
            except CniError as fault:
                if str(fault) != self._trouble:
                    self._trouble = str(fault)
                    error(f"the data path could not be put right, trying again: {fault}")
                self._look_at = monotonic() + RETRY_SECONDS
                return 0
        return changes

    def _seconds_until_due(self) -> float:
        with self._lock:
            due = min(self._look_at, self._look_at_next_at, self._retry_at, self._sysctls_at)
            return max(due - monotonic(), 0.0)

    def _turn(self) -> int:
        """Raises: CniError."""
        self._hear()
        batch, now = self._news.take(), monotonic()
        if now >= self._sysctls_at:
            self._sysctls_at = now + SYSCTL_SECONDS
            if parameters := self._put_sysctls_right():
                info(f"put right {parameters} kernel parameters that were changed")
        if batch.is_lost or now >= self._look_at or (self._trouble and (batch.devices or batch.may_retry)):
            changes = self._look_at_all()
        else:
            changes = self._repair(batch)
            if now >= self._look_at_next_at:
                self._look_at_next()
            if now >= self._retry_at or batch.may_retry:
                self._retry()
        if changes and batch.nouns:
            info(f"put back {changes} changes of another process ({', '.join(sorted(batch.nouns))})")
        return changes

    def _hear(self) -> None:
        if self._notifications is not None:
            self._news.hear(self._notifications)

    # ---- what reports say -----------------------------------------------------------------------

    def _repair(self, batch: Batch) -> int:
        """Put right what differs. Raises: CniError."""
        emptied, changes = set(batch.emptied), 0
        devices = batch.devices | {name for name in _devices_of(batch) if not self._is_as_known(name)}
        for name in sorted(devices):
            repaired, is_emptied = self._check_device(self._devices[name])
            changes += repaired
            emptied |= {name} if is_emptied else set()
        changes += sum(self._look_at_device(table, name) for name in sorted(emptied) for table in (NEIGHBOURS, FDB))
        if batch.has_lost_routes:
            self._learn_names()
        looks_at_routes = bool(emptied or batch.has_lost_routes)
        changes += self._look_at_routes() if looks_at_routes else 0
        missing: dict[Table[Any], list[Entry]] = defaultdict(list)
        stray: dict[Table[Any], list[Entry]] = defaultdict(list)
        for (table, key), heard in batch.suspects.items():
            if not (looks_at_routes if table is ROUTES else _device_in(key) in emptied):
                self._judge(table, key, heard, missing, stray)
        changes += sum(self._put(table, missing[table]) for table in ORDER)
        return changes + sum(self._delete(table, stray[table]) for table in reversed(ORDER))

    def _judge(
        self,
        table: Table[Any],
        key: Hashable,
        heard: Sequence[Entry],
        missing: Mapping[Table[Any], list[Entry]],
        stray: Mapping[Table[Any], list[Entry]],
    ) -> None:
        """Read a suspect again. Raises: KernelRefused."""
        desired = self._desired.entries(table).get(key)
        if desired is None:
            # a lookup may hide a route behind another one, so of routes just what was reported is deleted, if it still exists
            is_there = heard and (table is ROUTES or table.find(self._host, heard[0], self._name_of) is not None)
            stray[table] += heard if is_there else []
        elif table is ROUTES and self._is_hidden(desired):
            stray[table].append(desired)
        elif table.find(self._host, desired, self._name_of) != desired:
            missing[table].append(desired)

    def _is_as_known(self, name: str) -> bool:
        """Whether a device is still the one that it was, and up: else its entries went with it. Raises: KernelRefused."""
        known, link = self._links.get(name), find_link(self._host, name)
        return known is not None and link is not None and link.ifindex == known.ifindex and link.is_up

    # ---- looking at a whole table ---------------------------------------------------------------

    def _look_at_all(self) -> int:
        """Raises: CniError."""
        began = monotonic()
        self._desired.take_changes()  # all of it is looked at
        self._told, self._refused = self._refused, {}
        self._look_at = self._retry_at = inf
        self._learn_names()
        changes = sum(self._check_device(device)[0] for device in self._devices.values())
        changes += sum(self._look_at_device(table, name) for name in self._devices for table in (NEIGHBOURS, FDB))
        changes += self._put_sysctls_right() + self._look_at_connected() + self._look_at_routes()
        self._turns, self._look_at_next_at = [], monotonic() + LOOK_SECONDS / len(self._round())
        self._told = {}
        self.health.gauge("reconcile_seconds", "How long the last look at the kernel took.", monotonic() - began)
        self.health.gauge("refused", REFUSED, len(self._refused))
        return changes

    def _look_at_next(self) -> None:
        """Look at one table: what no report told of is found in a round. Raises: CniError."""
        self._turns = self._turns or self._round()
        changes = self._turns.pop()()
        self._look_at_next_at = monotonic() + LOOK_SECONDS / len(self._round())
        if changes:
            info(f"put back {changes} changes that the kernel had not reported")

    def _round(self) -> list[Callable[[], int]]:
        looks: list[Callable[[], int]] = [lambda: self._look_at_connected() + self._look_at_routes()]
        for name, device in self._devices.items():
            looks.append(lambda device=device: self._check_device(device)[0])  # type: ignore[misc]
            looks += [lambda table=table, name=name: self._look_at_device(table, name) for table in (NEIGHBOURS, FDB)]  # type: ignore[misc]
        return looks

    def _check_device(self, device: Device) -> tuple[int, bool]:
        """Make a device and its addresses as they are to be: how many changes, and whether its entries may have gone.
        Raises: CniError."""
        before, known = find_link(self._host, device.name), self._links.get(device.name)
        link = device.ensure(self._host, warning)
        self._links[device.name] = link
        self._learn_names()
        changes = self._put_sysctls_right()  # before its addresses: the kernel refuses an IPv6 address where IPv6 is off
        changes += self._look_at_device(ADDRESSES, device.name)
        if not link.is_up:
            set_up(self._host, link)
            self._links[device.name] = find_link(self._host, device.name) or link
        is_emptied = before is None or not before.is_up or known is None or known.ifindex != link.ifindex
        if before is None or before.ifindex != link.ifindex or not device.matches(before):
            self._count(1)
            changes += 1
        return changes, is_emptied

    def _look_at_device(self, table: OfDevice[Any], name: str) -> int:
        """Raises: CniError."""
        link = self._links.get(name)
        if link is None:
            return 0
        desired: dict[Hashable, Any] = {key: of for key, of in self._desired.entries(table).items() if of.device == name}
        return self._differ(table, desired, table.list(self._host, link))

    def _look_at_routes(self) -> int:
        """Raises: CniError."""
        actual = list_routes(self._host)
        for name in self._devices:  # of another protocol
            actual |= list_routes(self._host, protocol=0, device=name, but=PROTOCOL)
        desired = {key: route for key, route in self._desired.entries(ROUTES).items() if not self._is_hidden(route)}
        return self._differ(ROUTES, desired, [route for route in actual if self._news.is_ours(route)])

    def _look_at_connected(self) -> int:
        """Raises: CniError."""
        self._news.connected.clear()
        numbers: dict[str, int] = {}
        for route in list_routes(self._host, RTPROT_KERNEL):
            if route.device not in numbers:
                link = find_link(self._host, route.device)
                numbers[route.device] = link.ifindex if link else 0
            self._news.connect(route.dst, numbers[route.device])
        return 0

    def _differ(self, table: Table[Any], desired: Mapping[Hashable, Entry], actual: Iterable[Entry]) -> int:
        """Make what is missing, then delete what is too much: a changed entry is never missing in between."""
        right, stray = set(), []
        for entry in actual:
            key = table.key(entry)
            if desired.get(key) == entry:
                right.add(key)
            else:
                stray.append((key, entry))
        missing = {key: entry for key, entry in desired.items() if key not in right}
        changes = self._put(table, list(missing.values()))
        return changes + self._delete(table, [entry for key, entry in stray if key not in missing])

    def _is_hidden(self, route: Any) -> bool:
        """Whether it would take the place of the route to a bridge here, and cut its pods off: a lease names its subnet."""
        key = ROUTES.key(route)
        ifindex = self._news.connected.get(key)
        if ifindex is None:
            return False
        words = f"{route.dst} is the subnet of {self._name_of(ifindex)} here: no route to another node's"
        self._refuse(ROUTES, key, KernelRefused(words, f"not done: ip route replace {' '.join(route.words())}"))
        return True

    # ---- changing it ----------------------------------------------------------------------------

    def _put(self, table: Table[Any], entries: Sequence[Any]) -> int:
        """Raises: CniError where the kernel cannot be asked."""
        if not entries:
            return 0
        if table is ROUTES:
            self._hear()  # now: a route that is replaced may be that of a bridge which has just got its address
            entries = [entry for entry in entries if not self._is_hidden(entry)]
        refused: list[Refusal[Any]] = []
        for start in range(0, len(entries), CHUNK):
            refused += table.replace(self._host, entries[start : start + CHUNK])
            if len(entries) > CHUNK:
                self._hear()
        return self._remember(table, entries, refused)

    def _delete(self, table: Table[Any], entries: Sequence[Any]) -> int:
        """Raises: CniError where the kernel cannot be asked."""
        return self._remember(table, entries, table.delete(self._host, entries)) if entries else 0

    def _remember(self, table: Table[Any], entries: Sequence[Any], refusals: Sequence[Refusal[Any]]) -> int:
        """Keep in mind what was refused, to be tried again; return how many were changed."""
        refused = {table.key(refusal.item): refusal.error for refusal in refusals}
        if self._refused:
            for key in map(table.key, entries):
                if key not in refused:
                    self._refused.pop((table, key), None)
        for key, fault in refused.items():
            self._refuse(table, key, fault)
        self._count(len(entries) - len(refused))
        return len(entries) - len(refused)

    def _refuse(self, table: Table[Any], key: Hashable, fault: KernelRefused) -> None:
        """Told once, and again when the words change."""
        place, words = (table, key), str(fault)
        if self._refused.get(place, self._told.get(place)) != words:
            error(words)
        self._refused[place] = words
        self._retry_at = min(self._retry_at, monotonic() + RETRY_SECONDS)
        self.health.gauge("refused", REFUSED, len(self._refused))

    def _retry(self) -> None:
        """Try again what was refused. Raises: CniError."""
        self._retry_at = inf
        again: dict[Table[Any], list[Entry]] = defaultdict(list)
        for table, key in self._refused:
            desired = self._desired.entries(table).get(key)
            if desired is None:  # it could not be deleted, and is found by a look
                self._look_at = min(self._look_at, monotonic() + RETRY_SECONDS)
            else:
                again[table].append(desired)
        for table in ORDER:
            self._put(table, again[table])
        self.health.gauge("refused", REFUSED, len(self._refused))

    def _put_sysctls_right(self) -> int:
        """The kernel sends no report of these, so they are read every time."""
        changes = 0
        for entry in self._desired.entries(SYSCTLS).values():
            found = SYSCTLS.find(self._host, entry, self._name_of)
            if entry.name in self._unsettable or found is None or found == entry:
                continue
            refused = SYSCTLS.replace(self._host, [entry])
            if refused:
                if refused[0].error.errno != ENOENT:  # that is a device which has just gone; else /proc/sys is read-only
                    self._unsettable.add(entry.name)
                    warning(str(refused[0].error))
                continue
            changes += 1
            if entry.name == FORWARDING[6]:
                self._warn_of_advertisements()
        self._count(changes)
        return changes

    def _warn_of_advertisements(self) -> None:
        name = f"net/ipv6/conf/{self.external}/accept_ra"
        if SYSCTLS.find(self._host, Sysctl(name, ""), self._name_of) == Sysctl(name, "1"):
            hint = f"if it needs that: sysctl -w net.ipv6.conf.{self.external}.accept_ra=2"
            warning(f"the node forwards IPv6 now, so {self.external} takes no default route from a router any more; {hint}")

    def _count(self, changes: int) -> None:
        if changes:
            self.health.count("changes_total", CHANGES, changes)

    # ---- names ----------------------------------------------------------------------------------

    def _learn_names(self) -> None:
        """Raises: KernelRefused."""
        external = find_link(self._host, self.external)
        names = {link.ifindex: name for name, link in self._links.items()}
        self._news.names = names | ({external.ifindex: self.external} if external else {})

    def _name_of(self, ifindex: int) -> str:
        """The link's name; "" where there is none. Raises: KernelRefused."""
        known = self._news.names.get(ifindex)
        if known is not None:
            return known
        link = find_link(self._host, ifindex)
        return link.name if link else ""


class _Pause:
    """What keeps two that revert each other from taking the machine: time between two repairs that grows."""

    def __init__(self) -> None:
        self._seconds, self._last_repair = 0.0, -inf

    def after(self, changes: int, now: float) -> float:
        """Seconds after a turn that put back so many changes, at this time; what was quiet for a while begins at the
        shortest."""
        if not changes:
            return 0.0
        shortest, longest = PAUSE_SECONDS
        is_again = now - self._last_repair < 2 * longest
        self._seconds, self._last_repair = min(2 * self._seconds, longest) if is_again else shortest, now
        return self._seconds


def _devices_of(batch: Batch) -> set[str]:
    """The devices whose entries are suspects."""
    return {name for table, key in batch.suspects if table is not ROUTES and (name := _device_in(key))}


def _device_in(key: Hashable) -> str:
    """The device in the key of an entry that belongs to one; "" in another's."""
    return key[0] if isinstance(key, tuple) and isinstance(key[0], str) else ""
