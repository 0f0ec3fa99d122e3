"""A Kubernetes cluster of one node and flanneld's store in it, against a server that speaks as the real one does (apiserver.py)."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from cni_py.flanneld import options
from cni_py.flanneld.lease import Attributes, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores.kubernetes import KubeStore
from support.apiserver import ApiServer, node

CONFIG: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL = CONFIG | {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
ONLY_IPV6 = DUAL | {"EnableIPv4": False}
OURS = Attributes(IPv4Address("192.168.123.1"), backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": "12:c6:65:89:b4:01"})
PREFIX = "flannel.alpha.coreos.com/"


def network(config: dict[str, Any]) -> NetworkConfig:
    return NetworkConfig.parse(json.dumps(config))


def subnet(text: str) -> Subnets:
    return Subnets(IPv4Network(text))


class Cluster:
    """A server with the node node1, and a store of that node."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.configure(CONFIG)
        server.put(node(1))
        self.store = self.connect()

    def configure(self, config: dict[str, Any]) -> None:
        (self.directory / "net-conf.json").write_text(json.dumps(config))

    def connect(self, *arguments: str, environ: dict[str, str] | None = None) -> KubeStore:
        words = ["-kube-subnet-mgr", f"-net-config-path={self.directory}/net-conf.json", *arguments]
        if not any(word.startswith(("-kube-api-url", "-kubeconfig-file")) for word in words):
            words.append(f"-kube-api-url={self.server.url}")
        return KubeStore(options.parse(words, {}), environ or {"NODE_NAME": "node1"})

    def annotations(self, name: str = "node1") -> dict[str, str]:
        found = self.server.nodes[name]["metadata"]["annotations"]
        return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}


def kubeconfig(directory: Path, cluster: dict[str, Any], user: dict[str, Any]) -> str:
    """Written as YAML, of which JSON is a part."""
    path = directory / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\npreferences: {}\n"
        f"clusters:\n- name: one\n  cluster: {json.dumps(cluster)}\n"
        f"users:\n- name: flannel\n  user: {json.dumps(user)}\n"
        "contexts:\n- name: here\n  context: {cluster: one, user: flannel}\n- name: there\n  context: {cluster: two, user: guest}\n"
    )
    return str(path)


class Certificates:
    """An authority, a server's certificate for 127.0.0.1 and kube.example, and a client's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority("ca")
        self.certificate("server", "ca", "subjectAltName=IP:127.0.0.1,DNS:kube.example")
        self.certificate("client", "ca", "extendedKeyUsage=clientAuth")
        self.authority("other")

    def authority(self, name: str) -> None:
        self._openssl(
            "req",
            "-x509",
            *self._key(name),
            "-out",
            f"{name}.crt",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-addext",
            "keyUsage=critical,keyCertSign",
        )

    def certificate(self, name: str, by: str, extension: str) -> None:
        self._openssl(
            "req",
            "-x509",
            *self._key(name),
            "-out",
            f"{name}.crt",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-CA",
            f"{by}.crt",
            "-CAkey",
            f"{by}.key",
            "-addext",
            extension,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def data(self, name: str) -> str:
        return base64.b64encode((self.directory / name).read_bytes()).decode()

    def server(self, wants_client: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server.crt"), self.path("server.key"))
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("ca.crt"))
        return context
