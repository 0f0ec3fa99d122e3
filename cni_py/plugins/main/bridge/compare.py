"""CHECK of bridge: everything that ADD set against the actual state (CNI spec section 2, "CHECK").

It is not called check.py: the submodule would hide the function ``check`` of the package.
"""

from __future__ import annotations

from cni_py.attachment import check as attached
from cni_py.attachment import delegate, record
from cni_py.attachment.check import expect, state
from cni_py.errors import CheckFailed
from cni_py.kernel.link import find_link, list_links, list_vlans
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.plugins.main.bridge.plan import DEFAULT_VLAN
from cni_py.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call
    from cni_py.spec.result import Interface, Result


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
        check_host_side(host, bridge, port, prev, wanted)
        if wanted.uses_vlans:
            check_vlans(host, bridge, port, wanted)
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


def check_host_side(host: Rtnl, bridge: Link, port: Link, prev: Result, wanted: Plan) -> None:
    """Compare the links on the host with ``prevResult``, as far as it names them. Raises: CheckFailed."""
    expected = {interface.name: interface for interface in prev.interfaces if not interface.sandbox}
    if not expected:  # the form of 0.2.0, or a plugin behind that left them out
        return
    expect("name of the bridge in prevResult", bridge.name, bridge.name if bridge.name in expected else ", ".join(expected))
    check_followed(host, bridge, expected[bridge.name])
    inner = find_link(host, f"{bridge.name}.{wanted.vlan}") if wanted.vlan and wanted.is_gateway else None
    names = [name for name in expected if name not in (bridge.name, f"{bridge.name}.{wanted.vlan}")]
    if names and port.name not in names:
        expect("name of the host end", " or ".join(names), port.name, f"ip link set {port.name} name {names[0]}")
    for link in (port, inner):
        if link is not None and link.name in expected:
            attached.check_link(link, expected[link.name])


def check_followed(host: Rtnl, bridge: Link, expected: Interface) -> None:
    """Check MAC address and MTU of the bridge. A larger MTU is no fault. Raises: CheckFailed.

    It may follow its ports: unless they were set, the kernel takes the smallest MTU and the lowest MAC address of a port.
    """
    is_lower = 0 < bridge.mtu < expected.mtu
    if not is_lower and expected.mac.lower() in ("", bridge.mac):
        return
    ports = [link for link in list_links(host) if link.master == bridge.ifindex]
    if is_lower and bridge.mtu < min(link.mtu for link in ports):
        expect(f'MTU of "{bridge.name}"', expected.mtu, bridge.mtu, f"ip link set {bridge.name} mtu {expected.mtu}")
    if expected.mac and bridge.mac not in [link.mac for link in ports]:
        expect(
            f'MAC address of "{bridge.name}"',
            expected.mac.lower(),
            bridge.mac,
            f"ip link set {bridge.name} address {expected.mac}",
        )


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
