"""What bridge decides before it does anything. Pure: configuration and leased addresses in, values out."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from cni_py.errors import CniError, InvalidConfig
from cni_py.kernel.address import KernelRoute
from cni_py.netlink.constants import RT_SCOPE_LINK, RT_TABLE_MAIN
from cni_py.spec.environment import link_name_fault
from cni_py.spec.result import IPConfig, Result, Route, from_json
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.address import Address, AddressWithPrefix, Network
    from cni_py.spec.call import Call

SANDBOX_INTERFACE = 2
"""Index in a result's interfaces: bridge, host end, sandbox end."""
_DEFAULT = {4: ip_interface("0.0.0.0/0"), 6: ip_interface("::/0")}
_HEX = frozenset("0123456789abcdef")


class Plan(Value):
    """``mac``: the sandbox end's, "" to let the kernel choose; ``trunk``: VLANs that pass tagged."""

    mac: str
    is_gateway: bool
    trunk: tuple[int, ...]
    spared: tuple[Network, ...]

    def uses_vlans(self, config: BridgeConfig) -> bool:
        return bool(config.vlan or self.trunk)


def check_config(call: Call, config: BridgeConfig) -> Plan:
    """Refuse what cannot be done. Raises: InvalidConfig, InvalidEnvironment."""
    call.refuse_unknown_args("MAC")
    if config.ipam.type and config.disable_container_interface:
        raise InvalidConfig(
            "cannot use IPAM when DisableContainerInterface flag is set", '"disableContainerInterface" with "ipam"'
        )
    if config.hairpin_mode and config.promisc_mode:
        raise InvalidConfig("cannot set hairpin mode and promiscuous mode at the same time", '"hairpinMode" and "promiscMode"')
    if fault := link_name_fault(config.bridge):
        raise InvalidConfig(f'"bridge": "{config.bridge[:40]}" cannot be the name of a link', fault)
    try:
        spared = tuple(ip_network(text, strict=False) for text in config.masquerade_except)
    except ValueError as error:
        raise InvalidConfig(f'"masqueradeExcept": {error}') from error
    return Plan(
        mac=parse_mac(config.runtime_config.mac or config.args.cni.mac or call.arg("MAC")),
        is_gateway=config.is_gateway or config.is_default_gateway,
        trunk=trunk_vlans(config),
        spared=spared,
    )


def parse_mac(text: str) -> str:
    """A MAC address in the kernel's form, "" for "". Raises: InvalidConfig."""
    mac = text.lower().replace("-", ":")
    if mac and (len(parts := mac.split(":")) != 6 or not all(len(part) == 2 and _HEX.issuperset(part) for part in parts)):
        raise InvalidConfig(f'"{text[:40]}" is no MAC address', hint='six hex pairs: "c2:11:22:33:44:55"')
    return mac


def trunk_vlans(config: BridgeConfig) -> tuple[int, ...]:
    """The VLAN ids of ``vlanTrunk``, sorted. Raises: InvalidConfig."""
    found: set[int] = set()
    for entry in config.vlan_trunk:
        if (entry.min_id is None) != (entry.max_id is None):
            raise InvalidConfig("minID and maxID should be configured simultaneously", '"vlanTrunk"')
        if entry.min_id is not None and entry.max_id is not None:
            if entry.max_id < entry.min_id:
                raise InvalidConfig(
                    "minID is greater than maxID in trunk parameter", f'"vlanTrunk": {entry.min_id} to {entry.max_id}'
                )
            found.update(range(entry.min_id, entry.max_id + 1))
        if entry.id is not None:
            found.add(entry.id)
    return tuple(sorted(found))


def choose_gateways(leased: Result, config: BridgeConfig, wanted: Plan) -> tuple[Result, tuple[AddressWithPrefix, ...]]:
    """Complete what IPAM answered, and say which addresses the bridge must have.

    Every address belongs to the sandbox's end. A gateway that IPAM does not name is the first
    address of the subnet; with ``isDefaultGateway`` each family gets a default route over it,
    unless IPAM gave one with a gateway.
    """
    if not leased.ips:
        raise InvalidConfig("IPAM plugin returned missing IP config", f'"ipam.type" is "{config.ipam.type}"')
    ips, routes = [], list(leased.routes)
    for ip in leased.ips:
        gateway = ip.gateway
        if gateway is None and wanted.is_gateway:
            gateway = first_address(ip.address)
        ips.append(IPConfig(ip.address, gateway, SANDBOX_INTERFACE))
        default = _DEFAULT[ip.address.version]
        if config.is_default_gateway and not any(r.gw and r.dst.network == default.network for r in routes):
            routes.append(Route(default, gateway))
    gateways = [ip_interface(f"{ip.gateway}/{ip.address.network.prefixlen}") for ip in ips if wanted.is_gateway]
    return leased.replace(ips=tuple(ips), routes=tuple(routes)), tuple(dict.fromkeys(gateways))


def known_addresses(config: BridgeConfig) -> list[AddressWithPrefix]:
    """The attachment's addresses as far as the runtime says them to DEL; a result that cannot be read says nothing."""
    try:
        return [ip.address for ip in from_json(config.prev_result).ips] if config.prev_result else []
    except CniError:
        return []


def first_address(address: AddressWithPrefix) -> Address:
    """The first address after the network's."""
    return ip_address(address.network.network_address + 1)


def wanted_routes(result: Result) -> list[KernelRoute]:
    """The result's routes as the kernel takes them: without ``gw``, over the family's first gateway.

    None over one in a route of scope link or host, where the kernel refuses a gateway.
    """
    gateways: dict[int, Address] = {}
    for ip in result.ips:
        if ip.gateway is not None:
            gateways.setdefault(ip.gateway.version, ip.gateway)
    return [
        KernelRoute(
            dst=route.dst,
            gw=route.gw or (gateways.get(route.dst.version) if (route.scope or 0) < RT_SCOPE_LINK else None),
            table=route.table or RT_TABLE_MAIN,
            scope=route.scope or 0,
            priority=route.priority or 0,
            mtu=route.mtu or 0,
            advmss=route.advmss or 0,
        )
        for route in result.routes
    ]


def conflicts(have: Sequence[AddressWithPrefix], gateway: AddressWithPrefix) -> list[AddressWithPrefix]:
    """The bridge's addresses that cannot stand beside the gateway's.

    Go-compatible: any other IPv4 address, an IPv6 one of an overlapping subnet (bridge.go, ensureAddr).
    """
    return [
        a
        for a in have
        if a.version == gateway.version and (a.version == 4 or a.ip in gateway.network or gateway.ip in a.network)
    ]
