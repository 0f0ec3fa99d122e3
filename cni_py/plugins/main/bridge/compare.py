"""CHECK of bridge: everything that ADD set against the actual state (CNI spec section 2, "CHECK").

It is not called check.py: the submodule would hide the function ``check`` of the package.
"""

from __future__ import annotations

from cni_py.attachment import check as attached
from cni_py.attachment import delegate, gateway, record
from cni_py.attachment.check import expect, state
from cni_py.errors import CheckFailed
from cni_py.kernel.link import find_link, list_links, list_vlans
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.plugins.main.bridge.plan import DEFAULT_VLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.attachment.check import Differences
    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call
    from cni_py.spec.result import Interface, Result


def check(call: Call, config: BridgeConfig, wanted: Plan) -> None:
    """Raises: CheckFailed with every difference: what was expected, what was found, the command that repairs it."""
    prev = attached.parse_prev_result(config.prev_result)
    found = attached.Differences()
    with found:
        delegate.check_leased(call, config)
    with open_host() as host, open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        bridge = end = port = None
        with found:
            bridge = find_bridge(host, wanted)
            check_bridge(found, bridge, wanted)
        with found:
            end = attached.find_sandbox_end(sandbox, call, "veth")
            attached.check_sandbox_end(found, sandbox, end, prev, call, wanted.is_up)
            port = attached.find_host_end(host, end, prev)
        ips = attached.expected_addresses(prev, call) if wanted.ipam else []
        if port:
            check_port(found, host, port, wanted, has_bridge=bridge is not None)
            check_host_side(found, host, port, bridge, prev, wanted)
        if bridge and port and wanted.uses_vlans:
            check_vlans(found, host, bridge, port, wanted)
        if end and wanted.ipam:
            attached.check_configured(found, sandbox, end, prev, call)
        if bridge and wanted.is_gateway:
            gateways = [gateway.address_for(ip) for ip in ips]
            attached.check_addresses(found, host, gateway_link(host, bridge, wanted), gateways, "gateway address")
            attached.check_forwarding(found, gateways)
    if end and port and wanted.checks_mac:
        from cni_py.packetfilter import macspoof

        with found:
            macspoof.check(record.owner_of(call), port.name, end.mac)
    with found:
        gateway.check_masquerade(call, ips, wanted.masquerade)
    found.raise_if_any()


def find_bridge(host: Rtnl, wanted: Plan) -> Link:
    """Return the bridge. Raises: CheckFailed if it is missing, or something else."""
    bridge = find_link(host, wanted.bridge)
    if bridge is None:
        raise CheckFailed(
            f'the bridge "{wanted.bridge}" is missing', "expected a bridge, found no such link", attached.RECREATE
        )
    expect(f'kind of "{bridge.name}"', "bridge", bridge.kind, f"look at it: ip -d link show {bridge.name}")
    return bridge


def check_bridge(found: Differences, bridge: Link, wanted: Plan) -> None:
    """Compare the state of the bridge."""
    found.expect(f'state of "{bridge.name}"', "up", state(bridge), f"ip link set {bridge.name} up")
    if wanted.is_promiscuous:
        hint = f"ip link set {bridge.name} promisc on"
        found.expect(f'promiscuous mode of "{bridge.name}"', "on", on(bridge.is_promiscuous), hint)


def check_port(found: Differences, host: Rtnl, port: Link, wanted: Plan, *, has_bridge: bool) -> None:
    """Compare the bridge port."""
    master = find_link(host, port.master) if port.master else None
    hint = f"ip link set {port.name} master {wanted.bridge}" if has_bridge else attached.RECREATE
    found.expect(f'bridge of "{port.name}"', wanted.bridge, master.name if master else "none", hint)
    found.expect(f'state of "{port.name}"', "up", state(port), f"ip link set {port.name} up")
    change = f"bridge link set dev {port.name}"
    hairpin, isolated = on(wanted.is_hairpin), on(wanted.is_isolated)
    found.expect(f'hairpin mode of "{port.name}"', hairpin, on(bool(port.hairpin)), f"{change} hairpin {hairpin}")
    found.expect(f'isolation of "{port.name}"', isolated, on(bool(port.isolated)), f"{change} isolated {isolated}")


