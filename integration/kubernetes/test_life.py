"""Another version and back, removal, and dual stack switched on, in a running cluster whose pods come and go.

The tests are one life of a cluster, in their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from integration.bundle import image
from integration.bundle.conftest import built, other_version
from integration.bundle.debian import host_architecture
from integration.bundle.tree import Tree, version
from integration.clients.containers import ask
from integration.kubernetes.cluster import OURS, PODS, Cluster, load_all
from integration.kubernetes.conftest import BareNodes
from integration.kubernetes.test_variants import kustomize, render
from integration.kubernetes.workload import (
    ANSWER,
    answering,
    check_paths,
    churn,
    packets,
    refused,
)
from support.manifest import KUBERNETES, MANIFEST, Object, find

__all__ = ["kustomize"]
pytestmark = [pytest.mark.netns, pytest.mark.timeout(1800)]

OTHER = "99.0"
DATE = 1_700_000_000
PODS6 = "fd00:244::/48"


@pytest.fixture(scope="module")
def other_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of another version: the same files with another number."""
    tree = built(host_architecture())
    directory = tmp_path_factory.mktemp("other")
    top = other_version(tree.top, directory / f"cni-py-{OTHER}", OTHER)
    other = Tree(top, tree.architecture, tree.debian, tree.wheels, tree.patchelf)
    image.write(directory / "other.oci.tar", other, directory / "rootfs", DATE, level=1, number=OTHER)
    return directory / "other.oci.tar"


@pytest.fixture(scope="module")
def three(bare_nodes: BareNodes, other_image: Path) -> Iterator[Cluster]:
    with bare_nodes(other_image) as made:
        made.apply(load_all(MANIFEST))
        made.wait(lambda: made.all_ready, "all nodes and pods are ready")
        made.apply([ANSWER])
        check_paths(made)
        yield made


def manifest(number: str) -> list[Object]:
    """Return the manifest of a version."""
    return [each for each in yaml.safe_load_all(MANIFEST.read_text().replace(f":{version()}", f":{number}")) if each]


def rolled_out(made: Cluster, number: str) -> bool:
    """Return whether each node has pods of this version alone, all ready, and its plugins."""
    pods = made.pods(OURS)
    images = {container["image"].rpartition(":")[2] for pod in pods for container in pod["spec"]["containers"]}
    return images == {number} and made.all_ready


def versions(made: Cluster, number: int) -> list[str]:
    """Return the versions whose libraries a node has, that of its plugins first."""
    script = "readlink /opt/cni-py/lib; ls -d /opt/cni-py/lib-*"
    first, *others = made.node(number).host.run(script).splitlines()
    return [name.rpartition("/")[2].split("-")[1] for name in [first, *others] if name.rpartition("/")[2]]


def restarts(made: Cluster) -> dict[str, int]:
    """Return the pods of `answer`, and how often each was started again."""
    return {
        pod["metadata"]["uid"]: sum(each["restartCount"] for each in pod["status"]["containerStatuses"])
        for pod in answering(made).values()
    }


@pytest.mark.parametrize("number", [OTHER, version()], ids=["upgrade", "downgrade"])
def test_another_version_under_load_loses_no_pod_and_no_packet(three: Cluster, number: str) -> None:
    before = restarts(three)
    with churn(three) as load, packets(three, 1, 2, 3) as pings:
        three.wait(lambda: load.rounds > 0, "pods come and go")
        three.apply(manifest(number))
        three.wait(lambda: rolled_out(three, number), f"every node has {number}")
        rounds = load.rounds
        three.wait(lambda: load.rounds > rounds + 1, "pods come and go with the new version")
    assert [ping.lost for ping in pings] == [0, 0, 0]
    assert refused(three) == []
    assert restarts(three) == before
    assert {node: versions(three, node)[0] for node in three.numbers} == dict.fromkeys(three.numbers, number)
    check_paths(three)


