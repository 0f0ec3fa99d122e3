"""Parser for ``resolv.conf`` (resolv.conf(5)): what a CNI result can represent of it.

Source: plugins/ipam/host-local/dns.go of containernetworking/plugins.
"""

from __future__ import annotations


def parse(text: str) -> tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]]:
    """Return name servers, domain, search list and options; the last ``domain`` counts, the others add up."""
    said: dict[str, list[str]] = {"nameserver": [], "domain": [""], "search": [], "options": []}
    for line in text.split("\n"):
        keyword, *values = line.split() or [""]
        if keyword in said and values:
            said[keyword] += values[:1] if keyword in ("nameserver", "domain") else values
    return tuple(said["nameserver"]), said["domain"][-1], tuple(said["search"]), tuple(said["options"])
