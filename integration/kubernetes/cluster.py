"""A cluster of namespaces: control plane, and nodes with containerd, kubelet and kube-proxy, each a host of its own.

    192.168.123.1 kube-apiserver, controller manager, scheduler, etcd ── switch ── node1 .11, node2 .12, node3 .13

All programs of Kubernetes are those of `make test-kubernetes K8S_BIN=DIR`. Images are archives, imported on each node: ours
(IMAGE, or what `make image` made), a pause, and the server of integration/clients/answer.py; no registry is asked.

What a container engine does with control groups is left out, as in integration/clients: kubelet creates none (cgroupsPerQOS),
crun uses none. The kernel's tunables that kubelet would set for the whole machine are files of the node that have these
values already.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from integration.clients import image
from integration.clients.containerd import CONFIG, CRUN, SOCKET
from integration.kubernetes.control_plane import PORT, ControlPlane, Reply, collection_of
from support.flannel import Net, Node
from support.manifest import Object
from support.namespaces import PATH, Host
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "192.168.123.1"
OURS = "kube-cni-py"
LONG_SECONDS = 300.0
"""Deadline for a node to be Ready: images are unpacked, and programs of 100 MB started, on few cores."""
PODS = "10.244.0.0/16"
DNS = "10.96.0.10"
"""Address of the service "kube-dns"; nothing responds there unless a test starts it (dns.yml)."""
TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
DIRECTORIES = ("/opt", "/dev/shm", "/var/log", "/var/lib/kubelet", "/var/lib/containerd")
KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "containerRuntimeEndpoint": f"unix://{SOCKET}",
    "cgroupsPerQOS": False,
    "clusterDNS": [DNS],
    "clusterDomain": "cluster.local",
    "enforceNodeAllocatable": [],
    "evictionHard": {"memory.available": "1Mi"},
    "failSwapOn": False,
    "imageGCHighThresholdPercent": 100,
    "localStorageCapacityIsolation": False,
    "protectKernelDefaults": True,
    "readOnlyPort": 0,
    "resolvConf": "",
    "nodeStatusUpdateFrequency": "2s",
    "syncFrequency": "2s",
}
PROXY: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "nftables",
    "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
}


def archive_of_the_image() -> Path | None:
    """Return the OCI archive of cni-py; None where there is none."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    made = sorted((ROOT / "dist").glob(f"cni-py-*-{machine}.oci.tar"))
    path = Path(os.environ["IMAGE"]) if "IMAGE" in os.environ else made[-1] if made else None
    return path if path and path.exists() else None


