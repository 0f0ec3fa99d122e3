"""bridge: a veth from the sandbox to a bridge on the host, with addresses, routes and masquerade.

Owns, per attachment: the veth (the alias of its host end says whose it is), what IPAM gave, and
the nftables elements of its addresses. Shared and never taken back: the bridge, its addresses,
forwarding, the nftables chains. Source: containernetworking/plugins plugins/main/bridge/bridge.go.
"""

from __future__ import annotations

from errno import EOPNOTSUPP
from time import monotonic, sleep

from cni_py.attachment import delegate, record
from cni_py.attachment.packet_filter import macspoof, masquerade, owner_of
from cni_py.errors import InvalidConfig, KernelRefused, SandboxGone, UnsupportedField
from cni_py.journal import note
from cni_py.kernel import sysctl
from cni_py.kernel.address import add_address, delete_address, list_addresses
from cni_py.kernel.deletion import delete_in
from cni_py.kernel.link import (
    add_vlan,
    create_bridge,
    create_veth,
    create_vlan_gateway,
    delete_link,
    delete_vlan,
    find_link,
    list_links,
    random_mac,
    set_mac,
    set_port,
    set_promiscuous,
    set_up,
)
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import add_route
from cni_py.netlink.socket import open_host, question
from cni_py.plugins.main.bridge import plan
from cni_py.spec.result import Interface, Result, dns_from_config
from cni_py.undo import Attempts, Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.address import AddressWithPrefix
    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Rtnl
    from cni_py.plugins.main.bridge.plan import Plan
    from cni_py.spec.call import Call

CONFIG = "BridgeConfig"
DEFAULT_VLAN = 1
PORT_TIMEOUT_SECONDS = 3.0
_ALIAS = "cni:"


def add(call: Call, config: BridgeConfig) -> Result:
    """Plug the sandbox into the bridge. Spec section 2, ADD; order as in the Go plugin."""
    wanted = plan.check_config(call, config)
    with open_host() as host:
        bridge = ensure_bridge(host, config, wanted)
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, Undo() as undo:
            host_end = create_veth(host, bridge, netns, call.ifname, config.mtu, wanted.mac, alias_of(call))
            undo.on_failure("the veth", delete_link, host, host_end)
            port = must_find(host, host_end)
            plug_in(host, port, config, wanted, alias_of(call))

            with open_in(netns, lambda: set_parameters(netns, call.ifname, config)) as sandbox:
                end = must_find(sandbox, call.ifname)
                if config.macspoofchk:
                    undo.on_failure("the check of the MAC address", macspoof().delete, owner_of(call))
                    macspoof().add(owner_of(call), port.name, end.mac)
                result = Result()
                if config.ipam.type:
                    leased = delegate.add(call, config.ipam.type, call.conf, config.delegate_mode, undo)
                    result, gateways = plan.choose_gateways(leased, config, wanted)
                    configure_sandbox(netns, sandbox, end, result, config.enabledad)
                    if gateways:
                        gateway_link = ensure_vlan_gateway(host, bridge, config) if config.vlan else bridge
                        make_gateway(host, gateway_link, gateways, config.force_address)
                    if config.ip_masq:
                        undo.on_failure("masquerade", masquerade().delete, owner_of(call))
                        addresses = [ip.address for ip in result.ips]
                        masquerade().add(owner_of(call), addresses, config.ip_masq_backend, wanted.spared)
                elif not config.disable_container_interface:
                    set_up(sandbox, end)

            if not config.disable_container_interface:
                port = wait_for_port(host, port)
            return described(result, call, config, host, port, end)


def delete(call: Call, config: BridgeConfig) -> None:
    """Take away all that may be there; what is not there is success.

    The veth first: what the kernel frees afterwards, it frees while we go on. The addresses last:
    nobody gets one too early.
    """
    attempts = Attempts()
    with attempts.attempt("the veth"):
        delete_veth(call)
    if config.ip_masq:
        with attempts.attempt("masquerade"):
            masquerade().delete(owner_of(call), plan.known_addresses(config))
    if config.macspoofchk:
        with attempts.attempt("the check of the MAC address"):
            macspoof().delete(owner_of(call))
    if config.ipam.type:
        with attempts.attempt(f"addresses of {config.ipam.type}"):
            delegate.delete(call, config.ipam.type, call.conf, config.delegate_mode)
    attempts.raise_if_failed("DEL")


