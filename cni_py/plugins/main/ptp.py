"""ptp: a veth between the sandbox and the host, no bridge; the host end has the gateway's address, a route leads to each pod.

Owns: the veth with its addresses and routes, the leased addresses, the masquerade rules. Shared and never deleted: forwarding.

How it works. The pod's address has the prefix of the whole subnet, but no other pod is on this link. So the kernel's route to
the subnet gives way to two: one to the gateway on the link, one to the subnet through the gateway.

Source: containernetworking/plugins plugins/main/ptp/ptp.go.
"""

from __future__ import annotations

from ipaddress import ip_interface

from cni_py.attachment import delegate, gateway, interface, record, veth
from cni_py.errors import InvalidConfig
from cni_py.kernel.link import get_link, set_up
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import Route, delete_connected_route, put_route
from cni_py.netlink.constants import RT_SCOPE_HOST, RTPROT_BOOT
from cni_py.netlink.socket import open_host
from cni_py.spec.result import dns_from_config
from cni_py.undo import Attempts, Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.config.models import PtpConfig
    from cni_py.kernel.address import Address, AddressWithPrefix
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import IPConfig, Result

    Ends = list[tuple[AddressWithPrefix, Address]]
    """The pod's addresses, each with its gateway."""

CONFIG = "PtpConfig"
SANDBOX_INTERFACE = 1
"""Index in a result's interfaces: host end, sandbox end."""


def add(call: Call, config: PtpConfig) -> Result:
    """Connect the sandbox with the host. Spec section 2, ADD; order as in the Go plugin."""
    masquerade = gateway.masquerade_of(config)
    with open_host() as host, Undo() as undo:
        # Go-compatible: the address first, also for a sandbox that does not exist (ptp.go, cmdAdd)
        result = delegate.lease(undo, call, config, SANDBOX_INTERFACE)
        ends = with_gateways(result.ips)
        gateway.enable_forwarding(address for address, _ in ends)
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns:
            port = veth.create(undo, host, netns, call, mtu=config.mtu)
            set_up(host, port)
            with open_in(netns) as sandbox:
                interface.configure(netns, sandbox, get_link(sandbox, call.ifname), result)
                end = get_link(sandbox, call.ifname)
                route_through_gateway(sandbox, end, ends)
        gateway.add_addresses(host, port, gateway_addresses(ends))
        for route in pod_routes(ends):
            put_route(host, port, route)
        gateway.masquerade(undo, call, result, masquerade)
        if rules := gateway.rules_of(result, masquerade):
            record.amend(call, **rules)
        dns = dns_from_config(config.dns)
        interfaces = interface.described(get_link(host, port.name)), interface.described(end, call.netns)
        return result.replace(interfaces=interfaces, dns=dns if dns.as_json() else result.dns)


def delete(call: Call, config: PtpConfig) -> None:
    """Delete everything that ADD may have made; absence is success. The kernel frees the veth while the rest is deleted."""
    attempts = Attempts()
    delegate.release_from_link(attempts, call, config)
    with attempts.attempt("the veth"):
        veth.delete(call)
    gateway.delete_masquerade(attempts, call, config)
    delegate.release(attempts, call, config)
    attempts.raise_if_failed("DEL")


def check(call: Call, config: PtpConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    masquerade = gateway.masquerade_of(config)
    with attached.Opened(call, config) as opened:
        end = opened.check_end("veth")
        opened.check_configured(end)
        ips = attached.expected_addresses(opened.prev, call)
        ends = with_gateways(ips)
        attached.check_routes(opened.found, opened.sandbox, end, sandbox_routes(ends))
        port = attached.find_host_end(opened.host, end, opened.prev)
        attached.check_host_end(opened.found, opened.host, port, opened.prev)
        opened.found.expect(f'state of "{port.name}"', "up", attached.state(port), f"ip link set {port.name} up")
        attached.check_addresses(opened.found, opened.host, port, gateway_addresses(ends), "gateway address")
        attached.check_routes(opened.found, opened.host, port, pod_routes(ends))
        attached.check_forwarding(opened.found, [address for address, _ in ends])
        gateway.check_masquerade(call, ips, masquerade)


def status(call: Call, config: PtpConfig) -> None:
    """Check that the configuration can work and that the IPAM plugin is ready."""
    gateway.masquerade_of(config)
    delegate.check_ready(call, config)


def gc(call: Call, config: PtpConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    is_stale = record.stale_test(call)
    attempts = Attempts()
    delegate.release_stale_from_links(attempts, call, config)
    with attempts.attempt("veths"):
        veth.delete_stale(call.network, is_stale)
    gateway.delete_stale_masquerade(attempts, call, is_stale)
    delegate.release_stale(attempts, call, config)
    attempts.raise_if_failed("GC")


# ---- addresses and routes, pure ---------------------------------------------------------------


def with_gateways(ips: Iterable[IPConfig]) -> Ends:
    """Raises: InvalidConfig for an address without gateway: there is nothing to point the pod's routes to."""
    ends = []
    for ip in ips:
        if ip.gateway is None:
            raise InvalidConfig(
                f"the address {ip.address} has no gateway",
                "the pod's routes lead through it",
                'set "gateway" of the address or the range in "ipam"',
            )
        ends.append((ip.address, ip.gateway))
    return ends


def whole(address: Address) -> AddressWithPrefix:
    """The address with a prefix of its whole length."""
    return ip_interface(address)


def gateway_addresses(ends: Ends) -> list[AddressWithPrefix]:
    """The addresses of the host end, each once."""
    return list(dict.fromkeys(whole(of) for _, of in ends))


def sandbox_routes(ends: Ends) -> list[Route]:
    """Routes of the pod: to each gateway on the link, and to each subnet through it, from the first address."""
    to_gateways: dict[Address, Route] = {}
    to_subnets: dict[object, Route] = {}
    for address, of in ends:
        to_gateways.setdefault(of, Route(whole(of).network, protocol=RTPROT_BOOT, source=address.ip))
        to_subnets.setdefault(address.network, Route(address.network, gateway=of, protocol=RTPROT_BOOT, source=address.ip))
    return [*to_gateways.values(), *to_subnets.values()]


def pod_routes(ends: Ends) -> list[Route]:
    """Routes of the host: to each address of the pod."""
    return [Route(whole(address.ip).network, protocol=RTPROT_BOOT, scope=RT_SCOPE_HOST) for address, _ in ends]


# ---- the sandbox ------------------------------------------------------------------------------


def route_through_gateway(sandbox: Rtnl, end: Link, ends: Ends) -> None:
    """Replace the kernel's routes to the subnets by those through the gateway. Raises: KernelRefused."""
    for network in dict.fromkeys(address.network for address, _ in ends):
        delete_connected_route(sandbox, end, network)
    for route in sandbox_routes(ends):
        put_route(sandbox, end, route)  # the IPAM plugin may have named one to the subnet
