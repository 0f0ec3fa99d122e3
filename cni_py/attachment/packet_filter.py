"""The packet filter's modules, imported where they are needed: libnftables takes 5 ms to load."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from cni_py.packetfilter.ownership import Owner
    from cni_py.spec.call import Call


def masquerade() -> ModuleType:
    """``kernel.masquerade``: addresses that leave with the host's."""
    from cni_py.packetfilter import masquerade

    return masquerade


def macspoof() -> ModuleType:
    """``kernel.macspoof``: ports that may use one MAC address only."""
    from cni_py.packetfilter import macspoof

    return macspoof


def owner_of(call: Call) -> Owner:
    """Whose elements and rules this call makes or deletes."""
    from cni_py.packetfilter.ownership import Owner

    return Owner(call.container_id, call.ifname, call.network)