def test_removal_from_one_node_is_not_noticed_by_the_others(three: Cluster) -> None:
    """Drain, remove, and give it back, while pods of the others come and go."""
    three.apply(load_all(KUBERNETES / "remove-cni-py.yml"))
    cordon(three, 2, True)
    with churn(three) as load, packets(three, 1, 3) as pings:
        for pod in three.pods("default", fieldSelector="spec.nodeName=node2"):
            if pod["metadata"]["labels"].get("app") == "churn":
                three.plane.call("DELETE", f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}")
        three.label(2, "remove")
        three.wait(lambda: three.pods_ready("kube-cni-py-removal", 1), "the removal is done")
        rounds = load.rounds
        three.wait(lambda: load.rounds > rounds, "pods come and go without node2")
        three.label(2, None)
        three.wait(lambda: three.all_ready, "node2 has it again")
    cordon(three, 2, False)
    assert [ping.lost for ping in pings] == [0, 0]
    assert refused(three) == []
    check_paths(three)


def cordon(made: Cluster, number: int, unschedulable: bool) -> None:
    made.plane.call("PATCH", f"/api/v1/nodes/node{number}", {"spec": {"unschedulable": unschedulable}})


def test_dual_stack_is_switched_on(three: Cluster, kustomize: str) -> None:
    """Follow docs/kubernetes.md; pods of nodes that are not being registered again lose no packet."""
    for name in ("kube-controller-manager", "kube-apiserver"):
        three.plane.stop(name)
    three.plane.start_api_server("10.96.0.0/16,fd00:96::/112")
    three.plane.start_controller_manager(f"{PODS},{PODS6}", "--node-cidr-mask-size-ipv6=64")
    three.apply([find(render(kustomize, KUBERNETES / "variants" / "dual-stack"), "ConfigMap", "cni-py")])
    change = {"spec": {"template": {"metadata": {"annotations": {"restarted": str(time.time())}}}}}
    three.plane.call("PATCH", f"/apis/apps/v1/namespaces/{OURS}/daemonsets/flanneld", change)
    three.wait(lambda: "has no IPv6 PodCIDR" in log_of_flanneld(three), "the first flanneld says what it lacks")
    check_paths(three)  # what it had set up for IPv4 stays
    for number in three.numbers:
        others = [other for other in three.numbers if other != number]
        with packets(three, *others) as pings:
            register_with_both(three, number)
        assert [ping.lost for ping in pings] == [0, 0]
    three.wait(lambda: three.all_ready, "all nodes and pods are ready")
    check_paths(three)
    for number in three.numbers:
        for pod in answering(three).values():
            (address,) = [each["ip"] for each in pod["status"]["podIPs"] if ":" in each["ip"]]
            host = three.node(number).host
            three.wait(lambda host=host, address=address: "answer" in ask(host, address), f"{address} from node{number}")


def log_of_flanneld(made: Cluster) -> str:
    script = f"cat /var/log/pods/{OURS}_flanneld-*/flanneld/*.log 2>/dev/null || true"
    return "".join(made.node(number).host.run(script) for number in made.numbers)


def register_with_both(made: Cluster, number: int) -> None:
    """Delete the Node, and start a kubelet with both addresses; then its pods again, as a drain does."""
    made.plane.call("DELETE", f"/api/v1/nodes/node{number}")
    made.kill(number, "kubelet")
    made.start_kubelet(number, both=True)
    made.wait(lambda: len(cidrs(made, number)) == 2, f"node{number} has a podCIDR of each family")
    made.wait(lambda: "FLANNEL_IPV6_SUBNET" in made.node(number).env, f"flanneld of node{number} has both")
    made.wait(lambda: made.is_ready(number), f"node{number} is ready")
    for pod in made.pods("default", fieldSelector=f"spec.nodeName=node{number}"):
        made.plane.call("DELETE", f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}")
    made.wait(lambda: len(answering(made).get(number, {}).get("status", {}).get("podIPs", [])) == 2, "its pod has both")


def cidrs(made: Cluster, number: int) -> list[str]:
    reply = made.plane.call("GET", f"/api/v1/nodes/node{number}")
    found: list[str] = reply.body["spec"].get("podCIDRs", []) if reply.status == 200 else []
    return found
