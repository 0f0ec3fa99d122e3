"""Write schema.json: the kinds that conf/kubernetes has, as the Kubernetes API describes them, as one JSON schema.

    python integration/kubernetes/make_schema.py api/openapi-spec/swagger.json    (a file of the Go module k8s.io/kubernetes)

How it works. The definitions that these kinds lead to are kept, without descriptions. An object has no fields but those that
are named, which the API server refuses with kubectl's --validate=strict. The API accepts numbers where IntOrString and
Quantity are said to be texts.

Source: kubernetes/kubernetes v1.34.4, Apache License 2.0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.json")
KINDS = {
    ("", "v1", "ConfigMap"),
    ("", "v1", "Namespace"),
    ("", "v1", "ServiceAccount"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding"),
    ("apps", "v1", "DaemonSet"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
}
PREFIX = "#/definitions/"
KEPT = ("type", "required", "items", "properties", "additionalProperties", "$ref", "format")


def reduced(schema: dict[str, Any]) -> dict[str, Any]:
    """Return it with what a validator needs, and with no fields but those that are named."""
    if schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    kept = {key: schema[key] for key in KEPT if key in schema}
    if kept.pop("format", "") == "byte":
        kept["pattern"] = "^[A-Za-z0-9+/]*=*$"
    if "items" in kept:
        kept["items"] = reduced(kept["items"])
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = reduced(kept["additionalProperties"])
    if "properties" in kept:
        kept["properties"] = {name: reduced(value) for name, value in kept["properties"].items()}
        kept["additionalProperties"] = False
    return kept


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(found := schema.get("$ref"), str):
            yield found.removeprefix(PREFIX)
        for value in schema.values():
            yield from references(value)


def main() -> None:
    whole = json.loads(Path(sys.argv[1]).read_text())["definitions"]
    groups = {name: value.get("x-kubernetes-group-version-kind", []) for name, value in whole.items()}
    tops = {
        f"{kind['group']}/{kind['version']}".lstrip("/") + f" {kind['kind']}": name
        for name, kinds in groups.items()
        for kind in kinds
        if (kind["group"], kind["version"], kind["kind"]) in KINDS
    }
    assert len(tops) == len(KINDS), f"not found: {len(KINDS) - len(tops)}"
    kept: dict[str, Any] = {}
    waiting = list(tops.values())
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = {"type": ["number", "string"]} if name.endswith(".resource.Quantity") else reduced(whole[name])
            waiting += references(kept[name])
    made = {"kinds": dict(sorted(tops.items())), "definitions": dict(sorted(kept.items()))}
    SCHEMA.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
