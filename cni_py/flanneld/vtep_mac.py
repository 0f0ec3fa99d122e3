"""The MAC address of a VXLAN device that has none yet: the same each time for one node, so that peers' entries stay right.

A node that has lost all state (reinstalled, saved leases deleted) would otherwise publish a random one, and drop what peers
send to the former one until each of them has received it. The hardware address of the external interface goes into it: of two
nodes with one public address, which is a mistake, each publishes another one, so that each sees its lease changed by the
other. Source of the form: IEEE 802, locally administered addresses.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address


def stable_mac(device: str, public: IPv4Address | IPv6Address, hardware: str = "") -> str:
    """Derive it from the device's name, the node's public address, and the external interface's hardware address ("": none)."""
    first, *rest = sha256(f"{device} {public} {hardware}".rstrip().encode()).digest()[:6]
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 0x02, *rest))
