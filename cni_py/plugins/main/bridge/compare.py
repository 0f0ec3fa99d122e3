"""CHECK of bridge: everything that ADD set against the actual state (CNI spec section 2, "CHECK").

It is not called check.py: the submodule would hide the function ``check`` of the package.
"""

from __future__ import annotations

from cni_py.attachment import check as attached
from cni_py.attachment import delegate, record
from cni_py.attachment.check import expect, state
from cni_py.errors import CheckFailed
from cni_py.kernel.link import find_link
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call


def check(call: Call, prev_result: Mapping[str, Any] | None, wanted: Plan) -> None:
    """Raises: CheckFailed at the first difference, with what was expected and what was found."""
    prev = attached.parse_prev_result(prev_result)
    if wanted.ipam:
        delegate.check(call, wanted.ipam, call.conf, wanted.delegate_mode)
    with open_host() as host, open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        bridge = check_bridge(host, wanted)
        end = attached.check_sandbox_end(sandbox, prev, call, "veth", wanted.is_up)
        port = attached.find_host_end(host, end, prev)
        check_port(port, bridge, wanted)
        attached.check_host_end(port, prev)
        ips = attached.expected_addresses(prev, call) if wanted.ipam else []
        if wanted.ipam:
            attached.check_addresses(sandbox, end, ips)
            attached.check_routes(sandbox, end, prev, has_tables=at_least(call.cni_version, "1.1.0"))
        if wanted.is_gateway:
            attached.check_gateways(host, gateway_link(host, bridge, wanted), ips)
    if wanted.checks_mac:
        from cni_py.packetfilter import macspoof

        macspoof.check(record.owner_of(call), port.name, end.mac)
    if wanted.masquerades and ips:
        from cni_py.packetfilter import masquerade

        addresses = [ip.address for ip in ips]
        masquerade.check(record.owner_of(call), addresses, wanted.masquerade_backend, wanted.masquerade_exclude)


def check_bridge(host: Rtnl, wanted: Plan) -> Link:
    """Returns: the bridge. Raises: CheckFailed."""
    bridge = find_link(host, wanted.bridge)
    if bridge is None:
        raise CheckFailed(
            f'the bridge "{wanted.bridge}" is missing', "expected a bridge, found no such link", attached.RECREATE
        )
    expect(f'kind of "{bridge.name}"', "bridge", bridge.kind)
    expect(f'state of "{bridge.name}"', "up", state(bridge), f"ip link set {bridge.name} up")
    if wanted.is_promiscuous:
        expect(f'promiscuous mode of "{bridge.name}"', True, bridge.is_promiscuous)
    return bridge


def check_port(port: Link, bridge: Link, wanted: Plan) -> None:
    """Raises: CheckFailed."""
    expect(f'bridge of "{port.name}"', bridge.ifindex, port.master, f"ip link set {port.name} master {bridge.name}")
    expect(f'state of "{port.name}"', "up", state(port), f"ip link set {port.name} up")
    expect(f'hairpin mode of "{port.name}"', wanted.is_hairpin, port.hairpin)
    expect(f'isolation of "{port.name}"', wanted.is_isolated, port.isolated)


def gateway_link(host: Rtnl, bridge: Link, wanted: Plan) -> Link:
    """The link that has the gateways' addresses."""
    return (find_link(host, f"{bridge.name}.{wanted.vlan}") or bridge) if wanted.vlan else bridge
