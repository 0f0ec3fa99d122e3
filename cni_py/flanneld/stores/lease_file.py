"""The JSON file of ``file_store.py``: text to leases and back. Pure; it touches no file.

::

    {"config": {"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}},
     "leases": {"10.244.91.0-24": {"PublicIP": "192.168.123.11", "PublicIPv6": null, "BackendType": "host-gw",
                                   "Node": "node1", "Expires": "2026-11-26T00:20:00Z"}}}

Keys and values are those of etcd (``lease.py``), and two more: ``Node`` is for people alone; without
``Expires``, or with null, the entry is a reservation: it never ends, and it is its public address's.
An entry without ``BackendType`` has that of ``config``, so a list written by hand needs only ``PublicIP``.
Whatever else a person wrote there is kept.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.untrusted import MAX_DEPTH, is_deeper, published, shown

_WITHOUT_TYPE = ("udp", "alloc")
_DATA = ("BackendData", "BackendV6Data")
_KEYS_OF_A_LEASE = {name.lower() for name in ("PublicIP", "PublicIPv6", "BackendType", *_DATA, "Node", "Expires")}
_EXAMPLE_OF_A_TIME = "2026-11-26T00:20:00Z"


class Damaged(ValueError):
    """The text is no such file; the message says why, without the file's name."""


class LeaseFile:
    """The content of a file. Raises: Damaged."""

    def __init__(self, text: bytes) -> None:
        self._content = _load(text)
        self.config: dict[str, Any] = self._content["config"]
        self._entries: dict[str, Any] = {}
        self._leases: dict[Subnets, Lease] = {}
        self.faults: dict[str, str] = {}
        """Entries that are no lease: key, and what is wrong."""
        self._unclear: list[Subnets] = []
        default = _type_in(self.config)
        for key, value in self._content["leases"].items():
            self._add(key, value, default)
        if is_deeper({key: value for key, value in self._content.items() if key != "leases"}, MAX_DEPTH + 1):
            raise Damaged(f"it is nested more than {MAX_DEPTH} deep")

    def _add(self, key: str, value: Any, default_type: str) -> None:
        """An entry that cannot be understood stays as it is. Raises: Damaged."""
        subnets = None
        if is_deeper(value, MAX_DEPTH):
            value = "nested too deeply"  # the former value could not be written again, with another node's change
        try:
            subnets = Subnets.from_key(key)
            lease = _parse_lease(subnets, value, default_type)
        except NotALease as error:
            self.faults[key] = str(error)
            self._unclear += [subnets] if subnets else []
            self._entries[key] = value
            return
        key = subnets.as_key()
        if key in self._entries:
            raise Damaged(f'"{key}" is there twice')
        self._entries[key] = value
        self._leases[subnets] = lease

    def leases(self) -> dict[Subnets, Lease]:
        """Every one, also those that have ended."""
        return dict(self._leases)

    def was_used(self, subnets: Subnets) -> bool:
        """Return whether a flanneld has written this entry: a list by hand needs no name of the node."""
        entry = self._entries.get(subnets.as_key())
        return isinstance(entry, dict) and bool(entry.get("Node"))

    def unclear(self) -> list[Subnets]:
        """Return the subnets of entries that cannot be understood: a node may have them."""
        return list(self._unclear)

    def put(self, lease: Lease, node_name: str = "") -> None:
        """Add the lease, or change its entry; without a name, that of the entry stays."""
        key = lease.subnets.as_key()
        there = self._entries.get(key)
        there = there if isinstance(there, dict) else {}
        extra = {name: value for name, value in there.items() if name.lower() not in _KEYS_OF_A_LEASE}
        node_name = node_name or there.get("Node", "")
        extra |= {"Node": node_name} if node_name else {}
        expires = None if lease.expires is None else datetime.fromtimestamp(lease.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        written = json.loads(lease.attributes.as_json())
        # what a person added to the back end's data stays, as long as that says the same
        written |= {name: there[name] for name in _DATA if name in there and published(there[name]) == written.get(name)}
        self._entries[key] = written | extra | {"Expires": expires}
        self._leases[lease.subnets] = lease

    def put_config(self, config: dict[str, Any]) -> None:
        self.config = self._content["config"] = config

    def remove(self, subnets: Subnets) -> None:
        """Remove the entry, which exists."""
        del self._entries[subnets.as_key()], self._leases[subnets]

    def as_text(self) -> bytes:
        """Return the text as a person would format it."""
        text = json.dumps(self._content | {"leases": self._entries}, indent=2, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace")  # half a surrogate pair: \ud83d is how JSON says it


def _load(text: bytes) -> dict[str, Any]:
    """Raises: Damaged."""
    if not text.strip():
        raise Damaged("it is empty")
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise Damaged(str(error)) from error
    if not isinstance(content, dict):
        raise Damaged('it must hold a JSON object with "config" and "leases"')
    content.setdefault("leases", {})
    for key in ("config", "leases"):
        if not isinstance(content.get(key), dict):
            raise Damaged(f'"{key}" {"must be an object" if key in content else "is missing"}')
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One key twice, in a list written by hand, is two nodes with one subnet. Raises: Damaged."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Damaged(f'"{key}" is there twice')
        found[key] = value
    return found


def _parse_lease(subnets: Subnets, value: Any, default_type: str) -> Lease:
    """Raises: NotALease."""
    attributes = Attributes.from_value(value)
    if not attributes.backend_type:
        attributes = replace(attributes, backend_type=default_type)
    return Lease(subnets, attributes, _end_of(value.get("Expires")))


def _end_of(text: Any) -> float | None:
    """Seconds since the epoch. Raises: NotALease."""
    if text is None:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        end = datetime.fromisoformat(text)
        if end.tzinfo is not None:
            return end.timestamp()
    raise NotALease(f'"Expires" must be null or a time like "{_EXAMPLE_OF_A_TIME}", not {shown(text)}')


def _type_in(config: dict[str, Any]) -> str:
    """The back end that an entry has if it names none; "" for those that publish none."""
    backend = _any_case(config, "backend")
    kind = _any_case(backend, "type") if isinstance(backend, dict) else None
    kind = kind.lower() if isinstance(kind, str) else ""
    return "" if kind in _WITHOUT_TYPE else kind


def _any_case(values: dict[str, Any], name: str) -> Any:
    """Keys of a network configuration may be written in any case."""
    return next((value for key, value in values.items() if key.lower() == name), None)
