"""Results of ADD, cached for CHECK and DEL in libcni's files.

Owns: ``<cache>/results/<network>-<container id>-<interface>`` (0600), in libcni's form: attachments
can be added by one tool and deleted by the other. Source: containernetworking/cni v1.3.0, ``libcni/api.go``.
"""

from __future__ import annotations

import base64
import os

from cni_py import config, files
from cni_py.errors import CniError, DecodingFailure, IncompatibleVersion, IOFailure, reason_of
from cni_py.jsontext import encode
from cni_py.runtime.network_config import Attachment
from cni_py.spec.result import from_json
from cni_py.spec.versions import SUPPORTED
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.runtime.network_config import Network

CACHE_DIR = "/var/lib/cni"
CACHE_KIND = "cniCacheV1"
MAX_CACHE_BYTES = 16 << 20


class Cached(Value):
    """Cached attachment; ``result`` in the form in which the last plugin returned it."""

    network: str
    attachment: Attachment
    result: Mapping[str, Any] | None


def cache_path(cache_dir: str, network: str, attachment: Attachment) -> str:
    """Return the path of an attachment's file."""
    return f"{cache_dir}/results/{network}-{attachment.container_id}-{attachment.ifname}"


def write_cache(cache_dir: str, network: Network, attachment: Attachment, result: Mapping[str, Any]) -> None:
    """Cache the result of ADD with its inputs. Raises: IOFailure."""
    record = {
        "kind": CACHE_KIND,
        "containerId": attachment.container_id,
        "config": base64.b64encode(network.source).decode(),
        "ifName": attachment.ifname,
        "networkName": network.name,
    }
    optional = {
        "netns": attachment.netns,
        "cniArgs": attachment.args,
        "capabilityArgs": attachment.capability_args,
        "result": result,
    }
    path = cache_path(cache_dir, network.name, attachment)
    content = encode(record | {key: value for key, value in optional.items() if value})
    try:
        files.make_directory(os.path.dirname(path), 0o700)
        files.write(path, content)
    except (OSError, IOFailure) as error:
        raise IOFailure(f'failed to set network "{network.name}" cached result', reason_of(error)) from error


def read_cache(path: str) -> Cached:
    """Read a record. Raises: OSError; DecodingFailure if it is not one of libcni's."""
    raw = config.decode(files.read(path, MAX_CACHE_BYTES), path)
    texts = [raw.get(key) for key in ("containerId", "ifName", "networkName")]
    container_id, ifname, network = (text if isinstance(text, str) else "" for text in texts)
    if raw.get("kind") != CACHE_KIND or not (container_id and ifname and network):
        raise DecodingFailure(
            f"{path} is not a record of a cached result",
            f'its "kind" is not {CACHE_KIND}, or the network, container id or interface is missing',
        )
    args, capability_args, result = raw.get("cniArgs"), raw.get("capabilityArgs"), raw.get("result")
    if not (isinstance(args, list | None) and isinstance(capability_args, dict | None) and isinstance(result, dict | None)):
        raise DecodingFailure(f'"cniArgs", "capabilityArgs" or "result" of {path} has the wrong type')
    pairs = tuple((str(p[0]), str(p[1])) for p in args or () if isinstance(p, list) and len(p) == 2)
    return Cached(network, Attachment(container_id, str(raw.get("netns") or ""), ifname, pairs, capability_args or {}), result)


def cached_attachments(cache_dir: str, network: str = "") -> list[Cached]:
    """List the cached attachments, of one network or of all; files that are not records are skipped.

    Raises: IOFailure.
    """
    directory = f"{cache_dir}/results"
    found = []
    for name in files.list_directory(directory):
        try:
            cached = read_cache(f"{directory}/{name}")
        except (OSError, CniError):
            continue
        if network in ("", cached.network):
            found.append(cached)
    return found


def cached_result(cache_dir: str, network: Network, attachment: Attachment) -> dict[str, Any] | None:
    """Return the result of ADD in the network's version, or None.

    Raises: CniError if it cannot be read or cannot be expressed in this version.
    """
    path = cache_path(cache_dir, network.name, attachment)
    try:
        raw = config.decode(files.read(path, MAX_CACHE_BYTES), path)
    except OSError:
        return None
    # libcni before 0.8 kept the result alone.
    result = raw.get("result") if raw.get("kind") == CACHE_KIND else raw
    if result is None:
        return None
    if not isinstance(result, dict):
        raise DecodingFailure(f'"result" of {path} is not an object')
    return in_version(result, network.cni_version, "the cached result")


def in_version(result: Mapping[str, Any], version: str, what: str) -> dict[str, Any]:
    """Convert the result to this version, if it is in another one. Raises: CniError."""
    version = version or "0.1.0"
    stated = {**result, "cniVersion": result.get("cniVersion") or "0.1.0"}
    parsed = from_json(stated, what)
    if version not in SUPPORTED:
        raise IncompatibleVersion(f'unsupported CNI result version "{version}"', f"supported: {', '.join(SUPPORTED)}")
    return stated if stated["cniVersion"] == version else parsed.as_version(version)
