"""Rulesets as text: names, owners, what is excluded from masquerading."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from cni_py.errors import InvalidConfig
from cni_py.packetfilter import iptables, macspoof_ruleset, ownership
from cni_py.packetfilter import masquerade_ruleset as ruleset
from cni_py.packetfilter.ownership import Owner

LONG = "c" + "0123456789" * 20


@pytest.mark.parametrize("ifname", ["eth0", 'e"th0', "a b", "100%", "ü", "'$x;{}", "\udcff", "x\\n#"])
@pytest.mark.parametrize("container_id", ["c1", "a_b.c-d", "f" * 64])
def test_owner_survives_comment(container_id: str, ifname: str) -> None:
    comment = Owner(container_id, ifname, "cbr0").comment()
    assert ownership.parse_owner(comment) == (container_id, ifname, ownership.network_hash("cbr0"))
    assert set(comment) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-%~ ")


def test_comment_of_longest_names_fits() -> None:
    comment = Owner(LONG, '"' * 15, "n" * 300).comment()
    assert len(comment) <= ownership.MAX_COMMENT
    assert ownership.parse_owner(comment) == (ownership.short_id(LONG), '"' * 15, ownership.network_hash("n" * 300))


def test_ids_of_usual_length_are_whole_in_the_comment() -> None:
    assert ownership.short_id("f" * 72) == "f" * 72
    assert ownership.short_id("f" * 73) != "f" * 73


def test_long_ids_that_differ_at_the_end_stay_different() -> None:
    assert ownership.short_id(LONG) != ownership.short_id(LONG + "1")
    assert ownership.short_id(ownership.short_id(LONG)) != ownership.short_id(LONG), (
        "no id can be made to look like a shortened one"
    )


@pytest.mark.parametrize("comment", ["", "c1", "kube-proxy: a rule", "one two", "a b c d"])
def test_third_party_comment_has_no_owner(comment: str) -> None:
    parsed = ownership.parse_owner(comment)
    assert parsed is None or parsed[2] != ownership.network_hash("cbr0")


@pytest.mark.parametrize("text", ["%", "%4", "%zz", "a%b"])
def test_broken_encoding_is_left_as_it_is(text: str) -> None:
    assert ownership.percent_decode(text) == text


def test_go_names() -> None:
    """Taken from the Go plugins: bridge 1.1.1 with network "cbr0" and id "c1"; the second is pkg/ip's scheme."""
    owner = Owner("c1", "eth0", "cbr0")
    assert owner.go_chain() == "CNI-68f1f1eeb62cad3d0bdd579c"
    assert len(owner.go_chain()) == 28
    assert owner.go_comment() == 'name: "cbr0" id: "c1"'
    assert owner.go_instance() == f"{ownership.digest('cbr0')[:16]}-{ownership.digest('eth0:c1')[:16]}"


# --- masquerading -----------------------------------------------------------------------------------------------------


def test_chain_excludes_the_own_subnet() -> None:
    excluded = ruleset.excluded_networks(ip_interface("10.244.91.2/24"))
    assert ruleset.beyond_chain(excluded) == "beyond-10.244.91.0_24"
    assert ruleset.beyond_rules(excluded) == ['ip daddr != 10.244.91.0/24 masquerade comment "beyond 10.244.91.0/24"']


def test_chain_of_ipv6_has_no_colon_in_its_name() -> None:
    excluded = ruleset.excluded_networks(ip_interface("fd00:10:244:91::2/64"))
    assert ruleset.beyond_chain(excluded) == "beyond-fd00-10-244-91--_64"
    assert ruleset.beyond_rules(excluded) == [
        'ip6 daddr != fd00:10:244:91::/64 masquerade comment "beyond fd00:10:244:91::/64"'
    ]


def test_further_networks_of_the_same_family_are_excluded() -> None:
    exclude = [ip_network("10.96.0.0/12"), ip_network("fd00::/16")]
    excluded = ruleset.excluded_networks(ip_interface("10.244.91.2/24"), exclude)
    assert ruleset.beyond_chain(excluded) == "beyond-10.96.0.0_12-and-10.244.91.0_24"
    assert ruleset.beyond_rules(excluded) == [
        'ip daddr 10.96.0.0/12 return comment "not to 10.96.0.0/12"',
        'ip daddr != 10.244.91.0/24 masquerade comment "beyond 10.244.91.0/24"',
    ]


def test_every_rule_is_known_by_its_comment() -> None:
    excluded = [ip_network("10.0.0.0/24"), ip_network("10.1.0.0/16"), ip_network("10.8.0.0/16")]
    lines = [*ruleset.POSTROUTING, *macspoof_ruleset.RULES, *ruleset.beyond_rules(excluded)]
    comments = ownership.rule_comments(lines)
    assert all(comments)
    assert len(set(comments)) == len(comments)


