"""Faults of a lab: inject and repair them.

A cable, a daemon, or the entries by which a node reaches pods of other nodes, of the three kinds that VXLAN needs: route, ARP
and FDB entry. Each entry is read with the command that deletes it and the one that
restores it; flanneld is expected to restore it first.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_py.lab.build import Builder
from cni_py.lab.programs import LabFailed, WrongUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Network, IPv6Network

    from cni_py.lab.site import Site

    Network = IPv4Network | IPv6Network
    Run = Callable[..., str]

DAEMONS_AND_CABLES, ENTRIES = ("link", "etcd", "flanneld"), ("route", "arp", "fdb")
HEALED_SECONDS = 3.0
BRIDGE = "cni0"
_NOT_SETTINGS = ("linkdown", "dead", "offload", "trap", "rt_offload", "rt_trap")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry; another one with the same ``key`` is this one, restored."""

    key: str
    delete: list[str]
    restore: list[str]


def routes(run: Run, networks: Iterable[Network]) -> list[Entry]:
    """Routes to the subnets of other nodes: into the pod network, and not to the node's own bridge."""
    found = []
    for family in ("-4", "-6"):
        for line in run("ip", family, "route", "show").splitlines():
            words = [word for word in line.split() if word not in _NOT_SETTINGS]
            if is_to_peer(words, networks):
                found.append(
                    Entry(words[0], ["ip", family, "route", "del", *words], ["ip", family, "route", "replace", *words])
                )
    return found


def is_to_peer(words: list[str], networks: Iterable[Network]) -> bool:
    """Return whether an ``ip route`` line is such a route; one that belongs to an address ("proto kernel") is not."""
    try:
        destination = ip_network(words[0])
    except ValueError:  # "default", "unreachable", "blackhole"
        return False
    device = words[words.index("dev") + 1] if "dev" in words else ""
    within = any(n.version == destination.version and _contains(n, destination) for n in networks)
    return within and device != BRIDGE and "kernel" not in words


def _contains(network: Network, inner: Network) -> bool:
    return network.network_address in inner.supernet(new_prefix=min(network.prefixlen, inner.prefixlen)) and (
        network.prefixlen <= inner.prefixlen
    )


def neighbours(run: Run) -> list[Entry]:
    """Permanent ARP and NDP entries of VXLAN devices."""
    found = []
    for device in vxlan_devices(run):
        for entry in _json(run("ip", "-j", "neigh", "show", "dev", device, "nud", "permanent")):
            which = [entry["dst"], "dev", device]
            restore = ["ip", "neigh", "replace", *which, "lladdr", entry["lladdr"], "nud", "permanent"]
            found.append(Entry(" ".join(which), ["ip", "neigh", "del", *which], restore))
    return found


def forwarding(run: Run) -> list[Entry]:
    """Entries of the forwarding table of VXLAN devices that name another node."""
    found = []
    for device in vxlan_devices(run):
        for entry in _json(run("bridge", "-j", "fdb", "show", "dev", device)):
            if "dst" in entry:
                which = [entry["mac"], "dev", device, "dst", entry["dst"]]
                add = ["bridge", "fdb", "append", *which, "self", "permanent"]
                found.append(Entry(" ".join(which), ["bridge", "fdb", "del", *which, "self"], add))
    return found


def vxlan_devices(run: Run) -> list[str]:
    return [link["ifname"] for link in _json(run("ip", "-j", "link", "show", "type", "vxlan")) if link]


def _json(text: str) -> list[dict[str, str]]:
    """Parse the output of iproute2."""
    found: list[dict[str, str]] = json.loads(text) if text.strip() else []  # an empty list is printed as nothing
    return found


# ---- in a lab ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """``healed_seconds``: the time until flanneld had restored it; None: it did not, or does not repair such faults."""

    what: str
    removed: int
    healed_seconds: float | None


def break_(site: Site, what: str, node: str = "") -> Fault:
    """Inject a fault; if flanneld repairs its kind, wait until it has, or for ``HEALED_SECONDS``. Raises: LabFailed.

    ``link``: the node's cable is unplugged. ``flanneld``, ``etcd``: SIGKILL. ``route``, ``arp``, ``fdb``: the
    entries for other nodes are deleted.
    """
    which = _name(site, what, node)
    if what in ENTRIES:
        return _delete_entries(site, which, what, node)
    if which in site.state.broken:
        raise LabFailed(f'"{which}" is already broken', hint=f"cni-py lab heal {which}")
    if what == "link":
        site.switch.configure([f"link set {node} down"])
    else:
        site.service(what, node).kill()
    site.state.broken[which] = []
    site.save()
    return Fault(which, 1, None)


