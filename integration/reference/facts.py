"""Facts of the reference that no model or parser has: files, kernel objects, variables of the environment.

tests/unit/test_reference.py compares them with the sources: a path, a chain, a kernel parameter or a variable of the code that
has no row here fails. ``integration/reference/pages.py`` renders them.
"""

from __future__ import annotations

from typing import NamedTuple

from cni_py.plugin_table import PLUGINS

EVERY = ("every plugin",)
"""Owner of what each plugin uses, whatever its configuration."""
RECORDED = tuple(name for name, row in PLUGINS.items() if row.record == "shared")
ADDRESSES = tuple(name for name, row in PLUGINS.items() if row.gives_addresses and row.kind == "main")
"""Main plugins whose interfaces have leased addresses."""


class File(NamedTuple):
    """A file, directory, socket or lock. ``path``: words in capitals, and ``…``, stand for what differs."""

    path: str
    owners: tuple[str, ...]
    what: str
    delete: str
    """Answer to: may it be deleted, and what happens then."""


FILES = {
    "Configuration": (
        File(
            "/etc/cni/net.d/*.conflist, *.conf, *.json",
            ("cni-py", "the runtime"),
            "network configurations; the runtime and cni-py pass them to the plugins",
            "the network cannot be attached to any more",
        ),
        File(
            "/etc/cni/tuning/allowlist.conf",
            ("tuning",),
            "regular expressions, a line each: a sysctl of tuning has to match one, if the file exists",
            "every sysctl below net is allowed",
        ),
        File(
            "/etc/resolv.conf",
            ("host-local",),
            "the file that resolvConf usually names: name servers and search domains of the result",
            "no",
        ),
        File(
            "/etc/kube-flannel/flanneld.env",
            ("flanneld",),
            "options as variables, which flanneld.service reads",
            "no",
        ),
        File(
            "/etc/kube-flannel/net-conf.json",
            ("flanneld",),
            "with -kube-subnet-mgr, the network's configuration (-net-config-path)",
            "no",
        ),
        File(
            "/etc/kube-flannel/etcd-ca.crt, flanneld.crt, flanneld.key",
            ("flanneld",),
            "TLS files for etcd, as flanneld.env names them (-etcd-cafile, -etcd-certfile, -etcd-keyfile)",
            "no",
        ),
        File(
            "/var/run/secrets/kubernetes.io/serviceaccount/…",
            ("flanneld",),
            "in a pod: token and CA of the Kubernetes API, and the pod's namespace",
            "no",
        ),
    ),
    "State that survives a reboot": (
        File(
            "/var/lib/cni/flannel/CONTAINERID",
            ("flannel",),
            "the delegate's configuration as used by ADD, for DEL, as Go's; CONTAINERID:IFNAME of a second interface (dataDir)",
            "no",
        ),
        File(
            "/var/lib/cni/networks/NETWORK/ADDRESS",
            ("host-local",),
            "a reservation, as Go's: container id and interface are its content (dataDir)",
            "no: the address would be given to a second pod",
        ),
        File(
            "/var/lib/cni/networks/NETWORK/last_reserved_ip.N",
            ("host-local",),
            "the last address of a range set that was given; the next pod gets the one after it",
            "yes",
        ),
        File("/var/lib/cni/networks/NETWORK/lock", ("host-local",), "lock of the reservations, as Go's", "no"),
        File(
            "/var/lib/cni/results/NETWORK-CONTAINERID-IFNAME",
            ("cni-py", "the runtime"),
            "results of ADD, libcni's form (kind cniCacheV1), for CHECK and DEL (--cache-dir)",
            "no: DEL would have no prevResult",
        ),
        File(
            "/var/lib/cni-py/flanneld.json",
            ("flanneld",),
            "the last known leases, one per line, by which a node forwards before its datastore responds; with another "
            "-subnet-file flanneld-run-flannel-NAME.env.json",
            "yes",
        ),
    ),
    "State of this boot": (
        File(
            "/run/flannel/subnet.env",
            ("flanneld", "flannel"),
            "subnet, network and MTU, for the plugin; restored within a second while flanneld runs (-subnet-file, subnetFile)",
            "yes; while flanneld does not run, no pod starts then",
        ),
        File(
            "/run/flannel/.subnet.env.lock",
            ("flanneld",),
            "lock of the running flanneld: there is one per subnet file",
            "no",
        ),
        File(
            "/var/lib/cni-py/flanneld.json.lock",
            ("flanneld",),
            "the same lock, where /run/flannel cannot be used",
            "no",
        ),
        File(
            "FILE, FILE.lock",
            ("flanneld", "cni-py"),
            "with -datastore file:FILE: configuration and leases, and the lock of their writers",
            "no",
        ),
        File(
            "/run/flannel/journal",
            ("flanneld", "cni-py"),
            "the last changes that flanneld made, each with the lease or event behind it, 64 KiB at most, for "
            "cni-py explain --flanneld; with another -subnet-file FILE.journal beside it",
            "yes; a running flanneld goes on writing to the deleted file",
        ),
        File(
            "/run/flannel/wgkey",
            ("flanneld",),
            "with wireguard, the node's private key (WIREGUARD_KEY_FILE); created if it does not exist",
            "a new one is created",
        ),
        File("/run/cni-py", EVERY, "directory of records, journals and locks; only root may read it", "yes"),
        File(
            "/run/cni-py/attachments/CONTAINERID:IFNAME:NETWORK",
            RECORDED,
            "record of an attachment: its namespace and pod; lets GC work without a list",
            "yes; GC keeps what it has no record of",
        ),
        *(
            File(
                f"/run/cni-py/{name}/CONTAINERID:IFNAME:NETWORK",
                (name,),
                "the plugin's own record of an attachment, for DEL without a previous result, GC and cni-py repair",
                "yes; GC keeps what it has no record of",
            )
            for name, row in PLUGINS.items()
            if row.record == "own"
        ),
        File(
            "/run/cni-py/journal/CONTAINERID:IFNAME:NETWORK",
            (*EVERY, "cni-py"),
            "changes made for an attachment, 64 KiB each, 1,000 files at most, for cni-py explain; deleted/… of deleted ones, "
            "sweep and repair of those commands",
            "yes",
        ),
        File(
            "/run/cni-py/boot-id",
            (*RECORDED, "cni-py"),
            "the boot that has had its first call, which sweeps its network",
            "yes",
        ),
        File(
            "/run/cni-py/turns.lock",
            EVERY,
            "lock that serializes ADD and DEL of an attachment, GC of a network; if unusable, an abstract socket is",
            "no",
        ),
        File("/run/cni-py/agent.sock", ("cni-agent", *EVERY), "socket of the agent (--socket); plugins ask there first", "yes"),
        File("/run/cni-py/dhcp/…", ("dhcp",), "leases of the DHCP daemon, for the next one after a restart", "yes"),
        File(
            "/run/cni/dhcp.sock", ("dhcp",), "socket of the DHCP daemon (-socketpath, daemonSocketPath)", "while no daemon runs"
        ),
        File(
            "/run/cni/tuning/CONTAINERID_IFNAME.json",
            ("tuning",),
            "values of before ADD, which DEL restores, as Go's (dataDir)",
            "DEL restores nothing then",
        ),
        File("/run/netns/NAME, /var/run/netns/NAME", ("cni-py", "the runtime"), "network namespaces with a name", "no"),
        File("/run/dbus/system_bus_socket", ("firewall",), "the system bus, over which firewalld is asked", "no"),
        File(
            "/run/cni-py/lab/…",
            ("cni-py",),
            "a lab: state.json and keeper, its state and first process; log/ of its daemons; shared/flannel.json, the file "
            "datastore (--directory)",
            "cni-py lab down deletes it",
        ),
        File("/run/lab/…", ("cni-py",), "the same, as the nodes of a lab see it", "cni-py lab down deletes it"),
    ),
    "The installation, below PREFIX (/opt)": (
        File("/opt/cni/bin/PLUGIN", (*EVERY,), "the plugins, each a copy of the launcher cni-plugin", "make uninstall"),
        File("/opt/bin/cni-py, flanneld, cni-agent", ("cni-py", "flanneld", "cni-agent"), "the commands", "make uninstall"),
        File("/opt/cni-py/…", ("cni-py",), "the package and its libraries, configuration, manifest", "make uninstall"),
        File("/opt/share/man/…, /opt/man/…", ("cni-py",), "man pages, and links to them", "yes"),
        File(
            "/opt/share/bash-completion/…, zsh/…, fish/…",
            ("cni-py",),
            "completion of commands and options for the shells",
            "yes",
        ),
    ),
}
"""Files by heading."""

