"""conf/kubernetes: the manifest fits the schemas of the Kubernetes API, and flanneld and its own ClusterRole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cni_py import __version__, config
from cni_py.flanneld import backends, options
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE
from cni_py.node.stop import Stop
from cni_py.plugin_table import PLUGINS
from cni_py.runtime import network_config
from integration.kubernetes.schema import faults
from support.kube import CONFIG, OURS, Cluster, network
from support.manifest import (
    ACCOUNT,
    KUBERNETES,
    MANIFEST,
    Action,
    Object,
    action_of,
    allows,
    container,
    find,
    load,
    pod_spec,
    rules_of,
)

ROOT = KUBERNETES.parents[1]
OBJECTS = load(MANIFEST)
DAEMON_SETS = [each for each in OBJECTS if each["kind"] == "DaemonSet"]
CONTAINERS = [
    pytest.param(each["metadata"]["name"], one["name"], id=f"{each['metadata']['name']}-{one['name']}")
    for each in DAEMON_SETS
    for one in [*each["spec"]["template"]["spec"].get("initContainers", []), *each["spec"]["template"]["spec"]["containers"]]
]


@pytest.mark.parametrize("item", OBJECTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_object_fits_the_schema_of_the_api(item: Object) -> None:
    assert faults(item) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["spec", "template", "spec", "hostnetwork"], True, "'hostnetwork' was unexpected"),
        (["spec", "template", "spec", "hostNetwork"], "yes", "is not of type 'boolean'"),
        (["spec", "selector"], None, "is not of type 'object'"),
        (["kind"], "DaemonSett", "no such kind"),
    ],
)
def test_schema_refuses_a_slip(path: list[str], value: object, fault: str) -> None:
    item = json.loads(json.dumps(DAEMON_SETS[0]))
    inner = item
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert fault in " ".join(faults(item))


def test_manifest_is_the_base_and_made_by_generate() -> None:
    listed = [each for name in _files_of_the_base() for each in load(KUBERNETES / "base" / name)]
    assert listed == OBJECTS
    checked = subprocess.run([sys.executable, ROOT / "integration" / "generate", "--check"], capture_output=True, text=True)
    assert "kubernetes" not in checked.stdout


def _files_of_the_base() -> list[str]:
    (kustomization,) = load(KUBERNETES / "base" / "kustomization.yml")
    return list(kustomization["resources"])


# ---- pods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", DAEMON_SETS, ids=lambda each: each["metadata"]["name"])
def test_pods_run_on_every_node_and_are_the_last_to_be_evicted(item: Object) -> None:
    spec = item["spec"]["template"]["spec"]
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["priorityClassName"] == "system-node-critical"
    assert item["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    labels = item["spec"]["template"]["metadata"]["labels"]
    assert item["spec"]["selector"]["matchLabels"].items() <= labels.items()
    others = [each["spec"]["selector"]["matchLabels"] for each in DAEMON_SETS if each is not item]
    assert not any(other.items() <= labels.items() for other in others)


@pytest.mark.parametrize(("daemon_set", "name"), CONTAINERS)
def test_container(daemon_set: str, name: str) -> None:
    one, volumes = container(OBJECTS, daemon_set, name), {each["name"] for each in pod_spec(OBJECTS, daemon_set)["volumes"]}
    assert one["image"] == f"docker.io/cni-py/cni-py:{__version__}"
    assert set(one["resources"]["requests"]) == {"cpu", "memory"}
    mounts = one.get("volumeMounts", [])
    assert {mount["name"] for mount in mounts} <= volumes
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
    context = one["securityContext"]
    if name == "cni-agent":
        assert context == {"privileged": True}
        return
    added = {"flanneld": {"NET_ADMIN", "NET_RAW"}, "conflist": {"DAC_OVERRIDE"}, "install": {"CHOWN", "DAC_OVERRIDE", "FOWNER"}}
    assert set(context["capabilities"]["add"]) == added[name]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert "privileged" not in context


def test_only_the_agent_sees_the_hosts_processes_and_it_cannot_call_the_api() -> None:
    agent, flanneld = pod_spec(OBJECTS, "cni-agent"), pod_spec(OBJECTS, "flanneld")
    assert (agent["hostPID"], agent["automountServiceAccountToken"], "serviceAccountName" in agent) == (True, False, False)
    assert (flanneld.get("hostPID"), flanneld["automountServiceAccountToken"]) == (None, True)
    assert (flanneld["serviceAccountName"], ACCOUNT) == ("flanneld", ("kube-cni-py", "flanneld"))


def test_both_pods_install_the_same() -> None:
    """Their order is not known: the second one finds what the first one installed."""
    left_out = ("securityContext",)
    first, second = (
        {key: value for key, value in container(OBJECTS, name, "install").items() if key not in left_out}
        for name in ("flanneld", "cni-agent")
    )
    assert first == second
    (plugins,) = [word for word in first["args"] if "," in word]
    chain = {plugin["type"] for plugin in json.loads(_data("cni-conf.json"))["plugins"]}
    assert chain | {"bridge", "host-local", "loopback"} == set(plugins.split(",")) <= set(PLUGINS)


def test_namespace_permits_what_the_pods_need() -> None:
    (namespace,) = [each for each in OBJECTS if each["kind"] == "Namespace"]
    labels = namespace["metadata"]["labels"]
    modes = {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")}
    assert modes == {"privileged"}
    assert {each["metadata"].get("namespace", "") for each in OBJECTS} <= {"", namespace["metadata"]["name"]}


# ---- configuration ----------------------------------------------------------------------------


def _data(key: str) -> str:
    return str(find(OBJECTS, "ConfigMap", "cni-py")["data"][key])


def test_runtimes_configuration_is_that_of_a_host() -> None:
    guide = json.loads((ROOT / "conf" / "10-flannel.conflist").read_text())
    assert json.loads(_data("cni-conf.json")) == guide


def test_networks_configuration_is_that_of_a_host_and_valid() -> None:
    text = _data("net-conf.json")
    assert json.loads(text) == json.loads((ROOT / "conf" / "net-conf.json").read_text())
    assert list(backends.remarks(NetworkConfig.parse(text))) == []


def test_flanneld_takes_its_arguments_and_its_probes_are_where_it_listens() -> None:
    one = container(OBJECTS, "flanneld", "flanneld")
    given = options.parse(one["args"], {})
    assert (given.kube_subnet_mgr, given.warnings) == (True, ())
    mounts = {mount["mountPath"] for mount in one["volumeMounts"]}
    assert {str(Path(given.subnet_file).parent), str(Path(given.net_config_path).parent), "/var/lib/cni-py"} == mounts
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert one[probe]["httpGet"] == {"host": given.healthz_ip, "port": given.healthz_port, "path": path}


# ---- RBAC -------------------------------------------------------------------------------------


def test_cluster_role_allows_what_flanneld_calls_and_nothing_else(cluster: Cluster) -> None:
    stop = Stop()
    cluster.store.stored_addresses()
    lease = cluster.store.acquire(network(CONFIG), OURS, None)
    for events in cluster.store.watch(stop):
        if SNAPSHOT_COMPLETE in events:
            cluster.server.wait_for_watch()
            break
    cluster.store.renew(lease)
    cluster.store.ready()
    stop.set()
    rules = rules_of(OBJECTS, *ACCOUNT)
    granted = {
        Action(verb, group, name) for r in rules for verb in r["verbs"] for group in r["apiGroups"] for name in r["resources"]
    }
    assert cluster.server.allowed == granted


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "/api/v1/nodes", {}, True),
        ("GET", "/api/v1/nodes/node1", {}, True),
        ("GET", "/api/v1/nodes", {"watch": "true"}, True),
        ("PATCH", "/api/v1/nodes/node1/status", {}, True),
        ("PATCH", "/api/v1/nodes/node1", {}, False),
        ("PUT", "/api/v1/nodes/node1/status", {}, False),
        ("DELETE", "/api/v1/nodes/node1", {}, False),
        ("GET", "/api/v1/namespaces/kube-flannel/pods/x", {}, False),
        ("GET", "/api/v1/namespaces/kube-system/secrets", {}, False),
        ("GET", "/apis/apps/v1/namespaces/kube-cni-py/daemonsets", {}, False),
    ],
)
def test_action_of_a_request(method: str, path: str, query: dict[str, str], expected: bool) -> None:
    assert allows(rules_of(OBJECTS, *ACCOUNT), action_of(method, path, query)) is expected


def test_role_that_is_not_bound_allows_nothing() -> None:
    assert rules_of(OBJECTS, "default", "flanneld") == []


def test_every_version_of_the_conflist_is_known_to_us() -> None:
    raw = config.decode(_data("cni-conf.json").encode(), "cni-conf.json")
    assert network_config.select_version("cni-conf.json", raw) == raw["cniVersions"][-1] == "1.1.0"
