"""CHECK of bridge: everything that ADD set, compared with what is there (CNI spec section 2, "CHECK").

Where ``prevResult`` speaks, it says what is expected: a later plugin of the chain may have changed
the MAC address, the MTU or the routes. What it cannot say comes from the configuration.
"""

from __future__ import annotations

from ipaddress import ip_interface

from cni_py.attachment import delegate
from cni_py.attachment.packet_filter import macspoof, masquerade, owner_of
from cni_py.errors import CheckFailed
from cni_py.kernel import sysctl
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link, list_links
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import list_routes_over
from cni_py.netlink.socket import open_host
from cni_py.plugins.main.bridge import plan
from cni_py.spec.result import from_json
from cni_py.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.link import Link
    from cni_py.kernel.route import Route
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call
    from cni_py.spec.result import Interface, IPConfig, Result


def check(call: Call, config: BridgeConfig, wanted: Plan) -> None:
    """Raises: CheckFailed at the first difference, with what was expected and what was found."""
    if config.prev_result is None:
        raise CheckFailed("Required prevResult missing", "expected the result of ADD, found none")
    prev = from_json(config.prev_result)
    if config.ipam.type:
        delegate.check(call, config.ipam.type, call.conf, config.delegate_mode)
    with open_host() as host, open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        bridge = check_bridge(host, config)
        end = check_sandbox_end(sandbox, prev, call, config)
        port = check_port(host, bridge, end, prev, config)
        ips = addresses_of(prev, call) if config.ipam.type else []
        if config.ipam.type:
            check_addresses(sandbox, end, ips)
            check_routes(sandbox, end, prev, at_least(call.cni_version, "1.1.0"))
        if wanted.is_gateway:
            check_gateway(host, bridge, ips, config)
    if config.macspoofchk:
        macspoof().check(owner_of(call), port.name, end.mac)
    if config.ip_masq and ips:
        masquerade().check(owner_of(call), [ip.address for ip in ips], config.ip_masq_backend, wanted.spared)


def check_bridge(host: Rtnl, config: BridgeConfig) -> Link:
    bridge = find_link(host, config.bridge)
    if bridge is None:
        raise CheckFailed(
            f'the bridge "{config.bridge}" is missing', "expected a bridge, found no such link", "the pod must be made again"
        )
    expect(f'kind of "{bridge.name}"', "bridge", bridge.kind)
    expect(f'state of "{bridge.name}"', "up", up(bridge), f"ip link set {bridge.name} up")
    if config.promisc_mode:
        expect(f'promiscuous mode of "{bridge.name}"', True, bridge.is_promiscuous)
    return bridge


def check_sandbox_end(sandbox: Rtnl, prev: Result, call: Call, config: BridgeConfig) -> Link:
    said = interface_of(prev, call)
    end = find_link(sandbox, call.ifname)
    if end is None:
        raise CheckFailed(
            f'the interface "{call.ifname}" is missing in "{call.netns}"',
            "expected a veth, found no such link",
            "the pod must be made again",
        )
    expect(f'kind of "{end.name}" in the sandbox', "veth", end.kind)
    if not config.disable_container_interface:
        expect(f'state of "{end.name}" in the sandbox', "up", up(end))
    check_as_said(end, said)
    return end


def check_port(host: Rtnl, bridge: Link, end: Link, prev: Result, config: BridgeConfig) -> Link:
    """The host end: the peer of the sandbox's end, wherever it is and whatever its name is now."""
    names = {interface.name: interface for interface in prev.interfaces if not interface.sandbox}
    candidates = (link for name in names if name != bridge.name and (link := find_link(host, name)) is not None)
    port = next((link for link in candidates if link.ifindex == end.peer), None)
    if port is None:
        port = next((link for link in list_links(host) if link.ifindex == end.peer and link.kind == "veth"), None)
    if port is None:
        raise CheckFailed(
            f'the host end of "{end.name}" is missing',
            f"expected a link with ifindex {end.peer}, found none",
            "the pod must be made again",
        )
    expect(f'bridge of "{port.name}"', bridge.ifindex, port.master, f"ip link set {port.name} master {bridge.name}")
    expect(f'state of "{port.name}"', "up", up(port), f"ip link set {port.name} up")
    expect(f'hairpin mode of "{port.name}"', config.hairpin_mode, port.hairpin)
    expect(f'isolation of "{port.name}"', config.port_isolation, port.isolated)
    if port.name in names:
        check_as_said(port, names[port.name])
    return port


