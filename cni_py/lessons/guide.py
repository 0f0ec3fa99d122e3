"""Lesson 10: the deployment guide's configuration, which hides a pod's address from other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.lab.plan import OUTSIDE
from cni_py.lessons import facts
from cni_py.lessons.lesson import Lesson, Requirement

if TYPE_CHECKING:
    from cni_py.lab.site import Site

CLIENT, SERVER, PORT = "pod1", "pod2", 8000


def _not_attached(site: Site) -> str:
    return facts.no_address_in(site, "node1", CLIENT, "10.244.1.0/24") or facts.no_address_in(
        site, "node2", SERVER, "10.244.2.0/24"
    )


def _address_is_lost(site: Site) -> str:
    client, server = facts.address_of(site, "node1", CLIENT), facts.address_of(site, "node2", SERVER)
    seen = facts.source_seen(site, CLIENT, server, PORT, node="node2", netns=SERVER, server_port=PORT)
    if seen.startswith("failed"):
        return f"a connection from {CLIENT} to {SERVER} {seen}"
    return "" if seen == client else f"{SERVER} sees {seen}, and {CLIENT} has {client}"


LESSON = Lesson(
    10,
    "10-guide-and-traps.md",
    "The deployment guide and its traps",
    30,
    f"""\
With the deployment guide's configuration, {SERVER} on node2 sees a connection from {CLIENT} with an address of node1.
Change the configuration on node1 so that it sees the address of {CLIENT}; {CLIENT} still has to reach the host
outside, which has no route to pods.""",
    (
        Requirement(
            f"{CLIENT} and {SERVER} are attached to cbr0",
            _not_attached,
            f"cni-py add cbr0 {CLIENT}, on node1",
            is_gate=True,
        ),
        Requirement(
            f"{SERVER} sees the address of {CLIENT}",
            _address_is_lost,
            "masquerade is a pod's, and made by its ADD: after a change of /etc/cni/net.d/10-flannel.conflist delete the "
            "attachment and add it again. The key is masqueradeBeyond: cni-py config keys flannel",
        ),
        Requirement(
            f"{CLIENT} reaches the host outside",
            lambda site: facts.no_ping(site, "node1", CLIENT, OUTSIDE),
            "without any masquerade (ipMasq false) it cannot: it must be less, not none",
        ),
    ),
    lab={"nodes": 2, "flanneld_options": ("-ip-masq=false",)},
)
