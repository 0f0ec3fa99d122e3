"""The node's object in Kubernetes, and those of the others, as far as flannel needs them. Changes nothing."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from cni_py.datastore.errors import StoreError
from cni_py.datastore.kubernetes.api import KubeApi, path_of
from cni_py.datastore.kubernetes.config import find_access
from cni_py.doctor.facts import KubeNode, Kubernetes
from cni_py.flanneld.lease import NotALease
from cni_py.flanneld.stores.kubernetes import NODES, Whoami
from cni_py.flanneld.stores.kubernetes_annotations import MANAGED, Annotations, pod_subnets
from cni_py.node.log import silence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cni_py.doctor.facts import Known
    from cni_py.flanneld.options import Options

SECONDS = 1.0
"""Time for the list of the other nodes: of a large cluster the first pages are read."""


def read(options: Options, environ: Mapping[str, str], known: Known | None) -> Kubernetes:
    """Read the nodes. Raises: CniError."""
    annotations = Annotations(options.kube_annotation_prefix)
    try:
        with silence():
            api = KubeApi(lambda: find_access(options.kube_api_url, options.kubeconfig_file, environ))
            try:
                own = Whoami(environ).ask(api)
                node = api.get(path_of("nodes", own))
                others = list(_others(api))
            finally:
                api.close()
    except StoreError as error:
        return Kubernetes(fault=str(error))
    ipv4, ipv6 = (known.config.ipv4, known.config.ipv6) if known else (True, False)
    return Kubernetes(
        node_of(node, annotations, ipv4=ipv4, ipv6=ipv6),
        tuple(node_of(item, annotations, ipv4=ipv4, ipv6=ipv6) for item in others if _name(item) != own),
    )


def _others(api: KubeApi) -> Iterator[dict[str, Any]]:
    """Yield the nodes, page by page, while there is time. Raises: StoreError."""
    deadline = monotonic() + SECONDS
    for _, items in api.list_all(NODES):
        yield from items
        if monotonic() > deadline:
            return


def node_of(item: dict[str, Any], annotations: Annotations, *, ipv4: bool, ipv6: bool) -> KubeNode:
    """Return what concerns flannel in a node's object: pure."""
    there = annotations.of(item)
    fault = ""
    try:
        cidrs = tuple(str(subnet) for subnet in pod_subnets(item).each())
        annotations.lease(item, ipv4, ipv6)
    except (NotALease, ValueError) as error:
        cidrs, fault = _cidrs(item), str(error)
    return KubeNode(_name(item), cidrs, there.get(MANAGED) == "true", fault, _unavailable(item), there)


def _cidrs(item: dict[str, Any]) -> tuple[str, ...]:
    spec = item.get("spec") or {}
    return tuple(map(str, spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])))


def _name(item: dict[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name") or "")


def _unavailable(item: dict[str, Any]) -> str:
    """Return the reason of the condition NetworkUnavailable where it is true."""
    for condition in (item.get("status") or {}).get("conditions") or []:
        if isinstance(condition, dict) and condition.get("type") == "NetworkUnavailable" and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason") or "true")
    return ""
