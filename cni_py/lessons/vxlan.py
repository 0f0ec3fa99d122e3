"""Lesson 5: the three entries that lead to a peer, restored by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lab import faults
from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NODE, PEER, DEVICE = "node3", "node1", "flannel.1"
PEER_ADDRESS, PEER_NETWORK, PEER_VTEP, PEER_POD = "192.168.123.11", "10.244.1.0/24", "10.244.1.0", "10.244.1.2"


def _prepare(site: Site) -> None:
    faults.break_(site, "flanneld", NODE)  # it would restore them at once
    mac = _mac_of_peer(site)
    site.run(
        NODE,
        f"ip route del {PEER_NETWORK}; ip neigh del {PEER_VTEP} dev {DEVICE}\n"
        f"bridge fdb del {mac} dev {DEVICE} dst {PEER_ADDRESS}",
    )


def _mac_of_peer(site: Site) -> str:
    return str(facts.links(site, PEER).get(DEVICE, {}).get("address", ""))


def _flanneld_runs(site: Site) -> str:
    return f"flanneld of {NODE} runs, and has restored them itself" if site.flanneld(NODE).is_alive else ""


def _no_route(site: Site) -> str:
    routes = facts.read_json(site, NODE, f"ip -j route show {PEER_NETWORK}") or []
    if not routes:
        return f"{NODE} has no route to {PEER_NETWORK}"
    route = routes[0]
    if route.get("dev") != DEVICE:
        return f"the route to {PEER_NETWORK} leads to {route.get('dev')}"
    found = route.get("gateway", "no gateway")
    return "" if found == PEER_VTEP else f"the route to {PEER_NETWORK} is by way of {found}, not of {PEER_VTEP}"


def _no_neighbour(site: Site) -> str:
    entries = facts.read_json(site, NODE, f"ip -j neigh show {PEER_VTEP} dev {DEVICE}") or []
    if not entries or "lladdr" not in entries[0]:
        return f"{NODE} does not know the MAC address of {PEER_VTEP} on {DEVICE}"
    found, wanted = entries[0]["lladdr"], _mac_of_peer(site)
    return "" if found == wanted else f"{PEER_VTEP} is {found}, and {DEVICE} of {PEER} has {wanted}"


def _no_forwarding(site: Site) -> str:
    wanted = _mac_of_peer(site)
    entries = facts.read_json(site, NODE, f"bridge -j fdb show dev {DEVICE}") or []
    found = [entry.get("dst", "no address") for entry in entries if entry["mac"] == wanted]
    if not found:
        return f"{DEVICE} of {NODE} has no entry for {wanted}, the MAC address of {DEVICE} on {PEER}"
    return "" if found == [PEER_ADDRESS] else f"{wanted} is behind {', '.join(found)}, and {PEER} has {PEER_ADDRESS}"


LESSON = Lesson(
    5,
    "05-vxlan-between-nodes.md",
    "VXLAN between nodes",
    30,
    f"""\
flanneld of {NODE} was killed, and the entries of {NODE} that lead to {PEER} were deleted: pod3 does not reach
pod1. Restore them with ip and bridge, without flanneld.""",
    (
        Requirement(
            f"flanneld of {NODE} does not run",
            _flanneld_runs,
            f"cni-py lab break flanneld {NODE}; delete the three entries for {PEER} again",
        ),
        Requirement(
            f"{NODE} has a route to {PEER_NETWORK}, by way of {PEER_VTEP} on {DEVICE}",
            _no_route,
            f"the route to node2 is intact: ip route show dev {DEVICE}. The gateway is on no network of {NODE}: which word "
            "says that it is on the link all the same?",
        ),
        Requirement(
            f"{NODE} knows the MAC address of {PEER_VTEP}",
            _no_neighbour,
            f"ip neigh show dev {DEVICE} has the one of node2. The MAC address is in {PEER}'s lease, "
            f"/run/lab/shared/flannel.json, and on its {DEVICE}",
        ),
        Requirement(
            f"{NODE} knows which node has this MAC address",
            _no_forwarding,
            f"bridge fdb show dev {DEVICE} has the one of node2",
        ),
        Requirement(
            "pod3 reaches pod1",
            lambda site: facts.no_ping(site, NODE, "pod3", PEER_POD),
            f"follow it: ip route get {PEER_POD} on {NODE}, then ip neigh, then bridge fdb; and the same on {PEER}",
        ),
    ),
    _prepare,
    {"nodes": 3},
    NODE,
)