NOT_OURS = (
    ("/run/xtables.lock", "lock of iptables, which its programs take"),
    (
        "/etc/systemd/system/…, /run/systemd/system/…, /usr/lib/systemd/system/…, /usr/local/lib/systemd/system/…",
        "units: links to ours, and flanneld.service of another installation",
    ),
    ("/etc/default/flanneld, /etc/sysconfig/flanneld, /run/flannel/docker", "options of a flanneld of another installation"),
    ("/etc/kube-flannel/cni-conf.json", "network configuration of flannel's own manifest"),
    ("/proc/…", "what the kernel says of processes, namespaces and its parameters"),
    ("/sys/…", "what the kernel says of devices"),
    ("/dev/…", "devices: tun for tap, null, the standard streams"),
    (
        "/usr/bin/…, /usr/local/bin/…, /usr/sbin/…, /usr/local/sbin/…, /bin/…, /sbin/…",
        "programs that are executed: iptables, ip, etcd …",
    ),
    ("/usr/lib/cni, /usr/libexec/cni", "directories of plugins that error messages look into"),
)
"""Paths of the system that are read, and are not state of this suite."""


class Object(NamedTuple):
    """An object of the kernel. ``name``: words in capitals stand for what differs.

    ``groups`` are those of ``cni_py/explain/shapes.py`` whose commands make or change it.
    """

    name: str
    owners: tuple[str, ...]
    what: str
    until: str
    """Command or event that deletes it."""
    groups: tuple[str, ...] = ()


