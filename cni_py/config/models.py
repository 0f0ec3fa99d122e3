"""The configurations that the plugins accept, as pydantic models: the one definition of each key.

``_schemas.py`` is generated from them (``python -m cni_py.config.models``) for the plugins, which cannot
pay 70 ms for importing pydantic; docs/configuration.md is generated as well. Unknown keys are
accepted, wrong types refused (spec section 1). Addresses stay text here: the modules that use
them parse them, with errors that name the key.
"""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, AliasGenerator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic.alias_generators import to_camel, to_pascal

from cni_py.config._schemas import Parsed
from cni_py.plugin_table import PLUGINS


class Model(BaseModel):
    """Keys are the spec's camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class FromRuntime(Model):
    """An object in a runtime's capabilities: containerd (go-cni, types.go) writes `HostPort` for `hostPort`."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(
            alias=to_camel, validation_alias=lambda name: AliasChoices(to_camel(name), to_pascal(name))
        )
    )


class DNS(Model):
    """Name service settings (spec section 1, "dns")."""

    nameservers: list[StrictStr] = Field(
        [], description="Addresses of name servers, the preferred one first.", examples=[["10.96.0.10"]]
    )
    domain: StrictStr = Field("", description="The local domain.", examples=["cluster.local"])
    search: list[StrictStr] = Field(
        [], description="Domains to look short names up in, in order.", examples=[["svc.cluster.local"]]
    )
    options: list[StrictStr] = Field([], description="Options of the resolver.", examples=[["ndots:5"]])


class Route(Model):
    """A route; addresses in text."""

    dst: StrictStr = Field(description="Destination with prefix.", examples=["0.0.0.0/0"])
    gw: StrictStr = Field("", description="Next hop; left out: the gateway of the addresses.", examples=["10.1.2.254"])
    mtu: StrictInt | None = Field(None, ge=0, description="MTU of the route, bytes.", examples=[1400])
    advmss: StrictInt | None = Field(None, ge=0, description="Segment size that TCP announces, bytes.", examples=[1360])
    priority: StrictInt | None = Field(
        None, ge=0, le=0xFFFFFFFF, description="Metric: of two equal routes the lower one counts.", examples=[100]
    )
    table: StrictInt | None = Field(
        None, ge=0, le=0xFFFFFFFF, description="Routing table; left out: the main one.", examples=[100]
    )
    scope: StrictInt | None = Field(
        None, ge=0, le=255, description="0 anywhere, 253 on the link, 254 this host.", examples=[253]
    )


class NetworkConfig(Model):
    """The keys that every plugin knows."""

    cni_version: StrictStr = Field("0.1.0", description="The version of the CNI spec.")
    name: StrictStr = Field("", description="The network's name.")
    type: StrictStr = Field("", description="The plugin's executable.")
    prev_result: dict[str, Any] | None = Field(None, description="Set by the runtime: the result of the plugin before.")


class FlannelConfig(NetworkConfig):
    """Keys of `flannel`."""

    subnet_file: StrictStr = Field(
        "/run/flannel/subnet.env", description="The file that flanneld writes.", examples=["/run/flannel/blue.env"]
    )
    data_dir: StrictStr = Field(
        "/var/lib/cni/flannel",
        description="Where the delegate's configuration is kept until DEL.",
        examples=["/var/lib/cni/blue"],
    )
    delegate: dict[str, Any] = Field(
        {},
        description="Configuration of the plugin that does the work, without `name` and `ipam`. `type`: `bridge` if left out.",
        examples=[{"hairpinMode": True, "isDefaultGateway": True}],
    )
    ipam: dict[str, Any] = Field(
        {},
        description="Merged into the delegate's `ipam`: its `ranges` are set, its `routes` are extended.",
        examples=[{"dataDir": "/run/ipam"}],
    )
    runtime_config: dict[str, Any] | None = Field(
        None, description="Set by the runtime: capability arguments, handed to the delegate."
    )
    delegate_mode: Literal["auto", "exec", "native"] = Field(
        "auto",
        description="How the delegate is run. `auto`: in this process where the executable found along CNI_PATH is ours or "
        "where none is found, by executing it where it is another one's; `exec`: always execute it; `native`: always in this "
        "process.",
        examples=["exec"],
    )
    masquerade_beyond: Literal["subnet", "network"] = Field(
        "subnet",
        description="Which destinations the bridge does not masquerade: the node's own `subnet` (as Go) or the whole flannel "
        "`network`, so that pods of other nodes see the pod's address.",
        examples=["network"],
    )


