"""Configurations that the plugins accept, as pydantic models: the only definition of each key.

``_schemas.py`` is generated from them (``make generate``) for the plugins, which cannot
pay 70 ms for importing pydantic; docs/configuration.md is generated as well. Keys are taken in any case (config/__init__.py);
unknown ones are accepted, wrong types rejected (spec section 1). Addresses stay text here: the modules that use
them parse them, with errors that name the key.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic.alias_generators import to_camel

from cni_py.plugin_table import PLUGINS

_MAX31, _MAX64 = (1 << 31) - 1, (1 << 64) - 1


class Model(BaseModel):
    """Base of all models; keys are the spec's camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class DNS(Model):
    """DNS settings (spec section 1, "dns")."""

    nameservers: list[StrictStr] = Field(
        [], description="Addresses of name servers, in order of preference.", examples=[["10.96.0.10"]]
    )
    domain: StrictStr = Field("", description="Local domain.", examples=["cluster.local"])
    search: list[StrictStr] = Field(
        [], description="Search domains for short names, in order.", examples=[["svc.cluster.local"]]
    )
    options: list[StrictStr] = Field([], description="Resolver options.", examples=[["ndots:5"]])


class Route(Model):
    """Route; addresses are text."""

    dst: StrictStr = Field(description="Destination with prefix.", examples=["0.0.0.0/0"])
    gw: StrictStr = Field("", description="Next hop. Default: the gateway of the addresses.", examples=["10.1.2.254"])
    mtu: StrictInt | None = Field(None, ge=0, description="MTU of the route, in bytes.", examples=[1400])
    advmss: StrictInt | None = Field(
        None, ge=0, description="TCP maximum segment size to advertise, in bytes.", examples=[1360]
    )
    priority: StrictInt | None = Field(
        None, ge=0, le=0xFFFFFFFF, description="Metric: the route with the lower value is preferred.", examples=[100]
    )
    table: StrictInt | None = Field(None, ge=0, le=0xFFFFFFFF, description="Routing table. Default: main.", examples=[100])
    scope: StrictInt | None = Field(None, ge=0, le=255, description="0 global, 253 link, 254 host.", examples=[253])


class NetworkConfig(Model):
    """Keys of every plugin."""

    cni_version: StrictStr = Field("0.1.0", description="Version of the CNI spec.")
    name: StrictStr = Field("", description="Name of the network.")
    type: StrictStr = Field("", description="Name of the plugin's executable.")
    prev_result: dict[str, Any] | None = Field(None, description="Set by the runtime: the result of the previous plugin.")


class FlannelConfig(NetworkConfig):
    """Keys of `flannel`."""

    subnet_file: StrictStr = Field(
        "/run/flannel/subnet.env", description="File that flanneld writes.", examples=["/run/flannel/blue.env"]
    )
    data_dir: StrictStr = Field(
        "/var/lib/cni/flannel",
        description="Directory that keeps the delegate's configuration until DEL.",
        examples=["/var/lib/cni/blue"],
    )
    delegate: dict[str, Any] = Field(
        {},
        description="Configuration of the plugin to delegate to, without `name` and `ipam`. `type` defaults to `bridge`.",
        examples=[{"hairpinMode": True, "isDefaultGateway": True}],
    )
    ipam: dict[str, Any] = Field(
        {},
        description="Merged into the delegate's `ipam`: its `ranges` are set, its `routes` are extended.",
        examples=[{"dataDir": "/run/ipam"}],
    )
    runtime_config: dict[str, Any] | None = Field(
        None, description="Set by the runtime: capability arguments, passed to the delegate."
    )
    delegate_mode: Literal["auto", "exec", "native"] = Field(
        "auto",
        description="How to run the delegate. `auto`: in this process if the executable found in CNI_PATH is ours or none is "
        "found; a third-party one is executed; `exec`: always execute it; `native`: always run ours in this process.",
        examples=["exec"],
    )
    masquerade_beyond: Literal["subnet", "network"] = Field(
        "subnet",
        description="Destinations that the bridge does not masquerade: the node's own `subnet` (as Go) or the whole flannel "
        "`network`, so that pods of other nodes see the pod's address.",
        examples=["network"],
    )


