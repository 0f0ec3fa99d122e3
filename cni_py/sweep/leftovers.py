"""What attachments leave on a host, each piece with its owner: what a sweep judges. Reads, and changes nothing.

Pieces name their owner in different ways: some the container alone (flannel's saved configuration, old reservations,
iptables chains), some only a hash of the network (nftables comments). :meth:`Trace.is_with` says which belong together.

Read in the reverse of the order in which ADD makes them (record, saved configuration, reservation, address,
element): so with each piece that is seen, those that were made before it are seen too.
"""

from __future__ import annotations

import posix
from functools import partial

from cni_py import config, files
from cni_py.attachment import record as attachments
from cni_py.errors import CniError
from cni_py.ipam.ranges import as_address
from cni_py.ipam.store import parse_owner, reserved_names
from cni_py.packetfilter.ownership import network_hash, short_id
from cni_py.packetfilter.ownership import parse_owner as parse_comment
from cni_py.plugin_table import PLUGINS
from cni_py.spec.environment import is_name
from cni_py.sweep import netns_scan
from cni_py.sweep.liveness import ALIAS
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import Any

    from cni_py.packetfilter.iptables import Iptables
    from cni_py.packetfilter.nfnetlink import Element

ADDRESS, SAVED, RECORD, ELEMENT, CHAIN, VETH, CACHED = (
    "address", "saved configuration", "record", "nftables element", "iptables chain", "veth", "cached result",
)  # fmt: skip
DATA_DIR, FLANNEL_DIR, CACHE_DIR = "/var/lib/cni/networks", "/var/lib/cni/flannel", "/var/lib/cni/results"
Stamp = tuple[int, int, int]


class Trace(Value):
    """One piece.

    Attributes:
        container_id: whole, or as nftables comments have it (``rules.short_id``); empty: a damaged file, nobody's.
        ifname: empty: it is not said.
        network: empty: it is not said, or only ``hashed`` is.
        address: packed, of the pod.
        stamp: time of change in ns, inode and size of a file: whether it is the same one later.
        path: the file; of an element its set, of a chain its name, of a veth its name.
        netns: path of the sandbox, ``inode`` of it, as a record or a cached result has them.
        key: of an element its comment, of a chain the source of its jump, of a veth its alias.
        is_blind: its addresses are not host-local's, so that they stand nowhere.
    """

    kind: str
    what: str
    path: str
    container_id: str = ""
    ifname: str = ""
    network: str = ""
    hashed: str = ""
    address: bytes = b""
    stamp: Stamp | None = None
    netns: str = ""
    inode: int = 0
    key: str = ""
    tool: Iptables | None = None
    is_blind: bool = False

    @property
    def short_id(self) -> str:
        return self.container_id if "~" in self.container_id else short_id(self.container_id)

    def is_with(self, other: Trace) -> bool:
        """Whether both may be of one attachment: what is not said fits anything."""
        return (
            self.short_id == other.short_id
            and (not self.hashed or not other.hashed or self.hashed == other.hashed)
            and (not self.ifname or not other.ifname or self.ifname == other.ifname)
        )


class Places(Value):
    """Folders to look into: of reservations with the network's name ("": all that are in there), of saved configurations."""

    data: frozenset[tuple[str, str]] = frozenset({(DATA_DIR, "")})
    flannel: frozenset[str] = frozenset({FLANNEL_DIR})

    def __or__(self, other: Places) -> Places:
        return Places(self.data | other.data, self.flannel | other.flannel)


class Sets(Value):
    """nftables sets and maps whose elements have an owner in their comment.

    Attributes:
        key_text: an element's key in the language of nft.
        address_of: the pod's address in an element, empty where it has none.
        after: told which elements have been deleted.
    """

    names: tuple[str, ...]
    key_text: Callable[[bytes], str]
    address_of: Callable[[Element], bytes]
    after: Callable[[list[Element]], None] | None = None


