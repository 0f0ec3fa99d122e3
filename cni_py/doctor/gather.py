"""Read the facts: each group by itself, and what cannot be read is named with its reason. Changes nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from cni_py import subnet_env
from cni_py.datastore.errors import StoreError
from cni_py.doctor import facts as names
from cni_py.doctor import (
    gather_datastore,
    gather_kernel,
    gather_node,
    gather_pods,
    gather_processes,
    gather_routing,
    gather_services,
    node_state,
    probe,
)
from cni_py.doctor.facts import ConfFile, Daemon, Facts, Known, Pool, Probed, Way
from cni_py.errors import CniError, TryAgainLater
from cni_py.flanneld import saved
from cni_py.flanneld.host_networks import HostNetwork, list_host_networks
from cni_py.flanneld.network import NetworkConfig
from cni_py.ipam.ranges import as_address
from cni_py.ipam.store import reserved_names
from cni_py.kernel.address import list_host_addresses
from cni_py.kernel.link import list_links
from cni_py.kernel.route import list_foreign_routes
from cni_py.kernel.vxlan import list_vxlans
from cni_py.netlink.socket import open_host
from cni_py.node.log import silence
from cni_py.packetfilter.evaluation import reading
from cni_py.sweep import restore, sweep
from cni_py.sweep.file_leftovers import DATA_DIR, Places, places_configured
from cni_py.sweep.restore import Lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.doctor.gather_pods import Asked
    from cni_py.flanneld.options import Options
    from cni_py.netlink.socket import Rtnl
    from cni_py.packetfilter.evaluation.ruleset import Ruleset
    from cni_py.sweep.report import Report as SweepReport

    T = TypeVar("T")

NO_FLANNEL = (
    "no flannel network was found on this node: no flanneld, no subnet.env, and no network configuration with flannel;"
    " rules about it had nothing to check"
)


@dataclass(frozen=True, slots=True)
class Request:
    """Parameters of a reading. ``pods``: attachments that were asked about; ``peers``: names of nodes that were."""

    conf_directory: str = "/etc/cni/net.d"
    cni_path: tuple[str, ...] = ("/opt/cni/bin",)
    pods: tuple[Asked, ...] = ()
    peers: frozenset[str] = frozenset()
    probes: bool = True
    notes: tuple[str, ...] = ()
    """Notes for the report about the pod or node that was asked about."""
    pods_fault: str = ""
    """Reason why the attachments of this node are not known."""


@dataclass(slots=True)
class Reader:
    """Reads groups of facts, and keeps why some could not be read."""

    unread: dict[str, str] = field(default_factory=dict)

    def read(self, name: str, function: Callable[[], T], otherwise: T) -> T:
        """Return what the function reads, or ``otherwise`` with the reason in :attr:`unread`."""
        try:
            return function()
        except PermissionError as error:
            self._note(name, f"{error.strerror}: it requires root" if os.geteuid() else str(error))
        except (CniError, StoreError, OSError, ValueError) as error:
            hint = "" if os.geteuid() == 0 or "root" in str(error) else " (it requires root)"
            self._note(name, f"{error}{hint}")
        return otherwise

    def _note(self, name: str, reason: str) -> None:
        self.unread[name] = reason


def gather(request: Request) -> Facts:
    """Read everything."""
    facts = look(request)
    if not request.probes:
        return facts
    if not facts.is_root:
        return replace(facts, unread={**facts.unread, names.PROBES: "it requires root"})
    try:
        return replace(facts, probed=_probed(facts, request))
    except OSError as error:
        return replace(facts, unread={**facts.unread, names.PROBES: f"no packets can be sent: {error.strerror}"})


def look(request: Request) -> Facts:
    """Read everything but what takes packets."""
    reader = Reader()
    facts = Facts(now=datetime.now(UTC), is_root=os.geteuid() == 0, conf_directory=request.conf_directory)
    facts = _configurations(facts, request, reader)
    facts, options = _processes(facts, reader)
    facts = _files(facts, reader)
    facts = _kernel(facts, reader, options)
    facts = _filters(facts, reader)
    facts = _attachments(facts, request, reader)
    facts = _datastore(facts, reader, options)
    facts = _kubernetes(facts, reader, options)
    facts = replace(
        facts,
        counters=gather_node.counters(),
        certificates=tuple(gather_node.certificates(options)),
        newest_file=gather_node.newest([__file__, facts.subnet_file, saved.path_for(facts.subnet_file)]),
        options=options,
        notes=(*request.notes, *(() if facts.is_flannel else (NO_FLANNEL,))),
    )
    return replace(facts, unread=reader.unread)


def _configurations(facts: Facts, request: Request, reader: Reader) -> Facts:
    nothing: list[ConfFile] = []
    found = reader.read(names.CONFIGURATION, lambda: gather_node.conf_files(request.conf_directory), nothing)
    first = next((file.network for file in found if file.network is not None), None)
    flannels = [file.network for file in found if file.is_flannel and file.network is not None]
    used = [*([first] if first else []), *(network for network in flannels if network is not first)]
    programs = gather_node.programs(gather_node.plugins_of(used), request.cni_path)
    return replace(facts, conf_files=tuple(found), programs=tuple(programs), cni_path=request.cni_path)


def _processes(facts: Facts, reader: Reader) -> tuple[Facts, Options | None]:
    """Read the processes. Returns: the options of the first flanneld, else those of its unit."""
    nothing: list[Daemon] = []
    daemons = reader.read(names.DAEMONS, gather_processes.daemons, nothing)
    has_unit, of_unit = gather_processes.of_unit()
    options = next((daemon.options for daemon in daemons if daemon.options), of_unit)
    conf = next((file for file in facts.conf_files if file.is_flannel), None)
    plugins = conf.network.plugins if conf and conf.network else ()
    named = next((plugin.get("subnetFile") for plugin in plugins if plugin.get("type") == "flannel"), None)
    path = options.subnet_file if options else str(named or subnet_file_by_default())
    if options is None and not os.path.exists(path) and os.path.exists(saved.SUBNET_FILE):
        path = saved.SUBNET_FILE  # what flanneld wrote, while the plugin reads another file
    read_by_plugin = str(named or saved.SUBNET_FILE) if plugins else ""
    facts = replace(facts, daemons=tuple(daemons), has_unit=has_unit, subnet_file=path, conf_subnet_file=read_by_plugin)
    return facts, options


def subnet_file_by_default() -> str:
    return saved.SUBNET_FILE


def known_only(subnet_file: str) -> Facts:
    """Read the leases alone."""
    reader = Reader()
    facts = Facts(now=datetime.now(UTC), is_root=os.geteuid() == 0, subnet_file=subnet_file)
    facts, _ = _processes(facts, reader)
    return _files(facts, reader)


def _files(facts: Facts, reader: Reader) -> Facts:
    env, env_fault = None, ""
    try:
        env = subnet_env.read(facts.subnet_file)
    except TryAgainLater:
        env_fault = "it does not exist"
    except CniError as error:
        env_fault = str(error.details or error.msg)
    path = saved.path_for(facts.subnet_file)
    known, known_fault = None, ""
    if os.path.exists(path):
        try:
            known = _known(path)
            known_fault = "" if known else "it cannot be used"
        except PermissionError:
            known_fault = "it requires root"
    else:
        known_fault = "it does not exist"
    facts = replace(facts, env=env, env_fault=env_fault, known=known, known_fault=known_fault)
    if known is None and facts.is_flannel:
        reader.unread[names.LEASES] = f"the leases are not known: {path}: {known_fault}"
        if facts.daemons and not any(daemon.program.startswith("/") and _is_ours(daemon.program) for daemon in facts.daemons):
            reader.unread[names.LEASES] += " (Go's flanneld saves none)"
    return facts


def _is_ours(path: str) -> bool:
    with suppress(OSError), open(path, "rb") as file:
        return b"cni_py.flanneld" in file.read(4096)
    return True


def _known(path: str) -> Known | None:
    """Read what flanneld saved, also where our lease has ended. Raises: PermissionError."""
    with open(path, "rb"):  # a permission is another reason than a damaged file
        pass
    with silence():
        found = saved.read(path, may_have_ended=True)
        leases = found.leases() if found else None
    if found is None or leases is None:
        return None
    return Known(path, NetworkConfig.parse(found.config), found.own, leases)


def _kernel(facts: Facts, reader: Reader, options: Options | None) -> Facts:
    return reader.read(names.KERNEL, lambda: _read_kernel(facts, reader, options), facts)


def _read_kernel(facts: Facts, reader: Reader, options: Options | None) -> Facts:
    """Raises: KernelRefused."""
    with open_host() as host:
        links = tuple(list_links(host))
        by_index = {link.ifindex: link.name for link in links}
        plan = gather_kernel.plan(host, facts.known, options) if facts.known else gather_kernel.Plan()
        if plan.fault:
            reader.unread[names.INTERFACE] = plan.fault
        external = plan.external.name if plan.external else ""
        flannel = [link.name for link in links if link.name.startswith("flannel")]
        facts = replace(
            facts,
            links=links,
            addresses=tuple(list_host_addresses(host)),
            routes=frozenset(list_foreign_routes(host)),
            vxlans=tuple(list_vxlans(host)),
            external=plan.external,
            attributes=plan.attributes,
            wanted=plan.wanted,
            peer_faults=plan.faults,
            devices=plan.devices,
            tunnels=plan.tunnels,
            pod_mtu=plan.pod_mtu,
            tunnel_port=plan.tunnels[0].port if plan.tunnels else 0,
        )
        devices = [name for name in (external, facts.bridge_name, *flannel) if name and facts.link(name)]
        neighbours, forwarding, odd = gather_kernel.tunnel_entries(host, links, facts.bridge_name)
        subnets = [*facts.subnets, *(one.subnet for one in facts.wanted)]
        nodes = [one.lease.attributes.public_ip if one.subnet.version == 4 else one.lease.attributes.public_ipv6
                 for one in facts.wanted]  # fmt: skip
        below = facts.link(external)
        facts = replace(
            facts,
            neighbours=neighbours,
            node_neighbours=gather_kernel.node_neighbours(host, below, filter(None, nodes)) if below else {},
            forwarding=forwarding,
            odd_forwarding=odd,
            sysctls=gather_kernel.sysctls(devices),
            ways={subnet: _way(host, subnet, facts, by_index) for subnet in subnets},
            node_ways={node: _node_way(host, node, facts, by_index) for node in dict.fromkeys(nodes) if node},
            port_holders=tuple(gather_node.port_holders(facts.tunnel_port)) if facts.tunnel_port else (),
            passages=gather_routing.passages(host, facts),
        )
    gateways = frozenset(gather_kernel.first_host(subnet) for subnet in facts.subnets)
    nothing: frozenset[HostNetwork] = frozenset()
    networks = reader.read(names.HOST_NETWORKS, lambda: list_host_networks(gateways), nothing)
    contradictions = [
        one for file in facts.conf_files if file.is_flannel and file.network for one in node_state.contradictions(file.network)
    ]
    return replace(facts, host_networks=networks, contradictions=tuple(contradictions))


def _node_way(host: Rtnl, node: names.Address, facts: Facts, by_index: dict[int, str]) -> Way:
    """Return the route to a peer's node; with what leads there if it cannot be right."""
    way = gather_kernel.way_to(host, node, by_index)
    return replace(way, taken_by=gather_routing.taker(host, node, by_index)) if facts.is_wrong_for_node(way) else way


