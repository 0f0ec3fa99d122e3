"""vrf: the interface of a pod in a VRF, a routing table that is a link as well. It is chained behind a main plugin.

Owns, in the sandbox: the VRF, shared by the interfaces in it and deleted with the last of them; the interface's master; its
routes in the VRF's table. It keeps its own records, for GC.

How it works. The kernel takes an interface down and up when it gets a master: its own routes move to the VRF's table, all
others are lost, and so may be IPv6 addresses. These are remembered before, and added again.

Source: containernetworking/plugins plugins/meta/vrf.
"""

from __future__ import annotations

from errno import EHOSTUNREACH, ENETUNREACH
from time import sleep

from cni_py.attachment import record
from cni_py.attachment.chained import prev_result
from cni_py.attachment.check import RECREATE, Differences, command, state
from cni_py.errors import CheckFailed, InvalidConfig, KernelRefused, SandboxGone
from cni_py.kernel.address import add_address, list_addresses
from cni_py.kernel.features import require_kind
from cni_py.kernel.link import (
    delete_link,
    find_link,
    get_link,
    list_links,
    release,
    set_master,
    set_up,
    table_of_vrf,
)
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import add_route, list_routes_over, put_route
from cni_py.kernel.vrf import create_vrf
from cni_py.netlink.constants import RT_TABLE_MAIN, RTPROT_KERNEL
from cni_py.netlink.socket import open_host
from cni_py.spec.environment import link_name_fault
from cni_py.undo import Attempts, Undo
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cni_py.config.models import VrfConfig
    from cni_py.kernel.address import AddressWithPrefix
    from cni_py.kernel.link import Link
    from cni_py.kernel.route import Route
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "VrfConfig"
NO_PREV = "missing prevResult from earlier plugin"
NO_NAME = "configuration is expected to have a valid vrf name"
RESERVED = (253, 254, 255)
"""The kernel's tables: default, main, local."""
_ATTEMPTS, _FIRST_WAIT_SECONDS = 8, 0.01


class Before(Value):
    """Addresses and routes of the interface that the kernel drops when it gets a master, or loses it."""

    addresses: tuple[AddressWithPrefix, ...]
    routes: tuple[Route, ...]


