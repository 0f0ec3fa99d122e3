"""A real kube-apiserver with etcd, in a host of a test: port 6443, with RBAC and the admission of pod security.

    plane = ControlPlane(host, tmp_path, binaries)
    reply = plane.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})

`binaries` is the directory of `make test-kubernetes K8S_BIN=DIR`; etcd is Debian's. Where kube-controller-manager or
kube-scheduler are in it, `start_controllers` runs them too: podCIDRs, and the pods of DaemonSets.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support.kube import Certificates
from support.manifest import Object
from support.namespaces import PATH, Host
from support.waiting import until

PORT = 6443
SERVICE = "10.96.0.1"
"""Address of the service "kubernetes", the first one of its range."""
ADMIN = "of-the-administrator"
ETCD = "http://127.0.0.1:2379"


@dataclass(frozen=True)
class Reply:
    status: int
    body: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class ControlPlane:
    """Started when it is made, ended by `close`, after its host."""

    def __init__(self, host: Host, directory: Path, binaries: Path, address: str = "127.0.0.1", nodes: int = 0) -> None:
        """``nodes``: how many may register, node1 and on, each with a token of its own."""
        self.host, self.directory, self.binaries, self.address = host, directory, binaries, address
        self._processes: list[subprocess.Popen[bytes]] = []
        self._named: dict[str, subprocess.Popen[bytes]] = {}
        names = ",".join(f"IP:{each}" for each in {"127.0.0.1", address, SERVICE})
        Certificates(directory).certificate("server", "ca", f"subjectAltName={names}")
        self._run("openssl genrsa -out sa.key 2048 && openssl rsa -in sa.key -pubout -out sa.pub")
        lines = [f"{ADMIN},admin,admin,system:masters"]
        lines += [f"of-node{number},system:node:node{number},node{number},system:nodes" for number in range(1, nodes + 1)]
        (directory / "tokens").write_text("".join(f"{line}\n" for line in lines))
        self.host.run(
            "ip link add up0 type veth peer up1; ip addr add 192.168.124.254/24 dev up0; ip link set up0 up; ip link set up1 up"
        )
        self.start(
            "etcd", "etcd", f"--data-dir={directory}/etcd", f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"
        )
        self.start_api_server("10.96.0.0/16")

    def start_api_server(self, services: str) -> None:
        """Run it, and wait until it is ready. ``services``: a network of Services for each family."""
        directory, address, binaries = self.directory, self.address, self.binaries
        self.start(
            "kube-apiserver",
            str(binaries / "kube-apiserver"),
            f"--etcd-servers={ETCD}",
            f"--bind-address={'127.0.0.1' if address == '127.0.0.1' else '0.0.0.0'}",
            f"--secure-port={PORT}",
            f"--advertise-address={'192.168.124.254' if address == '127.0.0.1' else address}",
            f"--endpoint-reconciler-type={'none' if address == '127.0.0.1' else 'lease'}",
            f"--tls-cert-file={directory}/server.crt",
            f"--tls-private-key-file={directory}/server.key",
            f"--service-account-key-file={directory}/sa.pub",
            f"--service-account-signing-key-file={directory}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={services}",
            f"--token-auth-file={directory}/tokens",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",  # no name service knows the nodes
        )
        until(self._is_ready, lambda: self.log("kube-apiserver")[-2000:], 300)

    def stop(self, name: str) -> None:
        """End a program of the control plane, by SIGKILL: on SIGTERM the API server waits for its clients."""
        self.host.run(f"kill -KILL $(pidof {name})")
        self._named[name].wait(60)

    def _run(self, script: str) -> None:
        subprocess.run(["sh", "-ec", script], cwd=self.directory, check=True, capture_output=True)

    def start(
        self, name: str, *argv: str, env: Mapping[str, str] | None = None, host: Host | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in the host, or in another one; its output is its log."""
        with (self.directory / f"{name}.log").open("ab") as log:
            environ = {"PATH": PATH, "HOME": "/root", **(env or {})}
            process = subprocess.Popen(
                (host or self.host).command(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
            )
        self._processes.append(process)
        self._named[name] = process
        return process

    def close(self) -> None:
        """End the host, and with it all that was started in it."""
        self.host.close()
        for process in self._processes:
            process.wait(30)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def _is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz").status == 200
        except OSError:
            return False

    def call(self, method: str, path: str, body: object = None, token: str = ADMIN, **query: str) -> Reply:
        """One request. A patch is a strategic merge patch, or as a list a JSON patch."""
        return self.host.do(_request, str(self.directory / "ca.crt"), method, f"{path}?{urlencode(query)}", body, token)

    def create(self, item: Object, **query: str) -> Reply:
        return self.call("POST", collection_of(item), item, **query)

    def token(self, namespace: str, account: str, **spec: object) -> str:
        """Return a token of a service account."""
        version = "authentication.k8s.io/v1"
        request = {"apiVersion": version, "kind": "TokenRequest", "spec": {"expirationSeconds": 3600, **spec}}
        reply = self.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", request)
        assert reply.status == 201, reply
        return str(reply.body["status"]["token"])

    def kubeconfig(self, name: str, token: str) -> str:
        """Write a file with a user's token."""
        path = self.directory / f"{name}.kubeconfig"
        cluster = {"server": f"https://{self.address}:{PORT}", "certificate-authority": str(self.directory / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": name}}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    @property
    def kubeconfig_of_admin(self) -> str:
        return self.kubeconfig("admin", ADMIN)

    def has(self, *programs: str) -> bool:
        return all(os.access(self.binaries / program, os.X_OK) for program in programs)

    def start_controllers(self, cluster_cidr: str) -> None:
        """Run controller manager and scheduler."""
        self.start_controller_manager(cluster_cidr)
        self.start(
            "kube-scheduler",
            str(self.binaries / "kube-scheduler"),
            f"--kubeconfig={self.kubeconfig_of_admin}",
            "--leader-elect=false",
            "--secure-port=0",
        )

    def start_controller_manager(self, cluster_cidr: str, *options: str) -> None:
        """Run it. ``cluster_cidr``: a network of pods for each family."""
        self.start(
            "kube-controller-manager",
            str(self.binaries / "kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig_of_admin}",
            "--leader-elect=false",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={cluster_cidr}",
            f"--service-account-private-key-file={self.directory}/sa.key",
            f"--root-ca-file={self.directory}/ca.crt",
            "--secure-port=0",
            *options,
        )


def collection_of(item: Object) -> str:
    """Return the path of the objects of this kind in its namespace."""
    version, namespace = item["apiVersion"], item["metadata"].get("namespace")
    plural = item["kind"].lower() + "s" if not item["kind"].endswith("y") else item["kind"].lower()[:-1] + "ies"
    return f"/{'apis' if '/' in version else 'api'}/{version}/{f'namespaces/{namespace}/' if namespace else ''}{plural}"


def _request(ca: str, method: str, path: str, body: object, token: str) -> Reply:
    connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=30, context=ssl.create_default_context(cafile=ca))
    patch = "json-patch" if isinstance(body, list) else "strategic-merge-patch"
    kind = f"application/{patch}+json" if method == "PATCH" else "application/json"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read()
    try:
        decoded = json.loads(text)
    except ValueError:
        decoded = {"message": text.decode(errors="replace")}
    return Reply(response.status, decoded, tuple(response.headers.get_all("Warning") or ()))
