"""State that attachments share is deleted with its last user, by DEL, GC or a sweep, and never while another one uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_py.netlink import netfilter
from cni_py.packetfilter import libnftables, masquerade, nfnetlink
from cni_py.packetfilter.hostports import forwarding
from cni_py.packetfilter.hostports.rules import Mapping, Wanted
from cni_py.packetfilter.ownership import Owner
from cni_py.sweep import sweep
from support.namespaces import Host, wait_for_end
from support.nft import list_elements

ROOT = Path(__file__).resolve().parents[2]
C1, C2 = Owner("c1", "eth0", "n"), Owner("c2", "eth0", "n")
V4, OTHER4, V6 = ip_interface("10.1.0.2/24"), ip_interface("10.1.0.3/24"), ip_interface("fd00:1::2/64")
EXCEPT = [ip_network("10.96.0.0/12")]


@pytest.fixture
def host() -> Iterator[Host]:
    """A host without the installed plugins, which these tests do not need."""
    with Host() as made:
        made.run("ip link add cni0 type bridge; ip addr add 10.1.0.1/24 dev cni0; ip link set cni0 up")
        yield made


def chains(host: Host) -> set[str]:
    """Names of the chains that some attachments share, without those that all share."""
    listed = host.json("nft -j list chains")["nftables"]
    names = {entry["chain"]["name"] for entry in listed if entry.get("chain", {}).get("table") == "cni_py"}
    return names - {"postrouting", "prerouting", "output", "hostports4", "hostports6", "localnet"}


def links(host: Host) -> list[str]:
    return [element.key for element in list_elements(host, "localnet")]


def ports_of(owner: Owner, pod: Any, number: int, **keys: Any) -> Wanted:
    return Wanted(owner, (Mapping("tcp", number, pod, 80),), (("tcp", number),), **keys)


# --- masquerade ---------------------------------------------------------------------------------------------------------


def test_chain_of_a_subnet_goes_with_its_last_user(host: Host) -> None:
    host.do(masquerade.add, C1, [V4, V6])
    host.do(masquerade.add, C2, [OTHER4], None, EXCEPT)
    assert chains(host) == {"beyond-10.1.0.0_24", "beyond-fd00-1--_64", "beyond-10.1.0.0_24-and-10.96.0.0_12"}
    host.do(masquerade.delete, C1)
    assert chains(host) == {"beyond-10.1.0.0_24-and-10.96.0.0_12"}
    host.do(masquerade.delete, C2)
    assert chains(host) == set()
    host.do(masquerade.add, C1, [V4])
    host.do(masquerade.check, C1, [V4])


def test_chain_of_a_subnet_stays_for_the_others(host: Host) -> None:
    for owner, address in ((C1, V4), (C2, OTHER4)):
        host.do(masquerade.add, owner, [address])
    host.do(masquerade.delete, C1)
    host.do(masquerade.check, C2, [OTHER4])


def test_networks_that_come_and_go_leave_no_chain(host: Host) -> None:
    def come_and_go() -> None:
        for number in range(40):
            address = ip_interface(f"10.{number}.0.2/24")
            masquerade.add(C1, [address])
            forwarding.add(ports_of(C1, address, 8080))
            forwarding.delete(C1)
            masquerade.delete(C1)

    host.do(come_and_go)
    assert chains(host) == set()


def test_chain_that_something_else_refers_to_is_kept(host: Host) -> None:
    """A rule that an administrator added."""
    host.do(masquerade.add, C1, [V4])
    host.run("nft add chain inet cni_py own; nft add rule inet cni_py own ip saddr 10.1.0.99 jump beyond-10.1.0.0_24")
    host.do(masquerade.delete, C1)
    assert chains(host) == {"own", "beyond-10.1.0.0_24"}


# --- host ports ---------------------------------------------------------------------------------------------------------


def test_chains_of_host_ports_go_with_their_last_user(host: Host) -> None:
    conditions = ((4, ("iifname", "eth7")),)
    host.do(forwarding.add, ports_of(C1, V4, 8080, conditions=conditions))
    host.do(forwarding.add, ports_of(C2, OTHER4, 8081))
    first = chains(host)
    assert {name.partition("-")[0] for name in first} == {"if", "mark13", "masquerade"}
    host.do(forwarding.delete, C2)
    assert chains(host) == first, "the conditions of c1 lead to the chain of the subnet"
    host.do(forwarding.delete, C1)
    assert chains(host) == set()


def test_chain_of_a_mark_goes_with_its_last_chain(host: Host) -> None:
    host.do(forwarding.add, ports_of(C1, V4, 8080, mark_bit=7))
    host.do(forwarding.add, ports_of(C2, ip_interface("10.2.0.2/24"), 8081, masq_all=True))
    assert chains(host) == {"mark7-from-10.1.0.0_24", "masquerade-mark7", "mark13-from-all", "masquerade-mark13"}
    host.do(forwarding.delete, C1)
    assert chains(host) == {"mark13-from-all", "masquerade-mark13"}


# --- links from which packets to 127.0.0.1 are dropped --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the next DEL", "GC", "a sweep"])
def test_entry_of_a_link_goes_when_the_link_has_gone(host: Host, how: str) -> None:
    host.run("ip link add br7 type bridge; ip addr add 10.7.0.1/24 dev br7; ip link set br7 up")
    host.do(forwarding.add, ports_of(C1, V4, 8080))
    host.do(forwarding.add, ports_of(C2, ip_interface("10.7.0.2/24"), 8081))
    host.do(forwarding.delete, C2)
    assert sorted(links(host)) == ["br7", "cni0"], "route_localnet of br7 is still on: its entry protects the host"
    host.run("ip link del br7")
    match how:
        case "the next DEL":
            host.do(forwarding.delete, C1)
        case "GC":
            host.do(forwarding.delete_stale, "n", {("c1", "eth0")})
        case "a sweep":
            host.do(sweep.run)
    assert links(host) == ["cni0"]


def test_entry_of_a_link_goes_with_the_attachment_that_it_belongs_to(host: Host) -> None:
    """A host end of ptp, which exists until the plugin in front has its DEL; and also if the first DEL was killed half-way."""
    for number in (7, 8):
        host.run(
            f"ip link add veth{number} type veth peer name p{number}; ip link property add dev veth{number} altname cni:{number}"
        )
        host.run(f"ip link set veth{number} up; ip link set p{number} up; ip route add 10.7.0.{number} dev veth{number}")
    for number, owner in ((7, C1), (8, C2)):
        host.do(forwarding.add, ports_of(owner, ip_interface(f"10.7.0.{number}/24"), 8080 + number))
    assert sorted(links(host)) == ["veth7", "veth8"]
    for _ in range(2):
        host.do(forwarding.delete, C1, (), "cni:7")
        assert links(host) == ["veth8"]
        assert host.run("cd /proc/sys/net/ipv4/conf; cat veth7/route_localnet veth8/route_localnet") == "0\n1\n"
        host.run("nft add element inet cni_py localnet { veth7 }")
    host.do(forwarding.delete, C1)
    assert sorted(links(host)) == ["veth7", "veth8"], "without the mark"


def test_sweep_deletes_what_is_unused_and_a_dry_run_does_not(host: Host) -> None:
    """The state that an older version left."""
    host.do(masquerade.add, C1, [V4])
    host.run("nft add chain inet cni_py beyond-10.9.0.0_24; nft add rule inet cni_py beyond-10.9.0.0_24 masquerade")
    host.run("nft add chain inet cni_py mark13-from-10.9.0.0_24")
    before = chains(host)
    host.do(sweep.run, 0.0, True)
    assert chains(host) == before
    host.do(sweep.run)
    assert chains(host) == set(), "with the element of c1, which has no namespace"


# --- never under another's feet -------------------------------------------------------------------------------------------

CHURN = """
import contextlib, sys, time
from ipaddress import ip_interface
from cni_py.packetfilter import masquerade, nfnetlink
from cni_py.packetfilter.hostports import check, forwarding
from cni_py.packetfilter.hostports.rules import Mapping, Wanted
from cni_py.packetfilter.ownership import Owner

