"""A node of Kubernetes as a lease, and a lease as annotations of a node. Pure.

The subnets are the node's ``spec.podCIDRs``, given by the controller manager; the rest are annotations, by
default ``flannel.alpha.coreos.com/…``::

    kube-subnet-manager: "true"          backend-type: vxlan
    backend-data: {"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}     public-ip: 192.168.123.11
    backend-v6-data, public-ipv6         the same for IPv6
    public-ip-overwrite, public-ipv6-overwrite                written by people: published in place of our own
    node-public-ip, node-public-ipv6                          written by people: in place of -public-ip

Source: flannel-io/flannel pkg/subnet/kube/annotations.go, kube.go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from cni_py.errors import InvalidConfig
from cni_py.flanneld.lease import (
    VALUE_BYTES,
    Address,
    Attributes,
    Lease,
    NotALease,
    Subnets,
    as_go_writes,
    node_address,
    type_of_backend,
)
from cni_py.flanneld.untrusted import decode, published

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
MANAGED = "kube-subnet-manager"
_PREFIX = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?")


@dataclass(frozen=True, slots=True)
class Changes:
    """Annotations to write, and addresses that people put in their place."""

    annotations: dict[str, str]
    overridden: tuple[str, ...] = ()


class Annotations:
    """Reads and writes those of one prefix, as given to ``-kube-annotation-prefix``. Raises: InvalidConfig."""

    def __init__(self, prefix: str) -> None:
        if prefix.count("/") > 1:
            raise InvalidConfig(
                "subnet/kube: prefix can contain at most single slash", f'-kube-annotation-prefix is "{prefix}"'
            )
        whole = prefix if "/" in prefix else f"{prefix}/"
        whole = whole if whole.endswith(("/", "-")) else f"{whole}-"
        if not _PREFIX.fullmatch(whole):
            raise InvalidConfig(
                "subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*", f'-kube-annotation-prefix is "{prefix}"'
            )
        self.prefix = whole

    def of(self, node: dict[str, Any]) -> dict[str, str]:
        """Ours among the node's annotations, without the prefix."""
        found = (node.get("metadata") or {}).get("annotations") or {}
        length = len(self.prefix)
        return {key[length:]: str(value) for key, value in found.items() if key.startswith(self.prefix)}

    def changes(self, node: dict[str, Any], attributes: Attributes) -> Changes:
        """Return what must be written so that the node says this; a person's overwrite goes before our address.

        Go-compatible: pkg/subnet/kube/kube.go, AcquireLease, which leaves the annotations of a family alone
        where VXLAN or WireGuard has no data for it, and writes "null" for other back ends. Unlike in Go the IPv6 address
        of udp's and alloc's nodes is written: no node would know them without it.
        """
        there = self.of(node)
        wanted = {"backend-type": attributes.backend_type, MANAGED: "true"}
        overridden: list[str] = []
        if _has_ipv4(attributes):
            wanted["backend-data"] = as_go_writes(attributes.backend_data)
            wanted["public-ip"] = there.get("public-ip-overwrite") or str(attributes.public_ip or "0.0.0.0")
            overridden += ["public-ip"] if there.get("public-ip-overwrite") else []
        if _has_ipv6(attributes):
            wanted["backend-v6-data"] = as_go_writes(attributes.backend_v6_data)
            wanted["public-ipv6"] = there.get("public-ipv6-overwrite") or str(attributes.public_ipv6)
            overridden += ["public-ipv6"] if there.get("public-ipv6-overwrite") else []
        changed = {f"{self.prefix}{key}": value for key, value in sorted(wanted.items()) if there.get(key) != value}
        return Changes(changed, tuple(key for key in overridden if f"{self.prefix}{key}" in changed))

    def lease(self, node: dict[str, Any], ipv4: bool, ipv6: bool) -> Lease | None:
        """The node's lease, None where it is no node of flannel's. Raises: NotALease.

        A node that has one family, as during a roll-out, is reached by that: what it lacks of the other is left out. Go leaves
        out both.
        """
        there = self.of(node)
        if there.get(MANAGED) != "true":
            return None
        found = pod_subnets(node)
        subnets = Subnets(found.ipv4 if ipv4 else None, found.ipv6 if ipv6 else None)
        used = [version for version, is_used in ((4, ipv4), (6, ipv6)) if is_used]
        faults = {version: fault for version in used if (fault := _fault_of_family(there, subnets, version))}
        if len(faults) == len(used):
            raise NotALease("; ".join(faults.values()))
        return Lease(
            subnets,
            Attributes(
                public_ip=_address(there, "public-ip", IPv4Address) if ipv4 and 4 not in faults else None,
                public_ipv6=_address(there, "public-ipv6", IPv6Address) if ipv6 and 6 not in faults else None,
                backend_type=_type(there),
                backend_data=_data(there, "backend-data") if ipv4 else None,
                backend_v6_data=_data(there, "backend-v6-data") if ipv6 else None,
            ),
            since=_since(node),
        )

    def stored_addresses(self, node: dict[str, Any]) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Return what people wrote in place of ``-public-ip`` and ``-public-ipv6``. Raises: NotALease."""
        there = self.of(node)
        return (
            _address(there, "node-public-ip", IPv4Address) if there.get("node-public-ip") else None,
            _address(there, "node-public-ipv6", IPv6Address) if there.get("node-public-ipv6") else None,
        )


def pod_subnets(node: dict[str, Any]) -> Subnets:
    """Return those of ``spec.podCIDRs``, else of ``spec.podCIDR``; none where there are none yet. Raises: NotALease."""
    spec = node.get("spec") or {}
    texts = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    if len(texts) > 2:
        raise NotALease("pod cidrs should be IPv4/IPv6 only or dualstack")
    try:
        found = [ip_network(str(text), strict=False) for text in texts]
    except ValueError as error:
        raise NotALease(f"invalid CIDR address: {error}") from error
    return Subnets(
        next((subnet for subnet in found if isinstance(subnet, IPv4Network)), None),
        next((subnet for subnet in found if isinstance(subnet, IPv6Network)), None),
    )


def _has_ipv4(attributes: Attributes) -> bool:
    return attributes.backend_type not in ("vxlan", "wireguard") or attributes.backend_data is not None


def _has_ipv6(attributes: Attributes) -> bool:
    if attributes.backend_type in ("vxlan", "wireguard"):
        return attributes.backend_v6_data is not None and attributes.public_ipv6 is not None
    return attributes.backend_type in ("", "host-gw", "extension") and attributes.public_ipv6 is not None  # "": udp, alloc


def _address(there: dict[str, str], key: str, kind: type[Address]) -> Address:
    """Raises: NotALease."""
    if key not in there:
        raise NotALease(f"{key} is missing")
    try:
        return node_address(there[key], kind)
    except ValueError as error:
        raise NotALease(f"{key}: {error}") from error


def _fault_of_family(there: dict[str, str], subnets: Subnets, version: int) -> str:
    """Return what a node lacks of a family; empty: nothing."""
    if not subnets.only(version).each():
        return f"missing IPv{version} address on n.Spec.PodCIDRs"
    try:
        _ = _address(there, "public-ip", IPv4Address) if version == 4 else _address(there, "public-ipv6", IPv6Address)
    except NotALease as error:
        return str(error)
    return ""


def _since(node: dict[str, Any]) -> int:
    """Return the time of the node's creation as a number: 20261126002000; 0 where that is unknown."""
    text = str((node.get("metadata") or {}).get("creationTimestamp") or "")
    digits = "".join(filter(str.isdecimal, text[:32]))
    return int(digits) if digits.isascii() and len(digits) == len("20261126002000") else 0


def _type(there: dict[str, str]) -> str:
    """Raises: NotALease."""
    try:
        return type_of_backend(there.get("backend-type"))
    except ValueError as error:
        raise NotALease(f"backend-type: {error}") from error


def _data(there: dict[str, str], key: str) -> Any:
    """Raises: NotALease."""
    try:
        return published(decode(there.get(key) or "null", VALUE_BYTES))
    except ValueError as error:
        raise NotALease(f"{key} is no JSON: {error}") from error
