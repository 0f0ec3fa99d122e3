"""Sources of firewalld's zones, over D-Bus: an address in the zone ``trusted`` may send and receive anything.

Owns nothing: the caller remembers which addresses are its own.

Source: firewalld, org.fedoraproject.FirewallD1.zone: addSource, removeSource, querySource.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni_py.dbus import ADDRESS, Bus, Failed
from cni_py.errors import NotAvailable
from cni_py.journal import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address

NAME, PATH, ZONE = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone"


def is_running(address: str = ADDRESS) -> bool:
    """Return whether firewalld has its name on the bus."""
    try:
        with Bus(address) as bus:
            return bus.has_owner(NAME)
    except NotAvailable:
        return False


def add(zone: str, addresses: Iterable[Address], address: str = ADDRESS) -> None:
    """Make the addresses sources of the zone; those that are already are success. Raises: NotAvailable."""
    with Bus(address) as bus:
        for source in map(ip_network, addresses):
            with step("firewall-cmd", f"--zone={zone}", f"--add-source={source}"):
                _call(bus, "addSource", zone, str(source), "ZONE_ALREADY_SET")


def delete(zone: str, addresses: Iterable[Address], address: str = ADDRESS) -> None:
    """Remove the addresses from the zone; absence is success. Raises: NotAvailable."""
    with Bus(address) as bus:
        if not bus.has_owner(NAME):  # what it does not have in its permanent configuration has ended with it
            return
        for source in map(ip_network, addresses):
            with step("firewall-cmd", f"--zone={zone}", f"--remove-source={source}"):
                _call(bus, "removeSource", zone, str(source), "UNKNOWN_SOURCE")


def missing(zone: str, addresses: Iterable[Address], address: str = ADDRESS) -> list[str]:
    """List addresses that are no sources of the zone. Raises: NotAvailable."""
    with Bus(address) as bus:
        return [str(of) for of in map(ip_network, addresses) if not bus.call(NAME, PATH, ZONE, "querySource", zone, str(of))]


def _call(bus: Bus, method: str, zone: str, source: str, harmless: str) -> None:
    try:
        bus.call(NAME, PATH, ZONE, method, zone, source)
    except Failed as error:
        if harmless not in error.details:
            what = "add the address {} to {} zone" if method == "addSource" else "remove the address {} from {} zone"
            raise NotAvailable(f"failed to {what.format(source, zone)}", error.details, "firewall-cmd --get-zones") from error
