"""A place that packets pass: one network namespace, its links, addresses, tables and rules, read when they are needed.

Everything is read once and kept: a prediction is about one state. Changes nothing.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from cni_py.errors import KernelRefused
from cni_py.kernel import sysctl
from cni_py.kernel.address import list_host_addresses
from cni_py.kernel.bridge_port import BridgePort, list_bridge_ports
from cni_py.kernel.conntrack import list_tracked
from cni_py.kernel.link import list_links
from cni_py.kernel.neighbour_state import list_fdb, list_neighbour_states
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.kernel.route_lookup import Question, look_up
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import RTM_GETNSID
from cni_py.packetfilter.evaluation.reading import read_as_far_as_possible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_py.kernel.address import Address, HostAddress, Network
    from cni_py.kernel.conntrack import Tracked
    from cni_py.kernel.link import Link
    from cni_py.kernel.neighbour_state import FdbEntry, NeighbourState
    from cni_py.kernel.netns import NetNS
    from cni_py.kernel.route_lookup import Choice
    from cni_py.netlink.socket import Rtnl
    from cni_py.packetfilter.evaluation.ruleset import Ruleset

NODE, POD, OTHER = "node", "pod", "other"
IFF_LOWER_UP = 0x10000
_LISTENING = {"tcp": "0A", "udp": "07"}
"""States in ``/proc/net/tcp`` and ``udp``: LISTEN, and a socket without a peer."""


class Place:
    """A network namespace.

    Args: name: as people call it. path: of the namespace; its tables are read from inside. kind: node, pod, or another
    machine. pod_networks: of flannel, as the node's subnet.env has them. peer_of: flannel's back end ``udp``: the node that
    has an address, and its port. Its table is in flanneld, not in the kernel.
    """

    def __init__(
        self,
        name: str,
        path: str,
        kind: str = OTHER,
        *,
        pod_networks: Sequence[Network] = (),
        peer_of: Callable[[Address], tuple[Address, int] | None] = lambda _: None,
    ) -> None:
        self.name, self.kind, self.pod_networks, self.peer_of = name, kind, tuple(pod_networks), peer_of
        self.netns: NetNS = open_sandbox(path, may_be_host=True)
        self.inode = os.fstat(self.netns.fd).st_ino
        self.rtnl: Rtnl = open_in(self.netns)
        self._numbers: dict[int, int] = {}
        self._tracked: dict[int, list[Tracked]] = {}
        self._neighbours: dict[int, dict[Address, NeighbourState]] = {}

    def __repr__(self) -> str:
        return f"Place({self.name})"

    def close(self) -> None:
        self.rtnl.close()
        os.close(self.netns.fd)

    # ---- links and addresses ------------------------------------------------------------------

    @cached_property
    def links(self) -> dict[int, Link]:
        """Links by ifindex."""
        return {link.ifindex: link for link in list_links(self.rtnl)}

    @cached_property
    def addresses(self) -> list[HostAddress]:
        return list_host_addresses(self.rtnl)

    def addresses_of(self, link: Link, version: int) -> list[HostAddress]:
        return [of for of in self.addresses if of.ifindex == link.ifindex and of.address.version == version]

    def has_address(self, address: Address) -> bool:
        return any(of.address == address for of in self.addresses)

    def number_of(self, other: Place) -> int | None:
        """The number that this namespace has for another one; None: it has none."""
        if other.inode not in self._numbers:
            answer = self.rtnl.get(encode("nsidmsg", {"NETNSA_FD": other.netns.fd}), RTM_GETNSID)
            self._numbers[other.inode] = decode("nsidmsg", answer)["NETNSA_NSID"]
        number = self._numbers[other.inode]
        return number if number >= 0 else None

    # ---- tables -------------------------------------------------------------------------------

    def route(self, question: Question) -> Choice:
        """The kernel's choice. Raises: OSError."""
        return look_up(self.rtnl, question)

    def neighbours(self, link: Link) -> dict[Address, NeighbourState]:
        if link.ifindex not in self._neighbours:
            self._neighbours[link.ifindex] = list_neighbour_states(self.rtnl, link)
        return self._neighbours[link.ifindex]

    @cached_property
    def fdb(self) -> list[FdbEntry]:
        return list_fdb(self.rtnl)

    def bridge_port(self, link: Link) -> BridgePort:
        """A bridge or one of its ports, as frames see it."""
        return self._bridge_ports.get(link.ifindex) or BridgePort()

    @cached_property
    def _bridge_ports(self) -> dict[int, BridgePort]:
        return list_bridge_ports(self.rtnl)

    def tracked(self, version: int) -> list[Tracked]:
        """The connections of TCP and UDP that the namespace tracks; none where it tracks nothing."""
        if version not in self._tracked:
            try:
                self._tracked[version] = self.netns.run(lambda: list_tracked(version))
            except OSError:  # the kernel has no connection tracking
                self._tracked[version] = []
        return self._tracked[version]

    def sysctl(self, name: str) -> str:
        """A parameter ``net/…`` of the namespace; "" if it does not exist."""
        try:
            return self.netns.run(lambda: sysctl.read(name))
        except KernelRefused:
            return ""

    @cached_property
    def ruleset(self) -> Ruleset:
        """The rules of nftables, iptables-nft among them, and of legacy iptables; and which of them cannot be read."""
        return self.netns.run(read_as_far_as_possible)

    def listens(self, protocol: str, address: Address, port: int) -> bool | None:
        """Return whether a socket takes packets to this port; None: unknown."""
        wanted, is_known = f"{port:04X}", False
        for suffix in ("", "6") if address.version == 4 else ("6",):  # a socket of IPv6 may take IPv4 too
            lines = self._read(f"/proc/thread-self/net/{protocol}{suffix}").splitlines()[1:]
            is_known = is_known or bool(lines) or os.path.exists(f"/proc/thread-self/net/{protocol}{suffix}")
            for words in (line.split() for line in lines):
                local = words[1].rpartition(":")
                if local[2] == wanted and words[3] == _LISTENING[protocol] and _is_bound(local[0], address):
                    return True
        return False if is_known else None

    def _read(self, path: str) -> str:
        def read() -> str:
            try:
                with open(path) as file:
                    return file.read()
            except OSError:
                return ""

        return self.netns.run(read)


