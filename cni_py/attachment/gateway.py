"""The host as the gateway of a sandbox: its addresses, and forwarding.

Owns nothing: gateway addresses and forwarding are shared by attachments and stay after DEL.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

from cni_py.errors import InvalidConfig
from cni_py.kernel import sysctl
from cni_py.spec.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.kernel.address import Address, AddressWithPrefix
    from cni_py.spec.result import IPConfig, Result

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


def enable_forwarding(addresses: Iterable[AddressWithPrefix]) -> None:
    """Let the host forward packets of these IP versions. Raises: KernelRefused."""
    for version in {address.version for address in addresses}:
        sysctl.ensure(FORWARDING[version], "1")
