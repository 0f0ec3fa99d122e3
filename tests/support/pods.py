"""Networks that several tests use, and traffic between pods: frames and datagrams, sent and awaited in one process."""

from __future__ import annotations

import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

from support.namespaces import Host, Reply, Sandbox
from support.waiting import SECONDS, until

V4, V6 = [{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]
DUAL_ENV = (
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.91.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n"
    "FLANNEL_IPV6_SUBNET=fd00:244:0:91::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
)
FLANNEL = {
    "cniVersion": "1.1.0",
    "name": "cbr0",
    "type": "flannel",
    "delegate": {"hairpinMode": True, "isDefaultGateway": True},
}
NOTHING_SECONDS = 0.15  # how long silence is listened to
PORT = 4711
_ETHERTYPE = 0x88B5  # IEEE 802: for local experiments


def bridge_conf(*range_sets: list[dict[str, Any]], ipam: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A configuration of bridge with host-local over these range sets (default: IPv4); `ipam`: more keys of it."""
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}
    return conf | {"ipam": {"type": "host-local", "ranges": list(range_sets or [V4])} | (ipam or {})} | keys


def layer_2_conf(**keys: Any) -> dict[str, Any]:
    """A configuration of bridge without IPAM."""
    conf = bridge_conf(**keys)
    del conf["ipam"]
    return conf


ROUTES = [
    {"dst": "10.7.0.0/16"},
    {"dst": "10.8.0.0/16", "gw": "10.1.0.9", "mtu": 1300, "advmss": 1200, "priority": 7},
    {"dst": "10.9.0.0/16", "table": 100},
    {"dst": "10.10.0.0/16", "scope": 200},
    {"dst": "fd00:9::/64", "table": 100, "mtu": 1290},
]
MAC = "c2:11:22:33:44:55"

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": bridge_conf(),
    "layer-2": layer_2_conf(),
    "isGateway": bridge_conf(isGateway=True),
    "isDefaultGateway": bridge_conf(isDefaultGateway=True),
    "forceAddress": bridge_conf(isGateway=True, forceAddress=True),
    "ipMasq": bridge_conf(isGateway=True, ipMasq=True),
    "ipMasqBackend-nftables": bridge_conf(isGateway=True, ipMasq=True, ipMasqBackend="nftables"),
    "ipMasqBackend-iptables": bridge_conf(V4, V6, isGateway=True, ipMasq=True, ipMasqBackend="iptables"),
    "masqueradeExcept": bridge_conf(V4, V6, isGateway=True, ipMasq=True, masqueradeExcept=["10.0.0.0/8", "fd00::/16"]),
    "mtu": bridge_conf(mtu=1400),
    "hairpinMode": bridge_conf(hairpinMode=True),
    "promiscMode": bridge_conf(promiscMode=True),
    "portIsolation": bridge_conf(portIsolation=True),
    "macspoofchk": bridge_conf(macspoofchk=True),
    "macspoofchk-layer-2": layer_2_conf(macspoofchk=True),
    "enabledad": bridge_conf(V4, V6, enabledad=True),
    "disableContainerInterface": layer_2_conf(disableContainerInterface=True),
    "mac": bridge_conf(args={"cni": {"mac": MAC}}),
    "dns": bridge_conf(dns={"nameservers": ["10.1.0.1"], "domain": "pods.test"}),
    "routes": bridge_conf(V4, V6, ipam={"routes": ROUTES}),
    "ipv6": bridge_conf(V6, isDefaultGateway=True),
    "all": bridge_conf(
        V4, V6, isDefaultGateway=True, ipMasq=True, mtu=1400, hairpinMode=True, portIsolation=True, macspoofchk=True,
        masqueradeExcept=["10.0.0.0/8"], ipam={"routes": ROUTES},
    ),
    "flannel": FLANNEL,
    "flannel-masqueradeBeyond": FLANNEL | {"masqueradeBeyond": "network"},
    "flannel-macspoofchk": FLANNEL | {"delegate": {"macspoofchk": True, "portIsolation": True}},
}  # fmt: skip
"""A configuration for each option; subnet.env is to be that of `DUAL_ENV`."""


NO_DAD = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0\n"
"""Setting for interfaces created later: otherwise addresses and routes come a second or two later."""


def wait_for_dad(host: Host, pod: Sandbox) -> dict[str, Any]:
    """The IPv6 address of eth0 when the kernel is done with it."""
    found: list[dict[str, Any]] = []

    def is_done() -> bool:
        found[:] = host.json("ip -j -6 addr show eth0 scope global", pod)[0]["addr_info"]
        return not found[0].get("tentative") or bool(found[0].get("dadfailed"))

    until(is_done, lambda: f"no longer tentative: {found}")
    return found[0]


# --- calls ------------------------------------------------------------------------------------------------------------


def plugin_of(conf: dict[str, Any]) -> str:
    return str(conf["type"])


def add(host: Host, conf: dict[str, Any], pod: Sandbox, **options: Any) -> Any:
    """ADD for the container that is named as its namespace; returns the result."""
    return host.ok(plugin_of(conf), "ADD", conf, sandbox=pod, **({"container_id": pod.name} | options))


def delete(host: Host, conf: dict[str, Any], pod: Sandbox, **options: Any) -> None:
    host.ok(plugin_of(conf), "DEL", conf, sandbox=pod, **({"container_id": pod.name} | options))


def check(host: Host, conf: dict[str, Any], pod: Sandbox, prev: dict[str, Any], **options: Any) -> Reply:
    """CHECK as ``cni-py check`` calls it: the error object has all differences one by one."""
    given: dict[str, Any] = {"container_id": pod.name, "env": {}} | options
    given["env"] |= {"CNI_PY_DIFFERENCES": "1"}
    return host.call(plugin_of(conf), "CHECK", conf, sandbox=pod, prev=prev, **given)


NO_COMMAND = ("delete the pod", "leave it: ", "another pod has", "look at it: ", "nft list ", "cni-py explain ")
"""Beginnings of hints that change nothing: what they are about has no single command."""


def hints(reply: Reply) -> list[str]:
    assert all(one["msg"] and one["hint"] for one in reply.json["differences"]), reply
    return [one["hint"] for one in reply.json["differences"]]


def repair(host: Host, conf: dict[str, Any], pod: Sandbox, result: dict[str, Any]) -> Reply:
    """Type the command of each difference, and check again, until there is no difference or nothing to type."""
    for _ in range(4):
        reply = check(host, conf, pod, result)
        commands = [hint for hint in hints(reply) if not hint.startswith(NO_COMMAND)] if reply.rc else []
        if not commands:
            return reply
        for command in commands:
            host.run(f"PATH=$PATH:{Path(host.bin_dir).parent.parent}/bin; {command}")
    raise AssertionError(reply)


def gc(host: Host, conf: dict[str, Any], *valid: tuple[str, str], **options: Any) -> None:
    """GC with a list of the valid attachments: (container id, interface name)."""
    listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
    host.ok(plugin_of(conf), "GC", conf | {"cni.dev/valid-attachments": listed}, **options)


def records(host: Host) -> list[str]:
    """The attachment records."""
    return sorted(name.rpartition("/")[2] for name in host.files("/run/cni-py/attachments"))


def state(host: Host, *pods: Sandbox) -> dict[str, Any]:
    """A snapshot, and the attachment records with it."""
    return host.snapshot(*pods) | {"records": records(host)}


def without_empty_reservations(found: dict[str, Any]) -> dict[str, Any]:
    """Drop files that were created but not written: without an owner, DEL cannot identify them. Their addresses are free."""
    kept = {name: text for name, text in found["files"].items() if text or not name.startswith("/var/lib/cni/networks/")}
    return found | {"files": kept}


def words(reply: Reply) -> str:
    """Return the whole text of an error."""
    return f"{reply.json['msg']}\n{reply.json.get('details', '')}"


# --- what the kernel shows --------------------------------------------------------------------------------------------


def link(host: Host, name: str, pod: Sandbox | None = None) -> dict[str, Any]:
    """`ip -d link show`."""
    found: dict[str, Any] = host.json(f"ip -j -d link show {name}", pod)[0]
    return found


def port_of(host: Host, result: dict[str, Any]) -> dict[str, Any]:
    """The host end that a result names."""
    return link(host, result["interfaces"][1]["name"])


def port_flags(host: Host, result: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that are set on that bridge port."""
    found: dict[str, Any] = port_of(host, result)["linkinfo"]["info_slave_data"]
    return found


def addresses(host: Host, name: str, pod: Sandbox | None = None) -> list[str]:
    """Addresses with their prefixes, without link-local ones."""
    infos = host.json(f"ip -j addr show {name}", pod)[0]["addr_info"]
    return [f"{info['local']}/{info['prefixlen']}" for info in infos if info["scope"] != "link"]


def routes(host: Host, pod: Sandbox, *, table: str = "main", family: int = 4) -> dict[str, dict[str, Any]]:
    """Destination to `ip route` entry, without those that the kernel made."""
    found = host.json(f"ip -j -{family} -d route show table {table}", pod)
    return {route["dst"]: route for route in found if route.get("protocol") != "kernel"}


def sysctl(host: Host, name: str, pod: Sandbox | None = None) -> str:
    return host.run(f"cat /proc/sys/net/{name}", pod).strip()


# --- traffic ----------------------------------------------------------------------------------------------------------


HOST4, WORLD = "192.0.2.1", "192.0.2.2"


def world(host: Host, *, knows_pods: bool = True) -> Sandbox:
    """A machine beyond the host, WORLD; the host is HOST4 there. ``knows_pods``: it has a route to them, by way of the host."""
    outside = host.netns("world")
    host.run(f"ip link add out0 type veth peer name eth0 netns world; ip addr add {HOST4}/24 dev out0; ip link set out0 up")
    host.run(f"ip addr add {WORLD}/24 dev eth0; ip link set eth0 up", outside)
    if knows_pods:
        host.run(f"ip route add default via {HOST4}", outside)
    return outside


def datagram(
    host: Host, source: Sandbox | None, target: Sandbox | None, address: str, *, port: int = PORT, seconds: float = SECONDS
) -> str | None:
    """Send a UDP datagram from a pod (None: the host) to an address of another, or to one that leads to it.

    Returns: the sender's address that the receiver saw; None if nothing came in `seconds`.
    """
    return host.do(_datagram, _path(source), _path(target), address, port, seconds)


def _datagram(source: str, target: str, address: str, port: int, seconds: float) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with _socket_in(target, family, socket.SOCK_DGRAM) as receiver, _socket_in(source, family, socket.SOCK_DGRAM) as sender:
        receiver.bind(("", PORT))
        receiver.settimeout(seconds)
        sender.sendto(b"hello", (address, port))
        try:
            return str(receiver.recvfrom(16)[1][0])
        except TimeoutError:
            return None


def transfer(
    host: Host, source: Sandbox | None, target: Sandbox | None, address: str, size: int, *, port: int = PORT
) -> tuple[float, str]:
    """Send bytes over TCP as `datagram` sends one. Returns: bits a second, over all of it, and the client's address."""
    return host.do(transfer_between, _path(source), _path(target), address, size, port)


def transfer_between(source: str, target: str, address: str, size: int, port: int = PORT) -> tuple[float, str]:
    """Do the same between namespaces at these paths, which may be of two hosts: ``/proc/PID/root/run/netns/NAME``."""
    received = 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with _socket_in(target, family) as listening, _socket_in(source, family) as sending:
        for one in (listening, sending):
            one.settimeout(SECONDS)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the kernel remembers a connection of before
        listening.bind(("", PORT))
        listening.listen()
        sending.connect((address, port))
        accepted, client = listening.accept()

        def send() -> None:
            sending.sendall(bytes(size))
            sending.shutdown(socket.SHUT_WR)

        began = time.monotonic()
        thread = threading.Thread(target=send)
        thread.start()
        while block := accepted.recv(1 << 16):
            received += len(block)
        seconds = time.monotonic() - began
        thread.join()
        accepted.close()
    assert received == size
    return received * 8 / seconds, str(client[0])


def frame(
    host: Host, source: Sandbox, target: Sandbox, *, sender: str, receiver: str = "ff:ff:ff:ff:ff:ff", seconds: float = 1.0
) -> bool:
    """Send an Ethernet frame over eth0 of one pod; whether it comes in over eth0 of another, or the same one."""
    return host.do(_frame, _path(source), _path(target), _raw(sender), _raw(receiver), seconds)


def _frame(source: str, target: str, sender: bytes, receiver: bytes, seconds: float) -> bool:
    kind = socket.htons(_ETHERTYPE)
    with (
        _socket_in(target, socket.AF_PACKET, socket.SOCK_RAW, kind) as listening,
        _socket_in(source, socket.AF_PACKET, socket.SOCK_RAW, kind) as sending,
    ):
        listening.bind(("eth0", _ETHERTYPE))
        payload = time.perf_counter_ns().to_bytes(8, "big") + bytes(46)
        sending.sendto(receiver + sender + _ETHERTYPE.to_bytes(2, "big") + payload, ("eth0", _ETHERTYPE))
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([listening], [], [], left)[0] and payload in listening.recv(256):
                return True
        return False


def _path(pod: Sandbox | None) -> str:
    return "" if pod is None else pod.path


def _raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _socket_in(path: str, *kind: int) -> socket.socket:
    """A socket of another namespace: made inside, used from outside."""
    if not path:
        return socket.socket(*kind)
    from nsenter import Namespace

    with Namespace(path, "net"):
        return socket.socket(*kind)