number, seconds, is_locked = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "locked"
if not is_locked:
    masquerade.lock = forwarding.lock = contextlib.nullcontext
until, rounds = time.monotonic() + seconds, 0
while time.monotonic() < until or rounds < 10:
    owner, address = Owner(f"c{number}-{rounds}", "eth0", "n"), ip_interface(f"10.1.0.{number + 2}/24")
    wanted = Wanted(owner, (Mapping("tcp", 8000 + number, address, 80),), (("tcp", 8000 + number),))
    masquerade.add(owner, [address])
    forwarding.add(wanted)
    if is_locked:
        masquerade.check(owner, [address])
        check.check(wanted)
    else:
        assert nfnetlink.elements("inet cni_py masq4", owner.comment()), "its element was deleted"
        assert nfnetlink.exists("inet cni_py beyond-10.1.0.0_24"), "its chain was deleted"
    forwarding.delete(owner)
    masquerade.delete(owner)
    rounds += 1
"""


@pytest.mark.parametrize("how", ["locked", "without a lock"])
def test_chain_is_never_deleted_under_anothers_feet(host: Host, how: str, longer: int) -> None:
    """Each is the last user of its chains most of the time. Without a lock it is the kernel that refuses, and ADD looks again."""
    env = {"PYTHONPATH": ":".join([str(ROOT), *sys.path])}
    started = [
        subprocess.Popen(
            host.command(sys.executable, "-c", CHURN, str(number), str(2 * longer), how),
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    ends = [(process.communicate()[1][-2000:], wait_for_end(process)) for process in started]
    assert ends == [("", 0)] * 4
    host.do(libnftables.delete_unused_chains)
    assert chains(host) == set()
    assert host.do(nfnetlink.elements, "inet cni_py masq4") == []


def test_chain_that_came_into_use_is_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen as unused, then used: the kernel refuses, which is no failure."""
    host.do(masquerade.add, C1, [V4])
    monkeypatch.setattr(libnftables, "unused_chains", lambda: ["beyond-10.1.0.0_24"])
    host.do(libnftables.delete_unused_chains)
    host.do(masquerade.check, C1, [V4])


