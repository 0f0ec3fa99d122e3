"""The life of a Kubernetes node, with flanneld as the daemon: deleted and registered again, renamed, with the API away.

A Node's podCIDRs cannot be changed: a node gets others when it is deleted and registers again.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer, node, vxlan
from support.flannel import flanneld_command
from support.namespaces import PATH, Host
from support.waiting import until

pytestmark = pytest.mark.netns

EXTERNAL = """
ip link add eth0 type veth peer peer; ip link set peer up
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip addr add 192.168.123.1/24 dev eth0; ip addr add fd00:123::1/64 dev eth0; ip link set eth0 up
"""
NET_CONF: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL = NET_CONF | {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
PORT = 9808


class Node:
    """node1 of a cluster in the host that the test is in: an API server, and a flanneld that can be started and ended."""

    def __init__(self, directory: str) -> None:
        subprocess.run(["sh", "-ec", EXTERNAL], check=True, env={"PATH": PATH})
        self.server = ApiServer()
        self.net_conf, self.log_path = Path(directory) / "net-conf.json", Path(directory) / "log"
        self.net_conf.write_text(json.dumps(NET_CONF))

    @contextmanager
    def running(self, name: str = "node1") -> Iterator[subprocess.Popen[bytes]]:
        """A flanneld of this node until the end of the block, where SIGTERM ends it."""
        options = [
            "-kube-subnet-mgr",
            f"-kube-api-url=http://127.0.0.1:{self.server.port}",
            f"-net-config-path={self.net_conf}",
            "-iface=eth0",
            "-healthz-ip=127.0.0.1",
            f"-healthz-port={PORT}",
        ]
        with self.log_path.open("wb") as log:
            env = os.environ | {"PATH": PATH, "NODE_NAME": name}
            command = flanneld_command(*options)
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            yield daemon
            daemon.terminate()
            assert daemon.wait(60) == 0, self.log
        finally:
            daemon.kill()
            daemon.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for_subnet(self, subnet: str) -> None:
        until(lambda: f"SUBNET={subnet}\n" in _read("/run/flannel/subnet.env"), lambda: self.log)

    def wait_until_published(self, name: str) -> None:
        """The condition NetworkUnavailable is cleared last."""
        until(lambda: "FlannelIsUp" in json.dumps(self.server.nodes.get(name, {})), lambda: self.log)

    def wait_for_routes(self, *subnets: str) -> None:
        until(lambda: routes() == set(subnets), lambda: f"{routes()}\n{self.log}")

    def wait_for_words(self, words: str) -> None:
        until(lambda: words in self.log, lambda: self.log)


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def routes(family: str = "-4") -> set[str]:
    argv = ["ip", family, "-j", "route", "show", "proto", "122"]
    out = subprocess.run(argv, capture_output=True, text=True, env={"PATH": PATH}).stdout
    return {route["dst"] for route in json.loads(out or "[]")}


def bridge_addresses() -> set[str]:
    out = subprocess.run(["ip", "-j", "addr", "show", "dev", "cni0"], capture_output=True, text=True, env={"PATH": PATH}).stdout
    (link,) = json.loads(out)
    return {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["family"] == "inet"}


def with_bridge(*addresses: str) -> None:
    """cni0 as the plugin left it, without a pod."""
    script = "ip link add cni0 type bridge; ip link set cni0 up; " + "; ".join(f"ip addr add {a} dev cni0" for a in addresses)
    subprocess.run(["sh", "-ec", script], check=True, env={"PATH": PATH})


def readyz() -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


# ---- the node registers again -----------------------------------------------------------------

REJOINED = {
    "another": (["10.244.9.0/24"], "10.244.9.1/24"),
    "larger": (["10.244.0.0/23"], "10.244.0.1/23"),
    "smaller": (["10.244.1.128/25"], "10.244.1.129/25"),
    "the same": (["10.244.1.0/24"], "10.244.1.1/24"),
}


def rejoin(directory: str, cidrs: list[str], gateway: str, is_running: bool) -> dict[str, Any]:
    """Delete node1, in a host, and register it again with these podCIDRs, while flanneld is running or not."""
    one = Node(directory)
    with_bridge("10.244.1.1/24")
    with one.server as server:
        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        with one.running():
            one.wait_for_subnet("10.244.1.1/24")
            one.wait_for_routes("10.244.2.0/24")
            one.wait_until_published("node1")
            server.delete("node1")
            if is_running:
                one.wait_for_words("Error renewing lease")
                server.put(node(1, *cidrs))
                one.wait_until_published("node1")
                return _after(one, gateway)
        server.put(node(1, *cidrs))
        with one.running():
            one.wait_until_published("node1")
            return _after(one, gateway)


def _after(one: Node, gateway: str) -> dict[str, Any]:
    one.wait_for_subnet(gateway)
    kept = {"10.244.1.1/24"} & {gateway}
    until(lambda: bridge_addresses() == kept, lambda: f"{bridge_addresses()}\n{one.log}")
    one.wait_for_routes("10.244.2.0/24")
    return {"annotations": one.server.nodes["node1"]["metadata"]["annotations"], "ready": readyz()[0]}


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("which", REJOINED)
def test_node_that_registers_again_gets_the_subnet_of_its_podcidr(
    host: Host, tmp_path: Path, which: str, is_running: bool
) -> None:
    """And the pods' bridge loses the gateway of the former one, with which the plugin would refuse new pods."""
    cidrs, gateway = REJOINED[which]
    found = host.do(rejoin, str(tmp_path), cidrs, gateway, is_running)
    assert found["annotations"]["flannel.alpha.coreos.com/public-ip"] == "192.168.123.1"
    assert found["ready"] == 200


