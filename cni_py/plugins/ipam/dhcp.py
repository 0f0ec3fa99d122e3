"""dhcp: addresses from a DHCP server, by the daemon ``dhcp daemon`` (cni_py/dhcp/), which keeps the leases.

Owns: nothing; a lease is in the daemon's memory. Source: containernetworking/plugins plugins/ipam/dhcp.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

from cni_py.attachment import record
from cni_py.dhcp import options, wire
from cni_py.errors import CheckFailed, DecodingFailure, InvalidConfig
from cni_py.journal import note
from cni_py.netlink.constants import RT_SCOPE_LINK
from cni_py.spec.result import IPConfig, Result, Route, from_json
from cni_py.spec.versions import CURRENT, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.config.models import DhcpConfig
    from cni_py.spec.call import Call

CONFIG = "DhcpConfig"


def add(call: Call, config: DhcpConfig) -> Mapping[str, Any]:
    """Acquire a lease. Spec section 2, ADD."""
    check_config(config)
    leased = ask(call, config, "ADD") or {}
    note(f"the DHCP daemon has leased {leased.get('address')}, gateway {leased.get('gateway') or 'none'}")
    try:
        result = result_of(leased, config)
    except (KeyError, TypeError, ValueError) as error:
        raise DecodingFailure("the reply of the DHCP daemon is not complete", f"{type(error).__name__}: {error}") from error
    if at_least(call.cni_version, "1.0.0"):  # Go-compatible: priority and scope of routes from 1.0.0 on
        return result.as_version(CURRENT) | {"cniVersion": call.cni_version}
    return result.as_version(call.cni_version)


def delete(call: Call, config: DhcpConfig) -> None:
    """Release the lease; success if there is none, or no daemon: a lease ends by itself."""
    try:
        ask(call, config, "DEL")
        note("the DHCP daemon has no lease of this attachment any more")
    except wire.NoDaemon as error:
        note(f"no lease is released: {error}")


def check(call: Call, config: DhcpConfig) -> None:
    """Check that the daemon keeps a lease of the address."""
    check_config(config)
    addresses = [str(ip.address.ip) for ip in from_json(config.prev_result).ips] if config.prev_result else []
    try:
        ask(call, config, "CHECK", addresses=addresses)
    except wire.Refused as error:
        if error.code != CheckFailed.code:
            raise
        raise CheckFailed(error.msg, error.details) from error


def status(call: Call, config: DhcpConfig) -> None:
    """Check that the configuration can work, and that the daemon replies. Raises: NoDaemon (code 50)."""
    check_config(config)
    ask(call, config, "STATUS")


def gc(call: Call, config: DhcpConfig) -> None:
    """Release the leases of this network's attachments that no longer exist."""
    valid = record.valid(call)
    try:
        ask(call, config, "GC", keep=None if valid is None else [list(owner) for owner in sorted(valid)])
    except wire.NoDaemon as error:
        note(f"no leases are released: {error}")


# ---- the daemon -------------------------------------------------------------------------------


def ask(call: Call, config: DhcpConfig, verb: str, **more: Any) -> dict[str, Any] | None:
    """Send the daemon a request for this attachment. Raises: NoDaemon, Refused, IOFailure."""
    ipam = call.conf.get("ipam")
    request = {
        "verb": verb,
        "containerID": call.container_id,
        "network": call.network,
        "ifname": call.ifname,
        "netns": call.netns,
        "args": {pair[0]: pair[1] for pair in call.args},
        "ipam": {key: ipam[key] for key in ("request", "provide") if key in ipam} if isinstance(ipam, dict) else {},
        **more,
    }
    try:
        return wire.ask(config.ipam.daemon_socket_path or wire.SOCKET, request)
    except wire.Refused as error:
        if verb == "ADD":
            error.msg = f"error calling DHCP.Allocate: {error.msg}"
        raise


def check_config(config: DhcpConfig) -> None:
    """Raises: InvalidConfig."""
    for option in [*(entry.option for entry in config.ipam.request), *(entry.option for entry in config.ipam.provide)]:
        try:
            options.code_of(option)
        except InvalidConfig as error:
            error.msg = f"error calling DHCP.Allocate: {error.msg}"
            raise


def result_of(leased: Mapping[str, Any], config: DhcpConfig) -> Result:
    """The result of a lease: a route whose gateway is 0.0.0.0 is on the link. Pure."""
    routes = []
    for dst, gateway in leased.get("routes", ()):
        gw = ip_address(gateway)
        scope = RT_SCOPE_LINK if gw.is_unspecified else None
        routes.append(Route(ip_interface(dst), gw, priority=config.ipam.priority or None, scope=scope))
    gateway = ip_address(leased["gateway"]) if leased.get("gateway") else None
    return Result(ips=(IPConfig(ip_interface(leased["address"]), gateway),), routes=tuple(routes))
