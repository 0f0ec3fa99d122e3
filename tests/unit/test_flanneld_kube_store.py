"""flanneld/kube_*.py: leases in the Kubernetes API, against a server that speaks as the real one does (apiserver.py)."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.datastore.kubernetes import api as kube_api
from cni_py.datastore.kubernetes import exec as kube_exec
from cni_py.datastore.kubernetes.config import SERVICE_ACCOUNT, find_access, in_cluster, read_kubeconfig
from cni_py.errors import InvalidConfig
from cni_py.flanneld import options
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Gone, LeaseTaken
from cni_py.flanneld.stores import kubernetes as kube_store
from cni_py.flanneld.stores.kubernetes import KubeStore
from cni_py.flanneld.stores.kubernetes_annotations import Annotations
from cni_py.node.stop import Stop
from support import pki
from support.apiserver import ApiServer, Handler, node, status, vxlan
from support.waiting import until
from support.watching import Watching

for package in ("urllib3", "yaml"):
    pytest.importorskip(package, reason="urllib3 and PyYAML are not installed: pip install 'cni-py[flanneld]'")

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

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.configure(CONFIG)
        server.put(node(1))
        self.store = self.connect()

    def configure(self, config: dict[str, Any]) -> None:
        (self.folder / "net-conf.json").write_text(json.dumps(config))

    def connect(self, *arguments: str, environ: dict[str, str] | None = None) -> KubeStore:
        words = ["-kube-subnet-mgr", f"-net-config-path={self.folder}/net-conf.json", *arguments]
        if not any(word.startswith(("-kube-api-url", "-kubeconfig-file")) for word in words):
            words.append(f"-kube-api-url={self.server.url}")
        return KubeStore(options.parse(words, {}), environ or {"NODE_NAME": "node1"})

    def annotations(self, name: str = "node1") -> dict[str, str]:
        found = self.server.nodes[name]["metadata"]["annotations"]
        return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_store, "MIN_AGAIN_SECONDS", 0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ApiServer() as server:
        cluster = Cluster(server, tmp_path)
        yield cluster
        cluster.store.close()


def count(watcher: Watching, number: int) -> None:
    """Wait until there are so many leases."""
    watcher.until(lambda leases: len(leases) == number)


@pytest.fixture
def watcher(cluster: Cluster) -> Iterator[Watching]:
    with Watching(cluster.store) as watcher:
        cluster.server.wait_for_watch()
        yield watcher


# A node's lease


def test_lease_is_the_podcidr_and_the_node_says_what_go_says(cluster: Cluster) -> None:
    assert cluster.store.acquire(network(CONFIG), OURS, subnet("10.244.99.0/24")) == Lease(subnet("10.244.1.0/24"), OURS)
    (patch,) = cluster.server.asked("PATCH")
    assert patch.path == "/api/v1/nodes/node1/status"
    assert patch.headers["Content-Type"] == "application/strategic-merge-patch+json"
    assert patch.body.decode() == (
        '{"metadata":{"annotations":{'
        '"flannel.alpha.coreos.com/backend-data":"{\\"VNI\\":1,\\"VtepMAC\\":\\"12:c6:65:89:b4:01\\"}",'
        '"flannel.alpha.coreos.com/backend-type":"vxlan",'
        '"flannel.alpha.coreos.com/kube-subnet-manager":"true",'
        '"flannel.alpha.coreos.com/public-ip":"192.168.123.1"}}}'
    )
    assert cluster.server.nodes["node1"]["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"] == "0"


def test_nothing_is_written_where_nothing_differs_and_else_only_that(cluster: Cluster) -> None:
    lease = cluster.store.acquire(network(CONFIG), OURS, None)
    assert cluster.store.renew(lease) == lease
    assert len(cluster.server.asked("PATCH")) == 1
    cluster.server.annotate("node1", public_ip=None)
    assert cluster.store.renew(lease) == lease
    assert json.loads(cluster.server.asked("PATCH")[-1].body) == {
        "metadata": {"annotations": {f"{PREFIX}public-ip": "192.168.123.1"}}
    }


IPV6 = IPv6Address("fd00::1")
WRITTEN = [
    (
        Attributes(OURS.public_ip, backend_type="host-gw"),
        {"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.168.123.1"},
    ),
    (Attributes(OURS.public_ip), {"backend-type": "", "backend-data": "null", "public-ip": "192.168.123.1"}),
    (
        Attributes(OURS.public_ip, IPV6),
        {
            "backend-type": "",
            "backend-data": "null",
            "public-ip": "192.168.123.1",
            "backend-v6-data": "null",
            "public-ipv6": "fd00::1",
        },
    ),
    (
        Attributes(OURS.public_ip, IPV6, "host-gw"),
        {
            "backend-type": "host-gw",
            "backend-data": "null",
            "public-ip": "192.168.123.1",
            "backend-v6-data": "null",
            "public-ipv6": "fd00::1",
        },
    ),
    (
        Attributes(None, IPV6, "vxlan", None, {"VNI": 1}),
        {"backend-type": "vxlan", "backend-v6-data": '{"VNI":1}', "public-ipv6": "fd00::1"},
    ),
    (
        Attributes(
            OURS.public_ip, IPV6, "wireguard", {"PublicKey": "a+b/c=", "Port": 51820}, {"PublicKey": "a+b/c=", "Port": 51821}
        ),
        {
            "backend-type": "wireguard",
            "backend-data": '{"PublicKey":"a+b/c=","Port":51820}',
            "public-ip": "192.168.123.1",
            "backend-v6-data": '{"PublicKey":"a+b/c=","Port":51821}',
            "public-ipv6": "fd00::1",
        },
    ),
    (
        Attributes(OURS.public_ip, IPV6, "ipip"),
        {"backend-type": "ipip", "backend-data": "null", "public-ip": "192.168.123.1"},
    ),
    (
        Attributes(OURS.public_ip, backend_type="extension", backend_data="a<b> & ü"),
        {"backend-type": "extension", "backend-data": '"a\\u003cb\\u003e \\u0026 ü"', "public-ip": "192.168.123.1"},
    ),
]


@pytest.mark.parametrize(("attributes", "written"), WRITTEN)
def test_annotations_of_each_back_end(attributes: Attributes, written: dict[str, str]) -> None:
    changes = Annotations("flannel.alpha.coreos.com").changes(node(1), attributes)
    assert {key.removeprefix(PREFIX): value for key, value in changes.annotations.items()} == written | {
        "kube-subnet-manager": "true"
    }


@pytest.mark.parametrize("kind", ["", "host-gw", "extension"])
@pytest.mark.parametrize(("public_ip", "public_ipv6"), [(OURS.public_ip, None), (None, IPV6), (OURS.public_ip, IPV6)])
def test_what_a_node_writes_others_read(kind: str, public_ip: IPv4Address | None, public_ipv6: IPv6Address | None) -> None:
    """``kind`` "": of udp and alloc."""
    annotations, attributes = Annotations("flannel.alpha.coreos.com"), Attributes(public_ip, public_ipv6, kind)
    there = node(1)
    there["spec"] = {"podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]}
    there["metadata"].setdefault("annotations", {}).update(annotations.changes(there, attributes).annotations)
    lease = annotations.lease(there, public_ip is not None, public_ipv6 is not None)
    assert lease is not None
    assert lease.attributes == attributes


def test_address_that_people_wrote_is_published_in_place_of_ours(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cluster.server.annotate("node1", public_ip_overwrite="203.0.113.7")
    lease = cluster.store.acquire(network(CONFIG), OURS, None)
    assert lease.attributes == replace(OURS, public_ip=IPv4Address("203.0.113.7")), "as the watch says it"
    assert next(iter(cluster.store.watch(Stop()))) == [lease, SNAPSHOT_COMPLETE]
    cluster.store.renew(replace(lease, attributes=OURS))
    assert cluster.annotations()["public-ip"] == "203.0.113.7"
    words = f"Overriding public ip with '203.0.113.7' from node annotation '{PREFIX}public-ip-overwrite'"
    assert capfd.readouterr().err.count(words) == 1


def test_what_is_stored_at_the_node_is_read(cluster: Cluster) -> None:
    assert cluster.store.stored_addresses() == (None, None)
    assert cluster.store.stored_lease(network(CONFIG)) is None
    cluster.server.put(node(1, **vxlan(1), node_public_ip="203.0.113.7", node_public_ipv6="fd00::7"))
    assert cluster.store.stored_addresses() == (IPv4Address("203.0.113.7"), IPv6Address("fd00::7"))
    assert cluster.store.stored_lease(network(CONFIG)) == Lease(subnet("10.244.1.0/24"), OURS)
    cluster.server.annotate("node1", node_public_ip="here", backend_data="{")
    assert cluster.store.stored_lease(network(CONFIG)) is None
    with pytest.raises(Refused, match='node-public-ip: "here" is no IPv4 address'):
        cluster.store.stored_addresses()


@pytest.mark.parametrize(
    ("config", "cidrs", "subnets"),
    [
        (DUAL, ["10.244.1.0/24", "fd00:244:0:1::/64"], Subnets(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:244:0:1::/64"))),
        (DUAL, ["fd00:244:0:1::/64", "10.244.1.0/24"], Subnets(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:244:0:1::/64"))),
        (CONFIG, ["10.244.1.0/24", "fd00:244:0:1::/64"], Subnets(IPv4Network("10.244.1.0/24"))),
        (ONLY_IPV6, ["fd00:244:0:1::/64"], Subnets(None, IPv6Network("fd00:244:0:1::/64"))),
    ],
)
def test_families(cluster: Cluster, config: dict[str, Any], cidrs: list[str], subnets: Subnets) -> None:
    cluster.configure(config)
    cluster.server.put(node(1, *cidrs))
    attributes = replace(OURS, public_ipv6=IPV6, backend_v6_data={"VNI": 1})
    assert cluster.store.acquire(network(config), attributes, None).subnets == subnets
    stored = cluster.store.stored_lease(network(config))
    assert stored is not None
    assert stored.subnets == subnets


@pytest.mark.parametrize(
    ("config", "cidrs", "words"),
    [
        (
            CONFIG,
            ["10.9.1.0/24"],
            'subnet "10.244.0.0/16" specified in the flannel net config doesn\'t contain "10.9.1.0/24" PodCIDR of the "node1" node',
        ),
        (DUAL, ["10.244.1.0/24", "fd01::/64"], 'doesn\'t contain "fd01::/64" IPv6 PodCIDR of the "node1" node'),
        (DUAL, ["10.244.1.0/24"], "has no IPv6 PodCIDR"),
        (CONFIG, ["fd00:244:0:1::/64"], "has no IPv4 PodCIDR"),
        (CONFIG, ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"], "should be IPv4/IPv6 only or dualstack"),
        (CONFIG, ["ten"], "invalid CIDR address"),
    ],
)
def test_podcidr_that_does_not_do_is_refused(cluster: Cluster, config: dict[str, Any], cidrs: list[str], words: str) -> None:
    cluster.server.put(node(1, *cidrs))
    with pytest.raises(Refused, match=words):
        cluster.store.acquire(network(config), OURS, None)
    assert not cluster.server.asked("PATCH")


def test_what_is_not_there_yet_is_waited_for(cluster: Cluster) -> None:
    late = node(1)
    late["spec"] = {}
    cluster.server.put(late)
    with pytest.raises(Unavailable, match='node "node1" pod cidr not assigned; kube-controller-manager'):
        cluster.store.acquire(network(CONFIG), OURS, None)
    cluster.server.delete("node1")
    with pytest.raises(Unavailable, match='there is no node "node1" yet'):
        cluster.store.acquire(network(CONFIG), OURS, None)


def test_node_made_anew_with_another_podcidr_is_said(cluster: Cluster) -> None:
    lease = cluster.store.acquire(network(CONFIG), OURS, None)
    cluster.server.put(node(1, "10.244.7.0/24"))
    with pytest.raises(LeaseTaken, match=r"10\.244\.7\.0/24 is its podCIDR now"):
        cluster.store.renew(lease)


def test_network_config_is_the_file(cluster: Cluster) -> None:
    assert json.loads(cluster.store.read_network_config()) == CONFIG
    (cluster.folder / "net-conf.json").unlink()
    with pytest.raises(Refused, match="failed to read net conf"):
        cluster.store.read_network_config()


def test_ready_sets_the_condition_and_leaves_the_others(cluster: Cluster) -> None:
    cluster.store.ready()
    body = cluster.server.asked("PATCH")[0].body.decode()
    now = json.loads(body)["status"]["conditions"][0]["lastHeartbeatTime"]
    assert body == (
        '{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False",'
        f'"lastHeartbeatTime":"{now}","lastTransitionTime":"{now}",'
        '"reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}'
    )
    time.strptime(now, "%Y-%m-%dT%H:%M:%SZ")
    cluster.store.ready()
    assert [c["type"] for c in cluster.server.nodes["node1"]["status"]["conditions"]] == ["Ready", "NetworkUnavailable"]
    cluster.connect("-set-node-network-unavailable=false").ready()
    assert len(cluster.server.asked("PATCH")) == 2


# Who we are


def test_node_name_is_that_of_the_pod(cluster: Cluster) -> None:
    environ = {"POD_NAME": "kube-flannel-x", "POD_NAMESPACE": "kube-flannel"}
    cluster.server.pods["kube-flannel/kube-flannel-x"] = {"kind": "Pod", "spec": {}}
    store = cluster.connect(environ=environ)
    assert str(store) == "Kubernetes Subnet Manager - the node of pod kube-flannel/kube-flannel-x"
    with pytest.raises(Unavailable, match="node name not present in pod spec 'kube-flannel/kube-flannel-x'"):
        store.acquire(network(CONFIG), OURS, None)
    cluster.server.pods["kube-flannel/kube-flannel-x"]["spec"]["nodeName"] = "node1"
    store.acquire(network(CONFIG), OURS, None)
    store.renew(Lease(subnet("10.244.1.0/24"), OURS))
    assert str(store) == "Kubernetes Subnet Manager - node1"
    assert len(cluster.server.asked("GET", "pods")) == 2
    with pytest.raises(InvalidConfig, match="POD_NAME and POD_NAMESPACE must be set"):
        cluster.connect(environ={"POD_NAME": "x"})


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/public-ip"),
        ("example.com/one", "example.com/one-public-ip"),
        ("example.com/one-", "example.com/one-public-ip"),
    ],
)
def test_prefix(prefix: str, name: str) -> None:
    assert name in Annotations(prefix).changes(node(1), OURS).annotations


@pytest.mark.parametrize("prefix", ["a/b/c", "example", "Example.com", "example.com/a b", ""])
def test_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidConfig, match="subnet/kube: prefix"):
        Annotations(prefix)


# Watching


def test_watch_begins_with_all_nodes_in_pages_and_follows(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "PAGE", 7)
    for number in range(2, 31):
        cluster.server.put(node(number, **vxlan(number)))
    with Watching(cluster.store) as watcher:
        count(watcher, 29)
        assert watcher.sets[-1][subnet("10.244.9.0/24")].attributes == Attributes(
            IPv4Address("192.168.123.9"), None, "vxlan", {"VNI": 1, "VtepMAC": "12:c6:65:89:b4:09"}
        )
        assert len(cluster.server.asked("GET", "continue")) == 4
        cluster.server.wait_for_watch()
        cluster.server.put(node(40, **vxlan(40)))
        count(watcher, 30)
        cluster.server.annotate("node40", public_ip="192.168.123.41")
        address = IPv4Address("192.168.123.41")
        watcher.until(lambda leases: leases[subnet("10.244.40.0/24")].attributes.public_ip == address)
        cluster.server.annotate("node40", kube_subnet_manager="false")
        count(watcher, 29)
        assert watcher.events[-1] == Gone(subnet("10.244.40.0/24")), "its flanneld may write it again"
        cluster.server.delete("node9")
        count(watcher, 28)
        assert watcher.events[-1] == Gone(subnet("10.244.9.0/24"), is_final=True)
        assert watcher.events.count(SNAPSHOT_COMPLETE) == 1
    assert len(cluster.server.asked("GET", "'watch'")) == 1


def test_watch_asks_as_the_protocol_says(cluster: Cluster, watcher: Watching) -> None:
    (asked,) = cluster.server.asked("GET", "'watch'")
    assert asked.query | {"timeoutSeconds": ""} == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "101",
        "timeoutSeconds": "",
    }
    assert 225 <= int(asked.query["timeoutSeconds"]) <= 300


def test_watch_says_nothing_of_what_is_no_lease(cluster: Cluster, watcher: Watching) -> None:
    count(watcher, 0)
    for _ in range(20):
        cluster.server.annotate("node1", something="else")
    cluster.server.put(node(2, **vxlan(2)))
    count(watcher, 1)
    assert len(watcher.batches) == 2


def test_kubelets_that_report_their_health_are_no_events(cluster: Cluster, watcher: Watching) -> None:
    """They write their Node every few minutes, and whenever one of its conditions changes."""
    for number in range(2, 52):
        cluster.server.put(node(number, **vxlan(number)))
    count(watcher, 50)
    told = len(watcher.events)
    for number in range(2, 52):
        cluster.server.put(node(number, **vxlan(number)) | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    cluster.server.put(node(60, **vxlan(60)))
    count(watcher, 51)
    assert len(watcher.events) == told + 1


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"public_ip": "nowhere"}, 'public-ip: "nowhere" is no IPv4 address'),
        ({"public_ip": "224.0.0.5"}, "public-ip: 224.0.0.5 is no address of a node: it is multicast"),
        ({"backend_type": "x" * 1000}, f'backend-type: "{"x" * 63}… (1002 characters) is no type of a back end'),
        ({"backend_data": "{"}, "backend-data is no JSON"),
        ({"backend_data": "[" * 100_000}, "backend-data is no JSON"),
    ],
)
def test_node_that_is_no_lease_drops_no_other_and_is_logged_once(
    cluster: Cluster, watcher: Watching, capfd: pytest.CaptureFixture[str], broken: dict[str, str], words: str
) -> None:
    cluster.server.put(node(2, **vxlan(2)))
    cluster.server.put(node(3, **vxlan(3) | broken))
    cluster.server.annotate("node3", something="else")
    cluster.server.put(node(4, **vxlan(4)))
    count(watcher, 2)
    assert capfd.readouterr().err.count(f'Error turning node "node3" to lease: {words}') == 1
    cluster.server.put(node(3, **vxlan(3)))
    count(watcher, 3)


def test_watch_goes_on_from_a_bookmark_when_the_server_ends_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "WATCH_SECONDS", 2)
    cluster.server.bookmark_seconds = 0.1
    with Watching(cluster.store) as watcher:
        cluster.server.wait_for_watch()
        with cluster.server.changed:  # somebody else's objects: nothing to see but the bookmark
            cluster.server.version += 1000
        until(lambda: len(cluster.server.asked("GET", "'watch'")) == 2)
        cluster.server.wait_for_watch()
        cluster.server.put(node(2, **vxlan(2)))
        count(watcher, 1)
    assert int(cluster.server.asked("GET", "'watch'")[1].query["resourceVersion"]) > 1000
    assert len(cluster.server.asked("GET", "limit")) == 1


def test_version_that_is_gone_lists_again(cluster: Cluster, watcher: Watching, capfd: pytest.CaptureFixture[str]) -> None:
    cluster.server.put(node(2, **vxlan(2)))
    count(watcher, 1)
    with cluster.server.changed:  # while nobody watches: node2 goes, node3 comes, and the history is dropped
        cluster.server.disconnect()
        cluster.server.faults.append(lambda handler: handler.fail(503, "not yet") is None)
        cluster.server.history.clear()
        del cluster.server.nodes["node2"]
        cluster.server.version += 10
        cluster.server.oldest = cluster.server.version
        cluster.server.nodes["node3"] = node(3, **vxlan(3))
    watcher.until(lambda leases: list(leases) == [subnet("10.244.3.0/24")])
    assert watcher.batches[-1][-1] is SNAPSHOT_COMPLETE
    assert Gone(subnet("10.244.2.0/24")) in watcher.batches[-1]
    assert "too old resource version" in capfd.readouterr().err


def test_gone_as_a_status_and_in_the_middle_of_a_list(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "PAGE", 1)
    cluster.server.put(node(2, **vxlan(2)))

    def compact(handler: Handler) -> bool:
        cluster.server.compact()
        return False

    cluster.server.faults += [lambda handler: False, compact, lambda handler: False, lambda handler: False]
    cluster.server.faults.append(lambda handler: handler.fail(410, "gone") is None)
    with Watching(cluster.store) as watcher:
        count(watcher, 1)
        cluster.server.wait_for_watch()
    assert [("continue" in asked.query, "watch" in asked.query) for asked in cluster.server.requests] == [
        (False, False),
        (True, False),  # 410
        (False, False),
        (True, False),
        (False, True),  # 410
        (False, False),
        (True, False),
        (False, True),
    ]


# Outages


def drop(handler: Handler) -> bool:
    handler.request.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def half_a_body(handler: Handler) -> bool:
    handler.answer_bytes(200, b'{"items": [', 1000)
    return drop(handler)


def half_a_line(handler: Handler) -> bool:
    if "watch" not in handler.asked.query:
        return drop(handler)
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.chunk(b'{"type": "ADDED", "object": {"metadata"')
    return drop(handler)


def half_a_line_that_ends_well(handler: Handler) -> bool:
    half_a_line(handler) if "watch" not in handler.asked.query else None
    if "watch" in handler.asked.query:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.chunk(b'{"type": "ADDED", "object": {"metadata"')
        handler.wfile.write(b"0\r\n\r\n")
    return True


def error_event(handler: Handler) -> bool:
    if "watch" not in handler.asked.query:
        handler.fail(500, "etcdserver: leader changed")
        return True
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.event("ERROR", status(500, "etcdserver: no leader"))
    handler.wfile.write(b"0\r\n\r\n")
    return True


FAULTS: dict[str, Callable[[Handler], bool]] = {
    "500": lambda handler: handler.fail(500, "etcdserver: request timed out") is None,
    "429": lambda handler: handler.fail(429, "too many requests") is None,
    "401": lambda handler: handler.fail(401, "Unauthorized") is None,
    "403": lambda handler: handler.fail(403, "nodes is forbidden") is None,
    "302": lambda handler: handler.answer_bytes(302, b"") is None,
    "no JSON": lambda handler: handler.answer_bytes(200, b"<html>") is None,
    "a JSON list": lambda handler: handler.answer_bytes(200, b"[1]") is None,
    "nested": lambda handler: handler.answer_bytes(200, b"[" * 100_000) is None,
    "no UTF-8": lambda handler: handler.answer_bytes(200, b"\xff\xfe") is None,
    "dropped": drop,
    "half a body": half_a_body,
    "half a line": half_a_line,
    "half a line that ends well": half_a_line_that_ends_well,
    "an ERROR event": error_event,
}


@pytest.mark.parametrize("name", FAULTS)
def test_outage_of_any_kind_keeps_the_leases_and_heals(
    cluster: Cluster, watcher: Watching, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    cluster.server.put(node(2, **vxlan(2)))
    count(watcher, 1)
    cluster.server.faults += [FAULTS[name]] * 3
    cluster.server.disconnect()
    until(lambda: not cluster.server.faults)
    cluster.server.wait_for_watch()
    cluster.server.put(node(3, **vxlan(3)))
    count(watcher, 2)
    assert all(len(leases) >= 1 for leases in watcher.sets[1:])
    log = capfd.readouterr().err
    assert log.count("the last known nodes stay") == log.count("answers again") <= 4
    assert log.count("the last known nodes stay") >= 1


@pytest.mark.parametrize("name", FAULTS)
def test_call_that_fails_is_one_error_in_words(cluster: Cluster, name: str) -> None:
    cluster.server.faults.append(FAULTS[name])
    with pytest.raises(StoreError) as caught:
        cluster.store.acquire(network(CONFIG), OURS, None)
    assert cluster.server.url in str(caught.value)
    assert "object at 0x" not in str(caught.value)
    assert isinstance(caught.value, Refused) == (name in ("401", "403", "302"))


def test_slow_server_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "READ_SECONDS", 0.2)
    release = threading.Event()
    cluster.server.faults.append(lambda handler: release.wait(5) and drop(handler))
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"does not answer: .*timed out"):
        cluster.store.acquire(network(CONFIG), OURS, None)
    assert time.monotonic() - began < 3
    release.set()
    cluster.store.acquire(network(CONFIG), OURS, None)


def test_watch_whose_server_falls_silent_is_begun_anew(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "WATCH_READ_SECONDS", 0.3)
    with Watching(cluster.store) as watcher:
        until(lambda: len(cluster.server.asked("GET", "'watch'")) >= 2)
        cluster.server.put(node(2, **vxlan(2)))
        count(watcher, 1)


def test_server_that_comes_later_and_goes_and_comes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ApiServer() as server:
        cluster = Cluster(server, tmp_path)
        server.put(node(2, **vxlan(2)))
    with Watching(cluster.store) as watcher:
        until(lambda: "Connection refused" in capfd.readouterr().err)
        assert not watcher.sets
        with server:
            count(watcher, 1)
            server.wait_for_watch()
        with pytest.raises(Unavailable, match=r"does not answer: .*Connection refused"):
            cluster.store.ready()
        with server:
            server.wait_for_watch()
            server.put(node(3, **vxlan(3)))
            count(watcher, 2)
    cluster.store.close()


def test_watch_stops_at_once(cluster: Cluster, watcher: Watching) -> None:
    count(watcher, 0)
    began = time.monotonic()
    watcher.__exit__()
    assert time.monotonic() - began < 1.0
    until(lambda: not any(thread.name == "kube-watch" for thread in threading.enumerate()))


def test_config_that_is_wrong_is_waited_for(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cluster.configure({"Network": "ten"})
    with Watching(cluster.store) as watcher:
        until(lambda: "error parsing subnet config" in capfd.readouterr().err)
        cluster.configure(CONFIG)
        count(watcher, 0)


# TLS, tokens, kubeconfig


class Certificates:
    """An authority, a server's certificate for 127.0.0.1 and kube.example, and a client's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def data(self, name: str) -> str:
        return base64.b64encode((self.folder / name).read_bytes()).decode()

    def server(self, wants_client: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server.crt"), self.path("server.key"))
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("ca.crt"))
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def kubeconfig(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> str:
    """Written as YAML, of which JSON is a part."""
    path = folder / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\npreferences: {}\n"
        f"clusters:\n- name: one\n  cluster: {json.dumps(cluster)}\n"
        f"users:\n- name: flannel\n  user: {json.dumps(user)}\n"
        "contexts:\n- name: here\n  context: {cluster: one, user: flannel}\n- name: there\n  context: {cluster: two, user: nobody}\n"
    )
    return str(path)


