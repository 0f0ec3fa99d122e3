"""What flanneld knew when it last ran, so that a node whose datastore is away can forward after a reboot.

A cluster's etcd may itself run in pods, or on a node that boots at the same time. With a lease of ours
that has not ended, pods get their network at once; what has changed meanwhile follows when the
datastore answers.

Owns: ``/var/lib/cni-py/flanneld.json`` (0600); with another ``-subnet-file`` a file that is named by that, for a second
flanneld on the node serves another network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

from cni_py import files
from cni_py.errors import CniError
from cni_py.flanneld import backends
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.node.log import warning

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH, SUBNET_FILE = "/var/lib/cni-py/flanneld.json", "/run/flannel/subnet.env"


@dataclass(frozen=True, slots=True)
class Saved:
    """The network's configuration as text, our own lease, all leases."""

    config: str
    own: Lease
    leases: Mapping[Subnets, Lease]


def path_for(subnet_file: str) -> str:
    """Where a flanneld saves that writes this file."""
    if subnet_file == SUBNET_FILE:
        return PATH
    return f"{PATH.removesuffix('.json')}-{subnet_file.strip('/').replace('/', '-')}.json"


def read(path: str) -> Saved | None:
    """None where there is nothing, it cannot be used, or our own lease has ended."""
    try:
        found = json.loads(files.read(path, limit=64 << 20))
        leases = {lease.subnets: lease for lease in map(_lease, found["leases"])}
        own = _lease(found["own"])
        saved = Saved(str(found["config"]), own, {**leases, own.subnets: own})
        backends.check(NetworkConfig.parse(saved.config))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CniError, NotALease) as error:
        warning(f"what was saved in {path} cannot be used: {error}")
        return None
    return saved if own.expires is None or own.expires > time() else None


def write(saved: Saved, path: str) -> None:
    """Raises: IOFailure, OSError."""
    content = {
        "config": saved.config,
        "own": _as_json(saved.own),
        "leases": [_as_json(lease) for lease in saved.leases.values()],
    }
    files.make_folder(path.rpartition("/")[0], 0o755)
    files.write(path, json.dumps(content).encode(), 0o600)


def _as_json(lease: Lease) -> dict[str, Any]:
    return {"key": lease.subnets.as_key(), "value": lease.attributes.as_json(), "expires": lease.expires}


def _lease(raw: dict[str, Any]) -> Lease:
    expires = raw["expires"]
    return Lease(Subnets.from_key(raw["key"]), Attributes.from_json(raw["value"]), None if expires is None else float(expires))