def check(call: Call, config: BridgeConfig) -> None:
    """Compare everything that ADD set with what is there: see compare.py."""
    from cni_py.plugins.main.bridge import compare

    compare.check(call, config, plan.check_config(call, config))


def status(call: Call, config: BridgeConfig) -> None:
    """Ready when the configuration can be used and the IPAM plugin is ready."""
    plan.check_config(call, config)
    if config.ipam.type:
        delegate.status(call, config.ipam.type, call.conf, config.delegate_mode)


def gc(call: Call, config: BridgeConfig) -> None:
    """Free what belongs to attachments of this network that have gone."""
    is_stale = record.stale_test(call)
    attempts = Attempts()
    with attempts.attempt("veths"), open_host() as host:
        recorded = {_ALIAS + record.name_of(*owner, call.network): owner for owner in record.remembered(call.network)}
        for link in list_links(host):
            owner = recorded.get(link.alias) or owner_in(link.alias, call.network)
            if owner and is_stale(*owner):
                delete_link(host, link.name)
    with attempts.attempt("masquerade"):
        masquerade().delete_stale(call.network, record.valid(call), is_stale)
    with attempts.attempt("the check of MAC addresses"):
        macspoof().delete_stale(call.network, record.valid(call), is_stale)
    if config.ipam.type:
        with attempts.attempt(f"addresses of {config.ipam.type}"):
            delegate.gc(call, config.ipam.type, call.conf, config.delegate_mode)
    attempts.raise_if_failed("GC")


def ensure_bridge(host: Rtnl, config: BridgeConfig, wanted: Plan) -> Link:
    """Make the bridge or adopt the one that is there, and set it up. Raises: InvalidConfig, UnsupportedField.

    A gateway keeps the MAC address that it is born with; a mere switch takes its lowest port's, as
    with Go. An existing bridge's MTU is left alone: the kernel lets it follow the ports.
    """
    bridge = find_link(host, config.bridge)
    if bridge is None:
        try:
            create_bridge(host, config.bridge, config.mtu, random_mac() if wanted.is_gateway else "", wanted.uses_vlans(config))
        except KernelRefused as error:
            if error.errno == EOPNOTSUPP and wanted.uses_vlans(config):
                raise no_vlan_filtering(config, error.details) from error
            raise
        sysctl.prefer(f"net/ipv6/conf/{config.bridge}/accept_ra", "0")
        sysctl.prefer(f"net/ipv6/conf/{config.bridge}/accept_dad", "0")  # or the first pod waits for the bridge's address
        bridge = must_find(host, config.bridge)
    if bridge.kind != "bridge":
        raise InvalidConfig(
            f'"{config.bridge}" already exists but is not a bridge',
            f'its kind is "{bridge.kind or "none"}"',
            f"see it: ip -d link show {config.bridge}",
        )
    if wanted.uses_vlans(config) and not bridge.vlan_filtering:
        if bridge.vlan_filtering is None:
            raise no_vlan_filtering(config, f'the bridge "{bridge.name}" does not know of it')
        raise InvalidConfig(
            f'the bridge "{bridge.name}" does not filter VLANs', hint=f"ip link set {bridge.name} type bridge vlan_filtering 1"
        )
    if config.promisc_mode and not bridge.is_promiscuous:
        set_promiscuous(host, bridge)
    if not bridge.is_up:
        set_up(host, bridge)
    return bridge


def no_vlan_filtering(config: BridgeConfig, details: str) -> UnsupportedField:
    """The error of a kernel that keeps no VLANs apart on a bridge, with the keys that ask for it."""
    trunk = ", ".join(f"{r.id}" if r.id is not None else f"{r.min_id} to {r.max_id}" for r in config.vlan_trunk)
    asked = [f'"vlan": {config.vlan}'] if config.vlan else []
    asked += [f'"vlanTrunk": {trunk}'] if trunk else []
    return UnsupportedField(
        f"{', '.join(asked)}: this kernel has no bridge VLAN filtering", details, "it needs CONFIG_BRIDGE_VLAN_FILTERING"
    )


