"""Addresses, leaked resources, rules of pods, and the attachment that was asked about."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from cni_py.doctor.findings import ERROR, WARNING, Finding
from cni_py.doctor.rules import shown
from cni_py.plural import counted
from cni_py.sweep.report import KEPT, WOULD_REMOVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.doctor.facts import Facts, Pod, PodLink
    from cni_py.doctor.findings import Command
    from cni_py.sweep.report import Finding as Swept

_NEARLY = 10
"""A pool is nearly empty with this share of its addresses left, in percent."""
SWEEP, REPAIR = ("cni-py", "sweep", "--grace", "0"), ("cni-py", "repair")


def pool(facts: Facts) -> Iterator[Finding]:
    """Range sets without a free address, or with few."""
    for one in facts.pools:
        free = one.total - one.taken
        if free <= one.total * _NEARLY // 100:
            state = "has no free address" if free <= 0 else f"has {counted(free, 'free address', 'es')}"
            yield Finding(
                f'the pool {one.ranges} of the network "{one.network}" {state}',
                (f"{one.taken} of {one.total} are reserved",),
                ("list resources leaked by deleted pods: cni-py sweep --dry-run; else use a larger subnet: SubnetLen",),
                severity=ERROR if free <= 0 else WARNING,
            )


def leaked(facts: Facts) -> Iterator[Finding]:
    """Resources of deleted pods."""
    stale = [one for one in (facts.leaks.findings if facts.leaks else ()) if _is_stale(one)]
    if not stale:
        return
    owners = {(one.leftover.container_id, one.network) for one in stale}
    lines = [f"{one.leftover.kind} {one.leftover.what}" for one in stale]
    yield Finding(
        f"leaked: {counted(len(stale), 'resource')} of {counted(len(owners), 'deleted pod')}",
        (*shown(lines), f"why: {stale[0].why.partition('; kept:')[0]}"),
        (f"list them: {' '.join(SWEEP)} --dry-run", " ".join(SWEEP)),
        (SWEEP,),
    )


def _is_stale(one: Swept) -> bool:
    """Return whether a leftover is stale; also where the sweep keeps it because it does not see what is behind eth0."""
    return one.outcome == WOULD_REMOVE or (one.outcome == KEPT and "kept: liveness unknown" in one.why)


def lost_rules(facts: Facts) -> Iterator[Finding]:
    """Rules of live pods that another program deleted."""
    if facts.lost:
        yield Finding(
            f"rules of {counted(len({one.container_id for one in facts.lost}), 'live pod')} are missing",
            shown(f"{one.what} of container {one.container_id}, {one.ifname}" for one in facts.lost),
            (" ".join(REPAIR),),
            (REPAIR,),
            frozenset(one.container_id for one in facts.lost),
        )


def asked(facts: Facts) -> Iterator[Finding]:
    """The attachment that was asked about, from inside its namespace, and as CHECK sees it."""
    for pod in facts.pods:
        for finding in _of_pod(facts, pod):
            yield Finding(finding.what, finding.found, finding.repair, finding.fix, pod.names, finding.severity)
    yield from _with_one_address(facts)


def _with_one_address(facts: Facts) -> Iterator[Finding]:
    """Pods that have one address: the bridge sends its packets to one of them."""
    by_address: dict[Any, dict[str, Pod]] = {}
    for pod in facts.pods if facts.bridge is not None else ():
        for link in pod.links or ():
            if pod.network != facts.flannel_name or link.name != pod.ifname:
                continue
            for at in link.addresses:
                if not at.ip.is_link_local:
                    by_address.setdefault(at.ip, {})[pod.netns] = pod
    for address, those in by_address.items():
        if len(those) > 1:
            wrong = [pod for pod in those.values() if str(address) not in pod.addresses]
            deletions = [f"nsenter --net={pod.netns} ip addr del {address} dev {pod.ifname}" for pod in wrong]
            yield Finding(
                f"{counted(len(those), 'pod')} have the address {address}",
                shown(f"{pod.name}, {pod.ifname}, {pod.netns}" for pod in those.values()),
                tuple(deletions) or ("delete one of these pods and create it again",),
                about=frozenset().union(*(pod.names for pod in those.values())),
            )


def _of_pod(facts: Facts, pod: Pod) -> Iterator[Finding]:
    named = f"{pod.name}, {pod.ifname}"
    if pod.error:
        hint = f"see every step: cni-py explain {pod.container_id}"
        yield Finding(f"{named}: the last call failed", (pod.error,), (hint,))
    if pod.links is None:
        if pod.state != "deleted":
            yield Finding(
                f"{named}: its namespace cannot be entered", (pod.fault,), ("list what is left of it: cni-py sweep --dry-run",)
            )
        return
    link = next((link for link in pod.links if link.name == pod.ifname), None)
    enter = f"nsenter --net={pod.netns}"
    if link is None:
        there = ", ".join(one.name for one in pod.links) or "only lo"
        yield Finding(
            f"{named}: the interface does not exist", (f"the pod has {there}",), ("delete the pod and create it again",)
        )
        return
    if not link.is_up:
        inside = ("nsenter", f"--net={pod.netns}", "ip")
        commands: list[Command] = [(*inside, "link", "set", pod.ifname, "up")]
        gateway = next((subnet.network_address + 1 for subnet in facts.subnets if subnet.version == 4), None)
        if gateway is not None and not link.gateways and _wants_default(facts, pod):
            commands.append((*inside, "route", "replace", "default", "via", str(gateway)))  # lost when it went down
        lines = tuple(" ".join(command) for command in commands)
        yield Finding(f"{named}: the interface is down", (), lines, tuple(commands))
    missing = [address for address in pod.addresses if address not in {str(at.ip) for at in link.addresses}]
    if missing:
        found = ", ".join(map(str, link.addresses)) or "no address"
        yield Finding(
            f"{named}: the address {', '.join(missing)} is missing",
            (f"the interface has {found}",),
            tuple(_additions(facts, pod, missing, enter)) or ("delete the pod and create it again",),
        )
    yield from _default_route(facts, pod, link)
    yield from _size(facts, pod, link)
    yield from _neighbour(facts, pod, link)
    for msg, details, hint in pod.differences:
        yield Finding(f"{named}: {msg}", (details,) if details else (), (hint,) if hint else ())


def _additions(facts: Facts, pod: Pod, missing: list[str], enter: str) -> Iterator[str]:
    """Yield the commands that add addresses of our own subnets to a pod; the route by way of the gateway is lost with them."""
    for address in map(ip_address, missing):
        for subnet in facts.subnets:
            if address in subnet and pod.network == facts.flannel_name:
                family = "-6 " if subnet.version == 6 else ""
                yield f"{enter} ip addr add {address}/{subnet.prefixlen} dev {pod.ifname}"
                yield f"{enter} ip {family}route replace default via {subnet.network_address + 1}"


def _neighbour(facts: Facts, pod: Pod, link: PodLink) -> Iterator[Finding]:
    """A permanent ARP entry of the bridge that leads its address elsewhere."""
    for one in facts.neighbours:
        if one.device == facts.bridge_name and one.mac != link.mac and any(at.ip == one.address for at in link.addresses):
            yield Finding(
                f"{pod.name}, {pod.ifname}: a permanent ARP entry of this node leads its address elsewhere",
                (f"{one.address} is at {one.mac}, and the pod has {link.mac}",),
                (f"ip neigh del {one.address} dev {one.device}",),
            )


def _wants_default(facts: Facts, pod: Pod) -> bool:
    return bool(facts.delegate.get("isDefaultGateway", True)) and pod.network == facts.flannel_name


def _default_route(facts: Facts, pod: Pod, link: PodLink) -> Iterator[Finding]:
    """Its default route: none, or by way of an address that is not this node's. That of another interface is its own affair."""
    if (
        not _wants_default(facts, pod)
        or not link.is_up
        or not link.addresses
        or any(one.gateways for one in pod.links or () if one is not link)
    ):
        return
    named, enter = f"{pod.name}, {pod.ifname}", ("nsenter", f"--net={pod.netns}", "ip")
    gateway = next((str(subnet.network_address + 1) for subnet in facts.subnets), "GATEWAY")
    if not link.gateways:
        command = (*enter, "route", "add", "default", "via", gateway)
        yield Finding(
            f"{named}: it has no default route", (f"nsenter --net={pod.netns} ip route",), (" ".join(command),), (command,)
        )
    own = {at.address for at in facts.addresses_of(facts.bridge)} if facts.bridge is not None else set()
    for strange in link.gateways if own else ():
        if (
            strange.version == 4
            and str(strange) != gateway
            and strange not in own
            and any(strange in subnet for subnet in facts.subnets)
        ):
            command = (*enter, "route", "replace", "default", "via", gateway)
            yield Finding(
                f"{named}: its default route leads to {strange}, which is not this node's gateway",
                (f"the gateway is {gateway}, of {facts.bridge_name}",),
                (" ".join(command),),
                (command,),
            )


def _size(facts: Facts, pod: Pod, link: PodLink) -> Iterator[Finding]:
    """Its interface sends what the host end does not take: the kernel drops that without a message to the pod."""
    host_end = next((one for one in facts.links if one.ifindex == pod.peer and one.kind == "veth"), None) if pod.peer else None
    if host_end is not None and link.mtu > host_end.mtu:
        largest = facts.pod_mtu or (facts.env.mtu if facts.env else 0)
        wanted = min(link.mtu, largest) if largest else link.mtu
        commands: list[Command] = []
        if link.mtu != wanted or wanted == host_end.mtu:
            commands.append(("nsenter", f"--net={pod.netns}", "ip", "link", "set", pod.ifname, "mtu", str(wanted)))
        if host_end.mtu != wanted:
            commands.append(("ip", "link", "set", host_end.name, "mtu", str(wanted)))
        yield Finding(
            f"{pod.name}, {pod.ifname}: its MTU is larger than that of its host end",
            (f"{pod.ifname} has {link.mtu}, {host_end.name} has {host_end.mtu}: larger packets are dropped without a message",),
            tuple(" ".join(command) for command in commands),
            tuple(commands),
        )
