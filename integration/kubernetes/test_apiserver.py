"""The manifest and flanneld against a real kube-apiserver: make test-kubernetes K8S_BIN=DIR."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.kubernetes.control_plane import ADMIN, ControlPlane, Reply, collection_of
from integration.kubernetes.test_variants import VARIANTS, kustomize, render
from support.flannel import flanneld_command
from support.manifest import ACCOUNT, KUBERNETES, MANIFEST, Object, find, load
from support.namespaces import Host
from support.waiting import until

__all__ = ["kustomize"]
NAMESPACE, NAME = ACCOUNT
BASELINE = {
    "flanneld": {"host namespaces", "hostPath volumes", "non-default capabilities"},
    "cni-agent": {"host namespaces", "hostPath volumes", "privileged"},
}
"""Reasons for which a namespace of the level "baseline" refuses each pod (docs/kubernetes.md)."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, bin_dir: Path) -> Iterator[ControlPlane]:
    binaries = Path(os.environ.get("K8S_BIN", "/nonexistent"))
    if not os.access(binaries / "kube-apiserver", os.X_OK):
        pytest.skip("no kube-apiserver in K8S_BIN (make test-kubernetes K8S_BIN=DIR)")
    made = ControlPlane(Host(bin_dir), tmp_path_factory.mktemp("kubernetes"), binaries)
    try:
        for item in load(MANIFEST):
            reply = made.create(item, fieldValidation="Strict")
            assert (reply.status, reply.warnings) == (201, ()), f"{item['kind']}: {reply}"
        yield made
    finally:
        made.close()


def test_every_object_is_created_without_a_warning(plane: ControlPlane) -> None:
    """The fixture created them; here they are read again."""
    for item in load(MANIFEST):
        assert plane.call("GET", f"{collection_of(item)}/{item['metadata']['name']}").status == 200


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_accepted(plane: ControlPlane, kustomize: str, variant: str) -> None:
    for item in render(kustomize, KUBERNETES / "variants" / variant):
        path = f"{collection_of(item)}/{item['metadata']['name']}"
        exists = plane.call("GET", path).status == 200
        where = ("PUT", path) if exists else ("POST", collection_of(item))
        reply = plane.call(*where, item, dryRun="All", fieldValidation="Strict")
        assert (reply.status, reply.warnings) == (200 if exists else 201, ()), f"{item['kind']}: {reply}"


def test_object_with_a_slip_is_refused(plane: ControlPlane) -> None:
    """Show that the tests above can fail."""
    item = find(load(MANIFEST), "DaemonSet", "flanneld")
    item["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].append({"name": "nowhere", "mountPath": "/x"})
    reply = plane.call("PUT", f"{collection_of(item)}/flanneld", item, dryRun="All", fieldValidation="Strict")
    assert (reply.status, "nowhere" in reply.message) == (422, True)


# ---- pod security -----------------------------------------------------------------------------


def pod_of(daemon_set: Object, namespace: str) -> Object:
    template = daemon_set["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": namespace, **template["metadata"]},
        "spec": template["spec"],
    }


@pytest.mark.parametrize("name", BASELINE)
def test_baseline_refuses_what_the_documentation_says(plane: ControlPlane, name: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "baseline"}
    plane.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "baseline", "labels": labels}})
    for account in ("default", "flanneld"):
        plane.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": "baseline"}})
    reply = plane.create(pod_of(find(load(MANIFEST), "DaemonSet", name), "baseline"), dryRun="All")
    assert (reply.status, 'violates PodSecurity "baseline' in reply.message) == (403, True), reply
    assert {reason for reason in BASELINE[name] if reason in reply.message} == BASELINE[name], reply.message
    assert len(re.findall(r"\(", reply.message.partition(":")[2])) >= len(BASELINE[name])


# ---- the role ---------------------------------------------------------------------------------


def test_account_may_do_what_the_role_says_and_no_more(plane: ControlPlane) -> None:
    token = plane.token(NAMESPACE, NAME)
    assert plane.call("GET", "/api/v1/nodes", token=token).status == 200
    for path in ("/api/v1/pods", "/api/v1/secrets", "/api/v1/namespaces/kube-cni-py/configmaps", "/apis/apps/v1/daemonsets"):
        assert plane.call("GET", path, token=token).status == 403, path
    assert plane.call("DELETE", "/api/v1/nodes/node1", token=token).status == 403