def _is_bound(text: str, address: Address) -> bool:
    """Return whether a socket with this local address, as /proc/net has it, takes packets to the address."""
    if set(text) == {"0"}:
        return True
    packed = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return packed in (address.packed, bytes(10) + b"\xff\xff" + address.packed)


class Places:
    """The places that are visible, by name; a context manager that closes them."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = {place.name: place for place in places}

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for place in self._places.values():
            place.close()

    @property
    def all(self) -> list[Place]:
        return list(self._places.values())

    def named(self, name: str) -> Place | None:
        return self._places.get(name)

    def numbered(self, place: Place, number: int) -> Place | None:
        """The place that ``place`` has this number for, if it is visible."""
        return next((other for other in self.all if place.number_of(other) == number), None)

    def with_address(self, address: Address) -> list[Place]:
        """Places that have an address on a link that leads out of them; pods first."""
        if address.is_loopback:
            return []
        found = [place for place in self.all if place.has_address(address)]
        return sorted(found, key=lambda place: place.kind != POD)

    def peer(self, place: Place, link: Link) -> tuple[Place, Link] | None:
        """The other end of a veth, or the link below a macvlan or VLAN, where it is visible."""
        other = place if link.nsid is None else self.numbered(place, link.nsid)
        found = other.links.get(link.peer) if other is not None else None
        return (other, found) if other is not None and found is not None else None

    def uppers(self, place: Place, link: Link, kind: str) -> list[tuple[Place, Link]]:
        """The links of this kind, in any place, that are above a link."""
        found = []
        for other in self.all:
            for upper in other.links.values():
                if upper.kind == kind and upper.peer == link.ifindex:
                    below = self.peer(other, upper)
                    if below is not None and below[0] is place:
                        found.append((other, upper))
        return found
