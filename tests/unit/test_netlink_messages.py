"""Our codec beside pyroute2: the same bytes for every message, the same values for every answer.

tests/netns/test_netlink_messages.py does the same with the requests of plugins and flanneld, and the kernel's replies.
"""

from __future__ import annotations

import runpy
import socket
from ipaddress import ip_address
from pathlib import Path
from struct import pack

import pytest

from cni_py.kernel import vxlan
from cni_py.netlink import attributes, tables
from cni_py.netlink.attributes import Message, attribute, decode, decode_header, encode, items
from support import pyroute2_messages

ROOT = Path(__file__).resolve().parents[2]
HERE, THERE6 = ip_address("10.244.1.2").packed, ip_address("fd00::2").packed
KEY = bytes(range(32))
ENDPOINT = pack("=H", socket.AF_INET) + pack("!H", 51820) + HERE + bytes(8)
ENDPOINT6 = pack("=H", socket.AF_INET6) + pack("!H", 51820) + bytes(4) + THERE6 + bytes(4)


def link(kind: str, data: Message | None = None) -> Message:
    return {"IFLA_IFNAME": "x0", "IFLA_LINKINFO": {"IFLA_INFO_KIND": kind, "IFLA_INFO_DATA": data}}


def element(**more: object) -> Message:
    return {"NFTA_SET_ELEM_KEY": {"NFTA_DATA_VALUE": HERE}, "NFTA_SET_ELEM_USERDATA": b"\0\2a\0", **more}


