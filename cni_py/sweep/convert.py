"""Convert masquerade and host ports to the form of the Go plugins: ``cni-py sweep --convert-to-go``, ``make uninstall``.

Go's DEL does not know the elements of ``table inet cni_py``: a host port of a pod that it deletes would stay redirected to
the old address, and the next pod with that port would be unreachable. So every element becomes what Go creates for the
same attachment, chains of iptables, and is deleted then. Pods keep their ports; DEL by Go finds everything, and so does ours.

An element has only the hash of its network. The name is in what the attachment left elsewhere: its record, reservation, saved
configuration, cached result. An element without a name, or with conditions in the syntax of nftables, stays and is reported.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from cni_py.errors import CniError, NotAvailable
from cni_py.packetfilter import iptables, libnftables, nfnetlink
from cni_py.packetfilter.hostports import iptables as port_chains
from cni_py.packetfilter.hostports.rules import HOSTPORTS, PROTOCOLS, SOURCES, Mapping, Wanted, key_protocol_port, key_text
from cni_py.packetfilter.iptables import Iptables
from cni_py.packetfilter.masquerade import MAPS, lock
from cni_py.packetfilter.masquerade import key_text as address_key
from cni_py.packetfilter.ownership import IF, MARK, TABLE, Owner, parse_owner
from cni_py.sweep.file_leftovers import Places
from cni_py.sweep.inventory import Inventory
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

    from cni_py.packetfilter.nfnetlink import Element

    Interface = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network
    Elements = dict[str, list[Element]]
    """Name of a set or map to its elements."""

_ALL = (*HOSTPORTS, *SOURCES, *MAPS)
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class Left(Exception):
    """Reason why an attachment's elements stay."""


class Outcome(Value):
    """Result: attachments whose elements were converted, and those that were not, with the reason."""

    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def lines(self) -> Iterable[str]:
        """Yield what happened, for people."""
        if not self.done and not self.left:
            yield "nothing to convert: the table inet cni_py has no elements"
        for line in self.done:
            yield f"converted to iptables: {line}"
        for line in self.left:
            yield f"not converted: {line}"


def convert(places: Places | None = None) -> Outcome:
    """Turn all elements into iptables chains in Go's form; a failure does not stop the rest. Raises: CniError."""
    by_comment = _elements()
    if not by_comment:
        _delete_empty_table()  # what the last deleted pod left
        return Outcome()
    if not (Iptables(4).find() or Iptables(6).find()):
        raise NotAvailable(
            "no iptables to convert the elements to", "the Go plugins need it as well", "install it: apt install iptables"
        )
    owners = _owners(places or Places())
    done, left = [], []
    for comment in sorted(by_comment):
        owner = owners.get(comment)
        try:
            if owner is None:
                raise Left("no file names its network")
            done.append(f"{owner}: {_convert(owner)}")
        except (Left, CniError) as reason:
            left.append(f'"{comment}": {reason}')
    _delete_empty_table()
    return Outcome(tuple(done), tuple(left))


def _elements() -> set[str]:
    """Return the comments of all elements. Raises: KernelRefused."""
    return {element.comment for name in _ALL for element in nfnetlink.elements(name) if parse_owner(element.comment)}


def _delete_empty_table() -> None:
    """Delete the table if no attachment has elements in it any more. Raises: KernelRefused."""
    with lock():
        if nfnetlink.exists(TABLE) and not _elements():
            with libnftables.borrowed() as handle:
                handle.run(f"delete table {TABLE}")


def _owners(places: Places) -> dict[str, Owner]:
    """Return the attachments that are known from files, by the comment of their elements."""
    inventory = Inventory(places, None, lambda: None)
    found = [one for one in (*inventory.of_files(), *inventory.of_cache()) if one.container_id and one.network]
    owners = [Owner(one.container_id, one.ifname, one.network) for one in found if one.ifname]
    # of pieces that name only the container: the name of the interface is in the element
    ids = {(one.short_id, one.hashed): one for one in found}
    for comment in _elements():
        container_id, ifname, hashed = parse_owner(comment) or ("", "", "")
        if one := ids.get((container_id, hashed)):
            owners.append(Owner(one.container_id, ifname, one.network))
    return {owner.comment(): owner for owner in owners}


def _convert(owner: Owner) -> str:
    """Convert the elements of one attachment. Returns: what they were. Raises: Left, CniError."""
    comment = owner.comment()
    with lock():
        of_owner = {name: [e for e in nfnetlink.elements(name, comment) if e.comment == comment] for name in _ALL}
        with libnftables.borrowed() as handle:
            chains = handle.chain_lines(TABLE)
        wanted = _ports_of(owner, of_owner)
        masqueraded = [
            _masqueraded(address_key(element.key), chains.get(element.target, []))
            for name in MAPS
            for element in of_owner[name]
        ]
        if wanted.mappings:
            port_chains.add(wanted)
        for address, exclude in masqueraded:
            iptables.add(owner, [address], exclude)
        # only now: until the chains exist the elements serve the pod
        libnftables.delete_elements([*HOSTPORTS, *SOURCES], key_text, comment.__eq__, comment)
        libnftables.delete_elements(MAPS, address_key, comment.__eq__, comment)
    return "; ".join([*map(str, wanted.mappings), *[f"masquerade of {address.ip}" for address, _ in masqueraded]])


def _ports_of(owner: Owner, of_owner: Elements) -> Wanted:
    """The attachment's mappings, from its elements. Pure. Raises: Left if iptables cannot express them."""
    marks = {(name.replace(" sources", " hostports"), e.key): e.target for name in SOURCES for e in of_owner[name]}
    mappings, bits = [], set()
    masq_all = False
    for name in HOSTPORTS:
        for element in of_owner[name]:
            chain = marks.get((name, element.key), "")
            if chain.startswith(IF):
                raise Left("its conditions are in the syntax of nftables: delete the pod, or wait for its end")
            bit, _, network = chain.removeprefix(MARK).partition("-from-")
            masq_all |= network == "all"
            bits.add(bit)
            mappings.append(_mapping(element, "" if masq_all else network))
    if len(bits) > 1:
        raise Left("its ports are treated in different ways")
    bit = next(iter(bits), "")
    ports = tuple(dict.fromkeys((mapping.protocol, mapping.host_port) for mapping in mappings))
    return Wanted(owner, tuple(mappings), ports, snat=bit != "", masq_all=masq_all, mark_bit=int(bit or 13))


def _mapping(element: Element, network: str) -> Mapping:
    """An element as a mapping; ``network``: as in a chain's name, 10.244.91.0_24. Pure."""
    number, port = key_protocol_port(element.key)
    pod = ip_address(element.data[:-4])
    prefix = int(network.rpartition("_")[2]) if network else pod.max_prefixlen
    host_address = ip_address(element.key[:-8]) if len(element.key) > 8 else None
    target = int.from_bytes(element.data[-4:-2], "big")
    return Mapping(_PROTOCOL_NAMES[number], port, ip_interface((pod, prefix)), target, host_address)


def _masqueraded(address: str, rules: Sequence[str]) -> tuple[Interface, list[Network]]:
    """A masqueraded address with its subnet, and the other networks that are excluded, from its chain. Pure. Raises: Left."""
    excluded = [ip_network(words[2 + (words[2] == "!=")], strict=False) for line in rules if len(words := line.split()) > 3]
    own = next((network for network in excluded if ip_address(address) in network), None)
    if own is None:
        raise Left(f"the chain of {address} does not name its subnet")
    return ip_interface(f"{address}/{own.prefixlen}"), [network for network in excluded if network != own]
