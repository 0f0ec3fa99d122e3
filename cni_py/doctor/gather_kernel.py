"""Links, addresses, routes, neighbours and parameters of this network namespace, and what flanneld would want of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_py.doctor.facts import Wanted, Way
from cni_py.errors import CniError, KernelRefused
from cni_py.flanneld import backends, iface
from cni_py.flanneld.options import Options
from cni_py.kernel import sysctl
from cni_py.kernel.neighbour import Forwarding, Neighbour, list_forwarding, list_neighbours
from cni_py.kernel.neighbour_state import list_neighbour_states, list_odd_forwarding
from cni_py.kernel.route import Route, route_get
from cni_py.kernel.vxlan import Vxlan
from cni_py.netlink.constants import RTN_LOCAL, RTN_UNICAST
from cni_py.node.log import silence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cni_py.doctor.facts import Address, Known, Network
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Attributes, Lease
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

_PURE = ("vxlan", "host-gw")
"""Back ends whose entries can be computed without a change of the kernel."""
TUNNELS = {"wireguard": ("flannel-wg",), "udp": ("flannel0",), "ipip": ("flannel.ipip",)}
"""Devices of other back ends with a tunnel."""
_HOSTS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "net/ipv4/icmp_echo_ignore_all")
_OF_BRIDGES = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
_OF_DEVICE = ("net/ipv4/conf/{}/rp_filter", "net/ipv4/conf/{}/forwarding", "net/ipv6/conf/{}/disable_ipv6")


@dataclass(frozen=True, slots=True)
class Plan:
    """Desired state by the leases, as flanneld computes it. ``fault``: why that is not known."""

    external: ExternalInterface | None = None
    attributes: Attributes | None = None
    wanted: tuple[Wanted, ...] = ()
    faults: tuple[tuple[Lease, str], ...] = ()
    devices: tuple[str, ...] = ()
    tunnels: tuple[Vxlan, ...] = ()
    pod_mtu: int = 0
    fault: str = ""


def plan(rtnl: Rtnl, known: Known, options: Options | None) -> Plan:
    """Compute it with flanneld's own code. Raises: KernelRefused."""
    with silence():
        external, fault = _external(rtnl, known, options)
        if external is None:
            return Plan(devices=TUNNELS.get(known.config.backend_type, ()), fault=fault)
        kind = known.config.backend_type
        if kind not in _PURE:
            return Plan(external, devices=TUNNELS.get(kind, ()))
        try:
            backend = backends.create(known.config, external)
        except CniError as error:
            return Plan(external, fault=str(error))
        try:
            backend.prepare(rtnl, known.own.attributes)
            tunnels = [device for device in backend.devices if isinstance(device, Vxlan)]
            return Plan(
                external,
                backend.attributes(),
                tuple(one for lease in known.peers for one in _wanted(backend, lease)),
                tuple((lease, text) for lease in known.peers for _, text in backend.faults(lease)),
                tuple(device.name for device in tunnels),
                tuple(tunnels),
                backend.mtu,
            )
        finally:
            backend.close()


def _external(rtnl: Rtnl, known: Known, options: Options | None) -> tuple[ExternalInterface | None, str]:
    """Find the external interface as flanneld does; without its options, by our lease's address, or the route to a peer."""
    its = known.own.attributes
    config, ways = known.config, list[Options]()
    if options is not None:
        ways.append(replace(options, node_addresses=tuple(map(str, its.addresses))) if options.iface_node_ip else options)
    else:
        public = (str(its.public_ip or ""), str(its.public_ipv6 or ""))
        ways.append(Options(public_ip=public[0], public_ipv6=public[1]))
        for peer in known.peers[:1]:
            way = way_to(rtnl, peer.attributes.addresses[0], {})
            if way.device:
                ways.append(Options(iface=(way.device,), public_ip=public[0], public_ipv6=public[1]))
        ways.append(Options())
    fault = ""
    for one in ways:
        try:
            return iface.find(one, config.ipv4, config.ipv6, quiet=True), ""
        except CniError as error:
            fault = fault or str(error)
    return None, fault


def _wanted(backend: backends.Backend, lease: Lease) -> Iterable[Wanted]:
    for version, entries in backend.peer_entries(lease):
        route = next(entry for entry in entries if isinstance(entry, Route))
        subnet = next(subnet for subnet in lease.subnets.each() if subnet.version == version)
        neighbour = next((entry for entry in entries if isinstance(entry, Neighbour)), None)
        forwarding = next((entry for entry in entries if isinstance(entry, Forwarding)), None)
        yield Wanted(lease, subnet, route, neighbour, forwarding)


def first_host(subnet: Network) -> Address:
    """Return the gateway of a subnet's pods."""
    return subnet.network_address + 1


def way_to(rtnl: Rtnl, address: Address, names: Mapping[int, str]) -> Way:
    """Return the kernel's route for a packet of this host."""
    try:
        found = route_get(rtnl, address.packed)
    except KernelRefused:
        found = None
    if found is None:
        return Way()
    if found.kind not in (RTN_UNICAST, RTN_LOCAL):
        return Way(is_discarded=True)
    return Way(names.get(found.ifindex, "") or _name(rtnl, found.ifindex), found.gateway, found.source)


def _name(rtnl: Rtnl, ifindex: int) -> str:
    from cni_py.kernel.link import find_link

    link = find_link(rtnl, ifindex)
    return link.name if link else ""


def tunnel_entries(
    rtnl: Rtnl, links: Sequence[Link], bridge: str
) -> tuple[frozenset[Neighbour], frozenset[Forwarding], dict[Forwarding, str]]:
    """Return the permanent neighbours and FDB entries of flannel's devices, the odd ones of these with what is odd, and the
    neighbours of the bridge. Raises: KernelRefused.
    """
    neighbours: set[Neighbour] = set()
    forwarding: set[Forwarding] = set()
    odd: dict[Forwarding, str] = {}
    for link in links:
        if link.name.startswith("flannel") or link.name == bridge:
            neighbours |= list_neighbours(rtnl, link)
        if link.name.startswith("flannel") and link.kind == "vxlan":
            forwarding |= list_forwarding(rtnl, link)
            overrides = list_odd_forwarding(rtnl, link)
            odd |= {Forwarding(link.name, mac, remote): words for (mac, remote), words in overrides.items()}
    return frozenset(neighbours), frozenset(forwarding), odd


def node_neighbours(rtnl: Rtnl, link: Link, nodes: Iterable[Address]) -> dict[Address, str]:
    """Return the ARP entries of nodes that a person or a program made, not a reply. Raises: KernelRefused."""
    wanted = frozenset(nodes)
    return {
        node: f"{node} dev {link.name} lladdr {of.mac} {of.state}"
        for node, of in list_neighbour_states(rtnl, link).items()
        if node in wanted and of.state in ("PERMANENT", "NOARP")
    }


def sysctls(devices: Iterable[str]) -> dict[str, str]:
    """Return the parameters that forwarding depends on; those that this kernel does not have are left out."""
    names = [*_HOSTS, *_OF_BRIDGES, *(pattern.format(device) for device in devices for pattern in _OF_DEVICE)]
    found = {}
    for name in dict.fromkeys(names):
        with suppress(KernelRefused):
            found[name] = sysctl.read(name)
    return found
