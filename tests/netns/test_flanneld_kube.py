"""flanneld with -kube-subnet-mgr, the whole daemon: a node of a cluster whose API server is apiserver.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer, node, vxlan
from support.flannel import flanneld_command
from support.namespaces import PATH, Host
from support.waiting import until

pytestmark = pytest.mark.netns

EXTERNAL = "ip link add eth0 type veth peer peer && ip addr add 192.168.123.1/24 dev eth0 && ip link set eth0 up && ip link set peer up"
NET_CONF = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


def life_of_a_node(directory: str) -> dict[str, Any]:
    """Start it, in a host, beside another node's entry, alter ours, add a third, remove the second, create our own again.

    Returns: the state after each step.
    """
    subprocess.run(["sh", "-ec", EXTERNAL], check=True, env={"PATH": PATH})
    (Path(directory) / "net-conf.json").write_text(json.dumps(NET_CONF))
    with ApiServer() as server:
        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        options = [
            "-kube-subnet-mgr",
            f"-kube-api-url={server.url}",
            f"-net-config-path={directory}/net-conf.json",
            "-iface=eth0",
        ]
        log = (Path(directory) / "log").open("wb")
        env = os.environ | {"PATH": PATH, "NODE_NAME": "node1"}
        daemon = subprocess.Popen(flanneld_command(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            until(lambda: has_routes("10.244.2.0/24"), "the route to node2")
            until(lambda: condition(server) is not None, "the node's condition")
            found: dict[str, Any] = {
                "annotations": server.nodes["node1"]["metadata"]["annotations"],
                "condition": condition(server),
                "subnet.env": Path("/run/flannel/subnet.env").read_text(),
            }
            published = dict(found["annotations"])
            server.annotate("node1", backend_data='{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}')
            until(lambda: server.nodes["node1"]["metadata"]["annotations"] == published, "our MAC address is there again")
            server.put(node(3, **vxlan(3)))
            until(lambda: has_routes("10.244.2.0/24", "10.244.3.0/24"), "the route to node3")
            server.delete("node2")
            until(lambda: has_routes("10.244.3.0/24"), "node2's route was deleted")
            server.delete("node1")
            until(
                lambda: "Error renewing lease" in (Path(directory) / "log").read_text(),
                "the first attempt to have it again fails",
            )
            fresh = node(1)
            fresh["status"]["conditions"].append({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"})
            server.put(fresh)
            until(lambda: (condition(server) or {}).get("reason") == "FlannelIsUp", "the condition of the new node")
            found["again"] = server.nodes["node1"]["metadata"]["annotations"]
            mac = Path("/sys/class/net/flannel.1/address").read_text().strip()
            daemon.send_signal(signal.SIGTERM)
            return found | {"mac": mac, "status": daemon.wait(30), "stays": has_routes("10.244.3.0/24")}
        finally:
            daemon.kill()
            daemon.wait()
            log.close()


def has_routes(*subnets: str) -> bool:
    """Return whether there are routes to other nodes for these subnets, and no others."""
    out = subprocess.run(
        ["ip", "-j", "route", "show", "proto", "122"], capture_output=True, text=True, env={"PATH": PATH}
    ).stdout
    return {route["dst"] for route in json.loads(out or "[]")} == set(subnets)


def condition(server: ApiServer) -> dict[str, Any] | None:
    of_node = server.nodes["node1"]["status"]["conditions"]
    return next((one for one in of_node if one["type"] == "NetworkUnavailable"), None)


def test_node_of_a_kubernetes_cluster(host: Host, tmp_path: Path) -> None:
    pytest.importorskip("urllib3", reason="urllib3 is not installed: pip install 'cni-py[flanneld]'")
    found = host.do(life_of_a_node, str(tmp_path))
    written = {key.partition("/")[2]: value for key, value in found["annotations"].items() if key.startswith("flannel.")}
    assert written == {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": json.dumps({"VNI": 1, "VtepMAC": found["mac"]}, separators=(",", ":")),
        "public-ip": "192.168.123.1",
    }
    assert (found["condition"]["status"], found["condition"]["reason"]) == ("False", "FlannelIsUp")
    assert found["again"] == found["annotations"]
    assert found["subnet.env"].splitlines()[:2] == ["FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_SUBNET=10.244.1.1/24"]
    assert (found["status"], found["stays"]) == (0, True), (tmp_path / "log").read_text()


def interface_of_a_node(directory: str) -> dict[str, Any]:
    """Return, in a host with a default route over eth0, what flanneld publishes where Kubernetes knows the node by an address of eth1."""
    second = (
        EXTERNAL.replace("eth0", "eth1")
        .replace("peer peer", "peer peer1")
        .replace("set peer ", "set peer1 ")
        .replace("123.1", "124.1")
    )
    subprocess.run(
        ["sh", "-ec", f"{EXTERNAL}; {second}; ip route add default via 192.168.123.254"], check=True, env={"PATH": PATH}
    )
    (Path(directory) / "net-conf.json").write_text(json.dumps(NET_CONF))
    with ApiServer() as server:
        server.put(node(1))
        options = [
            "-kube-subnet-mgr",
            f"-kube-api-url={server.url}",
            f"-net-config-path={directory}/net-conf.json",
            "-iface-node-ip",
        ]
        log_path = Path(directory) / "log"
        with log_path.open("wb") as log:
            env = os.environ | {"PATH": PATH, "NODE_NAME": "node1"}
            daemon = subprocess.Popen(flanneld_command(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            until(lambda: "has no valid InternalIP: none is listed" in log_path.read_text(), "it waits for the kubelet")
            known = node(1)
            known["status"]["addresses"] = [{"type": "InternalIP", "address": "192.168.124.1"}]
            server.put(known)
            until(lambda: condition(server) is not None, log_path.read_text)
            return {"public-ip": server.nodes["node1"]["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"]}
        finally:
            daemon.kill()
            daemon.wait()


def test_interface_is_the_one_by_which_kubernetes_knows_the_node(host: Host, tmp_path: Path) -> None:
    pytest.importorskip("urllib3", reason="urllib3 is not installed: pip install 'cni-py[flanneld]'")
    assert host.do(interface_of_a_node, str(tmp_path)) == {"public-ip": "192.168.124.1"}


AWAY = ["refused", "forbidden", "silent"]


def node_without_the_api(directory: str, away: str) -> dict[str, Any]:
    """Run it once, in a host, beside two nodes, lose the kernel's state as at a reboot, start with the API away; then it is back."""
    subprocess.run(["sh", "-ec", EXTERNAL], check=True, env={"PATH": PATH})
    (Path(directory) / "net-conf.json").write_text(json.dumps(NET_CONF))
    env, log_path = os.environ | {"PATH": PATH, "NODE_NAME": "node1"}, Path(directory) / "log"
    code = "from cni_py.datastore.kubernetes import api; api.READ_SECONDS = 0.5"
    server = ApiServer()
    with server:
        options = [
            "-kube-subnet-mgr",
            f"-kube-api-url={server.url}",
            f"-net-config-path={directory}/net-conf.json",
            "-iface=eth0",
        ]

        def start() -> subprocess.Popen[bytes]:
            with log_path.open("wb") as log:
                return subprocess.Popen(
                    flanneld_command(*options, code=code), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
                )

        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        server.put(node(3, **vxlan(3)))
        first = start()
        until(lambda: has_routes("10.244.2.0/24", "10.244.3.0/24"), log_path.read_text)
        mac = Path("/sys/class/net/flannel.1/address").read_text()
        first.terminate()
        assert first.wait(30) == 0
        if away != "refused":
            server.faults += [{"forbidden": forbidden, "silent": silent}[away]] * 500
        second = start() if away != "refused" else None
        if second is not None:  # its state stays, which proves less: the saved leases are what it says that it goes by
            until(lambda: "forwarding by what was saved" in log_path.read_text(), log_path.read_text)
            second.terminate()
            second.wait(30)
    subprocess.run(["ip", "link", "del", "flannel.1"], check=True, env={"PATH": PATH})
    Path("/run/flannel/subnet.env").unlink()
    second = start()
    try:
        until(lambda: has_routes("10.244.2.0/24", "10.244.3.0/24"), log_path.read_text)
        until(Path("/run/flannel/subnet.env").exists, log_path.read_text)
        found = {"same mac": mac == Path("/sys/class/net/flannel.1/address").read_text()}
        until(lambda: "flannel is ready" in log_path.read_text(), log_path.read_text)
        server.delete("node3")
        server.put(node(4, **vxlan(4)))
        server.faults.clear()
        with server:
            until(lambda: "the datastore responds again, and our lease of" in log_path.read_text(), log_path.read_text)
            until(lambda: has_routes("10.244.2.0/24", "10.244.4.0/24"), log_path.read_text)
            return found | {"said": "forwarding by what was saved" in log_path.read_text()}
    finally:
        second.kill()
        second.wait()


def forbidden(request: Any) -> bool:
    request.fail(403, "not today")
    return True


def silent(request: Any) -> bool:
    time.sleep(1)
    return True


@pytest.mark.parametrize("away", AWAY)
def test_node_starts_by_what_was_saved_while_the_api_is_away(host: Host, tmp_path: Path, away: str) -> None:
    """Its configuration is a file, so it is read all the same."""
    pytest.importorskip("urllib3", reason="urllib3 is not installed: pip install 'cni-py[flanneld]'")
    assert host.do(node_without_the_api, str(tmp_path), away) == {"same mac": True, "said": True}
