"""Leftovers in files: reservations, saved configurations, records, cached results; and the directories to read.

Changes nothing.
"""

from __future__ import annotations

import posix

from cni_py import config, files
from cni_py.attachment import record as attachments
from cni_py.errors import CniError
from cni_py.ipam.ranges import as_address
from cni_py.ipam.store import parse_owner, reserved_names
from cni_py.packetfilter.ownership import network_hash
from cni_py.plugin_table import PLUGINS
from cni_py.spec.environment import is_name
from cni_py.sweep.leftovers import ADDRESS, CACHED, RECORD, SAVED, Leftover, stamp_of
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import Any

DATA_DIR, FLANNEL_DIR, CACHE_DIR = "/var/lib/cni/networks", "/var/lib/cni/flannel", "/var/lib/cni/results"


class Places(Value):
    """Directories to read.

    Attributes:
        data: of reservations, with the network's name ("": every network in there).
        flannel: of saved configurations.
    """

    data: frozenset[tuple[str, str]] = frozenset({(DATA_DIR, "")})
    flannel: frozenset[str] = frozenset({FLANNEL_DIR})

    def __or__(self, other: Places) -> Places:
        return Places(self.data | other.data, self.flannel | other.flannel)


def reservations(directory: str) -> Iterator[Leftover]:
    """Yield the reservations of one network, a damaged one without an owner. Raises: IOFailure."""
    network = directory.rpartition("/")[2]
    hashed = network_hash(network)
    for name in reserved_names(directory):
        address, path = as_address(name), f"{directory}/{name}"
        stamp = stamp_of(path)
        if address is None or str(address) != name or stamp is None:
            continue
        container_id, ifname = parse_owner(_read(path)) or ("", "")
        yield Leftover(ADDRESS, f"{name} ({path})", path, container_id, ifname, network, hashed, address.packed, stamp)


def network_directories(data_dir: str, network: str, networks: Collection[str] | None) -> list[str]:
    """Return directories of reservations in a ``dataDir``; none if the plugins would reject its path."""
    parts = data_dir.split("/")
    if not data_dir.startswith("/") or ".." in parts or not data_dir.isprintable():
        return []
    data_dir = "/" + "/".join([part for part in parts if part not in ("", ".")])
    try:
        names = [network] if network else sorted(posix.listdir(data_dir))
    except OSError:
        return []
    return [f"{data_dir}/{name}" for name in names if is_name(name) and (networks is None or name in networks)]


def saved(directory: str) -> Iterator[tuple[Leftover, str]]:
    """Yield flannel's saved configurations, each with the ``dataDir`` of its reservations. Raises: IOFailure."""
    for name in files.list_directory(directory):
        container_id, _, ifname = name.partition(":")
        path = f"{directory}/{name}"
        stamp = stamp_of(path)
        if stamp is None or not is_name(container_id):
            continue
        conf = _decoded(path)
        network = str(conf["name"]) if is_name(str(conf.get("name", ""))) else ""
        hashed = network_hash(network) if network else ""
        ipam = config.member_of(conf, "ipam")
        ipam = ipam if isinstance(ipam, dict) else {}
        is_blind = bool(ipam) and _files_of(config.member_of(ipam, "type")) != "reservations"
        data_dir = config.member_of(ipam, "dataDir") or DATA_DIR
        leftover = Leftover(SAVED, path, path, container_id, ifname, network, hashed, stamp=stamp, is_blind=is_blind)
        yield leftover, data_dir if isinstance(data_dir, str) and not is_blind else ""


def records() -> Iterator[Leftover]:
    """Yield the records of ADD; of a damaged one, what its file name contains. Raises: IOFailure."""
    for directory in attachments.directories():
        for name in files.list_directory(directory):
            path = f"{directory}/{name}"
            stamp, parts = stamp_of(path), name.split(":")
            if stamp is None or len(parts) != 3:
                continue
            record = _decoded(path)
            texts = [record.get(key) for key in ("containerID", "ifname", "network")]
            container_id, ifname, network = (t if isinstance(t, str) else p for t, p in zip(texts, parts, strict=True))
            netns, inode = record.get("netns"), record.get("ino")
            yield Leftover(
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


def recorded_devices() -> Iterator[tuple[str, Leftover]]:
    """Yield the devices in the records of host-device, each with its record. Raises: IOFailure."""
    for leftover in records():
        device = _decoded(leftover.path).get("device")
        if isinstance(device, str) and device:
            yield device, leftover


def cached(containers: Collection[str] | None = None) -> Iterator[Leftover]:
    """Yield results that libcni (or ``cni-py add``) caches. Raises: IOFailure.

    Args:
        containers: read only files whose names hold one of these ids; None: all.
    """
    for name in files.list_directory(CACHE_DIR):
        path = f"{CACHE_DIR}/{name}"
        stamp = stamp_of(path)
        if stamp is None or (containers is not None and not any(f"-{one}-" in name for one in containers)):
            continue
        raw = _decoded(path)
        texts = [raw.get(key) for key in ("containerId", "ifName", "networkName", "netns")]
        container_id, ifname, network, netns = (text if isinstance(text, str) else "" for text in texts)
        if container_id and ifname and network:
            hashed = network_hash(network)
            yield Leftover(CACHED, path, path, container_id, ifname, network, hashed, stamp=stamp, netns=netns)


# ---- which directories ------------------------------------------------------------------------


def places_of(plugins: Iterable[Mapping[str, Any]], network: str) -> Places:
    """Return the directories in plugin configurations; values of the wrong type are skipped. Pure."""
    places = Places()
    for plugin in plugins:
        ipam = config.member_of(plugin, "ipam")
        ipam = ipam if isinstance(ipam, dict) else {}
        data_dir = config.member_of(ipam, "dataDir")
        if isinstance(data_dir, str) and _files_of(config.member_of(ipam, "type") or "host-local") == "reservations":
            places |= Places(frozenset({(data_dir, network)}))
        data_dir, kept = config.member_of(plugin, "dataDir"), _files_of(config.member_of(plugin, "type"))
        if isinstance(data_dir, str) and data_dir[:1] == "/" and kept == "delegate configurations":
            places |= Places(flannel=frozenset({data_dir.rstrip("/") or "/"}))
    return places


def _files_of(plugin: object) -> str:
    """Return what a plugin of this ``type`` keeps in its ``dataDir``, by the table of plugins; "" for none. Pure."""
    return PLUGINS[plugin].files if isinstance(plugin, str) and plugin in PLUGINS else ""


def places_configured(directory: str, warn: Callable[[str], None]) -> Places:
    """Return the directories in the network configurations of ``directory``. Raises: IOFailure if it is unreadable."""
    from cni_py.runtime.network_config import parse_list, read_all, wrap_single

    places = Places()
    for path, content, raw in read_all(directory, warn):
        if not raw.get("name"):  # read_all has warned of it
            continue
        try:
            network = parse_list(path, content, raw) if path.endswith(".conflist") else wrap_single(path, raw)
        except CniError as error:
            warn(f"skipped {path}: {error.msg}")
        else:
            places |= places_of(network.plugins, network.name)
    return places


def _read(path: str) -> bytes:
    """Read a file; empty if it was deleted in the meantime. Raises: OSError, IOFailure."""
    try:
        return files.read(path)
    except FileNotFoundError:
        return b""


def _decoded(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty if it is damaged or was deleted in the meantime. Raises: OSError."""
    try:
        return config.decode(files.read(path, config.MAX_BYTES), path)
    except (CniError, FileNotFoundError):
        return {}
