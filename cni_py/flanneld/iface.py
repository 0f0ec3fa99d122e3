"""The external interface: the link to the other nodes, and the addresses by which they reach this one.

    find(options, ipv4, ipv6, quiet=False) -> ExternalInterface        Raises: InvalidConfig, KernelRefused

How it works. ``-iface`` (name or address), then ``-iface-regex`` (against addresses, then names), ``-iface-cidr`` (a network of
one of its addresses), ``-iface-node-ip`` (the node's InternalIP in Kubernetes) and ``-iface-can-reach`` (the route of a packet
to an address) are tried in this order; the first that finds a link with an address of each family in use decides. Without any
of them it is the link that has the public address, or the one of the default route. With one of them the public address may be
that of a router which translates it to ours.

Devices of flanneld and the plugins (``own_devices.py``) are skipped, whatever leads to them; one that ``-iface`` names is used.

An address is usable if it is unicast, no loopback and not deprecated. Of several on a link, those of global
scope come first, then permanent ones; temporary ones come last.

Source: flannel-io/flannel pkg/ipmatch/match.go, pkg/ip/iface.go, main.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from cni_py import subnet_env
from cni_py.errors import CniError, InvalidConfig, KernelRefused
from cni_py.flanneld.lease import why_no_node
from cni_py.flanneld.own_devices import own_devices
from cni_py.flanneld.pattern import Pattern
from cni_py.kernel import sysctl
from cni_py.kernel.address import HostAddress, list_host_addresses
from cni_py.kernel.link import list_links
from cni_py.kernel.route import default_interfaces, route_get
from cni_py.netlink.constants import IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_PERMANENT, IFA_F_TEMPORARY
from cni_py.netlink.socket import open_host
from cni_py.node import log as klog

if TYPE_CHECKING:
    from cni_py.flanneld.options import Options
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl

Address = IPv4Address | IPv6Address
_NAME = re.compile(r"[\w.:@-]{1,39}")
"""A link's name or an address."""


@dataclass(frozen=True, slots=True)
class ExternalInterface:
    """``addr`` and ``addr6`` are the link's own, the public ones those that other nodes use; None: not in use.

    ``translated``: families (4, 6) whose public address is a router's, not this host's.
    """

    name: str
    ifindex: int
    mtu: int
    addr: IPv4Address | None
    addr6: IPv6Address | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    translated: frozenset[int] = frozenset()

    def source(self, version: int) -> Address | None:
        """The address that a tunnel's packets are sent from: the public one, unless this host does not have it."""
        own, public = (self.addr, self.public_ip) if version == 4 else (self.addr6, self.public_ipv6)
        return own if version in self.translated else public


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

    Raises: InvalidConfig, with what was searched for and what exists; KernelRefused.
    """
    say, warn = (_nothing, _nothing) if quiet else (klog.info, klog.warning)
    with open_host() as host:
        search = _Search(host, ipv4, ipv6, say, _gateways(options.subnet_file))
        found = search.run(options)
    if own := search.own.get(found.link.ifindex):
        warn(f"-iface names {found.link.name}, which is {own}: no packet to another node leaves through it")
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
            search.check_public(public, found.link)
    translated = frozenset(public.version for public in (public_ip, public_ipv6) if public and not search.has(public))
    link = found.link
    return ExternalInterface(link.name, link.ifindex, link.mtu, addr, addr6, public_ip, public_ipv6, translated)


def _gateways(path: str) -> frozenset[Address]:
    """The pods' gateways by subnet.env, which their bridge has; none where there is no such file."""
    try:
        return frozenset(subnet.network_address + 1 for subnet in subnet_env.read(path).subnets)
    except CniError:
        return frozenset()


def _nothing(_: str) -> None:
    pass