def _way(host: Rtnl, subnet: names.Network, facts: Facts, by_index: dict[int, str]) -> Way:
    """Return the route to a subnet; with what leads there if it is not the one that its lease wants."""
    address = _asked_of(subnet, facts)
    way = gather_kernel.way_to(host, address, by_index)
    wanted = next((one.route for one in facts.wanted if one.subnet == subnet), None)
    devices = (facts.bridge_name, "lo") if subnet in facts.subnets else (wanted.device if wanted else way.device,)
    is_wanted = way.device in devices and not way.is_discarded and (wanted is None or way.gateway == wanted.gateway)
    return way if is_wanted else replace(way, taken_by=gather_routing.taker(host, address, by_index))


def _asked_of(subnet: names.Network, facts: Facts) -> names.Address:
    """Return the address whose route shows that of the subnet: our own gateway is an address of this host."""
    return subnet.network_address + (2 if subnet in facts.subnets else 1)


def _filters(facts: Facts, reader: Reader) -> Facts:
    nothing: tuple[Ruleset | None, dict[str, str]] = (None, {})
    ruleset, saved_rules = reader.read(names.FILTERS, reading.read, nothing)
    none: list[names.Address] = []
    services = reader.read(names.FILTERS, gather_services.services, none) if names.FILTERS not in reader.unread else none
    return replace(facts, ruleset=ruleset, saved_rules=saved_rules, services=tuple(services))


