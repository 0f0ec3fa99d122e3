"""CHECK of bridge: everything that ADD set against the actual state (CNI spec section 2, "CHECK").

It is not called check.py: the submodule would hide the function ``check`` of the package.
"""

from __future__ import annotations

from cni_py.attachment import check as attached
from cni_py.attachment import delegate, gateway, record
from cni_py.attachment.check import expect, state
from cni_py.errors import CheckFailed
from cni_py.kernel.link import find_link, list_vlans
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.plugins.main.bridge.plan import DEFAULT_VLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call


def check(call: Call, config: BridgeConfig, wanted: Plan) -> None:
    """Raises: CheckFailed at the first difference, with what was expected and what was found."""
    prev = attached.parse_prev_result(config.prev_result)
    delegate.check_leased(call, config)
    with open_host() as host, open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        bridge = check_bridge(host, wanted)
        end = attached.check_sandbox_end(sandbox, prev, call, "veth", wanted.is_up)
        port = attached.find_host_end(host, end, prev)
        check_port(port, bridge, wanted)
        attached.check_host_end(port, prev)
        if wanted.uses_vlans:
            check_vlans(host, bridge, port, wanted)
        ips = attached.expected_addresses(prev, call) if wanted.ipam else []
        if wanted.ipam:
            attached.check_configured(sandbox, end, prev, call)
        if wanted.is_gateway:
            gateways = [gateway.address_for(ip) for ip in ips]
            attached.check_addresses(host, gateway_link(host, bridge, wanted), gateways, "gateway address")
            attached.check_forwarding(gateways)
    if wanted.checks_mac:
        from cni_py.packetfilter import macspoof

        macspoof.check(record.owner_of(call), port.name, end.mac)
    gateway.check_masquerade(call, ips, wanted.masquerade)


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


def check_vlans(host: Rtnl, bridge: Link, port: Link, wanted: Plan) -> None:
    """Check the VLANs of the port, and of the port of the VLAN's gateway. Others may have added more. Raises: CheckFailed."""
    hint = f"ip link set {bridge.name} type bridge vlan_filtering 1"
    expect(f'VLAN filtering of "{bridge.name}"', True, bridge.vlan_filtering, hint)
    check_port_vlans(host, port, wanted.port_vlans, wanted.keeps_default_vlan)
    inner = find_link(host, f"{bridge.name}.{wanted.vlan}") if wanted.vlan and wanted.is_gateway else None
    if inner and (peer := find_link(host, inner.peer)):
        check_port_vlans(host, peer, {wanted.vlan: True}, wanted.keeps_default_vlan)


def check_port_vlans(host: Rtnl, port: Link, expected: Mapping[int, bool], keeps_default: bool) -> None:
    """Raises: CheckFailed."""
    found = list_vlans(host, port)
    for vlan, is_native in expected.items():
        hint = f"bridge vlan add dev {port.name} vid {vlan}{' pvid untagged' if is_native else ''}"
        expect(f'VLAN {vlan} of "{port.name}"', vlan_state(is_native), vlan_state(found.get(vlan)), hint)
    if DEFAULT_VLAN in found and DEFAULT_VLAN not in expected and not keeps_default:
        hint = f"bridge vlan del dev {port.name} vid {DEFAULT_VLAN}"
        expect(f'VLAN {DEFAULT_VLAN} of "{port.name}"', vlan_state(None), vlan_state(found[DEFAULT_VLAN]), hint)


def vlan_state(is_native: bool | None) -> str:
    return "absent" if is_native is None else "untagged" if is_native else "tagged"


def gateway_link(host: Rtnl, bridge: Link, wanted: Plan) -> Link:
    """The link that has the gateways' addresses."""
    return (find_link(host, f"{bridge.name}.{wanted.vlan}") or bridge) if wanted.vlan else bridge
