"""bridge: a veth from the sandbox to a bridge on the host, with addresses, routes and masquerade.

Owns, per attachment: the veth, what IPAM gave, and the nftables elements of its addresses and of its MAC address.
Shared and never deleted: the bridge, its addresses, forwarding, the nftables chains.
Source: containernetworking/plugins plugins/main/bridge/bridge.go.
"""

from __future__ import annotations

from errno import EOPNOTSUPP
from time import monotonic, sleep

from cni_py.attachment import delegate, gateway, interface, record, veth
from cni_py.errors import InvalidConfig, KernelRefused, UnsupportedField
from cni_py.kernel import sysctl
from cni_py.kernel.address import delete_address, list_addresses
from cni_py.kernel.link import (
    add_vlan,
    create_bridge,
    create_vlan_gateway,
    delete_vlan,
    find_link,
    get_link,
    random_mac,
    set_mac,
    set_port,
    set_promiscuous,
    set_up,
)
from cni_py.kernel.netns import open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.plugins.main.bridge import plan
from cni_py.spec.result import Result
from cni_py.undo import Attempts, Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.address import AddressWithPrefix
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call

CONFIG = "BridgeConfig"
PORT_TIMEOUT_SECONDS = 3.0
SHOWN = 5
"""Pods that an error names."""


def add(call: Call, config: BridgeConfig) -> Result:
    """Plug the sandbox into the bridge. Spec section 2, ADD; order as in the Go plugin."""
    wanted = plan.check_config(call, config)
    with open_host() as host:
        bridge = ensure_bridge(host, wanted)
        # the namespace is open until the undo steps have run: they delete what is inside
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, Undo() as undo:
            port = veth.create(undo, host, netns, call, mtu=wanted.mtu, mac=wanted.mac, master=bridge)
            plug_in(host, port, wanted)

            with interface.open_with(netns, call.ifname, wanted.parameters) as sandbox:
                end = get_link(sandbox, call.ifname)
                if wanted.checks_mac:
                    accept_only_mac(undo, call, port, end)
                result = Result()
                if config.ipam.type:
                    result = plan.complete(delegate.lease(undo, call, config, plan.SANDBOX_INTERFACE), wanted)
                    interface.configure(netns, sandbox, end, result, wanted.detects_duplicates)
                    if wanted.is_gateway:
                        make_gateway(host, ensure_vlan_gateway(host, bridge, wanted) if wanted.vlan else bridge, result, wanted)
                    gateway.masquerade(undo, call, result, wanted.masquerade)
                elif wanted.is_up:
                    set_up(sandbox, end)

            if wanted.is_up:
                port = wait_for_port(host, port)
            rules = gateway.rules_of(result, wanted.masquerade)
            if wanted.checks_mac:
                rules["macspoofchk"] = {"port": port.name, "mac": end.mac}
            if rules:
                record.amend(call, **rules)
            return described(result, call, wanted, host, port, end)


def delete(call: Call, config: BridgeConfig) -> None:
    """Delete everything that ADD may have made; absence is success.

    The veth first: the kernel frees it while the rest is deleted. The addresses last: they are not leased to another
    pod before everything of this one is deleted.
    """
    attempts = Attempts()
    delegate.release_from_link(attempts, call, config)
    with attempts.attempt("the veth"):
        veth.delete(call)
    gateway.delete_masquerade(attempts, call, config)
    if config.macspoofchk:
        from cni_py.packetfilter import macspoof

        with attempts.attempt("the check of the MAC address"):
            macspoof.delete(record.owner_of(call))
    delegate.release(attempts, call, config)
    attempts.raise_if_failed("DEL")


def check(call: Call, config: BridgeConfig) -> None:
    """Compare everything that ADD set with the actual state: see compare.py."""
    from cni_py.plugins.main.bridge import compare

    compare.check(call, config, plan.check_config(call, config))


def status(call: Call, config: BridgeConfig) -> None:
    """Check that the configuration can work and that the IPAM plugin is ready."""
    plan.check_config(call, config)
    delegate.check_ready(call, config)


