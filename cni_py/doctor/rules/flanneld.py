"""flanneld, its subnet file and its lease."""

from __future__ import annotations

from contextlib import suppress
from errno import EISDIR
from os import strerror
from typing import TYPE_CHECKING

from cni_py.doctor.facts import IPVS_DEVICE
from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import devices, shown
from cni_py.doctor.rules.peers import names_of as names_of_node
from cni_py.plural import counted

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from cni_py.doctor.facts import Address, Daemon, Facts
    from cni_py.flanneld.lease import Lease

START, RESTART, LOG = "systemctl start flanneld", "systemctl restart flanneld", "journalctl -u flanneld"


def not_running(facts: Facts) -> Iterator[Finding]:
    """No flanneld on a node of a flannel network."""
    if not facts.is_flannel or facts.runs:
        return
    fix = (tuple(START.split()),) if facts.has_unit else ()
    repair = (START,) if facts.has_unit else ("start flanneld; in Kubernetes: kubectl -n kube-flannel get pods -o wide",)
    found = ["no process of flanneld in this network namespace"]
    if facts.env:
        found.append(f"{facts.subnet_file} exists: one ran since the last boot")
    yield Finding("flanneld is not running", tuple(found), repair, fix)


def twice(facts: Facts) -> Iterator[Finding]:
    """Two processes that write the same routes and the same file."""
    groups: dict[Hashable, list[Daemon]] = {}
    for daemon in facts.daemons:
        groups.setdefault(_network_of(daemon), []).append(daemon)
    by_file: dict[Hashable, list[Daemon]] = {}
    for daemon in facts.daemons:
        by_file.setdefault(daemon.subnet_file, []).append(daemon)
    several = {
        tuple(daemon.pid for daemon in found): found for found in (*groups.values(), *by_file.values()) if len(found) > 1
    }
    for daemons in several.values():
        younger = daemons[-1]
        yield Finding(
            f"{counted(len(daemons), 'flanneld')} run for one network",
            tuple(f"process {daemon.pid}: {daemon.program}, subnet file {daemon.subnet_file}" for daemon in daemons),
            (f"stop one of them: kill {younger.pid}; see what starts it: systemctl status {younger.pid}",),
        )


def _network_of(daemon: Daemon) -> Hashable:
    """Return what two flannelds of one network share: the datastore."""
    options = daemon.options
    if options is None:
        return daemon.pid
    if options.kube_subnet_mgr:
        return options.kube_annotation_prefix
    return options.datastore or (options.etcd_endpoints, options.etcd_prefix)


def not_ready(facts: Facts) -> Iterator[Finding]:
    for daemon in facts.daemons:
        if daemon.is_stopped:
            yield Finding(
                f"flanneld (process {daemon.pid}) is stopped",
                ("its state is T: a signal or a debugger has stopped it",),
                (f"kill -CONT {daemon.pid}",),
            )
        elif daemon.is_ready is False:
            yield Finding(
                f"flanneld (process {daemon.pid}) is not ready",
                daemon.reasons or ("/readyz says so, without a reason",),
                (f"see why: {LOG}",),
            )


def subnet_file_missing(facts: Facts) -> Iterator[Finding]:
    if not facts.is_flannel or facts.env:
        return
    exists = facts.env_fault != "it does not exist"
    state = "cannot be read" if exists else "does not exist"
    is_directory = facts.env_fault == strerror(EISDIR)  # a container runtime creates one where a mount's source is missing
    yield Finding(
        f"{facts.subnet_file} {state}",
        (facts.env_fault,),
        (
            *([f"rmdir {facts.subnet_file}"] if is_directory else []),
            f"see why: {LOG}" if facts.runs and not is_directory else RESTART if facts.runs else START,
        ),
        (tuple(START.split()),) if facts.has_unit and not facts.runs else (),
    )


def subnet_file_other(facts: Facts) -> Iterator[Finding]:
    """The plugin reads another file than flanneld writes."""
    if facts.conf_subnet_file and facts.conf_subnet_file != facts.subnet_file and facts.flannel_conf:
        yield Finding(
            "the flannel plugin and flanneld use different subnet files",
            (f"{facts.flannel_conf.path}: {facts.conf_subnet_file}", f"flanneld writes {facts.subnet_file}"),
            (f'correct "subnetFile" in {facts.flannel_conf.path}',),
        )


def subnet_file_stale(facts: Facts) -> Iterator[Finding]:
    """subnet.env of another lease, of another network, or with another MTU than flanneld would write."""
    env, known = facts.env, facts.known
    if env is None or known is None:
        return
    found = []
    leased = tuple(known.own.subnets.each())
    if set(env.subnets) != set(leased):
        found.append(f"it has {_listed(env.subnets)}, and the lease of this node is {_listed(leased)}")
    if set(env.networks) != set(known.config.networks):
        found.append(f"its network is {_listed(env.networks)}, and that of the datastore {_listed(known.config.networks)}")
    if facts.pod_mtu and env.mtu != facts.pod_mtu:
        found.append(f"FLANNEL_MTU={env.mtu}, and {facts.pod_mtu} is what fits the interface and the back end")
    masquerades = facts.options.ip_masq if facts.options and facts.runs else None
    if masquerades is not None and bool(masquerades) != env.ip_masq:
        words = "the plugin masquerades pods itself, between nodes too" if masquerades else "no pod is masqueraded"
        found.append(f"FLANNEL_IPMASQ={str(env.ip_masq).lower()}, and flanneld runs with -ip-masq={masquerades}: {words}")
    if found:
        word = RESTART if facts.runs else START
        yield Finding(f"{facts.subnet_file} is stale", tuple(found), (f"flanneld writes it again: {word}",))