def test_kubeconfig_with_token_and_authority(tmp_path: Path, certificates: Certificates) -> None:
    with ApiServer("secret", certificates.server()) as server:
        cluster = Cluster(server, tmp_path)
        path = kubeconfig(
            tmp_path, {"server": server.url, "certificate-authority-data": certificates.data("ca.crt")}, {"token": "secret"}
        )
        store = cluster.connect(f"-kubeconfig-file={path}")
        store.acquire(network(CONFIG), OURS, None)
        assert server.requests[-1].headers["Authorization"] == "Bearer secret"
        store.close()


@pytest.mark.parametrize("inline", [True, False])
def test_kubeconfig_with_client_certificate(tmp_path: Path, certificates: Certificates, inline: bool) -> None:
    with ApiServer(tls=certificates.server(wants_client=True)) as server:
        cluster = Cluster(server, tmp_path)
        if inline:
            user = {
                "client-certificate-data": certificates.data("client.crt"),
                "client-key-data": certificates.data("client.key"),
            }
        else:
            for name in ("client.crt", "client.key"):
                (tmp_path / name).write_bytes((certificates.folder / name).read_bytes())
            user = {"client-certificate": "client.crt", "client-key": "client.key"}
        path = kubeconfig(tmp_path, {"server": server.url, "certificate-authority": certificates.path("ca.crt")}, user)
        store = cluster.connect(f"-kubeconfig-file={path}")
        store.acquire(network(CONFIG), OURS, None)
        store.close()
        anonymous = cluster.connect(
            f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url, 'certificate-authority': certificates.path('ca.crt')}, {})}"
        )
        with pytest.raises(StoreError):
            anonymous.ready()
        anonymous.close()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"certificate-authority": "other.crt"}, "certificate verify failed"),
        ({}, "certificate verify failed"),
        ({"certificate-authority": "ca.crt", "tls-server-name": "elsewhere.example"}, "Hostname mismatch|doesn't match"),
        ({"certificate-authority": "ca.crt", "tls-server-name": "kube.example"}, ""),
        ({"insecure-skip-tls-verify": True}, ""),
    ],
)
def test_server_is_verified(tmp_path: Path, certificates: Certificates, more: dict[str, Any], words: str) -> None:
    if "certificate-authority" in more:
        more = more | {"certificate-authority": certificates.path(more["certificate-authority"])}
    with ApiServer(tls=certificates.server()) as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url} | more, {})}")
        if words:
            with pytest.raises(Refused, match=f"no TLS with {server.url}: .*({words})"):
                store.acquire(network(CONFIG), OURS, None)
            assert not server.requests
        else:
            store.acquire(network(CONFIG), OURS, None)
        store.close()


