"""Ask the kernel which way an address is: a question by a socket of its own, without rtnl.py's millisecond of imports.

Source of the numbers: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

from cni_py.errors import KernelRefused
from cni_py.netlink.attributes import attribute, attributes

RTN_UNICAST, RTN_LOCAL = 1, 2
_AF = {4: 2, 16: 10}  # length of an address to AF_INET, AF_INET6
_GETROUTE, _NEWROUTE = 26, 24


def route_to(address: bytes) -> tuple[int, int]:
    """Kind of the route (``RTN_…``) and index of its link; (0, 0): there is none. Raises: KernelRefused."""
    from struct import pack, unpack_from

    # struct rtmsg; RTA_DST
    body = pack("=BBBBBBBBI", _AF[len(address)], 8 * len(address), *[0] * 7) + attribute(1, address)
    try:
        answer = _asked(pack("=IHHII", 16 + len(body), _GETROUTE, 1, 1, 0) + body)  # NLM_F_REQUEST
    except OSError as error:
        from ipaddress import ip_address

        words = f'could not read: "ip route get {ip_address(address)}"'
        raise KernelRefused(words, error.strerror or "", errno=error.errno or 0) from error
    length, kind = unpack_from("=IH", answer)
    if kind != _NEWROUTE:
        return 0, 0
    link = dict(attributes(answer[28:length])).get(4)  # RTA_OIF
    return answer[23], unpack_from("=I", link)[0] if link else 0


def _asked(message: bytes) -> bytes:
    """The answer of rtnetlink. Raises: OSError."""
    from _socket import SOCK_CLOEXEC, SOCK_RAW, socket

    netlink = socket(16, SOCK_RAW | SOCK_CLOEXEC, 0)  # AF_NETLINK, NETLINK_ROUTE
    try:
        netlink.send(message)
        return netlink.recv(8192)
    finally:
        netlink.close()