class VlanRange(Model):
    """Entry of `vlanTrunk`."""

    id: StrictInt | None = Field(None, ge=1, le=4094, description="A single VLAN.", examples=[7])
    min_id: StrictInt | None = Field(None, ge=1, le=4094, alias="minID", description="First VLAN of a range.", examples=[10])
    max_id: StrictInt | None = Field(None, ge=1, le=4094, alias="maxID", description="Last VLAN of a range.", examples=[20])


class MacArgs(Model):
    mac: StrictStr = Field("", description="MAC address of the sandbox end.", examples=["c2:11:22:33:44:55"])


class BridgeArgs(Model):
    cni: MacArgs = Field(MacArgs(), description="Arguments that a runtime or an orchestrator gives a network.")


class IpamType(Model):
    type: StrictStr = Field("", description="Name of the IPAM plugin's executable.", examples=["host-local"])


class MainConfig(NetworkConfig):
    """Keys of every main plugin that has addresses."""

    ipam: IpamType = Field(IpamType(), description="IPAM plugin and its keys.", examples=[{"type": "host-local"}])
    dns: DNS = Field(DNS(), description="Returned in the result.")
    delegate_mode: Literal["auto", "exec", "native"] = Field(
        "auto", description="How to run the IPAM plugin: see flannel's `delegateMode`."
    )


class GatewayConfig(MainConfig):
    """Keys of a main plugin whose host is the gateway."""

    ip_masq: StrictBool = Field(False, description="Masquerade traffic that leaves the pod's subnet.")
    ip_masq_backend: StrictStr | None = Field(
        None, description="`nftables` or `iptables`. Default: nftables if it works, else iptables.", examples=["iptables"]
    )
    masquerade_except: list[StrictStr] = Field(
        [], description="Networks to exclude from masquerading, besides the pod's own subnet.", examples=[["10.244.0.0/16"]]
    )


class BridgeConfig(GatewayConfig):
    """Keys of `bridge`."""

    bridge: StrictStr = Field("cni0", description="Name of the bridge; created if it does not exist.", examples=["br0"])
    is_gateway: StrictBool = Field(False, description="Assign the gateway's address to the bridge and enable IP forwarding.")
    is_default_gateway: StrictBool = Field(False, description="Like `isGateway`, with a default route to it in the sandbox.")
    force_address: StrictBool = Field(False, description="Replace another address of the same family on the bridge.")
    mtu: StrictInt = Field(
        0,
        ge=0,
        le=65535,
        description="MTU of the veth and of a bridge that is created; 0: the kernel's default.",
        examples=[1450],
    )
    hairpin_mode: StrictBool = Field(False, description="Let the bridge send a frame back to the port it came in on.")
    promisc_mode: StrictBool = Field(False, description="Make the bridge promiscuous; cannot be combined with `hairpinMode`.")
    vlan: StrictInt = Field(0, ge=0, le=4094, description="VLAN of the port; 0: none.", examples=[100])
    vlan_trunk: list[VlanRange] = Field(
        [], description="Additional tagged VLANs of the port.", examples=[[{"id": 7}, {"minID": 10, "maxID": 20}]]
    )
    preserve_default_vlan: StrictBool = Field(False, description="Keep VLAN 1 on a port with `vlan` or `vlanTrunk`.")
    macspoofchk: StrictBool = Field(False, description="Drop frames whose source is not the sandbox's MAC address.")
    enabledad: StrictBool = Field(False, description="Wait for IPv6 duplicate address detection (DAD).")
    disable_container_interface: StrictBool = Field(
        False, description="Leave the sandbox end down; cannot be combined with `ipam`."
    )
    port_isolation: StrictBool = Field(False, description="Isolate the ports of this bridge from each other.")
    ipam: IpamType = Field(
        IpamType(), description="IPAM plugin and its keys. Default: layer 2 only.", examples=[{"type": "host-local"}]
    )
    dns: DNS = Field(DNS(), description="Returned in the result. Default: the IPAM plugin's.")
    args: BridgeArgs = Field(BridgeArgs(), description="`args.cni.mac`: MAC address of the sandbox end.")
    runtime_config: MacArgs = Field(MacArgs(), description="Set by the runtime: the capability `mac`.")


