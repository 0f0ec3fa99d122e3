"""A node whose subnet changes: its lease is deleted and another one made. With a real etcd, the real plugins, and in the lab.

The best known complaint about flannel: "cni0" already has an IP address different from the new gateway's, for every new pod.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni_py.lab import Lab, faults
from integration.etcd.cluster import CONFIG, PREFIX, SUBNETS, Cluster, Etcd
from support.waiting import until

pytestmark = pytest.mark.netns

CONFLIST = """\
{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
  {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
"""
ADDRESSES = "ip -j -4 addr show dev cni0"


def gateways(cluster: Cluster, name: str) -> list[str]:
    [link] = cluster.json(name, ADDRESSES)
    return [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]]


def move(cluster: Cluster, etcd: Etcd, name: str) -> str:
    """Take the node's subnet away, as by a mistake: the node's lease goes, and its subnet is another node's now."""
    address = cluster.addresses[name]
    key = etcd.key_of(address)
    value = {"PublicIP": "192.168.123.99", "PublicIPv6": None, "BackendType": "vxlan"}
    value["BackendData"] = {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"}
    etcd.ctl("put", SUBNETS + key, json.dumps(value))
    until(lambda: etcd.key_of(address) not in ("", key), "the node has another lease")
    until(lambda: cluster.subnet(name) == etcd.key_of(address).replace("-", "/"), "subnet.env has the new subnet")
    return key


def test_former_address_of_the_bridge_goes_with_the_last_pod_of_its_subnet(bin_dir: Path, tmp_path: Path) -> None:
    with Cluster(bin_dir, tmp_path, ("node1", "node2")) as cluster:
        etcd = Etcd(cluster).wait()
        etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        daemons = {}
        for name in cluster.names:
            cluster.path(name, "/etc/cni/net.d/10-flannel.conflist").write_text(CONFLIST)
            daemons[name] = cluster.start_flanneld(name, [f"-etcd-endpoints={etcd.endpoint}"])
        for daemon in daemons.values():
            daemon.wait_ready()
        for pod in ("pod1", "pod2"):
            cluster.attach(pod, "node1")
        cluster.attach("pod3", "node2")
        old = gateways(cluster, "node1")
        move(cluster, etcd, "node1")
        address = cluster.pods["pod1"][1]

        daemons["node1"].until_logged(f"cni0 keeps {old[0]} of this node's former subnet, which pods use (veth")
        with pytest.raises(Exception, match="already has an IP address different from") as refused:
            cluster.attach("pod4", "node1")
        words = str(refused.value)
        assert f"it has {old[0]}, the gateway of 2 pods of the former subnet: " in words
        assert address in words, "the pods are named"
        assert "ip addr del" not in words
        assert gateways(cluster, "node1") == old

        cluster.run("node1", f"{cluster.programs.cni_py} del cbr0 /run/netns/pod1")
        assert gateways(cluster, "node1") == old, "pod2 is left"
        cluster.run("node1", f"{cluster.programs.cni_py} del cbr0 /run/netns/pod2")
        for pod in ("pod1", "pod2"):
            del cluster.pods[pod]
        daemons["node1"].until_logged(f"deleted {old[0]} from cni0: it was this node's former subnet, and no pod uses it")
        cluster.run("node1", "ip netns del pod4")
        cluster.attach("pod4", "node1")
        assert gateways(cluster, "node1") == [cluster.subnet("node1").replace(".0/", ".1/")]
        until(lambda: cluster.ping().is_complete, "the new pod and node 2's reach each other")


@pytest.mark.parametrize("datastore", ["file", "etcd"])
def test_the_same_in_the_lab(bin_dir: Path, datastore: str) -> None:
    """Another subnet is reserved for the node while its flanneld does not run."""
    stores = {"file": "-datastore=file:/run/lab/shared/flannel.json", "etcd": "-etcd-endpoints=http://192.168.123.2:2379"}
    with Lab(prefix=str(bin_dir.parent.parent), nodes=2, datastore=datastore) as lab:
        assert lab.wait_connected().is_complete
        old = lab.run("node1", ADDRESSES)
        leased = [lab.subnets(node) for node in ("node1", "node2")]  # by chance
        new = next(new for new in ("10.244.200", "10.244.201", "10.244.202") if f"{new}.0/24" not in leased)
        faults.break_(lab, "flanneld", "node1")
        lab.run("node1", f"cni-py config reserve {new}.0/24 192.168.123.11 -- {stores[datastore]}")
        faults.heal(lab, "flanneld", "node1")
        until(lambda: f"{new}.0/24" in lab.subnets("node1"), "the node has its new subnet")
        until(lambda: "of this node's former subnet, which pods use" in lab.log("node1"), "the log names the pods")
        assert lab.run("node1", ADDRESSES) == old
        lab.run("node1", "cni-py del cbr0 /run/netns/pod1")
        until(lambda: "inet 10.244" not in lab.run("node1", "ip -4 addr show dev cni0"), "the address goes with the last pod")
        added = json.loads(lab.run("node1", "cni-py add cbr0 /run/netns/pod1"))
        assert added["ips"][0]["address"].startswith(f"{new}.")
        assert f"{new}.1/24" in lab.run("node1", "ip -4 addr show dev cni0")
