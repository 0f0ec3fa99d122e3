"""firewall: what a pod sends is forwarded, with its replies, whatever FORWARD's policy is; bridges can be isolated.

It is chained behind another plugin. Owns: the rules of its addresses (packetfilter/forward_accept.py), or the sources of a
zone of firewalld. Shared, and left after DEL: chains, jumps, the rules of ``ingressPolicy``. It keeps its own records: which
attachment has which address, for DEL without a previous result, and GC.

Source: containernetworking/plugins plugins/meta/firewall.
"""

from __future__ import annotations

from ipaddress import ip_address

from cni_py.attachment import record
from cni_py.attachment.chained import prev_result
from cni_py.attachment.check import Differences
from cni_py.config import parse
from cni_py.errors import CniError, DecodingFailure, InvalidConfig, NotAvailable
from cni_py.journal import note
from cni_py.packetfilter import forward_accept
from cni_py.spec.environment import link_name_fault
from cni_py.undo import Attempts, Undo
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address
    from typing import Any

    from cni_py.config.models import FirewallConfig
    from cni_py.packetfilter.forward_accept import Isolation
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

    Address = IPv4Address | IPv6Address

CONFIG = "FirewallConfig"
NO_PREV = "missing prevResult from earlier plugin"
POLICIES = ("", "open", "same-bridge", "isolated")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")


class Plan(Value):
    """Desired rules. ``zone``: of firewalld; empty: iptables."""

    addresses: tuple[Address, ...]
    zone: str
    admin_chain: str
    isolation: Isolation | None


def add(call: Call, config: FirewallConfig) -> Result:
    """Let the pod's packets pass; the previous result is returned unchanged. Spec section 2, ADD."""
    check_config(config)
    prev = prev_result(config.prev_result, call, NO_PREV)
    plan = plan_of(call, config, prev)
    with Undo() as undo:
        owned = {"addresses": [str(address) for address in plan.addresses], "zone": plan.zone, "conf": dict(call.conf)}
        undo.on_failure_if_clean("the record as before", record.restore, call, record.remember(call, **owned))
        undo.on_failure("rules", delete_rules, call, plan.addresses, plan.zone)
        add_rules(call, plan)
    return prev


def add_rules(call: Call, plan: Plan) -> None:
    """Add sources and rules. Idempotent. Raises: CniError."""
    if plan.zone:
        from cni_py.packetfilter import firewalld

        firewalld.add(plan.zone, plan.addresses, bus_of(call))
    if not plan.zone or plan.isolation:
        forward_accept.add(plan.addresses, plan.admin_chain, plan.isolation)


def lost_rules(call: Call, tables: dict[int, dict[str, list[str]]]) -> tuple[Plan, bool]:
    """Return the plan of a recorded ADD, and whether another process has deleted any of it. Raises: CniError.

    Args:
        tables: see :func:`cni_py.packetfilter.forward_accept.missing`.
    """
    config: FirewallConfig = parse(CONFIG, call.conf, "the record of firewall")
    plan = plan_of(call, config, prev_result(config.prev_result, call, NO_PREV))
    if plan.zone:
        from cni_py.packetfilter import firewalld

        if firewalld.missing(plan.zone, plan.addresses, bus_of(call)):
            return plan, True
    uses_rules = not plan.zone or plan.isolation is not None
    return plan, uses_rules and bool(forward_accept.missing(plan.addresses, plan.admin_chain, plan.isolation, tables))


def delete(call: Call, config: FirewallConfig) -> None:
    """Delete the rules of the addresses in the previous result and in the record, but not those that another attachment has."""
    saved = record.read(call)
    addresses = {*known_addresses(config.prev_result), *addresses_in(saved)}
    zone = saved.get("zone", config.firewalld_zone if uses_firewalld(call, config) else "")
    if addresses:
        delete_rules(call, addresses, zone if isinstance(zone, str) else "")


def check(call: Call, config: FirewallConfig) -> None:
    """Compare rules, chains and isolation with what ADD creates; nothing is created."""
    check_config(config)
    plan = plan_of(call, config, prev_result(config.prev_result, call, NO_PREV))
    found = Differences()
    if plan.zone:
        from cni_py.packetfilter import firewalld

        for source in firewalld.missing(plan.zone, plan.addresses, bus_of(call)):
            found.report(
                f"failed to find the address {source} in {plan.zone} zone",
                f"expected source {source}, found no such source",
                f"firewall-cmd --zone={plan.zone} --add-source={source}",
            )
    if not plan.zone or plan.isolation:
        for rule, command in forward_accept.missing(plan.addresses, plan.admin_chain, plan.isolation):
            chain, _, words = rule.removeprefix("-A ").partition(" ")
            found.report(
                f"expected {chain} rule [{words.replace(chr(34), '')}] not found",
                f"expected {rule}, found no such rule",
                command,
            )
    found.raise_if_any()


