"""CHECK of what every main plugin makes: the sandbox's interface, its addresses and routes, the host end of a veth.

``prevResult`` names what is expected, as far as it goes: a later plugin of the chain may have changed the MAC address,
the MTU or the routes. Everything else comes from the configuration, and is the plugin's. Source: CNI spec section 2.
"""

from __future__ import annotations

from cni_py.attachment import delegate, gateway
from cni_py.attachment.interface import wanted_routes
from cni_py.errors import CheckFailed
from cni_py.kernel import sysctl
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link, list_links
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import list_routes_over
from cni_py.netlink.socket import open_host
from cni_py.spec.result import from_json
from cni_py.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Any

    from cni_py.config.models import MainConfig, MasterConfig
    from cni_py.kernel.address import AddressWithPrefix
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


class Opened:
    """``with Opened(call, config) as opened:`` — run CHECK of the IPAM plugin, then open the host and the sandbox.

    Raises: CheckFailed without a previous result; CniError.
    """

    def __init__(self, call: Call, config: MainConfig) -> None:
        self.prev = parse_prev_result(config.prev_result)
        delegate.check_leased(call, config)
        self._call = call

    def __enter__(self) -> Opened:
        call = self._call
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns:
            self.sandbox = open_in(netns)
        self.host = open_host()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.host.close()
        self.sandbox.close()


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
    """Check that CNI_IFNAME exists and is of this kind ("": of any), up, and as in ``prevResult``.

    Returns: it. Raises: CheckFailed.
    """
    expected = expected_from_prev_result(prev, call)
    end = find_link(sandbox, call.ifname)
    if end is None:
        raise CheckFailed(
            f'the interface "{call.ifname}" is missing in "{call.netns}"',
            f"expected a {kind or 'link'}, found no such link",
            RECREATE,
        )
    expect(f'kind of "{end.name}" in the sandbox', kind or end.kind, end.kind)
    if is_up:
        expect(f'state of "{end.name}" in the sandbox', "up", state(end))
    check_link(end, expected)
    return end


def check_master(opened: Opened, end: Link, config: MasterConfig) -> None:
    """Check the link below, if the configuration names it: the default route may lead elsewhere now. Raises: CheckFailed."""
    if config.master:
        from cni_py.attachment import master

        below = master.find(opened.sandbox if config.link_in_container else opened.host, config.master)
        expect(f'number of the link below "{end.name}", "{below.name}"', below.ifindex, end.peer)


def check_choice(end: Link, what: str, names: Mapping[str, int], expected: int, found: int | None) -> None:
    """Check one of several values by its name. Raises: CheckFailed."""
    words = {number: name for name, number in names.items()}
    expect(f'{what} of "{end.name}"', words[expected], words.get(found, found) if found is not None else None)


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


def check_host_end(port: Link, prev: Result) -> None:
    """Check its MAC address and MTU, if it still has its name. Raises: CheckFailed."""
    for interface in prev.interfaces:
        if interface.name == port.name and not interface.sandbox:
            check_link(port, interface)


def check_link(link: Link, expected: Interface) -> None:
    """Check MAC address and MTU, as far as they are known: results before 1.1.0 have no MTU. Raises: CheckFailed."""
    if expected.mac:
        expect(f'MAC address of "{link.name}"', expected.mac.lower(), link.mac)
    if expected.mtu:
        expect(f'MTU of "{link.name}"', expected.mtu, link.mtu)


def check_configured(sandbox: Rtnl, end: Link, prev: Result, call: Call) -> None:
    """Check the interface's addresses and routes. Raises: CheckFailed."""
    check_addresses(sandbox, end, [ip.address for ip in expected_addresses(prev, call)])
    # before 1.1.0 a result does not name the tables of its routes
    check_routes(sandbox, end, wanted_routes(prev), in_any_table=not at_least(call.cni_version, "1.1.0"))


def check_addresses(rtnl: Rtnl, link: Link, addresses: Iterable[AddressWithPrefix], what: str = "address") -> None:
    """Raises: CheckFailed."""
    have = list_addresses(rtnl, link)
    for address in addresses:
        if address not in have:
            found = ", ".join(map(str, have)) or "none"
            command = " ".join((*rtnl.enter, f"ip addr add {address} dev {link.name}"))
            raise CheckFailed(
                f'the {what} {address} is missing on "{link.name}"', f"expected {address}, found {found}", command
            )


def check_routes(rtnl: Rtnl, link: Link, routes: Iterable[Route], in_any_table: bool = False) -> None:
    """Raises: CheckFailed."""
    have = list_routes_over(rtnl, link)
    for route in routes:
        same = [r for r in have if r.dst == route.dst and (r.table == route.table or in_any_table)]
        if not any(_matches(r, route) for r in same):
            words = " ".join(route.words("priority"))
            found = "; ".join(" ".join(r.words("priority")) for r in same) or "none to there"
            command = " ".join((*rtnl.enter, f"ip route add {words} dev {link.name}"))
            raise CheckFailed(f'the route {words} over "{link.name}" is missing', f"expected {words}, found {found}", command)


def _matches(found: Route, expected: Route) -> bool:
    """Return whether the kernel's route has the gateway, and everything else that is expected of it."""
    names = [name for name in ("metric", "mtu", "advmss", "source") if getattr(expected, name)]
    if expected.scope and expected.dst.version == 4:  # IPv6 routes have no scope
        names.append("scope")
    return found.gateway == expected.gateway and all(getattr(found, name) == getattr(expected, name) for name in names)


def check_forwarding(addresses: Iterable[AddressWithPrefix]) -> None:
    """Check that the host forwards packets of these IP versions. Raises: CheckFailed."""
    for version in sorted({address.version for address in addresses}):
        name = gateway.FORWARDING[version]
        expect(name, "1", sysctl.read(name), f"sysctl -w {name}=1")
