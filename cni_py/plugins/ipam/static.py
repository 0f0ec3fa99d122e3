"""``static``: the addresses that the configuration or the runtime names.

Owns: nothing. Source: plugins/ipam/static/main.go of containernetworking/plugins.
Differences: CHECK misses an address that the result lacks; a route or a gateway that is none is named.
"""

from __future__ import annotations

from cni_py.errors import CheckFailed, InvalidConfig, InvalidEnvironment
from cni_py.ipam.ranges import parse_address, parse_cidr
from cni_py.spec.result import IPConfig, Result, dns_from_config, from_json, route_from_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import StaticConfig, StaticIpam
    from cni_py.kernel.address import AddressWithPrefix
    from cni_py.spec.call import Call
    from cni_py.spec.result import Route

CONFIG = "StaticConfig"


def add(call: Call, config: StaticConfig) -> Result:
    """Return the addresses, routes and DNS settings."""
    ipam = _ipam(config)
    return Result(ips=tuple(addresses(call, config)), routes=_routes(ipam), dns=dns_from_config(ipam.dns))


def delete(call: Call, config: StaticConfig) -> None:
    """Do nothing: no address is reserved."""


def check(call: Call, config: StaticConfig) -> None:
    """Check that prevResult has every address, with its gateway if it has one."""
    wanted = addresses(call, config)
    if config.prev_result is None:
        raise CheckFailed("Required prevResult missing", "expected the result of ADD, found none")
    found = from_json(config.prev_result).ips
    for ip in wanted:
        same = [other for other in found if other.address.ip == ip.address.ip]
        if not any(ip.gateway in (None, other.gateway) for other in same):
            have = ", ".join(f"{other.address} by {other.gateway}" for other in found) or "no address"
            raise CheckFailed(
                f"static: Failed to match addr {ip.address.ip} on interface {call.ifname}",
                f"expected {ip.address} by {ip.gateway}, found {have} in prevResult",
            )


def gc(call: Call, config: StaticConfig) -> None:
    """Do nothing: no address is reserved."""


def status(call: Call, config: StaticConfig) -> None:
    """Check the configuration."""
    addresses(call, config)
    _routes(_ipam(config))


def addresses(call: Call, config: StaticConfig) -> list[IPConfig]:
    """The addresses: of the capability ``ips``, else ``args.cni.ips``, else the configuration with CNI_ARGS. Pure.

    Raises: InvalidConfig, InvalidEnvironment.
    """
    configured = [
        IPConfig(
            _cidr(entry.address, "the 'address' field is expected to be in CIDR notation, got"),
            parse_address(entry.gateway) if entry.gateway else None,
        )
        for entry in _ipam(config).addresses
    ]
    of_args = _of_args(call)
    requested = config.runtime_config.ips or config.args.cni.ips
    ips = [IPConfig(_cidr(text, "an entry in the 'ips' field is NOT in CIDR notation, got")) for text in requested]
    ips = ips or configured + of_args
    families = [ip.address.version for ip in ips]
    if call.cni_version in ("0.1.0", "0.2.0") and max(families.count(4), families.count(6)) > 1:
        raise InvalidConfig(f"CNI version {call.cni_version} does not support more than 1 address per family")
    return ips


def _of_args(call: Call) -> list[IPConfig]:
    """Addresses of CNI_ARGS, each with the last gateway in its subnet. Pure. Raises: InvalidEnvironment."""
    args = call.known_pairs("IP", "GATEWAY")
    try:
        found = [
            _cidr(text.strip(), "the 'ip' field is expected to be in CIDR notation, got") for text in _words(args.get("IP", ""))
        ]
    except InvalidConfig as error:
        raise InvalidEnvironment(error.msg, "CNI_ARGS", error.hint) from error
    gateways = []
    for text in _words(args.get("GATEWAY", "")):
        try:
            gateways.append(parse_address(text.strip()))
        except InvalidConfig as error:
            raise InvalidEnvironment(f"invalid gateway address: {text}", "CNI_ARGS") from error
    return [
        IPConfig(address, next((gateway for gateway in reversed(gateways) if gateway in address.network), None))
        for address in found
    ]


def _words(text: str) -> list[str]:
    return text.split(",") if text else []


def _cidr(text: str, sentence: str) -> AddressWithPrefix:
    """Raises: InvalidConfig with this sentence."""
    try:
        return parse_cidr(text)
    except InvalidConfig as error:
        raise InvalidConfig(f"{sentence}: '{text}'", hint='write the prefix, too: "10.1.2.5/24"') from error


def _ipam(config: StaticConfig) -> StaticIpam:
    """Raises: InvalidConfig."""
    if config.ipam is None:
        raise InvalidConfig("IPAM config missing 'ipam' key", hint='set "ipam": {"type": "static", "addresses": …}')
    return config.ipam


def _routes(ipam: StaticIpam) -> tuple[Route, ...]:
    """Raises: InvalidConfig."""
    out = []
    for index, route in enumerate(ipam.routes):
        try:
            out.append(route_from_config(route))
        except ValueError as error:
            raise InvalidConfig(f'"ipam.routes[{index}]": {error}') from error
    return tuple(out)