def test_pod_uses_its_service_account_and_a_new_token_of_it(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes((certificates.folder / "ca.crt").read_bytes())
    with ApiServer("first", certificates.server()) as server:
        environ = {"KUBERNETES_SERVICE_HOST": server.host, "KUBERNETES_SERVICE_PORT": str(server.port)}
        api = kube_api.KubeApi(lambda: in_cluster(environ, str(tmp_path)))
        assert api.get("/api/v1/nodes")["kind"] == "NodeList"
        server.token = "second"
        with pytest.raises(Refused, match="401: Unauthorized; the token or the client certificate is not accepted"):
            api.get("/api/v1/nodes")
        (tmp_path / "token").write_text("second\n")
        assert api.get("/api/v1/nodes")["kind"] == "NodeList"
        (tmp_path / "token").unlink()
        with pytest.raises(Refused, match='the file of "token" cannot be read'):
            api.get("/api/v1/nodes")
        api.close()
    with pytest.raises(InvalidConfig, match="KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"):
        find_access("", "", {})
    assert str(in_cluster_of("fd00::1", tmp_path, certificates)) == "https://[fd00::1]:443"
    assert SERVICE_ACCOUNT == "/var/run/secrets/kubernetes.io/serviceaccount"


def in_cluster_of(host: str, folder: Path, certificates: Certificates) -> Any:
    (folder / "token").write_text("x")
    return in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, str(folder))


