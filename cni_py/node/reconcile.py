"""Wanted minus actual: the kernel is looked at as a whole, and what differs is changed. Nothing else ever is.

How it works. :meth:`Reconciler.once` makes devices, addresses, entries and routes as they are wanted, in the
order in which packets need them, and takes away in the opposite one. What is ours is told by where it is (on a
device of ours) or by the route's protocol number, so a restarted flanneld finds what a former one left: entries
of dead peers go, live ones are not touched. A second flanneld on the node has the same number: routes that lead neither over
a device of ours nor into our network are its. Where the last look was good and only leases have changed since,
that difference alone is made, for with thousands of peers a look takes longer. :meth:`Reconciler.run` looks
again whenever the kernel says that something changed, and every ``LOOK_SECONDS`` besides; and where somebody changes it
back each time, more and more rarely.
"""

from __future__ import annotations

import threading
from errno import ENOENT
from math import inf
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from cni_py.errors import CniError, KernelRefused
from cni_py.kernel import sysctl
from cni_py.kernel.address import add_address, delete_address, list_addresses
from cni_py.kernel.link import delete_link, find_link, list_links, set_up
from cni_py.kernel.neighbour import (
    delete_forwarding,
    delete_neighbours,
    list_forwarding,
    list_neighbours,
    replace_forwarding,
    replace_neighbours,
)
from cni_py.kernel.route import PROTOCOL, delete_routes, list_routes, replace_routes
from cni_py.kernel.udp_port import port_named
from cni_py.kernel.vxlan import ensure_vxlan
from cni_py.netlink.constants import IFF_NOARP, RTPROT_KERNEL
from cni_py.netlink.monitor import Watch
from cni_py.netlink.socket import open_host
from cni_py.node.desired import FORWARDING, Wanted
from cni_py.node.log import error, info, warning
from cni_py.node.unsettable import Unsettable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Set

    from cni_py.kernel.link import Link
    from cni_py.kernel.route import Route
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Network, Vxlan
    from cni_py.node.health import Health

LOOK_SECONDS = 60.0
RETRY_SECONDS = 2.0
"""When what was refused is tried again, unless there is news before."""
SHARE = 5
"""After a look that took t seconds of the processor, the next one begins SHARE × t later at the soonest: it never
takes the machine."""
PAUSE_SECONDS = (0.02, 0.8)
"""Where somebody undoes what we put back, after the first time and at the longest; it doubles."""
_TUNNELS = {"vxlan": ("flannel.", "flannel-v6."), "wireguard": ("flannel-wg",), "ipip": ("flannel.ipip",)}
"""What a flanneld's devices are called, by their kind."""