SAMPLES: list[tuple[str, Message]] = [
    ("ctrlmsg", {"cmd": 3, "version": 1, "CTRL_ATTR_FAMILY_NAME": "wireguard"}),
    ("ctrlmsg", {"cmd": 3, "CTRL_ATTR_FAMILY_ID": 28}),
    ("ifaddrmsg", {"family": 2, "prefixlen": 24, "index": 3, "IFA_LOCAL": HERE, "IFA_ADDRESS": HERE, "IFA_BROADCAST": HERE}),
    ("ifaddrmsg", {"family": 10, "prefixlen": 64, "index": 3, "IFA_LOCAL": THERE6, "IFA_ADDRESS": THERE6, "IFA_FLAGS": 2}),
    ("ifinfmsg", {"index": 4, "flags": 1, "change": 1}),
    (
        "fibmsg",
        {"family": 2, "src_len": 32, "table": 100, "action": 1, "FRA_SRC": HERE, "FRA_TABLE": 100, "FRA_PRIORITY": 32765},
    ),
    ("fibmsg", {"family": 2, "dst_len": 32, "FRA_DST": HERE, "FRA_IIFNAME": "eth0", "FRA_OIFNAME": "eth1", "FRA_IP_PROTO": 6}),
    ("fibmsg", {"family": 2, "FRA_FWMARK": 0x4000, "FRA_FWMASK": 0x4000}),
    ("ifinfmsg", link("bridge", {"IFLA_BR_NF_CALL_IPTABLES": 1, "IFLA_BR_NF_CALL_IP6TABLES": 0})),
    ("ifinfmsg", link("vrf", {"IFLA_VRF_TABLE": 100})),
    ("tcmsg", {"index": 4, "handle": 0x10000, "parent": 0xFFFFFFFF, "info": 0x10300, "TCA_KIND": "tbf"}),
    ("ifinfmsg", {"IFLA_IFNAME": "a" * 15, "IFLA_EXT_MASK": 8}),
    ("ifinfmsg", {"index": 4, "IFLA_ADDRESS": "c2:11:22:33:44:55", "IFLA_MTU": 65535, "IFLA_MASTER": 0, "IFLA_TXQLEN": 0}),
    ("ifinfmsg", {"index": 4, "IFLA_IFALIAS": "cni:c1:eth0:büro", "IFLA_LINK": 7, "IFLA_NUM_TX_QUEUES": 0xFFFFFFFF}),
    (
        "ifinfmsg",
        link("ipip", {"IFLA_IPIP_LOCAL": HERE, "IFLA_IPIP_REMOTE": bytes(4), "IFLA_IPIP_TTL": 0, "IFLA_IPIP_PMTUDISC": 0}),
    ),
    ("ifinfmsg", link("macvlan", {"IFLA_MACVLAN_MODE": 4})),
    ("ifinfmsg", link("ipvlan", {"IFLA_IPVLAN_MODE": 2})),
    ("ifinfmsg", link("vlan", {"IFLA_VLAN_ID": 100})),
    ("ifinfmsg", link("tun", {"IFLA_TUN_OWNER": 1000, "IFLA_TUN_GROUP": 0xFFFFFFFE, "IFLA_TUN_TYPE": 2, "IFLA_TUN_PI": 1})),
    ("ifinfmsg", link("tun", {"IFLA_TUN_VNET_HDR": 1, "IFLA_TUN_MULTI_QUEUE": 0})),
    ("ifinfmsg", link("wireguard")),
    ("ifinfmsg", link("bridge", {"IFLA_BR_VLAN_FILTERING": 1, "IFLA_BR_VLAN_PROTOCOL": 0x8100})),
    ("ifinfmsg", link("veth", {"VETH_INFO_PEER": {"IFLA_IFNAME": "eth0", "IFLA_NET_NS_FD": 9, "IFLA_MTU": 1450}})),
    ("ifinfmsg", link("veth", {"VETH_INFO_PEER": {"flags": 1, "index": 5, "IFLA_ADDRESS": "c2:11:22:33:44:55"}})),
    ("ifinfmsg", link("vxlan", {"IFLA_VXLAN_ID": 1, "IFLA_VXLAN_LINK": 2, "IFLA_VXLAN_LOCAL": HERE, "IFLA_VXLAN_PORT": 8472})),
    ("ifinfmsg", link("vxlan", {"IFLA_VXLAN_LOCAL6": THERE6, "IFLA_VXLAN_GROUP6": THERE6, "IFLA_VXLAN_GBP": True})),
    ("ifinfmsg", {"IFLA_IFNAME": "veth1", "IFLA_PROP_LIST": {"IFLA_ALT_IFNAME": "cni:c1:eth0:büro"}}),
    ("ifinfmsg", {"IFLA_OPERSTATE": 6, "IFLA_LINK_NETNSID": 0}),
    ("ifinfmsg", {"IFLA_OPERSTATE": 0, "IFLA_LINK_NETNSID": -1}),
    ("ifinfmsg", link("vxlan", dict.fromkeys(vxlan._OFF, 0))),
    ("ifinfmsg", link("vxlan", {"IFLA_VXLAN_GROUP": HERE, "IFLA_VXLAN_LEARNING": False, "IFLA_VXLAN_PROXY": 0})),
    (
        "ifinfmsg",
        {
            "IFLA_LINKINFO": {
                "IFLA_INFO_SLAVE_KIND": "bridge",
                "IFLA_INFO_SLAVE_DATA": {"IFLA_BRPORT_MODE": 1, "IFLA_BRPORT_ISOLATED": 1},
            }
        },
    ),
    ("ifinfmsg", {"family": 7, "index": 4, "IFLA_AF_SPEC": {"IFLA_BRIDGE_VLAN_INFO": {"flags": 6, "vid": 100}}}),
    ("ndmsg", {"family": 2, "ifindex": 4, "state": 0x80, "ndm_type": 1, "NDA_DST": HERE, "NDA_LLADDR": "c2:11:22:33:44:55"}),
    ("ndmsg", {"family": 7, "ifindex": 4, "state": 0x80, "flags": 2, "NDA_DST": THERE6, "NDA_LLADDR": "c2:11:22:33:44:55"}),
    ("ndmsg", {"family": 10, "NDA_IFINDEX": 4}),
    ("ndmsg", {"family": 7, "ifindex": 4, "flags": 2, "NDA_DST": HERE, "NDA_PORT": 4789, "NDA_VNI": 7}),
    ("ndmsg", {"family": 7, "NDA_MASTER": 4}),
    ("nfct_msg", {"nfgen_family": 2, "CTA_TUPLE_ORIG": {"CTA_TUPLE_PROTO": {"CTA_PROTO_NUM": 17, "CTA_PROTO_DST_PORT": 53}}}),
    (
        "nfct_msg",
        {
            "CTA_TUPLE_ORIG": {
                "CTA_TUPLE_PROTO": {
                    "CTA_PROTO_NUM": 1,
                    "CTA_PROTO_ICMP_ID": 7,
                    "CTA_PROTO_ICMP_TYPE": 8,
                    "CTA_PROTO_ICMP_CODE": 0,
                }
            }
        },
    ),
    (
        "nfct_msg",
        {
            "CTA_TUPLE_ORIG": {
                "CTA_TUPLE_PROTO": {
                    "CTA_PROTO_NUM": 58,
                    "CTA_PROTO_ICMPV6_ID": 7,
                    "CTA_PROTO_ICMPV6_TYPE": 128,
                    "CTA_PROTO_ICMPV6_CODE": 0,
                }
            }
        },
    ),
    (
        "nfct_msg",
        {
            "CTA_TUPLE_REPLY": {"CTA_TUPLE_IP": {"CTA_IP_V4_SRC": HERE, "CTA_IP_V4_DST": HERE}},
            "CTA_FILTER": {"CTA_FILTER_ORIG_FLAGS": 0x28, "CTA_FILTER_REPLY_FLAGS": 0},
        },
    ),
    (
        "nfct_msg",
        {
            "CTA_TUPLE_ORIG": {
                "CTA_TUPLE_IP": {"CTA_IP_V6_SRC": THERE6, "CTA_IP_V6_DST": THERE6},
                "CTA_TUPLE_PROTO": {"CTA_PROTO_SRC_PORT": 4000},
            },
            "CTA_ID": 0x01020304,
            "CTA_ZONE": 5,
        },
    ),
    ("nft_chain_msg", {"nfgen_family": 1, "NFTA_CHAIN_TABLE": "cni_py", "NFTA_CHAIN_NAME": "masquerade"}),
    (
        "nft_chain_msg",
        {"NFTA_CHAIN_HANDLE": 7, "NFTA_CHAIN_USE": 2, "NFTA_CHAIN_POLICY": 1, "NFTA_CHAIN_HOOK": {"NFTA_HOOK_HOOKNUM": 4}},
    ),
    ("nft_chain_msg", {"NFTA_CHAIN_HOOK": {"NFTA_HOOK_HOOKNUM": 2, "NFTA_HOOK_PRIORITY": -100}}),
    ("nft_gen_msg", {}),
    ("nft_gen_msg", {"NFTA_GEN_PROC_PID": 4711, "NFTA_GEN_PROC_NAME": "nft"}),
    ("nft_rule_msg", {"NFTA_RULE_EXPRESSIONS": [{"NFTA_EXPR_NAME": "counter"}]}),
    ("nft_rule_msg", {"nfgen_family": 1, "NFTA_RULE_TABLE": "cni_py", "NFTA_RULE_CHAIN": "masquerade", "NFTA_RULE_HANDLE": 7}),
    ("nft_set_elem_list_msg", {"NFTA_SET_ELEM_LIST_TABLE": "cni_py", "NFTA_SET_ELEM_LIST_SET": "masq4"}),
    (
        "nft_set_elem_list_msg",
        {"NFTA_SET_ELEM_LIST_ELEMENTS": [element(), element(NFTA_SET_ELEM_DATA={"NFTA_DATA_VALUE": b"12345"})]},
    ),
    (
        "nft_set_elem_list_msg",
        {
            "NFTA_SET_ELEM_LIST_ELEMENTS": [
                element(NFTA_SET_ELEM_DATA={"NFTA_DATA_VERDICT": {"NFTA_VERDICT_CODE": code, "NFTA_VERDICT_CHAIN": "to"}})
                for code in (-3, -4)
            ]
        },
    ),
    ("nft_table_msg", {"nfgen_family": 2, "NFTA_TABLE_NAME": "nat"}),
    ("nft_table_msg", {"NFTA_TABLE_FLAGS": 1, "NFTA_TABLE_USE": 3}),
    ("nsidmsg", {"NETNSA_FD": 9}),
    ("rtmsg", {"family": 2, "dst_len": 24, "table": 254, "proto": 122, "type": 1, "flags": 4, "RTA_DST": HERE, "RTA_OIF": 3}),
    ("rtmsg", {"family": 10, "dst_len": 64, "scope": 253, "RTA_DST": THERE6, "RTA_GATEWAY": THERE6, "RTA_PRIORITY": 4096}),
    ("rtmsg", {"family": 2, "RTA_TABLE": 1000, "RTA_METRICS": {"RTAX_MTU": 1400, "RTAX_ADVMSS": 1360}, "RTA_PREFSRC": HERE}),
    ("rtmsg", {"family": 2, "src_len": 32, "RTA_SRC": HERE, "RTA_IIF": 3, "RTA_MARK": 0x4000}),
    ("rtmsg", {"family": 2, "RTA_MULTIPATH": [{"oif": 3, "RTA_GATEWAY": HERE}, {"flags": 4, "hops": 1, "oif": 4}]}),
    ("wgmsg", {"cmd": 0, "version": 1, "WGDEVICE_A_IFNAME": "flannel-wg", "WGDEVICE_A_PUBLIC_KEY": KEY}),
    ("wgmsg", {"cmd": 1, "version": 1, "WGDEVICE_A_PRIVATE_KEY": KEY, "WGDEVICE_A_LISTEN_PORT": 51820}),
    ("wgmsg", {"cmd": 1, "version": 1, "WGDEVICE_A_PEERS": [{"WGPEER_A_PUBLIC_KEY": KEY, "WGPEER_A_FLAGS": 1}]}),
    (
        "wgmsg",
        {
            "WGDEVICE_A_PEERS": [
                {
                    "WGPEER_A_PUBLIC_KEY": KEY,
                    "WGPEER_A_PRESHARED_KEY": KEY,
                    "WGPEER_A_ENDPOINT": endpoint,
                    "WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL": 25,
                    "WGPEER_A_ALLOWEDIPS": [
                        {"WGALLOWEDIP_A_FAMILY": 2, "WGALLOWEDIP_A_IPADDR": HERE, "WGALLOWEDIP_A_CIDR_MASK": 24},
                        {"WGALLOWEDIP_A_FAMILY": 10, "WGALLOWEDIP_A_IPADDR": THERE6, "WGALLOWEDIP_A_CIDR_MASK": 64},
                    ],
                }
                for endpoint in (ENDPOINT, ENDPOINT6)
            ]
        },
    ),
]