def test_renewed_authority_is_believed_without_a_restart(tmp_path: Path, certificates: Certificates) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes((certificates.folder / "other.crt").read_bytes())
    with ApiServer(tls=certificates.server()) as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(
            f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url, 'certificate-authority': 'ca.crt'}, {})}"
        )
        with pytest.raises(Refused):
            store.ready()
        ca.write_bytes((certificates.folder / "ca.crt").read_bytes())
        store.ready()
        store.close()


def test_client_certificate_expires_and_is_replaced(
    tmp_path: Path, certificates: Certificates, capfd: pytest.CaptureFixture[str]
) -> None:
    """The watch of an expired one goes on; when it breaks, the log says why it does not come back."""
    for name in ("ca.crt", "ca.key"):
        shutil.copy(certificates.path(name), tmp_path)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "client.key"]
    pki.openssl(tmp_path, "req", *key, "-subj", "/CN=client", "-out", "client.csr")
    by = ["-in", "client.csr", "-cert", "ca.crt", "-keyfile", "ca.key"]
    began, ends = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(seconds=3)
    pki.sign(tmp_path, began, ends, "client.crt", *by)
    user = {"client-certificate": "client.crt", "client-key": "client.key"}
    with ApiServer(tls=certificates.server(wants_client=True)) as server:
        cluster = Cluster(server, tmp_path)
        path = kubeconfig(tmp_path, {"server": server.url, "certificate-authority": "ca.crt"}, user)
        store = cluster.connect(f"-kubeconfig-file={path}")
        with Watching(store) as watcher:
            server.wait_for_watch()
            time.sleep((ends - datetime.now(UTC)).total_seconds() + 1.5)
            server.put(node(2, **vxlan(2)))
            count(watcher, 1)
            server.disconnect()
            words = f'our client certificate "client.crt" has expired, on {ends:%Y-%m-%d %H:%M:%S} UTC; put a new one there'
            until(lambda: words in capfd.readouterr().err)
            with pytest.raises(StoreError, match=re.escape(words)):
                store.ready()
            pki.sign(tmp_path, began, ends + timedelta(days=1), "client.crt", *by)
            server.put(node(3, **vxlan(3)))
            count(watcher, 2)
            store.ready()
        store.close()


