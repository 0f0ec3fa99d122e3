"""The external interface: where packets to other nodes leave, and the addresses by which those reach us.

    find(options, ipv4, ipv6, quiet=False) -> ExternalInterface        Raises: InvalidConfig, KernelRefused

How it works. ``-iface`` (name or address), then ``-iface-regex`` (against addresses, then names), then
``-iface-can-reach`` (the way of a packet there) are tried in their order; the first that finds a link with an address
of each family in use decides. Without any of them it is the link that has the public address, or the one of the
default route. With one of them the public address may be somebody else's: a router's that translates to ours.

An address is usable if it is unicast, no loopback and not deprecated. Of several on a link, those of global
scope come first, then permanent ones; temporary ones come last.

Source: flannel-io/flannel pkg/ipmatch/match.go, pkg/ip/iface.go, main.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from cni_py.errors import InvalidConfig
from cni_py.flanneld.lease import why_no_node
from cni_py.kernel.interfaces import (
    HostAddress,
    default_interface,
    list_host_addresses,
    way_to,
)
from cni_py.kernel.link import list_links
from cni_py.netlink.constants import IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_PERMANENT, IFA_F_TEMPORARY
from cni_py.netlink.socket import open_host
from cni_py.node import log as klog

if TYPE_CHECKING:
    from cni_py.flanneld.options import Options
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

Address = IPv4Address | IPv6Address

_OURS = re.compile(r"flannel([.-]|\d)")
"""Devices that flanneld makes: no pattern is meant to match them."""


@dataclass(frozen=True, slots=True)
class ExternalInterface:
    """``addr`` and ``addr6`` are the link's own, the public ones those that other nodes use; None: not in use."""

    name: str
    ifindex: int
    mtu: int
    addr: IPv4Address | None
    addr6: IPv6Address | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None


class NotFound(Exception):
    """One of several ways to choose leads to no interface; the text says why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A link and what was chosen of it; without a chosen address, its first usable one."""

    link: Link
    addr: IPv4Address | None = None
    addr6: IPv6Address | None = None


def find(options: Options, ipv4: bool, ipv6: bool, quiet: bool = False) -> ExternalInterface:
    """Look the external interface up in the namespace of the calling thread; ``quiet``: log nothing.

    Raises: InvalidConfig, with what was looked for and what is there; KernelRefused.
    """
    say = _nothing if quiet else klog.info
    with open_host() as host:
        found = _Search(host, ipv4, ipv6, say).run(options)
    addr = found.addr if ipv4 else None
    addr6 = found.addr6 if ipv6 else None
    if addr:
        say(f"Using interface with name {found.link.name} and address {addr}")
    if addr6:
        say(f"Using interface with name {found.link.name} and v6 address {addr6}")
    public_ip = IPv4Address(options.public_ip) if ipv4 and options.public_ip else addr
    public_ipv6 = IPv6Address(options.public_ipv6) if ipv6 and options.public_ipv6 else addr6
    for given, public, what in ((options.public_ip, public_ip, ""), (options.public_ipv6, public_ipv6, "v6 ")):
        if public:
            default = f"Defaulting external {what}address to interface address ({public})"
            say(f"Using {public} as external address" if given else default)
    return ExternalInterface(found.link.name, found.link.ifindex, found.link.mtu, addr, addr6, public_ip, public_ipv6)


def _nothing(_: str) -> None:
    pass


