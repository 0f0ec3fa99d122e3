"""VXLAN on one address: packets of our devices that are for another address of the host are dropped.

The kernel's VXLAN socket receives on every address of the host, whatever the device's ``local`` address is. A rule names the
port and the VNI, so that other VXLAN devices with the same port are not affected.

Owns ``table inet cni_py_flanneld_vxlan``. Source: RFC 7348 section 5 (the VNI is 12 bytes behind the UDP header's begin).
"""

from __future__ import annotations

from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.forward import delete_table
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address

TABLE = "inet cni_py_flanneld_vxlan"
CHAIN = f"{TABLE} input"
_FIELDS = {4: "ip", 6: "ip6"}


class Guard(Value):
    """A device of one family, and the addresses on which its packets are received."""

    port: int
    vni: int
    addresses: tuple[Address, ...]

    @property
    def comment(self) -> str:
        return f"VNI {self.vni}, port {self.port}: {', '.join(map(str, self.addresses))}"

    def line(self) -> str:
        """The rule in nft's syntax."""
        field, those = _FIELDS[self.addresses[0].version], ", ".join(map(str, self.addresses))
        match = f"meta nfproto {'ipv4' if field == 'ip' else 'ipv6'} udp dport {self.port} @th,96,24 {self.vni}"
        return f'{match} {field} daddr != {{ {those} }} drop comment "{self.comment}"'


def commands(guards: list[Guard]) -> list[str]:
    """Commands that replace the content of our table, in one transaction."""
    return [
        f"add table {TABLE}",
        f"delete table {TABLE}",
        f'add table {TABLE} {{ comment "cni-py flanneld: VXLAN on one address"; }}',
        f"add chain {CHAIN} {{ type filter hook input priority filter - 10; policy accept; }}",
        *(f"add rule {CHAIN} {guard.line()}" for guard in guards),
    ]


def ensure(guards: list[Guard]) -> bool:
    """Write the rules unless they exist. Returns: whether they had to be written. Raises: KernelRefused, NotAvailable."""
    if is_current(guards):
        return False
    with libnftables.borrowed() as handle:
        handle.run("; ".join(commands(guards)))
    return True


def is_current(guards: list[Guard]) -> bool:
    """Return whether the rules exist. Raises: KernelRefused."""
    return nfnetlink.base_chain(CHAIN) is not None and nfnetlink.rule_comments(CHAIN) == [guard.comment for guard in guards]


def names(address: Address) -> bool:
    """Return whether a rule receives on this address, or there is none at all. Raises: KernelRefused."""
    if nfnetlink.base_chain(CHAIN) is None:
        return True
    return any(str(address) in comment.partition(": ")[2].split(", ") for comment in nfnetlink.rule_comments(CHAIN))


def delete() -> bool:
    """Returns: whether there was a table. Raises: KernelRefused."""
    return delete_table(TABLE)