def test_kubeconfig_that_was_replaced_is_read_without_a_restart(tmp_path: Path) -> None:
    """As kubeadm renews the certificate that is in it."""
    with ApiServer("first") as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url}, {'token': 'first'})}")
        store.ready()
        server.token = "second and longer"
        kubeconfig(tmp_path, {"server": server.url}, {"token": server.token})
        store.ready()
        Path(tmp_path / "kubeconfig").write_text("half of ")
        with pytest.raises(Refused, match="is no valid kubeconfig"):
            store.ready()
        kubeconfig(tmp_path, {"server": server.url}, {"token": server.token})
        store.ready()
        store.close()


# A program that makes credentials


V1 = "client.authentication.k8s.io/v1"


class Plugin:
    """A program in the kubeconfig's folder that prints the file `answer`, and counts how often it was run."""

    def __init__(self, folder: Path, script: str = "cat answer") -> None:
        self.folder = folder
        program = folder / "bin" / "login"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\ncd {folder}\necho >>runs\nenv >env\necho "$@" >words\n{script}\n')
        program.chmod(0o755)

    def gives(self, version: str = V1, kind: str = "ExecCredential", **status: str) -> None:
        (self.folder / "answer").write_text(json.dumps({"kind": kind, "apiVersion": version, "status": status}))

    @property
    def runs(self) -> int:
        return len((self.folder / "runs").read_text())

    def env(self) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in (self.folder / "env").read_text().splitlines())