def _delete_entries(site: Site, which: str, what: str, node: str) -> Fault:
    found = entries(site, what, node)
    if not found:
        hint = (
            f"cni-py lab log {node}"
            if what == "route"
            else f"only vxlan has such entries; the back end is {site.settings.backend}"
        )
        raise LabFailed(f"{node} has no {what} entry for another node", hint=hint)
    site.state.broken[which] = [[entry.key, *entry.restore] for entry in found]
    site.save()
    began = time.monotonic()
    for entry in found:
        site.machine(node).run("sh", "-c", '"$@" || true', "sh", *entry.delete)  # deleted with the one before it, perhaps
    healed_seconds = _watch_healing(site, what, node, {entry.key for entry in found}, began)
    if healed_seconds is not None:
        del site.state.broken[which]
        site.save()
    return Fault(which, len(found), healed_seconds)


def _watch_healing(site: Site, what: str, node: str, keys: set[str], began: float) -> float | None:
    """Returns: the seconds until all of these entries existed again; None: they do not."""
    while (took := time.monotonic() - began) < HEALED_SECONDS:
        if keys <= {entry.key for entry in entries(site, what, node)}:
            return took
        if not site.flanneld(node).is_alive:
            return None
        time.sleep(0.01)
    return None


def heal(site: Site, what: str, node: str = "") -> None:
    """Repair a fault, if it exists. Raises: LabFailed."""
    which = _name(site, what, node)
    if which not in site.state.broken:
        return
    if what == "link":
        site.switch.configure([f"link set {node} up"])
    elif what == "etcd":
        Builder(site).start_etcd()
    elif what == "flanneld":
        site.state.flanneld[node] = Builder(site).start_flanneld(site.node(node)).pid
        _forget_restored(site, node)
    else:
        existing = {entry.key for entry in entries(site, what, node)}
        for key, *command in site.state.broken[which]:
            if key not in existing:
                site.machine(node).run(*command)
    del site.state.broken[which]
    site.save()


def _forget_restored(site: Site, node: str) -> None:
    """Forget faults that flanneld has repaired when it started."""
    for what in ENTRIES:
        keys = {entry[0] for entry in site.state.broken.get(f"{what} {node}", [])}
        if keys and _watch_healing(site, what, node, keys, time.monotonic()) is not None:
            del site.state.broken[f"{what} {node}"]


def still_broken(site: Site) -> list[str]:
    """Faults that still exist: flanneld or a user may have restored deleted entries."""
    found = []
    for which, removed in sorted(site.state.broken.items()):
        what, _, node = which.partition(" ")
        is_back = what in ENTRIES and site.machine(node).is_alive
        if not is_back or not {entry[0] for entry in removed} <= {entry.key for entry in entries(site, what, node)}:
            found.append(which)
    return found


def _name(site: Site, what: str, node: str) -> str:
    """The name of a fault: "route node1", "etcd". Raises: LabFailed if it is impossible; WrongUsage."""
    known = (*DAEMONS_AND_CABLES, *ENTRIES)
    if what not in known:
        raise LabFailed(f'unknown fault "{what}"', hint=f"faults: {', '.join(known)}")
    if what == "etcd" and node:
        raise WrongUsage(f'etcd does not run on "{node}" but on its own machine', hint="without a node: cni-py lab break etcd")
    if what != "etcd" and not node:
        raise WrongUsage(
            f'"{what}" requires a node', hint=f"cni-py lab break {what} {site.nodes[0]}; nodes: {', '.join(site.nodes)}"
        )
    if what != "etcd":
        site.node(node)
        return f"{what} {node}"
    if site.settings.datastore != "etcd":
        raise LabFailed("this lab runs without etcd", hint="cni-py lab up --datastore etcd")
    return what


def entries(site: Site, what: str, node: str) -> list[Entry]:
    """The entries for other nodes: routes, ARP or FDB entries."""
    run = site.machine(node).run
    if what == "route":
        keys = ("Network", "IPv6Network")
        return routes(run, [ip_network(site.settings.config[key]) for key in keys if key in site.settings.config])
    return neighbours(run) if what == "arp" else forwarding(run)
