"""Facts about a node: plain values, so that a test can build them by hand. gather.py reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from errno import EINVAL, EXDEV
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_py.doctor.config_check import Checked
    from cni_py.errors import NotAvailable
    from cni_py.flanneld.host_networks import HostNetwork
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Attributes, Lease, Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.options import Options
    from cni_py.kernel.address import HostAddress
    from cni_py.kernel.link import Link
    from cni_py.kernel.neighbour import Forwarding, Neighbour
    from cni_py.kernel.route import Route
    from cni_py.kernel.vxlan import Vxlan, VxlanDetails
    from cni_py.packetfilter.evaluation.ruleset import Ruleset
    from cni_py.runtime.network_config import Network as CniNetwork
    from cni_py.subnet_env import SubnetEnv
    from cni_py.sweep.report import Report as SweepReport
    from cni_py.sweep.restore import Lost

Address = IPv4Address | IPv6Address
AddressWithPrefix = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

IPVS_DEVICE = "kube-ipvs0"
"""The device on which kube-proxy keeps the addresses of Services with IPVS."""

# Names of facts, as rules need them.
KERNEL = "links, addresses and routes"
FILTERS = "packet filter"
CONFIGURATION = "network configurations"
LEASES = "leases"
DAEMONS = "processes"
LEAKS = "leaked resources"
LOST_RULES = "rules of pods"
POOLS = "address pools"
PODS = "interfaces of pods"
PROBES = "probes"
KUBERNETES = "Kubernetes"
INTERFACE = "external interface"
HOST_NETWORKS = "networks of the host"
DATASTORE = "datastore"


@dataclass(frozen=True, slots=True)
class Daemon:
    """A flanneld of this network namespace. ``options`` None: its command line cannot be read as flanneld's."""

    pid: int
    program: str
    options: Options | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_ready: bool | None = None
    """Result of /readyz; None: it has no health server."""
    reasons: tuple[str, ...] = ()
    """Reasons in /readyz."""
    is_stopped: bool = False
    """Stopped by a signal or a debugger."""

    @property
    def subnet_file(self) -> str:
        return self.options.subnet_file if self.options else ""


@dataclass(frozen=True, slots=True)
class Known:
    """State that flanneld saved: the network, our lease and those of the other nodes."""

    path: str
    config: NetworkConfig
    own: Lease
    leases: Mapping[Subnets, Lease]

    @property
    def peers(self) -> list[Lease]:
        return [lease for subnets, lease in self.leases.items() if subnets != self.own.subnets]


@dataclass(frozen=True, slots=True)
class Way:
    """The kernel's choice for a packet: ``device`` "" if there is none; ``gateway`` None: the destination is on the link."""

    device: str = ""
    gateway: Address | None = None
    source: Address | None = None
    is_discarded: bool = False
    """A black hole, or unreachable."""

    taken_by: Taker | None = None
    """Entry that leads there; read only where another way is wanted."""

    def __str__(self) -> str:
        if self.is_discarded or not self.device:
            return "a route that discards" if self.is_discarded else "no route"
        return f"via {self.gateway} dev {self.device}" if self.gateway else f"dev {self.device}"


@dataclass(frozen=True, slots=True)
class Taker:
    """The entry that decides about a packet. ``rule``: the policy rule that leads to its table, "" if every host has it."""

    entry: str = ""
    """Words of ``ip route``, without "dev"; "" if a policy rule discards by itself."""
    network: Network | None = None
    """The destination of the entry."""
    device: str = ""
    table: str = "main"
    protocol_is_kernel: bool = False
    """The kernel made it, for an address."""
    rule: str = ""

    def __str__(self) -> str:
        device = f" dev {self.device}" if self.device else ""
        table = f" (table {self.table})" if self.entry and self.table != "main" else ""
        return f"{self.entry}{device}{table}"


