"""A change costs what changed: the calls of functions that one change takes, with few peers and with many.

Counted in process, over an etcd and a kernel that are made of nothing, through all that a change goes through: the watch, the
leases, the back end, the desired state, messages to the kernel, its reports, what is saved, and the figures for Prometheus. Times
would say the same, with noise. The Kubernetes API's side and the file's end where the leases begin.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cni_py.datastore.etcd import KeyValue
from cni_py.datastore.kubernetes.api import Event as NodeEvent
from cni_py.flanneld import backends
from cni_py.flanneld.following import Following
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.saved import Saver
from cni_py.flanneld.stores.etcd_leases import Leases
from cni_py.flanneld.stores.kubernetes import _Nodes
from cni_py.flanneld.stores.kubernetes_annotations import Annotations
from cni_py.flanneld.stores.mirror import Mirror
from cni_py.kernel import vxlan
from cni_py.node import reconcile
from cni_py.node.health import Health
from cni_py.node.reconcile import Reconciler
from cni_py.node.stop import Stop
from support.stub_kernel import StubKernel

FEW, MANY = 100, 2000
LESS_THAN_HALF = 1.5
DIRECTORY = "/coreos.com/network/subnets/"
NETWORK = NetworkConfig.parse(json.dumps({"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}))
OWN = Lease(Subnets.from_key("10.255.0.0-24"), Attributes(IPv4Address("172.31.255.1")))
EXTERNAL = ExternalInterface("eth0", 2, 1500, IPv4Address("172.31.255.1"), None, IPv4Address("172.31.255.1"), None)


def kv(number: int, revision: int, turn: int = 0, *, is_deleted: bool = False) -> KeyValue:
    """The key of a node; ``turn``: how often its MAC address has changed."""
    key = f"{DIRECTORY}10.{number >> 8}.{number & 255}.0-24"
    if is_deleted:
        return KeyValue(key, b"", 0, 0, revision)
    data = {"VNI": 1, "VtepMAC": f"02:{turn:02x}:00:00:{number >> 8:02x}:{number & 255:02x}"}
    value = {"PublicIP": f"172.16.{number >> 8}.{number & 255}", "BackendType": "vxlan", "BackendData": data}
    return KeyValue(key, json.dumps(value).encode(), 7, 1, revision)


class StubEtcd:
    """A client whose watch yields what the test puts there."""

    def __init__(self, count: int) -> None:
        self.count, self.batches = count, list[list[KeyValue]]()

    def pages(self, prefix: str) -> Iterator[tuple[list[KeyValue], int]]:
        yield [kv(number, number) for number in range(1, self.count + 1)], self.count

    @contextmanager
    def watch(self, prefix: str, from_revision: int) -> Iterator[StubWatch]:
        yield StubWatch(self)


class StubWatch:
    def __init__(self, etcd: StubEtcd) -> None:
        self._etcd = etcd

    def __iter__(self) -> Iterator[list[KeyValue]]:
        while True:
            yield self._etcd.batches.pop(0)

    def cancel(self) -> None: ...


class Node:
    """A flanneld without its threads."""

    def __init__(self, count: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel: Any = StubKernel({2: ("eth0", ""), 3: ("flannel.1", "vxlan")})
        monkeypatch.setattr(reconcile, "open_host", lambda: self.kernel)
        monkeypatch.setattr(reconcile, "Notifications", lambda _: self.kernel)
        monkeypatch.setattr(vxlan.Vxlan, "ensure", lambda device, rtnl, warn: reconcile.find_link(rtnl, device.name))
        monkeypatch.setattr(vxlan.Vxlan, "matches", lambda *_: True)
        self.health = Health("", 0)
        self.reconciler = Reconciler(self.health, "eth0", NETWORK.networks)
        backend = backends.create(NETWORK, EXTERNAL)
        backend.prepare(self.kernel, None)
        leases: dict[Subnets, Lease] = {}
        self.saver = Saver(str(directory / "saved.json"), "{}", lambda: OWN, leases)
        self.following = Following(
            NETWORK, lambda: OWN, backend, self.reconciler, self.health, leases, self.saver.changed, lambda _: ""
        )
        self.etcd: Any = StubEtcd(count)
        self.revision = count
        self.events = Leases(self.etcd, DIRECTORY).follow(Stop())
        for device in backend.devices:
            self.reconciler.keep(device)
        snapshot = next(self.events)
        self.following.start({lease.subnets: lease for lease in snapshot if isinstance(lease, Lease)}, is_confirmed=True)
        self.reconciler.start()
        self.reconciler.turn()
        self.saver.save()

    def change(self, **what: Any) -> int:
        """Let a lease change; how many calls that takes."""
        self.revision += 1
        self.etcd.batches = [[kv(revision=self.revision, **what)]]
        return calls(self._follow)

    def _follow(self) -> None:
        events = next(self.events)
        self.following.take(events, 0.0)
        self.following.take([], 1e9)  # what has vanished counts no more
        self.reconciler.turn()
        self.saver.save()
        self.health.answer("/metrics")


def calls(function: Callable[[], object]) -> int:
    """Count the functions that it calls, of Python and of C."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


