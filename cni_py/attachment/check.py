"""CHECK of what every main plugin makes: the sandbox's interface, its addresses and routes, the host end of a veth.

``prevResult`` names what is expected, as far as it goes: a later plugin of the chain may have changed the MAC address,
the MTU or the routes. Everything else comes from the configuration, and is the plugin's. Source: CNI spec section 2.
"""

from __future__ import annotations

from cni_py.attachment import delegate, gateway
from cni_py.attachment.interface import wanted_routes
from cni_py.errors import CheckFailed
from cni_py.journal import quote
from cni_py.kernel import sysctl
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import find_link, list_links, table_of_vrf
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route import list_routes_over
from cni_py.netlink.constants import RT_TABLE_MAIN
from cni_py.netlink.socket import open_host
from cni_py.spec.result import from_json
from cni_py.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Any

    from cni_py.config.models import MainConfig, MasterConfig
    from cni_py.kernel.address import AddressWithPrefix
    from cni_py.kernel.link import Link
    from cni_py.kernel.route import Route
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Interface, IPConfig, Result

RECREATE = "delete the pod and create it again"


class Differences:
    """Collects what differs, so that one CHECK reports all of it.

    ::

        found = Differences()
        found.expect("state of eth0", "up", state(link), f"ip link set eth0 up")
        with found:  # one difference at most: what follows in the block depends on it
            port = find_host_end(…)
        found.raise_if_any()
    """

    def __init__(self) -> None:
        self.failed: list[CheckFailed] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, CheckFailed):
            return False
        self.failed += [error, *error.others]
        return True

    def expect(self, subject: str, expected: object, found: object, hint: str = "") -> None:
        """Collect the difference between two values."""
        with self:
            expect(subject, expected, found, hint)

    def report(self, msg: str, details: str, hint: str) -> None:
        """Collect a difference that is none between two values."""
        self.failed.append(CheckFailed(msg, details, hint))

    def raise_if_any(self) -> None:
        """Raise the first one, with the others in it. Raises: CheckFailed."""
        if self.failed:
            first, *others = self.failed
            first.others = tuple(others)
            raise first


# ---- the frame of a CHECK ---------------------------------------------------------------------


class Opened:
    """``with Opened(call, config) as opened:`` — the host, the sandbox and the previous result for a CHECK.

    CHECK of the IPAM plugin comes first. What the block raises or collects in ``found`` is raised together at the end.

    Raises: CheckFailed, CniError.
    """

    def __init__(self, call: Call, config: MainConfig) -> None:
        self.call, self.found = call, Differences()
        self.prev = parse_prev_result(config.prev_result)
        with self.found:
            delegate.check_leased(call, config)

    def __enter__(self) -> Opened:
        call = self.call
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns:
            self.sandbox = open_in(netns)
        self.host = open_host()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.host.close()
        self.sandbox.close()
        is_collected = self.found.__exit__(kind, error, trace)
        if error is None or is_collected:
            self.found.raise_if_any()
        return is_collected

    def check_end(self, kind: str) -> Link:
        """Compare CNI_IFNAME with the previous result. Returns: it. Raises: CheckFailed if it is missing or of another kind."""
        end = find_sandbox_end(self.sandbox, self.call, kind)
        check_sandbox_end(self.found, self.sandbox, end, self.prev, self.call)
        return end

    def check_configured(self, end: Link) -> None:
        """Look for every address and route of the previous result. Raises: CheckFailed if it does not have the interface."""
        check_configured(self.found, self.sandbox, end, self.prev, self.call)

    def check_master(self, end: Link, config: MasterConfig) -> None:
        """Compare the link below, if the configuration names it: the default route may lead elsewhere now."""
        if config.master:
            from cni_py.attachment import master

            below = master.find(self.sandbox if config.link_in_container else self.host, config.master)
            self.found.expect(f'number of the link below "{end.name}", "{below.name}"', below.ifindex, end.peer, RECREATE)

    def check_choice(self, end: Link, what: str, names: Mapping[str, int], expected: int, found: int | None) -> None:
        """Compare one of several values by its name."""
        words = {number: name for name, number in names.items()}
        self.found.expect(f'{what} of "{end.name}"', words[expected], words.get(found or 0, found), RECREATE)