def user_of(command: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"apiVersion": V1, "command": command, "interactiveMode": "Never", "args": None, "env": None} | more}


@pytest.mark.parametrize("version", [V1, f"{V1}beta1"])
def test_program_makes_a_token_and_is_run_again_when_it_is_refused(tmp_path: Path, version: str) -> None:
    plugin = Plugin(tmp_path)
    plugin.gives(version, token="first")
    with ApiServer("first") as server:
        cluster = Cluster(server, tmp_path)
        more: dict[str, Any] = {"apiVersion": version, "args": ["get-token", "a b"], "env": [{"name": "WHO", "value": "me"}]}
        path = kubeconfig(tmp_path, {"server": server.url}, user_of("./bin/login", **more))
        store = cluster.connect(f"-kubeconfig-file={path}")
        store.acquire(network(CONFIG), OURS, None)
        assert plugin.runs == 1
        server.token = "second"
        plugin.gives(version, token="second")
        with pytest.raises(Refused, match="401"):
            store.ready()
        store.ready()
        store.ready()
        assert plugin.runs == 2
        store.close()
    assert (tmp_path / "words").read_text() == "get-token a b\n"
    assert plugin.env()["WHO"] == "me"
    assert json.loads(plugin.env()["KUBERNETES_EXEC_INFO"]) == {
        "kind": "ExecCredential",
        "apiVersion": version,
        "spec": {"interactive": False},
    }


