"""Netlink's messages: the fields of each header, and its attributes by name: number and type.

Made by ``make generate`` from pyroute2's classes, for the names that cni_py uses; ``attributes.py`` encodes and decodes by
them. Not to be edited.
"""

from __future__ import annotations

NESTED = 0x8000

Fields = tuple[tuple[str, str], ...]
Rows = dict[str, tuple[int, str]]

TABLES: dict[str, tuple[Fields, Rows]] = {
    "af_spec_bridge": (
        (),
        {
            "IFLA_BRIDGE_VLAN_INFO": (2, "vlan_info"),
        },
    ),
    "bridge_data": (
        (),
        {
            "IFLA_BR_VLAN_FILTERING": (7, "uint8"),
            "IFLA_BR_VLAN_PROTOCOL": (8, "be16"),
            "IFLA_BR_NF_CALL_IPTABLES": (36, "uint8"),
            "IFLA_BR_NF_CALL_IP6TABLES": (37, "uint8"),
        },
    ),
    "bridge_slave_data": (
        (),
        {
            "IFLA_BRPORT_MODE": (4, "uint8"),
            "IFLA_BRPORT_ISOLATED": (33, "uint8"),
        },
    ),
    "cta_filter": (
        (),
        {
            "CTA_FILTER_ORIG_FLAGS": (1, "uint32"),
            "CTA_FILTER_REPLY_FLAGS": (2, "uint32"),
        },
    ),
    "cta_ip": (
        (),
        {
            "CTA_IP_V4_SRC": (1, "ip4addr"),
            "CTA_IP_V4_DST": (2, "ip4addr"),
            "CTA_IP_V6_SRC": (3, "ip6addr"),
            "CTA_IP_V6_DST": (4, "ip6addr"),
        },
    ),
    "cta_proto": (
        (),
        {
            "CTA_PROTO_NUM": (1, "uint8"),
            "CTA_PROTO_SRC_PORT": (2, "be16"),
            "CTA_PROTO_DST_PORT": (3, "be16"),
            "CTA_PROTO_ICMP_ID": (4, "be16"),
            "CTA_PROTO_ICMP_TYPE": (5, "uint8"),
            "CTA_PROTO_ICMP_CODE": (6, "uint8"),
            "CTA_PROTO_ICMPV6_ID": (7, "be16"),
            "CTA_PROTO_ICMPV6_TYPE": (8, "uint8"),
            "CTA_PROTO_ICMPV6_CODE": (9, "uint8"),
        },
    ),
    "cta_tuple": (
        (),
        {
            "CTA_TUPLE_IP": (1, "cta_ip"),
            "CTA_TUPLE_PROTO": (2, "cta_proto"),
        },
    ),
    "ctrlmsg": (
        (("cmd", "B"), ("version", "B"), ("reserved", "H")),
        {
            "CTRL_ATTR_FAMILY_ID": (1, "uint16"),
            "CTRL_ATTR_FAMILY_NAME": (2, "asciiz"),
        },
    ),
    "data_attributes": (
        (),
        {
            "NFTA_DATA_VALUE": (1, "binary"),
            "NFTA_DATA_VERDICT": (2, "verdict_attributes"),
        },
    ),
    "fibmsg": (
        (
            ("family", "B"),
            ("dst_len", "B"),
            ("src_len", "B"),
            ("tos", "B"),
            ("table", "B"),
            ("res1", "B"),
            ("res2", "B"),
            ("action", "B"),
            ("flags", "I"),
        ),
        {
            "FRA_DST": (1, "ipaddr"),
            "FRA_SRC": (2, "ipaddr"),
            "FRA_IIFNAME": (3, "asciiz"),
            "FRA_PRIORITY": (6, "uint32"),
            "FRA_FWMARK": (10, "uint32"),
            "FRA_TABLE": (15, "uint32"),
            "FRA_FWMASK": (16, "uint32"),
            "FRA_OIFNAME": (17, "asciiz"),
            "FRA_IP_PROTO": (22, "uint8"),
            "FRA_SPORT_RANGE": (23, "port_range"),
            "FRA_DPORT_RANGE": (24, "port_range"),
        },
    ),
    "hook": (
        (),
        {
            "NFTA_HOOK_HOOKNUM": (1, "be32"),
            "NFTA_HOOK_PRIORITY": (2, "sbe32"),
        },
    ),
    "ifaddrmsg": (
        (("family", "B"), ("prefixlen", "B"), ("flags", "B"), ("scope", "B"), ("index", "I")),
        {
            "IFA_ADDRESS": (1, "ipaddr"),
            "IFA_LOCAL": (2, "ipaddr"),
            "IFA_BROADCAST": (4, "ipaddr"),
            "IFA_FLAGS": (8, "uint32"),
            "IFA_TARGET_NETNSID": (10, "asciiz"),
        },
    ),
    "ifinfmsg": (
        (("family", "B"), ("align", "x"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I")),
        {
            "IFLA_ADDRESS": (1, "l2addr"),
            "IFLA_IFNAME": (3, "asciiz"),
            "IFLA_MTU": (4, "uint32"),
            "IFLA_LINK": (5, "uint32"),
            "IFLA_MASTER": (10, "uint32"),
            "IFLA_TXQLEN": (13, "uint32"),
            "IFLA_OPERSTATE": (16, "uint8"),
            "IFLA_LINKINFO": (18, "ifinfo"),
            "IFLA_IFALIAS": (20, "asciiz"),
            "IFLA_AF_SPEC": (26, "af_spec"),
            "IFLA_NET_NS_FD": (28, "uint32"),
            "IFLA_EXT_MASK": (29, "uint32"),
            "IFLA_NUM_TX_QUEUES": (31, "uint32"),
            "IFLA_LINK_NETNSID": (37, "int32"),
            "IFLA_PROP_LIST": (NESTED | 52, "proplist"),
            "IFLA_ALT_IFNAME": (53, "asciiz"),
        },
    ),
    "ifinfo": (
        (),
        {
            "IFLA_INFO_KIND": (1, "asciiz"),
            "IFLA_INFO_DATA": (2, "info_data"),
            "IFLA_INFO_SLAVE_KIND": (4, "asciiz"),
            "IFLA_INFO_SLAVE_DATA": (5, "info_slave_data"),
        },
    ),
    "ipip_data": (
        (),
        {
            "IFLA_IPIP_LOCAL": (2, "ip4addr"),
            "IFLA_IPIP_REMOTE": (3, "ip4addr"),
            "IFLA_IPIP_TTL": (4, "uint8"),
            "IFLA_IPIP_PMTUDISC": (10, "uint8"),
        },
    ),
    "ipvlan": (
        (),
        {
            "IFLA_IPVLAN_MODE": (1, "uint16"),
        },
    ),
    "macvx_data": (
        (),
        {
            "IFLA_MACVLAN_MODE": (1, "uint32"),
        },
    ),
    "metrics": (
        (),
        {
            "RTAX_MTU": (2, "uint32"),
            "RTAX_ADVMSS": (8, "uint32"),
        },
    ),
    "ndmsg": (
        (("family", "B"), ("pad", "3x"), ("ifindex", "i"), ("state", "H"), ("flags", "B"), ("ndm_type", "B")),
        {
            "NDA_DST": (1, "ipaddr"),
            "NDA_LLADDR": (2, "lladdr"),
            "NDA_PORT": (6, "be16"),
            "NDA_VNI": (7, "uint32"),
            "NDA_IFINDEX": (8, "uint32"),
            "NDA_MASTER": (9, "uint32"),
        },
    ),
    "nfct_msg": (
        (("nfgen_family", "B"), ("version", "B"), ("res_id", ">H")),
        {
            "CTA_TUPLE_ORIG": (1, "cta_tuple"),
            "CTA_TUPLE_REPLY": (2, "cta_tuple"),
            "CTA_ID": (12, "be32"),
            "CTA_ZONE": (18, "be16"),
            "CTA_FILTER": (NESTED | 25, "cta_filter"),
        },
    ),
    "nft_chain_msg": (
        (("nfgen_family", "B"), ("version", "B"), ("res_id", ">H")),
        {
            "NFTA_CHAIN_TABLE": (1, "asciiz"),
            "NFTA_CHAIN_HANDLE": (2, "be64"),
            "NFTA_CHAIN_NAME": (3, "asciiz"),
            "NFTA_CHAIN_HOOK": (4, "hook"),
            "NFTA_CHAIN_POLICY": (5, "be32"),
            "NFTA_CHAIN_USE": (6, "be32"),
        },
    ),
    "nft_expr": (
        (),
        {
            "NFTA_EXPR_NAME": (1, "asciiz"),
        },
    ),
    "nft_gen_msg": (
        (("nfgen_family", "B"), ("version", "B"), ("res_id", ">H")),
        {
            "NFTA_GEN_PROC_PID": (2, "be32"),
            "NFTA_GEN_PROC_NAME": (3, "asciiz"),
        },
    ),
    "nft_rule_msg": (
        (("nfgen_family", "B"), ("version", "B"), ("res_id", ">H")),
        {
            "NFTA_RULE_TABLE": (1, "asciiz"),
            "NFTA_RULE_CHAIN": (2, "asciiz"),
            "NFTA_RULE_HANDLE": (3, "be64"),
            "NFTA_RULE_EXPRESSIONS": (4, "*nft_expr"),
            "NFTA_RULE_USERDATA": (7, "comment"),
        },
    ),
    "nft_set_elem_list_msg": (
        (("nfgen_family", "B"), ("version", "B"), ("res_id", ">H")),
        {
            "NFTA_SET_ELEM_LIST_TABLE": (1, "asciiz"),
            "NFTA_SET_ELEM_LIST_SET": (2, "asciiz"),
            "NFTA_SET_ELEM_LIST_ELEMENTS": (3, "*set_elem"),
        },
    ),
    "nft_table_msg": (
        (("nfgen_family", "B"), ("version", "B"), ("res_id", ">H")),
        {
            "NFTA_TABLE_NAME": (1, "asciiz"),
            "NFTA_TABLE_FLAGS": (2, "be32"),
            "NFTA_TABLE_USE": (3, "be32"),
        },
    ),
    "nh": (
        (("flags", "B"), ("hops", "B"), ("oif", "i")),
        {
            "RTA_DST": (1, "target"),
            "RTA_SRC": (2, "target"),
            "RTA_IIF": (3, "uint32"),
            "RTA_OIF": (4, "uint32"),
            "RTA_GATEWAY": (5, "target"),
            "RTA_PRIORITY": (6, "uint32"),
            "RTA_PREFSRC": (7, "target"),
            "RTA_METRICS": (8, "metrics"),
            "RTA_MULTIPATH": (9, "*get_nh"),
            "RTA_TABLE": (15, "uint32"),
            "RTA_MARK": (16, "uint32"),
        },
    ),
    "nsidmsg": (
        (("rtgen_family", "B"), ("pad", "3x")),
        {
            "NETNSA_NSID": (1, "uint32"),
            "NETNSA_FD": (3, "uint32"),
        },
    ),
    "port_range": ((("start", "H"), ("end", "H")), {}),
    "proplist": (
        (),
        {
            "IFLA_ALT_IFNAME": (53, "asciiz"),
        },
    ),
    "rtmsg": (
        (
            ("family", "B"),
            ("dst_len", "B"),
            ("src_len", "B"),
            ("tos", "B"),
            ("table", "B"),
            ("proto", "B"),
            ("scope", "B"),
            ("type", "B"),
            ("flags", "I"),
        ),
        {
            "RTA_DST": (1, "target"),
            "RTA_SRC": (2, "target"),
            "RTA_IIF": (3, "uint32"),
            "RTA_OIF": (4, "uint32"),
            "RTA_GATEWAY": (5, "target"),
            "RTA_PRIORITY": (6, "uint32"),
            "RTA_PREFSRC": (7, "target"),
            "RTA_METRICS": (8, "metrics"),
            "RTA_MULTIPATH": (9, "*get_nh"),
            "RTA_TABLE": (15, "uint32"),
            "RTA_MARK": (16, "uint32"),
        },
    ),
    "set_elem": (
        (),
        {
            "NFTA_SET_ELEM_KEY": (1, "data_attributes"),
            "NFTA_SET_ELEM_DATA": (2, "data_attributes"),
            "NFTA_SET_ELEM_USERDATA": (6, "set_elem_udata"),
        },
    ),
    "tcmsg": (
        (("family", "B"), ("pad1", "B"), ("pad2", "H"), ("index", "i"), ("handle", "I"), ("parent", "I"), ("info", "I")),
        {
            "TCA_KIND": (1, "asciiz"),
            "TCA_OPTIONS": (2, "get_options"),
        },
    ),
    "tun": (
        (),
        {
            "IFLA_TUN_OWNER": (1, "uint32"),
            "IFLA_TUN_GROUP": (2, "uint32"),
            "IFLA_TUN_TYPE": (3, "uint8"),
            "IFLA_TUN_PI": (4, "uint8"),
            "IFLA_TUN_VNET_HDR": (5, "uint8"),
            "IFLA_TUN_MULTI_QUEUE": (7, "uint8"),
        },
    ),
    "verdict_attributes": (
        (),
        {
            "NFTA_VERDICT_CODE": (1, "sbe32"),
            "NFTA_VERDICT_CHAIN": (2, "asciiz"),
        },
    ),
    "veth_data": (
        (),
        {
            "VETH_INFO_PEER": (1, "info_peer"),
        },
    ),
    "vlan": (
        (),
        {
            "IFLA_VLAN_ID": (1, "uint16"),
        },
    ),
    "vlan_info": ((("flags", "H"), ("vid", "H")), {}),
    "vrf": (
        (),
        {
            "IFLA_VRF_TABLE": (1, "uint32"),
        },
    ),
    "vxlan": (
        (),
        {
            "IFLA_VXLAN_ID": (1, "uint32"),
            "IFLA_VXLAN_GROUP": (2, "ip4addr"),
            "IFLA_VXLAN_LINK": (3, "uint32"),
            "IFLA_VXLAN_LOCAL": (4, "ip4addr"),
            "IFLA_VXLAN_TTL": (5, "uint8"),
            "IFLA_VXLAN_TOS": (6, "uint8"),
            "IFLA_VXLAN_LEARNING": (7, "uint8"),
            "IFLA_VXLAN_PROXY": (11, "uint8"),
            "IFLA_VXLAN_RSC": (12, "uint8"),
            "IFLA_VXLAN_L2MISS": (13, "uint8"),
            "IFLA_VXLAN_L3MISS": (14, "uint8"),
            "IFLA_VXLAN_PORT": (15, "be16"),
            "IFLA_VXLAN_GROUP6": (16, "ip6addr"),
            "IFLA_VXLAN_LOCAL6": (17, "ip6addr"),
            "IFLA_VXLAN_UDP_ZERO_CSUM6_TX": (19, "uint8"),
            "IFLA_VXLAN_UDP_ZERO_CSUM6_RX": (20, "uint8"),
            "IFLA_VXLAN_GBP": (23, "flag"),
        },
    ),
    "wgdevice_peer": (
        (),
        {
            "WGPEER_A_PUBLIC_KEY": (1, "parse_peer_key"),
            "WGPEER_A_PRESHARED_KEY": (2, "parse_peer_key"),
            "WGPEER_A_FLAGS": (3, "uint32"),
            "WGPEER_A_ENDPOINT": (4, "parse_endpoint"),
            "WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL": (5, "uint16"),
            "WGPEER_A_ALLOWEDIPS": (NESTED | 9, "*wgpeer_allowedip"),
        },
    ),
    "wgmsg": (
        (("cmd", "B"), ("version", "B"), ("reserved", "H")),
        {
            "WGDEVICE_A_IFNAME": (2, "asciiz"),
            "WGDEVICE_A_PRIVATE_KEY": (3, "parse_wg_key"),
            "WGDEVICE_A_PUBLIC_KEY": (4, "parse_wg_key"),
            "WGDEVICE_A_LISTEN_PORT": (6, "uint16"),
            "WGDEVICE_A_PEERS": (NESTED | 8, "*wgdevice_peer"),
        },
    ),
    "wgpeer_allowedip": (
        (),
        {
            "WGALLOWEDIP_A_FAMILY": (1, "uint16"),
            "WGALLOWEDIP_A_IPADDR": (2, "hex"),
            "WGALLOWEDIP_A_CIDR_MASK": (3, "uint8"),
        },
    ),
}
