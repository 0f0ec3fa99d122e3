"""Order of allocation: pure arithmetic on addresses, without file access.

A *range* is a part of a subnet, a *range set* some ranges of one family; an attachment gets one
address of each set. The order is round robin: start after the last allocated address, go through the other
ranges, and end with that address itself, so that a released one is not reused immediately.

Source: plugins/ipam/host-local/backend/allocator (range.go, range_set.go, allocator.go) of
containernetworking/plugins, whose rules and error sentences these are.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

from cni_py.errors import InvalidConfig
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

    Address = IPv4Address | IPv6Address
    AddressWithPrefix = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network

_SHOWN = 80
"""Maximum length of an invalid value in an error."""


class Range(Value):
    """Addresses from ``start`` to ``end``, both included and both in ``subnet``; ``gateway`` is never allocated."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address

    def __contains__(self, address: Address) -> bool:
        return address.version == self.start.version and int(self.start) <= int(address) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    def overlaps(self, other: Range) -> bool:
        return other.start in self or self.start in other

    def capacity(self) -> int:
        """Number of addresses that can be allocated."""
        return int(self.end) - int(self.start) + 1 - (self.gateway in self)


class RangeSet(Value):
    """Ranges of one family that do not overlap."""

    ranges: tuple[Range, ...]

    def __contains__(self, address: Address) -> bool:
        return self.range_of(address) is not None

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    @property
    def version(self) -> int:
        """IP version, 4 or 6."""
        return self.ranges[0].start.version

    def range_of(self, address: Address) -> Range | None:
        return next((r for r in self.ranges if address in r), None)

    def overlaps(self, other: RangeSet) -> bool:
        return any(mine.overlaps(its) for mine in self.ranges for its in other.ranges)

    def can_give(self, address: Address) -> bool:
        """Return whether it is in a range and is not that range's gateway."""
        r = self.range_of(address)
        return r is not None and address != r.gateway

    def capacity(self) -> int:
        """Number of addresses that can be allocated."""
        return sum(r.capacity() for r in self.ranges)

    def candidates(self, last: Address | None = None) -> Iterator[tuple[Range, Address]]:
        """Yield every address that can be allocated, once, in the order to try them.

        The cost is proportional to the number of addresses consumed, however large the ranges are.

        Args:
            last: the last allocated address; ``None``, or one outside the ranges: start with the first range.
        """
        kind = type(self.ranges[0].start)
        for r, first, end in self._spans(last):
            gateway = int(r.gateway) if r.gateway.version == self.version else -1
            for number in range(first, end + 1):
                if number != gateway:
                    yield r, kind(number)

    def _spans(self, last: Address | None) -> list[tuple[Range, int, int]]:
        """Return the ranges in order; the one with ``last`` is split: the part after it first, the rest at the end."""
        spans = [(r, int(r.start), int(r.end)) for r in self.ranges]
        begin = next((i for i, r in enumerate(self.ranges) if last is not None and last in r), None)
        if begin is None:
            return spans
        r, first, end = spans[begin]
        after = int(last) + 1  # type: ignore[arg-type]  # it is in a range, so it is an address
        return [(r, after, end), *spans[begin + 1 :], *spans[:begin], (r, first, after - 1)]


def as_address(text: str) -> Address | None:
    """Parse an address, an IPv4 address in IPv6 form as IPv4; None if the text is invalid (or has a zone)."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    return None if address.scope_id is not None else address.ipv4_mapped or address


def parse_address(text: str) -> Address:
    """Parse an address. Raises: InvalidConfig."""
    address = as_address(text)
    if address is None:
        raise InvalidConfig(f"invalid IP address {text[:_SHOWN]}")
    return address


def parse_cidr(text: str) -> AddressWithPrefix:
    """Parse ``address/bits``; neither a netmask nor a bare address is accepted, as in Go. Raises: InvalidConfig."""
    address, _, bits = text.partition("/")
    if not (bits.isascii() and bits.isdigit()) or "%" in address:
        raise InvalidConfig(f"invalid CIDR address: {text[:_SHOWN]}")
    try:
        return ip_interface(text)
    except ValueError as error:
        raise InvalidConfig(f"invalid CIDR address: {text[:_SHOWN]}", str(error)[:_SHOWN]) from error


def parse_range(subnet: str, start: str = "", end: str = "", gateway: str = "") -> Range:
    """Build a range; empty values get their default. Raises: InvalidConfig.

    Defaults: the gateway is the subnet's first address; the range is the subnet without the network
    address and, in IPv4, the broadcast address, which ``start`` and ``end`` may name.
    """
    network = _parse_subnet(subnet)
    first, last = network.network_address + 1, network.broadcast_address - (network.version == 4)
    of_start = parse_address(start) if start else first
    of_end = parse_address(end) if end else last
    is_backwards = of_start.version == of_end.version and int(of_start) > int(of_end)
    if start and (of_start not in network or (end and is_backwards)):
        raise InvalidConfig(f"RangeStart {of_start} not in network {network}", f"rangeEnd is {of_end}" if end else "")
    if end and (of_end not in network or is_backwards):
        raise InvalidConfig(f"RangeEnd {of_end} not in network {network}", f"rangeStart is {of_start}")
    if is_backwards:
        raise InvalidConfig(f"RangeStart {of_start} is after {of_end}, the last address of {network}", hint='set "rangeEnd"')
    return Range(network, of_start, of_end, parse_address(gateway) if gateway else first)


def parse_range_sets(sets: Iterable[Sequence[tuple[str, str, str, str]]]) -> tuple[RangeSet, ...]:
    """Build range sets from the texts (subnet, rangeStart, rangeEnd, gateway) of each range. Raises: InvalidConfig."""
    out: list[RangeSet] = []
    for index, texts in enumerate(sets):
        try:
            out.append(_parse_range_set(texts))
        except InvalidConfig as error:
            raise InvalidConfig(f"invalid range set {index}: {error.msg}", error.details, error.hint) from error
    for i, one in enumerate(out):
        for j, other in enumerate(out[i + 1 :], i + 1):
            if one.overlaps(other):
                raise InvalidConfig(f"range set {i} overlaps with {j}", f"{one} and {other}")
    return tuple(out)


def _parse_range_set(texts: Sequence[tuple[str, str, str, str]]) -> RangeSet:
    ranges = tuple(parse_range(*each) for each in texts)
    if not ranges:
        raise InvalidConfig("empty range set")
    if len({r.start.version for r in ranges}) > 1:
        raise InvalidConfig("mixed address families", hint="use one range set per family")
    for i, one in enumerate(ranges):
        for other in ranges[i + 1 :]:
            if one.overlaps(other):
                raise InvalidConfig(f"subnets {one} and {other} overlap")
    return RangeSet(ranges)


def _parse_subnet(text: str) -> Network:
    if not text:
        raise InvalidConfig('missing "subnet" of a range')
    interface = parse_cidr(text)
    network = interface.network
    if network.prefixlen > network.max_prefixlen - 2:
        raise InvalidConfig(f"Network {text} too small to allocate from")
    if isinstance(interface, IPv6Address) and interface.ipv4_mapped:
        raise InvalidConfig("IPNet IP and Mask version mismatch", text)
    if interface.ip != network.network_address:
        right = f"For a subnet mask of length {network.prefixlen} the network address is {network.network_address}"
        raise InvalidConfig(f"Network has host bits set. {right}", text)
    return network