class _Search:
    """One look at the links and addresses of the host, and the ways to choose among them."""

    def __init__(
        self, host: Rtnl, ipv4: bool, ipv6: bool, say: Callable[[str], None], gateways: frozenset[Address] = frozenset()
    ) -> None:
        self._host, self._ipv4, self._ipv6, self._say = host, ipv4, ipv6, say
        self._links = sorted(list_links(host), key=lambda link: link.ifindex)
        self._all_addresses = list_host_addresses(host)
        self._addresses = sorted(filter(_is_usable, self._all_addresses), key=_preference)
        self.own = own_devices(self._links, self._all_addresses, gateways)
        """The links that flanneld and the plugins created, and what each of them is, by ifindex."""
        self._others = [link for link in self._links if link.ifindex not in self.own]

    def has(self, address: Address) -> bool:
        """Return whether a link of this host has it."""
        return any(at.address == address for at in self._all_addresses)

    def check_public(self, address: Address, chosen: Link) -> None:
        """Raises: InvalidConfig where it is an address of one of our own devices, unless that one was chosen by its name."""
        for at in self._all_addresses:
            link = self._link(at.ifindex) if at.address == address and at.ifindex != chosen.ifindex else None
            if link is not None and link.ifindex in self.own:
                words = f"the public address {address} is that of {link.name}, which is {self.own[link.ifindex]}"
                raise InvalidConfig(
                    words, hint="no other node reaches this one by it; leave -public-ip out, or see: ip -br addr"
                )

    def run(self, options: Options) -> Candidate:
        """Raises: InvalidConfig."""
        ways = [
            *((f"-iface {key}", self._by_key, key) for key in options.iface),
            *((f"-iface-regex {pattern}", self._by_pattern, pattern) for pattern in options.iface_regex),
            *((f"-iface-cidr {network}", self._by_network, network) for network in options.iface_cidr),
            *((f"-iface-node-ip {address}", self._by_address, address) for address in options.node_addresses),
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
        candidates = [self._by_address(address) for address in public]
        first, last = candidates[0], candidates[-1]
        if first.link.ifindex != last.link.ifindex:
            raise NotFound(f"v6 interface {last.link.name} must be the same with v4 interface {first.link.name}")
        return Candidate(first.link, first.addr, last.addr6)

    def _by_key(self, key: str) -> Candidate:
        """Find it by address or name. Raises: NotFound."""
        address = _parse(key)
        if address is not None:
            return self._by_address(key)
        named = [link for link in self._links if link.name == key]
        if named:
            return Candidate(named[0])
        raise NotFound(f"error looking up interface {key}: no such network interface{_several(key)}")

    def _by_address(self, text: str) -> Candidate:
        """The link with this address. Raises: NotFound."""
        address = ip_address(text)
        self._say(f"Searching for interface using {address}")
        what, family = ("interface", "IP") if address.version == 4 else ("v6 interface", "IPv6")
        for at in self._addresses:
            link = self._link(at.ifindex) if at.address == address else None
            if link is not None and link.ifindex in self.own:
                raise NotFound(f"error looking up {what} {address}: {self._refused(link)}")
            if link is not None:
                return _candidate(link, address)
        raise NotFound(f"error looking up {what} {address}: no interface with given {family} found")

    def _by_pattern(self, pattern: str) -> Candidate:
        """The first link that has a matching address of each family in use, else a matching name. Raises: NotFound."""
        regex = Pattern(pattern)
        for link in self._others:
            matching = [address for address in self._of(link) if regex.matches(str(address))]
            if self._is_complete(_candidate(link, *matching)):
                return _candidate(link, *matching)
        named = [link for link in self._others if regex.matches(link.name)]
        for link in named:  # "eth1" matches "veth1a2b" too, a pod's, which has no address
            if self._is_complete(_candidate(link, *self._of(link))):
                return Candidate(link)
        if named:
            return Candidate(named[0])
        words = f"could not match pattern {pattern} to any of the available network interfaces"
        raise NotFound(f"{words} ({self._inventory()}){_several(pattern)}")

    def _by_network(self, text: str) -> Candidate:
        """The first link with an address in this network. Raises: NotFound."""
        network = ip_network(text)
        for link in self._others:
            inside = [address for address in self._of(link) if address in network]
            if inside:
                return _candidate(link, *inside)
        raise NotFound(f"no interface has an address in {network} ({self._inventory()})")

    def _refused(self, link: Link) -> str:
        return f"{link.name} is {self.own[link.ifindex]}, which leads to no other node"

    def _is_complete(self, found: Candidate) -> bool:
        return bool((found.addr or not self._ipv4) and (found.addr6 or not self._ipv6))

    def _by_way(self, text: str) -> Candidate:
        """Find the link by which a packet to this address leaves. Raises: NotFound."""
        self._say(f"Determining interface to use based on given ifcanreach: {text}")
        address = ip_address(text)
        way = route_get(self._host, address.packed)
        link = self._link(way.ifindex) if way else None
        if way is None or link is None:
            raise NotFound(f"failed to get ifcanreach based interface: couldn't lookup route to {address}: there is none")
        if link.ifindex in self.own:
            raise NotFound(f"failed to get ifcanreach based interface: the route to {address} is over {self._refused(link)}")
        return _candidate(link, way.source) if way.source and not why_no_node(way.source) else Candidate(link)

    def _by_default_route(self) -> Candidate:
        """Raises: NotFound."""
        self._say("Determining IP address of default interface")
        found: dict[int, Link] = {}
        for version, what in ((4, ""), (6, "v6 ")):
            if not (self._ipv4 if version == 4 else self._ipv6):
                continue
            links = [link for link in map(self._link, default_interfaces(self._host, version)) if link is not None]
            if not links:
                raise NotFound(f"failed to get default {what}interface: unable to find default {what}route")
            others = [link for link in links if link.ifindex not in self.own]
            if not others:
                raise NotFound(
                    f"failed to get default {what}interface: the default {what}route is over {self._refused(links[0])}"
                )
            found[version] = others[0]
        first, last = found[min(found)], found[max(found)]
        if first.ifindex != last.ifindex:
            raise NotFound(
                f"v6 default route interface {last.name} must be the same with v4 default route interface {first.name}"
            )
        return Candidate(first)

    def _completed(self, found: Candidate) -> Candidate:
        """Return it with an address of each family in use. Raises: NotFound."""
        first = _candidate(found.link, *self._of(found.link))
        addr, addr6 = found.addr or first.addr, found.addr6 or first.addr6
        for is_used, address, family in ((self._ipv4, addr, "IPv4"), (self._ipv6, addr6, "IPv6")):
            if is_used and address is None:
                why = _why_no_ipv6(found.link.name) if family == "IPv6" else ""
                raise NotFound(f"failed to find {family} address for interface {found.link.name}{why}")
        if not found.link.mtu:
            raise NotFound(f"failed to determine MTU for {found.link.name} interface")
        return Candidate(found.link, addr, addr6)

    def _link(self, ifindex: int) -> Link | None:
        return next((link for link in self._links if link.ifindex == ifindex), None)

    def _of(self, link: Link) -> Iterator[Address]:
        """The link's usable addresses, the best first."""
        return (at.address for at in self._addresses if at.ifindex == link.ifindex)

    def _inventory(self) -> str:
        """Describe all links with their usable addresses."""
        return ", ".join(f"{link.name}:[{' '.join(str(address) for address in self._of(link))}]" for link in self._links)


def _why_no_ipv6(name: str) -> str:
    """Return the command that enables IPv6 on an interface, if it is disabled."""
    path = f"net/ipv6/conf/{name}/disable_ipv6"
    try:
        is_disabled = sysctl.read(path) == "1"
    except KernelRefused:
        return ": this host has no IPv6"
    return f": IPv6 is disabled on it: sysctl -w {path}=0" if is_disabled else ""


def _candidate(link: Link, *addresses: Address) -> Candidate:
    """The link with the first of these addresses of each family."""
    ipv4 = next((address for address in addresses if isinstance(address, IPv4Address)), None)
    ipv6 = next((address for address in addresses if isinstance(address, IPv6Address)), None)
    return Candidate(link, ipv4, ipv6)


def _several(text: str) -> str:
    """A hint where the text may be a list."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or not all(_NAME.fullmatch(part) for part in parts):
        return ""
    return f"; for several the option is repeated: {' '.join(f'-iface={part}' for part in parts)}"


def _parse(text: str) -> Address | None:
    """Return the address; None: it is a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_usable(at: HostAddress) -> bool:
    return not why_no_node(at.address) and not at.flags & (IFA_F_DEPRECATED | IFA_F_DADFAILED)


def _preference(at: HostAddress) -> tuple[bool, bool, bool]:
    """Sorts the better address first; equal ones stay in the kernel's order."""
    return at.address.is_link_local, not at.flags & IFA_F_PERMANENT, bool(at.flags & IFA_F_TEMPORARY)
