"""The host as the gateway of a sandbox: its addresses, forwarding, and masquerading.

Owns: the masquerade rules of an attachment. Gateway addresses and forwarding are shared by attachments and stay after DEL.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from cni_py.attachment import record
from cni_py.errors import CniError, InvalidConfig
from cni_py.kernel import sysctl
from cni_py.kernel.address import add_address
from cni_py.spec.result import Route, from_json
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.config.models import GatewayConfig
    from cni_py.kernel.address import Address, AddressWithPrefix, Network
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import IPConfig, Result
    from cni_py.undo import Attempts, Undo

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_DEFAULT = {4: ip_interface("0.0.0.0/0"), 6: ip_interface("::/0")}


def choose(result: Result, with_default_routes: bool) -> Result:
    """Give every address a gateway: the one that IPAM chose, or else the first address of its subnet. Pure.

    Args:
        with_default_routes: also give each family a default route by it, unless IPAM gave one with a gateway.

    Raises: InvalidConfig for a gateway of the other IP family.
    """
    ips, routes = [], list(result.routes)
    for ip in result.ips:
        gateway = ip.gateway or first_address(ip.address)
        if gateway.version != ip.address.version:
            raise InvalidConfig(
                f'"{gateway}" cannot be the gateway of "{ip.address}": it is of another IP family',
                '"gateway" and "subnet" of a range in "ipam"',
            )
        ips.append(ip.replace(gateway=gateway))
        default = _DEFAULT[ip.address.version]
        if with_default_routes and not any(r.gw and r.dst.network == default.network for r in routes):
            routes.append(Route(default, gateway))
    return result.replace(ips=tuple(ips), routes=tuple(routes))


def first_address(address: AddressWithPrefix) -> Address:
    """The first address of the subnet, after the network's own. Pure. Raises: InvalidConfig if there is none."""
    try:
        return ip_address(address.network.network_address + 1)
    except ValueError as error:
        raise InvalidConfig(f'no address can be the gateway of "{address}"', hint='set "gateway" in "ipam"') from error


def address_for(ip: IPConfig) -> AddressWithPrefix:
    """The address that the host needs to be the gateway of this one, with the prefix of the subnet. Pure."""
    return ip_interface(f"{ip.gateway or first_address(ip.address)}/{ip.address.network.prefixlen}")


def add_addresses(host: Rtnl, link: Link, addresses: Iterable[AddressWithPrefix]) -> None:
    """Add the gateway's addresses to one of our links, with IPv6 also where the host switches it off. Raises: KernelRefused."""
    for address in addresses:
        if address.version == 6:
            sysctl.prefer(f"net/ipv6/conf/{link.name}/disable_ipv6", "0")  # if it cannot be set, the address's refusal names it
        add_address(host, link, address)


def enable_forwarding(addresses: Iterable[AddressWithPrefix]) -> None:
    """Let the host forward packets of these IP versions. Raises: KernelRefused."""
    for version in {address.version for address in addresses}:
        sysctl.ensure(FORWARDING[version], "1")


# ---- masquerading: its modules are imported where it is wanted, for libnftables takes 5 ms to load ----


class Masquerade(Value):
    """Configuration of masquerading; ``backend`` None: nftables if it works, else iptables."""

    is_wanted: bool
    backend: str | None
    exclude: tuple[Network, ...]


def masquerade_of(config: GatewayConfig) -> Masquerade:
    """Check the keys of masquerading. Pure. Raises: InvalidConfig."""
    try:
        exclude = tuple(ip_network(text, strict=False) for text in config.masquerade_except)
    except ValueError as error:
        raise InvalidConfig(f'"masqueradeExcept": {error}') from error
    return Masquerade(config.ip_masq, config.ip_masq_backend, exclude)


def masquerade(undo: Undo, call: Call, result: Result, wanted: Masquerade) -> None:
    """Let packets of the pod that leave its subnet have the host's address. Raises: NotAvailable, KernelRefused."""
    if not wanted.is_wanted:
        return
    from cni_py.packetfilter import masquerade

    owner = record.owner_of(call)
    undo.on_failure("masquerade", masquerade.delete, owner)  # before: it may fail half-way
    if masquerade.add(owner, [ip.address for ip in result.ips], wanted.backend, wanted.exclude):
        record.say_rules_lost()


def rules_of(result: Result, wanted: Masquerade) -> dict[str, object]:
    """Return what the record needs for the masquerade to be restored if another process deletes it. Pure."""
    if not wanted.is_wanted:
        return {}
    addresses, exclude = [str(ip.address) for ip in result.ips], [str(network) for network in wanted.exclude]
    return {"masquerade": {"addresses": addresses, "exclude": exclude, "backend": wanted.backend}}


def check_masquerade(call: Call, ips: Iterable[IPConfig], wanted: Masquerade) -> None:
    """Raises: CheckFailed."""
    addresses = [ip.address for ip in ips]
    if not wanted.is_wanted or not addresses:
        return
    from cni_py.packetfilter import masquerade

    masquerade.check(record.owner_of(call), addresses, wanted.backend, wanted.exclude)


def delete_masquerade(attempts: Attempts, call: Call, config: GatewayConfig) -> None:
    """Delete the attachment's masquerade rules, if the configuration has any."""
    if not config.ip_masq:
        return
    from cni_py.packetfilter import masquerade

    with attempts.attempt("masquerade"):
        masquerade.delete(record.owner_of(call), _known_addresses(config))


def delete_stale_masquerade(attempts: Attempts, call: Call, is_stale: Callable[[str, str], bool]) -> None:
    """Delete the masquerade rules of the network's stale attachments, for GC."""
    from cni_py.packetfilter import masquerade

    with attempts.attempt("masquerade"):
        masquerade.delete_stale(call.network, record.valid(call), is_stale)


def _known_addresses(config: GatewayConfig) -> list[AddressWithPrefix]:
    """The attachment's addresses, if the runtime gives DEL a result that can be read."""
    try:
        return [ip.address for ip in from_json(config.prev_result).ips] if config.prev_result else []
    except CniError:
        return []
