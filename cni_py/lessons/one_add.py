"""Lesson 1: a runtime's call by hand, by environment and standard input alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

CONTAINER, NETNS, GATEWAY = "by-hand", "green", "10.244.1.1"
_CACHED = f"/var/lib/cni/results/cbr0-{CONTAINER}-eth0"


def _prepare(site: Site) -> None:
    site.run("node1", f"ip netns add {NETNS}")


def _no_reservation(site: Site) -> str:
    reserved = facts.reservations(site, "node1", "cbr0")
    if CONTAINER in reserved.values():
        return ""
    others = ", ".join(f"{address} of {owner}" for address, owner in reserved.items())
    return f"/var/lib/cni/networks/cbr0 has {others or 'no reservation'}"


def _address_differs(site: Site) -> str:
    if missing := facts.no_interface(site, "node1", NETNS):
        return missing
    reserved = [one for one, owner in facts.reservations(site, "node1", "cbr0").items() if owner == CONTAINER]
    found = facts.address_of(site, "node1", NETNS)
    return "" if reserved == [found] else f"eth0 of {NETNS} has {found or 'no address'}, reserved is {', '.join(reserved)}"


def _runtime_did_it(site: Site) -> str:
    if facts.read_file(site, "node1", _CACHED) is None:
        return ""
    return f"{_CACHED} exists: a runtime, such as cni-py add, writes it, and a plugin does not"


LESSON = Lesson(
    1,
    "01-one-add.md",
    "What happens in one ADD",
    25,
    f"""\
Be the runtime. node1 has an empty network namespace "{NETNS}". Attach it to the network cbr0,
with the container id "{CONTAINER}" and the interface eth0, by executing the plugin flannel
yourself: environment variables and standard input, and no "cni-py add".""",
    (
        Requirement(
            f'the plugins have reserved an address for the container "{CONTAINER}"',
            _no_reservation,
            "a plugin reads five variables, CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_PATH, and one plugin's "
            "configuration, with the network's name and cniVersion in it, on standard input; section 3 of the lesson shows one",
            is_gate=True,
        ),
        Requirement(
            f"eth0 of {NETNS} has that address",
            _address_differs,
            f"CNI_NETNS is the path of the namespace, /run/netns/{NETNS}, CNI_IFNAME the name of the interface there",
            is_gate=True,
        ),
        Requirement(
            f"{NETNS} reaches its gateway",
            lambda site: facts.no_ping(site, "node1", NETNS, GATEWAY),
            f"look from inside: ip -n {NETNS} addr, ip -n {NETNS} route",
        ),
        Requirement(
            f"the default route of {NETNS} leads there, as the network's configuration asks for",
            lambda site: facts.no_default_route(site, "node1", NETNS, GATEWAY),
            "a plugin gets its own object of plugins, not the whole file: the one of flannel in "
            "/etc/cni/net.d/10-flannel.conflist has isDefaultGateway below delegate. DEL first, with the same variables",
        ),
        Requirement(
            "no runtime was asked to do it",
            _runtime_did_it,
            f"delete the attachment (cni-py del cbr0 {NETNS} --container-id {CONTAINER}), and execute the plugin itself",
        ),
    ),
    _prepare,
)