def gc(call: Call, config: BridgeConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    from cni_py.packetfilter import macspoof

    is_stale = record.stale_test(call)
    attempts = Attempts()
    delegate.release_stale_from_links(attempts, call, config)
    with attempts.attempt("veths"):
        veth.delete_stale(call.network, is_stale)
    gateway.delete_stale_masquerade(attempts, call, is_stale)
    with attempts.attempt("the check of MAC addresses"):
        macspoof.delete_stale(call.network, record.valid(call), is_stale)
    delegate.release_stale(attempts, call, config)
    attempts.raise_if_failed("GC")


# ---- the bridge -------------------------------------------------------------------------------


def ensure_bridge(host: Rtnl, wanted: Plan) -> Link:
    """Create the bridge or reuse an existing one, and set it up. Raises: InvalidConfig, UnsupportedField, KernelRefused.

    A gateway keeps the MAC address that it was created with; a mere switch takes that of its lowest port, as with Go.
    The MTU of an existing bridge is left alone: the kernel lets it follow the ports.
    """
    bridge = find_link(host, wanted.bridge) or create(host, wanted)
    if bridge.kind != "bridge":
        raise InvalidConfig(
            f'"{wanted.bridge}" already exists but is not a bridge',
            f'its kind is "{bridge.kind or "none"}"',
            f"see it: ip -d link show {wanted.bridge}",
        )
    if wanted.uses_vlans and not bridge.vlan_filtering:
        if bridge.vlan_filtering is None:
            raise no_vlan_filtering(wanted, f'the bridge "{bridge.name}" does not know of it')
        raise InvalidConfig(
            f'the bridge "{bridge.name}" does not filter VLANs', hint=f"ip link set {bridge.name} type bridge vlan_filtering 1"
        )
    if wanted.is_promiscuous and not bridge.is_promiscuous:
        set_promiscuous(host, bridge)
    if not bridge.is_up:
        set_up(host, bridge)
    return bridge


def create(host: Rtnl, wanted: Plan) -> Link:
    """Create the bridge. Raises: UnsupportedField, KernelRefused."""
    try:
        create_bridge(host, wanted.bridge, wanted.mtu, random_mac() if wanted.is_gateway else "", wanted.uses_vlans)
    except KernelRefused as error:
        if error.errno == EOPNOTSUPP and wanted.uses_vlans:
            raise no_vlan_filtering(wanted, error.details) from error
        raise
    sysctl.prefer(f"net/ipv6/conf/{wanted.bridge}/accept_ra", "0")
    sysctl.prefer(f"net/ipv6/conf/{wanted.bridge}/accept_dad", "0")  # or the first pod waits for the bridge's address
    return get_link(host, wanted.bridge)


def no_vlan_filtering(wanted: Plan, details: str) -> UnsupportedField:
    """The error of a kernel without VLAN filtering of bridges, with the keys that ask for it."""
    asked = [f'"vlan": {wanted.vlan}'] if wanted.vlan else []
    asked += [f'"vlanTrunk": {plan.spans(wanted.trunk)}'] if wanted.trunk else []
    return UnsupportedField(
        f"{', '.join(asked)}: this kernel has no bridge VLAN filtering", details, "it needs CONFIG_BRIDGE_VLAN_FILTERING"
    )


def make_gateway(host: Rtnl, link: Link, result: Result, wanted: Plan) -> None:
    """Give the link the gateways' addresses and enable forwarding. Raises: InvalidConfig, KernelRefused."""
    have = list_addresses(host, link)
    gateways = dict.fromkeys(gateway.address_for(ip) for ip in result.ips)
    for address in gateways:
        if address in have:
            continue
        delete_conflicting(host, link, have, address, wanted)
        gateway.add_addresses(host, link, [address])
        # a bridge whose MAC address was set keeps it when ports come and go; one without ports may have none yet
        set_mac(host, link, link.mac if link.mac.strip("0:") else random_mac())
    gateway.enable_forwarding(gateways)


def delete_conflicting(host: Rtnl, link: Link, have: list[AddressWithPrefix], address: AddressWithPrefix, wanted: Plan) -> None:
    """Delete addresses that exclude this one, if the configuration says so. Raises: InvalidConfig, KernelRefused."""
    others = plan.conflicts(have, address)
    if others and not wanted.replaces_addresses:
        raise has_former_address(host, link, others, address, wanted)
    for other in others:
        delete_address(host, link, other)


def has_former_address(
    host: Rtnl, link: Link, others: list[AddressWithPrefix], address: AddressWithPrefix, wanted: Plan
) -> InvalidConfig:
    """Return the error. The address is the gateway of pods that were attached before the node's subnet changed."""
    from cni_py.kernel.bridge_users import users_of
    from cni_py.plural import counted

    bridge = get_link(host, wanted.bridge)
    users = [user for other in others for user in users_of(host, bridge, other.network)]
    pods = list(dict.fromkeys(f"{container_of(user.port) or user.port.name} {user.address}".strip() for user in users))
    found = ", ".join(map(str, others))
    if pods:
        names = ", ".join(pods[:SHOWN]) + (f" and {len(pods) - SHOWN} more" if len(pods) > SHOWN else "")
        details = f"it has {found}, the gateway of {counted(len(pods), 'pod')} of the former subnet: {names}"
        hint = "delete those pods, for example by kubectl drain; then no pod needs the address, and flanneld deletes it"
    else:
        details = f"it has {found}, of the former subnet, which no pod uses"
        hint = f"ip addr del {others[0]} dev {link.name}"
    return InvalidConfig(f'"{link.name}" already has an IP address different from {address}', details, hint)


def container_of(port: Link) -> str:
    """The container id in the mark of a host end that we created; "" for others."""
    return record.mark_on(port).removeprefix(record.MARK).partition(":")[0]


def ensure_vlan_gateway(host: Rtnl, bridge: Link, wanted: Plan) -> Link:
    """Create or reuse the host's own interface in a VLAN: a veth ``<bridge>.<vlan>`` whose peer is a port of that VLAN."""
    name = f"{bridge.name}.{wanted.vlan}"
    if find_link(host, name) is None:
        port = get_link(host, create_vlan_gateway(host, bridge, name, bridge.mtu))
        set_port(host, port, hairpin=False, isolated=False)
        if not wanted.keeps_default_vlan:
            delete_vlan(host, port, plan.DEFAULT_VLAN)
        add_vlan(host, port, wanted.vlan, native=True)
        set_up(host, get_link(host, name))
    return get_link(host, name)


# ---- the port ---------------------------------------------------------------------------------


def plug_in(host: Rtnl, port: Link, wanted: Plan) -> None:
    """Configure the host end, a port of the bridge from the start. Raises: KernelRefused."""
    set_port(host, port, wanted.is_hairpin, wanted.is_isolated)
    if wanted.uses_vlans:
        if not wanted.keeps_default_vlan:
            delete_vlan(host, port, plan.DEFAULT_VLAN)
        for vlan, is_native in wanted.port_vlans.items():
            add_vlan(host, port, vlan, native=is_native)


def wait_for_port(host: Rtnl, port: Link) -> Link:
    """Wait until the kernel has noticed the carrier, so that the first packet is not lost. Raises: KernelRefused."""
    deadline = monotonic() + PORT_TIMEOUT_SECONDS
    while (now := get_link(host, port.name)).operstate != "UP":
        if monotonic() > deadline:
            raise KernelRefused(
                f'the bridge port "{port.name}" did not come up in {PORT_TIMEOUT_SECONDS:.0f} s',
                f"bridge port in error state: {now.operstate}",
            )
        sleep(0.0005)
    return now


# ---- the packet filter, imported if it is needed: libnftables takes 5 ms to load -----------------


def accept_only_mac(undo: Undo, call: Call, port: Link, end: Link) -> None:
    """Drop frames of the pod that have another source than its MAC address. Raises: NotAvailable, KernelRefused."""
    from cni_py.packetfilter import macspoof

    owner = record.owner_of(call)
    undo.on_failure("the check of the MAC address", macspoof.delete_port, owner, port.name)
    macspoof.add(owner, port.name, end.mac)


# ---- the result -------------------------------------------------------------------------------


def described(result: Result, call: Call, wanted: Plan, host: Rtnl, port: Link, end: Link) -> Result:
    """The result with its interfaces. The bridge is read again: its MAC address and MTU may follow the new port."""
    links = [get_link(host, wanted.bridge), port]
    if wanted.vlan and wanted.is_gateway and result.ips:
        links.append(get_link(host, f"{wanted.bridge}.{wanted.vlan}"))
    interfaces = [interface.described(link) for link in links]
    interfaces.insert(plan.SANDBOX_INTERFACE, interface.described(end, call.netns))
    return result.replace(interfaces=tuple(interfaces), dns=wanted.dns if wanted.dns.as_json() else result.dns)
