"""Deletion of objects that another process deletes between our reading and our deleting of them succeeds."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cni_py.kernel import tc
from cni_py.kernel.address import delete_address
from cni_py.kernel.link import Link, delete_link, get_link
from cni_py.kernel.route import Route, delete_connected_route, remove_route
from cni_py.netlink.socket import Rtnl, open_host
from cni_py.packetfilter import forward_accept, iptables, macspoof, masquerade
from cni_py.packetfilter.hostports import forwarding
from cni_py.packetfilter.iptables import Iptables
from cni_py.packetfilter.libnftables import Nft
from cni_py.packetfilter.ownership import Owner
from support.namespaces import Host

OWNER = Owner("c1", "eth0", "net")
CHAIN = "{0} -t nat -N CNI-X; {0} -t nat -A POSTROUTING -s 10.1.0.2 -j CNI-X; {0} -t nat -A CNI-X -j MASQUERADE"
ACCEPT = "{0} -N CNI-FORWARD; {0} -A CNI-FORWARD -d 10.1.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
Deletion = tuple[str, Callable[[], object]]
DELETIONS: dict[str, Deletion] = {
    "iptables-nft": (CHAIN.format("iptables-nft"), lambda: iptables.delete(Iptables(4, "-nft"), "CNI-X")),
    "iptables-legacy": (CHAIN.format("iptables-legacy"), lambda: iptables.delete(Iptables(4, "-legacy"), "CNI-X")),
    "accepted, iptables-nft": (ACCEPT.format("iptables-nft"), lambda: forward_accept.delete([ip_address("10.1.0.2")])),
    "accepted, iptables-legacy": (ACCEPT.format("iptables-legacy"), lambda: forward_accept.delete([ip_address("10.1.0.2")])),
    "masquerade of Go, nftables": (
        (
            "nft add table inet cni_plugins_masquerade; nft add chain inet cni_plugins_masquerade masq_checks;"
            f"nft 'add rule inet cni_plugins_masquerade masq_checks ip saddr 10.1.0.2 masquerade comment \"{OWNER.go_instance()}\"'"
        ),
        lambda: masquerade.delete(OWNER),
    ),
    "host ports of Go, nftables": (
        (
            "nft add table ip cni_hostport; nft add chain ip cni_hostport hostports;"
            "nft 'add rule ip cni_hostport hostports tcp dport 80 dnat to 10.1.0.2:80 comment \"c1\"'"
        ),
        lambda: forwarding.delete(OWNER),
    ),
    "check of the MAC address of Go": (
        (
            "nft add table bridge nat; nft add chain bridge nat PREROUTING; nft add chain bridge nat cni-br-iface-c1-eth0;"
            "nft 'add rule bridge nat PREROUTING jump cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\"'"
        ),
        lambda: macspoof.delete(OWNER),
    ),
}
SHOWN = "nft list ruleset; iptables-legacy-save"
MARKS = ("10.1.0.2", "CNI-X", "cni-br-iface")


def deleted_twice(delete: Callable[[], object]) -> int:
    """Let every change of the packet filter be made by another process first. Returns: how many were made."""
    made = 0

    def twice(change: Callable[..., None]) -> Callable[..., None]:
        def both(*args: Any) -> None:
            nonlocal made
            made += 1
            change(*args)
            change(*args)

        return both

    Nft.run, Iptables.apply = twice(Nft.run), twice(Iptables.apply)  # type: ignore[method-assign]
    delete()
    return made


@pytest.mark.parametrize(("rules", "delete"), DELETIONS.values(), ids=DELETIONS)
def test_what_another_process_deletes_first_is_deleted(host: Host, rules: str, delete: Callable[[], object]) -> None:
    host.run(rules)
    assert any(mark in host.run(SHOWN) for mark in MARKS)
    assert host.do(deleted_twice, delete) == 1
    assert not any(mark in host.run(SHOWN) for mark in MARKS)


OF_A_LINK: dict[str, Callable[[Rtnl, Link], object]] = {
    "link": lambda host, link: delete_link(host, link.name),
    "address": lambda host, link: delete_address(host, link, ip_interface("10.1.0.2/24")),
    "route": lambda host, link: remove_route(host, link, Route(ip_network("10.2.0.0/24"))),
    "connected route": lambda host, link: delete_connected_route(host, link, ip_network("10.1.0.0/24")),
    "queueing discipline": tc.delete_root,
    "redirection": tc.delete_redirect,
}


def delete_without_its_link(delete: Callable[[Rtnl, Link], object]) -> None:
    with open_host() as host:
        link = get_link(host, "v0")
        delete_link(host, "v0")
        delete(host, link)


@pytest.mark.parametrize("delete", OF_A_LINK.values(), ids=OF_A_LINK)
def test_what_a_deleted_link_had_is_deleted(host: Host, delete: Callable[[Rtnl, Link], object]) -> None:
    host.run("ip link add v0 type veth peer name v1; ip addr add 10.1.0.2/24 dev v0; ip link set v0 up")
    host.do(delete_without_its_link, delete)