def rejoin_with_two_families(directory: str) -> dict[str, Any]:
    one = Node(directory)
    with one.server as server:
        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        with one.running():
            one.wait_until_published("node1")
        one.net_conf.write_text(json.dumps(DUAL))
        with one.running():
            one.wait_for_words("has no IPv6 PodCIDR")
            before = {"routes": routes(), "ready": readyz()}
            server.delete("node1")
            server.put(node(1, "10.244.1.0/24", "fd00:244:0:1::/64"))
            until(lambda: "FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64" in _read("/run/flannel/subnet.env"), lambda: one.log)
            one.wait_for_routes("10.244.2.0/24")
            second = vxlan(2) | {"public_ipv6": "fd00:123::2", "backend_v6_data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:12"}'}
            server.delete("node2")
            server.put(node(2, "10.244.2.0/24", "fd00:244:0:2::/64", **second))
            until(lambda: routes("-6") == {"fd00:244:0:2::/64"}, lambda: one.log)
            one.wait_for_routes("10.244.2.0/24")
            return before


def test_second_podcidr_is_used_once_the_node_has_it(host: Host, tmp_path: Path) -> None:
    """Dual stack switched on in a running cluster: until the node has registered again, its IPv4 stays and the reason is said."""
    before = host.do(rejoin_with_two_families, str(tmp_path))
    assert before["routes"] == {"10.244.2.0/24"}
    assert before["ready"][0] == 503
    assert "has no IPv6 PodCIDR" in before["ready"][1]


# ---- another node -----------------------------------------------------------------------------


def peer(directory: str) -> dict[str, Any]:
    """Run in a host: node2 registers again with another podCIDR; then under another name, with what it had."""
    one, found = Node(directory), dict[str, Any]()
    with one.server as server:
        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        with one.running():
            one.wait_for_routes("10.244.2.0/24")
            server.delete("node2")
            server.put(node(2, "10.244.8.0/24", **vxlan(2)))
            one.wait_for_routes("10.244.8.0/24")
            renamed = node(2, "10.244.8.0/24", **vxlan(2))
            renamed["metadata"]["name"] = "renamed"
            server.put(renamed)
            server.delete("node2")
            server.put(node(3, **vxlan(3)))  # the next event: what came before it has been followed
            one.wait_for_routes("10.244.3.0/24", "10.244.8.0/24")
            server.delete("renamed")
            one.wait_for_routes("10.244.3.0/24")
            server.put(node(4, **(vxlan(4) | {"public_ip": "192.168.123.3"})))
            one.wait_for_words("192.168.123.3")
            found["log"] = one.log
            server.delete("node4")
            server.put(node(5, **vxlan(5)))
            one.wait_for_routes("10.244.3.0/24", "10.244.5.0/24")
    return found


def test_another_node_that_registers_again_or_is_renamed_is_followed(host: Host, tmp_path: Path) -> None:
    log = host.do(peer, str(tmp_path))["log"]
    (line,) = [line for line in log.splitlines() if "192.168.123.3" in line and line.startswith("W")]
    assert "10.244.3.0/24" in line
    assert "10.244.4.0/24" in line


# ---- our own name -----------------------------------------------------------------------------


def rename(directory: str) -> dict[str, Any]:
    """Run in a host: the machine registers as "renamed", with a podCIDR of its own, and the Node of before stays."""
    one = Node(directory)
    with_bridge("10.244.1.1/24")
    with one.server as server:
        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        with one.running():
            one.wait_until_published("node1")
        before = dict(server.nodes["node1"]["metadata"]["annotations"])
        renamed = node(7)
        renamed["metadata"]["name"] = "renamed"
        server.put(renamed)
        with one.running("renamed"):
            one.wait_until_published("renamed")
            one.wait_for_subnet("10.244.7.1/24")
            one.wait_for_routes("10.244.2.0/24")
            until(lambda: bridge_addresses() == set(), lambda: one.log)
            after = server.nodes["node1"]["metadata"]["annotations"]
            return {"unchanged": before == dict(after), "log": one.log}


def test_renamed_node_is_a_new_one_and_the_former_is_not_followed(host: Host, tmp_path: Path) -> None:
    found = host.do(rename, str(tmp_path))
    assert found["unchanged"]
    (line,) = [line for line in found["log"].splitlines() if "10.244.1.0/24" in line and line.startswith("W")]
    assert "our own" in line


# ---- the API is away --------------------------------------------------------------------------


def first_start_without_api(directory: str) -> dict[str, Any]:
    """Run in a host: the API listens only after flanneld has waited for it; then it is away for a while, and nodes change."""
    one = Node(directory)
    with one.server:
        pass  # it has a port now
    found: dict[str, Any] = {}
    with one.running():
        until(lambda: "does not answer" in readyz()[1], lambda: f"{readyz()}\n{one.log}")
        found["waiting"] = (readyz()[0], os.path.exists("/run/flannel/subnet.env"))
        one.server.put(node(2, **vxlan(2)))
        with one.server as server:
            one.wait_for_words('there is no node "node1" yet')
            server.put(node(1))
            one.wait_for_routes("10.244.2.0/24")
            one.wait_until_published("node1")
        one.wait_for_words("until it responds, the last known nodes stay")
        found["away"] = (readyz()[0], routes())
        one.server.delete("node2")
        one.server.put(node(3, **vxlan(3)))
        with one.server:
            one.wait_for_routes("10.244.3.0/24")
    return found


def test_api_is_away_at_the_first_start_and_later(host: Host, tmp_path: Path) -> None:
    found = host.do(first_start_without_api, str(tmp_path))
    assert found["waiting"] == (503, False)
    assert found["away"] == (200, {"10.244.2.0/24"})
