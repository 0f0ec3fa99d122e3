"""The back ends, a module each: what it publishes, and what it desires the kernel to hold.

A module has ``TYPE`` (as in the network configuration), ``Config`` (the keys of its Backend object, with
``check_network`` where not every network suits them) and ``Backend(config, network, external)``, a :class:`Backend`. Making one
reads and changes nothing; :meth:`Backend.prepare` does. After that what a lease means is a pure function of the lease.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from threading import Event
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_pascal

from cni_py.errors import InvalidConfig
from cni_py.node.log import shortened
from cni_py.spelling import meant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Attributes, Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.kernel.device import Device
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.desired import Entry
    from cni_py.node.stop import Stop

    Change = tuple[Lease | None, Lease | None]
    """A peer's lease before and now; None: there was none, there is none."""

MODULES = {
    "vxlan": "vxlan",
    "host-gw": "host_gw",
    "alloc": "alloc",
    "udp": "udp",
    "extension": "extension",
    "ipip": "ipip",
    "wireguard": "wireguard",
}

DEVICES = (("vxlan", "flannel."), ("vxlan", "flannel-v6."), ("wireguard", "flannel-wg"), ("ipip", "flannel.ipip"))
"""The kinds and names of devices that stay when flanneld ends."""
MIN_MTU = {4: 576, 6: 1280}
"""Bytes that a pod's packet must be allowed to have, by its family."""
ENDING = Event()
"""Set permanently when flanneld is to end, in whatever thread: what a back end waits for it gives up."""

_SECRET = ("PSK",)


class BackendConfig(BaseModel):
    """The Backend object of a network configuration. Keys are Go's, in whatever case; unknown ones are accepted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", alias_generator=to_pascal, populate_by_name=True)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Any:
        """Raises: InvalidConfig, with each key that is wrong."""
        aliases = cls._aliases()
        known = {aliases[key.lower()]: value for key, value in raw.items() if key.lower() in aliases and value is not None}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            faults = [f'"Backend.{e["loc"][0]}": {e["msg"]}{_found(e)}' for e in error.errors(include_url=False)]
            raise InvalidConfig(f"the network configuration is invalid: {faults[0]}", "; ".join(faults[1:])) from error

    @classmethod
    def unknown(cls, raw: dict[str, Any]) -> list[str]:
        """Return keys that no flanneld reads: typing errors, mostly."""
        return [key for key in raw if key.lower() not in cls._aliases() and key.lower() != "type"]

    @classmethod
    def keys(cls) -> list[str]:
        """Return every key, as it is written."""
        return list(cls._aliases().values())

    @classmethod
    def _aliases(cls) -> dict[str, str]:
        """Return the keys as they are written, by lower case."""
        return {(field.alias or name).lower(): field.alias or name for name, field in cls.model_fields.items()}

    def commands(self) -> list[str]:
        """Return the keys whose values are commands that are run."""
        return []

    def check_network(self, network: NetworkConfig) -> None:
        """Check what no node could use in this network, whatever its interface. Raises: InvalidConfig, UnsupportedField."""


def _found(fault: Any) -> str:
    """The value that is wrong; a key is never shown."""
    return "" if fault["loc"][0] in _SECRET else f", not {fault['input']!r:.80}"


class Backend(ABC):
    """A back end as the daemon needs it. ``mtu``: what a pod's packet may be, FLANNEL_MTU."""

    mtu: int

    def prepare(self, rtnl: Rtnl, former: Attributes | None) -> None:  # noqa: B027 — as all that follow: not every one needs it
        """Read and open what the other methods go by; called once, before there is a lease. Raises: CniError.

        So a kernel that lacks what it needs is refused before others receive the node's lease. ``former``: what the node's last
        lease said, before a reboot it may be.
        """

    @property
    def devices(self) -> Sequence[Device]:
        """The devices that are kept for it; after :meth:`prepare`."""
        return ()

    @abstractmethod
    def attributes(self) -> Attributes:
        """Return what the own lease says; after :meth:`prepare`."""

    def own_entries(self, own: Lease) -> Sequence[Entry]:  # noqa: ARG002
        """Return what the node itself needs, whatever peers there are: addresses, kernel parameters, routes. Pure."""
        return ()

    def peer_entries(self, lease: Lease) -> Iterable[tuple[int, Sequence[Entry]]]:  # noqa: ARG002
        """Return what leads to a peer, by family: all of a family's entries, or none of them, are made. Pure."""
        return ()

    def faults(self, lease: Lease) -> Iterable[tuple[int, str]]:  # noqa: ARG002
        """Return why the node of a lease is not reached, by family , as warnings. Pure."""
        return ()

    def follow(self, own: Lease, changes: Sequence[Change]) -> None:  # noqa: B027
        """Follow what are no entries of the kernel's tables: WireGuard's peers, commands. Called once for each change.
        Raises: CniError."""

    def run(self, stop: Stop) -> None:  # noqa: B027
        """Work until ``stop``, in a thread of its own."""

    def close(self) -> None:  # noqa: B027
        """Close what the next session opens again. Twice is fine."""

    def cleanup(self) -> None:  # noqa: B027
        """Remove what it made, for ``flanneld --cleanup``; devices and routes are removed by their names. Raises: CniError."""


