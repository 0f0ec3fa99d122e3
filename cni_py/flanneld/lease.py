"""Leases: which node has which subnet, and how it is reached. Keys and values are Go flannel's, byte for byte.

A lease's key is its subnets, ``10.244.91.0-24`` or ``10.244.91.0-24&fd00:1::-64`` in dual stack; a node
that has IPv6 alone says ``0.0.0.0-0`` for the first. Its value is JSON without blanks, the keys in this
order, the two addresses always there::

    {"PublicIP":"192.168.123.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"…"}}

Source: flannel-io/flannel pkg/lease/lease.go, pkg/subnet/subnet.go.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from sys import intern
from time import time
from typing import Any, TypeVar

from cni_py.flanneld.untrusted import decode, is_utf8, members, published, shown
from cni_py.kernel.address import have_overlap
from cni_py.node.log import shortened

LEASE_SECONDS = 86400
_LOOPBACK, _MULTICAST = 127, 224
"""The first octets of IPv4 addresses that no node has; multicast's and all above."""
_NOTHING, _BROADCAST = IPv4Network("0.0.0.0/0"), IPv4Address("255.255.255.255")
_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?", re.ASCII)
_NO_ADDRESS = (None, "", str(_NOTHING.network_address))
_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_IS_ESCAPED = re.compile("[<>&\u2028\u2029]")
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
VALUE_BYTES = 2 << 20
"""Length of a lease's value, more than etcd's own limit of a request by default."""
_FIELDS = {name.lower(): name for name in ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")}
TYPE_LENGTH = 64
"""Characters of a back end's type, at most."""
Address = TypeVar("Address", IPv4Address, IPv6Address)


class NotALease(ValueError):
    """A key or value under ``subnets/`` that says no lease; the text says why."""


@dataclass(frozen=True, slots=True)
class Subnets:
    """A node's subnet of each family; one of them at least."""

    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None
    _hash: int = field(init=False, repr=False, compare=False)
    """Kept: they are the key of everything, and a network calculates its hash each time, in Python."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.ipv4, self.ipv6)))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return " and ".join(str(subnet) for subnet in self.each())

    def each(self) -> list[IPv4Network | IPv6Network]:
        """Return the existing ones."""
        return [subnet for subnet in (self.ipv4, self.ipv6) if subnet is not None]

    def only(self, version: int) -> Subnets:
        """Return the subnet of one family alone."""
        return Subnets(self.ipv4 if version == 4 else None, self.ipv6 if version == 6 else None)

    def in_words(self) -> str:
        """Describe them as Go's log does."""
        return f"ip: {self.ipv4 or _NOTHING} ipv6: {self.ipv6 or '::/0'}"

    def overlap(self, other: Subnets) -> bool:
        """Return whether both cannot be leased at a time."""
        return bool(
            (self.ipv4 and other.ipv4 and have_overlap(self.ipv4, other.ipv4))
            or (self.ipv6 and other.ipv6 and have_overlap(self.ipv6, other.ipv6))
        )

    def as_key(self) -> str:
        """The last part of the key in a datastore."""
        first = self.ipv4 or _NOTHING
        key = f"{first.network_address}-{first.prefixlen}"
        return f"{key}&{self.ipv6.network_address}-{self.ipv6.prefixlen}" if self.ipv6 else key

    @classmethod
    def from_key(cls, key: str) -> Subnets:
        """Raises: NotALease."""
        found = _KEY.fullmatch(key)
        if found is None:
            raise NotALease(f'"{shortened(key)}" is no key of a subnet: it looks like 10.244.91.0-24')
        address, length, address6, length6 = found.groups()
        try:
            ipv4 = _network4(address, length)
            ipv6 = IPv6Network(f"{address6}/{length6}") if address6 else None
        except ValueError as error:
            raise NotALease(f'"{shortened(key)}" is no key of a subnet: {shortened(str(error))}') from error
        if ipv4 == _NOTHING and ipv6 is None:
            raise NotALease(f'"{key}" names no subnet')
        return cls(None if ipv4 == _NOTHING else ipv4, ipv6)


def _network4(address: str, length: str) -> IPv4Network:
    """Return a network; in a third of the time that its text takes, of which a start has thousands. Raises: ValueError."""
    try:
        packed = socket.inet_pton(socket.AF_INET, address)
    except OSError:
        return IPv4Network(f"{address}/{length}")  # raises, in its words
    return IPv4Network((packed, int(length)))


@dataclass(frozen=True, slots=True)
class Attributes:
    """The data that a node publishes: where it is reached, and what its back end adds, a text or an object of plain values
    (``untrusted.py``)."""

    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: Any = None
    backend_v6_data: Any = None

    @property
    def addresses(self) -> list[IPv4Address | IPv6Address]:
        """Return the addresses of the node; it is known by the first."""
        return [address for address in (self.public_ip, self.public_ipv6) if address is not None]

    def is_same_node(self, other: Attributes) -> bool:
        """Known by the IPv4 address, as in Go; a node that has IPv6 alone, by that one."""
        if self.public_ip is not None:
            return self.public_ip == other.public_ip
        return self.public_ipv6 is not None and self.public_ipv6 == other.public_ipv6

    def as_json(self) -> str:
        """Return it as Go writes it."""
        out: dict[str, Any] = {
            "PublicIP": str(self.public_ip or "0.0.0.0"),
            "PublicIPv6": str(self.public_ipv6) if self.public_ipv6 else None,
        }
        if self.backend_type:
            out["BackendType"] = self.backend_type
        if self.backend_data is not None:
            out["BackendData"] = self.backend_data
        if self.backend_v6_data is not None:
            out["BackendV6Data"] = self.backend_v6_data
        return as_go_writes(out)

    @classmethod
    def from_json(cls, text: bytes | str) -> Attributes:
        """Raises: NotALease."""
        try:
            found = decode(text, VALUE_BYTES)
        except ValueError as error:
            raise NotALease(f"the value is no lease: {error}") from error
        return cls.from_value(found)

    @classmethod
    def from_value(cls, found: Any) -> Attributes:
        """Read decoded JSON. Raises: NotALease.

        An invalid IPv6 address beside a valid IPv4 address costs the node IPv6 alone; Go ignores the whole lease. An invalid
        IPv4 address costs it all: by that address the lease is its node's.
        """
        if not isinstance(found, dict):
            raise NotALease(f"the value is no lease: {shown(found)} is no object")
        its = members(found, _FIELDS)
        try:
            text4, text6 = its.get("PublicIP"), its.get("PublicIPv6")
            public_ip = None if text4 in _NO_ADDRESS else node_address(text4, IPv4Address)
            lease = cls(
                public_ip=public_ip,
                public_ipv6=None if text6 in _NO_ADDRESS else _public_ipv6(text6, is_alone=public_ip is None),
                backend_type=type_of_backend(its.get("BackendType")),
                backend_data=published(its.get("BackendData")),
                backend_v6_data=published(its.get("BackendV6Data")),
            )
        except ValueError as error:
            raise NotALease(f"the value is no lease: {error}") from error
        if not lease.addresses:
            raise NotALease('the value is no lease: it has no "PublicIP"')
        return lease


def as_go_writes(data: Any) -> str:
    """JSON without blanks, ``null`` where there is nothing."""
    text = _encode(data)
    return text.translate(_HTML) if _IS_ESCAPED.search(text) else text


def node_address(value: object, kind: type[Address]) -> Address:
    """Read the address of a node. Raises: ValueError."""
    try:
        if isinstance(value, str):
            address = kind(value)
            if why_not := why_no_node(address):
                raise ValueError(f"{address} is no address of a node: it is {why_not}")
            return address
    except AddressValueError:
        pass
    raise ValueError(f"{shown(value)} is no IPv{kind(0).version} address")


def _public_ipv6(value: object, *, is_alone: bool) -> IPv6Address | None:
    """Raises: ValueError, if it is the node's only address."""
    try:
        return node_address(value, IPv6Address)
    except ValueError:
        if is_alone:
            raise
        return None


def why_no_node(address: IPv4Address | IPv6Address) -> str:
    """Return what it is if no node can be reached by it; else ""."""
    if address.version == 4 and 0 < (first := int(address) >> 24) < _MULTICAST and first != _LOOPBACK:
        return ""  # as nearly all are: what follows would say the same
    if getattr(address, "scope_id", None):
        return "link-local, with a zone that this node alone knows"
    if address.is_unspecified or (address.version == 4 and address.packed[0] == 0):
        return "no host's"
    if address.is_loopback:
        return "loopback"
    if address.is_multicast:
        return "multicast"
    return "broadcast" if address == _BROADCAST else ""


def type_of_backend(value: object) -> str:
    """Raises: ValueError."""
    if not isinstance(value, str | None) or len(value or "") > TYPE_LENGTH or not is_utf8(value or ""):
        raise ValueError(f"{shown(value)} is no type of a back end")
    return intern(value or "")


@dataclass(frozen=True, slots=True)
class Lease:
    """A subnet in a node's hands. ``expires``: seconds since the epoch, None where it never does (a reservation).

    ``since``: a number that is smaller for what was created earlier, in one datastore; 0: unknown.
    """

    subnets: Subnets
    attributes: Attributes
    expires: float | None = None
    since: int = field(default=0, compare=False)

    @property
    def versions(self) -> set[int]:
        """The families by which its node is reached."""
        return {address.version for address in self.attributes.addresses}

    @property
    def is_unused_reservation(self) -> bool:
        """True if ``cni-py config reserve`` wrote it, and its node has not used it yet."""
        return self.expires is None and not self.attributes.backend_type

    def without(self, *versions: int) -> Lease:
        """Return it as if its node had no address of these families."""
        its = self.attributes
        public_ip = None if 4 in versions else its.public_ip
        public_ipv6 = None if 6 in versions else its.public_ipv6
        return replace(self, attributes=replace(its, public_ip=public_ip, public_ipv6=public_ipv6))

    def is_live(self, now: float | None = None) -> bool:
        """Return whether it has not ended by its time. ``now``: seconds since the epoch; without it, by the clock."""
        return self.expires is None or self.expires > (time() if now is None else now)