class VlanRange(Model):
    """One entry of `vlanTrunk`."""

    id: StrictInt | None = Field(None, ge=1, le=4094, description="One VLAN.", examples=[7])
    min_id: StrictInt | None = Field(None, ge=1, le=4094, alias="minID", description="First VLAN of a range.", examples=[10])
    max_id: StrictInt | None = Field(None, ge=1, le=4094, alias="maxID", description="Last VLAN of a range.", examples=[20])


class MacArgs(Model):
    mac: StrictStr = Field("", description="MAC address of the sandbox's end.", examples=["c2:11:22:33:44:55"])


class BridgeArgs(Model):
    cni: MacArgs = MacArgs()


class IpamType(Model):
    type: StrictStr = Field("", description="The IPAM plugin's executable.", examples=["host-local"])


class BridgeConfig(NetworkConfig):
    """Keys of `bridge`."""

    bridge: StrictStr = Field("cni0", description="Name of the bridge; made if it is not there.", examples=["br0"])
    is_gateway: StrictBool = Field(False, description="Give the bridge the gateway's address and switch forwarding on.")
    is_default_gateway: StrictBool = Field(False, description="`isGateway`, and a default route to it in the sandbox.")
    force_address: StrictBool = Field(False, description="Replace another address of the same family that the bridge has.")
    ip_masq: StrictBool = Field(False, description="Masquerade what leaves the pod's subnet.")
    ip_masq_backend: StrictStr | None = Field(
        None, description="`nftables` or `iptables`; left out: nftables where it works, else iptables.", examples=["iptables"]
    )
    masquerade_except: list[StrictStr] = Field(
        [], description="More networks that are not masqueraded, beside the pod's own subnet.", examples=[["10.244.0.0/16"]]
    )
    mtu: StrictInt = Field(
        0, ge=0, le=65535, description="MTU of the veth and of a bridge that is made; 0: the kernel's.", examples=[1450]
    )
    hairpin_mode: StrictBool = Field(False, description="Let the bridge send a frame back to the port it came from.")
    promisc_mode: StrictBool = Field(False, description="Make the bridge promiscuous; not with `hairpinMode`.")
    vlan: StrictInt = Field(0, ge=0, le=4094, description="VLAN of the port; 0: none.", examples=[100])
    vlan_trunk: list[VlanRange] = Field(
        [], description="More VLANs of the port, tagged.", examples=[[{"id": 7}, {"minID": 10, "maxID": 20}]]
    )
    preserve_default_vlan: StrictBool = Field(False, description="Keep VLAN 1 on a port that has `vlan` or `vlanTrunk`.")
    macspoofchk: StrictBool = Field(False, description="Drop frames whose source is not the sandbox's MAC address.")
    enabledad: StrictBool = Field(False, description="Let IPv6 detect duplicate addresses before one is used.")
    disable_container_interface: StrictBool = Field(False, description="Leave the sandbox's end down; not with `ipam`.")
    port_isolation: StrictBool = Field(False, description="Keep the ports of this bridge from reaching one another.")
    ipam: IpamType = Field(
        IpamType(), description="The IPAM plugin and its keys; left out: layer 2 only.", examples=[{"type": "host-local"}]
    )
    dns: DNS = Field(DNS(), description="Handed back in the result; left out: what the IPAM plugin says.")
    delegate_mode: Literal["auto", "exec", "native"] = Field(
        "auto", description="How the IPAM plugin is run: see flannel's `delegateMode`."
    )
    args: BridgeArgs = Field(BridgeArgs(), description="`args.cni.mac`: the sandbox end's MAC address.")
    runtime_config: MacArgs = Field(MacArgs(), description="Set by the runtime: the capability `mac`.")