WITH_POD = "DEL, GC, cni-py sweep"
WITH_SANDBOX = "DEL, or with the sandbox"
STAYS = "kept: other pods use it"
CLEANUP = "flanneld --cleanup"
GATEWAYS = ("bridge", "ptp")

KERNEL = {
    "Links": (
        Object("BRIDGE (cni0)", ("bridge",), "the switch of a network's pods on this node", STAYS, ("bridge", "interface")),
        Object(
            "BRIDGE.VLAN",
            ("bridge",),
            "a veth whose other end is a port of the bridge: it has the gateway's address in a VLAN",
            STAYS,
            ("veth",),
        ),
        Object(
            "vethXXXXXXXX, altname cni:CONTAINERID:IFNAME:NETWORK",
            GATEWAYS,
            "the host end of a pod's interface; its alternative name is the owner (an alias on old kernels)",
            WITH_POD,
            ("veth",),
        ),
        Object(
            "IFNAME (eth0) in the sandbox",
            ("bridge", "ptp", "macvlan", "ipvlan", "vlan", "dummy", "tap", "host-device"),
            "the pod's interface: end of a veth, macvlan, ipvlan, VLAN, dummy, TAP, or the device of the host",
            WITH_SANDBOX,
            ("interface", "device"),
        ),
        Object("lo in the sandbox", ("loopback",), "is set up", "DEL sets it down", ("interface",)),
        Object(
            "alias of IFNAME: the name on the host",
            ("host-device",),
            "the name that the device gets again",
            "DEL; also a device that a deleted sandbox gave back is renamed",
            ("device",),
        ),
        Object(
            "bwpXXXXXXXX, alias cni-ifb:…", ("bandwidth",), "an ifb: what the pod sends is queued on it", WITH_POD, ("shaping",)
        ),
        Object(
            "VRFNAME in the sandbox", ("vrf",), "the VRF, shared by the interfaces in it", "DEL of its last interface", ("vrf",)
        ),
        Object("flannel.VNI, flannel-v6.VNI", ("flanneld",), "the VXLAN devices", CLEANUP, ("tunnel",)),
        Object(
            "flannel-wg, flannel-wg-v6",
            ("flanneld",),
            "the WireGuard devices, with a peer for each node",
            CLEANUP,
            ("tunnel", "peer"),
        ),
        Object("flannel.ipip", ("flanneld",), "the IPIP device", CLEANUP, ("tunnel",)),
        Object("flannel0", ("flanneld",), "the TUN device of the back end udp", "when flanneld ends", ("tunnel",)),
        Object(
            "MAC address, MTU, queue length, flags of IFNAME",
            ("tuning",),
            "those of the configuration",
            "DEL restores them",
            ("interface",),
        ),
    ),
    "Ports and VLANs of a bridge": (
        Object("port of a bridge: hairpin, isolated", ("bridge",), "hairpinMode, portIsolation", "with the link", ("bridge",)),
        Object("VLANs of a port", ("bridge",), "vlan, vlanTrunk", "with the link", ("vlan",)),
    ),
    "Addresses": (
        Object(
            "ADDRESS on IFNAME in the sandbox",
            ADDRESSES,
            "what the IPAM plugin gave",
            WITH_SANDBOX,
            ("address",),
        ),
        Object("GATEWAY on BRIDGE, on BRIDGE.VLAN", ("bridge",), "isGateway: the gateway of the pods", STAYS, ("address",)),
        Object("GATEWAY/32, /128 on vethXXXXXXXX", ("ptp",), "the gateway of one pod", WITH_POD, ("address",)),
        Object(
            "the subnet's first address on flannel.VNI, flannel-wg …",
            ("flanneld",),
            "source of what the node sends to pods",
            CLEANUP,
            ("address",),
        ),
        Object(
            "GATEWAY of a former subnet on the bridge",
            ("flanneld",),
            "is deleted once no pod has an address of that subnet",
            "then",
            ("address",),
        ),
    ),
    "Routes": (
        Object(
            "default and routes of the result, in the sandbox",
            ADDRESSES,
            "what the IPAM plugin gave; isDefaultGateway",
            WITH_SANDBOX,
            ("route",),
        ),
        Object("ADDRESS dev vethXXXXXXXX", ("ptp",), "leads to one pod", WITH_POD, ("route",)),
        Object(
            "default and copies in table 100 and following, in the sandbox",
            ("sbr",),
            "the routes of one address",
            WITH_SANDBOX,
            ("route",),
        ),
        Object("routes in the table of VRFNAME, in the sandbox", ("vrf",), "those of its interfaces", WITH_SANDBOX, ("route",)),
        Object(
            "SUBNET … proto 122",
            ("flanneld",),
            "leads to another node's pods: ip route show proto 122",
            "when its lease no longer exists; " + CLEANUP,
            ("route",),
        ),
        Object(
            "blackhole SUBNET proto 122",
            ("flanneld",),
            "-ip-blackhole-route: drops packets to unused addresses of the node's own subnet",
            CLEANUP,
            ("route",),
        ),
    ),
    "Policy rules": (
        Object(
            "from ADDRESS lookup TABLE, in the sandbox",
            ("sbr",),
            "a packet leaves over its address's interface",
            WITH_SANDBOX,
            ("rule",),
        ),
    ),
    "Neighbours and FDB": (
        Object(
            "ADDRESS lladdr MAC dev flannel.VNI, permanent",
            ("flanneld",),
            "a node's VXLAN device, as its lease publishes it",
            "when its lease no longer exists; " + CLEANUP,
            ("neighbour",),
        ),
        Object(
            "MAC dev flannel.VNI dst NODE, permanent (FDB)",
            ("flanneld",),
            "the node that has the MAC address",
            "when its lease no longer exists; " + CLEANUP,
            ("fdb",),
        ),
    ),
    "nftables": (
        Object(
            "table inet cni_py",
            ("bridge", "ptp", "portmap"),
            "masquerade and host ports of pods",
            STAYS,
            ("masquerade", "hostport"),
        ),
        Object(
            "map masq4, masq6",
            GATEWAYS,
            "an element per address that is masqueraded (ipMasq); its comment names the owner",
            WITH_POD,
            ("masquerade",),
        ),
        Object("chain postrouting", GATEWAYS, "leads to the chain of the pod's subnet", STAYS, ("masquerade",)),
        Object(
            "chain beyond-SUBNET", GATEWAYS, "masquerades what leaves the subnet", "with the last pod of it", ("masquerade",)
        ),
        Object(
            "map hostports4, hostports6, hostports4_at, hostports6_at",
            ("portmap",),
            "protocol and port, of any or of one address, to the pod's address and port; the comment names the owner",
            WITH_POD,
            ("hostport",),
        ),
        Object(
            "map sources4, sources6, sources4_at, sources6_at",
            ("portmap",),
            "protocol and port to the chain that marks masqueraded sources",
            WITH_POD,
            ("hostport",),
        ),
        Object(
            "chain prerouting, output, hostports4, hostports6",
            ("portmap",),
            "translate what goes to this host",
            STAYS,
            ("hostport",),
        ),
        Object(
            "chain markBIT-from-SUBNET, markBIT-from-all",
            ("portmap",),
            "marks sources that are masqueraded",
            "with the last pod of it",
            ("hostport",),
        ),
        Object(
            "chain masquerade-markBIT",
            ("portmap",),
            "masquerades what is marked",
            "with the last chain that sets the mark",
            ("hostport",),
        ),
        Object("chain if-HASH", ("portmap",), "conditionsV4, conditionsV6", "with the last pod of it", ("hostport",)),
        Object(
            "set localnet, chain localnet",
            ("portmap",),
            "links with route_localnet; pods reach nothing else on 127.0.0.1",
            "with the link",
            ("hostport",),
        ),
        Object("table bridge cni_py", ("bridge",), "checks of MAC addresses (macspoofchk)", STAYS, ("mac",)),
        Object(
            "set checked, set allowed, chain prerouting",
            ("bridge",),
            "ports that are checked, and each with its MAC address",
            WITH_POD,
            ("mac",),
        ),
        Object(
            "table inet cni_py_flanneld, chain postrouting",
            ("flanneld",),
            "-ip-masq: masquerade of the flannel network",
            CLEANUP,
            ("masquerade",),
        ),
        Object(
            "table inet cni_py_flanneld_vxlan, chain input",
            ("flanneld",),
            "-vxlan-one-address: drops VXLAN for other addresses",
            "a start without the option; " + CLEANUP,
            ("firewall",),
        ),
    ),
    "iptables, where nftables does not work or is not chosen": (
        Object(
            "nat: CNI-HASH, and its jump in POSTROUTING",
            GATEWAYS,
            "masquerade of an attachment, in Go's form",
            WITH_POD,
            ("masquerade",),
        ),
        Object("nat: CNI-DN-HASH", ("portmap",), "host ports of an attachment, in Go's form", WITH_POD, ("hostport",)),
        Object(
            "nat: CNI-HOSTPORT-DNAT, CNI-HOSTPORT-SETMARK, CNI-HOSTPORT-MASQ",
            ("portmap",),
            "lead to the chains of attachments, mark and masquerade",
            STAYS,
            ("hostport",),
        ),
        Object(
            "nat: CNI-SN-HASH, CNI-HOSTPORT-SNAT",
            ("portmap",),
            "of Go's plugins before 0.8; only deleted",
            "DEL",
            ("hostport",),
        ),
        Object(
            "filter: CNI-FORWARD",
            ("firewall",),
            "accepts packets from and to the pods' addresses",
            "rules: " + WITH_POD,
            ("firewall",),
        ),
        Object("filter: CNI-ADMIN", ("firewall",), "empty, for rules of yours that come first", STAYS, ("firewall",)),
        Object(
            "filter: CNI-ISOLATION-STAGE-1, CNI-ISOLATION-STAGE-2",
            ("firewall",),
            "ingressPolicy: packets between bridges are dropped",
            STAYS,
            ("firewall",),
        ),
        Object(
            "nat: CNI-PY-FLANNEL-MASQ", ("flanneld",), "-ip-masq: masquerade of the flannel network", CLEANUP, ("masquerade",)
        ),
        Object(
            "filter: CNI-PY-FLANNEL-FWD",
            ("flanneld",),
            "-iptables-forward-rules: accepts the flannel network",
            CLEANUP,
            ("firewall",),
        ),
        Object(
            "sources of a zone of firewalld",
            ("firewall",),
            "backend firewalld: the pods' addresses (firewalldZone)",
            WITH_POD,
            ("firewall",),
        ),
    ),
    "Connection tracking": (
        Object(
            "connections of a host port",
            ("portmap",),
            "UDP flows are deleted when the port is mapped or unmapped",
            "at once",
            ("connections",),
        ),
    ),
    "Queueing disciplines and filters": (
        Object("root tbf of vethXXXXXXXX", ("bandwidth",), "ingressRate: limits what the pod receives", WITH_POD, ("shaping",)),
        Object("root tbf of bwpXXXXXXXX", ("bandwidth",), "egressRate: limits what the pod sends", WITH_POD, ("shaping",)),
        Object(
            "ingress and a u32 filter of vethXXXXXXXX",
            ("bandwidth",),
            "lead what the pod sends to the ifb",
            WITH_POD,
            ("shaping",),
        ),
    ),
    "Kernel parameters (sysctl)": (
        Object(
            "net/ipv4/ip_forward, net/ipv6/conf/all/forwarding",
            (*GATEWAYS, "flanneld"),
            "1: the node forwards packets of pods",
            STAYS,
            ("forwarding",),
        ),
        Object("net/ipv4/conf/LINK/forwarding", ("flanneld",), "1 for flannel's devices", "with the link", ("forwarding",)),
        Object(
            "net/ipv4/conf/LINK/route_localnet",
            ("portmap",),
            "1: a host port works on 127.0.0.1",
            "0 with the last host port",
            ("hostport",),
        ),
        Object(
            "net/ipv6/conf/LINK/disable_ipv6",
            (*GATEWAYS, "flanneld"),
            "0 for links that get an IPv6 address",
            "with the link",
            ("address", "sysctl"),
        ),
        Object(
            "net/ipv6/conf/LINK/accept_ra",
            (*GATEWAYS, "flanneld"),
            "0: no router's advertisement changes the link",
            "with the link",
            ("address",),
        ),
        Object(
            "net/ipv6/conf/LINK/accept_dad",
            ADDRESSES,
            "0: no wait for duplicates, which IPAM excludes (enabledad)",
            "with the link",
            ("address",),
        ),
        Object(
            "net/ipv4/conf/IFNAME/arp_notify, in the sandbox",
            ADDRESSES,
            "1: announces the address",
            "with the link",
            ("address",),
        ),
        Object(
            "net/ipv6/conf/IFNAME/ndisc_notify, in the sandbox",
            ADDRESSES,
            "1: announces the address",
            "with the link",
            ("address",),
        ),
        Object("net/…, in the sandbox", ("tuning",), "sysctl of the configuration", "with the sandbox", ("sysctl",)),
    ),
}
"""Objects by kind."""