def _attachments(facts: Facts, request: Request, reader: Reader) -> Facts:
    networks = [file.network for file in facts.conf_files if file.network is not None]
    if facts.env is None:
        networks = [network for network in networks if not any(p.get("type") == "flannel" for p in network.plugins)]
    no_pools: list[Pool] = []
    pools = reader.read(names.POOLS, lambda: gather_node.pools(networks, request.cni_path), no_pools)
    leaks, lost = None, list[Lost]()
    if facts.is_root:
        leaks = reader.read(names.LEAKS, lambda: _leaks(request.conf_directory), None)
        if leaks is not None and leaks.missing and not _is_about_external(leaks, facts):
            reader.unread[names.LEAKS] = "; ".join(leaks.missing)
        lost = reader.read(names.LOST_RULES, lambda: restore.restore(None, dry_run=True), lost)
    else:
        reader.unread[names.LEAKS] = reader.unread[names.LOST_RULES] = "it requires root"
    if request.pods_fault:
        reader.unread[names.PODS] = request.pods_fault
    pods = tuple(gather_pods.read(asked) for asked in request.pods)
    directories = (*gather_node.WRITTEN, DATA_DIR, *(f"{DATA_DIR}/{network.name}" for network in networks))
    names_of = [name for network in networks for name in reserved_names(f"{DATA_DIR}/{network.name}")]
    addresses = [address for name in names_of if (address := as_address(name)) is not None]
    own = tuple(address for address in addresses if any(address in subnet for subnet in facts.subnets))
    return replace(
        facts,
        pools=tuple(pools),
        leaks=leaks,
        lost=tuple(lost),
        pods=pods,
        pod_addresses=own,
        disks=tuple(gather_node.disks(directories)),
    )