def _listed(items: object) -> str:
    return " and ".join(map(str, items)) or "nothing"  # type: ignore[call-overload]  # an iterable of networks


def subnet_file_contradicted(facts: Facts) -> Iterator[Finding]:
    """The bridge or flannel's device does not agree with subnet.env; as ``cni-py status`` reports it."""
    of_gateway = devices.without_gateway(facts)
    for one in facts.contradictions:
        if of_gateway and one.msg.startswith(f'"{facts.bridge_name}" has '):
            continue  # the subnet is right, and the bridge is not: the rule about the bridge has the commands
        words = one.hint.split()
        is_command = words[:2] == ["ip", "addr"] and ";" not in one.hint
        yield Finding(one.msg, (one.details,), (one.hint,), (tuple(words),) if is_command and words[2] == "add" else ())


def lease_ended(facts: Facts) -> Iterator[Finding]:
    known = facts.known
    if known is not None and not known.own.is_live(facts.now.timestamp()):
        yield Finding(
            f"the lease of this node, {known.own.subnets}, has ended",
            (f"{known.path}: it ended {_ago(facts, known.own)}",),
            (f"see why flanneld does not renew it: {LOG}" if facts.runs else START,),
        )


def _ago(facts: Facts, lease: Lease) -> str:
    seconds = facts.now.timestamp() - (lease.expires or 0)
    return f"{seconds / 3600:.1f} h ago" if seconds >= 3600 else f"{seconds:.0f} s ago"


def lease_lost(facts: Facts) -> Iterator[Finding]:
    """The datastore has no lease of our subnet, or says that it is another node's."""
    known, published = facts.known, facts.published
    if known is None or published is None:
        return
    own = known.own
    there = published.get(own.subnets)
    where = f"the lease of {own.subnets} in the datastore"
    if there is None:
        yield Finding(f"{where} is missing", (f"{counted(len(published), 'lease')} exist",), (f"see why: {LOG}", RESTART))
    elif not there.attributes.is_same_node(own.attributes):
        theirs, ours = there.attributes.addresses[0], own.attributes.addresses[0]
        yield Finding(f"{where} is another node's", (f"it is leased to {theirs}, and this node is {ours}",), (RESTART,))


def lease_address(facts: Facts) -> Iterator[Finding]:
    """Our lease has an address that this node does not have: the peers send to it."""
    known, options = facts.known, facts.options
    if known is None or not facts.addresses:
        return
    for address in known.own.attributes.addresses:
        given = (options.public_ip, options.public_ipv6) if options else ()
        if facts.has_address(address) or str(address) in given or _is_translated(facts, address):
            continue
        yield Finding(
            f"the lease of this node has the address {address}, which this node does not have",
            (f"{known.path}, and: ip -br addr",),
            (RESTART if facts.runs else START,),
        )


def _is_translated(facts: Facts, address: Address) -> bool:
    """Return whether flanneld publishes a router's address for ours: known by its options alone."""
    return facts.options is not None and facts.external is not None and address.version in facts.external.translated


def configuration_changed(facts: Facts) -> Iterator[Finding]:
    """The datastore has another configuration than flanneld read when it started."""
    if facts.known is None or facts.published_config is None or facts.published_config == facts.known.config:
        return
    theirs, ours = facts.published_config, facts.known.config
    yield Finding(
        "the network configuration in the datastore is another one than flanneld runs with",
        (f"datastore: {theirs}", f"flanneld: {ours}", *(() if str(theirs) != str(ours) else ("keys of the back end differ",))),
        (f"flanneld reads it when it starts, on every node: {RESTART}",),
    )


def not_followed(facts: Facts) -> Iterator[Finding]:
    """Leases of other nodes that this flanneld does not follow, and why."""
    for lease, reason in facts.peer_faults:
        yield Finding(
            f"peer {lease.subnets} ({lease.attributes.addresses[0]}) is not followed",
            (reason,),
            (f"run cni-py doctor on {lease.attributes.addresses[0]}",),
            about=names_of_node(lease),
        )
    known = facts.known
    for subnets, lease in (facts.published or {}).items() if known else ():
        if (
            known is None
            or subnets in known.leases
            or lease.is_unused_reservation
            or lease.attributes.is_same_node(known.own.attributes)
        ):
            continue
        yield Finding(
            f"peer {subnets} ({lease.attributes.addresses[0]}) is not followed",
            ("the datastore has its lease, and flanneld does not use it",),
            (f"the reason is in the log of flanneld: {LOG} | grep '{subnets.each()[0]}'",),
            about=names_of_node(lease),
        )


