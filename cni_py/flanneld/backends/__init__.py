"""The ways to the other nodes, a module each: what it publishes, and what it wants the kernel to hold.

A module has ``TYPE`` (as in the network configuration), ``Config`` (the keys of its Backend object, with
``check_network`` where not every network suits them) and ``Backend``::

    Backend(config, network, external)
        mtu: int                        what a pod's packet may be: FLANNEL_MTU
        attributes() -> Attributes      what the own lease says
        wanted(own, leases) -> Wanted   pure: from the leases of all nodes, the own one among them
        cleanup()                       flanneld --cleanup: remove what it made

and, where it needs them: ``restore(former)``, called first with what the last lease said, before a reboot it may be;
``apply(own, leases)``, called after each change of the leases; ``run(stop)``, called once in a thread of its own;
``close()``, called at the end of a session, for what the next one opens again.
"""

from __future__ import annotations

from importlib import import_module
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_pascal

from cni_py.errors import InvalidConfig
from cni_py.node.log import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Attributes, Lease
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.node.desired import Wanted

MODULES = {
    "vxlan": "vxlan",
    "host-gw": "host_gw",
    "alloc": "alloc",
    "udp": "udp",
    "extension": "extension",
    "ipip": "ipip",
    "wireguard": "wireguard",
}

MIN_MTU = {4: 576, 6: 1280}
"""Bytes that a pod's packet must be allowed to have, by its family."""
ENDING = Event()
"""Set for good when flanneld is told to end, in whatever thread: what a back end waits for it gives up."""

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
        """Keys that no flanneld looks at: slips of the pen, mostly."""
        return [key for key in raw if key.lower() not in cls._aliases() and key.lower() != "type"]

    @classmethod
    def _aliases(cls) -> dict[str, str]:
        """By a key in lower case: as it is written."""
        return {(field.alias or name).lower(): field.alias or name for name, field in cls.model_fields.items()}

    def check_network(self, network: NetworkConfig) -> None:
        """What no node could use in this network, whatever its interface. Raises: InvalidConfig, UnsupportedField."""


def _found(fault: Any) -> str:
    """The value that is wrong; a key is never shown."""
    return "" if fault["loc"][0] in _SECRET else f", not {fault['input']!r:.80}"


class Backend(Protocol):
    """What the daemon needs of one."""

    mtu: int

    def attributes(self) -> Attributes: ...

    def wanted(self, own: Lease, leases: Iterable[Lease]) -> Wanted: ...

    def cleanup(self) -> None: ...


def create(network: NetworkConfig, external: ExternalInterface) -> Backend:
    """The back end that the configuration names. Raises: InvalidConfig, UnsupportedField, KernelRefused."""
    backend: Backend = _module(network).Backend(check(network), network, external)
    return backend


def check(network: NetworkConfig) -> Any:
    """The back end's Config: there is such a back end, and its keys are right. Raises: InvalidConfig, UnsupportedField."""
    config = _module(network).Config.parse(network.backend)
    config.check_network(network)
    return config


def pod_mtu(outer: int, overhead: int, version: int, what: str) -> int:
    """What a tunnel leaves of an MTU, which is that of ``what``, for a pod's packet. Raises: InvalidConfig."""
    mtu = outer - overhead
    if mtu < MIN_MTU[version]:
        raise InvalidConfig(
            f"an MTU of {mtu} bytes is too small for IPv{version} pods",
            f"{what} is {outer}, of which the tunnel takes {overhead}, and pods need {MIN_MTU[version]}",
        )
    return mtu


def remarks(network: NetworkConfig) -> list[str]:
    """What of a configuration is accepted, and probably not what was meant."""
    if network.backend_type not in MODULES:
        return list(network.warnings)
    unknown = _module(network).Config.unknown(network.backend)
    words = f"is no key of the back end {network.backend_type} and has no effect"
    return [*network.warnings, *(f'"Backend.{shortened(key)}" {words}' for key in unknown)]


def _module(network: NetworkConfig) -> Any:
    name = MODULES.get(network.backend_type)
    if name is None:
        raise InvalidConfig(
            f"unknown backend type: {shortened(network.backend_type)}", hint=f"Backend.Type is one of {', '.join(MODULES)}"
        )
    return import_module(f"cni_py.flanneld.backends.{name}")
