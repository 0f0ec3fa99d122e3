"""Leases in the Kubernetes API: the nodes' ``podCIDRs`` and annotations. No etcd, and no subnet to choose.

How it works. A node's lease is what ``kube_annotations.py`` reads from it; ours is written by patches of
``nodes/NAME/status``. The network's configuration is a file (``-net-config-path``).
A thread lists all nodes and then watches from that version on; of each it keeps the lease alone. A watch
that ends, which the server lets happen every few minutes, goes on from the last version seen, and
bookmarks keep that young; where the server no longer knows it (410), everything is listed again. While
the API does not answer, the last known leases stay.

A lease here has no end: it lasts as long as the node, and ``renew`` only writes again what another process
took away.

Source: flannel-io/flannel pkg/subnet/kube/kube.go.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from cni_py import files
from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.datastore.kubernetes.api import Event as NodeEvent
from cni_py.datastore.kubernetes.api import Gone, KubeApi, NotFound, Watch, path_of
from cni_py.datastore.kubernetes.config import find_access
from cni_py.errors import CniError, InvalidConfig
from cni_py.flanneld import allocate
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import Event, LeaseTaken, Store
from cni_py.flanneld.stores.kubernetes_annotations import Annotations, pod_subnets
from cni_py.flanneld.stores.mirror import Mirror
from cni_py.kernel.address import is_within
from cni_py.node import log as klog
from cni_py.node.stop import Stop

if TYPE_CHECKING:
    from cni_py.flanneld.options import Options

NODES = "/api/v1/nodes"
END_SECONDS = 0.2
MIN_AGAIN_SECONDS = 0.1
MAX_AGAIN_SECONDS = 5.0
SHORT_WATCH_SECONDS = 1.0


class Whoami:
    """The node's name: NODE_NAME, else that of the pod POD_NAME in POD_NAMESPACE, asked for once. Raises: InvalidConfig."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._name = environ.get("NODE_NAME", "")
        self._pod, self._namespace = environ.get("POD_NAME", ""), environ.get("POD_NAMESPACE", "")
        if not self._name and not (self._pod and self._namespace):
            raise InvalidConfig("env variables POD_NAME and POD_NAMESPACE must be set", hint="or NODE_NAME: the node's name")

    def __str__(self) -> str:
        return self._name or f"the node of pod {self._namespace}/{self._pod}"

    def ask(self, api: KubeApi) -> str:
        """Raises: StoreError."""
        if not self._name:
            pod = api.get(path_of("namespaces", self._namespace, "pods", self._pod))
            self._name = str((pod.get("spec") or {}).get("nodeName") or "")
            if not self._name:
                raise Unavailable(f"node name not present in pod spec '{self._namespace}/{self._pod}'")
        return self._name


