"""Decide what bridge does, before it does anything. Pure: configuration, leased addresses and actual state in, values out."""

from __future__ import annotations

from cni_py.attachment import gateway, interface
from cni_py.errors import InvalidConfig
from cni_py.spec.environment import link_name_fault
from cni_py.spec.result import DNS, dns_from_config
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.attachment.gateway import Masquerade
    from cni_py.attachment.interface import Parameter
    from cni_py.config.models import BridgeConfig
    from cni_py.kernel.address import AddressWithPrefix
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

SANDBOX_INTERFACE = 2
"""Index in a result's interfaces: bridge, host end, sandbox end."""
DEFAULT_VLAN = 1


class Plan(Value):
    """The configuration, checked and completed: ADD and CHECK read this and no configuration.

    Attributes:
        mac: of the sandbox's end; "": the kernel's choice.
        trunk: VLANs that pass the port tagged.
        is_up: whether the sandbox's end is set up.
        ipam: the IPAM plugin; "": layer 2 only.
    """

    bridge: str
    mtu: int
    is_promiscuous: bool
    is_gateway: bool
    is_default_gateway: bool
    replaces_addresses: bool
    # the sandbox's end
    mac: str
    is_up: bool
    detects_duplicates: bool
    ipam: str
    # the host end
    is_hairpin: bool
    is_isolated: bool
    vlan: int
    trunk: tuple[int, ...]
    keeps_default_vlan: bool
    checks_mac: bool
    # the addresses
    masquerade: Masquerade
    dns: DNS

    @property
    def uses_vlans(self) -> bool:
        return bool(self.vlan or self.trunk)

    @property
    def port_vlans(self) -> dict[int, bool]:
        """VLANs of the host end, each with whether it is the native one, in the order in which they are added.

        Go-compatible: a trunk without a VLAN of its own has VLAN 1 untagged (bridge.go, setupVeth).
        """
        return {self.vlan or DEFAULT_VLAN: True} | dict.fromkeys(self.trunk, False)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters of the sandbox's end, from before it has addresses."""
        if not self.ipam:
            return ()
        dad = [("ipv6", "enhanced_dad", "1")] if self.detects_duplicates else []
        return (*dad, ("ipv6", "accept_dad", "1" if self.detects_duplicates else "0"), ("ipv4", "arp_notify", "1"))


def check_config(call: Call, config: BridgeConfig) -> Plan:
    """Refuse a configuration that cannot work. Raises: InvalidConfig, InvalidEnvironment."""
    args = call.known_pairs("MAC") if call.verb == "ADD" else {}
    if config.ipam.type and config.disable_container_interface:
        raise InvalidConfig(
            "cannot use IPAM when DisableContainerInterface flag is set", '"disableContainerInterface" with "ipam"'
        )
    if config.hairpin_mode and config.promisc_mode:
        raise InvalidConfig("cannot set hairpin mode and promiscuous mode at the same time", '"hairpinMode" and "promiscMode"')
    if fault := link_name_fault(config.bridge):
        raise InvalidConfig(f'"bridge": "{config.bridge[:40]}" cannot be the name of a link', fault)
    return Plan(
        bridge=config.bridge,
        mtu=config.mtu,
        is_promiscuous=config.promisc_mode,
        is_gateway=config.is_gateway or config.is_default_gateway,
        is_default_gateway=config.is_default_gateway,
        replaces_addresses=config.force_address,
        mac=interface.parse_mac(config.runtime_config.mac or config.args.cni.mac or args.get("MAC", "")),
        is_up=not config.disable_container_interface,
        detects_duplicates=config.enabledad,
        ipam=config.ipam.type,
        is_hairpin=config.hairpin_mode,
        is_isolated=config.port_isolation,
        vlan=config.vlan,
        trunk=trunk_vlans(config),
        keeps_default_vlan=config.preserve_default_vlan,
        checks_mac=config.macspoofchk,
        masquerade=gateway.masquerade_of(config),
        dns=dns_from_config(config.dns),
    )


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


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers in words: "7, 10 to 20"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def complete(leased: Result, wanted: Plan) -> Result:
    """The result of the IPAM plugin with gateways and default routes, as configured."""
    return gateway.choose(leased, wanted.is_default_gateway) if wanted.is_gateway else leased


def conflicts(have: Sequence[AddressWithPrefix], gateway: AddressWithPrefix) -> list[AddressWithPrefix]:
    """The bridge's addresses that exclude the gateway's.

    Go-compatible: any other IPv4 address, an IPv6 one of an overlapping subnet (bridge.go, ensureAddr).
    """
    return [
        a
        for a in have
        if a.version == gateway.version and (a.version == 4 or a.ip in gateway.network or gateway.ip in a.network)
    ]
