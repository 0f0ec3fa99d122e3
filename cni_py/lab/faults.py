"""What can be broken in a lab, and how it is healed.

A cable, a daemon, or a node's way to the pods of other nodes, in the three parts that VXLAN needs: route, ARP and FDB entry.
Of these each kind has a list of what is there now, with the command that deletes an entry and the one that
puts it back; flanneld is expected to be quicker.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_py.lab.programs import LabFailed, WrongUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Network, IPv6Network

    from cni_py.lab.lab import Lab

    Network = IPv4Network | IPv6Network
    Run = Callable[..., str]

DAEMONS_AND_CABLES, ENTRIES = ("link", "etcd", "flanneld"), ("route", "arp", "fdb")
HEALED_SECONDS = 3.0
BRIDGE = "cni0"
_NOT_SETTINGS = ("linkdown", "dead", "offload", "trap", "rt_offload", "rt_trap")


@dataclass(frozen=True, slots=True)
class Entry:
    """``key`` says which it is: an entry with the same key is the same one, put back."""

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
    """Whether the words of an ``ip route`` line are such a route; one that came with an address ("proto kernel") is not."""
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
    """iproute2 prints nothing at all where its list is empty."""
    found: list[dict[str, str]] = json.loads(text) if text.strip() else []
    return found


# ---- in a lab ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """``healed_seconds``: when flanneld had put it back; None: it did not, or it is not its task."""

    what: str
    removed: int
    healed_seconds: float | None


def break_(lab: Lab, what: str, node: str = "") -> Fault:
    """Break something, and for what flanneld puts back wait until it has, or ``HEALED_SECONDS`` are over.

    ``link``: the node's cable is pulled. ``flanneld``, ``etcd``: SIGKILL. ``route``, ``arp``, ``fdb``: the
    entries that lead to other nodes are deleted. Raises: LabFailed.
    """
    which = _name(lab, what, node)
    if what in ENTRIES:
        return _delete_entries(lab, which, what, node)
    if which in lab.state.broken:
        raise LabFailed(f'"{which}" is broken already', hint=f"cni-py lab heal {which}")
    if what == "link":
        lab.switch.configure([f"link set {node} down"])
    else:
        lab.service(what, node).kill()
    lab.state.broken[which] = []
    lab.save()
    return Fault(which, 1, None)


def _delete_entries(lab: Lab, which: str, what: str, node: str) -> Fault:
    found = entries(lab, what, node)
    if not found:
        hint = (
            f"cni-py lab log {node}" if what == "route" else f"vxlan has such entries; the back end is {lab.settings.backend}"
        )
        raise LabFailed(f"{node} has no {what} entry that leads to another node", hint=hint)
    lab.state.broken[which] = [[entry.key, *entry.restore] for entry in found]
    lab.save()
    began = time.monotonic()
    for entry in found:
        lab.machine(node).run("sh", "-c", '"$@" || true', "sh", *entry.delete)  # it may go with the one before it
    healed_seconds = _watch_healing(lab, what, node, {entry.key for entry in found}, began)
    if healed_seconds is not None:
        del lab.state.broken[which]
        lab.save()
    return Fault(which, len(found), healed_seconds)


def _watch_healing(lab: Lab, what: str, node: str, keys: set[str], began: float) -> float | None:
    """When all of these entries were there again."""
    while (took := time.monotonic() - began) < HEALED_SECONDS:
        if keys <= {entry.key for entry in entries(lab, what, node)}:
            return took
        if not lab.flanneld(node).is_alive:
            return None
        time.sleep(0.01)
    return None


def heal(lab: Lab, what: str, node: str = "") -> None:
    """Put back what ``break_`` broke. Where nothing is broken, nothing is done. Raises: LabFailed."""
    which = _name(lab, what, node)
    if which not in lab.state.broken:
        return
    if what == "link":
        lab.switch.configure([f"link set {node} up"])
    elif what == "etcd":
        lab.start_etcd()
    elif what == "flanneld":
        lab.state.flanneld[node] = lab.start_flanneld(lab.node(node)).pid
        _forget_what_it_healed(lab, node)
    else:
        there = {entry.key for entry in entries(lab, what, node)}
        for key, *command in lab.state.broken[which]:
            if key not in there:
                lab.machine(node).run(*command)
    del lab.state.broken[which]
    lab.save()


def _forget_what_it_healed(lab: Lab, node: str) -> None:
    """A flanneld that has begun puts back what was deleted while there was none."""
    for what in ENTRIES:
        keys = {entry[0] for entry in lab.state.broken.get(f"{what} {node}", [])}
        if keys and _watch_healing(lab, what, node, keys, time.monotonic()) is not None:
            del lab.state.broken[f"{what} {node}"]


def still_broken(lab: Lab) -> list[str]:
    """What was broken and is so now: entries are looked at, for flanneld or a person may have put them back since."""
    found = []
    for which, removed in sorted(lab.state.broken.items()):
        what, _, node = which.partition(" ")
        is_back = what in ENTRIES and lab.machine(node).is_alive
        if not is_back or not {entry[0] for entry in removed} <= {entry.key for entry in entries(lab, what, node)}:
            found.append(which)
    return found


def _name(lab: Lab, what: str, node: str) -> str:
    """The name of a fault: "route node1", "etcd". Raises: LabFailed where there is no such thing; WrongUsage."""
    known = (*DAEMONS_AND_CABLES, *ENTRIES)
    if what not in known:
        raise LabFailed(f'"{what}" cannot be broken', hint=f"what can: {', '.join(known)}")
    if what == "etcd" and node:
        raise WrongUsage(f'etcd is not on "{node}": it has a machine of its own', hint="without a node: cni-py lab break etcd")
    if what != "etcd" and not node:
        raise WrongUsage(
            f'"{what}" needs a node', hint=f"cni-py lab break {what} {lab.nodes[0]}; nodes: {', '.join(lab.nodes)}"
        )
    if what != "etcd":
        lab.node(node)
        return f"{what} {node}"
    if lab.settings.datastore != "etcd":
        raise LabFailed("this lab has no etcd", hint="cni-py lab up --datastore etcd")
    return what


def entries(lab: Lab, what: str, node: str) -> list[Entry]:
    """What leads from a node to others: its routes, ARP or FDB entries."""
    run = lab.machine(node).run
    if what == "route":
        keys = ("Network", "IPv6Network")
        return routes(run, [ip_network(lab.settings.config[key]) for key in keys if key in lab.settings.config])
    return neighbours(run) if what == "arp" else forwarding(run)