def create(network: NetworkConfig, external: ExternalInterface) -> Backend:
    """The back end that the configuration names. Raises: InvalidConfig, UnsupportedField, KernelRefused."""
    backend: Backend = _module(network).Backend(check(network), network, external)
    return backend


def check(network: NetworkConfig) -> Any:
    """The back end's Config: there is such a back end, and its keys are right. Raises: InvalidConfig, UnsupportedField."""
    config = _module(network).Config.parse(network.backend)
    config.check_network(network)
    return config


def is_device(link: Link) -> bool:
    """Return whether a flanneld of whatever configuration made this link."""
    return any(link.kind == kind and link.name.startswith(prefix) for kind, prefix in DEVICES)


def pod_mtu(outer: int, overhead: int, version: int, what: str) -> int:
    """Return what a tunnel leaves of an MTU, which is that of ``what``, for a pod's packet. Raises: InvalidConfig."""
    mtu = outer - overhead
    if mtu < MIN_MTU[version]:
        raise InvalidConfig(
            f"an MTU of {mtu} bytes is too small for IPv{version} pods",
            f"{what} is {outer}, of which the tunnel takes {overhead}, and pods need {MIN_MTU[version]}",
        )
    return mtu


def lacks(lease: Lease, version: int) -> str:
    """Return what a lease lacks for its node to be reached by this family; empty: nothing."""
    subnets, its = lease.subnets, lease.attributes
    subnet, address = (subnets.ipv4, its.public_ip) if version == 4 else (subnets.ipv6, its.public_ipv6)
    if subnet is not None and address is not None:
        return ""
    what = f"public IPv{version} address" if subnet else f"IPv{version} subnet"
    return f"the lease of {lease.subnets} has no {what}; not reached by IPv{version}"


def families_lacking(lease: Lease, versions: Iterable[int]) -> list[tuple[int, str]]:
    """Return :func:`lacks` of each of these families, where something is missing."""
    return [(version, text) for version in versions if (text := lacks(lease, version))]


def of_other_type(lease: Lease, backend: str, versions: Iterable[int], ignoring: str = "Ignoring") -> list[tuple[int, str]]:
    """Return the faults of a lease of another back end, in Go's words; a reservation has none before its node uses it."""
    if lease.is_unused_reservation:
        return []
    subnets = [subnet for version in versions for subnet in lease.subnets.only(version).each()]
    theirs = lease.attributes.backend_type
    return [(each.version, f"{ignoring} non-{backend} subnet {each}: type={theirs}; not reached") for each in subnets]


def remarks(network: NetworkConfig) -> list[str]:
    """Return what of a configuration is accepted, and probably not what was meant."""
    if network.backend_type not in MODULES:
        return list(network.warnings)
    config = _module(network).Config
    words = f"is no key of the back end {network.backend_type} and has no effect"
    unknown = [
        f'"Backend.{shortened(key)}" {words}{meant(key, ("Type", *config.keys()))}' for key in config.unknown(network.backend)
    ]
    return [*network.warnings, *unknown]


def warning_of_commands(network: NetworkConfig) -> str:
    """Return the warning that this configuration runs commands; "" if it runs none."""
    keys = check(network).commands()
    if not keys:
        return ""
    return (
        f"the back end {network.backend_type} runs commands that the network configuration names ({', '.join(keys)}):"
        " any process that may write it is root on every node. -allow-commands permits that; later versions refuse it otherwise"
    )


def _module(network: NetworkConfig) -> Any:
    name = MODULES.get(network.backend_type)
    if name is None:
        raise InvalidConfig(
            f"unknown backend type: {shortened(network.backend_type)}", hint=f"Backend.Type is one of {', '.join(MODULES)}"
        )
    return import_module(f"cni_py.flanneld.backends.{name}")
