"""A migration from kube-flannel and back, node by node, as docs/kubernetes.md says it: no packet between pods is lost.

Go's programs are those of K8S_BIN: flanneld, and flannel, its plugin. The others are Debian's, as a node of kubeadm has them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.clients import image
from integration.kubernetes import images
from integration.kubernetes.cluster import OURS, Cluster, load_all
from integration.kubernetes.conftest import BareNodes
from integration.kubernetes.images import Recipe
from integration.kubernetes.test_variants import kustomize, render
from integration.kubernetes.workload import (
    ANSWER,
    check_paths,
    churn_pods,
    count_running,
    deployment,
    packets,
    refused,
)
from support.manifest import KUBERNETES, Object
from support.namespaces import GO_PLUGINS

__all__ = ["kustomize"]
pytestmark = [pytest.mark.netns, pytest.mark.timeout(1800)]

GO = "kube-flannel"
REMOVAL = "kube-cni-py-removal"
PLUGINS = ("bridge", "host-local", "loopback", "portmap")
FLANNEL = Recipe({"Cmd": ["/flanneld"], "Env": [f"PATH={images.PATH}"]}, "flanneld")
IPTABLES = ["busybox-static", "iptables", "libc6", "ca-certificates"]
AFFINITY = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution"
LEAVE = [
    {
        "op": "add",
        "path": f"{AFFINITY}/nodeSelectorTerms/0/matchExpressions/-",
        "value": {"key": "cni-py", "operator": "DoesNotExist"},
    }
]


@pytest.fixture(scope="module")
def flannel_image(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(os.access(binaries / name, os.X_OK) for name in ("flanneld", "flannel")):
        pytest.skip("K8S_BIN lacks some of flanneld, flannel: Go's (docs/kubernetes.md)")
    links = {"usr/sbin/iptables": "xtables-nft-multi", "usr/sbin/ip6tables": "xtables-nft-multi"}
    links |= {
        f"usr/sbin/{name}-{verb}": "xtables-nft-multi" for name in ("iptables", "ip6tables") for verb in ("save", "restore")
    }
    tools = images.tools_layer(images.BUILD / "flannel", IPTABLES, links)
    layers = [tools, *(images.program_layer(binaries, Recipe({}, name)) for name in ("flanneld", "flannel"))]
    return image.write(tmp_path_factory.mktemp("flannel") / "flannel.tar", layers, FLANNEL.process, "localhost/flannel:1")


@pytest.fixture(scope="module")
def three(bare_nodes: BareNodes, flannel_image: Path) -> Iterator[Cluster]:
    """Nodes with kube-flannel, and a pod on each."""
    with bare_nodes(flannel_image) as made:
        for number in made.numbers:
            for name in PLUGINS:
                shutil.copy(f"{GO_PLUGINS}/{name}", made.node(number).host.path(f"/opt/cni/bin/{name}"))
        made.apply(load_all(Path(__file__).with_name("kube-flannel.yml")))
        made.wait(lambda: made.pods_ready(GO, len(made.numbers)) and all(map(made.is_ready, made.numbers)), "kube-flannel runs")
        made.apply([ANSWER])
        check_paths(made)
        yield made


def pods_of(made: Cluster, namespace: str, number: int) -> list[Object]:
    return made.pods(namespace, fieldSelector=f"spec.nodeName=node{number}")


def plugins(made: Cluster, number: int) -> dict[str, str]:
    """Return what each file of a node's plugin directory is: ours or Go's."""
    files = [path for path in made.node(number).host.path("/opt/cni/bin").iterdir() if path.is_file()]
    return {path.name: "Go's" if path.read_bytes()[:4] == b"\x7fELF" else "ours" for path in files}


def pods_come_and_go(made: Cluster, number: int) -> None:
    """Create pods on a node and delete them."""
    made.apply([deployment(3, number)])
    made.wait(lambda: count_running(made) == 3, f"pods of node{number} run")
    made.delete([deployment(3, number)])
    made.wait(lambda: churn_pods(made) == [], f"pods of node{number} are deleted")


def test_migration_and_back(three: Cluster, kustomize: str) -> None:
    before = {number: plugins(three, number) for number in three.numbers}
    calls = refused(three)  # Go's manifest writes the conflist first, so that a node is ready before it has a subnet
    assert set(before[1].values()) == {"Go's"}
    with packets(three, 1, 2, 3) as pings:
        path = f"/apis/apps/v1/namespaces/{GO}/daemonsets/kube-flannel-ds"
        assert three.plane.call("PATCH", path, LEAVE).status == 200
        three.apply(render(kustomize, KUBERNETES / "variants" / "node-by-node"))
        for number in three.numbers:
            three.label(number, "yes")
            three.wait(lambda number=number: pods_of(three, GO, number) == [], f"kube-flannel has left node{number}")
            three.wait(lambda number=number: three.pods_ready(OURS, 2 * number), f"ours run on node{number}")
            assert set(plugins(three, number).values()) == {"Go's", "ours"}  # Go's are kept under another name
            check_paths(three)
            pods_come_and_go(three, number)
        three.apply(without_cleanup())
        for number in three.numbers:
            three.label(number, "remove")
            three.wait(lambda: three.pods_ready(REMOVAL, 1), f"removal from node{number}")
            three.label(number, None)
            three.wait(lambda number=number: three.pods_ready(GO, number), f"kube-flannel runs on node{number}")
            three.wait(lambda number=number: three.is_ready(number), f"node{number} is ready")
            three.wait(lambda: three.pods(REMOVAL) == [], "the removal has left")
            assert plugins(three, number) == before[number]
            check_paths(three)
            pods_come_and_go(three, number)
    assert [ping.lost for ping in pings] == [0, 0, 0]
    assert refused(three) == calls


def without_cleanup() -> list[Object]:
    """Return the removal without the container that deletes flanneld's devices: Go's flanneld takes them over."""
    objects = load_all(KUBERNETES / "remove-cni-py.yml")
    spec = objects[-1]["spec"]["template"]["spec"]
    spec["initContainers"] = [each for each in spec["initContainers"] if each["name"] != "cleanup"]
    return objects


def test_pods_of_both_leave_no_address(three: Cluster) -> None:
    """Some were created by Go's plugins and deleted by ours, some the other way round."""
    three.delete([ANSWER])
    for number in three.numbers:
        three.wait(lambda number=number: addresses(three, number) == [], f"no address of node{number} is reserved")


def addresses(made: Cluster, number: int) -> list[str]:
    names = made.node(number).host.run("ls /var/lib/cni/networks/cbr0").split()
    return [name for name in names if re.fullmatch(r"[\d.]+", name)]
