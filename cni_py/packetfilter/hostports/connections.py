"""UDP connections that the kernel tracks past a change of host ports, and that would go to the wrong pod.

The kernel translates the first packet of a connection by the rules, and the others by what it remembers of it. A UDP
connection has no end that it could see: as long as the client sends, a new mapping would have no effect on it.
"""

from __future__ import annotations

from cni_py.kernel import conntrack
from cni_py.packetfilter.hostports import rules as portmap_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.packetfilter.hostports.rules import Mapping
    from cni_py.packetfilter.nfnetlink import Element


def delete_to(mappings: Sequence[Mapping]) -> None:
    """Delete connections to these ports that began before they were mapped."""
    for version in (4, 6):
        ports: dict[int, set[bytes]] = {}
        for mapping in [m for m in mappings if m.version == version]:
            addresses = ports.setdefault(mapping.host_port, set())
            addresses.add(mapping.host_address.packed if mapping.host_address else b"")
        delete_to_ports(version, {port: set() if b"" in addresses else addresses for port, addresses in ports.items()})


def delete_to_ports(version: int, ports: dict[int, set[bytes]]) -> None:
    """Delete connections to these ports and addresses; no address: any address of this host."""
    is_to_this_host = conntrack.is_to_this_host()

    def is_affected(connection: conntrack.Connection) -> bool:
        addresses = ports[connection.port]
        return connection.destination in addresses if addresses else is_to_this_host(connection.destination)

    conntrack.forget(version, ports.keys(), is_affected)


def delete_of(elements: Sequence[Element]) -> None:
    """Delete connections that the pods of these mappings have answered."""
    for length, version in ((4, 4), (16, 6)):
        pods: dict[int, set[bytes]] = {}
        for element in elements:
            protocol, port = portmap_rules.key_protocol_port(element.key)
            if protocol == conntrack.UDP and len(element.data) == length + 4:
                pods.setdefault(port, set()).add(element.data[:length])

        def is_affected(connection: conntrack.Connection, pods: dict[int, set[bytes]] = pods) -> bool:
            return connection.answered_by in pods[connection.port]

        conntrack.forget(version, pods.keys(), is_affected)
