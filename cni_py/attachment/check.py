"""CHECK of what every main plugin makes: the sandbox's interface, its addresses and routes, the host end of a veth.

``prevResult`` names what is expected, as far as it goes: a later plugin of the chain may have changed the MAC address,
the MTU or the routes. Everything else comes from the configuration, and is the plugin's. Source: CNI spec section 2.
"""

from __future__ import annotations

from cni_py.attachment import gateway
from cni_py.attachment.interface import wanted_routes
from cni_py.errors import CheckFailed
from cni_py.kernel import sysctl
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link, list_links
from cni_py.kernel.route import list_routes_over
from cni_py.spec.result import from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.kernel.route import Route
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Interface, IPConfig, Result

RECREATE = "delete the pod and create it again"


# ---- prevResult -------------------------------------------------------------------------------


def parse_prev_result(raw: Mapping[str, Any] | None) -> Result:
    """Raises: CheckFailed if the runtime sent none; DecodingFailure, IncompatibleVersion."""
    if raw is None:
        raise CheckFailed("Required prevResult missing", "expected the result of ADD, found none")
    return from_json(raw)


def expected_from_prev_result(prev: Result, call: Call) -> Interface:
    """The sandbox's interface in the result of ADD. Raises: CheckFailed."""
    for interface in prev.interfaces:
        if interface.name == call.ifname and interface.sandbox:
            return interface
    names = ", ".join(interface.name for interface in prev.interfaces)
    raise CheckFailed(
        f'prevResult has no interface "{call.ifname}" in a sandbox', f'expected "{call.ifname}", found {names or "none"}'
    )


def expected_addresses(prev: Result, call: Call) -> list[IPConfig]:
    """The addresses of the sandbox's interface: a later plugin may have added others. Raises: CheckFailed."""
    ours = prev.interfaces.index(expected_from_prev_result(prev, call))
    return [ip for ip in prev.ips if ip.interface in (None, ours)]


# ---- the kernel against it --------------------------------------------------------------------


def expect(subject: str, expected: object, found: object, hint: str = "") -> None:
    """Raises: CheckFailed if the two differ."""
    if expected != found:
        raise CheckFailed(f"{subject} is not what ADD left", f"expected {expected}, found {found}", hint)


def state(link: Link) -> str:
    """Returns: "up" or "down"."""
    return "up" if link.is_up else "down"


def check_sandbox_end(sandbox: Rtnl, prev: Result, call: Call, kind: str, is_up: bool = True) -> Link:
    """Check that CNI_IFNAME exists and is of this kind, up, and as in ``prevResult``. Returns: it. Raises: CheckFailed."""
    expected = expected_from_prev_result(prev, call)
    end = find_link(sandbox, call.ifname)
    if end is None:
        raise CheckFailed(
            f'the interface "{call.ifname}" is missing in "{call.netns}"', f"expected a {kind}, found no such link", RECREATE
        )
    expect(f'kind of "{end.name}" in the sandbox', kind, end.kind)
    if is_up:
        expect(f'state of "{end.name}" in the sandbox', "up", state(end))
    check_link(end, expected)
    return end


def find_host_end(host: Rtnl, end: Link, prev: Result) -> Link:
    """The peer of the sandbox's end, wherever it is plugged in and whatever its name is now. Raises: CheckFailed."""
    named = (find_link(host, interface.name) for interface in prev.interfaces if not interface.sandbox)
    port = next((link for link in named if link is not None and link.ifindex == end.peer), None)
    if port is None:
        port = next((link for link in list_links(host) if link.ifindex == end.peer and link.kind == "veth"), None)
    if port is None:
        raise CheckFailed(
            f'the host end of "{end.name}" is missing', f"expected a link with ifindex {end.peer}, found none", RECREATE
        )
    return port


def check_link(link: Link, expected: Interface) -> None:
    """Check MAC address and MTU, as far as they are known: results before 1.1.0 have no MTU. Raises: CheckFailed."""
    if expected.mac:
        expect(f'MAC address of "{link.name}"', expected.mac.lower(), link.mac)
    if expected.mtu:
        expect(f'MTU of "{link.name}"', expected.mtu, link.mtu)


def check_addresses(sandbox: Rtnl, end: Link, ips: list[IPConfig]) -> None:
    """Raises: CheckFailed."""
    have = list_addresses(sandbox, end)
    for ip in ips:
        if ip.address not in have:
            found = ", ".join(map(str, have)) or "none"
            raise CheckFailed(f'the address {ip.address} is missing on "{end.name}"', f"expected {ip.address}, found {found}")


def check_routes(sandbox: Rtnl, end: Link, prev: Result, has_tables: bool) -> None:
    """Check every route of the result. Raises: CheckFailed.

    Args:
        has_tables: the result names the tables of its routes, from 1.1.0 on; else a route may be in any.
    """
    have = list_routes_over(sandbox, end)
    for route in wanted_routes(prev):
        same = [r for r in have if r.dst == route.dst and (r.table == route.table or not has_tables)]
        if not any(_matches(r, route) for r in same):
            words = " ".join(route.words("priority"))
            found = "; ".join(" ".join(r.words("priority")) for r in same) or "none to there"
            raise CheckFailed(f'the route {words} over "{end.name}" is missing', f"expected {words}, found {found}")


def _matches(found: Route, expected: Route) -> bool:
    """Return whether the kernel's route has the gateway, and everything else that the result gives of it."""
    names = [name for name in ("metric", "mtu", "advmss") if getattr(expected, name)]
    if expected.scope and expected.dst.version == 4:  # IPv6 routes have no scope
        names.append("scope")
    return found.gateway == expected.gateway and all(getattr(found, name) == getattr(expected, name) for name in names)


def check_gateways(host: Rtnl, link: Link, ips: list[IPConfig]) -> None:
    """Check that the link has the gateways of these addresses, and that the host forwards. Raises: CheckFailed."""
    have = list_addresses(host, link)
    for ip in ips:
        address = gateway.address_for(ip)
        if address not in have:
            found = ", ".join(map(str, have)) or "none"
            raise CheckFailed(
                f'the gateway address {address} is missing on "{link.name}"',
                f"expected {address}, found {found}",
                f"ip addr add {address} dev {link.name}",
            )
        name = gateway.FORWARDING[address.version]
        expect(name, "1", sysctl.read(name), f"sysctl -w {name}=1")