def sets() -> tuple[Sets, ...]:
    """All that have owners, each kind after those that are made in the same transaction and say no address."""
    from cni_py.packetfilter import hostports, macspoof, masquerade, ownership
    from cni_py.packetfilter.hostports import rules as portmap_rules

    ports = (*portmap_rules.SOURCES, *portmap_rules.HOSTPORTS)
    return (
        Sets((macspoof.CHECKED, macspoof.ALLOWED), ownership.port_text, lambda _: b""),
        Sets(ports, portmap_rules.key_text, lambda e: e.data[:-4], hostports.forget_connections_of),
        Sets(masquerade.MAPS, masquerade._address_text, lambda e: e.key),
    )


# ---- reading ----------------------------------------------------------------------------------


class Reading:
    """All traces, read one kind after the other; what cannot be read goes to ``faults``.

    Args:
        networks: of these alone; None: of all.
        check_time: called now and then; may raise.
    """

    def __init__(self, places: Places, networks: Collection[str] | None, check_time: Callable[[], None]) -> None:
        self.places, self.networks, self.check_time = places, networks, check_time
        self.hashes = None if networks is None else {network_hash(name) for name in networks}
        self.faults: list[str] = []

    def of_kernel(self) -> list[Trace]:
        """Elements, chains, veths."""
        return [*self._each(elements), *self._each(chains), *self._each(veths)]

    def of_files(self) -> list[Trace]:
        """Reservations, saved configurations, records."""
        saved_ones, elsewhere = [], set(self.places.data)
        for folder in sorted(self.places.flannel):
            for trace, data_dir in self._each(partial(saved, folder)):
                saved_ones.append(trace)
                if data_dir and trace.network:
                    elsewhere.add((data_dir, trace.network))
        reserved = []
        for folder in sorted({f for place in elsewhere for f in network_folders(*place, self.networks)}):
            reserved += self._each(partial(reservations, folder))
        return [*reserved, *saved_ones, *self._each(records)]

    def of_cache(self, containers: Collection[str] | None = None) -> list[Trace]:
        """Cached results; ``containers``: ids of which one must be in the file's name, None: all."""
        return self._each(partial(cached, containers))

    def _each(self, read: Callable[[], Iterable[Any]]) -> list[Any]:
        found = []
        try:
            for item in read():
                self.check_time()
                trace = item[0] if isinstance(item, tuple) else item
                if self.hashes is None or not trace.hashed or trace.hashed in self.hashes:
                    found.append(item)
        except (CniError, OSError) as error:
            self.faults.append(str(error))
        return found


def reservations(folder: str) -> Iterator[Trace]:
    """The reservations of one network, a damaged one as nobody's. Raises: IOFailure."""
    network = folder.rpartition("/")[2]
    hashed = network_hash(network)
    for name in reserved_names(folder):
        address, path = as_address(name), f"{folder}/{name}"
        stamp = stamp_of(path)
        if address is None or str(address) != name or stamp is None:
            continue
        container_id, ifname = parse_owner(_read(path)) or ("", "")
        yield Trace(ADDRESS, f"{name} ({path})", path, container_id, ifname, network, hashed, address.packed, stamp)


def network_folders(data_dir: str, network: str, networks: Collection[str] | None) -> list[str]:
    """Folders of reservations in a ``dataDir``; none where it is not a path that the plugins would take."""
    parts = data_dir.split("/")
    if not data_dir.startswith("/") or ".." in parts or not data_dir.isprintable():
        return []
    data_dir = "/" + "/".join([part for part in parts if part not in ("", ".")])
    try:
        names = [network] if network else sorted(posix.listdir(data_dir))
    except OSError:
        return []
    return [f"{data_dir}/{name}" for name in names if is_name(name) and (networks is None or name in networks)]