# ---- prevResult -------------------------------------------------------------------------------


def parse_prev_result(raw: Mapping[str, Any] | None) -> Result:
    """Raises: CheckFailed if the runtime sent none; DecodingFailure, IncompatibleVersion."""
    if raw is None:
        raise CheckFailed("Required prevResult missing", "expected the result of ADD, found none")
    return from_json(raw)


def expected_from_prev_result(prev: Result, call: Call) -> Interface:
    """The sandbox's interface in the result of ADD. Raises: CheckFailed."""
    for interface in prev.interfaces:
        if interface.name == call.ifname and interface.sandbox:
            return interface
    names = ", ".join(interface.name for interface in prev.interfaces)
    raise CheckFailed(
        f'prevResult has no interface "{call.ifname}" in a sandbox', f'expected "{call.ifname}", found {names or "none"}'
    )


def expected_addresses(prev: Result, call: Call) -> list[IPConfig]:
    """The addresses of the sandbox's interface: a later plugin may have added others. Raises: CheckFailed."""
    ours = prev.interfaces.index(expected_from_prev_result(prev, call))
    return [ip for ip in prev.ips if ip.interface in (None, ours)]


# ---- the kernel against it --------------------------------------------------------------------


def expect(subject: str, expected: object, found: object, hint: str = "") -> None:
    """Raises: CheckFailed if the two differ."""
    if expected != found:
        raise CheckFailed(f"{subject} is not what ADD left", f"expected {expected}, found {found}", hint)


def state(link: Link) -> str:
    """Returns: "up" or "down"."""
    return "up" if link.is_up else "down"


def find_sandbox_end(sandbox: Rtnl, call: Call, kind: str) -> Link:
    """Return CNI_IFNAME in the sandbox; ``kind`` "": of any. Raises: CheckFailed if it is missing or of another kind."""
    end = find_link(sandbox, call.ifname)
    if end is None:
        raise CheckFailed(
            f'the interface "{call.ifname}" is missing in "{call.netns}"',
            f"expected a {kind or 'link'}, found no such link",
            RECREATE,
        )
    expect(f'kind of "{end.name}" in the sandbox', kind or end.kind, end.kind, RECREATE)
    return end


def check_sandbox_end(found: Differences, sandbox: Rtnl, end: Link, prev: Result, call: Call, is_up: bool = True) -> None:
    """Compare the interface with ``prevResult``; it has to be up."""
    if is_up:
        found.expect(f'state of "{end.name}" in the sandbox', "up", state(end), command(sandbox, f"ip link set {end.name} up"))
    with found:
        check_link(found, sandbox, end, expected_from_prev_result(prev, call))


def command(rtnl: Rtnl, words: str) -> str:
    """Return the command as it is typed on the host."""
    return " ".join([*map(quote, rtnl.enter), words])


def find_host_end(host: Rtnl, end: Link, prev: Result) -> Link:
    """The peer of the sandbox's end, wherever it is plugged in and whatever its name is now. Raises: CheckFailed."""
    named = (find_link(host, interface.name) for interface in prev.interfaces if not interface.sandbox)
    port = next((link for link in named if link is not None and link.ifindex == end.peer), None)
    if port is None:
        port = next((link for link in list_links(host) if link.ifindex == end.peer and link.kind == "veth"), None)
    if port is None:
        raise CheckFailed(
            f'the host end of "{end.name}" is missing', f"expected a link with ifindex {end.peer}, found none", RECREATE
        )
    return port


def check_host_end(found: Differences, host: Rtnl, port: Link, prev: Result) -> None:
    """Compare its MAC address and MTU, if it still has its name."""
    for interface in prev.interfaces:
        if interface.name == port.name and not interface.sandbox:
            check_link(found, host, port, interface)