@dataclass(frozen=True, slots=True)
class Passage:
    """The kernel's decision about a packet that comes in by ``incoming`` and is expected to leave by ``wanted`` ("": for us).

    ``errno``: it refuses it. ``outgoing``: the link that it leaves by. ``source_by``: the link by which its source is reached,
    read where it is refused.
    """

    words: str
    subnet: Network
    incoming: str
    wanted: str
    outgoing: str = ""
    errno: int = 0
    source_by: str = ""
    taken_by: Taker | None = None
    about: frozenset[str] = frozenset()

    @property
    def fails_strict_check(self) -> bool:
        """Return whether a strict rp_filter refuses it. Linux reports that with EXDEV, since 6.14 with EINVAL as all else."""
        return self.errno in (EXDEV, EINVAL) and self.source_by not in ("", self.incoming)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The entries that lead to a peer, of one family."""

    lease: Lease
    subnet: Network
    route: Route
    neighbour: Neighbour | None = None
    forwarding: Forwarding | None = None


@dataclass(frozen=True, slots=True)
class ConfFile:
    """A file of /etc/cni/net.d. ``network`` None: it cannot be used."""

    path: str
    checked: Checked
    network: CniNetwork | None = None

    @property
    def is_flannel(self) -> bool:
        return self.network is not None and any(plugin.get("type") == "flannel" for plugin in self.network.plugins)


@dataclass(frozen=True, slots=True)
class Program:
    """A plugin's executable as the runtime would find it. ``fault``: why it cannot be executed."""

    name: str
    path: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    network: str
    ranges: str
    total: int
    taken: int
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a directory that plugins or flanneld write to."""

    directory: str
    free_bytes: int
    total_bytes: int
    free_files: int
    total_files: int
    is_read_only: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """Limits of the kernel and how far they are used; None: this kernel or namespace does not show it."""

    connections: int | None = None
    max_connections: int | None = None
    neighbours: int | None = None
    max_neighbours: int | None = None
    inotify_fault: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """``fault``: why it cannot be read."""

    path: str
    what: str
    begins: datetime | None = None
    ends: datetime | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Reached:
    """Replies of a peer. None: not asked.

    ``tunnel``: a small packet to the end of the tunnel, ``full`` one as large as a pod may send; ``node``: one to the node's
    own address, beside the tunnel; ``checked``, ``unchecked``: packets with and without a checksum through the tunnel.
    """

    lease: Lease
    subnet: Network
    target: Address
    tunnel: bool
    full: bool | None = None
    node: bool | None = None
    checked: bool | None = None
    unchecked: bool | None = None
    refused: str = ""
    """The kernel's error on sending, such as "Network is unreachable"."""


@dataclass(frozen=True, slots=True)
class Probed:
    """``sample``: number of peers asked if not all were; ``duplicates``: MAC addresses that answer for our own address."""

    peers: tuple[Reached, ...] = ()
    sample: int = 0
    of: int = 0
    duplicates: tuple[tuple[Address, str], ...] = ()


