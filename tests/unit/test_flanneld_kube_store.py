"""flanneld/kube_*.py: a node's lease in the Kubernetes API, and the node's own name."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from cni_py.datastore.errors import Refused, Unavailable
from cni_py.errors import InvalidConfig
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, LeaseTaken
from cni_py.flanneld.stores.kubernetes_annotations import Annotations
from cni_py.node.stop import Stop
from support.apiserver import node, vxlan
from support.kube import CONFIG, DUAL, ONLY_IPV6, OURS, PREFIX, Cluster, kubeconfig, network, subnet
from support.manifest import GET_PODS

for package in ("urllib3", "yaml"):
    pytest.importorskip(package, reason="urllib3 and PyYAML are not installed: pip install 'cni-py[flanneld]'")


# A node's addresses


@pytest.mark.parametrize(
    "addresses, expected",
    [
        ([("InternalIP", "192.168.123.1")], ["192.168.123.1"]),
        ([("Hostname", "node1"), ("InternalIP", "fd00::1"), ("ExternalIP", "203.0.113.1"), ("InternalIP", "10.0.0.1")], ["fd00::1", "10.0.0.1"]),
    ],
)  # fmt: skip
def test_internal_addresses_of_the_node(cluster: Cluster, addresses: list[tuple[str, str]], expected: list[str]) -> None:
    cluster.server.nodes["node1"]["status"]["addresses"] = [{"type": kind, "address": text} for kind, text in addresses]
    assert [str(address) for address in cluster.store.node_addresses()] == expected


@pytest.mark.parametrize(
    "addresses",
    [None, [], [{"type": "ExternalIP", "address": "203.0.113.1"}], [{"type": "InternalIP", "address": "node1"}], ["odd"]],
)
def test_node_without_an_internal_address_is_refused_by_name(cluster: Cluster, addresses: Any) -> None:
    cluster.server.nodes["node1"]["status"]["addresses"] = addresses
    with pytest.raises(Refused, match='node "node1" has no valid InternalIP'):
        cluster.store.node_addresses()


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


def test_node_created_again_with_another_podcidr_is_logged(cluster: Cluster) -> None:
    lease = cluster.store.acquire(network(CONFIG), OURS, None)
    cluster.server.put(node(1, "10.244.7.0/24"))
    with pytest.raises(LeaseTaken, match=r"10\.244\.7\.0/24 is its podCIDR now"):
        cluster.store.renew(lease)


def test_network_config_is_the_file(cluster: Cluster) -> None:
    assert json.loads(cluster.store.read_network_config()) == CONFIG
    (cluster.directory / "net-conf.json").unlink()
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


# Our own name


def test_node_name_is_that_of_the_pod(cluster: Cluster) -> None:
    environ = {"POD_NAME": "kube-flannel-x", "POD_NAMESPACE": "kube-flannel"}
    cluster.server.rules = [*cluster.server.rules, GET_PODS]
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


def test_call_that_the_cluster_role_does_not_allow_is_named(cluster: Cluster) -> None:
    environ = {"POD_NAME": "kube-flannel-x", "POD_NAMESPACE": "kube-flannel"}
    with pytest.raises(Refused, match=r"403.*pods.*forbidden") as refused:
        cluster.connect(environ=environ).acquire(network(CONFIG), OURS, None)
    assert "without NODE_NAME also get pods" in refused.value.hint


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


def test_missing_package_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def find(name: str) -> Any:
        if name in ("urllib3", "yaml"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", find)
    with pytest.raises(InvalidConfig, match=r"needs the Python package \"urllib3\".*pip install 'cni-py\[flanneld\]'"):
        cluster.connect()
    path = kubeconfig(cluster.directory, {"server": "https://10.0.0.1"}, {})
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
    assert annotations.lease(old, ipv4=True, ipv6=True) == Lease(subnet("10.244.1.0/24"), OURS)
    with pytest.raises(NotALease, match=r"missing IPv6 address on n\.Spec\.PodCIDRs"):
        annotations.lease(old, ipv4=False, ipv6=True)


@pytest.mark.parametrize(
    ("cidrs", "its", "versions"),
    [
        (["10.244.2.0/24", "fd00::2:0/112"], {"public_ip": "192.0.2.2", "public_ipv6": "2001:db8::2"}, {4, 6}),
        (["10.244.2.0/24", "fd00::2:0/112"], {"public_ip": "192.0.2.2"}, {4}),
        (["10.244.2.0/24", "fd00::2:0/112"], {"public_ip": "192.0.2.2", "public_ipv6": ""}, {4}),
        (["10.244.2.0/24", "fd00::2:0/112"], {"public_ip": "192.0.2.2", "public_ipv6": "ff02::1"}, {4}),
        (["10.244.2.0/24", "fd00::2:0/112"], {"public_ip": "none", "public_ipv6": "2001:db8::2"}, {6}),
        (["10.244.2.0/24"], {"public_ip": "192.0.2.2", "public_ipv6": "2001:db8::2"}, {4}),
        (["fd00::2:0/112"], {"public_ip": "192.0.2.2", "public_ipv6": "2001:db8::2"}, {6}),
        (["fd00::2:0/112"], {"public_ip": "192.0.2.2"}, set()),
        ([], {"public_ip": "192.0.2.2", "public_ipv6": "2001:db8::2"}, set()),
    ],
)
def test_node_with_one_family_is_reached_by_that(cidrs: list[str], its: dict[str, str], versions: set[int]) -> None:
    """A roll-out of dual stack: nodes get their second podCIDR and address one after the other."""
    annotations = Annotations("flannel.alpha.coreos.com")
    there = node(2, kube_subnet_manager="true", backend_type="host-gw", **its)
    there["spec"] = {"podCIDRs": cidrs}
    if not versions:
        with pytest.raises(NotALease, match="missing"):
            annotations.lease(there, ipv4=True, ipv6=True)
        return
    lease = annotations.lease(there, ipv4=True, ipv6=True)
    assert lease is not None
    assert lease.versions == versions
    assert {subnet.version for subnet in lease.subnets.each()} >= versions
