"""Lesson 2: a pod plugged into a bridge by ip(8) alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NETNS, BRIDGE, ADDRESS, GATEWAY = "green", "br0", "10.99.0.3/24", "10.99.0.1"


def _prepare(site: Site) -> None:
    site.run("node1", f"ip netns add {NETNS}")


def _no_bridge(site: Site) -> str:
    link = facts.links(site, "node1").get(BRIDGE)
    if link is None:
        return f"node1 has no interface {BRIDGE}"
    kind = link.get("linkinfo", {}).get("info_kind", "no link of its own")
    if kind != "bridge":
        return f"{BRIDGE} is a {kind}"
    if "UP" not in link["flags"]:
        return f"{BRIDGE} is down"
    found = facts.addresses(link)
    return "" if f"{GATEWAY}/24" in found else f"{BRIDGE} has {', '.join(found) or 'no IPv4 address'}"


def _wrong_address(site: Site) -> str:
    if missing := facts.no_address_in(site, "node1", NETNS, "10.99.0.0/24"):
        return missing
    found = facts.addresses(facts.links(site, "node1", NETNS)["eth0"])
    return "" if found == [ADDRESS] else f"eth0 of {NETNS} has {', '.join(found)}"


LESSON = Lesson(
    2,
    "02-bridge-by-hand.md",
    "The bridge by hand",
    25,
    f"""\
node1 has an empty network namespace "{NETNS}". Plug it into the bridge {BRIDGE} of the lesson, with the
command ip alone: interface eth0 with {ADDRESS}, a default route by way of {GATEWAY}, which
is the bridge's address. Create the bridge first if you have not followed the lesson.""",
    (
        Requirement(
            f"{BRIDGE} is a bridge with {GATEWAY}/24, and up",
            _no_bridge,
            "section 1 of the lesson: ip link add ... type bridge, ip addr add, ip link set ... up",
            is_gate=True,
        ),
        Requirement(
            f"{NETNS} has an interface eth0 that is up",
            lambda site: facts.no_interface(site, "node1", NETNS),
            "a veth is a pair: one end is created in the namespace by its option netns, and both ends are down at first",
            is_gate=True,
        ),
        Requirement(
            f"its other end is a port of {BRIDGE}, and up",
            lambda site: facts.not_a_port_of(site, "node1", NETNS, BRIDGE),
            "a port is a link with a master; ip link show master NAME lists those of a bridge",
        ),
        Requirement(
            f"eth0 has the address {ADDRESS}",
            _wrong_address,
            "without a prefix length ip takes /32, and the gateway is then on no network that the namespace has a route to",
        ),
        Requirement(
            f"the default route leads to {GATEWAY}",
            lambda site: facts.no_default_route(site, "node1", NETNS, GATEWAY),
            f"ip -n {NETNS} route add default via ...; the gateway must be on a network of eth0 first",
        ),
        Requirement(
            f"a ping from {NETNS} to {GATEWAY} has a reply",
            lambda site: facts.no_ping(site, "node1", NETNS, GATEWAY),
            f"look from both ends: ip -n {NETNS} neigh, and bridge link on node1",
        ),
    ),
    _prepare,
)
