"""Addresses of Services that kube-proxy has in nftables. Changes nothing.

What it has in iptables is in its rules; with IPVS they are addresses of the link ``kube-ipvs0``.
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from cni_py.packetfilter import libnftables, nfnetlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cni_py.doctor.facts import Address

_TABLES, _MAP = ("ip kube-proxy", "ip6 kube-proxy"), "service-ips"


def services() -> list[Address]:
    """Read the map of Services, which has their addresses with protocol and port. Raises: NotAvailable, KernelRefused."""
    found: list[Address] = []
    for table in _TABLES:
        if nfnetlink.exists(table):
            with libnftables.borrowed() as handle:
                found += addresses(handle.list_json(f"list table {table}"))
    return found


def addresses(objects: Iterable[Mapping[str, Any]]) -> list[Address]:
    """Return the addresses in the map, each once: pure."""
    keys = [element[0] for of in objects if of.get("map", {}).get("name") == _MAP for element in of["map"].get("elem", ())]
    found: dict[Address, None] = {}
    for key in keys:
        value = key["elem"]["val"] if isinstance(key, dict) and "elem" in key else key
        first = value["concat"][0] if isinstance(value, dict) and "concat" in value else value
        with suppress(ValueError):
            found[ip_address(str(first))] = None
    return list(found)