def plug_in(host: Rtnl, port: Link, config: BridgeConfig, wanted: Plan, alias: str) -> None:
    """Configure the host end, a port of the bridge from its birth. Raises: KernelRefused."""
    set_port(host, port, config.hairpin_mode, config.port_isolation, alias)
    sysctl.prefer(f"net/ipv6/conf/{port.name}/accept_ra", "0")
    if wanted.uses_vlans(config):
        if not config.preserve_default_vlan:
            delete_vlan(host, port, DEFAULT_VLAN)
        if config.vlan:
            add_vlan(host, port, config.vlan, native=True)
        elif wanted.trunk:  # Go-compatible: a trunk without a VLAN of its own has VLAN 1 untagged (bridge.go, setupVeth)
            add_vlan(host, port, DEFAULT_VLAN, native=True)
        for vlan in wanted.trunk:
            add_vlan(host, port, vlan, native=False)


def set_parameters(netns: NetNS, ifname: str, config: BridgeConfig) -> None:
    """What the kernel does when the sandbox's end gets addresses; by a thread inside."""
    if config.ipam.type:
        if config.enabledad:
            sysctl.prefer(f"net/ipv6/conf/{ifname}/enhanced_dad", "1", netns.enter)
        sysctl.prefer(f"net/ipv6/conf/{ifname}/accept_dad", "1" if config.enabledad else "0", netns.enter)
        sysctl.prefer(f"net/ipv4/conf/{ifname}/arp_notify", "1", netns.enter)


def set_ipv6_parameters(netns: NetNS, ifname: str) -> None:
    """The same where there are IPv6 addresses, which is known now."""
    for name in ("lo", ifname):
        sysctl.prefer(f"net/ipv6/conf/{name}/disable_ipv6", "0", netns.enter)
    sysctl.prefer(f"net/ipv6/conf/{ifname}/keep_addr_on_down", "1", netns.enter)


def configure_sandbox(netns: NetNS, sandbox: Rtnl, end: Link, result: Result, detect_duplicates: bool) -> None:
    """Addresses, up, routes. Raises: KernelRefused."""
    if any(ip.address.version == 6 for ip in result.ips):
        with question(*netns.enter, "sysctl", "net"):
            netns.run(lambda: set_ipv6_parameters(netns, end.name))
    for ip in result.ips:
        add_address(sandbox, end, ip.address, detect_duplicates)
    set_up(sandbox, end)
    for route in plan.wanted_routes(result):
        add_route(sandbox, end, route)


def make_gateway(host: Rtnl, link: Link, gateways: tuple[AddressWithPrefix, ...], force: bool) -> None:
    """Give the bridge the gateways' addresses and switch forwarding on. Raises: InvalidConfig, KernelRefused."""
    have = list_addresses(host, link)
    for gateway in gateways:
        if gateway in have:
            continue
        others = plan.conflicts(have, gateway)
        if others and not force:
            raise InvalidConfig(
                f'"{link.name}" already has an IP address different from {gateway}',
                f"it has {', '.join(map(str, others))}",
                f'delete it (ip addr del {others[0]} dev {link.name}) or set "forceAddress": true',
            )
        for other in others:
            delete_address(host, link, other)
        add_address(host, link, gateway)
        # a bridge whose MAC address was set keeps it when ports come and go; one without ports may have none yet
        set_mac(host, link, link.mac if link.mac.strip("0:") else random_mac())
    for version in {gateway.version for gateway in gateways}:
        sysctl.ensure("net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding", "1")