def test_chain_that_came_into_use_during_del_is_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses the whole transaction: the element is deleted without the chain."""
    for owner, address in ((C1, V4), (C2, OTHER4)):
        host.do(masquerade.add, owner, [address])
    monkeypatch.setattr(libnftables, "_unused_without", lambda targets: sorted(set(targets)))
    host.do(masquerade.delete, C1)
    monkeypatch.undo()
    host.do(masquerade.check, C2, [OTHER4])
    assert [element.comment for element in host.do(nfnetlink.elements, "inet cni_py masq4")] == [C2.comment()]


def test_last_user_and_its_chains_go_in_one_transaction(host: Host) -> None:
    """Each transaction that deletes something lets the process wait for the kernel when it ends."""
    host.do(masquerade.add, C1, [V4, V6])
    host.do(forwarding.add, ports_of(C1, V4, 8080))
    sent = host.do(transactions_of_delete)
    assert sent == [1, 1]
    assert chains(host) == set()


def transactions_of_delete() -> list[int]:
    """Delete masquerade and host ports. Returns: the number of transactions of each."""
    counts = []
    transact = netfilter.transact
    with pytest.MonkeyPatch.context() as patch:
        for delete in (masquerade.delete, forwarding.delete):
            calls: list[int] = []
            patch.setattr(netfilter, "transact", lambda *args, calls=calls: (calls.append(1), transact(*args))[1])
            delete(C1)
            counts.append(len(calls))
    return counts
