"""Rulesets of host ports, and what portmap makes of its configuration: pure, no root."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py import config
from cni_py.errors import CniError, InvalidConfig, UnsupportedField
from cni_py.packetfilter.hostports import iptables
from cni_py.packetfilter.hostports import rules as portmap_rules
from cni_py.packetfilter.hostports.rules import Mapping, Wanted
from cni_py.packetfilter.ownership import MAX_CHAIN_NAME, MAX_COMMENT, Owner, rule_comments
from cni_py.plugins.meta.portmap import plan as portmap_plan
from cni_py.spec.call import Call

C1 = Owner("c1", "eth0", "cbr0")
POD4, POD6 = ip_interface("10.1.0.2/24"), ip_interface("fd00:1::2/64")
ANY = Mapping("tcp", 8080, POD4, 80)
ONE = Mapping("udp", 53, POD6, 5353, ip_address("fd00:2::1"))


def wanted(*mappings: Mapping, **more: Any) -> Wanted:
    return Wanted(C1, mappings, tuple((m.protocol, m.host_port) for m in mappings), **more)


# --- elements ---------------------------------------------------------------------------------------------------------


def test_element_commands() -> None:
    assert portmap_rules.element_commands(ANY, wanted(ANY)) == [
        'add element inet cni_py hostports4 { tcp . 8080 comment "c1 eth0 cb6e746f" : 10.1.0.2 . 80 }',
        'add element inet cni_py sources4 { tcp . 8080 comment "c1 eth0 cb6e746f" : jump mark13-from-10.1.0.0_24 }',
    ]
    assert portmap_rules.element_commands(ONE, wanted(ONE, snat=False)) == [
        'add element inet cni_py hostports6_at { fd00:2::1 . udp . 53 comment "c1 eth0 cb6e746f" : fd00:1::2 . 5353 }'
    ]


def test_keys_are_padded_to_four_bytes() -> None:
    assert portmap_rules.key_of(ANY) == b"\x06\0\0\0\x1f\x90\0\0"
    assert portmap_rules.key_of(ONE) == ip_address("fd00:2::1").packed + b"\x11\0\0\0\0\x35\0\0"
    assert portmap_rules.target_of(ANY) == bytes([10, 1, 0, 2, 0, 80, 0, 0])


@given(
    st.sampled_from(sorted(portmap_rules.PROTOCOLS)),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.one_of(st.none(), st.ip_addresses()),
    st.ip_addresses(),
)
def test_texts_of_keys_and_targets(protocol: str, host_port: int, pod_port: int, at: Any, pod: Any) -> None:
    mapping = Mapping(protocol, host_port, ip_interface(pod), pod_port, at)
    key = portmap_rules.key_of(mapping)
    assert portmap_rules.key_text(key) == (f"{at} . " if at else "") + f"{protocol} . {host_port}"
    assert portmap_rules.key_protocol_port(key) == (portmap_rules.PROTOCOLS[protocol], host_port)
    assert portmap_rules.target_text(portmap_rules.target_of(mapping)) == f"{pod} . {pod_port}"


def test_localhost_is_for_mappings_that_it_can_reach() -> None:
    assert ANY.is_for_localhost
    assert Mapping("tcp", 1, POD4, 1, ip_address("127.0.0.1")).is_for_localhost
    assert not Mapping("tcp", 1, POD4, 1, ip_address("192.0.2.1")).is_for_localhost
    assert not Mapping("tcp", 1, POD6, 1).is_for_localhost


# --- chains -----------------------------------------------------------------------------------------------------------


def test_sources_that_are_masqueraded() -> None:
    v6 = Mapping("tcp", 1, POD6, 1)
    rules = portmap_rules.mark_rules(ANY, wanted(ANY))
    assert [rule.partition(" comment")[0] for rule in rules] == [
        "ip saddr 10.1.0.0/24 meta mark set meta mark | 0x00002000",
        "ip saddr 127.0.0.0/8 meta mark set meta mark | 0x00002000",
    ]
    assert [rule.partition(" meta")[0] for rule in portmap_rules.mark_rules(v6, wanted(v6))] == ["ip6 saddr fd00:1::/64"]
    assert portmap_rules.mark_rules(v6, wanted(v6, masq_all=True))[0].startswith("meta mark set meta mark | 0x00002000 comment")
    single = Mapping("tcp", 1, ip_interface("10.1.0.2/32"), 1)
    assert portmap_rules.mark_rules(single, wanted(single))[0].startswith("ip saddr 10.1.0.2 meta"), "as nft prints it"


@pytest.mark.parametrize("bit", [0, 13, 31])
def test_marks_have_chains_of_their_own(bit: int) -> None:
    chains = portmap_rules.wanted_chains(wanted(ANY, mark_bit=bit))
    assert f"inet cni_py mark{bit}-from-10.1.0.0_24" in chains
    hook, (rule,) = chains[f"inet cni_py masquerade-mark{bit}"]
    assert "hook postrouting" in hook
    assert f"{1 << bit:#010x}" in rule


def test_without_snat_and_conditions_only_the_base_is_needed() -> None:
    assert portmap_rules.wanted_chains(wanted(ANY, snat=False)) == portmap_rules.BASE_CHAINS


def test_conditions_share_a_chain_by_what_they_say() -> None:
    first = wanted(ANY, conditions=((4, ("iifname", "eth0")),))
    other = wanted(ANY, conditions=((4, ("iifname", "eth1")),))
    same = Wanted(
        Owner("c2", "eth0", "cbr0"), (Mapping("udp", 9, ip_interface("10.1.0.3/24"), 9),), conditions=first.conditions
    )
    assert portmap_rules.source_chain(ANY, first) != portmap_rules.source_chain(ANY, other)
    assert portmap_rules.source_chain(ANY, first) == portmap_rules.source_chain(same.mappings[0], same)
    rules = portmap_rules.condition_rules(ANY, first)
    assert rules[0].startswith("iifname eth0 goto mark13-from-10.1.0.0_24 ")
    assert rules[1].startswith("accept ")
    assert portmap_rules.condition_rules(ANY, first.replace(snat=False))[0].startswith("iifname eth0 return ")
    assert portmap_rules.source_chain(ONE, first) == "mark13-from-fd00-1--_64", "IPv6 has conditions of its own"


def test_names_and_comments_fit_into_nft() -> None:
    longest = Mapping("tcp", 1, ip_interface("1111:2222:3333:4444:5555:6666:7777:8888/127"), 1)
    chains = portmap_rules.wanted_chains(wanted(ANY, ONE, longest, mark_bit=31, conditions=((4, ("x",)), (6, ("y",)))))
    for chain, (_, lines) in chains.items():
        assert len(chain.rpartition(" ")[2]) <= MAX_CHAIN_NAME
        comments = rule_comments(lines)
        assert all(comments)
        assert len(set(comments)) == len(comments), "ADD knows rules by their comments"
        assert max(map(len, comments)) <= MAX_COMMENT
        assert "'" not in "".join(lines), "the journal's line stays readable"


def test_rules_have_one_form_for_every_nft() -> None:
    old = "dnat ip addr . port to meta l4proto . th dport map @hostports4"
    assert portmap_rules.as_printed(old) == "dnat ip to meta l4proto . th dport map @hostports4"
    assert portmap_rules.as_printed("ct status dnat meta mark 0x80000000/1 x") == (
        "ct status dnat meta mark & 0x80000000 == 0x80000000 x"
    )


# --- iptables ---------------------------------------------------------------------------------------------------------

THERE = {"PREROUTING": [], "OUTPUT": [], "POSTROUTING": []}


def test_iptables_commands_on_a_bare_host() -> None:
    chain = iptables.dnat_chain(C1)
    comment = '"dnat name: \\"cbr0\\" id: \\"c1\\""'
    assert iptables.add_commands(wanted(ANY), 4, THERE) == [
        ":CNI-HOSTPORT-DNAT - [0:0]",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        ":CNI-HOSTPORT-SETMARK - [0:0]",
        '-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000',
        ":CNI-HOSTPORT-MASQ - [0:0]",
        "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
        '-I POSTROUTING 1 -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ',
        f":{chain} - [0:0]",
        f"-A {chain} -s 10.1.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80",
        f"-I CNI-HOSTPORT-DNAT 1 -p tcp -m comment --comment {comment} -m multiport --dports 8080 -j {chain}",
    ]


def test_iptables_names_are_gos() -> None:
    assert iptables.dnat_chain(Owner("c1", "eth0", "net1")) == "CNI-DN-c2d892b58e87e28a12fe6"


def test_iptables_takes_fifteen_ports_a_rule() -> None:
    many = [Mapping("tcp", number, POD4, 80) for number in range(1, 32)]
    dports = [line.partition("--dports ")[2].split()[0] for line in iptables.jumps(wanted(*many), 4)]
    assert [len(some.split(",")) for some in dports] == [15, 15, 1]


def test_iptables_comment_has_a_limit() -> None:
    owner = Owner("c" * 200, "eth0", "n" * 200)
    assert len(iptables.comment(owner)) == 256 or iptables.comment(owner).endswith("...")


def test_iptables_condition_words_are_quoted_where_they_need_it() -> None:
    some = wanted(ANY, conditions=((4, ("!", "-i", 'a "b" c')),))
    assert r'! -i "a \"b\" c" -j' in iptables.jumps(some, 4)[0]


# --- configuration ----------------------------------------------------------------------------------------------------


def parsed(*ports: dict[str, Any], **more: Any) -> Any:
    return config.parse("PortmapConfig", {"runtimeConfig": {"portMappings": [*ports]}, **more})


CALL = Call("ADD", "portmap", container_id="c1", ifname="eth0", conf={"name": "cbr0"})
PREV = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}, {"address": "fd00:1::2/64"}, {"address": "10.1.0.9/24"}]}


def plan(*ports: dict[str, Any], **more: Any) -> Wanted:
    return portmap_plan.wanted(CALL, parsed(*ports, prevResult=PREV, **more))


def port(host: int, pod: int = 80, protocol: str = "tcp", ip: str = "") -> dict[str, Any]:
    return {"hostPort": host, "containerPort": pod, "protocol": protocol, "hostIP": ip}


@pytest.mark.parametrize(
    ("ip", "found"),
    [
        ("", [(4, None), (6, None)]),
        ("0.0.0.0", [(4, None)]),
        ("::", [(6, None)]),
        ("127.0.0.1", [(4, "127.0.0.1")]),
        ("::ffff:192.0.2.1", [(4, "192.0.2.1")]),
        ("fd00:2:0::1", [(6, "fd00:2::1")]),
        ("::1", []),
    ],
)
def test_host_ip(ip: str, found: list[tuple[int, str | None]]) -> None:
    mappings = plan(port(8080, ip=ip)).mappings
    assert [(m.version, str(m.host_address) if m.host_address else None) for m in mappings] == found
    assert {m.pod for m in mappings} <= {POD4, POD6}, "the first address of each version"


@pytest.mark.parametrize("protocol", ["tcp", "TCP", "Udp", "sCTP"])
def test_protocol_in_any_case(protocol: str) -> None:
    assert plan(port(1, protocol=protocol)).mappings[0].protocol == protocol.lower()


def test_defaults() -> None:
    of = plan(port(1))
    assert (of.snat, of.masq_all, of.mark_bit, of.set_mark_chain, of.words(4)) == (True, False, 13, "", ())
    assert plan(port(1), markMasqBit=0).mark_bit == 0


BACKENDS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"backend": "iptables"}, "iptables"),
    ({"backend": "nftables"}, "nftables"),
    ({"externalSetMarkChain": "KUBE-MARK-MASQ"}, "iptables"),
    ({"conditionsV4": ["-s", "10.0.0.0/8"]}, "iptables"),
    ({"conditionsV6": ["!", "-i", "lo"]}, "iptables"),
    ({"conditionsV6": ["iifname", "eth0"]}, "nftables"),
    ({"conditionsV4": []}, ""),
    ({"conditionsV4": [""]}, ""),
    ({"conditionsV4": None}, ""),
    ({"backend": "iptables", "conditionsV4": ["-i", "x"], "externalSetMarkChain": "X"}, "iptables"),
]


@pytest.mark.parametrize(("keys", "backend"), BACKENDS)
def test_back_end_that_the_configuration_asks_for(keys: dict[str, Any], backend: str) -> None:
    assert portmap_plan.check_config(parsed(**keys)) == backend


def test_what_a_back_end_cannot_do_names_key_and_value() -> None:
    with pytest.raises(UnsupportedField) as caught:
        portmap_plan.check_config(parsed(backend="nftables", conditionsV4=["-s", "10.0.0.0/8"]))
    assert caught.value.code == 2
    assert "\"conditionsV4\": ['-s', '10.0.0.0/8']" in caught.value.details


@given(st.lists(st.text(max_size=30), max_size=4), st.text(max_size=30), st.text(max_size=30))
def test_no_text_gets_out_of_its_place(words: list[str], ip: str, protocol: str) -> None:
    """Any text in the configuration is rejected, or is in one command, on one line."""
    try:
        settings = parsed(port(1, ip=ip, protocol=protocol), prevResult=PREV, conditionsV4=words)
        portmap_plan.check_config(settings)
        of = portmap_plan.wanted(CALL, settings)
    except CniError:
        return
    commands = portmap_rules.chain_commands(portmap_rules.wanted_chains(of))
    commands += [command for mapping in of.mappings for command in portmap_rules.element_commands(mapping, of)]
    assert not [command for command in commands if "; " in command.replace("policy accept; }", "") and "type " not in command]
    assert not [command for command in commands if "\n" in command]


def test_ports_out_of_range_say_gos_sentence() -> None:
    for number in (0, -1, 65536):
        with pytest.raises(InvalidConfig, match=f"Invalid host port number: {number}"):
            plan(port(number))
        with pytest.raises(InvalidConfig, match=f"Invalid container port number: {number}"):
            plan(port(1, number))
