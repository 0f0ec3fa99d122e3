"""Core schemas of the configurations, for ``pydantic_core.SchemaValidator``.

Made by ``make generate`` from models.py. Not to be edited.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Schema = dict[str, "Any"]


class Parsed:
    """A validated object; its attributes are the fields of the model in models.py."""


def _model(name: str, /, **fields: tuple[str | list[list[str]], Schema]) -> Schema:
    """Each field: its key, or the keys that are accepted, and its schema."""
    listed = [
        {"type": "dataclass-field", "name": field, "kw_only": True, "validation_alias": alias, "schema": schema}
        for field, (alias, schema) in fields.items()
    ]
    arguments = {"type": "dataclass-args", "dataclass_name": name, "fields": listed}
    return {"type": "dataclass", "cls": Parsed, "fields": list(fields), "schema": arguments}


def _default(schema: Schema, value: object = None, make: type | None = None, validated: bool = False) -> Schema:
    """Give a schema a default: a value, what ``make`` returns, or, ``validated``, the object without keys.

    Of a list or a dictionary as value pydantic's core would make copies, and load the module ``copy`` for it.
    """
    if validated:
        return {"type": "default", "schema": schema, "default_factory": dict, "validate_default": True}
    return {"type": "default", "schema": schema} | ({"default_factory": make} if make else {"default": value})


def _nullable(schema: Schema) -> Schema:
    return {"type": "nullable", "schema": schema}


def _list(schema: Schema) -> Schema:
    return {"type": "list", "items_schema": schema}


def _literal(expected: list[str]) -> Schema:
    return {"type": "literal", "expected": expected}


def _int(**limits: int) -> Schema:
    return {"type": "int", "strict": True, **limits}


STR: Schema = {"type": "str", "strict": True}
BOOL: Schema = {"type": "bool", "strict": True}
OBJECT: Schema = {"type": "dict", "keys_schema": {"type": "str"}, "values_schema": {"type": "any"}}


FlannelConfig = _model(
    "FlannelConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    subnet_file=("subnetFile", _default(STR, value="/run/flannel/subnet.env")),
    data_dir=("dataDir", _default(STR, value="/var/lib/cni/flannel")),
    delegate=("delegate", _default(OBJECT, make=dict)),
    ipam=("ipam", _default(OBJECT, make=dict)),
    runtime_config=("runtimeConfig", _default(_nullable(OBJECT), value=None)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    masquerade_beyond=("masqueradeBeyond", _default(_literal(expected=["subnet", "network"]), value="subnet")),
)
IpamType = _model(
    "IpamType",
    type=("type", _default(STR, value="")),
)
DNS = _model(
    "DNS",
    nameservers=("nameservers", _default(_list(STR), make=list)),
    domain=("domain", _default(STR, value="")),
    search=("search", _default(_list(STR), make=list)),
    options=("options", _default(_list(STR), make=list)),
)
VlanRange = _model(
    "VlanRange",
    id=("id", _default(_nullable(_int(ge=1, le=4094)), value=None)),
    min_id=("minID", _default(_nullable(_int(ge=1, le=4094)), value=None)),
    max_id=("maxID", _default(_nullable(_int(ge=1, le=4094)), value=None)),
)
MacArgs = _model(
    "MacArgs",
    mac=("mac", _default(STR, value="")),
)
BridgeArgs = _model(
    "BridgeArgs",
    cni=("cni", _default(MacArgs, validated=True)),
)
BridgeConfig = _model(
    "BridgeConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    ip_masq=("ipMasq", _default(BOOL, value=False)),
    ip_masq_backend=("ipMasqBackend", _default(_nullable(STR), value=None)),
    masquerade_except=("masqueradeExcept", _default(_list(STR), make=list)),
    bridge=("bridge", _default(STR, value="cni0")),
    is_gateway=("isGateway", _default(BOOL, value=False)),
    is_default_gateway=("isDefaultGateway", _default(BOOL, value=False)),
    force_address=("forceAddress", _default(BOOL, value=False)),
    mtu=("mtu", _default(_int(ge=0, le=65535), value=0)),
    hairpin_mode=("hairpinMode", _default(BOOL, value=False)),
    promisc_mode=("promiscMode", _default(BOOL, value=False)),
    vlan=("vlan", _default(_int(ge=0, le=4094), value=0)),
    vlan_trunk=("vlanTrunk", _default(_list(VlanRange), make=list)),
    preserve_default_vlan=("preserveDefaultVlan", _default(BOOL, value=False)),
    macspoofchk=("macspoofchk", _default(BOOL, value=False)),
    enabledad=("enabledad", _default(BOOL, value=False)),
    disable_container_interface=("disableContainerInterface", _default(BOOL, value=False)),
    port_isolation=("portIsolation", _default(BOOL, value=False)),
    args=("args", _default(BridgeArgs, validated=True)),
    runtime_config=("runtimeConfig", _default(MacArgs, validated=True)),
)
PtpConfig = _model(
    "PtpConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    ip_masq=("ipMasq", _default(BOOL, value=False)),
    ip_masq_backend=("ipMasqBackend", _default(_nullable(STR), value=None)),
    masquerade_except=("masqueradeExcept", _default(_list(STR), make=list)),
    mtu=("mtu", _default(_int(ge=0, le=65535), value=0)),
)
MacvlanConfig = _model(
    "MacvlanConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    master=("master", _default(STR, value="")),
    mtu=("mtu", _default(_int(), value=0)),
    link_in_container=("linkInContainer", _default(BOOL, value=False)),
    mode=("mode", _default(STR, value="")),
    mac=("mac", _default(STR, value="")),
    bcqueuelen=("bcqueuelen", _default(_int(ge=0, le=4294967295), value=0)),
    runtime_config=("runtimeConfig", _default(MacArgs, validated=True)),
)
IpvlanConfig = _model(
    "IpvlanConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    master=("master", _default(STR, value="")),
    mtu=("mtu", _default(_int(), value=0)),
    link_in_container=("linkInContainer", _default(BOOL, value=False)),
    mode=("mode", _default(STR, value="")),
)
VlanConfig = _model(
    "VlanConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    master=("master", _default(STR, value="")),
    mtu=("mtu", _default(_int(), value=0)),
    link_in_container=("linkInContainer", _default(BOOL, value=False)),
    vlan_id=("vlanId", _default(_int(), value=0)),
)
DummyConfig = _model(
    "DummyConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
)
TapConfig = _model(
    "TapConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    multi_queue=("multiQueue", _default(BOOL, value=False)),
    mtu=("mtu", _default(_int(ge=0, le=65535), value=0)),
    mac=("mac", _default(STR, value="")),
    owner=("owner", _default(_nullable(_int(ge=0, le=4294967295)), value=None)),
    group=("group", _default(_nullable(_int(ge=0, le=4294967295)), value=None)),
    selinux_context=("selinuxContext", _default(STR, value="")),
    bridge=("bridge", _default(STR, value="")),
    runtime_config=("runtimeConfig", _default(MacArgs, validated=True)),
)
DeviceRuntimeConfig = _model(
    "DeviceRuntimeConfig",
    device_id=("deviceID", _default(STR, value="")),
)
HostDeviceConfig = _model(
    "HostDeviceConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(IpamType, validated=True)),
    dns=("dns", _default(DNS, validated=True)),
    delegate_mode=("delegateMode", _default(_literal(expected=["auto", "exec", "native"]), value="auto")),
    device=("device", _default(STR, value="")),
    hwaddr=("hwaddr", _default(STR, value="")),
    kernelpath=("kernelpath", _default(STR, value="")),
    pci_bus_id=("pciBusID", _default(STR, value="")),
    runtime_config=("runtimeConfig", _default(DeviceRuntimeConfig, validated=True)),
)
Range = _model(
    "Range",
    subnet=("subnet", _default(STR, value="")),
    range_start=("rangeStart", _default(STR, value="")),
    range_end=("rangeEnd", _default(STR, value="")),
    gateway=("gateway", _default(STR, value="")),
)
Route = _model(
    "Route",
    dst=("dst", STR),
    gw=("gw", _default(STR, value="")),
    mtu=("mtu", _default(_nullable(_int(ge=0)), value=None)),
    advmss=("advmss", _default(_nullable(_int(ge=0)), value=None)),
    priority=("priority", _default(_nullable(_int(ge=0, le=4294967295)), value=None)),
    table=("table", _default(_nullable(_int(ge=0, le=4294967295)), value=None)),
    scope=("scope", _default(_nullable(_int(ge=0, le=255)), value=None)),
)
HostLocalIpam = _model(
    "HostLocalIpam",
    subnet=("subnet", _default(STR, value="")),
    range_start=("rangeStart", _default(STR, value="")),
    range_end=("rangeEnd", _default(STR, value="")),
    gateway=("gateway", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    ranges=("ranges", _default(_list(_list(Range)), make=list)),
    routes=("routes", _default(_list(Route), make=list)),
    data_dir=("dataDir", _default(STR, value="/var/lib/cni/networks")),
    resolv_conf=("resolvConf", _default(STR, value="")),
)
IpsArgs = _model(
    "IpsArgs",
    ips=("ips", _default(_list(STR), make=list)),
)
HostLocalArgs = _model(
    "HostLocalArgs",
    cni=("cni", _default(IpsArgs, validated=True)),
)
HostLocalRuntimeConfig = _model(
    "HostLocalRuntimeConfig",
    ips=("ips", _default(_list(STR), make=list)),
    ip_ranges=("ipRanges", _default(_list(_list(Range)), make=list)),
)
HostLocalConfig = _model(
    "HostLocalConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(_nullable(HostLocalIpam), value=None)),
    args=("args", _default(HostLocalArgs, validated=True)),
    runtime_config=("runtimeConfig", _default(HostLocalRuntimeConfig, validated=True)),
)
DhcpRequest = _model(
    "DhcpRequest",
    option=("option", _default(STR, value="")),
    skip_default=("skipDefault", _default(BOOL, value=False)),
)
DhcpProvide = _model(
    "DhcpProvide",
    option=("option", _default(STR, value="")),
    value=("value", _default(STR, value="")),
    from_arg=("fromArg", _default(STR, value="")),
)
DhcpIpam = _model(
    "DhcpIpam",
    type=("type", _default(STR, value="")),
    daemon_socket_path=("daemonSocketPath", _default(STR, value="/run/cni/dhcp.sock")),
    request=("request", _default(_list(DhcpRequest), make=list)),
    provide=("provide", _default(_list(DhcpProvide), make=list)),
    priority=("priority", _default(_int(ge=0, le=4294967295), value=0)),
)
DhcpConfig = _model(
    "DhcpConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(DhcpIpam, validated=True)),
)
StaticAddress = _model(
    "StaticAddress",
    address=("address", _default(STR, value="")),
    gateway=("gateway", _default(STR, value="")),
)
StaticIpam = _model(
    "StaticIpam",
    type=("type", _default(STR, value="")),
    addresses=("addresses", _default(_list(StaticAddress), make=list)),
    routes=("routes", _default(_list(Route), make=list)),
    dns=("dns", _default(DNS, validated=True)),
)
IpsWithPrefix = _model(
    "IpsWithPrefix",
    ips=("ips", _default(_list(STR), make=list)),
)
StaticArgs = _model(
    "StaticArgs",
    cni=("cni", _default(IpsWithPrefix, validated=True)),
)
StaticConfig = _model(
    "StaticConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ipam=("ipam", _default(_nullable(StaticIpam), value=None)),
    args=("args", _default(StaticArgs, validated=True)),
    runtime_config=("runtimeConfig", _default(IpsWithPrefix, validated=True)),
)
PortMapping = _model(
    "PortMapping",
    host_port=("hostPort", _default(_int(), value=0)),
    container_port=("containerPort", _default(_int(), value=0)),
    protocol=("protocol", _default(STR, value="")),
    host_ip=("hostIP", _default(STR, value="")),
)
PortmapRuntimeConfig = _model(
    "PortmapRuntimeConfig",
    port_mappings=("portMappings", _default(_list(PortMapping), make=list)),
)
PortmapConfig = _model(
    "PortmapConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    backend=("backend", _default(_nullable(STR), value=None)),
    snat=("snat", _default(BOOL, value=True)),
    masq_all=("masqAll", _default(BOOL, value=False)),
    mark_masq_bit=("markMasqBit", _default(_nullable(_int()), value=None)),
    external_set_mark_chain=("externalSetMarkChain", _default(_nullable(STR), value=None)),
    conditions_v4=("conditionsV4", _default(_list(STR), make=list)),
    conditions_v6=("conditionsV6", _default(_list(STR), make=list)),
    runtime_config=("runtimeConfig", _default(PortmapRuntimeConfig, validated=True)),
)
LoopbackConfig = _model(
    "LoopbackConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
)
Bandwidth = _model(
    "Bandwidth",
    ingress_rate=("ingressRate", _default(_int(ge=0, le=18446744073709551615), value=0)),
    ingress_burst=("ingressBurst", _default(_int(ge=0, le=18446744073709551615), value=0)),
    egress_rate=("egressRate", _default(_int(ge=0, le=18446744073709551615), value=0)),
    egress_burst=("egressBurst", _default(_int(ge=0, le=18446744073709551615), value=0)),
)
BandwidthRuntimeConfig = _model(
    "BandwidthRuntimeConfig",
    bandwidth=("bandwidth", _default(_nullable(Bandwidth), value=None)),
)
BandwidthConfig = _model(
    "BandwidthConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    ingress_rate=("ingressRate", _default(_nullable(_int(ge=0, le=18446744073709551615)), value=None)),
    ingress_burst=("ingressBurst", _default(_nullable(_int(ge=0, le=18446744073709551615)), value=None)),
    egress_rate=("egressRate", _default(_nullable(_int(ge=0, le=18446744073709551615)), value=None)),
    egress_burst=("egressBurst", _default(_nullable(_int(ge=0, le=18446744073709551615)), value=None)),
    runtime_config=("runtimeConfig", _default(BandwidthRuntimeConfig, validated=True)),
)
FirewallConfig = _model(
    "FirewallConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    backend=("backend", _default(STR, value="")),
    iptables_admin_chain_name=("iptablesAdminChainName", _default(STR, value="CNI-ADMIN")),
    firewalld_zone=("firewalldZone", _default(STR, value="trusted")),
    ingress_policy=("ingressPolicy", _default(STR, value="open")),
)
SbrConfig = _model(
    "SbrConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    table=("table", _default(_nullable(_int(ge=1, le=4294967295)), value=None)),
    gateways=("gateways", _default(_list(STR), make=list)),
    add_source_hints=("addSourceHints", _default(BOOL, value=False)),
)
VrfConfig = _model(
    "VrfConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    vrfname=("vrfname", _default(STR, value="")),
    table=("table", _default(_int(ge=0, le=4294967295), value=0)),
)
TuningArgs = _model(
    "TuningArgs",
    sysctl=("sysctl", _default(_nullable(OBJECT), value=None)),
    mac=("mac", _default(STR, value="")),
    mtu=("mtu", _default(_nullable(_int(ge=0, le=2147483647)), value=None)),
    promisc=("promisc", _default(_nullable(BOOL), value=None)),
    allmulti=("allmulti", _default(_nullable(BOOL), value=None)),
    tx_q_len=("txQLen", _default(_nullable(_int(ge=0, le=2147483647)), value=None)),
)
TuningArgsOfAll = _model(
    "TuningArgsOfAll",
    cni=("cni", _default(TuningArgs, validated=True)),
)
TuningConfig = _model(
    "TuningConfig",
    cni_version=("cniVersion", _default(STR, value="0.1.0")),
    name=("name", _default(STR, value="")),
    type=("type", _default(STR, value="")),
    prev_result=("prevResult", _default(_nullable(OBJECT), value=None)),
    sysctl=("sysctl", _default(OBJECT, make=dict)),
    mac=("mac", _default(STR, value="")),
    mtu=("mtu", _default(_int(ge=0, le=2147483647), value=0)),
    promisc=("promisc", _default(BOOL, value=False)),
    allmulti=("allmulti", _default(_nullable(BOOL), value=None)),
    tx_q_len=("txQLen", _default(_nullable(_int(ge=0, le=2147483647)), value=None)),
    data_dir=("dataDir", _default(STR, value="/run/cni/tuning")),
    args=("args", _default(TuningArgsOfAll, validated=True)),
    runtime_config=("runtimeConfig", _default(MacArgs, validated=True)),
)
ResultInterface = _model(
    "ResultInterface",
    name=("name", STR),
    mac=("mac", _default(STR, value="")),
    mtu=("mtu", _default(_int(ge=0), value=0)),
    sandbox=("sandbox", _default(STR, value="")),
    socket_path=("socketPath", _default(STR, value="")),
    pci_id=("pciID", _default(STR, value="")),
)
ResultIP = _model(
    "ResultIP",
    address=("address", STR),
    gateway=("gateway", _default(STR, value="")),
    interface=("interface", _default(_nullable(_int(ge=0)), value=None)),
)
AnyResult = _model(
    "AnyResult",
    interfaces=("interfaces", _default(_list(ResultInterface), make=list)),
    ips=("ips", _default(_list(ResultIP), make=list)),
    routes=("routes", _default(_list(Route), make=list)),
    dns=("dns", _default(DNS, validated=True)),
)
OldResultIP = _model(
    "OldResultIP",
    ip=("ip", STR),
    gateway=("gateway", _default(STR, value="")),
    routes=("routes", _default(_list(Route), make=list)),
)
OldResult = _model(
    "OldResult",
    ip4=("ip4", _default(_nullable(OldResultIP), value=None)),
    ip6=("ip6", _default(_nullable(OldResultIP), value=None)),
    dns=("dns", _default(DNS, validated=True)),
)
ValidAttachment = _model(
    "ValidAttachment",
    container_id=("containerID", STR),
    ifname=("ifname", STR),
)
ValidAttachments = _model(
    "ValidAttachments",
    attachments=("attachments", _list(ValidAttachment)),
)

SCHEMAS: dict[str, Schema] = {
    "FlannelConfig": FlannelConfig,
    "BridgeConfig": BridgeConfig,
    "PtpConfig": PtpConfig,
    "MacvlanConfig": MacvlanConfig,
    "IpvlanConfig": IpvlanConfig,
    "VlanConfig": VlanConfig,
    "DummyConfig": DummyConfig,
    "TapConfig": TapConfig,
    "HostDeviceConfig": HostDeviceConfig,
    "HostLocalConfig": HostLocalConfig,
    "DhcpConfig": DhcpConfig,
    "StaticConfig": StaticConfig,
    "PortmapConfig": PortmapConfig,
    "LoopbackConfig": LoopbackConfig,
    "BandwidthConfig": BandwidthConfig,
    "FirewallConfig": FirewallConfig,
    "SbrConfig": SbrConfig,
    "VrfConfig": VrfConfig,
    "TuningConfig": TuningConfig,
    "AnyResult": AnyResult,
    "OldResult": OldResult,
    "ValidAttachments": ValidAttachments,
}
