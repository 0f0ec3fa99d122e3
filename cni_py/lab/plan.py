"""The plan of a lab: addresses, links and configuration as values. Changes nothing.

::

                    outside  192.0.2.2
                       |
                     router  .1 on every segment
             __________|__________
            |                     |
        segment1              segment2        192.168.123.0/24 and 192.168.124.0/24 (fd00:123::/64 and fd00:124::/64)
       |    |    |                |
     etcd node1 node3           node2         .2, and .11 for node1, .12 for node2 …
            |    |                |
          pod1 pod3             pod2

With one segment, all nodes are on it. The addresses of the first nodes are those of the deployment guide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from cni_py import subnet_env
from cni_py.lab.programs import LabFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_NODES = 200
OUTSIDE, OUTSIDE6 = "192.0.2.2", "2001:db8::2"
ETCD_ADDRESS, ETCD_ADDRESS6 = "192.168.123.2", "fd00:123::2"
SUBNET_LENGTH, SUBNET_LENGTH6 = 24, 64
FORMER_MTU = 1450
CONFIG_KEY = "/coreos.com/network/config"
DATASTORES = ("file", "etcd")
WITHOUT_ROUTES = ("alloc",)
"""Back ends that create no routes to pods of other nodes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The requested lab.

    ``pods``: on each node. ``config``: the network's configuration, flannel's JSON object. ``numbered``: node N leases the
    Nth subnet of the network instead of one at random.
    """

    nodes: int
    ipv4: bool
    ipv6: bool
    datastore: str
    segments: int
    pods: int
    config: Mapping[str, Any]
    flanneld: str
    flanneld_options: tuple[str, ...]
    numbered: bool = False

    @property
    def backend(self) -> str:
        return str(self.config.get("Backend", {}).get("Type", "udp")).lower()


@dataclass(frozen=True, slots=True)
class Node:
    """A node; number 1 is ``node1``, on segment 1."""

    number: int
    segments: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def segment(self) -> int:
        return 1 if self.segments == 1 or self.number % 2 else 2

    @property
    def address(self) -> str:
        return f"192.168.{122 + self.segment}.{10 + self.number}"

    @property
    def address6(self) -> str:
        return f"fd00:{122 + self.segment}::{10 + self.number}"


def make_settings(
    nodes: int,
    backend: str,
    ipv6: bool,
    datastore: str,
    segments: int,
    *,
    ipv4: bool,
    pods: int,
    backend_options: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    flanneld: str,
    flanneld_options: Iterable[str],
    numbered: bool = False,
) -> Settings:
    """Check the arguments of a lab. Raises: LabFailed."""
    if not 1 <= nodes <= MAX_NODES:
        raise LabFailed(f"{nodes} nodes: a lab has 1 to {MAX_NODES}")
    if not 0 <= pods <= 200:
        raise LabFailed(f"{pods} pods on each node: 0 to 200")
    if segments not in (1, 2):
        raise LabFailed(f"{segments} segments: a lab has 1 or 2")
    if datastore not in DATASTORES:
        raise LabFailed(f'unknown datastore "{datastore}"', hint=f"one of {', '.join(DATASTORES)}")
    if config is None:
        config = network_config(backend, ipv4, ipv6, backend_options)
    ipv4, ipv6 = bool(config.get("EnableIPv4", True)), bool(config.get("EnableIPv6", False))
    if not ipv4 and not ipv6:
        raise LabFailed("a network without IPv4 and without IPv6")
    return Settings(nodes, ipv4, ipv6, datastore, segments, pods, config, flanneld, tuple(flanneld_options), numbered)


def network_config(backend: str, ipv4: bool, ipv6: bool, backend_options: Mapping[str, Any]) -> dict[str, Any]:
    """flannel's network configuration (net-conf.json)."""
    config: dict[str, Any] = {"Network": "10.244.0.0/16"} if ipv4 else {"EnableIPv4": False}
    if ipv6:
        config |= {"EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}
    return config | {"Backend": {"Type": backend, **backend_options}}


def former_subnet_file(node: Node, settings: Settings) -> str:
    """The subnet.env that makes flanneld lease the subnet of the node's number: the one that it seems to have had before."""
    keys = (("Network", "SubnetLen", SUBNET_LENGTH), ("IPv6Network", "IPv6SubnetLen", SUBNET_LENGTH6))
    networks, subnets = [], []
    for key, length_key, length in keys:
        if key not in settings.config:
            continue
        network = ip_network(settings.config[key])
        subnet = ip_network((network.network_address, int(settings.config.get(length_key, length))))
        networks.append(network)
        subnets.append(ip_network((subnet.network_address + node.number * subnet.num_addresses, subnet.prefixlen)))
    return subnet_env.render(subnet_env.SubnetEnv(tuple(networks), tuple(subnets), FORMER_MTU, ip_masq=False))


def flanneld_command(program: str, node: Node, settings: Settings) -> list[str]:
    """The command line of a node's flanneld."""
    if settings.datastore == "etcd":
        server = ETCD_ADDRESS if settings.ipv4 else f"[{ETCD_ADDRESS6}]"
        command = [program, f"-etcd-endpoints=http://{server}:2379"]
    else:
        command = [program, "--datastore", "file:/run/lab/shared/flannel.json"]
    command += ["-iface", "eth0", "-ip-masq"]
    command += ["-public-ip", node.address] if settings.ipv4 else []
    command += ["-public-ipv6", node.address6] if settings.ipv6 else []
    return [*command, *settings.flanneld_options]


def etcd_command(directory: str) -> list[str]:
    """The command line of a single member, over plain HTTP; a short election timeout makes it ready at once."""
    return [
        "etcd",
        *("--name", "lab", "--data-dir", directory, "--heartbeat-interval", "20", "--election-timeout", "200"),
        *("--listen-client-urls", "http://[::]:2379", "--advertise-client-urls", f"http://{ETCD_ADDRESS}:2379"),
        *("--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380"),
        *("--initial-cluster", "lab=http://127.0.0.1:2380"),
    ]


# ---- links and addresses, as input of `ip -batch` ---------------------------------------------------------------


def switch_commands(segments: int, router: int, outside: int) -> list[str]:
    """Bridges of the switch, one for each segment, and the cables of router and outside (given by their process ids)."""
    lines = [f"link add eth0 netns {router} type veth peer name eth0 netns {outside}"]
    for segment in range(1, segments + 1):
        lines += [
            f"link add segment{segment} type bridge mcast_snooping 0",
            f"link set segment{segment} up",
            *port_commands(f"router{segment}", segment, router, f"eth{segment}"),
        ]
    return lines


def port_commands(port: str, segment: int, pid: int, ifname: str = "eth0") -> list[str]:
    """A cable from a port of the switch to an interface of a machine."""
    return [
        f"link add {port} type veth peer name {ifname} netns {pid}",
        f"link set {port} master segment{segment} up",
    ]


def lan_networks(settings: Settings) -> list[IPv4Network | IPv6Network]:
    """The networks of the segments, which the nodes' eth0 are in."""
    numbers = range(123, 123 + settings.segments)
    found: list[IPv4Network | IPv6Network] = [IPv4Network(f"192.168.{number}.0/24") for number in numbers]
    return found + ([IPv6Network(f"fd00:{number}::/64") for number in numbers] if settings.ipv6 else [])


def router_commands(settings: Settings) -> list[str]:
    lines = _interface("eth0", "192.0.2.1/24", "2001:db8::1/64", settings)
    for segment in range(1, settings.segments + 1):
        lines += _interface(f"eth{segment}", f"192.168.{122 + segment}.1/24", f"fd00:{122 + segment}::1/64", settings)
    return lines


def outside_commands(settings: Settings) -> list[str]:
    """Routes to the segments and none to the pods: their packets have to be masqueraded."""
    lines = _interface("eth0", f"{OUTSIDE}/24", f"{OUTSIDE6}/64", settings)
    lines += ["route add 192.168.0.0/16 via 192.0.2.1"]
    return lines + (["route add fd00:120::/28 via 2001:db8::1"] if settings.ipv6 else [])


def etcd_commands(settings: Settings) -> list[str]:
    return _host(f"{ETCD_ADDRESS}/24", f"{ETCD_ADDRESS6}/64", 1, settings)


def node_commands(node: Node, settings: Settings) -> list[str]:
    return _host(f"{node.address}/24", f"{node.address6}/64", node.segment, settings)


def _host(address: str, address6: str, segment: int, settings: Settings) -> list[str]:
    lines = _interface("eth0", address, address6, settings)
    lines += [f"route add default via 192.168.{122 + segment}.1"]
    return lines + ([f"route add default via fd00:{122 + segment}::1"] if settings.ipv6 else [])


def _interface(ifname: str, address: str, address6: str, settings: Settings) -> list[str]:
    """Addresses of an interface, which is then set up."""
    lines = [f"addr add {address} brd + dev {ifname}"]  # also with --no-ipv4, which is about pods: etcd is reached by IPv4
    lines += [f"addr add {address6} dev {ifname} nodad"] if settings.ipv6 else []
    return [*lines, f"link set {ifname} up"]


def as_json(config: Mapping[str, Any]) -> str:
    """Compact, as typed for etcdctl."""
    return json.dumps(config, separators=(",", ":"))