def saved(folder: str) -> Iterator[tuple[Trace, str]]:
    """flannel's saved configurations, each with the ``dataDir`` of its reservations. Raises: IOFailure."""
    for name in files.list_folder(folder):
        container_id, _, ifname = name.partition(":")
        path = f"{folder}/{name}"
        stamp = stamp_of(path)
        if stamp is None or not is_name(container_id):
            continue
        conf = _decoded(path)
        network = str(conf["name"]) if is_name(str(conf.get("name", ""))) else ""
        hashed = network_hash(network) if network else ""
        ipam = conf.get("ipam")
        ipam = ipam if isinstance(ipam, dict) else {}
        is_blind = bool(ipam) and files_of(ipam.get("type")) != "reservations"
        data_dir = ipam.get("dataDir") or DATA_DIR
        trace = Trace(SAVED, path, path, container_id, ifname, network, hashed, stamp=stamp, is_blind=is_blind)
        yield trace, data_dir if isinstance(data_dir, str) and not is_blind else ""


def records() -> Iterator[Trace]:
    """The records of ADD; of a damaged one what its name says. Raises: IOFailure."""
    for folder in attachments.directories():
        for name in files.list_folder(folder):
            path = f"{folder}/{name}"
            stamp, parts = stamp_of(path), name.split(":")
            if stamp is None or len(parts) != 3:
                continue
            record = _decoded(path)
            texts = [record.get(key) for key in ("containerID", "ifname", "network")]
            container_id, ifname, network = (t if isinstance(t, str) else p for t, p in zip(texts, parts, strict=True))
            netns, inode = record.get("netns"), record.get("ino")
            yield Trace(
                RECORD,
                path,
                path,
                container_id,
                ifname,
                network,
                network_hash(network),
                stamp=stamp,
                netns=netns if isinstance(netns, str) else "",
                inode=inode if isinstance(inode, int) else 0,
            )


def cached(containers: Collection[str] | None = None) -> Iterator[Trace]:
    """Results that libcni keeps (or ``cni-py add``). Raises: IOFailure."""
    for name in files.list_folder(CACHE_DIR):
        path = f"{CACHE_DIR}/{name}"
        stamp = stamp_of(path)
        if stamp is None or (containers is not None and not any(f"-{one}-" in name for one in containers)):
            continue
        raw = _decoded(path)
        texts = [raw.get(key) for key in ("containerId", "ifName", "networkName", "netns")]
        container_id, ifname, network, netns = (text if isinstance(text, str) else "" for text in texts)
        if container_id and ifname and network:
            yield Trace(CACHED, path, path, container_id, ifname, network, network_hash(network), stamp=stamp, netns=netns)


def elements() -> Iterator[Trace]:
    """Elements of our nftables sets and maps. Raises: KernelRefused."""
    from cni_py.packetfilter import nfnetlink

    for one in sets():
        for name in one.names:
            for element in nfnetlink.elements(name):
                owner = parse_comment(element.comment)
                if owner is not None:
                    what = f"{name} {one.key_text(element.key)}"
                    container_id, ifname, hashed = owner
                    yield Trace(
                        ELEMENT, what, name, container_id, ifname, "", hashed, one.address_of(element), key=element.comment
                    )


def chains() -> Iterator[Trace]:
    """Masquerade chains of iptables: what jumps to them names container, network and address, and the chain's name their hash.

    Raises: KernelRefused.
    """
    from cni_py.packetfilter import iptables, nfnetlink
    from cni_py.packetfilter.iptables import Iptables

    tools = [Iptables(v, "-nft") for v, family in ((4, "ip"), (6, "ip6")) if nfnetlink.exists(f"{family} nat POSTROUTING")]
    for tool in [tool for tool in tools if tool.find()] + iptables._legacy():
        for line in tool.rules("POSTROUTING") or []:
            trace = jump(line, tool)
            if trace is not None:
                yield trace


