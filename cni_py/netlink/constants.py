"""The kernel's numbers, each once, by the names of its headers.

Source: linux include/uapi/linux: netlink.h, rtnetlink.h, if.h, if_link.h, if_addr.h, if_bridge.h, neighbour.h, genetlink.h,
wireguard.h, netfilter.h, netfilter/nfnetlink.h, netfilter/nf_tables.h, netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

# ---- netlink ----------------------------------------------------------------------------------

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 11, 12
SO_RCVBUFFORCE = 33

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1

# ---- families ---------------------------------------------------------------------------------

AF_INET, AF_BRIDGE, AF_INET6 = 2, 7, 10
FAMILY = {4: AF_INET, 6: AF_INET6}
"""Address family by IP version."""
NFPROTO_INET, NFPROTO_IPV4, NFPROTO_BRIDGE, NFPROTO_IPV6 = 1, 2, 7, 10

# ---- rtnetlink --------------------------------------------------------------------------------

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETNSID = 90

RTMGRP_LINK, RTMGRP_NEIGH = 0x1, 0x4
RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
RTNLGRP_NSID = 28

IFF_UP, IFF_NOARP, IFF_PROMISC = 0x1, 0x80, 0x100
RTEXT_FILTER_SKIP_STATS = 0x8
BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED = 0x2, 0x4

IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DADFAILED = 0x01, 0x02, 0x08
IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x20, 0x80

RT_TABLE_MAIN = 254
RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE = 1, 2, 6
RTPROT_KERNEL, RTPROT_BOOT = 2, 3
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTNH_F_ONLINK = 0x4

NUD_PERMANENT = 0x80
NTF_SELF = 0x02

# ---- generic netlink --------------------------------------------------------------------------

GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3

WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE = 0, 1
WGDEVICE_F_REPLACE_PEERS = 0x1
WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS = 0x1, 0x2

# ---- netfilter --------------------------------------------------------------------------------

NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES = 1, 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNLGRP_NFTABLES = 7

NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 1, 4, 7
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = 12, 13, 14
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 15, 16
NFT_JUMP, NFT_GOTO = -3, -4
NFT_NAME_MAXLEN = 256
NF_DROP, NF_ACCEPT = 0, 1
NF_INET_FORWARD, NF_INET_POST_ROUTING = 2, 4

IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 1, 2
CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_F_CTA_PROTO_DST_PORT = 0x08, 0x20