class PtpConfig(GatewayConfig):
    """Keys of `ptp`."""

    mtu: StrictInt = Field(0, ge=0, le=65535, description="MTU of the veth; 0: the kernel's default.", examples=[1450])
    ipam: IpamType = Field(IpamType(), description="IPAM plugin and its keys; required.", examples=[{"type": "host-local"}])
    dns: DNS = Field(DNS(), description="Returned in the result. Default: the IPAM plugin's.")


class MasterConfig(MainConfig):
    """Keys of a main plugin whose link is made on another one."""

    master: StrictStr = Field("", description="Link to make it on. Default: that of the default route.", examples=["eth0"])
    mtu: StrictInt = Field(0, description="MTU, at most that of `master`; 0: that of `master`.", examples=[1450])
    link_in_container: StrictBool = Field(False, description="Look for `master` in the sandbox instead of on the host.")


class MacvlanConfig(MasterConfig):
    """Keys of `macvlan`."""

    mode: StrictStr = Field(
        "", description="`bridge`, `private`, `vepa` or `passthru`. Default: `bridge`.", examples=["private"]
    )
    mac: StrictStr = Field(
        "",
        description="MAC address. `MAC` in CNI_ARGS replaces it, the capability `mac` both.",
        examples=["c2:11:22:33:44:55"],
    )
    bcqueuelen: StrictInt = Field(
        0, ge=0, le=0xFFFFFFFF, description="Queue length for broadcast packets; 0: the kernel's default.", examples=[200]
    )
    ipam: IpamType = Field(
        IpamType(), description="IPAM plugin and its keys. Default: layer 2 only.", examples=[{"type": "host-local"}]
    )
    runtime_config: MacArgs = Field(MacArgs(), description="Set by the runtime: the capability `mac`.")


class IpvlanConfig(MasterConfig):
    """Keys of `ipvlan`."""

    master: StrictStr = Field(
        "",
        description="Link to make it on. Default: the only interface of the previous result, else that of the default route.",
        examples=["eth0"],
    )
    mtu: StrictInt = Field(0, description="MTU; 0: that of `master`.", examples=[1450])
    mode: StrictStr = Field("", description="`l2`, `l3` or `l3s`. Default: `l2`.", examples=["l3"])
    ipam: IpamType = Field(
        IpamType(),
        description="IPAM plugin and its keys; required, unless the previous result has addresses.",
        examples=[{"type": "host-local"}],
    )


class VlanConfig(MasterConfig):
    """Keys of `vlan`."""

    master: StrictStr = Field("", description="Link that carries the VLAN; required.", examples=["eth0"])
    vlan_id: StrictInt = Field(0, description="VLAN, 0 to 4094.", examples=[100])
    ipam: IpamType = Field(IpamType(), description="IPAM plugin and its keys; required.", examples=[{"type": "host-local"}])


class DummyConfig(MainConfig):
    """Keys of `dummy`."""

    ipam: IpamType = Field(IpamType(), description="IPAM plugin and its keys; required.", examples=[{"type": "host-local"}])


class TapConfig(MainConfig):
    """Keys of `tap`."""

    multi_queue: StrictBool = Field(False, description="Several queues: more than one process may open the device.")
    mtu: StrictInt = Field(0, ge=0, le=65535, description="MTU; 0: the kernel's default.", examples=[1450])
    mac: StrictStr = Field(
        "",
        description="MAC address. `MAC` in CNI_ARGS replaces it, the capability `mac` both.",
        examples=["c2:11:22:33:44:55"],
    )
    owner: StrictInt | None = Field(
        None, ge=0, le=0xFFFFFFFF, description="User id that may open the device. Default: root alone.", examples=[1000]
    )
    group: StrictInt | None = Field(
        None,
        ge=0,
        le=0xFFFFFFFF,
        description="Group id that may open the device. With `owner` too, as in Go: virtio headers, and `mtu` has no effect.",
        examples=[1000],
    )
    selinux_context: StrictStr = Field(
        "",
        description="SELinux label of the process that makes the device. Ignored without SELinux.",
        examples=["system_u:system_r:container_t:s0"],
    )
    bridge: StrictStr = Field("", description="Bridge in the sandbox that the device becomes a port of.", examples=["br0"])
    ipam: IpamType = Field(
        IpamType(), description="IPAM plugin and its keys. Default: layer 2 only.", examples=[{"type": "host-local"}]
    )
    runtime_config: MacArgs = Field(MacArgs(), description="Set by the runtime: the capability `mac`.")