def test_program_is_run_again_when_what_it_gave_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that is looked for in PATH."""
    plugin = Plugin(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    ends = datetime.now(UTC) + timedelta(seconds=2)
    plugin.gives(token="first", expirationTimestamp=f"{ends:%Y-%m-%dT%H:%M:%SZ}")
    with ApiServer("first") as server:
        cluster = Cluster(server, tmp_path)
        store = cluster.connect(f"-kubeconfig-file={kubeconfig(tmp_path, {'server': server.url}, user_of('login'))}")
        store.ready()
        store.ready()
        assert plugin.runs == 1
        server.token = "second"
        plugin.gives(token="second", expirationTimestamp="2100-01-01T00:00:00+02:00")
        time.sleep(2.1)
        store.ready()
        store.ready()
        assert plugin.runs == 2
        store.close()


def test_program_makes_a_certificate_and_knows_the_cluster(tmp_path: Path, certificates: Certificates) -> None:
    plugin = Plugin(tmp_path)
    pem = {key: (certificates.folder / f"client.{end}").read_text() for key, end in (("Certificate", "crt"), ("Key", "key"))}
    plugin.gives(**{f"client{key}Data": text for key, text in pem.items()})
    with ApiServer(tls=certificates.server(wants_client=True)) as server:
        cluster = Cluster(server, tmp_path)
        extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}
        where = {"server": server.url, "certificate-authority": certificates.path("ca.crt"), "extensions": [extension]}
        store = cluster.connect(
            f"-kubeconfig-file={kubeconfig(tmp_path, where, user_of('bin/login', provideClusterInfo=True))}"
        )
        store.ready()
        store.close()
    assert json.loads(plugin.env()["KUBERNETES_EXEC_INFO"])["spec"] == {
        "interactive": False,
        "cluster": {
            "server": server.url,
            "certificate-authority-data": certificates.data("ca.crt"),
            "config": {"audience": "x"},
        },
    }


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hush; echo no such profile >&2; exit 3", "exit status 3: no such profile"),
        ("kill -9 $$", "killed by signal 9"),
        ("sleep 60 & sleep 60", "not done after 0.5 s, killed"),
        ("exec >&- 2>&-; sleep 60", "not done after 0.5 s, killed"),
        ("cat /dev/zero", "it wrote more than 1048576 bytes, killed"),
        ("cat /dev/zero >&2", "it wrote more than 1048576 bytes, killed"),
        ("read line || true; cat", "its output is no ExecCredential: Invalid JSON"),
        ('echo \'{"kind": "hush"}\'', "its output is no ExecCredential: apiVersion: Field required"),
        (f'echo \'{{"kind": "ExecCredential", "apiVersion": "{V1}"}}\'', "status: Field required"),
    ],
)
def test_program_that_fails_is_said_and_waited_for(
    tmp_path: Path, script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_exec, "SECONDS", 0.5)
    Plugin(tmp_path, script)
    assert_refused(tmp_path, user_of("bin/login"), words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"version": f"{V1}beta1", "token": "hush"}, f'it answers in apiVersion "{V1}beta1", the kubeconfig says "{V1}"'),
        ({}, "it gave neither a token nor a certificate with its key"),
        ({"clientKeyData": "hush"}, "it gave neither a token nor a certificate with its key"),
        ({"token": "hush", "clientKeyData": "hush"}, "it gave neither a token nor a certificate with its key"),
        ({"token": "hush", "expirationTimestamp": "tomorrow"}, "status.expirationTimestamp: "),
        ({"kind": "Pod", "token": "hush"}, "kind: Input should be 'ExecCredential'"),
    ],
)
def test_answer_that_cannot_be_used_is_said(tmp_path: Path, answer: dict[str, str], words: str) -> None:
    Plugin(tmp_path).gives(**answer)
    assert_refused(tmp_path, user_of("bin/login"), words)


def test_program_that_is_not_there_is_said_with_how_to_get_it(tmp_path: Path) -> None:
    words = "nowhere-login: No such file or directory; apt install it"
    assert_refused(tmp_path, user_of("nowhere-login", installHint="apt install it"), words)


def assert_refused(folder: Path, user: dict[str, Any], words: str) -> None:
    """By every call, and nothing is asked of the server."""
    with ApiServer() as server:
        store = Cluster(server, folder).connect(f"-kubeconfig-file={kubeconfig(folder, {'server': server.url}, user)}")
        with pytest.raises(Refused, match="of the kubeconfig gave no credentials") as caught:
            store.ready()
        assert words in str(caught.value)
        assert "hush" not in str(caught.value)
        assert not server.requests
        store.close()


def test_url_overrides_that_of_the_kubeconfig(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"server": "https://10.0.0.1:6443"}, {"username": "me", "password": "secret"})
    access = read_kubeconfig(path, "http://127.0.0.1:8080/")
    assert str(access) == "http://127.0.0.1:8080"
    assert access.headers() == {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}


BAD_KUBECONFIGS = [
    ("", "", 'current-context" is "": there are none'),
    ("current-context: x\nclusters: 1", "", "clusters: Input should be a valid list"),
    ("a: [b\nc: d", "", "is no YAML: line 2"),
    ("- 1", "", "no valid kubeconfig"),
    ("a: \x00", "", "is no YAML"),
    ("here", "there", "names a cluster or a user that is not there"),
    ("here", "nowhere", '"current-context" is "nowhere": there are here, there'),
]


@pytest.mark.parametrize(("text", "context", "words"), BAD_KUBECONFIGS)
def test_kubeconfig_that_is_wrong_is_said(tmp_path: Path, text: str, context: str, words: str) -> None:
    path = kubeconfig(tmp_path, {"server": "https://10.0.0.1:6443"}, {})
    content = Path(path).read_text().replace("current-context: here", f"current-context: {context}") if context else text
    Path(path).write_text(content)
    with pytest.raises(InvalidConfig) as caught:
        read_kubeconfig(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"server": "10.0.0.1:6443"}, {}, "is no URL of an API server"),
        ({}, {}, "is no URL of an API server"),
        ({"server": "https://10.0.0.1", "proxy-url": "http://p"}, {}, '"proxy-url" of the kubeconfig is not supported'),
        ({"server": "https://10.0.0.1"}, {"exec": {"command": "aws"}}, '"exec" of the kubeconfig cannot be used: apiVersion: '),
        (
            {"server": "https://10.0.0.1"},
            {"auth-provider": {"name": "gcp"}},
            '"auth-provider" of the kubeconfig is not supported',
        ),
        ({"server": 7}, {}, "server: Input should be a valid string"),
        ({"server": "https://10.0.0.1", "certificate-authority-data": "?"}, {}, "certificate-authority-data"),
        (
            {"server": "https://10.0.0.1", "certificate-authority-data": "c2VjcmV0"},
            {},
            "the certificates for https://10.0.0.1 cannot be used",
        ),
        ({"server": "https://10.0.0.1", "certificate-authority": "nowhere"}, {}, "nowhere: No such file"),
        (
            {"server": "https://10.0.0.1"},
            {"client-certificate-data": "c2VjcmV0", "client-key-data": "c2VjcmV0"},
            "cannot be used",
        ),
        ({"server": "https://10.0.0.1"}, {"token": ["hush"]}, "token: Input should be a valid string"),
    ],
)
def test_access_that_is_wrong_is_said_and_no_secret_is_shown(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], words: str
) -> None:
    path = kubeconfig(tmp_path, cluster, user)
    with pytest.raises(InvalidConfig) as caught:
        kube_api.KubeApi(lambda: read_kubeconfig(path))
    assert words in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_missing_package_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def find(name: str) -> Any:
        if name in ("urllib3", "yaml"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", find)
    with pytest.raises(InvalidConfig, match=r"needs the Python package \"urllib3\".*pip install 'cni-py\[flanneld\]'"):
        cluster.connect()
    path = kubeconfig(cluster.folder, {"server": "https://10.0.0.1"}, {})
    with pytest.raises(InvalidConfig, match='needs the Python package "PyYAML"'):
        cluster.connect(f"-kubeconfig-file={path}")


# What a node says


def test_lease_of_a_node_as_go_wrote_it() -> None:
    annotations = Annotations("flannel.alpha.coreos.com")
    assert annotations.lease(node(1), ipv4=True, ipv6=False) is None
    assert annotations.lease(
        node(1, **vxlan(1) | {"backend_data": "null", "backend_type": "host-gw"}), ipv4=True, ipv6=False
    ) == Lease(subnet("10.244.1.0/24"), Attributes(OURS.public_ip, backend_type="host-gw"))
    old = node(1, **vxlan(1))
    del old["spec"]["podCIDRs"]
    assert annotations.lease(old, ipv4=True, ipv6=False) == Lease(subnet("10.244.1.0/24"), OURS)
    with pytest.raises(NotALease, match=r"missing IPv6 address on n\.Spec\.PodCIDRs"):
        annotations.lease(old, ipv4=True, ipv6=True)
