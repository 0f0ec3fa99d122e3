"""The interface of an attachment in its sandbox: parameters, addresses, up, routes, and its deletion.

Owns: CNI_IFNAME in the sandbox, with its addresses and routes. Source: containernetworking/plugins
pkg/ipam/ipam_linux.go, ConfigureIface().
"""

from __future__ import annotations

from cni_py.errors import InvalidConfig, SandboxGone
from cni_py.kernel import sysctl
from cni_py.kernel.address import add_address
from cni_py.kernel.deletion import delete_in_background
from cni_py.kernel.link import find_link, set_up
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import Route, add_route
from cni_py.netlink.constants import RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTPROT_BOOT
from cni_py.netlink.socket import question
from cni_py.spec.result import Interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cni_py.kernel.address import Address
    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result
    from cni_py.spec.result import Route as ResultRoute

Parameter = tuple[str, str, str]
"""IP version ("ipv4", "ipv6"), name and value of a parameter of an interface."""
_HEX = frozenset("0123456789abcdef")


# ---- ADD --------------------------------------------------------------------------------------


def open_with(netns: NetNS, ifname: str, parameters: Sequence[Parameter]) -> Rtnl:
    """Open a netlink socket in the sandbox and set parameters of the interface on the way. Raises: KernelRefused.

    /proc/sys/net is that of the thread which opens it, so the thread that enters to open the socket does both.
    """
    return open_in(netns, lambda: _prefer(netns, ifname, parameters))


def set_parameters(netns: NetNS, ifname: str, parameters: Sequence[Parameter]) -> None:
    """Set parameters of the interface, as far as the kernel has them. Raises: KernelRefused."""
    if parameters:
        with question(*netns.enter, "sysctl", "net"):
            netns.run(lambda: _prefer(netns, ifname, parameters))


def _prefer(netns: NetNS, ifname: str, parameters: Sequence[Parameter]) -> None:
    for ip, name, value in parameters:
        sysctl.prefer(f"net/{ip}/conf/{ifname}/{name}", value, netns.enter)


def configure(netns: NetNS, sandbox: Rtnl, end: Link, result: Result, detect_duplicates: bool = False) -> None:
    """Add the result's addresses, set the interface up, add the routes. Raises: KernelRefused.

    Args:
        detect_duplicates: leave IPv6 addresses tentative until the kernel has asked for them.
    """
    if any(ip.address.version == 6 for ip in result.ips):
        with question(*netns.enter, "sysctl", "net"):
            netns.run(lambda: _enable_ipv6(netns, end.name))
    for ip in result.ips:
        add_address(sandbox, end, ip.address, detect_duplicates)
    set_up(sandbox, end)
    for route in wanted_routes(result):
        add_route(sandbox, end, route)


def _enable_ipv6(netns: NetNS, ifname: str) -> None:
    _prefer(netns, "lo", [("ipv6", "disable_ipv6", "0")])
    _prefer(netns, ifname, [("ipv6", "disable_ipv6", "0"), ("ipv6", "keep_addr_on_down", "1")])


def wanted_routes(result: Result) -> list[Route]:
    """The result's routes as the kernel takes them: without ``gw``, by the family's first gateway. Pure.

    A route of scope link or host has no gateway: the kernel refuses one.
    """
    gateways: dict[int, Address] = {}
    for ip in result.ips:
        if ip.gateway is not None:
            gateways.setdefault(ip.gateway.version, ip.gateway)
    return [
        Route(
            dst=route.dst.network,
            gateway=(None if route.gw.is_unspecified else route.gw)
            if route.gw
            else (gateways.get(route.dst.version) if (route.scope or 0) < RT_SCOPE_LINK else None),
            protocol=RTPROT_BOOT,
            table=route.table or RT_TABLE_MAIN,
            scope=route.scope or RT_SCOPE_UNIVERSE,
            metric=route.priority or 0,
            mtu=route.mtu or 0,
            advmss=route.advmss or 0,
        )
        for route in result.routes
    ]


def _gateway_of(route: ResultRoute, gateways: Mapping[int, Address]) -> Address | None:
    if route.gw is not None:
        return None if route.gw.is_unspecified else route.gw  # 0.0.0.0: on the link, as DHCP has it
    return gateways.get(route.dst.version) if (route.scope or 0) < RT_SCOPE_LINK else None


def parse_mac(text: str) -> str:
    """A MAC address in the kernel's form, "" for "". Pure. Raises: InvalidConfig."""
    mac = text.lower().replace("-", ":")
    if mac and (len(parts := mac.split(":")) != 6 or not all(len(part) == 2 and _HEX.issuperset(part) for part in parts)):
        raise InvalidConfig(f'"{text[:40]}" is not a MAC address', hint='six hex pairs: "c2:11:22:33:44:55"')
    return mac


def described(link: Link, sandbox: str = "") -> Interface:
    """The link as a result names it. Pure."""
    return Interface(link.name, link.mac, link.mtu, sandbox)


# ---- DEL --------------------------------------------------------------------------------------


def delete(call: Call, is_ours: Callable[[Link], bool] = lambda _: True) -> bool:
    """Delete CNI_IFNAME in the sandbox. Absence of either is success. Raises: KernelRefused, InvalidNetNS.

    Returns: whether there was one to delete.
    """
    if not call.netns:
        return False

    def end_of(sandbox: Rtnl) -> Link | None:
        end = find_link(sandbox, call.ifname)
        return end if end is not None and is_ours(end) else None

    try:
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns:
            return delete_in_background(netns, end_of)
    except SandboxGone:
        return False