class _Search:
    """One look at the links and addresses of the host, and the ways to choose among them."""

    def __init__(self, host: Rtnl, ipv4: bool, ipv6: bool, say: Callable[[str], None]) -> None:
        self._host, self._ipv4, self._ipv6, self._say = host, ipv4, ipv6, say
        self._links = sorted(list_links(host), key=lambda link: link.ifindex)
        self._addresses = sorted(filter(_is_usable, list_host_addresses(host)), key=_preference)

    def run(self, options: Options) -> Candidate:
        """Raises: InvalidConfig."""
        ways = [
            *((f"-iface {key}", self._by_key, key) for key in options.iface),
            *((f"-iface-regex {pattern}", self._by_pattern, pattern) for pattern in options.iface_regex),
            *(("-iface-can-reach " + address, self._by_way, address) for address in [options.iface_can_reach] if address),
        ]
        failures = []
        for words, way, argument in ways:
            try:
                return self._completed(way(argument))
            except NotFound as failure:
                self._say(f"Could not find valid interface matching {argument}: {failure}")
                failures.append(f"{words}: {failure}")
        if ways:
            # the known sentence of main.go
            msg = "Failed to find interface to use that matches the interfaces and/or regexes provided"
            raise InvalidConfig(msg, f"{'; '.join(failures)}; there are {self._inventory()}", "see: ip -br addr")
        try:
            return self._completed(self._without_choice(options))
        except NotFound as failure:
            hint = "name the interface with -iface; see: ip -br addr"
            if options.public_ip or options.public_ipv6:
                hint = "with -iface the public address need not be one of this host; see: ip -br addr"
            msg = f"Failed to find any valid interface to use: {failure}"
            raise InvalidConfig(msg, f"there are {self._inventory()}", hint) from failure

    def _without_choice(self, options: Options) -> Candidate:
        """The link that has the public addresses, else that of the default route. Raises: NotFound."""
        public = [options.public_ip] if self._ipv4 and options.public_ip else []
        public += [options.public_ipv6] if self._ipv6 and options.public_ipv6 else []
        if not public:
            return self._by_default_route()
        candidates = [self._by_key(address) for address in public]
        first, last = candidates[0], candidates[-1]
        if first.link.ifindex != last.link.ifindex:
            raise NotFound(f"v6 interface {last.link.name} must be the same with v4 interface {first.link.name}")
        return Candidate(first.link, first.addr, last.addr6)

    def _by_key(self, key: str) -> Candidate:
        """By address or name. Raises: NotFound."""
        address = _parse(key)
        if address is None:
            named = [link for link in self._links if link.name == key]
            if named:
                return Candidate(named[0])
            raise NotFound(f"error looking up interface {key}: no such network interface")
        self._say(f"Searching for interface using {address}")
        for at in self._addresses:
            link = self._link(at.ifindex) if at.address == address else None
            if link is not None:
                return _candidate(link, address)
        what = "interface" if address.version == 4 else "v6 interface"
        family = "IP" if address.version == 4 else "IPv6"
        raise NotFound(f"error looking up {what} {address}: no interface with given {family} found")

    def _by_pattern(self, pattern: str) -> Candidate:
        """The first link that has a matching address of each family in use, else a matching name. Raises: NotFound."""
        regex = re.compile(pattern)
        links = [link for link in self._links if not _OURS.match(link.name)]
        for link in links:
            matching = [address for address in self._of(link) if regex.search(str(address))]
            if self._is_complete(_candidate(link, *matching)):
                return _candidate(link, *matching)
        named = [link for link in links if regex.search(link.name)]
        for link in named:  # "eth1" matches "veth1a2b" too, a pod's, which has no address
            if self._is_complete(_candidate(link, *self._of(link))):
                return Candidate(link)
        if named:
            return Candidate(named[0])
        raise NotFound(f"could not match pattern {pattern} to any of the available network interfaces ({self._inventory()})")

    def _is_complete(self, found: Candidate) -> bool:
        return bool((found.addr or not self._ipv4) and (found.addr6 or not self._ipv6))

    def _by_way(self, text: str) -> Candidate:
        """Where a packet to this address leaves. Raises: NotFound."""
        self._say(f"Determining interface to use based on given ifcanreach: {text}")
        address = ip_address(text)
        way = way_to(self._host, address)
        link = self._link(way.ifindex) if way else None
        if way is None or link is None:
            raise NotFound(f"failed to get ifcanreach based interface: couldn't lookup route to {address}: there is none")
        return _candidate(link, way.source) if way.source and not why_no_node(way.source) else Candidate(link)

    def _by_default_route(self) -> Candidate:
        """Raises: NotFound."""
        self._say("Determining IP address of default interface")
        found: dict[int, Link] = {}
        for version, what in ((4, ""), (6, "v6 ")):
            if not (self._ipv4 if version == 4 else self._ipv6):
                continue
            default = self._link(default_interface(self._host, version))
            if default is None:
                raise NotFound(f"failed to get default {what}interface: unable to find default {what}route")
            found[version] = default
        first, last = found[min(found)], found[max(found)]
        if first.ifindex != last.ifindex:
            raise NotFound(
                f"v6 default route interface {last.name} must be the same with v4 default route interface {first.name}"
            )
        return Candidate(first)

    def _completed(self, found: Candidate) -> Candidate:
        """With an address of each family in use. Raises: NotFound."""
        first = _candidate(found.link, *self._of(found.link))
        addr, addr6 = found.addr or first.addr, found.addr6 or first.addr6
        for is_used, address, family in ((self._ipv4, addr, "IPv4"), (self._ipv6, addr6, "IPv6")):
            if is_used and address is None:
                raise NotFound(f"failed to find {family} address for interface {found.link.name}")
        if not found.link.mtu:
            raise NotFound(f"failed to determine MTU for {found.link.name} interface")
        return Candidate(found.link, addr, addr6)

    def _link(self, ifindex: int) -> Link | None:
        return next((link for link in self._links if link.ifindex == ifindex), None)

    def _of(self, link: Link) -> Iterator[Address]:
        """The link's usable addresses, the best first."""
        return (at.address for at in self._addresses if at.ifindex == link.ifindex)

    def _inventory(self) -> str:
        """What is there."""
        return ", ".join(f"{link.name}:[{' '.join(str(address) for address in self._of(link))}]" for link in self._links)


def _candidate(link: Link, *addresses: Address) -> Candidate:
    """The link with the first of these addresses of each family."""
    ipv4 = next((address for address in addresses if isinstance(address, IPv4Address)), None)
    ipv6 = next((address for address in addresses if isinstance(address, IPv6Address)), None)
    return Candidate(link, ipv4, ipv6)


def _parse(text: str) -> Address | None:
    """None: it is no address, so it is a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_usable(at: HostAddress) -> bool:
    return not why_no_node(at.address) and not at.flags & (IFA_F_DEPRECATED | IFA_F_DADFAILED)


def _preference(at: HostAddress) -> tuple[bool, bool, bool]:
    """Sorts the better address first; equal ones stay in the kernel's order."""
    return at.address.is_link_local, not at.flags & IFA_F_PERMANENT, bool(at.flags & IFA_F_TEMPORARY)
