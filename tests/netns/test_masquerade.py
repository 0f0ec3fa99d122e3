"""Masquerading and macspoofchk in a real kernel: rules, owners, repair, and packets."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import posix
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_py import program
from cni_py.errors import CheckFailed, CniError, Incomplete, InvalidConfig, IOFailure, KernelRefused, NotAvailable
from cni_py.journal import Journal
from cni_py.packetfilter import iptables, libnftables, macspoof, masquerade, nfnetlink, ownership
from cni_py.packetfilter.ownership import Owner
from support.namespaces import GO_PLUGINS, Host, wait_for_end
from support.nft import list_elements

C1, C2 = Owner("c1", "eth0", "cbr0"), Owner("c2", "eth0", "cbr0")
V4, V6 = ip_interface("10.1.0.2/24"), ip_interface("fd00:1::2/64")
BOTH = [V4, V6]
LONG = "f" * 200
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def host() -> Iterator[Host]:
    """A host without the installed plugins, which these tests do not need."""
    with Host() as made:
        yield made


def elements(host: Host, name: str = "masq4") -> dict[str, str]:
    """Address to owner's comment."""
    return {element.key: element.comment for element in list_elements(host, name)}


def rule_lines(host: Host, chain: str) -> list[str]:
    """The rules of a chain, as nft prints them."""
    text = host.run(f"nft list chain {chain}").splitlines()
    return [line.strip() for line in text if line.startswith("\t\t") and not line.startswith("\t\ttype ")]


# --- add, delete, check -----------------------------------------------------------------------------------------------


def delete_keys(name: str, keys: list[bytes]) -> int:
    """The kernel's error number."""
    try:
        nfnetlink.change_elements({name: keys}, {})
    except OSError as error:
        return error.errno or 0
    return 0


