"""Leftovers in the kernel: nftables elements, iptables chains and rules, veths, ifbs, devices of the host. Changes nothing."""

from __future__ import annotations

from cni_py import config, files
from cni_py.attachment.chained import IFB_ALIAS
from cni_py.attachment.record import MARK, mark_on
from cni_py.errors import CniError
from cni_py.ipam.ranges import as_address
from cni_py.journal import RUN_DIR
from cni_py.packetfilter.ownership import network_hash
from cni_py.packetfilter.ownership import parse_owner as parse_comment
from cni_py.spec.environment import is_name
from cni_py.sweep import file_leftovers, netns_scan
from cni_py.sweep.leftovers import ACCEPTED, CHAIN, DEVICE, ELEMENT, IFB, VETH, Leftover
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_py.packetfilter.iptables import Iptables
    from cni_py.packetfilter.nfnetlink import Element


class Sets(Value):
    """nftables sets and maps whose elements name their owner in a comment.

    Attributes:
        key_text: an element's key in nft's syntax.
        address_of: the pod's address in an element, empty if the element has none.
        after: called with the elements that have been deleted.
    """

    names: tuple[str, ...]
    key_text: Callable[[bytes], str]
    address_of: Callable[[Element], bytes]
    after: Callable[[list[Element]], None] | None = None


def sets() -> tuple[Sets, ...]:
    """Return all sets whose elements have owners."""
    from cni_py.packetfilter import macspoof, macspoof_ruleset, masquerade
    from cni_py.packetfilter.hostports import connections
    from cni_py.packetfilter.hostports import rules as portmap_rules

    ports = (*portmap_rules.SOURCES, *portmap_rules.HOSTPORTS)
    # In this order: one transaction of ADD writes an element without an address (the first) together with one that has
    # it. Read in reverse order, an ADD in between would show only the former, and nothing would show that it is live.
    return (
        Sets((macspoof.CHECKED, macspoof.ALLOWED), macspoof_ruleset.port_text, lambda _: b""),
        Sets(ports, portmap_rules.key_text, lambda e: e.data[:-4], connections.delete_of),
        Sets(masquerade.MAPS, masquerade.key_text, lambda e: e.key),
    )


def elements() -> Iterator[Leftover]:
    """Yield elements of our nftables sets and maps. Raises: KernelRefused."""
    from cni_py.packetfilter import nfnetlink

    for one in sets():
        for name in one.names:
            for element in nfnetlink.elements(name):
                owner = parse_comment(element.comment)
                if owner is not None:
                    what = f"{name} {one.key_text(element.key)}"
                    container_id, ifname, hashed = owner
                    address = one.address_of(element)
                    yield Leftover(ELEMENT, what, name, container_id, ifname, "", hashed, address, key=element.comment)


def chains() -> Iterator[Leftover]:
    """Yield masquerade chains of iptables: the jump names container, network and address, and the chain's name is their hash.

    Raises: KernelRefused.
    """
    from cni_py.packetfilter import iptables, nfnetlink
    from cni_py.packetfilter.iptables import Iptables

    tools = [Iptables(v, "-nft") for v, family in ((4, "ip"), (6, "ip6")) if nfnetlink.exists(f"{family} nat POSTROUTING")]
    for tool in [tool for tool in tools if tool.find()] + iptables.legacy_tools():
        for line in tool.rules("POSTROUTING") or []:
            leftover = jump(line, tool)
            if leftover is not None:
                yield leftover


def jump(line: str, tool: Iptables) -> Leftover | None:
    r"""Return the chain that a line of POSTROUTING jumps to, if it is certainly an attachment's. Pure.

    ``-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"net\" id: \"c1\"" -j CNI-…``
    """
    from cni_py.packetfilter.ownership import Owner

    source = as_address(line.partition(" -s ")[2].partition(" ")[0].partition("/")[0])
    network, _, rest = line.partition(r'--comment "name: \"')[2].partition(r"\" id: \"")
    container_id, chain = rest.partition(r"\"")[0], line.rpartition(" -j ")[2]
    if source is None or not is_name(network) or not is_name(container_id):
        return None
    # Any program can write such a comment: only the hash proves that the chain was made for this container and network.
    if chain != Owner(container_id, "", network).go_chain():
        return None
    what, hashed = f"{chain} of {tool.name}, from {source}", network_hash(network)
    return Leftover(CHAIN, what, chain, container_id, "", network, hashed, source.packed, key=str(source), tool=tool)


def veths() -> Iterator[Leftover]:
    """Yield veths with our mark whose both ends are on the host: any other leads into a namespace, which then is alive.

    Raises: OSError.
    """
    with netns_scan.Reader() as reader:
        stray = [end for end in reader.host_ends() if end.nsid is None and mark_on(end)]
        addresses = dict(reader.addresses()) if stray else {}
    for end in stray:
        mark = mark_on(end)
        parts = mark.removeprefix(MARK).split(":")
        if len(parts) == 3:
            container_id, ifname, network = parts
            of_peer = addresses.get(end.peer, b"")
            hashed = network_hash(network)
            yield Leftover(VETH, end.name, end.name, container_id, ifname, network, hashed, of_peer, key=mark)


def ifbs() -> Iterator[Leftover]:
    """Yield the ifbs of bandwidth: their alias names the owner. Raises: KernelRefused."""
    from cni_py.kernel.link import list_links
    from cni_py.netlink.socket import open_host

    with open_host() as host:
        links = [link for link in list_links(host) if link.kind == "ifb" and link.alias.startswith(IFB_ALIAS)]
    for link in links:
        parts = link.alias.removeprefix(IFB_ALIAS).split(":")
        if len(parts) == 3:
            container_id, ifname, network = parts
            yield Leftover(IFB, link.name, link.name, container_id, ifname, network, network_hash(network), key=link.alias)


def accepted() -> Iterator[Leftover]:
    """Yield the addresses that firewall lets pass, by its records: the rules themselves name no owner. Raises: IOFailure."""
    directory = f"{RUN_DIR}/firewall"
    for name in files.list_directory(directory):
        try:
            record = config.decode(files.read(f"{directory}/{name}"), name)
        except (CniError, OSError):
            continue
        owner = [record.get(key) for key in ("containerID", "ifname", "network")]
        addresses, zone = record.get("addresses"), record.get("zone")
        for text in addresses if isinstance(addresses, list) and all(isinstance(of, str) for of in owner) else ():
            address = as_address(str(text))
            if address is not None:
                container_id, ifname, network = map(str, owner)
                what, hashed = f"{address} in CNI-FORWARD", network_hash(network)
                key = zone if isinstance(zone, str) else ""
                yield Leftover(ACCEPTED, what, "CNI-FORWARD", container_id, ifname, network, hashed, address.packed, key=key)


def devices() -> Iterator[Leftover]:
    """Yield devices that a deleted sandbox gave back to the host under another name than their own, which is their alias.

    Only those of a record: any other alias may be an administrator's. Raises: KernelRefused, IOFailure.
    """
    recorded = dict(file_leftovers.recorded_devices())
    if not recorded:
        return
    from cni_py.kernel.link import list_links
    from cni_py.netlink.socket import open_host

    with open_host() as host:
        links = list_links(host)
    names = {link.name for link in links}
    for link in links:
        record = recorded.get(link.alias)
        if record is not None and link.alias not in names:
            what = f"{link.name}, which is {link.alias}"
            yield record.replace(kind=DEVICE, what=what, path=link.name, key=link.alias, stamp=None, netns="", inode=0)
