"""bandwidth: the rates at which a pod receives and sends. It is chained behind a plugin that makes a veth.

Owns, per attachment: the ``ifb`` that what the pod sends is queued on, with the owner in its alias; on the host end of the
veth the token bucket, the ``ingress`` queueing discipline and its filter, which are deleted with the veth. It keeps its own
records, for GC: DEL of the plugin in front of it comes later.

How it works: kernel/tc.py. What the pod receives is shaped where the host end sends it; what the pod sends is redirected
from the host end to the ifb and shaped there.

Source: containernetworking/plugins plugins/meta/bandwidth.
"""

from __future__ import annotations

from cni_py.attachment import check as checks
from cni_py.attachment import record
from cni_py.attachment.chained import IFB_ALIAS, host_end, prev_result
from cni_py.attachment.interface import described
from cni_py.errors import CheckFailed, InvalidConfig
from cni_py.journal import note
from cni_py.kernel import tc
from cni_py.kernel.deletion import delete_in_background
from cni_py.kernel.features import require_kind
from cni_py.kernel.link import delete_link, find_link, get_link, list_links
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.tc import Shape
from cni_py.netlink.socket import open_host
from cni_py.packetfilter.ownership import digest
from cni_py.undo import Undo
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import BandwidthConfig
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "BandwidthConfig"
MAX_BURST = (1 << 32) - 1


class Limits(Value):
    """The two directions, seen from the pod; None: no limit."""

    ingress: Shape | None
    egress: Shape | None


def add(call: Call, config: BandwidthConfig) -> Result:
    """Limit the rates; the result gains the ifb. Spec section 2, ADD."""
    limits = wanted(config)
    prev = prev_result(config.prev_result, call)
    if limits.ingress is limits.egress is None:
        return prev
    with open_host() as host, Undo() as undo:
        port = find_port(host, call, prev)
        undo.on_failure_if_clean("the record as before", record.restore, call, record.remember(call))
        if limits.ingress:
            undo.on_failure("the token bucket", tc.delete_root, host, port)
            shape(host, port, limits.ingress)
        if limits.egress:
            ifb = create_ifb(undo, host, call, port)
            shape(host, ifb, limits.egress)
            undo.on_failure("the redirection", tc.delete_redirect, host, port)
            tc.redirect(host, port, ifb)
            prev = prev.replace(interfaces=(*prev.interfaces, described(ifb)))
    return prev


def delete(call: Call, config: BandwidthConfig) -> None:
    """Delete the ifb; the rest is deleted with the veth. It needs no namespace, no limits and no previous result."""
    with open_host() as host:
        found = ifbs_of(host, call)
    for link in found:
        _delete_soon(link)


def _delete_soon(link: Link) -> None:
    """Delete an ifb, and return when it is invisible. Raises: KernelRefused."""
    delete_in_background(None, lambda _: link)


