"""Command ``cni-py walk``: the path of a packet between two places of the lab, or from this node as far as it is visible.

Names are resolved here; the work is in cni_py/walk/. Reference: docs/walk.md.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_py import subnet_env
from cni_py.cli import attachments
from cni_py.cli.output import show, show_json
from cni_py.errors import CniError, reason_of
from cni_py.files import list_directory
from cni_py.kernel.route_lookup import Question
from cni_py.lab.lab import DIRECTORY
from cni_py.lab.plan import ETCD_ADDRESS, ETCD_ADDRESS6, OUTSIDE, OUTSIDE6
from cni_py.lab.site import Site
from cni_py.lab.state import State
from cni_py.plural import counted
from cni_py.walk import compare, hops, probe, report, svg, text
from cni_py.walk.choices import Choices, following
from cni_py.walk.packet import ICMP, REPLY, TCP, UDP, Packet
from cni_py.walk.place import NODE, OTHER, POD, Place, Places
from cni_py.walk.predict import Walker

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any

    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.kernel.address import Address
    from cni_py.walk.report import Report
    from cni_py.walk.text import Part

    Network = IPv4Network | IPv6Network

SUBNET_FILE = "/run/flannel/subnet.env"
SAVED_LEASES = "/var/lib/cni-py/flanneld.json"
SMALLEST = {(ICMP, 4): 32, (ICMP, 6): 52, (TCP, 4): 40, (TCP, 6): 60, (UDP, 4): 32, (UDP, 6): 52}
LARGEST = 65535
DEFAULT_SIZE = 84
MOST_ALTERNATIVES = 500
"""Predictions of one walk: a Service may have as many endpoints."""
_UDP_PORT = 8285
_EPHEMERAL = (49152, 65535)
_STYLES = {
    text.TITLE: "bold",
    text.PLACE: "bold cyan",
    text.TEXT: "",
    text.WHY: "dim",
    text.CHANGE: "yellow",
    text.GOOD: "green",
    text.BAD: "bold red",
    text.UNSURE: "magenta",
}


@dataclass(frozen=True, slots=True)
class End:
    """An end of the walk as it was typed: a name or an address, perhaps with a port."""

    name: str
    address: Address | None
    port: int


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns: 0 the packet arrives, 1 it does not, 3 it could not be followed. Raises: CniError."""
    if os.geteuid() != 0:
        raise CniError(
            "cni-py walk must be run as root: it enters network namespaces, and captures packets",
            hint=f"sudo cni-py walk {options.source} {options.destination}",
        )
    source, destination = parse_end(options.source), parse_end(options.destination)
    if source.port:
        raise CniError(f'"{options.source}" has a port, and the source cannot', "the kernel chooses it", "leave it out")
    for end in (source, destination):
        if end.address is not None and end.address.is_unspecified:
            raise CniError(f"{end.address} is not the address of a host", hint="name a pod, a node, or an address")
    with _world(options, source, destination) as (places, names):
        made = _walk(options, places, names, source, destination)
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(svg.draw(made))
    if options.json:
        show_json(made.as_json())
    else:
        _print(made)
    return made.exit_status


def parse_end(word: str) -> End:
    """Parse ``NAME``, ``NAME:PORT``, ``10.244.1.2:80``, ``[fd00::2]:80``. Raises: CniError."""
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", word)
    name, port = (bracketed[1], bracketed[2] or "") if bracketed else (word, "")
    if not bracketed and word.count(":") == 1:
        name, _, port = word.partition(":")
    if (port and not (port.isdecimal() and 0 < int(port) < 1 << 16)) or (
        word.endswith(":") and not port and word.count(":") == 1
    ):
        raise CniError(
            f'invalid port in "{word}"', hint="a port is a number from 1 to 65535: web:80, 10.244.1.2:80, [fd00::2]:80"
        )
    try:
        address = ip_address(name.partition("/")[0]) if "/" not in name or name.rpartition("/")[2].isdecimal() else None
    except ValueError:
        address = None
    if bracketed and (address is None or address.version != 6):
        raise CniError(f'invalid address in "{word}"', hint="brackets are for IPv6 addresses: [fd00::2]:80")
    return End(name, address, int(port or 0))


# ---- the walk ---------------------------------------------------------------------------------