def status(call: Call, config: FirewallConfig) -> None:
    """Check that the configuration can work, and that iptables, or firewalld, does."""
    check_config(config)
    if not uses_firewalld(call, config):
        forward_accept.check_usable()
    elif not is_running(call):
        raise NotAvailable("firewalld is not available", "its name is not on the system bus", "see: systemctl status firewalld")


def gc(call: Call, config: FirewallConfig) -> None:
    """Delete the rules of this network's attachments that no longer exist."""
    is_stale = record.stale_test(call)
    attempts = Attempts()
    for container_id, ifname in record.remembered_by(call):
        if is_stale(container_id, ifname):
            stale = call.replace(container_id=container_id, ifname=ifname)
            saved = record.read(stale)
            with attempts.attempt(f"rules of {container_id} {ifname}"):
                delete_rules(stale, addresses_in(saved), str(saved.get("zone", "")))
    attempts.raise_if_failed("GC")


# ---- the plan ---------------------------------------------------------------------------------


def check_config(config: FirewallConfig) -> None:
    """Raises: InvalidConfig."""
    if config.ingress_policy not in POLICIES:
        raise InvalidConfig(
            f'unknown ingress policy: "{config.ingress_policy}"', f'"ingressPolicy" is one of {", ".join(POLICIES[1:])}'
        )
    chain = config.iptables_admin_chain_name
    if chain and (not is_plain(chain) or len(chain) > 28):
        raise InvalidConfig(f'"iptablesAdminChainName" is "{chain[:60]}", which is not the name of a chain')


def is_plain(name: str) -> bool:
    """Return whether a name can stand in a line for iptables-restore as it is."""
    return _PLAIN.issuperset(name) and not name.startswith("-")


def plan_of(call: Call, config: FirewallConfig, prev: Result) -> Plan:
    """The rules that the previous result needs. Raises: InvalidConfig."""
    return Plan(
        addresses=tuple(dict.fromkeys(ip.address.ip for ip in prev.ips)),
        zone=(config.firewalld_zone or "trusted") if uses_firewalld(call, config) else "",
        admin_chain=config.iptables_admin_chain_name or forward_accept.ADMIN,
        isolation=isolation_of(config.ingress_policy, prev),
    )


def isolation_of(policy: str, prev: Result) -> Isolation | None:
    """The isolation of the bridge, which is the first interface of the previous result. Raises: InvalidConfig."""
    if policy in POLICIES[:2]:
        return None
    bridge = prev.interfaces[0].name if prev.interfaces else ""
    if link_name_fault(bridge) or not is_plain(bridge):  # iptables takes "br+" for every name that begins with "br"
        raise InvalidConfig(
            f'interface needs to be set for ingress policy "{policy}", make sure to chain "firewall" plugin with "bridge"',
            f'the first interface of prevResult is "{bridge[:40]}"' if prev.interfaces else "prevResult has no interfaces",
        )
    return forward_accept.Isolation(bridge, policy == "isolated")


def uses_firewalld(call: Call, config: FirewallConfig) -> bool:
    """Return whether the configuration asks for firewalld or, if it asks for neither, firewalld is running."""
    if config.backend:
        return config.backend == "firewalld"
    return is_running(call)


def is_running(call: Call) -> bool:
    from cni_py.files import exists

    bus = bus_of(call)
    if not exists(bus.partition("unix:path=")[2].partition(",")[0]):
        return False
    from cni_py.packetfilter import firewalld

    return firewalld.is_running(bus)


def bus_of(call: Call) -> str:
    """The address of the system bus."""
    return call.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"


# ---- addresses and their owners ---------------------------------------------------------------


def known_addresses(prev: Any) -> list[Address]:
    """The addresses of a previous result, none if it cannot be read: DEL does what it can."""
    from cni_py.spec.result import from_json

    try:
        return [ip.address.ip for ip in from_json(prev).ips] if prev else []
    except (CniError, DecodingFailure) as error:
        note(f"prevResult ignored: {error}")
        return []


def addresses_in(saved: dict[str, Any]) -> list[Address]:
    """The addresses in a record."""
    listed = saved.get("addresses")
    try:
        return [ip_address(text) for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
    except ValueError as error:  # a damaged record
        note(f"addresses of the record ignored: {error}")
        return []


def delete_rules(call: Call, addresses: Iterable[Address], zone: str) -> None:
    """Delete what accepts these addresses, except those that another attachment has now. Raises: Incomplete."""
    others = record.texts_of_others(call)
    mine = [address for address in addresses if not any(f'"{address}"'.encode() in text for text in others)]
    if not mine:
        return
    attempts = Attempts()
    with attempts.attempt("rules of iptables"):
        forward_accept.delete(mine)
    if zone:
        from cni_py.packetfilter import firewalld

        try:
            firewalld.delete(zone, mine, bus_of(call))
        except NotAvailable as error:  # the sources have ended with it
            note(f"firewalld is not asked: {error}")
    attempts.raise_if_failed("DEL")
