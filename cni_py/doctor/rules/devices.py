"""Links: the external interface, flannel's devices, the pods' bridge and its ports."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_py.attachment.record import MARK, mark_on
from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import gathered
from cni_py.kernel.address import have_overlap
from cni_py.netlink.constants import IFF_NOARP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.doctor.facts import Facts, Network
    from cni_py.doctor.findings import Command
    from cni_py.kernel.address import HostAddress
    from cni_py.kernel.link import Link
    from cni_py.kernel.vxlan import Vxlan, VxlanDetails

RESTART = "flanneld restores it: systemctl restart flanneld"
_NO_CARRIER = ("DOWN", "LOWERLAYERDOWN")


def external(facts: Facts) -> Iterator[Finding]:
    """The link to the other nodes."""
    if facts.external is None:
        return
    link = facts.link(facts.external.name)
    if link is None:
        return
    if not link.is_up:
        command: Command = ("ip", "link", "set", link.name, "up")
        yield Finding(f"{link.name}, the link to the other nodes, is down", (), (" ".join(command),), (command,))
    elif link.operstate in _NO_CARRIER:
        yield Finding(
            f"{link.name}, the link to the other nodes, has no carrier",
            (f"its state is {link.operstate}",),
            ("check the cable",),
        )


def missing(facts: Facts) -> Iterator[Finding]:
    for name in facts.devices:
        if facts.link(name) is None:
            yield Finding(f"{name} does not exist", ("the back end needs it to reach the other nodes",), (_again(facts),))


def _again(facts: Facts) -> str:
    return RESTART if facts.runs else "flanneld creates it: systemctl start flanneld"


def differs(facts: Facts) -> Iterator[Finding]:
    """A VXLAN device with other properties than flanneld gives it."""
    actual = {details.name: details for details in facts.vxlans}
    for wanted in facts.tunnels:
        link, found = facts.link(wanted.name), actual.get(wanted.name)
        if link is None:
            continue
        if found is None:
            yield Finding(f"{wanted.name} is not a VXLAN device", (f"its kind is {link.kind or 'none'}",), (_again(facts),))
            continue
        lines, commands = _differences(facts, link, wanted, found)
        if lines:
            repair = [" ".join(command) for command in commands] or [_again(facts)]
            yield Finding(f"{wanted.name} is not as flanneld creates it", tuple(lines), tuple(repair), tuple(commands))


def _differences(facts: Facts, link: Link, wanted: Vxlan, found: VxlanDetails) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return what differs, and the commands that repair it; none if it has to be created again."""
    lines, commands, is_beyond_repair = list[str](), list[tuple[str, ...]](), False
    set_link = ("ip", "link", "set", wanted.name)
    if found.mtu != wanted.mtu:
        lines.append(f"its MTU is {found.mtu}, and {wanted.mtu} fits {facts.external.name if facts.external else 'below'}")
        commands.append((*set_link, "mtu", str(wanted.mtu)))
    if link.flags & IFF_NOARP:
        lines.append("ARP is off: none of its entries is used")
        commands.append((*set_link, "arp", "on"))
    if link.master:
        lines.append("it is a port of a bridge: its packets go there")
        commands.append((*set_link, "nomaster"))
    pairs = (("VNI", wanted.vni, found.vni), ("UDP port", wanted.port, found.port), ("address", wanted.local, found.local))
    for what, ours, theirs in (*pairs, ("underlay", wanted.underlay, found.underlay)):
        if ours != theirs:
            lines.append(f"its {what} is {theirs}, not {ours}")
            is_beyond_repair = True
    if not link.is_up:
        lines.append("it is down")
        commands.append((*set_link, "up"))
    subnet = next((each for each in facts.subnets if each.version == wanted.local.version), None)
    if subnet is not None:
        own = ip_interface(subnet.network_address)
        if not any(at.address == own.ip for at in facts.addresses_of(link)):
            lines.append(f"it does not have the address {own}")
            commands.append(("ip", "addr", "add", str(own), "dev", wanted.name))
    return lines, [] if is_beyond_repair else commands


def is_cut_off(facts: Facts, link: Link) -> bool:
    """Return whether no packet of a peer gets through a VXLAN device: its MAC address, VNI, port or address is another one."""
    actual = next((details for details in facts.vxlans if details.name == link.name), None)
    wanted = next((each for each in facts.tunnels if each.name == link.name), None)
    if wanted is None:
        return False
    differs = actual is None or (actual.vni, actual.port, actual.local) != (wanted.vni, wanted.port, wanted.local)
    return differs or any(link.name in finding.what for finding in vtep_mac(facts))


def vtep_mac(facts: Facts) -> Iterator[Finding]:
    """The MAC address that the peers send to is another one."""
    if facts.known is None:
        return
    its = facts.known.own.attributes
    for wanted in facts.tunnels:
        data = its.backend_data if wanted.local.version == 4 else its.backend_v6_data
        published = str(data.get("VtepMAC", "")).lower() if isinstance(data, dict) else ""
        link = facts.link(wanted.name)
        if link is not None and published and link.mac != published:
            command: Command = ("ip", "link", "set", wanted.name, "address", published)
            yield Finding(
                f"{wanted.name} has another MAC address than our lease says",
                (f"it has {link.mac}, and the peers send to {published}",),
                (" ".join(command), 'if systemd changed it: "MACAddressPolicy=none" in a .link file for flannel*'),
                (command,),
            )