class Names:
    """Names of the places, and the addresses of each.

    ``aliases``: other names of places; one that several have is ambiguous. ``default``: the place where a walk from an
    invisible address begins.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[Address, ...]] = {}
        self.aliases: dict[str, set[str]] = {}
        self.default: Place | None = None

    def add(self, place: str, addresses: Iterable[Address], *aliases: str) -> None:
        """Add addresses and other names of a place."""
        self.addresses[place] = tuple(dict.fromkeys([*self.addresses.get(place, ()), *addresses]))
        for alias in (place, *aliases):
            self.aliases.setdefault(alias, set()).add(place)

    def place(self, name: str) -> str | None:
        """The place of this name, None if there is none. Raises: CniError for a name that several have."""
        found = sorted(self.aliases.get(name, ()))
        if len(found) > 1:
            hint = f"name one of {', '.join(self._unambiguous(place) for place in found)}"
            raise CniError(f'ambiguous name "{name}"', f"{counted(len(found), 'place')} have it", hint)
        return found[0] if found else None

    def _unambiguous(self, place: str) -> str:
        """A name that only this place has: with its node or Kubernetes namespace, if it has such a one."""
        own = [alias for alias, places in self.aliases.items() if places == {place}]
        return min(own, key=lambda alias: ("/" not in alias, alias.startswith("/"), len(alias), alias), default=place)


def _walk(options: argparse.Namespace, places: Places, names: Names, source: End, destination: End) -> Report:
    target = _target(options, places, names, destination)
    start = _start(places, names, source)
    protocol = _protocol(options, destination)
    packet = _packet(options, names, source, start, target, protocol, destination.port)
    title = f"{options.source} to {options.destination}: {_title(packet)}"

    def predict(choices: Choices) -> Report:
        walker = Walker(places, choices)
        forward = walker.walk(start, packet) if start is not None else _from_wire(walker, names, packet)
        is_answered = forward.outcome == hops.DELIVERED and (protocol != UDP or forward.is_heard is False)
        end = places.named(forward.end_place)
        reply = walker.walk(end, forward.last.reversed()) if is_answered and end is not None else None
        return report.Report(title, packet, forward, reply, shows_reply=options.reply)

    sender = None if options.no_probe else start
    made = predict(Choices()) if sender is None else _verified(options, places, sender, predict)
    if start is None:
        made.notes = ["No packet was sent: the source is not visible from here."]
    networks = [network for place in places.all for network in place.pod_networks]
    report.find(made, list(dict.fromkeys(networks)))
    return made


def _title(packet: Packet) -> str:
    name = {ICMP: "ICMP echo"}.get(packet.protocol, packet.protocol.upper())
    return f"{packet}, {name}, {packet.size} bytes"


def _protocol(options: argparse.Namespace, destination: End) -> str:
    """Raises: CniError if port and protocol contradict each other."""
    protocol: str = options.protocol or (TCP if destination.port else ICMP)
    if protocol == ICMP and destination.port:
        raise CniError("ICMP has no ports", hint=f"leave the port out, or --protocol {TCP}")
    if protocol != ICMP and not destination.port:
        raise CniError(f"{protocol.upper()} requires a port", hint=f"name one, such as {options.destination}:80")
    return protocol


def _target(options: argparse.Namespace, places: Places, names: Names, destination: End) -> Address:
    """The destination's address. Raises: CniError if the name is unknown, or has none of the family."""
    if destination.address is not None:
        return destination.address
    version = 6 if options.ipv6 else 0
    place = names.place(destination.name)
    addresses = names.addresses.get(place) if place is not None else None
    if addresses is None:
        raise _unknown(destination.name, places, names)
    fitting = [address for address in addresses if version in (0, address.version)]
    if not fitting:
        raise CniError(
            f'"{destination.name}" has no {"IPv6 " if version else ""}address', hint="cni-py explain lists the attachments"
        )
    return fitting[0]