def check_as_said(link: Link, said: Interface) -> None:
    """MAC address and MTU as the result has them; before 1.1.0 it says no MTU."""
    if said.mac:
        expect(f'MAC address of "{link.name}"', said.mac.lower(), link.mac)
    if said.mtu:
        expect(f'MTU of "{link.name}"', said.mtu, link.mtu)


def check_addresses(sandbox: Rtnl, end: Link, ips: list[IPConfig]) -> None:
    have = list_addresses(sandbox, end)
    for ip in ips:
        if ip.address not in have:
            found = ", ".join(map(str, have)) or "none"
            raise CheckFailed(f'the address {ip.address} is missing on "{end.name}"', f"expected {ip.address}, found {found}")


def check_routes(sandbox: Rtnl, end: Link, prev: Result, says_tables: bool) -> None:
    """Every route of the result. Before 1.1.0 it does not say in which table a route is: any will do."""
    have = list_routes_over(sandbox, end)
    for route in plan.wanted_routes(prev):
        same = [r for r in have if r.dst == route.dst and (r.table == route.table or not says_tables)]
        if not any(is_as_said(r, route) for r in same):
            words = " ".join(route.words())
            found = "; ".join(" ".join(r.words()) for r in same) or "none to there"
            raise CheckFailed(f'the route {words} over "{end.name}" is missing', f"expected {words}, found {found}")


def is_as_said(found: Route, said: Route) -> bool:
    """Whether the kernel's route has the gateway, and all else that the result says of it."""
    names = [name for name in ("metric", "mtu", "advmss") if getattr(said, name)]
    if said.scope and said.dst.version == 4:  # IPv6 routes have no scope
        names.append("scope")
    return found.gateway == said.gateway and all(getattr(found, name) == getattr(said, name) for name in names)


def check_gateway(host: Rtnl, bridge: Link, ips: list[IPConfig], config: BridgeConfig) -> None:
    link = (find_link(host, f"{bridge.name}.{config.vlan}") or bridge) if config.vlan else bridge
    have = list_addresses(host, link)
    for ip in ips:
        gateway = ip_interface(f"{ip.gateway or plan.first_address(ip.address)}/{ip.address.network.prefixlen}")
        if gateway not in have:
            hint = f"ip addr add {gateway} dev {link.name}"
            found = ", ".join(map(str, have)) or "none"
            raise CheckFailed(
                f'the gateway address {gateway} is missing on "{link.name}"', f"expected {gateway}, found {found}", hint
            )
        name = "net/ipv4/ip_forward" if gateway.version == 4 else "net/ipv6/conf/all/forwarding"
        expect(name, "1", sysctl.read(name), f"sysctl -w {name}=1")


def interface_of(prev: Result, call: Call) -> Interface:
    """The sandbox's interface in the result of ADD. Raises: CheckFailed."""
    for interface in prev.interfaces:
        if interface.name == call.ifname and interface.sandbox:
            return interface
    names = ", ".join(interface.name for interface in prev.interfaces)
    raise CheckFailed(
        f'prevResult has no interface "{call.ifname}" in a sandbox', f'expected "{call.ifname}", found {names or "none"}'
    )


def addresses_of(prev: Result, call: Call) -> list[IPConfig]:
    """The addresses of our interface: a later plugin may have added others."""
    ours = prev.interfaces.index(interface_of(prev, call))
    return [ip for ip in prev.ips if ip.interface in (None, ours)]


def up(link: Link) -> str:
    return "up" if link.is_up else "down"


def expect(what: str, expected: object, found: object, hint: str = "") -> None:
    if expected != found:
        raise CheckFailed(f"{what} is not what ADD left", f"expected {expected}, found {found}", hint)
