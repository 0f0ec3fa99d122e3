"""flanneld as the manifest's container: its arguments, two capabilities, a read-only file system, our ClusterRole, the pod's token."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer, node, vxlan
from support.container import confined
from support.flannel import flanneld_command
from support.kube import Certificates
from support.manifest import MANIFEST, container, find, load
from support.namespaces import PATH, Host
from support.waiting import until

pytestmark = pytest.mark.netns

ACCOUNT = Path("/run/secrets/kubernetes.io/serviceaccount")
EXTERNAL = """
ip link add eth0 type veth peer peer; ip addr add 192.168.123.1/24 dev eth0; ip link set eth0 up; ip link set peer up
ip route add default via 192.168.123.254
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""


def run_container(directory: str) -> dict[str, Any]:
    """Start it in a host, ask its probes, replace its token, and end it. Returns: what was found."""
    subprocess.run(["sh", "-ec", EXTERNAL], check=True, env={"PATH": PATH})
    objects = load(MANIFEST)
    one = container(objects, "flanneld", "flanneld")
    certificates, log_path = Certificates(Path(directory)), Path(directory) / "log"
    config = Path("/run/config")
    for place in (config, ACCOUNT):
        place.mkdir(parents=True)
    for name, text in find(objects, "ConfigMap", "cni-py")["data"].items():
        (config / name).write_text(text)
    (ACCOUNT / "ca.crt").write_bytes(Path(certificates.path("ca.crt")).read_bytes())
    (ACCOUNT / "token").write_text("first")
    argv, env = confined(one, {"spec.nodeName": "node1"}, str(config), flanneld_command(*one["args"]))
    with ApiServer("first", certificates.server()) as server, log_path.open("wb") as log:
        server.put(node(1))
        server.put(node(2, **vxlan(2)))
        env |= {"PATH": PATH, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            until(lambda: probe(one, "readinessProbe") == 200, log_path.read_text)
            until(lambda: b"FlannelIsUp" in json.dumps(server.nodes["node1"]).encode(), log_path.read_text)
            found = {
                "live": probe(one, "livenessProbe"),
                "capabilities": Path(f"/proc/{daemon.pid}/status").read_text().partition("CapEff:\t")[2].split()[0],
                "subnet.env": Path("/run/flannel/subnet.env").read_text(),
                "saved": Path("/var/lib/cni-py/flanneld.json").exists(),
                "log": log_path.read_text(),
            }
            server.token = "second"
            (ACCOUNT / "token").write_text("second")
            server.disconnect()
            server.put(node(3, **vxlan(3)))
            until(lambda: routes() == {"10.244.2.0/24", "10.244.3.0/24"}, log_path.read_text)
            daemon.send_signal(signal.SIGTERM)
            return found | {"status": daemon.wait(30), "routes": routes()}
        finally:
            daemon.kill()
            daemon.wait()


def probe(one: dict[str, Any], name: str) -> int:
    """Return the status that kubelet's request would get; 0: no server."""
    get = one[name]["httpGet"]
    try:
        with urllib.request.urlopen(f"http://{get['host']}:{get['port']}{get['path']}", timeout=10) as response:
            return int(response.status)
    except OSError as error:
        return getattr(error, "code", 0)


def routes() -> set[str]:
    out = subprocess.run(["ip", "-j", "route", "show", "proto", "122"], capture_output=True, text=True, env={"PATH": PATH})
    return {route["dst"] for route in json.loads(out.stdout or "[]")}


def test_container_is_ready_and_logs_no_warning(host: Host, tmp_path: Path) -> None:
    found = host.do(run_container, str(tmp_path))
    assert found["live"] == 200
    assert int(found["capabilities"], 16) == 1 << 12 | 1 << 13  # NET_ADMIN and NET_RAW
    assert "FLANNEL_SUBNET=10.244.1.1/24" in found["subnet.env"]
    assert found["saved"]
    needs = "br_netfilter"  # a kernel that lacks it is warned of, rightly
    warnings = [line for line in found["log"].splitlines() if line[:1] in "WE" and needs not in line]
    assert warnings == [], found["log"]
    assert (found["status"], found["routes"]) == (0, {"10.244.2.0/24", "10.244.3.0/24"})