def ensure_vlan_gateway(host: Rtnl, bridge: Link, config: BridgeConfig) -> Link:
    """The host's own end in a VLAN: a veth ``<bridge>.<vlan>`` whose peer is a port of that VLAN."""
    name = f"{bridge.name}.{config.vlan}"
    if find_link(host, name) is None:
        port = must_find(host, create_vlan_gateway(host, bridge, name, bridge.mtu))
        set_port(host, port, hairpin=False, isolated=False, alias=f"port of {name}")
        if not config.preserve_default_vlan:
            delete_vlan(host, port, DEFAULT_VLAN)
        add_vlan(host, port, config.vlan, native=True)
        set_up(host, must_find(host, name))
    return must_find(host, name)


def wait_for_port(host: Rtnl, port: Link) -> Link:
    """Wait until the kernel has noticed the carrier, so that the first packet is not lost. Raises: KernelRefused."""
    deadline = monotonic() + PORT_TIMEOUT_SECONDS
    while (now := must_find(host, port.name)).operstate != "UP":
        if monotonic() > deadline:
            raise KernelRefused(
                f'the bridge port "{port.name}" did not come up in {PORT_TIMEOUT_SECONDS:.0f} s',
                f"bridge port in error state: {now.operstate}",
            )
        sleep(0.0005)
    return now


def described(result: Result, call: Call, config: BridgeConfig, host: Rtnl, port: Link, end: Link) -> Result:
    """The result with its links. The bridge is looked at again: its MAC and MTU may have followed the new port."""
    links = [must_find(host, config.bridge), port]
    if config.vlan and result.ips:
        links.append(must_find(host, f"{config.bridge}.{config.vlan}"))
    interfaces = [Interface(link.name, link.mac, link.mtu) for link in links]
    interfaces.insert(plan.SANDBOX_INTERFACE, Interface(end.name, end.mac, end.mtu, call.netns))
    dns = dns_from_config(config.dns)
    return result.replace(interfaces=tuple(interfaces), dns=dns if dns.as_json() else result.dns)


def delete_veth(call: Call) -> None:
    """Delete the sandbox's end, or, where that is not to be found, the host's end by its alias.

    The namespace may not be named, have gone, or somebody may have given the interface another name.
    """
    with open_host() as host:
        try:
            if call.netns:
                with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns:
                    if delete_in(netns, lambda sandbox: end_of(sandbox, host, call)):
                        return
        except SandboxGone:
            pass
        for link in list_links(host, alias=alias_of(call)):
            delete_link(host, link.name)


def end_of(sandbox: Rtnl, host: Rtnl, call: Call) -> Link | None:
    """The attachment's end in the sandbox, None where there is none."""
    end = find_link(sandbox, call.ifname)
    return None if end is None or is_anothers(host, end, call) else end


def is_anothers(host: Rtnl, end: Link, call: Call) -> bool:
    """Whether the host's end says that it belongs to another attachment: a network that was refused this interface name."""
    port = find_link(host, end.peer) if end.kind == "veth" else None
    if port is None or port.peer != end.ifindex or not port.alias.startswith(_ALIAS) or port.alias == alias_of(call):
        return False
    note(f'"{end.name}" is left: its host end "{port.name}" belongs to "{port.alias}"')
    return True


def alias_of(call: Call) -> str:
    """What ``ip link`` shows of a host end: whose it is."""
    return _ALIAS + record.name_of(call.container_id, call.ifname, call.network)


def owners_on_host(network: str) -> list[tuple[str, str]]:
    """Container id and interface name of every host end of this network. Raises: KernelRefused."""
    with open_host() as host:
        owners = [owner_in(link.alias, network) for link in list_links(host)]
    return [owner for owner in owners if owner]


def owner_in(alias: str, network: str) -> tuple[str, str] | None:
    """Container id and interface name in a host end's alias, if it is of this network and not cut because of its length."""
    parts = alias.removeprefix(_ALIAS).split(":") if alias.startswith(_ALIAS) else []
    return (parts[0], parts[1]) if len(parts) == 3 and parts[2] == network else None


def must_find(rtnl: Rtnl, name: str) -> Link:
    """Raises: KernelRefused where the link has gone."""
    link = find_link(rtnl, name)
    if link is None:
        raise KernelRefused(f'the link "{name}" has gone', "somebody else deleted it", f"ip link show {name}")
    return link