@pytest.mark.parametrize(("table", "message"), SAMPLES)
def test_message_is_encoded_as_by_pyroute2(table: str, message: Message) -> None:
    assert encode(table, message).hex() == pyroute2_messages.encoded(table, message).hex()


@pytest.mark.parametrize(("table", "message"), SAMPLES)
def test_message_is_decoded_as_by_pyroute2_and_as_it_was(table: str, message: Message) -> None:
    data = encode(table, message)
    assert decode(table, data) == pyroute2_messages.decoded(table, data)
    assert encode(table, decode(table, data)) == data


# ---- by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message", "data"),
    [
        ("nsidmsg", {"NETNSA_NSID": -1}, attribute(1, b"\xff\xff\xff\xff")),
        ("ifaddrmsg", {"IFA_TARGET_NETNSID": 3}, attribute(10, pack("=i", 3))),
        ("cta_tuple", {"CTA_TUPLE_ZONE": 7}, attribute(3, b"\0\7")),
        ("fibmsg", {"FRA_SPORT_RANGE": pack("=HH", 1, 9)}, attribute(23, pack("=HH", 1, 9))),
        ("fibmsg", {"FRA_DPORT_RANGE": pack("=HH", 80, 80)}, attribute(24, pack("=HH", 80, 80))),
        ("rtmsg", {"RTA_IP_PROTO": 6}, attribute(27, b"\6")),
        ("rtmsg", {"RTA_SPORT": 4000}, attribute(28, b"\x0f\xa0")),
        ("rtmsg", {"RTA_DPORT": 80}, attribute(29, b"\0\x50")),
        ("macvx_data", {"IFLA_MACVLAN_BC_QUEUE_LEN": 200}, attribute(7, pack("=I", 200))),
    ],
)
def test_what_pyroute2_lacks(table: str, message: Message, data: bytes) -> None:
    assert encode(table, message).endswith(data)
    assert {name: decode(table, encode(table, message))[name] for name in message} == message