def _is_about_external(leaks: SweepReport, facts: Facts) -> bool:
    """Return whether all that the sweep cannot see is behind the link to the other nodes, a veth in kind and in the lab.

    It then removes nothing; what it found stale is stale all the same, for it has read the addresses behind every link.
    """
    name = f'the namespace behind "{facts.external.name}"' if facts.external else ""
    return bool(name) and all(name in reason for reason in leaks.missing)


def _leaks(directory: str) -> Any:
    places = Places() | places_configured(directory, lambda _: None)
    return sweep.run(0.0, dry_run=True, places=places)


def _datastore(facts: Facts, reader: Reader, options: Options | None) -> Facts:
    """Read the leases in etcd or a file; nodes of Kubernetes are read by themselves."""
    if options is None or options.kube_subnet_mgr or not facts.runs:
        return facts
    read = reader.read(names.DATASTORE, lambda: gather_datastore.read(options), None)
    return replace(facts, published_config=read[0], published=read[1]) if read else facts


def _kubernetes(facts: Facts, reader: Reader, options: Options | None) -> Facts:
    daemon = next((daemon for daemon in facts.daemons if daemon.options is options), None)
    if options is None or not options.kube_subnet_mgr:
        return facts
    from cni_py.doctor import gather_kubernetes

    environ = {**os.environ, **(daemon.environ if daemon else {})}
    found = reader.read(names.KUBERNETES, lambda: gather_kubernetes.read(options, environ, facts.known), None)
    return replace(facts, kubernetes=found)


def _probed(facts: Facts, request: Request) -> Probed:
    """Send packets to the peers. Raises: OSError."""
    mtu = facts.env.mtu if facts.env else facts.pod_mtu
    targets = probe.targets_of(facts.wanted, mtu)
    if not targets and facts.known is not None and facts.known.config.backend_type in gather_kernel.TUNNELS:
        versions = {network.version for network in facts.networks}
        targets = probe.ends_of(facts.known.peers, facts.devices[0], versions, mtu)
    own = None
    external = facts.external
    link = facts.link(external.name) if external else None
    if external is not None and external.addr is not None and link is not None:
        own = (external.addr, link)
    return probe.probe(targets, own, request.peers, frozenset(link.mac for link in facts.links))
