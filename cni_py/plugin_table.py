"""The table of plugins: one row per plugin, with everything that other modules know about a plugin by its name.

A new plugin is a module, a model of its configuration in config/models.py, and a row here: docs/contributing.md
adds one. Literals only, and nothing is imported: the client loads this file with every call.
"""


class Row:
    """Properties of a plugin that other modules need.

    ``module`` has the functions of ``dispatch.Plugin``; ``kind`` is its directory in plugins/; ``model`` is a class of
    config/models.py.

    ``record`` says how an attachment is remembered from ADD to DEL (attachment/record.py): "shared" with the other
    plugins of the network, written by the engine; "own", written by the plugin itself, for a meta plugin, whose DEL
    comes before that of the plugin in front of it; "" for not at all.

    ``link``: the kind of its links, if a kernel may lack it.

    ``needs_link``: DEL of an IPAM plugin comes before the interface is deleted, for it sends from it.

    ``gives_addresses``: its network has a pool of addresses, whether the plugin or its delegate keeps it. ``files``
    says what the sweep finds in the configuration's ``dataDir``: "reservations", "delegate configurations" or "".

    ``since`` is the oldest version of the CNI spec that the Go plugin of this name accepts, and so does ours.
    """

    def __init__(
        self,
        module: str,
        kind: str,
        model: str,
        record: str = "",
        gives_addresses: bool = False,
        files: str = "",
        since: str = "0.1.0",
        link: str = "",
        needs_link: bool = False,
    ) -> None:
        self.module, self.kind, self.model = module, kind, model
        self.record, self.gives_addresses, self.files, self.since = record, gives_addresses, files, since
        self.link, self.needs_link = link, needs_link


PLUGINS = {
    "flannel": Row(
        "cni_py.plugins.meta.flannel",
        kind="meta",
        model="FlannelConfig",
        record="shared",
        gives_addresses=True,
        files="delegate configurations",
    ),
    "bridge": Row(
        "cni_py.plugins.main.bridge",
        kind="main",
        model="BridgeConfig",
        record="shared",
        gives_addresses=True,
    ),
    "ptp": Row("cni_py.plugins.main.ptp", kind="main", model="PtpConfig", record="shared", gives_addresses=True),
    "macvlan": Row(
        "cni_py.plugins.main.macvlan", kind="main", model="MacvlanConfig", record="shared", gives_addresses=True, link="macvlan"
    ),
    "ipvlan": Row(
        "cni_py.plugins.main.ipvlan", kind="main", model="IpvlanConfig", record="shared", gives_addresses=True, link="ipvlan"
    ),
    "vlan": Row(
        "cni_py.plugins.main.vlan", kind="main", model="VlanConfig", record="shared", gives_addresses=True, link="vlan"
    ),
    "dummy": Row(
        "cni_py.plugins.main.dummy", kind="main", model="DummyConfig", record="shared", gives_addresses=True, link="dummy"
    ),
    "tap": Row("cni_py.plugins.main.tap", kind="main", model="TapConfig", record="shared", gives_addresses=True, link="tun"),
    "host-device": Row(
        "cni_py.plugins.main.host_device", kind="main", model="HostDeviceConfig", record="shared", gives_addresses=True
    ),
    "host-local": Row(
        "cni_py.plugins.ipam.host_local",
        kind="ipam",
        model="HostLocalConfig",
        record="shared",
        gives_addresses=True,
        files="reservations",
    ),
    "dhcp": Row("cni_py.plugins.ipam.dhcp", kind="ipam", model="DhcpConfig", record="shared", needs_link=True),
    "static": Row("cni_py.plugins.ipam.static", kind="ipam", model="StaticConfig"),
    "portmap": Row("cni_py.plugins.meta.portmap", kind="meta", model="PortmapConfig", record="own"),
    "loopback": Row("cni_py.plugins.main.loopback", kind="main", model="LoopbackConfig"),
    "bandwidth": Row("cni_py.plugins.meta.bandwidth", kind="meta", model="BandwidthConfig", record="own", since="0.3.0"),
    "firewall": Row("cni_py.plugins.meta.firewall", kind="meta", model="FirewallConfig", record="own", since="0.4.0"),
    "sbr": Row("cni_py.plugins.meta.sbr", kind="meta", model="SbrConfig", record="own"),
    "vrf": Row("cni_py.plugins.meta.vrf", kind="meta", model="VrfConfig", record="own", since="0.3.1", link="vrf"),
    "tuning": Row("cni_py.plugins.meta.tuning", kind="meta", model="TuningConfig", record="own"),
}