class Reconciler:
    """Keeps the kernel as the last :meth:`want` said."""

    def __init__(self, health: Health, external: str, networks: Iterable[Network]) -> None:
        """``external``: the name of the interface that routes lead over; news of it and of our devices is heard."""
        self.health, self.external = health, external
        self.networks = set(networks)
        """Ours, and that of an earlier configuration."""
        self._wanted = Wanted()
        self._wanted_sysctls: list[tuple[str, str]] = []
        self._unsettable = Unsettable()
        self._is_good = False
        """Whether all was as wanted after the last look."""
        self._lock = threading.Lock()
        self._failures: dict[str, str] = {}
        self._seen: set[str] = set()
        self._host = open_host()

    def close(self) -> None:
        self._host.close()

    def want(self, wanted: Wanted) -> None:
        """From now on this; done before it returns, what the kernel refuses is tried again. Raises: CniError."""
        former, self._wanted, self._wanted_sysctls = self._wanted, wanted, wanted.sysctls()
        is_done = (former.devices, former.addresses) == (wanted.devices, wanted.addresses) and self._step(former, wanted)
        if not is_done:
            self.once()

    def _step(self, former: Wanted, wanted: Wanted) -> bool:
        """Make the difference of the two, without a look; whether that was all. Raises: KernelRefused."""
        with self._lock:
            if not self._is_good:
                return False
            self._is_good = False
            changes = self._differ(wanted.neighbours, former.neighbours, replace_neighbours, delete_neighbours)
            changes += self._differ(wanted.forwarding, former.forwarding, replace_forwarding, delete_forwarding)
            routes = wanted.routes - self._on_our_links(wanted)
            changes += self._differ(routes, former.routes, replace_routes, delete_routes)
            self._is_good = not self._failures
        self._count(changes)
        return self._is_good

    def once(self) -> int:
        """Look, and change what differs; answers how many changes there were. Raises: CniError, KernelRefused."""
        began = monotonic()
        with self._lock:
            wanted, self._is_good = self._wanted, False
            self._seen = set()
            changes = sum([self._device(device, wanted) for device in wanted.devices]) + self._sysctls()
            changes += self._addresses_of_others(wanted)
            changes += self._routes(wanted)
            for gone in set(self._failures) - self._seen:
                del self._failures[gone]
            self._is_good = not self._failures
        self._unsettable.warn()
        self.health.gauge("reconcile_seconds", "How long the last look at the kernel took.", monotonic() - began)
        self.health.gauge("refused", "What the kernel refuses at present.", len(self._failures))
        self._count(changes)
        return changes

    def _count(self, changes: int) -> None:
        if changes:
            what = "Changes that were made to links, addresses, routes, entries and kernel parameters."
            self.health.count("changes_total", what, changes)

    def run(self, stop: threading.Event) -> None:
        """Put back what others change, until ``stop``."""
        ours = {device.name for device in self._wanted.devices} | {name for name, _ in self._wanted.addresses}
        pause = _Pause()
        with Watch(devices=ours | {self.external}, ignoring=self._host) as watch:
            next_look, trouble = monotonic(), ""  # at once: it may have changed before the watch began
            while not stop.is_set():
                changed = watch.wait(0.5)
                if stop.is_set():  # the news may be of a back end that takes its device with it
                    return
                if parameters := self._sysctls():
                    self._count(parameters)
                    info(f"put right {parameters} kernel parameters that were changed")
                if not changed and monotonic() < next_look:
                    continue
                began = thread_time()  # of a clock that stands still while the process, or the machine, is stopped
                try:
                    changes, trouble = self.once(), ""
                except CniError as fault:
                    if str(fault) != trouble:
                        trouble = str(fault)
                        error(f"the data path could not be put right, trying again: {trouble}")
                    changes = 0
                if changes and changed:
                    info(f"put back {changes} things that somebody had changed ({', '.join(sorted(changed))})")
                took = thread_time() - began
                next_look = monotonic() + (RETRY_SECONDS if trouble or self._failures else LOOK_SECONDS)
                stop.wait(max(SHARE * took, pause.after(changes, monotonic())))

    def _sysctls(self) -> int:
        """Put right those that differ. The kernel sends no news of these, so they are read every time. From two threads."""
        changes = 0
        for name, value in self._wanted_sysctls:
            if name in self._unsettable or not _differs(name, value):
                continue
            try:
                sysctl.ensure(name, value)
            except KernelRefused as fault:
                if fault.errno != ENOENT:  # that is a device which has just gone; else /proc/sys is read-only, and stays so
                    self._unsettable.add(name, value, fault)
                continue
            changes += 1
            if name == FORWARDING[6] and not _differs(f"net/ipv6/conf/{self.external}/accept_ra", "1"):
                hint = f"if it needs that: sysctl -w net.ipv6.conf.{self.external}.accept_ra=2"
                warning(f"the node forwards IPv6 now, so {self.external} takes no default route from a router any more; {hint}")
        return changes

    @staticmethod
    def cleanup() -> None:
        """Remove every route and device that a flanneld made. Raises: CniError."""
        with open_host() as host:
            refused = [refusal.error for refusal in delete_routes(host, list_routes(host))]
            for link in list_links(host):
                if link.name.startswith(_TUNNELS.get(link.kind, ("/",))):
                    delete_link(host, link.name)
        if refused:
            raise refused[0]

    # ---- one device and its tables --------------------------------------------------------------

    def _device(self, device: Vxlan, wanted: Wanted) -> int:
        before = find_link(self._host, device.name)
        link = ensure_vxlan(self._host, device, warn=warning)
        changes = int(before is None or _made(before) != _made(link))
        changes += self._sysctls()  # before its addresses: the kernel refuses an IPv6 address where IPv6 is off
        changes += self._addresses(link, {address for name, address in wanted.addresses if name == link.name})
        if not link.is_up:
            with port_named(self._host, link.name):
                set_up(self._host, link)
            changes += 1
        neighbours = {entry for entry in wanted.neighbours if entry.device == link.name}
        forwarding = {entry for entry in wanted.forwarding if entry.device == link.name}
        changes += self._differ(neighbours, list_neighbours(self._host, link), replace_neighbours, delete_neighbours)
        changes += self._differ(forwarding, list_forwarding(self._host, link), replace_forwarding, delete_forwarding)
        return changes

    def _addresses(self, link: Link, wanted: Set[Any]) -> int:
        actual = set(list_addresses(self._host, link))
        for address in wanted - actual:
            add_address(self._host, link, address)
        for address in actual - wanted:
            delete_address(self._host, link, address)
        return len(wanted ^ actual)

    def _addresses_of_others(self, wanted: Wanted) -> int:
        """Devices that a back end makes and keeps itself: while one is away, its turn comes with the news of its return."""
        made_here = {device.name for device in wanted.devices}
        changes = 0
        for name in {name for name, _ in wanted.addresses} - made_here:
            link = find_link(self._host, name)
            if link is not None:
                changes += self._addresses(link, {address for of, address in wanted.addresses if of == name})
        return changes

    def _routes(self, wanted: Wanted) -> int:
        devices = {device.name for device in wanted.devices} | {name for name, _ in wanted.addresses}
        actual = {route for route in list_routes(self._host) if route.device in devices or self._is_in_networks(route)}
        for device in wanted.devices:  # Go's flanneld and people leave routes of another protocol over our devices
            others = list_routes(self._host, protocol=0, device=device.name, but=PROTOCOL)
            actual |= {route for route in others if route.onlink}
        return self._differ(wanted.routes - self._on_our_links(wanted), actual, replace_routes, delete_routes)

    def _is_in_networks(self, route: Route) -> bool:
        return any(route.dst.version == network.version and route.dst.overlaps(network) for network in self.networks)

    def _on_our_links(self, wanted: Wanted) -> set[Route]:
        """Routes that would take the place of the one to a bridge here, and cut its pods off: a lease names its subnet."""
        tunnels = {device.name for device in wanted.devices}
        here = {route.dst: route for route in list_routes(self._host, RTPROT_KERNEL) if route.device not in tunnels}
        refused = {route for route in wanted.routes if route.dst in here and not route.metric}
        for route in refused:
            words = f"{route.dst} is the subnet of {here[route.dst].device} here: no route to another node's"
            self._refused(route, KernelRefused(words, f"not done: ip route replace {' '.join(route.words())}"))
        return refused

    def _differ(
        self,
        wanted: Set[Any],
        actual: Set[Any],
        replace: Callable[[Rtnl, Iterable[Any]], list[Any]],
        delete: Callable[[Rtnl, Iterable[Any]], list[Any]],
    ) -> int:
        """Make what is missing, then take away what is too much: a changed entry is never missing in between."""
        missing, too_many = wanted - actual, actual - wanted
        refused = replace(self._host, missing) if missing else []
        replaced = {_key(item) for item in missing}
        left = [item for item in too_many if _key(item) not in replaced]
        refused += delete(self._host, left) if left else []
        for refusal in refused:
            self._refused(refusal.item, refusal.error)
        return len(missing) + len(left) - len(refused)

    def _refused(self, item: Any, fault: KernelRefused) -> None:
        """Said once, and again when the words change; tried again at the next look."""
        name, words = repr(item), str(fault)
        self._seen.add(name)
        if self._failures.get(name) != words:
            self._failures[name] = words
            error(words)


class _Pause:
    """What keeps two that undo each other from taking the machine: time between two repairs that grows."""

    def __init__(self) -> None:
        self._seconds, self._last_repair = 0.0, -inf

    def after(self, changes: int, now: float) -> float:
        """Seconds after a look that made so many changes, at this time; what was quiet for a while begins anew."""
        if not changes:
            return 0.0
        shortest, longest = PAUSE_SECONDS
        is_again = now - self._last_repair < 2 * longest
        self._seconds, self._last_repair = min(2 * self._seconds, longest) if is_again else shortest, now
        return self._seconds


def _made(link: Link) -> tuple[object, ...]:
    """What of it is put right; another number: it was made anew."""
    return (link.ifindex, link.mac, link.mtu, link.master, link.flags & IFF_NOARP)


def _differs(name: str, value: str) -> bool:
    """Whether there is such a kernel parameter, with another value."""
    try:
        return sysctl.read(name) != value
    except KernelRefused:
        return False


def _key(item: Any) -> tuple[Any, ...]:
    """What the kernel tells two entries apart by: a new one of the same key has taken the old one's place."""
    if hasattr(item, "dst"):
        return (item.dst, item.metric)
    return (item.device, item.mac) if hasattr(item, "remote") else (item.device, item.address)