class Cluster:
    """A control plane, and nodes that register when they are started."""

    def __init__(self, directory: Path, binaries: Path, containerd: str, archives: list[Path], nodes: int = 3) -> None:
        """``archives``: of images that every node has from its start, ours first."""
        self.directory, self.binaries, self.containerd = directory, binaries, containerd
        self.net = Net(directory, {"Type": "vxlan"}, families="dual")  # of the nodes; pods have IPv4 at first
        self.plane = ControlPlane(self.net.switch, directory, binaries, ADDRESS, nodes)
        self.plane.start_controllers(PODS)
        busybox = str(shutil.which("busybox", path=PATH))
        pause = image.write_pause(directory / "pause.tar", busybox, image.PAUSE)
        self.archives = [*archives, pause, image.write_image(directory / "answer.tar", busybox)]
        self.net.add_nodes(nodes)
        self.before: dict[int, list[str]] = {}
        """State of each node before the manifest, for tests."""

    def close(self) -> None:
        self.net.close()
        self.plane.close()

    def node(self, number: int) -> Node:
        return self.net.nodes[number - 1]

    @property
    def numbers(self) -> range:
        """Numbers of the nodes."""
        return range(1, len(self.net.nodes) + 1)

    # ---- a node ---------------------------------------------------------------------------------

    def start_node(self, number: int) -> None:
        """A bare node: containerd, kubelet and kube-proxy, and the images."""
        host = self.node(number).host
        host.run("\n".join(self._bare(host)))
        self.start_containerd(number)
        for archive in self.archives:
            self.import_image(number, archive)
        self._start_proxy(number)
        self.start_kubelet(number)

    def _bare(self, host: Host) -> Iterator[str]:
        for directory in DIRECTORIES:
            yield f"mkdir -p {directory}; mount -t tmpfs tmpfs {directory}"
        yield "mount --make-rshared /var/lib/kubelet; mkdir -p /opt/cni/bin /etc/cni/net.d; mount -t tmpfs tmpfs /sys/fs/cgroup"
        for name in CONTROLLERS:
            yield f"mkdir /sys/fs/cgroup/{name}; mount -t cgroup -o {name} cgroup /sys/fs/cgroup/{name}"
        for name, value in TUNABLES.items():
            file = f"/run/tunables-{name.replace('/', '-')}"
            yield f"echo {value} >{file}; mount --bind {file} /proc/sys/{name}"
        host.write("/run/crun", CRUN)
        yield "chmod +x /run/crun"

    def start_containerd(self, number: int) -> None:
        host = self.node(number).host
        host.write("/run/containerd.toml", CONFIG % {"socket": SOCKET, "image": image.PAUSE, "snapshotter": "overlayfs"})
        path = f"{os.path.dirname(self.containerd)}:{PATH}"
        self._start(number, "containerd", self.containerd, "--config", "/run/containerd.toml", env={"PATH": path})
        until(lambda: host.execute(["test", "-S", SOCKET]).returncode == 0, lambda: self.log(number, "containerd"))

    def import_image(self, number: int, archive: Path) -> None:
        ctr = f"{os.path.dirname(self.containerd)}/ctr"
        self.node(number).host.run(f"TMPDIR=/run {ctr} -n k8s.io images import --snapshotter overlayfs {archive}")

    def start_kubelet(self, number: int, *, both: bool = False) -> None:
        """``both``: the node registers with an address of each family."""
        node = self.node(number)
        host = node.host
        host.write("/run/kubelet.yaml", json.dumps(KUBELET))
        self._start(
            number,
            "kubelet",
            str(self.binaries / "kubelet"),
            "--config=/run/kubelet.yaml",
            f"--kubeconfig={self.plane.kubeconfig(f'node{number}', f'of-node{number}')}",
            f"--hostname-override=node{number}",
            f"--node-ip={node.address},{node.address6}" if both else f"--node-ip={node.address}",
        )

    def _start_proxy(self, number: int) -> None:
        config = PROXY | {"clientConnection": {"kubeconfig": self.plane.kubeconfig_of_admin}}
        host = self.node(number).host
        host.write("/run/kube-proxy.yaml", json.dumps(config | {"hostnameOverride": f"node{number}"}))
        self._start(number, "kube-proxy", str(self.binaries / "kube-proxy"), "--config=/run/kube-proxy.yaml")

    def _start(self, number: int, name: str, *argv: str, env: dict[str, str] | None = None) -> None:
        script = f'echo $$ >/run/{name}.pid; exec "$0" "$@"'
        self.plane.start(f"node{number}-{name}", "sh", "-c", script, *argv, env=env, host=self.node(number).host)

    def kill(self, number: int, name: str) -> None:
        self.node(number).host.run(f"kill -KILL $(cat /run/{name}.pid)")

    def log(self, number: int, name: str) -> str:
        return self.plane.log(f"node{number}-{name}")[-3000:]

    # ---- objects --------------------------------------------------------------------------------

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self.plane.call("GET", path, **query).body

    def apply(self, objects: list[Object]) -> None:
        """Create the objects, or replace them where they exist."""
        for item in objects:
            reply = self.plane.create(item)
            if reply.status == 409:
                reply = self.plane.call("PUT", f"{collection_of(item)}/{item['metadata']['name']}", item)
            assert reply.status in (200, 201), reply

    def delete(self, objects: list[Object]) -> list[Reply]:
        return [self.plane.call("DELETE", f"{collection_of(each)}/{each['metadata']['name']}") for each in reversed(objects)]

    def label(self, number: int, value: str | None) -> None:
        self.plane.call("PATCH", f"/api/v1/nodes/node{number}", {"metadata": {"labels": {"cni-py": value}}})

    def pods(self, namespace: str, **query: str) -> list[Object]:
        found: list[Object] = self.get(f"/api/v1/namespaces/{namespace}/pods", **query).get("items", [])
        return found

    def is_ready(self, number: int) -> bool:
        reply = self.plane.call("GET", f"/api/v1/nodes/node{number}")
        conditions = reply.body["status"].get("conditions", []) if reply.status == 200 else []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def pods_ready(self, namespace: str, count: int) -> bool:
        pods = self.pods(namespace)
        return len(pods) == count and all(
            each.get("ready") for pod in pods for each in pod["status"].get("containerStatuses", [{"ready": False}])
        )

    @property
    def all_ready(self) -> bool:
        """Return whether all nodes are, and both of our pods on each."""
        return all(map(self.is_ready, self.numbers)) and self.pods_ready(OURS, 2 * len(self.numbers))

    def route_to_pods(self) -> None:
        """Give the control plane routes to pods: the API server, and the suites beside it, connect to them."""
        for item in self.get("/api/v1/nodes")["items"]:
            gateway = self.node(int(item["metadata"]["name"][4:])).address
            self.net.switch.run(f"ip route replace {item['spec']['podCIDR']} via {gateway}")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        until(condition, lambda: f"{what}\n{self.report()}", LONG_SECONDS)

    def report(self) -> str:
        """Return what `kubectl get` and `describe` would show where a wait did not end."""
        lines = []
        for item in self.get("/api/v1/nodes").get("items", []):
            ready = [each.get("message") for each in item["status"].get("conditions", []) if each["type"] == "Ready"]
            lines.append(f"{item['metadata']['name']}: {ready}, taints {item['spec'].get('taints')}")
        for pod in self.get("/api/v1/pods").get("items", []):
            status = pod["status"]
            states = [
                (each["name"], each["state"])
                for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
            ]
            lines.append(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}: {status['phase']} {states}")
        events = self.get("/api/v1/events").get("items", [])[-15:]
        lines += [f"{each['reason']}: {each.get('message', '')[:300]}" for each in events]
        return "\n".join(lines)


@contextmanager
def cluster(directory: Path, binaries: Path, containerd: str, archives: list[Path], nodes: int = 3) -> Iterator[Cluster]:
    made = Cluster(directory, binaries, containerd, archives, nodes)
    try:
        yield made
    finally:
        made.close()


def load_all(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


__all__ = ["ADDRESS", "PORT", "Cluster", "archive_of_the_image", "cluster", "load_all"]