ON_DISK = {"record", "configuration", "directory", "reservation", "lease", "state", "other"}
"""Groups of changes that are files: FILES has them."""


class Variable(NamedTuple):
    """A variable of the environment that no option has."""

    name: str
    owners: tuple[str, ...]
    what: str


ENVIRONMENT = (
    Variable("CNI_COMMAND", EVERY, "the verb: ADD, DEL, CHECK, GC, STATUS, VERSION. Without it a plugin prints what it is"),
    Variable(
        "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
        EVERY,
        "the attachment: container, network namespace, name of the interface in it",
    ),
    Variable("CNI_ARGS", EVERY, "KEY=VALUE;KEY=VALUE: IP and MAC of some plugins, the pod's name (K8S_POD_NAME …)"),
    Variable("CNI_PATH", EVERY, "directories in which plugins to delegate to are searched, separated by colons"),
    Variable("CNI_NETNS_OVERRIDE", EVERY, "1 or true: the namespace may be the host's own, as with the Go plugins"),
    Variable("CNI_PY_EXPLAIN", EVERY, "1: print each change to standard error, as the command that would make it"),
    Variable(
        "FLANNELD_…", ("flanneld", "cni-py"), "each option of flanneld, in capitals with _ for -; cni-py config reads them too"
    ),
    Variable("DBUS_SYSTEM_BUS_ADDRESS", ("firewall",), "address of the system bus, instead of /run/dbus/system_bus_socket"),
    Variable("NODE_NAME", ("flanneld",), "with -kube-subnet-mgr: the name of this Node"),
    Variable("POD_NAME, POD_NAMESPACE", ("flanneld",), "with -kube-subnet-mgr, without NODE_NAME: the pod whose Node it is"),
    Variable("KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT", ("flanneld",), "in a pod: the API server"),
    Variable("WIREGUARD_KEY_FILE", ("flanneld",), "with wireguard: the file of the private key, instead of /run/flannel/wgkey"),
    Variable(
        "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID",
        ("flanneld", "cni-agent"),
        "set by systemd: where the daemon reports that it is ready and alive",
    ),
    Variable("LISTEN_PID, LISTEN_FDS", ("cni-agent", "dhcp"), "set by systemd: the socket that it has opened"),
    Variable("GRPC_VERBOSITY", ("flanneld",), "log of the gRPC library; NONE unless it is set"),
    Variable("XDG_STATE_HOME", ("cni-py",), "cni-py lesson keeps progress in cni-py below it (~/.local/state)"),
    Variable("NO_COLOR", ("cni-py",), "no colours"),
    Variable("SHELL, PATH", ("cni-py",), "cni-py lab exec without a command runs the shell"),
)


def of(owner: str, owners: tuple[str, ...]) -> bool:
    """Return whether a row is of this program or plugin."""
    return owner in owners or (owner in PLUGINS and EVERY[0] in owners)