def one_address(facts: Facts) -> Iterator[Finding]:
    """Two leases of nodes with the same address."""
    leases = facts.published or (facts.known.leases if facts.known else {})
    by_address: dict[Address, list[Lease]] = {}
    for lease in leases.values():
        for address in lease.attributes.addresses if not lease.is_unused_reservation else ():
            by_address.setdefault(address, []).append(lease)
    own = facts.known.own if facts.known else None
    for address, those in by_address.items():
        subnets = {lease.subnets for lease in those}
        if len(subnets) > 1:
            names = sorted(map(str, subnets))
            yield Finding(
                f"{counted(len(names), 'lease')} have the node address {address}",
                shown(names),
                (f"find the nodes with it, and give each its own -public-ip: arping -D {address}",),
                about=frozenset((str(address), *names)),
            )
        elif own is not None and own.subnets not in subnets and facts.has_address(address):
            yield Finding(
                f"another node's lease, {names_of(those)}, has an address of this node, {address}",
                (f"this node's lease is {own.subnets}",),
                (f"find the other node: arping -D {address}",),
                about=frozenset((str(address),)),
            )


def names_of(leases: list[Lease]) -> str:
    return ", ".join(str(lease.subnets) for lease in leases)


def one_mac(facts: Facts) -> Iterator[Finding]:
    """Two leases with one MAC address: a machine that was cloned."""
    leases = facts.published or (facts.known.leases if facts.known else {})
    by_mac: dict[str, list[Lease]] = {}
    for lease in leases.values():
        data = lease.attributes.backend_data or lease.attributes.backend_v6_data
        mac = data.get("VtepMAC") if isinstance(data, dict) and lease.attributes.backend_type == "vxlan" else None
        if isinstance(mac, str):
            by_mac.setdefault(mac.lower(), []).append(lease)
    for mac, those in by_mac.items():
        if len({lease.subnets for lease in those}) > 1:
            yield Finding(
                f"{counted(len(those), 'node')} publish one MAC address of their VXLAN device, {mac}",
                shown(f"{lease.subnets} of {lease.attributes.addresses[0]}" for lease in those),
                ("on one of them: ip link del flannel.1; rm /var/lib/cni-py/flanneld.json; systemctl restart flanneld",),
                about=frozenset(str(subnet) for lease in those for subnet in lease.subnets.each()),
            )


def overlaps_host(facts: Facts) -> Iterator[Finding]:
    """The pods' network, or our subnet, over a network of the host."""
    from cni_py.flanneld.host_networks import in_words, overlapping

    for network in facts.networks:
        shared = [each for each in overlapping(network, facts.host_networks) if not each.is_single]
        own = [subnet for subnet in facts.subnets if subnet.version == network.version]
        taken = [each for each in shared for subnet in own if overlapping(subnet, [each])]
        if shared:
            what = f"our own subnet {own[0]}" if taken else f"the flannel network {network}"
            yield Finding(
                f"{what} overlaps {in_words(taken or shared)}",
                shown(shared),
                ('move one of the two networks: docs/flanneld.md, "The host\'s own networks"',),
                severity=ERROR if taken else WARNING,
            )


def addresses_of_peers(facts: Facts) -> Iterator[Finding]:
    """Addresses of this host inside of a peer's subnet: packets to that pod end here."""
    by_index = {link.ifindex: link.name for link in facts.links}
    taken = {subnet for subnet, way in facts.ways.items() if way.taken_by is not None and way.taken_by.protocol_is_kernel}
    for at in facts.addresses:
        device = by_index.get(at.ifindex, "")
        if (
            device.startswith("flannel")
            or device == IPVS_DEVICE
            or not any(at.address in network for network in facts.networks)
        ):
            continue
        for one in facts.wanted:
            if at.address in one.subnet and one.subnet not in taken:
                address = f"{at.address}/{at.network.prefixlen}"
                yield Finding(
                    f"{device} has the address {address}, which is inside the subnet of peer {one.subnet}",
                    ("packets to the pod with that address end on this node",),
                    (f"ip addr del {address} dev {device}",),
                    about=names_of_node(one.lease),
                    severity=ERROR,
                )


def overlaps_services(facts: Facts) -> Iterator[Finding]:
    from ipaddress import ip_network

    from cni_py.packetfilter.evaluation.saved import destinations

    addresses = list(facts.services)
    for text in destinations(facts.saved_rules, "KUBE-SERVICES"):
        with suppress(ValueError):
            service = ip_network(text, strict=False)
            addresses += [service.network_address] if service.prefixlen == service.max_prefixlen else []
    ipvs = facts.link(IPVS_DEVICE)
    addresses += [at.address for at in facts.addresses_of(ipvs)] if ipvs is not None else []
    inside = [str(address) for address in addresses if any(address in network for network in facts.networks)]
    if inside:
        networks = " and ".join(map(str, facts.networks))
        yield Finding(
            f"addresses of Services are inside the flannel network {networks}",
            shown(dict.fromkeys(inside)),
            ("use another Network, or another --service-cluster-ip-range of the API server",),
        )