def test_network_around_the_subnet_takes_its_place() -> None:
    assert ruleset.excluded_networks(ip_interface("10.244.91.2/24"), [ip_network("10.244.0.0/16")]) == [
        ip_network("10.244.0.0/16")
    ]


def test_chain_name_of_many_networks_is_short_enough() -> None:
    exclude = [ip_network(f"10.{n}.0.0/16") for n in range(1, 60, 2)]
    first = ruleset.beyond_chain(ruleset.excluded_networks(ip_interface("10.244.91.2/24"), exclude))
    second = ruleset.beyond_chain(ruleset.excluded_networks(ip_interface("10.244.91.2/24"), exclude[1:]))
    assert len(first) <= ownership.MAX_CHAIN_NAME
    assert first != second


def test_base_adds_each_chain_once_before_it_is_filled() -> None:
    addresses = [ip_interface("10.1.0.2/24"), ip_interface("10.1.0.3/24"), ip_interface("fd00::2/64")]
    commands = ruleset.base(ruleset.wanted_chains(addresses))
    assert commands.count("add chain inet cni_py beyond-10.1.0.0_24") == 1
    for chain in ("beyond-10.1.0.0_24", "beyond-fd00--_64", "postrouting"):
        mine = [command for command in commands if f"inet cni_py {chain}" in command]
        assert [command.split(" inet")[0] for command in mine[:2]] == ["add chain", "flush chain"]


def test_replaced_element_is_deleted_first() -> None:
    address = ip_interface("10.1.0.2/24")
    commands = ruleset.element_commands(Owner("c1", "eth0", "n"), [address], replaced=[address])
    assert [command.split("{")[0] for command in commands] == [
        "delete element inet cni_py masq4 ",
        "add element inet cni_py masq4 ",
    ]


# --- stale owners -----------------------------------------------------------------------------------------------------


def test_stale_is_what_the_list_does_not_name() -> None:
    is_stale = ownership.stale_test("n", [("c1", "eth0"), (LONG, "eth0")], None)
    assert not is_stale(Owner("c1", "eth0", "n").comment())
    assert not is_stale(Owner(LONG, "eth0", "n").comment())
    assert is_stale(Owner("c1", "eth1", "n").comment())
    assert is_stale(Owner("c2", "eth0", "n").comment())
    assert not is_stale(Owner("c2", "eth0", "other").comment())
    assert not is_stale("third-party")


def test_without_a_list_only_what_is_known_to_be_dead_is_stale() -> None:
    is_stale = ownership.stale_test("n", None, lambda container_id, ifname: container_id != "c1")
    assert not is_stale(Owner("c1", "eth0", "n").comment())
    assert is_stale(Owner("c2", "eth0", "n").comment())
    assert not is_stale(Owner(LONG, "eth0", "n").comment()), "its whole id is not known"
    assert not ownership.stale_test("n", None, None)(Owner("c2", "eth0", "n").comment())


# --- macspoofchk, iptables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["", 'a"b', "veth*", "a\\b", "a\nb"])
def test_port_that_nft_cannot_name_is_refused(port: str) -> None:
    with pytest.raises(InvalidConfig):
        macspoof_ruleset.element_commands(Owner("c1", "eth0", "n"), port, "02:00:00:00:00:01")


@pytest.mark.parametrize("mac", ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:01; flush ruleset"])
def test_what_is_no_mac_address_is_refused(mac: str) -> None:
    with pytest.raises(InvalidConfig):
        macspoof_ruleset.element_commands(Owner("c1", "eth0", "n"), "veth0", mac)


def test_iptables_rules_have_the_form_of_the_go_plugins() -> None:
    inside, jumps = iptables.wanted(
        Owner("c1", "eth0", "cbr0"), [ip_interface("10.244.91.2/24")], [ip_network("10.244.0.0/16")]
    )
    chain, comment = "CNI-68f1f1eeb62cad3d0bdd579c", '-m comment --comment "name: \\"cbr0\\" id: \\"c1\\""'
    assert inside == [
        f"-A {chain} -d 10.244.91.0/24 {comment} -j ACCEPT",
        f"-A {chain} -d 10.244.0.0/16 {comment} -j ACCEPT",
        f"-A {chain} ! -d 224.0.0.0/4 {comment} -j MASQUERADE",
    ]
    assert jumps == [f"-A POSTROUTING -s 10.244.91.2/32 {comment} -j {chain}"]
