"""sbr: packets of a pod leave over the interface whose address they have as source. It is chained behind a main plugin.

Owns, in the sandbox: a rule ``from ADDRESS lookup TABLE`` for each address; the routes of that table, which are deleted with
the interface. It keeps its own records, for DEL when the interface no longer exists and for GC.

How it works. For each address a table of its own, from 100 on, gets a default route by the gateway and copies of the
interface's routes; then those are deleted from the table main. With ``table`` in the configuration, only the rules are made.

Source: containernetworking/plugins plugins/meta/sbr.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cni_py.attachment import record
from cni_py.attachment.chained import prev_result
from cni_py.attachment.check import RECREATE, Differences
from cni_py.errors import InvalidConfig, SandboxGone
from cni_py.journal import note
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link, get_link
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import Route, add_route, list_routes_over, put_route, remove_route, used_tables
from cni_py.kernel.rule import add_rule, delete_rule, list_rules
from cni_py.netlink.constants import RT_SCOPE_LINK, RT_TABLE_MAIN, RTPROT_BOOT
from cni_py.undo import Attempts, Undo
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from ipaddress import IPv4Address, IPv6Address
    from types import TracebackType
    from typing import Any

    from cni_py.config.models import SbrConfig
    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import IPConfig, Result

    Address = IPv4Address | IPv6Address

CONFIG = "SbrConfig"
NO_PREV = "This plugin must be called as chained plugin"
FIRST_TABLE = 100
_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


class Plan(Value):
    """Desired rules and routes. ``table`` None: one for each address, with routes."""

    ips: tuple[IPConfig, ...]
    table: int | None
    gateways: dict[int, Address]
    has_hints: bool


def add(call: Call, config: SbrConfig) -> Result:
    """Create rules and tables; the previous result is returned unchanged. Spec section 2, ADD."""
    gateways = check_config(config)
    prev = prev_result(config.prev_result, call, NO_PREV)
    plan = Plan(ips_of(prev, call.ifname), config.table, gateways, config.add_source_hints)
    with (
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        Locked(netns),
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        owned = [str(ip.address.ip) for ip in plan.ips]
        undo.on_failure_if_clean("the record as before", record.restore, call, record.remember(call, addresses=owned))
        if plan.table is None:
            move(undo, sandbox, get_link(sandbox, call.ifname), plan)
        else:
            for ip in plan.ips:
                make_rule(undo, sandbox, ip.address.ip, plan.table)
    return prev


def delete(call: Call, config: SbrConfig) -> None:
    """Delete the rules of the interface's addresses; success if sandbox or interface no longer exist."""
    if not call.netns:
        return
    try:
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, Locked(netns), open_in(netns) as sandbox:
            link = find_link(sandbox, call.ifname)
            mine = {address.ip for address in list_addresses(sandbox, link)} if link else set()
            delete_rules(sandbox, mine | addresses_in(record.read(call)), config.table)
    except SandboxGone:
        pass


def check(call: Call, config: SbrConfig) -> None:
    """Look for the rule of each address, and in its table for the subnet and a default route."""
    gateways = check_config(config)
    ips = ips_of(prev_result(config.prev_result, call, NO_PREV), call.ifname)
    found = Differences()
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        link = find_link(sandbox, call.ifname)
        rules = list_rules(sandbox)
        routes = list_routes_over(sandbox, link) if link else []
        for ip in ips:
            address = ip.address.ip
            rule = next((r for r in rules if r.source == ip_network(address) and config.table in (None, r.table)), None)
            if rule is None:
                words = f"from {address} lookup {config.table or 'a table of its own'}"
                there = "; ".join(" ".join(r.words) for r in rules if r.source) or "no rule with a source"
                found.report(f"the rule {words} is missing", f"expected {words}, found {there}", RECREATE)
            elif config.table is None:
                needed = [ip.address.network, *([_DEFAULT[address.version]] if _gateway(ip, gateways) else [])]
                have = [route.dst for route in routes if route.table == rule.table]
                for dst in [dst for dst in needed if dst not in have]:
                    found.report(
                        f"the route to {dst} is missing in table {rule.table}",
                        f"expected {dst} over {call.ifname}, found {', '.join(map(str, have)) or 'no routes'}",
                        RECREATE,
                    )
    found.raise_if_any()


def status(call: Call, config: SbrConfig) -> None:
    """Check that the configuration can work."""
    check_config(config)


def gc(call: Call, config: SbrConfig) -> None:
    """Do DEL for this network's stale attachments whose sandboxes still exist."""
    attempts = Attempts()
    for stale in record.stale_calls(call):
        with attempts.attempt(f"rules of {stale.container_id} {stale.ifname}"):
            delete(stale, config)
    attempts.raise_if_failed("GC")


# ---- the plan: pure ---------------------------------------------------------------------------


def check_config(config: SbrConfig) -> dict[int, Address]:
    """Return the gateways of the configuration by IP version. Raises: InvalidConfig."""
    if len(config.gateways) > 2:
        few = "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)"
        raise InvalidConfig(few, f"it has {len(config.gateways)}")
    found: dict[int, Address] = {}
    for text in config.gateways:
        try:
            address = ip_address(text)
        except ValueError as error:
            raise InvalidConfig(f"invalid static gateway IP address: {text[:60]}", '"gateways" has addresses') from error
        other = found.setdefault(address.version, address)
        if other is not address:
            raise InvalidConfig(f"gateways list contains multiple IPv{address.version} addresses: {other} and {address}")
    return found