def test_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="IFLA_MTUU"):
        encode("ifinfmsg", {"IFLA_MTUU": 1450})


def test_none_is_left_out_and_what_is_missing_is_zero() -> None:
    assert encode("ifinfmsg", {"IFLA_MTU": None, "IFLA_LINKINFO": None}) == bytes(16)
    assert decode("ifinfmsg", bytes(16)) == dict.fromkeys(("family", "ifi_type", "index", "flags", "change"), 0)


def test_data_of_an_unknown_kind_stay_bytes() -> None:
    message = link("wondrous") | {"index": 1}
    message["IFLA_LINKINFO"]["IFLA_INFO_DATA"] = b"1234"
    assert decode("ifinfmsg", encode("ifinfmsg", message))["IFLA_LINKINFO"]["IFLA_INFO_DATA"] == b"1234"


def test_af_spec_is_of_the_bridge_only_where_the_family_says_so() -> None:
    data = encode("ifinfmsg", {"family": 7, "IFLA_AF_SPEC": {"IFLA_BRIDGE_VLAN_INFO": {"flags": 6, "vid": 100}}})
    assert isinstance(decode("ifinfmsg", b"\0" + data[1:])["IFLA_AF_SPEC"], bytes)


def test_text_that_is_no_utf8_survives() -> None:
    data = bytes(16) + attribute(20, b"caf\xe9\0")
    assert encode("ifinfmsg", decode("ifinfmsg", data)) == data


