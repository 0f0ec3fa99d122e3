"""Objects of conf/kubernetes, and what its ClusterRole allows.

    objects = load(MANIFEST)
    rules = rules_of(objects, "kube-cni-py", "flanneld")
    allows(rules, Action("patch", "", "nodes/status", "node1"))

Source: Kubernetes, "Using RBAC Authorization"; kubernetes/apiserver pkg/endpoints/request (verbs and resources of a request).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "conf" / "kubernetes"
MANIFEST = KUBERNETES / "kube-cni-py.yml"
ACCOUNT = ("kube-cni-py", "flanneld")
Object = dict[str, Any]
Rules = list[dict[str, Any]]
GET_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
"""A rule of flannel's own manifest, which names the pod instead of the node."""


def load(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def find(objects: Iterable[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod_spec(objects: Iterable[Object], name: str) -> Object:
    """Return the pod's specification of a DaemonSet."""
    spec: Object = find(objects, "DaemonSet", name)["spec"]["template"]["spec"]
    return spec


def container(objects: Iterable[Object], daemon_set: str, name: str) -> Object:
    spec = pod_spec(objects, daemon_set)
    (found,) = [each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == name]
    return dict(found)


# ---- RBAC -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """Verb and object of a request. ``resource``: with its subresource, as nodes/status; ``name``: "" for all."""

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        named = f' "{self.name}"' if self.name else ""
        return f'{self.resource.partition("/")[0]}{named} is forbidden: cannot {self.verb} resource "{self.resource}" in API group "{self.group}"'


def action_of(method: str, path: str, query: Mapping[str, str]) -> Action:
    """Return the action of a request to a resource."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, name = "/".join([rest[0], *rest[2:]]), rest[1] if len(rest) > 1 else ""
    if method == "GET":
        verb = "watch" if query.get("watch") == "true" else "get" if name else "list"
    else:
        verb = {"PATCH": "patch", "POST": "create", "PUT": "update", "DELETE": "delete"}[method]
    return Action(verb, group, resource, name)


def rules_of(objects: Iterable[Object], namespace: str, account: str) -> Rules:
    """Return the rules of all ClusterRoles that are bound to a service account."""
    objects = list(objects)
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    bound = [each["roleRef"] for each in objects if each["kind"] == "ClusterRoleBinding" and subject in each["subjects"]]
    return [rule for role in bound for rule in find(objects, role["kind"], role["name"])["rules"]]


def allows(rules: Rules, action: Action) -> bool:
    return any(
        _has(rule["verbs"], action.verb)
        and _has(rule["apiGroups"], action.group)
        and _has(rule["resources"], action.resource)
        and (not rule.get("resourceNames") or action.name in rule["resourceNames"])
        for rule in rules
    )


def _has(listed: list[str], wanted: str) -> bool:
    return wanted in listed or "*" in listed


@cache
def rules_of_the_manifest() -> Rules:
    return rules_of(load(MANIFEST), *ACCOUNT)
