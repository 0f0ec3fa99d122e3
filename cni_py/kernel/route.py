"""Ask the kernel which way an address is. Source: rtnetlink(7), linux/rtnetlink.h."""

from __future__ import annotations

from cni_py.netlink.attributes import attribute, attributes, number
from cni_py.netlink.constants import AF_INET, AF_INET6, RTM_GETROUTE
from cni_py.netlink.socket import NetlinkError, open_host, question

_FAMILY = {4: AF_INET, 16: AF_INET6}
"""By the length of an address."""
_RTA_DST, _RTA_OIF = 1, 4


def route_to(address: bytes) -> tuple[int, int]:
    """Kind of the route (``RTN_…``) and index of its link; (0, 0): there is none. Raises: KernelRefused."""
    from struct import pack

    rtmsg = pack("=BBBBBBBBI", _FAMILY[len(address)], 8 * len(address), *[0] * 7)
    with question("ip", "route", "get", _text(address)), open_host() as rtnl:
        try:
            answer = rtnl.get(rtmsg + attribute(_RTA_DST, address), RTM_GETROUTE)
        except NetlinkError:
            return 0, 0
    return answer[7], number(dict(attributes(answer[12:])).get(_RTA_OIF))


def _text(address: bytes) -> str:
    from ipaddress import ip_address

    return str(ip_address(address))