def check(call: Call, config: BandwidthConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    limits = wanted(config)
    prev = prev_result(config.prev_result, call, "must be called as a chained plugin")
    if limits.ingress is limits.egress is None:
        return
    with open_host() as host:
        port = find_port(host, call, prev)
        found = checks.Differences()
        if limits.ingress:
            with found:
                check_shape(host, port, limits.ingress)
        if limits.egress:
            with found:
                check_egress(found, host, call, port, limits.egress)
        found.raise_if_any()


def status(call: Call, config: BandwidthConfig) -> None:
    """Check that the limits can work and that the kernel has ifbs."""
    wanted(config)
    with open_host() as host:
        require_kind(host, "ifb")


def gc(call: Call, config: BandwidthConfig) -> None:
    """Delete the ifbs of this network's attachments that no longer exist."""
    is_stale = record.stale_test(call)
    recorded = {IFB_ALIAS + record.name_of(*owner, call.network): owner for owner in record.remembered_by(call)}
    with open_host() as host:
        for link in list_links(host):
            owner = recorded.get(link.alias) or owner_in(link.alias, call.network)
            if link.kind == "ifb" and owner and is_stale(*owner):
                delete_link(host, link.name)


# ---- the limits: pure -------------------------------------------------------------------------


def wanted(config: BandwidthConfig) -> Limits:
    """The limits that hold: the configuration's own if it has any, else the runtime's. Raises: InvalidConfig."""
    own = (config.ingress_rate, config.ingress_burst, config.egress_rate, config.egress_burst)
    of = config.runtime_config.bandwidth
    if any(value is not None for value in own):
        rates = [value or 0 for value in own]
    else:
        rates = [of.ingress_rate, of.ingress_burst, of.egress_rate, of.egress_burst] if of else [0, 0, 0, 0]
    return Limits(shape_of("ingress", *rates[:2]), shape_of("egress", *rates[2:]))


def shape_of(direction: str, rate: int, burst: int) -> Shape | None:
    """Bits, as the configuration has them, to bytes. Raises: InvalidConfig."""
    key = f'"{direction}Rate" is {rate}, "{direction}Burst" is {burst}'
    if rate == burst == 0:
        return None
    if burst == 0:
        raise InvalidConfig("if rate is set, burst must also be set", key)
    if rate == 0:
        raise InvalidConfig("if burst is set, rate must also be set", key)
    if burst // 8 >= MAX_BURST:
        raise InvalidConfig("burst cannot be more than 4GB", key)
    if rate < 8 or burst < 8:
        raise InvalidConfig("rate and burst must be at least a byte", key, "both are in bits: 8 is a byte")
    return Shape(rate // 8, burst // 8)


def ifb_name(network: str, container_id: str, ifname: str = "") -> str:
    """The name of an ifb. Go-compatible: plugins/meta/bandwidth/main.go, without the interface's name."""
    return f"bwp{digest(network + container_id + ifname)[:12]}"


def owner_in(alias: str, network: str) -> tuple[str, str] | None:
    """Container id and interface name in an alias; None if it is of another network or was cut because of its length."""
    parts = alias.removeprefix(IFB_ALIAS).split(":") if alias.startswith(IFB_ALIAS) else []
    return (parts[0], parts[1]) if len(parts) == 3 and parts[2] == network else None


def alias_of(call: Call) -> str:
    return IFB_ALIAS + record.name_of(call.container_id, call.ifname, call.network)


# ---- the links --------------------------------------------------------------------------------


def find_port(host: Rtnl, call: Call, prev: Result) -> Link:
    """Return the host end of the pod's interface. Raises: InvalidConfig, KernelRefused, InvalidNetNS."""
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        return host_end(host, get_link(sandbox, call.ifname), prev)


def shape(host: Rtnl, link: Link, limit: Shape) -> None:
    """Give the link a token bucket. Raises: KernelRefused, NotAvailable."""
    if limit.burst < link.mtu:
        note(f'a burst of {limit.burst} bytes is less than a packet of "{link.name}" ({link.mtu}): full ones will be dropped')
    tc.set_shape(host, link, limit)


def create_ifb(undo: Undo, host: Rtnl, call: Call, port: Link) -> Link:
    """Create the ifb. Raises: KernelRefused, NotAvailable.

    Its name is Go's, which does not depend on the interface: the container's second one in this network has another.
    """
    name = ifb_name(call.network, call.container_id)
    taken = find_link(host, name)
    if taken is not None and taken.alias.startswith(IFB_ALIAS) and taken.alias != alias_of(call):
        name = ifb_name(call.network, call.container_id, call.ifname)
    undo.on_failure("the ifb", delete_own, host, call)  # before: its acknowledgement may be lost
    tc.create_ifb(host, name, port.mtu, alias_of(call))
    return get_link(host, name)


def delete_own(host: Rtnl, call: Call) -> None:
    """Delete the attachment's ifb by its alias: its name may be taken by a link that is not ours. Raises: KernelRefused."""
    for link in list_links(host, alias_of(call)):
        delete_link(host, link.name)


def ifbs_of(host: Rtnl, call: Call) -> list[Link]:
    """The attachment's ifb: by its alias, or, if the Go plugin made it, by its name. Raises: KernelRefused."""
    found = [link for link in list_links(host, alias_of(call)) if link.kind == "ifb"]
    of_go = find_link(host, ifb_name(call.network, call.container_id))
    return found + ([of_go] if of_go is not None and of_go.kind == "ifb" and not of_go.alias else [])


# ---- CHECK ------------------------------------------------------------------------------------


def check_shape(host: Rtnl, link: Link, expected: Shape) -> None:
    """Raises: CheckFailed."""
    found = tc.find_shape(host, link)
    if not tc.is_same(found, expected):
        raise CheckFailed(
            f'the token bucket of "{link.name}" is not what ADD left',
            f"expected {' '.join(expected.words)}, found {' '.join(found.words) if found else 'none'}",
            f"tc qdisc replace dev {link.name} root handle 1: {' '.join(expected.words)}",
        )


def check_egress(found: checks.Differences, host: Rtnl, call: Call, port: Link, expected: Shape) -> None:
    """Check the ifb, its token bucket, and that everything from the pod goes there. Raises: CheckFailed."""
    ifb = next(iter(ifbs_of(host, call)), None)
    if ifb is None:
        raise CheckFailed(
            "get ifb device: Link not found",
            f'expected "{ifb_name(call.network, call.container_id)}", found none',
            checks.RECREATE,
        )
    found.expect(f'state of "{ifb.name}"', "up", checks.state(ifb), f"ip link set {ifb.name} up")
    found.expect(f'MTU of "{ifb.name}"', port.mtu, ifb.mtu, f"ip link set {ifb.name} mtu {port.mtu}")
    with found:
        check_shape(host, ifb, expected)
    target = tc.redirected_to(host, port)
    if target != ifb.ifindex:
        there = f"tc qdisc del dev {port.name} ingress; tc qdisc add" if target else "tc qdisc replace"
        raise CheckFailed(
            f'what "{port.name}" receives is not redirected',
            f'expected to "{ifb.name}" (ifindex {ifb.ifindex}), found {f"to ifindex {target}" if target else "no such filter"}',
            f"{there} dev {port.name} ingress; tc filter add dev {port.name} parent ffff: protocol all prio 1 u32 "
            f"match u32 0 0 action mirred egress redirect dev {ifb.name}",
        )
