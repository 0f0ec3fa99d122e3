"""Delegate's configuration for DEL and GC where the saved one is damaged or missing, from everything else that is known.

A third-party delegate needs it complete: Go's host-local refuses a configuration without ranges, even to release an
address. Ranges come from subnet.env, or else from the previous result, the container's reservations, those of the network; DEL
finds reservations by their owner, so that any range will do, and the last one is the one for documentation.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni_py import subnet_env
from cni_py.attachment.record import owner_of
from cni_py.config import in_order, member_of
from cni_py.errors import CniError
from cni_py.ipam.ranges import as_address
from cni_py.ipam.store import addresses_of, reserved_names
from cni_py.journal import note
from cni_py.packetfilter import masquerade
from cni_py.spec.result import from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import Any

    from cni_py.config.models import FlannelConfig
    from cni_py.spec.call import Call
    from cni_py.subnet_env import SubnetEnv

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

DATA_DIR = "/var/lib/cni/networks"
_PREFIX = {4: 24, 6: 64}
_ANY_RANGE = ip_network("192.0.2.0/24")


def complete(call: Call, config: FlannelConfig, conf: dict[str, Any]) -> dict[str, Any]:
    """Return the delegate's configuration with every field that ADD gives it.

    Args:
        conf: what flannel's own configuration says: type, name, version, the user's keys, ``ipam``.
    """
    env = _read_env(config.subnet_file)
    subnets = _one_per_family(env.subnets if env else _guessed_subnets(call, conf["ipam"]))
    networks = env.networks if env else subnets
    if env:
        conf.setdefault("mtu", env.mtu)
    if conf["type"] == "bridge":
        conf.setdefault("isGateway", True)
        if config.masquerade_beyond == "network":
            conf.setdefault("masqueradeExcept", [str(network) for network in networks])
    # The rules that exist say it, not FLANNEL_IPMASQ of today: DEL of Go's bridge 1.1 fails where there are none.
    conf.setdefault("ipMasq", _is_masqueraded(call))
    routes = conf["ipam"].get("routes")
    ipam = conf["ipam"] | {
        "ranges": [[{"subnet": str(subnet)}] for subnet in subnets],
        "routes": [*(routes if isinstance(routes, list) else []), *({"dst": str(network)} for network in networks)],
    }
    note(f"the delegate's configuration was rebuilt, with {', '.join(map(str, subnets))}")
    return in_order(conf | {"ipam": ipam})


def _is_masqueraded(call: Call) -> bool:
    try:
        return not call.container_id or masquerade.exists(owner_of(call))
    except CniError as error:
        note(f"masqueraded or not: {error}")
        return True


def _read_env(path: str) -> SubnetEnv | None:
    try:
        return subnet_env.read(path)
    except CniError as error:
        note(f"without subnet.env: {error.msg}")
        return None


def _guessed_subnets(call: Call, ipam: dict[str, Any]) -> list[Network]:
    try:
        previous = [ip.address.network for ip in from_json(call.conf["prevResult"]).ips] if call.conf.get("prevResult") else []
    except CniError as error:
        note(f"without the previous result: {error.msg}")
        previous = []
    data_dir = member_of(ipam, "dataDir")
    found = _reserved(call, data_dir if isinstance(data_dir, str) and data_dir else DATA_DIR)
    return [*previous, *[ip_network((address, _PREFIX[address.version]), strict=False) for address in found], _ANY_RANGE]


def _reserved(call: Call, data_dir: str) -> list[Address]:
    """Addresses of the container, and after them those of other containers of the network."""
    try:
        own = addresses_of(data_dir, call.network, call.container_id, call.ifname) if call.container_id else []
        names = reserved_names(f"{data_dir}/{call.network}")
    except CniError as error:
        note(f"without the reservations: {error.msg}")
        return []
    return [*own, *[address for name in sorted(names) if (address := as_address(name)) is not None]]


def _one_per_family(networks: Iterable[Network]) -> list[Network]:
    """The first network of each family; that for documentation only if there is no other. Pure."""
    found: dict[int, Network] = {}
    for network in networks:
        if network.prefixlen <= network.max_prefixlen - 2 and not (network == _ANY_RANGE and found):
            found.setdefault(network.version, network)
    return list(found.values())