class DeviceRuntimeConfig(Model):
    device_id: StrictStr = Field(
        "",
        alias="deviceID",
        description="Id of a device of the PCI or the auxiliary bus; it takes the place of `pciBusID`.",
        examples=["0000:03:00.0"],
    )


class HostDeviceConfig(MainConfig):
    """Keys of `host-device`: the first of `device`, `hwaddr`, `kernelpath` and `pciBusID` that is set names the device."""

    device: StrictStr = Field("", description="Name of the device.", examples=["eth1"])
    hwaddr: StrictStr = Field("", description="MAC address of the device.", examples=["c2:11:22:33:44:55"])
    kernelpath: StrictStr = Field(
        "", description="Path of the device, below /sys/devices/.", examples=["/sys/devices/pci0000:00/0000:00:1f.6"]
    )
    pci_bus_id: StrictStr = Field(
        "",
        alias="pciBusID",
        description="PCI address of the device. One with a driver of user space (DPDK) has no link to move.",
        examples=["0000:03:00.0"],
    )
    ipam: IpamType = Field(
        IpamType(), description="IPAM plugin and its keys. Default: layer 2 only.", examples=[{"type": "host-local"}]
    )
    runtime_config: DeviceRuntimeConfig = Field(
        DeviceRuntimeConfig(), description="Set by the runtime: the capability `deviceID`."
    )


class Range(Model):
    """Part of a subnet to allocate addresses from."""

    subnet: StrictStr = Field("", description="Subnet with prefix; required.", examples=["10.1.2.0/24"])
    range_start: StrictStr = Field(
        "", description="First address to allocate. Default: the subnet's first.", examples=["10.1.2.10"]
    )
    range_end: StrictStr = Field(
        "", description="Last address to allocate. Default: the subnet's last.", examples=["10.1.2.200"]
    )
    gateway: StrictStr = Field(
        "", description="Gateway, never allocated. Default: the subnet's first address.", examples=["10.1.2.1"]
    )


class HostLocalIpam(Range):
    """Keys of `ipam` for `host-local`; `subnet` … `gateway` here are the old form, with a single range."""

    type: StrictStr = Field("", description="Name of the IPAM plugin's executable.", examples=["host-local"])
    ranges: list[list[Range]] = Field(
        [], description="Range sets: one address is allocated from each.", examples=[[[{"subnet": "10.1.2.0/24"}]]]
    )
    routes: list[Route] = Field([], description="Routes of the result.", examples=[[{"dst": "0.0.0.0/0"}]])
    data_dir: StrictStr = Field(
        "/var/lib/cni/networks", description="Directory for reservations, with a subdirectory per network."
    )
    resolv_conf: StrictStr = Field(
        "", description="resolv.conf file whose settings are returned as `dns`.", examples=["/etc/resolv.conf"]
    )


class IpsArgs(Model):
    ips: list[StrictStr] = Field([], description="Requested addresses, with or without prefix.", examples=[["10.1.2.30/24"]])


class HostLocalArgs(Model):
    cni: IpsArgs = Field(IpsArgs(), description="Arguments that a runtime or an orchestrator gives a network.")


class HostLocalRuntimeConfig(Model):
    ips: list[StrictStr] = Field([], description="Requested addresses, with or without prefix.", examples=[["10.1.2.30/24"]])
    ip_ranges: list[list[Range]] = Field(
        [], description="Range sets, used before those of `ipam`.", examples=[[[{"subnet": "10.1.3.0/24"}]]]
    )


