"""Three bare nodes, our image and our manifest, under kubelet, scheduler and controllers: make test-kubernetes K8S_BIN=DIR.

The tests are one life of the cluster, in their order: each leaves it working.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from integration.kubernetes.cluster import OURS, Cluster, load_all
from integration.kubernetes.conftest import NODES, BareNodes
from integration.kubernetes.workload import ANSWER, check_paths, churn_pods, count_running, deployment, running
from support.flannel import Ping
from support.manifest import KUBERNETES, MANIFEST, Object

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

CHURN = 12


@pytest.fixture(scope="module")
def three(bare_nodes: BareNodes) -> Iterator[Cluster]:
    with bare_nodes() as made:
        assert not any(made.is_ready(number) for number in made.numbers)  # there is no network plugin
        made.before = {number: files_of(made, number) for number in made.numbers}
        made.apply(load_all(MANIFEST))
        yield made


def files_of(made: Cluster, number: int) -> list[str]:
    """Return what a node has that the manifest creates: files (kubelet creates the directories), devices, routes, tables."""
    host = made.node(number).host
    script = """
    find /opt /etc/cni/net.d /run/flannel ! -type d | sort
    ip -br link | grep -o '^flannel[^ ]*' || true
    ip route show proto 122
    nft list tables | grep cni_py || true
    """
    return host.run(script).splitlines()


def log(made: Cluster, number: int, container: str) -> str:
    return made.node(number).host.run(f"cat /var/log/pods/{OURS}_*/{container}/*.log 2>/dev/null || true")


def test_manifest_makes_bare_nodes_ready(three: Cluster) -> None:
    three.wait(lambda: three.all_ready, "all nodes and pods are ready")
    for number in range(1, NODES + 1):
        files = "/run/flannel/subnet.env /etc/cni/net.d/10-flannel.conflist"
        first, second = map(float, three.node(number).host.run(f"stat -c %.9Y {files}").split())
        assert first <= second, "the conflist comes last"
        for container in ("flanneld", "cni-agent", "conflist"):
            words = [
                line for line in log(three, number, container).splitlines() if re.search(r" [WE]\d{4} | (warning|error):", line)
            ]
            assert [line for line in words if "br_netfilter" not in line] == []
    three.apply([ANSWER])
    check_paths(three)


def test_pods_come_and_go_while_programs_are_killed(three: Cluster) -> None:
    """kubelet, containerd, flanneld and the agent of node1, each in the middle of ADDs and DELs."""
    host = three.node(1).host
    churn = deployment(CHURN, 1)
    for name in ("kubelet", "containerd", "flanneld", "cni-agent"):
        three.apply([churn])
        three.wait(lambda: count_running(three) > 1, "some pods are there")
        if name in ("kubelet", "containerd"):
            three.kill(1, name)
            (three.start_kubelet if name == "kubelet" else three.start_containerd)(1)
        else:
            host.run(f"kill -KILL $(pidof -x {name})")
        three.wait(lambda: count_running(three) == CHURN, f"all pods run after {name} was killed")
        three.delete([churn])
        three.wait(lambda: churn_pods(three) == [], "all are deleted")
    three.wait(lambda: three.all_ready, "all nodes and pods are ready")
    check_paths(three)
    # a sweep of the agent may have to find what a killed containerd forgot
    three.wait(lambda: _reservations(three, 1) == {running(three)[1]}, _words(three))


def _words(made: Cluster) -> str:
    return f"addresses of node1 are those of its pods: {_reservations(made, 1)}, {running(made)}"


def _reservations(made: Cluster, number: int) -> set[str]:
    names = made.node(number).host.run("ls /var/lib/cni/networks/cbr0").split()
    return {name for name in names if re.fullmatch(r"[\d.]+", name)}


def test_node_that_is_deleted_and_registers_again(three: Cluster) -> None:
    """Give it another podCIDR, perhaps; pods that are created from then on are in it, and reach the others."""
    three.plane.call("DELETE", "/api/v1/nodes/node3")
    three.wait(
        lambda: {each["metadata"]["name"] for each in three.get("/api/v1/nodes")["items"]} == {"node1", "node2"},
        "node3 is deleted",
    )
    three.kill(3, "kubelet")
    three.start_kubelet(3)
    three.wait(lambda: three.all_ready, "node3 is back")
    cidr = three.get("/api/v1/nodes/node3")["spec"]["podCIDR"]
    prefix = cidr.rpartition(".")[0]
    three.wait(lambda: three.node(3).env.get("FLANNEL_SUBNET", "").startswith(f"{prefix}."), f"its subnet is {cidr}")
    for pod in three.pods("default", fieldSelector="spec.nodeName=node3"):  # as a drain does
        three.plane.call("DELETE", f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}")
    three.wait(lambda: running(three).get(3, "").startswith(f"{prefix}."), f"its pod is in {cidr}")
    check_paths(three)


def test_update_of_the_manifest_loses_no_packet(three: Cluster) -> None:
    """flanneld and agent are replaced on every node while pods of two nodes exchange packets."""
    host, target = three.node(1).host, running(three)[2]
    with Ping(host.command("ping", "-n", "-W2", "-i", "0.05", target)) as ping:
        for name in ("flanneld", "cni-agent"):
            path = f"/apis/apps/v1/namespaces/{OURS}/daemonsets/{name}"
            change = {"spec": {"template": {"metadata": {"annotations": {"restarted": str(time.time())}}}}}
            generation = three.plane.call("PATCH", path, change).body["metadata"]["generation"]
            three.wait(
                lambda path=path, generation=generation: _is_rolled_out(three.get(path), generation), f"{name} is replaced"
            )
    assert ping.lost == 0
    three.wait(lambda: three.all_ready, "all nodes and pods are ready")
    check_paths(three)


def _is_rolled_out(item: Object, generation: int) -> bool:
    status = item["status"]
    return bool(
        status.get("observedGeneration") == generation
        and status.get("updatedNumberScheduled") == NODES
        and status.get("numberAvailable") == NODES
    )


def test_removal_leaves_the_node_as_it_was(three: Cluster) -> None:
    three.delete([ANSWER])
    three.wait(lambda: three.pods("default", labelSelector="app=answer") == [], "no pod needs a network")
    three.apply(load_all(KUBERNETES / "remove-cni-py.yml"))
    three.label(2, "remove")
    three.wait(lambda: three.pods_ready("kube-cni-py-removal", 1), "the removal is done")
    logs = three.node(2).host.run("cat /var/log/pods/kube-cni-py-removal_*/*/*.log")
    assert files_of(three, 2) == three.before[2], logs
    three.label(2, None)
    three.wait(lambda: three.all_ready, "node2 has it again")
