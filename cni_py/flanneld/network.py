"""The network's configuration: the JSON object that etcd has at ``<prefix>/config``, or a file.

It is validated as a whole: an error names every key that is wrong. What may be left out is filled in
(length, first and last subnet), and a family that is not enabled has none of its values. The keys of
``Backend`` are the back ends' (``backends/``).

Source: flannel-io/flannel pkg/subnet/config.go; its sentences are kept, for people search for them.
"""

from __future__ import annotations

import json
import re
import select
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from cni_py.errors import InvalidConfig
from cni_py.flanneld.host_networks import HostNetwork, HostNetworks, overlapping
from cni_py.flanneld.untrusted import decode
from cni_py.kernel.address import is_within
from cni_py.node.log import shortened
from cni_py.spelling import meant

if TYPE_CHECKING:
    from cni_py.flanneld.lease import Subnets

MAX_BYTES = 1 << 20
STDIN, STDIN_FD = ("-", "/dev/stdin"), 0
DEFAULT_BACKEND = "udp"  # Go-compatible: pkg/subnet/config.go; its documentation says vxlan
INVALID = "the network configuration is invalid"
_CIDR = re.compile(r"[\da-fA-F.:]+/\d{1,3}")


def _network4(value: object) -> IPv4Network:
    network = _network(value)
    if isinstance(network, IPv4Network):
        return network
    raise ValueError("invalid IPv4 CIDR format")


def _network6(value: object) -> IPv6Network:
    network = _network(value)
    if isinstance(network, IPv6Network):
        return network
    raise ValueError("invalid IPv6 CIDR format")


def _network(value: object) -> IPv4Network | IPv6Network:
    """Clear the host's bits, as Go does. Python alone would take a netmask, a zone or no length at all too."""
    try:
        if isinstance(value, str) and _CIDR.fullmatch(value):
            return ip_network(value, strict=False)
    except ValueError:
        pass
    raise ValueError("invalid CIDR address")


def _address4(value: object) -> IPv4Address:
    if isinstance(value, str) and isinstance(address := ip_address(value), IPv4Address):
        return address
    raise ValueError("invalid IPv4 address format")


def _address6(value: object) -> IPv6Address:
    if isinstance(value, str) and isinstance(address := ip_address(value), IPv6Address) and not address.scope_id:
        return address
    raise ValueError("invalid IPv6 address format")


def _length4(length: int) -> int:
    if length > 30:
        raise ValueError("SubnetLen must be less than /31")
    return length


def _length6(length: int) -> int:
    if length > 126:
        raise ValueError("SubnetLen must be less than /127")
    return length