def _start(places: Places, names: Names, source: End) -> Place | None:
    """The place that sends; None: it is not visible. Raises: CniError for an unknown name."""
    if source.address is not None:
        found = places.with_address(source.address)
        if not found and names.default is None:
            raise _unknown(source.name, places, names)
        pods = [place.name for place in found if place.kind == POD]
        if len(pods) > 1:
            hint = f"name one of {', '.join(pods)}"
            raise CniError(f"ambiguous address {source.address}", f"{counted(len(pods), 'pod')} have it", hint)
        return found[0] if found else None
    name = names.place(source.name)
    place = places.named(name) if name is not None else None
    if place is None:
        raise _unknown(source.name, places, names)
    return place


def _unknown(name: str, places: Places, names: Names) -> CniError:
    known = list(dict.fromkeys([*(place.name for place in places.all), *names.addresses]))
    shown = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
    return CniError(f'unknown place "{name}"', hint=f"a pod, an address, or one of {shown}")


def _packet(
    options: argparse.Namespace, names: Names, source: End, start: Place | None, target: Address, protocol: str, port: int
) -> Packet:
    """The packet to follow. Raises: CniError if there is no route, or the size is impossible."""
    least = SMALLEST[protocol, target.version]
    size = options.size or (least if protocol == TCP else max(DEFAULT_SIZE, least))
    if not least <= size <= LARGEST:
        raise CniError(
            f"invalid size {size}", hint=f"from {least} to {LARGEST} bytes, {protocol.upper()} over IPv{target.version}"
        )
    if source.address is not None:
        address = source.address
        if address.version != target.version:
            raise CniError(f"{address} and {target} are of different families", hint="name two addresses of one family")
    else:
        assert start is not None
        address = _source_address(names, source.name, start, target)
    source_port = random.randint(*_EPHEMERAL) if protocol != ICMP else 0  # noqa: S311 — any free port, not a secret
    return Packet(address, target, protocol, source_port, port, size)


def _source_address(names: Names, name: str, start: Place, target: Address) -> Address:
    """The address that the kernel would send from. Raises: CniError."""
    choice = start.route(Question(target))
    if choice.source is not None:
        return choice.source
    own = [address for address in names.addresses.get(start.name, ()) if address.version == target.version]
    if own:
        return own[0]
    raise CniError(f'"{name}" has no IPv{target.version} address that could reach {target}', choice.reason, "cni-py explain")


def _from_wire(walker: Walker, names: Names, packet: Packet) -> hops.Walk:
    """Follow a packet from an address that is not visible: it comes in by the link that leads there. Raises: CniError."""
    place = names.default
    assert place is not None
    choice = place.route(Question(packet.source))
    link = place.links.get(choice.ifindex)
    if link is None:
        raise CniError(f"no link of this node leads to {packet.source}", choice.reason)
    return walker.walk_from_wire(place, link, packet)


def _verified(options: argparse.Namespace, places: Places, start: Place, predict: Callable[[Choices], Report]) -> Report:
    """Predict, send a real packet, and compare. A failure to watch is a note.

    Where a rule chooses at random, every choice is predicted, and the packet shows which one was made.
    """
    predicted = _alternatives(predict)
    possible = [made for made, _ in predicted]
    hops_of_all = [hop for made in possible for walk in made.walks for hop in walk.hops]
    on_path = {hop.place for hop in hops_of_all}
    watched = [place for place in places.all if place.name in on_path or place.kind != POD]
    ports = frozenset(hop.packet.innermost.destination_port for made in possible for hop in made.forward.hops)
    packet = possible[0].packet
    token = probe.new_token(packet, ports)
    tests = [compare.completeness(made.forward, made.reply) for made in possible]
    try:
        observed = probe.probe(start, packet, watched, token, lambda seen: any(test(seen) for test in tests), options.seconds)
    except OSError as error:
        possible[0].notes = [f"No packet was sent: {reason_of(error)}"]
        return possible[0]
    made, wanted = next(((made, wanted) for made, wanted in predicted if _compare(made, observed)), predicted[0])
    if len(possible) > 1 and made.is_as_predicted:
        made = predict(Choices(wanted, is_seen=True))
    is_as_predicted = _compare(made, observed)
    made.notes = observed.notes + ([] if is_as_predicted else _dropping_rules(places, observed))
    return made


