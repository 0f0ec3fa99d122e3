"""Shared parts of the tests of podman and containerd: an outside world, requests to a container, state that must not leak."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from integration.clients import image
from support.namespaces import Host, Sandbox

OUTSIDE = Sandbox("outside")
HOST4, HOST6 = "192.0.2.1", "2001:db8:2::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.9", "2001:db8:2::9"

NEIGHBOUR = f"""
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
ip netns add outside
ip netns exec outside sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
ip link add up0 type veth peer name eth0 netns outside
ip addr add {HOST4}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad; ip link set up0 up
ip -n outside addr add {OUTSIDE4}/24 dev eth0; ip -n outside addr add {OUTSIDE6}/64 dev eth0 nodad
ip -n outside link set eth0 up; ip -n outside link set lo up
ip -n outside route add default via {HOST4}; ip -n outside -6 route add default via {HOST6}
"""


def prepare(host: Host, *directories: str) -> None:
    """A neighbour outside, and these directories empty, for the runtime's own files."""
    host.run(NEIGHBOUR)
    for directory in ("/dev/shm", "/sys/fs/cgroup", *directories):
        host.run(f"mkdir -p {directory}; mount -t tmpfs tmpfs {directory}")


# --- questions --------------------------------------------------------------------------------------------------------


def ask(host: Host, address: str, port: int = 80, protocol: str = "tcp", source: Sandbox | None = None) -> str:
    """Return a container's reply: "<the address it sees> <its host name>", or the failure's name, as "TimeoutError".

    `source`: the client; None: the host. A container that has just been started is waited for.
    """
    return host.do(_ask, address, port, protocol, 10.0, sandbox=source)


def refused(host: Host, address: str, port: int = 80, protocol: str = "tcp", source: Sandbox | None = None) -> bool:
    """Return the failure of a request, which must come at once."""
    return host.do(_ask, address, port, protocol, 0.0, sandbox=source) in ("ConnectionRefusedError", "TimeoutError")


def _ask(address: str, port: int, protocol: str, patience_seconds: float) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            with socket.socket(family, kind) as client:
                client.settimeout(1)  # a datagram to a container that does not listen yet is lost
                client.connect((address, port))
                if protocol == "udp":
                    client.send(b"hello")
                return client.recv(200).decode()
        except OSError as error:
            if time.monotonic() > deadline:
                return type(error).__name__
            time.sleep(0.01)


@contextmanager
def server_outside(host: Host) -> Iterator[None]:
    """Run a server outside that replies on port 80 as a container does."""
    argv = host.command(image.PYTHON, "-IS", str(image.ANSWER), sandbox=OUTSIDE)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            host.run("kill $(ip netns pids outside)")


# --- state ------------------------------------------------------------------------------------------------------------


def state(host: Host) -> dict[str, Any]:
    """Return all that must be as before after a container was deleted: network, files of plugins and libcni, our records."""
    records = {name: text for name, text in host.files("/run/cni-py").items() if "/attachments/" in name or "/portmap/" in name}
    return host.snapshot() | {"records": records, "namespaces": sorted(host.run("ls /run/netns").split())}


def reservations(host: Host, network: str) -> list[str]:
    """The addresses that are taken."""
    names = host.run(f"ls /var/lib/cni/networks/{network} 2>/dev/null || true").split()
    return sorted(name for name in names if name != "lock" and "last_reserved_ip" not in name)


def done_by_us(host: Host, container_id: str) -> set[str]:
    """Return the calls of cni-py for this container, by its journals: "ADD bridge"."""
    journals = [text for name, text in host.files("/run/cni-py/journal").items() if container_id in name]
    heads = [line.split() for text in journals for line in text.splitlines() if line.startswith("# ")]
    return {f"{words[2]} {words[3].rstrip(',')}" for words in heads}