def bridge(facts: Facts) -> Iterator[Finding]:
    """The pods' bridge: it exists while pods do, is up, and passes packets as large as the pods'."""
    link = facts.bridge
    marked = [port for port in facts.links if mark_on(port)]
    if link is None:
        if marked and facts.bridge_name and any(not port.master and port.is_up for port in marked):
            orphans = [port.name for port in marked if not port.master]
            if not any(route.device in orphans for route in facts.routes):
                yield Finding(
                    f"{facts.bridge_name} does not exist, and pods were attached to it",
                    (f"host ends without a bridge: {', '.join(orphans[:8])}",),
                    ("delete these pods and create them again",),
                )
        return
    ports = facts.ports(link)
    if not link.is_up:
        command: Command = ("ip", "link", "set", link.name, "up")
        yield Finding(f"{link.name}, the bridge of the pods, is down", (), (" ".join(command),), (command,))
    mtu = _wanted_mtu(facts)
    if ports and mtu and link.mtu < mtu:
        command = ("ip", "link", "set", link.name, "mtu", str(mtu))
        yield Finding(
            f"the MTU of {link.name} is smaller than that of its pods",
            (f"it is {link.mtu}, and the pods have {mtu}: what is larger is lost between them and the other nodes",),
            (" ".join(command),),
            (command,),
        )


def without_gateway(facts: Facts) -> list[tuple[Network, list[HostAddress]]]:
    """Return the subnets whose gateway the bridge has lost while pods use it, with the addresses that it has instead."""
    link, found = facts.bridge, list[tuple["Network", list["HostAddress"]]]()
    if link is None or not (facts.delegate.get("isGateway", True) or facts.delegate.get("isDefaultGateway", False)):
        return found
    used = {gateway for pod in facts.pods for one in pod.links or () for gateway in one.gateways}
    for subnet in facts.subnets:
        gateway, here = subnet.network_address + 1, facts.addresses_of(link)
        others = [at for at in here if at.address.version == subnet.version and not at.network.is_link_local]
        if gateway in used and others and not any(at.address == gateway and at.network == subnet for at in here):
            found.append((subnet, others))
    return found


def gateway(facts: Facts) -> Iterator[Finding]:
    """The bridge has another address than that by which its pods leave the node."""
    for subnet, others in without_gateway(facts):
        address, name = f"{subnet.network_address + 1}/{subnet.prefixlen}", facts.bridge_name
        command: Command = ("ip", "addr", "add", address, "dev", name)
        wrong = [f"{at.address}/{at.network.prefixlen}" for at in others]
        yield Finding(
            f"{name} does not have {address}, by which its pods leave this node",
            (f"it has {', '.join(wrong)}",),
            (
                *(f"ip addr del {each} dev {name}" for each in wrong),
                " ".join(command),
            ),  # the kernel deletes a second one with the first
            (command,),
        )


def _wanted_mtu(facts: Facts) -> int:
    chosen = facts.delegate.get("mtu")
    return chosen if isinstance(chosen, int) and chosen > 0 else _largest(facts)


def _largest(facts: Facts) -> int:
    """Return the size of a pod's packet that fits the tunnel; a stale subnet.env is another rule's."""
    return facts.pod_mtu or (facts.env.mtu if facts.env else 0)


def port_mtu(facts: Facts) -> Iterator[Finding]:
    """Pods whose packets do not fit the tunnel."""
    link, largest = facts.bridge, _largest(facts)
    if link is None or not largest:
        return
    found = []
    for port in facts.ports(link):
        if port.mtu > largest and facts.devices and not _is_of_host(facts, port):
            pod = _pod_on(port)
            commands = tuple(_smaller(facts, port, largest))
            found.append(
                Finding(
                    f"the MTU of {port.name}{f', of container {pod}' if pod else ''}, is {port.mtu}",
                    (f"{largest} fits the tunnel: larger packets are lost between nodes",),
                    tuple(" ".join(command) for command in commands) or ("delete the pod and create it again",),
                    commands,
                    about=frozenset((pod,)) if pod else frozenset(),
                )
            )
    yield from gathered(found, "pod", "the MTU is larger than fits the tunnel")


def _is_of_host(facts: Facts, port: Link) -> bool:
    """Return whether both ends of a veth are in this namespace, so that it is no pod's."""
    return port.nsid is None and any(link.ifindex == port.peer and link.peer == port.ifindex for link in facts.links)