def add(call: Call, config: VrfConfig) -> Result:
    """Put the interface into the VRF; the previous result is returned unchanged. Spec section 2, ADD."""
    check_config(config)
    prev = prev_result(config.prev_result, call, NO_PREV)
    with (
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        link = get_link(sandbox, call.ifname)
        refuse_mastered(sandbox, link)
        undo.on_failure_if_clean("the record as before", record.restore, call, record.remember(call))
        if find_link(sandbox, config.vrfname) is None:  # an empty one that was made by another stays
            undo.on_failure("the VRF", delete_if_unused, sandbox, config.vrfname)
        vrf = ensure_vrf(sandbox, config)
        before = Before(tuple(list_addresses(sandbox, link)), moved_routes(list_routes_over(sandbox, link)))
        undo.on_failure(f'"{link.name}" out of the VRF', take_out, sandbox, link.name, before)
        set_master(sandbox, link, vrf)
        restore_addresses(sandbox, link, before.addresses)
        for route in before.routes:
            move(sandbox, link, route.replace(table=table_of_vrf(vrf)))
    return prev


def delete(call: Call, config: VrfConfig) -> None:
    """Take the interface out of the VRF, and delete that if no other is in it; absence is success."""
    if not call.netns or link_name_fault(config.vrfname):
        return
    attempts = Attempts()
    try:
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
            link, vrf = find_link(sandbox, call.ifname), find_link(sandbox, config.vrfname)
            if link is not None and vrf is not None and vrf.kind == "vrf" and link.master == vrf.ifindex:
                with attempts.attempt(f'"{link.name}" in the VRF'):
                    release(sandbox, link)
            with attempts.attempt(f'the VRF "{config.vrfname}"'):
                delete_if_unused(sandbox, config.vrfname)
    except SandboxGone:
        return
    attempts.raise_if_failed("DEL")


def check(call: Call, config: VrfConfig) -> None:
    """Compare the VRF and the interface's master; the routes are those of the plugin in front, and its CHECK looks for them."""
    check_config(config)
    prev_result(config.prev_result, call, NO_PREV)
    found = Differences()
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        link, vrf = find_link(sandbox, call.ifname), find_link(sandbox, config.vrfname)
        if vrf is None or vrf.kind != "vrf":
            there = f"a link of kind {vrf.kind or 'none'}" if vrf else "no such link"
            raise CheckFailed(f'the VRF "{config.vrfname}" is missing', f"expected a VRF, found {there}", RECREATE)
        up = command(sandbox, f"ip link set {vrf.name} up")
        found.expect(f'state of "{vrf.name}"', "up", state(vrf), up)
        if config.table:
            found.expect(f'table of "{vrf.name}"', config.table, table_of_vrf(vrf), RECREATE)
        master = find_link(sandbox, link.master) if link and link.master else None
        there = master.name if master else "none"
        move_in = command(sandbox, f"ip link set {call.ifname} master {vrf.name}")
        found.expect(f'master of "{call.ifname}"', vrf.name, there if link else "no such interface", move_in)
    found.raise_if_any()


def status(call: Call, config: VrfConfig) -> None:
    """Check that the configuration can work and that the kernel has VRFs."""
    check_config(config)
    with open_host() as host:
        require_kind(host, "vrf")


def gc(call: Call, config: VrfConfig) -> None:
    """Do DEL for this network's stale attachments whose sandboxes still exist."""
    attempts = Attempts()
    for stale in record.stale_calls(call):
        with attempts.attempt(f"the VRF of {stale.container_id} {stale.ifname}"):
            delete(stale, config)
    attempts.raise_if_failed("GC")


# ---- the plan: pure ---------------------------------------------------------------------------


def check_config(config: VrfConfig) -> None:
    """Raises: InvalidConfig."""
    fault = link_name_fault(config.vrfname)
    if fault:
        raise InvalidConfig(NO_NAME, f'"vrfname" is "{config.vrfname[:40]}": {fault}')


def free_table(used: Collection[int]) -> int:
    """The lowest table that no VRF of the sandbox has."""
    table = 1
    while table in used or table in RESERVED:
        table += 1
    return table


def moved_routes(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The routes of main that the kernel does not move itself; those without a gateway first, for the others need them."""
    mine = [route for route in routes if route.table == RT_TABLE_MAIN and route.protocol != RTPROT_KERNEL]
    return tuple(sorted(mine, key=lambda route: route.gateway is not None))


# ---- links, addresses, routes -----------------------------------------------------------------


def ensure_vrf(sandbox: Rtnl, config: VrfConfig) -> Link:
    """Create the VRF, or use an existing one, up. Raises: InvalidConfig, KernelRefused, NotAvailable."""
    vrf = find_link(sandbox, config.vrfname)
    if vrf is None:
        used = {table_of_vrf(link) for link in list_links(sandbox) if link.kind == "vrf"}
        create_vrf(sandbox, config.vrfname, config.table or free_table(used))
        vrf = get_link(sandbox, config.vrfname)
    if vrf.kind != "vrf":
        raise InvalidConfig(f"Netlink {vrf.name} is not a VRF", f"it is of kind {vrf.kind or 'none'}", "choose another vrfname")
    if config.table not in (0, table_of_vrf(vrf)):
        raise InvalidConfig(
            f"VRF {vrf.name} already exist with different routing table {table_of_vrf(vrf)}", f'"table" is {config.table}'
        )
    if not vrf.is_up:
        set_up(sandbox, vrf)
    return vrf


def refuse_mastered(sandbox: Rtnl, link: Link) -> None:
    """Raises: InvalidConfig if the interface is in a VRF, a bridge or a bond already."""
    master = find_link(sandbox, link.master) if link.master else None
    if master is not None:
        raise InvalidConfig(f"interface {link.name} has already a master set: {master.name}", f"it is of kind {master.kind}")


def restore_addresses(sandbox: Rtnl, link: Link, addresses: Iterable[AddressWithPrefix]) -> None:
    """Add the addresses again that were lost. Raises: KernelRefused."""
    have = list_addresses(sandbox, link)
    for address in addresses:
        if address not in have:
            add_address(sandbox, link, address)


def move(sandbox: Rtnl, link: Link, route: Route) -> None:
    """Add a route to the VRF's table, once the kernel has the local ones there that it needs. Raises: KernelRefused."""
    for attempt in range(_ATTEMPTS):
        try:
            put_route(sandbox, link, route)
            return
        except KernelRefused as error:
            if error.errno not in (ENETUNREACH, EHOSTUNREACH) or attempt == _ATTEMPTS - 1:
                raise
        sleep(_FIRST_WAIT_SECONDS * 2**attempt)


def take_out(sandbox: Rtnl, ifname: str, before: Before) -> None:
    """Undo: the interface without a master, with its addresses and routes in main. Raises: KernelRefused."""
    link = find_link(sandbox, ifname)
    if link is None:
        return
    if link.master:
        release(sandbox, link)
    restore_addresses(sandbox, link, before.addresses)
    have = list_routes_over(sandbox, link)
    for route in before.routes:
        if route not in have:
            add_route(sandbox, link, route)


def delete_if_unused(sandbox: Rtnl, name: str) -> None:
    """Delete the VRF if no interface is in it; absence is success. Raises: KernelRefused."""
    vrf = find_link(sandbox, name)
    if vrf is not None and vrf.kind == "vrf" and not any(link.master == vrf.ifindex for link in list_links(sandbox)):
        delete_link(sandbox, name)