@dataclass(frozen=True, slots=True)
class KubeNode:
    """The node's object. ``lease_fault``: what is missing of flannel's annotations."""

    name: str
    pod_cidrs: tuple[str, ...] = ()
    managed: bool = False
    fault: str = ""
    network_unavailable: str = ""
    """The reason of the condition NetworkUnavailable while it is true."""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kubernetes:
    node: KubeNode | None = None
    others: tuple[KubeNode, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class PodLink:
    """An interface of a pod as seen from inside."""

    name: str
    is_up: bool
    mtu: int
    mac: str
    addresses: tuple[AddressWithPrefix, ...]
    gateways: tuple[Address, ...] = ()
    """Gateways of its default routes."""


@dataclass(frozen=True, slots=True)
class Pod:
    """An attachment that was asked about. ``links`` None: its namespace cannot be entered, see ``fault``."""

    names: frozenset[str]
    name: str
    container_id: str
    ifname: str
    network: str
    netns: str
    state: str
    addresses: tuple[str, ...] = ()
    links: tuple[PodLink, ...] | None = None
    peer: int = 0
    fault: str = ""
    error: str = ""
    differences: tuple[tuple[str, str, str], ...] = ()
    """Message, details and hint of each difference that CHECK found."""
    unasked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. ``unread``: names of facts that could not be read, with the reason; the fields of those are empty."""

    now: datetime
    is_root: bool = True
    unread: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    # processes
    daemons: tuple[Daemon, ...] = ()
    has_unit: bool = False
    """systemd manages a flanneld.service here."""
    # files
    subnet_file: str = "/run/flannel/subnet.env"
    conf_subnet_file: str = ""
    """The file that the flannel plugin reads; "": no plugin does."""
    env: SubnetEnv | None = None
    env_fault: str = ""
    """Reason why there is no ``env``; "" also where no flannel network is configured."""
    known: Known | None = None
    known_fault: str = ""
    conf_directory: str = "/etc/cni/net.d"
    conf_files: tuple[ConfFile, ...] = ()
    programs: tuple[Program, ...] = ()
    cni_path: tuple[str, ...] = ()
    pools: tuple[Pool, ...] = ()
    leaks: SweepReport | None = None
    lost: tuple[Lost, ...] = ()
    pod_addresses: tuple[Address, ...] = ()
    """Reserved addresses of our own subnets."""
    published_config: NetworkConfig | None = None
    """The network configuration in the datastore; None: as ``published``."""
    published: Mapping[Subnets, Lease] | None = None
    """Every lease in the datastore; None: it was not asked, or see ``unread``."""
    disks: tuple[Disk, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    newest_file: float = 0.0
    """The latest time of a file that this installation or flanneld wrote, seconds since 1970."""
    # kernel
    links: tuple[Link, ...] = ()
    addresses: tuple[HostAddress, ...] = ()
    routes: frozenset[Route] = frozenset()
    """Routes of the main table, but the kernel's own; one over several links has no device."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    vxlans: tuple[VxlanDetails, ...] = ()
    neighbours: frozenset[Neighbour] = frozenset()
    """Permanent ones of flannel's devices and of the pods' bridge."""
    forwarding: frozenset[Forwarding] = frozenset()
    odd_forwarding: Mapping[Forwarding, str] = field(default_factory=dict)
    """Entries of these that have a UDP port, VNI or link of their own, and which."""
    ways: Mapping[Network, Way] = field(default_factory=dict)
    """Routes to the first host of each subnet, our own and the peers'."""
    node_ways: Mapping[Address, Way] = field(default_factory=dict)
    """Routes to the address of each peer's node."""
    node_neighbours: Mapping[Address, str] = field(default_factory=dict)
    """ARP entries of the peers' nodes that no reply made, as ``ip neigh`` shows them."""
    passages: tuple[Passage, ...] = ()
    """Packets from our pods to those of peers, from these to ours, and those of the tunnel: a sample of peers."""
    counters: Counters = field(default_factory=Counters)
    port_holders: tuple[str, ...] = ()
    """Sockets of user programs that have the tunnel's UDP port."""
    # what flanneld would want
    external: ExternalInterface | None = None
    attributes: Attributes | None = None
    """Content that our lease should have."""
    wanted: tuple[Wanted, ...] = ()
    peer_faults: tuple[tuple[Lease, str], ...] = ()
    """Leases that the back end cannot follow, and why."""
    devices: tuple[str, ...] = ()
    """Names of the devices that the back end keeps."""
    tunnels: tuple[Vxlan, ...] = ()
    """Desired state of those of them that are VXLAN devices."""
    pod_mtu: int = 0
    tunnel_port: int = 0
    """UDP port of VXLAN; 0: another back end."""
    contradictions: tuple[NotAvailable, ...] = ()
    host_networks: frozenset[HostNetwork] = frozenset()
    # packet filter
    ruleset: Ruleset | None = None
    saved_rules: Mapping[str, str] = field(default_factory=dict)
    """Output of iptables-save by the program's name."""
    services: tuple[Address, ...] = ()
    """Addresses of Services in kube-proxy's own tables of nftables."""
    # others
    probed: Probed = field(default_factory=Probed)
    kubernetes: Kubernetes | None = None
    pods: tuple[Pod, ...] = ()
    options: Options | None = None
    """Options of the flanneld that runs, else of its unit."""

    # ---- questions ------------------------------------------------------------------------------

    @property
    def is_flannel(self) -> bool:
        """Return whether this node is meant to be one of a flannel network."""
        return bool(self.daemons or self.env or self.known or self.has_unit or any(file.is_flannel for file in self.conf_files))

    @property
    def runs(self) -> bool:
        return bool(self.daemons)

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)

    def addresses_of(self, link: Link) -> list[HostAddress]:
        return [at for at in self.addresses if at.ifindex == link.ifindex]

    def has_address(self, address: Address) -> bool:
        return any(at.address == address for at in self.addresses)

    @property
    def has_kube_proxy(self) -> bool:
        """Return whether kube-proxy has rules on this node: of iptables, of nftables, or an IPVS device."""
        has_chain = any("KUBE-SERVICES" in text for text in self.saved_rules.values())
        return has_chain or bool(self.services) or self.link(IPVS_DEVICE) is not None

    def is_wrong_for_node(self, way: Way) -> bool:
        """Return whether a way cannot be that to another node: it discards, or leads into the pods' network."""
        return way.is_discarded or not way.device or way.device.startswith("flannel") or way.device == self.bridge_name

    @property
    def flannel_conf(self) -> ConfFile | None:
        """The first configuration of a flannel network."""
        return next((file for file in self.conf_files if file.is_flannel), None)

    @property
    def delegate(self) -> Mapping[str, Any]:
        """The delegate's configuration."""
        conf = self.flannel_conf
        for plugin in conf.network.plugins if conf and conf.network else ():
            if plugin.get("type") == "flannel":
                delegate = plugin.get("delegate")
                return delegate if isinstance(delegate, dict) else {}
        return {}

    @property
    def flannel_name(self) -> str:
        """The name of the first flannel network; "" if there is none."""
        conf = self.flannel_conf
        return conf.network.name if conf and conf.network else ""

    @property
    def bridge(self) -> Link | None:
        """The bridge of the flannel network, if its pods are on one and it exists."""
        return self.link(self.bridge_name) if self.bridge_name else None

    @property
    def bridge_name(self) -> str:
        if self.flannel_conf is None or self.delegate.get("type", "bridge") != "bridge":
            return ""
        return str(self.delegate.get("bridge") or "cni0")

    def ports(self, bridge: Link) -> list[Link]:
        return [link for link in self.links if link.master == bridge.ifindex]

    @property
    def subnets(self) -> Sequence[Network]:
        """Our own subnets: of the lease, else of subnet.env."""
        if self.known is not None:
            return self.known.own.subnets.each()
        return self.env.subnets if self.env else ()

    @property
    def networks(self) -> Sequence[Network]:
        if self.known is not None:
            return self.known.config.networks
        return self.env.networks if self.env else ()