def _alternatives(predict: Callable[[Choices], Report]) -> list[tuple[Report, list[int]]]:
    """A prediction for each choice that rules may make at random, with the choices."""
    found: list[tuple[Report, list[int]]] = []
    wanted: list[int] | None = []
    while wanted is not None and len(found) < MOST_ALTERNATIVES:
        choices = Choices(wanted)
        found.append((predict(choices), [number for number, _ in choices.made]))
        wanted = following(choices.made)
    return found


def _compare(made: Report, observed: probe.Observed) -> bool:
    """Compare a prediction with what was seen. Returns: they agree."""
    made.comparison = compare.compare(made.forward, observed)
    if made.reply is not None and made.comparison.is_as_predicted:
        made.reply_comparison = compare.compare(made.reply, observed, REPLY)
    return made.is_as_predicted


def _dropping_rules(places: Places, observed: probe.Observed) -> list[str]:
    """Sentences about the rules that dropped the packet, as nft prints them."""
    found = []
    for name, event in compare.drop_rules(observed):
        place = places.named(name)
        rule = place.ruleset.text(f"{event.family} {event.table}", event.chain, event.handle) if place is not None else ""
        if rule:
            found.append(f"The rule of {name} that dropped it: {event.where}: {rule}")
    return list(dict.fromkeys(found))


# ---- what is visible --------------------------------------------------------------------------


@contextmanager
def _world(options: argparse.Namespace, source: End, destination: End) -> Iterator[tuple[Places, Names]]:
    """The places of the lab, if an end is one of them; else this node and its pods. Raises: CniError."""
    state = State.read(options.directory)
    site = Site(state, options.directory) if state is not None and state.is_alive else None
    if options.directory != DIRECTORY and site is None:
        raise CniError(f'no lab is running in "{options.directory}"', hint="cni-py lab up")
    if site is not None and (options.directory != DIRECTORY or _is_of_lab(site, source, destination)):
        places, names = _lab(site)
    else:
        places, names = _node()
    with places:
        yield places, names


def _is_of_lab(site: Site, source: End, destination: End) -> bool:
    named = {*site.state.machines, *site.pods}
    addresses = {ip_address(address) for pod in site.pods.values() for address in pod.addresses}
    return any(end.name in named or end.address in addresses for end in (source, destination))


def _lab(site: Site) -> tuple[Places, Names]:
    places: list[Place] = []
    names = Names()
    settings = site.settings
    families = [version for version, is_used in ((4, settings.ipv4), (6, settings.ipv6)) if is_used]
    nodes = {node.name: node for node in site.state.nodes}
    shared = f"{site.directory}/shared/flannel.json" if settings.datastore == "file" else ""
    try:
        for name, machine in site.state.machines.items():
            kind = NODE if name in nodes else OTHER
            path = f"/proc/{machine.pid}/ns/net"
            of_lab = {"outside": (OUTSIDE, OUTSIDE6), "etcd": (ETCD_ADDRESS, ETCD_ADDRESS6)}
            if name in nodes:
                of_lab[name] = (nodes[name].address, nodes[name].address6)
            names.add(name, [a for a in map(ip_address, of_lab.get(name, ())) if a.version in families])
            places.append(_node_place(name, path, f"/proc/{machine.pid}/root", shared) if kind == NODE else Place(name, path))
        for pod in site.pods.values():
            names.add(pod.name, map(ip_address, pod.addresses))
            places.append(Place(pod.name, site.netns_path(pod), POD))
        for name in nodes:
            _add_named(f"/proc/{site.state.machines[name].pid}/root/run/netns", places, names, name)
    except BaseException:
        for place in places:
            place.close()
        raise
    return Places(places), names


def _add_named(directory: str, places: list[Place], names: Names, node: str) -> None:
    """Add the named namespaces of a directory that are not among the places yet.

    Two nodes may have one of the same name: the second one is called ``node2/NAME``, and NAME alone is ambiguous.
    """
    known = {place.inode for place in places}
    for name in sorted(list_directory(directory)):
        unique = f"{node}/{name}" if name in {place.name for place in places} else name
        try:
            place = Place(unique, f"{directory}/{name}", POD)
        except CniError:  # not a namespace, or one that was deleted
            continue
        if place.inode in known:
            place.close()
            continue
        known.add(place.inode)
        places.append(place)
        own = [of.address for of in place.addresses if not of.address.is_loopback and not of.address.is_link_local]
        names.add(unique, own, name, f"{node}/{name}", f"/run/netns/{name}")