def _smaller(facts: Facts, port: Link, largest: int) -> Iterator[Command]:
    """Yield the commands that make both ends of a pod's veth smaller; none if its other end is not known."""
    pod = next((pod for pod in facts.pods if pod.peer == port.ifindex), None)
    link = next((link for link in pod.links or () if link.name == pod.ifname), None) if pod is not None else None
    if pod is None or link is None:
        return
    if link.mtu > largest:
        yield ("nsenter", f"--net={pod.netns}", "ip", "link", "set", pod.ifname, "mtu", str(largest))
    yield ("ip", "link", "set", port.name, "mtu", str(largest))


def _pod_on(port: Link) -> str:
    return mark_on(port).removeprefix(MARK).split(":")[0]


def _network_on(port: Link) -> str:
    return mark_on(port).removeprefix(MARK).rpartition(":")[2]


def ports(facts: Facts) -> Iterator[Finding]:
    """Host ends that are down, that are not on the bridge and have no route, or that are isolated."""
    found = [finding for port in facts.links if mark_on(port) and port.kind == "veth" for finding in _of_port(facts, port)]
    yield from gathered(found, "host end", "down, not on the bridge, or isolated")


def _of_port(facts: Facts, port: Link) -> Iterator[Finding]:
    bridge, pod = facts.bridge, _pod_on(port)
    named, show = f"{port.name}, the host end of container {pod},", f"ip -d link show {port.name}"
    set_link, set_port = ("ip", "link", "set", port.name), ("bridge", "link", "set", "dev", port.name)
    back: list[Command] = [(*set_link, "master", bridge.name)] if bridge is not None else []
    for key, option in (("hairpinMode", "hairpin"), ("portIsolation", "isolated")):  # which a port that leaves a bridge loses
        back += [(*set_port, option, "on")] if facts.delegate.get(key) else []
    is_of_bridge = bridge is not None and _network_on(port) == facts.flannel_name
    if not port.is_up:
        yield _port_finding(f"{named} is down", pod, show, (*set_link, "up"))
    elif bridge is not None and not port.master and not any(route.device == port.name for route in facts.routes):
        yield _port_finding(f"{named} is on no bridge", pod, show, *back)
    elif bridge is not None and is_of_bridge and port.master and port.master != bridge.ifindex:
        other = next((link.name for link in facts.links if link.ifindex == port.master), f"link {port.master}")
        yield _port_finding(f"{named} is a port of {other}, not of {bridge.name}", pod, show, *back)
    elif bridge is not None and port.master == bridge.ifindex and port.isolated and not facts.delegate.get("portIsolation"):
        yield _port_finding(f"{named} is isolated from other pods", pod, show, (*set_port, "isolated", "off"))


def _port_finding(what: str, pod: str, show: str, *commands: Command) -> Finding:
    return Finding(what, (show,), tuple(map(" ".join, commands)), commands, frozenset((pod,)))


_STRANGERS = {
    "cali": "Calico",
    "vxlan.calico": "Calico",
    "vxlan-v6.calico": "Calico",
    "wireguard.cali": "Calico",
    "cilium_": "Cilium",
    "lxc_health": "Cilium",
    "weave": "Weave Net",
    "vethwe-": "Weave Net",
    "kube-bridge": "kube-router",
    "antrea-gw": "Antrea",
    "genev_sys": "OVN or Open vSwitch",
    "ovn-k8s-mp": "OVN-Kubernetes",
    "romana-": "Romana",
}
"""Beginnings of names of links, and which network plugin creates them."""


def strangers(facts: Facts) -> Iterator[Finding]:
    """Links that another network plugin created."""
    if not facts.is_flannel:
        return
    kinds = {str(plugin.get("type")) for file in facts.conf_files if file.network for plugin in file.network.plugins}
    by_plugin: dict[str, list[str]] = {}
    for link in facts.links:
        owner = next((name for beginning, name in _STRANGERS.items() if link.name.startswith(beginning)), "")
        if owner and not any(kind.startswith(owner.lower().split()[0]) for kind in kinds):  # Canal: Calico's pods, our routes
            by_plugin.setdefault(owner, []).append(link.name)
    for owner, names in by_plugin.items():
        devices = [route for route in facts.routes if route.device in names]
        lines = [f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"]
        lines += [f"route {' '.join(route.words())}" for route in sorted(devices, key=str)[:5]]
        yield Finding(
            f"links of {owner} are on this node",
            tuple(lines),
            (f"remove it as its documentation says, then: {'; '.join(f'ip link del {name}' for name in names[:4])}",),
            severity=ERROR if any(_takes(facts, route.dst) for route in devices) else WARNING,
        )


def _takes(facts: Facts, dst: Network) -> bool:
    """Return whether a route takes packets for pods of the flannel network."""
    return any(network.version == dst.version and have_overlap(network, dst) for network in facts.networks)


def port_taken(facts: Facts) -> Iterator[Finding]:
    """A program has the tunnel's UDP port."""
    if facts.port_holders:
        yield Finding(
            f"UDP port {facts.tunnel_port}, which VXLAN needs, is taken by a program",
            facts.port_holders,
            (f'stop it, or choose another "Backend.Port" for all nodes: ss -ulnp sport = :{facts.tunnel_port}',),
        )
