"""Lesson 7: a pod without a bridge, plugged in by ptp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lab.plan import OUTSIDE
from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NETNS, NETWORK, SUBNET = "green", "direct", "10.97.0.0/24"


def _prepare(site: Site) -> None:
    site.run("node1", f"ip netns add {NETNS}")


def _not_attached(site: Site) -> str:
    if missing := facts.no_interface(site, "node1", NETNS):
        return missing
    owners = [one for one in facts.attachments(site, "node1") if one.get("netns", "").endswith(f"/{NETNS}")]
    networks = [one["network"] for one in owners if one.get("state") == "live"]
    return "" if networks == [NETWORK] else f"{NETNS} is attached to {', '.join(networks) or 'no network'}"


def _no_host_route(site: Site) -> str:
    address, end = facts.address_of(site, "node1", NETNS), facts.host_end(site, "node1", NETNS)
    if end is None:
        return f"eth0 of {NETNS} is not a veth"
    if "master" in end:
        return f"{end['ifname']}, its other end, is a port of {end['master']}"
    routes = facts.read_json(site, "node1", f"ip -j route show {address}") or []
    return (
        "" if [route["dev"] for route in routes] == [end["ifname"]] else f"node1 has no route to {address} over {end['ifname']}"
    )


LESSON = Lesson(
    7,
    "07-seven-plugins.md",
    "Seven ways to plug in a pod",
    35,
    f"""\
node1 has an empty network namespace "{NETNS}". Write a network "{NETWORK}" for it, in /etc/cni/net.d, that needs
no bridge: a veth whose host end is routed, addresses from {SUBNET}, and the host outside reachable.
Attach "{NETNS}" to it.""",
    (
        Requirement(
            f'{NETNS} is attached to the network "{NETWORK}", and to no other',
            _not_attached,
            f'a file 30-{NETWORK}.conflist with "name": "{NETWORK}", as in section 3 of the lesson; cni-py config check FILE',
            is_gate=True,
        ),
        Requirement(
            f"eth0 of {NETNS} has an address of {SUBNET}",
            lambda site: (
                facts.no_address_in(site, "node1", NETNS, SUBNET)
                and f"eth0 of {NETNS} has {facts.address_of(site, 'node1', NETNS) or 'no address'}"
            ),
            "ipam: host-local, subnet",
            is_gate=True,
        ),
        Requirement(
            "its other end is no port of a bridge, and node1 has a route to the address over it",
            _no_host_route,
            "which of the seven plugins makes a veth and no bridge?",
        ),
        Requirement(
            f"{NETNS} reaches the host outside",
            lambda site: facts.no_ping(site, "node1", NETNS, OUTSIDE),
            'a default route ("routes" of ipam), and masquerade (ipMasq), since the host outside has no route to pods',
        ),
    ),
    _prepare,
)