def node(number: int, **annotations: str) -> Object:
    cidr = f"10.244.{number}.0/24"
    prefixed = {f"flannel.alpha.coreos.com/{key.replace('_', '-')}": value for key, value in annotations.items()}
    metadata = {"name": f"node{number}", "annotations": prefixed}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}


PEER = {
    "kube_subnet_manager": "true",
    "backend_type": "vxlan",
    "backend_data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:02"}',
    "public_ip": "192.168.123.2",
}


def test_flanneld_with_the_accounts_token(plane: ControlPlane, tmp_path: Path) -> None:
    """Annotations and condition are written, another node is followed until it is deleted."""
    host = plane.host
    for item in (node(1), node(2, **PEER)):
        assert plane.create(item).status == 201
    host.run(
        "ip link add eth0 type veth peer peer; ip addr add 192.168.123.1/24 dev eth0; ip link set eth0 up; ip link set peer up"
    )
    config = tmp_path / "net-conf.json"
    config.write_text(find(load(MANIFEST), "ConfigMap", "cni-py")["data"]["net-conf.json"])
    kubeconfig = plane.kubeconfig("flanneld", plane.token(NAMESPACE, NAME))
    command = flanneld_command(
        "-kube-subnet-mgr", f"-kubeconfig-file={kubeconfig}", f"-net-config-path={config}", "-ip-masq", "-iface=eth0"
    )
    daemon = plane.start("flanneld", *command, env={"NODE_NAME": "node1"})
    try:
        until(lambda: _condition(plane) == ("False", "FlannelIsUp"), lambda: plane.log("flanneld"))
        assert (
            plane.call("GET", "/api/v1/nodes/node1").body["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"]
            == "192.168.123.1"
        )
        until(lambda: "10.244.2.0/24" in host.run("ip route show proto 122"), lambda: plane.log("flanneld"))
        assert plane.call("DELETE", "/api/v1/nodes/node2").status == 200
        until(lambda: "10.244.2.0/24" not in host.run("ip route show proto 122"), lambda: plane.log("flanneld"))
        assert [line for line in plane.log("flanneld").splitlines() if line[:1] in "WE" and "br_netfilter" not in line] == []
    finally:
        daemon.terminate()
        daemon.wait(60)


def _condition(plane: ControlPlane) -> tuple[Any, Any] | None:
    conditions = plane.call("GET", "/api/v1/nodes/node1").body["status"].get("conditions") or []
    return next(((each["status"], each["reason"]) for each in conditions if each["type"] == "NetworkUnavailable"), None)


# ---- the variant own-node ---------------------------------------------------------------------


def token_of_a_pod_on(plane: ControlPlane, name: str) -> str:
    """Return a token as kubelet gives it to a pod: bound to the pod, whose node it names."""
    spec = {"nodeName": name, "serviceAccountName": NAME, "containers": [{"name": "x", "image": "x"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"on-{name}", "namespace": NAMESPACE}, "spec": spec}
    reply = plane.create(pod)
    assert reply.status in (201, 409), reply
    return plane.token(NAMESPACE, NAME, boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": f"on-{name}"})


def annotate(plane: ControlPlane, name: str, token: str) -> Reply:
    change = {"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.168.123.66"}}}
    return plane.call("PATCH", f"/api/v1/nodes/{name}/status", change, token=token, dryRun="All")


def test_flanneld_of_one_node_cannot_change_another_one(plane: ControlPlane, kustomize: str) -> None:
    for number in (5, 6):
        plane.create(node(number))
    token = token_of_a_pod_on(plane, "node5")
    assert annotate(plane, "node6", token).status == 200  # which RBAC alone allows
    for item in render(kustomize, KUBERNETES / "variants" / "own-node"):
        plane.create(item)
    until(lambda: annotate(plane, "node6", token).status == 403, lambda: str(annotate(plane, "node6", token)))
    assert 'flanneld of node "node5" may not change node "node6"' in annotate(plane, "node6", token).message
    assert annotate(plane, "node5", token).status == 200
    assert annotate(plane, "node5", plane.token(NAMESPACE, NAME)).status == 403  # a token that is bound to no pod
    assert annotate(plane, "node6", ADMIN).status == 200
