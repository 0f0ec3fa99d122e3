"""Lesson 4: a host port, found again in nftables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lab.plan import OUTSIDE
from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

NETNS, HOST_PORT, POD_PORT, NODE_ADDRESS = "web", 8080, 80, "192.168.123.11"
WITHOUT_MASQUERADE_OF_FLANNELD = {"nodes": 1, "flanneld_options": ("-ip-masq=false",)}
"""Arguments of a lab that is as the deployment guide has it: the bridge plugin masquerades."""


def _prepare(site: Site) -> None:
    site.run("node1", f"ip netns add {NETNS}")


def _no_connection(site: Site) -> str:
    seen = facts.source_seen(site, "outside", NODE_ADDRESS, HOST_PORT, node="node1", netns=NETNS, server_port=POD_PORT)
    if not seen.startswith("failed"):
        return ""
    return f"a connection from outside to {NODE_ADDRESS}:{HOST_PORT} {seen}; host ports of node1: {_host_ports(site) or 'none'}"


def _host_ports(site: Site) -> str:
    """Return the host ports as words: ``tcp 8080 to 10.244.1.3:80``."""
    found = []
    for element, target in facts.elements(site, "node1", "inet cni_py", "hostports4"):
        key = element["elem"]["val"] if "elem" in element else element
        found.append(f"{' '.join(map(str, key['concat']))} to {':'.join(map(str, target['concat']))}")
    return ", ".join(found)


LESSON = Lesson(
    4,
    "04-masquerade-and-ports.md",
    "Masquerade and ports in nftables",
    30,
    f"""\
node1 has an empty network namespace "{NETNS}". Attach it to the network cbr0 so that a connection from
outside to {NODE_ADDRESS}:{HOST_PORT} arrives at its TCP port {POD_PORT}. The check runs a server in it.""",
    (
        Requirement(
            f"{NETNS} is attached to cbr0",
            lambda site: facts.no_address_in(site, "node1", NETNS, "10.244.1.0/24"),
            f"cni-py add cbr0 {NETNS}, with the ports as capability arguments (cni-py help add has an example)",
            is_gate=True,
        ),
        Requirement(
            f"{NETNS} reaches the host outside, which has no route to pods",
            lambda site: facts.no_ping(site, "node1", NETNS, OUTSIDE),
            "nft list table inet cni_py: is the pod's address in the map masq4? cni-py repair restores what is missing",
        ),
        Requirement(
            f"a connection from outside to port {HOST_PORT} of node1 arrives at port {POD_PORT} of {NETNS}",
            _no_connection,
            "hostPort is the node's port, containerPort the pod's. To change them, delete the attachment and add it again",
        ),
    ),
    _prepare,
    WITHOUT_MASQUERADE_OF_FLANNELD,
)