def test_header_and_items_alone() -> None:
    data = encode("nft_set_elem_list_msg", {"nfgen_family": 1, "NFTA_SET_ELEM_LIST_ELEMENTS": [element(), element()]})
    assert decode_header("nft_set_elem_list_msg", data) == {"nfgen_family": 1, "version": 0, "res_id": 0}
    raw = items("nft_set_elem_list_msg", data, "NFTA_SET_ELEM_LIST_ELEMENTS")
    assert [decode("set_elem", item) for item in raw] == [element(), element()]


@pytest.mark.parametrize("data", [b"", b"\3\0\1\0", b"\0\0\1\0", b"\xff\xff\1\0abc", attribute(1, b"x") + b"\4\0"])
def test_damaged_attributes_end(data: bytes) -> None:
    assert len(list(attributes.attributes(data))) <= 2


# ---- the table --------------------------------------------------------------------------------


def test_every_type_is_an_atom_a_table_or_by_hand() -> None:
    known = {*attributes._TYPES, *attributes._CHOSEN, *tables.TABLES}
    every = [
        kind for name, (_, rows) in tables.TABLES.items() for _, kind in (rows | attributes._CORRECTIONS.get(name, {})).values()
    ]
    kinds = {kind if kind in known else kind.lstrip("*") for kind in every}
    assert kinds <= known
    chosen = {kind for _, kinds in attributes._CHOSEN.values() for kind in kinds.values()}
    assert chosen <= tables.TABLES.keys()


def test_every_type_by_hand_is_used() -> None:
    kinds = {kind for _, rows in tables.TABLES.values() for _, kind in rows.values()}
    kinds |= {kind for rows in attributes._CORRECTIONS.values() for _, kind in rows.values()}
    assert set(attributes._TYPES) - kinds == {"cdata"}  # what is not chosen
    assert set(attributes._CHOSEN) <= kinds


NEXT = {
    "ifinfo": [
        "IFLA_MACVLAN_MODE", "IFLA_IPVLAN_MODE", "IFLA_VLAN_ID", "IFLA_VLAN_PROTOCOL", "IFLA_VRF_TABLE", "IFLA_TUN_TYPE",
        "IFLA_TUN_OWNER", "IFLA_TUN_MULTI_QUEUE",
    ],
    "fibmsg": ["FRA_SRC", "FRA_DST", "FRA_TABLE", "FRA_PRIORITY", "FRA_FWMARK", "FRA_IIFNAME", "FRA_L3MDEV", "FRA_SUPPRESS_PREFIXLEN"],
    "tcmsg": ["TCA_KIND", "TCA_OPTIONS"],
}  # fmt: skip
"""Messages of macvlan and others (macvlan, ipvlan, vlan, vrf, tap, policy rules, traffic shaping)."""


def test_next_plugins_need_names_alone() -> None:
    """Their attributes are of types that are here, or that pyroute2 too chooses by a function."""
    import pyroute2  # noqa: F401
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    generate = runpy.run_path(str(ROOT / "integration" / "generate"))
    classes = {"ifinfo": ifinfmsg.ifinfo.data_map.values(), "fibmsg": [fibmsg], "tcmsg": [tcmsg]}
    kinds = {
        name: generate["type_of"](cls, kind)
        for of, names in NEXT.items()
        for cls in classes[of]
        if cls.nla_map
        for _, name, kind in generate["attributes_of"](cls)
        if name in names
    }
    assert sorted(kinds) == sorted(name for names in NEXT.values() for name in names)
    assert {name for name, (kind, _) in kinds.items() if kind not in attributes._TYPES} == {"TCA_OPTIONS"}


def names_in(value: object) -> set[str]:
    """The names of a message, at any depth."""
    if isinstance(value, list):
        return {name for item in value for name in names_in(item)}
    return {name for key, item in value.items() for name in {key, *names_in(item)}} if isinstance(value, dict) else set()


def test_every_attribute_is_in_a_sample() -> None:
    attributes_of_tables = {name for table, (_, rows) in tables.TABLES.items() if table != "nh" for name in rows}
    corrected = {name for rows in attributes._CORRECTIONS.values() for name in rows}
    corrected.add("NFTA_RULE_USERDATA")  # libnftnl's, which pyroute2 takes for something else; only read
    assert attributes_of_tables - corrected - {name for _, message in SAMPLES for name in names_in(message)} == set()