CHANGES: dict[str, dict[str, Any]] = {
    "a node more": {"number": 5000},
    "a MAC address changed": {"number": 50, "turn": 1},
    "the same again": {"number": 60},
    "a node less": {"number": 40, "is_deleted": True},
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_costs_what_changed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took = {}
    for count in (FEW, MANY):
        node = Node(count, tmp_path, monkeypatch)
        before = len(node.kernel.entries)
        assert before == 3 * count
        if what == "the same again":  # Go's flanneld renews so: no event follows, so the next change is waited for
            node.etcd.batches = [[kv(50, count + 1)], [kv(60, count + 2, 1)]]
            took[count] = calls(node._follow)
        else:
            took[count] = node.change(**CHANGES[what])
        now = len(node.kernel.entries)
        assert now - before == {"a node more": 3, "a node less": -3}.get(what, 0)
    print(f"{what}: {took[FEW]} calls with {FEW} peers, {took[MANY]} with {MANY}")
    assert took[MANY] < LESS_THAN_HALF * took[FEW]


def test_gauge_counts_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(FEW, tmp_path, monkeypatch)
    node.change(number=5000)
    assert f"cni_py_flanneld_leases {FEW + 2}\n" in node.health.answer("/metrics")[2]


@pytest.mark.parametrize("what", ["the same", "changed", "gone"])
def test_entry_of_a_datastore_costs_what_it_is(what: str) -> None:
    """Updates without a change: a Node that its kubelet wrote again, an entry of the file, a key of etcd."""
    took = {}
    for count in (FEW, MANY):
        subnets = [Subnets.from_key(f"10.{number >> 8}.{number & 255}.0-24") for number in range(count)]
        mirror, lease = Mirror(), Lease(subnets[7], Attributes())
        list(mirror.replace((f"node{number}", Lease(each, Attributes())) for number, each in enumerate(subnets)))
        now = {"the same": lease, "changed": Lease(subnets[7], Attributes(backend_type="vxlan")), "gone": None}[what]
        took[count] = calls(partial(mirror.put, "node7", now))
    assert took[MANY] < LESS_THAN_HALF * took[FEW]


# ---- the Kubernetes API -----------------------------------------------------------------------

CLUSTER = 5000
"""Nodes of a large cluster."""
PREFIX = "flannel.alpha.coreos.com"


def node(number: int, turn: int = 0, beat: int = 0) -> dict[str, Any]:
    """A Node as the API has it, with what its kubelet writes every few minutes: 5 KB of status, most of it images."""
    mac = f"02:{turn:02x}:00:00:{number >> 8:02x}:{number & 255:02x}"
    its = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "public-ip": f"172.16.{number >> 8}.{number & 255}",
        "backend-data": json.dumps({"VNI": 1, "VtepMAC": mac}),
    }
    metadata = {"name": f"node{number}", "resourceVersion": str(number + beat)}
    metadata["annotations"] = {f"{PREFIX}/{key}": value for key, value in its.items()}  # type: ignore[assignment]
    images = [{"names": [f"registry.example/image{image}:1"], "sizeBytes": image} for image in range(50)]
    conditions = [{"type": "Ready", "status": "True", "lastHeartbeatTime": f"2026-11-30T00:00:{beat % 60:02}Z"}]
    spec = {"podCIDRs": [f"10.{number >> 8}.{number & 255}.0/24"]}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": conditions, "images": images}}


class StubKubeApi:
    """An API with so many nodes."""

    def __init__(self, count: int) -> None:
        self.count, self.lists = count, 0

    def list_all(self, path: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        self.lists += 1
        yield str(self.count), [node(number) for number in range(1, self.count + 1)]


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (lambda beat: NodeEvent("MODIFIED", node(50, beat=beat)), 0),
        (lambda beat: NodeEvent("BOOKMARK", {"metadata": {"resourceVersion": str(beat)}}), 0),
        (lambda beat: NodeEvent("MODIFIED", node(50, turn=1)), 1),
        (lambda beat: NodeEvent("DELETED", node(50)), 1),
    ],
    ids=["heartbeat", "bookmark", "changed", "deleted"],
)
def test_node_of_kubernetes_costs_what_one_node_costs(event: Callable[[int], NodeEvent], changes: int) -> None:
    """Compare 5,000 nodes with 100; and what says nothing new wakes no other thread, and is remembered as the place to go on."""
    took = {}
    for count in (FEW, CLUSTER):
        api: Any = StubKubeApi(count)
        nodes = _Nodes(api, Annotations(PREFIX), lambda: NETWORK)
        nodes._list()
        assert len(nodes.events.get_nowait()) == count + 1
        beat = 1_000_000
        took[count] = calls(partial(nodes._take, event(beat)))
        assert nodes.events.qsize() == changes
        assert nodes._version == str(event(beat).item["metadata"]["resourceVersion"])
        assert api.lists == 1
    assert took[CLUSTER] < LESS_THAN_HALF * took[FEW]