def test_elements_are_deleted_by_their_keys_all_or_none(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    host.do(masquerade.add, C2, [ip_interface("10.1.0.3/24")])
    missing = ip_interface("10.1.0.99/24").ip.packed
    for keys in ([V4.ip.packed, missing], [missing, V4.ip.packed]):
        assert host.do(delete_keys, "inet cni_py masq4", keys) == errno.ENOENT
        assert sorted(elements(host)) == ["10.1.0.2", "10.1.0.3"]
    assert host.do(delete_keys, "inet cni_py nothing", [V4.ip.packed]) == errno.ENOENT
    assert host.do(delete_keys, "inet cni_py masq4", []) == 0
    assert host.do(delete_keys, "inet cni_py masq4", [V4.ip.packed]) == 0
    assert sorted(elements(host)) == ["10.1.0.3"]
    assert sorted(elements(host, "masq6")) == ["fd00:1::2"]


def fill_and_delete(count: int) -> tuple[int, int]:
    """Return the number of elements before, and after deleting them by their keys."""
    network = ip_network("10.1.0.0/16")
    masquerade.add(C1, [ip_interface((int(network[number + 2]), 16)) for number in range(count)])
    keys = [element.key for element in nfnetlink.elements("inet cni_py masq4")]
    nfnetlink.change_elements({"inet cni_py masq4": keys}, {})
    return len(keys), len(nfnetlink.elements("inet cni_py masq4"))


def test_thousands_of_elements_are_deleted(host: Host) -> None:
    assert host.do(fill_and_delete, 2500) == (2500, 0)


def test_add_makes_an_element_per_address(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    assert elements(host) == {"10.1.0.2": C1.comment()}
    assert elements(host, "masq6") == {"fd00:1::2": C1.comment()}
    assert rule_lines(host, "inet cni_py beyond-10.1.0.0_24") == [
        'ip daddr != 10.1.0.0/24 masquerade comment "beyond 10.1.0.0/24"'
    ]
    assert rule_lines(host, "inet cni_py beyond-fd00-1--_64") == [
        'ip6 daddr != fd00:1::/64 masquerade comment "beyond fd00:1::/64"'
    ]
    host.do(masquerade.check, C1, BOTH)


def test_add_twice_changes_nothing(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    before = host.run("nft -a list ruleset")
    host.do(masquerade.add, C1, BOTH)
    assert host.run("nft -a list ruleset") == before


def test_second_pod_leaves_no_trace(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    before = host.snapshot()
    host.do(masquerade.add, C2, [ip_interface("10.1.0.3/24"), ip_interface("fd00:1::3/64")])
    assert host.snapshot() != before
    host.do(masquerade.delete, C2)
    assert host.snapshot() == before


def test_delete_of_what_is_not_there_succeeds(host: Host) -> None:
    host.do(masquerade.delete, C1)
    host.do(masquerade.add, C2, BOTH)
    host.do(masquerade.delete, C1)
    host.do(masquerade.delete, C1)
    assert elements(host) == {"10.1.0.2": C2.comment()}


def test_delete_needs_no_addresses_and_takes_all(host: Host) -> None:
    host.do(masquerade.add, C1, [V4, ip_interface("10.1.0.9/24"), ip_interface("10.2.0.2/24"), V6])
    assert len(elements(host)) == 3
    host.do(masquerade.delete, C1, [V4])
    assert elements(host) == elements(host, "masq6") == {}


def test_interfaces_of_one_container_are_apart(host: Host) -> None:
    second = Owner("c1", "eth1", "cbr0")
    host.do(masquerade.add, C1, [V4])
    host.do(masquerade.add, second, [ip_interface("10.1.0.3/24")])
    host.do(masquerade.delete, C1)
    assert elements(host) == {"10.1.0.3": second.comment()}


@pytest.mark.parametrize("ifname", ['e"th0', "a b'c", "100%;{}$(id)", '"' * 15])
@pytest.mark.parametrize("container_id", ["c1", "f" * 64, LONG])
def test_any_name_and_length_goes_through(host: Host, container_id: str, ifname: str) -> None:
    owner = Owner(container_id, ifname, 'n"et' * 50)
    host.do(masquerade.add, owner, BOTH)
    host.do(masquerade.check, owner, BOTH)
    assert elements(host) == {"10.1.0.2": owner.comment()}
    assert ownership.parse_owner(owner.comment()) == (
        ownership.short_id(container_id),
        ifname,
        ownership.network_hash(owner.network),
    )
    host.do(masquerade.delete, owner)
    assert elements(host) == {}


def test_comment_may_have_128_characters(host: Host) -> None:
    """The limit that the layout of the comment is made for is nft's."""
    host.do(masquerade.add, C1, [V4])
    add = "nft 'add element inet cni_py masq4 {{ 10.9.9.9 comment \"{}\" : goto beyond-10.1.0.0_24 }}'"
    host.run(add.format("c" * ownership.MAX_COMMENT))
    with pytest.raises(AssertionError, match="128 characters maximum"):
        host.run(add.format("c" * (ownership.MAX_COMMENT + 1)))


def test_excluded_networks_are_part_of_the_chain(host: Host) -> None:
    exclude = [ip_network("10.96.0.0/12"), ip_network("fd00:2::/64")]
    host.do(masquerade.add, C1, BOTH, None, exclude)
    host.do(masquerade.check, C1, BOTH, None, exclude)
    chain = "inet cni_py beyond-10.1.0.0_24-and-10.96.0.0_12"
    assert rule_lines(host, chain) == [
        'ip daddr 10.1.0.0/24 return comment "not to 10.1.0.0/24"',
        'ip daddr != 10.96.0.0/12 masquerade comment "beyond 10.96.0.0/12"',
    ]
    with pytest.raises(CheckFailed):
        host.do(masquerade.check, C1, BOTH)
    host.do(masquerade.add, C1, BOTH)
    host.do(masquerade.check, C1, BOTH)


def journal_of(steps: list[tuple[Any, ...]]) -> str:
    with Journal("test", "test"):
        for function, *args in steps:
            function(*args)
    return Path("/run/cni-py/journal/test").read_text()


def test_journal_line_can_be_typed(host: Host) -> None:
    owner = Owner("c1", "it's", "cbr0")
    text = host.do(journal_of, [(masquerade.add, owner, BOTH), (masquerade.add, C2, [ip_interface("10.1.0.3/24")])])
    typed = [line[17:].rpartition("  (")[0] for line in text.splitlines() if line[17:].startswith("nft ")]
    assert (
        typed[1] == f"nft add element inet cni_py masq4 '{{ 10.1.0.3 comment \"{C2.comment()}\" : goto beyond-10.1.0.0_24 }}'"
    )
    wanted = host.run("nft list ruleset")
    host.run("nft flush ruleset")
    for line in typed:
        host.run(line)
    assert host.run("nft list ruleset") == wanted


# --- repair, and third-party tables -----------------------------------------------------------------------------------

BREAK = [
    "nft flush ruleset",
    "nft delete table inet cni_py",
    "nft flush chain inet cni_py postrouting",
    "nft flush chain inet cni_py beyond-10.1.0.0_24",
    "nft flush map inet cni_py masq4",
    "nft insert rule inet cni_py postrouting return",
    "nft add rule inet cni_py beyond-fd00-1--_64 return",
    "nft delete element inet cni_py masq6 '{ fd00:1::2 }'",
]


@pytest.mark.parametrize("damage", BREAK)
def test_check_finds_damage_and_add_repairs_it(host: Host, damage: str) -> None:
    host.do(masquerade.add, C1, BOTH)
    whole = host.snapshot()["host"]["nft"]
    host.run(damage)
    with pytest.raises(CheckFailed, match="is not what ADD left") as caught:
        host.do(masquerade.check, C1, BOTH)
    assert "expected" in caught.value.details
    assert "found" in caught.value.details
    host.do(masquerade.add, C1, BOTH)
    host.do(masquerade.check, C1, BOTH)
    assert sorted(map(json.dumps, host.snapshot()["host"]["nft"])) == sorted(map(json.dumps, whole))


FOREIGN = """
table inet filter { chain forward { type filter hook forward priority 0; policy accept; counter; }; }
table inet cni_plugins_masquerade { chain masq_checks { ip saddr 10.9.0.2 masquerade comment "other"; }; }
table bridge nat { chain PREROUTING { type filter hook prerouting priority -300; counter; }; }
"""


def test_tables_of_others_are_not_touched(host: Host) -> None:
    host.run("nft -f -", stdin=FOREIGN)
    host.run("iptables -t nat -N CNI-0123456789abcdef01234567; iptables -t nat -A POSTROUTING -j CNI-0123456789abcdef01234567")

    def foreign() -> list[Any]:
        everything = host.snapshot()["host"]["nft"]
        return [o for o in everything if "cni_py" not in json.dumps(o)]

    before = foreign()
    host.do(masquerade.add, C1, BOTH)
    host.do(macspoof.add, C1, "veth0", "02:00:00:00:00:01")
    host.do(masquerade.check, C1, BOTH)
    host.do(masquerade.delete_stale, "cbr0", [])
    host.do(masquerade.delete, C1)
    host.do(macspoof.delete, C1)
    assert foreign() == before


# --- owners -----------------------------------------------------------------------------------------------------------


def test_address_goes_to_its_new_owner(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    text = host.do(journal_of, [(masquerade.add, C2, BOTH)])
    assert f'masquerade of 10.1.0.2 reassigned from "{C1.comment()}" to "{C2.comment()}"' in text
    assert elements(host) == {"10.1.0.2": C2.comment()}
    host.do(masquerade.check, C2, BOTH)
    with pytest.raises(CheckFailed) as caught:
        host.do(masquerade.check, C1, BOTH)
    assert C1.comment() in caught.value.details
    assert C2.comment() in caught.value.details


def test_late_delete_of_the_old_owner_leaves_the_new_ones_element(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    host.do(masquerade.add, C2, [V4])
    host.do(masquerade.delete, C1, BOTH)
    assert elements(host) == {"10.1.0.2": C2.comment()}
    assert elements(host, "masq6") == {}


def test_same_container_on_two_networks_is_two_owners(host: Host) -> None:
    other = Owner("c1", "eth0", "other")
    host.do(masquerade.add, C1, [V4])
    host.do(masquerade.add, other, [ip_interface("10.2.0.2/24")])
    host.do(masquerade.delete, other)
    assert elements(host) == {"10.1.0.2": C1.comment()}


# --- gc ---------------------------------------------------------------------------------------------------------------


def test_gc_keeps_the_list_and_other_networks(host: Host) -> None:
    long, other = Owner(LONG, "eth0", "cbr0"), Owner("c9", "eth0", "other")
    for number, owner in enumerate((C1, C2, long, other)):
        host.do(masquerade.add, owner, [ip_interface(f"10.{number}.0.2/24")])
    host.do(masquerade.delete_stale, "cbr0", [("c1", "eth0"), (LONG, "eth0")])
    assert elements(host) == {"10.0.0.2": C1.comment(), "10.2.0.2": long.comment(), "10.3.0.2": other.comment()}
    assert "beyond-10.1.0.0_24" not in host.run("nft list ruleset"), "nothing goes to this chain any more"
    host.do(masquerade.check, C1, [ip_interface("10.0.0.2/24")])
    host.do(masquerade.delete_stale, "cbr0", [])
    assert elements(host) == {"10.3.0.2": other.comment()}


def only_c2(container_id: str, ifname: str) -> bool:
    return (container_id, ifname) == ("c2", "eth0")


def test_gc_without_list_asks_who_is_dead(host: Host) -> None:
    host.do(masquerade.add, C1, [V4])
    host.do(masquerade.add, C2, [ip_interface("10.1.0.3/24")])
    host.do(masquerade.delete_stale, "cbr0", None)
    assert len(elements(host)) == 2
    host.do(masquerade.delete_stale, "cbr0", None, only_c2)
    assert elements(host) == {"10.1.0.2": C1.comment()}


def test_gc_takes_iptables_and_go_rules_of_the_network(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH, "iptables")
    host.do(masquerade.add, C2, [ip_interface("10.1.0.3/24")], "iptables")
    make_go_nftables_rules(host, C1, C2, Owner("c2", "eth0", "other"))
    host.do(masquerade.delete_stale, "cbr0", [("c1", "eth0")])
    left = host.run("nft list ruleset")
    assert C1.go_chain() in left
    assert C2.go_chain() not in left
    assert [line.rpartition("id: ")[2] for line in rule_lines(host, GO_CHAIN)] == ['c1"', 'c2"']
    assert Owner("c2", "eth0", "other").go_instance() in left


# --- what the Go plugins made -----------------------------------------------------------------------------------------

GO_CHAIN = "inet cni_plugins_masquerade masq_checks"


def make_go_nftables_rules(host: Host, *owners: Owner) -> None:
    """Create rules like plugins 1.9 with ipMasqBackend nftables (pkg/ip/ipmasq_nftables_linux.go)."""
    lines = [
        "add table inet cni_plugins_masquerade",
        f"add chain {GO_CHAIN}",
        "add chain inet cni_plugins_masquerade postrouting { type nat hook postrouting priority 100; }",
        "add rule inet cni_plugins_masquerade postrouting goto masq_checks",
    ]
    for number, owner in enumerate(owners, 2):
        comment = f"{owner.go_instance()}, net: {owner.network}, if: {owner.ifname}, id: {owner.container_id}"
        lines.append(f'add rule {GO_CHAIN} ip saddr == 10.1.0.{number} ip daddr != 10.1.0.0/24 masquerade comment "{comment}"')
    host.run("nft -f -", stdin="\n".join(lines) + "\n")


def test_delete_takes_nftables_rules_of_the_go_plugins(host: Host) -> None:
    make_go_nftables_rules(host, C1, C2, Owner("c1", "eth1", "cbr0"))
    host.do(masquerade.check, C1, [V4])
    host.do(masquerade.delete, C1)
    left = rule_lines(host, GO_CHAIN)
    assert len(left) == 2
    assert C1.go_instance() not in "".join(left)
    with pytest.raises(CheckFailed):
        host.do(masquerade.check, C1, [V4])


def go_bridge_conf(**more: Any) -> dict[str, Any]:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam, **more}


def go(host: Host, verb: str, conf: dict[str, Any], container_id: str = "c1") -> Any:
    path = f"{GO_PLUGINS}/bridge"
    return host.ok(path, verb, conf, sandbox=f"/run/netns/{container_id}", container_id=container_id, cni_path=GO_PLUGINS)


@pytest.mark.parametrize("without", ["", "libnftables"])
def test_delete_takes_iptables_rules_of_the_go_plugins(host: Host, go_plugins: str, without: str) -> None:
    for name in ("c1", "c2"):
        host.netns(name)
        go(host, "ADD", go_bridge_conf(ipMasq=True), name)
    host.do(masquerade.check, C1, BOTH)
    assert host.run("nft list ruleset").count(f"jump {C1.go_chain()}") == 2
    host.do(delete_with, without, C1)
    left = host.run("nft list ruleset")
    assert C1.go_chain() not in left
    assert left.count(f"jump {C2.go_chain()}") == 2
    host.do(masquerade.check, C2, [ip_interface("10.1.0.3/24"), ip_interface("fd00:1::3/64")])


def delete_with(missing: str, owner: Owner) -> None:
    if missing:
        libnftables.LIBRARY = f"{missing}-is-not-here.so"
    masquerade.delete(owner)


def test_go_plugin_deletes_our_iptables_rules(host: Host, go_plugins: str) -> None:
    """The backend iptables makes exactly Go's rules: a node can be switched back with pods on it."""
    host.netns("c1")
    go(host, "ADD", go_bridge_conf(ipMasq=True))
    by_go = host.run("iptables -t nat -S; ip6tables -t nat -S")
    host.do(masquerade.delete, C1)
    host.do(masquerade.add, C1, BOTH, "iptables")
    assert host.run("iptables -t nat -S; ip6tables -t nat -S") == by_go
    go(host, "DEL", go_bridge_conf(ipMasq=True))
    assert C1.go_chain() not in host.run("nft list ruleset")


def test_delete_takes_rules_in_legacy_iptables(host: Host) -> None:
    if "iptables-legacy" not in host.run("ls /usr/sbin") or host.execute(["iptables-legacy", "-t", "nat", "-L"]).returncode:
        pytest.skip("no iptables-legacy, or no kernel support for it")
    chain = C1.go_chain()
    host.run(
        f"iptables-legacy -t nat -N {chain}; iptables-legacy -t nat -A {chain} ! -d 224.0.0.0/4 -j MASQUERADE;"
        f'iptables-legacy -t nat -A POSTROUTING -s 10.1.0.2 -j {chain} -m comment --comment \'name: "cbr0" id: "c1"\''
    )
    delete_in_process_of_host(host, C2)
    assert chain in host.run("iptables-legacy -t nat -S")
    delete_in_process_of_host(host, C1)
    assert chain not in host.run("iptables-legacy -t nat -S")


def delete_in_process_of_host(host: Host, owner: Owner) -> None:
    """Delete in a new process: one that only enters a host (`host.do`) does not see its /proc."""
    script = f"from cni_py.packetfilter.masquerade import *; delete(Owner({owner.container_id!r}, {owner.ifname!r}, {owner.network!r}))"
    done = host.execute([sys.executable, "-c", script], env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])})
    assert done.returncode == 0, done.stderr


# --- iptables backend -------------------------------------------------------------------------------------------------


def test_iptables_backend_adds_checks_and_deletes(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH, "iptables")
    once = host.run("iptables -t nat -S; ip6tables -t nat -S")
    assert once.count("MASQUERADE") == 2
    host.do(masquerade.add, C1, BOTH, "iptables")
    assert host.run("iptables -t nat -S; ip6tables -t nat -S") == once
    host.do(masquerade.check, C1, BOTH, "iptables")
    host.run(f"ip6tables -t nat -F {C1.go_chain()}")
    with pytest.raises(CheckFailed, match="incomplete"):
        host.do(masquerade.check, C1, BOTH, "iptables")
    host.do(masquerade.add, C1, BOTH, "iptables")
    assert host.run("iptables -t nat -S; ip6tables -t nat -S") == once
    host.do(masquerade.delete, C1)
    assert "CNI-" not in host.run("nft list ruleset")


def test_iptables_chain_shared_by_two_interfaces_outlives_the_first(host: Host) -> None:
    """Go's chain name has no interface in it: the addresses identify the jump to delete."""
    second = ip_interface("10.2.0.2/24")
    host.do(masquerade.add, C1, [V4], "iptables")
    host.do(masquerade.add, Owner("c1", "eth1", "cbr0"), [second], "iptables")
    inside = host.run(f"iptables -t nat -S {C1.go_chain()}").splitlines()
    assert [line.rpartition(" -j ")[2] for line in inside[1:]] == ["ACCEPT", "ACCEPT", "MASQUERADE"]
    host.do(masquerade.delete, C1, [V4])
    host.do(masquerade.check, Owner("c1", "eth1", "cbr0"), [second], "iptables")
    host.do(masquerade.delete, Owner("c1", "eth1", "cbr0"), [second])
    assert "CNI-" not in host.run("iptables -t nat -S")


def without_library(function: Any, *args: Any) -> Any:
    libnftables.LIBRARY = "libnftables-is-not-here.so"
    return function(*args)


def test_iptables_is_chosen_where_nftables_cannot_be_used(host: Host) -> None:
    assert host.do(masquerade.choose_backend, None) == "nftables"
    assert host.do(masquerade.backend_report).startswith("nftables")
    assert host.do(without_library, masquerade.choose_backend, None) == "iptables"
    assert "cannot be loaded" in host.do(without_library, masquerade.backend_report)
    host.do(without_library, masquerade.add, C1, [V4])
    assert C1.go_chain() in host.run("iptables -t nat -S")
    host.do(without_library, masquerade.check, C1, [V4])
    host.do(masquerade.check, C1, [V4])
    host.do(without_library, masquerade.delete, C1)
    assert C1.go_chain() not in host.run("iptables -t nat -S")
    with pytest.raises(NotAvailable):
        host.do(without_library, masquerade.add, C1, [V4], "nftables")


def test_delete_succeeds_where_nothing_can_be_used(host: Host) -> None:
    host.do(masquerade.add, C2, BOTH)
    host.do(macspoof.add, C2, "v2", OWN)
    before = list_elements(host)
    assert {element.comment for element in before} == {C2.comment()}
    host.do(without_anything, masquerade.delete, C1)
    host.do(without_anything, macspoof.delete, C1)
    assert list_elements(host) == before
    host.do(without_anything, masquerade.delete_stale, "cbr0", [])
    assert list_elements(host, "masq") == []


def without_anything(function: Any, *args: Any) -> None:
    """No libnftables, and no iptables program."""
    libnftables.LIBRARY = "libnftables-is-not-here.so"
    program.SYSTEM_DIRECTORIES = ()
    posix.environ[b"PATH"] = b""
    function(*args)


def test_unknown_backend_is_refused(host: Host) -> None:
    with pytest.raises(InvalidConfig, match="ebtables"):
        host.do(masquerade.add, C1, [V4], "ebtables")


def words_of_failing_delete(owner: Owner) -> str:
    with pytest.raises(Incomplete) as caught:
        masquerade.delete(owner)
    return str(caught.value)


def test_delete_does_all_it_can_and_names_what_is_left(host: Host) -> None:
    host.do(masquerade.add, C1, BOTH)
    host.do(masquerade.add, C1, [V4], "iptables")
    # a foreign rule goes to the chain, which therefore cannot be deleted
    host.run(f"iptables -t nat -N OTHER; iptables -t nat -A OTHER -j {C1.go_chain()}")
    words = host.do(words_of_failing_delete, C1)
    assert f"left behind: chain {C1.go_chain()} of iptables-nft" in words
    assert elements(host) == elements(host, "masq6") == {}


def test_kernel_that_refuses_is_quoted_with_the_line(host: Host) -> None:
    host.run("nft 'add table inet cni_py; add set inet cni_py masq4 { type ipv4_addr; }'")
    with pytest.raises(KernelRefused) as caught:
        host.do(masquerade.add, C1, [V4])
    assert "add map inet cni_py masq4" in caught.value.msg + caught.value.details
    assert caught.value.errno
    assert caught.value.details


def ask_without_privilege() -> tuple[str, str]:
    os.setuid(65534)
    reason = libnftables.works()
    try:
        nfnetlink.exists("inet cni_py")
    except CniError as error:
        return reason, str(error)
    return reason, ""


def test_lack_of_privilege_is_not_absence(host: Host) -> None:
    reason, error = host.do(ask_without_privilege)
    assert "not permitted" in reason
    assert "not permitted" in error


def add_and_delete_many() -> tuple[int, int]:
    """Elements when all pods are there, and descriptors that stay open beyond those of the first."""
    owners = [Owner(f"c{number}", "eth0", "n") for number in range(240)]
    masquerade.add(owners[0], [V4])
    open_before = len(os.listdir("/proc/self/fd"))
    for number, owner in enumerate(owners):
        masquerade.add(owner, [ip_interface(f"10.1.0.{number + 2}/23")])
    count = len(nfnetlink.elements("inet cni_py masq4"))
    for owner in owners:
        masquerade.delete(owner)
    return count, len(os.listdir("/proc/self/fd")) - open_before


def test_many_pods_leave_neither_elements_nor_descriptors(host: Host) -> None:
    count, more_descriptors = host.do(add_and_delete_many)
    assert count == 240
    assert elements(host) == {}
    assert more_descriptors <= 1, "the probe's socket"


def add_and_delete_in_threads() -> list[int]:
    """Counts of elements: with all pods there, and with half of them deleted."""
    from concurrent.futures import ThreadPoolExecutor

    pods = [(Owner(f"c{number}", "eth0", "n"), [ip_interface(f"10.1.0.{number + 2}/24")]) for number in range(60)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda pod: masquerade.add(*pod), pods))
        counts = [len(nfnetlink.elements("inet cni_py masq4"))]
        list(
            threads.map(lambda pod: (masquerade.delete(pod[0]), masquerade.add(*pod)) and masquerade.delete(pod[0]), pods[::2])
        )
        counts.append(len(nfnetlink.elements("inet cni_py masq4")))
        list(threads.map(lambda pod: masquerade.check(*pod), pods[1::2]))
    return counts


def test_threads_do_not_get_in_each_others_way(host: Host) -> None:
    assert host.do(add_and_delete_in_threads) == [60, 30]


def test_processes_do_not_get_in_each_others_way(host: Host) -> None:
    script = (
        "import sys; from ipaddress import ip_interface; from cni_py.packetfilter.masquerade import *\n"
        "for n in range(10):\n"
        "    owner, addresses = Owner(f'c{sys.argv[1]}-{n}', 'eth0', 'n'), [ip_interface(f'10.1.{sys.argv[1]}.{n + 2}/16')]\n"
        "    add(owner, addresses); check(owner, addresses)\n"
        "    if n % 2: delete(owner)\n"
    )
    env = {"PYTHONPATH": ":".join([str(ROOT), *sys.path])}
    started = [subprocess.Popen(host.command(sys.executable, "-c", script, str(number)), env=env) for number in range(6)]
    assert [wait_for_end(process) for process in started] == [0] * 6
    assert len(elements(host)) == 30


# --- packets ----------------------------------------------------------------------------------------------------------

TOPOLOGY = """
for ns in p1 p2 outside; do
    ip netns add $ns
    ip netns exec $ns sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    ip -n $ns link set lo up
done
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link add cni0 address 02:00:00:00:00:99 type bridge
ip addr add 10.1.0.1/24 dev cni0
ip addr add fd00:1::1/64 dev cni0 nodad
ip link set cni0 up
for n in 1 2; do
    ip link add v$n type veth peer name eth0 address 02:00:00:00:00:0$n netns p$n
    ip link set v$n master cni0 up
    ip -n p$n addr add 10.1.0.$((n+1))/24 dev eth0
    ip -n p$n addr add fd00:1::$((n+1))/64 dev eth0 nodad
    ip -n p$n link set eth0 up
    ip -n p$n route add default via 10.1.0.1
    ip -n p$n -6 route add default via fd00:1::1
done
ip link add up0 type veth peer name eth0 netns outside
ip addr add 192.0.2.1/24 dev up0
ip addr add fd00:2::1/64 dev up0 nodad
ip link set up0 up
ip -n outside addr add 192.0.2.2/24 dev eth0
ip -n outside addr add fd00:2::2/64 dev eth0 nodad
ip -n outside link set eth0 up
ip -n outside route add default via 192.0.2.1
ip -n outside -6 route add default via fd00:2::1
"""


def socket_in(name: str, family: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """A socket of another namespace (empty: this one); it waits five seconds for what is to come."""
    made: list[socket.socket] = []

    def make() -> None:
        if name:
            with open(f"/run/netns/{name}") as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
        made.append(socket.socket(family, kind))

    thread = threading.Thread(target=make)  # only this thread enters, and it ends
    thread.start()
    thread.join()
    made[0].settimeout(5)
    return made[0]


def source_seen(sender: str, receiver: str, address: str) -> str:
    """Send a datagram and return the source address that the receiver sees."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket_in(receiver, family) as server, socket_in(sender, family) as client:
        server.bind((address, 5000))
        client.sendto(b"hello", (address, 5000))
        return str(server.recvfrom(100)[1][0])


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_traffic_beyond_the_subnet_has_the_hosts_address(host: Host, backend: str) -> None:
    host.run(TOPOLOGY)
    assert host.do(source_seen, "p1", "outside", "192.0.2.2") == "10.1.0.2"
    host.do(masquerade.add, C1, BOTH, backend)
    assert host.do(source_seen, "p1", "outside", "192.0.2.2") == "192.0.2.1"
    assert host.do(source_seen, "p1", "outside", "fd00:2::2") == "fd00:2::1"
    assert host.do(source_seen, "p2", "outside", "192.0.2.2") == "10.1.0.3", "only what was asked for"
    assert host.do(source_seen, "p1", "p2", "10.1.0.3") == "10.1.0.2"
    assert host.do(source_seen, "p1", "", "10.1.0.1") == "10.1.0.2"
    host.do(masquerade.delete, C1)
    assert host.do(source_seen, "p1", "outside", "192.0.2.2") == "10.1.0.2"


def test_excluded_network_sees_the_pods_address(host: Host) -> None:
    host.run(TOPOLOGY)
    host.do(masquerade.add, C1, BOTH, None, [ip_network("192.0.2.0/24")])
    assert host.do(source_seen, "p1", "outside", "192.0.2.2") == "10.1.0.2"
    assert host.do(source_seen, "p1", "outside", "fd00:2::2") == "fd00:2::1"


def multicast_source_seen(source: str) -> tuple[str, str]:
    """Send from an address of the host itself, which passes postrouting too: to a group and to one receiver."""
    group = "239.1.1.1"
    with socket_in("outside", socket.AF_INET) as server, socket_in("", socket.AF_INET) as client:
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton("192.0.2.2"))
        server.bind(("", 5000))
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("192.0.2.1"))
        client.bind((source, 0))
        client.sendto(b"to all", (group, 5000))
        to_group = server.recvfrom(100)[1][0]
        client.sendto(b"to one", ("192.0.2.2", 5000))
        return to_group, server.recvfrom(100)[1][0]


def test_multicast_keeps_its_source(host: Host) -> None:
    host.run(TOPOLOGY + "ip addr add 10.1.0.9/32 dev lo")
    host.do(masquerade.add, C1, [ip_interface("10.1.0.9/24")])
    assert host.do(multicast_source_seen, "10.1.0.9") == ("10.1.0.9", "192.0.2.1")


# --- macspoofchk ------------------------------------------------------------------------------------------------------

OWN, SPOOFED = "02:00:00:00:00:01", "02:00:00:00:00:66"
ETHERTYPE = 0x88B5  # for local experiments


def first_source_seen(*macs: str) -> str:
    """Send a frame from pod 1 with each source address; the source of the first that pod 2 sees."""
    kind = socket.SOCK_RAW
    with socket_in("p2", socket.AF_PACKET, kind) as receiver, socket_in("p1", socket.AF_PACKET, kind) as sender:
        receiver.bind(("eth0", ETHERTYPE))
        sender.bind(("eth0", 0))
        for mac in macs:
            sender.send(b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + ETHERTYPE.to_bytes(2, "big") + bytes(46))
        return receiver.recv(100)[6:12].hex(":")


def test_spoofed_frame_is_dropped_and_the_own_one_passes(host: Host) -> None:
    host.run(TOPOLOGY)
    assert host.do(first_source_seen, SPOOFED, OWN) == SPOOFED
    host.do(macspoof.add, C1, "v1", OWN.upper())
    host.do(macspoof.check, C1, "v1", OWN)
    assert host.do(first_source_seen, SPOOFED, OWN) == OWN
    host.do(macspoof.delete, C1)
    assert host.do(first_source_seen, SPOOFED, OWN) == SPOOFED


def test_port_that_is_not_checked_may_send_anything(host: Host) -> None:
    host.run(TOPOLOGY)
    host.do(macspoof.add, C2, "v2", "02:00:00:00:00:02")
    assert host.do(first_source_seen, SPOOFED, OWN) == SPOOFED


@pytest.mark.parametrize(
    "damage", ["nft flush ruleset", "nft flush chain bridge cni_py prerouting", "nft flush set bridge cni_py checked"]
)
def test_mac_check_finds_damage_and_add_repairs_it(host: Host, damage: str) -> None:
    host.do(macspoof.add, C1, "v1", OWN)
    whole = host.run("nft list ruleset")
    host.run(damage)
    with pytest.raises(CheckFailed):
        host.do(macspoof.check, C1, "v1", OWN)
    host.do(macspoof.add, C1, "v1", OWN)
    assert host.run("nft list ruleset") == whole


def test_port_and_address_go_to_their_new_owner(host: Host) -> None:
    host.do(macspoof.add, C1, "v1", OWN)
    host.do(macspoof.add, C2, "v1", SPOOFED)
    host.do(macspoof.delete, C1)
    host.do(macspoof.check, C2, "v1", SPOOFED)
    assert OWN not in host.run("nft list ruleset")
    host.do(macspoof.add, C1, "v3", OWN)
    host.do(macspoof.delete_stale, "cbr0", [("c1", "eth0")])
    host.do(macspoof.check, C1, "v3", OWN)
    assert '"v1"' not in host.run("nft list ruleset")


def test_delete_of_a_mac_check_with_a_very_long_id_succeeds(host: Host) -> None:
    host.run("nft add table bridge nat")
    host.do(macspoof.delete, Owner("c" * 300, "eth0", "cbr0"))


def test_delete_takes_the_mac_check_of_the_go_plugin(host: Host, go_plugins: str) -> None:
    for name in ("c1", "c2"):
        host.netns(name)
    before = host.run("nft list ruleset")
    done = host.call(
        f"{GO_PLUGINS}/bridge", "ADD", go_bridge_conf(macspoofchk=True), sandbox="/run/netns/c1", cni_path=GO_PLUGINS
    )
    assert done.rc == 0, done
    made = host.run("nft list ruleset")
    if "cni-br-iface-c1-eth0" not in made:
        pytest.skip("this Go bridge knows no macspoofchk")
    go(host, "ADD", go_bridge_conf(macspoofchk=True), "c2")
    host.do(macspoof.delete, C1)
    left = host.run("nft list ruleset")
    assert "cni-br-iface-c1-eth0" not in left
    assert left.count("cni-br-iface-c2-eth0") >= 2
    assert before != left


# --- external programs ------------------------------------------------------------------------------------------------


def test_program_gets_input_and_environment() -> None:
    status, output = program.run(["/bin/sh", "-c", 'cat; printf %s "$A"'], b"in" * 100_000, {"A": "b"})
    assert (status, output) == (0, b"in" * 100_000 + b"b")


def test_program_status_and_signal_are_distinguished() -> None:
    assert program.run(["/bin/sh", "-c", "exit 3"])[0] == 3
    status = program.run(["/bin/sh", "-c", "kill -9 $$"])[0]
    assert (status, program.describe(status)) == (-9, "killed by signal 9")


def test_program_does_not_inherit_ignored_signals() -> None:
    assert program.run(["/bin/sh", "-c", "kill -13 $$"])[0] == -13


def test_program_that_writes_too_much_or_is_missing_is_refused() -> None:
    with pytest.raises(IOFailure, match="wrote 5 bytes"):
        program.run(["/bin/echo", "1234"], limit_bytes=4)
    with pytest.raises(IOFailure, match="could not run"):
        program.run(["/nowhere/at/all"])


def test_standard_error_can_be_captured() -> None:
    assert program.run_captured(["/bin/sh", "-c", "echo out; echo err >&2; exit 1"]) == (1, b"out\n", "err")


def test_only_executable_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "dir" / "x").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "x").write_text("")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "x").write_text("")
    (tmp_path / "good" / "x").chmod(0o755)
    directories = ["", *(str(tmp_path / name) for name in ("none", "dir", "plain", "good"))]
    if os.geteuid() == 0:
        assert program.find("x", directories) == str(tmp_path / "good" / "x")
    assert program.find("y", directories) is None
    assert program.find("good/x", [str(tmp_path)]) is None
    assert program.find("", directories) is None


def test_iptables_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "find_system", lambda name: None)
    with pytest.raises(NotAvailable, match="ip6tables"):
        iptables.Iptables(6).path()