def _backend(value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError('it is an object such as {"Type": "vxlan"}')


class NetworkConfig(BaseModel):
    """The result of :meth:`parse`."""

    model_config = ConfigDict(frozen=True)

    enable_ipv4: StrictBool = Field(True, alias="EnableIPv4", description="Pods have IPv4 addresses.")
    enable_ipv6: StrictBool = Field(
        False,
        alias="EnableIPv6",
        description="Pods have IPv6 addresses: with `EnableIPv4` dual stack, with `EnableIPv4: false` IPv6 only.",
    )
    enable_nftables: StrictBool = Field(
        False,
        alias="EnableNFTables",
        description="true: masquerade by nftables; false: by iptables. Default: nftables if it works.",
    )
    network: Annotated[IPv4Network | None, BeforeValidator(_network4)] = Field(
        None, alias="Network", description="IPv4 network of all pods; required for IPv4."
    )
    subnet_len: Annotated[StrictInt, AfterValidator(_length4)] = Field(
        0,
        alias="SubnetLen",
        ge=0,
        description="Prefix length of a node's subnet. Default: 24, or a quarter of the network if it is smaller than /22.",
    )
    subnet_min: Annotated[IPv4Address | None, BeforeValidator(_address4)] = Field(
        None, alias="SubnetMin", description="First subnet. Default: the second one of `Network`."
    )
    subnet_max: Annotated[IPv4Address | None, BeforeValidator(_address4)] = Field(
        None, alias="SubnetMax", description="Last subnet. Default: the last one of `Network`."
    )
    ipv6_network: Annotated[IPv6Network | None, BeforeValidator(_network6)] = Field(
        None, alias="IPv6Network", description="IPv6 network of all pods; required for IPv6."
    )
    ipv6_subnet_len: Annotated[StrictInt, AfterValidator(_length6)] = Field(
        0,
        alias="IPv6SubnetLen",
        ge=0,
        description="As `SubnetLen`, for IPv6. Default: 64, or a quarter of the network if it is smaller than /62.",
    )
    ipv6_subnet_min: Annotated[IPv6Address | None, BeforeValidator(_address6)] = Field(
        None, alias="IPv6SubnetMin", description="As `SubnetMin`, for IPv6."
    )
    ipv6_subnet_max: Annotated[IPv6Address | None, BeforeValidator(_address6)] = Field(
        None, alias="IPv6SubnetMax", description="As `SubnetMax`, for IPv6."
    )
    backend: Annotated[dict[str, Any], BeforeValidator(_backend)] = Field(
        {},
        alias="Backend",
        repr=False,
        description="Transport to the other nodes: an object with `Type` and the keys of that back end. "
        'Default: `{"Type": "udp"}`, with a warning.',
    )
    """The back end's keys, which are not shown: WireGuard's has a secret."""
    backend_type: str = DEFAULT_BACKEND
    """Type in lower case."""
    warnings: tuple[str, ...] = ()
    """Warnings about what is accepted, and probably not what was meant."""

    host_networks: tuple[HostNetwork, ...] = ()
    """Networks of the host's own links, of which no subnet is to be chosen."""
    may_overlap: bool = False

    @property
    def ipv4(self) -> bool:
        return self.network is not None

    @property
    def ipv6(self) -> bool:
        return self.ipv6_network is not None

    def on_host(self, host: HostNetworks) -> NetworkConfig:
        """Return the same with the host's networks that overlap it."""
        near = [each for network in self.networks for each in overlapping(network, host.found)]
        return self.model_copy(update={"host_networks": tuple(near), "may_overlap": not host.refuses})

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """Networks of all pods, one per family."""
        return [network for network in (self.network, self.ipv6_network) if network is not None]

    def holds(self, subnets: Subnets) -> bool:
        """Return whether they are in the pods' networks; a family that is not in use does not count."""
        ipv4, ipv6 = subnets.ipv4, subnets.ipv6
        return (ipv4 is None or self.network is None or is_within(ipv4, self.network)) and (
            ipv6 is None or self.ipv6_network is None or is_within(ipv6, self.ipv6_network)
        )

    def __str__(self) -> str:
        parts = []
        if self.network:
            parts.append(f"{self.network}: subnets of /{self.subnet_len}, {self.subnet_min} to {self.subnet_max}")
        if self.ipv6_network:
            parts.append(
                f"{self.ipv6_network}: subnets of /{self.ipv6_subnet_len}, {self.ipv6_subnet_min} to {self.ipv6_subnet_max}"
            )
        return "; ".join([*parts, f"back end {self.backend_type}"])

    @classmethod
    def parse(cls, text: str) -> NetworkConfig:
        """Raises: InvalidConfig; ``details`` has a line for each key that is wrong."""
        written, unknown = _known(_decode(text))
        faults: dict[str, str] = {}
        try:
            config = cls.model_validate(written)
        except ValidationError as error:
            faults = {str(fault["loc"][0]): _in_words(fault["msg"], fault["input"]) for fault in error.errors()}
            config = cls.model_validate({key: value for key, value in written.items() if key not in faults})
        updates: dict[str, Any] = {}
        for family in _FAMILIES:
            if family.keys.isdisjoint(faults):
                updates |= family.complete(config, faults)
        if not config.enable_ipv4 and not config.enable_ipv6 and "EnableIPv6" not in faults:
            faults["EnableIPv4"] = "none defined stack: neither this nor EnableIPv6 is true"
        if "Backend" in written and "Backend" not in faults:
            updates["backend_type"] = _backend_type(config.backend, faults)
        if faults:
            raise InvalidConfig(INVALID, "\n".join(f'"{key}": {fault}' for key, fault in faults.items()))
        return config.model_copy(update=updates | {"warnings": _warnings(config, written, unknown)})


_KEYS = {field.alias.lower(): field.alias for field in NetworkConfig.model_fields.values() if field.alias}
_NULL_IS_NOTHING = frozenset(_KEYS.values()) - {"Network", "IPv6Network", "SubnetMin", "SubnetMax", "Backend"}


def read_text(source: str) -> str:
    """The text of a configuration: of a file, or of standard input (``-``). Raises: OSError; ValueError where it is no text.

    The writer of a pipe is waited for, also where the pipe itself does not wait.
    """
    content, is_ours = b"", source not in STDIN
    with open(source if is_ours else STDIN_FD, "rb", buffering=0, closefd=is_ours) as file:
        while (block := file.read(MAX_BYTES + 1 - len(content))) != b"":
            if block is None:
                select.select([file], [], [])
            else:
                content += block
    return content.decode()


# ---- JSON -------------------------------------------------------------------------------------


def _decode(text: str) -> list[tuple[str, Any]]:
    """The members of the object, in order and with repetitions. Raises: InvalidConfig."""
    if len(text) > MAX_BYTES:
        raise InvalidConfig(f"the network configuration is larger than {MAX_BYTES} bytes")
    try:
        found = decode(text, MAX_BYTES, pairs_hook=_Members, constant_hook=_refuse)
    except ValueError as error:
        raise InvalidConfig("the network configuration is no JSON", str(error)) from error
    if not isinstance(found, _Members):
        raise InvalidConfig(
            f"the network configuration is a JSON {type(found).__name__}, not an object",
            hint='the smallest one is {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}',
        )
    return found.pairs


class _Members(dict[str, Any]):
    """An object that still knows its members in the order in which they were written."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.pairs = list(pairs)
        super().__init__()
        for key, value in self.pairs:
            self.pop(key, None)  # the last of equal keys counts, at its place: a back end's keys are taken in any case, too
            self[key] = value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _known(members: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Values by key, and unknown keys.

    Go-compatible: encoding/json takes keys in any case, the last of equal ones, and some nulls as nothing.
    """
    known: dict[str, Any] = {}
    unknown = []
    for name, value in members:
        key = _KEYS.get(name.lower())
        if key is None:
            unknown.append(name)
        elif value is not None or key not in _NULL_IS_NOTHING:
            known[key] = value
    return known, unknown


def _in_words(message: str, found: object) -> str:
    return f"{message.removeprefix('Value error, ')}, not {json.dumps(found)[:80]}"


def _backend_type(backend: Mapping[str, Any], faults: dict[str, str]) -> str:
    named = [value for key, value in backend.items() if key.lower() == "type"]
    if named and isinstance(named[-1], str) and named[-1]:
        return named[-1].lower()
    faults["Backend.Type"] = f"it is a name such as vxlan, not {json.dumps(named[-1])[:80]}" if named else "it is missing"
    return ""


def _warnings(config: NetworkConfig, written: Mapping[str, Any], unknown: Iterable[str]) -> tuple[str, ...]:
    lines = [
        f'"{shortened(name)}" is no key of a network configuration and has no effect{meant(name, _KEYS.values())}'
        for name in unknown
    ]
    for family in _FAMILIES:
        idle = [key for key in written if key in family.keys and key != family.enable]
        if idle and not family.is_enabled(config):
            lines.append(f'"{idle[0]}" has no effect: {family.enable} is false')
    if "Backend" not in written:
        lines.append(f'no "Backend", so it is {DEFAULT_BACKEND}, as in Go flannel: slow. Mostly {{"Type": "vxlan"}} is meant')
    return tuple(lines)


# ---- ranges -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """Differences of a family's keys and sizes differ from the other's."""

    enable: str
    prefix: str
    usual_length: int
    bits: int
    own_name: str

    @property
    def keys(self) -> frozenset[str]:
        return frozenset((self.enable, *(self.prefix + name for name in ("Network", "SubnetLen", "SubnetMin", "SubnetMax"))))

    def is_enabled(self, config: NetworkConfig) -> bool:
        return config.enable_ipv6 if self.prefix else config.enable_ipv4

    def complete(self, config: NetworkConfig, faults: dict[str, str]) -> dict[str, Any]:
        """The family's fields with what was left out; what is wrong goes to ``faults``."""
        before = self.prefix.lower() + ("_" if self.prefix else "")
        names = [before + name for name in ("network", "subnet_len", "subnet_min", "subnet_max")]
        if not self.is_enabled(config):
            return dict(zip(names, (None, 0, None, None), strict=True))
        network, length, low, high = (getattr(config, name) for name in names)
        if network is None or network.prefixlen == 0:  # Go-compatible: 0.0.0.0/0 is its word for nothing
            faults[f"{self.prefix}Network"] = f"please define a correct {self.prefix}Network parameter in the flannel config"
            return {}
        key, fault = self._fault_of_length(network, length)
        if fault:
            faults[key] = fault
            return {}
        length = length or max(self.usual_length, network.prefixlen + 2)
        step = 1 << self.bits - length
        low = low if low is not None else network.network_address + step
        high = high if high is not None else network.network_address + (network.num_addresses - step)
        for name, address in (("SubnetMin", low), ("SubnetMax", high)):
            if address not in network:
                faults[self.prefix + name] = f"{self.prefix}{name} is not in the range of the {self.prefix}Network: {address}"
            elif int(address) % step:
                faults[self.prefix + name] = f"{self.prefix}{name} is not on a SubnetLen boundary: {address}"
        if low > high and self.keys.isdisjoint(faults):
            faults[f"{self.prefix}SubnetMax"] = f"{high} comes before {self.prefix}SubnetMin, {low}"
        return dict(zip(names, (network, length, low, high), strict=True))

    def _fault_of_length(self, network: IPv4Network | IPv6Network, length: int) -> tuple[str, str]:
        """The key, and what is wrong with it."""
        if 0 < length < network.prefixlen + 2:
            return f"{self.prefix}SubnetLen", f"network must be able to accommodate at least four subnets: it is {network}"
        if not length and network.prefixlen > self.bits - 4:
            return f"{self.prefix}Network", f"{self.own_name} is too small. Minimum useful network prefix is /{self.bits - 4}"
        return "", ""


_FAMILIES = (
    _Family("EnableIPv4", "", 24, 32, "network"),
    _Family("EnableIPv6", "IPv6", 64, 128, "IPv6Network"),
)