def _node_place(name: str, path: str, root: str = "", shared: str = "") -> Place:
    """A node; ``root``: of its file system."""
    return Place(name, path, NODE, pod_networks=_pod_networks(f"{root}{SUBNET_FILE}"), peer_of=_peers(root, shared))


def _pod_networks(path: str) -> Sequence[Network]:
    try:
        return subnet_env.read(path).networks
    except CniError:
        return ()


def _peers(root: str, shared: str = "") -> Callable[[Address], tuple[Address, int] | None]:
    """A function that returns the node that has an address, for the back end ``udp``: flanneld saves the leases that it
    follows.

    ``shared``: the file datastore of a lab, which is newer.
    """

    def find(address: Address) -> tuple[Address, int] | None:
        leases, config = _leases(root, shared)
        for subnets, lease in leases.items():
            for subnet, node in ((subnets.ipv4, lease.attributes.public_ip), (subnets.ipv6, lease.attributes.public_ipv6)):
                if subnet is not None and node is not None and address in (subnet if subnet.version == address.version else ()):
                    return node, _port_of(config)
        return None

    return find


def _leases(root: str, shared: str) -> tuple[Mapping[Subnets, Lease], Mapping[str, Any]]:
    """The leases that are known on a node, and the network's configuration."""
    from cni_py.flanneld import saved
    from cni_py.flanneld.stores.lease_file import Damaged, LeaseFile

    if shared:
        try:
            with open(shared, "rb") as file:
                of_lab = LeaseFile(file.read())
            return of_lab.leases(), of_lab.config
        except (OSError, Damaged):
            pass
    found = saved.read(f"{root}{SAVED_LEASES}")
    if found is None:
        return {}, {}
    return found.leases() or {}, json.loads(found.config)


def _port_of(config: Mapping[str, Any]) -> int:
    backend = config.get("Backend")
    port = backend.get("Port") if isinstance(backend, dict) else None
    return port if isinstance(port, int) else _UDP_PORT


def _node() -> tuple[Places, Names]:
    """Open this node, and the namespaces of its attachments."""
    name = socket.gethostname().partition(".")[0] or NODE
    node = _node_place(name, "/proc/self/ns/net")
    listed = [node]
    names = Names()
    names.default = node
    try:
        for one in attachments.known():
            if one.state == attachments.LIVE and one.netns:
                _add_pod(one, listed, names)
        _add_named("/run/netns", listed, names, name)
    except BaseException:
        for place in listed:
            place.close()
        raise
    own = [of.address for of in node.addresses if not of.address.is_loopback and not of.address.is_link_local]
    chosen = [node.route(Question(ip_address(target))).source for target in ("192.0.2.1", "2001:db8::1")]
    names.add(name, [*(address for address in chosen if address is not None), *own])
    names.aliases |= {alias: {name} for alias in (NODE, "host")}
    return Places(listed), names


def _add_pod(one: attachments.Known, places: list[Place], names: Names) -> None:
    """Add a pod, under each of its names."""
    name = one.pod or os.path.basename(one.netns)
    if name in {place.name for place in places}:
        name = one.container_id[:12]
    try:
        place = Place(name, one.netns, POD)
    except CniError:  # it was deleted in the meantime
        return
    known = next((other for other in places if other.inode == place.inode), None)
    if known is not None:
        place.close()
    else:
        places.append(place)
    others = {*attachments.names_of(one), one.container_id, one.container_id[:12]}
    names.add((known or place).name, map(ip_address, one.addresses), *others)


# ---- printing ---------------------------------------------------------------------------------


def _print(made: Report) -> None:
    """Print the report; on a terminal in colours unless ``NO_COLOR`` is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        for parts in text.render(made):
            show("".join(part.text for part in parts))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for parts in text.render(made, min(console.width, text.WIDTH)):
        _print_styled(console, parts)


def _print_styled(console: object, parts: Iterable[Part]) -> None:
    from rich.console import Console
    from rich.text import Text

    from cni_py.journal import printable

    assert isinstance(console, Console)
    line = Text.assemble(*((printable(part.text), _STYLES[part.kind]) for part in parts))
    console.print(line, soft_wrap=True)