class HostLocalConfig(NetworkConfig):
    """Keys of `host-local`, which reads the whole configuration of the plugin that calls it."""

    ipam: HostLocalIpam | None = Field(None, description="See the keys below.")
    args: HostLocalArgs = Field(HostLocalArgs(), description="`args.cni.ips`: requested addresses.")
    runtime_config: HostLocalRuntimeConfig = Field(
        HostLocalRuntimeConfig(), description="Set by the runtime: the capabilities `ips` and `ipRanges`."
    )


class StaticAddress(Model):
    """Entry of `addresses`."""

    address: StrictStr = Field("", description="Address with prefix; required.", examples=["10.1.2.5/24"])
    gateway: StrictStr = Field("", description="Gateway of the address.", examples=["10.1.2.1"])


class StaticIpam(Model):
    """Keys of `ipam` for `static`."""

    type: StrictStr = Field("", description="Name of the IPAM plugin's executable.", examples=["static"])
    addresses: list[StaticAddress] = Field(
        [],
        description="Addresses. `IP` in CNI_ARGS adds to them, `args.cni.ips` and the capability `ips` replace them.",
        examples=[[{"address": "10.1.2.5/24", "gateway": "10.1.2.1"}]],
    )
    routes: list[Route] = Field([], description="Routes of the result.", examples=[[{"dst": "0.0.0.0/0"}]])
    dns: DNS = Field(DNS(), description="DNS settings of the result.")


class IpsWithPrefix(Model):
    ips: list[StrictStr] = Field([], description="Addresses with prefix.", examples=[["10.1.2.30/24"]])


class StaticArgs(Model):
    cni: IpsWithPrefix = Field(IpsWithPrefix(), description="Arguments that a runtime or an orchestrator gives a network.")


class StaticConfig(NetworkConfig):
    """Keys of `static`, which reads the whole configuration of the plugin that calls it."""

    ipam: StaticIpam | None = Field(None, description="See the keys below.")
    args: StaticArgs = Field(StaticArgs(), description="`args.cni.ips`: addresses that replace the configured ones.")
    runtime_config: IpsWithPrefix = Field(
        IpsWithPrefix(), description="Set by the runtime: the capability `ips`, which replaces all other addresses."
    )


class PortMapping(Model):
    """Entry of `portMappings`."""

    host_port: StrictInt = Field(0, description="Host port, 1 to 65535.", examples=[8080])
    container_port: StrictInt = Field(0, description="Container port, 1 to 65535.", examples=[80])
    protocol: StrictStr = Field("", description="`tcp`, `udp` or `sctp`; case-insensitive.", examples=["tcp"])
    host_ip: StrictStr = Field(
        "",
        alias="hostIP",
        description="Host address to listen on. Default: any; `0.0.0.0`, `::`: any of that IP version.",
        examples=["192.0.2.1"],
    )


class PortmapRuntimeConfig(Model):
    port_mappings: list[PortMapping] = Field(
        [], description="Ports to map.", examples=[[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]]
    )


class PortmapConfig(NetworkConfig):
    """Keys of `portmap`, which follows another plugin in a chain."""

    backend: StrictStr | None = Field(
        None,
        description="`nftables` or `iptables`. Default: iptables if the conditions are in its syntax or "
        "`externalSetMarkChain` is set, else nftables if it works, else iptables.",
        examples=["iptables"],
    )
    snat: StrictBool = Field(
        True, description="Masquerade connections from the pod itself, from its neighbours and from 127.0.0.1, which need it."
    )
    masq_all: StrictBool = Field(
        False, description="Masquerade every connection to a mapped port: the pod sees the host's address."
    )
    mark_masq_bit: StrictInt | None = Field(
        None,
        description="Bit of the packet mark, 0 to 31, for traffic to masquerade. Default: 13. Not with `externalSetMarkChain`.",
        examples=[14],
    )
    external_set_mark_chain: StrictStr | None = Field(
        None,
        description="iptables only: external chain that marks traffic to masquerade, instead of our own.",
        examples=["KUBE-MARK-MASQ"],
    )
    conditions_v4: list[StrictStr] = Field(
        [], description="Additional matches for IPv4 connections, in the back end's syntax.", examples=[["iifname", "eth0"]]
    )
    conditions_v6: list[StrictStr] = Field(
        [], description="Additional matches for IPv6 connections, in the back end's syntax.", examples=[["!", "-d", "fd00::/8"]]
    )
    runtime_config: PortmapRuntimeConfig = Field(
        PortmapRuntimeConfig(), description="Set by the runtime: the capability `portMappings`."
    )


