"""Lesson 3: a full pool, with addresses that no pod has any more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NETWORK, LIVE, NEW = "tiny", "keep", "green"
LIVE_ADDRESS, GATEWAY, SUBNET = "10.98.0.2", "10.98.0.1", "10.98.0.0/29"
LOST = ("lost1", "lost2")
_IPAM = {"type": "host-local", "ranges": [[{"subnet": SUBNET, "rangeStart": LIVE_ADDRESS, "rangeEnd": "10.98.0.4"}]]}
_CONFLIST = {
    "cniVersion": "1.1.0",
    "name": NETWORK,
    "plugins": [{"type": "bridge", "bridge": "br-tiny", "isGateway": True, "ipam": _IPAM}],
}


def _prepare(site: Site) -> None:
    text = json.dumps(_CONFLIST, indent=2)
    site.run("node1", f"cat >/etc/cni/net.d/20-{NETWORK}.conflist", stdin=f"{text}\n")
    lines = [f"ip netns add {name}; cni-py add {NETWORK} {name} >/dev/null" for name in (LIVE, *LOST)]
    # a pod that was deleted without DEL, as when a container runtime was killed
    lines += [f"ip netns del {name}" for name in LOST]
    site.run("node1", "\n".join([*lines, f"ip netns add {NEW}"]))


def _live_was_hurt(site: Site) -> str:
    reserved = facts.reservations(site, "node1", NETWORK)
    if LIVE_ADDRESS not in reserved:
        return f"the reservation of {LIVE_ADDRESS}, which {LIVE} uses, was deleted: the next pod can get the same address"
    if found := facts.no_address_in(site, "node1", LIVE, SUBNET):
        return found
    if facts.address_of(site, "node1", LIVE) != LIVE_ADDRESS:
        return f"eth0 of {LIVE} has {facts.address_of(site, 'node1', LIVE)}"
    return facts.no_ping(site, "node1", LIVE, GATEWAY)


def _not_attached(site: Site) -> str:
    if missing := facts.no_address_in(site, "node1", NEW, SUBNET):
        return missing
    return facts.no_ping(site, "node1", NEW, GATEWAY)


def _address_not_reserved(site: Site) -> str:
    address = facts.address_of(site, "node1", NEW)
    if address not in facts.reservations(site, "node1", NETWORK):
        return f"{address} is on eth0 of {NEW}, and /var/lib/cni/networks/{NETWORK} has no file for it"
    return ""


def _leaks(site: Site) -> str:
    used = {facts.address_of(site, "node1", name) for name in (LIVE, NEW)}
    stale = sorted(set(facts.reservations(site, "node1", NETWORK)) - used)
    return f"no pod has {' and '.join(stale)}, and the reservation is still on disk" if stale else ""


LESSON = Lesson(
    3,
    "03-addresses-on-disk.md",
    "Addresses on disk",
    20,
    f"""\
The network "{NETWORK}" of node1 has three addresses. All are reserved: one for "{LIVE}", which uses it, two
for pods that were deleted without DEL. Attach the namespace "{NEW}" to {NETWORK}, and leave "{LIVE}"
as it is.""",
    (
        Requirement(
            f"{LIVE} still has {LIVE_ADDRESS}, reserved and in use",
            _live_was_hurt,
            f"restore it: cni-py del {NETWORK} {LIVE}; cni-py add {NETWORK} {LIVE} --args IP={LIVE_ADDRESS}",
        ),
        Requirement(
            f"{NEW} is attached to {NETWORK}, and reaches its gateway",
            _not_attached,
            f"cni-py add {NETWORK} {NEW} says why it cannot; two of the three reservations are of containers whose namespace "
            "no longer exists, and one command of cni-py finds those (cni-py help)",
            is_gate=True,
        ),
        Requirement(
            f"the address of {NEW} is reserved",
            _address_not_reserved,
            "an address that is set by hand is unknown to the plugin, which gives it to the next pod as well: use cni-py add",
        ),
        Requirement(
            "no address is reserved that no pod has",
            _leaks,
            "cni-py sweep --dry-run lists them; without an option it keeps what is younger than 300 seconds: cni-py help sweep",
        ),
    ),
    _prepare,
)