def jump(line: str, tool: Iptables) -> Trace | None:
    r"""The chain that a line of POSTROUTING jumps to, where it certainly is an attachment's. Pure.

    ``-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"net\" id: \"c1\"" -j CNI-…``
    """
    from cni_py.packetfilter.ownership import Owner

    source = as_address(line.partition(" -s ")[2].partition(" ")[0].partition("/")[0])
    network, _, rest = line.partition(r'--comment "name: \"')[2].partition(r"\" id: \"")
    container_id, chain = rest.partition(r"\"")[0], line.rpartition(" -j ")[2]
    if source is None or not is_name(network) or not is_name(container_id):
        return None
    if chain != Owner(container_id, "", network).go_chain():
        return None
    what, hashed = f"{chain} of {tool.name}, from {source}", network_hash(network)
    return Trace(CHAIN, what, chain, container_id, "", network, hashed, source.packed, key=str(source), tool=tool)


def veths() -> Iterator[Trace]:
    """Veths with our alias whose both ends are on the host: all others have a live namespace at their other end.

    Raises: OSError.
    """
    with netns_scan.Reader() as reader:
        stray = [end for end in reader.host_ends() if end.nsid is None and end.alias.startswith(ALIAS)]
        addresses = dict(reader.addresses()) if stray else {}
    for end in stray:
        parts = end.alias.removeprefix(ALIAS).split(":")
        if len(parts) == 3:
            container_id, ifname, network = parts
            of_peer = addresses.get(end.peer, b"")
            yield Trace(VETH, end.name, end.name, container_id, ifname, network, network_hash(network), of_peer, key=end.alias)


# ---- where to look ----------------------------------------------------------------------------


def places_of(plugins: Iterable[Mapping[str, Any]], network: str) -> Places:
    """The folders that configurations of plugins name. Pure; what is of the wrong type is left out."""
    places = Places()
    for plugin in plugins:
        ipam = plugin.get("ipam")
        if (
            isinstance(ipam, dict)
            and isinstance(ipam.get("dataDir"), str)
            and files_of(ipam.get("type", "host-local")) == "reservations"
        ):
            places |= Places(frozenset({(ipam["dataDir"], network)}))
        data_dir = plugin.get("dataDir") if files_of(plugin.get("type")) == "delegate configurations" else None
        if isinstance(data_dir, str) and data_dir.startswith("/"):
            places |= Places(flannel=frozenset({data_dir.rstrip("/") or "/"}))
    return places


def files_of(plugin: object) -> str:
    """What the plugin of this ``type`` keeps in its ``dataDir``: see plugin_table.py. Pure."""
    return PLUGINS[plugin].files if isinstance(plugin, str) and plugin in PLUGINS else ""


def places_configured(folder: str, warn: Callable[[str], None]) -> Places:
    """The folders that the network configurations of a folder name. Raises: IOFailure where it cannot be read."""
    from cni_py.runtime.network_config import parse_list, read_all, wrap_single

    places = Places()
    for path, content, raw in read_all(folder, warn):
        if not raw.get("name"):  # warned of already
            continue
        try:
            network = parse_list(path, content, raw) if path.endswith(".conflist") else wrap_single(path, raw)
        except CniError as error:
            warn(f"left out {path}: {error.msg}")
        else:
            places |= places_of(network.plugins, network.name)
    return places


def stamp_of(path: str) -> Stamp | None:
    """None where there is no regular file."""
    try:
        status = posix.lstat(path)
    except OSError:
        return None
    if status.st_mode & 0o170000 != 0o100000:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read(path: str) -> bytes:
    """Empty where it has gone meanwhile. Raises: OSError, IOFailure."""
    try:
        return files.read(path)
    except FileNotFoundError:
        return b""


def _decoded(path: str) -> dict[str, Any]:
    """The JSON object in a file; empty where it is damaged or has gone. Raises: OSError."""
    try:
        return config.decode(files.read(path, config.MAX_BYTES), path)
    except (CniError, FileNotFoundError):
        return {}