class Bandwidth(Model):
    """Limits of one attachment; the directions are the pod's."""

    ingress_rate: StrictInt = Field(0, ge=0, le=_MAX64, description="Bits a second that the pod may receive; 0: no limit.")
    ingress_burst: StrictInt = Field(0, ge=0, le=_MAX64, description="Bits that may come at once after a pause.")
    egress_rate: StrictInt = Field(0, ge=0, le=_MAX64, description="Bits a second that the pod may send; 0: no limit.")
    egress_burst: StrictInt = Field(0, ge=0, le=_MAX64, description="Bits that may leave at once after a pause.")


class BandwidthRuntimeConfig(Model):
    bandwidth: Bandwidth | None = Field(
        None,
        description="Limits of the pod.",
        examples=[{"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 4000000, "egressBurst": 400000}],
    )


class BandwidthConfig(NetworkConfig):
    """Keys of `bandwidth`, which follows a plugin that makes a veth. With one of its own keys it ignores the runtime's."""

    ingress_rate: StrictInt | None = Field(
        None, ge=0, le=_MAX64, description="Bits a second that a pod may receive; 0: no limit.", examples=[8000000]
    )
    ingress_burst: StrictInt | None = Field(
        None, ge=0, le=_MAX64, description="Bits that may come at once after a pause.", examples=[800000]
    )
    egress_rate: StrictInt | None = Field(
        None, ge=0, le=_MAX64, description="Bits a second that a pod may send; 0: no limit.", examples=[4000000]
    )
    egress_burst: StrictInt | None = Field(
        None, ge=0, le=_MAX64, description="Bits that may leave at once after a pause.", examples=[400000]
    )
    runtime_config: BandwidthRuntimeConfig = Field(
        BandwidthRuntimeConfig(), description="Set by the runtime: the capability `bandwidth`."
    )


class TuningArgs(Model):
    """Settings in `args.cni`, over those of the configuration."""

    sysctl: dict[str, Any] | None = Field(None, description="Instead of `sysctl`.", examples=[{"net.core.somaxconn": "500"}])
    mac: StrictStr = Field("", description="Instead of `mac`, of CNI_ARGS and of the runtime.", examples=["c2:11:22:33:44:55"])
    mtu: StrictInt | None = Field(None, ge=0, le=_MAX31, description="Instead of `mtu`.", examples=[1400])
    promisc: StrictBool | None = Field(None, description="Instead of `promisc`.", examples=[True])
    allmulti: StrictBool | None = Field(None, description="Instead of `allmulti`.", examples=[True])
    tx_q_len: StrictInt | None = Field(None, ge=0, le=_MAX31, description="Instead of `txQLen`.", examples=[500])


class TuningArgsOfAll(Model):
    cni: TuningArgs = Field(TuningArgs(), description="Arguments that a runtime or an orchestrator gives a network.")


class TuningConfig(NetworkConfig):
    """Keys of `tuning`, which follows a plugin that makes an interface."""

    sysctl: dict[str, Any] = Field(
        {},
        description="Kernel parameters in the sandbox, below `net`. Values are strings; `IFNAME` in a key is the interface. "
        "If `/etc/cni/tuning/allowlist.conf` exists, a key has to match one of its regular expressions, a line each.",
        examples=[{"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/arp_filter": "1"}],
    )
    mac: StrictStr = Field("", description="MAC address.", examples=["c2:11:22:33:44:55"])
    mtu: StrictInt = Field(0, ge=0, le=_MAX31, description="MTU, in bytes; 0: unchanged.", examples=[1400])
    promisc: StrictBool = Field(False, description="Receive every packet; `false`: unchanged.")
    allmulti: StrictBool | None = Field(
        None, description="Receive every multicast packet, or not. Default: unchanged.", examples=[True]
    )
    tx_q_len: StrictInt | None = Field(
        None, ge=0, le=_MAX31, description="Length of the transmit queue, in packets. Default: unchanged.", examples=[500]
    )
    data_dir: StrictStr = Field(
        "/run/cni/tuning", description="Directory for the values of before ADD, which DEL restores.", examples=["/run/tuning"]
    )
    args: TuningArgsOfAll = Field(TuningArgsOfAll(), description="`args.cni`: the same keys, without `dataDir`.")
    runtime_config: MacArgs = Field(MacArgs(), description="Set by the runtime: the capability `mac`.")


class FirewallConfig(NetworkConfig):
    """Keys of `firewall`, which follows a plugin that gives addresses."""

    backend: StrictStr = Field(
        "",
        description="`iptables` or `firewalld`. Default: firewalld if it runs, else iptables. Other values mean iptables.",
        examples=["iptables"],
    )
    iptables_admin_chain_name: StrictStr = Field(
        "CNI-ADMIN",
        description="Chain for the administrator's own rules, which come first; created if it does not exist.",
        examples=["NODE-RULES"],
    )
    firewalld_zone: StrictStr = Field("trusted", description="Zone of firewalld that pods are sources of.", examples=["pods"])
    ingress_policy: StrictStr = Field(
        "open",
        description="`open`; `same-bridge`: packets from pods of other bridges with this policy are dropped; `isolated`: those "
        "from pods of the same bridge, too (only where br_netfilter passes them through iptables).",
        examples=["same-bridge"],
    )


class SbrConfig(NetworkConfig):
    """Keys of `sbr`, routing by source, which follows a main plugin."""

    table: StrictInt | None = Field(
        None,
        ge=1,
        le=0xFFFFFFFF,
        description="Table that the rules lead to; nothing else is changed. Default: a free one from 100 on for each address, "
        "with the interface's routes.",
        examples=[200],
    )
    gateways: list[StrictStr] = Field(
        [],
        description="Gateways of the default routes, at most one of each IP version, instead of prevResult's.",
        examples=[["10.1.2.254"]],
    )
    add_source_hints: StrictBool = Field(
        False, description="Keep the subnets' routes in the table main, with the address as source."
    )


class VrfConfig(NetworkConfig):
    """Keys of `vrf`, which follows a main plugin."""

    vrfname: StrictStr = Field("", description="Name of the VRF; required. Created if it does not exist.", examples=["blue"])
    table: StrictInt = Field(
        0, ge=0, le=0xFFFFFFFF, description="Table of the VRF; 0: the lowest that no other VRF of the pod has.", examples=[100]
    )


class DhcpRequest(Model):
    """Entry of `request`."""

    option: StrictStr = Field("", description="Number, or name, of an option.", examples=["121"])
    skip_default: StrictBool = Field(False, description="Do not request `subnet-mask` and `routers` besides.")


class DhcpProvide(Model):
    """Entry of `provide`."""

    option: StrictStr = Field("", description="Number, or name, of an option.", examples=["host-name"])
    value: StrictStr = Field("", description="Its value.", examples=["web"])
    from_arg: StrictStr = Field("", description="Key of CNI_ARGS that has its value.", examples=["K8S_POD_NAME"])


class DhcpIpam(Model):
    """Keys of `ipam` for `dhcp`."""

    type: StrictStr = Field("", description="Name of the IPAM plugin's executable.", examples=["dhcp"])
    daemon_socket_path: StrictStr = Field(
        "/run/cni/dhcp.sock", description="Socket of the daemon, `dhcp daemon`.", examples=["/run/dhcp.sock"]
    )
    request: list[DhcpRequest] = Field(
        [],
        description="Options to request of the server. Names: `dhcp-client-identifier`, `subnet-mask`, `routers`, `host-name`, "
        "`user-class`, `vendor-class-identifier`.",
        examples=[[{"option": "121"}]],
    )
    provide: list[DhcpProvide] = Field(
        [], description="Options to send to the server.", examples=[[{"option": "host-name", "fromArg": "K8S_POD_NAME"}]]
    )
    priority: StrictInt = Field(0, ge=0, le=0xFFFFFFFF, description="Metric of all routes; 0: the kernel's.", examples=[100])


class DhcpConfig(NetworkConfig):
    """Keys of `dhcp`, which reads the whole configuration of the plugin that calls it."""

    ipam: DhcpIpam = Field(DhcpIpam(), description="See the keys below.")


class LoopbackConfig(NetworkConfig):
    """Keys of `loopback`: no own ones."""


class ResultInterface(Model):
    name: StrictStr
    mac: StrictStr = ""
    mtu: StrictInt = Field(0, ge=0)
    sandbox: StrictStr = ""
    socket_path: StrictStr = ""
    pci_id: StrictStr = Field("", alias="pciID")


class ResultIP(Model):
    address: StrictStr
    gateway: StrictStr = ""
    interface: StrictInt | None = Field(None, ge=0)


class AnyResult(Model):
    """Result of 0.3.0 or newer."""

    interfaces: list[ResultInterface] = []
    ips: list[ResultIP] = []
    routes: list[Route] = []
    dns: DNS = DNS()


class OldResultIP(Model):
    ip: StrictStr
    gateway: StrictStr = ""
    routes: list[Route] = []


class OldResult(Model):
    """Result of 0.1.0 or 0.2.0."""

    ip4: OldResultIP | None = None
    ip6: OldResultIP | None = None
    dns: DNS = DNS()


class ValidAttachment(Model):
    container_id: StrictStr = Field(alias="containerID")
    ifname: StrictStr


class ValidAttachments(Model):
    """Value of `cni.dev/valid-attachments`, for GC."""

    attachments: list[ValidAttachment]


PLUGIN_MODELS: dict[str, type[NetworkConfig]] = {plugin: globals()[row.model] for plugin, row in PLUGINS.items()}
MODELS: tuple[type[Model], ...] = (*PLUGIN_MODELS.values(), AnyResult, OldResult, ValidAttachments)


def render_schemas() -> str:
    """Return the text of ``_schemas.py`` before it is formatted."""
    rendered: dict[str, str] = {}
    for model in MODELS:
        _render_model(model.__pydantic_core_schema__, {}, rendered)
    names = ", ".join(f'"{model.__name__}": {model.__name__}' for model in MODELS)
    return f"{_SCHEMAS_HEAD}\n{''.join(rendered.values())}\nSCHEMAS: dict[str, Schema] = {{{names},}}\n"


def _render_model(schema: Any, definitions: dict[str, Any], rendered: dict[str, str]) -> str:
    """Add the assignment of a model, after those of the models in it. Returns: its name."""
    if schema["type"] == "definitions":
        return _render_model(schema["schema"], definitions | {d["ref"]: d for d in schema["definitions"]}, rendered)
    name: str = schema["cls"].__name__
    fields = [
        f"{key}=({field['validation_alias']!r}, {_render(field['schema'], definitions, rendered)}),"
        for key, field in schema["schema"]["fields"].items()
    ]
    rendered.setdefault(name, f"{name} = _model({name!r}, {''.join(fields)})\n")
    return name


def _render(schema: Any, definitions: dict[str, Any], rendered: dict[str, str]) -> str:
    """Return the expression for a core schema, in the names and functions of the head."""
    kind = schema["type"]
    if kind == "definition-ref":
        return _render(definitions[schema["schema_ref"]], definitions, rendered)
    if kind in ("model", "definitions"):
        return _render_model(schema, definitions, rendered)
    if kind in _CONSTANTS:
        return _CONSTANTS[kind]
    inner = next((schema[key] for key in ("schema", "items_schema") if key in schema), None)
    words = [_render(inner, definitions, rendered)] if inner else []
    words += [f"{key}={schema[key]!r}" for key in ("ge", "le", "expected") if key in schema]
    if "default" in schema:
        words.append(_render_default(schema["default"]))
    return f"_{kind}({', '.join(words)})"


def _render_default(value: Any) -> str:
    """Return what makes the default: a function where each object needs its own."""
    if isinstance(value, BaseModel):
        return "validated=True"
    return {"{}": "make=dict", "[]": "make=list"}.get(repr(value), f"value={value!r}")


_CONSTANTS = {"str": "STR", "bool": "BOOL", "dict": "OBJECT"}

_SCHEMAS_HEAD = '''"""Core schemas of the configurations, for ``pydantic_core.SchemaValidator``.

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

'''