def ips_of(prev: Result, ifname: str) -> tuple[IPConfig, ...]:
    """The addresses of the interface; those that name none are. Raises: InvalidConfig if there are none at all."""
    if not prev.ips:
        raise InvalidConfig(f"No IP addresses supplied on interface: {ifname}", "prevResult has no addresses")

    def is_mine(index: int | None) -> bool:
        return index is None or not 0 <= index < len(prev.interfaces) or prev.interfaces[index].name == ifname

    return tuple(ip for ip in prev.ips if is_mine(ip.interface))


def _gateway(ip: IPConfig, gateways: dict[int, Address]) -> Address | None:
    return gateways.get(ip.address.version, ip.gateway)


def belongs(route: Route, ip: IPConfig) -> bool:
    """Return whether a route is of this address: by its source or gateway, or because it has neither."""
    near = [address for address in (route.source, route.gateway) if address is not None]
    return not near or any(address in ip.address.network for address in near)


def free_tables(used: Collection[int]) -> Iterator[int]:
    """Yield tables that no rule and no route uses, from ``FIRST_TABLE`` on."""
    table = FIRST_TABLE
    while True:
        if table not in used:
            yield table
        table += 1


# ---- rules and routes -------------------------------------------------------------------------


class Locked:
    """Holds the lock of the Go plugin, which is the namespace: two ADDs must not choose one table."""

    def __init__(self, netns: NetNS) -> None:
        self._fd = netns.fd

    def __enter__(self) -> None:
        from fcntl import LOCK_EX, flock

        flock(self._fd, LOCK_EX)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from fcntl import LOCK_UN, flock

        flock(self._fd, LOCK_UN)  # closing is not enough: the client of an agent has the same open file


def move(undo: Undo, sandbox: Rtnl, link: Link, plan: Plan) -> None:
    """Give each address a table with the routes of the link, and delete them from main. Raises: KernelRefused, NotAvailable."""
    tables = free_tables(used_tables(sandbox) | {rule.table for rule in list_rules(sandbox)})
    routes = [route for route in list_routes_over(sandbox, link) if is_moved(route)]
    for ip in plan.ips:
        table = next(tables)
        make_rule(undo, sandbox, ip.address.ip, table)
        undo.on_failure(f"routes of table {table}", empty, sandbox, link, table)
        gateway = _gateway(ip, plan.gateways)
        if gateway is not None:
            put_route(sandbox, link, Route(_DEFAULT[gateway.version], gateway=gateway, table=table, protocol=RTPROT_BOOT))
        for route in routes:
            if belongs(route, ip):
                put_route(sandbox, link, route.replace(table=table, onlink=False))
    if plan.has_hints:
        for ip in plan.ips:
            hinted = Route(ip.address.network, scope=RT_SCOPE_LINK, source=ip.address.ip, protocol=RTPROT_BOOT)
            for route in [route for route in routes if route.dst == hinted.dst]:  # it is replaced
                undo.on_failure(f"the route to {route.dst}", put_back, sandbox, link, route)
            undo.on_failure(f"the route to {hinted.dst}", remove_route, sandbox, link, hinted)
            put_route(sandbox, link, hinted)
    leaving = [route for route in routes if not plan.has_hints or route.scope != RT_SCOPE_LINK]
    # those by a gateway first: without the subnet's route the kernel would not accept them again
    for route in sorted(leaving, key=lambda route: route.gateway is None):
        undo.on_failure(f"the route to {route.dst}", put_back, sandbox, link, route)
        remove_route(sandbox, link, route)


def put_back(sandbox: Rtnl, link: Link, route: Route) -> None:
    """Add a route again that was in main, unless it still is. Raises: KernelRefused."""
    if route not in list_routes_over(sandbox, link):
        add_route(sandbox, link, route)


def is_moved(route: Route) -> bool:
    """Return whether a route is in main, and not that to link-local addresses, which every interface needs there."""
    return route.table == RT_TABLE_MAIN and not route.dst.is_link_local


def make_rule(undo: Undo, sandbox: Rtnl, address: Address, table: int) -> None:
    """Raises: KernelRefused, NotAvailable."""
    undo.on_failure(f"the rule of {address}", delete_rules, sandbox, {address}, table)
    add_rule(sandbox, address, table)


def empty(sandbox: Rtnl, link: Link, table: int) -> None:
    """Delete the link's routes of a table. Raises: KernelRefused."""
    for route in list_routes_over(sandbox, link):
        if route.table == table:
            remove_route(sandbox, link, route)


def delete_rules(sandbox: Rtnl, addresses: Collection[Address], table: int | None) -> None:
    """Delete the rules whose source is one of the addresses, of any table or of one. Raises: Incomplete."""
    sources = {ip_network(address) for address in addresses}
    attempts = Attempts()
    for rule in list_rules(sandbox):
        if rule.source in sources and table in (None, rule.table):
            with attempts.attempt(f"rule {' '.join(rule.words)}"):
                delete_rule(sandbox, rule)
    attempts.raise_if_failed("DEL")


def addresses_in(saved: dict[str, Any]) -> set[Address]:
    """The addresses in a record."""
    listed = saved.get("addresses")
    try:
        return {ip_address(text) for text in listed if isinstance(text, str)} if isinstance(listed, list) else set()
    except ValueError as error:  # a damaged record
        note(f"addresses of the record ignored: {error}")
        return set()