class KubeStore(Store):
    """The store that the options of ``-kube-subnet-mgr`` describe. Opens no connection. Raises: InvalidConfig.

    Safe from several threads.
    """

    def __init__(self, options: Options, environ: Mapping[str, str] = os.environ) -> None:
        self._options = options
        self._annotations = Annotations(options.kube_annotation_prefix)
        self._whoami = Whoami(environ)
        self._api = KubeApi(lambda: find_access(options.kube_api_url, options.kubeconfig_file, environ))

    def __str__(self) -> str:
        return f"Kubernetes Subnet Manager - {self._whoami}"

    def read_network_config(self) -> str:
        """The file. Raises: Refused."""
        try:
            return files.read(self._options.net_config_path).decode()
        except (CniError, OSError, UnicodeDecodeError) as error:
            raise Refused(f"failed to read net conf: {error}", "it is the file of -net-config-path") from error

    def stored_addresses(self) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Return what people wrote at the node in place of ``-public-ip`` and ``-public-ipv6``. Raises: StoreError."""
        node = self._node()
        try:
            return self._annotations.stored_addresses(node)
        except NotALease as error:
            raise Refused(f'node "{self._name(node)}": {error}') from error

    def node_addresses(self) -> list[IPv4Address | IPv6Address]:
        """Return the node's addresses of the type InternalIP, in their order. Raises: StoreError; Refused if it has none."""
        node = self._node()
        listed = (node.get("status") or {}).get("addresses") or []
        texts = [str(each.get("address")) for each in listed if isinstance(each, dict) and each.get("type") == "InternalIP"]
        with suppress(ValueError):
            if texts:
                return [ip_address(text) for text in texts]
        hint = "kubelet sets it, by --node-ip if that is given; or choose the interface with -iface or -iface-cidr"
        raise Refused(f'node "{self._name(node)}" has no valid InternalIP: {", ".join(texts) or "none is listed"}', hint)

    def stored_lease(self, config: NetworkConfig) -> Lease | None:
        """Return what the node published when flanneld ran before: with the MAC of its VXLAN device. Raises: StoreError."""
        return self._lease_of(config, self._node())

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Subnets | None) -> Lease:
        """The node's podCIDRs, with our annotations on it; ``previous`` has no say. Raises: StoreError."""
        node = self._node()
        subnets = _subnets_in(config, node)
        allocate.check_host_networks(subnets, config, subnets == previous or self._lease_of(config, node) is not None)
        changes = self._annotations.changes(node, attributes)
        for key in changes.overridden:
            name = f"{self._annotations.prefix}{key}"
            value = changes.annotations[name]
            klog.info(f"Overriding {key.replace('-', ' ')} with '{value}' from node annotation '{name}-overwrite'")
        if changes.annotations:
            node = self._patch_status({"metadata": {"annotations": changes.annotations}})
        lease = self._lease_of(config, node)
        return lease if lease is not None and lease.subnets == subnets else Lease(subnets, attributes)

    def renew(self, lease: Lease) -> Lease:
        """Write again what was taken away. Raises: StoreError; LeaseTaken where the node has other podCIDRs now."""
        renewed = self.acquire(self._config(), lease.attributes, lease.subnets)
        if renewed.subnets != lease.subnets:
            raise LeaseTaken(f'node "{self._whoami}" had {lease.subnets}, and {renewed.subnets} is its podCIDR now')
        return renewed

    def watch(self, stop: Stop) -> Iterator[list[Event]]:
        """Implement :meth:`Store.watch`. A node whose lease says the same, as when its kubelet reports health, is no event."""
        nodes = _Nodes(self._api, self._annotations, self._config)
        thread = threading.Thread(target=nodes.run, name="kube-watch", daemon=True)
        thread.start()
        try:
            with stop.calling(nodes.end):
                while not stop.is_set():
                    if events := nodes.events.get():
                        yield events
        finally:
            nodes.end()
            thread.join(END_SECONDS)  # it may be in the middle of a call: it is a daemon, and ends after that

    def ready(self) -> None:
        """Say so in the node's conditions: the scheduler waits for it. Raises: StoreError."""
        if not self._options.set_node_network_unavailable:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
        }
        self._patch_status({"status": {"conditions": [condition]}})

    def reconnect(self) -> None:
        self._api.reconnect()

    def close(self) -> None:
        self._api.close()

    def _node(self) -> dict[str, Any]:
        """Raises: StoreError."""
        name = self._whoami.ask(self._api)
        try:
            return self._api.get(path_of("nodes", name))
        except NotFound as error:
            raise Unavailable(f'there is no node "{name}" yet', "kubelet makes it; NODE_NAME must be its name") from error

    def _name(self, node: dict[str, Any]) -> str:
        return str((node.get("metadata") or {}).get("name") or self._whoami)

    def _lease_of(self, config: NetworkConfig, node: dict[str, Any]) -> Lease | None:
        """Return what it publishes, where people may have overruled us; None where that is not understood."""
        try:
            return self._annotations.lease(node, config.ipv4, config.ipv6)
        except NotALease:
            return None

    def _patch_status(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """The node as it is then. Raises: StoreError."""
        return self._api.patch(path_of("nodes", self._whoami.ask(self._api), "status"), change)

    def _config(self) -> NetworkConfig:
        """Raises: StoreError."""
        try:
            return NetworkConfig.parse(self.read_network_config())
        except InvalidConfig as error:
            raise Refused(f"error parsing subnet config: {error}") from error


class _Nodes:
    """The leases of all nodes, followed by the thread of :meth:`run` until :meth:`end`. ``events``: what changed; [] at the
    end."""

    def __init__(self, api: KubeApi, annotations: Annotations, read_config: Callable[[], NetworkConfig]) -> None:
        self._api, self._annotations, self._read_config = api, annotations, read_config
        self.events: SimpleQueue[list[Event]] = SimpleQueue()
        self._mirror = Mirror()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._current: Watch | None = None
        self._faults: dict[str, str] = {}
        self._families = (False, False)
        self._version = ""
        self._has_failed = False

    def end(self) -> None:
        """End it, from another thread. Twice is fine."""
        self._stop.set()
        self.events.put([])
        with self._lock:
            if self._current is not None:
                self._current.shut()

    def run(self) -> None:
        """List, watch, and both again."""
        pause = MIN_AGAIN_SECONDS
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if not self._version:
                    self._list()
                self._watch()
            except Gone as error:
                klog.info(f"{error}: listing the nodes again")
                self._version = ""
            except StoreError as error:
                self._failed(error)
            if time.monotonic() - began > SHORT_WATCH_SECONDS:
                pause = MIN_AGAIN_SECONDS
            self._stop.wait(pause)
            pause = min(pause * 2, MAX_AGAIN_SECONDS)

    def _list(self) -> None:
        """List all nodes, and compare them with what was yielded. Raises: StoreError, Gone."""
        config = self._read_config()
        self._families = (config.ipv4, config.ipv6)
        leases: dict[str, Lease | None] = {}
        version = ""
        for version, items in self._api.list_all(NODES):  # noqa: B007 — the last page's is that of the whole
            leases |= {_name_of(item): self._lease_of(item) for item in items}
        self._faults = {name: fault for name, fault in self._faults.items() if name in leases}
        self._version = version
        self.events.put(list(self._mirror.replace(leases.items())))

    def _watch(self) -> None:
        """Watch until the server ends it, or we do. Raises: StoreError, Gone."""
        with self._api.watch(NODES, self._version) as watch:
            self._answers()
            with self._lock:
                self._current = watch
            try:
                if not self._stop.is_set():
                    for event in watch:
                        self._take(event)
            finally:
                with self._lock:
                    self._current = None

    def _take(self, event: NodeEvent) -> None:
        if event.kind != "BOOKMARK":
            is_deleted = event.kind == "DELETED"  # and kubelet makes a Node once, when it starts: none is on its way
            lease = None if is_deleted else self._lease_of(event.item)
            if events := self._mirror.put(_name_of(event.item), lease, is_final=is_deleted):
                self.events.put(events)
        self._version = str((event.item.get("metadata") or {}).get("resourceVersion") or self._version)

    def _lease_of(self, node: dict[str, Any]) -> Lease | None:
        """Return the lease; None where it has none that can be understood, which is logged once."""
        name = _name_of(node)
        try:
            lease = self._annotations.lease(node, *self._families)
        except NotALease as error:
            if self._faults.get(name) != str(error):
                klog.warning(f'Error turning node "{name}" to lease: {error}; not reached')
            self._faults[name] = str(error)
            return None
        self._faults.pop(name, None)
        return lease

    def _failed(self, error: StoreError) -> None:
        """Logged when it begins."""
        if not self._has_failed and not self._stop.is_set():
            self._has_failed = True
            klog.error(f"{error}; until it responds, the last known nodes stay")

    def _answers(self) -> None:
        if self._has_failed:
            self._has_failed = False
            klog.info(f"{self._api} responds again")


def _name_of(node: dict[str, Any]) -> str:
    return str((node.get("metadata") or {}).get("name") or "")


def _subnets_in(config: NetworkConfig, node: dict[str, Any]) -> Subnets:
    """The node's podCIDRs of the families that the network has. Raises: StoreError."""
    name = _name_of(node)
    try:
        there = pod_subnets(node)
    except NotALease as error:
        raise Refused(f'node "{name}": {error}') from error
    if not there.each():
        raise Unavailable(
            f'node "{name}" pod cidr not assigned',
            "kube-controller-manager does it with --allocate-node-cidrs and --cluster-cidr",
        )
    subnets = Subnets(there.ipv4 if config.ipv4 else None, there.ipv6 if config.ipv6 else None)
    if bool(subnets.ipv4) != config.ipv4 or bool(subnets.ipv6) != config.ipv6:
        missing = "IPv4" if config.ipv4 and not subnets.ipv4 else "IPv6"
        raise Refused(
            f'node "{name}" has no {missing} PodCIDR, it has {there}', "--cluster-cidr and the network configuration differ"
        )
    if subnets.ipv4 and config.network and not is_within(subnets.ipv4, config.network):
        raise Refused(_not_in(config.network, f'"{subnets.ipv4}"', name))
    if subnets.ipv6 and config.ipv6_network and not is_within(subnets.ipv6, config.ipv6_network):
        raise Refused(_not_in(config.ipv6_network, f'"{subnets.ipv6}" IPv6', name))
    return subnets


def _not_in(network: object, subnet: str, name: str) -> str:
    """Describe it in Go's words."""
    return f'subnet "{network}" specified in the flannel net config doesn\'t contain {subnet} PodCIDR of the "{name}" node'
