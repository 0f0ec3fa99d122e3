"""Result of ADD (CNI spec section 5, "ADD Success"), and its form in each spec version.

Internally there is one form, that of 1.1.0. :meth:`Result.as_version` writes an older one,
:func:`from_json` reads any. 0.1.0 and 0.2.0 have one address per family (``ip4``, ``ip6``, each
with its routes) and no interfaces; 0.3.0 to 0.4.0 have the ``version`` of each address; an
interface's ``mtu``, ``socketPath`` and ``pciID``, and a route's ``mtu``, ``advmss``, ``priority``,
``table`` and ``scope`` were added in 1.1.0.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

from cni_py import config
from cni_py.errors import DecodingFailure, IncompatibleVersion, InvalidConfig
from cni_py.spec.versions import CURRENT, SUPPORTED, at_least
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
    from typing import Any

    Address = IPv4Address | IPv6Address
    AddressWithPrefix = IPv4Interface | IPv6Interface


MAX_METRIC = (1 << 32) - 1


class Interface(Value):
    """Link that the attachment created; ``sandbox`` is empty on the host, ``mtu`` in bytes, 0 if unset."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IPConfig(Value):
    """Address with its prefix; ``interface`` is an index into the result's interfaces."""

    address: AddressWithPrefix
    gateway: Address | None = None
    interface: int | None = None


class Route(Value):
    """Route in the sandbox. Without ``gw`` the gateway of the addresses is used; ``None`` means unset."""

    dst: AddressWithPrefix
    gw: Address | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None

    @property
    def fault(self) -> str:
        """Name the values that do not go together, or do not fit into the kernel's; "" if all do."""
        if self.gw is not None and self.gw.version != self.dst.version:
            return f'"gw" is "{self.gw}", of another IP family than "dst"'
        for key, value in (("mtu", self.mtu), ("advmss", self.advmss)):
            if value is not None and value > MAX_METRIC:
                return f'"{key}" is {value}, larger than {MAX_METRIC}'
        return ""


class DNS(Value):
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return _non_empty(
            nameservers=list(self.nameservers), domain=self.domain, search=list(self.search), options=list(self.options)
        )


class Result(Value):
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()

    def as_version(self, version: str) -> dict[str, Any]:
        """Return the JSON object of this spec version.

        Raises: InvalidConfig if an old version cannot express it (0.1.0 and 0.2.0 require an address).
        """
        if not at_least(version, "0.3.0"):
            return self._as_02x(version)
        newest = at_least(version, "1.1.0")
        out: dict[str, Any] = {"cniVersion": version}
        out |= _non_empty(
            interfaces=[_interface_json(i, newest) for i in self.interfaces],
            ips=[_ip_json(ip, numbered=not at_least(version, "1.0.0")) for ip in self.ips],
            routes=[_route_json(r, newest) for r in self.routes],
        )
        dns = self.dns.as_json()
        return out | ({"dns": dns} if dns or not at_least(version, "1.0.0") else {})

    def _as_02x(self, version: str) -> dict[str, Any]:
        out: dict[str, Any] = {"cniVersion": version}
        for family in (4, 6):
            ip = next((ip for ip in self.ips if ip.address.version == family), None)
            if ip is not None:
                routes = [_route_json(r, newest=False) for r in self.routes if r.dst.version == family]
                out[f"ip{family}"] = _non_empty(ip=str(ip.address), gateway=str(ip.gateway or ""), routes=routes)
        if len(out) == 1:
            raise InvalidConfig(
                "cannot convert: no valid IP addresses",
                f"the result has no address, which cniVersion {version} requires",
                "use cniVersion 0.3.1 or newer",
            )
        return out | {"dns": self.dns.as_json()}


def from_json(raw: Mapping[str, Any], what: str = "prevResult") -> Result:
    """Read a result of any version; ``what`` names it in errors.

    Raises: DecodingFailure if a member has the wrong type, IncompatibleVersion.
    """
    version = raw.get("cniVersion") or CURRENT
    if version not in SUPPORTED:
        raise IncompatibleVersion(f"{what} has cniVersion {version!r}", f"supported: {', '.join(SUPPORTED)}")
    try:
        if not at_least(version, "0.3.0"):
            return _from_02x(config.parse("OldResult", raw, what))
        parsed = config.parse("AnyResult", raw, what)
        return Result(
            interfaces=tuple(Interface(i.name, i.mac, i.mtu, i.sandbox, i.socket_path, i.pci_id) for i in parsed.interfaces),
            ips=tuple(IPConfig(ip_interface(ip.address), _gateway(ip.gateway), ip.interface) for ip in parsed.ips),
            routes=tuple(route_from_config(r) for r in parsed.routes),
            dns=dns_from_config(parsed.dns),
        )
    except InvalidConfig as error:
        raise DecodingFailure(error.msg, error.details) from error
    except ValueError as error:
        raise DecodingFailure(f"{what} cannot be read", str(error)) from error


def _from_02x(parsed: Any) -> Result:
    """Read the form of 0.1.0 and 0.2.0: routes belong to the address of their family."""
    families = [f for f in (parsed.ip4, parsed.ip6) if f is not None]
    return Result(
        ips=tuple(IPConfig(ip_interface(f.ip), _gateway(f.gateway)) for f in families),
        routes=tuple(route_from_config(r) for f in families for r in f.routes),
        dns=dns_from_config(parsed.dns),
    )


def route_from_config(route: Any) -> Route:
    """Convert a route of a configuration or a result. Raises: ValueError if an address is invalid."""
    return Route(ip_interface(route.dst), _gateway(route.gw), route.mtu, route.advmss, route.priority, route.table, route.scope)


def dns_from_config(dns: Any) -> DNS:
    return DNS(tuple(dns.nameservers), dns.domain, tuple(dns.search), tuple(dns.options))


def _gateway(text: str) -> Address | None:
    return ip_address(text) if text else None


def _interface_json(interface: Interface, newest: bool) -> dict[str, Any]:
    out = {"name": interface.name} | _non_empty(mac=interface.mac, sandbox=interface.sandbox)
    return out | (_non_empty(mtu=interface.mtu, socketPath=interface.socket_path, pciID=interface.pci_id) if newest else {})


def _ip_json(ip: IPConfig, numbered: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"version": str(ip.address.version)} if numbered else {}
    if ip.interface is not None:
        out["interface"] = ip.interface
    return out | _non_empty(address=str(ip.address), gateway=str(ip.gateway or ""))


def _route_json(route: Route, newest: bool) -> dict[str, Any]:
    out = {"dst": str(route.dst)} | _non_empty(gw=str(route.gw or ""))
    if newest:
        numbers = {n: getattr(route, n) for n in ("mtu", "advmss", "priority", "table", "scope")}
        out |= {n: value for n, value in numbers.items() if value is not None}
    return out


def _non_empty(**members: Any) -> dict[str, Any]:
    """Return the members that are not empty."""
    return {name: value for name, value in members.items() if value}
