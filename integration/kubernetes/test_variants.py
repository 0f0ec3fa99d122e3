"""conf/kubernetes/variants: what kustomize makes of each fits the schemas and differs from the manifest as its comment says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni_py.flanneld import options
from cni_py.flanneld.network import NetworkConfig
from integration.kubernetes.schema import faults
from support.manifest import KUBERNETES, MANIFEST, Object, container, find, load, pod_spec
from support.namespaces import Host
from support.waiting import SECONDS, until

ROOT = KUBERNETES.parents[1]
VARIANTS = sorted(path.parent.name for path in KUBERNETES.glob("variants/*/kustomization.yml"))
CHANGED = {
    "host-gw": {"cni-py"},
    "dual-stack": {"cni-py"},
    "without-agent": {"cni-agent"},
    "all-plugins": {"cni-py", "flanneld", "cni-agent"},
    "metrics": {"flanneld"},
    "node-by-node": {"flanneld", "cni-agent"},
    "own-node": {"cni-py-own-node"},
}
"""Objects that each variant has otherwise, by their names."""


@pytest.fixture(scope="module")
def kustomize() -> str:
    found = shutil.which("kustomize", path=f"{os.environ.get('K8S_BIN', '')}:{ROOT / 'build' / 'bin'}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no kustomize (go install …/kustomize/v5@v5.7.1 needs Go 1.22)")
    return found


def render(kustomize: str, directory: Path) -> list[Object]:
    done = subprocess.run([kustomize, "build", directory], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # it warns of what a newer version will refuse
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def differing(kustomize: str, variant: str) -> dict[str, Any]:
    """Return the objects that a variant has otherwise, by their names; None: it lacks it."""
    before, after = by_name(load(MANIFEST)), by_name(render(kustomize, KUBERNETES / "variants" / variant))
    names = {name for name in before | after if before.get(name) != after.get(name)}
    return {name: after.get((kind, name)) for kind, name in names}


def test_base_is_the_manifest(kustomize: str) -> None:
    assert by_name(render(kustomize, KUBERNETES / "base")) == by_name(load(MANIFEST))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_fits_the_schemas(kustomize: str, variant: str) -> None:
    objects = render(kustomize, KUBERNETES / "variants" / variant)
    assert [fault for each in objects for fault in faults(each)] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_changes_this_alone(kustomize: str, variant: str) -> None:
    assert set(differing(kustomize, variant)) == CHANGED[variant]


def _network(kustomize: str, variant: str) -> NetworkConfig:
    return NetworkConfig.parse(differing(kustomize, variant)["cni-py"]["data"]["net-conf.json"])


def test_host_gw(kustomize: str) -> None:
    assert _network(kustomize, "host-gw").backend_type == "host-gw"


def test_dual_stack(kustomize: str) -> None:
    network = _network(kustomize, "dual-stack")
    assert (network.ipv4, network.ipv6, str(network.ipv6_network)) == (True, True, "fd00:244::/48")


def test_without_agent_no_container_is_privileged(kustomize: str) -> None:
    assert differing(kustomize, "without-agent") == {"cni-agent": None}
    objects = render(kustomize, KUBERNETES / "variants" / "without-agent")
    assert "privileged: true" not in yaml.safe_dump(objects)
    assert "hostPID" not in yaml.safe_dump(objects)


def test_all_plugins(kustomize: str) -> None:
    objects = render(kustomize, KUBERNETES / "variants" / "all-plugins")
    for daemon_set in ("flanneld", "cni-agent"):
        assert container(objects, daemon_set, "install")["args"] == ["--destdir", "/host", "--replace"]
    before, after = (
        json.loads(find(each, "ConfigMap", "cni-py")["data"]["cni-conf.json"]) for each in (load(MANIFEST), objects)
    )
    assert after.pop("plugins")[:-1] == before.pop("plugins")
    assert after == before


def test_metrics_are_where_the_probes_ask(kustomize: str) -> None:
    """A probe without a host asks the pod's address, which is the node's."""
    objects = render(kustomize, KUBERNETES / "variants" / "metrics")
    one = container(objects, "flanneld", "flanneld")
    assert {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}} in one["env"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert set(one[probe]["httpGet"]) == {"path", "port"}
        assert one["ports"] == [{"name": "metrics", "containerPort": one[probe]["httpGet"]["port"]}]
    words = [word.replace("$(HOST_IP)", "192.168.123.11") for word in one["args"]]
    assert options.parse(words, {}).healthz_ip == "192.168.123.11"
    assert pod_spec(objects, "flanneld")["hostNetwork"] is True


# ---- which pods a node has --------------------------------------------------------------------


def selects(spec: Object, labels: dict[str, str]) -> bool:
    """Return whether a DaemonSet's pod runs on a node with these labels: its nodeSelector and its required affinity."""
    terms = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    expressions = [each for term in terms.get("nodeSelectorTerms", []) for each in term["matchExpressions"]]
    assert all(each["operator"] == "NotIn" for each in expressions)
    return spec["nodeSelector"].items() <= labels.items() and not any(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


@pytest.mark.parametrize(
    ("label", "whole", "migrating", "removal"),
    [(None, True, False, False), ("yes", True, True, False), ("remove", False, False, True), ("no", True, False, False)],
)
def test_pods_of_a_node_by_its_label(kustomize: str, label: str | None, whole: bool, migrating: bool, removal: bool) -> None:
    """Never those of the manifest and of the removal at once."""
    labels = {"kubernetes.io/os": "linux"} | ({"cni-py": label} if label else {})
    objects, variant = load(MANIFEST), render(kustomize, KUBERNETES / "variants" / "node-by-node")
    for daemon_set in ("flanneld", "cni-agent"):
        assert selects(pod_spec(objects, daemon_set), labels) is whole
        assert selects(pod_spec(variant, daemon_set), labels) is migrating
    assert selects(pod_spec(load(KUBERNETES / "remove-cni-py.yml"), "remove"), labels) is removal


def test_removal_fits_the_schemas_and_waits_for_the_programs_that_it_removes() -> None:
    objects = load(KUBERNETES / "remove-cni-py.yml")
    assert [fault for each in objects for fault in faults(each)] == []
    spec = pod_spec(objects, "remove")
    assert [one["name"] for one in spec["initContainers"]] == ["wait", "cleanup", "uninstall"]
    assert {one["image"] for one in [*spec["initContainers"], *spec["containers"]]} == {
        container(load(MANIFEST), "flanneld", "flanneld")["image"]
    }


def test_removal_begins_when_the_last_of_our_programs_has_ended(host: Host) -> None:
    if not os.access("/bin/busybox", os.X_OK):
        pytest.skip("no busybox (package busybox-static)")
    one = container(load(KUBERNETES / "remove-cni-py.yml"), "remove", "wait")
    argv = [*one["command"], one["args"][0].replace("busybox sleep 1", "busybox sleep 0.02; echo waits")]
    host.write("/run/cni-agent", "#!/bin/sh\nsleep 1000 & wait\n")
    host.run("chmod +x /run/cni-agent")
    with subprocess.Popen(host.command("/run/cni-agent"), stdin=subprocess.DEVNULL) as agent:
        until(lambda: host.run("grep -lx cni-agent /proc/[0-9]*/comm 2>/dev/null || true"), "the agent runs")
        with subprocess.Popen(host.command(*argv), stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None
            seen = waiting.stdout.readline(), waiting.poll()
            host.run("kill $(pidof -x cni-agent)")  # before anything is asserted, which would wait for it
            assert seen == ("waits\n", None)
            assert waiting.wait(SECONDS) == 0
        agent.wait(SECONDS)
