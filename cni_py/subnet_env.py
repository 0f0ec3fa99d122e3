"""Subnet file that flanneld writes for the plugins, ``/run/flannel/subnet.env``.

Lines ``KEY=value``; their order, unknown keys, comments and empty lines are ignored. Networks
may be comma-separated lists. Source: flannel-io/cni-plugin flannel.go, loadFlannelSubnetEnv.
"""

from __future__ import annotations

from ipaddress import ip_interface

from cni_py import files
from cni_py.errors import CniError, InvalidConfig, TryAgainLater, reason_of
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    Network = IPv4Network | IPv6Network

HINT = "Check the flannel pod log for this node, or: journalctl -u flanneld"


class SubnetEnv(Value):
    """The node's part of the flannel network.

    ``networks``: the whole network, IPv4 before IPv6, without duplicates; ``subnets``: this node's, at most
    one per family; ``mtu`` in bytes; ``ip_masq``: flanneld masquerades, so the bridge need not.
    """

    networks: tuple[Network, ...]
    subnets: tuple[Network, ...]
    mtu: int
    ip_masq: bool


def read(path: str) -> SubnetEnv:
    """Read and parse the file. Raises: TryAgainLater (11) while it does not exist; InvalidConfig (7) if it is invalid."""
    try:
        text = files.read(path).decode()
    except FileNotFoundError as error:
        raise TryAgainLater(
            f"failed to load flannel 'subnet.env' file: open {path}: no such file or directory",
            "flanneld has not written it yet",
            HINT,
        ) from error
    except (OSError, ValueError, CniError) as error:
        raise InvalidConfig(f"failed to load flannel 'subnet.env' file: {path}", reason_of(error), HINT) from error
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidConfig(f"failed to load flannel 'subnet.env' file: {path} {error}", hint=HINT) from error


def parse(text: str) -> SubnetEnv:
    """Parse the file's text. Raises: ValueError, which names what is missing or wrong."""
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            values[key] = value.strip().strip("\"'")
    networks = _networks(values, "FLANNEL_NETWORK", 4) + _networks(values, "FLANNEL_IPV6_NETWORK", 6)
    subnets = _networks(values, "FLANNEL_SUBNET", 4) + _networks(values, "FLANNEL_IPV6_SUBNET", 6)
    missing = []
    if not networks:
        missing += ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]
    if not subnets:
        missing += ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
    missing += [key for key in ("FLANNEL_MTU", "FLANNEL_IPMASQ") if not values.get(key)]
    if missing:
        raise ValueError(f"is missing {', '.join(missing)}")
    mtu = values["FLANNEL_MTU"]
    if not mtu.isascii() or not mtu.isdigit() or len(mtu) > 5 or not 68 <= int(mtu) <= 65535:
        raise ValueError(f'has invalid FLANNEL_MTU "{mtu[:40]}": must be a number from 68 to 65535')
    return SubnetEnv(networks, subnets, int(mtu), values["FLANNEL_IPMASQ"] == "true")


def render(env: SubnetEnv) -> str:
    """Write it like Go's flanneld: IPv4 first, each subnet by its first host, the gateway."""
    lines = []
    for version, prefix in ((4, "FLANNEL_"), (6, "FLANNEL_IPV6_")):
        networks = [str(network) for network in env.networks if network.version == version]
        lines += [f"{prefix}NETWORK={','.join(networks)}"] if networks else []
        gateways = [f"{subnet.network_address + 1}/{subnet.prefixlen}" for subnet in env.subnets if subnet.version == version]
        lines += [f"{prefix}SUBNET={gateway}" for gateway in gateways]
    lines += [f"FLANNEL_MTU={env.mtu}", f"FLANNEL_IPMASQ={'true' if env.ip_masq else 'false'}"]
    return "".join(f"{line}\n" for line in lines)


def _networks(values: dict[str, str], key: str, version: int) -> tuple[Network, ...]:
    """Parse a comma-separated list, without duplicates, in order; a subnet's host part (the gateway) is dropped."""
    found: list[Network] = []
    for text in values.get(key, "").split(",") if values.get(key) else []:
        try:
            if "/" not in text:
                raise ValueError("no prefix length")
            network = ip_interface(text.strip()).network
        except ValueError as error:
            raise ValueError(f'has {key} "{text[:40]}": invalid CIDR address') from error
        if network.version != version:
            raise ValueError(f'has {key} "{text[:40]}", which is not IPv{version}')
        if network not in found:
            found.append(network)
    if key.endswith("SUBNET") and len(found) > 1:
        raise ValueError(f"has more than one subnet in {key}")
    return tuple(found)