class Range(FromRuntime):
    """A part of a subnet that addresses are taken from."""

    subnet: StrictStr = Field("", description="Subnet with prefix; needed.", examples=["10.1.2.0/24"])
    range_start: StrictStr = Field(
        "", description="First address to give; left out: the subnet's first.", examples=["10.1.2.10"]
    )
    range_end: StrictStr = Field("", description="Last address to give; left out: the subnet's last.", examples=["10.1.2.200"])
    gateway: StrictStr = Field(
        "", description="Gateway, which is never given; left out: the subnet's first address.", examples=["10.1.2.1"]
    )


class HostLocalIpam(Range):
    """Keys of `ipam` for `host-local`; `subnet` … `gateway` here are the old form of one range."""

    type: StrictStr = Field("", description="The IPAM plugin's executable.", examples=["host-local"])
    ranges: list[list[Range]] = Field(
        [], description="Range sets: one address is given of each.", examples=[[[{"subnet": "10.1.2.0/24"}]]]
    )
    routes: list[Route] = Field([], description="Routes of the result.", examples=[[{"dst": "0.0.0.0/0"}]])
    data_dir: StrictStr = Field("/var/lib/cni/networks", description="Where reservations are kept, a folder per network.")
    resolv_conf: StrictStr = Field(
        "", description="A resolv.conf whose settings are handed back as `dns`.", examples=["/etc/resolv.conf"]
    )


class IpsArgs(Model):
    ips: list[StrictStr] = Field([], description="Addresses that are asked for, prefix or not.", examples=[["10.1.2.30/24"]])


class HostLocalArgs(Model):
    cni: IpsArgs = IpsArgs()


class HostLocalRuntimeConfig(Model):
    ips: list[StrictStr] = Field([], description="Addresses that are asked for, prefix or not.", examples=[["10.1.2.30/24"]])
    ip_ranges: list[list[Range]] = Field(
        [], description="Range sets, before those of `ipam`.", examples=[[[{"subnet": "10.1.3.0/24"}]]]
    )


class HostLocalConfig(NetworkConfig):
    """Keys of `host-local`, which reads the whole configuration of the plugin that calls it."""

    ipam: HostLocalIpam | None = Field(None, description="The keys below.")
    args: HostLocalArgs = Field(HostLocalArgs(), description="`args.cni.ips`: addresses that are asked for.")
    runtime_config: HostLocalRuntimeConfig = Field(
        HostLocalRuntimeConfig(), description="Set by the runtime: the capabilities `ips` and `ipRanges`."
    )


class PortMapping(FromRuntime):
    """One entry of `portMappings`."""

    host_port: StrictInt = Field(0, description="Port of the host, 1 to 65535.", examples=[8080])
    container_port: StrictInt = Field(0, description="Port of the pod, 1 to 65535.", examples=[80])
    protocol: StrictStr = Field("", description="`tcp`, `udp` or `sctp`; case does not matter.", examples=["tcp"])
    host_ip: StrictStr = Field(
        "",
        alias="hostIP",
        validation_alias=AliasChoices("hostIP", "HostIP"),
        description="The address of the host that the mapping is for; left out: any; `0.0.0.0`, `::`: any of that IP version.",
        examples=["192.0.2.1"],
    )


class PortmapRuntimeConfig(Model):
    port_mappings: list[PortMapping] = Field(
        [], description="The ports to map.", examples=[[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]]
    )