def check_host_side(found: Differences, host: Rtnl, port: Link, bridge: Link | None, prev: Result, wanted: Plan) -> None:
    """Compare the links on the host with ``prevResult``, as far as it names them."""
    expected = {interface.name: interface for interface in prev.interfaces if not interface.sandbox}
    if not expected:  # the form of 0.2.0, or a plugin behind that left them out
        return
    if bridge and bridge.name in expected:
        check_followed(found, host, bridge, expected[bridge.name])
    elif bridge:
        found.expect("name of the bridge in prevResult", bridge.name, ", ".join(expected), attached.RECREATE)
    inner = f"{wanted.bridge}.{wanted.vlan}"
    names = [name for name in expected if name not in (wanted.bridge, inner)]
    if names and port.name not in names:
        found.expect("name of the host end", " or ".join(names), port.name, f"ip link set {port.name} name {names[0]}")
    for link in (port, find_link(host, inner) if inner in expected else None):
        if link is not None and link.name in expected:
            attached.check_link(found, host, link, expected[link.name])


def check_followed(found: Differences, host: Rtnl, bridge: Link, expected: Interface) -> None:
    """Compare MAC address and MTU of the bridge. A larger MTU is no fault.

    It may follow its ports: unless they were set, the kernel takes the smallest MTU and the lowest MAC address of a port.
    """
    is_lower, mac = 0 < bridge.mtu < expected.mtu, expected.mac.lower()
    if not is_lower and mac in ("", bridge.mac):
        return
    ports = [link for link in list_links(host) if link.master == bridge.ifindex]
    if is_lower and all(bridge.mtu < link.mtu for link in ports):
        hint = f"ip link set {bridge.name} mtu {expected.mtu}"
        found.expect(f'MTU of "{bridge.name}"', expected.mtu, bridge.mtu, hint)
    if mac and bridge.mac not in [link.mac for link in ports]:
        # No command: pods have the present address in their ARP caches, and newer pods of a re-created bridge expect it
        hint = "leave it: pods find the gateway by ARP, and would lose it for up to a minute by another change"
        found.expect(f'MAC address of "{bridge.name}"', mac, bridge.mac, hint)


def on(is_set: bool) -> str:
    return "on" if is_set else "off"


def check_vlans(found: Differences, host: Rtnl, bridge: Link, port: Link, wanted: Plan) -> None:
    """Compare the VLANs of the port, and of the port of the VLAN's gateway. Others may have added more."""
    hint = f"ip link set {bridge.name} type bridge vlan_filtering 1"
    found.expect(f'VLAN filtering of "{bridge.name}"', True, bridge.vlan_filtering, hint)
    check_port_vlans(found, host, port, wanted.port_vlans, wanted.keeps_default_vlan)
    inner = find_link(host, f"{bridge.name}.{wanted.vlan}") if wanted.vlan and wanted.is_gateway else None
    if inner and (peer := find_link(host, inner.peer)):
        check_port_vlans(found, host, peer, {wanted.vlan: True}, wanted.keeps_default_vlan)


def check_port_vlans(found: Differences, host: Rtnl, port: Link, expected: Mapping[int, bool], keeps_default: bool) -> None:
    """Compare the VLANs of one port."""
    there = list_vlans(host, port)
    for vlan, is_native in expected.items():
        hint = f"bridge vlan add dev {port.name} vid {vlan}{' pvid untagged' if is_native else ''}"
        found.expect(f'VLAN {vlan} of "{port.name}"', vlan_state(is_native), vlan_state(there.get(vlan)), hint)
    if DEFAULT_VLAN in there and DEFAULT_VLAN not in expected and not keeps_default:
        hint = f"bridge vlan del dev {port.name} vid {DEFAULT_VLAN}"
        found.expect(f'VLAN {DEFAULT_VLAN} of "{port.name}"', vlan_state(None), vlan_state(there[DEFAULT_VLAN]), hint)


def vlan_state(is_native: bool | None) -> str:
    return "absent" if is_native is None else "untagged" if is_native else "tagged"


def gateway_link(host: Rtnl, bridge: Link, wanted: Plan) -> Link:
    """The link that has the gateways' addresses."""
    return (find_link(host, f"{bridge.name}.{wanted.vlan}") or bridge) if wanted.vlan else bridge