def check_link(found: Differences, rtnl: Rtnl, link: Link, expected: Interface) -> None:
    """Compare MAC address and MTU, as far as they are known: results before 1.1.0 have no MTU."""
    change = command(rtnl, f"ip link set {link.name}")
    if expected.mac:
        mac = expected.mac.lower()
        found.expect(f'MAC address of "{link.name}"', mac, link.mac, f"{change} address {mac}")
    if expected.mtu:
        found.expect(f'MTU of "{link.name}"', expected.mtu, link.mtu, f"{change} mtu {expected.mtu}")


def check_configured(found: Differences, sandbox: Rtnl, end: Link, prev: Result, call: Call) -> None:
    """Look for every address and route of the result on the interface."""
    check_addresses(found, sandbox, end, [ip.address for ip in expected_addresses(prev, call)])
    # before 1.1.0 a result does not name the tables of its routes
    check_routes(found, sandbox, end, wanted_routes(prev), in_any_table=not at_least(call.cni_version, "1.1.0"))


def check_addresses(
    found: Differences, rtnl: Rtnl, link: Link, addresses: Iterable[AddressWithPrefix], what: str = "address"
) -> None:
    """Look for addresses on a link."""
    have = list_addresses(rtnl, link)
    for address in addresses:
        if address not in have:
            there = ", ".join(map(str, have)) or "none"
            option = " nodad" if address.version == 6 else ""
            msg = f'the {what} {address} is missing on "{link.name}"'
            found.report(
                msg, f"expected {address}, found {there}", command(rtnl, f"ip addr add {address} dev {link.name}{option}")
            )


def check_routes(found: Differences, rtnl: Rtnl, link: Link, routes: Iterable[Route], in_any_table: bool = False) -> None:
    """Look for routes over a link.

    Args:
        in_any_table: a route may be in another table than the expected one.
    """
    have = list_routes_over(rtnl, link)
    moved = None
    for route in routes:
        same = [r for r in have if r.dst == route.dst and (r.table == route.table or in_any_table)]
        if not same and route.table == RT_TABLE_MAIN:  # a later plugin of the chain may have moved them all: sbr, vrf
            moved = tables_of(rtnl, link) if moved is None else moved
            same = [r for r in have if r.dst == route.dst and r.table in moved]
        if not any(_matches(r, route) for r in same):
            words = " ".join(route.words("priority"))
            there = "; ".join(" ".join(r.words("priority")) for r in same) or "no route to this destination"
            repair = " ".join(route.replace(device=link.name).words())
            msg = f'the route {words} over "{link.name}" is missing'
            found.report(msg, f"expected {words}, found {there}", command(rtnl, f"ip route replace {repair}"))


def tables_of(rtnl: Rtnl, link: Link) -> set[int]:
    """The tables that a rule of one of the link's addresses leads to, and that of its VRF."""
    from cni_py.kernel.rule import list_rules

    addresses = {address.ip for address in list_addresses(rtnl, link)}
    tables = {rule.table for rule in list_rules(rtnl) if rule.source and rule.source.network_address in addresses}
    master = find_link(rtnl, link.master) if link.master else None
    if master is not None and master.kind == "vrf":
        tables.add(table_of_vrf(master))
    return tables


def _matches(found: Route, expected: Route) -> bool:
    """Return whether the kernel's route has the gateway, and everything else that is expected of it."""
    names = [name for name in ("metric", "mtu", "advmss", "source") if getattr(expected, name)]
    if expected.scope and expected.dst.version == 4:  # IPv6 routes have no scope
        names.append("scope")
    return found.gateway == expected.gateway and all(getattr(found, name) == getattr(expected, name) for name in names)


def check_forwarding(found: Differences, addresses: Iterable[AddressWithPrefix]) -> None:
    """Compare whether the host forwards packets of these IP versions."""
    for version in sorted({address.version for address in addresses}):
        name = gateway.FORWARDING[version]
        found.expect(name, "1", sysctl.read(name), f"sysctl -w {name}=1")