class PortmapConfig(NetworkConfig):
    """Keys of `portmap`, which stands behind another plugin in a chain."""

    backend: StrictStr | None = Field(
        None,
        description="`nftables` or `iptables`; left out: iptables where the conditions are in its language or there is an "
        "`externalSetMarkChain`, else nftables where it works, else iptables.",
        examples=["iptables"],
    )
    snat: StrictBool = Field(
        True, description="Masquerade connections of the pod itself, of its neighbours and of 127.0.0.1, which need it."
    )
    masq_all: StrictBool = Field(
        False, description="Masquerade every connection to a mapped port: the pod sees the host's address."
    )
    mark_masq_bit: StrictInt | None = Field(
        None,
        description="Bit of a packet's mark, 0 to 31, for what is masqueraded; left out: 13. Not with `externalSetMarkChain`.",
        examples=[14],
    )
    external_set_mark_chain: StrictStr | None = Field(
        None,
        description="iptables only: somebody else's chain that marks what is masqueraded, in place of our own.",
        examples=["KUBE-MARK-MASQ"],
    )
    conditions_v4: list[StrictStr] = Field(
        [], description="Further matches of IPv4 connections, in the words of the back end.", examples=[["iifname", "eth0"]]
    )
    conditions_v6: list[StrictStr] = Field(
        [], description="Further matches of IPv6 connections, in the words of the back end.", examples=[["!", "-d", "fd00::/8"]]
    )
    runtime_config: PortmapRuntimeConfig = Field(
        PortmapRuntimeConfig(), description="Set by the runtime: the capability `portMappings`."
    )


class LoopbackConfig(NetworkConfig):
    """Keys of `loopback`: none of its own."""


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
    """A result of 0.3.0 or newer."""

    interfaces: list[ResultInterface] = []
    ips: list[ResultIP] = []
    routes: list[Route] = []
    dns: DNS = DNS()


class OldResultIP(Model):
    ip: StrictStr
    gateway: StrictStr = ""
    routes: list[Route] = []


class OldResult(Model):
    """A result of 0.1.0 or 0.2.0."""

    ip4: OldResultIP | None = None
    ip6: OldResultIP | None = None
    dns: DNS = DNS()


class ValidAttachment(Model):
    container_id: StrictStr = Field(alias="containerID")
    ifname: StrictStr


class ValidAttachments(Model):
    """What GC gets in `cni.dev/valid-attachments`."""

    attachments: list[ValidAttachment]


PLUGIN_MODELS: dict[str, type[NetworkConfig]] = {plugin: globals()[row.model] for plugin, row in PLUGINS.items()}
MODELS: tuple[type[Model], ...] = (*PLUGIN_MODELS.values(), AnyResult, OldResult, ValidAttachments)


def core_schema(model: type[Model]) -> dict[str, Any]:
    """The model's pydantic-core schema with nothing in it but literals and ``Parsed``."""
    return _plain(model.__pydantic_core_schema__, {})


def _plain(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kind = schema["type"]
    if kind == "definitions":
        return _plain(schema["schema"], definitions | {d["ref"]: d for d in schema["definitions"]})
    if kind == "definition-ref":
        return _plain(definitions[schema["schema_ref"]], definitions)
    if kind == "model":
        fields = schema["schema"]["fields"]
        name = schema["cls"].__name__
        return {
            "type": "dataclass",
            "cls": Parsed,
            "fields": list(fields),
            "schema": {
                "type": "dataclass-args",
                "dataclass_name": name,
                "fields": [
                    {
                        "type": "dataclass-field",
                        "name": key,
                        "kw_only": True,
                        "validation_alias": field["validation_alias"],
                        "schema": _plain(field["schema"], definitions),
                    }
                    for key, field in fields.items()
                ],
            },
        }
    inner = ("schema", "items_schema", "keys_schema", "values_schema")
    out = {k: _plain(v, definitions) if k in inner else v for k, v in schema.items() if k not in ("metadata", "serialization")}
    if isinstance(out.get("default"), BaseModel):
        out |= {"default": {}, "validate_default": True}
    return out


def render_schemas() -> str:
    """The text of ``_schemas.py``."""
    body = "".join(f"SCHEMAS[{m.__name__!r}] = {pprint.pformat(core_schema(m), width=118, sort_dicts=False)}\n" for m in MODELS)
    return _SCHEMAS_HEAD + body.replace(repr(Parsed), "Parsed")


_SCHEMAS_HEAD = '''"""Made from models.py by ``python -m cni_py.config.models``; a test compares the two. Not to be edited."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Parsed:
    """A validated object; its attributes are the fields of the model in models.py."""


SCHEMAS: dict[str, Any] = {}
# fmt: off
'''

if __name__ == "__main__":
    (Path(__file__).parent / "_schemas.py").write_text(render_schemas())
